"""Search in real texts: what README shows, both scores beside word counting, and the example.

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


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmarks/search.py`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sys.modules.pop("search", None)
    return importlib.import_module("search")


@pytest.mark.slow
def test_readme_shows_what_a_search_finds(minilm, tmp_path, capsys, monkeypatch):
    """File, line and marked sentence of the first passage; scores may move with the pages."""
    readme = (ROOT / "README.md").read_text()
    pattern = r'text-jepa search docs/ "([^"]+)" [^`]*all-MiniLM-L6-v2\n```\n+```\n(.*?)```'
    shown = re.search(pattern, readme, re.DOTALL)
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
def test_paraphrases_are_found_more_often_than_with_words_alone(minilm, benchmark):
    """Questions of Quora find the others of their group, by their first place."""
    questions = benchmark.read_pairs(Path(DATA, "glue", "qqp_mini", "test.parquet"), limit=1_000)
    assert len(questions.asked) > 200
    found = benchmark.search_questions(str(minilm), questions, [benchmark.VECTOR_SHARE])
    scores = {(row.metric, row.system): row for row in found}
    assert scores["mrr", "BM25"].ahead_low > 0
    assert scores["r@1", "BM25"].ahead > 0


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="TEXT_JEPA_DATA names no folder")
def test_the_example_finds_sections_of_a_folder_by_their_titles_more_often_than_words_alone(tmp_path, benchmark):
    """The encoder is trained by the example on the beginnings of 500 sections of textbooks, without their titles."""
    path = Path(DATA, "pretrain", "textbooks_openstax", "train.parquet")
    questions = benchmark.read_titles(path, limit=500)
    documents = {name: text[:2_000] for name, text in questions.documents.items()}
    folder = tmp_path / "sections"
    folder.mkdir()
    for name, text in documents.items():
        (folder / f"{name}.txt").write_text(text)
    command = [ROOT / "examples" / "search_a_folder.sh", folder, "how do bones grow?", tmp_path / "encoder"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "STEPS": "80"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(rf"^{folder}/\d+\.txt:\d+  0\.\d\d$", result.stdout, re.MULTILINE)
    assert "cartilage" in result.stdout

    asked = questions._replace(documents=documents)
    found = benchmark.search_questions(str(tmp_path / "encoder"), asked, [benchmark.VECTOR_SHARE])
    ahead = {row.metric: row.ahead for row in found if row.system == "BM25"}
    assert ahead["r@1"] > 0
    assert ahead["mrr"] > 0
    assert ahead["r@10"] >= 0
