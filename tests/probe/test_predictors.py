"""Predictions and scores against independent formulas, at the inputs where shortcuts fail, and against leaks.

The published BM25 row of AskUbuntu: TEXT_JEPA_DATA=folder python -m pytest -q tests/probe/test_predictors.py -k bm25

Run: python -m pytest -q tests/probe/test_predictors.py
"""

import os
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef

from text_jepa.encoders.embeddings import TokenStates
from text_jepa.probe import predictors
from text_jepa.probe.bootstrap import interval_of, score_resamples
from text_jepa.probe.glue import METRICS, GlueMetric
from text_jepa.probe.reranking import rerank_per_query


DATA = os.environ.get("TEXT_JEPA_DATA")


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def masked_states(x, generator, length=5):
    """One informative token among noise, at a place that varies, then padding."""
    rows = np.arange(len(x))
    states = 0.3 * generator.normal(size=(len(x), length, x.shape[1])).astype(np.float32)
    states[rows, rows % (length - 1)] = x
    states[:, -1] = 1e3
    mask = np.ones((len(x), length), dtype=np.int64)
    mask[:, -1] = 0
    return TokenStates(states, mask)


def attentive(train_x, train_y, test_x, seed=0):
    generator = np.random.default_rng(1)
    train = masked_states(train_x, generator)
    test = masked_states(test_x, generator)
    return predictors.attentive_predict(train, train_y, test, seed, learning_rate=1e-2)


def knn(train_x, train_y, test_x, seed=0):
    return predictors.knn_predict(train_x, train_y, test_x)


PREDICTORS = [predictors.fit_linear, knn, attentive]


def clusters(generator, rows, classes=3, width=16):
    y = np.arange(rows) % classes
    return 4 * np.eye(width)[y] + 0.3 * generator.normal(size=(rows, width)), y


# Predictors


@pytest.mark.parametrize("predict", PREDICTORS)
@pytest.mark.parametrize(
    "names",
    [np.array([3, 7, 11]), np.array(["a", "bb", "c"])],
)
def test_separable_classes_are_all_found(predict, names, generator):
    (train_x, train_y), (test_x, test_y) = clusters(generator, 300), clusters(generator, 90)
    predictions = predict(train_x, names[train_y], test_x)
    assert predictions.dtype == names.dtype
    np.testing.assert_array_equal(predictions, names[test_y])


@pytest.mark.parametrize("predict", PREDICTORS)
def test_noise_stays_at_chance(predict, generator):
    train_x, test_x = generator.normal(size=(300, 8)), generator.normal(size=(1000, 8))
    train_y, test_y = generator.integers(2, size=300), generator.integers(2, size=1000)
    assert abs(np.mean(predict(train_x, train_y, test_x) == test_y) - 0.5) < 0.06


@pytest.mark.parametrize("predict", PREDICTORS)
def test_real_values_are_regressed(predict, generator):
    x = generator.normal(size=(600, 4))
    y = x[:, 0] * 2 + 10
    predictions = predict(
        x[:400],
        y[:400],
        x[400:],
    )
    assert pearsonr(predictions, y[400:]).statistic > 0.9
    assert abs(predictions.mean() - 10) < 0.5


@pytest.mark.parametrize("predict", PREDICTORS)
def test_other_test_rows_change_nothing(predict, generator):
    """A planted leak: test rows that repeat one class, far away from everything, must not move the others."""
    train_x, train_y = clusters(generator, 120)
    test_x = generator.normal(size=(30, 16)) * 3
    alone = predict(train_x, train_y, test_x)
    np.testing.assert_array_equal(
        predict(
            train_x,
            train_y,
            np.r_[test_x, 100 + test_x],
        )[:30],
        alone,
    )
    real = predict(train_x, train_y.astype(float), test_x)
    together = predict(
        train_x,
        train_y.astype(float),
        np.r_[test_x, 100 + test_x],
    )[:30]
    np.testing.assert_allclose(together, real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("predict", PREDICTORS)
def test_predictions_are_deterministic_and_leave_torch_seeds_alone(predict, generator):
    train_x, test_x = generator.normal(size=(200, 8)), generator.normal(size=(50, 8))
    train_y = generator.normal(size=200)
    torch_state = torch.get_rng_state()
    first = predict(train_x, train_y, test_x, seed=3)
    np.testing.assert_array_equal(
        predict(
            train_x,
            train_y,
            test_x,
            seed=3,
        ),
        first,
    )
    assert torch.equal(torch.get_rng_state(), torch_state)


def repeated(x):
    """States of three equal tokens."""
    return TokenStates(
        np.repeat(
            x[:, None],
            3,
            axis=1,
        ),
        np.ones((len(x), 3)),
    )


def constant_attentive(train_x, train_y, test_x):
    return predictors.attentive_predict(repeated(train_x), train_y, repeated(test_x))


@pytest.mark.parametrize("predict", [predictors.fit_linear, knn, constant_attentive])
def test_constant_features_fall_back_to_the_prior(predict):
    train_y = np.array([0, 1, 1] * 40)
    train_x, test_x = (
        np.full(
            (120, 4),
            0.1,
            np.float32,
        ),
        np.full(
            (20, 4),
            0.1,
            np.float32,
        ),
    )
    predictions = predict(train_x, train_y, test_x)
    assert len(set(predictions)) == 1
    if predict is not knn:  # whose neighbours are then any ten rows
        assert set(predictions) == {1}
    assert np.isfinite(predict(train_x, train_y / 3, test_x)).all()


@pytest.mark.parametrize("predict", PREDICTORS)
def test_features_that_are_not_finite_are_refused(predict):
    x = np.zeros((60, 4))
    x[:, 1] = np.nan
    with pytest.raises(ValueError, match="features are not finite"):
        predict(x, np.arange(60) % 2, x)
    with pytest.raises(ValueError, match="features are not finite"):
        predict(
            np.zeros((60, 4)),
            np.arange(60) % 2,
            x,
        )


@pytest.mark.parametrize("predict", [predictors.fit_linear, attentive])
def test_one_class_is_refused(predict):
    for train_y in (np.zeros(30, int), np.array([0] * 29 + [1])):
        with pytest.raises(ValueError, match="two classes of two rows"):
            predict(
                np.zeros((30, 4)),
                train_y,
                np.zeros((3, 4)),
            )


def test_a_rare_class_is_no_obstacle(generator):
    x, y = clusters(generator, 60)
    y[0] = 9
    assert predictors.fit_linear(x, y, x).shape == (60,)


def test_knn_equals_brute_force(generator):
    train_x, test_x = generator.normal(size=(80, 6)) + 5, generator.normal(size=(37, 6)) + 5
    train_y, targets = generator.integers(3, size=80), generator.normal(size=80)
    mean = train_x.mean(0)
    labels, values = [], []
    for query in test_x:
        cosines = [
            (row - mean) @ (query - mean) / np.linalg.norm(row - mean) / np.linalg.norm(query - mean)
            for row in train_x
        ]
        votes, total, weights = np.zeros(3), 0.0, 0.0
        for i in sorted(range(80), key=lambda i: -cosines[i])[:7]:
            weight = np.exp(cosines[i] / 0.07)
            votes[train_y[i]] += weight
            total, weights = total + weight * targets[i], weights + weight
        labels.append(votes.argmax())
        values.append(total / weights)
    np.testing.assert_array_equal(
        predictors.knn_predict(
            train_x,
            train_y,
            test_x,
            k=7,
            block=10,
        ),
        labels,
    )
    np.testing.assert_allclose(
        predictors.knn_predict(
            train_x,
            targets,
            test_x,
            k=7,
            block=10,
        ),
        values,
    )
    assert (
        len(
            predictors.knn_predict(
                train_x[:4],
                train_y[:4],
                test_x,
                k=10,
            )
        )
        == 37
    )


def test_attention_finds_the_token_that_a_mean_drowns(generator):
    """The class is the sign of one token, marked by a large first feature, among nineteen of random signs."""

    def sample(rows):
        states, y = generator.normal(size=(rows, 20, 8)), np.arange(rows) % 2
        states[np.arange(rows), generator.integers(20, size=rows), :2] = np.c_[np.full(rows, 4), 4 * y - 2]
        return TokenStates(states, np.ones((rows, 20))), y

    train, y = sample(1000)
    test, test_y = sample(300)
    found = predictors.attentive_predict(train, y, test, learning_rate=3e-2, epochs=20)
    averaged = predictors.fit_linear(
        train.states.mean(1),
        y,
        test.states.mean(1),
    )
    assert np.mean(found == test_y) > np.mean(averaged == test_y) + 0.05


def test_attention_ignores_padding_and_survives_an_empty_text(generator):
    x, y = clusters(generator, 120)
    states, mask = masked_states(x, generator)
    padded = TokenStates(
        np.where(
            mask[..., None] > 0,
            states,
            -7.0,
        ),
        mask,
    )
    mask[0] = 0
    tokens = TokenStates(states, mask)
    first = predictors.attentive_predict(tokens, y, tokens)
    np.testing.assert_array_equal(predictors.attentive_predict(padded, y, padded), first)
    assert np.isfinite(predictors.attentive_predict(tokens, y / 2, tokens)).all()


def test_pair_features():
    u, v = np.array([[1.0, -2.0]]), np.array([[3.0, 4.0]])
    np.testing.assert_array_equal(
        predictors.pair_features(u, v),
        [
            [
                1,
                -2,
                3,
                4,
                2,
                6,
                3,
                -8,
            ]
        ],
    )


# STS


def test_whitening_gives_the_identity_as_covariance(generator):
    x = generator.normal(size=(500, 12)) @ generator.normal(size=(12, 12)) + 50
    np.testing.assert_allclose(
        np.cov(
            predictors.whiten(x),
            rowvar=False,
            bias=True,
        ),
        np.eye(12),
        atol=1e-9,
    )
    flat = predictors.whiten(np.c_[x, x[:, :3]])
    assert (
        np.isclose(
            np.cov(
                flat,
                rowvar=False,
                bias=True,
            ),
            1,
        ).sum()
        == 12
    )


def test_sts_equals_scipy(generator):
    u = generator.normal(size=(200, 8)) + 3
    v, gold = u + generator.normal(size=(200, 8)), generator.integers(6, size=200).astype(float)
    mean = np.r_[u, v].mean(0)
    scores = predictors.sts_scores(u, v, gold)
    for name, a, b in (("raw", u, v), ("centred", u - mean, v - mean)):
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
        assert scores[f"{name}_spearmanr"] == pytest.approx(100 * spearmanr(cosines, gold).statistic, abs=1e-3)
        assert scores[f"{name}_pearson"] == pytest.approx(100 * pearsonr(cosines, gold).statistic, abs=1e-6)
    assert len(scores) == 6


def test_whitening_undoes_a_dominant_direction(generator):
    meaning, style = generator.normal(size=(300, 8)), 30 * generator.normal(size=(2, 300, 1))
    near = meaning + np.abs(generator.normal(size=(300, 1))) * generator.normal(size=(300, 8))
    gold = -np.linalg.norm(near - meaning, axis=1)
    scores = predictors.sts_scores(
        np.c_[meaning, style[0]],
        np.c_[near, style[1]],
        gold,
    )
    assert scores["whitened_spearmanr"] > scores["centred_spearmanr"] + 20


@pytest.mark.parametrize(
    "row",
    [np.full(7, 0.1), np.zeros(7)],
)
def test_a_collapsed_encoder_scores_zero(row):
    x = np.tile(row, (50, 1)).astype(np.float32)
    assert set(
        predictors.sts_scores(
            x,
            x,
            np.arange(50),
        ).values()
    ) == {0.0}
    nearly = x + np.random.default_rng(0).normal(size=x.shape) * 1e-12
    assert (
        predictors.sts_scores(
            nearly,
            nearly,
            np.arange(50),
        )["raw_spearmanr"]
        == 0
    )


# Reranking


def means_in_percent(scores, labels):
    return {name: 100 * values.mean() for name, values in rerank_per_query(scores, labels).items()}


def test_untied_scores_equal_scikit_learn(generator):
    scores = [generator.normal(size=size) for size in generator.integers(6, 20, size=40)]
    labels = [np.r_[1, generator.integers(2, size=len(score) - 1)] for score in scores]
    result = rerank_per_query(scores, labels)
    expected = [average_precision_score(label, score) for score, label in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(result["map"], expected)
    order = [label[np.argsort(-score)] for score, label in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(
        result["mrr"],
        [1 / (1 + list(hits).index(1)) for hits in order],
    )
    np.testing.assert_allclose(result["p@1"], [hits[0] for hits in order])
    np.testing.assert_allclose(
        result["p@5"],
        [hits[:5].sum() / 5 for hits in order],
    )


def test_positives_come_last_among_equals_whatever_the_order_of_the_file():
    for labels in ([1, 0, 0, 1], [0, 0, 1, 1]):
        for noise in (0, 1e-9):
            scores = 0.5 + noise * np.array([3, 2, 1, 0])
            result = means_in_percent([scores], [labels])
            assert result == pytest.approx(
                {
                    "map": 100 * (1 / 3 + 2 / 4) / 2,
                    "mrr": 100 / 3,
                    "p@1": 0,
                    "p@5": 40,
                }
            )


def test_queries_without_a_positive_are_left_out():
    assert (
        len(
            rerank_per_query(
                [[2, 1], [2, 1]],
                [[0, 0], [0, 1]],
            )["map"]
        )
        == 1
    )
    with pytest.raises(ValueError, match="no query has a positive"):
        rerank_per_query([[2, 1]], [[0, 0]])
    with pytest.raises(ValueError, match="not finite"):
        rerank_per_query([[np.nan, 1]], [[0, 1]])


@pytest.mark.skipif(not DATA, reason="TEXT_JEPA_DATA names no data folder")
@pytest.mark.parametrize(
    ("split", "queries", "published", "pessimistic"),
    [
        ("test", 186, [55.99, 68.03, 53.76, 42.47], [55.89, 67.94, 53.76, 42.47]),
        ("dev", 189, [52.03, 65.99, 51.85, 42.12], [52.01, 65.83, 51.85, 42.12]),
    ],
)
def test_bm25_of_askubuntu(split, queries, published, pessimistic):
    """35 test queries have candidates of equal BM25 score, which Lucene ranked without knowing the labels."""
    scores, labels = [], []
    for line in Path(DATA, "askubuntu", f"{split}.txt").read_text(encoding="utf-8").splitlines():
        _, similar, candidates, bm25 = line.split("\t")
        scores.append([float(score) for score in bm25.split()])
        labels.append([int(candidate in similar.split()) for candidate in candidates.split()])
    assert all(sorted(score, reverse=True) == score for score in scores)
    ranked = [-np.arange(20)] * len(labels)
    assert [round(score, 2) for score in means_in_percent(ranked, labels).values()] == published
    assert [round(score, 2) for score in means_in_percent(scores, labels).values()] == pessimistic

    per_query = rerank_per_query(ranked, labels)["map"]
    assert len(per_query) == queries
    if split == "test":
        low, high = mean_interval(per_query)
        assert (100 * low, 100 * high) == pytest.approx((52.1, 59.9), abs=0.3)
        assert (
            round(
                means_in_percent([np.ones(20)] * len(labels), labels)["map"],
                1,
            )
            == 21.3
        )


# Statistics


def mean_interval(values, seed=0, resamples=1000):
    """The interval of the mean of one system's values."""
    return interval_of(
        score_resamples(
            np.mean,
            values[None],
            seed=seed,
            resamples=resamples,
        )
    )


def test_bootstrap_interval_equals_the_normal_one_and_covers(generator):
    values = generator.normal(size=2000)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 2000**0.5
    assert (low, high) == pytest.approx(
        (values.mean() - half, values.mean() + half),
        abs=5e-3,
    )
    assert mean_interval(values) == (low, high) != mean_interval(values, seed=1)
    covered = 0
    for _ in range(100):
        low, high = mean_interval(generator.normal(size=100), resamples=100)
        covered += low <= 0 <= high
    assert 0.88 < covered / 100 < 0.99


def test_bootstrap_resamples_rows_together(generator):
    gold = generator.integers(2, size=200)
    scores = score_resamples(accuracy_score, gold[None], gold, resamples=20)
    assert scores.shape == (20, 1)
    assert (scores == 1).all()


def test_seeds_of_a_system_and_systems_share_their_resamples(generator):
    a, b = generator.normal(size=(2, 150))
    both = score_resamples(
        np.mean,
        np.stack([a, b]),
        seed=7,
    )
    np.testing.assert_array_equal(
        both[:, :1],
        score_resamples(
            np.mean,
            a[None],
            seed=7,
        ),
    )
    np.testing.assert_array_equal(
        both[:, 1:],
        score_resamples(
            np.mean,
            b[None],
            seed=7,
        ),
    )


def test_paired_bootstrap_is_symmetric_and_sees_what_intervals_hide(generator):
    difficulty = generator.normal(size=200)
    better = difficulty + 0.1 + 0.1 * generator.normal(size=200)
    drawn = score_resamples(np.mean, np.stack([better, difficulty]))
    low, high = interval_of(drawn[:, 0] - drawn[:, 1])
    assert interval_of(drawn[:, 1] - drawn[:, 0]) == pytest.approx((-high, -low))
    assert low > 0
    assert mean_interval(better)[0] < mean_interval(difficulty)[1]
    assert interval_of(drawn[:, 0] - drawn[:, 0]) == (0, 0)


def test_paired_bootstrap_of_predictions_equals_that_of_hits(generator):
    gold, a, b = generator.integers(2, size=(3, 150))
    predictions = np.stack([a, b])
    predicted = score_resamples(lambda answers, labels: np.mean(answers == labels), predictions, gold)
    np.testing.assert_allclose(predicted, score_resamples(np.mean, predictions == gold))


# GLUE


SCORES = ("stsb", "regression")


@pytest.mark.parametrize("task", METRICS)
def test_glue_metric_equals_scikit_learn_and_scipy(task, generator):
    if task in SCORES:
        references = generator.integers(26, size=300) / 5
        predictions = references + generator.normal(size=300)
        expected = {
            "pearson": pearsonr(predictions, references).statistic,
            "spearmanr": spearmanr(predictions, references).statistic,
        }
    else:
        references, noise = generator.integers(
            3 if task.startswith(("mnli", "ax")) else 2,
            size=(2, 300),
        )
        predictions = np.where(generator.random(300) < 0.6, references, noise)
        functions = {"accuracy": accuracy_score, "f1": f1_score, "matthews_correlation": matthews_corrcoef}
        expected = {name: functions[name](references, predictions) for name in METRICS[task]}
    metric = GlueMetric(config_name=task, keep_in_memory=True)
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected, abs=1e-12)
    for part in np.array_split(np.arange(300), 3):
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", METRICS)
def test_constant_predictions_give_a_number(task):
    metric = GlueMetric(config_name=task, keep_in_memory=True)
    references = np.arange(10.0) if task in SCORES else np.arange(10) % 2
    constant = np.zeros_like(references)
    for gold in (references, constant):
        scores = metric.compute(predictions=constant, references=gold)
        assert np.isfinite(list(scores.values())).all()


def test_glue_metric_refuses_what_cannot_be_scored():
    with pytest.raises(ValueError, match="did you mean 'stsb'"):
        GlueMetric(config_name="sts-b", keep_in_memory=True)
    rte = GlueMetric(config_name="rte", keep_in_memory=True)
    with pytest.raises(ValueError, match="hidden"):
        rte.compute(
            predictions=[0, 1],
            references=[-1, -1],
        )
    with pytest.raises(ValueError, match="hidden"):
        rte.compute(predictions=[0, 1], references=[1, -1])
    stsb = GlueMetric(config_name="stsb", keep_in_memory=True)
    with pytest.raises(ValueError, match="hidden"):
        stsb.compute(
            predictions=[0.5, 1],
            references=[-1, -1],
        )
    with pytest.raises(ValueError, match="not finite"):
        stsb.compute(
            predictions=[np.nan, 1],
            references=[0, 1],
        )


def test_a_standardised_score_of_minus_one_is_a_score():
    for task in SCORES:
        metric = GlueMetric(config_name=task, keep_in_memory=True)
        assert metric.compute(predictions=[2.0, 3.0], references=[-1.0, 1.0])["spearmanr"] == pytest.approx(1)


def test_combine_takes_glue_metrics_beside_others():
    tasks = ("rte", "cola")
    combined = evaluate.combine([GlueMetric(task, keep_in_memory=True) for task in tasks])
    scores = combined.compute(
        predictions=[0, 1, 1, 0],
        references=[0, 1, 0, 0],
    )
    assert scores["accuracy"] == 0.75
    assert scores["matthews_correlation"] == pytest.approx(
        matthews_corrcoef(
            [0, 1, 0, 0],
            [0, 1, 1, 0],
        )
    )
