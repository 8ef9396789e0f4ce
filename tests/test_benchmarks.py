"""Each benchmark runs, too small to measure anything, and leaves the figures it promises; recipes by GPU size."""

import json
import math
import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel

from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.cli import parse_arguments
from text_jepa.data.tokenization import vocabulary
from text_jepa.data.word_weights import load_word_weights
from text_jepa.share.export import export_encoder
from text_jepa.train import collapse
from text_jepa.train.arguments import DataArguments, ModelArguments, ObjectiveArguments, TextJepaTrainingArguments


ROOT = Path(__file__).parents[1]
GPU_RECIPES = {path.stem: path for path in sorted((ROOT / "configs" / "gpu").glob("*.yaml"))}
MICRO = ["--width", "32", "--layers", "1", "--texts", "4", "--length", "16", "--vocab_size", "300", "--repeats", "1"]


@pytest.fixture
def benchmark_module(monkeypatch):
    """Imports a file of `benchmarks/`, which find each other as scripts do."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield lambda name: __import__(name)
    for name in ("step", "data", "scaling", "word2vec", "tsdae"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(benchmark_module, tmp_path, monkeypatch, capsys):
    """Runs a benchmark in this process; returns its figures and what it printed."""

    def start(name, *flags):
        path = str(ROOT / "benchmarks" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *MICRO, *flags, "--json", str(tmp_path / "found")])
        benchmark_module(name).main()
        return json.loads((tmp_path / "found").read_text()), capsys.readouterr().out

    return start


def numbers_in(values):
    for value in values.values():
        if isinstance(value, dict):
            yield from numbers_in(value)
        else:
            yield value


def assert_positive(values):
    assert all(math.isfinite(value) and value > 0 for value in numbers_in(values))


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def test_full_length_texts_hold_the_same_tokens_in_the_same_order(benchmark_module):
    texts = [np.arange(3), np.arange(3, 8), np.arange(8, 10)]
    full = benchmark_module("data").full_length(texts, 4)
    assert full.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batches_double_while_there_is_room_and_while_that_pays(benchmark_module):
    worth = benchmark_module("scaling").worth_doubling

    def points(*speeds):
        return [{"tokens_per_second": speed, "memory": 100.0} for speed in speeds]

    assert worth([], 0)
    assert worth(points(1, 2), 201)
    assert not worth(points(1, 2), 200)
    assert worth(points(3, 2), 1000)
    assert not worth(points(3, 2, 2), 1000)


def test_measures_take_turns_and_the_first_round_does_not_count(benchmark_module):
    called = []

    def measure(name):
        called.append(name)
        return len(called)

    measures = {"one": lambda: measure("one"), "other": lambda: measure("other")}
    found = benchmark_module("step").measure_in_turn(measures, repeats=2)
    assert called == ["one", "other"] * 3
    assert found == {"one": [3, 5], "other": [4, 6]}


@pytest.mark.parametrize(("device", "waits"), [("cpu", 0), ("cuda", 2)])
def test_only_a_benchmark_of_the_gpu_waits_for_it(device, waits, benchmark_module, monkeypatch):
    """Also on a machine with a GPU, whose memory is not that of a step on the CPU."""
    step = benchmark_module("step")
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert step.seconds_of(lambda: None, device) >= 0
    assert len(waited) == waits
    assert (step.peak_memory(device) == 3) == (device == "cuda")


def test_processes_on_a_cpu_are_as_many_as_its_cores(benchmark_module, monkeypatch):
    scaling = benchmark_module("scaling")
    monkeypatch.setattr(scaling.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert scaling.points_of("processes", "cpu") == [1, 2, 4]
    assert scaling.points_of("processes", "cuda") == [1, 2]


@pytest.mark.parametrize(
    ("axis", "value", "expected"), [("width", 64, "joint"), ("mask_batching", "sequential", "sequential")]
)
def test_points_of_each_axis_keep_the_passes_that_are_asked_for(axis, value, expected, benchmark_module, monkeypatch):
    scaling = benchmark_module("scaling")
    monkeypatch.setattr(sys, "argv", ["scaling.py", *MICRO, "--mask_batching", "joint"])
    flags = scaling.point_flags(scaling.arguments(), axis, value)
    monkeypatch.setattr(sys, "argv", ["scaling.py", *flags])
    point = scaling.arguments()
    assert point.mask_batching == expected
    assert getattr(point, axis) == value
    assert point.texts == 4


def test_least_traffic_counts_vectors_of_the_rest_by_their_own_width(benchmark_module, monkeypatch):
    """Embeddings of 1,536 features are read, their gradients written, and fixed vectors of 384 read."""
    step = benchmark_module("step")
    args = Namespace(vocab_size=300, texts=4, length=16, device="cpu", dtype="float32")
    _, tokenizer = step.texts_of(args)
    of_default = step.default_step(tokenizer, args)
    weights = sum(parameter.numel() for parameter in of_default.parameters)
    assert step.least_traffic(of_default, args) == 4 * (4 * 16 * (1536 + 1536 + 384) + 8 * weights)


# ---- word2vec -------------------------------------------------------------------------------------------------------


def test_word2vec_reads_all_documents_in_each_pass_and_in_an_order_of_its_own(benchmark_module):
    documents = [np.full(length, number) for number, length in enumerate((3, 5, 2, 4, 6))]
    runs = benchmark_module("word2vec").runs_of_documents(documents, 4, seed=0)
    read = [int(document[0]) for _, run in zip(range(40), runs, strict=False) for document in run]
    passes = [read[start : start + 5] for start in range(0, 40, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_word2vec_cuts_long_documents_and_loses_no_piece(benchmark_module, tokenizer, texts, monkeypatch):
    word2vec = benchmark_module("word2vec")
    monkeypatch.setattr(word2vec, "LONGEST_DOCUMENT", 7)
    documents = word2vec.piece_ids(texts, tokenizer)
    assert max(map(len, documents)) == 7
    whole = [piece for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for piece in ids]
    assert np.concatenate(documents).tolist() == whole


def test_word2vec_becomes_an_encoder_whose_vectors_are_weighted_means_of_normed_word_vectors(
    benchmark_module, tokenizer, texts, tmp_path
):
    """Checked by what sentence-transformers makes of the folder; pieces without a vector have a random one."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pieces = vocabulary(tokenizer)
    generator = np.random.default_rng(0)
    known = {piece: generator.normal(size=16).astype(np.float32) for piece in pieces[:-20]}
    weights = generator.random(len(pieces)).astype(np.float32)
    weights[tokenizer.all_special_ids] = 0
    fields = {"vocab_size": len(pieces), "hidden_size": 16, "num_attention_heads": 2}
    config = TextJepaConfig.preset("static", fields, **OBJECTIVES["documents"])
    model = TextJepaForPreTraining(config)
    benchmark_module("word2vec").take_over(model, known, tokenizer, seed=0)
    model.set_word_weights(torch.from_numpy(weights))
    export_encoder(model, tokenizer, tmp_path, max_length=64)

    found = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    rows = model.get_input_embeddings().weight.detach()
    assert rows.norm(dim=1).numpy() == pytest.approx(np.ones(len(pieces)), abs=1e-5)
    assert rows[-20:].std() > 0.1
    for row, piece in enumerate(pieces[:-20]):
        assert rows[row] @ torch.from_numpy(known[piece]) == pytest.approx(np.linalg.norm(known[piece]), rel=1e-5)
    normed = torch.nn.functional.layer_norm(rows, (16,), eps=1e-12).numpy()
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = weights[ids] @ normed[ids] / weights[ids].sum()
        assert vector == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_word2vec_leaves_an_encoder_that_opens_with_its_log(benchmark_module, texts, tmp_path):
    pytest.importorskip("gensim")
    (tmp_path / "train.txt").write_text("".join(f"{text}\n" for text in texts * 20))
    shape = json.dumps({"hidden_size": 16, "num_attention_heads": 2})
    flags = ["--preset", "static", "--text_config", shape, "--vocab_size", "300", "--max_steps", "4", "--use_cpu"]
    flags += ["--train_file", str(tmp_path / "train.txt"), "--max_length", "32", "--logging_steps", "2"]
    benchmark_module("word2vec").main([*flags, "--output_dir", str(tmp_path / "out")])
    records = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    assert records[1]["tokens_seen"] >= 4 * 20_000
    encoder = AutoModel.from_pretrained(tmp_path / "out")
    assert encoder.get_input_embeddings().weight.shape[1] == 16
    weights = load_word_weights(tmp_path / "out")
    assert weights.max() > 1
    assert weights.min() == 0


@pytest.mark.slow
def test_tsdae_begins_with_a_new_encoder_where_none_is_named(benchmark_module, texts, tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "train.txt").write_text("".join(f"{text}\n" for text in texts * 4))
    shape = json.dumps({"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2})
    flags = ["--preset", "tiny", "--text_config", shape, "--vocab_size", "300", "--max_steps", "2", "--use_cpu"]
    flags += ["--train_file", str(tmp_path / "train.txt"), "--max_length", "32", "--logging_steps", "1"]
    flags += ["--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "out")]
    benchmark_module("tsdae").main(flags)
    start, end = (AutoModel.from_pretrained(folder) for folder in (tmp_path / "out/start", tmp_path / "out"))
    assert not torch.equal(start.get_input_embeddings().weight, end.get_input_embeddings().weight)


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_step_leaves_ratios_shares_and_split(run):
    found, printed = run("step")
    arms = {"text_jepa_m1", "text_jepa_m4", "text_jepa_default", "bert_mlm_sparse", "modernbert_mlm", "data2vec_style"}
    assert arms <= found["ratio_to_bert_mlm"].keys()
    assert_positive(found["ratio_to_bert_mlm"])
    assert_positive(found["share_of_matmul_peak"])
    assert sum(found["split"].values()) == pytest.approx(1, abs=0.1)
    assert "default_ratio_to_limit" in found
    assert "| text_jepa_m1 |" in printed


@pytest.mark.slow
def test_step_leaves_the_memory_of_each_arm_in_bfloat16_too(run):
    """Logits of all tokens alone have 64 · 64 · 3,000 numbers; ours has none."""
    shape = ["--texts", "64", "--length", "64", "--vocab_size", "3000"]
    found, _ = run("step", "--dtype", "bfloat16", "--memory", "--arms", "bert_mlm", "text_jepa_m1", *shape)
    assert found["settings"]["dtype"] == "bfloat16"
    assert_positive(found["ratio_to_bert_mlm"])
    logits = 2 * 64 * 64 * 3000 / 2**20
    assert found["peak_memory"]["bert_mlm"] > max(logits, found["peak_memory"]["text_jepa_m1"])


@pytest.mark.slow
def test_data_leaves_the_figures_of_every_part(run, benchmark_module, tmp_path, texts, monkeypatch):
    with (tmp_path / "train.jsonl").open("w") as file:
        for number in range(40):
            file.write(json.dumps({"text": f"{texts[number % len(texts)]} {number}"}) + "\n")
    # Without the round that warms up: each measure of the start is a process.
    once = lambda measures, repeats: {name: [measure()] for name, measure in measures.items()}  # noqa: E731
    monkeypatch.setattr(benchmark_module("data"), "measure_in_turn", once)
    measured = []
    measure = collapse.measure_representations
    monkeypatch.setattr(collapse, "measure_representations", lambda *a, **k: measured.append(True) or measure(*a, **k))
    clock = benchmark_module("data").Clock
    on_step_end = clock.on_step_end
    measured_so_far = []

    def counted(self, *args, **kwargs):
        measured_so_far.append(len(measured))
        on_step_end(self, *args, **kwargs)

    monkeypatch.setattr(clock, "on_step_end", counted)
    found, printed = run("data", "--train_file", str(tmp_path / "train.jsonl"), "--steps", "3")
    assert measured_so_far[50] - measured_so_far[0] == 1  # the timed steps have a log, and the monitor with it
    assert all(0 < share <= 1 for share in found["padding"]["slots_filled"].values())
    for part, figure in (("tokenization", "tokens_per_second"), ("padding", "ratio_to_full_length")):
        assert_positive(found[part][figure])
    assert found["startup"]["launch_to_first_step"] > found["startup"]["import_beyond_transformers"]
    assert all(part in printed for part in ("tokenization", "collator", "padding", "loop", "startup"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "values"), [("length", ["16", "32"]), ("batch", ["2"]), ("mask_batching", ["sequential"])]
)
def test_scaling_leaves_a_table_of_each_axis(axis, values, run, pictures, tmp_path):
    found, printed = run("scaling", "--axes", axis, "--values", *values, "--plot", str(tmp_path / "plot.png"))
    points = found["axes"][axis]
    assert list(points) == values
    for name in ("seconds_per_step", "tokens_per_second", "share_of_matmul_peak", "ratio_to_first"):
        assert_positive({value: point[name] for value, point in points.items()})
    assert f"| {axis} |" in printed
    assert ("fastest: --per_device_train_batch_size" in printed) == (axis == "batch")
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.distributed
def test_scaling_counts_the_tokens_of_all_processes(run):
    """Per second of its step, a point of two processes has twice the tokens of one of a single process."""
    found, _ = run("scaling", "--axes", "processes", "--values", "1", "2")
    tokens = []
    for point in found["axes"]["processes"].values():
        tokens.append(point["tokens_per_second"] * point["seconds_per_step"])
    assert tokens[1] == pytest.approx(2 * tokens[0])


# ---- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_recipe_of_a_gpu_size_is_understood_and_says_that_it_was_not_run(name, tmp_path):
    classes = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    flags = [str(GPU_RECIPES[name]), "--use_cpu", "--output_dir", str(tmp_path)]
    *_, args = parse_arguments(classes, flags, "")
    assert args.bf16
    lines = GPU_RECIPES[name].read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"run_pretraining.py configs/gpu/{name}.yaml" in header
    assert re.search(r"^# Run: ", header, re.MULTILINE)
    assert max(map(len, lines)) <= 119


def test_recipes_of_all_sizes_of_a_single_gpu_make_the_same_step():
    values = [yaml.safe_load(path.read_text()) for name, path in GPU_RECIPES.items() if name.endswith("gb")]
    assert len(values) == 3
    own = {"per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_num_workers", "output_dir"}
    assert len({v["per_device_train_batch_size"] * v["gradient_accumulation_steps"] for v in values}) == 1
    assert len({json.dumps({k: x for k, x in v.items() if k not in own}, sort_keys=True) for v in values}) == 1
