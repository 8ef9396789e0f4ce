"""Writes the model card of a run: figures come from its log, everything else from model, arguments and data."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames
from yaml import YAMLError

import text_jepa
from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError, first_line
from text_jepa.data.batching import DocumentWindows
from text_jepa.encoders.embeddings import sentence_pooling, trained_encoder
from text_jepa.encoders.sentence_head import kept_head, read_json
from text_jepa.share.export import parameter_counts
from text_jepa.show.plots import Run, loss_terms, loss_title, plot_curves


_CARD_INFO = "card.json"

# Folders that are named for a user, or that contain such folders.
_PARTS_OF_USERS = {"home", "Users", os.path.basename(os.path.expanduser("~"))}
_HELD_OUT = "eval_"
_PROBE = "eval_probe_"
_TEMPLATE = Path(__file__).with_name("model_card_template.md")

# Titles of measures that are not terms of the loss, in the order of the table in the card.
_MEASURES = {
    "relative_loss": "relative loss",
    "copy_relative_loss": "relative loss of copying the nearest visible token",
    "retrieval_margin": "retrieval margin against shuffled targets",
    "retrieval_accuracy": "predictions nearest to their own target among 1,024",
    "token_rank": "effective rank of tokens",
    "pooled_rank": "effective rank of pooled texts",
    "spread": "spread of token states",
    "cosine_same_text": "mean cosine, tokens of one text",
    "cosine_other_text": "mean cosine, tokens of different texts",
}


# ---- the card -------------------------------------------------------------------------------------------------------


def write_model_card(
    output_dir: str | Path,
    model: TextJepaForPreTraining,
    records: Sequence[Mapping[str, Any]],
    card_info: Mapping[str, Any],
    exported: str | None,
    place: str | Path | None = None,
) -> None:
    """Writes `README.md` and `curves.png`, which need no editing.

    Args:
        output_dir: The exported folder. Its name becomes the title.
        model: The pretraining model.
        records: Records of the run's log.
        card_info: Card information, see `describe_run`.
        exported: Content of the folder: the `"target"` or `"context"` encoder, or the complete model (`None`).
        place: The folder as the snippets name it. Default: `output_dir`.
    """
    output_dir = Path(output_dir)
    place = output_dir if place is None else Path(place)
    title = place.resolve().name
    until_export = [record for record in records if record["step"] <= card_info["exported_step"]]
    last_values = final_figures(until_export)
    titles = _titles_of(last_values)
    figures = []
    for name, title_of_figure in titles.items():
        value, step = last_values[name]
        figures.append((title_of_figure, f"{value:.4g}", step))

    fields = dict(card_info)
    fields["head"] = _published_head(card_info)
    fields |= _describe_model(model, exported, last_values)
    fields |= _describe_head(card_info)
    fields |= _describe_effort(records)
    fields["title"] = title
    fields["name"] = str(place)
    fields["exported"] = exported
    fields["figures"] = figures
    fields["is_relative"] = "relative_loss" in titles
    fields["incomparable"] = describe_difference(model, card_info) if "eval_loss" in titles else ""
    fields["collapse_note"] = describe_collapse_of_run(card_info)
    fields["version"] = text_jepa.__version__
    metadata = _make_metadata(title, card_info, exported)
    card = ModelCard.from_template(metadata, template_path=str(_TEMPLATE), **fields)
    content = card.content + "\n"
    (output_dir / "README.md").write_text(content, encoding="utf-8")
    run = Run(title, records, model.config.hidden_size)
    plot_curves([run], output_dir / "curves.png")


def final_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Finds the last value of each measure in a log, and its step."""
    figures = {}
    for record in records:
        for name, value in record.items():
            figures[name] = (value, record["step"])
    return figures


def _titles_of(measures: Collection[str]) -> dict[str, str]:
    """Titles of the measures that a card shows, by measure, in the order of the table in the card."""
    titles = {"eval_loss": "held-out loss"}
    for term in loss_terms(measures):
        titles[_HELD_OUT + term] = loss_title(term)
    titles["eval_token_loss"] = "loss of hidden tokens (cross-entropy over the whole vocabulary)"
    titles |= _MEASURES
    for name in measures:
        if name.startswith(_PROBE):
            titles[name] = f"online probe: {name.removeprefix(_PROBE).replace('_', ' ')}"
    return {name: title for name, title in titles.items() if name in measures}


def _make_metadata(title, card_info, exported) -> ModelCardData:
    """Makes the YAML header of the card for the Hub.

    It has no evaluation results, because the measures of a run are losses and signs of collapse, not the quality of an
    encoder. A probe adds its scores.
    """
    library = "custom_code" if exported is None else "sentence-transformers"
    tags = ["text-jepa", "self-supervised", library]
    if card_info.get("collapse"):
        tags.append("collapsed")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction",
        language=card_info.get("language"),
        license=card_info.get("license"),
        base_model=card_info.get("base_model"),
        datasets=card_info.get("datasets"),
        tags=tags,
        model_name=title,
    )


def _describe_model(model, exported, logged) -> dict[str, Any]:
    """Template fields that describe the model."""
    config = model.config
    encoder = model.model if exported is None else trained_encoder(model, exported)
    _, parameters = parameter_counts(encoder)
    pooling = "idf" if model.word_weights is not None else sentence_pooling(config)
    return {
        "exported_encoder": exported if config.has_moving_average else "context",
        "makes_targets": config.has_moving_average or config.target_encoder_type == "online",
        "parameters": f"{parameters:,}",
        "architecture": type(encoder).__name__,
        "layers": config.text_config.num_hidden_layers,
        "width": config.hidden_size,
        "idea": describe_idea(config),
        "objective": describe_objective(config, loss_terms(logged)),
        "pooling": pooling,
        "pooling_description": "mean of tokens weighted by IDF" if pooling == "idf" else f"{pooling} pooling",
    }


def _published_head(card_info) -> dict[str, str] | None:
    """Template field that describes the head of the encoder that the run started from, if it had one."""
    head = card_info.get("head")
    return head and {"sentence": without_places(head["sentence"])}


def _describe_head(card_info) -> dict[str, Any]:
    """Template fields that describe the original pooling head, if it is kept.

    For a prompt, and for modules that make other vectors of the pooled ones, the template has no code.
    """
    head = kept_head(card_info)
    if head is None:
        return {}
    kinds = [kind for _, kind in head.modules]
    is_cut = (head.prompts or {}).get("truncate_dim") is not None
    pooling = head.pooling
    if "WordWeights" in kinds:
        pooling = "idf"
    if "Dense" in kinds or head.prompt or is_cut:
        pooling = "modules"
    return {
        "pooling": pooling,
        "pooling_description": ", ".join(head.parts),
    }


def _describe_effort(records) -> dict[str, Any]:
    """Template fields for tokens and time of the whole run, and the step until which they were counted."""
    last_values = final_figures(records)
    if "tokens_seen" not in last_values:
        return {"tokens": None, "duration": None, "counted_until": None}
    tokens, step = last_values["tokens_seen"]
    seconds, _ = last_values["train_seconds"]
    return {
        "tokens": f"{tokens:,}",
        "duration": describe_duration(seconds),
        "counted_until": f"{step:,}",
    }


def describe_duration(seconds: float) -> str:
    """Describes a duration in seconds below two minutes, then in minutes."""
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:,.1f} minutes"


def describe_collapse_of_run(card_info: Mapping[str, Any]) -> str | None:
    """Describes a collapse for the card and the last line of a run; `None` without a collapse."""
    collapse = card_info.get("collapse")
    if not collapse:
        return None
    signs = "; ".join(collapse["signs"])
    sentences = [f"The representations collapsed at step {collapse['step']:,} of this run: {signs}."]
    if card_info["exported_step"] < collapse["step"]:
        sentences.append(f"These weights are from step {card_info['exported_step']:,}, before the collapse.")
    elif not collapse["lasts"]:
        sentences.append("The last measurement no longer showed signs of collapse.")
    sentences.append("Probe this encoder before you rely on it.")
    return " ".join(sentences)


# ---- card information -----------------------------------------------------------------------------------------------


def write_card_info(folder: str | Path, card_info: Mapping[str, Any]) -> None:
    """Writes card information to a folder with weights, so that later exports of these have a card, too."""
    content = json.dumps(card_info, indent=2) + "\n"
    Path(folder, _CARD_INFO).write_text(content, encoding="utf-8")


def read_card_info(folder: str | Path) -> dict[str, Any] | None:
    """Reads card information from `write_card_info`; `None` if the folder has none.

    Raises:
        UsageError: It is damaged.
    """
    if not Path(folder, _CARD_INFO).is_file():
        return None
    return read_json(str(folder), _CARD_INFO)


def describe_run(trainer) -> dict[str, Any]:
    """Collects card information that is neither in the log nor in the model of a run, as JSON values.

    Args:
        trainer: The [`TextJepaTrainer`]. Its `card_info` overrides the defaults: `data`, `start`, `command`,
            `max_length`, `license`, `language`, `base_model` and `datasets` are only known to the script.
    """
    args = trainer.args
    config = trainer.model.config
    steps = trainer.state.global_step
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "transformers", "tokenizers"):
        versions.append(f"{package} {importlib.metadata.version(package)}")
    return {
        "data": "not specified",
        "start": "the model as given to the trainer",
        "command": None,
        "license": "unknown",
        "comparison": None,
        "max_length": config.max_text_length,
        "sizes": describe_sizes(trainer.train_dataset, trainer.eval_dataset),
        "masks": trainer.data_collator.describe_masks(),
        "steps": f"{steps:,}",
        "exported_step": trainer.weights_step,
        "collapse": _collapse_of(trainer.monitor),
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "held_out_batches": _held_out_batches(trainer),
        "hardware": describe_hardware(args),
        "versions": ", ".join(versions),
        "settings": describe_settings(trainer),
        **trainer.card_info,
    }


def _collapse_of(monitor) -> dict[str, Any] | None:
    """Step and signs of the warning of a collapse monitor, and whether the last measurement still had signs."""
    if monitor is None or not monitor.collapsed:
        return None
    return {**monitor.warning, "lasts": bool(monitor.signs)}


def _held_out_batches(trainer) -> dict[str, int] | None:
    """Batch size of training and number of held-out texts; `None` if held-out batches are not cut like that."""
    args = trainer.args
    held_out = trainer.eval_dataset
    if isinstance(held_out, dict) or not hasattr(held_out, "__len__"):
        return None
    return {"size": args.train_batch_size * args.world_size, "texts": len(held_out)}


def describe_settings(trainer) -> dict[str, str]:
    """Describes the hyperparameters of a [`TextJepaTrainer`], by the names of their rows in the card's table."""
    args = trainer.args
    config = trainer.model.config
    steps = trainer.state.global_step
    scheduler = SchedulerType(args.lr_scheduler_type).value
    warmup = args.warmup_steps
    warmup = f"{100 * warmup:g} % of the steps" if 0 < warmup < 1 else f"{warmup:g} steps"
    rows = {"learning rate": f"{args.learning_rate:g}, {scheduler}, warm-up {warmup}"}
    if args.predictor_learning_rate is not None:
        rows["learning rate around the encoder"] = f"{args.predictor_learning_rate:g}"
    rows["weight decay"] = f"{args.weight_decay:g}"
    if args.weight_decay_end is not None:
        rows["weight decay"] += f" to {args.weight_decay_end:g}"
    rows["optimizer"] = describe_optimizer(trainer)
    if config.has_moving_average:
        start = "1 - 100/steps" if args.ema_decay_start is None else args.ema_decay_start
        end = "1 - 10/steps" if args.ema_decay_end is None else args.ema_decay_end
        rows["decay of the target encoder"] = f"{args.ema_schedule}, {start} to {end}"
    if config.predicts_tokens:
        shape = f"{config.pred_num_hidden_layers} × {config.pred_hidden_size}"
        rows["predictor"] = f"{config.predictor_type}, {shape}"
    rows["precision"] = describe_precision(trainer)
    rows["seed"] = str(args.seed)
    if trainer.weights_step != steps:
        rows["exported checkpoint"] = f"step {trainer.weights_step:,}, the best by {args.metric_for_best_model}"
    return rows


def describe_optimizer(trainer) -> str:
    """Describes the actual optimizer of a trainer with its settings; before the first step, the requested one."""
    args = trainer.args
    optimizer = trainer.optimizer
    if optimizer is None:
        return f"{OptimizerNames(args.optim).value}, gradients clipped at {args.max_grad_norm:g}"
    # accelerate wraps the optimizer.
    optimizer = getattr(optimizer, "optimizer", optimizer)
    kind = type(optimizer).__name__
    parts = [kind]
    settings = optimizer.defaults
    if settings.get("fused"):
        parts[0] += " (fused)"
    if "betas" in settings:
        parts.append("betas " + " and ".join(f"{beta:g}" for beta in settings["betas"]))
    for name in ("momentum", "alpha", "eps"):
        if isinstance(settings.get(name), float):
            parts.append(f"{'epsilon' if name == 'eps' else name} {settings[name]:g}")
    if args.max_grad_norm:
        parts.append(f"gradients clipped at {args.max_grad_norm:g}")
    return ", ".join(parts)


def describe_precision(trainer) -> str:
    """Describes the actual precision of a trainer's computation and weights, which may differ from the flags."""
    mixed = trainer.accelerator.mixed_precision
    weights = str(next(trainer.model.parameters()).dtype).removeprefix("torch.")
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    weights = names.get(weights, weights)
    if mixed in (None, "no") or mixed == weights:
        return weights
    return f"{mixed}, weights in {weights}"


def describe_sizes(train, held_out) -> str:
    """Describes the sizes of the training and held-out data; for windows of documents, their parts and windows.

    A part is a document, or a piece of a document that is too long for one sequence.

    Args:
        train: The training dataset.
        held_out: The held-out dataset, several datasets by name, or `None`.
    """
    if isinstance(train, DocumentWindows):
        training = f"{train.num_documents:,} parts of documents in {len(train):,} windows"
    else:
        training = f"{describe_count(train)} texts"
    if isinstance(held_out, DocumentWindows):
        evaluation = f"{held_out.num_documents:,} parts in {len(held_out):,} windows"
    elif isinstance(held_out, dict):
        evaluation = " and ".join(_describe_held_out(texts) for texts in held_out.values())
    else:
        evaluation = _describe_held_out(held_out)
    return f"{training} to train on, {evaluation} for held-out losses"


def _describe_held_out(texts) -> str:
    """The number of held-out texts; without a number, with the word "texts"."""
    if hasattr(texts, "__len__"):
        return describe_count(texts)
    return f"{describe_count(texts)} texts"


def describe_count(texts) -> str:
    """Describes the number of texts of a dataset, to be followed by the word "texts"."""
    if texts is None:
        return "no"
    if not hasattr(texts, "__len__"):
        return "a stream of"
    return f"{len(texts):,}"


def describe_hardware(args: TrainingArguments) -> str:
    """Describes the accelerators of a run, or the number of CPU cores that each process uses."""
    if args.device.type != "cpu":
        name = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type
        return f"{args.world_size} × {name}"
    cores = os.cpu_count() or 1
    threads = min(torch.get_num_threads(), cores)
    used = f"{cores} CPU cores" if threads == cores else f"{threads} of {cores} CPU cores"
    if args.world_size > 1:
        used = f"{args.world_size} processes with {used} each"
    return f"{used} ({platform.machine()})"


# ---- the objective --------------------------------------------------------------------------------------------------


def describe_idea(config: TextJepaConfig) -> str:
    """Describes the training objective of a configuration in a few words."""
    if config.latent_loss_weight:
        return "predicting latent representations of hidden text (JEPA)"
    if config.document_loss_weight:
        return "predicting, from a window of a document, a latent representation of its rest (JEPA)"
    if config.token_loss_weight:
        return "predicting hidden words"
    return "comparing representations of texts"


def describe_objective(config: TextJepaConfig, logged: Sequence[str] = ()) -> str:
    """Describes the objective of a configuration in a sentence: every term of the loss with its weight.

    Args:
        config: The configuration.
        logged: Names of the terms in a log, such as `latent_loss`. Terms that are not in the configuration are listed
            without a weight.
    """
    descriptions = _describe_terms(config)
    described = []
    for term in config.loss_terms:
        weight = getattr(config, f"{term}_loss_weight")
        if weight:
            description = descriptions.get(term, f"{term.replace('_', ' ')} loss")
            described.append(f"{weight:g} times the {description}")
    for name in logged:
        if name.removesuffix("_loss") not in config.loss_terms:
            described.append(f"the {loss_title(name)}, with a weight that its own code sets")
    return "; plus ".join(described) + "."


def describe_difference(model: TextJepaForPreTraining, card_info: Mapping[str, Any]) -> str:
    """Explains why held-out and training losses are not comparable; empty if they are."""
    sentences = [_describe_candidates(model.config), _describe_batches(model, card_info)]
    return " ".join(sentence for sentence in sentences if sentence)


def _describe_candidates(config: TextJepaConfig) -> str:
    """How the loss of hidden tokens differs if training samples candidates from the vocabulary."""
    candidates = config.token_loss_candidates
    words = config.text_config.vocab_size
    if config.token_loss_weight > 0 and candidates is not None and candidates < words:
        return (
            f"Here, the loss of hidden tokens is computed over all {words:,} tokens of the vocabulary; in training it "
            f"is computed over {candidates:,} candidates. It is therefore higher here, and so is the total loss."
        )
    return ""


def _describe_batches(model: TextJepaForPreTraining, card_info: Mapping[str, Any]) -> str:
    """How held-out batches differ in size from training batches, for losses that compare texts."""
    batches = card_info.get("held_out_batches")
    if not model.compares_texts or not batches:
        return ""
    size, count = batches["size"], batches["texts"]
    if count < size:
        return (
            f"Terms that compare the texts of a batch see {count:,} texts here and {size:,} in training, so neither "
            "these terms nor the total loss can be compared with training."
        )
    rest = count % size
    if rest:
        return (
            f"Terms that compare the texts of a batch see {size:,} of them, as in training, except for the last "
            f"{rest:,} of {count:,} held-out texts."
        )
    return ""


def _describe_terms(config) -> dict[str, str]:
    """Descriptions of the terms of the loss, by term."""
    sources = {"ema": "a moving average of the encoder", "frozen": "a frozen copy of the initial encoder"}
    source = sources.get(config.target_encoder_type, "the encoder itself, with gradient")
    seen = "the hidden tokens alone" if config.target_input == "spans" else "the whole text"
    layers = f"the last {config.target_num_layers} layers ({config.target_normalization} normalisation) of {source}"
    latent = (
        f"{config.loss_type} loss between the output of a {config.predictor_type} predictor and the mean of {layers}, "
        f"which sees {seen}"
    )
    average = "mean, weighted by IDF," if config.pooling == "idf" else "mean"
    target_space = f"the {average} of fixed random vectors of {config.document_target_size} features"
    if config.document_target == "encoder":
        target_space = f"the pooled vector from {source}"
    document = (
        f"{config.document_loss_type} loss between the prediction of a perceptron with {config.document_hidden_size} "
        f"hidden units from the {config.pooling}-pooled window and {target_space} of the rest of its document"
    )
    is_whitened = config.target_encoder_type != "online" and config.sentence_whitening
    sentence = (
        f"{config.sentence_loss_type} loss between the {config.pooling}-pooled context and the "
        f"{'whitened ' if is_whitened else ''}pooled target of {source}"
    )
    kept = sources.get(config.target_encoder_type, sources["frozen"])
    similarity = (
        f"divergence between how texts resemble each other by their first {config.similarity_length} tokens to the "
        f"encoder and to {kept}"
    )
    level = f"at {config.regularizer_level} level"
    return {
        "latent": latent,
        "token": "cross-entropy of the hidden tokens",
        "document": document,
        "sentence": sentence,
        "similarity": similarity,
        "variance": f"variance hinge {level}",
        "covariance": f"covariance term {level}",
        "sigreg": f"SIGReg {level}",
    }


# ---- no local paths in published texts ------------------------------------------------------------------------------


def public_name(name: str) -> str:
    """Converts an encoder or a file for a published text: a path to its last part, a name on the Hub unchanged.

    A path below the working directory reveals nothing about the machine and is unchanged, unless it names a user.
    """
    path = os.path.normpath(os.path.expanduser(name))
    parts = Path(path).parts
    is_elsewhere = os.path.isabs(path) or parts[:1] == ("..",)
    is_path = len(parts) > 2 or os.path.exists(path)
    if is_elsewhere or (is_path and not _PARTS_OF_USERS.isdisjoint(parts[:-1])):
        return os.path.basename(os.path.abspath(path))
    return name


def public_command(words: Sequence[str]) -> str:
    """Converts a command line for a published text, see `public_name`."""
    shown = []
    for word in words:
        flag, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            shown.append(f"{flag}={public_name(value)}")
        else:
            shown.append(public_name(word))
    return shlex.join(shown)


def without_places(text: str) -> str:
    """Replaces absolute paths in a text by their last parts; URLs are unchanged."""
    return re.sub(r"(?<![\w:/.~])~?/(?:[\w.-]+/)*([\w.-]+)/?", r"\1", text)


# ---- changes of a card ----------------------------------------------------------------------------------------------


def renamed_card(card: str, name: str, title: str) -> str:
    """Renames a card: its title, its metadata and the name in its snippets.

    Args:
        card: Content of a `README.md` of this package. In any other card, only the name in the metadata changes.
        name: `owner/name` on the Hub, or a folder.
        title: The new title.
    """
    card = ModelCard(card, ignore_metadata_errors=True)
    if card.data.model_name is not None:
        old_heading = f"\n# {card.data.model_name}\n"
        card.text = card.text.replace(old_heading, f"\n# {title}\n", 1)
        card.data.model_name = title
    snippet_line = f'model_id = "{name}"'
    card.text = re.sub(r'^model_id = ".*"$', lambda _: snippet_line, card.text, flags=re.MULTILINE)
    return card.content


def rename_card(folder: str | Path, place: str | Path) -> None:
    """Renames the card of a folder, see `renamed_card`, if it is one of this package.

    Args:
        folder: A copy of the folder of an encoder.
        place: The folder that the copy ends in, as snippets name it. Its name becomes the title.

    Raises:
        UsageError: The card is damaged.
    """
    path = Path(folder, "README.md")
    if not path.is_file():
        return
    with readable_card(path.name):
        card = path.read_text(encoding="utf-8")
        if re.search(r'^model_id = "', card, re.MULTILINE):
            title = Path(place).resolve().name
            path.write_text(renamed_card(card, str(place), title), encoding="utf-8")


def note_change(folder: str | Path, change: str) -> None:
    """Adds a note about a change of the encoder at the top of a card, and removes its results from the metadata.

    Args:
        folder: A copy of an encoder's folder with other weights. Nothing happens if it has no card.
        change: A sentence without full stop.

    Raises:
        UsageError: The card is damaged.
    """
    path = Path(folder, "README.md")
    if not path.is_file():
        return
    with readable_card(path.name):
        card = ModelCard.load(path, ignore_metadata_errors=True)
    title = re.search(r"^# .*\n", card.text, re.MULTILINE)
    start = title.end() if title else 0
    change = without_places(change)
    note = f"> {change}. The rest of this card, including its figures, describes the encoder before that change."
    card.text = f"{card.text[:start]}\n{note}\n{card.text[start:]}"
    card.data.eval_results = None
    path.write_text(card.content, encoding="utf-8")


@contextlib.contextmanager
def readable_card(name: str) -> Iterator[None]:
    """Turns what is raised about a damaged card into one line.

    Args:
        name: The card in the message.

    Raises:
        UsageError: Something was raised inside the block.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (YAMLError, ValueError, TypeError) as error:
        raise UsageError(f"{name}: no card can be read there ({first_line(error)}); mend its metadata") from error
