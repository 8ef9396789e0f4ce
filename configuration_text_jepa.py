# Copyright 2026 The Text-JEPA Authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a Text-JEPA: a stock text encoder, a narrow predictor and the latent objective.

This file and `modeling_text_jepa.py` are what a Hub repository carries as remote code, so they import nothing but
torch, transformers, huggingface_hub and the standard library.
"""

import dataclasses
import difflib
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2CLS


# Encoders for which dropping the hidden tokens and passing the original positions was measured to be equal to hiding
# them by an attention mask (`tests/test_backbones.py` holds the equality), with the offset that the architecture adds
# to a position: RoBERTa and its kin number positions from `pad_token_id + 1`.
_POSITIONS_FROM_ZERO = {"albert", "bert", "distilbert", "electra", "ernie", "modernbert"}
_POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta"}

# The same numbering in encoders that hide by attention mask.
_OTHERS_AFTER_PADDING = {"esm", "ibert", "longformer", "luke", "mpnet", "xlm-roberta-xl", "xmod"}

# Keys that `PreTrainedConfig` itself takes as plain keyword arguments, or that a saved `config.json` may hold.
_INHERITED_KEYWORDS = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    # The Trainer leaves these on every model's configuration.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
}

# 64 dimensions per head; the feed-forward is gated, so that 8/3 of the width costs as much as BERT's 4 times it.
_PRESETS = {
    "tiny": {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 2},
    "mini": {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4},
    "small": {"num_hidden_layers": 12, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 2752, "num_attention_heads": 16},
}


def _default_text_config(**overrides):
    """A ModernBERT shape with full attention in every layer, for texts of up to 512 tokens."""
    config_class = CONFIG_MAPPING["modernbert"]
    known = [field.name for field in dataclasses.fields(config_class)]
    for key in overrides:
        if key not in known:
            raise ValueError(f"unknown field '{key}' of text_config{_nearest(key, known)}")
    shape = {"vocab_size": 30_522, "max_position_embeddings": 512, **_PRESETS["mini"]}
    # Ids of special tokens are the tokenizer's business: the run sets them. Mean pooling is what we train for.
    shape |= {
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
    }
    shape |= {"classifier_pooling": "mean"} | overrides
    shape.setdefault("layer_types", ["full_attention"] * shape["num_hidden_layers"])
    # ModernBERT's own base of 160,000 is meant for 8,192 tokens.
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    shape.setdefault("rope_parameters", {"full_attention": dict(rope), "sliding_attention": dict(rope)})
    return config_class(**shape)


@strict
class TextJepaConfig(PreTrainedConfig):
    r"""
    Configuration of [`TextJepaModel`] and [`TextJepaForPreTraining`].

    Every field is keyword-only and type checked; an unknown field is an error that names the nearest one.

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the stock text encoder inside (any architecture that `AutoModel` knows). Defaults to a
            ModernBERT shape of 4 layers × 256 with full attention in every layer; a `dict` without `model_type` holds
            what differs from that.
        pred_hidden_size (`int`, *optional*):
            Width of the predictor. Defaults to half the encoder's.
        pred_num_hidden_layers (`int`, *optional*, defaults to 2):
            Number of transformer layers of the predictor.
        pred_num_attention_heads (`int`, *optional*):
            Attention heads of the predictor. Defaults to the encoder's number.
        pred_mlp_ratio (`float`, *optional*, defaults to 4.0):
            Width of the predictor's feed-forward layers relative to `pred_hidden_size`.
        pred_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the predictor's feed-forward layers.
        pred_layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the predictor's layer norms.
        pred_position_embedding_type (`"rotary"` or `"learned"`, *optional*, defaults to `"rotary"`):
            How the predictor knows the position of a context token and of a query.
        pred_rope_theta (`float`, *optional*, defaults to 10000.0):
            Base of the rotary frequencies of the predictor.
        context_mode (`"drop"` or `"attention_mask"`, *optional*):
            How the context encoder is kept from seeing hidden tokens: `"drop"` removes them from its input (cost
            falls with the hidden share), `"attention_mask"` keeps the full length and masks them as keys. Both give
            the same visible states. Defaults to `"drop"` for encoders for which that equality is tested
            (`TextJepaConfig.drop_is_exact`) and to `"attention_mask"` for all others.
        target_num_layers (`int`, *optional*):
            K: the targets are the mean of the last K layers of the target encoder. Defaults to all layers.
        target_normalization (`"none"`, `"layer"` or `"instance"`, *optional*, defaults to `"layer"`):
            Normalisation of each of the K layers before the mean: over the features of a token, or per feature over
            the tokens of a text (data2vec 2.0). A layer norm without parameters follows the mean in every case.
        loss_type (`"smooth_l1"`, `"mse"`, `"l1"` or `"cosine"`, *optional*, defaults to `"smooth_l1"`):
            Latent loss between predictions and targets.
        smooth_l1_beta (`float`, *optional*, defaults to 1.0):
            Where the smooth L1 loss turns from quadratic to linear.
        latent_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the latent loss.
        token_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of token grounding: the cross-entropy of the hidden token itself, read from the predictor's output
            through the tied input embedding. 0 is a pure JEPA and creates no head.
        token_loss_candidates (`int`, *optional*, defaults to 1024):
            In training, the cross-entropy is taken over this many candidate tokens (those of the batch first, then
            random ones), so that no softmax over the whole vocabulary is needed. As many as there are words, or more,
            take the whole vocabulary, as evaluation always does. Candidates are drawn per batch and process: with
            fewer than the vocabulary, this term depends a little on how a batch is split.
        classifier_pooling (`"mean"` or `"cls"`, *optional*, defaults to `"mean"`):
            What [`TextJepaForSequenceClassification`] reads: the mean of the visible tokens or the first token.
        classifier_dropout (`float`, *optional*, defaults to 0.1):
            Dropout before the classifier.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the predictor's and the heads' initial weights.

    Example:
    ```python
    >>> config = TextJepaConfig.preset("mini", text_config={"vocab_size": 8192}, token_loss_weight=0.0)
    >>> config.text_config.model_type, config.hidden_size, config.pred_hidden_size, config.context_mode
    ('modernbert', 256, 128, 'drop')
    ```
    """

    model_type = "text_jepa"
    sub_configs = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None

    pred_hidden_size: int | None = None
    pred_num_hidden_layers: int = 2
    pred_num_attention_heads: int | None = None
    pred_mlp_ratio: float | int = 4.0
    pred_hidden_act: str = "gelu"
    pred_layer_norm_eps: float = 1e-6
    pred_position_embedding_type: Literal["rotary", "learned"] = "rotary"
    pred_rope_theta: float | int = 10_000.0

    context_mode: Literal["drop", "attention_mask"] | None = None
    target_num_layers: int | None = None
    target_normalization: Literal["none", "layer", "instance"] = "layer"

    loss_type: Literal["smooth_l1", "mse", "l1", "cosine"] = "smooth_l1"
    smooth_l1_beta: float | int = 1.0
    latent_loss_weight: float | int = 1.0
    token_loss_weight: float | int = 0.1
    token_loss_candidates: int = 1024

    classifier_pooling: Literal["mean", "cls"] = "mean"
    classifier_dropout: float | int = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self._refuse_unknown_fields(kwargs)
        if self.text_config is None or (isinstance(self.text_config, dict) and "model_type" not in self.text_config):
            self.text_config = _default_text_config(**self.text_config or {})
        elif isinstance(self.text_config, dict):
            fields = dict(self.text_config)
            model_type = fields.pop("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"text_config: unknown model_type '{model_type}'{_nearest(model_type, CONFIG_MAPPING)}"
                )
            self.text_config = CONFIG_MAPPING[model_type](**fields)
        if self.pred_hidden_size is None:
            self.pred_hidden_size = self.text_config.hidden_size // 2
        if self.pred_num_attention_heads is None:
            self.pred_num_attention_heads = self.text_config.num_attention_heads
        if self.target_num_layers is None:
            self.target_num_layers = self.text_config.num_hidden_layers
        if self.context_mode is None:
            self.context_mode = "drop" if self.drop_is_exact else "attention_mask"
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name, text_config=None, **kwargs):
        """A named size: `tiny` 2 × 128, `mini` 4 × 256, `small` 12 × 384, `base` 12 × 768, `large` 24 × 1024.

        Args:
            name (`str`): The size.
            text_config (`dict`, *optional*): Fields of the encoder's configuration that differ from the preset's,
                typically `vocab_size`, `pad_token_id` and `max_position_embeddings`.
            **kwargs: Fields of [`TextJepaConfig`].

        Raises:
            ValueError: The name is not a preset.
        """
        if name not in _PRESETS:
            raise ValueError(f"unknown preset '{name}'; the presets are {', '.join(_PRESETS)}")
        return cls(text_config=_default_text_config(**_PRESETS[name] | (text_config or {})), **kwargs)

    @property
    def drop_is_exact(self) -> bool:
        """Whether removing the hidden tokens is known to equal masking them, for this encoder."""
        return self.text_config.model_type in _POSITIONS_FROM_ZERO | _POSITIONS_AFTER_PADDING

    @property
    def position_offset(self) -> int:
        """What the encoder's architecture adds to a token's position in the text."""
        return self.text_config.pad_token_id + 1 if self._positions_follow_padding else 0

    @property
    def max_text_length(self) -> int | None:
        """Longest text, in tokens, that the encoder has positions for; `None` if the architecture sets no limit."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return limit - self.position_offset if limit and limit > 0 else None

    @property
    def hidden_size(self) -> int:
        """Width of the encoder."""
        return self.text_config.hidden_size

    @property
    def _positions_follow_padding(self):
        return self.text_config.model_type in _POSITIONS_AFTER_PADDING | _OTHERS_AFTER_PADDING

    def _refuse_unknown_fields(self, kwargs):
        own = {field.name for field in dataclasses.fields(self)}
        for key in kwargs:
            if key not in own | _INHERITED_KEYWORDS:
                raise ValueError(f"unknown field '{key}' of TextJepaConfig{_nearest(key, own)}")

    def validate_predictor(self):
        """Raises ValueError if the predictor cannot be built."""
        if self.pred_num_hidden_layers < 1:
            raise ValueError(f"pred_num_hidden_layers must be at least 1, got {self.pred_num_hidden_layers}")
        if self.pred_hidden_act not in ACT2CLS:
            raise ValueError(
                f"unknown pred_hidden_act '{self.pred_hidden_act}'{_nearest(self.pred_hidden_act, ACT2CLS)}"
            )
        if self.pred_hidden_size % self.pred_num_attention_heads:
            raise ValueError(
                f"pred_hidden_size ({self.pred_hidden_size}) must be a multiple of pred_num_attention_heads "
                f"({self.pred_num_attention_heads})"
            )
        if (
            self.pred_position_embedding_type == "rotary"
            and self.pred_hidden_size // self.pred_num_attention_heads % 2
        ):
            raise ValueError("rotary positions need an even width per predictor head: change pred_hidden_size")
        if self.pred_position_embedding_type == "learned" and self.max_text_length is None:
            raise ValueError("learned predictor positions need an encoder with max_position_embeddings")

    def validate_objective(self):
        """Raises ValueError if the objective is empty, undefined or not possible with this encoder."""
        layers = self.text_config.num_hidden_layers
        if not 1 <= self.target_num_layers <= layers:
            raise ValueError(f"target_num_layers must be 1 to {layers} for this encoder, got {self.target_num_layers}")
        if self.latent_loss_weight <= 0 or self.token_loss_weight < 0:
            raise ValueError("latent_loss_weight must be positive and token_loss_weight at least 0")
        if self.token_loss_candidates < 2:
            raise ValueError(f"token_loss_candidates must be at least 2, got {self.token_loss_candidates}")
        if self.smooth_l1_beta <= 0:
            raise ValueError(f"smooth_l1_beta must be positive, got {self.smooth_l1_beta}")
        if self.context_mode == "drop" and not self.drop_is_exact:
            raise ValueError(
                f"context_mode 'drop' is not known to be exact for '{self.text_config.model_type}' encoders; "
                "use 'attention_mask'"
            )


def _nearest(key, names):
    match = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


TextJepaConfig.register_for_auto_class()

__all__ = ["TextJepaConfig"]
