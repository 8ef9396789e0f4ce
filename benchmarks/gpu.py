"""Runs every GPU check and benchmark within a time limit.

    python benchmarks/gpu.py --minutes 12 --device cuda --pack build/gpu-pack --out build/gpu
    TEXT_JEPA_DATA=FOLDER python benchmarks/gpu.py --minutes 3 --device cpu --out build/gpu-rehearsal

The parts, the most important first, are `checks` (numbers, skipped steps, resuming, compiling, NCCL, by
benchmarks/gpu_checks.py), `step` (benchmarks/step.py beside BERT and ModernBERT, with a profile), `training`
(configs/compare/gpu.yaml, arm by arm), `finetuning` of the arms on GLUE, and `encoder` (the default recipe). `prepare`
unpacks and tokenizes the texts while the checks run. Each part is a process with a JSON file in --out, which is
written after each item. Run the same command again to make what is missing; items that failed or took too long are not
repeated. The time that a part does not use goes to later ones. Texts, caches and encoders are in --work, and all
output is in log.txt. If `datasets` or `evaluate` are missing, they are installed from the wheels of the pack. On a
CPU, shapes are tiny: a rehearsal whose figures have no meaning.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


ROOT = Path(__file__).resolve().parents[1]
PLAN = ROOT / "configs/compare/gpu.yaml"
RECIPE = ROOT / "configs/default.yaml"

# Shares of the minutes, the most important part first.
PARTS = {"checks": 0.2, "step": 0.2, "training": 0.35, "finetuning": 0.15, "encoder": 0.1}
NEED_TEXTS = ("training", "finetuning", "encoder")

# Share of the minutes after which the other parts no longer wait for texts and tokens.
LONGEST_PREPARATION = 0.4

# Seconds after which a check is ended; NCCL hangs if processes disagree.
LONGEST_CHECK = {"cuda": 120, "cpu": 300}

# Steps to measure in eager mode, (layers, width, texts, length).
STEPS = {
    "cuda": {"base": (12, 768, 256, 512), "small": (12, 384, 512, 256), "mini": (4, 256, 1024, 128)},
    "cpu": {"micro": (1, 64, 4, 16)},
}
# Gigabytes that the texts are meant for; a smaller GPU takes fewer texts.
FULL_MEMORY = 140
# Steps to measure compiled too.
COMPILED = {"cuda": ("base", "small"), "cpu": ()}
ARMS = ("bert_mlm", "bert_mlm_sparse", "modernbert_mlm", "modernbert_mlm_sparse", "text_jepa_m1")
COMPILED_ARMS = ("bert_mlm", "modernbert_mlm_sparse", "text_jepa_m1")

# Estimated seconds of an arm beside its training (five processes: three pilots, the run, the probe), and the least and
# the most seconds of training. Fewer arms are trained if each would get less than the least.
BESIDE_TRAINING = {"cuda": 140, "cpu": 80}
LEAST_TRAINING = {"cuda": 40, "cpu": 2}
MOST_TRAINING = {"cuda": math.inf, "cpu": 3}

FINETUNED_TASKS = ("mrpc", "rte", "stsb", "sst2")
FINETUNED_ARMS = 4
FINETUNING = ("learning_rate=1e-4", "per_device_train_batch_size=32")
# An epoch of SST-2 has more rows than three epochs of the others.
EPOCHS = {"sst2": 1}
OTHER_EPOCHS = 3

# Flags that turn the training of configs/compare/gpu.yaml into a rehearsal.
ON_A_CPU = {
    "preset": "tiny",
    "max_length": 32,
    "per_device_train_batch_size": 8,
    "bf16": False,
    "dataloader_num_workers": 0,
    "max_eval_samples": 32,
    "use_cpu": True,
}


class Later(Exception):
    """The item cannot be made yet; the next call makes it."""


class Item(NamedTuple):
    """An item of a part.

    Attributes:
        run: Function of the seconds that are left, which returns figures.
        limit: Seconds that it may take at most.
    """

    run: Callable[[float], dict[str, Any]]
    limit: float = math.inf


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all parts, each by calling this command with `--part`."""
    args = make_parser().parse_args(argv)
    args.out = Path(args.out).absolute()
    args.work = Path(args.work).absolute() if args.work else args.out.with_name(f"{args.out.name}-work")
    args.pack = Path(args.pack).absolute() if args.pack else None
    if args.part:
        run_part(args)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.time()
    until = started + 60 * args.minutes
    environment = set_up(args)
    preparing = start("prepare", args, environment, until)
    parts = [part for part in PARTS if part in args.parts]
    for number, part in enumerate(parts):
        if part != "checks":  # a step needs the machine for itself, later parts need the texts
            finish(preparing, "prepare", args, started + LONGEST_PREPARATION * 60 * args.minutes)
        if part in NEED_TEXTS and not read(args, "prepare").get("done"):
            continue
        left = until - time.time()
        share = PARTS[part] / sum(PARTS[name] for name in parts[number:])
        run_until_done(part, args, environment, time.time() + left * share)
    finish(preparing, "prepare", args, until)
    print(in_words(args))
    print(f"{time.time() - started:.0f} of {60 * args.minutes:.0f} seconds")


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--minutes", type=float, default=12, help="time limit of the whole command")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", default="build/gpu", help="folder for the figures")
    parser.add_argument("--work", help="folder for texts, caches and encoders (default: beside --out)")
    parser.add_argument("--pack", help="folder of benchmarks/gpu_pack.py, in place of TEXT_JEPA_DATA")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run (default: all)"
    )
    parser.add_argument("--most_arms", type=int, help="largest number of arms to train")
    parser.add_argument("--part", choices=["prepare", *PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


def set_up(args: argparse.Namespace) -> dict[str, str]:
    """Creates the folders, installs missing packages, and returns the environment of all processes."""
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    site = args.work / "site"
    data = os.environ.get("TEXT_JEPA_DATA")
    if args.pack:
        if not (args.pack / "pack.json").is_file():
            sys.exit(f"error: --pack {args.pack}: no pack.json in it; benchmarks/gpu_pack.py makes a pack")
        data = str(args.work / "data")
    if not data:
        sys.exit("error: no data: pass --pack, or name a folder by the variable TEXT_JEPA_DATA")
    missing = [name for name in ("datasets", "evaluate") if importlib.util.find_spec(name) is None]
    if missing and not site.exists():
        install(args, site, missing)
    write_metadata(site)
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "TEXT_JEPA_DATA": data,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(args.work / "cache"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # With several GPUs, the Trainer would use DataParallel.
        "CUDA_VISIBLE_DEVICES": "0" if args.device == "cuda" else "",
    }


def install(args: argparse.Namespace, site: Path, missing: Sequence[str]) -> None:
    """Installs the wheels of the pack into a folder."""
    wheels = sorted(str(path) for path in args.pack.glob("wheels/*.whl")) if args.pack else []
    if not wheels:
        sys.exit(f"error: {', '.join(missing)} missing; pip install them, or pass a --pack with wheels")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*command, *wheels], check=True)


def write_metadata(site: Path) -> None:
    """Writes the version of this package, which cards and comparisons state, if the package is not installed."""
    try:
        importlib.metadata.version("text-jepa")
    except importlib.metadata.PackageNotFoundError:
        project = (ROOT / "pyproject.toml").read_text()
        version = re.search(r'^version = "(.+)"', project, re.MULTILINE)[1]
        folder = site / f"text_jepa-{version}.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: text-jepa\nVersion: {version}\n")


# ---- parts as processes ---------------------------------------------------------------------------------------------


def start(
    part: str, args: argparse.Namespace, environment: Mapping[str, str], until: float
) -> subprocess.Popen | None:
    """Starts a part in a session of its own, unless it is done."""
    if read(args, part).get("done"):
        return None
    command = [sys.executable, __file__, "--part", part, "--until", str(until), "--device", args.device]
    command += ["--out", str(args.out), "--work", str(args.work)]
    if args.pack:
        command += ["--pack", str(args.pack)]
    if args.most_arms:
        command += ["--most_arms", str(args.most_arms)]
    with (args.out / "log.txt").open("a") as log:
        log.write(f"\n== {shlex.join(command)}\n")
        log.flush()
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True)


def finish(process: subprocess.Popen | None, part: str, args: argparse.Namespace, until: float) -> bool:
    """Waits for a part, and kills it with all processes that it has started when its time is over.

    Returns:
        Whether it ended by itself. An item that ended the process has failed; an item that was killed at the end of
        the time is removed, so that the next call makes it.
    """
    if process is None or process.returncode is not None:
        return True
    ended = False
    try:
        process.wait(max(0.0, until - time.time()))
        ended = True
    except subprocess.TimeoutExpired:
        pass
    finally:  # also when this command is interrupted
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    found = read(args, part)
    for name, outcome in list(found["items"].items()):
        if outcome.get("running") and ended:
            found["items"][name] = {"error": f"took its process along, or too long: code {code}"}
        elif outcome.get("running"):
            del found["items"][name]
    write(args, part, found)
    return ended


def run_until_done(part: str, args: argparse.Namespace, environment: Mapping[str, str], until: float) -> None:
    """Runs a part; if an item ends the process, the part is started again and continues with the next item."""
    while time.time() < until:
        before = len(read(args, part)["items"])
        ended = finish(start(part, args, environment, until), part, args, until)
        found = read(args, part)
        if found.get("done") or not ended or len(found["items"]) == before:
            return


def read(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """The figures of a part so far."""
    path = args.out / f"{part}.json"
    if path.exists():
        return json.loads(path.read_text())
    return {"items": {}}


def write(args: argparse.Namespace, part: str, found: Mapping[str, Any]) -> None:
    """Writes the figures of a part in one piece."""
    unfinished = args.out / f"{part}.json.new"
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.rename(args.out / f"{part}.json")


def run_part(args: argparse.Namespace) -> None:
    """Runs the missing items of a part while there is time."""
    items = ITEMS[args.part](args)
    found = read(args, args.part)
    for name, item in items.items():
        if name in found["items"]:
            continue
        left = args.until - time.time()
        if left < 1:
            return
        print(f"-- {args.part}: {name}, {left:.0f} seconds left", flush=True)
        found["items"][name] = {"running": True}
        write(args, args.part, found)
        if item.limit < left:
            signal.alarm(math.ceil(item.limit))  # ends the process even if it hangs inside a library
        started = time.time()
        outcome = outcome_of(item, left)
        signal.alarm(0)
        if outcome is None:
            del found["items"][name]
            write(args, args.part, found)
            return
        found["items"][name] = {**outcome, "wall_seconds": round(time.time() - started, 2)}
        write(args, args.part, found)
        print(f"-- {args.part}: {name}: {json.dumps(outcome)[:2000]}", flush=True)
        if "CUDA error" in outcome.get("error", ""):
            sys.exit(1)  # CUDA no longer works in this process
    found["done"] = True
    write(args, args.part, found)


def outcome_of(item: Item, left: float) -> dict[str, Any] | None:
    """The figures of an item or its error; `None` if the next call has to make it."""
    try:
        return item.run(left)
    except (Later, subprocess.TimeoutExpired) as reason:
        print(f"later: {reason}", flush=True)
        return None
    except Exception as error:  # an error of one item must not end the others
        traceback.print_exc()
        if type(error).__name__ == "NotHere":
            return {"skipped": str(error)}
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def call(command: Sequence[Any], left: float) -> str:
    """Runs a Python command from the root of the repository and returns what it prints.

    Raises:
        TimeoutExpired: The command took longer than `left` seconds.
        RuntimeError: The command failed; the message is its last line.
    """
    words = [str(word) for word in command]
    print(f"$ python {shlex.join(words)}", flush=True)
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=left, cwd=ROOT)
    print(run.stdout, run.stderr, flush=True)
    if run.returncode:
        lines = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"code {run.returncode}: {lines[-1] if lines else 'no output'}")
    return run.stdout


# ---- prepare --------------------------------------------------------------------------------------------------------


def prepare_items(args: argparse.Namespace) -> dict[str, Item]:
    """Unpacks the pack and fills the caches of documents and texts that all arms read."""
    items = {}
    if args.pack:
        items["unpack"] = Item(partial(unpack, args))
    for name, recipe in {"documents": RECIPE, "texts": ROOT / "configs/token-jepa.yaml"}.items():
        items[name] = Item(partial(fill_cache, args, name, recipe))
    return items


def unpack(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """Turns the token ids of a pack into texts, in the same folders as in the data of the pack."""
    import pyarrow
    from gpu_pack import decompress, texts_from
    from pyarrow import parquet
    from transformers import AutoTokenizer

    data = data_folder()
    tokenizer = AutoTokenizer.from_pretrained(args.pack / "tokenizer", trust_remote_code=False)
    documents = {}
    for path in sorted(args.pack.glob("corpora/*.xz")):
        name, split = path.stem.split(".")
        texts = list(texts_from(decompress(path.read_bytes()), tokenizer))
        folder = data / "pretrain" / name
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"text": texts}), folder / f"{split}.parquet")
        documents[path.stem] = len(texts)
    for name in ("glue", "qqp_rerank", "tokenizer"):
        if (args.pack / name).exists() and not (data / name).exists():
            (data / name).symlink_to(args.pack / name)
    return documents


def fill_cache(args: argparse.Namespace, name: str, recipe: Path, left: float) -> dict[str, Any]:
    """Tokenizes all corpora as a run with this recipe does."""
    from compare import as_argv

    flags = {**common_flags(args), "prepare_only": True, "output_dir": args.work / f"prepared-{name}"}
    call(["run_pretraining.py", recipe, *as_argv(flags)], left)
    return {}


def data_folder() -> Path:
    """The folder of the data."""
    return Path(os.environ["TEXT_JEPA_DATA"])


def common_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Flags of all arms, with the paths of the corpora."""
    plan = read_plan(args)
    files = [os.path.expandvars(name) for name in plan["common"]["train_file"]]
    return {**plan["common"], "train_file": files}


def read_plan(args: argparse.Namespace) -> dict[str, Any]:
    """Reads configs/compare/gpu.yaml, without the tasks that the data lacks, and smaller on a CPU."""
    import yaml

    plan = yaml.safe_load(PLAN.read_text())
    data = data_folder()
    if args.device == "cpu":
        plan["common"] |= ON_A_CPU
    if (data / "tokenizer").exists():
        plan["common"]["tokenizer_name"] = str(data / "tokenizer")
    plan["probe"]["tasks"] = tasks_there(plan["probe"]["tasks"])
    if not (data / "qqp_rerank").exists():
        del plan["probe"]["rerank_dir"]
    if not Path(os.path.expandvars(plan["probe"]["texts"][0])).exists():
        del plan["probe"]["texts"]
    return plan


def tasks_there(tasks: Sequence[str]) -> list[str]:
    """The GLUE tasks among these that the data has."""
    return [task for task in tasks if (data_folder() / "glue" / task).is_dir()]


# ---- checks ---------------------------------------------------------------------------------------------------------


def check_items(args: argparse.Namespace) -> dict[str, Item]:
    """The machine, and benchmarks/gpu_checks.py."""
    from gpu_checks import CHECKS

    items = {"machine": Item(partial(machine, args))}
    for name, check in CHECKS.items():
        items[name] = Item(lambda left, check=check: check(args.device), LONGEST_CHECK[args.device])
    return items


def machine(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """The machine and the versions of packages."""
    import torch

    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": {},
    }
    for name in ("torch", "transformers", "accelerate", "datasets", "triton"):
        try:
            about["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            about["versions"][name] = "missing"
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {"gpu": properties.name, "gpu_memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda}
    return about


# ---- step -----------------------------------------------------------------------------------------------------------


def step_items(args: argparse.Namespace) -> dict[str, Item]:
    """A step of each size, eager and compiled."""
    items = {}
    for name, shape in STEPS[args.device].items():
        items[name] = Item(partial(step, args, name, shape, ARMS, False))
    for name in COMPILED[args.device]:
        shape = STEPS[args.device][name]
        items[f"{name}, compiled"] = Item(partial(step, args, name, shape, COMPILED_ARMS, True))
    return items


def step(
    args: argparse.Namespace,
    name: str,
    shape: tuple[int, int, int, int],
    arms: Sequence[str],
    compiled: bool,
    left: float,
) -> dict[str, Any]:
    """Figures of benchmarks/step.py, without the seconds of each round."""
    from compare import as_argv

    layers, width, texts, length = shape
    memory = read(args, "checks")["items"].get("machine", {}).get("gpu_memory_gb", FULL_MEMORY)
    texts = max(1, int(texts * min(1, memory / FULL_MEMORY)))
    found = args.work / "step.json"
    flags = {"layers": layers, "width": width, "texts": texts, "length": length, "arms": list(arms), "json": found}
    flags |= {"device": args.device, "dtype": "bfloat16", "repeats": 15 if args.device == "cuda" else 1}
    if args.device == "cpu":
        flags["vocab_size"] = 300
    command = ["benchmarks/step.py", *as_argv(flags)]
    if compiled:
        command.append("--compile")
    else:
        command += ["--profile", str(args.out / f"profile-{name}.txt")]
    call(command, left)
    figures = json.loads(found.read_text())
    del figures["seconds"]
    return figures


# ---- training -------------------------------------------------------------------------------------------------------


def training_items(args: argparse.Namespace) -> dict[str, Item]:
    """The arms of the comparison, one after another; the first call decides how many, and for how long."""
    import yaml

    plan = read_plan(args)
    (args.work / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    found = read(args, "training")
    if "budget" not in found:
        left = args.until - time.time()
        count, seconds = budget_of(left, len(plan["arms"]), args.device)
        count = min(count, args.most_arms or count)
        found["budget"] = {"arms": list(plan["arms"])[:count], "seconds": seconds}
        write(args, "training", found)
    arms = found["budget"]["arms"]
    items = {}
    for number, arm in enumerate(arms):
        items[arm] = Item(partial(train_arm, args, arms[: number + 1], found["budget"]["seconds"]))
    return items


def budget_of(left: float, arms: int, device: str) -> tuple[int, int]:
    """Number of arms that can be trained in `left` seconds, and seconds of training for each."""
    beside = BESIDE_TRAINING[device]
    least = LEAST_TRAINING[device]
    count = max(1, min(arms, int(left / (beside + least))))
    return count, min(MOST_TRAINING[device], max(least, int(left / count - beside)))


def train_arm(args: argparse.Namespace, arms: Sequence[str], seconds: int, left: float) -> dict[str, Any]:
    """Trains and probes the last of the arms, and compares it with the first one; the others have been trained."""
    first, last = arms[0], arms[-1]
    out = args.work / "training"
    command = ["benchmarks/compare.py", args.work / "plan.yaml", "--seconds", seconds, "--output_dir", out]
    call([*command, "--arms", *arms], left)
    results = json.loads((out / "results.json").read_text())

    (run,) = (run for run in results["runs"] if run["arm"] == last)
    figures = {name: value for name, value in run.items() if name not in ("curves", "origins")}
    figures["scores"] = scores_of(results, last)
    if len(arms) == 1:  # controls are probed with the first arm
        figures["scores"] |= scores_of_controls(results, last)
    figures["reference_ahead"] = lead_over(results, first, last)
    return figures


def scores_of(results: Mapping[str, Any], system: str) -> dict[str, list[float]]:
    """Score, low and high end of its interval, by column."""
    scores = [score for score in results["scores"] if score["system"] == system]
    return {column_of(score): rounded(score, ("score", "low", "high")) for score in scores}


def scores_of_controls(results: Mapping[str, Any], arm: str) -> dict[str, list[float]]:
    """The same for all systems but one, by system and column."""
    found = {}
    for score in results["scores"]:
        if score["system"] != arm:
            name = f"{score['system']}, {column_of(score)}"
            found[name] = rounded(score, ("score", "low", "high"))
    return found


def lead_over(results: Mapping[str, Any], first: str, second: str) -> dict[str, list[float]]:
    """Lead of the first system over the second, low and high end of its interval, by column."""
    pairs = [pair for pair in results["pairs"] if pair["of"] == first and pair["system"] == second]
    return {column_of(pair): rounded(pair, ("ahead", "low", "high")) for pair in pairs}


def rounded(values: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    """Values by their names, rounded for a JSON file."""
    return [round(values[name], 2) for name in names]


def column_of(score: Mapping[str, Any]) -> str:
    """Task, mode and metric of a score."""
    return f"{score['task']}, {score['mode']}, {score['metric']}"


# ---- fine-tuning ----------------------------------------------------------------------------------------------------


def finetuning_items(args: argparse.Namespace) -> dict[str, Item]:
    """Fine-tuning of the trained encoders, one item per task."""
    return {task: Item(partial(finetune, args, task)) for task in tasks_there(FINETUNED_TASKS)}


def finetune(args: argparse.Namespace, task: str, left: float) -> dict[str, Any]:
    """Scores of the first arms, fine-tuned on a task."""
    arms = read(args, "training").get("budget", {"arms": []})["arms"][:FINETUNED_ARMS]
    folders = {arm: str(args.work / "training/seed0" / arm) for arm in arms}
    folders = {arm: folder for arm, folder in folders.items() if Path(folder, "config.json").exists()}
    if not folders:
        raise Later(f"no encoder in {args.work / 'training'}: none was trained on this machine")
    out = args.work / f"finetuning-{task}"
    first, *others = folders.values()
    command = ["run_probe.py", first, "--tasks", task, "--data_dir", data_folder() / "glue", "--mode", "finetune"]
    command += ["--no_controls", "--output_dir", out, "--finetune_args", *FINETUNING]
    command.append(f"num_train_epochs={EPOCHS.get(task, OTHER_EPOCHS)}")
    if others:
        command += ["--compare", *others]
    call(command, left)
    arm_of = {folder: arm for arm, folder in folders.items()}
    return scores_in(out, arm_of)


def scores_in(folder: Path, name_of: Mapping[str, str]) -> dict[str, Any]:
    """Score, low and high end of its interval by system and column, from a folder of run_probe.py."""
    found = {}
    for score in json.loads((folder / "results.json").read_text())["scores"]:
        system = name_of.get(score["system"], score["system"])
        found[f"{system}, {column_of(score)}"] = [round(float(score[end]), 4) for end in ("score", "low", "high")]
    return found


# ---- encoder --------------------------------------------------------------------------------------------------------


def encoder_items(args: argparse.Namespace) -> dict[str, Item]:
    """The default recipe on short articles of Wikipedia, and the scores of its encoder."""
    return {"train": Item(partial(train_default, args)), "probe": Item(partial(probe_default, args))}


def train_default(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """Trains with the default recipe, without changes."""
    from compare import as_argv

    corpora = data_folder() / "pretrain"
    name = "wikipedia_short"
    if not (corpora / name).is_dir():
        name = sorted(path.name for path in corpora.iterdir())[0]
    folder = args.work / "encoder"
    flags = {"train_file": corpora / name / "train.parquet", "output_dir": folder, "report_to": "none"}
    flags["resume_from_checkpoint"] = "auto"
    if args.device == "cpu":
        flags |= {"max_steps": 8, "logging_steps": 4, "eval_strategy": "no", "save_strategy": "no", "use_cpu": True}
        flags |= {"max_eval_samples": 32, "vocab_size": 300, "per_device_train_batch_size": 8}
    printed = call(["run_pretraining.py", RECIPE, *as_argv(flags)], left)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if "train_seconds" in record][-1]
    verdict = folder / "verdict.json"
    return {
        "corpus": name,
        **{key: last[key] for key in ("step", "tokens_seen", "train_seconds")},
        "verdict": json.loads(verdict.read_text()) if verdict.exists() else None,
        "last_lines": printed.splitlines()[-4:],
    }


def probe_default(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """Scores of the encoder, with controls."""
    plan = read_plan(args)
    out = args.work / "encoder-probe"
    command = ["run_probe.py", args.work / "encoder", "--tasks", *plan["probe"]["tasks"], "--mode", "linear"]
    command += ["--data_dir", data_folder() / "glue", "--output_dir", out]
    if "rerank_dir" in plan["probe"]:
        command += ["--rerank_dir", data_folder() / "qqp_rerank"]
    call(command, left)
    return scores_in(out, {str(args.work / "encoder"): "default"})


ITEMS = {
    "prepare": prepare_items,
    "checks": check_items,
    "step": step_items,
    "training": training_items,
    "finetuning": finetuning_items,
    "encoder": encoder_items,
}


# ---- output ---------------------------------------------------------------------------------------------------------


def in_words(args: argparse.Namespace) -> str:
    """A line for each item: whether it succeeded, and its error if not."""
    lines = []
    for part in ("prepare", *PARTS):
        found = read(args, part)
        state = "done" if found.get("done") else "not finished: the same command goes on"
        lines.append(f"{part}: {state}")
        for name, outcome in found["items"].items():
            what = outcome.get("error") or outcome.get("skipped")
            kind = "FAILED" if "error" in outcome else "skipped" if "skipped" in outcome else "ok"
            seconds = outcome.get("wall_seconds", 0)
            lines.append(f"  {kind:7} {name}, {seconds:.0f} s{f': {what}' if what else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
