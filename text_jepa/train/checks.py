"""Checks made before a pretraining run starts, and of its outcome: flags, processes, trackers, output folder."""

import contextlib
import copy
import dataclasses
import errno
import fcntl
import itertools
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import psutil
import torch
from datasets import Dataset, IterableDataset
from safetensors import safe_open
from torch.utils.checkpoint import checkpoint as run_with_checkpoint
from transformers import PreTrainedTokenizerBase, TrainerState, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError, first_line
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import Corpus
from text_jepa.data.strategies import DATA_VIEWS, DOCUMENT_VIEWS
from text_jepa.data.walking import LOCK
from text_jepa.encoders.sentence_head import SentenceHead
from text_jepa.train.arguments import (
    DataArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
    selects_best_checkpoint,
)
from text_jepa.train.callbacks import NONFINITE_LIMIT
from text_jepa.train.checkpointing import RESUME_NEWEST, RESUME_NONE, differing_settings, find_damage
from text_jepa.train.collapse import describe_remedies
from text_jepa.train.hosts import find_newest_checkpoint


if TYPE_CHECKING:
    from text_jepa.train.trainer import TextJepaTrainer

logger = logging.getLogger("text_jepa")

# Flags of the Trainer that have no effect here, or a wrong one, unless they are as by default; and why, or the remedy.
# A test sorts all fields of `TrainingArguments`: a new one of a later version is noticed.
REFUSED = {
    "auto_find_batch_size": "restarts from half-trained weights; lower the batch size yourself",
    "batch_eval_metrics": "evaluation computes losses only; leave it out",
    "bf16_full_eval": "evaluation has the precision of training; use --bf16, or leave it out",
    "debug": "only inspects outputs that are plain tensors; leave it out, the batch of a step that is not finite is "
    "saved anyway",
    "deepspeed": "use FSDP2: accelerate launch --config_file configs/accelerate/fsdp2.yaml",
    "do_predict": "a run pretrains; `text-jepa probe` scores the encoder",
    "enable_jit_checkpoint": "leave it out; SIGTERM always saves a checkpoint after the current step",
    "eval_accumulation_steps": "evaluation computes losses only; leave it out",
    "eval_do_concat_batches": "evaluation computes losses only; leave it out",
    "eval_use_gather_object": "evaluation computes losses only; leave it out",
    "fp16_full_eval": "evaluation has the precision of training; use --fp16, or leave it out",
    "fsdp": "use accelerate launch --config_file configs/accelerate/fsdp2.yaml, and leave it out",
    "fsdp_config": "use accelerate launch --config_file configs/accelerate/fsdp2.yaml, and leave it out",
    "include_for_metrics": "evaluation computes losses only; leave it out",
    "label_names": "there are no labels; leave it out",
    "label_smoothing_factor": "there are no labels to smooth; leave it out",
    "length_column_name": "lengths are counted here; leave it out",
    "liger_kernel_config": "is for models of liger; leave it out",
    "parallelism_config": "use FSDP2: accelerate launch --config_file configs/accelerate/fsdp2.yaml",
    "prediction_loss_only": "evaluation computes losses only; leave it out",
    "remove_unused_columns": "the collator needs all columns; leave it out",
    "restore_callback_states_from_checkpoint": "leave it out; the state is always restored",
    "save_on_each_node": "the first machine keeps the checkpoints, and sends them to the others; leave it out",
    "save_only_model": "a checkpoint is always complete; set --save_strategy no, or leave it out",
    "use_cache": "an encoder has no cache; leave it out",
    "use_liger_kernel": "liger knows no Text-JEPA; leave it out, or try --torch_compile",
}

# Flags of earlier versions of transformers and of its script run_mlm.py, and what takes their place.
RENAMED = {
    "adafactor": "--optim adafactor",
    "block_size": "--max_length",
    "config_overrides": "--text_config",
    "dispatch_batches": "--accelerator_config",
    "eval_batch_size": "--per_device_eval_batch_size",
    "evaluation_strategy": "--eval_strategy",
    "fp16_backend": "--fp16 or --bf16",
    "fp16_opt_level": "--fp16 or --bf16",
    "generation_max_length": "nothing: an encoder generates no text",
    "generation_num_beams": "nothing: an encoder generates no text",
    "group_by_length": "nothing: texts are always grouped by length",
    "half_precision_backend": "--fp16 or --bf16",
    "include_inputs_for_metrics": "nothing: evaluation computes losses only",
    "include_tokens_per_second": "nothing: the log always has tokens_per_second",
    "jit_mode_eval": "--torch_compile",
    "line_by_line": "--sample_by line",
    "logging_dir": "the variable TENSORBOARD_LOGGING_DIR",
    "max_seq_length": "--max_length",
    "mlm_probability": "--objective mlm with --mask_ratio",
    "no_cuda": "--use_cpu",
    "num_epochs": "--num_train_epochs",
    "overwrite_output_dir": "another --output_dir, or --resume_from_checkpoint auto",
    "pad_to_max_length": "nothing: texts are padded to the longest of their batch",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "predict_with_generate": "nothing: an encoder generates no text",
    "push_to_hub_model_id": "--hub_model_id",
    "push_to_hub_organization": "--hub_model_id ORGANIZATION/NAME",
    "push_to_hub_token": "the variable HF_TOKEN",
    "ray_scope": "nothing",
    "save_safetensors": "nothing: weights are always saved as safetensors",
    "sharded_ddp": "accelerate launch --config_file configs/accelerate/fsdp2.yaml",
    "split_batches": "--accelerator_config",
    "token": "the variable HF_TOKEN",
    "torchdynamo": "--torch_compile_backend",
    "tpu_num_cores": "nothing: accelerate finds the devices",
    "train_batch_size": "--per_device_train_batch_size",
    "use_auth_token": "the variable HF_TOKEN",
    "use_ipex": "--use_cpu with --bf16",
    "use_mps_device": "nothing: accelerate finds the device",
    "warmup_ratio": "--warmup_steps, a share of the run if it is below 1",
    "xpu_backend": "--ddp_backend",
}

# Flags that have an effect only beside others: when, and what to add.
_NEEDS_UPLOAD = (lambda args: args.push_to_hub, "goes with --push_to_hub")
_NEEDS_EVALUATION = (lambda args: args.eval_strategy != "no", "goes with --eval_strategy steps or epoch")
_NEEDS_CHOICE = (
    lambda args: selects_best_checkpoint(args) or args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
    "goes with --load_best_model_at_end, --save_strategy best or --lr_scheduler_type reduce_lr_on_plateau",
)
_NEEDS_PROJECTION = (
    lambda args: args.optim.startswith(("galore", "apollo")),
    "goes with --optim galore_adamw or apollo_adamw, and their variants",
)
_NEEDS_CHECKPOINTING = (
    lambda args: args.gradient_checkpointing or getattr(args, "activation_checkpointing", False),
    "goes with --gradient_checkpointing",
)
_NEEDS_WORKERS = (lambda args: args.dataloader_num_workers > 0, "goes with --dataloader_num_workers above 0")
_GOES_WITH = {
    "hub_model_id": _NEEDS_UPLOAD,
    "hub_private_repo": _NEEDS_UPLOAD,
    "hub_always_push": _NEEDS_UPLOAD,
    "hub_revision": _NEEDS_UPLOAD,
    "eval_delay": _NEEDS_EVALUATION,
    "metric_for_best_model": _NEEDS_CHOICE,
    "greater_is_better": _NEEDS_CHOICE,
    "optim_target_modules": _NEEDS_PROJECTION,
    "gradient_checkpointing_kwargs": _NEEDS_CHECKPOINTING,
    "dataloader_prefetch_factor": _NEEDS_WORKERS,
    "dataloader_persistent_workers": _NEEDS_WORKERS,
    "dataloader_multiprocessing_context": _NEEDS_WORKERS,
}

# What `accelerate launch` is called, and its flags for the number of processes.
_LAUNCHERS = ("accelerate", "accelerate-launch", "accelerate.commands.launch")
NUM_PROCESSES = ("--num_processes", "--num-processes", "-n")

# What a run that ended before its first checkpoint may have left in its folder, beside names that begin with `_`.
_LEFT_BY_A_RUN = ("arguments.yaml", "changed.yaml", "tokenizer", "metrics.jsonl", "nonfinite", "runs")

# A run that has been killed holds its lock until the system has taken its memory back.
_SECONDS_TO_DIE = 5.0

# The number of texts whose tokens stand for those of all texts in the fingerprint.
_FINGERPRINT_TEXTS = 1_000


# ---- flags and processes --------------------------------------------------------------------------------------------


def check_flags(data_args: DataArguments, args: TextJepaTrainingArguments) -> None:
    """Raises UsageError for flags that have no effect or do not go together."""
    if args.hub_token:
        raise UsageError(
            "--hub_token would end up in files; set the variable HF_TOKEN, or log in with `hf auth login`"
        )
    _check_flags_of_trainer(args)
    if args.n_gpu > 1:
        raise UsageError("several GPUs in one process: start one process for each with accelerate launch")
    if data_args.probe_data_dir and not data_args.probe_task:
        raise UsageError("--probe_data_dir goes with --probe_task")
    metric = args.metric_for_best_model or ""
    has_probe_metric = data_args.probe_task and "probe_" in metric
    if selects_best_checkpoint(args) and not has_probe_metric:
        raise UsageError(
            "checkpoints cannot be selected by their loss, because a collapsed encoder has the lowest loss; name a "
            "--probe_task and one of its metrics, as in --metric_for_best_model eval_probe_target_linear"
        )
    if data_args.streaming:
        _check_flags_of_stream(args)


def _check_flags_of_stream(args: TextJepaTrainingArguments) -> None:
    """Refuses a length in passes, and what is done at the end of a pass: a stream is one pass without an end."""
    if args.max_steps <= 0:
        raise UsageError("--streaming needs --max_steps: a stream has no known end")
    for name in ("save", "eval", "logging"):
        if getattr(args, f"{name}_strategy") == "epoch":
            raise UsageError(
                f"--{name}_strategy epoch has no effect with --streaming: a stream has no passes; use "
                f"--{name}_strategy steps with --{name}_steps"
            )


def _check_flags_of_trainer(args: TextJepaTrainingArguments) -> None:
    """Refuses flags of the Trainer that have no effect here, whatever their number."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name, remedy in REFUSED.items():
        # A later version may lack some of them. The Trainer writes empty values for missing ones.
        value = getattr(args, name, None)
        if name in defaults and value not in (defaults[name], None, [], {}):
            raise UsageError(f"--{name} is not supported: {remedy}")
    for name, (has_effect, condition) in _GOES_WITH.items():
        if getattr(args, name) not in (defaults[name], False) and not has_effect(args):
            raise UsageError(f"--{name} has no effect: it {condition}")
    if args.lr_scheduler_kwargs and args.lr_scheduler_type in ("constant", "constant_with_warmup"):
        schedule = args.lr_scheduler_type.value
        raise UsageError(f"--lr_scheduler_kwargs has no effect with --lr_scheduler_type {schedule}; leave it out")
    if 0 < args.max_steps <= args.warmup_steps:
        logger.warning(
            f"--warmup_steps {args.warmup_steps:g}: the run ends after {args.max_steps} steps, so the learning rate "
            "does not reach its peak; a value below 1 is a share of the run"
        )
    # Not an error: `--eval_strategy no` overrides a recipe that has both.
    if args.eval_steps is not None and args.eval_strategy != "steps":
        logger.warning("--eval_steps has no effect without --eval_strategy steps")
    if args.train_sampling_strategy not in ("random", "group_by_length"):
        raise UsageError(
            f"--train_sampling_strategy {args.train_sampling_strategy}: texts are shuffled and grouped by length; "
            "leave it out"
        )
    # The order of texts counts on it, and batches differ in width.
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name):
            raise UsageError(f"--accelerator_config {name}: each process builds its own batches; leave it out")
    if args.max_steps <= 0 and not args.num_train_epochs > 0:
        raise UsageError(f"--num_train_epochs {args.num_train_epochs:g}: the run would make no steps; set it above 0")


def warn_of_idle_flags(args: TextJepaTrainingArguments, model: TextJepaForPreTraining) -> None:
    """Says which flags have no effect on a model; no error, as recipes have them for several objectives.

    Args:
        args: The training arguments.
        model: The model to train.
    """
    embeddings = model.get_input_embeddings().weight
    if args.embedding_learning_rate is not None and not embeddings.requires_grad:
        logger.warning("--embedding_learning_rate has no effect: the embeddings are not trained")
    if model.config.has_moving_average:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name in ("ema_schedule", "ema_decay_start", "ema_decay_end", "ema_frozen_steps"):
        if getattr(args, name) != defaults[name]:
            logger.warning(f"--{name} has no effect: the model has no target encoder that is a moving average")


def check_processes(args: TextJepaTrainingArguments) -> None:
    """Raises UsageError if accelerate has started fewer processes than asked: with --cpu it starts one."""
    if args.world_size > 1:
        return
    words = _words_of_parent()
    # The name of the program stands before its flags: other words may be anything.
    program = itertools.takewhile(lambda word: not word.startswith("--"), words)
    if not any(Path(word).name in _LAUNCHERS for word in program):
        return
    parts = itertools.chain(*(word.split("=") for word in words))
    for flag, value in itertools.pairwise(parts):
        if flag in NUM_PROCESSES:
            if value.isdigit() and int(value) > 1:
                raise UsageError(
                    f"--num_processes {value}: accelerate started one process; on CPUs use "
                    f"torchrun --nproc_per_node {value} run_pretraining.py …"
                )
            return


def _words_of_parent() -> list[str]:
    """The command line of the process that has started this one; empty if it is gone or not ours to look at."""
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent is not None else []
    except psutil.Error:
        return []


def check_trackers(args: TextJepaTrainingArguments) -> None:
    """Raises UsageError if a tracker is unknown or not installed, or wandb has no login."""
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            # The destructor of a tracker that cannot be made would fail with a traceback of its own.
            class Tried(tracker):
                def __del__(self):
                    pass

            Tried()
        if "wandb" in args.report_to and args.process_index == 0:
            # It would otherwise ask for a key after the corpus is prepared.
            import_module("wandb").login()
    except Exception as error:  # trackers have errors of their own
        raise UsageError(f"--report_to: {first_line(error)}") from error


def check_pooling(pooling: str | None, head: SentenceHead | None) -> None:
    """Checks that an encoder that keeps its head pools as the run is asked to.

    Args:
        pooling: The value of --pooling, if it is given.
        head: The head that the encoder keeps from before the run.

    Raises:
        UsageError: It pools otherwise.
    """
    if pooling is None or head is None:
        return
    has_word_weights = any(kind == "WordWeights" for _, kind in head.modules)
    kept = "idf" if has_word_weights else head.pooling
    if pooling != kept:
        raise UsageError(
            f"--pooling {pooling} has no effect: no loss is on vectors of texts, so the encoder keeps its {kept} "
            "pooling; leave it out, or add --sentence_loss_weight 1"
        )


def check_start(trainer: "TextJepaTrainer") -> None:
    """Makes optimizer, schedule and a compiled function on trial, as the Trainer will at its start.

    Raises:
        UsageError: One of them cannot be made; the error names the flag.
    """
    args = trainer.args
    texts = trainer.train_dataset
    if args.dataloader_drop_last and hasattr(texts, "__len__"):
        texts_per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        if len(texts) < texts_per_step:
            raise UsageError(
                f"--dataloader_drop_last: {len(texts)} texts do not fill a step of {texts_per_step}, so the run would "
                "make no steps; lower --per_device_train_batch_size, or leave it out"
            )
    weight = torch.nn.Parameter(torch.zeros(2, 2, device=args.device))
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs:
        with _naming("--gradient_checkpointing_kwargs"):
            run_with_checkpoint(_double, weight, **{"use_reentrant": False, **args.gradient_checkpointing_kwargs})
    if args.torch_compile:
        with _naming(f"--torch_compile with {args.torch_compile_backend}"):
            compiled = torch.compile(_double, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
            compiled(weight.detach())
    _check_optimizer_arguments(trainer)
    with _naming(f"--optim {args.optim.value}"):
        optimizer_class, options = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    has_groups = "optimizer_dict" in options or "params" in options or "model" in options
    if has_groups:
        return
    with _naming(f"--optim {args.optim.value}"):
        optimizer = optimizer_class([weight], **options)
    with _naming(f"--lr_scheduler_type {args.lr_scheduler_type.value} with its --lr_scheduler_kwargs"):
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=copy.deepcopy(args.lr_scheduler_kwargs),
        )


def _check_optimizer_arguments(trainer: "TextJepaTrainer") -> None:
    """Refuses pairs of --optim_args without a value, and names that the optimizer does not read."""
    args = trainer.args
    if not args.optim_args:
        return
    pairs = args.optim_args.replace(" ", "").split(",")
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or "=" in value:
            raise UsageError(
                f"--optim_args {args.optim_args}: '{pair}' is not of the form NAME=VALUE, as in rank=64,scale=0.1"
            )
    for pair in pairs:
        name, _, value = pair.partition("=")
        others = [other for other in pairs if other.partition("=")[0] != name]
        without = _options_of_optimizer(trainer, others)
        # A value may be that of the default; no value at all is read without any consequence.
        tried = (value, "no_value", "True", "1")
        if all(_options_of_optimizer(trainer, [*others, f"{name}={value}"]) == without for value in tried):
            raise UsageError(
                f"--optim_args {name}: --optim {args.optim.value} does not read it; correct the name, or leave it out"
            )


def _options_of_optimizer(trainer: "TextJepaTrainer", pairs: Sequence[str]) -> str:
    """What an optimizer would be made of with these pairs of --optim_args, or why it cannot be."""
    args = copy.copy(trainer.args)
    args.optim_args = ",".join(pairs) or None
    try:
        return repr(trainer.get_optimizer_cls_and_kwargs(args, trainer.model))
    except Exception as error:  # optimizers have errors of their own
        return repr(error)


def _double(values: torch.Tensor) -> torch.Tensor:
    return values * 2 + 1


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Whatever is raised inside becomes one line with the flag."""
    try:
        yield
    except Exception as error:  # optimizers, schedules and compilers have errors of their own
        reason = first_line(error)
        raise UsageError(f"{flag}: cannot be used here ({reason}); choose another, or leave it out") from error


@contextmanager
def leaving_nothing(args: TextJepaTrainingArguments, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Removes from the output folder what was new in it if the block fails before the first step is done.

    Args:
        args: The training arguments.
        has_begun: Whether a step is done.
    """
    folder = Path(args.output_dir)
    before = set(folder.iterdir()) if folder.is_dir() else set()
    try:
        yield
    except BaseException:
        if args.process_index == 0 and not has_begun() and folder.is_dir():
            for path in set(folder.iterdir()) - before:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        raise


# ---- output folder and checkpoint -----------------------------------------------------------------------------------


@contextmanager
def holding_folder(output_dir: str, made: Sequence[Path]) -> Iterator[None]:
    """Makes the output folder of a run if it is missing, and keeps other runs out of it inside the block.

    Folders that were made are removed afterwards if they are empty, as after a run that is refused.

    Args:
        output_dir: The folder.
        made: The folders that were made for it before, see `make_folders`.

    Raises:
        UsageError: The folder cannot be written to, or another run writes into it.
    """
    folder = Path(output_dir)
    made = list(made)
    try:
        check_writable(output_dir)
        made.extend(make_folders(folder))
        with _locked(folder):
            yield
    finally:
        for path in reversed(made):
            # The system refuses to remove a folder that holds something.
            with contextlib.suppress(OSError):
                path.rmdir()


def make_folders(folder: Path) -> Iterator[Path]:
    """Makes a folder and those above it; yields the ones that this call, and no other process, has made."""
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                yield path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder for this process; the system unlocks it when the process ends, in whatever way."""
    path = folder / LOCK
    file = _take_lock(path)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _take_lock(path: Path) -> TextIO:
    """Opens and locks a file; waits for a run that ends."""
    give_up_at = time.monotonic() + _SECONDS_TO_DIE
    while True:
        # A run that ends removes the file, and the folder if it is empty.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:
            continue
        is_free = _try_to_lock(file)
        if is_free and _leads_to(path, file):
            return file
        file.seek(0)
        holder = file.read()
        file.close()
        if not is_free and time.monotonic() > give_up_at:
            raise UsageError(
                f"--output_dir {path.parent}: another run is writing to it ({holder}); wait until it ends, or use "
                "another folder"
            )
        time.sleep(0.1)


def _leads_to(path: Path, file: TextIO) -> bool:
    """Whether a path leads to an open file, which another process may have removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_to_lock(file: TextIO) -> bool:
    """Locks a file unless another process has; a lock of this kind does not pass to processes that are forked."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning(
            f"{file.name}: cannot be locked ({error.strerror}); make sure that no other run writes to this folder"
        )
    return True


def check_output_dir(args: TextJepaTrainingArguments) -> str | None:
    """Finds the checkpoint to resume from, if asked.

    Returns:
        The folder of the checkpoint, or `None` to start from the beginning.

    Raises:
        UsageError: The folder cannot be written to, is in use without a flag to resume, or has nothing to resume.
    """
    folder = Path(args.output_dir)
    check_writable(args.output_dir)
    # Only the first process looks: the others may come when it has begun to write.
    names = []
    if args.process_index == 0 and folder.is_dir():
        names = [path.name for path in folder.iterdir() if path.name != LOCK]
    resume = args.resume_from_checkpoint
    if resume in RESUME_NONE:
        if names:
            raise UsageError(
                f"--output_dir {folder}: not empty; use another folder, or resume with --resume_from_checkpoint auto"
            )
        return None
    if resume in RESUME_NEWEST:
        return _find_newest_checkpoint(args, names)
    # Only the first process needs it; it sends a copy to machines that do not share the folder.
    if args.process_index == 0:
        _check_checkpoint(resume)
    if names and Path(resume).resolve().parent != folder.resolve():
        raise UsageError(f"--output_dir {folder}: not empty, and {resume} is not in it; use another folder")
    return resume


def check_writable(output_dir: str) -> None:
    if re.match(r"[A-Za-z][\w+.-]*://", output_dir):
        raise UsageError(
            f"--output_dir {output_dir}: the output must be a local folder; write to one, and copy it there afterwards"
        )
    folder = Path(output_dir)
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"--output_dir {folder}: is a broken link; use another folder")
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
    newest = find_newest_checkpoint(args.resume_from_checkpoint, args)
    if newest is not None:
        return newest
    folder = Path(args.output_dir)
    foreign = [name for name in sorted(names) if name not in _LEFT_BY_A_RUN and not name.startswith("_")]
    if foreign:
        raise UsageError(
            f"--output_dir {folder}: contains other files ({foreign[0]}) but no checkpoint to resume from; use "
            "another folder"
        )
    return None


def _check_checkpoint(folder: str) -> None:
    if not Path(folder).is_dir():
        raise UsageError(
            f"--resume_from_checkpoint {folder}: there is no such checkpoint; 'auto' resumes from the newest one"
        )
    problem = find_damage(folder)
    if problem:
        raise UsageError(
            f"--resume_from_checkpoint {folder}: not a complete checkpoint ({problem}); 'auto' resumes from the "
            "newest complete one"
        )


# ---- agreement with a checkpoint ------------------------------------------------------------------------------------


def make_fingerprint(
    data_args: DataArguments,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    config: TextJepaConfig,
    collator: DataCollatorForTextJepa,
    train_dataset: Dataset | IterableDataset,
    held_out: Dataset | IterableDataset,
    num_workers: int,
) -> dict[str, Any]:
    """The objective, masks, words and data of a run, which a run that resumes from its checkpoints must share.

    Args:
        data_args: The data arguments.
        corpus: The raw documents.
        tokenizer: Their tokenizer.
        config: The configuration of the model.
        collator: The collator of the run.
        train_dataset: The tokenized training texts.
        held_out: All tokenized held-out texts.
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
    fingerprint["tokenizer"] = _describe_words(tokenizer)
    if hasattr(train_dataset, "__len__"):
        fingerprint["data"] = _describe_texts(train_dataset)
        fingerprint["held_out"] = _describe_texts(held_out)
        if data_args.view in DATA_VIEWS:
            fingerprint["views"] = f"{_checksum(train_dataset, 'view_input_ids'):08x}"
    else:
        fingerprint |= _fingerprint_of_stream(data_args, corpus, num_workers)
    return fingerprint


def _describe_texts(texts: Dataset) -> str:
    """Number, length and a checksum of tokenized texts."""
    lengths = np.asarray(texts["length"][:])
    checksum = _checksum(texts, "input_ids", zlib.crc32(lengths.tobytes()))
    return f"{len(lengths)} texts of {lengths.sum()} tokens ({checksum:08x})"


def _checksum(texts: Dataset, column: str, start: int = 0) -> int:
    """A checksum of the tokens in a column of some texts from all parts of a dataset, which goes on from another."""
    checksum = start
    stride = -(-len(texts) // _FINGERPRINT_TEXTS)
    for row in range(0, len(texts), stride):
        ids = np.asarray(texts[row][column])
        checksum = zlib.crc32(ids.tobytes(), checksum)
    return checksum


def _describe_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """Number and a checksum of the tokens of a vocabulary."""
    words = sorted(tokenizer.get_vocab().items())
    checksum = zlib.crc32(repr(words).encode())
    return f"{len(words)} tokens ({checksum:08x})"


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
        "min_length",
        "shuffle_buffer",
    ]
    # Files without columns are divided by it, too.
    if data_args.view in DOCUMENT_VIEWS or corpus.source.files:
        names.append("max_document_length")
    fingerprint = {name: getattr(data_args, name) for name in names}
    # As in the name of the corpus, without the folders, which may have been moved.
    held_out = [os.path.basename(os.path.normpath(name)) for name in data_args.validation_file or ()]
    fingerprint["validation_file"] = held_out
    fingerprint["data"] = f"{corpus.name} ({size} bytes)"
    fingerprint["dataloader_num_workers"] = num_workers
    return fingerprint


def check_agreement(trainer: "TextJepaTrainer", checkpoint: str) -> None:
    """Raises UsageError if settings differ from those of the checkpoint's run, unless changes are accepted.

    Changes are never accepted if the model has no place for the weights of the checkpoint.
    """
    differences = differing_settings(checkpoint, trainer.fingerprint)
    if differences and not trainer.args.accept_changes:
        listed = "; ".join(differences)
        raise UsageError(f"{checkpoint} is from a different run: {listed}; --accept_changes resumes anyway")
    if differences:
        _check_weights(trainer.model, checkpoint)


def _check_weights(model: TextJepaForPreTraining, checkpoint: str) -> None:
    """Raises UsageError if the weights of a checkpoint have other names or shapes than those of a model.

    The Trainer would leave out weights of other names with a warning, and train random ones in their place.
    """
    shapes = {name: list(weights.shape) for name, weights in model.state_dict().items()}
    for path in Path(checkpoint).glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not iterable)
                if file.get_slice(name).get_shape() != shapes.get(name):
                    raise UsageError(
                        f"{checkpoint}: {name} has no counterpart of the same shape in the model of this run, which "
                        "--accept_changes cannot change; use the sizes, the vocabulary and --lora of the run that "
                        "saved the checkpoint"
                    )


def check_collapse(trainer: "TextJepaTrainer", checkpoint: str) -> None:
    """Raises UsageError if a checkpoint was saved by a run that --stop_on_collapse ended."""
    state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
    trainer.monitor.restore(state)
    check_outcome(trainer)


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
            f"the run collapsed and was stopped; checkpoints are in {output_dir}. "
            f"{describe_remedies(trainer.model.config)} To go on anyway, leave out --stop_on_collapse."
        )
