# Copyright 2026 The Text-JEPA Authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a Text-JEPA: a stock text encoder, a narrow predictor and the latent objective.

This file and `modeling_text_jepa.py` are what a Hub repository carries as remote code, so they import nothing but
torch, transformers, huggingface_hub and the standard library.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2CLS
from transformers.utils import logging


logger = logging.get_logger(__name__)


# Encoders for which dropping the hidden tokens, with original positions, gives the same states as hiding them by an
# attention mask (`tests/test_backbones.py` checks it). RoBERTa and its kin number positions from `pad_token_id + 1`.
_POSITIONS_FROM_ZERO = {"albert", "bert", "distilbert", "electra", "ernie", "modernbert"}
_POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta"}

# More encoders with the numbering of RoBERTa, for which dropping was not checked.
_OTHERS_AFTER_PADDING = {"esm", "ibert", "longformer", "luke", "mpnet", "xlm-roberta-xl", "xmod"}

# Keyword arguments that `PreTrainedConfig` documents or stores, beside the fields of `TextJepaConfig`.
_INHERITED_KEYWORDS = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "experts_implementation",
    "finetuning_task",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "pad_token_id",
    "prefix",
    "quantization_config",
    "sep_token_id",
    "task_specific_params",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

# Fields of earlier versions, and their defaults: the only values with which a file of those versions still opens.
_REMOVED_FIELDS = {
    "pred_context_ratio": 1.0,
    "pred_trainable_mask_tokens": True,
    "target_centering": False,
    "token_loss_type": "cross_entropy",
}

# The terms of the loss, in the order in which they are reported: each is `<name>_loss`, weighted by
# `<name>_loss_weight`.
LOSS_TERMS = ("latent", "token", "document", "sentence", "similarity", "variance", "covariance", "sigreg")

# 64 dimensions per head. Feed-forward layers are gated: at 8/3 of the width they cost as much as BERT's at 4 times.
_PRESETS = {
    "static": {"num_hidden_layers": 0, "hidden_size": 1536, "num_attention_heads": 24},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 2},
    "mini": {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4},
    "small": {"num_hidden_layers": 12, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 2752, "num_attention_heads": 16},
}

# Fields whose defaults follow from the encoder and from other fields, each after those that it follows from.
_DERIVED_FIELDS = (
    "context_mode",
    "pred_num_attention_heads",
    "pred_hidden_size",
    "pred_position_embedding_type",
    "pred_pooled_context",
    "target_num_layers",
    "sentence_hidden_size",
    "document_hidden_size",
)

# Objectives by name, so that methods can be compared with the same encoder, data and trainer. Their masks are the
# collator's: `configs/` has a recipe for each.
_TOKENS_ALONE = {
    "latent_loss_weight": 0.0,
    "token_loss_weight": 1.0,
    "token_loss_candidates": None,
    "sentence_loss_weight": 0.0,
}
_IN_PLACE = {"context_mode": "mask_token", "predictor_type": "mlp", "pred_num_hidden_layers": 1}
OBJECTIVES = {
    "documents": {
        "latent_loss_weight": 0.0,
        "token_loss_weight": 0.0,
        "document_loss_weight": 1.0,
        "sentence_loss_weight": 0.0,
        "pooling": "idf",
    },
    "jepa": {
        "latent_loss_weight": 1.0,
        "token_loss_weight": 0.1,
        "document_loss_weight": 0.0,
        "sentence_loss_weight": 0.5,
    },
    "mlm": _IN_PLACE | _TOKENS_ALONE,
    "drop_mlm": _TOKENS_ALONE,
    "data2vec": _IN_PLACE | {"smooth_l1_beta": 4.0, "token_loss_weight": 0.0, "sentence_loss_weight": 0.0},
    "simcse": {
        "latent_loss_weight": 0.0,
        "token_loss_weight": 0.0,
        "sentence_loss_weight": 1.0,
        "sentence_loss_type": "infonce",
        "infonce_temperature": 0.05,
        "target_encoder_type": "online",
    },
}


# The stock encoder of a configuration without one, besides its size.
_MODERNBERT_DEFAULTS = {
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
    # ModernBERT's own ids are those of its tokenizer; a run sets those of another one.
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "cls_token_id": None,
    "sep_token_id": None,
    # Vectors of texts are trained as means.
    "classifier_pooling": "mean",
}
# ModernBERT's own base of 160,000 is for texts of 8,192 tokens.
_ROPE_PARAMETERS = {"rope_type": "default", "rope_theta": 10_000.0}

# The same without layers.
_STATIC_DEFAULTS = {
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def _default_text_config(**overrides: Any) -> PreTrainedConfig:
    """A ModernBERT shape with full attention in every layer, for texts of up to 512 tokens, unless it has no layer."""
    if overrides.get("num_hidden_layers") == 0:
        return _static_text_config(**overrides)
    config_class = CONFIG_MAPPING["modernbert"]
    fields = {field.name for field in dataclasses.fields(config_class)}
    _check_known(overrides, fields)
    values = {**_PRESETS["mini"], **_MODERNBERT_DEFAULTS, **overrides}
    values.setdefault("layer_types", ["full_attention"] * values["num_hidden_layers"])
    rope_parameters = {kind: dict(_ROPE_PARAMETERS) for kind in ("full_attention", "sliding_attention")}
    values.setdefault("rope_parameters", rope_parameters)
    return config_class(**values)


def _static_text_config(**overrides: Any) -> PreTrainedConfig:
    """An encoder without layers: the embeddings of a DistilBERT and their norm.

    ModernBERT cannot be saved without layers, and BERT would add a pooler that nothing trains.
    """
    config_class = CONFIG_MAPPING["distilbert"]
    for name in ("cls_token_id", "sep_token_id"):  # not fields of DistilBERT
        overrides.pop(name, None)
    fields = {field.name for field in dataclasses.fields(config_class)}
    _check_known(overrides, fields | set(config_class.attribute_map))
    values = {**_PRESETS["static"], **_STATIC_DEFAULTS, **overrides}
    return config_class(**values)


def _check_known(overrides: dict[str, Any], known: set[str]) -> None:
    """Raises ValueError if a field of `text_config` is unknown."""
    for name in overrides:
        if name not in known:
            raise ValueError(f"unknown field '{name}' of text_config{_nearest(name, known)}")


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
        predictor_type (`"transformer"`, `"conv"` or `"mlp"`, *optional*, defaults to `"transformer"`):
            Architecture of the predictor: a transformer over context and queries in which spans do not attend to each
            other; convolutions over the text with mask tokens in the gaps (the decoder of data2vec 2.0); or a
            perceptron applied to each query alone, which knows of the text what `context_mode="mask_token"` or the
            pooled context has put into the query.
        pred_hidden_size (`int`, *optional*):
            Width of the predictor. Defaults to half the encoder's, and to all of it for `"mlp"`.
        pred_num_hidden_layers (`int`, *optional*, defaults to 2):
            Number of layers of the predictor.
        pred_num_attention_heads (`int`, *optional*):
            Attention heads of a transformer predictor. Defaults to the encoder's number.
        pred_mlp_ratio (`float`, *optional*, defaults to 4.0):
            Width of the transformer predictor's feed-forward layers relative to `pred_hidden_size`.
        pred_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation in the predictor.
        pred_layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the predictor's layer norms.
        pred_position_embedding_type (`"rotary"` or `"learned"`, *optional*):
            Position embeddings of context tokens and queries. Defaults to `"learned"` for an `"mlp"`, otherwise to
            `"rotary"`, which convolutions ignore.
        pred_rope_theta (`float`, *optional*, defaults to 10000.0):
            Base of the rotary frequencies of the predictor.
        pred_conv_kernel_size (`int`, *optional*, defaults to 9):
            Width of the convolutions, an odd number of tokens.
        pred_conv_groups (`int`, *optional*, defaults to 16):
            Groups of the convolutions; must divide `pred_hidden_size`.
        pred_num_mask_tokens (`int`, *optional*, defaults to 1):
            Mask tokens of the predictor, one for each mask strategy of a mixture (UL2, arXiv 2205.05131).
        pred_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the predictor's input.
        pred_pooled_context (`bool`, *optional*):
            Whether to add the pooled context to every query. Defaults to `True` for an `"mlp"` that has no other
            input, otherwise to `False`.
        pooling (`"mean"`, `"cls"`, `"attention"` or `"idf"`, *optional*, defaults to `"mean"`):
            The vector of a text in terms on documents and sentences and in `pred_pooled_context`: the mean of its
            tokens, the first token, a softmax-weighted mean with one learned query, or a mean weighted by the inverse
            document frequency of each token, see [`~TextJepaForPreTraining.set_word_weights`].
        context_mode (`"drop"`, `"attention_mask"` or `"mask_token"`, *optional*):
            How tokens are hidden from the context encoder: `"drop"` removes them from its input (the cost falls with
            the hidden share), `"attention_mask"` keeps the full length and masks them as keys. Both give the same
            visible states. `"mask_token"` replaces them by `mask_token_id`, as BERT and data2vec do, and adds the
            states at these positions to the queries. Defaults to `"drop"` for encoders for which the equality is
            tested (`TextJepaConfig.drop_is_exact`) and to `"attention_mask"` for all others.
        mask_token_id (`int`, *optional*):
            The tokenizer's mask token, for `context_mode="mask_token"`.
        target_encoder_type (`"ema"`, `"frozen"` or `"online"`, *optional*, defaults to `"ema"`):
            What makes the targets: a moving average of the context encoder without gradient, the encoder as it was
            before the run (SALT, arXiv 2509.24317), or the context encoder itself with gradient, which needs a
            regularizer or InfoNCE against collapse.
        target_input (`"text"` or `"spans"`, *optional*, defaults to `"text"`):
            Input of the target encoder for token-level targets: the whole text, or only the hidden tokens of a mask.
        target_num_layers (`int`, *optional*):
            K: the targets are the mean of the last K layers of the target encoder. Defaults to all layers.
        target_normalization (`str`, *optional*, defaults to `"layer"`):
            Normalization of each of the K layers before the mean: `"none"`; `"layer"`, over the features of a token;
            or per feature over the tokens of a text (`"instance"`, data2vec 2.0; not trained with
            `target_input="spans"`, where a single token would have the target 0), of the batch of all processes
            (`"batch"`), or of all batches so far (`"running"`, for encoders with outlier dimensions). A layer norm
            without parameters follows the mean in every case.
        target_momentum (`float`, *optional*, defaults to 0.99):
            Momentum of the running statistics of targets.
        loss_type (`"smooth_l1"`, `"mse"`, `"l1"`, `"cosine"` or `"infonce"`, *optional*, defaults to `"smooth_l1"`):
            Latent loss between predictions and targets; InfoNCE (arXiv 1807.03748) contrasts a target with all other
            hidden tokens in the batches of all processes.
        smooth_l1_beta (`float`, *optional*, defaults to 1.0):
            Where the smooth L1 loss turns from quadratic to linear.
        infonce_temperature (`float`, *optional*, defaults to 0.2):
            Cosines are divided by this in InfoNCE.
        latent_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the latent loss. As for every term: with 0 it is not computed, and its modules are not built.
        token_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of token grounding: the cross-entropy of the hidden token, predicted from the predictor's features
            through the tied input embedding. 0 is a pure JEPA.
        token_loss_candidates (`int`, *optional*, defaults to 1024):
            Number of candidates of the softmax in training (sampled softmax): the tokens of the batch, the most
            frequent first, then random ones. A hidden token that is not a candidate is left out of the term. `None`
            takes the whole vocabulary, as evaluation always does. Candidates are drawn per batch and process, so this
            term depends a little on how a batch is split.
        document_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the document loss: from the pooled context, a predictor of its own predicts the vector of the
            rest of its document (or of a neighbouring window), which the collator gives as the view.
        document_target (`"lexical"` or `"encoder"`, *optional*, defaults to `"lexical"`):
            Target space of the document loss: the weighted mean of fixed random vectors of the tokens (random
            indexing, Kanerva et al., 2000), which needs no network and cannot collapse; or the pooled states of the
            target encoder. Targets are centred by their running mean.
        document_target_size (`int`, *optional*, defaults to 384):
            Width of the lexical space.
        document_loss_type (`"cosine"` or `"smooth_l1"`, *optional*, defaults to `"cosine"`):
            Distance between predictions and targets of the document loss.
        document_hidden_size (`int`, *optional*):
            Width of the hidden layer of the document predictor. Defaults to twice the encoder's.
        sentence_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the sentence loss: from the pooled context, a head predicts the pooled target of the whole text,
            or of its view if the collator makes one. With an online target both sides go through the head (the
            expander of VICReg, the projection of SimCSE).
        sentence_loss_type (`str`, *optional*, defaults to `"infonce"`):
            Distance between predictions and targets of the sentence loss, as `loss_type`; `"mse"` with online targets
            is VICReg's invariance term.
        sentence_hidden_size (`int`, *optional*):
            Width of the hidden layer of the sentence head; with 0 there is no head, and the pooled vectors themselves
            are compared. Defaults to 0 for `"infonce"` unless targets are online, otherwise to twice the encoder's.
        matryoshka_sizes (`list[int]`, *optional*):
            Smaller widths at which vectors are compared too, such as 64 128 256: vectors can then be cut to their
            first features (arXiv 2205.13147). All widths have the same weight. Needs `sentence_hidden_size` 0.
        sentence_whitening (`bool`, *optional*, defaults to `True`):
            Whether to whiten the pooled targets of a target encoder without gradient by their running covariance
            instead of centring them: directions that all texts share, such as those of frequent words, then weigh no
            more than others.
        similarity_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the similarity loss, which keeps what a trained encoder knows of short texts: how much the
            beginning of each text resembles the others of its batch, as a softmax over their cosines divided by
            `infonce_temperature`, is to stay as the target encoder has it (probabilistic knowledge transfer, arXiv
            1803.10837). With online targets, the target encoder of this term is the encoder before the run. From
            Python that is the one in the files of a saved model, or a copy of the context encoder.
        similarity_length (`int`, *optional*, defaults to 16):
            Number of first tokens of a text that the similarity loss reads. If they were all, it would hold back what
            the other terms teach.
        variance_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of VICReg's variance hinge (arXiv 2105.04906).
        covariance_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of VICReg's covariance term.
        sigreg_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of SIGReg: the Epps-Pulley statistic against a standard normal distribution along random directions
            (LeJEPA, arXiv 2511.08544).
        sigreg_num_slices (`int`, *optional*, defaults to 256):
            Random directions of SIGReg in each step.
        regularizer_level (`"sentence"` or `"token"`, *optional*, defaults to `"sentence"`):
            Vectors that variance, covariance and SIGReg are computed from, over the batches of all processes: pooled
            contexts (with an online target, both sides of the sentence loss behind the head), or the states of the
            context tokens. The latter keep online targets of the sentence loss from no collapse, and are not
            trained with them unless the loss is InfoNCE.
        classifier_pooling (`"mean"` or `"cls"`, *optional*, defaults to `"mean"`):
            Input of the classifier of [`TextJepaForSequenceClassification`]: the mean of the tokens or the first one.
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

    # A subclass with a term of its own adds its name, and a field `<name>_loss_weight`.
    loss_terms = LOSS_TERMS

    text_config: dict | PreTrainedConfig | None = None

    predictor_type: Literal["transformer", "conv", "mlp"] = "transformer"
    pred_hidden_size: int | None = None
    pred_num_hidden_layers: int = 2
    pred_num_attention_heads: int | None = None
    pred_mlp_ratio: float | int = 4.0
    pred_hidden_act: str = "gelu"
    pred_layer_norm_eps: float = 1e-6
    pred_position_embedding_type: Literal["rotary", "learned"] | None = None
    pred_rope_theta: float | int = 10_000.0
    pred_conv_kernel_size: int = 9
    pred_conv_groups: int = 16
    pred_num_mask_tokens: int = 1
    pred_dropout: float | int = 0.0
    pred_pooled_context: bool | None = None

    pooling: Literal["mean", "cls", "attention", "idf"] = "mean"
    context_mode: Literal["drop", "attention_mask", "mask_token"] | None = None
    mask_token_id: int | None = None

    target_encoder_type: Literal["ema", "frozen", "online"] = "ema"
    target_input: Literal["text", "spans"] = "text"
    target_num_layers: int | None = None
    target_normalization: Literal["none", "layer", "instance", "batch", "running"] = "layer"
    target_momentum: float | int = 0.99

    loss_type: Literal["smooth_l1", "mse", "l1", "cosine", "infonce"] = "smooth_l1"
    smooth_l1_beta: float | int = 1.0
    infonce_temperature: float | int = 0.2
    latent_loss_weight: float | int = 1.0
    token_loss_weight: float | int = 0.1
    token_loss_candidates: int | None = 1024
    document_loss_weight: float | int = 0.0
    document_target: Literal["lexical", "encoder"] = "lexical"
    document_target_size: int = 384
    document_loss_type: Literal["cosine", "smooth_l1"] = "cosine"
    document_hidden_size: int | None = None
    sentence_loss_weight: float | int = 0.5
    sentence_loss_type: Literal["cosine", "mse", "l1", "smooth_l1", "infonce"] = "infonce"
    sentence_hidden_size: int | None = None
    matryoshka_sizes: list[int] | None = None
    sentence_whitening: bool = True
    similarity_loss_weight: float | int = 0.0
    similarity_length: int = 16
    variance_loss_weight: float | int = 0.0
    covariance_loss_weight: float | int = 0.0
    sigreg_loss_weight: float | int = 0.0
    sigreg_num_slices: int = 256
    regularizer_level: Literal["sentence", "token"] = "sentence"

    classifier_pooling: Literal["mean", "cls"] = "mean"
    classifier_dropout: float | int = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self._drop_removed_fields(kwargs)
        self._refuse_unknown_fields(kwargs)
        self._build_text_config()
        self._fill_in_defaults()
        super().__post_init__(**kwargs)

    def _build_text_config(self):
        if self.text_config is None or (isinstance(self.text_config, dict) and "model_type" not in self.text_config):
            self.text_config = _default_text_config(**(self.text_config or {}))
        elif isinstance(self.text_config, dict):
            fields = dict(self.text_config)
            model_type = fields.pop("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"text_config: unknown model_type '{model_type}'{_nearest(model_type, CONFIG_MAPPING)}"
                )
            self.text_config = CONFIG_MAPPING[model_type](**fields)

    def _fill_in_defaults(self):
        for name in _DERIVED_FIELDS:
            if getattr(self, name) is None:
                setattr(self, name, self._derived_default(name))

    def _derived_default(self, name: str) -> Any:
        """The default of one of `_DERIVED_FIELDS`."""
        is_mlp = self.predictor_type == "mlp"
        width = self.text_config.hidden_size
        if name == "context_mode":
            return "drop" if self.drop_is_exact else "attention_mask"
        if name == "pred_num_attention_heads":
            return self.text_config.num_attention_heads
        if name == "pred_hidden_size":
            return width if is_mlp else self._half_width_for_heads()
        if name == "pred_position_embedding_type":
            return "learned" if is_mlp else "rotary"
        if name == "pred_pooled_context":
            return is_mlp and self.context_mode != "mask_token"
        if name == "target_num_layers":
            return self._most_target_layers
        if name == "sentence_hidden_size":
            has_no_head = self.sentence_loss_type == "infonce" and self.target_encoder_type != "online"
            return 0 if has_no_head else 2 * width
        if name == "document_hidden_size":
            return 2 * width
        raise ValueError(f"{name} has no derived default")

    def _half_width_for_heads(self) -> int:
        """Half of the encoder's width, rounded up so that rotary positions have an even width per head."""
        half = self.text_config.hidden_size // 2
        multiple = 2 * max(self.pred_num_attention_heads, 1)
        return math.ceil(half / multiple) * multiple

    @property
    def _most_target_layers(self) -> int:
        return max(self.text_config.num_hidden_layers, 1)

    def __init_subclass__(cls, *args, **kwargs) -> None:
        # transformers cannot save the code of a class that a script defines, and would say so at every saving.
        super().__init_subclass__(*args, **kwargs)
        if cls.__module__ == "__main__":
            cls._auto_class = None

    @classmethod
    def preset(cls, name: str, text_config: dict[str, Any] | None = None, **kwargs: Any) -> "TextJepaConfig":
        """A configuration of a named size, layers × width.

        `static` 0 × 1536, `tiny` 2 × 128, `mini` 4 × 256, `small` 12 × 384, `base` 12 × 768, `large` 24 × 1024.

        Args:
            name (`str`): Name of the size.
            text_config (`dict`, *optional*): Fields of the encoder's configuration that differ from the preset's,
                typically `vocab_size`, `pad_token_id` and `max_position_embeddings`.
            **kwargs: Fields of [`TextJepaConfig`].

        Raises:
            ValueError: The name is not a preset.
        """
        if name not in _PRESETS:
            raise ValueError(f"unknown preset '{name}'; the presets are {', '.join(_PRESETS)}")
        overrides = {**_PRESETS[name], **(text_config or {})}
        return cls(text_config=_default_text_config(**overrides), **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As `PreTrainedConfig.from_dict`; keys that other tools or later versions have written are kept.

        An unknown key becomes an attribute, with one warning, and is saved again. To [`TextJepaConfig`] itself an
        unknown keyword argument is an error. A field whose default follows from other fields, and whose saved value
        was this default, follows the fields that are given here.
        """
        known_keys = cls._known_keys()
        known = {key: value for key, value in config_dict.items() if key in known_keys}
        unknown = {key: value for key, value in config_dict.items() if key not in known_keys}
        given = {key: kwargs.pop(key) for key in cls.own_fields() if key in kwargs}
        if given:
            known = cls._without_defaults(known) | given
        result = super().from_dict(known, **kwargs)
        config = result[0] if kwargs.get("return_unused_kwargs") else result
        for key, value in unknown.items():
            setattr(config, key, value)
        if unknown:
            logger.warning(f"unknown fields of TextJepaConfig are kept unchanged: {', '.join(sorted(unknown))}")
        return result

    @classmethod
    def own_fields(cls) -> list[str]:
        """Names of the fields that this class adds to those of `PreTrainedConfig`, without `text_config`."""
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"text_config"}
        return [field.name for field in dataclasses.fields(cls) if field.name not in inherited]

    @classmethod
    def _without_defaults(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """The fields of a saved configuration, without derived ones that have their defaults."""
        saved = super().from_dict(dict(config_dict))
        at_default = [name for name in _DERIVED_FIELDS if getattr(saved, name) == saved._derived_default(name)]
        return {key: value for key, value in config_dict.items() if key not in at_default}

    @property
    def drop_is_exact(self) -> bool:
        """Whether removing the hidden tokens is known to equal masking them, for this encoder."""
        return self.text_config.model_type in _POSITIONS_FROM_ZERO | _POSITIONS_AFTER_PADDING

    @property
    def predicts_tokens(self) -> bool:
        """Whether a term of the loss needs the predictor."""
        return self.latent_loss_weight > 0 or self.token_loss_weight > 0

    @property
    def reads_token_states(self) -> bool:
        """Whether a term of the loss reads the states of single tokens of the context encoder."""
        regularizes_tokens = bool(self.regularizers) and self.regularizer_level == "token"
        return self.predicts_tokens or regularizes_tokens

    @property
    def has_target_encoder(self) -> bool:
        """Whether a term of the loss needs a target encoder other than the context encoder."""
        if self.similarity_loss_weight > 0:
            return True
        if self.target_encoder_type == "online":
            return False
        return self.latent_loss_weight > 0 or self.sentence_loss_weight > 0 or self.encodes_documents

    @property
    def has_moving_average(self) -> bool:
        """Whether the target encoder is a moving average of the context encoder."""
        return self.has_target_encoder and self.target_encoder_type == "ema"

    @property
    def encodes_documents(self) -> bool:
        """Whether an encoder makes the targets of the document loss."""
        return self.document_loss_weight > 0 and self.document_target == "encoder"

    @property
    def document_width(self) -> int:
        """F, the width of the targets of the document loss."""
        return self.hidden_size if self.document_target == "encoder" else self.document_target_size

    @property
    def pools_context(self) -> bool:
        """Whether a part of the model needs the pooled context."""
        if self.document_loss_weight > 0 or self.sentence_loss_weight > 0:
            return True
        if self.predicts_tokens and self.pred_pooled_context:
            return True
        return bool(self.regularizers) and self.regularizer_level == "sentence"

    @property
    def compares_texts(self) -> bool:
        """Whether the loss of a text depends on the other texts of its batch: negatives, or statistics of the batch.

        A term in `loss_terms` that a subclass adds is taken for one that does.
        """
        reasons = [
            self.latent_loss_weight > 0 and self.loss_type == "infonce",
            self.latent_loss_weight > 0 and self.target_normalization == "batch",
            self.sentence_loss_weight > 0 and self.sentence_loss_type == "infonce",
            self.similarity_loss_weight > 0,
        ]
        own_terms = set(self.loss_terms) - set(LOSS_TERMS)
        return any(reasons) or bool(self.regularizers) or bool(own_terms)

    @property
    def running_statistics(self) -> list[str]:
        """Names of the targets with running statistics: `layer0` and so on, `documents`, `sentences`."""
        names = []
        if self.latent_loss_weight > 0 and self.target_normalization == "running":
            names += [f"layer{k}" for k in range(self.target_num_layers)]
        if self.document_loss_weight > 0:
            names.append("documents")
        if self.sentence_loss_weight > 0 and self.target_encoder_type != "online":
            names.append("sentences")
        return names

    @property
    def regularizers(self) -> tuple[str, ...]:
        """The names of the regularizing terms in use."""
        return tuple(name for name in ("variance", "covariance", "sigreg") if getattr(self, f"{name}_loss_weight") > 0)

    @property
    def position_offset(self) -> int:
        """The number that the encoder's architecture adds to positions."""
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

    @hidden_size.setter
    def hidden_size(self, value: int):
        self.text_config.hidden_size = value

    @property
    def vocab_size(self) -> int:
        """Size of the encoder's vocabulary."""
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int):
        self.text_config.vocab_size = value

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers of the encoder."""
        return self.text_config.num_hidden_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        self.text_config.num_hidden_layers = value

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the encoder."""
        return self.text_config.num_attention_heads

    @num_attention_heads.setter
    def num_attention_heads(self, value: int):
        self.text_config.num_attention_heads = value

    @property
    def _positions_follow_padding(self) -> bool:
        return self.text_config.model_type in _POSITIONS_AFTER_PADDING | _OTHERS_AFTER_PADDING

    def _drop_removed_fields(self, kwargs: dict[str, Any]) -> None:
        for name, default in _REMOVED_FIELDS.items():
            value = kwargs.pop(name, default)
            if value != default:
                raise ValueError(f"{name}={value!r}: this option was removed; leave it out and train the model again")

    @classmethod
    def _known_keys(cls) -> set[str]:
        fields = {field.name for field in dataclasses.fields(cls)}
        return fields | _INHERITED_KEYWORDS | set(_REMOVED_FIELDS)

    def _refuse_unknown_fields(self, kwargs: dict[str, Any]) -> None:
        fields = {field.name for field in dataclasses.fields(self)}
        for key in kwargs:
            if key not in self._known_keys():
                raise ValueError(f"unknown field '{key}' of {type(self).__name__}{_nearest(key, fields)}")

    def _check_at_least_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < math.inf:  # also for NaN
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    def _validate_matryoshka_sizes(self):
        width = self.text_config.hidden_size
        for size in self.matryoshka_sizes or []:
            if not 1 <= size < width:
                raise ValueError(f"matryoshka_sizes must lie between 1 and {width - 1} features, got {size}")
        if self.matryoshka_sizes and not (self.sentence_loss_weight > 0 and self.sentence_hidden_size == 0):
            raise ValueError(
                "matryoshka_sizes need the vectors themselves in the sentence loss: set sentence_loss_weight above 0 "
                "and sentence_hidden_size to 0"
            )

    def validate_predictor(self):
        """Raises ValueError if the predictor of tokens, where there is one, or that of documents cannot be built."""
        if self.pred_hidden_act not in ACT2CLS:
            raise ValueError(
                f"unknown pred_hidden_act '{self.pred_hidden_act}'{_nearest(self.pred_hidden_act, ACT2CLS)}"
            )
        if not self.predicts_tokens:
            return
        self._check_at_least_one(
            "pred_hidden_size",
            "pred_num_hidden_layers",
            "pred_num_attention_heads",
            "pred_conv_groups",
            "pred_conv_kernel_size",
            "pred_num_mask_tokens",
        )
        self._check_positive("pred_mlp_ratio", "pred_layer_norm_eps", "pred_rope_theta")
        if int(self.pred_hidden_size * self.pred_mlp_ratio) < 1:
            raise ValueError(
                f"pred_mlp_ratio times pred_hidden_size must be at least 1, got {self.pred_mlp_ratio} times "
                f"{self.pred_hidden_size}"
            )
        if self.predictor_type == "transformer":
            self._validate_heads()
        elif self.predictor_type == "conv":
            self._validate_conv()
        else:
            self._validate_mlp()
        if self.pred_position_embedding_type == "learned" and self.max_text_length is None:
            raise ValueError("learned predictor positions need an encoder with max_position_embeddings")
        if not 0 <= self.pred_dropout < 1:
            raise ValueError(f"pred_dropout must be at least 0 and below 1, got {self.pred_dropout}")

    def _validate_heads(self):
        if self.pred_hidden_size % self.pred_num_attention_heads:
            raise ValueError(
                f"pred_hidden_size ({self.pred_hidden_size}) must be a multiple of pred_num_attention_heads "
                f"({self.pred_num_attention_heads})"
            )
        head_dim = self.pred_hidden_size // self.pred_num_attention_heads
        if self.pred_position_embedding_type == "rotary" and head_dim % 2:
            raise ValueError("rotary positions need an even width per predictor head: change pred_hidden_size")

    def _validate_conv(self):
        if self.pred_hidden_size % self.pred_conv_groups:
            raise ValueError(
                f"pred_hidden_size ({self.pred_hidden_size}) must be a multiple of pred_conv_groups "
                f"({self.pred_conv_groups})"
            )
        if self.pred_conv_kernel_size % 2 == 0:
            raise ValueError(f"pred_conv_kernel_size must be odd, got {self.pred_conv_kernel_size}")

    def _validate_mlp(self):
        sees_context = self.context_mode == "mask_token" or self.pred_pooled_context
        if not sees_context or self.pred_position_embedding_type != "learned":
            raise ValueError(
                "an mlp predictor needs pred_position_embedding_type 'learned', and pred_pooled_context unless "
                "context_mode is 'mask_token': it has no input but its queries"
            )

    def validate_objective(self):
        """Raises ValueError if the objective has no term, is not defined, or does not work with this encoder."""
        self._validate_weights()
        self._validate_targets()
        self._validate_text_vectors()
        self._validate_online_targets()
        self._validate_context_mode()

    def _validate_weights(self):
        for name in self.loss_terms:
            weight = getattr(self, f"{name}_loss_weight")
            if not 0 <= weight < math.inf:  # also for NaN
                raise ValueError(f"{name}_loss_weight must be at least 0 and finite, got {weight}")
        if not (self.predicts_tokens or self.document_loss_weight or self.sentence_loss_weight):
            raise ValueError(
                "latent_loss_weight, token_loss_weight, document_loss_weight or sentence_loss_weight must be above 0"
            )

    def _validate_targets(self):
        most_layers = self._most_target_layers
        if not 1 <= self.target_num_layers <= most_layers:
            raise ValueError(
                f"target_num_layers must be at least 1 and at most {most_layers} for this encoder, got "
                f"{self.target_num_layers}"
            )
        if not 0 <= self.target_momentum < 1:
            raise ValueError(f"target_momentum must be at least 0 and below 1, got {self.target_momentum}")
        if self.token_loss_candidates is not None and self.token_loss_candidates < 2:
            raise ValueError(f"token_loss_candidates must be at least 2, got {self.token_loss_candidates}")
        self._check_positive("smooth_l1_beta", "infonce_temperature")

    def _validate_text_vectors(self):
        self._check_at_least_one(
            "document_target_size", "document_hidden_size", "sigreg_num_slices", "similarity_length"
        )
        if self.sentence_hidden_size < 0:
            raise ValueError(f"sentence_hidden_size must be at least 0, got {self.sentence_hidden_size}")
        if self.similarity_loss_weight > 0 and self.pooling == "attention":
            raise ValueError("the similarity loss needs a pooling that does not learn: 'mean', 'cls' or 'idf'")
        self._validate_matryoshka_sizes()

    def _validate_context_mode(self):
        if self.context_mode == "mask_token" and self.mask_token_id is None:
            raise ValueError("context_mode 'mask_token' needs mask_token_id, the tokenizer's mask token")
        if self.context_mode == "drop" and not self.drop_is_exact:
            raise ValueError(
                f"context_mode 'drop' is not known to be exact for '{self.text_config.model_type}' encoders; "
                "use 'attention_mask'"
            )

    def _validate_online_targets(self):
        if self.target_encoder_type != "online":
            return
        loss_types = set()
        if self.latent_loss_weight:
            loss_types.add(self.loss_type)
        if self.sentence_loss_weight:
            loss_types.add(self.sentence_loss_type)
        if self.encodes_documents:
            loss_types.add(self.document_loss_type)
        has_repulsion = bool({"variance", "sigreg"} & set(self.regularizers))
        if loss_types - {"infonce"} and not has_repulsion:
            raise ValueError(
                "online targets collapse without a regularizer: set sigreg_loss_weight or variance_loss_weight, or "
                "use 'infonce'"
            )

    def check_trainable(self):
        """Raises ValueError for an objective that can be built, and opened from files, but learns nothing of use."""
        if self.latent_loss_weight > 0 and self.target_input == "spans" and self.target_normalization == "instance":
            raise ValueError(
                "target_normalization 'instance' needs target_input 'text': the target of a single hidden token would "
                "be 0"
            )
        compares_heads = self.sentence_loss_weight > 0 and self.sentence_loss_type != "infonce"
        if self.target_encoder_type == "online" and compares_heads and self.regularizer_level == "token":
            raise ValueError(
                "online targets of the sentence loss collapse with a regularizer of tokens: set regularizer_level to "
                "'sentence', or sentence_loss_type to 'infonce'"
            )


def _nearest(key: str, names: Iterable[str]) -> str:
    """A question that ends an error about an unknown name; empty if no name is similar."""
    match = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


TextJepaConfig.register_for_auto_class()

__all__ = ["LOSS_TERMS", "OBJECTIVES", "TextJepaConfig"]
