"""One optimizer step, side by side with other ways to train the same encoder.

    python benchmarks/step.py [--vocab_size 30522] [--width 256] [--layers 4] [--repeats 7] [--json FILE] [--plot FILE]
    python benchmarks/step.py --device cuda --dtype bfloat16 --compile --width 768 --layers 12 --length 512 --memory
    python benchmarks/step.py --arms bert_mlm text_jepa_m1 --profile profile.txt

Each arm does forward, backward, clipping, fused AdamW and, where it has one, the update of the target encoder, on the
same 32 texts of 128 random tokens, dropout off. Arms take turns in one process, and so does the matrix product that
stands for the machine's peak; a ratio compares medians. Half the tokens are hidden from a Text-JEPA; 15 % are to be
predicted by a masked language model, which computes logits for every token, as transformers does, or (`sparse`) for
these alone; 35 % by the data2vec-style step. `text_jepa_default` is the default recipe, without layers and 1,536 wide
whatever the flags say: as many windows, each of which predicts the other window of its document. It is held against
what the copies and products of the same rounds allow: see `least_traffic`.

FLOPs are counted by `torch.utils.flop_counter`; memory is the growth of the peak of a process of its own over two
steps. `--compile` is for the times: FLOPs, memory and the split are those of the same step as Python runs it, and
flash attention's own FLOPs are not counted. `--profile` writes torch's table of the kernels of text_jepa_m1, adds the
share of each kind, and says what they suggest.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
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


PEAK = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrix product that is the peak
COPIED = 2**26  # numbers of the copy whose speed is that of the memory
FLOAT32 = 4  # bytes
MASKED = 3  # stands in for the tokenizer's mask token


def main():
    args = arguments()
    if args.memory_of:
        build = arms_of(args)[args.memory_of]
        print(json.dumps(peak_of_two_steps(build)))
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
    split = split_of(jepa, args.repeats)
    profiled = profile_of(jepa, args) if args.profile else {}
    if args.compile:
        for arm in arms.values():
            arm.compile()
    seconds = take_turns({**arms, **parts}, args.repeats)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    peak = 2 * PEAK[args.device] ** 3 / middle["matmul"]
    base = middle["bert_mlm"]
    step = middle["text_jepa_m1"]
    settings = {name: value for name, value in vars(args).items() if name in SHAPE}
    settings["threads"] = threads()
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


def arguments():
    parser = shape_parser(__doc__)
    parser.add_argument("--memory", action="store_true", help="measure the peak of memory of each arm too")
    parser.add_argument("--plot", help="draw the figures into this file")
    parser.add_argument("--profile", help="write the profile of text_jepa_m1 into this file")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="these alone; two are always there")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    # What others are compared with, and what is split and profiled.
    wanted = {"bert_mlm", "text_jepa_m1", *args.arms}
    args.arms = [name for name in ARMS if name in wanted]
    return args


def shape_parser(doc):
    """The flags that all benchmarks of a step share."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--vocab_size", type=int, default=30_522)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=list(PEAK), default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: by autocast")
    parser.add_argument("--attention", choices=["sdpa", "eager", "flash_attention_2"], default="sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss of each arm")
    parser.add_argument("--json", help="write the figures to this file")
    return parser


def threads():
    return torch.get_num_threads()


# ---- arms -----------------------------------------------------------------------------------------------------------


def texts_of(args):
    """The same random texts for all, and a tokenizer of single-token words."""
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


def shape_of(args):
    """What encoders of all kinds have in common."""
    return {
        "vocab_size": args.vocab_size,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": max(1, args.width // 64),
        "max_position_embeddings": max(512, args.length),
        "attn_implementation": args.attention,
    }


def bert_config(args):
    """BERT without dropout."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**shape_of(args), intermediate_size=4 * args.width, **dropout)


def arms_of(args):
    """Functions that build the steps, by name."""
    torch.manual_seed(0)
    modern = {
        **shape_of(args),
        # In all three matrices as many weights as BERT has in two; GPUs are slow at widths that are no multiple of 64.
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
    """The loss, its backward, clipping and AdamW, the same for every arm."""

    def __init__(self, model, loss, args):
        self.model = model.to(args.device).train()
        autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")
        self.loss = autocast(loss)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def __call__(self):
        self.backward()
        self.clip()
        self.update()

    def backward(self):
        self.loss().backward()

    def clip(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)

    def update(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def compile(self):
        self.loss = torch.compile(self.loss)


class TextJepaStep(Step):
    """A step of Text-JEPA on a collated batch, with the move of the target encoder."""

    def __init__(self, config, batch, args):
        super().__init__(TextJepaForPreTraining(config), lambda: self.forward(**self.batch).loss, args)
        self.forward = self.model
        self.take(batch)

    def __call__(self):
        super().__call__()
        self.ema()

    def take(self, batch):
        """The batch of the next steps."""
        self.batch = {name: value.to(self.model.device) for name, value in batch.items()}

    def ema(self):
        self.model.update_target_encoder(0.999)


def default_step(tokenizer, args):
    """A step of the default recipe on windows of documents of two windows."""
    rng = np.random.default_rng(0)
    ids = rng.integers(MASKED + 1, args.vocab_size, (args.texts, 2 * args.length))
    documents = Dataset.from_dict({"input_ids": ids, "length": [2 * args.length] * args.texts})
    windows = DocumentWindows(documents, args.length, special_tokens=0)
    view = ViewStrategy("rest", window_length=args.length)
    collate = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.0), view=view)
    batch = collate([windows[2 * row] for row in range(args.texts)])
    batch = {name: value.to(args.device) for name, value in batch.items()}
    fields = {**OBJECTIVES["documents"], "mask_token_id": MASKED}
    model = TextJepaForPreTraining(TextJepaConfig.preset("static", {"vocab_size": args.vocab_size}, **fields))
    return Step(model, lambda: model(**batch).loss, args)


def least_traffic(step, args):
    """Bytes that a step of the default moves at least.

    The embeddings of the window and the fixed vectors of the rest are read, and the gradients of the former written,
    once for each token; the gradient of each weight is written and read, and AdamW reads and writes the weight and its
    two averages.
    """
    of_tokens = 3 * args.texts * args.length * step.model.config.hidden_size
    of_weights = 8 * sum(parameter.numel() for parameter in step.parameters)
    return FLOAT32 * (of_tokens + of_weights)


def masked_language_model(model, ids, args):
    """A step of transformers' masked language model with 15 % of the tokens to predict."""
    masked = torch.rand(ids.shape, device=ids.device) < 0.15
    inputs = {"input_ids": ids.masked_fill(masked, MASKED), "attention_mask": torch.ones_like(ids)}
    labels = ids.masked_fill(~masked, -100)
    return Step(model, lambda: model(**inputs, labels=labels).loss, args)


def sparse_masked_language_model(model, ids, args):
    """The same with logits for the masked tokens alone."""
    masked = torch.rand(ids.shape, device=ids.device) < 0.15
    inputs = {"input_ids": ids.masked_fill(masked, MASKED), "attention_mask": torch.ones_like(ids)}
    labels = ids[masked]
    places = masked.flatten().nonzero().squeeze(1)

    def loss():
        states = model.bert(**inputs).last_hidden_state.flatten(0, 1)
        return F.cross_entropy(model.cls(states[places]), labels)

    return Step(model, loss, args)


def matrix_product(args):
    """The product of two square matrices that stands for the peak of the machine in this precision."""
    size = PEAK[args.device]
    dtype = getattr(torch, args.dtype)
    left, right = torch.randn(2, size, size, device=args.device).to(dtype)
    return lambda: left @ right


def copy(args):
    """A copy that is too long for any cache, read and written once."""
    source = torch.zeros(COPIED, device=args.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


# ---- measures -------------------------------------------------------------------------------------------------------


def now():
    """Seconds, when all that was started is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(arms, repeats):
    """Seconds of each arm, `repeats` times in turn after one round that does not count."""
    seconds = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, arm in arms.items():
            started = now()
            arm()
            seconds[name].append(now() - started)
    return {name: times[1:] for name, times in seconds.items()}


def flops_of(arm):
    """Floating-point operations of the matrix products and attentions of one step."""
    with FlopCounterMode(display=False) as counter:
        arm()
    return counter.get_total_flops()


def split_of(step, repeats):
    """Shares of a Text-JEPA step, by the clock."""
    model = step.model
    clock = {}

    @contextmanager
    def part(name):
        started = now()
        yield
        clock[name] = clock.get(name, 0.0) + now() - started

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


def memory_of(name):
    """Megabytes that the peak of a process grows by in two steps of an arm."""
    command = [sys.executable, *sys.argv, "--memory_of", name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def peak_of_two_steps(build):
    arm = build()
    before = peak_memory()
    for _ in range(2):
        arm()
    return peak_memory() - before


def peak_memory():
    """Peak memory of this process in megabytes: of the GPU if there is one, else as Linux reports it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage, which includes what the parent process held.
    words = Path("/proc/self/status").read_text().split()
    kilobytes = words[words.index("VmHWM:") + 1]
    return int(kilobytes) / 1024


# ---- profile --------------------------------------------------------------------------------------------------------

# The first whose part is in the name of a kernel is its kind. The rest is elementwise: norms, activations, rotations.
KINDS = {
    "attention": ("flash", "fmha", "attention", "softmax"),
    "matrix products": ("gemm", "cutlass", "nvjet", "mm", "linear"),
    "optimizer": ("adam", "lerp", "multi_tensor", "foreach"),
    "embedding": ("embedding", "index", "scatter", "gather"),
    "copies": ("copy", "memcpy", "memset", "cat", "fill", "zero"),
}
PROFILED_STEPS = 3


def profile_of(step, args):
    """Shares of the kinds of kernels in a step, how long the device works in it, and what that suggests.

    The table by kernel is written into the file.
    """
    activities = [ProfilerActivity.CPU]
    if args.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    step()
    started = now()
    with profile(activities=activities) as recorded:
        for _ in range(PROFILED_STEPS):
            step()
        seconds = now() - started
    events = recorded.key_averages()
    time_of = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    table = events.table(sort_by=time_of, row_limit=30, max_name_column_width=70)
    Path(args.profile).write_text(f"{table}\n")
    times = {}
    for event in events:
        # On a GPU, operators and named ranges have the times of their kernels too.
        is_on_device = args.device == "cpu" or str(event.device_type).endswith("CUDA")
        if is_on_device and not event.is_user_annotation:
            times[event.key] = times.get(event.key, 0) + getattr(event, time_of)
    shares = shares_of(times)
    busy = sum(times.values()) / 1e6 / seconds
    return {"shares": shares, "busy": busy, "suggestions": suggestions(shares, busy)}


def shares_of(times: Mapping[str, float]) -> dict[str, float]:
    """Shares of the kinds of kernels, the largest first, from the time of each kernel by its name."""
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
    """What the shares of a profile suggest, by rules of thumb; to be tried, not to be believed."""
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


def print_table(results, arms):
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
        print(
            f"text_jepa_default takes {results['default_ratio_to_limit']:.2f} of what its products and its least ",
            end="",
        )
        print(f"traffic take, at {results['gigabytes_per_second']:.1f} GB/s")
    if results["profile"]:
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in results["profile"]["shares"].items())
        print(f"its kernels: {kinds}; the device works {results['profile']['busy']:.0%} of the time")
        for line in results["profile"]["suggestions"]:
            print(f"- {line}")


def plot(results, path):
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
