"""Tests the order of texts: batches of similar length, optimizer steps, and streams that are repeated.

Run: python -m pytest -q tests/data/test_batching.py
The padding on a real corpus: TEXT_JEPA_DATA=folder python -m pytest -q -s tests/data/test_batching.py -k real
(the folder holds pretrain/wikipedia_short/*.parquet and tokenizers/bert_base_uncased/vocab.txt)
"""

import itertools
import os
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from conftest import CASES
from corpora import CLS, SEP, documents, load_splits, word_tokenizer, write
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from text_jepa.data.batching import BatchesOfProcesses, EndlessStream, LengthGroupedSampler, TextsWithSteps
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.reading import read_rows
from text_jepa.data.strategies import MaskStrategy
from text_jepa.data.tokenization import (
    DocumentCount,
    tokenize_texts,
)


@pytest.fixture
def load(tmp_path):
    """Calls `load_corpus` with a separate cache, and returns its splits."""
    return partial(load_splits, tmp_path / "cache")


# ---- batches --------------------------------------------------------------------------------------------------------


def paragraph_lengths(count=6_000, most=128, seed=0):
    """Lengths distributed like those of encyclopaedia paragraphs: log-normal, with a peak where they are cut."""
    lengths = np.random.default_rng(seed).lognormal(4.2, 0.7, count).astype(int)
    return np.clip(lengths, 4, most)


def padding_share(lengths, order, batch_size):
    """Share of padding in an epoch, if each batch is as wide as its longest text."""
    batches = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


def order_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(max_examples=CASES * 60, deadline=None)
@given(st.lists(st.integers(1, 128), max_size=200), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_every_text_comes_once_per_pass(lengths, batch_size, pool_batches, epoch):
    sampler = LengthGroupedSampler(lengths, batch_size, pool_batches=pool_batches)
    assert len(sampler) == len(lengths)
    assert sorted(order_of(sampler, epoch)) == list(range(len(lengths)))


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    lengths = paragraph_lengths(500)
    sampler = LengthGroupedSampler(lengths, 16, seed=1)
    passes = [order_of(sampler, epoch) for epoch in range(3)]
    state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - the global state must not matter
    assert order_of(LengthGroupedSampler(lengths.tolist(), 16, seed=1), 2) == passes[2]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert order_of(LengthGroupedSampler(lengths, 16, seed=2), 0) not in passes


def test_a_batch_may_be_larger_than_any_number_of_numpy():
    sampler = LengthGroupedSampler([3, 1, 2], 10**30, with_steps=True)
    assert sorted(sampler) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("batch_size", [16, 32, 64])
def test_batches_of_texts_of_similar_length_pad_little(batch_size):
    lengths = paragraph_lengths()
    shuffled = np.random.default_rng(0).permutation(len(lengths)).tolist()
    assert padding_share(lengths, shuffled, batch_size) > 0.25
    assert padding_share(lengths, order_of(LengthGroupedSampler(lengths, batch_size), 0), batch_size) <= 0.05


def test_batches_do_not_come_in_order_of_length():
    lengths = paragraph_lengths()
    order = order_of(LengthGroupedSampler(lengths, 32), 0)
    means = np.array([lengths[order[i : i + 32]].mean() for i in range(0, len(order), 32)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 5 / np.sqrt(len(means))


# ---- processes ------------------------------------------------------------------------------------------------------


# Number of processes, texts in a batch and batches in a step, with 16 texts in every step.
SHARES = [(1, 16, 1), (1, 4, 4), (2, 8, 1), (2, 2, 4), (4, 4, 1), (4, 2, 2)]


def steps_of(batches, ranks, accumulation):
    """The texts of all processes in each step; batches are assigned round-robin, and the last step may be shorter."""
    per_step = ranks * accumulation
    groups = [batches[start : start + per_step] for start in range(0, len(batches), per_step)]
    return [list(itertools.chain.from_iterable(group)) for group in groups]


@pytest.mark.parametrize("count", [160, 161, 175, 5])
def test_steps_see_the_same_texts_whatever_the_number_of_processes_and_accumulated_batches(count):
    """Each text is used once, also in a last step that is not full."""
    lengths = paragraph_lengths(count)
    seen = []
    for ranks, size, accumulation in SHARES:
        sampler = LengthGroupedSampler(lengths, ranks * size * accumulation, seed=3)
        shares = BatchesOfProcesses(sampler, size, ranks, accumulation)
        shares.set_epoch(2)
        batches = list(shares)
        assert len(shares) == len(batches)
        assert len(batches) % ranks == 0
        assert {len(batch) for batch in batches[: count // 16 * ranks * accumulation]} <= {size}
        assert max(len(batch) for batch in batches) <= size
        seen.append(steps_of(batches, ranks, accumulation))
    assert sorted(itertools.chain.from_iterable(seen[0])) == list(range(count))
    # A process repeats a text only if fewer texts than processes are left.
    repeats = [len(steps[-1]) - len(seen[0][-1]) for steps in seen]
    assert repeats == [max(0, ranks - count % 16) if count % 16 else 0 for ranks, _, _ in SHARES]
    assert [[sorted(set(step)) for step in steps] for steps in seen] == [[sorted(step) for step in seen[0]]] * 6


def test_the_order_of_a_single_process_is_that_of_earlier_versions():
    """In a run without accumulation, so that existing checkpoints stay valid."""
    sampler = LengthGroupedSampler(paragraph_lengths(11), 2, seed=5, pool_batches=2)
    assert order_of(sampler, 1) == [8, 5, 2, 7, 10, 4, 9, 1, 0, 6, 3]


def test_what_fills_no_step_is_left_out_if_asked():
    sampler = LengthGroupedSampler([3] * 37, 8, drop_last=True)
    assert len(sampler) == len(order_of(sampler, 0)) == 32


# ---- steps ----------------------------------------------------------------------------------------------------------


TEXTS, BATCH, ACCUMULATION = 61, 3, 3


def texts_of_a_loader(count=TEXTS):
    """Makes numbered texts of different lengths."""
    rows = [[CLS, 5 + i % 13, *[5 + (i * 7 + j) % 13 for j in range(i % 11 + 2)], SEP] for i in range(count)]
    return Dataset.from_dict({"input_ids": rows, "length": [len(ids) for ids in rows]})


def loader_of(dataset, sampler, rank=0, ranks=1, workers=0, collate_fn=None, batch_size=BATCH):
    """Makes the data loader of one of several processes, as accelerate does."""
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        collate_fn=collate_fn
        or (lambda examples: [(example["step"], tuple(example["input_ids"])) for example in examples]),
        num_workers=workers,
    )
    return prepare_data_loader(
        loader, num_processes=ranks, process_index=rank, put_on_device=False, dispatch_batches=False
    )


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 2)])
def test_every_text_of_a_batch_carries_the_step_that_the_trainer_counts(ranks, workers):
    """Two epochs whose last steps are not full, and a resume in the middle of the second one."""
    dataset = texts_of_a_loader()
    sampler = LengthGroupedSampler(dataset["length"], BATCH * ACCUMULATION * ranks, seed=1, with_steps=True)
    for rank, epoch in itertools.product(range(ranks), range(2)):
        loader = loader_of(TextsWithSteps(dataset), sampler, rank, ranks, workers)
        resumed = skip_first_batches(loader, 5)
        for part in (loader, resumed):
            part.set_epoch(epoch)
        sampler.set_epoch(epoch)  # the other two calls have an effect only in a single process
        batches = list(loader)
        first = epoch * -(-len(batches) // ACCUMULATION)
        steps = [{step for step, _ in batch} for batch in batches]
        expected = [{first + number // ACCUMULATION} for number in range(len(batches))]
        # Texts that are repeated to fill the last batches have the step of their first occurrence.
        assert steps[: -1 if ranks > 1 else None] == expected[: -1 if ranks > 1 else None]
        assert list(resumed) == batches[5:]


@pytest.mark.parametrize(("ranks", "files", "workers"), [(1, 1, 0), (2, 2, 2), (1, 1, 2)])
def test_the_texts_of_a_stream_carry_the_step_over_passes_workers_and_ranks(tmp_path, load, ranks, files, workers):
    paths = [str(write(tmp_path / f"{i}.jsonl", documents(20, seed=i))) for i in range(files)]
    tokenized = tokenize_texts(load(paths, paths, streaming=True), word_tokenizer(), 16)["train"]
    stream = EndlessStream(tokenized.shuffle(seed=0, buffer_size=10), BATCH * ranks, ACCUMULATION)
    for rank in range(ranks):
        loader = loader_of(stream, None, rank, ranks, workers)
        batches = list(islice(loader, 40))
        assert [{step for step, _ in batch} for batch in batches] == [{i // ACCUMULATION} for i in range(40)]
        assert list(islice(skip_first_batches(loader, 7), 10)) == batches[7:17]


# ---- streams --------------------------------------------------------------------------------------------------------


def stream_of(lengths, shards=1, buffer=64, **options):
    """Makes an endless stream of texts of these lengths, each with its `row`."""
    rows = {"input_ids": [[5] * length for length in lengths], "row": list(range(len(lengths)))}
    stream = Dataset.from_dict(rows).to_iterable_dataset(num_shards=shards)
    return EndlessStream(stream.shuffle(seed=0, buffer_size=buffer), **options)


def rows_of(stream, count):
    """Epoch and row of the first texts of a stream."""
    return [(text["epoch"], text["row"]) for text in islice(stream, count)]


@settings(max_examples=CASES * 30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 4))
def test_every_text_of_a_stream_comes_once_per_pass(lengths, batch_size, pool_batches):
    """All texts of an epoch are used eventually; at any time, less than a batch is carried over."""
    stream = stream_of(lengths, batch_size=batch_size, pool_batches=pool_batches)
    found = rows_of(stream, batch_size * len(lengths))
    assert sorted(found) == list(itertools.product(range(batch_size), range(len(lengths))))


@pytest.mark.parametrize("shards", [1, 5])
def test_steps_of_a_stream_see_the_same_texts_whatever_the_number_of_processes(shards):
    """In the order of a single process; each text of each file is read once in an epoch, by any process."""
    seen = []
    for ranks, size, accumulation in SHARES:
        lengths = range(1, 61)
        stream = stream_of(lengths, shards, batch_size=ranks * size, batches_per_step=accumulation)
        shares = []
        for rank in range(ranks):
            loader = loader_of(stream, None, rank, ranks, collate_fn=list, batch_size=size)
            shares.append(list(islice(loader, 15 * accumulation)))
        batches = list(itertools.chain.from_iterable(zip(*shares, strict=True)))
        seen.append(steps_of(batches, ranks, accumulation))
    assert seen == [seen[0]] * len(SHARES)
    found = [(text["epoch"], text["row"]) for text in itertools.chain.from_iterable(seen[0])]
    assert sorted(found) == list(itertools.product(range(4), range(60)))


def test_what_is_left_of_a_pass_waits_for_no_more_than_the_next_pool():
    stream = stream_of(range(1, 28), batch_size=4, pool_batches=3)
    found = rows_of(stream, 27 * 4)
    for number in range(3):
        last = max(place for place, (epoch, _) in enumerate(found) if epoch == number)
        assert last < 27 * (number + 1) + 3 * 4


def test_the_order_of_a_stream_is_a_pure_function_of_its_seed():
    lengths = paragraph_lengths(200)
    first = rows_of(stream_of(lengths, batch_size=8, seed=1), 600)
    state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - the global state must not matter
    again = stream_of(lengths, batch_size=8, seed=1)
    assert rows_of(again, 600) == rows_of(again, 600) == first
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    passes = [[row for _, row in first[start : start + 200]] for start in (0, 200, 400)]
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert rows_of(stream_of(lengths, batch_size=8, seed=2), 600) != first


def test_the_pass_of_another_worker_does_not_change_the_order_of_this_one(monkeypatch):
    """The datasets library shares it between all workers; here, another iterator changes it."""
    stream = stream_of(paragraph_lengths(100), batch_size=8)
    expected = rows_of(stream, 250)

    def meddled(rows, *source):
        stream.stream.set_epoch(7)
        return read_rows(rows, *source)

    monkeypatch.setattr("text_jepa.data.batching.read_rows", meddled)
    assert rows_of(stream, 250) == expected


@pytest.mark.parametrize("batch_size", [16, 32])
def test_batches_of_a_stream_pad_little_over_the_border_of_a_pass(batch_size):
    """In epochs that do not fill their last batch; and batches are not sorted by length."""
    lengths = paragraph_lengths(1_500 + batch_size // 2)
    order = [row for _, row in rows_of(stream_of(lengths, batch_size=batch_size, buffer=1_000), 3_000)]
    order = order[: len(order) // batch_size * batch_size]
    widths = lengths[np.array(order)].reshape(-1, batch_size)
    assert 1 - widths.sum() / (widths.max(axis=1).sum() * batch_size) < 0.08
    means = widths.mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 5 / np.sqrt(len(means))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_get_parts_of_similar_length_of_a_batch_of_a_stream(workers):
    """So that no process waits long for another."""
    lengths = paragraph_lengths(2_000).tolist()
    stream = stream_of(lengths, shards=2, buffer=500, batch_size=BATCH * 2)

    def collate(texts):
        return [(text["epoch"], text["row"]) for text in texts]

    ranks = [list(islice(loader_of(stream, None, rank, 2, workers, collate), 300)) for rank in range(2)]
    found = [text for batches in ranks for batch in batches for text in batch]
    assert len(set(found)) == len(found)
    means = np.array([[np.mean([lengths[row] for _, row in batch]) for batch in batches] for batches in ranks])
    assert np.abs(means[0] - means[1]).mean() < 0.2 * np.abs(means[0] - np.roll(means[1], 1)).mean()


@pytest.mark.parametrize("workers", [0, 2])
def test_documents_that_a_stream_leaves_out_are_counted_once(tmp_path, load, workers):
    """Also in files and batches without other texts, and with several workers."""
    texts = documents(30), ["boat", "", " "] * 500 + documents(10, seed=1), [*documents(20, seed=2), "boat"]
    paths = [str(write(tmp_path / f"{number}.jsonl", part)) for number, part in enumerate(texts)]
    count = DocumentCount()
    held_out = [str(write(tmp_path / "held_out.jsonl", documents(5)))]
    stream = tokenize_texts(load(paths, held_out, streaming=True), word_tokenizer(), 16, count=count)["train"]
    assert count.read == 0
    for passes in (1, 2):
        assert len(list(torch.utils.data.DataLoader(stream, None, num_workers=workers))) > 60
        assert (count.read, count.left_out) == (passes * 1_561, passes * 1_501)


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_of_a_schedule_survive_workers_and_a_resume(workers):
    dataset = texts_of_a_loader()
    sampler = LengthGroupedSampler(dataset["length"], BATCH, with_steps=True)
    collator = DataCollatorForTextJepa(word_tokenizer(), MaskStrategy(ratio={"start": 0.0, "end": 0.9, "steps": 20}))
    plain = list(loader_of(TextsWithSteps(dataset), sampler, collate_fn=collator))
    batches = list(loader_of(TextsWithSteps(dataset), sampler, workers=workers, collate_fn=collator))
    resumed = list(skip_first_batches(loader_of(TextsWithSteps(dataset), sampler, collate_fn=collator), 13))
    for found, expected in ((batches, plain), (resumed, plain[13:])):
        assert len(found) == len(expected)
        for batch, other in zip(found, expected, strict=True):
            assert all(torch.equal(batch[name], other[name]) for name in other)
    hidden = [int((batch["target_positions"] >= 0).sum()) for batch in plain]
    assert hidden[0] == 0
    assert hidden[-1] > 0


def test_texts_with_steps_look_like_their_dataset():
    dataset = texts_of_a_loader()
    texts = TextsWithSteps(dataset)
    assert len(texts) == TEXTS
    assert list(texts["length"]) == list(dataset["length"])
    assert texts[5] == dataset[5]
    assert texts[7, 5] == {**dataset[5], "step": 7}
    assert list(texts) == list(dataset)


def test_the_rows_of_a_pass_are_the_same_with_steps():
    lengths = paragraph_lengths(100)
    plain, stepped = (LengthGroupedSampler(lengths, 8, with_steps=with_steps) for with_steps in (False, True))
    assert [row for _, row in order_of(stepped, 3)] == order_of(plain, 3)


DATA = os.environ.get("TEXT_JEPA_DATA")


def bert_tokenizer(vocabulary):
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = [(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="TEXT_JEPA_DATA names no data folder")
def test_batches_of_a_real_corpus_pad_at_most_five_percent(load, capsys):
    max_length = 512
    folder = Path(DATA, "pretrain", "wikipedia_short")
    corpus = load([str(folder / "train.parquet")], [str(folder / "validation.parquet")])
    corpus["train"] = corpus["train"].take(4_000)
    tokenizer = bert_tokenizer(Path(DATA, "tokenizers", "bert_base_uncased", "vocab.txt"))
    examples = tokenize_texts(corpus, tokenizer, max_length)
    for split, part in examples.items():
        lengths = np.array(part["length"])
        order = order_of(LengthGroupedSampler(lengths, 32), 0)
        share = padding_share(lengths, order, 32)
        plain = padding_share(lengths, list(range(len(lengths))), 32)
        with capsys.disabled():
            texts = f"{split}, {max_length} tokens: {len(lengths):,} texts"
            print(f"\n{texts}, {share:.2%} padding, {plain:.1%} unsorted")  # noqa: T201
        assert share <= 0.05


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="TEXT_JEPA_DATA names no data folder")
def test_batches_of_a_streamed_real_corpus_pad_at_most_five_percent(load, capsys):
    """Compared with the original order of the stream."""
    max_length = 128
    folder = Path(DATA, "pretrain", "wikipedia_short")
    corpus = load([str(folder / "train.parquet")], [str(folder / "validation.parquet")], streaming=True)
    corpus["train"] = corpus["train"].take(2_000)
    tokenizer = bert_tokenizer(Path(DATA, "tokenizers", "bert_base_uncased", "vocab.txt"))
    stream = tokenize_texts(corpus, tokenizer, max_length)["train"].shuffle(seed=0, buffer_size=10_000)
    plain = np.array([text["length"] for text in stream])
    grouped = np.array([text["length"] for text in islice(EndlessStream(stream, 32), len(plain) // 32 * 32)])
    shares = [padding_share(found, np.arange(len(found)), 32) for found in (grouped, plain)]
    with capsys.disabled():
        texts = f"stream, {max_length} tokens: {len(plain):,} texts"
        print(f"\n{texts}, {shares[0]:.2%} padding, {shares[1]:.1%} as they come")  # noqa: T201
    assert shares[0] <= 0.05 < shares[1]
