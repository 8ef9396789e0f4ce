"""Holds out documents: a share of a corpus, whole files of it, or some of the first documents of a stream."""

import logging
from collections import Counter
from functools import partial

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, DatasetDict, IterableDataset

from text_jepa.cli import UsageError
from text_jepa.data.reading import reading


logger = logging.getLogger(__name__)

# Not that of the run: with every --seed the same documents are held out, so that runs can be compared, and the cache
# has their tokens.
_SEED = 0

# Percentage of the documents that is held out, and the least number of those of files without columns.
_PERCENTAGE = 5
_LEAST_OF_FILES = 50
# Whole files are held out if there are at least so many of them.
_LEAST_FILES = 10

# Documents that a stream sets aside; the least number of those that they are drawn from, also where --shuffle_buffer
# is smaller; and the most shards.
_OF_STREAM = 200
_LEAST_BUFFER = 2_000
_SHARDS = 8


def count_shared(documents: Dataset, held_out: Dataset) -> int:
    """The number of documents that are held-out documents word for word."""
    texts = [text for text in held_out["text"] if text and not text.isspace()]
    known = pyarrow.array(texts, pyarrow.string())
    is_shared = pyarrow.compute.is_in(documents.with_format("arrow")[:].column("text"), value_set=known)
    return pyarrow.compute.sum(is_shared).as_py() or 0


def warn_of_shared(shared: int, count: int) -> None:
    """Warns if some of `count` training documents are held out, too."""
    if shared:
        logger.warning(
            f"{shared} of {count} training documents are held out too, word for word, which flatters held-out "
            "figures; remove them from one of the two"
        )


def hold_out(
    documents: Dataset,
    percentage: float | None,
    what: str,
) -> tuple[Dataset, Dataset]:
    """Splits documents into those to train on and those held out, whole files where there are many.

    Args:
        documents: A column `text`, and perhaps `file`.
        percentage: The share held out. Default: 5; of files without columns at least 50 documents.
        what: The flag and its value, for error messages.

    Raises:
        UsageError: There is a single document.
    """
    if len(documents) < 2:
        raise UsageError(f"{what}: a single document; at least 2 are needed, one of them held out")
    share = round(len(documents) * (_PERCENTAGE if percentage is None else percentage) / 100)
    if percentage is None and "file" in documents.column_names and any(documents["file"]):
        share = max(share, min(_LEAST_OF_FILES, len(documents) // 5))
    count = min(max(share, 1), len(documents) - 1)
    split = _split_by_file(documents, count) or documents.train_test_split(test_size=count, seed=_SEED)
    with_text = sum(1 for text in split["test"]["text"] if text and not text.isspace())
    warn_of_shared(count_shared(documents, split["test"]) - with_text, len(split["train"]))
    return split["train"], split["test"]


def _split_by_file(documents: Dataset, count: int) -> DatasetDict | None:
    """Holds out at least `count` documents, and of each file all or none; `None` if that would be few files."""
    if "file" not in documents.column_names:
        return None
    files = documents["file"]
    # What is no part of a file is a document of its own.
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
    """Splits a stream into texts that are held out, and all others.

    The first documents of a sorted stream are of one kind. Held-out texts are drawn at random from a shuffle buffer
    that is filled from several shards. They are known by their words: workers, processes and epochs read shards in
    different orders, and leave out the same documents.

    Args:
        documents: A stream of rows with a column `text`.
        buffer_size: Documents to draw from; at least 2,000 are.
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


def _is_not_among(text: str | None, texts: frozenset[str]) -> bool:
    return text not in texts
