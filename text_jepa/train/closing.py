"""The end of a run: merges its weights with those of its start, compares, exports and publishes the encoder.

Neither merging nor comparing needs labels. On one half of the held-out documents the share of the way from start to
end is selected; on the other half the result is compared with the start, TF-IDF and BM25.
"""

import copy
import dataclasses
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError
from text_jepa.data.corpus import Corpus
from text_jepa.data.reading import read_rows
from text_jepa.encoders.embeddings import Encoder, embed_texts, encoder_inside, nearest_texts, with_head
from text_jepa.encoders.sentence_head import kept_head
from text_jepa.probe.documents import (
    HELD_OUT_DOCUMENTS,
    TRAINING_DOCUMENTS,
    DocumentScores,
    compare_on_documents,
    score_on_documents,
    shorter_vectors,
    summarize,
    variants_of,
)
from text_jepa.share.export import save_for_continuing
from text_jepa.share.hub import push_folder
from text_jepa.share.merging import SHARES, choose_share, interpolate
from text_jepa.share.model_card import describe_collapse_of_run, describe_run
from text_jepa.train.arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    default_training_values,
    values_of_arguments,
    write_arguments,
    write_changed_arguments,
)
from text_jepa.train.build import objective_of, set_dependent_defaults
from text_jepa.train.trainer import TextJepaTrainer


Weights = Mapping[str, torch.Tensor]

# Name of the start in cards and tables if the run does not start from an encoder.
RANDOM_WEIGHTS = "random weights"

COMPARISON_FILE = "verdict.json"

# Added to the comparison of a run whose share is 0.
_UNCHANGED = "Training did not help on other held-out documents, so the initial weights were exported."

# Held-out texts whose vectors have to be finite at the end of a run.
_TEXTS_TO_CHECK = 100

# Pairs of passages that the share is selected on: enough for it, in seconds.
_PASSAGES_TO_CHOOSE_ON = 1_000


# ---- the results of a run -------------------------------------------------------------------------------------------


def save_results(
    trainer: TextJepaTrainer,
    start: Weights,
    corpus: Corpus,
    arguments: Sequence,
) -> tuple[str, str | None]:
    """Writes the encoder, the complete model, the arguments, the curves and the cards into the output folder.

    The encoder has the weights between those of the start and the last ones that work best on held-out documents. The
    complete model, from which training can be continued, has the last ones.

    Args:
        trainer: The trainer at the end of the run.
        start: The weights of the exported encoder at the start of the run, by name.
        corpus: The raw documents.
        arguments: The model, data, objective and training arguments of the run.

    Returns:
        The comparison, in a sentence, and a warning if the run diverged, see `describe_divergence`.

    Raises:
        UsageError: The weights, or vectors of texts, are not finite; nothing is exported then.
    """
    model_args = arguments[0]
    output_dir = Path(trainer.args.output_dir)
    encoder = _exported_encoder(trainer, model_args)
    documents = first_texts(corpus, "validation", HELD_OUT_DOCUMENTS)
    check_finite(trainer.model, encoder, documents)
    choice = _choose_exported_share(trainer, encoder, start, documents[0::2], model_args)
    divergence = describe_divergence(trainer, choice.share)

    card_info = trainer.card_info
    shorter = []
    with merged(encoder.model, start, choice.share):
        try:
            training_texts = first_texts(corpus, "train", TRAINING_DOCUMENTS)
            scores = compare_with_start(
                encoder,
                start,
                describe_start(model_args),
                documents[1::2],
                training_texts,
            )
            sentence = _in_one_sentence(scores, choice.share)
            shorter = shorter_vectors(scores)
            collapse = describe_collapse_of_run(describe_run(trainer))
            write_comparison(output_dir, scores, choice.share, choice.scores, collapse, divergence)
        except UsageError as error:  # an encoder without a comparison is still an encoder
            sentence = f"There is no comparison on held-out documents: {error}."
        comparison = {
            "comparison": f"{divergence} {sentence}" if divergence else sentence,
            "share": choice.share,
            "shares": list(choice.scores.items()),
            "shorter": shorter,
        }
        trainer.card_info = card_info | comparison
        trainer.export(output_dir)
        show_neighbours(encoder, documents)

    # The comparison is not one of the complete model, which has other weights.
    trainer.card_info = card_info
    complete_dir = output_dir / "pretraining"
    save_for_continuing(trainer.model, trainer.processing_class, complete_dir)
    trainer.write_card(complete_dir, None)
    save_arguments(output_dir, arguments, trainer.model.config)
    return sentence, divergence


class ExportedShare(NamedTuple):
    """The exported share of the way from the initial to the final weights.

    Args:
        share: The share.
        scores: Score of each share that was tried; empty if there was no choice.
    """

    share: float
    scores: dict[float, float]


def _choose_exported_share(
    trainer: TextJepaTrainer,
    encoder: Encoder,
    start: Weights,
    documents: Sequence[str],
    model_args: ModelArguments,
) -> ExportedShare:
    """Chooses on held-out documents, unless the run exports its final weights."""
    config = trainer.model.config
    if not merges_weights(model_args, config):
        return ExportedShare(1.0, {})
    from_random = trainer.card_info["start"] == RANDOM_WEIGHTS
    # What the start knew fades on the way to the end, unless the similarity loss keeps it.
    near_start = not from_random and config.similarity_loss_weight == 0
    share, scores = choose_share_of_run(encoder, start, documents, from_random, near_start)
    return ExportedShare(share, scores)


def _in_one_sentence(scores: DocumentScores, share: float) -> str:
    """The comparison of a run in words, and that its weights are the initial ones, if they are."""
    sentence = summarize(scores)
    return f"{sentence} {_UNCHANGED}" if share == 0 else sentence


def check_finite(
    model: TextJepaForPreTraining,
    encoder: Encoder,
    documents: Sequence[str],
) -> None:
    """Raises UsageError if a run ends with an encoder that is of no use to anybody.

    Args:
        model: The model at the end of the run.
        encoder: The encoder in it.
        documents: Held-out texts.
    """
    broken = next((name for name, value in model.named_parameters() if not value.isfinite().all()), None)
    if broken is None:
        vectors = embed_texts(encoder, documents[:_TEXTS_TO_CHECK])
        if np.isfinite(vectors).all():
            return
        broken = "the vectors of held-out texts"
    raise UsageError(
        f"the run diverged, and no encoder was written (not finite: {broken}); lower --learning_rate or lengthen "
        "--warmup_steps, and start again in another folder"
    )


def describe_divergence(trainer: TextJepaTrainer, share: float) -> str | None:
    """Says that the held-out loss of the final weights is not a number; `None` if it is one.

    Args:
        trainer: The trainer at the end of the run.
        share: The exported share of the way from the initial to the final weights.
    """
    losses = [
        record["eval_loss"]
        for record in trainer.state.log_history
        if "eval_loss" in record and record["step"] == trainer.weights_step
    ]
    if not losses or math.isfinite(float(losses[-1])):
        return None
    remedy = "lower --learning_rate or lengthen --warmup_steps"
    if share == 0:
        return f"The run diverged: its held-out loss is {losses[-1]}; {remedy}."
    return f"The run diverged: the held-out loss of its weights is {losses[-1]}, so do not use this encoder; {remedy}."


def _exported_encoder(trainer: TextJepaTrainer, model_args: ModelArguments) -> Encoder:
    """The encoder that the run exports, with the modules of the sentence encoder that it started from, if any."""
    encoder = encoder_inside(
        trainer.model,
        trainer.processing_class,
        trainer.card_info["max_length"],
        model_args.export_encoder,
    )
    head = kept_head(trainer.card_info)
    return encoder if head is None else with_head(encoder, head)


def save_arguments(folder: str | Path, arguments: Sequence, config: TextJepaConfig) -> None:
    """Writes `arguments.yaml`, with which the run can be repeated, and `changed.yaml`, what differs from defaults.

    Args:
        folder: The output folder.
        arguments: The model, data, objective and training arguments of the run.
        config: The configuration of its model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_arguments(folder / "arguments.yaml", *arguments)
    write_changed_arguments(folder / "changed.yaml", arguments, defaults_of(arguments, config))


def defaults_of(arguments: Sequence, config: TextJepaConfig) -> dict[str, Any]:
    """The default values of all arguments, by name, for a run of the same objective, start and encoder.

    Args:
        arguments: The model, data, objective and training arguments of the run.
        config: The configuration of its model: some defaults depend on the width of the encoder.
    """
    model_args, _, objective_args, _ = arguments
    data_args = DataArguments()
    set_dependent_defaults(data_args, objective_args)
    objective = objective_of(model_args, ObjectiveArguments())
    fields = {**vars(objective), "mask_token_id": config.mask_token_id}  # the tokenizer's, no argument
    default_config = TextJepaConfig(text_config=config.text_config.to_dict(), **fields)
    defaults = values_of_arguments([ModelArguments(), data_args])
    defaults |= {name: getattr(default_config, name) for name in vars(objective)}
    return defaults | default_training_values()


def first_texts(corpus: Corpus, split: str, count: int) -> list[str]:
    """The texts of the first `count` documents of a split of the corpus, without empty ones."""
    documents = corpus.splits[split]
    if hasattr(documents, "__len__"):
        count = min(count, len(documents))
    rows = read_rows(documents.take(count), corpus.sources[split])
    texts = [row["text"] for row in rows]
    return [text for text in texts if text and text.strip()]


def show_neighbours(
    encoder: Encoder,
    documents: Sequence[str],
    queries: int = 5,
) -> None:
    """Prints a few held-out documents, and for each the nearest of all others."""
    count = min(queries, len(documents))
    rows = [int(number * len(documents) / queries) for number in range(count)]
    vectors = embed_texts(encoder, documents)
    neighbours, cosines = nearest_texts(vectors, rows)
    print("\nNearest held-out texts (centred cosine of their vectors):")
    for row, neighbour, cosine in zip(rows, neighbours, cosines, strict=True):
        print(f"  query         {_in_one_line(documents[row])}")
        print(f"  {cosine:.2f} nearest  {_in_one_line(documents[neighbour])}\n")


def _in_one_line(text: str) -> str:
    """The first 100 characters of a text, without line breaks."""
    words = text[:200].split()
    return " ".join(words)[:100]


def publish(trainer: TextJepaTrainer) -> None:
    """Uploads the output folder.

    Raises:
        UsageError: It could not be uploaded; it stays where it is.
    """
    output_dir = trainer.args.output_dir
    name = trainer.hub_model_id
    try:
        url = push_folder(output_dir, name, revision=trainer.args.hub_revision)
    except UsageError as error:
        command = shlex.join(["text-jepa", "export", "push", output_dir, name])
        raise UsageError(f"the encoder is in {output_dir}, but {error}; `{command}` tries again") from error
    print(f"It is published: {url}")


# ---- merging --------------------------------------------------------------------------------------------------------


def merges_weights(model_args: ModelArguments, config: TextJepaConfig) -> bool:
    """Whether to merge the weights of the start and the end: by default, if a term of the loss is on texts."""
    if model_args.merge is not None:
        return model_args.merge
    return config.document_loss_weight > 0 or config.sentence_loss_weight > 0


def choose_share_of_run(
    encoder: Encoder,
    start: Weights,
    documents: Sequence[str],
    from_random: bool,
    near_start: bool,
) -> tuple[float, dict[float, float]]:
    """Selects the share of the way from the start to the end of a run at which its weights work best.

    Args:
        encoder: The encoder at the end of the run.
        start: The weights of its model at the start, by name.
        documents: Held-out texts.
        from_random: Whether the start is random weights, which are not worth exporting.
        near_start: Whether the share nearest to the start is wanted among those that are about as good as the best.

    Returns:
        The share, and the mean reciprocal rank in percent by share tried; 1.0 and an empty dictionary if there are too
        few documents.
    """
    try:
        score = score_on_documents(encoder, documents, _PASSAGES_TO_CHOOSE_ON)
    except UsageError:
        return 1.0, {}
    shares = SHARES[1:] if from_random else SHARES
    return choose_share(start, weights_of(encoder.model), score, shares, near_start)


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of the weights of a model by name, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


@contextmanager
def merged(
    model: PreTrainedModel,
    start: Weights,
    share: float,
) -> Iterator[None]:
    """Interpolates the weights of the model between its start and its own, inside the block, see `interpolate`."""
    end = weights_of(model)
    model.load_state_dict(interpolate(start, end, share))
    try:
        yield
    finally:
        model.load_state_dict(end)


def whole_model(model: TextJepaForPreTraining) -> TextJepaForPreTraining:
    """Collects all weights on the first process if FSDP2 has sharded them; called by every process.

    Returns:
        On the first process a whole model; on the others, the sharded one.
    """
    if not isinstance(model, FSDPModule):
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if dist.get_rank() > 0:
        return model
    whole = TextJepaForPreTraining(model.config)
    whole.load_state_dict(state)
    return whole.to(model.device).eval()


# ---- comparison -----------------------------------------------------------------------------------------------------


def describe_start(model_args: ModelArguments) -> str:
    """The name of the start of the run in the comparison."""
    if model_args.model_name_or_path is None or model_args.init == "from_config":
        return RANDOM_WEIGHTS
    if model_args.init == "pretrained":
        return "before"
    return "the start of the run"


def compare_with_start(
    encoder: Encoder,
    start: Weights,
    name_of_start: str,
    documents: Sequence[str],
    training_texts: Sequence[str],
) -> DocumentScores:
    """Scores the encoder of a run, its start, TF-IDF and BM25 on held-out documents.

    Args:
        encoder: The encoder that is exported.
        start: The weights of its model at the start, by name.
        name_of_start: The name of the start, from `describe_start`.
        documents: Held-out texts.
        training_texts: Training texts of the run, on which TF-IDF and BM25 are fitted.

    Returns:
        The scores, of which there are none if the documents are too few.
    """
    first = dataclasses.replace(encoder, model=copy.deepcopy(encoder.model))
    first.model.load_state_dict(start)
    systems = {
        "this encoder": partial(embed_texts, encoder),
        name_of_start: partial(embed_texts, first),
    }
    before = name_of_start if name_of_start == "before" else None
    width = embed_texts(encoder, ["a"]).shape[1]
    return compare_on_documents(
        systems,
        documents,
        training_texts,
        reference=name_of_start,
        variants=variants_of("this encoder", before, width),
    )


def write_comparison(
    folder: str | Path,
    scores: DocumentScores,
    share: float,
    shares: Mapping[float, float],
    collapse: str | None = None,
    divergence: str | None = None,
) -> None:
    """Writes the comparison as `verdict.json`, to be read by programs.

    Args:
        folder: The folder of the run.
        scores: From `compare_with_start`.
        share: The share of the way from start to end that the weights have.
        shares: The mean reciprocal rank in percent by share tried.
        collapse: The warning of the collapse monitor, if there was a collapse.
        divergence: The warning of a held-out loss that is no number, see `describe_divergence`.
    """
    content = {
        "verdict": summarize(scores),
        "collapse": collapse,
        "divergence": divergence,
        "share": share,
        "mean_reciprocal_rank_by_share": {f"{tried:g}": value for tried, value in shares.items()},
        "scores": [score._asdict() for score in scores.scores],
    }
    text = json.dumps(content, indent=2)
    Path(folder, COMPARISON_FILE).write_text(text + "\n", encoding="utf-8")
