"""benchmarks/search.py: which documents and questions it makes of a file, and ranks."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from benchmarks import search as benchmark


def titles(tmp_path, *rows):
    path = tmp_path / "titles.parquet"
    parquet.write_table(pyarrow.table({"title": [row[0] for row in rows], "text": [row[1] for row in rows]}), path)
    return benchmark.read_titles(str(path), None)


def test_only_a_first_line_that_is_the_title_is_removed(tmp_path):
    """Words at the beginning of a sentence are not, although they are those of the title."""
    questions = titles(
        tmp_path,
        ("Blue whales", "Blue whales\n\nThey sing."),
        ("Old maps", "Old maps are torn."),
        ("Red kites", "They fly.\nRed kites"),
    )
    assert sorted(questions.documents.values()) == ["Old maps are torn.", "They fly.\nRed kites", "They sing."]
    assert len(questions.asked) == 3


def test_a_document_without_a_text_is_left_out(tmp_path):
    """Nothing of it could be found."""
    questions = titles(tmp_path, ("Blue whales", "Blue whales\n"), ("Old maps", "They are torn."))
    assert list(questions.documents.values()) == ["They are torn."]
    assert [query for query, _ in questions.asked] == ["Old maps"]


def test_halves_have_all_questions_once():
    questions = benchmark.Questions({}, [(f"question {number}", {"a"}) for number in range(7)])
    first, second, both = (benchmark.half_of(questions, half).asked for half in ("first", "second", "both"))
    assert len(first) == 4
    assert sorted(query for query, _ in first + second) == sorted(query for query, _ in both)
    assert {query for query, _ in first}.isdisjoint(query for query, _ in second)


def test_a_document_ranks_by_its_best_passage_behind_ties():
    """Two passages of one wrong document count once, and the query itself does not count."""
    names = np.array(["right", "right", "wrong", "wrong", "tie", "query", "behind"])
    scores = np.array([0.1, 0.5, 0.9, 0.8, 0.5, 1.0, 0.4])
    is_right = names == "right"
    is_wrong = ~is_right & (names != "query")
    assert benchmark.rank_of(scores, names, is_right, is_wrong) == 3


@pytest.mark.parametrize(("metric", "expected"), [("r@10", [1, 1, 0]), ("r@1", [1, 0, 0]), ("mrr", [1, 0.5, 0.05])])
def test_metrics_of_ranks(metric, expected):
    assert benchmark.METRICS[metric](np.array([1, 2, 20])).tolist() == expected
