"""Processes on several machines: what they must have in common, what they hand each other, and the loss of one."""

import contextlib
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from text_jepa.cli import UsageError
from text_jepa.train.arguments import TextJepaTrainingArguments
from text_jepa.train.checkpointing import MANIFEST, find_damage, newest_whole_checkpoint


# Where a machine keeps the checkpoint that the first process has sent, in its own output folder.
_RECEIVED = "_received"

# Bytes of a file that are sent at once.
_CHUNK = 64 << 20

# What gloo says when another process is gone or silent. It raises plain errors; NCCL has a class of its own.
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")


# ---- a lost process -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def naming_lost_processes(args: TextJepaTrainingArguments) -> Iterator[None]:
    """Turns the errors of a broken connection into one line that says how to go on.

    Args:
        args: The training arguments.

    Raises:
        UsageError: Another process is gone, or did not answer for `ddp_timeout` seconds.
    """
    if args.world_size > 1:
        # On CPUs the Trainer leaves torch's default in place, half an hour. There is no public name for this.
        torch.distributed.distributed_c10d._set_pg_timeout(args.ddp_timeout_delta)
    try:
        yield
    except RuntimeError as error:
        if args.world_size == 1 or not _is_lost_connection(error):
            raise
        raise UsageError(
            f"process {args.process_index} on {socket.gethostname()}: another process ended or did not respond within "
            f"{args.ddp_timeout} s (--ddp_timeout); see the output of the other processes, and restart all of them "
            "with --resume_from_checkpoint auto, which continues from the newest checkpoint"
        ) from error


def _is_lost_connection(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(words in str(error) for words in _LOST)


# ---- what all have in common ----------------------------------------------------------------------------------------


def check_same(fingerprint: Mapping[str, Any], args: TextJepaTrainingArguments) -> None:
    """Compares the settings, data and tokenizer of all processes, which may be started and stored apart.

    Args:
        fingerprint: The settings and data of this process, see `make_fingerprint`.
        args: The training arguments.

    Raises:
        UsageError: They differ between two processes. All processes raise it.
    """
    if args.world_size == 1:
        return
    values = {name: repr(value) for name, value in fingerprint.items()}
    found = gather_object([(socket.gethostname(), values)])
    first_host, first = found[0]
    for number, (host, other) in enumerate(found):
        for name, value in first.items():
            if other.get(name) != value:
                raise UsageError(
                    f"{name} is {value} in process 0 ({first_host}) and {other.get(name)} in process {number} "
                    f"({host}); start all of them with the same flags, and the same files on all machines"
                )


def gather_files(folder: str | Path, args: TextJepaTrainingArguments) -> dict[str, bytes]:
    """The contents of the small files that each process has in a folder of its own, by name."""
    own = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    found = gather_object([own]) if args.world_size > 1 else [own]
    files = {}
    for of_process in found:
        files |= of_process
    return files


# ---- the checkpoint to resume from ----------------------------------------------------------------------------------


def find_newest_checkpoint(resume: str | bool, args: TextJepaTrainingArguments) -> str | None:
    """The newest complete checkpoint in the output folder of the first process.

    Args:
        resume: How it was asked for. Only `"auto"` starts from the beginning if there is none.
        args: The training arguments.

    Returns:
        The folder of the checkpoint, or `None` to start from the beginning.

    Raises:
        UsageError: There is none, or all are damaged.
    """
    newest = [None]
    # One process looks, and puts back what a killed run was about to replace; all resume from what it found.
    if args.process_index == 0:
        newest = [newest_whole_checkpoint(args.output_dir)]
    if args.world_size > 1:
        broadcast_object_list(newest)
    if newest[0] is not None:
        return str(newest[0])
    if resume != "auto":
        raise UsageError(
            f"--resume_from_checkpoint: no checkpoint in {args.output_dir}; use 'auto' to start from the beginning "
            "then"
        )
    return None


# ---- a checkpoint that not all can read -----------------------------------------------------------------------------


@contextlib.contextmanager
def readable_checkpoint(checkpoint: str | None, args: TextJepaTrainingArguments) -> Iterator[str | None]:
    """A checkpoint as a folder that this process can read: machines that do not share it are sent a copy.

    The copy is in `_received/` of the machine's own output folder, until the run ends.

    Args:
        checkpoint: The checkpoint of the first process, `None` without one.
        args: The training arguments.

    Yields:
        The folder to read.

    Raises:
        UsageError: A copy is not what was sent, or cannot be written.
    """
    if checkpoint is None or args.world_size == 1:
        yield checkpoint
        return
    received = Path(args.output_dir, _RECEIVED)
    is_receiver = False
    try:
        is_lacking = not _has_same_checkpoint(checkpoint)
        if any(gather_object([is_lacking])):
            is_receiver = is_lacking and args.local_process_index == 0
            copy = received / Path(checkpoint).name
            if is_receiver:
                shutil.rmtree(received, ignore_errors=True)
            _send(Path(checkpoint), copy if is_receiver else None, args)
            if is_lacking:
                checkpoint = str(copy)
        yield checkpoint
    finally:
        if is_receiver:
            shutil.rmtree(received, ignore_errors=True)


def _has_same_checkpoint(checkpoint: str) -> bool:
    """Whether the checkpoint of the first process is found in that place by this one too."""
    path = Path(checkpoint, MANIFEST)
    content = path.read_bytes() if path.is_file() else None
    of_first = [content]
    broadcast_object_list(of_first)
    return content is not None and content == of_first[0]


def _send(source: Path, target: Path | None, args: TextJepaTrainingArguments) -> None:
    """Sends the files of a folder of the first process to all; those that have a target write them there."""
    is_sender = args.process_index == 0
    names = [None]
    if is_sender:
        files = sorted(path for path in source.rglob("*") if path.is_file())
        names = [[(path.relative_to(source).as_posix(), path.stat().st_size) for path in files]]
    broadcast_object_list(names)
    for name, size in names[0]:
        with contextlib.ExitStack() as opened:
            reader = opened.enter_context((source / name).open("rb")) if is_sender else None
            writer = None
            if target is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                writer = opened.enter_context((target / name).open("wb"))
            for start in range(0, size, _CHUNK):
                length = min(_CHUNK, size - start)
                chunk = torch.empty(length, dtype=torch.uint8)
                if reader is not None:
                    chunk = torch.frombuffer(bytearray(reader.read(length)), dtype=torch.uint8)
                chunk = chunk.to(args.device)
                torch.distributed.broadcast(chunk, src=0)
                if writer is not None:
                    writer.write(chunk.cpu().numpy().tobytes())
    damage = find_damage(target) if target is not None else None
    problems = [problem for problem in gather_object([damage]) if problem]
    if problems:
        raise UsageError(
            f"{source}: a machine without this checkpoint received a damaged copy ({problems[0]}); start again"
        )


def check_shared(args: TextJepaTrainingArguments) -> None:
    """Raises UsageError for flags that need an output folder that all machines share, where they do not share it."""
    if args.world_size == 1 or not args.load_best_model_at_end:
        return
    mark = [f"_shared-{uuid.uuid4().hex}"]
    broadcast_object_list(mark)
    path = Path(args.output_dir, mark[0])
    is_first = args.process_index == 0
    if is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    torch.distributed.barrier()
    found = gather_object([path.is_file()])
    if is_first:
        path.unlink()
    if not all(found):
        raise UsageError(
            "--load_best_model_at_end reads the best checkpoint on all machines, and they do not share "
            f"--output_dir {args.output_dir}; share it, or leave the flag out"
        )
