"""One optimizer step, side by side with other ways to train the same encoder.

    python benchmarks/step.py [--vocab_size 30522] [--width 256] [--layers 4] [--repeats 7] [--json FILE] [--plot FILE]

Each arm does forward, backward, clipping, fused AdamW and, where it has one, the update of the target encoder, on the
same 32 texts of 128 random tokens, dropout off. Arms take turns in one process, and so does the matrix product that
stands for the machine's peak; a ratio compares medians. Half the tokens are hidden from a Text-JEPA; 15 % are to be
predicted by a masked language model, which computes logits for every token, as transformers does, or (`sparse`) for
these alone; 35 % by the data2vec-style step. FLOPs are counted by `torch.utils.flop_counter`; memory is the growth of
the peak of a process of its own over two steps.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

import modeling_text_jepa
from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.masking import DataCollatorForTextJepa


PEAK = 1024  # rows and columns of the matrix product that is the peak
MASKED = 3  # stands in for the tokenizer's mask token


def main():
    args = arguments()
    if args.memory_of:
        print(json.dumps(peak_of_two_steps(lambda: arms_of(args)[args.memory_of]())))
        return
    arms = {name: build() for name, build in arms_of(args).items()}
    left, right = torch.randn(2, PEAK, PEAK)
    examples, tokenizer = texts_of(args)
    collator = DataCollatorForTextJepa(tokenizer)
    small = {"collator": lambda: collator(examples), "ema": arms["text_jepa_m1"].ema, "matmul": lambda: left @ right}
    flops = {name: flops_of(arm) for name, arm in arms.items()}
    seconds = take_turns({**arms, **small}, args.repeats)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    peak = 2 * PEAK**3 / middle["matmul"]
    base, step = middle["bert_mlm"], middle["text_jepa_m1"]
    results = {
        "settings": {name: value for name, value in vars(args).items() if name in SHAPE} | {"threads": threads()},
        "ratio_to_bert_mlm": {name: middle[name] / base for name in arms if name != "bert_mlm"},
        "ratio_to_data2vec": middle["text_jepa_m1"] / middle["data2vec_style"],
        "share_of_matmul_peak": {name: flops[name] / middle[name] / peak for name in arms},
        "gigaflop": {name: count / 1e9 for name, count in flops.items()},
        "peak_gigaflop_per_second": peak / 1e9,
        "share_of_step": {name: middle[name] / step for name in ("collator", "ema")},
        "split": split_of(arms["text_jepa_m1"], args.repeats),
        "peak_memory": {name: memory_of(name) for name in arms} if args.memory else {},
        "seconds": seconds,
    }
    print_table(results, arms)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)
    if args.plot:
        plot(results, args.plot)


SHAPE = ("vocab_size", "width", "layers", "texts", "length")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab_size", type=int, default=30_522)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="measure the peak of memory of each arm too")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--plot", help="draw the figures into this file")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    return parser.parse_args()


def threads():
    return torch.get_num_threads()


# ---- arms -----------------------------------------------------------------------------------------------------------


def texts_of(args):
    """The same random texts for all, and a tokenizer of single-token words."""
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    vocabulary = [*special.values(), *(f"w{i}" for i in range(args.vocab_size - len(special)))]
    model = models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)
    ids = np.random.default_rng(0).integers(len(special), args.vocab_size, (args.texts, args.length))
    ids[:, 0], ids[:, -1] = 1, 2
    return [{"input_ids": row} for row in ids], tokenizer


def arms_of(args):
    """Name -> what builds the step."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": args.vocab_size,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": max(1, args.width // 64),
        "max_position_embeddings": max(512, args.length),
    }
    bert = shape | {"intermediate_size": 4 * args.width}
    bert |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    modern = shape | {"intermediate_size": 8 * args.width // 3, "pad_token_id": 0, "reference_compile": False}
    modern |= {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
    examples, tokenizer = texts_of(args)
    ids = torch.from_numpy(np.stack([example["input_ids"] for example in examples]))

    def jepa(masks, **fields):
        config = TextJepaConfig(text_config={"model_type": "bert", **bert}, **fields)
        collator = DataCollatorForTextJepa(tokenizer, **masks)
        return TextJepaStep(config, collator(examples))

    data2vec = {"context_mode": "mask_token", "mask_token_id": MASKED, "predictor_type": "mlp"}
    data2vec |= {"pred_num_hidden_layers": 1, "token_loss_weight": 0.0, "smooth_l1_beta": 4.0}
    return {
        "bert_mlm": lambda: masked_language_model(BertForMaskedLM(BertConfig(**bert)), ids),
        "bert_mlm_sparse": lambda: sparse_masked_language_model(BertForMaskedLM(BertConfig(**bert)), ids),
        "modernbert_mlm": lambda: masked_language_model(ModernBertForMaskedLM(ModernBertConfig(**modern)), ids),
        "modernbert_mlm_sparse": lambda: masked_language_model(
            ModernBertForMaskedLM(ModernBertConfig(**modern, sparse_prediction=True)), ids
        ),
        "data2vec_style": lambda: jepa({"mask_ratio": 0.35}, **data2vec),
        "text_jepa_m1": lambda: jepa({"num_masks": 1}),
        "text_jepa_m1_pure": lambda: jepa({"num_masks": 1}, token_loss_weight=0.0),
        "text_jepa_m2": lambda: jepa({"num_masks": 2}),
        "text_jepa_m4": lambda: jepa({"num_masks": 4}),
    }


class TextJepaStep:
    """A step of Text-JEPA on a collated batch."""

    def __init__(self, config, batch):
        self.model, self.batch = TextJepaForPreTraining(config).train(), batch
        self.update = Update(self.model)

    def __call__(self):
        self.update(self.model(**self.batch).loss)
        self.ema()

    def ema(self):
        self.model.update_target_encoder(0.999)


def masked_language_model(model, ids):
    """A step of transformers' masked language model with 15 % of the tokens to predict."""
    model.train()
    masked = torch.rand(ids.shape) < 0.15
    inputs, labels = ids.masked_fill(masked, MASKED), ids.masked_fill(~masked, -100)
    update = Update(model)
    return lambda: update(model(input_ids=inputs, attention_mask=torch.ones_like(ids), labels=labels).loss)


def sparse_masked_language_model(model, ids):
    """The same with logits for the masked tokens alone."""
    model.train()
    masked = torch.rand(ids.shape) < 0.15
    inputs, labels = ids.masked_fill(masked, MASKED), ids[masked]
    update = Update(model)

    def step():
        states = model.bert(input_ids=inputs, attention_mask=torch.ones_like(ids)).last_hidden_state
        update(F.cross_entropy(model.cls(states[masked]), labels))

    return step


class Update:
    """Backward, clipping and AdamW, the same for every arm."""

    def __init__(self, model):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def __call__(self, loss):
        loss.backward()
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def clip(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)


# ---- measures -------------------------------------------------------------------------------------------------------


def take_turns(arms, repeats):
    """Seconds of each arm, `repeats` times in turn after one round that does not count."""
    seconds = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def flops_of(arm):
    """Floating-point operations of the matrix products and attentions of one step."""
    with FlopCounterMode(display=False) as counter:
        arm()
    return counter.get_total_flops()


def split_of(step, repeats):
    """Shares of a Text-JEPA step, by the clock."""
    model, update, clock = step.model, step.update, {}

    @contextmanager
    def part(name):
        started = time.perf_counter()
        yield
        clock[name] = clock.get(name, 0.0) + time.perf_counter() - started

    def timed(name, function):
        def run(*args, **kwargs):
            with part(name):
                return function(*args, **kwargs)

        return run

    encode, predict = modeling_text_jepa.encode_visible, model.predictor.forward
    with (
        mock.patch.object(model, "teach", timed("target encoder", model.teach)),
        mock.patch.object(model, "make_targets", timed("targets", model.make_targets)),
        mock.patch.object(modeling_text_jepa, "encode_visible", timed("context encoder, forward", encode)),
        mock.patch.object(model.predictor, "forward", timed("predictor, forward", predict)),
    ):
        for _ in range(repeats):
            with part("whole"):
                with part("forward"):
                    loss = model(**step.batch).loss
                with part("backward"):
                    loss.backward()
                with part("clipping"):
                    update.clip()
                with part("optimizer"):
                    update.optimizer.step()
                    update.optimizer.zero_grad()
                with part("moving average"):
                    step.ema()
    whole, forward = clock.pop("whole"), clock.pop("forward")
    named = ("target encoder", "targets", "context encoder, forward", "predictor, forward")
    clock["losses"] = forward - sum(clock[name] for name in named)
    return {name: seconds / whole for name, seconds in clock.items()}


def memory_of(name):
    """Megabytes that the peak of a process grows by in two steps of an arm."""
    command = [sys.executable, *sys.argv, "--memory_of", name]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_of_two_steps(build):
    arm = build()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        arm()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


# ---- output ---------------------------------------------------------------------------------------------------------


def print_table(results, arms):
    shape = results["settings"]
    print(f"{shape['layers']} × {shape['width']}, {shape['texts']} × {shape['length']} tokens, ", end="")
    print(f"{shape['vocab_size']:,} words, {shape['threads']} threads; matrix products of {PEAK}³ run at ", end="")
    print(f"{results['peak_gigaflop_per_second']:.0f} GFLOP/s\n")
    print("| step | seconds (median, min to max) | ratio to bert_mlm | GFLOP | share of the peak | memory, MB |")
    print("|---|---|---|---|---|---|")
    for name in arms:
        times, ratio = results["seconds"][name], results["ratio_to_bert_mlm"].get(name, 1.0)
        memory = f"{results['peak_memory'][name]:,.0f}" if results["peak_memory"] else ""
        print(
            f"| {name} | {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f}) | {ratio:.3f} ", end=""
        )
        print(f"| {results['gigaflop'][name]:.0f} | {results['share_of_matmul_peak'][name]:.2f} | {memory} |")
    shares = copy.copy(results["split"]) | {"collator, beside it": results["share_of_step"]["collator"]}
    print("\ntext_jepa_m1: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    print(f"text_jepa_m1 is {results['ratio_to_data2vec']:.2f} of data2vec_style")


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
        axes.barh(list(values)[::-1], list(values.values())[::-1])
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
