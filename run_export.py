"""Brings a trained encoder into the form that others take: a plain checkpoint, sentence-transformers, ONNX, the Hub.

    text-jepa-export encoder runs/notes/checkpoint-500 exported             # an ordinary checkpoint, with its card
    text-jepa-export encoder runs/notes/pretraining exported --which context
    text-jepa-export sentence-transformers runs/notes exported --prompts query="query: "
    text-jepa-export onnx runs/notes --int8 --check glue/stsb/validation.parquet
    text-jepa-export push runs/notes you/notes --private

The source is what a run has left (the run's folder, its `pretraining/` or one of its checkpoints), or for onnx and
sentence-transformers any encoder, by folder or name on the Hub.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import transformers
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa import export, hub
from text_jepa.arguments import UsageError, command_parser, run_command
from text_jepa.features import embed_texts
from text_jepa.model_card import read_facts, write_model_card
from text_jepa.probing import sts_scores
from text_jepa.tasks import load_task_file
from text_jepa.training import metrics_of, write_metrics


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = make_parser().parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    args.function(args)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser, one sub-command for each form."""
    parser, commands = command_parser("text-jepa-export", __doc__, "FORM")

    def command(name, function, help):
        one = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        one.set_defaults(function=function)
        one.add_argument("source", help="Folder that a run has left, its pretraining/ or a checkpoint-N.")
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
    push = command("push", push_to_hub, "Uploads a finished folder to the Hub in one commit, and nothing else in it.")
    push.add_argument("name", help="owner/name on the Hub.")
    push.add_argument("--private", action="store_true", default=None, help="If the repository is new.")
    push.add_argument("--revision", help="Branch. Default: main.")
    return parser


def console():
    """Entry point of `text-jepa-export`."""
    run_command(main)


# ---- forms ----------------------------------------------------------------------------------------------------------


def write_encoder(args):
    """The sub-command `encoder`."""
    output_dir = new_folder(args.output_dir)
    model, tokenizer = export.load_trained(args.source)
    if not isinstance(model, TextJepaForPreTraining):
        raise UsageError(f"{args.source} is a plain encoder already; name pretraining/ or a checkpoint of a run")
    write_plain(model, tokenizer, args, output_dir)
    print(f"The encoder is in {output_dir}")


def write_sentence_transformer(args):
    """The sub-command `sentence-transformers`."""
    output_dir = new_folder(args.output_dir)
    prompts = dict(map(read_prompt, args.prompts))
    model, tokenizer = export.load_trained(args.source)
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
    model, tokenizer = export.load_trained(args.source)
    pooling = "mean"
    if isinstance(model, TextJepaForPreTraining):
        pooling = export.sentence_pooling(model.config)
        model = export.trained_encoder(model, args.which or "target")
    elif args.which:
        raise UsageError(f"--which: {args.source} holds one encoder; name pretraining/ or a checkpoint of a run")
    difference = export.export_onnx(model, paths[0])
    print(f"{paths[0]}: {size(paths[0])}, largest difference from PyTorch {difference:.1e}")
    if args.int8:
        export.quantize_onnx(*paths)
        print(f"{paths[1]}: {size(paths[1])}")
    if task:
        print_scores([task.train, task.test], model, tokenizer, paths, pooling)


def push_to_hub(args):
    """The sub-command `push`."""
    print(f"It is published: {hub.push_folder(args.source, args.name, args.private, args.revision)}")


# ---- parts ----------------------------------------------------------------------------------------------------------


def write_plain(model, tokenizer, args, output_dir):
    """An encoder of a pretraining model with everything that a run leaves beside it."""
    which, source = args.which or "target", Path(args.source)
    facts = read_facts(source)
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
    write_model_card(output_dir, model, metrics_of(output_dir), facts, which)


def print_scores(splits, model, tokenizer, paths, pooling):
    """Spearman correlations of cosines with the gold scores of all rows, by PyTorch and by each ONNX file."""
    max_length = min(tokenizer.model_max_length, 512)
    u, v = ([text for split in splits for text in getattr(split, side)] for side in ("texts", "pairs"))
    labels, both, half = np.concatenate([split.labels for split in splits]), [*u, *v], len(u)
    systems = {"PyTorch": embed_texts(model, tokenizer, both, max_length, pooling=pooling)}
    for path in paths:
        systems[path.name] = export.embed_with_onnx(path, tokenizer, both, max_length, pooling)
    for name, vectors in systems.items():
        scores = sts_scores(vectors[:half], vectors[half:], labels)
        print(
            f"{name:<16} Spearman {scores['raw_spearmanr']:.3f} raw, {scores['centred_spearmanr']:.3f} centred "
            f"({half:,} pairs)"
        )


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


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    console()
