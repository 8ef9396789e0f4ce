"""A probe of both encoders while they train, to select checkpoints by; the latent loss does not rank checkpoints.

Rows to fit and rows to score both come from the task's training split, so that its scored split stays unseen.
"""

import copy
import math
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError
from text_jepa.encoders.embeddings import Encoder, embed_texts, encoder_inside
from text_jepa.probe import predictors
from text_jepa.probe.glue import accuracy, matthews
from text_jepa.probe.tasks import Split, Task


# The two encoders, as `encoder_inside` names them.
ENCODERS = ("target", "context")

_PREFIX = "eval_probe_"


class OnlineProbeCallback(TrainerCallback):
    """Probes the context encoder and the target encoder at every evaluation.

    The scores are logged and added to the metrics of the evaluation, where `metric_for_best_model` finds them:
    `eval_probe_target_linear`, `…_target_knn`, `…_context_linear` and `…_context_knn`; for a similarity (STS)
    `eval_probe_target_raw` and so on, `raw` and `centred`. All are percentages: the Matthews correlation if it is the
    task's metric, else accuracy, or Spearman's correlation for scores and similarities; NaN, which is never the best,
    for an encoder whose states are not finite.

    Training is not affected: no gradients, no random numbers, and modes are left as they were. The first process
    computes, the others get its scores. An evaluation embeds every distinct text of 2 x `max_rows` rows twice and
    fits two linear models, seconds for a small encoder.

    Args:
        task: The task. Rows of its training split are halved: one half to fit, one half to score.
        tokenizer: The tokenizer of the encoders.
        max_length: Tokens of a window; longer texts are read in several.
        max_rows: Largest number of rows of each half.

    Attributes:
        names: The metrics, as `metric_for_best_model` takes them.

    Raises:
        UsageError: The training split is too small.

    Example:
        `OnlineProbeCallback(package_task(), tokenizer).add_to(trainer)`
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 128,
        max_rows: int = 1_000,
    ) -> None:
        # A copy, because the truncation that is asked of it would end up in the files of the trainer's own.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.task = task
        self.max_length = max_length
        self.fitted, self.held_out = probe_rows(task, max_rows)
        self.modes = ("raw", "centred") if task.is_similarity else ("linear", "knn")
        self.names = []
        for which in ENCODERS:
            for mode in self.modes:
                self.names.append(f"{_PREFIX}{which}_{mode}")

    def add_to(self, trainer: Trainer) -> None:
        """Adds itself to the trainer of a [`TextJepaForPreTraining`], to whose log the figures go."""
        self.trainer = trainer
        trainer.add_callback(self)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: TextJepaForPreTraining | None = None,
        **kwargs: Any,
    ) -> None:
        values = {}
        if state.is_world_process_zero:
            scores = []
            for which in ENCODERS:
                encoder = encoder_inside(model, self.tokenizer, self.max_length, which)
                scores += self.scores(encoder)
            values = dict(zip(self.names, scores, strict=True))
        (values,) = broadcast_object_list([values])
        metrics.update(values)
        self.trainer.log(dict(values))
        if state.is_world_process_zero:
            shown = "  ".join(f"{name.removeprefix(_PREFIX)} {value:.1f}" for name, value in values.items())
            tqdm.write(f"step {state.global_step:>6}/{state.max_steps}  probe {self.task.name}: {shown}")

    def scores(self, encoder: Encoder) -> list[float]:
        """Percent by each of `modes`.

        Args:
            encoder: The encoder, whose mode is left as it is.
        """
        texts = self.held_out.distinct_texts
        if not self.task.is_similarity:
            texts |= self.fitted.distinct_texts
        texts = sorted(texts)
        was_training = encoder.model.training
        matrix = embed_texts(encoder, texts)
        encoder.model.train(was_training)
        if not np.isfinite(matrix).all():
            return [math.nan] * len(self.modes)

        vectors = dict(zip(texts, matrix, strict=True))
        if self.task.is_similarity:
            return self._similarity_scores(vectors)
        train = predictors.split_features(self.fitted, vectors)
        held_out = predictors.split_features(self.held_out, vectors)
        linear = predictors.fit_linear(train, self.fitted.labels, held_out)
        knn = predictors.knn_predict(train, self.fitted.labels, held_out)
        return [self._score(linear), self._score(knn)]

    def _similarity_scores(self, vectors: dict[str, np.ndarray]) -> list[float]:
        u = np.stack([vectors[text] for text in self.held_out.texts])
        v = np.stack([vectors[text] for text in self.held_out.pairs])
        scores = predictors.sts_scores(u, v, self.held_out.labels)
        return [scores[f"{mode}_spearmanr"] for mode in self.modes]

    def _score(self, predictions: np.ndarray) -> float:
        """Percent of predictions (N,) for the held-out rows, by the task's metric."""
        gold = self.held_out.labels
        if self.task.kind == "regression":
            return 100 * predictors.spearman(predictions, gold)
        if "matthews_correlation" in self.task.metrics:
            return 100 * matthews(predictions, gold)
        return 100 * accuracy(predictions, gold)


def probe_rows(task: Task, max_rows: int) -> tuple[Split, Split]:
    """Rows of the training split to fit and to score, at most `max_rows` each, always the same ones, none in both.

    Raises:
        UsageError: There are too few.
    """
    train = task.train
    order = np.random.default_rng(0).permutation(len(train))
    rows = order[: 2 * max_rows]
    fitted = train.select(rows[::2])
    held_out = train.select(rows[1::2])
    held_out_keys = set(held_out.keys)
    unseen = [row for row, key in enumerate(fitted.keys) if key not in held_out_keys]
    fitted = fitted.select(unseen)

    _, counts = np.unique(fitted.labels, return_counts=True)
    lacks_classes = task.kind == "classification" and (counts >= 2).sum() < 2
    if len(fitted) < 3 or lacks_classes:
        raise UsageError(
            f"{task.name}: too few training rows for a probe ({len(fitted)} to fit, {len(held_out)} to score); it "
            "takes three to fit, and of classes two with two rows"
        )
    return fitted, held_out
