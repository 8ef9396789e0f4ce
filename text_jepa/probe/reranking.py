"""Reranking: queries with candidate texts, some of them relevant."""

import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from text_jepa.cli import UsageError, nearest
from text_jepa.data.corpus import reading
from text_jepa.probe.tasks import as_number, existing_file, read_table


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
    path = existing_file(root, split, (".txt", ".txt.gz"))
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
        numbers = [as_number(score) for score in fields[3].split()]
        if None in numbers or not np.isfinite(numbers).all():
            raise UsageError(f"{where}: a BM25 score in column 4 is not a number")
        if len(numbers) != len(candidates):
            raise UsageError(f"{where}: {len(numbers)} BM25 scores for {len(candidates)} candidates")
        scores = np.array(numbers)
    relevant = np.array([candidate in positives for candidate in candidates])
    return Query(query_id, candidates, relevant, scores), positives


def _reranking_texts(root, queries, with_body, cache_dir):
    path = existing_file(root, "text_tokenized", (".txt", ".txt.gz", ".parquet"))
    if path is None:
        return None
    if path.suffix == ".parquet":
        table = read_table([path], cache_dir)
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


def rerank_per_query(
    scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], decimals: int = 6
) -> dict[str, np.ndarray]:
    """Average precision, reciprocal rank, and precision at 1 and 5 of each query.

    The protocol of AskUbuntu (Lei et al., 2016): a query without a positive candidate is left out, and P@5 divides by
    5 however few positives there are. Among equal scores the positives come last, so that a collapsed encoder does not
    inherit the order of the file. AskUbuntu's BM25 column holds ties too: its published row is Lucene's ranking, which
    is the order of the file and needs the negated ranks as scores (MAP 55.99; 55.89 from the column itself).

    Args:
        scores: Of Q queries, (C,) candidate scores, higher is better; C may vary.
        labels: Of Q queries, (C,) labels, 1 for a positive.
        decimals: To which scores count as equal; cosines of a collapsed encoder differ by rounding errors.

    Returns:
        `map`, `mrr`, `p@1` and `p@5`, each (Q',) between 0 and 1 in the order of the queries kept.

    Raises:
        ValueError: A score is not finite, or no query has a positive.
    """
    rows = []
    for score, label in zip(scores, labels, strict=True):
        score, label = np.asarray(score, dtype=np.float64), np.asarray(label)
        if not np.isfinite(score).all():
            raise ValueError("a score is not finite")
        hits = label[np.lexsort((label, -score.round(decimals)))] > 0
        ranks = np.flatnonzero(hits) + 1
        if len(ranks):
            precision = np.arange(1, len(ranks) + 1) / ranks
            rows.append((precision.mean(), 1 / ranks[0], hits[0], hits[:5].sum() / 5))
    if not rows:
        raise ValueError("no query has a positive candidate")
    return dict(zip(("map", "mrr", "p@1", "p@5"), np.array(rows, dtype=np.float64).T, strict=True))


def rerank_scores(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
    """Means of `rerank_per_query` in percent: `map`, `mrr`, `p@1` and `p@5`."""
    return {name: 100 * float(values.mean()) for name, values in rerank_per_query(scores, labels).items()}
