"""benchmarks/compare.py: budgets, intervals and differences by themselves, the files of configs/, and a comparison."""

import contextlib
import importlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import BertConfig

from benchmarks import compare
from text_jepa.cli import UsageError, parse_arguments, run_command
from text_jepa.commands.main import dispatch
from text_jepa.probe.bootstrap import interval_of, score_answers
from text_jepa.probe.glue import FUNCTIONS
from text_jepa.probe.report import macro_averages
from text_jepa.train.arguments import DataArguments, ModelArguments, TextJepaTrainingArguments
from text_jepa.train.build import objective_of, set_dependent_defaults
from text_jepa.train.command import parse_run


ROOT = Path(__file__).parents[1]
PLANS = sorted((ROOT / "configs/compare").glob("*.yaml"))

PILOT = [
    {"step": 1, "train_seconds": 9.0, "tokens_seen": 100},
    {"step": 40, "train_seconds": 20.0, "tokens_seen": 4_000},
    {"step": 80, "train_seconds": 40.0, "tokens_seen": 8_000},
    {"step": 80, "eval_loss": 1.0},
]


# ---- budget ---------------------------------------------------------------------------------------------------------


def test_seconds_become_steps_at_the_rate_after_the_warm_up():
    assert compare.steps_for([PILOT], seconds=100, tokens=None) == 200


def slower(factor):
    """The pilot on a machine that is busy."""
    return [{**record, "train_seconds": factor * record.get("train_seconds", 0)} for record in PILOT[:3]]


def test_a_single_slow_pilot_changes_nothing():
    assert compare.steps_for([PILOT, slower(9), PILOT], seconds=100, tokens=None) == 200
    assert compare.steps_for([PILOT, slower(2), slower(3)], seconds=100, tokens=None) == 100


def test_tokens_become_steps_whatever_the_speed():
    assert compare.steps_for([PILOT], None, 50_000) == compare.steps_for([slower(7)], None, 50_000) == 500


def test_arms_that_differ_after_training_share_their_pilots():
    """They are the same training, so they must get the same number of steps."""
    arms = {
        "default": {"pooling": "idf"},
        "unmerged": {"pooling": "idf", "merge": False},
        "context": {"export_encoder": "context", "pooling": "idf"},
        "mean": {"pooling": "mean"},
        "before": {"trainer": "none"},
    }
    shared = compare.shared_pilots({"arms": arms})
    assert shared == {"default": "default", "unmerged": "default", "context": "default", "mean": "mean"}


def test_pilots_of_the_arms_take_turns_until_one_fails(tmp_path, monkeypatch):
    called = []

    def pilot(plan, out, environment, arm, name):
        called.append((name, arm))
        if arm == "bad":
            raise UsageError("no")

    monkeypatch.setattr(compare, "pilot", pilot)
    failures = compare.run_pilots({"arms": {"good": {"a": 1}, "bad": {"a": 2}}}, tmp_path, {}, 1)
    first, *others = compare.PILOTS
    assert called == [(first, "good"), (first, "bad"), *((name, "good") for name in others)]
    assert failures == {("bad", first): "no"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no affinity")
def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(compare.torch.cuda, "is_available", lambda: False)
    assert compare.available_cores() == 1
    assert compare.hardware().startswith("1 CPU core (")


# ---- intervals ------------------------------------------------------------------------------------------------------


def accuracy(answers, gold):
    return float((answers == gold).mean())


def resampled(function, answers, gold=None, resamples=2000):
    seed_draws = np.random.default_rng(1).random((resamples, len(answers)))
    return compare.resampled(function, answers, gold, 1, seed_draws)


def test_interval_of_one_seed_is_that_of_its_rows():
    gold = np.zeros(400, int)
    answers = np.where(
        np.arange(400) < 100,
        1,
        0,
    )[None]
    found = resampled(accuracy, answers, gold)
    assert found.by_seed == pytest.approx([75])
    assert found.draws.std() == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 400), rel=0.1)


def test_interval_of_equal_rows_is_that_of_the_mean_of_new_seeds():
    """Every row tells the same, so that only seeds vary: the standard error of their mean, without the bias of K."""
    scores = np.array([0.2, 0.5, 0.8])
    answers = np.repeat(scores[:, None], 50, axis=1)
    draws = resampled(np.mean, answers, resamples=20_000).draws
    assert draws.mean() == pytest.approx(50, abs=1)
    # Student's quantile over the normal one, with two degrees of freedom.
    assert draws.std() == pytest.approx(
        100 * scores.std(ddof=1) / math.sqrt(3) * 4.303 / 1.960,
        rel=0.03,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_of_few_seeds_holds_the_truth_as_often_as_it_says(seeds):
    generator = np.random.default_rng(4)
    held = 0
    for _ in range(400):
        answers = np.repeat(
            generator.normal(size=(seeds, 1)),
            2,
            axis=1,
        )
        low, high = interval_of(
            resampled(
                np.mean,
                answers,
                resamples=400,
            ).draws
        )
        held += low <= 0 <= high
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_a_seed_that_one_system_lacks_counts_for_none():
    """By place, the difference of an arm to its own copy without the first seed would not be 0."""
    whole = {
        seed: np.full(4, value)
        for seed, value in {
            1: 0.2,
            2: 0.5,
            3: 0.8,
        }.items()
    }
    found = compare.in_common(
        {
            "ours": whole,
            "same": {seed: whole[seed] for seed in (3, 2)},
        }
    )
    assert np.array_equal(found["ours"], found["same"])
    assert found["ours"].mean() == pytest.approx(0.65)
    with pytest.raises(UsageError, match="no seed that all of ours, other have"):
        compare.in_common(
            {
                "ours": whole,
                "other": {4: whole[1]},
            }
        )


def table(**systems):
    """Answers and gold of one task, each system right with its probability, three seeds."""
    generator = np.random.default_rng(2)
    gold = generator.integers(2, size=600)
    answers = {
        name: np.where(
            generator.random((3, 600)) < p,
            gold,
            1 - gold,
        )
        for name, p in systems.items()
    }
    return {("sst2", "linear", "accuracy"): answers}, {"sst2": gold}


def significances(answers, gold):
    judged = compare.judged(answers, gold, "ours", resamples=200)
    return {pair["system"]: pair["verdict"] for pair in judged["pairs"]}


def test_a_difference_names_the_better_and_the_worse_and_does_not_guess():
    answers, gold = table(ours=0.8, weak=0.6, strong=0.95)
    of_task = next(iter(answers.values()))
    of_task["same"] = of_task["ours"]
    assert significances(answers, gold) == {
        "weak": "better",
        "strong": "worse",
        "same": "n.s.",
    }


def test_a_difference_on_the_same_rows_is_told_apart_where_the_two_intervals_overlap():
    generator = np.random.default_rng(3)
    gold, right = np.zeros(500, int), generator.random((3, 500)) < 0.7
    lost = right & (generator.random((3, 500)) < 0.96)
    answers = {
        ("rte", "linear", "accuracy"): {
            "ours": np.where(right, 0, 1),
            "theirs": np.where(lost, 0, 1),
        }
    }
    judged = compare.judged(answers, {"rte": gold}, "ours", resamples=500)
    ours, theirs = judged["scores"]
    assert ours["low"] < theirs["high"]
    assert judged["pairs"][0]["verdict"] == "better"


def test_a_system_without_a_task_has_no_average():
    answers, gold = table(ours=0.8, theirs=0.7)
    answers["rte", "linear", "accuracy"] = {"ours": answers["sst2", "linear", "accuracy"]["ours"]}
    gold["rte"] = gold["sst2"]
    averages = [s for s in compare.judged(answers, gold, "ours", 50)["scores"] if s["metric"] == "average"]
    assert [s["system"] for s in averages] == ["ours"]


def test_averages_are_those_of_the_probe():
    """Of a task with two metrics their mean counts; its table shows the leading one alone."""
    answers, gold = table(ours=0.8, theirs=0.7)
    (of_task,) = answers.values()
    answers |= {("mrpc", "linear", metric): of_task for metric in ("accuracy", "f1")}
    gold["mrpc"] = gold["sst2"]
    judged = compare.judged(answers, gold, "ours", 50)
    shown = {(s["task"], s["metric"], s["system"]): s["score"] for s in judged["scores"]}
    assert {metric for task, metric, _ in shown if task == "mrpc"} == {"f1"}
    rows = {(*column, system): rows for column, by in answers.items() for system, rows in by.items()}
    expected = macro_averages(score_answers(rows, FUNCTIONS, gold, 0))
    assert {s.system: pytest.approx(s.score) for s in expected} == {
        system: value for (_, metric, system), value in shown.items() if metric == "average"
    }


def test_every_two_systems_are_compared_where_the_main_table_looks():
    answers, gold = table(ours=0.9, weak=0.6, strong=0.9)
    answers = {
        ("qqp test", "cosine raw", "map"): next(iter(answers.values())),
        **answers,
    }
    pairs = compare.judged(answers, gold, "ours", 200)["pairs"]
    assert {(p["of"], p["system"]) for p in pairs if p["task"] == "sst2"} == {("ours", "weak"), ("ours", "strong")}
    found = {(p["of"], p["system"]): p["ahead"] for p in pairs if p["task"] == "qqp test"}
    assert len(found) == 6
    assert all(ahead == pytest.approx(-found[other, one]) for (one, other), ahead in found.items())


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_recipe_of_a_comparison_exists(path, monkeypatch):
    monkeypatch.setenv("TEXT_JEPA_DATA", "data")
    monkeypatch.setenv("ENCODER", "encoder")
    plan = compare.read_plan(str(path))
    assert all((ROOT / flags["recipe"]).is_file() for flags in plan["arms"].values() if "recipe" in flags)


def resolved(flags, folder):
    """All values that decide about the encoder of an arm, as its trainer reads the command line."""
    flags = {**flags, "output_dir": str(folder), "use_cpu": True}
    flags.pop("bf16", None)  # needs a GPU
    trainer = flags.pop("trainer", None)
    recipe = flags.pop("recipe", None)
    argv = compare.as_argv(flags)
    if trainer == "none":
        return {"trainer": "none"}
    if trainer in ("tsdae", "word2vec"):
        groups = parse_arguments((ModelArguments, DataArguments, TextJepaTrainingArguments), argv, "")
        return {"trainer": trainer, **values_of(groups)}
    argv = [str(ROOT / recipe), *argv] if recipe else argv
    model_args, data_args, objective_args, args = parse_run(argv, "")
    objective = objective_of(model_args, objective_args)
    set_dependent_defaults(data_args, objective)
    return values_of((model_args, data_args, args, objective))


def values_of(groups):
    values = {}
    for group in groups:
        values |= vars(group)
    return {name: str(value) for name, value in values.items()}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_arm_is_understood_and_no_two_arms_are_the_same(path, monkeypatch, tmp_path, bert):
    """With the parser of its trainer, and after defaults that follow from others."""
    (tmp_path / "train.txt").write_text("a text\n")
    monkeypatch.setenv("TEXT_JEPA_DATA", "data")
    monkeypatch.setenv("ENCODER", str(bert))
    plan = compare.read_plan(str(path))
    found = {}
    for arm, flags in plan["arms"].items():
        if path.stem == "from_encoder":
            flags = {**flags, "model_name_or_path": str(bert)}
        found[arm] = resolved({**flags, "train_file": str(tmp_path / "train.txt")}, tmp_path / "run")
    for one, other in itertools.combinations(found, 2):
        assert found[one] != found[other], f"{one} and {other}"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Folder with the configuration of an encoder, which is all that the parser reads."""
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(hidden_size=32, num_attention_heads=2).save_pretrained(folder)
    return folder


def test_arms_share_a_tokenizer_but_encoders_keep_their_own(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(compare, "train", lambda *_, **__: trained.append(True))
    plan = {"common": {}, "arms": {"new": {}, "adapted": {"model_name_or_path": "encoder"}}}
    compare.share_tokenizer(plan, tmp_path, {})
    assert trained == [True]
    assert plan["arms"]["new"] == {"tokenizer_name": str(tmp_path / "prepared/tokenizer")}
    assert "tokenizer_name" not in plan["arms"]["adapted"]


def test_flags_of_the_command_line_are_common_but_those_of_an_arm_stay(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("title: A\ncommon: {a: 1}\narms: {x: {b: 2}, y: {}}\nprobe: {}\nreference: x\n")
    plan = compare.read_plan(
        str(path),
        ["--a", "3", "--b", "4", "5", "--c"],
    )
    assert plan["arms"] == {
        "x": {
            "a": "3",
            "b": 2,
            "c": True,
        },
        "y": {
            "a": "3",
            "b": ["4", "5"],
            "c": True,
        },
    }
    assert compare.as_argv(plan["arms"]["y"]) == [
        "--a",
        "3",
        "--b",
        "4",
        "5",
        "--c",
        "True",
    ]


def test_a_quoted_flag_may_name_a_variable_as_the_file_does(tmp_path, monkeypatch):
    path = tmp_path / "plan.yaml"
    path.write_text("title: A\ncommon: {a: '${HERE_OF_TEST}/1'}\narms: {x: {}}\nprobe: {}\nreference: x\n")
    monkeypatch.setenv("HERE_OF_TEST", "folder")
    flags = compare.read_plan(str(path), ["--b", "${HERE_OF_TEST}/2"])["arms"]["x"]
    assert flags == {"a": "folder/1", "b": "folder/2"}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("arms: {x: {}}\nprobe: {}\nreference: x\n", {}, "expected title"),
        ("title: A\narms: {x: {}}\nprobe: {}\nreference: y\n", {}, "no arm 'y'"),
        ("title: A\narms: {x: {}, y: {}}\nprobe: {}\nreference: x\n", {"arms": ["y"]}, "leaves out x"),
        ("title: A\narms: {x: {}}\nprobes: {}\nprobe: {}\nreference: x\n", {}, "did you mean 'probe'"),
        (
            "title: A\narms: {x: {}}\nprobe: {data_dir: '${NOT_SET_HERE}/glue'}\nreference: x\n",
            {},
            "NOT_SET_HERE is not set",
        ),
        ("title: A\narms: {x: {}}\nprobe: {}\nreference: x\n", {"rest": ["--a", "${NOT_SET_HERE}"]}, "is not set"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(text, options, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        compare.read_plan(str(path), **options)


# ---- more seconds ---------------------------------------------------------------------------------------------------


def budget_of(seconds, ours):
    """What a comparison found with so many seconds: two seeds of one arm, and a control."""
    figures = {"low": ours - 1, "high": ours + 1}
    column = {"task": "rest of the document", "mode": "cosine raw", "metric": "r@10"}
    scores = [
        column | {"system": "ours", "score": ours, **figures},
        column | {"system": "TF-IDF (training texts)", "score": 60.0, "low": 58, "high": 62},
        column | {"mode": "cosine centred", "system": "ours", "score": 1.0, **figures},
        column | {"mode": "linear", "system": "ours", "score": 2.0, **figures},
    ]
    runs = [
        {
            "arm": "ours",
            "seed": seed,
            "train_seconds": seconds + seed,
        }
        for seed in (1, 3)
    ]
    return {
        "machine": "one core",
        "budget": {"seconds": seconds, "tokens": None},
        "scores": scores,
        "runs": [*runs, {"arm": "before", "seed": 1}],
    }


def test_quality_is_over_the_measured_seconds_and_of_controls_a_level():
    """Runs of both seeds took 1 and 3 seconds longer than the budget."""
    longest = budget_of(60, 70.0)
    longest["scores"].append(longest["scores"][0] | {"task": "title to text"})  # asked of the longest alone
    quality = compare.quality_of([budget_of(15, 50.0), longest])
    assert quality == {
        "rest of the document, r@10": {
            "arms": {"ours": [[17, 50.0, 49.0, 51.0], [62, 70.0, 69.0, 71.0]]},
            "controls": {"TF-IDF (training texts)": 60.0},
        }
    }


def test_picture_of_quality_is_over_the_measured_seconds_and_names_the_machine(drawn, tmp_path):
    results = compare.add_quality(
        [budget_of(15, 50.0) | {"failures": []}, budget_of(60, 70.0) | {"failures": []}], tmp_path
    )
    results["quality"]["stsb, spearmanr"] = results["quality"]["rest of the document, r@10"]
    drawn.clear()
    compare.draw_quality(results, tmp_path / "quality.png")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["rest of the document, r@10", "stsb, spearmanr"]
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert "one core" in axes.get_xlabel()
        drawn_lines = {line.get_label(): line for line in axes.lines}
        assert list(drawn_lines["TF-IDF (training texts)"].get_ydata()) == [60, 60]
        assert list(drawn_lines["ours"].get_xdata()) == [17, 62]
        assert list(drawn_lines["ours"].get_ydata()) == [50, 70]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["TF-IDF (training texts)", "ours"]


# ---- runs in words --------------------------------------------------------------------------------------------------


def test_seconds_that_miss_the_budget_are_marked_and_explained():
    marked = [compare.marked_seconds(seconds, 100) for seconds in (80, 86, 114, 116)]
    assert marked == ["80 †", "86", "114", "116 †"]
    assert compare.marked_seconds(80, None) == "80"  # of tokens
    assert compare.note_on_seconds("| 86 |") == ""
    assert "15 %" in compare.note_on_seconds("| 80 † |")


def test_collapse_keeps_its_step():
    """The monitor writes thousands with a comma."""
    assert compare.health_of("WARNING: collapse at step 1,500: all alike.", True) == "collapse at step 1,500"
    assert compare.health_of("step 10", True) == "healthy"
    assert compare.health_of("step 10", False) == "not watched"


def test_scores_over_time_have_metrics_of_rows_too(tmp_path, monkeypatch):
    """Of retrieval and reranking the answers are scores already."""
    answers = {}
    for step, value in (("checkpoint-10", 0.25), ("checkpoint-20", 0.75)):
        answers["rest of the document", "cosine raw", "r@10", step] = np.full((1, 4), value)
        answers["sst2", "linear", "accuracy", step] = np.array([[1, 1, 0, 0]])
    gold = {"sst2": np.array([1, 0, 0, 0])}
    monkeypatch.setattr(compare, "read_answers", lambda folder: (answers, gold))
    records = [{"step": 10, "train_seconds": 1.0}, {"step": 20, "train_seconds": 3.0}]
    assert compare.curves_over_time(tmp_path, records) == {
        "rest of the document, cosine raw": [(1.0, 25.0), (3.0, 75.0)],
        "sst2, linear": [(1.0, 75.0), (3.0, 75.0)],
    }


def test_runs_keep_the_date_commit_and_versions_of_the_code_that_made_them(tmp_path, monkeypatch):
    """A later call that finds a run there does not claim it."""
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    for commit, log in (("aaa", first), ("bbb", first), ("bbb", second)):
        monkeypatch.setattr(compare, "current_commit", lambda commit=commit: commit)
        made = log.with_suffix(".made")
        compare.call(["-c", f"open({str(made)!r}, 'x')"], log, made, os.environ)
    origins = compare.origins_of([first, second, tmp_path / "older.log"])
    assert [origin["commit"] for origin in origins] == ["aaa", "bbb"]
    words = compare.origins_in_words({"runs": [{"origins": origins}, {"origins": origins[1:]}]})
    assert [line.rpartition(" ")[2] for line in words] == ["aaa", "bbb"]
    assert all("torch" in line for line in words)


def test_a_checkout_names_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    assert compare.current_commit() == "unknown"
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c", "--allow-empty"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    run = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(compare.current_commit())


@pytest.mark.parametrize(("probe", "arm", "expected"), [({}, "ours", True), ({"controls": False}, "ours", False)])
def test_controls_are_those_of_the_reference_unless_the_file_says_no(probe, arm, expected, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(compare, "call", lambda command, *_: asked.append(command))
    plan = {
        "arms": {"ours": {"trainer": "none", "model_name_or_path": "encoder"}},
        "probe": probe,
        "over_time": None,
        "reference": "ours",
    }
    compare.run(plan, tmp_path, {}, {}, 1, arm, 1)
    (command,) = asked
    assert command[command.index("--controls") + 1] == str(expected)


# ---- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture
def found(tmp_path):
    """A folder as a comparison leaves it, of two arms on two tasks."""
    answers, gold = table(ours=0.8, mlm=0.6)
    answers["rte", "linear", "accuracy"], gold["rte"] = answers["sst2", "linear", "accuracy"], gold["sst2"]
    answers["qqp dev", "cosine raw", "map"] = {
        "ours": np.full((3, 9), 0.75),
        "mlm": np.full((3, 9), 0.5),
    }
    plan = {"title": "Two arms", "reference": "ours"}
    curves = {"token_rank": [(1.0, 2.0)]}
    run = {
        "arm": "mlm",
        "seed": 1,
        "step": 1,
        "tokens_seen": 2,
        "train_seconds": 4,
        "health": "healthy",
        "curves": curves,
    }
    results = {
        "command": "made up",
        "date": "today",
        "machine": "none",
        "versions": {},
        "budget": {"seconds": 5},
    }
    results |= {
        "plan": plan,
        "failures": [],
        "runs": [run],
        **compare.judged(answers, gold, "ours", 50),
    }
    folder = tmp_path / "pair"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "curves.png").write_bytes(b"picture")
    return folder


@pytest.fixture
def report(monkeypatch):
    """The module, which is a script beside compare.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("report")


PAGE = """
intro: "# Results"
questions:
  - title: Is it better?
    answer: "By {lead:mlm:SST-2} with {score:ours:SST-2}."
    comparison: results-pair
    systems: {ours: Ours, mlm: Theirs}
    columns: {SST-2: [sst2, linear], Mean: [average of 2 tasks, linear]}
    claim: "Ahead by {lead:mlm:SST-2}."
    summary: "{lead:mlm:SST-2} over theirs, {lead:ours:Mean:mlm} over ours."
outro: "The end."
"""


@pytest.fixture
def root(tmp_path):
    """A checkout with a page of one question."""
    (tmp_path / "docs/assets/make-pretrain").mkdir(parents=True)
    (tmp_path / "docs/results.yaml").write_text(PAGE)
    files = {
        "recipe.json": {"width": 768, "recipes": {}},
        "metrics.jsonl": {"step": 9, "loss": 0.5, "tokens_per_second": 70},
    }
    for name, content in files.items():
        (tmp_path / "docs/assets/make-pretrain" / name).write_text(f"{json.dumps(content)}\n")
    log = "<!-- log -->\n<!-- end of log -->\n"
    summary = "<!-- summary -->\n<!-- end of summary -->\n"
    claim = "<!-- claim -->\n<!-- end of claim -->\n"
    places = f"{log}{summary}<!-- results -->\nold\n<!-- end of results -->\n{claim}"
    (tmp_path / "README.md").write_text(f"Before\n{places}after\n")
    (tmp_path / "docs/quickstart.md").write_text(log)
    (tmp_path / "docs/index.md").write_text("<!-- claim -->\n<!-- end of claim -->\n")
    return tmp_path


def test_the_page_answers_questions_with_figures_of_the_comparison(found, report, root, pictures):
    report.main(["--add", str(found)], root)
    page, readme = ((root / name).read_text() for name in ("docs/results.md", "README.md"))
    results = json.loads((found / "results.json").read_text())
    (lead,) = (pair for pair in results["pairs"] if pair["task"] == "sst2" and pair["system"] == "mlm")
    (score,) = (one for one in results["scores"] if one["task"] == "sst2" and one["system"] == "ours")
    assert page.startswith("# Results\n\n## Is it better?\n\n")
    assert page.endswith("\n\nThe end.\n")
    figures = f"By {lead['ahead']:+.1f} [{lead['low']:+.1f}, {lead['high']:+.1f}] with {score['score']:.1f}."
    assert figures in page
    assert "| Theirs | " in page
    assert "`made up`" in page
    assert "(assets/answer-is-it-better.png)" in page
    assert "seconds of training (budget 5)" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| Theirs | "))
    assert row.endswith(" | 4 † |")
    assert (root / "docs/assets/answer-is-it-better.png").read_bytes().startswith(b"\x89PNG")
    table = (root / "docs/assets/results-pair.csv").read_text().splitlines()
    assert len(table) == 1 + len(results["scores"])
    assert readme.startswith("Before\n<!-- log -->\n```\nstep      9/9  loss 0.5000  70 tokens/s\n")
    assert "<!-- results -->\n|  | SST-2 | Mean |" in readme
    (behind,) = (pair for pair in results["pairs"] if pair["of"] == "mlm" and pair["task"].startswith("average"))
    theirs = f"{behind['ahead']:+.1f} [{behind['low']:+.1f}, {behind['high']:+.1f}]"
    summary = f"- {lead['ahead']:+.1f} [{lead['low']:+.1f}, {lead['high']:+.1f}] over theirs, {theirs} over ours."
    assert f"<!-- summary -->\n{summary}\n<!-- end of summary -->" in readme
    ahead = f"Ahead by {lead['ahead']:+.1f} [{lead['low']:+.1f}, {lead['high']:+.1f}]."
    assert readme.endswith(f"<!-- claim -->\n{ahead}\n<!-- end of claim -->\nafter\n")


def test_the_page_is_the_same_when_it_is_written_again(found, report, root):
    report.main(["--add", str(found)], root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report.main([], root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_the_pages_of_the_repository_show_the_stored_figures(report, tmp_path):
    shutil.copytree(ROOT / "docs/assets", tmp_path / "docs/assets")
    shutil.copy(ROOT / "docs/results.yaml", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("quickstart.md", "index.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    report.main([], tmp_path)
    for name in (
        "README.md",
        "docs/index.md",
        "docs/quickstart.md",
        "docs/results.md",
        *(f"docs/assets/{path.name}" for path in ROOT.glob("docs/assets/*.csv")),
    ):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name}: run benchmarks/report.py"


def test_only_significant_differences_are_bold(report):
    score = {"score": 50.0, "low": 48.0, "high": 52.0}
    lead = {"ahead": 2.0, "low": -1.0, "high": 5.0, "verdict": "n.s."}
    assert report.cell_of(score, lead) == "50.0 ± 2.0 (+2.0)"
    assert report.cell_of(score, {**lead, "verdict": "better"}) == "50.0 ± 2.0 (**+2.0**)"


def test_a_figure_that_no_comparison_has_is_refused(found, report, root):
    (root / "docs/results.yaml").write_text(PAGE.replace("{lead:mlm:SST-2}", "{lead:bert:SST-2}"))
    with pytest.raises(UsageError, match=r"results-pair has no \{lead:bert:SST-2\}"):
        report.main(["--add", str(found)], root)


def test_a_card_gets_the_first_table_once_with_its_command(found, report, root):
    card = root / "encoder/README.md"
    card.parent.mkdir()
    card.write_text("# encoder\n")
    for _ in range(2):
        report.main(["--add", str(found), "--card", str(card.parent)], root)
    assert card.read_text().startswith("# encoder\n\n<!-- results -->\n## Is it better?\n\n`made up`\n")
    assert card.read_text().count("| Theirs | ") == 1
    with pytest.raises(UsageError, match=r"nowhere/README\.md: does not exist"):
        report.main(["--card", str(root / "nowhere")], root)


def test_a_card_is_shown_without_metadata_one_level_lower(report):
    card = "---\ntags:\n- one\n---\n\n# Name\n\n```python\n# a comment\n```\n\n## Use\n\n![curves](curves.png)\n"
    expected = "## Name\n\n```python\n# a comment\n```\n\n### Use\n\n![curves](assets/run/curves.png)"
    assert report.as_section(card, "assets/run") == expected


def test_a_folder_without_results_changes_nothing(report, root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"run benchmarks/compare\.py"):
        report.main(["--add", str(root / "nowhere")], root)
    with pytest.raises(UsageError, match=r"nowhere/metrics\.jsonl: does not exist"):
        report.main(["--pretrained", str(root / "nowhere")], root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_repeated_and_another_command_is_refused(tmp_path):
    log, made = tmp_path / "run.log", tmp_path / "made"
    command = ["-c", f"open({str(made)!r}, 'x')"]  # would fail a second time
    compare.call(command, log, made, {})
    compare.call(command, log, made, {})
    with pytest.raises(UsageError, match="another command"):
        compare.call(["-c", "pass"], log, made, {})


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    def one(arm, seed):
        code = "raise SystemExit('error: no such thing')" if arm == "bad" else f"open({str(tmp_path / arm)!r}, 'x')"
        compare.call(
            ["-c", code],
            tmp_path / f"{arm}.log",
            tmp_path / arm,
            {},
        )

    failures = compare.in_turns(
        1,
        [("bad", 0), ("good", 0)],
        one,
    )
    assert list(failures) == [("bad", 0)]
    assert failures["bad", 0].endswith("no such thing")
    assert (tmp_path / "good").exists()


def write_corpus(path, texts):
    with path.open("w") as file:
        for one in texts:
            for other in texts:
                file.write(json.dumps({"text": f"{one} {other}"}) + "\n")


def common_flags(corpus):
    """Flags of a run of seconds on a corpus."""
    return {
        "train_file": str(corpus),
        "preset": "tiny",
        "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
        "vocab_size": 300,
        "max_length": 32,
        "per_device_train_batch_size": 4,
        "max_eval_samples": 4,
        "use_cpu": True,
    }


@pytest.fixture
def run_comparison(tmp_path, monkeypatch):
    """Runs a comparison and all its runs in this process: what they import takes longer than they do."""

    def run_here(command, stdout, stderr, env):
        if command[1:3] == ["-m", "text_jepa"]:
            main = partial(dispatch, command[3:])
        else:
            main = partial(importlib.import_module(Path(command[1]).stem).main, command[2:])
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as end:
            run_command(main)
        return subprocess.CompletedProcess(command, end.value.code)

    def run(plan, *flags):
        (tmp_path / "plan.yaml").write_text(json.dumps(plan))
        with pytest.raises(SystemExit) as end:
            compare.main([str(tmp_path / "plan.yaml"), *flags, "--output_dir", str(tmp_path / "out")])
        return end.value.code

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(run=run_here))
    monkeypatch.setattr(compare, "current_commit", lambda: "abc")
    # Runs take signals, which only the main thread can.
    monkeypatch.setattr(compare, "ThreadPoolExecutor", lambda jobs: contextlib.nullcontext(SimpleNamespace(map=map)))
    return run


def test_a_command_runs_once_and_its_last_line_says_why_it_failed(tmp_path):
    """In a process of its own."""
    script = tmp_path / "script.py"
    script.write_text("import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); print('error: no\\n'); sys.exit(3)")
    made, log = tmp_path / "made", tmp_path / "logs/run.log"
    with pytest.raises(UsageError, match=r"^exit code 3, .*run\.log: no$"):
        compare.call([str(script), str(made)], log, made, os.environ)
    before = log.read_text()
    compare.call([str(script), str(made)], log, made, os.environ)
    assert log.read_text() == before
    with pytest.raises(UsageError, match="of another command"):
        compare.call([str(script), "other"], log, made, os.environ)


def times_of_answers(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("answers.npz")}


@pytest.mark.slow
def test_a_comparison_ends_with_a_table_of_arms_and_controls_and_can_be_repeated(run_comparison, texts, tmp_path):
    write_corpus(tmp_path / "train.jsonl", texts)
    rows = ["text,label\n"]
    for number, text in enumerate(texts * 4):
        sentence = text.split(".")[0].replace(", ", " ")
        rows.append(f"{sentence},{number % 2}\n")
    (tmp_path / "task.csv").write_text("".join(rows))
    probe = {"task_file": str(tmp_path / "task.csv"), "mode": ["linear"]}
    plan = {
        "title": "Few texts",
        "common": common_flags(tmp_path / "train.jsonl"),
        "arms": {
            "mlm": {"objective": "mlm", "mask_ratio": 0.3},
            "jepa": {},
            "broken": {"objective": "nonsense"},
        },
        "probe": probe,
        "reference": "jepa",
    }
    budget = ["--tokens", "2000", "--seeds", "0", "1"]

    out = tmp_path / "out"
    assert run_comparison(plan, *budget) == 1
    results = json.loads((out / "results.json").read_text())
    assert [line.split(",")[0] for line in results["failures"]] == ["broken"]
    controls = {"random weights", "bag of its embeddings", "TF-IDF", "majority"}
    assert {score["system"] for score in results["scores"]} == controls | {"mlm", "jepa"}
    assert all(len(score["by_seed"]) == 2 for score in results["scores"])
    assert all(abs(run["tokens_seen"] - 2000) < 500 for run in results["runs"])
    assert "token_rank" in results["runs"][0]["curves"]
    assert {path.name for path in out.iterdir()} >= {"results.md", "curves.png"}

    made = times_of_answers(out)
    run_comparison(plan, *budget)
    assert times_of_answers(out) == made


@pytest.mark.slow
def test_several_budgets_share_their_pilots_and_end_with_the_longest_and_a_curve(run_comparison, texts, tmp_path):
    write_corpus(tmp_path / "train.jsonl", texts)
    pairs = [(one, other) for one in texts for other in texts]
    with (tmp_path / "task.jsonl").open("w") as file:
        for number, (one, other) in enumerate(pairs):
            row = {"text": one, "other": other, "label": number / 4}
            file.write(json.dumps(row) + "\n")
    task = {"task_file": str(tmp_path / "task.jsonl"), "pair_column": "other"}
    plan = {
        "title": "Seconds",
        "common": common_flags(tmp_path / "train.jsonl"),
        "arms": {"mlm": {"objective": "mlm", "mask_ratio": 0.3}},
        "probe": {**task, "mode": ["linear"]},
        "over_time": {**task, "mode": ["linear"]},
        "curve": {**task, "mode": ["knn"], "controls": False},
        "reference": "mlm",
    }
    assert run_comparison(plan, "--seconds", "2", "1") == 0

    out = tmp_path / "out"
    steps = {}
    for name, mode in (("seconds-1", "knn"), ("seconds-2", "linear"), (".", "linear")):
        results = json.loads((out / name / "results.json").read_text())
        steps[name] = results["runs"][0]["step"]
        modes = {score["mode"] for score in results["scores"] if score["system"] == "mlm"}
        assert modes & {"knn", "linear"} == {mode}
        systems = {score["system"] for score in results["scores"]}
        assert ("TF-IDF" in systems) == (name != "seconds-1")
    assert steps["seconds-2"] == pytest.approx(2 * steps["seconds-1"], abs=12)  # whole logs
    assert steps["."] == steps["seconds-2"]
    assert len(list(out.rglob("pilot1"))) == len(list(out.rglob("pilot3"))) == 1
    assert [run["origins"][0]["commit"] for run in results["runs"]] == ["abc"]
    (column,) = results["quality"].values()
    assert len(column["arms"]["mlm"]) == 2
    assert column["arms"]["mlm"][1][0] == results["runs"][0]["train_seconds"]
    assert "TF-IDF" in column["controls"]
    assert (out / "quality.png").is_file()
    assert {"token_rank", "task, linear"} <= results["runs"][0]["curves"].keys()
