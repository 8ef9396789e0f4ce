"""Publishing: the files of a finished folder, and no others, in one commit on the Hub."""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import disable_progress_bars

from text_jepa.cli import UsageError, first_line
from text_jepa.share.model_card import renamed_card


# What a folder may publish. Whatever else lies beside it stays here: checkpoints, optimizers, arguments, logs.
PUBLISHED = [
    "README.md",
    "curves.png",
    "metrics.jsonl",
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "configuration_text_jepa.py",
    "modeling_text_jepa.py",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",  # sentencepiece
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/model_int8.onnx",
]

# What a folder that modules.json names may publish: sentence-transformers' pooling, weights of words, dense layers.
PUBLISHED_OF_A_MODULE = ["config.json", "model.safetensors"]


def files_to_publish(folder: str | Path) -> list[str]:
    """Names of the files that `push_folder` would upload, in the order of the alphabet.

    Raises:
        UsageError: The folder is not finished: it has no configuration, weights or card.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    modules = _module_folders(folder)
    patterns = PUBLISHED + [f"{module}/{name}" for module in modules for name in PUBLISHED_OF_A_MODULE]
    places = [folder, *(place for place in folder.iterdir() if place.is_dir() and place.name in {"onnx", *modules})]
    names = (path.relative_to(folder).as_posix() for place in places for path in place.iterdir() if path.is_file())
    # fnmatch would let a star stand for a slash too.
    found = [n for n in names if any(fnmatch(n, p) and n.count("/") == p.count("/") for p in patterns)]
    for pattern in ("config.json", "model*.safetensors", "README.md"):
        if not any(fnmatch(name, pattern) for name in found):
            raise UsageError(f"{folder}: not a finished encoder, {pattern} is missing; text-jepa export makes one")
    return sorted(found)


def _module_folders(folder):
    """Names of the folders of sentence-transformers' modules; that of the encoder is empty."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [module["path"] for module in json.loads(path.read_text(encoding="utf-8")) if module["path"]]


def create_repository(name: str, private: bool | None = None, token: str | None = None) -> str:
    """Makes a repository of the Hub unless it is there; its full name.

    Args:
        name: `owner/name`, or `name` for one's own.
        private: Of a new one. Default: as the owner has chosen.
        token: Default: from the variable HF_TOKEN or `hf auth login`.

    Raises:
        UsageError: The Hub cannot be reached, or refuses.
    """
    try:
        return HfApi(token=token).create_repo(name, private=private, exist_ok=True).repo_id
    except Exception as error:
        raise UsageError(f"{name} cannot be published: {_reason(error)}") from error


def push_folder(
    folder: str | Path,
    name: str,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload the encoder",
    token: str | None = None,
) -> str:
    """Uploads the files of `files_to_publish` in one commit: the repository has all of them or none.

    The card goes under the repository's name, so that its snippets work. The folder stays as it is.

    Args:
        folder: An exported encoder, or `pretraining/` of a run.
        name, private, token: See `create_repository`.
        revision: Branch; made if it is not there. Default: main.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        UsageError: The folder is not finished, the Hub cannot be reached, or it refuses. Nothing is published then.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()  # here, for the Trainer switches them on again
    folder, files = Path(folder), files_to_publish(folder)
    name = create_repository(name, private, token)
    card = renamed_card((folder / "README.md").read_text(encoding="utf-8"), name).encode()
    operations = [CommitOperationAdd(file, card if file == "README.md" else folder / file) for file in files]
    api = HfApi(token=token)
    try:
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        # Not upload_folder, which may split an upload into several commits.
        return api.create_commit(name, operations, commit_message=message, revision=revision).commit_url
    # Of many kinds, some of them of the library that speaks HTTP: a run must not end in a traceback because of one.
    except Exception as error:
        raise UsageError(f"{name} was not published: {_reason(error)}") from error


def _reason(error):
    cause = error.__cause__ or error  # of a failed upload only the cause says what failed
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub says {status}; set the variable HF_TOKEN, or log in with `hf auth login`, to write there"
    return first_line(cause)
