"""Makes random draws that are a pure function of (seed, epoch, text).

Draws come from a counter-based hash instead of a running generator, so that a mask, a view or a window does not depend
on the number of workers and processes, on the rest of the batch, or on resuming.
"""

import zlib
from collections.abc import Sequence

import numpy as np


_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
_PURPOSE = np.uint64(0x0D6E8FEB86659FD9)
_MASK_NUMBER = np.uint64(0xD1342543DE82EF95)

# XORed into a key, these constants make the draws for different purposes independent.
FOR_STRATEGY = np.uint64(1) * _PURPOSE
FOR_CONTEXT = np.uint64(2) * _PURPOSE
FOR_CUT = np.uint64(3) * _PURPOSE
FOR_TEXT = np.uint64(4) * _PURPOSE
FOR_VIEW = np.uint64(5) * _PURPOSE
FOR_WINDOW = np.uint64(6) * _PURPOSE


def counter_uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """Makes uniform draws in [0, 1) that depend only on the key and the column.

    The hash is the finalizer of SplitMix64 (Steele, Lea and Flood 2014) of key + column · golden ratio.

    Args:
        keys: (R,) uint64.
        count: Number of draws per key.

    Returns:
        (R, count) float64.
    """
    columns = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = keys[:, None] + columns * _GOLDEN_RATIO
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    mantissa = x >> np.uint64(11)
    return mantissa.astype(np.float64) * 2.0**-53


def mask_keys(
    texts: Sequence[np.ndarray],
    num_masks: int,
    seed: int,
    epochs: int | Sequence[int],
) -> np.ndarray:
    """Makes a key for each mask of each text from the seed, the epoch and the token ids of the text.

    Args:
        texts: B texts, each an array of token ids.
        num_masks: M.
        seed: Any integer.
        epochs: One integer, or one for each text.

    Returns:
        (B · M,) uint64; the keys of a text are adjacent.
    """
    return keys_of_checksums(text_checksums(texts), num_masks, seed, epochs)


def text_checksums(texts: Sequence[np.ndarray]) -> np.ndarray:
    """CRC-32 of the token ids of each text: (B,) uint64."""
    checksums = [zlib.crc32(ids.tobytes()) for ids in texts]
    return np.array(checksums, dtype=np.uint64)


def keys_of_checksums(
    checksums: np.ndarray,
    num_masks: int,
    seed: int,
    epochs: int | Sequence[int],
) -> np.ndarray:
    """Like `mask_keys`, but from the `text_checksums` (B,) of the texts: (B · M,) uint64."""
    seed_bits = _spread_bits(np.array([seed]), column=0)
    epoch_bits = _spread_bits(np.atleast_1d(epochs), column=1)
    text_bits = checksums << np.uint64(20)
    text_keys = text_bits ^ seed_bits ^ (epoch_bits << np.uint64(11))
    numbers = np.arange(num_masks, dtype=np.uint64)
    with np.errstate(over="ignore"):
        keys = text_keys[:, None] * _GOLDEN_RATIO + numbers * _MASK_NUMBER
    return keys.reshape(-1)


def _spread_bits(integers: np.ndarray, column: int) -> np.ndarray:
    """Hashes integers to 53 bits, differently for each column: (N,) -> (N,) uint64."""
    keys = integers.astype(np.int64).astype(np.uint64)
    draws = counter_uniforms(keys, column + 1)[:, column]
    return (draws * 2.0**53).astype(np.uint64)
