"""How systems answer: by vectors, by counted words, by attention over tokens, by fine-tuning.

Shapes: N rows to be answered, Q queries, D features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from text_jepa.cli import UsageError
from text_jepa.encoders import embeddings
from text_jepa.encoders.embeddings import Encoder
from text_jepa.probe import controls, predictors
from text_jepa.probe.arguments import ProbeArguments
from text_jepa.probe.documents import TRAINING_TEXTS
from text_jepa.probe.finetuning import finetune
from text_jepa.probe.questions import (
    ATTENTIVE_ROWS,
    TRAINING_ROWS,
    Questions,
    asked_rows,
    asked_splits,
    ranked_pairs,
    ranked_texts,
    training_rows,
)
from text_jepa.probe.reranking import RerankingTask, rerank_per_query
from text_jepa.probe.systems import (
    BM25,
    MAJORITY,
    TFIDF,
    System,
    Vectors,
    count_layers,
    embed_by_each,
    plain_folder,
    with_random_weights,
)
from text_jepa.probe.tasks import Task
from text_jepa.probe.word_counting import WordCounting


class Answer(NamedTuple):
    """What one system answers to one task in one mode, with one seed.

    Args:
        task: The task or reranking set.
        mode: How it was answered, such as `linear`.
        system: Who answered.
        values: Predictions (N,); of a reranking set MAP, MRR, P@1 and P@5 by name, each (Q,) by query.
        settings: Settings of the fine-tuning, if it was one.
    """

    task: Task | RerankingTask
    mode: str
    system: System
    values: np.ndarray | dict[str, np.ndarray]
    settings: dict[str, Any] | None = None


def answer_questions(
    questions: Questions,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> Iterator[Answer]:
    """Answers of every system to every task, in every mode.

    Args:
        questions: The tasks; documents are compared elsewhere.
        encoders: The encoders, the one in question first.
        args: The arguments.

    Raises:
        UsageError: Features are not finite, or labels cannot be learned.
    """
    tasks = questions.tasks
    rerankings = questions.rerankings
    uses_vectors = "linear" in args.mode or "knn" in args.mode
    pooled = tasks if uses_vectors else []

    texts = texts_to_embed(pooled, rerankings, args)
    if texts:
        for system, vectors in embed_by_each(encoders, texts, args):
            for task in pooled:
                yield from answer_by_vectors(task, system, vectors, args)
            for task in rerankings:
                yield from rank_by_vectors(task, system, vectors)
    if args.controls:
        for task in pooled:
            yield from answer_by_words(task, args)
        for task in rerankings:
            yield from rank_by_words(task, args)
    if args.controls and args.train_texts:
        words = WordCounting(questions.training_texts)
        for task in pooled:
            yield from answer_by_training_words(task, words, args)
        for task in rerankings:
            yield from rank_by_training_words(task, words, args)

    if "attentive" in args.mode:
        for task in tasks:
            yield from answer_by_attention(task, encoders, args)
    for task in tasks:
        if "finetune" in args.mode:
            yield from answer_by_finetuning(task, encoders, args)
        if args.controls and task.kind == "classification":
            yield answer_by_majority(task, args)


def texts_to_embed(
    tasks: Sequence[Task],
    rerankings: Sequence[RerankingTask],
    args: ProbeArguments,
) -> list[str]:
    """The distinct texts of all tasks."""
    texts = set()
    for task in tasks:
        texts |= training_rows(task, TRAINING_ROWS, args).distinct_texts
        texts |= asked_rows(task, args).distinct_texts
    for task in rerankings:
        texts.update(ranked_texts(task))
    return sorted(texts)


def count_fits(
    tasks: Sequence[Task],
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> int:
    """Number of answers in the modes of `--mode`: one per task, system and seed; nearest neighbours know no seed."""
    seeds = len(args.seeds)
    # Random weights are a system of their own for each seed.
    with_seeds = (len(encoders) + args.controls) * seeds
    # The bag of embeddings and TF-IDF, and the layers.
    others = 2 if args.controls else 0
    if args.layer_sweep:
        others += count_layers(encoders[0])
    fits_of_mode = {
        "linear": with_seeds + others * seeds,
        "knn": len(encoders) + seeds * args.controls + others,
        "attentive": with_seeds,
        "finetune": with_seeds,
    }
    return len(tasks) * sum(fits_of_mode[mode] for mode in args.mode)


@contextmanager
def naming_errors(system: System, task: Task) -> Iterator[None]:
    """Turns an error about features or labels into one that names the system and the task."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{task.name}, {system.name}: {error}") from error


# ---- predictions ----------------------------------------------------------------------------------------------------


def answer_by_vectors(
    task: Task,
    system: System,
    vectors: Vectors,
    args: ProbeArguments,
) -> Iterator[Answer]:
    """Linear probe and nearest neighbours; for similarities also cosines."""
    yield from fit_on_vectors(task, system, vectors, args)
    if task.is_similarity:
        u = np.stack([vectors[text] for text in task.test.texts])
        v = np.stack([vectors[text] for text in task.test.pairs])
        for form, cosines in predictors.sts_cosines(u, v).items():
            yield Answer(task, f"cosine {form}", system, cosines)


def fit_on_vectors(
    task: Task,
    system: System,
    vectors: Vectors,
    args: ProbeArguments,
) -> Iterator[Answer]:
    """Linear probe, one for each seed, and nearest neighbours."""
    rows = training_rows(task, TRAINING_ROWS, args)
    train = predictors.split_features(rows, vectors)
    asked = predictors.split_features(asked_rows(task, args), vectors)
    with naming_errors(system, task):
        if "linear" in args.mode:
            for seed in system.seeds:
                predictions = predictors.fit_linear(train, rows.labels, asked, seed)
                yield Answer(task, "linear", system, predictions)
        if "knn" in args.mode:
            predictions = predictors.knn_predict(train, rows.labels, asked)
            yield Answer(task, "knn", system, predictions)


def answer_by_words(task: Task, args: ProbeArguments) -> Iterator[Answer]:
    """Linear probe and nearest neighbours on components of TF-IDF; for similarities cosines of all its words."""
    system = System(TFIDF, args.seeds)
    fitted_on = training_rows(task, TRAINING_ROWS, args).distinct_texts
    asked = asked_rows(task, args).distinct_texts
    texts = sorted(fitted_on | asked)
    with naming_errors(system, task):
        matrix = controls.tfidf_vectors(sorted(fitted_on), texts)
    vectors = dict(zip(texts, matrix, strict=True))
    yield from fit_on_vectors(task, system, vectors, args)
    if task.is_similarity:
        first = task.test.texts
        second = task.test.pairs
        cosines = controls.tfidf_cosines(first + second, first, second)
        yield Answer(task, "cosine raw", system, cosines)


def answer_by_training_words(
    task: Task,
    words: WordCounting,
    args: ProbeArguments,
) -> Iterator[Answer]:
    """Cosines of TF-IDF fitted on the training texts, for similarities."""
    if task.is_similarity:
        cosines = words.tfidf_of_pairs(task.test.texts, task.test.pairs)
        yield Answer(task, "cosine raw", _fitted_on_training_texts(TFIDF, args), cosines)


def answer_by_attention(
    task: Task,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> Iterator[Answer]:
    """The attentive probe, for the encoders and random weights."""
    rows = training_rows(task, ATTENTIVE_ROWS, args)
    asked = asked_rows(task, args)
    for encoder, system in with_random_weights(encoders, args):
        train_states = embeddings.token_states(encoder, rows.texts, rows.pairs, layers=args.layers)
        asked_states = embeddings.token_states(encoder, asked.texts, asked.pairs, layers=args.layers)
        with naming_errors(system, task):
            for seed in system.seeds:
                predictions = predictors.attentive_predict(train_states, rows.labels, asked_states, seed=seed)
                yield Answer(task, "attentive", system, predictions)


def answer_by_finetuning(
    task: Task,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> Iterator[Answer]:
    """Fine-tunes the encoders and random weights."""
    overrides = dict(pair.split("=", 1) for pair in args.finetune_args or ())
    for encoder, system in with_random_weights(encoders, args):
        with plain_folder(encoder, args.cache_dir) as folder:
            for seed in system.seeds:
                tuned = finetune(folder, task, seed, encoder.max_length, overrides, cache_dir=args.cache_dir)
                predictions = [tuned.predictions[split] for split in asked_splits(task, args)]
                settings = {
                    "task": task.name,
                    "system": system.name,
                    "seed": seed,
                    "epoch": tuned.epoch,
                    "dev_score": tuned.dev_score,
                    **tuned.settings,
                }
                yield Answer(task, "finetune", system, np.concatenate(predictions), settings)


def answer_by_majority(task: Task, args: ProbeArguments) -> Answer:
    """The most frequent class of the training split."""
    commonest = np.bincount(task.train.labels).argmax()
    predictions = np.full(len(task.test), commonest)
    return Answer(task, "majority", System(MAJORITY, args.seeds), predictions)


def _fitted_on_training_texts(name: str, args: ProbeArguments) -> System:
    return System(f"{name} ({TRAINING_TEXTS})", args.seeds)


# ---- rankings -------------------------------------------------------------------------------------------------------


def rank_by_vectors(
    task: RerankingTask,
    system: System,
    vectors: Vectors,
) -> Iterator[Answer]:
    """Ranks the candidates by raw and by centred cosines."""
    texts = ranked_texts(task)
    if not texts:
        return
    raw = np.stack([vectors[text] for text in texts]).astype(np.float64)
    forms = {"raw": raw, "centred": embeddings.centre(raw)}
    for form, matrix in forms.items():
        vector_of = dict(zip(texts, matrix, strict=True))
        scores = []
        for query in task.queries:
            own = vector_of[task.texts[query.id]]
            candidates = np.stack([vector_of[task.texts[candidate]] for candidate in query.candidates])
            scores.append(embeddings.cosine(own, candidates))
        yield _ranking(task, form, system, scores)


def rank_by_words(task: RerankingTask, args: ProbeArguments) -> Iterator[Answer]:
    """Ranks the candidates by cosines of TF-IDF, and as BM25 does."""
    if task.texts is not None:
        queries, candidates = ranked_pairs(task)
        texts = list(task.texts.values())
        cosines = controls.tfidf_cosines(texts, queries, candidates, sublinear=True)
        yield _ranking(task, "raw", System(TFIDF, args.seeds), _by_query(task, cosines))
    if all(query.bm25 is not None for query in task.queries):
        scores = []
        for query in task.queries:
            # Equal scores keep the order of the file: it is the order in which BM25 returned them.
            order = np.argsort(-query.bm25, kind="stable")
            ranks = np.argsort(order)
            scores.append(-ranks)
        yield _ranking(task, "raw", System(BM25, args.seeds), scores)


def rank_by_training_words(
    task: RerankingTask,
    words: WordCounting,
    args: ProbeArguments,
) -> Iterator[Answer]:
    """Ranks the candidates by TF-IDF and BM25 fitted on the training texts, if the set has its texts."""
    if task.texts is None:
        return
    queries, candidates = ranked_pairs(task)
    scores_of = {
        TFIDF: words.tfidf_of_pairs(queries, candidates),
        BM25: words.bm25_of_pairs(queries, candidates),
    }
    for name, scores in scores_of.items():
        yield _ranking(task, "raw", _fitted_on_training_texts(name, args), _by_query(task, scores))


def _by_query(task: RerankingTask, scores: np.ndarray) -> list[np.ndarray]:
    """Scores of `ranked_pairs`, split by query."""
    sizes = [len(query.candidates) for query in task.queries]
    ends = np.cumsum(sizes)
    return np.split(scores, ends[:-1])


def _ranking(
    task: RerankingTask,
    form: str,
    system: System,
    scores: Sequence[np.ndarray],
) -> Answer:
    """The answer whose scores, of the candidates of each query, are cosines of this form or count as such."""
    relevant = [query.relevant for query in task.queries]
    return Answer(task, f"cosine {form}", system, rerank_per_query(scores, relevant))
