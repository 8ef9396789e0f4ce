"""Updates the stored help: `python -m text_jepa.commands.stored`, after a change of flags or verbs."""

import contextlib
import io
from pathlib import Path

from text_jepa.commands.main import NOTHING_TO_TRAIN_ON, STORED_HELP, dispatch
from text_jepa.errors import run_command


def stored_texts() -> dict[str, str]:
    """What the command prints, by the name of the file that it is stored in."""
    texts = {name: printed(words) for words, name in STORED_HELP.items()}
    return texts | {NOTHING_TO_TRAIN_ON: printed(("pretrain",))}


def printed(words: tuple[str, ...]) -> str:
    """What a command line prints, on both of its streams."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), contextlib.suppress(SystemExit):
        run_command(lambda: dispatch(list(words)))
    return stream.getvalue()


if __name__ == "__main__":
    for name, text in stored_texts().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
