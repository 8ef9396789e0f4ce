"""Text-JEPA: a text encoder trained by predicting latent representations, native to Hugging Face transformers.

Importing the package registers the model with the Auto classes, so that `AutoModel.from_pretrained` opens a Text-JEPA
folder without remote code. What trains is imported on first use: the Trainer alone takes seconds.
"""

import importlib
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import (
    TextJepaForPreTraining,
    TextJepaForPreTrainingOutput,
    TextJepaForSequenceClassification,
    TextJepaModel,
    TextJepaPreTrainedModel,
)


__version__ = "0.1.0"

AutoConfig.register("text_jepa", TextJepaConfig, exist_ok=True)
AutoModel.register(TextJepaConfig, TextJepaModel, exist_ok=True)
AutoModelForPreTraining.register(TextJepaConfig, TextJepaForPreTraining, exist_ok=True)
AutoModelForSequenceClassification.register(TextJepaConfig, TextJepaForSequenceClassification, exist_ok=True)

_LAZY = {
    "CollapseMonitorCallback": "train.collapse",
    "DataCollatorForTextJepa": "data.collator",
    "MaskStrategy": "data.masking",
    "EmaTargetEncoderCallback": "train.callbacks",
    "OnlineProbeCallback": "probe.online",
    "TextJepaTrainer": "train.trainer",
    "TextJepaTrainingArguments": "train.arguments",
    "ViewStrategy": "data.masking",
    "export_encoder": "share.export",
    "export_onnx": "share.onnx",
    "load_builtin_corpus": "data.builtin_corpus",
    "push_folder": "share.hub",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"text_jepa.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'text_jepa' has no attribute '{name}'")


__all__ = [
    "TextJepaConfig",
    "TextJepaForPreTraining",
    "TextJepaForPreTrainingOutput",
    "TextJepaForSequenceClassification",
    "TextJepaModel",
    "TextJepaPreTrainedModel",
    *_LAZY,
]
