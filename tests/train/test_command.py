"""The command line of a run: its help, the recipe of a run that names none, its folder and its length.

Run: python -m pytest -q tests/train/test_command.py
"""

import contextlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml

from configuration_text_jepa import OBJECTIVES
from run_pretraining import show_next
from text_jepa.commands import adapt
from text_jepa.encoders.sentence_head import SentenceHead
from text_jepa.train import command
from text_jepa.train.arguments import MOST_PASSES, MOST_STEPS, TextJepaTrainingArguments
from text_jepa.train.build import objective_of, set_dependent_defaults
from text_jepa.train.command import choose_length, choose_output_dir, parse_run
from text_jepa.train.pretraining import describe_length
from text_jepa.train.time_left import in_words


ROOT = Path(__file__).parents[2]


def parse(*argv):
    """Model, data, objective and training arguments of a command line."""
    return parse_run([*argv, "--use_cpu"], "text-jepa pretrain")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- help -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages():
    """What `--help` and `--help-all` print: the sections, and each flag with its default."""

    def read(flag):
        with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
            parse_run([flag], "text-jepa pretrain", "About it.")
        text = printed.getvalue()
        sections = re.findall(r"^(\w.*):$", text, re.MULTILINE)
        flags = {}
        for entry in re.split(r"^  --", text, flags=re.MULTILINE)[1:]:
            entry = " ".join(re.split(r"\n\S|\n\n", entry)[0].split())
            name = re.match(r"\w+", entry)[0]
            default = re.search(r"\(default: ([^)]*)\)$", entry)
            flags[name] = default[1] if default else None
        return SimpleNamespace(text=text, sections=sections, flags=flags)

    return read("--help"), read("--help-all")


def test_help_is_a_dozen_flags_and_help_all_is_all_of_them(pages):
    short, full = pages
    assert sorted(short.flags) == sorted(command.PAGE.main)
    assert len(short.flags) <= 13
    assert list(full.flags) == [name for names in command.SECTIONS.values() for name in names]
    assert set(full.flags) == {field for group in parse("notes") for field in vars(group)} & set(full.flags)
    assert "CONFIG.yaml" in short.text
    assert "TEXTS" in short.text
    assert short.text.startswith("usage: text-jepa pretrain ")


def test_sections_are_those_of_the_reference_page(pages):
    short, full = pages
    page = (ROOT / "docs" / "reference" / "flags.md").read_text()
    of_pretraining = page.split("## text-jepa pretrain\n")[1].split("## text-jepa probe\n")[0]
    headings = [title for title in re.findall(r"^### (.+)$", of_pretraining, re.MULTILINE) if title != "Experimental"]
    assert full.sections == list(command.SECTIONS) == headings
    assert short.sections == [title for title in headings if title in short.sections]


def test_a_default_that_is_shown_is_the_one_that_a_run_takes(pages):
    model_args, data_args, objective_args, args = parse("notes")
    objective = objective_of(model_args, objective_args)
    set_dependent_defaults(data_args, objective)
    taken = {**vars(args), **vars(model_args), **vars(data_args), **vars(objective)}
    said_in_words = {"max_steps", "num_train_epochs", "output_dir"}
    set_by_the_trainer = {"dataloader_pin_memory", "local_rank", "report_to"}
    for page in pages:
        differing = {}
        checked = 0
        for name, shown in page.flags.items():
            if shown is None or name in said_in_words | set_by_the_trainer:
                continue
            value = taken[name]
            value = getattr(value, "value", value)
            if isinstance(value, list):
                value = " ".join(map(str, value))
            if shown != str(value):
                differing[name] = (shown, value)
            checked += 1
        assert differing == {}
        assert checked > 5
    assert pages[0].flags["preset"] == "static"
    assert pages[0].flags["max_length"] == "64"
    assert pages[1].flags["document_loss_weight"] == str(OBJECTIVES["documents"]["document_loss_weight"])
    assert pages[1].flags["view"] == "rest"


@pytest.mark.parametrize(
    ("flags", "ratio"),
    [
        (["--objective", "jepa"], 0.5),
        (["--objective", "documents"], 0.0),
        (["--objective", "documents", "--token_loss_weight", "0.1"], 0.5),
        (["--objective", "simcse"], 0.5),
        (["--objective", "simcse", "--view", "neighbour"], 0.0),
        ([str(ROOT / "configs/lejepa-text.yaml")], 0.5),
        ([str(ROOT / "configs/simcse.yaml")], 0.0),
    ],
)
def test_words_are_hidden_unless_other_parts_of_a_document_are_what_is_predicted(flags, ratio):
    model_args, data_args, objective_args, _ = parse("notes", *flags)
    set_dependent_defaults(data_args, objective_of(model_args, objective_args))
    assert data_args.mask_ratio == ratio


# ---- the recipe of a run that names none ----------------------------------------------------------------------------


def test_the_default_recipe_is_that_of_tiny_cpu():
    file = yaml.safe_load((ROOT / "configs" / "tiny_cpu.yaml").read_text())
    steps = file.pop("max_steps")
    assert steps == MOST_STEPS
    del file["output_dir"]
    shares = {name: command.DEFAULT_RECIPE[name] * steps for name in ("logging_steps", "eval_steps", "save_steps")}
    expected = command.DEFAULT_RECIPE | shares | {"learning_rate": TextJepaTrainingArguments.learning_rate}
    assert file == expected


@pytest.mark.parametrize(
    ("argv", "takes_recipe"),
    [
        (["notes"], True),
        (["--train_file", "notes"], True),
        (["notes", "--objective", "documents", "--preset", "static"], True),
        (["notes", "--preset", "mini"], False),
        (["notes", "--objective", "mlm"], False),
        (["notes", "--model_name_or_path", "bert"], False),
        ([str(ROOT / "configs" / "mlm.yaml"), "notes"], False),
    ],
)
def test_a_run_takes_the_recipe_unless_it_names_another(argv, takes_recipe):
    model_args, data_args, _, args = parse(*argv)
    assert data_args.train_file == ["notes"]
    assert (model_args.vocab_size == 8192 and data_args.max_length == 64) == takes_recipe
    assert (args.logging_steps == 0.05) == takes_recipe


def test_flags_override_the_recipe(caplog):
    _, data_args, _, args = parse("notes", "--max_length", "32", "--eval_strategy", "no")
    assert (data_args.max_length, args.eval_strategy.value, args.eval_steps) == (32, "no", None)


@pytest.mark.parametrize(
    ("recipe", "flags", "encoder"),
    [
        ("default", ["--model_name_or_path", "bert"], (None, None, "bert", None)),
        ("default", ["--model-name-or-path=bert", "--init", "layers"], (None, None, "bert", None)),
        ("default", ["--config_name", "bert"], (None, "bert", None, None)),
        ("default", ["--preset", "tiny"], ("tiny", None, None, None)),
        ("simcse", ["--model_name_or_path", "bert"], (None, None, "bert", None)),
        ("simcse", ["--config_name", "bert", "--text_config", '{"n": 1}'], (None, "bert", None, '{"n": 1}')),
    ],
)
def test_an_encoder_that_flags_name_takes_the_place_of_that_of_a_recipe(recipe, flags, encoder):
    model_args, *_ = parse(str(ROOT / "configs" / f"{recipe}.yaml"), "notes", *flags)
    found = (model_args.preset, model_args.config_name, model_args.model_name_or_path, model_args.text_config)
    assert found == encoder


@pytest.mark.parametrize(
    ("flags", "steps", "passes"),
    [
        (["--num_train_epochs", "5"], -1, 5),
        (["--num-train-epochs=5"], -1, 5),
        (["--num_train_epochs", "5", "--max_steps", "7"], 7, 5),
        ([], 7000, 3),
    ],
)
def test_passes_that_flags_name_take_the_place_of_the_steps_of_a_recipe(flags, steps, passes):
    *_, args = parse(str(ROOT / "configs" / "default.yaml"), "notes", *flags)
    choose_length(args, 0, 640)
    assert (args.max_steps, args.num_train_epochs) == (steps, passes)


def test_passes_take_the_place_of_the_steps_of_an_adaptation():
    words = adapt.words_of_run("somewhere", SentenceHead("somewhere"), ["notes"], ["--num_train_epochs", "5"])
    *_, args = parse(*words)
    assert (args.max_steps, args.num_train_epochs) == (-1, 5)


# ---- length and folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "layers", "windows", "steps"),
    [
        ([], 0, 640, 100),  # 5 steps a pass
        ([], 0, 10, 2),  # less than a batch a pass
        ([], 0, 10_000_000, MOST_STEPS),
        ([], 4, 640, -1),
        (["--num_train_epochs", "3"], 0, 640, -1),
        (["--max_steps", "7"], 0, 640, 7),
    ],
)
def test_the_length_of_a_run_follows_from_its_texts_unless_flags_name_it(flags, layers, windows, steps):
    *_, args = parse("notes", *flags)
    choose_length(args, layers, windows)
    assert args.max_steps == steps
    assert args.num_train_epochs == 3


@pytest.mark.parametrize(("flags", "steps"), [([], 5), (["--dataloader_drop_last"], 4)])
def test_the_length_that_is_shown_is_that_of_the_trainer(flags, steps):
    *_, args = parse("notes", "--num_train_epochs", "1", "--per_device_train_batch_size", "4", *flags)
    texts = datasets.Dataset.from_dict({"length": [3] * 18})
    assert describe_length(args, texts).startswith(f"{steps} steps of 4 texts")


def test_from_python_a_run_has_three_passes():
    args = TextJepaTrainingArguments(use_cpu=True)
    assert (args.max_steps, args.num_train_epochs, args.output_dir) == (-1, 3.0, "text-jepa-output")
    assert MOST_PASSES > 3


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["my notes/"], "my-notes"),
        (["my notes/*.txt"], "my-notes"),
        (["my notes/one.jsonl.gz", "other"], "one"),
        (["--dataset_name", "owner/corpus"], "corpus"),
        ([str(ROOT / "configs" / "compare" / "documents.yaml")], None),
        (["--preset", "tiny"], "run"),
    ],
)
def test_a_run_has_the_name_of_its_texts(workspace, argv, name):
    (workspace / "my notes").mkdir()
    if name is None:
        (workspace / "recipe.yaml").write_text("preset: tiny")
        argv, name = ["recipe.yaml"], "recipe"
    _, data_args, _, args = parse(*argv)
    made = choose_output_dir(data_args, argv, args)
    assert args.output_dir == f"runs/{name}"
    assert made == [Path("runs"), Path("runs", name)]
    assert Path("runs", name).is_dir()


@pytest.mark.parametrize(
    ("texts", "flags", "probe"),
    [
        ([], [], "text-jepa probe runs/x"),
        (["a b.txt"], [], "text-jepa probe runs/x --texts UNSEEN_TEXTS --train_texts 'a b.txt'"),
        (
            ["posts.jsonl"],
            ["--text_column", "title", "body"],
            "text-jepa probe runs/x --texts UNSEEN_TEXTS --train_texts posts.jsonl --text_column title body",
        ),
    ],
)
def test_a_run_names_a_probe_of_texts_like_its_own(texts, flags, probe, capsys):
    _, data_args, _, _ = parse(*texts, *flags)
    show_next(data_args, "runs/x")
    assert capsys.readouterr().out.splitlines() == ["Next:", f"  {probe}"]


def test_a_run_never_takes_the_folder_of_another(workspace):
    found = []
    for _ in range(3):
        _, data_args, _, args = parse("notes")
        choose_output_dir(data_args, ["notes"], args)
        found.append(args.output_dir)
    assert found == ["runs/notes", "runs/notes-2", "runs/notes-3"]
    _, data_args, _, args = parse("notes", "--resume_from_checkpoint", "auto")
    choose_output_dir(data_args, ["notes"], args)
    assert args.output_dir == "runs/notes-3"


def test_a_run_that_resumes_from_a_named_checkpoint_takes_its_folder(workspace):
    for name in ("notes/checkpoint-50", "notes-2"):
        Path("runs", name).mkdir(parents=True)
    _, data_args, _, args = parse("notes", "--resume_from_checkpoint", "runs/notes/checkpoint-50")
    assert choose_output_dir(data_args, ["notes"], args) == []
    assert args.output_dir == "runs/notes"


def test_a_folder_that_is_named_is_taken(workspace):
    _, data_args, _, args = parse("notes", "--output_dir", "here")
    assert choose_output_dir(data_args, ["notes"], args) == []
    assert args.output_dir == "here"
    assert not Path("here").exists()


# ---- the time left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "10 seconds"),
        (44, "40 seconds"),
        (58, "1 minute"),
        (200, "3 minutes"),
        (9_000, "2.5 hours"),
    ],
)
def test_an_estimate_is_rounded(seconds, words):
    assert in_words(seconds) == words
