"""What a run writes to `metrics.jsonl`, and how it is read back."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from text_jepa.train import checkpointing


# Lengths of spans, from and below, whose latent loss an evaluation tells apart.
SPAN_LENGTHS = ((1, 2), (2, 4), (4, 8), (8, 1 << 30))


class MetricsFileCallback(TrainerCallback):
    """Writes every record of the log as a line of `metrics.jsonl`, but for the summary that ends a process.

    A resumed run begins with the records of its checkpoint, whatever the file has become since.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_metrics(args.output_dir, state.log_history)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "train_runtime" not in logs:
            path = metrics_file(args.output_dir)
            with checkpointing.writing(args.output_dir, path.name), path.open("a") as file:
                file.write(_line_of({"step": state.global_step, **logs}))


def write_metrics(output_dir: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes `metrics.jsonl` anew from a log, see `TrainerState.log_history`."""
    metrics_file(output_dir).write_text("".join(_line_of({"step": record["step"], **record}) for record in records))


def _line_of(record):
    return json.dumps(to_json_value(record), allow_nan=False) + "\n"


def to_json_value(value: Any) -> Any:
    """The same as JSON that every reader takes: it knows no number that is not finite; these become "nan", "inf"."""
    if isinstance(value, Mapping):
        return {name: to_json_value(part) for name, part in value.items()}
    if isinstance(value, list):
        return [to_json_value(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def sums_by_length(batch: Mapping[str, torch.Tensor], distances: torch.Tensor) -> torch.Tensor:
    """Summed latent losses (B, M, T), and their number, of the target tokens of short to long spans.

    Returns:
        (2, len(SPAN_LENGTHS)).
    """
    spans, used = batch["target_spans"], batch["target_positions"] >= 0
    lengths = ((spans.unsqueeze(-1) == spans.unsqueeze(-2)) & used.unsqueeze(-2)).sum(-1)
    groups = [used & (lengths >= least) & (lengths < end) for least, end in SPAN_LENGTHS]
    return torch.stack([torch.stack([distances[group].sum(), group.sum()]) for group in groups], dim=1)


def read_metrics(output_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`, with numbers that are not finite as numbers again."""
    records = [json.loads(line) for line in metrics_file(output_dir).read_text().splitlines()]
    numbers = {name: float(name) for name in ("nan", "inf", "-inf")}
    return [{name: numbers.get(value, value) for name, value in record.items()} for record in records]


def metrics_file(output_dir):
    return Path(output_dir, "metrics.jsonl")
