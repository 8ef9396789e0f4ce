# Copyright 2026 The Text-JEPA Authors. Licensed under the Apache License, Version 2.0.
"""Text-JEPA: a text encoder that learns by predicting latent representations of the tokens that it does not see.

    text ─► ids (B,S) ─► TARGET ENCODER (moving average, no gradient, sees everything) ─► targets (B,S,D)
              │                                                                            │ at hidden positions
              └─ visible ids (B·M,C) ─► CONTEXT ENCODER ─► PREDICTOR ─► predictions (B,M,T,D) ─► latent loss
                                                                  └─► token grounding (tied embedding)

Sizes in shapes: B texts, S tokens of the padded text, M masks (draws of context and spans) per text, C context tokens,
T target tokens, N = C + T, D width of the encoder, P width of the predictor, V words, L layers.

Both encoders are stock architectures of transformers: either exports as an ordinary checkpoint of its own kind.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, can_return_tuple


try:
    from .configuration_text_jepa import TextJepaConfig
except ImportError:
    from configuration_text_jepa import TextJepaConfig


@dataclass
class TextJepaForPreTrainingOutput(ModelOutput):
    """
    Output of [`TextJepaForPreTraining`]. Losses are means over the target tokens.

    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the terms below.
        latent_loss (`torch.FloatTensor` of shape `()`): Distance between predictions and targets, before its weight.
        token_loss (`torch.FloatTensor` of shape `()`): Cross-entropy of the hidden tokens, before its weight.
        predictions (`torch.FloatTensor` of shape `(B, M, T, D)`): Predicted representations of the hidden tokens.
        targets (`torch.FloatTensor` of shape `(B, M, T, D)`): What the target encoder says of them.
        last_hidden_state (`torch.FloatTensor` of shape `(B·M, C, D)`, or `(B, S, D)` without masks):
            What the context encoder makes of the visible tokens.
        hidden_states, attentions (`tuple(torch.FloatTensor)`): The context encoder's, where asked for.
    """

    loss: torch.FloatTensor | None = None
    latent_loss: torch.FloatTensor | None = None
    token_loss: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    targets: torch.FloatTensor | None = None
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


def gather_positions(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Values (B, S, …) at positions (B, …, K), where -1 reads position 0: -> (B, …, K, …)."""
    index = positions.clamp(min=0)
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.dim() - 1))
    return values[rows, index]


def average_layers(hidden_states: Sequence[torch.Tensor], attention_mask: torch.Tensor, how: str) -> torch.Tensor:
    """Targets of a text: the mean of normalised layers, then a layer norm without parameters.

    Args:
        hidden_states: The last K layers, each (B, S, D).
        attention_mask: (B, S), 1 for tokens of the text.
        how: `"layer"` normalises each token over its features (data2vec for text, arXiv 2202.03555, section 4.3),
            `"instance"` each feature over the tokens of the text (data2vec 2.0, arXiv 2212.07525), `"none"` nothing.

    Returns:
        (B, S, D) in float32.
    """
    weights = attention_mask.unsqueeze(-1).float()
    count = weights.sum(dim=1, keepdim=True).clamp(min=1)
    total = 0
    for layer in hidden_states:
        layer = layer.float()
        if how == "layer":
            layer = F.layer_norm(layer, layer.shape[-1:])
        elif how == "instance":
            layer = layer - (layer * weights).sum(dim=1, keepdim=True) / count
            variance = (layer.square() * weights).sum(dim=1, keepdim=True) / count
            layer = layer * torch.rsqrt(variance + 1e-5)
        total = total + layer
    return F.layer_norm(total / len(hidden_states), total.shape[-1:])


def latent_distance(predictions: torch.Tensor, targets: torch.Tensor, loss_type: str, beta: float) -> torch.Tensor:
    """Distance of each prediction to its target: (…, D) twice -> (…), the mean over the D features.

    `"cosine"` is 1 - cos; `beta` is where `"smooth_l1"` turns from quadratic to linear.
    """
    if loss_type == "cosine":
        return 1 - F.cosine_similarity(predictions, targets, dim=-1)
    if loss_type == "smooth_l1":
        return F.smooth_l1_loss(predictions, targets, beta=beta, reduction="none").mean(dim=-1)
    return {"mse": F.mse_loss, "l1": F.l1_loss}[loss_type](predictions, targets, reduction="none").mean(dim=-1)


def sample_candidates(labels: torch.Tensor, vocab_size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidate tokens for a cross-entropy that needs no softmax over the vocabulary.

    The tokens of the batch come first, random ones fill up. Should the batch hold more than `count` different tokens,
    those left out are not predicted in this step. Shapes are fixed and nothing is copied to the host.

    Args:
        labels: Token ids of any shape, -100 where there is none.
        vocab_size: V.
        count: Number of candidates, at most V.

    Returns:
        Candidate ids (count,), and the labels as indices into them, -100 where there is none.
    """
    used = labels >= 0
    ids = labels.clamp(min=0)
    score = torch.rand(vocab_size, device=labels.device)
    score.scatter_reduce_(0, ids.flatten(), 2.0 * used.flatten(), reduce="amax")
    candidates = score.topk(count).indices
    slots = torch.full((vocab_size,), -100, device=labels.device)
    slots[candidates] = torch.arange(count, device=labels.device)
    return candidates, torch.where(used, slots[ids], -100)


# ---- predictor ------------------------------------------------------------------------------------------------------


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out: (R, heads, N, d) three times and an additive mask -> (R, N, heads, d), weights."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def packed_attention_mask(context_positions: torch.Tensor, target_spans: torch.Tensor) -> torch.Tensor:
    """Who sees whom in the predictor: the context itself, and each span the context and itself, never another span.

    Args:
        context_positions: (R, C), -1 where unused.
        target_spans: (R, T), the span of each query, -1 where unused.

    Returns:
        (R, 1, N, N) boolean, True where the row may look. Every row sees itself, so that none is empty.
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


class TextJepaPredictorAttention(nn.Module):
    """Multi-head attention of the predictor; q, k and v in one product."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.pred_num_attention_heads
        self.head_dim = config.pred_hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv_proj = nn.Linear(config.pred_hidden_size, 3 * config.pred_hidden_size)
        self.o_proj = nn.Linear(config.pred_hidden_size, config.pred_hidden_size)

    def forward(self, hidden_states, attention_mask, rotary):
        shape = (*hidden_states.shape[:-1], 3, self.num_heads, self.head_dim)
        query, key, value = self.qkv_proj(hidden_states).view(shape).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            _masked_attention(self.config._attn_implementation), eager_attention_forward
        )
        output, _ = attention(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
        return self.o_proj(output.reshape(hidden_states.shape))


class TextJepaPredictorLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        width, inner = config.pred_hidden_size, int(config.pred_hidden_size * config.pred_mlp_ratio)
        self.attention_norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.attention = TextJepaPredictorAttention(config)
        self.mlp_norm = nn.LayerNorm(width, eps=config.pred_layer_norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, inner), ACT2FN[config.pred_hidden_act], nn.Linear(inner, width))

    def forward(self, hidden_states, attention_mask, rotary):
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), attention_mask, rotary)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class TextJepaPredictor(nn.Module):
    """Narrow transformer that is given the visible states and asked for the states at the target positions.

    A query is a learned mask token plus its position, never anything of the token there. All spans of a mask share one
    pass and are kept from each other by the attention mask, so that a packed pass equals one pass per span.
    """

    def __init__(self, config: TextJepaConfig):
        super().__init__()
        self.config = config
        self.context_projection = nn.Linear(config.hidden_size, config.pred_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(config.pred_hidden_size))
        self.position_embeddings = (
            nn.Embedding(config.max_text_length, config.pred_hidden_size)
            if config.pred_position_embedding_type == "learned"
            else None
        )
        self.layers = nn.ModuleList(TextJepaPredictorLayer(config) for _ in range(config.pred_num_hidden_layers))
        self.norm = nn.LayerNorm(config.pred_hidden_size, eps=config.pred_layer_norm_eps)
        self.gradient_checkpointing = False

    def forward(self, context_states, context_positions, target_positions, target_spans):
        """(R, C, D), (R, C), (R, T), (R, T) -> (R, T, P)."""
        context = self.context_projection(context_states)
        queries = self.mask_token.to(context.dtype).expand(*target_positions.shape, -1)
        hidden_states = torch.cat([context, queries], dim=1)
        positions = torch.cat([context_positions, target_positions], dim=1).clamp(min=0)
        if self.position_embeddings is not None:
            hidden_states, rotary = hidden_states + self.position_embeddings(positions), None
        else:
            head_dim = self.config.pred_hidden_size // self.config.pred_num_attention_heads
            rotary = rotary_tables(positions, head_dim, self.config.pred_rope_theta)
        mask = packed_attention_mask(context_positions, target_spans)
        mask = _mask_for(mask, self.config._attn_implementation, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, rotary)
        return self.norm(hidden_states[:, context_states.shape[1] :])


def _masked_attention(implementation):
    # Flash attention takes no mask of pairs, and the predictor needs one.
    return implementation if implementation == "eager" else "sdpa"


def _mask_for(mask, implementation, dtype):
    """A boolean mask as the implementation wants it: boolean for sdpa, additive for eager."""
    if _masked_attention(implementation) == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


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
    _keys_to_ignore_on_load_unexpected = [r"^predictor\.", r"^target_encoder\.", r"^latent_head\.", r"^token_head\."]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As `PreTrainedModel.from_pretrained`, for a Text-JEPA of any kind.

        Raises:
            ValueError: The checkpoint is another architecture and this class does not wrap one.
        """
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
            init.normal_(module.mask_token, std=self.config.initializer_range)

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
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """(B, S) -> the stock encoder's output, `last_hidden_state` (B, S, D) first; other arguments pass through."""
        if position_ids is not None:  # some architectures have no such argument
            kwargs["position_ids"] = position_ids
        return self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, return_dict=True, **kwargs
        )

    def encode_context(self, input_ids, attention_mask, context_positions, **kwargs) -> BaseModelOutput:
        """Encodes the visible tokens of each mask as if the others did not exist.

        Args:
            input_ids, attention_mask: (B, S).
            context_positions: (B, M, C), positions of the visible tokens, -1 where unused.

        Returns:
            The encoder's output with `last_hidden_state` (B·M, C, D). In the mode `attention_mask` its further fields
            are of length S.
        """
        rows = context_positions.flatten(0, 1)
        if self.config.context_mode == "drop":
            context_ids = gather_positions(input_ids, context_positions).flatten(0, 1)
            return self.encoder(
                input_ids=context_ids,
                attention_mask=self._visible_mask(rows),
                position_ids=rows.clamp(min=0) + self.config.position_offset,
                return_dict=True,
                **kwargs,
            )
        masks = context_positions.shape[1]
        visible = torch.zeros(len(rows), input_ids.shape[1] + 1, dtype=torch.long, device=rows.device)
        visible = visible.scatter(1, rows + 1, 1)[:, 1:]  # unused slots fall into the column that is cut off
        visible = visible * attention_mask.repeat_interleave(masks, dim=0)
        output = self.encoder(
            input_ids=input_ids.repeat_interleave(masks, dim=0), attention_mask=visible, return_dict=True, **kwargs
        )
        output.last_hidden_state = gather_positions(output.last_hidden_state, rows)
        return output

    def _visible_mask(self, positions):
        """Attention mask for gathered tokens at `positions` (R, C), exact also for windows of local attention."""
        used = positions >= 0
        layer_types = getattr(self.config.text_config, "layer_types", None) or []
        if "sliding_attention" not in layer_types:
            return used.long()
        # ModernBERT cuts its window by index, which dropping has shifted: the true distances are handed in.
        implementation = self.encoder.config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            raise ValueError(f"dropping tokens from local attention needs sdpa or eager, not {implementation}")
        itself = torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
        everywhere = used[:, None, None, :] | itself
        distance = (positions.unsqueeze(-1) - positions.unsqueeze(-2)).abs().unsqueeze(1)
        nearby = everywhere & (distance <= self.config.text_config.sliding_window)
        dtype = self.get_input_embeddings().weight.dtype
        masks = {"full_attention": everywhere, "sliding_attention": nearby}
        return {name: _mask_for(mask, implementation, dtype) for name, mask in masks.items()}

    def get_input_embeddings(self):
        return self.encoder.get_input_embeddings()


class TextJepaForPreTraining(TextJepaPreTrainedModel):
    """Context encoder, target encoder, predictor and losses.

    The target encoder is in every checkpoint, takes no gradient, stays in eval mode and in float32, and moves only by
    `update_target_encoder`.
    """

    # A checkpoint without target encoder starts it as a copy of the context encoder: nothing is missing then.
    _keys_to_ignore_on_load_missing = [r"^target_encoder\."]
    _keys_to_ignore_on_load_unexpected = []
    # In bfloat16 an average with decay 0.999 would not move.
    _keep_in_fp32_modules_strict = ["target_encoder"]

    def __init__(self, config: TextJepaConfig):
        super().__init__(config)
        self.model = TextJepaModel(config)
        self.target_encoder = _build_encoder(config.text_config)
        self.predictor = TextJepaPredictor(config)
        self.latent_head = nn.Linear(config.pred_hidden_size, config.hidden_size)
        self.token_head = None
        if config.token_loss_weight > 0:
            self.token_head = nn.Linear(config.pred_hidden_size, self.get_input_embeddings().embedding_dim)
        self.post_init()

    @classmethod
    def from_encoder(cls, name_or_path, **kwargs):
        """A JEPA around an existing encoder: BERT, RoBERTa, DistilBERT, ELECTRA, MPNet, ModernBERT, DeBERTa …

        Args:
            name_or_path (`str`): Folder or Hub name of an encoder checkpoint, or of a Text-JEPA.
            **kwargs: Fields of [`TextJepaConfig`]; the rest (`revision`, `token`, `attn_implementation` …) goes to
                `AutoModel.from_pretrained`.

        Returns:
            The model in eval mode: both encoders have the checkpoint's weights, the predictor is new.
        """
        fields = _own_fields(kwargs)
        encoder = _load_encoder(name_or_path, **kwargs)
        model = cls(_config_around(encoder, **fields)).to(encoder.dtype)
        model.target_encoder.float()
        model.model.encoder.load_state_dict(encoder.state_dict())
        model.target_encoder.load_state_dict(encoder.state_dict())
        return model.eval()

    @torch.no_grad()
    def initialize_weights(self):
        # Called after construction and again when `from_pretrained` has filled in what a checkpoint holds.
        super().initialize_weights()
        source = dict(self.model.encoder.state_dict(keep_vars=True))
        source |= dict(self.model.encoder.named_buffers())
        for name, tensor in [*self.target_encoder.named_parameters(), *self.target_encoder.named_buffers()]:
            init.copy_(tensor, source[name])  # leaves alone what was loaded
        self.target_encoder.requires_grad_(False)
        self.target_encoder.eval()

    def train(self, mode: bool = True):
        super().train(mode)
        self.target_encoder.eval()  # targets are made without dropout
        return self

    def _resize_token_embeddings(self, *args, **kwargs):
        self.target_encoder._resize_token_embeddings(*args, **kwargs)
        return super()._resize_token_embeddings(*args, **kwargs)

    @torch.no_grad()
    def update_target_encoder(self, decay: float):
        """Target ← decay · target + (1 - decay) · context, in float32; buffers are copied.

        Args:
            decay: 1 leaves the target encoder as it is, 0 makes it equal to the context encoder.
        """
        target = list(self.target_encoder.parameters())
        source = [p.to(t.dtype) for p, t in zip(self.model.encoder.parameters(), target, strict=True)]
        torch._foreach_lerp_(target, source, 1 - decay)
        for buffer, value in zip(self.target_encoder.buffers(), self.model.encoder.buffers(), strict=True):
            buffer.copy_(value)

    @torch.no_grad()
    def encode_targets(self, input_ids, attention_mask) -> torch.Tensor:
        """(B, S) -> (B, S, D) float32: mean of the last K normalised layers of the target encoder on the full text."""
        layers = self.target_encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, return_dict=True
        ).hidden_states[-self.config.target_num_layers :]
        return average_layers(layers, attention_mask, self.config.target_normalization)

    def predict(self, input_ids, attention_mask, context_positions, target_positions, target_spans, **kwargs):
        """Predicts the hidden tokens of each mask from the visible ones.

        Args:
            input_ids, attention_mask, context_positions, target_positions, target_spans: See `forward`.

        Returns:
            Predictions (B, M, T, D), the predictor's features that they were read from (B·M, T, P), and the context
            encoder's output.
        """
        context = self.model.encode_context(input_ids, attention_mask, context_positions, **kwargs)
        masks = (mask.flatten(0, 1) for mask in (context_positions, target_positions, target_spans))
        features = self.predictor(context.last_hidden_state, *masks)
        return self.latent_head(features).unflatten(0, target_positions.shape[:2]), features, context

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        context_positions: torch.LongTensor | None = None,
        target_positions: torch.LongTensor | None = None,
        target_spans: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> TextJepaForPreTrainingOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): The whole texts, right-padded.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 for tokens, 0 for padding.
            context_positions (`torch.LongTensor` of shape `(B, M, C)`, *optional*):
                Visible positions of each mask, -1 where unused. Without them the model only encodes.
            target_positions (`torch.LongTensor` of shape `(B, M, T)`, *optional*):
                Hidden positions to predict, -1 where unused.
            target_spans (`torch.LongTensor` of shape `(B, M, T)`, *optional*): The span that each belongs to.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of target tokens that the losses are divided by; the batch's own by default. The Trainer gives
                that of all accumulated batches of all processes.
            return_loss (`bool`, *optional*, defaults to `True`): Tells the Trainer that a loss needs no labels.

        Raises:
            ValueError: Some but not all of the positions and spans are given, or `token_type_ids` beside them.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        masks = (context_positions, target_positions, target_spans)
        if all(mask is None for mask in masks):
            encoded = self.model(input_ids, attention_mask=attention_mask, **kwargs)
            return TextJepaForPreTrainingOutput(
                last_hidden_state=encoded.last_hidden_state,
                hidden_states=encoded.hidden_states,
                attentions=encoded.attentions,
            )
        if any(mask is None for mask in masks):
            raise ValueError("context_positions, target_positions and target_spans belong together")

        if "token_type_ids" in kwargs:
            raise ValueError("pretraining takes single texts: leave token_type_ids out")

        targets = gather_positions(self.encode_targets(input_ids, attention_mask), target_positions)
        predictions, features, context = self.predict(input_ids, attention_mask, *masks, **kwargs)
        used = target_positions >= 0
        count = num_items_in_batch if num_items_in_batch is not None else used.sum().clamp(min=1)
        distance = latent_distance(predictions.float(), targets, self.config.loss_type, self.config.smooth_l1_beta)
        latent_loss = distance.masked_fill(~used, 0).sum() / count
        loss = self.config.latent_loss_weight * latent_loss
        token_loss = None
        if self.token_head is not None:
            labels = gather_positions(input_ids, target_positions).masked_fill(~used, -100)
            token_loss = self._token_loss(features, labels.flatten(0, 1)) / count
            loss = loss + self.config.token_loss_weight * token_loss
        return TextJepaForPreTrainingOutput(
            loss=loss,
            latent_loss=latent_loss,
            token_loss=token_loss,
            predictions=predictions,
            targets=targets,
            last_hidden_state=context.last_hidden_state,
            hidden_states=context.hidden_states,
            attentions=context.attentions,
        )

    def _token_loss(self, features, labels):
        """Summed cross-entropy of labels (R, T) from features (R, T, P) through the tied input embedding."""
        embedding = self.get_input_embeddings().weight
        candidates = self.config.token_loss_candidates
        if self.training and candidates < len(embedding):
            ids, labels = sample_candidates(labels, len(embedding), candidates)
            embedding = embedding[ids]
        logits = F.linear(self.token_head(features), embedding.to(features.dtype))
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")


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
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """(B, S) and optional labels (B,) -> logits (B, num_labels); the loss follows `config.problem_type`."""
        encoded = self.model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        states = encoded.last_hidden_state
        pooled = states[:, 0] if self.config.classifier_pooling == "cls" else mean_pool(states, attention_mask)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
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
