"""Who answers a probe: encoders, their layers, and controls.

Shapes: N texts, D features.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, set_seed

from configuration_text_jepa import TextJepaConfig
from text_jepa.cli import UsageError
from text_jepa.encoders import embeddings
from text_jepa.encoders.embeddings import Encoder, open_encoder
from text_jepa.probe import controls
from text_jepa.probe.arguments import ProbeArguments


# Names of the controls in tables.
TFIDF = "TF-IDF"
BM25 = "BM25"
RANDOM = "random weights"
BAG = "bag of its embeddings"
MAJORITY = "majority"

Vectors = dict[str, np.ndarray]
"""Vector (D,) of each text."""


@dataclass(frozen=True)
class System:
    """One that answers.

    Args:
        name: Name in tables.
        seeds: Seeds that it is asked with: all of them, or the one that drew its random weights.
        layer: Which layer of the first encoder it is, 0 for the embeddings; `None` if it is none of them.
    """

    name: str
    seeds: Sequence[int]
    layer: int | None = None


# ---- encoders -------------------------------------------------------------------------------------------------------


def newest_run() -> str:
    """The folder of the last run that ended with an encoder.

    Raises:
        UsageError: There is none.
    """
    runs = sorted(Path("runs").glob("*/modules.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("no encoder in runs/; train one with `text-jepa pretrain TEXTS`, or name one")
    return str(runs[-1].parent)


def open_encoders(names: Sequence[str], args: ProbeArguments) -> list[Encoder]:
    """Opens the encoders, the one in question first.

    Raises:
        UsageError: One cannot be opened, or has fewer layers than `--layers`.
    """
    encoders = []
    for name in dict.fromkeys(names):
        encoder = open_encoder(name, args.max_length, args.pooling, cache_dir=args.cache_dir)
        layers = count_layers(encoder)
        if args.layers > layers:
            raise UsageError(f"--layers {args.layers}: {name} has {layers}, the embeddings included")
        encoders.append(encoder)
    return encoders


def count_layers(encoder: Encoder) -> int:
    """Number of layers, the embeddings included."""
    config = encoder.model.config.get_text_config()
    return config.num_hidden_layers + 1


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture, tokenizer and pooling, word weights included, with random weights."""
    set_seed(seed)
    model = AutoModel.from_config(encoder.model.config, trust_remote_code=False).to(encoder.model.device)
    if model.config.get_text_config().num_hidden_layers == 0:
        # A run starts like this: without layers a position says nothing about a text. Some encoders learn none.
        for name, weights in model.named_parameters():
            if name.endswith("position_embeddings.weight"):
                torch.nn.init.zeros_(weights)
    return dataclasses.replace(encoder, name=RANDOM, model=model)


def with_random_weights(encoders: Sequence[Encoder], args: ProbeArguments) -> Iterator[tuple[Encoder, System]]:
    """Each encoder, and with `--controls` the first one with random weights, new ones for each seed."""
    for encoder in encoders:
        yield encoder, System(encoder.name, args.seeds)
    if args.controls:
        for seed in args.seeds:
            yield untrained(encoders[0], seed), System(RANDOM, [seed])


@contextmanager
def plain_folder(encoder: Encoder, cache_dir: str | None = None) -> Iterator[str]:
    """A folder or Hub name that Auto classes open: the encoder's own, or a temporary one with its weights."""
    if encoder.name != RANDOM and not is_pretraining_model(encoder.name, cache_dir):
        yield encoder.name
        return
    with tempfile.TemporaryDirectory() as folder:
        encoder.model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        yield folder


def is_pretraining_model(name: str, cache_dir: str | None = None) -> bool:
    """Whether it is `pretraining/` or a checkpoint of a run, whose encoder no Auto class opens."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, cache_dir=cache_dir)
    return config.model_type == TextJepaConfig.model_type


# ---- vectors --------------------------------------------------------------------------------------------------------


def embed_by_each(
    encoders: Sequence[Encoder],
    texts: Sequence[str],
    args: ProbeArguments,
) -> Iterator[tuple[System, Vectors]]:
    """Systems that make vectors, with those of the texts; each system embeds each text once.

    Raises:
        UsageError: Features are not finite.
    """
    layers = []
    for encoder, system in with_random_weights(encoders, args):
        if args.layer_sweep and encoder is encoders[0]:
            layers = embeddings.embed_layers(encoder, texts)
            matrix = embeddings.finish_vectors(encoder, layers[-args.layers :].mean(axis=0))
        else:
            matrix = embeddings.embed_texts(encoder, texts, layers=args.layers)
        yield system, _finite_vectors(system, texts, matrix)
    if args.controls:
        bag = System(BAG, args.seeds)
        matrix = controls.bag_of_embeddings(encoders[0], texts)
        yield bag, _finite_vectors(bag, texts, matrix)
    for number, matrix in enumerate(layers):
        layer = System(f"layer {number}", args.seeds, layer=number)
        yield layer, _finite_vectors(layer, texts, matrix)


def _finite_vectors(
    system: System,
    texts: Sequence[str],
    matrix: np.ndarray,
) -> Vectors:
    if not np.isfinite(matrix).all():
        raise UsageError(
            f"{system.name}: its features are not finite, so its weights are corrupted; use another encoder"
        )
    return dict(zip(texts, matrix, strict=True))
