"""The model card of a run: every figure comes from its log, everything else from its model, arguments and data."""

import importlib.metadata
import json
import os
import platform
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

import text_jepa
from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.data.batching import DocumentWindows
from text_jepa.encoders.embeddings import sentence_pooling, trained_encoder
from text_jepa.encoders.sentence_head import kept_head
from text_jepa.share.export import parameter_counts
from text_jepa.show.plots import Run, loss_terms, loss_title, plot_curves


_CARD_INFO = "card.json"

# Folders that name a user, or that those lie in.
_PARTS_OF_USERS = {"home", "Users", os.path.basename(os.path.expanduser("~"))}
_HELD_OUT = "eval_"
_PROBE = "eval_probe_"
_TEMPLATE = Path(__file__).with_name("model_card_template.md")

# Titles of the measures that are not terms of the loss, in the order of the card's table.
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
) -> None:
    """Writes `README.md` and `curves.png`, complete without editing.

    Args:
        output_dir: The exported folder; its name becomes the title.
        model: The pretraining model.
        records: The run's log.
        card_info: Card information, from `describe_run`.
        exported: What the folder holds: the `"target"` or `"context"` encoder, or the complete model (`None`).
    """
    output_dir = Path(output_dir)
    title = output_dir.resolve().name
    until_export = [record for record in records if record["step"] <= card_info["exported_step"]]
    last_values = final_figures(until_export)
    titles = _titles_of(last_values)
    figures = []
    for name, title_of_figure in titles.items():
        value, step = last_values[name]
        figures.append((title_of_figure, f"{value:.4g}", step))
    card = ModelCard.from_template(
        _make_metadata(title, card_info, exported),
        template_path=str(_TEMPLATE),
        title=title,
        name=str(output_dir),
        exported=exported,
        figures=figures,
        is_relative="relative_loss" in titles,
        incomparable=describe_difference(model, card_info) if "eval_loss" in titles else "",
        collapse_note=describe_collapse_of_run(card_info),
        version=text_jepa.__version__,
        **(_describe_model(model, exported, last_values) | _describe_head(card_info)),
        **_describe_effort(records),
        **(dict(card_info) | {"head": _published_head(card_info)}),
    )
    (output_dir / "README.md").write_text(card.content + "\n", encoding="utf-8")
    run = Run(title, records, model.config.hidden_size)
    plot_curves([run], output_dir / "curves.png")


def final_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """The last value of each measure in a log, and the step of its record."""
    figures = {}
    for record in records:
        for name, value in record.items():
            figures[name] = (value, record["step"])
    return figures


def _titles_of(measures: Collection[str]) -> dict[str, str]:
    """Measure to title, in the order of the card's table, for those measures that a card shows."""
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
    """The card's YAML header, as the Hub reads it.

    It has no results: what a run measures on held-out texts is its loss and its health, not what an encoder can do. A
    probe adds its scores.
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
    """Fields of the template that describe the model."""
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
    """What a card says of the head of the encoder that the run started from."""
    head = card_info.get("head")
    return head and {"sentence": without_places(head["sentence"])}


def _describe_head(card_info) -> dict[str, Any]:
    """Fields of the template that a head which the encoder had before takes the place of."""
    head = kept_head(card_info)
    if head is None:
        return {}
    return {
        "pooling": head.pooling,
        "pooling_description": ", ".join(head.parts),
    }


def _describe_effort(records) -> dict[str, Any]:
    """Fields of the template that say how long the whole run took, and until which step that was counted."""
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
    """Seconds as they are below two minutes, then minutes."""
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:,.1f} minutes"


def describe_collapse_of_run(card_info: Mapping[str, Any]) -> str | None:
    """What the collapse monitor saw in a run, for its card and its last line; `None` if it saw no collapse."""
    collapse = card_info.get("collapse")
    if not collapse:
        return None
    signs = "; ".join(collapse["signs"])
    sentences = [f"The representations collapsed at step {collapse['step']:,} of this run: {signs}."]
    if card_info["exported_step"] < collapse["step"]:
        sentences.append(f"These weights are those of step {card_info['exported_step']:,}, before it.")
    elif not collapse["lasts"]:
        sentences.append("At the last look there was no sign of it any more.")
    sentences.append("Do not rely on this encoder before a probe has shown what it is worth.")
    return " ".join(sentences)


# ---- card information -----------------------------------------------------------------------------------------------


def write_card_info(folder: str | Path, card_info: Mapping[str, Any]) -> None:
    """Writes card information beside weights, so that later exports of them have a card too."""
    content = json.dumps(card_info, indent=2) + "\n"
    Path(folder, _CARD_INFO).write_text(content, encoding="utf-8")


def read_card_info(folder: str | Path) -> dict[str, Any] | None:
    """Reads what `write_card_info` wrote; `None` if the folder has no card information."""
    path = Path(folder, _CARD_INFO)
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def describe_run(trainer) -> dict[str, Any]:
    """Card information of a run: what is neither in its log nor in its model. JSON can hold it.

    Args:
        trainer: The [`TextJepaTrainer`]. Its `card_info` overrides the defaults here: only the script knows `data`,
            `start`, `command`, `max_length`, `license`, `language`, `base_model` and `datasets`.
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
    """Step and signs of the warning of a collapse monitor, and whether the last look still saw signs."""
    if monitor is None or not monitor.collapsed:
        return None
    return {**monitor.warning, "lasts": bool(monitor.signs)}


def _held_out_batches(trainer) -> dict[str, int] | None:
    """The texts of a batch of training, and how many held-out texts are cut into such batches."""
    args = trainer.args
    held_out = trainer.eval_dataset
    if args.dataloader_drop_last or isinstance(held_out, dict) or not hasattr(held_out, "__len__"):
        return None
    return {"size": args.train_batch_size * args.world_size, "texts": len(held_out)}


def describe_settings(trainer) -> dict[str, str]:
    """Hyperparameters of a run of a [`TextJepaTrainer`], by the name of their row in the card's table."""
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
    """The optimizer that a trainer really has, with its settings; before the first step the one that is asked for."""
    args = trainer.args
    optimizer = trainer.optimizer
    if optimizer is None:
        return f"{OptimizerNames(args.optim).value}, gradients clipped at {args.max_grad_norm:g}"
    # accelerate wraps it.
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
    """The precision of a trainer's passes and weights, as accelerate and the model have it, not the flags."""
    mixed = trainer.accelerator.mixed_precision
    weights = str(next(trainer.model.parameters()).dtype).removeprefix("torch.")
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    weights = names.get(weights, weights)
    if mixed in (None, "no") or mixed == weights:
        return weights
    return f"{mixed}, weights in {weights}"


def describe_sizes(train, held_out) -> str:
    """Sizes of the training and held-out data; for documents cut into windows, their parts and windows.

    A part is a document, or as much of a long one as fits in the longest sequence.

    Args:
        train: The training dataset.
        held_out: The held-out dataset, several of them by name, or `None`.
    """
    if isinstance(train, DocumentWindows):
        training = f"{train.num_documents:,} parts of documents in {len(train):,} windows"
    else:
        training = f"{describe_count(train)} texts"
    if isinstance(held_out, DocumentWindows):
        evaluation = f"{held_out.num_documents:,} parts in {len(held_out):,} windows"
    elif isinstance(held_out, dict):
        evaluation = " and ".join(describe_count(texts) for texts in held_out.values())
    else:
        evaluation = describe_count(held_out)
    return f"{training} to train on, {evaluation} for held-out losses"


def describe_count(texts) -> str:
    """The number of texts of a dataset as it precedes the word "texts"."""
    if texts is None:
        return "no"
    if not hasattr(texts, "__len__"):
        return "a stream of"
    return f"{len(texts):,}"


def describe_hardware(args: TrainingArguments) -> str:
    """The accelerators of a run, or how many of the cores of a machine each of its processes computes on."""
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
    """What a configuration trains by, in a few words."""
    if config.latent_loss_weight:
        return "predicting latent representations of hidden text (JEPA)"
    if config.document_loss_weight:
        return "predicting, from a window of a document, a latent representation of its rest (JEPA)"
    if config.token_loss_weight:
        return "predicting hidden words"
    return "comparing representations of texts"


def describe_objective(config: TextJepaConfig, logged: Sequence[str] = ()) -> str:
    """The objective of a configuration as a sentence: every term of the loss with its weight.

    Args:
        config: The configuration.
        logged: Names of the terms in a log, such as `latent_loss`. Those that the configuration does not know are
            named without a weight.
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
    """Why held-out losses are not to be compared with those of training; empty if they are comparable."""
    sentences = [_describe_candidates(model.config), _describe_batches(model, card_info)]
    return " ".join(sentence for sentence in sentences if sentence)


def _describe_candidates(config: TextJepaConfig) -> str:
    candidates = config.token_loss_candidates
    words = config.text_config.vocab_size
    if config.token_loss_weight > 0 and candidates is not None and candidates < words:
        return (
            f"The loss of hidden tokens is over all {words:,} tokens of the vocabulary here, and over {candidates:,} "
            "in training: it is higher here, and the whole loss with it."
        )
    return ""


def _describe_batches(model: TextJepaForPreTraining, card_info: Mapping[str, Any]) -> str:
    """What a batch of held-out texts lacks to one of training, where the texts of a batch are compared."""
    batches = card_info.get("held_out_batches")
    if not model.compares_texts or not batches:
        return ""
    size, count = batches["size"], batches["texts"]
    if count < size:
        return (
            f"Terms that compare the texts of a batch have {count:,} of them here and {size:,} in training, so their "
            "losses, and the whole loss with them, are not to be compared with those of training."
        )
    rest = count % size
    if rest:
        return (
            f"Terms that compare the texts of a batch have {size:,} of them, as in training, but for the last "
            f"{rest:,} of {count:,} held-out texts."
        )
    return ""


def _describe_terms(config) -> dict[str, str]:
    """A description of each term that we know more of than its name."""
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


# ---- what is published names no place on a machine ------------------------------------------------------------------


def public_name(name: str) -> str:
    """An encoder or a file as a published text names it: a path by its last part, a name on the Hub as it is.

    A path below the working directory says nothing of the machine and stands as it is, unless it names a user.
    """
    path = os.path.normpath(os.path.expanduser(name))
    parts = Path(path).parts
    is_elsewhere = os.path.isabs(path) or parts[:1] == ("..",)
    is_path = len(parts) > 2 or os.path.exists(path)
    if is_elsewhere or (is_path and not _PARTS_OF_USERS.isdisjoint(parts[:-1])):
        return os.path.basename(os.path.abspath(path))
    return name


def public_command(words: Sequence[str]) -> str:
    """A command line as a published text shows it, see `public_name`."""
    shown = []
    for word in words:
        flag, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            shown.append(f"{flag}={public_name(value)}")
        else:
            shown.append(public_name(word))
    return shlex.join(shown)


def without_places(text: str) -> str:
    """A published text in which absolute paths are their last parts; addresses of the web stay."""
    return re.sub(r"(?<![\w:/.~])~?/(?:[\w.-]+/)*([\w.-]+)/?", r"\1", text)


# ---- changes of a card ----------------------------------------------------------------------------------------------


def renamed_card(card: str, name: str) -> str:
    """Renames a card for a repository on the Hub: its title, its metadata and the name in its snippets.

    Args:
        card: Content of a `README.md` of ours. In any other card only the metadata's name changes, if it has one.
        name: `owner/name` on the Hub.
    """
    card = ModelCard(card, ignore_metadata_errors=True)
    title = name.rpartition("/")[2]
    if card.data.model_name is not None:
        old_heading = f"\n# {card.data.model_name}\n"
        card.text = card.text.replace(old_heading, f"\n# {title}\n", 1)
        card.data.model_name = title
    snippet_line = f'model_id = "{name}"'
    card.text = re.sub(r'^model_id = ".*"$', lambda _: snippet_line, card.text, flags=re.MULTILINE)
    return card.content


def note_change(folder: str | Path, change: str) -> None:
    """Notes at the top of a card how the encoder was changed, and removes its figures from the metadata.

    Args:
        folder: A copy of an encoder's folder with other weights. Without a card nothing happens.
        change: A sentence without its full stop.
    """
    path = Path(folder, "README.md")
    if not path.is_file():
        return
    card = ModelCard.load(path, ignore_metadata_errors=True)
    title = re.search(r"^# .*\n", card.text, re.MULTILINE)
    start = title.end() if title else 0
    change = without_places(change)
    note = f"> {change}. The rest of this card describes the encoder before that change, its figures included."
    card.text = f"{card.text[:start]}\n{note}\n{card.text[start:]}"
    card.data.eval_results = None
    path.write_text(card.content, encoding="utf-8")
