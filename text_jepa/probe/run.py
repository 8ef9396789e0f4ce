"""The engine of the probe: encoders and controls x tasks x modes, to scores.

`probe` is the whole of it: every system answers every task in every mode (`predict`, `judge`), and all answers are
scored on the same rows (`scored_answers`, `score_answers`).

Shapes: N rows to be answered, Q queries, D features.
"""

import dataclasses
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, set_seed

from configuration_text_jepa import TextJepaConfig
from text_jepa import embeddings
from text_jepa.cli import UsageError
from text_jepa.data.builtin_corpus import load_builtin_corpus
from text_jepa.data.corpus import load_texts
from text_jepa.embeddings import Encoder, open_encoder
from text_jepa.probe import controls, predictors
from text_jepa.probe.arguments import ProbeArguments, names_nothing
from text_jepa.probe.bootstrap import Score, score_answers
from text_jepa.probe.catalog import load_tasks
from text_jepa.probe.documents import (
    HELD_OUT_DOCUMENTS,
    MIN_QUERIES,
    SHORTEST_DOCUMENT,
    TRAINING_DOCUMENTS,
    TRAINING_TEXTS,
    Answers,
    Documents,
    DocumentScores,
    WordCounting,
    judge_documents,
    load_documents,
    verdict,
)
from text_jepa.probe.finetuning import finetune
from text_jepa.probe.glue import FUNCTIONS, write_submission
from text_jepa.probe.report import headline, macro_averages
from text_jepa.probe.reranking import RERANKING_METRICS, RerankingTask, rerank_per_query
from text_jepa.probe.tasks import Split, Task


# More training rows than these are not embedded: a linear probe hardly gains from them.
TRAINING_ROWS = 10_000

# The states of all tokens of a row take a hundred times the memory of their mean, and the attention trains for epochs.
ATTENTIVE_ROWS = 2_000

# Names of the controls in tables.
TFIDF = "TF-IDF"
BM25 = "BM25"
RANDOM = "random weights"
BAG = "bag of its embeddings"
MAJORITY = "majority"

Vectors = dict[str, np.ndarray]
"""Vector (D,) of each text."""

Predictions = dict[str, dict[str, list]]
"""Mode to system to one array (N,) per seed, or a single one if the seed changes nothing; for reranking, to the
figures of `rerank_per_query` instead of arrays."""


class ProbeResults(NamedTuple):
    """All that a probe found.

    Args:
        scores: All scores, those of the first encoder leading.
        answers: (task, mode, metric, system) to (K, N) answers by seed and row, for reranking by query.
        gold: Labels (N,) by task, if the answers are predictions.
        notes: What was done to the data, one line each.
        splits: Scored split by task.
        verdict: One sentence about the documents, if there are any.
        finetuning: Settings of each fine-tuning.
        tasks: The tasks without the reranking sets.
        predicted: Predictions of each of these tasks, those of hidden test splits included.
    """

    scores: list[Score]
    answers: Answers
    gold: dict[str, np.ndarray]
    notes: list[str]
    splits: dict[str, str]
    verdict: str | None
    finetuning: list[dict[str, Any]]
    tasks: list[Task]
    predicted: dict[Task, Predictions]


class Questions(NamedTuple):
    """What every system is asked.

    Args:
        tasks: Tasks with labels.
        rerankings: Reranking sets.
        documents: Documents without labels, if any.
        training_texts: Texts that TF-IDF and BM25 are fitted on, if any.
    """

    tasks: list[Task]
    rerankings: list[RerankingTask]
    documents: Documents | None
    training_texts: list[str] | None


def probe(
    questions: Questions,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> ProbeResults:
    """Scores encoders and controls on tasks and documents.

    Args:
        questions: Tasks and documents.
        encoders: The encoders, the one in question first.
        args: The arguments.

    Raises:
        UsageError: Features are not finite, labels cannot be learned, or the documents are too few or too short.
    """
    tasks = questions.tasks
    rerankings = questions.rerankings
    fits = count_fits(tasks, encoders, args)
    with tqdm(total=fits, desc="Probing", unit=" fits", disable=None, leave=False) as bar:
        predicted, finetuning = predict(questions, encoders, args, bar)
    answers = scored_answers(tasks, rerankings, predicted)
    gold = {task.name: task.test.labels for task in tasks}
    scores = score_answers(answers, FUNCTIONS, gold, args.seeds[0])
    averaged = [score for score in scores if score.task in gold and not is_layer(score.system)]
    scores += macro_averages(averaged)

    notes = []
    splits = {}
    for task in tasks:
        notes += task.notes
        splits[task.name] = task.scored
    for task in rerankings:
        notes += task.notes
        splits[title_of(task)] = task.split
    sentence = None
    if questions.documents is not None:
        found = judge(questions, encoders, args)
        if not found.scores:
            source = f"--texts {args.texts[0]}" if args.texts else "the built-in corpus"
            raise UsageError(
                f"{source}: the documents are too few or too short: at least {MIN_QUERIES} of {SHORTEST_DOCUMENT} "
                "words are needed"
            )
        scores += found.scores
        answers |= found.answers
        gold |= found.gold
        notes += found.notes
        splits |= {score.task: "test" for score in found.scores}
        sentence = verdict(found)
    return ProbeResults(
        scores=scores,
        answers=answers,
        gold=gold,
        notes=notes,
        splits=splits,
        verdict=sentence,
        finetuning=finetuning,
        tasks=tasks,
        predicted=predicted,
    )


# ---- what is asked --------------------------------------------------------------------------------------------------


def load_questions(args: ProbeArguments) -> Questions:
    """Loads all that the arguments name.

    Raises:
        UsageError: Something is missing or cannot be read, or a flag has no effect on what is named.
    """
    tasks, rerankings = load_tasks(args)
    documents = asked_documents(args)
    training_texts = word_counting_texts(args)
    has_similarities = any(task.is_similarity for task in tasks)
    uses_words = documents is not None or rerankings or has_similarities
    if args.train_texts and not uses_words:
        raise UsageError("--train_texts goes with --texts, --rerank_dir or a task of similarities such as stsb")
    has_hidden_labels = any(len(asked_splits(task, args)) > 1 for task in tasks)
    if args.do_predict and not has_hidden_labels:
        raise UsageError("--do_predict: no task has a test split with hidden labels; leave the flag out")
    return Questions(tasks, rerankings, documents, training_texts)


def asked_documents(args: ProbeArguments) -> Documents | None:
    """The documents of `--texts`; if nothing is named, held-out documents of the built-in corpus; else none.

    The latter are those that a run on the built-in corpus is judged on at its end: the second half of the documents
    that it holds out, because the first half selects how its weights are merged. Beside a `--task_file`, the label
    column belongs to that file.
    """
    if names_nothing(args):
        corpus = load_builtin_corpus(args.cache_dir)
        held_out = corpus["validation"]["text"][:HELD_OUT_DOCUMENTS]
        return Documents(held_out[1::2], titles=None, labels=None)
    if not args.texts:
        return None
    label_column = None if args.task_file else args.label_column
    return load_documents(
        args.texts,
        args.text_column,
        args.title_column,
        label_column,
        args.cache_dir,
        args.quoting,
    )


def word_counting_texts(args: ProbeArguments) -> list[str] | None:
    """The texts of `--train_texts`; if nothing is named, the texts of the built-in corpus that a run counts."""
    if args.train_texts:
        dataset = load_texts(args.train_texts, "train_texts", args.text_column, args.cache_dir, args.quoting)
        return [text for text in dataset["text"] if text]
    if names_nothing(args):
        corpus = load_builtin_corpus(args.cache_dir)
        return corpus["train"]["text"][:TRAINING_DOCUMENTS]  # `take` of older versions wants as many
    return None


def asked_splits(task: Task, args: ProbeArguments) -> list[str]:
    """The scored split, and with `--do_predict` the test split if its labels are hidden."""
    splits = [task.scored]
    test = task.splits.get("test")
    if args.do_predict and test and test.labels is None:
        splits.append("test")
    return splits


def asked_rows(task: Task, args: ProbeArguments) -> Split:
    """The rows of `asked_splits` without labels: a prediction depends on nothing but its own row."""
    texts = []
    pairs = None if task.test.pairs is None else []
    for name in asked_splits(task, args):
        part = task.splits[name]
        texts += part.texts
        if pairs is not None:
            pairs += part.pairs
    return Split(texts, pairs, labels=None, ids=[])


def training_rows(
    task: Task,
    limit: int,
    args: ProbeArguments,
) -> Split:
    """At most `limit` rows of the training split, the same ones for all systems and seeds."""
    if len(task.train) <= limit:
        return task.train
    generator = np.random.default_rng(args.seeds[0])
    rows = generator.choice(len(task.train), limit, replace=False)
    return task.train.select(sorted(rows))


def title_of(task: RerankingTask) -> str:
    """The name of a reranking set in tables, with its split, which is a file."""
    return f"{task.name} {task.split}"


# ---- who is asked ---------------------------------------------------------------------------------------------------


def newest_run() -> str:
    """The folder of the last run that ended with an encoder.

    Raises:
        UsageError: There is none.
    """
    runs = sorted(Path("runs").glob("*/modules.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("no encoder in runs/; train one with `make pretrain`, or name one")
    return str(runs[-1].parent)


def open_encoders(names: Sequence[str], args: ProbeArguments) -> list[Encoder]:
    """Opens the encoders, the one in question first.

    Raises:
        UsageError: One cannot be opened, or has fewer layers than `--layers`.
    """
    encoders = []
    for name in dict.fromkeys(names):
        encoder = open_encoder(name, args.max_length, args.pooling)
        layers = count_layers(encoder)
        if args.layers > layers:
            raise UsageError(f"--layers {args.layers}: {name} has {layers}, the embeddings included")
        encoders.append(encoder)
    return encoders


def count_layers(encoder: Encoder) -> int:
    """Number of layers, the embeddings included."""
    config = encoder.model.config.get_text_config()
    return config.num_hidden_layers + 1


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture, tokenizer and pooling, word weights included, with random weights."""
    set_seed(seed)
    model = AutoModel.from_config(encoder.model.config, trust_remote_code=False).to(encoder.model.device)
    if model.config.get_text_config().num_hidden_layers == 0:
        # A run starts like this: without layers a position says nothing about a text.
        torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    return dataclasses.replace(encoder, name=RANDOM, model=model)


def with_controls(encoders: Sequence[Encoder], args: ProbeArguments) -> Iterator[tuple[Encoder, list[int]]]:
    """Each encoder with the seeds it stands for: all of them, or the one that drew its random weights."""
    for encoder in encoders:
        yield encoder, args.seeds
    if args.controls:
        for seed in args.seeds:
            yield untrained(encoders[0], seed), [seed]


def embedded(
    encoders: Sequence[Encoder],
    texts: Sequence[str],
    args: ProbeArguments,
) -> Iterator[tuple[str, list[int], Vectors]]:
    """Systems with the seeds they stand for and their vectors; each text is embedded once by each system.

    Raises:
        UsageError: Features are not finite.
    """
    by_layer = []
    for encoder, seeds in with_controls(encoders, args):
        if args.layer_sweep and encoder is encoders[0]:
            by_layer = embeddings.embed_layers(encoder, texts)
            matrix = embeddings.finish_vectors(encoder, by_layer[-args.layers :].mean(axis=0))
        else:
            matrix = embeddings.embed_texts(encoder, texts, layers=args.layers)
        yield encoder.name, seeds, _finite_vectors(encoder.name, texts, matrix)
    if args.controls:
        matrix = controls.bag_of_embeddings(encoders[0], texts)
        yield BAG, args.seeds, _finite_vectors(BAG, texts, matrix)
    for number, matrix in enumerate(by_layer):
        system = layer_name(number)
        yield system, args.seeds, _finite_vectors(system, texts, matrix)


def _finite_vectors(
    system: str,
    texts: Sequence[str],
    matrix: np.ndarray,
) -> Vectors:
    if not np.isfinite(matrix).all():
        raise UsageError(f"{system}: its features are not finite, so its weights are broken; name another checkpoint")
    return dict(zip(texts, matrix, strict=True))


def layer_name(number: int) -> str:
    """The system that is one layer of the first encoder; layer 0 are the embeddings."""
    return f"layer {number}"


def is_layer(system: str) -> bool:
    """Whether `layer_name` made it."""
    return re.fullmatch(r"layer \d+", system) is not None


# ---- answers --------------------------------------------------------------------------------------------------------


def predict(
    questions: Questions,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
    bar: tqdm,
) -> tuple[dict[Task | RerankingTask, Predictions], list[dict[str, Any]]]:
    """Answers of every system to every task.

    Args:
        questions: The tasks.
        encoders: The encoders, the one in question first.
        args: The arguments.
        bar: Progress bar, which advances by one with each of `count_fits`.

    Returns:
        The predictions of each task, and the settings of each fine-tuning.
    """
    tasks = questions.tasks
    rerankings = questions.rerankings
    predicted = {task: defaultdict(partial(defaultdict, list)) for task in [*tasks, *rerankings]}
    uses_vectors = "linear" in args.mode or "knn" in args.mode
    pooled = tasks if uses_vectors else []

    texts = texts_to_embed(pooled, rerankings, args)
    if texts:
        for system, seeds, vectors in embedded(encoders, texts, args):
            for task in pooled:
                answer_by_vectors(task, system, vectors, seeds, args, predicted[task], bar)
            for task in rerankings:
                rank_by_vectors(task, system, vectors, predicted[task])
    if args.controls:
        for task in pooled:
            answer_by_words(task, args, predicted[task], bar)
        for task in rerankings:
            rank_by_words(task, predicted[task])
    if args.train_texts and args.controls:
        words = WordCounting(questions.training_texts)
        for task in pooled:
            answer_by_training_words(task, words, predicted[task])
        for task in rerankings:
            rank_by_training_words(task, words, predicted[task])

    if "attentive" in args.mode:
        for task in tasks:
            answer_by_attention(task, encoders, args, predicted[task], bar)
    settings = []
    for task in tasks:
        if "finetune" in args.mode:
            settings += answer_by_finetuning(task, encoders, args, predicted[task], bar)
        if args.controls and task.kind == "classification":
            answer_by_majority(task, predicted[task])
    return predicted, settings


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
    """How often something is fitted: once per task, mode, system and seed; nearest neighbours know no seed."""
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
def naming_errors(system: str, task: Task) -> Iterator[None]:
    """Turns an error about features or labels into one that names the system and the task."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{task.name}, {system}: {error}") from error


def answer_by_vectors(
    task: Task,
    system: str,
    vectors: Vectors,
    seeds: Sequence[int],
    args: ProbeArguments,
    predicted: Predictions,
    bar: tqdm,
) -> None:
    """Linear probe and nearest neighbours; for similarities also cosines."""
    rows = training_rows(task, TRAINING_ROWS, args)
    train = predictors.split_features(rows, vectors)
    asked = predictors.split_features(asked_rows(task, args), vectors)
    with naming_errors(system, task):
        if "linear" in args.mode:
            for seed in seeds:
                answers = predictors.fit_linear(train, rows.labels, asked, seed)
                predicted["linear"][system].append(answers)
                bar.update()
        if "knn" in args.mode:
            answers = predictors.knn_predict(train, rows.labels, asked)
            predicted["knn"][system].append(answers)
            bar.update()

    # The cosines of TF-IDF are those of all its words, not of its components.
    if task.is_similarity and system != TFIDF:
        u = np.stack([vectors[text] for text in task.test.texts])
        v = np.stack([vectors[text] for text in task.test.pairs])
        for form, cosines in predictors.sts_cosines(u, v).items():
            predicted[f"cosine {form}"][system].append(cosines)


def answer_by_words(
    task: Task,
    args: ProbeArguments,
    predicted: Predictions,
    bar: tqdm,
) -> None:
    """Linear probe, nearest neighbours and cosines of TF-IDF."""
    fitted_on = training_rows(task, TRAINING_ROWS, args).distinct_texts
    asked = asked_rows(task, args).distinct_texts
    texts = sorted(fitted_on | asked)
    with naming_errors(TFIDF, task):
        matrix = controls.tfidf_vectors(sorted(fitted_on), texts)
    vectors = dict(zip(texts, matrix, strict=True))
    answer_by_vectors(task, TFIDF, vectors, args.seeds, args, predicted, bar)
    if task.is_similarity:
        first = task.test.texts
        second = task.test.pairs
        predicted["cosine raw"][TFIDF] = [controls.tfidf_cosines(first + second, first, second)]


def answer_by_training_words(
    task: Task,
    words: WordCounting,
    predicted: Predictions,
) -> None:
    """Cosines of TF-IDF fitted on the training texts, for similarities."""
    if task.is_similarity:
        cosines = words.tfidf_of_pairs(task.test.texts, task.test.pairs)
        predicted["cosine raw"][f"{TFIDF} ({TRAINING_TEXTS})"] = [cosines]


def answer_by_attention(
    task: Task,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
    predicted: Predictions,
    bar: tqdm,
) -> None:
    """The attentive probe, for the encoders and random weights."""
    rows = training_rows(task, ATTENTIVE_ROWS, args)
    asked = asked_rows(task, args)
    for encoder, seeds in with_controls(encoders, args):
        train_states = embeddings.token_states(encoder, rows.texts, rows.pairs, layers=args.layers)
        asked_states = embeddings.token_states(encoder, asked.texts, asked.pairs, layers=args.layers)
        with naming_errors(encoder.name, task):
            for seed in seeds:
                answers = predictors.attentive_predict(train_states, rows.labels, asked_states, seed=seed)
                predicted["attentive"][encoder.name].append(answers)
                bar.update()


def answer_by_finetuning(
    task: Task,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
    predicted: Predictions,
    bar: tqdm,
) -> list[dict[str, Any]]:
    """Fine-tunes the encoders and random weights; returns the settings of each run."""
    overrides = dict(pair.split("=", 1) for pair in args.finetune_args or ())
    settings = []
    for encoder, seeds in with_controls(encoders, args):
        with plain_folder(encoder) as folder:
            for seed in seeds:
                tuned = finetune(folder, task, seed, encoder.max_length, overrides)
                answers = [tuned.predictions[split] for split in asked_splits(task, args)]
                predicted["finetune"][encoder.name].append(np.concatenate(answers))
                settings.append(
                    {
                        "task": task.name,
                        "system": encoder.name,
                        "seed": seed,
                        "epoch": tuned.epoch,
                        "dev_score": tuned.dev_score,
                        **tuned.settings,
                    }
                )
                bar.update()
    return settings


@contextmanager
def plain_folder(encoder: Encoder) -> Iterator[str]:
    """A folder or Hub name that Auto classes open: the encoder's own, or a temporary one with its weights."""
    if encoder.name != RANDOM and not is_pretraining_model(encoder.name):
        yield encoder.name
        return
    with tempfile.TemporaryDirectory() as folder:
        encoder.model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        yield folder


def is_pretraining_model(name: str) -> bool:
    """Whether it is `pretraining/` or a checkpoint of a run, whose encoder no Auto class opens."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    return config.model_type == TextJepaConfig.model_type


def answer_by_majority(task: Task, predicted: Predictions) -> None:
    """The most frequent class of the training split."""
    commonest = np.bincount(task.train.labels).argmax()
    predicted["majority"][MAJORITY] = [np.full(len(task.test), commonest)]


# ---- rankings -------------------------------------------------------------------------------------------------------


def ranked_texts(task: RerankingTask) -> list[str]:
    """The distinct texts of queries and candidates; none if there are only scores of BM25."""
    if not task.texts:
        return []
    texts = set()
    for query in task.queries:
        texts.add(task.texts[query.id])
        texts.update(task.texts[candidate] for candidate in query.candidates)
    return sorted(texts)


def rank_by_vectors(
    task: RerankingTask,
    system: str,
    vectors: Vectors,
    predicted: Predictions,
) -> None:
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
        predicted[f"cosine {form}"][system].append(figures_of(task, scores))


def rank_by_words(task: RerankingTask, predicted: Predictions) -> None:
    """Ranks the candidates by cosines of TF-IDF, and as BM25 does."""
    if task.texts is not None:
        queries, candidates = ranked_pairs(task)
        texts = list(task.texts.values())
        cosines = controls.tfidf_cosines(texts, queries, candidates, sublinear=True)
        predicted["cosine raw"][TFIDF].append(figures_of(task, by_query(task, cosines)))
    if all(query.bm25 is not None for query in task.queries):
        scores = []
        for query in task.queries:
            # Equal scores keep the order of the file: it is the order in which BM25 returned them.
            order = np.argsort(-query.bm25, kind="stable")
            ranks = np.argsort(order)
            scores.append(-ranks)
        predicted["cosine raw"][BM25].append(figures_of(task, scores))


def rank_by_training_words(
    task: RerankingTask,
    words: WordCounting,
    predicted: Predictions,
) -> None:
    """Ranks the candidates by TF-IDF and BM25 fitted on the training texts, if the set has its texts."""
    if task.texts is None:
        return
    queries, candidates = ranked_pairs(task)
    scores_of = {
        TFIDF: words.tfidf_of_pairs(queries, candidates),
        BM25: words.bm25_of_pairs(queries, candidates),
    }
    for name, scores in scores_of.items():
        figures = figures_of(task, by_query(task, scores))
        predicted["cosine raw"][f"{name} ({TRAINING_TEXTS})"].append(figures)


def ranked_pairs(task: RerankingTask) -> tuple[list[str], list[str]]:
    """The text of the query and that of the candidate, for each candidate of each query."""
    queries = []
    candidates = []
    for query in task.queries:
        for candidate in query.candidates:
            queries.append(task.texts[query.id])
            candidates.append(task.texts[candidate])
    return queries, candidates


def by_query(task: RerankingTask, scores: np.ndarray) -> list[np.ndarray]:
    """Scores of `ranked_pairs`, split by query."""
    sizes = [len(query.candidates) for query in task.queries]
    ends = np.cumsum(sizes)
    return np.split(scores, ends[:-1])


def figures_of(task: RerankingTask, scores: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """MAP, MRR, P@1 and P@5 of each query that has a positive candidate."""
    relevant = [query.relevant for query in task.queries]
    return rerank_per_query(scores, relevant)


# ---- scores ---------------------------------------------------------------------------------------------------------


def judge(
    questions: Questions,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> DocumentScores:
    """Scores encoders, controls and word counting on documents; random weights are those of the first seed."""
    documents = questions.documents
    systems = list(encoders)
    if args.controls:
        systems.append(untrained(encoders[0], args.seeds[0]))
    vectors_of = {}
    for encoder in systems:
        vectors_of[encoder.name] = partial(embeddings.embed_texts, encoder, layers=args.layers)
    if args.controls:
        vectors_of[BAG] = partial(controls.bag_of_embeddings, encoders[0])
    return judge_documents(
        vectors_of,
        documents.texts,
        questions.training_texts,
        titles=documents.titles,
        labels=documents.labels,
        reference=systems[1].name if len(systems) > 1 else None,
    )


def scored_answers(
    tasks: Sequence[Task],
    rerankings: Sequence[RerankingTask],
    predicted: dict[Task | RerankingTask, Predictions],
) -> Answers:
    """Answers to the scored rows: (task, mode, metric, system) to (K, N) by seed and row, for reranking by query."""
    answers = {}
    for task in tasks:
        for mode, by_system in predicted[task].items():
            for system, rows in by_system.items():
                scored = np.stack(rows)[:, : len(task.test)]
                for metric in task.metrics:
                    answers[task.name, mode, metric, system] = scored
    for task in rerankings:
        for mode, by_system in predicted[task].items():
            for system, figures in by_system.items():
                for metric in RERANKING_METRICS:
                    values = [by_metric[metric] for by_metric in figures]
                    answers[title_of(task), mode, metric, system] = np.stack(values)
    return answers


# ---- files ----------------------------------------------------------------------------------------------------------


def by_layer(scores: Sequence[Score]) -> dict[tuple[str, str], list[Score]]:
    """(task, mode) to the scores of all layers, in the task's leading metric."""
    layers = [score for score in scores if is_layer(score.system)]
    metrics_of = defaultdict(list)
    for score in layers:
        metrics_of[score.task].append(score.metric)
    found = defaultdict(list)
    for score in layers:
        if score.metric == headline(score.task, metrics_of[score.task]):
            found[score.task, score.mode].append(score)
    return found


def write_hidden(
    results: ProbeResults,
    first: str,
    output_dir: str,
) -> None:
    """Writes what the first encoder, with the first seed, predicts for test splits with hidden labels."""
    for task in results.tasks:
        for mode, by_system in results.predicted[task].items():
            if first not in by_system:
                continue
            first_seed = by_system[first][0]
            hidden = first_seed[len(task.test) :]
            if len(hidden):
                write_submission(Path(output_dir, "predictions", mode), task, "test", hidden)
