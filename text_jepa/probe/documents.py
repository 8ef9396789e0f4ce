"""Scores on documents of your own, without labels: does a passage find the rest of its document?

Encoders, TF-IDF and BM25 answer the same questions. Which of all passages is from the document of this one? If there
are titles, which text does this title belong to? And if there are labels, which label does a document have, by its
nearest neighbours?

Shapes: N documents, P pairs of passages, Q queries, A candidates, D features, W words.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from sklearn.preprocessing import normalize

from text_jepa.cli import UsageError
from text_jepa.data.corpus import load_columns
from text_jepa.data.rows import Quoting
from text_jepa.data.scripts import words_with_spaces
from text_jepa.encoders.embeddings import Encoder, centre, embed_texts
from text_jepa.probe.bootstrap import Score, score_answers
from text_jepa.probe.glue import FUNCTIONS
from text_jepa.probe.predictors import knn_predict
from text_jepa.probe.word_counting import WordCounting, evenly


# The most held-out documents that the weights of a run are selected and compared on, and the most training documents
# that TF-IDF and BM25 are fitted on.
HELD_OUT_DOCUMENTS = 4_000
TRAINING_DOCUMENTS = 20_000

# The questions, by their names in tables.
REST = "rest of the document"
TITLE = "title to text"
LABEL = "label by neighbours"

# Metrics of a search, the leading one first.
SEARCH_METRICS = ("r@10", "r@1", "mrr")

# The modes of searches and of labels, as tables name them.
_SEARCH_MODE = "cosine raw"
_LABEL_MODE = "knn"

# Names of the texts that TF-IDF and BM25 are fitted on.
TRAINING_TEXTS = "training texts"
SCORED_TEXTS = "scored texts"

# The encoder before a run with the mean of its vectors subtracted: a gain that needs no training.
CENTRED = "before, centred"

# Widths that vectors may be cut to, see `variants_of`.
SIZES = (64, 128, 256)
_SIZE_OF = {f"first {size} features": size for size in SIZES}

# Words of a passage, and words between a passage and the one that it has to find.
PASSAGE_WORDS = 32
GAP_WORDS = 64

# Words of the shortest document that gives passages.
SHORTEST_DOCUMENT = 16

# More queries narrow an interval by less than a point.
MAX_QUERIES = 2_000

# Among fewer candidates, its own one included, anything is among the first ten.
MIN_QUERIES = 20

# Scores are rounded before they are ranked, for those of a collapsed encoder differ by rounding errors alone.
_DECIMALS = 6

Answers = dict[tuple[str, str, str, str], np.ndarray]
"""(task, mode, metric, system) to (K, Q), one row per seed: values of the metric by query, or predictions."""


# ---- documents ------------------------------------------------------------------------------------------------------


class Documents(NamedTuple):
    """N documents, with titles and labels if their columns were named."""

    texts: list[str]
    titles: list[str] | None
    labels: list | None


def load_documents(
    files: Sequence[str],
    text_column: str | Sequence[str] = "text",
    title_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | None = None,
    quoting: Quoting = "checked",
) -> Documents:
    """Loads documents: files of text as training reads them, and each row of a jsonl, csv or parquet file.

    Rows without a text, a title or a label are left out.

    Args:
        files: Paths, folders and globs, see `find_files`.
        text_column: Column of the texts, or several that are joined.
        title_column: Column of the titles, if any.
        label_column: Column of the labels, if any: classes, as numbers or as text.
        cache_dir: Cache of the datasets library.
        quoting: What a quote is in csv and tsv files.

    Raises:
        UsageError: A file or column is missing or cannot be read, or no document is left.
    """
    columns = {"text": text_column}
    if title_column is not None:
        columns["title"] = title_column
    if label_column is not None:
        columns["label"] = label_column
    dataset = load_columns(files, "texts", columns, cache_dir, quoting)
    rows = _complete_rows(dataset, list(columns))
    if not rows:
        names = [name if isinstance(name, str) else ", ".join(name) for name in columns.values()]
        raise UsageError(f"--texts {files[0]}: no document with {' and '.join(names)}; name other files or columns")
    values = [list(column) for column in zip(*rows, strict=True)]
    found = dict(zip(columns, values, strict=True))
    labels = found.get("label")
    return Documents(
        texts=found["text"],
        titles=found.get("title"),
        labels=None if labels is None else [_as_label(label) for label in labels],
    )


def _as_label(text: str) -> Any:
    """The label of this JSON; a blank beside it does not make another class."""
    label = json.loads(text)
    return label.strip() if isinstance(label, str) else label


def _complete_rows(dataset: Dataset, columns: Sequence[str]) -> list[tuple]:
    """The values of these columns, of the rows that lack none."""
    values = [list(dataset[column]) for column in columns]
    rows = []
    for row in zip(*values, strict=True):
        if not any(_is_missing(value) for value in row):
            rows.append(row)
    return rows


def _is_missing(value: str | None) -> bool:
    return value is None or value.strip('" ') == ""  # labels are JSON, so that an empty one has quotes


# ---- passages -------------------------------------------------------------------------------------------------------


class Passages(NamedTuple):
    """P pairs of passages of a document: a query, and the answer it has to find; and the document's number (P,)."""

    queries: list[str]
    answers: list[str]
    documents: np.ndarray


def cut_passages(documents: Sequence[str], limit: int = MAX_QUERIES) -> Passages:
    """Cuts pairs of passages out of documents, always the same ones.

    A pair is 32 words and, 64 words after them, 32 more words of the same document. A shorter document of at least 16
    words gives its two halves. In scripts without spaces between words, two characters count as a word, see
    `words_with_spaces`. Each document gives one pair; if these are fewer than `limit`, longer documents give more,
    without overlap and evenly spread over documents and within each.

    Args:
        documents: N texts.
        limit: Largest number of pairs; of more documents this many are taken, evenly spaced.

    Returns:
        P pairs in the order of the documents.
    """
    block = 2 * PASSAGE_WORDS + GAP_WORDS
    lengths = np.array([len(words_with_spaces(document)) for document in documents], dtype=np.int64)
    has_halves = lengths >= SHORTEST_DOCUMENT
    room = np.where(lengths >= block, lengths // block, has_halves)
    pairs = _share_out(room, limit)
    queries = []
    answers = []
    numbers = []
    for number in np.flatnonzero(pairs):
        words = words_with_spaces(documents[number])
        if len(words) < block:
            half = len(words) // 2
            queries.append(_passage(words[:half]))
            answers.append(_passage(words[half:]))
        else:
            for pair in range(pairs[number]):
                start = block * (pair * room[number] // pairs[number])
                end = start + block
                queries.append(_passage(words[start : start + PASSAGE_WORDS]))
                answers.append(_passage(words[end - PASSAGE_WORDS : end]))
        numbers += [number] * pairs[number]
    return Passages(queries, answers, np.array(numbers, dtype=np.int64))


def _passage(words: Sequence[str]) -> str:
    """The text of words from `words_with_spaces`."""
    return "".join(words).rstrip()


def _share_out(room: np.ndarray, limit: int) -> np.ndarray:
    """Number of pairs (N,) of each document: one more in each round, up to its `room` (N,), `limit` pairs in all."""
    pairs = np.zeros(len(room), np.int64)
    while pairs.sum() < limit and (pairs < room).any():
        has_room = np.flatnonzero(pairs < room)
        missing = limit - pairs.sum()
        pairs[evenly(has_room, missing)] += 1
    return pairs


# ---- searches and labels --------------------------------------------------------------------------------------------


class Search(NamedTuple):
    """Q queries and Q candidates; each query has to find its own candidate, the one of the same number.

    The other candidates of its group (Q,) are neither right nor wrong, and are removed from its ranking.
    """

    queries: list[str]
    candidates: list[str]
    groups: np.ndarray


def ranks_of_own(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rank of each query's own candidate, the last one among equal scores.

    Args:
        scores: (Q, Q) scores of the candidates for each query; its own is on the diagonal.
        groups: (Q,) see `Search`.

    Returns:
        (Q,) integers, 1 for the first place.
    """
    scores = scores.round(_DECIMALS)
    own = np.diagonal(scores)
    is_ahead = scores >= own[:, None]
    is_ahead &= groups[:, None] != groups[None, :]
    return 1 + is_ahead.sum(axis=1)


def _search_values(scores: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """`SEARCH_METRICS` of each query, each (Q,) between 0 and 1."""
    ranks = ranks_of_own(scores, groups)
    return {
        "r@10": (ranks <= 10).astype(float),
        "r@1": (ranks == 1).astype(float),
        "mrr": 1 / ranks,
    }


def _number_texts(texts: Sequence[str]) -> np.ndarray:
    """Numbers (N,) of texts from 0, those of equal texts equal; blanks around a text make no other one."""
    number_of = {}
    numbers = [number_of.setdefault(text.strip(), len(number_of)) for text in texts]
    return np.array(numbers, dtype=np.int64)


def _groups_of(passages: Passages, documents: Sequence[str]) -> np.ndarray:
    """Groups (P,) of passages, see `Search`: those of a document and of its copies are one."""
    return _number_texts(documents)[passages.documents]


def _fewest_rivals(groups: np.ndarray) -> int:
    """The fewest candidates of other groups (Q,) that a query is told from."""
    return len(groups) - np.bincount(groups, minlength=1).max()


def _halves(text_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves, always the same; equal texts, see `_number_texts`, are in the same one."""
    distinct = text_numbers.max() + 1
    order = np.random.default_rng(0).permutation(distinct)
    place_of_text = np.argsort(order)
    places = place_of_text[text_numbers]
    rows = np.argsort(places, kind="stable")
    size = np.sum(places < (distinct + 1) // 2)
    return rows[:size], rows[size:]


def _predict_by_neighbours(
    vectors: np.ndarray,
    labels: np.ndarray,
    text_numbers: np.ndarray,
) -> np.ndarray:
    """Labels (N,), each by the ten nearest documents of the half that it is not in, see `_halves`."""
    first, second = _halves(text_numbers)
    predictions = np.empty_like(labels)
    for asked, fitted in ((first, second), (second, first)):
        predictions[asked] = knn_predict(vectors[fitted], labels[fitted], vectors[asked])
    return predictions


def _with_equal_products(vectors: sparse.csr_array) -> np.ndarray:
    """Dense rows (N, N) whose inner products are those of sparse rows (N, W), for functions of dense vectors."""
    products = (vectors @ vectors.T).toarray()
    values, directions = np.linalg.eigh(products)
    return directions * np.sqrt(values.clip(min=0))


# ---- comparing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentScores:
    """Scores of systems on documents.

    Args:
        scores: Scores of all systems, the one in question first, with its lead over each of the others.
        answers: Values of the metric by query, or predicted labels: (1, Q) or (1, N).
        gold: True labels (N,) by task.
        notes: What was left out of the data, one line each.
        documents: Number of documents that gave passages.
        reference: The system that the one in question is compared with in `summarize`, in addition to TF-IDF.
    """

    scores: list[Score]
    answers: Answers
    gold: dict[str, np.ndarray]
    notes: list[str]
    documents: int
    reference: str | None


def compare_on_documents(
    vectors_of: Mapping[str, Callable[[list[str]], np.ndarray]],
    documents: Sequence[str],
    training_texts: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    labels: Sequence | None = None,
    reference: str | None = None,
    max_queries: int = MAX_QUERIES,
    variants: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] | None = None,
) -> DocumentScores:
    """Scores encoders, TF-IDF and BM25 on documents that need no labels.

    Args:
        vectors_of: Functions that turn N texts into vectors (N, D), by the name of their system; the first one is the
            system in question. Each is called once, with all texts.
        documents: N texts, preferably unseen in training.
        training_texts: Texts that TF-IDF and BM25 are fitted on, in addition to a fit on the scored texts.
        titles: N titles, each of which has to find its text.
        labels: N classes, predicted by nearest neighbours.
        reference: The system that the first one is compared with in `summarize`.
        max_queries: Largest number of pairs of passages, titles and labels; fewer are faster and widen intervals.
        variants: More systems by name: each has the name of a system above, and the function that changes the vectors
            (N, D) of that one.

    Returns:
        R@10, R@1 and MRR of the searches and the accuracy of labels, with intervals over 1,000 resamples of the
        queries. Questions with fewer than 20 queries, or with too few candidates of other documents, are left out,
        with a note.

    Raises:
        TypeError: A document, training text or title is not a text.
        UsageError: Vectors are not finite, or the labels are not classes of several documents.
    """
    _check_texts(documents, "documents")
    if training_texts is not None:
        _check_texts(training_texts, "training_texts")
    if titles is not None:
        _check_texts(titles, "titles")
    questions = _make_questions(documents, titles, labels, max_queries)
    answers = {}
    vectors = {}
    for system, embed in vectors_of.items():
        vectors[system] = _embed_questions(questions, system, embed)
    for name, (system, change) in (variants or {}).items():
        vectors[name] = change(vectors[system])
    for system, of_texts in vectors.items():
        answers |= _answer_by_vectors(questions, system, of_texts)
    answers |= _answer_by_words(questions, training_texts)
    gold = {}
    if questions.labels is not None:
        gold[LABEL] = questions.labels
    return DocumentScores(
        scores=score_answers(answers, FUNCTIONS, gold),
        answers=answers,
        gold=gold,
        notes=questions.notes,
        documents=questions.passage_documents,
        reference=reference,
    )


def _check_texts(texts: Sequence[str], name: str) -> None:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{number}] is of type {type(text).__name__}, not str; leave it out")


class _Questions(NamedTuple):
    """The questions that every system answers.

    Args:
        searches: Searches by task.
        texts: N texts with titles or labels.
        labels: (N,) class numbers of the texts, if any.
        text_numbers: (N,) numbers of the texts, equal ones for equal texts.
        notes: What was left out of the data, one line each.
        passage_documents: Number of documents that gave passages.
    """

    searches: dict[str, Search]
    texts: list[str]
    labels: np.ndarray | None
    text_numbers: np.ndarray
    notes: list[str]
    passage_documents: int

    @property
    def distinct_texts(self) -> list[str]:
        """All texts that a system has to embed, sorted."""
        distinct = set()
        for search in self.searches.values():
            distinct.update(search.queries)
            distinct.update(search.candidates)
        if self.labels is not None:
            distinct.update(self.texts)
        return sorted(distinct)


def _make_questions(
    documents: Sequence[str],
    titles: Sequence[str] | None,
    labels: Sequence | None,
    max_queries: int,
) -> _Questions:
    passages = cut_passages(documents, max_queries)
    searches = {REST: Search(passages.queries, passages.answers, _groups_of(passages, documents))}
    notes = []
    rows = evenly(np.arange(len(documents)), max_queries)
    texts = [documents[row] for row in rows]
    text_numbers = _number_texts(texts)
    uses_rows = titles is not None or labels is not None
    if len(rows) < len(documents) and uses_rows:
        notes.append(f"titles and labels: {len(rows):,} of {len(documents):,} documents, evenly chosen")
    if titles is not None:
        chosen = [titles[row] for row in rows]
        searches[TITLE] = Search(chosen, texts, text_numbers)

    large_enough = {}
    for task, search in searches.items():
        rivals = _fewest_rivals(search.groups)
        if len(search.queries) < MIN_QUERIES:
            notes.append(f"{task}: left out, because it has {len(search.queries)} queries ({MIN_QUERIES} are needed)")
        elif rivals < MIN_QUERIES - 1:
            notes.append(
                f"{task}: left out, because a query has only {rivals} candidates from other documents "
                f"({MIN_QUERIES - 1} are needed)"
            )
        else:
            large_enough[task] = search
    numbers = None
    if labels is not None:
        numbers = _class_numbers([labels[row] for row in rows])
        notes += _notes_on_labels(numbers, text_numbers)
    passage_documents = len(np.unique(passages.documents))
    return _Questions(large_enough, texts, numbers, text_numbers, notes, passage_documents)


def _class_numbers(labels: Sequence) -> np.ndarray:
    """A number (N,) for the class of each label; 1 and "1" are two classes."""
    names = [json.dumps(label, default=str) for label in labels]  # NumPy's numbers are not JSON
    classes, numbers = np.unique(names, return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"the labels are all {classes[0]}; name a column with at least two classes (--label_column)")
    return numbers


def _notes_on_labels(labels: np.ndarray, text_numbers: np.ndarray) -> list[str]:
    """Notes on copies, and on documents (N,) whose label no other text has.

    Raises:
        UsageError: These are all documents.
    """
    notes = []
    copies = len(labels) - len(np.unique(text_numbers))
    if copies:
        notes.append(
            f"{LABEL}: {copies:,} of {len(labels):,} documents are copies of others, and no document is predicted by "
            "its copies"
        )
    texts_by_label = np.unique(np.stack([labels, text_numbers]), axis=1)
    texts_of_label = np.bincount(texts_by_label[0])
    alone = np.sum(texts_of_label[labels] == 1)
    if alone == len(labels):
        raise UsageError(
            "no two different texts have the same label, so none can be predicted by its neighbours; name a column of "
            "classes (--label_column), or more documents"
        )
    if alone:
        notes.append(
            f"{LABEL}: {alone:,} of {len(labels):,} documents have a label that no other text has, and count as wrong"
        )
    return notes


def _embed_questions(
    questions: _Questions,
    system: str,
    embed: Callable[[list[str]], np.ndarray],
) -> np.ndarray:
    """Vectors (N, D) of the distinct texts of all questions."""
    texts = questions.distinct_texts
    if not texts:
        return np.zeros((0, 1))
    vectors = embed(texts)
    if not np.isfinite(vectors).all():
        raise UsageError(f"{system}: its features are not finite, so its weights are corrupted; use another encoder")
    return vectors


def _answer_by_vectors(
    questions: _Questions,
    system: str,
    vectors: np.ndarray,
) -> Answers:
    """Answers of a system from its vectors (N, D) of the distinct texts."""
    texts = questions.distinct_texts
    if not texts:
        return {}
    row_of = {text: row for row, text in enumerate(texts)}
    units = normalize(vectors.astype(np.float64))
    answers = {}
    for task, search in questions.searches.items():
        queries = units[[row_of[text] for text in search.queries]]
        candidates = units[[row_of[text] for text in search.candidates]]
        answers |= _search_answers(task, system, queries @ candidates.T, search)
    if questions.labels is not None:
        of_documents = vectors[[row_of[text] for text in questions.texts]]
        answers |= _label_answers(system, of_documents, questions)
    return answers


def _answer_by_words(questions: _Questions, training_texts: Sequence[str] | None) -> Answers:
    """Answers of TF-IDF and BM25, fitted on the training texts, if any, and on the scored ones."""
    fitted = {}
    if training_texts is not None:
        fitted[TRAINING_TEXTS] = WordCounting(training_texts)
    answers = {}
    for task, search in questions.searches.items():
        fitted[SCORED_TEXTS] = WordCounting(search.queries + search.candidates)
        for source, words in fitted.items():
            cosines = words.tfidf(search.queries) @ words.tfidf(search.candidates).T
            answers |= _search_answers(task, f"TF-IDF ({source})", cosines.toarray(), search)
            scores = words.bm25(search.queries, search.candidates)
            answers |= _search_answers(task, f"BM25 ({source})", scores, search)
    if questions.labels is not None:
        fitted[SCORED_TEXTS] = WordCounting(questions.texts)
        for source, words in fitted.items():
            vectors = _with_equal_products(words.tfidf(questions.texts))
            answers |= _label_answers(f"TF-IDF ({source})", vectors, questions)
    return answers


def _search_answers(
    task: str,
    system: str,
    scores: np.ndarray,
    search: Search,
) -> Answers:
    answers = {}
    for metric, values in _search_values(scores, search.groups).items():
        answers[task, _SEARCH_MODE, metric, system] = values[None]
    return answers


def _label_answers(
    system: str,
    vectors: np.ndarray,
    questions: _Questions,
) -> Answers:
    predictions = _predict_by_neighbours(vectors, questions.labels, questions.text_numbers)
    return {(LABEL, _LABEL_MODE, "accuracy", system): predictions[None]}


def variants_of(name: str, name_before: str | None, width: int) -> dict[str, tuple]:
    """Variants for `compare_on_documents`: vectors cut to their first features, and centred ones of the start.

    Args:
        name: The system in question.
        name_before: The encoder that training started from, if any.
        width: D of its vectors.
    """
    variants = {}
    if name_before is not None:
        variants[CENTRED] = (name_before, lambda vectors: centre(vectors) if len(vectors) else vectors)
    for shorter, size in _SIZE_OF.items():
        if size < width:
            variants[shorter] = (name, lambda vectors, size=size: vectors[:, :size])
    return variants


# ---- selecting weights ----------------------------------------------------------------------------------------------


def score_on_documents(
    encoder: Encoder,
    documents: Sequence[str],
    limit: int = MAX_QUERIES,
) -> Callable[[Mapping[str, torch.Tensor]], np.ndarray]:
    """Makes the function by which `choose_share` scores weights: how well passages find the rest of their documents.

    Args:
        encoder: The encoder that the weights are loaded into, a copy of it.
        documents: Texts, preferably unseen in training.
        limit: Largest number of pairs of passages, see `cut_passages`.

    Returns:
        A function of weights by name, which returns the reciprocal rank of each passage in percent.

    Raises:
        UsageError: The documents give too few passages, or too few of different documents.
    """
    passages = cut_passages(documents, limit)
    groups = _groups_of(passages, documents)
    rivals = _fewest_rivals(groups)
    if len(passages.queries) < MIN_QUERIES:
        raise UsageError(
            f"{len(documents):,} documents give {len(passages.queries)} pairs of passages, too few for choosing a "
            f"share ({MIN_QUERIES} are needed); name more or longer ones"
        )
    if rivals < MIN_QUERIES - 1:
        raise UsageError(
            f"a passage has only {rivals} passages of other documents to be ranked against, too few for choosing a "
            f"share ({MIN_QUERIES - 1} are needed); name more documents"
        )
    candidate = replace(encoder, model=copy.deepcopy(encoder.model))

    def score(weights: Mapping[str, torch.Tensor]) -> np.ndarray:
        candidate.model.load_state_dict(weights, strict=False)  # a pooler may be missing
        queries = normalize(embed_texts(candidate, passages.queries))
        answers = normalize(embed_texts(candidate, passages.answers))
        ranks = ranks_of_own(queries @ answers.T, groups)
        return 100 / ranks

    return score


# ---- in a sentence --------------------------------------------------------------------------------------------------


def summarize(found: DocumentScores) -> str:
    """One sentence: how much more often the first system finds the rest of a document than TF-IDF does.

    TF-IDF is fitted on the training texts if there are any.
    """
    by_system = {}
    for score in found.scores:
        if score.task == REST and score.metric == "r@10":
            by_system[score.system] = score
    if not by_system:
        return (
            f"The documents give fewer than {MIN_QUERIES} pairs of passages, or nearly all pairs come from one "
            "document, which is too few for a comparison."
        )
    first, *_ = by_system.values()
    source = TRAINING_TEXTS if f"TF-IDF ({TRAINING_TEXTS})" in by_system else SCORED_TEXTS
    parts = [_comparison(by_system[f"TF-IDF ({source})"], f"TF-IDF fitted on the {source}")]
    if found.reference is not None and CENTRED not in by_system:
        name = "the encoder before" if found.reference == "before" else found.reference
        parts.append(_comparison(by_system[found.reference], name))
    sentence = (
        f"On {first.rows:,} passages of {found.documents:,} documents this encoder finds the rest of the document "
        f"(R@10) {', and '.join(parts)}."
    )
    if CENTRED in by_system:
        sentence += f" {_beside_centring(found, by_system)}"
    return sentence


def _beside_centring(found: DocumentScores, by_system: Mapping[str, Score]) -> str:
    """Sentences with R@10 before and after training, and with what centring gives without training."""
    first, *_ = by_system.values()
    before = by_system[found.reference]
    centred = by_system[CENTRED]
    answers = {}
    for system in (CENTRED, found.reference):
        answers[REST, _SEARCH_MODE, "r@10", system] = found.answers[REST, _SEARCH_MODE, "r@10", system]
    centring, against = score_answers(answers, FUNCTIONS, {})
    return (
        f"Before → after: {before.score:.1f} → {first.score:.1f}, {_lead(before)}. Centring alone (the mean vector "
        f"subtracted, no training) gives {centring.score:.1f}, {_lead(against)}; training compared with centring: "
        f"{_lead(centred)}."
    )


def _lead(other: Score) -> str:
    """How far the first system is ahead of another one, in a few words."""
    interval = f"{other.ahead:+.1f} [{other.ahead_low:+.1f}, {other.ahead_high:+.1f}]"
    if other.ahead_low > 0:
        return f"better ({interval})"
    if other.ahead_high < 0:
        return f"worse ({interval})"
    return f"no significant difference ({interval})"


def shorter_vectors(found: DocumentScores) -> list[tuple[int, float, float, float]]:
    """How well the first features alone find the rest of a document, for cards.

    Returns:
        Number of features, R@10 in percent, and the interval of its lead over all features, see `variants_of`.
    """
    rows = []
    for score in found.scores:
        size = _SIZE_OF.get(score.system)
        if size is not None and (score.task, score.metric) == (REST, "r@10"):
            rows.append((size, score.score, 0 - score.ahead_high, 0 - score.ahead_low))  # no -0.0
    return rows


def _comparison(other: Score, name: str) -> str:
    """How much more often the first system finds the rest of a document than another one, as a part of a sentence."""
    ahead = other.ahead
    low = other.ahead_low
    high = other.ahead_high
    if low > 0:
        return f"{ahead:.1f} [{low:.1f}, {high:.1f}] points more often than {name}"
    if high < 0:
        return f"{-ahead:.1f} [{-high:.1f}, {-low:.1f}] points less often than {name}"
    return f"not significantly more or less often than {name} ({ahead:+.1f} [{low:+.1f}, {high:+.1f}] points)"
