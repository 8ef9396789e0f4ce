"""Divides documents into windows, as a pure function of length and key."""

import numpy as np

from text_jepa.data.draws import counter_uniforms


# Tokens of text that the longest window has at least, beside special tokens.
SHORTEST_WINDOW = 4


def count_windows(lengths: np.ndarray, room: int) -> np.ndarray:
    """Computes the number of windows of each document, so that their mean length is at most 2/3 of the longest window.

    Every document has at least two windows, so that the rest of the document is never empty.

    Args:
        lengths: (N,) number of tokens of each document, at least 2.
        room: Longest window in tokens.

    Returns:
        (N,) integers, at least 2.
    """
    thirds = 3 * np.asarray(lengths)
    counts = -(-thirds // (2 * room))  # rounded up
    return np.maximum(2, counts)


def cut_windows(
    lengths: np.ndarray,
    counts: np.ndarray,
    keys: np.ndarray,
) -> np.ndarray:
    """Divides each document into windows, so that every token is in exactly one.

    Starting from windows of equal length, each border is moved at random by up to a quarter of a window in either
    direction, so the length of a window is between 0.5 and 1.5 times the mean. Keys, and therefore windows, differ
    between epochs.

    Args:
        lengths: (N,) number of tokens of each document, at least 2.
        counts: (N,) number of windows of each document, from `count_windows`.
        keys: (N,) uint64, one for each document and epoch.

    Returns:
        (N, max(counts) + 1) borders, strictly increasing from 0 to the length; unused columns hold the length.
    """
    lengths = np.asarray(lengths)[:, None]
    counts = np.asarray(counts)[:, None]
    number = np.arange(counts.max() + 1)
    shift = (counter_uniforms(keys, len(number)) - 0.5) / 2
    borders = lengths * (number + shift) / counts
    borders = np.floor(borders).astype(np.int64)
    # In a short document, borders may coincide with each other or with an end.
    last_place = lengths - counts + number
    borders = np.clip(borders, number, last_place)
    borders[:, 0] = 0
    return np.where(number < counts, borders, lengths)
