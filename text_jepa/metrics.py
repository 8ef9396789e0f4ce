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


# Beyond these the representations are called collapsed: the share of the dimensions that the tokens use, the mean
# cosine of tokens of different texts, the standard deviation of tokens, and the share that is left of the dimensions
# that pooled texts used at first. Of 68 runs (docs/experiments.md) the two worst kinds fell below the last.
COLLAPSED_RANK_SHARE, COLLAPSED_COSINE, COLLAPSED_SPREAD, COLLAPSED_POOLED_SHARE = 0.1, 0.98, 1e-3, 0.5


def _row_mean(x: Tensor) -> Tensor:
    """Mean over rows (1, D), taken about the first row so that identical rows centre to exactly zero."""
    return x[:1] + (x - x[:1]).mean(0, keepdim=True)


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
    x = (features.cpu() if features.device.type == "mps" else features).double()
    x = x - _row_mean(x)
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    # The solver raises on NaN, and a monitor must outlive the divergence that it reports.
    finite = gram.isfinite().all()
    energy = torch.linalg.eigvalsh(gram.where(finite, 0.0))
    noise = energy[-1] * max(x.shape) * torch.finfo(x.dtype).eps
    singular_values = energy.where(energy > noise, 0.0).sqrt()
    share = singular_values / singular_values.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return torch.special.entr(share).sum().exp().where(finite, torch.nan).float()


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
    return (x - _row_mean(x)).square().mean(0).sqrt().mean()


def mean_cosine(features: Tensor, group: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Mean cosine over all pairs of different rows, in O(N·D) from the squared norm of the sum of unit vectors.

    Args:
        features: (N, D), not centred.
        group: (N,) integer ids in any order, such as the document that each token came from.

    Returns:
        Between -1 and 1, where 1 means that every feature points the same way. With `group`, the pair (same group,
        other group). 0 where there is no pair to average.
    """
    unit = F.normalize(features.float(), dim=-1)
    rows = unit.shape[0]
    # Not simply N: a row of zeros has no direction and contributes nothing.
    diagonal = unit.square().sum()
    every_cosine = unit.sum(0).square().sum()
    if group is None:
        return (every_cosine - diagonal) / max(rows * (rows - 1), 1)

    # `torch.unique` would wait for the device; numbering the runs of the sorted ids needs no size in advance.
    ordered, order = group.long().sort()
    run = torch.zeros_like(ordered)
    run[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    sums = torch.zeros_like(unit).index_add_(0, run, unit[order])
    sizes = torch.zeros_like(run).index_add_(0, run, torch.ones_like(run))
    same_cosine, same_pairs = sums.square().sum(), sizes.square().sum() - rows
    other_pairs = rows * (rows - 1) - same_pairs
    same = (same_cosine - diagonal) / same_pairs.clamp_min(1)
    other = (every_cosine - same_cosine) / other_pairs.clamp_min(1)
    # Without a pair the numerators are not zero but what rounding leaves of it.
    return same.where(same_pairs > 0, 0.0), other.where(other_pairs > 0, 0.0)


def relative_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error in units of the variance of the targets about their mean over rows.

    Args:
        predictions: (N, D).
        targets: (N, D).

    Returns:
        At least 0; 1.0 is no better than predicting the mean target. Constant targets give 1.0 too: nothing beats
        their mean, and 0 would report the collapse as a success.
    """
    predictions, targets = predictions.float(), targets.float()
    error = (predictions - targets).square().mean()
    variance = (targets - _row_mean(targets)).square().mean()
    return (error / variance).where(variance != 0, 1.0)


def _centred_unit_rows(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both matrices about the mean target: raw cosines of text features mostly measure their common offset."""
    predictions, targets = predictions.float(), targets.float()
    mean = _row_mean(targets)
    return F.normalize(predictions - mean, dim=-1), F.normalize(targets - mean, dim=-1)


def retrieval_margin(predictions: Tensor, targets: Tensor, shift: int = 1) -> Tensor:
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
    return (predictions * (targets - targets.roll(shift, 0))).sum(-1).mean()


def wrong_target_cosines(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, greatest and least cosine of a prediction with another row's target, about the mean target.

    Args:
        predictions, targets: (N, D), N of at least 2.
    """
    predictions, targets = _centred_unit_rows(predictions, targets)
    others = ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    cosines = (predictions @ targets.T)[others]
    return cosines.mean(), cosines.max(), cosines.min()


def retrieval_accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Share of predictions whose nearest target among all rows, by cosine about the mean target, is their own.

    A rival that scores the same as the right target, such as an equal target of another row, counts as a miss.

    Args:
        predictions: (N, D).
        targets: (N, D).

    Returns:
        Between 0 and 1; 1 / N is chance. Takes an (N, N) matrix.
    """
    predictions, targets = _centred_unit_rows(predictions, targets)
    with torch.autocast(predictions.device.type, enabled=False):
        cosine = predictions @ targets.T
    best_rival = cosine.clone().fill_diagonal_(-torch.inf).amax(1)
    # After a matrix product, equal targets can differ by a rounding error.
    return (cosine.diagonal() > best_rival + 1e-6).float().mean()


def alignment(a: Tensor, b: Tensor, alpha: float = 2) -> Tensor:
    """Mean distance, to a power, between the normalised rows of two views (Wang and Isola, 2020, section 4.1).

    Args:
        a: (N, D).
        b: (N, D), row by row the other view of `a`.
        alpha: exponent of the distance.

    Returns:
        Between 0 (views coincide) and 2 ** alpha; lower is better, and a collapse is best of all, hence `uniformity`.
    """
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).norm(dim=-1).pow(alpha).mean()


def uniformity(x: Tensor, t: float = 2) -> Tensor:
    """Log of the mean Gaussian potential of pairs of normalised rows (Wang and Isola, 2020, section 4.1).

    Args:
        x: (N, D) with N of at least 2. Takes N (N - 1) / 2 distances.
        t: inverse width of the Gaussian.

    Returns:
        Between -4 t and 0 (all rows coincide); lower is more uniform.
    """
    return F.pdist(F.normalize(x.float(), dim=-1)).square().mul(-t).exp().mean().log()


def copy_nearest_visible(features: Tensor, context_positions: Tensor, target_positions: Tensor) -> Tensor:
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
    texts, length, _ = features.shape
    masks = context_positions.shape[1]
    # One extra column, which -1 wraps to, takes the unused entries.
    visible = torch.zeros(texts, masks, length + 1, dtype=torch.bool, device=features.device)
    visible = visible.scatter_(-1, context_positions.long() % (length + 1), True)[..., :length]

    # The sentinels lie further away than any visible position can.
    position = torch.arange(length, device=features.device)
    left = position.where(visible, -2 * length).cummax(-1).values
    right = position.where(visible, 3 * length).flip(-1).cummin(-1).values.flip(-1)
    nearest = left.where(position - left <= right - position, right)

    source = nearest.gather(-1, target_positions.long().clamp_min(0))
    copied = features[torch.arange(texts, device=features.device)[:, None, None], source.clamp(0, length - 1)]
    return copied.masked_fill(((target_positions < 0) | ~visible.any(-1, keepdim=True))[..., None], 0.0)


def collapse_signs(values: Mapping[str, float], dimensions: float, first_pooled_rank: float = 0.0) -> list[str]:
    """Plain-word reasons to call the representations collapsed or degenerate; none if they look healthy.

    Args:
        values: From `training.measure_representations`, or a record of the log.
        dimensions: What the rank could be at most: the width of the encoder, or fewer tokens.
        first_pooled_rank: The rank of the same pooled texts at the first log of the run.
    """
    signs = []
    if not all(math.isfinite(value) for value in values.values()):
        return ["representations are not finite"]
    if values["token_rank"] < COLLAPSED_RANK_SHARE * dimensions:
        signs.append(f"tokens use {values['token_rank']:.1f} of {dimensions} dimensions")
    if values["cosine_other_text"] > COLLAPSED_COSINE:
        signs.append(f"tokens of different texts point the same way (cosine {values['cosine_other_text']:.3f})")
    if values["spread"] < COLLAPSED_SPREAD:
        signs.append(f"tokens hardly differ (standard deviation {values['spread']:.1e})")
    if values["pooled_rank"] < COLLAPSED_POOLED_SHARE * first_pooled_rank:
        signs.append(f"pooled texts use {values['pooled_rank']:.1f} dimensions, {first_pooled_rank:.1f} at first")
    return signs
