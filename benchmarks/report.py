"""Writes docs/results.md, its pictures and tables, and the results in README.md, from stored comparisons.

    python benchmarks/report.py
    python benchmarks/report.py --add runs/compare-documents
    python benchmarks/report.py --pretrained runs/tiny_cpu
    python benchmarks/report.py --released runs/wikipedia-short
    python benchmarks/report.py --card runs/compare-documents/seed1/default

docs/results.yaml lists the questions of the page. Each question names a comparison, stored under this name in
docs/assets, and the systems and scores to show, with their labels. Sentences take their figures from the comparison
too: `{lead:mlm:STS-B}` is the lead of the reference over `mlm`, `{lead:mlm:STS-B:simcse}` the lead of `simcse` over
`mlm`, and `{score:mlm:STS-B}` the score of `mlm`. Every question gets a picture with the intervals of all systems, a
table with the measured seconds of training, and a CSV file with all figures by seed. README.md gets the table of the
first question, the claim of one question, and the summaries of those that have one.

--add stores the results of a folder of benchmarks/compare.py. --pretrained stores the log and the recipe of a run of
`make pretrain`, from which the lines of the log in README.md and docs/quickstart.md are written. --released shows the
card of a run of the default recipe in docs/released-encoder.md. A run of another recipe than today's is refused.
"""

import argparse
import csv
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from compare import (
    against,
    as_markdown,
    marked_seconds,
    mean_seconds,
    note_on_seconds,
    plot_quality,
    seconds_header,
    source_of,
)
from stored_run import health_lines, store

from text_jepa.cli import UsageError, run_command


ROOT = Path(__file__).resolve().parents[1]
# Places in README.md, marked by comments at their beginning and end.
CLAIM = "claim"
RESULTS = "results"
SUMMARY = "summary"
LOG = "log"
# The run of `make pretrain`: its name in docs/assets, its recipe, and that of longer runs.
PRETRAINED = "make-pretrain"
RECIPES = ("configs/tiny_cpu.yaml", "configs/default.yaml")
# The encoder whose card is shown: its name in docs and docs/assets, and the place for the card.
RELEASED = "released-encoder"
CARD = "card"

Results = Mapping[str, Any]


class Question(NamedTuple):
    """A question of the page.

    Attributes:
        title: The question.
        answer: One or two sentences, with placeholders for figures.
        comparison: Name of the comparison that answers the question.
        systems: Labels of the systems to show, by their names in the comparison; the reference comes first.
        columns: Task and mode of each score to show, by its label.
        note: Further text below the table.
        claim: The claim at the top of README.md and docs/index.md, with placeholders; one question has it.
        summary: A line of README.md, with placeholders, or nothing.
        over_time: Whether to draw the first score over seconds of training.
    """

    title: str
    answer: str
    comparison: str
    systems: Mapping[str, str]
    columns: Mapping[str, Sequence[str]]
    note: str = ""
    claim: str = ""
    summary: str = ""
    over_time: bool = False


class Page(NamedTuple):
    """The content of docs/results.yaml: text before the questions, the questions, and text after them."""

    intro: str
    questions: Sequence[Question]
    outro: str


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Writes the page, its pictures and files, and the results in README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--add", nargs="+", type=Path, default=[], metavar="FOLDER", help="folders of compare.py to store"
    )
    parser.add_argument("--pretrained", type=Path, metavar="RUN", help="folder of `make pretrain`")
    parser.add_argument("--released", type=Path, metavar="RUN", help="folder of a run of configs/default.yaml")
    parser.add_argument("--card", type=Path, metavar="ENCODER", help="encoder whose README.md gets the first table")
    args = parser.parse_args(argv)
    assets = root / "docs/assets"
    for folder in args.add:
        add(folder, assets)
    if args.pretrained:
        store(args.pretrained, assets / PRETRAINED, RECIPES, kept=["metrics.jsonl"])
    if args.released:
        kept = ["metrics.jsonl", "verdict.json", "curves.png"]
        store(args.released, assets / RELEASED, RECIPES[1:], kept)
        card = (args.released / "README.md").read_text(encoding="utf-8")
        put(as_section(card, f"assets/{RELEASED}"), root / f"docs/{RELEASED}.md", CARD)
    page = read_page(root / "docs/results.yaml")
    first = page.questions[0]
    table = table_of(first, read(assets, first.comparison))
    # The file that is most likely to be missing comes first, so that nothing is half written.
    if args.card:
        source = source_of(read(assets, first.comparison))
        put(f"## {first.title}\n\n{source}\n\n{table}", args.card / "README.md", RESULTS, may_be_added=True)
    put(table, root / "README.md", RESULTS)
    lines = health_lines(assets / PRETRAINED)
    put(as_code(lines), root / "README.md", LOG)
    put(as_code(lines[1:2]), root / "docs/quickstart.md", LOG)
    parts = [page.intro]
    summaries = []
    for question in page.questions:
        results = read(assets, question.comparison)
        parts.append(part_of(question, results))
        if question.claim:
            claim = with_figures(question.claim, question, results).strip()
            put(claim, root / "README.md", CLAIM)
            put(claim, root / "docs/index.md", CLAIM)
        if question.summary:
            summaries.append(f"- {with_figures(question.summary, question, results).strip()}")
        draw_intervals(question, results, assets / picture_of(question))
        if question.over_time:
            draw_over_time(question, results, assets / f"{question.comparison}-over-time.png")
        (assets / f"{question.comparison}.csv").write_text(as_csv(results), encoding="utf-8")
    parts.append(page.outro)
    put("\n".join(summaries), root / "README.md", SUMMARY)
    (root / "docs/results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


# ---- input ----------------------------------------------------------------------------------------------------------


def add(folder: Path, assets: Path) -> None:
    """Stores the results of a comparison."""
    copy(folder / "results.json", assets / f"results-{folder.name}.json", "run benchmarks/compare.py")


def copy(source: Path, target: Path, remedy: str) -> None:
    """Copies a file.

    Raises:
        UsageError: There is no such file.
    """
    if not source.is_file():
        raise UsageError(f"{source}: does not exist; {remedy}")
    shutil.copyfile(source, target)


def read_page(path: Path) -> Page:
    """Reads docs/results.yaml.

    Raises:
        UsageError: A question has an unknown or a missing field.
    """
    page = yaml.safe_load(path.read_text(encoding="utf-8"))
    questions = []
    for fields in page["questions"]:
        try:
            questions.append(Question(**fields))
        except TypeError as error:
            raise UsageError(f"{path}: {fields.get('title')}: {error}") from error
    return Page(page["intro"].strip(), questions, page["outro"].strip())


def read(assets: Path, comparison: str) -> Results:
    """The stored results of a comparison."""
    path = assets / f"{comparison}.json"
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; --add the folder of the comparison, or --pretrained")
    return json.loads(path.read_text(encoding="utf-8"))


# ---- output ---------------------------------------------------------------------------------------------------------


def as_code(lines: Sequence[str]) -> str:
    """Lines as a code block of Markdown."""
    return "\n".join(["```", *lines, "```"])


def part_of(question: Question, results: Results) -> str:
    """The part of the page that answers a question."""
    files = f"[CSV](assets/{question.comparison}.csv), [JSON](assets/{question.comparison}.json)"
    parts = [
        f"## {question.title}",
        with_figures(question.answer, question, results).strip(),
        f"![{question.title}](assets/{picture_of(question)})",
        table_of(question, results),
        question.note.strip(),
        f'??? note "Command, machine and all figures"\n    {source_of(results)}'.replace("\n\n", "\n\n    ")
        + f"\n\n    All figures by seed: {files}.",
    ]
    return "\n\n".join(part for part in parts if part)


def picture_of(question: Question) -> str:
    """Name of the picture with the intervals, after the question: several questions may share a comparison."""
    words = re.findall(r"[a-z0-9]+", question.title.lower())
    return f"answer-{'-'.join(words[:6])}.png"


def with_figures(text: str, question: Question, results: Results) -> str:
    """Replaces `{score:SYSTEM:COLUMN}`, `{lead:SYSTEM:COLUMN}` and `{lead:SYSTEM:COLUMN:AHEAD}` by their figures.

    Raises:
        UsageError: The comparison has no such figure.
    """

    def figure(match: re.Match) -> str:
        kind, system, column, ahead = match.groups()
        scores, leads = figures_of(question, results, ahead)
        figures = leads if kind == "lead" else scores
        if (system, column) not in figures:
            raise UsageError(f"docs/results.yaml: {question.title}: {question.comparison} has no {match.group()}")
        found = figures[system, column]
        if kind == "score":
            return f"{found['score']:.1f}"
        return f"{found['ahead']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"

    return re.sub(r"\{(score|lead):([^:{}]+):([^:{}]+)(?::([^:{}]+))?\}", figure, text)


def figures_of(
    question: Question,
    results: Results,
    reference: str | None = None,
) -> tuple[dict, dict]:
    """Scores of the systems, and leads of the reference over them, by system and column of the page.

    Args:
        question: The question.
        results: Its comparison.
        reference: Name of a system. Defaults to the first one of the question.
    """
    reference = reference or next(iter(question.systems))
    column_of = {tuple(where): name for name, where in question.columns.items()}

    def by_cell(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
        cells = {}
        for record in records:
            column = column_of.get((record["task"], record["mode"]))
            if column is not None:
                cells[record["system"], column] = record
        return cells

    return by_cell(results["scores"]), by_cell(against(reference, results["pairs"]))


def table_of(question: Question, results: Results) -> str:
    """A table with a row per system: scores with half of their interval, the lead of the reference, and seconds."""
    scores, leads = figures_of(question, results)
    seconds_of = mean_seconds(results)
    budget = results["budget"]["seconds"]
    rows = []
    for system, name in question.systems.items():
        row = [name]
        for column in question.columns:
            row.append(cell_of(scores.get((system, column)), leads.get((system, column))))
        row.append(marked_seconds(seconds_of[system], budget) if system in seconds_of else "")
        rows.append(row)
    table = as_markdown(["", *question.columns, seconds_header(budget)], rows)
    note = note_on_seconds(table)
    return f"{table}\n\n{note}" if note else table


def cell_of(score: Mapping[str, Any] | None, lead: Mapping[str, Any] | None) -> str:
    """A score and the lead over it, in bold where the interval of the lead excludes zero."""
    if score is None:
        return ""
    half = (score["high"] - score["low"]) / 2
    cell = f"{score['score']:.1f} ± {half:.1f}"
    if lead is None:
        return cell
    ahead = f"{lead['ahead']:+.1f}"
    if lead["verdict"] != "n.s.":
        ahead = f"**{ahead}**"
    return f"{cell} ({ahead})"


def as_csv(results: Results) -> str:
    """All scores of a comparison as CSV: intervals, leads of the reference, and a column per seed."""
    reference = results["plan"]["reference"]
    leads = {}
    for pair in against(reference, results["pairs"]):
        leads[pair["task"], pair["mode"], pair["metric"], pair["system"]] = pair
    most_seeds = max(len(score["by_seed"]) for score in results["scores"])
    header = ["task", "mode", "metric", "system", "score", "low", "high", "ahead", "ahead_low", "ahead_high"]
    header += [f"seed_{number}" for number in range(1, most_seeds + 1)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for score in results["scores"]:
        key = (score["task"], score["mode"], score["metric"], score["system"])
        figures = [score["score"], score["low"], score["high"]]
        lead = leads.get(key)
        if lead is None:
            ahead = [""] * 3
        else:
            ahead = [f"{lead[name]:.3f}" for name in ("ahead", "low", "high")]
        by_seed = [f"{value:.3f}" for value in score["by_seed"]]
        writer.writerow([*key, *(f"{figure:.3f}" for figure in figures), *ahead, *by_seed])
    return text.getvalue()


def draw_intervals(question: Question, results: Results, path: Path) -> None:
    """Draws a panel per column, with a point and its 95 % interval per system; the reference is on top, in colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores, _ = figures_of(question, results)
    names = list(question.systems.values())
    figure = Figure(figsize=(2.9 * len(question.columns) + 1.6, 0.32 * len(names) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(question.columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, question.columns, strict=True):
        for row, system in enumerate(question.systems):
            score = scores.get((system, column))
            if score is None:
                continue
            color = "C0" if row == 0 else "dimgray"
            axes.plot([score["low"], score["high"]], [row, row], color=color, linewidth=2, alpha=0.6)
            axes.plot(score["score"], row, color=color, marker="o", markersize=5)
        axes.set_title(column, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_over_time(question: Question, results: Results, path: Path) -> None:
    """Draws the first score over seconds of training, with a thicker line for the reference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    label, (task, _) = next(iter(question.columns.items()))
    column = next(found for name, found in results["quality"].items() if name.startswith(f"{task}, "))
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = plot_quality(axes, column, question.systems)
    reference = next(iter(question.systems))
    lines[reference].set_linewidth(3)
    axes.set_xlabel(f"{results['quality_axis']}\n{results['machine']}")
    axes.set_ylabel(f"{label}, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def as_section(card: str, assets: str) -> str:
    """A model card as a section of a page: no metadata, headings one level lower, pictures from `assets`."""
    _, _, body = card.partition("\n---\n")
    body = body.strip().replace("(curves.png)", f"({assets}/curves.png)")
    lines = []
    is_code = False
    for line in body.split("\n"):
        is_code ^= line.startswith("```")
        is_heading = line.startswith("#") and not is_code
        lines.append(f"#{line}" if is_heading else line)
    return "\n".join(lines)


def put(
    text: str,
    path: Path,
    place: str,
    may_be_added: bool = False,
) -> None:
    """Replaces the text between the two comments that mark a place in a file.

    Args:
        text: The new text.
        path: The file.
        place: Name of the place.
        may_be_added: Whether to add both comments at the end of the file if they are missing.

    Raises:
        UsageError: There is no such file, or it does not contain the comments exactly once.
    """
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; name the folder of an exported encoder")
    start = f"<!-- {place} -->"
    end = f"<!-- end of {place} -->"
    whole = path.read_text(encoding="utf-8")
    if may_be_added and start not in whole:
        whole = f"{whole.rstrip()}\n\n{start}{end}\n"
    old = re.escape(start) + ".*?" + re.escape(end)
    new = f"{start}\n{text}\n{end}"
    whole, count = re.subn(old, lambda _: new, whole, flags=re.DOTALL)
    if count != 1:
        raise UsageError(f"{path}: expected the comments {start} and {end} once")
    path.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
