"""Texts to vectors: what a frozen encoder makes of a text, and what can be had without one.

What reads a model here leaves its weights alone, runs without gradients and switches it to eval mode. Texts go through
in batches of about equal length, on CUDA in bfloat16 where the device has it.

Shapes: N texts or pairs, S tokens of the longest one, D features, L layers, Q queries.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_text_jepa import mean_pool
from text_jepa.probing import centre, cosine


Pooling = Literal["mean", "cls"]


# ---- of an encoder --------------------------------------------------------------------------------------------------


def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 128,
    batch_size: int = 64,
    layers: int = 1,
    pooling: Pooling = "mean",
) -> np.ndarray:
    """Pooled hidden states.

    Args:
        model: Any encoder with `last_hidden_state`.
        tokenizer: Its tokenizer.
        texts: N texts.
        max_length: Longest text in tokens; the rest is cut off.
        batch_size: Texts per forward pass.
        layers: Average of so many last hidden states.
        pooling: Mean over the tokens, or the state of the first one.

    Returns:
        (N, D) float32.
    """
    return _pooled_states(model, tokenizer, texts, max_length, batch_size, layers, pooling).mean(axis=0)


def embed_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 128,
    batch_size: int = 64,
    pooling: Pooling = "mean",
) -> np.ndarray:
    """Pooled states of the embeddings and of all L layers, from one pass over the texts.

    Returns:
        (L + 1, N, D) float32. The mean of the last K rows is what `embed_texts` gives with `layers=K`, for pooling
        and averaging can be exchanged.
    """
    return _pooled_states(model, tokenizer, texts, max_length, batch_size, None, pooling)


def _pooled_states(model, tokenizer, texts, max_length, batch_size, layers, pooling):
    """(layers, N, D) float32; all layers for `None`."""
    order, parts = [], []
    for rows, states, mask in _hidden_states(model, tokenizer, texts, None, max_length, batch_size, layers):
        pooled = [mean_pool(x.float(), mask) if pooling == "mean" else x[:, 0].float() for x in states]
        parts.append(torch.stack(pooled).cpu().numpy())
        order += rows
    return np.concatenate(parts, axis=1)[:, np.argsort(order)]


def token_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    max_length: int = 128,
    batch_size: int = 64,
    layers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of every token, special ones included; a pair is one text in the tokenizer's own pair format.

    Returns:
        States (N, S, D) float16, zeros where a text has no token, and mask (N, S), 1 for a token. The states of 10,000
        texts of 64 tokens take 1 GB at 768 features.
    """
    states_of, masks = [None] * len(texts), [None] * len(texts)
    for rows, states, mask in _hidden_states(model, tokenizer, texts, pairs, max_length, batch_size, layers):
        averaged = states.float().mean(dim=0).half().cpu().numpy()
        for row, state, present in zip(rows, averaged, mask.cpu().numpy(), strict=True):
            states_of[row], masks[row] = state, present
    shape = (len(texts), max(map(len, masks)))
    found, found_mask = np.zeros((*shape, states_of[0].shape[-1]), np.float16), np.zeros(shape, np.int64)
    for row, (state, mask) in enumerate(zip(states_of, masks, strict=True)):
        found[row, : len(state)], found_mask[row, : len(mask)] = state * mask[:, None], mask
    return found, found_mask


@torch.no_grad()
def _hidden_states(
    model, tokenizer, texts, pairs, max_length, batch_size, layers
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Rows of a batch (B), its last hidden states (layers, B, S, D) and its mask (B, S); all layers for `None`."""
    model.eval()
    encoded = tokenizer(list(texts), pairs and list(pairs), truncation=True, max_length=max_length)
    if pairs is None or "token_type_ids" not in inspect.signature(model.forward).parameters:
        # Of a single text they are zeros, which models assume by themselves.
        encoded.pop("token_type_ids", None)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    bfloat16 = model.device.type == "cuda" and torch.cuda.is_bf16_supported()
    # Of tokens, because the texts become longer on the way.
    tokens = {"total": sum(lengths), "unit": " tokens", "unit_scale": True}
    with tqdm(**tokens, desc=f"Embedding {len(texts):,} texts", disable=None, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            columns = {name: [values[row] for row in rows] for name, values in encoded.items()}
            batch = tokenizer.pad(columns, return_tensors="pt").to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                output = model(**batch, output_hidden_states=layers != 1)
            states = [output.last_hidden_state]
            if layers != 1:
                # In the tuple the last one may lack the final norm.
                states = [*output.hidden_states[:-1], *states]
                if layers and layers > len(states):
                    raise ValueError(f"{layers} layers are more than its {len(states)} with the embeddings")
                states = states[-(layers or 0) :]
            yield rows, torch.stack(states), batch["attention_mask"]
            bar.update(sum(lengths[row] for row in rows))


def bag_of_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int = 128
) -> np.ndarray:
    """Mean of the input embeddings of a text's tokens (N, D), without special tokens; zeros for an empty text."""
    table = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_length)["input_ids"]
    return np.stack([table[ids].mean(axis=0) if ids else np.zeros(table.shape[1], np.float32) for ids in encoded])


def nearest_texts(vectors: np.ndarray, queries: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other row of each query by cosine of the centred vectors.

    Args:
        vectors: (N, D).
        queries: Q row numbers.

    Returns:
        Rows (Q,) and cosines (Q,).
    """
    centred = centre(vectors)
    cosines = np.stack([cosine(centred[row], centred) for row in queries])
    cosines[np.arange(len(queries)), list(queries)] = -np.inf
    best = cosines.argmax(axis=1)
    return best, cosines[np.arange(len(queries)), best]


# ---- without an encoder ---------------------------------------------------------------------------------------------


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
