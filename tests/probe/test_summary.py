"""What a table of scores says in two sentences.

Run: python -m pytest -q tests/probe/test_summary.py
"""

import pytest

from text_jepa.probe.bootstrap import Score
from text_jepa.probe.summary import describe_comparison, describe_outcome, notes_on_few_rows


def score(system, ahead=None, mode="linear", task="packages", interval=1.0):
    """A score of 50 %; `ahead` is the middle of the interval by which the first system leads."""
    low = high = None
    if ahead is not None and interval is not None:
        low, high = ahead - interval, ahead + interval
    return Score(task, mode, "accuracy", system, 50.0, 45.0, 55.0, 100, 1, None, ahead, low, high)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([2.0, 3.0], "better than it"),
        ([-2.0, -3.0], "worse than it"),
        ([0.5, -0.5], "not significantly different from it"),
        ([2.0, 0.5], "better than it in 1 of 2 scores"),
        ([-2.0, 0.5], "worse than it in 1 of 2 scores"),
        ([2.0, 2.0, -2.0], "better than it in 2 and worse in 1 of 3 scores"),
    ],
)
def test_a_difference_counts_where_its_interval_does_not_hold_zero(differences, words):
    scores = [score("ours")] + [score("it", ahead) for ahead in differences]
    assert describe_outcome(scores) == f"ours is {words}."


def test_each_system_has_its_part_and_averages_have_none():
    average = score("TF-IDF", 9.0, task="average of 2 tasks", interval=None)
    scores = [score("ours"), score("random weights", 2.0), score("bag", 0.0), score("TF-IDF", -2.0), average]
    assert describe_outcome(scores) == (
        "ours is better than random weights, not significantly different from bag, and worse than TF-IDF."
    )
    assert describe_outcome(scores[:2]) == "ours is better than random weights."
    assert describe_outcome(scores[:1]) == describe_outcome([]) == ""


def test_scores_of_few_rows_claim_nothing_and_are_noted():
    enough = [score("ours"), score("it", 5.0)]
    few = [one._replace(rows=19, task="mine") for one in enough]
    assert describe_outcome(few) == ""
    assert describe_outcome([*enough, *few]) == "ours is better than it."
    noted = notes_on_few_rows([*enough, *few])
    assert noted == ["mine: too few scored rows to compare systems (19; 20 are needed)"]


def test_one_line_says_what_was_compared():
    scores = [score("ours"), score("TF-IDF", 1.0), score("ours", mode="knn", task="rte")]
    assert describe_comparison(scores) == "ours beside TF-IDF, on packages, rte (linear, knn)"
