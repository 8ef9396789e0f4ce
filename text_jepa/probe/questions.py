"""What a probe asks: tasks with labels, reranking sets, and documents without labels."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from text_jepa.cli import UsageError
from text_jepa.data.builtin_corpus import load_builtin_corpus
from text_jepa.data.corpus import load_texts
from text_jepa.probe.arguments import ProbeArguments, names_nothing
from text_jepa.probe.catalog import load_tasks
from text_jepa.probe.documents import HELD_OUT_DOCUMENTS, TRAINING_DOCUMENTS, Documents, load_documents
from text_jepa.probe.reranking import RerankingTask
from text_jepa.probe.tasks import Split, Task


# More training rows than these are not embedded: a linear probe hardly gains from them.
TRAINING_ROWS = 10_000

# The states of all tokens of a row take a hundred times the memory of their mean, and the attention trains for epochs.
ATTENTIVE_ROWS = 2_000


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


def load_questions(args: ProbeArguments) -> Questions:
    """Loads all that the arguments name.

    Raises:
        UsageError: Something is missing or cannot be read, two sets have one name, or a flag has no effect on what is
            named.
    """
    tasks, rerankings = load_tasks(args)
    check_names(tasks, rerankings)
    check_features(tasks, rerankings, args)
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


def check_names(tasks: Sequence[Task], rerankings: Sequence[RerankingTask]) -> None:
    """Raises UsageError if two tasks or reranking sets have one name, as their answers would."""
    names = [task.name for task in tasks] + [title_of(task) for task in rerankings]
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(
                f"--tasks, --task_file, --rerank_dir: {count} sets are called '{name}'; rename their files or "
                "folders, or name one of them"
            )


def check_features(tasks: Sequence[Task], rerankings: Sequence[RerankingTask], args: ProbeArguments) -> None:
    """Raises UsageError if no layer is to be probed, or if there is a reranking set that no encoder can rank."""
    for task in rerankings:
        if task.texts is None and not args.controls:
            raise UsageError(
                f"--no_controls: {task.name} has no text_tokenized file, so only BM25, a control, can be scored; add "
                "that file, or leave the flag out"
            )
    uses_features = not {"linear", "knn"}.isdisjoint(args.mode)
    has_features = any(task.texts is not None for task in rerankings) or (tasks and uses_features)
    if args.layer_sweep and not has_features:
        raise UsageError("--layer_sweep goes with tasks in the modes linear and knn, or with reranking sets of texts")


# ---- documents ------------------------------------------------------------------------------------------------------


def asked_documents(args: ProbeArguments) -> Documents | None:
    """The documents of `--texts`; if nothing is named, held-out documents of the built-in corpus; else none.

    The latter are those that a run on the built-in corpus is compared on at its end: the second half of the documents
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


# ---- rows of tasks --------------------------------------------------------------------------------------------------


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


# ---- reranking sets -------------------------------------------------------------------------------------------------


def title_of(task: RerankingTask) -> str:
    """The name of a reranking set in tables, with its split, which is a file."""
    return f"{task.name} {task.split}"


def ranked_texts(task: RerankingTask) -> list[str]:
    """The distinct texts of queries and candidates; none if there are only scores of BM25."""
    if not task.texts:
        return []
    texts = set()
    for query in task.queries:
        texts.add(task.texts[query.id])
        texts.update(task.texts[candidate] for candidate in query.candidates)
    return sorted(texts)


def ranked_pairs(task: RerankingTask) -> tuple[list[str], list[str]]:
    """The text of the query and that of the candidate, for each candidate of each query."""
    queries = []
    candidates = []
    for query in task.queries:
        for candidate in query.candidates:
            queries.append(task.texts[query.id])
            candidates.append(task.texts[candidate])
    return queries, candidates
