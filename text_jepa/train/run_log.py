"""The log of a run: figures that are summed between two records, and the records in `metrics.jsonl`."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import nested_gather
from transformers.utils import ModelOutput

from text_jepa.train import checkpointing
from text_jepa.train.step import Batch


Record = Mapping[str, Any]

# Groups of span lengths (first, end) whose held-out latent loss is logged separately.
SPAN_LENGTHS = ((1, 2), (2, 4), (4, 8), (8, 1 << 30))

# Terms of the loss that are means over target tokens; all others are over texts.
OF_TOKENS = ("latent_loss", "token_loss")

# What the other terms make of the loss.
_REST = "rest"

# Numbers that JSON does not have, and the strings that stand for them in files.
_NON_FINITE = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
}


# ---- running totals -------------------------------------------------------------------------------------------------


def sum_over_processes(value: torch.Tensor, args: TrainingArguments) -> torch.Tensor:
    """The sum of the values of all processes."""
    # NCCL gathers only what lies on its device.
    value = value.to(args.device)
    gathered = nested_gather(value, args.parallel_mode)
    by_process = gathered.view(-1, *value.shape)
    return by_process.sum(0)


class TrainingTotals:
    """Losses, tokens and seconds of the steps since the last record of the training log.

    Args:
        args: The arguments of the run.
        strategy_names: The names of the mask strategies, each of which has a latent loss in the log.

    Attributes:
        last_step: The step of the last record.
    """

    def __init__(
        self,
        args: TrainingArguments,
        strategy_names: Sequence[str],
    ):
        self.args = args
        self.strategy_names = strategy_names
        self.reset(0)

    def reset(self, step: int) -> None:
        """Starts a new record after a step."""
        self.last_step = step
        self.started = time.perf_counter()
        self.terms: dict[str, torch.Tensor] = {}
        self.tokens = torch.zeros((), dtype=torch.long)
        # Summed latent losses and number of target tokens, by strategy.
        self.by_strategy = torch.zeros(2, len(self.strategy_names))

    def add_terms(self, terms: Batch, weight: float) -> None:
        """Adds the loss terms of a batch, each times a weight."""
        for name, value in terms.items():
            total = self.terms.get(name, 0)
            self.terms[name] = total + weight * value.detach()

    def add_tokens(self, attention_mask: torch.Tensor) -> None:
        """Counts the tokens of a batch (B, S)."""
        self.tokens = self.tokens.to(attention_mask.device) + attention_mask.sum()

    def add_distances(
        self,
        batch: Batch,
        distances: torch.Tensor,
    ) -> None:
        """Adds the latent losses (B, M, T) of the target tokens of a batch to those of their mask strategies."""
        is_target = batch["target_positions"] >= 0
        losses = distances.detach().sum(-1)
        counts = is_target.sum(-1).to(losses.dtype)
        strategies = batch["mask_strategies"].flatten()
        sums = self.by_strategy.to(distances.device)
        added = torch.stack([losses, counts])
        added = added.flatten(1).to(sums.dtype)
        self.by_strategy = sums.index_add(1, strategies, added)

    def leave_out(self, seconds: float) -> None:
        """Takes time that was not spent on training out of the record."""
        self.started += seconds

    def take_record(
        self,
        step: int,
        history: Sequence[Record],
    ) -> dict[str, float]:
        """The figures of all processes for a record; the totals start again from zero.

        Args:
            step: The current step.
            history: The log so far, whose counts of tokens and seconds the record continues.
        """
        record = {}
        steps = step - self.last_step
        for name, total in self._mean_terms().items():
            record[name] = total / steps
        record |= self._strategy_losses()

        seconds = time.perf_counter() - self.started
        tokens = int(sum_over_processes(self.tokens, self.args))
        before = _last_throughput(history)
        record["tokens_per_second"] = tokens / seconds
        record["tokens_seen"] = before["tokens_seen"] + tokens
        record["train_seconds"] = before["train_seconds"] + seconds
        self.reset(step)
        return record

    def _mean_terms(self) -> dict[str, float]:
        """The summed terms, averaged over processes."""
        means = {}
        for name, value in self.terms.items():
            means[name] = self._mean_over_processes(value)
        return means

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        gathered = nested_gather(value, self.args.parallel_mode)
        return gathered.mean().item()

    def _strategy_losses(self) -> dict[str, float]:
        """The mean latent loss of the target tokens of each strategy."""
        sums = sum_over_processes(self.by_strategy, self.args)
        losses = _means(sums, self.strategy_names)
        return {f"latent_loss_{name}": loss for name, loss in losses.items()}

    def state_dict(self, loss: torch.Tensor) -> dict[str, Any]:
        """The totals of all processes for a checkpoint, as JSON takes them.

        Args:
            loss: The sum of losses that the Trainer itself keeps.
        """
        state = {
            "step": self.last_step,
            "seconds": time.perf_counter() - self.started,
            "loss": self._mean_over_processes(loss),
            "terms": self._mean_terms(),
            "tokens": sum_over_processes(self.tokens, self.args).item(),
            "by_strategy": sum_over_processes(self.by_strategy, self.args).tolist(),
        }
        return to_json_value(state)

    def load_state_dict(self, state: Record) -> None:
        """Continues the record of the run that left a checkpoint."""
        self.reset(state["step"])
        self.started -= state["seconds"]
        for name, value in state["terms"].items():
            total = torch.tensor(float(value))
            self.terms[name] = total.to(self.args.device)
        # Each process has the mean of the terms; of what is summed over processes the first one has all.
        if self.args.process_index == 0:
            self.tokens = torch.tensor(state["tokens"])
            losses, counts = state["by_strategy"]
            losses = [float(loss) for loss in losses]
            self.by_strategy = torch.tensor([losses, counts])


class EvaluationTotals:
    """Losses of one evaluation, and latent losses by the length of the hidden span.

    They are means over all target tokens, or over all texts, of all processes: how these are cut into batches, and
    how many processes there are, changes nothing but the last digits.

    Args:
        args: The arguments of the run.
    """

    def __init__(self, args: TrainingArguments):
        self.args = args
        # Of this process: the sum of each term, and the number of tokens or texts that it is over.
        self.sums: dict[str, torch.Tensor] = {}
        # Summed latent losses and number of target tokens, by length of span.
        self.by_length = torch.zeros(2, len(SPAN_LENGTHS))

    def add(
        self,
        batch: Batch,
        outputs: ModelOutput,
        weights: Mapping[str, float],
        share: torch.Tensor | float,
    ) -> None:
        """Adds the losses of a batch.

        Args:
            batch: The batch of this process.
            outputs: The model's outputs.
            weights: The weight of each term of the loss by the name of its output, such as `latent_loss`.
            share: The batch's share of those of all processes, by which the model has scaled its losses; 1 if it has
                not.
        """
        num_targets = (batch["target_positions"] >= 0).sum()
        num_texts = len(batch["input_ids"])
        rest = outputs["loss"].detach() / share
        for name, value in outputs.items():
            if name.endswith("_loss"):
                mean = value.detach() / share
                is_of_tokens = name in OF_TOKENS
                self._add(name, mean, num_targets if is_of_tokens else num_texts)
                if is_of_tokens:
                    rest = rest - weights[name] * mean
        self._add(_REST, rest, num_texts)

        distances = outputs.get("distances")
        if distances is not None:
            sums = self.by_length.to(distances.device)
            self.by_length = sums + sum_by_span_length(batch, distances)

    def _add(self, name: str, mean: torch.Tensor, count: torch.Tensor | int) -> None:
        """Adds a mean over so many things, in double precision."""
        values = torch.tensor([float(mean) * float(count), float(count)], dtype=torch.float64)
        self.sums[name] = self.sums.get(name, 0) + values

    def record(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The means over all processes: each term, and the `loss`, the sum of the terms by their weights."""
        record = {}
        for name, values in self.sums.items():
            total, count = sum_over_processes(values.float(), self.args).tolist()
            record[name] = total / max(count, 1)
        if _REST in record:
            record["loss"] = record.pop(_REST)
            for name in OF_TOKENS:
                record["loss"] += weights.get(name, 0.0) * record.get(name, 0.0)

        sums = sum_over_processes(self.by_length, self.args)
        shortest = [first for first, _ in SPAN_LENGTHS]
        for first, loss in _means(sums, shortest).items():
            record[f"latent_loss_of_spans_from_{first}"] = loss
        return record


def _means(sums: torch.Tensor, names: Sequence) -> dict:
    """Sums and counts (2, N) as means by name; names that were not counted are left out."""
    totals, counts = sums.tolist()
    means = {}
    for name, total, count in zip(names, totals, counts, strict=True):
        if count:
            means[name] = total / count
    return means


def _last_throughput(history: Sequence[Record]) -> Record:
    """The last record with tokens and seconds since the start of the run."""
    for record in reversed(history):
        if "tokens_seen" in record:
            return record
    return {"tokens_seen": 0, "train_seconds": 0.0}


def sum_by_span_length(
    batch: Batch,
    distances: torch.Tensor,
) -> torch.Tensor:
    """Sums the latent losses of target tokens by the length of their span.

    Args:
        batch: A batch with `target_positions` and `target_spans` (B, M, T).
        distances: The latent losses (B, M, T).

    Returns:
        The summed losses and the number of tokens, (2, len(SPAN_LENGTHS)).
    """
    spans = batch["target_spans"]
    is_used = batch["target_positions"] >= 0
    is_same_span = spans.unsqueeze(-1) == spans.unsqueeze(-2)
    is_same_span &= is_used.unsqueeze(-2)
    lengths = is_same_span.sum(-1)

    groups = []
    for first, end in SPAN_LENGTHS:
        group = is_used & (lengths >= first) & (lengths < end)
        loss = distances[group].sum()
        groups.append(torch.stack([loss, group.sum()]))
    return torch.stack(groups, dim=1)


# ---- metrics.jsonl --------------------------------------------------------------------------------------------------


class MetricsFileCallback(TrainerCallback):
    """Writes every record of the log as a line of `metrics.jsonl`, except the summary at the end of a process.

    A resumed run first restores the records of its checkpoint, whatever has been written to the file since.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_metrics(args.output_dir, state.log_history)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or is_process_summary(logs):
            return
        path = metrics_file(args.output_dir)
        record = {"step": state.global_step, **logs}
        with checkpointing.writing(args.output_dir, path.name), path.open("a") as file:
            file.write(_to_line(record))


def is_process_summary(record: Record) -> bool:
    """Whether a record is the Trainer's last one, which sums up a process and not the run."""
    return "total_flos" in record


def metrics_file(output_dir: str | Path) -> Path:
    """The path of the log of a run."""
    return Path(output_dir, "metrics.jsonl")


def write_metrics(
    output_dir: str | Path,
    records: Sequence[Record],
) -> None:
    """Writes a whole `metrics.jsonl` from a log such as `TrainerState.log_history`."""
    lines = [_to_line({"step": record["step"], **record}) for record in records]
    metrics_file(output_dir).write_text("".join(lines))


def read_metrics(output_dir: str | Path) -> list[dict[str, Any]]:
    """Reads the records of `metrics.jsonl`, with NaN and infinities as numbers again.

    Raises:
        ValueError: A line is none of ours.
    """
    content = metrics_file(output_dir).read_text()
    return [_from_line(line) for line in content.splitlines()]


def to_json_value(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON does not have, by the strings "nan", "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {name: to_json_value(part) for name, part in value.items()}
    if isinstance(value, list):
        return [to_json_value(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _to_line(record: Record) -> str:
    value = to_json_value(record)
    return json.dumps(value, allow_nan=False) + "\n"


def _from_line(line: str) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError("a line is not an object with a step")
    for name, value in record.items():
        if isinstance(value, str):
            record[name] = _NON_FINITE.get(value, value)
    return record
