"""The source distribution and the wheel: what they hold, what they say of themselves, and that the wheel works."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest


tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*words, cwd, **environment):
    """What a command prints, outside the checkout and without its modules."""
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    words = [str(word) for word in words]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def tracked():
    """The files that git has, by their paths from the root."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory):
    """The source distribution of the tracked files, and the wheel that is built from it, as `python -m build` does."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("built")
    for name in tracked:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "source" / name)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=folder / "source")
    (source,) = folder.glob("*.tar.gz")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    run(sys.executable, "-m", "pip", *words, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return source, wheel


def test_the_source_distribution_holds_every_tracked_file(built, tracked):
    source, _ = built
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked if not name.startswith(".")} - held == set()


def test_the_wheel_holds_the_modules_and_what_they_read_and_nothing_else(built, tracked):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {name for name in tracked if name.startswith("text_jepa/")}
    expected |= {name for name in tracked if "/" not in name and name.endswith(".py")}
    recipes = {name.removeprefix("configs/") for name in tracked if name.startswith("configs/")}
    recipes = {name for name in recipes if "/" not in name or name.startswith("corpora/")}
    assert {"tiny_cpu.yaml", "continue-from-encoder.yaml", "corpora/wikipedia.yaml"} <= recipes
    assert held == expected | {f"text_jepa/recipes/{name}" for name in recipes}


def test_the_wheel_says_what_it_is(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(archive.read(file).decode())
        (licence,) = [name for name in archive.namelist() if "/licenses/" in name]
        assert archive.read(licence).decode() == (ROOT / "LICENSE").read_text()
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Version"] == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert metadata["Keywords"].split(",") == PROJECT["keywords"]
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert metadata.get_all("Provides-Extra") == list(PROJECT["optional-dependencies"])
    assert metadata.get_all("Project-URL") is None  # there are none yet


def test_the_wheel_works_in_an_environment_without_the_checkout(built, texts, tmp_path):
    """The libraries are those of this environment; of the package there is only what the wheel has brought."""
    _, wheel = built
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in sys.path if "site-packages" in path))
    names = ["text_jepa", "configuration_text_jepa", "modeling_text_jepa", "run_pretraining", "run_probe"]
    ask = f"from importlib.util import find_spec; print(*[find_spec(name).origin for name in {names}])"
    found = run(python, "-c", ask, cwd=tmp_path)
    assert all(Path(file).is_relative_to(packages) for file in found.split())

    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(24):
        note = " ".join(f"{texts[(number + step * step) % len(texts)]} {number}" for step in range(6))
        (notes / f"{number}.txt").write_text(f"{note}\n")
    command = environment / "bin/text-jepa"
    assert run(command, "--version", cwd=tmp_path).strip() == f"text-jepa {PROJECT['version']}"
    assert "\nModes and controls:" in run(command, "probe", "--help-all", cwd=tmp_path)
    few = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu"]
    run(command, "pretrain", "notes", *few, "--vocab_size", "300", "--output_dir", "encoder", cwd=tmp_path)
    run(command, "adapt", "encoder", "notes", *few, "--output_dir", "adapted", cwd=tmp_path)
    assert (tmp_path / "adapted/model.safetensors").is_file()
