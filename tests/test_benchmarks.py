"""Each benchmark runs, too small to measure anything, and leaves the figures it promises; recipes by GPU size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from text_jepa.arguments import parse_arguments
from text_jepa.pretraining_arguments import DataArguments, ModelArguments, ObjectiveArguments
from text_jepa.training import TextJepaTrainingArguments


ROOT = Path(__file__).parents[1]
GPU_RECIPES = {path.stem: path for path in sorted((ROOT / "configs" / "gpu").glob("*.yaml"))}
MICRO = ["--width", "32", "--layers", "1", "--texts", "4", "--length", "16", "--vocab_size", "300", "--repeats", "1"]


@pytest.fixture
def benchmark_module(monkeypatch):
    """Imports a file of `benchmarks/`, which find each other as scripts do."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield lambda name: __import__(name)
    for name in ("step", "data", "scaling"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(tmp_path):
    """Starts a benchmark as a user does; returns its figures and what it printed."""

    def start(name, *flags):
        command = [sys.executable, str(ROOT / "benchmarks" / name), *MICRO, *flags, "--json", str(tmp_path / "found")]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads((tmp_path / "found").read_text()), printed

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


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_step_leaves_ratios_shares_split_and_memory(run):
    found, printed = run("step.py", "--memory")
    arms = {"text_jepa_m1", "text_jepa_m2", "text_jepa_m4", "bert_mlm_sparse", "modernbert_mlm", "data2vec_style"}
    assert arms <= found["ratio_to_bert_mlm"].keys()
    assert_positive(found["ratio_to_bert_mlm"])
    assert_positive(found["share_of_matmul_peak"])
    assert sum(found["split"].values()) == pytest.approx(1, abs=0.1)
    assert found["peak_memory"].keys() == {"bert_mlm", *found["ratio_to_bert_mlm"]}
    assert "| text_jepa_m1 |" in printed


@pytest.mark.slow
def test_step_runs_in_bfloat16_too(run):
    found, _ = run("step.py", "--dtype", "bfloat16")
    assert found["settings"]["dtype"] == "bfloat16"
    assert_positive(found["ratio_to_bert_mlm"])


@pytest.mark.slow
def test_data_leaves_the_figures_of_every_part(run, tmp_path, texts):
    with (tmp_path / "train.jsonl").open("w") as file:
        for number in range(40):
            file.write(json.dumps({"text": f"{texts[number % len(texts)]} {number}"}) + "\n")
    found, printed = run("data.py", "--train_file", str(tmp_path / "train.jsonl"), "--steps", "3")
    assert found["tokenization"]["ratio_to_bare"]["encode_batch_fast"] == 1
    assert found["padding"]["ratio_to_full_length"]["full length"] == 1
    assert all(0 < share <= 1 for share in found["padding"]["slots_filled"].values())
    for part, figure in (("tokenization", "tokens_per_second"), ("padding", "ratio_to_full_length")):
        assert_positive(found[part][figure])
    assert found["collator"]["ratio_to_masked_lm"] > 0
    assert found["loop"]["ratio_to_bare_step"] > 0
    assert found["startup"]["launch_to_first_step"] > found["startup"]["import_beyond_transformers"]
    assert all(part in printed for part in ("tokenization", "collator", "padding", "loop", "startup"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "values"),
    [("length", ["16", "32"]), ("hidden", ["0.3", "0.6"]), ("batch", ["2", "4"]), ("mask_batching", ["sequential"])],
)
def test_scaling_leaves_a_table_of_each_axis(axis, values, run, tmp_path):
    found, printed = run("scaling.py", "--axes", axis, "--values", *values, "--plot", str(tmp_path / "plot.png"))
    points = found["axes"][axis]
    assert list(points) == values
    assert points[values[0]]["ratio_to_first"] == 1
    for name in ("seconds_per_step", "tokens_per_second", "share_of_matmul_peak", "ratio_to_first"):
        assert_positive({value: point[name] for value, point in points.items()})
    assert f"| {axis} |" in printed
    assert ("fastest: --per_device_train_batch_size" in printed) == (axis == "batch")
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.distributed
def test_scaling_counts_the_tokens_of_all_processes(run):
    found, _ = run("scaling.py", "--axes", "processes", "--values", "2")
    point = found["axes"]["processes"]["2"]
    assert point["tokens_per_second"] * point["seconds_per_step"] == pytest.approx(2 * 4 * 16)


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
    assert "not run" in header
    assert max(map(len, lines)) <= 119


def test_recipes_of_all_gpu_sizes_make_the_same_step():
    values = [yaml.safe_load(path.read_text()) for path in GPU_RECIPES.values()]
    own = {"per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_num_workers", "output_dir"}
    assert len({v["per_device_train_batch_size"] * v["gradient_accumulation_steps"] for v in values}) == 1
    assert len({json.dumps({k: x for k, x in v.items() if k not in own}, sort_keys=True) for v in values}) == 1
