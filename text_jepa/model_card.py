"""What a reader is shown of a run: the model card and the curves, each figure from the run itself."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

import text_jepa
from text_jepa.export import trained_encoder


_FIGURES = {
    "eval_loss": "held-out loss",
    "eval_latent_loss": "latent loss",
    "eval_token_loss": "cross-entropy of hidden tokens (whole vocabulary)",
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


def final_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of every measure in a run's log."""
    return {name: value for record in records for name, value in record.items()}


def write_model_card(
    output_dir: str | Path,
    model,
    records: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
):
    """Writes `README.md`: complete without editing, every figure taken from the log.

    Args:
        output_dir: The exported folder.
        model: The [`TextJepaForPreTraining`].
        records: The run's log.
        facts: What only the run knows: `data`, `train_texts`, `held_out_texts`, `start`, `masks`, `command`,
            `max_length`, `steps`, `batch_size`, `tokens`, `minutes`, `which`.
        settings: Rows of the table of hyperparameters.
    """
    output_dir = Path(output_dir)
    config, encoder = model.config, trained_encoder(model, facts["which"])
    last = final_figures(records)
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="feature-extraction",
            tags=["text-jepa", "self-supervised", "sentence-transformers"],
        ),
        template_path=str(Path(__file__).with_name("model_card_template.md")),
        title=output_dir.resolve().name,
        name=str(output_dir),
        parameters=f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} million",
        architecture=type(encoder).__name__,
        layers=config.text_config.num_hidden_layers,
        width=config.hidden_size,
        objective=objective_in_words(config),
        hardware=hardware(),
        settings=list(settings.items()),
        figures=[(title, f"{last[name]:.4g}") for name, title in _FIGURES.items() if name in last],
        version=text_jepa.__version__,
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")),
        **facts,
    )
    (output_dir / "README.md").write_text(card.content, encoding="utf-8")


def objective_in_words(config) -> str:
    """The objective of a configuration as a sentence."""
    sentence = (
        f"{config.loss_type} loss between the predictor's output and the mean of the last {config.target_num_layers} "
        f"layers ({config.target_normalization} normalisation) of a moving average of the encoder"
    )
    if config.token_loss_weight:
        sentence += f", plus {config.token_loss_weight:g} times the cross-entropy of the hidden tokens"
    return sentence + "."


def hardware() -> str:
    """Processor or accelerator of this machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def plot_curves(records: Sequence[Mapping[str, Any]], path: str | Path):
    """Draws the course of a run: losses, relative loss, ranks, cosines, decay and learning rate.

    Args:
        records: The run's log, each record with `step`.
        path: Picture to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        ("loss", ["loss", "latent_loss", "eval_loss"]),
        ("relative loss (1 = predicting the mean)", ["relative_loss", "copy_relative_loss"]),
        ("cross-entropy of hidden tokens", ["token_loss", "eval_token_loss"]),
        ("effective rank", ["token_rank", "pooled_rank"]),
        ("spread and cosines", ["spread", "cosine_same_text", "cosine_other_text", "retrieval_margin"]),
        ("decay, and learning rate / peak", ["ema_decay", "learning_rate"]),
    ]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for name in names:
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                steps, values = zip(*points, strict=True)
                peak = max(values) if name == "learning_rate" else 1
                axes.plot(
                    steps, [v / (peak or 1) for v in values], label=name, marker="." if len(points) < 3 else None
                )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
