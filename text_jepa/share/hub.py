"""Publishes a finished folder on the Hub: its known files and no others, in one commit."""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import disable_progress_bars

from text_jepa.cli import UsageError, first_line
from text_jepa.share.model_card import renamed_card


# Files of a folder that are published. Anything else stays: checkpoints, optimizers, arguments, other logs.
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

# The same in the folders that modules.json names: pooling, word weights and dense layers of sentence-transformers.
PUBLISHED_OF_A_MODULE = ["config.json", "model.safetensors"]


def files_to_publish(folder: str | Path) -> list[str]:
    """Names of the files that `push_folder` would upload, sorted.

    Raises:
        UsageError: The folder is not finished: it lacks configuration, weights or card.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    modules = _module_folders(folder)
    patterns = PUBLISHED + [f"{module}/{name}" for module in modules for name in PUBLISHED_OF_A_MODULE]
    places = [folder]
    for subfolder in folder.iterdir():
        if subfolder.is_dir() and subfolder.name in {"onnx", *modules}:
            places.append(subfolder)
    found = []
    for place in places:
        for path in place.iterdir():
            name = path.relative_to(folder).as_posix()
            if path.is_file() and any(_matches(name, pattern) for pattern in patterns):
                found.append(name)
    for pattern in ("config.json", "model*.safetensors", "README.md"):
        if not any(fnmatch(name, pattern) for name in found):
            raise UsageError(f"{folder}: not a finished encoder, {pattern} is missing; text-jepa export makes one")
    return sorted(found)


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern whose star stands for no slash, unlike that of `fnmatch`."""
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _module_folders(folder: Path) -> list[str]:
    """Folders of sentence-transformers' modules, without the encoder, which is in no subfolder."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules = json.loads(path.read_text(encoding="utf-8"))
    return [module["path"] for module in modules if module["path"]]


def create_repository(name: str, private: bool | None = None, token: str | None = None) -> str:
    """Creates a model repository on the Hub unless it exists.

    Args:
        name: `owner/name`, or `name` for one of your own.
        private: Visibility of a new repository. Default: the owner's setting.
        token: Access token. Default: from the variable HF_TOKEN or `hf auth login`.

    Returns:
        The full name, `owner/name`.

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
    """Uploads the files of `files_to_publish` in one commit, so that the repository has all of them or none.

    The uploaded card has the repository's name, so that its snippets work. The folder itself stays unchanged.

    Args:
        folder: An exported encoder, or `pretraining/` of a run.
        name: See `create_repository`.
        private: See `create_repository`.
        revision: Branch, created if missing. Default: main.
        message: Commit message.
        token: See `create_repository`.

    Returns:
        The URL of the commit.

    Raises:
        UsageError: The folder is not finished, the Hub cannot be reached, or it refuses. Nothing is published then.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()  # here, because the Trainer enables them again
    folder = Path(folder)
    files = files_to_publish(folder)
    name = create_repository(name, private, token)
    card = (folder / "README.md").read_text(encoding="utf-8")
    operations = []
    for file in files:
        content = renamed_card(card, name).encode() if file == "README.md" else folder / file
        operations.append(CommitOperationAdd(file, content))
    api = HfApi(token=token)
    try:
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        # Not upload_folder, which may split an upload into several commits.
        commit = api.create_commit(name, operations, commit_message=message, revision=revision)
    # Errors of many types, some from the HTTP library: none of them may end a run in a traceback.
    except Exception as error:
        raise UsageError(f"{name} was not published: {_reason(error)}") from error
    return commit.commit_url


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error  # a failed upload says what failed in its cause only
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return f"the Hub says {status}; set the variable HF_TOKEN, or log in with `hf auth login`, to write there"
    return first_line(cause)
