"""Tests that every text is used exactly once in an epoch, for any number of processes and workers."""

import json
from collections import Counter

import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from text_jepa import TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.data.batching import LengthGroupedSampler
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import CorpusArguments, load_corpus
from text_jepa.data.tokenization import tokenize_texts


TEXTS = 64


def spelled(number):
    """A different text for every number below 128, in words of the tiny tokenizer."""
    return " ".join("river" if digit == "1" else "bridge" for digit in f"{number:07b}")


@pytest.fixture
def files(tmp_path):
    """64 documents of different lengths in two files, each a single text after tokenization."""
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "held_out.jsonl")]
    for start, path in zip((0, TEXTS // 2, TEXTS), paths, strict=True):
        rows = [{"text": spelled(number) + " time" * (number % 9)} for number in range(start, start + TEXTS // 2)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in paths]


def examples_of(files, tokenizer, tmp_path, streaming=False):
    arguments = CorpusArguments(files[:2], files[2:], streaming=streaming)
    corpus = load_corpus(arguments, cache_dir=str(tmp_path / "cache"))
    return tokenize_texts(corpus.splits, tokenizer, max_length=64)


def texts_in(batches):
    """Counts the occurrences of each text in the batches, by its token ids without padding."""
    rows = [row[row > 0] for batch in batches for row in batch["input_ids"]]
    return Counter(tuple(row.tolist()) for row in rows)


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_text_once_for_ranks_and_workers(files, tokenizer, tmp_path, ranks, workers, streaming):
    """No text is repeated, lost or sharded twice, in two epochs with different orders."""
    train = examples_of(files, tokenizer, tmp_path, streaming)["train"]
    sampler = None if streaming else LengthGroupedSampler(train["length"], batch_size=4, seed=1)
    collator = DataCollatorForTextJepa(tokenizer)
    loaders = [
        prepare_data_loader(
            torch.utils.data.DataLoader(
                train, batch_size=4, sampler=sampler, collate_fn=collator, num_workers=workers
            ),
            num_processes=ranks,
            process_index=rank,
            put_on_device=False,
            dispatch_batches=False,
        )
        for rank in range(ranks)
    ]
    orders = []
    for epoch in range(2):
        if sampler is not None:
            sampler.set_epoch(epoch)
        batches = [batch for loader in loaders for batch in loader]
        counts = texts_in(batches)
        assert len(counts) == TEXTS
        assert set(counts.values()) == {1}
        orders.append([batch["input_ids"].tolist() for batch in batches])
    assert streaming or orders[0] != orders[1]


def test_evaluation_in_the_middle_of_a_pass_repeats_no_text(files, tokenizer, tmp_path, make_model):
    examples = examples_of(files, tokenizer, tmp_path)
    args = TextJepaTrainingArguments(
        str(tmp_path / "run"),
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
    )
    model = make_model()
    model.resize_token_embeddings(len(tokenizer))
    collator = DataCollatorForTextJepa(tokenizer)
    trainer = TextJepaTrainer(model, args, collator, examples["train"], examples["validation"])
    batches = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, n=None: (batches.append(inputs), step(model, inputs, n))[1]
    trainer.train()
    counts = texts_in(batches)
    assert len(counts) == TEXTS
    assert set(counts.values()) == {1}
