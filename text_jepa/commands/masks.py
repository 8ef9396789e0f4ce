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
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import DataLoader

from text_jepa.cli import UsageError, parse_arguments
from text_jepa.data.batching import LengthGroupedSampler, TextsWithSteps
from text_jepa.data.tokenization import DocumentCount
from text_jepa.show import mask_gallery
from text_jepa.train.arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
    describe_data,
)
from text_jepa.train.build import (
    make_collator,
    make_examples,
    make_stream,
    objective_of,
    set_dependent_defaults,
    windows_of,
)
from text_jepa.train.checks import set_up_logging


@dataclass
class GalleryArguments:
    """What to show."""

    texts: int = field(default=4, metadata={"help": "Show so many texts of the batch."})
    step: int = field(default=0, metadata={"help": "Of this step, in a run of one process."})
    html: str | None = field(default=None, metadata={"help": "Also write a page that needs no other file."})

    def __post_init__(self):
        for name, least in (("texts", 1), ("step", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


def main(argv: list[str] | None = None, prog: str = "text-jepa masks") -> None:
    """Runs the command."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (GalleryArguments, ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    # Its own flags only: `text-jepa pretrain --help` lists the hundreds of others.
    groups = parse_arguments(classes, argv, __doc__, prog, shown_classes=(GalleryArguments,))
    show, model_args, data_args, objective_args, args = groups
    set_up_logging(args)
    if show.html:
        check_page(Path(show.html))
    objective = objective_of(model_args, objective_args)
    set_dependent_defaults(data_args, objective)
    tokenizer, _, _, examples = make_examples(model_args, data_args, args, DocumentCount())
    # How long the encoder's texts may be decides on padding only, which is not shown.
    collator = make_collator(data_args, args, tokenizer, limit=None)
    train = examples["train"] if data_args.streaming else windows_of(examples["train"], data_args, tokenizer)
    batch = batch_of_step(train, collator, data_args, args, show.step)

    texts = mask_gallery.read_batch(batch, tokenizer, collator.strategy_names, show.texts)
    files = [Path(word).name for word in itertools.takewhile(lambda word: not word.startswith("-"), argv)]
    title = f"What {' with '.join(files) or 'the run'} asks"
    question = mask_gallery.describe_question(objective, data_args.view is not None)
    facts = [
        f"Masks: {collator.masks_in_words()}",
        f"{len(texts)} of the {len(batch['input_ids'])} texts of step {show.step:,}, from {describe_data(data_args)}.",
    ]
    if show.html:
        write_page(Path(show.html), mask_gallery.to_html(texts, title, question, facts))
        facts.append(f"The same as a page: {show.html}")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = min(shutil.get_terminal_size().columns, 100)
    show_text(mask_gallery.to_terminal(texts, title, [question, *facts], colour, width))


def batch_of_step(train, collator, data_args, args, step: int) -> dict:
    """The first batch of a step, as the trainer's loader gives it to a run of one process."""
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if data_args.streaming:
        stream = make_stream(train, data_args, args)
        loader = DataLoader(stream, size, collate_fn=collator, num_workers=args.dataloader_num_workers)
        return next(itertools.islice(loader, step * accumulated, None))
    seed = args.data_seed if args.data_seed is not None else args.seed
    texts_per_step = size * accumulated if collator.follows_steps else None
    sampler = LengthGroupedSampler(train["length"], size, seed, texts_per_step=texts_per_step)
    batches = len(sampler) // size if args.dataloader_drop_last else -(-len(sampler) // size)
    epoch, step = divmod(step, max(1, -(-batches // accumulated)))
    sampler.set_epoch(epoch)
    collator.epoch = epoch
    first = step * accumulated * size
    texts = TextsWithSteps(train)
    return collator([texts[key] for key in itertools.islice(sampler, first, first + size)])


def check_page(path):
    """Raises UsageError, before the work, if the page would overwrite something or has no folder."""
    if path.exists():
        raise UsageError(f"--html {path}: is there already; remove it, or name another file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--html {path}: there is no folder {path.parent}; make it, or name another")


def write_page(path, page):
    """Writes it, or says why it cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {path}: cannot be written ({error.strerror}); name another file") from error


def show_text(text):
    """Prints it, also into a pipe whose reader has seen enough."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
