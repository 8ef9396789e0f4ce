"""Packs corpora (as token ids), labelled datasets and wheels for a machine without network.

    python benchmarks/gpu_pack.py --data FOLDER [--out build/gpu-pack] [--megabytes 45] [--vocab_size 16384]

The data folder has `pretrain/NAME/train.parquet` with a column `text`, GLUE tasks in `glue/NAME`, and optionally
`qqp_rerank` and `pretrain/wikipedia_short/validation.parquet`. All corpora are tokenized by one tokenizer that is
trained on them, and compressed as 16-bit numbers, the smallest corpus first. Documents that do not fit are left out
and reported. `benchmarks/gpu.py --pack` turns the ids back into texts, which are lower-cased, have spaces between
words, and give the same ids.
"""

import argparse
import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np


GLUE_TASKS = ("sst2", "mrpc", "rte", "stsb")
WHEELS = ("datasets", "evaluate", "dill", "multiprocess")

END_OF_DOCUMENT = 65_535
UNKNOWN = "\ue000"  # a character for private use, which is in no vocabulary

MEGABYTE = 2**20
# LZMA for 16-bit numbers, with contexts by the parity of the position.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26, "lc": 0, "lp": 1, "pb": 1}]
# A corpus is cut by the mean size of its documents; the first ones may be larger.
_SAFETY = 0.97
# Bytes for pack.json, which is written last.
_RESERVED = 8_192
# Number of documents per corpus for which the round trip from ids to texts and back is checked.
_CHECKED = 200


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = make_parser().parse_args(argv)
    data = Path(args.data)
    out = Path(args.out)
    corpora = {path.parent.name: path for path in sorted(data.glob("pretrain/*/train.parquet"))}
    if not corpora:
        sys.exit(f"error: --data {data}: no pretrain/*/train.parquet in it")
    if not args.vocab_size < END_OF_DOCUMENT:
        sys.exit(f"error: --vocab_size {args.vocab_size}: must be below {END_OF_DOCUMENT}, tokens have 16 bits")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    wheels = []
    if not args.no_wheels:
        wheels = download_wheels(out / "wheels", args.python_version)
    copy_labelled(data, out)
    tokenizer = tokenizer_of(list(corpora.values()), args.vocab_size, args.tokenizer_documents)
    tokenizer.save_pretrained(out / "tokenizer")

    limit = args.megabytes * MEGABYTE - _RESERVED
    held_out = data / "pretrain/wikipedia_short/validation.parquet"
    if held_out.exists():
        pack_corpus(held_out, tokenizer, out / "corpora/wikipedia_short.validation.xz", limit - size_of(out))
    packed = {}
    for name, path in sorted(corpora.items(), key=bytes_of_file):
        packed[name] = pack_corpus(path, tokenizer, out / f"corpora/{name}.train.xz", limit - size_of(out))
        print(f"{name}: {in_words(packed[name])}", flush=True)

    about = {
        "vocab_size": len(tokenizer),
        "python_version": args.python_version,
        "wheels": wheels,
        "corpora": packed,
    }
    (out / "pack.json").write_text(json.dumps(about, indent=2) + "\n")
    print_summary(out, data, about)


def bytes_of_file(corpus: tuple[str, Path]) -> int:
    """Size of the file of a corpus, given as (name, path)."""
    _, path = corpus
    return path.stat().st_size


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--data", required=True, help="folder of corpora and labelled datasets")
    parser.add_argument("--out", default="build/gpu-pack", help="folder of the pack; it is replaced if it exists")
    parser.add_argument("--megabytes", type=float, default=45, help="largest size of the pack")
    parser.add_argument("--vocab_size", type=int, default=16_384)
    parser.add_argument(
        "--tokenizer_documents",
        type=int,
        default=2_000,
        help="documents of each corpus that the tokenizer is trained on",
    )
    parser.add_argument("--python_version", default="3.12", help="Python version of the other machine, for the wheels")
    parser.add_argument("--no_wheels", action="store_true", help="leave out the wheels")
    return parser


# ---- parts ----------------------------------------------------------------------------------------------------------


def download_wheels(folder: Path, python_version: str) -> list[str]:
    """Downloads packages that images with PyTorch and transformers often lack; returns the names of the files."""
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python_version, "--implementation", "cp", "--dest", str(folder)]
    for platform in platforms:
        command += ["--platform", platform]
    constraints = Path(__file__).resolve().parents[1] / "constraints.txt"
    subprocess.run([*command, "--constraint", str(constraints), *WHEELS], check=True)
    return sorted(path.name for path in folder.iterdir())


def copy_labelled(data: Path, out: Path) -> None:
    """Copies the labelled datasets of the data folder."""
    names = [f"glue/{task}" for task in GLUE_TASKS]
    names.append("qqp_rerank")
    for name in names:
        if (data / name).is_dir():
            folder = shutil.copytree(data / name, out / name, copy_function=shutil.copyfile)
            folder.chmod(0o755)  # the data folder may be read-only


def tokenizer_of(files: Sequence[Path], vocab_size: int, documents: int):
    """Trains a tokenizer on the first documents of all corpora, taken in turn."""
    from text_jepa.data.tokenization import train_tokenizer

    corpora = [texts_of(path)[:documents] for path in files]
    turns = zip_longest(*corpora)  # the n-th document of each corpus, None where a corpus has ended
    mixed = [text for text in chain.from_iterable(turns) if text is not None]
    return train_tokenizer(mixed, vocab_size)


def pack_corpus(path: Path, tokenizer, out: Path, room: int) -> dict[str, float]:
    """Writes the token ids of as many documents as fit.

    Args:
        path: A parquet file with a column `text`.
        tokenizer: The tokenizer.
        out: The file to write, unless not a single document fits.
        room: Number of bytes that are left.

    Returns:
        Documents, tokens and bytes written, documents left out, and the share of checked documents that have the same
        ids after the round trip.
    """
    documents = tokens_of(texts_of(path), tokenizer)
    kept = len(documents)
    packed = compress(documents)
    while kept and len(packed) > room:
        share = _SAFETY * max(room, 0) / len(packed)
        kept = int(kept * share)
        packed = compress(documents[:kept])

    checked = documents[:_CHECKED]
    again = tokens_of(list(texts_from(checked, tokenizer)), tokenizer)
    same = sum(before == after for before, after in zip(checked, again, strict=True))

    if kept:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(packed)
    return {
        "documents": kept,
        "tokens": sum(map(len, documents[:kept])),
        "bytes": len(packed) if kept else 0,
        "documents_left_out": len(documents) - kept,
        "same_after_round_trip": same / max(1, len(checked)),
    }


def texts_of(path: Path) -> list[str]:
    """The texts of a corpus."""
    import pyarrow.parquet as parquet

    return [text for text in parquet.read_table(path, columns=["text"])["text"].to_pylist() if text]


def print_summary(out: Path, data: Path, about: dict) -> None:
    """Prints what the pack contains and what was left out."""
    tokens = sum(one["tokens"] for one in about["corpora"].values())
    print(f"\n{out}: {size_of(out) / MEGABYTE:.1f} MiB, {tokens:,} tokens of {about['vocab_size']:,} words")
    for name, one in about["corpora"].items():
        if one["documents_left_out"]:
            of = one["documents"] + one["documents_left_out"]
            print(f"left out: {one['documents_left_out']:,} of {of:,} documents of {name}")
    here = {path.name for path in (data / "glue").glob("*") if path.is_dir()}
    left_out = sorted(here - set(GLUE_TASKS))
    print(f"left out: {', '.join(left_out) or 'nothing'} of GLUE")
    if about["wheels"]:
        print(f"wheels for Python {about['python_version']}: {', '.join(about['wheels'])}")


def in_words(packed: dict[str, float]) -> str:
    """A corpus in one line."""
    return (
        f"{packed['documents']:,} documents, {packed['tokens']:,} tokens, {packed['bytes'] / MEGABYTE:.2f} MiB, "
        f"{packed['documents_left_out']:,} left out; the same ids after the round trip: "
        f"{packed['same_after_round_trip']:.1%}"
    )


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- tokens and texts -----------------------------------------------------------------------------------------------


def tokens_of(texts: Sequence[str], tokenizer) -> list[list[int]]:
    """The token ids of each text, without special tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def texts_from(documents: Iterable[Sequence[int]], tokenizer) -> Iterator[str]:
    """Yields texts that a WordPiece tokenizer splits into these ids: joined pieces, with spaces between words."""
    from text_jepa.data.tokenization import vocabulary

    pieces = []
    for token in vocabulary(tokenizer):
        is_inside_word = token.startswith("##") and token != "##"
        pieces.append(token[2:] if is_inside_word else f" {token}")
    pieces[tokenizer.unk_token_id] = f" {UNKNOWN}"
    for ids in documents:
        yield "".join([pieces[index] for index in ids]).strip()


def compress(documents: Sequence[Sequence[int]]) -> bytes:
    """Compresses documents as 16-bit numbers, with an end mark after each."""
    with_end_marks = ((*ids, END_OF_DOCUMENT) for ids in documents)
    ids = np.fromiter(chain.from_iterable(with_end_marks), np.dtype("<u2"))
    return lzma.compress(ids.tobytes(), format=lzma.FORMAT_XZ, filters=_FILTERS)


def decompress(packed: bytes) -> list[list[int]]:
    """The documents of `compress`."""
    ids = np.frombuffer(lzma.decompress(packed), np.dtype("<u2"))
    ends = np.flatnonzero(ids == END_OF_DOCUMENT)
    documents = np.split(ids, ends + 1)[:-1]  # nothing follows the last end mark
    return [document[:-1].tolist() for document in documents]


if __name__ == "__main__":
    main()
