"""Text-JEPA: a text encoder trained by predicting latent representations, native to Hugging Face transformers.

Importing the package registers the model with the Auto classes, so that `AutoModel.from_pretrained` opens a Text-JEPA
folder without remote code. The public names are imported on first use, as those of transformers are.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from configuration_text_jepa import TextJepaConfig
    from modeling_text_jepa import (
        TextJepaForPreTraining,
        TextJepaForPreTrainingOutput,
        TextJepaForSequenceClassification,
        TextJepaModel,
        TextJepaPreTrainedModel,
    )
    from text_jepa.data.builtin_corpus import load_builtin_corpus
    from text_jepa.data.collator import DataCollatorForTextJepa
    from text_jepa.data.strategies import MaskStrategy, ViewStrategy
    from text_jepa.probe.online import OnlineProbeCallback
    from text_jepa.share.export import export_encoder
    from text_jepa.share.hub import push_folder
    from text_jepa.share.onnx import export_onnx
    from text_jepa.train.arguments import TextJepaTrainingArguments
    from text_jepa.train.callbacks import EmaTargetEncoderCallback
    from text_jepa.train.collapse import CollapseMonitorCallback
    from text_jepa.train.trainer import TextJepaTrainer

__version__ = "0.1.0"

# A module -> the public names that it has.
_PUBLIC_NAMES = {
    "configuration_text_jepa": ["TextJepaConfig"],
    "modeling_text_jepa": [
        "TextJepaForPreTraining",
        "TextJepaForPreTrainingOutput",
        "TextJepaForSequenceClassification",
        "TextJepaModel",
        "TextJepaPreTrainedModel",
    ],
    "text_jepa.data.builtin_corpus": ["load_builtin_corpus"],
    "text_jepa.data.collator": ["DataCollatorForTextJepa"],
    "text_jepa.data.strategies": ["MaskStrategy", "ViewStrategy"],
    "text_jepa.probe.online": ["OnlineProbeCallback"],
    "text_jepa.share.export": ["export_encoder"],
    "text_jepa.share.hub": ["push_folder"],
    "text_jepa.share.onnx": ["export_onnx"],
    "text_jepa.train.arguments": ["TextJepaTrainingArguments"],
    "text_jepa.train.callbacks": ["EmaTargetEncoderCallback"],
    "text_jepa.train.collapse": ["CollapseMonitorCallback"],
    "text_jepa.train.trainer": ["TextJepaTrainer"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}

__all__ = list(_MODULE_OF)


# In the command, what opens a model registers it: help and a search in a complete index do without PyTorch.
_is_command = [Path(word).stem for word in sys.argv[:1]] == ["text-jepa"]
_is_module = sys.argv[:1] == ["-m"] and "text_jepa" in sys.orig_argv  # python -m text_jepa
if not (_is_command or _is_module):
    importlib.import_module("text_jepa.registration")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'text_jepa' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
