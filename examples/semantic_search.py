"""Searches a folder of texts for the paragraphs nearest in meaning to a query.

    python examples/semantic_search.py runs/tiny_cpu docs "how do I go on after an interruption?"

Every encoder will do, pooled as its folder says. Long paragraphs are read whole.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers.utils.logging import disable_progress_bar

from text_jepa.cli import UsageError, run_command
from text_jepa.embeddings import centre, cosine, embed_texts, open_encoder


def paragraphs_of(folder: Path) -> Iterator[tuple[str, str]]:
    """`file:line` and text of every paragraph of at least five words, line breaks taken out."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".rst")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for match in re.finditer(r"\S.*(?:\n.*\S.*)*", text):
            words = match.group().split()
            if len(words) >= 5:
                yield f"{path}:{text.count(chr(10), 0, match.start()) + 1}", " ".join(words)


def similarities(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Cosines (N,) of a query (1, D) and N vectors (N, D), after the mean of the vectors, which all share, is gone."""
    return cosine(centre(query, by=vectors), centre(vectors))


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("encoder", help="Folder or Hub name.")
    parser.add_argument("folder", type=Path, help="Its .txt, .md and .rst files are read, those of its folders too.")
    parser.add_argument("query")
    args = parser.parse_args()
    disable_progress_bar()
    places, texts = list(zip(*paragraphs_of(args.folder), strict=True)) or ((), ())
    if not texts:
        raise UsageError(f"{args.folder}: holds no paragraph; name a folder of .txt, .md or .rst files")
    encoder = open_encoder(args.encoder)
    scores = similarities(embed_texts(encoder, [args.query]), embed_texts(encoder, texts))
    for row in np.argsort(-scores)[:5]:
        print(f"{scores[row]:.2f}  {places[row]}  {texts[row][:90]}")


if __name__ == "__main__":
    run_command(main)
