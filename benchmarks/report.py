"""docs/results.md and the main table of README.md, from folders that benchmarks/compare.py has filled.

    python benchmarks/report.py runs/compare-scratch runs/compare-from_encoder

Of the first folder README.md shows the main table, between the two comments that mark its place.
"""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from compare import in_words, main_table

from text_jepa.arguments import UsageError, run_command


ROOT = Path(__file__).resolve().parents[1]

INTRODUCTION = """# Results

Written by `python benchmarks/report.py {folders}`, after the command at the head of each part.
Arms of a comparison have the same encoder, tokenizer, texts, order and seconds; [evaluation.md](evaluation.md) says
what the figures are, and [experiments.md](experiments.md) what was tried before, failures included.
"""


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Writes the page with its pictures, and the table."""
    folders = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    if not folders:
        raise UsageError("name folders that benchmarks/compare.py has filled")
    comparisons = [read(folder) for folder in folders]
    page = [INTRODUCTION.format(folders=" ".join(map(str, folders)))]
    for folder, results in zip(folders, comparisons, strict=True):
        picture = root / "docs/assets" / f"results-{folder.name}.png"
        shutil.copyfile(folder / "curves.png", picture)
        page.append(f"{in_words(results)}\n![curves over seconds of training](assets/{picture.name})\n")
    (root / "docs/results.md").write_text("\n".join(page), encoding="utf-8")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    table = f"<!-- results -->\n{main_table(comparisons[0])}\n<!-- end of results -->"
    changed, places = re.subn(r"<!-- results -->.*<!-- end of results -->", lambda _: table, text, flags=re.DOTALL)
    if places != 1:
        raise UsageError(f"{readme}: expected the comments <!-- results --> and <!-- end of results --> once")
    readme.write_text(changed, encoding="utf-8")


def read(folder: Path) -> dict:
    """What a comparison found."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{folder / 'results.json'}: cannot be read ({error}); run benchmarks/compare.py") from error


if __name__ == "__main__":
    run_command(main)
