"""Reads a corpus of raw documents: local files, a dataset of the Hub, or the built-in corpus."""

import contextlib
import glob
import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException

from text_jepa.cli import UsageError, nearest
from text_jepa.data.builtin_corpus import load_builtin_corpus


logger = logging.getLogger(__name__)

# The datasets library would tell a server of each folder and file that it opens.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

# File suffix -> builder of the datasets library and its options.
BUILDERS = {
    ".txt": ("text", {}),
    ".text": ("text", {}),
    ".md": ("text", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}

# What the datasets library and its readers raise for data that are not what they seem.
_UNREADABLE = (
    DatasetGenerationError,
    ArrowException,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    StopIteration,
    zlib.error,
)

# Documents that a stream sets aside for evaluation when it has no held-out split of its own.
_STREAM_HELD_OUT = 200

# Rows of a stream from which its columns are known.
_STREAM_ROWS_TO_CHECK = 100


# ---- a corpus -------------------------------------------------------------------------------------------------------


@dataclass
class CorpusArguments:
    """Where the texts come from; the built-in corpus if neither files nor a dataset are named."""

    train_file: list[str] | None = field(
        default=None, metadata={"help": "Files, folders or globs: txt, json, jsonl, parquet, csv, tsv (.gz too)."}
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Held-out files, folders or globs, in the formats of --train_file."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, or a folder with one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset to train on."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the documents."})
    view_column: str | None = field(
        default=None, metadata={"help": "Column that holds the second text; goes with --view column."}
    )
    sample_by: Literal["line", "paragraph", "document"] = field(
        default="line", metadata={"help": "What a document is in a text file: a line, a paragraph, or the whole file."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the corpus during training; needs --max_steps."})
    validation_split_percentage: float = field(
        default=5, metadata={"help": "Percentage of the documents held out if the corpus has no held-out split."}
    )


class Source(NamedTuple):
    """Where texts are read from, for error messages.

    Args:
        name: The flag and its value, as in `"--train_file notes.txt"`.
        files: Local files, in which a damaged line is searched for.
    """

    name: str
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Corpus:
    """Raw documents and where they come from.

    Args:
        splits: `train` and `validation`, with a column `text` (one document per row) and perhaps a column `view`.
        name: The corpus in words, for the model card.
        source: Where the training documents are read from, for error messages.
    """

    splits: DatasetDict | IterableDatasetDict
    name: str
    source: Source


def load_corpus(arguments: CorpusArguments, seed: int = 0, cache_dir: str | None = None) -> Corpus:
    """Loads the training and held-out documents of a corpus.

    The held-out split is `validation_file`, the dataset's own `validation` (or `test`) split, or a share of the
    documents chosen by `seed`; of a stream without any, its first 200 documents.

    Args:
        arguments: Where the texts come from.
        seed: Seed of the held-out share.
        cache_dir: Cache of the datasets library and of the built-in corpus.

    Raises:
        UsageError: A file, split or column is missing, a file cannot be read, or there is no text.
    """
    _check_arguments(arguments)
    columns = {"text": arguments.text_column}
    if arguments.view_column:
        columns["view"] = arguments.view_column
    if arguments.train_file:
        return _load_files(arguments, columns, seed, cache_dir)
    if arguments.dataset_name:
        return _load_hub(arguments, columns, seed, cache_dir)
    return _load_builtin(arguments.streaming, cache_dir)


def load_texts(files: Sequence[str], flag: str, text_column: str = "text", cache_dir: str | None = None) -> Dataset:
    """Loads all documents of local files: one column, `text`, one document per row.

    Args:
        files: Paths, folders and globs, see `find_files`.
        flag: The flag that names them, for error messages.
        text_column: The column that holds the text.
        cache_dir: Cache of the datasets library.

    Raises:
        UsageError: A file or the column is missing, a file cannot be read, or there is no text.
    """
    paths = find_files(files, flag)
    arguments = CorpusArguments(text_column=text_column)
    return _read_files(paths, flag, arguments, {"text": text_column}, cache_dir)


def _check_arguments(arguments: CorpusArguments) -> None:
    view_column = arguments.view_column
    if arguments.train_file and arguments.dataset_name:
        raise UsageError("--train_file and --dataset_name exclude each other; name one")
    if arguments.validation_file and not arguments.train_file:
        raise UsageError("--validation_file goes with --train_file; other corpora have a held-out split of their own")
    if view_column == arguments.text_column:
        raise UsageError(f"--view_column {view_column}: is the text itself; use --view same")
    is_builtin = not arguments.train_file and not arguments.dataset_name
    if is_builtin and view_column:
        raise UsageError(f"--view_column {view_column}: the built-in corpus has no second column; leave it out")


def _load_builtin(streaming: bool, cache_dir: str | None) -> Corpus:
    splits = load_builtin_corpus(cache_dir).select_columns(["text"])
    if streaming:
        splits = IterableDatasetDict({split: part.to_iterable_dataset() for split, part in splits.items()})
    name = "the built-in corpus (documentation of installed Python packages)"
    return Corpus(splits, name, Source("the built-in corpus"))


def _load_files(arguments: CorpusArguments, columns: Mapping[str, str], seed: int, cache_dir: str | None) -> Corpus:
    train_files = find_files(arguments.train_file, "train_file")
    # All names are checked before anything is read.
    held_out_files = find_files(arguments.validation_file or [], "validation_file")
    train = _read_files(train_files, "train_file", arguments, columns, cache_dir)
    if held_out_files:
        held_out = _read_files(held_out_files, "validation_file", arguments, columns, cache_dir)
    else:
        train, held_out = _hold_out(train, arguments, seed, f"--train_file {arguments.train_file[0]}")
    names = [os.path.basename(os.path.normpath(name)) for name in arguments.train_file]
    source = Source(_name_of_files("train_file", train_files), train_files)
    return Corpus(_join_splits(train, held_out), ", ".join(names), source)


def _load_hub(arguments: CorpusArguments, columns: Mapping[str, str], seed: int, cache_dir: str | None) -> Corpus:
    dataset, config = arguments.dataset_name, arguments.dataset_config_name
    source = Source(f"--dataset_name {dataset}")

    def load(split: str) -> Dataset | IterableDataset:
        part = load_dataset(dataset, config, split=split, streaming=arguments.streaming, cache_dir=cache_dir)
        return _select_text(part, columns, source.name)

    with reading(*source):
        known = datasets.get_dataset_split_names(dataset, config)
        if arguments.dataset_split not in known:
            raise UsageError(f"--dataset_split {arguments.dataset_split}: {dataset} has the splits {', '.join(known)}")
        train = load(arguments.dataset_split)
        others = [split for split in ("validation", "test") if split in known and split != arguments.dataset_split]
        held_out = load(others[0]) if others else None
    if held_out is None:
        train, held_out = _hold_out(train, arguments, seed, source.name)
    name = f"{dataset} {config}" if config else dataset
    return Corpus(_join_splits(train, held_out), name, source)


def _join_splits(
    train: Dataset | IterableDataset, held_out: Dataset | IterableDataset
) -> DatasetDict | IterableDatasetDict:
    splits = {"train": train, "validation": held_out}
    return IterableDatasetDict(splits) if isinstance(train, IterableDataset) else DatasetDict(splits)


def _hold_out(
    documents: Dataset | IterableDataset, arguments: CorpusArguments, seed: int, what: str
) -> tuple[Dataset, Dataset] | tuple[IterableDataset, IterableDataset]:
    """Splits documents into those to train on and those held out."""
    if arguments.streaming:
        rest = documents.skip(_STREAM_HELD_OUT)
        if next(iter(rest), None) is None:
            raise UsageError(
                f"{what}: the first {_STREAM_HELD_OUT} documents of a stream are held out, and there are no more; "
                "name a --validation_file, or read without --streaming"
            )
        return rest, documents.take(_STREAM_HELD_OUT)
    percentage = arguments.validation_split_percentage
    if not 0 < percentage < 100:
        raise UsageError(f"--validation_split_percentage {percentage:g}: must be above 0 and below 100")
    if len(documents) < 2:
        raise UsageError(f"{what}: a single document; at least 2 are needed, one of them held out")
    share = round(len(documents) * percentage / 100)
    count = min(max(share, 1), len(documents) - 1)
    split = documents.train_test_split(test_size=count, seed=seed)
    return split["train"], split["test"]


# ---- files and columns ----------------------------------------------------------------------------------------------


def find_files(patterns: Sequence[str], flag: str) -> list[str]:
    """Files named by paths, folders and globs, each sorted; a folder stands for all files of a known kind in it.

    Raises:
        UsageError: A name matches no file, or the kinds of files are mixed or unknown.
    """
    found = []
    for pattern in patterns:
        found += _match(Path(pattern).expanduser(), pattern, flag)
    unknown = [path for path in found if suffix_of(Path(path)) not in BUILDERS]
    if unknown:
        raise UsageError(f"--{flag} {unknown[0]}: files of this kind are not read; use one of {', '.join(BUILDERS)}")
    suffixes = sorted({suffix_of(Path(path)) for path in found})
    if any(BUILDERS[suffix] != BUILDERS[suffixes[0]] for suffix in suffixes):
        raise UsageError(f"--{flag}: files of different kinds ({', '.join(suffixes)}); name one kind, e.g. '*.jsonl'")
    return found


def _match(path: Path, pattern: str, flag: str) -> list[str]:
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        matches = [str(file) for file in path.rglob("*") if suffix_of(file) in BUILDERS]
        if not matches:
            raise UsageError(f"--{flag} {pattern}: no {', '.join(BUILDERS)} file in this folder")
    else:
        matches = [match for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]
        if not matches:
            raise UsageError(f"--{flag} {pattern}: no such file")
    return sorted(matches)


def suffix_of(path: Path) -> str:
    """The suffix that tells the kind of a file, without `.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix


def _name_of_files(flag: str, paths: Sequence[str]) -> str:
    return f"--{flag} {', '.join(paths[:3])}"


def _read_files(
    paths: Sequence[str], flag: str, arguments: CorpusArguments, columns: Mapping[str, str], cache_dir: str | None
) -> Dataset | IterableDataset:
    what = _name_of_files(flag, paths)
    if not any(Path(path).stat().st_size for path in paths):
        raise UsageError(f"{what}: empty")
    builder, options = BUILDERS[suffix_of(Path(paths[0]))]
    if builder == "text":
        options = {"sample_by": arguments.sample_by}
    with reading(what, paths):
        dataset = load_dataset(
            builder,
            data_files=[glob.escape(path) for path in paths],
            split="train",
            streaming=arguments.streaming,
            cache_dir=cache_dir,
            **options,
        )
        return _select_text(dataset, columns, what)


def _select_text(
    dataset: Dataset | IterableDataset, columns: Mapping[str, str], what: str
) -> Dataset | IterableDataset:
    """Keeps the columns of a dataset that hold text, under new names.

    Args:
        dataset: Any dataset.
        columns: New name (`text` or `view`) -> name in the dataset.
        what: The flag and its value, for error messages.
    """
    known = dataset
    if isinstance(dataset, IterableDataset):
        # The columns of a stream are known only when some of it has been read.
        known = Dataset.from_list(list(dataset.take(_STREAM_ROWS_TO_CHECK)))
    if not len(known):
        raise UsageError(f"{what}: holds no document")
    for name, column in columns.items():
        _check_column(known, column, what, flag=f"--{name}_column")
    dataset = dataset.select_columns(list(columns.values()))
    # The view first, for its column may be called text.
    for name, column in reversed(columns.items()):
        if column != name:
            dataset = dataset.rename_column(column, name)
    return dataset


def _check_column(dataset: Dataset, column: str, what: str, flag: str) -> None:
    names = dataset.column_names
    if column not in names:
        raise UsageError(
            f"{what}: no column '{column}'{nearest(column, names)} (its columns are {', '.join(names)}); "
            f"name one with {flag}"
        )
    feature = dataset.features[column]
    kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    if kind not in ("string", "large_string"):
        raise UsageError(f"{what}: column '{column}' holds {kind}, not text; name another with {flag}")
    dataset.data.column(column).validate(full=True)  # json and parquet files may hold what is not UTF-8


# ---- what cannot be read --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(what: str, paths: Sequence[str] = ()) -> Iterator[None]:
    """Turns errors of the datasets library into one line that names file and line.

    Args:
        what: The flag and its value.
        paths: Files, in which the damage is searched for.

    Raises:
        UsageError: The body could not read something.
    """
    flag = what.split()[0]
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except UsageError:
        raise
    except _UNREADABLE as error:
        damage = _find_damage(paths)
        if damage is None:
            raise UsageError(f"{what}: cannot be read: {error.__cause__ or error}") from error
        raise UsageError(f"{flag} {damage}") from error
    except TypeError as error:
        # datasets 5.0 raises it for a line of JSON that is no object; without such a line it is a bug of ours.
        damage = _find_damage(paths)
        if damage is None:
            raise
        raise UsageError(f"{flag} {damage}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def read_rows(rows: Iterable[dict], source: Source) -> Iterator[dict]:
    """The rows of a stream, which may turn out to be damaged far behind its beginning; see `reading`."""
    with reading(*source):
        yield from rows


def _find_damage(paths: Sequence[str]) -> str | None:
    """File and line (counted from 1) of the first damage in files, and its remedy; `None` if they are sound."""
    for path in paths:
        if suffix_of(Path(path)) != ".parquet":
            damage = _find_damaged_line(path)
            if damage is not None:
                return damage
    return None


def _find_damaged_line(path: str) -> str | None:
    is_json = suffix_of(Path(path)) == ".jsonl"
    number = 0
    try:
        with _open_binary(path) as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8")
                if is_json and text.strip() and not isinstance(json.loads(text), dict):
                    return f"{path}, line {number}: no object, '{{...}}'; mend or remove it"
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#x} in column {error.start + 1}"
        return f"{path}, line {number}: not UTF-8 ({byte}); convert the file, e.g. with iconv"
    except json.JSONDecodeError as error:
        return f"{path}, line {number}: not JSON ({error.msg} in column {error.colno}); mend or remove it"
    except (OSError, EOFError, zlib.error) as error:
        return f"{path}: {error}; it may be incomplete"
    return None


def _open_binary(path: str) -> IO[bytes]:
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")
