"""Opens files, compressed or not, by their first bytes."""

import bz2
import gzip
import io
import lzma
import re
from pathlib import Path
from typing import IO

import pyarrow


COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

# First bytes of compressed files.
_GZIP = b"\x1f\x8b"
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_XZ = b"\xfd7zXZ\x00"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
LFS_POINTER = b"version https://git-lfs"


class FileError(ValueError):
    """An error in a file, with its remedy; the message begins with the path."""


class NotFetched(FileError):
    """A file is a git-lfs pointer to the actual file."""


class NoSuchColumn(FileError):
    """A file is intact but lacks a requested column."""


def suffix_of(path: Path) -> str:
    """The suffix for the kind of a file, in lower case and without that of a compression such as `.gz`."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def open_binary(path: str) -> IO[bytes]:
    """Opens a file, compressed or not, for reading bytes.

    Raises:
        NotFetched: The file is a git-lfs pointer.
    """
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise NotFetched(f"{path}: a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`")
    if start.startswith(_GZIP):
        return gzip.open(path)
    if _BZIP2.match(start):
        return bz2.open(path)
    if start.startswith(_XZ):
        return lzma.open(path)
    if start.startswith(_ZSTANDARD):
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return open(path, "rb")


def open_text(path: str, newline: str | None = None) -> IO[str]:
    """Opens a file, compressed or not, for reading text in UTF-8."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline=newline)


def name_wrong_byte(path: str, error: UnicodeDecodeError) -> str:
    """Error message with the position of the first byte that is not UTF-8."""
    number = 0
    try:
        with open_binary(path) as file:
            for line in file:
                number += 1
                line.decode("utf-8")
    except UnicodeDecodeError as found:
        byte = f"byte {found.object[found.start]:#x} in column {found.start + 1}"
        return f"{path}, line {number}: not UTF-8 ({byte}); convert the file, e.g. with iconv"
    return f"{path}: not UTF-8 ({error.reason}); convert the file, e.g. with iconv"
