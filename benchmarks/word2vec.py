"""Trains word2vec with IDF-weighted words, a common baseline on raw text, with the flags of run_pretraining.py.

    python benchmarks/word2vec.py --preset static --tokenizer_name TOKENIZER --train_file TEXTS --max_steps 1000

Skip-gram with negative sampling (Mikolov et al., 2013) by gensim, with its defaults: window 5, 5 negatives, and a
learning rate that falls from 0.025 to 0.0001. Words are the pieces of the run's tokenizer, so this encoder differs
from ours only in its training. The result is an encoder without layers. Its embeddings are the vectors of the pieces,
random for pieces that do not occur, and its word weights are the inverse document frequencies in the training texts.
run_probe.py and sentence-transformers open it like any other encoder. The norm of that encoder gives all embeddings
the same length and subtracts their mean over the features.

A step is a run of documents with at least 20,000 pieces per thread. Documents are read as a whole, whatever
--max_length says, in a new order in each pass. With several threads the result is not deterministic, because the
threads of gensim write to the same matrix.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, set_seed

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError, parse_arguments, run_command
from text_jepa.data.corpus import load_corpus
from text_jepa.data.tokenization import vocabulary
from text_jepa.data.word_weights import DocumentFrequency, word_weights
from text_jepa.encoders.embeddings import trained_encoder
from text_jepa.share.export import export_encoder
from text_jepa.train.arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
    write_arguments,
)
from text_jepa.train.build import make_model, make_tokenizer
from text_jepa.train.run_log import write_metrics


WINDOW = 5
RATES = (0.025, 0.0001)  # at the first and at the last step
PIECES_PER_STEP = 20_000  # of each thread
LONGEST_DOCUMENT = 10_000  # in pieces; gensim reads no more of a document


def main(argv: list[str] | None = None) -> None:
    """Trains, and writes encoder, log and arguments to the output folder."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, TextJepaTrainingArguments)
    model_args, data_args, args = parse_arguments(classes, argv, __doc__.split("\n")[0])
    if args.max_steps < 1:
        raise UsageError("--max_steps: name the number of steps")
    set_seed(args.seed)
    corpus = load_corpus(data_args, cache_dir=model_args.cache_dir)
    tokenizer, _ = make_tokenizer(model_args, data_args, args, corpus)
    objective_args = ObjectiveArguments(pooling="idf")
    model = make_model(model_args, data_args, objective_args, tokenizer)
    if model.config.text_config.num_hidden_layers > 0:
        raise UsageError("--preset: word2vec has no layers; name the preset static")

    documents = piece_ids(corpus.splits["train"]["text"], tokenizer)
    word2vec = new_word2vec(documents, tokenizer, model.config.hidden_size, args.seed)
    records = train(word2vec, documents, tokenizer, args)
    take_over(model, word2vec.wv, tokenizer, args.seed)
    frequency = DocumentFrequency(len(vocabulary(tokenizer)))
    frequency.add(documents)
    model.set_word_weights(torch.from_numpy(word_weights(frequency, tokenizer)))
    output_dir = Path(args.output_dir)
    export_encoder(model, tokenizer, output_dir, data_args.max_length)
    write_metrics(output_dir, records)
    write_arguments(output_dir / "arguments.yaml", model_args, data_args, args)


def piece_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """The token ids of each document, without special tokens; long documents are cut into several."""
    documents = []
    for start in range(0, len(texts), 1_000):
        batch = tokenizer(list(texts[start : start + 1_000]), add_special_tokens=False, verbose=False)["input_ids"]
        for ids in batch:
            ids = np.array(ids, dtype=np.int32)
            documents += [ids[place : place + LONGEST_DOCUMENT] for place in range(0, len(ids), LONGEST_DOCUMENT)]
    return documents


def new_word2vec(documents: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase, width: int, seed: int):
    """An untrained model of gensim with the pieces that occur.

    Raises:
        UsageError: gensim is not installed.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise UsageError("gensim is not installed: pip install 'text-jepa[bench]'") from error
    word2vec = Word2Vec(
        vector_size=width,
        window=WINDOW,
        sg=1,
        workers=torch.get_num_threads(),
        seed=seed,
    )
    pieces = vocabulary(tokenizer)
    counts = np.bincount(np.concatenate(documents), minlength=len(pieces))
    frequencies = {piece: int(count) for piece, count in zip(pieces, counts, strict=True) if count > 0}
    word2vec.build_vocab_from_freq(frequencies, corpus_count=len(documents))
    return word2vec


def train(word2vec, documents: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase, args) -> list[dict]:
    """Trains for `args.max_steps` steps; returns the log."""
    pieces = vocabulary(tokenizer)
    rates = np.linspace(*RATES, args.max_steps + 1)
    steps = runs_of_documents(documents, PIECES_PER_STEP * word2vec.workers, args.seed)
    records = []
    tokens_seen = 0
    started = time.perf_counter()
    for step in range(1, args.max_steps + 1):
        sentences = [[pieces[piece] for piece in document] for document in next(steps)]
        word2vec.train(
            sentences,
            total_examples=len(sentences),
            epochs=1,
            start_alpha=rates[step - 1],
            end_alpha=rates[step],
        )
        tokens_seen += sum(map(len, sentences))
        if step % args.logging_steps == 0 or step == args.max_steps:
            seconds = time.perf_counter() - started
            records.append({"step": step, "tokens_seen": tokens_seen, "train_seconds": seconds})
    return records


def runs_of_documents(documents: Sequence[np.ndarray], pieces: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Yields runs of documents with at least so many pieces, endlessly, in a new order in each pass."""
    generator = np.random.default_rng(seed)
    run = []
    length = 0
    while True:
        for row in generator.permutation(len(documents)):
            run.append(documents[row])
            length += len(documents[row])
            if length >= pieces:
                yield run
                run = []
                length = 0


@torch.no_grad()
def take_over(model: TextJepaForPreTraining, vectors, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Sets the embeddings of an encoder without layers to the vectors of pieces; unknown pieces get random ones."""
    embeddings = trained_encoder(model).get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    embeddings.copy_(torch.randn(embeddings.shape, generator=generator))
    for row, piece in enumerate(vocabulary(tokenizer)):
        if piece in vectors:
            embeddings[row] = torch.from_numpy(vectors[piece].copy())
    embeddings.copy_(torch.nn.functional.normalize(embeddings, dim=-1))


if __name__ == "__main__":
    run_command(main)
