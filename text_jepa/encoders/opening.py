"""Opens configuration, weights and tokenizer of any encoder, or says in one line what is not whole about them.

Every command opens encoders through this file, so that none of them trains or scores random weights, a tokenizer
without words, or code of a folder.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import text_jepa.registration  # noqa: F401  for the Auto classes
from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import check_weights
from text_jepa.cli import UsageError, first_line
from text_jepa.data.tokenization import UNKNOWN_LETTER
from text_jepa.encoders.sentence_head import check_files, check_place_of_encoder, file_of, read_json
from text_jepa.names import check_name


logger = logging.getLogger("text_jepa")

# Classes of transformers that open encoders, of which a folder may name its own.
_AUTO_CLASSES = (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification)

# Two short texts that a model is tried on, and what is wrong if it does not take them.
_TRIAL_TEXTS = ["a", "a b"]
_NO_ENCODER = "it cannot be run as an encoder of texts; use one such as BERT, RoBERTa or ModernBERT"

# Folders and Hub names whose code was run in this process, by the architecture that it brings.
_code_of: dict[str, str] = {}

# Warnings that were given in this process: a command opens an encoder more than once.
_given: set[str] = set()


def describe(error: Exception, takes_flags: bool = False) -> str:
    """The reason of an error in one line, with its type where the message alone says little.

    Args:
        error: The error.
        takes_flags: Whether flags change the configuration that the weights are read into.
    """
    reason = first_line(error)
    if "ignore_mismatched_sizes" in reason:  # with a table that is not shown
        if takes_flags:
            return (
                "the shapes of its weights match neither its config.json nor the flags of this run; leave out flags "
                "that change shapes, such as --pred_hidden_size, or copy both files again"
            )
        return "the shapes of its weights do not match its config.json; copy both files again"
    is_about_code = isinstance(error, KeyError | TypeError | AttributeError | IndexError | AssertionError)
    return f"{type(error).__name__}: {reason}" if is_about_code else reason


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
        raise UsageError(
            f"{source}: its weight file contains code, which is not run; save the weights as safetensors"
        ) from error
    except Exception as error:  # tokenizers raises bare exceptions, and each architecture its own
        raise UsageError(f"{source}: {what} ({describe(error)})") from error


def read_config(source: str, **options) -> PretrainedConfig:
    """The configuration of a folder or a Hub repository.

    Args:
        source: Folder or name on the Hub.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: There is no such folder, a file is a pointer of git-lfs, code of the folder or of the Hub would
            have to run, there are adapters of PEFT, the encoder is in a subfolder or is not one of transformers, or it
            comes with a decoder.
    """
    check_name(source, options.get("cache_dir"))
    check_files(source)
    check_adapters(source, **options)
    modules = read_json(source, "modules.json", **options) or []
    check_place_of_encoder(source, modules)
    content, _ = PretrainedConfig.get_config_dict(source, **options)
    model_type = content.get("model_type")
    references = content.get("auto_map") or {}
    if not isinstance(references, dict):
        raise UsageError(f"{source}: auto_map in its config.json is not an object, '{{...}}'; remove it there")
    if references and model_type not in CONFIG_MAPPING:
        raise UsageError(
            f"{source}: model_type '{model_type}' requires custom code, which is not run; use an encoder that "
            f"transformers supports or, if you trust the code, add --allow_remote_code {source}"
        )
    if modules and model_type not in CONFIG_MAPPING:  # otherwise --pooling opens the encoder without its modules
        _check_first_module(source, modules[0])
    is_known_code = model_type in _code_of or model_type == TextJepaConfig.model_type
    if "AutoModel" in references and not is_known_code:
        _warn_once(f"{source}: its custom code is not run; it is opened as the '{model_type}' of transformers")
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    if config.is_encoder_decoder or type(config).is_encoder_decoder:  # the encoder alone denies it
        raise UsageError(
            f"{source}: {model_type} is an encoder-decoder model, and its encoder cannot be opened on its own; use an "
            "encoder such as BERT, RoBERTa or ModernBERT"
        )
    attention = config._attn_implementation or ""
    if "/" in attention:
        raise UsageError(
            f"{source}: its configuration asks for code of the Hub ({attention}), which is not run; "
            "set attn_implementation to sdpa"
        )
    return config


def check_adapters(source: str, **options) -> None:
    """Raises UsageError if there are adapters of PEFT, which transformers would open with some other encoder."""
    if file_of(source, "adapter_config.json", **options) is not None:
        raise UsageError(
            f"{source}: contains PEFT adapters (adapter_config.json) for another encoder; load both with PEFT, call "
            "merge_and_unload(), save the result with save_pretrained(), and use that folder"
        )


def _check_first_module(source: str, module: Any) -> None:
    """Raises UsageError if the first module of a folder of sentence-transformers is not an encoder of transformers."""
    kind = str(module.get("type")).rpartition(".")[2] if isinstance(module, Mapping) else module
    if kind != "Transformer":
        raise UsageError(
            f"{source}: its first module (modules.json) is {kind}, not a Transformer, so there is no encoder that "
            "transformers can open; use another one"
        )


def _warn_once(message: str) -> None:
    if message not in _given:
        _given.add(message)
        logger.warning(message)


# ---- code of others -------------------------------------------------------------------------------------------------


def run_code_of(names: Sequence[str], **options) -> None:
    """Runs the code of encoders in these folders or Hub repositories, and of no others, and makes it known.

    transformers then has their architectures, as if it came with them: every loader opens them, still without running
    code of what it opens.

    Args:
        names: Folders and names on the Hub, as --allow_remote_code has them.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: There is no code, it is that of another folder, it cannot be run, or it is not needed.
    """
    for name in names:
        flag = f"--allow_remote_code {name}"
        with readable(flag, "its code cannot be used"):
            check_name(name, options.get("cache_dir"))
            content, _ = PretrainedConfig.get_config_dict(name, **options)
            _check_code(flag, name, content, names)
            if content["model_type"] not in _code_of:
                _register_code(name, content["model_type"], content["auto_map"], options)


def _check_code(flag: str, name: str, content: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raises UsageError unless there is an architecture whose code may and has to be run."""
    references = content.get("auto_map") or {}
    model_type = content.get("model_type")
    if not isinstance(references, dict) or not {"AutoConfig", "AutoModel"} <= set(references):
        raise UsageError(f"{flag}: its config.json names no code of an encoder (auto_map); leave it out")
    for reference in references.values():
        owner, is_elsewhere, _ = str(reference).partition("--")
        if is_elsewhere and owner not in allowed:
            raise UsageError(f"{flag}: its code is that of {owner}; if you trust it, name both: {name} {owner}")
    known = _code_of.get(model_type)
    if known not in (None, name):
        raise UsageError(f"{flag}: {known} has the model_type '{model_type}' too, with code of its own; name one")
    if model_type in CONFIG_MAPPING and known is None:
        raise UsageError(f"{flag}: '{model_type}' is opened without code of the folder; leave it out")


def _register_code(name: str, model_type: str, references: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Runs the code of an encoder, and tells the Auto classes of it. What is saved of it later has its files."""
    logger.warning(f"--allow_remote_code: the Python code of {name} runs ({', '.join(sorted(references.values()))})")
    config_class = get_class_from_dynamic_module(references["AutoConfig"], name, **options)
    config_class.register_for_auto_class()
    AutoConfig.register(model_type, config_class)
    for auto_class in _AUTO_CLASSES:
        reference = references.get(auto_class.__name__)
        if reference is not None:
            model_class = get_class_from_dynamic_module(reference, name, **options)
            model_class.register_for_auto_class(auto_class.__name__)
            auto_class.register(config_class, model_class)
    _code_of[model_type] = name


# ---- tokenizers and weights -----------------------------------------------------------------------------------------


def read_tokenizer(source: str, **options) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub repository.

    Args:
        source: Folder or name on the Hub.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: There is no such folder, a file is a pointer of git-lfs, there are no words, as without the files
            of the tokenizer, there is no padding token, or its settings are foreign.
    """
    check_name(source, options.get("cache_dir"))
    check_files(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        _try(tokenizer)
    except Exception as error:  # of many types
        if not Path(source).is_dir():
            raise  # the Hub, whose errors say what to do
        raise UsageError(
            f"{source}: its tokenizer cannot be used ({describe(error)}); copy the tokenizer's files there "
            "(tokenizer.json, tokenizer_config.json), or use another folder"
        ) from error
    if tokenizer.pad_token is None:
        raise UsageError(
            f"{source}: its tokenizer has no padding token; set tokenizer.pad_token in Python and save the tokenizer "
            "there (tokenizer.save_pretrained), or use another folder"
        )
    if not _has_words(tokenizer):
        raise UsageError(
            f"{source}: its tokenizer contains only special tokens, so every word would be unknown; copy the "
            "tokenizer's files there (tokenizer.json), or use another folder"
        )
    if tokenizer.init_kwargs.pop("auto_map", None):  # else it is saved with what the run leaves, where no code is
        kind = type(tokenizer).__name__
        _warn_once(f"{source}: the code of its tokenizer is not run; it is opened as the {kind} of transformers")
    _remove_dropout(source, tokenizer)
    return tokenizer


def _try(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises whatever comes of foreign settings, of which many are noticed only in use."""
    rows = tokenizer(["a text", "and a longer text"])["input_ids"]
    if tokenizer.pad_token is not None:
        _pad(tokenizer, rows)
    tokenizer(UNKNOWN_LETTER)  # some models need a token for it that their vocabulary lacks


def _pad(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> BatchEncoding:
    """Ids of texts as a batch with nothing but `input_ids` and `attention_mask` (B, S)."""
    masks = [[1] * len(row) for row in rows]
    return tokenizer.pad({"input_ids": rows, "attention_mask": masks}, return_tensors="pt")


def _remove_dropout(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Removes the dropout of BPE, with which a text has other tokens each time, from a fast tokenizer."""
    if not tokenizer.is_fast:
        return
    model = tokenizer.backend_tokenizer.model
    dropout = getattr(model, "dropout", None)
    if dropout:
        model.dropout = None
        _warn_once(
            f"{source}: the dropout of its tokenizer ({dropout:g}) is not used, so that a text always has the same "
            "tokens"
        )


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
        UsageError: Weights are missing, tokens have no embedding, or there is no matrix of embeddings.
    """
    try:
        check_weights(source, model, report)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with readable(source, _NO_ENCODER):
        check_vocabulary(model, tokenizer, f"{source}: copy the tokenizer that belongs to it there")


def check_vocabulary(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, remedy: str) -> None:
    """Raises UsageError if a token has no row in the matrix of embeddings."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    rows = model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise UsageError(f"the tokenizer has {tokens} tokens, the encoder {rows}; {remedy}")


@torch.no_grad()
def check_states(source: str, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks with two short texts that a model turns ids and a mask, and nothing else, into a state of each token.

    Args:
        source: Folder or name on the Hub.
        model: The model.
        tokenizer: Its tokenizer.

    Raises:
        UsageError: It does not run, returns something else, or its states are not finite.
    """
    if "flash" in (model.config._attn_implementation or ""):  # not on the CPU, where it is opened
        return
    rows = tokenizer(_TRIAL_TEXTS)["input_ids"]
    batch = _pad(tokenizer, rows)
    mask = batch["attention_mask"]
    attention_type = getattr(model, "attention_type", None)
    with readable(source, _NO_ENCODER):
        states = model(**batch).last_hidden_state
        if attention_type is not None:
            model.set_attention_type(attention_type)  # BigBird gives up sparse attention after a short text
        if states.shape[:-1] != mask.shape:
            raise ValueError(f"its states have the shape {tuple(states.shape)} for {tuple(mask.shape)} tokens")
    if not states[mask.bool()].isfinite().all():
        raise UsageError(f"{source}: its states are not finite, so its weights are corrupted; use another encoder")
