"""Command lines: YAML files whose values the flags override, and one clear line for every mistake of a user."""

import argparse
import dataclasses
import itertools
import json
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin

import transformers
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from text_jepa.errors import UsageError, check_words, flag_of, nearest, repeated_flags, run_command


__all__ = [
    "HelpPage",
    "UsageError",
    "add_command",
    "command_parser",
    "config_arguments",
    "first_line",
    "mute_libraries",
    "nearest",
    "parse_arguments",
    "repeating_command",
    "run_command",
    "split_words",
]


# ---- errors ---------------------------------------------------------------------------------------------------------


def first_line(error: Exception) -> str:
    """The line of an error that says what is wrong, with a hint for private models.

    That is the first line of a failed download and the last one of a failed validation.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    reason = lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
    if "private" in str(error) or "gated" in str(error):
        reason += " For a private or gated repository, set HF_TOKEN or run `hf auth login`."
    return reason


def mute_libraries() -> None:
    """Silences the libraries below a command: warnings of transformers, and progress bars unless a person watches."""
    import datasets

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


# ---- parsers --------------------------------------------------------------------------------------------------------


class _Parser(HfArgumentParser):
    """A parser of dataclasses and other arguments that reports each mistake as a `UsageError`."""

    def add_argument(self, *names: str, help: str | None = None, **kwargs: Any) -> argparse.Action:
        if help is not None and help is not argparse.SUPPRESS:
            # A percent sign that opens no field of argparse is a percent sign.
            help = re.sub(r"(?<!%)%(?![%(])", "%%", help)
        if kwargs.get("type") is string_to_bool:
            kwargs["type"] = _switch
        return super().add_argument(*names, help=help, **kwargs)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^(argument --\w+)/--[\w-]+", r"\1", message)  # the twin with hyphens
        raise UsageError(f"{message} (see {self.prog} --help)")

    def refuse_repeated(self, words: Sequence[str], lists_only: bool = False) -> None:
        """Raises UsageError for a flag that is given twice, of which argparse would drop the first values."""
        actions = {flag_of(option): action for action in self._actions for option in action.option_strings}
        for name, count in repeated_flags(words).items():
            if name not in actions:
                continue
            if actions[name].nargs == "+":
                self.error(f"--{name} is given {count} times; list all values after a single one, as in --{name} A B")
            if not lists_only:
                self.error(f"--{name} is given {count} times; keep only one of them")


def _switch(word: str) -> bool:
    """The value of a switch: the words of transformers, and `on` and `off`, as YAML has them."""
    return string_to_bool({"on": "yes", "off": "no"}.get(word.lower(), word))


class _CommandParser(_Parser):
    """A parser of a command without YAML files, whose values flags could override."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self.refuse_repeated(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)


# ---- help -----------------------------------------------------------------------------------------------------------

_HELP = {"-h", "--help", "--help-all", "--help_all"}

# Help is as wide everywhere: some of it is stored, see commands/main.py.
_WIDTH = 100

_YAML = (".yaml", ".yml")

# Kinds of values in a YAML file that are words of a command line, and the kind of a word.
_PLAIN_TYPES = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")}
_NUMBERS = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:int"}
_WORD = "tag:yaml.org,2002:str"

_BEFORE_FLAGS = "YAML files and other arguments without a flag must come before the flags"


class HelpPage(NamedTuple):
    """What `--help` and `--help-all` of a command show.

    Args:
        sections: Title of a section -> its flags. `--help-all` shows them all.
        main: The flags that `--help` shows. Default: all.
        words: What stands before the flags -> its meaning.
        examples: Command lines, with `{prog}` for the command.
        defaults: Function of one instance per dataclass; it returns defaults that depend on others, by flag.
    """

    sections: Mapping[str, Sequence[str]]
    main: Sequence[str] | None = None
    words: Mapping[str, str] = {}
    examples: str = ""
    defaults: Callable[..., Mapping[str, Any]] | None = None


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows each flag once, what it takes, its choices and its default."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {_placeholder(action)}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        help = action.help or ""
        if action.choices:
            help += f" One of {', '.join(map(str, action.choices))}."
        if action.default not in (None, ""):
            help += " (default: %(default)s)"
        return help


class _PartsFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of commands with sub-commands, the same in every terminal and by every version of Python."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {values}"


def _placeholder(action: argparse.Action) -> str:
    """What a flag takes: a number, a text, several of them, or nothing for a switch."""
    if action.type is _switch:
        return ""
    kind = {int: "N", float: "X"}.get(action.type, "TEXT")
    return f"{kind} ..." if action.nargs == "+" else kind


def _show_help(parser: _Parser, page: HelpPage, is_full: bool, argument_classes: Sequence[type]) -> NoReturn:
    """Prints the help and exits."""
    defaults = {action.dest: action.default for action in reversed(parser._actions)}
    if page.defaults is not None:
        namespace = parser.parse_args([])
        defaults |= page.defaults(*(_instance(argument_class, namespace) for argument_class in argument_classes))
    print(_help_text(parser, page, is_full, defaults), end="")
    sys.exit(0)


def _help_text(parser: _Parser, page: HelpPage, is_full: bool, defaults: Mapping[str, Any]) -> str:
    """The text of `--help`, or of `--help-all`."""
    before = "".join(f"[{name}] " for name in page.words) or "[CONFIG.yaml ...] "
    formatter = _HelpFormatter(parser.prog, max_help_position=36, width=_WIDTH)
    formatter.add_usage(f"%(prog)s {before}[--flag value ...]", (), ())
    formatter.add_text(parser.description)
    formatter.add_text(page.examples.format(prog=parser.prog))
    words = argparse.ArgumentParser(add_help=False)
    formatter.add_arguments([words.add_argument(name, help=help) for name, help in page.words.items()])
    actions = {action.dest: action for action in reversed(parser._actions)}  # the flag itself, not its --no_ twin
    for title, names in page.sections.items():
        shown = [name for name in names if is_full or page.main is None or name in page.main]
        formatter.start_section(title)
        for name in shown:
            action = actions[name]
            action.default = _shown(defaults[name])
            if not is_full and action.default:
                action.help = re.sub(r"\s*Default: .*", "", action.help)  # the default itself is shown
            formatter.add_argument(action)
        formatter.end_section()
    if not is_full and page.main is not None:
        formatter.add_text(f"All flags: {parser.prog} --help-all")
    return formatter.format_help()


def _shown(value: Any) -> str:
    """A default as it is written on the command line; empty for none, and for a switch that is off."""
    if value is None or value is False or value in ([], {}):
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(getattr(value, "value", value))


# ---- parsing --------------------------------------------------------------------------------------------------------


def command_parser(prog: str, description: str, metavar: str) -> tuple[argparse.ArgumentParser, Any]:
    """Makes a parser with sub-commands.

    Args:
        prog: The program's name.
        description: Shown by `--help` with its line breaks.
        metavar: Placeholder of the sub-command in the help.

    Returns:
        The parser, and its sub-commands for `add_command`.
    """
    parser = _CommandParser(
        prog=prog,
        description=description,
        formatter_class=_PartsFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar=metavar)
    return parser, commands


def add_command(commands: Any, name: str, function: Callable[..., Any], help: str) -> argparse.ArgumentParser:
    """Adds a sub-command.

    Args:
        commands: From `command_parser`.
        name: Name of the sub-command.
        function: Function that runs it; the parsed arguments have it as `function`.
        help: Shown by `--help`.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=help,
        formatter_class=_PartsFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(function=function)
    return parser


def parse_arguments(
    argument_classes: Sequence[type],
    argv: Sequence[str],
    description: str,
    prog: str | None = None,
    page: HelpPage | None = None,
    renamed: Mapping[str, str] | None = None,
    positional: str | None = None,
    recipe: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    replaces: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Any, ...]:
    """Parses `[FILE.yaml …] [WORD …] [--flag value …]` into one instance per dataclass.

    Later files override earlier ones, and flags override all files. Flags may be written with hyphens or underscores.
    If a flag is given twice, the last value counts, because commands that put flags before those of the user rely on
    it; a list that is given twice is an error.

    Args:
        argument_classes: Dataclasses whose fields are the flags, as for `transformers.HfArgumentParser`.
        argv: The command line without the program's name.
        description: Shown by `--help` with its line breaks.
        prog: The program's name in help and errors. Default: that of the script.
        page: What `--help` and `--help-all` show. Default: all flags.
        renamed: Earlier names of flags, and what takes their place, for the error.
        positional: The flag that words before the first flag belong to, unless they are YAML files.
        recipe: Gives other defaults for a command line without a YAML file, by the flags that are given there.
        replaces: For each flag, other flags whose values in files it also overrides.

    Raises:
        UsageError: An unknown flag or key (the error names the nearest one), a value of the wrong type, or a missing
            file.
    """
    parser = _Parser(argument_classes, prog=prog, description=description, add_help=False, allow_abbrev=False)
    if _HELP.intersection(argv):
        if recipe is not None:
            parser.set_defaults(**recipe({}))
        is_full = page is None or "--help-all" in argv or "--help_all" in argv
        _show_help(parser, page or HelpPage({"Flags": _names(argument_classes)}), is_full, argument_classes)
    options = [option for action in parser._actions for option in action.option_strings]
    flags = {option.removeprefix("--") for option in options if option.startswith("--")}
    files, texts, rest = split_words(argv)
    replaced = _replaced(_named(rest), replaces or {})
    words = []
    for path in files:
        values = _read_file(path, flags, renamed or {})
        words += _values_as_words({name: value for name, value in values.items() if name not in replaced})
    words += _as_flag(texts, positional, rest, parser)
    words += rest
    check_words(words)
    parser.refuse_repeated(rest, lists_only=True)
    if recipe is not None and not files:
        parser.set_defaults(**recipe(_given(parser, words)))
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        word = unknown[0]
        if not word.startswith("-"):
            parser.error(f"unexpected argument '{word}'; {_BEFORE_FLAGS}")
        name = word.split("=")[0]
        parser.error(f"unknown argument {name}{_replacement(name.lstrip('-'), flags, renamed or {})}")
    _check_size_of_numbers(namespace)
    try:
        return tuple(_instance(argument_class, namespace) for argument_class in argument_classes)
    except json.JSONDecodeError as error:
        named = [name for name, value in vars(namespace).items() if value == error.doc]
        raise UsageError(f"{' or '.join(f'--{name}' for name in named)}: not JSON: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def repeating_command(prog: str, argv: Sequence[str]) -> list[str]:
    """The words of a command that repeats the one of this process.

    Args:
        prog: The command as help and errors name it: a script, or words such as `text-jepa probe`.
        argv: The words that followed.
    """
    program = ["python", prog] if prog.endswith(".py") else prog.split()
    return [*program, *argv]


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Splits a command line into YAML files, other words before the first flag, and flags.

    The suffix decides: `.yaml` and `.yml` are files of flags, and everything else is not.
    """
    before = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    files = [word for word in before if word.endswith(_YAML)]
    others = [word for word in before if not word.endswith(_YAML)]
    return files, others, list(argv[len(before) :])


def _as_flag(words: list[str], positional: str | None, rest: Sequence[str], parser: _Parser) -> list[str]:
    """Words before the first flag as the values of the flag that they belong to."""
    if not words:
        return []
    if positional is None:
        parser.error(f"unexpected argument '{words[0]}'; {_BEFORE_FLAGS}")
    if positional in _named(rest):
        parser.error(f"'{words[0]}' and --{positional} set the same option; give all values in one place")
    return [f"--{positional}", *words]


def _named(words: Sequence[str]) -> set[str]:
    """The flags among words."""
    return {flag_of(word) for word in words}


def _replaced(named: set[str], replaces: Mapping[str, Sequence[str]]) -> set[str]:
    """The flags that count no longer in files, because the command line names others in their place."""
    others = [replaces.get(name, ()) for name in named]
    return set(itertools.chain(*others))


def _given(parser: _Parser, words: Sequence[str]) -> dict[str, Any]:
    """The flags that words name, and their values, without defaults."""
    absent = object()
    untouched = argparse.Namespace(**{action.dest: absent for action in parser._actions})
    namespace, _ = parser.parse_known_args(words, untouched)
    return {name: value for name, value in vars(namespace).items() if value is not absent}


def _check_size_of_numbers(namespace: argparse.Namespace) -> None:
    """Raises UsageError for an integer that sizes and indices, which the libraries count in 64 bits, cannot hold."""
    for name, value in vars(namespace).items():
        values = value if isinstance(value, list) else [value]
        for number in values:
            if isinstance(number, int) and abs(number) > sys.maxsize:
                raise UsageError(f"--{name} {number}: too large, at most {sys.maxsize}")


def _names(argument_classes: Sequence[type]) -> list[str]:
    fields = [field for argument_class in argument_classes for field in dataclasses.fields(argument_class)]
    return [field.name for field in fields if field.init]


def _instance(argument_class: type, namespace: argparse.Namespace) -> Any:
    names = _names([argument_class])
    return argument_class(**{name: getattr(namespace, name) for name in names})


def _replacement(name: str, flags: set[str], renamed: Mapping[str, str]) -> str:
    """What an error says of an unknown flag: what took its place, or the nearest one."""
    name = name.replace("-", "_")
    if name in renamed:
        return f"; replaced by {renamed[name]}"
    return nearest(name, flags)


def find_recipe(path: str) -> Path:
    """A YAML file of flags: `configs/NAME.yaml` is known everywhere, also where there is no checkout."""
    folder, _, name = path.partition("/")
    if folder == "configs" and not Path(path).exists():
        recipe = own_recipe(name)
        if recipe.is_file():
            return recipe
    return Path(path)


def own_recipe(name: str) -> Path:
    """A file of `configs/`, of which an installed package has most as `text_jepa/recipes/`."""
    package = Path(__file__).parent
    installed = package / "recipes" / name
    return installed if installed.is_file() else package.parent / "configs" / name


def _read_file(path: str, flags: set[str], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The values of a YAML file of flags, by flag."""
    try:
        content = _Loader(find_recipe(path).read_text(encoding="utf-8"), path).get_single_data()
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; arguments that end in .yaml are read as files of flags"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"{path}: expected lines of the form 'flag: value'; a YAML file is read as flags, never as training text"
        )
    for key in content:
        if key not in flags:
            raise UsageError(f"{path}: unknown key '{key}'{_replacement(str(key), flags, renamed)}")
    return content


class _Loader(yaml.SafeLoader):
    """Reads a YAML file of flags, whose values stay as they are written, and whose keys count once.

    Args:
        text: The content of the file.
        path: The file, for errors.

    Raises:
        UsageError: A key is given twice.
    """

    def __init__(self, text: str, path: str):
        super().__init__(text)
        self.path = path

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise UsageError(f"{self.path}, line {line}: '{key.value}' is given twice; keep only one of them")
            seen.add(str(key.value))
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        """Makes words of values and items of lists, such as `no`, `007` and `1.10`; argparse gives them their types.

        Those in mappings keep the types of YAML, because a mapping becomes JSON.
        """
        if isinstance(node, yaml.MappingNode):
            values = [(key, _as_word(value)) for key, value in node.value]
            node = yaml.MappingNode(node.tag, values, node.start_mark, node.end_mark)
        return super().construct_document(node)


def _as_word(node: yaml.Node) -> yaml.Node:
    """A value of a YAML file as a word, and a list as one of words; numbers that only YAML reads, as `0x10`, stay.

    Nodes are not changed, because an alias in a mapping may stand for the same one.
    """
    if isinstance(node, yaml.SequenceNode):
        items = [_as_word(item) for item in node.value]
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    if node.tag in _PLAIN_TYPES and not (node.tag in _NUMBERS and _is_of_yaml(node.value)):
        return yaml.ScalarNode(_WORD, node.value, node.start_mark, node.end_mark)
    return node


def _is_of_yaml(number: str) -> bool:
    """Whether Python cannot read a number of YAML."""
    try:
        float(number)
    except ValueError:
        return True
    return False


def _values_as_words(values: Mapping[str, Any]) -> list[str]:
    """Values of a file as words of a command line, so that argparse checks both alike."""
    argv = []
    for key, value in values.items():
        if isinstance(value, dict):
            argv += [f"--{key}", json.dumps(value)]
        elif isinstance(value, list):
            argv.append(f"--{key}")
            argv += [str(item) for item in value]
        elif value is not None:
            argv.append(f"--{key}={value}")
    return argv


# ---- flags of a configuration ---------------------------------------------------------------------------------------


def config_arguments(config_class: type, exclude: Sequence[str] = ()) -> type:
    """Makes a dataclass with one optional flag per field of a model configuration; `None` is the model's default.

    Types are those of the fields and help texts those of the docstring.

    Args:
        config_class: The configuration.
        exclude: Fields without a flag.
    """
    help_texts = _help_of_fields(config_class.__doc__)
    fields = []
    for name, annotation in config_class.__annotations__.items():
        is_field = name in config_class.__dataclass_fields__
        if is_field and name not in exclude and not name.startswith("_"):
            metadata = {"help": help_texts.get(name, "")}
            flag = dataclasses.field(default=None, metadata=metadata)
            fields.append((name, _flag_type(annotation), flag))
    return dataclasses.make_dataclass(f"{config_class.__name__}Arguments", fields)


def _help_of_fields(docstring: str) -> dict[str, str]:
    """Descriptions in the `Args` of a docstring in the format of transformers, without its marks of code."""
    entry = r"^ {8}(\w+) \(.*?\):(?: (.*)\n|\n((?: {12}.*\n)+))"
    help_texts = {}
    for name, same_line, next_lines in re.findall(entry, docstring, re.MULTILINE):
        text = " ".join((same_line or next_lines).split())
        help_texts[name] = re.sub(r"\[?`+\[?([^`]*?)\]?`+\]?", r"\1", text)
    return help_texts


def _flag_type(annotation: Any) -> Any:
    """The one type of a flag: `float | int` is float, `Literal` keeps its choices; always optional."""
    is_union = get_origin(annotation) is types.UnionType
    options = get_args(annotation) if is_union else (annotation,)
    options = [option for option in options if option is not types.NoneType]
    for option in options:
        if get_origin(option) is Literal:
            return option | None
    kind = float if float in options else options[0]
    return kind | None
