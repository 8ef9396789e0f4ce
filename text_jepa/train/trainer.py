"""Training: arguments with our defaults, the moving average, the collapse monitor and the trainer that joins them."""

import copy
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from text_jepa.cli import UsageError
from text_jepa.data.batching import LengthGroupedSampler, TextsWithSteps
from text_jepa.share import hub
from text_jepa.share.export import export_encoder
from text_jepa.share.model_card import describe_run, write_card_info, write_model_card
from text_jepa.train import callbacks, checkpointing
from text_jepa.train.arguments import fingerprint_of_arguments
from text_jepa.train.callbacks import (
    NONFINITE_LIMIT,
    EmaTargetEncoderCallback,
    ProgressLineCallback,
    SpikeCallback,
    WeightDecayCallback,
)
from text_jepa.train.collapse import MONITOR_TEXTS, CollapseMonitorCallback
from text_jepa.train.run_log import (
    SPAN_LENGTHS,
    MetricsFileCallback,
    metrics_file,
    read_metrics,
    sums_by_length,
    to_json_value,
)


logger = logging.getLogger(__name__)

# What a batch holds of each mask.
_OF_MASKS = ("context_positions", "target_positions", "target_spans", "mask_strategies")

# Where a checkpoint keeps what the log has added up since its last record.
_SINCE_LAST_LOG = "since_last_log"


class _BeginningCallback(TrainerCallback):
    """Tells the trainer where a run begins, and the order of the texts and the masks where a pass does."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_log(state)

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

    A checkpoint counts only when it is whole, see `text_jepa.checkpointing`; SIGTERM and SIGINT end the run with one.

    Args:
        facts: What a run that goes on from a checkpoint has to agree with, beside what is known here.
        about: What the model card says beside what is known here, see `describe_run`; and `which`, the encoder to be
            exported: `"target"` (the default) or `"context"`.

    Attributes:
        nonfinite_steps: Steps in a row, up to now, whose gradient was not finite.
    """

    def __init__(
        self, model, args, data_collator, train_dataset, eval_dataset=None, fingerprint=None, card_info=None, **kwargs
    ):
        self.train_sampler: LengthGroupedSampler | None = None
        self.eval_collator = copy.deepcopy(data_collator)
        self.eval_collator.epoch = -1
        self._terms: dict[str, torch.Tensor] = {}
        self._step_loss: torch.Tensor | float = 0.0
        self._by_length, self._eval_texts = torch.zeros(2, len(SPAN_LENGTHS)), torch.tensor(0)
        self._by_strategy = torch.zeros(2, len(data_collator.strategy_names))
        self._tokens = torch.zeros((), dtype=torch.long)
        self._batches: list[Mapping[str, torch.Tensor]] = []
        self._text_targets: tuple[torch.Tensor | None, ...] | None = None
        self.nonfinite_steps = 0
        self.steps_logged, self.clock = 0, None
        self.card_info = card_info or {}
        strategies, mask_tokens = len(data_collator.strategies), model.config.pred_num_mask_tokens
        if model.predictor is not None and strategies > mask_tokens:
            raise ValueError(
                f"the collator has {strategies} mask strategies, the model {mask_tokens} mask tokens; "
                f"set pred_num_mask_tokens={strategies}"
            )
        if data_collator.follows_steps and hasattr(train_dataset, "__len__"):
            train_dataset = TextsWithSteps(train_dataset)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)
        schedule = (args.ema_schedule, args.ema_decay_start, args.ema_decay_end)
        self.ema = EmaTargetEncoderCallback(*schedule, args.ema_frozen_steps)
        self.monitor = None
        self.fingerprint = fingerprint_of_arguments(args) | (fingerprint or {})
        self.preemption, self.spikes = callbacks.PreemptionCallback(), SpikeCallback()
        self.remove_callback(PrinterCallback)
        self.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # in notebooks another one
        self.add_callback(_BeginningCallback(self))
        if model.config.target_encoder_type == "ema" and model.target_encoder is not None:
            self.add_callback(self.ema)
        if args.weight_decay_end is not None:
            self.add_callback(WeightDecayCallback(args.weight_decay, args.weight_decay_end))
        if eval_dataset is not None:
            count = min(MONITOR_TEXTS, args.per_device_eval_batch_size)
            texts = [example for example, _ in zip(eval_dataset, range(count), strict=False)]
            batch, stop, cast = self.eval_collator(texts), args.stop_on_collapse, self.accelerator.autocast
            self.monitor = CollapseMonitorCallback(batch, stop, autocast=cast)
            self.add_callback(self.monitor)
        self.add_callback(ProgressLineCallback())
        self.add_callback(MetricsFileCallback())
        self.add_callback(self.spikes)
        self.add_callback(self.preemption)

    # -- checkpoints

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.preemption.restore()

    def bytes_of_checkpoint(self) -> int:
        """The weights, and two moments of those that train."""
        return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in self.model.parameters())

    def _save_checkpoint(self, model, trial):
        """What the Trainer's own method saves, written beside its place and moved there when it is whole."""
        args, state, first = self.args, self.state, self.args.process_index == 0
        name = f"checkpoint-{state.global_step}"
        staging = Path(args.output_dir, checkpointing.STAGING, name)
        state.stateful_callbacks[_SINCE_LAST_LOG] = self._since_last_log()
        try:
            with checkpointing.writing(args.output_dir, name):
                self._write_checkpoint(name, staging)
        finally:
            if first:
                shutil.rmtree(staging.parent, ignore_errors=True)
        if args.push_to_hub and args.hub_strategy == HubStrategy.EVERY_SAVE:
            self._push_from_checkpoint(name)

    def _write_checkpoint(self, name, staging):
        args, state, first = self.args, self.state, self.args.process_index == 0
        if first:
            checkpointing.begin(args.output_dir, state.global_step, self.bytes_of_checkpoint())
        self.accelerator.wait_for_everyone()
        self.store_flos()
        self.save_model(str(staging), _internal_call=True)
        (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads
        self._save_optimizer_and_scheduler(str(staging))
        self._save_scaler(str(staging))
        self._save_rng_state(str(staging))
        if first:
            if state.best_global_step == state.global_step:
                state.best_model_checkpoint = str(Path(args.output_dir, name))
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    state.stateful_callbacks[type(callback).__name__] = callback.state()
            state.save_to_json(str(staging / TRAINER_STATE_NAME))
            write_card_info(staging, describe_run(self))
        self.accelerator.wait_for_everyone()
        if first:
            checkpointing.complete(staging, args.output_dir, self.fingerprint)
            best = state.best_model_checkpoint
            checkpointing.rotate(args.output_dir, args.save_total_limit, best, state.global_step)
        self.accelerator.wait_for_everyone()

    # -- sharing

    @property
    def weights_step(self) -> int:
        """The step whose weights the model has: the last one, or after a run that keeps the best weights theirs."""
        best = self.state.best_global_step if self.args.load_best_model_at_end and not self.is_in_train else None
        return best or self.state.global_step

    def export(self, output_dir: str | Path) -> None:
        """Writes the encoder as it is now, its tokenizer and the card with curves and log into a folder."""
        which = self.card_info.get("which", "target")
        max_length = describe_run(self)["max_length"] or self.processing_class.model_max_length
        export_encoder(self.model, self.processing_class, output_dir, max_length, which)
        self.write_card(output_dir, which)

    def write_card(self, output_dir: str | Path, exported: str | None) -> None:
        """Writes card, curves and log of the run so far into a folder, see `write_model_card`."""
        source, copy_ = metrics_file(self.args.output_dir), metrics_file(output_dir)
        if source.resolve() != copy_.resolve():
            shutil.copy(source, copy_)
        facts = describe_run(self)
        if exported is None:
            write_card_info(output_dir, facts)
        write_model_card(output_dir, self.model, read_metrics(output_dir), facts, exported)

    def create_model_card(self, *args, **kwargs):
        """Nothing: the card comes with the encoder, see `export`. The Trainer would put a stub over it."""

    def init_hf_repo(self, token=None, private=None):
        """Makes the repository before the first step, so that a missing right is known then."""
        if self.is_world_process_zero():
            args = self.args
            name = args.hub_model_id or Path(args.output_dir).absolute().name
            private = args.hub_private_repo if private is None else private
            self.hub_model_id = hub.create_repository(name, private, token or args.hub_token)
            self.push_in_progress = None

    def push_to_hub(self, commit_message="End of training", token=None, revision=None, private=None):
        """Publishes the encoder as it is now with its card, in one commit; the folder of the run is not touched.

        Returns:
            The address of the commit; `None` on other processes than the first.

        Raises:
            UsageError: It was not published.
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

    def _push(self, folder, message, token=None, revision=None):
        revision = revision or self.args.hub_revision
        return hub.push_folder(
            folder, self.hub_model_id, revision=revision, message=message, token=token or self.args.hub_token
        )

    def _push_from_checkpoint(self, checkpoint_folder):
        """Publishes the encoder in the background, unless the last one is still on its way; a failure is a warning."""
        if not self.is_world_process_zero():
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not self.args.hub_always_push:
            return
        folder = tempfile.mkdtemp()
        self.export(folder)
        self.push_in_progress = PushInProgress(
            [HfApi().run_as_future(self._push_quietly, folder, f"Step {self.state.global_step}")]
        )

    def _push_quietly(self, folder, message):
        try:
            self._push(folder, message)
        except UsageError as error:
            logger.warning(f"{message}: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # -- data

    def _get_dataloader(self, *args, **kwargs):
        loader = super()._get_dataloader(*args, **kwargs)
        inside = loader.base_dataloader
        inside.worker_init_fn = partial(callbacks.heed_only_the_parent, inside.worker_init_fn)
        return loader

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "__len__"):
            return None
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        size, texts_per_step = self.args.per_device_train_batch_size, None
        if self.data_collator.follows_steps:
            texts_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.train_sampler = LengthGroupedSampler(dataset["length"], size, seed, texts_per_step=texts_per_step)
        return self.train_sampler

    def get_eval_dataloader(self, eval_dataset=None):
        collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    # -- loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Target tokens of all accumulated batches of all processes; a pass without any counts as one."""
        if not batch_samples:
            return None
        passes = [part for batch in batch_samples for part in self._passes(batch)]
        count = sum((part["target_positions"] >= 0).sum().clamp(min=1) for part in passes).to(device)
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            count = self.accelerator.gather(count).sum()
        return count

    def _passes(self, batch):
        """The batches that a batch (B, M, …) is trained on: itself, or one of each mask."""
        return split_masks(batch) if self.args.mask_batching == "sequential" else [batch]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        is_first_pass = self._text_targets is None
        if model.training and not is_first_pass and self.model.config.target_encoder_type != "online":
            inputs = {**inputs, "text_targets": self._text_targets}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        terms = {name: value for name, value in outputs.items() if name.endswith("_loss")}
        # The mean over processes undoes the first factor, as it does for the loss itself. In evaluation the mean over
        # texts is wanted.
        weight = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        weight = weight if model.training else weight * len(inputs["input_ids"])
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0) + weight * value.detach()
        if model.training:
            if is_first_pass:
                self._tokens = self._tokens.to(loss.device) + inputs["attention_mask"].sum()
                self._text_targets = outputs.text_targets if self.args.mask_batching == "sequential" else None
            if "mask_strategies" in inputs and outputs.get("distances") is not None:
                self._count_strategies(inputs, outputs["distances"].detach())
        else:
            self._eval_texts = self._eval_texts + len(inputs["input_ids"])
        if not model.training and outputs.get("distances") is not None:
            self._by_length = self._by_length.to(loss.device) + sums_by_length(inputs, outputs["distances"])
        return (loss, outputs) if return_outputs else loss

    def _count_strategies(self, inputs, distances):
        """Adds the latent losses (B, M, T) and target tokens of a batch to the sums of their strategies."""
        found = torch.stack([distances.sum(-1), (inputs["target_positions"] >= 0).sum(-1).to(distances.dtype)])
        sums = self._by_strategy.to(distances.device)
        self._by_strategy = sums.index_add(1, inputs["mask_strategies"].flatten(), found.flatten(1).to(sums.dtype))

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._batches.append(inputs)
        *others, last = self._passes(inputs)
        loss = 0.0
        for part in others:
            # The last pass sends the gradients of all, unless more batches follow.
            with self.accelerator.no_sync(model) if self.accelerator.sync_gradients else nullcontext():
                loss = loss + super().training_step(model, part, num_items_in_batch)
        loss = loss + super().training_step(model, last, num_items_in_batch)
        self._text_targets = None
        self._step_loss = self._step_loss + loss
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The last look at the gradient before the optimizer's step, the same on all ranks."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        batches, self._batches = self._batches, []
        loss, self._step_loss = nested_gather(self._step_loss, self.args.parallel_mode).mean(), 0.0
        grad_norm = torch.as_tensor(grad_norm, device=loss.device)
        if hasattr(grad_norm, "full_tensor"):  # FSDP2's
            grad_norm = grad_norm.full_tensor()
        # The only time in a step that the host waits for the device.
        loss, grad_norm = torch.stack([loss, grad_norm]).tolist()
        # A loss scaler expects overflows of the gradient and skips such steps by itself.
        if math.isfinite(loss) and self.accelerator.scaler is not None and not math.isfinite(grad_norm):
            return grad_norm
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.nonfinite_steps = 0
            if (
                self.spikes.observe(self.state.global_step, loss, grad_norm, self.args.max_grad_norm)
                and self.args.skip_spikes
            ):
                self.ema.skip_next = True
                model.zero_grad(set_to_none=True)
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
            f"step {self.state.global_step}: the loss or its gradient is not finite; nothing was updated, "
            f"the batch is in {folder}"
        )
        return grad_norm

    def _drain_terms(self, count):
        terms = {
            name: nested_gather(value, self.args.parallel_mode).mean().item() / count
            for name, value in self._terms.items()
        }
        self._terms = {}
        return terms

    def _all_strategies(self):
        """Sums (2, strategies) of the losses and target tokens of all processes."""
        # To the device first: NCCL gathers nothing that is elsewhere.
        sums = self._by_strategy.to(self.args.device)
        return nested_gather(sums, self.args.parallel_mode).view(-1, *self._by_strategy.shape).sum(0)

    def _drain_strategies(self):
        """The mean latent loss of the target tokens of each strategy since the last log."""
        sums = self._all_strategies()
        self._by_strategy = torch.zeros_like(self._by_strategy)
        pairs = zip(self.data_collator.strategy_names, sums.T.tolist(), strict=True)
        return {f"latent_loss_{name}": total / count for name, (total, count) in pairs if count}

    # -- log

    def begin_log(self, state: TrainerState) -> None:
        """Begins to add up records of the log, where the run that left the checkpoint had been, if there is one."""
        saved = state.stateful_callbacks.get(_SINCE_LAST_LOG) if state.global_step else None
        self.steps_logged, self.clock = state.global_step, time.perf_counter()
        if not saved:
            return
        self.steps_logged = self._globalstep_last_logged = saved["step"]
        self.clock -= saved["seconds"]
        self._tr_loss += float(saved["loss"])
        self._terms = {
            name: torch.tensor(float(value), device=self.args.device) for name, value in saved["terms"].items()
        }
        if self.args.process_index == 0:  # sums over processes
            self._tokens = torch.tensor(saved["tokens"])
            self._by_strategy = torch.tensor([[float(value) for value in row] for row in saved["by_strategy"]])

    def _since_last_log(self):
        """What the next record of the log will add up, of all processes."""
        gather = partial(nested_gather, parallel_mode=self.args.parallel_mode)
        return to_json_value(
            {
                "step": self.steps_logged,
                "seconds": time.perf_counter() - self.clock,
                "loss": gather(self._tr_loss).mean().item(),
                "terms": {name: gather(value).mean().item() for name, value in self._terms.items()},
                "tokens": gather(self._tokens.to(self.args.device)).sum().item(),
                "by_strategy": self._all_strategies().tolist(),
            }
        )

    def log(self, logs, start_time=None):
        if "loss" in logs:  # a record of training
            logs |= self._drain_terms(self.state.global_step - self.steps_logged)
            self.steps_logged = self.state.global_step
            # The Trainer resets its sum by subtracting it from itself, which a NaN survives.
            self._tr_loss.nan_to_num_(0.0, 0.0, 0.0)
            if self.monitor is not None:
                logs |= self.monitor.values
            logs |= self._drain_strategies()
            logs["loss_spikes"] = self.spikes.count
            if self.ema in self.callback_handler.callbacks:
                logs["ema_decay"] = self.ema.decay(self.state.global_step - 1, self.state.max_steps)
            now = time.perf_counter()
            tokens = nested_gather(self._tokens, self.args.parallel_mode).sum().item()
            last = next((record for record in reversed(self.state.log_history) if "tokens_seen" in record), {})
            logs["tokens_per_second"] = tokens / (now - self.clock)
            logs["tokens_seen"] = last.get("tokens_seen", 0) + tokens
            logs["train_seconds"] = last.get("train_seconds", 0.0) + now - self.clock
            self._tokens, self.clock = torch.zeros_like(self._tokens), now
        super().log(logs, start_time)
        # What is written to trainer_state.json, while callbacks get numbers.
        record = self.state.log_history.pop()
        if "train_runtime" not in record:  # a summary of what one process did, not of the run
            self.state.log_history.append(to_json_value(record))

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
        # Processes have read some texts twice, where their number does not divide evenly.
        texts = nested_gather(self._eval_texts.to(self.args.device), self.args.parallel_mode).float().mean().item()
        terms, self._eval_texts = self._drain_terms(max(texts, 1)), torch.tensor(0)
        sums = self._by_length.to(self.args.device)
        by_length = nested_gather(sums, self.args.parallel_mode).view(-1, *sums.shape).sum(0)
        self._by_length = torch.zeros_like(self._by_length)
        for (least, _), (total, count) in zip(SPAN_LENGTHS, by_length.T.tolist(), strict=True):
            terms |= {f"latent_loss_of_spans_from_{least}": total / count} if count else {}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in terms.items()})
        return output

    # -- parameters

    def create_optimizer(self, *args, **kwargs):
        """AdamW as the Trainer makes it, with rates of their own for embeddings and for what is around the encoder."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if not is_new:
            return optimizer
        encoder = self.model.model
        if self.args.predictor_learning_rate is not None:
            inside = {id(parameter) for parameter in encoder.parameters()}
            around = [parameter for parameter in self.model.parameters() if id(parameter) not in inside]
            _move_to_own_groups(optimizer, around, self.args.predictor_learning_rate)
        if self.args.embedding_learning_rate is not None:
            matrix = self.model.get_input_embeddings().weight
            _move_to_own_groups(optimizer, [matrix], self.args.embedding_learning_rate)
        return optimizer

    def get_decay_parameter_names(self, model) -> list[str]:
        """Matrices decay; biases, norms and the mask token do not."""
        few = {name for name, p in model.named_parameters() if p.dim() < 2 or name.endswith("mask_tokens")}
        return [name for name in super().get_decay_parameter_names(model) if name not in few]


def _move_to_own_groups(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], rate: float):
    """Takes parameters out of the groups of an optimizer, into groups of the same settings with another rate."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if not moved:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        optimizer.add_param_group({**group, "params": moved, "lr": rate})


def split_masks(batch: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """A batch of M masks of each text as M batches of one, (B, 1, …), of the same texts."""
    drawn = [name for name in _OF_MASKS if name in batch]
    return [{**batch, **{name: batch[name][:, m : m + 1] for name in drawn}} for m in range(batch[drawn[0]].shape[1])]
