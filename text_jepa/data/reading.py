"""Reports the file and the line where texts cannot be read."""

import contextlib
import errno
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException

from text_jepa.cli import UsageError
from text_jepa.data.compressed import FileError, suffix_of
from text_jepa.data.files import BUILDERS, Form, read_tables
from text_jepa.errors import DISK_ERRORS


# Errors that the datasets library and its readers raise for invalid data.
_UNREADABLE = (
    DatasetGenerationError,
    ArrowException,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    StopIteration,
    zlib.error,
)


class Source(NamedTuple):
    """Where texts are read from, for error messages.

    Args:
        name: The flag and its value, as in `"--train_file notes.txt"`.
        files: Local files in which a damaged line is searched for.
    """

    name: str
    files: Sequence[str] = ()


@contextlib.contextmanager
def reading(what: str, paths: Sequence[str] = ()) -> Iterator[None]:
    """Converts errors of the datasets library to a message of one line that names file and line.

    Args:
        what: The flag and its value.
        paths: Files in which the damage is searched for.

    Raises:
        UsageError: Reading failed in the body, or the cache of the datasets library could not be written.
    """
    flag = what.split()[0]
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except UsageError:
        raise
    except (*_UNREADABLE, TypeError, ImportError) as error:
        cause = error if isinstance(error, FileError) else error.__cause__ or error
        if _is_of_cache(cause, paths):
            raise UsageError(
                f"the cache could not be written ({cause}); free some disk space, or set --cache_dir or HF_HOME"
            ) from error
        damage = str(cause) if isinstance(cause, FileError) else _find_damage(paths)
        if damage is not None:
            raise UsageError(f"{flag} {damage}") from error
        if isinstance(error, TypeError):
            raise  # datasets 5.0 raises it for a line of JSON that is not an object; otherwise it is a bug
        raise UsageError(f"{what}: cannot be read: {cause}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _is_of_cache(cause: BaseException, paths: Sequence[str]) -> bool:
    """Whether an error is one of writing, as the cache alone is written, and not of reading the files."""
    if not isinstance(cause, OSError) or cause.filename in paths:
        return False
    if cause.errno == errno.EACCES and cause.filename is not None:
        is_unreadable = os.path.exists(cause.filename) and not os.access(cause.filename, os.R_OK)
        return not is_unreadable
    return cause.errno in DISK_ERRORS - {errno.EIO}  # which reading has, too


def read_rows(rows: Iterable[dict], source: Source) -> Iterator[dict]:
    """Yields the rows of a stream and converts its errors, see `reading`."""
    with reading(*source):
        yield from rows


def check_rows(paths: Sequence[str | Path], what: str) -> None:
    """Checks JSON files before the datasets library reads them, because pyarrow ends the process at a null row.

    Args:
        paths: Files of any kind; only JSON files are checked.
        what: The flag for error messages, or an empty string.

    Raises:
        UsageError: A row is damaged.
    """
    files = [str(path) for path in paths if BUILDERS.get(suffix_of(Path(path)), ("",))[0] == "json"]
    damage = _find_damage(files)
    if damage is not None:
        raise UsageError(f"{what} {damage}".strip())


def _find_damage(paths: Sequence[str]) -> str | None:
    """Finds the first damage in files: file, line (counted from 1) and remedy; `None` if there is none."""
    nothing = Form(sources={})
    for path in paths:
        try:
            for _ in read_tables(path, nothing):
                pass
        except FileError as error:
            return str(error)
    return None
