"""Weights of words: how much each token counts in the vector of a text.

A plain mean of token states gives "the" the weight of "mitochondrion". Weighting by inverse document frequency is the
cheapest known remedy; it needs one pass over tokenized texts and no training.

Shapes: V tokens of the vocabulary.
"""

import json
import string
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from text_jepa.data.tokenization import vocabulary


# The folder of the module `WordWeights` beside an exported encoder, which sentence-transformers opens by itself.
WORD_WEIGHTS_FOLDER = "1_WordWeights"


class DocumentFrequency:
    """Counts in how many documents each token occurs.

    Args:
        vocab_size: V.

    Attributes:
        documents: Documents counted so far.
        counts: (V,) int64, in how many of them each token occurs.
    """

    def __init__(self, vocab_size: int):
        self.documents = 0
        self.counts = np.zeros(vocab_size, np.int64)

    def add(self, documents: Iterable[Sequence[int]]) -> None:
        """Counts documents, each given by its token ids."""
        for ids in documents:
            self.counts[np.unique(np.asarray(ids, dtype=np.int64))] += 1
            self.documents += 1

    def inverse(self) -> np.ndarray:
        """Inverse document frequency, ln((N + 1) / (df + 1)) + 1, at least 1 (scikit-learn's `smooth_idf`): (V,)."""
        return np.log((self.documents + 1) / (self.counts + 1)) + 1


def is_weightless(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(V,) boolean: special tokens and punctuation, which say nothing about the subject of a text."""
    tokens = vocabulary(tokenizer)
    weightless = np.array([_is_punctuation(text) for text in _texts_of(tokenizer, tokens)])
    weightless[tokenizer.all_special_ids] = True
    return weightless


def _texts_of(tokenizer, tokens):
    """Tokens as text: byte-level BPE writes blanks and bytes as letters of its own."""
    return [tokenizer.convert_tokens_to_string([token]).removeprefix("##").strip() for token in tokens]


def _is_punctuation(text):
    return all(character in string.punctuation or unicodedata.category(character)[0] == "P" for character in text)


def word_weights(frequency: DocumentFrequency, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Inverse document frequencies, 0 for special tokens and punctuation: (V,) float32."""
    return np.where(is_weightless(tokenizer), 0.0, frequency.inverse()).astype(np.float32)


def count_words(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, batch_size: int = 1_000
) -> DocumentFrequency:
    """Document frequencies of the tokens of raw texts."""
    frequency = DocumentFrequency(len(vocabulary(tokenizer)))
    batch = []
    for text in texts:
        batch.append(text)
        if len(batch) == batch_size:
            frequency.add(_token_ids(tokenizer, batch))
            batch = []
    if batch:
        frequency.add(_token_ids(tokenizer, batch))
    return frequency


def _token_ids(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def save_word_weights(folder: str | Path, weights: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes weights (V,) as sentence-transformers' module `WordWeights`, into `1_WordWeights/` of a folder."""
    folder = Path(folder, WORD_WEIGHTS_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary(tokenizer)
    named = {token: round(float(weight), 6) for token, weight in zip(tokens, weights, strict=True)}
    config = {"vocab": tokens, "word_weights": named, "unknown_word_weight": 1}
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({"emb_layer.weight": weights.astype(np.float32)[:, None]}, folder / "model.safetensors")


def load_word_weights(folder: str | Path) -> np.ndarray | None:
    """The weights (V,) float32 that `save_word_weights` left in a folder; `None` if there are none."""
    path = Path(folder, WORD_WEIGHTS_FOLDER, "model.safetensors")
    if not path.is_file():
        return None
    return load_file(path)["emb_layer.weight"][:, 0]
