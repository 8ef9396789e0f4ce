"""Finds duplicates, near duplicates and boilerplate lines in a corpus."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


# Length of a passage in bytes; one passage in `_ONE_IN` is sampled.
_PASSAGE = 64
_ONE_IN = 16
# A document is a near copy if it shares this part of its sampled passages with one earlier document.
_COPIED_SHARE = 0.8
# Documents with fewer sampled passages are never near copies.
_FEWEST_PASSAGES = 8
# Each passage of a document is compared with this number of earlier documents that have it, the nearest ones.
_EARLIER_OWNERS = 8
_MULTIPLIER = 0x9E3779B97F4A7C15

# A line is boilerplate if it occurs in at least this number and this share of the documents.
_FEWEST_DOCUMENTS = 5
_BOILERPLATE_SHARE = 0.005
_SHORTEST_LINE = 20
_WORD = re.compile(r"[^\W\d_]{2}")


class NearCopies(NamedTuple):
    """Pairs of documents of which the later one is mostly contained in the earlier one.

    Args:
        copies: Indices of the later documents.
        originals: Indices of the earlier documents.
    """

    copies: np.ndarray
    originals: np.ndarray


def first_of_equals(texts: Iterable[str | None]) -> np.ndarray:
    """Marks texts that are equal to no earlier one: boolean (N,). Whitespace around a text is ignored.

    Blank texts are not copies of each other.
    """
    seen = set()
    is_first = []
    for text in texts:
        content = (text or "").strip().encode("utf-8")
        # The texts themselves may not fit into memory.
        digest = hashlib.blake2b(content, digest_size=16).digest()
        is_first.append(not content or digest not in seen)
        seen.add(digest)
    return np.array(is_first, bool)


def boilerplate_lines(texts: Sequence[str]) -> Counter:
    """Counts the documents of each line that many documents share.

    Args:
        texts: Documents. Those of a single line are not counted.

    Returns:
        Line to number of documents.
    """
    counts = Counter()
    for text in texts:
        lines = {line.strip() for line in text.split("\n")}
        if len(lines) > 1:
            counts.update(line for line in lines if len(line) >= _SHORTEST_LINE and _WORD.search(line))
    fewest = max(_FEWEST_DOCUMENTS, _BOILERPLATE_SHARE * len(texts))
    return Counter({line: count for line, count in counts.items() if count >= fewest})


def without_lines(row: dict[str, Any], lines: Collection[str]) -> dict[str, Any]:
    """Removes some lines from a document, the column `text`; a document of a single line is returned unchanged."""
    text = row["text"] or ""
    if "\n" not in text:
        return row
    kept = [line for line in text.split("\n") if line.strip() not in lines]
    shortened = re.sub(r"\n{3,}", "\n\n", "\n".join(kept))
    return row | {"text": shortened.strip("\n")}


def near_copies(texts: Sequence[str]) -> NearCopies:
    """Finds documents that share most of their passages with one earlier document.

    Passages are compared by their hashes. The hash decides which passages are sampled, so equal texts are sampled at
    the same positions. Each passage is compared with the nearest earlier documents that contain it and with the first
    one, which keeps the time linear: a near copy may be missed if many documents between it and its original share a
    part of their text.

    Args:
        texts: Documents, without duplicates.
    """
    passages = [_passages(text) for text in texts]
    counts = np.array([len(hashes) for hashes in passages])
    hashes = np.concatenate([np.zeros(0, np.uint64), *passages])
    owners = np.repeat(np.arange(len(texts)), counts)

    # Equal passages become neighbours, in the order of their documents.
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    owners = owners[order]
    _, starts, groups = np.unique(hashes, return_index=True, return_inverse=True)
    first = starts[groups]
    rows = np.arange(len(owners))
    num_earlier = rows - first

    pairs = []
    for lag in range(1, _EARLIER_OWNERS + 1):
        later = rows[num_earlier >= lag]
        pairs.append(owners[later] * len(texts) + owners[later - lag])
    later = rows[num_earlier > _EARLIER_OWNERS]
    pairs.append(owners[later] * len(texts) + owners[first[later]])

    pairs, shared = np.unique(np.concatenate(pairs), return_counts=True)
    copies, originals = np.divmod(pairs, len(texts))
    is_long = counts[copies] >= _FEWEST_PASSAGES
    is_copied = shared >= _COPIED_SHARE * counts[copies]
    is_copy = is_long & is_copied
    return NearCopies(copies[is_copy], originals[is_copy])


def _passages(text: str) -> np.ndarray:
    """Hashes of the sampled passages of a text, without duplicates: (P,) uint64."""
    encoded = text.encode("utf-8", "replace")
    hashes = np.frombuffer(encoded, np.uint8).astype(np.uint64)
    # Hashes of 1, 2, 4, … bytes: each is computed from those of the two halves.
    factor = _MULTIPLIER
    length = 1
    while length < _PASSAGE and length < len(hashes):
        left = hashes[:-length]
        right = hashes[length:]
        hashes = left * np.uint64(factor) + right
        factor = factor * factor % 2**64
        length *= 2
    mixed = (hashes * np.uint64(_MULTIPLIER)) >> np.uint64(40)
    is_sampled = mixed % np.uint64(_ONE_IN) == 0
    return np.unique(hashes[is_sampled])
