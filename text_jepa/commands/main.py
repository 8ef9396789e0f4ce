"""The command `text-jepa`: one verb for each thing that the package does."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from text_jepa.cli import UsageError, nearest, run_command


# The module whose `main(argv, prog)` runs a verb, and the verb's line of help. Modules are imported when needed: the
# Trainer alone takes seconds.
VERBS = {
    "pretrain": ("run_pretraining", "train an encoder on raw text, or adapt an existing one"),
    "adapt": (
        "text_jepa.commands.adapt",
        "adapt an encoder that you use to your texts, by the recipe that suits it",
    ),
    "search": ("text_jepa.commands.search", "search a folder of texts by meaning and by words together"),
    "probe": ("run_probe", "measure encoders on labelled tasks and on your own documents"),
    "export": (
        "text_jepa.commands.export",
        "write an encoder in another form: ONNX, merged, with other word weights, on the Hub",
    ),
    "masks": ("text_jepa.commands.masks", "show what a run hides and what it predicts"),
    "plot": ("text_jepa.commands.plot", "draw curves of runs, maps of texts and spectra of encoders"),
}


def main() -> NoReturn:
    """Entry point of `text-jepa`."""
    run_command(partial(dispatch, sys.argv[1:]))


def dispatch(argv: list[str]) -> None:
    """Runs the verb that comes first.

    Raises:
        UsageError: No verb, or an unknown one; the error names the nearest.
    """
    if not argv:
        raise UsageError(f"name a verb: {', '.join(VERBS)} (see text-jepa --help)")
    verb, *rest = argv
    if verb in ("-h", "--help"):
        print(help_text())
    elif verb == "--version":
        print(f"text-jepa {version('text-jepa')}")
    elif verb in VERBS:
        command = command_of(verb)
        command(rest, prog=f"text-jepa {verb}")
    else:
        raise UsageError(f"unknown verb '{verb}'{nearest(verb, VERBS)} (see text-jepa --help)")


def command_of(verb: str) -> Callable[..., object]:
    """The `main` of the module that runs a verb."""
    module, _ = VERBS[verb]
    return import_module(module).main


def help_text() -> str:
    """What `text-jepa --help` prints."""
    lines = [
        "usage: text-jepa VERB [...]",
        "",
        "Text-JEPA: better text encoders from raw text.",
        "",
    ]
    for verb, (_, help) in VERBS.items():
        lines.append(f"  {verb:<9} {help}")
    lines.append("")
    lines.append("text-jepa VERB --help lists the flags of a verb, text-jepa --version shows the version.")
    return "\n".join(lines)
