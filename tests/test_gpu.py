"""What benchmarks/gpu.py does on a GPU, tried where there is none; the checks run on the GPU where there is one.

On a machine with CUDA: python -m pytest -m gpu
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from pyarrow import parquet

from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining


ROOT = Path(__file__).parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a CPU the others take seconds.
FAST = ("host_looks", "attention", "parallel", "float32", "scaler", "memory")
CHECKS = (*FAST, "bfloat16", "float16", "training", "resuming", "compiling")
RECIPES = {path.stem: path for path in sorted((ROOT / "configs/gpu").glob("*.yaml"))}


@pytest.fixture(scope="module")
def benchmark():
    """Imports a file of `benchmarks/`, which find each other as scripts do."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in ("gpu", "gpu_checks", "gpu_pack", "step"):
        sys.modules.pop(name, None)


# ---- checks ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [name if DEVICE == "cuda" or name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CHECKS],
)
def test_check(name, benchmark):
    """Numbers, skipped steps, resuming, graphs, host and processes: each check raises where it does not hold."""
    checks = benchmark("gpu_checks")
    try:
        assert checks.CHECKS[name](DEVICE)
    except checks.NotHere as reason:
        pytest.skip(str(reason))


def test_no_check_is_left_out_here(benchmark):
    assert set(CHECKS) == set(benchmark("gpu_checks").CHECKS)


def test_a_look_of_the_host_is_found_with_its_line(benchmark):
    values = torch.arange(4.0)

    def look():
        values[values > 1].sum()
        values.sum().item()
        values[torch.tensor([0, 1])].sum()

    looks = benchmark("gpu_checks").looks_of(look, "cpu")
    line = look.__code__.co_firstlineno
    assert looks == {f"tests/test_gpu.py:{line + 1}": 1, f"tests/test_gpu.py:{line + 2}": 1}


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_a_wrong_gradient_is_no_pass(wrong, benchmark):
    checks = benchmark("gpu_checks")
    expected = (1.0, {"weight": torch.ones(3)})
    checks.assert_close(checks.differences(expected, expected), torch.float32, "same")
    found = (1.0, {"weight": torch.tensor([1.0, 1.0, 1.0 + wrong])})
    with pytest.raises(AssertionError, match="weight of"):
        checks.assert_close(checks.differences(found, expected), torch.float32, "weight of")


@pytest.mark.parametrize(
    ("backend", "message", "is_refused"),
    [
        ("FLASH_ATTENTION", "No available kernel. Aborting execution.", True),
        ("FLASH_ATTENTION", "CUDA error: an illegal memory access was encountered", False),
        ("MATH", "No available kernel. Aborting execution.", False),
    ],
)
def test_only_a_kernel_that_does_not_take_its_inputs_does_not_run(
    backend, message, is_refused, benchmark, monkeypatch
):
    """Other errors, and all of the kernel that takes everything, are errors of the check."""
    checks = benchmark("gpu_checks")

    def kernel(wanted):
        if wanted.name == backend:
            raise RuntimeError(message)
        return contextlib.nullcontext()

    monkeypatch.setattr(checks, "sdpa_kernel", kernel)
    expected = contextlib.nullcontext() if is_refused else pytest.raises(RuntimeError, match=message)
    with expected:
        found = checks.attention("cpu")
        assert found[f"{backend}, padded"] == {"does not run": message}


# ---- profile --------------------------------------------------------------------------------------------------------


def test_kernels_have_kinds_and_shares(benchmark):
    step = benchmark("step")
    times = {
        "sm90_xmma_gemm_bf16": 6.0,
        "pytorch_flash::flash_fwd_kernel": 2.0,
        "vectorized_elementwise_kernel": 1.0,
        "multi_tensor_apply_kernel": 1.0,
    }
    shares = step.shares_of(times)
    assert shares == {"matrix products": 0.6, "attention": 0.2, "elementwise": 0.1, "optimizer": 0.1}
    suggestions = step.suggestions(shares, busy=0.5)
    assert [line.split(":")[0] for line in suggestions] == [
        "the device waits 50% of the time for launches",
        "attention",
        "optimizer and moving average",
    ]
    assert step.suggestions({"matrix products": 1.0}, busy=0.99) == []


# ---- pack -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of data with two corpora of random words, and a task of 48 rows."""
    from conftest import TEXTS

    folder = tmp_path_factory.mktemp("data")
    words = " ".join(TEXTS).split()
    generator = np.random.default_rng(0)
    for name, count in (("wikipedia_short", 40), ("novels", 1_200)):
        (folder / "pretrain" / name).mkdir(parents=True)
        texts = [" ".join(generator.choice(words, 60)) for _ in range(count)]
        parquet.write_table(pyarrow.table({"text": texts}), folder / "pretrain" / name / "train.parquet")
    (folder / "glue/stsb").mkdir(parents=True)
    for split in ("train", "validation", "test"):  # no text is in two of them
        first, second = ([" ".join(generator.choice(words, 8)) for _ in range(48)] for _ in range(2))
        scores = [1.0, 4.5, 2.0, 3.5] * 12
        rows = {"sentence1": first, "sentence2": second, "label": scores, "idx": list(range(48))}
        parquet.write_table(pyarrow.table(rows), folder / f"glue/stsb/{split}.parquet")
    return folder


def test_tokens_come_back_as_texts_of_the_same_tokens(benchmark, tokenizer, texts):
    """Punctuation, pieces of words, characters that are unknown, and an empty document."""
    pack = benchmark("gpu_pack")
    documents = [*texts, "It's harbour-masters' (un)believable: 3.14!", "beans ☃ beans 漢字", ""]
    tokens = pack.tokens_of(documents, tokenizer)
    assert tokenizer.unk_token_id in tokens[-2]
    assert pack.decompress(pack.compress(tokens)) == tokens
    assert pack.tokens_of(list(pack.texts_from(tokens, tokenizer)), tokenizer) == tokens


def test_pack_holds_all_that_fits_and_says_what_it_has_left_out(benchmark, data, tmp_path, capsys):
    pack = benchmark("gpu_pack")
    out = tmp_path / "pack"
    flags = ["--data", str(data), "--vocab_size", "300", "--no_wheels", "--tokenizer_documents", "50"]
    pack.main([*flags, "--out", str(out), "--megabytes", "0.07"])
    about = json.loads((out / "pack.json").read_text())["corpora"]
    printed = capsys.readouterr().out
    assert about["wikipedia_short"]["documents"] == 40
    assert 0 < about["novels"]["documents"] < 1_200
    assert [one["same_after_round_trip"] for one in about.values()] == [1, 1]
    left_out = 1_200 - about["novels"]["documents"]
    assert f"left out: {left_out:,} of 1,200 documents of novels" in printed
    assert pack.size_of(out) <= 0.07 * pack.MEGABYTE
    assert (out / "glue/stsb/train.parquet").exists()
    assert len(pack.decompress((out / "corpora/novels.train.xz").read_bytes())) == about["novels"]["documents"]


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def args(tmp_path):
    (tmp_path / "out").mkdir()
    out, work = tmp_path / "out", tmp_path / "work"
    return Namespace(out=out, work=work, pack=None, device="cpu", most_arms=None, part="step", until=time.time() + 60)


def test_a_part_goes_on_after_an_error_and_makes_only_what_is_missing(benchmark, args, monkeypatch):
    gpu = benchmark("gpu")
    called = []

    def item(name, result):
        def run(left):
            called.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return gpu.Item(run)

    late = subprocess.TimeoutExpired("slow", 1)
    items = {"bad": item("bad", ValueError("no")), "good": item("good", {"x": 1}), "late": item("late", late)}
    monkeypatch.setitem(gpu.ITEMS, "step", lambda args: items)
    gpu.run_part(args)
    found = gpu.read(args, "step")
    assert found["items"]["bad"]["error"] == "ValueError: no"
    assert found["items"]["good"]["x"] == 1
    assert "late" not in found["items"]
    assert "done" not in found
    items["late"] = item("late", {"x": 2})
    gpu.run_part(args)
    assert called == ["bad", "good", "late", "late"]
    assert gpu.read(args, "step")["done"]


@pytest.mark.parametrize("is_over", [True, False])
def test_what_the_end_cuts_off_is_made_again_and_what_kills_its_process_is_not(is_over, benchmark, args):
    gpu = benchmark("gpu")
    gpu.write(args, "step", {"items": {"one": {"x": 1}, "two": {"running": True}}})
    command = ["sleep", "60"] if is_over else ["false"]
    process = subprocess.Popen(command, start_new_session=True)
    until = time.time() if is_over else time.time() + 60
    assert gpu.finish(process, "step", args, until) is not is_over
    assert process.returncode
    items = gpu.read(args, "step")["items"]
    assert items["one"] == {"x": 1}
    assert ("two" in items) is not is_over
    assert is_over or "took its process along" in items["two"]["error"]


def test_arms_share_the_seconds_and_are_fewer_where_each_would_get_too_little(benchmark):
    budget_of = benchmark("gpu").budget_of
    assert budget_of(7 * 240, 7, "cuda") == (7, 100)
    assert budget_of(370, 7, "cuda") == (2, 45)
    assert budget_of(10, 7, "cuda") == (1, 40)
    assert budget_of(10_000, 2, "cpu") == (2, 3)


@pytest.mark.slow
def test_what_is_missing_comes_from_the_wheels_of_the_pack(benchmark, args, tmp_path, monkeypatch):
    """And the version of this package, where it is not installed, from its project file."""
    gpu = benchmark("gpu")
    args.pack = tmp_path / "pack"
    (args.pack / "wheels").mkdir(parents=True)
    (args.pack / "pack.json").write_text("{}")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="datasets, evaluate missing"):
        gpu.set_up(args)
    with zipfile.ZipFile(args.pack / "wheels/borrowed-1.0-py3-none-any.whl", "w") as wheel:
        about = "borrowed-1.0.dist-info"
        wheel.writestr("borrowed.py", "answer = 42\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: borrowed\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")

    def missing(name):
        raise gpu.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gpu.importlib.metadata, "version", missing)
    environment = gpu.set_up(args)
    line = "import borrowed, importlib.metadata as m; print(borrowed.answer, m.version('text-jepa'))"
    found = subprocess.run([sys.executable, "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.split()[0] == "42", found.stderr
    assert environment["TEXT_JEPA_DATA"] == str(args.work / "data")


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(benchmark, data, tmp_path):
    """The command as it is given on a GPU, from a pack: nothing but the checks, which have run above."""
    benchmark("gpu_pack").main(
        ["--data", str(data), "--vocab_size", "300", "--no_wheels", "--out", str(tmp_path / "pack")]
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out/checks.json").write_text('{"items": {}, "done": true}')
    command = [sys.executable, "benchmarks/gpu.py", "--minutes", "60", "--device", "cpu", "--most_arms", "2"]
    command += ["--pack", str(tmp_path / "pack"), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert all(part.get("done") for part in found.values()), printed
    assert found.keys() == {"prepare", "checks", "step", "training", "finetuning", "encoder"}
    assert "FAILED" not in printed
    assert found["prepare"]["items"]["unpack"]["wikipedia_short.train"] == 40
    step = found["step"]["items"]["micro"]
    assert step["tokens_per_second"].keys() == {*benchmark("gpu").ARMS}
    assert sum(step["profile"]["shares"].values()) == pytest.approx(1)
    assert (tmp_path / "out/profile-micro.txt").stat().st_size > 0
    assert list(found["training"]["items"]) == found["training"]["budget"]["arms"] == ["default", "mlm"]
    assert "stsb, cosine raw, spearmanr" in found["training"]["items"]["mlm"]["reference_ahead"]
    assert any(name.startswith("mlm, stsb") for name in found["finetuning"]["items"]["stsb"])
    assert found["encoder"]["items"]["train"]["step"] == 8


# ---- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_header_of_a_recipe_states_the_memory_that_is_computed_and_that_was_measured(name, benchmark):
    flags = yaml.safe_load(RECIPES[name].read_text())
    computed = benchmark("gpu_checks").computed_memory(flags["per_device_train_batch_size"])
    measured = json.loads((ROOT / "docs/assets/gpu/checks.json").read_text())["items"]["memory"]["MB per text"]
    header = " ".join(line[1:].strip() for line in RECIPES[name].read_text().splitlines() if line.startswith("#"))
    header = " ".join(header.split())
    for part in ("states", "texts", "sum"):
        assert f"{computed[part] / 1e9:.1f} GB" in header, (part, computed[part])
    assert f"{measured:.0f} MB per text" in header


def test_computed_memory_of_weights_is_that_of_the_parameters(benchmark):
    """Of encoder, target encoder and predictor: 16 bytes of a trained weight, 4 of one of the target encoder."""
    shape = {"vocab_size": 30_528, "max_position_embeddings": 512}
    fields = {**OBJECTIVES["jepa"], "sentence_loss_weight": 0.0}
    with torch.device("meta"):
        model = TextJepaForPreTraining(TextJepaConfig.preset("base", shape, **fields))
    copied = sum(parameter.numel() for parameter in model.target_encoder.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters()) - copied
    computed = benchmark("gpu_checks").computed_memory(texts=1)
    assert computed["states"] == pytest.approx(16 * trained + 4 * copied, rel=0.01)


def test_shards_divide_the_weights_and_not_the_texts(benchmark):
    computed_memory = benchmark("gpu_checks").computed_memory
    whole, sharded = computed_memory(texts=8), computed_memory(texts=8, shards=4)
    assert sharded["states"] == pytest.approx(whole["states"] / 4)
    assert sharded["texts"] == whole["texts"] == pytest.approx(2 * computed_memory(texts=4)["texts"])
