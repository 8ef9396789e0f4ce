"""Tests trained tokenizers, and documents that are divided, paired with views and cached.

Run: python -m pytest -q tests/data/test_tokenization.py
"""

import json
import os
from functools import partial
from itertools import pairwise

import datasets
import numpy as np
import pytest
from conftest import CASES
from corpora import CLS, SEP, WORDS, documents, load_splits, word_tokenizer, write
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from text_jepa.cli import UsageError
from text_jepa.data import tokenization
from text_jepa.data.batching import DocumentWindows
from text_jepa.data.tokenization import (
    _WholeTokens,
    cut_points,
    find_sentence_ends,
    groups_of_texts,
    special_tokens_around,
    token_bytes,
    tokenize_documents,
    tokenize_texts,
    train_tokenizer,
)


def ids_of(part):
    return [list(map(int, row["input_ids"])) for row in part]


@pytest.fixture
def load(tmp_path):
    """Calls `load_corpus` with a separate cache, and returns its splits."""
    return partial(load_splits, tmp_path / "cache")


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def test_a_trained_tokenizer_survives_saving_and_folds_case(tmp_path):
    trained = train_tokenizer(["The River Café", "the river", "a café."] * 3, 80, max_length=40)
    trained.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "the CAFÉ by a river."
    assert tokenizer(text)["input_ids"] == trained(text)["input_ids"] == trained("The cafe by a River.")["input_ids"]
    assert tokenizer.model_max_length == 40
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3, 4]
    assert tokenizer("the river", "a river")["input_ids"].count(3) == 2
    assert tokenizer.decode(tokenizer("a river.")["input_ids"], skip_special_tokens=True) == "a river."


def test_a_cased_tokenizer_keeps_case_and_accents():
    tokenizer = train_tokenizer(["The Café, the café"] * 3, 60, lowercase=False)
    assert tokenizer.tokenize("Café") != tokenizer.tokenize("cafe")
    assert "".join(tokenizer.tokenize("Café")).replace("##", "") == "Café"


def test_the_vocabulary_has_the_size_asked_for_and_skips_rows_without_text():
    assert len(train_tokenizer([*documents(200), None, ""], 50)) == 50


@pytest.mark.parametrize("texts", [[], [""], [None, "  \n"]])
def test_no_text_to_train_on_is_an_error(texts):
    with pytest.raises(UsageError, match="no text to train a tokenizer on"):
        train_tokenizer(texts, 50)


@pytest.mark.parametrize("vocab_size", [-1, 0, 5])
def test_a_vocabulary_without_room_for_words_is_an_error(vocab_size):
    with pytest.raises(UsageError, match=f"--vocab_size {vocab_size}: must be above 5"):
        train_tokenizer(documents(5), vocab_size)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("[CLS]", "[SEP]", ([CLS], [SEP])), ("", "", ([], [])), ("", "[SEP]", ([], [SEP])), ("[CLS]", "", ([CLS], []))],
)
def test_special_tokens_around_a_text_are_those_of_the_tokenizer(before, after, expected):
    assert special_tokens_around(word_tokenizer(before=before, after=after)) == expected


# ---- cutting --------------------------------------------------------------------------------------------------------


@settings(max_examples=CASES * 200, deadline=None)
@given(st.integers(3, 20), st.integers(2, 120), st.data())
def test_cuts_are_monotone_and_no_piece_is_too_long_or_a_single_token(room, length, data):
    ends = sorted(data.draw(st.sets(st.integers(1, length), max_size=length)))
    cuts = cut_points(length, room, np.array(ends, dtype=np.int64))
    pieces = [stop - start for start, stop in pairwise(cuts)]
    assert cuts[0] == 0
    assert cuts[-1] == length
    assert min(pieces) >= 2
    assert max(pieces) <= room
    for start, stop in pairwise(cuts[:-1]):
        fitting = [end for end in ends if room // 2 < end - start <= room]
        wanted = fitting[-1] if fitting else start + room
        assert stop == (wanted - 1 if wanted == length - 1 else wanted)  # no piece is a single token


def test_pieces_end_at_the_last_sentence_that_fits(load, tmp_path):
    sentence = "the river came ."
    path = str(write(tmp_path / "a.txt", [" ".join([sentence] * 5)]))
    corpus = load([path], [path])
    pieces = ids_of(tokenize_texts(corpus, word_tokenizer(), 12)["train"])
    assert [len(ids) - 2 for ids in pieces] == [8, 8, 4]


def test_sentences_end_at_tokens_that_end_in_a_mark():
    tokenizer = word_tokenizer("!", "?!", "。", "e.g", "##.")
    ids = list(range(len(tokenizer)))
    ends = find_sentence_ends(ids, token_bytes(tokenizer)) - 1
    assert set(tokenizer.convert_ids_to_tokens(ends.tolist())) == {".", "!", "?!", "。", "##."}


@pytest.mark.parametrize("max_length", [5, 16, 64])
def test_pieces_of_a_document_together_are_the_document_and_of_no_other(tmp_path, load, max_length):
    tokenizer = word_tokenizer()
    texts = documents(60)
    path = str(write(tmp_path / "a.jsonl", texts))
    examples = tokenize_texts(load([path], [path]), tokenizer, max_length)["train"]
    assert set(examples.column_names) == {"input_ids", "length"}
    pieces = ids_of(examples)
    assert [len(ids) for ids in pieces] == [int(row["length"]) for row in examples]
    assert max(map(len, pieces)) <= max_length
    assert {(ids[0], ids[-1]) for ids in pieces} == {(CLS, SEP)}
    for text in texts:
        document, collected = tokenizer(text, add_special_tokens=False)["input_ids"], []
        while len(collected) < len(document):
            collected += pieces.pop(0)[1:-1]
        assert collected == document
    assert not pieces


def test_documents_of_fewer_than_two_tokens_are_left_out(tmp_path, load):
    path = str(write(tmp_path / "a.jsonl", ["", "river", "the river", "   ", "a boat ."]))
    pieces = ids_of(tokenize_texts(load([path], [path]), word_tokenizer(), 16)["train"])
    assert [len(ids) - 2 for ids in pieces] == [2, 3]


@pytest.mark.parametrize("with_held_out_file", [True, False])
def test_a_stream_gives_the_examples_of_the_map_style_corpus_in_its_order(tmp_path, load, with_held_out_file):
    path = str(write(tmp_path / "a.jsonl", documents(1_300)))
    held_out = [str(write(tmp_path / "b.jsonl", documents(20, seed=1)))] if with_held_out_file else None
    stream = tokenize_texts(load([path], held_out, streaming=True), word_tokenizer(), 16)
    whole = ids_of(tokenize_texts(load([path], [path]), word_tokenizer(), 16)["train"])
    trained = ids_of(stream["train"])
    if with_held_out_file:
        assert trained == whole
    else:
        held_out = ids_of(stream["validation"])
        assert sorted(held_out + trained) == sorted(whole)
        rest = iter(whole)
        assert all(ids in rest for ids in trained)  # in the same order


def test_a_stream_of_documents_gives_the_windows_of_the_map_style_corpus_in_its_order(tmp_path, load):
    """Documents of one window, of several windows, and of several parts."""
    path = str(write(tmp_path / "a.jsonl", documents(300)))
    stream, whole = (
        tokenize_documents(load([path], [path], streaming=streaming), word_tokenizer(), 16, max_document_length=40)
        for streaming in (True, False)
    )
    stream, whole = stream["train"], whole["train"]
    assert max(whole["length"]) <= 40
    windows = [(example["input_ids"].tolist(), example["window"]) for example in DocumentWindows(whole, 16, 2)]
    assert [(list(example["input_ids"]), example["window"]) for example in stream] == windows
    assert len(windows) > 2 * len(whole) > 600


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("texts", [["", "river", "  "], [None, "river", None]], ids=["blank", "missing"])
def test_a_corpus_without_a_document_of_two_tokens_is_an_error(tmp_path, load, texts, streaming):
    path = str(write(tmp_path / "a.jsonl", texts))
    with pytest.raises(UsageError, match="the train part of the corpus holds no document of at least 2 tokens"):
        tokenize_texts(load([path], [path], streaming=streaming), word_tokenizer(), 16)


def test_a_length_without_room_for_text_and_a_tokenizer_without_padding_are_errors(tmp_path, load):
    path = str(write(tmp_path / "a.jsonl", documents(5)))
    corpus = load([path], [path])
    with pytest.raises(UsageError, match="--max_length 4: leaves no room"):
        tokenize_texts(corpus, word_tokenizer(), 4)
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(UsageError, match="no padding token; add one"):
        tokenize_texts(corpus, tokenizer, 16)


# ---- views ----------------------------------------------------------------------------------------------------------


def parts_of(texts, max_length):
    """The examples of each document with the word tokenizer."""
    corpus = DatasetDict({"train": Dataset.from_dict({"text": texts})})
    pieces = ids_of(tokenize_texts(corpus, word_tokenizer(), max_length)["train"])
    lengths = [len(ids) for ids in word_tokenizer()(texts, add_special_tokens=False)["input_ids"]]
    parts = []
    for length in lengths:
        parts.append([])
        while sum(len(ids) - 2 for ids in parts[-1]) < length:
            parts[-1].append(pieces.pop(0))
    return parts


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("columns", [("body", "title"), ("title", "text"), ("text", "title")])
def test_the_second_column_is_the_view_of_every_part_of_its_document(tmp_path, load, columns, streaming):
    text_column, view_column = columns
    bodies, titles = documents(40, most_words=60), documents(40, seed=1)
    rows = [{text_column: body, view_column: title, "n": 1} for body, title in zip(bodies, titles, strict=True)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    corpus = load([path], [path], text_column=text_column, view_column=view_column, streaming=streaming)
    assert set(next(iter(corpus["train"]))) == {"text", "view"}
    tokenizer = word_tokenizer()
    examples = list(tokenize_texts(corpus, tokenizer, 16, view="column")["train"])
    assert set(examples[0]) == {"input_ids", "length", "view_input_ids"}
    views = [tokenizer(title, truncation=True, max_length=16)["input_ids"] for title in titles]
    expected = [(ids, view) for parts, view in zip(parts_of(bodies, 16), views, strict=True) for ids in parts]
    assert [(list(row["input_ids"]), list(row["view_input_ids"])) for row in examples] == expected
    assert [row["length"] for row in examples] == [len(ids) for ids, _ in expected]


def test_documents_without_a_view_are_left_out(tmp_path, load):
    rows = [{"text": "the river", "view": view} for view in ("", None, "boat", "  ")]
    path = write_rows(tmp_path / "a.jsonl", [{"text": "river", "view": "the boat"}, *rows])
    examples = tokenize_texts(load([path], [path], view_column="view"), word_tokenizer(), 16, view="column")
    assert [row["view_input_ids"].tolist() for row in examples["train"]] == [word_tokenizer()("boat")["input_ids"]]


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_the_next_sentence_is_the_following_part_of_the_same_document(tmp_path, load, streaming):
    """The first documents have a single part, and are more than the library reads at once."""
    texts = ["the river ."] * 1_200 + documents(60, most_words=60)
    path = str(write(tmp_path / "a.jsonl", texts))
    examples = tokenize_texts(load([path], [path], streaming=streaming), word_tokenizer(), 12, view="next_sentence")
    pairs = [(list(row["input_ids"]), list(row["view_input_ids"])) for row in examples["train"]]
    expected = [pair for parts in parts_of(texts, 12) for pair in pairwise(parts)]
    assert pairs == expected
    assert len(pairs) > 60


def test_a_corpus_without_any_pair_is_an_error_with_the_remedy(tmp_path, load):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "the river .", "other": ""}] * 3)
    with pytest.raises(UsageError, match=r"no document of more than one text of 16 tokens; lower --max_length"):
        tokenize_texts(load([path], [path]), word_tokenizer(), 16, view="next_sentence")
    with pytest.raises(UsageError, match="no document of at least 2 tokens with a view"):
        tokenize_texts(load([path], [path], view_column="other"), word_tokenizer(), 16, view="column")


def test_a_column_that_cannot_be_a_view_is_named_with_the_remedy(tmp_path, load):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "the river", "title": "boat", "n": 1}] * 3)
    with pytest.raises(UsageError, match=r"no column 'titel'; did you mean 'title'\?.*; name one with --view_column"):
        load([path], [path], view_column="titel")
    with pytest.raises(UsageError, match="column 'n' holds int64, not text; name another with --view_column"):
        load([path], [path], view_column="n")
    with pytest.raises(UsageError, match="--view_column text: is the text itself; use --view same"):
        load([path], [path], view_column="text")
    with pytest.raises(UsageError, match="--view_column title: the built-in corpus has no second column"):
        load(view_column="title")


# ---- cache ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path, load):
    path = str(write(tmp_path / "a.jsonl", documents(50)))
    return load([path], [path])


def cache_of(examples):
    return examples["train"]._fingerprint, [file["filename"] for file in examples["train"].cache_files]


def test_a_tokenized_corpus_is_read_from_the_cache_even_after_the_tokenizer_was_used(corpus):
    tokenizer = word_tokenizer()
    first = cache_of(tokenize_texts(corpus, tokenizer, 16))
    written = [os.stat(path).st_mtime_ns for path in first[1]]
    tokenizer(WORDS, padding="max_length", truncation=True, max_length=7)
    tokenizer(WORDS, padding="longest", truncation=False)
    assert cache_of(tokenize_texts(corpus, tokenizer, 16)) == first
    assert cache_of(tokenize_texts(corpus, word_tokenizer(), 16)) == first
    assert [os.stat(path).st_mtime_ns for path in first[1]] == written


def test_the_use_of_a_tokenizer_does_not_change_the_examples(tmp_path, corpus):
    tokenizer = word_tokenizer()
    expected = ids_of(tokenize_texts(corpus, tokenizer, 16)["train"])
    tokenizer(WORDS, padding="max_length", truncation=True, max_length=7)
    assert ids_of(tokenize_texts(corpus, tokenizer, 16, overwrite_cache=True)["train"]) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"tokenizer": word_tokenizer("more")},
        {"tokenizer": word_tokenizer(before="")},
        {"max_length": 17},
        {"view": "next_sentence"},
    ],
    ids=["vocabulary", "special tokens", "length", "view"],
)
def test_the_cache_tells_tokenizers_lengths_and_views_apart(corpus, other):
    usual = {"tokenizer": word_tokenizer(), "max_length": 16}
    one, two = cache_of(tokenize_texts(corpus, **usual)), cache_of(tokenize_texts(corpus, **usual | other))
    assert one[0] != two[0]
    assert not set(one[1]) & set(two[1])


def test_the_cache_tells_corpora_apart(tmp_path, load, corpus):
    path = str(write(tmp_path / "b.jsonl", documents(50, seed=9)))
    other = tokenize_texts(load([path], [path]), word_tokenizer(), 16)
    assert cache_of(other)[0] != cache_of(tokenize_texts(corpus, word_tokenizer(), 16))[0]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_texts_give_the_same_tokenizer(kind):
    """The trainers of the tokenizers library break ties by the order of a hash table."""
    texts = [f"the harbour {i} of town {i * 7 % 13} lies north {'abc'[i % 3] * 3}" for i in range(500)]
    first, second = (train_tokenizer(texts, 300, kind=kind).get_vocab() for _ in range(2))
    assert first == second


def test_byte_level_bpe_knows_every_character_and_finds_it_again(tmp_path):
    train_tokenizer(["the river and the bridge"] * 3, 300, kind="bpe").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("The bridge of Łódź 東京")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert ids[0] == tokenizer.cls_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "the bridge of łódź 東京"


def test_texts_are_tokenized_in_groups_of_limited_length(monkeypatch):
    assert list(groups_of_texts(["aaa", "b", "cc", "dddddd", ""], 4)) == [["aaa", "b"], ["cc"], ["dddddd"], [""]]
    corpus = DatasetDict({"train": Dataset.from_dict({"text": documents(60)})})
    expected = ids_of(tokenize_texts(corpus, word_tokenizer(), 16)["train"])
    groups = []
    tokenize = _WholeTokens.tokenize
    monkeypatch.setattr(_WholeTokens, "tokenize", lambda self, texts: groups.append(texts) or tokenize(self, texts))
    with monkeypatch.context() as limited:
        limited.setattr(tokenization, "groups_of_texts", partial(groups_of_texts, characters=500))
        assert ids_of(tokenize_texts(corpus, word_tokenizer(), 16)["train"]) == expected
    assert max(sum(map(len, texts)) for texts in groups) <= 500
    groups.clear()
    monkeypatch.setattr(tokenization, "_CHARACTERS_AT_ONCE", 500)
    assert ids_of(tokenize_texts(corpus, word_tokenizer(), 16)["train"]) == expected
    assert max(map(len, groups)) < 10


def test_columns_are_read_at_once_and_not_row_by_row(tokenizer, monkeypatch):
    """numpy treats a column of the datasets library as a sequence and reads every row, at 50 µs each."""
    corpus = DatasetDict({"train": Dataset.from_dict({"text": ["a b c"] * 100})})
    asked = []
    take = datasets.arrow_dataset.Column.__getitem__
    monkeypatch.setattr(
        datasets.arrow_dataset.Column, "__getitem__", lambda self, key: asked.append(key) or take(self, key)
    )
    tokenize_texts(corpus, tokenizer, 16)
    assert asked
    assert not any(isinstance(key, int) for key in asked)


def test_documents_shorter_than_asked_are_left_out(tokenizer, tmp_path):
    corpus = DatasetDict({"train": Dataset.from_dict({"text": ["a b", "a b c d e f g h"]})})
    kept = [tokenize_texts(corpus, tokenizer, 16, min_length=least)["train"] for least in (2, 5)]
    assert [len(part) for part in kept] == [2, 1]
    with pytest.raises(UsageError, match="of at least 99 tokens"):
        tokenize_texts(corpus, tokenizer, 16, min_length=99)
