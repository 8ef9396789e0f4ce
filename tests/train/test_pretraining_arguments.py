"""Command lines: the YAML file, the flags, the flags of a configuration, and what a mistake says.

Run: python -m pytest -q tests/train/test_pretraining_arguments.py
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

import pytest

from text_jepa import TextJepaConfig
from text_jepa.cli import UsageError, config_arguments, nearest, parse_arguments, run_command
from text_jepa.train import arguments


@dataclass
class Model:
    preset: str | None = field(default=None, metadata={"help": "A size: 50 % smaller than %(prog)s, or 100%."})
    vocab_size: int = field(default=100, metadata={"help": "Words."})
    kind: Literal["one", "two"] = field(default="one", metadata={"help": "A choice."})
    options: dict | str | None = field(default=None, metadata={"help": "A mapping, as JSON."})


@dataclass
class Data:
    train_file: list[str] | None = field(default=None, metadata={"help": "Files."})
    learning_rate: float = field(default=0.5, metadata={"help": "A number."})
    shuffle: bool = field(default=True, metadata={"help": "A switch that is on."})
    streaming: bool = field(default=False, metadata={"help": "A switch that is off."})

    def __post_init__(self):
        if self.learning_rate < 0:
            raise ValueError("--learning_rate must not be negative")


def parse(*argv):
    """All values of a command line by name."""
    groups = parse_arguments((Model, Data), argv, "A test.")
    assert [type(group) for group in groups] == [Model, Data]
    return {key: value for group in groups for key, value in dataclasses.asdict(group).items()}


def changed(*argv):
    """The values of a command line that are not the defaults."""
    defaults = parse()
    return {key: value for key, value in parse(*argv).items() if value != defaults[key]}


@pytest.fixture
def yaml(tmp_path):
    """Writes a YAML file; gives its path."""

    def write(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


# ---- values ---------------------------------------------------------------------------------------------------------


def test_without_arguments_the_defaults_hold():
    expected = {"preset": None, "vocab_size": 100, "kind": "one", "options": None, "train_file": None}
    assert parse() == expected | {"learning_rate": 0.5, "shuffle": True, "streaming": False}


def test_values_of_the_file_come_first_and_flags_win(yaml):
    path = yaml("vocab_size: 7\npreset: tiny\ntrain_file: [a.txt, b.txt]\nshuffle: false\n")
    assert changed(path, "--vocab_size", "8", "--train_file", "c.txt", "--shuffle", "true") == {
        "vocab_size": 8,
        "preset": "tiny",
        "train_file": ["c.txt"],
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rate: 1e-3", {"learning_rate": 0.001}),  # YAML 1.1 reads a string where the dot is missing
        ("learning_rate: 2.0e-3", {"learning_rate": 0.002}),
        ("learning_rate: 1", {"learning_rate": 1.0}),
        ("vocab_size: 7", {"vocab_size": 7}),
        ("preset: small", {"preset": "small"}),
        ("preset: 'two words'", {"preset": "two words"}),
        ("preset: a=b", {"preset": "a=b"}),
        ("preset: --odd", {"preset": "--odd"}),
        ("preset: 12", {"preset": "12"}),
        ("kind: two", {"kind": "two"}),
        ("train_file: a.txt", {"train_file": ["a.txt"]}),
        ("train_file: [a.txt, b c.txt]", {"train_file": ["a.txt", "b c.txt"]}),
        ("train_file:\n  - a.txt\n  - b.txt\nvocab_size: 3", {"train_file": ["a.txt", "b.txt"], "vocab_size": 3}),
        ("options: {depth: 2, name: x}", {"options": '{"depth": 2, "name": "x"}'}),
        ("streaming: true", {"streaming": True}),
        ("streaming: yes", {"streaming": True}),
        ("shuffle: false", {"shuffle": False}),
        ("shuffle: off", {"shuffle": False}),
        ("streaming: On", {"streaming": True}),
        ("preset: no", {"preset": "no"}),
        ("preset: true", {"preset": "true"}),
        ("preset: 1.10", {"preset": "1.10"}),
        ("preset: 007", {"preset": "007"}),
        ("preset: 2024-01-01", {"preset": "2024-01-01"}),
        ("train_file: [on, off, 1.10]", {"train_file": ["on", "off", "1.10"]}),
        ("options: {depth: 1.10, is_deep: no}", {"options": '{"depth": 1.1, "is_deep": false}'}),
        ("vocab_size: &n 512\noptions: {depth: *n}", {"vocab_size": 512, "options": '{"depth": 512}'}),
        ("vocab_size: 0x10", {"vocab_size": 16}),
        ("vocab_size: null", {}),
        ("train_file: ~\npreset:", {}),
        ("# only a comment\nvocab_size: 100 # the default", {}),
    ],
)
def test_yaml_values_arrive_with_the_type_of_the_flag(yaml, line, expected):
    assert changed(yaml(line)) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--streaming"], {"streaming": True}),
        (["--streaming", "true", "--shuffle", "false"], {"streaming": True, "shuffle": False}),
        (["--no_shuffle"], {"shuffle": False}),
        (["--shuffle", "off"], {"shuffle": False}),
        (["--learning_rate", "1e-3"], {"learning_rate": 0.001}),
        (["--learning-rate=1e-3"], {"learning_rate": 0.001}),
        (["--train_file", "a.txt", "b.txt", "--vocab_size", "2"], {"train_file": ["a.txt", "b.txt"], "vocab_size": 2}),
    ],
)
def test_flags_take_values_as_usual(argv, expected):
    assert changed(*argv) == expected


def test_of_several_files_the_last_wins_and_flags_over_all(yaml, tmp_path):
    first = yaml("vocab_size: 7\npreset: tiny\ntrain_file: [a.txt, b.txt]\n")
    second = tmp_path / "corpus.yaml"
    second.write_text("train_file: c.txt\nvocab_size: 8\nstreaming: true\n")
    expected = {"vocab_size": 9, "preset": "tiny", "train_file": ["c.txt"], "streaming": True}
    assert changed(first, str(second), "--vocab_size", "9") == expected
    assert changed(str(second), first)["vocab_size"] == 7
    second.write_text("vocab_sise: 8\n")
    with pytest.raises(UsageError, match=r"corpus\.yaml: unknown key 'vocab_sise'"):
        parse(first, str(second))


# What is said of a YAML file without flags.
NO_FLAGS = r"run\.yaml: expected lines of the form 'flag: value'; a YAML file is read as flags, never as training text"


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("vocab_sise: 7", r"run\.yaml: unknown key 'vocab_sise'; did you mean 'vocab_size'\?"),
        ("streeming: true", r"run\.yaml: unknown key 'streeming'; did you mean 'streaming'\?"),
        ("zzz: 1", r"run\.yaml: unknown key 'zzz'$"),
        ("3: 1", r"run\.yaml: unknown key '3'$"),
        (
            "- vocab_size\n- 7",
            NO_FLAGS,
        ),
        (
            "just a sentence",
            NO_FLAGS,
        ),
        ("", NO_FLAGS),
        (
            "vocab_size: 7\npreset: tiny\nvocab_size: 8",
            r"^.+run\.yaml, line 3: 'vocab_size' is given twice; keep only one of them$",
        ),
        ("options: {depth: 1, depth: 2}", r"run\.yaml, line 1: 'depth' is given twice"),
        ("a: b: c", r"run\.yaml: not a YAML file: "),
        ("a: [1, 2", r"run\.yaml: not a YAML file: "),
        ("preset: !!python/object/apply:os.getcwd []", r"run\.yaml: not a YAML file: "),
        (b"preset: caf\xe9", r"run\.yaml: not a YAML file: "),
        ("vocab_size: many", r"argument --vocab_size.*: invalid int value: 'many' \(see .+ --help\)"),
        ("vocab_size: 1.5", r"argument --vocab_size.*: invalid int value: '1\.5'"),
        ("vocab_size: [1, 2]", r"^unexpected argument '2'"),
        ("streaming: maybe", r"argument --streaming.*maybe"),
        ("kind: three", r"argument --kind: invalid choice: 'three' \(choose from "),
        ("train_file: []", r"argument --train_file.*: expected at least one argument"),
        ("learning_rate: -1", r"^--learning_rate must not be negative$"),
    ],
)
def test_a_mistake_in_the_file_names_file_key_and_remedy(yaml, content, message):
    with pytest.raises(UsageError, match=message):
        parse(yaml(content))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--vocab_sise", "7"], r"^unknown argument --vocab_sise; did you mean 'vocab_size'\? \(see .+ --help\)$"),
        (["--vocab_sise=7"], r"^unknown argument --vocab_sise; did you mean 'vocab_size'\?"),
        (["--vocab", "7"], r"^unknown argument --vocab"),  # never an abbreviation
        (["--zzz"], r"^unknown argument --zzz \(see .+ --help\)$"),
        (["--vocab_size", "many"], r"argument --vocab_size.*: invalid int value: 'many'"),
        (["--vocab_size"], r"argument --vocab_size.*: expected one argument"),
        (["--kind", "three"], r"argument --kind: invalid choice: 'three'"),
        (["--learning_rate", "-1"], r"^--learning_rate must not be negative$"),
        (["--streaming", "maybe"], r"argument --streaming.*maybe"),
        (
            ["--vocab_size", "7", "run.yaml"],
            r"^unexpected argument 'run\.yaml'; YAML files .+ must come before the flags",
        ),
        (
            ["none.yaml"],
            r"^none\.yaml: No such file or directory; arguments that end in \.yaml are read as files of flags$",
        ),
        (
            ["."],
            r"^unexpected argument '\.'; YAML files and other arguments without a flag must come before the flags",
        ),
        (["--vocab-size", "many"], r"^argument --vocab_size: invalid int value: 'many'"),
    ],
)
def test_a_mistake_on_the_command_line_names_flag_and_remedy(argv, message):
    with pytest.raises(UsageError, match=message):
        parse(*argv)


PRETRAINING = (arguments.ModelArguments, arguments.DataArguments)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--view_ratio", "0.3"], "^--view_ratio goes with --view crop, crop_both or deletion$"),
        (["--view", "same", "--view_ratio", "0.3", "0.5"], "^--view_ratio goes with --view crop"),
        (["--init", "embeddings"], "^--init embeddings goes with --model_name_or_path$"),
        (["--init", "layers", "--config_name", "x"], "^--init layers goes with --model_name_or_path$"),
        (
            ["--init", "layers", "--model_name_or_path", "x", "--text_config", '{"num_hidden_layers": 2}'],
            "^--text_config changes a new encoder, not a pretrained one; add --init from_config or embeddings$",
        ),
    ],
)
def test_a_flag_of_pretraining_that_would_have_no_effect_is_refused(argv, message):
    with pytest.raises(UsageError, match=message):
        parse_arguments(PRETRAINING, argv, "A test.")


def test_a_share_of_a_view_is_taken_by_the_views_that_have_one():
    for view in ("crop", "crop_both", "deletion"):
        _, data_args = parse_arguments(PRETRAINING, ["--view", view, "--view_ratio", "0.3"], "A test.")
        assert data_args.view_ratio == 0.3


def test_the_nearest_name_is_offered_only_if_one_is_near():
    assert nearest("hidden_sise", ["hidden_size", "depth"]) == "; did you mean 'hidden_size'?"
    assert nearest("zzz", ["hidden_size", "depth"]) == nearest("x", []) == ""


# ---- help -----------------------------------------------------------------------------------------------------------


def help_of(command, *argv, capsys):
    """What a command prints for words that ask for help."""
    with pytest.raises(SystemExit) as exit_:
        command(*argv)
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_help_shows_percent_signs_as_they_are_written(capsys):
    printed = " ".join(help_of(parse, "--help", capsys=capsys).split())
    assert re.search(r"A size: 50 % smaller than \S+, or 100%\.", printed)


def test_help_shows_each_flag_once_with_its_default_and_without_its_twin(capsys):
    lines = help_of(parse, "--help", capsys=capsys).splitlines()
    flags = [re.match(r" +(--\S+)(?: (\S+(?: \.\.\.)?))?(?:  |$)", line) for line in lines]
    assert {flag[1]: flag[2] for flag in flags if flag} == {
        "--preset": "TEXT",
        "--vocab_size": "N",
        "--kind": "TEXT",
        "--options": "TEXT",
        "--train_file": "TEXT ...",
        "--learning_rate": "X",
        "--shuffle": None,
        "--streaming": None,
    }
    printed = " ".join(" ".join(lines).split())
    assert "Words. (default: 100)" in printed
    assert "A choice. One of one, two. (default: one)" in printed
    assert "None" not in printed
    assert "--vocab-size" not in printed


# ---- words before the flags -----------------------------------------------------------------------------------------


def parse_positional(*argv, recipe=None):
    groups = parse_arguments((Model, Data), argv, "A test.", positional="train_file", recipe=recipe)
    return {key: value for group in groups for key, value in dataclasses.asdict(group).items()}


def test_words_before_the_flags_are_texts_unless_they_end_in_yaml(yaml):
    path = yaml("vocab_size: 7\ntrain_file: c.txt\n")
    values = parse_positional(path, "notes", "b.txt", "--preset", "tiny")
    assert (values["vocab_size"], values["preset"], values["train_file"]) == (7, "tiny", ["notes", "b.txt"])
    assert parse_positional("notes", path) == parse_positional(path, "notes")
    assert parse_positional(path)["train_file"] == ["c.txt"]


@pytest.mark.parametrize("flag", ["--train_file", "--train-file", "--train_file=b.txt"])
def test_texts_that_are_named_twice_are_refused(flag):
    with pytest.raises(
        UsageError, match=r"^'notes' and --train_file set the same option; give all values in one place"
    ):
        parse_positional("notes", flag, "b.txt")


def test_a_recipe_gives_defaults_where_no_yaml_file_is_named(yaml):
    asked = []

    def recipe(given):
        asked.append(given)
        return {"vocab_size": 3, "preset": "small"}

    values = parse_positional("notes", "--preset", "tiny", "--learning-rate", "1", recipe=recipe)
    assert (values["vocab_size"], values["preset"]) == (3, "tiny")
    assert asked == [{"train_file": ["notes"], "preset": "tiny", "learning_rate": 1.0}]
    assert parse_positional(yaml("preset: tiny"), recipe=recipe)["vocab_size"] == 100


# ---- flags of a configuration ---------------------------------------------------------------------------------------

OBJECTIVE = config_arguments(TextJepaConfig, exclude=("text_config", "tie_word_embeddings"))


def test_every_own_field_of_the_configuration_is_an_optional_flag_with_help():
    flags = {flag.name: flag for flag in dataclasses.fields(OBJECTIVE)}
    own = set(TextJepaConfig.__annotations__) - {"text_config", "tie_word_embeddings", "model_type", "sub_configs"}
    assert set(flags) == own
    for flag in flags.values():
        assert flag.default is None
        assert type(None) in get_args(flag.type)
        assert re.fullmatch(r"[A-Z0-9].{10,}\.", flag.metadata["help"]), flag.name
        assert "`" not in flag.metadata["help"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["--pred_hidden_size", "48"], {"pred_hidden_size": 48}),
        (["--pred_mlp_ratio", "2"], {"pred_mlp_ratio": 2.0}),
        (["--token_loss_weight", "0"], {"token_loss_weight": 0.0}),
        (["--loss_type", "cosine"], {"loss_type": "cosine"}),
        (["--context_mode", "attention_mask"], {"context_mode": "attention_mask"}),
        (["--pred_hidden_act", "relu"], {"pred_hidden_act": "relu"}),
    ],
)
def test_flags_of_the_configuration_have_the_types_of_its_fields(argv, expected):
    (arguments,) = parse_arguments((OBJECTIVE,), argv, "A test.")
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    assert given == expected
    assert [type(value) for value in given.values()] == [type(value) for value in expected.values()]
    config = TextJepaConfig(**given)
    assert {key: getattr(config, key) for key in given} == given


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--loss_type", "nope"], "argument --loss_type.*: invalid choice: 'nope' .*smooth_l1"),
        (["--pred_hidden_size", "wide"], "argument --pred_hidden_size.*: invalid int value: 'wide'"),
        (["--pred_hiden_size", "8"], "did you mean 'pred_hidden_size'"),
        (["--text_config", "{}"], "unknown argument --text_config"),
    ],
)
def test_flags_of_the_configuration_refuse_what_its_fields_refuse(argv, message):
    with pytest.raises(UsageError, match=message):
        parse_arguments((OBJECTIVE,), argv, "A test.")


# ---- running a command ----------------------------------------------------------------------------------------------


def run(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(command)
    return exit_.value.code, capsys.readouterr().err


def test_a_command_that_ends_well_exits_with_zero_and_says_nothing(capsys):
    assert run(lambda: "a value", capsys) == (0, "")


def test_a_mistake_of_the_user_is_one_line_and_exit_code_two(capsys):
    def fail():
        raise UsageError("the file:\n   line 3\n\n  is odd")

    assert run(fail, capsys) == (2, "error: the file: line 3 is odd\n")


def test_a_bug_keeps_its_traceback():
    def fail():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_command(fail)
