"""Which objective makes the better encoder: arms with all else equal, several seeds, intervals, verdicts.

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
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from text_jepa.cli import UsageError, nearest, run_command
from text_jepa.probe.glue import FUNCTIONS
from text_jepa.probe.report import headline, read_answers
from text_jepa.share.model_card import hardware
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("title", "common", "arms", "probe", "over_time", "curve", "reference")

PILOT_STEPS = 40  # that are timed, after as many to warm up
LOGS = 12  # records of a run
CHECKPOINTS = 4  # of a run with the first seed, to be probed over time
WATCHED = ("relative_loss", "token_rank", "pooled_rank", "spread")
AVERAGED = ("linear", "knn")  # modes of which tasks have an average
RESAMPLES = 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; ends with code 1 if an arm failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = make_parser().parse_known_args(argv)
    plan = read_plan(args.config, rest, args.arms, args.reference)
    plan["title"] = args.title or plan["title"]
    out = Path(args.output_dir or f"runs/compare-{Path(args.config).stem}")
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    share_tokenizer(plan, out, environment)
    failures = in_turns(args.jobs, [(arm, "pilot") for arm in plan["arms"]], pilot, plan, out, environment)
    about = {
        "command": shlex.join(["python", "benchmarks/compare.py", *argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{hardware()}, {args.jobs} at a time with {threads} threads",
        "versions": {name: importlib.metadata.version(name) for name in ("text-jepa", "torch", "transformers")},
    }
    comparisons = []
    for seconds in sorted(args.seconds or [None]):
        folder = out / f"seconds-{seconds:g}" if len(args.seconds or ()) > 1 else out
        budget = {"seconds": seconds, "tokens": args.tokens}
        is_shorter = seconds is not None and seconds < max(args.seconds)
        asked = plan | {"probe": plan["curve"], "over_time": None} if is_shorter and plan["curve"] else plan
        results = about | compared(asked, out, folder, environment, args, budget, failures)
        write_results(results, folder)
        comparisons.append(results)
    results = comparisons[-1]
    if len(comparisons) > 1:
        results["failures"] = list(dict.fromkeys(line for one in comparisons for line in one["failures"]))
        quality = quality_of(comparisons)
        if quality:  # a single linear probe has no place in the main table
            results["quality"] = quality
            draw_quality(quality, sorted(args.seconds), out / "quality.png")
        write_results(results, out)
    print(in_words(results))
    sys.exit(1 if results["failures"] else 0)


def compared(plan, out: Path, folder: Path, environment, args, budget, pilot_failures) -> dict[str, Any]:
    """Runs all arms with all seeds for one budget, and compares what came of them.

    Args:
        plan: The comparison, from `read_plan`.
        out: Where the pilots are.
        folder: Where the runs of this budget go.
        environment: Of the runs.
        args: The command's arguments.
        budget: `seconds` or `tokens`, the other one `None`.
        pilot_failures: What went wrong before, by run.

    Raises:
        UsageError: No run of the reference succeeded.
    """
    arms = [arm for arm in plan["arms"] if (arm, "pilot") not in pilot_failures]
    steps = {arm: steps_for(read_metrics(out / "pilot" / arm), **budget) for arm in arms if is_trained(plan, arm)}
    runs = [(arm, seed) for seed in args.seeds for arm in arms]
    failures = pilot_failures | in_turns(args.jobs, runs, run, plan, folder, environment, steps, args.seeds[0])
    done = [one for one in runs if one not in failures]
    if plan["reference"] not in dict(done):
        raise UsageError(f"no run of {plan['reference']}, the reference, succeeded: {next(iter(failures.values()))}")
    return {
        "budget": budget,
        "plan": {name: plan[name] for name in ("title", "reference")},  # the command's file has the rest
        "failures": [f"{arm}, {what}: {line}" for (arm, what), line in failures.items()],
        "runs": [facts_of(plan, folder, *one) for one in done],
        **judged(*gathered(plan, folder, done), plan["reference"]),
    }


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """Writes a comparison as JSON, as Markdown and as curves."""
    (folder / "results.json").write_text(json.dumps(results) + "\n")
    (folder / "results.md").write_text(in_words(results))
    draw_curves(results["runs"], folder / "curves.png")


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
    path: str, rest: Sequence[str] = (), arms: Sequence[str] | None = None, reference: str | None = None
) -> dict[str, Any]:
    """A comparison from its file, with further common flags, all arms or some, and another reference if named."""
    try:
        plan = yaml.safe_load(expanded(Path(path).read_text(encoding="utf-8"), path))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); name a file of configs/compare") from error
    if not isinstance(plan, dict) or not plan.keys() >= {"title", "arms", "probe", "reference"}:
        raise UsageError(f"{path}: expected title, arms, probe and reference")
    for name in plan.keys() - set(PARTS):
        raise UsageError(f"{path}: unknown part '{name}'{nearest(name, PARTS)} (there are {', '.join(PARTS)})")
    for name in [*(arms or ()), reference or plan["reference"]]:
        if name not in plan["arms"]:
            raise UsageError(f"{path}: no arm '{name}'{nearest(name, plan['arms'])} ({', '.join(plan['arms'])})")
    plan["reference"] = reference or plan["reference"]
    if arms and plan["reference"] not in arms:
        raise UsageError(f"--arms leaves out {plan['reference']}, which the others are compared with; --reference ARM")
    plan["common"] = (plan.get("common") or {}) | as_flags([expanded(word, word) for word in rest])
    chosen = {name: flags for name, flags in plan["arms"].items() if not arms or name in arms}
    plan["arms"] = {name: plan["common"] | flags for name, flags in chosen.items()}
    return {"over_time": None, "curve": None, **plan}


def expanded(text: str, where: str) -> str:
    """The text with the values of its ${VARIABLES}."""
    text = os.path.expandvars(text)
    if unset := re.search(r"\$\{(\w+)\}", text):
        raise UsageError(f"{where}: the variable {unset[1]} is not set; it names the folder of the data")
    return text


def as_flags(argv: Sequence[str]) -> dict[str, Any]:
    """`--name value …` as names with their value, or list of values; a name alone is true."""
    found: dict[str, Any] = {}
    for word in argv:
        if word.startswith("--"):
            name, *value = word[2:].split("=", 1)
            found[name] = value
        elif found:
            found[name].append(word)
        else:
            raise UsageError(f"no flag takes the value '{word}' (see --help)")
    return {name: values if values[1:] else values[0] if values else True for name, values in found.items()}


def as_argv(flags: Mapping[str, Any]) -> list[str]:
    """Names with their values as a command line."""
    argv = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        argv += [f"--{name}", *map(str, values)]
    return argv


# ---- runs -----------------------------------------------------------------------------------------------------------


def in_turns(jobs: int, runs: Sequence[tuple], function: Callable[..., None], *arguments) -> dict[tuple, str]:
    """Calls `function(*arguments, arm, seed)` for all, so many at a time; returns what went wrong, by run."""
    failures = {}

    def one(which):
        try:
            function(*arguments, *which)
            print(f"{', '.join(map(str, which))}: done", flush=True)
        except UsageError as error:
            failures[which] = str(error)
            print(f"{', '.join(map(str, which))}: {error}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))
    return failures


def call(command: Sequence[str], log: Path, made: Path, environment: Mapping[str, str]) -> None:
    """Runs a command whose last trace is the file `made`, unless it is there.

    Raises:
        UsageError: It failed, or the file is that of another command.
    """
    line = shlex.join(command)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.read_text().split("\n")[0] != line:
        raise UsageError(f"{log}: of another command; name another --output_dir, or remove it and what it made")
    if made.exists():
        return
    if not log.exists():
        log.write_text(f"{line}\n")
    with log.open("a") as file:
        code = subprocess.run([sys.executable, *command], stdout=file, stderr=file, env=environment).returncode
    if code:
        last = [words for words in log.read_text().splitlines() if words.strip()][-1]
        raise UsageError(f"exit code {code}, {log}: {last.removeprefix('error: ')}")


def train(flags: Mapping[str, Any], folder: Path, environment: Mapping[str, str], **settings) -> None:
    """A training run with the flags of an arm; the file of arguments is the last that it leaves."""
    flags = {**flags, **settings, "eval_strategy": "no", "resume_from_checkpoint": "auto", "output_dir": str(folder)}
    recipe, trainer = flags.pop("recipe", None), flags.pop("trainer", "run_pretraining")
    script = ROOT / ("run_pretraining.py" if trainer == "run_pretraining" else f"benchmarks/{trainer}.py")
    command = [str(script), *([str(ROOT / recipe)] if recipe else []), *as_argv(flags)]
    made = "tokenizer" if "prepare_only" in flags else "arguments.yaml"
    call(command, folder.parent / f"{folder.name}.log", folder / made, environment)


def share_tokenizer(plan: dict[str, Any], out: Path, environment: Mapping[str, str]) -> None:
    """Trains one for all arms, unless the common flags name one or an encoder, which brings its own."""
    if not plan["common"].keys() & {"tokenizer_name", "model_name_or_path"}:
        train(plan["common"], out / "prepared", environment, prepare_only=True)
        for flags in plan["arms"].values():
            flags["tokenizer_name"] = str(out / "prepared/tokenizer")


def pilot(plan, out, environment, arm, _) -> None:
    """The run that is timed."""
    if is_trained(plan, arm):
        steps = {"max_steps": 2 * PILOT_STEPS, "logging_steps": PILOT_STEPS, "merge": False}
        train(plan["arms"][arm], out / "pilot" / arm, environment, **steps, save_strategy="no")


def is_trained(plan: Mapping[str, Any], arm: str) -> bool:
    """Whether an arm is trained, and not an encoder as it is."""
    return plan["arms"][arm].get("trainer") != "none"


def steps_for(records: Sequence[Mapping[str, float]], seconds: float | None, tokens: float | None) -> int:
    """Steps that take so many seconds or tokens, by the last two records of a pilot."""
    before, last = [record for record in records if "train_seconds" in record][-2:]
    unit, asked = ("train_seconds", seconds) if seconds is not None else ("tokens_seen", tokens)
    return max(1, round(asked * (last["step"] - before["step"]) / (last[unit] - before[unit])))


def encoder_of(plan, out, arm, seed) -> str:
    """The folder of an arm's encoder, or the name of the untouched one."""
    if not is_trained(plan, arm):
        return str(plan["arms"][arm]["model_name_or_path"])
    return str(out / f"seed{seed}" / arm)


def run(plan, out, environment, steps_of, first_seed, arm, seed) -> None:
    """Trains an arm with a seed and probes its encoder; of the first seed also that of each checkpoint."""
    flags, folder = plan["arms"][arm], out / f"seed{seed}" / arm
    over_time = plan["over_time"] if seed == first_seed and "trainer" not in flags else None
    if is_trained(plan, arm):
        steps = steps_of[arm]
        often = {"logging_steps": max(1, steps // LOGS), "save_strategy": "no"}
        if over_time:
            often |= {"save_strategy": "steps", "save_steps": math.ceil(steps / CHECKPOINTS)}
            often["save_total_limit"] = CHECKPOINTS
        train(flags, folder, environment, seed=seed, max_steps=steps, **often)
    probe_flags = plan["probe"] | {"controls": arm == plan["reference"]}
    probe([encoder_of(plan, out, arm, seed)], seed, probe_flags, answers_at(out, arm, seed), environment)
    if over_time:
        encoders = [exported(path, flags, environment) for path in sorted(folder.glob("checkpoint-*"))]
        probe(encoders, seed, over_time | {"controls": False}, answers_at(out, arm, seed, "over_time"), environment)


def answers_at(out, arm, seed, part="answers") -> Path:
    """Where the answers of an arm are, or those of its checkpoints."""
    return out / f"seed{seed}" / f"{arm}.{part}"


def probe(encoders: Sequence[str], seed: int, flags: Mapping[str, Any], folder: Path, environment) -> None:
    """run_probe.py, with its results in a folder."""
    first, *others = encoders
    flags = {**flags, "seeds": seed, "output_dir": str(folder)} | ({"compare": others} if others else {})
    command = [str(ROOT / "run_probe.py"), first, *as_argv(flags)]
    call(command, folder.with_suffix(f"{folder.suffix}.log"), folder / "answers.npz", environment)


def exported(checkpoint: Path, flags: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """The folder of the encoder that a run would have left at a checkpoint."""
    folder = checkpoint.with_name(f"encoder-{checkpoint.name.split('-')[1]}")
    which = ["--which", flags["export_encoder"]] if "export_encoder" in flags else []
    command = ["-m", "text_jepa", "export", "encoder", str(checkpoint), str(folder), *which]
    call(command, folder.with_suffix(".log"), folder / "README.md", environment)
    return str(folder)


# ---- scores ---------------------------------------------------------------------------------------------------------


def gathered(plan, out, done) -> tuple[dict[tuple, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """(task, mode, metric) -> system -> (K, N) answers by seed and row; and task -> (N,) gold.

    Raises:
        UsageError: There is no seed that all systems have.
    """
    found, gold = defaultdict(lambda: defaultdict(dict)), {}
    for arm, seed in done:
        answers, of_tasks = read_answers(answers_at(out, arm, seed))
        gold |= of_tasks
        for (task, mode, metric, system), (rows,) in answers.items():
            name = arm if system == encoder_of(plan, out, arm, seed) else system
            # The commonest class stands beside what was learned of the same labels.
            found[task, mode.replace("majority", "linear"), metric][name][seed] = rows
    return {column: in_common(by_system) for column, by_system in found.items()}, gold


def in_common(by_system: Mapping[str, Mapping[int, np.ndarray]]) -> dict[str, np.ndarray]:
    """System -> (K, N) of system -> seed -> (N,): the seeds that all have, in one order."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_system.values())))
    if not seeds:
        raise UsageError(f"no seed that all of {', '.join(by_system)} have; the same command makes what is missing")
    return {system: np.stack([by_seed[seed] for seed in seeds]) for system, by_seed in by_system.items()}


def resampled(
    function: Callable[..., float], answers: np.ndarray, gold: Sequence[np.ndarray], rows: np.ndarray, luck: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores in percent: (K,) of every seed on all rows, and (R,) of every resample of rows and seeds.

    Args:
        function: Of (N,) answers and of `gold`, up to 1.
        answers: (K, N), a row per seed.
        gold: (N,) labels, if any.
        rows: (R, N) drawn rows.
        luck: (R, K or more) between 0 and 1, by which seeds are drawn: for all arms the same ones.
    """
    count = len(answers)
    whole = 100 * np.array([function(one, *gold) for one in answers])
    drawn = 100 * np.array([[function(one[r], *(labels[r] for labels in gold)) for one in answers] for r in rows])
    mean = drawn.mean(1)
    of_seeds = np.take_along_axis(drawn, (luck[:, :count] * count).astype(int), axis=1).mean(1)
    return whole, mean + widening(count) * (of_seeds - mean)


def widening(count: int) -> float:
    """By how much deviations of means of so many seeds, resampled from themselves, are too small for an interval."""
    if count == 1:
        return 1.0  # there are none
    return math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)


def verdict(low: float, high: float) -> str:
    """Of an interval of a difference in favour of the reference."""
    return "better" if low > 0 else "worse" if high < 0 else "n.s."


def judged(answers: Mapping, gold: Mapping, reference: str, resamples: int = RESAMPLES) -> dict[str, list[dict]]:
    """`scores` with intervals, and `pairs`: how far one system is ahead of another.

    The reference is paired with every other system, and in the columns of the main table each with each. Of a task's
    metrics the leading one is shown; averages are made as by `results.macro_averages`: the mean over tasks (WNLI left
    out) of the mean over a task's metrics, of the systems that have them all.
    """
    luck = np.random.default_rng(0).random((resamples, max(len(a) for by in answers.values() for a in by.values())))
    tasks = list(dict.fromkeys(task for task, _, _ in answers))
    columns, averaged = {}, defaultdict(lambda: defaultdict(list))
    for (task, mode, metric), by_system in answers.items():
        leads = metric == headline(task, [m for t, _, m in answers if t == task])
        if not leads and mode not in AVERAGED:
            continue
        size = next(iter(by_system.values())).shape[1]
        rows = np.random.default_rng([0, tasks.index(task)]).integers(size, size=(resamples, size))
        labels = [gold[task]] if task in gold else []
        function = FUNCTIONS.get(metric, np.mean)
        column = {system: resampled(function, one, labels, rows, luck) for system, one in by_system.items()}
        if leads:
            columns[task, mode, metric] = column
        if mode in AVERAGED and not task.startswith("wnli"):
            averaged[mode][task.removesuffix("-mm")].append(column)
    for mode, by_task in averaged.items():
        means = [mean_of(columns_) for columns_ in by_task.values()]
        if len(means) > 1:
            columns[f"average of {len(means)} tasks", mode, "average"] = mean_of(means)
    scores, pairs = [], []
    for (task, mode, metric), by_system in columns.items():
        named = {"task": task, "mode": mode, "metric": metric}
        for system, (whole, draws) in by_system.items():
            low, high = np.percentile(draws, [2.5, 97.5]).tolist()
            figures = {"score": whole.mean().item(), "low": low, "high": high, "by_seed": whole.tolist()}
            scores.append(named | {"system": system} | figures)
        firsts = list(by_system) if is_main(named) else [reference] if reference in by_system else []
        for first, (ours, our_draws) in ((name, by_system[name]) for name in firsts):
            for system, (whole, draws) in by_system.items():
                if system != first:
                    low, high = np.percentile(our_draws - draws, [2.5, 97.5]).tolist()
                    figures = {"ahead": (ours.mean() - whole.mean()).item(), "low": low, "high": high}
                    pairs.append(named | {"of": first, "system": system, **figures, "verdict": verdict(low, high)})
    return {"scores": scores, "pairs": pairs}


def mean_of(columns: Sequence[Mapping[str, tuple]]) -> dict[str, tuple]:
    """The mean of columns, of scores and of their resamples alike, for the systems that are in all."""
    return {
        system: tuple(np.mean([column[system][part] for column in columns], axis=0) for part in range(2))
        for system in columns[0]
        if all(system in column for column in columns)
    }


def is_main(column: Mapping[str, Any]) -> bool:
    """Whether a figure belongs into the main table: raw and centred cosines, and the average of linear probes."""
    average = column["metric"] == "average" and column["mode"] == "linear"
    return average or column["mode"] in ("cosine raw", "cosine centred")


def facts_of(plan, out, arm, seed) -> dict[str, Any]:
    """What a run cost, what the collapse monitor said, and its curves: (seconds, value) by name."""
    folder, facts = out / f"seed{seed}" / arm, {"arm": arm, "seed": seed}
    over_time = answers_at(out, arm, seed, "over_time")
    if not is_trained(plan, arm):
        return facts
    records = [record for record in read_metrics(folder) if "train_seconds" in record]
    curves = {name: [(r["train_seconds"], r[name]) for r in records if name in r] for name in WATCHED}
    warned = re.search(r"collapse at step (\d+)", (folder.parent / f"{arm}.log").read_text())
    health = f"collapse at step {warned[1]}" if warned else "healthy" if curves["token_rank"] else "not watched"
    if over_time.exists():
        answers, gold = read_answers(over_time)
        clock = [record["step"] for record in records], [record["train_seconds"] for record in records]
        for (task, mode, metric, system), (rows,) in answers.items():
            if metric == headline(task, [m for t, _, m, _ in answers if t == task]):
                seconds = np.interp(int(system.rpartition("-")[2]), *clock).item()
                score = 100 * FUNCTIONS[metric](rows, gold[task])
                curves[f"{task}, {mode}"] = sorted([*curves.get(f"{task}, {mode}", ()), (seconds, score)])
    cost = {name: records[-1][name] for name in ("step", "tokens_seen", "train_seconds")}
    return facts | cost | {"health": health, "curves": {name: points for name, points in curves.items() if points}}


# ---- what is written ------------------------------------------------------------------------------------------------


def source_of(results: Mapping[str, Any]) -> str:
    """Command, date, machine, versions and budget, and what the figures are."""
    asked = next(f"{value:,.0f} {unit}" for unit, value in results["budget"].items() if value is not None)
    seeds = len({run["seed"] for run in results["runs"]})
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"`{results['command']}`\n\n{results['date']}, {results['machine']}; {versions}. Each arm makes the "
        f"steps of {asked} in a pilot. Scores are percent, means over {seeds} seeds, ± half of the 95 % interval over "
        "seeds and rows."
    )


def in_words(results: Mapping[str, Any]) -> str:
    """The results as Markdown: scores, differences with verdicts, cost and health."""
    reference = results["plan"]["reference"]
    parts = [
        f"## {results['plan']['title']}",
        source_of(results),
        score_table(results["scores"], "{score:.1f} ± {half:.1f}"),
        f"How far `{reference}` is ahead, with the 95 % interval on the same seeds and rows; it is better or worse "
        "where that does not hold zero:",
        score_table(against(reference, results["pairs"]), "{ahead:+.1f} [{low:+.1f}, {high:+.1f}] {verdict}"),
        verdict_table(results["pairs"]),
        "What the runs cost, and how representations were at their end; means over the seeds:",
        cost_table([run for run in results["runs"] if "curves" in run]),
        *(f"Failed: {line}" for line in results["failures"]),
    ]
    return "\n\n".join(parts) + "\n"


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def main_table(results: Mapping[str, Any]) -> str:
    """Raw cosines and the mean of the linear probes, and how far the reference is ahead: a row per system."""
    ahead = {
        (p["system"], p["task"], p["mode"]): " ({ahead:+.1f} [{low:+.1f}, {high:+.1f}])".format(**p)
        for p in against(results["plan"]["reference"], results["pairs"])
    }
    scores = [
        s | {"ahead": ahead.get((s["system"], s["task"], s["mode"]), "")} for s in results["scores"] if is_main(s)
    ]
    return score_table(scores, "{score:.1f} ± {half:.1f}{ahead}")


def against(reference: str, pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pairs of the reference with the others."""
    return [pair for pair in pairs if pair["of"] == reference]


def verdict_table(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Every pair in the columns of the main table: a sign for each."""
    main = [pair for pair in pairs if is_main(pair)]
    columns = list(dict.fromkeys(f"{p['task']}, {p['mode']}" for p in main))
    systems = list(dict.fromkeys(p["of"] for p in main))
    signs = {"better": "+", "worse": "−", "n.s.": "·"}
    cells = {(p["of"], p["system"], f"{p['task']}, {p['mode']}"): signs[p["verdict"]] for p in main}
    rows = [
        [one, *("".join(cells.get((one, other, column), " ") for column in columns) for other in systems)]
        for one in systems
    ]
    return (
        f"Every pair, by {'; '.join(columns)}: whether the system of the row is better (+) than that of the column, "
        f"worse (−), or neither, n.s. (·):\n\n{as_markdown(['', *systems], rows)}"
    )


def score_table(scores: Sequence[Mapping[str, Any]], form: str) -> str:
    """A row per system, a column per task and mode; `form` says what stands in a cell, `half` is of the interval."""
    cells = {
        (s["system"], f"{s['task']}, {s['mode']}, {s['metric']}"): form.format(**s, half=(s["high"] - s["low"]) / 2)
        for s in scores
    }
    systems, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    rows = [[system, *(cells.get((system, column), "") for column in columns)] for system in systems]
    return as_markdown(["system", *columns], rows)


def cost_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row per arm."""
    last = [name for name in WATCHED if any(name in run["curves"] for run in runs)]
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        steps, tokens, seconds = (np.mean([r[key] for r in own]) for key in ("step", "tokens_seen", "train_seconds"))
        row = [arm, f"{steps:,.0f}", f"{tokens:,.0f}", f"{seconds:,.0f}", f"{tokens / seconds:,.0f}"]
        ends = [[r["curves"][name][-1][1] for r in own if name in r["curves"]] for name in last]
        row += [f"{np.mean(values):.3g}" if values else "" for values in ends]
        rows.append([*row, ", ".join(dict.fromkeys(run["health"] for run in own))])
    names = [name.replace("_", " ") for name in last]
    return as_markdown(["arm", "steps", "tokens", "seconds", "tokens/s", *names, "collapse monitor"], rows)


def draw_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws a panel per curve against seconds of training, a line per run, a colour per arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = list(dict.fromkeys(name for run in runs for name in run.get("curves", ())))
    arms = list(dict.fromkeys(run["arm"] for run in runs if "curves" in run))
    styles = {arm: {"color": f"C{n % 10}", "linestyle": "-" if n < 10 else "--"} for n, arm in enumerate(arms)}
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(4.5 * columns, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(panels, start=1):
        axes = figure.add_subplot(2, columns, number)
        for run in runs:
            if name in run.get("curves", ()):
                axes.plot(*zip(*run["curves"][name], strict=True), **styles[run["arm"]], linewidth=1)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("seconds of training", fontsize=8)
        axes.grid(alpha=0.3)
    handles = [Line2D([], [], label=arm, **style) for arm, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def quality_of(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What more seconds bring: column of the main table -> what arms and controls have.

    Args:
        comparisons: Results of one plan for several budgets, the longest last.

    Returns:
        Of each column that the shortest budget has too, raw cosines and the average of linear probes: `arms`, arm to
        (seconds that its runs took, score, low end, high end of its interval) of each budget; and `controls`, the
        score of each system that is not trained.
    """
    found: dict[str, dict[str, Any]] = {}
    for results in comparisons:
        seconds = defaultdict(list)
        for one in results["runs"]:
            if "train_seconds" in one:
                seconds[one["arm"]].append(one["train_seconds"])
        for score in results["scores"]:
            name = f"{score['task']}, {score['metric']}"
            if not is_main(score) or score["mode"] == "cosine centred":
                continue
            if name not in found and results is not comparisons[0]:
                continue
            column = found.setdefault(name, {"arms": {}, "controls": {}})
            system = score["system"]
            if system in seconds:
                point = [float(np.mean(seconds[system])), score["score"], score["low"], score["high"]]
                column["arms"].setdefault(system, []).append(point)
            else:
                column["controls"][system] = score["score"]
    return found


def draw_quality(quality: Mapping[str, Mapping[str, Any]], budgets: Sequence[float], path: Path) -> None:
    """Draws a panel per column of `quality_of`: a line per arm over seconds, and a level line per control."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    arms = list(dict.fromkeys(arm for column in quality.values() for arm in column["arms"]))
    controls = list(dict.fromkeys(name for column in quality.values() for name in column["controls"]))
    shades = {name: shade_of(name) for name in controls}
    dashes = {}
    for name in controls:
        alike = [other for other in dashes if shades[other] == shades[name]]
        dashes[name] = ["--", ":", "-."][len(alike) % 3]
    figure = Figure(figsize=(5 * len(quality), 5), layout="constrained")
    FigureCanvasAgg(figure)
    lines = {}
    for number, (name, column) in enumerate(quality.items(), start=1):
        axes = figure.add_subplot(1, len(quality), number)
        for control, score in column["controls"].items():
            style = {"color": shades[control], "linestyle": dashes[control], "linewidth": 1}
            lines[control] = axes.axhline(score, **style, label=control)
        for arm, points in column["arms"].items():
            seconds, scores, lows, highs = zip(*points, strict=True)
            color = f"C{arms.index(arm) % 10}"
            (lines[arm],) = axes.plot(seconds, scores, color=color, marker="o", markersize=3, label=arm)
            axes.fill_between(seconds, lows, highs, color=color, alpha=0.1, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(budgets)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("seconds of training", fontsize=8)
        axes.grid(alpha=0.3)
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def shade_of(control: str) -> str:
    """The colour of a level line: black for TF-IDF, gray for BM25, light for what is an untrained encoder."""
    for start, shade in {"TF-IDF": "black", "BM25": "dimgray"}.items():
        if control.startswith(start):
            return shade
    return "darkgray"


if __name__ == "__main__":
    run_command(main)
