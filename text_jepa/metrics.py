"""Collapse and quality metrics of latent features, as pure tensor functions.

A score takes plain matrices, one row per token or text; padding and unused positions are selected away beforehand. It
is computed in float32 (float64 where stated) whatever the input's precision, gathers nothing between ranks, and comes
back as a 0-d tensor for the caller to read when it suits.

Shapes: N rows, D features, B texts, S tokens, M masks, C context positions, T target positions.

No number is enough alone. `effective_rank` knows neither scale nor content: a constant plus a little noise has a high
rank. `spread` says nothing behind a final LayerNorm. `relative_loss` and the retrieval scores flatter a model that
merely smooths, which is why `copy_nearest_visible` is the baseline to beat.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


# Thresholds of `collapse_signs`.
# Share of the possible dimensions that the tokens use.
COLLAPSED_RANK_SHARE = 0.1
# Mean cosine of tokens of different texts.
COLLAPSED_COSINE = 0.98
# Standard deviation of the tokens.
COLLAPSED_SPREAD = 1e-3
# Share of its first value that a measure falls below in a collapse. For the dimensions of pooled texts, the two worst
# kinds of 68 runs did (docs/experiments.md).
COLLAPSED_SHARE = 0.5


def _row_mean(x: Tensor) -> Tensor:
    """Mean over rows (1, D), taken about the first row so that identical rows centre to exactly zero."""
    first_row = x[:1]
    offset = (x - first_row).mean(dim=0, keepdim=True)
    return first_row + offset


def effective_rank(features: Tensor) -> Tensor:
    """Number of directions that the features occupy, weighted by how evenly they do so.

    The exponential of the entropy of the centred features' singular values, normalised to sum 1. They are the roots of
    the eigenvalues of the smaller Gram matrix, in float64 because squaring halves the digits; eigenvalues below the
    rounding error count as zero. On CUDA the solver waits for the device.

    Source: Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality". RankMe (Garrido et
    al., 2023) is the same number without the centring.

    Args:
        features: (N, D).

    Returns:
        Between 1 (a constant, or a single direction) and min(N - 1, D), unchanged by rotation, shift and scale; NaN if
        a feature is not finite. Computed and returned on the CPU for an MPS device, which has no float64.
    """
    if features.device.type == "mps":
        features = features.cpu()
    x = features.double()
    x = x - _row_mean(x)
    rows, dimensions = x.shape
    gram = x @ x.T if rows < dimensions else x.T @ x

    # The solver raises on NaN, and a monitor must outlive the divergence that it reports.
    is_finite = gram.isfinite().all()
    eigenvalues = torch.linalg.eigvalsh(gram.where(is_finite, 0.0))
    precision = torch.finfo(x.dtype)
    largest = eigenvalues[-1]
    rounding_error = largest * max(rows, dimensions) * precision.eps
    eigenvalues = eigenvalues.where(eigenvalues > rounding_error, 0.0)

    singular_values = eigenvalues.sqrt()
    total = singular_values.sum().clamp_min(precision.tiny)
    distribution = singular_values / total
    entropy = torch.special.entr(distribution).sum()
    rank = entropy.exp()
    return rank.where(is_finite, torch.nan).float()


def spread(features: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over rows.

    What data2vec (Baevski et al., 2022) logs as `target_var` and `pred_var`, but the plain population deviation: no
    epsilon under the root, so a constant gives exactly 0, and no N - 1, so a single row gives 0 instead of NaN.

    Args:
        features: (N, D).

    Returns:
        At least 0; about 1 for standardised features.
    """
    x = features.float()
    centred = x - _row_mean(x)
    variance = centred.square().mean(dim=0)
    return variance.sqrt().mean()


def mean_cosines(
    features: Tensor,
    group: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean cosine over the pairs of different rows of a group, and over those of different groups.

    In O(N·D), from the squared norm of the sum of unit vectors.

    Args:
        features: (N, D), not centred.
        group: (N,) integer ids in any order, such as the document that each token came from.

    Returns:
        Two 0-d tensors between -1 and 1, where 1 means that every feature points the same way. 0 where there is no
        pair to average.
    """
    unit = F.normalize(features.float(), dim=-1)
    rows = unit.shape[0]
    ordered_pairs = rows * (rows - 1)
    # Not simply N: a row of zeros has no direction and contributes nothing.
    diagonal = unit.square().sum()
    every_cosine = unit.sum(dim=0).square().sum()

    group_index = torch.zeros_like(group, dtype=torch.long)
    # `torch.unique` would wait for the device; numbering the runs of the sorted ids needs no size in advance.
    ordered, order = group.long().sort()
    starts_group = ordered[1:] != ordered[:-1]
    group_index[1:] = starts_group.cumsum(0)
    group_sums = torch.zeros_like(unit)
    group_sums.index_add_(0, group_index, unit[order])
    group_sizes = torch.zeros_like(group_index)
    group_sizes.index_add_(0, group_index, torch.ones_like(group_index))

    same_cosine = group_sums.square().sum()
    same_pairs = group_sizes.square().sum() - rows
    other_cosine = every_cosine - same_cosine
    other_pairs = ordered_pairs - same_pairs
    same = (same_cosine - diagonal) / same_pairs.clamp_min(1)
    other = other_cosine / other_pairs.clamp_min(1)
    # Without a pair the numerators are not zero but what rounding leaves of it.
    same = same.where(same_pairs > 0, 0.0)
    other = other.where(other_pairs > 0, 0.0)
    return same, other


def relative_loss(
    predictions: Tensor,
    targets: Tensor,
) -> Tensor:
    """Mean squared error in units of the variance of the targets about their mean over rows.

    Args:
        predictions: (N, D).
        targets: (N, D).

    Returns:
        At least 0; 1.0 is no better than predicting the mean target. Constant targets give 1.0 too: nothing beats
        their mean, and 0 would report the collapse as a success.
    """
    predictions = predictions.float()
    targets = targets.float()
    error = (predictions - targets).square().mean()
    centred = targets - _row_mean(targets)
    variance = centred.square().mean()
    ratio = error / variance
    return ratio.where(variance != 0, 1.0)


def _centred_unit_rows(
    predictions: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Both matrices about the mean target: raw cosines of text features mostly measure their common offset."""
    predictions = predictions.float()
    targets = targets.float()
    mean = _row_mean(targets)
    unit_predictions = F.normalize(predictions - mean, dim=-1)
    unit_targets = F.normalize(targets - mean, dim=-1)
    return unit_predictions, unit_targets


def retrieval_margin(
    predictions: Tensor,
    targets: Tensor,
    shift: int,
) -> Tensor:
    """Mean cosine with the right target minus mean cosine with a wrong one, both centred by the mean target.

    Args:
        predictions: (N, D).
        targets: (N, D).
        shift: rows by which the targets are rolled to give the wrong ones. Neighbouring rows are often neighbouring
            tokens: a shift beyond a text's length compares with other texts.

    Returns:
        Between -2 and 2; 0 is chance, and about 1 is the most that a perfect predictor of unrelated targets gets.
    """
    predictions, targets = _centred_unit_rows(predictions, targets)
    wrong_targets = targets.roll(shift, 0)
    difference = targets - wrong_targets
    margin = (predictions * difference).sum(dim=-1)
    return margin.mean()


def wrong_target_cosines(
    predictions: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, greatest and least cosine of a prediction with another row's target, centred by the mean target.

    Args:
        predictions: (N, D), N of at least 2.
        targets: (N, D).

    Returns:
        Three 0-d tensors between -1 and 1. Takes an (N, N) matrix.
    """
    predictions, targets = _centred_unit_rows(predictions, targets)
    cosines = predictions @ targets.T
    is_own = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    wrong = cosines[~is_own]
    return wrong.mean(), wrong.max(), wrong.min()


def retrieval_accuracy(
    predictions: Tensor,
    targets: Tensor,
) -> Tensor:
    """Share of predictions whose nearest target of all rows is their own, by cosines centred by the mean target.

    A rival that scores the same as the right target, such as an equal target of another row, counts as a miss.

    Args:
        predictions: (N, D).
        targets: (N, D).

    Returns:
        Between 0 and 1; 1 / N is chance. Takes an (N, N) matrix.
    """
    predictions, targets = _centred_unit_rows(predictions, targets)
    with torch.autocast(predictions.device.type, enabled=False):
        cosines = predictions @ targets.T
    own = cosines.diagonal()
    rivals = cosines.clone()
    rivals.fill_diagonal_(-torch.inf)
    best_rival = rivals.amax(dim=1)
    # After a matrix product, equal targets can differ by a rounding error.
    is_hit = own > best_rival + 1e-6
    return is_hit.float().mean()


def copy_nearest_visible(
    features: Tensor,
    context_positions: Tensor,
    target_positions: Tensor,
) -> Tensor:
    """Predict each hidden feature by the target encoder's own feature at the nearest visible position.

    A trained predictor that does not beat this has learned that neighbours are alike, and nothing about the text.

    Args:
        features: (B, S, D) from the target encoder.
        context_positions: (B, M, C) integer, visible positions in any order, -1 where unused.
        target_positions: (B, M, T) integer, hidden positions, -1 where unused.

    Returns:
        (B, M, T, D) in the features' precision; of two equally near positions the left one is copied. Zeros where the
        target is unused or its mask has no context.
    """
    texts = features.shape[0]
    length = features.shape[1]
    masks = context_positions.shape[1]
    device = features.device

    # One extra column, which -1 wraps to, takes the unused entries.
    columns = context_positions.long() % (length + 1)
    shape = (texts, masks, length + 1)
    visible = torch.zeros(shape, dtype=torch.bool, device=device)
    visible.scatter_(-1, columns, True)
    visible = visible[..., :length]

    # The sentinels lie further away than any visible position can.
    none_left = -2 * length
    none_right = 3 * length
    position = torch.arange(length, device=device)
    left = position.where(visible, none_left).cummax(dim=-1).values
    reversed_right = position.where(visible, none_right).flip(-1)
    right = reversed_right.cummin(dim=-1).values.flip(-1)
    left_distance = position - left
    right_distance = right - position
    is_left_nearer = left_distance <= right_distance
    nearest = left.where(is_left_nearer, right)

    source = nearest.gather(-1, target_positions.long().clamp_min(0))
    source = source.clamp(0, length - 1)
    text = torch.arange(texts, device=device)
    copied = features[text[:, None, None], source]
    has_context = visible.any(dim=-1, keepdim=True)
    is_unused = (target_positions < 0) | ~has_context
    return copied.masked_fill(is_unused[..., None], 0.0)


def collapse_signs(
    values: Mapping[str, float],
    dimensions: float,
    first: Mapping[str, float] | None = None,
) -> list[str]:
    """Reasons to call the representations collapsed or degenerate, in plain words; an empty list if there are none.

    Encoders differ in rank and anisotropy, and a few short texts have a low rank under any encoder. What a run found
    is not a sign of collapse: if the measures of its first step are given, a bound counts only once half of the first
    value is lost.

    Args:
        values: Measures of the collapse monitor, or a record of the log: `token_rank`, `cosine_other_text`, `spread`
            and `pooled_rank`.
        dimensions: The largest possible rank: the width of the encoder, or the number of tokens if that is smaller.
        first: The measures of the same texts at the first step of the run. Default: the bounds alone decide.
    """
    if not all(math.isfinite(value) for value in values.values()):
        return ["representations are not finite"]

    token_rank = values["token_rank"]
    cosine = values["cosine_other_text"]
    deviation = values["spread"]
    pooled_rank = values["pooled_rank"]
    signs = []
    if token_rank < COLLAPSED_RANK_SHARE * dimensions and _has_halved(token_rank, first, "token_rank"):
        signs.append(f"tokens use {token_rank:.1f} of {dimensions} dimensions")
    angle_is_lost = first is None or 1 - cosine < COLLAPSED_SHARE * (1 - first["cosine_other_text"])
    if cosine > COLLAPSED_COSINE and angle_is_lost:
        signs.append(f"tokens of different texts point the same way (cosine {cosine:.3f})")
    if deviation < COLLAPSED_SPREAD and _has_halved(deviation, first, "spread"):
        signs.append(f"tokens hardly differ (standard deviation {deviation:.1e})")
    if first is not None and _has_halved(pooled_rank, first, "pooled_rank"):
        signs.append(f"pooled texts use {pooled_rank:.1f} dimensions, {first['pooled_rank']:.1f} at first")
    return signs


def _has_halved(
    value: float,
    first: Mapping[str, float] | None,
    name: str,
) -> bool:
    return first is None or value < COLLAPSED_SHARE * first[name]
