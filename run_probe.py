"""Tells whether an encoder became better: probes of frozen features beside honest controls.

    python run_probe.py                                        # the newest encoder in runs/, no download
    python run_probe.py PATH_OR_NAME --tasks sst2 mrpc stsb --data_dir glue --compare OTHER_ENCODER
    python run_probe.py PATH_OR_NAME --rerank_dir askubuntu qqp_rerank --output_dir results

Features are the mean of the last hidden states. Each distinct text is embedded once by each system, and the same rows
are scored for all. The controls: the same architecture with random weights, the bag of the model's own embeddings,
TF-IDF (256 components fitted on the training texts; for cosines all words of the set), and BM25 where a reranking file
has its scores. Nothing is chosen by the scored split; intervals are 95 % of bootstrap resamples of its rows.
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
import numpy as np
import torch
import transformers
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoConfig, AutoModel, AutoTokenizer, set_seed

from text_jepa import probing
from text_jepa.arguments import UsageError, parse_arguments, run_command
from text_jepa.glue_metric import accuracy, f1, matthews
from text_jepa.tasks import load_glue, load_reranking, load_task_file, package_task


# More training rows than these are not embedded: a linear probe hardly gains from them.
TRAINING_ROWS = 10_000

METRICS: dict[str, Callable] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews,
    "pearson": lambda predictions, gold: probing.correlations(predictions, gold)["pearson"],
    "spearmanr": lambda predictions, gold: probing.correlations(predictions, gold)["spearmanr"],
}


@dataclass
class ProbeArguments:
    """What to probe, on what."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder: folder or Hub name. Default: the newest run in runs/."}
    )
    compare: list[str] | None = field(default=None, metadata={"help": "Further encoders."})
    tasks: list[str] | None = field(
        default=None,
        metadata={"help": "Tasks of GLUE by name, or packages: the built-in one. Default: that, if nothing is named."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE tasks. Default: the Hub."})
    rerank_dir: list[str] | None = field(default=None, metadata={"help": "Folders in the format of AskUbuntu."})
    rerank_split: str = field(default="test", metadata={"help": "Their file: test or dev."})
    with_body: bool = field(default=False, metadata={"help": "Rerank by title and body instead of the title."})
    task_file: str | None = field(default=None, metadata={"help": "A set of your own: parquet, json, jsonl or csv."})
    task_test_file: str | None = field(default=None, metadata={"help": "Its scored part. Default: every fifth row."})
    text_column: str = field(default="text", metadata={"help": "Column of its texts."})
    pair_column: str | None = field(default=None, metadata={"help": "Column of its second texts."})
    label_column: str = field(
        default="label", metadata={"help": "Column of its labels; numbers with a point are scores."}
    )
    mode: Literal["linear", "knn", "all"] = field(
        default="all", metadata={"help": "Linear probe, nearest neighbours, or both."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Texts are cut at so many tokens. Default: what the tokenizer was made for."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the random encoder, the folds and the bootstrap."})
    output_dir: str | None = field(default=None, metadata={"help": "Write results.json and results.md here."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and the built-in corpus are kept."})


class Score(NamedTuple):
    """One figure in percent, with its interval and how far the first encoder is ahead (95 % of resamples)."""

    task: str
    mode: str
    system: str
    metric: str
    score: float
    low: float
    high: float
    rows: int
    ahead: float | None
    ahead_low: float | None
    ahead_high: float | None


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
    tasks, rerankings = load_tasks(args)
    notes = [note for task in [*tasks, *rerankings] for note in task.notes]
    texts = sorted({text for task in tasks for part in (task.train, task.test) for key in part.keys for text in key})
    texts = sorted({*texts, *(text for task in rerankings for text in (task.texts or {}).values())})

    vectors = {}
    for title, embed in systems(args).items():
        matrix = embed(texts) if texts else np.zeros((0, 1))
        vectors[title] = dict(zip(texts, matrix, strict=True))
    scores = []
    for task in tasks:
        scores += score_task(task, vectors, args)
    for task in rerankings:
        scores += score_reranking(task, vectors, args.seed)
    table = as_table(scores)
    print("\n".join([table, *(f"note: {note}" for note in notes)]))
    if args.output_dir:
        write_results(Path(args.output_dir), scores, table, notes, argv)
    return scores


def load_tasks(args):
    """The tasks asked for, training parts cut to `TRAINING_ROWS`."""
    names = args.tasks or ([] if args.task_file or args.rerank_dir else ["packages"])
    found = [
        package_task(args.cache_dir) if name == "packages" else load_glue(name, args.data_dir, args.cache_dir)
        for name in names
    ]
    if args.task_file:
        columns = (args.text_column, args.pair_column, args.label_column)
        found.append(load_task_file(args.task_file, args.task_test_file, *columns, cache_dir=args.cache_dir))
    for task in found:
        if len(task.train) > TRAINING_ROWS:
            rows = np.random.default_rng(args.seed).choice(len(task.train), TRAINING_ROWS, replace=False)
            task.splits["train"] = task.train.select(sorted(rows))
    folders = args.rerank_dir or []
    rerankings = [load_reranking(folder, args.rerank_split, args.with_body, args.cache_dir) for folder in folders]
    return found, rerankings


def systems(args) -> dict[str, Callable]:
    """Name -> texts to vectors (N, D): the encoders, and the controls made of the first."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = args.model_name_or_path or newest_run()
    found = {}
    for name in dict.fromkeys([first, *(args.compare or [])]):
        try:
            tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UsageError(f"{name}: no encoder there ({str(error).splitlines()[0]})") from error
        found[name] = (model.to(device), tokenizer)
    model, tokenizer = found[first]
    set_seed(args.seed)
    untrained = AutoModel.from_config(AutoConfig.from_pretrained(first)).to(device)
    embedders = {name: (probing.embed_texts, *parts) for name, parts in found.items()}
    embedders["random weights"] = (probing.embed_texts, untrained, tokenizer)
    embedders["bag of its embeddings"] = (bag_of_embeddings, model, tokenizer)
    return {
        title: partial(function, model, tokenizer, max_length=args.max_length or min(tokenizer.model_max_length, 512))
        for title, (function, model, tokenizer) in embedders.items()
    }


def bag_of_embeddings(model, tokenizer, texts, max_length):
    """Mean of the input embeddings of a text's tokens (N, D), without special tokens."""
    table = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_length)["input_ids"]
    return np.stack([table[row].mean(axis=0) if row else np.zeros(table.shape[1], np.float32) for row in ids])


def tfidf_vectors(fitted_on, texts):
    """TF-IDF with 256 components of an SVD, both fitted on the first texts alone: text -> vector."""
    features = TfidfVectorizer(sublinear_tf=True).fit(fitted_on)
    components = TruncatedSVD(min(256, len(features.vocabulary_) - 1), random_state=0)
    components.fit(features.transform(fitted_on))
    return dict(zip(texts, components.transform(features.transform(texts)), strict=True))


def tfidf_cosines(fitted_on, left, right):
    """Cosines (N,) of the TF-IDF of N pairs of texts, word unigrams, fitted on the first texts alone."""
    features = TfidfVectorizer().fit(fitted_on)
    return np.asarray(features.transform(left).multiply(features.transform(right)).sum(axis=1)).ravel()


def newest_run() -> str:
    """The folder of the last run that ended with an encoder."""
    runs = sorted(Path("runs").glob("*/modules.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("no encoder in runs/; train one with `make pretrain`, or name one")
    return str(runs[-1].parent)


# ---- scores ---------------------------------------------------------------------------------------------------------


def score_task(task, vectors, args) -> list[Score]:
    """Linear probe and nearest neighbours of one task, for pairs on [u, v, |u-v|, u*v]; cosines for similarities."""
    train_texts = sorted({text for key in task.train.keys for text in key})
    test_texts = sorted({text for key in task.test.keys for text in key})
    tfidf = tfidf_vectors(train_texts, sorted({*train_texts, *test_texts}))
    predicted: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for system, table in {**vectors, "TF-IDF": tfidf}.items():
        train, test = features_of(task.train, table), features_of(task.test, table)
        if args.mode in ("linear", "all"):
            values = probing.fit_linear(train, task.train.labels, test, args.seed)
            predicted.setdefault(("linear", ""), {})[system] = values
        if args.mode in ("knn", "all"):
            predicted.setdefault(("knn", ""), {})[system] = probing.knn_predict(train, task.train.labels, test)
        if task.is_similarity and system == "TF-IDF":
            cosines = tfidf_cosines(test_texts, task.test.texts, task.test.pairs)
            predicted[("cosine", "raw")][system] = cosines
        elif task.is_similarity:
            u, v = (np.stack([table[text] for text in part]) for part in (task.test.texts, task.test.pairs))
            for form, cosines in probing.sts_cosines(u, v).items():
                predicted.setdefault(("cosine", form), {})[system] = cosines
    scores = []
    for (mode, form), by_system in predicted.items():
        for metric in task.metrics:
            scores += compare(
                task.name,
                f"{mode} {form}".strip(),
                metric,
                METRICS[metric],
                by_system,
                task.test.labels,
                seed=args.seed,
            )
    if task.kind == "classification":
        commonest = np.bincount(task.train.labels).argmax()
        majority = {"majority": np.full(len(task.test), commonest)}
        for metric in task.metrics:
            scores += compare(
                task.name, "majority", metric, METRICS[metric], majority, task.test.labels, seed=args.seed
            )
    return scores


def features_of(split, table):
    """(N, D) of texts, (N, 4 D) of pairs."""
    u = np.stack([table[text] for text in split.texts])
    return u if split.pairs is None else probing.pair_features(u, np.stack([table[text] for text in split.pairs]))


def score_reranking(task, vectors, seed) -> list[Score]:
    """MAP, MRR, P@1 and P@5 of centred cosines, of the cosines of TF-IDF, and of BM25."""
    usable = [query for query in task.queries if query.usable]
    labels = [query.relevant for query in usable]
    ranked = {}
    if task.texts is not None:
        texts = sorted(set(task.texts.values()))
        for system, table in vectors.items():
            matrix = probing.centre(np.stack([table[text] for text in texts]).astype(np.float64))
            rows = dict(zip(texts, matrix, strict=True))
            ranked[system] = [
                probing.cosine(rows[task.texts[query.id]], np.stack([rows[task.texts[c]] for c in query.candidates]))
                for query in usable
            ]
        pairs = [(task.texts[query.id], task.texts[c]) for query in usable for c in query.candidates]
        cosines = tfidf_cosines(texts, *zip(*pairs, strict=True))
        ranked["TF-IDF"] = np.split(cosines, np.cumsum([len(query.candidates) for query in usable])[:-1])
    if all(query.bm25 is not None for query in usable):
        # Of equal scores the file's order counts: it is the order in which BM25 returned them.
        ranked["BM25"] = [-np.argsort(np.argsort(-query.bm25, kind="stable")) for query in usable]
    per_query = {system: probing.rerank_per_query(scores, labels) for system, scores in ranked.items()}
    return [
        score
        for metric in ("map", "mrr", "p@1", "p@5")
        for score in compare(
            f"{task.name} {task.split}",
            "cosine",
            metric,
            np.mean,
            {system: values[metric] for system, values in per_query.items()},
            seed=seed,
        )
    ]


def compare(task, mode, metric, function, by_system, *gold, seed) -> list[Score]:
    """Scores of all systems with intervals, and how far the first system is ahead of each other one."""
    (_, first), *_ = by_system.items()
    scores = []
    for system, values in by_system.items():
        low, high = probing.bootstrap_interval(function, values, *gold, seed=seed)
        ahead = [None] * 3
        if values is not first:
            ahead = [100 * x for x in probing.paired_bootstrap(function, first, values, *gold, seed=seed)[:3]]
        figures = (100 * float(function(values, *gold)), 100 * low, 100 * high)
        scores.append(Score(task, mode, system, metric, *figures, len(values), *ahead))
    return scores


# ---- results --------------------------------------------------------------------------------------------------------


def as_table(scores) -> str:
    """Markdown, one row per figure."""
    lines = ["| task | mode | metric | system | score | 95 % | first is ahead by |", "|---|---|---|---|---|---|---|"]
    for s in scores:
        ahead = "" if s.ahead is None else f"{s.ahead:+.1f} [{s.ahead_low:+.1f}, {s.ahead_high:+.1f}]"
        interval = f"{s.low:.1f} to {s.high:.1f}"
        lines.append(f"| {s.task} | {s.mode} | {s.metric} | {s.system} | {s.score:.1f} | {interval} | {ahead} |")
    return "\n".join(lines)


def write_results(folder, scores, table, notes, argv):
    """Writes `results.json` and `results.md`.

    The first holds `command`, `versions`, `notes` and `scores`: a list of objects with the fields of `Score`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "run_probe.py", *argv])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    content = {"command": command, "versions": versions, "notes": notes, "scores": [s._asdict() for s in scores]}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    lines = [f"`{command}`", "", table, "", *(f"- {note}" for note in notes)]
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def console():
    """Entry point of `text-jepa-probe`."""
    run_command(main)


if __name__ == "__main__":
    console()
