"""Builds the parts of a pretraining run from its arguments: corpus, tokenizer, examples, collator, model, probe.

`hub` is everywhere the dictionary of `hub_options`, and `shape` what `--text_config` says of a new encoder.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from configuration_text_jepa import LOSS_TERMS, OBJECTIVES, TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, TextJepaModel, check_weights
from text_jepa.cli import UsageError, nearest
from text_jepa.data.added_words import add_rows, add_words, read_words
from text_jepa.data.batching import DocumentWindows, EndlessStream
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import Corpus, load_corpus
from text_jepa.data.coverage import SAMPLE_SIZE, drops_characters, measure_coverage
from text_jepa.data.held_out import rows_in_turn
from text_jepa.data.reading import Source, read_rows
from text_jepa.data.strategies import DOCUMENT_VIEWS, MaskStrategy, ViewStrategy, check_share
from text_jepa.data.tokenization import (
    DocumentCount,
    special_tokens_around,
    tokenize_documents,
    tokenize_texts,
    train_tokenizer,
    vocabulary,
)
from text_jepa.data.word_weights import DocumentFrequency, word_weights
from text_jepa.encoders.opening import check_vocabulary, describe, read_config, read_tokenizer, readable
from text_jepa.probe.catalog import load_task
from text_jepa.probe.online import OnlineProbeCallback
from text_jepa.train.architecture import check_architecture
from text_jepa.train.arguments import (
    SPAN_FLAGS,
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
    selects_best_checkpoint,
)
from text_jepa.train.checkpointing import checkpoints


logger = logging.getLogger(__name__)

# Number of texts of a stream that document frequencies are counted in.
STREAM_TEXTS_TO_WEIGH = 10_000

# Flags of a tokenizer that is trained on the corpus.
FLAGS_OF_NEW_TOKENIZERS = ("vocab_size", "tokenizer_type", "lowercase")

# Documents with fewer tokens are taken for single sentences.
_LENGTH_OF_SENTENCE = 32


# ---- the objective --------------------------------------------------------------------------------------------------


def objective_fields(
    model_args: ModelArguments, objective_args: ObjectiveArguments, continues: bool
) -> dict[str, Any]:
    """The fields of `TextJepaConfig` that the flags ask for.

    An objective that is named replaces that of a Text-JEPA whose training continues: what any objective sets, and the
    weight of each term, has the value of this one, or the default.

    Args:
        model_args: The model arguments, with the name of the objective.
        objective_args: Fields that differ from that objective; `None` for flags that are not given.
        continues: Whether training of a complete Text-JEPA continues: its own objective is then the default.
    """
    given = {name: value for name, value in vars(objective_args).items() if value is not None}
    if model_args.objective is None and continues:
        return given
    replaced = {f"{term}_loss_weight" for term in LOSS_TERMS}
    replaced.update(*OBJECTIVES.values())
    defaults = {name: getattr(TextJepaConfig, name) for name in replaced}
    return defaults | OBJECTIVES[model_args.objective or "documents"] | given


def objective_of(model_args: ModelArguments, objective_args: ObjectiveArguments) -> SimpleNamespace:
    """All fields of the objective, with the values that the model will have.

    Raises:
        UsageError: The named encoder has no configuration.
    """
    fields = {name: getattr(TextJepaConfig, name) for name in vars(objective_args)}
    name = model_args.model_name_or_path or model_args.config_name
    continues = False
    if name:
        config = _named_config(model_args, name)
        continues = config.model_type == TextJepaConfig.model_type
        if continues:
            fields |= _saved_objective(config)
    fields |= objective_fields(model_args, objective_args, continues)
    return SimpleNamespace(**fields)


def _named_config(model_args: ModelArguments, name: str) -> PretrainedConfig:
    flag = "model_name_or_path" if model_args.model_name_or_path else "config_name"
    with readable(f"--{flag} {name}", "no configuration there"):
        return read_config(name, **hub_options(model_args))


def set_dependent_defaults(data_args: DataArguments, objective: SimpleNamespace | ObjectiveArguments) -> None:
    """Fills in the defaults that depend on the objective: the view of a text, and how much of it is hidden.

    Args:
        data_args: The arguments, which are changed.
        objective: The fields of the objective, by their names in the configuration.

    Raises:
        UsageError: There is a document loss and a view that is not of a document; or a flag of spans is given, but
            nothing is hidden.
    """
    predicts_documents = objective.document_loss_weight > 0
    predicts_tokens = objective.latent_loss_weight > 0 or objective.token_loss_weight > 0
    if data_args.view is None and predicts_documents:
        data_args.view = "rest"
    if predicts_documents and data_args.view not in (*DOCUMENT_VIEWS, "column"):
        raise UsageError(
            f"--view {data_args.view}: the document loss predicts the rest of a document; use rest, neighbour or "
            "column, or --document_loss_weight 0"
        )
    hides_by_default = data_args.mask_ratio is None
    if hides_by_default and data_args.mask_strategies is None:
        hides_nothing = (predicts_documents or data_args.view in DOCUMENT_VIEWS) and not predicts_tokens
        data_args.mask_ratio = 0.0 if hides_nothing else 0.5
    if data_args.mask_ratio == 0:
        _refuse_idle_span_flags(data_args, hides_by_default)
        if predicts_tokens:
            raise UsageError(
                "--mask_ratio 0: the objective predicts hidden tokens, but no tokens are hidden; set it above 0, for "
                "example 0.3, or use an --objective that hides none (documents)"
            )


def _refuse_idle_span_flags(data_args: DataArguments, is_default: bool) -> None:
    reason = "--mask_ratio 0 hides no words"
    if is_default:
        reason = "this objective predicts no hidden token and hides none (--mask_ratio is 0 by default)"
    for field in dataclasses.fields(data_args):
        if field.name in SPAN_FLAGS and getattr(data_args, field.name) != field.default:
            raise UsageError(
                f"--{field.name} has no effect: {reason}; add a --mask_ratio above 0, such as 0.3, or leave it out"
            )


# ---- texts ----------------------------------------------------------------------------------------------------------


def make_corpus(model_args: ModelArguments, data_args: DataArguments) -> Corpus:
    """The raw documents, at most `max_train_samples` of them to train on."""
    corpus = load_corpus(data_args, model_args.cache_dir, data_args.max_document_length)
    limit = data_args.max_train_samples
    if limit is not None:
        train = corpus.splits["train"]
        if isinstance(train, Dataset):
            limit = min(limit, len(train))  # older versions of the library take no more than there are
        corpus.splits["train"] = train.take(limit)
    return corpus


def make_tokenizer(
    model_args: ModelArguments, data_args: DataArguments, args: TextJepaTrainingArguments, corpus: Corpus
) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer of a run, and whether it is new.

    It is the first of these: `--tokenizer_name`, the encoder's, the one of the checkpoints in the output folder, a new
    one.

    Raises:
        UsageError: There is no tokenizer of that name, or it has no words.
    """
    name = name_of_tokenizer(model_args)
    if name is not None:
        _warn_of_flags_of_new_tokenizers(model_args, name)
        flag = "tokenizer_name"
        options = {"cache_dir": model_args.cache_dir}
        if not model_args.tokenizer_name:
            flag = "model_name_or_path"
            options["revision"] = model_args.model_revision
        with readable(f"--{flag} {name}", "no tokenizer there"):
            return read_tokenizer(name, **options), False
    kept = Path(args.output_dir, "tokenizer")
    # If there are checkpoints, their tokenizer is kept. A tokenizer without checkpoints may come from other texts or
    # flags; training it again gives the same result for the same ones.
    has_just_been_trained = args.local_process_index > 0  # by the first process of the machine
    if kept.is_dir() and (has_just_been_trained or checkpoints(args.output_dir)):
        with readable(str(kept), "no tokenizer there"):
            return read_tokenizer(str(kept)), False
    return _train_tokenizer(model_args, data_args, corpus), True


def name_of_tokenizer(model_args: ModelArguments) -> str | None:
    """The folder or Hub name of the tokenizer that the flags name; `None` if one is trained on the corpus."""
    takes_that_of_encoder = model_args.init != "layers"  # else there are new input embeddings for another one
    if model_args.tokenizer_name is None and takes_that_of_encoder:
        return model_args.model_name_or_path
    return model_args.tokenizer_name


def _warn_of_flags_of_new_tokenizers(model_args: ModelArguments, name: str) -> None:
    """Says which flags have no effect on an existing tokenizer; no error, as recipes have them for new ones."""
    defaults = ModelArguments()
    for flag in FLAGS_OF_NEW_TOKENIZERS:
        if getattr(model_args, flag) != getattr(defaults, flag):
            logger.warning(f"--{flag} has no effect: the tokenizer is that of {name}")


def add_words_to(tokenizer: PreTrainedTokenizerBase, model_args: ModelArguments) -> dict[int, list[int]]:
    """Adds the words of --add_words to a tokenizer.

    Returns:
        The pieces of each new token, see `add_words`.

    Raises:
        UsageError: There are no words.
    """
    if model_args.add_words is None:
        return {}
    added = add_words(tokenizer, read_words(model_args.add_words))
    if added and model_args.lora is not None:
        logger.warning(
            "--add_words: embeddings are not trained with --lora, so each added word keeps the mean embedding of its "
            "pieces; train without --lora to learn them"
        )
    return added


def _train_tokenizer(model_args: ModelArguments, data_args: DataArguments, corpus: Corpus) -> PreTrainedTokenizerBase:
    rows = read_rows(rows_in_turn(corpus.splits["train"]), corpus.source)
    texts = (text for row in rows for text in row.values())  # the words of the view too
    return train_tokenizer(
        texts,
        vocab_size=model_args.vocab_size,
        lowercase=model_args.lowercase,
        max_length=data_args.max_length,
        kind=model_args.tokenizer_type,
    )


def make_examples(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments, count: DocumentCount | None = None
) -> DatasetDict | IterableDatasetDict:
    """The tokenized splits of a corpus: texts, or whole documents for views of documents.

    Args:
        corpus: The raw documents.
        tokenizer: Their tokenizer.
        data_args: Lengths, view and caching.
        count: Counts the training documents of a stream while it is read.

    Raises:
        UsageError: No document is left, or a stream cannot be read.
    """
    options = {
        "min_length": data_args.min_length,
        "num_proc": data_args.preprocessing_num_workers,
        "overwrite_cache": data_args.overwrite_cache,
        "count": count,
        "sources": corpus.sources,
    }
    length = data_args.max_length
    if data_args.view in DOCUMENT_VIEWS:
        return tokenize_documents(corpus.splits, tokenizer, length, data_args.max_document_length, **options)
    return tokenize_texts(corpus.splits, tokenizer, length, data_args.view, **options)


def make_windows(
    examples: Dataset, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, max_windows: int | None = None
) -> Dataset | DocumentWindows:
    """The windows of documents for views of documents; otherwise the examples themselves."""
    if data_args.view not in DOCUMENT_VIEWS:
        return examples
    before, after = special_tokens_around(tokenizer)
    return DocumentWindows(examples, data_args.max_length, len(before) + len(after), max_windows)


def make_stream(
    examples: IterableDataset, source: Source, data_args: DataArguments, args: TextJepaTrainingArguments
) -> EndlessStream:
    """The shuffled training examples of a stream, for all processes together."""
    return EndlessStream(
        examples.shuffle(seed=args.seed, buffer_size=data_args.shuffle_buffer),
        batch_size=args.train_batch_size * args.world_size,
        batches_per_step=args.gradient_accumulation_steps,
        source=source,
        seed=args.seed,
    )


def make_collator(
    data_args: DataArguments,
    args: TextJepaTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_text_length: int | None,
) -> DataCollatorForTextJepa:
    """The collator with the masks and the view asked for.

    Args:
        data_args: The data arguments, with masks and view.
        args: The training arguments. In half precision, texts are padded to lengths that suit tensor cores.
        tokenizer: The tokenizer of the examples.
        max_text_length: Number of positions that the encoder has, which limits padding; `None` if there is no limit.

    Raises:
        UsageError: Arguments are out of range or do not go together.
    """
    padded_length = math.ceil(data_args.max_length / 8) * 8
    fits = max_text_length is None or padded_length <= max_text_length
    pads = fits and (args.bf16 or args.fp16)
    view = None
    try:
        if data_args.view is not None:
            view = ViewStrategy(data_args.view, data_args.view_ratio, data_args.max_length)
        return DataCollatorForTextJepa(
            tokenizer,
            make_strategies(data_args),
            num_masks=data_args.num_masks,
            view=view,
            seed=args.seed,
            equal_counts=data_args.equal_counts,
            complement_masks=data_args.complement_masks,
            pad_to_multiple_of=8 if pads else None,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def make_strategies(data_args: DataArguments) -> list[MaskStrategy]:
    """The mask strategies of `--mask_strategies`, or the one that the other flags describe.

    Raises:
        ValueError: A field is out of range.
    """
    if data_args.mask_strategies is not None:
        return [MaskStrategy(**fields, name=str(name)) for name, fields in data_args.mask_strategies.items()]
    check_share("mask_ratio", data_args.mask_ratio)
    span_fields = {name: getattr(data_args, name) for name in SPAN_FLAGS}
    return [MaskStrategy(ratio=data_args.mask_ratio, **span_fields)]


# ---- the model ------------------------------------------------------------------------------------------------------


def make_model(
    model_args: ModelArguments,
    data_args: DataArguments,
    objective_args: ObjectiveArguments,
    tokenizer: PreTrainedTokenizerBase,
    added: dict[int, list[int]] | None = None,
) -> TextJepaForPreTraining:
    """The model of a run: around a trained encoder, or around a new one of a size or configuration.

    Args:
        model_args, data_args, objective_args: The arguments of the run.
        tokenizer: Its tokenizer.
        added: Pieces of the tokens that were added to it, see `add_words`.

    Raises:
        UsageError: Flags exclude each other; the encoder does not exist, is damaged, or does not fit the texts or the
            tokenizer; or its architecture is not supported.
    """
    _check_encoder_flags(model_args)
    name = model_args.model_name_or_path or model_args.config_name
    continues = name is not None and is_text_jepa(name, hub_options(model_args))
    fields = objective_fields(model_args, objective_args, continues)
    _set_mask_token(fields, tokenizer)
    _set_num_mask_tokens(fields, len(data_args.mask_strategies or [""]))
    shape = read_text_config(model_args.text_config)
    with _buildable(name, model_args, continues):
        if model_args.model_name_or_path and model_args.init == "pretrained":
            model = _load_model(model_args, fields, continues)
        elif name:
            model = _make_model_like(name, model_args, tokenizer, shape, fields)
        else:
            model = _make_new_model(model_args, data_args, tokenizer, shape, fields)
        if model_args.attn_implementation:
            model.set_attn_implementation(model_args.attn_implementation)
    encoders = [encoder for encoder in (model.model.encoder, model.target_encoder) if encoder is not None]
    add_rows(model, encoders, added or {})
    check_architecture(model)
    _check_lengths(model.config, data_args)
    check_vocabulary(model, tokenizer, "name the encoder's own tokenizer with --tokenizer_name")
    return model


def hub_options(model_args: ModelArguments) -> dict[str, Any]:
    """The cache and the revision, as keyword arguments of `from_pretrained`."""
    return {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision}


def _check_encoder_flags(model_args: ModelArguments) -> None:
    chosen = [flag for flag in ("preset", "config_name", "model_name_or_path") if getattr(model_args, flag)]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other: both name the encoder; leave one out")


def _set_mask_token(fields: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    if fields.get("context_mode") != "mask_token":
        return
    fields.setdefault("mask_token_id", tokenizer.mask_token_id)
    if fields["mask_token_id"] is None:
        raise UsageError("--context_mode mask_token: the tokenizer has no mask token; use drop or attention_mask")


def _set_num_mask_tokens(fields: dict[str, Any], num_strategies: int) -> None:
    """A mask token for each strategy, unless the flags ask for a number."""
    if num_strategies == 1:
        return
    fields.setdefault("pred_num_mask_tokens", num_strategies)
    if fields["pred_num_mask_tokens"] < num_strategies:
        raise UsageError(
            f"--pred_num_mask_tokens {fields['pred_num_mask_tokens']}: each of the {num_strategies} mask strategies "
            "needs one; leave it out"
        )


def read_text_config(text: str | None) -> dict[str, Any]:
    """Reads the fields of a new encoder's configuration from JSON.

    Raises:
        UsageError: The text is not a JSON object.
    """
    try:
        shape = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"--text_config {text}: not JSON: {error}") from error
    if not isinstance(shape, dict):
        raise UsageError(f"--text_config {text}: expected fields and values, '{{...}}'")
    return shape


@contextlib.contextmanager
def _buildable(name: str | None, model_args: ModelArguments, continues: bool) -> Iterator[None]:
    """Turns any error of transformers into one line with the name and the architecture of the encoder."""
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{name}: its weight file contains code, which is not run; save the weights as safetensors"
        ) from error
    except Exception as error:  # each architecture has errors of its own
        reason = describe(error, takes_flags=continues)
        if name and reason.startswith(f"{name}: "):
            raise UsageError(reason) from error
        subject = ""
        if name:
            model_type = _named_config(model_args, name).model_type
            subject = f"{name} ({model_type}): "
        raise UsageError(f"{subject}the model cannot be built: {reason}") from error


def _load_model(model_args: ModelArguments, fields: dict[str, Any], continues: bool) -> TextJepaForPreTraining:
    """Loads a complete Text-JEPA with its predictor and target encoder, or adds new ones to any other encoder."""
    name = model_args.model_name_or_path
    hub = hub_options(model_args)
    if continues:
        model, report = TextJepaForPreTraining.from_pretrained(
            name,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=model_args.objective is not None,
            **hub,
            **fields,
        )
        # Another objective may need new parts, or parts of another size; the encoder must have all of its weights.
        of_other_size = [key for key, _, _ in report["mismatched_keys"]]
        new = [*report["missing_keys"], *of_other_size]
        report["missing_keys"] = [key for key in new if key.startswith("model.encoder.")]
        check_weights(name, model, report)
        if model.target_encoder is not None and model.config.target_encoder_type == "online":
            # What the similarity loss keeps is the encoder before this run, not before the one that left the files.
            model.target_encoder.load_state_dict(model.model.encoder.state_dict())
    else:
        model = TextJepaForPreTraining.from_encoder(name, **hub, **fields)
    return model


def _make_model_like(
    name: str,
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    shape: dict[str, Any],
    fields: dict[str, Any],
) -> TextJepaForPreTraining:
    """A new model of an existing architecture, which may start from a part of its weights."""
    hub = hub_options(model_args)
    # Trained embeddings keep their number of rows, which is often more than the tokenizer has words.
    text_fields = {} if model_args.init == "embeddings" else tokenizer_fields(tokenizer)
    model = TextJepaForPreTraining(config_from(name, text_fields, shape, fields, hub))
    if model_args.init in ("embeddings", "layers"):
        trained, report = TextJepaModel.from_pretrained(
            name,
            trust_remote_code=False,
            output_loading_info=True,
            **hub,
        )
        check_weights(name, trained, report)
        copy_pretrained_weights(model, trained, model_args.init)
    return model


def _make_new_model(
    model_args: ModelArguments,
    data_args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    shape: dict[str, Any],
    fields: dict[str, Any],
) -> TextJepaForPreTraining:
    """A new model of the size `--preset`."""
    text_config = tokenizer_fields(tokenizer)
    text_config["max_position_embeddings"] = max(512, data_args.max_length)
    text_config |= shape
    preset = model_args.preset
    if preset is None:
        preset = "static" if fields.get("document_loss_weight", 0) > 0 else "mini"
    return TextJepaForPreTraining(TextJepaConfig.preset(preset, text_config, **fields))


def _check_lengths(config: TextJepaConfig, data_args: DataArguments) -> None:
    limit = config.max_text_length
    if limit is None:
        return
    if data_args.max_length > limit:
        raise UsageError(
            f"--max_length {data_args.max_length}: the encoder has positions for {limit} tokens only; lower it"
        )
    encodes_views = config.sentence_loss_weight > 0 or config.encodes_documents
    if data_args.view == "rest" and encodes_views and data_args.max_document_length > limit:
        raise UsageError(
            f"--max_document_length {data_args.max_document_length}: the rest of a document is encoded, and the "
            f"encoder has positions for {limit} tokens only; lower it, or use --view neighbour"
        )


def is_text_jepa(name: str, hub: dict[str, Any]) -> bool:
    """Whether a name is that of a complete Text-JEPA; also False if there is nothing, which is an error later on."""
    try:
        return read_config(name, **hub).model_type == TextJepaConfig.model_type
    except (OSError, ValueError):
        return False


def config_from(
    name: str,
    text_fields: dict[str, Any],
    shape: dict[str, Any],
    fields: dict[str, Any],
    hub: dict[str, Any],
) -> TextJepaConfig:
    """The configuration of a new Text-JEPA whose encoder has an existing architecture.

    Args:
        name: Folder or Hub name of a Text-JEPA or of any encoder.
        text_fields: Fields of the encoder's configuration that follow from the tokenizer.
        shape: Fields of the encoder's configuration from `--text_config`.
        fields: Fields of the objective.
        hub: Options of `from_pretrained`.

    Raises:
        UsageError: The encoder's configuration does not have a field of `shape`.
    """
    config = read_config(name, **hub)
    text_config = config
    if config.model_type == TextJepaConfig.model_type:
        text_config = config.text_config
        config = TextJepaConfig.from_dict(config.to_dict(), **fields)
        fields = _saved_objective(config) | fields
    check_fields(shape, text_config)
    values = text_config.to_dict()
    if "num_hidden_layers" in shape:
        values.pop("layer_types", None)  # has an entry for each layer, of which there is another number now
    # New weights are in full precision, whatever the checkpoint has.
    values |= {"dtype": None} | text_fields | shape
    return TextJepaConfig(text_config=type(text_config).from_dict(values), **fields)


def _saved_objective(config: TextJepaConfig) -> dict[str, Any]:
    """The fields of a configuration that have a flag."""
    flags = vars(ObjectiveArguments())
    return {field: value for field, value in config.to_dict().items() if field in flags}


def check_fields(shape: dict[str, Any], text_config: PretrainedConfig) -> None:
    """Raises UsageError for fields that a configuration does not have, which transformers would silently accept."""
    known = {field.name for field in dataclasses.fields(text_config)} | set(text_config.attribute_map)
    for name in shape:
        if name not in known:
            raise UsageError(f"--text_config: unknown field '{name}'{nearest(name, known)}")


def tokenizer_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of an encoder's configuration that follow from its tokenizer."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    fields = {"vocab_size": len(vocabulary(tokenizer))}
    return fields | {name: getattr(tokenizer, name) for name in names}


def copy_pretrained_weights(model: TextJepaForPreTraining, trained: TextJepaModel, part: str) -> None:
    """Starts both encoders of a new model with a part of a trained encoder of the same architecture.

    Args:
        model: The new model.
        trained: The trained encoder.
        part: `"embeddings"`, the input embeddings alone; or `"layers"`, all weights but these.

    Raises:
        UsageError: The input embeddings of the two differ in shape.
    """
    encoder = model.model.encoder
    matrix = trained.encoder.get_input_embeddings().weight
    new_matrix = encoder.get_input_embeddings().weight
    takes_embeddings = part == "embeddings"
    if takes_embeddings and new_matrix.shape != matrix.shape:
        raise UsageError(
            f"--text_config: the trained input embeddings are {_describe_shape(matrix)}, the new encoder's would be "
            f"{_describe_shape(new_matrix)}"
        )
    parameters = trained.encoder.named_parameters()
    matrix_name = next(name for name, parameter in parameters if parameter is matrix)
    # RoBERTa and its kin number positions from `pad_token_id + 1`, and the tokenizers may differ in `pad_token_id`.
    shift = model.config.position_offset - trained.config.position_offset
    weights = trained.encoder.state_dict()
    if takes_embeddings:
        weights = {matrix_name: weights[matrix_name]}
    else:
        del weights[matrix_name]
    for name, value in weights.items():
        if name.endswith("position_embeddings.weight"):
            weights[name] = value.roll(shift, 0)
    encoder.load_state_dict(weights, strict=False)
    if model.target_encoder is not None:
        model.target_encoder.load_state_dict(encoder.state_dict())


def _describe_shape(matrix: torch.Tensor) -> str:
    rows, columns = matrix.shape
    return f"{rows} x {columns}"


def weigh_words(
    model: TextJepaForPreTraining,
    examples: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
) -> None:
    """Sets the word weights of a model with `pooling="idf"` from the document frequencies of words.

    Args:
        model: The model; one with another pooling does not change.
        examples: The tokenized training texts; in a stream, 10,000 from several files are counted.
        tokenizer: Their tokenizer.
        source: Where they are read from, for error messages.

    Raises:
        UsageError: A stream cannot be read.
    """
    if model.word_weights is None:
        return
    if isinstance(examples, Dataset):
        texts = examples["input_ids"]
    else:
        texts = _first_texts(examples, source)
    frequency = DocumentFrequency(len(vocabulary(tokenizer)))
    frequency.add(texts)
    weights = torch.zeros_like(model.word_weights)  # an encoder may have more rows than its tokenizer has words
    weights[: len(frequency.counts)] = torch.from_numpy(word_weights(frequency, tokenizer))
    model.set_word_weights(weights)


def _first_texts(stream: IterableDataset, source: Source) -> Iterator[list[int]]:
    examples = read_rows(rows_in_turn(stream), source)
    # A stream has an example for each window of a document, with the whole document in it.
    documents = (example["input_ids"] for example in examples if example.get("window", 0) == 0)
    return itertools.islice(documents, STREAM_TEXTS_TO_WEIGH)


def check_texts(
    examples: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    collator: DataCollatorForTextJepa,
    config: TextJepaConfig,
    data_args: DataArguments,
    corpus: Corpus,
) -> str:
    """Checks a sample of the training texts: warns if the tokenizer hardly knows them, or masks hardly hide anything.

    Args:
        examples: The tokenized training texts.
        tokenizer: The tokenizer of the run.
        collator: The collator of the run, which makes the masks.
        config: The configuration of the model.
        data_args: The data arguments.
        corpus: The raw documents.

    Returns:
        A line that describes tokens and masks.

    Raises:
        UsageError: The tokenizer does not know most of the texts, or nothing is hidden; a stream cannot be read.
    """
    if isinstance(examples, Dataset):
        windows = make_windows(examples, data_args, tokenizer)
        stride = -(-len(windows) // SAMPLE_SIZE)
        sample = [windows[row] for row in range(0, len(windows), stride)]
        if data_args.view == "neighbour":
            _warn_of_single_sentences(np.asarray(examples["length"]))
    else:
        rows = read_rows(rows_in_turn(examples), corpus.source)
        sample = list(itertools.islice(rows, SAMPLE_SIZE))
    texts = []
    if drops_characters(tokenizer):
        documents = read_rows(rows_in_turn(corpus.splits["train"]), corpus.source)
        texts = [document["text"] or "" for document in itertools.islice(documents, SAMPLE_SIZE)]
    coverage = measure_coverage(sample, tokenizer, collator, texts)
    hides = config.predicts_tokens or any(strategy.ratio != 0 for strategy in collator.strategies)
    coverage.check(hides)
    for warning in coverage.warnings(hides):
        logger.warning(warning)
    return coverage.describe(hides)


def _warn_of_single_sentences(lengths: np.ndarray) -> None:
    """Warns if most documents (N,) are so short that their neighbouring windows are the halves of a sentence."""
    if np.median(lengths) < _LENGTH_OF_SENTENCE:
        logger.warning(
            f"half of the documents have fewer than {_LENGTH_OF_SENTENCE} tokens, so that neighbouring windows are "
            "the two halves of a sentence; training on them makes sentence similarity worse. To contrast whole "
            "sentences instead, use --view deletion --view_ratio 0.9 --merge false"
        )


# ---- the probe ------------------------------------------------------------------------------------------------------


def make_probe(
    data_args: DataArguments,
    args: TextJepaTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: str | None,
) -> OnlineProbeCallback | None:
    """The probe of the task `--probe_task`, if there is one.

    Raises:
        UsageError: The task cannot be loaded, or has no figure of the name that selects the best checkpoint.
    """
    if data_args.probe_task is None:
        return None
    task = load_task("probe_task", data_args.probe_task, data_args.probe_data_dir, cache_dir)
    probe = OnlineProbeCallback(task, tokenizer, data_args.max_length)
    if selects_best_checkpoint(args):
        metric = args.metric_for_best_model
        if f"eval_{metric.removeprefix('eval_')}" not in probe.names:
            raise UsageError(
                f"--metric_for_best_model {metric}: the probe of {task.name} has no such figure"
                f"{nearest(metric, probe.names)} (it has {', '.join(probe.names)})"
            )
    return probe
