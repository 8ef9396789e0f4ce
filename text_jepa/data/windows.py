"""Where a document is cut into windows: pure functions of its length and a key."""

import numpy as np

from text_jepa.data.draws import counter_uniforms


def count_windows(lengths: np.ndarray, room: int) -> np.ndarray:
    """Number of windows of each document: their mean length is at most two thirds of the longest window.

    There are at least two, so that the rest of the document is never empty.

    Args:
        lengths: (N,) tokens of each document, at least 2.
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
    """Cuts each document into its windows; every token is in exactly one.

    Each border of equally long windows is moved at random by up to a quarter of a window in either direction, so a
    window has half to one and a half times the mean length. Keys, and with them windows, differ between epochs.

    Args:
        lengths: (N,) tokens of each document, at least 2.
        counts: (N,) windows of each, from `count_windows`.
        keys: (N,) uint64, one for each document and epoch.

    Returns:
        (N, max(counts) + 1) borders, strictly increasing from 0 to the length, which fills the columns after it.
    """
    lengths = np.asarray(lengths)[:, None]
    counts = np.asarray(counts)[:, None]
    number = np.arange(counts.max() + 1)
    shift = (counter_uniforms(keys, len(number)) - 0.5) / 2
    borders = lengths * (number + shift) / counts
    borders = np.floor(borders).astype(np.int64)
    # In a short document borders may coincide, or fall on an end.
    last_place = lengths - counts + number
    borders = np.clip(borders, number, last_place)
    borders[:, 0] = 0
    return np.where(number < counts, borders, lengths)
