"""A trained encoder as an ordinary checkpoint: no remote code, no flag, no package of ours. And as ONNX."""

import contextlib
import copy
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.data.word_weights import save_word_weights
from text_jepa.embeddings import (
    POOLING_MODULE,
    TRANSFORMER_MODULE,
    WORD_WEIGHTS_MODULE,
    Which,
    read_modules,
    sentence_pooling,
    trained_encoder,
    trained_word_weights,
)
from text_jepa.share.onnx import require


def export_encoder(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    max_length: int,
    which: Which = "target",
):
    """Writes an encoder, its tokenizer and the files of sentence-transformers.

    `AutoModel`, `AutoTokenizer`, `pipeline("feature-extraction")`, the `AutoModelFor…` classes and
    `SentenceTransformer` open the folder as it is. The predictor and the other encoder stay behind. Where the model
    pools by `"idf"`, the weights of words lie in `1_WordWeights/`.

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
    tokenizer = copy.copy(tokenizer)  # which is the caller's
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(output_dir)
    _write_json(output_dir / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    weights = trained_word_weights(model, tokenizer)
    modules = [TRANSFORMER_MODULE]
    if weights is not None:
        save_word_weights(output_dir, weights, tokenizer)
        modules.append(WORD_WEIGHTS_MODULE)
    pooling_folder = f"{len(modules)}_Pooling"
    modules.append(
        write_pooling(output_dir, pooling_folder, encoder.config.hidden_size, sentence_pooling(model.config))
    )
    write_modules(output_dir, modules)


def write_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """Writes `modules.json`: the modules of sentence-transformers, each a subfolder and a type, in their order."""
    listed = []
    for index, (path, kind) in enumerate(modules):
        listed.append({"idx": index, "name": str(index), "path": path, "type": kind})
    _write_json(folder / "modules.json", listed)


def write_pooling(folder: Path, subfolder: str, hidden_size: int, pooling: Literal["mean", "cls"]) -> tuple[str, str]:
    """Writes the module that makes one vector of the states of a text, and gives it back for `write_modules`."""
    config: dict[str, int | bool] = {"word_embedding_dimension": hidden_size}
    config["pooling_mode_mean_tokens"] = pooling == "mean"
    config["pooling_mode_cls_token"] = pooling == "cls"
    _write_json(folder / subfolder / "config.json", config)
    return subfolder, POOLING_MODULE


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


@contextlib.contextmanager
def staged(output_dir: str | Path) -> Iterator[Path]:
    """A new folder, which becomes `output_dir` at the end of the block; if the block fails, nothing is left of it."""
    output_dir = Path(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix="_") as folder:
        staging = Path(folder, output_dir.name)
        staging.mkdir()
        yield staging
        staging.replace(output_dir)


def copy_encoder_files(source: Path, output_dir: Path, with_model: bool = True) -> None:
    """Copies the files of an encoder's folder: its own, those of its modules, and ONNX.

    What a run keeps in further folders stays behind: checkpoints and the complete model.

    Args:
        source: Folder to copy from.
        output_dir: Folder to copy to.
        with_model: Also the weights of the encoder, in whichever form.
    """
    folders = {"", *(path for path, _ in read_modules(source))}
    if with_model:
        folders.add("onnx")
    for folder in sorted(folders):
        if not (source / folder).is_dir():
            continue
        (output_dir / folder).mkdir(parents=True, exist_ok=True)
        for file in (source / folder).iterdir():
            is_model = folder == "" and file.name.startswith(("model", "pytorch_model"))
            if file.is_file() and (with_model or not is_model):
                shutil.copy(file, output_dir / folder / file.name)


def export_sentence_transformer(
    encoder_dir: str | Path,
    output_dir: str | Path,
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
):
    """Writes the folder of an exported encoder as sentence-transformers itself does, with prompts.

    Args:
        encoder_dir: What `export_encoder` has written, or an encoder of any architecture, which is pooled by the mean.
        output_dir: Folder to write to.
        max_length: Longest text in tokens. Default: as it is.
        prompts: Text to be put before a text, by the name of its kind, such as `{"query": "query: "}`.

    Raises:
        UsageError: The library is not installed.
    """
    require("sentence_transformers", extra="st")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder_dir), device="cpu", prompts=dict(prompts or {}))
    if max_length is not None:
        model.max_seq_length = max_length
    model.save_pretrained(str(output_dir), create_model_card=False)  # a stub; the run's own card says more
