"""Registers the model with the Auto classes of transformers, on import."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, TextJepaForSequenceClassification, TextJepaModel


AutoConfig.register("text_jepa", TextJepaConfig, exist_ok=True)
AutoModel.register(TextJepaConfig, TextJepaModel, exist_ok=True)
AutoModelForPreTraining.register(TextJepaConfig, TextJepaForPreTraining, exist_ok=True)
AutoModelForSequenceClassification.register(TextJepaConfig, TextJepaForSequenceClassification, exist_ok=True)
