"""Callbacks of a run: update of the target encoder, weight decay, spikes, progress, preemption."""

import ctypes
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState, ProgressCallback


logger = logging.getLogger(__name__)

# What a run ends with that was asked to stop by SIGTERM or SIGINT and has saved: 128 + SIGTERM, as schedulers expect.
PREEMPTED = 143

# Seconds in which further signals are taken for the same one: launchers pass on what the whole group has got already.
_SAME_SIGNAL = 1.0

# Steps that a loss or gradient norm is compared with.
SPIKE_WINDOW = 128

# Steps in a row whose gradient is not finite before a run gives up.
NONFINITE_LIMIT = 3


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
        frozen_steps: First steps without an update: a target encoder frozen at first (arXiv 2509.24317).

    Attributes:
        skip_next: Set by a trainer that drops the gradients of a step: that step moves nothing.
    """

    def __init__(
        self, schedule: str = "cosine", start: float | None = None, end: float | None = None, frozen_steps: int = 0
    ):
        self.schedule, self.start, self.end, self.frozen_steps = schedule, start, end, frozen_steps
        self.skip_next = False

    def decay(self, step: int, total_steps: int) -> float:
        """The decay at a step, see `ema_decay`; 1 while the target encoder is frozen."""
        if step < self.frozen_steps:
            return 1.0
        return ema_decay(step, total_steps, self.schedule, self.start, self.end)

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        if not (self.skip_next or getattr(optimizer, "step_was_skipped", False)):
            model.update_target_encoder(self.decay(state.global_step, state.max_steps))
        self.skip_next = False


class SpikeCallback(TrainerCallback, ExportableState):
    """Counts steps whose loss or gradient norm is far above those before it.

    Far is six standard deviations above the mean of the last 128 steps, as in OLMo-core's stability monitor, but of
    the logarithms: gradient norms have a long tail, of which the plain measure took up to ten of 500 normal steps for
    spikes (of the contrast of texts it is longer still: four of 1,200 steps of `make pretrain` are counted). And at
    least half as much again, so that a run that hardly varies raises no alarm. A spike enters the
    window as the largest value that is none: it does not hide the next one, and a change that lasts becomes normal.
    The window is a part of every checkpoint.

    Attributes:
        count: Spikes so far.
    """

    def __init__(self):
        self.windows: dict[str, list[float]] = {"loss": [], "grad_norm": []}
        self.count = 0

    def state(self) -> dict:
        return {"args": {}, "attributes": {"windows": self.windows, "count": self.count}}

    def on_train_begin(self, args, state, control, **kwargs):
        vars(self).update(saved_attributes(self, state))

    def observe(self, step: int, loss: float, grad_norm: float, clipped_at: float = 0.0) -> bool:
        """Takes in a step; whether it is a spike, which is logged. A norm that is not even clipped is none."""
        spikes = []
        for name, value, least in (("loss", loss, 0.0), ("grad_norm", grad_norm, clipped_at)):
            most = spike_threshold(self.windows[name])
            if value > max(most, least):
                spikes.append(f"{name} {value:.4g}")
            self.windows[name] = [*self.windows[name], min(value, most)][-SPIKE_WINDOW:]
        if spikes:
            self.count += 1
            logger.warning(f"step {step}: a spike ({', '.join(spikes)}); {self.count} so far")
        return bool(spikes)


def saved_attributes(callback: TrainerCallback, state: TrainerState) -> dict[str, Any]:
    """What a callback with a state has left in the checkpoint that a run goes on from; nothing in a new run."""
    saved = state.stateful_callbacks.get(type(callback).__name__) if state.global_step else None
    return saved["attributes"] if saved else {}


def spike_threshold(before: Sequence[float]) -> float:
    """The largest value that is not far above those before it; infinite if these do not fill the window."""
    if len(before) < SPIKE_WINDOW:
        return math.inf
    logs = [math.log(max(value, 1e-12)) for value in before]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / len(logs))
    return math.exp(mean + max(6 * deviation, math.log(1.5)))


class ProgressLineCallback(ProgressCallback):
    """A progress bar on terminals, and one line of health per log everywhere."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            # From the step where a resumed run begins, or the time left would be that of a much faster one.
            steps = {"total": state.max_steps, "initial": state.global_step}
            self.training_bar = tqdm(**steps, desc="Training", unit=" steps", dynamic_ncols=True, disable=None)
        self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, **kwargs):
        if sys.stderr.isatty():
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if state.is_world_process_zero and logs:
            line = health_line(logs, state.global_step, state.max_steps, model.config.hidden_size)
            if line:
                tqdm.write(line)
            if self.training_bar is not None and "tokens_per_second" in logs:
                self.training_bar.set_postfix_str(_speed(logs))


def health_line(logs: Mapping[str, float], step: int, total_steps: int, width: int) -> str:
    """One line for people from a record of the log; empty for records that need none."""
    if "eval_loss" in logs:
        return f"step {step:>6}/{total_steps}  held-out loss {logs['eval_loss']:.4f}"
    if "loss" not in logs:
        return ""
    parts = [f"step {step:>6}/{total_steps}", f"loss {logs['loss']:.4f}"]
    if "relative_loss" in logs:
        parts.append(f"relative {logs['relative_loss']:.3f} (copying {logs['copy_relative_loss']:.3f})")
    if "token_rank" in logs:
        parts.append(f"rank {logs['token_rank']:.0f}/{width}")
    if "ema_decay" in logs:
        parts.append(f"decay {logs['ema_decay']:.4f}")
    parts.append(_speed(logs))
    return "  ".join(parts)


def _speed(logs):
    return f"{logs['tokens_per_second']:,.0f} tokens/s"


class WeightDecayCallback(TrainerCallback):
    """Moves the weight decay along a cosine from the first value to the last, a pure function of the global step."""

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        value = ema_decay(state.global_step, state.max_steps, "cosine", self.start, self.end)
        for group in optimizer.param_groups:
            if group["weight_decay"] > 0:
                group["weight_decay"] = value


class PreemptionCallback(TrainerCallback):
    """SIGTERM or SIGINT ends the run after the step at hand, with a checkpoint; a second one ends it at once.

    A second one comes a second later or more: within it, a scheduler's signal to all processes and what their launcher
    passes on are the same. All processes agree at the end of each step, so that a signal to one stops them together.

    Attributes:
        asked: Whether the run ends because of a signal, as all processes have agreed.
    """

    def __init__(self):
        self.asked = False
        # Apart from what was agreed: a signal that comes while the processes agree counts at the next step.
        self._noted_at: float | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.asked, self._noted_at = False, None
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            return
        handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
            # `accelerate launch` of one process does not pass a signal on: its death has to do, by a signal of its
            # own that is not taken for a second one.
            handlers[signal.SIGUSR1] = self._note_once
            ctypes.CDLL(None).prctl(1, signal.SIGUSR1)  # PR_SET_PDEATHSIG
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def _note(self, number, frame):
        if self._noted_at is not None and time.monotonic() - self._noted_at > _SAME_SIGNAL:
            os._exit(PREEMPTED)
        self._note_once(number, frame)

    def _note_once(self, number, frame):
        self._noted_at = time.monotonic() if self._noted_at is None else self._noted_at

    def on_step_end(self, args, state, control, **kwargs):
        self.asked = self._noted_at is not None
        if args.world_size > 1:
            asked = torch.tensor(int(self.asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.asked = bool(asked)
        if self.asked:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Signals mean again what they meant before the run."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def heed_only_the_parent(then: Callable[[int], None] | None, worker: int) -> None:
    """Begins a worker process of a data loader, which a signal to the whole group would kill in the midst of a step.

    Args:
        then: What else the worker begins with.
        worker: Its number.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker)


def _end_with(parent):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
