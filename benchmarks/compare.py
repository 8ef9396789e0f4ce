"""Which objective makes the better encoder: arms with all else equal, several seeds, intervals.

    python benchmarks/compare.py configs/compare/tiny.yaml --seconds 20
    python benchmarks/compare.py configs/compare/scratch.yaml --seconds 300 --seeds 0 1 2 --jobs 2
    python benchmarks/compare.py configs/compare/scratch.yaml --tokens 10000000 --output_dir runs/scratch-tokens
    python benchmarks/compare.py configs/compare/from_encoder.yaml --seconds 300 --model_name_or_path ENCODER
    python benchmarks/compare.py configs/compare/documents.yaml --seconds 15 30 60 120

The file has a `title`, `common` flags of run_pretraining.py, `arms` by name with the flags that set them apart (and
`recipe`, a file to begin with; `trainer: tsdae` is the denoising autoencoder, `trainer: word2vec` skip-gram, `trainer:
none` the encoder untouched), flags of run_probe.py in `probe`, `over_time` and `curve`, and the `reference` that all
others are compared with. Flags that are none of ours join the common ones, over which an arm's own win. ${VARIABLES},
in quoted flags too, are those of the environment.

Schedules need to know the number of steps, so each arm makes a short pilot run first: the steps that its rate makes of
--seconds are those of all seeds. What a run really took is in the table. --tokens divides by the pilot's tokens per
step instead; a text counts once, in however many views or masks a step shows it. --jobs runs so many arms side by
side, each with its share of the cores; times want a machine that does nothing else. Several --seconds are as many
comparisons, each in a folder of its own with runs of its own; the longest is the result, and quality.png shows what
more seconds bring to each arm. The shorter ones are probed with the flags of `curve`, where the file has them.

All arms have one tokenizer, and by seed one order of the texts and one held-out part. Every run is a process with a
log beside its folder: one that fails is named, the others go on, and the same command later makes what is missing.

Intervals are 95 % of bootstrap resamples of seeds and of scored rows, the same ones for all arms. K seeds drawn from K
vary less than K new ones, and tell little of how much those do: deviations by seed are widened by sqrt(K / (K - 1))
and by the ratio of Student's quantile to the normal one, 2.2 of three seeds. A seed that one system lacks counts for
none.
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
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
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
from text_jepa.probe.documents import Answers
from text_jepa.probe.glue import FUNCTIONS
from text_jepa.probe.report import headline, read_answers
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("title", "common", "arms", "probe", "over_time", "curve", "reference")

PILOT_STEPS = 40  # timed steps, after as many to warm up
LOGS = 12  # records of a run
CHECKPOINTS = 4  # checkpoints of a run with the first seed, which are probed over time
WATCHED = ("relative_loss", "token_rank", "pooled_rank", "spread")
AVERAGED = ("linear", "knn")  # modes whose tasks are averaged
_PACKAGES = ("text-jepa", "torch", "transformers")

Plan = dict[str, Any]
"""A comparison as its file has it, see `read_plan`."""

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
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }

    share_tokenizer(plan, out, environment)
    pilots = [(arm, "pilot") for arm in plan["arms"]]
    pilot_failures = in_turns(args.jobs, pilots, partial(pilot, plan, out, environment))
    about = {
        "command": shlex.join(["python", "benchmarks/compare.py", *argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{hardware()}, {args.jobs} at a time with {threads} threads",
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    comparisons = []
    for seconds in sorted(args.seconds or [None]):
        found = compared(plan, out, environment, args, seconds, pilot_failures)
        results = {**about, **found}
        write_results(results, folder_of(out, args, seconds))
        comparisons.append(results)
    results = comparisons[-1]
    if len(comparisons) > 1:
        results = add_quality(comparisons, sorted(args.seconds), out)
        write_results(results, out)
    print(in_words(results))
    sys.exit(1 if results["failures"] else 0)


def folder_of(out: Path, args: argparse.Namespace, seconds: float | None) -> Path:
    """The folder of the runs of one budget: one of its own if there are several."""
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
        pilot_failures: Error of each pilot that failed.

    Raises:
        UsageError: No run of the reference succeeded.
    """
    is_shorter = seconds is not None and seconds < max(args.seconds)
    if is_shorter and plan["curve"]:
        plan = {**plan, "probe": plan["curve"], "over_time": None}
    folder = folder_of(out, args, seconds)
    budget = {"seconds": seconds, "tokens": args.tokens}
    arms = [arm for arm in plan["arms"] if (arm, "pilot") not in pilot_failures]
    steps = {}
    for arm in arms:
        if is_trained(plan, arm):
            steps[arm] = steps_for(read_metrics(out / "pilot" / arm), **budget)

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
        "plan": {name: plan[name] for name in ("title", "reference")},  # the command's file has the rest
        "failures": [f"{arm}, {what}: {line}" for (arm, what), line in failures.items()],
        "runs": [describe_run(plan, folder, arm, seed) for arm, seed in done],
        **judged(answers, gold, plan["reference"]),
    }


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """Writes a comparison as JSON, as Markdown and as curves."""
    (folder / "results.json").write_text(json.dumps(results) + "\n")
    (folder / "results.md").write_text(in_words(results))
    draw_curves(results["runs"], folder / "curves.png")


def add_quality(
    comparisons: Sequence[dict[str, Any]],
    budgets: Sequence[float],
    out: Path,
) -> dict[str, Any]:
    """The results of the longest budget with the failures of all, and with what more seconds bring."""
    results = comparisons[-1]
    failures = [line for comparison in comparisons for line in comparison["failures"]]
    results["failures"] = list(dict.fromkeys(failures))
    quality = quality_of(comparisons)
    if quality:  # a single linear probe has no place in the main table
        results["quality"] = quality
        draw_quality(quality, budgets, out / "quality.png")
    return results


# ---- what is asked --------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("config", help="the comparison, a file of configs/compare")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--seconds", type=float, nargs="+", help="of training, for every arm; several: a curve")
    budget.add_argument("--tokens", type=float, help="to train on, for every arm, in place of seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", help="these alone")
    parser.add_argument("--reference", help="compare this arm with all others")
    parser.add_argument("--title", help="of what other flags make of it")
    parser.add_argument("--jobs", type=int, default=1, help="arms side by side")
    parser.add_argument("--output_dir", help="default: runs/compare- and the name of the file")
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
        rest: Further flags for all arms, as on the command line.
        arms: Names of the arms to keep. Defaults to all.
        reference: Arm that the others are compared with, in place of the file's.

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
    """The text with the values of its ${VARIABLES}."""
    text = os.path.expandvars(text)
    unset = re.search(r"\$\{(\w+)\}", text)
    if unset is not None:
        raise UsageError(f"{where}: the variable {unset[1]} is not set; export it, as the head of the file says")
    return text


def as_flags(argv: Sequence[str]) -> dict[str, Any]:
    """`--name value …` as names with their value, or list of values; a name alone is true."""
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
    """Names with their values as a command line."""
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
    """Runs a command, unless the file that it makes last is there.

    Args:
        command: Arguments of Python.
        log: File for the command and its output.
        made: The file that the command makes last.
        environment: Environment variables.

    Raises:
        UsageError: It failed, or the file is that of another command.
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


def train(
    flags: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    **settings: Any,
) -> None:
    """Runs a training with the flags of an arm, unless what it makes last is there."""
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
    """The last of the files that a training makes and that are read."""
    if "prepare_only" in flags:
        return "tokenizer"
    # A run writes its arguments before its first step, the other trainers behind their last.
    return "README.md" if trainer == "run_pretraining" else "arguments.yaml"


def share_tokenizer(
    plan: Plan,
    out: Path,
    environment: Mapping[str, str],
) -> None:
    """Trains one tokenizer for all arms without a tokenizer or an encoder, which has its own."""
    arms = [
        flags for flags in plan["arms"].values() if "tokenizer_name" not in flags and "model_name_or_path" not in flags
    ]
    if not arms:
        return
    train(plan["common"], out / "prepared", environment, prepare_only=True)
    for flags in arms:
        flags["tokenizer_name"] = str(out / "prepared/tokenizer")


def pilot(
    plan: Plan,
    out: Path,
    environment: Mapping[str, str],
    arm: str,
    _: str,
) -> None:
    """Runs the steps that are timed: of a run itself, without its end."""
    if not is_trained(plan, arm):
        return
    train(
        {"trainer": "pilot", **plan["arms"][arm]},
        out / "pilot" / arm,
        environment,
        max_steps=2 * PILOT_STEPS,
        logging_steps=PILOT_STEPS,
        merge=False,
        save_strategy="no",
    )


def is_trained(plan: Plan, arm: str) -> bool:
    """Whether an arm is trained, and not an encoder as it is."""
    return plan["arms"][arm].get("trainer") != "none"


def steps_for(
    records: Sequence[Mapping[str, float]],
    seconds: float | None,
    tokens: float | None,
) -> int:
    """Steps that take this many seconds or tokens, at the rate between the last two records of a pilot."""
    timed = [record for record in records if "train_seconds" in record]
    before, last = timed[-2:]
    if seconds is not None:
        unit = "train_seconds"
        budget = seconds
    else:
        unit = "tokens_seen"
        budget = tokens
    steps = last["step"] - before["step"]
    spent = last[unit] - before[unit]
    return max(1, round(budget * steps / spent))


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
    """Trains an arm with a seed and probes its encoder; with the first seed also that of each checkpoint."""
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
    probe_flags = {**plan["probe"], "controls": arm == plan["reference"]}
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
    """Folder of the answers of an arm, or of those of its checkpoints."""
    return out / f"seed{seed}" / f"{arm}.{part}"


def probe(
    encoders: Sequence[str],
    seed: int,
    flags: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
) -> None:
    """Runs run_probe.py, with its results in a folder."""
    first, *others = encoders
    flags = {**flags, "seeds": seed, "output_dir": str(folder)}
    if others:
        flags["compare"] = others
    command = [str(ROOT / "run_probe.py"), first, *as_argv(flags)]
    log = folder.with_suffix(f"{folder.suffix}.log")
    call(command, log, folder / "answers.npz", environment)


def exported(
    checkpoint: Path,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
) -> str:
    """Exports a checkpoint and returns the folder of the encoder, as a run would have left it."""
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
    """Answers (K, N) by seed and row, by column and system; and labels (N,) by task.

    Raises:
        UsageError: There is no seed that all systems have.
    """
    found = defaultdict(lambda: defaultdict(dict))
    gold = {}
    for arm, seed in done:
        answers, labels = read_answers(answers_at(out, arm, seed))
        gold |= labels
        encoder = encoder_of(plan, out, arm, seed)
        for (task, mode, metric, system), (rows,) in answers.items():
            name = arm if system == encoder else system
            # The most frequent class stands beside what was learned from the same labels.
            column = (task, mode.replace("majority", "linear"), metric)
            found[column][name][seed] = rows
    return {column: in_common(by_system) for column, by_system in found.items()}, gold


def in_common(by_system: Mapping[str, Mapping[int, np.ndarray]]) -> dict[str, np.ndarray]:
    """Answers (K, N) by system for the seeds that all have, in one order.

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
    """Scores of a system in percent: (K,) of every seed, and (R,) of every resample of rows and seeds."""

    by_seed: np.ndarray
    draws: np.ndarray


def resampled(
    function: Callable[..., float],
    answers: np.ndarray,
    gold: np.ndarray | None,
    seed: int | Sequence[int],
    seed_draws: np.ndarray,
) -> Resampled:
    """Scores a system on bootstrap resamples of rows and seeds, with the spread over seeds widened.

    Args:
        function: Function of (N,) answers and `gold`, at most 1.
        answers: (K, N), one row per seed.
        gold: (N,) labels, if any.
        seed: Seed that draws the rows, the same for all systems.
        seed_draws: (R, K or more) between 0 and 1, which draw the seeds, the same for all systems.
    """
    count = len(answers)
    by_seed = 100 * score_seeds(function, answers, gold)
    drawn = 100 * score_resamples(function, answers, gold, seed, resamples=len(seed_draws))
    mean = drawn.mean(axis=1)
    drawn_seeds = (seed_draws[:, :count] * count).astype(int)
    over_seeds = np.take_along_axis(drawn, drawn_seeds, axis=1).mean(axis=1)
    return Resampled(by_seed, mean + widening(count) * (over_seeds - mean))


def widening(count: int) -> float:
    """Factor by which deviations of means over `count` seeds, resampled from themselves, are too small."""
    if count == 1:
        return 1.0  # there are none
    unbiased = math.sqrt(count / (count - 1))
    student = stats.t.ppf(0.975, count - 1)
    normal = stats.norm.ppf(0.975)
    return unbiased * student / normal


def significance(low: float, high: float) -> str:
    """Whether a difference with this interval is significantly above or below 0."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "n.s."


def judged(
    answers: Mapping[Column, Mapping[str, np.ndarray]],
    gold: Mapping[str, np.ndarray],
    reference: str,
    resamples: int = RESAMPLES,
) -> dict[str, list[dict]]:
    """Scores all systems, and compares them in pairs.

    The reference is paired with every other system, and in the columns of the main table each with each. Of a task's
    metrics the leading one is shown. Averages are made as in `report.macro_averages`: the mean over tasks (without
    WNLI) of the mean over a task's metrics, for the systems that have them all.

    Args:
        answers: Answers (K, N) by column and system.
        gold: Labels (N,) by task.
        reference: The system that is compared with all others.
        resamples: Number of resamples.

    Returns:
        `scores` with intervals, and `pairs`: how far one system is ahead of another, with the interval and whether it
        is significant.
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
    """Resampled scores by column and system: of the leading metric of each task, and of averages over tasks."""
    most_seeds = max(len(rows) for by_system in answers.values() for rows in by_system.values())
    seed_draws = np.random.default_rng(0).random((resamples, most_seeds))
    metrics_of = defaultdict(list)
    for task, _, metric in answers:
        metrics_of[task].append(metric)
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


def lead_of(ours: Resampled, theirs: Resampled) -> dict[str, Any]:
    """How far a system is ahead of another, with the interval on the same resamples, and whether it is significant."""
    low, high = interval_of(ours.draws - theirs.draws)
    return {
        "ahead": (ours.by_seed.mean() - theirs.by_seed.mean()).item(),
        "low": low,
        "high": high,
        "verdict": significance(low, high),
    }


def mean_of(columns: Sequence[Mapping[str, Resampled]]) -> dict[str, Resampled]:
    """The mean of columns, of scores and resamples alike, for the systems that are in all."""
    means = {}
    for system in columns[0]:
        if all(system in column for column in columns):
            by_seed = np.mean([column[system].by_seed for column in columns], axis=0)
            draws = np.mean([column[system].draws for column in columns], axis=0)
            means[system] = Resampled(by_seed, draws)
    return means


def is_main(column: Mapping[str, Any]) -> bool:
    """Whether a column belongs into the main table: raw and centred cosines, and the average of linear probes."""
    if column["mode"] in ("cosine raw", "cosine centred"):
        return True
    return column["metric"] == "average" and column["mode"] == "linear"


def describe_run(
    plan: Plan,
    out: Path,
    arm: str,
    seed: int,
) -> dict[str, Any]:
    """Cost of a run, what the collapse monitor said, and curves: (seconds, value) by name."""
    described = {"arm": arm, "seed": seed}
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
    """What the collapse monitor said, from the log of a run."""
    warned = re.search(r"collapse at step (\d+)", log)
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
    curves = defaultdict(list)
    for (task, mode, metric, system), (rows,) in answers.items():
        if metric == headline(task, metrics_of_task(answers, task)):
            step = int(system.rpartition("-")[2])
            seconds = np.interp(step, steps, clock).item()
            score = 100 * FUNCTIONS[metric](rows, gold[task])
            curves[f"{task}, {mode}"].append((seconds, score))
    return {name: sorted(points) for name, points in curves.items()}


def metrics_of_task(answers: Answers, task: str) -> list[str]:
    """The metrics of a task, the leading one first."""
    return [metric for name, _, metric, _ in answers if name == task]


# ---- what is written ------------------------------------------------------------------------------------------------


def hardware() -> str:
    """Processor or accelerators of this machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def source_of(results: Mapping[str, Any]) -> str:
    """Command, date, machine, versions and budget, and what the scores are."""
    budgets = [f"{value:,.0f} {unit}" for unit, value in results["budget"].items() if value is not None]
    seeds = {run["seed"] for run in results["runs"]}
    versions = [f"{name} {version}" for name, version in results["versions"].items()]
    parts = [
        f"`{results['command']}`\n\n{results['date']}, {results['machine']}; {', '.join(versions)}.",
        f"Each arm makes the steps of {budgets[0]} in a pilot.",
        f"Scores are percent, means over {len(seeds)} seeds, ± half of the 95 % interval over seeds and rows.",
    ]
    return " ".join(parts)


def in_words(results: Mapping[str, Any]) -> str:
    """The results as Markdown: scores, differences, cost and health."""
    reference = results["plan"]["reference"]
    parts = [
        f"## {results['plan']['title']}",
        source_of(results),
        score_table(results["scores"], "{score:.1f} ± {half:.1f}"),
        f"How far `{reference}` is ahead, with the 95 % interval on the same seeds and rows; it is better or worse "
        "where that does not hold zero:",
        score_table(against(reference, results["pairs"]), "{ahead:+.1f} [{low:+.1f}, {high:+.1f}] {verdict}"),
        significance_table(results["pairs"]),
        "What the runs cost, and how representations were at their end; means over the seeds:",
        cost_table([run for run in results["runs"] if "curves" in run]),
        *(f"Failed: {line}" for line in results["failures"]),
    ]
    return "\n\n".join(parts) + "\n"


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    rule = ["---"] * len(header)
    lines = [f"| {' | '.join(cells)} |" for cells in [header, rule, *rows]]
    return "\n".join(lines)


def main_table(results: Mapping[str, Any]) -> str:
    """Raw cosines and the mean of the linear probes, and the lead of the reference: a row per system."""
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
    """The pairs of the reference with the others."""
    return [pair for pair in pairs if pair["of"] == reference]


def significance_table(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Every pair in the columns of the main table: a sign for each."""
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
        f"worse (−), or neither, n.s. (·):\n\n{as_markdown(['', *systems], rows)}"
    )


def score_table(scores: Sequence[Mapping[str, Any]], form: str) -> str:
    """A row per system, a column per task, mode and metric.

    Args:
        scores: Scores or pairs.
        form: Format of a cell, from the fields of a score and `half`, half the width of its interval.
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


def cost_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Steps, tokens, seconds and last measures of representations, means over the seeds: a row per arm."""
    measures = [name for name in WATCHED if any(name in run["curves"] for run in runs)]
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        steps = np.mean([run["step"] for run in own])
        tokens = np.mean([run["tokens_seen"] for run in own])
        seconds = np.mean([run["train_seconds"] for run in own])
        row = [arm, f"{steps:,.0f}", f"{tokens:,.0f}", f"{seconds:,.0f}", f"{tokens / seconds:,.0f}"]
        for name in measures:
            last_values = [run["curves"][name][-1][1] for run in own if name in run["curves"]]
            row.append(f"{np.mean(last_values):.3g}" if last_values else "")
        health = dict.fromkeys(run["health"] for run in own)
        row.append(", ".join(health))
        rows.append(row)
    header = ["arm", "steps", "tokens", "seconds", "tokens/s"]
    header += [name.replace("_", " ") for name in measures]
    header.append("collapse monitor")
    return as_markdown(header, rows)


# ---- pictures -------------------------------------------------------------------------------------------------------


def draw_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws a panel per curve against seconds of training, a line per run, a colour per arm."""
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
    """What more seconds bring, by column of the main table.

    Args:
        comparisons: Results of one plan for several budgets, the longest last.

    Returns:
        For each column that the shortest budget has too, raw cosines and the average of linear probes: `arms`, arm to
        (seconds, score, low end, high end of its interval) of each budget; and `controls`, the score of each system
        that is not trained.
    """
    found: dict[str, dict[str, Any]] = {}
    for results in comparisons:
        trained = {run["arm"] for run in results["runs"] if "train_seconds" in run}
        for score in results["scores"]:
            name = f"{score['task']}, {score['metric']}"
            if not is_main(score) or score["mode"] == "cosine centred":
                continue
            if name not in found and results is not comparisons[0]:
                continue
            column = found.setdefault(name, {"arms": {}, "controls": {}})
            system = score["system"]
            if system in trained:
                point = [results["budget"]["seconds"], score["score"], score["low"], score["high"]]
                column["arms"].setdefault(system, []).append(point)
            else:
                column["controls"][system] = score["score"]
    return found


def draw_quality(
    quality: Mapping[str, Mapping[str, Any]],
    budgets: Sequence[float],
    path: Path,
) -> None:
    """Draws a panel per column of `quality_of`: a line per arm over seconds, and a level line per control."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    arms = list(dict.fromkeys(arm for column in quality.values() for arm in column["arms"]))
    controls = list(dict.fromkeys(name for column in quality.values() for name in column["controls"]))
    style_of = control_styles(controls)
    figure = Figure(figsize=(5 * len(quality), 5), layout="constrained")
    FigureCanvasAgg(figure)
    lines = {}
    for number, (name, column) in enumerate(quality.items(), start=1):
        axes = figure.add_subplot(1, len(quality), number)
        for control, score in column["controls"].items():
            lines[control] = axes.axhline(score, **style_of[control], label=control)
        for arm, points in column["arms"].items():
            seconds, scores, lows, highs = zip(*points, strict=True)
            color = f"C{arms.index(arm) % 10}"
            (line,) = axes.plot(seconds, scores, color=color, marker="o", markersize=3, label=arm)
            axes.fill_between(seconds, lows, highs, color=color, alpha=0.1, linewidth=0)
            lines[arm] = line
        axes.set_xscale("log")
        axes.set_xticks(budgets)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("seconds of training", fontsize=8)
        axes.grid(alpha=0.3)
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def control_styles(controls: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Styles of level lines: a shade per kind of control, and dashes that tell those of one shade apart."""
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
    """The colour of a level line: black for TF-IDF, gray for BM25, light for what is an untrained encoder."""
    for start, shade in {"TF-IDF": "black", "BM25": "dimgray"}.items():
        if control.startswith(start):
            return shade
    return "darkgray"


if __name__ == "__main__":
    run_command(main)
