"""Names of encoders and data sets: a folder, or a repository of the Hub, of which only one question is asked."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from text_jepa.errors import nearest


def local_path(name: str) -> Path:
    """Expands `~` and `~user` in a path; a name with an unknown user is returned unchanged."""
    return Path(os.path.expanduser(name))


def check_name(
    source: str,
    cache_dir: str | None = None,
    kind: str = "model",
    known: Sequence[Path] = (),
) -> None:
    """Checks that a name is a folder, or one that the Hub can have.

    The Hub is asked once whether it can be reached at all: downloads would try again for half a minute and longer,
    mostly for a folder that is not there.

    Args:
        source: Folder or name on the Hub.
        cache_dir: Cache of downloads of models; data sets are always downloaded to that of the Hub.
        kind: `"model"` or `"dataset"`.
        known: Other folders, of which each would show that the Hub has this name.

    Raises:
        ValueError: It is a path where no folder is, or the Hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return
    if path.is_file():
        raise ValueError("this is a file; pass the folder that contains it")
    if local_path(source).is_dir():
        raise ValueError(f"no such folder; write {local_path(source)}")
    others = []
    if path.name and path.parent.is_dir():
        others = [other.name for other in path.parent.iterdir() if other.is_dir()]
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise ValueError(f"no such folder{nearest(path.name, others)}") from error
    if kind == "dataset":
        cache_dir = None
    downloads = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=source, repo_type=kind))
    if any(folder.is_dir() for folder in (downloads, *known)):
        return
    if "/" in source and path.parent.is_dir():
        options = ["--repo-type", kind] if kind != "model" else []
        options += ["--cache-dir", cache_dir] if cache_dir else []
        download = shlex.join(["hf", "download", *options, source])
        raise ValueError(
            f"no such folder in {path.parent}; for a repository of the Hub of this name, `{download}` first"
            f"{nearest(path.name, others)}"
        )
    _ask_hub(source, kind, nearest(path.name, others))


def is_cached(source: str, cache_dir: str | None = None) -> bool:
    """Whether the configuration of a name on the Hub has been downloaded."""
    return isinstance(try_to_load_from_cache(source, "config.json", cache_dir), str)


def _ask_hub(source: str, kind: str, suggestion: str) -> None:
    """Raises ValueError if the Hub gives no answer, be it that it has no such name."""
    if constants.HF_HUB_OFFLINE:
        return  # what is opened next says so
    try:
        get_hf_file_metadata(hf_hub_url(source, "README.md", repo_type=kind))
    except HfHubHTTPError:
        return  # an answer, which is told when the files are fetched
    except Exception as error:  # of the HTTP library, whose names differ between versions
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"no such folder, and the Hub cannot be reached: {lines[0]}{suggestion}") from error
