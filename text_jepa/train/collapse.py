"""Measures of collapse on a fixed held-out batch, while a run trains."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa import metrics
from text_jepa.train.callbacks import saved_attributes


# Texts of the fixed held-out batch on which representations are watched, where a batch of evaluation holds as many.
MONITOR_TEXTS = 64


@torch.no_grad()
def measure_representations(
    model: TextJepaForPreTraining,
    batch: Mapping[str, torch.Tensor],
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """What the target encoder's representations and the predictions are worth, on one batch.

    Args:
        model: In any mode, left as it was.
        batch: As the collator makes it, on the model's device.
        autocast: Makes the context in which its encoders run: accelerate casts in `forward` alone.

    Returns:
        spread: Standard deviation of the target encoder's states over tokens, mean over dimensions.
        token_rank, pooled_rank: Effective rank of token states and of mean-pooled texts.
        cosine_same_text, cosine_other_text: Mean cosine of the states of two tokens.

        And where there is a latent loss:
        relative_loss: Squared error of the predictions over the variance of the targets; 1 is predicting the mean.
        copy_relative_loss: The same for copying the target of the nearest visible token.
        retrieval_margin: Centred cosine with the right target minus that with another one.
        retrieval_accuracy: Share of the first 1,024 predictions that are nearest to their own target among these.
        target_spread: Spread of the normalised targets.
        wrong_cosine_mean, wrong_cosine_max, wrong_cosine_min: Centred cosines with other tokens' targets.
    """
    training = model.training
    model.eval()
    mask, masks = batch["attention_mask"], ("context_positions", "target_positions")
    outputs = model(**batch, return_loss=False)
    with autocast():
        taught = model.encode_targets(batch["input_ids"], mask)
        # A frozen target encoder cannot collapse, while the encoder that learns from it can.
        is_frozen = model.config.target_encoder_type == "frozen"
        watched = model.model(batch["input_ids"], mask) if is_frozen else taught
    predicts = outputs.predictions is not None
    features = model.token_targets(taught.hidden_states, mask) if predicts else None
    model.train(training)
    states, visible = watched.last_hidden_state.float(), mask.bool()
    text = torch.arange(len(mask), device=mask.device).unsqueeze(1).expand_as(mask)[visible]
    same, other = metrics.mean_cosine(states[visible], text)
    values = {
        "spread": metrics.spread(states[visible]),
        "token_rank": metrics.effective_rank(states[visible]),
        "pooled_rank": metrics.effective_rank(model.pool(states, mask, batch["input_ids"])),
        "cosine_same_text": same,
        "cosine_other_text": other,
    }
    used = batch["target_positions"] >= 0
    if predicts and used.any():
        predictions, targets = outputs.predictions[used].float(), outputs.targets[used]
        copied = metrics.copy_nearest_visible(features, *(batch[name] for name in masks))[used]
        values |= {
            "relative_loss": metrics.relative_loss(predictions, targets),
            "copy_relative_loss": metrics.relative_loss(copied, targets),
            "retrieval_margin": metrics.retrieval_margin(predictions, targets, shift=max(1, len(targets) // 2)),
            "retrieval_accuracy": metrics.retrieval_accuracy(predictions[:1024], targets[:1024]),
            "target_spread": metrics.spread(features[visible]),
        }
        if len(targets) > 1:
            wrong = metrics.wrong_target_cosines(predictions[:1024], targets[:1024])
            values |= dict(zip(("wrong_cosine_mean", "wrong_cosine_max", "wrong_cosine_min"), wrong, strict=True))
    return {name: float(value) for name, value in values.items()}


class CollapseMonitorCallback(TrainerCallback, ExportableState):
    """Measures representations on a fixed held-out batch at every log, and says in plain words when they collapse.

    Args:
        batch: A collated batch of held-out texts with fixed masks.
        stop_on_collapse: End the run at the first warning.
        patience: Logs in a row that must show signs before the warning, so that the first steps may look odd.
        autocast: As for `measure_representations`.

    Attributes:
        values: The latest measures, see `measure_representations`.
        first_pooled_rank: That of the first log, which a later one is held against.
        collapsed: Whether the monitor has warned.
    """

    remedy = (
        "Lower --learning_rate or lengthen --warmup_steps; with a moving average raise --ema_decay_start or "
        "--token_loss_weight, or tell texts apart (--sentence_loss_type infonce)."
    )

    def __init__(
        self,
        batch: Mapping[str, torch.Tensor],
        stop_on_collapse: bool = False,
        patience: int = 2,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.batch, self.autocast = batch, autocast
        self.stop_on_collapse = stop_on_collapse
        self.patience = patience
        self.values: dict[str, float] = {}
        self.collapsed = False
        self.first_pooled_rank: float | None = None
        self._suspicious = 0

    def state(self) -> dict:
        names = ("first_pooled_rank", "_suspicious")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = saved_attributes(self, state)
        self.first_pooled_rank, self._suspicious = saved.get("first_pooled_rank"), saved.get("_suspicious", 0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not control.should_log:
            return
        self.batch = {name: tensor.to(model.device) for name, tensor in self.batch.items()}
        self.values = measure_representations(model, self.batch, self.autocast)
        tokens = int(self.batch["attention_mask"].sum())
        if self.first_pooled_rank is None:
            self.first_pooled_rank = self.values["pooled_rank"]
        dimensions = min(model.config.hidden_size, tokens - 1)
        signs = metrics.collapse_signs(self.values, dimensions, self.first_pooled_rank)
        self._suspicious = self._suspicious + 1 if signs else 0
        if self._suspicious < self.patience or self.collapsed:
            return
        self.collapsed = True
        if state.is_world_process_zero:
            advice = "Stopping, as asked." if self.stop_on_collapse else self.remedy
            tqdm.write(f"WARNING: collapse at step {state.global_step}: {'; '.join(signs)}. {advice}", file=sys.stderr)
        if self.stop_on_collapse:
            control.should_save = control.should_training_stop = True
