"""MkDocs hooks: they fill pages from the code while the site is built, with flags, classes and recipes.

A line `{{ name }}` of a page becomes the text of this name in `BLOCKS`. MkDocs calls functions that begin with `on_`.
"""

import argparse
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import text_jepa
from configuration_text_jepa import TextJepaConfig
from text_jepa.commands import export, plot, search
from text_jepa.commands.masks import GalleryArguments
from text_jepa.probe.arguments import SECTIONS, ProbeArguments
from text_jepa.train.arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
)
from text_jepa.train.command import DEFAULT_RECIPE


ROOT = Path(__file__).parents[1]


# ---- called by MkDocs -----------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Fills the blocks of a page, and unlinks files that are not pages, whose links work in the repository only."""

    def fill(block: re.Match) -> str:
        name = block[1]
        return BLOCKS[name]()

    markdown = re.sub(r"^\{\{ (\w+) \}\}$", fill, markdown, flags=re.MULTILINE)
    link_out_of_docs = r"\[([^]]+)\]\((?:\.\./)+(?![^)]*\.md)[^)]*\)"
    return re.sub(link_out_of_docs, r"\1", markdown)


def on_page_content(html: str, **context: Any) -> str:
    """Turns the marks of docstrings of transformers into links ([`Name`]) and plain types (`int`), and marks flags."""

    def plain_type(match: re.Match) -> str:
        text = re.sub("[`*]", "", match[1])
        return f"<em>{text}</em>"

    html = re.sub(r"<code>([^<]*`[^<]*)</code>", plain_type, html)
    html = re.sub(r"<code>(--\w+)</code>", r'<code class="flag">\1</code>', html)  # stays in one piece
    return re.sub(r"\[<code>~?([\w.]+)</code>\]", _link, html)


def _link(match: re.Match) -> str:
    code = f"<code>{match[1]}</code>"
    name, dot, member = match[1].partition(".")
    if name not in text_jepa.__all__:
        return code
    return f'<a href="#{path_of(name)}{dot}{member}">{code}</a>'


def path_of(name: str) -> str:
    """The dotted path of a public name."""
    return f"{getattr(text_jepa, name).__module__}.{name}"


# ---- flags ----------------------------------------------------------------------------------------------------------


class Flag(NamedTuple):
    """A row of a table of flags."""

    name: str
    default: Any
    meaning: str


def own_flags(argument_class: type) -> str:
    """A table of the flags that a dataclass of arguments declares itself."""
    own = inspect.get_annotations(argument_class)
    return table(flag for flag in flags_of(argument_class) if flag.name in own)


def inherited_flags(argument_class: type) -> str:
    """A table of the flags that a dataclass of arguments inherits."""
    own = inspect.get_annotations(argument_class)
    return table(flag for flag in flags_of(argument_class) if flag.name not in own)


def flags_of(argument_class: type, defaults: type | None = None) -> Iterator[Flag]:
    """The flags of a dataclass; `defaults` has the defaults of those without one."""
    for field in dataclasses.fields(argument_class):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is None and defaults is not None:
            default = getattr(defaults, field.name)
        choices = field.metadata.get("choices") or choices_of(field.type)
        help = field.metadata.get("help", "")
        yield Flag(field.name, default, cell(help, choices))


def flags_in_sections(argument_class: type, sections: Mapping[str, Sequence[str]]) -> str:
    """A heading and a table for each section of the flags of a dataclass."""
    by_name = {flag.name: flag for flag in flags_of(argument_class)}
    parts = [f"### {title}\n\n{table(by_name[name] for name in names)}" for title, names in sections.items()]
    return "\n\n".join(parts)


def default_recipe() -> str:
    """The flags of the recipe of a run that names none."""
    return ", ".join(f"`--{name} {value}`" for name, value in DEFAULT_RECIPE.items())


def choices_of(annotation: Any) -> Sequence[str]:
    """The values of a `Literal`, also of an optional one."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            if choices_of(option):
                return choices_of(option)
    return ()


def cell(text: str, choices: Sequence[str] | None = None) -> str:
    """Formats a text for a cell of a table, such as the help of a flag with its choices."""
    if choices:
        listed = ", ".join(f"`{choice}`" for choice in choices)
        text = f"{text} One of {listed}."
    text = re.sub(r"(?<![\w`-])--\w+", r"`\g<0>`", text)
    text = " ".join(text.split())
    return text.replace("|", "\\|").replace("<", "&lt;")


def table(flags: Iterable[Flag]) -> str:
    """Formats flags as a table."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for name, default, meaning in flags:
        if isinstance(default, list):
            default = " ".join(map(str, default))
        is_empty = default is None or default == ""
        shown = "" if is_empty else f"`{default}`"
        lines.append(f"| `--{name}` | {shown} | {meaning} |")
    return "\n".join(lines)


def sub_commands(parser: argparse.ArgumentParser) -> str:
    """A section for each sub-command of a parser."""
    sections = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                lines = [f"### `{parser.prog} {name}`", "", command.description, ""]
                sections.append("\n".join(lines + _arguments_of(command)))
    return "\n\n".join(sections)


def _arguments_of(command: argparse.ArgumentParser) -> list[str]:
    """Lines of a table of the arguments of a command."""
    lines = ["| argument | default | meaning |", "|---|---|---|"]
    for action in command._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        name = ", ".join(action.option_strings) or action.metavar or action.dest
        default = f"`{action.default}`" if action.default else ""
        meaning = cell(action.help or "", action.choices)
        lines.append(f"| `{name}` | {default} | {meaning} |")
    return lines


# ---- recipes --------------------------------------------------------------------------------------------------------

# Entries in the header of a recipe, after the sentence that says what it is.
_ENTRIES = "Source|As there|Not so|Command|Hardware|Score|Run"


def headers(folder: str) -> str:
    """A table of the YAML files of a folder, from the comments that they begin with: what each is, and its source."""
    lines = ["| file | what it is | source |", "|---|---|---|"]
    for path in sorted((ROOT / folder).glob("*.yaml")):
        content = path.read_text(encoding="utf-8")
        header = re.match(r"(?:#.*\n)+", content)[0]
        comments = header.replace("\n#", "\n").removeprefix("#")
        what, *parts = re.split(rf"^ ({_ENTRIES}): ", comments, flags=re.MULTILINE)
        entries = dict(zip(parts[::2], parts[1::2], strict=True))
        name = path.relative_to(ROOT / "configs")
        source = _with_links(cell(entries.get("Source", "")))
        lines.append(f"| `{name}` | {_with_links(cell(what))} | {source} |")
    return "\n".join(lines)


def _with_links(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\g<0>](https://arxiv.org/abs/\1)", text)


# ---- the notebook ---------------------------------------------------------------------------------------------------


def tour() -> str:
    """The cells of `examples/tour.ipynb` below its title, with what they printed and drew."""
    notebook = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        parts += [_shown_output(output) for output in cell.get("outputs", [])]
    _, _, below_title = "\n\n".join(parts).partition("\n")
    return below_title


def _shown_output(output: Mapping[str, Any]) -> str:
    """What a cell printed, without the colours of a terminal, or its picture."""
    if output["output_type"] == "stream":
        text = re.sub(r"\x1b\[[\d;]*m", "", "".join(output["text"]))
        return f"```text\n{text.rstrip()}\n```"
    return f"![What the cell above drew](data:image/png;base64,{output['data']['image/png']})"


BLOCKS: dict[str, Callable[[], str]] = {
    "encoder_flags": lambda: table(flags_of(ModelArguments)),
    "data_flags": lambda: table(flags_of(DataArguments)),
    "objective_flags": lambda: table(flags_of(ObjectiveArguments, TextJepaConfig)),
    "training_flags": functools.partial(own_flags, TextJepaTrainingArguments),
    "inherited_flags": functools.partial(inherited_flags, TextJepaTrainingArguments),
    "default_recipe": default_recipe,
    "probe_flags": functools.partial(flags_in_sections, ProbeArguments, SECTIONS),
    "masks_flags": lambda: table(flags_of(GalleryArguments)),
    "search_flags": lambda: "\n".join(_arguments_of(search.make_parser())),
    "export_commands": lambda: sub_commands(export.make_parser()),
    "plot_commands": lambda: sub_commands(plot.make_parser()),
    "recipes": functools.partial(headers, "configs"),
    "corpora": functools.partial(headers, "configs/corpora"),
    "tour": tour,
}
