"""Damaged and foreign input at every entrance: done right, or refused in one line with nothing left behind.

Run: python -m pytest -q tests/test_fuzz.py
Ten thousand starts: TEXT_JEPA_CASES=150 python -m pytest -q tests/test_fuzz.py
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from conftest import CASES, TEXTS
from datasets import Dataset
from hub_server import HubServer, Repository
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DistilBertConfig

from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.cli import UsageError
from text_jepa.commands.main import main
from text_jepa.encoders.embeddings import embed_texts, open_encoder
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
    """Runs a command in this process; gives its exit code, 1 after a traceback, and the lines of its stderr."""
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
        except Exception:  # a bug, of which it still counts what it leaves behind
            code = 1
            traceback.print_exc()
    return code, errors.getvalue().splitlines()


def right_or_refused(output, *argv):
    """Starts a command that writes to `output`: it ends well, or with one line, code 2 and nothing left behind."""
    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(tempfile, "tempdir", scratch):
        code, lines = start(*argv)
        left = [path.name for path in Path(scratch).rglob("*")]
    # Folders that become the output at the end lie beside it until then.
    left += [path.name for path in output.parent.iterdir() if path.name.startswith("_")]
    if code != 0 and output.exists():
        left += [output.name, *(path.name for path in output.rglob("*"))]
    assert left == [], (code, left, lines)
    if code == 0:
        return
    assert code == 2, (code, lines)
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0], lines
    assert not any("Traceback" in line for line in lines), lines


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a corpus and a plain encoder, as they should be."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "good.txt").write_text("\n".join(LINES) + "\n")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(TEXTS[0])
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


def adaptation(place, output):
    """Flags of an adaptation of one step."""
    flags = "--max_steps 1 --use_cpu --max_length 16 --max_document_length 32 --per_device_train_batch_size 4"
    return f"{flags} --max_eval_samples 4 --output_dir {output} --cache_dir {place / 'cache'}".split()


# ---- entrances ------------------------------------------------------------------------------------------------------


def test_what_is_undamaged_is_right(place, searched):
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
            ["adapt", encoder, place / "good.txt", *adaptation(place, output / "6")],
            ["search", searched, "lamp"],
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


HEAD_FILES = [
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
]
# Keys of these files, and values that one of them may have.
HEAD_KEYS = ["pooling_mode", "include_prompt", "pooling_mode_cls_token", "max_seq_length", "do_lower_case"]
HEAD_KEYS += ["truncate_dim", "default_prompt_name", "prompts", "transformer_task", "modality_config", "bias"]
HEAD_KEYS += ["module_input_name", "module_output_name", "processing_kwargs", "config_args", "tokenizer_args"]
HEAD_KEYS += ["activation_function", "use_residual", "padding_side", "model_max_length", "path", "type"]
HEAD_VALUES = ["cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", ["mean", "cls"], True, False, 1, 3]
HEAD_VALUES += ["query", {"query": "lamp: "}, "fill-mask", "token_embeddings", "sentence_embedding", "left", "right"]
HEAD_VALUES += [{"text": {"max_length": 4}}, {"num_hidden_layers": 0}, {"model_max_length": 4}, "0_Other"]
HEAD_VALUES += ["own.Pooling", "torch.nn.modules.activation.ReLU", "torch.nn.modules.linear.Identity"]
HEAD_LENGTH = 16
HEAD_TEXTS = ["the lamp", "bread", "the river carried the boat"]


@pytest.fixture(scope="module")
def headed(place):
    """An encoder with a head of sentence-transformers: pooling, a dense layer and prompts."""
    library = pytest.importorskip("sentence_transformers")
    modules = library.sentence_transformer.modules
    encoder = modules.Transformer(str(place / "encoder"), max_seq_length=HEAD_LENGTH)
    parts = [encoder, modules.Pooling(8), modules.Dense(8, 5), modules.Normalize()]
    model = library.SentenceTransformer(modules=parts, device="cpu", prompts={"query": "lamp: "})
    model.save_pretrained(str(place / "headed"), create_model_card=False)
    found = embed_texts(open_encoder(str(place / "headed")), HEAD_TEXTS)
    np.testing.assert_allclose(found, model.encode(HEAD_TEXTS), atol=1e-5)  # else all would be refusals
    return library.SentenceTransformer


@fuzzed
@given(
    name=st.sampled_from(HEAD_FILES),
    at=st.floats(0, 1),
    key=st.one_of(st.none(), st.sampled_from(HEAD_KEYS)),
    value=st.one_of(st.sampled_from(HEAD_VALUES), st.sampled_from(FOREIGN[:4] + FOREIGN[6:])),
)
def test_a_head_of_anything_gives_the_vectors_of_sentence_transformers_or_is_refused(
    place, headed, name, at, key, value
):
    """What that library itself refuses may be read here."""
    with copied(place, "headed") as (folder, _):
        content = json.loads((folder / name).read_text())
        if key is None or isinstance(content, list):
            content = replaced(content, at, value)
        else:
            content[key] = value
        (folder / name).write_text(json.dumps(content))
        expected = None
        try:
            encoder = open_encoder(str(folder))
        except UsageError:
            return
        found = embed_texts(encoder, HEAD_TEXTS)
        with contextlib.suppress(Exception):  # of many types
            model = headed(str(folder), device="cpu", trust_remote_code=False)
            expected = model.encode(HEAD_TEXTS)
        # A shorter length cuts texts there, and divides them into windows here.
        if expected is not None and encoder.max_length >= HEAD_LENGTH:
            np.testing.assert_allclose(found, expected, atol=1e-5)


NAMES_OF_ENCODERS = [
    "",
    " ",
    ".",
    "..",
    "~",
    "/",
    "/no/such",
    "./x",
    "a/b",
    "a/b/c",
    "C:\\x",
    "ü",
    "x" * 300,
    "\udcff",
    "a b",
]


@fuzzed
@given(
    name=st.one_of(st.sampled_from(NAMES_OF_ENCODERS), st.text(max_size=12)),
    command=st.sampled_from(["pretrain", "tokenizer", "adapt", "probe", "export", "push", "search", "code"]),
)
def test_any_name_of_an_encoder_is_opened_or_refused(place, name, command):
    """Offline, so that no name is on the Hub."""
    texts = place / "good.txt"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        words = {
            "pretrain": pretrain(place, output, "--model_name_or_path", name),
            "tokenizer": pretrain(place, output, "--tokenizer_name", name, "--prepare_only"),
            "adapt": ["adapt", name, texts, *adaptation(place, output)],
            "probe": ["probe", name, "--task_file", place / "good.jsonl", "--mode", "knn", "--no_controls"],
            "export": ["export", "weights", name, output, "--texts", texts],
            "push": ["export", "push", name, "me/encoder"],
            "search": ["search", place / "texts", "lamp", "--encoder", name, "--index", Path(folder, "index")],
            "code": pretrain(place, output, "--allow_remote_code", name),
        }
        right_or_refused(output, *words[command])


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


# ---- folders and searches -------------------------------------------------------------------------------------------

PAGES = {
    ".txt": lambda text: text,
    ".md": lambda text: f"# Title\n\n{text}\n\n- {text}\n\n```\ncode\n```\n",
    ".rst": lambda text: f"Title\n=====\n\n.. note:: here\n\n{text}\n",
    ".html": lambda text: f"<html><head><style>p {{}}</style></head><body><nav>x</nav><p>{text}</p></body></html>",
    ".csv": lambda text: f'text,label\n"{text}",a\n"{text}",b\n',
    ".tsv": lambda text: f"text\tlabel\n{text}\ta\n",
    ".jsonl": lambda text: json.dumps({"text": text}) + "\n",
    ".json": lambda text: json.dumps([{"text": text}]),
    ".png": lambda text: text,
    "": lambda text: text,
}
NAMES = ["a", "b", "deep/er/c", ".hidden", "ä ß", "[x]", "new\nline", "100%s", "{x}", "-d", "copy (1)", "\udcff"]


@st.composite
def folders(draw):
    """Files of a folder by name, of which some are damaged, or of another kind than they say."""
    files = {}
    for number in range(draw(st.integers(1, 4))):
        suffix = draw(st.sampled_from(list(PAGES)))
        kind = draw(st.sampled_from([suffix, suffix, *PAGES]))
        content = PAGES[kind]("\n\n".join(LINES[5 * number : 5 * number + 5])).encode()
        damage = draw(st.one_of(st.just(bytes), st.just(bytes), damages()))
        files[draw(st.sampled_from(NAMES)) + draw(st.sampled_from([suffix, suffix.upper()]))] = damage(content)
    return files


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@fuzzed
@given(files=folders())
def test_a_folder_of_anything_is_read_or_refused(place, files):
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts")
        output = Path(folder, "out")
        fill(texts, files)
        before = listing(texts)
        _, *flags = [word for word in pretrain(place, output, "--prepare_only") if word != f"{place}/good.txt"]
        flags.remove("--train_file")
        right_or_refused(output, "pretrain", texts, *flags)
        assert listing(texts) == before


@pytest.fixture(scope="module")
def searched(place):
    """A folder with the index of a search, and what the search found."""
    folder = place / "searched"
    fill(folder, {f"a{suffix}": page(TEXTS[0]).encode() for suffix, page in PAGES.items()})
    assert start("search", folder, "lamp", "--encoder", place / "encoder")[0] == 0
    return folder


INDEX = Path(".text-jepa", "search.sqlite")


@fuzzed
@given(damage=damages(), files=st.one_of(st.just({}), folders()), loses_files=st.booleans())
def test_a_damaged_index_is_searched_or_refused_and_can_be_made_anew(place, searched, damage, files, loses_files):
    """A file that is none of ours by its first bytes is not touched even then."""
    with copied(place, searched.name) as (folder, output):
        (folder / INDEX).write_bytes(damage((folder / INDEX).read_bytes()))
        if loses_files:
            (folder / "a.txt").unlink()
        fill(folder, files)
        texts = {path: content for path, content in listing(folder).items() if INDEX.parent.name not in path.parts}
        right_or_refused(output, "search", folder, "lamp")
        content = (folder / INDEX).read_bytes()
        is_ours = not content or (content.startswith(b"SQLite format 3\0") and content[68:72] == b"TxtJ")
        code, lines = start("search", folder, "lamp", "--encoder", place / "encoder", "--rebuild")
        assert code == 0 if is_ours else code in (0, 2), lines
        assert {path: path.read_bytes() for path in texts} == texts


@fuzzed
@given(table=st.sampled_from(["settings", "files", "passages", "tokens"]), column=st.integers(0, 3), value=foreign)
def test_foreign_values_in_an_index_are_taken_or_refused(place, searched, table, column, value):
    with copied(place, searched.name) as (folder, output):
        database = sqlite3.connect(folder / INDEX)
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        value = value if isinstance(value, float | bytes | None) else str(value).encode("utf-8", "replace").decode()
        with contextlib.suppress(sqlite3.IntegrityError):  # SQLite itself refuses some
            database.execute(f"UPDATE {table} SET {columns[column % len(columns)]} = ?", (value,))
        database.commit()
        database.close()
        right_or_refused(output, "search", folder, "lamp")


@pytest.mark.slow
@fuzzed
@given(name=st.sampled_from(ENCODER_FILES), damage=damages())
def test_a_damaged_encoder_is_adapted_or_refused(place, name, damage):
    with copied(place, "encoder") as (folder, output):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        right_or_refused(output, "adapt", folder, place / "good.txt", *adaptation(place, output))


@fuzzed
@given(name=st.sampled_from([*ENCODER_FILES, "texts"]), damage=damages(), suffix=st.sampled_from(list(PAGES)[:8]))
def test_a_damaged_encoder_or_text_is_centred_or_refused(place, name, damage, suffix):
    pytest.importorskip("sentence_transformers")
    with copied(place, "encoder") as (folder, output):
        path = folder / (f"texts{suffix}" if name == "texts" else name)
        texts = folder / f"texts{suffix}"
        texts.write_text(PAGES[suffix]("\n\n".join(LINES)))
        path.write_bytes(damage(path.read_bytes()))
        right_or_refused(output, "export", "sentence-transformers", folder, output, "--center", texts, "--normalize")


# ---- checkpoints ----------------------------------------------------------------------------------------------------

STEPS = ["--max_steps", "3", "--save_steps", "1", "--logging_steps", "1", "--save_total_limit", "3"]


@pytest.fixture(scope="module")
def stopped(place):
    """The folder of a run after two of three steps, one of another run, and the weights after the last step."""
    for name, seed in (("stopped", 42), ("other", 7)):
        assert start(*pretrain(place, place / name, *STEPS, "--seed", str(seed)))[0] == 0
    weights = (place / "stopped" / "model.safetensors").read_bytes()
    for path in (place / "stopped").iterdir():
        if path.name not in ("checkpoint-1", "checkpoint-2", "tokenizer", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return place / "stopped", weights


def break_checkpoint(folder, other, kind, name, damage):
    """Does something to the newest checkpoint of a run, or to both."""
    newest = folder / "checkpoint-2"
    if kind == "file":
        (newest / name).write_bytes(damage((newest / name).read_bytes()))
    elif kind == "gone":
        (newest / name).unlink()
    elif kind == "swapped":
        shutil.copy(folder / "checkpoint-1" / name, newest / name)
    elif kind == "of another run":
        shutil.copy(other / "checkpoint-2" / name, newest / name)
    elif kind == "another run":
        shutil.rmtree(newest)
        shutil.copytree(other / "checkpoint-2", newest)
    elif kind == "renamed":
        newest.rename(folder / "checkpoint-7")
    elif kind == "exchanged":
        newest.rename(folder / "x")
        (folder / "checkpoint-1").rename(newest)
        (folder / "x").rename(folder / "checkpoint-1")
    elif kind == "a file":
        shutil.rmtree(newest)
        newest.write_text("")
    elif kind == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        (folder / kind).mkdir()


KINDS = ["file", "file", "gone", "swapped", "of another run", "another run", "renamed", "exchanged", "a file", "empty"]
KINDS += ["checkpoint-9", "checkpoint-x", "checkpoint-", "_saving"]
FILES = ["manifest.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
FILES += ["config.json", "card.json"]


@pytest.mark.slow
@fuzzed
@given(kind=st.sampled_from(KINDS), name=st.sampled_from(FILES), damage=damages())
def test_a_run_goes_on_from_a_damaged_checkpoint_as_from_a_whole_one_or_is_refused(place, stopped, kind, name, damage):
    with copied(place, "stopped") as (folder, _):
        break_checkpoint(folder, place / "other", kind, name, damage)
        before = listing(folder)
        code, lines = start(*pretrain(place, folder, *STEPS, "--seed", "42", "--resume_from_checkpoint", "auto"))
        assert code in (0, 2), lines
        if code == 0:
            assert (folder / "model.safetensors").read_bytes() == stopped[1]
        else:
            assert [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
            assert listing(folder) == before


# ---- the Hub --------------------------------------------------------------------------------------------------------


def truncated(content):
    return content[: len(content) // 2]


def page(content):
    return b"<!doctype html><title>Sign in to this network</title>"


def pointer(content):
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def hub(place, tmp_path, monkeypatch):
    """A Hub with the encoder as `me/encoder`, which the client of this process asks, with an empty cache."""
    with HubServer() as server:
        at_once = SimpleNamespace(sleep=lambda seconds: None)  # it waits before it tries again
        monkeypatch.setattr(_http, "time", at_once)
        monkeypatch.setattr(file_download, "time", at_once)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        files = {path.relative_to(place / "encoder").as_posix(): path for path in (place / "encoder").rglob("*")}
        content = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
        server.repositories["me/encoder"] = Repository("me/encoder")
        server.repositories["me/encoder"].commit("encoder", content, "main")
        yield server


ROUTES = ["resolve", "info", "tree"]


@pytest.mark.slow
@fuzzed
@given(
    name=st.sampled_from(ENCODER_FILES),
    damage=st.sampled_from([truncated, page, pointer, None]),
    route=st.sampled_from([None, None, None, *ROUTES]),
    status=st.sampled_from([401, 403, 404, 429, 500, 503]),
    command=st.sampled_from(["pretrain", "adapt", "probe", "export"]),
)
def test_a_damaged_download_is_whole_or_refused(place, hub, name, damage, route, status, command):
    """A file that is cut, that is a page of a network, a pointer, or missing; or a Hub that fails."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(constants, "HF_HUB_CACHE", f"{folder}/cache"):
        hub.damages = {name: damage} if damage else {}
        hub.failures = {route: status} if route else {}
        files = hub.repositories["me/encoder"].at().files
        kept = files.pop(name) if damage is None else files[name]
        output = Path(folder, "out")
        cache = ["--cache_dir", f"{folder}/cache"]
        words = {
            "pretrain": [*pretrain(place, output, "--model_name_or_path", "me/encoder"), *cache],
            "adapt": ["adapt", "me/encoder", place / "good.txt", *adaptation(place, output), *cache],
            "probe": ["probe", "me/encoder", "--task_file", place / "good.jsonl", "--mode", "knn", "--no_controls"],
            "export": ["export", "sentence-transformers", "me/encoder", output],
        }
        try:
            right_or_refused(output, *words[command])
        finally:
            files[name] = kept
