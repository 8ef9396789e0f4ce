"""Kills a pretraining run at random moments, many times, and compares its end with that of an undisturbed run.

    python benchmarks/faults.py --kills 30                              # on the documents of this repository
    python benchmarks/faults.py --kills 200 --train_file notes.txt      # before a release

After each kill, the run is started again with `--resume_from_checkpoint auto`. Most kills wait for a save and strike
during it. No checkpoint may be lost, and every bit must be the same: weights, optimizer, schedule, random states, log,
and all files of the exported encoder except those that state times or paths, see `NOT_COMPARED`. Prints the number of
kills, of kills during a save, of refused starts and of differences; the exit code is 1 if a start was refused, a
checkpoint was lost, or anything differs.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from text_jepa.commands.main import main as text_jepa_command
from text_jepa.train.checkpointing import STAGING, checkpoints, find_damage


ROOT = Path(__file__).resolve().parents[1]

# Files that state times or paths, or sums over such files.
NOT_COMPARED = {
    "README.md",
    "arguments.yaml",
    "card.json",
    "changed.yaml",
    "curves.png",
    "manifest.json",
    "training_args.bin",
}

# Values that differ between any two runs.
TIMES = {
    "tokens_per_second",
    "train_seconds",
    "seconds",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
}

# How a tokenizer was opened, which transformers writes into the configuration of those that come from a folder.
OPENED = {"is_local", "local_files_only"}

# A tiny model with dropout, so that random states matter.
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "embedding_dropout": 0.1,
    "mlp_dropout": 0.1,
}

SETTINGS = {
    "preset": "tiny",
    "text_config": json.dumps(SHAPE),
    "vocab_size": 400,
    "max_length": 32,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "logging_steps": 5,
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 20,
    "max_eval_samples": 16,
    "resume_from_checkpoint": "auto",
    "use_cpu": True,
}

# Roughly the seconds in which a run loads its data and its checkpoint and makes a few steps.
LONGEST_WAIT = 3.0

# The number of differences that are listed.
LISTED = 20


# ---- comparison -----------------------------------------------------------------------------------------------------


def differences(first: Path, second: Path, pattern: str = "*") -> list[str]:
    """Compares the files of two folders bit by bit, except for `TIMES`, `OPENED` and the files in `NOT_COMPARED`.

    Args:
        first: A folder.
        second: Another folder.
        pattern: A glob of the files to compare.

    Returns:
        What differs: `file:name` of a tensor or value, `file:bytes`, or the name of a file that only one folder has.
    """
    names = file_names(first, pattern)
    other_names = file_names(second, pattern)
    found = [str(name) for name in sorted(names ^ other_names)]
    for name in sorted(names & other_names):
        one = read_values(first / name)
        two = read_values(second / name)
        for key in sorted(one.keys() | two.keys()):
            if not is_same(one.get(key), two.get(key)):
                found.append(f"{name}:{key}")
    return found


def file_names(folder: Path, pattern: str) -> set[Path]:
    """The files of a folder that match a glob, relative to the folder."""
    return {path.relative_to(folder) for path in folder.glob(pattern) if path.is_file()}


def read_values(path: Path) -> dict[str, Any]:
    """The tensors and values of a file by name, without times; the bytes of a file of another kind."""
    if path.name in NOT_COMPARED:
        return {}
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".pt", ".pth"):
        with safe_globals():
            return flatten(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return flatten(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        return flatten([json.loads(line) for line in lines])
    return {"bytes": path.read_bytes()}


def flatten(value: Any) -> dict[str, Any]:
    """The leaves of nested containers by path, without times."""
    return dict(_leaves(value, ""))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        is_array = hasattr(value, "dtype")
        yield name, torch.as_tensor(value) if is_array else value
        return
    for key, part in items:
        if key not in TIMES | OPENED:
            yield from _leaves(part, f"{name}/{key}")


def is_same(one: Any, two: Any) -> bool:
    """Whether two tensors or values are equal, dtype included."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return one == two


# ---- runs -----------------------------------------------------------------------------------------------------------


def run(argv: Sequence[str]) -> None:
    """Runs the command in a forked process, which does not have to import everything again."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.argv = ["text-jepa", "pretrain", *argv]
    text_jepa_command()


def start(settings: Sequence[str], output_dir: Path) -> BaseProcess:
    """Starts a run in a process of its own."""
    argv = [*settings, "--output_dir", str(output_dir)]
    context = multiprocessing.get_context("fork")
    process = context.Process(target=run, args=(argv,))
    process.start()
    return process


def kill(
    process: BaseProcess,
    output_dir: Path,
    chance: random.Random,
) -> bool | None:
    """Kills a run at a random moment.

    Returns:
        Whether it was during a save; `None` if the run ended before.
    """
    staging = output_dir / STAGING
    if chance.random() < 0.8:
        for _ in range(chance.randint(1, 3)):
            wait_for_save(process, staging)
        time.sleep(chance.uniform(0, 0.02))
    else:
        process.join(chance.uniform(0, LONGEST_WAIT))
    if not process.is_alive():
        return None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return staging.exists()


def wait_for_save(process: BaseProcess, staging: Path) -> None:
    """Waits until the next save begins or the process ends."""
    while staging.exists() and process.is_alive():
        time.sleep(0.0005)
    while not staging.exists() and process.is_alive():
        time.sleep(0.0005)


# ---- the experiment -------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Counts of what has happened so far.

    Args:
        kills: Number of kills.
        during_saves: Number of kills during a save.
        ends: Number of runs that ended by themselves.
        refusals: Number of starts that were refused.
        lost: Number of kills after which a checkpoint was lost or incomplete.
        different: Names of tensors, values and files that differ from those of the undisturbed run.
    """

    kills: int = 0
    during_saves: int = 0
    ends: int = 0
    refusals: int = 0
    lost: int = 0
    different: list[str] = field(default_factory=list)


def compare(folder: Path, arguments: argparse.Namespace) -> Outcome:
    """Makes an undisturbed run and kills others, all in one folder."""
    settings = make_settings(folder, arguments)
    chance = random.Random(arguments.seed)
    undisturbed = folder / "undisturbed"
    disturbed = folder / "disturbed"
    outcome = Outcome()
    process = start(settings, undisturbed)
    process.join()
    if process.exitcode != 0:
        outcome.refusals += 1
        return outcome

    while outcome.kills < arguments.kills or disturbed.exists():
        before = checkpoints(disturbed)
        process = start(settings, disturbed)
        was_saving = None
        if outcome.kills < arguments.kills:
            was_saving = kill(process, disturbed, chance)
        process.join()
        if was_saving is not None:
            outcome.kills += 1
            outcome.during_saves += was_saving
            outcome.lost += has_lost_checkpoints(before, disturbed)
        elif process.exitcode != 0:
            outcome.refusals += 1
            print(f"exit code {process.exitcode} after {outcome.kills} kills", file=sys.stderr)
            break
        else:
            outcome.ends += 1
            outcome.different += compare_ends(undisturbed, disturbed)
            shutil.rmtree(disturbed)
    return outcome


def make_settings(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """The command line of every run, except for its output folder."""
    train_file = arguments.train_file
    if train_file is None:
        train_file = folder / "corpus.txt"
        make_corpus(train_file)
    values = {
        **SETTINGS,
        "train_file": Path(train_file).resolve(),
        "cache_dir": folder / "cache",
        "max_steps": arguments.steps,
    }
    words = []
    for name, value in values.items():
        words += [f"--{name}", str(value)]
    return words


def make_corpus(path: Path) -> None:
    """Writes the paragraphs of this repository's documents into a file."""
    documents = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    lines = []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        lines += [line.strip() for line in text.splitlines()]
    content = "".join(f"{line}\n" for line in lines if len(line) > 20)
    path.write_text(content, encoding="utf-8")


def has_lost_checkpoints(before: Sequence[Path], output_dir: Path) -> bool:
    """Whether a checkpoint is incomplete after a kill, or none is left although there were some."""
    after = checkpoints(output_dir)
    damaged = [folder for folder in after if find_damage(folder) is not None]
    has_none_left = len(damaged) == len(after)
    return bool(damaged) or (bool(before) and has_none_left)


def compare_ends(first: Path, second: Path) -> list[str]:
    """Compares the last checkpoint and the results of two runs, subfolders included."""
    older = checkpoints(first)[1:]
    found = differences(first, second)
    for folder in sorted(path for path in first.iterdir() if path.is_dir()):
        if folder not in older:
            found += [f"{folder.name}/{name}" for name in differences(folder, second / folder.name, "**/*")]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="number of kills")
    parser.add_argument(
        "--steps", type=int, default=60, help="steps of a run; a run that ends before the last kill is repeated"
    )
    parser.add_argument(
        "--train_file", help="a text file, one document per line; default: this repository's documents"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed that draws the moments of the kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = compare(Path(folder), arguments)
    print(
        f"{outcome.kills} kills, {outcome.during_saves} of them inside a save, {outcome.ends} runs ended; "
        f"{outcome.refusals} starts refused, {outcome.lost} times a checkpoint was lost or half; "
        f"{len(outcome.different)} differing tensors, values or files"
    )
    for name in outcome.different[:LISTED]:
        print(f"  {name}")
    return int(bool(outcome.refusals or outcome.lost or outcome.different))


if __name__ == "__main__":
    sys.exit(main())
