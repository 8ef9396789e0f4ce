"""docs/results.md and the main table of README.md, from folders that benchmarks/compare.py has filled.

    python benchmarks/report.py runs/compare-mini runs/compare-scratch --readme
    python benchmarks/report.py runs/compare-mini --card runs/compare-mini/seed1/default

Each folder is a part of the page, in place of the part of the same folder's name, or at its end; the other parts stay,
for a comparison takes hours. Figures by seed are kept as JSON beside its picture. The main table of the first folder
goes into README.md and the card of an encoder that is to be published, between the two comments that mark its place.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from compare import in_words, main_table, source_of

from text_jepa.cli import UsageError, run_command


ROOT = Path(__file__).resolve().parents[1]
START = "<!-- results -->"
END = "<!-- end of results -->"

PART = "<!-- comparison {} -->"
END_OF_PART = "<!-- end of comparison -->"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Writes the page with its pictures, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that benchmarks/compare.py has filled")
    parser.add_argument("--readme", action="store_true", help="write the first folder's main table into README.md")
    parser.add_argument("--card", type=Path, metavar="ENCODER", help="folder whose README.md gets the table too")
    args = parser.parse_args(argv)
    comparisons = [read(folder) for folder in args.folders]
    main = comparisons[0]
    table = main_table(main)
    if args.card:  # the file that is most likely missing comes first, so that nothing is half written
        source = f"{source_of(main)} In brackets how far `{main['plan']['reference']}` is ahead, with its interval."
        put(f"## Beside other objectives\n\n{source}\n\n{table}", args.card / "README.md")
    if args.readme:
        put(table, root / "README.md", may_be_added=False)
    for folder, results in zip(args.folders, comparisons, strict=True):
        write_part(folder, results, root)


def write_part(
    folder: Path,
    results: dict,
    root: Path,
) -> None:
    """Writes the part of a comparison into the page, and copies its pictures and figures."""
    assets = root / "docs/assets"
    name = f"results-{folder.name}"
    shutil.copyfile(folder / "curves.png", assets / f"{name}.png")
    shutil.copyfile(folder / "results.json", assets / f"{name}.json")
    text = f"{in_words(results)}\n![curves over seconds of training](assets/{name}.png)\n\n"
    if "quality" in results:
        shutil.copyfile(folder / "quality.png", assets / f"{name}-quality.png")
        text += f"![what more seconds bring](assets/{name}-quality.png)\n\n"
    text += f"All figures by seed: [{name}.json](assets/{name}.json)."
    put(text, root / "docs/results.md", PART.format(folder.name), END_OF_PART)


def put(
    text: str,
    path: Path,
    start: str = START,
    end: str = END,
    may_be_added: bool = True,
) -> None:
    """Replaces the text between two comments of a file.

    Args:
        text: The new text.
        path: The file.
        start: Comment before the text.
        end: Comment after the text.
        may_be_added: Whether both are added at the end of the file if they are missing.

    Raises:
        UsageError: There is no such file, or it does not contain the comments exactly once.
    """
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; name the folder of an exported encoder")
    whole = path.read_text(encoding="utf-8")
    if may_be_added and start not in whole:
        whole = f"{whole.rstrip()}\n\n{start}{end}\n"
    old = re.escape(start) + ".*?" + re.escape(end)
    new = f"{start}\n{text}\n{end}"
    whole, count = re.subn(old, lambda _: new, whole, flags=re.DOTALL)
    if count != 1:
        raise UsageError(f"{path}: expected the comments {start} and {end} once")
    path.write_text(whole, encoding="utf-8")


def read(folder: Path) -> dict:
    """The results of a comparison."""
    path = folder / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error}); run benchmarks/compare.py") from error


if __name__ == "__main__":
    run_command(main)
