"""Full fine-tuning of an encoder on one task: the standard `Trainer`, with the head of the encoder's own architecture.

A tenth of the training split is held out. After each epoch it decides which checkpoint is kept and when training
stops; no label of another split is used. The two texts of a pair are read together, in the tokenizer's own format.
"""

import dataclasses
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from text_jepa.cli import UsageError, nearest, parse_arguments
from text_jepa.encoders.opening import check_loaded, read_config, read_tokenizer, readable
from text_jepa.probe.glue import GLUE, GlueMetric, base_name
from text_jepa.probe.tasks import Split, Task, hold_out


# RoBERTa's recipe, which data2vec adopted: Liu et al. 2019 (arXiv 1907.11692), table 10, and the table by task of
# fairseq, examples/roberta/README.glue.md. Adam there decays weights as AdamW does, and nothing is clipped.
RECIPE = {
    "num_train_epochs": "10",
    "lr_scheduler_type": "linear",
    "warmup_steps": "0.06",  # of all steps
    "weight_decay": "0.1",
    "adam_beta2": "0.98",
    "adam_epsilon": "1e-6",
    "max_grad_norm": "0",
}
# Learning rate and batch size of tasks outside GLUE.
OTHER_LEARNING_RATE = "2e-5"
OTHER_BATCH_SIZE = "16"
PATIENCE = 3

# One row of the training split in this many is held out.
HOLD_OUT_EVERY = 10

# Settings that this module fixes, or that have no effect with them.
_WITHOUT_EFFECT = ("eval_steps", "save_steps", "data_seed")


class FineTuned(NamedTuple):
    """Result of fine-tuning an encoder on one task.

    Args:
        predictions: (N,) class numbers (int64) or scores (float64) by split, for all splits but `train`.
        epoch: Epoch of the checkpoint that was kept.
        dev_score: Its score on the held-out part of the training split, in the metric `settings["metric"]`, at most 1.
        settings: The settings by the names of `TrainingArguments`, and the metric, lengths and numbers of rows.
    """

    predictions: dict[str, np.ndarray]
    epoch: float
    dev_score: float
    settings: dict[str, Any]


class _Answers(NamedTuple):
    """Turns logits into answers.

    Args:
        task: The task.
        encoder: Name of the encoder, for the error.
        mean: Mean of the training scores, which the model learns standardised.
        deviation: Standard deviation of the training scores.
    """

    task: Task
    encoder: str
    mean: float = 0.0
    deviation: float = 1.0

    def of(self, logits: np.ndarray) -> np.ndarray:
        """Class numbers or scores (N,) of logits (N, K)."""
        if not np.isfinite(logits).all():
            raise UsageError(f"{self.task.name}: fine-tuning of {self.encoder} diverged; lower learning_rate")
        if self.task.kind == "classification":
            return logits.argmax(axis=1)
        return logits[:, 0].astype(float) * self.deviation + self.mean


def finetune(
    name_or_path: str,
    task: Task,
    seed: int = 0,
    max_length: int = 128,
    overrides: Mapping[str, str] | None = None,
    output_dir: str | Path | None = None,
    **options,
) -> FineTuned:
    """Trains an encoder with a new head on a task, and predicts every other split of the task.

    The same seed gives the same predictions, bit-exactly on a CPU.

    Args:
        name_or_path: Folder or Hub name of any encoder with a class for sequence classification, ours included.
        task: The task. Its last metric selects the checkpoint.
        seed: Seed of the held-out part, the head, the order of the rows and the dropout.
        max_length: Maximum number of tokens; the longer text of a pair is truncated first.
        overrides: Fields of `TrainingArguments` as on a command line, in place of the recipe's. Encoders that are
            small or trained little need a higher `learning_rate` than RoBERTa, such as 1e-4.
        output_dir: Folder in which the kept model and its tokenizer are saved. A model for scores predicts them
            standardised; `score_mean` and `score_deviation` of the settings undo that.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: There is no encoder, an override is unknown or wrong, there are too few training rows, or training
            failed or diverged.
    """
    overrides = dict(overrides or {})
    metric = task.metrics[-1]
    rows, held_out = split_rows(task.train.labels, seed, task.name)
    train = task.train
    answers = _Answers(task, name_or_path)
    if task.kind == "regression":
        # The head starts near 0, and at these rates it would take the whole run to reach scores around 50.
        mean = float(train.labels.mean())
        deviation = float(train.labels.std())
        answers = _Answers(task, name_or_path, mean, deviation)
        train = dataclasses.replace(train, labels=(train.labels - mean) / deviation)

    with tempfile.TemporaryDirectory() as checkpoints:
        args = _training_arguments(task.name, metric, seed, overrides, checkpoints)
        set_seed(seed)
        model, tokenizer = _load_with_head(name_or_path, task, options)
        max_length = min(max_length, tokenizer.model_max_length)
        encode = partial(_encode, tokenizer=tokenizer, max_length=max_length, config=model.config)
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=encode(train.select(rows)),
            eval_dataset=encode(train.select(held_out)),
            compute_metrics=partial(_compute_metrics, answers=answers),
            callbacks=[EarlyStoppingCallback(PATIENCE)],
        )
        trainer.remove_callback(PrinterCallback)
        remedy = "change --finetune_args, or leave finetune out of --mode"
        with readable(task.name, f"fine-tuning of {name_or_path} failed; {remedy}"):
            trainer.train()

    predictions = {}
    for name, split in task.splits.items():
        if name != "train":
            unlabelled = dataclasses.replace(split, labels=None)
            output = trainer.predict(encode(unlabelled))
            predictions[name] = answers.of(output.predictions)
    if output_dir is not None:
        model.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)

    used = args.to_dict()
    settings = {name: used[name] for name in [*_recipe(task.name), "seed", *overrides]}
    settings["max_length"] = max_length
    settings["metric"] = metric
    settings["rows"] = len(rows)
    settings["held_out_rows"] = len(held_out)
    if task.kind == "regression":
        settings["score_mean"] = answers.mean
        settings["score_deviation"] = answers.deviation
    best = _best_record(trainer, f"eval_{metric}")
    return FineTuned(predictions, best["epoch"], best[f"eval_{metric}"], settings)


def split_rows(
    labels: np.ndarray,
    seed: int,
    name: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, a tenth; see `tasks.hold_out`.

    Args:
        labels: (N,) labels of the training split.
        seed: Seed of the choice.
        name: Name of the task, for the error.

    Raises:
        UsageError: There are too few rows.
    """
    if len(labels) < HOLD_OUT_EVERY:
        raise UsageError(
            f"{name}: {len(labels)} training rows are too few for fine-tuning, which holds a tenth out; "
            f"give at least {HOLD_OUT_EVERY}"
        )
    return hold_out(labels, HOLD_OUT_EVERY, seed)


def _compute_metrics(output: EvalPrediction, answers: _Answers) -> dict[str, float]:
    """All metrics of the task."""
    task = answers.task
    base = base_name(task.name)
    is_glue = base in GLUE and task.metrics == GLUE[base].metrics
    metric = GlueMetric(base if is_glue else task.kind, keep_in_memory=True)
    return metric.compute(predictions=answers.of(output.predictions), references=output.label_ids)


def _best_record(trainer: Trainer, metric: str) -> dict[str, float]:
    """The evaluation of the checkpoint that was kept."""
    best_step = trainer.state.best_global_step
    for record in trainer.state.log_history:
        if record["step"] == best_step and metric in record:
            return record
    raise RuntimeError(f"step {best_step} was not evaluated")


def _recipe(name: str) -> dict[str, str]:
    """Values in place of the defaults of `TrainingArguments`, as on a command line."""
    learning_rate = OTHER_LEARNING_RATE
    batch_size = OTHER_BATCH_SIZE
    base = base_name(name)
    if base in GLUE:
        learning_rate = GLUE[base].learning_rate
        batch_size = GLUE[base].batch_size
    return {
        **RECIPE,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
    }


def _training_arguments(
    name: str,
    metric: str,
    seed: int,
    overrides: Mapping[str, str],
    folder: str,
) -> TrainingArguments:
    fixed = {
        "output_dir": folder,
        "seed": seed,
        "eval_strategy": "epoch",
        "save_strategy": "best",
        "save_total_limit": 1,
        "save_only_model": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": True,
    }
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    known = fields.difference(fixed, _WITHOUT_EFFECT)
    for key in overrides:
        if key not in known:
            raise UsageError(
                f"fine-tuning has no setting '{key}'{nearest(key, sorted(known))} (it takes the fields of "
                "transformers' TrainingArguments except those of the seed, evaluation and saving)"
            )
    on_gpu = torch.cuda.is_available()
    has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported()
    defaults = {
        "per_device_eval_batch_size": 64,
        "bf16": has_bfloat16 and "fp16" not in overrides,
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": not sys.stderr.isatty(),
        "report_to": "none",
    }
    values = {
        **defaults,
        **_recipe(name),
        **overrides,
        **fixed,
    }
    argv = [f"--{key}={value}" for key, value in values.items()]
    (args,) = parse_arguments((TrainingArguments,), argv, "")
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise UsageError(f"--finetune_args num_train_epochs={args.num_train_epochs:g}: must be above 0")
    return args


def _load_with_head(
    name_or_path: str,
    task: Task,
    options: Mapping[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder of a checkpoint with a new head for the task, and its tokenizer."""
    if task.kind == "regression":
        head = {"num_labels": 1, "problem_type": "regression"}
    else:
        names = dict(enumerate(task.label_names))
        head = {
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
            "problem_type": "single_label_classification",
        }
    with readable(name_or_path, "no encoder to fine-tune there"):
        config = read_config(name_or_path, **options)
    with readable(name_or_path, "no tokenizer there"):
        tokenizer = read_tokenizer(name_or_path, **options)
    with readable(name_or_path, "no encoder to fine-tune there"), _without_loading_report():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name_or_path,
            trust_remote_code=False,
            dtype=torch.float32,  # a checkpoint in half precision would train in it, and hardly move
            ignore_mismatched_sizes=True,  # the head of another task
            output_loading_info=True,
            **head,
            **options,
        )

    inside_encoder = f"{model.base_model_prefix}."  # the head is new
    reshaped = {key for key, *_ in report["mismatched_keys"]}
    new_keys = reshaped | set(report["missing_keys"])
    report["missing_keys"] = [key for key in new_keys if key.startswith(inside_encoder)]
    check_loaded(name_or_path, model, report, tokenizer)
    if any("Classification" in name for name in config.architectures or ()):
        _draw_head(model)
    # Decoders find the last token of a padded text by it, and many name none.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    # The losses are means over a batch, which the Trainer has to average over accumulated ones.
    model.accepts_loss_kwargs = False
    return model, tokenizer


@torch.no_grad()
def _draw_head(model: PreTrainedModel) -> None:
    """Draws all weights outside the encoder again, because the head of another task is loaded if its shape fits."""
    new = AutoModelForSequenceClassification.from_config(model.config, trust_remote_code=False)
    encoder = set(model.base_model.parameters())
    for name, weights in model.named_parameters():
        if weights not in encoder:
            weights.copy_(new.get_parameter(name))


@contextmanager
def _without_loading_report() -> Iterator[None]:
    """Hides the report that the head's weights are new, and nothing else."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _encode(
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    config: PretrainedConfig,
) -> Dataset:
    """Token ids of the rows, and their labels if they have some."""
    encoded = tokenizer(
        split.texts,
        split.pairs,
        truncation="longest_first",
        max_length=max_length,
    )
    if getattr(config, "type_vocab_size", 2) < 2:  # RoBERTa's embedding has no second segment
        encoded.pop("token_type_ids", None)
    columns = dict(encoded)
    if split.labels is not None:
        columns["labels"] = split.labels
    return Dataset.from_dict(columns)
