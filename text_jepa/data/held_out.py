"""Holds out documents: a share of a corpus, whole files, or some of the first documents of a stream."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, DatasetDict, IterableDataset

from text_jepa.cli import UsageError
from text_jepa.data.reading import Source, read_rows, reading


logger = logging.getLogger(__name__)

# Independent of --seed: all runs hold out the same documents, so that runs can be compared and use the same cache.
_SEED = 0

# Percentage of the documents that is held out, and smallest number of documents for files without columns.
_PERCENTAGE = 5
_LEAST_OF_FILES = 50
# Whole files are held out if that makes at least this many of them.
_LEAST_FILES = 10

# Number of documents that are held out of a stream.
_OF_STREAM = 200
# Smallest number of documents that they are drawn from, even if --shuffle_buffer is smaller.
_LEAST_BUFFER = 2_000
# Largest number of shards that they are drawn from, and of places of a corpus that are read in turn.
_SHARDS = 8
# Number of first documents of a stream that are compared with its held-out ones.
_COMPARED_OF_STREAM = 10_000
_COMPARED_CHARACTERS = 20_000_000


def warn_of_shared(
    documents: Dataset | IterableDataset,
    held_out: Dataset | IterableDataset,
    source: Source,
    held_out_source: Source,
) -> None:
    """Warns if training documents are equal to held-out ones; of a stream, the first of both are compared.

    Args:
        documents: Rows with a column `text`.
        held_out: Their held-out documents.
        source: Where the documents are read from, for error messages.
        held_out_source: Where the held-out documents are read from.

    Raises:
        UsageError: A file of a stream cannot be read.
    """
    if isinstance(documents, Dataset):
        _warn(_count_shared(documents, held_out), len(documents))
        return
    # Hashes, because the documents of a stream may be long.
    known = {hash(text) for text in _first_texts(read_rows(held_out, held_out_source)) if text}
    read = 0
    shared = 0
    for text in _first_texts(read_rows(rows_in_turn(documents), source)):
        read += 1
        shared += hash(text) in known
    _warn(shared, f"the first {read:,}")


def _count_shared(documents: Dataset, held_out: Dataset) -> int:
    """Counts the documents that are equal to a held-out document."""
    texts = [text for text in held_out["text"] if text and not text.isspace()]
    known = pyarrow.array(texts, pyarrow.string())
    is_shared = pyarrow.compute.is_in(documents.with_format("arrow")[:].column("text"), value_set=known)
    return pyarrow.compute.sum(is_shared).as_py() or 0


def _warn(shared: int, count: int | str) -> None:
    """Warns if some of the `count` training documents are also held out."""
    if shared:
        logger.warning(
            f"{shared} of {count} training documents also occur in the held-out set, which inflates held-out figures; "
            "remove them from one of the two"
        )


def hold_out(
    documents: Dataset,
    percentage: float | None,
    what: str,
) -> tuple[Dataset, Dataset]:
    """Splits documents into training and held-out documents, by whole files if there are many.

    Args:
        documents: A dataset with a column `text`, and optionally `file`.
        percentage: The share held out. Default: 5; of files without columns at least 50 documents.
        what: The flag and its value, for error messages.

    Raises:
        UsageError: There is a single document.
    """
    if len(documents) < 2:
        raise UsageError(
            f"{what}: a single document; at least 2 are needed, one of them held out; write each text in a line or a "
            "row of its own, divide a file by --sample_by paragraph, or name more files"
        )
    wanted = _PERCENTAGE if percentage is None else percentage
    count = round(len(documents) * wanted / 100)
    if percentage is None and "file" in documents.column_names and any(documents["file"]):
        fewest = min(_LEAST_OF_FILES, len(documents) // 5)
        count = max(count, fewest)
    count = min(max(count, 1), len(documents) - 1)
    split = _split_by_file(documents, count) or documents.train_test_split(test_size=count, seed=_SEED)
    with_text = sum(1 for text in split["test"]["text"] if text and not text.isspace())
    _warn(_count_shared(documents, split["test"]) - with_text, len(split["train"]))
    return split["train"], split["test"]


def _split_by_file(documents: Dataset, count: int) -> DatasetDict | None:
    """Holds out at least `count` documents in whole files; `None` if that would be too few files."""
    if "file" not in documents.column_names:
        return None
    files = documents["file"]
    # A row of a table is a group of its own.
    groups = [row if file is None else file for row, file in enumerate(files)]
    sizes = Counter(groups)
    order = np.random.default_rng(_SEED).permutation(len(sizes))
    names = list(sizes)
    held_out = set()
    for place in order:
        if count <= 0:
            break
        held_out.add(names[place])
        count -= sizes[names[place]]
    if len(sizes) == len(documents) or not _LEAST_FILES <= len(held_out) < len(sizes):
        return None
    is_held_out = np.array([group in held_out for group in groups])
    rows = {"train": np.flatnonzero(~is_held_out), "test": np.flatnonzero(is_held_out)}
    return DatasetDict({split: documents.select(part) for split, part in rows.items()})


def hold_out_of_stream(
    documents: IterableDataset, buffer_size: int, what: str
) -> tuple[IterableDataset, IterableDataset]:
    """Splits a stream into training and held-out documents.

    The first documents of a sorted stream are alike, so the held-out documents are drawn at random from a shuffle
    buffer that is filled from several shards. They are recognized by their text, because workers, processes and epochs
    read shards in different orders.

    Args:
        documents: A stream of rows with a column `text`.
        buffer_size: Number of documents to draw from, increased to at least 2,000.
        what: The flag and its value, for error messages.

    Raises:
        UsageError: The stream has too few documents.
    """
    buffer_size = max(buffer_size, _LEAST_BUFFER)
    num_shards = documents.num_shards
    chosen = sorted(set(np.linspace(0, num_shards - 1, min(num_shards, _SHARDS), dtype=int).tolist()))
    buffer = {}
    with reading(what):
        for place, shard in enumerate(chosen):
            room = (buffer_size - len(buffer)) // (len(chosen) - place)
            part = documents.shard(num_shards, shard) if num_shards > 1 else documents
            for row in part.take(max(room, 1)):
                if row["text"] and not row["text"].isspace():
                    buffer.setdefault(row["text"], row)
    if len(buffer) <= _OF_STREAM:
        raise UsageError(
            f"{what}: {_OF_STREAM} documents of a stream are held out, and there are no more among its first "
            f"{buffer_size:,}; name a --validation_file, or read without --streaming"
        )
    texts = list(buffer)
    drawn = np.random.default_rng(_SEED).choice(len(texts), _OF_STREAM, replace=False)
    held_out = [texts[place] for place in sorted(drawn)]
    rows = Dataset.from_list([buffer[text] for text in held_out])
    rest = documents.filter(partial(_is_not_among, texts=frozenset(held_out)), input_columns=["text"])
    return rest, rows.to_iterable_dataset()


def _first_texts(rows: Iterable[dict]) -> Iterator[str | None]:
    """The texts of the first rows, as many as are compared in seconds."""
    characters = 0
    for row in itertools.islice(rows, _COMPARED_OF_STREAM):
        yield row["text"]
        characters += len(row["text"] or "")
        if characters > _COMPARED_CHARACTERS:
            return


def rows_in_turn(documents: Dataset | IterableDataset) -> Iterator[dict]:
    """Reads a corpus in up to eight places in turn, because the first rows of a sorted corpus are alike.

    Args:
        documents: Rows of any kind.

    Yields:
        All rows; the order is the same in every process.
    """
    num_shards = len(documents) if isinstance(documents, Dataset) else documents.num_shards
    num_places = min(num_shards, _SHARDS)
    places = [documents.shard(num_places, place) for place in range(num_places)]
    for rows in itertools.zip_longest(*places):
        yield from (row for row in rows if row is not None)


def _is_not_among(text: str | None, texts: frozenset[str]) -> bool:
    return text not in texts
