"""What the pages say of the code, read from the code while the site is built: flags, classes, recipes.

A line `{{ name }}` of a page becomes what `BLOCKS` has under this name. MkDocs calls what begins with `on_`.
"""

import argparse
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import text_jepa
from configuration_text_jepa import TextJepaConfig
from text_jepa.commands import export, plot
from text_jepa.commands.masks import GalleryArguments
from text_jepa.probe.arguments import ProbeArguments
from text_jepa.train.arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
)


ROOT = Path(__file__).parents[1]


# ---- what MkDocs calls ----------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, **context) -> str:
    """A page with its blocks filled in, and without links to what is not a page, which hold in the repository only."""
    markdown = re.sub(r"^\{\{ (\w+) \}\}$", lambda block: BLOCKS[block[1]](), markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^]]+)\]\((?:\.\./)+(?![^)]*\.md)[^)]*\)", r"\1", markdown)


def on_page_content(html: str, **context) -> str:
    """A page without the marks that docstrings have in the style of transformers: [`Name`] and `int`."""
    html = re.sub(r"<code>([^<]*`[^<]*)</code>", lambda kind: f"<em>{re.sub('[`*]', '', kind[1])}</em>", html)
    return re.sub(r"\[<code>~?([\w.]+)</code>\]", _link, html)


def _link(match):
    name, dot, member = match[1].partition(".")
    if name not in text_jepa.__all__:
        return f"<code>{match[1]}</code>"
    return f'<a href="#{path_of(name)}{dot}{member}"><code>{match[1]}</code></a>'


# ---- flags ----------------------------------------------------------------------------------------------------------


def own_flags(cls: type) -> str:
    """The flags that a dataclass of arguments declares itself."""
    return table(row for row in flags_of(cls) if row[0] in inspect.get_annotations(cls))


def inherited_flags(cls: type) -> str:
    """Those that it has from others."""
    return table(row for row in flags_of(cls) if row[0] not in inspect.get_annotations(cls))


def flags_of(cls: type, defaults: type | None = None) -> Iterator[tuple[str, Any, str]]:
    """Name, default and help of each flag; `defaults` has those of flags without one."""
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is None and defaults is not None:
            default = getattr(defaults, field.name)
        choices = field.metadata.get("choices") or choices_of(field.type)
        yield field.name, default, in_words(field.metadata.get("help", ""), choices)


def choices_of(annotation: Any) -> Sequence[str]:
    """The values of a `Literal`, also of an optional one."""
    if get_origin(annotation) in (Union, UnionType):
        return next(filter(None, map(choices_of, get_args(annotation))), ())
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def in_words(text: str, choices: Sequence[str] | None = None) -> str:
    """A text for a cell of a table, such as the help of a flag with what it may be."""
    known = f"One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    text = re.sub(r"(?<![\w`-])--\w+", r"`\g<0>`", f"{text} {known}")
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(rows: Iterator[tuple[str, Any, str]]) -> str:
    """Flags as a table."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for name, default, meaning in rows:
        shown = "" if default is None else f"`{' '.join(map(str, default)) if isinstance(default, list) else default}`"
        lines.append(f"| `--{name}` | {shown.replace('``', '')} | {meaning} |")
    return "\n".join(lines)


def sub_commands(parser: argparse.ArgumentParser) -> str:
    """A section for each sub-command of a parser."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return "\n\n".join(
        "\n".join([f"### `{parser.prog} {name}`", "", one.description, "", *_options(one)])
        for name, one in commands.choices.items()
    )


def _options(parser):
    yield from ("| argument | default | meaning |", "|---|---|---|")
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            name = ", ".join(action.option_strings) or action.metavar or action.dest
            default = f"`{action.default}`" if action.default else ""
            yield f"| `{name}` | {default} | {in_words(action.help or '', action.choices)} |"


# ---- classes and recipes --------------------------------------------------------------------------------------------


def path_of(name: str) -> str:
    """Where a public name is defined, from its module on."""
    return f"{getattr(text_jepa, name).__module__}.{name}"


# What the header of a recipe says behind the sentence of what it is.
_KEYS = "Source|As there|Not so|Command|Hardware|Score|Run"


def headers(folder: str) -> str:
    """What the YAML files of a folder are and where their idea comes from, by the comments they begin with."""
    lines = ["| file | what it is | source |", "|---|---|---|"]
    for path in sorted((ROOT / folder).glob("*.yaml")):
        comments = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))[0].replace("\n#", "\n")[1:]
        what, *parts = re.split(rf"^ ({_KEYS}): ", comments, flags=re.MULTILINE)
        said = dict(zip(parts[::2], parts[1::2], strict=True))
        cells = [in_words(text) for text in (what, said.get("Source", ""))]
        cells = [re.sub(r"arXiv (\d{4}\.\d{5})", r"[\g<0>](https://arxiv.org/abs/\1)", cell) for cell in cells]
        lines.append(f"| `{path.relative_to(ROOT / 'configs')}` | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "encoder_flags": functools.partial(own_flags, ModelArguments),
    "data_flags": functools.partial(own_flags, DataArguments),
    "objective_flags": lambda: table(flags_of(ObjectiveArguments, TextJepaConfig)),
    "training_flags": functools.partial(own_flags, TextJepaTrainingArguments),
    "inherited_flags": functools.partial(inherited_flags, TextJepaTrainingArguments),
    "probe_flags": functools.partial(own_flags, ProbeArguments),
    "show_masks_flags": functools.partial(own_flags, GalleryArguments),
    "export_commands": lambda: sub_commands(export.make_parser()),
    "pictures_commands": lambda: sub_commands(plot.make_parser()),
    "recipes": functools.partial(headers, "configs"),
    "corpora": functools.partial(headers, "configs/corpora"),
}
