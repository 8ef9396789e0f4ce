"""What a table of scores says, in two sentences: what was compared, and what the first encoder is ahead of."""

from collections.abc import Iterable, Sequence

from text_jepa.probe.bootstrap import Score


# Intervals over fewer rows are too narrow: all resamples of a single row are alike.
FEWEST_ROWS = 20


def describe_comparison(scores: Sequence[Score]) -> str:
    """One line: the systems, the tasks and the modes of a table.

    Args:
        scores: All scores, those of the encoder in question leading.
    """
    first, *others = _distinct(score.system for score in scores)
    tasks = _distinct(score.task for score in scores if score.low is not None)
    modes = _distinct(score.mode for score in scores)
    beside = f" beside {', '.join(others)}" if others else ""
    return f"{first}{beside}, on {', '.join(tasks)} ({', '.join(modes)})"


def describe_outcome(scores: Sequence[Score]) -> str:
    """One sentence: which systems the first one is better than, worse than, and not significantly different from.

    A difference whose interval holds 0 tells nothing apart. Averages over tasks, which have no interval, and scores of
    fewer than `FEWEST_ROWS` rows do not count.

    Args:
        scores: All scores, those of the encoder in question leading.

    Returns:
        The sentence; empty if there is nothing to compare with.
    """
    compared = [score for score in scores if score.ahead_low is not None and score.rows >= FEWEST_ROWS]
    parts = []
    for system in _distinct(score.system for score in compared):
        own = [score for score in compared if score.system == system]
        better = sum(score.ahead_low > 0 for score in own)
        worse = sum(score.ahead_high < 0 for score in own)
        parts.append(_in_words(system, better, worse, len(own)))
    if not parts:
        return ""
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return f"{scores[0].system} is {listed}."


def notes_on_few_rows(scores: Sequence[Score]) -> list[str]:
    """A note for each task with too few rows to tell systems apart."""
    rows_of_task = {score.task: score.rows for score in scores if score.low is not None}
    notes = []
    for task, rows in rows_of_task.items():
        if rows < FEWEST_ROWS:
            notes.append(f"{task}: too few scored rows to compare systems ({rows}; {FEWEST_ROWS} are needed)")
    return notes


def _in_words(system: str, better: int, worse: int, count: int) -> str:
    """How the first system compares with another one, in so many of the scores."""
    if better == count:
        return f"better than {system}"
    if worse == count:
        return f"worse than {system}"
    if better == worse == 0:
        return f"not significantly different from {system}"
    shares = []
    if better:
        shares.append(f"better than {system} in {better}")
    if worse:
        shares.append(f"worse than {system} in {worse}" if not better else f"worse in {worse}")
    return f"{' and '.join(shares)} of {count} scores"


def _distinct(values: Iterable[str]) -> list[str]:
    """The values in the order of their first occurrence."""
    return list(dict.fromkeys(values))
