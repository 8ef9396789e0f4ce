"""What a probe is asked, as plain data: texts, perhaps pairs, labels, and the split on which a score counts.

Rules for all tasks:

- The scored split is `test` where it has labels, else `validation`. Nothing may be chosen by it.
- Labels that are all −1 are hidden: such a split is kept without labels; it can be predicted, never scored.
- Classes are numbered by the sorted labels of the training data (GLUE: by GLUE's own order).
- Training rows whose texts stand in the scored split are removed and counted; repeated training rows are kept.
- Empty texts are kept, and the encoder sees an empty text; a missing text (null) is an error.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from datasets import load_dataset

from text_jepa.cli import UsageError, nearest
from text_jepa.data.corpus import BUILDERS, find_files, reading, suffix_of


Kind = Literal["classification", "regression"]
METRICS_OF_KIND = {"classification": ("accuracy",), "regression": ("pearson", "spearmanr")}

# Of a set without a test file, every so many rows are held out.
HOLD_OUT_EVERY = 5


@dataclass(frozen=True, eq=False)
class Split:
    """N rows of a task.

    Args:
        texts: N texts.
        pairs: N second texts, of a task on pairs.
        labels: (N,) class numbers (int64) or scores (float64); `None` where they are hidden.
        ids: N ids of the source: its column `idx`, else the row numbers.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray | None
    ids: list

    def __len__(self):
        return len(self.texts)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """What tells rows apart: the text, or both texts."""
        return list(zip(self.texts, *[self.pairs] * (self.pairs is not None), strict=True))

    def select(self, rows: Sequence[int]) -> "Split":
        """These rows, in this order."""
        pick = [None if column is None else [column[i] for i in rows] for column in (self.texts, self.pairs, self.ids)]
        return Split(pick[0], pick[1], None if self.labels is None else self.labels[list(rows)], pick[2])


@dataclass(frozen=True, eq=False)
class Task:
    """A classification or regression of texts or pairs.

    Args:
        name: Of the task, for tables and files.
        kind: `"classification"` or `"regression"`.
        splits: `train`, and `validation` or `test` or both.
        scored: The split on which scores are reported; `train` is for everything else.
        metrics: Names as in GLUE, the first one leading.
        label_names: What the class numbers mean; `None` for scores.
        notes: What was done to the data, one line each, for the reader of the results.
    """

    name: str
    kind: Kind
    splits: dict[str, Split]
    scored: str
    metrics: tuple[str, ...]
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def train(self) -> Split:
        """The split for fitting and for every choice."""
        return self.splits["train"]

    @property
    def test(self) -> Split:
        """The scored split, whatever its name."""
        return self.splits[self.scored]

    @property
    def is_similarity(self) -> bool:
        """Whether cosines of pairs can be compared with the scores (STS)."""
        return self.kind == "regression" and self.train.pairs is not None


def existing_file(folder, stem, suffixes):
    return next((path for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()), None)


def load_task_file(
    train_file: str,
    test_file: str | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    kind: Kind | None = None,
    cache_dir: str | None = None,
) -> Task:
    """Loads a classification or regression set of texts or pairs from parquet, json, jsonl, csv or tsv files.

    Args:
        train_file: Path, folder or glob.
        test_file: The same for the scored rows. Without it, or where its labels are hidden, every fifth row of the
            training file in the order of the labels is held out, always the same ones.
        text_column: Column of the texts.
        pair_column: Column of the second texts, if any.
        label_column: Column of the labels.
        kind: Default: regression where the labels are floating-point numbers, else classification.
        cache_dir: Of the datasets library.

    Raises:
        UsageError: A file, column or label is missing or wrong.
    """
    patterns = {"train": (train_file, "task_file")} | ({"test": (test_file, "task_test_file")} if test_file else {})
    parts = {}
    for split, (pattern, flag) in patterns.items():
        files = [Path(path) for path in find_files([pattern], flag)]
        parts[split] = (read_table(files, cache_dir, label_column), pattern)
    train, what = parts["train"]
    if kind is None:
        _check_column(train, label_column, what, "label_column")
        kind = "regression" if str(train.features[label_column].dtype).startswith("float") else "classification"
    splits, names = encode_labels(parts, text_column, pair_column, label_column, kind)
    if splits.get("test") is None or splits["test"].labels is None:
        whole = splits["train"]
        if len(whole) < HOLD_OUT_EVERY:
            raise UsageError(f"{what}: {len(whole)} rows are too few to hold some out; name a test file")
        order = np.random.default_rng(0).permutation(len(whole))
        order = order[np.argsort(whole.labels[order], kind="stable")]
        held_out = np.zeros(len(whole), bool)
        held_out[order[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY]] = True
        splits["validation" if "test" in splits else "test"] = whole.select(np.flatnonzero(held_out))
        splits["train"] = whole.select(np.flatnonzero(~held_out))
    path = Path(train_file)
    return make_task(
        path.parent.name if path.stem == "train" else path.stem, kind, splits, METRICS_OF_KIND[kind], names
    )


def read_table(paths, cache_dir, label_column="label"):
    what = ", ".join(map(str, paths[:3]))
    if not any(path.stat().st_size for path in paths):
        raise UsageError(f"{what}: empty")
    builder, options = BUILDERS[suffix_of(paths[0])]
    if builder == "csv":
        # "NA" and "null" are words, and nothing is an empty text, but not an empty label.
        options = options | {"keep_default_na": False, "na_values": {label_column: ["", "nan", "NaN"]}}
    with reading(what):
        files = [glob.escape(str(path)) for path in paths]
        return load_dataset(builder, data_files=files, split="train", cache_dir=cache_dir, **options)


def _check_column(dataset, column, what, flag):
    if column not in dataset.column_names:
        columns = dataset.column_names
        raise UsageError(
            f"{what}: no column '{column}'{nearest(column, columns)} (its columns are {', '.join(columns)}); "
            f"name another with --{flag}" + " or write -1 for hidden labels" * (flag == "label_column")
        )


def _texts(dataset, column, what, flag):
    _check_column(dataset, column, what, flag)
    if dataset.features[column] not in (datasets.Value("string"), datasets.Value("large_string")):
        raise UsageError(
            f"{what}: column '{column}' holds {_dtype(dataset, column)}, not text; name another (--{flag})"
        )
    with reading(f"{what}, column '{column}'"):
        dataset.data.column(column).validate(full=True)  # json and parquet files may hold what is not UTF-8
        texts = list(dataset[column])
    _refuse(
        texts, lambda text: text is None, "no text", f"{what}, column '{column}'", "remove it or write an empty text"
    )
    return texts


def _dtype(dataset, column):
    feature = dataset.features[column]
    return getattr(feature, "dtype", None) or type(feature).__name__


def _refuse(values, is_wrong, problem, where, remedy):
    row = next((row for row, value in enumerate(values, 1) if is_wrong(value)), None)
    if row:
        raise UsageError(f"{where}, row {row}: {problem.format(values[row - 1])}; {remedy}")


def encode_labels(parts, text_column, pair_column, label_column, kind, label_names=None, bounds=None):
    """From datasets by split to `Split`s and the names of the classes, which the training labels define."""
    splits, classes = {}, None
    for split, (dataset, what) in parts.items():
        if not len(dataset):
            raise UsageError(f"{what}: no rows")
        texts = _texts(dataset, text_column, what, "text_column")
        pairs = _texts(dataset, pair_column, what, "pair_column") if pair_column else None
        _check_column(dataset, label_column, what, "label_column")
        where = f"{what}, column '{label_column}'"
        labels = _plain_labels(dataset, label_column, kind, where)
        if split != "train" and all(label == -1 for label in labels):
            labels = None
        elif kind == "regression":
            labels = np.array(labels, dtype=np.float64)
            if bounds:
                remedy = f"scores go from {bounds[0]} to {bounds[1]}"
                _refuse(labels, lambda score: not bounds[0] <= score <= bounds[1], "score {}", where, remedy)
        else:
            if classes is None:
                classes = list(label_names or ()) if isinstance(labels[0], str) else [*range(len(label_names or ()))]
                classes = classes or sorted(set(labels) - {-1})
                label_names = label_names or tuple(map(str, classes))
            labels = _class_numbers(labels, classes, where)
        ids = list(dataset["idx"]) if "idx" in dataset.column_names else list(range(len(texts)))
        splits[split] = Split(texts, pairs, labels, ids)
    return splits, label_names


def _class_numbers(labels, classes, where):
    _refuse(labels, lambda label: label == -1, "label -1 stands for a hidden label", where, "remove the row")
    numbers = {label: number for number, label in enumerate(classes)}
    shown = ", ".join(map(repr, classes[:10])) + ", …" * (len(classes) > 10)
    _refuse(labels, lambda label: label not in numbers, "unknown label {!r}", where, f"the labels are {shown}")
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def _plain_labels(dataset, column, kind, where):
    """Strings and integers of classes, floating-point numbers of scores; nothing missing, no NaN."""
    dtype = str(_dtype(dataset, column))
    if not re.match("u?int|float|bool|string|large_string", dtype):
        raise UsageError(f"{where}: holds {dtype}, not labels; name another column with --label_column")
    labels = list(dataset[column])
    remedy = "write a label or remove the row"
    _refuse(labels, lambda label: label is None or label == "", "no label", where, remedy)
    if kind == "regression":
        _refuse(labels, lambda label: as_number(label) is None, "'{}' is not a number", where, remedy)
        labels = [as_number(label) for label in labels]
    if isinstance(labels[0], float):
        _refuse(labels, lambda label: not np.isfinite(label), "label {}", where, remedy)
    if kind == "classification" and isinstance(labels[0], float):
        fraction = "label {} of a class is a fraction"
        _refuse(labels, lambda label: not label.is_integer(), fraction, where, "use regression for scores")
        labels = [int(label) for label in labels]
    return labels


def as_number(label):
    try:
        return float(label)
    except ValueError:
        return None


def make_task(name, kind, splits, metrics, label_names=None, notes=(), scored=None):
    """Settles the scored split, takes its rows out of the training split and checks what is left."""
    labelled = [split for split in ("test", "validation") if splits.get(split) and splits[split].labels is not None]
    if not labelled:
        raise UsageError(f"{name}: neither 'validation' nor 'test' has labels, so nothing can be scored; add one")
    if scored is not None and scored not in labelled:
        raise UsageError(f"{name}: split '{scored}' cannot be scored; these have labels: {', '.join(labelled)}")
    scored = scored or labelled[0]
    hidden = [split for split, part in splits.items() if part.labels is None]
    notes = [*notes, *(f"{name} {split}: hidden labels (-1); it can be predicted, not scored" for split in hidden)]
    train, seen = splits["train"], set(splits[scored].keys)
    rows = [row for row, key in enumerate(train.keys) if key not in seen]
    if len(rows) < len(train):
        removed = len(train) - len(rows)
        notes.append(f"{name}: {removed} of {len(train)} training rows removed, whose texts stand in {scored}")
        train = train.select(rows)
    if len(set(train.labels.tolist())) < 2:
        left = "no rows" if not len(train) else f"a single {'class' if kind == 'classification' else 'score'}"
        raise UsageError(f"{name}: the training split has {left}; at least 2 different labels are needed")
    return Task(name, kind, splits | {"train": train}, scored, tuple(metrics), label_names, tuple(notes))
