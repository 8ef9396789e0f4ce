"""Command lines: a YAML file whose values the flags override, and one clear line for every mistake of a user."""

import argparse
import dataclasses
import difflib
import itertools
import json
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser


class UsageError(ValueError):
    """A mistake that the user can mend. Its text names the file, column, flag or field and the remedy."""


def nearest(name: str, names: Sequence[str]) -> str:
    """`"; did you mean 'x'?"` for the known name that is closest, or nothing."""
    match = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def first_line(error: Exception) -> str:
    """The line of an error that says what is wrong; and what a private model needs.

    Of a failed download it is the first one, of a failed validation the last.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[-1 if isinstance(error, StrictDataclassError) else 0]
    if "private" in str(error) or "gated" in str(error):
        reason += " A private one needs the variable HF_TOKEN or `hf auth login`."
    return reason


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Runs a console command: exit code 0, or 2 and one line on stderr for a `UsageError`; 130 for Ctrl-C."""
    try:
        main()
    except UsageError as error:
        sys.exit(_report(str(error)))
    except torch.OutOfMemoryError as error:
        sys.exit(
            _report(
                f"out of memory ({str(error).split('.')[0]}); lower --per_device_train_batch_size and raise "
                "--gradient_accumulation_steps by as much, or add --gradient_checkpointing"
            )
        )
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _report(message):
    message = message.rpartition("UsageError: ")[2]  # from a worker of a data loader it comes with a traceback
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


class _Parser(HfArgumentParser):
    def add_argument(self, *names, help=None, **kwargs):
        # A percent sign that opens no field of argparse is a percent sign.
        help = help and re.sub(r"(?<!%)%(?![%(])", "%%", help)
        return super().add_argument(*names, help=help, **kwargs)

    def error(self, message):
        raise UsageError(f"{message} (see --help)")


class _CommandParser(argparse.ArgumentParser):
    def error(self, message) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def command_parser(prog: str, description: str, metavar: str):
    """A parser whose mistakes are of one line, and the place of its sub-commands, called `metavar` in the help."""
    form = argparse.RawDescriptionHelpFormatter
    parser = _CommandParser(prog=prog, description=description, formatter_class=form, allow_abbrev=False)
    return parser, parser.add_subparsers(dest="command", required=True, metavar=metavar)


def parse_arguments(argument_classes: Sequence[type], argv: Sequence[str], description: str) -> tuple[Any, ...]:
    """Parses `[FILE.yaml …] [--flag value …]` into one instance per dataclass.

    Later files win over earlier ones, and flags over all of them.

    Args:
        argument_classes: Dataclasses whose fields are the flags, as for `transformers.HfArgumentParser`.
        argv: The command line without the program's name.
        description: Shown by `--help`.

    Raises:
        UsageError: An unknown flag or key (the nearest one is named), a value of the wrong type, a missing file.
    """
    parser = _Parser(argument_classes, description=description, allow_abbrev=False)
    flags = {option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")}
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    of_files = [flag for path in files for flag in _file_as_flags(path, flags)]
    argv = [*of_files, *argv[len(files) :]]
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        if not unknown[0].startswith("-"):
            raise UsageError(f"no flag takes the value '{unknown[0]}'; a YAML file comes first (see --help)")
        name = unknown[0].split("=")[0]
        raise UsageError(f"unknown argument {name}{nearest(name.lstrip('-'), flags)} (see --help)")
    values = vars(namespace)
    try:
        return tuple(
            cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.init}) for cls in argument_classes
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _file_as_flags(path, flags):
    """Turns the keys of a YAML file into flags, so that argparse checks both alike."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; before the flags stand YAML files of them") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected lines of the form 'flag: value'")
    argv = []
    for key, value in content.items():
        if key not in flags:
            raise UsageError(f"{path}: unknown key '{key}'{nearest(str(key), flags)}")
        if isinstance(value, dict):
            argv += [f"--{key}", json.dumps(value)]
        elif isinstance(value, list):
            argv += [f"--{key}", *map(str, value)]
        elif value is not None:
            argv.append(f"--{key}={value}")
    return argv


def config_arguments(config_class: type, exclude: Sequence[str] = ()) -> type:
    """A dataclass with one optional flag per own field of a model configuration; `None` means the model's default.

    Types come from the fields, help from the `Args` of the docstring, so that nothing is said twice.
    """
    entries = re.findall(
        r"^ {8}(\w+) \(.*?\):\n((?: {12}.*\n)+)|^ {8}(\w+) \(.*?\): (.*)\n", config_class.__doc__, re.M
    )
    help_texts = {a or c: " ".join((b or d).split()) for a, b, c, d in entries}
    fields = []
    for name, annotation in config_class.__annotations__.items():
        if name not in exclude and not name.startswith("_") and name in config_class.__dataclass_fields__:
            help_text = re.sub(r"\[?`+\[?([^`]*?)\]?`+\]?", r"\1", help_texts.get(name, ""))
            metadata = {"help": help_text}
            fields.append((name, _flag_type(annotation), dataclasses.field(default=None, metadata=metadata)))
    return dataclasses.make_dataclass(f"{config_class.__name__}Arguments", fields)


def _flag_type(annotation):
    """The single type of a flag: `float | int` is float, `Literal` keeps its choices; always optional."""
    options = get_args(annotation) if get_origin(annotation) is types.UnionType else (annotation,)
    options = [option for option in options if option is not types.NoneType]
    literal = [option for option in options if get_origin(option) is Literal]
    if literal:
        return literal[0] | None
    return (float if float in options else options[0]) | None
