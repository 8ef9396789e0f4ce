"""Kills a pretraining run at random moments, many times, and compares its end with that of a run left in peace.

    python benchmarks/faults.py --kills 30                              # a corpus made of this repository's documents
    python benchmarks/faults.py --kills 200 --train_file notes.txt      # before a release

Each time the run is started again with `--resume_from_checkpoint auto`. Most of the kills wait for a save and strike
in it. Nothing may be lost, nor differ in a bit: weights, optimizer, schedule, random states, log, exported encoder.
Prints the kills, those inside a save, starts that were refused, and what differs; exit code 1 if anything is.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from text_jepa.commands.main import main as text_jepa_command
from text_jepa.train.checkpointing import STAGING, checkpoints, find_damage


ROOT = Path(__file__).resolve().parents[1]

# What no two runs have in common.
TIMES = {"tokens_per_second", "train_seconds", "seconds"}
TIMES |= {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")}

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
# Dropout, so that random states matter.
SHAPE |= {"embedding_dropout": 0.1, "mlp_dropout": 0.1}
SETTINGS = ["--preset", "tiny", "--text_config", json.dumps(SHAPE), "--vocab_size", "400", "--max_length", "32"]
SETTINGS += ["--per_device_train_batch_size", "8", "--logging_steps", "5", "--save_steps", "4", "--use_cpu"]
SETTINGS += ["--eval_strategy", "steps", "--eval_steps", "20", "--max_eval_samples", "16", "--learning_rate", "1e-2"]

# Seconds in which a run loads its data and its checkpoint and has made some steps, about.
LONGEST_WAIT = 3.0


# ---- comparison -----------------------------------------------------------------------------------------------------


def content_of(path: Path) -> dict[str, Any]:
    """Tensors and values of a saved file by name, without times; nothing of files of other kinds."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix in (".pt", ".pth"):
        with safe_globals():
            return dict(_leaves(torch.load(path, weights_only=True)))
    if path.name == "trainer_state.json":
        return dict(_leaves(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return dict(_leaves([json.loads(line) for line in path.read_text().splitlines()]))
    return {}


def _leaves(value, name="") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in TIMES:
                yield from _leaves(part, f"{name}/{key}")
    else:
        yield name, torch.as_tensor(value) if hasattr(value, "dtype") else value


def differences(first: Path, second: Path, what: str = "*") -> list[str]:
    """What two folders do not have in common, bit by bit: `file:name` of tensors and values, or a file.

    Args:
        first, second: Folders.
        what: Glob of the files.
    """
    names = [{path.relative_to(folder) for path in folder.glob(what) if path.is_file()} for folder in (first, second)]
    found = [str(name) for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        one, two = content_of(first / name), content_of(second / name)
        found += [f"{name}:{key}" for key in sorted(one.keys() | two.keys()) if not _same(one.get(key), two.get(key))]
    return found


def _same(one, two):
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return one == two


# ---- runs -----------------------------------------------------------------------------------------------------------


def run(argv):
    """A run as the command line starts it, in a process of its own that need not import everything again."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.argv = ["text-jepa", "pretrain", *argv]
    text_jepa_command()


def start(argv):
    process = multiprocessing.get_context("fork").Process(target=run, args=(argv,))
    process.start()
    return process


def kill(process, output_dir, chance) -> bool | None:
    """Kills a run at a random moment; whether that was inside a save, or `None` if it ended before."""
    saves = output_dir / STAGING
    if chance.random() < 0.8:
        for _ in range(chance.randint(1, 3)):
            while saves.exists() and process.is_alive():
                time.sleep(0.0005)
            while not saves.exists() and process.is_alive():
                time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02))
    else:
        process.join(chance.uniform(0, LONGEST_WAIT))
    if not process.is_alive():
        return None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return saves.exists()


def make_corpus(path: Path) -> None:
    """The paragraphs of this repository's documents."""
    documents = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line.strip() for document in documents for line in document.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(f"{line}\n" for line in lines if len(line) > 20), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument(
        "--steps", type=int, default=60, help="of a run; one that ends before the last kill is repeated"
    )
    parser.add_argument(
        "--train_file", help="a text file, one document per line; default: this repository's documents"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), arguments, chance)


def compare(folder: Path, arguments, chance) -> int:
    """Does all that the script promises, in a folder; gives its exit code."""
    corpus = Path(arguments.train_file or folder / "corpus.txt").resolve()
    if not arguments.train_file:
        make_corpus(corpus)
    settings = [*SETTINGS, "--train_file", str(corpus), "--cache_dir", str(folder / "cache")]
    settings += ["--max_steps", str(arguments.steps), "--resume_from_checkpoint", "auto"]
    peaceful, troubled = folder / "peaceful", folder / "troubled"
    process = start([*settings, "--output_dir", str(peaceful)])
    process.join()
    if process.exitcode != 0:
        return 1

    kills = inside = ends = refusals = lost = 0
    different = []
    while kills < arguments.kills or troubled.exists():
        before = checkpoints(troubled) if troubled.exists() else []
        process = start([*settings, "--output_dir", str(troubled)])
        struck = kill(process, troubled, chance) if kills < arguments.kills else None
        process.join()
        if struck is not None:
            kills, inside = kills + 1, inside + struck
            # Whatever is called a checkpoint is one, and the newest is never lost.
            after = checkpoints(troubled) if troubled.exists() else []
            whole = [checkpoint for checkpoint in after if find_damage(checkpoint) is None]
            lost += len(after) > len(whole) or (bool(before) and not whole)
        elif process.exitcode != 0:
            refusals += 1
            print(f"exit code {process.exitcode} after {kills} kills", file=sys.stderr)
            break
        else:
            ends += 1
            last = checkpoints(peaceful)[0].name
            different += differences(peaceful / last, troubled / last)
            different += differences(peaceful, troubled, "*.*") + differences(
                peaceful / "pretraining", troubled / "pretraining"
            )
            shutil.rmtree(troubled)
    print(
        f"{kills} kills, {inside} of them inside a save, {ends} runs ended; {refusals} starts refused, {lost} times a "
        f"checkpoint was lost or half; {len(different)} differing tensors, values or files"
    )
    for name in different[:20]:
        print(f"  {name}")
    return int(bool(refusals or lost or different))


if __name__ == "__main__":
    sys.exit(main())
