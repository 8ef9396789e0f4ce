"""Keeps the index of a folder up to date: reads what is new or has changed, and removes what is gone."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from text_jepa.data.compressed import COMPRESSED, FileError, suffix_of
from text_jepa.data.files import BUILDERS, PROSE, Form, read_paragraphs
from text_jepa.data.walking import identity_of, walk
from text_jepa.errors import UsageError, is_utf8
from text_jepa.search.index import FileState, Index, IndexedFile
from text_jepa.search.passages import passages_of


logger = logging.getLogger("text_jepa")

# Passages that are embedded and written together: what a search that is interrupted loses.
_GROUP = 512

Embed = Callable[[list[str]], np.ndarray]
"""Turns N texts into vectors (N, D)."""


class Changes(NamedTuple):
    """What differs between a folder and its index.

    Args:
        read: Paths, relative to the folder, and states of the files that are new, have changed, or could not be read.
        gone: Paths of files that are in the index only.
    """

    read: dict[str, FileState]
    gone: list[str]


def find_texts(folder: Path) -> dict[str, FileState]:
    """The files of a folder and its subfolders that hold texts, by path relative to it.

    As for training, links are followed, and what `walk` leaves out is left out: hidden files, backup copies, and the
    folders of runs and models. A file with several names is read once, and no packed file beside the unpacked one.

    Raises:
        UsageError: There is no such folder, it cannot be listed, or it holds no texts.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name a folder of texts")
    paths = [path for path in walk(folder, str(folder)) if suffix_of(Path(path)) in BUILDERS and os.path.isfile(path)]
    unpacked = {path for path in paths if not path.endswith(COMPRESSED)}
    found = {}
    identities = set()
    for path in sorted(paths):
        if path.endswith(COMPRESSED) and os.path.splitext(path)[0] in unpacked:
            continue
        if not is_utf8(path):
            logger.warning(f"left out: {path!a}, whose name is not UTF-8; rename it")
            continue
        identity = identity_of(path)
        if identity not in identities:
            identities.add(identity)
            status = os.stat(path)
            name = Path(path).relative_to(folder).as_posix()
            found[name] = FileState(status.st_size, status.st_mtime_ns)
    if not found:
        raise UsageError(f"{folder}: holds no texts; name a folder with files of {', '.join(BUILDERS)}")
    return found


def compare(index: Index, texts: Mapping[str, FileState]) -> Changes:
    """What an index lacks of the texts of a folder, and what it has too many.

    Raises:
        UsageError: The index is damaged.
    """
    known = index.files()
    read = {path: state for path, state in texts.items() if known.get(path) != state}
    return Changes(read, [path for path in known if path not in texts])


def update(
    index: Index,
    folder: Path,
    changes: Changes,
    embed: Embed,
    text_column: Sequence[str],
    settings: Mapping[str, str],
) -> None:
    """Brings an index up to date. What is interrupted goes on where it stopped.

    A file that cannot be read is in the index without passages, with the reason, until it can be read.

    Args:
        index: The index.
        folder: The folder.
        changes: See `compare`.
        embed: Function of texts.
        text_column: Columns of the text in files with columns.
        settings: Those that the index was started with.

    Raises:
        UsageError: The index cannot be written, or vectors are not finite.
    """
    index.remove(changes.gone)
    known_problems = set(index.problems())
    form = Form({"text": tuple(text_column)}, is_many=True)
    for group in _groups(_read_all(folder, changes.read, form)):
        texts = [" ".join(passage.text.split()) for file in group for passage in file.passages]
        vectors = embed(texts) if texts else np.zeros((0, 0), np.float32)
        if not np.isfinite(vectors).all():
            raise UsageError(
                "the encoder gives vectors that are not finite, so its weights are corrupted; use another encoder"
            )
        files = []
        start = 0
        for file in group:
            end = start + len(file.passages)
            if file.problem not in known_problems:
                files.append(file._replace(vectors=vectors[start:end]))
            start = end
        if files:
            index.write(files, settings)


def _read_all(folder: Path, states: Mapping[str, FileState], form: Form) -> Iterator[IndexedFile]:
    """The files with their passages, and as yet without vectors."""
    nothing = np.zeros((0, 0), np.float32)
    for path, state in states.items():
        try:
            paragraphs = read_paragraphs(str(folder / path), form)
            if suffix_of(Path(path)) not in PROSE:
                # The rows of a table have nothing to do with each other.
                paragraphs = (row._replace(opens=True) for row in paragraphs)
            passages = list(passages_of(paragraphs))
            yield IndexedFile(path, state, passages, nothing)
        except FileError as error:
            yield IndexedFile(path, state, [], nothing, str(error))


def _groups(files: Iterable[IndexedFile]) -> Iterator[list[IndexedFile]]:
    """Files in groups of about so many passages that it pays to embed them together."""
    group = []
    size = 0
    for file in files:
        group.append(file)
        size += len(file.passages)
        if size >= _GROUP:
            yield group
            group = []
            size = 0
    if group:
        yield group
