"""benchmarks/faults.py compares all that a run leaves, bit by bit, in all of its folders."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import faults


@pytest.fixture
def finished(tmp_path):
    """A folder as a run leaves it, with two checkpoints, of which the older one does not count."""
    run = tmp_path / "run"
    for folder in ("tokenizer", "1_WordWeights", "pretraining", "checkpoint-2/rng", "checkpoint-4/rng"):
        (run / folder).mkdir(parents=True)
    weights = {"weight": torch.ones(2)}
    for folder in (".", "pretraining", "checkpoint-2", "checkpoint-4", "1_WordWeights"):
        save_file(weights, run / folder / "model.safetensors")
        (run / folder / "config.json").write_text(json.dumps({"hidden_size": 8}))
    (run / "tokenizer/tokenizer.json").write_text(json.dumps({"vocab": ["a", "b"]}))
    (run / "README.md").write_text("12 seconds, runs/one")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": 0.5, "train_seconds": 9.0}) + "\n")
    (run / "checkpoint-4/rng/state.bin").write_bytes(b"\0\1")
    return run


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "checkpoints", lambda run: [run / "checkpoint-4", run / "checkpoint-2"])
    return shutil.copytree(finished, tmp_path / "copy")


def test_times_and_names_of_folders_are_no_differences(finished, copied):
    (copied / "README.md").write_text("13 seconds, runs/two")
    (copied / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": 0.5, "train_seconds": 8.0}) + "\n")
    (copied / "checkpoint-2/config.json").write_text(json.dumps({"hidden_size": 9}))
    assert faults.compare_ends(finished, copied) == []


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("config.json", b'{"hidden_size": 9}', "config.json:/hidden_size"),
        ("tokenizer/tokenizer.json", b'{"vocab": ["a", "c"]}', "tokenizer/tokenizer.json:/vocab/1"),
        ("1_WordWeights/config.json", b"{}", "1_WordWeights/config.json:/hidden_size"),
        ("pretraining/config.json", b'{"hidden_size": 9}', "pretraining/config.json:/hidden_size"),
        ("checkpoint-4/rng/state.bin", b"\0\0", "checkpoint-4/rng/state.bin:bytes"),
        ("tokenizer/vocab.txt", b"a", "tokenizer/vocab.txt"),
        ("metrics.jsonl", b'{"step": 4, "loss": 0.6, "train_seconds": 9.0}', "metrics.jsonl:/0/loss"),
    ],
)
def test_any_other_file_of_any_folder_is_compared(file, content, found, finished, copied):
    (copied / file).write_bytes(content)
    assert faults.compare_ends(finished, copied) == [found]


def test_a_missing_folder_is_a_difference(finished, copied):
    shutil.rmtree(copied / "1_WordWeights")
    expected = ["1_WordWeights/config.json", "1_WordWeights/model.safetensors"]
    assert faults.compare_ends(finished, copied) == expected
