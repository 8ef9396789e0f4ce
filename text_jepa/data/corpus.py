"""From raw text to examples: load, train a tokenizer, tokenize, split long documents, batch by length.

An example is one text of one document: its token ids with the special tokens, at most `max_length` long. Documents are
never joined, and no token of a document is lost. An example may bring a second text, its view.
"""

import contextlib
import glob
import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

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
_UNREADABLE = (DatasetGenerationError, ArrowException, ValueError, OSError, EOFError, RuntimeError, StopIteration)
_UNREADABLE += (zlib.error,)

# Texts that a stream sets aside for evaluation when it has no held-out split of its own.
_STREAM_HELD_OUT = 200


def find_files(patterns: Sequence[str], flag: str) -> list[str]:
    """Files named by paths, folders and globs, each sorted; a folder stands for all files of a known kind in it.

    Raises:
        UsageError: Nothing is there, or the kinds of files are mixed or unknown.
    """
    found = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(str(p) for p in path.rglob("*") if suffix_of(p) in BUILDERS)
            if not matches:
                raise UsageError(f"--{flag} {pattern}: no {', '.join(BUILDERS)} file in this folder")
        else:
            matches = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
            matches = [match for match in matches if Path(match).is_file()]
            if not matches:
                raise UsageError(f"--{flag} {pattern}: no such file")
        found += matches
    unknown = [path for path in found if suffix_of(Path(path)) not in BUILDERS]
    if unknown:
        raise UsageError(f"--{flag} {unknown[0]}: files of this kind are not read; use one of {', '.join(BUILDERS)}")
    suffixes = sorted({suffix_of(Path(path)) for path in found})
    if any(BUILDERS[suffix] != BUILDERS[suffixes[0]] for suffix in suffixes):
        raise UsageError(f"--{flag}: files of different kinds ({', '.join(suffixes)}); name one kind, e.g. '*.jsonl'")
    return found


def suffix_of(path: Path) -> str:
    """The suffix that tells the kind of a file, without `.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix


def load_corpus(
    train_file: Sequence[str] | None = None,
    validation_file: Sequence[str] | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    text_column: str = "text",
    view_column: str | None = None,
    sample_by: str = "line",
    streaming: bool = False,
    validation_split_percentage: float = 5,
    seed: int = 0,
    cache_dir: str | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Loads a corpus as splits `train` and `validation` with one column, `text`: one document per row.

    Local files, a dataset of the Hub (or a folder of one), or the built-in corpus where nothing is named. The held-out
    part is `validation_file`, the dataset's own `validation` (or `test`) split, or a share of the documents chosen by
    `seed`; for a stream without any, its first documents. With `view_column` there is a second column, `view`.

    Raises:
        UsageError: A file, split or column is missing, a file cannot be read, or there is no text.
    """
    if train_file and dataset_name:
        raise UsageError("--train_file and --dataset_name exclude each other")
    if validation_file and not train_file:
        raise UsageError("--validation_file goes with --train_file; other corpora bring their own held-out part")
    if view_column == text_column:
        raise UsageError(f"--view_column {view_column}: is the text itself; use --view same")
    columns = {"text_column": text_column} | ({"view_column": view_column} if view_column else {})
    if not train_file and not dataset_name:
        if view_column:
            raise UsageError(f"--view_column {view_column}: the built-in corpus has no second column")
        corpus = load_builtin_corpus(cache_dir).select_columns(["text"])
        return _as_streams(corpus) if streaming else corpus
    if train_file:
        corpus = _load_files(train_file, validation_file, columns, sample_by, streaming, cache_dir)
        what = f"--train_file {train_file[0]}"
    else:
        corpus = _load_hub(dataset_name, dataset_config_name, dataset_split, columns, streaming, cache_dir)
        what = f"--dataset_name {dataset_name}"
    if "validation" not in corpus:
        corpus = _hold_out(corpus["train"], streaming, validation_split_percentage, seed, what)
    return (IterableDatasetDict if streaming else DatasetDict)(corpus)


def _as_streams(corpus):
    return IterableDatasetDict({split: part.to_iterable_dataset() for split, part in corpus.items()})


@contextlib.contextmanager
def reading(what: str, paths: Sequence[str] = ()) -> Iterator[None]:
    """Says what could not be read when the datasets library fails in its own words, of which it logs some before.

    Args:
        what: The flag and its value.
        paths: Files, in which the culprit is looked for.

    Raises:
        UsageError: The body could not read something.
    """
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except UsageError:
        raise
    except _UNREADABLE as error:
        culprit = _culprit(paths)
        message = f"{what.split()[0]} {culprit}" if culprit else f"{what}: cannot be read: {error.__cause__ or error}"
        raise UsageError(message) from error
    except TypeError as error:  # datasets 5.0 of a line of JSON that is no object; else a bug of ours
        if culprit := _culprit(paths):
            raise UsageError(f"{what.split()[0]} {culprit}") from error
        raise
    finally:
        datasets.logging.set_verbosity(verbosity)


def legible(rows: Iterable[dict], what: str, paths: Sequence[str] = ()) -> Iterator[dict]:
    """The rows of a stream, which may turn out to be damaged far behind its beginning; see `reading`."""
    with reading(what, paths):
        yield from rows


def _culprit(paths):
    """File and line, counted from 1, that is no text or no JSON, and what to do; `None` if there is none."""
    for path in paths:
        kind, number = suffix_of(Path(path)), 0
        if kind == ".parquet":
            continue
        try:
            with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    text = line.decode("utf-8")
                    if kind == ".jsonl" and text.strip() and not isinstance(json.loads(text), dict):
                        return f"{path}, line {number}: no object, '{{...}}'; mend or remove it"
        except UnicodeDecodeError as error:
            byte = f"byte {error.object[error.start]:#x} in column {error.start + 1}"
            return f"{path}, line {number}: not UTF-8 ({byte}); convert the file, e.g. by iconv"
        except json.JSONDecodeError as error:
            return f"{path}, line {number}: not JSON ({error.msg} in column {error.colno}); mend or remove it"
        except (OSError, EOFError, zlib.error) as error:
            return f"{path}: {error}; it may be incomplete"
    return None


def _load_files(train_file, validation_file, columns, sample_by, streaming, cache_dir):
    files = {"train": find_files(train_file, "train_file")}
    if validation_file:
        files["validation"] = find_files(validation_file, "validation_file")
    options = {"sample_by": sample_by, "streaming": streaming, "cache_dir": cache_dir}
    return {split: _read_files(paths, f"{split}_file", columns, **options) for split, paths in files.items()}


def load_texts(files: Sequence[str], flag: str, text_column: str = "text", cache_dir: str | None = None) -> Dataset:
    """Loads local files as `load_corpus` does, with none held out: one column, `text`, one document per row.

    Args:
        files: Paths, folders and globs, see `find_files`.
        flag: The flag that names them, for messages.
        text_column: The column that holds the text.
        cache_dir: Cache of the datasets library.

    Raises:
        UsageError: A file or the column is missing, a file cannot be read, or there is no text.
    """
    paths = find_files(files, flag)
    columns = {"text_column": text_column}
    return _read_files(paths, flag, columns, sample_by="line", streaming=False, cache_dir=cache_dir)


def _read_files(paths, flag, columns, sample_by, streaming, cache_dir):
    what = f"--{flag} {', '.join(paths[:3])}"
    if not any(Path(path).stat().st_size for path in paths):
        raise UsageError(f"{what}: empty")
    builder, options = BUILDERS[suffix_of(Path(paths[0]))]
    if builder == "text":
        options = {"sample_by": sample_by}
    options = options | {"streaming": streaming, "cache_dir": cache_dir}
    with reading(what, paths):
        part = load_dataset(builder, data_files=[glob.escape(path) for path in paths], split="train", **options)
        return _text_only(part, columns, what)


def _load_hub(name, config_name, split, columns, streaming, cache_dir):
    what = f"--dataset_name {name}"
    with reading(what):
        splits = datasets.get_dataset_split_names(name, config_name)
        if split not in splits:
            raise UsageError(f"--dataset_split {split}: {name} has the splits {', '.join(splits)}")
        wanted = {"train": split}
        held_out = next((s for s in ("validation", "test") if s in splits and s != split), None)
        wanted |= {"validation": held_out} if held_out else {}
        options = {"streaming": streaming, "cache_dir": cache_dir}
        return {
            part: _text_only(load_dataset(name, config_name, split=found, **options), columns, what)
            for part, found in wanted.items()
        }


def _text_only(dataset, columns, what):
    """The columns named by these flags, as `text` and perhaps `view`."""
    # A stream knows its columns only when something of it has been read.
    known = Dataset.from_list(list(dataset.take(100))) if isinstance(dataset, IterableDataset) else dataset
    if not len(known):
        raise UsageError(f"{what}: holds no document")
    for flag, column in columns.items():
        if column not in known.column_names:
            raise UsageError(
                f"{what}: no column '{column}'{nearest(column, known.column_names)} "
                f"(its columns are {', '.join(known.column_names)}); name one with --{flag}"
            )
        feature = known.features[column]
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        if kind not in ("string", "large_string"):
            raise UsageError(f"{what}: column '{column}' holds {kind}, not text; name another with --{flag}")
        known.data.column(column).validate(full=True)  # json and parquet files may hold what is not UTF-8
    dataset = dataset.select_columns(list(columns.values()))
    # The view first, for its column may be called text.
    for flag, column in reversed(columns.items()):
        name = flag.removesuffix("_column")
        dataset = dataset if column == name else dataset.rename_column(column, name)
    return dataset


def _hold_out(train, streaming, percentage, seed, what):
    if streaming:
        rest = train.skip(_STREAM_HELD_OUT)
        if next(iter(rest), None) is None:
            raise UsageError(
                f"{what}: the first {_STREAM_HELD_OUT} documents of a stream are held out, and there are no more; "
                "name a --validation_file, or read without --streaming"
            )
        return {"train": rest, "validation": train.take(_STREAM_HELD_OUT)}
    if not 0 < percentage < 100:
        raise UsageError(f"--validation_split_percentage {percentage:g}: must be above 0 and below 100")
    if len(train) < 2:
        raise UsageError(f"{what}: a single document; at least 2 are needed, one of them held out")
    held_out = min(max(1, round(len(train) * percentage / 100)), len(train) - 1)
    split = train.train_test_split(test_size=held_out, seed=seed)
    return {"train": split["train"], "validation": split["test"]}
