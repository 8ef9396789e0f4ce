"""The probe: who is probed, on what, by which predictor, and what came of it."""

import dataclasses
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, set_seed

from configuration_text_jepa import TextJepaConfig
from text_jepa import embeddings
from text_jepa.cli import UsageError
from text_jepa.data.builtin_corpus import load_builtin_corpus
from text_jepa.data.corpus import load_texts
from text_jepa.embeddings import Encoder, open_encoder
from text_jepa.probe import controls, predictors, reranking
from text_jepa.probe.arguments import names_nothing
from text_jepa.probe.bootstrap import Score, compare
from text_jepa.probe.documents import (
    HELD_OUT_DOCUMENTS,
    TRAINING_DOCUMENTS,
    TRAINING_TEXTS,
    Documents,
    DocumentScores,
    WordCounting,
    judge_documents,
    load_documents,
)
from text_jepa.probe.finetuning import finetune
from text_jepa.probe.glue import FUNCTIONS, write_submission
from text_jepa.probe.report import headline
from text_jepa.probe.tasks import Split


# More training rows than these are not embedded: a linear probe hardly gains from them.
TRAINING_ROWS = 10_000

# The states of all tokens of a row take a hundred times the memory of their mean, and the attention trains for epochs.
ATTENTIVE_ROWS = 2_000
TFIDF = "TF-IDF"
RANDOM = "random weights"
BAG = "bag of its embeddings"

# Of each query of a reranking set.
RERANKING = ("map", "mrr", "p@1", "p@5")


def asked_documents(args) -> Documents | None:
    """The documents of `--texts`, if any; of a `--task_file` beside them the label column is the task's.

    Where nothing is named they are those that a run on the built-in corpus is judged on at its end: of the documents
    that it holds out the second half, for the first one chooses how its weights are merged.
    """
    if names_nothing(args):
        held_out = load_builtin_corpus(args.cache_dir)["validation"]["text"]
        return Documents(held_out[:HELD_OUT_DOCUMENTS][1::2], None, None)
    if not args.texts:
        return None
    label_column = None if args.task_file else args.label_column
    return load_documents(args.texts, args.text_column, args.title_column, label_column, args.cache_dir)


def fitted_texts(args) -> list[str] | None:
    """The texts of `--train_texts`; of the built-in corpus, where nothing is named, those that a run counts."""
    if names_nothing(args) and not args.train_texts:
        return load_builtin_corpus(args.cache_dir)["train"].take(TRAINING_DOCUMENTS)["text"]
    if not args.train_texts:
        return None
    texts = load_texts(args.train_texts, "train_texts", args.text_column, args.cache_dir)["text"]
    return [text for text in texts if text]


def asked_splits(task, args) -> list[str]:
    """The scored split, and with `--do_predict` the test split whose labels are hidden."""
    test = task.splits.get("test")
    return [task.scored, "test"] if args.do_predict and test and test.labels is None else [task.scored]


def asked_rows(task, args) -> Split:
    """The rows of `asked_splits` one after the other, without labels: a prediction depends on its own row alone."""
    parts = [task.splits[name] for name in asked_splits(task, args)]
    pairs = None if task.test.pairs is None else [text for part in parts for text in part.pairs]
    return Split([text for part in parts for text in part.texts], pairs, None, [])


def training_rows(task, limit, args) -> Split:
    """At most so many rows of the training split, the same ones for all systems and seeds."""
    if len(task.train) <= limit:
        return task.train
    return task.train.select(
        sorted(np.random.default_rng(args.seeds[0]).choice(len(task.train), limit, replace=False))
    )


def load_encoders(names, args) -> list[Encoder]:
    """The encoders by name, the one in question first."""
    encoders = []
    for name in dict.fromkeys(names):
        encoder = open_encoder(name, args.max_length, args.pooling)
        depth = encoder.model.config.get_text_config().num_hidden_layers + 1
        if args.layers > depth:
            raise UsageError(f"--layers {args.layers}: {name} has {depth}, the embeddings included")
        encoders.append(encoder)
    return encoders


def untrained(encoder, seed) -> Encoder:
    """The same architecture, tokenizer and pooling, weights of words included, with random weights."""
    set_seed(seed)
    model = AutoModel.from_config(encoder.model.config).to(encoder.model.device)
    if model.config.get_text_config().num_hidden_layers == 0:
        # As a run begins: without layers a position says nothing about a text.
        torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    return dataclasses.replace(encoder, name=RANDOM, model=model)


def is_pretraining_model(name: str) -> bool:
    """Whether the encoder is the target encoder inside `pretraining/` or a checkpoint, which no Auto class opens."""
    return AutoConfig.from_pretrained(name, trust_remote_code=False).model_type == TextJepaConfig.model_type


def with_controls(encoders, args) -> Iterator[tuple[Encoder, list[int]]]:
    """Each encoder with the seeds it stands for: all of them, or the one that drew its weights."""
    for encoder in encoders:
        yield encoder, args.seeds
    for seed in args.seeds if args.controls else ():
        yield untrained(encoders[0], seed), [seed]


def newest_run() -> str:
    """The folder of the last run that ended with an encoder."""
    runs = sorted(Path("runs").glob("*/modules.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("no encoder in runs/; train one with `make pretrain`, or name one")
    return str(runs[-1].parent)


def embedded(encoders, texts, args) -> Iterator[tuple[str, list[int], dict[str, np.ndarray]]]:
    """Systems with the seeds they stand for and their vectors by text, each text embedded once."""

    def table(system, vectors):
        if not np.isfinite(vectors).all():
            raise UsageError(
                f"{system}: its features are not finite, so its weights are broken; name another checkpoint"
            )
        return dict(zip(texts, vectors, strict=True))

    by_layer = []
    for encoder, seeds in with_controls(encoders, args):
        if args.layer_sweep and encoder is encoders[0]:
            by_layer = embeddings.embed_layers(encoder, texts)
            vectors = by_layer[-args.layers :].mean(axis=0)
        else:
            vectors = embeddings.embed_texts(encoder, texts, layers=args.layers)
        yield encoder.name, seeds, table(encoder.name, vectors)
    if args.controls:
        yield BAG, args.seeds, table(BAG, controls.bag_of_embeddings(encoders[0], texts))
    for number, vectors in enumerate(by_layer):
        yield layer_name(number), args.seeds, table(layer_name(number), vectors)


def layer_name(number) -> str:
    """The system of one layer of the first encoder; 0 are the embeddings."""
    return f"layer {number}"


def is_layer(system) -> bool:
    """Whether `layer_name` made it."""
    return re.fullmatch(r"layer \d+", system) is not None


def predict(tasks, rerankings, encoders, training_texts, args, bar):
    """What every system says about every task; the bar moves with every fit.

    Returns:
        Task -> mode -> system -> one array (N,) per seed, a single one where seeds change nothing; for reranking the
        figures of `rerank_per_query` instead of an array. And the settings of all fine-tunings, one dict each.
    """
    predicted = {task: defaultdict(lambda: defaultdict(list)) for task in [*tasks, *rerankings]}
    pooled = tasks if {"linear", "knn"} & set(args.mode) else []
    splits = [split for task in pooled for split in (training_rows(task, TRAINING_ROWS, args), asked_rows(task, args))]
    texts = {text for split in splits for key in split.keys for text in key}
    texts |= {text for task in rerankings for text in ranked_texts(task)}
    if texts:
        for system, seeds, table in embedded(encoders, sorted(texts), args):
            for task in pooled:
                answer_by_vectors(task, system, table, seeds, args, predicted[task], bar)
            for task in rerankings:
                rank_by_vectors(task, system, table, predicted[task])
    for task in pooled if args.controls else ():
        answer_by_words(task, args, predicted[task], bar)
    for task in rerankings if args.controls else ():
        rank_by_words(task, predicted[task])
    if args.train_texts and args.controls:
        words = WordCounting(training_texts)
        for task in pooled:
            if task.is_similarity:
                cosines = words.tfidf_of_pairs(task.test.texts, task.test.pairs)
                predicted[task]["cosine raw"][f"{TFIDF} ({TRAINING_TEXTS})"] = [cosines]
        for task in rerankings:
            rank_by_training_words(task, words, predicted[task])
    for task in tasks:
        if "attentive" in args.mode:
            answer_by_attention(task, encoders, args, predicted[task]["attentive"], bar)
    settings = []
    for task in tasks:
        if "finetune" in args.mode:
            settings += answer_by_finetuning(task, encoders, args, predicted[task]["finetune"], bar)
        if args.controls and task.kind == "classification":
            commonest = np.bincount(task.train.labels).argmax()
            predicted[task]["majority"]["majority"] = [np.full(len(task.test), commonest)]
    return predicted, settings


def fits(tasks, encoders, args) -> int:
    """How often something is fitted: for each task and mode each system by each seed, nearest neighbours once."""
    seeds = len(args.seeds)
    heads = (len(encoders) + args.controls) * seeds  # of the encoders and of random weights
    layers = encoders[0].model.config.get_text_config().num_hidden_layers + 1 if args.layer_sweep else 0
    others = 2 * args.controls + layers  # the bag of embeddings and TF-IDF
    of_mode = {"linear": heads + others * seeds, "knn": len(encoders) + seeds * args.controls + others}
    return len(tasks) * sum(of_mode.get(mode, heads) for mode in args.mode)


@contextmanager
def naming(system, task):
    """Says of what it is that features or labels are no good."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{task.name}, {system}: {error}") from error


def answer_by_vectors(task, system, table, seeds, args, predicted, bar):
    """Linear probe and nearest neighbours; of similarities also the cosines."""

    def features_of(split):
        u = np.stack([table[text] for text in split.texts])
        if split.pairs is None:
            return u
        return predictors.pair_features(u, np.stack([table[text] for text in split.pairs]))

    rows = training_rows(task, TRAINING_ROWS, args)
    train, asked = features_of(rows), features_of(asked_rows(task, args))
    with naming(system, task):
        if "linear" in args.mode:
            for seed in seeds:
                predicted["linear"][system].append(predictors.fit_linear(train, rows.labels, asked, seed))
                bar.update()
        if "knn" in args.mode:
            predicted["knn"][system].append(predictors.knn_predict(train, rows.labels, asked))
            bar.update()
    if task.is_similarity and system != TFIDF:
        u, v = (np.stack([table[text] for text in part]) for part in (task.test.texts, task.test.pairs))
        for form, cosines in predictors.sts_cosines(u, v).items():
            predicted[f"cosine {form}"][system].append(cosines)


def answer_by_words(task, args, predicted, bar):
    """The same for TF-IDF."""
    rows, asked = training_rows(task, TRAINING_ROWS, args), asked_rows(task, args)
    fitted_on, texts = (sorted({text for key in keys for text in key}) for keys in (rows.keys, rows.keys + asked.keys))
    with naming(TFIDF, task):
        table = dict(zip(texts, controls.tfidf_vectors(fitted_on, texts), strict=True))
    answer_by_vectors(task, TFIDF, table, args.seeds, args, predicted, bar)
    if task.is_similarity:
        cosines = controls.tfidf_cosines(task.test.texts + task.test.pairs, task.test.texts, task.test.pairs)
        predicted["cosine raw"][TFIDF] = [cosines]


def answer_by_attention(task, encoders, args, predicted, bar):
    """The attentive probe of the encoders and of random weights."""
    rows, asked = training_rows(task, ATTENTIVE_ROWS, args), asked_rows(task, args)
    for encoder, seeds in with_controls(encoders, args):
        train, test = (
            embeddings.token_states(encoder, part.texts, part.pairs, layers=args.layers) for part in (rows, asked)
        )
        with naming(encoder.name, task):
            for seed in seeds:
                predicted[encoder.name].append(predictors.attentive_predict(*train, rows.labels, *test, seed=seed))
                bar.update()


def answer_by_finetuning(task, encoders, args, predicted, bar) -> list[dict]:
    """Fine-tunes the encoders and random weights; returns the settings of each run."""
    overrides = dict(pair.split("=", 1) for pair in args.finetune_args or ())
    settings = []
    for encoder, seeds in with_controls(encoders, args):
        with tempfile.TemporaryDirectory() as folder:
            path = encoder.name
            if encoder.name == RANDOM or is_pretraining_model(encoder.name):
                path = folder
                encoder.model.save_pretrained(folder)
                encoder.tokenizer.save_pretrained(folder)
            for seed in seeds:
                tuned = finetune(path, task, seed, encoder.max_length, overrides)
                predicted[encoder.name].append(
                    np.concatenate([tuned.predictions[s] for s in asked_splits(task, args)])
                )
                kept = {"epoch": tuned.epoch, "dev_score": tuned.dev_score}
                settings.append({"task": task.name, "system": encoder.name, "seed": seed} | kept | tuned.settings)
                bar.update()
    return settings


def ranked_texts(task) -> list[str]:
    """The distinct texts of queries and candidates; none where only BM25's scores are there."""
    ids = {text_id for query in task.queries for text_id in (query.id, *query.candidates)}
    return sorted({task.texts[text_id] for text_id in ids}) if task.texts else []


def rank_by_vectors(task, system, table, predicted):
    """Orders the candidates by raw and by centred cosines."""
    texts = ranked_texts(task)
    if not texts:
        return
    raw = np.stack([table[text] for text in texts]).astype(np.float64)
    for form, matrix in {"raw": raw, "centred": embeddings.centre(raw)}.items():
        rows = dict(zip(texts, matrix, strict=True))
        ranked = [
            embeddings.cosine(rows[task.texts[query.id]], np.stack([rows[task.texts[c]] for c in query.candidates]))
            for query in task.queries
        ]
        predicted[f"cosine {form}"][system].append(figures_of(task, ranked))


def rank_by_words(task, predicted):
    """Orders the candidates by the cosines of TF-IDF, and as BM25 does."""
    if task.texts is not None:
        cosines = controls.tfidf_cosines(list(task.texts.values()), *ranked_pairs(task), sublinear=True)
        predicted["cosine raw"][TFIDF].append(figures_of(task, by_query(task, cosines)))
    if all(query.bm25 is not None for query in task.queries):
        # Of equal scores the file's order counts: it is the order in which BM25 returned them.
        ranked = [-np.argsort(np.argsort(-query.bm25, kind="stable")) for query in task.queries]
        predicted["cosine raw"]["BM25"].append(figures_of(task, ranked))


def rank_by_training_words(task, words, predicted):
    """Orders the candidates by TF-IDF and BM25 of the training texts, where the set has its texts."""
    if task.texts is None:
        return
    queries, candidates = ranked_pairs(task)
    scores_of = {TFIDF: words.tfidf_of_pairs, "BM25": words.bm25_of_pairs}
    for name, score in scores_of.items():
        ranked = by_query(task, score(queries, candidates))
        predicted["cosine raw"][f"{name} ({TRAINING_TEXTS})"].append(figures_of(task, ranked))


def ranked_pairs(task) -> tuple[list[str], list[str]]:
    """The text of the query and that of the candidate for each candidate of each query."""
    queries = [task.texts[query.id] for query in task.queries for _ in query.candidates]
    candidates = [task.texts[c] for query in task.queries for c in query.candidates]
    return queries, candidates


def by_query(task, scores) -> list[np.ndarray]:
    """Scores of `ranked_pairs`, those of each query apart."""
    ends = np.cumsum([len(query.candidates) for query in task.queries])[:-1]
    return np.split(scores, ends)


def figures_of(task, ranked) -> dict[str, np.ndarray]:
    """MAP, MRR, P@1 and P@5 of each query that has a positive candidate."""
    return reranking.rerank_per_query(ranked, [query.relevant for query in task.queries])


def judge(documents, training_texts, encoders, args) -> DocumentScores:
    """What encoders, controls and word counting make of documents; random weights are those of the first seed."""
    asked = list(encoders)
    if args.controls:
        asked.append(untrained(encoders[0], args.seeds[0]))
    vectors_of = {encoder.name: partial(embeddings.embed_texts, encoder, layers=args.layers) for encoder in asked}
    reference = asked[1].name if len(asked) > 1 else None
    if args.controls:
        vectors_of[BAG] = partial(controls.bag_of_embeddings, encoders[0])
    return judge_documents(vectors_of, documents.texts, training_texts, documents.titles, documents.labels, reference)


def scored_answers(tasks, rerankings, predicted) -> tuple[dict[tuple, np.ndarray], dict[str, np.ndarray]]:
    """(task, mode, metric, system) -> (K, N) answers by seed and row, of reranking by query; task -> (N,) labels."""
    answers = {
        (task.name, mode, metric, system): np.stack(rows)[:, : len(task.test)]
        for task in tasks
        for mode, by_system in predicted[task].items()
        for system, rows in by_system.items()
        for metric in task.metrics
    }
    answers |= {
        (title_of(task), mode, metric, system): np.stack([row[metric] for row in rows])
        for task in rerankings
        for mode, by_system in predicted[task].items()
        for system, rows in by_system.items()
        for metric in RERANKING
    }
    return answers, {task.name: task.test.labels for task in tasks}


def all_scores(answers, gold, seed) -> list[Score]:
    """Scores of all systems in all modes on the scored rows; of reranking, means over the queries."""
    columns = defaultdict(dict)
    for (*column, system), rows in answers.items():
        columns[tuple(column)][system] = rows
    return [
        figure
        for (task, mode, metric), by_system in columns.items()
        for figure in compare(
            *(task, mode, metric, FUNCTIONS.get(metric, np.mean), by_system),
            *([gold[task]] if task in gold else []),
            seed=seed,
        )
    ]


def title_of(task) -> str:
    """Of a reranking set, whose split is a file."""
    return f"{task.name} {task.split}"


def by_layer(scores: Sequence[Score]) -> dict[tuple[str, str], list[Score]]:
    """(task, mode) -> the scores of all layers, in the task's leading metric."""
    layers = [score for score in scores if is_layer(score.system)]
    found = defaultdict(list)
    for score in layers:
        if score.metric == headline(score.task, [s.metric for s in layers if s.task == score.task]):
            found[score.task, score.mode].append(score)
    return found


def write_hidden(tasks, predicted, first, args):
    """Writes what the first encoder says, with the first seed, about test splits whose labels are hidden."""
    for task in tasks:
        for mode, by_system in predicted[task].items():
            answers = by_system[first][0][len(task.test) :] if first in by_system else ()
            if len(answers):
                write_submission(Path(args.output_dir, "predictions", mode), task, "test", answers)
