"""Compares training objectives: several arms with everything else equal, several seeds, and intervals.

    python benchmarks/compare.py configs/compare/tiny.yaml --seconds 20
    python benchmarks/compare.py configs/compare/scratch.yaml --seconds 300 --seeds 0 1 2 --jobs 2
    python benchmarks/compare.py configs/compare/scratch.yaml --tokens 10000000 --output_dir runs/scratch-tokens
    python benchmarks/compare.py configs/compare/from_encoder.yaml --seconds 300 --model_name_or_path ENCODER
    python benchmarks/compare.py configs/compare/documents.yaml --seconds 15 30 60 120

The file has a `title`, `common` flags of run_pretraining.py, `arms` by name with the flags in which they differ, flags
of run_probe.py in `probe`, `over_time` and `curve`, and the `reference`, the arm that all others are compared with. An
arm may also have a `recipe`, the YAML file it starts from, and a `trainer`: `tsdae` for the denoising autoencoder,
`word2vec` for skip-gram, `none` for an encoder without training. Flags on the command line that are not listed below
are added to the common ones; those of an arm take precedence. ${VARIABLES} of the environment are replaced, in quoted
flags too.

A learning rate schedule needs to know the number of steps. Each arm therefore makes three short pilot runs first, in
turn with the other arms; the steps of all its seeds are --seconds divided by the median seconds of a step. Arms whose
flags differ only in what happens after training share their pilots. The seconds that runs really took are in the
results, and arms that miss the budget by more than 15 % are marked. --tokens divides by the tokens of a step instead;
a text counts once, in however many views or masks a step shows it. --jobs runs several arms at the same time, each
with its share of the cores; for reliable times, use a machine that does nothing else. Several --seconds make as many
comparisons, each in a folder with its own runs. The longest one is the result, and quality.png shows the scores over
seconds of training. The shorter ones are probed with the flags of `curve`, if the file has them.

All arms share one tokenizer and one held-out part. The order of the texts depends on the seed and on how an arm makes
batches of them (its batch size, texts or windows), so it is not the same for all arms. Every run is a process with a
log beside its folder and a file with its date, commit and package versions. If a run fails, it is named and the others
continue; the same command later makes what is missing.

Intervals are 95 % intervals of bootstrap resamples of seeds and of scored rows, with the same resamples for all arms.
Resampling K seeds from themselves underestimates how much K new seeds would vary. Deviations by seed are therefore
widened by sqrt(K / (K - 1)) and by the ratio of Student's quantile to the normal one, which is 2.2 for three seeds. A
seed that one system lacks is left out for all.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from scipy import stats

from text_jepa.cli import UsageError, nearest, run_command
from text_jepa.probe.bootstrap import RESAMPLES, interval_of, score_resamples, score_seeds
from text_jepa.probe.glue import FUNCTIONS
from text_jepa.probe.report import headline, read_answers
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("title", "common", "arms", "probe", "over_time", "curve", "reference")

PILOTS = ("pilot1", "pilot2", "pilot3")
PILOT_STEPS = 30  # timed steps of a pilot, after the same number of warm-up steps
AFTER_TRAINING = ("merge", "export_encoder")  # flags that do not change the training itself
OFF_BUDGET = 0.15  # an arm whose mean seconds miss the budget by a larger share is marked
LOGS = 12  # records of a run
CHECKPOINTS = 4  # checkpoints of a run with the first seed, which are probed over time
WATCHED = ("relative_loss", "token_rank", "pooled_rank", "spread")
AVERAGED = ("linear", "knn")  # modes whose tasks are averaged
_PACKAGES = ("text-jepa", "torch", "transformers")
QUALITY_AXIS = "seconds of training, mean over seeds"

Plan = dict[str, Any]
"""A comparison as read from its file, see `read_plan`."""

Run = tuple[str, int]
"""Arm and seed."""

Column = tuple[str, str, str]
"""Task, mode and metric."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; ends with code 1 if an arm failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = make_parser().parse_known_args(argv)
    plan = read_plan(args.config, rest, args.arms, args.reference)
    if args.title:
        plan["title"] = args.title
    out = Path(args.output_dir or f"runs/compare-{Path(args.config).stem}")
    threads = max(1, available_cores() // args.jobs)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }

    share_tokenizer(plan, out, environment)
    pilot_failures = run_pilots(plan, out, environment, args.jobs)
    about = {
        "command": shlex.join(["python", "benchmarks/compare.py", *argv]),
        "machine": f"{hardware()}, {args.jobs} at a time with {threads} threads",
    }
    comparisons = []
    for seconds in sorted(args.seconds or [None]):
        found = compared(plan, out, environment, args, seconds, pilot_failures)
        results = {**about, **found}
        write_results(results, folder_of(out, args, seconds))
        comparisons.append(results)
    results = comparisons[-1]
    if len(comparisons) > 1:
        results = add_quality(comparisons, out)
        write_results(results, out)
    print(in_words(results))
    sys.exit(1 if results["failures"] else 0)


def folder_of(out: Path, args: argparse.Namespace, seconds: float | None) -> Path:
    """The folder for the runs of one budget: a subfolder if there are several budgets."""
    if args.seconds and len(args.seconds) > 1:
        return out / f"seconds-{seconds:g}"
    return out


def compared(
    plan: Plan,
    out: Path,
    environment: Mapping[str, str],
    args: argparse.Namespace,
    seconds: float | None,
    pilot_failures: Mapping[tuple, str],
) -> dict[str, Any]:
    """Runs all arms with all seeds for one budget, and compares the results.

    Args:
        plan: The comparison, from `read_plan`.
        out: Folder of the pilots.
        environment: Environment variables of the runs.
        args: The command's arguments.
        seconds: Seconds of training; `None` for a budget of tokens.
        pilot_failures: Errors of the pilots that failed.

    Raises:
        UsageError: No run of the reference succeeded.
    """
    is_shorter = seconds is not None and seconds < max(args.seconds)
    if is_shorter and plan["curve"]:
        plan = {**plan, "probe": plan["curve"], "over_time": None}
    folder = folder_of(out, args, seconds)
    budget = {"seconds": seconds, "tokens": args.tokens}
    pilot_of = shared_pilots(plan)
    failed = {arm for arm, _ in pilot_failures}
    arms = [arm for arm in plan["arms"] if pilot_of.get(arm) not in failed]
    steps = {}
    for arm in arms:
        if is_trained(plan, arm):
            pilots = [read_metrics(out / name / pilot_of[arm]) for name in PILOTS]
            steps[arm] = steps_for(pilots, **budget)

    runs = [(arm, seed) for seed in args.seeds for arm in arms]
    train_and_probe = partial(run, plan, folder, environment, steps, args.seeds[0])
    failures = {**pilot_failures, **in_turns(args.jobs, runs, train_and_probe)}
    done = [one for one in runs if one not in failures]
    if plan["reference"] not in dict(done):
        first_error = next(iter(failures.values()))
        raise UsageError(f"no run of {plan['reference']}, the reference, succeeded: {first_error}")
    answers, gold = gathered(plan, folder, done)
    return {
        "budget": budget,
        "plan": {name: plan[name] for name in ("title", "reference")},  # the rest is in the file
        "failures": [f"{arm}, {what}: {line}" for (arm, what), line in failures.items()],
        "runs": [describe_run(plan, folder, arm, seed) for arm, seed in done],
        **judged(answers, gold, plan["reference"]),
    }


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """Writes a comparison as JSON and Markdown, and draws its curves."""
    (folder / "results.json").write_text(json.dumps(results) + "\n")
    (folder / "results.md").write_text(in_words(results))
    draw_curves(results["runs"], folder / "curves.png")


def add_quality(comparisons: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """The results of the longest budget, with the failures of all budgets and the scores over seconds."""
    results = comparisons[-1]
    failures = [line for comparison in comparisons for line in comparison["failures"]]
    results["failures"] = list(dict.fromkeys(failures))
    quality = quality_of(comparisons)
    if quality:  # a single linear probe has no place in the main table
        results["quality"] = quality
        results["quality_axis"] = QUALITY_AXIS
        draw_quality(results, out / "quality.png")
    return results


# ---- plan -----------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("config", help="the comparison, a file of configs/compare")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--seconds", type=float, nargs="+", help="seconds of training of each arm; several: a curve")
    budget.add_argument("--tokens", type=float, help="tokens that each arm is trained on, in place of --seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", help="names of the arms to run (default: all)")
    parser.add_argument("--reference", help="the arm that all others are compared with, in place of the file's")
    parser.add_argument("--title", help="title of the results, in place of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    parser.add_argument("--output_dir", help="folder of all runs (default: runs/compare-NAME, after the file)")
    return parser


def read_plan(
    path: str,
    rest: Sequence[str] = (),
    arms: Sequence[str] | None = None,
    reference: str | None = None,
) -> Plan:
    """Reads a comparison from its file.

    Args:
        path: The file.
        rest: Further flags for all arms, as words of a command line.
        arms: Names of the arms to keep. Defaults to all.
        reference: The arm that the others are compared with, in place of the file's.

    Raises:
        UsageError: The file cannot be read, or a part, an arm or a variable is missing or unknown.
    """
    plan = _read_parts(path)
    reference = reference or plan["reference"]
    for name in [*(arms or ()), reference]:
        if name not in plan["arms"]:
            raise UsageError(f"{path}: no arm '{name}'{nearest(name, plan['arms'])} ({', '.join(plan['arms'])})")
    if arms and reference not in arms:
        raise UsageError(f"--arms leaves out {reference}, which the others are compared with; --reference ARM")
    words = [expanded(word, word) for word in rest]
    common = {**(plan.get("common") or {}), **as_flags(words)}
    chosen = {}
    for name, flags in plan["arms"].items():
        if not arms or name in arms:
            chosen[name] = {**common, **flags}
    defaults = {"over_time": None, "curve": None}
    return {
        **defaults,
        **plan,
        "reference": reference,
        "common": common,
        "arms": chosen,
    }


def _read_parts(path: str) -> Plan:
    try:
        text = Path(path).read_text(encoding="utf-8")
        plan = yaml.safe_load(expanded(text, path))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); name a file of configs/compare") from error
    required = {"title", "arms", "probe", "reference"}
    if not isinstance(plan, dict) or not plan.keys() >= required:
        raise UsageError(f"{path}: expected title, arms, probe and reference")
    for name in plan.keys() - set(PARTS):
        raise UsageError(f"{path}: unknown part '{name}'{nearest(name, PARTS)} (there are {', '.join(PARTS)})")
    return plan


def expanded(text: str, where: str) -> str:
    """The text with the values of the environment in place of its ${VARIABLES}."""
    text = os.path.expandvars(text)
    unset = re.search(r"\$\{(\w+)\}", text)
    if unset is not None:
        raise UsageError(f"{where}: the variable {unset[1]} is not set; export it, as the head of the file says")
    return text


def as_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Parses `--name value …` into values by name: a list if there are several, true if there are none."""
    values_of: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            values_of[name] = [value] if has_value else []
        elif name is not None:
            values_of[name].append(word)
        else:
            raise UsageError(f"no flag takes the value '{word}' (see --help)")
    flags = {}
    for name, values in values_of.items():
        if len(values) > 1:
            flags[name] = values
        else:
            flags[name] = values[0] if values else True
    return flags


def as_argv(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line."""
    argv = []
    for name, value in flags.items():
        argv.append(f"--{name}")
        if isinstance(value, list):
            argv += [str(one) for one in value]
        elif isinstance(value, dict):
            argv.append(json.dumps(value))
        else:
            argv.append(str(value))
    return argv


# ---- runs -----------------------------------------------------------------------------------------------------------


def in_turns(
    jobs: int,
    runs: Sequence[tuple],
    function: Callable[..., None],
) -> dict[tuple, str]:
    """Calls `function(arm, seed)` for all runs, `jobs` at a time; returns the error of each run that failed."""
    failures = {}

    def try_run(which: tuple) -> None:
        name = ", ".join(str(part) for part in which)
        try:
            function(*which)
            print(f"{name}: done", flush=True)
        except UsageError as error:
            failures[which] = str(error)
            print(f"{name}: {error}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(try_run, runs))
    return failures


def call(
    command: Sequence[str],
    log: Path,
    made: Path,
    environment: Mapping[str, str],
) -> None:
    """Runs a Python command, unless the file that it writes last exists.

    Its date, commit and package versions are written beside the log.

    Args:
        command: Arguments of Python.
        log: File for the command and its output.
        made: The file that the command writes last.
        environment: Environment variables.

    Raises:
        UsageError: The command failed, or the log is that of another command.
    """
    line = shlex.join(command)
    log.parent.mkdir(parents=True, exist_ok=True)
    is_other_command = log.exists() and log.read_text().split("\n")[0] != line
    if is_other_command:
        raise UsageError(f"{log}: of another command; name another --output_dir, or remove it and what it made")
    if made.exists():
        return
    if not log.exists():
        log.write_text(f"{line}\n")
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, *command],
            stdout=file,
            stderr=file,
            env=environment,
        )
    if done.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        last = lines[-1].removeprefix("error: ")
        raise UsageError(f"exit code {done.returncode}, {log}: {last}")
    origin_path(log).write_text(json.dumps(current_origin()) + "\n")


def origin_path(log: Path) -> Path:
    """The file with the origin of a run, beside its log."""
    return log.with_suffix(".origin.json")


def current_origin() -> dict[str, Any]:
    """Date, commit and package versions of a run that ends now."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": current_commit(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def current_commit() -> str:
    """The commit of this checkout, with `-dirty` if files differ from it; "unknown" outside of a repository."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def origins_of(logs: Iterable[Path]) -> list[dict[str, Any]]:
    """Origins of runs, each once; runs that were made before origins were written have none."""
    origins = []
    for log in logs:
        path = origin_path(log)
        if path.exists():
            origin = json.loads(path.read_text())
            if origin not in origins:
                origins.append(origin)
    return origins


def train(
    flags: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    **settings: Any,
) -> None:
    """Trains with the flags of an arm, unless the run has ended before."""
    flags = {
        **flags,
        **settings,
        "eval_strategy": "no",
        "resume_from_checkpoint": "auto",
        "output_dir": str(folder),
    }
    recipe = flags.pop("recipe", None)
    trainer = flags.pop("trainer", "run_pretraining")
    script = "run_pretraining.py" if trainer == "run_pretraining" else f"benchmarks/{trainer}.py"
    command = [str(ROOT / script)]
    if recipe is not None:
        command.append(str(ROOT / recipe))
    command += as_argv(flags)
    log = folder.parent / f"{folder.name}.log"
    call(command, log, folder / last_made(trainer, flags), environment)


def last_made(trainer: str, flags: Mapping[str, Any]) -> str:
    """The last file of a training among those that are read."""
    if "prepare_only" in flags:
        return "tokenizer"
    # A run writes its arguments before its first step, the other trainers after their last one.
    return "README.md" if trainer == "run_pretraining" else "arguments.yaml"


def share_tokenizer(
    plan: Plan,
    out: Path,
    environment: Mapping[str, str],
) -> None:
    """Trains one tokenizer for all arms that name neither a tokenizer nor an encoder with one."""
    arms = [
        flags for flags in plan["arms"].values() if "tokenizer_name" not in flags and "model_name_or_path" not in flags
    ]
    if not arms:
        return
    train(plan["common"], out / "prepared", environment, prepare_only=True)
    for flags in arms:
        flags["tokenizer_name"] = str(out / "prepared/tokenizer")


def run_pilots(
    plan: Plan,
    out: Path,
    environment: Mapping[str, str],
    jobs: int,
) -> dict[tuple, str]:
    """Runs the pilots of all arms, round by round; returns the errors of those that failed."""
    arms = list(dict.fromkeys(shared_pilots(plan).values()))
    failures = {}
    for name in PILOTS:
        failed = {arm for arm, _ in failures}
        pilots = [(arm, name) for arm in arms if arm not in failed]
        failures |= in_turns(jobs, pilots, partial(pilot, plan, out, environment))
    return failures


def shared_pilots(plan: Plan) -> dict[str, str]:
    """The arm whose pilots count for each trained arm: the first one with the same flags of training."""
    first_with = {}
    shared = {}
    for arm, flags in plan["arms"].items():
        if is_trained(plan, arm):
            of_training = {name: value for name, value in flags.items() if name not in AFTER_TRAINING}
            key = json.dumps(of_training, sort_keys=True)
            shared[arm] = first_with.setdefault(key, arm)
    return shared


def pilot(
    plan: Plan,
    out: Path,
    environment: Mapping[str, str],
    arm: str,
    name: str,
) -> None:
    """Runs the first steps of an arm, without what follows the last step of a run."""
    train(
        {"trainer": "pilot", **plan["arms"][arm]},
        out / name / arm,
        environment,
        max_steps=2 * PILOT_STEPS,
        logging_steps=PILOT_STEPS,
        merge=False,
        save_strategy="no",
    )


def is_trained(plan: Plan, arm: str) -> bool:
    """Whether an arm is trained, or an encoder that stays as it is."""
    return plan["arms"][arm].get("trainer") != "none"


def steps_for(
    pilots: Sequence[Sequence[Mapping[str, float]]],
    seconds: float | None,
    tokens: float | None,
) -> int:
    """Number of steps that take this many seconds or tokens, by the median of the pilots.

    Args:
        pilots: Records of each pilot of an arm.
        seconds: The budget in seconds, if any.
        tokens: The budget in tokens, if any.
    """
    if seconds is not None:
        costs = [cost_of_step(records, "train_seconds") for records in pilots]
        steps = seconds / statistics.median(costs)
    else:
        costs = [cost_of_step(records, "tokens_seen") for records in pilots]
        steps = tokens / statistics.median(costs)
    return max(1, round(steps))


def cost_of_step(records: Sequence[Mapping[str, float]], unit: str) -> float:
    """Seconds or tokens of a step, between the last two records of a pilot."""
    timed = [record for record in records if "train_seconds" in record]
    before, last = timed[-2:]
    spent = last[unit] - before[unit]
    steps = last["step"] - before["step"]
    return spent / steps


def encoder_of(
    plan: Plan,
    out: Path,
    arm: str,
    seed: int,
) -> str:
    """The folder of an arm's encoder, or the name of the untouched one."""
    if not is_trained(plan, arm):
        return str(plan["arms"][arm]["model_name_or_path"])
    return str(out / f"seed{seed}" / arm)


def run(
    plan: Plan,
    out: Path,
    environment: Mapping[str, str],
    steps_of: Mapping[str, int],
    first_seed: int,
    arm: str,
    seed: int,
) -> None:
    """Trains an arm with one seed and probes its encoder; with the first seed, each checkpoint too."""
    flags = plan["arms"][arm]
    folder = out / f"seed{seed}" / arm
    over_time = None
    if seed == first_seed and "trainer" not in flags:
        over_time = plan["over_time"]
    if is_trained(plan, arm):
        steps = steps_of[arm]
        saving = {"save_strategy": "no"}
        if over_time:
            saving = {
                "save_strategy": "steps",
                "save_steps": math.ceil(steps / CHECKPOINTS),
                "save_total_limit": CHECKPOINTS,
            }
        logging_steps = max(1, steps // LOGS)
        train(flags, folder, environment, seed=seed, max_steps=steps, logging_steps=logging_steps, **saving)

    encoders = [encoder_of(plan, out, arm, seed)]
    has_controls = arm == plan["reference"] and plan["probe"].get("controls", True)
    probe_flags = {**plan["probe"], "controls": has_controls}
    probe(encoders, seed, probe_flags, answers_at(out, arm, seed), environment)
    if over_time:
        checkpoints = sorted(folder.glob("checkpoint-*"))
        encoders = [exported(checkpoint, flags, environment) for checkpoint in checkpoints]
        probe_flags = {**over_time, "controls": False}
        probe(encoders, seed, probe_flags, answers_at(out, arm, seed, "over_time"), environment)


def answers_at(
    out: Path,
    arm: str,
    seed: int,
    part: str = "answers",
) -> Path:
    """Folder with the answers of an arm, or of its checkpoints."""
    return out / f"seed{seed}" / f"{arm}.{part}"


def probe(
    encoders: Sequence[str],
    seed: int,
    flags: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
) -> None:
    """Runs run_probe.py, which writes its results to a folder."""
    first, *others = encoders
    flags = {**flags, "seeds": seed, "output_dir": str(folder)}
    if others:
        flags["compare"] = others
    command = [str(ROOT / "run_probe.py"), first, *as_argv(flags)]
    call(command, probe_log(folder), folder / "answers.npz", environment)


def probe_log(folder: Path) -> Path:
    """Log of the probe that writes to a folder."""
    return folder.with_suffix(f"{folder.suffix}.log")


def exported(
    checkpoint: Path,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
) -> str:
    """Exports the encoder of a checkpoint as the end of a run does; returns its folder."""
    step = checkpoint.name.split("-")[1]
    folder = checkpoint.with_name(f"encoder-{step}")
    command = ["-m", "text_jepa", "export", "encoder", str(checkpoint), str(folder)]
    if "export_encoder" in flags:
        command += ["--which", flags["export_encoder"]]
    call(command, folder.with_suffix(".log"), folder / "README.md", environment)
    return str(folder)


# ---- scores ---------------------------------------------------------------------------------------------------------


def gathered(
    plan: Plan,
    out: Path,
    done: Sequence[Run],
) -> tuple[dict[Column, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Answers (K, N) of each seed and row, by column and system, and labels (N,) by task.

    Raises:
        UsageError: No seed is common to all systems.
    """
    found = defaultdict(lambda: defaultdict(dict))
    gold = {}
    for arm, seed in done:
        answers, labels = read_answers(answers_at(out, arm, seed))
        gold |= labels
        encoder = encoder_of(plan, out, arm, seed)
        for (task, mode, metric, system), (rows,) in answers.items():
            name = arm if system == encoder else system
            # The most frequent class is shown beside probes that learn from the same labels.
            column = (task, mode.replace("majority", "linear"), metric)
            found[column][name][seed] = rows
    return {column: in_common(by_system) for column, by_system in found.items()}, gold


def in_common(by_system: Mapping[str, Mapping[int, np.ndarray]]) -> dict[str, np.ndarray]:
    """Answers (K, N) by system, for the seeds that all systems have, in the same order.

    Args:
        by_system: Answers (N,) by system and seed.
    """
    seeds_of = [set(by_seed) for by_seed in by_system.values()]
    seeds = sorted(set.intersection(*seeds_of))
    if not seeds:
        raise UsageError(f"no seed that all of {', '.join(by_system)} have; the same command makes what is missing")
    common = {}
    for system, by_seed in by_system.items():
        common[system] = np.stack([by_seed[seed] for seed in seeds])
    return common


class Resampled(NamedTuple):
    """Scores of a system in percent.

    Attributes:
        by_seed: (K,), the score of each seed.
        draws: (R,), the score of each resample of rows and seeds.
    """

    by_seed: np.ndarray
    draws: np.ndarray


def resampled(
    function: Callable[..., float],
    answers: np.ndarray,
    gold: np.ndarray | None,
    seed: int | Sequence[int],
    seed_draws: np.ndarray,
) -> Resampled:
    """Scores a system on bootstrap resamples of rows and seeds, with the deviations by seed widened.

    Args:
        function: Function of (N,) answers and `gold`, at most 1.
        answers: (K, N), one row per seed.
        gold: (N,) labels, if any.
        seed: Seed that draws the rows, the same for all systems.
        seed_draws: (R, K or more), numbers between 0 and 1 that draw the seeds, the same for all systems.
    """
    seeds = len(answers)
    by_seed = 100 * score_seeds(function, answers, gold)
    on_drawn_rows = 100 * score_resamples(function, answers, gold, seed, resamples=len(seed_draws))  # (R, K)
    mean = on_drawn_rows.mean(axis=1)

    drawn_seeds = (seed_draws[:, :seeds] * seeds).astype(int)  # (R, K)
    on_drawn_seeds = np.take_along_axis(on_drawn_rows, drawn_seeds, axis=1)
    deviation = on_drawn_seeds.mean(axis=1) - mean
    return Resampled(by_seed, mean + widening(seeds) * deviation)


def widening(count: int) -> float:
    """Factor by which the deviations of means over `count` seeds, resampled from themselves, are too small."""
    if count == 1:
        return 1.0  # a single seed has no deviations
    unbiased = math.sqrt(count / (count - 1))
    student = stats.t.ppf(0.975, count - 1)
    normal = stats.norm.ppf(0.975)
    return unbiased * student / normal


def significance(low: float, high: float) -> str:
    """Names a difference by its interval: better, worse, or not significant (`n.s.`)."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "n.s."


def judged(
    answers: Mapping[Column, Mapping[str, np.ndarray]],
    gold: Mapping[str, np.ndarray],
    reference: str,
    resamples: int = RESAMPLES,
) -> dict[str, list[dict]]:
    """Scores all systems and compares them in pairs.

    The reference is paired with every other system; in the columns of the main table, all systems are paired with each
    other. Only the leading metric of a task is shown. Averages are those of `report.macro_averages`: the mean over
    tasks (without WNLI) of the mean over a task's metrics, for systems that have all of them.

    Args:
        answers: Answers (K, N) by column and system.
        gold: Labels (N,) by task.
        reference: The system that all others are compared with.
        resamples: Number of resamples.

    Returns:
        `scores` with their intervals, and `pairs`, the lead of one system over another as in `lead_of`.
    """
    columns = resampled_columns(answers, gold, resamples)
    scores = []
    pairs = []
    for (task, mode, metric), by_system in columns.items():
        column = {"task": task, "mode": mode, "metric": metric}
        for system, own in by_system.items():
            low, high = interval_of(own.draws)
            scores.append(
                {
                    **column,
                    "system": system,
                    "score": own.by_seed.mean().item(),
                    "low": low,
                    "high": high,
                    "by_seed": own.by_seed.tolist(),
                }
            )
        firsts = [reference] if reference in by_system else []
        if is_main(column):
            firsts = list(by_system)
        for first in firsts:
            for system in by_system:
                if system != first:
                    lead = lead_of(by_system[first], by_system[system])
                    pairs.append({**column, "of": first, "system": system, **lead})
    return {"scores": scores, "pairs": pairs}


def resampled_columns(
    answers: Mapping[Column, Mapping[str, np.ndarray]],
    gold: Mapping[str, np.ndarray],
    resamples: int,
) -> dict[Column, dict[str, Resampled]]:
    """Resampled scores by column and system, for the leading metric of each task and for averages over tasks."""
    most_seeds = max(len(rows) for by_system in answers.values() for rows in by_system.values())
    seed_draws = np.random.default_rng(0).random((resamples, most_seeds))
    metrics_of = metrics_by_task(answers)
    tasks = list(metrics_of)

    columns = {}
    averaged = defaultdict(lambda: defaultdict(list))
    for (task, mode, metric), by_system in answers.items():
        is_leading = metric == headline(task, metrics_of[task])
        if not is_leading and mode not in AVERAGED:
            continue
        function = FUNCTIONS.get(metric, np.mean)
        rows_seed = [0, tasks.index(task)]
        column = {}
        for system, rows in by_system.items():
            column[system] = resampled(function, rows, gold.get(task), rows_seed, seed_draws)
        if is_leading:
            columns[task, mode, metric] = column
        if mode in AVERAGED and not task.startswith("wnli"):
            averaged[mode][task.removesuffix("-mm")].append(column)
    for mode, by_task in averaged.items():
        means = [mean_of(metrics) for metrics in by_task.values()]
        if len(means) > 1:
            columns[f"average of {len(means)} tasks", mode, "average"] = mean_of(means)
    return columns


def metrics_by_task(columns: Iterable[tuple[str, ...]]) -> dict[str, list[str]]:
    """The metrics of each task, the leading one first, from columns that begin with task, mode and metric."""
    metrics_of = defaultdict(list)
    for task, _, metric, *_ in columns:
        metrics_of[task].append(metric)
    return metrics_of


def lead_of(ours: Resampled, theirs: Resampled) -> dict[str, Any]:
    """Lead of `ours` with its paired 95 % interval; significant where the interval excludes zero."""
    low, high = interval_of(ours.draws - theirs.draws)
    return {
        "ahead": (ours.by_seed.mean() - theirs.by_seed.mean()).item(),
        "low": low,
        "high": high,
        "verdict": significance(low, high),
    }


def mean_of(columns: Sequence[Mapping[str, Resampled]]) -> dict[str, Resampled]:
    """The mean of columns, for scores and resamples, of the systems that are in all of them."""
    means = {}
    for system in columns[0]:
        if all(system in column for column in columns):
            by_seed = np.mean([column[system].by_seed for column in columns], axis=0)
            draws = np.mean([column[system].draws for column in columns], axis=0)
            means[system] = Resampled(by_seed, draws)
    return means


def is_main(column: Mapping[str, Any]) -> bool:
    """Whether a column is in the main table: raw and centred cosines, and the average of linear probes."""
    if column["mode"] in ("cosine raw", "cosine centred"):
        return True
    return column["metric"] == "average" and column["mode"] == "linear"


def describe_run(
    plan: Plan,
    out: Path,
    arm: str,
    seed: int,
) -> dict[str, Any]:
    """Origins and cost of a run, the verdict of the collapse monitor, and curves: (seconds, value) by name."""
    logs = [out / f"seed{seed}" / f"{arm}.log", probe_log(answers_at(out, arm, seed))]
    described = {"arm": arm, "seed": seed, "origins": origins_of(logs)}
    if not is_trained(plan, arm):
        return described
    folder = out / f"seed{seed}" / arm
    records = [record for record in read_metrics(folder) if "train_seconds" in record]
    curves = {}
    for name in WATCHED:
        curves[name] = [(record["train_seconds"], record[name]) for record in records if name in record]
    log = (folder.parent / f"{arm}.log").read_text()
    health = health_of(log, is_watched=bool(curves["token_rank"]))
    over_time = answers_at(out, arm, seed, "over_time")
    if over_time.exists():
        curves |= curves_over_time(over_time, records)

    for name in ("step", "tokens_seen", "train_seconds"):
        described[name] = records[-1][name]
    described["health"] = health
    described["curves"] = {name: points for name, points in curves.items() if points}
    return described


def health_of(log: str, is_watched: bool) -> str:
    """The verdict of the collapse monitor, from the log of a run."""
    warned = re.search(r"collapse at step ([\d,]+)", log)
    if warned is not None:
        return f"collapse at step {warned[1]}"
    return "healthy" if is_watched else "not watched"


def curves_over_time(folder: Path, records: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Scores of checkpoints against seconds of training, by task and mode.

    Args:
        folder: Answers of the checkpoints.
        records: Records of the run.
    """
    answers, gold = read_answers(folder)
    steps = [record["step"] for record in records]
    clock = [record["train_seconds"] for record in records]
    metrics_of = metrics_by_task(answers)
    curves = defaultdict(list)
    for (task, mode, metric, system), rows in answers.items():
        if metric == headline(task, metrics_of[task]):
            step = int(system.rpartition("-")[2])
            seconds = np.interp(step, steps, clock).item()
            function = FUNCTIONS.get(metric, np.mean)
            (score,) = 100 * score_seeds(function, rows, gold.get(task))
            curves[f"{task}, {mode}"].append((seconds, score.item()))
    return {name: sorted(points) for name, points in curves.items()}


# ---- output ---------------------------------------------------------------------------------------------------------


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS lacks it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware() -> str:
    """Accelerators or processor that this process may use."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    cores = available_cores()
    noun = "core" if cores == 1 else "cores"
    return f"{cores} CPU {noun} ({platform.machine()})"


def source_of(results: Mapping[str, Any]) -> str:
    """Command, machine, budget and origins of a comparison, and what its scores are."""
    budgets = [f"{value:,.0f} {unit}" for unit, value in results["budget"].items() if value is not None]
    seeds = {run["seed"] for run in results["runs"]}
    parts = [
        f"`{results['command']}`\n\n{results['machine']}; {'; '.join(origins_in_words(results))}.",
        f"Each arm makes the steps of {budgets[0]} in a pilot.",
        f"Scores are percent, means over {len(seeds)} seeds, ± half of the 95 % interval over seeds and rows.",
    ]
    return " ".join(parts)


def origins_in_words(results: Mapping[str, Any]) -> list[str]:
    """Date, commit and versions of the runs, each once; older results have those of their last command."""
    origins = [origin for run in results["runs"] for origin in run.get("origins", ())]
    if "date" in results:
        origins = [{"date": results["date"], "commit": "not recorded", "versions": results["versions"]}]
    words = []
    for origin in origins:
        versions = [f"{name} {version}" for name, version in origin["versions"].items()]
        words.append(f"{origin['date']}, {', '.join(versions)}, commit {origin['commit']}")
    return list(dict.fromkeys(words))


def mean_seconds(results: Mapping[str, Any]) -> dict[str, float]:
    """Mean seconds of training over the seeds, by trained arm."""
    by_arm = defaultdict(list)
    for run in results["runs"]:
        if "train_seconds" in run:
            by_arm[run["arm"]].append(run["train_seconds"])
    return {arm: statistics.mean(seconds) for arm, seconds in by_arm.items()}


def seconds_header(budget: float | None) -> str:
    """Header of a column of measured seconds, with the budget; a budget of tokens is `None`."""
    if budget is None:
        return "seconds of training"
    return f"seconds of training (budget {budget:,.0f})"


def marked_seconds(seconds: float, budget: float | None) -> str:
    """Seconds of training, with a mark if they miss the budget; a budget of tokens is `None`."""
    is_off = budget is not None and abs(seconds - budget) > OFF_BUDGET * budget
    return f"{seconds:,.0f} †" if is_off else f"{seconds:,.0f}"


def note_on_seconds(table: str) -> str:
    """What the mark of `marked_seconds` means, if a table has one."""
    if "†" not in table:
        return ""
    return (
        f"† More than {100 * OFF_BUDGET:.0f} % off the budget: a pilot fixes the steps, and the machine was slower or "
        "faster during the runs than during the pilot. Scores of such a system are not those of equal seconds."
    )


def in_words(results: Mapping[str, Any]) -> str:
    """The results as Markdown: scores, differences, cost and health."""
    reference = results["plan"]["reference"]
    costs = cost_table([run for run in results["runs"] if "curves" in run], results["budget"]["seconds"])
    parts = [
        f"## {results['plan']['title']}",
        source_of(results),
        score_table(results["scores"], "{score:.1f} ± {half:.1f}"),
        f"Lead of `{reference}` with its paired 95 % interval; significant where the interval excludes zero:",
        score_table(against(reference, results["pairs"]), "{ahead:+.1f} [{low:+.1f}, {high:+.1f}] {verdict}"),
        significance_table(results["pairs"]),
        "Cost of the runs and measures of the representations at their end, means over the seeds:",
        costs,
        note_on_seconds(costs),
        *(f"Failed: {line}" for line in results["failures"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(header)
    lines = [f"| {' | '.join(cells)} |" for cells in [header, rule, *rows]]
    return "\n".join(lines)


def main_table(results: Mapping[str, Any]) -> str:
    """Scores of the main table and the lead of the reference, a row per system."""
    ahead = {}
    for pair in against(results["plan"]["reference"], results["pairs"]):
        cell = (pair["system"], pair["task"], pair["mode"])
        ahead[cell] = " ({ahead:+.1f} [{low:+.1f}, {high:+.1f}])".format(**pair)
    scores = []
    for score in results["scores"]:
        if is_main(score):
            cell = (score["system"], score["task"], score["mode"])
            scores.append({**score, "ahead": ahead.get(cell, "")})
    return score_table(scores, "{score:.1f} ± {half:.1f}{ahead}")


def against(reference: str, pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pairs of the reference with all other systems."""
    return [pair for pair in pairs if pair["of"] == reference]


def significance_table(pairs: Sequence[Mapping[str, Any]]) -> str:
    """A sign for every pair of systems and column of the main table."""
    signs = {"better": "+", "worse": "−", "n.s.": "·"}
    columns = []
    systems = []
    cells = {}
    for pair in pairs:
        if is_main(pair):
            column = f"{pair['task']}, {pair['mode']}"
            columns.append(column)
            systems.append(pair["of"])
            cells[pair["of"], pair["system"], column] = signs[pair["verdict"]]
    columns = list(dict.fromkeys(columns))
    systems = list(dict.fromkeys(systems))
    rows = []
    for one in systems:
        row = [one]
        for other in systems:
            row.append("".join(cells.get((one, other, column), " ") for column in columns))
        rows.append(row)
    return (
        f"Every pair, by {'; '.join(columns)}: whether the system of the row is better (+) than that of the column, "
        f"worse (−), or neither (·):\n\n{as_markdown(['', *systems], rows)}"
    )


def score_table(scores: Sequence[Mapping[str, Any]], form: str) -> str:
    """A table with a row per system and a column per task, mode and metric.

    Args:
        scores: Scores or pairs.
        form: Format of a cell, with the fields of a score and `half`, half the width of its interval.
    """
    cells = {}
    for score in scores:
        column = f"{score['task']}, {score['mode']}, {score['metric']}"
        half = (score["high"] - score["low"]) / 2
        cells[score["system"], column] = form.format(**score, half=half)
    systems = list(dict.fromkeys(system for system, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    rows = []
    for system in systems:
        rows.append([system, *(cells.get((system, column), "") for column in columns)])
    return as_markdown(["system", *columns], rows)


def cost_table(runs: Sequence[Mapping[str, Any]], budget: float | None) -> str:
    """A table with a row per arm: steps, tokens, seconds and last measures of representations, means over the seeds.

    Args:
        runs: The runs of all trained arms.
        budget: Seconds of training that were asked for; `None` for a budget of tokens.
    """
    measures = [name for name in WATCHED if any(name in run["curves"] for run in runs)]
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        steps = np.mean([run["step"] for run in own])
        tokens = np.mean([run["tokens_seen"] for run in own])
        seconds = np.mean([run["train_seconds"] for run in own])
        row = [arm, f"{steps:,.0f}", f"{tokens:,.0f}", marked_seconds(seconds, budget), f"{tokens / seconds:,.0f}"]
        for name in measures:
            last_values = [run["curves"][name][-1][1] for run in own if name in run["curves"]]
            row.append(f"{np.mean(last_values):.3g}" if last_values else "")
        health = dict.fromkeys(run["health"] for run in own)
        row.append(", ".join(health))
        rows.append(row)
    header = ["arm", "steps", "tokens", seconds_header(budget), "tokens/s"]
    header += [name.replace("_", " ") for name in measures]
    header.append("collapse monitor")
    return as_markdown(header, rows)


# ---- pictures -------------------------------------------------------------------------------------------------------


def draw_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws a panel per curve over seconds of training, with a line per run and a colour per arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    trained = [run for run in runs if "curves" in run]
    panels = list(dict.fromkeys(name for run in trained for name in run["curves"]))
    styles = {}
    for arm in dict.fromkeys(run["arm"] for run in trained):
        number = len(styles)
        styles[arm] = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
    columns = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(4.5 * columns, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(panels, start=1):
        axes = figure.add_subplot(2, columns, number)
        for run in trained:
            if name in run["curves"]:
                seconds, values = zip(*run["curves"][name], strict=True)
                axes.plot(seconds, values, **styles[run["arm"]], linewidth=1)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("seconds of training", fontsize=8)
        axes.grid(alpha=0.3)
    handles = [Line2D([], [], label=arm, **style) for arm, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def quality_of(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores over seconds of training, by column of the main table.

    Args:
        comparisons: Results of one plan for several budgets, the longest last.

    Returns:
        For raw cosines and the average of linear probes, if the shortest budget has them: `arms`, with a point (mean
        seconds over the seeds, score, low and high end of its interval) for each budget by arm, and `controls`, with
        the score of each system without training.
    """
    found: dict[str, dict[str, Any]] = {}
    for results in comparisons:
        seconds_of = mean_seconds(results)
        for score in results["scores"]:
            name = f"{score['task']}, {score['metric']}"
            if not is_main(score) or score["mode"] == "cosine centred":
                continue
            if name not in found and results is not comparisons[0]:
                continue
            column = found.setdefault(name, {"arms": {}, "controls": {}})
            system = score["system"]
            if system in seconds_of:
                point = [seconds_of[system], score["score"], score["low"], score["high"]]
                column["arms"].setdefault(system, []).append(point)
            else:
                column["controls"][system] = score["score"]
    return found


def draw_quality(results: Mapping[str, Any], path: Path) -> None:
    """Draws a panel per column of `quality_of`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = results["quality"]
    arms = [arm for column in columns.values() for arm in column["arms"]]
    controls = [name for column in columns.values() for name in column["controls"]]
    names = {system: system for system in [*controls, *arms]}
    figure = Figure(figsize=(5 * len(columns), 5), layout="constrained")
    FigureCanvasAgg(figure)
    lines = {}
    for number, (name, column) in enumerate(columns.items(), start=1):
        axes = figure.add_subplot(1, len(columns), number)
        lines |= plot_quality(axes, column, names)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(f"{results['quality_axis']}\n{results['machine']}", fontsize=8)
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def plot_quality(
    axes: Any,
    column: Mapping[str, Any],
    names: Mapping[str, str],
) -> dict[str, Any]:
    """Plots the scores of a column of `quality_of` over seconds: a line per arm, a level line per control.

    Args:
        axes: Axes of matplotlib.
        column: `arms` and `controls`.
        names: Labels of the systems to plot.

    Returns:
        The lines by system.
    """
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    controls = [system for system in names if system in column["controls"]]
    arms = [system for system in names if system in column["arms"]]
    styles = control_styles(controls)
    lines = {}
    for control in controls:
        lines[control] = axes.axhline(column["controls"][control], **styles[control], label=names[control])
    for number, arm in enumerate(arms):
        seconds, scores, lows, highs = zip(*column["arms"][arm], strict=True)
        color = f"C{number % 10}"
        (lines[arm],) = axes.plot(seconds, scores, color=color, marker="o", markersize=3, label=names[arm])
        axes.fill_between(seconds, lows, highs, color=color, alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)
    return lines


def control_styles(controls: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Styles of level lines: a shade per kind of control, and different dashes within a shade."""
    dashes = ["--", ":", "-."]
    used = Counter()
    styles = {}
    for control in controls:
        shade = shade_of(control)
        styles[control] = {
            "color": shade,
            "linestyle": dashes[used[shade] % len(dashes)],
            "linewidth": 1,
        }
        used[shade] += 1
    return styles


def shade_of(control: str) -> str:
    """The colour of a level line: black for TF-IDF, dark gray for BM25, light gray for untrained encoders."""
    for start, shade in {"TF-IDF": "black", "BM25": "dimgray"}.items():
        if control.startswith(start):
            return shade
    return "darkgray"


if __name__ == "__main__":
    run_command(main)
