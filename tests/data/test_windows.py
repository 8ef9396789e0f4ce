"""Tests windows of documents: every token is in one window, and borders differ between epochs."""

import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from text_jepa.data.batching import DocumentWindows
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import CorpusArguments, load_corpus
from text_jepa.data.draws import counter_uniforms
from text_jepa.data.strategies import MaskStrategy, ViewStrategy
from text_jepa.data.tokenization import special_tokens_around, tokenize_documents
from text_jepa.data.windows import count_windows, cut_windows


ROOM = 14
WINDOW_LENGTH = ROOM + 2


def keys(seed, count):
    draws = counter_uniforms(np.array([seed], dtype=np.uint64), count)[0]
    return (draws * 2.0**53).astype(np.uint64)


@given(st.lists(st.integers(2, 300), min_size=1, max_size=20), st.integers(3, 60), st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_every_token_is_in_exactly_one_window_that_is_not_too_long(lengths, room, seed):
    counts = count_windows(np.array(lengths), room)
    borders = cut_windows(np.array(lengths), counts, keys(seed, len(lengths)))
    for length, count, row in zip(lengths, counts, borders, strict=True):
        used = row[: count + 1]
        assert count >= 2
        assert used[0] == 0
        assert used[-1] == length
        sizes = np.diff(used)
        assert sizes.min() >= 1
        assert sizes.max() <= max(room, 2)
        assert (row[count:] == length).all()


def test_another_pass_has_other_borders_and_the_same_one_the_same():
    lengths = np.full(50, 200)
    counts = count_windows(lengths, ROOM)
    first, again, other = (cut_windows(lengths, counts, keys(seed, 50)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_borders_are_as_often_before_as_behind_the_middle():
    lengths = np.full(4000, 400)
    borders = cut_windows(lengths, np.full(4000, 4), keys(3, 4000))
    np.testing.assert_allclose(borders[:, 1:4].mean(axis=0), [100, 200, 300], atol=1.5)
    assert borders[:, 1].min() < 80
    assert borders[:, 1].max() > 120


@pytest.fixture(scope="module")
def documents(tokenizer, texts):
    """Tokenized documents of one to six sentences."""
    corpus = [" ".join(texts[: number % 6 + 1]) for number in range(30)]
    splits = DatasetDict({"train": Dataset.from_dict({"text": corpus})})
    return tokenize_documents(splits, tokenizer, WINDOW_LENGTH)["train"]


def collator(tokenizer, view="rest", seed=0):
    view = ViewStrategy(view, window_length=WINDOW_LENGTH)
    return DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.0), view=view, seed=seed)


def real_tokens(ids, mask):
    return [row[present.bool()].tolist() for row, present in zip(ids, mask, strict=True)]


def test_documents_are_stored_once_and_without_special_tokens(tokenizer, texts, documents):
    expected = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    assert documents[0]["input_ids"].tolist() == expected
    assert len(documents) == 30
    windows = DocumentWindows(documents, WINDOW_LENGTH, special_tokens=2)
    assert len(windows) == count_windows(np.array(documents["length"][:]), ROOM).sum()
    assert windows["length"].tolist() == [len(example["input_ids"]) for example in windows]
    assert windows.num_tokens == sum(len(document["input_ids"]) for document in documents)


def test_windows_of_a_document_are_all_there_also_in_several_chunks(documents):
    joined = concatenate_datasets([documents.select(range(10)), documents.select(range(10, 30))])
    for dataset in (documents, joined):
        windows = list(DocumentWindows(dataset, WINDOW_LENGTH, special_tokens=2))
        row = 0
        for example in documents:
            count = int(count_windows(np.array([len(example["input_ids"])]), ROOM)[0])
            for number in range(count):
                np.testing.assert_array_equal(windows[row]["input_ids"], example["input_ids"])
                assert windows[row]["window"] == number
                row += 1
        assert row == len(windows)


def test_a_selection_of_documents_gives_its_own_windows(documents):
    chosen = documents.select([7, 3, 11])
    windows = DocumentWindows(chosen, WINDOW_LENGTH, special_tokens=2)
    found = {tuple(example["input_ids"].tolist()) for example in windows}
    assert found == {tuple(documents[row]["input_ids"].tolist()) for row in (7, 3, 11)}


def test_max_windows_keeps_the_first(documents):
    whole, some = (DocumentWindows(documents, WINDOW_LENGTH, 2, limit) for limit in (None, 9))
    assert len(some) == 9
    assert whole.num_documents == 30
    assert some.num_documents == sum(example["window"] == 0 for example in some)
    assert [example["window"] for example in some] == [whole[row]["window"] for row in range(9)]


def test_a_window_and_the_rest_are_the_document(tokenizer, documents):
    before, after = special_tokens_around(tokenizer)
    examples = list(DocumentWindows(documents, WINDOW_LENGTH, special_tokens=2))
    batch = collator(tokenizer)(examples)
    windows = real_tokens(batch["input_ids"], batch["attention_mask"])
    rests = real_tokens(batch["view_input_ids"], batch["view_attention_mask"])
    for example, window, rest in zip(examples, windows, rests, strict=True):
        assert window[:1] == rest[:1] == before
        assert window[-1:] == rest[-1:] == after
        inside, outside = window[1:-1], rest[1:-1]
        whole = example["input_ids"].tolist()
        places = [start for start in range(len(whole)) if whole[start : start + len(inside)] == inside]
        assert any(whole[:start] + whole[start + len(inside) :] == outside for start in places)


def test_windows_that_were_counted_with_another_length_are_refused(tokenizer, documents):
    windows = DocumentWindows(documents, 8, special_tokens=2)
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.0), view=ViewStrategy("rest", window_length=64))
    with pytest.raises(ValueError, match="DocumentWindows and ViewStrategy need the same window_length"):
        collator([windows[len(windows) - 1]])


@pytest.mark.parametrize("length", [2, 5])
def test_windows_without_room_for_text_are_refused(tokenizer, length):
    with pytest.raises(ValueError, match=f"window_length {length} leaves {length - 2} tokens for text"):
        DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.0), view=ViewStrategy("rest", window_length=length))


def test_windows_of_a_pass_are_the_whole_document(tokenizer, documents):
    windows = DocumentWindows(documents, WINDOW_LENGTH, special_tokens=2)
    collate = collator(tokenizer)
    for epoch in (0, 5, -1):
        collate.epoch = epoch
        batch = collate(list(windows))
        parts = iter(real_tokens(batch["input_ids"], batch["attention_mask"]))
        for example in documents:
            count = int(count_windows(np.array([len(example["input_ids"])]), ROOM)[0])
            joined = [token for _ in range(count) for token in next(parts)[1:-1]]
            assert joined == example["input_ids"].tolist()


def test_a_document_is_read_once_for_its_borders_and_its_number(tokenizer, documents, monkeypatch):
    """Once for the document, and once for the window, which its masks depend on."""
    read, crc32 = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda content: (read.append(content), crc32(content))[1])
    collator(tokenizer)([DocumentWindows(documents, WINDOW_LENGTH, 2)[number] for number in (0, 1, 2)])
    assert len(read) == 3 + 3


def test_neighbours_are_the_next_window_and_of_the_last_one_the_one_before(tokenizer, documents):
    longest = int(np.argmax(documents["length"][:]))
    examples = list(DocumentWindows(documents.select([longest]), WINDOW_LENGTH, special_tokens=2))
    batch = collator(tokenizer, view="neighbour")(examples)
    windows = real_tokens(batch["input_ids"], batch["attention_mask"])
    neighbours = real_tokens(batch["view_input_ids"], batch["view_attention_mask"])
    assert neighbours == [*windows[1:], windows[-2]]


def test_a_window_depends_on_neither_its_batch_nor_its_order(tokenizer, documents):
    examples = list(DocumentWindows(documents, WINDOW_LENGTH, special_tokens=2))
    collate = collator(tokenizer)
    collate.epoch = 3
    batch = collate(examples)
    windows = real_tokens(batch["input_ids"], batch["attention_mask"])
    alone = []
    for example in reversed(examples):
        single = collate([example])
        alone += real_tokens(single["input_ids"], single["attention_mask"])
    assert alone[::-1] == windows


def test_seed_and_pass_move_the_windows(tokenizer, documents):
    examples = list(DocumentWindows(documents, WINDOW_LENGTH, special_tokens=2))
    first = collator(tokenizer)(examples)
    other_seed = collator(tokenizer, seed=1)(examples)
    another = collator(tokenizer)
    another.epoch = 1
    other_pass = another(examples)
    for other in (other_seed, other_pass):
        assert real_tokens(first["input_ids"], first["attention_mask"]) != real_tokens(
            other["input_ids"], other["attention_mask"]
        )


def test_longer_documents_are_split_and_lose_no_token(tokenizer, texts):
    whole = " ".join(texts * 3)
    splits = DatasetDict({"train": Dataset.from_dict({"text": [whole]})})
    parts = tokenize_documents(splits, tokenizer, WINDOW_LENGTH, max_document_length=40)["train"]
    assert max(parts["length"][:]) <= 40
    assert len(parts) > 2
    joined = np.concatenate([part["input_ids"] for part in parts]).tolist()
    assert joined == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_stream_gives_the_same_windows(tokenizer, texts, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(" ".join(texts[: number % 6 + 1]) for number in range(8)), encoding="utf-8")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(texts[0], encoding="utf-8")
    found = []
    for streaming in (False, True):
        arguments = CorpusArguments([str(file)], [str(held_out)], streaming=streaming)
        corpus = load_corpus(arguments, cache_dir=str(tmp_path / "cache"))
        train = tokenize_documents(corpus.splits, tokenizer, WINDOW_LENGTH)["train"]
        examples = list(train) if streaming else list(DocumentWindows(train, WINDOW_LENGTH, special_tokens=2))
        found.append(collator(tokenizer)(examples))
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name])
