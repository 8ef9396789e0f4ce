"""Runs that survive: what is saved is complete or not called a checkpoint, and a resumed run is bit-exact.

The cases of `docs/guarantees.md`, P2 to P14. Run: python -m pytest -q tests/train/test_checkpoints.py
"""

import contextlib
import errno
import gc
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState

import run_pretraining
from benchmarks.faults import differences
from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.cli import UsageError, run_command
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.data.batching import DocumentWindows, EndlessStream
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.strategies import MaskStrategy, ViewStrategy
from text_jepa.train import callbacks, checkpointing, checks, closing, pretraining
from text_jepa.train.callbacks import (
    NONFINITE_LIMIT,
    OVERFLOW_LIMIT,
    PREEMPTED,
    SPIKE_WINDOW,
    SpikeCallback,
    spike_threshold,
)
from text_jepa.train.checkpointing import checkpoints, find_damage, newest_whole_checkpoint
from text_jepa.train.collapse import CollapseMonitorCallback
from text_jepa.train.run_log import read_metrics, to_json_value


ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
DROPOUT = {"embedding_dropout": 0.2, "mlp_dropout": 0.2}
# For an encoder without layers.
STATIC_SHAPE = {"hidden_size": 16, "num_attention_heads": 2}
STATIC_DROPOUT = {"dropout": 0.2}


def model_of(tokenizer, **shape):
    """A model with token-level terms alone: the contrast of a few texts has gradients with a tail of their own."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **SHAPE,
        **shape,
    }
    return TextJepaForPreTraining(TextJepaConfig.preset("tiny", shape, sentence_loss_weight=0.0))


def document_model_of(tokenizer, **shape):
    """A model with the default objective and a different weight for each word."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **STATIC_SHAPE,
        **shape,
    }
    config = TextJepaConfig.preset("static", shape, **OBJECTIVES["documents"])
    model = TextJepaForPreTraining(config)
    model.set_word_weights(torch.rand(len(tokenizer)) + 0.5)
    return model


@pytest.fixture(scope="module")
def examples(tokenizer):
    """48 texts of 6 to 20 tokens."""
    generator = np.random.default_rng(0)
    rows = []
    for length in generator.integers(4, 18, 48):
        words = generator.integers(5, len(tokenizer), length).tolist()
        rows.append([tokenizer.cls_token_id, *words, tokenizer.sep_token_id])
    return dataset_of(rows)


def dataset_of(rows):
    """Examples of token ids."""
    lengths = [len(row) for row in rows]
    return datasets.Dataset.from_dict({"input_ids": rows, "length": lengths})


def trainer_of(
    tokenizer,
    examples,
    output_dir,
    streaming=False,
    dropout=False,
    documents=False,
    **arguments,
):
    """A trainer on 40 texts, or on two windows of each of 20 documents: ten batches. A stream has two shards."""
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_steps": 2,
        **arguments,
    }
    args = TextJepaTrainingArguments(str(output_dir), use_cpu=True, **arguments)
    if documents:
        model = document_model_of(tokenizer, **(STATIC_DROPOUT if dropout else {}))
        collator = DataCollatorForTextJepa(
            tokenizer, MaskStrategy(ratio=0.0), view=ViewStrategy("rest", window_length=WINDOW_LENGTH)
        )
        train = windows_of(examples.select(range(20)))
        held_out = windows_of(examples.select(range(20, 24)))
    else:
        model = model_of(tokenizer, **(DROPOUT if dropout else {}))
        collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False))
        train = examples.select(range(40))
        held_out = examples.select(range(40, 48))
    if streaming:
        stream = datasets.Dataset.from_list(list(train)).to_iterable_dataset(num_shards=2)
        stream = stream.shuffle(seed=3, buffer_size=10)
        train = EndlessStream(
            stream,
            args.train_batch_size,
            args.gradient_accumulation_steps,
            pool_batches=2,
        )
    return TextJepaTrainer(model, args, collator, train, held_out, processing_class=tokenizer)


# More than a text of `examples` has: each is a document of two windows.
WINDOW_LENGTH = 32


def windows_of(texts):
    """The windows of texts without their special tokens."""
    rows = [text["input_ids"][1:-1] for text in texts]
    windows = DocumentWindows(dataset_of(rows), WINDOW_LENGTH, special_tokens=2)
    assert len(windows) == 2 * len(texts)
    return windows


class At(TrainerCallback):
    """Does something at the end of these steps."""

    def __init__(self, steps, do):
        self.steps = steps
        self.do = do

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.do(control)


def save_at(trainer, *steps):
    trainer.add_callback(At(steps, lambda control: setattr(control, "should_save", True)))


# ---- P2: bit-exact --------------------------------------------------------------------------------------------------


# Steps by accumulation, in passes of ten batches: in the middle of a pass, at its end, and in the second pass. The
# records of the log are written at other steps.
STOPS = {1: (4, 10, 13), 3: (2, 4, 6)}
LAST = {1: 15, 3: 7}
PLACES = ("middle", "border", "second-pass")
SOURCES = ("map", "stream", "documents", "document-stream")
# Source, workers, accumulation and place.
FAST = {
    ("map", 0, 3, "middle"),
    ("map", 0, 3, "second-pass"),
    ("stream", 0, 1, "second-pass"),
    ("document-stream", 2, 3, "middle"),
}


def settings_by_threes():
    """Half of all combinations, among which any three of the four settings occur with all their values."""
    for source, workers, accumulation, place in itertools.product(SOURCES, (0, 2), (1, 3), PLACES):
        odd = (SOURCES.index(source) + PLACES.index(place)) % 2 == 1
        if odd == ((workers == 0) == (accumulation == 1)):
            yield source, workers, accumulation, place


MATRIX = []
for case in settings_by_threes():
    marks = [] if case in FAST else pytest.mark.slow
    MATRIX.append(pytest.param(*case, marks=marks))


@pytest.fixture(scope="module")
def whole_run(tokenizer, examples, tmp_path_factory):
    """Uninterrupted runs with a checkpoint at each of `STOPS`, made once for each setting."""
    made = {}

    def make(source, workers, accumulation):
        setting = (source, workers, accumulation)
        if setting not in made:
            folder = tmp_path_factory.mktemp("whole")
            trainer = trainer_of(tokenizer, examples, folder, **settings_of(*setting))
            save_at(trainer, *STOPS[accumulation])
            trainer.train()
            made[setting] = folder
        return made[setting]

    return make


def settings_of(source, workers, accumulation):
    """Dropout with accumulation or workers, bf16 with one of them: every pair of settings occurs."""
    return {
        "streaming": source in ("stream", "document-stream"),
        "documents": source in ("documents", "document-stream"),
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": accumulation,
        "dropout": workers == 0 or accumulation == 3,
        "bf16": (workers == 2) == (accumulation == 1),
        "max_steps": LAST[accumulation],
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_steps": 100,
        "save_total_limit": None,
    }


@pytest.mark.parametrize(("source", "workers", "accumulation", "place"), MATRIX)
def test_resumed_run_ends_with_the_same_bits(
    tokenizer, examples, tmp_path, whole_run, source, workers, accumulation, place
):
    """Encoders, predictors, optimizer, schedule, random states, windows of the monitors, and the log.

    With documents also the weights of words, the lexical vectors and the running mean of targets.
    """
    whole = whole_run(source, workers, accumulation)
    stop = STOPS[accumulation][PLACES.index(place)]
    trainer = trainer_of(tokenizer, examples, tmp_path, **settings_of(source, workers, accumulation))
    trainer.train(resume_from_checkpoint=str(whole / f"checkpoint-{stop}"))
    last = f"checkpoint-{LAST[accumulation]}"
    assert {path.name for path in (whole / last).iterdir()} >= {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }
    assert differences(whole / last, tmp_path / last) == []
    assert differences(whole, tmp_path, "metrics.jsonl") == []


def test_comparison_sees_a_single_bit(whole_run, tmp_path):
    """The matrix could not fail otherwise."""
    whole = whole_run("map", 0, 3)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "copy")
    assert differences(whole / "checkpoint-2", tmp_path / "copy") == []
    assert differences(whole / "checkpoint-2", whole / "checkpoint-4") != []
    path = tmp_path / "copy" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (found,) = differences(whole / "checkpoint-2", tmp_path / "copy")
    assert found.startswith("model.safetensors:")


def test_run_resumed_twice_ends_with_the_same_bits(tokenizer, examples, tmp_path):
    setting = {"dropout": True, "max_steps": 13, "logging_steps": 4, "save_steps": 100}
    trainer_of(tokenizer, examples, tmp_path / "whole", **setting).train()
    checkpoint = None
    for stop in (3, 11, None):
        trainer = trainer_of(tokenizer, examples, tmp_path / "parts", **setting)
        if stop:
            trainer.add_callback(At([stop], lambda control: signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(SystemExit) if stop else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
        checkpoint = str(newest_whole_checkpoint(tmp_path / "parts"))
    assert differences(tmp_path / "whole" / "checkpoint-13", tmp_path / "parts" / "checkpoint-13") == []
    assert differences(tmp_path / "whole", tmp_path / "parts", "metrics.jsonl") == []


def test_log_goes_on_without_gaps_and_repetitions(tokenizer, examples, tmp_path):
    """Even if the file was torn by the fault, and went on after the checkpoint."""
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=6, save_steps=3)
    trainer.train()
    before = read_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')
    again = trainer_of(tokenizer, examples, tmp_path, max_steps=6, save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    after = read_metrics(tmp_path)
    assert [record["step"] for record in after] == [record["step"] for record in before]


# ---- P5, P6: damage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(tokenizer, examples, tmp_path_factory):
    """A run of four steps with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("two") / "run"
    trainer_of(tokenizer, examples, folder, max_steps=4).train()
    return folder


SAVED = [
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "manifest.json",
]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    position = int(place * (len(content) - 1))
    content[position] ^= 0b100
    path.write_bytes(content)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\n ")


WAYS = (cut, empty, Path.unlink, flip, lengthen)
DAMAGES = list(itertools.product(SAVED, WAYS))
# A blank more changes nothing.
DAMAGES.remove(("manifest.json", lengthen))


@pytest.mark.parametrize(
    ("name", "do"),
    DAMAGES,
    ids=[f"{name}-{do.__name__}" for name, do in DAMAGES],
)
def test_damaged_checkpoint_is_named_and_the_one_before_taken(two_checkpoints, tmp_path, capsys, name, do):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    do(run / "checkpoint-4" / name)
    assert newest_whole_checkpoint(run) == run / "checkpoint-2"
    warning = capsys.readouterr().err
    assert warning.count("WARNING") == len(warning.splitlines()) == 1
    assert "checkpoint-4" in warning
    assert name in warning


@pytest.mark.parametrize("place", np.linspace(0, 1, 25))
def test_no_bit_of_a_manifest_changes_unseen(two_checkpoints, tmp_path, place):
    """No other file vouches for it. What changes neither names nor values, such as a blank, may be changed."""
    folder = shutil.copytree(two_checkpoints / "checkpoint-4", tmp_path / "checkpoint-4")
    before = checkpointing.read_manifest(folder)
    flip(folder / "manifest.json", place)
    assert find_damage(folder) is not None or checkpointing.read_manifest(folder) == before


def test_a_tampered_fingerprint_is_seen(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints / "checkpoint-4", tmp_path / "checkpoint-4")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["facts"]["seed"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find_damage(folder) == "manifest.json is not what was written"


def test_no_whole_checkpoint_is_an_error_that_names_all_and_touches_none(two_checkpoints, tmp_path):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    cut(run / "checkpoint-4" / "optimizer.pt")
    (run / "checkpoint-2" / "model.safetensors").unlink()
    with pytest.raises(
        UsageError, match=r"checkpoint-4: optimizer\.pt has.*checkpoint-2: model\.safetensors is missing"
    ):
        newest_whole_checkpoint(run)
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-4", "checkpoint-2"]


def test_folder_of_a_stock_trainer_is_no_checkpoint(two_checkpoints, tmp_path):
    """It may be half written: nothing tells."""
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    for folder in checkpoints(run):
        (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"manifest\.json is missing"):
        newest_whole_checkpoint(run)


def test_checkpoints_are_ordered_by_number(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-x", "_aside-checkpoint-200"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]


# ---- P1: kills ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill looks like from inside: nothing that follows is done."""


# What a save calls in turn, where it is killed: an attribute of an object.
POINTS = {
    "weights": lambda trainer: (trainer, "save_model"),
    "optimizer": lambda trainer: (trainer, "_save_optimizer_and_scheduler"),
    "random-states": lambda trainer: (trainer, "_save_rng_state"),
    "state": lambda trainer: (trainer.state, "save_to_json"),
    "manifest": lambda trainer: (json, "dump"),
    "renaming-of-the-manifest": lambda trainer: (Path, "replace"),
    "flush-of-the-folder": lambda trainer: (checkpointing, "_flush_folder"),
    "rotation": lambda trainer: (Path, "rename"),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_save_leaves_the_checkpoint_before_and_a_run_that_goes_on(
    tokenizer, examples, two_checkpoints, tmp_path, monkeypatch, point
):
    """At each point of a save; cleaning up, which a killed process would not do, is left out."""
    run = tmp_path / "run"
    trainer = trainer_of(tokenizer, examples, run, max_steps=4, save_total_limit=1)
    with monkeypatch.context() as patches:

        def die(*args, **kwargs):
            patches.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
            raise Killed

        def strike(control):
            owner, attribute = POINTS[point](trainer)
            patches.setattr(owner, attribute, die)

        trainer.add_callback(At([4], strike))
        with pytest.raises(Killed):
            trainer.train()
    found = newest_whole_checkpoint(run)
    assert found.name == ("checkpoint-4" if point in ("flush-of-the-folder", "rotation") else "checkpoint-2")
    assert all(find_damage(folder) is None for folder in checkpoints(run))

    again = trainer_of(tokenizer, examples, run, max_steps=4, save_total_limit=1)
    if found.name == "checkpoint-2":
        again.train(resume_from_checkpoint=str(found))
        assert not (run / checkpointing.STAGING).exists()
        assert [folder.name for folder in checkpoints(run)] == ["checkpoint-4"]
    assert differences(run / "checkpoint-4", two_checkpoints / "checkpoint-4", "*.pt*") == []
    assert differences(run / "checkpoint-4", two_checkpoints / "checkpoint-4", "*.safetensors") == []


def test_kill_between_two_renamings_loses_no_checkpoint(two_checkpoints, tmp_path):
    """A checkpoint of the same step is moved out of the way first, and put back by the next start."""
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-4").rename(run / "_old-checkpoint-4")
    assert newest_whole_checkpoint(run) == run / "checkpoint-4"
    assert find_damage(run / "checkpoint-4") is None
    assert not list(run.glob("_old-*"))


def test_limit_keeps_the_newest_up_to_the_one_just_written_and_the_best(two_checkpoints, tmp_path):
    run = tmp_path / "run"
    for step in (2, 4, 6, 8, 99):
        shutil.copytree(two_checkpoints / "checkpoint-2", run / f"checkpoint-{step}")
    checkpointing.rotate(run, 2, str(run / "checkpoint-2"), 8)
    assert [folder.name for folder in checkpoints(run)] == [f"checkpoint-{step}" for step in (99, 8, 6, 2)]
    checkpointing.rotate(run, 0, None, 8)
    assert len(checkpoints(run)) == 4
    assert not (run / checkpointing.STAGING).exists()


def test_best_checkpoint_is_found_after_its_folder_was_moved(tokenizer, examples, tmp_path, monkeypatch):
    """By a run that goes on, and by one that is finished."""
    monkeypatch.chdir(tmp_path)
    setting = {"eval_strategy": "steps", "eval_steps": 2}
    setting |= {"load_best_model_at_end": True, "metric_for_best_model": "figure"}

    def trainer_in(folder, max_steps):
        trainer = trainer_of(tokenizer, examples, folder, max_steps=max_steps, **setting)
        evaluate = trainer.evaluate

        def evaluate_with_figure(*args, **kwargs):
            figure = 9.0 if trainer.state.global_step == 2 else 1.0
            return {**evaluate(*args, **kwargs), "eval_figure": figure}

        trainer.evaluate = evaluate_with_figure
        return trainer

    def has_best_weights(trainer, folder):
        best = load_file(folder / "checkpoint-2" / "model.safetensors")
        found = trainer.model.state_dict()
        return trainer.weights_step == 2 and all(torch.equal(found[name], value) for name, value in best.items())

    trainer_in(Path("run"), 4).train()
    moved = Path("run").rename("moved")
    trainer = trainer_in(moved, 8)
    trainer.train(resume_from_checkpoint=str(moved / "checkpoint-4"))
    assert [folder.name for folder in checkpoints(moved)] == [f"checkpoint-{step}" for step in (8, 6, 2)]
    assert has_best_weights(trainer, moved)
    again = moved.rename("again")
    trainer = trainer_in(again, 8)
    assert pretraining.load_finished(trainer, str(again / "checkpoint-8"))
    assert has_best_weights(trainer, again)


def test_the_best_weights_are_kept_though_they_are_from_between_two_saves(tokenizer, examples, tmp_path):
    """Those of the next save are better than the ones before, and worse than the best."""
    figures = {1: 1.0, 2: 9.0, 3: 2.0, 4: 5.0}
    setting = {"max_steps": 4, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 1}
    setting |= {"load_best_model_at_end": True, "metric_for_best_model": "figure"}
    trainer = trainer_of(tokenizer, examples, tmp_path, **setting)
    evaluate = trainer.evaluate

    def evaluate_with_figure(*args, **kwargs):
        return {**evaluate(*args, **kwargs), "eval_figure": figures[trainer.state.global_step]}

    trainer.evaluate = evaluate_with_figure
    trainer.train()
    assert trainer.weights_step == 2
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-2"]
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in best.items())


@pytest.mark.slow
def test_thirty_kills_lose_nothing():
    """On the documents of this repository, at least ten of them inside a save."""
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--kills", "30"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    kills, inside = re.match(r"(\d+) kills, (\d+) of them inside a save", result.stdout).groups()
    assert int(kills) == 30
    assert int(inside) >= 10


# ---- P3: signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signal_ends_the_run_after_the_step_at_hand_with_a_checkpoint(tokenizer, examples, tmp_path, number, raised):
    """And what follows `train`, which would take the weights for the final ones."""
    trainer = trainer_of(tokenizer, examples, tmp_path, save_strategy="no")
    step = trainer.training_step

    def interrupted(*args, **kwargs):
        if trainer.state.global_step == 2:
            signal.raise_signal(number)
        return step(*args, **kwargs)

    trainer.training_step = interrupted
    before = signal.getsignal(number)
    with pytest.raises(raised) as stop:
        trainer.train()
    if raised is SystemExit:
        assert stop.value.code == PREEMPTED
    assert trainer.state.global_step == 3
    assert trainer.preemption.asked
    assert find_damage(tmp_path / "checkpoint-3") is None
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("during", ["evaluate", "_save_checkpoint"])
def test_signal_during_an_evaluation_or_a_save_waits_for_the_next_step(tokenizer, examples, tmp_path, during):
    setting = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_of(tokenizer, examples, tmp_path, **setting)
    method = getattr(trainer, during)

    def interrupted(*args, **kwargs):
        result = method(*args, **kwargs)
        if trainer.state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return result

    setattr(trainer, during, interrupted)
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.state.global_step == 3
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]
    assert all(find_damage(folder) is None for folder in checkpoints(tmp_path))


def test_signal_in_the_middle_of_a_pass_is_not_its_end(tokenizer, examples, tmp_path):
    setting = {"max_steps": 13, "logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer_of(tokenizer, examples, tmp_path / "whole", **setting).train()
    trainer = trainer_of(tokenizer, examples, tmp_path / "parts", **setting)
    trainer.add_callback(At([3], lambda control: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.state.global_step == 4
    assert [record["step"] for record in trainer.state.log_history] == [1]
    again = trainer_of(tokenizer, examples, tmp_path / "parts", **setting)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert differences(tmp_path / "whole" / "checkpoint-13", tmp_path / "parts" / "checkpoint-13") == []
    assert differences(tmp_path / "whole", tmp_path / "parts", "metrics.jsonl") == []


def test_signal_at_the_end_of_a_pass_leaves_its_records(tokenizer, examples, tmp_path):
    setting = {"max_steps": 13, "logging_steps": 100, "eval_strategy": "epoch", "save_strategy": "no"}
    trainer = trainer_of(tokenizer, examples, tmp_path, **setting)
    trainer.add_callback(At([9], lambda control: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        trainer.train()
    state = TrainerState.load_from_json(tmp_path / "checkpoint-10" / "trainer_state.json")
    assert [record["step"] for record in state.log_history if "eval_loss" in record] == [10]


def test_signal_at_an_evaluation_saves_whatever_its_figure(tokenizer, examples, tmp_path):
    setting = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "metric_for_best_model": "loss"}
    trainer = trainer_of(tokenizer, examples, tmp_path, **setting)

    def interrupt(control):
        trainer.state.best_metric = -1.0  # which no loss is below
        signal.raise_signal(signal.SIGTERM)

    trainer.add_callback(At([1], interrupt))
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.state.global_step == 2
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_signal_handlers_are_given_back_after_an_error_too(tokenizer, examples, tmp_path):
    trainer = trainer_of(tokenizer, examples, tmp_path)
    trainer.model.predictor.forward = None
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TypeError):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_signal_ends_at_once_unless_it_is_the_same_one(monkeypatch):
    """A launcher passes on within a moment what the whole group has got; a person presses again later."""
    ended = []
    now = [100.0]
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    callback = callbacks.PreemptionCallback()
    for after in (0.0, 0.3, 0.6):
        now[0] = 100.0 + after
        callback._note(signal.SIGTERM, None)
    callback.on_step_end(SimpleNamespace(world_size=1), None, TrainerControl())
    assert callback.asked
    assert ended == []
    now[0] = 101.5
    callback._note(signal.SIGTERM, None)
    assert ended == [PREEMPTED]


def test_signal_at_the_last_step_is_too_late_to_stop_anything(tokenizer, examples, tmp_path):
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=2)
    trainer.add_callback(At([1], lambda control: signal.raise_signal(signal.SIGINT)))
    assert trainer.train().global_step == 2


def test_second_ctrl_c_is_that_of_python(monkeypatch):
    """A notebook keeps its variables, which it would lose with the process."""
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    callback = callbacks.PreemptionCallback()
    callback.on_train_begin(None, None, None)
    try:
        signal.raise_signal(signal.SIGINT)
        now[0] = 101.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        callback.restore()
        signal.signal(signal.SIGINT, before)


def test_processes_agree_on_the_signal_that_ends_them(monkeypatch):
    """The launcher of one may pass on another signal than a terminal sends to all."""
    callback = callbacks.PreemptionCallback()
    callback._note(signal.SIGINT, None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda number, _: number.fill_(signal.SIGTERM))
    callback.on_step_end(SimpleNamespace(world_size=2, device="cpu"), None, TrainerControl())
    with pytest.raises(SystemExit):
        callback.end_program(TrainerState(global_step=1, max_steps=2))


def test_signal_that_comes_while_the_processes_agree_counts_at_the_next_step(monkeypatch):
    callback = callbacks.PreemptionCallback()
    control = TrainerControl()
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: callback._note(signal.SIGTERM, None))
    args = SimpleNamespace(world_size=2, device="cpu")
    callback.on_step_end(args, None, control)
    assert not control.should_training_stop
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)
    callback.on_step_end(args, None, control)
    assert control.should_training_stop
    assert control.should_save


def test_run_in_a_thread_trains_without_signals(tokenizer, examples, tmp_path):
    """Only the main thread may handle them."""
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=1, save_strategy="no")
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 1


# ---- from Python ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", ["call", "auto", "arguments"])
def test_a_run_from_python_resumes_from_the_newest_whole_checkpoint_and_names_changes(
    tokenizer, examples, two_checkpoints, tmp_path, caplog, asks
):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    cut(run / "checkpoint-4" / "optimizer.pt")
    more = {"resume_from_checkpoint": "auto"} if asks == "arguments" else {}
    trainer = trainer_of(tokenizer, examples, run, max_steps=4, weight_decay=0.5, **more)
    resume = {"call": [True], "auto": ["auto"], "arguments": []}[asks]
    with caplog.at_level("WARNING"):
        trainer.train(*resume)
    assert caplog.text.count("resuming with a change: weight_decay was 0.05 and is 0.5") == 1
    assert "max_steps was" not in caplog.text
    assert sorted(path.name for path in run.glob("*checkpoint-*")) == [
        "_aside-checkpoint-4",
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert [record["step"] for record in read_metrics(run) if "loss" in record] == [1, 2, 3, 4]


def test_a_run_from_python_without_a_checkpoint_begins_where_that_is_asked_for(tokenizer, examples, tmp_path):
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=1, resume_from_checkpoint="auto")
    with pytest.raises(UsageError, match="no checkpoint in"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.train().global_step == 1
    assert trainer.train(resume_from_checkpoint=False).global_step == 1


def test_the_checkpoint_of_a_plain_trainer_is_taken_where_it_is_named(tokenizer, examples, two_checkpoints, tmp_path):
    """It has no manifest to compare settings with."""
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    (run / "checkpoint-2" / "manifest.json").unlink()
    trainer = trainer_of(tokenizer, examples, run, max_steps=3)
    assert trainer.train(resume_from_checkpoint=str(run / "checkpoint-2")).global_step == 3


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """120 documents, one per line."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [f"The keeper of lighthouse number {i} climbed down {'and up ' * (i % 9)}again." for i in range(120)]
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def flags(corpus, output_dir, *more):
    """The command line of a tiny run; `more` takes the place of its flags."""
    usual = {
        "objective": "jepa",
        "preset": "tiny",
        "text_config": json.dumps(SHAPE | DROPOUT),
        "train_file": corpus / "train.txt",
        "cache_dir": corpus / "cache",
        "vocab_size": 200,
        "max_length": 16,
        "num_masks": 2,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "max_eval_samples": 8,
        "use_cpu": True,
        "output_dir": output_dir,
    }
    words = []
    for name, value in usual.items():
        if f"--{name}" not in more:
            words += [f"--{name}", str(value)]
    return [*words, *more]


@pytest.fixture
def command(corpus, monkeypatch, capsys):
    """Runs the console command in this process; gives its exit code and the last line on stderr."""

    def run(output_dir, *more):
        monkeypatch.setattr(sys, "argv", ["text-jepa", "pretrain", *flags(corpus, output_dir, *more)])
        with pytest.raises(SystemExit) as exit_:
            text_jepa_command()
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        return exit_.value.code, (printed.splitlines() or [""])[-1]

    return run


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A finished run with the checkpoints 4 and 6."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return run_pretraining.main(flags(corpus, output))


AUTO = ("--resume_from_checkpoint", "auto")


def content(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run as it would be after step 4."""
    return go_back(finished, tmp_path / "run")


def go_back(run, copy):
    """Copies a run of six steps as it would be after step 4."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoint-6")
    for path in copy.iterdir():
        if path.is_file():
            path.unlink()
    return copy


def test_command_goes_on_where_it_was(command, finished, copy):
    assert command(copy, *AUTO)[0] == 0
    for what in ("checkpoint-6/*", "metrics.jsonl", "*.safetensors", "pretraining/*"):
        assert differences(finished, copy, what) == []


@pytest.mark.slow
def test_command_of_the_default_objective_goes_on_where_it_was(command, corpus, tmp_path):
    """Windows of documents that are long enough for a choice of the share and for a comparison."""
    file = tmp_path / "long.txt"
    words = [f"word{number}" for number in range(40)]
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(words, 150)) for _ in range(120)]
    file.write_text("".join(f"{document}.\n" for document in documents))
    more = [
        *("--objective", "documents"),
        *("--preset", "static"),
        *("--text_config", json.dumps(STATIC_SHAPE)),
        *("--train_file", str(file)),
        *("--validation_split_percentage", "50"),
        *("--num_masks", "1"),
    ]
    whole = run_pretraining.main(flags(corpus, tmp_path / "whole", *more))
    verdict = json.loads((whole / "verdict.json").read_text())
    assert verdict["mean_reciprocal_rank_by_share"]
    run = go_back(whole, tmp_path / "run")
    assert command(run, *more, *AUTO)[0] == 0
    compared = [
        "checkpoint-6/*",
        "metrics.jsonl",
        "*.safetensors",
        "1_WordWeights/*",
        "pretraining/*",
        "verdict.json",
    ]
    for what in compared:
        assert differences(whole, run, what) == []
    code, line = command(run, *more, *AUTO, "--max_document_length", "90")
    assert code == 2
    assert "data was" in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--seed", "7"], "seed was 42 and is 7"),
        (["--per_device_train_batch_size", "8"], "per_device_train_batch_size was 4 and is 8"),
        (["--gradient_accumulation_steps", "2"], "gradient_accumulation_steps was 1 and is 2"),
        (["--weight_decay", "0.5"], "weight_decay was 0.05 and is 0.5"),
        (["--warmup_steps", "3"], "warmup_steps was 0.08 and is 3"),
        (["--max_steps", "9"], "max_steps was 6 and is 9"),
        (["--max_train_samples", "50"], "data was '200 texts"),
        (["--mask_ratio", "0.3"], "masks was"),
        (["--mean_span_length", "3.00001"], "mask_strategies was"),
        (["--token_loss_weight", "0"], "token_loss_weight was"),
        (["--text_config", json.dumps(SHAPE)], "text_config.embedding_dropout was 0.2 and is 0.0"),
        (["--vocab_size", "300"], "vocab_size was 200 and is 300"),
        (["--lowercase", "false"], "lowercase was True and is False"),
        (["--add_words", "lighthousekeeper"], "tokenizer was '"),
    ],
    ids=lambda value: value[0].lstrip("-") if isinstance(value, list) else "",
)
def test_run_of_other_settings_is_refused_with_both_values(command, copy, change, named):
    before = content(copy)
    code, line = command(copy, *AUTO, *change)
    assert code == 2
    assert named in line
    assert "--accept_changes" in line
    assert content(copy) == before


def test_other_text_of_the_same_lengths_is_other_data(command, corpus, copy, tmp_path):
    other = tmp_path / "train.txt"
    other.write_text((corpus / "train.txt").read_text().replace("climbed down", "climbed again"))
    code, line = command(copy, *AUTO, "--train_file", str(other))
    assert code == 2
    assert re.search(r"data was '(200 texts of \d+ tokens) .* and is '\1 ", line)


def test_another_second_column_is_other_data(command, corpus, tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = (corpus / "train.txt").read_text().splitlines()
    rows = [{"text": line, "title": f"Lighthouse {i}", "place": f"Harbour {i}"} for i, line in enumerate(lines)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = ["--train_file", str(file), "--max_steps", "2", "--view", "column", "--view_column"]
    run = run_pretraining.main(flags(corpus, tmp_path / "run", *pairs, "title"))
    code, line = command(run, *pairs, "place", *AUTO)
    assert code == 2
    assert "views was" in line
    assert "data was" not in line


@pytest.mark.parametrize("objective", ["documents", "jepa"])
def test_other_documents_of_a_stream_are_refused(command, corpus, tmp_path, objective):
    other = shutil.copy(corpus / "train.txt", tmp_path / "other.txt")
    stream = [
        "--streaming",
        *("--objective", objective),
        *("--text_config", json.dumps(SHAPE)),
        *("--max_steps", "2"),
        "--validation_file",
    ]
    held_out = str(corpus / "train.txt")
    run = run_pretraining.main(flags(corpus, tmp_path / "run", *stream, held_out))
    changes = {
        "max_document_length was 512 and is 90": [held_out, "--max_document_length", "90"],
        "min_length was 2 and is 3": [held_out, "--min_length", "3"],
        "validation_file was ['train.txt'] and is ['other.txt']": [str(other)],
    }
    for named, change in changes.items():
        code, line = command(run, *stream, *change, *AUTO)
        assert code == 2
        assert named in line


def test_other_held_out_texts_are_refused(command, corpus, tmp_path):
    """Of a corpus that is loaded, by their content: a folder may have been moved."""
    lines = (corpus / "train.txt").read_text().splitlines(keepends=True)
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("".join(lines[:20]))
    second.write_text("".join(lines[20:40]))
    run = run_pretraining.main(flags(corpus, tmp_path / "run", "--max_steps", "2", "--validation_file", str(first)))
    moved = first.rename(tmp_path / "moved.txt")
    assert command(run, "--max_steps", "2", "--validation_file", str(moved), *AUTO)[0] == 0
    code, line = command(run, "--max_steps", "2", "--validation_file", str(second), *AUTO)
    assert code == 2
    assert re.search(r"different run: held_out was '\d+ texts of", line)


def test_the_precision_of_the_launcher_is_a_setting(command, copy, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    code, line = command(copy, *AUTO)
    assert code == 2
    assert "different run: mixed_precision was 'no' and is 'bf16';" in line


def test_a_checkpoint_of_a_version_that_noted_less_is_resumed(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints / "checkpoint-4", tmp_path / "checkpoint-4")
    noted = checkpointing.read_manifest(folder)["facts"]
    earlier = {name: value for name, value in noted.items() if name != "mixed_precision"}
    checkpointing.write_manifest(folder, earlier)
    assert checkpointing.differing_settings(folder, noted | {"held_out": "8 texts"}) == []


@pytest.mark.parametrize(
    ("shape", "is_refused"),
    [
        ({"world_size": 1, "gradient_accumulation_steps": 1}, False),
        ({"world_size": 2, "gradient_accumulation_steps": 1}, True),
        ({"world_size": 1, "gradient_accumulation_steps": 3}, True),
        # A stream.
        ({"world_size": 2, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0}, False),
        ({"world_size": 2, "gradient_accumulation_steps": 3, "dataloader_num_workers": 0}, True),
    ],
)
def test_a_checkpoint_of_the_order_of_earlier_versions_is_named_where_it_was_another(tmp_path, shape, is_refused):
    checkpointing.write_manifest(tmp_path, shape)
    found = checkpointing.differing_settings(tmp_path, {**shape, "order": checkpointing.ORDER})
    refused = ["order was 'by batches, as in earlier versions' and is 'by steps'"]
    assert found == (refused if is_refused else [])


def test_other_number_of_processes_is_named(two_checkpoints):
    checkpoint = two_checkpoints / "checkpoint-4"
    found = checkpointing.differing_settings(checkpoint, {"world_size": 2})
    assert found == ["world_size was 1 and is 2"]


def groups_of(checkpoint):
    """The groups of the optimizer of a checkpoint."""
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]


def test_accepted_change_goes_on_and_is_logged(command, copy, caplog):
    with caplog.at_level("WARNING"):
        code, _ = command(copy, *AUTO, "--weight_decay", "0.5", "--accept_changes")
    assert code == 0
    assert "resuming with a change: weight_decay was 0.05 and is 0.5" in caplog.text
    assert [group["weight_decay"] for group in groups_of(copy / "checkpoint-6")] == [0.5, 0.0]


def test_changed_settings_of_the_optimizer_take_effect_at_once(tokenizer, examples, tmp_path):
    """Also in the schedule: the checkpoint has the rates that it began with."""
    setting = {"max_steps": 4, "embedding_learning_rate": 2e-3, "predictor_learning_rate": 4e-3}
    trainer_of(tokenizer, examples, tmp_path / "first", **setting).train()
    setting |= {"learning_rate": 1e-4, "embedding_learning_rate": 2e-4, "predictor_learning_rate": 4e-4}
    setting |= {"weight_decay": 0.3, "adam_beta1": 0.8, "adam_epsilon": 1e-4}
    resumed = trainer_of(tokenizer, examples, tmp_path / "resumed", **setting)
    rates = []
    resumed.add_callback(At([3], lambda control: rates.extend(g["lr"] for g in resumed.optimizer.param_groups)))
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    before = [record for record in read_metrics(tmp_path / "first") if "loss" in record]
    after = [record for record in read_metrics(tmp_path / "resumed") if "loss" in record]
    for first, second in zip(before[2:], after[2:], strict=True):
        assert second["learning_rate"] == pytest.approx(first["learning_rate"] / 10)
    groups = groups_of(tmp_path / "resumed" / "checkpoint-4")
    assert [group["initial_lr"] for group in groups] == [1e-4, 1e-4, 4e-4, 4e-4, 2e-4]
    assert {(*group["betas"], group["eps"]) for group in groups} == {(0.8, 0.98, 1e-4)}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    shares = [rate / group["initial_lr"] for rate, group in zip(rates, groups, strict=True)]
    assert shares == pytest.approx([shares[0]] * len(shares))
    assert 0 < shares[0] < 1


def test_a_resumed_run_logs_evaluates_and_saves_at_its_own_intervals(tokenizer, examples, two_checkpoints, tmp_path):
    setting = {"max_steps": 4, "logging_steps": 2, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(tokenizer, examples, tmp_path, **setting)
    trainer.train(resume_from_checkpoint=str(two_checkpoints / "checkpoint-2"))
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-3"]
    new = [record for record in read_metrics(tmp_path) if record["step"] > 2]
    assert [record["step"] for record in new if "loss" in record] == [4]
    assert [record["step"] for record in new if "eval_loss" in record] == [3, 4]


def test_resume_of_a_finished_run_does_no_step(command, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = content(run)
    assert command(run, *AUTO)[0] == 0
    after = content(run)
    cards = [files[Path("README.md")].decode().splitlines() for files in (before, after)]
    for line in ("6 steps of 4 texts", " tokens in "):
        (first,), (second,) = ([row for row in card if line in row] for card in cards)
        assert first == second
    for name in before:
        if name.suffix == ".safetensors" or name.parts[0].startswith("checkpoint"):
            assert after[name] == before[name], name
    assert differences(finished, run, "metrics.jsonl") == []


def test_more_passes_than_a_finished_run_made_are_made(corpus, tmp_path):
    """The number of steps follows from them; that of the checkpoint said nothing was left to do."""
    once = [*flags(corpus, tmp_path / "run"), "--max_steps", "-1", "--max_train_samples", "16"]
    run_pretraining.main([*once, "--num_train_epochs", "1"])
    steps = TrainerState.load_from_json(tmp_path / "run/trainer_state.json").global_step
    run_pretraining.main([*once, "--num_train_epochs", "2", *AUTO, "--accept_changes"])
    assert TrainerState.load_from_json(tmp_path / "run/trainer_state.json").global_step == 2 * steps


def test_folder_in_use_is_refused_and_left_alone(command, copy, finished, tmp_path):
    """Without a flag to resume, with a checkpoint of another folder, and with no checkpoint to resume from."""
    before = content(copy)
    code, line = command(copy)
    assert code == 2
    assert "--resume_from_checkpoint" in line
    code, line = command(copy, "--resume_from_checkpoint", str(finished / "checkpoint-4"))
    assert code == 2
    assert "is not in it" in line
    assert content(copy) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.txt").write_text("precious")
    code, line = command(tmp_path / "thesis", *AUTO)
    assert code == 2
    assert "chapter-1.txt" in line
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter-1.txt"]


def test_auto_begins_anew_after_a_run_that_ended_before_its_first_checkpoint(command, finished, copy):
    for path in checkpoints(copy):
        shutil.rmtree(path)
    shutil.rmtree(copy / "pretraining")
    shutil.rmtree(copy / "1_Pooling")
    (copy / "metrics.jsonl").write_text('{"step": 1, "lo')
    (copy / "_saving" / "checkpoint-2").mkdir(parents=True)
    assert command(copy, *AUTO)[0] == 0
    assert differences(finished, copy, "checkpoint-6/*") == []


def test_added_words_begin_as_in_any_run_if_the_texts_were_prepared_or_the_run_was_killed(corpus, tmp_path):
    """The tokenizer of the folder is kept without them, and they are added to it with the mean of their pieces."""
    words = ["--max_steps", "2", "--add_words", "lighthousekeeper", "upanddown"]
    whole = run_pretraining.main(flags(corpus, tmp_path / "whole", *words))
    run = run_pretraining.main(flags(corpus, tmp_path / "run", *words, "--prepare_only"))
    assert "lighthousekeeper" not in (run / "tokenizer" / "tokenizer.json").read_text()
    run_pretraining.main(flags(corpus, run, *words, *AUTO))
    for what in ("checkpoint-2/*", "*.safetensors"):
        assert differences(whole, run, what) == []
    assert "lighthousekeeper" in (run / "tokenizer.json").read_text()


def test_a_tokenizer_of_other_flags_is_not_taken_in_silence(command, corpus, tmp_path):
    run = run_pretraining.main(flags(corpus, tmp_path / "run", "--prepare_only"))
    before = content(run)
    code, line = command(run, *AUTO, "--lowercase", "false")
    assert code == 2
    assert "its tokenizer was trained on other texts or with other flags, and there is no checkpoint" in line
    assert f"remove {run / 'tokenizer'}" in line
    assert content(run) == before


def test_a_run_that_a_collapse_has_stopped_is_refused_at_once(command, tmp_path, monkeypatch):
    def collapse(self, model):
        self.first = {}
        self.signs = ["tokens hardly differ"]

    run = tmp_path / "run"
    with monkeypatch.context() as patches:
        patches.setattr(CollapseMonitorCallback, "_measure", collapse)
        code, line = command(run, "--stop_on_collapse")
    assert code == 2
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-2"]
    before = content(run)
    assert command(run, "--stop_on_collapse", *AUTO) == (2, line)
    assert "the run collapsed and was stopped" in line
    assert content(run) == before


def test_damaged_checkpoint_is_set_aside_and_the_end_is_the_same(command, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    flip(run / "checkpoint-6" / "optimizer.pt")
    assert command(run, *AUTO)[0] == 0
    assert (run / "_aside-checkpoint-6").is_dir()
    assert differences(finished, run, "checkpoint-6/*") == []
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-6", "checkpoint-4"]


def test_going_back_sets_newer_checkpoints_aside(command, finished, tmp_path):
    """Kept in place, the limit would spare them and delete the new ones."""
    run = shutil.copytree(finished, tmp_path / "run")
    code, _ = command(run, "--resume_from_checkpoint", str(run / "checkpoint-4"))
    assert code == 0
    assert sorted(path.name for path in run.glob("*checkpoint-6")) == ["_aside-checkpoint-6", "checkpoint-6"]
    assert differences(finished, run, "checkpoint-6/*") == []


def test_all_damaged_is_no_fresh_start(command, copy):
    cut(copy / "checkpoint-4" / "scheduler.pt")
    before = content(copy)
    for resume in ("auto", "true", str(copy / "checkpoint-4")):
        code, line = command(copy, "--resume_from_checkpoint", resume)
        assert code == 2
        assert "checkpoint-4" in line
        assert "scheduler.pt has" in line
    assert content(copy) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_exit_code_143_without_an_encoder_and_resumes_exactly(
    command, finished, tmp_path, monkeypatch, number
):
    class Interrupted(TextJepaTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(At([3], lambda control: signal.raise_signal(number)))

    run = tmp_path / "run"
    with monkeypatch.context() as patches:
        patches.setattr(pretraining, "TextJepaTrainer", Interrupted)
        assert command(run)[0] == PREEMPTED
    assert not (run / "model.safetensors").exists()
    assert {"arguments.yaml", "changed.yaml"} <= {path.name for path in run.iterdir()}
    assert (run / "checkpoint-4").is_dir() or (run / "checkpoint-3").is_dir()
    assert command(run, *AUTO)[0] == 0
    for what in ("checkpoint-6/*", "metrics.jsonl", "*.safetensors"):
        assert differences(finished, run, what) == []


def test_hangup_is_ignored_where_nohup_ignores_it(command, tmp_path, monkeypatch):
    class HungUp(TextJepaTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(At([3], lambda control: signal.raise_signal(signal.SIGHUP)))

    monkeypatch.setattr(pretraining, "TextJepaTrainer", HungUp)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command(tmp_path / "run")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


def test_a_run_whose_output_nobody_reads_goes_on_to_its_end(corpus, finished, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        run = run_pretraining.main(flags(corpus, tmp_path / "run"))
        monkeypatch.undo()
    assert differences(finished, run, "*.safetensors") == []
    assert (run / "pretraining").is_dir()


def test_a_second_run_in_a_folder_ends_in_one_line_and_touches_nothing(command, copy, monkeypatch):
    """As long as the first one trains; a process that is killed holds nothing."""
    monkeypatch.setattr(checks, "_SECONDS_TO_DIE", 0.5)
    holder = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(1, flush=True)"
    lock = copy / checks.LOCK
    first = subprocess.Popen(
        [sys.executable, "-c", f"{holder}; sys.stdin.read()", str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert first.stdout.readline()
        before = content(copy)
        for resume in ((), AUTO):
            code, line = command(copy, *resume)
            assert code == 2
            assert line.startswith(f"error: --output_dir {copy}: another run is writing to it")
        assert content(copy) == before
    finally:
        first.kill()
        first.communicate()
    assert command(copy, *AUTO)[0] == 0
    assert not lock.exists()


# ---- P10: numbers ---------------------------------------------------------------------------------------------------


def strict(text):
    """JSON as every reader takes it: no NaN."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def poison(trainer, steps, value=math.nan):
    loss = trainer.compute_loss

    def poisoned(model, inputs, return_outputs=False, num_items_in_batch=None):
        found, outputs = loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training and trainer.state.global_step in steps:
            found = found * value
        return (found, outputs) if return_outputs else found

    trainer.compute_loss = poisoned


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_in_the_log_and_nowhere_else(tokenizer, examples, tmp_path, value):
    """Three records in a row that no reader of JSON stumbles over, and not one such number in a saved tensor."""
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=9, save_total_limit=None)
    poison(trainer, {3, 4, 5}, value)
    trainer.train()
    trainer.save_state()
    assert trainer.state.global_step == 6
    nonfinite = []
    for record in read_metrics(tmp_path):
        if "loss" in record and not math.isfinite(record["loss"]):
            nonfinite.append(record["step"])
    assert nonfinite == [4, 5, 6]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = {strict(line).get("loss") for line in lines}
    assert losses & {"nan", "inf"}
    for path in tmp_path.rglob("*"):
        if path.suffix == ".json":
            strict(path.read_text())
        elif path.suffix == ".safetensors":
            tensors = load_file(path).values()
            assert all(tensor.isfinite().all() for tensor in tensors), path
        elif path.suffix == ".pt":
            state = torch.load(path, weights_only=True).get("state", {})
            for moments in state.values():
                assert all(torch.as_tensor(value).isfinite().all() for value in moments.values()), path


def test_log_of_a_run_that_goes_on_after_nan_is_that_of_the_whole_run(tokenizer, examples, tmp_path):
    """The checkpoint of a bad step holds what the log had added up, which is NaN too."""
    setting = {"logging_steps": 4, "save_steps": 100, "logging_first_step": False}
    runs = [tmp_path / "whole", tmp_path / "resumed"]
    starts = [None, str(tmp_path / "whole" / "checkpoint-3")]
    for run, checkpoint in zip(runs, starts, strict=True):
        trainer = trainer_of(tokenizer, examples, run, **setting)
        poison(trainer, {2})
        trainer.train(resume_from_checkpoint=checkpoint)
    assert strict((runs[0] / "checkpoint-3" / "trainer_state.json").read_text())
    assert differences(*runs, "metrics.jsonl") == []
    assert differences(*(run / "checkpoint-6" for run in runs)) == []


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (0.5, 0.5),
        ([{"a": math.inf}], [{"a": "inf"}]),
        ("x", "x"),
        (None, None),
    ],
)
def test_only_numbers_that_are_not_finite_become_words(value, written):
    assert to_json_value(value) == written


# ---- P11: spikes ----------------------------------------------------------------------------------------------------


def test_a_planted_spike_is_counted_and_does_not_hide_the_next_one(caplog):
    generator = np.random.default_rng(0)
    spikes = SpikeCallback()
    for step in range(500):
        assert not spikes.observe(step, generator.normal(2, 0.1), generator.normal(1, 0.1))
    with caplog.at_level("WARNING"):
        assert spikes.observe(500, 5.0, 1.0)
    assert spikes.count == 1
    assert "step 500: a spike (loss 5); 1 so far" in caplog.text
    assert spikes.observe(501, 5.0, 1.0)
    assert spikes.observe(502, 2.0, 11.0)
    assert not spikes.observe(503, 2.0, 1.0)
    assert spikes.count == 3


def test_a_norm_that_is_not_even_clipped_is_no_spike():
    spikes = SpikeCallback()
    for step in range(200):
        spikes.observe(step, 2.0, 0.05, clipped_at=1.0)
    assert not spikes.observe(200, 2.0, 0.9, clipped_at=1.0)
    assert spikes.observe(201, 2.0, 1.1, clipped_at=1.0)


def test_a_change_that_lasts_becomes_normal():
    """Else a run that leaves spikes out would leave out all that follows."""
    generator = np.random.default_rng(0)
    spikes = SpikeCallback()
    for step in range(300):
        scale = 10 if step >= 150 else 1
        loss, grad_norm = scale * generator.normal(2, 0.02, 2)
        spikes.observe(step, loss, grad_norm)
    assert 5 < spikes.count < 50


@pytest.mark.parametrize("noise", ["normal", "lognormal", "falling", "flat"])
def test_five_hundred_normal_steps_are_no_spike(noise):
    for seed in range(8):
        generator = np.random.default_rng(seed)
        values = {
            "normal": generator.normal(3, 0.2, 500),
            "lognormal": generator.lognormal(0, 0.5, 500),
            "falling": 5 * np.exp(-np.arange(500) / 100) + generator.normal(1, 0.05, 500),
            "flat": np.full(500, 2.0) + generator.normal(0, 1e-9, 500),
        }[noise]
        spikes = SpikeCallback()
        assert not any(spikes.observe(step, value, value) for step, value in enumerate(values))


def test_steps_of_the_default_recipe_are_no_spikes_and_a_planted_one_is():
    """As they were recorded, and 1,000 with their noise in two other orders; a planted spike is found."""
    recorded = json.loads(Path(__file__).with_name("steps_of_the_default.json").read_text())
    steps = np.stack([recorded["loss"], recorded["grad_norm"]], axis=1)
    spikes = SpikeCallback()
    assert not any(spikes.observe(step, *values, clipped_at=1.0) for step, values in enumerate(steps))
    for seed in range(2):
        spikes = SpikeCallback()
        order = np.random.default_rng(seed).integers(len(steps) // 2, len(steps), 1_000)
        for step, (loss, grad_norm) in enumerate(steps[order]):
            planted = {700: (2.0, 1.0), 800: (1.0, 15.0)}.get(step, (1.0, 1.0))
            found = spikes.observe(step, planted[0] * loss, planted[1] * grad_norm, clipped_at=1.0)
            assert found == (step in (700, 800))


@pytest.mark.parametrize(("usual", "largest"), [(0.3, 1.9), (0.55, 2.1), (1.2, 9.0)])
def test_a_long_tail_of_gradient_norms_is_no_spike_and_ten_times_the_usual_is(usual, largest):
    """The first two are norms of recorded runs, in whose losses nothing was seen (docs/experiments.md)."""
    spikes = SpikeCallback()
    for step in range(SPIKE_WINDOW):
        spikes.observe(step, 0.7, usual * (1 + 0.05 * (step % 3)), clipped_at=1.0)
    assert not spikes.observe(SPIKE_WINDOW, 0.7, largest, clipped_at=1.0)
    assert spikes.observe(SPIKE_WINDOW + 1, 0.7, 12 * usual, clipped_at=1.0)


def test_no_spike_before_the_window_is_full():
    assert spike_threshold([1.0] * (SPIKE_WINDOW - 1)) == math.inf
    assert spike_threshold([1.0] * SPIKE_WINDOW) == pytest.approx(1.5)
    assert spike_threshold([0.0] * SPIKE_WINDOW) < 1e-10


def fill_window(trainer, loss=2.0, grad_norm=1.0):
    generator = np.random.default_rng(0)
    for name, value in (("loss", loss), ("grad_norm", grad_norm)):
        noise = 0.01 * generator.standard_normal(SPIKE_WINDOW)
        trainer.spikes.windows[name] = (value + noise).tolist()


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_logged_and_skipped_if_asked(tokenizer, examples, tmp_path, skip):
    """The window is a part of the checkpoint: the resumed run knows what is normal."""
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=4, skip_spikes=skip)
    trainer.train()
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert len(saved["stateful_callbacks"]["SpikeCallback"]["attributes"]["windows"]["loss"]) == 2
    again = trainer_of(tokenizer, examples, tmp_path, max_steps=4, skip_spikes=skip)
    poison(again, {2}, 1e3)
    states = {}
    at_begin = TrainerCallback()
    at_begin.on_train_begin = lambda *args, **kwargs: fill_window(again, 2.0, 1e9)
    again.add_callback(at_begin)

    def copy_weights(control):
        weights = again.model.state_dict()
        states[again.state.global_step] = {name: tensor.clone() for name, tensor in weights.items()}

    again.add_callback(At([3, 4], copy_weights))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    records = [record for record in read_metrics(tmp_path) if record["step"] > 2 and "loss" in record]
    assert [record["loss_spikes"] for record in records] == [1, 1]
    before = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    # Running means of targets follow the texts, also those of a step that is skipped.
    kept = {name: tensor for name, tensor in before.items() if not name.startswith("running.")}
    unchanged = all(torch.equal(states[3][name], tensor) for name, tensor in kept.items())
    assert unchanged == skip
    assert any(not torch.equal(states[4][name], tensor) for name, tensor in before.items())


def test_overflow_of_a_loss_scaler_is_no_spike_and_no_failure(tokenizer, examples, tmp_path):
    """The scaler tries a larger factor now and then; an infinite gradient says nothing of the loss."""
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    fill_window(trainer)
    before = json.dumps(trainer.spikes.windows)
    trainer.accelerator.scaler = object()
    for loss, failures in ((2.0, 0), (math.nan, 1)):
        trainer.step_in_progress.loss = torch.tensor(loss)
        trainer._get_grad_norm(trainer.model, torch.tensor(math.inf))
        assert trainer.spikes.count == 0
        assert json.dumps(trainer.spikes.windows) == before
        assert trainer.nonfinite_steps == failures
    trainer.accelerator.scaler = None


def test_a_gradient_that_a_loss_scaler_never_makes_finite_ends_the_run(tokenizer, examples, tmp_path):
    """The scaler would skip every step, and the run end with the weights that it began with."""
    trainer = trainer_of(tokenizer, examples, tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    trainer.control.should_training_stop = False
    trainer.accelerator.scaler = object()

    def step(grad_norm):
        trainer.step_in_progress.loss = torch.tensor(2.0)
        trainer._get_grad_norm(trainer.model, torch.tensor(grad_norm))

    for grad_norm in [math.inf] * OVERFLOW_LIMIT + [1.0] + [math.inf] * (OVERFLOW_LIMIT + NONFINITE_LIMIT):
        assert not trainer.control.should_training_stop
        step(grad_norm)
    assert trainer.control.should_training_stop
    assert trainer.nonfinite_steps == NONFINITE_LIMIT
    trainer.accelerator.scaler = None


def test_a_run_that_diverges_says_so_in_its_output_its_card_and_its_file(command, tmp_path, monkeypatch):
    """The loss of the last evaluation, which that of no step tells."""
    evaluate = TextJepaTrainer.evaluate

    def diverged(trainer, *args, **kwargs):
        metrics = evaluate(trainer, *args, **kwargs)
        trainer.state.log_history[-1]["eval_loss"] = "nan"
        return metrics

    monkeypatch.setattr(TextJepaTrainer, "evaluate", diverged)
    code, line = command(tmp_path / "run")
    assert code == 0
    assert line.startswith("WARNING: The run diverged: the held-out loss of its weights is nan")
    assert "The run diverged" in (tmp_path / "run" / "README.md").read_text()
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["divergence"] == line.removeprefix("WARNING: ")


def test_a_run_that_does_not_diverge_says_nothing(finished):
    assert "diverged" not in (finished / "README.md").read_text()
    assert json.loads((finished / "verdict.json").read_text())["divergence"] is None


def test_weights_that_are_not_finite_are_not_exported(command, tmp_path):
    """The steps before had finite gradients."""
    code, line = command(tmp_path / "run", "--learning_rate", "1e39", "--max_steps", "2", "--warmup_steps", "0")
    assert code == 2
    assert line.startswith("error: the run diverged, and no encoder was written (not finite: ")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "pretraining").exists()


def test_vectors_that_are_not_finite_are_not_exported(command, tmp_path, monkeypatch):
    """Weights may be finite, and too large to compute with."""
    embed_texts = closing.embed_texts
    monkeypatch.setattr(closing, "embed_texts", lambda *args: embed_texts(*args) * math.nan)
    code, line = command(tmp_path / "run")
    assert code == 2
    assert "the vectors of held-out texts" in line
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_learning_rate_of_nothing_is_refused(command, tmp_path):
    for rate in ("0", "-1"):
        code, line = command(tmp_path / "run", "--learning_rate", rate)
        assert code == 2
        assert "--learning_rate" in line
    assert not (tmp_path / "run").exists()


# ---- P13, P14: no memory, no room -----------------------------------------------------------------------------------


def test_no_memory_is_one_line_with_the_flags_to_change(capsys):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    printed = capsys.readouterr().err
    assert exit_.value.code == 2
    assert len(printed.splitlines()) == 1
    assert "--per_device_train_batch_size" in printed
    assert "--gradient_accumulation_steps" in printed


def test_batch_size_is_not_sought_from_half_trained_weights(command, tmp_path):
    code, line = command(tmp_path / "run", "--auto_find_batch_size")
    assert code == 2
    assert "--auto_find_batch_size" in line


def test_too_little_room_is_seen_before_the_first_step(command, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    code, line = command(tmp_path / "run")
    assert code == 2
    assert f"--output_dir {tmp_path / 'run'}: 0 MB are free" in line


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_full_disk_is_one_line_and_the_checkpoint_before_stays(command, finished, copy, file):
    """The process may write no file as large as this one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (finished / "checkpoint-4" / file).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        code, last = command(copy, *AUTO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert last.startswith(f"error: --output_dir {copy}: checkpoint-6 could not be written")
    assert "--resume_from_checkpoint auto" in last
    assert not (copy / checkpointing.STAGING).exists()
    assert newest_whole_checkpoint(copy) == copy / "checkpoint-4"
    assert command(copy, *AUTO)[0] == 0
    assert differences(finished, copy, "checkpoint-6/*") == []


@pytest.mark.parametrize(("number", "is_ignored"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_flushes_no_folders_keeps_checkpoints(tmp_path, monkeypatch, number, is_ignored):
    """Shares of VirtualBox, and old ones of Windows."""

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with contextlib.nullcontext() if is_ignored else pytest.raises(OSError, match=os.strerror(number)):
        checkpointing._flush_folder(tmp_path)


def test_random_states_are_written_beside_the_checkpoint(tokenizer, examples, tmp_path, monkeypatch):
    """The folder of the system for temporary files may be full."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    trainer_of(tokenizer, examples, tmp_path / "run", max_steps=1, save_steps=1).train()
    assert find_damage(tmp_path / "run" / "checkpoint-1") is None
    assert (tmp_path / "run" / "checkpoint-1" / "rng_state.pth").is_file()
    assert not list((tmp_path / "run" / "checkpoint-1").glob("tmp*"))


@pytest.mark.parametrize(("strategy", "has_checkpoint"), [("no", False), ("steps", True)])
def test_full_disk_at_the_end_names_a_remedy_that_there_is(command, tmp_path, monkeypatch, strategy, has_checkpoint):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretraining, "save_results", full)
    code, line = command(tmp_path / "run", "--save_strategy", strategy)
    assert code == 2
    assert "the encoder could not be written" in line
    assert ("--resume_from_checkpoint auto" in line) == has_checkpoint
    assert ("start again in another folder" in line) != has_checkpoint


def test_a_tracker_that_cannot_begin_is_one_line_without_an_echo(monkeypatch):
    """That of MLflow ends in its destructor what it has not begun."""

    class Missing:
        def __init__(self):
            raise RuntimeError("Missing requires missing to be installed.")

        def __del__(self):
            self.begun.end()

    echoes = []
    monkeypatch.setattr(sys, "unraisablehook", echoes.append)
    monkeypatch.setattr(checks, "get_reporting_integration_callbacks", lambda names: [Missing])
    args = SimpleNamespace(report_to=["missing"], process_index=0)
    with pytest.raises(UsageError, match="--report_to: Missing requires missing to be installed"):
        checks.check_trackers(args)
    gc.collect()
    assert echoes == []


# ---- launchers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(corpus, tmp_path):
    """Starts the script by a launcher; gives the process once the run has written its first checkpoint."""
    processes = []

    def launch(*launcher, more=()):
        argv = flags(corpus, tmp_path / "run", "--max_steps", "4000", "--save_steps", "20", *more)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }
        process = subprocess.Popen(
            [sys.executable, *launcher, str(ROOT / "run_pretraining.py"), *argv],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / "stderr").open("w"),
            start_new_session=True,
        )
        processes.append(process)
        until(lambda: checkpoints(tmp_path / "run") or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "stderr").read_text()[-3000:]
        return process, tmp_path / "run"

    yield launch
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def until(condition, seconds=120):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def assert_stopped_by_signal(run, stderr):
    """The newest checkpoint is whole and of a step between those of `save_steps`, or the log tells of the stop."""
    assert newest_whole_checkpoint(run) is not None
    assert not (run / checkpointing.STAGING).exists()
    assert not (run / "model.safetensors").exists()
    found = re.search(r"stopped by a signal at step (\d+)", stderr.read_text())
    assert found, stderr.read_text()[-2000:]
    assert checkpointing.step_of(newest_whole_checkpoint(run)) == int(found[1])


@pytest.mark.slow
def test_signal_to_the_whole_group_stops_the_run_with_a_checkpoint(launched, tmp_path):
    """As schedulers send it: to the workers of data loaders too, which would die in the midst of a step."""
    process, run = launched(more=["--dataloader_num_workers", "2"])
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == PREEMPTED
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert_stopped_by_signal(run, tmp_path / "stderr")


@pytest.mark.slow
def test_full_disk_ends_a_run_with_workers_too(launched, tmp_path):
    """The error holds on to the data loader while the process ends; a worker that ignored its parent would hang."""
    process, run = launched(more=["--dataloader_num_workers", "2"])
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    assert process.wait(60) == 2
    assert newest_whole_checkpoint(run) is not None


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_signal_to_accelerate_launch_stops_its_only_process_with_a_checkpoint(launched, tmp_path, number, whole_group):
    """It passes no signal on but dies of it; then the run gets the signal of its parent's death beside its own."""
    process, run = launched("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    (child,) = children_of(process.pid)
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    until(lambda: not Path(f"/proc/{child}").exists())
    assert_stopped_by_signal(run, tmp_path / "stderr")


@pytest.mark.distributed
@pytest.mark.parametrize("whom", ["one-rank", "launcher"])
def test_signal_to_one_of_two_processes_stops_both_with_one_checkpoint(launched, tmp_path, whom):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process, run = launched(*launcher)
    ranks = children_of(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1] if whom == "one-rank" else process.pid, signal.SIGTERM)
    process.wait(60)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert_stopped_by_signal(run, tmp_path / "stderr")
    names = {path.name for path in newest_whole_checkpoint(run).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= names


# ---- the table ------------------------------------------------------------------------------------------------------


def test_every_promise_has_a_row_and_every_test_named_there_exists():
    table = (ROOT / "docs" / "guarantees.md").read_text()
    promises = re.findall(r"^\| (P\d+) \|", table, re.M)
    assert promises == [f"P{number}" for number in range(1, len(promises) + 1)]
    assert len(promises) > 40
    named = set(re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", table))
    assert len(named) > 60
    missing = []
    for file, name in sorted(named):
        content = (ROOT / "tests" / file).read_text(encoding="utf-8")
        if f"def {name}(" not in content:
            missing.append(f"{file}::{name}")
    assert missing == []
