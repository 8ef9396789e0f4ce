"""Callbacks of a run: target encoder updates, weight decay, loss spikes, progress, preemption."""

import ctypes
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState, ProgressCallback


logger = logging.getLogger(__name__)

# The exit code of a run that was stopped by SIGTERM or SIGINT and has saved: 128 + SIGTERM, as schedulers expect.
PREEMPTED = 143

# Seconds in which further signals count as the same one: launchers pass on what the whole group has already received.
_SAME_SIGNAL = 1.0

# The number of last steps that a loss or gradient norm is compared with.
SPIKE_WINDOW = 128

# The smallest factor by which a spike exceeds the mean of the window.
_LEAST_SPIKE = {"loss": 1.5, "grad_norm": 10.0}

# The number of consecutive steps with a gradient that is not finite after which a run gives up.
NONFINITE_LIMIT = 3

# The number of consecutive steps that a loss scaler may skip. It halves its factor at each of them, so a gradient that
# still overflows then is itself not finite.
OVERFLOW_LIMIT = 50


# ---- schedules ------------------------------------------------------------------------------------------------------


def ema_decay(
    step: int,
    total_steps: int,
    schedule: str = "cosine",
    start: float | None = None,
    end: float | None = None,
) -> float:
    """Decay of the target encoder at a step, a pure function of the global step.

    The defaults scale with the run: 1 - 100 / T at the start and 1 - 10 / T at the end are averages over 1 % and over
    10 % of the run. At T = 1,000,000 these are the values of data2vec 2.0 (https://huggingface.co/papers/2212.07525).

    Args:
        step: Number of optimizer steps done, 0 … `total_steps`.
        total_steps: T, the number of optimizer steps of the whole run.
        schedule: `"constant"` (the start), `"linear"` or `"cosine"` from start to end.
        start: First decay, between 0 and 1; `None` for the default.
        end: Last decay, between 0 and 1; `None` for the default.

    Raises:
        ValueError: The schedule is unknown.
    """
    if start is None:
        start = max(0.0, 1 - 100 / total_steps)
    if end is None:
        end = max(start, 1 - 10 / total_steps)
    progress = min(step / total_steps, 1.0)
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * progress
    if schedule == "cosine":
        return cosine_between(start, end, progress)
    raise ValueError(f"unknown schedule '{schedule}'; use constant, linear or cosine")


def cosine_between(start: float, end: float, progress: float) -> float:
    """The value on half a cosine from `start` to `end`, at a `progress` of 0 to 1."""
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2


class EmaTargetEncoderCallback(TrainerCallback):
    """Updates the target encoder after each real optimizer step, and only then.

    It does nothing on micro-steps of gradient accumulation, on steps that a loss scaler skipped, and to a model whose
    target encoder is not a moving average. It keeps no state of its own: the decay follows from the global step, and
    the weights are part of the model and its checkpoints.

    Args:
        schedule: See `ema_decay`.
        start: See `ema_decay`.
        end: See `ema_decay`.
        frozen_steps: Number of steps at the start in which the target encoder is frozen
            (https://huggingface.co/papers/2509.24317).

    Attributes:
        skip_next: Whether to skip the next update; set by the trainer if it drops the gradients of a step.
    """

    def __init__(
        self,
        schedule: str = "cosine",
        start: float | None = None,
        end: float | None = None,
        frozen_steps: int = 0,
    ):
        self.schedule = schedule
        self.start = start
        self.end = end
        self.frozen_steps = frozen_steps
        self.skip_next = False

    def decay(self, step: int, total_steps: int) -> float:
        """The decay at a step, see `ema_decay`; 1 while the target encoder is frozen."""
        if step < self.frozen_steps:
            return 1.0
        return ema_decay(
            step,
            total_steps,
            self.schedule,
            self.start,
            self.end,
        )

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        if not model.config.has_moving_average:
            return
        was_skipped = getattr(optimizer, "step_was_skipped", False)
        if not self.skip_next and not was_skipped:
            decay = self.decay(state.global_step, state.max_steps)
            model.update_target_encoder(decay)
        self.skip_next = False


class WeightDecayCallback(TrainerCallback):
    """A cosine schedule of the weight decay, a pure function of the global step.

    Args:
        start: Weight decay at the first step.
        end: Weight decay at the last step.
    """

    def __init__(self, start: float, end: float):
        self.start = start
        self.end = end

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        progress = min(state.global_step / state.max_steps, 1.0)
        value = cosine_between(self.start, self.end, progress)
        for group in optimizer.param_groups:
            if group["weight_decay"] > 0:
                group["weight_decay"] = value


# ---- spikes ---------------------------------------------------------------------------------------------------------


class SpikeCallback(TrainerCallback, ExportableState):
    """Counts spikes: steps whose loss or gradient norm is far above those of the last 128 steps.

    A spike is more than six standard deviations above the mean, as in OLMo-core's stability monitor, of logarithms:
    gradient norms have a long tail, and without logarithms up to ten of 500 normal steps were taken for spikes. A loss
    also has to be at least 1.5 times the geometric mean, and a gradient norm 10 times: normal runs reach 5 times, with
    no trace in the loss. A spike enters the window with the largest value that is not a spike. So it does not hide the
    next one, and a lasting change becomes normal. The windows are part of every checkpoint.

    Attributes:
        windows: The last losses and gradient norms.
        count: Number of spikes so far.
    """

    def __init__(self):
        self.windows: dict[str, list[float]] = {"loss": [], "grad_norm": []}
        self.count = 0

    def state(self) -> dict[str, Any]:
        attributes = {"windows": self.windows, "count": self.count}
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = saved_attributes(self, state)
        if saved:
            self.windows = saved["windows"]
            self.count = saved["count"]

    def observe(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        clipped_at: float = 0.0,
    ) -> bool:
        """Adds a step to the windows, and warns if it is a spike.

        Args:
            step: The global step.
            loss: Its loss.
            grad_norm: Its gradient norm before clipping.
            clipped_at: The norm to which gradients are clipped; a smaller one is never a spike.

        Returns:
            Whether the step is a spike.
        """
        spikes = []
        if self._exceeds("loss", loss, 0.0):
            spikes.append(f"loss {loss:.4g}")
        if self._exceeds("grad_norm", grad_norm, clipped_at):
            spikes.append(f"grad_norm {grad_norm:.4g}")
        if not spikes:
            return False
        self.count += 1
        logger.warning(f"step {step}: a spike ({', '.join(spikes)}); {self.count} so far")
        return True

    def _exceeds(self, name: str, value: float, minimum: float) -> bool:
        """Adds a value, cut to the threshold, to its window; returns whether it exceeds threshold and minimum."""
        window = self.windows[name]
        threshold = spike_threshold(window, _LEAST_SPIKE[name])
        extended = [*window, min(value, threshold)]
        self.windows[name] = extended[-SPIKE_WINDOW:]
        return value > max(threshold, minimum)


def saved_attributes(callback: TrainerCallback, state: TrainerState) -> dict[str, Any]:
    """The attributes of a callback as the checkpoint has them that a run resumes from; empty for a new run."""
    if not state.global_step:
        return {}
    saved = state.stateful_callbacks.get(type(callback).__name__)
    return saved["attributes"] if saved else {}


def spike_threshold(values: Sequence[float], least: float = 1.5) -> float:
    """The largest next value that is not a spike; infinite if the values do not fill the window.

    Args:
        values: The last values.
        least: The smallest factor by which a spike exceeds their geometric mean, however little they vary.
    """
    if len(values) < SPIKE_WINDOW:
        return math.inf
    logs = [math.log(max(value, 1e-12)) for value in values]
    mean = sum(logs) / len(logs)
    variance = sum((log - mean) ** 2 for log in logs) / len(logs)
    margin = max(6 * math.sqrt(variance), math.log(least))
    return math.exp(mean + margin)


# ---- progress -------------------------------------------------------------------------------------------------------


class ProgressLineCallback(ProgressCallback):
    """A progress bar on terminals, and everywhere a line for each record of the log."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps,
                # Else the time left of a resumed run would count all steps as made since it was resumed.
                initial=state.global_step,
                desc="Training",
                unit=" steps",
                dynamic_ncols=True,
                disable=args.disable_tqdm or None,
            )
        self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, **kwargs):
        if sys.stderr.isatty():
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        line = health_line(
            logs,
            state.global_step,
            state.max_steps,
            model.config.hidden_size,
        )
        if line:
            tqdm.write(line)
        if self.training_bar is not None and "tokens_per_second" in logs:
            self.training_bar.set_postfix_str(_describe_speed(logs))


def health_line(
    logs: Mapping[str, float],
    step: int,
    total_steps: int,
    hidden_size: int,
) -> str:
    """Describes a record of the log in one line.

    Args:
        logs: The record.
        step: The global step.
        total_steps: The number of steps of the run.
        hidden_size: Width of the encoder, the largest possible rank.

    Returns:
        The line; empty for a record without a loss.
    """
    progress = f"step {step:>6}/{total_steps}"
    if "eval_loss" in logs:
        return f"{progress}  held-out loss {logs['eval_loss']:.4f}"
    if "loss" not in logs:
        return ""
    parts = [progress, f"loss {logs['loss']:.4f}"]
    if "relative_loss" in logs:
        parts.append(f"relative {logs['relative_loss']:.3f}{_describe_copying(logs)}")
    if "token_rank" in logs:
        parts.append(f"rank {logs['token_rank']:.0f}/{hidden_size}")
    if "ema_decay" in logs:
        parts.append(f"decay {logs['ema_decay']:.4f}")
    parts.append(_describe_speed(logs))
    return "  ".join(parts)


def _describe_copying(logs: Mapping[str, float]) -> str:
    if "copy_relative_loss" not in logs:
        return ""
    return f" (copying {logs['copy_relative_loss']:.3f})"


def _describe_speed(logs: Mapping[str, float]) -> str:
    return f"{logs['tokens_per_second']:,.0f} tokens/s"


# ---- preemption -----------------------------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    """SIGINT has ended training before its last step, with a checkpoint."""


class Terminated(SystemExit):
    """SIGTERM has ended training before its last step, with a checkpoint."""


class PreemptionCallback(TrainerCallback):
    """On SIGTERM or SIGINT, ends the run with a checkpoint after the current step; a second signal ends it at once.

    The second one is that of Python if it is SIGINT: it raises KeyboardInterrupt, and a notebook keeps its variables.
    Signals within a second count as one, since a launcher passes on what the scheduler has sent to all processes
    anyway. Processes agree at the end of each step, so that a signal to one of them stops all after the same step.

    Attributes:
        asked: Whether all processes have agreed to end the run because of a signal.
        number: The number of this signal; 0 without one.
    """

    def __init__(self):
        self.asked = False
        self.number = 0
        # Not `number` itself: a signal that arrives while the processes agree counts at the next step.
        self._noted = 0
        self._noted_at: float | None = None
        self._previous_handlers: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.asked = False
        self.number = 0
        self._noted = 0
        self._noted_at = None
        # Only the main thread may handle signals.
        if threading.current_thread() is not threading.main_thread():
            return
        self._handle(signal.SIGTERM, self._note)
        self._handle(signal.SIGINT, self._note)
        if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
            # `accelerate launch` of one process dies of a signal without passing it on. The kernel then sends one that
            # stands for the death of the parent (PR_SET_PDEATHSIG), and does not count as a second one.
            self._handle(signal.SIGUSR1, self._note_once)
            ctypes.CDLL(None).prctl(1, signal.SIGUSR1)

    def _handle(self, number: int, handler: Callable) -> None:
        self._previous_handlers[number] = signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted_at is not None:
            seconds = time.monotonic() - self._noted_at
            if seconds > _SAME_SIGNAL:
                self._end_at_once(number, frame)
        self._note_once(number, frame)

    def _end_at_once(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # Not the previous handler: what a shell starts in the background inherits one that ignores the signal.
            signal.default_int_handler(number, frame)
        else:
            os._exit(PREEMPTED)

    def _note_once(self, number: int, frame: FrameType | None) -> None:
        if self._noted_at is None:
            self._noted = number
            self._noted_at = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.number = self._noted
        if args.world_size > 1:
            # Of several, SIGTERM has the largest number.
            number = torch.tensor(self.number, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.number = int(number)
        self.asked = self.number > 0
        if self.asked:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if not self.asked or state.global_step >= state.max_steps:
            return
        # The Trainer takes the stop for the end of a pass, which the resumed run has yet to come to.
        is_end_of_pass = state.epoch % 1 == 0
        control.should_log = control.should_log and is_end_of_pass
        control.should_evaluate = control.should_evaluate and is_end_of_pass
        control.should_save = is_end_of_pass  # once more, with the records of the pass

    def end_program(self, state: TrainerState) -> None:
        """Ends the program as its signal does, so that nothing after training takes the weights for the final ones.

        Args:
            state: The state at the end of training.

        Raises:
            Interrupted: SIGINT has stopped training before its last step.
            Terminated: Another signal has.
        """
        if not self.asked or state.global_step >= state.max_steps:
            return
        if self.number == signal.SIGINT:
            raise Interrupted(
                f"stopped at step {state.global_step}, with a checkpoint; train(resume_from_checkpoint=True) resumes"
            )
        raise Terminated(PREEMPTED)

    def restore(self) -> None:
        """Restores the signal handlers from before the run."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}


def shield_worker_from_signals(
    worker_init_fn: Callable[[int], None] | None,
    worker_id: int,
) -> None:
    """Initializes a data loader worker so that nobody but its parent process can stop it.

    A signal to the whole process group would otherwise kill the workers in the middle of a step.

    Args:
        worker_init_fn: The data loader's own initialization.
        worker_id: The number of the worker.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        watcher = threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True)
        watcher.start()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _exit_with_parent(parent: int) -> None:
    """Waits for a SIGTERM from the parent process, and ends this one."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
