"""What `make` would do: an environment whose installation failed is made again before tests run in it."""

import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(("target", "environment"), [("test", ".venv"), ("test-oldest", ".venv-oldest")])
def test_a_failed_installation_is_made_again(target, environment, tmp_path):
    """The folder is there as soon as the installation begins."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-oldest.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def plan():
        return subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    (tmp_path / environment).mkdir()
    assert "pip install" in plan()
    (tmp_path / environment / "installed").touch()
    assert "pip install" not in plan()
    assert "pytest" in plan()
