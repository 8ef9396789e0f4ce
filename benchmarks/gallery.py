"""Makes the pictures of docs/gallery.md, and the part of docs/reading-the-curves.md about a run that collapses.

    python benchmarks/gallery.py runs/tiny_cpu

The folder is that of `make pretrain`. Its curves are drawn, a map of texts as its encoder embeds them, and the spectra
of its features. Two small runs are made here on the built-in corpus, a healthy one and one that collapses. Chromium
photographs a page of masks. The recipes of all runs are stored beside the pictures, and a test fails if today's
differ.
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from report import ROOT, put
from stored_run import store, words_of

import run_pretraining
from text_jepa.cli import UsageError, run_command
from text_jepa.commands import masks, plot
from text_jepa.train.run_log import read_metrics


DEFAULT = "configs/tiny_cpu.yaml"
HEALTHY = (
    "configs/token-jepa.yaml --preset tiny --vocab_size 4096 --max_length 64 --per_device_train_batch_size 32 "
    "--max_steps 200"
)
# Each of these flags is bad advice.
COLLAPSING = (
    "--learning_rate 1e-2 --ema_schedule constant --ema_decay_start 0 --token_loss_weight 0 --sentence_loss_weight 0"
)
# Flags of the log, which are not part of a recipe.
LOGS = "--logging_steps 10 --eval_steps 50 --max_eval_samples 256 --save_strategy no --use_cpu"
# The task whose texts are shown in the map and the spectra.
TASK = "packages"
MASKS = "configs/t-jepa-ul2.yaml --texts 1"

# The place in docs/reading-the-curves.md.
COLLAPSE = "collapse"
# Width and height of a photographed page in pixels; the rest is cut off.
PAGE = (820, 1000)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Makes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of `make pretrain`")
    args = parser.parse_args(argv)
    assets = root / "docs/assets"
    store(args.run, assets / "gallery-default", [DEFAULT], kept=())
    with working_folder(args.run) as folder:
        draw("curves", ["runs/tiny_cpu"], assets / "gallery-curves.png")
        draw("map", ["runs/tiny_cpu", "--task", TASK], assets / "gallery-map.png")
        draw("spectra", ["runs/tiny_cpu", "--task", TASK], assets / "gallery-spectra.png")
        photograph_masks(folder / "masks.html", assets / "gallery-masks.png")
        warning = train_both(assets)
        draw("curves", ["runs/healthy", "runs/collapsed"], assets / "healthy-and-collapsed.png")
        sentence = describe(Path("runs/healthy"), Path("runs/collapsed"))
    block = textwrap.fill(warning, 110, break_long_words=False, break_on_hyphens=False)
    put(f"{sentence}\n\n```\n{block}\n```", root / "docs/reading-the-curves.md", COLLAPSE)


@contextlib.contextmanager
def working_folder(run: Path) -> Iterator[Path]:
    """A working folder in which the run is `runs/tiny_cpu`, because pictures show the names of folders."""
    run = run.resolve()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runs").mkdir()
        (folder / "runs/tiny_cpu").symlink_to(run)
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def train_both(assets: Path) -> str:
    """Makes both runs, stores their logs, and returns the warning of the one that collapses."""
    train(HEALTHY, "runs/healthy")
    store(Path("runs/healthy"), assets / "gallery-healthy", [HEALTHY], kept=["metrics.jsonl"])
    words = f"{HEALTHY} {COLLAPSING}"
    printed = train(f"{words} --tokenizer_name runs/healthy/tokenizer", "runs/collapsed")
    store(Path("runs/collapsed"), assets / "gallery-collapsed", [words], kept=["metrics.jsonl"])
    for line in printed.splitlines():
        if "WARNING: collapse" in line:
            return line[line.index("WARNING") :]
    raise UsageError(f"no collapse with {COLLAPSING}: choose other flags in benchmarks/gallery.py")


def train(words: str, folder: str) -> str:
    """Runs a command line with an output folder; returns what it wrote to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        run_pretraining.main(words_of(f"{words} {LOGS} --output_dir {folder}"))
    return errors.getvalue()


def draw(kind: str, words: Sequence[str], path: Path) -> None:
    """Draws a picture with `text-jepa plot` and reduces its size."""
    plot.main([kind, *words, "-o", str(path)])
    shrink(path)


def photograph_masks(page: Path, path: Path) -> None:
    """Photographs a page of masks.

    Raises:
        UsageError: Chromium is not installed.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise UsageError("chromium: not found; install it, it takes the picture of the masks")
    with contextlib.redirect_stdout(io.StringIO()):
        masks.main([*words_of(MASKS), "--html", str(page), "--use_cpu"])
    width, height = PAGE
    words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    words += [f"--user-data-dir={page.parent / 'chromium'}", f"--window-size={width},{height}"]
    words += [f"--screenshot={path}", page.as_uri()]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    shrink(path)


def shrink(path: Path) -> None:
    """Reduces a picture to 64 colours; it has more only at smooth edges."""
    image = Image.open(path).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def describe(healthy: Path, collapsed: Path) -> str:
    """A paragraph about the losses of both runs, and the cosines of tokens of different texts.

    Raises:
        UsageError: The run that collapses does not have the lower loss.
    """
    good, bad = (last_figures(run) for run in (healthy, collapsed))
    if bad["latent_loss"] >= good["latent_loss"]:
        raise UsageError("the run that collapses has the higher loss: choose other flags in benchmarks/gallery.py")
    text = (
        f"**Judged by its loss, the orange run is better**: {bad['latent_loss']:.2g} at the end, against "
        f"{good['latent_loss']:.2g} for the same term in the blue run. But its tokens are all alike: two of different "
        f"texts have a cosine of {bad['cosine_other_text']:.3f}, in the blue run of {good['cosine_other_text']:.3f}. "
        "The monitor says so in the log:"
    )
    return textwrap.fill(text, 119, break_on_hyphens=False)


def last_figures(run: Path) -> dict[str, float]:
    """The figures of the last record of a training log."""
    return [record for record in read_metrics(run) if "token_rank" in record][-1]


if __name__ == "__main__":
    run_command(main)
