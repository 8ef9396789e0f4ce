"""What an encoder has to beat: word counting, and its own embeddings without its layers."""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from text_jepa.embeddings import Encoder


def bag_of_embeddings(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Mean of the input embeddings of a text's tokens, by the encoder's word weights, without special tokens.

    Returns:
        (N, D) float32; zeros for a text without tokens that count.
    """
    table = encoder.model.get_input_embeddings().weight.detach().float().cpu().numpy()
    weight_of = np.ones(len(table), np.float32) if encoder.word_weights is None else encoder.word_weights
    encoded = encoder.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    bags = np.zeros((len(texts), table.shape[1]), np.float32)
    for row, ids in enumerate(encoded):
        weights = weight_of[ids]
        if weights.sum() > 0:
            bags[row] = weights @ table[ids] / weights.sum()
    return bags


def tfidf_vectors(fitted_on: Sequence[str], texts: Sequence[str], components: int = 256) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words and its first singular directions, both fitted on the first texts.

    Returns:
        (N, components) float32 of `texts`; fewer features where there are not so many words.

    Raises:
        ValueError: There are no two words.
    """
    words = _tfidf(fitted_on)
    directions = TruncatedSVD(min(components, len(words.vocabulary_) - 1), random_state=0)
    directions.fit(words.transform(fitted_on))
    return directions.transform(words.transform(texts)).astype(np.float32)


def tfidf_cosines(
    fitted_on: Sequence[str], left: Sequence[str], right: Sequence[str], sublinear: bool = False
) -> np.ndarray:
    """Cosines (N,) of the TF-IDF of the words of N pairs of texts, fitted on the first texts alone.

    Whether a word counts as often as it occurs or by the logarithm (`sublinear`) moves scores by half a point. Which
    one a figure needs that was published elsewhere can only be tried.
    """
    words = _tfidf(fitted_on, sublinear)
    return np.asarray(words.transform(left).multiply(words.transform(right)).sum(axis=1)).ravel()


def _tfidf(texts, sublinear=True):
    """Of words of any length, one letter included."""
    return TfidfVectorizer(sublinear_tf=sublinear, token_pattern=r"\b\w+\b").fit(texts)
