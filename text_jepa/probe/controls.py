"""Controls that an encoder has to beat: TF-IDF, and its own embeddings without its layers."""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from text_jepa.data.scripts import terms_of
from text_jepa.encoders.embeddings import Encoder


def bag_of_embeddings(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Mean of the input embeddings of a text's tokens, by the encoder's word weights, without special tokens.

    Returns:
        (N, D) float32; zeros for a text without tokens that count.
    """
    embeddings = encoder.model.get_input_embeddings().weight
    table = embeddings.detach().float().cpu().numpy()
    word_weights = encoder.word_weights
    if word_weights is None:
        word_weights = np.ones(len(table), np.float32)
    encoded = encoder.tokenizer(list(texts), add_special_tokens=False, verbose=False)

    bags = np.zeros((len(texts), table.shape[1]), np.float32)
    for row, ids in enumerate(encoded["input_ids"]):
        weights = word_weights[ids]
        total = weights.sum()
        if total > 0:
            bags[row] = weights @ table[ids] / total
    return bags


def tfidf_vectors(
    fitted_on: Sequence[str],
    texts: Sequence[str],
    components: int = 256,
) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words and its first singular directions.

    Args:
        fitted_on: Texts that vocabulary, document frequencies and directions come from.
        texts: N texts.
        components: Number of directions.

    Returns:
        (N, components) float32; fewer features if there are fewer words.

    Raises:
        ValueError: There are not two words.
    """
    words = _tfidf(fitted_on, sublinear=True)
    components = min(components, len(words.vocabulary_) - 1)
    svd = TruncatedSVD(components, random_state=0)
    svd.fit(words.transform(fitted_on))
    vectors = svd.transform(words.transform(texts))
    return vectors.astype(np.float32)


def tfidf_cosines(
    fitted_on: Sequence[str],
    left: Sequence[str],
    right: Sequence[str],
    sublinear: bool = False,
) -> np.ndarray:
    """Cosines (N,) of the TF-IDF of N pairs of texts.

    Args:
        fitted_on: Texts that vocabulary and document frequencies come from.
        left: N first texts.
        right: N second texts.
        sublinear: Whether a word counts by the logarithm of its frequency in a text. This moves scores by half a
            point, and published figures rarely say which one they used.
    """
    words = _tfidf(fitted_on, sublinear)
    first = words.transform(left)
    second = words.transform(right)
    products = first.multiply(second).sum(axis=1)
    return np.asarray(products).ravel()


def _tfidf(texts: Sequence[str], sublinear: bool) -> TfidfVectorizer:
    """Counts words of any length, one letter included, see `terms_of`."""
    vectorizer = TfidfVectorizer(sublinear_tf=sublinear, analyzer=terms_of)
    return vectorizer.fit(texts)
