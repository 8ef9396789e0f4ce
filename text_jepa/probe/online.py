"""A probe of both encoders while they train, by which a checkpoint can be chosen; the latent loss is no such measure.

Rows to fit and rows to score both come from the task's training split, so that its scored split stays unseen.
"""

import copy
import itertools
import math

import numpy as np
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from text_jepa.cli import UsageError
from text_jepa.embeddings import Encoder, embed_texts, encoder_inside
from text_jepa.probe import predictors
from text_jepa.probe.glue import accuracy, matthews
from text_jepa.probe.tasks import Split, Task


# The two encoders, as `encoder_inside` calls them.
ENCODERS = ("target", "context")


class OnlineProbeCallback(TrainerCallback):
    """Probes the context encoder and the target encoder at every evaluation.

    The figures are logged, and stand among the metrics of the evaluation, where `metric_for_best_model` finds them:
    `eval_probe_target_linear`, `…_target_knn`, `…_context_linear` and `…_context_knn`; of a similarity (STS)
    `eval_probe_target_raw` and so on, `raw` and `centred`. All are percent: the Matthews correlation where it is the
    task's metric and else accuracy, or Spearman's correlation for scores and similarities; NaN, which is never the
    best, for an encoder whose states are not finite.

    Training does not notice: no gradient, no random number, and modes are left as they were. The first process
    computes, the others get its figures. An evaluation embeds every distinct text of 2 x `max_rows` rows twice and
    fits two linear models, seconds for a small encoder.

    Args:
        task: Of its training split alone, drawn rows are halved: one half to fit, one half to score.
        tokenizer: Of the encoders.
        max_length: Tokens of a window; a longer text is read in several.
        max_rows: Of each half, at most.

    Attributes:
        names: The metrics, as `metric_for_best_model` takes them.

    Raises:
        UsageError: The training split is too small.

    Example:
        `OnlineProbeCallback(package_task(), tokenizer).add_to(trainer)`
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int = 128, max_rows: int = 1_000):
        # A copy, because the truncation that it is asked for would end up in the files of the trainer's own.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.task, self.max_length = task, max_length
        self.fitted, self.held_out = probe_rows(task, max_rows)
        self.modes = ("raw", "centred") if task.is_similarity else ("linear", "knn")
        self.names = [f"eval_probe_{which}_{mode}" for which, mode in itertools.product(ENCODERS, self.modes)]

    def add_to(self, trainer: Trainer):
        """Adds itself to the trainer of a [`TextJepaForPreTraining`], to whose log the figures go."""
        self.trainer = trainer
        trainer.add_callback(self)

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        values = {}
        if state.is_world_process_zero:
            encoders = [encoder_inside(model, self.tokenizer, self.max_length, which) for which in ENCODERS]
            scores = [self.scores(encoder) for encoder in encoders]
            values = dict(zip(self.names, itertools.chain(*scores), strict=True))
        (values,) = broadcast_object_list([values])
        metrics.update(values)
        self.trainer.log(dict(values))
        if state.is_world_process_zero:
            shown = "  ".join(f"{name.removeprefix('eval_probe_')} {value:.1f}" for name, value in values.items())
            tqdm.write(f"step {state.global_step:>6}/{state.max_steps}  probe {self.task.name}: {shown}")

    def scores(self, encoder: Encoder) -> list[float]:
        """Percent by each of `modes`.

        Args:
            encoder: The encoder, in any mode, which it is left in.
        """
        parts = [self.held_out] if self.task.is_similarity else [self.fitted, self.held_out]
        texts = sorted({text for part in parts for key in part.keys for text in key})
        training = encoder.model.training
        vectors = embed_texts(encoder, texts)
        encoder.model.train(training)
        if not np.isfinite(vectors).all():
            return [math.nan] * len(self.modes)
        table = dict(zip(texts, vectors, strict=True))
        gold = self.held_out.labels
        if self.task.is_similarity:
            u, v = (
                np.stack([table[text] for text in column]) for column in (self.held_out.texts, self.held_out.pairs)
            )
            found = predictors.sts_scores(u, v, gold)
            return [found[f"{mode}_spearmanr"] for mode in self.modes]
        fitted, held_out = (_features(part, table) for part in parts)
        predictions = [
            predict(fitted, self.fitted.labels, held_out)
            for predict in (predictors.fit_linear, predictors.knn_predict)
        ]
        if self.task.kind == "regression":
            return [100 * predictors.correlations(predicted, gold)["spearmanr"] for predicted in predictions]
        metric = matthews if "matthews_correlation" in self.task.metrics else accuracy
        return [100 * metric(predicted, gold) for predicted in predictions]


def probe_rows(task: Task, max_rows: int) -> tuple[Split, Split]:
    """Rows of the training split to fit and to score, always the same ones, at most so many of each, none in both.

    Raises:
        UsageError: They are too few.
    """
    train = task.train
    rows = np.random.default_rng(0).permutation(len(train))[: 2 * max_rows]
    fitted, held_out = train.select(rows[::2]), train.select(rows[1::2])
    seen = set(held_out.keys)
    fitted = fitted.select([row for row, key in enumerate(fitted.keys) if key not in seen])
    classes = np.unique(fitted.labels, return_counts=True)[1]
    if len(fitted) < 3 or (task.kind == "classification" and (classes >= 2).sum() < 2):
        raise UsageError(
            f"{task.name}: too few training rows for a probe ({len(fitted)} to fit, {len(held_out)} to score); it "
            "takes three to fit, and of classes two with two rows"
        )
    return fitted, held_out


def _features(split, table):
    """(N, D) of texts, (N, 4 D) of pairs."""
    u = np.stack([table[text] for text in split.texts])
    return u if split.pairs is None else predictors.pair_features(u, np.stack([table[text] for text in split.pairs]))
