"""Tests corpora: the files that are found, the documents that are loaded, and those that are held out.

Run: python -m pytest -q tests/data/test_corpus.py
"""

import bz2
import contextlib
import errno
import gzip
import json
import lzma
import os
import re
import textwrap
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from corpora import documents, load_splits, write

from text_jepa.cli import UsageError
from text_jepa.data import compressed, folders, reading
from text_jepa.data.columns import missing_column
from text_jepa.data.compressed import suffix_of
from text_jepa.data.corpus import CorpusArguments, load_corpus
from text_jepa.data.files import PROSE, Form
from text_jepa.data.folders import find_files
from text_jepa.data.held_out import rows_in_turn
from text_jepa.data.repeats import near_copies
from text_jepa.data.tokenization import (
    tokenize_texts,
    train_tokenizer,
)


def texts_of(part):
    return [row["text"] for row in part]


@pytest.fixture
def load(tmp_path):
    """Calls `load_corpus` with a separate cache, and returns its splits."""
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


# ---- what a folder stands for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("package.json", '{"name": "notes", "dependencies": {"a": "1"}}'),
        ("log.jsonl", '{"level": "info", "message": "it runs"}\n' * 3),
        ("budget.csv", "item,cost\nrent,5\n"),
        ("deep/er/tsconfig.json", '{"compilerOptions": {}}'),
    ],
)
def test_tables_of_other_columns_among_prose_are_counted_and_not_read(tmp_path, caplog, name, content):
    notes = tmp_path / "notes"
    (notes / name).parent.mkdir(parents=True)
    (notes / "a.md").write_text("# A\n\nThe boats came home before the storm.\n" * 5)
    (notes / name).write_text(content)
    form = Form({"text": ("text",)})
    with caplog.at_level("WARNING"):
        assert find_files([str(notes)], "train_file", mixed=True, form=form) == [str(notes / "a.md")]
    assert f"1 file is not read ({os.path.basename(name)}; {len(content)} bytes)" in caplog.text
    assert "1 table has no column 'text'; --text_column names it" in caplog.text
    (notes / "a.md").unlink()
    (notes / "README.md").write_text("About.")  # describes a table, and is not a text
    assert find_files([str(notes)], "train_file", mixed=True, form=form) == [str(notes / name)]


DAMAGED = {
    "latin.txt": (
        "Café au lait.\n".encode("latin-1"),
        "latin.txt, line 1: not UTF-8 (byte 0xe9 in column 4); convert",
    ),
    "utf16.txt": ("The boats came home.".encode("utf-16-le"), "utf16.txt, line 1: a null character, as in UTF-16"),
    "utf16.html": ("<p>One</p>".encode("utf-16-le"), "utf16.html, line 1: a null character"),
    "binary.md": (b"The boats\n\0\1\2\n", "binary.md, line 2: a null character, as in UTF-16 and in binary files"),
    "utf16.jsonl": ('{"text": "one"}\n'.encode("utf-16-le"), "utf16.jsonl, line 1: a null character"),
    "cell.csv": (b"text,b\none,two\nthr\0ee,four\n", "cell.csv, line 3: a null character"),
    "latin.html": ("<p>Café</p>".encode("latin-1"), "latin.html, line 1: not UTF-8"),
    "deep/cut.json": (b'{"text": [1,', "cut.json: cannot be read: not JSON"),
    "cut.jsonl": (b'{"text": "one"}\n{"text": "tw', "cut.jsonl, line 2: not JSON"),
    "cut.parquet": (b"PAR1" + b"0" * 30, "cut.parquet: cannot be read"),
    "cut.txt.gz": (b"\x1f\x8b\x08" + b"0" * 20, "cut.txt.gz: cannot be read"),
    "numbers.csv": (b"text\n1\n2\n", "column 'text' holds int64"),
    "cells.csv": (b"text,b\none,two,three\n", "cells.csv: cannot be read: line 2 has 3 cells"),
}


@pytest.mark.parametrize(
    ("name", "streaming"),
    [*((name, False) for name in DAMAGED), *((name, True) for name in DAMAGED if suffix_of(Path(name)) not in PROSE)],
)
def test_a_damaged_file_among_notes_is_counted_named_and_not_read(tmp_path, load, caplog, name, streaming):
    content, reason = DAMAGED[name]
    texts = documents(20)
    for number, text in enumerate(texts):
        write(tmp_path / "notes" / f"{number}.md", [text])
    path = tmp_path / "notes" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with caplog.at_level("WARNING"):
        corpus = load([str(tmp_path / "notes")], [str(tmp_path / "notes" / "0.md")], streaming=streaming)
    assert texts_of(corpus["train"]) == [texts[number] for number in sorted(range(1, 20), key=str)]
    assert f"1 file is not read ({path.name}; {len(content)} bytes). " in caplog.text
    assert reason in caplog.text
    # A damaged file is an error if it is named, or if its folder has only tables.
    with pytest.raises(UsageError, match=r"^--train_file "):
        load([str(tmp_path / "notes"), str(path)])


def test_no_file_is_read_to_its_end_before_a_stream_begins(tmp_path, load, caplog):
    """Only the beginnings of tables are checked; damage after that is reported when it is read."""
    notes = tmp_path / "notes"
    write(notes / "a.md", documents(200))
    write(notes / "rows.jsonl", documents(1_000))
    with open(notes / "rows.jsonl", "a") as file:
        file.write('{"text": "tw')
    (notes / "latin.txt").write_bytes("Café au lait.\n".encode("latin-1"))
    (notes / "package.json").write_text('{"name": "notes"}')
    find = partial(find_files, [str(notes)], "train_file", mixed=True, form=Form({"text": ("text",)}))
    assert find(streaming=True) == [str(notes / name) for name in ("a.md", "latin.txt", "rows.jsonl")]
    assert "1 file is not read (package.json; 17 bytes)" in caplog.text
    with pytest.raises(UsageError, match=r"latin\.txt, line 1: not UTF-8"):
        load([str(notes)], streaming=True)
    (notes / "latin.txt").unlink()
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 1001: not JSON"):
        load([str(notes)], [str(notes / "a.md")], streaming=True)


def test_files_are_read_to_their_end_first_up_to_a_bound(tmp_path, monkeypatch):
    """Only small tables are checked, and the shortest files up to a total size."""
    damaged = {
        "note.txt": "x" * 100 + "é\n",
        "small.txt": "é\n",
        "table.jsonl": '{"text": "one"}\n' * 1_000 + '{"text": "ñ"}\n',
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    (tmp_path / "whole.txt").write_text("x" * 100_000)

    def find():
        found = find_files([str(tmp_path)], "train_file", mixed=True, form=Form({"text": ("text",)}))
        return [os.path.basename(path) for path in found]

    assert find() == ["whole.txt"]
    monkeypatch.setattr(folders, "_LONGEST_TABLE", 10_000)
    assert find() == ["table.jsonl", "whole.txt"]
    monkeypatch.setattr(folders, "_READ_FIRST", 100)
    assert find() == ["note.txt", "table.jsonl", "whole.txt"]


def test_a_folder_of_which_most_is_damaged_is_refused(tmp_path):
    write(tmp_path / "notes" / "a.md", ["Few words."])
    for name in ("b.txt", "c.txt"):
        (tmp_path / "notes" / name).write_bytes("Café au lait.\n".encode("latin-1"))
    form = Form({"text": ("text",)})
    with pytest.raises(
        UsageError, match=r"2 files are not read .*more than .*a\.md.*2 cannot be read, as .*b\.txt, line 1"
    ):
        find_files([str(tmp_path / "notes")], "train_file", mixed=True, form=form)
    (tmp_path / "notes" / "a.md").unlink()
    with pytest.raises(UsageError, match=r"2 files are not read .*and there is no other\. 2 cannot be read"):
        find_files([str(tmp_path / "notes")], "train_file", mixed=True, form=form)


def test_a_damaged_table_among_tables_and_a_pointer_among_notes_are_errors(tmp_path, load):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / "tables" / name, documents(20))
    (tmp_path / "tables" / "c.jsonl").write_text('{"text": "tw')
    with pytest.raises(UsageError, match=r"c\.jsonl, line 1: not JSON"):
        load([str(tmp_path / "tables")])
    write(tmp_path / "notes" / "a.md", documents(20))
    (tmp_path / "notes" / "b.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    with pytest.raises(UsageError, match=r"b\.txt: a pointer of git-lfs"):
        load([str(tmp_path / "notes")])


@pytest.mark.parametrize(
    ("files", "held_out", "taken"),
    [
        (["train.jsonl", "validation.jsonl", "test.jsonl"], ["validation.jsonl"], ["validation.jsonl", "test.jsonl"]),
        (["train.txt", "test.txt"], ["test.txt"], ["test.txt"]),
        (["wiki/Train.jsonl", "wiki/dev.jsonl", "more.jsonl"], ["wiki/dev.jsonl"], ["wiki/dev.jsonl"]),
        (
            ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "val-00000-of-00001.jsonl"],
            ["val-00000-of-00001.jsonl"],
            ["val-00000-of-00001.jsonl"],
        ),
        (
            ["train-00000-of-00001-a09b74b3ef9c3b56.jsonl", "test-00000-of-00001-0d5b26c3f1a9e784.jsonl"],
            ["test-00000-of-00001-0d5b26c3f1a9e784.jsonl"],
            ["test-00000-of-00001-0d5b26c3f1a9e784.jsonl"],
        ),
        (
            ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"],
            ["dev_matched.tsv", "dev_mismatched.tsv"],
            ["dev_matched.tsv", "dev_mismatched.tsv"],
        ),
        (["train-v1.1.json", "dev-v1.1.json"], ["dev-v1.1.json"], ["dev-v1.1.json"]),
        (["train_0.jsonl", "test_0.jsonl"], ["test_0.jsonl"], ["test_0.jsonl"]),
        (
            ["c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz"],
            ["c4-validation.00000-of-00008.json.gz"],
            ["c4-validation.00000-of-00008.json.gz"],
        ),
        (
            ["default/train/0.parquet", "default/test/0.parquet"],
            ["default/test/0.parquet"],
            ["default/test/0.parquet"],
        ),
        (["imdb/train/pos/a.txt", "imdb/test/pos/a.txt"], ["imdb/test/pos/a.txt"], ["imdb/test/pos/a.txt"]),
        (
            ["test/train.txt", "test/test.txt", "train/a.txt"],
            ["test/train.txt", "test/test.txt"],
            ["test/train.txt", "test/test.txt"],
        ),
        (["dev.txt", "test.txt", "training-plan.txt", "test-results.txt"], None, []),
        (["how-to-train.txt", "unit-test.txt", "attrain.txt", "a/train/a.txt", "b/test/a.txt"], None, []),
        (["train-to-rome.txt", "test-drive.txt", "how-to-train-dogs.txt", "how-to-test-batteries.txt"], None, []),
        (["ptb.train.txt", "ptb.test.txt"], ["ptb.test.txt"], ["ptb.test.txt"]),
    ],
)
def test_splits_of_a_folder_are_known_by_the_names_of_their_files(tmp_path, load, caplog, files, held_out, taken):
    texts = {name: [f"{name} {text}" for text in documents(20)] for name in files}
    for name in files:
        write(tmp_path / "set" / name, texts[name])
    with caplog.at_level("WARNING"):
        corpus = load([str(tmp_path / "set")])
    trained = [name for name in files if name not in taken]
    if held_out is None:
        assert {text.split()[0] for text in texts_of(corpus["train"])} == set(files)
        assert "by name" not in caplog.text
        return
    assert sorted(texts_of(corpus["train"])) == sorted(text for name in trained for text in texts[name])
    assert sorted(texts_of(corpus["validation"])) == sorted(text for name in held_out for text in texts[name])
    assert "not trained on, by name" in caplog.text
    # Files that are named are trained on.
    named = load([str(tmp_path / "set" / name) for name in files])
    assert len(named["train"]) + len(named["validation"]) == 20 * len(files)


@pytest.mark.parametrize("names", [["set/train", "set/test"], ["set", "set/test"]], ids=["each", "around"])
def test_a_folder_of_a_split_that_is_named_is_trained_on(tmp_path, load, names):
    for split in ("train", "test"):
        write(tmp_path / "set" / split / "a.jsonl", [f"{split} {text}" for text in documents(20)])
    corpus = load([str(tmp_path / name) for name in names])
    assert len(corpus["train"]) + len(corpus["validation"]) == 40


def test_a_validation_file_that_is_named_comes_before_that_of_the_folder(tmp_path, load):
    for name in ("set/train.jsonl", "set/validation.jsonl", "other.jsonl"):
        write(tmp_path / name, [f"{name} {text}" for text in documents(20)])
    corpus = load([str(tmp_path / "set")], [str(tmp_path / "other.jsonl")])
    assert {text.split()[0] for text in texts_of(corpus["train"])} == {"set/train.jsonl"}
    assert {text.split()[0] for text in texts_of(corpus["validation"])} == {"other.jsonl"}


def test_names_that_are_not_utf_8_are_counted_and_not_read(tmp_path, caplog):
    (tmp_path / "a.md").write_text("The boats came home before the storm.\n" * 5)
    for name in (b"caf\xe9.md", b"\xff.txt", b"d\xe9r"):
        path = os.path.join(os.fsencode(tmp_path), name)
        if name == b"d\xe9r":
            os.mkdir(path)
            path += b"/b.md"
        with open(path, "w") as file:
            file.write("A text.\n")
    with caplog.at_level("WARNING"):
        assert find_files([str(tmp_path)], "train_file", mixed=True) == [str(tmp_path / "a.md")]
    assert "3 files are not read" in caplog.text
    assert "caf\\udce9.md' (not UTF-8)" in caplog.text


@pytest.mark.parametrize("name", ["a.TXT", "a.Text", "a.JsonL", "a.CSV", "a.jsonl.GZ", "A.PARQUET"])
def test_suffixes_are_known_in_any_case(tmp_path, load, name):
    kind = name.lower().split(".", 1)[1]
    texts = documents(10)
    write(tmp_path / "set" / f"b.{kind}", texts[:5])
    (tmp_path / "set" / f"b.{kind}").rename(tmp_path / "set" / name)
    write(tmp_path / "set" / f"c.{kind}", texts[5:])
    corpus = load([str(tmp_path / "set")], [str(tmp_path / "set" / name)])
    assert len(find_files([str(tmp_path / "set")], "train_file")) == 2
    assert texts_of(corpus["train"]) == texts[5:]


@pytest.mark.parametrize(
    "name",
    [
        "._a.txt",
        ".DS_Store",
        ".ipynb_checkpoints/a-checkpoint.txt",
        ".git/objects/a.txt",
        "~$a.txt",
        "a.txt~",
        "#a.txt#",
        "__MACOSX/a.txt",
        "runs/a/_lock",
    ],
)
def test_hidden_files_and_copies_are_no_texts(tmp_path, caplog, name):
    for path in (tmp_path / "a.txt", tmp_path / name):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("some text")
    assert find_files([str(tmp_path)], "train_file") == [str(tmp_path / "a.txt")]
    assert not caplog.records


def test_a_file_is_read_once_however_often_it_is_named(tmp_path):
    folder = tmp_path / "set"
    path = write(folder / "a.txt", documents(3))
    write(tmp_path / "other" / "b.txt", documents(3))
    (folder / "link.txt").symlink_to(path)
    os.link(path, folder / "hard.txt")
    (folder / "other").symlink_to(tmp_path / "other")
    (folder / "loop").symlink_to(folder)
    found = find_files([str(folder), str(path), str(folder / "*.txt")], "train_file")
    assert found == [str(folder / "a.txt"), str(folder / "other" / "b.txt")]


def test_a_file_beside_its_packed_form_is_read_once(tmp_path, caplog):
    for name in ("a.txt", "a.txt.gz", "b.txt.gz"):
        write(tmp_path / name, documents(3))
    assert find_files([str(tmp_path)], "train_file") == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")]
    assert "1 file is not read (a.txt.gz; " in caplog.text
    (tmp_path / "a.txt").write_bytes("Café au lait.\n".encode("latin-1"))
    found = find_files([str(tmp_path)], "train_file", form=Form({"text": ("text",)}))
    assert found == [str(tmp_path / "a.txt.gz"), str(tmp_path / "b.txt.gz")]


def test_what_is_not_read_is_counted_in_one_line(tmp_path, caplog):
    write(tmp_path / "a.txt", documents(20))
    for name in ("a.pdf", "b.docx", "c.png", "d.zip"):
        (tmp_path / name).write_bytes(b"0123456789")
    find_files([str(tmp_path)], "train_file")
    line = "4 files are not read (a.pdf, b.docx, c.png and 1 more; 40 bytes)"
    assert [record.getMessage() for record in caplog.records] == [f"--train_file {tmp_path}: {line}"]


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.mp3", "a.css", "a.woff2"])
def test_pictures_and_styles_do_not_outweigh_texts(tmp_path, caplog, name):
    write(tmp_path / "a.txt", ["Few words."])
    (tmp_path / name).write_bytes(b"0123456789" * 10)
    assert find_files([str(tmp_path)], "train_file") == [str(tmp_path / "a.txt")]
    assert f"1 file is not read ({name}; 100 bytes)" in caplog.text


@pytest.mark.parametrize("name", ["a.jsonl.lz4", "shard.bin", "a.pdf"])
def test_a_folder_of_which_most_is_not_read_is_refused(tmp_path, name):
    (tmp_path / "README.md").write_text("These are my texts.")
    (tmp_path / name).write_bytes(b"0123456789" * 10)
    with pytest.raises(UsageError, match=rf"1 file is not read \({name}; 100 bytes\).* more than the 19 .*README\.md"):
        find_files([str(tmp_path)], "train_file")


RUNS_AND_MODELS = {
    "a run that was killed": ("arguments.yaml", "changed.yaml"),
    "a run of an earlier version": ("arguments.yaml", "metrics.jsonl"),
    "an encoder": ("config.json", "model.safetensors"),
    "a tokenizer": ("tokenizer_config.json", "vocab.txt"),
    "a comparison": ("results.json", "results.md"),
}


@pytest.mark.parametrize("names", RUNS_AND_MODELS.values(), ids=[name.replace(" ", "-") for name in RUNS_AND_MODELS])
def test_what_runs_and_models_consist_of_is_no_text(tmp_path, monkeypatch, caplog, names):
    caplog.set_level("INFO")
    write(tmp_path / "a.md", documents(3))
    run = tmp_path / "runs" / "notes"
    write(run / "README.md", documents(30))
    write(run / "checkpoint-2" / "b.md", documents(30))
    for name in names:
        (run / name).write_text("0123456789" * 1_000)
    monkeypatch.chdir(tmp_path)
    assert find_files(["."], "train_file", mixed=True) == ["./a.md"]
    assert [record.getMessage() for record in caplog.records] == [
        "--train_file .: folders of runs, models or results are left out: runs/notes; name such a folder explicitly "
        "to read it"
    ]
    assert find_files(["**/*.md"], "train_file") == ["a.md"]
    assert "runs/notes/README.md" in find_files(["runs/notes/*.md"], "train_file")


TEXTS_BESIDE = [
    ("arguments.yaml",),
    ("config.json",),
    ("config.json", "cc.en.300.bin"),
    ("results.md",),
    ("model.safetensors",),
    ("tokenizer_config.json",),
]


@pytest.mark.parametrize("names", TEXTS_BESIDE, ids=["-".join(names) for names in TEXTS_BESIDE])
def test_a_folder_with_less_than_a_model_is_read(tmp_path, names):
    write(tmp_path / "deep" / "a.md", documents(30))
    for name in names:
        (tmp_path / "deep" / name).write_text("{}")
    found = find_files([str(tmp_path)], "train_file", mixed=True, form=Form({"text": ("text",)}))
    assert str(tmp_path / "deep" / "a.md") in found


def test_files_that_a_glob_names_are_read_beside_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a" / "b" / "n.txt", documents(3))
    for name in ("tokenizer_config.json", "vocab.txt"):
        (tmp_path / "a" / "b" / name).write_text("{}")
    assert find_files(["a/*/n.txt"], "train_file") == ["a/b/n.txt"]


@pytest.mark.parametrize("name", ["C#/a.md", "#general/a.md", "#1 idea.md"])
def test_a_name_with_a_hash_is_no_copy(tmp_path, name):
    write(tmp_path / name, documents(3))
    write(tmp_path / "#autosaved.md#", documents(3))
    assert find_files([str(tmp_path)], "train_file", mixed=True) == [str(tmp_path / name)]


@pytest.mark.parametrize("name", ["~$n.txt", "~no-such-user/n.txt"])
def test_a_tilde_before_no_user_is_a_part_of_the_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^--train_file ~.*n\.txt: no such file$"):
        find_files([name], "train_file")
    write(tmp_path / name, documents(3))
    assert find_files([name], "train_file") == [name]


def test_folders_that_a_glob_matches_are_named(tmp_path, caplog):
    for name in ("a.md", "deep/b.md", "deep/er/c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write(tmp_path / name, documents(3))
    assert find_files([str(tmp_path / "*")], "train_file") == [str(tmp_path / "a.md")]
    assert f"--train_file {tmp_path / '*'}: matches folders, which are not read: deep; to read them" in caplog.text
    caplog.clear()
    assert len(find_files([str(tmp_path / "**" / "*")], "train_file")) == 3
    assert len(find_files([str(tmp_path / "*.md")], "train_file")) == 1
    assert not caplog.records


def test_a_pipe_is_refused_with_the_remedy(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UsageError, match=r"pipe\.txt: this is a pipe or a device, which cannot be read twice; save"):
        find_files([str(tmp_path / "pipe.txt")], "train_file")


@pytest.mark.parametrize("table", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.zst"])
def test_the_readme_of_a_table_is_no_text_and_that_of_prose_is(tmp_path, caplog, table):
    (tmp_path / "README.md").write_text("About.")
    write(tmp_path / "a.txt", documents(3))
    assert len(find_files([str(tmp_path)], "train_file")) == 2
    (tmp_path / "a.txt").unlink()
    write(tmp_path / table, documents(30))
    assert find_files([str(tmp_path)], "train_file") == [str(tmp_path / table)]
    assert "README.md" in caplog.text


def test_only_what_describes_a_table_is_left_out(tmp_path):
    """In its folder or above it, and by the whole name."""
    write(tmp_path / "tables" / "a.jsonl", documents(30))
    for name in ("README.md", "tables/README.de.md", "tables/noticeboard.md", "prose/README.md", "prose/changelog.md"):
        write(tmp_path / name, documents(3))
    names = ["prose/README.md", "prose/changelog.md", "tables/a.jsonl", "tables/noticeboard.md"]
    assert find_files([str(tmp_path)], "train_file", mixed=True) == [str(tmp_path / name) for name in names]


def test_what_the_hub_writes_beside_tables_is_no_table(tmp_path, caplog):
    write(tmp_path / "data" / "train.parquet", documents(100))
    (tmp_path / "README.md").write_text("About.")
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    found = find_files([str(tmp_path)], "train_file", mixed=True, form=Form({"text": ("text",)}))
    assert found == [str(tmp_path / "data" / "train.parquet")]
    assert "README.md, dataset_infos.json" in caplog.text


def test_a_table_with_the_name_of_a_description_is_read_if_it_is_alone(tmp_path):
    path = write(tmp_path / "config.json", documents(3))
    assert find_files([str(tmp_path)], "train_file") == [str(path)]


@pytest.mark.parametrize("name", ["valid.txt", "deep/valid.txt", "link.txt"])
def test_a_held_out_file_in_the_folder_is_not_trained_on(tmp_path, load, caplog, name):
    folder = tmp_path / "set"
    train = [f"train {text}" for text in documents(20)]
    held_out = [f"held out {text}" for text in documents(5)]
    write(folder / "train.txt", train)
    path = write(folder / "deep" / "x.txt" if name == "link.txt" else folder / name, held_out)
    if name == "link.txt":
        (tmp_path / name).symlink_to(path)
    named = tmp_path / name if name == "link.txt" else path
    for streaming in (False, True):
        caplog.clear()
        corpus = load([str(folder)], [str(named)], streaming=streaming)
        assert texts_of(corpus["train"]) == train
        assert texts_of(corpus["validation"]) == held_out
        assert f"not trained on, as --validation_file names them: {path.name}" in caplog.text


def test_held_out_documents_among_those_to_train_on_are_counted(tmp_path, load, caplog):
    texts = [f"{i} {text}" for i, text in enumerate(documents(20))]
    train, held_out = write(tmp_path / "a.txt", ["", *texts]), write(tmp_path / "b.txt", ["", *texts[:3], "another"])
    load([str(train)], [str(held_out)])
    assert "3 of 20 training documents also occur in the held-out set" in caplog.text
    caplog.clear()
    load([str(write(tmp_path / "c.txt", texts))])
    assert "held-out set" not in caplog.text
    load([str(write(tmp_path / "d.txt", texts * 3))])
    assert "of 57 training documents also occur in the held-out set" in caplog.text


def test_held_out_documents_in_a_stream_are_counted_among_its_first(tmp_path, load, caplog):
    texts = [f"{i} {text}" for i, text in enumerate(documents(20))]
    train, held_out = write(tmp_path / "a.txt", texts), write(tmp_path / "b.txt", ["", *texts[:3], "another"])
    corpus = load([str(train)], [str(held_out)], streaming=True)
    assert "3 of the first 20 training documents also occur in the held-out set" in caplog.text
    assert texts_of(corpus["train"]) == texts
    caplog.clear()
    load([str(train)], [str(write(tmp_path / "c.txt", ["another", "one more"]))], streaming=True)
    assert "also occur" not in caplog.text


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_held_out_documents_of_a_dataset_among_those_to_train_on_are_counted(tmp_path_factory, caplog, streaming):
    folder = tmp_path_factory.mktemp("corpus")  # the library searches the whole path for names of splits
    texts = [f"{i} {text}" for i, text in enumerate(documents(20))]
    write(folder / "train.jsonl", texts)
    write(folder / "test.jsonl", texts[:3])
    arguments = CorpusArguments(dataset_name=str(folder), streaming=streaming)
    load_corpus(arguments, cache_dir=str(tmp_path_factory.mktemp("cache")))
    assert re.search("3 of (the first )?20 training documents also occur in the held-out set", caplog.text)


def test_held_out_documents_that_are_all_there_is_are_said(tmp_path, load, caplog):
    path = str(write(tmp_path / "a.txt", documents(5)))
    load([path], [path])
    assert "the training files are also held out" in caplog.text


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_packed_files_are_read_whatever_their_name(tmp_path, load, kind, packing, streaming):
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[packing]
    texts = documents(30)
    content = write(tmp_path / f"a.{kind}", texts).read_bytes()
    for name in (f"b.{kind}.{packing}", f"c.{kind}"):
        (tmp_path / name).write_bytes(pack(content))
        path = str(tmp_path / name)
        assert texts_of(load([path], [path], streaming=streaming)["train"]) == texts
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / f"b.{kind}.{packing}").write_bytes(pack(content)[:-5])
    with pytest.raises(
        UsageError, match=rf"^--train_file .*b\.{kind}\.{packing}: cannot be read: .*may be incomplete"
    ):
        load([str(tmp_path / "cut")])


def test_shards_without_content_and_frames_to_skip_are_unpacked(tmp_path, load):
    texts = documents(30)
    content = write(tmp_path / "a.jsonl", texts).read_bytes()
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.jsonl.zst").write_bytes(skipped + zstd(content[:100]) + skipped + zstd(content[100:]))
    (tmp_path / "set" / "c.jsonl.bz2").write_bytes(bz2.compress(b""))
    assert texts_of(load([str(tmp_path / "set")], [str(tmp_path / "a.jsonl")])["train"]) == texts


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def test_a_pointer_to_a_file_is_not_the_file(tmp_path, load):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    write(tmp_path / "notes" / "a.md", documents(200))
    for name in ("a.txt", "a.jsonl", "a.csv", "a.parquet", "a.arrow"):
        path = tmp_path / "notes" / name
        path.write_text(pointer)
        for named in (path, path.parent):
            with pytest.raises(UsageError, match=rf"^--train_file .*{name}: a pointer of git-lfs.*git lfs pull"):
                load([str(named)])
        path.unlink()


def test_a_compressed_table_of_arrow_is_refused_by_name(tmp_path, load):
    path = write(tmp_path / "a.parquet", documents(20))
    packed = tmp_path / "b.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UsageError, match=r"^--train_file .*b\.parquet\.gz: a compressed parquet file.*; unpack it"):
        load([str(packed)])


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("flag", ["train_file", "dataset_name"])
def test_a_folder_of_save_to_disk_is_a_corpus(tmp_path, load, flag, streaming):
    train, held_out = documents(30), documents(5, seed=1)
    one = datasets.Dataset.from_dict({"text": train, "n": list(range(30))})
    one.save_to_disk(tmp_path / "one", num_shards=2)
    parts = {"train": one, "test": datasets.Dataset.from_dict({"text": held_out, "n": list(range(5))})}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    name = str(tmp_path / "parts")
    corpus = load(**{flag: [name] if flag == "train_file" else name}, streaming=streaming)
    assert {split: texts_of(part) for split, part in corpus.items()} == {"train": train, "validation": held_out}
    if flag == "train_file":
        corpus = load([str(tmp_path / "one")], [str(tmp_path / "parts" / "test")], streaming=streaming)
        assert {split: texts_of(part) for split, part in corpus.items()} == {"train": train, "validation": held_out}
    elif not streaming:
        corpus = load(dataset_name=str(tmp_path / "one"))
        assert sorted(texts_of(corpus["train"]) + texts_of(corpus["validation"])) == sorted(train)


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_saved_format_of_other_columns_leaves_the_text(tmp_path, load, streaming):
    texts = documents(300)
    saved = datasets.Dataset.from_dict({"text": texts, "n": list(range(300))})
    saved.set_format("numpy", columns=["n"])
    saved.save_to_disk(tmp_path / "one")
    corpus = load(dataset_name=str(tmp_path / "one"), streaming=streaming)
    assert set(texts_of(corpus["train"]) + texts_of(corpus["validation"])) == set(texts)


def test_a_damaged_folder_of_save_to_disk_is_named(tmp_path, load):
    datasets.Dataset.from_dict({"text": documents(30)}).save_to_disk(tmp_path / "one")
    state = (tmp_path / "one" / "state.json").read_text()
    (tmp_path / "one" / "state.json").write_text(state[:-20])
    with pytest.raises(UsageError, match=r"one: a damaged folder of save_to_disk"):
        load([str(tmp_path / "one")])
    (tmp_path / "one" / "state.json").write_text(state)
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(UsageError, match=r"\.arrow: missing, though .*state\.json names it"):
        load([str(tmp_path / "one")])
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "dataset_dict.json").write_text("{}")
    for named in ({"train_file": [str(tmp_path / "parts")]}, {"dataset_name": str(tmp_path / "parts")}):
        with pytest.raises(UsageError, match=r"parts: a damaged folder of save_to_disk \('splits'\); save it again"):
            load(**named)


def test_a_file_called_state_makes_no_folder_of_save_to_disk(tmp_path):
    write(tmp_path / "a.md", documents(30))
    (tmp_path / "state.json").write_text('{"window": 3}')
    found = find_files([str(tmp_path)], "train_file", mixed=True, form=Form({"text": ("text",)}))
    assert found == [str(tmp_path / "a.md")]


# ---- files without columns ------------------------------------------------------------------------------------------


@pytest.fixture
def new_folder(tmp_path):
    """An empty folder beside the cache."""
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


PAGE = "<html><head><title>T</title></head><body><nav>Home</nav><main><h1>Boats</h1><p>One.</p></main></body></html>"
PROSE = {
    "md": ("# Boats\n\nOne\ntwo.\n", "# Boats\nOne two."),
    "rst": ("Boats\n=====\n\nOne\ntwo.\n", "Boats\n=====\nOne two."),
    "html": (PAGE, "Boats\nOne."),
    "txt": ("One.\n\nTwo.\n", "One.\n\nTwo."),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_mixed_folder_is_read_by_kind(tmp_path, load, packing, streaming):
    folder = tmp_path / "set"
    folder.mkdir()
    for kind, (content, _) in PROSE.items():
        content = content.encode()
        (folder / f"a.{kind}{packing}").write_bytes(gzip.compress(content) if packing else content)
    write(folder / "b.jsonl", ["a row"], column="body")
    write(folder / "c.csv", ["another"], column="body")
    corpus = load([str(folder)], [str(folder)], text_column="body", streaming=streaming)
    expected = {text for _, text in PROSE.values()} | {"a row", "another"}
    assert set(texts_of(corpus["train"])) == expected
    assert all(row.keys() == {"text"} for row in corpus["train"])


def test_what_files_are_read_as_is_said_with_the_flag(tmp_path, load, caplog):
    caplog.set_level("INFO")
    for kind, (content, _) in PROSE.items():
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "set" / kind / f"{number}.{kind}").write_text(content)
    write(tmp_path / "set" / "txt" / "list.txt", documents(50))
    load([str(tmp_path / "set")])
    listed = (
        "3 .html (the text of pages), 3 .md (sections), 3 .rst (sections), 3 .txt (paragraphs between blank lines) "
        "and 1 .txt (a text in each line)"
    )
    assert f"read as {listed}; a file is a document" in caplog.text
    assert "--sample_by changes this" in caplog.text
    caplog.clear()
    load([str(tmp_path / "set")], sample_by="document")
    assert "read as" not in caplog.text


@pytest.mark.parametrize("kind", PROSE)
def test_a_damaged_file_without_columns_is_named(new_folder, load, kind):
    for number in range(3):
        (new_folder / f"{number}.{kind}").write_text(PROSE[kind][0])
    (new_folder / f"3.{kind}").write_bytes(b"Good.\n\nCaf\xe9.\n")
    with pytest.raises(UsageError, match=rf"^--train_file .*3\.{kind}, line 3: not UTF-8 \(byte 0xe9"):
        load([str(new_folder / "*")])


def test_a_page_is_read_in_the_character_set_that_it_names(new_folder, load):
    page = '<meta charset="{}"><p>“Caf\xe9”</p>'
    for name, charset in (("a", "latin-1"), ("b", "cp1252"), ("c", "utf-8"), ("d", "ascii"), ("f", "utf-16")):
        # The HTML standard reads Latin-1 and ASCII as Windows-1252, and UTF-16 as UTF-8.
        content = page.format(charset).encode("utf-8" if charset.startswith("utf") else "cp1252")
        (new_folder / f"{name}.html").write_bytes(content)
    (new_folder / "g.html").write_bytes("<p>“Café”</p>".encode())
    corpus = load([str(new_folder)], [str(new_folder)], drop_repeats="none")
    assert texts_of(corpus["train"]) == ["“Café”"] * 6
    (new_folder / "e.html").write_bytes(page.format("no-such").encode())
    with pytest.raises(UsageError, match=r"e\.html: unknown character set 'no-such'; convert"):
        load([str(new_folder / "e.html")])


def test_pages_without_text_are_counted(new_folder, load, caplog):
    script = "<html><body><div id=app></div><script>draw()</script></body></html>"
    for number in range(5):
        (new_folder / f"{number}.html").write_text(script if number == 2 else f"<p>Page {number}.</p>")
    load([str(new_folder)])
    assert "--train_file: 1 of 5 files contain no text (2.html)" in caplog.text


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
def test_a_table_may_have_another_delimiter(tmp_path, load, delimiter):
    path = tmp_path / "a.csv"
    text = "one two" if delimiter in ",;" else "one, two; three"
    path.write_text(f'id{delimiter}text\n1{delimiter}{text}\n2{delimiter}"a{delimiter}b"\n')
    assert texts_of(load([str(path)], [str(path)])["train"]) == [text, f"a{delimiter}b"]


def test_many_short_text_files_are_a_document_each(tmp_path, load):
    for number in range(20):
        write(tmp_path / "set" / f"{number:02}.txt", [f"Title {number}", "One line.", "Another line."])
    corpus = load([str(tmp_path / "set")], [str(tmp_path / "set" / "00.txt")])
    assert texts_of(corpus["train"])[0] == "Title 1\nOne line.\nAnother line."
    assert len(corpus["train"]) == 19


def test_a_long_file_is_divided_at_its_paragraphs(tmp_path, load):
    paragraphs = [f"{number} " + "word " * 30 + "end." for number in range(40)]
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(paragraphs))
    corpus = load([str(path)], [str(path)])
    texts = texts_of(corpus["train"])
    assert "\n\n".join(texts) == "\n\n".join(paragraphs)
    assert len(texts) > 1
    assert max(map(len, texts)) <= 2_048


def test_a_long_file_is_read_in_parts_and_no_word_is_lost(tmp_path, load, monkeypatch):
    monkeypatch.setattr("text_jepa.data.files._CHUNK", 500)
    words = [f"word{number}" for number in range(2_000)]
    path = tmp_path / "a.txt"
    path.write_text(textwrap.fill(" ".join(words), 70))  # hard-wrapped, and without a blank line
    texts = texts_of(load([str(path)], [str(path)])["train"])
    assert " ".join(texts).split() == words


def test_whole_files_are_held_out_where_there_are_enough(new_folder, load):
    for number in range(60):
        paragraphs = [f"File{number} " + "word " * 250 for _ in range(4)]
        (new_folder / f"{number}.md").write_text("\n\n".join(f"{i} {text}" for i, text in enumerate(paragraphs)))
    corpus = load([str(new_folder)], validation_split_percentage=25)
    files = {split: {text.split()[1] for text in texts_of(part)} for split, part in corpus.items()}
    assert not files["train"] & files["validation"]
    assert len(files["validation"]) == 15
    assert len(corpus["train"]) + len(corpus["validation"]) == 240


@pytest.mark.parametrize(("count", "held_out"), [(3, 1), (30, 6), (300, 50), (1_200, 60)])
def test_enough_documents_of_files_are_held_out_to_judge_by(new_folder, load, count, held_out):
    paragraphs = [f"{number} " + "word " * 240 + "end." for number in range(count)]
    (new_folder / "a.txt").write_text("\n\n".join(paragraphs))
    assert len(load([str(new_folder)])["validation"]) == held_out


# ---- repeats --------------------------------------------------------------------------------------------------------


def prose(number):
    return f"# Boat {number}\n\n" + " ".join(documents(3, seed=number)) + "\n"


def test_copies_of_files_are_left_out_and_counted(new_folder, load, caplog):
    caplog.set_level("INFO")
    for number in range(12):
        (new_folder / f"{number}.md").write_text(prose(number % 10))
    corpus = load([str(new_folder)])
    assert "2 of 12 documents are copies of others and left out; --drop_repeats none keeps them" in caplog.text
    assert len(corpus["train"]) + len(corpus["validation"]) == 10
    corpus = load([str(new_folder)], drop_repeats="none")
    assert len(corpus["train"]) + len(corpus["validation"]) == 12
    assert "2 of 12 documents are copies of others; --drop_repeats documents leaves them out" in caplog.text


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_equal_rows_are_counted_and_left_out_if_asked_for(new_folder, load, caplog, kind):
    caplog.set_level("INFO")
    texts = [f"{number} {text}" for number, text in enumerate(documents(20))]
    path = str(write(new_folder / f"a.{kind}", [*texts, *texts[:5]]))
    assert len(load([path], [path])["train"]) == 25
    assert "5 of 25 documents are copies of others; --drop_repeats documents leaves them out" in caplog.text
    assert texts_of(load([path], [path], drop_repeats="documents")["train"]) == texts


def test_rows_without_text_are_no_copies_and_are_counted(new_folder, load, caplog):
    caplog.set_level("INFO")
    texts = [f"{number} {text}" for number, text in enumerate(documents(8))]
    rows = [*({"body": text} for text in documents(72)), *({"text": text} for text in texts)]
    (new_folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load([str(new_folder)])
    assert f"--train_file {new_folder}: 72 of 80 rows have no 'text' and are left out; if their texts" in caplog.text
    assert "copies" not in caplog.text
    assert len(corpus["validation"]) == 1  # all are drawn from those with text
    assert sorted(texts_of(corpus["train"]) + texts_of(corpus["validation"])) == sorted(texts)


def test_lines_of_many_documents_are_named_and_left_out_if_asked_for(new_folder, load, caplog):
    caplog.set_level("INFO")
    footer = "Copyright of the boatmen, all rights reserved."
    for number in range(10):
        (new_folder / f"{number}.md").write_text(f"{prose(number)}\n{footer}\n")
    kept = load([str(new_folder)])
    assert f"lines that many documents share, as '{footer}' in 10 of 10; they are kept; --drop_repeats" in caplog.text
    assert all(footer in text for text in texts_of(kept["train"]))
    corpus = load([str(new_folder)], drop_repeats="lines")
    texts = texts_of(corpus["train"]) + texts_of(corpus["validation"])
    assert len(texts) == 10
    assert all(footer not in text and text.startswith("# Boat") and not text.endswith("\n") for text in texts)


def test_few_lines_of_many_documents_are_left_out_too_if_asked_for(new_folder, load, caplog):
    caplog.set_level("INFO")
    footer = "Copyright of the boatmen, all rights reserved."
    for number in range(10):
        text = " ".join(documents(100, seed=number))
        (new_folder / f"{number}.md").write_text(f"{text}\n\n{footer}\n")
    load([str(new_folder)], sample_by="document")
    assert "lines that many documents share" not in caplog.text
    corpus = load([str(new_folder)], sample_by="document", drop_repeats="lines")
    texts = texts_of(corpus["train"]) + texts_of(corpus["validation"])
    assert len(texts) == 10
    assert not any(footer in text for text in texts)


def test_texts_without_a_line_of_many_documents_stay_as_they_are(new_folder, load):
    texts = [f"{number} {text}" for number, text in enumerate(documents(30))]
    path = str(write(new_folder / "list.txt", texts))
    assert texts_of(load([path], [path], drop_repeats="lines")["train"]) == texts


def test_near_copies_are_counted_with_an_example(new_folder, load, caplog):
    caplog.set_level("INFO")
    texts = [" ".join(documents(30, seed=number)) for number in range(8)]
    for number, text in enumerate(texts):
        (new_folder / f"{number}.txt").write_text(f"{number}\n\n{text}")
    load([str(new_folder)])
    assert "near copies" not in caplog.text
    (new_folder / "new.txt").write_text(f"new\n\n{texts[3]} And some words more.")
    load([str(new_folder)])
    assert "1 of 18 documents are near copies of others, for example new.txt of 3.txt" in caplog.text


def test_a_near_copy_is_found_though_its_original_shares_a_half_with_an_earlier_document():
    first, second, third = (" ".join(documents(60, seed=number)) for number in range(3))
    texts = [f"{first} {third}", f"{second} {first}", f"new {second} {first}"]
    copies, originals = near_copies(texts)
    assert list(zip(copies.tolist(), originals.tolist(), strict=True)) == [(2, 1)]


def test_a_near_copy_is_found_behind_many_documents_with_the_same_half():
    shared, *others = (" ".join(documents(60, seed=number)) for number in range(20))
    texts = [f"{shared} {other}" for other in others]
    copies, originals = near_copies([*texts, f"new {texts[0]}", f"new {texts[-1]}"])
    last = len(texts)
    assert list(zip(copies.tolist(), originals.tolist(), strict=True)) == [(last, 0), (last + 1, last - 1)]


@pytest.mark.parametrize(("drop", "left"), [("none", 25), ("files", 25), ("documents", 20)])
def test_equal_rows_of_a_dataset_are_left_out_if_asked_for(tmp_path_factory, drop, left, caplog):
    caplog.set_level("INFO")
    folder = tmp_path_factory.mktemp("corpus")  # the library searches the whole path for names of splits
    texts = [f"{number} {text}" for number, text in enumerate(documents(20))]
    write(folder / "train.jsonl", [*texts, *texts[:5]])
    write(folder / "test.jsonl", documents(3, seed=1))
    arguments = CorpusArguments(dataset_name=str(folder), drop_repeats=drop)
    corpus = load_corpus(arguments, cache_dir=str(tmp_path_factory.mktemp("cache")))
    assert texts_of(corpus.splits["train"]) == [*texts, *texts[:5]][:left]
    assert "5 of 25 documents are copies of others" in caplog.text


# ---- columns --------------------------------------------------------------------------------------------------------


def tables(folder, kind, *parts):
    """Files of lists of rows."""
    for i, rows in enumerate(parts):
        path = folder / f"{i}.{kind}"
        path.parent.mkdir(exist_ok=True, parents=True)
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif kind == "csv":
            lines = [",".join(rows[0]), *[",".join(str(value) for value in row.values()) for row in rows]]
            path.write_text("\n".join(lines))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


STREAMS = pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])


@STREAMS
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_that_differ_elsewhere_are_one_corpus(tmp_path, load, kind, streaming):
    parts = (
        [{"text": "one", "id": 1}],
        [{"url": "u", "text": "two"}],
        [{"id": "three", "text": "three", "score": 0.5}],
        [{"text": "four"}],
    )
    folder = tables(tmp_path / "set", kind, *parts)
    assert texts_of(load([folder], [folder], streaming=streaming)["train"]) == ["one", "two", "three", "four"]


def test_a_column_that_changes_its_type_far_behind_is_of_no_interest(tmp_path, load):
    rows = [
        {"text": f"text {i}", "meta": None if i < 3_000 else {"a": [i, "b"]}, f"column{i}": i} for i in range(3_010)
    ]
    folder = tables(tmp_path / "set", "jsonl", rows)
    assert len(load([folder], [folder])["train"]) == 3_010


@STREAMS
def test_kinds_of_files_may_be_mixed(tmp_path, load, streaming):
    folder = tmp_path / "set"
    for i, kind in enumerate(["txt", "jsonl", "csv", "tsv", "parquet", "txt.gz"]):
        write(folder / f"{i}.{kind}", [f"text {i}"])
    assert texts_of(load([str(folder)], [str(folder)], streaming=streaming)["train"]) == [
        f"text {i}" for i in range(6)
    ]


@STREAMS
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("a.b", ["inner", "other"]),
        ("list", ["one\n\ntwo", "three"]),
        (["title", "a.b"], ["A\n\ninner", "other"]),
        (["title", "list"], ["A\n\none\n\ntwo", "three"]),
        ("parts.text", ["x\n\ny", "z"]),
        (["title"], ["A", None]),
    ],
)
def test_texts_of_fields_lists_and_several_columns(tmp_path, load, kind, column, expected, streaming):
    rows = [
        {"title": "A", "a": {"b": "inner"}, "list": ["one", "two"], "parts": [{"text": "x"}, {"text": "y"}]},
        {"title": None, "a": {"b": "other"}, "list": ["three"], "parts": [{"text": "z"}]},
    ]
    folder = tables(tmp_path / "set", kind, rows)
    corpus = load([folder], [folder], text_column=column, streaming=streaming)
    found = texts_of(corpus["train"])
    assert found == (expected if streaming else [text for text in expected if text])


@STREAMS
def test_half_a_character_is_named_by_its_line(tmp_path, load, streaming):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "whole"}\n{"text": "\\ud800 half"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2: an unpaired surrogate"):
        texts_of(load([str(path)], [str(path)], streaming=streaming)["train"])


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_list_of_strings_is_one_of_texts_only_as_a_whole_file(tmp_path, load, kind):
    """In a line of its own, it is a row without names."""
    path = tmp_path / f"a.{kind}"
    texts = documents(20)
    for content in (json.dumps(texts), json.dumps(texts, indent=1)):
        path.write_text(content)
        assert texts_of(load([str(path)], [str(path)])["train"]) == texts
    path.write_text("".join(json.dumps([f"doc-{i} / news", text]) + "\n" for i, text in enumerate(texts)))
    with pytest.raises(UsageError, match=rf"a\.{kind}, line 1: not an object"):
        load([str(path)], [str(path)])
    path.write_text("".join(json.dumps([{"text": text}]) + "\n" for text in texts))
    assert texts_of(load([str(path)], [str(path)])["train"]) == texts


def test_byte_order_marks_of_files_that_were_joined_are_no_part_of_the_text(tmp_path, load):
    mark = "\ufeff"
    texts = documents(30)
    rows = [json.dumps({"text": text}) for text in texts]
    lists = [json.dumps([{"text": text}], indent=1) for text in texts]
    lines = [f"{mark if i % 2 else ''}{row}" for i, row in enumerate(texts)]
    paragraphs = f"\n\n{mark}".join(texts)
    files = {
        "a.jsonl": f"\n{mark}".join(["", *rows]),
        "a.json": f"\n{mark}".join(["", *lists]),
        "a.txt": "\n".join(lines),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_text(content)
        assert texts_of(load([str(path)], [str(path)])["train"]) == texts
    for sample_by in ("paragraph", "document"):
        (tmp_path / "b.txt").write_text(paragraphs)
        corpus = load([str(tmp_path / "b.txt")], [str(tmp_path / "b.txt")], sample_by=sample_by)
        assert "\n\n".join(texts_of(corpus["train"])) == "\n\n".join(texts)


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()], ids=str)
@pytest.mark.parametrize("column", ["body", ["title", "body"]], ids=["one", "two"])
def test_bytes_in_a_table_are_texts_if_they_are_utf_8(tmp_path, load, kind, column):
    """Hive and Impala write texts like this."""
    path = tmp_path / "a.parquet"
    texts = ["Łódź", None, "灯台"]
    values = pyarrow.array([text and text.encode() for text in texts], kind)
    titles = pyarrow.array(["A", "B", "C"])
    pyarrow.parquet.write_table(pyarrow.table({"title": titles, "body": values}), path)
    corpus = load([str(path)], [str(path)], text_column=column)
    expected = ["Łódź", "灯台"] if column == "body" else ["A\n\nŁódź", "B", "C\n\n灯台"]
    assert texts_of(corpus["train"]) == expected
    values = pyarrow.array([b"one", "Łódź".encode("utf-16")], kind)
    pyarrow.parquet.write_table(pyarrow.table({"title": titles[:2], "body": values}), path)
    with pytest.raises(UsageError, match=r"a\.parquet: column 'body' holds bytes that are not UTF-8, not text; name"):
        load([str(path)], [str(path)], text_column=column)


def test_a_column_whose_name_has_a_full_stop_is_itself(tmp_path, load):
    for kind in ("jsonl", "parquet", "csv"):
        folder = tables(tmp_path / kind, kind, [{"a.b": "this one", "x": "y"}])
        assert texts_of(load([folder], [folder], text_column="a.b")["train"]) == ["this one"]


@STREAMS
def test_a_dataset_has_fields_lists_and_several_columns_too(tmp_path_factory, streaming):
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"title": "A", "a": {"b": "inner"}, "text": ["one", "two"]}]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = str(tmp_path_factory.mktemp("cache"))
    for column, expected in ((["title", "a.b"], "A\n\ninner"), ("text", "one\n\ntwo"), ("a.b", "inner")):
        arguments = CorpusArguments(dataset_name=str(folder), text_column=column, streaming=streaming)
        assert texts_of(load_corpus(arguments, cache_dir=cache).splits["train"]) == [expected]
    arguments = CorpusArguments(dataset_name=str(folder), text_column="a.c", streaming=streaming)
    with pytest.raises(UsageError, match=r"no column 'a\.c'"):
        load_corpus(arguments, cache_dir=cache)


@STREAMS
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_that_the_first_row_of_a_dataset_lacks_is_found(tmp_path_factory, kind, streaming):
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"a": None}, {"a": {"b": "one"}}, {"a": {"b": "two", "c": 1}}]
    for split in ("train", "test"):
        tables(folder / split, kind, rows)
    arguments = CorpusArguments(dataset_name=str(folder), text_column="a.b", streaming=streaming)
    corpus = load_corpus(arguments, cache_dir=str(tmp_path_factory.mktemp("cache")))
    assert texts_of(corpus.splits["train"]) == ([None, "one", "two"] if streaming else ["one", "two"])


@STREAMS
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("a.c", r"0\.{kind}: no column 'a\.c' \(its columns are a, n, lists\); .*--text_column"),
        ("a.b.c", r"0\.{kind}: no column 'a\.b\.c'"),
        ("a", r"0\.{kind}, (line|row) 1: column 'a' holds struct, not text"),
        ("n", r"0\.{kind}(, line 1)?: column 'n' holds int64, not text"),
        ("lists", r"0\.{kind}, (line|row) 1: column 'lists' holds List, not text"),
    ],
)
def test_a_column_that_holds_no_text_is_named(tmp_path, load, kind, column, message, streaming):
    folder = tables(tmp_path / "set", kind, [{"a": {"b": "x"}, "n": 1, "lists": [1, 2]}])
    with pytest.raises(UsageError, match=r"^--train_file .*" + message.replace("{kind}", kind)):
        load([folder], [folder], text_column=column, streaming=streaming)


@STREAMS
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_without_the_column_is_named(tmp_path, load, kind, streaming):
    folder = tables(tmp_path / "set", kind, [{"text": "one"}], [{"body": "two"}])
    question = r"; is its first line a header\?" if kind == "csv" else ""
    message = rf"^--train_file .*1\.{kind}: no column 'text' \(its columns are body{question}\)"
    with pytest.raises(UsageError, match=message):
        texts_of(load([folder], [folder], streaming=streaming)["train"])


def test_columns_are_listed_in_quotes_unless_they_are_words_and_shortened():
    names = ["id", "text, long", "The harbour was closed in the winter of that year"]
    listed = "id, 'text, long', 'The harbour was closed in the winter of …'"
    assert f"(its columns are {listed})" in missing_column("text", names, "text")


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_a_first_line_with_the_delimiter_for_excel_is_heeded(tmp_path, load, delimiter, quote):
    texts = ["one, two, three", "four"]
    rows = [f"{text}{delimiter}x, y" for text in texts]
    lines = [f"{quote}sep={delimiter}{quote}", f"text{delimiter}a, b, c", *rows]
    (tmp_path / "a.csv").write_text("\r\n".join(lines), newline="")
    path = str(tmp_path / "a.csv")
    assert texts_of(load([path], [path])["train"]) == texts


@pytest.mark.parametrize("name", ["", "n"])
def test_columns_that_are_not_read_may_have_the_same_name(tmp_path, load, name):
    path = tmp_path / "a.csv"
    path.write_text(f"text,v,{name},{name},{name}\none,1,2,3,4\ntwo,1,2,3,4\n")
    assert texts_of(load([str(path)], [str(path)])["train"]) == ["one", "two"]
    path.write_text("text,text,v\none,two,three\n")
    with pytest.raises(UsageError, match=r"a\.csv: cannot be read: line 1 has the column 'text' twice"):
        load([str(path)], [str(path)])


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ('"Frage, offen";"text"', ";"),
        ('"a ""b, c"", d"|"text"', "|"),
        ('"a; b; c",text', ","),
        ('size 5";text', ";"),
        ('text;"a, b\nc, d"', ";"),
    ],
)
def test_a_delimiter_in_a_quoted_name_is_a_part_of_it(tmp_path, load, header, delimiter):
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\none{delimiter}one\ntwo{delimiter}two\n")
    assert texts_of(load([str(path)], [str(path)])["train"]) == ["one", "two"]


VALUES = {
    "a deep object": ('{"a":' * 100_000 + "0" + "}" * 100_000, "nested too deeply"),
    "a deep text": ('{"text": ' + "[" * 700 + '"one"' + "]" * 700 + "}", "nested too deeply"),
    "a long number": ('{"text": "one", "n": ' + "1" * 5_000 + "}", r"a number of more than 4,300 digits; shorten it"),
}


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(("value", "message"), VALUES.values(), ids=[name.replace(" ", "-") for name in VALUES])
def test_a_value_that_python_cannot_hold_is_named(tmp_path, load, kind, value, message):
    path = tmp_path / f"a.{kind}"
    for content in (value, f"[{value}]"):
        path.write_text(content)
        with pytest.raises(UsageError, match=rf"^--train_file .*a\.{kind}(, line 1)?: .*{message}"):
            load([str(path)])


def test_objects_over_several_lines_are_rows_and_keep_their_line(tmp_path, load):
    path = tmp_path / "a.json"
    rows = [{"text": text} for text in documents(50)]
    path.write_text("\n\n \t\n".join(json.dumps(row, indent=1) for row in rows))
    assert texts_of(load([str(path)], [str(path)])["train"]) == [row["text"] for row in rows]
    with open(path, "a") as file:
        file.write('\n{"text":\n3}\n')
    with pytest.raises(UsageError, match=r"a\.json, line 249: column 'text' holds int64, not text"):
        load([str(path)])


# ---- quotes ---------------------------------------------------------------------------------------------------------


STRAY = {
    "a pair around rows": (".tsv", ["1\tone", '2\t"two', "3\tthree", '4\tfour"', "5\tfive"], "line 3"),
    "a pair around columns": (".tsv", ['"one\t1', "two\t2", 'three"\t3'], "line 2"),
    "a pair around rows with commas": (".csv", ["1,one", '2,"two', "3,three", '4,four"', "5,five"], "line 3"),
    "quotes within texts elsewhere": (".csv", ['1,he said "yes"', '2,"two', 'lines, or not"'], "line 3"),
    "one that nothing closes": (".tsv", ["1\tone", '2\t"two', "3\tthree"], "line 3"),
    "a quoted word": (".tsv", ["1\tone", '2\t"two" words', "3\tthree"], "line 3"),
}


@STREAMS
@pytest.mark.parametrize(("suffix", "lines", "place"), STRAY.values(), ids=[name.replace(" ", "-") for name in STRAY])
def test_quotes_that_are_characters_are_refused_or_read_as_such(tmp_path, load, suffix, lines, place, streaming):
    separator = "\t" if suffix == ".tsv" else ","
    path = tmp_path / f"a{suffix}"
    path.write_text("\n".join([f"id{separator}text", *lines]))
    files = [str(path)]
    column = "id" if lines[0].startswith('"') else "text"
    with pytest.raises(UsageError, match=rf"^--train_file .*a\{suffix}.*{place}.*--quoting none"):
        texts_of(load(files, files, text_column=column, streaming=streaming)["train"])
    if lines[-1].count(separator) == 1 and not lines[-1].startswith("lines"):
        texts = texts_of(load(files, files, text_column=column, streaming=streaming, quoting="none")["train"])
        assert texts == [line.split(separator)[column == "text"] for line in lines]


@STREAMS
def test_quoted_cells_over_several_lines_are_texts(tmp_path, load, streaming):
    texts = ['He said "yes",\nand went, home', "a\n\nb", "one, two", "1,2\n3,4", "x\ny", "plain", " tab\tbed "]
    for kind in ("csv", "tsv"):
        files = [str(write(tmp_path / f"a.{kind}", texts))]
        assert texts_of(load(files, files, streaming=streaming)["train"]) == texts


def test_quoting_may_be_given(tmp_path, load):
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"one\n2\ttwo"\n')
    files = [str(path)]
    assert texts_of(load(files, files, quoting="standard")["train"]) == ["one\n2\ttwo"]
    assert texts_of(load(files, files, quoting="none")["train"]) == ['"one', 'two"']


def test_words_for_nothing_are_words(tmp_path, load):
    path = tmp_path / "a.csv"
    path.write_text("text,n\nNA,1\nnull,2\nnan,3\n")
    assert texts_of(load([str(path)], [str(path)])["train"]) == ["NA", "null", "nan"]


# ---- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_column": "body"}, "--text_column body: goes with --train_file or --dataset_name"),
        ({"text_column": ["title", "body"]}, "--text_column title body: goes with"),
        ({"sample_by": "line"}, "--sample_by line: has no effect without --train_file"),
        ({"dataset_name": "set", "sample_by": "line"}, "--sample_by line: has no effect without --train_file"),
        ({"dataset_name": "set", "quoting": "none"}, "--quoting none: has no effect without --train_file"),
        ({"train_file": ["a.txt"], "dataset_config_name": "x"}, "--dataset_config_name x: has .* --dataset_name"),
        ({"train_file": ["a.txt"], "dataset_split": "test"}, "--dataset_split test: has no .* --dataset_name"),
        ({"train_file": ["a.txt"], "streaming": True, "validation_split_percentage": 150}, "must be above 0 and"),
        ({"train_file": ["a.txt"], "streaming": True, "drop_repeats": "documents"}, "a stream is not searched"),
        ({"dataset_name": "set", "view_column": "b", "drop_repeats": "lines"}, "pairs of texts .*not searched"),
        ({"train_file": ["a.txt"], "shuffle_buffer": 7}, "--shuffle_buffer 7: has no effect without --streaming"),
    ],
)
def test_a_flag_that_nothing_reads_is_refused(load, fields, message):
    with pytest.raises(UsageError, match=message):
        load(**fields)


def test_a_share_beside_a_held_out_part_is_told_to_have_no_effect(tmp_path_factory, load, caplog):
    folder = tmp_path_factory.mktemp("corpus")  # the library searches the whole path for names of splits
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", documents(20))
    load([str(folder)], validation_split_percentage=10)
    assert "--validation_split_percentage has no effect: test.jsonl is held out" in caplog.text
    load(dataset_name=str(folder), validation_split_percentage=10)
    assert f"--validation_split_percentage has no effect: the split test of {folder} is held out" in caplog.text


# ---- loading --------------------------------------------------------------------------------------------------------


KINDS = ["txt", "txt.gz", "json", "jsonl", "jsonl.gz", "parquet", "csv", "tsv"]


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_every_kind_of_file_arrive_in_order(tmp_path, load, kind, streaming):
    train, held_out = documents(30), documents(5, seed=1)
    files = [write(tmp_path / f"{name}.{kind}", texts) for name, texts in (("train", train), ("held", held_out))]
    corpus = load([str(files[0])], [str(files[1])], streaming=streaming)
    assert {split: texts_of(part) for split, part in corpus.items()} == {"train": train, "validation": held_out}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_no_damage_of_the_texts(tmp_path, load, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "cache" / "texts"))

    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "write_table", refuse)
    monkeypatch.setattr(reading, "_find_damage", lambda paths: pytest.fail("the texts are read again"))
    with pytest.raises(
        UsageError, match=r"^the cache could not be written \(.*\); free some disk space, or set --cache_dir"
    ):
        load([str(write(tmp_path / "texts.txt", documents(5)))])
    assert not reading._is_of_cache(OSError(number, os.strerror(number), "a.txt"), ["a.txt"])


def test_a_file_that_cannot_be_opened_leaves_nothing_to_be_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(compressed._WithoutNull, "close", lambda file: closed.append(file))
    with contextlib.suppress(FileNotFoundError):
        compressed.open_utf8("none.txt")
    assert closed == []


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
        ("auto", ["one\ntwo\n\nthree\n\nfour"]),
        ("line", ["one", "two", "three", "four"]),
        ("paragraph", ["one\ntwo", "three", "four"]),
        ("document", ["one\ntwo\n\nthree\n\nfour"]),
    ],
)
def test_a_text_file_is_lines_paragraphs_or_one_document(tmp_path, load, sample_by, expected, streaming):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n\nfour")
    corpus = load([str(path)], [str(path)], sample_by=sample_by, streaming=streaming)
    assert texts_of(corpus["train"]) == texts_of(corpus["validation"]) == expected


def test_a_blank_line_between_paragraphs_may_contain_spaces(tmp_path, load):
    path = tmp_path / "a.txt"
    path.write_text("One.\n \nTwo.\n\n\t\nThree.")
    corpus = load([str(path)], [str(path)], sample_by="paragraph")
    assert texts_of(corpus["train"]) == ["One.", "Two.", "Three."]


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["Boats", "One.", "Two."]),
        ("paragraph", ["Boats\nOne.", "Two."]),
        ("document", ["Boats\nOne.\n\nTwo."]),
    ],
)
def test_a_page_is_the_lines_paragraphs_or_all_of_what_it_shows(tmp_path, load, sample_by, expected):
    path = tmp_path / "a.html"
    path.write_text(PAGE.replace("<p>One.", "<p>One.</p><p>Two."))
    corpus = load([str(path)], [str(path)], sample_by=sample_by, drop_repeats="none")
    assert texts_of(corpus["train"]) == expected


def test_a_dataset_that_has_been_prepared_is_read_without_a_network(tmp_path, monkeypatch):
    """From the given cache, also if a local folder has the name of the owner."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    cache = tmp_path / "cache"
    arguments = CorpusArguments(dataset_name="owner/MyCorpus")
    with pytest.raises(UsageError, match="no such folder in owner; for a repository of the Hub of this name, `hf"):
        load_corpus(arguments, cache_dir=str(cache))
    rows = write(tmp_path / "a.jsonl", documents(10))
    datasets.load_dataset("json", data_files=str(rows), cache_dir=str(cache))
    (info,) = cache.glob("json/*/*/*/dataset_info.json")
    values = json.loads(info.read_text()) | {"dataset_name": "my_corpus", "config_name": "default"}
    info.write_text(json.dumps(values))
    (info.parent / "json-train.arrow").rename(info.parent / "my_corpus-train.arrow")
    prepared = cache / "owner___my_corpus" / "default" / "0.0.0" / "0"
    prepared.parent.mkdir(parents=True)
    info.parent.rename(prepared)
    splits = load_corpus(arguments, cache_dir=str(cache)).splits
    assert sorted(texts_of(splits["train"]) + texts_of(splits["validation"])) == sorted(documents(10))


def test_of_many_columns_the_first_ten_are_named():
    message = missing_column("text", [f"c{number}" for number in range(12)], "text")
    assert "(its columns are c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, and 2 more)" in message


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_another_column_becomes_the_text(tmp_path, load, kind, streaming):
    texts = documents(10)
    path = str(write(tmp_path / f"a.{kind}", texts, column="body"))
    corpus = load([path], [path], text_column="body", streaming=streaming)
    assert list(next(iter(corpus["train"]))) == ["text"]
    assert texts_of(corpus["train"]) == texts


@pytest.mark.parametrize("percentage", [5, 20, 0.1, 99.9])
def test_held_out_documents_are_a_share_and_none_is_lost(tmp_path, load, percentage):
    texts = [f"{i} {text}" for i, text in enumerate(documents(100))]
    path = str(write(tmp_path / "a.jsonl", texts))
    one, again = (load([path], validation_split_percentage=percentage) for _ in range(2))
    assert sorted(texts_of(one["train"]) + texts_of(one["validation"])) == sorted(texts)
    assert len(one["validation"]) == min(max(1, round(percentage)), 99)
    for split in one:
        assert texts_of(one[split]) == texts_of(again[split])


@pytest.mark.parametrize("percentage", [-5, 0, 100, 150])
def test_a_share_that_leaves_nothing_is_an_error(tmp_path, load, percentage):
    path = str(write(tmp_path / "a.jsonl", documents(10)))
    with pytest.raises(UsageError, match=f"--validation_split_percentage {percentage}: must be above 0 and below 100"):
        load([path], validation_split_percentage=percentage)


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("files", [1, 3, 20])
def test_a_sorted_corpus_can_be_read_in_several_places_in_turn(tmp_path, load, files, streaming):
    texts = [f"{i} {text}" for i, text in enumerate(documents(1_000))]
    size = -(-len(texts) // files)
    for i in range(files):
        write(tmp_path / "set" / f"{i:02}.jsonl", texts[i * size : (i + 1) * size])
    documents_of = load([str(tmp_path / "set")], [str(tmp_path / "set")], streaming=streaming)["train"]
    found = texts_of(rows_in_turn(documents_of))
    assert sorted(found) == sorted(texts)
    assert texts_of(rows_in_turn(documents_of)) == found
    if files > 1 or not streaming:
        parts = {int(text.split()[0]) * 3 // 1_000 for text in found[:16]}
        assert parts == {0, 1, 2}


@pytest.mark.parametrize("files", [1, 3, 20])
def test_a_sorted_stream_holds_out_documents_of_all_its_classes(tmp_path, load, files):
    texts = [f"class{i // 250} {i} {text}" for i, text in enumerate(documents(1_000))]
    size = -(-len(texts) // files)
    for i in range(files):
        write(tmp_path / "set" / f"{i:02}.jsonl", texts[i * size : (i + 1) * size])
    corpus = load([str(tmp_path / "set")], streaming=True)
    held_out = texts_of(corpus["validation"])
    classes = Counter(text.split()[0] for text in held_out)
    assert len(held_out) == 200
    assert len(classes) == 4
    assert min(classes.values()) > 20
    train = corpus["train"].shuffle(seed=0, buffer_size=100)
    for epoch in range(2):
        train.set_epoch(epoch)
        assert sorted(texts_of(train) + held_out) == sorted(texts)
    assert texts_of(load([str(tmp_path / "set")], streaming=True)["validation"]) == held_out


def test_equal_documents_of_a_stream_are_held_out_together(tmp_path, load):
    texts = [f"{i} {text}" for i, text in enumerate(documents(300))]
    corpus = load([str(write(tmp_path / "a.txt", ["", *texts, *texts]))], streaming=True)
    assert len(set(texts_of(corpus["validation"]))) == 200
    assert not set(texts_of(corpus["validation"])) & set(texts_of(corpus["train"]))


@pytest.mark.parametrize("row", ["null", "3", "{"])
@pytest.mark.parametrize("name", ["train.jsonl", "data/train.json"])
def test_a_row_of_a_dataset_that_is_no_object_is_named_by_its_file(tmp_path, load, name, row):
    """The reader of pyarrow ends the process at a null row."""
    (tmp_path / "set" / name).parent.mkdir(parents=True)
    (tmp_path / "set" / name).write_text(f'{row}\n{{"text": "a"}}\n')
    with pytest.raises(UsageError, match=rf"--dataset_name .*{name}(, line 1)?: (no|cannot)"):
        load(dataset_name=str(tmp_path / "set"))


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
        assert texts_of(corpus["train"]) == (texts if streaming else [text for text in texts if text])
        tokenizer = train_tokenizer(texts_of(corpus["train"]), 60)
        examples = tokenize_texts(corpus, tokenizer, 32)
        assert 4 <= len(list(examples["train"])) <= 5


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_the_hub_is_read_by_split_and_column_with_its_own_held_out_part(tmp_path_factory, streaming):
    """With a folder, which the datasets library reads like a repository on the Hub."""
    folder = tmp_path_factory.mktemp("corpus")  # the library searches the whole path for names of splits
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
