"""What an encoder is worth: vectors to predictions, predictions to scores with their uncertainty.

Arrays in and arrays or numbers out, with no state and no files; `features` makes the vectors. A function that predicts
never gets to see the test labels, and a test row's prediction does not depend on the other test rows.

Shapes: N rows to learn from or to score, M test rows, D features, S and T tokens, Q queries, C candidates.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from text_jepa.embeddings import centre, cosine, unit_rows


def pair_features(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """[u, v, |u - v|, u * v], the features of a pair in InferSent and SentEval (Conneau et al., 2017 and 2018).

    Args:
        u, v: (N, D).

    Returns:
        (N, 4 D).
    """
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def is_regression(targets: np.ndarray) -> bool:
    """Floating-point targets are real values; integers, booleans and strings are classes."""
    return np.issubdtype(np.asarray(targets).dtype, np.floating)


def _check(targets: np.ndarray, *features: np.ndarray) -> None:
    """One clear line instead of a solver's."""
    if not all(np.isfinite(x).all() for x in features):
        raise ValueError("the features are not finite")
    if is_regression(targets):
        if not np.isfinite(targets).all():
            raise ValueError("the training targets are not finite")
    elif (np.unique(targets, return_counts=True)[1] >= 2).sum() < 2:
        raise ValueError("the training labels need at least two classes of two rows each")


def fit_linear(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    seed: int = 0,
    max_rows: int = 10_000,
    scoring: str | None = None,
) -> np.ndarray:
    """Predictions of a linear model on scaled frozen features.

    Logistic regression for classes, ridge regression for real values (`is_regression`). The scaling and the penalty
    are chosen on the training part alone, the penalty by threefold cross-validation, stratified for classes.

    Args:
        train_x, test_x: (N, D) and (M, D) features.
        train_y: (N,) labels of any type, or float targets.
        seed: Of the rows, the folds and the solver.
        max_rows: Of more training rows than this, so many are drawn.
        scoring: What cross-validation maximises, by scikit-learn's name; accuracy or R² by default.

    Returns:
        (M,) predictions of the type of `train_y`.

    Raises:
        ValueError: Features or targets are not finite, or there are not two classes of two rows.
    """
    train_x, train_y, test_x = map(np.asarray, (train_x, train_y, test_x))
    if len(train_y) > max_rows:
        rows = np.random.default_rng(seed).choice(len(train_y), max_rows, replace=False)
        train_x, train_y = train_x[rows], train_y[rows]
    _check(train_y, train_x, test_x)
    if is_regression(train_y):
        model, grid = Ridge(), {"ridge__alpha": np.logspace(0, 5, 6)}
        folds = KFold(3, shuffle=True, random_state=seed)
    else:
        model = LogisticRegression(max_iter=300, random_state=seed)
        grid = {"logisticregression__C": np.logspace(-4, 0, 5)}
        folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    search = GridSearchCV(make_pipeline(StandardScaler(), model), grid, cv=folds, scoring=scoring)
    with warnings.catch_warnings():
        # A weak penalty that has not converged is one more candidate, and a class may be rarer than three rows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return search.fit(train_x, train_y).predict(test_x)


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
        train_x, test_x: (N, D) and (M, D) features.
        train_y: (N,) labels of any type, or float targets.
        k: Neighbours; all rows if there are fewer.
        temperature: 0.07 in both sources; infinity counts every neighbour the same.
        block: Test rows at a time; memory is block x N.

    Returns:
        (M,) predictions of the type of `train_y`; of equal votes the first class in sorted order.
    """
    train_x, train_y, test_x = map(np.asarray, (train_x, train_y, test_x))
    if not (np.isfinite(train_x).all() and np.isfinite(test_x).all()):
        raise ValueError("the features are not finite")
    k = min(k, len(train_y))
    keys, queries = unit_rows(centre(train_x)), unit_rows(centre(test_x, train_x))
    if is_regression(train_y):
        values = train_y[:, None]
    else:
        classes, ids = np.unique(train_y, return_inverse=True)
        values = np.eye(len(classes))[ids]
    votes = []
    for start in range(0, len(queries), block):
        cosine = queries[start : start + block] @ keys.T
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / temperature)
        weight /= weight.sum(axis=1, keepdims=True)
        votes.append(np.einsum("mk,mkc->mc", weight, values[nearest]))
    votes = np.concatenate(votes)
    return votes[:, 0] if is_regression(train_y) else classes[votes.argmax(axis=1)]


def attentive_predict(
    train_states: np.ndarray,
    train_mask: np.ndarray,
    train_y: np.ndarray,
    test_states: np.ndarray,
    test_mask: np.ndarray,
    seed: int = 0,
    epochs: int = 50,
    patience: int = 5,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
) -> np.ndarray:
    """Predictions from frozen token states by one learned query, a softmax over the tokens and a linear layer.

    Query and layer start at zero, so the probe starts as mean pooling. AdamW trains it on nine tenths of the training
    rows and keeps the epoch with the lowest loss on the last tenth. States are scaled by the training tokens'
    statistics. The attentive probe of CAE (Chen et al., 2022) and V-JEPA (Bardes et al., 2024) at its smallest: one
    head, no projections.

    Args:
        train_states, test_states: (N, S, D) and (M, T, D) token states.
        train_mask, test_mask: (N, S) and (M, T), 1 for a token; a row without any is pooled to zeros.
        train_y: (N,) labels of any type, or float targets.
        seed: Of the held-out tenth and the batches; the global generators are left alone.
        epochs: At most.
        patience: Epochs without a lower loss before it stops.
        learning_rate: Of AdamW.
        batch_size: Rows per step.

    Returns:
        (M,) predictions of the type of `train_y`.
    """
    train_states, test_states = torch.as_tensor(train_states), torch.as_tensor(test_states)
    device = train_states.device
    train_mask, test_mask = (torch.as_tensor(mask).to(device).bool() for mask in (train_mask, test_mask))
    train_y = np.asarray(train_y)
    _check(train_y)
    real = is_regression(train_y)
    if real:
        offset, scale = train_y.mean(), train_y.std() or 1.0
        targets, outputs = torch.tensor((train_y - offset) / scale, dtype=torch.float32, device=device), 1
    else:
        classes, ids = np.unique(train_y, return_inverse=True)
        targets, outputs = torch.tensor(ids, device=device), len(classes)

    tokens = train_states[train_mask].float()
    mean, deviation = tokens.mean(0), tokens.std(0).clamp_min(1e-6)
    width = tokens.shape[1]
    shapes = ((width,), (width, outputs), (outputs,))
    query, weight, bias = parameters = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]

    def forward(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = (states.float() - mean) / deviation
        logits = (x @ query / width**0.5).masked_fill(~mask, torch.finfo(torch.float32).min)
        return ((logits.softmax(1) * mask)[:, :, None] * x).sum(1) @ weight + bias

    def loss(rows: torch.Tensor) -> torch.Tensor:
        output = forward(train_states[rows], train_mask[rows])
        return F.mse_loss(output[:, 0], targets[rows]) if real else F.cross_entropy(output, targets[rows])

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train_y), generator=generator).to(device)
    held_out, rows = order.split([max(1, len(order) // 10), len(order) - max(1, len(order) // 10)])
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    best, best_epoch, kept = float("inf"), 0, None
    for epoch in range(epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator).to(device)].split(batch_size):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
        with torch.no_grad():
            score = sum(float(loss(batch)) * len(batch) for batch in held_out.split(256)) / len(held_out)
        if not np.isfinite(score):
            raise ValueError("the features are not finite")
        if score < best:
            best, best_epoch, kept = score, epoch, [parameter.detach().clone() for parameter in parameters]
        elif epoch - best_epoch >= patience:
            break

    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
        parts = zip(test_states.split(256), test_mask.split(256), strict=True)
        output = torch.cat([forward(*part) for part in parts]).cpu().numpy()
    if not np.isfinite(output).all():
        raise ValueError("the features are not finite")
    return output[:, 0] * scale + offset if real else classes[output.argmax(axis=1)]


def whiten(x: np.ndarray) -> np.ndarray:
    """Principal coordinates scaled to unit variance (Su et al., 2021, "Whitening sentence representations").

    Args:
        x: (N, D). With N of at most D every row ends up equally far from every other: use many more rows.

    Returns:
        (N, D) float64 with the identity as covariance; zeros along directions in which the rows do not vary.
    """
    x = centre(np.asarray(x, dtype=np.float64))
    variance, directions = np.linalg.eigh(x.T @ x / len(x))
    real = variance > variance[-1] * max(x.shape) * np.finfo(np.float64).eps
    return x @ directions * np.where(real, 1 / np.sqrt(np.where(real, variance, 1)), 0)


def pearson(predictions: np.ndarray, gold: np.ndarray) -> float:
    """Correlation of (N,) and (N,) between -1 and 1; 0 where either side is constant, for it explains nothing."""
    if np.ptp(predictions) == 0 or np.ptp(gold) == 0:
        return 0.0
    return float(np.corrcoef(predictions, gold)[0, 1])


def spearman(predictions: np.ndarray, gold: np.ndarray) -> float:
    """Correlation of the ranks; see `pearson`."""
    return pearson(rankdata(predictions), rankdata(gold))


def correlations(predictions: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Both, by their names in GLUE: `pearson` and `spearmanr`."""
    return {"pearson": pearson(predictions, gold), "spearmanr": spearman(predictions, gold)}


def sts_cosines(u: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    """Cosines (N,) of pairs (N, D), raw, centred and whitened.

    Mean and whitening come from all 2 N vectors together and see no gold score. Centring alone lifts a random encoder
    by ten points and more, so no comparison is honest without it.
    """
    u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    both = np.concatenate([u, v])
    forms = {"raw": both, "centred": centre(both), "whitened": whiten(both)}
    # Rounded because the cosines of a collapsed encoder differ by rounding errors alone, which have ranks too.
    return {name: cosine(*np.split(x, 2)).round(9) for name, x in forms.items()}


def sts_scores(u: np.ndarray, v: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Correlation of cosine and gold similarity over all pairs of a set.

    Args:
        u, v: (N, D) vectors of the first and the second texts.
        gold: (N,) similarities.

    Returns:
        Percent between -100 and 100: `raw_spearmanr`, `raw_pearson`, and the same for `centred_` and `whitened_`.
    """
    return {
        f"{form}_{name}": 100 * value
        for form, cosines in sts_cosines(u, v).items()
        for name, value in correlations(cosines, np.asarray(gold)).items()
    }
