"""Draws what figures hide: curves of runs, maps of texts as an encoder sees them, spectra of its features.

    text-jepa plot curves runs/healthy runs/collapsed -o curves.png
    text-jepa plot map runs/notes bert-base-uncased --task mine.csv -o map.png
    text-jepa plot spectra runs/notes runs/notes/checkpoint-500 -o spectra.png

Encoders are named by folder or by name on the Hub; `pretraining/` and the checkpoints of a run are good as well. A
sweep over the layers of an encoder is drawn by `text-jepa probe ENCODER --layer_sweep --output_dir FOLDER`.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, set_seed

from text_jepa.cli import UsageError, command_parser
from text_jepa.embeddings import Encoder, nearest_texts, open_encoder, token_weights
from text_jepa.probe.catalog import load_task
from text_jepa.show.plots import Run, flat, plot_curves, plot_map, plot_spectra, short, spectrum
from text_jepa.train.run_log import read_metrics


# More points hide each other, and t-SNE takes minutes.
TEXTS = 1_000
SUFFIXES = (".png", ".svg", ".pdf")


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = make_parser().parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if args.output.suffix not in SUFFIXES:
        raise UsageError(f"--output {args.output}: name a picture, with a suffix of {', '.join(SUFFIXES)}")
    args.sources = list(dict.fromkeys(args.sources))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.function(args)
    print(args.output)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser, one sub-command for each picture."""
    parser, commands = command_parser("text-jepa plot", __doc__, "PICTURE")

    def command(name, function, source, help):
        one = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        one.set_defaults(function=function)
        one.add_argument("sources", nargs="+", metavar=source.upper(), help=f"One {source} or more.")
        one.add_argument("-o", "--output", type=Path, required=True, help="Picture to write: png, svg or pdf.")
        return one

    command("curves", draw_curves, "run", "The course of runs, finished or not, in the same panels.")
    shown = command(
        "map", draw_map, "encoder", "Texts in two dimensions (PCA and t-SNE), in the colours of their labels."
    )
    spectra = command(
        "spectra", draw_spectra, "encoder", "How evenly features use their directions, beside random weights."
    )
    for one in (shown, spectra):
        one.add_argument(
            "--task",
            default="packages",
            help="Whose scored texts are taken: packages (built in, the default), one of GLUE on single texts, or a "
            "file with the columns text and label, of which every fifth row is taken.",
        )
        one.add_argument("--data_dir", help="Folder of GLUE tasks. Default: the Hub.")
        one.add_argument("--cache_dir", help="Where downloads and the built-in corpus are kept.")
    return parser


def draw_curves(args):
    """The sub-command `curves`."""
    plot_curves([read_run(Path(source)) for source in args.sources], args.output)


def draw_map(args):
    """The sub-command `map`."""
    texts, labels, names = labelled_texts(args)
    chance = (np.bincount(labels) / len(labels)) @ np.bincount(labels) / len(labels)
    maps = {}
    for source in args.sources:
        _, vectors = embed(open_encoder(source), texts)
        nearest, _ = nearest_texts(vectors, range(len(texts)))
        same = (labels[nearest] == labels).mean()
        notes = {
            "PCA": f"{100 * spectrum(vectors)[:2].sum():.0f} % of the variance",
            "t-SNE": f"{100 * same:.0f} % of nearest texts share the label (chance {100 * chance:.0f} %)",
        }
        maps |= {f"{short(source, 50)}\n{kind}, {notes[kind]}": places for kind, places in flat(vectors).items()}
    plot_map(maps, labels, names, args.output)


def draw_spectra(args):
    """The sub-command `spectra`."""
    texts, *_ = labelled_texts(args)
    found = {}
    for source in args.sources:
        encoder = open_encoder(source)
        found[source] = embed(encoder, texts)
        if source == args.sources[0]:
            set_seed(0)
            random_model = AutoModel.from_config(encoder.model.config).to(encoder.model.device)
            control = dataclasses.replace(encoder, name="random weights", model=random_model)
    found[control.name] = embed(control, texts)
    tokens, pooled = ({name: pair[part] for name, pair in found.items()} for part in (0, 1))
    plot_spectra({"states of tokens": tokens, f"means of {len(texts):,} texts": pooled}, args.output)


def read_run(folder) -> Run:
    """The log of a run, and the width of the encoder where the run has left one."""
    try:
        records = read_metrics(folder)
    except OSError as error:
        raise UsageError(f"{folder}: no metrics.jsonl there ({error.strerror}); name the folder of a run") from error
    except ValueError as error:
        raise UsageError(f"{folder}/metrics.jsonl: not the log of a run ({error}); name another folder") from error
    if not records:
        raise UsageError(f"{folder}/metrics.jsonl: nothing was logged yet; wait for the first log of the run")
    paths = [folder / "config.json", *sorted(folder.glob("checkpoint-*/config.json"))]
    config = next((AutoConfig.from_pretrained(path.parent) for path in paths if path.is_file()), None)
    return Run(str(folder), records, config and config.get_text_config().hidden_size)


def labelled_texts(args) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Texts of the scored split of a task, their labels (N,) and the names of these."""
    task = load_task("task", args.task, args.data_dir, args.cache_dir)
    if task.kind != "classification" or task.test.pairs is not None:
        raise UsageError(f"--task {args.task}: not single texts with classes; name packages, sst2, cola or a file")
    rows = task.test
    if len(rows) < 5:
        raise UsageError(f"--task {args.task}: {len(rows)} scored texts make no picture; at least 5 are needed")
    rows = rows.select(np.random.default_rng(0).permutation(len(rows))[:TEXTS])
    return rows.texts, rows.labels, task.label_names


@torch.no_grad()
def embed(encoder: Encoder, texts: list[str], batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """States of all tokens (tokens, D) and the vectors of the texts (N, D), pooled as the encoder says, in float32.

    Not in half precision as for a probe: its rounding looks like a full rank where states hardly differ.
    """
    model = encoder.model.eval()
    states, vectors = [], []
    for start in range(0, len(texts), batch_size):
        batch = encoder.tokenizer(
            texts[start : start + batch_size],
            padding=True,
            truncation=True,
            max_length=encoder.max_length,
            return_tensors="pt",
        ).to(model.device)
        mask = batch["attention_mask"]
        last = model(batch["input_ids"], attention_mask=mask).last_hidden_state.float()
        states.append(last[mask.bool()].cpu())
        weights = token_weights(encoder, batch)[..., None]
        vectors.append(((last * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)).cpu())
    states, vectors = torch.cat(states).numpy(), torch.cat(vectors).numpy()
    if not np.isfinite(states).all():
        raise UsageError(
            f"{encoder.name}: its features are not finite, so its weights are broken; name another checkpoint"
        )
    return states, vectors
