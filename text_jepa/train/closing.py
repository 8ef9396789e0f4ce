"""The end of a run: its weights are merged with those it started from, and judged on held-out documents.

Neither needs labels. Documents that nothing was trained on are dealt out in two: on one half the share of the way from
start to end is chosen, on the other half the outcome is judged beside the start and beside word counting.
"""

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError
from text_jepa.embeddings import Encoder, embed_texts
from text_jepa.probe.documents import DocumentScores, judge_documents, score_on_documents, verdict
from text_jepa.share.merging import SHARES, choose_share, interpolate


# Enough passages to choose a share on, in seconds.
_PASSAGES_TO_CHOOSE_ON = 1_000
VERDICT_FILE = "verdict.json"


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of the weights of a model by name, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def choose_share_of_run(
    encoder: Encoder, start: Mapping[str, torch.Tensor], documents: Sequence[str], from_random: bool
) -> tuple[float, dict[float, float]]:
    """How far from start to end the weights of a run serve best.

    Args:
        encoder: The encoder as it is at the end of the run.
        start: The weights of its model at the start, by name.
        documents: Held-out texts.
        from_random: Whether the start is random weights, which are not worth exporting.

    Returns:
        The share, and the mean reciprocal rank in percent of each that was tried; 1 and nothing where the documents
        are too few to tell.
    """
    try:
        score = score_on_documents(encoder, documents, _PASSAGES_TO_CHOOSE_ON)
    except UsageError:
        return 1.0, {}
    shares = SHARES[1:] if from_random else SHARES
    return choose_share(start, weights_of(encoder.model), score, shares)


def whole_model(model: TextJepaForPreTraining) -> TextJepaForPreTraining:
    """The model with all of its weights on the first process, also where FSDP2 has left a shard on each.

    Every process has to call it. Of sharded weights the others get a model that is as it was.
    """
    if not isinstance(model, FSDPModule):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() > 0:
        return model
    whole = TextJepaForPreTraining(model.config)
    whole.load_state_dict(state)
    return whole.to(model.device).eval()


@contextmanager
def merged(model: PreTrainedModel, start: Mapping[str, torch.Tensor], share: float) -> Iterator[None]:
    """Inside the block the model has weights between its start and its own, see `interpolate`."""
    end = weights_of(model)
    model.load_state_dict(interpolate(start, end, share))
    try:
        yield
    finally:
        model.load_state_dict(end)


def judge_run(
    encoder: Encoder,
    start: Mapping[str, torch.Tensor],
    name_of_start: str,
    documents: Sequence[str],
    training_texts: Sequence[str],
) -> DocumentScores:
    """Scores the encoder of a run on held-out documents, beside its start and word counting.

    Args:
        encoder: The encoder that is exported.
        start: The weights of its model at the start, by name.
        name_of_start: What the start is called in the verdict.
        documents: Held-out texts.
        training_texts: Texts of the run, by which word counting is fitted.

    Returns:
        The scores; none of them where the documents are too few.
    """
    first = dataclasses.replace(encoder, model=copy.deepcopy(encoder.model))
    first.model.load_state_dict(start)
    systems = {"this encoder": partial(embed_texts, encoder), name_of_start: partial(embed_texts, first)}
    return judge_documents(systems, documents, training_texts, reference=name_of_start)


def write_verdict(folder: str | Path, scores: DocumentScores, share: float, shares: Mapping[float, float]) -> None:
    """Writes what was found as `verdict.json`, for programs."""
    content = {
        "verdict": verdict(scores),
        "share": share,
        "mean_reciprocal_rank_by_share": {f"{tried:g}": value for tried, value in shares.items()},
        "scores": [score._asdict() for score in scores.scores],
    }
    Path(folder, VERDICT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
