"""Launchers: a shard of every weight, a rank that dies and comes back, and processes that were asked for in vain."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertConfig

from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.train.closing import merged, weights_of, whole_model


pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]


# ---- FSDP2 ----------------------------------------------------------------------------------------------------------


def bert_jepa():
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    config = TextJepaConfig(
        text_config=bert,
        token_loss_candidates=None,
        sentence_loss_weight=0.0,
    )
    return TextJepaForPreTraining(config).train()


def in_shards(rank, folder, batch):
    """A step, and the end of a run, of which each of two processes holds half of every weight."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    step_in_shards(rank, folder, batch)
    end_in_shards(rank, folder, batch["input_ids"])
    dist.barrier()
    dist.destroy_process_group()


def step_in_shards(rank, folder, batch):
    """Half of the batch on each rank, every layer and the embeddings sharded, as accelerate wraps them."""
    model = bert_jepa()
    mesh = init_device_mesh("cpu", (2,))
    names = {*model._no_split_modules, *model.model.encoder._no_split_modules}
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    rows = slice(2 * rank, 2 * rank + 2)
    part = {name: value[rows] for name, value in batch.items()}
    count = (batch["target_positions"] >= 0).sum()
    loss = model(**part, num_items_in_batch=count).loss
    (2 * loss).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.full_tensor()
    model.update_target_encoder(0.5)
    target = {name: p.full_tensor() for name, p in model.target_encoder.named_parameters()}
    if rank == 0:
        torch.save((gradients, target), folder / "step.pt")


def end_in_shards(rank, folder, ids):
    """The first process alone merges, opens and runs what all of them hold in shards."""
    model = bert_jepa()
    start = weights_of(model.model.encoder)
    fully_shard(model.model.encoder, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        for parameter in model.model.encoder.parameters():
            parameter += 1
    whole = whole_model(model)
    if rank == 0:
        with merged(whole.model.encoder, start, 0.5):
            half = weights_of(whole.model.encoder)
        whole.save_pretrained(folder / "whole")
        torch.save((start, half, whole(ids).last_hidden_state), folder / "end.pt")


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(5, 120, (4, 12), generator=torch.Generator().manual_seed(5))
    return {
        "input_ids": ids,
        "context_positions": torch.arange(8).expand(4, 1, 8),
        "target_positions": torch.arange(8, 12).expand(4, 1, 4),
        "target_spans": torch.zeros(4, 1, 4, dtype=torch.long),
    }


@pytest.fixture(scope="module")
def sharded(batch, tmp_path_factory):
    """The folder with what two processes have left."""
    folder = tmp_path_factory.mktemp("sharded")
    multiprocessing.spawn(in_shards, (folder, batch), nprocs=2)
    return folder


def test_two_shards_have_the_gradients_of_one_process(sharded, batch):
    gradients, target = torch.load(sharded / "step.pt", weights_only=True)
    model = bert_jepa()
    before = copy.deepcopy(model.target_encoder.state_dict())
    model(**batch).loss.backward()
    expected = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            expected[name] = parameter.grad
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    for name, value in target.items():
        # Equal encoders stay equal.
        torch.testing.assert_close(value, before[name], msg=name)


def test_a_run_in_shards_ends_with_whole_weights_on_the_first_process(sharded, batch):
    start, half, states = torch.load(sharded / "end.pt", weights_only=True)
    for name, parameter in bert_jepa().model.encoder.named_parameters():
        torch.testing.assert_close(start[name], parameter.detach(), msg=name)
        torch.testing.assert_close(half[name], start[name] + 0.5, msg=name)
    saved = TextJepaForPreTraining.from_pretrained(sharded / "whole").eval()
    torch.testing.assert_close(saved(batch["input_ids"]).last_hidden_state, states)


SHARDING_RUN = """
import sys
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import run_pretraining
from text_jepa.train import pretraining

class ShardingTrainer(pretraining.TextJepaTrainer):
    def train(self, *args, **kwargs):
        super().train(*args, **kwargs)
        fully_shard(self.model, mesh=init_device_mesh("cpu", (2,)))

pretraining.TextJepaTrainer = ShardingTrainer
run_pretraining.main(sys.argv[1:])
"""


def test_a_run_in_shards_is_merged_judged_and_exported(texts, tmp_path):
    """accelerate shards on accelerators alone: the weights are sharded here when the last step is done."""
    (tmp_path / "sharding_run.py").write_text(SHARDING_RUN)
    words = [
        *torchrun(),
        str(tmp_path / "sharding_run.py"),
        *("--train_file", str(texts)),
        *("--vocab_size", "300"),
        *("--text_config", '{"hidden_size": 32, "num_attention_heads": 2}'),
        *("--max_steps", "2"),
        *("--save_strategy", "no"),
        *("--per_device_train_batch_size", "4"),
        *("--validation_split_percentage", "50"),
        *("--output_dir", str(tmp_path / "run")),
        "--use_cpu",
    ]
    result = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    encoder = load_file(tmp_path / "run" / "model.safetensors")
    complete = load_file(tmp_path / "run" / "pretraining" / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert encoder[name].shape == complete[f"model.encoder.{name}"].shape
    # The neighbours are shown last.
    assert "rather rather" in result.stdout


# ---- a rank that dies -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "train.jsonl"
    with path.open("w") as file:
        for number in range(160):
            text = f"Text number {number} is {'rather ' * (number % 11)}short."
            file.write(json.dumps({"text": text}) + "\n")
    return path


def command(texts, output_dir):
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return [
        str(ROOT / "run_pretraining.py"),
        *("--train_file", str(texts)),
        *("--preset", "tiny"),
        *("--text_config", json.dumps(shape)),
        *("--vocab_size", "300"),
        *("--max_steps", "60"),
        *("--save_steps", "10"),
        *("--logging_steps", "5"),
        *("--per_device_train_batch_size", "4"),
        *("--resume_from_checkpoint", "auto"),
        *("--output_dir", str(output_dir)),
        "--use_cpu",
    ]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def torchrun(*flags):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *flags]


def ranks_of(launcher):
    found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def test_a_run_whose_rank_was_killed_starts_again_by_itself_and_ends_as_if_nothing_had_been(texts, tmp_path):
    whole = tmp_path / "whole"
    broken = tmp_path / "broken"
    result = subprocess.run(
        [*torchrun(), *command(texts, whole)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    # What the restart needs, see docs/scaling.md.
    with_restarts = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    launcher = subprocess.Popen(
        [*torchrun("--max-restarts", "2"), *command(texts, broken)],
        env=with_restarts,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not list(broken.glob("checkpoint-[1-4]0")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(ranks_of(launcher)[1], signal.SIGKILL)
        assert launcher.wait(timeout=240) == 0
    finally:
        launcher.kill()
    expected = load_file(whole / "pretraining" / "model.safetensors")
    found = load_file(broken / "pretraining" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_processes_that_accelerate_does_not_start_are_an_error(texts, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--quiet"]
    result = subprocess.run(
        [*launch, *command(texts, tmp_path / "run")], env=environment(), capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "error: --num_processes 2: accelerate started one process" in result.stderr
    assert not (tmp_path / "run").exists()
