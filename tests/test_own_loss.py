"""`examples/own_loss.py`: a loss of one's own is in log, card and curves, from Python alone."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForPreTraining, BertConfig, BertModel

from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.show.plots import loss_terms
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).parents[1]


class WithOwnTerm(TextJepaForPreTraining):
    def compute_losses(self, context, *inputs):
        losses = super().compute_losses(context, *inputs)
        losses["own"] = context.output.last_hidden_state.square().mean()
        return losses


def test_a_term_that_no_configuration_knows_has_the_weight_1(make_model, make_batch):
    model, batch = make_model(), make_batch()
    without = model(**batch)
    model.__class__ = WithOwnTerm
    output = model(**batch)
    assert output["own_loss"] > 0
    torch.testing.assert_close(output.loss, without.loss + output["own_loss"])
    halved = model(**batch, num_items_in_batch=2 * (batch["target_positions"] >= 0).sum())
    torch.testing.assert_close(2 * halved["own_loss"], output["own_loss"])
    assert "own_loss" not in model(**batch, return_loss=False)


def test_a_class_of_a_script_is_saved_without_a_word_and_opens_as_its_base(make_model, tmp_path, caplog):
    config_class = type("ConfigOfScript", (TextJepaConfig,), {"__module__": "__main__"})
    model_class = type("ModelOfScript", (TextJepaForPreTraining,), {"__module__": "__main__"})
    model = model_class(config_class.from_dict(make_model().config.to_dict()))
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        model.save_pretrained(tmp_path)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.text == ""
    opened = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(opened) is TextJepaForPreTraining
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())


def test_every_class_leaves_the_code_that_its_configuration_names(make_model, tmp_path):
    model = make_model()
    of_script = type("ModelOfScript", (TextJepaForPreTraining,), {"__module__": "__main__"})
    for model_class in (TextJepaForPreTraining, WithOwnTerm, of_script):
        folder = tmp_path / model_class.__name__
        model.__class__ = model_class
        model.save_pretrained(folder)
        named = json.loads((folder / "config.json").read_text())["auto_map"].values()
        files = {f"{reference.partition('.')[0]}.py" for reference in named}
        assert {"configuration_text_jepa.py", "modeling_text_jepa.py"} <= files
        assert all((folder / file).is_file() for file in files)


def test_a_field_of_ones_own_configuration_is_validated_when_it_is_replaced(make_model, tmp_path):
    @strict
    class OwnConfig(TextJepaConfig):
        own_weight: float = 1.0

        def validate_own_weight(self):
            if self.own_weight < 0:
                raise ValueError("own_weight must be at least 0")

    class OwnModel(TextJepaForPreTraining):
        config_class = OwnConfig

    OwnModel(OwnConfig.from_dict(make_model().config.to_dict())).save_pretrained(tmp_path)
    assert OwnModel.from_pretrained(tmp_path, own_weight=2.0).config.own_weight == 2.0
    with pytest.raises(StrictDataclassError, match="own_weight must be at least 0"):
        OwnModel.from_pretrained(tmp_path, own_weight=-1.0)


def test_a_model_with_a_configuration_of_ones_own_starts_from_an_encoder(tmp_path):
    @strict
    class OwnConfig(TextJepaConfig):
        model_type = "own_jepa"
        own_weight: float = 1.0

    class OwnModel(TextJepaForPreTraining):
        config: OwnConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**shape)).save_pretrained(tmp_path / "encoder")
    TextJepaForPreTraining.from_encoder(tmp_path / "encoder").save_pretrained(tmp_path / "ours")
    assert OwnModel.from_pretrained(tmp_path / "ours").config.own_weight == 1.0
    model = OwnModel.from_encoder(tmp_path / "encoder", own_weight=2.0)
    assert type(model.config) is OwnConfig
    model.save_pretrained(tmp_path / "whole")
    assert OwnModel.from_pretrained(tmp_path / "whole").config.own_weight == 2.0


def real_texts():
    """Lines of the documentation."""
    lines = [line for page in ("faq.md", "method.md") for line in (ROOT / "docs" / page).read_text().splitlines()]
    return "\n".join([line for line in lines if len(line.split()) > 8][:150])


@pytest.mark.slow
def test_the_term_of_the_example_is_in_log_and_card_and_curves(tokenizer, tmp_path):
    encoder, run = tmp_path / "encoder", tmp_path / "run"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    command = [sys.executable, "examples/own_loss.py", str(encoder), str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, input=real_texts())
    assert result.returncode == 0, result.stderr
    assert "defined in __main__" not in result.stderr

    records = read_metrics(run)
    trained = [record["norm_loss"] for record in records if "norm_loss" in record]
    held_out = [record["eval_norm_loss"] for record in records if "eval_norm_loss" in record]
    assert trained[-1] < trained[0]
    assert held_out
    card = (run / "README.md").read_text()
    assert "; plus the norm loss, with a weight that its own code sets." in card
    assert f"| norm loss | {held_out[-1]:.4g} | 40 |" in card
    # The curves have a panel for each of these.
    assert "norm_loss" in loss_terms({name for record in records for name in record})
    assert (run / "curves.png").stat().st_size > 10_000
