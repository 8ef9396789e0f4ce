"""What is looked at before a pretraining run begins: flags, processes, trackers, the output folder."""

import dataclasses
import itertools
import logging
import os
import sys
import tempfile
import zlib
from importlib import import_module
from pathlib import Path

import datasets
import numpy as np
import psutil
import transformers
from accelerate.utils import broadcast_object_list
from transformers import TrainerState
from transformers.integrations import get_reporting_integration_callbacks

from text_jepa.cli import UsageError, first_line
from text_jepa.data.masking import DOCUMENT_VIEWS
from text_jepa.train import checkpointing
from text_jepa.train.arguments import ObjectiveArguments, describe_data, source_of
from text_jepa.train.callbacks import NONFINITE_LIMIT
from text_jepa.train.checkpointing import differing_facts, find_damage, newest_whole_checkpoint
from text_jepa.train.run_log import write_metrics


logger = logging.getLogger("text_jepa")

# How accelerate is asked for processes.
NUM_PROCESSES = ("--num_processes", "--num-processes", "-n")


def set_up_logging(args):
    """One process speaks, and only of what matters."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.ERROR)
    for name in ("httpx", "httpx2", "datasets", "accelerate", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def check_output_dir(args) -> str | None:
    """The checkpoint to go on from, if asked.

    Raises:
        UsageError: The folder cannot be written to, it holds something and nothing was said of resuming, or there is
            nothing to resume.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder}: is a file")
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.absolute().parents) if path.exists())):
            pass  # leaves nothing behind, not even the folder
    except OSError as error:
        raise UsageError(f"--output_dir {folder}: cannot be written to ({error.strerror}); name another") from error
    # Only the first process looks: the others may come when it has begun to write.
    found = [path.name for path in folder.iterdir()] if args.process_index == 0 and folder.is_dir() else []
    resume = args.resume_from_checkpoint
    if resume in (None, "false", "False", False):
        if found:
            raise UsageError(
                f"--output_dir {folder}: not empty; name another folder, or go on with --resume_from_checkpoint true"
            )
        return None
    if resume in ("true", "True", "auto", True):
        # One process looks, and sets damaged ones aside; all go on from what it found.
        newest = [newest_whole_checkpoint(folder) if args.process_index == 0 else None]
        if args.world_size > 1:
            broadcast_object_list(newest)
        if newest[0] is not None:
            return str(newest[0])
        if resume != "auto":
            raise UsageError(f"--resume_from_checkpoint: no checkpoint in {folder}; 'auto' starts anew then")
        # A run that ended before its first checkpoint may have left these; anything else is not ours to write over.
        foreign = [name for name in found if name not in ("tokenizer", "metrics.jsonl", "nonfinite", "runs")]
        if foreign := sorted(name for name in foreign if not name.startswith("_")):
            raise UsageError(
                f"--output_dir {folder}: no checkpoint to go on from, but something else ({foreign[0]}); "
                "name another folder"
            )
        return None
    if not Path(resume).is_dir():
        raise UsageError(f"--resume_from_checkpoint {resume}: no checkpoint there; 'auto' takes the newest")
    if problem := find_damage(resume):
        raise UsageError(
            f"--resume_from_checkpoint {resume}: no whole checkpoint ({problem}); 'auto' takes the newest that is"
        )
    if found and Path(resume).resolve().parent != folder.resolve():
        raise UsageError(
            f"--output_dir {folder}: not empty, and {resume} is not of it; name another folder for what follows"
        )
    return resume


def check_trackers(args):
    """Raises UsageError if a tracker is unknown or not installed, or wandb does not know who it is for."""
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
        if "wandb" in args.report_to and args.process_index == 0:
            import_module("wandb").login()  # else it would ask for a key when the corpus is prepared
    except Exception as error:  # trackers have errors of their own
        raise UsageError(f"--report_to: {first_line(error)}") from error


def check_processes(args):
    """Raises UsageError if accelerate was asked for more processes than it started: with --cpu it starts one."""
    launcher = psutil.Process().parent()
    words = launcher.cmdline() if launcher and args.world_size == 1 else []
    if any("accelerate" in word for word in words):
        asked = [value for flag, value in itertools.pairwise(words) if flag in NUM_PROCESSES]
        if asked and asked[0].isdigit() and int(asked[0]) > 1:
            raise UsageError(
                f"--num_processes {asked[0]}: accelerate started one process; on CPUs use "
                f"torchrun --nproc_per_node {asked[0]} run_pretraining.py …"
            )


def check_flags(data_args, args):
    """Raises UsageError for what cannot be done, rather than leaving it undone in silence."""
    if args.hub_token:
        raise UsageError(
            "--hub_token would end up in files; set the variable HF_TOKEN, or log in with `hf auth login`"
        )
    if args.hub_model_id and not args.push_to_hub:
        raise UsageError("--hub_model_id goes with --push_to_hub")
    if args.auto_find_batch_size:
        raise UsageError("--auto_find_batch_size goes on from half-trained weights; lower the batch size yourself")
    if args.restore_callback_states_from_checkpoint:
        raise UsageError("--restore_callback_states_from_checkpoint: leave it out; the state is always restored")
    if args.n_gpu > 1:
        raise UsageError("several GPUs in one process: start one process for each with accelerate launch")
    if data_args.probe_data_dir and not data_args.probe_task:
        raise UsageError("--probe_data_dir goes with --probe_task")
    if selects_best_checkpoint(args) and not (data_args.probe_task and "probe_" in (args.metric_for_best_model or "")):
        raise UsageError(
            "a checkpoint is not chosen by its loss, of which a collapsed encoder has the lowest; name a --probe_task "
            "and one of its figures, as in --metric_for_best_model eval_probe_target_linear"
        )
    if data_args.streaming and args.max_steps <= 0:
        raise UsageError("--streaming needs --max_steps: a stream has no known end")


def selects_best_checkpoint(args) -> bool:
    """Whether a checkpoint is to be chosen by a figure."""
    return args.load_best_model_at_end or args.save_strategy == "best"


def make_fingerprint(data_args, config, collator, train_dataset, workers) -> dict:
    """Objective, masks and data of a run, for those to be compared that go on from its checkpoints."""
    own = vars(ObjectiveArguments())
    facts = {name: value for name, value in config.to_dict().items() if name in own}
    encoder = config.text_config.to_dict()
    facts |= {f"text_config.{name}": encoder[name] for name in encoder.keys() - {"transformers_version"}}
    facts["masks"] = collator.masks_in_words()
    facts["mask_strategies"] = [dataclasses.asdict(strategy) for strategy in collator.strategies]  # words are rounded
    if hasattr(train_dataset, "__len__"):
        lengths = np.asarray(train_dataset["length"][:])
        checksum = zlib.crc32(lengths.tobytes())
        for row in range(0, len(lengths), -(-len(lengths) // 1_000)):  # a thousand texts stand for all
            checksum = zlib.crc32(np.asarray(train_dataset[row]["input_ids"]).tobytes(), checksum)
        facts["data"] = f"{len(lengths)} texts of {lengths.sum()} tokens ({checksum:08x})"
    else:
        # What is in a stream is not known; of files at least their size is. Workers share its files, hence its order.
        files = source_of(data_args)[1]
        facts["data"] = f"{describe_data(data_args)} ({sum(os.path.getsize(path) for path in files)} bytes)"
        names = ["dataset_split", "text_column", "view_column", "sample_by", "max_train_samples", "max_length"]
        names += ["max_document_length"] if data_args.view in DOCUMENT_VIEWS else []
        facts |= {name: getattr(data_args, name) for name in (*names, "shuffle_buffer")}
        facts["dataloader_num_workers"] = workers
    return facts


def check_agreement(trainer, checkpoint):
    """Raises UsageError if the run would not go on as the one that left the checkpoint, unless that is accepted."""
    differences = differing_facts(checkpoint, trainer.fingerprint)
    if differences and not trainer.args.accept_changes:
        raise UsageError(f"{checkpoint} is of another run: {'; '.join(differences)}; --accept_changes goes on anyway")
    for difference in differences:
        logger.warning(f"going on with a change: {difference}")


def load_finished(trainer, checkpoint) -> bool:
    """Loads a checkpoint if its run has done all its steps, which the Trainer would follow by one more."""
    state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
    steps, epochs = trainer.args.max_steps, trainer.args.num_train_epochs
    if state.global_step < (steps if steps > 0 else state.max_steps) or (steps <= 0 and state.epoch + 1e-6 < epochs):
        return False
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or checkpoint)
    trainer.state = state
    if trainer.args.process_index == 0:
        write_metrics(trainer.args.output_dir, state.log_history)
    return True


def prepare_output_dir(trainer, checkpoint):
    """Looks for room, before the first step; and sets checkpoints aside that the run would come to again."""
    args = trainer.args
    if args.save_strategy != "no":
        checkpointing.check_room(args.output_dir, trainer.bytes_of_checkpoint())
    if checkpoint is not None and Path(checkpoint).resolve().parent == Path(args.output_dir).resolve():
        checkpointing.set_newer_aside(args.output_dir, checkpointing.step_of(Path(checkpoint)))


def check_outcome(trainer):
    """Raises UsageError if the run stopped because something was wrong; nothing is exported then."""
    output_dir, monitor = trainer.args.output_dir, trainer.monitor
    if trainer.nonfinite_steps == NONFINITE_LIMIT:
        raise UsageError(
            f"the gradient was not finite {NONFINITE_LIMIT} times in a row; the last good state is the newest "
            f"checkpoint in {output_dir}; lower --learning_rate or lengthen --warmup_steps"
        )
    if monitor.collapsed and trainer.args.stop_on_collapse:
        raise UsageError(f"the run collapsed and was stopped; checkpoints are in {output_dir}. {monitor.remedy}")
