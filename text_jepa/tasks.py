"""What a probe is asked, as plain data: texts, perhaps pairs, labels, and the split on which a score counts.

Rules for all tasks:

- The scored split is `test` where it has labels, else `validation`. Nothing may be chosen by it.
- Labels that are all −1 are hidden: such a split is kept without labels; it can be predicted, never scored.
- Classes are numbered by the sorted labels of the training data (GLUE: by GLUE's own order).
- Training rows whose texts stand in the scored split are removed and counted; repeated training rows are kept.
- Empty texts are kept, and the encoder sees an empty text; a missing text (null) is an error.
"""

import glob
import gzip
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
import numpy as np
from datasets import load_dataset

from text_jepa.arguments import UsageError, nearest
from text_jepa.builtin_corpus import load_builtin_corpus
from text_jepa.data import BUILDERS, find_files, reading, suffix_of


Kind = Literal["classification", "regression"]

_METRICS = {"classification": ("accuracy",), "regression": ("pearson", "spearmanr")}

# Of a set without a test file, every so many rows are held out.
_HOLD_OUT_EVERY = 5

# Kinds of questions, each by the words that ask it.
_QUESTION_WORDS = {
    "who": r"who|whom|whose",
    "where": r"where",
    "when": r"when",
    "what": r"what",
    "which": r"which",
    "why": r"why",
    "how many": r"how (?:many|much)",
    "how": r"how(?! (?:many|much))",
}

# Of a sentence whose word order is asked for, at least and at most.
_SENTENCE_WORDS = (5, 25)

_PACKAGES = 10
_PACKAGE_TEXTS = {"train": 200, "test": 50}  # per package, at most


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


class Query(NamedTuple):
    """A query with C candidates, by their ids.

    Args:
        id: Of the query.
        candidates: C ids.
        relevant: (C,) boolean: the positives among the candidates.
        bm25: (C,) scores, where the file has them.
    """

    id: str
    candidates: list[str]
    relevant: np.ndarray
    bm25: np.ndarray | None

    @property
    def usable(self) -> bool:
        """Whether there is a positive candidate; the protocol of AskUbuntu skips the query otherwise."""
        return bool(self.relevant.any())


@dataclass(frozen=True, eq=False)
class RerankingTask:
    """Candidates to be ordered for each query.

    Args:
        name: Of the task.
        split: Name of the file that was read.
        queries: All queries of the file, also those without a positive candidate.
        texts: All texts of the folder by id; `None` where there are none, and only BM25 can be scored.
        notes: What the reader of the results should know, one line each.
    """

    name: str
    split: str
    queries: list[Query]
    texts: dict[str, str] | None
    notes: tuple[str, ...] = ()
    kind: Literal["reranking"] = "reranking"


# ---- GLUE -----------------------------------------------------------------------------------------------------------


class _Glue(NamedTuple):
    columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...] = ("accuracy",)


_ENTAILMENT = ("entailment", "not_entailment")
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
_STSB_RANGE = (0, 5)

GLUE_TASKS = tuple(_GLUE)


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
        parts = {split: (_read([path], cache_dir), path) for split, path in files.items()}
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
    splits, names = _encode(
        parts, *columns, "label", kind, glue.label_names, None if glue.label_names else _STSB_RANGE
    )
    return _task(name, kind, splits, glue.metrics, names, notes, scored)


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
            files.setdefault(split, _existing(folder / task, source, (".parquet", ".json", ".jsonl", ".csv", ".tsv")))
            if files[split] is None:
                del files[split]
    return base if task == whole else task, files


def _existing(folder, stem, suffixes):
    return next((path for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()), None)


# ---- any other set --------------------------------------------------------------------------------------------------


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
        parts[split] = (_read(files, cache_dir, label_column), pattern)
    train, what = parts["train"]
    if kind is None:
        _check_column(train, label_column, what, "label_column")
        kind = "regression" if str(train.features[label_column].dtype).startswith("float") else "classification"
    splits, names = _encode(parts, text_column, pair_column, label_column, kind)
    if splits.get("test") is None or splits["test"].labels is None:
        whole = splits["train"]
        if len(whole) < _HOLD_OUT_EVERY:
            raise UsageError(f"{what}: {len(whole)} rows are too few to hold some out; name a test file")
        order = np.random.default_rng(0).permutation(len(whole))
        order = order[np.argsort(whole.labels[order], kind="stable")]
        held_out = np.zeros(len(whole), bool)
        held_out[order[_HOLD_OUT_EVERY // 2 :: _HOLD_OUT_EVERY]] = True
        splits["validation" if "test" in splits else "test"] = whole.select(np.flatnonzero(held_out))
        splits["train"] = whole.select(np.flatnonzero(~held_out))
    path = Path(train_file)
    return _task(path.parent.name if path.stem == "train" else path.stem, kind, splits, _METRICS[kind], names)


def _read(paths, cache_dir, label_column="label"):
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


# ---- checks ---------------------------------------------------------------------------------------------------------


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


def _encode(parts, text_column, pair_column, label_column, kind, label_names=None, bounds=None):
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
        _refuse(labels, lambda label: _number(label) is None, "'{}' is not a number", where, remedy)
        labels = [_number(label) for label in labels]
    if isinstance(labels[0], float):
        _refuse(labels, lambda label: not np.isfinite(label), "label {}", where, remedy)
    if kind == "classification" and isinstance(labels[0], float):
        fraction = "label {} of a class is a fraction"
        _refuse(labels, lambda label: not label.is_integer(), fraction, where, "use regression for scores")
        labels = [int(label) for label in labels]
    return labels


def _number(label):
    try:
        return float(label)
    except ValueError:
        return None


def _task(name, kind, splits, metrics, label_names=None, notes=(), scored=None):
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


# ---- reranking ------------------------------------------------------------------------------------------------------


def load_reranking(
    folder: str, split: str = "test", with_body: bool = False, cache_dir: str | None = None
) -> RerankingTask:
    """Loads a reranking set in the file format of AskUbuntu.

    Lines of `<split>.txt[.gz]`: query id, positive ids, candidate ids and perhaps BM25 scores, separated by tabs, the
    lists by blanks. Texts are the lines `id, title, body` of `text_tokenized.txt[.gz]`, or a parquet file of these
    columns; without such a file (AskUbuntu as it is published) the BM25 column is all there is to score.

    Args:
        folder: Where the files lie.
        split: `dev`, `test` or another file's name.
        with_body: Title and body instead of the title alone.
        cache_dir: Of the datasets library.

    Raises:
        UsageError: A file is missing or malformed, or an id has no text.
    """
    root = Path(folder).expanduser()
    path = _existing(root, split, (".txt", ".txt.gz"))
    if path is None:
        found = {file.name.split(".")[0] for file in root.glob("*.txt*")} - {"text_tokenized"}
        there = ", ".join(sorted(found)) or "none"
        raise UsageError(f"{root}: no {split}.txt or {split}.txt.gz{nearest(split, sorted(found))} (there is {there})")
    queries, outside = [], 0
    for number, fields in _rows(path, -1):
        query, positives = _query(fields, f"{path}, line {number}")
        queries.append(query)
        outside += len(positives.difference(query.candidates))
    if not queries:
        raise UsageError(f"{path}: empty")
    texts, notes = _reranking_texts(root, queries, with_body, cache_dir), []
    name = root.resolve().name
    if texts is None:
        if any(query.bm25 is None for query in queries):
            raise UsageError(f"{root}: neither texts (text_tokenized.txt.gz) nor BM25 scores in {path.name}; add one")
        notes.append(f"{name}: no text_tokenized file in {root}, so only the BM25 column can be scored")
    unusable = sum(not query.usable for query in queries)
    if unusable == len(queries):
        raise UsageError(f"{path}: no query has a positive id among its candidates; column 2 holds the positive ids")
    if unusable:
        notes.append(f"{name} {split}: {unusable} of {len(queries)} queries have no positive candidate")
    if outside:
        notes.append(f"{name} {split}: {outside} positive ids are not among the candidates and do not count")
    return RerankingTask(name, split, queries, texts, tuple(notes))


def _rows(path, maxsplit):
    """Line number and fields of each line that is not blank."""
    with (
        reading(path),
        (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="\n") as file,
    ):
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t", maxsplit)


def _query(fields, where):
    if len(fields) not in (3, 4):
        expected = "query id, positive ids, candidate ids and BM25 scores, separated by tabs"
        raise UsageError(f"{where}: {len(fields)} columns; expected {expected}")
    query_id, positives, candidates = fields[0].strip(), set(fields[1].split()), fields[2].split()
    if not query_id or not candidates:
        raise UsageError(f"{where}: no {'candidate ids in column 3' if query_id else 'query id in column 1'}")
    twice = [candidate for candidate, count in Counter(candidates).items() if count > 1]
    if twice:
        raise UsageError(f"{where}: candidate {twice[0]} is named twice in column 3; name it once")
    scores = None
    if len(fields) == 4:
        numbers = [_number(score) for score in fields[3].split()]
        if None in numbers or not np.isfinite(numbers).all():
            raise UsageError(f"{where}: a BM25 score in column 4 is not a number")
        if len(numbers) != len(candidates):
            raise UsageError(f"{where}: {len(numbers)} BM25 scores for {len(candidates)} candidates")
        scores = np.array(numbers)
    relevant = np.array([candidate in positives for candidate in candidates])
    return Query(query_id, candidates, relevant, scores), positives


def _reranking_texts(root, queries, with_body, cache_dir):
    path = _existing(root, "text_tokenized", (".txt", ".txt.gz", ".parquet"))
    if path is None:
        return None
    if path.suffix == ".parquet":
        table = _read([path], cache_dir)
        columns = ("id", "title", "body")
        for column in columns:
            if column not in table.column_names:
                raise UsageError(f"{path}: no column '{column}' (its columns are {', '.join(table.column_names)})")
        rows = enumerate(zip(*(table[column] for column in columns), strict=True), 1)
    else:
        rows = _rows(path, 2)
    needed = {text_id for query in queries for text_id in (query.id, *query.candidates)}
    texts = {}
    for number, fields in rows:
        if len(fields) < 2:
            raise UsageError(f"{path}, line {number}: a single column; expected id, title and body, separated by tabs")
        texts[str(fields[0])] = " ".join(part for part in fields[1 : 2 + with_body] if part)
    missing = sorted(needed.difference(texts))
    if missing:
        raise UsageError(f"{path}: no text for {len(missing)} ids, e.g. {missing[0]}; add their lines")
    return texts


# ---- made from texts ------------------------------------------------------------------------------------------------


def word_content(texts: Sequence[str], words: int = 50, texts_per_word: int = 50, seed: int = 0) -> Task:
    """Which of some mid-frequency words stands in a text? (WC of Conneau et al. 2018, for collections of any size.)

    The words are the rarest of at least four letters that stand in enough texts, so that all are about equally
    frequent. Every text holds exactly one of them, and every word has the same number of texts, a fifth of them held
    out. Equal texts count once.

    Args:
        texts: Sentences or short texts; what an encoder cuts off it cannot know.
        words: Number of words.
        texts_per_word: Number of texts of each.
        seed: Of the choice of the texts and of the split.

    Raises:
        UsageError: The texts are too few.
    """
    if words < 2 or texts_per_word < 2:
        raise UsageError("word content needs at least 2 words and 2 texts of each")
    texts = list(dict.fromkeys(texts))
    vocabularies = [set(re.findall(r"\b[^\W\d_]{4,}\b", text.lower())) for text in texts]
    counts = Counter(word for vocabulary in vocabularies for word in vocabulary)
    pool = sorted((word for word in counts if counts[word] >= texts_per_word), key=lambda word: (counts[word], word))
    while True:
        chosen = set(pool[:words])
        if len(chosen) < words:
            raise UsageError(
                f"word content: too few of the {len(texts)} texts for {words} words with {texts_per_word} texts each; "
                "give more texts or ask for fewer"
            )
        rows = {word: [] for word in sorted(chosen)}
        for row, vocabulary in enumerate(vocabularies):
            if len(held := chosen & vocabulary) == 1:
                rows[held.pop()].append(row)
        scarce = {word for word in rows if len(rows[word]) < texts_per_word}
        if not scarce:
            break
        pool = [word for word in pool if word not in scarce]
    parts = {"train": [], "test": []}
    for label, word in enumerate(rows):
        picked = random.Random(f"{seed} {word}").sample(rows[word], texts_per_word)
        held_out = max(1, texts_per_word // _HOLD_OUT_EVERY)
        parts["test"] += [(texts[row], label) for row in picked[:held_out]]
        parts["train"] += [(texts[row], label) for row in picked[held_out:]]
    return _task("word_content", "classification", _labelled(parts), _METRICS["classification"], tuple(rows))


def question_words(texts: Sequence[str], train: int = 300, per_kind: int = 300, seed: int = 0) -> Task:
    """Which kind of question is this: who, where, when, what, which, why, how many or how?

    The question word stays in the text, so that the probe asks whether a vector still tells function words apart. A
    text with question words of two kinds, or of none, is left out; equal texts count once. Few training questions
    keep the task from being saturated.

    Args:
        texts: Questions; other texts may be among them.
        train: Number of training questions; all others are scored.
        per_kind: Most questions of a kind, so that "what", half of all, does not decide the score.
        seed: Of the choice of the questions and of the split.

    Raises:
        UsageError: There are no more questions than are to be trained on.
    """
    questions = {kind: [] for kind in _QUESTION_WORDS}
    for text in dict.fromkeys(texts):
        kinds = _kinds_of_question(text)
        if len(kinds) == 1:
            questions[kinds[0]].append(text)
    chance = random.Random(seed)
    rows = []
    for label, of_kind in enumerate(questions.values()):
        chance.shuffle(of_kind)
        rows += [(text, label) for text in of_kind[:per_kind]]
    if len(rows) <= train:
        raise UsageError(
            f"question words: {len(rows)} questions with one question word are too few for {train} training "
            "questions; give more texts or ask for fewer"
        )
    chance.shuffle(rows)
    parts = {"train": rows[:train], "test": rows[train:]}
    return _task("question_words", "classification", _labelled(parts), _METRICS["classification"], tuple(questions))


def _kinds_of_question(text):
    lowered = text.lower()
    return [kind for kind, words in _QUESTION_WORDS.items() if re.search(rf"\b(?:{words})\b", lowered)]


def question_words_task(data_dir: str | None = None, cache_dir: str | None = None) -> Task:
    """`question_words` of the questions of GLUE's QNLI, of all its splits."""
    qnli = load_glue("qnli", data_dir, cache_dir)
    return question_words([question for split in qnli.splits.values() for question in split.texts])


def word_order(sentences: Sequence[str], limit: int = 5_000, seed: int = 0) -> Task:
    """Were two neighbouring words of this sentence exchanged? (Bigram shift of Conneau et al. 2018.)

    Sentences have 5 to 25 words. The exchanged words are inside the sentence, in lower case and without punctuation,
    so that order alone gives them away. Every second sentence is changed, and a fifth is held out; a sentence is
    never there in both forms. A vector that does not know the order of words is right in half of the cases.

    Args:
        sentences: Sentences as they were written; equal ones count once.
        limit: Most sentences of the task.
        seed: Of the choice of the sentences, of the exchanged words and of the split.

    Raises:
        UsageError: There are fewer than 10 sentences in which words can be exchanged.
    """
    chance = random.Random(seed)
    candidates = [sentence.split() for sentence in dict.fromkeys(sentences)]
    candidates = [words for words in candidates if _exchangeable(words)]
    chance.shuffle(candidates)
    rows = []
    for number, words in enumerate(candidates[:limit]):
        is_changed = number % 2
        if is_changed:
            place = chance.choice(_exchangeable(words))
            words = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
        rows.append((" ".join(words), is_changed))
    held_out = len(rows) // _HOLD_OUT_EVERY
    if held_out < 2:
        raise UsageError(
            f"word order: {len(rows)} sentences in which words can be exchanged are too few; give at least 10"
        )
    parts = {"train": rows[held_out:], "test": rows[:held_out]}
    return _task(
        "word_order", "classification", _labelled(parts), _METRICS["classification"], ("as written", "exchanged")
    )


def _exchangeable(words):
    """Places of words that can change with the next one; none in a sentence that is too short or too long."""
    if not _SENTENCE_WORDS[0] <= len(words) <= _SENTENCE_WORDS[1]:
        return []
    plain = [word.isalpha() and word.islower() for word in words]
    inside = range(1, len(words) - 2)
    return [place for place in inside if plain[place] and plain[place + 1] and words[place] != words[place + 1]]


def word_order_task(cache_dir: str | None = None) -> Task:
    """`word_order` of the sentences in the held-out part of the built-in corpus, which no encoder was trained on."""
    texts = load_builtin_corpus(cache_dir)["validation"]["text"]
    # A line that ends without a stop is a heading or an item of a list.
    sentences = [sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+|\n", text)]
    return word_order([sentence for sentence in sentences if sentence.endswith((".", "!", "?"))])


def load_task(flag: str, name: str, data_dir: str | None = None, cache_dir: str | None = None) -> Task:
    """The task that a flag names: `packages`, one of GLUE, or a file with the columns `text` and `label`.

    Raises:
        UsageError: There is no such file or task, or it cannot be read.
    """
    if name == "packages":
        return package_task(cache_dir)
    if suffix_of(Path(name)) not in BUILDERS:
        return load_glue(name, data_dir, cache_dir)
    if not Path(name).is_file():
        raise UsageError(f"--{flag} {name}: no such file")
    return load_task_file(name, cache_dir=cache_dir)


def package_task(cache_dir: str | None = None) -> Task:
    """Which of ten Python packages does a held-out text of the built-in corpus document?

    Trained on the corpus' training part, scored on its held-out part; needs no download.
    """
    corpus = load_builtin_corpus(cache_dir)
    counts = Counter(corpus["validation"]["package"])
    packages = sorted(sorted(counts, key=lambda package: (-counts[package], package))[:_PACKAGES])
    parts = {}
    for (split, limit), source in zip(_PACKAGE_TEXTS.items(), ("train", "validation"), strict=True):
        rows = {package: [] for package in packages}
        part = corpus[source].shuffle(seed=0)
        for text, package in zip(part["text"], part["package"], strict=True):
            if package in rows and len(rows[package]) < limit:
                rows[package].append(text)
        parts[split] = [(text, label) for label, package in enumerate(packages) for text in rows[package]]
    return _task("packages", "classification", _labelled(parts), _METRICS["classification"], tuple(packages))


def _labelled(parts):
    return {
        split: Split([text for text, _ in rows], None, np.array([label for _, label in rows]), list(range(len(rows))))
        for split, rows in parts.items()
    }
