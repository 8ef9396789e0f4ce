"""Texts to vectors: what a frozen encoder makes of a text, and what can be had without one.

What reads a model here leaves its weights alone, runs without gradients and switches it to eval mode. Texts go through
in batches of about equal length, on CUDA in bfloat16 where the device has it.

Shapes: N texts or pairs, W windows of texts, S tokens of the longest one, V tokens of the vocabulary, D features,
L layers, Q queries.
"""

import copy
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm.auto import tqdm
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.arguments import UsageError
from text_jepa.export import Which, load_trained, sentence_pooling, trained_encoder, trained_word_weights
from text_jepa.masking import special_tokens_around
from text_jepa.probing import centre, cosine
from text_jepa.word_weights import WORD_WEIGHTS_FOLDER, load_word_weights


Pooling = Literal["mean", "cls"]

# Longest window of a text, in tokens, where neither the folder nor the user names one.
_LONGEST_WINDOW = 512

# How sentence-transformers has written the kinds of pooling until version 5: a flag for each.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


# ---- opening an encoder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoder:
    """A model with everything that it takes to make a vector of a text.

    Args:
        name: The name of the encoder in tables and messages.
        model: Any encoder with `last_hidden_state`.
        tokenizer: The tokenizer of the encoder.
        max_length: Tokens of a window, special ones included; a longer text is read in several windows.
        pooling: The mean over the tokens, or the state of the first one.
        word_weights: (V,) how much each token counts in the mean; `None` if all count the same.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128
    pooling: Pooling = "mean"
    word_weights: np.ndarray | None = None


def open_encoder(name_or_path: str, max_length: int | None = None, pooling: Pooling | None = None) -> Encoder:
    """Opens any encoder: a plain one, an exported one, `pretraining/` or `checkpoint-N` of a run.

    Of a pretraining model it is the encoder that would be exported, with its last weights: the target encoder where
    there is a moving one. No code of the folder is run. The encoder is moved to the GPU if there is one.

    Args:
        name_or_path: Folder or name on the Hub.
        max_length: Tokens of a window. Defaults to what the folder says, at most 512.
        pooling: `"mean"` (all tokens count the same) or `"cls"`. Defaults to what the folder says in the files of
            sentence-transformers, word weights included; the plain mean if there are none.

    Raises:
        UsageError: There is no encoder, it cannot be read, or its pooling is of another kind.
    """
    model, tokenizer = load_trained(name_or_path)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    window = max_length or min(_stated_length(name_or_path) or tokenizer.model_max_length, _LONGEST_WINDOW)
    if isinstance(model, TextJepaForPreTraining):
        encoder = encoder_inside(model, tokenizer, window, name=name_or_path)
    else:
        encoder = Encoder(name_or_path, model, tokenizer, window)
        if pooling is None:
            word_weights = _stated_word_weights(name_or_path)
            encoder = replace(encoder, pooling=_stated_pooling(name_or_path), word_weights=word_weights)
    if pooling is not None:
        encoder = replace(encoder, pooling=pooling, word_weights=None)
    return encoder


def encoder_inside(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    which: Which = "target",
    name: str = "this encoder",
) -> Encoder:
    """The encoder inside a pretraining model, with the pooling that it would be exported with.

    Args:
        model: The pretraining model.
        tokenizer: The tokenizer that it is trained with. It is copied, for the length at which texts are cut would end
            up in the files that a run saves of it.
        max_length: Tokens of a window.
        which: See `trained_encoder`.
        name: The name of the encoder in tables.
    """
    word_weights = trained_word_weights(model, tokenizer)
    pooling = sentence_pooling(model.config)
    return Encoder(name, trained_encoder(model, which), copy.deepcopy(tokenizer), max_length, pooling, word_weights)


def _stated_pooling(source: str) -> Pooling:
    """The kind of pooling that sentence-transformers' files of a folder state; the mean if there are none."""
    for module in _read_json(source, "modules.json") or []:
        if module["type"].endswith(".Pooling"):
            config = _read_json(source, f"{module['path']}/config.json") or {}
            kind = _kind_of_pooling(config)
            if kind not in ("mean", "cls"):
                raise UsageError(
                    f"{source}: its vectors are pooled by '{kind}' ({module['path']}/config.json), which is not "
                    "read; name --pooling mean or --pooling cls, or another encoder"
                )
            return kind
    return "mean"


def _kind_of_pooling(config: dict[str, Any]) -> str:
    """In the new form `pooling_mode`, one or several; in the old one a flag for each kind. The default is the mean."""
    kinds = config.get("pooling_mode")
    if kinds is None:
        kinds = [kind for flag, kind in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    if isinstance(kinds, str):
        return kinds
    return "+".join(kinds)


def _stated_length(source: str) -> int | None:
    """How long texts are for an encoder, by sentence-transformers' files or by those of a pretraining run."""
    exported = _read_json(source, "sentence_bert_config.json") or {}
    pretrained = _read_json(source, "card.json") or {}
    return exported.get("max_seq_length") or pretrained.get("max_length")


def _stated_word_weights(source: str) -> np.ndarray | None:
    """The weights (V,) of the module `WordWeights` of a folder, if it has one."""
    path = _file_of(source, f"{WORD_WEIGHTS_FOLDER}/model.safetensors")
    if path is None:
        return None
    return load_word_weights(path.parent.parent)


def _read_json(source: str, name: str) -> Any:
    """The content of a file of a folder or a Hub repository; `None` if there is no such file."""
    path = _file_of(source, name)
    if path is None:
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _file_of(source: str, name: str) -> Path | None:
    """A file of a folder or a Hub repository; `None` if there is none, or none was kept while the Hub is away."""
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


# ---- of an encoder --------------------------------------------------------------------------------------------------


def embed_texts(encoder: Encoder, texts: Sequence[str], batch_size: int = 64, layers: int = 1) -> np.ndarray:
    """The vectors of texts, which are read whole.

    A text that is longer than `max_length` is read in windows, with special tokens around each. Its vector is the
    weighted mean over the tokens of all windows, or the mean of their first states (`"cls"`).

    Args:
        encoder: The encoder, with its pooling.
        texts: N texts.
        batch_size: Windows per forward pass.
        layers: Average of so many last hidden states.

    Returns:
        (N, D) float32; zeros for a text none of whose tokens has a weight. Of a text of one window it is the vector
        that sentence-transformers gives, before its normalisation.
    """
    return _pooled_states(encoder, texts, batch_size, layers).mean(axis=0)


def embed_layers(encoder: Encoder, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """The vectors of texts by the embeddings and by all L layers, from one pass over the texts.

    Returns:
        (L + 1, N, D) float32. The mean of the last K rows is what `embed_texts` gives with `layers=K`, for pooling
        and averaging can be exchanged.
    """
    return _pooled_states(encoder, texts, batch_size, None)


def _pooled_states(encoder, texts, batch_size, layers):
    """(layers, N, D) float32; all layers for `None`."""
    encoded, text_of = _windows(encoder, texts)
    weights_of = torch.zeros(len(texts), 1)
    sums = None
    for rows, states, batch in _hidden_states(encoder, encoded, len(texts), batch_size, layers):
        weights = token_weights(encoder, batch)
        of_windows = (states.float() * weights[..., None]).sum(dim=2).cpu()
        if sums is None:
            sums = torch.zeros(len(of_windows), len(texts), of_windows.shape[-1])
        sums.index_add_(1, text_of[rows], of_windows)
        weights_of.index_add_(0, text_of[rows], weights.sum(dim=1, keepdim=True).cpu())
    return (sums / weights_of.clamp(min=1e-9)).numpy()


def _windows(encoder: Encoder, texts: Sequence[str]) -> tuple[BatchEncoding, torch.Tensor]:
    """The windows of all texts, at least one of each, with special tokens around them; and the text of each window."""
    # Not by the tokenizer's own overflow: tokenizers 0.23.2 leaves tokens out of it.
    before, after = special_tokens_around(encoder.tokenizer)
    room = max(encoder.max_length - len(before) - len(after), 1)
    ids_of_texts = encoder.tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    windows, text_of = [], []
    for number, ids in enumerate(ids_of_texts):
        for start in range(0, max(len(ids), 1), room):
            windows.append([*before, *ids[start : start + room], *after])
            text_of.append(number)
    masks = [[1] * len(window) for window in windows]
    return BatchEncoding({"input_ids": windows, "attention_mask": masks}), torch.tensor(text_of)


def token_weights(encoder: Encoder, batch: BatchEncoding) -> torch.Tensor:
    """How much each token of a batch counts in the vector of its text, as the encoder's pooling says.

    Args:
        encoder: The encoder.
        batch: `input_ids` and `attention_mask`, each (B, S).

    Returns:
        (B, S) float32, 0 for padding.
    """
    mask = batch["attention_mask"].float()
    if encoder.pooling == "cls":
        weights = torch.zeros_like(mask)
        weights[:, 0] = 1
        return weights
    if encoder.word_weights is None:
        return mask
    weight_of = torch.as_tensor(encoder.word_weights, dtype=torch.float32, device=mask.device)
    return weight_of[batch["input_ids"]] * mask


def token_states(
    encoder: Encoder,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = 64,
    layers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of every token, special ones included; a pair is one text in the tokenizer's own pair format.

    What is longer than the encoder's `max_length` is cut off.

    Returns:
        States (N, S, D) float16, zeros where a text has no token, and mask (N, S), 1 for a token. The states of 10,000
        texts of 64 tokens take 1 GB at 768 features.
    """
    second = None if pairs is None else list(pairs)
    encoded = encoder.tokenizer(list(texts), second, truncation=True, max_length=encoder.max_length)
    if pairs is None or "token_type_ids" not in inspect.signature(encoder.model.forward).parameters:
        encoded.pop("token_type_ids", None)
    states_of: list[Any] = [None] * len(texts)
    masks: list[Any] = [None] * len(texts)
    for rows, states, batch in _hidden_states(encoder, encoded, len(texts), batch_size, layers):
        averaged = states.float().mean(dim=0).half().cpu().numpy()
        present = batch["attention_mask"].cpu().numpy()
        for place, row in enumerate(rows):
            states_of[row] = averaged[place]
            masks[row] = present[place]
    longest = max(map(len, masks))
    found = np.zeros((len(texts), longest, states_of[0].shape[-1]), np.float16)
    found_mask = np.zeros((len(texts), longest), np.int64)
    for row, (state, mask) in enumerate(zip(states_of, masks, strict=True)):
        found[row, : len(state)] = state * mask[:, None]
        found_mask[row, : len(mask)] = mask
    return found, found_mask


@torch.no_grad()
def _hidden_states(
    encoder: Encoder, encoded: BatchEncoding, texts: int, batch_size: int, layers: int | None
) -> Iterator[tuple[list[int], torch.Tensor, BatchEncoding]]:
    """Rows of a batch (B), its last hidden states (layers, B, S, D), and the batch; all layers for `None`."""
    model = encoder.model.eval()
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    bfloat16 = model.device.type == "cuda" and torch.cuda.is_bf16_supported()
    # Of tokens, because the texts become longer on the way.
    tokens = {"total": sum(lengths), "unit": " tokens", "unit_scale": True}
    with tqdm(**tokens, desc=f"Embedding {texts:,} texts", disable=None, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            columns = {name: [values[row] for row in rows] for name, values in encoded.items()}
            batch = encoder.tokenizer.pad(columns, return_tensors="pt").to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                output = model(**batch, output_hidden_states=layers != 1)
            states = [output.last_hidden_state]
            if layers != 1:
                # In the tuple the last one may lack the final norm; without a layer there is none.
                states = [*output.hidden_states[:-1], *states]
                if layers and layers > len(states):
                    raise ValueError(f"{layers} layers are more than its {len(states)} with the embeddings")
                states = states[-(layers or 0) :]
            yield rows, torch.stack(states), batch
            bar.update(sum(lengths[row] for row in rows))


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
