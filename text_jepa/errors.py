"""One clear line for every mistake of a user, without torch, whose import alone takes seconds."""

import difflib
import errno
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn


# What the system answers for a path that is no bug of ours: too long, without permission, full, in a file …
_OF_THE_SYSTEM = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


class UsageError(ValueError):
    """A mistake that the user can correct. Its message names the file, column, flag or field and the remedy."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def check_words(words: Sequence[str]) -> None:
    """Refuses words of a command line that no flag can mean.

    An empty one is what a shell variable without a value leaves, and would be read as no flag at all. argparse takes
    `--` away and leaves no value.

    Raises:
        UsageError: A word, or a value after `=`, is empty or is not UTF-8, or the value is `--`.
    """
    for before, word in itertools.pairwise(["", *words]):
        if not is_utf8(word):
            raise UsageError(f"{word!a}: not UTF-8; write or rename it so that it is")
        if not word.strip() and not before.startswith("--"):
            raise UsageError("a word of the command is empty; write it, or leave it out")
        flag, equals, value = word.partition("=") if word.strip() else (before, "=", "")
        if equals and not value.strip() and re.fullmatch(r"--[\w-]+", flag):
            raise UsageError(f"{flag}: an empty value; give one, or leave the flag out")
        if equals and value == "--":
            raise UsageError(f"{flag}: '--' is no value; give one, or leave the flag out")


def is_utf8(text: str) -> bool:
    """Whether a name or a word of the command line consists of characters; other bytes are half ones in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Runs a console command and exits.

    The exit code is 0; 2 after a `UsageError`, if memory runs out, or if the system refuses a file, with one line on
    stderr; 130 after Ctrl-C.
    """
    try:
        main()
    except UsageError as error:
        sys.exit(_report(str(error)))
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        name = f"{error.filename}: " if error.filename else ""
        sys.exit(_report(f"{name}{error.strerror}; name another path, or mend that"))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's own, see above
            raise
        reason = str(error).split(".")[0]
        remedy = (
            "lower --per_device_train_batch_size and raise --gradient_accumulation_steps by as much, or add "
            "--gradient_checkpointing"
        )
        sys.exit(_report(f"out of memory ({reason}); {remedy}"))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _report(message: str) -> int:
    # An error in a data loader's worker arrives with that worker's traceback.
    message = message.rpartition("UsageError: ")[2]
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
