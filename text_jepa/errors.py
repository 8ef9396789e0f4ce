"""One clear line for every mistake of a user, without torch, whose import alone takes seconds."""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


class UsageError(ValueError):
    """A mistake that the user can correct. Its message names the file, column, flag or field and the remedy."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Runs a console command and exits.

    The exit code is 0; 2 after a `UsageError` or if memory runs out, with one line on stderr; 130 after Ctrl-C.
    """
    try:
        main()
    except UsageError as error:
        sys.exit(_report(str(error)))
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
