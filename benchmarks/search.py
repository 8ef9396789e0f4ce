"""Measures how often a search finds the document that a question belongs to, by words, by vectors, and by both.

    python benchmarks/search.py ENCODER --titles textbooks.parquet              # columns title and text
    python benchmarks/search.py ENCODER --pairs qqp/test.parquet                # question1, question2, label
    python benchmarks/search.py ENCODER --titles textbooks.parquet --shares 0.3 0.4 0.5 0.6 0.7 --half first

With --titles, the questions are the titles; a first line that repeats the title is removed from the text. With
--pairs, one question of each group of paraphrases is asked, and has to find another one of its group among all
questions of the file. The first half of the questions is for choosing settings, the second half, the default, for
reporting. A document is ranked by its best passage.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pyarrow import parquet

from text_jepa.cli import UsageError, mute_libraries, run_command
from text_jepa.data.prose import BEGINNING, layout_of, plain_paragraphs
from text_jepa.encoders.embeddings import Encoder, embed_texts, open_encoder
from text_jepa.probe.bootstrap import Score, compare_systems
from text_jepa.search.folder import Embed
from text_jepa.search.index import VECTOR_SHARE, FileState, Index, IndexedFile, Snapshot, combine
from text_jepa.search.passages import passages_of
from text_jepa.search.static import StaticEmbedding, make_token_table


# Functions of ranks, by the name of the metric.
METRICS = {
    "r@10": lambda ranks: (ranks <= 10).astype(float),
    "r@1": lambda ranks: (ranks == 1).astype(float),
    "mrr": lambda ranks: 1 / ranks,
}


class Questions(NamedTuple):
    """Documents and questions.

    Attributes:
        documents: Texts by name.
        asked: Questions, with the names of the documents that answer them.
    """

    documents: dict[str, str]
    asked: list[tuple[str, set[str]]]


# ---- questions ------------------------------------------------------------------------------------------------------


def read_titles(path: str, limit: int | None) -> Questions:
    """Documents to find by their titles: those of at least two words that no other document has.

    A document without a text beside its title is left out.
    """
    rows = parquet.read_table(path, columns=["title", "text"]).to_pylist()
    random.Random(0).shuffle(rows)
    rows = rows[:limit]
    counts = Counter(row["title"] for row in rows)
    documents = {}
    asked = []
    for number, row in enumerate(rows):
        title = row["title"].strip()
        text = without_title(row["text"].strip(), title)
        if not text:
            continue
        documents[str(number)] = text
        if counts[row["title"]] == 1 and len(title.split()) > 1:
            asked.append((title, {str(number)}))
    return Questions(documents, asked)


def without_title(text: str, title: str) -> str:
    """The text without a first line that is the title."""
    first, _, rest = text.partition("\n")
    if first.strip() == title:
        return rest.strip()
    return text


def read_pairs(path: str, limit: int | None) -> Questions:
    """Questions that have to find their paraphrases."""
    rows = parquet.read_table(path, columns=["question1", "question2", "label"]).to_pylist()[:limit]
    group_of = {}  # the name of the group of each question
    members = {}  # the questions of each group, by its name
    for row in rows:
        pair = [row["question1"].strip(), row["question2"].strip()]
        for text in pair:
            if text not in group_of:
                group_of[text] = text
                members[text] = {text}
        first, second = (group_of[text] for text in pair)
        if row["label"] == 1 and first != second:
            joining = members.pop(second)
            members[first] |= joining
            group_of |= dict.fromkeys(joining, first)

    asked = []
    for group in members.values():
        if len(group) > 1:
            query = min(group)
            asked.append((query, group - {query}))
    return Questions({text: text for text in group_of}, asked)


def half_of(questions: Questions, half: str) -> Questions:
    """The documents, with every second question in random order, or with all."""
    asked = sorted(questions.asked)
    random.Random(0).shuffle(asked)
    halves = {"first": asked[::2], "second": asked[1::2], "both": asked}
    return Questions(questions.documents, halves[half])


# ---- search ---------------------------------------------------------------------------------------------------------


def embedding_of(encoder: Encoder) -> Embed:
    """The function that `text-jepa search` embeds texts with, without prompts of queries and passages."""
    table = make_token_table(encoder)
    if table is None:
        return lambda texts: embed_texts(encoder, texts)
    return StaticEmbedding(table.vectors.__getitem__, table.tokenizer, encoder.prompt)


def fill(index: Index, documents: Mapping[str, str], embed: Embed) -> np.ndarray:
    """Writes documents to an index; returns the document's name of each passage (P,), in the order of the index."""
    files = []
    names = []
    for name in sorted(documents):
        text = documents[name]
        layout = layout_of(text[:BEGINNING], is_one_of_many=True)
        passages = list(passages_of(plain_paragraphs(text, layout)))
        files.append((name, passages))
        names += [name] * len(passages)
    texts = [" ".join(passage.text.split()) for _, passages in files for passage in passages]
    vectors = embed(texts)

    written = []
    first = 0
    for name, passages in files:
        end = first + len(passages)
        written.append(IndexedFile(name, FileState(0, 0), passages, vectors[first:end]))
        first = end
    index.write(written, index.start({}, None))
    return np.array(names)


def ranks(
    passages: Snapshot,
    names: np.ndarray,
    questions: Questions,
    vectors: np.ndarray,
    shares: Sequence[float],
) -> dict[float, np.ndarray]:
    """Ranks (Q,) of the first right document for each question, by share.

    Args:
        passages: The index.
        names: (P,), the document of each passage.
        questions: Q questions.
        vectors: (Q, D), the vectors of the questions.
        shares: Shares of the vectors in the score; the rest is that of the words.
    """
    found = {share: [] for share in shares}
    for (query, right), vector in zip(questions.asked, vectors, strict=True):
        cosines, words = passages.scores(query, vector)
        is_right = np.isin(names, list(right))
        is_query = names == query
        is_wrong = ~is_right & ~is_query
        for share in shares:
            scores = combine(cosines, words, share)
            found[share].append(rank_of(scores, names, is_right, is_wrong))
    return {share: np.array(ranks) for share, ranks in found.items()}


def rank_of(
    scores: np.ndarray,
    names: np.ndarray,
    is_right: np.ndarray,
    is_wrong: np.ndarray,
) -> int:
    """Rank of the best right document; wrong ones with the same score come first."""
    best = scores[is_right].max()
    is_ahead = is_wrong & (scores >= best)
    documents_ahead = np.unique(names[is_ahead])
    return 1 + len(documents_ahead)


def score(by_system: Mapping[str, np.ndarray], name: str) -> list[Score]:
    """Scores of systems by their ranks, with the lead of the first system over each other one."""
    scores = []
    for metric, function in METRICS.items():
        values = {system: function(ranks)[None] for system, ranks in by_system.items()}
        scores += compare_systems(name, "search", metric, np.mean, values)
    return scores


# ---- command --------------------------------------------------------------------------------------------------------


def search_questions(encoder: str, questions: Questions, shares: Sequence[float]) -> list[Score]:
    """Scores of a search with an encoder: by each share of vectors, by words alone, and by vectors alone."""
    embed = embedding_of(open_encoder(encoder))
    vectors = embed([query for query, _ in questions.asked])
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder, "index.sqlite"))
        names = fill(index, questions.documents, embed)
        with index.snapshot() as passages:
            by_share = ranks(passages, names, questions, vectors, [*shares, 0.0, 1.0])
        index.close()
    by_system = {}
    for share, found in by_share.items():
        system = {0.0: "BM25", 1.0: "vectors"}.get(share, f"both, {share:g} of vectors")
        by_system[system] = found
    return score(by_system, f"{len(questions.asked)} questions, {len(questions.documents)} documents")


def show(scores: Sequence[Score]) -> None:
    """Prints a table."""
    print(f"{scores[0].task}\n\n| metric | system | score | interval | first is ahead by |\n|---|---|---|---|---|")
    for row in scores:
        ahead = "" if row.ahead is None else f"{row.ahead:+.1f} [{row.ahead_low:+.1f}, {row.ahead_high:+.1f}]"
        print(f"| {row.metric} | {row.system} | {row.score:.1f} | {row.low:.1f} to {row.high:.1f} | {ahead} |")


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="Folder or Hub name.")
    parser.add_argument("--titles", help="Parquet file with the columns title and text.")
    parser.add_argument("--pairs", help="Parquet file with the columns question1, question2 and label.")
    parser.add_argument("--limit", type=int, help="Number of documents or pairs to read.")
    parser.add_argument("--half", choices=("first", "second", "both"), default="second", help="Questions to ask.")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[VECTOR_SHARE], help="Shares of the vectors in the score."
    )
    parser.add_argument("--json", help="File to write the scores to.")
    args = parser.parse_args(argv)
    if (args.titles is None) == (args.pairs is None):
        raise UsageError("name a file with --titles or with --pairs")
    mute_libraries()
    if args.titles:
        questions = read_titles(args.titles, args.limit)
    else:
        questions = read_pairs(args.pairs, args.limit)
    asked = half_of(questions, args.half)
    scores = search_questions(args.encoder, asked, args.shares)
    show(scores)
    if args.json:
        records = [row._asdict() for row in scores]
        Path(args.json).write_text(json.dumps(records, indent=2))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
