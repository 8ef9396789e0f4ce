"""Full fine-tuning of an encoder on one task: the standard `Trainer`, with the head of the encoder's own architecture.

A tenth of the training split is held out. After each epoch it decides which checkpoint is kept and when to stop; no
label of another split is ever looked at. Both texts of a pair are read at once, in the tokenizer's own format.
"""

import dataclasses
import logging
import sys
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

import text_jepa  # noqa: F401  registers our model with the Auto classes
from text_jepa.cli import UsageError, nearest, parse_arguments
from text_jepa.probe.glue import FUNCTIONS, RATE_AND_BATCH
from text_jepa.probe.tasks import Task


# The recipe of RoBERTa, which data2vec took over: Liu et al. 2019 (arXiv 1907.11692), table 10, and the table by task
# of fairseq, examples/roberta/README.glue.md. Adam there decays weights as AdamW does, and nothing is clipped.
RECIPE = {
    "num_train_epochs": "10",
    "lr_scheduler_type": "linear",
    "warmup_steps": "0.06",  # of all steps
    "weight_decay": "0.1",
    "adam_beta2": "0.98",
    "adam_epsilon": "1e-6",
    "max_grad_norm": "0",
}
OTHER_TASKS = ("2e-5", "16")
PATIENCE = 3

# Of the training split, every so many rows are held out.
HOLD_OUT_EVERY = 10


class FineTuned(NamedTuple):
    """What became of an encoder on one task.

    Args:
        predictions: By split, all but `train`: (N,) class numbers (int64) or scores (float64).
        epoch: Of the checkpoint that was kept.
        dev_score: Its score on the held-out part of the training split, in the metric `settings["metric"]`, up to 1.
        settings: What was used, by the names of `TrainingArguments`, and the metric, lengths and numbers of rows.
    """

    predictions: dict[str, np.ndarray]
    epoch: float
    dev_score: float
    settings: dict[str, Any]


def finetune(
    name_or_path: str,
    task: Task,
    seed: int = 0,
    max_length: int = 128,
    overrides: Mapping[str, str] | None = None,
    output_dir: str | Path | None = None,
) -> FineTuned:
    """Trains an encoder with a new head on a task, and predicts every other split of the task.

    The same seed gives the same predictions, on a CPU bit by bit.

    Args:
        name_or_path: Folder or Hub name of any encoder with a class for sequence classification, ours included.
        task: Its last metric, which is GLUE's `HEADLINE`, chooses the checkpoint.
        seed: Of the held-out part, the head, the order of the rows and the dropout.
        max_length: In tokens; of a pair the longer text is cut first.
        overrides: Fields of `TrainingArguments` as on a command line, in place of the recipe's. Encoders that are
            small or trained little need a higher `learning_rate` than RoBERTa, such as 1e-4.
        output_dir: Where the kept model and its tokenizer are saved. A model for scores gives them standardised;
            `score_mean` and `score_deviation` of the settings undo that.

    Raises:
        UsageError: No encoder there, an override that is unknown or wrong, too few training rows, or a training that
            diverged.
    """
    overrides, metric = dict(overrides or {}), task.metrics[-1]
    rows, held_out = split_rows(task.train.labels, seed, task.name)
    train, mean, deviation = task.train, 0.0, 1.0
    if task.kind == "regression":
        # The head starts near 0, and at these rates it would take the whole run to reach scores around 50.
        mean, deviation = float(train.labels.mean()), float(train.labels.std())
        train = dataclasses.replace(train, labels=(train.labels - mean) / deviation)

    def decide(logits):
        if not np.isfinite(logits).all():
            raise UsageError(f"{task.name}: fine-tuning of {name_or_path} diverged; lower learning_rate")
        return (
            logits.argmax(axis=1) if task.kind == "classification" else logits[:, 0].astype(float) * deviation + mean
        )

    with tempfile.TemporaryDirectory() as checkpoints:
        args = _training_arguments(task.name, metric, seed, overrides, checkpoints)
        set_seed(seed)
        model, tokenizer = _load(name_or_path, task)
        max_length = min(max_length, tokenizer.model_max_length)
        encode = partial(_encode, tokenizer=tokenizer, max_length=max_length, config=model.config)
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=encode(train.select(rows)),
            eval_dataset=encode(train.select(held_out)),
            compute_metrics=lambda output: {metric: FUNCTIONS[metric](decide(output.predictions), output.label_ids)},
            callbacks=[EarlyStoppingCallback(PATIENCE)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    unlabelled = {
        name: dataclasses.replace(split, labels=None) for name, split in task.splits.items() if name != "train"
    }
    predictions = {name: decide(trainer.predict(encode(split)).predictions) for name, split in unlabelled.items()}
    if output_dir is not None:
        model.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)
    best = next(
        record
        for record in trainer.state.log_history
        if record["step"] == trainer.state.best_global_step and f"eval_{metric}" in record
    )
    used = args.to_dict()
    settings = {name: used[name] for name in [*_recipe(task.name), "seed", *overrides]}
    settings |= {"max_length": max_length, "metric": metric, "rows": len(rows), "held_out_rows": len(held_out)}
    if task.kind == "regression":
        settings |= {"score_mean": mean, "score_deviation": deviation}
    return FineTuned(predictions, best["epoch"], best[f"eval_{metric}"], settings)


def split_rows(labels: np.ndarray, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, a tenth, with the classes or the range of scores in equal shares.

    Args:
        labels: (N,) of the training split.
        seed: Of the choice.
        name: Of the task, for the error.

    Returns:
        Row numbers in ascending order, together all N.

    Raises:
        UsageError: The rows are too few.
    """
    if len(labels) < HOLD_OUT_EVERY:
        raise UsageError(
            f"{name}: {len(labels)} training rows are too few for fine-tuning, which holds a tenth out; "
            f"give at least {HOLD_OUT_EVERY}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    held_out = np.zeros(len(labels), bool)
    held_out[order[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _recipe(name):
    """What stands in for the defaults of `TrainingArguments`, as on a command line."""
    learning_rate, batch_size = RATE_AND_BATCH.get(name.removesuffix("_mini"), OTHER_TASKS)
    return RECIPE | {"learning_rate": learning_rate, "per_device_train_batch_size": batch_size}


def _training_arguments(name, metric, seed, overrides, folder):
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
    without_effect = {"eval_steps", "save_steps", "data_seed"}
    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init} - set(fixed) - without_effect
    for key in overrides:
        if key not in known:
            raise UsageError(
                f"fine-tuning has no setting '{key}'{nearest(key, sorted(known))} (it takes the fields of "
                "transformers' TrainingArguments but those of the seed, of evaluation and of saving)"
            )
    on_gpu = torch.cuda.is_available()
    defaults = {
        "per_device_eval_batch_size": 64,
        "bf16": on_gpu and torch.cuda.is_bf16_supported() and "fp16" not in overrides,
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": not sys.stderr.isatty(),
        "report_to": "none",
    }
    values = defaults | _recipe(name) | overrides | fixed
    (args,) = parse_arguments((TrainingArguments,), [f"--{key}={value}" for key, value in values.items()], "")
    return args


def _load(name_or_path, task):
    """The encoder of a checkpoint with a head for the task, and its tokenizer."""
    if task.kind == "regression":
        head = {"num_labels": 1, "problem_type": "regression"}
    else:
        names = dict(enumerate(task.label_names))
        head = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
        head["problem_type"] = "single_label_classification"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        with _without_loading_report():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                name_or_path,
                dtype=torch.float32,  # a checkpoint in half precision would train in it, and hardly move
                ignore_mismatched_sizes=True,  # the head of another task
                output_loading_info=True,
                **head,
            )
    except (OSError, ValueError) as error:
        raise UsageError(f"{name_or_path}: no encoder to fine-tune there ({str(error).splitlines()[0]})") from error
    inside = f"{model.base_model_prefix}."
    missing = sorted(key for key in loading["missing_keys"] if key.startswith(inside) and "pooler" not in key)
    if missing:
        raise UsageError(f"{name_or_path}: {len(missing)} weights of the encoder are missing, e.g. {missing[0]}")
    # The losses are means over a batch, which the Trainer has to average over accumulated ones.
    model.accepts_loss_kwargs = False
    return model, tokenizer


@contextmanager
def _without_loading_report():
    """That the head's weights are new goes without saying; nothing else is hidden."""

    def is_other(record):
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _encode(split, tokenizer, max_length, config):
    encoded = tokenizer(split.texts, split.pairs, truncation="longest_first", max_length=max_length)
    if getattr(config, "type_vocab_size", 2) < 2:  # RoBERTa's embedding has no second segment
        encoded.pop("token_type_ids", None)
    labels = {} if split.labels is None else {"labels": split.labels}
    return Dataset.from_dict({**encoded, **labels})
