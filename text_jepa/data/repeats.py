"""Finds what a corpus says more than once: documents that are equal or nearly so, and lines of many documents."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


# Two documents share a passage if they share this many bytes, of which one in so many is looked at.
_PASSAGE = 64
_ONE_IN = 16
# A document is nearly a copy if so many of its passages are in one before it, of at least so many that are looked at.
_COPIED_SHARE = 0.8
_FEWEST_PASSAGES = 8
_MULTIPLIER = 0x9E3779B97F4A7C15

# A line is boilerplate if it is in so many documents, and in such a share of them.
_FEWEST_DOCUMENTS = 5
_BOILERPLATE_SHARE = 0.005
_SHORTEST_LINE = 20
_WORD = re.compile(r"[^\W\d_]{2}")


class NearCopies(NamedTuple):
    """Documents of which most is in one before them.

    Args:
        copies: Their numbers.
        originals: The numbers of the documents before them.
    """

    copies: np.ndarray
    originals: np.ndarray


def first_of_equals(texts: Iterable[str | None]) -> np.ndarray:
    """For each text whether no text before it is equal: boolean (N,). Spaces around it do not matter."""
    seen = set()
    is_first = []
    for text in texts:
        content = (text or "").strip().encode("utf-8")
        # The texts themselves may be larger than the memory.
        digest = hashlib.blake2b(content, digest_size=16).digest()
        is_first.append(digest not in seen)
        seen.add(digest)
    return np.array(is_first, bool)


def boilerplate_lines(texts: Sequence[str]) -> Counter:
    """Lines that many documents have in common -> the number of these documents.

    Args:
        texts: Documents; those of a single line have none.
    """
    counts = Counter()
    for text in texts:
        lines = {line.strip() for line in text.split("\n")}
        if len(lines) > 1:
            counts.update(line for line in lines if len(line) >= _SHORTEST_LINE and _WORD.search(line))
    fewest = max(_FEWEST_DOCUMENTS, _BOILERPLATE_SHARE * len(texts))
    return Counter({line: count for line, count in counts.items() if count >= fewest})


def without_lines(row: dict[str, Any], lines: Collection[str]) -> dict[str, Any]:
    """A document, in `text`, without some of its lines; a document of a single line stays as it is."""
    kept = [line for line in (row["text"] or "").split("\n") if line.strip() not in lines]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
    return row | {"text": text} if "\n" in (row["text"] or "") else row


def near_copies(texts: Sequence[str]) -> NearCopies:
    """Documents of which most passages are in one document before them.

    Passages are compared by a hash, and looked at where the hash itself says so: at the same places of equal texts.

    Args:
        texts: Documents, equal ones left out.
    """
    hashes = [_passages(text) for text in texts]
    counts = np.array([len(values) for values in hashes])
    values = np.concatenate([np.zeros(0, np.uint64), *hashes])
    documents = np.repeat(np.arange(len(texts)), counts)
    _, firsts, groups = np.unique(values, return_index=True, return_inverse=True)
    owners = documents[firsts][groups]
    is_shared = owners != documents
    pairs, shared = np.unique(documents[is_shared] * len(texts) + owners[is_shared], return_counts=True)
    copies, originals = np.divmod(pairs, len(texts))
    is_copy = (shared >= _COPIED_SHARE * counts[copies]) & (counts[copies] >= _FEWEST_PASSAGES)
    return NearCopies(copies[is_copy], originals[is_copy])


def _passages(text: str) -> np.ndarray:
    """Hashes of some of the passages of a text, each once: unsigned (P,)."""
    hashes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint64)
    factor = _MULTIPLIER
    length = 1
    while length < _PASSAGE and length < len(hashes):
        hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
        factor = factor * factor % 2**64
        length *= 2
    chosen = (hashes * np.uint64(_MULTIPLIER)) >> np.uint64(40)
    return np.unique(hashes[chosen % np.uint64(_ONE_IN) == 0])
