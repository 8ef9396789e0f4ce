"""Tasks of a probe as plain data: texts or pairs of texts, labels, and the split that is scored.

Rules for all tasks:

- The scored split is `test` if it has labels, else `validation`. Nothing may be selected on it.
- Labels that are all −1 are hidden: such a split is kept without labels; it can be predicted but not scored.
- Classes are numbered by the sorted labels of the training data (GLUE: in GLUE's own order).
- Training rows whose texts also occur in the scored split are removed and counted; repeated training rows are kept.
- GLUE's empty texts are kept, and the encoder sees an empty text; a missing text (null) is an error. Rows of a
  `--task_file` without a text are left out and counted.
"""

import csv
import glob
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets import Dataset, load_dataset

from text_jepa.cli import UsageError, nearest
from text_jepa.data.columns import has_column, pick, root_of, wrong_column
from text_jepa.data.compressed import FileError, suffix_of
from text_jepa.data.files import BUILDERS, check_table
from text_jepa.data.folders import find_files
from text_jepa.data.reading import check_rows, reading
from text_jepa.data.rows import Quoting, has_separator_line, json_rows


Kind = Literal["classification", "regression"]
METRICS_OF_KIND = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearmanr"),
}

# One row in this many is held out if there is no test file.
HOLD_OUT_EVERY = 5

# Training rows of a class: one for each fold in which a penalty is chosen.
MIN_ROWS_OF_CLASS = 3

_LABEL_TYPES = re.compile("u?int|float|bool|string|large_string")
_REMEDY_FOR_LABELS = "write one label in each row, all text or all numbers, or name another column with --label_column"
_NUMBER_WITH_COMMA = re.compile(r"[+-]?\d+,\d+")


# ---- types ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """N rows of a task.

    Args:
        texts: N texts.
        pairs: N second texts, if the task is about pairs.
        labels: (N,) class numbers (int64) or scores (float64); `None` if they are hidden.
        ids: N ids of the source: its column `idx`, else the row numbers.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray | None
    ids: list

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The text of each row, or both texts: what tells rows apart."""
        if self.pairs is None:
            return [(text,) for text in self.texts]
        return list(zip(self.texts, self.pairs, strict=True))

    @property
    def distinct_texts(self) -> set[str]:
        """All texts, first and second ones."""
        texts = set(self.texts)
        if self.pairs is not None:
            texts.update(self.pairs)
        return texts

    def select(self, rows: Sequence[int]) -> "Split":
        """These rows, in this order."""
        texts = [self.texts[row] for row in rows]
        pairs = None
        if self.pairs is not None:
            pairs = [self.pairs[row] for row in rows]
        labels = None
        if self.labels is not None:
            labels = self.labels[list(rows)]
        ids = [self.ids[row] for row in rows]
        return Split(texts, pairs, labels, ids)


@dataclass(frozen=True, eq=False)
class Task:
    """A classification or regression of texts or pairs of texts.

    Args:
        name: Name of the task in tables and files.
        kind: `"classification"` or `"regression"`.
        splits: `train`, and `validation` or `test` or both.
        scored: The split on which scores are reported; `train` is for everything else.
        metrics: Names as in GLUE, the first one leading.
        label_names: Names of the classes; `None` for scores.
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


def make_task(
    name: str,
    kind: Kind,
    splits: Mapping[str, Split],
    metrics: Sequence[str],
    label_names: tuple[str, ...] | None = None,
    notes: Sequence[str] = (),
    scored: str | None = None,
) -> Task:
    """Makes a task of its splits: selects the scored one and removes its texts from the training split.

    Args:
        name: Name of the task.
        kind: `"classification"` or `"regression"`.
        splits: The splits, `train` among them.
        metrics: Names as in GLUE, the first one leading.
        label_names: Names of the classes.
        notes: What was done to the data so far.
        scored: The split to score. Defaults to `test` if it has labels, else `validation`.

    Raises:
        UsageError: No split, or not this one, can be scored; or the training split has a single label.
    """
    labelled = []
    for split in ("test", "validation"):
        if split in splits and splits[split].labels is not None and len(splits[split]):
            labelled.append(split)
    if not labelled:
        raise UsageError(f"{name}: neither 'validation' nor 'test' has labels, so nothing can be scored; add one")
    if scored is not None and scored not in labelled:
        raise UsageError(f"{name}: split '{scored}' cannot be scored; these have labels: {', '.join(labelled)}")
    scored = scored or labelled[0]
    notes = list(notes)
    for split, part in splits.items():
        if part.labels is None:
            notes.append(f"{name} {split}: hidden labels (-1); it can be predicted, not scored")

    train = splits["train"]
    scored_keys = set(splits[scored].keys)
    rows = [row for row, key in enumerate(train.keys) if key not in scored_keys]
    removed = len(train) - len(rows)
    if not rows:
        raise UsageError(
            f"{name}: the texts of all {len(train)} training rows also occur in {scored}, so there is nothing to "
            "learn from; add other texts"
        )
    if removed:
        notes.append(
            f"{name}: {removed} of {len(train)} training rows removed, because their texts also occur in {scored}"
        )
        train = train.select(rows)

    if len(set(train.labels.tolist())) < 2:
        single = "a single class" if kind == "classification" else "a single score"
        after = f" without the {removed} rows whose texts also occur in {scored}" if removed else ""
        raise UsageError(f"{name}: the training split has {single}{after}; at least 2 different labels are needed")
    return Task(
        name,
        kind,
        {**splits, "train": train},
        scored,
        tuple(metrics),
        label_names,
        tuple(notes),
    )


def hold_out(
    labels: np.ndarray,
    every: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out one row in `every`, with the classes or the range of scores in equal shares.

    Args:
        labels: (N,) class numbers or scores.
        every: One row in this many is held out.
        seed: Seed of the choice among rows with equal labels.

    Returns:
        Row numbers that stay and row numbers that are held out, each in ascending order, together all N.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_label = np.argsort(labels[order], kind="stable")
    order = order[by_label]
    is_held_out = np.zeros(len(labels), bool)
    is_held_out[order[every // 2 :: every]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


# ---- files ----------------------------------------------------------------------------------------------------------


def load_task_file(
    train_file: str,
    test_file: str | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    kind: Kind | None = None,
    cache_dir: str | None = None,
    quoting: Quoting = "checked",
) -> Task:
    """Loads a classification or regression set of texts or pairs from parquet, json, jsonl, csv or tsv files.

    Args:
        train_file: Path, folder or glob.
        test_file: The same for the scored rows. Without it, or if its labels are hidden, every fifth row of the
            training file in the order of the labels is held out, always the same ones.
        text_column: Column of the texts, or `a.b` for a field within a column. The strings of a list are joined. Rows
            without a text are left out, with a note.
        pair_column: Column of the second texts, if any.
        label_column: Column of the labels.
        kind: Defaults to regression if the labels are floating-point numbers, else classification. Whole numbers with
            a point are classes, unless they are of pairs.
        cache_dir: Cache of the datasets library.
        quoting: What a quote is in csv and tsv files.

    Raises:
        UsageError: A file, column or label is missing or wrong.
    """
    train_paths = [Path(path) for path in find_files([train_file], "task_file")]
    train = read_table(train_paths, cache_dir, label_column, quoting)
    parts = {"train": (train, train_file)}
    if test_file:
        test_paths = [Path(path) for path in find_files([test_file], "task_test_file")]
        parts["test"] = (read_table(test_paths, cache_dir, label_column, quoting), test_file)

    notes = []
    if kind is None:
        _check_column(train, label_column, train_file, "label_column")
        kind = "classification"
        if _has_floats(train, label_column):
            if pair_column or not _are_whole(train, label_column):
                kind = "regression"
            else:
                notes.append(f"{train_file}: labels are whole numbers, and taken as classes; scores have fractions")
    splits, label_names = encode_labels(
        parts,
        text_column,
        pair_column,
        label_column,
        kind,
        missing_are_empty=True,
    )
    for part, split in splits.items():
        if split.labels is not None:  # hidden rows are only predicted, all of them
            _, file = parts[part]
            splits[part] = _with_text(split, file, text_column, notes)
    is_held_out = "test" not in splits or splits["test"].labels is None
    whole = splits["train"]
    if label_names is not None:
        fewest = MIN_ROWS_OF_CLASS + is_held_out
        _check_sizes(whole.labels, label_names, fewest, f"{train_file}, column '{label_column}'")
        for first, second in _labels_alike(label_names):
            notes.append(
                f"{train_file}: the labels '{first}' and '{second}' differ only in case or blanks, and are two "
                "classes; spell them the same if they are one"
            )
    if is_held_out:
        if len(whole) < HOLD_OUT_EVERY:
            raise UsageError(f"{train_file}: {len(whole)} rows are too few to hold some out; name a test file")
        if len(set(whole.keys)) < 2:
            raise UsageError(
                f"{train_file}, column '{text_column}': all rows have the same text; name another with --text_column"
            )
        rows, held_out = hold_out(whole.labels, HOLD_OUT_EVERY, seed=0)
        scored = "validation" if "test" in splits else "test"
        splits[scored] = whole.select(held_out)
        splits["train"] = whole.select(rows)

    path = Path(train_file)
    name = path.parent.name if path.stem == "train" else path.stem
    return make_task(
        name,
        kind,
        splits,
        METRICS_OF_KIND[kind],
        label_names=label_names,
        notes=notes,
    )


def _with_text(
    split: Split,
    file: str,
    text_column: str,
    notes: list[str],
) -> Split:
    """The rows in which no text is blank; adds a note on the others.

    Raises:
        UsageError: There are none.
    """
    is_complete = [all(text.strip() for text in key) for key in split.keys]
    rows = [row for row, complete in enumerate(is_complete) if complete]
    if not rows:
        raise UsageError(f"{file}, column '{text_column}': no row has a text; name another with --text_column")
    left_out = len(split) - len(rows)
    if left_out:
        first = is_complete.index(False) + 1
        notes.append(f"{file}: {left_out} of {len(split)} rows have no text, row {first} the first, and are left out")
    return split.select(rows)


def existing_file(
    folder: Path,
    stem: str,
    suffixes: Iterable[str],
) -> Path | None:
    """The first file `stem` + suffix that exists."""
    for suffix in suffixes:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None


def read_table(
    paths: Sequence[Path],
    cache_dir: str | None,
    label_column: str = "label",
    quoting: Quoting = "checked",
) -> Dataset:
    """Reads files of one format as one data set.

    Args:
        paths: The files.
        cache_dir: Cache of the datasets library.
        label_column: Column of the labels, which may be missing, or `a.b` for a field, which becomes a column.
        quoting: What a quote is in csv and tsv files, which are read as files of texts are.

    Raises:
        UsageError: They are empty or cannot be read, quotes in them are something else than said, or labels are of
            several kinds.
    """
    what = ", ".join(str(path) for path in paths[:3])
    if not any(path.stat().st_size for path in paths):
        raise UsageError(f"{what}: empty")
    builder, options = BUILDERS[suffix_of(paths[0])]
    if builder == "csv":
        # "NA" and "null" are words, and nothing is an empty text, but not an empty label.
        missing_labels = {label_column: ["", "nan", "NaN"]}
        options = {**options, "keep_default_na": False, "na_values": missing_labels, **_read_alike(paths, quoting)}
    check_rows(paths, "")
    with reading(what):
        dataset = load_dataset(
            builder,
            data_files=[glob.escape(str(path)) for path in paths],
            split="train",
            cache_dir=cache_dir,
            **options,
        )
    if builder == "json":
        _check_kinds_of_labels(dataset, paths, label_column)
    return _with_field(dataset, label_column)


def _read_alike(paths: Sequence[Path], quoting: Quoting) -> dict[str, Any]:
    """Options with which the datasets library reads csv files as files of texts are read."""
    try:
        forms = {(check_table(str(path), quoting), has_separator_line(str(path))) for path in paths}
    except FileError as error:
        raise UsageError(str(error)) from error
    if len(forms) > 1:
        raise UsageError(
            f"{paths[0]} and the files beside it: they use different delimiters, or only some of them have a line "
            "sep=; use one format for all"
        )
    ((delimiter, has_separator),) = forms
    return {
        "sep": delimiter,
        "quoting": csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        "skiprows": int(has_separator),
    }


def _check_kinds_of_labels(
    dataset: Dataset,
    paths: Sequence[Path],
    column: str,
) -> None:
    """Raises an error for the first row of JSON whose label is of another kind than those before it.

    This reads the files again, because the datasets library converts labels of several kinds to a single one.
    """
    root = root_of(column, dataset.column_names)
    if root not in dataset.column_names or isinstance(dataset.features[root], datasets.Value):
        return
    known = None
    for path in paths:
        for line, row in json_rows(str(path), {}):
            label = _field_of(row, column)
            if label is None:
                continue
            kind = _kind_in_words(label)
            known = known or kind
            if kind != known:
                held = " and ".join(sorted([known, kind]))
                raise UsageError(
                    f"{path}, column '{column}': holds {held}, not labels ({json.dumps(label)} in line {line} is the "
                    f"first that differs); {_REMEDY_FOR_LABELS}"
                )


def _with_field(dataset: Dataset, column: str) -> Dataset:
    """The data set, with a column for a field within a column (`a.b`), if there is such a field."""
    root = root_of(column, dataset.column_names)
    if column in dataset.column_names or root not in dataset.column_names:
        return dataset
    values = [_field_of(row, column) for row in dataset.select_columns([root])]
    if all(value is None for value in values):
        return dataset
    return dataset.add_column(column, values)


def _field_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column or of a field within it; `None` if there is none."""
    if column in row:
        return row[column]
    value = row
    for field in column.split("."):
        value = value.get(field) if isinstance(value, Mapping) else None
    return value


# ---- columns --------------------------------------------------------------------------------------------------------


def encode_labels(
    parts: Mapping[str, tuple[Dataset, Any]],
    text_column: str,
    pair_column: str | None,
    label_column: str,
    kind: Kind,
    label_names: tuple[str, ...] | None = None,
    bounds: tuple[float, float] | None = None,
    missing_are_empty: bool = False,
) -> tuple[dict[str, Split], tuple[str, ...] | None]:
    """Turns data sets into splits, with classes as numbers.

    Args:
        parts: Data set and its name in messages, by split; `train` first, whose labels define the classes.
        text_column: Column of the texts.
        pair_column: Column of the second texts, if any.
        label_column: Column of the labels.
        kind: `"classification"` or `"regression"`.
        label_names: Names of the classes in their order. Defaults to the sorted labels of the training data.
        bounds: Least and greatest valid score.
        missing_are_empty: Whether a missing text is an empty one. Default: it is an error.

    Returns:
        The splits, and the names of the classes (`None` for a regression).

    Raises:
        UsageError: A column or label is missing or wrong.
    """
    splits = {}
    classes = None
    for split, (dataset, what) in parts.items():
        if not len(dataset):
            raise UsageError(f"{what}: no rows")
        texts = _texts(dataset, text_column, what, "text", missing_are_empty)
        pairs = None
        if pair_column:
            pairs = _texts(dataset, pair_column, what, "pair", missing_are_empty)

        _check_column(dataset, label_column, what, "label_column")
        where = f"{what}, column '{label_column}'"
        labels = _plain_labels(dataset, label_column, kind, where)
        is_hidden = split != "train" and all(label == -1 for label in labels)
        if is_hidden:
            encoded = None
        elif kind == "regression":
            encoded = _scores(labels, bounds, where)
        else:
            if classes is None:
                classes = _classes(labels, label_names)
            encoded = _class_numbers(labels, classes, where)

        ids = list(dataset["idx"]) if "idx" in dataset.column_names else list(range(len(texts)))
        splits[split] = Split(texts, pairs, encoded, ids)
    if classes is not None and not label_names:
        label_names = tuple(str(label) for label in classes)
    return splits, label_names


def _check_column(
    dataset: Dataset,
    column: str,
    what: Any,
    flag: str,
) -> None:
    columns = dataset.column_names
    if column in columns:
        return
    remedy = f"name another with --{flag}"
    if flag == "label_column":
        remedy += " or write -1 for hidden labels"
    raise UsageError(
        f"{what}: no column '{column}'{nearest(column, columns)} (its columns are {', '.join(columns)}); {remedy}"
    )


def _texts(
    dataset: Dataset,
    column: str,
    what: Any,
    name: str,
    missing_are_empty: bool,
) -> list[str]:
    """The texts of a column, or of a field within one; `name` is that of the flag without `_column`."""
    where = f"{what}, column '{column}'"
    feature = dataset.features.get(column)
    if isinstance(feature, datasets.Value):
        if feature.dtype not in ("string", "large_string"):
            raise UsageError(f"{what}: {wrong_column(column, feature.dtype, name)}")
        with reading(where):
            # json and parquet files may hold what is not UTF-8
            dataset.data.column(column).validate(full=True)
            texts = list(dataset[column])
    else:
        texts = _picked_texts(dataset, column, what, name)
    if missing_are_empty:
        return [text or "" for text in texts]
    _refuse(
        texts,
        lambda text: text is None,
        "no text",
        where,
        "remove it or write an empty text",
    )
    return texts


def _picked_texts(
    dataset: Dataset,
    column: str,
    what: Any,
    name: str,
) -> list[str | None]:
    """The texts of a field within a column, or of a column of lists, as training reads them, see `pick`."""
    root = root_of(column, dataset.column_names)
    rows = []
    if root in dataset.column_names:
        with reading(f"{what}, column '{root}'"):
            rows = list(dataset.select_columns([root]))
    if not any(has_column(row, column) for row in rows):
        _check_column(dataset, column, what, f"{name}_column")
    texts = []
    for number, row in enumerate(rows, start=1):
        try:
            picked = pick(row, {name: (column,)}, f"{what}, row {number}")
        except FileError as error:
            raise UsageError(str(error)) from error
        texts.append(picked[name])
    return texts


# What a column without a type of its own holds, by the types of its values.
_WORDS_FOR_TYPES = {
    "str": "text",
    "int": "numbers",
    "float": "numbers",
    "bool": "true or false",
    "list": "lists",
    "dict": "objects",
    "NoneType": "nothing",
}


def _describe(dataset: Dataset, column: str) -> str:
    """The type of a column; of one of lists, objects or values of several types, all kinds of its values."""
    feature = dataset.features[column]
    if isinstance(feature, datasets.Value):
        return feature.dtype
    kinds = {_kind_in_words(value) for value in dataset[column]}
    return " and ".join(sorted(kinds)) or "lists"


def _kind_in_words(value: Any) -> str:
    name = type(value).__name__
    return _WORDS_FOR_TYPES.get(name, name)


def _refuse(
    values: Iterable,
    is_wrong: Callable[[Any], bool],
    problem: str,
    where: str,
    remedy: str,
) -> None:
    """Raises an error for the first wrong value, whose row it names."""
    for row, value in enumerate(values, start=1):
        if is_wrong(value):
            raise UsageError(f"{where}, row {row}: {problem.format(value)}; {remedy}")


# ---- labels ---------------------------------------------------------------------------------------------------------


def as_number(label: Any) -> float | None:
    """The label as a number; `None` if it is not one."""
    try:
        return float(label)
    except ValueError:
        return None


def _check_label_type(dataset: Dataset, column: str, where: str) -> None:
    feature = dataset.features[column]
    if not _LABEL_TYPES.match(str(getattr(feature, "dtype", None))):
        held = _describe(dataset, column)
        raise UsageError(f"{where}: holds {held}, not labels; {_REMEDY_FOR_LABELS}")


def _has_floats(dataset: Dataset, column: str) -> bool:
    dtype = getattr(dataset.features[column], "dtype", None)
    return str(dtype).startswith("float")


def _are_whole(dataset: Dataset, column: str) -> bool:
    return all(label is None or float(label).is_integer() for label in dataset[column])


def _check_sizes(
    labels: np.ndarray,
    label_names: Sequence[str],
    fewest: int,
    where: str,
) -> None:
    """Checks that there are two classes, and of each at least `fewest` rows."""
    if len(label_names) < 2:
        only = ", ".join(label_names) or "none"
        raise UsageError(f"{where}: holds a single label, {only}; at least 2 are needed")
    counts = np.bincount(labels, minlength=len(label_names))
    rare = np.flatnonzero(counts < fewest)
    if len(rare) == 0:
        return
    with_comma = [name for name in label_names if _NUMBER_WITH_COMMA.fullmatch(name)]
    if with_comma and all(as_number(name.replace(",", ".")) is not None for name in label_names):
        with_point = with_comma[0].replace(",", ".")
        raise UsageError(
            f"{where}: label '{with_comma[0]}' has a decimal comma; write scores with a point, as in {with_point}"
        )
    name = label_names[rare[0]]
    count = counts[rare[0]]
    others = f" (and {len(rare) - 1} more labels)" if len(rare) > 1 else ""
    raise UsageError(
        f"{where}: label '{name}' has {count} of the {fewest} rows with a text that each label needs{others}; "
        "add rows, or remove those of rare labels"
    )


def _plain_labels(
    dataset: Dataset,
    column: str,
    kind: Kind,
    where: str,
) -> list:
    """Strings or integers for classes, floating-point numbers for scores; nothing missing, no NaN."""
    _check_label_type(dataset, column, where)
    labels = list(dataset[column])
    # A blank beside a label makes no other class.
    labels = [label.strip() if isinstance(label, str) else label for label in labels]
    remedy = "write a label or remove the row"

    def is_missing(label: Any) -> bool:
        return label is None or label == ""

    def is_no_number(label: Any) -> bool:
        return as_number(label) is None

    def is_not_finite(label: float) -> bool:
        return not np.isfinite(label)

    def is_fraction(label: float) -> bool:
        return not label.is_integer()

    _refuse(labels, is_missing, "no label", where, remedy)
    if kind == "regression":
        remedy_for_scores = "write one, with a decimal point, or remove the row"
        _refuse(labels, is_no_number, "'{}' is not a number", where, remedy_for_scores)
        labels = [as_number(label) for label in labels]
    if isinstance(labels[0], float):
        _refuse(labels, is_not_finite, "label {}", where, remedy)
    if kind == "classification" and isinstance(labels[0], float):
        _refuse(labels, is_fraction, "label {} of a class is a fraction", where, "use regression for scores")
        labels = [int(label) for label in labels]
    return labels


def _scores(
    labels: list[float],
    bounds: tuple[float, float] | None,
    where: str,
) -> np.ndarray:
    """Scores (N,) float64, within the bounds if there are any."""
    scores = np.array(labels, dtype=np.float64)
    if bounds is not None:
        low, high = bounds
        _refuse(
            scores,
            lambda score: not low <= score <= high,
            "score {}",
            where,
            f"scores go from {low} to {high}",
        )
    return scores


def _classes(labels: list, label_names: tuple[str, ...] | None) -> list:
    """The labels that occur, in the order of their numbers: given by name or number, or sorted."""
    if not label_names:
        return sorted(set(labels) - {-1})
    if isinstance(labels[0], str):
        return list(label_names)
    return list(range(len(label_names)))


def _labels_alike(label_names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that a reader would take for one."""
    seen = {}
    pairs = []
    for name in label_names:
        plain = " ".join(name.casefold().split())
        if plain in seen:
            pairs.append((seen[plain], name))
        seen[plain] = name
    return pairs


def _class_numbers(
    labels: list,
    classes: list,
    where: str,
) -> np.ndarray:
    """Class numbers (N,) int64."""
    numbers = {label: number for number, label in enumerate(classes)}
    shown = ", ".join(repr(label) for label in classes[:10])
    if len(classes) > 10:
        shown += ", …"
    _refuse(
        labels,
        lambda label: label == -1,
        "label -1 stands for a hidden label",
        where,
        "remove the row, or if it is a class write all classes as text, such as negative",
    )
    _refuse(
        labels,
        lambda label: label not in numbers,
        "unknown label {!r}",
        where,
        f"the labels are {shown}",
    )
    return np.array([numbers[label] for label in labels], dtype=np.int64)
