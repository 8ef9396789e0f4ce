"""Tests pictures: the computations, the curves of a log, and the command line.

Run: python -m pytest -q tests/show/test_plots.py
"""

import dataclasses
import json
import shutil

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from text_jepa.cli import UsageError
from text_jepa.commands import plot
from text_jepa.encoders.embeddings import open_encoder
from text_jepa.show.plots import (
    Run,
    apart,
    collapsed_at,
    flat,
    plot_curves,
    plot_map,
    plot_spectra,
    points,
    short_names,
    spectrum,
)
from text_jepa.train.run_log import write_metrics


HEALTHY = {
    "token_rank": 20.0,
    "pooled_rank": 9.0,
    "cosine_other_text": 0.1,
    "cosine_same_text": 0.2,
    "spread": 1.0,
}


NAN = float("nan")
INF = float("inf")


def log(*measures):
    """Makes the records of a run, ten steps apart."""
    records = []
    for number, own in enumerate(measures, 1):
        record = {"step": 10 * number, "loss": 1 / number}
        records.append(record | HEALTHY | own)
    return records


def draw(*runs):
    """Draws curves of runs, each given by its records."""
    plot_curves([Run(name, records, width=64) for name, records in zip("abc", runs, strict=False)], "unused.png")


def panels_of(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def labels_of(figure):
    """Labels of the legend below all panels."""
    (legend,) = figure.legends
    return {text.get_text() for text in legend.get_texts()}


# ---- spectra --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[60, 8], ids=["tall", "wide"])
def features(request):
    rng = np.random.default_rng(0)
    scales = np.arange(1, 13)
    return 5 + scales * rng.normal(size=(request.param, 12))


def test_a_spectrum_holds_the_shares_of_the_variance_in_falling_order(features):
    shares = spectrum(features)
    variances = np.linalg.eigvalsh(np.cov(features, rowvar=False))
    descending = variances[::-1]
    expected = descending / descending.sum()
    assert len(shares) == min(features.shape)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()
    np.testing.assert_allclose(shares, expected[: len(shares)], atol=1e-12)


def test_a_spectrum_knows_neither_shift_nor_scale_nor_rotation(features):
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    moved = 3 * features @ rotation - 7
    np.testing.assert_allclose(spectrum(moved), spectrum(features), atol=1e-10)


def test_the_rank_in_the_legend_is_that_of_the_spectrum(features, drawn):
    plot_spectra({"states": {"mine": features, "control": features[:, :1]}}, "unused.png")
    legend = panels_of(drawn[0])["states"].get_legend()
    variances = np.linalg.eigvalsh(np.cov(features, rowvar=False))
    values = np.sqrt(variances[variances > 1e-9])
    shares = values / values.sum()
    rank = np.exp(-(shares * np.log(shares)).sum())
    expected = [f"mine: rank {rank:.1f} of {min(features.shape)}", "control: rank 1.0 of 1"]
    assert [text.get_text() for text in legend.get_texts()] == expected


def test_features_that_do_not_vary_have_no_spectrum():
    constant = np.full((5, 3), 0.1, np.float32)
    assert not spectrum(constant).any()


# ---- maps -----------------------------------------------------------------------------------------------------------


def test_groups_that_are_apart_stay_apart_on_both_maps():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    centres = 20 * np.eye(16)[labels]
    vectors = centres + rng.normal(size=(60, 16))
    for places in flat(vectors.astype(np.float32)).values():
        distances = np.linalg.norm(places[:, None] - places, axis=-1)
        np.fill_diagonal(distances, np.inf)
        nearest = distances.argmin(1)
        assert (labels[nearest] == labels).all()


def test_the_first_map_is_that_of_the_two_widest_directions():
    scales = np.array([1, 9, 1, 4, 1, 1])
    vectors = scales * np.random.default_rng(0).normal(size=(40, 6))
    places = flat(vectors)["PCA"]
    share = places.var(0).sum() / vectors.var(0).sum()
    widest = spectrum(vectors)[:2]
    assert share == pytest.approx(widest.sum())


@pytest.mark.parametrize("vectors", [np.ones((6, 4)), np.eye(5, 4)], ids=["all alike", "five texts"])
def test_a_map_of_almost_nothing_is_a_map(vectors):
    for places in flat(vectors.astype(np.float32)).values():
        assert np.isfinite(places).all()


def test_names_that_end_alike_stay_different():
    names = ["runs/first/" + 30 * "x", "runs/other", "runs/second/" + 30 * "x"]
    end = "…" + 27 * "x"
    assert short_names(names) == [f"1: {end}", "runs/other", f"3: {end}"]


def test_encoders_whose_names_end_alike_have_a_map_each(folder, tmp_path, monkeypatch, drawn):
    end = 60 * "x"
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        (tmp_path / parent / end).symlink_to(folder / "encoder")
    monkeypatch.chdir(tmp_path)
    plot.main(["map", f"a/{end}", f"b/{end}", "--task", str(folder / "own.jsonl"), "-o", "unused.png"])
    assert len(panels_of(drawn[0])) == 4


def test_the_panels_of_spectra_name_what_is_in_them(folder, monkeypatch, drawn):
    monkeypatch.chdir(folder)
    plot.main(["spectra", "encoder", "--task", "own.jsonl", "-o", "unused.png"])
    assert list(panels_of(drawn[0])) == ["states of tokens", "vectors of 12 texts"]


def test_names_keep_their_distance_and_their_order():
    heights = np.array([3.0, 0.0, 0.1, 0.05, 9.0])
    moved = apart(heights, 0.5)
    gaps = np.diff(np.sort(moved))
    assert gaps.min() >= 0.5 - 1e-9
    assert moved.argsort().tolist() == heights.argsort().tolist()
    assert moved.mean() == pytest.approx(heights.mean())
    np.testing.assert_allclose(apart(heights * 9, 0.1), heights * 9)  # far enough apart


def test_the_commonest_labels_are_named_and_no_point_is_lost(drawn):
    common = np.repeat(np.arange(12), 2)
    rare = np.arange(12, 20)
    labels = np.concatenate([common, rare])
    places = np.random.default_rng(0).normal(size=(len(labels), 2))
    names = [f"label {i}" for i in range(20)]
    plot_map({"one": places, "two": -places}, labels, names, "unused.png")
    for axes in panels_of(drawn[0]).values():
        assert {text.get_text() for text in axes.texts} == set(names[:12])
        assert sum(len(line.get_xdata()) for line in axes.lines) == len(labels)
    assert "8 others" in labels_of(drawn[0])


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_what_was_logged_has_a_panel_and_nothing_else(drawn):
    draw([{"step": 1, "loss": 2.0}, {"step": 1, "eval_token_loss": 3.0}])
    draw([{"step": 1, "eval_probe_target_linear": 50.0, "epoch": 1.0}])
    losses, probe = drawn
    assert list(panels_of(losses)) == ["loss", "loss of hidden tokens"]
    assert list(panels_of(probe)) == ["online probe (%)"]


def test_figures_on_held_out_texts_are_circles_beside_the_curve_of_training(drawn):
    records = log({}, {}, {})
    draw([*records, {"step": 30, "eval_loss": 5.0}])
    curve, circles = panels_of(drawn[0])["loss"].lines
    assert list(curve.get_xdata()) == [10, 20, 30]
    assert curve.get_marker() == "None"
    assert list(circles.get_ydata()) == [5.0]
    assert circles.get_marker() == "o"
    assert circles.get_color() == curve.get_color()


def test_several_runs_share_the_panels_and_have_a_colour_each(drawn):
    draw(log({}, {}, {}), log({}, {}, {}, {}))
    rank = panels_of(drawn[0])["effective rank"]
    first = {line.get_color() for line in rank.lines if len(line.get_xdata()) == 3}
    second = {line.get_color() for line in rank.lines if len(line.get_xdata()) == 4}
    assert len(first) == len(second) == 1
    assert first != second
    assert {"a", "b"} <= labels_of(drawn[0])


def test_the_bounds_are_drawn_where_a_reader_needs_them(drawn):
    relative = {"relative_loss": 0.9}
    draw(log(relative, relative, relative))
    panels = panels_of(drawn[0])
    mean = panels["relative loss"].lines[-1]
    collapse = panels["effective rank"].lines[-1]
    assert list(mean.get_ydata()) == [1, 1]
    assert list(collapse.get_ydata()) == pytest.approx([6.4, 6.4])


def test_what_is_not_finite_is_a_gap(tmp_path, drawn):
    records = log({}, {"loss": NAN}, {"loss": INF, "spread": NAN}, {})
    is_shown = [True, False, False, True]
    steps, values = points(records, "loss")
    assert steps == [10, 20, 30, 40]
    assert np.isfinite(values).tolist() == is_shown
    write_metrics(tmp_path, records)  # the file has them as strings
    plot_curves([plot.read_run(tmp_path)], "unused.png")
    curve = panels_of(drawn[0])["loss"].lines[0]
    assert np.isfinite(curve.get_ydata()).tolist() == is_shown


def test_a_run_that_diverged_from_the_first_step_can_be_drawn(tmp_path, pictures):
    broken = dict.fromkeys(["loss", *HEALTHY], NAN)
    plot_curves([Run("a", log(broken, broken), 64)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


# ---- warnings -------------------------------------------------------------------------------------------------------


def test_the_warning_is_the_one_in_the_log():
    """Only the monitor knows how many tokens it measures, which bounds their rank as well as the width does."""
    low = {"token_rank": 3.0}
    assert collapsed_at(log({}, low, low)) is None
    assert collapsed_at(log({}, {"collapsed_at": 15}, {"collapsed_at": 15})) == 15
    assert collapsed_at([{"step": 1, "loss": 1.0}]) is None


def test_the_warning_is_a_line_in_every_panel(drawn):
    draw(log({}, {"collapsed_at": 15}, {"collapsed_at": 15}))
    panels = panels_of(drawn[0])
    assert "effective rank" in panels
    for axes in panels.values():
        (line,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert list(line.get_xdata()) == [15, 15]
    assert "collapse warning" in labels_of(drawn[0])


def test_a_run_without_a_warning_has_no_line(drawn):
    draw(log({}, {}, {}))
    for axes in panels_of(drawn[0]).values():
        assert not [line for line in axes.lines if line.get_linestyle() == ":"]


# ---- command --------------------------------------------------------------------------------------------------------


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Two encoders, one of them broken, a dataset with labels, one of pairs, and complete and incomplete runs."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False)
    for name in ("encoder", "broken"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        # These weights are finite, but the states are not.
        model.embeddings.word_embeddings.weight.data.fill_(3e38)
    rows = []
    for number in range(30):
        rows.append({"text": f"storm lantern harbour {number}", "label": "sea"})
        rows.append({"text": f"garden library bread {number}", "label": "land"})
    write_rows(folder / "own.jsonl", rows)
    write_rows(folder / "few.jsonl", rows[:20])
    glue = folder / "glue" / "rte"
    glue.mkdir(parents=True)
    for split in ("train", "validation"):
        pairs = [{"sentence1": split, "sentence2": f"text {i}", "label": i % 2} for i in range(9)]
        write_rows(glue / f"{split}.jsonl", pairs)
    logs = {"run": log({}, {}, {}), "new": [], "torn": log({})}
    for name, records in logs.items():
        (folder / name).mkdir()
        write_metrics(folder / name, records)
    foreign = {"stepless": '{"loss": 1.0}', "words": '{"step": 1, "loss": "abc"}', "list": "[1, 2]"}
    for name, line in foreign.items():
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text(line)
    configurations = {"no_json": "{broken", "no_type": '{"model_type": "nothing"}', "no_width": '{"model_type": "t5"}'}
    for name, content in configurations.items():
        (folder / name).mkdir()
        write_metrics(folder / name, log({}))
        (folder / name / "config.json").write_text(content)
    (folder / "picture.png").mkdir()
    with (folder / "torn" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "curves run",
        "curves run encoder/../run",
        "map encoder --task own.jsonl",
        "spectra encoder --task own.jsonl",
    ],
)
def test_each_picture_is_a_file_that_a_page_can_show(folder, tmp_path, monkeypatch, pictures, command):
    monkeypatch.chdir(folder)
    path = tmp_path / "new folder" / "picture.png"
    plot.main([*command.split(), "-o", str(path)])
    height, width = matplotlib.image.imread(path).shape[:2]
    assert 900 <= width <= 2000
    assert 200 <= height <= 3000


def test_a_log_with_a_part_of_our_measures_has_curves(tmp_path, drawn):
    write_metrics(tmp_path, [{"step": 1, "loss": 1.0, "token_rank": 3.0}])
    plot.main(["curves", str(tmp_path), "-o", str(tmp_path / "unused.png")])
    assert set(panels_of(drawn[0])) == {"loss", "effective rank"}


def test_an_interrupted_run_has_curves_and_the_width_of_its_checkpoint(folder, tmp_path, make_model):
    run = tmp_path / "run"
    make_model().save_pretrained(run / "checkpoint-20")
    write_metrics(run, log({}, {}))
    width = make_model().config.hidden_size
    assert plot.read_run(run) == Run(str(run), log({}, {}), width)
    assert plot.read_run(folder / "run").width is None


def test_a_checkpoint_is_drawn_by_the_encoder_that_makes_the_targets(folder, tmp_path, make_model, tokenizer, drawn):
    shape = make_model().config.text_config.to_dict()
    model = make_model({**shape, "vocab_size": len(tokenizer)})
    for parameter in model.target_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = ["spectra", str(tmp_path), "--task", str(folder / "own.jsonl"), "-o", "unused.png"]
    plot.main(command)
    curve = panels_of(drawn[0])["states of tokens"].lines[0]

    texts, _, _ = plot.labelled_texts(plot.make_parser().parse_args(command))
    opened = open_encoder(str(tmp_path))
    of_targets, _ = plot.embed(dataclasses.replace(opened, model=model.encoder_of_targets), texts)
    of_context, _ = plot.embed(dataclasses.replace(opened, model=model.model), texts)
    shown = curve.get_ydata()[:8]
    np.testing.assert_allclose(shown, spectrum(of_targets)[:8], rtol=1e-4)
    assert not np.allclose(shown, spectrum(of_context)[:8], rtol=1e-1)


@pytest.mark.parametrize("picture", ["map", "spectra"])
def test_encoders_are_read_from_the_cache_that_is_named(folder, tmp_path, drawn, picture):
    download = tmp_path / "models--someone--encoder"
    shutil.copytree(folder / "encoder", download / "snapshots" / ("1" * 40))
    (download / "snapshots" / ("1" * 40) / ".gitattributes").touch()  # all of it was downloaded
    (download / "refs").mkdir()
    (download / "refs" / "main").write_text("1" * 40)
    task = str(folder / "own.jsonl")
    plot.main([picture, "someone/encoder", "--cache_dir", str(tmp_path), "--task", task, "-o", "unused.png"])
    assert len(drawn) == 1


def test_features_do_not_depend_on_the_batch(folder, texts):
    encoder = open_encoder(str(folder / "encoder"))
    states, vectors = plot.embed(encoder, texts, batch_size=6)
    states_alone, vectors_alone = plot.embed(encoder, texts, batch_size=1)
    np.testing.assert_allclose(states, states_alone, atol=1e-5)
    np.testing.assert_allclose(vectors, vectors_alone, atol=1e-5)
    tokens = encoder.tokenizer(texts)["input_ids"]
    assert len(states) == sum(map(len, tokens))
    assert vectors.shape == (len(texts), 16)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("curves nowhere -o a.png", "nowhere: no metrics.jsonl there"),
        ("curves new -o a.png", "nothing was logged yet"),
        ("curves torn -o a.png", "torn/metrics.jsonl: not the log of a run"),
        ("curves stepless -o a.png", "stepless/metrics.jsonl: not the log of a run"),
        ("curves words -o a.png", "words/metrics.jsonl: not the log of a run (loss is not a number)"),
        ("curves list -o a.png", "list/metrics.jsonl: not the log of a run"),
        ("curves no_json -o a.png", "no_json: no configuration there"),
        ("curves no_type -o a.png", "no_type: no configuration there"),
        ("curves no_width -o a.png", "no_width: t5 is an encoder-decoder model"),
        ("curves run -o picture.png", "--output picture.png: a folder; name a picture"),
        ("curves run -o a.txt", "--output a.txt: name a picture with one of the suffixes .png"),
        ("curves run", "--output"),
        ("map nowhere --task own.jsonl -o a.png", "nowhere: no model can be read there"),
        ("map broken --task own.jsonl -o a.png", "broken: its states are not finite"),
        ("map encoder --task missing.csv -o a.png", "--task missing.csv: no such file"),
        ("map encoder --task few.jsonl -o a.png", "4 scored texts are too few for a picture"),
        ("map encoder --task rte --data_dir glue -o a.png", "--task rte: not a classification of single texts"),
        ("spectra encoder --task sts2 -o a.png", "no task 'sts2'; did you mean"),
        ("histogram run -o a.png", "invalid choice: 'histogram'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(folder, monkeypatch, command, problem):
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError) as error:
        plot.main(command.split())
    assert problem in str(error.value)
    assert not list(folder.glob("a.*"))


def test_the_style_of_others_stays_as_it_was(drawn):
    with matplotlib.rc_context({"font.size": 23}):
        before = matplotlib.rcParams.copy()
        plot_curves([Run("a", log({}))], "unused.png")
        assert matplotlib.rcParams.copy() == before
        assert drawn[0].axes[0].title.get_size() < 23
