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

# First bytes of compressed files. A file of bzip2 may have no content, and one of zstd may begin with a frame to skip.
_GZIP = b"\x1f\x8b"
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_XZ = b"\xfd7zXZ\x00"
_ZSTANDARD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
LFS_POINTER = b"version https://git-lfs"

# Number of bytes that are read and checked at once.
_AT_ONCE = 1 << 16


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
    if _ZSTANDARD.match(start):
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return open(path, "rb")


def open_utf8(path: str) -> IO[bytes]:
    """Opens a file, compressed or not, for reading the bytes of a text in UTF-8, which has no null characters."""
    return io.BufferedReader(_WithoutNull(path, open_binary(path)), _AT_ONCE)


def open_text(path: str, newline: str | None = None) -> IO[str]:
    """Opens a file, compressed or not, for reading text in UTF-8."""
    return io.TextIOWrapper(open_utf8(path), encoding="utf-8-sig", newline=newline)


class _WithoutNull(io.RawIOBase):
    """The bytes of a file, which are checked while they are read.

    A null character is valid in UTF-8, but no text has one: the file is UTF-16 without a byte order mark, or binary.

    Args:
        path: The file, for error messages.
        file: The file, which is already open: an object that could not open it would still be closed.
    """

    def __init__(self, path: str, file: IO[bytes]):
        self.path = path
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Reads bytes.

        Raises:
            FileError: There is a null character among them.
        """
        content = self.file.read(len(buffer))
        if b"\0" in content:
            raise FileError(name_wrong_byte(self.path, "a null character"))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.file.close()
        super().close()


def name_wrong_byte(path: str, reason: str) -> str:
    """Error message with the position of the first byte that is not UTF-8, or that no text in UTF-8 has.

    Args:
        path: The file, compressed or not.
        reason: What is wrong, in case that the position is not found.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for line in file:
                number += 1
                line.decode("utf-8")
                if b"\0" in line:
                    return (
                        f"{path}, line {number}: a null character, as in UTF-16 and in binary files; convert it, e.g. "
                        "by iconv -f UTF-16LE -t UTF-8, or leave it out"
                    )
    except UnicodeDecodeError as found:
        byte = f"byte {found.object[found.start]:#x} in column {found.start + 1}"
        return f"{path}, line {number}: not UTF-8 ({byte}); convert the file, e.g. with iconv"
    return f"{path}: not UTF-8 ({reason}); convert the file, e.g. with iconv"
