"""benchmarks/gallery.py makes all pictures and keeps the recipes beside them, here of a run too small to show more."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_pretraining
from text_jepa.cli import UsageError
from text_jepa.train.run_log import write_metrics


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gallery(monkeypatch):
    """The module, which is beside the scripts that it uses."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gallery")


@pytest.fixture
def made(gallery, texts, tmp_path, monkeypatch):
    """A run of two steps, which stands for all of them: the folder, and the warning of the last one."""
    (tmp_path / "train.txt").write_text("".join(f"{text} {number}\n" for number in range(20) for text in texts))
    of_texts = f"--train_file {tmp_path}/train.txt --vocab_size 300 --max_length 32 --per_device_train_batch_size 4"
    command = f"{of_texts} --preset static --max_steps 2"
    run = tmp_path / "run"
    run_pretraining.main([*command.split(), "--use_cpu", "--logging_steps", "1", "--output_dir", str(run)])
    warning = "WARNING: collapse at step 2: tokens use 3.0 of 768 dimensions. Try something."

    def train(words, folder):
        shutil.copytree(run, folder)
        latent_loss, cosine = (0.1, 0.99) if "--merge" in words else (0.4, 0.02)
        figures = {"latent_loss": latent_loss, "cosine_other_text": cosine, "pooled_rank": 50.0, "spread": 1.0}
        write_metrics(folder, [{"step": 2, "token_rank": 700.0, "loss": 1.0, **figures}])
        return f"something else\n{warning}\n"

    monkeypatch.setattr(gallery, "train", train)
    monkeypatch.setattr(gallery, "DEFAULT", command)
    monkeypatch.setattr(gallery, "HEALTHY", command)
    monkeypatch.setattr(gallery, "COLLAPSING", "--merge true")
    rows = [f"{number % 2},{text} {number}\n" for number in range(20) for text in texts]
    (tmp_path / "task.csv").write_text("label,text\n" + "".join(rows).replace(", ", " "))
    monkeypatch.setattr(gallery, "TASK", str(tmp_path / "task.csv"))
    monkeypatch.setattr(gallery, "MASKS", f"{gallery.MASKS} {of_texts}")
    return run, warning


def test_all_pictures_are_made_and_the_page_says_how_a_run_collapsed(gallery, made, pictures, tmp_path):
    if shutil.which("chromium") is None and shutil.which("google-chrome") is None:
        pytest.skip("no chromium here")
    run, warning = made
    page = tmp_path / "docs/reading-the-curves.md"
    assets = tmp_path / "docs/assets"
    assets.mkdir(parents=True)
    page.write_text("before\n<!-- collapse -->\n<!-- end of collapse -->\nafter\n")
    gallery.main([str(run)], tmp_path)

    shown = {path.name for path in (ROOT / "docs/assets").glob("gallery-*.png")} | {"healthy-and-collapsed.png"}
    assert {path.name for path in assets.glob("*.png")} == shown
    for path in assets.glob("*.png"):
        assert np.asarray(Image.open(path).convert("L"), dtype=float).std() > 5
    assert {path.parent.name for path in assets.rglob("recipe.json")} == {
        "gallery-default",
        "gallery-healthy",
        "gallery-collapsed",
    }
    words = " ".join(page.read_text().split())
    assert "0.1 at the end, against 0.4 for the same term in the blue run" in words
    assert "two of different texts have a cosine of 0.990, in the blue run of 0.020. The monitor" in words
    assert f"``` {warning} ``` <!-- end of collapse --> after" in words


def test_a_run_of_another_recipe_is_refused(gallery, texts, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("arguments.yaml", "config.json"):
        (tmp_path / "run" / name).write_text('{"learning_rate": 7.0}')
    with pytest.raises(UsageError, match=r"as it is today \(learning_rate: 7\.0 → 0\.001\); make it again"):
        gallery.main([str(tmp_path / "run")], tmp_path)
    assert not (tmp_path / "docs").exists()
