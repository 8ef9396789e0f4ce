"""Checkpoints that count only when they are whole, and a signal that asks a run to end with one.

A checkpoint is written into `_saving/` beside its place, every file is flushed to the disk, a manifest with the sizes
and hashes of all files is written last, and only then is the folder renamed to `checkpoint-N`. Whatever a crash leaves
behind is therefore either not called a checkpoint, or does not match its manifest.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm.auto import tqdm

from text_jepa.cli import UsageError


MANIFEST = "manifest.json"
STAGING = "_saving"


def write_manifest(folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Flushes all files of a checkpoint to the disk and writes what they have to be like, as the last file.

    Args:
        folder: The checkpoint.
        facts: What a run that goes on from it must agree with, see `differing_facts`.
    """
    folder = Path(folder)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256") if sys.version_info >= (3, 11) else _sha256(file)
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest.hexdigest()}
    content = {"facts": dict(facts), "files": files}
    unfinished = folder / f"{MANIFEST}.tmp"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump({**content, "sha256": _digest_of(content)}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MANIFEST)


def _sha256(file):
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def _digest_of(content):
    """Hash of the manifest itself, which no other file vouches for."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The facts and files of a checkpoint.

    Raises:
        ValueError: There is none, or it is not what was written.
    """
    path = Path(folder, MANIFEST)
    if not path.is_file():
        raise ValueError(f"{MANIFEST} is missing")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest = manifest.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    if digest != _digest_of(manifest):
        raise ValueError(f"{MANIFEST} is not what was written")
    return manifest


def find_damage(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; `None` if it is whole."""
    folder = Path(folder)
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        with path.open("rb") as file:
            if _sha256(file).hexdigest() != expected["sha256"]:
                return f"{name} is not what was written"
    return None


def step_of(folder: Path) -> int:
    """N of `checkpoint-N`."""
    return int(folder.name.rpartition("-")[2])


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N`, newest first."""
    found = (path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted((path for path in found if path.is_dir()), key=step_of, reverse=True)


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that matches its manifest; damaged ones are named.

    Returns:
        The folder, or `None` if there is no checkpoint at all.

    Raises:
        UsageError: There are checkpoints, and all of them are damaged.
    """
    _restore_replaced(output_dir)
    damaged = []
    for folder in checkpoints(output_dir):
        problem = find_damage(folder)
        if problem is None:
            for bad, what in damaged:
                tqdm.write(f"WARNING: {bad} is damaged ({what}); going on from {folder.name}", file=sys.stderr)
            return folder
        damaged.append((folder, problem))
    if damaged:
        named = "; ".join(f"{folder.name}: {problem}" for folder, problem in damaged)
        raise UsageError(f"{output_dir}: no checkpoint is whole ({named}); restore one, or start in another folder")
    return None


def set_newer_aside(output_dir: str | Path, step: int) -> None:
    """Renames checkpoints after a step to `_aside-…`: the run that goes on from there writes new ones.

    They are damaged, or of a course that was left. Kept in place they would be taken for the newest.
    """
    for folder in checkpoints(output_dir):
        if step_of(folder) > step:
            aside = _free_name(folder.with_name(f"_aside-{folder.name}"))
            folder.rename(aside)
            tqdm.write(f"WARNING: {folder.name}, newer than step {step}, is now {aside.name}", file=sys.stderr)


def _restore_replaced(output_dir):
    """Puts back the checkpoint that a run was about to replace when it was killed between two renamings."""
    for old in Path(output_dir).glob("_old-checkpoint-*"):
        place = old.with_name(old.name.removeprefix("_old-"))
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)


def _free_name(path):
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def differing_facts(folder: str | Path, facts: Mapping[str, Any]) -> list[str]:
    """What a run would do otherwise than the one that left a checkpoint, one line for each fact."""
    saved = read_manifest(folder)["facts"]
    return [
        f"{name} was {saved[name]!r} and is {facts[name]!r}"
        for name in saved
        if name in facts and json.dumps(saved[name], sort_keys=True) != json.dumps(facts[name], sort_keys=True)
    ]


def check_room(output_dir: str | Path, least_bytes: int) -> None:
    """Raises UsageError if the disk has less room than a checkpoint needs."""
    free = shutil.disk_usage(output_dir).free
    if free < least_bytes:
        raise UsageError(
            f"--output_dir {output_dir}: {free / 1e6:,.0f} MB are free, a checkpoint needs {least_bytes / 1e6:,.0f} "
            "MB; make room, and go on with --resume_from_checkpoint auto"
        )


def begin(output_dir: str | Path, step: int, least_bytes: int) -> Path:
    """Makes an empty folder to write a checkpoint into.

    Raises:
        UsageError: The disk has no room for it.
    """
    staging = Path(output_dir, STAGING, f"checkpoint-{step}")
    shutil.rmtree(staging.parent, ignore_errors=True)  # what a killed run left
    check_room(output_dir, least_bytes)
    staging.mkdir(parents=True)
    return staging


@contextlib.contextmanager
def writing(output_dir: str | Path, what: str) -> Iterator[None]:
    """Says in one line what could not be written, and how to go on.

    Raises:
        UsageError: The disk is full, not to be written to, or fails.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_about_writing(error):
            raise
        raise UsageError(
            f"--output_dir {output_dir}: {what} could not be written ({str(error).splitlines()[0]}); make room, and "
            "go on with --resume_from_checkpoint auto, which takes the newest whole checkpoint"
        ) from error


def _is_about_writing(error):
    if isinstance(error, OSError):
        refused = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
        return error.errno in refused
    # torch says so by a RuntimeError of its archive.
    archive = ("inline_container", "PytorchStreamWriter", "iostream")
    return isinstance(error, SafetensorError) or any(word in str(error) for word in archive)


def complete(staging: Path, output_dir: str | Path, facts: Mapping[str, Any]) -> Path:
    """Seals a written checkpoint with its manifest and puts it in its place."""
    write_manifest(staging, facts)
    final = Path(output_dir, staging.name)
    if final.exists():  # saved twice, as at the last step of a pass
        final.rename(_free_name(final.with_name(f"_old-{final.name}")))
    staging.replace(final)
    descriptor = os.open(output_dir, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the renaming itself
    finally:
        os.close(descriptor)
    shutil.rmtree(Path(output_dir, STAGING), ignore_errors=True)
    for old in Path(output_dir).glob(f"_old-{final.name}*"):
        shutil.rmtree(old, ignore_errors=True)
    return final


def rotate(output_dir: str | Path, limit: int | None, best: str | None, step: int) -> None:
    """Deletes all but the newest `limit` checkpoints up to the one of a step, just written; never the best one."""
    found = [folder for folder in checkpoints(output_dir) if step_of(folder) <= step]
    for folder in found[max(limit or len(found), 1) :]:
        if best is None or folder.resolve() != Path(best).resolve():
            # Out of its place first, that a run which is killed meanwhile leaves no half of it there.
            going = Path(output_dir, STAGING, folder.name)
            going.parent.mkdir(exist_ok=True)
            folder.rename(going)
    shutil.rmtree(Path(output_dir, STAGING), ignore_errors=True)
