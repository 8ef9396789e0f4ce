"""The command `text-jepa`: one verb for each thing that the package does.

Torch and transformers alone take seconds to import, so this module knows neither. Help is stored as text in
`text_jepa/commands/stored/`: `python -m text_jepa.commands.stored` writes it, and a test compares it with the code.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from text_jepa.errors import UsageError, check_words, nearest, run_command


# Verbs whose help leaves out flags; that of the others has them all.
_LONG_HELP = ("pretrain", "probe", "masks")

# Verbs that train, as the first words of a command line.
_TRAINING = (["pretrain"], ["adapt"])

# The module whose `main(argv, prog)` runs a verb, and the verb's line of help. Modules are imported when needed.
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

# Verbs with forms or pictures of their own, and the names of these.
PARTS = {
    "export": ("encoder", "sentence-transformers", "onnx", "weights", "merge", "push"),
    "plot": ("curves", "map", "spectra"),
}

STORED = Path(__file__).parent / "stored"

# The words of a command line -> the file with its help. The parser of a search needs neither torch nor transformers.
STORED_HELP = {(verb, "--help"): f"{verb}.txt" for verb in VERBS if verb != "search"}
for _verb, _parts in PARTS.items():
    STORED_HELP |= {(_verb, part, "--help"): f"{_verb}-{part}.txt" for part in _parts}

# What most people come for.
EXAMPLES = (
    "text-jepa pretrain notes/ --output_dir runs/notes",
    'text-jepa search notes/ "who repaired the bridge?"',
    "text-jepa adapt sentence-transformers/all-MiniLM-L6-v2 notes/",
)

# What is printed, before exit code 2, when there is nothing to train on.
NOTHING_TO_TRAIN_ON = "nothing.txt"


def main() -> NoReturn:
    """Entry point of `text-jepa`."""
    words = sys.argv[1:]
    run_command(partial(run_or_help, words), trains=words[:1] in _TRAINING)


def run_or_help(argv: list[str]) -> None:
    """Prints a stored help text, which takes no imports, or runs the verb."""
    words = tuple(_ask_alike(argv))
    if not words:
        print(help_text(), file=sys.stderr)
        sys.exit(2)
    if words == ("pretrain",):
        print(read_stored(NOTHING_TO_TRAIN_ON), end="", file=sys.stderr)
        sys.exit(2)
    if words in STORED_HELP:
        print(read_stored(STORED_HELP[words]), end="")
    else:
        dispatch(argv)


def _ask_alike(words: list[str]) -> list[str]:
    """A command line in which every question for the same help is `--help`."""
    is_long = words[:1] and words[0] in _LONG_HELP
    same = ("-h",) if is_long else ("-h", "--help-all", "--help_all")
    return ["--help" if word in same else word for word in words]


def read_stored(name: str) -> str:
    """Reads a stored text."""
    return (STORED / name).read_text(encoding="utf-8")


def dispatch(argv: list[str]) -> None:
    """Runs the verb that comes first.

    Raises:
        UsageError: An unknown command; the error names the nearest.
    """
    verb, *rest = _ask_alike(argv)
    if verb == "--help":
        print(help_text())
    elif verb == "--version":
        print(f"text-jepa {version('text-jepa')}")
    elif verb in VERBS:
        check_words(rest)
        command = command_of(verb)
        command(rest, prog=f"text-jepa {verb}")
    else:
        raise UsageError(f"unknown command '{verb}'{nearest(verb, VERBS)} (see text-jepa --help)")


def command_of(verb: str) -> Callable[..., object]:
    """The `main` of the module that runs a verb."""
    module, _ = VERBS[verb]
    return import_module(module).main


def help_text() -> str:
    """What `text-jepa --help` prints."""
    lines = [
        "usage: text-jepa COMMAND [...]",
        "",
        "Text-JEPA: better text encoders from raw text.",
        "",
        *(f"  {example}" for example in EXAMPLES),
        "",
    ]
    for verb, (_, help) in VERBS.items():
        lines.append(f"  {verb:<9} {help}")
    lines.append("")
    lines.append("text-jepa COMMAND --help lists the flags of a command, text-jepa --version shows the version.")
    return "\n".join(lines)
