"""GLUE: where its files lie, its columns and labels, its metrics, and the file that its server takes."""

import csv
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import datasets
import evaluate
import numpy as np
from datasets import load_dataset

import text_jepa  # noqa: F401  registers our model with the Auto classes
from text_jepa.cli import UsageError, nearest
from text_jepa.data.corpus import reading
from text_jepa.probe.predictors import pearson, spearman
from text_jepa.probe.tasks import Task, encode_labels, existing_file, make_task, read_table


_ENTAILMENT = ("entailment", "not_entailment")
_STSB_RANGE = (0, 5)
SUBMISSION_FILES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI-m",
    "mnli-mm": "MNLI-mm",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}
_BY_NUMBER = ("cola", "sst2", "mrpc", "qqp", "wnli")
RATE_AND_BATCH = {
    "cola": ("1e-5", "16"),
    "mnli": ("1e-5", "32"),
    "mnli-mm": ("1e-5", "32"),
    "mrpc": ("1e-5", "16"),
    "qnli": ("1e-5", "32"),
    "qqp": ("1e-5", "32"),
    "rte": ("2e-5", "16"),
    "sst2": ("1e-5", "32"),
    "stsb": ("2e-5", "16"),
}
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


class _Glue(NamedTuple):
    columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...] = ("accuracy",)


def load_glue(name: str, data_dir: str | None = None, cache_dir: str | None = None, scored: str | None = None) -> Task:
    """Loads a task of GLUE.

    Args:
        name: One of `GLUE_TASKS`; `mnli-mm` is MNLI scored on the mismatched part. With `data_dir` also `qqp_mini`.
        data_dir: Folder of `<task>/{train,validation,test}.{parquet,json,jsonl,csv,tsv}`. Where it has no `<task>`,
            its `<task>_mini` is taken, and the name of the task says so. Default: the Hub.
        cache_dir: Of the datasets library.
        scored: The split to score. Default: `test` where it has labels, else `validation`.

    Raises:
        UsageError: An unknown name, or a file, split, column or label that is missing or wrong.
    """
    base = name.removesuffix("_mini") if data_dir else name
    if base not in _GLUE:
        raise UsageError(f"no task '{name}'{nearest(base, GLUE_TASKS)} (GLUE has {', '.join(GLUE_TASKS)})")
    glue = _GLUE[base]
    parts, notes = {}, []
    if data_dir:
        name, files = _glue_files(name, base, data_dir)
        if name.endswith("_mini"):
            notes.append(f"{name} is a cut of GLUE's {base}; its scores cannot be compared with published ones")
        parts = {split: (read_table([path], cache_dir), path) for split, path in files.items()}
    else:
        what = f"nyu-mll/glue {base} from the Hub (--data_dir names a local folder)"
        with reading(what):
            hub = load_dataset("nyu-mll/glue", base.removesuffix("-mm"), cache_dir=cache_dir)
        for split in ("train", "validation", "test"):
            found = next((source for source in _glue_sources(base, split) if source in hub), None)
            parts |= {split: (hub[found], f"nyu-mll/glue {base} {found}")} if found else {}
    if "train" not in parts:
        place = f"--data_dir {data_dir}: {name}" if data_dir else f"nyu-mll/glue {base}"
        raise UsageError(f"{place} has no split 'train' (there is {', '.join(parts) or 'none'}); add its file")
    kind = "classification" if glue.label_names else "regression"
    columns = (*glue.columns, None)[:2]
    splits, names = encode_labels(
        parts, *columns, "label", kind, glue.label_names, None if glue.label_names else _STSB_RANGE
    )
    return make_task(name, kind, splits, glue.metrics, names, notes, scored)


def _glue_sources(base, split):
    """Names under which a split is found; MNLI has two of each."""
    if split == "train" or not base.startswith("mnli"):
        return (split,)
    return (f"{split}_mismatched",) if base == "mnli-mm" else (f"{split}_matched", split)


def _glue_files(name, base, data_dir):
    folder = Path(data_dir).expanduser()
    whole = base.removesuffix("-mm")
    candidates = [name] if name.endswith("_mini") else [whole, f"{whole}_mini"]
    task = next((candidate for candidate in candidates if (folder / candidate).is_dir()), None)
    if task is None:
        there = ", ".join(sorted(path.name for path in folder.glob("*") if path.is_dir())) or "nothing"
        raise UsageError(f"--data_dir {data_dir}: no folder '{whole}' (there is {there}); without it the Hub is asked")
    files = {}
    for split in ("train", "validation", "test"):
        for source in _glue_sources(base, split):
            files.setdefault(
                split, existing_file(folder / task, source, (".parquet", ".json", ".jsonl", ".csv", ".tsv"))
            )
            if files[split] is None:
                del files[split]
    return base if task == whole else task, files


def write_submission(folder: str | Path, task: Task, split: str, predictions: np.ndarray) -> Path:
    """Writes predictions in the format of GLUE's server: a tab-separated file with the columns index and prediction.

    Labels are written by name, for CoLA, SST-2, MRPC, QQP and WNLI by number, as the server expects; scores of STS-B
    are cut to 0 to 5.

    Args:
        folder: Is created.
        task: One of GLUE gives a file of GLUE's name, any other `<task>.tsv`.
        split: Which of its splits.
        predictions: (N,) class numbers or scores, in the order of the split.

    Returns:
        The file.
    """
    if task.name == "stsb":
        cells = [f"{score:.3f}" for score in np.clip(predictions, 0, 5)]
    elif task.kind == "regression":
        cells = [f"{score:.6g}" for score in predictions]
    elif task.name in _BY_NUMBER:
        cells = [int(number) for number in predictions]
    else:
        cells = [task.label_names[number] for number in predictions]
    path = Path(folder) / f"{SUBMISSION_FILES.get(task.name, task.name)}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "prediction"])
        writer.writerows(zip(task.splits[split].ids, cells, strict=True))
    return path


_MNLI = _Glue(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"))
_GLUE = {
    "cola": _Glue(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "sst2": _Glue(("sentence",), ("negative", "positive")),
    "mrpc": _Glue(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": _Glue(("sentence1", "sentence2"), None, ("pearson", "spearmanr")),
    "qqp": _Glue(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": _MNLI,
    "mnli-mm": _MNLI,
    "qnli": _Glue(("question", "sentence"), _ENTAILMENT),
    "rte": _Glue(("sentence1", "sentence2"), _ENTAILMENT),
    "wnli": _Glue(("sentence1", "sentence2"), _ENTAILMENT[::-1]),
}
GLUE_TASKS = tuple(_GLUE)
