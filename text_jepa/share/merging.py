"""Makes encoders from other encoders without training: new word weights, and interpolation of two encoders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel

from text_jepa.cli import UsageError
from text_jepa.data.word_weights import count_words, save_word_weights, word_weights
from text_jepa.encoders.embeddings import TRANSFORMER_MODULE, WORD_WEIGHTS_MODULE, Encoder
from text_jepa.encoders.sentence_head import read_modules
from text_jepa.share.export import copy_encoder_files, staged, write_modules, write_pooling


# With fewer texts than this, new word weights are averaged with the old ones.
TEXTS_TO_TRUST = 2_000

# Interpolation shares to try: 0 is the start, 1 is the end.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Recount(NamedTuple):
    """Result of `recount_word_weights`.

    Attributes:
        texts: Number of texts that were counted.
        blended: Whether the weights are the mean of the old and the new weights.
    """

    texts: int
    blended: bool


def recount_word_weights(encoder: Encoder, output_dir: str | Path, texts: Iterable[str]) -> Recount:
    """Writes a copy of an encoder with word weights from other texts; nothing else changes.

    ONNX files contain the old word weights and are not copied.

    An encoder without word weights, of any architecture and origin, gets the module `WordWeights` between its encoder
    and its pooling. With fewer than `TEXTS_TO_TRUST` texts, the weights are the mean of the old weights, if there are
    any, and the new weights.

    Args:
        encoder: The encoder. Its name is the folder that it was opened from.
        output_dir: New folder.
        texts: Documents, none of them blank.

    Returns:
        The number of texts, and whether the weights are a mean with the old ones.

    Raises:
        UsageError: The encoder does not pool by the mean, or there is no text. Nothing is written.
    """
    if encoder.pooling != "mean":
        raise UsageError(
            f"{encoder.name} pools by '{encoder.pooling}', and word weights are those of a mean; name an encoder with "
            "mean pooling"
        )
    source = Path(encoder.name)
    frequency = count_words(texts, encoder.tokenizer)
    if frequency.documents == 0:
        raise UsageError("--texts: every text is blank; name files with text")
    weights = word_weights(frequency, encoder.tokenizer)
    blended = encoder.word_weights is not None and frequency.documents < TEXTS_TO_TRUST
    if blended:
        weights = (encoder.word_weights + weights) / 2  # both are logarithms
    with staged(output_dir) as staging:
        copy_encoder_files(source, staging)
        save_word_weights(staging, weights, encoder.tokenizer)
        modules = read_modules(source)
        if not modules:
            hidden_size = encoder.model.config.hidden_size
            pooling = write_pooling(staging, "2_Pooling", hidden_size, "mean")
            modules = [TRANSFORMER_MODULE, pooling]
        subfolder, _ = WORD_WEIGHTS_MODULE
        modules = [module for module in modules if module[0] != subfolder]
        modules.insert(1, WORD_WEIGHTS_MODULE)
        write_modules(staging, modules)
    return Recount(frequency.documents, blended)


def interpolate(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Interpolates linearly between the weights of two models (LM-Cocktail, arXiv 2311.13534).

    Args:
        start: Weights by name, as in `state_dict()`.
        end: Weights with the same names and shapes.
        share: 0 gives the start, 1 gives the end.

    Returns:
        `start + share * (end - start)` for every floating-point tensor, computed in float32, in the dtype of `end`.
        Other tensors are those of `end`.

    Raises:
        UsageError: Names or shapes differ.
    """
    _check_same_shape(start, end)
    merged = {}
    for name, last in end.items():
        if last.is_floating_point():
            first = start[name]
            middle = torch.lerp(first.float(), last.float(), share)
            merged[name] = middle.to(last.dtype)
        else:
            merged[name] = last
    return merged


def _check_same_shape(start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor]) -> None:
    unshared = sorted(set(start) ^ set(end))
    if unshared:
        name = unshared[0]
        owner = "start" if name in start else "end"
        raise UsageError(f"these encoders differ: only the {owner} has {name}; merge two of one architecture")
    for name, last in end.items():
        first = start[name]
        if first.shape != last.shape:
            shapes = f"{tuple(first.shape)} at the start and {tuple(last.shape)} at the end"
            raise UsageError(f"these encoders differ: {name} is {shapes}; merge two of one shape")


def choose_share(
    start: Mapping[str, torch.Tensor],
    end: Mapping[str, torch.Tensor],
    score: Callable[[Mapping[str, torch.Tensor]], np.ndarray],
    shares: Sequence[float] = SHARES,
    near_start: bool = True,
) -> tuple[float, dict[float, float]]:
    """Chooses the interpolation share with the best score, or a smaller one that is about as good.

    Interpolation towards the end loses knowledge of the start. Therefore, the smallest share is chosen whose score is
    within one standard error of the best (Breiman et al., Classification and Regression Trees, 1984).

    Args:
        start: Weights by name.
        end: Weights with the same names and shapes.
        score: Scores weights on the same N examples each time: an array (N,), higher is better.
        shares: Shares to try. If they include 0 and 1, the result is no worse than start and end, except for the
            standard error.
        near_start: Whether to prefer small shares. `False` chooses the best share, and the largest of equal ones: for
            a start with random weights, or if a similarity loss preserves the knowledge of the encoder.

    Returns:
        The chosen share, and the mean score of each share.

    Raises:
        UsageError: Names or shapes differ.
    """
    scores = {share: score(interpolate(start, end, share)) for share in shares}
    means = {share: float(scores[share].mean()) for share in shares}
    best = max(shares, key=lambda share: (means[share], share))
    if not near_start:
        return best, means
    for share in sorted(shares):
        shortfall = scores[best] - scores[share]
        standard_error = shortfall.std() / np.sqrt(len(shortfall))
        if shortfall.mean() <= standard_error:
            return share, means
    return best, means


def check_mergeable(start: Encoder, end: Encoder) -> None:
    """Checks that two encoders have the same architecture and vocabulary.

    Raises:
        UsageError: The encoders differ.
    """
    names = f"{start.name} and {end.name}"
    first_type = start.model.config.model_type
    last_type = end.model.config.model_type
    if first_type != last_type:
        raise UsageError(f"{names} have two architectures, {first_type} and {last_type}; merge two of one")
    if start.tokenizer.get_vocab() != end.tokenizer.get_vocab():
        raise UsageError(f"{names} have two vocabularies; merge two with one tokenizer")


def weights_of_vectors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights by name, except those of the pooler, which vectors of texts do not depend on and some folders lack."""
    weights = model.state_dict()
    return {name: value for name, value in weights.items() if not name.startswith("pooler.")}


def save_merged(end: Encoder, weights: Mapping[str, torch.Tensor], output_dir: str | Path) -> None:
    """Writes a copy of an encoder with other weights; tokenizer, word weights and modules are unchanged.

    ONNX files contain the old weights and are not copied.

    Args:
        end: The encoder. Its name is the folder that it was opened from.
        weights: Result of `interpolate` for weights from `weights_of_vectors`.
        output_dir: New folder.
    """
    # A pooler that is missing in the folder is random in the model, and is not saved.
    _, report = AutoModel.from_pretrained(end.name, trust_remote_code=False, output_loading_info=True)
    state = {}
    for name, value in end.model.state_dict().items():
        if name not in report["missing_keys"]:
            state[name] = value
    state.update(weights)
    with staged(output_dir) as staging:
        copy_encoder_files(Path(end.name), staging, with_model=False)
        end.model.save_pretrained(staging, state_dict=state)
