"""Adapts an encoder to your texts and reports whether it improved on held-out ones; its type decides the recipe.

    text-jepa adapt sentence-transformers/all-MiniLM-L6-v2 notes/
    text-jepa adapt bert-base-uncased corpus.jsonl --output_dir runs/corpus --max_steps 500
    text-jepa adapt BAAI/bge-large-en-v1.5 notes/ --lora 16

A sentence encoder (a folder with modules.json) is trained by configs/continue-from-encoder.yaml: windows of a document
find each other. The new folder can replace the old one: pooling, normalization, prompts and length stay. Any other
encoder is taken for a masked language model and trained by configs/continue-masked-lm.yaml. All flags of `text-jepa
pretrain` may follow. `--lora RANK` trains small matrices beside the weights, for large encoders.
"""

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from text_jepa.cli import UsageError, own_recipe, repeating_command
from text_jepa.commands.main import command_of
from text_jepa.encoders.opening import readable
from text_jepa.encoders.sentence_head import SentenceHead, read_head, read_json
from text_jepa.errors import flag_of
from text_jepa.names import check_name, is_cached
from text_jepa.train.checkpointing import RESUME_NEWEST, RESUME_NONE, resume_word
from text_jepa.train.command import last_folder, numbered_folders


# Poolings that a run can train, and the flag for each.
_TRAINED_POOLINGS = ("mean", "cls")

# Matrices of low rank need a higher rate than the weights themselves (Hu et al., 2021, arXiv 2106.09685, section D).
_LORA_LEARNING_RATE = "1e-3"


def main(argv: list[str] | None = None, prog: str = "text-jepa adapt") -> None:
    """Runs the command."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(f"usage: {prog} ENCODER TEXTS ... [--flag value ...]\n\n{__doc__.strip()}")
        return
    name, texts, flags = read_words(argv, prog)
    options = {"cache_dir": _value(flags, "cache_dir"), "revision": _value(flags, "model_revision")}
    source = find_encoder(name, **options)
    head = find_head(source, _value(flags, "pooling"), **options)
    run = words_of_run(source, head, texts, flags)
    print(describe_choice(source, head))
    command_of("pretrain")(run, prog=prog, command=repeating_command(prog, argv))
    output_dir = _value(run, "output_dir")
    if head.modules and Path(output_dir, "modules.json").is_file():
        print(describe_place(source, head, output_dir, **options))


def read_words(argv: Sequence[str], prog: str) -> tuple[str, list[str], list[str]]:
    """Splits `ENCODER TEXTS … [--flag value …]`.

    Raises:
        UsageError: The encoder or the texts are not named, or one of them twice.
    """
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    flags = list(argv[len(words) :])
    if not words:
        raise UsageError(f"name an encoder and texts, as in `{prog} sentence-transformers/all-MiniLM-L6-v2 notes/`")
    name, *texts = words
    if not texts and not _has(flags, "train_file") and not _has(flags, "dataset_name"):
        raise UsageError(f"name the texts after {name}: folders, files or globs, as in `{prog} {name} notes/`")
    if texts and _has(flags, "train_file"):
        raise UsageError(f"'{texts[0]}' and --train_file set the same option; give all values in one place")
    if _has(flags, "model_name_or_path"):
        raise UsageError(f"'{name}' and --model_name_or_path say the same; name the encoder in one place")
    return name, texts, flags


def words_of_run(source: str, head: SentenceHead, texts: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The command line of `text-jepa pretrain` that adapts an encoder; the user's flags come last and override.

    Raises:
        UsageError: No run pools as the encoder does.
    """
    output_dir = folder_of_run(source, _value(flags, "resume_from_checkpoint"))
    words = [str(own_recipe(f"{recipe_of(head)}.yaml")), "--model_name_or_path", source, "--output_dir", output_dir]
    if texts:
        words += ["--train_file", *texts]
    if head.modules:
        words += ["--pooling", pooling_of(source, head)]
    if _has(flags, "lora"):
        words += ["--learning_rate", _LORA_LEARNING_RATE]
    return [*words, *flags]


# ---- encoder and recipe ---------------------------------------------------------------------------------------------


def find_encoder(name: str, **options: Any) -> str:
    """A folder or a name on the Hub; a short name is also looked for among those of sentence-transformers.

    Args:
        name: The name as it was given.
        **options: `cache_dir` and `revision` of `from_pretrained`.

    Raises:
        UsageError: There is none, or it is not an encoder but the complete model of a run.
    """
    sources = [name]
    full_name = f"sentence-transformers/{name}"
    with readable(name, "no encoder is there"):
        is_short = "/" not in name and not Path(name).exists()
        if is_short and is_cached(full_name, options.get("cache_dir")):
            sources = [full_name]
        else:
            check_name(name, options.get("cache_dir"))
            sources += [full_name] if is_short else []
    for source in sources:
        config = read_json(source, "config.json", **options)
        if config is None:
            continue
        if config.get("model_type") == "text_jepa":
            raise UsageError(
                f"{name} is the complete model of a run; use the exported encoder of the run, or continue training "
                f"with `text-jepa pretrain TEXTS --model_name_or_path {name}`"
            )
        return source
    raise UsageError(f"{name}: no encoder found (no config.json); pass a folder or a name on the Hub")


def find_head(source: str, pooling: str | None, **options: Any) -> SentenceHead:
    """The head of an encoder; one without modules if it cannot be read and the pooling is given instead.

    Args:
        source: Folder or name on the Hub.
        pooling: The value of `--pooling`, if it is given.
        **options: See `find_encoder`.

    Raises:
        UsageError: The head cannot be read, and no pooling is given.
    """
    try:
        return read_head(source, **options)
    except UsageError:
        if pooling is None:
            raise
        return SentenceHead(source, pooling)


def recipe_of(head: SentenceHead) -> str:
    """The recipe for an encoder with this head: one for sentence encoders, one for masked language models."""
    return "continue-from-encoder" if head.modules else "continue-masked-lm"


def pooling_of(source: str, head: SentenceHead) -> str:
    """The value of `--pooling` with which a run keeps a head.

    Raises:
        UsageError: No run pools like that.
    """
    if any(kind == "WordWeights" for _, kind in head.modules):
        return "idf"
    if head.pooling not in _TRAINED_POOLINGS:
        raise UsageError(
            f"{source} uses {head.pooling} pooling, which cannot be trained, so the result could not replace it; "
            f"`text-jepa pretrain TEXTS --model_name_or_path {source} --pooling mean` trains an encoder with mean "
            "pooling"
        )
    return head.pooling


def folder_of_run(source: str, resume: str | None) -> str:
    """The folder of a run that names none: `runs/NAME-adapted`, with the next free number if that exists.

    A run that resumes takes the last one there is, or that of the checkpoint that it names.

    Args:
        source: The encoder.
        resume: The value of --resume_from_checkpoint, if it is given.
    """
    resume = resume_word(resume)
    if resume not in (*RESUME_NONE, *RESUME_NEWEST):
        return str(Path(resume).parent)
    name = f"{Path(source).resolve().name}-adapted"
    last = last_folder(name) if resume in RESUME_NEWEST else None
    new = next(folder for folder in numbered_folders(name) if not folder.exists())
    return str(last or new)


# ---- what is said ---------------------------------------------------------------------------------------------------


def describe_choice(source: str, head: SentenceHead) -> str:
    """What the encoder was taken for, in a line."""
    recipe = recipe_of(head)
    if head.modules:
        return f"{source} is a sentence encoder ({', '.join(head.parts)}): recipe {recipe}"
    return f"{source} has no modules.json and is taken for a masked language model: recipe {recipe}"


def describe_place(source: str, before: SentenceHead, folder: str, **options: Any) -> str:
    """Whether a new folder gives vectors of the kind of the old one, in a line.

    Args:
        source: The encoder before the run.
        before: Its head.
        folder: The folder of the run.
        **options: See `find_encoder`.
    """
    old = _traits(source, before, **options)
    new = _traits(folder, read_head(folder))
    changed = [f"{name} ({old[name]} before, {new[name]} now)" for name in old if old[name] != new[name]]
    if changed:
        return f"It cannot fully replace {source}: {'; '.join(changed)} differ"
    kept = ", ".join(f"{name} {value}" for name, value in old.items() if value)
    return f"It can replace {source}: {kept}"


def _traits(source: str, head: SentenceHead, **options: Any) -> dict[str, Any]:
    """What a user of vectors relies on."""
    settings = dict(head.prompts or {})
    return {
        "features": (read_json(source, "config.json", **options) or {}).get("hidden_size"),
        "modules": ", ".join(head.parts),
        "tokens": head.max_seq_length,
        "similarity": settings.get("similarity_fn_name") or "cosine",
        "prompts": settings.get("prompts"),
    }


# ---- words of the command line --------------------------------------------------------------------------------------


def _has(flags: Sequence[str], name: str) -> bool:
    return any(flag_of(word) == name for word in flags)


def _value(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, `--name value` or `--name=value`; the last one counts."""
    value = None
    for place, word in enumerate(flags):
        if flag_of(word) == name:
            _, equals, value_beside = word.partition("=")
            value = value_beside if equals else next(iter(flags[place + 1 :]), None)
    return value
