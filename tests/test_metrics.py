"""Each metric against an independent formula or a plain loop, and at the inputs where collapse makes formulas fail.

Run: python -m pytest -q tests/test_metrics.py
"""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from text_jepa.metrics import (
    copy_nearest_visible,
    effective_rank,
    mean_cosines,
    relative_loss,
    retrieval_accuracy,
    retrieval_margin,
    spread,
    wrong_target_cosines,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def randn(*shape, generator, **kwargs):
    return torch.randn(*shape, generator=generator, **kwargs)


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def value(score):
    assert score.ndim == 0
    assert score.dtype == torch.float32
    return score.item()


def measure(metric, *arguments, **options):
    return value(metric(*arguments, **options))


def reference_rank(x):
    x = np.asarray(x, dtype=np.float64)
    singular_values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = singular_values / singular_values.sum()
    share = share[share > 1e-12]
    return math.exp(-(share * np.log(share)).sum())


# effective rank


@pytest.mark.parametrize("dimensions", [1, 3, 8])
def test_rank_of_a_centred_orthonormal_basis_is_its_size(dimensions):
    basis = torch.eye(dimensions, 16)
    centred = torch.cat([basis, -basis])
    assert measure(effective_rank, centred) == pytest.approx(dimensions, abs=1e-5)


def test_rank_of_one_hot_rows_loses_one_direction_to_the_centring():
    assert measure(effective_rank, torch.eye(7)) == pytest.approx(6, abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
@pytest.mark.parametrize(
    "shape",
    [
        (33, 8),
        (5, 40),
        (1, 4),
    ],
)
def test_rank_of_a_constant_is_one(constant, shape):
    assert measure(effective_rank, torch.full(shape, constant)) == 1.0


def test_rank_of_a_line_is_one(generator):
    line = randn(50, 1, generator=generator) * randn(1, 12, generator=generator)
    # The product is rounded to float32, so the other eleven directions hold about 1e-8 of the length each.
    assert measure(effective_rank, line) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        (100, 12),
        (12, 100),
        (20, 20),
        (2, 5),
    ],
)
def test_rank_matches_the_singular_value_formula(shape, generator):
    features = randn(*shape, generator=generator) * torch.logspace(
        0,
        -3,
        shape[1],
    )
    expected = reference_rank(features)
    assert measure(effective_rank, features) == pytest.approx(expected, rel=1e-5)


def test_rank_ignores_rotation_shift_and_scale(generator):
    features = randn(
        60,
        10,
        generator=generator,
        dtype=torch.float64,
    ) * torch.arange(1, 11)
    rotation, _ = torch.linalg.qr(
        randn(
            10,
            10,
            generator=generator,
            dtype=torch.float64,
        )
    )
    moved = 1e-6 * (features @ rotation) + 3.0
    expected = measure(effective_rank, features)
    assert measure(effective_rank, moved) == pytest.approx(expected, rel=1e-5)


def test_rank_is_blind_to_a_collapse_that_leaves_noise(generator):
    """Why the rank is never watched alone."""
    noise = randn(500, 16, generator=generator)
    assert measure(effective_rank, 1.0 + 1e-3 * noise) > 15


def test_rank_reports_divergence_instead_of_raising():
    features = torch.eye(4)
    features[0, 0] = torch.nan
    assert math.isnan(measure(effective_rank, features))


# spread


def test_spread_is_the_mean_population_deviation(generator):
    features = randn(40, 6, generator=generator) * torch.arange(6) + 100
    assert measure(spread, features) == pytest.approx(
        features.double().numpy().std(0).mean(),
        rel=1e-5,
    )


# mean cosine


def brute_force_cosines(features, group):
    rows = unit(features)
    same = []
    other = []
    for i, j in combinations(range(len(rows)), 2):
        cosine = rows[i] @ rows[j]
        if group[i] == group[j]:
            same.append(cosine)
        else:
            other.append(cosine)
    return np.array(same), np.array(other)


def test_mean_cosines_matches_the_pair_loop(generator):
    features = randn(30, 5, generator=generator) + 0.5
    group = (
        torch.randint(
            -2,
            3,
            (30,),
            generator=generator,
        )
        * 1000
    )
    same, other = brute_force_cosines(features, group)

    measured_same, measured_other = mean_cosines(features, group)
    assert value(measured_same) == pytest.approx(same.mean(), abs=1e-6)
    assert value(measured_other) == pytest.approx(other.mean(), abs=1e-6)


def test_mean_cosines_counts_a_zero_row_as_orthogonal():
    features = torch.tensor(
        [
            [1.0, 0.0],
            [1.0, 0.0],
            [0.0, 0.0],
        ]
    )
    same, other = mean_cosines(features, torch.zeros(3))
    assert value(same) == pytest.approx(1 / 3)
    same, other = mean_cosines(features, torch.arange(3))
    assert value(other) == pytest.approx(1 / 3)


def test_mean_cosines_without_pairs_is_zero(generator):
    features = randn(9, 4, generator=generator)
    everyone_alone, _ = mean_cosines(features, torch.arange(9))
    _, nobody_else = mean_cosines(features, torch.zeros(9, dtype=torch.long))
    assert value(everyone_alone) == 0.0
    assert value(nobody_else) == 0.0
    assert [value(cosine) for cosine in mean_cosines(features[:1], torch.zeros(1))] == [0.0, 0.0]


# relative loss and retrieval


def test_relative_loss_of_predicting_the_mean_is_one(generator):
    targets = randn(64, 8, generator=generator) * 3 + 50
    mean = targets.double().mean(0).float().expand_as(targets)
    assert measure(relative_loss, mean, targets) == pytest.approx(1, abs=1e-5)
    assert measure(relative_loss, targets, targets) == 0.0
    assert measure(
        relative_loss,
        2 * mean - targets,
        targets,
    ) == pytest.approx(4, rel=1e-5)


def test_relative_loss_does_not_reward_constant_targets():
    targets = torch.full((16, 4), 0.1)
    assert measure(relative_loss, targets, targets) == 1.0


def test_relative_loss_does_not_hide_divergence():
    targets = torch.full((16, 4), torch.nan)
    assert math.isnan(measure(relative_loss, targets, targets))


def test_retrieval_matches_the_loop(generator):
    targets = randn(25, 6, generator=generator) + 4
    predictions = targets + randn(25, 6, generator=generator)
    mean = targets.mean(0)
    cosines = unit(predictions - mean) @ unit(targets - mean).T
    margins = []
    hits = []
    for row in range(25):
        own = cosines[row, row]
        others = np.delete(cosines[row], row)
        margins.append(own - cosines[row, (row - 3) % 25])
        hits.append(all(own > other for other in others))
    margin = np.mean(margins)
    share = np.mean(hits)

    assert measure(
        retrieval_margin,
        predictions,
        targets,
        shift=3,
    ) == pytest.approx(margin, abs=1e-5)
    assert measure(retrieval_accuracy, predictions, targets) == pytest.approx(share)
    assert 0 < share < 1


def test_retrieval_sees_through_a_common_offset(generator):
    """Raw cosines would call both of these nearly perfect."""
    targets = randn(200, 8, generator=generator) + 1000
    unrelated = randn(200, 8, generator=generator) + 1000
    assert abs(measure(retrieval_margin, unrelated, targets, shift=1)) < 0.1
    assert measure(retrieval_accuracy, unrelated, targets) < 0.05
    assert measure(retrieval_margin, targets, targets, shift=1) > 0.9
    assert measure(retrieval_accuracy, targets, targets) == 1.0


def test_retrieval_counts_ties_as_misses(generator):
    targets = randn(41, 300, generator=generator)
    targets[40] = targets[3]
    assert measure(retrieval_accuracy, targets, targets) == pytest.approx(39 / 41)


def test_retrieval_of_one_prediction_for_all_is_chance_at_most(generator):
    targets = randn(41, 300, generator=generator)
    constant = torch.zeros_like(targets)
    assert measure(retrieval_accuracy, constant, targets) <= 1 / 41 + 1e-6
    assert abs(measure(retrieval_margin, constant, targets, shift=1)) < 1e-6


def test_retrieval_keeps_its_precision_under_autocast(generator):
    targets = randn(64, 32, generator=generator)
    predictions = targets + randn(64, 32, generator=generator)
    plain = retrieval_accuracy(predictions, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieval_accuracy(predictions, targets) == plain


# the copy baseline


def copy_by_loop(features, context_positions, target_positions):
    texts, masks, width = target_positions.shape
    copied = torch.zeros(texts, masks, width, features.shape[-1])
    for b in range(texts):
        for m in range(masks):
            visible = [c for c in context_positions[b, m].tolist() if c >= 0]
            for i, t in enumerate(target_positions[b, m].tolist()):
                if t >= 0 and visible:
                    nearest = min(
                        visible,
                        key=lambda c: (abs(c - t), c),
                    )
                    copied[b, m, i] = features[b, nearest]
    return copied


def test_copy_baseline_matches_the_loop(generator):
    texts, masks, length = 4, 5, 17
    features = randn(texts, length, 3, generator=generator)
    context_positions = torch.full((texts, masks, length), -1)
    target_positions = torch.full((texts, masks, length), -1)
    for b in range(texts):
        for m in range(masks):
            order = torch.randperm(length, generator=generator)
            visible = b * m  # from no context at all to most of the text
            context_positions[b, m, :visible] = order[:visible]
            target_positions[b, m, 2 : 2 + length - visible - 2] = order[visible:-2]

    measured = copy_nearest_visible(features, context_positions, target_positions)
    assert torch.equal(measured, copy_by_loop(features, context_positions, target_positions))
    narrow = copy_nearest_visible(
        features.bfloat16(),
        context_positions.int(),
        target_positions.int(),
    )
    assert torch.equal(narrow, measured.bfloat16())


def test_copy_baseline_prefers_the_left_neighbour_and_gives_zeros_without_context():
    features = torch.arange(5.0).reshape(1, 5, 1) + 10
    context_positions = torch.tensor([[[4, 0], [-1, -1]]])
    target_positions = torch.tensor([[[2, 3, -1], [0, 2, -1]]])
    copied = copy_nearest_visible(features, context_positions, target_positions)
    assert copied.squeeze(-1).tolist() == [[[10, 14, 0], [0, 0, 0]]]
    without = copy_nearest_visible(features, context_positions[..., :0], target_positions)
    assert without.count_nonzero() == 0


# every metric at the bottom of a collapse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_a_constant_input_gives_finite_scores(constant, dtype):
    x = torch.full((12, 5), constant, dtype=dtype)
    same, other = mean_cosines(x, torch.arange(12) // 4)
    direction = pytest.approx(0.0 if constant == 0 else 1.0, abs=1e-6)

    assert measure(effective_rank, x) == 1.0
    assert measure(spread, x) == 0.0
    assert [value(same), value(other)] == [direction] * 2
    assert measure(relative_loss, x, x) == 1.0
    assert measure(retrieval_margin, x, x, shift=1) == 0.0
    assert measure(retrieval_accuracy, x, x) == 0.0


def test_wrong_target_cosines_leave_out_the_right_ones():
    targets = torch.randn(
        6,
        8,
        generator=torch.Generator().manual_seed(0),
    )
    mean, greatest, least = wrong_target_cosines(targets, targets)
    rows = unit(targets - targets.mean(0))
    wrong = []
    for i in range(6):
        for j in range(6):
            if i != j:
                wrong.append(rows[i] @ rows[j])
    assert float(mean) == pytest.approx(np.mean(wrong), abs=1e-6)
    assert float(greatest) == pytest.approx(max(wrong), abs=1e-6)
    assert float(least) == pytest.approx(min(wrong), abs=1e-6)
