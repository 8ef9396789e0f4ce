"""The collapse monitor: measures of the representations on a fixed held-out batch during training."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining
from text_jepa import metrics
from text_jepa.train.callbacks import saved_attributes
from text_jepa.train.step import Batch


Autocast = Callable[[], AbstractContextManager]

# The number of texts of the monitored batch, unless an evaluation batch is smaller.
MONITOR_TEXTS = 64

# The number of predictions that are compared with each other's targets, in a matrix of that size squared.
_RETRIEVAL_ROWS = 1024


@torch.no_grad()
def measure_representations(
    model: TextJepaForPreTraining,
    batch: Batch,
    autocast: Autocast = nullcontext,
) -> dict[str, float]:
    """Measures the representations of the target encoder and the predictions on one batch.

    A frozen target encoder cannot collapse, while the encoder that learns from it can: then the context encoder is
    measured in its place.

    Args:
        model: The model in any mode, which stays as it is.
        batch: A batch of the collator, on the model's device.
        autocast: Makes the context in which the encoders run, because accelerate casts only in `forward`.

    Returns:
        The measures by name:

        - `spread`: standard deviation of the token states over tokens, mean over dimensions
        - `token_rank`, `pooled_rank`: effective rank of token states and of pooled texts
        - `cosine_same_text`, `cosine_other_text`: mean cosine of the states of two tokens

        With a latent loss also:

        - `relative_loss`: squared error of the predictions over the variance of the targets; 1 is predicting the mean
        - `copy_relative_loss`: the same for copying the target of the nearest visible token; not with
          `target_input="spans"`, where visible tokens have no targets
        - `retrieval_margin`: centred cosine with the right target minus that with another one
        - `retrieval_accuracy`: share of the first 1,024 predictions that are nearest to their own target among these
        - `target_spread`: spread of the normalized targets
        - `wrong_cosine_mean`, `wrong_cosine_max`, `wrong_cosine_min`: centred cosines with other tokens' targets
    """
    was_training = model.training
    model.eval()
    mask = batch["attention_mask"]
    outputs = model(**batch, return_loss=False)
    has_predictions = outputs.predictions is not None
    with autocast():
        target_states = model.encode_targets(batch["input_ids"], mask, output_hidden_states=has_predictions)
        if model.config.target_encoder_type == "frozen":
            states = model.model(batch["input_ids"], mask)
        else:
            states = target_states
    features = None
    if has_predictions:
        features = model.token_targets(target_states.hidden_states, mask)
    model.train(was_training)

    values = _measure_states(model, batch, states.last_hidden_state.float())
    is_used = batch["target_positions"] >= 0
    if has_predictions and is_used.any():
        predictions = outputs.predictions[is_used].float()
        targets = outputs.targets[is_used]
        values |= _measure_predictions(predictions, targets)
        values["target_spread"] = metrics.spread(features[mask.bool()])
        # Targets of spans are not what the target encoder makes of the whole text.
        if model.config.target_input == "text":
            copied = metrics.copy_nearest_visible(features, batch["context_positions"], batch["target_positions"])
            values["copy_relative_loss"] = metrics.relative_loss(copied[is_used], targets)
    return {name: float(value) for name, value in values.items()}


def _measure_states(
    model: TextJepaForPreTraining,
    batch: Batch,
    states: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Measures of the token states (B, S, D) of an encoder."""
    mask = batch["attention_mask"]
    is_token = mask.bool()
    tokens = states[is_token]
    rows = torch.arange(len(mask), device=mask.device)
    text_ids = rows.unsqueeze(1).expand_as(mask)[is_token]
    same_text, other_text = metrics.mean_cosines(tokens, text_ids)
    pooled = model.pool(states, mask, batch["input_ids"])
    return {
        "spread": metrics.spread(tokens),
        "token_rank": metrics.effective_rank(tokens),
        "pooled_rank": metrics.effective_rank(pooled),
        "cosine_same_text": same_text,
        "cosine_other_text": other_text,
    }


def _measure_predictions(
    predictions: torch.Tensor,
    targets: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Measures of predictions (N, D) beside their targets (N, D)."""
    half = max(1, len(targets) // 2)
    first_predictions = predictions[:_RETRIEVAL_ROWS]
    first_targets = targets[:_RETRIEVAL_ROWS]
    values = {
        "relative_loss": metrics.relative_loss(predictions, targets),
        "retrieval_margin": metrics.retrieval_margin(predictions, targets, shift=half),
        "retrieval_accuracy": metrics.retrieval_accuracy(first_predictions, first_targets),
    }
    if len(targets) > 1:
        mean, largest, smallest = metrics.wrong_target_cosines(first_predictions, first_targets)
        values["wrong_cosine_mean"] = mean
        values["wrong_cosine_max"] = largest
        values["wrong_cosine_min"] = smallest
    return values


class CollapseMonitorCallback(TrainerCallback, ExportableState):
    """Measures representations on a fixed held-out batch at the first step and every log, and warns of a collapse.

    What the run found at its first step is not a collapse: later measures are compared with it, see `collapse_signs`.

    Args:
        batch: A collated batch of held-out texts with fixed masks. Default: a [`TextJepaTrainer`] makes it of its
            evaluation set; with a plain `Trainer` it is the first batch of the first evaluation.
        stop_on_collapse: End the run at the warning.
        patience: Number of logs in a row that must show signs of collapse before the warning, because the first steps
            may look odd.
        autocast: See `measure_representations`.

    Attributes:
        values: The latest measures, see `measure_representations`.
        signs: What of the latest measures is a sign of collapse, in words.
        first: The measures of the first step, which later ones are compared with.
        seconds: Time spent on measuring since the last record of the log, which does not count as training.
        warning: The `"step"` and the `"signs"` of the warning; `None` before.

    Raises:
        ValueError: Training begins, and there is neither a batch nor an evaluation to take it from.
    """

    def __init__(
        self,
        batch: Batch | None = None,
        stop_on_collapse: bool = False,
        patience: int = 2,
        autocast: Autocast = nullcontext,
    ):
        self.batch = batch
        self.stop_on_collapse = stop_on_collapse
        self.patience = patience
        self.autocast = autocast
        self.values: dict[str, float] = {}
        self.signs: list[str] = []
        self.warning: dict[str, Any] | None = None
        self.first: dict[str, float] | None = None
        self.seconds = 0.0
        # Number of latest logs in a row with signs of collapse.
        self._suspicious = 0
        self._last_step: int | None = None

    @property
    def collapsed(self) -> bool:
        """Whether the monitor has warned."""
        return self.warning is not None

    def state(self) -> dict[str, Any]:
        attributes = {
            "first": self.first,
            "signs": self.signs,
            "warning": self.warning,
            "_suspicious": self._suspicious,
        }
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args, state, control, **kwargs):
        if self.batch is None and args.eval_strategy == "no" and not args.eval_on_start:
            raise ValueError("CollapseMonitorCallback watches held-out texts: set eval_strategy, or give it a batch")
        self.restore(state)

    def restore(self, state: TrainerState) -> None:
        """Takes over what the monitor of the run that left a checkpoint had found; nothing for a new run."""
        saved = saved_attributes(self, state)
        self.first = saved.get("first")
        self.signs = saved.get("signs", [])
        self.warning = saved.get("warning")
        self._suspicious = saved.get("_suspicious", 0)

    def on_evaluate(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.batch is None:
            self.batch = next(iter(eval_dataloader))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.batch is not None and (self.first is None or control.should_log):
            self._watch(state, control, model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        # With `logging_strategy="epoch"`, which asks for the log of the last step twice.
        if self.batch is not None and control.should_log and state.global_step != self._last_step:
            self._watch(state, control, model)

    def _watch(
        self,
        state: TrainerState,
        control: TrainerControl,
        model: TextJepaForPreTraining,
    ) -> None:
        """Measures, and warns if this is one sign of collapse too many."""
        self._last_step = state.global_step
        self._measure(model)
        self._suspicious = self._suspicious + 1 if self.signs else 0
        if self._suspicious < self.patience or self.collapsed:
            return
        self.warning = {"step": state.global_step, "signs": self.signs}
        if state.is_world_process_zero:
            advice = "Stopping, as asked." if self.stop_on_collapse else describe_remedies(model.config)
            tqdm.write(f"WARNING: {describe_collapse(self.warning)}. {advice}", file=sys.stderr)
        if self.stop_on_collapse:
            control.should_save = True
            control.should_training_stop = True

    def _measure(self, model: TextJepaForPreTraining) -> None:
        """Updates the measures and their signs of collapse."""
        started = time.perf_counter()
        self.batch = {name: tensor.to(model.device) for name, tensor in self.batch.items()}
        self.values = measure_representations(model, self.batch, self.autocast)
        if self.first is None:
            self.first = self.values
        tokens = int(self.batch["attention_mask"].sum())
        dimensions = min(model.config.hidden_size, tokens - 1)
        self.signs = metrics.collapse_signs(self.values, dimensions, self.first)
        self.seconds += time.perf_counter() - started


def describe_collapse(warning: Mapping[str, Any]) -> str:
    """The warning of a monitor in words, with its step."""
    return f"collapse at step {warning['step']:,}: {'; '.join(warning['signs'])}"


def describe_remedies(config: TextJepaConfig) -> str:
    """What to try against a collapse, as a sentence; what a configuration has already is not named."""
    remedies = ["lower --learning_rate", "lengthen --warmup_steps"]
    if config.has_moving_average:
        remedies.append("raise --ema_decay_start")
    if config.latent_loss_weight > 0 and config.token_loss_weight == 0:
        remedies.append("predict hidden words as well (--token_loss_weight 0.1)")
    if config.sentence_loss_weight > 0 and config.sentence_loss_type != "infonce":
        remedies.append("contrast texts with each other (--sentence_loss_type infonce)")
    if config.latent_loss_weight > 0 and config.sentence_loss_weight == 0:
        remedies.append("contrast texts with each other (--sentence_loss_weight 0.5)")
    listed = ", ".join(remedies[:-1])
    return f"Try to {listed}, or {remedies[-1]}."
