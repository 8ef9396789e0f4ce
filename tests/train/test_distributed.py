"""Two processes do what one does: whole runs, and one step of every term that looks at the whole batch."""

import json
import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from recording_run import RecordingTrainer
from safetensors.torch import load_file
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

import run_pretraining
from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.train import pretraining
from text_jepa.train.run_log import read_metrics


HERE = Path(__file__).parents[1]
TEXTS_OF_FIRST = 3
WORDS = [first + second for first in ("ka", "lo", "mi", "ru", "se") for second in ("ban", "del", "fir", "gos", "lum")]

SENTENCE = {
    "sentence_loss_weight": 1.0,
    "latent_loss_weight": 0.0,
    "token_loss_weight": 0.0,
}
ONLINE = {"target_encoder_type": "online"}
INFONCE = {"sentence_loss_type": "infonce"}
MSE = {"sentence_loss_type": "mse"}
VICREG = {"variance_loss_weight": 1.0, "covariance_loss_weight": 1.0}
SIGREG = {"sigreg_loss_weight": 0.1}
DOCUMENTS = OBJECTIVES["documents"]
SETTINGS = {
    "latent": {},
    "batch": {"target_normalization": "batch"},
    "batch-online": {
        **ONLINE,
        "target_normalization": "batch",
        "loss_type": "infonce",
    },
    "running": {"target_normalization": "running"},
    "infonce": {"loss_type": "infonce"},
    "default": {"sentence_loss_weight": 0.5},
    "sentence-cosine": {**SENTENCE, "sentence_loss_type": "cosine"},
    "sentence-mse": {**SENTENCE, **MSE, "pooling": "attention"},
    "sentence-infonce": {**SENTENCE, **INFONCE},
    "windows": {**SENTENCE, **ONLINE, **INFONCE},
    "simcse": {**SENTENCE, **ONLINE, **INFONCE},
    "similarity": {**SENTENCE, **ONLINE, **INFONCE, "similarity_loss_weight": 1.0},
    "similarity-ema": {**SENTENCE, "similarity_loss_weight": 1.0},
    "vicreg": {**SENTENCE, **ONLINE, **MSE, **VICREG},
    "sigreg": {**SENTENCE, **ONLINE, **MSE, **SIGREG},
    "tokens": {**VICREG, **SIGREG, "regularizer_level": "token"},
    "documents": DOCUMENTS,
    "documents-encoder": {
        **DOCUMENTS,
        "document_target": "encoder",
        "document_loss_type": "smooth_l1",
    },
}


# ---- one step -------------------------------------------------------------------------------------------------------


def step(rank, world, folder):
    """One step of every setting on this process's part of the batch, as the Trainer makes it; rank 0 saves it."""
    torch.set_num_threads(1)
    batches = torch.load(folder / "batches.pt")
    models = torch.load(folder / "models.pt")
    if world == 1:
        parts = [slice(None)]
    else:
        parts = [slice(0, TEXTS_OF_FIRST), slice(TEXTS_OF_FIRST, None)]
    found = {}
    for setting, (fields, state) in models.items():
        kind = setting.split("-")[0]
        batch = batches.get(kind, batches["texts"])
        part = {name: value[parts[rank]] for name, value in batch.items()}
        model = TextJepaForPreTraining(TextJepaConfig(**fields)).train()
        model.load_state_dict(state)
        count = model.num_items(batch["target_positions"])
        # Rank 0 draws the directions of SIGReg.
        torch.manual_seed(rank)
        parallel = DistributedDataParallel(model) if world > 1 else model
        output = parallel(**part, num_items_in_batch=count)
        # The Trainer's factor, which the mean over processes undoes.
        (world * output.loss).backward()
        terms = {name: value.detach().clone() for name, value in output.items() if name.endswith("loss")}
        if world > 1:
            for value in terms.values():
                dist.all_reduce(value)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        found[setting] = terms, gradients, dict(model.running.state_dict())
    if rank == 0:
        torch.save(found, folder / f"world{world}.pt")


def step_of_two(rank, folder):
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(folder / "store"), 2),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        step(rank, 2, folder)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def steps(make_model, make_batch, tmp_path_factory):
    """By setting, the terms, gradients and running statistics of one process and of two."""
    folder = tmp_path_factory.mktemp("steps")
    models = {}
    for setting, fields in SETTINGS.items():
        fields = {"sentence_loss_weight": 0.0} | fields
        model = make_model(**fields)
        for name, parameter in model.named_parameters():
            if name.startswith("target_encoder"):
                torch.nn.init.normal_(parameter, std=0.2)
        if model.word_weights is not None:
            model.set_word_weights(torch.rand(len(model.word_weights)))
        fields["text_config"] = model.config.text_config.to_dict()
        models[setting] = fields, model.state_dict()
    torch.save(models, folder / "models.pt")
    texts = make_batch(lengths=(21, 9, 14, 18, 5))
    rest = make_batch(lengths=(8, 30, 12, 5, 17), width=32, seed=3)
    documents = {
        **texts,
        "view_input_ids": rest["input_ids"],
        "view_attention_mask": rest["attention_mask"],
    }
    # Windows of two documents, each with one window on either process.
    windows = {**texts, "document_ids": torch.tensor([7, 8, 9, 7, 8])}
    batches = {"texts": texts, "documents": documents, "windows": windows}
    torch.save(batches, folder / "batches.pt")
    step(0, 1, folder)
    other = multiprocessing.get_context("spawn").Process(target=step_of_two, args=(1, folder))
    other.start()
    step_of_two(0, folder)
    other.join()
    assert other.exitcode == 0
    return [torch.load(folder / f"world{world}.pt") for world in (1, 2)]


@pytest.mark.distributed
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_of_two_processes_is_that_of_one_on_the_joint_batch(steps, setting):
    """Losses, gradients and running statistics, though one has three texts and the other two."""
    one, two = (found[setting] for found in steps)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert sum(gradient.abs().sum() for gradient in one[1].values()) > 1


def lexical_space_of_two(rank, folder):
    """One forward of a model that each process has built with a seed of its own."""
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    try:
        torch.manual_seed(rank)
        model = TextJepaForPreTraining(TextJepaConfig.preset("static", {"vocab_size": 200}, **DOCUMENTS)).train()
        DistributedDataParallel(model)(**torch.load(folder / "batch.pt"))
        torch.save(model.lexical_space.vectors, folder / f"vectors{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.distributed
def test_processes_with_other_seeds_train_towards_one_lexical_space(make_batch, tmp_path):
    torch.save(make_batch(), tmp_path / "batch.pt")
    other = multiprocessing.get_context("spawn").Process(target=lexical_space_of_two, args=(1, tmp_path))
    other.start()
    lexical_space_of_two(0, tmp_path)
    other.join()
    assert other.exitcode == 0
    first, second = (torch.load(tmp_path / f"vectors{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)


# ---- whole runs -----------------------------------------------------------------------------------------------------


def run_as_one_and_as_two(folder, recipe, texts, arguments, of_one):
    """Trains on the texts in this process, with arguments of its own, and in two: folders `one` and `two`.

    The two are started as a user does, and the texts do not fill the last step of a pass.
    """
    with (folder / "train.jsonl").open("w") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
    arguments = [
        str(HERE.parent / "configs" / f"{recipe}.yaml"),
        *("--train_file", str(folder / "train.jsonl")),
        *("--vocab_size", "300"),
        *("--max_steps", "10"),
        *("--logging_steps", "1"),
        *("--save_strategy", "no"),
        *("--per_device_train_batch_size", "8"),
        "--use_cpu",
        *arguments,
    ]
    script = str(HERE / "recording_run.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(pretraining, "TextJepaTrainer", RecordingTrainer)
        run_pretraining.main([*arguments, *of_one, "--output_dir", str(folder / "one")])
    result = subprocess.run(
        [sys.executable, *launcher, script, *arguments, "--output_dir", str(folder / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process with accumulation 2, and two processes: the same global batch of 16 texts, two passes over them."""
    texts = [f"Text number {number} is " + "rather " * (number % 11) + "short." for number in range(90)]
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    arguments = [
        *("--preset", "tiny"),
        *("--text_config", json.dumps(shape)),
        *("--token_loss_candidates", "400"),
        # The contrast of texts sees one accumulated batch at a time but all processes at once.
        *("--sentence_loss_weight", "0"),
    ]
    folder = tmp_path_factory.mktemp("runs")
    return run_as_one_and_as_two(folder, "token-jepa", texts, arguments, ["--gradient_accumulation_steps", "2"])


@pytest.fixture(scope="module")
def document_runs(tmp_path_factory):
    """The default recipe with a batch of 16 windows in one process, and in two.

    Accumulated batches would not do, for the mean of the targets moves with each.
    """
    generator = random.Random(0)
    texts = []
    for number in range(24):
        words = generator.choices(WORDS, k=8)
        texts.append(" ".join(generator.choices(words, k=20 + number * 37 % 150)))
    arguments = ["--text_config", json.dumps({"hidden_size": 32, "num_attention_heads": 2})]
    folder = tmp_path_factory.mktemp("document_runs")
    of_one = ["--per_device_train_batch_size", "16"]
    return run_as_one_and_as_two(folder, "default", texts, arguments, of_one)


def ranks(folder):
    paths = sorted(folder.glob("rank*.pt"))
    return [torch.load(path, weights_only=True) for path in paths]


def training_records(folder):
    return [record for record in read_metrics(folder) if "loss" in record]


@pytest.mark.distributed
def test_two_processes_log_the_losses_of_one(runs):
    assert [rank["world"] for rank in ranks(runs / "two")] == [2, 2]
    one = training_records(runs / "one")
    two = training_records(runs / "two")
    assert len(one) == len(two) == 10
    for first, second in zip(one, two, strict=True):
        for key in ("loss", "latent_loss", "token_loss", "relative_loss", "ema_decay"):
            assert second[key] == pytest.approx(first[key], rel=1e-5), (first["step"], key)


def evaluation_record(folder):
    return next(record for record in read_metrics(folder) if "eval_loss" in record)


@pytest.mark.distributed
def test_two_processes_evaluate_as_one_does(runs):
    """Each held-out text once, though their number is odd."""
    one = evaluation_record(runs / "one")
    two = evaluation_record(runs / "two")
    for key in ("eval_loss", "eval_latent_loss", "eval_token_loss"):
        assert two[key] == pytest.approx(one[key], rel=1e-5), key


@pytest.mark.distributed
def test_target_encoder_is_bit_identical_on_all_ranks(runs):
    first, second = [rank["target"] for rank in ranks(runs / "two")]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.distributed
def test_masks_belong_to_texts_not_to_ranks(runs):
    """Together the ranks see the texts of the single process, with the same masks, and each of them once in a pass."""
    one = iter(ranks(runs / "one")[0]["seen"])
    steps = list(zip(*[rank["seen"] for rank in ranks(runs / "two")], strict=True))
    sizes = []
    for step_of_two in steps:
        together = examples_in(step_of_two)
        alone = []
        while len(alone) < len(together):
            alone += examples_in([next(one)])
        assert sorted(alone) == together
        sizes.append(len(together))
    assert next(one, None) is None
    assert sizes[:5] == [16] * 5
    assert 0 < sizes[5] < 16
    texts = [dict(example)["input_ids"] for batches in steps[:6] for example in examples_in(batches)]
    assert len(set(texts)) == len(texts) == sum(sizes[:6])


def examples_in(batches):
    """Texts and masks of batches, without padding and in an order independent of that of the batches."""
    found = []
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            example = []
            for name in sorted(batch):
                values = batch[name][row].flatten().tolist()
                while values and values[-1] in (0, -1):
                    values.pop()
                example.append((name, tuple(values)))
            found.append(tuple(example))
    return sorted(found)


@pytest.mark.distributed
def test_two_processes_leave_one_complete_folder(runs):
    names = {path.name for path in (runs / "two").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "metrics.jsonl", "pretraining"} <= names


@pytest.mark.distributed
@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are read from /proc")
def test_no_thread_of_the_group_outlives_a_run(runs):
    """One that gave back a tensor while the interpreter ended aborted its process, and with it the whole run."""
    for number, rank in enumerate(ranks(runs / "two")):
        assert any("gloo" in name for name in rank["threads"])
        assert "gloo" not in (runs / "two" / f"threads-{number}.txt").read_text()


# ---- whole runs of the default objective ----------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_processes_learn_of_documents_what_one_does(document_runs):
    """Losses, figures, the encoder, and the weights of words that it is exported with."""
    assert [rank["world"] for rank in ranks(document_runs / "two")] == [2, 2]
    one = training_records(document_runs / "one")
    two = training_records(document_runs / "two")
    assert len(one) == len(two) == 10
    assert one[-1]["loss"] < 0.9 * one[0]["loss"]
    for first, second in zip(one, two, strict=True):
        for key in ("loss", "document_loss", "pooled_rank"):
            assert second[key] == pytest.approx(first[key], rel=1e-5), (first["step"], key)
    for name in ("model.safetensors", "1_WordWeights/model.safetensors", "pretraining/model.safetensors"):
        expected = load_file(document_runs / "one" / name)
        found = load_file(document_runs / "two" / name)
        assert expected.keys() == found.keys()
        for tensor, value in expected.items():
            torch.testing.assert_close(found[tensor], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {tensor}")


@pytest.mark.distributed
def test_two_processes_see_the_windows_of_one_and_end_with_the_same_bits(document_runs):
    """In each step together those of the single process, cut anew in each pass and the same way by both."""
    first, second = ranks(document_runs / "two")
    for name, value in first["target"].items():
        assert torch.equal(value, second["target"][name]), name
    alone = [windows_in([batch]) for batch in ranks(document_runs / "one")[0]["seen"]]
    together = [windows_in(batches) for batches in zip(first["seen"], second["seen"], strict=True)]
    assert len(alone) == 10
    assert together == alone
    sizes = {len(windows) for windows in alone}
    assert max(sizes) == 16
    assert len(sizes) == 2


def windows_in(batches):
    """Token ids of the windows and of the rests of their documents, in an order independent of that of the batches."""
    found = []
    for batch in batches:
        windows = batch["input_ids"].tolist()
        rests = batch["view_input_ids"].tolist()
        for window, rest in zip(windows, rests, strict=True):
            found.append((without_padding(window), without_padding(rest)))
    return sorted(found)


def without_padding(ids):
    return [token for token in ids if token != 0]
