"""Searches a folder of texts by meaning and by words together.

    text-jepa search notes/ "what was said of the harbour?"
    text-jepa search notes/ "what was said of the harbour?" --encoder runs/notes --limit 10
    text-jepa search notes/ "what was said of the harbour?" --json

The first search reads the folder and keeps an index in notes/.text-jepa/; each later one reads only what has changed.
The index remembers its encoder.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from text_jepa.errors import UsageError, is_utf8, repeated_flags
from text_jepa.search.folder import Embed, compare, find_texts, update
from text_jepa.search.index import FileState, Hit, Index, Snapshot, combine, describe_damage, is_damaged, remove_index
from text_jepa.search.passages import Span, sentences_of
from text_jepa.search.static import StaticEmbedding, make_token_table


if TYPE_CHECKING:
    from text_jepa.encoders.embeddings import Encoder

# Where the index of a folder is kept, relative to the folder.
INDEX = Path(".text-jepa", "search.sqlite")

# Files whose sizes and times tell whether an encoder has changed.
_FILES_OF_ENCODER = ("*.safetensors", "*.bin", "*.json", "*/config.json", "*/*.safetensors")

# Characters of a passage that are shown.
_SHOWN = 320


class Embeddings(NamedTuple):
    """Functions that turn texts into vectors, which differ in what is put before a text."""

    query: Embed
    passage: Embed


class Found(NamedTuple):
    """A passage, and the sentence of it that fits the query best."""

    hit: Hit
    sentence: Span


class _Parser(argparse.ArgumentParser):
    """A parser that reports each mistake as a `UsageError`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else args
        for name, count in repeated_flags(words).items():
            self.error(f"--{name} is given {count} times; name it once, with all its values")
        return super().parse_known_args(args, namespace)


def make_parser(prog: str = "text-jepa search") -> argparse.ArgumentParser:
    """Makes the command's parser."""
    parser = _Parser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Folder of texts, with its subfolders.")
    parser.add_argument("query", metavar="QUERY", help="The query, in free text.")
    parser.add_argument(
        "--encoder",
        help="Encoder: folder or Hub name. Default: that of the index, and for a new one the newest run in runs/.",
    )
    parser.add_argument("--limit", type=int, default=5, metavar="N", help="Number of passages. (default: 5)")
    parser.add_argument("--json", action="store_true", help="Print the results as JSON, with full passages.")
    parser.add_argument("--text_column", nargs="+", metavar="COLUMN", help="Column of the text in files with columns.")
    # As in the other commands, a hyphen is understood and not shown.
    parser.add_argument(
        "--text-column", dest="text_column", nargs="+", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument("--index", type=Path, metavar="FILE", help="Index. Default: FOLDER/.text-jepa/search.sqlite.")
    parser.add_argument("--rebuild", action="store_true", help="Build the index again, from all files.")
    return parser


def main(argv: list[str] | None = None, prog: str = "text-jepa search") -> None:
    """Runs the command.

    Raises:
        UsageError: There are no texts, no query or no encoder, or the index is damaged or cannot be written.
    """
    args = make_parser(prog).parse_args(argv)
    for word in (args.folder, args.query, args.index, args.encoder):
        if not is_utf8(str(word)):
            raise UsageError(f"{str(word)!a}: not valid UTF-8; rename or rewrite it in UTF-8")
    if not args.query.strip():
        raise UsageError("the query is empty; ask something")
    if args.limit < 1:
        raise UsageError(f"--limit {args.limit}: at least 1")
    path = args.index or args.folder / INDEX
    texts = find_texts(args.folder)
    encoder = None
    if args.rebuild:
        recall(args, path)
        args.encoder = args.encoder or choose_encoder()
        encoder = open_quietly(args.encoder)  # if there is none, the index stays
        if is_damaged(path):
            remove_index(path)
    index = Index(path)
    try:
        embeddings = bring_up_to_date(index, texts, args, encoder)
        with index.snapshot() as passages:
            found = search(passages, args.query, embeddings, args.limit)
    finally:
        index.close()
    if args.json:
        print(json.dumps([as_json(args.folder, one) for one in found], ensure_ascii=False, indent=2))
    else:
        show(args.folder, found)
    if not found:
        tell("nothing found: no passage shares a word with the query, and the encoder knows none of its words")


# ---- index ----------------------------------------------------------------------------------------------------------


def bring_up_to_date(
    index: Index, texts: Mapping[str, FileState], args: argparse.Namespace, encoder: "Encoder | None"
) -> Embeddings:
    """Updates an index, and returns what turns queries and passages into vectors.

    Args:
        index: The index.
        texts: See `find_texts`.
        args: The arguments of the command.
        encoder: The encoder, if it is open already.
    """
    kept = {} if args.rebuild else index.settings()
    if kept and not index.is_older:
        check_settings(kept, index)
    name = args.encoder or kept.get("encoder") or choose_encoder()
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    column = json.dumps(args.text_column) if args.text_column else kept.get("text_column", '["text"]')
    columns = args.text_column or stored_columns(column, index)
    # What the index keeps of an encoder without layers answers in its place.
    if "tokenizer" not in kept or kept["encoder"] != name:
        encoder = encoder or open_quietly(name)
    if Path(name).is_dir():
        state = state_of(name)
    else:
        state = kept["encoder_state"] if encoder is None else commit_of(name)
    wanted = {"encoder": name, "encoder_state": state, "text_column": column}
    if any(kept.get(key) != value for key, value in wanted.items()):
        encoder = encoder or open_quietly(name)
        tell(reason_to_start(kept, wanted, index))
        kept = index.start(wanted, make_token_table(encoder))
        hide_from_git(index.path)
    if "tokenizer" in kept:
        embeddings = stored_embeddings(index, kept)
    else:
        embeddings = embeddings_of(encoder)
    changes = compare(index, texts)
    if len(changes.read) > 1:
        tell(f"reading {len(changes.read):,} files of {args.folder}")
    update(index, args.folder, changes, embeddings.passage, columns, kept)
    problems = index.problems()
    if problems:
        tell(f"{len(problems):,} of {len(texts):,} files were skipped, for example {problems[0]}")
    if not index.count_passages():
        raise UsageError(f"{args.folder}: no text in its {len(texts):,} files; use another folder")
    return embeddings


def recall(args: argparse.Namespace, path: Path) -> None:
    """Fills in what is not named by what an index remembers, as far as it can be read."""
    with contextlib.suppress(UsageError), contextlib.closing(Index(path)) as index:
        kept = index.settings()
        args.encoder = args.encoder or kept.get("encoder")
        if not args.text_column and "text_column" in kept:
            args.text_column = stored_columns(kept["text_column"], index)


def check_settings(kept: Mapping[str, str], index: Index) -> None:
    """Raises UsageError if settings that every index of this command has are gone."""
    missing = [name for name in ("encoder", "encoder_state", "text_column") if name not in kept]
    if missing:
        raise UsageError(f"{index.path}: {describe_damage(f'no {missing[0]} is written there')}")


def stored_columns(content: str, index: Index) -> list[str]:
    """The columns of the text that an index remembers."""
    with contextlib.suppress(ValueError):
        columns = json.loads(content)
        if isinstance(columns, list) and columns and all(isinstance(column, str) for column in columns):
            return columns
    raise UsageError(f"{index.path}: {describe_damage('no columns of the text')}")


def stored_embeddings(index: Index, settings: Mapping[str, str]) -> Embeddings:
    """The functions that turn texts into vectors by what an index keeps of its encoder."""
    try:
        of_passages = StaticEmbedding(index.token_vectors, settings["tokenizer"], settings["prompt"])
        return Embeddings(of_passages.with_prompt(settings["query_prompt"]), of_passages)
    except UsageError:
        raise
    except Exception as error:  # tokenizers raises no better ones
        raise UsageError(f"{index.path}: {describe_damage(str(error))}") from error


def hide_from_git(path: Path) -> None:
    """Keeps an index that lies in its usual place out of the repository that the texts may lie in."""
    if path.parts[-2:] == INDEX.parts:
        path.with_name(".gitignore").write_text("*\n")


def choose_encoder() -> str:
    """The newest run in runs/."""
    from text_jepa.probe.systems import newest_run

    name = newest_run()
    tell(f"encoder: {name}, the newest run; name another with --encoder")
    return name


def state_of(name: str) -> str:
    """What tells whether the files in the folder of an encoder have changed."""
    folder = Path(name)
    states = []
    for path in sorted({path for pattern in _FILES_OF_ENCODER for path in folder.glob(pattern)}):
        status = path.stat()
        states.append(f"{path.relative_to(folder).as_posix()} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(states)


def commit_of(name: str) -> str:
    """The commit of a name on the Hub that was opened last; empty if it is in no cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else ""


def reason_to_start(kept: dict[str, str], wanted: dict[str, str], index: Index) -> str:
    """The line that says why an index is made."""
    path = index.path
    if not kept:
        return f"making the index {path} with {wanted['encoder']}"
    if index.is_older:
        return f"{path}: made by an earlier version; rebuilding it with {wanted['encoder']}"
    if kept["encoder"] != wanted["encoder"]:
        return f"{path}: made with {kept['encoder']}; rebuilding it with {wanted['encoder']}"
    if not kept["encoder_state"]:
        return f"{path}: made by a version that did not note the commit of {kept['encoder']}; rebuilding it"
    if kept["encoder_state"] != wanted["encoder_state"]:
        return f"{path}: {wanted['encoder']} has changed since; rebuilding it"
    return f"{path}: made from other columns; rebuilding it"


def open_quietly(name: str) -> "Encoder":
    """Opens an encoder without the bars of transformers; that there is none is said before they are imported.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    from text_jepa.names import check_name

    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(f"{name}: no model can be read there ({error}); name another with --encoder") from error
    from text_jepa.cli import mute_libraries
    from text_jepa.encoders.embeddings import open_encoder

    mute_libraries()
    return open_encoder(name)


def embeddings_of(encoder: "Encoder") -> Embeddings:
    """The functions that turn texts into vectors by an encoder."""
    from text_jepa.encoders.embeddings import embed_texts

    of_queries, of_passages = (replace(encoder, prompt=prompt) for prompt in encoder.search_prompts)
    return Embeddings(partial(embed_texts, of_queries), partial(embed_texts, of_passages))


# ---- search ---------------------------------------------------------------------------------------------------------


def search(passages: Snapshot, query: str, embeddings: Embeddings, limit: int) -> list[Found]:
    """The passages that fit a query best, each with the best of its sentences."""
    vector = embeddings.query([query])[0]
    hits = passages.search(query, vector, limit)
    spans = [list(sentences_of(hit.text)) for hit in hits]
    texts = [hit.text[span.start : span.end] for hit, there in zip(hits, spans, strict=True) for span in there]
    if not texts:
        return []
    cosines = passages.centred(embeddings.passage(texts)) @ passages.centred(vector)
    scores = combine(cosines, passages.shares_of_words(query, texts))
    found = []
    start = 0
    for hit, there in zip(hits, spans, strict=True):
        best = int(scores[start : start + len(there)].argmax())
        found.append(Found(hit, there[best]))
        start += len(there)
    return found


# ---- output ---------------------------------------------------------------------------------------------------------


def tell(line: str) -> None:
    """Prints a line beside the results."""
    print(line, file=sys.stderr)


def show(folder: Path, found: Sequence[Found]) -> None:
    """Prints place, score and text of passages, with the best sentence of each in bold."""
    is_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    marks = ("\033[1m", "\033[0m") if is_terminal else ("**", "**")
    width = min(shutil.get_terminal_size().columns, 100)
    for hit, sentence in found:
        before, marked, after = excerpt(hit.text, sentence)
        text = f"{before}{marks[0]}{marked}{marks[1]}{after}"
        print(f"{folder / hit.path}:{hit.line}  {hit.score:.2f}")
        print(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))


def excerpt(text: str, sentence: Span) -> tuple[str, str, str]:
    """What is shown of a passage on one line: before the sentence, the sentence, and after it."""
    marked = " ".join(text[sentence.start : sentence.end].split())
    if len(marked) > _SHOWN:
        kept = marked[: _SHOWN - 2]
        marked = f"{kept.rpartition(' ')[0] or kept} …"
    room = _SHOWN - len(marked)
    before = " ".join(text[: sentence.start].split())
    after = " ".join(text[sentence.end :].split())
    if len(before) > room // 2:
        kept = before[-(room // 2) :] if room > 1 else ""
        before = f"… {kept.partition(' ')[2] or kept}"
    room -= len(before)
    if len(after) > room:
        kept = after[: max(room, 0)]
        after = f"{kept.rpartition(' ')[0] or kept} …"
    before = f"{before} " if before else ""
    after = f" {after}" if after else ""
    return before, marked, after


def as_json(folder: Path, found: Found) -> dict[str, object]:
    """A passage as an object."""
    hit, sentence = found
    return {
        "file": str(folder / hit.path),
        "line": hit.line,
        "score": round(hit.score, 4),
        "cosine": round(hit.cosine, 4),
        "words": round(hit.words, 4),
        "sentence": hit.text[sentence.start : sentence.end],
        "text": hit.text,
    }
