"""The command `text-jepa`: its verbs, their names in help and errors, and the scripts that two of them share.

Run: python -m pytest -q tests/test_commands.py
"""

import pytest

import run_pretraining
import run_probe
from text_jepa.cli import UsageError
from text_jepa.commands.main import VERBS, dispatch


def help_of(command, *args, capsys):
    """What a command prints for `--help`."""
    with pytest.raises(SystemExit) as stop:
        command(*args)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_its_own_name_in_help_and_errors(verb, capsys):
    assert help_of(dispatch, [verb, "--help"], capsys=capsys).startswith(f"usage: text-jepa {verb} ")
    with pytest.raises(UsageError, match=rf"\(see text-jepa {verb} --help\)$"):
        dispatch([verb, "--no_such_flag"])


@pytest.mark.parametrize("script", [run_pretraining, run_probe])
def test_a_script_has_its_own_name_in_help_and_errors(script, capsys):
    name = f"{script.__name__}.py"
    assert help_of(script.main, ["--help"], capsys=capsys).startswith(f"usage: {name} ")
    with pytest.raises(UsageError, match=rf"\(see {name} --help\)$"):
        script.main(["--no_such_flag"])


def test_help_lists_every_verb(capsys):
    dispatch(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in VERBS)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ([], "name a verb: pretrain, probe, export, masks, plot"),
        (["pretain"], "unknown verb 'pretain'; did you mean 'pretrain'"),
    ],
)
def test_a_missing_or_unknown_verb_is_one_line(argv, problem):
    with pytest.raises(UsageError, match=problem):
        dispatch(argv)
