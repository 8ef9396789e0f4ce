"""The command `text-jepa`: its verbs, their names in help and errors, and the scripts that two of them share.

Run: python -m pytest -q tests/test_commands.py
"""

import contextlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import run_pretraining
import run_probe
from text_jepa import errors
from text_jepa.cli import UsageError, run_command
from text_jepa.commands import export, main, plot
from text_jepa.commands.main import VERBS, dispatch
from text_jepa.commands.stored.__main__ import stored_texts
from text_jepa.probe.arguments import SECTIONS, ProbeArguments


ROOT = Path(run_probe.__file__).parent


def help_of(command, *args, capsys):
    """What a command prints for `--help`."""
    with contextlib.suppress(SystemExit):
        command(*args)
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_its_own_name_in_help_and_errors(verb, capsys):
    assert help_of(dispatch, [verb, "--help"], capsys=capsys).startswith(f"usage: text-jepa {verb} ")
    with pytest.raises(UsageError, match=f"text-jepa {verb} "):
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


def test_an_unknown_verb_is_one_line():
    with pytest.raises(UsageError, match="unknown command 'pretain'; did you mean 'pretrain'"):
        dispatch(["pretain"])


def test_without_a_verb_there_are_the_verbs_three_examples_and_exit_code_two(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["text-jepa"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(f"\n  {verb} " in printed.err for verb in VERBS)
    examples = re.findall(r"^  text-jepa (\w+) ", printed.err, re.MULTILINE)
    assert len(examples) == 3
    assert set(examples) <= set(VERBS)


@pytest.mark.parametrize("argv", [["--help-all"], ["search", "--help-all"], ["export", "--help-all"]])
def test_all_help_of_a_verb_with_few_flags_is_its_help(argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["text-jepa", *argv])
    for command in (main.main, lambda: dispatch(argv)):
        with contextlib.suppress(SystemExit):
            command()
        assert capsys.readouterr().out.startswith("usage: text-jepa")


# ---- what is stored -------------------------------------------------------------------------------------------------


def test_stored_help_is_that_of_the_code():
    for name, text in stored_texts().items():
        assert main.read_stored(name) == text, "run python -m text_jepa.commands.stored"


@pytest.mark.parametrize(("verb", "module"), [("export", export), ("plot", plot)])
def test_help_is_stored_of_each_part_of_a_verb(verb, module):
    (parts,) = [action.choices for action in module.make_parser()._actions if action.dest == "command"]
    assert tuple(parts) == main.PARTS[verb]
    assert all((verb, part, "--help") in main.STORED_HELP for part in parts)


QUESTIONS = [["--version"], ["--help"], *([verb, "-h"] for verb in VERBS), ["plot", "map", "--help-all"]]


def test_help_and_version_are_answered_without_torch():
    code = (
        "import contextlib, sys\n"
        "sys.argv[0] = 'bin/text-jepa'\n"
        "from text_jepa.commands.main import main\n"
        f"for words in {QUESTIONS}:\n"
        "    sys.argv[1:] = words\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.match(r"text-jepa \d+\.\d+", result.stdout)
    assert result.stdout.count("usage: text-jepa ") == len(QUESTIONS) - 1
    assert result.stdout.endswith("\n[]\n")


def test_the_package_as_a_module_answers_without_torch():
    command = [sys.executable, "-X", "importtime", "-m", "text_jepa", "adapt", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == main.read_stored("adapt.txt")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "text_jepa.commands.main" in imported
    assert imported.isdisjoint({"torch", "transformers"})


@pytest.mark.parametrize(("path", "reason"), [("file", "File exists"), ("file/new", "Not a directory")])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, path, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: (tmp_path / path).mkdir(parents=True, exist_ok=True))
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / path}: {reason}; fix that, or use another path\n"


@pytest.mark.parametrize(
    ("verb", "trains"), [("pretrain", True), ("adapt", True), ("probe", False), ("search", False), ("export", False)]
)
def test_where_memory_runs_out_flags_of_training_are_named_to_those_who_train(verb, trains, monkeypatch, capsys):
    def fail(words):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(main, "run_or_help", fail)
    monkeypatch.setattr(sys, "argv", ["text-jepa", verb, "runs/a"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (CUDA out of memory); ")
    assert ("--per_device_train_batch_size" in line) == trains
    assert ("CUDA_VISIBLE_DEVICES=" in line) != trains


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "out of memory (tried to allocate 8000000000000 bytes)",
        ),
        (
            MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,) and data type float64"),
            "out of memory (Unable to allocate 7.28 TiB)",
        ),
        (MemoryError(), "out of memory"),
    ],
    ids=["torch", "numpy", "python"],
)
def test_memory_of_the_cpu_that_runs_out_is_one_line_too(error, said, capsys):
    assert refused(error, capsys) == f"error: {said}; {errors._SMALLER_BATCHES}\n"


@pytest.mark.parametrize(
    "words",
    [
        "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit.",
        "DataLoader worker (pid(s) 71, 72) exited unexpectedly",
    ],
)
@pytest.mark.parametrize("trains", [True, False])
def test_a_worker_that_the_system_ends_is_one_line_with_the_remedies(words, trains, capsys):
    line = refused(RuntimeError(words), capsys, trains=trains)
    assert line.startswith(f"error: {words.partition('.')[0]}; lower --dataloader_num_workers")
    assert "docker run --shm-size" in line
    assert ("--resume_from_checkpoint auto" in line) == trains


def refused(error, capsys, **options):
    """The one line on stderr of a command that raises an error."""

    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(fail, **options)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    return printed


def test_a_bug_in_a_worker_keeps_its_traceback():
    def fail():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback …")

    with pytest.raises(RuntimeError, match="Original Traceback"):
        run_command(fail)


def test_other_words_reach_their_verb(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["text-jepa", "pretain"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert "did you mean 'pretrain'" in capsys.readouterr().err


# ---- flags that are given twice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["pretrain", "--train_file", "a", "--train_file", "b"], "train_file"),
        (["pretrain", "a", "--text-column", "title", "--text_column=body"], "text_column"),
        (["probe", "runs/a", "--tasks", "a", "--tasks", "b"], "tasks"),
        (["export", "weights", "runs/a", "out", "--texts", "a", "--texts", "b"], "texts"),
    ],
)
def test_a_list_that_is_given_twice_is_one_line_that_says_how_to_give_it(words, name):
    remedy = f"list all values after a single one, as in --{name} A B"
    with pytest.raises(UsageError, match=rf"^--{name} is given 2 times; {remedy}"):
        dispatch(words)


def test_a_flag_of_an_export_that_is_given_twice_is_one_line():
    with pytest.raises(UsageError, match=r"^--which is given 2 times; keep only one of them"):
        dispatch(["export", "encoder", "runs/a", "out", "--which", "target", "--which", "context"])


def test_what_follows_two_dashes_is_no_flag(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        dispatch(["search", "--limit", "3", str(tmp_path / "none"), "--", "--limit"])


# ---- nothing to do --------------------------------------------------------------------------------------------------


def test_without_texts_and_configuration_there_are_three_examples_and_exit_code_two(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["text-jepa", "pretrain"])
    printed = []
    for command in (main.main, lambda: run_command(lambda: dispatch(["pretrain"]))):
        with pytest.raises(SystemExit) as stop:
            command()
        assert stop.value.code == 2
        printed.append(capsys.readouterr().err)
    assert printed[0] == printed[1]
    *examples, error = printed[0].splitlines()
    assert len(examples) == 3
    assert all(line.startswith("  text-jepa pretrain ") for line in examples)
    assert error == "error: name texts or a configuration to train on (see text-jepa pretrain --help)"


def test_flags_alone_are_nothing_to_train_on(tmp_path):
    with pytest.raises(UsageError, match=r"^name texts or a configuration to train on"):
        run_pretraining.main(["--max_steps", "1", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# ---- the probe ------------------------------------------------------------------------------------------------------


def test_help_of_the_probe_lists_each_flag_in_one_section_and_names_the_encoder(capsys):
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(field.name for field in fields(ProbeArguments))
    printed = help_of(run_probe.main, ["--help-all"], capsys=capsys)
    assert re.findall(r"^(\w.*):$", printed, re.MULTILINE) == list(SECTIONS)
    assert re.findall(r"^  --(\w+)", printed, re.MULTILINE) == names
    assert "\nENCODER  " in help_of(run_probe.main, ["--help"], capsys=capsys)


def test_the_probe_takes_one_encoder_before_its_flags():
    with pytest.raises(UsageError, match=r"^unexpected argument 'other'"):
        run_probe.main(["runs/one", "other"])
    with pytest.raises(UsageError, match=r"^'runs/one' and --model_name_or_path set the same option"):
        run_probe.main(["runs/one", "--model_name_or_path", "other"])
