"""What an encoder is worth: texts to vectors, vectors to scores."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_text_jepa import mean_pool


@torch.no_grad()
def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 128,
    batch_size: int = 64,
) -> np.ndarray:
    """Mean-pooled last hidden states.

    Args:
        model: Any encoder with `last_hidden_state`; left in eval mode.
        tokenizer: Its tokenizer.
        texts: N texts.
        max_length: Longest text in tokens; the rest is cut off.
        batch_size: Texts per forward pass, of about equal length.

    Returns:
        (N, D) float32.
    """
    model.eval()
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_token_type_ids=False)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for start in tqdm(range(0, len(texts), batch_size), desc="Embedding", disable=None, leave=False):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt").to(model.device)
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        vectors[rows] = mean_pool(states, batch["attention_mask"]).float().cpu().numpy()
    return vectors


def nearest_texts(vectors: np.ndarray, queries: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other row of each query by cosine of the centred vectors.

    Args:
        vectors: (N, D).
        queries: Q row numbers.

    Returns:
        Rows (Q,) and cosines (Q,).
    """
    unit = vectors - vectors.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(min=1e-12)
    cosine = unit[list(queries)] @ unit.T
    cosine[np.arange(len(queries)), list(queries)] = -np.inf
    best = cosine.argmax(axis=1)
    return best, cosine[np.arange(len(queries)), best]


def linear_probe(train_x, train_y, test_x, test_y, seed: int = 0) -> float:
    """Accuracy in percent of a logistic regression on scaled features.

    The regularisation is chosen by cross-validation on the training part alone.

    Args:
        train_x, test_x: (N, D) features.
        train_y, test_y: (N,) labels.
        seed: Of the solver and the folds.
    """
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, random_state=seed)),
        {"logisticregression__C": np.logspace(-4, 0, 5)},
        cv=StratifiedKFold(3, shuffle=True, random_state=seed),
    )
    return 100 * search.fit(train_x, train_y).score(test_x, test_y)
