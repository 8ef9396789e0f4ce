"""Copies remote files that fsspec can open (`hf://`, `s3://` …) to the cache of the datasets library."""

import hashlib
import logging
import shutil
import uuid
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import datasets
import fsspec

from text_jepa.cli import UsageError, first_line
from text_jepa.data.compressed import suffix_of
from text_jepa.data.files import BUILDERS


logger = logging.getLogger(__name__)

_WEB = ("http://", "https://")
# Fields by which a web server identifies the version of a file, because its `ukey` never changes.
_OF_VERSION = ("size", "ETag", "Last-Modified", "Content-MD5", "Digest")


def local_names(pattern: str, flag: str) -> list[str]:
    """Resolves a name to local paths.

    Files of a name with a protocol are copied first, unless an up-to-date copy exists; of a folder or glob, only files
    of a known kind are copied. Any other name is returned unchanged.

    Args:
        pattern: A path, folder or glob, optionally with a protocol.
        flag: The flag that names it, for error messages.

    Raises:
        UsageError: The protocol is unknown or needs a package, or there is no such file.
    """
    if "://" not in pattern:
        return [pattern]
    what = f"--{flag} {pattern}"
    try:
        return _copy(pattern, what)
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"{what}: {first_line(error)}; install it, or copy the files to this machine") from error
    except FileNotFoundError as error:
        raise UsageError(f"{what}: no such file") from error
    except Exception as error:  # each protocol has errors of its own
        raise UsageError(f"{what}: cannot be read: {first_line(error)}; check name, network and login") from error


def _copy(pattern: str, what: str) -> list[str]:
    file_system, place = fsspec.url_to_fs(pattern)
    path_of_place = _without_query(place)
    wildcards = [path_of_place.index(character) for character in "*?[" if character in path_of_place]
    is_glob = bool(wildcards)
    if is_glob:
        found = file_system.glob(place)
        root = place[: min(wildcards)].rpartition("/")[0]
    elif not _is_file_on_web(path_of_place) and file_system.isdir(place):
        found = file_system.find(place)
        root = place
    else:
        found = [place]
        root = path_of_place.rpartition("/")[0]
    if is_glob or found != [place]:
        known = [path for path in found if suffix_of(Path(_without_query(path))) in BUILDERS]
        found = [path for path in known if file_system.isfile(path)]
    # Names in an object store may contain `..`, which would leave the cache.
    found = [path for path in found if ".." not in PurePosixPath(path).parts]
    if not found:
        raise UsageError(f"{what}: no {', '.join(BUILDERS)} file there")
    versions = [(path, _version_of(file_system, path)) for path in sorted(found)]
    key = hashlib.sha256(repr((pattern, versions)).encode()).hexdigest()[:16]
    # Ends with the name of the remote folder, which messages show.
    folder = Path(datasets.config.HF_DATASETS_CACHE, "text_jepa_copies", key, PurePosixPath(root).name or "files")
    targets = {path: folder / PurePosixPath(_without_query(path)).relative_to(root or ".") for path, _ in versions}
    if not folder.is_dir():
        size = sum(file_system.size(path) or 0 for path in targets)
        logger.info(f"{what}: copying {len(targets)} files ({size:,} bytes) to {folder}")
        unfinished = folder.with_name(f"_{uuid.uuid4().hex}")
        try:
            for path, target in targets.items():
                copy = unfinished / target.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                file_system.get_file(path, str(copy))
            _move(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    if is_glob or len(targets) == 1:
        return [str(target) for target in targets.values()]
    return [str(folder)]


def _move(unfinished: Path, folder: Path) -> None:
    """Renames a complete copy, unless another run has made the same one meanwhile."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _without_query(place: str) -> str:
    """Removes the query of a URL, such as `?download=true`; in other names, a question mark is a wildcard."""
    if not place.startswith(_WEB):
        return place
    return urlsplit(place)._replace(query="", fragment="").geturl()


def _is_file_on_web(place: str) -> bool:
    """Whether a URL names a file of a known kind. For fsspec, each page with links is a folder as well."""
    return place.startswith(_WEB) and suffix_of(Path(place)) in BUILDERS


def _version_of(file_system: fsspec.AbstractFileSystem, path: str) -> tuple[str, ...]:
    """Values that change whenever the file changes."""
    info = file_system.info(path)
    return str(file_system.ukey(path)), *(str(info.get(name)) for name in _OF_VERSION)
