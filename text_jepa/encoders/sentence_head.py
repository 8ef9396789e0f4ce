"""What a folder of sentence-transformers does with the states of an encoder: pooling, dense layers, length, prompt.

Shapes: N texts, D features.
"""

import dataclasses
import json
import logging
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file
from transformers.utils import cached_file

from configuration_text_jepa import TextJepaConfig
from text_jepa.cli import UsageError, first_line
from text_jepa.data.compressed import LFS_POINTER
from text_jepa.data.word_weights import WORD_WEIGHTS_FOLDER


logger = logging.getLogger("text_jepa")

# Kinds of pooling that are read; several of them at once are not.
POOLINGS = ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")

# How sentence-transformers before version 5 writes the kind of pooling: as one flag for each.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# Files of a module.
MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "wordweights_config.json")

# Where versions of sentence-transformers state the length, and whether they write texts in small letters.
TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

# What these files say of the states of the encoder, in the one way that is read.
_STATES = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
}

# Arguments of models, tokenizers and their calls in these files, and those of them that change no vector.
_ARGUMENTS = ("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs")
_HARMLESS = ("torch_dtype", "dtype", "attn_implementation", "trust_remote_code", "use_cache", "add_pooling_layer")

# Names of prompts for what is searched.
_PROMPTS_OF_DOCUMENTS = ("document", "passage", "corpus")

# Files of other frameworks, which nothing here reads.
_FOREIGN_SUFFIXES = (".h5", ".msgpack", ".ot", ".onnx", ".tflite", ".gguf", ".md")

# A file of every repository on the Hub that no library asks for: it is cached if all of a repository was downloaded.
_OF_EVERY_REPOSITORY = ".gitattributes"

# Bytes of the name of a folder.
_LONGEST_NAME = 255

# A stated length from this number of tokens on means that there is no limit.
NO_LIMIT = 1_000_000

_REMEDY = "pass --pooling mean or --pooling cls, or use another encoder"


class NotCached(UsageError):
    """Nobody knows how an encoder pools: only a part of its files is cached, and the Hub cannot be asked."""


@dataclass(frozen=True)
class SentenceHead:
    """The modules behind the encoder in a folder of sentence-transformers.

    Args:
        source: Folder or name on the Hub.
        pooling: Kind of pooling; the mean if the folder has no such files.
        modules: Subfolder and kind of each module behind the encoder, such as `("1_Pooling", "Pooling")`.
        max_seq_length: Tokens of a text, if stated.
        prompt: What is put before every text.
        prompts: Contents of the file of prompts; `None` without one.
        include_prompt: Whether the tokens of a prompt are pooled.
        options: `cache_dir` and `revision` of its files on the Hub.
    """

    source: str
    pooling: str = "mean"
    modules: tuple[tuple[str, str], ...] = ()
    max_seq_length: int | None = None
    prompt: str = ""
    prompts: Mapping[str, Any] | None = None
    include_prompt: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "SentenceHead":
        """The head that `dataclasses.asdict` has taken apart, also by way of JSON and on another machine."""
        modules = tuple((path, kind) for path, kind in fields["modules"])
        options = dict(fields.get("options", {}))
        if options.get("cache_dir") and not Path(options["cache_dir"]).is_dir():
            del options["cache_dir"]  # that of the machine of the run
        return cls(**{**fields, "modules": modules, "options": options})

    @property
    def parts(self) -> list[str]:
        """The modules and the prompt in words."""
        parts = [f"{self.pooling} pooling"]
        parts += [kind for _, kind in self.modules if kind != "Pooling"]
        if self.prompt:
            parts.append(f"the prompt '{self.prompt}'")
        return parts

    @property
    def search_prompts(self) -> tuple[str, str]:
        """What is put before a query, and before a passage, in a search.

        These are the prompts by name as sentence-transformers documents them for `encode_query` and
        `encode_document`: `query`, and the first of `document`, `passage` and `corpus`. Where none has such a name, it
        is the prompt of every text. Version 6 differs: it adds an empty `query` and `document` where they are missing,
        so that `passage`, `corpus` and the prompt of every text are not reached.

        Raises:
            UsageError: Prompts are not texts, or one would be put there whose tokens are not to be pooled.
        """
        prompts = (self.prompts or {}).get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise UsageError(
                f"{self.source}: the prompts in config_sentence_transformers.json do not map names to texts; fix them"
            )
        query = prompts.get("query") or ""
        document = next((prompts[name] for name in _PROMPTS_OF_DOCUMENTS if prompts.get(name)), "")
        if not query and not document:
            query = document = self.prompt
        _check_prompt(self.source, query or document, self.include_prompt)
        return query, document

    @cached_property
    def layers(self) -> tuple[torch.nn.Module, ...]:
        """What is done with a pooled vector (N, D), in order; read once.

        Raises:
            UsageError: A module cannot be read.
        """
        layers = []
        for path, kind in self.modules:
            if kind == "Dense":
                layers.append(_read_dense(self.source, path, self.options))
            elif kind == "Normalize":
                layers.append(_Normalize())
        size = (self.prompts or {}).get("truncate_dim")
        if size is not None:
            if type(size) is not int or size < 1:
                raise UsageError(
                    f"{self.source}: its truncate_dim is {size!r}, not a positive number of features; fix it"
                )
            layers.append(FirstFeatures(size))
        return tuple(layers)


def read_head(source: str, **options: Any) -> SentenceHead:
    """The head of a folder or a Hub repository, which is the plain mean if there are no such files.

    Args:
        source: Folder or name on the Hub.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: It has modules that are not read, pools in several ways or scores pairs of texts, or its files are
            damaged or not all cached.
    """
    try:
        return _read_head(source, options)
    except UsageError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{source}: modules.json, or a file that it names, is not what sentence-transformers writes ({reason}); "
            "fix it, or remove modules.json"
        ) from error


def _read_head(source: str, options: Mapping[str, Any]) -> SentenceHead:
    read = partial(read_json, source, **options)
    listed = read("modules.json") or []
    check_place_of_encoder(source, listed)
    if not listed:
        _check_no_scores(source, read("config.json") or {})
    modules = []
    pooling = "mean"
    include_prompt = True
    for module in listed:
        _check_module(source, module)
        path = module["path"]
        kind = _kind_of(module)
        if kind == "Transformer":
            continue
        if kind == "Pooling":
            pooling, include_prompt = _read_pooling(read, source, path)
        if kind == "Normalize":
            _check_names(source, path, kind, read(f"{path}/config.json") or {})
        modules.append((path, kind))
    if listed and _kind_of(listed[0]) != "Transformer":
        raise UsageError(f"{source}: the first module in its modules.json is not a Transformer; fix it, or {_REMEDY}")
    _check_order(source, [kind for _, kind in modules])
    prompts = read("config_sentence_transformers.json")
    for name in ("modules.json", "config_sentence_transformers.json"):
        _check_absence(source, name, options)
    _check_model_type(source, prompts or {})
    prompt = _default_prompt(source, prompts or {})
    _check_prompt(source, prompt, include_prompt)
    settings = settings_of_transformer(source, **options)
    tokenizer_settings = read("tokenizer_config.json") or {}
    _check_settings(source, settings)
    if settings.get("do_lower_case") and not tokenizer_settings.get("do_lower_case"):
        raise UsageError(f"{source}: it lowercases texts (do_lower_case), which is not supported; {_REMEDY}")
    length = settings.get("max_seq_length")
    if length is None and modules:
        length = tokenizer_settings.get("model_max_length")  # as in version 6
    head = SentenceHead(
        source=source,
        pooling=pooling,
        modules=tuple(modules),
        max_seq_length=_length_of(source, length),
        prompt=prompt,
        prompts=prompts,
        include_prompt=include_prompt,
        options=options,
    )
    _ = head.layers  # what cannot be read is refused before it is needed
    return head


def _kind_of(module: Mapping[str, Any]) -> str:
    """The name of the class of a module of `modules.json`."""
    return module["type"].rpartition(".")[2]


def _check_module(source: str, module: Mapping[str, Any]) -> None:
    """Raises UsageError unless a module of `modules.json` is of a kind that is read, with no pointers of git-lfs."""
    path = module["path"]
    kind = _kind_of(module)
    check_subfolder(source, path)
    if not is_of_library(module["type"]):
        raise UsageError(f"{source}: its module {module['type']} is third-party code, which is not run; {_REMEDY}")
    is_known = kind in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
    if not is_known and (kind, path) != ("WordWeights", WORD_WEIGHTS_FOLDER):
        raise UsageError(f"{source}: its module {kind} is not supported; {_REMEDY}")
    check_files(source, path)


def _read_pooling(read: Callable[[str], Any], source: str, path: str) -> tuple[str, bool]:
    """The kind of pooling of a module, and whether the tokens of the prompt count in it."""
    config = read(f"{path}/config.json")
    if config is None:
        raise UsageError(
            f"{source}: {path}/config.json, which says how it pools, is missing; copy it there, or name "
            "--pooling mean or --pooling cls"
        )
    pooling = _kind_of_pooling(config)
    if pooling not in POOLINGS:
        raise UsageError(
            f"{source}: its vectors are pooled by '{pooling}' ({path}/config.json), which is not supported; {_REMEDY}"
        )
    return pooling, config.get("include_prompt", True)


def _check_prompt(source: str, prompt: str, include_prompt: bool) -> None:
    """Raises UsageError if a prompt is put before texts whose tokens are not to be pooled."""
    if prompt and not include_prompt:
        raise UsageError(f"{source}: its pooling excludes the prompt '{prompt}', which is not supported; {_REMEDY}")


def _length_of(source: str, length: Any) -> int | None:
    """Tokens of a text, if a folder states them: the length of a tokenizer without a limit is a huge number."""
    if length is None:
        return None
    check_stated_length(source, length)
    return int(length) if length < NO_LIMIT else None


def check_stated_length(source: str, length: Any) -> None:
    """Raises UsageError unless what a folder states as its longest text is a number of tokens."""
    if not isinstance(length, int | float) or not length >= 1:
        raise UsageError(
            f"{source}: its longest text (max_seq_length, model_max_length) is {length!r}, no number of tokens; "
            "correct it there"
        )


def is_of_library(module_type: str) -> bool:
    """Whether the type of a module is of sentence-transformers itself, and not code of others."""
    return module_type.startswith("sentence_transformers.")


def check_code_of_modules(source: str) -> None:
    """Checks that the modules of an encoder of sentence-transformers need no code but that library and torch.

    That library leaves out such code, or asks for it, and its vectors are others then.

    Args:
        source: Folder or name on the Hub.

    Raises:
        UsageError: A module, or the activation of a dense layer, is other code; or `modules.json` is damaged.
    """
    for subfolder, kind in read_modules(source):
        if not is_of_library(kind):
            raise UsageError(f"{source}: its module {kind} is third-party code, which is not run; use another encoder")
        settings = read_json(source, f"{subfolder}/config.json") if subfolder else None
        activation = (settings or {}).get("activation_function")
        # The one prefix that the library itself trusts.
        if activation is not None and not str(activation).startswith("torch."):
            raise UsageError(
                f"{source}: the {activation} of its module {subfolder} is code that sentence-transformers does not "
                "run, but replaces by Tanh; use another encoder"
            )


def check_place_of_encoder(source: str, modules: Sequence[Mapping[str, Any]]) -> None:
    """Checks that the encoder of a folder of sentence-transformers is the one that transformers would open.

    Args:
        source: Folder or name on the Hub.
        modules: Content of its `modules.json`.

    Raises:
        UsageError: The encoder lies in a subfolder.
    """
    for module in modules:
        if not isinstance(module, Mapping):
            continue  # which is told by those who read more than the encoder
        path = str(module.get("path", ""))
        if str(module.get("type")).rpartition(".")[2] == "Transformer" and path.strip("./"):
            raise UsageError(
                f"{source}: its encoder is in the subfolder {path}, where it is not looked for; move the files of "
                f"{path} into the folder itself, and set that path to '' in modules.json"
            )


def _check_settings(source: str, settings: Mapping[str, Any]) -> None:
    """Raises UsageError if the encoder is to be opened or called in a way that is not read here."""
    for name, expected in _STATES.items():
        value = settings.get(name)
        if name == "modality_config" and isinstance(value, dict):
            value = {"text": value["text"]} if "text" in value else None
        if value not in (None, expected):
            shown = json.dumps(value)
            raise UsageError(
                f"{source}: its {name} (sentence_bert_config.json) is {shown}, which is not supported; {_REMEDY}"
            )
    for name in (*_ARGUMENTS, "processing_kwargs"):
        others = [key for key in settings.get(name) or {} if key not in _HARMLESS]
        if others:
            raise UsageError(
                f"{source}: its {name} (sentence_bert_config.json) set {', '.join(map(str, others))}, which is not "
                f"supported; {_REMEDY}"
            )


def _check_names(source: str, path: str, kind: str, config: Mapping[str, Any]) -> None:
    """Raises UsageError if a module works on something else than the vector of a text."""
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise UsageError(
                f"{source}: its module {kind} ({path}) has the {key} {config[key]}, which is not supported; {_REMEDY}"
            )


def _check_order(source: str, kinds: Sequence[str]) -> None:
    """Raises UsageError unless texts are pooled once, before all that is done with their vectors."""
    of_vectors = [kind for kind in kinds if kind in ("Dense", "Normalize")]
    of_tokens = kinds[: kinds.index("Pooling")] if "Pooling" in kinds else kinds
    count = kinds.count("Pooling")
    if count > 1 or (of_vectors and count == 0) or not {"Dense", "Normalize"}.isdisjoint(of_tokens):
        raise UsageError(
            f"{source}: its modules ({', '.join(kinds)}) must pool exactly once, before all others; {_REMEDY}"
        )


def settings_of_transformer(source: str, **options: Any) -> Mapping[str, Any]:
    """What a folder of sentence-transformers states of its encoder: `max_seq_length`, `do_lower_case`."""
    for name in TRANSFORMER_FILES:
        content = read_json(source, name, **options)
        if content is not None:
            return content
    return {}


# ---- the head of a run's start --------------------------------------------------------------------------------------


def head_of_start(source: str, config: TextJepaConfig, **options: Any) -> dict[str, Any] | None:
    """What becomes of the head of the encoder that a run starts from, for its card and its exports.

    A run that pools in training exports what it has trained; any other one leaves the head as it was.

    Args:
        source: Folder or name on the Hub.
        config: The configuration of the model.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Returns:
        `sentence`, what to say about it, and `kept`, its fields for `SentenceHead.from_dict` or `None`; `None` if
        the start has no head.
    """
    card = read_json(source, "card.json", **options)
    if card is not None and card.get("head"):
        return card["head"]  # training of a complete model goes on
    try:
        head = read_head(source, **options)
    except NotCached as error:
        logger.warning(f"{error}; the pooling is that of this run")
        return None
    except UsageError as error:
        return {
            "kept": None,
            "sentence": "The exported encoder uses the pooling of this run, not that of the initial encoder: "
            f"{error}.",
        }
    if not head.modules and not head.prompt:
        return None
    weights = (config.document_loss_weight, config.sentence_loss_weight, config.similarity_loss_weight)
    pools_in_training = any(weight > 0 for weight in weights)
    has_word_weights = any(kind == "WordWeights" for _, kind in head.modules)
    before = "idf" if has_word_weights else head.pooling
    parts = ", ".join(head.parts)
    if pools_in_training and config.pooling != before:
        remedy = f"; --pooling {before} keeps it" if before in ("mean", "cls", "idf") else ""
        sentence = f"This run uses {config.pooling} pooling, so the head of {source} is not kept ({parts}){remedy}."
        return {"kept": None, "sentence": sentence}
    sentence = f"The export keeps the head of {source}: {parts}."
    if head.prompt:
        sentence += " Training texts do not include the prompt."
    return {"kept": dataclasses.asdict(head), "sentence": sentence}


def kept_head(card_info: Mapping[str, Any] | None) -> SentenceHead | None:
    """The head that a run keeps, from its card information."""
    entry = (card_info or {}).get("head") or {}
    return SentenceHead.from_dict(entry["kept"]) if entry.get("kept") else None


def check_modules(head: SentenceHead, has_word_weights: bool) -> None:
    """Raises UsageError if the folder of a head whose modules have weights is gone."""
    for path, kind in head.modules:
        is_needed = kind == "Dense" or (kind == "WordWeights" and not has_word_weights)
        if is_needed and len(_files_of_module(head, path)) < 2:
            raise UsageError(
                f"{head.source}: its module {path} is needed for the export but no longer exists; restore the folder"
            )


def _files_of_module(head: SentenceHead, path: str) -> list[Path]:
    files = [file_of(head.source, f"{path}/{name}", **head.options) for name in MODULE_FILES]
    return [file for file in files if file is not None]


def copy_modules(head: SentenceHead, folder: Path, has_word_weights: bool) -> list[tuple[str, str]]:
    """Copies the modules of a head but for its pooling, and its prompts, into an exported folder.

    Args:
        head: The head.
        folder: The exported folder.
        has_word_weights: Whether the folder has word weights of its own.

    Returns:
        Subfolder and type of each module, in order; the pooling without its file.
    """
    modules = []
    for path, kind in head.modules:
        is_own = kind == "Pooling" or (kind == "WordWeights" and has_word_weights)
        files = [] if is_own else _files_of_module(head, path)
        (folder / path).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, folder / path / file.name)
        modules.append((path, f"sentence_transformers.models.{kind}"))
    if head.prompts is not None:
        text = json.dumps(head.prompts, indent=2) + "\n"
        (folder / "config_sentence_transformers.json").write_text(text, encoding="utf-8")
    return modules


# ---- files ----------------------------------------------------------------------------------------------------------


def read_modules(source: str | Path) -> list[tuple[str, str]]:
    """Subfolder and type of each module that `modules.json` names; none without that file.

    Args:
        source: Folder or name on the Hub.

    Raises:
        UsageError: The file is damaged, or nobody knows whether there is one.
    """
    try:
        listed = read_json(str(source), "modules.json") or []
        named = [(str(module["path"]), str(module["type"])) for module in listed]
    except (TypeError, KeyError) as error:
        raise UsageError(
            f"{source}/modules.json: not a list of modules ({first_line(error)}); fix it first"
        ) from error
    _check_absence(str(source), "modules.json", {})
    for subfolder, _ in named:
        check_subfolder(source, subfolder)
    return named


def check_subfolder(source: str | Path, path: str) -> None:
    """Raises UsageError unless the path of a module, which is read and copied, stays in the folder of its encoder."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path:
        raise UsageError(f"{source}/modules.json: the module '{path}' is outside the folder; fix it first")
    if not path.isprintable() or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise UsageError(f"{source}/modules.json: the module '{path}' is not a valid folder name; fix it first")


def check_files(source: str, subfolder: str = "") -> None:
    """Checks that no file of a folder that would be read is a pointer of git-lfs.

    Args:
        source: Folder, or name on the Hub, where there are none.
        subfolder: The subfolder of a module, which is checked in place of the folder itself.

    Raises:
        UsageError: A file is such a pointer.
    """
    folder = Path(source, subfolder)
    if not folder.is_dir():
        return
    pointers = {path.name for path in folder.iterdir() if _is_pointer(path)}
    whole = {path.name for path in folder.iterdir()} - pointers
    for name in sorted(pointers):
        # Of two forms of the weights or of the tokenizer, the first one is read.
        is_second_form = name.endswith(".bin") and any(other.endswith(".safetensors") for other in whole)
        if not name.endswith((".bin", ".safetensors", ".json")):
            is_second_form = "tokenizer.json" in whole
        if not is_second_form:
            raise UsageError(
                f"{folder / name} is a pointer of git-lfs, not the file itself; run `git lfs pull` in {folder}"
            )


def _is_pointer(path: Path) -> bool:
    if path.suffix in _FOREIGN_SUFFIXES or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def read_json(source: str, name: str, **options: Any) -> Any:
    """The content of a file of a folder or a Hub repository; `None` if there is no such file.

    Args:
        source: Folder or name on the Hub.
        name: The file.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: It is not JSON, or no object, or no list of modules.
    """
    path = file_of(source, name, **options)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: {name} is not JSON ({first_line(error)}); copy it again") from error
    expected = list if name == "modules.json" else dict
    if not isinstance(content, expected):
        kinds = {dict: "an object, '{...}'", list: "a list, '[...]'"}
        raise UsageError(f"{source}: {name} is not {kinds[expected]}; copy it again")
    return content


def file_of(source: str, name: str, **options: Any) -> Path | None:
    """A file of a folder or a Hub repository; `None` if it does not exist, or is not cached while offline.

    Args:
        source: Folder or name on the Hub.
        name: The file.
        **options: `cache_dir`, `revision` … of `from_pretrained`.

    Raises:
        UsageError: The Hub fails, so that nobody knows whether there is such a file.
    """
    try:
        path = cached_file(
            source,
            name,
            **options,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=not constants.HF_HUB_OFFLINE,
        )
    except OSError as error:
        # A folder that is gone is not a name on the Hub, or not an existing one.
        if isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError | ValueError):
            return None
        raise UsageError(_describe_failure(source, name, error)) from error
    except Exception as error:  # of the HTTP library, whose names differ between versions
        raise UsageError(_describe_failure(source, name, error)) from error
    return None if path is None else Path(path)


def _check_absence(source: str, name: str, options: Mapping[str, Any]) -> None:
    """Raises UsageError if only a part of a repository is cached, and nobody knows whether the Hub has a file.

    A file is known to be absent if the Hub says so, has said so earlier, or was downloaded as a whole without it.

    Args:
        source: Folder or name on the Hub.
        name: The file, which `file_of` has looked for.
        options: `cache_dir`, `revision` … of `from_pretrained`.
    """
    if Path(source).is_dir():
        return
    cache = {key: options.get(key) for key in ("cache_dir", "revision")}
    is_cached = isinstance(try_to_load_from_cache(source, "config.json", **cache), str)
    is_whole = isinstance(try_to_load_from_cache(source, _OF_EVERY_REPOSITORY, **cache), str)
    if not is_cached or is_whole or try_to_load_from_cache(source, name, **cache) is not None:
        return
    try:
        HfApi(token=options.get("token")).file_exists(source, name, revision=options.get("revision"))
    except Exception as error:  # of the HTTP library, whose names differ between versions
        place = ["--cache-dir", cache["cache_dir"]] if cache["cache_dir"] else []
        download = shlex.join(["hf", "download", *place, source])
        raise NotCached(
            f"{source}: only a part of it is cached, without {name}, and the Hub cannot be asked for it "
            f"({first_line(error)}); connect once, download all of it with `{download}`, or pass --pooling mean or "
            "--pooling cls"
        ) from error


def _describe_failure(source: str, name: str, error: Exception) -> str:
    return (
        f"{source}: its {name} cannot be fetched ({first_line(error)}); try again, or set HF_HUB_OFFLINE=1 to go on "
        "with what is cached"
    )


def _kind_of_pooling(config: Mapping[str, Any]) -> str:
    """One or several kinds: `pooling_mode` in the new form, a flag for each kind in the old one; mean by default."""
    kinds = config.get("pooling_mode")
    if kinds is None:
        kinds = [kind for flag, kind in POOLING_FLAGS.items() if config.get(flag)]
        kinds = kinds or ["mean"]
    if isinstance(kinds, str):
        return kinds
    return "+".join(kinds)


def _check_model_type(source: str, config: Mapping[str, Any]) -> None:
    """Raises UsageError if the modules of a folder make something else than a vector of a text."""
    model_type = config.get("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        raise UsageError(
            f"{source}: its model_type (config_sentence_transformers.json) is {model_type!r}, whose modules make no "
            f"vector of a text; {_REMEDY}"
        )


def _check_no_scores(source: str, config: Mapping[str, Any]) -> None:
    """Raises UsageError if the configuration of an encoder without modules is that of a CrossEncoder."""
    settings = config.get("sentence_transformers") or {}
    if "activation_fn" in settings or config.get("sbert_ce_default_activation_function"):
        raise UsageError(
            f"{source}: a CrossEncoder (activation_fn in its config.json), which scores pairs of texts and makes no "
            f"vector of a text; {_REMEDY}"
        )


def _default_prompt(source: str, config: Mapping[str, Any]) -> str:
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    prompt = (config.get("prompts") or {}).get(name)
    if not isinstance(prompt, str):
        raise UsageError(
            f"{source}: its default_prompt_name is {name!r}, and config_sentence_transformers.json has no text prompt "
            "of that name; fix it"
        )
    return prompt


class _Normalize(torch.nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors, dim=-1)


class FirstFeatures(torch.nn.Module):
    """Cuts vectors (N, D) to their first features, as sentence-transformers does after all modules."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors[:, : self.size]


def _read_dense(source: str, path: str, options: Mapping[str, Any]) -> torch.nn.Module:
    """A linear layer with its activation, of which those of torch without weights are read.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return _load_dense(source, path, options)
    except UsageError:
        raise
    except UnpicklingError as error:
        raise UsageError(
            f"{source}: the weights of its module Dense ({path}) contain code, which is not run; save them as "
            "safetensors"
        ) from error
    except Exception as error:  # of JSON, safetensors, pickle and torch, for whatever is wrong with the files
        raise UsageError(
            f"{source}: its module Dense ({path}) cannot be read ({first_line(error)}); {_REMEDY}"
        ) from error


def _load_dense(source: str, path: str, options: Mapping[str, Any]) -> torch.nn.Module:
    config = read_json(source, f"{path}/config.json", **options) or {}
    _check_names(source, path, "Dense", config)
    activation_name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    module, _, name = activation_name.rpartition(".")
    activation = getattr(torch.nn, name, None) if module.startswith("torch.nn") else None
    file = file_of(source, f"{path}/model.safetensors", **options)
    pickled = file_of(source, f"{path}/pytorch_model.bin", **options)
    if activation is None or config.get("use_residual") or (file is None and pickled is None):
        raise UsageError(f"{source}: its module Dense ({path}, {activation_name}) cannot be read; {_REMEDY}")
    with torch.device("meta"):  # no room is made for what the file only claims
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    weights = load_file(file) if file else torch.load(pickled, map_location="cpu", weights_only=True)
    weights = {key.removeprefix("linear."): value.float() for key, value in weights.items()}
    linear.load_state_dict(weights, assign=True)
    return torch.nn.Sequential(linear, activation()).eval()
