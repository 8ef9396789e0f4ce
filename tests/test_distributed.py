"""Two processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from text_jepa.training import metrics_of


pytestmark = pytest.mark.distributed
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process with accumulation 2, and two processes: the same global batch of 16 texts, two passes over them."""
    folder = tmp_path_factory.mktemp("runs")
    with (folder / "train.jsonl").open("w") as file:
        for number in range(90):
            file.write(json.dumps({"text": f"Text number {number} is " + "rather " * (number % 11) + "short."}) + "\n")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    arguments = ["--train_file", str(folder / "train.jsonl"), "--preset", "tiny", "--text_config", json.dumps(shape)]
    # 80 texts: a pass that divides evenly, so that accelerate repeats no text to fill up the ranks.
    arguments += [
        "--validation_split_percentage",
        "11",
        "--vocab_size",
        "300",
        "--token_loss_candidates",
        "400",
        "--use_cpu",
        "--logging_steps",
        "1",
    ]
    arguments += ["--max_steps", "10", "--per_device_train_batch_size", "8", "--save_strategy", "no"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    for name, command in (
        ("one", [sys.executable, str(HERE / "recording_run.py"), "--gradient_accumulation_steps", "2"]),
        ("two", [*launcher, str(HERE / "recording_run.py")]),
    ):
        result = subprocess.run(
            [*command, *arguments, "--output_dir", str(folder / name)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


def ranks(folder):
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("rank*.pt"))]


def test_two_processes_log_the_losses_of_one(runs):
    assert [rank["world"] for rank in ranks(runs / "two")] == [2, 2]
    one, two = ([r for r in metrics_of(runs / name) if "loss" in r] for name in ("one", "two"))
    assert len(one) == len(two) == 10
    for first, second in zip(one, two, strict=True):
        for key in ("loss", "latent_loss", "token_loss", "relative_loss", "ema_decay"):
            assert second[key] == pytest.approx(first[key], rel=1e-5), (first["step"], key)


def test_target_encoder_is_the_same_on_all_ranks_bit_by_bit(runs):
    first, second = (rank["target"] for rank in ranks(runs / "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_masks_belong_to_texts_not_to_ranks(runs):
    """Together the ranks see the batches of the single process, with the same masks, and never the same text twice."""
    one = ranks(runs / "one")[0]["seen"]
    two = [batch for pair in zip(*(rank["seen"] for rank in ranks(runs / "two")), strict=True) for batch in pair]
    assert len(one) == len(two) == 20
    for alone, shared in zip(one, two, strict=True):
        assert all(torch.equal(alone[name], shared[name]) for name in alone)
    assert not torch.equal(two[0]["input_ids"], two[1]["input_ids"])


def test_two_processes_leave_one_complete_folder(runs):
    names = {path.name for path in (runs / "two").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "metrics.jsonl", "pretraining"} <= names
