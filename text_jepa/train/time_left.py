"""How long a run will take, said once it is known."""

import time

from tqdm.auto import tqdm
from transformers import TrainerCallback


# The steps and seconds from which the speed of a run is known. The first step, which is slower, does not count.
_LEAST_STEPS = 10
_LEAST_SECONDS = 5.0


class TimeLeftCallback(TrainerCallback):
    """Says after the first steps how long the rest of the run will take, once.

    The time is that of training alone: evaluations and the end of the run, whose length no step tells, come on top.
    """

    def __init__(self):
        self.first_step: int | None = None
        self.started_at = 0.0
        self.is_done = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_step = None
        self.is_done = not state.is_world_process_zero

    def on_step_end(self, args, state, control, **kwargs):
        if self.is_done:
            return
        now = time.monotonic()
        if self.first_step is None:
            self.first_step = state.global_step
            self.started_at = now
            return
        steps = state.global_step - self.first_step
        seconds = now - self.started_at
        if steps >= _LEAST_STEPS and seconds >= _LEAST_SECONDS:
            self.is_done = True
            left = (state.max_steps - state.global_step) * seconds / steps
            tqdm.write(f"step {state.global_step:>6}/{state.max_steps}  about {in_words(left)} of training left")


def in_words(seconds: float) -> str:
    """A duration, as rounded as an estimate should be: `"20 seconds"`, `"3 minutes"`, `"2.5 hours"`."""
    if seconds < 55:
        tens = max(round(seconds / 10), 1) * 10
        return f"{tens} seconds"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{seconds / 3600:.1f} hours"
