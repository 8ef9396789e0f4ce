"""Text-JEPA: a text encoder trained by predicting latent representations, native to Hugging Face transformers.

Importing the package registers the model with the Auto classes, so that `AutoModel.from_pretrained` opens a Text-JEPA
folder without remote code. What trains is imported on first use: the Trainer alone takes seconds.
"""

import importlib
import sys
from typing import Any


__version__ = "0.1.0"

# The command `text-jepa search` answers from its index without torch, and registers when it opens an encoder.
if "text_jepa_command" not in sys.modules or sys.argv[1:2] != ["search"]:
    from configuration_text_jepa import TextJepaConfig
    from modeling_text_jepa import (
        TextJepaForPreTraining,
        TextJepaForPreTrainingOutput,
        TextJepaForSequenceClassification,
        TextJepaModel,
        TextJepaPreTrainedModel,
    )
    from text_jepa import registration as registration

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
