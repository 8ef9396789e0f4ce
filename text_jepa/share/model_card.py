"""What a reader is shown of a run: the model card, each figure from the run itself."""

import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

import text_jepa
from text_jepa.data.batching import DocumentWindows
from text_jepa.embeddings import sentence_pooling, trained_encoder
from text_jepa.share.export import parameter_counts
from text_jepa.show.plots import Run, plot_curves


_FIGURES = {
    "eval_loss": "held-out loss",
    "eval_latent_loss": "latent loss",
    "eval_token_loss": "loss of hidden tokens (cross-entropy: over the whole vocabulary)",
    "eval_document_loss": "document loss",
    "eval_sentence_loss": "sentence loss",
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
_FACTS, _PROBE = "card.json", "eval_probe_"


def final_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of every measure in a run's log."""
    return {name: value for record in records for name, value in record.items()}


def write_model_card(
    output_dir: str | Path,
    model,
    records: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    exported: str | None,
) -> None:
    """Writes `README.md` and `curves.png`: complete without editing, every figure from the log or from the facts.

    Args:
        output_dir: The exported folder, whose name becomes the title.
        model: The [`TextJepaForPreTraining`].
        records: The run's log.
        facts: From `run_in_words`.
        exported: What the folder holds: the `"target"` or `"context"` encoder, or the complete model (`None`).
    """
    output_dir, config = Path(output_dir), model.config
    encoder = model.model if exported is None else trained_encoder(model, exported)
    title = output_dir.resolve().name
    whole, last = final_figures(records), final_figures([r for r in records if r["step"] <= facts["exported_step"]])
    titles = _FIGURES | {name: f"online probe: {spelled_out(name)}" for name in last if name.startswith(_PROBE)}
    figures = {name: f"{last[name]:.4g}" for name in titles if name in last}
    pooling = "idf" if model.word_weights is not None else sentence_pooling(config)
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="feature-extraction",
            license=facts.get("license"),
            base_model=facts.get("base_model"),
            datasets=facts.get("datasets"),
            tags=["text-jepa", "self-supervised", "custom_code" if exported is None else "sentence-transformers"],
            model_name=title,
            eval_results=[
                EvalResult(
                    task_type="feature-extraction",
                    dataset_type=(facts.get("datasets") or ["text"])[0],
                    dataset_name=f"held-out texts of {facts['data']}",
                    metric_type=name,
                    metric_name=titles[name],
                    metric_value=float(value),
                )
                for name, value in figures.items()
                if math.isfinite(float(value))
            ]
            or None,
        ),
        template_path=str(Path(__file__).with_name("model_card_template.md")),
        title=title,
        name=str(output_dir),
        exported=exported,
        exported_encoder=exported if model.target_encoder is not None else "context",
        makes_targets=config.has_target_encoder or config.target_encoder_type == "online",
        parameters=f"{parameter_counts(encoder)[1]:,}",
        architecture=type(encoder).__name__,
        layers=config.text_config.num_hidden_layers,
        width=config.hidden_size,
        idea=idea_in_words(config),
        objective=objective_in_words(config),
        pooling=pooling,
        pooling_in_words="mean weighted by word, IDF" if pooling == "idf" else f"{pooling} pooling",
        figures=[(titles[name], value) for name, value in figures.items()],
        is_relative="relative_loss" in figures,
        tokens=f"{whole['tokens_seen']:,}" if "tokens_seen" in whole else None,
        minutes=f"{whole['train_seconds'] / 60:.1f}" if "train_seconds" in whole else None,
        version=text_jepa.__version__,
        **facts,
    )
    (output_dir / "README.md").write_text(card.content + "\n", encoding="utf-8")
    plot_curves([Run(title, records, config.hidden_size)], output_dir / "curves.png")


def write_facts(folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Keeps what a card says of a run beside weights, for later exports of these."""
    Path(folder, _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_facts(folder: str | Path) -> dict[str, Any] | None:
    """What `write_facts` has kept; `None` if there is nothing."""
    path = Path(folder, _FACTS)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def renamed_card(card: str, name: str) -> str:
    """The same card for a repository of the Hub: title, metadata and the name in the snippets.

    Args:
        card: Content of a `README.md` of ours; of another one only the metadata's name changes, if it has one.
        name: `owner/name` on the Hub.
    """
    card = ModelCard(card, ignore_metadata_errors=True)
    title = name.rpartition("/")[2]
    if card.data.model_name is not None:
        card.text = card.text.replace(f"\n# {card.data.model_name}\n", f"\n# {title}\n", 1)
        card.data.model_name = title
    card.text = re.sub(r'^model_id = ".*"$', lambda _: f'model_id = "{name}"', card.text, flags=re.MULTILINE)
    return card.content


def tell_change(folder: str | Path, change: str) -> None:
    """Says at the top of a card what was made of the encoder that it describes; its figures leave the metadata.

    Args:
        folder: A copy of an encoder's folder whose vectors are others. One without a card stays without.
        change: What was done to it, a sentence without its full stop.
    """
    path = Path(folder, "README.md")
    if not path.is_file():
        return
    card = ModelCard.load(path, ignore_metadata_errors=True)
    title = re.search(r"^# .*\n", card.text, re.MULTILINE)
    start = title.end() if title else 0
    note = f"> {change}. The rest of this card is that of the encoder before: its figures are not of these vectors."
    card.text = f"{card.text[:start]}\n{note}\n{card.text[start:]}"
    card.data.eval_results = None
    path.write_text(card.content, encoding="utf-8")


def run_in_words(trainer) -> dict[str, Any]:
    """What the card of a run says that is neither in its log nor in its model, as JSON takes it.

    Args:
        trainer: The [`TextJepaTrainer`]. Its `card_info` comes first: only the script knows `data`, `start`,
            `command`, `max_length`, `license`, `base_model` and `datasets`.
    """
    args, state = trainer.args, trainer.state
    return {
        "data": "texts that the script did not name",
        "start": "the model as given to the trainer",
        "command": None,
        "license": "unknown",
        "verdict": None,
        "max_length": trainer.model.config.max_text_length,
        "sizes": sizes_in_words(trainer.train_dataset, trainer.eval_dataset),
        "masks": trainer.data_collator.masks_in_words(),
        "steps": f"{state.global_step:,}",
        "exported_step": trainer.weights_step,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "hardware": hardware(),
        "versions": ", ".join(
            [f"Python {platform.python_version()}"]
            + [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "tokenizers")]
        ),
        "settings": settings_in_words(args, trainer.model.config, trainer.weights_step, state.global_step),
        **trainer.card_info,
    }


def settings_in_words(args, config, exported_step: int, steps: int) -> dict[str, str]:
    """Rows of the table of hyperparameters."""
    rows = {
        "learning rate": f"{args.learning_rate:g}, {SchedulerType(args.lr_scheduler_type).value}, "
        f"warm-up {args.warmup_steps:g}",
        "learning rate around the encoder": None
        if args.predictor_learning_rate is None
        else f"{args.predictor_learning_rate:g}",
        "weight decay": f"{args.weight_decay:g}"
        + ("" if args.weight_decay_end is None else f" to {args.weight_decay_end:g}"),
        "optimizer": f"{OptimizerNames(args.optim).value}, betas {args.adam_beta1:g} and {args.adam_beta2:g}, "
        f"epsilon {args.adam_epsilon:g}, gradients clipped at {args.max_grad_norm:g}",
        "decay of the target encoder": f"{args.ema_schedule}, "
        f"{'1 - 100/steps' if args.ema_decay_start is None else args.ema_decay_start} to "
        f"{'1 - 10/steps' if args.ema_decay_end is None else args.ema_decay_end}"
        if config.has_target_encoder
        else None,
        "predictor": f"{config.predictor_type}, {config.pred_num_hidden_layers} × {config.pred_hidden_size}"
        if config.predicts_tokens
        else None,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": str(args.seed),
    }
    if exported_step != steps:
        rows["exported checkpoint"] = f"step {exported_step:,}, the best by {args.metric_for_best_model}"
    return {name: value for name, value in rows.items() if value is not None}


def size_of(texts) -> str:
    """Number of texts in words."""
    return "no" if texts is None else f"{len(texts):,}" if hasattr(texts, "__len__") else "a stream of"


def sizes_in_words(train, held_out) -> str:
    """How much trains and how much is held out: of documents that are cut into windows, both are counted."""
    if isinstance(train, DocumentWindows):
        training = f"{train.num_documents:,} training documents in {len(train):,} windows"
    else:
        training = f"{size_of(train)} training texts"
    if isinstance(held_out, DocumentWindows):
        return f"{training}, {held_out.num_documents:,} held out in {len(held_out):,} windows"
    return f"{training}, {size_of(held_out)} held out"


def spelled_out(name: str) -> str:
    """A figure in words: `eval_probe_target_linear` is "target linear"."""
    return name.removeprefix(_PROBE).replace("_", " ")


def idea_in_words(config) -> str:
    """What a configuration trains by, in a few words."""
    if config.latent_loss_weight:
        return "predicting latent representations of hidden text (JEPA)"
    if config.document_loss_weight:
        return "predicting, from a window of a document, a latent representation of its rest (JEPA)"
    return "predicting hidden words" if config.token_loss_weight else "comparing representations of texts"


def objective_in_words(config) -> str:
    """The objective of a configuration as a sentence."""
    makers = {"ema": "a moving average of the encoder", "frozen": "the encoder as it was at first"}
    maker = makers.get(config.target_encoder_type, "the encoder itself, with gradient")
    weighted = "mean, weighted by IDF," if config.pooling == "idf" else "mean"
    space = f"the {weighted} of fixed random vectors of {config.document_target_size} features"
    if config.document_target == "encoder":
        space = f"the pooled vector that {maker} gives"
    whitened = "whitened " if config.has_target_encoder and config.sentence_whitening else ""
    seen = "the hidden tokens alone" if config.target_input == "spans" else "the whole text"
    parts = {
        "latent": f"{config.loss_type} loss between the output of a {config.predictor_type} predictor and the mean of "
        f"the last {config.target_num_layers} layers ({config.target_normalization} normalisation) of {maker}, which "
        f"sees {seen}",
        "token": "cross-entropy of the hidden tokens",
        "document": f"{config.document_loss_type} loss between what a perceptron of {config.document_hidden_size} "
        f"hidden units makes of the {config.pooling}-pooled window and {space} of the rest of its document",
        "sentence": f"{config.sentence_loss_type} loss between the {config.pooling}-pooled context and the "
        f"{whitened}pooled target of {maker}",
        "variance": f"variance hinge at {config.regularizer_level} level",
        "covariance": f"covariance term at {config.regularizer_level} level",
        "sigreg": f"SIGReg at {config.regularizer_level} level",
    }
    weights = {name: getattr(config, f"{name}_loss_weight") for name in parts}
    terms = [f"{weights[name]:g} times the {words}" for name, words in parts.items() if weights[name]]
    return "; plus ".join(terms) + "."


def hardware() -> str:
    """Processor or accelerator of this machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
