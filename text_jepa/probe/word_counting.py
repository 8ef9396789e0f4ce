"""TF-IDF and BM25: what finds texts by their words, without an encoder.

Shapes: N texts, Q queries, A candidates, W words.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from text_jepa.cli import UsageError
from text_jepa.data.scripts import terms_of


# Enough texts for word frequencies; more of them only cost time.
_FITTED_TEXTS = 50_000
_FITTED_CHARACTERS = 40_000_000

# The usual constants of BM25 (Robertson and Zaragoza, 2009).
_K1 = 1.5
_B = 0.75


class WordCounting:
    """TF-IDF and BM25, with the vocabulary and the document frequencies of the texts that they are fitted on.

    A word is a run of letters and digits of any length, in lower case, or in scripts without spaces between words each
    two neighbouring characters, see `terms_of`. Words that are not in the vocabulary are ignored.

    Args:
        texts: Texts to fit on. At most 50,000 of them and 40 million characters are counted, evenly spaced.

    Raises:
        UsageError: They contain no word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        characters = sum(len(text) for text in texts)
        share = min(1, _FITTED_CHARACTERS / max(characters, 1))
        affordable = int(len(texts) * share) or 1
        count = min(_FITTED_TEXTS, affordable)
        rows = evenly(np.arange(len(texts)), count)
        frequency = Counter()
        for row in rows:
            frequency.update(set(terms_of(texts[row])))
        if not frequency:
            raise UsageError("the texts to fit TF-IDF and BM25 on hold no word; name other texts")
        vocabulary = sorted(frequency)
        self.documents = len(rows)
        self.frequencies = np.array([frequency[word] for word in vocabulary])
        self._counter = CountVectorizer(analyzer=terms_of, vocabulary=vocabulary)

    def tfidf(self, texts: Sequence[str]) -> sparse.csr_array:
        """Vectors (N, W) of unit length: 1 + ln(count), times scikit-learn's smooth inverse document frequency."""
        counts = self._counts(texts)
        counts.data = 1 + np.log(counts.data)
        smoothed = (1 + self.documents) / (1 + self.frequencies)
        inverse = np.log(smoothed) + 1
        return normalize(counts * inverse)

    def tfidf_of_pairs(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """Cosines (N,) of the TF-IDF of N pairs of texts."""
        return _row_products(self.tfidf(left), self.tfidf(right))

    def bm25(self, queries: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """Scores (Q, A) of the candidates for each query, with the inverse document frequency of Lucene.

        Lengths are relative to the mean length of the candidates.
        """
        weights = self._bm25_weights(candidates)
        scores = self._counts(queries) @ weights.T
        return scores.toarray()

    def bm25_of_pairs(self, queries: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """Scores (N,) of N candidates, each for its own query; otherwise as `bm25`."""
        return _row_products(self._counts(queries), self._bm25_weights(candidates))

    def _bm25_weights(self, candidates: Sequence[str]) -> sparse.csr_array:
        """The weights (A, W) of the words of each candidate, whose product with the counts of a query is its score."""
        counts = self._counts(candidates)
        lengths = counts.sum(axis=1)
        relative = lengths / max(lengths.mean(), 1)
        words_of_candidate = np.diff(counts.indptr)
        candidate_of = np.repeat(np.arange(len(candidates)), words_of_candidate)
        saturation = _K1 * (1 - _B + _B * relative[candidate_of])
        counts.data = counts.data * (_K1 + 1) / (counts.data + saturation)
        without_word = self.documents - self.frequencies
        inverse = np.log(1 + (without_word + 0.5) / (self.frequencies + 0.5))
        return counts * inverse

    def _counts(self, texts: Sequence[str]) -> sparse.csr_array:
        counts = self._counter.transform(texts)
        return sparse.csr_array(counts, dtype=np.float64)


def _row_products(left: sparse.csr_array, right: sparse.csr_array) -> np.ndarray:
    """Inner products (N,) of the rows of two matrices (N, W)."""
    return (left * right).sum(axis=1)


def evenly(items: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return items
    places = np.arange(count) * len(items) // count
    return items[places]
