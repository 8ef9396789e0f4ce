"""Tells whether an encoder became better: frozen features and fine-tuning, beside honest controls.

    python run_probe.py                                        # the newest encoder in runs/, no download
    python run_probe.py PATH_OR_NAME --tasks sst2 mrpc stsb --data_dir glue --compare OTHER_ENCODER
    python run_probe.py PATH_OR_NAME --texts "notes/*.txt" --train_texts corpus.txt    # no labels needed
    python run_probe.py PATH_OR_NAME --rerank_dir askubuntu qqp_rerank --output_dir results
    python run_probe.py PATH_OR_NAME --tasks rte cola --mode finetune --seeds 0 1 2 --finetune_args learning_rate=1e-4

Each distinct text is embedded once by each system, and the same rows are scored for all. The features of a pair are
[u, v, |u - v|, u * v]; attention and fine-tuning read both texts together. The controls: the same architecture with
random weights, new ones for each seed; the bag of the model's own embeddings; TF-IDF (256 components fitted on the
training texts; for cosines all words of the set); the commonest class; BM25 where a reranking file has its scores; and
both fitted on `--train_texts`, where the encoder's own training texts are given.
Nothing is chosen by the scored split; intervals are 95 % of bootstrap resamples of its rows. See docs/probing.md.
"""

import dataclasses
import re
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, set_seed

from configuration_text_jepa import TextJepaConfig
from text_jepa import features, probing
from text_jepa.arguments import UsageError, nearest, parse_arguments, run_command
from text_jepa.builtin_corpus import load_builtin_corpus
from text_jepa.closing import HELD_OUT_DOCUMENTS, TRAINING_DOCUMENTS
from text_jepa.data import load_texts
from text_jepa.documents import (
    MIN_QUERIES,
    SHORTEST_DOCUMENT,
    TRAINING_TEXTS,
    Documents,
    DocumentScores,
    WordCounting,
    judge_documents,
    load_documents,
    verdict,
)
from text_jepa.features import Encoder, Pooling, open_encoder
from text_jepa.finetuning import finetune
from text_jepa.glue_metric import FUNCTIONS
from text_jepa.results import (
    Score,
    as_table,
    compare,
    headline,
    macro_averages,
    plot_layers,
    update_card,
    write_answers,
    write_results,
    write_submission,
)
from text_jepa.tasks import (
    GLUE_TASKS,
    RerankingTask,
    Split,
    Task,
    load_glue,
    load_reranking,
    load_task_file,
    package_task,
    question_words_task,
    word_content,
    word_order_task,
)


MODES = ("linear", "knn", "attentive", "finetune")

# More training rows than these are not embedded: a linear probe hardly gains from them.
TRAINING_ROWS = 10_000

# The states of all tokens of a row take a hundred times the memory of their mean, and the attention trains for epochs.
ATTENTIVE_ROWS = 2_000

TFIDF = "TF-IDF"
RANDOM = "random weights"
BAG = "bag of its embeddings"

# Of each query of a reranking set.
RERANKING = ("map", "mrr", "p@1", "p@5")


@dataclass
class ProbeArguments:
    """What to probe, on what, how."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder: folder or Hub name. Default: the newest run in runs/."}
    )
    compare: list[str] | None = field(default=None, metadata={"help": "Further encoders."})
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Tasks of GLUE by name; packages, word_content and word_order on the built-in corpus; "
            "question_words of the questions of QNLI. Default, if nothing else is named: packages, and the documents "
            "that a run on the built-in corpus holds out."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE tasks. Default: the Hub."})
    rerank_dir: list[str] | None = field(default=None, metadata={"help": "Folders in the format of AskUbuntu."})
    with_body: bool = field(default=False, metadata={"help": "Rerank by title and body instead of the title."})
    split: str | None = field(
        default=None,
        metadata={"help": "Scored split of GLUE and reranking: test or validation. Default: test where labelled."},
    )
    task_file: str | None = field(default=None, metadata={"help": "A set of your own: parquet, json, jsonl or csv."})
    task_test_file: str | None = field(default=None, metadata={"help": "Its scored part. Default: every fifth row."})
    texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Documents of your own, without labels, one per line or row: files, folders, globs. A passage has "
            "to find the rest of its document."
        },
    )
    train_texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "What TF-IDF and BM25 are fitted on, as the encoder was: of --texts, --rerank_dir and cosines of "
            "similarity tasks."
        },
    )
    title_column: str | None = field(
        default=None, metadata={"help": "With --texts: column of titles, each of which has to find its text."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the texts of --task_file and --texts."})
    pair_column: str | None = field(default=None, metadata={"help": "Column of its second texts."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of its labels; numbers with a point are scores. Default: label. With --texts (no default) "
            "classes, to be told by nearest neighbours."
        },
    )
    mode: list[str] = field(
        default_factory=lambda: ["linear", "knn"],
        metadata={
            "choices": [*MODES, "all"],
            "help": "Of frozen features: linear probe, nearest neighbours, attention over the tokens; or fine-tuning.",
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Of folds, orders, heads and random encoders; scores are means over them."},
    )
    layers: int = field(default=1, metadata={"help": "Frozen features are the average of so many last layers."})
    layer_sweep: bool = field(
        default=False, metadata={"help": "Also probe every layer of the first encoder (linear, knn, cosines)."}
    )
    pooling: Pooling | None = field(
        default=None,
        metadata={
            "help": "The plain mean over the tokens, or the state of the first. Default: what the folder says, with "
            "its weights of words; else the mean."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longer texts are read in windows of so many tokens; pairs are cut there. Default: what the "
            "folder says, at most 512."
        },
    )
    finetune_args: list[str] | None = field(
        default=None, metadata={"help": "KEY=VALUE in place of the recipe: fields of TrainingArguments."}
    )
    controls: bool = field(
        default=True, metadata={"help": "Probe what needs no training too: --no_controls leaves it out."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Write results, answers and pictures here."})
    do_predict: bool = field(
        default=False, metadata={"help": "Write predictions of hidden test splits in GLUE's format to the output_dir."}
    )
    update_card: bool = field(default=False, metadata={"help": "Write the figures into the encoder's README.md."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and the built-in corpus are kept."})

    def __post_init__(self):
        self.mode = list(MODES) if "all" in self.mode else list(dict.fromkeys(self.mode))
        self.seeds = list(dict.fromkeys(self.seeds))
        if min(self.seeds) < 0:
            raise ValueError("--seeds: must not be negative")
        if self.layers < 1:
            raise ValueError(f"--layers {self.layers}: must be at least 1, the last layer")
        for pair in self.finetune_args or ():
            if "=" not in pair:
                raise ValueError(f"--finetune_args {pair}: expected KEY=VALUE, such as learning_rate=1e-4")
        if self.finetune_args and "finetune" not in self.mode:
            raise ValueError("--finetune_args has no effect without --mode finetune")
        if self.title_column and not self.texts:
            raise ValueError("--title_column goes with --texts")
        if self.layer_sweep and not self.output_dir:
            raise ValueError("--layer_sweep draws a picture: it needs --output_dir")
        if self.do_predict and not self.output_dir:
            raise ValueError("--do_predict writes files: it needs --output_dir")


def main(argv: list[str] | None = None) -> list[Score]:
    """Runs the command; returns all scores."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml")):
        argv.insert(0, "--model_name_or_path")
    (args,) = parse_arguments((ProbeArguments,), argv, __doc__.split("\n")[0])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    first = args.model_name_or_path or newest_run()
    if args.update_card and not Path(first, "README.md").is_file():
        raise UsageError(f"--update_card: {first} is no folder with a README.md; name one or leave the flag out")
    tasks, rerankings = load_tasks(args)
    documents = asked_documents(args)
    training_texts = fitted_texts(args)
    uses_words = documents is not None or rerankings or any(task.is_similarity for task in tasks)
    if args.train_texts and not uses_words:
        raise UsageError("--train_texts goes with --texts, --rerank_dir or a task of similarities such as stsb")
    if args.do_predict and all(len(asked_splits(task, args)) == 1 for task in tasks):
        raise UsageError("--do_predict: no task has a test split with hidden labels; leave the flag out")
    encoders = load_encoders([first, *(args.compare or [])], args)

    count = fits(tasks, encoders, args)
    with tqdm(total=count, desc="Probing", unit=" fits", disable=None, leave=False) as bar:
        predicted, settings = predict(tasks, rerankings, encoders, training_texts, args, bar)
    answers, gold = scored_answers(tasks, rerankings, predicted)
    scores = all_scores(answers, gold, args.seeds[0])
    scores += macro_averages([s for s in scores if s.task in gold and not is_layer(s.system)])
    notes = [note for task in [*tasks, *rerankings] for note in task.notes]
    splits = {task.name: task.scored for task in tasks} | {title_of(task): task.split for task in rerankings}
    if documents is not None:
        found = judge(documents, training_texts, encoders, args)
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
    command = shlex.join(["python", "run_probe.py", *argv])
    print("\n".join([as_table(scores), *(f"note: {note}" for note in notes)]))
    if documents is not None:
        print(verdict(found))
    if args.output_dir:
        facts = {"arguments": dataclasses.asdict(args), "finetuning": settings}
        write_results(args.output_dir, scores, notes, command, facts)
        write_answers(args.output_dir, answers, gold)
    if args.layer_sweep:
        plot_layers(by_layer(scores), Path(args.output_dir, "layers.png"))
    if args.do_predict:
        write_hidden(tasks, predicted, first, args)
    if args.update_card:
        update_card(first, [s for s in scores if not is_layer(s.system)], first, splits, command)
    return scores


# ---- what is asked --------------------------------------------------------------------------------------------------


def names_nothing(args) -> bool:
    """Whether no task, file or folder is named, so that the built-in corpus is asked."""
    return not (args.tasks or args.task_file or args.rerank_dir or args.texts)


def load_tasks(args) -> tuple[list[Task], list[RerankingTask]]:
    """The tasks and the reranking sets asked for."""
    own = {"packages": partial(package_task, args.cache_dir), "word_content": partial(words_task, args.cache_dir)}
    own["question_words"] = partial(question_words_task, args.data_dir, args.cache_dir)
    own["word_order"] = partial(word_order_task, args.cache_dir)
    known = (*GLUE_TASKS, *own)
    tasks = []
    for name in dict.fromkeys(["packages"] if names_nothing(args) else args.tasks or []):
        if name.removesuffix("_mini") not in known:
            raise UsageError(f"--tasks: no task '{name}'{nearest(name, known)} (there are {', '.join(known)})")
        tasks.append(own[name]() if name in own else load_glue(name, args.data_dir, args.cache_dir, args.split))
    if args.task_file:
        columns = (args.text_column, args.pair_column, args.label_column or "label")
        tasks.append(load_task_file(args.task_file, args.task_test_file, *columns, cache_dir=args.cache_dir))
    # AskUbuntu's name of its validation split.
    split = "dev" if args.split == "validation" else args.split or "test"
    folders = dict.fromkeys(args.rerank_dir or [])
    return tasks, [load_reranking(folder, split, args.with_body, args.cache_dir) for folder in folders]


def words_task(cache_dir) -> Task:
    """Word content of the sentences in the held-out part of the built-in corpus, which no encoder was trained on."""
    texts = load_builtin_corpus(cache_dir)["validation"]["text"]
    return word_content([sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+|\n", text) if sentence])


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


# ---- who is asked ---------------------------------------------------------------------------------------------------


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
            by_layer = features.embed_layers(encoder, texts)
            vectors = by_layer[-args.layers :].mean(axis=0)
        else:
            vectors = features.embed_texts(encoder, texts, layers=args.layers)
        yield encoder.name, seeds, table(encoder.name, vectors)
    if args.controls:
        yield BAG, args.seeds, table(BAG, features.bag_of_embeddings(encoders[0], texts))
    for number, vectors in enumerate(by_layer):
        yield layer_name(number), args.seeds, table(layer_name(number), vectors)


def layer_name(number) -> str:
    """The system of one layer of the first encoder; 0 are the embeddings."""
    return f"layer {number}"


def is_layer(system) -> bool:
    """Whether `layer_name` made it."""
    return re.fullmatch(r"layer \d+", system) is not None


# ---- answers --------------------------------------------------------------------------------------------------------


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
        return probing.pair_features(u, np.stack([table[text] for text in split.pairs]))

    rows = training_rows(task, TRAINING_ROWS, args)
    train, asked = features_of(rows), features_of(asked_rows(task, args))
    with naming(system, task):
        if "linear" in args.mode:
            for seed in seeds:
                predicted["linear"][system].append(probing.fit_linear(train, rows.labels, asked, seed))
                bar.update()
        if "knn" in args.mode:
            predicted["knn"][system].append(probing.knn_predict(train, rows.labels, asked))
            bar.update()
    if task.is_similarity and system != TFIDF:
        u, v = (np.stack([table[text] for text in part]) for part in (task.test.texts, task.test.pairs))
        for form, cosines in probing.sts_cosines(u, v).items():
            predicted[f"cosine {form}"][system].append(cosines)


def answer_by_words(task, args, predicted, bar):
    """The same for TF-IDF."""
    rows, asked = training_rows(task, TRAINING_ROWS, args), asked_rows(task, args)
    fitted_on, texts = (sorted({text for key in keys for text in key}) for keys in (rows.keys, rows.keys + asked.keys))
    with naming(TFIDF, task):
        table = dict(zip(texts, features.tfidf_vectors(fitted_on, texts), strict=True))
    answer_by_vectors(task, TFIDF, table, args.seeds, args, predicted, bar)
    if task.is_similarity:
        cosines = features.tfidf_cosines(task.test.texts + task.test.pairs, task.test.texts, task.test.pairs)
        predicted["cosine raw"][TFIDF] = [cosines]


def answer_by_attention(task, encoders, args, predicted, bar):
    """The attentive probe of the encoders and of random weights."""
    rows, asked = training_rows(task, ATTENTIVE_ROWS, args), asked_rows(task, args)
    for encoder, seeds in with_controls(encoders, args):
        train, test = (
            features.token_states(encoder, part.texts, part.pairs, layers=args.layers) for part in (rows, asked)
        )
        with naming(encoder.name, task):
            for seed in seeds:
                predicted[encoder.name].append(probing.attentive_predict(*train, rows.labels, *test, seed=seed))
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
    for form, matrix in {"raw": raw, "centred": probing.centre(raw)}.items():
        rows = dict(zip(texts, matrix, strict=True))
        ranked = [
            probing.cosine(rows[task.texts[query.id]], np.stack([rows[task.texts[c]] for c in query.candidates]))
            for query in task.queries
        ]
        predicted[f"cosine {form}"][system].append(figures_of(task, ranked))


def rank_by_words(task, predicted):
    """Orders the candidates by the cosines of TF-IDF, and as BM25 does."""
    if task.texts is not None:
        cosines = features.tfidf_cosines(list(task.texts.values()), *ranked_pairs(task), sublinear=True)
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
    return probing.rerank_per_query(ranked, [query.relevant for query in task.queries])


def judge(documents, training_texts, encoders, args) -> DocumentScores:
    """What encoders, controls and word counting make of documents; random weights are those of the first seed."""
    asked = list(encoders)
    if args.controls:
        asked.append(untrained(encoders[0], args.seeds[0]))
    vectors_of = {encoder.name: partial(features.embed_texts, encoder, layers=args.layers) for encoder in asked}
    reference = asked[1].name if len(asked) > 1 else None
    if args.controls:
        vectors_of[BAG] = partial(features.bag_of_embeddings, encoders[0])
    return judge_documents(vectors_of, documents.texts, training_texts, documents.titles, documents.labels, reference)


# ---- scores ---------------------------------------------------------------------------------------------------------


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


def console():
    """Entry point of `text-jepa-probe`."""
    run_command(main)


if __name__ == "__main__":
    console()
