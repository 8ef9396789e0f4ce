"""Bootstrap intervals of scores and of differences between systems.

Shapes: N rows, S seeds.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


def _resamples(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    return (generator.integers(count, size=count) for _ in range(resamples))


def bootstrap_interval(
    metric: Callable[..., float], *arrays: np.ndarray, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """The 95 % percentile interval of a metric under resampling of rows or queries (Efron, 1979).

    Args:
        metric: Of the arrays, such as `np.mean` of per-row values, or a function of predictions and labels.
        arrays: Each (N, ...), resampled together.
        seed: Of the resampling.
        resamples: How many.

    Returns:
        Lower and upper end.
    """
    arrays = [np.asarray(array) for array in arrays]
    values = [metric(*(array[rows] for array in arrays)) for rows in _resamples(len(arrays[0]), resamples, seed)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class PairedBootstrap(NamedTuple):
    """How much better the first system is: on the whole set, 95 % of resamples, and the share in its favour."""

    difference: float
    low: float
    high: float
    share: float


def paired_bootstrap(
    metric: Callable[..., float],
    a: np.ndarray,
    b: np.ndarray,
    *gold: np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
) -> PairedBootstrap:
    """Compares two systems on the same resampled rows or queries (Koehn, 2004).

    Args:
        metric: Of (a, *gold) and of (b, *gold).
        a, b: (N,) predictions, or per-row values where the metric is their mean and there is no `gold`.
        gold: Each (N,).
        seed: Of the resampling.
        resamples: How many.

    Returns:
        metric(a) - metric(b), its interval, and the share of resamples that favour `a`, between 0 and 1 where an equal
        score counts half. With the systems exchanged, the differences change sign and the share is one minus itself.
    """
    a, b, *gold = map(np.asarray, (a, b, *gold))

    def difference(a: np.ndarray, b: np.ndarray, *gold: np.ndarray) -> float:
        return float(metric(a, *gold) - metric(b, *gold))

    parts = _resamples(len(a), resamples, seed)
    values = np.array([difference(*(array[rows] for array in (a, b, *gold))) for rows in parts])
    low, high = np.percentile(values, [2.5, 97.5])
    return PairedBootstrap(difference(a, b, *gold), float(low), float(high), float((np.sign(values) + 1).mean() / 2))


class Score(NamedTuple):
    """One figure in percent, its 95 % interval, and how far the first system is ahead of this one.

    Args:
        task, mode, metric, system: What was measured, how, by what measure, and of which encoder or control.
        score: The mean over the seeds.
        low, high: 95 % of bootstrap resamples of the scored rows; `None` for an average over tasks.
        rows: Scored rows or queries.
        seeds: Over how many seeds `score` is the mean.
        deviation: Standard deviation over the seeds; `None` of one seed.
        ahead: Score of the first system minus this one; `None` for the first system itself.
        ahead_low, ahead_high: 95 % of paired resamples of it.
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


def compare(
    task: str,
    mode: str,
    metric: str,
    function: Callable[..., float],
    by_system: Mapping[str, np.ndarray],
    *gold: np.ndarray,
    seed: int,
) -> list[Score]:
    """Scores of all systems on the same N rows, and how far the first one is ahead of each other one.

    The intervals are those of `probing.bootstrap_interval` and `probing.paired_bootstrap`.

    Args:
        task, mode, metric: Names for the scores.
        function: Of (N,) predictions and `gold`, up to 1; `np.mean` where the values are scores of rows themselves.
        by_system: (K, N) predictions, one row per seed. K may differ: what has no seed has one row.
        gold: Each (N,).
        seed: Of the bootstrap. It resamples rows, the same ones for all seeds and systems.

    Returns:
        One score per system, in their order.
    """
    resampled: list[list[float]] = []
    scores = []
    for system, predictions in by_system.items():
        columns = np.asarray(predictions).T
        by_seed = 100 * np.array([function(one, *gold) for one in columns.T])
        resampled.append([])

        # Every system is scored once on each resample: these figures give its interval and all differences.
        def mean_over_seeds(columns, *gold, kept=resampled[-1]):
            kept.append(float(np.mean([function(one, *gold) for one in columns.T])))
            return kept[-1]

        low, high = bootstrap_interval(mean_over_seeds, columns, *gold, seed=seed)
        ahead = [None] * 3
        if scores:
            interval = 100 * np.percentile(np.subtract(resampled[0], resampled[-1]), [2.5, 97.5])
            ahead = [scores[0].score - float(by_seed.mean()), *interval.tolist()]
        deviation = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
        figures = (float(by_seed.mean()), 100 * low, 100 * high, len(columns), len(by_seed), deviation)
        scores.append(Score(task, mode, metric, system, *figures, *ahead))
    return scores
