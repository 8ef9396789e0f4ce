# Copyright 2026 The Text-JEPA Authors. Licensed under the Apache License, Version 2.0.
"""Text-JEPA: a text encoder that learns by predicting latent representations of the tokens that it does not see.

    text ─► ids (B,S) ─► TARGET ENCODER (moving average, no gradient, sees everything) ─► targets (B,S,D)
              │                                                                            │ at hidden positions
              └─ visible ids (B·M,C) ─► CONTEXT ENCODER ─► PREDICTOR ─► predictions (B,M,T,D) ─► latent loss
                                             │                    └─► token grounding (tied embedding)
                                             └─ pooled (B·M,D) ─► DOCUMENT PREDICTOR ─► document loss against the
                                                                  │    rest of the document (B,T) in a fixed space
                                                                  └─► sentence loss against the pooled text or view
                                                                      (B,D), variance, covariance, SIGReg

Sizes in shapes: B texts, S tokens of the padded text, M masks (draws of context and spans) per text, C context tokens,
T target tokens, N = C + T, R = B·M rows, D width of the encoder, P width of the predictor, V words, L layers.

Every term of the loss is `<name>_loss`, weighted by the field `<name>_loss_weight` of the configuration.
Both encoders are stock architectures of transformers: either exports as an ordinary checkpoint of its own kind.
"""

import copy
import inspect
from dataclasses import dataclass
from functools import partial

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


try:
    from .configuration_text_jepa import TextJepaConfig
except ImportError:
    from configuration_text_jepa import TextJepaConfig


@dataclass
class TextJepaForPreTrainingOutput(ModelOutput):
    """
    Output of [`TextJepaForPreTraining`]. Losses are scalars before their weights; one of weight 0 is `None`.

    Args:
        loss (`torch.FloatTensor`): Weighted sum of the terms below.
        latent_loss (`torch.FloatTensor`): Distance of predictions and targets, mean of target tokens.
        token_loss (`torch.FloatTensor`): Cross-entropy of the hidden tokens, mean of target tokens.
        document_loss (`torch.FloatTensor`): Distance of the predicted and the true vector of the rest of a document.
        sentence_loss (`torch.FloatTensor`): Distance of predicted and true pooled vectors.
        variance_loss, covariance_loss, sigreg_loss (`torch.FloatTensor`): Regularizers.
        distances (`torch.FloatTensor` of shape `(B, M, T)`): The latent loss of each target token, 0 where unused.
        predictions, targets (`torch.FloatTensor` of shape `(B, M, T, D)`): Representations of the hidden tokens, as
            predicted and as the target encoder has them; `None` without a latent loss.
        text_targets (`tuple(torch.FloatTensor)`): What [`~TextJepaForPreTraining.compute_targets`] made of the texts.
        last_hidden_state (`torch.FloatTensor` of shape `(B·M, C, D)`, or `(B, S, D)` without masks), hidden_states,
            attentions (`tuple(torch.FloatTensor)`, where asked for): The context encoder's.
    """

    loss: torch.FloatTensor | None = None
    latent_loss: torch.FloatTensor | None = None
    token_loss: torch.FloatTensor | None = None
    document_loss: torch.FloatTensor | None = None
    sentence_loss: torch.FloatTensor | None = None
    variance_loss: torch.FloatTensor | None = None
    covariance_loss: torch.FloatTensor | None = None
    sigreg_loss: torch.FloatTensor | None = None
    distances: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    targets: torch.FloatTensor | None = None
    text_targets: tuple[torch.FloatTensor | None, ...] | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the visible tokens: (B, S, D) and (B, S) -> (B, D)."""
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    weights = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def weighted_mean_pool(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor, token_weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean of the visible tokens: (B, S, D), (B, S) and (B, S) -> (B, D), zeros where all weights are 0."""
    weights = (token_weights * attention_mask).to(hidden_states.dtype)
    # A product of matrices needs no copy of all weighted states.
    summed = torch.bmm(weights.unsqueeze(1), hidden_states).squeeze(1)
    return summed / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


def gather_positions(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Values (B, S, …) at positions (B, …, K), where -1 reads position 0: -> (B, …, K, …)."""
    index = positions.clamp(min=0)
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.dim() - 1))
    return values[rows, index]


def moments(values: torch.Tensor, weights: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and variance over some dimensions, which are kept; over dimension 0 of all processes."""

    def average(x):
        sums = torch.cat([weights * x, weights], dim=-1).sum(dims, keepdim=True)
        sums = _SumOfProcesses.apply(sums) if 0 in dims and _world_size() > 1 else sums
        return sums[..., :-1] / sums[..., -1:].clamp(min=1)

    # Not the mean of the squares less the square of the mean: an outlier dimension would leave nothing but rounding.
    mean = average(values)
    return mean, average((values - mean).square())


def average_layers(hidden_states, attention_mask, how: str, running=None) -> torch.Tensor:
    """K layers (B, S, D) and a mask (B, S) -> targets (B, S, D), float32: mean of normalised layers, then normalised.

    `how` is `TextJepaConfig.target_normalization`: `"layer"` as in data2vec for text (arXiv 2202.03555, section 4.3),
    `"instance"` as in data2vec 2.0 (arXiv 2212.07525); `"running"` needs K [`RunningMoments`].
    """
    weights, total = attention_mask.unsqueeze(-1).float(), 0
    for k, layer in enumerate(layer.float() for layer in hidden_states):
        if how == "layer":
            layer = F.layer_norm(layer, layer.shape[-1:])
        elif how != "none":
            dims = (1,) if how == "instance" else (0, 1)
            mean, variance = running[k](layer, weights) if how == "running" else moments(layer, weights, dims)
            layer = (layer - mean) * torch.rsqrt(variance + 1e-5)
        total = total + layer
    return F.layer_norm(total / len(hidden_states), total.shape[-1:])


def latent_distance(predictions, targets, loss_type: str, beta: float) -> torch.Tensor:
    """Distance of each prediction to its target: (…, D) twice -> (…), mean over features; `"cosine"` is 1 - cos."""
    if loss_type == "cosine":
        return 1 - F.cosine_similarity(predictions, targets, dim=-1)
    distance = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": partial(F.smooth_l1_loss, beta=beta)}[loss_type]
    return distance(predictions, targets, reduction="none").mean(dim=-1)


def contrastive_distance(predictions, targets, temperature: float, own=None, ids=None) -> torch.Tensor:
    """InfoNCE (arXiv 1807.03748): each prediction has to find its target, by cosine, among those of all processes.

    Predictions (n, D), targets (m, D) and the row `own` (n,) of each prediction's target, by default the same one, ->
    cross-entropies (n,). Targets with equal `ids` (m,), also of another process, stand for the same thing and are no
    negatives of each other.
    """
    own = torch.arange(len(predictions), device=predictions.device) if own is None else own
    targets, before = gather_rows(targets)
    logits = F.normalize(predictions, dim=-1) @ F.normalize(targets, dim=-1).T / temperature
    labels = own + before
    if ids is not None:
        is_other = labels[:, None] != torch.arange(len(targets), device=ids.device)
        alike = (ids[own, None] == gather_rows(ids)[0]) & is_other
        logits = logits.masked_fill(alike, -torch.inf)
    return F.cross_entropy(logits, labels, reduction="none")


def whitening(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric W (D, D) by which vectors of a covariance (D, D) become uncorrelated (ZCA, arXiv 1512.00809).

    A tenth of the mean variance is added to each, lest noise grow. Twelve steps of Newton and Schulz, for these are
    products alone, where eigenvectors are slow or missing on accelerators.
    """
    unit = torch.eye(len(covariance), device=covariance.device)
    root = covariance + (0.1 * covariance.trace() / len(covariance) + 1e-6) * unit
    scale, inverse = root.norm(), unit
    root = root / scale
    for _ in range(12):
        step = 1.5 * unit - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    return inverse * scale.rsqrt()


def variance_loss(x: torch.Tensor) -> torch.Tensor:
    """VICReg's hinge (arXiv 2105.04906, eq. 1): how far the deviations of the features of (n, D) are below 1."""
    return F.relu(1 - (x.var(dim=0) + 1e-4).sqrt()).mean()


def covariance_loss(x: torch.Tensor) -> torch.Tensor:
    """VICReg's decorrelation (eq. 4): squared covariances of different features of (n, D), summed, over D."""
    x = x - x.mean(dim=0)
    covariance = x.T @ x / (len(x) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def sigreg_loss(x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Epps-Pulley statistic of (n, D) along unit directions (D, slices) against N(0, 1), averaged over the slices.

    n times the weighted squared distance of characteristic functions, integrated by the trapezoid rule over 17 knots
    from 0 to 3, and doubled for the other half (LeJEPA, arXiv 2511.08544). It grows with n: divided by n, it would
    hardly weigh anything.
    """
    t = torch.linspace(0, 3, 17, device=x.device)
    gaussian = torch.exp(-t.square() / 2)
    angles = (x @ directions).unsqueeze(-1) * t
    error = (angles.cos().mean(dim=0) - gaussian).square() + angles.sin().mean(dim=0).square()
    return len(x) * 2 * torch.trapezoid(error * gaussian, t, dim=-1).mean()


def sample_candidates(labels, vocab_size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens for a cross-entropy without a softmax over the vocabulary: those of the batch first, then random ones.

    Labels of any shape, -100 where there is none, V and a count of at most V -> candidate ids (count,) and the labels
    as indices into them. Should the batch hold more different tokens, those left out are not predicted in this step.
    Shapes are fixed and nothing is copied to the host.
    """
    used = labels >= 0
    ids = labels.clamp(min=0)
    score = torch.rand(vocab_size, device=labels.device)
    score.scatter_reduce_(0, ids.flatten(), 2.0 * used.flatten(), reduce="amax")
    candidates = score.topk(count).indices
    slots = torch.full((vocab_size,), -100, device=labels.device)
    slots[candidates] = torch.arange(count, device=labels.device)
    return candidates, torch.where(used, slots[ids], -100)


# ---- several processes ----------------------------------------------------------------------------------------------


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world_size() > 1 else 0


class _SumOfProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient):
        return _SumOfProcesses.apply(gradient)


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Rows (n, …) of all processes, which need not have equally many, and how many stand before this one's.

    A loss of all rows is the same on each process. Gradients add up to as many times its gradient as there are
    processes; their mean, which data-parallel training takes, is the gradient itself.
    """
    if _world_size() == 1:
        return rows, 0
    counts = torch.zeros(_world_size(), dtype=torch.long, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    ends = counts.cumsum(dim=0).tolist()  # the one look that the host takes
    before, behind = ends[dist.get_rank()] - len(rows), ends[-1] - ends[dist.get_rank()]
    return _SumOfProcesses.apply(F.pad(rows, (*[0, 0] * (rows.dim() - 1), before, behind))), before


# ---- predictor ------------------------------------------------------------------------------------------------------


def packed_attention_mask(context_positions: torch.Tensor, target_spans: torch.Tensor) -> torch.Tensor:
    """Who sees whom in the predictor: the context itself, and each span the context and itself, never another span.

    (R, C) and (R, T), -1 where unused -> (R, 1, N, N), True where the row may look. Every row sees itself.
    """
    context = context_positions >= 0
    spans = F.pad(target_spans, (context.shape[1], 0), value=-1)
    same_span = (spans.unsqueeze(-1) == spans.unsqueeze(-2)) & (spans >= 0).unsqueeze(-2)
    sees_context = F.pad(context, (0, target_spans.shape[1])).unsqueeze(-2)
    itself = torch.eye(spans.shape[1], dtype=torch.bool, device=spans.device)
    return (same_span | sees_context | itself).unsqueeze(1)


def rotary_tables(positions: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary embedding (arXiv 2104.09864): (R, N) -> (R, 1, N, head_dim / 2) twice, float32."""
    # Computed anew in every forward: a buffer would be garbage after `from_pretrained` built the model on meta.
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() / theta**exponents
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns each pair of features (i, i + d/2) of (R, heads, N, d) by the angle of its position."""
    cos, sin = rotary
    first, second = states.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


class TextJepaPredictorLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer for the rows from `first` on. Always sdpa: flash attention takes no mask of pairs."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        width, inner = config.pred_hidden_size, int(config.pred_hidden_size * config.pred_mlp_ratio)
        self.num_heads = config.pred_num_attention_heads
        self.attention_norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.q_proj, self.kv_proj, self.o_proj = (nn.Linear(width, count * width) for count in (1, 2, 1))
        self.mlp_norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, inner), ACT2FN[config.pred_hidden_act], nn.Linear(inner, width))

    def forward(self, hidden_states, attention_mask, rotary, first):
        normed, hidden_states = self.attention_norm(hidden_states), hidden_states[:, first:]
        query = self.q_proj(normed[:, first:]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv_proj(normed).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            query, key = rotate(query, [table[:, :, first:] for table in rotary]), rotate(key, rotary)
        attended = F.scaled_dot_product_attention(query, key, value, attention_mask[:, :, first:])
        hidden_states = hidden_states + self.o_proj(attended.transpose(1, 2).flatten(2))
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class TextJepaConvLayer(GradientCheckpointingLayer):
    """Grouped convolution over the text, norm and activation beside a shortcut (the decoder of data2vec 2.0)."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        width, kernel = config.pred_hidden_size, config.pred_conv_kernel_size
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.pred_conv_groups)
        self.norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.activation = ACT2FN[config.pred_hidden_act]

    def forward(self, hidden_states):
        return hidden_states + self.activation(self.norm(self.conv(hidden_states.transpose(1, 2)).transpose(1, 2)))


def _mlp_layer(config):
    return nn.Sequential(ACT2FN[config.pred_hidden_act], nn.Linear(config.pred_hidden_size, config.pred_hidden_size))


class TextJepaPredictor(nn.Module):
    """Narrow network that is given the visible states and asked for the states at the target positions.

    A query is a learned mask token plus its position, never anything of the token there. In a transformer all spans of
    a mask share one pass and are kept from each other by the attention mask, so that a packed pass equals one pass per
    span; convolutions see of the other spans only where they are, and a perceptron takes each query by itself.
    """

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.config = config
        self.context_projection = nn.Linear(config.hidden_size, config.pred_hidden_size)
        self.mask_tokens = nn.Parameter(torch.zeros(config.pred_num_mask_tokens, config.pred_hidden_size))
        learned = config.pred_position_embedding_type == "learned"
        self.position_embeddings = nn.Embedding(config.max_text_length, config.pred_hidden_size) if learned else None
        layer = {"transformer": TextJepaPredictorLayer, "conv": TextJepaConvLayer, "mlp": _mlp_layer}
        self.layers = nn.ModuleList(layer[config.predictor_type](config) for _ in range(config.pred_num_hidden_layers))
        self.norm = nn.LayerNorm(config.pred_hidden_size, eps=config.pred_layer_norm_eps)
        self.gradient_checkpointing = False

    def forward(self, states, positions, hidden, spans, strategies=None, query_states=None, pooled=None, length=None):
        """Context states (R, C, D) and positions (R, C), target positions and their spans (R, T) -> (R, T, P).

        Args:
            strategies: (R,), which mask token each row's queries are; the first by default.
            query_states: (R, T, D), what the encoder made of mask tokens at the target positions.
            pooled: (R, D), added to every query if `pred_pooled_context`.
            length: S, of which convolutions need to know.
        """
        config = self.config
        queries = self.mask_tokens[0] if strategies is None else self.mask_tokens[strategies].unsqueeze(1)
        if config.pred_pooled_context:
            queries = queries + self.context_projection(pooled).unsqueeze(1)
        if query_states is not None:
            queries = queries + self.context_projection(query_states)
        queries = queries.expand(*hidden.shape, -1)
        if config.predictor_type == "mlp":
            states = F.dropout(queries + self._embed(hidden), config.pred_dropout, self.training)
            for layer in self.layers:
                states = layer(states)
            return self.norm(states)
        context_length = states.shape[1]
        context = self.context_projection(states)
        states = torch.cat([context, queries.to(context.dtype)], dim=1)
        places = torch.cat([positions, hidden], dim=1)
        states = F.dropout(states + self._embed(places), config.pred_dropout, self.training)
        if config.predictor_type == "conv":
            return self.norm(gather_positions(self._convolve(states, places, length), hidden))
        rotary, mask = None, packed_attention_mask(positions, spans)
        if self.position_embeddings is None:
            head_dim = config.pred_hidden_size // config.pred_num_attention_heads
            rotary = rotary_tables(places.clamp(min=0), head_dim, config.pred_rope_theta)
        for layer in self.layers:  # of the last one only the queries are read
            states = layer(states, mask, rotary, context_length if layer is self.layers[-1] else 0)
        return self.norm(states)

    def _embed(self, positions):
        return 0 if self.position_embeddings is None else self.position_embeddings(positions.clamp(min=0))

    def _convolve(self, states, places, length):
        """States (R, N, P) at their places (R, N) -> (R, S, P)."""
        places = places.unsqueeze(-1) + 1  # unused slots fall into place 0, which is cut off
        empty = states.new_zeros(len(states), length + 1, states.shape[-1])
        text = empty.scatter(1, places.expand_as(states), states)[:, 1:]
        used = empty[..., :1].scatter(1, places, 1)[:, 1:]
        for layer in self.layers:
            text = layer(text * used)
        return text


# ---- encoder --------------------------------------------------------------------------------------------------------


def _without_pooler(config_class):
    """Keyword that keeps an architecture from building a pooler, which nothing here would train."""
    parameters = inspect.signature(MODEL_MAPPING[config_class].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


def _build_encoder(text_config):
    return AutoModel.from_config(text_config, **_without_pooler(type(text_config)))


def _model_type(name_or_path, **kwargs):
    # Read from the file: `AutoConfig` would ask for the consent to run this very code where it is not registered.
    return PreTrainedConfig.get_config_dict(name_or_path, **kwargs)[0].get("model_type")


def _load_encoder(name_or_path, **kwargs):
    """The encoder in a plain checkpoint or in a Text-JEPA, without pooler, in float32 unless asked otherwise."""
    kwargs.setdefault("dtype", torch.float32)
    model_type = _model_type(name_or_path, **kwargs)
    if model_type == TextJepaConfig.model_type:
        return TextJepaModel.from_pretrained(name_or_path, **kwargs).encoder
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{name_or_path}: model_type '{model_type}' is not an architecture of transformers")
    return AutoModel.from_pretrained(name_or_path, **_without_pooler(CONFIG_MAPPING[model_type]), **kwargs)


def _own_fields(kwargs):
    """Takes the fields of `TextJepaConfig` out of keyword arguments."""
    return {key: kwargs.pop(key) for key in list(kwargs) if key in TextJepaConfig.__annotations__}


def _config_around(encoder, **fields):
    # A configuration passes its attention implementation on to the encoder's: it must not be the default.
    implementation = encoder.config._attn_implementation
    return TextJepaConfig(text_config=copy.deepcopy(encoder.config), attn_implementation=implementation, **fields)


def encode_visible(encoder, config, mode, input_ids, attention_mask, positions, hidden=None, **kwargs):
    """States of the tokens at `positions`, for each mask, as if the others did not exist or were mask tokens.

    The encoder, a `mode` as in `TextJepaConfig.context_mode`, ids and mask (B, S), positions (B, M, K) and, where the
    states of mask tokens are wanted, hidden (B, M, T), -1 where unused -> the encoder's output with
    `last_hidden_state` and, if asked for, `hidden_states` (B·M, K, D), and the states (B·M, T, D) of the mask tokens
    or `None`. What else the output has is of length S unless tokens are dropped.
    """
    rows = positions.flatten(0, 1)
    if mode == "drop":
        ids = gather_positions(input_ids, positions).flatten(0, 1)
        numbers, mask = rows.clamp(min=0) + config.position_offset, _visible_mask(encoder, rows)
        return encoder(input_ids=ids, attention_mask=mask, position_ids=numbers, return_dict=True, **kwargs), None
    ids, mask = (x.repeat_interleave(positions.shape[1], dim=0) for x in (input_ids, attention_mask))
    visible = torch.zeros(len(ids), ids.shape[1] + 1, dtype=torch.bool, device=ids.device)
    visible = visible.scatter(1, rows + 1, True)[:, 1:]  # unused slots fall into the column that is cut off
    if mode == "attention_mask":
        mask = mask * visible
    else:
        ids = ids.masked_fill(~visible, config.mask_token_id)
    output = encoder(input_ids=ids, attention_mask=mask, return_dict=True, **kwargs)
    states = output.last_hidden_state
    output.last_hidden_state = gather_positions(states, rows)
    if output.hidden_states is not None:
        output.hidden_states = tuple(gather_positions(layer, rows) for layer in output.hidden_states)
    return output, gather_positions(states, hidden.flatten(0, 1)) if mode == "mask_token" else None


def _states_of(output):
    return {name: output[name] for name in ("last_hidden_state", "hidden_states", "attentions") if name in output}


def _visible_mask(encoder, positions):
    """Attention mask for gathered tokens at `positions` (R, K), exact also for windows of local attention."""
    used = positions >= 0
    if "sliding_attention" not in (getattr(encoder.config, "layer_types", None) or []):
        return used.long()
    # ModernBERT cuts its window by index, which dropping has shifted: the true distances are handed in.
    implementation = encoder.config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise ValueError(f"dropping tokens from local attention needs sdpa or eager, not {implementation}")
    everywhere = used[:, None, None, :] | torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
    distance = (positions.unsqueeze(-1) - positions.unsqueeze(-2)).abs().unsqueeze(1)
    near = distance <= encoder.config.sliding_window
    masks = {"full_attention": everywhere, "sliding_attention": everywhere & near}
    if implementation == "sdpa":
        return masks
    lowest = torch.finfo(encoder.get_input_embeddings().weight.dtype).min
    return {name: lowest * ~mask for name, mask in masks.items()}


class TextJepaPreTrainedModel(PreTrainedModel):
    """What all Text-JEPA models share: loading, saving with the code beside the weights, initialisation."""

    config: TextJepaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextJepaPredictorLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # An encoder or classifier loaded from a pretraining checkpoint leaves these behind on purpose.
    _keys_to_ignore_on_load_unexpected = [
        r"^(predictor|target_encoder|latent_head|token_head|document_predictor|lexical_space|sentence_head|pooler"
        r"|running)\."
    ]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As `PreTrainedModel.from_pretrained`; a ValueError for what is no Text-JEPA if this class wraps nothing."""
        if config is None:
            model_type = _model_type(pretrained_model_name_or_path, **kwargs)
            if model_type != TextJepaConfig.model_type:
                return cls._from_plain_encoder(pretrained_model_name_or_path, model_type, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    @classmethod
    def _from_plain_encoder(cls, name_or_path, model_type, **kwargs):
        raise ValueError(
            f"{name_or_path} holds a '{model_type}', no Text-JEPA: wrap it with TextJepaForPreTraining.from_encoder, "
            "or open it with TextJepaModel or the Auto classes"
        )

    @classmethod
    def is_custom_code(cls):
        """False: all initialisation goes through `transformers.initialization`, as in the library's own models."""
        return False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, TextJepaPredictor):
            init.normal_(module.mask_tokens, std=self.config.initializer_range)
        elif isinstance(module, (TextJepaPooler, RunningAverages)):
            for tensor in [*module.parameters(), *module.buffers()]:
                init.zeros_(tensor)
        elif isinstance(module, TextJepaWordPooler):
            init.ones_(module.word_weights)
        elif isinstance(module, TextJepaLexicalSpace):
            init.normal_(module.vectors)

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        encoder = self.base_model.encoder
        if self.config.text_config.num_hidden_layers == 0:
            # Without layers a position is an offset that says nothing about a text.
            positions = encoder.embeddings.position_embeddings.weight
            init.zeros_(positions)
            positions.requires_grad_(False)

    def get_input_embeddings(self):
        return self.base_model.encoder.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.base_model.encoder.set_input_embeddings(value)

    def save_pretrained(self, save_directory, **kwargs):
        """Saves weights, configuration and this code, so that every Auto class opens the folder."""
        # The library would enter the class at hand only; the folder serves all of them.
        self.config.auto_map = {
            "AutoConfig": "configuration_text_jepa.TextJepaConfig",
            "AutoModel": "modeling_text_jepa.TextJepaModel",
            "AutoModelForPreTraining": "modeling_text_jepa.TextJepaForPreTraining",
            "AutoModelForSequenceClassification": "modeling_text_jepa.TextJepaForSequenceClassification",
        }
        super().save_pretrained(save_directory, **kwargs)


class TextJepaModel(TextJepaPreTrainedModel):
    """The encoder for downstream use: a stock architecture, `config.text_config`, with its own outputs.

    `from_pretrained` opens a Text-JEPA (the context encoder of a pretraining checkpoint) and wraps any plain encoder.
    """

    def __init__(self, config: TextJepaConfig):
        super().__init__(config)
        self.encoder = _build_encoder(config.text_config)
        self.post_init()

    @classmethod
    def _from_plain_encoder(cls, name_or_path, model_type, output_loading_info=False, **kwargs):
        fields = _own_fields(kwargs)
        encoder, info = _load_encoder(name_or_path, output_loading_info=True, **kwargs)
        with torch.device("meta"):
            model = cls(_config_around(encoder, **fields)).eval()
        model.encoder = encoder
        return (model, info) if output_loading_info else model

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        """(B, S) -> the stock encoder's output, `last_hidden_state` (B, S, D) first; other arguments pass through."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)


class TextJepaPooler(nn.Module):
    """Softmax-weighted mean of the tokens by one learned query; zero, as it begins, is the plain mean."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(R, N, D), (R, N) -> (R, D)."""
        scores = (states @ self.query.to(states.dtype) * states.shape[-1] ** -0.5).float()
        weights = scores.masked_fill(~mask.bool(), torch.finfo(torch.float32).min).softmax(dim=1)
        return (weights.to(states.dtype).unsqueeze(1) @ states).squeeze(1)


class TextJepaWordPooler(nn.Module):
    """Mean of the tokens weighted by a fixed weight of each word of the vocabulary."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.register_buffer("word_weights", torch.ones(config.text_config.vocab_size))

    def forward(self, states: torch.Tensor, mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """(R, N, D), (R, N) and (R, N) -> (R, D)."""
        return weighted_mean_pool(states, mask, self.word_weights[input_ids])


class TextJepaLexicalSpace(nn.Module):
    """A fixed space of texts: the weighted mean of one random vector for each word of the vocabulary.

    Random indexing (Kanerva et al., 2000): a random projection of weighted word counts, with no network that could
    collapse. What PV-DBOW (arXiv 1405.4053) learns by sampling words of a document, the document loss predicts whole.
    """

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.register_buffer("vectors", torch.empty(config.text_config.vocab_size, config.document_target_size))

    def forward(self, input_ids: torch.Tensor, token_weights: torch.Tensor) -> torch.Tensor:
        """Ids (B, S) and weights (B, S), 0 for padding -> (B, T)."""
        summed = F.embedding_bag(input_ids, self.vectors, per_sample_weights=token_weights, mode="sum")
        return summed / token_weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


class TextJepaDocumentPredictor(nn.Module):
    """Predicts from the vector of a window that of the rest of its document: a perceptron with one hidden layer."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        is_lexical = config.document_target == "lexical"
        width = config.document_target_size if is_lexical else config.hidden_size
        self.hidden = nn.Linear(config.hidden_size, config.document_hidden_size)
        self.activation = ACT2FN[config.pred_hidden_act]
        self.output = nn.Linear(config.document_hidden_size, width)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, D) -> (R, T)."""
        return self.output(self.activation(self.hidden(pooled)))


class RunningAverages(nn.Module):
    """Statistics over the batches so far: their plain average at first, then with a momentum."""

    def __init__(self, momentum: float, **shapes):
        super().__init__()
        self.momentum = momentum
        for name, shape in {"updates": (), **shapes}.items():
            self.register_buffer(name, torch.zeros(shape))

    def include(self, **found):
        """Averages in the statistics of one batch, by name; unless one of them is not finite."""
        finite = torch.stack([value.isfinite().all() for value in found.values()]).all()
        self.updates += finite
        step = (1 / self.updates.clamp(min=1)).clamp(min=1 - self.momentum)
        for name, value in found.items():
            getattr(self, name).lerp_(torch.where(finite, value, getattr(self, name)), step)


class RunningMoments(RunningAverages):
    """Mean and variance over the batches so far."""

    def __init__(self, width: int, momentum: float):
        super().__init__(momentum, mean=width, variance=width)

    @torch.no_grad()
    def forward(self, values, weights):
        """(…, D) with weights (…, 1) -> mean and variance (D,); in training these values, if finite, come in first."""
        if self.training:
            mean, variance = moments(values, weights, tuple(range(values.dim() - 1)))
            self.include(mean=mean.flatten(), variance=variance.flatten())
        return self.mean, self.variance


class RunningWhitening(RunningAverages):
    """Whitens vectors by their mean and covariance over the batches so far."""

    def __init__(self, width: int, momentum: float):
        super().__init__(momentum, mean=width, covariance=(width, width))

    @torch.no_grad()
    def forward(self, vectors):
        """(n, D) float32 -> (n, D); in training these vectors, of all processes and if finite, come in first."""
        with torch.autocast(vectors.device.type, enabled=False):
            if self.training:
                rows = gather_rows(vectors)[0]
                mean = rows.mean(dim=0)
                self.include(mean=mean, covariance=(rows - mean).T @ (rows - mean) / len(rows))
            return (vectors - self.mean) @ whitening(self.covariance)


class TextJepaForPreTraining(TextJepaPreTrainedModel):
    """Context encoder, target encoder, predictor and losses; what no term of the loss trains or reads is not built.

    Weights of words are there with any loss: an exported encoder pools by them.

    The target encoder is in every checkpoint, takes no gradient, stays in eval mode and in float32, and moves only by
    `update_target_encoder`.
    """

    # A checkpoint without target encoder starts it as a copy of the context encoder: nothing is missing then.
    _keys_to_ignore_on_load_missing = [r"^target_encoder\."]
    _keys_to_ignore_on_load_unexpected = []
    # In bfloat16 an average with decay 0.999 would not move.
    _keep_in_fp32_modules_strict = ["target_encoder", "running", "pooler", "lexical_space"]

    # What never changes is the same on every process: data-parallel training need not send it with each step.
    _ddp_params_and_buffers_to_ignore = ["lexical_space.vectors", "pooler.word_weights"]

    def __init__(self, config: TextJepaConfig):
        super().__init__(config)
        width = config.hidden_size
        self.model = TextJepaModel(config)
        self.target_encoder = _build_encoder(config.text_config) if config.has_target_encoder else None
        self.predictor = TextJepaPredictor(config) if config.predicts_tokens else None
        narrow, embedded = config.pred_hidden_size, self.get_input_embeddings().embedding_dim
        self.latent_head = nn.Linear(narrow, width) if config.latent_loss_weight > 0 else None
        self.token_head = nn.Linear(narrow, embedded) if config.token_loss_weight > 0 else None
        self.pooler = self._build_pooler(config)
        predicts_documents = config.document_loss_weight > 0
        is_lexical = predicts_documents and config.document_target == "lexical"
        self.document_predictor = TextJepaDocumentPredictor(config) if predicts_documents else None
        self.lexical_space = TextJepaLexicalSpace(config) if is_lexical else None
        self.sentence_head = nn.Identity() if config.sentence_loss_weight > 0 else None
        if config.sentence_loss_weight > 0 and (inner := config.sentence_hidden_size):
            outer = inner if config.target_encoder_type == "online" else width
            layers = (nn.Linear(width, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, outer))
            self.sentence_head = nn.Sequential(*layers)
        self.running = nn.ModuleDict()
        for name in config.running_statistics:
            whitens = name == "sentences" and config.sentence_whitening
            kind = RunningWhitening if whitens else RunningMoments
            size = config.document_target_size if name == "documents" and is_lexical else width
            self.running[name] = kind(size, config.target_momentum)
        self.post_init()

    @staticmethod
    def _build_pooler(config: TextJepaConfig) -> nn.Module | None:
        if config.pooling == "idf":
            return TextJepaWordPooler(config)  # nothing in it is trained, and whoever uses the encoder pools by it
        return TextJepaPooler(config) if config.pooling == "attention" and config.pools_context else None

    @property
    def word_weights(self) -> torch.Tensor | None:
        """The weights of words (V,) of `pooling="idf"`; `None` where texts are pooled in another way."""
        return self.pooler.word_weights if isinstance(self.pooler, TextJepaWordPooler) else None

    @torch.no_grad()
    def set_word_weights(self, weights: torch.Tensor):
        """Sets the weights of words, such as inverse document frequencies (V,); they are 1 before.

        Raises:
            ValueError: The model does not pool by weights of words, or has another number of words.
        """
        if self.word_weights is None:
            raise ValueError("weights of words are for models of pooling='idf'")
        if weights.shape != self.word_weights.shape:
            raise ValueError(f"{len(weights)} weights for {len(self.word_weights)} words")
        self.word_weights.copy_(weights)

    @classmethod
    def from_encoder(cls, name_or_path, **kwargs):
        """A JEPA around an existing encoder: BERT, RoBERTa, DistilBERT, ELECTRA, MPNet, ModernBERT, DeBERTa …

        It is in eval mode; both encoders have the checkpoint's weights, the predictor is new.

        Args:
            name_or_path (`str`): Folder or Hub name of an encoder checkpoint, or of a Text-JEPA.
            **kwargs: Fields of [`TextJepaConfig`]; the rest (`revision`, `token`, `attn_implementation` …) goes to
                `AutoModel.from_pretrained`.
        """
        fields = _own_fields(kwargs)
        encoder = _load_encoder(name_or_path, **kwargs)
        model = cls(_config_around(encoder, **fields)).to(encoder.dtype)
        model.model.encoder.load_state_dict(encoder.state_dict())
        for name in ("running", "pooler", "lexical_space"):
            if getattr(model, name) is not None:
                getattr(model, name).float()
        if model.target_encoder is not None:
            model.target_encoder.float().load_state_dict(encoder.state_dict())
        return model.eval()

    @torch.no_grad()
    def initialize_weights(self):
        # Called after construction and again when `from_pretrained` has filled in what a checkpoint holds.
        super().initialize_weights()
        if self.target_encoder is not None:
            source = dict([*self.model.encoder.named_parameters(), *self.model.encoder.named_buffers()])
            for name, tensor in [*self.target_encoder.named_parameters(), *self.target_encoder.named_buffers()]:
                init.copy_(tensor, source[name])  # leaves alone what was loaded
            self.target_encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.eval()  # targets are made without dropout
        return self

    def _resize_token_embeddings(self, *args, **kwargs):
        if self.target_encoder is not None:
            self.target_encoder._resize_token_embeddings(*args, **kwargs)
        embeddings = super()._resize_token_embeddings(*args, **kwargs)
        self._resize_word_tables(embeddings.num_embeddings)
        return embeddings

    @torch.no_grad()
    def _resize_word_tables(self, num_words: int):
        """Cuts or extends what is kept for each word: a new word is as rare as the rarest, its vector drawn anew."""
        if self.word_weights is not None:
            kept = self.word_weights[:num_words]
            new = kept.new_full((num_words - len(kept),), kept.max())
            self.pooler.word_weights = torch.cat([kept, new])
        if self.lexical_space is not None:
            kept = self.lexical_space.vectors[:num_words]
            new = torch.randn(num_words - len(kept), kept.shape[1], device=kept.device)
            self.lexical_space.vectors = torch.cat([kept, new])

    @torch.no_grad()
    def update_target_encoder(self, decay: float):
        """Target ← decay · target + (1 - decay) · context, in float32; buffers are copied."""
        target = list(self.target_encoder.parameters())
        source = [p.to(t.dtype) for p, t in zip(self.model.encoder.parameters(), target, strict=True)]
        torch._foreach_lerp_(target, source, 1 - decay)
        for buffer, value in zip(self.target_encoder.buffers(), self.model.encoder.buffers(), strict=True):
            buffer.copy_(value)

    @property
    def encoder_of_targets(self) -> PreTrainedModel:
        """The encoder that makes the targets: the moving average or frozen one, or the context encoder itself."""
        return self.model.encoder if self.target_encoder is None else self.target_encoder

    def pool(self, states: torch.Tensor, mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """States (R, N, D), tokens or padding (R, N) and ids (R, N) to vectors (R, D), by `config.pooling`."""
        if isinstance(self.pooler, TextJepaWordPooler):
            return self.pooler(states, mask, input_ids)
        if self.pooler is not None:
            return self.pooler(states, mask)
        return states[:, 0] if self.config.pooling == "cls" else mean_pool(states, mask)

    def encode_targets(self, input_ids, attention_mask, positions=None) -> BaseModelOutput:
        """The teacher on whole texts (B, S) or on the tokens at `positions` (B, M, T) alone; a gradient if online."""
        with torch.set_grad_enabled(self.target_encoder is None and torch.is_grad_enabled()):
            if positions is None:
                inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
                output = self.encoder_of_targets(**inputs, output_hidden_states=True, return_dict=True)
            else:
                mode = "drop" if self.config.drop_is_exact else "attention_mask"
                inputs = (self.config, mode, input_ids, attention_mask, positions)
                output, _ = encode_visible(self.encoder_of_targets, *inputs, output_hidden_states=True)
        if not output.hidden_states:  # of an encoder without layers
            output.hidden_states = (output.last_hidden_state,)
        return output

    def token_targets(self, hidden_states, mask) -> torch.Tensor:
        """Layers of the target encoder (R, N, D) and a mask (R, N) -> token-level targets (R, N, D), float32."""
        layers = hidden_states[-self.config.target_num_layers :]
        running = [module for name, module in self.running.items() if name.startswith("layer")]
        return average_layers(layers, mask, self.config.target_normalization, running)

    def compute_targets(self, text, view) -> tuple[torch.Tensor | None, ...]:
        """The targets that all masks of a text share.

        Args:
            text, view: Ids and attention mask, (B, S) and (B, S'), of the texts and of their views.

        Returns:
            Token-level targets (B, S, D), sentence-level (B, D) and document-level (B, T) ones; `None` for a term
            without weight.
        """
        config = self.config
        tokens = sentences = documents = encoded = pooled = None
        if config.latent_loss_weight > 0 and config.target_input == "text":
            encoded = self.encode_targets(*text)
            tokens = self.token_targets(encoded.hidden_states, text[1])
        if config.sentence_loss_weight > 0 or config.encodes_documents:
            if encoded is None or view is not text:
                encoded = self.encode_targets(*view)
            pooled = self.pool(encoded.last_hidden_state, view[1], view[0])
        if config.sentence_loss_weight > 0:
            sentences = self._sentence_targets(pooled)
        if config.document_loss_weight > 0:
            documents = self._document_targets(pooled, *view)
        return tokens, sentences, documents

    def _sentence_targets(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled views (B, D) of the target encoder, centred or whitened; of an online one behind the head."""
        if self.target_encoder is None:
            return self.sentence_head(pooled)
        pooled, running = pooled.float(), self.running["sentences"]
        if self.config.sentence_whitening:
            pooled = running(pooled)
        else:
            pooled = pooled - running(pooled, torch.ones_like(pooled[:, :1]))[0]
        return F.layer_norm(pooled, pooled.shape[-1:]).detach()

    def _document_targets(
        self, pooled: torch.Tensor | None, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Vectors (B, T) of the views, which hold the rest of each document, less their running mean."""
        if self.lexical_space is not None:
            token_weights = attention_mask.float()
            if self.word_weights is not None:
                token_weights = token_weights * self.word_weights[input_ids]
            targets = self.lexical_space(input_ids, token_weights)
        else:
            targets = pooled.float()
        mean, _ = self.running["documents"](targets, torch.ones_like(targets[:, :1]))
        targets = targets - mean
        # An online encoder learns by its targets as well.
        return targets if self.config.target_encoder_type == "online" else targets.detach()

    @can_return_tuple
    def forward(
        self,
        input_ids,
        attention_mask=None,
        context_positions=None,
        target_positions=None,
        target_spans=None,
        mask_strategies=None,
        view_input_ids=None,
        view_attention_mask=None,
        document_ids=None,
        text_targets=None,
        num_items_in_batch=None,
        return_loss=True,
        **kwargs,
    ) -> TextJepaForPreTrainingOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): The whole texts, right-padded.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 for tokens, 0 for padding.
            context_positions (`torch.LongTensor` of shape `(B, M, C)`, *optional*):
                Visible positions of each mask, -1 where unused. Without them the model only encodes.
            target_positions, target_spans (`torch.LongTensor` of shape `(B, M, T)`, *optional*):
                Hidden positions to predict, and the span that each belongs to, -1 where unused.
            mask_strategies (`torch.LongTensor` of shape `(B, M)`, *optional*): Which mask token each mask uses.
            view_input_ids, view_attention_mask (of shape `(B, S')`, *optional*):
                A view of each text, such as the rest of its document: what the document loss predicts, and the
                sentence loss instead of the text itself.
            document_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
                Texts with equal numbers, also of another process, are of one document, and no negatives of each other
                in the sentence loss.
            text_targets (`tuple`, *optional*): Of the output for other masks of these texts, instead of another pass.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of target tokens that losses are divided by; the batch's own by default. The Trainer gives that
                of all accumulated batches and processes. Terms on whole batches count by this batch's share of it.
            return_loss (`bool`, *optional*, defaults to `True`): `False` leaves it at predictions and targets.

        Raises:
            ValueError: Some but not all of the positions and spans are given, or `token_type_ids` beside them.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        masks = (context_positions, target_positions, target_spans)
        if all(mask is None for mask in masks):
            return TextJepaForPreTrainingOutput(**_states_of(self.model(input_ids, attention_mask, **kwargs)))
        if any(mask is None for mask in masks):
            raise ValueError("context_positions, target_positions and target_spans belong together")
        if "token_type_ids" in kwargs:
            raise ValueError("pretraining takes single texts: leave token_type_ids out")

        config, count = self.config, (target_positions >= 0).sum().clamp(min=1)
        items = count if num_items_in_batch is None else num_items_in_batch
        visible, hidden, spans = (mask.flatten(0, 1) for mask in masks)
        inputs = (config, config.context_mode, input_ids, attention_mask, context_positions, target_positions)
        context, query_states = encode_visible(self.model.encoder, *inputs, **kwargs)
        states = context.last_hidden_state
        pooled = None
        if config.pools_context:
            visible_ids = gather_positions(input_ids, context_positions).flatten(0, 1)
            pooled = self.pool(states, visible >= 0, visible_ids)
        if config.predicts_tokens:
            more = (None if mask_strategies is None else mask_strategies.flatten(), query_states, pooled)
            features = self.predictor(states, visible, hidden, spans, *more, input_ids.shape[1])
        text, view = (input_ids, attention_mask), (view_input_ids, view_attention_mask)
        text_targets = text_targets or self.compute_targets(text, text if view_input_ids is None else view)
        terms, latent = {}, {"text_targets": text_targets}
        if config.latent_loss_weight > 0:
            predictions = self.latent_head(features).unflatten(0, target_positions.shape[:2])
            if config.target_input == "spans":
                taught = self.encode_targets(input_ids, attention_mask, target_positions)
                targets = self.token_targets(taught.hidden_states, hidden >= 0).unflatten(0, target_positions.shape[:2])
            else:
                targets = gather_positions(text_targets[0], target_positions)
            distances = self._distances(predictions, targets, target_positions, input_ids.shape[1])
            terms["latent_loss"] = distances.sum() / items
            latent |= {"distances": distances, "predictions": predictions, "targets": targets}
        if not return_loss:
            return TextJepaForPreTrainingOutput(**latent, **_states_of(context))
        if config.token_loss_weight > 0:
            labels = gather_positions(input_ids, target_positions).masked_fill(target_positions < 0, -100)
            terms["token_loss"] = self._token_loss(features, labels.flatten(0, 1)) / items
        if config.document_loss_weight > 0:
            terms["document_loss"] = self._document_loss(pooled, text_targets[2]) * (count / items)
        if config.sentence_loss_weight > 0:
            prediction, target = self.sentence_head(pooled), text_targets[1]
            texts = torch.arange(len(target), device=target.device).repeat_interleave(target_positions.shape[1])
            distance = self._distance(config.sentence_loss_type, prediction, target, texts, document_ids)
            terms["sentence_loss"] = gather_rows(distance)[0].mean() * (count / items)
        if config.regularizers:
            both = config.sentence_loss_weight > 0 and self.target_encoder is None
            sides = [prediction, target] if both else [pooled]
            sides = [states[visible >= 0]] if config.regularizer_level == "token" else sides
            terms |= {f"{name}_loss": value * (count / items) for name, value in self._regularize(sides).items()}
        loss = sum(getattr(config, f"{name}_weight") * value for name, value in terms.items())
        return TextJepaForPreTrainingOutput(loss=loss, **terms, **latent, **_states_of(context))

    def _document_loss(self, pooled: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean distance between what pooled contexts (B·M, D) predict and the targets (B, T) of their documents."""
        predictions = self.document_predictor(pooled)
        document = torch.arange(len(targets), device=targets.device)
        document = document.repeat_interleave(len(predictions) // len(targets))
        distance = self._distance(self.config.document_loss_type, predictions, targets, own=document)
        return gather_rows(distance)[0].mean()

    def _distances(self, predictions, targets, target_positions, length):
        """The latent loss of each target token (B, M, T), 0 where unused."""
        loss_type, used = self.config.loss_type, target_positions >= 0
        if loss_type != "infonce":
            return self._distance(loss_type, predictions, targets).masked_fill(~used, 0)
        # Several masks of a text may hide the same token: no negatives of each other. Texts of processes differ.
        first = _rank() << 40
        ids = first + target_positions + length * torch.arange(len(used), device=used.device)[:, None, None]
        found = self._distance(loss_type, predictions[used], targets[used], ids=ids[used])
        return torch.zeros_like(predictions[..., 0], dtype=torch.float32).masked_scatter(used, found)

    def _distance(self, loss_type, predictions, targets, own=None, ids=None):
        """Of predictions (…, D) and their targets, in float32: of the same shape, or the rows `own` of (m, D)."""
        predictions, targets = predictions.float(), targets.float()
        if loss_type == "infonce":
            with torch.autocast(predictions.device.type, enabled=False):
                return contrastive_distance(predictions, targets, self.config.infonce_temperature, own, ids)
        targets = targets if own is None else targets[own]
        return latent_distance(predictions, targets, loss_type, self.config.smooth_l1_beta)

    def _token_loss(self, features, labels):
        """Summed cross-entropy of labels (R, T) from features (R, T, P) through the tied input embedding."""
        embedding = self.get_input_embeddings().weight
        if hasattr(embedding, "full_tensor"):  # FSDP2 has sharded it apart from this module
            from torch.distributed.tensor import Partial

            embedding = embedding.full_tensor(grad_placements=[Partial("avg")])
        candidates = min(self.config.token_loss_candidates or len(embedding), len(embedding))
        if self.training and candidates < len(embedding):
            ids, labels = sample_candidates(labels, len(embedding), candidates)
            embedding = embedding[ids]
        logits = F.linear(self.token_head(features), embedding.to(features.dtype)).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")

    def _regularize(self, sides):
        """The regularizers of one or two sets of vectors (n, D), over all processes; 0 of less than two vectors."""
        sides = [gather_rows(side.float())[0] for side in sides]
        names, terms = self.config.regularizers, {}
        if len(sides[0]) < 2:
            return {name: sides[0].sum() * 0 for name in names}
        if "variance" in names:
            terms["variance"] = sum(map(variance_loss, sides)) / len(sides)
        if "covariance" in names:
            with torch.autocast(sides[0].device.type, enabled=False):  # whose products of float32 are not
                terms["covariance"] = sum(map(covariance_loss, sides))
        if "sigreg" in names:
            directions = torch.randn(sides[0].shape[1], self.config.sigreg_num_slices, device=sides[0].device)
            if _world_size() > 1:
                dist.broadcast(directions, 0)
            terms["sigreg"] = sum(sigreg_loss(side, F.normalize(directions, dim=0)) for side in sides) / len(sides)
        return terms


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
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs) -> SequenceClassifierOutput:
        """(B, S) and optional labels (B,) -> logits (B, num_labels); the loss follows `config.problem_type`."""
        encoded = self.model(input_ids, attention_mask, **kwargs)
        states = encoded.last_hidden_state
        pooled = states[:, 0] if self.config.classifier_pooling == "cls" else mean_pool(states, attention_mask)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


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
