"""Writes a trained encoder in another form: a plain checkpoint, sentence-transformers, ONNX, the Hub.

    text-jepa export encoder runs/notes/checkpoint-1500 exported            # an ordinary checkpoint, with its card
    text-jepa export encoder runs/notes/pretraining exported --which context
    text-jepa export sentence-transformers runs/notes exported --prompts query="query: "
    text-jepa export sentence-transformers runs/notes exported --center notes/ --normalize
    text-jepa export onnx runs/notes --fp16 --int8 --texts notes/
    text-jepa export weights runs/notes recounted --texts questions.txt     # word weights counted on other texts
    text-jepa export merge runs/start runs/notes merged --texts held_out.txt
    text-jepa export push runs/notes you/notes --private

The source of `encoder` is a pretraining model: `pretraining/` or a checkpoint of a run. `sentence-transformers` and
`onnx` also take any encoder, by folder or name on the Hub, and so does the start of `merge`; `weights` and the end of
`merge` take the folder of any encoder. `push` takes a folder with weights and a card: a run, its `pretraining/` or an
export.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from datasets import Dataset
from transformers import AutoConfig, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError, add_command, command_parser, mute_libraries
from text_jepa.data.corpus import load_texts
from text_jepa.data.rows import Quoting
from text_jepa.encoders import embeddings
from text_jepa.encoders.embeddings import Encoder, cosine, embed_texts, open_encoder
from text_jepa.encoders.opening import readable, run_code_of
from text_jepa.encoders.sentence_head import (
    FirstFeatures,
    kept_head,
    read_head,
    read_json,
    settings_of_transformer,
)
from text_jepa.probe import documents
from text_jepa.probe.predictors import sts_scores
from text_jepa.probe.tasks import Split, load_task_file
from text_jepa.share import export, hub, merging, onnx
from text_jepa.share.model_card import note_change, public_name, read_card_info, rename_card, write_model_card
from text_jepa.train.run_log import metrics_file, read_metrics, write_metrics


def main(argv: list[str] | None = None, prog: str = "text-jepa export") -> None:
    """Runs the command."""
    args = make_parser(prog).parse_args(argv)
    mute_libraries()
    run_code_of(getattr(args, "allow_remote_code", None) or [])
    args.function(args)


def make_parser(prog: str = "text-jepa export") -> argparse.ArgumentParser:
    """Makes the command's parser, with one sub-command for each form."""
    parser, commands = command_parser(prog, __doc__, "FORMAT")
    _add_encoder(commands)
    _add_sentence_transformers(commands)
    _add_onnx(commands)
    _add_weights(commands)
    _add_merge(commands)
    _add_push(commands)
    return parser


# Texts whose mean vector is close enough to that of more, texts that are compared by cosine, and passages.
_TEXTS_OF_MEAN = 5_000
_TEXTS_OF_COSINES = 100
_PASSAGES = 300

_DOCUMENTS = (
    "A file of prose is one document, divided at sections and paragraphs where it is longer than 2,048 characters; "
    "a row of a table is one."
)
_PRETRAINED = "pretraining/ or a checkpoint-N of a run, or a name on the Hub of such a model."
_ANY = "Any encoder or pretraining model, by folder or name on the Hub."


def _add_encoder(commands) -> None:
    command = add_command(commands, "encoder", write_encoder, "An ordinary checkpoint with its card.")
    command.add_argument("source", help=_PRETRAINED)
    command.add_argument("output_dir", help="New folder.")
    _add_max_length(command)
    _add_which(command)
    _add_code(command)


def _add_sentence_transformers(commands) -> None:
    help = "A folder saved by sentence-transformers, with prompts."
    command = add_command(commands, "sentence-transformers", write_sentence_transformer, help)
    command.add_argument("source", help=_ANY)
    command.add_argument("output_dir", help="New folder.")
    _add_max_length(command)
    command.add_argument(
        "--prompts",
        nargs="+",
        default=[],
        metavar="NAME=TEXT",
        help="Prefixes by kind of text, such as query='query: '.",
    )
    help = "Files whose mean vector is subtracted from every vector."
    command.add_argument("--center", nargs="+", metavar="FILE", help=help)
    command.add_argument("--normalize", action="store_true", help="Give vectors unit length, at the end.")
    _add_which(command)
    _add_text_column(command)
    _add_code(command)


def _add_onnx(commands) -> None:
    help = "ONNX, checked against PyTorch: onnx/model.onnx in the folder."
    command = add_command(commands, "onnx", write_onnx, help)
    command.add_argument("source", help=_ANY)
    command.add_argument("output_dir", nargs="?", help="New folder. Default: the source, if a folder.")
    command.add_argument("--fp16", action="store_true", help="Also write onnx/model_fp16.onnx with 16-bit floats.")
    command.add_argument("--int8", action="store_true", help="Also write onnx/model_int8.onnx with 8-bit matrices.")
    command.add_argument(
        "--texts",
        nargs="+",
        metavar="FILE",
        help="Files with documents for comparing the ONNX files, by cosine similarity and by how often a passage "
        f"finds the rest of its document. {_DOCUMENTS}",
    )
    command.add_argument(
        "--check",
        metavar="FILE",
        help="Pairs with a score (sentence1, sentence2, label) to compare PyTorch and ONNX on.",
    )
    _add_which(command)
    _add_text_column(command)
    _add_code(command)


def _add_weights(commands) -> None:
    help = "A copy of an encoder with word weights counted on other texts."
    command = add_command(commands, "weights", write_weights, help)
    command.add_argument("source", help="Folder of an encoder of any origin with mean pooling.")
    command.add_argument("output_dir", help="New folder.")
    command.add_argument(
        "--texts",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"Files to count words in. {_DOCUMENTS}",
    )
    _add_text_column(command)
    _add_code(command)


def _add_merge(commands) -> None:
    help = "A weighted average of two encoders of the same shape, such as before and after a run."
    command = add_command(commands, "merge", write_merged, help)
    command.add_argument("source", help="The start: an encoder, by folder or name on the Hub.")
    command.add_argument(
        "end", help="The second encoder, a folder. The merged encoder keeps its tokenizer, word weights and modules."
    )
    command.add_argument("output_dir", help="New folder.")
    command.add_argument("--share", type=_share, help="Share of the way from start to end. Default: 0.5.")
    command.add_argument(
        "--texts",
        nargs="+",
        metavar="FILE",
        help="Held-out files for choosing the share: the smallest one whose retrieval score (passages finding the "
        f"rest of their document) is within one standard error of the best. {_DOCUMENTS}",
    )
    _add_text_column(command)
    _add_code(command)


def _add_push(commands) -> None:
    help = "Uploads the files of a finished encoder to the Hub in one commit, and no others."
    command = add_command(commands, "push", push_to_hub, help)
    help = "Folder of a run, its pretraining/ or an exported encoder. Export a checkpoint-N first: it has no card."
    command.add_argument("source", help=help)
    command.add_argument("name", help="owner/name on the Hub.")
    command.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    command.add_argument("--revision", help="Branch. Default: main.")


def _add_max_length(command: argparse.ArgumentParser) -> None:
    help = "Longest text in tokens. Default: that of the source."
    command.add_argument("--max_length", type=_positive, help=help)


def _add_code(command: argparse.ArgumentParser) -> None:
    help = "Encoders whose own Python code is run; read it first. Default: no code is run."
    command.add_argument("--allow_remote_code", nargs="+", metavar="NAME", help=help)


def _add_which(command: argparse.ArgumentParser) -> None:
    help = "Encoder of a pretraining model. Default: target."
    command.add_argument("--which", choices=("target", "context"), help=help)


def _add_text_column(command: argparse.ArgumentParser) -> None:
    help = "Column of the texts, a.b for a field within one; several are joined. Default: text."
    command.add_argument("--text_column", nargs="+", metavar="NAME", help=help)
    help = (
        "How to read quotes in csv and tsv files: as cell delimiters after a plausibility check (checked, the "
        "default), always as delimiters (standard), or as ordinary characters (none)."
    )
    command.add_argument("--quoting", choices=get_args(Quoting), help=help)


# ---- forms ----------------------------------------------------------------------------------------------------------


def write_encoder(args: argparse.Namespace) -> None:
    """Runs the sub-command `encoder`."""
    output_dir = new_folder(args.output_dir)
    model, tokenizer = embeddings.load_trained(args.source)
    if not isinstance(model, TextJepaForPreTraining):
        raise UsageError(f"{args.source} is a plain encoder already; name pretraining/ or a checkpoint of a run")
    with export.writing(output_dir), export.staged(output_dir) as staging:
        write_plain(model, tokenizer, args, staging, output_dir)
    print(f"The encoder is in {output_dir}")


def write_sentence_transformer(args: argparse.Namespace) -> None:
    """Runs the sub-command `sentence-transformers`."""
    check_reading(args, "center")
    output_dir = new_folder(args.output_dir)
    prompts = dict(read_prompt(prompt) for prompt in args.prompts)
    model, tokenizer = embeddings.load_trained(args.source)
    is_plain = not isinstance(model, TextJepaForPreTraining)
    with tempfile.TemporaryDirectory() as folder:
        if is_plain:
            check_no_which(args)
            if args.max_length is not None:
                embeddings.check_max_length(args.source, args.max_length, model, tokenizer)
            plain = args.source
        else:
            plain = Path(folder, output_dir.name)
            with export.writing(folder):
                write_plain(model, tokenizer, args, plain, output_dir)
        if args.normalize:
            check_whole_vectors(args.source, str(plain))
        center = None
        if args.center:
            center = mean_vector(open_encoder(str(plain), args.max_length), args)
        with export.writing(output_dir), export.staged(output_dir) as staging:
            export.export_sentence_transformer(plain, staging, args.max_length, prompts, center, args.normalize)
            for name in ("README.md", "curves.png", "metrics.jsonl"):
                file = Path(plain, name)
                if file.is_file():
                    shutil.copy(file, staging / name)
            if is_plain:
                rename_card(staging, output_dir)
            changes = describe_changes(args, prompts, is_plain)
            if changes:
                note_change(staging, f"Changed by `text-jepa export sentence-transformers`: {'; '.join(changes)}")
    print(f"The encoder is in {output_dir}")


def describe_changes(args: argparse.Namespace, prompts: Mapping[str, str], is_plain: bool) -> list[str]:
    """What the sub-command `sentence-transformers` changes of an encoder, for the card.

    Args:
        args: The arguments of the command.
        prompts: The prompts by name.
        is_plain: Whether the source is a plain encoder. Otherwise the card is new, and says where texts are cut.
    """
    changes = []
    if args.center:
        files = ", ".join(map(public_name, args.center))
        changes.append(f"the mean vector of texts ({files}) is subtracted")
    if args.normalize:
        changes.append("vectors have length 1")
    if prompts:
        changes.append(f"there are prompts ({', '.join(prompts)})")
    if args.max_length is not None and is_plain:
        changes.append(f"texts are cut at {args.max_length} tokens")
    return changes


def write_onnx(args: argparse.Namespace) -> None:
    """Runs the sub-command `onnx`."""
    if args.output_dir is None and not Path(args.source).is_dir():
        raise UsageError(f"{args.source} is not a folder to write onnx/ into; name an output folder after it")
    check_reading(args, "texts")
    source = Path(args.source)
    is_beside = args.output_dir is None or (source.is_dir() and Path(args.output_dir).resolve() == source.resolve())
    output_dir = source if is_beside else new_folder(args.output_dir)
    folder = output_dir / "onnx"
    full_path = folder / "model.onnx"
    paths = [full_path]
    if args.fp16:
        paths.append(folder / "model_fp16.onnx")
    if args.int8:
        paths.append(folder / "model_int8.onnx")
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists; remove it, or use another folder")
    task = None
    if args.check:
        task = load_task_file(
            args.check,
            text_column="sentence1",
            pair_column="sentence2",
            kind="regression",
        )
    texts = read_documents("texts", args) if args.texts else None
    with tempfile.TemporaryDirectory() as plain:
        with export.writing(plain):
            encoder = open_for_onnx(args, Path(plain), output_dir)
        with export.writing(output_dir):
            longest = embeddings.whole_length(encoder.name, encoder.model, encoder.tokenizer)
            difference = onnx.export_onnx(replace(encoder, max_length=longest), full_path)
            if not is_beside:
                copy_files_beside(encoder, output_dir)
            write_tokenizer(encoder.tokenizer, output_dir)
    print(f"{full_path}: {size(full_path)}, largest difference from PyTorch {difference:.1e}")
    for path in paths[1:]:
        make_smaller = onnx.halve_onnx if path.stem.endswith("fp16") else onnx.quantize_onnx
        with export.writing(output_dir):
            make_smaller(full_path, path)
    print_losses(encoder, paths, texts)
    if task:
        print_scores([task.train, task.test], encoder, paths)


def write_weights(args: argparse.Namespace) -> None:
    """Runs the sub-command `weights`."""
    output_dir = new_folder(args.output_dir)
    encoder = open_folder(args.source)
    texts = load_named_texts("texts", args)
    files = ", ".join(map(public_name, args.texts))
    with export.writing(output_dir), export.staged(output_dir) as staging:
        recount = merging.recount_word_weights(encoder, staging, documents_of(texts))
        change = f"The word weights of {public_name(args.source)} were counted again on {recount.texts:,} texts"
        note_change(staging, f"{change} ({files}) by `text-jepa export weights`")
    summary = f"Counted {recount.texts:,} texts"
    if recount.blended:
        summary += f", fewer than {merging.TEXTS_TO_TRUST:,}: the weights are the mean of the old and the new ones"
    print(f"{summary}. The encoder is in {output_dir}")
    tell_left_out(args.source, output_dir)


def write_merged(args: argparse.Namespace) -> None:
    """Runs the sub-command `merge`."""
    if args.share is not None and args.texts:
        raise UsageError("--share and --texts exclude each other; name one of them")
    check_reading(args, "texts")
    output_dir = new_folder(args.output_dir)
    start = open_encoder(args.source)
    end = open_folder(args.end)
    merging.check_mergeable(start, end)
    first = merging.weights_of_vectors(start.model)
    last = merging.weights_of_vectors(end.model)
    share = 0.5 if args.share is None else args.share
    if args.texts:
        texts = load_named_texts("texts", args)
        score = documents.score_on_documents(end, list(documents_of(texts)))
        share, scores = merging.choose_share(first, last, score)
        print_shares(scores, share)
    weights = merging.interpolate(first, last, share)
    way = f"{share:g} of the way from {args.source} to {args.end}"
    with export.writing(output_dir), export.staged(output_dir) as staging:
        merging.save_merged(end, weights, staging)
        shown = f"{share:g} of the way from {public_name(args.source)} to {public_name(args.end)}"
        note_change(staging, f"The weights are {shown}, by `text-jepa export merge`")
    print(f"The encoder is in {output_dir}: {way}")
    tell_left_out(args.end, output_dir)


def push_to_hub(args: argparse.Namespace) -> None:
    """Runs the sub-command `push`."""
    address = hub.push_folder(args.source, args.name, args.private, args.revision)
    print(f"Published: {address}")


# ---- parts of the forms ---------------------------------------------------------------------------------------------


def write_plain(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
    folder: Path,
    place: Path,
) -> None:
    """Writes an encoder of a pretraining model with the files that a run writes beside it: card, curves and log.

    Args:
        model: The pretraining model.
        tokenizer: Its tokenizer.
        args: The arguments of the command.
        folder: Folder to write to.
        place: The folder that the files end in, as the card names it.
    """
    which = args.which or "target"
    source = Path(args.source)
    card_info = read_card_info(source)
    max_length = getattr(args, "max_length", None)
    if not max_length and card_info is not None:
        max_length = card_info["max_length"]
    if not max_length:
        max_length = min(tokenizer.model_max_length, model.config.max_text_length or tokenizer.model_max_length)
    embeddings.check_max_length(args.source, max_length, model, tokenizer)
    records = [] if card_info is None else read_log(source)
    export.export_encoder(model, tokenizer, folder, max_length, which, kept_head(card_info))
    if card_info is None:
        print(f"no card: {source} has no card information (card.json)", file=sys.stderr)
        return
    write_metrics(folder, records)
    card_info = {**card_info, "max_length": max_length}
    write_model_card(folder, model, read_metrics(folder), card_info, which, place)


def read_log(source: Path) -> list[dict[str, Any]]:
    """The records of a checkpoint, or of the run that has left a complete model.

    Raises:
        UsageError: They are missing or damaged.
    """
    state = source / TRAINER_STATE_NAME
    if state.is_file():
        with readable(str(state), "not the state of a run; copy it again"):
            return TrainerState.load_from_json(str(state)).log_history
    log = metrics_file(source)
    with readable(str(log), "not the log of a run; copy it again"):
        return read_metrics(source)


def open_for_onnx(args: argparse.Namespace, plain: Path, place: Path) -> Encoder:
    """Opens the encoder to be exported: a plain one, or that of a pretraining model, once it is written to `plain`.

    Args:
        args: The arguments of the command.
        plain: An empty folder.
        place: The folder of the export, as the card names it.
    """
    model, tokenizer = embeddings.load_trained(args.source)
    if not isinstance(model, TextJepaForPreTraining):
        check_no_which(args)
        return open_encoder(args.source)
    write_plain(model, tokenizer, args, plain, place)
    return open_encoder(str(plain))


def check_no_which(args: argparse.Namespace) -> None:
    """Raises UsageError if `--which` is given for a plain encoder."""
    if args.which:
        raise UsageError(f"--which: {args.source} has only one encoder; name pretraining/ or a checkpoint of a run")


def check_whole_vectors(source: str, folder: str) -> None:
    """Raises UsageError if vectors are cut to their first features, after which their length is not 1.

    Args:
        source: The source of the export, for messages.
        folder: Folder or name on the Hub of its encoder.
    """
    settings = read_json(folder, "config_sentence_transformers.json") or {}
    size = settings.get("truncate_dim")
    if size is not None:
        raise UsageError(
            f"--normalize: {source} cuts vectors to {size} features at the end (truncate_dim in "
            "config_sentence_transformers.json), so their length would not be 1; leave --normalize out"
        )


def check_reading(args: argparse.Namespace, flag: str) -> None:
    """Raises UsageError if flags say how to read the files of another flag, which names none."""
    for name in ("text_column", "quoting"):
        if getattr(args, name) is not None and not getattr(args, flag):
            raise UsageError(f"--{name} goes with --{flag}; name files with --{flag}, or leave --{name} out")


def copy_files_beside(encoder: Encoder, folder: Path) -> None:
    """Writes tokenizer, configuration and modules, but no weights, beside ONNX files that lie in another folder."""
    source = Path(encoder.name)
    if source.is_dir():
        export.copy_encoder_files(source, folder, with_model=False)
        return
    encoder.tokenizer.save_pretrained(folder)
    encoder.model.config.save_pretrained(folder)
    settings = settings_of_transformer(encoder.name)
    if settings:
        content = json.dumps(settings, indent=2) + "\n"
        Path(folder, "sentence_bert_config.json").write_text(content, encoding="utf-8")
    head = read_head(encoder.name)
    if head.modules:
        export.write_head(head, folder, encoder.model.config.hidden_size)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `tokenizer.json`, which tokenizes texts without transformers, unless it is there or cannot be made."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.save(str(path))
    else:
        print(
            f"no tokenizer.json: {type(tokenizer).__name__} works only in transformers; tokenize texts with "
            f"AutoTokenizer.from_pretrained({str(folder)!r})",
            file=sys.stderr,
        )


def mean_vector(encoder: Encoder, args: argparse.Namespace) -> np.ndarray:
    """The mean vector (D,) of the texts of `--center`."""
    texts = read_documents("center", args)
    # It is subtracted by a module, and sentence-transformers cuts vectors to their first features after all modules.
    layers = tuple(layer for layer in encoder.layers_after if not isinstance(layer, FirstFeatures))
    encoder = replace(encoder, layers_after=layers)
    rows = np.linspace(0, len(texts) - 1, min(len(texts), _TEXTS_OF_MEAN)).astype(int)
    vectors = embed_texts(encoder, [texts[row] for row in rows])
    print(f"The mean vector of {len(rows):,} texts is subtracted")
    return vectors.mean(axis=0)


def load_named_texts(flag: str, args: argparse.Namespace) -> Dataset:
    """The texts of the files that a flag names."""
    columns = args.text_column or ["text"]
    return load_texts(getattr(args, flag), flag, columns, quoting=args.quoting or "checked")


def read_documents(flag: str, args: argparse.Namespace) -> list[str]:
    """The texts that are not blank of the files that a flag names.

    Raises:
        UsageError: There is none.
    """
    texts = list(documents_of(load_named_texts(flag, args)))
    if not texts:
        raise UsageError(f"{getattr(args, flag)[0]}: every text is blank; name files with text")
    return texts


def print_losses(encoder: Encoder, paths: Sequence[Path], texts: Sequence[str] | None) -> None:
    """Prints what the smaller files cost: cosines of their vectors with those of the first file, and their search.

    Without texts the cosines are those of random tokens, and there is no search.
    """
    if texts is None:
        batches = onnx.random_batches(encoder)
        basis = "sequences of random tokens; --texts compares on yours"
    else:
        batches = list(onnx.batches_of(encoder, texts[:_TEXTS_OF_COSINES]))
        basis = "texts"
    expected = onnx.run_onnx(paths[0], batches)
    for path in paths[1:]:
        cosines = cosine(onnx.run_onnx(path, batches), expected)
        print(
            f"{path}: {size(path)}, cosine similarity with {paths[0].name}: mean {cosines.mean():.4f}, minimum "
            f"{cosines.min():.4f} ({len(cosines):,} {basis})"
        )
    if texts is not None:
        print_search(encoder, paths, texts)


def print_search(encoder: Encoder, paths: Sequence[Path], texts: Sequence[str]) -> None:
    """Prints how often passages find the rest of their documents by each ONNX file."""
    systems = {}
    for path in paths:
        systems[path.name] = partial(onnx_vectors, encoder, path)
    found = documents.compare_on_documents(systems, texts, max_queries=_PASSAGES)
    scores = [score for score in found.scores if (score.task, score.metric) == (documents.REST, "r@10")]
    for score in scores[: len(paths)]:
        behind = ""
        if score.ahead is not None:
            behind = f", {0 - score.ahead:+.1f} [{0 - score.ahead_high:+.1f}, {0 - score.ahead_low:+.1f}]"
        print(f"{score.system:<16} finds the rest of the document, R@10 {score.score:.1f}{behind}")
    if not scores:
        print(f"The texts are too few for R@10: {found.notes[0]}")


def onnx_vectors(encoder: Encoder, path: Path, texts: Sequence[str]) -> np.ndarray:
    """Vectors (N, D) of texts, each cut at the encoder's length, by an ONNX file."""
    return onnx.run_onnx(path, onnx.batches_of(encoder, texts))


def print_scores(splits: Sequence[Split], encoder: Encoder, paths: Sequence[Path]) -> None:
    """Prints Spearman correlations of cosines with the gold scores, by PyTorch and by each ONNX file."""
    first_texts = []
    second_texts = []
    for split in splits:
        first_texts += split.texts
        second_texts += split.pairs
    labels = np.concatenate([split.labels for split in splits])
    encoders = {"PyTorch": encoder}
    for path in paths:
        encoders[path.name] = replace(encoder, model=onnx.OnnxEncoder(path))
    pairs = len(first_texts)
    for name, system in encoders.items():
        vectors = embed_texts(system, first_texts + second_texts)
        scores = sts_scores(vectors[:pairs], vectors[pairs:], labels)
        raw = scores["raw_spearmanr"]
        centred = scores["centred_spearmanr"]
        print(f"{name:<16} Spearman {raw:.3f} raw, {centred:.3f} centred ({pairs:,} pairs)")


def print_shares(scores: Mapping[float, float], best: float) -> None:
    """Prints a line for each share of the way that was tried, with a mark at the chosen one."""
    print("share     MRR   a passage finds the rest of its document")
    for share, score in scores.items():
        mark = "   <- kept" if share == best else ""
        print(f"{share:<5g} {score:>7.2f}{mark}")


def open_folder(source: str) -> Encoder:
    """Opens the encoder in a folder that will be copied."""
    if not Path(source).is_dir():
        raise UsageError(f"{source}: no such folder; `hf download NAME --local-dir FOLDER` makes one")
    encoder = open_encoder(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type == "text_jepa":
        raise UsageError(f"{source} holds a pretraining model; `text-jepa export encoder` makes an encoder of it")
    return encoder


def tell_left_out(source: str, output_dir: Path) -> None:
    """Says that the ONNX files of a folder are not in its changed copy, if there are any."""
    if any(Path(source).glob("onnx/*.onnx")):
        print(
            f"The ONNX files of {source} contain the old weights and were not copied; run `text-jepa export onnx "
            f"{output_dir}` to create them again"
        )


def documents_of(texts: Dataset) -> Iterator[str]:
    """Yields the texts of a dataset that are not blank."""
    for batch in texts.iter(1_000):
        for text in batch["text"]:
            if text and text.strip():
                yield text


def new_folder(name: str) -> Path:
    """The folder to write to.

    Raises:
        UsageError: It exists and is not empty, or it would lie in a file.
    """
    folder = Path(name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} exists; name a new folder")
    for parent in folder.parents:
        if parent.is_file():
            raise UsageError(f"{folder}: {parent} is a file; name a new folder")
    return folder


def read_prompt(text: str) -> tuple[str, str]:
    """Splits `NAME=TEXT` into name and text."""
    name, equals, prompt = text.partition("=")
    if not (name and equals and prompt):
        raise UsageError(f"--prompts {text}: expected NAME=TEXT, such as query='query: '")
    return name, prompt


def size(path: Path) -> str:
    """Size of an ONNX file, with the weights beside it if they are in a file of their own."""
    size_in_bytes = path.stat().st_size
    weights = onnx.weights_file(path)
    if weights.exists():
        size_in_bytes += weights.stat().st_size
    return f"{size_in_bytes / 1e6:.1f} MB"


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return share


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)
