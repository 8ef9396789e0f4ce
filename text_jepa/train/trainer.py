"""`TextJepaTrainer`: the standard `Trainer` with target encoder updates, collapse monitor and complete checkpoints.

Its methods stand in the order of a run: data, loss, optimizer, log, checkpoints, export and publication.
"""

import copy
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, IntervalStrategy, TrainOutput
from transformers.utils import ModelOutput

from modeling_text_jepa import TextJepaForPreTraining, has_adapters
from text_jepa.cli import UsageError, first_line
from text_jepa.data.batching import LengthGroupedSampler, TextsWithSteps, lengths_of, share_without_repeats
from text_jepa.data.collator import DataCollatorForTextJepa, split_masks
from text_jepa.encoders.sentence_head import kept_head
from text_jepa.share import hub
from text_jepa.share.export import export_encoder
from text_jepa.share.model_card import describe_run, write_card_info, write_model_card
from text_jepa.train import checkpointing
from text_jepa.train.adapters import below_adapters
from text_jepa.train.arguments import TextJepaTrainingArguments, fingerprint_of_arguments
from text_jepa.train.callbacks import (
    NONFINITE_LIMIT,
    OVERFLOW_LIMIT,
    EmaTargetEncoderCallback,
    PreemptionCallback,
    ProgressLineCallback,
    SpikeCallback,
    WeightDecayCallback,
    shield_worker_from_signals,
)
from text_jepa.train.collapse import MONITOR_TEXTS, CollapseMonitorCallback
from text_jepa.train.hosts import find_newest_checkpoint, gather_files
from text_jepa.train.run_log import (
    EvaluationTotals,
    MetricsFileCallback,
    TrainingTotals,
    is_process_summary,
    metrics_file,
    read_metrics,
    to_json_value,
)
from text_jepa.train.step import Batch, StepInProgress


logger = logging.getLogger(__name__)

# The key under which `trainer_state.json` keeps what the log has summed since its last record.
_SINCE_LAST_LOG = "since_last_log"

# The key under which it keeps the path of the best checkpoint, which the Trainer forgets if it leads nowhere any more.
_BEST = "best_checkpoint"

# What a group of an optimizer has from the arguments; the rest is what it has reached.
_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps")


class _LogAndEpochCallback(TrainerCallback):
    """Begins the log with the run, sets the epoch of masks and texts, and has the last step logged."""

    def __init__(self, trainer: "TextJepaTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_log(state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # A stream has one endless epoch, 0: its examples carry their own.
        epoch = int(state.epoch or 0)
        self.trainer.data_collator.epoch = epoch
        # accelerate calls `set_epoch`, but does not find the sampler inside all of the wrappers.
        if self.trainer.train_sampler is not None:
            self.trainer.train_sampler.set_epoch(epoch)

    def on_step_end(self, args, state, control, **kwargs):
        # Not after a signal, which stops training later in this event: a resumed run continues the record.
        if control.should_training_stop and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True


# What this class needs of the private parts of the Trainer. It overrides
#
# - `_determine_best_metric`: which steps are saved with `save_strategy="best"`,
# - `_get_dataloader` and `_get_train_sampler`: the order of the texts, and the share of each process,
# - `_get_num_items_in_batch`: the target tokens of a step, or its masks,
# - `_get_grad_norm`: the last call before the optimizer's step,
# - `_load_optimizer_and_scheduler`: the settings of a resumed run,
# - `_save_checkpoint`, whose parts `_save`, `_save_optimizer_and_scheduler`, `_save_scaler` and `_save_rng_state` it
#   calls.
#
# It reads `_tr_loss` and `_globalstep_last_logged` to continue a log, and `_created_lr_scheduler`, calls
# `_finish_current_push`, and sets `_n_gpu` of the arguments. Tests with the oldest and the newest transformers fail if
# one of these changes.
class TextJepaTrainer(Trainer):
    """The standard `Trainer` for a [`TextJepaForPreTraining`].

    Losses are normalized by the number of target tokens of an optimizer step, over all accumulated batches and all
    processes (of masks, if no tokens are predicted), and every term is logged under its name. Texts are grouped by
    length. Evaluation uses fixed masks.

    A step whose gradient is not finite changes neither the weights nor the target encoder: its batches are kept in
    `nonfinite/`, a checkpoint of the state before it is saved, and after three such steps in a row the run stops. A
    loss scaler (fp16) may skip 50 steps in a row before they count as such.

    A checkpoint counts only if it is complete, see `text_jepa.train.checkpointing`. SIGTERM and SIGINT end the run
    with a checkpoint.

    Args:
        model: The model to train.
        args: The training arguments.
        data_collator: The collator, which makes the masks.
        train_dataset: Examples with `input_ids`, and optionally a column `length`, their numbers of tokens, which are
            counted otherwise.
        eval_dataset: Held-out examples, or several datasets of them by name. The collapse monitor measures the first
            ones.
        fingerprint: Settings that a resumed run must share, in addition to those among `args`.
        card_info: Entries of the model card that the trainer does not know, see `describe_run`. `"which"` is the
            encoder to export, `"target"` (the default) or `"context"`.
        **kwargs: Further arguments of `Trainer`. A callback of a kind that this class adds takes the place of its own.

    Attributes:
        step_in_progress: The batches and the loss since the last optimizer step.
        nonfinite_steps: Number of steps in a row, up to the last one, whose gradient was not finite.
        overflows: Number of steps in a row, up to the last one, that a loss scaler has skipped.
        has_begun: Whether training has begun, after all of the Trainer's own preparation.

    Raises:
        TypeError: `args` are not `TextJepaTrainingArguments`.
        ValueError: The collator has more mask strategies than the predictor has mask tokens, or makes no views for a
            document loss; the objective learns nothing, see `TextJepaConfig.check_trainable`; or there are
            `compute_metrics`, which no evaluation would call.
    """

    def __init__(
        self,
        model: TextJepaForPreTraining,
        args: TextJepaTrainingArguments,
        data_collator: DataCollatorForTextJepa,
        train_dataset: Dataset | Iterable,
        eval_dataset: Dataset | Iterable | Mapping[str, Dataset] | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        card_info: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        _check_arguments(args, kwargs.get("compute_metrics"))
        if args.n_gpu > 1:
            # The Trainer would copy the model to each of them (DataParallel), with gradients of parts of a batch.
            logger.warning(
                f"one of {args.n_gpu} GPUs is used; to use all, start one process for each with accelerate launch"
            )
            args._n_gpu = 1
        model = below_adapters(model)
        model.config.check_trainable()
        _check_mask_tokens(model, data_collator)
        _check_view(model, data_collator)
        self.train_sampler: LengthGroupedSampler | None = None
        self.eval_collator = copy.deepcopy(data_collator)
        self.eval_collator.epoch = -1
        if data_collator.follows_steps and hasattr(train_dataset, "__len__"):
            train_dataset = TextsWithSteps(train_dataset)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            **kwargs,
        )
        # transformers looks for `return_loss` in the signature, where a `forward(*args, **kwargs)` does not show it.
        self.can_return_loss = True
        self.card_info = dict(card_info or {})
        self.fingerprint = fingerprint_of_arguments(args)
        self.fingerprint["order"] = checkpointing.ORDER
        self.fingerprint |= fingerprint or {}
        self.training_totals = TrainingTotals(args, data_collator.strategy_names)
        self.evaluation_totals = EvaluationTotals(args)

        self.step_in_progress = StepInProgress(args)
        # With `mask_batching="sequential"`, the targets from the pass of the first mask, for those of the others.
        self._text_targets: ModelOutput | None = None
        self.nonfinite_steps = 0
        self.overflows = 0
        self.has_begun = False
        self._add_callbacks(eval_dataset)

    def _add_callbacks(self, eval_dataset: Dataset | Iterable | None) -> None:
        args = self.args
        config = self.model.config
        default_ema = EmaTargetEncoderCallback(
            args.ema_schedule,
            args.ema_decay_start,
            args.ema_decay_end,
            args.ema_frozen_steps,
        )
        self.ema = self._given_or(default_ema)
        self.monitor: CollapseMonitorCallback | None = None
        self.spikes = self._given_or(SpikeCallback())
        self.preemption = self._given_or(PreemptionCallback())
        progress_line = self._given_or(ProgressLineCallback())
        log_file = self._given_or(MetricsFileCallback())

        self.remove_callback(PrinterCallback)
        self.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # another class in notebooks
        self.add_callback(_LogAndEpochCallback(self))
        if config.has_moving_average:
            self.add_callback(self.ema)
        if args.weight_decay_end is not None:
            default_decay = WeightDecayCallback(args.weight_decay, args.weight_decay_end)
            self.add_callback(self._given_or(default_decay))
        if eval_dataset is not None:
            self.monitor = self._given_or(CollapseMonitorCallback())
            self._set_up_monitor(eval_dataset)
            # Behind the callbacks that decide whether a step is logged, which is when it measures.
            self.add_callback(self.monitor)
        self.add_callback(progress_line)
        self.add_callback(log_file)
        self.add_callback(self.spikes)
        self.add_callback(self.preemption)

    def _given_or(self, default: TrainerCallback) -> TrainerCallback:
        """Takes the callback of this kind that the caller has given out of the list; the default if there is none."""
        return self.pop_callback(type(default)) or default

    def _set_up_monitor(self, eval_dataset: Dataset | Iterable) -> None:
        monitor = self.monitor
        if self.args.logging_strategy == IntervalStrategy.NO:
            logger.warning("--logging_strategy no: collapse is not watched, because it is checked at each log entry")
        monitor.stop_on_collapse |= self.args.stop_on_collapse
        monitor.autocast = self.accelerator.autocast
        if monitor.batch is None:
            if isinstance(eval_dataset, Mapping):
                eval_dataset = next(iter(eval_dataset.values()))
            count = min(MONITOR_TEXTS, self.args.per_device_eval_batch_size)
            examples = list(islice(eval_dataset, count))
            monitor.batch = self.eval_collator(examples)

    # ---- data -------------------------------------------------------------------------------------------------------

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        is_evaluation = self.data_collator is self.eval_collator
        if is_evaluation and looks_at_whole_batches(self.model, self.data_collator):
            # Losses are comparable only if a text has as many others beside it as in training.
            kwargs["batch_size"] = self.args.train_batch_size
        loader = super()._get_dataloader(*args, **kwargs)
        inner = loader.base_dataloader
        inner.worker_init_fn = partial(shield_worker_from_signals, inner.worker_init_fn)
        shard = inner.batch_sampler
        if isinstance(shard, BatchSamplerShard):
            is_training = shard.batch_sampler.sampler is self.train_sampler
            share_without_repeats(shard, self.args.gradient_accumulation_steps if is_training else 1)
        return loader

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "__len__"):
            return None
        args = self.args
        self.train_sampler = LengthGroupedSampler(
            lengths_of(dataset),
            args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            args.seed if args.data_seed is None else args.data_seed,
            with_steps=self.data_collator.follows_steps,
            drop_last=args.dataloader_drop_last,
        )
        return self.train_sampler

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        training_collator = self.data_collator
        drops_last_in_training = self.args.dataloader_drop_last
        self.data_collator = self.eval_collator
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator
            self.args.dataloader_drop_last = drops_last_in_training

    # ---- loss -------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(
        self,
        batch_samples: Sequence[Batch],
        device: torch.device,
    ) -> torch.Tensor | None:
        """Counts what losses are scaled by: the `num_items` of all accumulated batches of all processes."""
        if not batch_samples:
            return None
        counts = []
        for batch in batch_samples:
            for part in self._passes(batch):
                counts.append(self.model.num_items(part["target_positions"]))
        count = sum(counts).to(device)
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            count = self.accelerator.gather(count).sum()
        return count

    def _passes(self, batch: Batch) -> list[Batch]:
        """The passes that a batch (B, M, …) is trained in: one for all masks, or one for each."""
        if self.args.mask_batching == "sequential":
            return split_masks(batch)
        return [batch]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        is_first_pass = self._text_targets is None
        makes_text_targets = is_first_pass or self.model.config.target_encoder_type == "online"
        if model.training and not makes_text_targets:
            inputs = {**inputs, "text_targets": self._text_targets}
        loss, outputs = super().compute_loss(
            model,
            inputs,
            return_outputs=True,
            num_items_in_batch=num_items_in_batch,
        )
        if model.training:
            self._count_training_batch(inputs, outputs, is_first_pass)
            if self.args.mask_batching == "sequential":
                self._text_targets = outputs.text_targets
        else:
            share = 1.0
            if num_items_in_batch is not None:
                # The Trainer has scaled the loss by the number of processes, but not the terms.
                outputs["loss"] = loss / self._process_weight()
                share = self.model.num_items(inputs["target_positions"]) / num_items_in_batch
            self.evaluation_totals.add(inputs, outputs, self._loss_weights(), share)
        return (loss, outputs) if return_outputs else loss

    def _count_training_batch(
        self,
        inputs: Batch,
        outputs: ModelOutput,
        is_first_pass: bool,
    ) -> None:
        totals = self.training_totals
        totals.add_terms(_loss_terms(outputs), self._process_weight())
        if is_first_pass:
            totals.add_tokens(inputs["attention_mask"])
        distances = outputs.get("distances")
        if "mask_strategies" in inputs and distances is not None:
            totals.add_distances(inputs, distances)

    def _loss_weights(self) -> dict[str, float]:
        """The weight of each term of the loss, by the name of its output."""
        config = self.model.config
        return {f"{term}_loss": getattr(config, f"{term}_loss_weight") for term in config.loss_terms}

    def _process_weight(self) -> int:
        """The factor by which the Trainer scales the loss of a process, which the mean over processes undoes."""
        if self.args.average_tokens_across_devices:
            return self.accelerator.num_processes
        return 1

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        *passes, last_pass = self._passes(inputs)
        loss = 0.0
        self._text_targets = None
        for part in passes:
            with self._without_gradient_sync(model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        loss = loss + super().training_step(model, last_pass, num_items_in_batch)
        self._text_targets = None  # they need not stay in memory
        self.step_in_progress.add(inputs, loss)
        return loss

    def _without_gradient_sync(self, model: torch.nn.Module) -> AbstractContextManager:
        """Keeps a pass from sending gradients that the last pass of the step sends with its own."""
        if self.accelerator.sync_gradients:
            return self.accelerator.no_sync(model)
        return nullcontext()

    # ---- optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """Creates the Trainer's optimizer, with learning rates of their own for the embeddings and the new modules."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if not is_new:
            return optimizer
        if self.args.predictor_learning_rate is not None:
            encoder_parameters = {id(parameter) for parameter in self.model.model.parameters()}
            others = [p for p in self.model.parameters() if id(p) not in encoder_parameters]
            _set_learning_rate(optimizer, others, self.args.predictor_learning_rate)
        if self.args.embedding_learning_rate is not None:
            embeddings = self.model.get_input_embeddings()
            _set_learning_rate(optimizer, [embeddings.weight], self.args.embedding_learning_rate)
        return optimizer

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """The parameters with weight decay: matrices, except the mask tokens."""
        names = super().get_decay_parameter_names(model)
        excluded = set()
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or name.endswith("mask_tokens"):
                excluded.add(name)
        return [name for name in names if name not in excluded]

    def _get_grad_norm(
        self,
        model: torch.nn.Module,
        grad_norm: torch.Tensor | float | None = None,
    ) -> float:
        """Judges the step just before it is made, by a loss and a gradient norm that are the same on all processes."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        loss, grad_norm = self.step_in_progress.read(grad_norm)
        # A loss scaler lets the gradient overflow now and then, and skips such steps by itself.
        may_overflow = self.accelerator.scaler is not None and self.overflows < OVERFLOW_LIMIT
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.nonfinite_steps = 0
            self.overflows = 0
            self._watch_for_spikes(model, loss, grad_norm)
        elif math.isfinite(loss) and may_overflow:
            self.overflows += 1
        else:
            self._drop_nonfinite_step(model)
        self.step_in_progress.clear()
        return grad_norm

    def _watch_for_spikes(
        self,
        model: torch.nn.Module,
        loss: float,
        grad_norm: float,
    ) -> None:
        is_spike = self.spikes.observe(
            self.state.global_step,
            loss,
            grad_norm,
            self.args.max_grad_norm,
        )
        if is_spike and self.args.skip_spikes:
            self._skip_update(model)

    def _drop_nonfinite_step(self, model: torch.nn.Module) -> None:
        """Skips the update, has the state before it saved, and keeps the batches for a closer look."""
        self.nonfinite_steps += 1
        self.control.should_save = True
        self.control.should_training_stop = self.nonfinite_steps >= NONFINITE_LIMIT
        self._skip_update(model)
        step = self.state.global_step
        folder = self.step_in_progress.save_batches(step)
        logger.warning(
            f"step {step}: the loss or its gradient is not finite; nothing was updated, the batch is in {folder}"
        )

    def _skip_update(self, model: torch.nn.Module) -> None:
        self.ema.skip_next = True
        # The optimizer does nothing to parameters without a gradient.
        model.zero_grad(set_to_none=True)

    # ---- log --------------------------------------------------------------------------------------------------------

    def begin_log(self, state: TrainerState) -> None:
        """Starts the totals of the log, or continues those of the checkpoint; called when training begins."""
        self.has_begun = True
        self.nonfinite_steps = 0
        self.overflows = 0
        # A checkpoint has the intervals of the run that left it.
        state.compute_steps(self.args, state.max_steps)
        self.training_totals.reset(state.global_step)
        saved = state.stateful_callbacks.get(_SINCE_LAST_LOG)
        if state.global_step and saved:
            self.training_totals.load_state_dict(saved)
            self._globalstep_last_logged = saved["step"]
            self._tr_loss += float(saved["loss"])
        best = state.stateful_callbacks.get(_BEST)
        if state.global_step and best:
            state.best_model_checkpoint = checkpointing.find_best(self.args.output_dir, best["path"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        is_training_record = "loss" in logs
        if is_training_record:
            logs |= self._training_figures()
        super().log(logs, start_time)
        # NaN and infinities become strings in `trainer_state.json`; callbacks have seen them as numbers.
        record = self.state.log_history.pop()
        if not is_process_summary(record):
            self.state.log_history.append(to_json_value(record))

    def _training_figures(self) -> dict[str, float]:
        """What a training record has beside the Trainer's own figures."""
        state = self.state
        if self.monitor is not None:
            self.training_totals.leave_out(self.monitor.seconds)
            self.monitor.seconds = 0.0
        figures = self.training_totals.take_record(state.global_step, state.log_history)
        # The Trainer resets this sum by subtracting it from itself, which leaves a NaN as it is.
        self._tr_loss.nan_to_num_(0.0, 0.0, 0.0)
        if self.monitor is not None:
            figures |= self.monitor.values
            if self.monitor.collapsed:
                figures["collapsed_at"] = self.monitor.warning["step"]
        figures["loss_spikes"] = self.spikes.count
        if self.ema in self.callback_handler.callbacks:
            figures["ema_decay"] = self.ema.decay(state.global_step - 1, state.max_steps)
        return figures

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        # Of several datasets, each is evaluated by a call of its own within this one.
        training_began = self.training_totals.started
        started = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        self.training_totals.started = training_began
        self.training_totals.leave_out(time.perf_counter() - started)
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        *args,
        metric_key_prefix: str = "eval",
        **kwargs,
    ) -> EvalLoopOutput:
        self.evaluation_totals = EvaluationTotals(self.args)
        # SIGReg draws random directions: the same ones in every evaluation, without a change to those of training.
        device = self.args.device
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices, device_type=device.type):
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(
                dataloader,
                *args,
                metric_key_prefix=metric_key_prefix,
                **kwargs,
            )
        for name, value in self.evaluation_totals.record(self._loss_weights()).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics=metrics, trial=trial)
        if is_best and self.args.load_best_model_at_end:
            # Also between two saves, because the weights of the next one may be worse.
            self.control.should_save = True
        # With `--save_strategy best`, this alone decides whether a step is saved.
        return is_best or self.preemption.asked

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Trains as the `Trainer` does, and warns if a checkpoint is from a run with other settings.

        Args:
            resume_from_checkpoint: The folder of a checkpoint to resume from; `True` or `"auto"` for the newest
                complete one of the output folder, `"auto"` only if there is one. Default: that of the arguments.
            *args, **kwargs: Further arguments of `Trainer.train`.

        Raises:
            UsageError: There is no complete checkpoint to resume from.
            KeyboardInterrupt: SIGINT has stopped training before its last step, with a checkpoint.
            SystemExit: SIGTERM has.
        """
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        if checkpoint is not None and self.is_world_process_zero():
            self._prepare_to_resume(Path(checkpoint))
        try:
            output = super().train(checkpoint, *args, **kwargs)
        finally:
            self.preemption.restore()
        self.preemption.end_program(self.state)
        return output

    def _find_checkpoint(self, resume: str | bool | None) -> str | None:
        if resume is None:
            resume = self.args.resume_from_checkpoint
        resume = checkpointing.resume_word(resume)
        if resume in checkpointing.RESUME_NONE:
            return None
        if resume in checkpointing.RESUME_NEWEST:
            return find_newest_checkpoint(resume, self.args)
        return resume

    def _prepare_to_resume(self, checkpoint: Path) -> None:
        """Warns of settings that differ, and sets aside the checkpoints that will be written again."""
        # That of a plain Trainer has no manifest.
        if (checkpoint / checkpointing.MANIFEST).is_file():
            problem = checkpointing.find_damage(checkpoint)
            if problem is not None:
                raise UsageError(
                    f"{checkpoint}: not a complete checkpoint ({problem}); 'auto' resumes from the newest complete one"
                )
            for difference in checkpointing.differing_settings(checkpoint, self.fingerprint):
                logger.warning(f"resuming with a change: {difference}")
        output_dir = Path(self.args.output_dir)
        if checkpoint.resolve().parent == output_dir.resolve():
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            checkpointing.set_newer_aside(output_dir, state.global_step)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads what optimizer and schedule have reached; their settings remain those of this run.

        A schedule that follows the evaluations has its settings in its state, and keeps those of the checkpoint.
        """
        own_groups = [dict(group) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._created_lr_scheduler:
            _restore_settings(self.optimizer, self.lr_scheduler, own_groups)

    def checkpoint_bytes(self) -> int:
        """The approximate size of a checkpoint: all weights, and AdamW's two moments of those that train."""
        size = 0
        for parameter in self.model.parameters():
            copies = 3 if parameter.requires_grad else 1
            size += copies * parameter.numel() * parameter.element_size()
        return size

    def _save_checkpoint(self, model: torch.nn.Module, trial) -> None:
        """Writes the Trainer's files of a checkpoint into a staging folder, which is renamed when it is complete."""
        args = self.args
        staging = checkpointing.staging_folder(args.output_dir, self.state.global_step)
        totals = self.training_totals.state_dict(self._tr_loss)
        self.state.stateful_callbacks[_SINCE_LAST_LOG] = totals
        try:
            with checkpointing.writing(args.output_dir, staging.name):
                self._write_checkpoint(staging)
        finally:
            if args.process_index == 0:
                shutil.rmtree(staging.parent, ignore_errors=True)
        if args.push_to_hub and args.hub_strategy == HubStrategy.EVERY_SAVE:
            self._push_in_background()

    def _write_checkpoint(self, staging: Path) -> None:
        output_dir = self.args.output_dir
        step = self.state.global_step
        is_first_process = self.args.process_index == 0
        if is_first_process:
            checkpointing.begin(output_dir, step, self.checkpoint_bytes())
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(Path(output_dir, staging.name))
            self.state.stateful_callbacks[_BEST] = {"path": self.state.best_model_checkpoint}
        self.accelerator.wait_for_everyone()
        self._write_weights_and_optimizer(staging)
        if is_first_process:
            self._write_state(staging)
        self.accelerator.wait_for_everyone()
        if is_first_process:
            checkpointing.complete(output_dir, step, self.fingerprint)
            checkpointing.rotate(
                output_dir,
                self.args.save_total_limit,
                self.state.best_model_checkpoint,
                step,
            )
        self.accelerator.wait_for_everyone()

    def _write_weights_and_optimizer(self, staging: Path) -> None:
        folder = str(staging)
        self.store_flos()
        if not has_adapters(self.model):
            self.save_model(folder, _internal_call=True)
        elif self.args.should_save:
            # A resumed run needs the adapters, which `save_model` would merge.
            self._save(folder, state_dict=self.model.state_dict())
        # A pickle that nothing reads.
        (staging / "training_args.bin").unlink(missing_ok=True)
        self._save_optimizer_and_scheduler(folder)
        self._save_scaler(folder)
        self._write_random_states(staging)

    def _write_random_states(self, staging: Path) -> None:
        """Has the first process write the random states of all: on other machines, this folder may not exist."""
        # Beside the other files of the checkpoint, because other disks may be full.
        place = staging if staging.is_dir() else None
        with tempfile.TemporaryDirectory(dir=place) as own:
            self._save_rng_state(own)
            files = gather_files(own, self.args)
        if self.args.process_index == 0:
            for name, content in files.items():
                (staging / name).write_bytes(content)

    def _write_state(self, staging: Path) -> None:
        state = self.state
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name = type(callback).__name__
                state.stateful_callbacks[name] = callback.state()
        state.save_to_json(str(staging / TRAINER_STATE_NAME))
        write_card_info(staging, describe_run(self))

    # ---- export and publication -------------------------------------------------------------------------------------

    @property
    def weights_step(self) -> int:
        """The step that the model's weights are from: the last, or the best after `load_best_model_at_end`."""
        best = self.state.best_model_checkpoint
        has_best_weights = self.args.load_best_model_at_end and not self.is_in_train
        if has_best_weights and best is not None:
            return checkpointing.step_of(Path(best))
        return self.state.global_step

    def export(self, output_dir: str | Path) -> None:
        """Writes the current encoder and its tokenizer into a folder, with the model card, the curves and the log."""
        which = self.card_info.get("which", "target")
        max_length = describe_run(self)["max_length"]
        if not max_length:
            max_length = self.processing_class.model_max_length
        export_encoder(
            self.model,
            self.processing_class,
            output_dir,
            max_length,
            which,
            kept_head(self.card_info),
        )
        self.write_card(output_dir, which)

    def write_card(self, output_dir: str | Path, exported: str | None) -> None:
        """Writes the card, the curves and the log of the run so far into a folder.

        Args:
            output_dir: The folder.
            exported: The encoder in the folder, `"target"` or `"context"`; `None` for the complete model.
        """
        run_metrics = metrics_file(self.args.output_dir)
        copied_metrics = metrics_file(output_dir)
        if run_metrics.resolve() != copied_metrics.resolve():
            shutil.copy(run_metrics, copied_metrics)
        card_info = describe_run(self)
        if exported is None:
            write_card_info(output_dir, card_info)
        write_model_card(
            output_dir,
            self.model,
            read_metrics(output_dir),
            card_info,
            exported,
        )

    def create_model_card(self, *args, **kwargs) -> None:
        """Does nothing: `export` writes the card, and the Trainer would overwrite it with its own."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository before the first step, so that a missing permission is noticed early."""
        if not self.is_world_process_zero():
            return
        args = self.args
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        if private is None:
            private = args.hub_private_repo
        self.hub_model_id = hub.create_repository(name, private, token or args.hub_token)
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str | None:
        """Publishes the current encoder with its card in one commit; the output folder does not change.

        Returns:
            The URL of the commit; `None` on all processes but the first.

        Raises:
            UsageError: It could not be published.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        with tempfile.TemporaryDirectory() as folder:
            self.export(folder)
            return hub.push_folder(
                folder,
                self.hub_model_id,
                revision=revision or self.args.hub_revision,
                message=commit_message,
                token=token or self.args.hub_token,
            )

    def _push_in_background(self) -> None:
        """Publishes the encoder in the background, unless the previous upload is still running."""
        if not self.is_world_process_zero():
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not self.args.hub_always_push:
            return
        message = f"Step {self.state.global_step}"
        folder = tempfile.mkdtemp()
        try:
            self.export(folder)
        except Exception as error:  # disks, safetensors and tokenizers have errors of their own
            logger.warning(f"{message}: {self.hub_model_id} was not published: {first_line(error)}")
            shutil.rmtree(folder, ignore_errors=True)
            return
        self.push_in_progress = hub.push_in_background(
            folder,
            self.hub_model_id,
            message,
            self.args.hub_revision,
            self.args.hub_token,
        )


def _check_arguments(args: TextJepaTrainingArguments, compute_metrics: Callable | None) -> None:
    if not isinstance(args, TextJepaTrainingArguments):
        raise TypeError(f"args: expected TextJepaTrainingArguments, got {type(args).__name__}")
    if compute_metrics is not None:
        raise ValueError(
            "compute_metrics would never be called, because evaluation computes losses only; compute metrics in the "
            "on_evaluate of a callback, as OnlineProbeCallback does"
        )


def _check_mask_tokens(
    model: TextJepaForPreTraining,
    collator: DataCollatorForTextJepa,
) -> None:
    if model.predictor is None:
        return
    strategies = len(collator.strategies)
    mask_tokens = model.config.pred_num_mask_tokens
    if strategies > mask_tokens:
        raise ValueError(
            f"the collator has {strategies} mask strategies, the model {mask_tokens} mask tokens; "
            f"set pred_num_mask_tokens={strategies}"
        )


def _check_view(model: TextJepaForPreTraining, collator: DataCollatorForTextJepa) -> None:
    if model.config.document_loss_weight > 0 and collator.view is None:
        raise ValueError(
            "the document loss predicts the view of a text, and the collator makes none: give it "
            "view=ViewStrategy('rest')"
        )


def looks_at_whole_batches(model: TextJepaForPreTraining, collator: DataCollatorForTextJepa) -> bool:
    """Whether the loss of a text depends on its batch, through other texts or through masks cut to one size."""
    return model.compares_texts or collator.equal_counts


def _loss_terms(outputs: ModelOutput) -> dict[str, torch.Tensor]:
    return {name: value for name, value in outputs.items() if name.endswith("_loss")}


def _set_learning_rate(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
    learning_rate: float,
) -> None:
    """Moves parameters into optimizer groups that differ from their old ones in nothing but the learning rate."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        kept = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        if moved:
            group["params"] = kept
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})


def _restore_settings(
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    own_groups: Sequence[Mapping[str, Any]],
) -> None:
    """Gives an optimizer and its schedule back the settings that those of a checkpoint have replaced.

    Args:
        optimizer: The optimizer.
        schedule: The schedule, which the Trainer has made.
        own_groups: The groups of the optimizer before the checkpoint was loaded.
    """
    groups = optimizer.param_groups
    for group, own in zip(groups, own_groups, strict=True):
        group.update({name: own[name] for name in _SETTINGS if name in own})
    # A schedule that follows the evaluations goes on from the rate that it has reached.
    if isinstance(schedule, LambdaLR):
        schedule.base_lrs = [group["initial_lr"] for group in groups]
        for group, factor in zip(groups, schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]
