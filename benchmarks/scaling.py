"""Measures how the cost of a Text-JEPA step grows with length, hidden share, masks, width, texts and processes.

    python benchmarks/scaling.py [--axes length hidden masks width mask_batching batch processes] [--json FILE]
    python benchmarks/scaling.py --axes batch --device cuda --dtype bfloat16 --width 768 --layers 12 --length 512

Every point is measured in a process of its own: full-length texts of random tokens, forward pass, backward pass,
clipping, fused AdamW and the update of the target encoder, as in `benchmarks/step.py`. The matrix product takes turns
with the step, so that points of different minutes can be compared by their share of the peak. The flags set what is
not on the axis.

`batch` doubles the number of texts while there is memory and throughput grows, and names the fastest. `mask_batching`
uses four masks and the passes of the Trainer. `processes` exchange gradients by gloo (NCCL on GPUs), each with one
thread and `--texts` texts. Memory is the growth of a process's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
import torch.distributed as dist
from step import (
    PEAK,
    TextJepaStep,
    bert_config,
    flops_of,
    matrix_product,
    medians,
    peak_memory,
    shape_parser,
    texts_of,
    time_in_turn,
)
from torch.nn.parallel import DistributedDataParallel

from text_jepa import TextJepaConfig, TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.strategies import MaskStrategy


Point = dict[str, Any]
"""Figures of a step, see `measure`."""

# The points of each axis; of processes, those for which there are devices.
AXES = {
    "length": [64, 128, 256, 512],
    "hidden": [0.15, 0.3, 0.5, 0.7],
    "masks": [1, 2, 4, 8],
    "width": [128, 256, 512, 768],
    "mask_batching": ["joint", "sequential"],
    "batch": [2**i for i in range(3, 13)],
    "processes": [2**i for i in range(8)],
}

SHAPE = ("vocab_size", "width", "layers", "texts", "length", "device", "dtype", "attention", "hidden", "masks")


def main() -> None:
    args = arguments()
    if args.point:
        found = measure(args)
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(found))
        return
    settings = {name: vars(args)[name] for name in SHAPE}
    settings["compile"] = args.compile
    axes = {}
    for axis in args.axes:
        axes[axis] = sweep(args, axis, args.values or points_of(axis, args.device))
    results = {"settings": settings, "axes": axes}
    if "batch" in results["axes"]:
        points = results["axes"]["batch"]
        results["fastest_batch"] = max(points, key=lambda value: points[value]["tokens_per_second"])
    print_tables(results)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)
    if args.plot:
        plot(results, args.plot)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = shape_parser(__doc__)
    parser.add_argument("--hidden", type=float, default=0.5, help="share of hidden tokens")
    parser.add_argument("--masks", type=int, default=1, help="number of masks per text")
    parser.add_argument("--mask_batching", choices=AXES["mask_batching"], help="use the passes of the Trainer")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--values", nargs="+", help="points of the axis, in place of the usual ones")
    parser.add_argument("--plot", help="file for a picture of the figures")
    parser.add_argument("--point", action="store_true", help="measure a single point in this process")
    return parser.parse_args()


def points_of(axis: str, device: str) -> list[Any]:
    """The usual points of an axis."""
    if axis != "processes":
        return AXES[axis]
    most = torch.cuda.device_count() if device == "cuda" else os.cpu_count()
    return [count for count in AXES[axis] if count <= most]


# ---- sweep ----------------------------------------------------------------------------------------------------------


def sweep(args: argparse.Namespace, axis: str, values: Sequence[Any]) -> dict[str, Point]:
    """Measures the points of an axis; batches only as long as it is worth doubling them."""
    points = {}
    for value in values:
        if axis == "batch" and not worth_doubling(list(points.values()), room(args)):
            break
        points[str(value)] = figures(args, axis, value)
    first = next(iter(points.values()))
    for point in points.values():
        point["ratio_to_first"] = point["seconds_per_step"] / first["seconds_per_step"]
    return points


def worth_doubling(points: Sequence[Point], megabytes: float) -> bool:
    """Whether there is twice the memory of the last batch, and one of the last two was the fastest so far."""
    if not points:
        return True
    speeds = [point["tokens_per_second"] for point in points]
    last_memory = points[-1]["memory"]
    return 2 * last_memory < megabytes and max(speeds) in speeds[-2:]


def room(args: argparse.Namespace) -> float:
    """Free memory of the device in megabytes."""
    if args.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = psutil.virtual_memory().available
    return free / 2**20


def figures(args: argparse.Namespace, axis: str, value: Any) -> Point:
    """Measures a point in a process of its own, or in several."""
    command = [sys.executable]
    environment = dict(os.environ)
    if axis == "processes":
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={value}"]
        environment["OMP_NUM_THREADS"] = "1"
    command += [__file__, "--point", *point_flags(args, axis, value)]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


def point_flags(args: argparse.Namespace, axis: str, value: Any) -> list[str]:
    """The command line of a point: the flags of the whole, with the value of the axis in place of its own."""
    flags = {name: vars(args)[name] for name in (*SHAPE, "repeats")}
    if args.mask_batching is not None:
        flags["mask_batching"] = args.mask_batching
    if axis == "batch":
        flags["texts"] = value
    elif axis == "mask_batching":
        flags |= {"mask_batching": value, "masks": 4}
    elif axis != "processes":
        flags[axis] = value
    words = [f"--{name}={given}" for name, given in flags.items()]
    if args.compile:
        words.append("--compile")
    return words


# ---- point ----------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> Point:
    """Seconds, speed and memory of a step, in this process and in those that torchrun started with it."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(0)
    step = step_of(args)
    if processes > 1:
        step.forward = DistributedDataParallel(step.model)
    before = peak_memory(args.device)
    step()
    flops = flops_of(step)
    memory = peak_memory(args.device) - before
    if args.compile:
        step.compile()
    seconds = time_in_turn({"step": step, "matmul": matrix_product(args)}, args.repeats, args.device)
    if processes > 1:
        dist.destroy_process_group()
    middle = medians(seconds)
    peak = 2 * PEAK[args.device] ** 3 / middle["matmul"]
    return {
        "seconds_per_step": middle["step"],
        "tokens_per_second": processes * args.texts * args.length / middle["step"],
        "memory": memory,
        "share_of_matmul_peak": flops / middle["step"] / peak,
        "seconds": seconds,
    }


def step_of(args: argparse.Namespace) -> TextJepaStep:
    """The step of a point."""
    examples, tokenizer = texts_of(args)
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=args.hidden), num_masks=args.masks)
    config = TextJepaConfig(text_config=bert_config(args))
    batch = collator(examples)
    if args.mask_batching is None:
        return TextJepaStep(config, batch, args)
    return TrainerStep(config, batch, args, collator, examples)


class TrainerStep(TextJepaStep):
    """The same step with the passes of the Trainer: one for all masks, or one per mask."""

    def __init__(self, config, batch, args, collator, examples):
        super().__init__(config, batch, args)
        self.folder = tempfile.TemporaryDirectory()
        settings = TextJepaTrainingArguments(
            self.folder.name,
            mask_batching=args.mask_batching,
            use_cpu=args.device == "cpu",
            bf16=args.dtype == "bfloat16",
            report_to="none",
        )
        self.trainer = TextJepaTrainer(self.model, settings, collator, examples)
        self.forward = self.trainer.accelerator.prepare_model(self.model)

    def backward(self) -> None:
        count = (self.batch["target_positions"] >= 0).sum()
        self.trainer.training_step(self.forward, self.batch, count)


# ---- output ---------------------------------------------------------------------------------------------------------


def print_tables(results: Mapping[str, Any]) -> None:
    """Prints a table per axis."""
    print(", ".join(f"{name} {value}" for name, value in results["settings"].items()))
    for axis, points in results["axes"].items():
        print(f"\n| {axis} | seconds per step | ratio to the first | tokens/s | memory, MB | share of the peak |")
        print("|---|---|---|---|---|---|")
        for value, point in points.items():
            print(f"| {value} | {point['seconds_per_step']:.3f} | {point['ratio_to_first']:.2f} ", end="")
            print(f"| {point['tokens_per_second']:,.0f} | {point['memory']:,.0f} ", end="")
            print(f"| {point['share_of_matmul_peak']:.2f} |")
    if "fastest_batch" in results:
        print(f"\nfastest: --per_device_train_batch_size {results['fastest_batch']}")


def plot(results: Mapping[str, Any], path: str) -> None:
    """Draws a panel per axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(results["axes"]), 3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results["axes"]), squeeze=False)[0]
    for axes, (axis, points) in zip(panels, results["axes"].items(), strict=True):
        ratios = [point["ratio_to_first"] for point in points.values()]
        axes.plot(list(points), ratios, marker="o")
        axes.set_xlabel(axis)
        axes.set_title("seconds per step, first = 1", fontsize=9)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
