"""Predictions from frozen features: linear probe, nearest neighbours, attention over tokens, cosines of pairs.

`text_jepa.encoders.embeddings` makes the features. No function sees the test labels, and the prediction of a test row
does not depend on the other test rows.

Shapes: N rows to learn from or to score, M test rows, D features, S and T tokens, K outputs.
"""

import copy
import warnings
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from text_jepa.encoders.embeddings import TokenStates, centre, cosine, unit_rows
from text_jepa.probe.tasks import Split


_NOT_FINITE = "the features are not finite"


# ---- features and targets -------------------------------------------------------------------------------------------


def pair_features(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """[u, v, |u - v|, u * v], the features of a pair in InferSent and SentEval (Conneau et al., 2017 and 2018).

    Args:
        u: (N, D) vectors of the first texts.
        v: (N, D) vectors of the second texts.

    Returns:
        (N, 4 D).
    """
    difference = np.abs(u - v)
    product = u * v
    return np.concatenate([u, v, difference, product], axis=1)


def split_features(split: Split, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Features of the rows of a task: (N, D) for texts, (N, 4 D) for pairs.

    Args:
        split: N rows.
        vectors: Vector (D,) of each text.
    """
    u = np.stack([vectors[text] for text in split.texts])
    if split.pairs is None:
        return u
    v = np.stack([vectors[text] for text in split.pairs])
    return pair_features(u, v)


def is_regression(targets: np.ndarray) -> bool:
    """Floating-point targets are real values; integers, booleans and strings are classes."""
    return np.issubdtype(np.asarray(targets).dtype, np.floating)


def _check_features(*features: np.ndarray) -> None:
    """One clear line instead of a solver's."""
    for x in features:
        if not np.isfinite(x).all():
            raise ValueError(_NOT_FINITE)


def _check_targets(targets: np.ndarray) -> None:
    if is_regression(targets):
        if not np.isfinite(targets).all():
            raise ValueError("the training targets are not finite")
        return
    _, counts = np.unique(targets, return_counts=True)
    learnable_classes = (counts >= 2).sum()
    if learnable_classes < 2:
        raise ValueError("the training labels need at least two classes of two rows each")


# ---- linear probe ---------------------------------------------------------------------------------------------------


def fit_linear(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    seed: int = 0,
) -> np.ndarray:
    """Predictions of a linear model on scaled frozen features.

    Logistic regression for classes, ridge regression for real values (`is_regression`). The scaling and the penalty
    are chosen on the training part alone, the penalty by threefold cross-validation, stratified for classes.

    Args:
        train_x: (N, D) features.
        train_y: (N,) labels of any type, or float targets.
        test_x: (M, D) features.
        seed: Seed of the folds and the solver.

    Returns:
        (M,) predictions of the type of `train_y`.

    Raises:
        ValueError: Features or targets are not finite, or there are not two classes of two rows.
    """
    train_x = np.asarray(train_x)
    train_y = np.asarray(train_y)
    test_x = np.asarray(test_x)
    _check_features(train_x, test_x)
    _check_targets(train_y)

    if is_regression(train_y):
        model = Ridge()
        grid = {"ridge__alpha": np.logspace(0, 5, 6)}
        folds = KFold(3, shuffle=True, random_state=seed)
    else:
        model = LogisticRegression(max_iter=300, random_state=seed)
        grid = {"logisticregression__C": np.logspace(-4, 0, 5)}
        folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), model)
    search = GridSearchCV(pipeline, grid, cv=folds)
    with warnings.catch_warnings():
        # A weak penalty that has not converged is one more candidate, and a class may be rarer than three rows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        search.fit(train_x, train_y)
        return search.predict(test_x)


# ---- nearest neighbours ---------------------------------------------------------------------------------------------


def knn_predict(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    k: int = 10,
    temperature: float = 0.07,
    block: int = 1024,
) -> np.ndarray:
    """Predictions of the k nearest training rows by cosine, centred by the mean of the training part.

    Neighbours vote for their class with weight exp(cosine / temperature), as in Wu et al. (2018) and DINO (Caron et
    al., 2021), or average their real values with these weights.

    Args:
        train_x: (N, D) features.
        train_y: (N,) labels of any type, or float targets.
        test_x: (M, D) features.
        k: Number of neighbours; all rows if there are fewer.
        temperature: 0.07 in both sources; infinity counts every neighbour the same.
        block: Test rows at a time; memory is block x N.

    Returns:
        (M,) predictions of the type of `train_y`; of equal votes the first class in sorted order.

    Raises:
        ValueError: Features are not finite.
    """
    train_x = np.asarray(train_x)
    train_y = np.asarray(train_y)
    test_x = np.asarray(test_x)
    _check_features(train_x, test_x)

    k = min(k, len(train_y))
    keys = unit_rows(centre(train_x))
    queries = unit_rows(centre(test_x, train_x))
    if is_regression(train_y):
        classes = None
        values = train_y[:, None]
    else:
        classes, ids = np.unique(train_y, return_inverse=True)
        values = np.eye(len(classes))[ids]

    votes_of_blocks = []
    for start in range(0, len(queries), block):
        cosines = queries[start : start + block] @ keys.T
        order = np.argpartition(-cosines, k - 1, axis=1)
        nearest = order[:, :k]
        nearest_cosines = np.take_along_axis(cosines, nearest, axis=1)
        weights = np.exp((nearest_cosines - 1) / temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        votes_of_blocks.append(np.einsum("mk,mkc->mc", weights, values[nearest]))
    votes = np.concatenate(votes_of_blocks)
    if classes is None:
        return votes[:, 0]
    return classes[votes.argmax(axis=1)]


# ---- attention over tokens ------------------------------------------------------------------------------------------


def attentive_predict(
    train: TokenStates,
    train_y: np.ndarray,
    test: TokenStates,
    seed: int = 0,
    epochs: int = 50,
    patience: int = 5,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
) -> np.ndarray:
    """Predictions from frozen token states by one learned query, a softmax over the tokens and a linear layer.

    Query and layer start at zero, so the probe starts as mean pooling. AdamW trains it on nine tenths of the training
    rows and keeps the epoch with the lowest loss on the last tenth. States are scaled by the training tokens'
    statistics. This is the attentive probe of CAE (Chen et al., 2022) and V-JEPA (Bardes et al., 2024) at its
    smallest: one head, no projections.

    Args:
        train: States (N, S, D) and mask (N, S); a row without any token is pooled to zeros.
        train_y: (N,) labels of any type, or float targets.
        test: States (M, T, D) and mask (M, T).
        seed: Seed of the held-out tenth and the batches; the global generators are left alone.
        epochs: Largest number of epochs.
        patience: Number of epochs without a lower loss after which training stops.
        learning_rate: Learning rate of AdamW.
        batch_size: Rows per step.

    Returns:
        (M,) predictions of the type of `train_y`.

    Raises:
        ValueError: Features or targets are not finite, or there are not two classes of two rows.
    """
    states = torch.as_tensor(train.states)
    mask = torch.as_tensor(train.mask)
    device = states.device
    mask = mask.to(device).bool()
    targets = _Targets(np.asarray(train_y), device)
    probe = _AttentiveProbe(states[mask].float(), targets.outputs)

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train_y), generator=generator).to(device)
    held_out_rows = max(1, len(order) // 10)
    held_out = order[:held_out_rows]
    rows = order[held_out_rows:]

    optimizer = torch.optim.AdamW(probe.parameters(), lr=learning_rate)
    best_loss = float("inf")
    best_epoch = 0
    best_parameters = None
    for epoch in range(epochs):
        shuffled = torch.randperm(len(rows), generator=generator)
        epoch_rows = rows[shuffled.to(device)]
        for batch in epoch_rows.split(batch_size):
            optimizer.zero_grad()
            outputs = probe(states[batch], mask[batch])
            loss = targets.loss(outputs, batch)
            loss.backward()
            optimizer.step()

        held_out_loss = 0
        with torch.no_grad():
            for batch in held_out.split(256):
                outputs = probe(states[batch], mask[batch])
                loss = targets.loss(outputs, batch)
                held_out_loss += float(loss) * len(batch)
        held_out_loss /= len(held_out)
        if not np.isfinite(held_out_loss):
            raise ValueError(_NOT_FINITE)
        if held_out_loss < best_loss:
            best_loss = held_out_loss
            best_epoch = epoch
            best_parameters = copy.deepcopy(probe.state_dict())
        elif epoch - best_epoch >= patience:
            break
    probe.load_state_dict(best_parameters)
    return targets.decode(_outputs_of(probe, test))


class _Targets:
    """Training labels as targets of a loss, and outputs of the probe as labels.

    Args:
        labels: (N,) labels of any type, or float targets, which are standardised.
        device: Device of the targets.
    """

    def __init__(self, labels: np.ndarray, device: torch.device) -> None:
        _check_targets(labels)
        self.are_scores = is_regression(labels)
        if self.are_scores:
            self.outputs = 1
            self.offset = labels.mean()
            self.scale = labels.std() or 1.0
            standardised = (labels - self.offset) / self.scale
            self.targets = torch.tensor(standardised, dtype=torch.float32, device=device)
        else:
            self.classes, ids = np.unique(labels, return_inverse=True)
            self.outputs = len(self.classes)
            self.targets = torch.tensor(ids, device=device)

    def loss(self, outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Mean loss of outputs (B, K) against the targets of these rows (B,)."""
        targets = self.targets[rows]
        if self.are_scores:
            return F.mse_loss(outputs[:, 0], targets)
        return F.cross_entropy(outputs, targets)

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        """Labels (M,) of outputs (M, K)."""
        if self.are_scores:
            return outputs[:, 0] * self.scale + self.offset
        return self.classes[outputs.argmax(axis=1)]


class _AttentiveProbe(nn.Module):
    """One query that attends over the scaled token states, and a linear layer.

    Args:
        tokens: (T, D) states of all training tokens, whose statistics scale the states.
        outputs: Number of outputs K.
    """

    def __init__(self, tokens: torch.Tensor, outputs: int) -> None:
        super().__init__()
        width = tokens.shape[1]
        device = tokens.device
        self.mean = tokens.mean(0)
        self.deviation = tokens.std(0).clamp_min(1e-6)
        query = torch.zeros(width, device=device)
        weight = torch.zeros(width, outputs, device=device)
        bias = torch.zeros(outputs, device=device)
        self.query = nn.Parameter(query)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Outputs (B, K) for states (B, S, D) and mask (B, S)."""
        x = (states.float() - self.mean) / self.deviation
        logits = x @ self.query / x.shape[-1] ** 0.5
        lowest = torch.finfo(torch.float32).min
        logits = logits.masked_fill(~mask, lowest)
        attention = logits.softmax(dim=1) * mask
        weighted = attention[:, :, None] * x
        pooled = weighted.sum(dim=1)
        return pooled @ self.weight + self.bias


@torch.no_grad()
def _outputs_of(probe: _AttentiveProbe, test: TokenStates) -> np.ndarray:
    """Outputs (M, K) for all test rows."""
    states = torch.as_tensor(test.states)
    mask = torch.as_tensor(test.mask)
    mask = mask.to(states.device).bool()
    outputs_of_batches = []
    for start in range(0, len(states), 256):
        batch = slice(start, start + 256)
        outputs_of_batches.append(probe(states[batch], mask[batch]))
    outputs = torch.cat(outputs_of_batches).cpu().numpy()
    if not np.isfinite(outputs).all():
        raise ValueError(_NOT_FINITE)
    return outputs


# ---- similarities of pairs ------------------------------------------------------------------------------------------


def whiten(x: np.ndarray) -> np.ndarray:
    """Principal coordinates scaled to unit variance (Su et al., 2021, "Whitening sentence representations").

    Args:
        x: (N, D). With N of at most D every row ends up equally far from every other: use many more rows.

    Returns:
        (N, D) float64 with the identity as covariance; zeros along directions in which the rows do not vary.
    """
    x = centre(np.asarray(x, dtype=np.float64))
    covariance = x.T @ x / len(x)
    variance, directions = np.linalg.eigh(covariance)
    largest = variance[-1]
    precision = np.finfo(np.float64).eps
    rounding_error = largest * max(x.shape) * precision
    is_used = variance > rounding_error
    deviation = np.sqrt(np.where(is_used, variance, 1))
    scale = 1 / deviation
    return x @ directions * np.where(is_used, scale, 0)


def pearson(predictions: np.ndarray, gold: np.ndarray) -> float:
    """Correlation of (N,) and (N,), between -1 and 1; 0 if either side is constant, which explains nothing."""
    if np.ptp(predictions) == 0 or np.ptp(gold) == 0:
        return 0.0
    return float(np.corrcoef(predictions, gold)[0, 1])


def spearman(predictions: np.ndarray, gold: np.ndarray) -> float:
    """Correlation of the ranks; see `pearson`."""
    return pearson(rankdata(predictions), rankdata(gold))


def correlations(predictions: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Both correlations, by their names in GLUE: `pearson` and `spearmanr`."""
    return {
        "pearson": pearson(predictions, gold),
        "spearmanr": spearman(predictions, gold),
    }


def sts_cosines(u: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    """Cosines (N,) of pairs (N, D), raw, centred and whitened.

    Mean and whitening come from all 2 N vectors together and see no gold score. Centring alone lifts a random encoder
    by ten points and more, so no comparison is honest without it.
    """
    u = np.asarray(u, dtype=np.float64)
    v = np.asarray(v, dtype=np.float64)
    both = np.concatenate([u, v])
    forms = {
        "raw": both,
        "centred": centre(both),
        "whitened": whiten(both),
    }
    cosines = {}
    for name, vectors in forms.items():
        first, second = np.split(vectors, 2)
        # Rounded because the cosines of a collapsed encoder differ by rounding errors alone, which have ranks too.
        cosines[name] = cosine(first, second).round(9)
    return cosines


def sts_scores(
    u: np.ndarray,
    v: np.ndarray,
    gold: np.ndarray,
) -> dict[str, float]:
    """Correlation of cosine and gold similarity over all pairs of a set.

    Args:
        u: (N, D) vectors of the first texts.
        v: (N, D) vectors of the second texts.
        gold: (N,) similarities.

    Returns:
        Percent between -100 and 100: `raw_spearmanr`, `raw_pearson`, and the same for `centred_` and `whitened_`.
    """
    gold = np.asarray(gold)
    scores = {}
    for form, cosines in sts_cosines(u, v).items():
        for name, value in correlations(cosines, gold).items():
            scores[f"{form}_{name}"] = 100 * value
    return scores
