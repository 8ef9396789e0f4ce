"""Vectors of length 1, without torch."""

import numpy as np


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows (…, D) of length 1, float32; rows of zeros stay."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / lengths.clip(min=1e-12)
