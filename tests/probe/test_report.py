"""What a reader is shown, against values worked out by hand: scores, averages, tables, files, cards, submissions.

Run: python -m pytest -q tests/probe/test_report.py
"""

import json
import re

import numpy as np
import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from text_jepa.cli import UsageError
from text_jepa.probe.bootstrap import Score, compare_systems, interval_of, score_resamples
from text_jepa.probe.glue import GLUE_TASKS, accuracy, write_submission
from text_jepa.probe.report import (
    SCHEMA,
    as_table,
    headline,
    macro_averages,
    plot_layers,
    plot_scores,
    read_results,
    update_card,
    write_results,
)
from text_jepa.probe.tasks import Split, Task


PNG = b"\x89PNG"


def made(task="rte", mode="linear", metric="accuracy", system="runs/a", score=50.0, **fields):
    """A score with an interval, behind the first system unless it is that."""
    ahead = {"ahead": None, "ahead_low": None, "ahead_high": None}
    if system != "runs/a":
        ahead = {"ahead": 1.0, "ahead_low": -2.0, "ahead_high": 4.0}
    common = {
        "low": score - 5,
        "high": score + 5,
        "rows": 100,
        "seeds": 1,
        "deviation": None,
    }
    return Score(
        task,
        mode,
        metric,
        system,
        score,
        **{
            **common,
            **ahead,
            **fields,
        },
    )


@pytest.fixture
def gold():
    return np.arange(200) % 2


@pytest.fixture
def predictions(gold):
    """(3, 200): three seeds that are right in 8, 7 and 6 of 10 rows, not the same ones."""
    generator = np.random.default_rng(0)
    right = [generator.permutation(200) < 200 * share for share in (0.8, 0.7, 0.6)]
    return np.where(right, gold, 1 - gold)


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_over_seeds_with_their_deviation(predictions, gold):
    (score,) = compare_systems(
        "rte",
        "linear",
        "accuracy",
        accuracy,
        {"a": predictions},
        gold,
        seed=0,
    )
    assert score.score == pytest.approx(70)
    assert score.deviation == pytest.approx(10)  # the sample's: n - 1
    assert (score.rows, score.seeds) == (200, 3)
    assert score.low < 70 < score.high


def test_one_seed_has_no_deviation_and_the_interval_of_its_predictions(predictions, gold):
    (score,) = compare_systems(
        "rte",
        "linear",
        "accuracy",
        accuracy,
        {"a": predictions[:1]},
        gold,
        seed=3,
    )
    low, high = interval_of(
        score_resamples(
            accuracy,
            predictions[:1],
            gold,
            seed=3,
        )
    )
    assert (score.low, score.high) == (100 * low, 100 * high)
    assert score.deviation is None


def test_seeds_share_the_resampled_rows(predictions, gold):
    """Seeds that agree in every row are one measurement: their interval must not shrink."""
    once, thrice = (
        compare_systems(
            "rte",
            "linear",
            "accuracy",
            accuracy,
            {"a": rows},
            gold,
            seed=0,
        )[0]
        for rows in (
            predictions[:1],
            np.repeat(
                predictions[:1],
                3,
                axis=0,
            ),
        )
    )
    np.testing.assert_allclose(
        [thrice.low, thrice.high],
        [once.low, once.high],
        rtol=1e-12,
    )
    assert thrice.deviation == 0


def test_the_first_system_is_compared_with_all_others_whatever_their_seeds(predictions, gold):
    systems = {
        "a": predictions,
        "its double": predictions,
        "TF-IDF": predictions[2:],
        "gold": gold[None],
    }
    first, double, worse, best = compare_systems(
        "rte",
        "linear",
        "accuracy",
        accuracy,
        systems,
        gold,
        seed=0,
    )
    assert [first.ahead, first.ahead_low, first.ahead_high] == [None] * 3
    assert [double.ahead, double.ahead_low, double.ahead_high] == [0] * 3
    assert worse.ahead == pytest.approx(10)
    assert 0 < worse.ahead_low < 10 < worse.ahead_high
    assert best.ahead == pytest.approx(-30)
    assert [s.seeds for s in (first, worse, best)] == [3, 1, 1]


def test_the_interval_of_a_difference_is_that_of_the_paired_bootstrap(predictions, gold):
    systems = {
        "a": predictions[:1],
        "b": predictions[1:2],
        "c": predictions[2:],
    }
    scores = compare_systems("rte", "linear", "accuracy", accuracy, systems, gold, seed=5)
    drawn = 100 * score_resamples(accuracy, predictions, gold, seed=5)
    for number, score in enumerate(scores[1:], start=1):
        low, high = interval_of(drawn[:, 0] - drawn[:, number])
        ahead = accuracy(predictions[0], gold) - accuracy(predictions[number], gold)
        assert score.ahead == pytest.approx(100 * ahead)
        np.testing.assert_allclose(
            [score.ahead_low, score.ahead_high],
            [low, high],
            atol=1e-9,
        )


def test_scores_of_queries_are_averaged_without_gold():
    per_query = np.array([[1.0, 0.5, 0.0, 0.5]])
    (score,) = compare_systems(
        "qqp",
        "cosine raw",
        "map",
        np.mean,
        {"a": per_query},
        seed=0,
    )
    assert (score.score, score.rows) == (50, 4)


# ---- averages -------------------------------------------------------------------------------------------------------


def test_averages_take_the_metrics_of_a_task_first_and_mnli_once_and_leave_wnli_out():
    scores = [
        made("mrpc", metric="accuracy", score=80.0),
        made("mrpc", metric="f1", score=90.0),
        made("mnli", score=60.0),
        made("mnli-mm", score=70.0),
        made("cola", score=15.0),
        made("wnli", score=0.0),
        made("wnli_mini", score=0.0),
    ]
    (average,) = macro_averages(scores)
    assert average.score == pytest.approx((85 + 65 + 15) / 3)
    assert (average.task, average.mode, average.system) == ("average of 3 tasks", "linear", "runs/a")
    assert (average.low, average.high, average.rows) == (None, None, 400)  # two metrics are of the same rows


def test_averages_are_of_one_mode_and_of_systems_that_have_all_its_tasks():
    scores = [
        *(
            made(
                task,
                system=name,
                score=s,
            )
            for task, s in (("rte", 50.0), ("cola", 20.0))
            for name in ("runs/a", "b")
        ),
        made("rte", system="only here", score=99.0),
        made("cola", mode="knn", score=30.0),
    ]
    averages = macro_averages(scores)
    assert [(s.mode, s.system, s.score, s.ahead) for s in averages] == [
        ("linear", "runs/a", 35.0, None),
        ("linear", "b", 35.0, 0.0),
    ]


def test_how_far_the_first_system_is_ahead_on_average_is_unknown_if_it_lacks_a_task():
    scores = [made("rte"), *(made(task, system="b") for task in ("rte", "cola"))]
    assert [(s.system, s.ahead) for s in macro_averages(scores)] == [("b", None)]


# ---- files ----------------------------------------------------------------------------------------------------------


def cells(table):
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]


def test_the_table_is_grouped_by_task_and_blank_where_it_repeats_itself():
    scores = [
        made("rte"),
        made("cola"),
        made("rte", system="b"),
        made("rte", mode="knn"),
    ]
    header, _, *rows = cells(as_table(scores))
    assert header == ["task", "mode", "metric", "system", "score", "95 %", "first is ahead by"]
    assert [row[:4] for row in rows] == [
        ["rte", "linear", "accuracy", "runs/a"],
        ["", "", "", "b"],
        ["", "knn", "accuracy", "runs/a"],
        ["cola", "linear", "accuracy", "runs/a"],
    ]
    assert rows[1][4:] == ["50.0", "45.0 to 55.0", "+1.0 [-2.0, +4.0]"]
    assert len({len(line) for line in as_table(scores).splitlines()}) == 1


def test_the_table_shows_deviations_and_leaves_unknown_intervals_blank():
    averages = macro_averages([made(task, system=name) for task in ("rte", "cola") for name in ("runs/a", "b")])
    *_, first, other = cells(as_table([made(seeds=3, deviation=1.25), *averages]))
    assert first[4:] == ["50.0", "", ""]
    assert other[4:] == ["50.0", "", "+0.0"]
    assert cells(as_table([made(seeds=3, deviation=1.25)]))[2][4] == "50.0 ± 1.2"


def test_a_name_with_a_pipe_stays_in_its_cell():
    (*_, row) = cells(as_table([made("a|b")]))
    assert row[0] == r"a\|b"
    assert len(row) == 7


def test_results_are_read_back_as_they_were(tmp_path, predictions, gold):
    scores = compare_systems(
        "rte",
        "linear",
        "accuracy",
        accuracy,
        {
            "a": predictions,
            "b": predictions[:1],
        },
        gold,
        seed=0,
    )
    scores += compare_systems(
        "cola",
        "linear",
        "accuracy",
        accuracy,
        {"a": predictions[1:]},
        gold,
        seed=0,
    )
    scores += macro_averages(scores)
    folder = tmp_path / "new" / "results"
    write_results(folder, scores, ["rte: a note"], "python run_probe.py", {"layers": 1})
    assert read_results(folder / "results.json") == scores
    content = json.loads((folder / "results.json").read_text())
    assert (content["schema"], content["command"], content["facts"]) == (SCHEMA, "python run_probe.py", {"layers": 1})
    assert {"text-jepa", "torch", "transformers", "scikit-learn", "numpy"} == set(content["versions"])
    text = (folder / "results.md").read_text()
    assert as_table(scores) in text
    assert "- rte: a note" in text
    assert (folder / "scores.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        ("{", "not a results.json"),
        ("[]", "not a results.json"),
        ('{"schema": 99, "scores": []}', f"schema 99, but this version reads {SCHEMA}"),
    ],
)
def test_other_files_are_refused(tmp_path, content, problem):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=problem):
        read_results(path)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_the_headline_is_that_of_glue_and_else_the_leading_metric():
    assert headline("stsb", ["pearson", "spearmanr"]) == "spearmanr"
    assert headline("qqp_mini", ["accuracy", "f1"]) == "f1"
    assert headline("questions test", ["map", "mrr", "p@1", "p@5"]) == "map"
    assert headline("cola", ["accuracy"]) == "accuracy"  # somebody's own file of that name


def test_every_score_is_drawn_once_by_the_headline_metric_of_its_task(drawn):
    scores = [
        made("mrpc", metric=metric, system=system, mode=mode, score=score)
        for mode in ("linear", "knn")
        for metric, score in (("accuracy", 70.0), ("f1", 80.0))
        for system in ("runs/a", "b")
    ]
    scores += [made("own", mode="majority", metric="accuracy", system="majority")]
    plot_scores(
        [*scores, *macro_averages([*scores, *(s._replace(task="rte") for s in scores)])],
        "unused.png",
    )
    panels = {axes.get_title(): axes for axes in drawn[0].axes if axes.get_title()}
    assert list(panels) == ["mrpc: f1", "own: accuracy", "average of 2 tasks"]
    points = panels["mrpc: f1"].lines
    assert [line.get_xdata()[0] for line in points] == [80.0] * 4
    assert len({line.get_ydata()[0] for line in points}) == 4
    assert [line.get_ydata()[0] for line in panels["own: accuracy"].lines] == [2]  # alone in its row: in the middle
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["runs/a", "b", "majority"]


def test_an_interval_beside_its_score_is_drawn(tmp_path, pictures):
    plot_scores([made(low=60.0, high=70.0)], tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(PNG)


def test_layers_are_drawn_as_a_line_per_mode_in_a_panel_per_task(drawn):
    sweep = [made(system=f"layer {i}", score=50.0 + i) for i in range(4)]
    plot_layers(
        {
            ("rte", "linear"): sweep,
            ("rte", "knn"): sweep[::-1],
            ("cola", "knn"): sweep,
        },
        "unused.png",
    )
    rte, cola = drawn[0].axes
    assert [list(line.get_ydata()) for line in rte.lines] == [[50, 51, 52, 53], [53, 52, 51, 50]]
    assert list(cola.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert cola.lines[0].get_color() == rte.lines[1].get_color()  # a mode keeps its colour
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["linear", "knn"]


# ---- model card -----------------------------------------------------------------------------------------------------

TEXT = "\n# An encoder\n\nText with `\\1` and trailing blanks.  \n\n## Limits\n\nThe end.\n"
SCORES = [
    made("rte", score=55.0),
    made("rte", system="random weights", score=52.0),
    made("rte", mode="knn", score=53.0),
    made("own", score=70.0),
    made(
        "average of 2 tasks",
        metric="average",
        score=62.5,
        low=None,
        high=None,
    ),
]
SPLITS = {"rte": "validation", "own": "test"}


@pytest.fixture
def model_dir(tmp_path):
    """A folder with the card of somebody who measured something else already."""
    foreign = EvalResult("text-ranking", "mteb/x", "X", "map", 12.5, dataset_split="test")
    data = ModelCardData(
        license="mit",
        tags=["b", "a"],
        model_name="theirs",
        eval_results=[foreign],
        colour="blue",
    )
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n{TEXT}")
    return tmp_path / "encoder"


def test_the_card_carries_the_model_in_its_metadata_and_the_controls_in_its_table(model_dir):
    update_card(model_dir, SCORES, "runs/a", SPLITS, "python run_probe.py x")
    card = ModelCard.load(model_dir / "README.md")
    foreign, *own = card.data.eval_results
    assert (foreign.dataset_type, foreign.metric_value) == ("mteb/x", 12.5)
    assert [(r.dataset_type, r.dataset_config, r.dataset_split, r.metric_name, r.metric_value) for r in own] == [
        ("nyu-mll/glue", "rte", "validation", "accuracy, linear", 55.0),
        ("nyu-mll/glue", "rte", "validation", "accuracy, knn", 53.0),
        ("own", None, "test", "accuracy, linear", 70.0),
    ]
    assert own[0].metric_args == {
        "probe": "linear",
        "low": 50.0,
        "high": 60.0,
        "rows": 100,
        "seeds": 1,
    }
    assert as_table(SCORES) in card.text
    assert "python run_probe.py x" in card.text


def test_the_metadata_is_a_valid_model_index(model_dir):
    update_card(model_dir, SCORES, "runs/a", SPLITS, "command")
    metadata = metadata_load(model_dir / "README.md")
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "theirs"
    assert len(results) == 4
    assert [metadata[key] for key in ("license", "tags", "colour")] == ["mit", ["b", "a"], "blue"]


def test_a_second_probe_replaces_the_first_and_leaves_the_rest_of_the_card_alone(model_dir):
    path = model_dir / "README.md"
    update_card(
        model_dir,
        [made("cola", score=1.0)],
        "runs/a",
        {"cola": "validation"},
        "an earlier command",
    )
    update_card(model_dir, SCORES, "runs/a", SPLITS, "command")
    once = path.read_bytes()
    update_card(model_dir, SCORES, "runs/a", SPLITS, "command")
    assert path.read_bytes() == once
    assert b"cola" not in once.lower()
    assert b"an earlier command" not in once
    assert ModelCard.load(path).text.startswith(TEXT)
    path.write_text(path.read_text() + "\nWritten below by hand.\n")
    update_card(model_dir, SCORES[:1], "runs/a", SPLITS, "command")
    assert path.read_text().endswith("\nWritten below by hand.\n")


def test_a_card_without_metadata_is_named_after_its_folder(model_dir):
    (model_dir / "README.md").write_text("# Only text\n")
    update_card(model_dir, SCORES, "runs/a", SPLITS, "command")
    card = ModelCard.load(model_dir / "README.md")
    assert card.data.model_name == "encoder"
    assert len(card.data.eval_results) == 3


@pytest.mark.parametrize(
    ("task", "config", "split"),
    [
        ("mnli", "mnli", "validation_matched"),
        ("mnli-mm", "mnli", "validation_mismatched"),
        ("stsb", "stsb", "validation"),
    ],
)
def test_a_task_of_glue_is_named_as_on_the_hub(model_dir, task, config, split):
    update_card(
        model_dir,
        [made(task, metric="spearmanr")],
        "runs/a",
        {task: "validation"},
        "command",
    )
    result = ModelCard.load(model_dir / "README.md").data.eval_results[-1]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", config, split)
    assert result.task_type == "sentence-similarity"


def test_a_folder_without_a_readable_card_and_a_probe_without_scores_are_refused(tmp_path, model_dir):
    (tmp_path / "bare").mkdir()
    for place, problem in (("bert-base-uncased", "is not a folder"), (tmp_path / "bare", "has no README.md")):
        with pytest.raises(UsageError, match=problem):
            update_card(place, SCORES, "runs/a", SPLITS, "command")
    with pytest.raises(UsageError, match="there is no score for other"):
        update_card(model_dir, SCORES, "other", SPLITS, "command")
    for block in ("license: [", "- a list", "model-index: 3", "model-index:\n- name: x"):
        (model_dir / "README.md").write_text(f"---\n{block}\n---\n# Title\n")
        with pytest.raises(UsageError, match="metadata cannot be read"):
            update_card(model_dir, SCORES, "runs/a", SPLITS, "command")


# ---- submission -----------------------------------------------------------------------------------------------------


def task(name, label_names=("no", "yes"), ids=(7, 3)):
    split = Split(
        [""] * len(ids),
        None,
        None,
        list(ids),
    )
    kind = "classification" if label_names else "regression"
    return Task(
        name,
        kind,
        {"test": split},
        "validation",
        ("accuracy",),
        label_names,
    )


GLUE_FILES = {
    "cola": ("CoLA.tsv", "1"),
    "sst2": ("SST-2.tsv", "1"),
    "mrpc": ("MRPC.tsv", "1"),
    "qqp": ("QQP.tsv", "1"),
    "mnli": ("MNLI-m.tsv", "yes"),
    "mnli-mm": ("MNLI-mm.tsv", "yes"),
    "qnli": ("QNLI.tsv", "yes"),
    "rte": ("RTE.tsv", "yes"),
    "wnli": ("WNLI.tsv", "1"),
    "own": ("own.tsv", "yes"),
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_predictions_are_written_as_the_server_of_glue_reads_them(tmp_path, name):
    file_name, label = GLUE_FILES[name]
    path = write_submission(
        tmp_path / "new",
        task(name),
        "test",
        np.array([1, 1]),
    )
    assert path == tmp_path / "new" / file_name
    assert path.read_bytes() == f"index\tprediction\n7\t{label}\n3\t{label}\n".encode()


def test_every_task_of_glue_has_its_file():
    assert set(GLUE_TASKS) == {*GLUE_FILES, "stsb"} - {"own"}


def test_similarities_are_cut_to_their_range_and_scores_of_other_sets_are_not(tmp_path):
    scores = np.array([5.25, -0.1, 2.34567, 4.0])
    path = write_submission(
        tmp_path,
        task("stsb", None, range(4)),
        "test",
        scores,
    )
    assert path.name == "STS-B.tsv"
    assert [line.split("\t")[1] for line in path.read_text().split("\n")[1:-1]] == ["5.000", "0.000", "2.346", "4.000"]
    path = write_submission(
        tmp_path,
        task("prices", None, range(4)),
        "test",
        scores * 1000,
    )
    assert path.read_text().split("\n")[1:3] == ["0\t5250", "1\t-100"]


def test_a_prediction_too_few_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_submission(tmp_path, task("own"), "test", np.array([1]))
