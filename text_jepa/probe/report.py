"""From predictions to what a reader is shown: scores with their uncertainty, tables, pictures, cards, submissions.

Everything is in percent. docs/probing.md describes `results.json` and the conventions of the averages.
"""

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard

import text_jepa
from text_jepa.cli import UsageError
from text_jepa.probe.bootstrap import Score
from text_jepa.probe.glue import GLUE_TASKS, HEADLINE, SUBMISSION_FILES
from text_jepa.show.plots import MARKERS, PALETTE, panels, short


# Raised whenever a reader of `results.json` would have to change.
SCHEMA = 1


def macro_averages(scores: Sequence[Score]) -> list[Score]:
    """Averages over tasks by GLUE's convention (Wang et al., 2019), one per mode and system.

    The unweighted mean over tasks of the mean over each task's metrics. WNLI is left out, and the two parts of MNLI
    count as one task. A mode of a single task has no average, and neither has a system that lacks one of its tasks.
    """
    averages = []
    for mode in _distinct(scores, "mode"):
        found: dict[str, dict[str, list[Score]]] = {}
        for s in scores:
            name = s.task.removesuffix("-mm")
            if s.mode == mode and name.removesuffix("_mini") != "wnli":
                found.setdefault(s.system, {}).setdefault(name, []).append(s)
        tasks = {name for by_task in found.values() for name in by_task}
        whole = {system: by_task for system, by_task in found.items() if set(by_task) == tasks}
        if len(tasks) < 2:
            continue
        means = {
            system: float(np.mean([np.mean([s.score for s in part]) for part in by_task.values()]))
            for system, by_task in whole.items()
        }
        first = next(iter(found))
        for system, by_task in whole.items():
            rows = sum({s.task: s.rows for part in by_task.values() for s in part}.values())
            seeds = min(s.seeds for part in by_task.values() for s in part)
            ahead = means[first] - means[system] if first in means and system != first else None
            title = f"average of {len(tasks)} tasks"
            figures = (means[system], None, None, rows, seeds, None, ahead, None, None)
            averages.append(Score(title, mode, "average", system, *figures))
    return averages


def headline(task: str, metrics: Sequence[str]) -> str:
    """The one metric to show of a task: GLUE's `HEADLINE`, else the first, which leads (MAP of a reranking set)."""
    preferred = HEADLINE.get(task.removesuffix("_mini"))
    return preferred if preferred in metrics else metrics[0]


def _distinct(scores, field):
    return list(dict.fromkeys(getattr(s, field) for s in scores))


def as_table(scores: Sequence[Score]) -> str:
    """Markdown with aligned columns, one row per score, task by task; what repeats the row above is left blank."""
    header = ["task", "mode", "metric", "system", "score", "95 %", "first is ahead by"]
    order = _distinct(scores, "task")
    rows, above = [], []
    for s in sorted(scores, key=lambda s: order.index(s.task)):
        score = f"{s.score:.1f}" + ("" if s.deviation is None else f" ± {s.deviation:.1f}")
        interval = "" if s.low is None else f"{s.low:.1f} to {s.high:.1f}"
        ahead = "" if s.ahead is None else f"{s.ahead:+.1f}"
        ahead += "" if s.ahead_low is None else f" [{s.ahead_low:+.1f}, {s.ahead_high:+.1f}]"
        names = [name.replace("|", r"\|") for name in s[:4]]
        new = next(i for i in range(4) if i == 3 or names[: i + 1] != above[: i + 1])
        rows.append([""] * new + [*names[new:], score, interval, ahead])
        above = names
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def write_results(
    folder: str | Path, scores: Sequence[Score], notes: Sequence[str], command: str, facts: Mapping[str, Any]
) -> None:
    """Writes `results.json`, `results.md` and the picture `scores.png`.

    Args:
        folder: Is created; files of these names are replaced.
        scores: All of them.
        notes: What was done to the data, one line each.
        command: That reproduces them.
        facts: Settings and circumstances, for JSON.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    libraries = ("torch", "transformers", "scikit-learn", "numpy")
    versions = {"text-jepa": text_jepa.__version__} | {name: importlib.metadata.version(name) for name in libraries}
    content = {"schema": SCHEMA, "command": command, "versions": versions, "facts": dict(facts), "notes": list(notes)}
    content["scores"] = [s._asdict() for s in scores]
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    lines = [f"`{command}`", "", as_table(scores), "", *(f"- {note}" for note in notes)]
    (folder / "results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    plot_scores(scores, folder / "scores.png")


def read_results(path: str | Path) -> list[Score]:
    """The scores of a `results.json`.

    Raises:
        UsageError: There is no such file, or it is none of ours or of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        schema, rows = content["schema"], content["scores"]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a results.json of run_probe.py") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a results.json of run_probe.py") from error
    if schema != SCHEMA:
        raise UsageError(f"{path}: schema {schema}, but this version reads {SCHEMA}; probe again")
    return [Score(**row) for row in rows]


def write_answers(
    folder: str | Path, answers: Mapping[tuple[str, str, str, str], np.ndarray], gold: Mapping[str, np.ndarray]
) -> None:
    """Writes `answers.npz`: what the figures are of, for statistics over other rows, seeds or systems.

    Args:
        folder: There already.
        answers: (task, mode, metric, system) to (K, N), a row per seed: predictions, or values of the metric itself.
        gold: Task to (N,) labels, where the answers are predictions.
    """
    arrays = {"|".join(key): rows for key, rows in answers.items()} | {f"{task}|gold": of for task, of in gold.items()}
    unfinished = Path(folder, "_answers.npz")
    np.savez_compressed(unfinished, **arrays)
    unfinished.rename(Path(folder, "answers.npz"))


def read_answers(folder: str | Path) -> tuple[dict[tuple[str, ...], np.ndarray], dict[str, np.ndarray]]:
    """What `write_answers` has written: the answers and the labels."""
    with np.load(Path(folder, "answers.npz")) as arrays:
        found = {tuple(name.split("|", 3)): array for name, array in arrays.items()}
    return {k: v for k, v in found.items() if len(k) == 4}, {k[0]: v for k, v in found.items() if len(k) == 2}


def plot_scores(scores: Sequence[Score], path: str | Path) -> None:
    """Draws scores with their intervals: a panel per task, a row per system, a colour per mode.

    Of a task with several metrics the `headline` is drawn.

    Args:
        scores: Some, of any tasks.
        path: Picture to write.
    """
    systems, modes, tasks = (_distinct(scores, field) for field in ("system", "mode", "task"))
    own_modes = {system: _distinct([s for s in scores if s.system == system], "mode") for system in systems}
    height = 0.6 + len(systems) * (0.2 + 0.08 * max(map(len, own_modes.values())))
    metrics = {task: headline(task, _distinct([s for s in scores if s.task == task], "metric")) for task in tasks}
    titles = {task: task if metric == "average" else f"{task}: {metric}" for task, metric in metrics.items()}
    with _panels(path, titles, modes, 3.4, height, extra=2.2, sharey=True) as by_task:
        for task, axes in by_task.items():
            for s in scores:
                if (s.task, s.metric) == (task, metrics[task]):
                    style = _style(modes, s.mode)
                    own = own_modes[s.system]
                    y = systems.index(s.system) + 0.75 * ((own.index(s.mode) + 0.5) / len(own) - 0.5)
                    axes.plot(s.score, y, linestyle="none", **style)
                    if s.low is not None:
                        axes.hlines(y, s.low, s.high, color=style["color"], linewidth=1.2)
            axes.set_yticks(range(len(systems)), [short(system) for system in systems])
            axes.set_ylim(len(systems) - 0.5, -0.5)
            axes.hlines(
                np.arange(1, len(systems)) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), color="0.9", lw=0.8
            )
            axes.grid(visible=False, axis="y")


def plot_layers(by_layer: Mapping[tuple[str, str], Sequence[Score]], path: str | Path) -> None:
    """Draws scores against the layer of the features, with intervals: a panel per task, a line per mode.

    Args:
        by_layer: (task, mode) to the scores of one metric, layer by layer; the first one is that of the embeddings.
        path: Picture to write.
    """
    modes = list(dict.fromkeys(mode for _, mode in by_layer))
    titles = {task: f"{task}: {scores[0].metric}" for (task, _), scores in by_layer.items()}
    with _panels(path, titles, modes, 3.8, 3.0) as by_task:
        for (task, mode), scores in by_layer.items():
            axes, style, layers = by_task[task], _style(modes, mode), range(len(scores))
            axes.plot(layers, [s.score for s in scores], **style)
            axes.fill_between(
                layers, [s.low for s in scores], [s.high for s in scores], color=style["color"], alpha=0.15
            )
            axes.set_xlabel("layer (0 = embeddings)")
            axes.xaxis.get_major_locator().set_params(integer=True)


@contextmanager
def _panels(path, titles, modes, width, height, extra=0.0, **shared):
    """Axes by task, in at most four columns of `width` x `height` inches, above a legend of the modes."""
    from matplotlib.lines import Line2D

    columns = min(len(titles), 4 if len(titles) > 6 else 3)
    whole = max(columns * width + extra, 6)
    with panels(path, list(titles.values()), height, columns, whole, **shared) as (figure, by_title):
        yield {task: by_title[title] for task, title in titles.items()}
        handles = [Line2D([], [], linestyle="none", label=mode, **_style(modes, mode)) for mode in modes]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(modes), 6))


def _style(modes, mode):
    number = modes.index(mode)
    color, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
    return {"color": color, "marker": marker, "markersize": 4.5}


_CARD_START, _CARD_END = "<!-- probe: begin -->", "<!-- probe: end -->"
_CARD_SECTION = re.compile(f"{_CARD_START}((?!{_CARD_START}).)*?{_CARD_END}", re.DOTALL)
_TASK_TYPES = {
    "pearson": "sentence-similarity",
    "spearmanr": "sentence-similarity",
    **dict.fromkeys(("map", "mrr", "p@1", "p@5", "r@1", "r@10"), "text-ranking"),
}


def update_card(
    model_dir: str | Path, scores: Sequence[Score], system: str, splits: Mapping[str, str], command: str
) -> None:
    """Writes the figures into the model card of a folder, in place of those of an earlier probe.

    The scores of the encoder become model-index metadata, the table of all systems a section of the text between two
    marker comments, at the end of the card if it is new. Nothing else changes, apart from the layout of the YAML.

    Args:
        model_dir: Folder with a `README.md`.
        scores: Of all systems.
        system: Which of them is the folder's encoder.
        splits: Scored split by task; a task without one, such as an average, is shown in the table alone.
        command: That reproduces the figures.

    Raises:
        UsageError: It is no folder, has no card, the card's metadata cannot be read, or nothing was measured.
    """
    path = Path(model_dir) / "README.md"
    if not path.parent.is_dir():
        raise UsageError(
            f"--update_card: {model_dir} is no folder; `hf download {model_dir} --local-dir FOLDER` makes one"
        )
    if not path.is_file():
        raise UsageError(f"--update_card: {model_dir} has no README.md; write one")
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: its metadata cannot be read ({error}); repair or remove it") from error
    foreign = [result for result in card.data.eval_results or [] if "probe" not in (result.metric_args or {})]
    own = [_eval_result(s, splits[s.task]) for s in scores if s.system == system and s.task in splits]
    if not own:
        raise UsageError(f"--update_card: no score is of {system}; name a task with texts")
    card.data.model_name = card.data.model_name or path.parent.resolve().name
    card.data.eval_results = foreign + own
    section = (
        f"{_CARD_START}\n\n## What a probe measured\n\nIn percent, with 95 % bootstrap intervals over rows; "
        f"`{system}` is this encoder, the other systems are controls and comparisons.\n\n"
        f"{as_table(scores)}\n\n```\n{command}\n```\n\n{_CARD_END}"
    )
    card.text, replaced = _CARD_SECTION.subn(lambda _: section, card.text)
    if not replaced:
        card.text = f"{card.text.rstrip()}\n\n{section}\n"
    card.save(path)


def _eval_result(score, split):
    """Several modes of one data set share an entry of the model-index, so that the mode stands beside the metric."""
    config = score.task.removesuffix("-mm")
    if score.task in GLUE_TASKS:
        part = {"mnli": "_matched", "mnli-mm": "_mismatched"}.get(score.task, "")
        of = {"dataset_type": "nyu-mll/glue", "dataset_config": config, "dataset_split": split + part}
        of["dataset_name"] = f"GLUE {SUBMISSION_FILES[score.task]}"
    else:
        of = {"dataset_type": score.task, "dataset_name": score.task, "dataset_split": split}
    uncertainty = {"low": round(score.low, 2), "high": round(score.high, 2), "rows": score.rows, "seeds": score.seeds}
    return EvalResult(
        task_type=_TASK_TYPES.get(score.metric, "text-classification"),
        metric_type=score.metric,
        metric_name=f"{score.metric}, {score.mode}",
        metric_value=round(score.score, 2),
        metric_args={"probe": score.mode, **uncertainty},
        **of,
    )
