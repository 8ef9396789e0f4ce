"""transformers' own common tests of a configuration and its models, run on ours; `tests/test_common.py` starts them.

`tests` is here the package of that name in the source distribution of transformers. It carries the common tests, but
not all that they import: stand-ins take the place of what is missing.
"""

import json
import os
import sys
import tempfile
import types
import unittest
from pathlib import Path

import torch
from transformers import FeatureExtractionPipeline, TextClassificationPipeline
from transformers.models.auto import modeling_auto

from configuration_text_jepa import OBJECTIVES
from text_jepa import (
    TextJepaConfig,
    TextJepaForPreTraining,
    TextJepaForSequenceClassification,
    TextJepaModel,
)
from text_jepa.data.tokenization import train_tokenizer


# Where the pipeline tests look for tiny models: a folder for each class, and a list of them.
TINY_MODELS = tempfile.TemporaryDirectory()
TEXTS = ["The lighthouse keeper lit the lamp and climbed down.", "A gardener plants beans in the spring."]


def put_in_place(name, **members):
    """Puts a module into the place of one that the source distribution leaves out."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


class ExportTesterMixin:
    """Exports by torch.export and others: `tests/share/test_onnx.py` has those that we offer."""


class GenerationTesterMixin:
    """Nothing here generates."""


class FeatureExtractionPipelineTests:
    """What the pipeline gives: the states of each token."""

    def get_test_pipeline(self, model, tokenizer, dtype):
        return FeatureExtractionPipeline(model=model, tokenizer=tokenizer, dtype=dtype), TEXTS

    def run_pipeline_test(self, pipeline, texts):
        width = pipeline.model.config.hidden_size
        outputs = pipeline(texts)
        assert len(outputs) == len(texts)
        for text, output in zip(texts, outputs, strict=True):
            num_tokens = len(pipeline.tokenizer(text)["input_ids"])
            assert torch.tensor(output).shape == (1, num_tokens, width)
        long_text = " ".join(TEXTS * 100)
        limit = pipeline.tokenizer.model_max_length
        output = pipeline(long_text, truncation=True)
        assert torch.tensor(output).shape == (1, limit, width)


class TextClassificationPipelineTests:
    """What the pipeline gives: a label and a score of each text, or all of them."""

    def get_test_pipeline(self, model, tokenizer, dtype):
        return TextClassificationPipeline(model=model, tokenizer=tokenizer, dtype=dtype), TEXTS

    def run_pipeline_test(self, pipeline, texts):
        labels = set(pipeline.model.config.id2label.values())
        assert len(labels) == TextJepaModelTester.num_labels
        outputs = pipeline(texts)
        assert len(outputs) == len(texts)
        assert {output["label"] for output in outputs} <= labels
        for scores in pipeline(texts, top_k=None):
            assert {score["label"] for score in scores} == labels
            assert abs(sum(score["score"] for score in scores) - 1) < 0.01
        pair = pipeline({"text": texts[0], "text_pair": texts[1]})
        assert pair["label"] in labels


# What `ConfigTester` sets on a configuration that has no other one inside; ours has.
put_in_place("tests.utils.test_configuration_utils", config_common_kwargs={})
put_in_place("tests.exporters.test_export", ExportTesterMixin=ExportTesterMixin)
put_in_place("tests.generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)

# The common tests ask these tables of the library what a class is for.
modeling_auto.MODEL_MAPPING_NAMES["text_jepa"] = "TextJepaModel"
modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES["text_jepa"] = "TextJepaForPreTraining"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["text_jepa"] = "TextJepaForSequenceClassification"

# Which tiny models there are: `save_tiny_model` makes them.
tiny_models = {"tokenizer_classes": ["PreTrainedTokenizerFast"], "processor_classes": []}
summary = {"TextJepaModel": tiny_models, "TextJepaForSequenceClassification": tiny_models}
summary_file = Path(TINY_MODELS.name, "reports", "tiny_model_summary.json")
summary_file.parent.mkdir()
summary_file.write_text(json.dumps(summary), encoding="utf-8")
os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = TINY_MODELS.name

from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask  # noqa: E402
from tests.test_pipeline_mixin import PipelineTesterMixin, pipeline_test_mapping  # noqa: E402


pipeline_test_mapping["feature-extraction"] = {"test": f"{__name__}.FeatureExtractionPipelineTests"}
pipeline_test_mapping["text-classification"] = {"test": f"{__name__}.TextClassificationPipelineTests"}

# A ModernBERT with a layer of each kind.
MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_types": ["full_attention", "sliding_attention"],
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "cls_token_id": None,
    "sep_token_id": None,
}
# The encoder without layers of the default objective.
STATIC = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 0,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


class TextJepaModelTester:
    """Tiny shapes; every term of the loss that goes with the others, and with it every module."""

    batch_size = 4
    seq_length = 8
    is_training = True
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_labels = 3

    def get_config(self):
        return TextJepaConfig(
            text_config=dict(MODERNBERT),
            pooling="idf",
            document_loss_weight=1.0,
            variance_loss_weight=0.1,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self):
        inputs = {
            "input_ids": ids_tensor([self.batch_size, self.seq_length], self.vocab_size),
            "attention_mask": random_attention_mask([self.batch_size, self.seq_length]),
        }
        return self.get_config(), inputs

    def get_masks(self):
        """What pretraining is given beside the texts: one mask of two spans for each."""
        masks = {
            "context_positions": torch.tensor([0, 1, 2, 4, 5, 7]),
            "target_positions": torch.tensor([3, 6]),
            "target_spans": torch.tensor([0, 1]),
        }
        return {name: value.expand(self.batch_size, 1, -1) for name, value in masks.items()}


class StaticModelTester(TextJepaModelTester):
    """The default objective: documents, pooled by weights of words, without layers."""

    num_hidden_layers = 0

    def get_config(self):
        return TextJepaConfig(
            text_config=dict(STATIC),
            num_labels=self.num_labels,
            **OBJECTIVES["documents"],
        )


class CommonTests(ModelTesterMixin):
    """The common tests of a model; a class of its own for each, since some skip the rest with the first."""

    model_tester_class = TextJepaModelTester
    _is_composite = True

    def setUp(self):
        self.model_tester = self.model_tester_class()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is TextJepaForPreTraining:
            inputs |= self.model_tester.get_masks()
        return inputs


class TextJepaConfigTest(unittest.TestCase):
    def setUp(self):
        self.model_tester = TextJepaModelTester()

    def test_config(self):
        tester = ConfigTester(
            self,
            config_class=TextJepaConfig,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            pred_hidden_size=40,
            pooling="cls",
        )
        tester.run_common_tests()


def save_tiny_model(model_class):
    """A model of this class with a tokenizer, where the pipeline tests look for it."""
    folder = Path(TINY_MODELS.name, "text_jepa", model_class.__name__)
    tokenizer = train_tokenizer(TEXTS, vocab_size=100, max_length=64)
    config = TextJepaModelTester().get_config()
    config.vocab_size = len(tokenizer)
    config.text_config.pad_token_id = tokenizer.pad_token_id
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class TextJepaModelTest(CommonTests, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (TextJepaModel,)
    pipeline_model_mapping = {"feature-extraction": TextJepaModel}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        save_tiny_model(TextJepaModel)


class TextJepaForSequenceClassificationTest(CommonTests, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (TextJepaForSequenceClassification,)
    pipeline_model_mapping = {"text-classification": TextJepaForSequenceClassification}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        save_tiny_model(TextJepaForSequenceClassification)


class TextJepaForPreTrainingTest(CommonTests, unittest.TestCase):
    all_model_classes = (TextJepaForPreTraining,)


class StaticTest(CommonTests, unittest.TestCase):
    model_tester_class = StaticModelTester
    all_model_classes = (TextJepaModel, TextJepaForSequenceClassification, TextJepaForPreTraining)
    has_attentions = False
