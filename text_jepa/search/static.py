"""Encoders without layers: their token vectors in the index, from which queries are embedded without torch.

Torch and transformers take seconds to import. The state of a token does not depend on the others if there are no
layers, so the vector of a text is a weighted mean of stored vectors.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from text_jepa.search.vectors import unit_rows


if TYPE_CHECKING:
    from text_jepa.encoders.embeddings import Encoder

# Largest difference of a feature of a vector of length 1 from the encoder's own.
_TOLERANCE = 1e-4

# Texts of so many tokens each are compared, of tokens all over the vocabulary.
_COMPARED_TEXTS = 16
_COMPARED_TOKENS = 40


class TokenTable(NamedTuple):
    """All that the vector of a text takes if an encoder has no layers.

    Args:
        vectors: State of each token of the vocabulary times its weight in a text, (V, D) float32.
        tokenizer: The tokenizer as JSON.
        prompts: What is put before a query, and before a passage.
    """

    vectors: np.ndarray
    tokenizer: str
    prompts: tuple[str, str]


class StaticEmbedding:
    """Turns texts into vectors by the vectors of their tokens.

    Args:
        look_up: Function of T numbers of tokens; it returns their vectors (T, D), see `TokenTable`.
        tokenizer: The tokenizer as JSON.
        prompt: What is put before every text.
    """

    def __init__(self, look_up: Callable[[list[int]], np.ndarray], tokenizer: str, prompt: str) -> None:
        self.look_up = look_up
        self.prompt = prompt
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def with_prompt(self, prompt: str) -> "StaticEmbedding":
        """The same with another prompt."""
        other = copy.copy(self)
        other.prompt = prompt
        return other

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (N, D) of N texts, right but for their lengths."""
        nothing = np.zeros_like(self.look_up([0])[0])
        vectors = []
        for encoding in self.tokenizer.encode_batch([self.prompt + text for text in texts]):
            vectors.append(self.look_up(encoding.ids).sum(axis=0) if encoding.ids else nothing)
        return np.stack(vectors)


def make_token_table(encoder: "Encoder") -> TokenTable | None:
    """The table of an encoder; `None` if it has layers, or if the table would not give its vectors."""
    import torch
    from transformers import BatchEncoding

    from text_jepa.encoders.embeddings import embed_texts, token_weights

    tokenizer = encoder.tokenizer
    has_layers = getattr(encoder.model.config, "num_hidden_layers", None) != 0
    if has_layers or encoder.pooling != "mean" or not tokenizer.is_fast:
        return None
    tokens = max(tokenizer.get_vocab().values()) + 1
    parts = []
    with torch.no_grad():
        for ids in torch.arange(tokens, device=encoder.model.device).split(1024):
            batch = BatchEncoding({"input_ids": ids[:, None], "attention_mask": torch.ones_like(ids)[:, None]})
            states = encoder.model(**batch).last_hidden_state.float()[:, 0]
            parts.append((states * token_weights(encoder, batch)).cpu())
    vectors = torch.cat(parts).numpy()
    table = TokenTable(vectors, tokenizer.backend_tokenizer.to_str(), encoder.search_prompts)

    order = np.random.default_rng(0).permutation(tokens)[: _COMPARED_TEXTS * _COMPARED_TOKENS]
    texts = [tokenizer.decode(ids) for ids in np.array_split(order, _COMPARED_TEXTS)]
    given = embed_texts(encoder, texts)
    if given.shape[1] != vectors.shape[1]:  # a module behind the pooling changes the number of features
        return None
    static = StaticEmbedding(vectors.__getitem__, table.tokenizer, encoder.prompt)
    difference = unit_rows(static(texts)) - unit_rows(given)
    return table if np.abs(difference).max() < _TOLERANCE else None
