"""The command `text-jepa`: help, version and search, which answer at once, and the way to everything else.

Torch and transformers alone take seconds to import. What people ask for first is therefore stored as text in
`text_jepa/commands/stored/`. `python -m text_jepa.commands.stored` writes it, and a test compares it with the code.
"""

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path


STORED = Path(__file__).with_name("text_jepa") / "commands" / "stored"

# The words of a command line -> the file with the answer.
ANSWERS = {
    ("--help",): "text-jepa.txt",
    ("pretrain", "--help"): "pretrain.txt",
    ("probe", "--help"): "probe.txt",
}

# What is printed, before exit code 2, when there is nothing to train on.
NOTHING = "nothing.txt"


def main() -> None:
    """Entry point of `text-jepa`."""
    words = tuple("--help" if word == "-h" else word for word in sys.argv[1:])
    if words == ("--version",):
        print(f"text-jepa {version('text-jepa')}")
    elif words in ANSWERS:
        print(stored(ANSWERS[words]), end="")
    elif words == ("pretrain",):
        print(stored(NOTHING), end="", file=sys.stderr)
        sys.exit(2)
    elif words[:1] == ("search",):
        from text_jepa.commands.search import main as search
        from text_jepa.errors import run_command

        run_command(partial(search, sys.argv[2:]))
    else:
        from text_jepa.commands.main import main as run

        run()


def stored(name: str) -> str:
    """A stored text."""
    return (STORED / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
