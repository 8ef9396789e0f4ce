"""Exports trained encoders as ordinary checkpoints, which need neither remote code nor this package."""

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
from safetensors import SafetensorError
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
from text_jepa.errors import DISK_ERRORS
from text_jepa.share.onnx import require
from text_jepa.share.transformers4 import make_readable_in_4


# Files of an encoder and its tokenizer that may refer to Python code.
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
    `SentenceTransformer` can load the folder, with transformers 4.57 as well as 5. The predictor and the other encoder
    are not exported. If the model pools by `"idf"`, `1_WordWeights/` has the word weights.

    Args:
        model: The pretraining model.
        tokenizer: The tokenizer of the model.
        output_dir: Folder to write to, created if missing.
        max_length: Longest text in tokens, for sentence-transformers and the tokenizer.
        which: The encoder to export, see `trained_encoder`.
        head: The original head of the encoder, if it is kept. Default: vectors are pooled as in training.

    Raises:
        UsageError: A module of the head is missing.
    """
    if head is not None:
        check_modules(head, model.word_weights is not None)
    encoder = trained_encoder(model, which)
    output_dir = Path(output_dir)
    state = None
    pooler = {} if head is None else _pooler_of(head.source, **head.options)
    if pooler:
        state = encoder.state_dict() | pooler
    encoder.save_pretrained(output_dir, state_dict=state)
    _save_tokenizer(tokenizer, encoder, output_dir, max_length)
    _remove_missing_code(output_dir)
    make_readable_in_4(output_dir)
    sentence_config = {"max_seq_length": max_length, "do_lower_case": False}
    _write_json(output_dir / "sentence_bert_config.json", sentence_config)

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


def _save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    output_dir: Path,
    max_length: int,
) -> None:
    """Saves a copy of a tokenizer with the longest length and the inputs of an encoder."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.model_max_length = max_length
    tokenizer.model_input_names = _shared_inputs(encoder, tokenizer)
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, "model_input_names": None}  # so that the inputs are saved
    tokenizer.save_pretrained(output_dir)


def _pooler_of(source: str, **options: Any) -> dict[str, torch.Tensor]:
    """Weights of the pooler of an encoder, which are not trained; none if it has no pooler or cannot be found.

    An export without them would be complete, but `AutoModel` would initialize a pooler and warn about it.
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


def _remove_missing_code(folder: Path) -> None:
    """Removes references to Python code that is not in an exported folder.

    The original folder may have such code. Encoder and tokenizer were loaded without it, and loading the export would
    fail to find it.
    """
    for name in CONFIGURATIONS:
        path = folder / name
        missing = []
        for entry, files in code_in(path).items():
            if not all((folder / file).is_file() for file in files):
                missing.append(entry)
        if missing:
            config = json.loads(path.read_text(encoding="utf-8"))
            for entry in missing:
                del config["auto_map"][entry]
            if not config["auto_map"]:
                del config["auto_map"]
            _write_json(path, config)


def code_in(path: Path) -> dict[str, list[str]]:
    """Finds the files of Python code that a JSON file refers to (`auto_map`), by entry; none without the file.

    Raises:
        UsageError: The file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        named = (json.loads(path.read_text(encoding="utf-8")).get("auto_map") or {}).items()
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}); fix it first") from error
    files = {}
    for entry, value in named:
        classes = value if isinstance(value, list) else [value]  # two for a tokenizer, one of which may be missing
        files[entry] = [f"{str(reference).partition('.')[0]}.py" for reference in classes if reference]
    return files


def _shared_inputs(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Inputs that a tokenizer returns and the encoder accepts, because not all encoders accept token types."""
    taken = inspect.signature(encoder.forward).parameters
    return [name for name in tokenizer.model_input_names if name in taken]


def write_head(head: SentenceHead, folder: Path, hidden_size: int, has_word_weights: bool = False) -> None:
    """Writes the modules of a head, with their list, to the folder of an encoder.

    Args:
        head: The head.
        folder: Folder of the encoder.
        hidden_size: Number of features of a state.
        has_word_weights: Whether the folder has word weights.
    """
    kept = copy_modules(head, folder, has_word_weights)
    write_modules(folder, [TRANSFORMER_MODULE, *kept])
    for path, kind in kept:
        if kind == POOLING_MODULE:
            write_pooling(folder, path, hidden_size, head.pooling, head.include_prompt)


def write_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """Writes `modules.json`, the list of modules for sentence-transformers.

    Args:
        folder: Folder of the encoder.
        modules: Subfolder and type of each module, in order of execution.
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


def write_pooling(
    folder: Path,
    subfolder: str,
    hidden_size: int,
    pooling: str,
    include_prompt: bool = True,
) -> tuple[str, str]:
    """Writes the pooling module of sentence-transformers.

    Args:
        folder: Folder of the encoder.
        subfolder: Folder of the module in it.
        hidden_size: Number of features of a state.
        pooling: Kind of pooling.
        include_prompt: Whether the tokens of a prompt are pooled.

    Returns:
        Subfolder and type of the module, for `write_modules`.
    """
    config = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_cls_token": pooling == "cls",
    }
    if pooling not in ("mean", "cls"):
        flag = next(flag for flag, kind in POOLING_FLAGS.items() if kind == pooling)
        config[flag] = True
    if not include_prompt:
        config["include_prompt"] = False
    _write_json(folder / subfolder / "config.json", config)
    return subfolder, POOLING_MODULE


def save_for_continuing(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
) -> None:
    """Saves the complete pretraining model for continued training: encoders, predictor, heads, code and tokenizer."""
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _write_json(path: Path, content: dict | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Counts the trainable parameters and all parameters."""
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
    """Creates a temporary folder for an encoder; it becomes `output_dir` at the end, or is deleted after an error.

    Args:
        output_dir: A new or an empty folder.

    Raises:
        UsageError: The folder holds something.
    """
    output_dir = Path(output_dir).resolve()
    is_there = output_dir.is_dir()
    new_parents = [parent for parent in output_dir.parents if not parent.exists()]
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # A folder that exists may be on a disk of its own.
    place = output_dir if is_there else output_dir.parent
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix="_") as folder:
            staging = Path(folder, output_dir.name)
            staging.mkdir()
            yield staging
            _remove_missing_code(staging)
            make_readable_in_4(staging)
            if is_there:
                if len(list(output_dir.iterdir())) > 1:  # more than the temporary folder
                    raise UsageError(f"{output_dir}: exists and is not empty; name a new folder")
                for path in staging.iterdir():
                    path.replace(output_dir / path.name)
            else:
                staging.replace(output_dir)
    except BaseException:
        for parent in new_parents:
            with contextlib.suppress(OSError):  # it may hold something else
                parent.rmdir()
        raise


@contextlib.contextmanager
def writing(output_dir: str | Path) -> Iterator[None]:
    """Turns a failed write inside the block into an error of one line.

    Args:
        output_dir: The folder that is written to.

    Raises:
        UsageError: The disk is full, read-only or failing.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
            raise
        reason = first_line(error) if isinstance(error, SafetensorError) else error.strerror
        raise UsageError(
            f"{output_dir}: cannot be written ({reason}); free some disk space, or use another folder"
        ) from error


# Files of a run, which describe its weights and no others.
_OF_A_RUN = (
    "arguments.yaml",
    "changed.yaml",
    "metrics.jsonl",
    "trainer_state.json",
    "verdict.json",
)

# Ends of the names of weights in the formats of all libraries, and of lists of their files.
_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".ot",
    ".gguf",
    ".tflite",
    ".index.json",
)


def copy_encoder_files(source: Path, output_dir: Path, with_model: bool = True) -> None:
    """Copies the files of an encoder and its modules.

    ONNX files are not copied, because they contain the old weights, including word weights. Other folders of a run,
    such as checkpoints and the complete model, and its log, comparison and arguments are not copied either, because
    they do not describe the copy.

    Args:
        source: Folder to copy from.
        output_dir: Folder to copy to.
        with_model: Whether to copy the weights of the encoder, in all their formats.
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
            is_at_root = subfolder == ""
            is_model = is_at_root and file.name.endswith(_WEIGHTS)
            is_of_run = is_at_root and file.name in _OF_A_RUN
            is_onnx = ".onnx" in file.name  # also model.onnx.data
            is_left_out = is_of_run or is_onnx or (is_model and not with_model)
            if file.is_file() and not is_left_out:
                shutil.copy(file, destination / file.name)


def export_sentence_transformer(
    encoder_dir: str | Path,
    output_dir: str | Path,
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
    center: np.ndarray | None = None,
    normalize: bool = False,
) -> None:
    """Saves an encoder with sentence-transformers, with prompts and modules for centring and normalization.

    Args:
        encoder_dir: A folder of `export_encoder`, or an encoder of any architecture, which gets mean pooling.
        output_dir: New folder.
        max_length: Longest text in tokens. Default: unchanged.
        prompts: Prefixes of texts by kind of text, such as `{"query": "query: "}`, in addition to those of the folder.
        center: (D,) mean vector of texts, subtracted by a `Dense` module with identity weights.
        normalize: Whether to append a `Normalize` module, which gives vectors unit length.

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
        model.save_pretrained(str(staging), create_model_card=False)  # the card of the run has more information


def _append_modules(model, center: np.ndarray | None, normalize: bool) -> None:
    """Appends `Dense` and `Normalize` to a `SentenceTransformer`, the latter unless it is the last module already."""
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
