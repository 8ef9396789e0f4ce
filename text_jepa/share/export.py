"""Exports a trained encoder as an ordinary checkpoint, which opens without remote code and without this package."""

import contextlib
import copy
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError, first_line
from text_jepa.data.word_weights import save_word_weights
from text_jepa.encoders.embeddings import (
    POOLING_MODULE,
    TRANSFORMER_MODULE,
    WORD_WEIGHTS_MODULE,
    Which,
    sentence_pooling,
    trained_encoder,
    trained_word_weights,
)
from text_jepa.encoders.opening import readable
from text_jepa.encoders.sentence_head import (
    POOLING_FLAGS,
    SentenceHead,
    check_code_of_modules,
    check_modules,
    copy_modules,
    read_modules,
)
from text_jepa.share.onnx import require
from text_jepa.share.transformers4 import make_readable_in_4


# The files of an encoder and its tokenizer that may name Python code.
CONFIGURATIONS = ("config.json", "tokenizer_config.json")


def export_encoder(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    max_length: int,
    which: Which = "target",
    head: SentenceHead | None = None,
) -> None:
    """Writes an encoder, its tokenizer and the files of sentence-transformers.

    `AutoModel`, `AutoTokenizer`, `pipeline("feature-extraction")`, the `AutoModelFor…` classes and
    `SentenceTransformer` open the folder as it is, with transformers 4.57 as well as 5. The predictor and the other
    encoder are left out. If the model pools by `"idf"`, `1_WordWeights/` has the word weights.

    Args:
        model: The pretraining model.
        tokenizer: The tokenizer that it was trained with.
        output_dir: Folder to write to, created if missing.
        max_length: Longest text in tokens, for sentence-transformers and the tokenizer.
        which: The encoder to export, see `trained_encoder`.
        head: The head that the encoder had before and keeps; by default the vectors are pooled as in training.

    Raises:
        UsageError: A module of the head is gone.
    """
    if head is not None:
        check_modules(head, model.word_weights is not None)
    encoder = trained_encoder(model, which)
    output_dir = Path(output_dir)
    pooler = {} if head is None else _pooler_of(head.source, **head.options)
    encoder.save_pretrained(output_dir, state_dict={**encoder.state_dict(), **pooler} if pooler else None)
    tokenizer = copy.copy(tokenizer)  # the caller's keeps its length
    tokenizer.model_max_length = max_length
    tokenizer.model_input_names = _shared_inputs(encoder, tokenizer)
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, "model_input_names": None}  # so that they are written
    tokenizer.save_pretrained(output_dir)
    _forget_code(output_dir)
    make_readable_in_4(output_dir)
    _write_json(output_dir / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    weights = trained_word_weights(model, tokenizer)
    modules = [TRANSFORMER_MODULE]
    if weights is not None:
        save_word_weights(output_dir, weights, tokenizer)
        modules.append(WORD_WEIGHTS_MODULE)
    if head is not None:
        write_head(head, output_dir, encoder.config.hidden_size, weights is not None)
        if any(kind == "Pooling" for _, kind in head.modules):
            return
    pooling = sentence_pooling(model.config)
    pooling_folder = f"{len(modules)}_Pooling"
    modules.append(write_pooling(output_dir, pooling_folder, encoder.config.hidden_size, pooling))
    write_modules(output_dir, modules)


def _pooler_of(source: str, **options: Any) -> dict[str, torch.Tensor]:
    """The weights of the pooler of an encoder by name, which no run trains; none if it has no pooler, or is gone.

    An export without them is an encoder as well, but `AutoModel` would make up a pooler and say so at every opening.
    """
    try:
        model, report = AutoModel.from_pretrained(source, trust_remote_code=False, output_loading_info=True, **options)
    except OSError:
        return {}
    weights = {}
    for name, value in model.state_dict().items():
        if name.startswith("pooler.") and name not in report["missing_keys"]:
            weights[name] = value
    return weights


def _forget_code(folder: Path) -> None:
    """Removes from an exported folder what names Python code that is not in it, as the folder it started from did.

    Encoder and tokenizer were opened without that code, and whoever opens the export would look for it in vain.
    """
    for name in CONFIGURATIONS:
        path = folder / name
        named = code_in(path)
        gone = [entry for entry, files in named.items() if not all((folder / file).is_file() for file in files)]
        if gone:
            config = json.loads(path.read_text(encoding="utf-8"))
            for entry in gone:
                del config["auto_map"][entry]
            if not config["auto_map"]:
                del config["auto_map"]
            _write_json(path, config)


def code_in(path: Path) -> dict[str, list[str]]:
    """The files of Python code that a JSON file names (`auto_map`), by entry; none without the file.

    Raises:
        UsageError: It cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        named = (json.loads(path.read_text(encoding="utf-8")).get("auto_map") or {}).items()
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}); mend it first") from error
    files = {}
    for entry, value in named:
        classes = value if isinstance(value, list) else [value]  # those of a tokenizer are two, with gaps
        files[entry] = [f"{str(reference).partition('.')[0]}.py" for reference in classes if reference]
    return files


def _shared_inputs(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a tokenizer makes and its encoder takes: not all take the token types of a tokenizer of BERT."""
    taken = inspect.signature(encoder.forward).parameters
    return [name for name in tokenizer.model_input_names if name in taken]


def write_head(head: SentenceHead, folder: Path, hidden_size: int, has_word_weights: bool = False) -> None:
    """Writes the modules of a head, with their list, beside an encoder.

    Args:
        head: The head.
        folder: The encoder's folder.
        hidden_size: Features of a state.
        has_word_weights: Whether the folder has word weights of its own.
    """
    kept = copy_modules(head, folder, has_word_weights)
    write_modules(folder, [TRANSFORMER_MODULE, *kept])
    for path, kind in kept:
        if kind == POOLING_MODULE:
            write_pooling(folder, path, hidden_size, head.pooling)


def write_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """Writes `modules.json`, the list of sentence-transformers' modules.

    Args:
        folder: The encoder's folder.
        modules: Subfolder and type of each module, in the order in which they run.
    """
    listed = []
    for index, (path, kind) in enumerate(modules):
        entry = {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": kind,
        }
        listed.append(entry)
    _write_json(folder / "modules.json", listed)


def write_pooling(folder: Path, subfolder: str, hidden_size: int, pooling: str) -> tuple[str, str]:
    """Writes the pooling module of sentence-transformers.

    Returns:
        Its subfolder and type, as `write_modules` takes them.
    """
    config = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_cls_token": pooling == "cls",
    }
    if pooling not in ("mean", "cls"):
        flag = next(flag for flag, kind in POOLING_FLAGS.items() if kind == pooling)
        config[flag] = True
    _write_json(folder / subfolder / "config.json", config)
    return subfolder, POOLING_MODULE


def save_for_continuing(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
) -> None:
    """Writes the complete pretraining model for continued training: encoders, predictor, heads, code and tokenizer."""
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _write_json(path: Path, content: dict | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Numbers of trainable parameters and of all parameters."""
    trainable = 0
    total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        total += count
        if parameter.requires_grad:
            trainable += count
    return trainable, total


@contextlib.contextmanager
def staged(output_dir: str | Path) -> Iterator[Path]:
    """Opens a new folder for an encoder, which becomes `output_dir` at the end, or vanishes if the block fails."""
    output_dir = Path(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix="_") as folder:
        staging = Path(folder, output_dir.name)
        staging.mkdir()
        yield staging
        _forget_code(staging)
        make_readable_in_4(staging)
        staging.replace(output_dir)


# Files that tell of a run: those of its weights and no others.
_OF_A_RUN = (
    "arguments.yaml",
    "changed.yaml",
    "metrics.jsonl",
    "trainer_state.json",
    "verdict.json",
)


def copy_encoder_files(source: Path, output_dir: Path, with_model: bool = True) -> None:
    """Copies the files of an encoder's folder: its own, and those of its modules.

    ONNX files are not copied: they hold the weights, word weights included, of the folder that they were made in.
    Neither are other folders of a run, such as its checkpoints and the complete model, nor its log, comparison and
    arguments, which would be taken for those of the copy.

    Args:
        source: Folder to copy from.
        output_dir: Folder to copy to.
        with_model: Whether to copy the encoder's weights.
    """
    subfolders = {path for path, _ in read_modules(source)}
    subfolders.add("")
    for subfolder in sorted(subfolders):
        folder = source / subfolder
        if not folder.is_dir():
            continue
        destination = output_dir / subfolder
        destination.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            is_model = subfolder == "" and file.name.startswith(("model", "pytorch_model"))
            is_of_run = subfolder == "" and file.name in _OF_A_RUN
            is_onnx = ".onnx" in file.name  # also model.onnx.data
            if file.is_file() and not is_of_run and not is_onnx and (with_model or not is_model):
                shutil.copy(file, destination / file.name)


def export_sentence_transformer(
    encoder_dir: str | Path,
    output_dir: str | Path,
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
    center: np.ndarray | None = None,
    normalize: bool = False,
) -> None:
    """Saves an encoder by sentence-transformers itself, with prompts and what is done with its vectors.

    Args:
        encoder_dir: A folder from `export_encoder`, or an encoder of any architecture, which is pooled by the mean.
        output_dir: New folder.
        max_length: Longest text in tokens. Default: unchanged.
        prompts: Prefix of a text by kind of text, such as `{"query": "query: "}`, beside those of the folder.
        center: (D,) mean vector of texts, which a stock `Dense` module of identity weights subtracts.
        normalize: Whether vectors get unit length by a stock `Normalize` module at the end.

    Raises:
        UsageError: sentence-transformers is not installed, or cannot read the folder.
    """
    require("sentence_transformers", extra="st")
    from sentence_transformers import SentenceTransformer

    check_code_of_modules(str(encoder_dir))
    with readable(str(encoder_dir), "sentence-transformers cannot read it"):
        model = SentenceTransformer(
            str(encoder_dir),
            device="cpu",
            trust_remote_code=False,
        )
    model.prompts.update(prompts or {})
    if max_length is not None:
        model.max_seq_length = max_length
    _append_modules(model, center, normalize)
    with staged(output_dir) as staging:
        model.save_pretrained(str(staging), create_model_card=False)  # the run's own card says more


def _append_modules(model, center: np.ndarray | None, normalize: bool) -> None:
    """Appends `Dense` and `Normalize` to a `SentenceTransformer`, unless it normalizes at its end already."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    if center is not None:
        bias = torch.from_numpy(-center).float()
        features = len(bias)
        subtraction = Dense(
            features,
            features,
            activation_function=torch.nn.Identity(),
            init_weight=torch.eye(features),
            init_bias=bias,
        )
        model.append(subtraction)
    if normalize and not isinstance(model[-1], Normalize):
        model.append(Normalize())
