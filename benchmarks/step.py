"""Times one optimizer step beside other ways to train the same encoder.

    python benchmarks/step.py [--vocab_size 30522] [--width 256] [--layers 4] [--repeats 7] [--json FILE] [--plot FILE]
    python benchmarks/step.py --device cuda --dtype bfloat16 --compile --width 768 --layers 12 --length 512 --memory
    python benchmarks/step.py --arms bert_mlm text_jepa_m1 --profile profile.txt

Each arm makes a forward pass, a backward pass, gradient clipping, fused AdamW and, if it has one, the update of the
target encoder, on the same 32 texts of 128 random tokens without dropout. Arms take turns in one process, together
with a matrix product that measures the machine's peak; ratios compare medians. Text-JEPA hides half of the tokens. A
masked language model predicts 15 % of them and computes logits for every token, as transformers does, or (`sparse`)
for the predicted ones only. The data2vec-style step predicts 35 %. `text_jepa_default` is the default recipe, which
has no layers and a width of 1,536 whatever the flags say: the same number of windows, each of which predicts the other
window of its document. It is compared with the least time of its products and its memory traffic, see
`least_traffic`.

FLOPs are counted by `torch.utils.flop_counter`; memory is the growth of the peak over two steps in a process of its
own. `--compile` affects the times only: FLOPs, memory and the split are those of the eager step, and the FLOPs of
flash attention are not counted. `--profile` writes torch's table of the kernels of text_jepa_m1, and prints the share
of each kind and what the shares suggest.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

import modeling_text_jepa
from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.data.batching import DocumentWindows
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.strategies import MaskStrategy, ViewStrategy


PEAK = {"cpu": 1024, "cuda": 8192}  # size of the square matrix product whose speed is taken as the machine's peak
COPIED = 2**26  # length of the copy whose speed is taken as that of the memory
FLOAT32 = 4  # bytes
MASKED = 3  # token id of the mask token

Batch = dict[str, torch.Tensor]


def main() -> None:
    args = arguments()
    if args.memory_of:
        build = arms_of(args)[args.memory_of]
        print(json.dumps(peak_of_two_steps(build, args.device)))
        return
    arms = {name: build() for name, build in arms_of(args).items() if name in args.arms}
    examples, tokenizer = texts_of(args)
    collator = DataCollatorForTextJepa(tokenizer)
    jepa = arms["text_jepa_m1"]
    parts = {
        "collator": lambda: collator(examples),
        "ema": jepa.ema,
        "matmul": matrix_product(args),
        "copy": copy(args),
    }
    flops = {name: flops_of(arm) for name, arm in arms.items()}
    split = split_of(jepa, args.repeats, args.device)
    profiled = profile_of(jepa, args) if args.profile else {}
    if args.compile:
        for arm in arms.values():
            arm.compile()
    seconds = time_in_turn({**arms, **parts}, args.repeats, args.device)
    middle = medians(seconds)
    peak = 2 * PEAK[args.device] ** 3 / middle["matmul"]
    base = middle["bert_mlm"]
    step = middle["text_jepa_m1"]
    settings = {name: value for name, value in vars(args).items() if name in SHAPE}
    settings["threads"] = torch.get_num_threads()
    results = {
        "settings": settings,
        "ratio_to_bert_mlm": {name: middle[name] / base for name in arms if name != "bert_mlm"},
        "tokens_per_second": {name: args.texts * args.length / middle[name] for name in arms},
        "share_of_matmul_peak": {name: flops[name] / middle[name] / peak for name in arms},
        "gigaflop": {name: count / 1e9 for name, count in flops.items()},
        "peak_gigaflop_per_second": peak / 1e9,
        "share_of_step": {name: middle[name] / step for name in ("collator", "ema")},
        "split": split,
        "profile": profiled,
        "peak_memory": {name: memory_of(name) for name in arms} if args.memory else {},
        "seconds": seconds,
    }
    if "text_jepa_default" in arms:
        speed = 2 * FLOAT32 * COPIED / middle["copy"]
        least = least_traffic(arms["text_jepa_default"], args) / speed + flops["text_jepa_default"] / peak
        results["gigabytes_per_second"] = speed / 1e9
        results["default_ratio_to_limit"] = middle["text_jepa_default"] / least
    if "data2vec_style" in arms:
        results["ratio_to_data2vec"] = step / middle["data2vec_style"]
    print_table(results, arms)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)
    if args.plot:
        plot(results, args.plot)


ARMS = (
    "bert_mlm",
    "bert_mlm_sparse",
    "modernbert_mlm",
    "modernbert_mlm_sparse",
    "data2vec_style",
    "text_jepa_m1",
    "text_jepa_m1_pure",
    "text_jepa_m2",
    "text_jepa_m4",
    "text_jepa_default",
)
SHAPE = ("vocab_size", "width", "layers", "texts", "length", "device", "dtype", "attention", "compile")


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = shape_parser(__doc__)
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory of each arm")
    parser.add_argument("--plot", help="file for a picture of the figures")
    parser.add_argument("--profile", help="file for the profile of text_jepa_m1")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=ARMS, help="arms to run, besides two that always run"
    )
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    # The arm that others are compared with, and the one that is split and profiled.
    wanted = {"bert_mlm", "text_jepa_m1", *args.arms}
    args.arms = [name for name in ARMS if name in wanted]
    return args


def shape_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks of a step share."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--vocab_size", type=int, default=30_522)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=list(PEAK), default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 uses autocast")
    parser.add_argument("--attention", choices=["sdpa", "eager", "flash_attention_2"], default="sdpa")
    parser.add_argument("--compile", action="store_true", help="compile the loss of each arm")
    parser.add_argument("--json", help="file for the figures")
    return parser


# ---- arms -----------------------------------------------------------------------------------------------------------


def texts_of(args: Any) -> tuple[list[dict[str, np.ndarray]], PreTrainedTokenizerFast]:
    """Random texts, the same for all arms, and a tokenizer of single-token words."""
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    words = [f"w{i}" for i in range(args.vocab_size - len(special))]
    vocabulary = [*special.values(), *words]
    ids_by_token = {token: i for i, token in enumerate(vocabulary)}
    model = models.WordLevel(ids_by_token, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)
    rng = np.random.default_rng(0)
    ids = rng.integers(len(special), args.vocab_size, (args.texts, args.length))
    ids[:, 0] = tokenizer.cls_token_id
    ids[:, -1] = tokenizer.sep_token_id
    return [{"input_ids": row} for row in ids], tokenizer


def shape_of(args: argparse.Namespace) -> dict[str, Any]:
    """Configuration fields that all kinds of encoders share."""
    return {
        "vocab_size": args.vocab_size,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": max(1, args.width // 64),
        "max_position_embeddings": max(512, args.length),
        "attn_implementation": args.attention,
    }


def bert_config(args: argparse.Namespace) -> BertConfig:
    """Configuration of a BERT without dropout."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**shape_of(args), intermediate_size=4 * args.width, **dropout)


def arms_of(args: argparse.Namespace) -> dict[str, Callable[[], "Step"]]:
    """Functions that build the step of each arm."""
    torch.manual_seed(0)
    modern = {
        **shape_of(args),
        # Three matrices with as many weights as the two of BERT; GPUs are slow unless widths are multiples of 64.
        "intermediate_size": math.ceil(8 * args.width / 3 / 64) * 64,
        "pad_token_id": 0,
        "reference_compile": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
    }
    examples, tokenizer = texts_of(args)
    rows = np.stack([example["input_ids"] for example in examples])
    ids = torch.from_numpy(rows).to(args.device)

    def jepa(num_masks, mask_ratio=0.5, **fields):
        config = TextJepaConfig(text_config=bert_config(args), **fields)
        collate = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=mask_ratio), num_masks)
        return TextJepaStep(config, collate(examples), args)

    data2vec = {
        "context_mode": "mask_token",
        "mask_token_id": MASKED,
        "predictor_type": "mlp",
        "pred_num_hidden_layers": 1,
        "token_loss_weight": 0.0,
        "smooth_l1_beta": 4.0,
    }
    return {
        "bert_mlm": lambda: masked_language_model(BertForMaskedLM(bert_config(args)), ids, args),
        "bert_mlm_sparse": lambda: sparse_masked_language_model(BertForMaskedLM(bert_config(args)), ids, args),
        "modernbert_mlm": lambda: masked_language_model(ModernBertForMaskedLM(ModernBertConfig(**modern)), ids, args),
        "modernbert_mlm_sparse": lambda: masked_language_model(
            ModernBertForMaskedLM(ModernBertConfig(**modern, sparse_prediction=True)), ids, args
        ),
        "data2vec_style": lambda: jepa(num_masks=1, mask_ratio=0.35, **data2vec),
        "text_jepa_m1": lambda: jepa(num_masks=1),
        "text_jepa_m1_pure": lambda: jepa(num_masks=1, token_loss_weight=0.0),
        "text_jepa_m2": lambda: jepa(num_masks=2),
        "text_jepa_m4": lambda: jepa(num_masks=4),
        "text_jepa_default": lambda: default_step(tokenizer, args),
    }


class Step:
    """Loss, backward pass, clipping and AdamW, the same for every arm.

    Args:
        model: The model to train.
        loss: Function that returns the loss of the next step.
        args: Arguments of the benchmark; `device` and `dtype` are used.
    """

    def __init__(self, model: torch.nn.Module, loss: Callable[[], torch.Tensor], args: Any):
        self.model = model.to(args.device).train()
        autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")
        self.loss = autocast(loss)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def __call__(self) -> None:
        self.backward()
        self.clip()
        self.update()

    def backward(self) -> None:
        self.loss().backward()

    def clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def compile(self) -> None:
        self.loss = torch.compile(self.loss)


class TextJepaStep(Step):
    """A step of Text-JEPA on a collated batch, with the update of the target encoder."""

    def __init__(self, config: TextJepaConfig, batch: Batch, args: Any):
        super().__init__(TextJepaForPreTraining(config), lambda: self.forward(**self.batch).loss, args)
        self.forward = self.model
        self.take(batch)

    def __call__(self) -> None:
        super().__call__()
        self.ema()

    def take(self, batch: Batch) -> None:
        """Sets the batch of the next steps."""
        self.batch = on(self.model.device, batch)

    def ema(self) -> None:
        self.model.update_target_encoder(0.999)


def on(device: str | torch.device, batch: Batch) -> Batch:
    """The batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def default_step(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> Step:
    """A step of the default recipe on documents of two windows each."""
    batch = on(args.device, default_batch(tokenizer, args))
    shape = {"vocab_size": args.vocab_size}
    fields = {**OBJECTIVES["documents"], "mask_token_id": MASKED}
    config = TextJepaConfig.preset("static", shape, **fields)
    model = TextJepaForPreTraining(config)
    return Step(model, lambda: model(**batch).loss, args)


def default_batch(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> Batch:
    """The first window of each document, and the rest of the document that it predicts."""
    document_length = 2 * args.length
    rng = np.random.default_rng(0)
    ids = rng.integers(MASKED + 1, args.vocab_size, (args.texts, document_length))
    columns = {"input_ids": ids, "length": [document_length] * args.texts}
    documents = Dataset.from_dict(columns)
    windows = DocumentWindows(documents, args.length, special_tokens=0)
    first_windows = [windows[2 * row] for row in range(args.texts)]
    view = ViewStrategy("rest", window_length=args.length)
    collate = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.0), view=view)
    return collate(first_windows)


def least_traffic(step: Step, args: argparse.Namespace) -> int:
    """Bytes that a step of the default reads and writes at least.

    For each token, the embedding of the window is read, its gradient written, and the fixed vector of the rest read.
    For each weight, the gradient is written and read, and AdamW reads and writes the weight and its two averages.
    """
    config = step.model.config
    tokens = args.texts * args.length
    of_tokens = tokens * (2 * config.hidden_size + config.document_target_size)
    of_weights = 8 * sum(parameter.numel() for parameter in step.parameters)
    return FLOAT32 * (of_tokens + of_weights)


def masked_language_model(model: torch.nn.Module, ids: torch.Tensor, args: argparse.Namespace) -> Step:
    """A step of a masked language model of transformers that predicts 15 % of the tokens."""
    masked = torch.rand(ids.shape, device=ids.device) < 0.15
    inputs = {"input_ids": ids.masked_fill(masked, MASKED), "attention_mask": torch.ones_like(ids)}
    labels = ids.masked_fill(~masked, -100)
    return Step(model, lambda: model(**inputs, labels=labels).loss, args)


def sparse_masked_language_model(model: BertForMaskedLM, ids: torch.Tensor, args: argparse.Namespace) -> Step:
    """The same with logits for the masked tokens only."""
    masked = torch.rand(ids.shape, device=ids.device) < 0.15
    inputs = {"input_ids": ids.masked_fill(masked, MASKED), "attention_mask": torch.ones_like(ids)}
    labels = ids[masked]
    places = masked.flatten().nonzero().squeeze(1)

    def loss() -> torch.Tensor:
        states = model.bert(**inputs).last_hidden_state.flatten(0, 1)
        return F.cross_entropy(model.cls(states[places]), labels)

    return Step(model, loss, args)


def matrix_product(args: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """The product of two square matrices, whose speed is taken as the machine's peak in this precision."""
    size = PEAK[args.device]
    dtype = getattr(torch, args.dtype)
    left, right = torch.randn(2, size, size, device=args.device).to(dtype)
    return lambda: left @ right


def copy(args: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """A copy that does not fit into any cache; each number is read and written once."""
    source = torch.zeros(COPIED, device=args.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


# ---- measures -------------------------------------------------------------------------------------------------------


def now(device: str) -> float:
    """Seconds on the clock when the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(function: Callable[[], Any], device: str) -> float:
    """Seconds that a call takes."""
    started = now(device)
    function()
    return now(device) - started


def time_in_turn(functions: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each function, see `measure_in_turn`."""
    measures = {name: partial(seconds_of, function, device) for name, function in functions.items()}
    return measure_in_turn(measures, repeats)


def measure_in_turn(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls the measures in turn, `repeats` times after one round of warm-up; returns the values of each."""
    found = {name: [] for name in measures}
    for _ in range(repeats + 1):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: values[1:] for name, values in found.items()}


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each list of values."""
    return {name: statistics.median(found) for name, found in values.items()}


def flops_of(arm: Step) -> int:
    """Floating-point operations of the matrix products and attentions of one step."""
    with FlopCounterMode(display=False) as counter:
        arm()
    return counter.get_total_flops()


def split_of(step: TextJepaStep, repeats: int, device: str) -> dict[str, float]:
    """Shares of the parts of a Text-JEPA step in its time."""
    model = step.model
    clock = {}

    @contextmanager
    def part(name):
        started = now(device)
        yield
        clock[name] = clock.get(name, 0.0) + now(device) - started

    def timed(name, function):
        def run(*args, **kwargs):
            with part(name):
                return function(*args, **kwargs)

        return run

    encode = modeling_text_jepa.encode_visible
    predict = model.predictor.forward
    with (
        mock.patch.object(model, "encode_targets", timed("target encoder", model.encode_targets)),
        mock.patch.object(model, "token_targets", timed("targets", model.token_targets)),
        mock.patch.object(modeling_text_jepa, "encode_visible", timed("context encoder, forward", encode)),
        mock.patch.object(model.predictor, "forward", timed("predictor, forward", predict)),
    ):
        for _ in range(repeats):
            with part("whole"):
                with part("forward"):
                    loss = step.loss()
                with part("backward"):
                    loss.backward()
                with part("clipping"):
                    step.clip()
                with part("optimizer"):
                    step.update()
                with part("moving average"):
                    step.ema()
    whole = clock.pop("whole")
    forward = clock.pop("forward")
    named = ("target encoder", "targets", "context encoder, forward", "predictor, forward")
    clock["losses"] = forward - sum(clock[name] for name in named)
    return {name: seconds / whole for name, seconds in clock.items()}


def memory_of(name: str) -> float:
    """Megabytes by which the peak memory of a process grows in two steps of an arm."""
    command = [sys.executable, *sys.argv, "--memory_of", name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def peak_of_two_steps(build: Callable[[], Step], device: str) -> float:
    """The same in this process."""
    arm = build()
    before = peak_memory(device)
    for _ in range(2):
        arm()
    return peak_memory(device) - before


def peak_memory(device: str) -> float:
    """Peak memory of this process in megabytes: on the GPU, or on the CPU as Linux reports it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage, which includes the memory of the parent process.
    words = Path("/proc/self/status").read_text().split()
    kilobytes = words[words.index("VmHWM:") + 1]
    return int(kilobytes) / 1024


# ---- profile --------------------------------------------------------------------------------------------------------

# The kind of a kernel is the first one with a part of its name. All others are elementwise: norms, activations,
# rotations.
KINDS = {
    "attention": ("flash", "fmha", "attention", "softmax"),
    "matrix products": ("gemm", "cutlass", "nvjet", "mm", "linear"),
    "optimizer": ("adam", "lerp", "multi_tensor", "foreach"),
    "embedding": ("embedding", "index", "scatter", "gather"),
    "copies": ("copy", "memcpy", "memset", "cat", "fill", "zero"),
}
PROFILED_STEPS = 3


def profile_of(step: Step, args: argparse.Namespace) -> dict[str, Any]:
    """Profiles a step and writes the table of its kernels to the file `args.profile`.

    Returns:
        `shares` of the kinds of kernels, `busy`, the share of time in which the device works, and `suggestions`.
    """
    activities = [ProfilerActivity.CPU]
    if args.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    step()
    started = now(args.device)
    with profile(activities=activities) as recorded:
        for _ in range(PROFILED_STEPS):
            step()
        seconds = now(args.device) - started
    events = recorded.key_averages()
    time_of = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    table = events.table(sort_by=time_of, row_limit=30, max_name_column_width=70)
    Path(args.profile).write_text(f"{table}\n")
    times = {}
    for event in events:
        # On a GPU, operators and named ranges include the times of their kernels.
        is_on_device = args.device == "cpu" or str(event.device_type).endswith("CUDA")
        if is_on_device and not event.is_user_annotation:
            times[event.key] = times.get(event.key, 0) + getattr(event, time_of)
    shares = shares_of(times)
    busy = sum(times.values()) / 1e6 / seconds
    return {"shares": shares, "busy": busy, "suggestions": suggestions(shares, busy)}


def shares_of(times: Mapping[str, float]) -> dict[str, float]:
    """Shares of the kinds of kernels, the largest first, from the times of kernels by name."""
    sums = {}
    for name, spent in times.items():
        kind = kind_of(name)
        sums[kind] = sums.get(kind, 0) + spent
    total = sum(sums.values())
    return {kind: sums[kind] / total for kind in sorted(sums, key=sums.get, reverse=True)}


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    lowered = kernel.lower()
    for kind, parts in KINDS.items():
        if any(part in lowered for part in parts):
            return kind
    return "elementwise"


def suggestions(shares: Mapping[str, float], busy: float) -> list[str]:
    """What to try, by rules of thumb, given the shares of a profile."""
    found = []
    if busy < 0.9:
        found.append(f"the device waits {1 - busy:.0%} of the time for launches: more texts, --compile, CUDA graphs")
    if shares.get("elementwise", 0) > 0.2:
        found.append("elementwise kernels move memory: --compile fuses norms, rotations and activations")
    if shares.get("attention", 0) > 0.15:
        found.append("attention: a padding mask keeps sdpa from its flash kernel; equal lengths, --equal_counts")
    if shares.get("copies", 0) > 0.08:
        found.append("copies: casts of weights under autocast and gathers of visible tokens; weights in bfloat16")
    if shares.get("optimizer", 0) > 0.05:
        found.append("optimizer and moving average: more texts in a step")
    return found


# ---- output ---------------------------------------------------------------------------------------------------------


def print_table(results: Mapping[str, Any], arms: Sequence[str]) -> None:
    """Prints a row per arm, and the split and the profile of text_jepa_m1."""
    shape = results["settings"]
    print(f"{shape['layers']} × {shape['width']}, {shape['texts']} × {shape['length']} tokens, ", end="")
    print(f"{shape['vocab_size']:,} words, {shape['dtype']}, {shape['threads']} threads; ", end="")
    print(f"matrix products of {PEAK[shape['device']]}³ run at ", end="")
    print(f"{results['peak_gigaflop_per_second']:.0f} GFLOP/s\n")
    print("| step | seconds (median, min to max) | ratio to bert_mlm | tokens/s ", end="")
    print("| GFLOP | share of the peak | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name in arms:
        times = results["seconds"][name]
        ratio = results["ratio_to_bert_mlm"].get(name, 1.0)
        memory = f"{results['peak_memory'][name]:,.0f}" if results["peak_memory"] else ""
        median = statistics.median(times)
        print(f"| {name} | {median:.3f} ({min(times):.3f} to {max(times):.3f}) | {ratio:.3f} ", end="")
        print(f"| {results['tokens_per_second'][name]:,.0f} ", end="")
        print(f"| {results['gigaflop'][name]:.0f} | {results['share_of_matmul_peak'][name]:.2f} | {memory} |")
    shares = dict(results["split"])
    shares["collator, beside it"] = results["share_of_step"]["collator"]
    listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    print(f"\ntext_jepa_m1: {listed}")
    if "ratio_to_data2vec" in results:
        print(f"text_jepa_m1 is {results['ratio_to_data2vec']:.2f} of data2vec_style")
    if "default_ratio_to_limit" in results:
        ratio = results["default_ratio_to_limit"]
        speed = results["gigabytes_per_second"]
        print(f"text_jepa_default takes {ratio:.2f} of the least time of products and copies, at {speed:.1f} GB/s")
    if results["profile"]:
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in results["profile"]["shares"].items())
        print(f"its kernels: {kinds}; the device works {results['profile']['busy']:.0%} of the time")
        for line in results["profile"]["suggestions"]:
            print(f"- {line}")


def plot(results: Mapping[str, Any], path: str) -> None:
    """Draws the ratios of the arms and the split of text_jepa_m1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    ratios = {"bert_mlm": 1.0} | results["ratio_to_bert_mlm"]
    for axes, values, title in (
        (left, ratios, "time of a step, masked language modelling = 1"),
        (right, results["split"], "where the time of text_jepa_m1 goes"),
    ):
        names = list(values)
        names.reverse()
        axes.barh(names, [values[name] for name in names])
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
