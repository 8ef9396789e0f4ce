"""A trained encoder as an ordinary checkpoint: no remote code, no flag, no package of ours."""

import json
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_text_jepa import TextJepaForPreTraining


def trained_encoder(model: TextJepaForPreTraining, which: Literal["target", "context"] = "target") -> PreTrainedModel:
    """The stock encoder inside: the moving average (`"target"`) or the one that the optimizer trained."""
    return model.target_encoder if which == "target" else model.model.encoder


def export_encoder(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    max_length: int,
    which: Literal["target", "context"] = "target",
):
    """Writes an encoder, its tokenizer and the files of sentence-transformers.

    `AutoModel`, `AutoTokenizer`, `pipeline("feature-extraction")`, the `AutoModelFor…` classes and
    `SentenceTransformer` open the folder as it is. The predictor and the other encoder stay behind.

    Args:
        model: The pretraining model.
        tokenizer: The tokenizer that it was trained with.
        output_dir: Folder to write to; made if it is not there.
        max_length: Longest text in tokens, for sentence-transformers and the tokenizer.
        which: See `trained_encoder`.
    """
    encoder = trained_encoder(model, which)
    output_dir = Path(output_dir)
    encoder.save_pretrained(output_dir)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(output_dir)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {"word_embedding_dimension": encoder.config.hidden_size, "pooling_mode_mean_tokens": True}
    _write_json(output_dir / "modules.json", modules)
    _write_json(output_dir / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(output_dir / "1_Pooling" / "config.json", pooling)


def save_for_continuing(model: TextJepaForPreTraining, tokenizer: PreTrainedTokenizerBase, output_dir: str | Path):
    """Writes the complete pretraining model with its code and tokenizer: both encoders, predictor and heads."""
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Trainable and all parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in counts if trainable), sum(n for n, _ in counts)
