"""GLUE: its tasks in one table, their metrics, how they are loaded, and the files that its server takes."""

import csv
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import datasets
import evaluate
import numpy as np
from datasets import Dataset, load_dataset

import text_jepa.registration  # noqa: F401  for the Auto classes
from text_jepa.cli import UsageError, nearest
from text_jepa.data.reading import reading
from text_jepa.data.rows import Quoting
from text_jepa.names import local_path
from text_jepa.probe.predictors import pearson, spearman
from text_jepa.probe.tasks import (
    METRICS_OF_KIND,
    Task,
    encode_labels,
    existing_file,
    make_task,
    read_table,
)


# ---- the table ------------------------------------------------------------------------------------------------------


class GlueTask(NamedTuple):
    """What there is to know about one task.

    Args:
        submission_file: Name of the file for GLUE's server, without `.tsv`.
        columns: Names of the columns of texts, one or two.
        label_names: Names of the classes in GLUE's order; `None` for similarity scores.
        metrics: Names of the metrics as in `evaluate`. The last one chooses checkpoints and is drawn: F1 for MRPC and
            QQP and Spearman for STS-B, as BERT reports them.
        learning_rate: Learning rate of fine-tuning: that of RoBERTa, see `finetuning.RECIPE`.
        batch_size: Batch size of fine-tuning.
        submits_numbers: Whether the server expects class numbers instead of names.
        part: Suffix of the names of the evaluation splits on the Hub; MNLI has two of each.
    """

    submission_file: str
    columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...] = ("accuracy",)
    learning_rate: str = "1e-5"
    batch_size: str = "32"
    submits_numbers: bool = False
    part: str = ""


GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        submission_file="CoLA",
        columns=("sentence",),
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        batch_size="16",
        submits_numbers=True,
    ),
    "sst2": GlueTask(
        submission_file="SST-2",
        columns=("sentence",),
        label_names=("negative", "positive"),
        submits_numbers=True,
    ),
    "mrpc": GlueTask(
        submission_file="MRPC",
        columns=("sentence1", "sentence2"),
        label_names=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        batch_size="16",
        submits_numbers=True,
    ),
    "stsb": GlueTask(
        submission_file="STS-B",
        columns=("sentence1", "sentence2"),
        label_names=None,
        metrics=("pearson", "spearmanr"),
        learning_rate="2e-5",
        batch_size="16",
    ),
    "qqp": GlueTask(
        submission_file="QQP",
        columns=("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        submits_numbers=True,
    ),
    "mnli": GlueTask(
        submission_file="MNLI-m",
        columns=("premise", "hypothesis"),
        label_names=("entailment", "neutral", "contradiction"),
        part="_matched",
    ),
    "mnli-mm": GlueTask(
        submission_file="MNLI-mm",
        columns=("premise", "hypothesis"),
        label_names=("entailment", "neutral", "contradiction"),
        part="_mismatched",
    ),
    "qnli": GlueTask(
        submission_file="QNLI",
        columns=("question", "sentence"),
        label_names=("entailment", "not_entailment"),
    ),
    "rte": GlueTask(
        submission_file="RTE",
        columns=("sentence1", "sentence2"),
        label_names=("entailment", "not_entailment"),
        learning_rate="2e-5",
        batch_size="16",
    ),
    "wnli": GlueTask(
        submission_file="WNLI",
        columns=("sentence1", "sentence2"),
        label_names=("not_entailment", "entailment"),
        learning_rate="2e-5",
        batch_size="16",
        submits_numbers=True,
    ),
}
GLUE_TASKS = tuple(GLUE)

_STSB_RANGE = (0, 5)
_SPLITS = ("train", "validation", "test")
_SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".tsv")


def base_name(name: str) -> str:
    """The task that a subset such as `qqp_mini` was cut from; other names as they are."""
    return name.removesuffix("_mini")


# ---- metrics --------------------------------------------------------------------------------------------------------


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal labels, between 0 and 1."""
    return float((predictions == references).mean())


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1, between 0 and 1; 0 if neither side contains it."""
    predicted = predictions == 1
    actual = references == 1
    true_positives = (predicted & actual).sum()
    positives = predicted.sum() + actual.sum()
    return float(2 * true_positives / max(positives, 1))


def matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews correlation of two or more classes, between -1 and 1; 0 if either side is constant.

    Computed as the correlation of the one-hot labels (Gorodkin, 2004).
    """
    classes = np.union1d(predictions, references)
    x = np.asarray(predictions)[:, None] == classes
    y = np.asarray(references)[:, None] == classes
    x = x - x.mean(0)
    y = y - y.mean(0)
    covariance = (x * y).sum()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    if scale == 0:
        return 0.0
    return float(covariance) / scale


FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews,
    "pearson": pearson,
    "spearmanr": spearman,
}
"""Functions of predictions and references, by the name of the metric."""

METRICS: dict[str, tuple[str, ...]] = {
    **{name: task.metrics for name, task in GLUE.items()},
    "mnli_matched": GLUE["mnli"].metrics,
    "mnli_mismatched": GLUE["mnli-mm"].metrics,
    "ax": ("matthews_correlation",),
    **METRICS_OF_KIND,
}
"""Names of the metrics by configuration of [`GlueMetric`]: those of `evaluate`'s GLUE, and kinds for other tasks."""


class GlueMetric(evaluate.Metric):
    """The metrics of a task with the interface of `evaluate`, without a download.

    `evaluate.combine` and the `compute_metrics` of a `Trainer` take it. Scores are fractions: 1 is perfect, F1 is that
    of class 1, and the correlation of a constant prediction is 0.

    Args:
        config_name: A task of GLUE, or `classification` or `regression` for any other task.

    Raises:
        ValueError: The task is unknown, labels are hidden (-1) or a prediction is not finite.

    Example:
        `GlueMetric("mrpc").compute(predictions=[1, 1, 0], references=[1, 0, 0])["f1"]`
    """

    @property
    def takes_scores(self) -> bool:
        """Whether predictions and references are real numbers instead of class ids."""
        return self.config_name in ("stsb", "regression")

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            (near,) = get_close_matches(str(self.config_name), METRICS, n=1, cutoff=0)
            raise ValueError(f"no GLUE task is called {self.config_name!r}; did you mean {near!r}?")
        column = datasets.Value("float64" if self.takes_scores else "int64")
        return evaluate.MetricInfo(
            description="The metrics of the General Language Understanding Evaluation benchmark.",
            citation="Wang et al. (2019), GLUE: A multi-task benchmark and analysis platform, ICLR.",
            inputs_description="`predictions` and `references`: class ids, or scores for stsb and regression.",
            features=datasets.Features({"predictions": column, "references": column}),
            reference_urls=["https://gluebenchmark.com"],
        )

    def _compute(self, predictions: Iterable, references: Iterable) -> dict[str, float]:
        predictions = np.asarray(predictions)
        references = np.asarray(references)
        is_hidden = references == -1
        # A single -1 may be a score, but is not a class.
        if is_hidden.all() or (is_hidden.any() and not self.takes_scores):
            raise ValueError(f"{self.config_name}: the labels are hidden (-1); this split cannot be scored here")
        if not np.isfinite(predictions).all():
            raise ValueError(f"{self.config_name}: a prediction is not finite")
        return {name: FUNCTIONS[name](predictions, references) for name in METRICS[self.config_name]}


# ---- loading --------------------------------------------------------------------------------------------------------


def load_glue(
    name: str,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    scored: str | None = None,
    quoting: Quoting = "checked",
) -> Task:
    """Loads a task of GLUE.

    Args:
        name: One of `GLUE_TASKS`; `mnli-mm` is MNLI scored on the mismatched part. With `data_dir` also `qqp_mini`.
        data_dir: Folder of `<task>/{train,validation,test}.{parquet,json,jsonl,csv,tsv}`. If it has no `<task>`,
            `<task>_mini` is loaded, and the name of the task says so. Defaults to the Hub.
        cache_dir: Cache of the datasets library.
        scored: The split to score. Defaults to `test` if it has labels, else `validation`.
        quoting: What a quote is in csv and tsv files.

    Raises:
        UsageError: The name is unknown, or a file, split, column or label is missing or wrong.
    """
    base = base_name(name) if data_dir else name
    if base not in GLUE:
        raise UsageError(f"no task '{name}'{nearest(base, GLUE_TASKS)} (GLUE has {', '.join(GLUE_TASKS)})")
    notes = []
    if data_dir:
        name, parts = _read_folder(name, data_dir, cache_dir, quoting)
        place = f"--data_dir {data_dir}: {name}"
        if name.endswith("_mini"):
            notes.append(f"{name} is a subset of GLUE's {base}; its scores cannot be compared with published ones")
    else:
        parts = _read_hub(base, cache_dir)
        place = f"nyu-mll/glue {base}"
    if "train" not in parts:
        available = ", ".join(parts) or "none"
        raise UsageError(f"{place} has no split 'train' (there is {available}); add its file")

    glue = GLUE[base]
    text_column = glue.columns[0]
    pair_column = glue.columns[1] if len(glue.columns) == 2 else None
    is_similarity = glue.label_names is None
    kind = "regression" if is_similarity else "classification"
    splits, label_names = encode_labels(
        parts,
        text_column,
        pair_column,
        "label",
        kind,
        label_names=glue.label_names,
        bounds=_STSB_RANGE if is_similarity else None,
    )
    return make_task(
        name,
        kind,
        splits,
        glue.metrics,
        label_names=label_names,
        notes=notes,
        scored=scored,
    )


def _read_hub(base: str, cache_dir: str | None) -> dict[str, tuple[Dataset, str]]:
    """Data set and its name in messages, by split."""
    with reading(f"nyu-mll/glue {base} from the Hub (--data_dir names a local folder)"):
        hub = load_dataset("nyu-mll/glue", base.removesuffix("-mm"), cache_dir=cache_dir)
    parts = {}
    for split in _SPLITS:
        for source in _names_of_split(base, split):
            if source in hub and split not in parts:
                parts[split] = (hub[source], f"nyu-mll/glue {base} {source}")
    return parts


def _read_folder(
    name: str,
    data_dir: str,
    cache_dir: str | None,
    quoting: Quoting,
) -> tuple[str, dict[str, tuple[Dataset, Path]]]:
    """The task's name, with `_mini` if it is a subset; and data set and file by split."""
    folder, found_name = _task_folder(name, data_dir)
    parts = {}
    for split in _SPLITS:
        for source in _names_of_split(base_name(name), split):
            path = existing_file(folder, source, _SUFFIXES)
            if path is not None and split not in parts:
                parts[split] = (read_table([path], cache_dir, quoting=quoting), path)
    return found_name, parts


def _task_folder(name: str, data_dir: str) -> tuple[Path, str]:
    """The folder of a task and the task's name; a subset is taken if the whole task is not there."""
    root = local_path(data_dir)
    base = base_name(name)
    whole = base.removesuffix("-mm")
    if not name.endswith("_mini") and (root / whole).is_dir():
        return root / whole, base
    subset = name if name.endswith("_mini") else f"{whole}_mini"
    if (root / subset).is_dir():
        return root / subset, subset
    folders = sorted(path.name for path in root.glob("*") if path.is_dir())
    available = ", ".join(folders) or "nothing"
    raise UsageError(
        f"--data_dir {data_dir}: no folder '{whole}' (there is {available}); leave it out to download from the Hub"
    )


def _names_of_split(base: str, split: str) -> tuple[str, ...]:
    """Names under which a split may be found, the preferred one first; MNLI has two of each."""
    part = GLUE[base].part
    if split == "train" or not part:
        return (split,)
    if base == "mnli-mm":
        return (f"{split}{part}",)
    return (f"{split}{part}", split)


# ---- submission -----------------------------------------------------------------------------------------------------


def write_submission(
    folder: str | Path,
    task: Task,
    split: str,
    predictions: np.ndarray,
) -> Path:
    """Writes predictions in the format of GLUE's server: a tab-separated file with the columns index and prediction.

    Labels are written by name; CoLA, SST-2, MRPC, QQP and WNLI by number, as the server expects. Scores of STS-B are
    clipped to 0 to 5.

    Args:
        folder: Folder of the file; created if missing.
        task: The task. One of GLUE gives a file of GLUE's name, any other `<task>.tsv`.
        split: Name of the predicted split.
        predictions: (N,) class numbers or scores, in the order of the split.

    Returns:
        The file.
    """
    glue = GLUE.get(task.name)
    path = Path(folder) / f"{glue.submission_file if glue else task.name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = _submission_cells(task, predictions)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "prediction"])
        writer.writerows(zip(task.splits[split].ids, cells, strict=True))
    return path


def _submission_cells(task: Task, predictions: np.ndarray) -> list[str]:
    """Predictions as the server expects them."""
    if task.name == "stsb":
        return [f"{score:.3f}" for score in np.clip(predictions, *_STSB_RANGE)]
    if task.kind == "regression":
        return [f"{score:.6g}" for score in predictions]
    if task.name in GLUE and GLUE[task.name].submits_numbers:
        return [str(int(number)) for number in predictions]
    return [task.label_names[number] for number in predictions]
