"""Finds the files of paths, folders and globs."""

import contextlib
import glob
import json
import logging
import mimetypes
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from datasets.data_files import FILES_TO_IGNORE

from text_jepa.cli import UsageError
from text_jepa.data.compressed import COMPRESSED, FileError, NoSuchColumn, suffix_of
from text_jepa.data.files import BUILDERS, PROSE, Form, find_problem
from text_jepa.data.remote import local_names
from text_jepa.data.walking import SHOWN_NAMES, identity_of, is_copy, is_of_model, walk, warn_of_models
from text_jepa.errors import is_utf8
from text_jepa.names import local_path


logger = logging.getLogger(__name__)

# Kinds of files with columns, and names, without suffixes, of files that describe them.
TABLES = set(BUILDERS) - set(PROSE)
_DESCRIPTIONS = ("readme", "license", "licence", "notice", "citation", "changelog", "contributing")

# Names of the files and folders of a split, as in the datasets library: validation-00000-of-00002.parquet, c4-test.
_SPLIT_NAME = re.compile(
    r"(?P<beginning>(?:.*?[-._0-9])??)(?P<split>train|validation|valid|val|dev|test)(?P<end>[-._0-9].*)?", re.DOTALL
)
# What may follow in the name of a file of prose: only numbers, because test-drive.md is a note.
_NUMBERS = re.compile(r"[-._0-9]*(?:of[-._0-9]+)?")
_SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

# Sizes in bytes up to which files of a folder are checked by reading them: a text file, a table, whose rows are slower
# to read, and all files together. A larger file that is damaged is an error.
_LONGEST_NOTE = 16 << 20
_LONGEST_TABLE = 1 << 20
_READ_FIRST = 256 << 20


def find_files(
    patterns: Sequence[str],
    flag: str,
    mixed: bool = False,
    split: str = "train",
    form: Form | None = None,
    streaming: bool = False,
) -> list[str]:
    """Finds the files of paths, folders and globs; those of each name are sorted, and no file is listed twice.

    A folder stands for all files of a known kind in it and its subfolders, except hidden files, backup copies and what
    describes a table, such as its readme, in its folder or above it. In a folder that has files without columns, files
    that cannot be read are excluded, too: tables without the requested columns, such as settings of programs, and
    damaged files. One line of the log counts the excluded files, with the reasons. Subfolders that are runs or models
    are left out, see `walk`.

    Args:
        patterns: Paths, folders and globs, or names for fsspec, see `local_names`.
        flag: The flag that names them, for error messages.
        mixed: Whether files may be of different kinds.
        split: The split that is read from the folder of a saved `DatasetDict`.
        form: How files are read. Default: files are not checked.
        streaming: Whether the run should start without reading whole files. Only the beginnings of tables are then
            checked.

    Raises:
        UsageError: A name matches no file, the kinds of files are mixed or unknown, or most of a folder is excluded.
    """
    found = {}
    for pattern in patterns:
        for name in local_names(pattern, flag):
            for path in _match(local_path(name), pattern, flag, split, form, streaming):
                found.setdefault(identity_of(path), path)
    paths = list(found.values())
    unknown = [path for path in paths if suffix_of(Path(path)) not in BUILDERS]
    if unknown:
        raise UsageError(f"--{flag} {unknown[0]}: files of this kind are not read; use one of {', '.join(BUILDERS)}")
    suffixes = sorted({suffix_of(Path(path)) for path in paths})
    if not mixed and any(BUILDERS[suffix] != BUILDERS[suffixes[0]] for suffix in suffixes):
        raise UsageError(f"--{flag}: files of different kinds ({', '.join(suffixes)}); name one kind, e.g. '*.jsonl'")
    return paths


def files_of_splits(paths: Iterable[str], folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Finds the validation and the test files by their names and those of their folders.

    A name counts only beside a `train` file or folder whose name begins in the same way: `c4-test` beside `c4-train`.

    Args:
        paths: Files in these folders.
        folders: The folders that were named. Only names below them count.
    """
    splits_of = {path: _splits_by_name(Path(path), folders) for path in paths}
    with_train = {place for splits in splits_of.values() for place, split in splits.items() if split == "train"}
    validation = []
    test = []
    for path, splits in splits_of.items():
        held_out = [split for place, split in splits.items() if split != "train" and place in with_train]
        if "test" in held_out:
            test.append(path)
        elif held_out:
            validation.append(path)
    return validation, test


def _splits_by_name(path: Path, folders: Sequence[Path]) -> dict[tuple[Path, str], str]:
    """Finds the splits in the names of a path. Each key is the folder of a name and what the name begins with."""
    splits = {}
    around = [folder for folder in folders if path.is_relative_to(folder)]
    parent = max(around, key=lambda folder: len(folder.parts))
    for part in path.relative_to(parent).parts:
        match = _SPLIT_NAME.fullmatch(part.lower())
        if match and _may_be_split(part, match["end"] or ""):
            splits[parent, match["beginning"]] = _SPLITS[match["split"]]
        parent = parent / part
    return splits


def _may_be_split(name: str, end: str) -> bool:
    """Whether a file or folder may be a split, by what follows the word for it in its name."""
    suffix = suffix_of(Path(name))
    if suffix not in PROSE:
        return True
    return _NUMBERS.fullmatch(end[: end.rindex(suffix)]) is not None


def _match(path: Path, pattern: str, flag: str, split: str, form: Form | None, streaming: bool) -> list[str]:
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        if is_saved(path):
            return _saved_files(path, split)
        return _files_of_folder(path, f"--{flag} {pattern}", form, streaming)
    if path.exists():
        raise UsageError(
            f"--{flag} {pattern}: this is a pipe or a device, which cannot be read twice; save its content to a file"
        )
    files = _files_of_glob(str(path), f"--{flag} {pattern}")
    if not files:
        raise UsageError(f"--{flag} {pattern}: no such file")
    return files


def _files_of_glob(pattern: str, what: str) -> list[str]:
    """The files that a glob matches, except copies and, below `**`, those of runs and models.

    Folders that it matches are not read, which one line of the log says.
    """
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    files = [path for path in matches if path.is_file() and not is_copy(path.name)]
    folders = sorted(str(path) for path in matches if path.is_dir() and not is_copy(path.name))
    parts = Path(pattern).parts
    if "**" in parts:
        files = _without_models(files, parts.index("**"), pattern)
    elif folders:
        logger.warning(f"{what}: matches folders, which are not read: {list_names(folders)}; to read them, name them")
    return sorted(map(str, files))


def _without_models(files: Sequence[Path], depth: int, pattern: str) -> list[Path]:
    """The files that are in no folder of a run or a model, apart from the first `depth` folders of their paths."""
    is_left_out = {}
    kept = []
    for path in files:
        folders = [Path(*path.parts[:end]) for end in range(depth + 1, len(path.parts))]
        for folder in folders:
            if folder not in is_left_out:
                is_left_out[folder] = is_of_model(os.listdir(folder))
        if not any(is_left_out[folder] for folder in folders):
            kept.append(path)
    warn_of_models(pattern, [str(folder) for folder, is_model in is_left_out.items() if is_model])
    return kept


def _files_of_folder(folder: Path, what: str, form: Form | None, streaming: bool) -> list[str]:
    known = []
    others = []
    for path in walk(folder, what):
        if suffix_of(Path(path)) in BUILDERS and os.path.isfile(path) and is_utf8(path):
            known.append(path)
        else:
            others.append(path)
    if not known:
        raise UsageError(f"{what}: no {', '.join(BUILDERS)} file in this folder")
    are_texts = any(not _is_table(path) and not _is_description(path) for path in known)
    # In a folder of tables only, a damaged table is an error.
    problems = _find_problems(known, form, streaming) if form is not None and are_texts else {}
    tables = [path for path in known if _is_table(path) and path not in problems]
    described = {folder for path in tables for folder in Path(path).parents}
    names = set(known) - problems.keys()
    read = []
    for path in sorted(known):
        is_unpacked = path.endswith(COMPRESSED) and os.path.splitext(path)[0] in names
        is_of_table = _is_description(path) and Path(path).parent in described
        if is_unpacked or path in problems or is_of_table:
            others.append(path)
        else:
            read.append(path)
    if others:
        _report_others(read, sorted(others), what, _reasons(problems, form))
    return read


def _is_table(path: str) -> bool:
    return suffix_of(Path(path)) in TABLES and Path(path).name not in FILES_TO_IGNORE


def _is_description(path: str) -> bool:
    name = Path(path).name
    first_word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return name in FILES_TO_IGNORE or (first_word in _DESCRIPTIONS and not _is_table(path))


def _find_problems(paths: Sequence[str], form: Form, streaming: bool) -> dict[str, FileError]:
    """Finds files that cannot be read. Short files are read completely, of other tables only the beginning."""
    problems = {}
    rest = 0 if streaming else _READ_FIRST
    for size, path in sorted((_size(path), path) for path in paths):
        if size == 0:
            continue
        longest = _LONGEST_TABLE if _is_table(path) else _LONGEST_NOTE
        to_its_end = size <= min(rest, longest)
        if to_its_end:
            rest -= size
        problem = find_problem(path, form, to_its_end)
        if problem is not None:
            problems[path] = problem
    return dict(sorted(problems.items()))


def _reasons(problems: Mapping[str, FileError], form: Form | None) -> str:
    """Sentences with the reasons why files cannot be read, and the remedies."""
    foreign = [path for path, problem in problems.items() if isinstance(problem, NoSuchColumn)]
    damaged = [str(problem) for problem in problems.values() if not isinstance(problem, NoSuchColumn)]
    sentences = ""
    if foreign:
        columns = " or ".join(f"'{column}'" for column in form.sources["text"])
        has = "table has" if len(foreign) == 1 else "tables have"
        sentences += f". {len(foreign)} {has} no column {columns}; --text_column names it"
    if damaged:
        count = f"{len(damaged)} cannot be read, as " if len(damaged) > 1 else ""
        sentences += f". {count}{damaged[0]}"
    return sentences


def _report_others(read: Sequence[str], others: Sequence[str], what: str, reasons: str) -> None:
    """Logs the excluded files of a folder; it is an error if they hold more than the files that are read."""
    size = sum(_size(path) for path in others)
    size_of_texts = sum(_size(path) for path in others if not _is_no_text(path))
    counts = f"{len(others)} {'file is' if len(others) == 1 else 'files are'} not read"
    line = f"{what}: {counts} ({list_names(others)}; {size:,} bytes)"
    if not read:
        raise UsageError(f"{line}, and there is no other{reasons}")
    read_size = sum(_size(path) for path in read)
    if size_of_texts > read_size:
        raise UsageError(
            f"{line}, which is more than the {read_size:,} bytes of {list_names(read)}; name the files to read, e.g. "
            f"by a glob{reasons}"
        )
    logger.warning(f"{line}{reasons}")


def _is_no_text(path: str) -> bool:
    """Whether a file is a picture, a sound or the style of a page, which are common beside texts."""
    kind, _ = mimetypes.guess_type(path)
    return kind is not None and kind.startswith(("image/", "audio/", "video/", "font/", "text/css", "text/javascript"))


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def list_names(paths: Sequence[str]) -> str:
    """Lists the names of the first files, and counts the others."""
    names = [os.path.basename(path) for path in paths[:SHOWN_NAMES]]
    names = [name if is_utf8(name) else f"{name!a} (not UTF-8)" for name in names]
    more = len(paths) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


# ---- folders of save_to_disk ----------------------------------------------------------------------------------------


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the datasets library."""
    is_dataset = all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))
    return is_dataset or (folder / "dataset_dict.json").is_file()


def splits_of_saved(folder: Path) -> list[str]:
    """The splits in a folder of `save_to_disk`.

    Raises:
        UsageError: The folder is damaged.
    """
    path = folder / "dataset_dict.json"
    if not path.is_file():
        return ["train"]
    with _naming_damage(folder):
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["splits"])


def saved_splits(folder: Path, split: str) -> list[str]:
    """The split of a saved `DatasetDict` that serves as this one, if any; none for any other folder."""
    if not (folder / "dataset_dict.json").is_file():
        return []
    wanted = ("validation", "test") if split == "validation" else (split,)
    known = splits_of_saved(folder)
    return [name for name in wanted if name in known][:1]


def _saved_files(folder: Path, split: str) -> list[str]:
    if (folder / "dataset_dict.json").is_file():
        found = saved_splits(folder, split)
        if not found:
            known = ", ".join(splits_of_saved(folder))
            raise UsageError(
                f"{folder}: no split '{split}' in this saved dataset; it has {known}; pass the folder of one of them"
            )
        folder = folder / found[0]
    with _naming_damage(folder):
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        paths = [folder / part["filename"] for part in state["_data_files"]]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}: missing, though {folder / 'state.json'} names it; save the dataset again")
    return [str(path) for path in paths]


@contextlib.contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    """Converts errors while the lists of `save_to_disk` are read to one that names the folder."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: a damaged folder of save_to_disk ({error}); save it again") from error
