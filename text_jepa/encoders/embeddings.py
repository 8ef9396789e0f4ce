"""Opens any encoder, and turns texts into vectors.

Functions that run a model leave its weights alone, compute no gradients and switch it to eval mode. Texts are batched
by length, and run on CUDA in bfloat16 if the device supports it.

Shapes: N texts or pairs, W windows of texts, S tokens of the longest one, V tokens of the vocabulary, D features,
L layers, Q queries.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModel, BatchEncoding, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, without_adapters
from text_jepa.cli import UsageError
from text_jepa.data.tokenization import special_tokens_around, vocabulary
from text_jepa.data.word_weights import WORD_WEIGHTS_FOLDER, load_word_weights
from text_jepa.encoders.opening import check_loaded, check_states, read_config, read_tokenizer, readable
from text_jepa.encoders.sentence_head import (
    NO_LIMIT,
    SentenceHead,
    check_stated_length,
    file_of,
    kept_head,
    read_head,
    read_json,
    settings_of_transformer,
)


Which = Literal["target", "context"]

# The modules of sentence-transformers, each a subfolder and a type. Every version of it knows these names.
TRANSFORMER_MODULE = ("", "sentence_transformers.models.Transformer")
WORD_WEIGHTS_MODULE = (WORD_WEIGHTS_FOLDER, "sentence_transformers.models.WordWeights")
POOLING_MODULE = "sentence_transformers.models.Pooling"
Pooling = Literal["mean", "cls"]

# Largest window in tokens if neither the folder nor the user names one.
_LONGEST_WINDOW = 512


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder with all that is needed to turn a text into a vector.

    Args:
        name: The name of the encoder in tables and messages.
        model: Any encoder with `last_hidden_state`.
        tokenizer: The tokenizer of the encoder.
        max_length: Tokens of a window, special ones included; longer texts are read in several windows.
        pooling: `"mean"` over the tokens, `"cls"`, the state of the first one, or another one of `POOLINGS`.
        word_weights: (V,) weight of each token of the vocabulary in the mean; `None` if all count the same.
        layers_after: What is done with a pooled vector, in order, such as a dense layer.
        prompt: What is put before every text.
        head: The modules and prompts of its folder, if these are used.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128
    pooling: str = "mean"
    word_weights: np.ndarray | None = None
    layers_after: tuple[torch.nn.Module, ...] = ()
    prompt: str = ""
    head: SentenceHead | None = None

    @property
    def search_prompts(self) -> tuple[str, str]:
        """What is put in place of the prompt before a query, and before a passage, of a search.

        Raises:
            UsageError: Prompts of its folder are not texts.
        """
        return ("", "") if self.head is None else self.head.search_prompts


def open_encoder(
    name_or_path: str,
    max_length: int | None = None,
    pooling: Pooling | None = None,
    **options,
) -> Encoder:
    """Opens any encoder: a plain one, an exported one, `pretraining/` or `checkpoint-N` of a run.

    For a pretraining model this is the encoder that would be exported, with its last weights: the target encoder if it
    is a moving average, else the context encoder. No code of the folder is run. The encoder is moved to the GPU if
    there is one.

    Args:
        name_or_path: Folder or name on the Hub.
        max_length: Tokens of a window. Defaults to what the folder says, at most 512 and what the encoder has
            positions for.
        pooling: `"mean"` (all tokens count the same) or `"cls"`, and nothing else. Defaults to what the folder's
            sentence-transformers files say, with word weights, dense layers, normalization and a default prompt, or to
            the plain mean if there are none.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: There is no encoder, it cannot be read, its pooling is not supported, or texts of `max_length` do
            not fit.
    """
    model, tokenizer = load_trained(name_or_path, **options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    if max_length is None:
        max_length = min(whole_length(name_or_path, model, tokenizer, **options), _LONGEST_WINDOW)
    check_max_length(name_or_path, max_length, model, tokenizer)

    if isinstance(model, TextJepaForPreTraining):
        encoder = encoder_inside(model, tokenizer, max_length, name=name_or_path)
        head = kept_head(read_json(name_or_path, "card.json", **options))
    else:
        encoder = Encoder(name_or_path, model, tokenizer, max_length)
        head = read_head(name_or_path, **options) if pooling is None else None
    if pooling is None and head is not None:
        encoder = with_head(encoder, head)
    if pooling is not None:
        encoder = replace(encoder, pooling=pooling, word_weights=None)
    return encoder


def longest_text(config: PretrainedConfig) -> int | None:
    """Longest text, in tokens, that an encoder has positions for; `None` if the architecture sets no limit."""
    if not isinstance(config, TextJepaConfig):
        # With a predictor that goes with encoders of any width. A copy, for the original would lose its attention.
        config = TextJepaConfig(text_config=copy.deepcopy(config), pred_hidden_size=2, pred_num_attention_heads=1)
    return config.max_text_length


def whole_length(
    source: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    **options,
) -> int:
    """Longest text in tokens that an encoder reads at once, as in sentence-transformers.

    Args:
        source: Folder or name on the Hub.
        model: The encoder, or a pretraining model.
        tokenizer: Its tokenizer.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Returns:
        What the folder states, at most what the encoder has positions for; `NO_LIMIT` if there is no limit.

    Raises:
        UsageError: What the folder states is not a number of tokens.
    """
    stated_length = _stated_length(source, **options) or tokenizer.model_max_length
    check_stated_length(source, stated_length)
    return int(min(stated_length, longest_text(model.config) or NO_LIMIT))


def check_max_length(
    name: str,
    max_length: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Checks that an encoder takes texts of a length, and that such a text has a token beside the special ones.

    Args:
        name: The name of the encoder in messages.
        max_length: Tokens of a text, special ones included.
        model: The encoder, or a pretraining model.
        tokenizer: Its tokenizer.

    Raises:
        UsageError: It does not, or it has none.
    """
    limit = longest_text(model.config)
    if limit is not None and max_length > limit:
        raise UsageError(f"--max_length {max_length}: {name} has positions for at most {limit} tokens; lower it")
    before, after = special_tokens_around(tokenizer)
    fewest = len(before) + len(after) + 1
    if max_length < fewest:
        raise UsageError(
            f"{name}: a length of {max_length} tokens leaves no room for text beside the special tokens; name a "
            f"--max_length of at least {fewest}"
        )


def with_head(
    encoder: Encoder,
    head: SentenceHead,
) -> Encoder:
    """The encoder with the pooling, the layers and the prompt of a folder of sentence-transformers.

    Word weights are those of the encoder, if it has some, else those of the folder.

    Raises:
        UsageError: The word weights of the folder cannot be read, or its layers do not fit the encoder.
    """
    word_weights = encoder.word_weights
    if word_weights is None and (WORD_WEIGHTS_FOLDER, "WordWeights") in head.modules:
        word_weights = _read_word_weights(head, encoder.tokenizer)
    layers = tuple(layer.to(encoder.model.device) for layer in head.layers)
    _check_width(layers, encoder.model, head.source)
    return replace(
        encoder,
        pooling=head.pooling,
        word_weights=word_weights,
        layers_after=layers,
        prompt=head.prompt,
        head=head,
    )


def _check_width(layers: Sequence[torch.nn.Module], model: PreTrainedModel, source: str) -> None:
    """Raises UsageError unless the layers of a head take the vectors of the model."""
    width = model.config.hidden_size
    vectors = torch.zeros(1, width, device=model.device)
    try:
        with torch.no_grad():
            for layer in layers:
                vectors = layer(vectors)
    except RuntimeError as error:
        raise UsageError(f"{source}: its modules do not take the {width} features of its encoder") from error


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
        tokenizer: The tokenizer that it is trained with. It is copied, because the truncation that is asked of it
            would end up in the files that a run saves.
        max_length: Tokens of a window.
        which: `"target"` or `"context"`, see `trained_encoder`.
        name: The name of the encoder in tables.
    """
    return Encoder(
        name,
        trained_encoder(model, which),
        copy.deepcopy(tokenizer),
        max_length,
        pooling=sentence_pooling(model.config),
        word_weights=trained_word_weights(model, tokenizer),
    )


def load_trained(source: str, **options) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A finished model with its tokenizer: a [`TextJepaForPreTraining`] or an encoder of any architecture.

    Args:
        source: Folder or name on the Hub: an exported encoder, `pretraining/` or `checkpoint-N` of a run.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: There is none, it cannot be read or is not whole, it needs code of its own, or it cannot be run on
            ids and a mask.
    """
    with readable(source):
        config = read_config(source, **options)
        model_class = TextJepaForPreTraining if config.model_type == "text_jepa" else AutoModel
        model, report = model_class.from_pretrained(
            source,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    with readable(source, "no tokenizer there"):
        tokenizer = read_tokenizer(source, **options)
    check_loaded(source, model, report, tokenizer)
    if model_class is AutoModel:  # what a run has left was tried when the run began
        check_states(source, model, tokenizer)
    return model.eval(), tokenizer


def trained_encoder(
    model: TextJepaForPreTraining,
    which: Which = "target",
) -> PreTrainedModel:
    """The stock encoder inside: the moving average (`"target"`), if there is one, or the one that was optimised.

    A frozen target encoder is what the run started from, never what it made.
    """
    if which == "target" and model.config.target_encoder_type == "ema":
        return without_adapters(model.encoder_of_targets)
    return without_adapters(model.model.encoder)


def sentence_pooling(config: TextJepaConfig) -> Pooling:
    """The pooling of an exported encoder: its first token if the configuration says so, whatever was trained."""
    return "cls" if config.pooling == "cls" else "mean"


def trained_word_weights(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
) -> np.ndarray | None:
    """The word weights (V,) float32 that a model pools with; `None` if it was trained with another pooling.

    The model may have more embeddings than there are tokens.
    """
    if model.word_weights is None:
        return None
    tokens = len(vocabulary(tokenizer))
    weights = model.word_weights[:tokens]
    return weights.float().cpu().numpy()


# ---- what a folder states -------------------------------------------------------------------------------------------


def _stated_length(source: str, **options) -> int | None:
    """Tokens of a text, according to the files of sentence-transformers or of a pretraining run."""
    exported = settings_of_transformer(source, **options)
    pretrained = read_json(source, "card.json", **options) or {}
    return exported.get("max_seq_length") or pretrained.get("max_length")


def _read_word_weights(head: SentenceHead, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The weights (V,) of the module `WordWeights` of a folder.

    Raises:
        UsageError: They are missing, cannot be read, or are not those of the tokenizer's vocabulary.
    """
    name = f"{WORD_WEIGHTS_FOLDER}/model.safetensors"
    path = file_of(head.source, name, **head.options)
    weights = None
    if path is not None:
        with readable(head.source, f"{name} cannot be read, copy it again"):
            weights = load_word_weights(path.parent.parent)
    if weights is None or len(weights) != len(vocabulary(tokenizer)):
        raise UsageError(f"{head.source}: {name} is missing or of another tokenizer; copy it again")
    return weights


# ---- texts to vectors -----------------------------------------------------------------------------------------------


def embed_texts(
    encoder: Encoder,
    texts: Sequence[str],
    batch_size: int = 64,
    layers: int = 1,
) -> np.ndarray:
    """Vectors of texts, which are read in full.

    A text longer than `max_length` is read in windows, with special tokens around each. Its vector is the weighted
    mean over the tokens of all windows, or the mean of their first states (`"cls"`).

    Args:
        encoder: The encoder, with its pooling.
        texts: N texts, or a single one.
        batch_size: Windows per forward pass.
        layers: Number of last hidden states that are averaged.

    Returns:
        (N, D) float32, or (D,) for a single text; zeros for a text without weighted tokens. For a text of one window
        this is what sentence-transformers gives.
    """
    if isinstance(texts, str):
        return embed_texts(encoder, [texts], batch_size, layers)[0]
    states = _pooled_states(encoder, texts, batch_size, layers)
    return finish_vectors(encoder, states.mean(axis=0))


@torch.no_grad()
def finish_vectors(
    encoder: Encoder,
    vectors: np.ndarray,
) -> np.ndarray:
    """Vectors (N, D) after the layers behind the pooling, of which most encoders have none."""
    if not encoder.layers_after:
        return vectors
    finished = torch.from_numpy(vectors).to(encoder.model.device)
    for layer in encoder.layers_after:
        finished = layer(finished)
    return finished.cpu().numpy()


def embed_layers(
    encoder: Encoder,
    texts: Sequence[str],
    batch_size: int = 64,
) -> np.ndarray:
    """Vectors of texts by the embeddings and by each of the L layers, from one pass over the texts.

    Returns:
        (L + 1, N, D) float32, or (L + 1, D) for a single text. The mean of the last K rows, finished by
        `finish_vectors`, equals `embed_texts` with `layers=K`, because pooling and averaging commute (but for
        `"max"`).
    """
    if isinstance(texts, str):
        return embed_layers(encoder, [texts], batch_size)[:, 0]
    return _pooled_states(encoder, texts, batch_size, layers=None)


def _pooled_states(
    encoder: Encoder,
    texts: Sequence[str],
    batch_size: int,
    layers: int | None,
) -> np.ndarray:
    """(layers, N, D) float32; all layers for `None`."""
    if not len(texts):
        nothing = _pooled_states(encoder, [""], batch_size, layers)  # of as many layers and features
        return nothing[:, :0]
    if encoder.prompt:
        texts = [encoder.prompt + text for text in texts]
    encoded, text_of = _split_windows(encoder, texts)
    is_max = encoder.pooling == "max"
    total_weights = torch.zeros(len(texts), 1)
    sums = None
    for rows, states, batch in _hidden_states(encoder, encoded, len(texts), batch_size, layers):
        weights = token_weights(encoder, batch)
        states = states.float()
        if is_max:
            of_windows = states.masked_fill(weights[..., None] == 0, -torch.inf).amax(dim=2).cpu()
        else:
            of_windows = (states * weights[..., None]).sum(dim=2).cpu()
        if sums is None:
            depth = of_windows.shape[0]
            width = of_windows.shape[-1]
            sums = torch.full((depth, len(texts), width), -torch.inf if is_max else 0.0)
        if is_max:
            sums.index_reduce_(1, text_of[rows], of_windows, "amax")
            continue
        sums.index_add_(1, text_of[rows], of_windows)
        total_weights.index_add_(0, text_of[rows], weights.sum(dim=1, keepdim=True).cpu())
    if is_max:
        return sums.numpy()
    if encoder.pooling == "mean_sqrt_len_tokens":
        total_weights = total_weights.sqrt()
    means = sums / total_weights.clamp(min=1e-9)
    return means.numpy()


def _split_windows(
    encoder: Encoder,
    texts: Sequence[str],
) -> tuple[BatchEncoding, torch.Tensor]:
    """The W windows of all texts, at least one of each, with special tokens; and the text (W,) of each window."""
    # Not by the tokenizer's own overflow: tokenizers 0.23.2 loses tokens there.
    before, after = special_tokens_around(encoder.tokenizer)
    room = encoder.max_length - len(before) - len(after)
    encoded = encoder.tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    windows = []
    text_of = []
    for text, ids in enumerate(encoded["input_ids"]):
        length = max(len(ids), 1)
        for start in range(0, length, room):
            windows.append([*before, *ids[start : start + room], *after])
            text_of.append(text)
    masks = [[1] * len(window) for window in windows]
    return BatchEncoding({"input_ids": windows, "attention_mask": masks}), torch.tensor(text_of)


def token_weights(
    encoder: Encoder,
    batch: BatchEncoding,
) -> torch.Tensor:
    """Weight of each token of a batch in the vector of its text, by the encoder's pooling.

    Args:
        encoder: The encoder.
        batch: `input_ids` and `attention_mask`, each (B, S).

    Returns:
        (B, S) float32, 0 for padding. Of the maximum it is the same for all tokens.
    """
    mask = batch["attention_mask"].float()
    if encoder.pooling == "cls":
        first = mask.argmax(dim=1, keepdim=True)
        return torch.zeros_like(mask).scatter(1, first, 1)
    if encoder.pooling == "lasttoken":
        last = (mask.cumsum(dim=1) * mask).argmax(dim=1, keepdim=True)
        return torch.zeros_like(mask).scatter(1, last, 1)
    if encoder.pooling == "weightedmean":
        return mask * mask.cumsum(dim=1)  # places in the text, on whichever side the padding is
    if encoder.word_weights is None:
        return mask
    word_weights = torch.as_tensor(encoder.word_weights, dtype=torch.float32, device=mask.device)
    return word_weights[batch["input_ids"]] * mask


def pool_states(
    encoder: Encoder,
    states: torch.Tensor,
    batch: BatchEncoding,
) -> torch.Tensor:
    """Vectors (B, D) of texts from the states (B, S, D) of their tokens, each text in one window."""
    weights = token_weights(encoder, batch).unsqueeze(-1)
    if encoder.pooling == "max":
        vectors = states.masked_fill(weights == 0, -torch.inf).amax(dim=1)
    else:
        total = weights.sum(dim=1)
        if encoder.pooling == "mean_sqrt_len_tokens":
            total = total.sqrt()
        vectors = (states * weights).sum(dim=1) / total.clamp(min=1e-9)
    for layer in encoder.layers_after:
        vectors = layer(vectors)
    return vectors


# ---- token states ---------------------------------------------------------------------------------------------------


class TokenStates(NamedTuple):
    """States (N, S, D) of the tokens of N texts, and mask (N, S): 1 for a token, 0 for padding."""

    states: np.ndarray
    mask: np.ndarray


def token_states(
    encoder: Encoder,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = 64,
    layers: int = 1,
) -> TokenStates:
    """Hidden states of every token, special ones included.

    Texts longer than the encoder's `max_length` are truncated.

    Args:
        encoder: The encoder; its pooling is not used.
        texts: N texts.
        pairs: N second texts, if any. A pair is one text in the tokenizer's own pair format.
        batch_size: Texts per forward pass.
        layers: Number of last hidden states that are averaged.

    Returns:
        States (N, S, D) float16, zeros for padding, and mask (N, S). The states of 10,000 texts of 64 tokens take 1 GB
        at 768 features.
    """
    second = None if pairs is None else list(pairs)
    encoded = encoder.tokenizer(list(texts), second, truncation=True, max_length=encoder.max_length)
    accepted = inspect.signature(encoder.model.forward).parameters
    if pairs is None or "token_type_ids" not in accepted:
        encoded.pop("token_type_ids", None)

    states_of: list[Any] = [None] * len(texts)
    masks: list[Any] = [None] * len(texts)
    for rows, states, batch in _hidden_states(encoder, encoded, len(texts), batch_size, layers):
        averaged = states.float().mean(dim=0).half().cpu().numpy()
        present = batch["attention_mask"].cpu().numpy()
        for place, row in enumerate(rows):
            states_of[row] = averaged[place]
            masks[row] = present[place]

    longest = max(len(mask) for mask in masks)
    width = states_of[0].shape[-1]
    padded = np.zeros((len(texts), longest, width), np.float16)
    padded_mask = np.zeros((len(texts), longest), np.int64)
    for row, state in enumerate(states_of):
        mask = masks[row]
        padded[row, : len(state)] = state * mask[:, None]
        padded_mask[row, : len(mask)] = mask
    return TokenStates(padded, padded_mask)


@torch.no_grad()
def _hidden_states(
    encoder: Encoder,
    encoded: BatchEncoding,
    texts: int,
    batch_size: int,
    layers: int | None,
) -> Iterator[tuple[list[int], torch.Tensor, BatchEncoding]]:
    """Rows of a batch (B), its last hidden states (layers, B, S, D), and the batch; all layers for `None`."""
    model = encoder.model.eval()
    device = model.device
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    # The bar counts tokens, because texts become longer on the way.
    bar = tqdm(
        total=sum(lengths),
        unit=" tokens",
        unit_scale=True,
        desc=f"Embedding {texts:,} texts",
        disable=None,
        leave=False,
    )
    with bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            columns = {name: [values[row] for row in rows] for name, values in encoded.items()}
            batch = encoder.tokenizer.pad(columns, return_tensors="pt").to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16):
                output = model(**batch, output_hidden_states=layers != 1)
            yield rows, _last_states(output, layers), batch
            bar.update(sum(lengths[row] for row in rows))


def _last_states(
    output: ModelOutput,
    layers: int | None,
) -> torch.Tensor:
    """The last hidden states (layers, B, S, D); all of them for `None`."""
    if layers == 1:
        return output.last_hidden_state[None]
    # The last one of the tuple may lack the final norm; without a layer there is none.
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    if layers is None:
        return torch.stack(states)
    if layers > len(states):
        raise ValueError(f"{layers} layers are more than its {len(states)} with the embeddings")
    return torch.stack(states[-layers:])


# ---- vectors --------------------------------------------------------------------------------------------------------


def nearest_texts(
    vectors: np.ndarray,
    queries: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other row of each query, by cosine of the centred vectors.

    Args:
        vectors: (N, D).
        queries: Q row numbers.

    Returns:
        Rows (Q,) and cosines (Q,).
    """
    centred = centre(vectors)
    cosines = np.stack([cosine(centred[row], centred) for row in queries])
    numbers = np.arange(len(queries))
    cosines[numbers, list(queries)] = -np.inf
    nearest = cosines.argmax(axis=1)
    return nearest, cosines[numbers, nearest]


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows (..., D) scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / lengths.clip(min=1e-12)


def centre(
    x: np.ndarray,
    by: np.ndarray | None = None,
) -> np.ndarray:
    """Rows minus the mean row of `by`, or of themselves.

    The mean is taken about the first row, so that equal rows centre to exact zeros instead of a rounding error whose
    direction a cosine would then measure.

    Args:
        x: (N, D).
        by: (M, D).

    Returns:
        (N, D).
    """
    if by is None:
        by = x
    first_row = by[:1]
    offset = (by - first_row).mean(axis=0)
    return (x - first_row) - offset


def cosine(
    u: np.ndarray,
    v: np.ndarray,
) -> np.ndarray:
    """Cosine of each row of `u` with the row of `v` (..., D); 0 for rows of zeros."""
    products = unit_rows(u) * unit_rows(v)
    return products.sum(axis=-1)
