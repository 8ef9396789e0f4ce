"""Reranking: queries with candidate texts, some of them relevant."""

import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from text_jepa.cli import UsageError, nearest
from text_jepa.data.reading import reading
from text_jepa.names import local_path
from text_jepa.probe.tasks import as_number, existing_file, read_table


RERANKING_METRICS = ("map", "mrr", "p@1", "p@5")

_Row = tuple[int, Sequence[str]]


class Query(NamedTuple):
    """A query with C candidates, by their ids.

    Args:
        id: Id of the query.
        candidates: C ids.
        relevant: (C,) boolean: the positives among the candidates.
        bm25: (C,) scores, if the file has them.
    """

    id: str
    candidates: list[str]
    relevant: np.ndarray
    bm25: np.ndarray | None

    @property
    def usable(self) -> bool:
        """Whether there is a positive candidate; otherwise the protocol of AskUbuntu skips the query."""
        return bool(self.relevant.any())


@dataclass(frozen=True, eq=False)
class RerankingTask:
    """Candidates to be ordered for each query.

    Args:
        name: Name of the task.
        split: Name of the file that was read.
        queries: All queries of the file, also those without a positive candidate.
        texts: All texts of the folder by id; `None` if there are none, and only BM25 can be scored.
        notes: What the reader of the results should know, one line each.
    """

    name: str
    split: str
    queries: list[Query]
    texts: dict[str, str] | None
    notes: tuple[str, ...] = ()
    kind: Literal["reranking"] = "reranking"


def load_reranking(
    folder: str,
    split: str = "test",
    with_body: bool = False,
    cache_dir: str | None = None,
) -> RerankingTask:
    """Loads a reranking set in the file format of AskUbuntu.

    Lines of `<split>.txt[.gz]`: query id, positive ids, candidate ids and perhaps BM25 scores, separated by tabs, the
    lists by blanks. Texts are the lines `id, title, body` of `text_tokenized.txt[.gz]`, or a parquet file of these
    columns; without such a file (AskUbuntu as it is published) the BM25 column is all there is to score.

    Args:
        folder: Folder of the files.
        split: `dev`, `test` or another file's name.
        with_body: Whether to use title and body instead of the title alone.
        cache_dir: Cache of the datasets library.

    Raises:
        UsageError: A file is missing or malformed, or an id has no text.
    """
    root = local_path(folder)
    path = existing_file(root, split, (".txt", ".txt.gz"))
    if path is None:
        found = {file.name.split(".")[0] for file in root.glob("*.txt*")} - {"text_tokenized"}
        there = ", ".join(sorted(found)) or "none"
        raise UsageError(f"{root}: no {split}.txt or {split}.txt.gz{nearest(split, sorted(found))} (there is {there})")
    queries = []
    outside = 0
    for number, fields in _read_rows(path, columns=None):
        query, positives = _query(fields, f"{path}, line {number}")
        queries.append(query)
        outside += len(positives.difference(query.candidates))
    if not queries:
        raise UsageError(f"{path}: empty")

    notes = []
    name = root.resolve().name
    texts = _read_texts(root, queries, with_body, cache_dir)
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


def _read_rows(path: Path, columns: int | None) -> Iterator[_Row]:
    """Line number and fields of each line that is not blank; the last of `columns` fields may contain tabs."""
    splits = -1 if columns is None else columns - 1
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(str(path)), opener(path, "rt", encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                fields = line.rstrip("\r\n").split("\t", splits)
                yield number, fields


def _query(fields: Sequence[str], where: str) -> tuple[Query, set[str]]:
    """A query, and all its positive ids."""
    if len(fields) not in (3, 4):
        expected = "query id, positive ids, candidate ids and BM25 scores, separated by tabs"
        raise UsageError(f"{where}: {len(fields)} columns; expected {expected}")
    query_id = fields[0].strip()
    positives = set(fields[1].split())
    candidates = fields[2].split()
    if not query_id:
        raise UsageError(f"{where}: no query id in column 1")
    if not candidates:
        raise UsageError(f"{where}: no candidate ids in column 3")
    for candidate, count in Counter(candidates).items():
        if count > 1:
            raise UsageError(f"{where}: candidate {candidate} is named twice in column 3; name it once")
    bm25 = None
    if len(fields) == 4:
        bm25 = _bm25_scores(fields[3], len(candidates), where)
    relevant = np.array([candidate in positives for candidate in candidates])
    return Query(query_id, candidates, relevant, bm25), positives


def _bm25_scores(
    field: str,
    candidates: int,
    where: str,
) -> np.ndarray:
    scores = [as_number(score) for score in field.split()]
    if None in scores or not np.isfinite(scores).all():
        raise UsageError(f"{where}: a BM25 score in column 4 is not a number")
    if len(scores) != candidates:
        raise UsageError(f"{where}: {len(scores)} BM25 scores for {candidates} candidates")
    return np.array(scores)


def _read_texts(
    root: Path,
    queries: Sequence[Query],
    with_body: bool,
    cache_dir: str | None,
) -> dict[str, str] | None:
    """Texts by id; `None` if the folder has no file of texts."""
    path = existing_file(root, "text_tokenized", (".txt", ".txt.gz", ".parquet"))
    if path is None:
        return None
    rows = _parquet_rows(path, cache_dir) if path.suffix == ".parquet" else _read_rows(path, columns=3)
    texts = {}
    for number, fields in rows:
        if len(fields) < 2:
            raise UsageError(f"{path}, line {number}: a single column; expected id, title and body, separated by tabs")
        text_id = str(fields[0])
        parts = fields[1:3] if with_body else fields[1:2]
        texts[text_id] = " ".join(part for part in parts if part)

    needed = set()
    for query in queries:
        needed.add(query.id)
        needed.update(query.candidates)
    missing = sorted(needed.difference(texts))
    if missing:
        raise UsageError(f"{path}: no text for {len(missing)} ids, e.g. {missing[0]}; add their lines")
    return texts


def _parquet_rows(path: Path, cache_dir: str | None) -> Iterator[_Row]:
    """Row number, and id, title and body of each row."""
    table = read_table([path], cache_dir)
    for column in ("id", "title", "body"):
        if column not in table.column_names:
            raise UsageError(f"{path}: no column '{column}' (its columns are {', '.join(table.column_names)})")
    rows = zip(table["id"], table["title"], table["body"], strict=True)
    return enumerate(rows, start=1)


def rerank_per_query(
    scores: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    decimals: int = 6,
) -> dict[str, np.ndarray]:
    """Average precision, reciprocal rank, and precision at 1 and 5 of each query.

    The protocol of AskUbuntu (Lei et al., 2016): a query without a positive candidate is left out, and P@5 divides by
    5 however few positives there are. Among equal scores the positives come last, so that a collapsed encoder does not
    inherit the order of the file. AskUbuntu's BM25 column holds ties too: its published row is Lucene's ranking, which
    is the order of the file and needs the negated ranks as scores (MAP 55.99; 55.89 from the column itself).

    Args:
        scores: (C,) scores of the candidates of each of Q queries, higher is better; C may vary.
        labels: (C,) labels of the candidates of each query, 1 for a positive.
        decimals: Decimals to which scores count as equal; cosines of a collapsed encoder differ by rounding errors.

    Returns:
        `map`, `mrr`, `p@1` and `p@5`, each (Q',) between 0 and 1 in the order of the queries that are kept.

    Raises:
        ValueError: A score is not finite, or no query has a positive.
    """
    rows = []
    for query_scores, query_labels in zip(scores, labels, strict=True):
        query_scores = np.asarray(query_scores, dtype=np.float64)
        query_labels = np.asarray(query_labels)
        if not np.isfinite(query_scores).all():
            raise ValueError("a score is not finite")
        order = np.lexsort((query_labels, -query_scores.round(decimals)))
        is_hit = query_labels[order] > 0
        ranks = np.flatnonzero(is_hit) + 1
        if not len(ranks):
            continue
        precision = np.arange(1, len(ranks) + 1) / ranks
        average_precision = precision.mean()
        reciprocal_rank = 1 / ranks[0]
        precision_at_5 = is_hit[:5].sum() / 5
        rows.append((average_precision, reciprocal_rank, is_hit[0], precision_at_5))
    if not rows:
        raise ValueError("no query has a positive candidate")
    columns = np.array(rows, dtype=np.float64).T
    return dict(zip(RERANKING_METRICS, columns, strict=True))
