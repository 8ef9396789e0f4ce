"""What a step of Text-JEPA costs as one thing grows: length, hidden share, masks, width, texts, processes.

    python benchmarks/scaling.py [--axes length hidden masks width mask_batching batch processes] [--json FILE]
    python benchmarks/scaling.py --axes batch --device cuda --dtype bfloat16 --width 768 --layers 12 --length 512

Every point is a process of its own: full-length texts of random tokens, forward, backward, clipping, fused AdamW and
the move of the target encoder, as in `benchmarks/step.py`. The matrix product takes turns with the step, so that
points of different minutes compare by their share of the peak. What is not on the axis is as the flags say.

`batch` doubles the number of texts while there is room and it pays, and names the fastest; `mask_batching` has four
masks and the Trainer's own passes; `processes` exchange gradients by gloo (NCCL on GPUs), with one thread and
`--texts` texts each. Memory is the growth of a process's peak.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

import psutil
import torch
import torch.distributed as dist
from step import (
    PEAK,
    TextJepaStep,
    bert_config,
    flops_of,
    matrix_product,
    peak_memory,
    shape_parser,
    take_turns,
    texts_of,
)
from torch.nn.parallel import DistributedDataParallel

from text_jepa import TextJepaConfig, TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.strategies import MaskStrategy


# The points of each axis.
AXES = {
    "length": [64, 128, 256, 512],
    "hidden": [0.15, 0.3, 0.5, 0.7],
    "masks": [1, 2, 4, 8],
    "width": [128, 256, 512, 768],
    "mask_batching": ["joint", "sequential"],
    "batch": [2**i for i in range(3, 13)],
    "processes": [2**i for i in range(8) if 2**i <= (torch.cuda.device_count() or os.cpu_count() or 1)],
}

SHAPE = ("vocab_size", "width", "layers", "texts", "length", "device", "dtype", "attention", "hidden", "masks")


def main():
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
        axes[axis] = sweep(args, axis, args.values or AXES[axis])
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


def arguments():
    parser = shape_parser(__doc__)
    parser.add_argument("--hidden", type=float, default=0.5, help="share of the tokens that is hidden")
    parser.add_argument("--masks", type=int, default=1, help="masks of each text")
    parser.add_argument("--mask_batching", choices=AXES["mask_batching"], help="by the Trainer's passes, not bare")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--values", nargs="+", help="points of the axis instead of the usual ones")
    parser.add_argument("--plot", help="draw the figures into this file")
    parser.add_argument("--point", action="store_true", help="measure what the flags say, in this process")
    return parser.parse_args()


# ---- sweep ----------------------------------------------------------------------------------------------------------


def sweep(args, axis, values):
    """Value -> its figures. Of batches no more than have room or pay."""
    points = {}
    for value in values:
        if axis == "batch" and not worth_doubling(list(points.values()), room(args)):
            break
        points[str(value)] = figures(args, axis, value)
    first = next(iter(points.values()))
    for point in points.values():
        point["ratio_to_first"] = point["seconds_per_step"] / first["seconds_per_step"]
    return points


def worth_doubling(points, megabytes):
    """Whether twice the memory of the last batch is there, and one of the last two was the fastest so far."""
    if not points:
        return True
    speeds = [point["tokens_per_second"] for point in points]
    last_memory = points[-1]["memory"]
    return 2 * last_memory < megabytes and max(speeds) in speeds[-2:]


def room(args):
    """Free megabytes of the device."""
    if args.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = psutil.virtual_memory().available
    return free / 2**20


def figures(args, axis, value):
    """Measures a point in a process of its own, or in several."""
    flags = {name: vars(args)[name] for name in (*SHAPE, "repeats")}
    command = [sys.executable]
    environment = {}
    if axis == "processes":
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={value}"]
        environment = {"OMP_NUM_THREADS": "1"}
    else:
        flags["texts" if axis == "batch" else axis] = value
        flags |= {"masks": 4} if axis == "mask_batching" else {}
    command += [__file__, "--point", *(f"--{name}={given}" for name, given in flags.items())]
    command += ["--compile"] if args.compile else []
    output = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | environment
    ).stdout
    return json.loads(output.splitlines()[-1])


# ---- point ----------------------------------------------------------------------------------------------------------


def measure(args):
    """Seconds, speed and memory of a step in this process, and in those beside it if it was started by torchrun."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(0)
    step = step_of(args)
    if processes > 1:
        step.forward = DistributedDataParallel(step.model)
    before = peak_memory()
    step()
    flops = flops_of(step)
    memory = peak_memory() - before
    if args.compile:
        step.compile()
    seconds = take_turns({"step": step, "matmul": matrix_product(args)}, args.repeats)
    if processes > 1:
        dist.destroy_process_group()
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    peak = 2 * PEAK[args.device] ** 3 / middle["matmul"]
    return {
        "seconds_per_step": middle["step"],
        "tokens_per_second": processes * args.texts * args.length / middle["step"],
        "memory": memory,
        "share_of_matmul_peak": flops / middle["step"] / peak,
        "seconds": seconds,
    }


def step_of(args):
    examples, tokenizer = texts_of(args)
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=args.hidden), num_masks=args.masks)
    config = TextJepaConfig(text_config=bert_config(args))
    batch = collator(examples)
    if args.mask_batching is None:
        return TextJepaStep(config, batch, args)
    return TrainerStep(config, batch, args, collator, examples)


class TrainerStep(TextJepaStep):
    """The same step with the passes of the Trainer: one for all masks, or one for each."""

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

    def backward(self):
        count = (self.batch["target_positions"] >= 0).sum()
        self.trainer.training_step(self.forward, self.batch, count)


# ---- output ---------------------------------------------------------------------------------------------------------


def print_tables(results):
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


def plot(results, path):
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
