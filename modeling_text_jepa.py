# Copyright 2026 The Text-JEPA Authors. Licensed under the Apache License, Version 2.0.
"""Text-JEPA: a text encoder that learns by predicting latent representations of text that it does not see.

    text ─► ids (B,S) ─► TARGET ENCODER (moving average, no gradient, sees everything) ─► targets (B,S,D)
              │                                                                            │ at hidden positions
              └─ visible ids (B·M,C) ─► CONTEXT ENCODER ─► PREDICTOR ─► predictions (B,M,T,D) ─► latent loss
                                             │                    └─► token grounding (tied embedding)
                                             └─ pooled (B·M,D) ─► DOCUMENT PREDICTOR ─► document loss against the
                                                                  │    rest of the document (B,F) in a fixed space
                                                                  └─► sentence loss against the pooled text or view
                                                                      (B,D), variance, covariance, SIGReg

Shapes: B texts, S tokens of a padded text, S' of a padded view, M masks (draws of context and spans) per text, R = B·M
rows, C context tokens, T target tokens, N = C + T, D width of the encoder, P width of the predictor, F width of the
targets of documents, V size of the vocabulary, L layers.

Every term of the loss is `<name>_loss`, weighted by the field `<name>_loss_weight` of the configuration.
Both encoders are stock architectures of transformers: either exports as an ordinary checkpoint of its own kind.
"""

import copy
import inspect
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import maybe_autocast


try:
    from .configuration_text_jepa import TextJepaConfig
except ImportError:
    from configuration_text_jepa import TextJepaConfig


@dataclass
class TextJepaForPreTrainingOutput(ModelOutput):
    """
    Output of [`TextJepaForPreTraining`]. Terms of the loss are unweighted scalars; a term of weight 0 is `None`.

    Args:
        loss (`torch.FloatTensor`):
            Weighted sum of the terms below.
        latent_loss (`torch.FloatTensor`):
            Distance between predictions and targets, mean over target tokens.
        token_loss (`torch.FloatTensor`):
            Cross-entropy of the hidden tokens, mean over target tokens; in training, over those that are candidates.
        document_loss (`torch.FloatTensor`):
            Distance between the predicted and the true vector of the rest of a document.
        sentence_loss (`torch.FloatTensor`):
            Distance between predicted and true vectors of texts.
        similarity_loss (`torch.FloatTensor`):
            Divergence between how the beginnings of texts resemble each other to the context encoder and to the
            target encoder.
        variance_loss, covariance_loss, sigreg_loss (`torch.FloatTensor`):
            Regularizers.
        distances (`torch.FloatTensor` of shape `(B, M, T)`):
            The latent loss of each target token, 0 where unused.
        predictions, targets (`torch.FloatTensor` of shape `(B, M, T, D)`):
            Representations of the hidden tokens: the predictor's and the target encoder's; `None` without a latent
            loss.
        text_targets (`TextTargets`):
            The targets that do not depend on the masks, see [`~TextJepaForPreTraining.compute_targets`].
        last_hidden_state (`torch.FloatTensor` of shape `(B·M, C, D)`, or `(B, S, D)` without masks):
            States at the last layer of the context encoder. `None` where only the distinct words were encoded: by an
            encoder without layers, on a CPU, if no term of the loss reads the states of tokens;
            `output_hidden_states=True` prevents it.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*, returned when asked for):
            States at all layers of the context encoder, and its attention weights.
    """

    loss: torch.FloatTensor | None = None
    latent_loss: torch.FloatTensor | None = None
    token_loss: torch.FloatTensor | None = None
    document_loss: torch.FloatTensor | None = None
    sentence_loss: torch.FloatTensor | None = None
    similarity_loss: torch.FloatTensor | None = None
    variance_loss: torch.FloatTensor | None = None
    covariance_loss: torch.FloatTensor | None = None
    sigreg_loss: torch.FloatTensor | None = None
    distances: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    targets: torch.FloatTensor | None = None
    text_targets: ModelOutput | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class TokenMasks(NamedTuple):
    """Which tokens are visible and which are predicted, see [`TextJepaForPreTraining.forward`]."""

    context_positions: torch.Tensor
    target_positions: torch.Tensor
    target_spans: torch.Tensor
    strategies: torch.Tensor | None

    @property
    def is_target(self) -> torch.Tensor:
        """(B, M, T) boolean, False for unused slots."""
        return self.target_positions >= 0

    @property
    def num_targets(self) -> torch.Tensor:
        """The number of target tokens, at least 1."""
        return self.is_target.sum().clamp(min=1)


class ContextStates(NamedTuple):
    """The outputs of the context encoder for the visible tokens."""

    # The encoder's output: `last_hidden_state` (R, C, D), and hidden states and attentions if asked for. Empty if the
    # encoder has only encoded the distinct words.
    output: BaseModelOutput
    # (R, C) boolean, False for unused slots.
    is_visible: torch.Tensor
    # States of the mask tokens at the target positions (R, T, D); `None` unless `context_mode="mask_token"`.
    query_states: torch.Tensor | None
    # Vectors of the contexts (R, D); `None` if no part of the model reads them.
    pooled: torch.Tensor | None
    # Vectors of the beginnings of the texts (B, D); `None` without a similarity loss.
    beginnings: torch.Tensor | None = None


class TokenPredictions(NamedTuple):
    """The outputs of the predictor for the hidden tokens; `None` for those that no term of the loss reads."""

    # The predictor's features (R, T, P).
    features: torch.Tensor | None = None
    # Predicted and true representations (B, M, T, D).
    predictions: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    # The latent loss of each target token (B, M, T), 0 where unused.
    distances: torch.Tensor | None = None


@dataclass
class TextTargets(ModelOutput):
    """
    Targets that all masks of a text share; `None` for a term of weight 0.

    Args:
        tokens (`torch.FloatTensor` of shape `(B, S, D)`): Token-level targets.
        sentences (`torch.FloatTensor` of shape `(B, D)`): Vectors of texts, for the sentence loss.
        documents (`torch.FloatTensor` of shape `(B, F)`): Vectors of the rest of each document.
        beginnings (`torch.FloatTensor` of shape `(B, D)`):
            Vectors of the beginnings of texts, whose similarities are kept.
    """

    tokens: torch.FloatTensor | None = None
    sentences: torch.FloatTensor | None = None
    documents: torch.FloatTensor | None = None
    beginnings: torch.FloatTensor | None = None


# ---- several processes ----------------------------------------------------------------------------------------------


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world_size() > 1 else 0


class _SumOfProcesses(torch.autograd.Function):
    """All-reduce (sum) with gradient, which is summed over processes in turn."""

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _SumOfProcesses.apply(gradient)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of the values of all processes, with gradient."""
    return _SumOfProcesses.apply(values) if _world_size() > 1 else values


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """All-gather with gradient of rows (n, …); n may differ between processes.

    Every process computes the same loss of all rows. `backward` sums over processes, so that the mean over processes,
    which data-parallel training takes, is the exact gradient.

    Returns:
        The rows of all processes in the order of their ranks, and the number of rows before those of this process.
    """
    if _world_size() == 1:
        return rows, 0
    counts = torch.zeros(_world_size(), dtype=torch.long, device=rows.device)
    counts[_rank()] = len(rows)
    dist.all_reduce(counts)
    ends = counts.cumsum(dim=0).tolist()  # the only point at which the host waits for the device
    end = ends[_rank()]
    rows_before = end - len(rows)
    rows_after = ends[-1] - end
    padding = [0, 0] * (rows.dim() - 1) + [rows_before, rows_after]
    return _SumOfProcesses.apply(F.pad(rows, padding)), rows_before


# ---- pooling and positions ------------------------------------------------------------------------------------------


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the tokens that the mask keeps: (B, S, D) and (B, S) -> (B, D)."""
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    weights = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def weighted_sum_of_tokens(hidden_states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of tokens (B, S, D) by weights (B, S) -> (B, D), in the precision of the states."""
    # A matrix product, because weighting the states first would copy all of them; autocast would round it.
    with maybe_autocast(hidden_states.device.type, enabled=False):
        return torch.bmm(weights.to(hidden_states.dtype).unsqueeze(1), hidden_states).squeeze(1)


def weighted_mean_pool(hidden_states: torch.Tensor, token_weights: torch.Tensor) -> torch.Tensor:
    """Mean of tokens (B, S, D) by weights (B, S), 0 for padding -> (B, D), zeros if all weights are 0."""
    weights = token_weights.to(hidden_states.dtype)
    summed = weighted_sum_of_tokens(hidden_states, weights)
    return summed / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


def weighted_mean_of_rows(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of the rows (R, N) of a table (W, D) by weights (R, N) -> (R, D), zeros if all weights are 0."""
    weights = weights.to(table.dtype)
    summed = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
    return summed / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


def gather_positions(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Values (B, S, …) at positions (B, …, K) -> (B, …, K, …); an unused slot, -1, reads position 0."""
    index = positions.clamp(min=0)
    rows = torch.arange(len(values), device=values.device)
    rows = rows.view(-1, *[1] * (index.dim() - 1))
    return values[rows, index]


# ---- targets --------------------------------------------------------------------------------------------------------


def moments(
    values: torch.Tensor,
    weights: torch.Tensor,
    dims: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and variance over dimensions, which are kept with size 1.

    Args:
        values: (…, D).
        weights: (…, 1), 0 for padding.
        dims: The dimensions; 0 extends over all processes.
    """
    mean = _weighted_average(values, weights, dims)
    # Not E[x²] - E[x]², which loses all digits in an outlier dimension.
    variance = _weighted_average((values - mean).square(), weights, dims)
    return mean, variance


def _weighted_average(
    values: torch.Tensor,
    weights: torch.Tensor,
    dims: tuple[int, ...],
) -> torch.Tensor:
    sums = torch.cat([weights * values, weights], dim=-1).sum(dims, keepdim=True)
    if 0 in dims:
        sums = sum_over_processes(sums)
    total_weight = sums[..., -1:].clamp(min=1e-6)
    return sums[..., :-1] / total_weight


def average_layers(
    hidden_states: Sequence[torch.Tensor],
    attention_mask: torch.Tensor,
    normalization: str,
    running: Sequence[nn.Module] | None = None,
) -> torch.Tensor:
    """Token-level targets from the layers of an encoder: the layer norm of the mean of normalized layers.

    Args:
        hidden_states: K layers (B, S, D).
        attention_mask: (B, S).
        normalization: `TextJepaConfig.target_normalization`: `"layer"` as in data2vec for text (arXiv 2202.03555,
            section 4.3), `"instance"` as in data2vec 2.0 (arXiv 2212.07525).
        running: K [`RunningMoments`], for `normalization="running"`.

    Returns:
        Targets (B, S, D) in float32.
    """
    weights = attention_mask.unsqueeze(-1).float()
    total = 0
    for number, layer in enumerate(hidden_states):
        layer = layer.float()
        if normalization == "layer":
            layer = F.layer_norm(layer, layer.shape[-1:])
        elif normalization == "instance":
            layer = _standardize(layer, *moments(layer, weights, dims=(1,)))
        elif normalization == "batch":
            layer = _standardize(layer, *moments(layer, weights, dims=(0, 1)))
        elif normalization == "running":
            layer = _standardize(layer, *running[number](layer, weights))
        total = total + layer
    average = total / len(hidden_states)
    return F.layer_norm(average, average.shape[-1:])


def _standardize(values: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return (values - mean) * torch.rsqrt(variance + 1e-5)


def whitening(covariance: torch.Tensor) -> torch.Tensor:
    """The ZCA matrix (D, D), covariance^(-1/2), that decorrelates vectors of a covariance (D, D) (arXiv 1512.00809).

    A ridge of a tenth of the mean variance limits the amplification of noise. Newton-Schulz iterations need only
    matrix products; eigendecompositions are slow or missing on some accelerators. Each iteration multiplies the root
    of the smallest eigenvalue, which is at least that of 0.1 / D, by one and a half: 18 are enough for a D of 4,096
    and one direction with all of the variance.
    """
    identity = torch.eye(len(covariance), device=covariance.device)
    ridge = 0.1 * covariance.trace() / len(covariance) + 1e-6
    regularized = covariance + ridge * identity
    scale = regularized.norm()
    root = regularized / scale  # eigenvalues between 0 and 1, for which the iteration converges
    inverse_root = identity
    for _ in range(18):
        step = 1.5 * identity - 0.5 * inverse_root @ root
        root = root @ step
        inverse_root = step @ inverse_root
    return inverse_root * scale.rsqrt()


# ---- losses ---------------------------------------------------------------------------------------------------------


def latent_distance(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    loss_type: str,
    smooth_l1_beta: float,
) -> torch.Tensor:
    """Distance of predictions to targets, both (…, D) -> (…): 1 - cos for `"cosine"`, else averaged over features."""
    if loss_type == "cosine":
        return 1 - F.cosine_similarity(predictions, targets, dim=-1)
    if loss_type == "mse":
        distances = F.mse_loss(predictions, targets, reduction="none")
    elif loss_type == "l1":
        distances = F.l1_loss(predictions, targets, reduction="none")
    else:
        distances = F.smooth_l1_loss(predictions, targets, reduction="none", beta=smooth_l1_beta)
    return distances.mean(dim=-1)


def infonce_distance(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    target_rows: torch.Tensor | None = None,
    target_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE (arXiv 1807.03748): each prediction has to find its target, by cosine, among those of all processes.

    Args:
        predictions: (n, D).
        targets: (m, D).
        temperature: Cosines are divided by this.
        target_rows: (n,), the row of each prediction's target. Defaults to the prediction's own row.
        target_ids: (m,), targets with equal ids, on this or another process, are not negatives of each other.

    Returns:
        Cross-entropies (n,).
    """
    if target_rows is None:
        target_rows = torch.arange(len(predictions), device=predictions.device)
    all_targets, rows_before = gather_rows(targets)
    cosines = F.normalize(predictions, dim=-1) @ F.normalize(all_targets, dim=-1).T
    logits = cosines / temperature
    labels = target_rows + rows_before
    if target_ids is not None:
        all_ids, _ = gather_rows(target_ids)
        columns = torch.arange(len(all_targets), device=target_ids.device)
        has_same_id = target_ids[target_rows].unsqueeze(1) == all_ids
        is_other_row = labels.unsqueeze(1) != columns
        logits = logits.masked_fill(has_same_id & is_other_row, -torch.inf)
    return F.cross_entropy(logits, labels, reduction="none")


def similarity_loss(vectors: torch.Tensor, references: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilistic knowledge transfer (arXiv 1803.10837): how texts resemble each other is to stay as it was.

    Args:
        vectors: (n, D).
        references: (n, F), other vectors of the same texts.
        temperature: Cosines are divided by this.

    Returns:
        The mean Kullback-Leibler divergence between the softmax over the cosines of a text to all others by
        `references` and that by `vectors`; 0 for fewer than three texts.
    """
    divergence = F.kl_div(
        _log_similarities(vectors, temperature),
        _log_similarities(references, temperature),
        reduction="none",
        log_target=True,
    )
    return divergence.sum(dim=-1).mean()


def _log_similarities(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """Vectors (n, D) -> log-probabilities (n, n) of the other texts in each row."""
    normalized = F.normalize(vectors, dim=-1)
    logits = normalized @ normalized.T / temperature
    is_itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    # Not minus infinity, of which a divergence of 0 would be NaN.
    return logits.masked_fill(is_itself, torch.finfo(logits.dtype).min / 2).log_softmax(dim=-1)


def variance_loss(vectors: torch.Tensor) -> torch.Tensor:
    """VICReg's hinge (arXiv 2105.04906, eq. 1): how far standard deviations of (n, D) are below 1, averaged."""
    standard_deviations = (vectors.var(dim=0) + 1e-4).sqrt()
    return F.relu(1 - standard_deviations).mean()


def covariance_loss(vectors: torch.Tensor) -> torch.Tensor:
    """VICReg's decorrelation (eq. 4): the sum of squared covariances of different features of (n, D), divided by D."""
    vectors = vectors - vectors.mean(dim=0)
    covariance = vectors.T @ vectors / (len(vectors) - 1)
    squares = covariance.square().sum()
    squares_of_variances = covariance.diagonal().square().sum()
    return (squares - squares_of_variances) / vectors.shape[1]


def sigreg_loss(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Epps-Pulley statistic of (n, D) along unit directions (D, slices) against N(0, 1), averaged over the slices.

    n times the weighted squared distance of characteristic functions, integrated by the trapezoid rule over 17 knots
    from 0 to 3, and doubled, as it is symmetric (LeJEPA, arXiv 2511.08544). The factor n is part of the statistic;
    without it the term would be negligible.
    """
    knots = torch.linspace(0, 3, 17, device=vectors.device)
    gaussian = torch.exp(-knots.square() / 2)
    angles = (vectors @ directions).unsqueeze(-1) * knots
    real_error = angles.cos().mean(dim=0) - gaussian
    imaginary_error = angles.sin().mean(dim=0)
    error = real_error.square() + imaginary_error.square()
    integral = torch.trapezoid(error * gaussian, knots, dim=-1)
    return len(vectors) * 2 * integral.mean()


def sample_candidates(
    labels: torch.Tensor,
    vocab_size: int,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The candidates of a sampled softmax: the tokens of the batch, the most frequent first, then random ones.

    If the batch has more distinct tokens than `count`, the labels of the rarest become -100. Shapes are fixed and
    nothing is copied to the host.

    Args:
        labels: Token ids of any shape, -100 where there is none.
        vocab_size: V.
        count: Number of candidates, at most V.

    Returns:
        Ids of the candidates (count,), and the labels as indices into them.
    """
    is_used = labels >= 0
    ids = labels.clamp(min=0)
    frequencies = torch.zeros(vocab_size, device=labels.device)
    frequencies.scatter_add_(0, ids.flatten(), is_used.flatten().float())
    # Among equally frequent tokens, such as those that the batch does not have, chance decides.
    scores = frequencies + torch.rand(vocab_size, device=labels.device)
    candidates = scores.topk(count).indices
    slots = torch.full((vocab_size,), -100, device=labels.device)
    slots[candidates] = torch.arange(count, device=labels.device)
    return candidates, torch.where(is_used, slots[ids], -100)


# ---- predictor ------------------------------------------------------------------------------------------------------


def packed_attention_mask(context_positions: torch.Tensor, target_spans: torch.Tensor) -> torch.Tensor:
    """The predictor's attention mask: the context attends to itself, each span to the context and to itself alone.

    (R, C) and (R, T), -1 where unused -> (R, 1, N, N) boolean. Unused slots attend to themselves, because a softmax
    over an empty set is NaN.
    """
    no_spans = torch.full_like(context_positions, -1)
    spans = torch.cat([no_spans, target_spans], dim=1)
    is_target = spans >= 0
    is_context = torch.cat([context_positions >= 0, torch.zeros_like(target_spans, dtype=torch.bool)], dim=1)
    # Rows are the places that attend, columns those that are attended to.
    is_same_span = spans.unsqueeze(2) == spans.unsqueeze(1)
    is_own_span = is_same_span & is_target.unsqueeze(1)
    is_itself = torch.eye(spans.shape[1], dtype=torch.bool, device=spans.device)
    attends = is_own_span | is_context.unsqueeze(1) | is_itself
    return attends.unsqueeze(1)


def rotary_tables(
    positions: torch.Tensor,
    head_dim: int,
    theta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary embedding (arXiv 2104.09864): (R, N) -> (R, 1, N, head_dim / 2) twice, float32."""
    # Not a buffer, which would be uninitialized after `from_pretrained` has built the model on the meta device.
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() / theta**exponents
    return angles.cos(), angles.sin()


def rotate(
    states: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Rotates each pair of features (i, i + d/2) of (R, heads, N, d) by the angle of its position."""
    first, second = states.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(states.dtype)


class TextJepaPredictorLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer. Its attention is always SDPA: flash attention takes no mask of shape (N, N)."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        width = config.pred_hidden_size
        inner_width = int(width * config.pred_mlp_ratio)
        self.num_heads = config.pred_num_attention_heads
        self.attention_norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.q_proj = nn.Linear(width, width)
        self.kv_proj = nn.Linear(width, 2 * width)
        self.o_proj = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner_width),
            ACT2FN[config.pred_hidden_act],
            nn.Linear(inner_width, width),
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        query_start: int,
    ) -> torch.Tensor:
        """(R, N, P), (R, 1, N, N) and the tables of `rotary_tables` -> the rows from `query_start` on."""
        normed = self.attention_norm(hidden_states)
        query = self._split_heads(self.q_proj(normed[:, query_start:]))
        key, value = self.kv_proj(normed).chunk(2, dim=-1)
        key = self._split_heads(key)
        value = self._split_heads(value)
        if rotary is not None:
            cos, sin = rotary
            query = rotate(query, cos[:, :, query_start:], sin[:, :, query_start:])
            key = rotate(key, cos, sin)
        attended = F.scaled_dot_product_attention(query, key, value, attention_mask[:, :, query_start:])
        attended = attended.transpose(1, 2).flatten(2)
        hidden_states = hidden_states[:, query_start:] + self.o_proj(attended)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TextJepaConvLayer(GradientCheckpointingLayer):
    """Grouped convolution over the text, norm and activation beside a shortcut (the decoder of data2vec 2.0)."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        width = config.pred_hidden_size
        kernel_size = config.pred_conv_kernel_size
        self.conv = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=config.pred_conv_groups)
        self.norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.activation = ACT2FN[config.pred_hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(R, S, P) -> (R, S, P)."""
        convolved = self.conv(hidden_states.transpose(1, 2)).transpose(1, 2)
        return hidden_states + self.activation(self.norm(convolved))


class TextJepaMlpLayer(nn.Sequential):
    """Activation and linear layer, applied to each query by itself: (R, T, P) -> (R, T, P)."""

    def __init__(self, config: TextJepaConfig):
        width = config.pred_hidden_size
        super().__init__(ACT2FN[config.pred_hidden_act], nn.Linear(width, width))


class TextJepaPredictor(nn.Module):
    """Narrow network that predicts the states at the target positions from the visible states.

    A query is a learned mask token plus its position and holds nothing of the hidden token. The subclasses differ in
    how queries read the visible states, see `run_layers`.
    """

    layer_class: type[nn.Module]

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.config = config
        width = config.pred_hidden_size
        self.context_projection = nn.Linear(config.hidden_size, width)
        self.mask_tokens = nn.Parameter(torch.zeros(config.pred_num_mask_tokens, width))
        self.position_embeddings = None
        if config.pred_position_embedding_type == "learned":
            self.position_embeddings = nn.Embedding(config.max_text_length, width)
        self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config.pred_num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)

    def forward(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        target_positions: torch.Tensor,
        target_spans: torch.Tensor,
        strategies: torch.Tensor | None = None,
        query_states: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
        text_length: int | None = None,
    ) -> torch.Tensor:
        """Predicts features at the target positions.

        Args:
            states: Visible states (R, C, D).
            positions: Their positions (R, C), -1 where unused.
            target_positions: Positions to predict (R, T), -1 where unused.
            target_spans: The span of each target position (R, T), -1 where unused.
            strategies: (R,), the number of the mask token that a row uses. Defaults to the first one.
            query_states: (R, T, D), the encoder's states of mask tokens at the target positions, if it read any.
            pooled: (R, D), vectors of the contexts, added to every query if `pred_pooled_context`.
            text_length: S, for convolutions.

        Returns:
            Features (R, T, P).
        """
        queries = self._make_queries(target_positions, strategies, query_states, pooled)
        features = self.run_layers(states, positions, queries, target_positions, target_spans, text_length)
        return self.norm(features)

    def run_layers(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        target_positions: torch.Tensor,
        target_spans: torch.Tensor,
        text_length: int | None,
    ) -> torch.Tensor:
        """Queries (R, T, P) without positions -> features (R, T, P) before the norm; others as in `forward`."""
        raise NotImplementedError

    def _make_queries(
        self,
        target_positions: torch.Tensor,
        strategies: torch.Tensor | None,
        query_states: torch.Tensor | None,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        """Queries (R, T, P) without their positions."""
        if strategies is None:
            queries = self.mask_tokens[0]
        else:
            queries = self.mask_tokens[strategies].unsqueeze(1)
        if self.config.pred_pooled_context:
            queries = queries + self.context_projection(pooled).unsqueeze(1)
        if query_states is not None:
            queries = queries + self.context_projection(query_states)
        return queries.expand(*target_positions.shape, -1)

    def _join(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        target_positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Visible states followed by queries (R, N, P), with positions added, and these positions (R, N)."""
        context = self.context_projection(states)
        all_states = torch.cat([context, queries.to(context.dtype)], dim=1)
        all_positions = torch.cat([positions, target_positions], dim=1)
        return self._add_positions(all_states, all_positions), all_positions

    def _add_positions(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(R, N, P) and (R, N) -> (R, N, P): adds learned positions, if there are any, and applies dropout."""
        if self.position_embeddings is not None:
            states = states + self.position_embeddings(positions.clamp(min=0))
        return F.dropout(states, self.config.pred_dropout, self.training)


class TextJepaTransformerPredictor(TextJepaPredictor):
    """Queries attend to the visible states and to their own span.

    All spans of a mask share one pass and are kept from each other by the attention mask, so that a packed pass equals
    one pass per span.
    """

    layer_class = TextJepaPredictorLayer

    def run_layers(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        target_positions: torch.Tensor,
        target_spans: torch.Tensor,
        text_length: int | None,
    ) -> torch.Tensor:
        all_states, all_positions = self._join(states, positions, queries, target_positions)
        attention_mask = packed_attention_mask(positions, target_spans)
        rotary = self._rotary_tables(all_positions)
        for layer in self.layers:
            is_last = layer is self.layers[-1]
            query_start = positions.shape[1] if is_last else 0  # only the queries are read in the end
            all_states = layer(all_states, attention_mask, rotary, query_start)
        return all_states

    def _rotary_tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.position_embeddings is not None:
            return None
        head_dim = self.config.pred_hidden_size // self.config.pred_num_attention_heads
        return rotary_tables(positions.clamp(min=0), head_dim, self.config.pred_rope_theta)


class TextJepaConvPredictor(TextJepaPredictor):
    """Puts visible states and queries at their positions in the text and runs convolutions over it.

    Queries of other spans are in reach as well, but they hold nothing but mask token and position.
    """

    layer_class = TextJepaConvLayer

    def run_layers(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        target_positions: torch.Tensor,
        target_spans: torch.Tensor,
        text_length: int | None,
    ) -> torch.Tensor:
        all_states, all_positions = self._join(states, positions, queries, target_positions)
        columns = all_positions.unsqueeze(-1) + 1  # unused slots fall into column 0, which is cut off
        empty = all_states.new_zeros(len(all_states), text_length + 1, all_states.shape[-1])
        text = empty.scatter(1, columns.expand_as(all_states), all_states)[:, 1:]
        is_used = empty[..., :1].scatter(1, columns, 1)[:, 1:]
        for layer in self.layers:
            text = layer(text * is_used)
        return gather_positions(text, target_positions)


class TextJepaMlpPredictor(TextJepaPredictor):
    """A perceptron applied to each query alone; all it knows of the text is in the query, see `_make_queries`."""

    layer_class = TextJepaMlpLayer

    def run_layers(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        target_positions: torch.Tensor,
        target_spans: torch.Tensor,
        text_length: int | None,
    ) -> torch.Tensor:
        features = self._add_positions(queries, target_positions)
        for layer in self.layers:
            features = layer(features)
        return features


PREDICTORS = {
    "transformer": TextJepaTransformerPredictor,
    "conv": TextJepaConvPredictor,
    "mlp": TextJepaMlpPredictor,
}


# ---- pooling, target spaces and running statistics ------------------------------------------------------------------


class TextJepaPooler(nn.Module):
    """Softmax-weighted mean of the tokens by one learned query, which starts at zero: the plain mean."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(R, N, D), (R, N) -> (R, D)."""
        with maybe_autocast(states.device.type, enabled=False):
            products = states @ self.query.to(states.dtype)
        scores = (products * states.shape[-1] ** -0.5).float()
        scores = scores.masked_fill(~mask.bool(), torch.finfo(torch.float32).min)
        return weighted_sum_of_tokens(states, scores.softmax(dim=1))


class TextJepaWordWeights(nn.Module):
    """What each token counts in the mean of a text: the fixed weight of its word in the vocabulary."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.register_buffer("word_weights", torch.ones(config.text_config.vocab_size))

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Ids (R, N) and a mask (R, N) -> weights (R, N)."""
        return mask * self.word_weights[input_ids]


class TextJepaLexicalSpace(nn.Module):
    """A fixed target space: the vector of a text is the weighted mean of the random vectors of its words.

    This is random indexing (Kanerva et al., 2000), a random projection of weighted word counts. It cannot collapse,
    because it has no trained parameters.
    """

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.register_buffer("vectors", torch.empty(config.text_config.vocab_size, config.document_target_size))
        self.is_shared = False

    def forward(self, input_ids: torch.Tensor, token_weights: torch.Tensor) -> torch.Tensor:
        """Ids (B, S) and weights (B, S), 0 for padding -> (B, F)."""
        if _world_size() > 1 and self.training and not self.is_shared:
            self._share()
        return weighted_mean_of_rows(self.vectors, input_ids, token_weights)

    @torch.compiler.disable
    def _share(self):
        """Gives all processes the vectors of the first one, which DDP does not synchronize."""
        dist.broadcast(self.vectors, 0)
        self.is_shared = True


class TextJepaDocumentPredictor(nn.Module):
    """Predicts the vector of the rest of a document from that of a window: a perceptron with one hidden layer."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.hidden = nn.Linear(config.hidden_size, config.document_hidden_size)
        self.activation = ACT2FN[config.pred_hidden_act]
        self.output = nn.Linear(config.document_hidden_size, config.document_width)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, D) -> (R, F)."""
        return self.output(self.activation(self.hidden(pooled)))


class RunningAverages(nn.Module):
    """Running averages of statistics of batches: a plain average at first, then exponential with a momentum."""

    def __init__(self, momentum: float, **shapes):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("updates", torch.zeros(()))
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def update(self, **statistics: torch.Tensor):
        """Adds the statistics of one batch, by name, to their averages unless one of them is not finite."""
        is_finite = torch.stack([value.isfinite().all() for value in statistics.values()]).all()
        self.updates += is_finite
        step = (1 / self.updates.clamp(min=1)).clamp(min=1 - self.momentum)
        for name, value in statistics.items():
            average = getattr(self, name)
            average.lerp_(torch.where(is_finite, value, average), step)


class RunningMoments(RunningAverages):
    """Running mean and variance of each feature."""

    def __init__(self, width: int, momentum: float):
        super().__init__(momentum, mean=width, variance=width)

    @torch.no_grad()
    def forward(self, values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(…, D) with weights (…, 1) -> mean and variance (D,); in training, these values are added first."""
        if self.training:
            all_but_features = tuple(range(values.dim() - 1))
            mean, variance = moments(values, weights, all_but_features)
            # A batch without weights has no mean. NaN makes `update` skip it.
            has_values = sum_over_processes(weights.sum()) > 0
            mean = mean.where(has_values, torch.nan)
            self.update(mean=mean.flatten(), variance=variance.flatten())
        return self.mean, self.variance


class RunningWhitening(RunningAverages):
    """Whitens vectors by their running mean and covariance."""

    def __init__(self, width: int, momentum: float):
        super().__init__(momentum, mean=width, covariance=(width, width))

    @torch.no_grad()
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(n, D) float32 -> (n, D); in training, the vectors of all processes are added to the averages first."""
        with maybe_autocast(vectors.device.type, enabled=False):
            if self.training:
                rows, _ = gather_rows(vectors)
                mean = rows.mean(dim=0)
                covariance = (rows - mean).T @ (rows - mean) / len(rows)
                self.update(mean=mean, covariance=covariance)
            return (vectors - self.mean) @ whitening(self.covariance)


def _build_sentence_head(config: TextJepaConfig) -> nn.Module | None:
    if config.sentence_loss_weight == 0:
        return None
    inner_width = config.sentence_hidden_size
    if inner_width == 0:
        return nn.Identity()
    is_symmetric = config.target_encoder_type == "online"
    return nn.Sequential(
        nn.Linear(config.hidden_size, inner_width),
        nn.LayerNorm(inner_width),
        nn.GELU(),
        nn.Linear(inner_width, inner_width if is_symmetric else config.hidden_size),
    )


def _build_pooler(config: TextJepaConfig) -> nn.Module | None:
    if config.pooling == "idf":
        return TextJepaWordWeights(config)  # even if no term reads it: the exported encoder pools by these weights
    if config.pooling == "attention" and config.pools_context:
        return TextJepaPooler(config)
    return None


def _build_running_statistics(config: TextJepaConfig) -> nn.ModuleDict:
    running = nn.ModuleDict()
    for name in config.running_statistics:
        width = config.document_width if name == "documents" else config.hidden_size
        if name == "sentences" and config.sentence_whitening:
            running[name] = RunningWhitening(width, config.target_momentum)
        else:
            running[name] = RunningMoments(width, config.target_momentum)
    return running


# ---- encoder --------------------------------------------------------------------------------------------------------


def _without_pooler(config_class: type[PreTrainedConfig]) -> dict[str, bool]:
    """The keyword that keeps an architecture from building a pooler, which nothing here would train."""
    parameters = inspect.signature(MODEL_MAPPING[config_class].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


def _build_encoder(text_config: PreTrainedConfig) -> PreTrainedModel:
    """A new encoder, in the precision of what is built around it and not that of the files of its configuration."""
    return AutoModel.from_config(
        text_config,
        dtype=torch.get_default_dtype(),
        trust_remote_code=False,
        **_without_pooler(type(text_config)),
    )


def _read_model_type(name_or_path: str, **kwargs) -> str | None:
    # Not by `AutoConfig`, which asks for `trust_remote_code` where this class is not registered.
    config_dict, _ = PreTrainedConfig.get_config_dict(name_or_path, **kwargs)
    return config_dict.get("model_type")


def _load_encoder(name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The encoder in a plain checkpoint or in a Text-JEPA, without pooler, and the report of its loading."""
    kwargs.pop("trust_remote_code", None)  # third-party code is never run, even if the caller trusts it
    model_type = _read_model_type(name_or_path, **kwargs)
    kwargs["output_loading_info"] = True
    if model_type == TextJepaConfig.model_type:
        model, loading_info = TextJepaModel.from_pretrained(name_or_path, trust_remote_code=False, **kwargs)
        encoder = model.encoder
    elif model_type in CONFIG_MAPPING:
        kwargs |= _without_pooler(CONFIG_MAPPING[model_type])
        encoder, loading_info = AutoModel.from_pretrained(name_or_path, trust_remote_code=False, **kwargs)
    else:
        raise ValueError(f"{name_or_path}: model_type '{model_type}' is not an architecture of transformers")
    check_weights(name_or_path, encoder, loading_info)
    return encoder, loading_info


def check_weights(name_or_path: str, model: PreTrainedModel, loading_info: Mapping[str, Any]):
    """Checks that the files had all weights of a model, and that these are numbers.

    A missing pooler is fine, since nothing here uses it.

    Args:
        name_or_path (`str`): Folder or Hub name of the files.
        model ([`PreTrainedModel`]): The model.
        loading_info (`Mapping`): What `from_pretrained` returns with `output_loading_info=True`.

    Raises:
        ValueError: Weights are missing, which would be random, or not finite; or the files have more layers than the
            model.
    """
    missing = sorted(key for key in loading_info["missing_keys"] if "pooler" not in key)
    unexpected = sorted(loading_info["unexpected_keys"])
    if missing:
        instead = f" (it has {unexpected[0]} instead)" if unexpected else ""
        raise ValueError(
            f"{name_or_path}: {len(missing)} weights of the encoder are missing, such as {missing[0]}{instead}, and "
            "would be random; save the encoder by save_pretrained, without wrappers, or use another folder"
        )
    _check_finite(name_or_path, model)
    _check_number_of_layers(name_or_path, model, unexpected)


def _check_finite(name_or_path: str, model: PreTrainedModel):
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(
                f"{name_or_path}: {name} holds numbers that are not finite, so its weights are corrupted; use another "
                "encoder"
            )


def _check_number_of_layers(name_or_path: str, model: PreTrainedModel, unexpected: Sequence[str]):
    """Of the weights that only the files have, none may be of a layer such as those of the model."""
    prefix = f"{model.base_model_prefix}."
    kinds = {_without_numbers(key.removeprefix(prefix)) for key in model.state_dict()}
    for key in unexpected:
        kind = _without_numbers(key.removeprefix(prefix))
        if "#" in kind and kind in kinds:
            raise ValueError(
                f"{name_or_path}: {key} is in its files, but its config.json has fewer layers; correct the number of "
                "layers there, or use another folder"
            )


def _without_numbers(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def _pop_own_fields(config_class: type[TextJepaConfig], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes the fields of a configuration class out of keyword arguments."""
    return {name: kwargs.pop(name) for name in config_class.own_fields() if name in kwargs}


def _config_around(config_class: type[TextJepaConfig], encoder: PreTrainedModel, **fields) -> TextJepaConfig:
    return config_class(
        text_config=copy.deepcopy(encoder.config),
        # Ours passes its attention implementation on to `text_config`, and would overwrite the encoder's.
        attn_implementation=encoder.config._attn_implementation,
        **fields,
    )


def encode_visible(
    encoder: PreTrainedModel,
    config: TextJepaConfig,
    mode: str,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    positions: torch.Tensor,
    target_positions: torch.Tensor | None = None,
    **kwargs,
) -> tuple[BaseModelOutput, torch.Tensor | None]:
    """Encodes the visible tokens of each mask; the others are dropped, masked as keys, or replaced by mask tokens.

    Args:
        encoder: A stock encoder.
        config: Gives the encoder's position offset and mask token.
        mode: As `TextJepaConfig.context_mode`.
        input_ids, attention_mask: Whole texts (B, S).
        positions: Visible positions (B, M, K), -1 where unused.
        target_positions: (B, M, T), -1 where unused; read only if `mode` is `"mask_token"`.
        **kwargs: Passed to the encoder.

    Returns:
        The encoder's output with `last_hidden_state` and, if asked for, `hidden_states` (R, K, D); `attentions` have
        length S unless tokens are dropped. And, with `"mask_token"`, the states (R, T, D) at the target positions,
        otherwise `None`.
    """
    rows = positions.flatten(0, 1)
    if mode == "drop":
        visible_ids = gather_positions(input_ids, positions).flatten(0, 1)
        return _encode_gathered(encoder, config, visible_ids, rows, **kwargs), None

    ids = input_ids.repeat_interleave(positions.shape[1], dim=0)
    mask = attention_mask.repeat_interleave(positions.shape[1], dim=0)
    is_visible = torch.zeros(len(ids), ids.shape[1] + 1, dtype=torch.bool, device=ids.device)
    is_visible = is_visible.scatter(1, rows + 1, True)[:, 1:]  # unused slots write to column 0, which is cut off
    if mode == "attention_mask":
        mask = mask * is_visible
    else:
        ids = ids.masked_fill(~is_visible, config.mask_token_id)
    output = encoder(input_ids=ids, attention_mask=mask, return_dict=True, **kwargs)
    output = _complete_hidden_states(output)
    query_states = None
    if mode == "mask_token":
        query_states = gather_positions(output.last_hidden_state, target_positions.flatten(0, 1))
    return _output_at(output, rows), query_states


def _output_at(output: BaseModelOutput, positions: torch.Tensor) -> BaseModelOutput:
    """The output of an encoder (R, S, …) with the states at positions (R, K) alone; attentions are as they were."""
    hidden_states = None
    if output.hidden_states is not None:
        hidden_states = tuple(gather_positions(layer, positions) for layer in output.hidden_states)
    return BaseModelOutput(
        last_hidden_state=gather_positions(output.last_hidden_state, positions),
        hidden_states=hidden_states,
        attentions=output.get("attentions"),  # some architectures have none
    )


def _encode_gathered(
    encoder: PreTrainedModel,
    config: TextJepaConfig,
    visible_ids: torch.Tensor,
    positions: torch.Tensor,
    **kwargs,
) -> BaseModelOutput:
    """Encodes gathered tokens (R, K) at their original positions (R, K), -1 where unused."""
    output = encoder(
        input_ids=visible_ids,
        attention_mask=_visible_mask(encoder, positions),
        position_ids=positions.clamp(min=0) + config.position_offset,
        return_dict=True,
        **kwargs,
    )
    return _complete_hidden_states(output)


def sees_words_alone(encoder: PreTrainedModel) -> bool:
    """Whether the state of a token depends on nothing but its word: no layers, no positions, no dropout, no noise."""
    if encoder.config.model_type != "distilbert" or encoder.config.num_hidden_layers > 0:
        return False
    has_noise = hasattr(encoder.get_input_embeddings(), "neftune_noise_alpha")
    has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in encoder.modules())
    return not has_noise and not has_dropout and not encoder.embeddings.position_embeddings.weight.any()


def _visible_mask(encoder: PreTrainedModel, positions: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """Attention mask of gathered tokens at `positions` (R, K), with the true distances for local attention."""
    is_used = positions >= 0
    layer_types = getattr(encoder.config, "layer_types", None) or []
    if "sliding_attention" not in layer_types:
        return is_used.long()
    # ModernBERT itself takes distances between indices, which dropping has changed.
    implementation = encoder.config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise ValueError(f"dropping tokens from local attention needs sdpa or eager, not {implementation}")
    itself = torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
    full = is_used[:, None, None, :] | itself
    distances = (positions.unsqueeze(-1) - positions.unsqueeze(-2)).abs()
    is_near = (distances <= encoder.config.sliding_window).unsqueeze(1)
    masks = {"full_attention": full, "sliding_attention": full & is_near}
    if implementation == "sdpa":
        return masks
    lowest = torch.finfo(encoder.get_input_embeddings().weight.dtype).min
    return {name: lowest * ~mask for name, mask in masks.items()}  # added to the scores


def _complete_hidden_states(output: BaseModelOutput) -> BaseModelOutput:
    """Gives the output of an encoder without layers its embeddings as the one hidden state, where it has none."""
    if output.hidden_states is not None and len(output.hidden_states) == 0:
        output.hidden_states = (output.last_hidden_state,)
    return output


def _outputs_asked_for(config: TextJepaConfig) -> dict[str, bool]:
    """The further outputs that a configuration asks for, as keyword arguments: the encoder has one of its own."""
    names = ("output_hidden_states", "output_attentions")
    return {name: True for name in names if getattr(config, name)}


def _states_of(output: BaseModelOutput) -> dict[str, Any]:
    """The fields that our own outputs share with those of an encoder."""
    names = ("last_hidden_state", "hidden_states", "attentions")
    return {name: output[name] for name in names if name in output}


# ---- adapters of PEFT -----------------------------------------------------------------------------------------------


def has_adapters(module: nn.Module) -> bool:
    """Whether PEFT has wrapped the module or a layer of it."""
    return any(hasattr(part, "base_layer") or hasattr(part, "active_peft_config") for part in module.modules())


def plain_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers with all adapters merged into them, by the names that they have without adapters.

    Raises:
        ValueError: An adapter is not a plain LoRA and cannot be merged.
    """
    weights = _weights_below_adapters(module)
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer"):
            name = _name_without_adapters(f"{name}.weight")
            weights[name] = weights[name] + _increment(name, layer).to(weights[name].dtype)
    return weights


def _weights_below_adapters(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers without what adapters add, by the names that they have without adapters."""
    weights = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        is_of_adapter = ".lora_" in name or ".original_module." in name
        if not is_of_adapter:
            weights[_name_without_adapters(name)] = tensor
    return weights


def _increment(name: str, layer: nn.Module) -> torch.Tensor:
    """The sum of what the active adapters of a layer add to its weight; 0 if they are merged or disabled."""
    is_lora = hasattr(layer, "lora_A")
    # Options by adapter; with either one, the adapter is more than a matrix that is added to the weight.
    uses_dora = any(getattr(layer, "use_dora", {}).values())
    has_bias = any(getattr(layer, "lora_bias", {}).values())
    if not is_lora or uses_dora or has_bias:
        raise ValueError(f"{name}: only plain LoRA adapters of PEFT can be merged, not {type(layer).__name__}")
    if layer.merged or layer.disable_adapters:
        return torch.zeros(())
    known = {*layer.lora_A, *layer.lora_embedding_A}
    increments = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters if adapter in known]
    return sum(increments, torch.zeros((), device=layer.weight.device))


def _name_without_adapters(name: str) -> str:
    """The name that a weight had before PEFT wrapped its layer or the encoder around it."""
    name = name.replace("base_model.model.", "").replace(".base_layer.", ".")
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)


# Names under which PEFT keeps a layer that it has wrapped.
_ADAPTER_PARTS = {"base_layer", "original_module"}

_TensorPairs = dict[torch.Tensor, torch.Tensor]


def _pair_tensors(target: nn.Module, source: nn.Module) -> tuple[_TensorPairs, _TensorPairs]:
    """Pairs each parameter and each buffer of the target with the tensor of the same name in the source.

    Adapters of the source are merged into its tensors; those of the target are left out.
    """
    pairs = _pair_side_by_side(target, source)
    if pairs is not None:
        return pairs
    parameters = {}
    buffers = {}
    sources = plain_weights(source)
    for name, tensor in _weights_below_adapters(target).items():
        pairs_of_kind = parameters if isinstance(tensor, nn.Parameter) else buffers
        pairs_of_kind[tensor] = sources[name]
    return parameters, buffers


def _pair_side_by_side(target: nn.Module, source: nn.Module) -> tuple[_TensorPairs, _TensorPairs] | None:
    """As `_pair_tensors`, for encoders of the same structure; `None` if structures differ or there are adapters.

    Pairs are found again after every optimizer step, because PEFT, FSDP2 or `to` may have replaced layers, parameters
    or buffers without notice. Reading the dictionaries of modules is several times as fast as `named_parameters`.
    """
    parameters = {}
    buffers = {}
    pairs_of_modules = [(target, source)]
    while pairs_of_modules:
        target, source = pairs_of_modules.pop()
        children = target._modules
        if children.keys() != source._modules.keys() or not _ADAPTER_PARTS.isdisjoint(children):
            return None
        for name, child in children.items():
            if child is not None:
                pairs_of_modules.append((child, source._modules[name]))
        for name, parameter in target._parameters.items():
            if parameter is not None:
                parameters[parameter] = source._parameters[name]
        for name, buffer in target._buffers.items():
            if buffer is not None:
                buffers[buffer] = source._buffers[name]
    return parameters, buffers


def without_adapters(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder itself, or, if it has adapters, a new stock encoder with the merged weights."""
    if not has_adapters(encoder):
        return encoder
    plain = _build_encoder(encoder.config).to(encoder.device, encoder.dtype)
    weights = plain_weights(encoder)
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain.train(encoder.training)


# ---- models ---------------------------------------------------------------------------------------------------------


class TextJepaPreTrainedModel(PreTrainedModel):
    """What all Text-JEPA models share: loading, saving with the code beside the weights, initialization."""

    config: TextJepaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextJepaPredictorLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Parts of a pretraining checkpoint that an encoder or a classifier does not have.
    _keys_to_ignore_on_load_unexpected = [
        r"^(predictor|target_encoder|latent_head|token_head|document_predictor|lexical_space|sentence_head|pooler"
        r"|running)\."
    ]

    def __init_subclass__(cls, **kwargs) -> None:
        # transformers cannot save the code of a class that a script defines, and would print the model to say so.
        super().__init_subclass__(**kwargs)
        if cls.__module__ == "__main__":
            cls._auto_class = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: The checkpoint is not a Text-JEPA, and this class does not wrap plain encoders.
            StrictDataclassError: A field of the configuration that is given here is out of range.
        """
        if config is None:
            model_type = _read_model_type(pretrained_model_name_or_path, **kwargs)
            if model_type not in (TextJepaConfig.model_type, cls.config_class.model_type):
                return cls._from_plain_encoder(pretrained_model_name_or_path, model_type, **kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.validate()  # transformers replaces its own fields that are given here without validation
        return loaded

    @classmethod
    def _from_plain_encoder(
        cls,
        name_or_path: str,
        model_type: str,
        **kwargs,
    ):
        raise ValueError(
            f"{name_or_path} holds a '{model_type}', no Text-JEPA: wrap it with TextJepaForPreTraining.from_encoder, "
            "or open it with TextJepaModel or the Auto classes"
        )

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: all initialization goes through `transformers.initialization`, as in the library's own models."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, TextJepaPredictor):
            init.normal_(module.mask_tokens, std=self.config.initializer_range)
        elif isinstance(module, (TextJepaPooler, RunningAverages)):
            for tensor in [*module.parameters(), *module.buffers()]:
                init.zeros_(tensor)
        elif isinstance(module, TextJepaWordWeights):
            init.ones_(module.word_weights)
        elif isinstance(module, TextJepaLexicalSpace):
            init.normal_(module.vectors)

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        if self.config.text_config.num_hidden_layers == 0:
            init.zeros_(self.base_model.encoder.embeddings.position_embeddings.weight)
        self._freeze_idle_positions()

    def _freeze_idle_positions(self):
        """Keeps an encoder without layers from learning positions, which would add the same to every text."""
        if self.config.text_config.num_hidden_layers == 0:
            self.base_model.encoder.embeddings.position_embeddings.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.base_model.encoder.set_input_embeddings(value)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ):
        """Saves weights, configuration and this code, so that every Auto class opens the folder.

        Adapters of PEFT are merged into the weights unless a `state_dict` is given.
        """
        if state_dict is None and has_adapters(self):
            with torch.device("meta"):
                names = type(self)(self.config).state_dict().keys()
            state_dict = {name: weight for name, weight in plain_weights(self).items() if name in names}
        # transformers would register the class being saved alone, but the folder opens as any of them.
        self.config.auto_map = {
            "AutoConfig": "configuration_text_jepa.TextJepaConfig",
            "AutoModel": "modeling_text_jepa.TextJepaModel",
            "AutoModelForPreTraining": "modeling_text_jepa.TextJepaForPreTraining",
            "AutoModelForSequenceClassification": "modeling_text_jepa.TextJepaForSequenceClassification",
        }
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if is_main_process:
            _copy_code(save_directory)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        # Where `save_pretrained` publishes, this is before its end.
        _copy_code(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def _copy_code(folder: str | os.PathLike):
    """Copies this file and that of the configuration into a folder.

    transformers saves the code of a class alone: of one that a script defines none, of one elsewhere that file.
    """
    for code in (__file__, inspect.getfile(TextJepaConfig)):
        shutil.copyfile(code, os.path.join(folder, os.path.basename(code)))


class TextJepaModel(TextJepaPreTrainedModel):
    """The encoder for downstream use: a stock architecture, that of `config.text_config`, with its own outputs.

    `from_pretrained` opens a Text-JEPA (the context encoder of a pretraining checkpoint) and wraps any plain encoder.
    """

    def __init__(self, config: TextJepaConfig):
        super().__init__(config)
        self.encoder = _build_encoder(config.text_config)
        self.post_init()

    @classmethod
    def _from_plain_encoder(
        cls,
        name_or_path: str,
        model_type: str,
        output_loading_info: bool = False,
        **kwargs,
    ):
        fields = _pop_own_fields(cls.config_class, kwargs)
        encoder, loading_info = _load_encoder(name_or_path, **kwargs)
        with torch.device("meta"):
            model = cls(_config_around(cls.config_class, encoder, **fields)).eval()
        model.encoder = encoder
        model.config.text_config = encoder.config  # with two of them, resizing would change only one
        model._freeze_idle_positions()
        return (model, loading_info) if output_loading_info else model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """(B, S) -> the stock encoder's output, `last_hidden_state` (B, S, D) first; other arguments pass through."""
        kwargs = _outputs_asked_for(self.config) | kwargs
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        return _complete_hidden_states(output)


# ---- pretraining ----------------------------------------------------------------------------------------------------


class _UpdateWatch:
    """Warns if an optimizer moves the context encoder and nobody calls `update_target_encoder`.

    An optimizer step shows in the sum of a weight. The count stays on the device, and the host reads it only every 16
    forwards: each time it waits for the device.
    """

    _STEPS_BEFORE_WARNING = 3
    _FORWARDS_BETWEEN_CHECKS = 16

    def __init__(self):
        self.is_active = True
        self.forwards = 0
        self.steps: int | torch.Tensor = 0
        self.last_sum: torch.Tensor | None = None

    def stop(self):
        """Ends the watch, after an update or a warning."""
        self.is_active = False

    def observe(self, encoder: nn.Module):
        """Looks at the context encoder once per training forward."""
        if not self.is_active:
            return
        weight = next((weight for weight in encoder.parameters() if weight.requires_grad), None)
        if weight is None:
            return
        if hasattr(weight, "to_local"):  # a DTensor under FSDP2
            weight = weight.to_local()
        # Not `Tensor._version`, which fused optimizers do not increase.
        current_sum = weight.detach().sum(dtype=torch.float64)
        if self.last_sum is not None:
            self.steps = self.steps + (current_sum != self.last_sum)
        self.last_sum = current_sum
        self.forwards += 1
        if self.forwards % self._FORWARDS_BETWEEN_CHECKS or self.steps < self._STEPS_BEFORE_WARNING:
            return
        self.stop()
        warnings.warn(
            f"{int(self.steps)} optimizer steps, and the target encoder has not moved: nothing updates it. Train with "
            "TextJepaTrainer, pass callbacks=[EmaTargetEncoderCallback()] to your Trainer, or call "
            "model.update_target_encoder(decay) after each optimizer step. If it is meant to stay as it is, set "
            "target_encoder_type='frozen'",
            stacklevel=2,
        )


class TextJepaForPreTraining(TextJepaPreTrainedModel):
    """Context encoder, target encoder, predictor and losses; parts that no term of the loss reads are not built.

    The target encoder takes no gradient, stays in eval mode and in float32, and moves only by
    `update_target_encoder`. It is saved with the model.

    To add a term to the loss, override [`~TextJepaForPreTraining.compute_losses`] in a subclass. Its weight is 1,
    unless a subclass of the configuration adds the name to `loss_terms` and has a field `<name>_loss_weight`.
    """

    # What `forward` returns. A term of the loss without a field `<name>_loss` is added to it as an item.
    output_class = TextJepaForPreTrainingOutput

    # A checkpoint without target encoder is complete: the context encoder is copied, see `initialize_weights`.
    _keys_to_ignore_on_load_missing = [r"^target_encoder\."]
    _keys_to_ignore_on_load_unexpected = []
    # In bfloat16 an average with decay 0.999 would not move.
    _keep_in_fp32_modules_strict = ["target_encoder", "running", "pooler", "lexical_space"]

    # Constant buffers: DDP need not broadcast them at every step.
    _ddp_params_and_buffers_to_ignore = ["lexical_space.vectors", "pooler.word_weights"]

    def __init__(self, config: TextJepaConfig):
        super().__init__(config)
        self.model = TextJepaModel(config)
        self.target_encoder = _build_encoder(config.text_config) if config.has_target_encoder else None
        self.predictor = PREDICTORS[config.predictor_type](config) if config.predicts_tokens else None
        self.latent_head = None
        if config.latent_loss_weight > 0:
            self.latent_head = nn.Linear(config.pred_hidden_size, config.hidden_size)
        self.token_head = None
        if config.token_loss_weight > 0:
            embedding_size = self.get_input_embeddings().embedding_dim
            self.token_head = nn.Linear(config.pred_hidden_size, embedding_size)
        self.pooler = _build_pooler(config)
        self.document_predictor = None
        self.lexical_space = None
        if config.document_loss_weight > 0:
            self.document_predictor = TextJepaDocumentPredictor(config)
            if not config.encodes_documents:
                self.lexical_space = TextJepaLexicalSpace(config)
        self.sentence_head = _build_sentence_head(config)
        self.running = _build_running_statistics(config)
        self._update_watch = _UpdateWatch()
        self._keep_targets_in_float32()
        self.post_init()

    # ---- loading and saving ----

    @classmethod
    def from_encoder(
        cls,
        name_or_path: str,
        output_loading_info: bool = False,
        **kwargs,
    ) -> "TextJepaForPreTraining | tuple[TextJepaForPreTraining, dict[str, Any]]":
        """A JEPA around an existing encoder: BERT, RoBERTa, DistilBERT, ELECTRA, MPNet, ModernBERT, DeBERTa …

        Both encoders start from the checkpoint's weights, the predictor is new. The model is returned in eval mode.

        Args:
            name_or_path (`str`): Folder or Hub name of an encoder checkpoint, or of a Text-JEPA.
            output_loading_info (`bool`, *optional*, defaults to `False`):
                Whether to return the report of loading the encoder beside the model.
            **kwargs: Fields of [`TextJepaConfig`]; all others (`revision`, `token`, `attn_implementation` …) are
                passed to `AutoModel.from_pretrained`. `dtype` is float32 by default.
        """
        fields = _pop_own_fields(cls.config_class, kwargs)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        encoder, loading_info = _load_encoder(name_or_path, **kwargs)
        model = cls(_config_around(cls.config_class, encoder, **fields)).to(encoder.device, encoder.dtype)
        model.model.encoder.load_state_dict(encoder.state_dict())
        if model.target_encoder is not None:
            model.target_encoder.load_state_dict(encoder.state_dict())
        model.eval()
        return (model, loading_info) if output_loading_info else model

    def _apply(self, fn, recurse: bool = True):
        """Casts all but what makes the targets, which moves to other devices and keeps its values."""
        kept = set()
        for module in self._parts_in_float32():
            kept |= {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

        def apply(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if id(tensor) in kept and moved.dtype != tensor.dtype:
                moved = tensor.to(moved.device)
            return moved

        return super()._apply(apply, recurse)

    def _parts_in_float32(self) -> list[nn.Module]:
        parts = (self.target_encoder, self.running, self.pooler, self.lexical_space)
        return [module for module in parts if module is not None]

    def _keep_targets_in_float32(self):
        for module in self._parts_in_float32():
            module.float()

    @torch.no_grad()
    def initialize_weights(self):
        # Called after construction, and again after `from_pretrained` has loaded a checkpoint.
        super().initialize_weights()
        if self.target_encoder is None:
            return
        _warn_of_missing_weights(self.target_encoder)
        source = dict(self.model.encoder.named_parameters())
        source |= dict(self.model.encoder.named_buffers())
        for name, tensor in [*self.target_encoder.named_parameters(), *self.target_encoder.named_buffers()]:
            init.copy_(tensor, source[name])  # does nothing to a tensor that was loaded
        self.target_encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.eval()  # targets are made without dropout
        return self

    def _resize_token_embeddings(self, *args, **kwargs):
        num_words_before = self.get_input_embeddings().num_embeddings
        if self.target_encoder is not None:
            self.target_encoder._resize_token_embeddings(*args, **kwargs)
        embeddings = super()._resize_token_embeddings(*args, **kwargs)
        if self.target_encoder is not None:
            # Its new rows would otherwise be random and differ from those of the context encoder.
            target_embeddings = self.target_encoder.get_input_embeddings()
            with torch.no_grad():
                target_embeddings.weight[num_words_before:] = embeddings.weight[num_words_before:]
        self._resize_word_tables(embeddings.num_embeddings)
        return embeddings

    @torch.no_grad()
    def _resize_word_tables(self, num_words: int):
        """Resizes the buffers with a row for each word: a new word gets the largest weight and a random vector."""
        if self.word_weights is not None:
            kept = self.word_weights[:num_words]
            new = kept.new_full((num_words - len(kept),), kept.max())
            self.pooler.word_weights = torch.cat([kept, new])
        if self.lexical_space is not None:
            kept = self.lexical_space.vectors[:num_words]
            new = torch.randn(num_words - len(kept), kept.shape[1], device=kept.device)
            self.lexical_space.vectors = torch.cat([kept, new])
            self.lexical_space.is_shared = False

    # ---- word weights ----

    @property
    def word_weights(self) -> torch.Tensor | None:
        """The word weights (V,) of `pooling="idf"`; `None` for other poolings."""
        return self.pooler.word_weights if isinstance(self.pooler, TextJepaWordWeights) else None

    @torch.no_grad()
    def set_word_weights(self, weights: torch.Tensor):
        """Sets the word weights (V,), such as inverse document frequencies; until then they are 1.

        Raises:
            ValueError: The model does not have `pooling="idf"`, or has another number of words.
        """
        if self.word_weights is None:
            raise ValueError("word weights need a model with pooling='idf'")
        if weights.shape != self.word_weights.shape:
            raise ValueError(f"{len(weights)} weights for {len(self.word_weights)} words")
        self.word_weights.copy_(weights)

    # ---- target encoder ----

    @torch.no_grad()
    def update_target_encoder(self, decay: float):
        """Target ← decay · target + (1 - decay) · context, in float32; buffers are copied.

        Adapters of PEFT in the context encoder count as merged into it.

        Raises:
            ValueError: The target encoder is not a moving average, is in half precision, or there is none.
        """
        if not self.config.has_moving_average:
            raise ValueError(
                "there is no moving average to update: target_encoder_type is not 'ema', or no term of the loss has "
                "targets of an encoder"
            )
        if self.target_encoder.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the target encoder is in {self.target_encoder.dtype}, in which its small steps would be lost: call "
                "model.target_encoder.float()"
            )
        self._update_watch.stop()
        parameters, buffers = _pair_tensors(self.target_encoder, self.model.encoder)
        sources = []
        for target, source in parameters.items():
            if source.dtype != target.dtype:
                source = source.to(target.dtype)
            sources.append(source)
        torch._foreach_lerp_(list(parameters), sources, 1 - decay)
        for target, source in buffers.items():
            target.copy_(source)

    @property
    def encoder_of_targets(self) -> PreTrainedModel:
        """The encoder that makes the targets: the moving average, the frozen one, or the context encoder itself.

        The similarity loss alone always compares with `target_encoder`.
        """
        if self.target_encoder is None or self.config.target_encoder_type == "online":
            return self.model.encoder
        return self.target_encoder

    def encode_targets(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Runs the target encoder on whole texts (B, S), or on nothing but the tokens at `positions` (B, M, T).

        Gradients flow only if it is the context encoder itself (`target_encoder_type="online"`).
        """
        with self._grad_mode_of_targets():
            if positions is None:
                output = self.encoder_of_targets(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    output_hidden_states=output_hidden_states,
                    return_dict=True,
                )
                output = _complete_hidden_states(output)
            else:
                mode = "drop" if self.config.drop_is_exact else "attention_mask"
                output, _ = encode_visible(
                    self.encoder_of_targets,
                    self.config,
                    mode,
                    input_ids,
                    attention_mask,
                    positions,
                    output_hidden_states=output_hidden_states,
                )
        return output

    def _grad_mode_of_targets(self) -> torch.set_grad_enabled:
        """The context in which targets are made: gradients flow into them only if the context encoder makes them."""
        is_context_encoder = self.encoder_of_targets is self.model.encoder
        return torch.set_grad_enabled(is_context_encoder and torch.is_grad_enabled())

    def token_targets(self, hidden_states: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """All layers of the target encoder (R, N, D) and a mask (R, N) -> token-level targets (R, N, D), float32."""
        layers = hidden_states[-self.config.target_num_layers :]
        running = [module for name, module in self.running.items() if name.startswith("layer")]
        return average_layers(layers, mask, self.config.target_normalization, running)

    def compute_targets(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        view_input_ids: torch.Tensor | None = None,
        view_attention_mask: torch.Tensor | None = None,
    ) -> TextTargets:
        """The targets that all masks of a text share.

        Args:
            input_ids, attention_mask: Whole texts (B, S).
            view_input_ids, view_attention_mask: Their views (B, S'); by default the texts themselves.
        """
        config = self.config
        has_views = view_input_ids is not None
        if not has_views:
            view_input_ids = input_ids
            view_attention_mask = attention_mask

        targets = {}
        encoded = None
        pooled = None
        with self._grad_mode_of_targets():
            if config.latent_loss_weight > 0 and config.target_input == "text":
                encoded = self.encode_targets(input_ids, attention_mask, output_hidden_states=True)
                targets["tokens"] = self.token_targets(encoded.hidden_states, attention_mask)
            if config.sentence_loss_weight > 0 or config.encodes_documents:
                if encoded is None or has_views:
                    pooled = self._pooled_targets(view_input_ids, view_attention_mask)
                else:
                    pooled = self.pool(encoded.last_hidden_state, attention_mask, input_ids)
            if config.sentence_loss_weight > 0:
                targets["sentences"] = self._sentence_targets(pooled)
            if config.document_loss_weight > 0:
                vectors = self.document_vectors(pooled, view_input_ids, view_attention_mask)
                targets["documents"] = self._document_targets(vectors)
        if config.similarity_loss_weight > 0:
            with torch.no_grad():
                targets["beginnings"] = self._pool_beginnings(self.target_encoder, input_ids, attention_mask)
        return TextTargets(**targets)

    def _pooled_targets(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Texts (B, S) -> vectors (B, D) of the encoder that makes the targets."""
        encoder = self.encoder_of_targets
        if self._encodes_distinct_words(encoder, input_ids):
            return self._pool_distinct_words(encoder, input_ids, attention_mask)
        encoded = self.encode_targets(input_ids, attention_mask)
        return self.pool(encoded.last_hidden_state, attention_mask, input_ids)

    def _pool_beginnings(
        self,
        encoder: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Texts (B, S) -> vectors (B, D) of their first tokens, by the context encoder or the target encoder."""
        input_ids = input_ids[:, : self.config.similarity_length]
        attention_mask = attention_mask[:, : self.config.similarity_length]
        if self._encodes_distinct_words(encoder, input_ids):
            return self._pool_distinct_words(encoder, input_ids, attention_mask)
        states = encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        return self.pool(states, attention_mask, input_ids)

    def _sentence_targets(self, pooled: torch.Tensor) -> torch.Tensor:
        """Targets (B, D) from the pooled views (B, D): whitened or centred; through the head if they are online."""
        if self.config.target_encoder_type == "online":
            return self.sentence_head(pooled)
        pooled = pooled.float()
        running = self.running["sentences"]
        if self.config.sentence_whitening:
            pooled = running(pooled)
        else:
            mean, _ = running(pooled, torch.ones_like(pooled[:, :1]))
            pooled = pooled - mean
        return F.layer_norm(pooled, pooled.shape[-1:])

    def document_vectors(
        self,
        pooled: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Vectors (B, F) of the views, which hold the rest of each document, in the space of `config.document_target`.

        Args:
            pooled: Pooled states of the target encoder (B, D), if an encoder makes the targets.
            input_ids, attention_mask: The views (B, S').
        """
        if self.lexical_space is None:
            return pooled.float()
        return self.lexical_space(input_ids, self.token_weights(input_ids, attention_mask))

    def _document_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Vectors of documents (B, F) minus their running mean; zeros, which the loss leaves out, stay zeros."""
        # The lexical vector of a text without a word that counts.
        has_words = targets.any(dim=-1, keepdim=True).to(targets.dtype)
        mean, _ = self.running["documents"](targets, has_words)
        return (targets - mean) * has_words

    # ---- context encoder and predictor ----

    def pool(
        self,
        states: torch.Tensor,
        mask: torch.Tensor,
        input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """States (R, N, D), a mask (R, N) and token ids (R, N) -> vectors (R, D), by `config.pooling`."""
        if self.config.pooling == "idf":
            return weighted_mean_pool(states, self.token_weights(input_ids, mask))
        if self.pooler is not None:
            return self.pooler(states, mask)
        if self.config.pooling == "cls":
            return states[:, 0]
        return mean_pool(states, mask)

    def token_weights(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What each token counts in a mean: ids (R, N) and a mask (R, N) -> (R, N), 1 without word weights."""
        if self.config.pooling == "idf":
            return self.pooler(input_ids, mask)
        return mask.float()

    def encode_context(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masks: TokenMasks,
        **kwargs,
    ) -> ContextStates:
        """Runs the context encoder on the visible tokens of texts (B, S)."""
        is_visible = masks.context_positions.flatten(0, 1) >= 0
        visible_ids = gather_positions(input_ids, masks.context_positions).flatten(0, 1)
        beginnings = None
        if self.config.similarity_loss_weight > 0:
            beginnings = self._pool_beginnings(self.model.encoder, input_ids, attention_mask)
        # Keywords ask the encoder for outputs of its own.
        needs_states = self.config.reads_token_states or bool(kwargs)
        if not needs_states and self._encodes_distinct_words(self.model.encoder, input_ids):
            pooled = self._pool_distinct_words(self.model.encoder, visible_ids, is_visible)
            return ContextStates(BaseModelOutput(), is_visible, None, pooled, beginnings)
        output, query_states = encode_visible(
            self.model.encoder,
            self.config,
            self.config.context_mode,
            input_ids,
            attention_mask,
            masks.context_positions,
            masks.target_positions,
            **kwargs,
        )
        pooled = None
        if self.config.pools_context:
            pooled = self.pool(output.last_hidden_state, is_visible, visible_ids)
        return ContextStates(output, is_visible, query_states, pooled, beginnings)

    def _encodes_distinct_words(self, encoder: PreTrainedModel, input_ids: torch.Tensor) -> bool:
        """Whether to encode each distinct word of a batch once, because a text is the mean of its words.

        Not for subclasses, which may read token states; not on a GPU, which would have to synchronize to know the
        number of distinct words; and not in a compiled graph, which cannot represent that number.
        """
        if type(self) is not TextJepaForPreTraining:
            return False
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        takes_mean = self.config.pooling in ("mean", "idf")
        return takes_mean and sees_words_alone(encoder)

    def _pool_distinct_words(
        self,
        encoder: PreTrainedModel,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Vectors (R, D) of texts (R, N), as `pool` gives them; each distinct word is encoded once."""
        words, rows = input_ids.unique(return_inverse=True)
        word_states = encoder(words.unsqueeze(1), return_dict=True).last_hidden_state.squeeze(1)
        return weighted_mean_of_rows(word_states, rows, self.token_weights(input_ids, mask))

    def predict_tokens(
        self,
        context: ContextStates,
        masks: TokenMasks,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        text_targets: TextTargets,
    ) -> TokenPredictions:
        """Predicts the hidden tokens, and compares the predictions with their targets if there is a latent loss."""
        if not self.config.predicts_tokens:
            return TokenPredictions()
        text_length = input_ids.shape[1]
        features = self.predictor(
            context.output.last_hidden_state,
            masks.context_positions.flatten(0, 1),
            masks.target_positions.flatten(0, 1),
            masks.target_spans.flatten(0, 1),
            strategies=None if masks.strategies is None else masks.strategies.flatten(),
            query_states=context.query_states,
            pooled=context.pooled,
            text_length=text_length,
        )
        if self.config.latent_loss_weight == 0:
            return TokenPredictions(features)
        predictions = self.latent_head(features).unflatten(0, masks.target_positions.shape[:2])
        targets = self._hidden_token_targets(input_ids, attention_mask, masks, text_targets)
        distances = self._latent_distances(predictions, targets, masks, text_length)
        return TokenPredictions(features, predictions, targets, distances)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        context_positions: torch.LongTensor | None = None,
        target_positions: torch.LongTensor | None = None,
        target_spans: torch.LongTensor | None = None,
        mask_strategies: torch.LongTensor | None = None,
        view_input_ids: torch.LongTensor | None = None,
        view_attention_mask: torch.Tensor | None = None,
        document_ids: torch.LongTensor | None = None,
        text_targets: TextTargets | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> TextJepaForPreTrainingOutput:
        """
        Encodes the visible tokens, predicts the hidden ones and the targets of texts, and computes the losses.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): The whole texts, right-padded.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 for tokens, 0 for padding.
            context_positions (`torch.LongTensor` of shape `(B, M, C)`, *optional*):
                Visible positions of each mask, -1 where unused. Without them the model only encodes.
            target_positions, target_spans (`torch.LongTensor` of shape `(B, M, T)`, *optional*):
                Hidden positions to predict, and the span that each belongs to, -1 where unused.
            mask_strategies (`torch.LongTensor` of shape `(B, M)`, *optional*): The mask token that each mask uses.
            view_input_ids, view_attention_mask (of shape `(B, S')`, *optional*):
                A view of each text, such as the rest of its document. The document loss and the sentence loss predict
                the view; without one, the text itself.
            document_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
                Texts with equal ids are of one document, and not negatives of each other in the sentence loss.
            text_targets (`TextTargets`, *optional*):
                `text_targets` of an output for the same texts with other masks. Saves computing them again.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                What `num_items` gives for all batches and processes of the optimizer step together, as the Trainer
                does. Losses are then scaled by this batch's share; by default they are means over the batch.
            return_loss (`bool`, *optional*, defaults to `True`): Whether to compute the losses.

        Raises:
            ValueError: Some but not all of the positions and spans are given, or `token_type_ids` beside them.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        kwargs = _outputs_asked_for(self.config) | kwargs
        given = [positions is not None for positions in (context_positions, target_positions, target_spans)]
        if not any(given):
            output = self.model(input_ids, attention_mask, return_dict=True, **kwargs)
            return self.output_class(**_states_of(output))
        if not all(given):
            raise ValueError("context_positions, target_positions and target_spans belong together")
        if "token_type_ids" in kwargs:
            raise ValueError("pretraining takes single texts: leave token_type_ids out")

        self._watch_for_updates()
        masks = TokenMasks(
            _with_a_slot(context_positions),
            _with_a_slot(target_positions),
            _with_a_slot(target_spans),
            mask_strategies,
        )
        context = self.encode_context(input_ids, attention_mask, masks, **kwargs)
        if text_targets is None:
            text_targets = self.compute_targets(input_ids, attention_mask, view_input_ids, view_attention_mask)
        tokens = self.predict_tokens(context, masks, input_ids, attention_mask, text_targets)

        losses = {}
        loss = None
        if return_loss:
            losses = self.compute_losses(context, tokens, text_targets, masks, input_ids, document_ids)
            if num_items_in_batch is not None:
                share_of_step = self.num_items(target_positions) / num_items_in_batch
                losses = {name: value * share_of_step for name, value in losses.items()}
            loss = self.weighted_sum(losses)
        return self._make_output(loss, losses, context, tokens, text_targets)

    def num_items(self, target_positions: torch.Tensor) -> torch.Tensor:
        """What the losses of a batch are weighted by in an optimizer step of several.

        Args:
            target_positions: (B, M, T), -1 where unused.

        Returns:
            The number of target tokens, at least 1; without a loss of tokens the number of masks, B·M.
        """
        if self.config.predicts_tokens:
            return (target_positions >= 0).sum().clamp(min=1)
        num_masks = target_positions.shape[0] * target_positions.shape[1]
        return torch.full((), num_masks, device=target_positions.device)

    def _watch_for_updates(self):
        """Warns after a few optimizer steps of training without an update of the target encoder."""
        awaits_updates = self.config.has_moving_average
        is_training = self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if awaits_updates and is_training:
            self._update_watch.observe(self.model)

    def _make_output(
        self,
        loss: torch.Tensor | None,
        losses: dict[str, torch.Tensor],
        context: ContextStates,
        tokens: TokenPredictions,
        text_targets: TextTargets,
    ) -> TextJepaForPreTrainingOutput:
        fields = self.output_class.__dataclass_fields__
        terms = {f"{name}_loss": value for name, value in losses.items()}
        output = self.output_class(
            loss=loss,
            **{name: value for name, value in terms.items() if name in fields},
            distances=tokens.distances,
            predictions=tokens.predictions,
            targets=tokens.targets,
            text_targets=text_targets,
            **_states_of(context.output),
        )
        for name, value in terms.items():
            if name not in fields:
                output[name] = value
        return output

    # ---- losses ----

    def compute_losses(
        self,
        context: ContextStates,
        tokens: TokenPredictions,
        text_targets: TextTargets,
        masks: TokenMasks,
        input_ids: torch.Tensor,
        document_ids: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """The unweighted terms of the loss by name; a subclass adds its own, see `compares_texts`.

        Args:
            context: Outputs of the context encoder; `context.pooled` (R, D) are the vectors of the contexts.
            tokens: Outputs of the predictor for the hidden tokens.
            text_targets: The targets that all masks of a text share.
            masks: Which tokens are visible and which are predicted.
            input_ids: Whole texts (B, S).
            document_ids: (B,), the document of each text.

        Returns:
            A mean over the batch for each of `config.loss_terms` whose weight is above 0.
        """
        config = self.config
        losses = {}
        if config.latent_loss_weight > 0:
            losses["latent"] = tokens.distances.sum() / masks.num_targets
        if config.token_loss_weight > 0:
            losses["token"] = self._token_loss(tokens.features, input_ids, masks)
        if config.document_loss_weight > 0:
            losses["document"] = self._document_loss(context.pooled, text_targets.documents)
        sentence_prediction = None
        if config.sentence_loss_weight > 0:
            sentence_prediction = self.sentence_head(context.pooled)
            losses["sentence"] = self._sentence_loss(sentence_prediction, text_targets.sentences, document_ids)
        if config.similarity_loss_weight > 0:
            losses["similarity"] = self._similarity_loss(context.beginnings, text_targets.beginnings)
        if config.regularizers:
            vectors = self._regularized_vectors(context, sentence_prediction, text_targets.sentences)
            losses |= self._regularizers(vectors)
        return losses

    @property
    def compares_texts(self) -> bool:
        """As `config.compares_texts`; losses that a subclass computes are taken for ones that compare texts."""
        has_own_losses = type(self).compute_losses is not TextJepaForPreTraining.compute_losses
        return has_own_losses or self.config.compares_texts

    def weighted_sum(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss: terms weighted by `<name>_loss_weight` of the configuration, or by 1 if it has no such field."""
        return sum(getattr(self.config, f"{name}_loss_weight", 1.0) * loss for name, loss in losses.items())

    def _hidden_token_targets(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masks: TokenMasks,
        text_targets: TextTargets,
    ) -> torch.Tensor:
        """Token-level targets at the target positions: (B, M, T, D)."""
        if self.config.target_input == "text":
            return gather_positions(text_targets.tokens, masks.target_positions)
        encoded = self.encode_targets(
            input_ids,
            attention_mask,
            masks.target_positions,
            output_hidden_states=True,
        )
        targets = self.token_targets(encoded.hidden_states, masks.is_target.flatten(0, 1))
        return targets.unflatten(0, masks.target_positions.shape[:2])

    def _latent_distances(
        self,
        predictions: torch.Tensor,
        targets: torch.Tensor,
        masks: TokenMasks,
        text_length: int,
    ) -> torch.Tensor:
        """The latent loss of each target token (B, M, T), 0 where unused."""
        is_target = masks.is_target
        if self.config.loss_type != "infonce":
            return self._distance(self.config.loss_type, predictions, targets).masked_fill(~is_target, 0)
        # Several masks of a text may hide the same token, which is then not a negative of itself. The rank, in bits
        # that no position reaches, keeps the texts of different processes apart.
        first_id = _rank() << 40
        texts = torch.arange(len(is_target), device=is_target.device).view(-1, 1, 1)
        token_ids = first_id + masks.target_positions + text_length * texts
        distances = self._infonce(predictions[is_target], targets[is_target], target_ids=token_ids[is_target])
        empty = torch.zeros_like(predictions[..., 0], dtype=torch.float32)
        return empty.masked_scatter(is_target, distances)

    def _token_loss(
        self,
        features: torch.Tensor,
        input_ids: torch.Tensor,
        masks: TokenMasks,
    ) -> torch.Tensor:
        """Mean cross-entropy of the hidden tokens from features (R, T, P) through the tied input embedding.

        In training, the mean is over those that are candidates.
        """
        labels = gather_positions(input_ids, masks.target_positions)
        labels = labels.masked_fill(~masks.is_target, -100).flatten(0, 1)
        embedding = self.get_input_embeddings().weight
        if hasattr(embedding, "full_tensor"):  # a DTensor under FSDP2
            from torch.distributed.tensor import Partial

            embedding = embedding.full_tensor(grad_placements=[Partial("avg")])
        num_words = len(embedding)
        num_candidates = min(self.config.token_loss_candidates or num_words, num_words)
        if self.training and num_candidates < num_words:
            candidates, labels = sample_candidates(labels, num_words, num_candidates)
            embedding = embedding[candidates]
        logits = F.linear(self.token_head(features), embedding.to(features.dtype)).float()
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        num_labels = (labels >= 0).sum()
        return total / num_labels.clamp(min=1)

    def _document_loss(self, pooled: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean distance between what pooled contexts (R, D) predict and the targets (B, F) of their documents.

        Targets that are 0 are left out.
        """
        predictions = self.document_predictor(pooled)
        rows = _target_row_of_each_context(len(predictions), targets)
        distances = self._distance(self.config.document_loss_type, predictions, targets[rows])
        has_target = targets[rows].any(dim=-1).to(distances.dtype)
        sums = torch.stack([(distances * has_target).sum(), has_target.sum()])
        total, num_targets = sum_over_processes(sums)
        return total / num_targets.clamp(min=1)

    def _sentence_loss(
        self,
        predictions: torch.Tensor,
        targets: torch.Tensor,
        document_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mean distance between predictions (R, D) and targets (B, D), averaged over the widths of matryoshka."""
        rows = _target_row_of_each_context(len(predictions), targets)
        sizes = [*(self.config.matryoshka_sizes or []), predictions.shape[-1]]
        losses = []
        for size in sizes:
            first = predictions[:, :size]
            expected = targets[:, :size]
            if self.config.sentence_loss_type == "infonce":
                distances = self._infonce(first, expected, rows, document_ids)
            else:
                distances = self._distance(self.config.sentence_loss_type, first, expected[rows])
            all_distances, _ = gather_rows(distances)
            losses.append(all_distances.mean())
        return sum(losses) / len(losses)

    def _similarity_loss(self, vectors: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """The similarity loss of vectors (B, D) of texts, over all processes."""
        all_vectors, _ = gather_rows(vectors.float())
        all_references, _ = gather_rows(references.float())
        with maybe_autocast(vectors.device.type, enabled=False):
            return similarity_loss(all_vectors, all_references, self.config.infonce_temperature)

    def _distance(
        self,
        loss_type: str,
        predictions: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Distances (…) between predictions and targets (…, D), in float32."""
        return latent_distance(predictions.float(), targets.float(), loss_type, self.config.smooth_l1_beta)

    def _infonce(
        self,
        predictions: torch.Tensor,
        targets: torch.Tensor,
        target_rows: torch.Tensor | None = None,
        target_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """InfoNCE of predictions (n, D) and targets (m, D), in float32, see `infonce_distance`."""
        with maybe_autocast(predictions.device.type, enabled=False):
            return infonce_distance(
                predictions.float(),
                targets.float(),
                self.config.infonce_temperature,
                target_rows,
                target_ids,
            )

    def _regularized_vectors(
        self,
        context: ContextStates,
        sentence_prediction: torch.Tensor | None,
        sentence_targets: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """One or two sets of vectors (n, D) for the regularizers: two if both sides of the sentence loss learn."""
        if self.config.regularizer_level == "token":
            return [context.output.last_hidden_state[context.is_visible]]
        is_symmetric = self.config.sentence_loss_weight > 0 and self.config.target_encoder_type == "online"
        if is_symmetric:
            return [sentence_prediction, sentence_targets]
        return [context.pooled]

    def _regularizers(self, vector_sets: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The regularizers of one or two sets of vectors (n, D), over all processes; 0 for fewer than two vectors."""
        names = self.config.regularizers
        vector_sets = [gather_rows(vectors.float())[0] for vectors in vector_sets]
        if len(vector_sets[0]) < 2:
            return {name: vector_sets[0].sum() * 0 for name in names}
        losses = {}
        # Autocast would compute the matrix products in half precision.
        with maybe_autocast(vector_sets[0].device.type, enabled=False):
            if "variance" in names:
                losses["variance"] = sum(variance_loss(vectors) for vectors in vector_sets) / len(vector_sets)
            if "covariance" in names:
                # VICReg sums this term over both sides, and averages the variance term.
                losses["covariance"] = sum(covariance_loss(vectors) for vectors in vector_sets)
            if "sigreg" in names:
                directions = self._random_directions(vector_sets[0])
                losses["sigreg"] = sum(sigreg_loss(vectors, directions) for vectors in vector_sets) / len(vector_sets)
        return losses

    def _random_directions(self, vectors: torch.Tensor) -> torch.Tensor:
        """Unit directions (D, slices), the same on all processes."""
        directions = torch.randn(vectors.shape[1], self.config.sigreg_num_slices, device=vectors.device)
        if _world_size() > 1:
            dist.broadcast(directions, 0)
        return F.normalize(directions, dim=0)


def _warn_of_missing_weights(target_encoder: PreTrainedModel):
    """Warns if files have had some weights of a target encoder and not others; a checkpoint may have none."""
    is_loaded = {
        name: getattr(parameter, "_is_hf_initialized", False) for name, parameter in target_encoder.named_parameters()
    }
    missing = [name for name, loaded in is_loaded.items() if not loaded]
    if 0 < len(missing) < len(is_loaded):
        warnings.warn(
            f"{len(missing)} weights of the target encoder are missing in the files, which may be damaged, such as "
            f"target_encoder.{missing[0]}; those of the context encoder take their places",
            stacklevel=2,
        )


def _with_a_slot(positions: torch.Tensor) -> torch.Tensor:
    """(B, M, K) with one unused slot if K is 0: encoders cannot reshape tensors without elements."""
    return positions if positions.shape[-1] else F.pad(positions, (0, 1), value=-1)


def _target_row_of_each_context(num_contexts: int, targets: torch.Tensor) -> torch.Tensor:
    """(R,) row of each context's target among (B, …), for R = B·M contexts with texts outermost."""
    texts = torch.arange(len(targets), device=targets.device)
    return texts.repeat_interleave(num_contexts // len(targets))


class TextJepaForSequenceClassification(TextJepaPreTrainedModel):
    """A linear classifier (or regressor) on the pooled encoder, `config.classifier_pooling`, for fine-tuning."""

    # The loss is a mean over the texts of a batch: the Trainer has to average it over accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: TextJepaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TextJepaModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """(B, S) and optional labels (B,) -> logits (B, num_labels); the loss follows `config.problem_type`."""
        encoded = self.model(input_ids, attention_mask, return_dict=True, **kwargs)
        states = encoded.last_hidden_state
        if self.config.classifier_pooling == "cls":
            pooled = states[:, 0]
        else:
            pooled = mean_pool(states, attention_mask)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


# Saving copies this code into the folder, so that it opens where the package is not installed.
TextJepaModel.register_for_auto_class("AutoModel")
TextJepaForPreTraining.register_for_auto_class("AutoModelForPreTraining")
TextJepaForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "TextJepaForPreTraining",
    "TextJepaForPreTrainingOutput",
    "TextJepaForSequenceClassification",
    "TextJepaModel",
    "TextJepaPreTrainedModel",
]
