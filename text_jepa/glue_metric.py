"""GLUE's own metrics as an `evaluate.Metric` that is instantiated directly: `GlueMetric(config_name="cola")`.

`evaluate.load("glue", ...)` downloads code and runs it, and fails offline.

Macro average: GLUE's own convention (Wang et al., 2019). Where a task has two metrics their mean is its score, and the
average over tasks is unweighted (`glue_average`); WNLI is usually left out, and MNLI counts once. BERT and RoBERTa
report one metric per task instead, and not the same one; ours is in `HEADLINE`. Averages under different conventions,
or over different tasks, cannot be compared.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

import datasets
import evaluate
import numpy as np

from text_jepa.probing import pearson, spearman


METRICS = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "mnli": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
    "ax": ("matthews_correlation",),
}
"""The metrics of each task, named as in `evaluate`'s GLUE."""

HEADLINE = {task: "spearmanr" if task == "stsb" else metrics[-1] for task, metrics in METRICS.items()}
"""The one metric by which to choose a checkpoint: F1 for MRPC and QQP and Spearman for STS-B, as BERT reports them."""


def check_task(task: str) -> None:
    """Refuses an unknown task with the nearest valid name."""
    if task not in METRICS:
        near = get_close_matches(task, METRICS, n=1, cutoff=0)
        raise ValueError(f"no GLUE task is called {task!r}; did you mean {near[0]!r}?")


# Equal to scikit-learn's, but without its checks of the input, which a bootstrap would repeat a thousand times.


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal labels, between 0 and 1."""
    return float((predictions == references).mean())


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1, between 0 and 1; 0 where there is no such class on either side."""
    found, there = predictions == 1, references == 1
    return float(2 * (found & there).sum() / max(found.sum() + there.sum(), 1))


def matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews correlation of two or more classes, between -1 and 1; 0 where either side is constant.

    The correlation of the one-hot labels (Gorodkin, 2004).
    """
    classes = np.union1d(predictions, references)
    x, y = (np.asarray(labels)[:, None] == classes for labels in (predictions, references))
    x, y = x - x.mean(0), y - y.mean(0)
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else 0.0


FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews,
    "pearson": pearson,
    "spearmanr": spearman,
}
"""What the metrics compute, of predictions and references."""


def glue_scores(task: str, predictions: Iterable, references: Iterable) -> dict[str, float]:
    """The metrics of one task.

    Args:
        task: A key of `METRICS`.
        predictions: (N,) class ids, or similarities for STS-B.
        references: (N,) gold labels.

    Returns:
        From metric name to a number up to 1; F1 is that of class 1. A constant prediction has correlation 0.

    Raises:
        ValueError: The task is unknown, the labels are hidden (-1) or a prediction is not finite.
    """
    check_task(task)
    predictions, references = np.asarray(predictions), np.asarray(references)
    if (references == -1).any():
        raise ValueError(f"{task}: the labels are hidden (-1); this split cannot be scored here")
    if not np.isfinite(predictions).all():
        raise ValueError(f"{task}: a prediction is not finite")
    return {name: FUNCTIONS[name](predictions, references) for name in METRICS[task]}


def glue_average(scores: Mapping[str, Mapping[str, float]]) -> float:
    """The unweighted mean over tasks of the mean over each task's metrics.

    Args:
        scores: From task to the result of `glue_scores`.
    """
    return float(np.mean([np.mean(list(metrics.values())) for metrics in scores.values()]))


class GlueMetric(evaluate.Metric):
    """`glue_scores` with the interface of `evaluate`; `config_name` is the task."""

    def _info(self) -> evaluate.MetricInfo:
        check_task(self.config_name)
        dtype = "float64" if self.config_name == "stsb" else "int64"
        return evaluate.MetricInfo(
            description="The metrics of the General Language Understanding Evaluation benchmark.",
            citation="Wang et al. (2019), GLUE: A multi-task benchmark and analysis platform, ICLR.",
            inputs_description="`predictions` and `references`: class ids, or similarities for stsb.",
            features=datasets.Features({name: datasets.Value(dtype) for name in ("predictions", "references")}),
            reference_urls=["https://gluebenchmark.com"],
        )

    def _compute(self, predictions: Iterable, references: Iterable) -> dict[str, float]:
        return glue_scores(self.config_name, predictions, references)
