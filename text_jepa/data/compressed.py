"""Opens files as they are or compressed, by what they begin with."""

import bz2
import gzip
import io
import lzma
import re
from pathlib import Path
from typing import IO

import pyarrow


COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

# How compressed files begin, whatever their name.
_GZIP = b"\x1f\x8b"
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_XZ = b"\xfd7zXZ\x00"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
LFS_POINTER = b"version https://git-lfs"


class FileError(ValueError):
    """What is wrong in a file, and the remedy; the message begins with the path."""


class NotFetched(FileError):
    """A file is a pointer of git-lfs to the one that it stands for."""


class NoSuchColumn(FileError):
    """A file is whole, and lacks a column that is asked for."""


def suffix_of(path: Path) -> str:
    """The suffix that tells the kind of a file, in lower case and without `.gz` and the like."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def open_binary(path: str) -> IO[bytes]:
    """Opens a file, compressed or not, for its bytes.

    Raises:
        NotFetched: It is a pointer of git-lfs.
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
    """Opens a file, compressed or not, for its text, which is UTF-8."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline=newline)


def name_wrong_byte(path: str, error: UnicodeDecodeError) -> str:
    """Says where in a file the first byte is that is not UTF-8."""
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
