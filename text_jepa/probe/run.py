"""Runs a probe: collects the answers of all systems to all tasks in all modes, and scores them.

`probe` is the entry point. Answers come from `text_jepa.probe.answers` and are scored on the same rows for all
systems. Documents, if there are any, are compared in addition.

Shapes: N rows to be answered, Q queries, K seeds.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from text_jepa.cli import UsageError
from text_jepa.encoders import embeddings
from text_jepa.encoders.embeddings import Encoder
from text_jepa.probe import controls
from text_jepa.probe.answers import Answer, answer_questions, count_fits
from text_jepa.probe.arguments import ProbeArguments
from text_jepa.probe.bootstrap import Score, score_answers
from text_jepa.probe.documents import (
    MIN_QUERIES,
    SHORTEST_DOCUMENT,
    Answers,
    DocumentScores,
    compare_on_documents,
    summarize,
)
from text_jepa.probe.glue import FUNCTIONS, write_submission
from text_jepa.probe.questions import Questions, title_of
from text_jepa.probe.report import headline, macro_averages
from text_jepa.probe.reranking import RERANKING_METRICS, RerankingTask
from text_jepa.probe.summary import notes_on_few_rows
from text_jepa.probe.systems import BAG, untrained
from text_jepa.probe.tasks import Task


AnswersByTask = dict[Task | RerankingTask, dict[str, dict[str, list]]]
"""The values of answers by task, mode and name of the system: a list with one entry per seed, or a single one."""


@dataclass(frozen=True)
class ProbeResults:
    """The results of a probe.

    Args:
        scores: All scores, those of the first encoder first.
        answers: By (task, mode, metric, system), answers (K, N) for each seed and row, or (K, Q) for rerankings.
        gold: True labels (N,) by task, for tasks whose answers are predictions.
        layers: Names of the systems that are layers of the first encoder, from the embeddings up.
        notes: What was left out of the data, one line each.
        splits: Name of the scored split by task.
        summary: One sentence about the documents, if there are any.
        finetuning: Settings of each fine-tuning.
        predicted: The predictions for each task, including rows of test splits with hidden labels.
    """

    scores: list[Score]
    answers: Answers
    gold: dict[str, np.ndarray]
    layers: list[str]
    notes: list[str]
    splits: dict[str, str]
    summary: str | None
    finetuning: list[dict[str, Any]]
    predicted: AnswersByTask


def probe(
    questions: Questions,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> ProbeResults:
    """Scores encoders and controls on tasks and documents.

    Args:
        questions: Tasks and documents.
        encoders: The encoders; the first one is the one in question.
        args: The arguments.

    Raises:
        UsageError: Features are not finite, labels cannot be learned, or the documents are too few or too short.
    """
    answers = collect_answers(questions, encoders, args)
    results = score_tasks(questions, answers, args.seeds[0])
    if questions.documents is not None:
        compared = compare_documents(questions, encoders, args)
        results = add_documents(results, compared)
    return replace(results, notes=results.notes + notes_on_few_rows(results.scores))


# ---- tasks ----------------------------------------------------------------------------------------------------------


def collect_answers(
    questions: Questions,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> list[Answer]:
    """All answers to the tasks, with a progress bar that counts fits."""
    answers = []
    fits = count_fits(questions.tasks, encoders, args)
    with tqdm(total=fits, desc="Probing", unit=" fits", disable=None, leave=False) as bar:
        for answer in answer_questions(questions, encoders, args):
            answers.append(answer)
            is_fitted = answer.mode in args.mode  # unlike cosines and majorities
            bar.update(is_fitted)
    return answers


def score_tasks(
    questions: Questions,
    answers: Sequence[Answer],
    seed: int,
) -> ProbeResults:
    """Scores the answers, and averages the scores over tasks, without rerankings and single layers."""
    tasks = questions.tasks
    rerankings = questions.rerankings
    predicted = group_by_task(answers, [*tasks, *rerankings])
    scored = scored_answers(tasks, rerankings, predicted)
    gold = {task.name: task.test.labels for task in tasks}
    layers = {answer.system.name: None for answer in answers if answer.system.layer is not None}
    scores = score_answers(scored, FUNCTIONS, gold, seed)
    averaged = [score for score in scores if score.task in gold and score.system not in layers]
    scores += macro_averages(averaged)

    notes = []
    for task in [*tasks, *rerankings]:
        notes += task.notes
    splits = {task.name: task.scored for task in tasks}
    splits |= {title_of(task): task.split for task in rerankings}
    return ProbeResults(
        scores=scores,
        answers=scored,
        gold=gold,
        layers=list(layers),
        notes=notes,
        splits=splits,
        summary=None,
        finetuning=[answer.settings for answer in answers if answer.settings is not None],
        predicted={task: predicted[task] for task in tasks},
    )


def group_by_task(answers: Sequence[Answer], tasks: Sequence[Task | RerankingTask]) -> AnswersByTask:
    """Groups the values of the answers by task, mode and system, in their order."""
    grouped = {task: {} for task in tasks}
    for answer in answers:
        by_system = grouped[answer.task].setdefault(answer.mode, {})
        by_system.setdefault(answer.system.name, []).append(answer.values)
    return grouped


def scored_answers(
    tasks: Sequence[Task],
    rerankings: Sequence[RerankingTask],
    predicted: AnswersByTask,
) -> Answers:
    """Answers to the rows that are scored, by (task, mode, metric, system): (K, N), or (K, Q) for rerankings."""
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


# ---- documents ------------------------------------------------------------------------------------------------------


def compare_documents(
    questions: Questions,
    encoders: Sequence[Encoder],
    args: ProbeArguments,
) -> DocumentScores:
    """Scores encoders, controls, TF-IDF and BM25 on documents; the untrained control has the first seed.

    Raises:
        UsageError: The documents are too few or too short.
    """
    documents = questions.documents
    systems = list(encoders)
    if args.controls:
        systems.append(untrained(encoders[0], args.seeds[0]))
    vectors_of = {}
    for encoder in systems:
        vectors_of[encoder.name] = partial(embeddings.embed_texts, encoder, layers=args.layers)
    if args.controls:
        vectors_of[BAG] = partial(controls.bag_of_embeddings, encoders[0])
    compared = compare_on_documents(
        vectors_of,
        documents.texts,
        questions.training_texts,
        titles=documents.titles,
        labels=documents.labels,
        reference=systems[1].name if len(systems) > 1 else None,
    )
    if not compared.scores:
        source = f"--texts {args.texts[0]}" if args.texts else "the built-in corpus"
        raise UsageError(
            f"{source}: the documents are too few or too short: at least {MIN_QUERIES} of {SHORTEST_DOCUMENT} "
            f"words are needed, or of {2 * SHORTEST_DOCUMENT} characters in scripts without spaces; name more or "
            "longer ones"
        )
    if args.train_texts:
        notes = notes_on_training_texts(documents.texts, questions.training_texts)
        compared = replace(compared, notes=notes + compared.notes)
    return compared


def notes_on_training_texts(documents: Sequence[str], training_texts: Sequence[str]) -> list[str]:
    """A note on documents that are training texts too, if there are any; blanks around a text make no other one."""
    known = {text.strip() for text in training_texts}
    seen = sum(text.strip() in known for text in documents)
    if not seen:
        return []
    return [
        f"{seen:,} of {len(documents):,} documents also occur in --train_texts, so the encoder may have seen them; "
        "name others"
    ]


def add_documents(results: ProbeResults, compared: DocumentScores) -> ProbeResults:
    """Adds the results on documents, and a sentence about them, to those on tasks."""
    return replace(
        results,
        scores=results.scores + compared.scores,
        answers=results.answers | compared.answers,
        gold=results.gold | compared.gold,
        notes=results.notes + compared.notes,
        splits=results.splits | {score.task: "test" for score in compared.scores},
        summary=summarize(compared),
    )


# ---- layers and hidden labels ---------------------------------------------------------------------------------------


def scores_by_layer(results: ProbeResults) -> dict[tuple[str, str], list[Score]]:
    """The scores of all layers by (task, mode), in the leading metric of the task."""
    scores = [score for score in results.scores if score.system in results.layers]
    metrics_of = defaultdict(list)
    for score in scores:
        metrics_of[score.task].append(score.metric)
    by_layer = defaultdict(list)
    for score in scores:
        if score.metric == headline(score.task, metrics_of[score.task]):
            by_layer[score.task, score.mode].append(score)
    return by_layer


def write_hidden(
    results: ProbeResults,
    first: str,
    output_dir: str,
) -> None:
    """Writes the first encoder's predictions, of the first seed, for test splits with hidden labels.

    Args:
        results: The results.
        first: Name of the first encoder.
        output_dir: The folder, in which `predictions/<mode>/` is made.
    """
    for task, by_mode in results.predicted.items():
        for mode, by_system in by_mode.items():
            if first not in by_system:
                continue
            first_seed = by_system[first][0]
            hidden = first_seed[len(task.test) :]
            if len(hidden):
                write_submission(Path(output_dir, "predictions", mode), task, "test", hidden)
