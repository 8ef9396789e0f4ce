"""Checks made before a pretraining run starts, and of its outcome: flags, processes, trackers, output folder."""

import dataclasses
import itertools
import logging
import os
import tempfile
import zlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from transformers.integrations import get_reporting_integration_callbacks

from configuration_text_jepa import TextJepaConfig
from text_jepa.cli import UsageError, first_line
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import Corpus
from text_jepa.data.masking import DOCUMENT_VIEWS
from text_jepa.train import checkpointing
from text_jepa.train.arguments import (
    DataArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
)
from text_jepa.train.callbacks import NONFINITE_LIMIT
from text_jepa.train.checkpointing import differing_settings, find_damage, newest_whole_checkpoint


if TYPE_CHECKING:
    from text_jepa.train.trainer import TextJepaTrainer

logger = logging.getLogger("text_jepa")

# The flags of `accelerate launch` for the number of processes.
NUM_PROCESSES = ("--num_processes", "--num-processes", "-n")

# What a run that ended before its first checkpoint may have left in its folder, beside names that begin with `_`.
_LEFT_BY_A_RUN = ("tokenizer", "metrics.jsonl", "nonfinite", "runs")

# The number of texts whose tokens stand for those of all texts in the fingerprint.
_FINGERPRINT_TEXTS = 1_000


# ---- flags and processes --------------------------------------------------------------------------------------------


def check_flags(data_args: DataArguments, args: TextJepaTrainingArguments) -> None:
    """Raises UsageError for flags that have no effect or do not go together."""
    if args.hub_token:
        raise UsageError(
            "--hub_token would end up in files; set the variable HF_TOKEN, or log in with `hf auth login`"
        )
    if args.hub_model_id and not args.push_to_hub:
        raise UsageError("--hub_model_id goes with --push_to_hub")
    if args.auto_find_batch_size:
        raise UsageError("--auto_find_batch_size restarts from half-trained weights; lower the batch size yourself")
    if args.restore_callback_states_from_checkpoint:
        raise UsageError("--restore_callback_states_from_checkpoint: leave it out; the state is always restored")
    if args.n_gpu > 1:
        raise UsageError("several GPUs in one process: start one process for each with accelerate launch")
    if data_args.probe_data_dir and not data_args.probe_task:
        raise UsageError("--probe_data_dir goes with --probe_task")
    metric = args.metric_for_best_model or ""
    has_probe_metric = data_args.probe_task and "probe_" in metric
    if selects_best_checkpoint(args) and not has_probe_metric:
        raise UsageError(
            "a checkpoint is not chosen by its loss, of which a collapsed encoder has the lowest; name a --probe_task "
            "and one of its figures, as in --metric_for_best_model eval_probe_target_linear"
        )
    if data_args.streaming and args.max_steps <= 0:
        raise UsageError("--streaming needs --max_steps: a stream has no known end")


def selects_best_checkpoint(args: TextJepaTrainingArguments) -> bool:
    """Whether a checkpoint is selected by a metric."""
    return args.load_best_model_at_end or args.save_strategy == "best"


def check_processes(args: TextJepaTrainingArguments) -> None:
    """Raises UsageError if accelerate has started fewer processes than asked: with --cpu it starts one."""
    launcher = psutil.Process().parent()
    if launcher is None or args.world_size > 1:
        return
    words = launcher.cmdline()
    if not any("accelerate" in word for word in words):
        return
    for flag, value in itertools.pairwise(words):
        if flag in NUM_PROCESSES:
            if value.isdigit() and int(value) > 1:
                raise UsageError(
                    f"--num_processes {value}: accelerate started one process; on CPUs use "
                    f"torchrun --nproc_per_node {value} run_pretraining.py …"
                )
            return


def check_trackers(args: TextJepaTrainingArguments) -> None:
    """Raises UsageError if a tracker is unknown or not installed, or wandb has no login."""
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
        if "wandb" in args.report_to and args.process_index == 0:
            # It would otherwise ask for a key after the corpus is prepared.
            import_module("wandb").login()
    except Exception as error:  # trackers have errors of their own
        raise UsageError(f"--report_to: {first_line(error)}") from error


# ---- output folder and checkpoint -----------------------------------------------------------------------------------


def check_output_dir(args: TextJepaTrainingArguments) -> str | None:
    """Finds the checkpoint to resume from, if asked.

    Returns:
        The folder of the checkpoint, or `None` to start from the beginning.

    Raises:
        UsageError: The folder cannot be written to, is in use without a flag to resume, or has nothing to resume.
    """
    folder = Path(args.output_dir)
    _check_writable(folder)
    # Only the first process looks: the others may come when it has begun to write.
    names = []
    if args.process_index == 0 and folder.is_dir():
        names = [path.name for path in folder.iterdir()]
    resume = args.resume_from_checkpoint
    if resume in (None, "false", "False", False):
        if names:
            raise UsageError(
                f"--output_dir {folder}: not empty; name another folder, or resume with --resume_from_checkpoint true"
            )
        return None
    if resume in ("true", "True", "auto", True):
        return _find_newest_checkpoint(args, names)
    _check_checkpoint(resume)
    if names and Path(resume).resolve().parent != folder.resolve():
        raise UsageError(f"--output_dir {folder}: not empty, and {resume} is not in it; name another folder")
    return resume


def _check_writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder}: is a file")
    candidates = (folder, *folder.absolute().parents)
    existing = next(path for path in candidates if path.exists())
    try:
        # Leaves nothing behind, not even the folder.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(f"--output_dir {folder}: cannot be written to ({error.strerror}); name another") from error


def _find_newest_checkpoint(
    args: TextJepaTrainingArguments,
    names: Sequence[str],
) -> str | None:
    """The newest complete checkpoint of a run, whose folder holds these names."""
    folder = Path(args.output_dir)
    newest = [None]
    # One process looks, and sets damaged checkpoints aside; all resume from what it found.
    if args.process_index == 0:
        newest = [newest_whole_checkpoint(folder)]
    if args.world_size > 1:
        broadcast_object_list(newest)
    if newest[0] is not None:
        return str(newest[0])
    if args.resume_from_checkpoint != "auto":
        raise UsageError(
            f"--resume_from_checkpoint: no checkpoint in {folder}; use 'auto' to start from the beginning then"
        )
    foreign = [name for name in sorted(names) if name not in _LEFT_BY_A_RUN and not name.startswith("_")]
    if foreign:
        raise UsageError(
            f"--output_dir {folder}: no checkpoint to resume from, but something else ({foreign[0]}); "
            "name another folder"
        )
    return None


def _check_checkpoint(folder: str) -> None:
    if not Path(folder).is_dir():
        raise UsageError(f"--resume_from_checkpoint {folder}: no checkpoint there; 'auto' takes the newest")
    problem = find_damage(folder)
    if problem:
        raise UsageError(
            f"--resume_from_checkpoint {folder}: no whole checkpoint ({problem}); 'auto' takes the newest that is"
        )


def prepare_output_dir(trainer: "TextJepaTrainer", checkpoint: str | None) -> None:
    """Checks for disk space, and sets aside the checkpoints that the resumed run will write anew."""
    args = trainer.args
    output_dir = Path(args.output_dir)
    if args.save_strategy != "no":
        checkpointing.check_disk_space(output_dir, trainer.checkpoint_bytes())
    if checkpoint is None:
        return
    checkpoint = Path(checkpoint)
    if checkpoint.resolve().parent == output_dir.resolve():
        step = checkpointing.step_of(checkpoint)
        checkpointing.set_newer_aside(output_dir, step)


# ---- agreement with a checkpoint ------------------------------------------------------------------------------------


def make_fingerprint(
    data_args: DataArguments,
    corpus: Corpus,
    config: TextJepaConfig,
    collator: DataCollatorForTextJepa,
    train_dataset: Dataset | IterableDataset,
    num_workers: int,
) -> dict[str, Any]:
    """The objective, masks and data of a run, which a run that resumes from its checkpoints must share.

    Args:
        data_args: The data arguments.
        corpus: The raw documents.
        config: The configuration of the model.
        collator: The collator of the run.
        train_dataset: The tokenized training texts.
        num_workers: The number of data loader workers, which share the files of a stream.
    """
    own = vars(ObjectiveArguments())
    fingerprint = {name: value for name, value in config.to_dict().items() if name in own}
    for name, value in config.text_config.to_dict().items():
        if name != "transformers_version":
            fingerprint[f"text_config.{name}"] = value
    fingerprint["masks"] = collator.describe_masks()
    # The description in words is rounded.
    fingerprint["mask_strategies"] = [dataclasses.asdict(strategy) for strategy in collator.strategies]
    if hasattr(train_dataset, "__len__"):
        fingerprint["data"] = _describe_texts(train_dataset)
    else:
        fingerprint |= _fingerprint_of_stream(data_args, corpus, num_workers)
    return fingerprint


def _describe_texts(texts: Dataset) -> str:
    """Number, length and a checksum of tokenized texts."""
    lengths = np.asarray(texts["length"][:])
    checksum = zlib.crc32(lengths.tobytes())
    stride = -(-len(lengths) // _FINGERPRINT_TEXTS)
    for row in range(0, len(lengths), stride):
        ids = np.asarray(texts[row]["input_ids"])
        checksum = zlib.crc32(ids.tobytes(), checksum)
    return f"{len(lengths)} texts of {lengths.sum()} tokens ({checksum:08x})"


def _fingerprint_of_stream(data_args: DataArguments, corpus: Corpus, num_workers: int) -> dict[str, Any]:
    """What is known of a stream: the size of its files, and the settings that order and cut its texts."""
    size = sum(os.path.getsize(path) for path in corpus.source.files)
    names = [
        "dataset_split",
        "text_column",
        "view_column",
        "sample_by",
        "quoting",
        "max_train_samples",
        "max_length",
        "shuffle_buffer",
    ]
    if data_args.view in DOCUMENT_VIEWS:
        names.append("max_document_length")
    fingerprint = {name: getattr(data_args, name) for name in names}
    fingerprint["data"] = f"{corpus.name} ({size} bytes)"
    fingerprint["dataloader_num_workers"] = num_workers
    return fingerprint


def check_agreement(trainer: "TextJepaTrainer", checkpoint: str) -> None:
    """Raises UsageError if settings differ from those of the checkpoint's run, unless changes are accepted."""
    differences = differing_settings(checkpoint, trainer.fingerprint)
    if differences and not trainer.args.accept_changes:
        listed = "; ".join(differences)
        raise UsageError(f"{checkpoint} is of another run: {listed}; --accept_changes resumes anyway")
    for difference in differences:
        logger.warning(f"resuming with a change: {difference}")


# ---- outcome --------------------------------------------------------------------------------------------------------


def check_outcome(trainer: "TextJepaTrainer") -> None:
    """Raises UsageError if the run stopped because something was wrong; nothing is exported then."""
    output_dir = trainer.args.output_dir
    if trainer.nonfinite_steps == NONFINITE_LIMIT:
        raise UsageError(
            f"the gradient was not finite {NONFINITE_LIMIT} times in a row; the last good state is the newest "
            f"checkpoint in {output_dir}; lower --learning_rate or lengthen --warmup_steps"
        )
    if trainer.monitor.collapsed and trainer.args.stop_on_collapse:
        raise UsageError(
            f"the run collapsed and was stopped; checkpoints are in {output_dir}. {trainer.monitor.remedy}"
        )
