"""From files to batches: what is found, loaded, held out, tokenized, cut, cached and batched.

Run: python -m pytest -q tests/data/test_corpus.py
The padding on a real corpus: TEXT_JEPA_DATA=folder python -m pytest -q -s tests/data/test_corpus.py -k real
(the folder holds pretrain/wikipedia_short/*.parquet and tokenizers/bert_base_uncased/vocab.txt)
"""

import csv
import gzip
import itertools
import json
import os
import random
from itertools import islice, pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from conftest import CASES
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from text_jepa.cli import UsageError
from text_jepa.data.batching import DocumentWindows, EndlessStream, LengthGroupedSampler, TextsWithSteps
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import CorpusArguments, find_files, load_corpus, read_rows
from text_jepa.data.masking import MaskStrategy
from text_jepa.data.tokenization import (
    DocumentCount,
    cut_points,
    sentence_end_table,
    special_tokens_around,
    tokenize_documents,
    tokenize_texts,
    train_tokenizer,
)


WORDS = ["the", "river", "carried", "a", "little", "boat", "past", "mill", "and", "bridge", "open", "sea", "came"]
PAD, UNK, CLS, SEP = range(4)


def word_tokenizer(*more, before="[CLS]", after="[SEP]"):
    """One token per word and per full stop, so that texts and ids can be read off each other."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *WORDS, *more]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def documents(count, seed=0, most_words=40):
    """Documents of a few sentences; each begins with a number of words of its own."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, most_words))
        texts.append(" ".join(word + " ." * (draw.random() < 0.2) for word in words))
    return texts


def write(path, texts, column="text"):
    """Writes one document per row in the form that the suffix says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({column: texts}), path)
        return path
    if kind == "txt":
        content = "".join(f"{text}\n" for text in texts)
    elif kind == "jsonl":
        content = "".join(json.dumps({column: text, "extra": 1}) + "\n" for text in texts)
    elif kind == "json":
        content = json.dumps([{column: text} for text in texts])
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter="\t" if kind == "tsv" else ",").writerows([[column], *[[t] for t in texts]])
        return path
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.fixture
def load(tmp_path):
    """The splits that `load_corpus` gives, with a cache of its own."""

    def splits(*files, seed=0, **fields):
        arguments = CorpusArguments(*files, **fields)
        return load_corpus(arguments, seed, cache_dir=str(tmp_path / "cache")).splits

    return splits


def texts_of(part):
    return [row["text"] for row in part]


def ids_of(part):
    return [list(map(int, row["input_ids"])) for row in part]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt.gz", "deep/table.csv", "deep/other.tsv", "note[1].txt", "code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["b.txt"], ["b.txt"]),
        (["b.txt", "a.txt"], ["b.txt", "a.txt"]),
        (["?.txt"], ["a.txt", "b.txt"]),
        (["**/*.txt*"], ["a.txt", "b.txt", "deep/c.txt.gz", "note[1].txt"]),
        (["note[1].txt"], ["note[1].txt"]),
        (["de*/*.gz", "a.txt"], ["deep/c.txt.gz", "a.txt"]),
    ],
)
def test_paths_and_globs_name_files_in_order(folder, patterns, names):
    found = find_files([str(folder / pattern) for pattern in patterns], "train_file")
    assert found == [str(folder / name) for name in names]


def test_a_folder_stands_for_the_files_in_it_however_deep(folder):
    for name in ("table.csv", "other.tsv"):
        (folder / "deep" / name).unlink()
    found = find_files([str(folder)], "train_file")
    assert found == sorted(str(folder / name) for name in ("a.txt", "b.txt", "deep/c.txt.gz", "note[1].txt"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.txt", r"^--train_file .*none\.txt: no such file$"),
        ("*.none", r"^--train_file .*\*\.none: no such file$"),
        ("dee[p]", r"^--train_file .*dee\[p\]: no such file$"),
        ("code", r"^--train_file .*code: no \.txt, .*\.tsv file in this folder$"),
        ("code.py", r"^--train_file .*code\.py: files of this kind are not read; use one of \.txt, .*\.parquet"),
        ("", r"^--train_file: files of different kinds \(\.csv, \.tsv, \.txt\); name one kind"),
        ("deep/*.?sv", r"^--train_file: files of different kinds \(\.csv, \.tsv\); name one kind"),
    ],
)
def test_files_that_cannot_be_meant_are_named_with_the_remedy(folder, pattern, message):
    with pytest.raises(UsageError, match=message):
        find_files([str(folder / pattern)], "train_file")


# ---- loading --------------------------------------------------------------------------------------------------------

KINDS = ["txt", "txt.gz", "json", "jsonl", "jsonl.gz", "parquet", "csv", "tsv"]


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_every_kind_of_file_arrive_in_order(tmp_path, load, kind, streaming):
    train, held_out = documents(30), documents(5, seed=1)
    files = [write(tmp_path / f"{name}.{kind}", texts) for name, texts in (("train", train), ("held", held_out))]
    corpus = load([str(files[0])], [str(files[1])], streaming=streaming)
    assert {split: texts_of(part) for split, part in corpus.items()} == {"train": train, "validation": held_out}


def test_no_server_is_told_of_the_files_that_are_read(tmp_path, load, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.load, "get_session", lambda: asked.append("session"))
    load([str(write(tmp_path / "texts.txt", documents(5)))])
    assert not asked


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["one", "two", "", "three", "", "four"]),
        ("paragraph", ["one\ntwo", "three", "four"]),
        ("document", ["one\ntwo\n\nthree\n\nfour"]),
    ],
)
def test_a_text_file_is_lines_paragraphs_or_one_document(tmp_path, load, sample_by, expected, streaming):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n\nfour")
    corpus = load([str(path)], [str(path)], sample_by=sample_by, streaming=streaming)
    assert texts_of(corpus["train"]) == texts_of(corpus["validation"]) == expected


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_another_column_becomes_the_text(tmp_path, load, kind, streaming):
    texts = documents(10)
    path = str(write(tmp_path / f"a.{kind}", texts, column="body"))
    corpus = load([path], [path], text_column="body", streaming=streaming)
    assert list(next(iter(corpus["train"]))) == ["text"]
    assert texts_of(corpus["train"]) == texts


@pytest.mark.parametrize("percentage", [5, 20, 0.1, 99.9])
def test_held_out_documents_are_a_share_by_seed_and_none_is_lost(tmp_path, load, percentage):
    texts = [f"{i} {text}" for i, text in enumerate(documents(100))]
    path = str(write(tmp_path / "a.jsonl", texts))
    one, again, other = (load([path], seed=seed, validation_split_percentage=percentage) for seed in (3, 3, 4))
    assert sorted(texts_of(one["train"]) + texts_of(one["validation"])) == sorted(texts)
    assert len(one["validation"]) == min(max(1, round(percentage)), 99)
    for split in one:
        assert texts_of(one[split]) == texts_of(again[split])
    assert texts_of(one["validation"]) != texts_of(other["validation"])


@pytest.mark.parametrize("percentage", [-5, 0, 100, 150])
def test_a_share_that_leaves_nothing_is_an_error(tmp_path, load, percentage):
    path = str(write(tmp_path / "a.jsonl", documents(10)))
    with pytest.raises(UsageError, match=f"--validation_split_percentage {percentage}: must be above 0 and below 100"):
        load([path], validation_split_percentage=percentage)


def test_a_stream_holds_out_its_first_documents(tmp_path, load):
    texts = [f"{i} {text}" for i, text in enumerate(documents(250))]
    corpus = load([str(write(tmp_path / "a.jsonl", texts))], streaming=True)
    assert texts_of(corpus["validation"]) == texts[:200]
    assert texts_of(corpus["train"]) == texts[200:]


def test_a_folder_with_splits_is_loaded_like_a_dataset_of_the_hub(tmp_path, load):
    parts = {"train": documents(20), "test": documents(5, seed=1)}
    (tmp_path / "set").mkdir()
    for name, texts in parts.items():
        write(tmp_path / "set" / f"{name}.jsonl", texts)
    corpus = load(dataset_name=str(tmp_path / "set"))
    assert texts_of(corpus["train"]) == parts["train"]
    assert texts_of(corpus["validation"]) == parts["test"]


def test_rows_without_text_and_odd_characters_are_read(tmp_path, load):
    texts = ["plain text here", None, "", "﻿byte order mark", "nul \x00 inside", "line\u2028separator", "a\r\nb"]
    path = str(write(tmp_path / "a.parquet", texts))
    for streaming in (False, True):
        corpus = load([path], [path], streaming=streaming)
        assert texts_of(corpus["train"]) == texts
        tokenizer = train_tokenizer(texts_of(corpus["train"]), 60)
        examples = tokenize_texts(corpus, tokenizer, 32)
        assert 4 <= len(list(examples["train"])) <= 5


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
        assert stop == (wanted - 1 if wanted == length - 1 else wanted)  # a single token is not left behind


def test_pieces_end_at_the_last_sentence_that_fits(load, tmp_path):
    sentence = "the river came ."
    path = str(write(tmp_path / "a.txt", [" ".join([sentence] * 5)]))
    corpus = load([path], [path])
    pieces = ids_of(tokenize_texts(corpus, word_tokenizer(), 12)["train"])
    assert [len(ids) - 2 for ids in pieces] == [8, 8, 4]


def test_sentences_end_at_tokens_that_end_in_a_mark():
    tokenizer = word_tokenizer("!", "?!", "。", "e.g", "##.")
    ends = np.flatnonzero(sentence_end_table(tokenizer))
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
    assert ids_of(stream["train"]) == (whole if with_held_out_file else whole[-len(ids_of(stream["train"])) :])
    if not with_held_out_file:
        assert ids_of(stream["validation"]) + ids_of(stream["train"]) == whole


def test_a_stream_of_documents_gives_the_windows_of_the_map_style_corpus_in_its_order(tmp_path, load):
    """Documents of one window, of several, and such as are split into parts before."""
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
    """The examples of each document, by the word tokenizer."""
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
    """More documents of a single part than the library reads at once come first."""
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


# ---- batches --------------------------------------------------------------------------------------------------------


def paragraph_lengths(count=6_000, most=128, seed=0):
    """Lengths spread like those of encyclopaedia paragraphs: log-normal, with a spike where they are cut."""
    lengths = np.random.default_rng(seed).lognormal(4.2, 0.7, count).astype(int)
    return np.clip(lengths, 4, most)


def padding_share(lengths, order, batch_size):
    """Share of a pass that is padding, if each batch is as wide as its longest text."""
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


# ---- steps ----------------------------------------------------------------------------------------------------------


TEXTS, BATCH, ACCUMULATION = 61, 3, 3


def texts_of_a_loader(count=TEXTS):
    """Numbered texts of different lengths."""
    rows = [[CLS, 5 + i % 13, *[5 + (i * 7 + j) % 13 for j in range(i % 11 + 2)], SEP] for i in range(count)]
    return Dataset.from_dict({"input_ids": rows, "length": [len(ids) for ids in rows]})


def loader_of(dataset, sampler, rank=0, ranks=1, workers=0, collate_fn=None):
    """A data loader as the Trainer makes it, of one of several processes."""
    loader = torch.utils.data.DataLoader(
        dataset,
        BATCH,
        sampler=sampler,
        collate_fn=collate_fn
        or (lambda examples: [(example["step"], tuple(example["input_ids"])) for example in examples]),
        num_workers=workers,
    )
    return prepare_data_loader(
        loader, num_processes=ranks, process_index=rank, put_on_device=False, dispatch_batches=False
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_text_of_a_batch_carries_the_step_that_the_trainer_counts(ranks, workers):
    """Two passes whose last steps are not full, and a resume in the middle of the second."""
    dataset = texts_of_a_loader()
    sampler = LengthGroupedSampler(dataset["length"], BATCH, seed=1, texts_per_step=BATCH * ACCUMULATION * ranks)
    for rank, epoch in itertools.product(range(ranks), range(2)):
        loader = loader_of(TextsWithSteps(dataset), sampler, rank, ranks, workers)
        resumed = skip_first_batches(loader, 5)
        for part in (loader, resumed):
            part.set_epoch(epoch)
        sampler.set_epoch(epoch)  # which the other two reach only in a single process
        batches = list(loader)
        first = epoch * -(-len(batches) // ACCUMULATION)
        steps = [{step for step, _ in batch} for batch in batches]
        expected = [{first + number // ACCUMULATION} for number in range(len(batches))]
        # To fill the last batches of two processes texts are repeated, with the step of their first appearance.
        assert steps[: -1 if ranks > 1 else None] == expected[: -1 if ranks > 1 else None]
        assert list(resumed) == batches[5:]


@pytest.mark.parametrize(("files", "workers"), [(1, 0), (2, 2), (1, 2)])
@pytest.mark.parametrize("ranks", [1, 2])
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
    """An endless stream of texts of these lengths, each with its `row`."""
    rows = {"input_ids": [[5] * length for length in lengths], "row": list(range(len(lengths)))}
    stream = Dataset.from_dict(rows).to_iterable_dataset(num_shards=shards)
    return EndlessStream(stream.shuffle(seed=0, buffer_size=buffer), **options)


def rows_of(stream, count):
    """Pass and row of the first texts of a stream."""
    return [(text["epoch"], text["row"]) for text in islice(stream, count)]


@settings(max_examples=CASES * 30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 4))
def test_every_text_of_a_stream_comes_once_per_pass(lengths, batch_size, pool_batches):
    """Whole passes fill whole batches sooner or later; at any time less than a batch waits."""
    stream = stream_of(lengths, batch_size=batch_size, pool_batches=pool_batches)
    found = rows_of(stream, batch_size * len(lengths))
    assert sorted(found) == list(itertools.product(range(batch_size), range(len(lengths))))


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
    """The datasets library keeps it where all workers see it; here one comes in between."""
    stream = stream_of(paragraph_lengths(100), batch_size=8)
    expected = rows_of(stream, 250)

    def meddled(rows, *source):
        stream.stream.set_epoch(7)
        return read_rows(rows, *source)

    monkeypatch.setattr("text_jepa.data.batching.read_rows", meddled)
    assert rows_of(stream, 250) == expected


@pytest.mark.parametrize("batch_size", [16, 32])
def test_batches_of_a_stream_pad_little_over_the_border_of_a_pass(batch_size):
    """Passes whose texts do not fill their last batch; and batches do not come in order of length."""
    lengths = paragraph_lengths(1_500 + batch_size // 2)
    order = [row for _, row in rows_of(stream_of(lengths, batch_size=batch_size, buffer=1_000), 3_000)]
    order = order[: len(order) // batch_size * batch_size]
    widths = lengths[np.array(order)].reshape(-1, batch_size)
    assert 1 - widths.sum() / (widths.max(axis=1).sum() * batch_size) < 0.08
    means = widths.mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 5 / np.sqrt(len(means))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_get_parts_of_similar_length_of_a_batch_of_a_stream(workers):
    """So that none waits long for another."""
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
    """Also in files and batches that hold nothing else, and by several workers."""
    texts = documents(30), ["boat", "", " "] * 500 + documents(10, seed=1), [*documents(20, seed=2), "boat"]
    paths = [str(write(tmp_path / f"{number}.jsonl", part)) for number, part in enumerate(texts)]
    count = DocumentCount()
    stream = tokenize_texts(load(paths, paths[:1], streaming=True), word_tokenizer(), 16, count=count)["train"]
    assert count.read == 0
    for passes in (1, 2):
        assert len(list(torch.utils.data.DataLoader(stream, None, num_workers=workers))) > 60
        assert (count.read, count.left_out) == (passes * 1_561, passes * 1_501)


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_of_a_schedule_survive_workers_and_a_resume(workers):
    dataset = texts_of_a_loader()
    sampler = LengthGroupedSampler(dataset["length"], BATCH, texts_per_step=BATCH)
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
    plain, stepped = (LengthGroupedSampler(lengths, 8, texts_per_step=number) for number in (None, 16))
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
@pytest.mark.parametrize("max_length", [128, 512])
def test_batches_of_a_real_corpus_pad_at_most_five_percent(load, max_length, capsys):
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
@pytest.mark.parametrize("max_length", [128, 512])
def test_batches_of_a_streamed_real_corpus_pad_at_most_five_percent(load, max_length, capsys):
    """Against the order in which the stream gives its texts."""
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


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_the_hub_is_read_by_split_and_column_with_its_own_held_out_part(tmp_path_factory, streaming):
    """Here a folder, which the datasets library reads as it reads a repository of the Hub."""
    folder = tmp_path_factory.mktemp("corpus")  # the library looks for names of splits in the whole path
    for split, count in (("train", 6), ("test", 3)):
        rows = [{"body": f"{split} document {i}", "id": i} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = str(tmp_path_factory.mktemp("cache"))
    arguments = CorpusArguments(dataset_name=str(folder), text_column="body", streaming=streaming)
    corpus = load_corpus(arguments, cache_dir=cache)
    assert (corpus.name, corpus.source) == (str(folder), (f"--dataset_name {folder}", ()))
    assert [row["text"] for row in corpus.splits["train"]] == [f"train document {i}" for i in range(6)]
    assert [row["text"] for row in corpus.splits["validation"]] == [f"test document {i}" for i in range(3)]
    arguments = CorpusArguments(dataset_name=str(folder), dataset_split="test", text_column="body")
    other = load_corpus(arguments, cache_dir=cache).splits
    assert len(other["train"]) + len(other["validation"]) == 3
    arguments = CorpusArguments(dataset_name=str(folder), dataset_split="dev", streaming=streaming)
    with pytest.raises(UsageError, match=r"--dataset_split dev: .* has the splits train, test"):
        load_corpus(arguments, cache_dir=cache)


def test_columns_are_read_at_once_and_not_row_by_row(tokenizer, monkeypatch):
    """numpy takes a column of the datasets library for a sequence and asks for each row, which costs 50 µs."""
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
