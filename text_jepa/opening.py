"""Opens configuration, weights and tokenizer of any encoder, or says in one line what is not whole about them.

Every command opens encoders through this file, so that none of them trains or scores random weights, a tokenizer
without words, or code of a folder.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from modeling_text_jepa import check_weights
from text_jepa.cli import UsageError, first_line


# How a file begins that git-lfs has left in place of the one it stands for, and the most bytes of such a file.
_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_POINTER = 1_000

# Files of other frameworks, which nothing here reads.
_FOREIGN_SUFFIXES = (".h5", ".msgpack", ".ot", ".onnx", ".tflite", ".gguf", ".md")


@contextlib.contextmanager
def readable(source: str, what: str = "no model can be read there") -> Iterator[None]:
    """Turns whatever the libraries raise about a folder or a Hub name into one line that names it.

    Args:
        source: Folder or name on the Hub, or a flag and one of them.
        what: What there is not.

    Raises:
        UsageError: Something was raised inside the block.
    """
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except UnpicklingError as error:
        raise UsageError(f"{source}: its weights hold code, which is not run; save them as safetensors") from error
    except Exception as error:  # tokenizers raises bare exceptions, and each architecture its own
        raise UsageError(f"{source}: {what} ({first_line(error)})") from error


def read_config(source: str, **options) -> PretrainedConfig:
    """The configuration of a folder or a Hub repository.

    Args:
        source: Folder or name on the Hub.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: A file is a pointer of git-lfs, or code of the folder or of the Hub would have to run.
    """
    check_files(source)
    content, _ = PretrainedConfig.get_config_dict(source, **options)
    model_type = content.get("model_type")
    if content.get("auto_map") and model_type not in CONFIG_MAPPING:
        raise UsageError(
            f"{source}: model_type '{model_type}' needs code of its own, which is not run; name an encoder of an "
            "architecture that transformers has"
        )
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    attention = config._attn_implementation or ""
    if "/" in attention:
        raise UsageError(
            f"{source}: its configuration asks for code of the Hub ({attention}), which is not run; "
            "set attn_implementation to sdpa"
        )
    return config


def read_tokenizer(source: str, **options) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub repository.

    Args:
        source: Folder or name on the Hub.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: A file is a pointer of git-lfs, or there are no words, as without the files of the tokenizer.
    """
    check_files(source)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    if not _has_words(tokenizer):
        raise UsageError(
            f"{source}: its tokenizer has no words but special tokens, so every text would be unknown; copy the "
            "tokenizer's files there (tokenizer.json), or name another folder"
        )
    return tokenizer


def _has_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token that was not added by hand has a letter or a digit, as one without its files does not."""
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    for token, number in tokenizer.get_vocab().items():
        if number in added or number in special:
            continue
        if any(character.isalnum() for character in token):
            return True
    return False


def check_loaded(
    source: str,
    model: torch.nn.Module,
    report: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Checks that a model came whole out of its files, and has an embedding for each token.

    Args:
        source: Folder or name on the Hub.
        model: The model.
        report: What `from_pretrained` says with `output_loading_info=True`.
        tokenizer: Its tokenizer.

    Raises:
        UsageError: Weights are missing, or tokens have no embedding.
    """
    try:
        check_weights(source, model, report)
    except ValueError as error:
        raise UsageError(str(error)) from error
    check_vocabulary(model, tokenizer, f"{source}: copy the tokenizer that belongs to it there")


def check_vocabulary(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, remedy: str) -> None:
    """Raises UsageError if a token has no row in the matrix of embeddings."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    rows = model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise UsageError(f"the tokenizer has {tokens} tokens, the encoder {rows}; {remedy}")


def check_files(source: str) -> None:
    """Raises UsageError if a file of a folder that would be read is a pointer of git-lfs."""
    folder = Path(source)
    if not folder.is_dir():
        return
    pointers = {path.name for path in folder.iterdir() if _is_pointer(path)}
    whole = {path.name for path in folder.iterdir()} - pointers
    for name in sorted(pointers):
        # Of two forms of the weights or of the tokenizer, the first one is read.
        is_second_form = name.endswith(".bin") and any(other.endswith(".safetensors") for other in whole)
        if not name.endswith((".bin", ".safetensors", ".json")):
            is_second_form = "tokenizer.json" in whole
        if not is_second_form:
            raise UsageError(
                f"{folder / name} is a pointer of git-lfs, not the file itself; run `git lfs pull` in {folder}"
            )


def _is_pointer(path: Path) -> bool:
    if path.suffix in _FOREIGN_SUFFIXES or not path.is_file() or path.stat().st_size > _LONGEST_POINTER:
        return False
    return path.read_bytes().startswith(_POINTER)
