"""A verdict on one's own texts, which needs no labels: does a passage find the rest of its document?

Three questions are asked of every system on the same documents. Which of all passages belongs to the document of this
one? Which text belongs to this title, where there are titles? And which label has a document, by its nearest
neighbours, where there are labels? Beside the encoders stands what people use without one: TF-IDF and BM25.

Shapes: N documents, P pairs of passages, Q queries, A candidates, D features, W words.
"""

import copy
import glob
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, load_dataset
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from text_jepa.cli import UsageError, nearest
from text_jepa.data.corpus import BUILDERS, find_files, reading, suffix_of
from text_jepa.embeddings import Encoder, embed_texts
from text_jepa.probe.bootstrap import Score, compare
from text_jepa.probe.glue import accuracy
from text_jepa.probe.predictors import knn_predict


# Documents by which an encoder is merged and judged at the end of a run, and those by which words are counted for it.
HELD_OUT_DOCUMENTS, TRAINING_DOCUMENTS = 4_000, 20_000

# The questions, by their names in tables.
REST = "rest of the document"
TITLE = "title to text"
LABEL = "label by neighbours"

# The figures of a search, the leading one first.
SEARCH_METRICS = ("r@10", "r@1", "mrr")

# How searches and labels are called among the modes of a probe.
_SEARCH_MODE, _LABEL_MODE = "cosine raw", "knn"

# Words of a passage, and words between a passage and the one that it has to find.
PASSAGE_WORDS = 32
GAP_WORDS = 64

# Words of the shortest document that gives passages.
SHORTEST_DOCUMENT = 16

# More queries narrow an interval by less than a point.
MAX_QUERIES = 2_000

# Among fewer candidates anything is among the first ten.
MIN_QUERIES = 20

# Enough texts for word frequencies; more of them only cost time.
_FITTED_TEXTS, _FITTED_CHARACTERS = 50_000, 40_000_000

# The usual constants of BM25 (Robertson and Zaragoza, 2009).
_K1, _B = 1.5, 0.75

# Scores of a collapsed encoder differ by rounding errors; equal ones count against the system.
_DECIMALS = 6
TRAINING_TEXTS, SCORED_TEXTS = "training texts", "scored texts"


class Documents(NamedTuple):
    """N documents of files, with their titles and labels where columns of them were named."""

    texts: list[str]
    titles: list[str] | None
    labels: list | None


def load_documents(
    files: Sequence[str],
    text_column: str = "text",
    title_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | None = None,
) -> Documents:
    """Loads documents: a line of a text file, or a row of a jsonl, csv or parquet file, is one document.

    Rows without a text, a title or a label are left out.

    Args:
        files: Paths, folders and globs, see `find_files`.
        text_column: The column of the texts.
        title_column: The column of the titles, if any.
        label_column: The column of the labels, if any: classes, as numbers or as text.
        cache_dir: Cache of the datasets library.

    Raises:
        UsageError: A file or column is missing or cannot be read, or no document is left.
    """
    paths = find_files(files, "texts")
    what = f"--texts {', '.join(paths[:3])}"
    if not any(Path(path).stat().st_size for path in paths):
        raise UsageError(f"{what}: empty")
    builder, options = BUILDERS[suffix_of(Path(paths[0]))]
    if builder == "csv":
        options = options | {"keep_default_na": False}  # "NA" and "null" are words
    with reading(what, paths):
        escaped = [glob.escape(path) for path in paths]
        dataset = load_dataset(builder, data_files=escaped, split="train", cache_dir=cache_dir, **options)
    columns = {"text_column": text_column, "title_column": title_column, "label_column": label_column}
    columns = {flag: column for flag, column in columns.items() if column is not None}
    for flag, column in columns.items():
        _check_column(dataset, column, flag, what)
    values = {flag: list(dataset[column]) for flag, column in columns.items()}
    complete = [row for row in zip(*values.values(), strict=True) if not any(_is_missing(value) for value in row)]
    if not complete:
        raise UsageError(f"{what}: no document with {' and '.join(columns.values())}; name other files or columns")
    found = dict(zip(columns, map(list, zip(*complete, strict=True)), strict=True))
    return Documents(found["text_column"], found.get("title_column"), found.get("label_column"))


def _check_column(dataset: Dataset, column: str, flag: str, what: str) -> None:
    names = dataset.column_names
    if column not in names:
        raise UsageError(
            f"{what}: no column '{column}'{nearest(column, names)} (its columns are {', '.join(names)}); name one "
            f"with --{flag}"
        )
    kind = str(getattr(dataset.features[column], "dtype", "lists"))
    allowed = ("string", "large_string")
    if flag == "label_column":
        allowed += ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    if kind not in allowed:
        wanted = "classes" if flag == "label_column" else "text"
        raise UsageError(f"{what}: column '{column}' holds {kind}, not {wanted}; name another with --{flag}")


def _is_missing(value) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


class Passages(NamedTuple):
    """P pairs of passages: a query, the answer that it has to find, and (P,) the number of the document of both."""

    queries: list[str]
    answers: list[str]
    documents: np.ndarray


def cut_passages(documents: Sequence[str], limit: int = MAX_QUERIES) -> Passages:
    """Cuts pairs of passages out of documents, always the same ones.

    A pair is 32 words and, 64 words behind them, 32 more words of the same document. A shorter document of at least 16
    words gives its first half and its second half. Each document gives a pair; if these are fewer than `limit`, longer
    documents give more, none of which overlap, spread evenly over documents and within each.

    Args:
        documents: N texts.
        limit: Most pairs; of more documents so many are taken, evenly.

    Returns:
        P pairs in the order of the documents.
    """
    block = 2 * PASSAGE_WORDS + GAP_WORDS
    lengths = np.array([len(document.split()) for document in documents], dtype=np.int64)
    room = np.where(lengths >= block, lengths // block, lengths >= SHORTEST_DOCUMENT)
    pairs = _shared_out(room, limit)
    queries, answers, numbers = [], [], []
    for number in np.flatnonzero(pairs):
        words = documents[number].split()
        if len(words) < block:
            half = len(words) // 2
            queries.append(" ".join(words[:half]))
            answers.append(" ".join(words[half:]))
        else:
            for pair in range(pairs[number]):
                start = block * (pair * room[number] // pairs[number])
                end = start + block
                queries.append(" ".join(words[start : start + PASSAGE_WORDS]))
                answers.append(" ".join(words[end - PASSAGE_WORDS : end]))
        numbers += [number] * pairs[number]
    return Passages(queries, answers, np.array(numbers, dtype=np.int64))


def _shared_out(room: np.ndarray, limit: int) -> np.ndarray:
    """How many pairs each document gives: one more in each round, until all have given `limit` or have no room."""
    pairs = np.zeros(len(room), np.int64)
    while pairs.sum() < limit and (pairs < room).any():
        able = np.flatnonzero(pairs < room)
        pairs[_evenly(able, limit - pairs.sum())] += 1
    return pairs


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the items, at equal distances."""
    if len(items) <= count:
        return items
    return items[np.arange(count) * len(items) // count]


class WordCounting:
    """TF-IDF and BM25 of words, with the vocabulary and the document frequencies of the texts they are fitted on.

    Words are runs of letters and digits of any length, in lower case. Other words than those of the fitted texts do
    not count.

    Args:
        texts: Texts to fit on. At most 50,000 of them and 40 million characters are counted, evenly chosen.

    Raises:
        UsageError: They hold no word.
    """

    def __init__(self, texts: Sequence[str]):
        characters = sum(map(len, texts))
        count = min(_FITTED_TEXTS, int(len(texts) * min(1, _FITTED_CHARACTERS / max(characters, 1))) or 1)
        rows = _evenly(np.arange(len(texts)), count)
        analyse = CountVectorizer(token_pattern=r"\b\w+\b").build_analyzer()
        frequency = Counter()
        for row in rows:
            frequency.update(set(analyse(texts[row])))
        if not frequency:
            raise UsageError("the texts to fit TF-IDF and BM25 on hold no word; name other texts")
        vocabulary = sorted(frequency)
        self.documents = len(rows)
        self.frequencies = np.array([frequency[word] for word in vocabulary])
        self._counter = CountVectorizer(token_pattern=r"\b\w+\b", vocabulary=vocabulary)

    def tfidf(self, texts: Sequence[str]) -> sparse.csr_array:
        """Vectors (N, W) of unit length: 1 + ln(count), times scikit-learn's smooth inverse document frequency."""
        counts = self._counts(texts)
        counts.data = 1 + np.log(counts.data)
        inverse = np.log((1 + self.documents) / (1 + self.frequencies)) + 1
        return normalize(counts * inverse)

    def tfidf_of_pairs(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """Cosines (N,) of the TF-IDF of N pairs of texts."""
        return _row_products(self.tfidf(left), self.tfidf(right))

    def bm25(self, queries: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """Scores (Q, A) of the candidates for each query, with the inverse document frequency of Lucene.

        Lengths are measured against the mean length of the candidates.
        """
        return (self._counts(queries) @ self._bm25_weights(candidates).T).toarray()

    def bm25_of_pairs(self, queries: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """Scores (N,) of N candidates, each for its own query; otherwise as `bm25`."""
        return _row_products(self._counts(queries), self._bm25_weights(candidates))

    def _bm25_weights(self, candidates):
        """What one occurrence of each word in a query is worth to each candidate: (A, W)."""
        counts = self._counts(candidates)
        lengths = counts.sum(axis=1)
        relative = lengths / max(lengths.mean(), 1)
        candidate_of = np.repeat(np.arange(len(candidates)), np.diff(counts.indptr))
        saturation = _K1 * (1 - _B + _B * relative[candidate_of])
        counts.data = counts.data * (_K1 + 1) / (counts.data + saturation)
        inverse = np.log(1 + (self.documents - self.frequencies + 0.5) / (self.frequencies + 0.5))
        return counts * inverse

    def _counts(self, texts):
        return sparse.csr_array(self._counter.transform(texts), dtype=np.float64)


def _row_products(left: sparse.csr_array, right: sparse.csr_array) -> np.ndarray:
    """Inner products (N,) of the rows of two matrices (N, W)."""
    return (left * right).sum(axis=1)


def _with_equal_products(vectors: sparse.csr_array) -> np.ndarray:
    """Dense rows (N, N) whose inner products are those of sparse rows (N, W), for a function of dense vectors."""
    values, directions = np.linalg.eigh((vectors @ vectors.T).toarray())
    return directions * np.sqrt(values.clip(min=0))


class Search(NamedTuple):
    """Q queries among Q candidates, of which each query has to find its own, the one in the same place.

    Candidates of the query's group other than its own are neither hit nor miss: they are taken out of its ranking.
    """

    queries: list[str]
    candidates: list[str]
    groups: np.ndarray


def ranks_of_own(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """At which place each query has its own candidate; of equal scores the own one comes last.

    Args:
        scores: (Q, Q), of each query for each candidate; its own is on the diagonal.
        groups: (Q,) see `Search`.

    Returns:
        (Q,) integers, 1 for the first place.
    """
    scores = scores.round(_DECIMALS)
    is_ahead = scores >= np.diagonal(scores)[:, None]
    is_ahead &= groups[:, None] != groups[None, :]
    return 1 + is_ahead.sum(axis=1)


def _search_figures(scores: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """`SEARCH_METRICS` of each query, each (Q,) between 0 and 1."""
    ranks = ranks_of_own(scores, groups)
    return {"r@10": (ranks <= 10).astype(float), "r@1": (ranks == 1).astype(float), "mrr": 1 / ranks}


def _predict_by_neighbours(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label (N,) of each document by its ten nearest ones of the other half; the halves are always the same."""
    order = np.random.default_rng(0).permutation(len(labels))
    halves = np.array_split(order, 2)
    predictions = np.empty_like(labels)
    for asked, fitted in (halves, halves[::-1]):
        predictions[asked] = knn_predict(vectors[fitted], labels[fitted], vectors[asked])
    return predictions


@dataclass(frozen=True)
class DocumentScores:
    """What was found out about the systems.

    Args:
        scores: All figures, those of the first system leading; how far it is ahead of each other one is in them.
        answers: (task, mode, metric, system) to (1, Q): values of the metric, by query; of labels predictions.
        gold: Task to (N,) labels.
        notes: What was done to the data, one line each.
        documents: How many documents the passages are of.
        reference: The system that the first one is compared with beside word counting.
    """

    scores: list[Score]
    answers: dict[tuple[str, str, str, str], np.ndarray]
    gold: dict[str, np.ndarray]
    notes: list[str]
    documents: int
    reference: str | None


def judge_documents(
    vectors_of: Mapping[str, Callable[[list[str]], np.ndarray]],
    documents: Sequence[str],
    training_texts: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    labels: Sequence | None = None,
    reference: str | None = None,
    max_queries: int = MAX_QUERIES,
) -> DocumentScores:
    """Scores encoders, TF-IDF and BM25 on documents that need no labels.

    Args:
        vectors_of: Name of a system to a function that makes vectors (N, D) of N texts; the first one is in question.
            Each is called once, with all texts.
        documents: N texts, best such as nothing was trained on.
        training_texts: Texts that TF-IDF and BM25 are fitted on; a second time they are fitted on the scored texts.
            Without them the second is all there is.
        titles: N titles: each has to find its text.
        labels: N classes, to be told by nearest neighbours.
        reference: Which system the first one is compared with in the `verdict`.
        max_queries: Most pairs of passages, titles and labels; fewer are faster, and intervals wider.

    Returns:
        R@10, R@1 and MRR of the searches and the accuracy of labels, with intervals of 1,000 resamples of the queries.
        Questions with fewer than 20 queries are left out, and a note says so.

    Raises:
        UsageError: Vectors are not finite, or the labels have a single class.
    """
    questions = _questions(documents, titles, labels, max_queries)
    answers = {}
    for system, vectors_of_texts in vectors_of.items():
        answers |= _answer_by_vectors(questions, system, vectors_of_texts)
    answers |= _answer_by_words(questions, training_texts)
    gold = {} if questions.labels is None else {LABEL: questions.labels}
    return DocumentScores(
        _scores(answers, gold), answers, gold, questions.notes, questions.passage_documents, reference
    )


class _Questions(NamedTuple):
    """What every system is asked: searches by task, labels (N,) of texts. And how many documents gave passages."""

    searches: dict[str, Search]
    texts: list[str]
    labels: np.ndarray | None
    notes: list[str]
    passage_documents: int


def _questions(documents, titles, labels, max_queries) -> _Questions:
    passages = cut_passages(documents, max_queries)
    searches = {REST: Search(*passages)}
    notes = []
    rows = _evenly(np.arange(len(documents)), max_queries)
    texts = [documents[row] for row in rows]
    if len(rows) < len(documents) and (titles is not None or labels is not None):
        notes.append(f"titles and labels: {len(rows):,} of {len(documents):,} documents, evenly chosen")
    if titles is not None:
        searches[TITLE] = Search([titles[row] for row in rows], texts, np.arange(len(rows)))
    for task, search in list(searches.items()):
        if len(search.queries) < MIN_QUERIES:
            notes.append(f"{task}: left out, for it has {len(search.queries)} queries ({MIN_QUERIES} are needed)")
            del searches[task]
    if labels is not None:
        labels = _class_numbers([labels[row] for row in rows])
    return _Questions(searches, texts, labels, notes, len(np.unique(passages.documents)))


def _class_numbers(labels) -> np.ndarray:
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"the labels are all '{classes[0]}'; name a column with at least two classes")
    return numbers


def _answer_by_vectors(questions, system, vectors_of_texts) -> dict[tuple[str, str, str, str], np.ndarray]:
    """The answers of a system that makes vectors; each distinct text is embedded once."""
    distinct = set()
    for search in questions.searches.values():
        distinct.update(search.queries)
        distinct.update(search.candidates)
    if questions.labels is not None:
        distinct.update(questions.texts)
    if not distinct:
        return {}
    texts = sorted(distinct)
    vectors = vectors_of_texts(texts)
    if not np.isfinite(vectors).all():
        raise UsageError(f"{system}: its features are not finite, so its weights are broken; name another encoder")
    row_of = {text: row for row, text in enumerate(texts)}
    units = normalize(vectors.astype(np.float64))
    answers = {}
    for task, search in questions.searches.items():
        queries = units[[row_of[text] for text in search.queries]]
        candidates = units[[row_of[text] for text in search.candidates]]
        answers |= _search_answers(task, system, queries @ candidates.T, search)
    if questions.labels is not None:
        of_documents = vectors[[row_of[text] for text in questions.texts]]
        answers |= _label_answers(system, of_documents, questions.labels)
    return answers


def _answer_by_words(questions, training_texts) -> dict[tuple[str, str, str, str], np.ndarray]:
    """The answers of TF-IDF and BM25, fitted on the training texts, if there are any, and on the scored ones."""
    fitted = {} if training_texts is None else {TRAINING_TEXTS: WordCounting(training_texts)}
    answers = {}
    for task, search in questions.searches.items():
        for source, words in (fitted | {SCORED_TEXTS: WordCounting(search.queries + search.candidates)}).items():
            cosines = (words.tfidf(search.queries) @ words.tfidf(search.candidates).T).toarray()
            answers |= _search_answers(task, f"TF-IDF ({source})", cosines, search)
            scores = words.bm25(search.queries, search.candidates)
            answers |= _search_answers(task, f"BM25 ({source})", scores, search)
    if questions.labels is not None:
        for source, words in (fitted | {SCORED_TEXTS: WordCounting(questions.texts)}).items():
            vectors = _with_equal_products(words.tfidf(questions.texts))
            answers |= _label_answers(f"TF-IDF ({source})", vectors, questions.labels)
    return answers


def _search_answers(task, system, scores, search) -> dict[tuple[str, str, str, str], np.ndarray]:
    figures = _search_figures(scores, search.groups)
    return {(task, _SEARCH_MODE, metric, system): values[None] for metric, values in figures.items()}


def _label_answers(system, vectors, labels) -> dict[tuple[str, str, str, str], np.ndarray]:
    return {(LABEL, _LABEL_MODE, "accuracy", system): _predict_by_neighbours(vectors, labels)[None]}


def _scores(answers, gold) -> list[Score]:
    by_figure: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
    for (task, mode, metric, system), values in answers.items():
        by_figure.setdefault((task, mode, metric), {})[system] = values
    scores = []
    for (task, mode, metric), by_system in by_figure.items():
        if task in gold:
            scores += compare(task, mode, metric, accuracy, by_system, gold[task], seed=0)
        else:
            scores += compare(task, mode, metric, np.mean, by_system, seed=0)
    return scores


def verdict(found: DocumentScores) -> str:
    """One sentence: how much more often the first system finds the rest of a document than word counting does.

    Word counting is TF-IDF, fitted on the training texts where there are any.
    """
    by_system = {score.system: score for score in found.scores if (score.task, score.metric) == (REST, "r@10")}
    if not by_system:
        return f"The documents give fewer than {MIN_QUERIES} pairs of passages, too few for a verdict."
    first = next(iter(by_system.values()))
    source = TRAINING_TEXTS if f"TF-IDF ({TRAINING_TEXTS})" in by_system else SCORED_TEXTS
    parts = [_comparison(by_system[f"TF-IDF ({source})"], f"word counting (TF-IDF fitted on the {source})")]
    if found.reference is not None:
        name = "the encoder before" if found.reference == "before" else found.reference
        parts.append(_comparison(by_system[found.reference], name))
    return (
        f"On {first.rows:,} passages of {found.documents:,} documents this encoder finds the rest of the document "
        f"(R@10) {', and '.join(parts)}."
    )


def _comparison(other: Score, name: str) -> str:
    ahead, low, high = other.ahead, other.ahead_low, other.ahead_high
    if low > 0:
        return f"{ahead:.1f} [{low:.1f}, {high:.1f}] points more often than {name}"
    if high < 0:
        return f"{-ahead:.1f} [{-high:.1f}, {-low:.1f}] points less often than {name}"
    return f"not measurably better or worse than {name} ({ahead:+.1f} [{low:+.1f}, {high:+.1f}] points)"


def score_on_documents(
    encoder: Encoder, documents: Sequence[str], limit: int = MAX_QUERIES
) -> Callable[[Mapping[str, torch.Tensor]], float]:
    """A measure of weights for `choose_share`, without labels: how well passages find the rest of their documents.

    Args:
        encoder: The encoder whose shape, tokenizer and pooling the weights are tried with. It stays as it is.
        documents: Texts, best such as nothing was trained on.
        limit: Most passages; they are those of the verdict on documents, see `cut_passages`.

    Returns:
        A function of weights by name; it gives the mean reciprocal rank in percent.

    Raises:
        UsageError: The documents give too few passages.
    """
    passages = cut_passages(documents, limit)
    if len(passages.queries) < MIN_QUERIES:
        found = f"{len(documents):,} documents give {len(passages.queries)} pairs of passages"
        raise UsageError(f"{found}, too few to choose a share on ({MIN_QUERIES} are needed); name more or longer ones")
    tried = replace(encoder, model=copy.deepcopy(encoder.model))

    def score(weights: Mapping[str, torch.Tensor]) -> float:
        tried.model.load_state_dict(weights, strict=False)  # a pooler may be missing
        queries = normalize(embed_texts(tried, passages.queries))
        answers = normalize(embed_texts(tried, passages.answers))
        ranks = ranks_of_own(queries @ answers.T, passages.documents)
        return float(100 * np.mean(1 / ranks))

    return score
