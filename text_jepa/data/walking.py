"""Lists the files of a folder that may hold texts, for training and for search alike."""

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from text_jepa.errors import UsageError


logger = logging.getLogger(__name__)

# Number of names shown in a message.
SHOWN_NAMES = 3

# The file of an output folder by which a run keeps other runs out of it.
LOCK = "_lock"
# A folder is a run if it has the first file and one of the others, which are written when a run starts.
_ARGUMENTS = "arguments.yaml"
_BESIDE_ARGUMENTS = ("changed.yaml", "metrics.jsonl", "trainer_state.json")
# Files of a comparison by `text-jepa probe`.
_RESULTS = ("results.json", "results.md")
# Files of a tokenizer, and of a model or an adapter with weights.
_TOKENIZER = "tokenizer_config.json"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_CONFIGURATIONS = ("config.json", "adapter_config.json", "modules.json")
_WEIGHTS = re.compile(r"(?:model|pytorch_model|adapter_model)[\w.-]*\.(?:safetensors|bin|onnx)")


def walk(folder: Path, what: str) -> Iterator[str]:
    """All files of a folder and its subfolders except hidden ones, backup copies, and what runs and models consist of.

    Links are followed, but no folder is visited within itself. The folder itself is always listed. One line of the log
    names the subfolders that are left out, see `is_of_model`.

    Args:
        folder: An existing folder.
        what: What names it, for error messages.

    Raises:
        UsageError: A folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"{what}: {error.filename}: {error.strerror}; make it readable, or use another folder")

    left_out = []
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if seen and is_of_model(names):
            left_out.append(os.path.relpath(parent, folder))
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        paths = [os.path.join(parent, name) for name in folders if not is_copy(name)]
        folders[:] = [os.path.basename(path) for path in paths if os.path.realpath(path) not in seen]
        yield from (os.path.join(parent, name) for name in names if not is_copy(name))
    warn_of_models(what, left_out)


def warn_of_models(what: str, left_out: Sequence[str]) -> None:
    """Names the folders, if any, that are left out because of `is_of_model`."""
    if left_out:
        more = len(left_out) - SHOWN_NAMES
        shown = ", ".join(sorted(left_out)[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        logger.warning(
            f"{what}: folders of runs, models or results are left out: {shown}; name such a folder explicitly to read "
            "it"
        )


def is_copy(name: str) -> bool:
    """Whether a file is hidden, a lock, or a copy made by an operating system or an editor."""
    is_autosave = name.startswith("#") and name.endswith("#")
    return name == LOCK or is_autosave or name.startswith((".", "~$", "__MACOSX")) or name.endswith("~")


def is_of_model(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is a run, a model, a tokenizer or the results of a comparison."""
    is_run = _ARGUMENTS in names and any(name in names for name in _BESIDE_ARGUMENTS)
    are_results = all(name in names for name in _RESULTS)
    has_weights = any(_WEIGHTS.fullmatch(name) for name in names)
    is_model = has_weights and any(name in names for name in _CONFIGURATIONS)
    is_tokenizer = _TOKENIZER in names and any(name in names for name in _VOCABULARIES)
    return is_run or are_results or is_model or is_tokenizer


def identity_of(path: str | Path) -> tuple[int, int]:
    """Identity of a file, which is the same for all links to it."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
