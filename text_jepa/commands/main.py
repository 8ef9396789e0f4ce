"""The command `text-jepa`: one verb for each thing that the package does."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from text_jepa.cli import UsageError, nearest, run_command


# Each verb: the module whose `main(argv)` runs it, and a line of help. Imported when needed, for the Trainer takes
# seconds to import.
VERBS = {
    "pretrain": ("run_pretraining", "train an encoder on raw text, or adapt one that you have"),
    "probe": ("run_probe", "measure encoders on labelled tasks and on your own documents"),
    "export": (
        "text_jepa.commands.export",
        "other forms of an encoder: ONNX, merged, with other word weights, on the Hub",
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
        UsageError: No verb, or an unknown one; the nearest is named.
    """
    if not argv:
        raise UsageError(f"name a verb: {', '.join(VERBS)} (see text-jepa --help)")
    verb, *rest = argv
    if verb in ("-h", "--help"):
        print(help_text())
    elif verb == "--version":
        print(f"text-jepa {version('text-jepa')}")
    elif verb in VERBS:
        command_of(verb)(rest)
    else:
        raise UsageError(f"unknown verb '{verb}'{nearest(verb, list(VERBS))} (see text-jepa --help)")


def command_of(verb: str) -> Callable[[list[str]], object]:
    """The function that runs a verb with its arguments."""
    module, _ = VERBS[verb]
    return import_module(module).main


def help_text() -> str:
    """What `text-jepa --help` prints."""
    lines = ["usage: text-jepa VERB [...]", "", "Text-JEPA: better text encoders from raw text.", ""]
    lines += [f"  {verb:<9} {help}" for verb, (_, help) in VERBS.items()]
    lines += ["", "text-jepa VERB --help lists the flags of a verb; text-jepa --version tells the version."]
    return "\n".join(lines)
