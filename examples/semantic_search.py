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
    """Yields `file:line` and text of every paragraph of at least five words, without line breaks."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".txt", ".md", ".rst"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for match in re.finditer(r"\S.*(?:\n.*\S.*)*", text):
            words = match.group().split()
            line = text.count("\n", 0, match.start()) + 1
            if len(words) >= 5:
                yield f"{path}:{line}", " ".join(words)


def similarities(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Cosines (N,) of a query (1, D) and N vectors (N, D), both centred by the mean of the vectors."""
    return cosine(centre(query, by=vectors), centre(vectors))


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("encoder", help="Folder or Hub name.")
    parser.add_argument("folder", type=Path, help="Folder of .txt, .md and .rst files, with subfolders.")
    parser.add_argument("query", help="What to look for.")
    args = parser.parse_args()
    disable_progress_bar()
    paragraphs = list(paragraphs_of(args.folder))
    if not paragraphs:
        raise UsageError(f"{args.folder}: holds no paragraph; name a folder of .txt, .md or .rst files")
    texts = [text for _, text in paragraphs]
    encoder = open_encoder(args.encoder)
    query = embed_texts(encoder, [args.query])
    vectors = embed_texts(encoder, texts)
    scores = similarities(query, vectors)
    best = np.argsort(-scores)[:5]
    for row in best:
        place, text = paragraphs[row]
        print(f"{scores[row]:.2f}  {place}  {text[:90]}")


if __name__ == "__main__":
    run_command(main)
