"""Draws curves of runs, maps of texts as an encoder sees them, and spectra of its features.

    text-jepa plot curves runs/healthy runs/collapsed -o curves.png
    text-jepa plot map runs/notes bert-base-uncased --task mine.csv -o map.png
    text-jepa plot spectra runs/notes runs/notes/checkpoint-1500 -o spectra.png

An encoder is a folder (`pretraining/` and checkpoints of a run too) or a name on the Hub. For a picture of all layers
of an encoder, use `text-jepa probe ENCODER --layer_sweep --output_dir FOLDER`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from text_jepa.cli import UsageError, add_command, command_parser, mute_libraries
from text_jepa.encoders.embeddings import Encoder, nearest_texts, open_encoder, pool_states
from text_jepa.encoders.opening import read_config, readable
from text_jepa.probe.catalog import load_task
from text_jepa.probe.systems import untrained
from text_jepa.show.plots import Run, flat, plot_curves, plot_map, plot_spectra, short_names, spectrum
from text_jepa.train.run_log import read_metrics


# More points hide each other, and t-SNE takes minutes.
TEXTS = 1_000
SUFFIXES = (".png", ".svg", ".pdf")


def main(argv: list[str] | None = None, prog: str = "text-jepa plot") -> None:
    """Runs the command."""
    args = make_parser(prog).parse_args(argv)
    mute_libraries()
    if args.output.suffix not in SUFFIXES:
        raise UsageError(f"--output {args.output}: name a picture with one of the suffixes {', '.join(SUFFIXES)}")
    if args.output.is_dir():
        raise UsageError(f"--output {args.output}: a folder; name a picture")
    args.sources = list(dict.fromkeys(args.sources))  # without repetitions
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.function(args)
    print(args.output)


def make_parser(prog: str = "text-jepa plot") -> argparse.ArgumentParser:
    """Makes the command's parser, with one sub-command for each picture."""
    parser, commands = command_parser(prog, __doc__, "PICTURE")

    help = "Curves of runs, finished or not, in the same panels."
    curves = add_command(commands, "curves", draw_curves, help)
    curves.add_argument("sources", nargs="+", metavar="RUN", help="Folders of runs.")

    help = "Texts in two dimensions (PCA and t-SNE), in the colours of their labels."
    texts = add_command(commands, "map", draw_map, help)
    help = "Spectra of features, beside those of random weights."
    spectra = add_command(commands, "spectra", draw_spectra, help)
    for command in (texts, spectra):
        command.add_argument("sources", nargs="+", metavar="ENCODER", help="Folders, or names on the Hub.")
        command.add_argument(
            "--task",
            default="packages",
            help="Task whose scored texts are drawn: packages (built in, the default), a GLUE task on single texts or "
            "a file with the columns text and label, of which every fifth row is taken.",
        )
        command.add_argument("--data_dir", help="Folder of GLUE tasks. Default: the Hub.")
        command.add_argument("--cache_dir", help="Folder for downloads and the built-in corpus.")

    for command in (curves, texts, spectra):
        command.add_argument("-o", "--output", type=Path, required=True, help="Picture to write: png, svg or pdf.")
    return parser


# ---- sub-commands ---------------------------------------------------------------------------------------------------


def draw_curves(args: argparse.Namespace) -> None:
    """Runs the sub-command `curves`."""
    runs = [read_run(Path(source)) for source in args.sources]
    plot_curves(runs, args.output)


def draw_map(args: argparse.Namespace) -> None:
    """Runs the sub-command `map`."""
    texts, labels, names = labelled_texts(args)
    label_shares = np.bincount(labels) / len(labels)
    chance = label_shares @ label_shares
    maps = {}
    for source, name in zip(args.sources, short_names(args.sources, 50), strict=True):
        encoder = open_encoder(source, cache_dir=args.cache_dir)
        _, vectors = embed(encoder, texts)
        nearest, _ = nearest_texts(vectors, range(len(texts)))
        share = (labels[nearest] == labels).mean()
        explained = spectrum(vectors)[:2].sum()
        notes = {
            "PCA": f"{100 * explained:.0f} % of the variance",
            "t-SNE": f"{100 * share:.0f} % of nearest texts share the label (chance {100 * chance:.0f} %)",
        }
        for kind, places in flat(vectors).items():
            title = f"{name}\n{kind}, {notes[kind]}"
            maps[title] = places
    plot_map(maps, labels, names, args.output)


def draw_spectra(args: argparse.Namespace) -> None:
    """Runs the sub-command `spectra`."""
    texts, _, _ = labelled_texts(args)
    states = {}
    pooled = {}
    for source in args.sources:
        encoder = open_encoder(source, cache_dir=args.cache_dir)
        states[source], pooled[source] = embed(encoder, texts)
    control = untrained(open_encoder(args.sources[0], cache_dir=args.cache_dir), seed=0)
    states[control.name], pooled[control.name] = embed(control, texts)
    panels = {"states of tokens": states, f"vectors of {len(texts):,} texts": pooled}
    plot_spectra(panels, args.output)


# ---- what is drawn --------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """Reads the log of a run, and the width of its encoder if it has left a configuration.

    Raises:
        UsageError: There is no log, it is damaged, or it is empty, or the configuration cannot be read.
    """
    try:
        records = read_metrics(folder)
        _check_numbers(records)
    except OSError as error:
        raise UsageError(f"{folder}: no metrics.jsonl there ({error.strerror}); name the folder of a run") from error
    except ValueError as error:
        raise UsageError(f"{folder}/metrics.jsonl: not the log of a run ({error}); use another folder") from error
    if not records:
        raise UsageError(f"{folder}/metrics.jsonl: nothing was logged yet; wait for the first log of the run")
    width = None
    for path in [folder / "config.json", *sorted(folder.glob("checkpoint-*/config.json"))]:
        if path.is_file():
            with readable(str(path.parent), "no configuration there"):
                width = read_config(str(path.parent)).get_text_config().hidden_size
            break
    return Run(str(folder), records, width)


def _check_numbers(records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
        for name, value in record.items():
            if not isinstance(value, int | float):
                raise ValueError(f"{name} is not a number")


def labelled_texts(args: argparse.Namespace) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Texts of the scored split of a task, their labels (N,), and the names of the labels.

    Raises:
        UsageError: The task has no single texts with labels, or too few.
    """
    task = load_task("task", args.task, args.data_dir, args.cache_dir)
    if task.kind != "classification" or task.test.pairs is not None:
        raise UsageError(
            f"--task {args.task}: not a classification of single texts; use packages, sst2, cola or a file"
        )
    rows = task.test
    if len(rows) < 5:
        raise UsageError(
            f"--task {args.task}: {len(rows)} scored texts are too few for a picture; at least 5 are needed"
        )
    shuffled = np.random.default_rng(0).permutation(len(rows))
    rows = rows.select(shuffled[:TEXTS])
    return rows.texts, rows.labels, task.label_names


@torch.no_grad()
def embed(encoder: Encoder, texts: list[str], batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Computes token states (tokens, D) and vectors of texts (N, D), pooled as the encoder does, in float32.

    A probe computes them in half precision, whose rounding errors look like a full rank where states hardly differ.

    Raises:
        UsageError: A state is not finite.
    """
    model = encoder.model.eval()
    token_states = []
    vectors = []
    for start in range(0, len(texts), batch_size):
        batch = encoder.tokenizer(
            [encoder.prompt + text for text in texts[start : start + batch_size]],
            padding=True,
            truncation=True,
            max_length=encoder.max_length,
            return_tensors="pt",
        )
        batch = batch.to(model.device)
        mask = batch["attention_mask"]
        states = model(batch["input_ids"], attention_mask=mask).last_hidden_state.float()
        token_states.append(states[mask.bool()].cpu())
        vectors.append(pool_states(encoder, states, batch).cpu())
    token_states = torch.cat(token_states).numpy()
    if not np.isfinite(token_states).all():
        raise UsageError(
            f"{encoder.name}: its states are not finite, so its weights are corrupted; use another encoder"
        )
    return token_states, torch.cat(vectors).numpy()
