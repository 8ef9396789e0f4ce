"""`TextJepaTrainer`: the standard `Trainer` with target encoder updates, collapse monitor and complete checkpoints."""

import copy
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, IntervalStrategy
from transformers.utils import ModelOutput
from transformers.utils.hub import PushInProgress

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, has_adapters
from text_jepa.cli import UsageError
from text_jepa.data.batching import BatchesOfProcesses, LengthGroupedSampler, TextsWithSteps
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.sentence_head import kept_head
from text_jepa.share import hub
from text_jepa.share.export import export_encoder
from text_jepa.share.model_card import describe_run, write_card_info, write_model_card
from text_jepa.train import checkpointing
from text_jepa.train.adapters import below_adapters
from text_jepa.train.arguments import TextJepaTrainingArguments, fingerprint_of_arguments
from text_jepa.train.callbacks import (
    NONFINITE_LIMIT,
    EmaTargetEncoderCallback,
    PreemptionCallback,
    ProgressLineCallback,
    SpikeCallback,
    WeightDecayCallback,
    shield_worker_from_signals,
)
from text_jepa.train.collapse import MONITOR_TEXTS, CollapseMonitorCallback
from text_jepa.train.hosts import gather_files
from text_jepa.train.run_log import (
    EvaluationTotals,
    MetricsFileCallback,
    TrainingTotals,
    is_process_summary,
    metrics_file,
    read_metrics,
    to_json_value,
)


logger = logging.getLogger(__name__)

Batch = Mapping[str, torch.Tensor]

# The tensors of a batch that have a dimension for masks, (B, M, …).
_MASK_TENSORS = (
    "context_positions",
    "target_positions",
    "target_spans",
    "mask_strategies",
)

# The key under which `trainer_state.json` keeps what the log has summed since its last record.
_SINCE_LAST_LOG = "since_last_log"


class _LogAndEpochCallback(TrainerCallback):
    """Starts the log with the run, and the masks with each pass over the data; the last step is always logged."""

    def __init__(self, trainer: "TextJepaTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_log(state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Always 0 for a stream, whose examples carry their own epoch.
        epoch = int(state.epoch or 0)
        self.trainer.data_collator.epoch = epoch
        # accelerate does not find the sampler behind all of its wrappers.
        if self.trainer.train_sampler is not None:
            self.trainer.train_sampler.set_epoch(epoch)

    def on_step_end(self, args, state, control, **kwargs):
        # A signal ends the run later in this event: its record goes on when the run is resumed.
        if control.should_training_stop and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True


# Private methods of the Trainer that this class extends: `_get_dataloader` and `_get_train_sampler` (order of the
# texts and the share of each process), `_get_num_items_in_batch` (target tokens of a step), `_get_grad_norm` (called
# last before the optimizer's step) and `_save_checkpoint`, whose parts `_save`, `_save_optimizer_and_scheduler`,
# `_save_scaler` and `_save_rng_state` it calls. It reads `_tr_loss` and `_globalstep_last_logged`, to continue a log,
# and `_finish_current_push`. Tests with the oldest and the newest transformers fail if one of them changes.
class TextJepaTrainer(Trainer):
    """The standard `Trainer` for a [`TextJepaForPreTraining`].

    Losses are normalized by the number of target tokens of all accumulated batches of all processes, and every term is
    logged under its name. Texts are grouped by length. Evaluation uses masks that never change.

    A step whose gradient is not finite changes neither the weights nor the target encoder: its batches are kept in
    `nonfinite/`, a checkpoint of the state before it is saved, and after three such steps in a row the run stops.

    A checkpoint counts only if it is complete, see `text_jepa.train.checkpointing`. SIGTERM and SIGINT end the run
    with a checkpoint.

    Args:
        model: The model to train.
        args: The training arguments.
        data_collator: The collator, which makes the masks.
        train_dataset: Examples with `input_ids`. A column `length` of their numbers of tokens saves counting them.
        eval_dataset: Held-out examples. The first ones are watched for collapse.
        fingerprint: Settings that a resumed run must share, in addition to those among `args`.
        card_info: Entries of the model card that the trainer does not know, see `describe_run`. `"which"` is the
            encoder to export, `"target"` (the default) or `"context"`.
        **kwargs: Further arguments of `Trainer`.

    Attributes:
        nonfinite_steps: Number of latest steps in a row whose gradient was not finite.
        has_begun: Whether the Trainer has set up everything and begun to train.

    Raises:
        ValueError: The collator has more mask strategies than the predictor has mask tokens.
    """

    def __init__(
        self,
        model: TextJepaForPreTraining,
        args: TextJepaTrainingArguments,
        data_collator: DataCollatorForTextJepa,
        train_dataset: Dataset | Iterable,
        eval_dataset: Dataset | Iterable | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        card_info: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        model = below_adapters(model)
        _check_mask_tokens(model, data_collator)
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
        # Transformers looks for a parameter of this name, which a `forward(*args, **kwargs)` does not show.
        self.can_return_loss = True
        self.card_info = dict(card_info or {})
        self.fingerprint = fingerprint_of_arguments(args)
        self.fingerprint["order"] = checkpointing.ORDER
        self.fingerprint |= fingerprint or {}
        self.training_totals = TrainingTotals(args, data_collator.strategy_names)
        self.evaluation_totals = EvaluationTotals(args)

        # The batches and the summed loss since the last optimizer step.
        self._batches: list[Batch] = []
        self._step_loss: torch.Tensor | float = 0.0
        # Targets of whole texts that the first mask of a batch shares with the others, if they are trained in turn.
        self._text_targets: tuple[torch.Tensor | None, ...] | None = None
        self.nonfinite_steps = 0
        self.has_begun = False
        self._add_callbacks(eval_dataset)

    def _add_callbacks(self, eval_dataset: Dataset | Iterable | None) -> None:
        args = self.args
        config = self.model.config
        self.ema = EmaTargetEncoderCallback(
            args.ema_schedule,
            args.ema_decay_start,
            args.ema_decay_end,
            args.ema_frozen_steps,
        )
        self.monitor: CollapseMonitorCallback | None = None
        self.spikes = SpikeCallback()
        self.preemption = PreemptionCallback()

        self.remove_callback(PrinterCallback)
        # In notebooks the default is another callback.
        self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(_LogAndEpochCallback(self))
        if config.target_encoder_type == "ema" and self.model.target_encoder is not None:
            self.add_callback(self.ema)
        if args.weight_decay_end is not None:
            self.add_callback(WeightDecayCallback(args.weight_decay, args.weight_decay_end))
        if eval_dataset is not None:
            self.monitor = self.pop_callback(CollapseMonitorCallback) or CollapseMonitorCallback()
            self._set_up_monitor(eval_dataset)
            # After the callbacks that decide whether a step is logged.
            self.add_callback(self.monitor)
        self.add_callback(ProgressLineCallback())
        self.add_callback(MetricsFileCallback())
        self.add_callback(self.spikes)
        self.add_callback(self.preemption)

    def _set_up_monitor(self, eval_dataset: Dataset | Iterable) -> None:
        monitor = self.monitor
        monitor.stop_on_collapse |= self.args.stop_on_collapse
        monitor.autocast = self.accelerator.autocast
        if monitor.batch is None:
            count = min(MONITOR_TEXTS, self.args.per_device_eval_batch_size)
            examples = list(islice(eval_dataset, count))
            monitor.batch = self.eval_collator(examples)

    # ---- data -------------------------------------------------------------------------------------------------------

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        is_evaluation = self.data_collator is self.eval_collator
        if is_evaluation and looks_at_whole_batches(self.model.config, self.data_collator):
            # As many texts are compared as in training, whatever fits into an evaluation batch.
            kwargs["batch_size"] = self.args.train_batch_size
        loader = super()._get_dataloader(*args, **kwargs)
        inner = loader.base_dataloader
        inner.worker_init_fn = partial(shield_worker_from_signals, inner.worker_init_fn)
        if isinstance(inner.batch_sampler, BatchSamplerShard):
            self._share_texts(inner.batch_sampler)
        return loader

    def _share_texts(self, shard: BatchSamplerShard) -> None:
        """Gives the processes together the texts of a single one; accelerate would repeat texts to fill batches.

        Args:
            shard: The sampler of this process's share of all batches.
        """
        batches = shard.batch_sampler
        is_training = batches.sampler is self.train_sampler
        shard.batch_sampler = BatchesOfProcesses(
            batches.sampler,
            batches.batch_size,
            shard.num_processes,
            self.args.gradient_accumulation_steps if is_training else 1,
        )
        # Batches may differ in size; every process gets the same number.
        shard.batch_size = None
        shard.even_batches = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "__len__"):
            return None
        args = self.args
        self.train_sampler = LengthGroupedSampler(
            _lengths_of(dataset),
            args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            args.seed if args.data_seed is None else args.data_seed,
            with_steps=self.data_collator.follows_steps,
            drop_last=args.dataloader_drop_last,
        )
        return self.train_sampler

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        training_collator = self.data_collator
        self.data_collator = self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    # ---- loss -------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(
        self,
        batch_samples: Sequence[Batch],
        device: torch.device,
    ) -> torch.Tensor | None:
        """Counts the target tokens of all accumulated batches of all processes; a pass without any counts as one."""
        if not batch_samples:
            return None
        counts = []
        for batch in batch_samples:
            for part in self._passes(batch):
                is_target = part["target_positions"] >= 0
                counts.append(is_target.sum().clamp(min=1))
        count = sum(counts).to(device)
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            count = self.accelerator.gather(count).sum()
        return count

    def _passes(self, batch: Batch) -> list[Batch]:
        """The batches that a batch (B, M, …) is trained on: itself, or one for each mask."""
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
        else:
            if num_items_in_batch is not None:
                # The Trainer has scaled the loss in place; the terms are as the model returned them.
                outputs["loss"] = loss / self._process_weight()
            self.evaluation_totals.add(inputs, outputs, self._loss_weights(), num_items_in_batch)
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
            if self.args.mask_batching == "sequential":
                self._text_targets = outputs.text_targets
        distances = outputs.get("distances")
        if "mask_strategies" in inputs and distances is not None:
            totals.add_distances(inputs, distances)

    def _loss_weights(self) -> dict[str, float]:
        """The weight of each term of the loss, by the name of its output."""
        config = self.model.config
        return {f"{term}_loss": getattr(config, f"{term}_loss_weight") for term in config.loss_terms}

    def _process_weight(self) -> int:
        """The factor of a process's terms that the mean over processes undoes, as it does for the loss itself."""
        if self.args.average_tokens_across_devices:
            return self.accelerator.num_processes
        return 1

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._batches.append(inputs)
        parts = self._passes(inputs)
        loss = 0.0
        for part in parts[:-1]:
            with self._without_gradient_sync(model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        loss = loss + super().training_step(model, parts[-1], num_items_in_batch)
        self._text_targets = None
        self._step_loss = self._step_loss + loss
        return loss

    def _without_gradient_sync(self, model: torch.nn.Module) -> AbstractContextManager:
        """For all passes but the last, which sends the gradients of all unless more batches follow."""
        if self.accelerator.sync_gradients:
            return self.accelerator.no_sync(model)
        return nullcontext()

    # ---- optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """Makes the Trainer's AdamW, with separate learning rates for the embeddings and the new modules if asked."""
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
        """Checks loss and gradient norm, which are the same on all ranks, just before the optimizer's step."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        batches = self._batches
        self._batches = []
        loss, grad_norm = self._read_step(grad_norm)
        if not math.isfinite(loss):
            self._drop_nonfinite_step(model, batches)
        elif math.isfinite(grad_norm):
            self.nonfinite_steps = 0
            self._watch_for_spikes(model, loss, grad_norm)
        elif self.accelerator.scaler is None:
            self._drop_nonfinite_step(model, batches)
        # A loss scaler expects the gradient to overflow now and then, and skips such steps by itself.
        return grad_norm

    def _read_step(self, grad_norm: torch.Tensor | float) -> tuple[float, float]:
        """Loss and gradient norm of the step, for the host."""
        losses = nested_gather(self._step_loss, self.args.parallel_mode)
        loss = losses.mean()
        self._step_loss = 0.0
        grad_norm = torch.as_tensor(grad_norm, device=loss.device)
        # FSDP2 gives a sharded one.
        if hasattr(grad_norm, "full_tensor"):
            grad_norm = grad_norm.full_tensor()
        # The only point of a step at which the host waits for the device.
        loss, grad_norm = torch.stack([loss, grad_norm]).tolist()
        return loss, grad_norm

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

    def _skip_update(self, model: torch.nn.Module) -> None:
        self.ema.skip_next = True
        # Without gradients the optimizer leaves everything as it is.
        model.zero_grad(set_to_none=True)

    def _drop_nonfinite_step(self, model: torch.nn.Module, batches: Sequence[Batch]) -> None:
        """Leaves out a step, saves the state before it, and keeps its batches for a closer look."""
        self.nonfinite_steps += 1
        self.control.should_save = True
        self.control.should_training_stop = self.nonfinite_steps == NONFINITE_LIMIT
        self._skip_update(model)

        step = self.state.global_step
        rank = self.args.process_index
        folder = Path(self.args.output_dir, "nonfinite")
        folder.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            path = folder / f"step{step}-rank{rank}-{number}.safetensors"
            tensors = {name: value.cpu().contiguous() for name, value in batch.items()}
            save_file(tensors, path)
        logger.warning(
            f"step {step}: the loss or its gradient is not finite; nothing was updated, the batch is in {folder}"
        )

    # ---- log --------------------------------------------------------------------------------------------------------

    def begin_log(self, state: TrainerState) -> None:
        """Starts the sums of the log, or continues those of the checkpoint."""
        self.has_begun = True
        self.training_totals.reset(state.global_step)
        saved = state.stateful_callbacks.get(_SINCE_LAST_LOG)
        if state.global_step and saved:
            self.training_totals.load_state_dict(saved)
            self._globalstep_last_logged = saved["step"]
            self._tr_loss += float(saved["loss"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        is_training_record = "loss" in logs
        if is_training_record:
            logs |= self._training_figures()
        super().log(logs, start_time)
        # `trainer_state.json` gets strings for NaN and infinities, while callbacks have got numbers.
        record = self.state.log_history.pop()
        if not is_process_summary(record):
            self.state.log_history.append(to_json_value(record))

    def _training_figures(self) -> dict[str, float]:
        """The figures that a record of training has in addition to the Trainer's own."""
        state = self.state
        figures = self.training_totals.take_record(state.global_step, state.log_history)
        # The Trainer resets its sum by subtracting it from itself, which a NaN survives.
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
        started = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
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
        # SIGReg draws directions: the same ones at every evaluation, and none that training would have drawn.
        with torch.random.fork_rng():
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

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.preemption.restore()

    def checkpoint_bytes(self) -> int:
        """The approximate size of a checkpoint: all weights, and AdamW's two moments of those that train."""
        size = 0
        for parameter in self.model.parameters():
            copies = 3 if parameter.requires_grad else 1
            size += copies * parameter.numel() * parameter.element_size()
        return size

    def _save_checkpoint(self, model: torch.nn.Module, trial) -> None:
        """Writes what the Trainer's own method writes into a staging folder, and renames it when it is complete."""
        args = self.args
        name = f"checkpoint-{self.state.global_step}"
        staging = Path(args.output_dir, checkpointing.STAGING, name)
        totals = self.training_totals.state_dict(self._tr_loss)
        self.state.stateful_callbacks[_SINCE_LAST_LOG] = totals
        try:
            with checkpointing.writing(args.output_dir, name):
                self._write_checkpoint(staging)
        finally:
            if args.process_index == 0:
                shutil.rmtree(staging.parent, ignore_errors=True)
        if args.push_to_hub and args.hub_strategy == HubStrategy.EVERY_SAVE:
            self._push_from_checkpoint(name)

    def _write_checkpoint(self, staging: Path) -> None:
        output_dir = self.args.output_dir
        is_first_process = self.args.process_index == 0
        if is_first_process:
            checkpointing.begin(output_dir, self.state.global_step, self.checkpoint_bytes())
        self.accelerator.wait_for_everyone()
        self._write_weights_and_optimizer(staging)
        if is_first_process:
            self._write_state(staging)
        self.accelerator.wait_for_everyone()
        if is_first_process:
            checkpointing.complete(staging, output_dir, self.fingerprint)
            checkpointing.rotate(
                output_dir,
                self.args.save_total_limit,
                self.state.best_model_checkpoint,
                self.state.global_step,
            )
        self.accelerator.wait_for_everyone()

    def _write_weights_and_optimizer(self, staging: Path) -> None:
        folder = str(staging)
        self.store_flos()
        if not has_adapters(self.model):
            self.save_model(folder, _internal_call=True)
        elif self.args.should_save:
            # Unmerged, as a resumed run needs them.
            self._save(folder, state_dict=self.model.state_dict())
        # A pickle, which nothing reads.
        (staging / "training_args.bin").unlink(missing_ok=True)
        self._save_optimizer_and_scheduler(folder)
        self._save_scaler(folder)
        self._write_random_states(staging)

    def _write_random_states(self, staging: Path) -> None:
        """Writes those of all processes on the first one, whose folder others may not share."""
        with tempfile.TemporaryDirectory() as own:
            self._save_rng_state(own)
            files = gather_files(own, self.args)
        if self.args.process_index == 0:
            for name, content in files.items():
                (staging / name).write_bytes(content)

    def _write_state(self, staging: Path) -> None:
        state = self.state
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(Path(self.args.output_dir, staging.name))
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name = type(callback).__name__
                state.stateful_callbacks[name] = callback.state()
        state.save_to_json(str(staging / TRAINER_STATE_NAME))
        write_card_info(staging, describe_run(self))

    # ---- export and publication -------------------------------------------------------------------------------------

    @property
    def weights_step(self) -> int:
        """The step whose weights the model has: the last one, or the best one after a run that loads it at its end."""
        has_best_weights = self.args.load_best_model_at_end and not self.is_in_train
        if has_best_weights and self.state.best_global_step:
            return self.state.best_global_step
        return self.state.global_step

    def export(self, output_dir: str | Path) -> None:
        """Writes the current encoder, its tokenizer and the model card with curves and log into a folder."""
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
        """Writes card, curves and log of the run so far into a folder.

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
        """Does nothing: `export` writes the card, which the Trainer would replace by its own."""

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
        """Publishes the current encoder with its card in one commit. The folder of the run stays as it is.

        Returns:
            The address of the commit; `None` on other processes than the first.

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
            return self._push(folder, commit_message, token, revision)

    def _push(
        self,
        folder: str,
        message: str,
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        return hub.push_folder(
            folder,
            self.hub_model_id,
            revision=revision or self.args.hub_revision,
            message=message,
            token=token or self.args.hub_token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes the encoder in the background, unless the previous upload is still running."""
        if not self.is_world_process_zero():
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not self.args.hub_always_push:
            return
        folder = tempfile.mkdtemp()
        self.export(folder)
        message = f"Step {self.state.global_step}"
        upload = HfApi().run_as_future(self._push_or_warn, folder, message)
        self.push_in_progress = PushInProgress([upload])

    def _push_or_warn(self, folder: str, message: str) -> None:
        try:
            self._push(folder, message)
        except UsageError as error:
            logger.warning(f"{message}: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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


def looks_at_whole_batches(config: TextJepaConfig, collator: DataCollatorForTextJepa) -> bool:
    """Whether the loss of a text depends on the other texts of its batch: negatives, statistics, masks of one size."""
    return config.compares_texts or collator.equal_counts


def _lengths_of(dataset: Dataset) -> Sequence[int]:
    """The number of tokens of each example: the column `length`, or counted if there is none."""
    try:
        return dataset["length"]
    except (KeyError, TypeError, ValueError):
        return [len(dataset[row]["input_ids"]) for row in range(len(dataset))]


def _loss_terms(outputs: ModelOutput) -> dict[str, torch.Tensor]:
    return {name: value for name, value in outputs.items() if name.endswith("_loss")}


def _set_learning_rate(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
    learning_rate: float,
) -> None:
    """Moves parameters into optimizer groups with the settings of their own groups and another learning rate."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        kept = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        if moved:
            group["params"] = kept
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})


def split_masks(batch: Batch) -> list[dict[str, torch.Tensor]]:
    """Splits a batch with M masks of each text (B, M, …) into M batches of the same texts with one mask (B, 1, …)."""
    names = [name for name in _MASK_TENSORS if name in batch]
    num_masks = batch[names[0]].shape[1]
    parts = []
    for mask in range(num_masks):
        part = dict(batch)
        for name in names:
            part[name] = batch[name][:, mask : mask + 1]
        parts.append(part)
    return parts
