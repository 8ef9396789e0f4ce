"""Publishes the known files of a finished folder on the Hub, in one commit."""

import itertools
import logging
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import disable_progress_bars
from transformers import AutoTokenizer
from transformers.utils.hub import PushInProgress

from text_jepa.cli import UsageError, first_line
from text_jepa.encoders.opening import check_adapters
from text_jepa.encoders.sentence_head import MODULE_FILES, TRANSFORMER_FILES, check_code_of_modules, read_modules
from text_jepa.share.export import CONFIGURATIONS, code_in
from text_jepa.share.model_card import readable_card, renamed_card


logger = logging.getLogger(__name__)

# Files of a folder that are published, beside those of its tokenizer and its modules. Checkpoints, optimizers,
# arguments and other logs are not.
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
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",  # sentencepiece
    "modules.json",
    *TRANSFORMER_FILES,
    "config_sentence_transformers.json",
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/model_fp16.onnx",
    "onnx/model_fp16.onnx.data",
    "onnx/model_int8.onnx",
    "onnx/model_int8.onnx.data",
]

# Files that are never published, but would be read with an encoder that is: other weights, adapters and modules.
_REPLACED = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-?????-of-?????.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    *(f"[0-9]_*/{name}" for name in MODULE_FILES),
]

# Files of a sentence-transformers module that are published. Weights in other formats are pickles, which run code.
_SUFFIXES_OF_A_MODULE = (".json", ".safetensors", ".model")


def files_to_publish(folder: str | Path) -> list[str]:
    """Finds the files that `push_folder` uploads; returns their names, sorted.

    Raises:
        UsageError: The folder is not finished: configuration, weights, card, or files of its tokenizer or modules are
            missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    check_adapters(str(folder))
    patterns = PUBLISHED + _files_of_tokenizer(folder)
    found = set()
    for path in (*folder.glob("*"), *folder.glob("onnx/*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and any(_matches(name, pattern) for pattern in patterns):
            found.add(name)
    for pattern in ("config.json", "model*.safetensors", "README.md"):
        if not any(fnmatch(name, pattern) for name in found):
            raise UsageError(f"{folder}: not a finished encoder, {pattern} is missing; text-jepa export makes one")
    _refuse_code(folder)
    for path in _files_of_modules(folder):
        found.add(path.relative_to(folder).as_posix())
    return sorted(found)


def _refuse_code(folder: Path) -> None:
    """Raises UsageError if the encoder, its tokenizer or a module needs Python code of others."""
    for name in CONFIGURATIONS:
        for file in itertools.chain(*code_in(folder / name).values()):
            if file not in PUBLISHED:
                raise UsageError(
                    f"{folder}: code of others ({file}) is not published; `hf upload` publishes whole folders"
                )
    check_code_of_modules(str(folder))


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern in which, unlike in `fnmatch`, a star does not match a slash."""
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _files_of_tokenizer(folder: Path) -> list[str]:
    """Names of the files that the class of the tokenizer reads, such as `bpe.codes`; none without a tokenizer."""
    if not (folder / "tokenizer_config.json").is_file():
        return []
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # The tokenizers library raises plain exceptions.
    except Exception as error:
        raise UsageError(f"{folder}: its tokenizer cannot be read ({first_line(error)}); fix it first") from error
    return list(tokenizer.vocab_files_names.values())


def _files_of_modules(folder: Path) -> Iterator[Path]:
    """All files of the sentence-transformers modules in subfolders, that is, of all modules except the encoder."""
    for subfolder, kind in read_modules(folder):
        module = folder / subfolder
        if not module.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{folder}/modules.json: the module '{subfolder}' is outside the folder; fix it first")
        if module.resolve() == folder.resolve():
            continue
        paths = [path for path in module.rglob("*") if path.is_file() and not path.name.startswith(".")]
        published = [path for path in paths if path.suffix in _SUFFIXES_OF_A_MODULE]
        pickles = [path for path in paths if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
        if pickles and not any(path.suffix == ".safetensors" for path in published):
            raise UsageError(
                f"{pickles[0]}: weights in a pickle are not published; `text-jepa export sentence-transformers` "
                "writes them as safetensors"
            )
        # Normalize has no files, and a repository has no empty folders.
        if not published and not kind.endswith("Normalize"):
            raise UsageError(f"{folder}/modules.json names the module '{subfolder}', which is not there; add it")
        yield from published


def create_repository(name: str, private: bool | None = None, token: str | None = None) -> str:
    """Creates a model repository on the Hub unless it exists.

    Args:
        name: `owner/name`, or `name` for a repository of your own.
        private: Visibility of a new repository; if true, one that exists has to be private. Default: the owner's
            setting.
        token: Access token. Default: from the variable HF_TOKEN or `hf auth login`.

    Returns:
        The full name, `owner/name`.

    Raises:
        UsageError: The Hub cannot be reached or refuses the request, or the repository exists and is not private.
    """
    api = HfApi(token=token)
    try:
        name = api.create_repo(name, private=private, exist_ok=True).repo_id
        is_public = private and not api.repo_info(name).private  # a repository that exists stays as it is
    except Exception as error:
        raise UsageError(f"{name} cannot be published: {_reason(error)}") from error
    if is_public:
        raise UsageError(
            f"{name} cannot be published privately: it exists and is public; make it private in its settings on the "
            "Hub, or use another name"
        )
    return name


def push_folder(
    folder: str | Path,
    name: str,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload the encoder",
    token: str | None = None,
) -> str:
    """Uploads the files of `files_to_publish` in one commit, so that the repository has all of them or none.

    The uploaded card has the name of the repository, so that its snippets work. The folder itself is unchanged. The
    commit removes what an earlier upload has left of another encoder.

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
        UsageError: The folder is not finished, the repository is public and must not be, or the Hub cannot be reached
            or refuses the request. Nothing is published.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()  # here, because the Trainer enables them again
    folder = Path(folder)
    files = files_to_publish(folder)
    _read_card(folder / "README.md", name)  # fails before a repository is created
    name = create_repository(name, private, token)
    operations = []
    for file in files:
        content = _read_card(folder / file, name) if file == "README.md" else folder / file
        operations.append(CommitOperationAdd(file, content))
    api = HfApi(token=token)
    try:
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        present = api.list_repo_files(name, revision=revision)
        operations += [CommitOperationDelete(file) for file in _outdated_files(present, files)]
        # Not upload_folder, which may split an upload into several commits.
        commit = api.create_commit(name, operations, commit_message=message, revision=revision)
    # Errors of any type, some from the HTTP library, must not end a run with a traceback.
    except Exception as error:
        raise UsageError(f"{name} was not published: {_reason(error)}") from error
    return commit.commit_url


def _outdated_files(present: Iterable[str], uploaded: Collection[str]) -> Iterator[str]:
    """The files of a repository that belong to an earlier encoder: of known names, and not uploaded again."""
    patterns = PUBLISHED + _REPLACED
    for name in present:
        if name not in uploaded and any(_matches(name, pattern) for pattern in patterns):
            yield name


def push_in_background(
    folder: str,
    name: str,
    message: str,
    revision: str | None = None,
    token: str | None = None,
) -> PushInProgress:
    """Uploads a temporary folder in a separate thread, and deletes it. A failed upload is logged as a warning.

    Args:
        folder: An exported encoder.
        name: See `create_repository`.
        message: Commit message.
        revision: See `push_folder`.
        token: See `create_repository`.

    Returns:
        The upload, for which the Trainer waits at the end of a run.
    """
    upload = HfApi().run_as_future(_push_and_delete, folder, name, message, revision, token)
    return PushInProgress([upload])


def _push_and_delete(
    folder: str,
    name: str,
    message: str,
    revision: str | None,
    token: str | None,
) -> None:
    try:
        push_folder(folder, name, revision=revision, message=message, token=token)
    except UsageError as error:
        logger.warning(f"{message}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_card(path: Path, name: str) -> bytes:
    """Reads a card and renames it for the repository."""
    with readable_card(str(path)):
        card = renamed_card(path.read_text(encoding="utf-8"), name, title=name.rpartition("/")[2])
    return card.encode()


def _reason(error: Exception) -> str:
    """Describes an error of the Hub in one line."""
    cause = error.__cause__ or error  # the message of a failed upload is in its cause
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return f"the Hub says {status}; set the variable HF_TOKEN, or log in with `hf auth login`, to write there"
    return first_line(cause)
