"""Scores with bootstrap intervals, and differences between systems on the same resamples.

Shapes: N rows or queries, K seeds, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


RESAMPLES = 1000


class Score(NamedTuple):
    """One score in percent, its 95 % interval, and how far the first system is ahead of this one.

    Args:
        task: Name of the task.
        mode: How the answers were predicted, such as `linear`.
        metric: Name of the metric.
        system: Name of the encoder or control.
        score: Mean over the seeds.
        low: Lower end of the interval over bootstrap resamples of the rows; `None` for an average over tasks.
        high: Upper end of that interval.
        rows: Number of scored rows or queries.
        seeds: Number of seeds.
        deviation: Standard deviation over the seeds; `None` for a single seed.
        ahead: Score of the first system minus this one; `None` for the first system itself.
        ahead_low: Lower end of the interval of `ahead` over paired resamples.
        ahead_high: Upper end of that interval.
    """

    task: str
    mode: str
    metric: str
    system: str
    score: float
    low: float | None
    high: float | None
    rows: int
    seeds: int
    deviation: float | None
    ahead: float | None
    ahead_low: float | None
    ahead_high: float | None


def score_seeds(
    metric: Callable[..., float],
    predictions: np.ndarray,
    gold: np.ndarray | None = None,
) -> np.ndarray:
    """Scores (K,) of the predictions of each seed.

    Args:
        metric: Function of (N,) predictions and `gold`, or of the predictions alone if there is no `gold`.
        predictions: (K, N), one row per seed.
        gold: (N,) labels.
    """
    if gold is None:
        return np.array([metric(row) for row in predictions])
    return np.array([metric(row, gold) for row in predictions])


def score_resamples(
    metric: Callable[..., float],
    predictions: np.ndarray,
    gold: np.ndarray | None = None,
    seed: int | Sequence[int] = 0,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Scores of predictions on bootstrap resamples of their rows (Efron, 1979).

    The seed alone decides which rows are drawn. Systems that are scored with the same seed are therefore scored on the
    same resamples, and the differences of their scores are those of a paired bootstrap (Koehn, 2004).

    Args:
        metric: Function of (N,) predictions and `gold`, or of the predictions alone if there is no `gold`.
        predictions: (K, N), one row per seed of the system. All seeds are resampled together.
        gold: (N,) labels.
        seed: Seed of the resampling.
        resamples: Number of resamples R.

    Returns:
        (R, K) scores.
    """
    generator = np.random.default_rng(seed)
    count = predictions.shape[1]
    scores = np.empty((resamples, len(predictions)))
    for number in range(resamples):
        rows = generator.integers(count, size=count)
        drawn = predictions[:, rows]
        drawn_gold = None if gold is None else gold[rows]
        scores[number] = score_seeds(metric, drawn, drawn_gold)
    return scores


def interval_of(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values: their percentile interval."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def compare_systems(
    task: str,
    mode: str,
    metric: str,
    function: Callable[..., float],
    by_system: Mapping[str, np.ndarray],
    gold: np.ndarray | None = None,
    seed: int = 0,
) -> list[Score]:
    """Scores all systems on the same N rows, with the lead of the first system over each other one.

    Args:
        task: Name of the task.
        mode: Name of the mode.
        metric: Name of the metric.
        function: Function of (N,) predictions and `gold`, at most 1; `np.mean` if the predictions are scores already.
        by_system: (K, N) predictions, one row per seed. K may differ: what depends on no seed has one row.
        gold: (N,) labels.
        seed: Seed of the bootstrap. All seeds and systems are scored on the same resamples.

    Returns:
        One score per system, in their order.
    """
    scores: list[Score] = []
    first_resampled = None
    for system, rows in by_system.items():
        predictions = np.asarray(rows)
        by_seed = 100 * score_seeds(function, predictions, gold)
        resampled = score_resamples(function, predictions, gold, seed).mean(axis=1)
        low, high = interval_of(resampled)
        score = float(by_seed.mean())
        deviation = None
        if len(by_seed) > 1:
            deviation = float(by_seed.std(ddof=1))

        ahead = None
        ahead_low = None
        ahead_high = None
        if first_resampled is None:
            first_resampled = resampled
        else:
            ahead = scores[0].score - score
            lead_low, lead_high = interval_of(first_resampled - resampled)
            ahead_low = 100 * lead_low
            ahead_high = 100 * lead_high

        scores.append(
            Score(
                task=task,
                mode=mode,
                metric=metric,
                system=system,
                score=score,
                low=100 * low,
                high=100 * high,
                rows=predictions.shape[1],
                seeds=len(by_seed),
                deviation=deviation,
                ahead=ahead,
                ahead_low=ahead_low,
                ahead_high=ahead_high,
            )
        )
    return scores


def score_answers(
    answers: Mapping[tuple[str, str, str, str], np.ndarray],
    functions: Mapping[str, Callable[..., float]],
    gold: Mapping[str, np.ndarray],
    seed: int = 0,
) -> list[Score]:
    """Scores all systems on all tasks, in all modes and by all metrics.

    Args:
        answers: (task, mode, metric, system) to (K, N), one row per seed: predictions, or values of the metric.
        functions: Functions of predictions and labels by metric; values of other metrics are averaged.
        gold: (N,) labels by task, where answers are predictions.
        seed: Seed of the resamples.
    """
    columns: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
    for (task, mode, metric, system), rows in answers.items():
        columns.setdefault((task, mode, metric), {})[system] = rows
    scores = []
    for (task, mode, metric), by_system in columns.items():
        function = functions.get(metric, np.mean)
        scores += compare_systems(task, mode, metric, function, by_system, gold=gold.get(task), seed=seed)
    return scores
