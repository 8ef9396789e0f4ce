"""Corpora: the files that are found, what is loaded of them, and what is held out.

Run: python -m pytest -q tests/data/test_corpus.py
"""

import json
from functools import partial

import datasets
import pytest
from corpora import documents, load_splits, write

from text_jepa.cli import UsageError
from text_jepa.data.corpus import CorpusArguments, find_files, load_corpus
from text_jepa.data.tokenization import (
    tokenize_texts,
    train_tokenizer,
)


def texts_of(part):
    return [row["text"] for row in part]


@pytest.fixture
def load(tmp_path):
    """The splits that `load_corpus` gives, with a cache of its own."""
    return partial(load_splits, tmp_path / "cache")


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
