"""Shows what a pretraining run hides: real texts with their spans coloured, in the terminal and as a page.

    text-jepa masks configs/t-jepa-ul2.yaml --train_file notes/*.txt
    text-jepa masks configs/default.yaml --texts 20 --html masks.html
    text-jepa masks --mask_ratio "{start: 0.15, end: 0.4, steps: 10000}" --step 5000

It takes the YAML files and flags of text-jepa pretrain and shows the batch that such a run would see: same tokenizer,
order, seed and collator. No model is built, and nothing is written but the page.
"""

import itertools
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from text_jepa.cli import HelpPage, UsageError, split_words
from text_jepa.data.batching import DocumentWindows, EndlessStream, LengthGroupedSampler, TextsWithSteps
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.show import mask_gallery
from text_jepa.train.arguments import TextJepaTrainingArguments
from text_jepa.train.build import (
    add_words_to,
    make_collator,
    make_corpus,
    make_examples,
    make_stream,
    make_tokenizer,
    make_windows,
    objective_of,
    set_dependent_defaults,
)
from text_jepa.train.command import PAGE as RUN_PAGE
from text_jepa.train.command import parse_run
from text_jepa.train.pretraining import set_up_logging


@dataclass
class GalleryArguments:
    """What to show."""

    texts: int = field(default=4, metadata={"help": "Number of texts of the batch to show."})
    step: int = field(
        default=0, metadata={"help": "Optimizer step whose first batch is shown, in a run of one process."}
    )
    html: str | None = field(default=None, metadata={"help": "Also write an HTML page, which needs no other file."})

    def __post_init__(self):
        if self.texts < 1:
            raise ValueError(f"--texts must be at least 1, got {self.texts}")
        if self.step < 0:
            raise ValueError(f"--step must be at least 0, got {self.step}")


# Its own flags only: `text-jepa pretrain --help-all` lists the hundreds of others.
PAGE = HelpPage(
    {"Flags, beside all those of text-jepa pretrain": [field.name for field in fields(GalleryArguments)]},
    words=RUN_PAGE.words,
)


def main(argv: list[str] | None = None, prog: str = "text-jepa masks") -> None:
    """Runs the command."""
    argv = sys.argv[1:] if argv is None else argv
    show, model_args, data_args, objective_args, args = parse_run(argv, prog, __doc__, PAGE, more=(GalleryArguments,))
    set_up_logging(args)
    if 0 < args.max_steps <= show.step:
        raise UsageError(f"--step {show.step}: the last step of the run is {args.max_steps - 1}; name an earlier one")
    if show.html:
        check_page(Path(show.html))
    objective = objective_of(model_args, objective_args)
    set_dependent_defaults(data_args, objective)
    corpus = make_corpus(model_args, data_args)
    tokenizer, _ = make_tokenizer(model_args, data_args, args, corpus)
    add_words_to(tokenizer, model_args)
    examples = make_examples(corpus, tokenizer, data_args)["train"]
    # The longest text of the encoder decides on padding only, which is not shown.
    collator = make_collator(data_args, args, tokenizer, max_text_length=None)
    if data_args.streaming:
        stream = make_stream(examples, corpus.source, data_args, args)
        batch = batch_of_stream(stream, collator, args, show.step)
    else:
        windows = make_windows(examples, data_args, tokenizer)
        batch = batch_of_step(windows, collator, args, show.step)

    texts = mask_gallery.read_batch(batch, tokenizer, collator.strategy_names, show.texts)
    title = f"What {name_of_run(argv)} asks"
    question = mask_gallery.describe_question(objective, data_args.view is not None)
    count = len(batch["input_ids"])
    notes = [
        f"Masks: {collator.describe_masks()}",
        f"{len(texts)} of the {count} texts of step {show.step:,}, from {corpus.name}.",
    ]
    if show.html:
        write_page(Path(show.html), mask_gallery.to_html(texts, title, question, notes))
        notes.append(f"The same as a page: {show.html}")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = min(shutil.get_terminal_size().columns, 100)
    print(mask_gallery.to_terminal(texts, title, [question, *notes], colour, width), end="")


def name_of_run(argv: Sequence[str]) -> str:
    """The YAML files of a command line, by name."""
    files = [Path(file).name for file in split_words(argv)[0]]
    return " with ".join(files) or "the run"


def batch_of_stream(
    stream: EndlessStream, collator: DataCollatorForTextJepa, args: TextJepaTrainingArguments, step: int
) -> dict[str, torch.Tensor]:
    """The first batch of a step of a stream, as the trainer's loader gives it to a run of one process."""
    loader = DataLoader(
        stream,
        args.per_device_train_batch_size,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
    )
    first_batch = step * args.gradient_accumulation_steps
    return next(itertools.islice(loader, first_batch, None))


def batch_of_step(
    examples: Dataset | DocumentWindows,
    collator: DataCollatorForTextJepa,
    args: TextJepaTrainingArguments,
    step: int,
) -> dict[str, torch.Tensor]:
    """The first batch of a step, as the trainer's loader gives it to a run of one process."""
    batch_size = args.per_device_train_batch_size
    texts_per_step = batch_size * args.gradient_accumulation_steps
    sampler = LengthGroupedSampler(
        examples["length"],
        texts_per_step,
        seed=args.seed if args.data_seed is None else args.data_seed,
        with_steps=collator.follows_steps,
        drop_last=args.dataloader_drop_last,
    )
    steps_per_epoch = -(-len(sampler) // texts_per_step)  # rounded up
    epoch, step_of_epoch = divmod(step, max(1, steps_per_epoch))
    sampler.set_epoch(epoch)
    collator.epoch = epoch
    first = step_of_epoch * texts_per_step
    keys = itertools.islice(sampler, first, first + batch_size)
    texts = TextsWithSteps(examples)
    return collator([texts[key] for key in keys])


def check_page(path: Path) -> None:
    """Raises UsageError, before the work, if the page would overwrite something or has no folder."""
    if path.exists():
        raise UsageError(f"--html {path}: exists already; remove it, or name another file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--html {path}: there is no folder {path.parent}; make it, or name another")


def write_page(path: Path, page: str) -> None:
    """Writes the page.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {path}: cannot be written ({error.strerror}); name another file") from error
