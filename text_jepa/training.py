"""Training: arguments with our defaults, the moving average, the collapse monitor and the trainer that joins them."""

import copy
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import nested_gather

from modeling_text_jepa import TextJepaForPreTraining, average_layers, gather_positions, mean_pool
from text_jepa import metrics
from text_jepa.data import LengthGroupedSampler


logger = logging.getLogger(__name__)

# Texts of the fixed held-out batch on which representations are watched, where a batch of evaluation holds as many.
MONITOR_TEXTS = 64

# Steps in a row whose gradient is not finite before a run gives up.
NONFINITE_LIMIT = 3


@dataclass
class TextJepaTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for latent prediction, and what the callbacks need."""

    output_dir: str | None = field(
        default="text-jepa-output", metadata={"help": "Where the encoder, the checkpoints and the figures go."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate (5e-5 suits a trained encoder)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.08, metadata={"help": "Warm-up: steps, or a share of the run if below 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's, on matrices only."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second moment."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Texts per process and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Texts per process in evaluation."})
    logging_steps: float = field(default=50, metadata={"help": "Log, and watch for collapse, every so many steps."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step too."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator owns the columns."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Keep only losses in evaluation."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trainable parameter takes part in the loss."}
    )

    predictor_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak rate of predictor and heads, which are new beside a trained encoder. Default: the same."
        },
    )
    ema_schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "Course of the target encoder's decay over the run."}
    )
    ema_decay_start: float | None = field(
        default=None, metadata={"help": "First decay. Default: 1 - 100 / steps, an average over 1 % of the run."}
    )
    ema_decay_end: float | None = field(
        default=None, metadata={"help": "Last decay. Default: 1 - 10 / steps, an average over 10 % of the run."}
    )
    stop_on_collapse: bool = field(
        default=False, metadata={"help": "End the run when the collapse monitor warns, instead of only warning."}
    )

    def __post_init__(self):
        for name in ("ema_decay_start", "ema_decay_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name} must lie between 0 and 1, got {value}")
        least = {"seed": 0, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
        least |= {"gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "learning_rate": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"--{name} must be at least {bound}, got {getattr(self, name)}")
        if self.accelerator_config is None:
            # Streams give batches of different width to each process, which cannot be dispatched from one.
            self.accelerator_config = {"dispatch_batches": False}
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()


# ---- moving average -------------------------------------------------------------------------------------------------


def ema_decay(
    step: int, total_steps: int, schedule: str = "cosine", start: float | None = None, end: float | None = None
) -> float:
    """Decay of the target encoder at a step, a pure function of the global step.

    The defaults scale with the run: 1 - 100 / T at the start and 1 - 10 / T at the end, that is averages over 1 % and
    10 % of the run. At T = 1,000,000 these are the values of data2vec 2.0 (arXiv 2212.07525).

    Args:
        step: Optimizer steps done, 0 … `total_steps`.
        total_steps: T, optimizer steps of the whole run.
        schedule: `"constant"` (the start), `"linear"` or `"cosine"` from start to end.
        start, end: Decays between 0 and 1; `None` for the default.

    Raises:
        ValueError: The schedule is unknown.
    """
    start = max(0.0, 1 - 100 / total_steps) if start is None else start
    end = max(start, 1 - 10 / total_steps) if end is None else end
    progress = min(step / total_steps, 1.0)
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * progress
    if schedule == "cosine":
        return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"unknown schedule '{schedule}'; use constant, linear or cosine")


class EmaTargetEncoderCallback(TrainerCallback):
    """Moves the target encoder after each real optimizer step, and only then.

    Not on micro-steps of gradient accumulation, nor on steps that a loss scaler skipped. It keeps no state: the decay
    follows from the global step and the weights live in the model, so that every checkpoint is complete.

    Args:
        schedule, start, end: See `ema_decay`.

    Attributes:
        skip_next: Set by a trainer that drops the gradients of a step: that step moves nothing.
    """

    def __init__(self, schedule: str = "cosine", start: float | None = None, end: float | None = None):
        self.schedule, self.start, self.end = schedule, start, end
        self.skip_next = False

    def decay(self, step: int, total_steps: int) -> float:
        """The decay at a step, see `ema_decay`."""
        return ema_decay(step, total_steps, self.schedule, self.start, self.end)

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        if not (self.skip_next or getattr(optimizer, "step_was_skipped", False)):
            model.update_target_encoder(self.decay(state.global_step, state.max_steps))
        self.skip_next = False


# ---- collapse -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_representations(model: TextJepaForPreTraining, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """What the target encoder's representations and the predictions are worth, on one batch.

    Args:
        model: In any mode, left as it was.
        batch: As the collator makes it, on the model's device.

    Returns:
        relative_loss: Squared error of the predictions over the variance of the targets; 1 is predicting the mean.
        copy_relative_loss: The same for copying the target of the nearest visible token.
        retrieval_margin: Centred cosine with the right target minus that with another one.
        retrieval_accuracy: Share of the first 1,024 predictions that are nearest to their own target among these.
        spread: Standard deviation of the target encoder's states over tokens, mean over dimensions.
        target_spread: The same of the normalised targets.
        token_rank, pooled_rank: Effective rank of token states and of mean-pooled texts.
        cosine_same_text, cosine_other_text: Mean cosine of the states of two tokens.
    """
    training = model.training
    model.eval()
    mask = batch["attention_mask"]
    predictions = model.predict(**batch)[0]
    target = model.target_encoder(
        input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True, return_dict=True
    )
    model.train(training)
    states, visible, used = target.last_hidden_state.float(), mask.bool(), batch["target_positions"] >= 0
    layers = target.hidden_states[-model.config.target_num_layers :]
    features = average_layers(layers, mask, model.config.target_normalization)
    predictions = predictions[used].float()
    targets = gather_positions(features, batch["target_positions"])[used]
    copied = metrics.copy_nearest_visible(features, batch["context_positions"], batch["target_positions"])[used]
    text = torch.arange(len(mask), device=mask.device).unsqueeze(1).expand_as(mask)[visible]
    same, other = metrics.mean_cosine(states[visible], text)
    values = {
        "relative_loss": metrics.relative_loss(predictions, targets),
        "copy_relative_loss": metrics.relative_loss(copied, targets),
        "retrieval_margin": metrics.retrieval_margin(predictions, targets, shift=max(1, len(targets) // 2)),
        "retrieval_accuracy": metrics.retrieval_accuracy(predictions[:1024], targets[:1024]),
        "spread": metrics.spread(states[visible]),
        "target_spread": metrics.spread(features[visible]),
        "token_rank": metrics.effective_rank(states[visible]),
        "pooled_rank": metrics.effective_rank(mean_pool(states, mask)),
        "cosine_same_text": same,
        "cosine_other_text": other,
    }
    return {name: float(value) for name, value in values.items()}


def collapse_signs(values: Mapping[str, float], dimensions: int) -> list[str]:
    """Plain-word reasons to call the representations collapsed or degenerate; none if they look healthy.

    Args:
        values: From `measure_representations`.
        dimensions: What the rank could be at most: the width of the encoder, or fewer tokens.
    """
    signs = []
    if not all(math.isfinite(value) for value in values.values()):
        return ["representations are not finite"]
    if values["token_rank"] < 0.1 * dimensions:
        signs.append(f"tokens use {values['token_rank']:.1f} of {dimensions} dimensions")
    if values["cosine_other_text"] > 0.98:
        signs.append(f"tokens of different texts point the same way (cosine {values['cosine_other_text']:.3f})")
    if values["spread"] < 1e-3:
        signs.append(f"tokens hardly differ (standard deviation {values['spread']:.1e})")
    return signs


class CollapseMonitorCallback(TrainerCallback):
    """Measures representations on a fixed held-out batch at every log, and says in plain words when they collapse.

    Args:
        batch: A collated batch of held-out texts with fixed masks.
        stop_on_collapse: End the run at the first warning.
        patience: Logs in a row that must show signs before the warning, so that the first steps may look odd.

    Attributes:
        values: The latest measures, see `measure_representations`.
        collapsed: Whether the monitor has warned.
    """

    remedy = "Raise --ema_decay_start, lower --learning_rate, lengthen --warmup_steps, or raise --token_loss_weight."

    def __init__(self, batch: Mapping[str, torch.Tensor], stop_on_collapse: bool = False, patience: int = 2):
        self.batch = batch
        self.stop_on_collapse = stop_on_collapse
        self.patience = patience
        self.values: dict[str, float] = {}
        self.collapsed = False
        self._suspicious = 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not control.should_log:
            return
        self.batch = {name: tensor.to(model.device) for name, tensor in self.batch.items()}
        self.values = measure_representations(model, self.batch)
        tokens = int(self.batch["attention_mask"].sum())
        signs = collapse_signs(self.values, min(model.config.hidden_size, tokens - 1))
        self._suspicious = self._suspicious + 1 if signs else 0
        if self._suspicious < self.patience or self.collapsed:
            return
        self.collapsed = True
        if state.is_world_process_zero:
            advice = "Stopping, as asked." if self.stop_on_collapse else self.remedy
            tqdm.write(f"WARNING: collapse at step {state.global_step}: {'; '.join(signs)}. {advice}", file=sys.stderr)
        if self.stop_on_collapse:
            control.should_save = control.should_training_stop = True


# ---- what a person sees ---------------------------------------------------------------------------------------------


class ProgressLineCallback(ProgressCallback):
    """A progress bar on terminals, and one line of health per log everywhere."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=not sys.stderr.isatty())
        self.current_step = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        if sys.stderr.isatty():
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if state.is_world_process_zero and logs:
            line = health_line(logs, state.global_step, state.max_steps, model.config.hidden_size)
            if line:
                tqdm.write(line)


def health_line(logs: Mapping[str, float], step: int, total_steps: int, width: int) -> str:
    """One line for people from a record of the log; empty for records that need none."""
    if "eval_loss" in logs:
        return f"step {step:>6}/{total_steps}  held-out loss {logs['eval_loss']:.4f}"
    if "loss" not in logs:
        return ""
    parts = [f"step {step:>6}/{total_steps}", f"loss {logs['loss']:.4f}"]
    if "relative_loss" in logs:
        parts.append(f"relative {logs['relative_loss']:.3f} (copying {logs['copy_relative_loss']:.3f})")
        parts.append(f"rank {logs['token_rank']:.0f}/{width}")
    parts.append(f"decay {logs['ema_decay']:.4f}")
    parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)


class MetricsFileCallback(TrainerCallback):
    """Writes every record of the log as a line of `metrics.jsonl`; a resumed run continues the file."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = _metrics_file(args.output_dir)
            lines = path.read_text().splitlines() if path.exists() and state.global_step else []
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            path.write_text("".join(f"{line}\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with _metrics_file(args.output_dir).open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


# ---- trainer --------------------------------------------------------------------------------------------------------


class _BeginningCallback(TrainerCallback):
    """Tells the trainer where a run begins, and the order of the texts and the masks where a pass does."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.steps_logged, self.trainer.clock = state.global_step, time.perf_counter()

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int(state.epoch or 0)  # of a stream always 0: there each example brings its own
        self.trainer.data_collator.epoch = epoch
        if self.trainer.train_sampler is not None:  # accelerate does not reach it behind all of its wrappers
            self.trainer.train_sampler.set_epoch(epoch)


class TextJepaTrainer(Trainer):
    """The standard `Trainer` for a [`TextJepaForPreTraining`], with the moving average and the collapse monitor.

    Losses are normalised by the number of target tokens of all accumulated batches of all processes; each term is
    logged by its name. Texts come length-grouped; evaluation has masks of its own that never change.

    A step whose gradient is not finite changes neither the weights nor the target encoder: its batches are kept in
    `nonfinite/`, a checkpoint of the state before it is saved, and after three such steps in a row the run stops.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, **kwargs: As for `Trainer`; the collator is a
            [`DataCollatorForTextJepa`], datasets have `input_ids` and, if they have a size, `length`.

    Attributes:
        nonfinite_steps: Steps in a row, up to now, whose gradient was not finite.
    """

    def __init__(self, model, args, data_collator, train_dataset, eval_dataset=None, **kwargs):
        self.train_sampler: LengthGroupedSampler | None = None
        self.eval_collator = copy.deepcopy(data_collator)
        self.eval_collator.epoch = -1
        self._terms: dict[str, torch.Tensor] = {}
        self._tokens = torch.zeros((), dtype=torch.long)
        self._batches: list[Mapping[str, torch.Tensor]] = []
        self.nonfinite_steps = 0
        self.steps_logged, self.clock = 0, None
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)
        self.ema = EmaTargetEncoderCallback(args.ema_schedule, args.ema_decay_start, args.ema_decay_end)
        self.monitor = None
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_BeginningCallback(self))
        self.add_callback(self.ema)
        if eval_dataset is not None:
            count = min(MONITOR_TEXTS, args.per_device_eval_batch_size)
            texts = [example for example, _ in zip(eval_dataset, range(count), strict=False)]
            self.monitor = CollapseMonitorCallback(self.eval_collator(texts), args.stop_on_collapse)
            self.add_callback(self.monitor)
        self.add_callback(ProgressLineCallback())
        self.add_callback(MetricsFileCallback())

    # -- data

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "__len__"):
            return None
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self.train_sampler = LengthGroupedSampler(dataset["length"], self.args.per_device_train_batch_size, seed)
        return self.train_sampler

    def get_eval_dataloader(self, eval_dataset=None):
        collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    # -- loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Target tokens of all accumulated batches of all processes."""
        if not batch_samples:
            return None
        count = sum((batch["target_positions"] >= 0).sum() for batch in batch_samples).to(device)
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        # The mean over processes undoes the first factor, as it does for the loss itself. In evaluation the mean over
        # texts is wanted.
        weight = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        weight = weight if model.training else len(inputs["input_ids"])
        for name in ("latent_loss", "token_loss"):
            if outputs.get(name) is not None:
                self._terms[name] = self._terms.get(name, 0) + weight * outputs[name].detach()
        if model.training:
            self._tokens = self._tokens.to(loss.device) + inputs["attention_mask"].sum()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._batches.append(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_grad_norm(self, model, grad_norm=None):
        """The last look at the gradient before the optimizer's step, the same on all ranks."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        batches, self._batches = self._batches, []
        # A loss scaler expects overflows and skips such steps by itself.
        if self.accelerator.scaler is not None or math.isfinite(grad_norm):
            self.nonfinite_steps = 0
            return grad_norm
        self.nonfinite_steps += 1
        self.ema.skip_next = True
        self.control.should_save = True
        self.control.should_training_stop = self.nonfinite_steps == NONFINITE_LIMIT
        model.zero_grad(set_to_none=True)  # without gradients the optimizer leaves everything as it is
        folder = Path(self.args.output_dir, "nonfinite")
        folder.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            name = f"step{self.state.global_step}-rank{self.args.process_index}-{number}.safetensors"
            save_file({key: value.cpu().contiguous() for key, value in batch.items()}, folder / name)
        logger.warning(
            f"step {self.state.global_step}: the gradient is not finite; nothing was updated, its batch is in {folder}"
        )
        return grad_norm

    def _drain_terms(self, count):
        terms = {
            name: nested_gather(value, self.args.parallel_mode).mean().item() / count
            for name, value in self._terms.items()
        }
        self._terms = {}
        return terms

    # -- log

    def log(self, logs, start_time=None):
        if "loss" in logs:  # a record of training
            logs |= self._drain_terms(self.state.global_step - self.steps_logged)
            self.steps_logged = self.state.global_step
            # The Trainer resets its sum by subtracting it from itself, which a NaN survives.
            self._tr_loss.nan_to_num_(0.0, 0.0, 0.0)
            if self.monitor is not None:
                logs |= self.monitor.values
            logs["ema_decay"] = self.ema.decay(self.state.global_step - 1, self.state.max_steps)
            now = time.perf_counter()
            tokens = nested_gather(self._tokens, self.args.parallel_mode).sum().item()
            last = next((record for record in reversed(self.state.log_history) if "tokens_seen" in record), {})
            logs["tokens_per_second"] = tokens / (now - self.clock)
            logs["tokens_seen"] = last.get("tokens_seen", 0) + tokens
            logs["train_seconds"] = last.get("train_seconds", 0.0) + now - self.clock
            self._tokens, self.clock = torch.zeros_like(self._tokens), now
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs):
        training_terms, self._terms = self._terms, {}
        started = time.perf_counter()
        metrics_ = super().evaluate(*args, **kwargs)
        if self.clock is not None:  # evaluation is not training time
            self.clock += time.perf_counter() - started
        self._terms = training_terms
        return metrics_

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        terms = self._drain_terms(output.num_samples / self.args.world_size)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in terms.items()})
        return output

    # -- parameters

    def create_optimizer(self, *args, **kwargs):
        """AdamW as the Trainer makes it, with a rate of their own for the parts around the encoder, if asked."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.args.predictor_learning_rate is not None:
            inside = {id(parameter) for parameter in self.model.model.parameters()}
            for group in list(optimizer.param_groups):
                around = [p for p in group["params"] if id(p) not in inside]
                group["params"] = [p for p in group["params"] if id(p) in inside]
                optimizer.add_param_group({**group, "params": around, "lr": self.args.predictor_learning_rate})
        return optimizer

    def get_decay_parameter_names(self, model) -> list[str]:
        """Matrices decay; biases, norms and the mask token do not."""
        vectors = {name for name, parameter in model.named_parameters() if parameter.dim() < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in vectors]


def metrics_of(output_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in _metrics_file(output_dir).read_text().splitlines()]


def _metrics_file(output_dir):
    return Path(output_dir, "metrics.jsonl")
