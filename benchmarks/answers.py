"""What encoders say of every scored row of some tasks: a process that benchmarks/compare.py starts.

    python benchmarks/answers.py '{"file": "a.npz", "systems": {"mlm": "runs/mlm"}, "probe": {"tasks": ["packages"]}}'

As run_probe.py does, whose parts these are, but with the answers to the rows instead of their scores.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers.utils import logging

import run_probe
from modeling_text_jepa import TextJepaForPreTraining
from text_jepa import features
from text_jepa.arguments import UsageError, parse_arguments, run_command
from text_jepa.export import trained_encoder
from text_jepa.results import headline


def main(
    file: str, systems: Mapping[str, str], probe: list[str], controls: bool = False, which: str = "target"
) -> None:
    """Writes `task|mode|metric|system` -> (N,) answers, of reranking MAPs, and `task|gold` -> (N,) labels.

    Args:
        file: npz to write.
        systems: Folders by name: encoders, or checkpoints of a pretraining run.
        probe: Flags of run_probe.py, one seed among them.
        controls: Whether random weights, the bag of embeddings, TF-IDF and BM25 answer too, beside the last system.
        which: Encoder of a checkpoint: `"target"` or `"context"`.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    (args,) = parse_arguments((run_probe.ProbeArguments,), probe, "")
    tasks, rerankings = run_probe.load_tasks(args)
    predicted = {task: defaultdict(lambda: defaultdict(list)) for task in [*tasks, *rerankings]}
    splits = [run_probe.training_rows(task, run_probe.TRAINING_ROWS, args) for task in tasks]
    texts = {text for split in [*splits, *(task.test for task in tasks)] for key in split.keys for text in key}
    texts = sorted(texts.union(*map(run_probe.ranked_texts, rerankings)))

    bar = tqdm(disable=True)

    def answer(system, vectors):
        if not np.isfinite(vectors).all():
            raise UsageError(f"{system}: its features are not finite")
        table = dict(zip(texts, vectors, strict=True))
        for task in tasks:
            run_probe.answer_by_vectors(task, system, table, args.seeds, args, predicted[task], bar)
        for task in rerankings:
            run_probe.rank_by_vectors(task, system, table, predicted[task])

    def embed(system, encoder):
        answer(system, features.embed_texts(*encoder[1:3], texts, encoder.max_length, layers=args.layers))

    for system, folder in systems.items():
        (encoder,) = run_probe.load_encoders([folder], args)
        if encoder.model.config.model_type == "text_jepa":  # a checkpoint, of which the encoder is wanted
            model = TextJepaForPreTraining.from_pretrained(folder).to(encoder.model.device)
            encoder = encoder._replace(model=trained_encoder(model, which))
        embed(system, encoder)
    if controls:
        embed("random weights", run_probe.untrained(encoder, args.seeds[0]))
        answer("bag of its embeddings", features.bag_of_embeddings(*encoder[1:3], texts, encoder.max_length))
        for task in tasks:
            run_probe.answer_by_words(task, args, predicted[task], bar)
        for task in rerankings:
            run_probe.rank_by_words(task, predicted[task])

    arrays = {f"{task.name}|gold": task.test.labels for task in tasks}
    for task, by_mode in predicted.items():
        name = task.name if task in tasks else run_probe.title_of(task)
        metric = headline(name, task.metrics) if task in tasks else "map"
        for mode, by_system in by_mode.items():
            for system, (rows,) in by_system.items():
                arrays[f"{name}|{mode}|{metric}|{system}"] = rows if task in tasks else rows["map"]
    unfinished = Path(file).with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    unfinished.rename(file)


if __name__ == "__main__":
    run_command(lambda: main(**json.loads(sys.argv[1])))
