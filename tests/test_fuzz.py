"""Damaged and foreign input at every entrance: done right, or refused in one line with nothing left behind.

Run: python -m pytest -q tests/test_fuzz.py
Thousands of starts: TEXT_JEPA_CASES=500 python -m pytest -q tests/test_fuzz.py
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import CASES, TEXTS
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DistilBertConfig

from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.commands.main import main
from text_jepa.share.export import export_encoder


# Starts of each test. A start of a run takes a second, one of another command less.
STARTS = 4 * CASES
fuzzed = settings(
    max_examples=STARTS,
    deadline=None,
    derandomize=CASES == 1,
    suppress_health_check=list(HealthCheck),
)

LINES = [f"{text} {number}" for number in range(4) for text in TEXTS]
ROWS = [{"text": line, "label": "ab"[row % 2], "score": row / 7} for row, line in enumerate(LINES)]

# What stands where something else is expected.
FOREIGN = [
    None,
    True,
    0,
    -1,
    10**30,
    1e308,
    float("nan"),
    "",
    " ",
    "\x00",
    "\ud800",
    "nan",
    "../..",
    "ß" * 300,
    [],
    [[]],
    ["a", 1, None],
    {},
    {"a": {"b": []}},
]
BYTES = [
    b"",
    b"\n",
    b"\x00" * 64,
    b"\xff\xfe\x00\x01",
    b"\xef\xbb\xbf",
    b"PAR1",
    b"\x1f\x8b\x08\x00",
    b"{",
    b"[]",
    b"null",
    b"[[[[[[[[",
    b"---\n",
    b"\x80\x04\x95.",
    "Ünïcödé".encode("utf-16"),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    bytes(range(256)),
]


@st.composite
def damages(draw):
    """A function that damages bytes: cut, emptied, with wrong bits or bytes, twice, or something else altogether."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "replace", "twice", "delete"]))
    place = draw(st.floats(0, 1))
    other = draw(st.sampled_from(BYTES))

    def damage(content: bytes) -> bytes:
        at = int(place * max(len(content) - 1, 0))
        if kind == "cut":
            return content[:at]
        if kind == "flip" and content:
            return content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :]
        if kind == "insert":
            return content[:at] + other + content[at:]
        if kind == "twice":
            return content + content
        if kind == "delete":
            return content[:at] + content[at + 40 :]
        return other

    return damage


foreign = st.one_of(st.sampled_from(FOREIGN), st.text(max_size=8), st.integers(), st.floats())


def replaced(content, place, value):
    """JSON in which the value at a place, counted over all values at any depth, is another one."""
    places = []

    def walk(node):
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    content = json.loads(json.dumps(content))
    walk(content)
    node, key = places[int(place * (len(places) - 1))]
    node[key] = value
    return content


def listing(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def start(*argv):
    """Runs a command in this process; gives its exit code and the lines that it wrote to stderr."""
    errors = io.StringIO()
    words = ["text-jepa", *map(str, argv)]
    code = 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return code, errors.getvalue().splitlines()


def right_or_refused(output, *argv):
    """Starts a command that writes to `output`: it ends well, or with one line, code 2 and nothing left behind."""
    code, lines = start(*argv)
    if code == 0:
        return
    assert code == 2, (code, lines)
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0], lines
    assert not any("Traceback" in line for line in lines), lines
    left = [path.name for path in output.rglob("*")] if output.is_dir() else []
    assert left == []
    assert not output.is_file()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a corpus and a plain encoder, as they should be."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "good.txt").write_text("\n".join(LINES) + "\n")
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "good.json").write_text(json.dumps(ROWS))
    (folder / "good.csv").write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS))
    (folder / "good.txt.gz").write_bytes(gzip.compress((folder / "good.txt").read_bytes()))
    Dataset.from_list(ROWS).to_parquet(folder / "good.parquet")
    shape = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 64}
    config = DistilBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape)
    torch.manual_seed(0)
    model = TextJepaForPreTraining(TextJepaConfig(text_config=config.to_dict()))
    export_encoder(model, tokenizer, folder / "encoder", max_length=16)
    (folder / "encoder" / "README.md").write_text("---\nlicense: mit\n---\n\n# encoder\n\ntext\n")
    return folder


@contextlib.contextmanager
def copied(place, name):
    """A copy of a file or folder that may be damaged, and a folder to write to."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, name)
        if (place / name).is_dir():
            shutil.copytree(place / name, copy)
        else:
            shutil.copy(place / name, copy)
        yield copy, Path(folder, "out")


def pretrain(place, output, *argv):
    """The command line of a run that reads everything and trains a step; flags that come later count."""
    usual = "--preset tiny --max_length 16 --max_steps 1 --vocab_size 120 --per_device_train_batch_size 4 --use_cpu"
    usual += f" --output_dir {output} --cache_dir {place / 'cache'} --max_eval_samples 4 --train_file {place}/good.txt"
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = ["--text_config", json.dumps(shape)]
    if "--model_name_or_path" in argv:
        usual = usual.replace("--preset tiny ", "").replace("--vocab_size 120 ", "")
        shape = []
    return ["pretrain", *usual.split(), *shape, *argv]


# ---- entrances ------------------------------------------------------------------------------------------------------


def test_what_is_undamaged_is_right(place):
    """Otherwise the other tests would see refusals of something else alone."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        encoder = place / "encoder"
        commands = [
            pretrain(place, output / "1", "--prepare_only"),
            pretrain(place, output / "2", "--model_name_or_path", encoder),
            pretrain(place, output / "3", "--tokenizer_name", encoder, "--prepare_only"),
            pretrain(place, output / "4"),
            ["export", "weights", encoder, output / "5", "--texts", place / "good.txt"],
            ["probe", "--model_name_or_path", encoder, "--task_file", place / "good.jsonl", "--mode", "knn"],
        ]
        for command in commands:
            assert start(*command)[0] == 0, start(*command)


CORPORA = ["good.txt", "good.jsonl", "good.json", "good.csv", "good.txt.gz", "good.parquet"]


@fuzzed
@given(name=st.sampled_from(CORPORA), damage=damages())
def test_a_damaged_corpus_is_read_or_refused(place, name, damage):
    with copied(place, name) as (path, output):
        path.write_bytes(damage(path.read_bytes()))
        right_or_refused(output, *pretrain(place, output, "--train_file", path, "--prepare_only"))


@fuzzed
@given(values=st.lists(foreign, min_size=1, max_size=3), kept=st.integers(0, 20))
def test_a_column_of_anything_is_read_or_refused(place, values, kept):
    with copied(place, "good.jsonl") as (path, output):
        rows = [{"text": line} for line in LINES[:kept]] + [{"text": value} for value in values]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        right_or_refused(output, *pretrain(place, output, "--train_file", path, "--prepare_only"))


ENCODER_FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
]
JSON_FILES = [name for name in ENCODER_FILES if name.endswith("json")]


@fuzzed
@given(name=st.sampled_from(ENCODER_FILES), damage=damages())
def test_a_damaged_encoder_is_opened_or_refused(place, name, damage):
    with copied(place, "encoder") as (folder, output):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        right_or_refused(output, *pretrain(place, output, "--model_name_or_path", folder))


@fuzzed
@given(name=st.sampled_from(JSON_FILES), at=st.floats(0, 1), value=foreign)
def test_a_foreign_value_in_a_file_of_an_encoder_is_taken_or_refused(place, name, at, value):
    with copied(place, "encoder") as (folder, output):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(replaced(content, at, value)))
        argv = ["weights", folder, output, "--texts", place / "good.txt"]
        right_or_refused(output, "export", *argv)


@fuzzed
@given(damage=damages(), name=st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
def test_a_damaged_tokenizer_is_opened_or_refused(place, name, damage):
    with copied(place, "encoder") as (folder, output):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        right_or_refused(output, *pretrain(place, output, "--tokenizer_name", folder, "--prepare_only"))


FLAGS = [
    "max_length",
    "max_steps",
    "learning_rate",
    "mask_ratio",
    "num_masks",
    "vocab_size",
    "text_column",
    "text_config",
    "warmup_steps",
    "save_steps",
    "logging_steps",
    "per_device_train_batch_size",
    "validation_split_percentage",
    "objective",
    "preset",
    "pooling",
    "lr_scheduler_type",
    "weight_decay",
    "seed",
]


@fuzzed
@given(flag=st.sampled_from(FLAGS), value=foreign)
def test_any_value_of_a_flag_is_taken_or_refused(place, flag, value):
    huge = isinstance(value, int | float) and abs(value) > 3  # a run of a million steps is right, and long
    value = -3 if huge and flag in ("max_steps", "max_length", "num_masks") else value
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        right_or_refused(output, *pretrain(place, output, f"--{flag}={value}"))


@fuzzed
@given(damage=damages(), at=st.floats(0, 1), value=foreign)
def test_a_damaged_yaml_file_is_read_or_refused(place, damage, at, value):
    content = {"preset": "tiny", "max_steps": 1, "text_config": {"hidden_size": 8}, "train_file": ["good.txt"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yaml")
        output = Path(folder, "out")
        path.write_bytes(damage(json.dumps(replaced(content, at, value)).encode()))
        verb, *flags = pretrain(place, output, "--prepare_only")
        right_or_refused(output, verb, path, *flags)


VARIABLES = ["HF_ENDPOINT", "OMP_NUM_THREADS", "WORLD_SIZE", "RANK", "LOCAL_RANK", "HF_TOKEN", "CUDA_VISIBLE_DEVICES"]


@fuzzed
@given(name=st.sampled_from(VARIABLES), value=st.sampled_from(["", "x", "-1", "1e9", "ü", "0"]))
def test_any_environment_is_taken_or_refused(place, name, value):
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {name: value}):
        output = Path(folder, "out")
        right_or_refused(output, *pretrain(place, output, "--prepare_only"))


@fuzzed
@given(labels=st.lists(foreign, min_size=1, max_size=4), rest=st.sampled_from(["good", "none", "same"]))
def test_labels_of_anything_are_learned_or_refused(place, labels, rest):
    with copied(place, "good.jsonl") as (path, output):
        rows = [{"text": line, "label": "ab"[row % 2]} for row, line in enumerate(LINES)] if rest == "good" else []
        repeats = 6 if rest == "same" else 1
        rows += [{"text": f"{row} word", "label": label} for row, label in enumerate(labels * repeats)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = [place / "encoder", "--task_file", path, "--mode", "knn", "--no_controls", "--output_dir", output]
        right_or_refused(output, "probe", "--model_name_or_path", *argv, "--cache_dir", place / "cache")


@fuzzed
@given(damage=damages(), name=st.sampled_from(CORPORA[1:]))
def test_a_damaged_label_file_is_read_or_refused(place, name, damage):
    with copied(place, name) as (path, output):
        path.write_bytes(damage(path.read_bytes()))
        argv = [place / "encoder", "--task_file", path, "--mode", "knn", "--no_controls", "--output_dir", output]
        right_or_refused(output, "probe", "--model_name_or_path", *argv, "--cache_dir", place / "cache")


@fuzzed
@given(name=st.sampled_from(["README.md", "modules.json", "tokenizer_config.json", "config.json"]), damage=damages())
def test_a_damaged_card_or_folder_is_published_or_refused(place, name, damage):
    """Nothing can be published offline, so the folder has to stay as it is in any case."""
    with copied(place, "encoder") as (folder, output):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        before = listing(folder)
        right_or_refused(output, "export", "push", folder, "me/encoder")
        assert listing(folder) == before
