"""What a pretraining run is made of, from its arguments: texts, tokenizer, model, collator, probe."""

import dataclasses
import itertools
import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from configuration_text_jepa import OBJECTIVES, TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, TextJepaModel
from text_jepa.cli import UsageError, first_line, nearest
from text_jepa.data.batching import DocumentWindows, EndlessStream
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import legible, load_corpus
from text_jepa.data.masking import DOCUMENT_VIEWS, MaskStrategy
from text_jepa.data.tokenization import (
    DocumentCount,
    special_tokens_around,
    tokenize_corpus,
    train_tokenizer,
    vocabulary,
)
from text_jepa.data.word_weights import DocumentFrequency, word_weights
from text_jepa.probe.catalog import load_task
from text_jepa.probe.online import OnlineProbeCallback
from text_jepa.train.arguments import ObjectiveArguments, fields_for, source_of
from text_jepa.train.checks import selects_best_checkpoint


# Texts of a stream by which the weights of words are counted.
STREAM_TEXTS_TO_WEIGH = 10_000

# Which words are hidden, where some are.
SPAN_FLAGS = ("span_length_distribution", "mean_span_length", "max_span_length", "min_span_length", "num_spans")
SPAN_FLAGS += ("whole_words",)

# What transformers raises for a model that there is not, or cannot be here.
_UNBUILDABLE = (OSError, ValueError, TypeError, RuntimeError, IndexError, ImportError)
_UNBUILDABLE += (SafetensorError, StrictDataclassError)


def objective_fields(model_args, objective_args, continues: bool) -> dict:
    """The fields of `TextJepaConfig` that the flags ask for.

    Args:
        model_args, objective_args: The arguments.
        continues: Whether a complete Text-JEPA is trained further, which has an objective of its own.
    """
    given = {name: value for name, value in vars(objective_args).items() if value is not None}
    if model_args.objective is None and continues:
        return given
    return OBJECTIVES[model_args.objective or "documents"] | given


def objective_of(model_args, objective_args) -> SimpleNamespace:
    """The fields of the objective as the model will have them.

    Raises:
        UsageError: The encoder that is named has no configuration.
    """
    fields = {name: getattr(TextJepaConfig, name) for name in vars(objective_args)}
    name = model_args.model_name_or_path or model_args.config_name
    continues = False
    if name:
        try:
            config = config_of(name, {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision})
        except UsageError:
            raise
        except (OSError, ValueError) as error:
            flag = "model_name_or_path" if model_args.model_name_or_path else "config_name"
            raise UsageError(f"--{flag} {name}: no configuration there ({first_line(error)})") from error
        continues = config.model_type == TextJepaConfig.model_type
        if continues:
            fields |= {field: value for field, value in config.to_dict().items() if field in fields}
    return SimpleNamespace(**fields | objective_fields(model_args, objective_args, continues))


def set_dependent_defaults(data_args, config) -> None:
    """Fills in what depends on the objective: the view of a text, and how much of it is hidden.

    Args:
        data_args: The [`DataArguments`], which are changed.
        config: The [`TextJepaConfig`], or its fields.

    Raises:
        UsageError: The document loss is to predict a view that is not of a document, or a flag says which words to
            hide and none are hidden.
    """
    if data_args.view is None and config.document_loss_weight > 0:
        data_args.view = "rest"
    if config.document_loss_weight > 0 and data_args.view not in (*DOCUMENT_VIEWS, "column"):
        raise UsageError(
            f"--view {data_args.view}: the document loss predicts the rest of a document; use rest, neighbour or "
            "column, or --document_loss_weight 0"
        )
    hides_by_default = data_args.mask_ratio is None
    if data_args.mask_ratio is None and data_args.mask_strategies is None:
        predicts_tokens = config.latent_loss_weight > 0 or config.token_loss_weight > 0
        predicts_documents = config.document_loss_weight > 0 or data_args.view in DOCUMENT_VIEWS
        data_args.mask_ratio = 0.0 if predicts_documents and not predicts_tokens else 0.5
    if data_args.mask_ratio == 0:
        _refuse_spans(data_args, hides_by_default)


def _refuse_spans(data_args, is_default: bool) -> None:
    """Refuses flags that say which words are hidden, where none are."""
    reason = "--mask_ratio 0 hides no words"
    if is_default:
        reason = "this objective predicts no hidden token and hides none (--mask_ratio is 0 by default)"
    for field in dataclasses.fields(data_args):
        if field.name in SPAN_FLAGS and getattr(data_args, field.name) != field.default:
            raise UsageError(
                f"--{field.name} has no effect: {reason}; add a --mask_ratio above 0, such as 0.3, or leave it out"
            )


def make_collator(data_args, args, tokenizer, limit) -> DataCollatorForTextJepa:
    """The collator with the masks asked for; lengths that tensor cores like, where the encoder has positions for."""
    fits = -(-data_args.max_length // 8) * 8 <= (limit or math.inf)
    strategies = data_args.mask_strategies
    try:
        if strategies is not None:
            strategies = [MaskStrategy(**fields, name=str(name)) for name, fields in strategies.items()]
        return DataCollatorForTextJepa(
            tokenizer,
            seed=args.seed,
            pad_to_multiple_of=8 if fits and (args.bf16 or args.fp16) else None,
            strategies=strategies,
            window_length=data_args.max_length,
            **fields_for(DataCollatorForTextJepa, data_args),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def make_examples(model_args, data_args, args, count: DocumentCount):
    """The tokenizer, whether it is new, the corpus and its tokenized splits; `count` counts those of a stream."""
    corpus = load_corpus(**fields_for(load_corpus, data_args), seed=args.seed, cache_dir=model_args.cache_dir)
    if data_args.max_train_samples is not None:
        corpus["train"] = corpus["train"].take(data_args.max_train_samples)
    tokenizer, is_new = make_tokenizer(model_args, data_args, args, corpus["train"])
    options = fields_for(tokenize_corpus, data_args) | {"num_proc": data_args.preprocessing_num_workers}
    return tokenizer, is_new, corpus, tokenize_corpus(corpus, tokenizer, count=count, **options)


def windows_of(documents: Dataset, data_args, tokenizer, max_windows: int | None = None):
    """The windows of documents, where the view is of a document; else the texts as they are."""
    if data_args.view not in DOCUMENT_VIEWS:
        return documents
    before, after = special_tokens_around(tokenizer)
    return DocumentWindows(documents, data_args.max_length, len(before) + len(after), max_windows)


def make_stream(train, data_args, args) -> EndlessStream:
    """The shuffled training texts of a stream, for all processes together."""
    shuffled = train.shuffle(seed=args.seed, buffer_size=data_args.shuffle_buffer)
    batch_size = args.train_batch_size * args.world_size
    return EndlessStream(shuffled, batch_size, args.gradient_accumulation_steps, source_of(data_args), args.seed)


def make_tokenizer(model_args, data_args, args, train):
    """The tokenizer named, the encoder's, the one in the output folder, or a new one; and whether it is new.

    New input embeddings under trained layers are for another tokenizer than the encoder's.
    """
    name = model_args.tokenizer_name or (model_args.model_name_or_path if model_args.init != "layers" else None)
    kept = Path(args.output_dir, "tokenizer")
    if name is None and kept.is_dir():
        name = str(kept)
    if name is None:
        rows = legible(train, *source_of(data_args))
        texts = (text for row in rows for text in row.values())  # the view's words too
        return train_tokenizer(
            texts, model_args.vocab_size, model_args.lowercase, data_args.max_length, model_args.tokenizer_type
        ), True
    try:
        hub = {"cache_dir": model_args.cache_dir, "trust_remote_code": False}  # which is not even asked for
        if not model_args.tokenizer_name:
            hub["revision"] = model_args.model_revision
        return AutoTokenizer.from_pretrained(name, **hub), False
    except (OSError, ValueError) as error:
        flag = "tokenizer_name" if model_args.tokenizer_name else "model_name_or_path"
        raise UsageError(f"--{flag} {name}: no tokenizer there ({first_line(error)})") from error


def make_model(model_args, data_args, objective_args, tokenizer) -> TextJepaForPreTraining:
    """The model around a trained encoder, or a new one of the size or configuration asked for."""
    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision}
    name = model_args.model_name_or_path
    continues = objective_continues(name or model_args.config_name, hub)
    fields = objective_fields(model_args, objective_args, continues)
    if fields.get("context_mode") == "mask_token":
        fields.setdefault("mask_token_id", tokenizer.mask_token_id)
        if fields["mask_token_id"] is None:
            raise UsageError("--context_mode mask_token: the tokenizer has no mask token; use drop or attention_mask")
    # A mask token for each strategy, unless a number was asked for.
    strategies = len(data_args.mask_strategies or [""])
    if strategies > 1:
        fields.setdefault("pred_num_mask_tokens", strategies)
        if fields["pred_num_mask_tokens"] < strategies:
            raise UsageError(
                f"--pred_num_mask_tokens {fields['pred_num_mask_tokens']}: each of the {strategies} mask strategies "
                "needs one; leave it out"
            )
    chosen = [flag for flag in ("preset", "config_name", "model_name_or_path") if getattr(model_args, flag)]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other: they name the encoder")
    try:
        shape = json.loads(model_args.text_config or "{}")
    except ValueError as error:
        raise UsageError(f"--text_config {model_args.text_config}: not JSON: {error}") from error
    if not isinstance(shape, dict):
        raise UsageError(f"--text_config {model_args.text_config}: expected fields and values, '{{...}}'")
    try:
        if name and model_args.init == "pretrained":
            # A pretraining checkpoint goes on with its predictor and target encoder, any other encoder gets new ones.
            load = TextJepaForPreTraining.from_pretrained if continues else TextJepaForPreTraining.from_encoder
            model = load(name, **hub, **fields)
            model.config.validate()  # of a checkpoint, whose fields are replaced without a look
        elif name or model_args.config_name:
            source, init = name or model_args.config_name, model_args.init
            # Trained embeddings are as many as they are, often more than the tokenizer has words.
            text_fields = {} if init == "embeddings" else tokenizer_fields(tokenizer)
            model = TextJepaForPreTraining(config_from(source, text_fields, shape, fields, hub))
            if init in ("embeddings", "layers"):
                take_over(model, TextJepaModel.from_pretrained(name, **hub), init)
        else:
            length = {"max_position_embeddings": max(512, data_args.max_length)}
            text_config = tokenizer_fields(tokenizer) | length | shape
            by_objective = "static" if fields.get("document_loss_weight", 0) > 0 else "mini"
            preset = model_args.preset or by_objective
            model = TextJepaForPreTraining(TextJepaConfig.preset(preset, text_config, **fields))
        if model_args.attn_implementation:
            model.set_attn_implementation(model_args.attn_implementation)
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        raise UsageError(f"{name}: its weights hold code, which is not run; save them as safetensors") from error
    except _UNBUILDABLE as error:
        # RuntimeError: weights of other shapes, as of a pretraining checkpoint with another predictor.
        raise UsageError(f"the model cannot be built: {first_line(error)}") from error
    limit = model.config.max_text_length
    if limit is not None and data_args.max_length > limit:
        raise UsageError(f"--max_length {data_args.max_length}: the encoder has positions for {limit} tokens only")
    encodes_views = model.config.sentence_loss_weight > 0 or model.config.encodes_documents
    if data_args.view == "rest" and encodes_views and limit is not None and data_args.max_document_length > limit:
        raise UsageError(
            f"--max_document_length {data_args.max_document_length}: the rest of a document is encoded, and the "
            f"encoder has positions for {limit} tokens only; lower it, or use --view neighbour"
        )
    words, rows = len(vocabulary(tokenizer)), model.get_input_embeddings().num_embeddings
    if words > rows:
        raise UsageError(
            f"the tokenizer has {words} tokens, the encoder {rows}; name the encoder's own tokenizer "
            "with --tokenizer_name"
        )
    return model


def objective_continues(name: str | None, hub: dict) -> bool:
    """Whether the name is that of a complete Text-JEPA; False if there is nothing to be read, which is said later."""
    try:
        return name is not None and config_of(name, hub).model_type == TextJepaConfig.model_type
    except (OSError, ValueError):
        return False


def weigh_words(model: TextJepaForPreTraining, train, tokenizer, source: tuple[str, list[str]]) -> None:
    """Sets the weights of words by the training texts, by the first of a stream, where texts are pooled by them.

    Args:
        model: The model; one that pools in another way stays as it is.
        train: The tokenized training texts.
        tokenizer: Their tokenizer.
        source: What they are read from, see `source_of`.

    Raises:
        UsageError: A stream cannot be read.
    """
    if model.word_weights is None:
        return
    frequency = DocumentFrequency(len(vocabulary(tokenizer)))
    if isinstance(train, Dataset):
        texts = train["input_ids"]
    else:
        # A document of a stream comes once for each of its windows.
        first = (example for example in legible(train, *source) if example.get("window", 0) == 0)
        texts = (example["input_ids"] for example in itertools.islice(first, STREAM_TEXTS_TO_WEIGH))
    frequency.add(texts)
    weights = torch.zeros_like(model.word_weights)  # an encoder may have more rows than its tokenizer has words
    weights[: len(frequency.counts)] = torch.from_numpy(word_weights(frequency, tokenizer))
    model.set_word_weights(weights)


def config_of(name, hub):
    """A configuration from a folder or the Hub, which brings no code with it."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    if "/" in (config._attn_implementation or ""):
        raise UsageError(
            f"{name}: its configuration asks for code of the Hub ({config._attn_implementation}), which is not run; "
            "set attn_implementation to sdpa"
        )
    return config


def check_fields(shape, text_config):
    """Refuses fields that the encoder's configuration does not have; transformers would take them in silence."""
    known = {*(field.name for field in dataclasses.fields(text_config)), *text_config.attribute_map}
    for key in shape:
        if key not in known:
            raise UsageError(f"--text_config: unknown field '{key}'{nearest(key, known)}")


def config_from(name, text_fields, shape, fields, hub) -> TextJepaConfig:
    """A Text-JEPA configuration from a folder or the Hub, of ours or of any encoder, for a new encoder."""
    config = config_of(name, hub)
    text_config = config.text_config if config.model_type == "text_jepa" else config
    check_fields(shape, text_config)
    # New weights are in full precision, whatever the checkpoint's are in.
    shape_of_it = text_config.to_dict()
    if "num_hidden_layers" in shape:
        shape_of_it.pop("layer_types", None)  # a kind for each layer: of another number the default ones
    text_config = type(text_config).from_dict(shape_of_it | {"dtype": None} | text_fields | shape)
    if config.model_type == "text_jepa":
        saved = {key: value for key, value in config.to_dict().items() if key in vars(ObjectiveArguments())}
        fields = saved | fields
    return TextJepaConfig(text_config=text_config, **fields)


def take_over(model, trained, part):
    """Starts both encoders of a new model with a part of a trained encoder of the same architecture.

    Args:
        model: The new `TextJepaForPreTraining`.
        trained: A `TextJepaModel`.
        part: `"embeddings"`, the matrix of input embeddings alone; or `"layers"`, all weights but that one.

    Raises:
        UsageError: The input embeddings of the two differ in shape.
    """
    encoder, matrix = model.model.encoder, trained.encoder.get_input_embeddings().weight
    own = encoder.get_input_embeddings().weight
    if part == "embeddings" and own.shape != matrix.shape:
        there, here = ("{} x {}".format(*tensor.shape) for tensor in (matrix, own))
        raise UsageError(f"--text_config: the trained input embeddings are {there}, the new encoder's would be {here}")
    matrix_name = next(name for name, parameter in trained.encoder.named_parameters() if parameter is matrix)
    taken = {
        name: value
        for name, value in trained.encoder.state_dict().items()
        if (name == matrix_name) == (part == "embeddings")
    }
    # RoBERTa and its kin count positions from behind the padding token, which another tokenizer may number otherwise.
    shift = model.config.position_offset - trained.config.position_offset
    for name in taken:
        if name.endswith("position_embeddings.weight"):
            taken[name] = taken[name].roll(shift, 0)
    encoder.load_state_dict(taken, strict=False)
    if model.target_encoder is not None:
        model.target_encoder.load_state_dict(encoder.state_dict())


def tokenizer_fields(tokenizer) -> dict:
    """What an encoder's configuration takes from its tokenizer."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    return {"vocab_size": len(vocabulary(tokenizer))} | {name: getattr(tokenizer, name) for name in names}


def make_probe(data_args, args, tokenizer, cache_dir) -> OnlineProbeCallback | None:
    """The probe of the task named by --probe_task, if any; it must have the figure that chooses the checkpoint."""
    name, chosen = data_args.probe_task, args.metric_for_best_model
    if name is None:
        return None
    task = load_task("probe_task", name, data_args.probe_data_dir, cache_dir)
    probe = OnlineProbeCallback(task, tokenizer, data_args.max_length)
    if selects_best_checkpoint(args) and f"eval_{chosen.removeprefix('eval_')}" not in probe.names:
        raise UsageError(
            f"--metric_for_best_model {chosen}: the probe of {task.name} has no such figure"
            f"{nearest(chosen, probe.names)} (it has {', '.join(probe.names)})"
        )
    return probe
