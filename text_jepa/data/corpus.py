"""Reads a corpus of raw documents: local files, a dataset of the Hub, or the built-in corpus."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.naming import camelcase_to_snakecase

from text_jepa.cli import UsageError
from text_jepa.data.builtin_corpus import load_builtin_corpus
from text_jepa.data.columns import Sources, column_names, has_column, missing_column, pick, root_of, wrong_column
from text_jepa.data.compressed import suffix_of
from text_jepa.data.files import PROSE, Form, SampleBy, look_at_layout
from text_jepa.data.folders import (
    TABLES,
    files_of_splits,
    find_files,
    is_saved,
    list_names,
    saved_splits,
    splits_of_saved,
)
from text_jepa.data.held_out import hold_out, hold_out_of_stream, warn_of_shared
from text_jepa.data.prose import HTML, MARKUP, PLAIN
from text_jepa.data.reading import Source, check_rows, reading
from text_jepa.data.remote import local_names
from text_jepa.data.repeats import boilerplate_lines, first_of_equals, near_copies, without_lines
from text_jepa.data.rows import Quoting
from text_jepa.data.texts_builder import read_texts
from text_jepa.data.walking import SHOWN_NAMES, identity_of
from text_jepa.names import check_name, local_path


logger = logging.getLogger(__name__)

# Otherwise the datasets library reports each folder and file that it opens to a server.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

# Number of rows of a stream that are read to find its columns.
_STREAM_ROWS_TO_CHECK = 100

# With at least this many text files, a short file is one document.
_MANY_FILES = 20
# Largest number of files whose layout is looked at for the log.
_FILES_TO_LOOK_AT = 200
# Characters per token, for the length at which files without columns are divided.
_CHARACTERS_OF_TOKEN = 4

# Number of characters in which boilerplate lines and near copies are searched for.
_TEXT_FOR_LINES = 64_000_000
_TEXT_FOR_NEAR_COPIES = 8_000_000
# Number of adjacent documents in a run of a sample, because near copies are often neighbours.
_NEIGHBOURS = 100
# Smallest share that is reported in the log.
_SHARE_TO_REPORT = 0.01
_SHOWN_CHARACTERS = 60

# Descriptions of file layouts for the log.
_LAYOUTS = {
    "lines": "a text in each line",
    "wrapped": "hard-wrapped paragraphs",
    "blocks": "paragraphs between blank lines",
    "sections": "sections",
    "pages": "the text of pages",
}


# Flags that have no effect without another flag.
_GOES_WITH = {
    "train_file": ("sample_by", "quoting"),
    "dataset_name": ("dataset_config_name", "dataset_split"),
    "streaming": ("shuffle_buffer",),
}


DropRepeats = Literal["none", "files", "documents", "lines"]


# ---- a corpus -------------------------------------------------------------------------------------------------------


@dataclass
class CorpusArguments:
    """Source of the texts: files, a dataset, or by default the built-in corpus."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Files, folders or globs: txt, md, rst, html, json, jsonl, csv, tsv (and .gz, .bz2, .xz, "
            ".zst of these), parquet, arrow."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Held-out files, folders or globs, in the formats of --train_file."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, or a folder with one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset to train on."})
    text_column: list[str] | str = field(
        default_factory=lambda: ["text"],
        metadata={
            "help": "Column that holds the documents; a.b for a field within a column; several are joined by a blank "
            "line."
        },
    )
    view_column: str | None = field(
        default=None, metadata={"help": "Column that holds the second text; goes with --view column."}
    )
    sample_by: SampleBy = field(
        default="auto",
        metadata={
            "help": "What counts as a document in a file without columns: a line, a paragraph, the whole file, or "
            "what the file looks like (auto): each line of a list of texts; prose as a whole, divided at sections and "
            "paragraphs where it is long."
        },
    )
    drop_repeats: DropRepeats = field(
        default="files",
        metadata={
            "help": "Repeated texts to leave out: none; copies of files and of parts of them (files); also equal rows "
            "and lines (documents); also lines that many documents share (lines)."
        },
    )
    quoting: Quoting = field(
        default="checked",
        metadata={
            "help": "How to read quotes in csv and tsv files: as cell delimiters after a plausibility check "
            "(checked), always as delimiters (standard), or as ordinary characters (none)."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Read the corpus during training; needs --max_steps."})
    shuffle_buffer: int = field(
        default=10_000, metadata={"help": "Size of the buffer in which the texts of a stream are shuffled."}
    )
    validation_split_percentage: float | None = field(
        default=None,
        metadata={
            "help": "Percentage of the documents held out if the corpus has no held-out split. Default: 5; of files "
            "without columns at least 50 documents, but no more than a fifth."
        },
    )

    def __post_init__(self):
        if isinstance(self.text_column, list) and len(self.text_column) == 1:
            self.text_column = self.text_column[0]


@dataclass(frozen=True)
class Corpus:
    """Raw documents and where they come from.

    Args:
        splits: `train` and `validation`, with a column `text` (one document per row) and optionally a column `view`.
        name: Description of the corpus for the model card.
        source: Where the training documents are read from, for error messages.
        held_out_source: Where the held-out documents are read from, for error messages.
    """

    splits: DatasetDict | IterableDatasetDict
    name: str
    source: Source
    held_out_source: Source

    @property
    def sources(self) -> dict[str, Source]:
        """Where the documents of each split are read from."""
        return {"train": self.source, "validation": self.held_out_source}

    def describe_files(self) -> str:
        """Describes how many files of each kind the corpus has."""
        noun = "file" if len(self.source.files) == 1 else "files"
        return f"{_count_kinds(self.source.files)} {noun}"


def load_corpus(
    arguments: CorpusArguments,
    cache_dir: str | None = None,
    max_document_length: int = 512,
) -> Corpus:
    """Loads the training and held-out documents of a corpus.

    The held-out split is `validation_file`, the `validation` (or `test`) split of the dataset, or a share of the
    documents. For a stream without a held-out split, it is 200 documents of the first shuffle buffer. It is the same
    in every run.

    Args:
        arguments: Where the texts come from.
        cache_dir: Cache of the datasets library and of the built-in corpus.
        max_document_length: Longest document in tokens. Longer files are divided.

    Raises:
        UsageError: A file, split or column is missing, a file cannot be read, or there is no text.
    """
    _check_arguments(arguments)
    if arguments.train_file:
        return _load_files(arguments, cache_dir, max_document_length)
    if arguments.dataset_name:
        return _load_hub(arguments, cache_dir)
    return _load_builtin(arguments.streaming, cache_dir)


def load_texts(
    files: Sequence[str],
    flag: str,
    text_column: str | Sequence[str] = "text",
    cache_dir: str | None = None,
    quoting: Quoting = "checked",
) -> Dataset:
    """Loads all documents of local files: one column, `text`, one document per row.

    Args:
        files: Paths, folders and globs, see `find_files`.
        flag: The flag that names them, for error messages.
        text_column: The column that holds the text, or several that are joined.
        cache_dir: Cache of the datasets library.
        quoting: How quotes in csv and tsv files are read.

    Raises:
        UsageError: A file or the column is missing, a file cannot be read, or there is no text.
    """
    return load_columns(files, flag, {"text": text_column}, cache_dir, quoting)


def load_columns(
    files: Sequence[str],
    flag: str,
    columns: Mapping[str, str | Sequence[str]],
    cache_dir: str | None = None,
    quoting: Quoting = "checked",
) -> Dataset:
    """Loads columns of local files under new names, one document per row; otherwise like `load_texts`.

    Args:
        files: Paths, folders and globs, see `find_files`.
        flag: The flag that names them, for error messages.
        columns: New name (`text`, `title` or `label`) -> column or columns of the files. Labels are returned as JSON.
        cache_dir: Cache of the datasets library.
        quoting: How quotes in csv and tsv files are read.

    Raises:
        UsageError: A file or column is missing, a file cannot be read, or there is no text.
    """
    sources = {name: column_names(column) for name, column in columns.items()}
    form = Form(sources, quoting=quoting)
    paths = find_files(files, flag, mixed=True, form=_of_mixed(form))
    form = _fit_form(form, paths)
    return _read_files(paths, flag, form, streaming=False, cache_dir=cache_dir)


def _form(arguments: CorpusArguments) -> Form:
    sources = {"text": column_names(arguments.text_column)}
    if arguments.view_column:
        sources["view"] = (arguments.view_column,)
    return Form(sources, arguments.sample_by, arguments.quoting)


def _of_mixed(form: Form) -> Form | None:
    """The form for reading tables among files without columns; `None` if columns besides `text` are asked for."""
    return form._replace(is_mixed=True) if form.is_text_only else None


def _fit_form(form: Form, paths: Sequence[str]) -> Form:
    """Adapts a form to the files that are read together."""
    suffixes = Counter(suffix_of(Path(path)) for path in paths)
    num_plain = sum(suffixes[suffix] for suffix in PLAIN)
    has_tables = not TABLES.isdisjoint(suffixes)
    return form._replace(
        is_many=num_plain >= _MANY_FILES,
        is_mixed=form.is_text_only and has_tables,
    )


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
    if is_builtin and arguments.text_column != "text":
        column = " ".join(column_names(arguments.text_column))
        raise UsageError(
            f"--text_column {column}: goes with --train_file or --dataset_name; name one, or leave it out"
        )
    defaults = CorpusArguments()
    for owner, names in _GOES_WITH.items():
        for name in names:
            value = getattr(arguments, name)
            if value != getattr(defaults, name) and not getattr(arguments, owner):
                raise UsageError(f"--{name} {value}: has no effect without --{owner}; leave it out")
    if arguments.validation_split_percentage is not None:
        _check_percentage(arguments, is_builtin)
    _check_drop_repeats(arguments)


def _check_percentage(arguments: CorpusArguments, is_builtin: bool) -> None:
    percentage = arguments.validation_split_percentage
    if not 0 < percentage < 100:
        raise UsageError(f"--validation_split_percentage {percentage:g}: must be above 0 and below 100")
    # No errors: a recipe may have the share, and the command line the rest.
    if is_builtin:
        _warn_of_percentage(arguments, "a part of the built-in corpus")
    elif arguments.streaming and not arguments.validation_file:
        _warn_of_percentage(arguments, "a number of documents of a stream, whose size is unknown,")


def _warn_of_percentage(arguments: CorpusArguments, held_out: str) -> None:
    """Says that the corpus has a held-out part of its own, if a share of the documents was to be held out."""
    if arguments.validation_split_percentage is not None:
        logger.warning(f"--validation_split_percentage has no effect: {held_out} is held out")


def _check_drop_repeats(arguments: CorpusArguments) -> None:
    if arguments.drop_repeats not in ("documents", "lines"):
        return
    what = f"--drop_repeats {arguments.drop_repeats}"
    if arguments.streaming:
        raise UsageError(f"{what}: a stream is not searched for repeats; leave it out, or read without --streaming")
    if arguments.view_column:
        raise UsageError(f"{what}: pairs of texts (--view_column) are not searched for repeats; leave it out")


def _load_builtin(streaming: bool, cache_dir: str | None) -> Corpus:
    splits = load_builtin_corpus(cache_dir).select_columns(["text"])
    if streaming:
        splits = IterableDatasetDict({split: part.to_iterable_dataset() for split, part in splits.items()})
    name = "the built-in corpus (documentation of installed Python packages)"
    source = Source("the built-in corpus")
    return Corpus(splits, name, source, source)


def _load_files(arguments: CorpusArguments, cache_dir: str | None, max_document_length: int) -> Corpus:
    form = _form(arguments)
    find = partial(find_files, mixed=True, form=_of_mixed(form), streaming=arguments.streaming)
    # Splits of a remote folder are found in its local copy.
    names = [local for name in arguments.train_file for local in local_names(name, "train_file")]
    train_files = find(names, "train_file")
    # Check all names before reading any file.
    held_out_names = arguments.validation_file or _held_out_splits(names)
    held_out_files = find(held_out_names, "validation_file", split="validation")
    train_files = _without_held_out(train_files, held_out_files)
    train_files, held_out_files = _take_out_splits(train_files, held_out_files, names)
    form = _fit_form(form, [*train_files, *held_out_files])
    form = form._replace(longest=_CHARACTERS_OF_TOKEN * max_document_length, with_file=not arguments.streaming)
    what = f"--train_file {arguments.train_file[0]}"
    source = Source(_name_of_files("train_file", train_files), train_files)
    held_out_source = source

    def read(paths: Sequence[str], flag: str) -> Dataset | IterableDataset:
        documents = _read_files(paths, flag, form, arguments.streaming, cache_dir)
        if form.with_file and form.sample_by == "auto":
            _warn_of_empty_files(documents, paths, flag)
        return documents

    train = read(train_files, "train_file")
    _log_layouts(train_files, form, what)
    if not arguments.streaming:
        train = _without_blank_rows(train, arguments.text_column, what)
    if not arguments.streaming and not arguments.view_column:
        train = _treat_repeats(train, arguments.drop_repeats)
    if held_out_files:
        _warn_of_percentage(arguments, list_names(held_out_files))
        held_out = read(held_out_files, "validation_file")
        held_out_source = Source(_name_of_files("validation_file", held_out_files), held_out_files)
        warn_of_shared(train, held_out, source, held_out_source)
    else:
        train, held_out = _split(train, arguments, what)
    last_parts = [os.path.basename(os.path.normpath(name)) for name in arguments.train_file]
    splits = _join_splits(train, held_out)
    if form.with_file:
        splits = splits.remove_columns("file")
    return Corpus(splits, ", ".join(last_parts), source, held_out_source)


def _count_kinds(paths: Sequence[str]) -> str:
    """Number of files of each kind, for example "12 .md and 3 .txt"."""
    counts = Counter(suffix_of(Path(path)) for path in paths)
    return _enumerate([f"{count:,} {suffix}" for suffix, count in sorted(counts.items())])


def _enumerate(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _log_layouts(paths: Sequence[str], form: Form, what: str) -> None:
    """Logs how files without columns are read, and the flag that changes it."""
    prose = [path for path in paths if suffix_of(Path(path)) in PROSE and os.path.getsize(path)]
    if not prose or form.sample_by != "auto":
        return
    step = -(-len(prose) // _FILES_TO_LOOK_AT)  # rounded up
    counts = Counter()
    for path in prose[::step]:
        suffix = suffix_of(Path(path))
        counts[suffix, _kind_of_layout(path, form, what)] += 1
    parts = [f"{count:,} {suffix} ({_LAYOUTS[kind]})" for (suffix, kind), count in sorted(counts.items())]
    line = f"{what}: read as {_enumerate(parts)}"
    if step > 1:
        line += f" (of {len(prose):,} such files, {counts.total():,} were looked at)"
    if any(kind != "lines" for _, kind in counts):
        line += f"; a file is a document, divided where it is longer than {form.longest:,} characters"
    logger.info(f"{line}; --sample_by changes this")


def _kind_of_layout(path: str, form: Form, what: str) -> str:
    """The key of a file's layout in `_LAYOUTS`."""
    suffix = suffix_of(Path(path))
    if suffix in HTML:
        return "pages"
    if suffix not in PLAIN:
        return "sections"
    with reading(what, [path]):
        return look_at_layout(path, form).kind


def _warn_of_empty_files(documents: Dataset, paths: Sequence[str], flag: str) -> None:
    """Warns of files with markup but without text, for example pages that are built by scripts."""
    pages = [path for path in paths if suffix_of(Path(path)) in MARKUP]
    if not pages:
        return
    with_text = set(documents.unique("file"))
    empty = [path for path in pages if path not in with_text]
    if empty:
        count = f"{len(empty)} of {len(paths)} files"
        logger.warning(f"--{flag}: {count} contain no text ({list_names(empty)}); check them, or leave them out")


def _held_out_splits(names: Sequence[str]) -> list[str]:
    """The held-out splits of folders written by `DatasetDict.save_to_disk`."""
    folders = [local_path(name) for name in names]
    return [str(folder) for folder in folders if saved_splits(folder, "validation")]


def _take_out_splits(
    train_files: list[str], held_out_files: list[str], names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Removes files that are named as validation or test splits from the training files.

    Args:
        train_files: Training files.
        held_out_files: Held-out files. If there are none, the removed files are held out.
        names: Names given by the user. Only files in folders are removed.

    Returns:
        Training files and held-out files.
    """
    folders = [local_path(name) for name in names]
    folders = [folder for folder in folders if folder.is_dir()]
    in_folders = [path for path in train_files if any(Path(path).is_relative_to(folder) for folder in folders)]
    validation, test = files_of_splits(in_folders, folders)
    taken = [*validation, *test]
    if not taken:
        return train_files, held_out_files
    line = f"--train_file: not trained on, by name or folder: {list_names(taken)}"
    if not held_out_files:
        held_out_files = validation or test
        line += f"; held out: {list_names(held_out_files)}"
    logger.warning(f"{line}; to train on them, name the files")
    left_out = set(taken)
    return [path for path in train_files if path not in left_out], held_out_files


def _without_held_out(train_files: list[str], held_out_files: list[str]) -> list[str]:
    """The training files without those that are held out."""
    held_out = {identity_of(path) for path in held_out_files}
    taken = [path for path in train_files if identity_of(path) in held_out]
    if len(taken) == len(train_files):
        logger.warning(
            "--validation_file: the training files are also held out, so held-out figures will be too optimistic"
        )
        return train_files
    if taken:
        logger.warning(f"not trained on, as --validation_file names them: {list_names(taken)}")
    return [path for path in train_files if identity_of(path) not in held_out]


def _without_blank_rows(documents: Dataset, text_column: str | Sequence[str], what: str) -> Dataset:
    """Leaves out rows of tables without text, with a warning, unless they are too few to be reported, or all."""
    is_blank = _blank_rows(documents)
    if not _SHARE_TO_REPORT * len(documents) < is_blank.sum() < len(documents):
        return documents
    columns = " or ".join(f"'{column}'" for column in column_names(text_column))
    logger.warning(
        f"{what}: {is_blank.sum():,} of {len(documents):,} rows have no {columns} and are left out; if their texts "
        "are in another column, --text_column names it"
    )
    return documents.select(np.flatnonzero(~is_blank))


def _blank_rows(documents: Dataset) -> np.ndarray:
    """Marks rows of tables without text: boolean (N,)."""
    table = documents.with_format("arrow")[:]
    texts = table.column("text")
    is_empty = pyarrow.compute.equal(pyarrow.compute.binary_length(texts), 0)
    is_blank = pyarrow.compute.or_(pyarrow.compute.utf8_is_space(texts), is_empty)
    is_blank = pyarrow.compute.fill_null(is_blank, True).to_numpy()
    if "file" in table.column_names:
        is_row = pyarrow.compute.is_null(table.column("file")).to_numpy()
        return is_blank & is_row
    return is_blank


# ---- repeats --------------------------------------------------------------------------------------------------------


def _treat_repeats(documents: Dataset, drop: DropRepeats) -> Dataset:
    """Logs the copies, boilerplate lines and near copies of a corpus, and leaves out those that `drop` names."""
    documents = _treat_copies(documents, drop)
    lines = _log_lines(documents, drop == "lines")
    if lines and drop == "lines":
        # A dictionary is searched at once, and has an order, which the cache of the result depends on.
        dropped = dict.fromkeys(sorted(lines))
        documents = documents.map(without_lines, fn_kwargs={"lines": dropped}, desc="Leaving out lines")
    _log_near_copies(documents)
    return documents


def _treat_copies(documents: Dataset, drop: DropRepeats) -> Dataset:
    """Logs the number of copies, and leaves out those that `drop` names."""
    is_copy = ~first_of_equals(documents["text"])
    is_row = np.array([file is None for file in _files_of(documents)])
    if drop == "none":
        is_dropped = np.zeros_like(is_copy)
    elif drop == "files":
        is_dropped = is_copy & ~is_row
    else:
        is_dropped = is_copy
    total = len(documents)
    num_dropped = int(is_dropped.sum())
    num_kept = int(is_copy.sum()) - num_dropped
    if num_dropped:
        documents = documents.select(np.flatnonzero(~is_dropped))
        logger.info(f"{_describe_copies(num_dropped, total)} and left out; --drop_repeats none keeps them")
    if num_kept > _SHARE_TO_REPORT * total:
        logger.info(f"{_describe_copies(num_kept, total)}; --drop_repeats documents leaves them out")
    return documents


def _files_of(documents: Dataset) -> Sequence[str | None]:
    """The file of each document; `None` for a row of a table."""
    if "file" in documents.column_names:
        return documents["file"]
    return [None] * len(documents)


def _describe_copies(count: int, total: int) -> str:
    verb = "is a copy" if count == 1 else "are copies"
    return f"{count:,} of {total:,} documents {verb} of others"


def _log_lines(documents: Dataset, is_dropped: bool) -> Counter:
    """Logs the share of boilerplate lines; returns them, or none if they are kept and too few to be reported."""
    sample = _sample(documents, _TEXT_FOR_LINES)
    texts = [text or "" for text in sample["text"]]
    lines = boilerplate_lines(texts)
    characters = sum(len(text) for text in texts)
    characters_of_lines = sum(len(line) * count for line, count in lines.items())
    share = characters_of_lines / max(characters, 1)
    if not lines or (share < _SHARE_TO_REPORT and not is_dropped):
        return Counter()
    line, count = max(lines.items(), key=lambda item: (len(item[0]) * item[1], item[0]))
    fate = "left out" if is_dropped else "kept; --drop_repeats lines leaves them out"
    logger.info(
        f"{share:.1%} of the text are lines that many documents share, as '{_shorten(line)}' in {count:,} of "
        f"{len(texts):,}; they are {fate}"
    )
    return lines


def _log_near_copies(documents: Dataset) -> None:
    """Logs the number of near copies with an example, unless their share is too small to be reported."""
    sample = _sample(documents, _TEXT_FOR_NEAR_COPIES)
    texts = [text or "" for text in sample["text"]]
    copies, originals = near_copies(texts)
    count = len(np.unique(copies))
    if count < max(_SHARE_TO_REPORT * len(texts), 1):
        return
    example = (int(copies[0]), int(originals[0]))
    names = [f"'{_shorten(texts[row])}'" for row in example]
    files_of_sample = _files_of(sample)
    files = [files_of_sample[row] for row in example]
    if all(files) and files[0] != files[1]:
        names = [os.path.relpath(file, os.path.commonpath(files)) for file in files]
    logger.info(
        f"{count:,} of {len(texts):,} documents are near copies of others, for example {names[0]} of {names[1]}; "
        "remove what is not to count more than once"
    )


def _sample(documents: Dataset, characters: int) -> Dataset:
    """Samples runs of adjacent documents from all parts of a corpus, with about this many characters in total."""
    column = documents.with_format("arrow")[:].column("text")
    lengths = pyarrow.compute.utf8_length(column)
    total = pyarrow.compute.sum(lengths).as_py() or 0
    step = -(-total // characters)  # rounded up
    if step <= 1:
        return documents
    run = np.arange(len(documents)) // _NEIGHBOURS
    is_sampled = run % step == 0
    return documents.select(np.flatnonzero(is_sampled))


def _shorten(text: str) -> str:
    beginning = text[: 2 * _SHOWN_CHARACTERS]
    words = " ".join(beginning.split())
    if len(words) <= _SHOWN_CHARACTERS:
        return words
    return f"{words[:_SHOWN_CHARACTERS]}…"


# ---- datasets ------------------------------------------------------------------------------------------------------


def _load_hub(arguments: CorpusArguments, cache_dir: str | None) -> Corpus:
    dataset = arguments.dataset_name
    config = arguments.dataset_config_name
    source = Source(f"--dataset_name {dataset}")
    sources = _form(arguments).sources
    on_disk = is_saved(Path(dataset))

    def load(split: str) -> Dataset | IterableDataset:
        if on_disk:
            part = _load_saved(dataset, split, arguments.streaming)
        else:
            part = load_dataset(dataset, config, split=split, streaming=arguments.streaming, cache_dir=cache_dir)
        return _select_text(part, sources, source.name)

    if not on_disk:
        _check_dataset_name(dataset, cache_dir)
    with reading(*source):
        if not on_disk and Path(dataset).is_dir():
            files = datasets.load_dataset_builder(dataset, config, cache_dir=cache_dir).config.data_files or {}
            check_rows([path for paths in files.values() for path in paths], "--dataset_name")
        if on_disk:
            known = splits_of_saved(Path(dataset))
        else:
            known = datasets.get_dataset_split_names(dataset, config, cache_dir=cache_dir)
        if arguments.dataset_split not in known:
            raise UsageError(f"--dataset_split {arguments.dataset_split}: {dataset} has the splits {', '.join(known)}")
        train = load(arguments.dataset_split)
        others = [split for split in ("validation", "test") if split in known and split != arguments.dataset_split]
        held_out = load(others[0]) if others else None
    if not arguments.streaming:
        train = _without_blank_rows(train, arguments.text_column, source.name)
    if not arguments.streaming and not arguments.view_column:
        train = _treat_repeats(train, arguments.drop_repeats)
    if held_out is None:
        train, held_out = _split(train, arguments, source.name)
    else:
        _warn_of_percentage(arguments, f"the split {others[0]} of {dataset}")
        warn_of_shared(train, held_out, source, source)
    name = f"{dataset} {config}" if config else dataset
    return Corpus(_join_splits(train, held_out), name, source, source)


def _check_dataset_name(dataset: str, cache_dir: str | None) -> None:
    """Raises UsageError for a path that does not exist, before the Hub is asked for it repeatedly."""
    if Path(dataset).is_file():
        raise UsageError(f"--dataset_name {dataset}: a file; --train_file reads files")
    *owner, name = dataset.split("/")
    folder = "___".join([*owner, camelcase_to_snakecase(name)])  # its name in the cache of the datasets library
    prepared = Path(cache_dir or datasets.config.HF_DATASETS_CACHE, folder)
    try:
        check_name(dataset, kind="dataset", known=[prepared])
    except ValueError as error:
        raise UsageError(f"--dataset_name {dataset}: {error}") from error


def _split(
    documents: Dataset | IterableDataset, arguments: CorpusArguments, what: str
) -> tuple[Dataset, Dataset] | tuple[IterableDataset, IterableDataset]:
    """Splits documents into training and held-out documents."""
    if arguments.streaming:
        return hold_out_of_stream(documents, arguments.shuffle_buffer, what)
    return hold_out(documents, arguments.validation_split_percentage, what)


def _join_splits(
    train: Dataset | IterableDataset, held_out: Dataset | IterableDataset
) -> DatasetDict | IterableDatasetDict:
    splits = {"train": train, "validation": held_out}
    return IterableDatasetDict(splits) if isinstance(train, IterableDataset) else DatasetDict(splits)


# ---- files ----------------------------------------------------------------------------------------------------------


def _name_of_files(flag: str, paths: Sequence[str]) -> str:
    return f"--{flag} {', '.join(paths[:SHOWN_NAMES])}"


def _read_files(
    paths: Sequence[str], flag: str, form: Form, streaming: bool, cache_dir: str | None
) -> Dataset | IterableDataset:
    what = _name_of_files(flag, paths)
    paths_with_text = [path for path in paths if os.path.getsize(path)]
    if not paths_with_text:
        raise UsageError(f"{what}: empty")
    with reading(what, paths):
        dataset = read_texts(paths_with_text, form, streaming, cache_dir)
        known = _known_rows(dataset, what)
        for name, columns in form.sources.items():
            if known.data.column(name).null_count == len(known):
                raise UsageError(f"{what}: {wrong_column(columns[0], 'null', name)}")
    return dataset


def _load_saved(dataset: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    loaded = datasets.load_from_disk(dataset)
    part = loaded[split] if isinstance(loaded, DatasetDict) else loaded
    part = part.with_format(None)  # a saved format may leave out the text
    return part.to_iterable_dataset() if streaming else part


# ---- columns of a dataset -------------------------------------------------------------------------------------------


def _known_rows(dataset: Dataset | IterableDataset, what: str) -> Dataset:
    """A dataset, or the first rows of a stream, whose columns are unknown before some rows have been read."""
    rows = dataset
    if isinstance(dataset, IterableDataset):
        rows = list(dataset.take(_STREAM_ROWS_TO_CHECK))
    if not len(rows):
        raise UsageError(f"{what}: holds no document")
    if isinstance(dataset, IterableDataset):
        return Dataset.from_list(rows, features=dataset.features)
    return dataset


def _select_text(dataset: Dataset | IterableDataset, sources: Sources, what: str) -> Dataset | IterableDataset:
    """Selects the columns of a dataset that hold text, under new names.

    Args:
        dataset: Any dataset.
        sources: New name (`text` or `view`) -> names in the dataset.
        what: The flag and its value, for error messages.
    """
    known = _known_rows(dataset, what)
    are_plain = []
    roots = []
    for name, columns in sources.items():
        for column in columns:
            are_plain.append(_check_column(known, column, name, what))
            roots.append(root_of(column, known.column_names))
    roots = list(dict.fromkeys(roots))  # without repetitions
    are_joined = any(len(columns) > 1 for columns in sources.values())
    dataset = dataset.select_columns(roots)
    if are_joined or not all(are_plain):
        features = datasets.Features({name: datasets.Value("string") for name in sources})
        where = what.split(maxsplit=1)[-1]
        take = partial(pick, sources=sources, where=where)
        return dataset.map(take, remove_columns=roots, features=features)
    # The view is renamed first, because its column may be called `text`.
    for name, (column,) in reversed(sources.items()):
        if column != name:
            dataset = dataset.rename_column(column, name)
    return dataset


def _check_column(dataset: Dataset, column: str, name: str, what: str) -> bool:
    """Whether a column is plain text, as opposed to a field of a column or a list of texts."""
    names = dataset.column_names
    if column not in names:
        if not _has_field(dataset, column):
            raise UsageError(f"{what}: {missing_column(column, names, name)}")
        return False
    feature = dataset.features[column]
    if not isinstance(feature, datasets.Value):
        return False
    if feature.dtype not in ("string", "large_string"):
        raise UsageError(f"{what}: {wrong_column(column, feature.dtype, name)}")
    dataset.data.column(column).validate(full=True)  # json and parquet files may not be UTF-8
    return True


def _has_field(dataset: Dataset, column: str) -> bool:
    """Whether any row has this field within a column; the first rows may lack it, and JSON schemas list no fields."""
    root = root_of(column, dataset.column_names)
    if root not in dataset.column_names:
        return False
    return any(has_column(row, column) for row in dataset.select_columns([root]))
