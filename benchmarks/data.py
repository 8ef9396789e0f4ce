"""Measures tokenization, collation, padding, the Trainer's loop and start-up against a lower bound for each.

    python benchmarks/data.py [--train_file FILE …] [--parts tokenization collator padding loop startup] [--json FILE]

Parts:

- tokenization: `tokenize_texts` against the bare call of the tokenizers library, and a second call that finds the
  cache.
- collator: our collator against that of transformers for masked language modelling, and against the step it feeds.
- padding: useful tokens per second of the bare step on texts of their own lengths, against full-length texts.
- loop: the Trainer's step against the bare step on the same batches, with a log and a measurement of the collapse
  monitor every 50 steps, which is the default, and without evaluation and saving.
- startup: imports and the launch of a run, in processes of their own.

Arms take turns; ratios compare medians. Without `--train_file` the texts are the short Wikipedia articles in the
folder TEXT_JEPA_DATA, or the built-in corpus if that variable is not set.
"""

import argparse
import contextlib
import inspect
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from step import (
    Batch,
    TextJepaStep,
    bert_config,
    measure_in_turn,
    medians,
    now,
    seconds_of,
    shape_parser,
    time_in_turn,
)
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, TrainerCallback

from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.data.batching import LengthGroupedSampler
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import CorpusArguments, load_corpus
from text_jepa.data.tokenization import tokenize_texts, train_tokenizer


ROOT = Path(__file__).resolve().parents[1]
POOL = inspect.signature(LengthGroupedSampler).parameters["pool_batches"].default

Figures = dict[str, Any]


def main() -> None:
    args = arguments()
    datasets.disable_progress_bars()
    corpus = load_corpus(CorpusArguments(train_file=args.train_file or default_files())).splits
    documents = min(args.documents, len(corpus["train"]))
    corpus["train"] = corpus["train"].take(documents)
    tokenizer = train_tokenizer(corpus["train"]["text"], args.vocab_size, max_length=args.length)
    args.vocab_size = len(tokenizer)  # a small corpus has fewer tokens than asked for, a large alphabet more
    settings = {name: vars(args)[name] for name in SETTINGS}
    settings["threads"] = torch.get_num_threads()
    results = {"settings": settings}
    for name in args.parts:
        results[name] = PARTS[name](args, corpus, tokenizer)
    print_results(results)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)


SETTINGS = ("vocab_size", "width", "layers", "texts", "length", "device", "dtype", "documents", "steps", "repeats")


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = shape_parser(__doc__)
    parser.add_argument("--train_file", nargs="+", help="texts, as for run_pretraining.py")
    parser.add_argument("--documents", type=int, default=10_000, help="number of documents of the corpus to use")
    parser.add_argument("--steps", type=int, default=20, help="least number of batches of the parts padding and loop")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    return parser.parse_args()


def default_files() -> list[str] | None:
    """The short articles of Wikipedia, where there are shared data."""
    data = os.environ.get("TEXT_JEPA_DATA")
    return [str(Path(data, "pretrain", "wikipedia_short", "train.parquet"))] if data else None


# ---- tokenization ---------------------------------------------------------------------------------------------------


def tokenization(args: argparse.Namespace, corpus: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> Figures:
    """Documents and tokens per second of each way to tokenize."""
    part = DatasetDict(train=corpus["train"])
    texts = list(part["train"]["text"])
    bare = tokenizer.backend_tokenizer
    plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    arms = {
        "tokenize_texts": lambda: tokenize_texts(part, tokenizer, args.length, overwrite_cache=True),
        "tokenize_texts, cached": lambda: tokenize_texts(part, tokenizer, args.length),
        "tokenizer(texts)": lambda: tokenizer(texts, verbose=False, **plain),
        "encode_batch_fast": lambda: bare.encode_batch_fast(texts, add_special_tokens=False),
    }
    seconds = time_in_turn(arms, args.repeats, args.device)
    middle = medians(seconds)
    encodings = bare.encode_batch_fast(texts, add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encodings)
    return {
        "documents_per_second": {name: len(texts) / middle[name] for name in arms},
        "tokens_per_second": {name: tokens / middle[name] for name in arms},
        "ratio_to_bare": {name: middle["encode_batch_fast"] / middle[name] for name in arms},
        "seconds": seconds,
    }


# ---- collator -------------------------------------------------------------------------------------------------------


def collator(args: argparse.Namespace, corpus: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> Figures:
    """Seconds per batch of both collators, and their share of a step on the batch."""
    examples = list(examples_of(args, corpus, tokenizer, args.texts))
    lists = [{"input_ids": example["input_ids"].tolist()} for example in examples]
    ours = DataCollatorForTextJepa(tokenizer)
    theirs = DataCollatorForLanguageModeling(tokenizer)
    step = TextJepaStep(TextJepaConfig(text_config=bert_config(args)), ours(examples), args)
    arms = {
        "text_jepa": lambda: ours(examples),
        "masked_lm": lambda: theirs(lists),
        "step": step,
    }
    seconds = time_in_turn(arms, args.repeats, args.device)
    middle = medians(seconds)
    return {
        "seconds_per_batch": middle,
        "ratio_to_masked_lm": middle["text_jepa"] / middle["masked_lm"],
        "share_of_step": {name: middle[name] / middle["step"] for name in ("text_jepa", "masked_lm")},
        "seconds": seconds,
    }


# ---- padding --------------------------------------------------------------------------------------------------------


def padding(args: argparse.Namespace, corpus: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> Figures:
    """Filled slots and useful tokens per second, for several orders of the texts and for full-length texts.

    All orders have the same texts and the same number of batches; the full-length texts hold the same tokens. There
    are enough texts for a whole pool of the sampler, because batches of a part of it are padded more than in a run.
    """
    rows = args.texts * max(args.steps, POOL)
    texts = [example["input_ids"] for example in examples_of(args, corpus, tokenizer, rows)]
    lengths = np.array([len(text) for text in texts])
    shuffled = np.random.default_rng(0).permutation(len(texts))
    count = math.ceil(len(texts) / args.texts)
    plain = DataCollatorForTextJepa(tokenizer)
    to_limit = DataCollatorForTextJepa(tokenizer, pad_to_multiple_of=args.length)

    def batches(order: Sequence[int], collate: Callable[..., Batch]) -> list[Batch]:
        found = []
        for start in range(0, len(texts), args.texts):
            rows = order[start : start + args.texts]
            found.append(collate([{"input_ids": texts[row]} for row in rows]))
        return found

    full = []
    for part in np.array_split(full_length(texts, args.length), count):
        if len(part):
            full.append(plain([{"input_ids": text} for text in part]))
    arms = {
        "pad to the limit": batches(shuffled, to_limit),
        "random order": batches(shuffled, plain),
        "length-grouped": batches(list(LengthGroupedSampler(lengths, args.texts)), plain),
        "full length": full,
    }
    step = TextJepaStep(TextJepaConfig(text_config=bert_config(args)), full[0], args)
    seconds = time_in_turn({name: over(step, found) for name, found in arms.items()}, args.repeats, args.device)
    middle = medians(seconds)
    tokens = {name: tokens_in(found) for name, found in arms.items()}
    speed = {name: tokens[name] / middle[name] for name in arms}
    slots = {name: slots_in(found) for name, found in arms.items()}
    return {
        "slots_filled": {name: tokens[name] / slots[name] for name in arms},
        "useful_tokens_per_second": speed,
        "ratio_to_full_length": {name: speed[name] / speed["full length"] for name in arms},
        "mean_length": float(lengths.mean()),
        "seconds": seconds,
    }


def examples_of(
    args: argparse.Namespace,
    corpus: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> Dataset:
    """At most `count` random examples of the corpus."""
    examples = tokenize_texts(corpus, tokenizer, args.length)["train"].shuffle(seed=0)
    return examples.take(min(count, len(examples)))


def tokens_in(batches: Sequence[Batch]) -> int:
    """Number of tokens, without padding."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def slots_in(batches: Sequence[Batch]) -> int:
    """Number of tokens, padding included."""
    return sum(batch["attention_mask"].numel() for batch in batches)


def full_length(texts: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Joins the tokens of all texts and cuts them into texts of one length; the remainder is dropped."""
    joined = np.concatenate(texts)
    return joined[: len(joined) // length * length].reshape(-1, length)


def over(step: TextJepaStep, batches: Sequence[Batch]) -> Callable[[], None]:
    """A function that makes a step on each batch."""

    def run() -> None:
        for batch in batches:
            step.take(batch)
            step()

    return run


# ---- loop -----------------------------------------------------------------------------------------------------------


def loop(args: argparse.Namespace, corpus: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> Figures:
    """Seconds of the same steps by the Trainer and bare; its first and last steps, which always log, do not count."""
    examples = tokenize_texts(corpus, tokenizer, args.length)
    held_out = examples["validation"].take(min(64, len(examples["validation"])))
    steps = max(args.steps, TextJepaTrainingArguments.logging_steps)  # a log and the collapse monitor are among them
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):

        def make_trainer() -> TextJepaTrainer:
            settings = TextJepaTrainingArguments(
                folder,
                max_steps=steps + 2,
                per_device_train_batch_size=args.texts,
                save_strategy="no",
                report_to="none",
                use_cpu=args.device == "cpu",
                bf16=args.dtype == "bfloat16",
                torch_compile=args.compile,
            )
            model = TextJepaForPreTraining(TextJepaConfig(text_config=bert_config(args)))
            collate = DataCollatorForTextJepa(tokenizer)
            return TextJepaTrainer(model, settings, collate, examples["train"], held_out, processing_class=tokenizer)

        batches = list(islice(make_trainer().get_train_dataloader(), 1, steps + 1))
        step = TextJepaStep(TextJepaConfig(text_config=bert_config(args)), batches[0], args)
        if args.compile:
            step.compile()

        def trained() -> float:
            clock = Clock(args.device)
            trainer = make_trainer()
            trainer.add_callback(clock)
            trainer.train()
            return clock.times[len(batches)] - clock.times[0]

        bare = partial(seconds_of, over(step, batches), args.device)
        seconds = measure_in_turn({"bare step": bare, "trainer": trained}, args.repeats)
    middle = medians(seconds)
    return {
        "tokens_per_second": {name: tokens_in(batches) / middle[name] for name in seconds},
        "ratio_to_bare_step": middle["bare step"] / middle["trainer"],
        "seconds": seconds,
    }


class Clock(TrainerCallback):
    """Records when each step ends."""

    def __init__(self, device: str):
        self.device = device
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(now(self.device))


# ---- start-up -------------------------------------------------------------------------------------------------------


def startup(args: argparse.Namespace, corpus: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> Figures:
    """Seconds to import what transformers does not import itself, and from the launch to the log of the first step.

    Each is measured in a process of its own. The first round, which is not counted, fills the cache of the corpus.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(Path(folder, "tokenizer"))
        measures = {
            "transformers": lambda: seconds_to_run("from transformers import PreTrainedModel"),
            "text_jepa": lambda: seconds_to_run("from text_jepa import TextJepaModel"),
            "launch to first step": lambda: seconds_to_first_step(args, folder),
        }
        seconds = measure_in_turn(measures, args.repeats)
    middle = medians(seconds)
    return {
        "import_beyond_transformers": middle["text_jepa"] - middle["transformers"],
        "launch_to_first_step": middle["launch to first step"],
        "seconds": seconds,
    }


def seconds_to_run(line: str) -> float:
    """Seconds that a line of Python takes in a new process, without the start of the interpreter."""
    code = f"import time; started = time.perf_counter(); {line}; print(time.perf_counter() - started)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    return float(run.stdout)


def seconds_to_first_step(args: argparse.Namespace, folder: str) -> float:
    """Seconds from the launch of a pretraining run to the log of its first step."""
    flags = {
        "tokenizer_name": f"{folder}/tokenizer",
        "output_dir": tempfile.mkdtemp(dir=folder),
        "max_length": args.length,
        "per_device_train_batch_size": args.texts,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "max_eval_samples": 8,
        "max_train_samples": args.documents,
        "use_cpu": args.device == "cpu",
    }
    command = [sys.executable, "run_pretraining.py"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    files = args.train_file or default_files()
    if files:
        command += ["--train_file", *map(os.path.abspath, files)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, **quiet) as run:
        next(line for line in run.stdout if line.startswith("step "))
        seconds = time.perf_counter() - started
        run.stdout.read()  # evaluation and export, to the end
    return seconds


# ---- output ---------------------------------------------------------------------------------------------------------


PARTS = {
    "tokenization": tokenization,
    "collator": collator,
    "padding": padding,
    "loop": loop,
    "startup": startup,
}


def print_results(results: Mapping[str, Any]) -> None:
    """Prints a table per part, with a row per arm, and the figures that are not by arm."""
    parts = dict(results)
    settings = parts.pop("settings")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    for part, found in parts.items():
        figures = {name: value for name, value in found.items() if name != "seconds"}
        columns = {name: value for name, value in figures.items() if isinstance(value, dict)}
        print(f"\n{part}\n")
        if columns:
            print(f"| | {' | '.join(columns)} |")
            print("|---" * (1 + len(columns)) + "|")
        for arm in dict.fromkeys(arm for column in columns.values() for arm in column):
            cells = [shown(column.get(arm)) for column in columns.values()]
            print(f"| {arm} | {' | '.join(cells)} |")
        for name, value in figures.items():
            if name not in columns:
                print(f"{name}: {shown(value)}")


def shown(value: float | None) -> str:
    """A cell of a table."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
