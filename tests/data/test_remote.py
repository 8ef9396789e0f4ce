"""Tests remote files, with the in-memory file system of fsspec."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import fsspec
import pytest
from corpora import documents

from text_jepa.cli import UsageError
from text_jepa.data.corpus import CorpusArguments, load_corpus
from text_jepa.data.folders import find_files


@pytest.fixture
def memory(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = fsspec.filesystem("memory")
    for folder, count in (("one", 3), ("one/deep", 1)):
        for number in range(count):
            found.pipe(f"/texts/{folder}/{number}.txt", "\n".join(documents(20, seed=number)).encode())
    found.pipe("/texts/one/weights.bin", b"0")
    yield found
    found.rm("/texts", recursive=True)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("memory://texts/one/0.txt", ["0.txt"]),
        ("memory://texts/one/*.txt", ["0.txt", "1.txt", "2.txt"]),
        ("memory://texts/one", ["0.txt", "1.txt", "2.txt", "deep/0.txt"]),
        ("memory://texts/*/deep/*.txt", ["one/deep/0.txt"]),
    ],
)
def test_files_folders_and_globs_of_a_protocol_are_copied(memory, name, files):
    found = find_files([name], "train_file")
    assert len(found) == len(files)
    for path, expected in zip(found, files, strict=True):
        assert path.endswith(f"/{expected}")


def test_a_copy_is_made_again_only_if_the_file_has_changed(memory):
    name = "memory://texts/one/0.txt"
    first = find_files([name], "train_file")
    assert find_files([name], "train_file") == first
    memory.pipe("/texts/one/0.txt", b"other")
    (second,) = find_files([name], "train_file")
    assert second not in first
    with open(second) as file:
        assert file.read() == "other"


def test_a_copy_that_another_run_makes_meanwhile_is_taken(memory, monkeypatch):
    rename = Path.rename

    def rename_too_late(path, target):
        shutil.copytree(path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_too_late)
    (found,) = find_files(["memory://texts/one/0.txt"], "train_file")
    assert Path(found).read_text() == "\n".join(documents(20, seed=0))
    assert [path.name for path in Path(found).parents[1].iterdir()] == ["one"]


@pytest.fixture
def web(memory, tmp_path):
    """A folder, and the address of a server with its files."""
    (tmp_path / "web").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "web", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_a_file_on_the_web_is_copied_again_if_it_has_changed(web, query):
    folder, address = web
    name = f"{address}/a.jsonl{query}"
    (folder / "a.jsonl").write_text("one")
    (first,) = find_files([name], "train_file")
    assert find_files([name], "train_file") == [first]
    (folder / "a.jsonl").write_text("another")
    (second,) = find_files([name], "train_file")
    assert [Path(path).read_text() for path in (first, second)] == ["one", "another"]
    assert [Path(path).name for path in (first, second)] == ["a.jsonl", "a.jsonl"]


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_a_page_on_the_web_is_a_file_although_it_has_links(web, query):
    folder, address = web
    page = '<p>One</p><a href="b.html">two</a>'
    (folder / "a.html").write_text(page)
    (found,) = find_files([f"{address}/a.html{query}"], "train_file")
    assert Path(found).read_text() == page


@pytest.mark.parametrize("streaming", [False, True])
def test_a_corpus_is_trained_on_and_held_out_wherever_it_is(memory, streaming, tmp_path):
    arguments = CorpusArguments(
        train_file=["memory://texts/one/[01].txt"],
        validation_file=["memory://texts/one/2.txt"],
        sample_by="line",
        streaming=streaming,
    )
    corpus = load_corpus(arguments, cache_dir=str(tmp_path))
    assert [row["text"] for row in corpus.splits["train"]] == documents(20, seed=0) + documents(20, seed=1)
    assert [row["text"] for row in corpus.splits["validation"]] == documents(20, seed=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_splits_of_a_folder_are_known_wherever_it_is(memory, streaming, tmp_path):
    texts = {"train": documents(20, seed=0), "validation": documents(20, seed=1), "test": documents(20, seed=2)}
    for split, lines in texts.items():
        memory.pipe(f"/texts/splits/{split}.txt", "\n".join(lines).encode())
    arguments = CorpusArguments(train_file=["memory://texts/splits"], sample_by="line", streaming=streaming)
    corpus = load_corpus(arguments, cache_dir=str(tmp_path))
    assert corpus.name == "splits"
    for split in ("train", "validation"):
        assert [row["text"] for row in corpus.splits[split]] == texts[split]


def test_the_splits_of_a_saved_dataset_are_known_wherever_it_is(memory, tmp_path):
    texts = {"train": documents(20, seed=0), "test": documents(20, seed=1)}
    parts = {split: datasets.Dataset.from_dict({"text": lines}) for split, lines in texts.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    arguments = CorpusArguments(train_file=[f"file://{tmp_path / 'saved'}"])
    corpus = load_corpus(arguments, cache_dir=str(tmp_path / "cache"))
    assert [row["text"] for row in corpus.splits["train"]] == texts["train"]
    assert [row["text"] for row in corpus.splits["validation"]] == texts["test"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memory://texts/none.txt", "no such file"),
        ("memory://texts/*.pdf", "no .txt"),
        ("nonsense://texts/0.txt", "Protocol not known"),
        ("s3://bucket/0.txt", "s3fs"),
    ],
)
def test_what_cannot_be_copied_is_one_line_with_the_reason(memory, name, said):
    with pytest.raises(UsageError, match=f"--train_file .*{said}") as error:
        find_files([name], "train_file")
    assert "\n" not in str(error.value)
