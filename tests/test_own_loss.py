"""`examples/own_loss.py`: a loss of one's own is in log, card and curves, from Python alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from text_jepa.show.plots import loss_terms
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_term_of_the_example_is_in_log_and_card_and_curves(tokenizer, texts, tmp_path):
    encoder, file, run = tmp_path / "encoder", tmp_path / "texts.txt", tmp_path / "run"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    file.write_text("\n".join(texts * 20))
    command = [sys.executable, "examples/own_loss.py", str(encoder), str(file), str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

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
