"""Brings a trained encoder into the form that others take: a plain checkpoint, sentence-transformers, ONNX, the Hub.

    text-jepa export encoder runs/notes/checkpoint-500 exported             # an ordinary checkpoint, with its card
    text-jepa export encoder runs/notes/pretraining exported --which context
    text-jepa export sentence-transformers runs/notes exported --prompts query="query: "
    text-jepa export onnx runs/notes --int8 --check glue/stsb/validation.parquet
    text-jepa export weights runs/notes recounted --texts questions.txt     # weights of words, counted on other texts
    text-jepa export merge runs/start runs/notes merged --texts held_out.txt
    text-jepa export push runs/notes you/notes --private

The source is what a run has left (the run's folder, its `pretraining/` or one of its checkpoints), or for onnx,
sentence-transformers and the start of a merge any encoder, by folder or name on the Hub. For weights and the end of a
merge it is a folder with an encoder of any origin.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import transformers
from transformers import AutoConfig, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa import embeddings
from text_jepa.cli import UsageError, command_parser
from text_jepa.data.corpus import load_texts
from text_jepa.embeddings import Encoder, embed_texts, encoder_inside, open_encoder
from text_jepa.probe import documents
from text_jepa.probe.predictors import sts_scores
from text_jepa.probe.tasks import load_task_file
from text_jepa.share import export, hub, merging, onnx
from text_jepa.share.model_card import read_card_info, note_change, write_model_card
from text_jepa.train.run_log import read_metrics, write_metrics


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = make_parser().parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    args.function(args)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser, one sub-command for each form."""
    parser, commands = command_parser("text-jepa export", __doc__, "FORM")

    def command(name, function, help, source="Folder that a run has left, its pretraining/ or a checkpoint-N."):
        one = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        one.set_defaults(function=function)
        one.add_argument("source", help=source)
        return one

    encoder = command("encoder", write_encoder, "The encoder as an ordinary checkpoint with its card.")
    sentence = command("sentence-transformers", write_sentence_transformer, "Written by that library, with prompts.")
    for one in (encoder, sentence):
        one.add_argument("output_dir", help="New folder.")
        one.add_argument("--max_length", type=_positive, help="Longest text in tokens. Default: as in training.")
    sentence.add_argument(
        "--prompts", nargs="+", default=[], metavar="NAME=TEXT", help="Put before texts of this kind: query='query: '."
    )
    onnx = command("onnx", write_onnx, "ONNX, checked against PyTorch: onnx/model.onnx in the folder.")
    onnx.add_argument("output_dir", nargs="?", help="Folder to write onnx/ into. Default: the source.")
    onnx.add_argument("--int8", action="store_true", help="Also onnx/model_int8.onnx with quantised matrices.")
    onnx.add_argument(
        "--check", metavar="FILE", help="Pairs with a score (sentence1, sentence2, label) to measure the forms on."
    )
    for one in (encoder, sentence, onnx):
        one.add_argument("--which", choices=("target", "context"), help="Of a pretraining model. Default: target.")
    about = "A copy whose weights of words are counted on other texts."
    weights = command("weights", write_weights, about, "Folder of an encoder of any origin that pools by the mean.")
    weights.add_argument("output_dir", help="New folder.")
    weights.add_argument(
        "--texts", nargs="+", required=True, metavar="FILE", help="Files with one document per row, to count words on."
    )
    about = "A point between two encoders of one shape, such as before and after a run."
    merge = command("merge", write_merged, about, "The start: an encoder, by folder or name on the Hub.")
    merge.add_argument("end", help="The end: a folder; its tokenizer, weights of words and modules are kept.")
    merge.add_argument("output_dir", help="New folder.")
    merge.add_argument("--share", type=_share, help="Of the way from the first to the second. Default: 0.5.")
    merge.add_argument(
        "--texts",
        nargs="+",
        metavar="FILE",
        help="Held-out files with one document per row: the share with which passages find the rest of these best.",
    )
    for one in (weights, merge):
        one.add_argument("--text_column", default="text", metavar="NAME", help="Column of the texts. Default: text.")
    push = command("push", push_to_hub, "Uploads a finished folder to the Hub in one commit, and nothing else in it.")
    push.add_argument("name", help="owner/name on the Hub.")
    push.add_argument("--private", action="store_true", default=None, help="If the repository is new.")
    push.add_argument("--revision", help="Branch. Default: main.")
    return parser


def write_encoder(args):
    """The sub-command `encoder`."""
    output_dir = new_folder(args.output_dir)
    model, tokenizer = embeddings.load_trained(args.source)
    if not isinstance(model, TextJepaForPreTraining):
        raise UsageError(f"{args.source} is a plain encoder already; name pretraining/ or a checkpoint of a run")
    write_plain(model, tokenizer, args, output_dir)
    print(f"The encoder is in {output_dir}")


def write_sentence_transformer(args):
    """The sub-command `sentence-transformers`."""
    output_dir = new_folder(args.output_dir)
    prompts = dict(map(read_prompt, args.prompts))
    model, tokenizer = embeddings.load_trained(args.source)
    with tempfile.TemporaryDirectory() as folder:
        plain = args.source
        if isinstance(model, TextJepaForPreTraining):
            plain = Path(folder, output_dir.name)
            write_plain(model, tokenizer, args, plain)
        elif args.which:
            raise UsageError(f"--which: {args.source} holds one encoder; name pretraining/ or a checkpoint of a run")
        export.export_sentence_transformer(plain, output_dir, args.max_length, prompts)
        for name in ("README.md", "curves.png", "metrics.jsonl"):
            if Path(plain, name).is_file():
                shutil.copy(Path(plain, name), output_dir / name)
    print(f"The encoder is in {output_dir}")


def write_onnx(args):
    """The sub-command `onnx`."""
    if args.output_dir is None and not Path(args.source).is_dir():
        raise UsageError(f"{args.source} is no folder to write onnx/ into; name one behind it")
    folder = Path(args.output_dir or args.source, "onnx")
    paths = [folder / "model.onnx", *([folder / "model_int8.onnx"] if args.int8 else [])]
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} is there already; remove it, or name another folder")
    columns = {"text_column": "sentence1", "pair_column": "sentence2", "kind": "regression"}
    task = load_task_file(args.check, **columns) if args.check else None
    model, tokenizer = embeddings.load_trained(args.source)
    if isinstance(model, TextJepaForPreTraining):
        max_length = min(tokenizer.model_max_length, 512)
        encoder = encoder_inside(model, tokenizer, max_length, args.which or "target")
    elif args.which:
        raise UsageError(f"--which: {args.source} holds one encoder; name pretraining/ or a checkpoint of a run")
    else:
        encoder = open_encoder(args.source)
    difference = onnx.export_onnx(encoder.model, paths[0])
    print(f"{paths[0]}: {size(paths[0])}, largest difference from PyTorch {difference:.1e}")
    if args.int8:
        onnx.quantize_onnx(*paths)
        print(f"{paths[1]}: {size(paths[1])}")
    if task:
        print_scores([task.train, task.test], encoder, paths)


def write_weights(args):
    """The sub-command `weights`."""
    output_dir = new_folder(args.output_dir)
    encoder = open_folder(args.source)
    texts = load_texts(args.texts, "texts", args.text_column)
    recount = merging.recount_word_weights(encoder, output_dir, documents_of(texts))
    files = ", ".join(Path(name).name for name in args.texts)
    change = f"The weights of words of {args.source} were counted anew on {recount.texts:,} texts ({files})"
    note_change(output_dir, f"{change} by `text-jepa export weights`")
    how = f"Counted {recount.texts:,} texts"
    if recount.blended:
        how += f", fewer than {merging.TEXTS_TO_TRUST:,}: half of the log-frequencies are still those of before"
    print(f"{how}. The encoder is in {output_dir}")


def write_merged(args):
    """The sub-command `merge`."""
    if args.share is not None and args.texts:
        raise UsageError("--share and --texts exclude each other: the share is either given or chosen on texts")
    output_dir = new_folder(args.output_dir)
    start = open_encoder(args.source)
    end = open_folder(args.end)
    merging.check_mergeable(start, end)
    first = merging.weights_of_vectors(start.model)
    last = merging.weights_of_vectors(end.model)
    share = 0.5 if args.share is None else args.share
    if args.texts:
        texts = load_texts(args.texts, "texts", args.text_column)
        score = documents.score_on_documents(end, list(documents_of(texts)))
        share, scores = merging.choose_share(first, last, score)
        print_shares(scores, share)
    merging.save_merged(end, merging.interpolate(first, last, share), output_dir)
    way = f"{share:g} of the way from {args.source} to {args.end}"
    note_change(output_dir, f"The weights are {way}, by `text-jepa export merge`")
    print(f"The encoder is in {output_dir}: {way}")


def push_to_hub(args):
    """The sub-command `push`."""
    print(f"It is published: {hub.push_folder(args.source, args.name, args.private, args.revision)}")


def write_plain(model, tokenizer, args, output_dir):
    """An encoder of a pretraining model with everything that a run leaves beside it."""
    which, source = args.which or "target", Path(args.source)
    facts = read_card_info(source)
    max_length = args.max_length or (facts and facts["max_length"]) or tokenizer.model_max_length
    limit = model.config.max_text_length
    if limit is not None and max_length > limit:
        raise UsageError(f"--max_length {max_length}: the encoder has positions for {limit} tokens only")
    export.export_encoder(model, tokenizer, output_dir, max_length, which)
    if facts is None:
        print(f"no card: {source} does not say how it was trained (card.json)", file=sys.stderr)
        return
    if (source / TRAINER_STATE_NAME).is_file():  # a checkpoint
        records = TrainerState.load_from_json(str(source / TRAINER_STATE_NAME)).log_history
        write_metrics(output_dir, records)
    else:
        shutil.copy(source / "metrics.jsonl", output_dir)
    facts = {**facts, "max_length": max_length}
    write_model_card(output_dir, model, read_metrics(output_dir), facts, which)


def print_scores(splits, encoder, paths):
    """Spearman correlations of cosines with the gold scores of all rows, by PyTorch and by each ONNX file."""
    u, v = ([text for split in splits for text in getattr(split, side)] for side in ("texts", "pairs"))
    labels, both, half = np.concatenate([split.labels for split in splits]), [*u, *v], len(u)
    systems = {"PyTorch": embed_texts(encoder, both)}
    for path in paths:
        systems[path.name] = embed_texts(replace(encoder, model=onnx.OnnxEncoder(path)), both)
    for name, vectors in systems.items():
        scores = sts_scores(vectors[:half], vectors[half:], labels)
        print(
            f"{name:<16} Spearman {scores['raw_spearmanr']:.3f} raw, {scores['centred_spearmanr']:.3f} centred "
            f"({half:,} pairs)"
        )


def print_shares(scores, best):
    """A line for each share of the way that was tried, with a mark at the one that is kept."""
    print("share     MRR   a passage finds the rest of its document")
    for share, score in scores.items():
        mark = "   <- kept" if share == best else ""
        print(f"{share:<5g} {score:>7.2f}{mark}")


def open_folder(source) -> Encoder:
    """The encoder in a folder that is going to be copied."""
    if not Path(source).is_dir():
        raise UsageError(f"{source}: no such folder; `hf download NAME --local-dir FOLDER` makes one")
    encoder = open_encoder(source)
    if AutoConfig.from_pretrained(source, trust_remote_code=False).model_type == "text_jepa":
        raise UsageError(f"{source} holds a pretraining model; `text-jepa export encoder` makes an encoder of it")
    return encoder


def documents_of(texts) -> Iterator[str]:
    """The texts of a corpus that are not blank."""
    for batch in texts.iter(1_000):
        for text in batch["text"]:
            if text and text.strip():
                yield text


def new_folder(name) -> Path:
    """The folder to write to, which holds nothing yet."""
    folder = Path(name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; name a new folder")
    return folder


def read_prompt(text) -> tuple[str, str]:
    """Name and text of `NAME=TEXT`."""
    name, equals, prompt = text.partition("=")
    if not (name and equals and prompt):
        raise UsageError(f"--prompts {text}: expected NAME=TEXT, such as query='query: '")
    return name, prompt


def size(path) -> str:
    """Of a file and the weights beside it."""
    data = Path(f"{path}.data")
    return f"{(path.stat().st_size + (data.stat().st_size if data.exists() else 0)) / 1e6:.1f} MB"


def _share(text):
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return share


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)
