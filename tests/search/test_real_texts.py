"""Search in real texts: what README shows, and an encoder of the folder itself beside word counting.

TEXT_JEPA_DATA=folder python -m pytest -q tests/search/test_real_texts.py
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from text_jepa.commands import search


ROOT = Path(__file__).parents[2]
DATA = os.environ.get("TEXT_JEPA_DATA")


@pytest.mark.slow
def test_readme_shows_what_a_search_finds(minilm, tmp_path, capsys, monkeypatch):
    """File, line and marked sentence of the first passage; scores may move with the pages."""
    readme = (ROOT / "README.md").read_text()
    shown = re.search(
        r'text-jepa search docs/ "([^"]+)" --encoder \S+all-MiniLM-L6-v2.*?```\n+```\n(.*?)```', readme, re.S
    )
    query, expected = shown.groups()
    monkeypatch.chdir(ROOT)
    search.main(["docs/", query, "--encoder", str(minilm), "--index", str(tmp_path / "index.sqlite"), "--limit", "1"])
    found = capsys.readouterr().out
    place = re.compile(r"^(docs/\S+):\d+  ", re.MULTILINE)
    marked = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)
    assert place.findall(found) == place.findall(expected)[:1]
    assert "".join(marked.search(found)[1].split()) == "".join(marked.search(expected)[1].split())


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="TEXT_JEPA_DATA names no folder")
def test_sections_of_textbooks_are_found_by_their_titles_more_often_than_with_words_alone(tmp_path, monkeypatch):
    """By an encoder that the example trains on the sections alone, in a minute; the questions are the titles."""
    source = Path(DATA, "pretrain", "textbooks_openstax", "train.parquet")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sys.modules.pop("search", None)
    benchmark = importlib.import_module("search")
    questions = benchmark.read_titles(str(source), limit=300)
    folder = tmp_path / "sections"
    folder.mkdir()
    for name, text in questions.documents.items():
        (folder / f"{name}.txt").write_text(text)

    command = [ROOT / "examples" / "search_a_folder.sh", folder, "why do we grow old?", tmp_path / "encoder"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "STEPS": "150"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(rf"^{folder}/\d+\.txt:\d+  0\.\d\d$", result.stdout, re.MULTILINE)

    found = benchmark.search_questions(str(tmp_path / "encoder"), questions, [benchmark.VECTOR_SHARE])
    scores = {(row.metric, row.system): row.score for row in found}
    both = f"both, {benchmark.VECTOR_SHARE:g} of vectors"
    assert scores["mrr", both] > scores["mrr", "BM25"]
    assert scores["mrr", both] > scores["mrr", "vectors"]
    assert scores["r@10", both] > 90
