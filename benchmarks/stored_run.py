"""Stores the runs whose figures the pages show, and checks that their recipes are still today's.

A page must not show the log of an older default. Beside the log of a run, docs/assets therefore has the values of its
recipe, and a test compares them with those of the same command line today.
"""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from text_jepa.cli import UsageError
from text_jepa.data.corpus import CorpusArguments
from text_jepa.train.build import objective_of, set_dependent_defaults
from text_jepa.train.callbacks import health_line
from text_jepa.train.command import parse_run
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).resolve().parents[1]

# Training arguments that decide what a run learns. All others are about the machine, logs and folders.
_OF_TRAINING = (
    "learning_rate",
    "lr_scheduler_type",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "warmup_steps",
    "weight_decay",
)
# Arguments of the model and the data that are about the machine or the model card.
_OF_NO_RECIPE = (
    "allow_remote_code",
    "base_model",
    "cache_dir",
    "dataset_tags",
    "language",
    "license",
    "max_eval_samples",
    "overwrite_cache",
    "prepare_only",
    "preprocessing_num_workers",
    "probe_data_dir",
    "probe_task",
    "tokenizer_name",
)


def words_of(command: str) -> list[str]:
    """The words of a command line, with absolute paths of the YAML files that it names."""
    return [str(ROOT / word) if word.endswith(".yaml") else word for word in shlex.split(command)]


def recipe_of(command: str) -> dict[str, Any]:
    """The values that decide what a run learns, by name.

    Args:
        command: The command line of the run, without the program.
    """
    words = [*words_of(command), "--use_cpu"]
    model_args, data_args, objective_args, args = parse_run(words, "")
    objective = objective_of(model_args, objective_args)
    set_dependent_defaults(data_args, objective)

    of_objective = {name: getattr(objective, name) for name in vars(objective_args)}
    all_of_training = args.to_dict()
    of_training = {name: all_of_training[name] for name in _OF_TRAINING}
    values = {**vars(model_args), **vars(data_args), **of_objective, **of_training}

    # Which texts there are, and how their files are read, is not part of a recipe.
    of_corpus = {field.name for field in dataclasses.fields(CorpusArguments)}
    left_out = of_corpus.union(_OF_NO_RECIPE)
    recipe = {name: value for name, value in values.items() if name not in left_out}
    return as_read_back(recipe)


def as_read_back(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they are read from a JSON file, for a comparison with such a file."""
    return json.loads(json.dumps(values))


def differences(then: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    """Values of a recipe that have changed, as `name: then → today`, for the flags that both have."""
    changed = [name for name in then if name in today and then[name] != today[name]]
    return [f"{name}: {then[name]} → {today[name]}" for name in changed]


def store(run: Path, folder: Path, commands: Sequence[str], kept: Sequence[str]) -> None:
    """Stores files of a run, its width and its recipe.

    Args:
        run: Folder of the run.
        folder: Folder to store them in.
        commands: Command lines, without the program, whose recipes are stored; the run was made by the first one.
        kept: Names of the files.

    Raises:
        UsageError: The run has not ended, or was made by another recipe than that of the first command today.
    """
    for name in (*kept, "arguments.yaml", "config.json"):
        if not (run / name).is_file():
            raise UsageError(f"{run / name}: does not exist; name the folder of a run that has ended")
    # A run fills in flags that are not set, for example by the width of its encoder.
    today = {flag: value for flag, value in recipe_of(commands[0]).items() if value is not None}
    arguments = yaml.safe_load((run / "arguments.yaml").read_text(encoding="utf-8"))
    changed = differences(arguments, today)
    if changed:
        raise UsageError(f"{run}: not a run of {commands[0]} as it is today ({'; '.join(changed)}); make it again")

    width = AutoConfig.from_pretrained(run, trust_remote_code=False).hidden_size
    folder.mkdir(exist_ok=True)
    for name in kept:
        shutil.copyfile(run / name, folder / name)
    found = {"width": width, "recipes": {command: recipe_of(command) for command in commands}}
    (folder / "recipe.json").write_text(f"{json.dumps(found, indent=1)}\n", encoding="utf-8")


def health_lines(folder: Path) -> list[str]:
    """The lines that a stored run printed at its first log, in its middle and at its end."""
    width = read_recipe(folder)["width"]
    records = [record for record in read_metrics(folder) if "tokens_per_second" in record]
    last = records[-1]["step"]
    middle = min(records, key=lambda record: abs(record["step"] - last / 2))
    return [health_line(record, record["step"], last, width) for record in (records[0], middle, records[-1])]


def read_recipe(folder: Path) -> dict[str, Any]:
    """The width and the recipes of a stored run.

    Raises:
        UsageError: Nothing is stored there.
    """
    path = folder / "recipe.json"
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; store a run first")
    return json.loads(path.read_text(encoding="utf-8"))
