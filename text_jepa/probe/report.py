"""Tables, files, pictures and model cards of scores.

All scores are percentages. docs/probing.md describes `results.json` and the conventions of the averages.
"""

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard

import text_jepa
from text_jepa.cli import UsageError
from text_jepa.probe.bootstrap import Score
from text_jepa.probe.documents import Answers
from text_jepa.probe.glue import GLUE, base_name
from text_jepa.share.model_card import public_name
from text_jepa.show.plots import MARKERS, PALETTE, panels, short


if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Incremented when readers of `results.json` have to change.
SCHEMA = 1

_LIBRARIES = ("torch", "transformers", "scikit-learn", "numpy")
_COLUMNS = ("task", "mode", "metric", "system", "score", "95 %", "first is ahead by")
_NAME_COLUMNS = 4


# ---- averages -------------------------------------------------------------------------------------------------------


def macro_averages(scores: Sequence[Score]) -> list[Score]:
    """Averages over tasks by GLUE's convention (Wang et al., 2019), one per mode and system.

    The unweighted mean over tasks of the mean over each task's metrics. WNLI is excluded, and the two parts of MNLI
    count as one task. A mode with a single task has no average, nor has a system that lacks one of the tasks.
    """
    averages = []
    for mode in _distinct(scores, "mode"):
        by_system = _scores_by_task([score for score in scores if score.mode == mode])
        tasks = {task for by_task in by_system.values() for task in by_task}
        if len(tasks) < 2:
            continue
        complete = {system: by_task for system, by_task in by_system.items() if set(by_task) == tasks}
        means = {system: _mean_over_tasks(by_task) for system, by_task in complete.items()}
        first = next(iter(by_system))
        for system, by_task in complete.items():
            ahead = None
            if first in means and system != first:
                ahead = means[first] - means[system]
            own = [score for part in by_task.values() for score in part]
            rows_of_task = {score.task: score.rows for score in own}
            averages.append(
                Score(
                    task=f"average of {len(tasks)} tasks",
                    mode=mode,
                    metric="average",
                    system=system,
                    score=means[system],
                    low=None,
                    high=None,
                    rows=sum(rows_of_task.values()),
                    seeds=min(score.seeds for score in own),
                    deviation=None,
                    ahead=ahead,
                    ahead_low=None,
                    ahead_high=None,
                )
            )
    return averages


def _scores_by_task(scores: Sequence[Score]) -> dict[str, dict[str, list[Score]]]:
    """System to task to scores, with the parts of MNLI as one task and without WNLI."""
    found: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        task = score.task.removesuffix("-mm")
        if base_name(task) != "wnli":
            by_task = found.setdefault(score.system, {})
            by_task.setdefault(task, []).append(score)
    return found


def _mean_over_tasks(by_task: Mapping[str, Sequence[Score]]) -> float:
    means = []
    for scores in by_task.values():
        means.append(np.mean([score.score for score in scores]))
    return float(np.mean(means))


def headline(task: str, metrics: Sequence[str]) -> str:
    """The one metric to show of a task: GLUE's last one, else the first, which leads (MAP of a reranking set)."""
    base = base_name(task)
    if base in GLUE:
        preferred = GLUE[base].metrics[-1]
        if preferred in metrics:
            return preferred
    return metrics[0]


def _distinct(scores: Sequence[Score], field: str) -> list[str]:
    """The values of a field, in the order of their first occurrence."""
    return list(dict.fromkeys(getattr(score, field) for score in scores))


# ---- tables and files -----------------------------------------------------------------------------------------------


def as_table(scores: Sequence[Score]) -> str:
    """Markdown with aligned columns, one row per score, task by task; names that repeat the row above are blank."""
    tasks = _distinct(scores, "task")
    by_task = sorted(scores, key=lambda score: tasks.index(score.task))
    rows = []
    names_above = None
    for score in by_task:
        names = [name.replace("|", r"\|") for name in score[:_NAME_COLUMNS]]
        shown = _blank_repeated(names, names_above)
        rows.append([*shown, _score_cell(score), _interval_cell(score), _ahead_cell(score)])
        names_above = names

    widths = [max(len(cell) for cell in column) for column in zip(_COLUMNS, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [_COLUMNS, rule, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _blank_repeated(names: Sequence[str], above: Sequence[str] | None) -> list[str]:
    """Names with blanks for the leading ones that equal those of the row above; the last one is always shown."""
    shown = list(names)
    if above is None:
        return shown
    for place in range(len(names) - 1):
        if names[place] != above[place]:
            break
        shown[place] = ""
    return shown


def _score_cell(score: Score) -> str:
    if score.deviation is None:
        return f"{score.score:.1f}"
    return f"{score.score:.1f} ± {score.deviation:.1f}"


def _interval_cell(score: Score) -> str:
    if score.low is None:
        return ""
    return f"{score.low:.1f} to {score.high:.1f}"


def _ahead_cell(score: Score) -> str:
    if score.ahead is None:
        return ""
    if score.ahead_low is None:
        return f"{score.ahead:+.1f}"
    return f"{score.ahead:+.1f} [{score.ahead_low:+.1f}, {score.ahead_high:+.1f}]"


def write_results(
    folder: str | Path,
    scores: Sequence[Score],
    notes: Sequence[str],
    command: str,
    settings: Mapping[str, Any],
) -> None:
    """Writes `results.json`, `results.md` and the picture `scores.png`.

    Args:
        folder: Folder of the files, created if missing; existing files of these names are replaced.
        scores: All scores.
        notes: What was done to the data, one line each.
        command: Command line that reproduces the scores.
        settings: Arguments and settings, for the field `facts`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"text-jepa": text_jepa.__version__}
    for name in _LIBRARIES:
        versions[name] = importlib.metadata.version(name)
    content = {
        "schema": SCHEMA,
        "command": command,
        "versions": versions,
        "facts": dict(settings),
        "notes": list(notes),
        "scores": [score._asdict() for score in scores],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    lines = [f"`{command}`", "", as_table(scores), ""]
    lines += [f"- {note}" for note in notes]
    markdown = "\n".join(lines).rstrip()
    (folder / "results.md").write_text(markdown + "\n", encoding="utf-8")
    plot_scores(scores, folder / "scores.png")


def read_results(path: str | Path) -> list[Score]:
    """The scores of a `results.json`.

    Raises:
        UsageError: There is no such file, or it is not one of ours, or of another version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text)
        schema = content["schema"]
        rows = content["scores"]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a results.json of run_probe.py") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a results.json of run_probe.py") from error
    if schema != SCHEMA:
        raise UsageError(f"{path}: schema {schema}, but this version reads {SCHEMA}; probe again")
    return [Score(**row) for row in rows]


def write_answers(
    folder: str | Path,
    answers: Answers,
    gold: Mapping[str, np.ndarray],
) -> None:
    """Writes `answers.npz`: the answers behind the scores, for statistics over other rows, seeds or systems.

    Args:
        folder: Existing folder.
        answers: (task, mode, metric, system) to (K, N), one row per seed: predictions, or values of the metric.
        gold: Labels (N,) by task, if the answers are predictions.
    """
    arrays = {"|".join(key): rows for key, rows in answers.items()}
    for task, labels in gold.items():
        arrays[f"{task}|gold"] = labels
    unfinished = Path(folder, "_answers.npz")
    np.savez_compressed(unfinished, **arrays)
    unfinished.rename(Path(folder, "answers.npz"))


def read_answers(folder: str | Path) -> tuple[Answers, dict[str, np.ndarray]]:
    """The answers and the labels that `write_answers` has written."""
    answers = {}
    gold = {}
    with np.load(Path(folder, "answers.npz")) as arrays:
        for name, array in arrays.items():
            key = tuple(name.split("|", 3))
            if len(key) == 4:
                answers[key] = array
            elif len(key) == 2:
                gold[key[0]] = array
    return answers, gold


# ---- pictures -------------------------------------------------------------------------------------------------------


def plot_scores(scores: Sequence[Score], path: str | Path) -> None:
    """Draws scores with their intervals: a panel per task, a row per system, a colour per mode.

    Of a task with several metrics the `headline` is drawn.

    Args:
        scores: Scores of any tasks.
        path: Picture to write.
    """
    systems = _distinct(scores, "system")
    modes = _distinct(scores, "mode")
    modes_of = {}
    for system in systems:
        modes_of[system] = _distinct([score for score in scores if score.system == system], "mode")
    metric_of = {}
    titles = {}
    for task in _distinct(scores, "task"):
        metric = headline(task, _distinct([score for score in scores if score.task == task], "metric"))
        metric_of[task] = metric
        titles[task] = task if metric == "average" else f"{task}: {metric}"

    most_modes = max(len(own) for own in modes_of.values())
    height = 0.6 + len(systems) * (0.2 + 0.08 * most_modes)
    with _panels(path, titles, modes, width=3.4, height=height, extra=2.2, sharey=True) as axes_of:
        for score in scores:
            if score.metric != metric_of[score.task]:
                continue
            own = modes_of[score.system]
            place = (own.index(score.mode) + 0.5) / len(own) - 0.5
            y = systems.index(score.system) + 0.75 * place
            _draw_score(axes_of[score.task], score, y, _style(modes, score.mode))
        for axes in axes_of.values():
            _label_systems(axes, systems)


def _draw_score(
    axes: "Axes",
    score: Score,
    y: float,
    style: Mapping[str, Any],
) -> None:
    axes.plot(score.score, y, linestyle="none", **style)
    if score.low is not None:
        axes.hlines(y, score.low, score.high, color=style["color"], linewidth=1.2)


def _label_systems(axes: "Axes", systems: Sequence[str]) -> None:
    """Names the rows, with lines between them."""
    axes.set_yticks(range(len(systems)), [short(system) for system in systems])
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.hlines(
        np.arange(1, len(systems)) - 0.5,
        0,
        1,
        transform=axes.get_yaxis_transform(),
        color="0.9",
        lw=0.8,
    )
    axes.grid(visible=False, axis="y")


def plot_layers(by_layer: Mapping[tuple[str, str], Sequence[Score]], path: str | Path) -> None:
    """Draws scores by the layer of the features, with intervals: a panel per task, a line per mode.

    Args:
        by_layer: (task, mode) to the scores of one metric, layer by layer; the first one is that of the embeddings.
        path: Picture to write.
    """
    modes = list(dict.fromkeys(mode for _, mode in by_layer))
    titles = {task: f"{task}: {scores[0].metric}" for (task, _), scores in by_layer.items()}
    with _panels(path, titles, modes, width=3.8, height=3.0) as axes_of:
        for (task, mode), scores in by_layer.items():
            axes = axes_of[task]
            style = _style(modes, mode)
            layers = range(len(scores))
            axes.plot(layers, [score.score for score in scores], **style)
            axes.fill_between(
                layers,
                [score.low for score in scores],
                [score.high for score in scores],
                color=style["color"],
                alpha=0.15,
            )
            axes.set_xlabel("layer (0 = embeddings)")
            axes.xaxis.get_major_locator().set_params(integer=True)


@contextmanager
def _panels(
    path: str | Path,
    titles: Mapping[str, str],
    modes: Sequence[str],
    width: float,
    height: float,
    extra: float = 0.0,
    sharey: bool = False,
) -> Iterator[dict[str, "Axes"]]:
    """Axes by task, in at most four columns of `width` x `height` inches, above a legend of the modes."""
    from matplotlib.lines import Line2D

    most_columns = 4 if len(titles) > 6 else 3
    columns = min(len(titles), most_columns)
    whole_width = max(columns * width + extra, 6)
    shared = {"sharey": True} if sharey else {}
    with panels(path, list(titles.values()), height, columns, whole_width, **shared) as (figure, by_title):
        yield {task: by_title[title] for task, title in titles.items()}
        handles = []
        for mode in modes:
            style = _style(modes, mode)
            handles.append(Line2D([], [], linestyle="none", label=mode, **style))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(modes), 6))


def _style(modes: Sequence[str], mode: str) -> dict[str, Any]:
    number = modes.index(mode)
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4.5,
    }


# ---- model card -----------------------------------------------------------------------------------------------------


_CARD_START = "<!-- probe: begin -->"
_CARD_END = "<!-- probe: end -->"
_CARD_SECTION = re.compile(f"{_CARD_START}((?!{_CARD_START}).)*?{_CARD_END}", re.DOTALL)

# Hub task of a metric; any other metric is one of text classification.
_HUB_TASKS = {
    "pearson": "sentence-similarity",
    "spearmanr": "sentence-similarity",
    "map": "text-ranking",
    "mrr": "text-ranking",
    "p@1": "text-ranking",
    "p@5": "text-ranking",
    "r@1": "text-ranking",
    "r@10": "text-ranking",
}


def update_card(
    model_dir: str | Path,
    scores: Sequence[Score],
    system: str,
    splits: Mapping[str, str],
    command: str,
) -> None:
    """Writes the scores into the model card of a folder, in place of those of an earlier probe.

    The scores of the encoder become model-index metadata, the table of all systems a section between two marker
    comments, at the end of the card if it is new. Nothing else changes but the layout of the YAML. Encoders are named
    as `public_name` has them.

    Args:
        model_dir: Folder with a `README.md`.
        scores: Scores of all systems.
        system: The system that is the folder's encoder.
        splits: Scored split by task; a task without one, such as an average, is shown in the table alone.
        command: Command line that reproduces the scores, as it may be published, see `public_command`.

    Raises:
        UsageError: There is no folder or card, the card's metadata cannot be read, or the system has no score.
    """
    path = Path(model_dir) / "README.md"
    card = _load_card(path)
    results = []
    for result in card.data.eval_results or []:
        is_ours = "probe" in (result.metric_args or {})
        if not is_ours:
            results.append(result)
    own = [score for score in scores if score.system == system and score.task in splits]
    if not own:
        raise UsageError(f"--update_card: there is no score for {system}; use a task that has texts")
    results += [_eval_result(score, splits[score.task]) for score in own]
    card.data.model_name = card.data.model_name or path.parent.resolve().name
    card.data.eval_results = results

    shown = [score._replace(system=public_name(score.system)) for score in scores]
    section = _card_section(shown, public_name(system), command)
    card.text, replaced = _CARD_SECTION.subn(lambda _: section, card.text)
    if not replaced:
        card.text = f"{card.text.rstrip()}\n\n{section}\n"
    card.save(path)


def _load_card(path: Path) -> ModelCard:
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(
            f"--update_card: {folder} is not a folder; create one with `hf download {folder} --local-dir FOLDER`"
        )
    if not path.is_file():
        raise UsageError(f"--update_card: {folder} has no README.md; write one")
    try:
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: its metadata cannot be read ({error}); repair or remove it") from error


def _card_section(
    scores: Sequence[Score],
    system: str,
    command: str,
) -> str:
    explanation = (
        "In percent, with 95 % bootstrap intervals over rows; "
        f"`{system}` is this encoder, the other systems are controls and comparisons."
    )
    parts = [
        _CARD_START,
        "## What a probe measured",
        explanation,
        as_table(scores),
        f"```\n{command}\n```",
        _CARD_END,
    ]
    return "\n\n".join(parts)


def _eval_result(score: Score, split: str) -> EvalResult:
    """Several modes of one data set share an entry of the model-index, so that the mode stands beside the metric."""
    dataset = {
        "dataset_type": score.task,
        "dataset_name": score.task,
        "dataset_split": split,
    }
    if score.task in GLUE:
        glue = GLUE[score.task]
        dataset = {
            "dataset_type": "nyu-mll/glue",
            "dataset_config": score.task.removesuffix("-mm"),
            "dataset_split": split + glue.part,
            "dataset_name": f"GLUE {glue.submission_file}",
        }
    return EvalResult(
        task_type=_HUB_TASKS.get(score.metric, "text-classification"),
        metric_type=score.metric,
        metric_name=f"{score.metric}, {score.mode}",
        metric_value=round(score.score, 2),
        metric_args={
            "probe": score.mode,
            "low": round(score.low, 2),
            "high": round(score.high, 2),
            "rows": score.rows,
            "seeds": score.seeds,
        },
        **dataset,
    )
