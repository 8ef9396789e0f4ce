"""Computes weights of words by inverse document frequency, for the mean of token states that is the vector of a text.

A plain mean gives "the" the same weight as "mitochondrion". Weighting by inverse document frequency is the cheapest
known remedy: it needs one pass over tokenized texts and no training.

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

from text_jepa.data.tokenization import groups_of_texts, token_bytes, vocabulary


# Folder of the module `WordWeights` in an exported encoder, which sentence-transformers loads by itself.
WORD_WEIGHTS_FOLDER = "1_WordWeights"


class DocumentFrequency:
    """Counts in how many documents each token occurs.

    Args:
        vocab_size: V.

    Attributes:
        documents: Number of documents counted so far.
        counts: (V,) int64, number of documents in which each token occurs.
    """

    def __init__(self, vocab_size: int):
        self.documents = 0
        self.counts = np.zeros(vocab_size, np.int64)

    def add(self, documents: Iterable[Sequence[int]]) -> None:
        """Adds documents, each given by its token ids."""
        for ids in documents:
            tokens = np.unique(np.asarray(ids, dtype=np.int64))
            self.counts[tokens] += 1
            self.documents += 1

    def inverse(self) -> np.ndarray:
        """Inverse document frequency ln((N + 1) / (df + 1)) + 1, at least 1 (`smooth_idf` of scikit-learn): (V,)."""
        ratio = (self.documents + 1) / (self.counts + 1)
        return np.log(ratio) + 1


def is_weightless(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Marks tokens without weight: special tokens and punctuation, boolean (V,)."""
    # Byte-level BPE writes spaces and bytes as other letters.
    texts = [tokenizer.convert_tokens_to_string([token]) for token in vocabulary(tokenizer)]
    weightless = np.array(list(map(_has_no_word, texts, token_bytes(tokenizer))))
    weightless[tokenizer.all_special_ids] = True
    return weightless


def _has_no_word(text: str, content: bytes) -> bool:
    """Whether a token is blank or punctuation.

    Args:
        text: The token as text. Some tokenizers have none for a blank, and some none for a part of a character.
        content: Its bytes.
    """
    if not text:
        return not content.strip()
    return all(map(_is_punctuation, text.removeprefix("##").strip()))


def _is_punctuation(character: str) -> bool:
    if character in string.punctuation:
        return True
    return unicodedata.category(character).startswith("P")


def word_weights(frequency: DocumentFrequency, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Computes the weight of each token: inverse document frequency, 0 for special tokens and punctuation.

    Returns:
        (V,) float32.
    """
    weights = np.where(is_weightless(tokenizer), 0.0, frequency.inverse())
    return weights.astype(np.float32)


def count_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> DocumentFrequency:
    """Counts the document frequencies of tokens in raw texts."""
    frequency = DocumentFrequency(len(vocabulary(tokenizer)))
    for group in groups_of_texts(texts):
        encoded = tokenizer(
            group,
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )
        frequency.add(encoded["input_ids"])
    return frequency


def save_word_weights(folder: str | Path, weights: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes weights (V,) to `1_WordWeights/` in a folder, as the module `WordWeights` of sentence-transformers."""
    folder = Path(folder, WORD_WEIGHTS_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary(tokenizer)
    rounded = [round(float(weight), 6) for weight in weights]
    config = {
        "vocab": tokens,
        "word_weights": dict(zip(tokens, rounded, strict=True)),
        "unknown_word_weight": 1,
    }
    text = json.dumps(config, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    matrix = weights.astype(np.float32)[:, None]
    save_file({"emb_layer.weight": matrix}, folder / "model.safetensors")


def load_word_weights(folder: str | Path) -> np.ndarray | None:
    """Reads the weights (V,) float32 written by `save_word_weights`; `None` if there are none."""
    path = Path(folder, WORD_WEIGHTS_FOLDER, "model.safetensors")
    if not path.is_file():
        return None
    return load_file(path)["emb_layer.weight"][:, 0]
