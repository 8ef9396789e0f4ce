"""docs/results.md and the main table of README.md, from folders that benchmarks/compare.py has filled.

    python benchmarks/report.py runs/compare-mini runs/compare-scratch --card runs/compare-mini/seed1/default

Of the first folder README.md shows the main table, between the two comments that mark its place, and so does the card
of an encoder that is to be published.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from compare import in_words, main_table, source_of

from text_jepa.arguments import UsageError, run_command


ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results -->", "<!-- end of results -->"

INTRODUCTION = """# Results

Written by `python benchmarks/report.py {folders}`, after the command at the head of each part.
Arms of a comparison have the same encoder, tokenizer, texts and order, and the same seconds or tokens;
[evaluation.md](evaluation.md) says what the figures are, and [experiments.md](experiments.md) what was tried before,
failures included.
"""


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Writes the page with its pictures, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="that benchmarks/compare.py has filled")
    parser.add_argument("--card", type=Path, metavar="ENCODER", help="a folder whose README.md gets the table too")
    args = parser.parse_args(argv)
    comparisons = [read(folder) for folder in args.folders]
    main, table = comparisons[0], main_table(comparisons[0])
    if args.card:  # the file that most likely is not there comes first, so that nothing is half written
        said = f"{source_of(main)} In brackets how far `{main['plan']['reference']}` is ahead, with its interval."
        put(f"## Beside other objectives\n\n{said}\n\n{table}", args.card / "README.md", at_the_end=True)
    put(table, root / "README.md")
    page = [INTRODUCTION.format(folders=" ".join(map(str, args.folders)))]
    for folder, results in zip(args.folders, comparisons, strict=True):
        picture = root / "docs/assets" / f"results-{folder.name}.png"
        shutil.copyfile(folder / "curves.png", picture)
        page.append(f"{in_words(results)}\n![curves over seconds of training](assets/{picture.name})\n")
    (root / "docs/results.md").write_text("\n".join(page), encoding="utf-8")


def put(text: str, path: Path, at_the_end: bool = False) -> None:
    """Replaces what stands between the comments of a file; adds both at its end if they are missing and may be added.

    Raises:
        UsageError: There is no such file, or the comments are not there once.
    """
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; name the folder of an exported encoder")
    whole = path.read_text(encoding="utf-8")
    if at_the_end and START not in whole:
        whole = f"{whole.rstrip()}\n\n{START}{END}\n"
    places = re.escape(START) + ".*" + re.escape(END)
    whole, count = re.subn(places, lambda _: f"{START}\n{text}\n{END}", whole, flags=re.DOTALL)
    if count != 1:
        raise UsageError(f"{path}: expected the comments {START} and {END} once")
    path.write_text(whole, encoding="utf-8")


def read(folder: Path) -> dict:
    """What a comparison found."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{folder / 'results.json'}: cannot be read ({error}); run benchmarks/compare.py") from error


if __name__ == "__main__":
    run_command(main)
