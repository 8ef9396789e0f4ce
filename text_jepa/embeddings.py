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
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError, first_line
from text_jepa.data.tokenization import special_tokens_around, vocabulary
from text_jepa.data.word_weights import WORD_WEIGHTS_FOLDER, load_word_weights


Which = Literal["target", "context"]

# The modules of sentence-transformers, each a subfolder and a type; by these names every version of it reads them.
TRANSFORMER_MODULE = ("", "sentence_transformers.models.Transformer")
WORD_WEIGHTS_MODULE = (WORD_WEIGHTS_FOLDER, "sentence_transformers.models.WordWeights")
POOLING_MODULE = "sentence_transformers.models.Pooling"
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


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(min=1e-12)


def centre(x: np.ndarray, by: np.ndarray | None = None) -> np.ndarray:
    """Rows minus the mean row of `by`, or of themselves.

    The mean is taken about a first row, so that equal rows centre to exact zeros instead of a rounding error whose
    direction a cosine would then measure.

    Args:
        x: (N, D).
        by: (M, D).

    Returns:
        (N, D).
    """
    by = x if by is None else by
    return (x - by[:1]) - (by - by[:1]).mean(axis=0)


def cosine(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Cosine of each row of `u` with the row of `v` (..., D); 0 with a row of zeros."""
    return (unit_rows(u) * unit_rows(v)).sum(axis=-1)


def trained_encoder(model: TextJepaForPreTraining, which: Which = "target") -> PreTrainedModel:
    """The stock encoder inside: the moving average (`"target"`), if there is one, or the one that was optimised.

    A frozen target encoder is what the run began with, never what it made.
    """
    if which == "target" and model.config.target_encoder_type == "ema":
        return model.encoder_of_targets
    return model.model.encoder


def sentence_pooling(config) -> Literal["mean", "cls"]:
    """How an exported encoder makes a vector of a text: as in training, if a file can say so, or by the mean."""
    pools_in_training = config.document_loss_weight > 0 or config.sentence_loss_weight > 0
    return "cls" if pools_in_training and config.pooling == "cls" else "mean"


def trained_word_weights(model: TextJepaForPreTraining, tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """The weights of words that a model pools with, of the tokenizer's tokens: (V,) float32.

    `None` if it was trained with another pooling. The model may have more embeddings than there are tokens.
    """
    if model.word_weights is None:
        return None
    return model.word_weights[: len(vocabulary(tokenizer))].float().cpu().numpy()


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """What `write_modules`, or sentence-transformers, has written; an empty list if there is nothing."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [(module["path"], module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]


def load_trained(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A finished model with its tokenizer: a [`TextJepaForPreTraining`] or an encoder of any architecture.

    Args:
        source: Folder or name on the Hub: an exported encoder, `pretraining/` or `checkpoint-N` of a run.

    Raises:
        UsageError: There is none, it cannot be read, or it needs code of its own.
    """
    try:
        is_ours = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type == "text_jepa"
        model = (TextJepaForPreTraining if is_ours else AutoModel).from_pretrained(source, trust_remote_code=False)
        return model.eval(), AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError, UnpicklingError) as error:
        raise UsageError(f"{source}: no model can be read there ({first_line(error)})") from error
