"""Checkpoints that count only if they are complete, and the newest of them to resume from.

A checkpoint is written into `_saving/` beside its final place, every file is flushed to the disk, a manifest with the
sizes and hashes of all files is written last, and only then is the folder renamed to `checkpoint-N`. Whatever a crash
leaves behind is therefore either not called a checkpoint, or does not match its manifest.
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
from typing import Any, BinaryIO

from safetensors import SafetensorError
from tqdm.auto import tqdm

from text_jepa.cli import UsageError
from text_jepa.errors import DISK_ERRORS


MANIFEST = "manifest.json"
STAGING = "_saving"

# Values of --resume_from_checkpoint that name no checkpoint: for none, and for the newest.
RESUME_NONE = (None, "false", "no", "off", False)
RESUME_NEWEST = ("true", "yes", "on", "auto", True)

# How the texts of a run are ordered: the setting of that name.
ORDER = "by steps"

# A folder may also lose its permissions while a run lasts.
_WRITE_ERRORS = DISK_ERRORS | {errno.EACCES, errno.EPERM}

# What a file system answers that cannot flush folders: shares of VirtualBox, old CIFS.
_NO_FLUSH = {errno.EBADF, errno.EINVAL, errno.ENOTSUP}

# torch reports them by a RuntimeError of its archive, with one of these words.
_ARCHIVE_ERRORS = ("inline_container", "PytorchStreamWriter", "iostream")


# ---- manifest -------------------------------------------------------------------------------------------------------


def write_manifest(folder: str | Path, fingerprint: Mapping[str, Any]) -> None:
    """Flushes all files of a checkpoint to the disk, and writes their sizes and hashes as the last file.

    Args:
        folder: The checkpoint.
        fingerprint: The settings that a resumed run must share, see `differing_settings`.
    """
    folder = Path(folder)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb+") as file:
            digest = _sha256(file)
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": digest}
    content = {"facts": dict(fingerprint), "files": files}
    content["sha256"] = _manifest_hash(content)

    unfinished = folder / f"{MANIFEST}.tmp"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MANIFEST)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The fingerprint (`"facts"`) and the files of a checkpoint.

    Raises:
        ValueError: There is no manifest, or it was changed.
    """
    path = Path(folder, MANIFEST)
    if not path.is_file():
        raise ValueError(f"{MANIFEST} is missing")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest = manifest.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    if digest != _manifest_hash(manifest):
        raise ValueError(f"{MANIFEST} is not what was written")
    return manifest


def differing_settings(folder: str | Path, fingerprint: Mapping[str, Any]) -> list[str]:
    """The settings of a run that differ from those of the run that left a checkpoint, one line each."""
    saved = read_manifest(folder)["facts"]
    saved.setdefault("order", _order_of_earlier_versions(saved))
    saved.setdefault("similarity_loss_weight", 0.0)
    differences = {}
    for name in saved:
        if name not in fingerprint:
            continue
        before = json.dumps(saved[name], sort_keys=True)
        now = json.dumps(fingerprint[name], sort_keys=True)
        if before != now:
            differences[name] = f"{name} was {saved[name]!r} and is {fingerprint[name]!r}"
    if "bf16" in differences or "fp16" in differences:
        differences.pop("mixed_precision", None)  # says the same
    return list(differences.values())


def _order_of_earlier_versions(facts: Mapping[str, Any]) -> str:
    """How texts were ordered for a checkpoint that does not say so: sorted within what a pass of the model sees.

    That is a step, unless batches were accumulated, or several processes took turns with batches of their own.
    """
    batches_per_step = facts.get("gradient_accumulation_steps", 1)
    is_stream = "dataloader_num_workers" in facts
    if not is_stream:
        batches_per_step *= facts.get("world_size", 1)
    return ORDER if batches_per_step == 1 else "by batches, as in earlier versions"


def find_damage(folder: str | Path) -> str | None:
    """Describes what is wrong with a checkpoint and names the file; `None` if it is complete."""
    folder = Path(folder)
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected["size"]:
            return f"{name} has {size} bytes instead of {expected['size']}"
        with path.open("rb") as file:
            digest = _sha256(file)
        if digest != expected["sha256"]:
            return f"{name} is not what was written"
    return None


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _manifest_hash(content: Mapping[str, Any]) -> str:
    """The hash of the manifest itself, which no other file vouches for."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- finding checkpoints --------------------------------------------------------------------------------------------


def resume_word(value: str | bool | None) -> str | bool | None:
    """A value of --resume_from_checkpoint, in lower case unless it names a checkpoint: YAML has `True`, `No` …"""
    word = str(value).lower()
    return word if word in (*RESUME_NONE, *RESUME_NEWEST) else value


def step_of(folder: Path) -> int:
    """N of `checkpoint-N`."""
    number = folder.name.rpartition("-")[2]
    return int(number)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N`, newest first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name):
            found.append(path)
    return sorted(found, key=step_of, reverse=True)


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that matches its manifest, with a warning for each damaged one.

    Returns:
        The folder, or `None` if there is no checkpoint at all.

    Raises:
        UsageError: All checkpoints are damaged.
    """
    _restore_replaced(output_dir)
    damaged = {}
    for folder in checkpoints(output_dir):
        problem = find_damage(folder)
        if problem is None:
            for other, what in damaged.items():
                _warn(f"{other} is damaged ({what}); resuming from {folder.name}")
            return folder
        damaged[folder] = problem
    if damaged:
        listed = "; ".join(f"{folder.name}: {problem}" for folder, problem in damaged.items())
        raise UsageError(
            f"{output_dir}: no checkpoint is complete ({listed}); restore one, or start in another folder"
        )
    return None


def find_best(output_dir: str | Path, noted: str | None) -> str | None:
    """The best checkpoint of a run whose folder may have been moved, or which was started in another one.

    Args:
        output_dir: The folder of the run.
        noted: The path under which the checkpoint was saved; `None` without a best one.

    Returns:
        The path of the checkpoint; `None` if it is neither in the folder of the run nor where it was.
    """
    if noted is None:
        return None
    own = Path(output_dir, Path(noted).name)
    for path in (own, Path(noted)):
        if path.is_dir():
            return str(path)
    return None


def set_newer_aside(output_dir: str | Path, step: int) -> None:
    """Renames checkpoints after a step to `_aside-…`: the run that resumes there writes new ones.

    They are damaged, or belong to an abandoned course. Kept in place they would be taken for the newest.
    """
    for folder in checkpoints(output_dir):
        if step_of(folder) > step:
            aside = _free_name(folder.with_name(f"_aside-{folder.name}"))
            folder.rename(aside)
            _warn(f"{folder.name}, newer than step {step}, is now called {aside.name}")


def _restore_replaced(output_dir: str | Path) -> None:
    """Puts back the checkpoint that a run was about to replace when it was killed between two renamings."""
    for old in Path(output_dir).glob("_old-checkpoint-*"):
        place = old.with_name(old.name.removeprefix("_old-"))
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)


def _free_name(path: Path) -> Path:
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _warn(message: str) -> None:
    tqdm.write(f"WARNING: {message}", file=sys.stderr)


# ---- writing a checkpoint -------------------------------------------------------------------------------------------


def check_disk_space(output_dir: str | Path, required_bytes: int) -> None:
    """Raises UsageError if the disk has less room than a checkpoint needs."""
    free = shutil.disk_usage(output_dir).free
    if free < required_bytes:
        raise UsageError(
            f"--output_dir {output_dir}: {free / 1e6:,.0f} MB are free, a checkpoint needs "
            f"{required_bytes / 1e6:,.0f} MB; free some disk space, and resume with --resume_from_checkpoint auto"
        )


def staging_folder(output_dir: str | Path, step: int) -> Path:
    """The folder that the checkpoint of a step is written into."""
    return Path(output_dir, STAGING, f"checkpoint-{step}")


def begin(output_dir: str | Path, step: int, required_bytes: int) -> None:
    """Makes an empty staging folder to write a checkpoint into.

    Raises:
        UsageError: The disk has no room for it.
    """
    staging = staging_folder(output_dir, step)
    # A killed run may have left something.
    shutil.rmtree(staging.parent, ignore_errors=True)
    check_disk_space(output_dir, required_bytes)
    staging.mkdir(parents=True)


def complete(output_dir: str | Path, step: int, fingerprint: Mapping[str, Any]) -> None:
    """Seals a written checkpoint with its manifest and moves it to its place."""
    staging = staging_folder(output_dir, step)
    write_manifest(staging, fingerprint)
    final = Path(output_dir, staging.name)
    # A step is saved twice if it is also the last one of a pass.
    if final.exists():
        final.rename(_free_name(final.with_name(f"_old-{final.name}")))
    staging.replace(final)
    _flush_folder(output_dir)
    shutil.rmtree(Path(output_dir, STAGING), ignore_errors=True)
    for old in Path(output_dir).glob(f"_old-{final.name}*"):
        shutil.rmtree(old, ignore_errors=True)


def _flush_folder(folder: str | Path) -> None:
    """Flushes the names in a folder to the disk, and with them a renaming."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def rotate(
    output_dir: str | Path,
    limit: int | None,
    best: str | None,
    step: int,
) -> None:
    """Deletes old checkpoints.

    Args:
        output_dir: The folder of the run.
        limit: Number of newest checkpoints to keep, at least one; `None` keeps all.
        best: The best checkpoint, which is always kept; its name alone counts, as the folder may have been moved.
        step: The step of the checkpoint just written; later ones are not counted and not deleted.
    """
    found = [folder for folder in checkpoints(output_dir) if step_of(folder) <= step]
    kept = max(limit or len(found), 1)
    for folder in found[kept:]:
        if best is None or folder.name != Path(best).name:
            # Moved away first: a run that is killed meanwhile leaves no half of a checkpoint in its place.
            doomed = Path(output_dir, STAGING, folder.name)
            doomed.parent.mkdir(exist_ok=True)
            folder.rename(doomed)
    shutil.rmtree(Path(output_dir, STAGING), ignore_errors=True)


@contextlib.contextmanager
def writing(output_dir: str | Path, what: str) -> Iterator[None]:
    """Turns a failed write inside the block into an error of one line that says how to resume.

    Args:
        output_dir: The folder of the run.
        what: What is written, for the error.

    Raises:
        UsageError: The disk is full, read-only or failing.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_write_error(error):
            raise
        reason = str(error).splitlines()[0]
        remedy = "start again in another folder: there is no checkpoint to resume from"
        if checkpoints(output_dir):
            remedy = "resume with --resume_from_checkpoint auto, which takes the newest complete checkpoint"
        raise UsageError(
            f"--output_dir {output_dir}: {what} could not be written ({reason}); free some disk space, and {remedy}"
        ) from error


def _is_write_error(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _WRITE_ERRORS
    if isinstance(error, SafetensorError):
        return True
    return any(word in str(error) for word in _ARCHIVE_ERRORS)
