"""Encoders made of encoders, without training: weights of words counted anew, and a point between two encoders.

Shapes: V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModel, PreTrainedModel

from text_jepa.cli import UsageError
from text_jepa.data.word_weights import count_words, load_word_weights, save_word_weights, word_weights
from text_jepa.embeddings import TRANSFORMER_MODULE, WORD_WEIGHTS_MODULE, Encoder, read_modules
from text_jepa.share.export import copy_encoder_files, staged, write_modules, write_pooling


# With fewer texts than these half of the log-frequencies stay those of before.
TEXTS_TO_TRUST = 2_000

# Shares of the way from start to end that are tried: 0 is the start, 1 the end.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Recount(NamedTuple):
    """What `recount_word_weights` has done.

    Attributes:
        texts: Texts that were counted.
        blended: Whether half of the log-frequencies are those of before.
    """

    texts: int
    blended: bool


def recount_word_weights(encoder: Encoder, output_dir: str | Path, texts: Iterable[str]) -> Recount:
    """Writes a copy of an encoder whose weights of words are counted on other texts; nothing else changes.

    It needs no training. An encoder without weights of words, of any architecture and origin, has them then: the
    module `WordWeights` comes between its encoder and its pooling. Below `TEXTS_TO_TRUST` texts the weights are the
    mean of the old and the new ones, if there are old ones.

    Args:
        encoder: The encoder, opened from the folder that is its name.
        output_dir: New folder.
        texts: Documents, none of them blank.

    Returns:
        How many texts were counted, and whether the old weights went in.

    Raises:
        UsageError: It does not pool by the mean, or there is no text. Nothing is written then.
    """
    if encoder.pooling != "mean":
        raise UsageError(f"{encoder.name}: a text's vector is the state of its first token, which no word weighs")
    frequency = count_words(texts, encoder.tokenizer)
    if frequency.documents == 0:
        raise UsageError("--texts: every text is blank; name files with text")
    source = Path(encoder.name)
    weights = word_weights(frequency, encoder.tokenizer)
    old_weights = load_word_weights(source)
    blended = old_weights is not None and frequency.documents < TEXTS_TO_TRUST
    if blended:
        weights = (old_weights + weights) / 2  # logarithms, both of them
    with staged(output_dir) as staging:
        copy_encoder_files(source, staging)
        save_word_weights(staging, weights, encoder.tokenizer)
        modules = read_modules(source)
        if not modules:
            pooling = write_pooling(staging, "2_Pooling", encoder.model.config.hidden_size, "mean")
            modules = [TRANSFORMER_MODULE, pooling]
        others = [module for module in modules if module[0] != WORD_WEIGHTS_MODULE[0]]
        write_modules(staging, [others[0], WORD_WEIGHTS_MODULE, *others[1:]])
    return Recount(frequency.documents, blended)


def interpolate(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Weights on the straight line between two models of one shape (LM-Cocktail, arXiv 2311.13534).

    Args:
        start: Weights by name, such as `state_dict()` gives them.
        end: Weights of the same names and shapes.
        share: Of the way from start to end: 0 gives the start, 1 the end.

    Returns:
        `start + share * (end - start)` of every floating tensor, computed in float32, in the type of `end`; of other
        tensors those of `end`.

    Raises:
        UsageError: Names or shapes differ.
    """
    _check_same_shape(start, end)
    merged = {}
    for name, last in end.items():
        if last.is_floating_point():
            merged[name] = torch.lerp(start[name].float(), last.float(), share).to(last.dtype)
        else:
            merged[name] = last
    return merged


def _check_same_shape(start, end):
    unshared = sorted(set(start) ^ set(end))
    if unshared:
        owner = "start" if unshared[0] in start else "end"
        raise UsageError(f"these encoders differ: only the {owner} has {unshared[0]}; merge two of one architecture")
    for name, last in end.items():
        first = start[name]
        if first.shape != last.shape:
            shapes = f"{tuple(first.shape)} at the start and {tuple(last.shape)} at the end"
            raise UsageError(f"these encoders differ: {name} is {shapes}; merge two of one shape")


def choose_share(
    start: Mapping[str, torch.Tensor],
    end: Mapping[str, torch.Tensor],
    score: Callable[[Mapping[str, torch.Tensor]], float],
    shares: Sequence[float] = SHARES,
) -> tuple[float, dict[float, float]]:
    """Which share of the way from start to end scores best.

    Args:
        start: Weights by name.
        end: Weights of the same names and shapes.
        score: A measure of weights; more is better.
        shares: Shares to try. With 0 and 1 among them the outcome scores no worse than start and end.

    Returns:
        The best share, of equal ones the largest, and the score of each.

    Raises:
        UsageError: Names or shapes differ.
    """
    scores = {share: score(interpolate(start, end, share)) for share in shares}
    best = max(shares, key=lambda share: (scores[share], share))
    return best, scores


def check_mergeable(start: Encoder, end: Encoder) -> None:
    """Sees to it that two encoders have one architecture and one vocabulary.

    Raises:
        UsageError: They have not.
    """
    if start.model.config.model_type != end.model.config.model_type:
        kinds = f"{start.model.config.model_type} and {end.model.config.model_type}"
        raise UsageError(f"{start.name} and {end.name}: of two architectures, {kinds}; merge two of one")
    if start.tokenizer.get_vocab() != end.tokenizer.get_vocab():
        raise UsageError(f"{start.name} and {end.name}: of two vocabularies; merge two with one tokenizer")


def weights_of_vectors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights by name, without those of a pooler, which serves heads of stock models and which some folders lack."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("pooler.")}


def save_merged(end: Encoder, weights: Mapping[str, torch.Tensor], output_dir: str | Path) -> None:
    """Writes a copy of an encoder with other weights; tokenizer, weights of words and modules stay.

    ONNX files are of the old weights, and are not copied.

    Args:
        end: The encoder, opened from the folder that is its name.
        weights: What `interpolate` gives of `weights_of_vectors`.
        output_dir: New folder.
    """
    _, report = AutoModel.from_pretrained(end.name, trust_remote_code=False, output_loading_info=True)
    state = {name: value for name, value in end.model.state_dict().items() if name not in report["missing_keys"]}
    with staged(output_dir) as staging:
        copy_encoder_files(Path(end.name), staging, with_model=False)
        end.model.save_pretrained(staging, state_dict=state | dict(weights))
