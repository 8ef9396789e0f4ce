"""What is looked at before a pretraining run begins: flags, processes, trackers, the output folder."""

import itertools
import logging
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import datasets
import psutil
import transformers
from accelerate.utils import broadcast_object_list
from transformers.integrations import get_reporting_integration_callbacks

from text_jepa.arguments import UsageError, first_line
from text_jepa.checkpointing import damage, newest_whole_checkpoint


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
    if problem := damage(resume):
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
    if chooses(args) and not (data_args.probe_task and "probe_" in (args.metric_for_best_model or "")):
        raise UsageError(
            "a checkpoint is not chosen by its loss, of which a collapsed encoder has the lowest; name a --probe_task "
            "and one of its figures, as in --metric_for_best_model eval_probe_teacher_linear"
        )
    if data_args.streaming and args.max_steps <= 0:
        raise UsageError("--streaming needs --max_steps: a stream has no known end")


def chooses(args) -> bool:
    """Whether a checkpoint is to be chosen by a figure."""
    return args.load_best_model_at_end or args.save_strategy == "best"
