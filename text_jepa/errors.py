"""One clear line for every mistake of a user, without torch, whose import alone takes seconds."""

import contextlib
import difflib
import errno
import io
import itertools
import os
import re
import select
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TextIO


# What the system answers for a path that is not a bug of ours: too long, without permission, full, in a file …
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

# What the system answers if a disk is full, read-only or failing.
DISK_ERRORS = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS})

# What the system answers where nobody reads any more: a pipe is closed, or a terminal is gone.
_GONE = {errno.EBADF, errno.EIO, errno.ENXIO, errno.EPIPE}

# The exit code of a command whose output nobody reads any more: that of programs which SIGPIPE ends.
_NO_READER = 141

# What to do if memory runs out in training, and elsewhere.
_SMALLER_BATCHES = (
    "lower --per_device_train_batch_size and raise --gradient_accumulation_steps by as much, or add "
    "--gradient_checkpointing"
)
_OTHER_MEMORY = (
    "end other programs that use this memory, or hide a full GPU with CUDA_VISIBLE_DEVICES= before the command; "
    "fine-tuning takes --finetune_args per_device_train_batch_size=8"
)

# What torch says if memory runs out, also in plain RuntimeErrors.
_NO_MEMORY = ("out of memory", "can't allocate memory")

# The part of such a message, or of one of NumPy, that is told.
_WHICH_MEMORY = re.compile(r"\w+ (?:backend )?out of memory|(?:tried|[Uu]nable) to allocate [\d.]+ \w+")

# How the errors of torch begin if a worker of a data loader is gone. Errors inside a worker begin otherwise.
_LOST_WORKER = "DataLoader worker (pid"

# What to do then.
_FEWER_WORKERS = (
    "lower --dataloader_num_workers or, in a container, give it more shared memory (docker run --shm-size 8g)"
)


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
            raise UsageError(f"{word!a}: not valid UTF-8; rename or rewrite it in UTF-8")
        if not word.strip() and not before.startswith("--"):
            raise UsageError("the command contains an empty argument; fill it in, or leave it out")
        flag, equals, value = word.partition("=") if word.strip() else (before, "=", "")
        if equals and not value.strip() and re.fullmatch(r"--[\w-]+", flag):
            raise UsageError(f"{flag}: an empty value; give one, or leave the flag out")
        if equals and value == "--":
            raise UsageError(f"{flag}: '--' is not a value; give one, or leave the flag out")


def flag_of(word: str) -> str:
    """The name of a flag without dashes, in its form with underscores; other words are empty."""
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else ""


def repeated_flags(words: Sequence[str]) -> dict[str, int]:
    """The number of occurrences of each flag that is given more than once, by name; words after `--` are not flags."""
    counts = Counter(flag_of(word) for word in itertools.takewhile(lambda word: word != "--", words))
    return {name: count for name, count in counts.items() if name and count > 1}


def is_utf8(text: str) -> bool:
    """Whether a name or a word of the command line consists of characters; other bytes are half ones in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def run_command(main: Callable[[], Any], trains: bool = True) -> NoReturn:
    """Runs a console command and exits.

    The exit code is 0; 2 after a `UsageError`, if memory runs out, if the system ends a worker of a data loader, or if
    it refuses a file, with one line on stderr; 130 after Ctrl-C; 141, without a word, if nobody reads the output any
    more.

    Args:
        main: The command.
        trains: Whether it takes the flags of training that save memory.
    """
    _prepare_output()
    try:
        main()
        sys.stdout.flush()
    except UsageError as error:
        sys.exit(_report(str(error)))
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout) and not _has_no_reader(sys.stderr):
            raise
        sys.exit(_NO_READER)
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        name = f"{error.filename}: " if error.filename else ""
        sys.exit(_report(f"{name}{error.strerror}; fix that, or use another path"))
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            sys.exit(_report(_describe_memory(error, trains)))
        if str(error).startswith(_LOST_WORKER):
            sys.exit(_report(_describe_lost_worker(error, trains)))
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _drop_unread_output()
    sys.exit(0)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    is_so_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    return is_so_named or any(words in str(error) for words in _NO_MEMORY)


def _describe_memory(error: MemoryError | RuntimeError, trains: bool) -> str:
    """Which memory has run out, if the error says so, and what to do."""
    which = _WHICH_MEMORY.search(str(error))
    reason = f" ({which[0]})" if which else ""
    remedy = _SMALLER_BATCHES if trains else _OTHER_MEMORY
    return f"out of memory{reason}; {remedy}"


def _describe_lost_worker(error: RuntimeError, trains: bool) -> str:
    """How a worker of a data loader has ended, and what to do."""
    reason = str(error).partition(".")[0]
    resume = "; resume with --resume_from_checkpoint auto" if trains else ""
    return f"{reason}; {_FEWER_WORKERS}{resume}"


def _report(message: str) -> int:
    # An error in a data loader's worker arrives with that worker's traceback.
    message = message.rpartition("UsageError: ")[2]
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


# ---- output ---------------------------------------------------------------------------------------------------------


def _prepare_output() -> None:
    """Opens the streams that the process was started without, and escapes what the encoding of a stream lacks."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(_open_nowhere(), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(_open_nowhere(), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Lets the block go on if its output can no longer be written: a pipe is closed, or a terminal is gone."""
    streams = (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = map(_LastingStream, streams)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


class _LastingStream:
    """A stream that writes to nowhere once it can no longer be written to.

    Args:
        stream: The stream of the process.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._losing_what_cannot_be_written():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losing_what_cannot_be_written():
            self._stream.flush()

    @contextlib.contextmanager
    def _losing_what_cannot_be_written(self) -> Iterator[None]:
        """A disk that is full, or a pipe that is, may take the next words; a reader that is gone takes none."""
        try:
            yield
        except OSError as error:
            if error.errno in _GONE:
                _send_nowhere(self._stream)


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except OSError:  # a stream that is not a file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_unread_output() -> None:
    """Drops what is still to be written and cannot be: Python would complain of it once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _send_nowhere(stream)


def _open_nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def _send_nowhere(stream: TextIO) -> None:
    nowhere = _open_nowhere()
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
