"""Pictures: the arithmetic behind them, what is drawn of a log, and the command as a user types it.

Run: python -m pytest -q tests/show/test_plots.py
"""

import json
from itertools import pairwise, product

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from text_jepa import metrics
from text_jepa.cli import UsageError
from text_jepa.commands import plot
from text_jepa.embeddings import open_encoder
from text_jepa.metrics import effective_rank
from text_jepa.show.plots import Run, apart, collapsed_at, flat, plot_curves, plot_map, points, spectrum
from text_jepa.train.run_log import write_metrics


HEALTHY = {
    "token_rank": 20.0,
    "pooled_rank": 9.0,
    "cosine_other_text": 0.1,
    "cosine_same_text": 0.2,
    "spread": 1.0,
}


def log(*measures):
    """Records of a run, ten steps apart."""
    return [{"step": 10 * i, "loss": 1 / i, **HEALTHY, **own} for i, own in enumerate(measures, 1)]


def panels_of(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


# ---- spectra --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[(60, 12), (8, 12)], ids=["tall", "wide"])
def features(request):
    rng = np.random.default_rng(0)
    return 5 + rng.normal(size=request.param) * np.arange(1, 13)


def test_a_spectrum_holds_the_shares_of_the_variance_in_falling_order(features):
    shares = spectrum(features)
    singular_values = np.linalg.svd(features - features.mean(0), compute_uv=False)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()
    np.testing.assert_allclose(shares, singular_values**2 / (singular_values**2).sum(), atol=1e-12)


def test_a_spectrum_knows_neither_shift_nor_scale_nor_rotation(features):
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    np.testing.assert_allclose(spectrum(3 * features @ rotation - 7), spectrum(features), atol=1e-10)


def test_the_rank_in_the_legend_is_that_of_the_spectrum(features):
    values = np.sqrt(spectrum(features))
    shares = values[values > 1e-9] / values.sum()
    rank = np.exp(-(shares * np.log(shares)).sum())
    assert rank == pytest.approx(effective_rank(torch.from_numpy(features)).item(), rel=1e-5)


def test_features_that_do_not_vary_have_no_spectrum():
    assert (spectrum(np.full((5, 3), 0.1, np.float32)) == 0).all()


# ---- maps -----------------------------------------------------------------------------------------------------------


def test_groups_that_are_apart_stay_apart_on_both_maps():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    maps = flat((np.eye(16)[labels] * 20 + rng.normal(size=(60, 16))).astype(np.float32))
    for places in maps.values():
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.diag(np.full(60, np.inf))
        assert (labels[distances.argmin(1)] == labels).all()


def test_the_first_map_is_that_of_the_two_widest_directions():
    vectors = np.random.default_rng(0).normal(size=(40, 6)) * [1, 9, 1, 4, 1, 1]
    share = flat(vectors)["PCA"].var(0).sum() / vectors.var(0).sum()
    assert share == pytest.approx(spectrum(vectors)[:2].sum())


@pytest.mark.parametrize("vectors", [np.ones((6, 4)), np.eye(5, 4)], ids=["all alike", "five texts"])
def test_a_map_of_almost_nothing_is_a_map(vectors):
    assert all(np.isfinite(places).all() for places in flat(vectors.astype(np.float32)).values())


def test_names_keep_their_distance_and_their_order():
    heights = np.array([3.0, 0.0, 0.1, 0.05, 9.0])
    moved = apart(heights, 0.5)
    assert min(b - a for a, b in pairwise(sorted(moved))) >= 0.5 - 1e-9
    assert moved.argsort().tolist() == heights.argsort().tolist()
    assert moved.mean() == pytest.approx(heights.mean())
    np.testing.assert_allclose(apart(heights * 9, 0.1), heights * 9)  # room enough


def test_the_commonest_labels_are_named_and_no_point_is_lost(drawn):
    labels = np.concatenate([np.repeat(np.arange(12), 2), np.arange(12, 20)])
    places = np.random.default_rng(0).normal(size=(len(labels), 2))
    plot_map({"one": places, "two": -places}, labels, [f"label {i}" for i in range(20)], "unused.png")
    for axes in panels_of(drawn[0]).values():
        assert {text.get_text() for text in axes.texts} == {f"label {i}" for i in range(12)}
        assert sum(len(line.get_xdata()) for line in axes.lines) == len(labels)
    assert "8 others" in {text.get_text() for text in drawn[0].legends[0].get_texts()}


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_what_was_logged_has_a_panel_and_nothing_else(drawn):
    plot_curves([Run("a", [{"step": 1, "loss": 2.0}, {"step": 1, "eval_token_loss": 3.0}])], "unused.png")
    plot_curves([Run("a", [{"step": 1, "eval_probe_target_linear": 50.0, "epoch": 1.0}])], "unused.png")
    assert [list(panels_of(figure)) for figure in drawn] == [["loss", "loss of hidden tokens"], ["online probe (%)"]]


def test_figures_on_held_out_texts_are_circles_beside_the_curve_of_training(drawn):
    plot_curves([Run("a", [*log({}, {}, {}), {"step": 30, "eval_loss": 5.0}])], "unused.png")
    curve, circles = panels_of(drawn[0])["loss"].lines
    assert (list(curve.get_xdata()), curve.get_marker()) == ([10, 20, 30], "None")
    assert (list(circles.get_ydata()), circles.get_marker()) == ([5.0], "o")
    assert circles.get_color() == curve.get_color()


def test_several_runs_share_the_panels_and_have_a_colour_each(drawn):
    plot_curves([Run("a", log({}, {}, {})), Run("b", log({}, {}))], "unused.png")
    rank = panels_of(drawn[0])["effective rank"]
    by_run = [{line.get_color() for line in rank.lines if len(line.get_xdata()) == steps} for steps in (3, 2)]
    assert [len(colors) for colors in by_run] == [1, 1]
    assert by_run[0] != by_run[1]
    assert {"a", "b"} <= {text.get_text() for text in drawn[0].legends[0].get_texts()}


def test_the_bounds_are_drawn_where_a_reader_needs_them(drawn):
    plot_curves([Run("a", [r | {"relative_loss": 0.9} for r in log({}, {}, {})], width=64)], "unused.png")
    lines = {title: axes.lines[-1].get_ydata() for title, axes in panels_of(drawn[0]).items()}
    assert list(lines["relative loss"]) == [1, 1]
    assert list(lines["effective rank"]) == pytest.approx([6.4, 6.4])


def test_what_is_not_finite_is_a_gap(tmp_path, drawn):
    records = log({}, {"loss": float("nan")}, {"loss": float("inf"), "spread": float("nan")}, {})
    steps, values = points(records, "loss")
    assert (steps, np.isfinite(values).tolist()) == ([10, 20, 30, 40], [True, False, False, True])
    write_metrics(tmp_path, records)  # in the file they are words
    plot_curves([plot.read_run(tmp_path)], "unused.png")
    assert np.isfinite(panels_of(drawn[0])["loss"].lines[0].get_ydata()).tolist() == [True, False, False, True]


def test_a_run_that_diverged_from_the_first_step_can_be_drawn(tmp_path):
    broken = {name: float("nan") for name in ("loss", *HEALTHY)}
    plot_curves([Run("a", log(broken, broken), 64)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


# ---- warnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "cosine", "spread"),
    list(product((6.3, 6.5, float("nan")), (0.97, 0.99, float("inf")), (9e-4, 2e-3, float("nan")))),
)
def test_a_warning_is_marked_where_the_collapse_monitor_gives_it(rank, cosine, spread):
    values = HEALTHY | {"token_rank": rank, "cosine_other_text": cosine, "spread": spread}
    marked = collapsed_at(Run("a", log({}, values, values, {}), width=64))
    assert marked == (30 if metrics.collapse_signs(values, 64) else None)


def test_a_fall_of_the_pooled_rank_to_less_than_half_is_marked():
    assert collapsed_at(Run("a", log({}, {"pooled_rank": 4.4}, {"pooled_rank": 4.4}), 64)) == 30
    assert collapsed_at(Run("a", log({}, {"pooled_rank": 4.6}, {"pooled_rank": 4.6}), 64)) is None


def test_a_single_odd_measurement_is_no_warning():
    odd = {"spread": 0.0}
    assert collapsed_at(Run("a", log(odd, {}, odd, {}), 64)) is None
    assert collapsed_at(Run("a", [{"step": 1, "loss": 1.0}], 64)) is None


def test_the_warning_is_a_line_in_every_panel(drawn):
    plot_curves([Run("a", log({}, {"spread": 0.0}, {"spread": 0.0}), 64)], "unused.png")
    for axes in panels_of(drawn[0]).values():
        assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == ":"] == [[30, 30]]


# ---- command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Two encoders, one of them broken, a set with labels, one of pairs, and runs that ended or did not."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False)
    for name in ("encoder", "broken"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    words = {0: "storm lantern harbour", 1: "garden library bread"}
    rows = [{"text": f"{words[i % 2]} {i}", "label": ["sea", "land"][i % 2]} for i in range(60)]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    for split in ("train", "validation"):
        path = folder / "glue" / "rte" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs = [{"sentence1": split, "sentence2": f"text {i}", "label": i % 2} for i in range(9)]
        path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    for name, records in {"run": log({}, {}, {}), "new": [], "torn": log({})}.items():
        (folder / name).mkdir()
        write_metrics(folder / name, records)
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
def test_each_picture_is_a_file_that_a_page_can_show(folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(folder)
    path = tmp_path / "new folder" / "picture.png"
    plot.main([*command.split(), "-o", str(path)])
    height, width = matplotlib.image.imread(path).shape[:2]
    assert 900 <= width <= 2000
    assert 200 <= height <= 3000


def test_an_interrupted_run_has_curves_and_the_width_of_its_checkpoint(folder, tmp_path, make_model):
    run = tmp_path / "run"
    make_model().save_pretrained(run / "checkpoint-20")
    write_metrics(run, log({}, {}))
    assert plot.read_run(run) == Run(str(run), log({}, {}), make_model().config.hidden_size)
    assert plot.read_run(folder / "run").width is None


def test_a_checkpoint_is_drawn_by_the_encoder_that_makes_the_targets(tmp_path, make_model, tokenizer, texts):
    model = make_model({**make_model().config.text_config.to_dict(), "vocab_size": len(tokenizer)})
    for parameter in model.target_encoder.parameters():
        parameter.data.mul_(1.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = open_encoder(str(tmp_path))
    for mine, other in zip(encoder.model.parameters(), model.encoder_of_targets.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_features_do_not_depend_on_the_batch(folder, texts):
    encoder = open_encoder(str(folder / "encoder"))
    whole, alone = (plot.embed(encoder, texts, batch_size=size) for size in (6, 1))
    for a, b in zip(whole, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert whole[0].shape[0] == sum(map(len, encoder.tokenizer(texts)["input_ids"]))
    assert whole[1].shape == (len(texts), 16)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("curves nowhere -o a.png", "nowhere: no metrics.jsonl there"),
        ("curves new -o a.png", "nothing was logged yet"),
        ("curves torn -o a.png", "torn/metrics.jsonl: not the log of a run"),
        ("curves run -o a.txt", "--output a.txt: name a picture with one of the suffixes .png"),
        ("curves run", "--output"),
        ("map nowhere --task own.jsonl -o a.png", "nowhere: no model can be read there"),
        ("map broken --task own.jsonl -o a.png", "broken: its states are not finite"),
        ("map encoder --task missing.csv -o a.png", "--task missing.csv: no such file"),
        ("map encoder --task few.jsonl -o a.png", "4 scored texts make no picture"),
        ("map encoder --task rte --data_dir glue -o a.png", "--task rte: not single texts with classes"),
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
