"""The command line of a pretraining run: its help, the recipe of a run that names none, its folder and its length."""

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from text_jepa.cli import HelpPage, UsageError, parse_arguments, split_words
from text_jepa.data.walking import LOCK
from text_jepa.train.arguments import (
    MOST_PASSES,
    MOST_STEPS,
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
)
from text_jepa.train.build import objective_of, set_dependent_defaults
from text_jepa.train.checkpointing import RESUME_NEWEST, RESUME_NONE
from text_jepa.train.checks import RENAMED, check_writable, holding_folder, make_folders


CLASSES = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)

# The recipe of a run that names neither a YAML file nor an encoder, a size or an objective: that of
# configs/tiny_cpu.yaml, with shares of the run in place of steps.
DEFAULT_RECIPE = {
    "objective": "documents",
    "preset": "static",
    "vocab_size": 8192,
    "weight_decay": 0.01,
    "max_length": 64,
    "per_device_train_batch_size": 128,
    "logging_steps": 0.05,
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_steps": 0.25,
}

# Whoever names an encoder does not want that of the recipe, nor what the recipe changes of it. Whoever names passes
# does not want its steps, which would take precedence.
_REPLACES = {
    "model_name_or_path": ("preset", "config_name", "text_config"),
    "config_name": ("preset", "model_name_or_path", "text_config"),
    "preset": ("config_name", "model_name_or_path"),
    "num_train_epochs": ("max_steps",),
}

# Shown when there is nothing to train on, and in the help.
EXAMPLES = """\
  {prog} notes/                      your texts: folders, files, globs
  {prog} notes/ --output_dir runs/long --max_steps 7000
  {prog} configs/tiny_cpu.yaml       a recipe; without texts, on built-in ones"""


# What a run does in any case, and what leaves it out.
_ALWAYS = {
    "do_train": "a run trains; --prepare_only prepares the texts alone",
    "do_eval": "every run evaluates held-out texts at its end; --eval_strategy no leaves out earlier evaluations",
}
_NO = ("false", "no", "off", "f", "n", "0")


def _check_switches(argv: Sequence[str]) -> None:
    """Raises UsageError for flags that switch off what a run does in any case."""
    for word, following in itertools.pairwise([*argv, ""]):
        name, equals, value = word.partition("=")
        remedy = _ALWAYS.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if remedy and (value if equals else following).lower() in _NO:
            raise UsageError(f"{name} false has no effect: {remedy}; leave {name} out")


def recipe_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a run that names no YAML file, by the flags that it names."""
    for name in ("model_name_or_path", "config_name"):
        if name in given:
            return {}
    for name in ("objective", "preset"):
        if given.get(name, DEFAULT_RECIPE[name]) != DEFAULT_RECIPE[name]:
            return {}
    recipe = dict(DEFAULT_RECIPE)
    if given.get("eval_strategy", "steps") != "steps":
        del recipe["eval_steps"]
    return recipe


def parse_run(
    argv: Sequence[str],
    prog: str,
    description: str = "",
    page: HelpPage | None = None,
    more: Sequence[type] = (),
) -> tuple[Any, ...]:
    """The arguments of a run: `[CONFIG.yaml …] [TEXTS …] [--flag value …]`.

    Args:
        argv: The command line without the program's name.
        prog: The name of the command in help and errors.
        description: Shown by `--help`.
        page: What the help shows. Default: that of a run.
        more: Dataclasses of further flags.

    Returns:
        One instance for each of `more`, then model, data, objective and training arguments.

    Raises:
        UsageError: See `parse_arguments`.
    """
    _check_switches(argv)
    return parse_arguments(
        (*more, *CLASSES),
        argv,
        description,
        prog,
        page or PAGE,
        renamed=RENAMED,
        positional="train_file",
        recipe=recipe_of,
        replaces=_REPLACES,
    )


# ---- help -----------------------------------------------------------------------------------------------------------


def _names(argument_class: type) -> list[str]:
    return [field.name for field in fields(argument_class) if field.init]


def default_values(
    model_args: ModelArguments,
    data_args: DataArguments,
    objective_args: ObjectiveArguments,
    args: TextJepaTrainingArguments,
) -> dict[str, Any]:
    """The defaults that follow from others, by flag: those of the objective, and what is known when a run starts."""
    objective = objective_of(model_args, objective_args)
    set_dependent_defaults(data_args, objective)
    return {
        **vars(objective),
        "view": data_args.view,
        "mask_ratio": data_args.mask_ratio,
        "max_steps": f"{MOST_PASSES} passes over the texts, at most {MOST_STEPS}",
        "num_train_epochs": None,
        "output_dir": "runs/NAME",
    }


_OWN = [
    name for name in _names(TextJepaTrainingArguments) if name in inspect.get_annotations(TextJepaTrainingArguments)
]

# In the order of docs/reference/flags.md.
SECTIONS = {
    "Encoder": _names(ModelArguments),
    "Texts and masks": _names(DataArguments),
    "Objective": _names(ObjectiveArguments),
    "Training": _OWN,
    "Training, from transformers": [name for name in _names(TextJepaTrainingArguments) if name not in _OWN],
}

PAGE = HelpPage(
    SECTIONS,
    main=(
        "model_name_or_path",
        "objective",
        "preset",
        "vocab_size",
        "text_column",
        "max_length",
        "dataset_name",
        "output_dir",
        "max_steps",
        "learning_rate",
        "per_device_train_batch_size",
        "resume_from_checkpoint",
    ),
    words={
        "CONFIG.yaml ...": "Files of flags, which later flags override. Without one, the recipe is that of "
        "configs/tiny_cpu.yaml, unless flags name another encoder, size or objective.",
        "TEXTS ...": "Folders, files or globs with the texts to train on; the same as --train_file.",
    },
    examples=EXAMPLES,
    defaults=default_values,
)


# ---- folder and length ----------------------------------------------------------------------------------------------


@contextmanager
def own_output_dir(
    data_args: DataArguments,
    argv: Sequence[str],
    args: TextJepaTrainingArguments,
) -> Iterator[None]:
    """Makes the output folder of a run, which no other run writes into inside the block.

    The first process makes and holds it: it writes everything into it, and other machines may share it.

    Args:
        data_args: See `choose_output_dir`.
        argv: See `choose_output_dir`.
        args: See `choose_output_dir`.

    Raises:
        UsageError: The folder cannot be written to, or another run writes into it.
    """
    made = choose_output_dir(data_args, argv, args)
    if args.process_index > 0:
        yield
        return
    with holding_folder(args.output_dir, made):
        yield


def choose_output_dir(
    data_args: DataArguments,
    argv: Sequence[str],
    args: TextJepaTrainingArguments,
) -> list[Path]:
    """Makes the output folder of a run that names none: `runs/NAME`; if there is one `runs/NAME-2`, and so on.

    A run that resumes takes the last one there is, or that of the checkpoint that it names. The first process chooses,
    for the others may come when it has begun to write.

    Args:
        data_args: Name the texts.
        argv: The command line, with the recipe for a run on built-in texts.
        args: The training arguments, which are changed.

    Returns:
        The folders that were made.
    """
    if not args.leaves_folder_open:
        return []
    chosen = [None]
    made = []
    if args.process_index == 0:
        resume = args.resume_from_checkpoint
        if resume in (*RESUME_NONE, *RESUME_NEWEST):
            folder, made = _claim_folder(_name_of_texts(data_args, argv), resumes=resume in RESUME_NEWEST)
        else:
            folder = Path(resume).parent
        chosen = [str(folder)]
    if args.world_size > 1:
        broadcast_object_list(chosen)
    if args.run_name == Path(args.output_dir).name:
        args.run_name = Path(chosen[0]).name
    args.output_dir = chosen[0]
    return made


def _name_of_texts(data_args: DataArguments, argv: Sequence[str]) -> str:
    """The name of the first folder or file of the texts, of the dataset, or of the recipe; `run` without any."""
    recipes, _, _ = split_words(argv)
    if data_args.train_file:
        named = data_args.train_file[0]
    elif data_args.dataset_name:
        named = data_args.dataset_name
    else:
        named = recipes[0] if recipes else "run"
    # A glob has the name of the folder that it looks into.
    parts = [part for part in Path(named).absolute().parts if not set(part) & set("*?[")]
    name = parts[-1]
    if not Path(named).is_dir():
        name = name.split(".")[0]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "run"


def _claim_folder(name: str, resumes: bool) -> tuple[Path, list[Path]]:
    """The output folder of a run that names none, and the folders that were made for it.

    Raises:
        UsageError: The folder cannot be written to.
    """
    last = last_folder(name) if resumes else None
    if last is not None:
        return last, []
    folders = numbered_folders(name)
    folder = next(folders)
    check_writable(str(folder))
    made = list(make_folders(folder))
    # Of two runs that begin at the same time, one makes the folder, and the other takes the next name.
    while folder not in made:
        folder = next(folders)
        made.extend(make_folders(folder))
    return folder, made


def last_folder(name: str) -> Path | None:
    """The last folder of the runs of a name; `None` without any."""
    taken = list(itertools.takewhile(Path.exists, numbered_folders(name)))
    # A run that was killed while it prepared its texts leaves a folder with nothing but its lock.
    begun = [folder for folder in taken if any(path.name != LOCK for path in folder.iterdir())]
    return (begun or taken or [None])[-1]


def numbered_folders(name: str) -> Iterator[Path]:
    """The folders of the runs of a name, in turn: `runs/NAME`, `runs/NAME-2`, and so on."""
    yield Path("runs", name)
    for number in itertools.count(2):
        yield Path("runs", f"{name}-{number}")


def choose_length(args: TextJepaTrainingArguments, num_layers: int, texts_per_pass: int) -> None:
    """Sets the number of steps of a run whose flags leave it open, if its encoder has no layers.

    Args:
        args: The training arguments, which are changed.
        num_layers: Layers of the encoder.
        texts_per_pass: Training texts, or windows of documents.
    """
    if not args.leaves_length_open or num_layers:
        return
    texts_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = -(-MOST_PASSES * texts_per_pass // texts_per_step)  # rounded up
    args.max_steps = min(steps, MOST_STEPS)
