"""The index: it follows its folder, survives interruption and company, and refuses what is damaged or not ours."""

import os
import sqlite3
import threading
import zlib

import numpy as np
import pytest

from text_jepa.cli import UsageError
from text_jepa.search import index as index_module
from text_jepa.search.folder import compare, find_texts, update
from text_jepa.search.index import Index, remove_index
from text_jepa.search.static import TokenTable


SETTINGS = {"encoder": "bag"}


def embed(texts):
    """Counts of words: vectors whose cosines are known."""
    vectors = np.zeros((len(texts), 64), np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, zlib.crc32(word.strip(".,;").encode()) % 64] += 1
    return vectors


@pytest.fixture
def folder(tmp_path, texts):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    (folder / "deep" / "page.md").write_text(f"# Title\n\n{texts[0]}\n")
    (folder / "rows.jsonl").write_text('{"text": "the first row"}\n{"text": "the second row"}\n')
    (folder / "code.py").write_text("print()")
    (folder / ".hidden.txt").write_text("hidden")
    return folder


@pytest.fixture
def index(tmp_path):
    index = Index(tmp_path / "index.sqlite")
    index.start(SETTINGS, None)
    yield index
    index.close()


def follow(index, folder, embed=embed):
    """Brings the index up to date; what was read and what was gone."""
    changes = compare(index, find_texts(folder))
    update(index, folder, changes, embed, ["text"], SETTINGS)
    return sorted(changes.read), sorted(changes.gone)


def hits(index, query, limit=3):
    with index.snapshot() as passages:
        return [hit.path for hit in passages.search(query, embed([query])[0], limit)]


def hits_of_words(index, query):
    with index.snapshot() as passages:
        return [hit.path for hit in passages.search(query, np.zeros(64, np.float32), 3)]


def content(index):
    """All rows but their numbers."""
    database = sqlite3.connect(index.path)
    rows = database.execute("SELECT path, line, text FROM passages ORDER BY path, number").fetchall()
    of_files = "files.path, size, changed, part, content FROM files LEFT JOIN vectors ON vectors.path = files.path"
    vectors = database.execute(f"SELECT {of_files} ORDER BY files.path, part").fetchall()
    words = database.execute("SELECT words.text FROM words, passages ON words.rowid = number ORDER BY path, number")
    found = rows, vectors, words.fetchall()
    database.close()
    return found


def test_only_texts_are_read_and_only_once(index, folder):
    read, gone = follow(index, folder)
    assert read == ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt", "5.txt", "deep/page.md", "rows.jsonl"]
    assert gone == []
    assert follow(index, folder) == ([], [])


def test_the_index_of_a_folder_that_changed_is_that_of_a_new_one(index, folder, tmp_path):
    follow(index, folder)
    (folder / "0.txt").write_text("Something else is said here.")
    (folder / "1.txt").unlink()
    (folder / "new.rst").write_text("A title\n=======\n\nA new file.\n")
    os.utime(folder / "2.txt", ns=(1, 1))
    assert follow(index, folder) == (["0.txt", "2.txt", "new.rst"], ["1.txt"])
    other = Index(tmp_path / "other.sqlite")
    other.start(SETTINGS, None)
    follow(other, folder)
    assert content(index) == content(other)
    assert hits_of_words(index, "beans autumn") == []  # gone with its file


def test_words_and_vectors_both_find(index, folder, texts):
    follow(index, folder)
    for text, path in zip(texts, ("0.txt", "1.txt", "2.txt", "3.txt", "4.txt", "5.txt"), strict=True):
        assert hits(index, text)[0] == hits_of_words(index, text)[0] == path
    assert hits_of_words(index, "row") == ["rows.jsonl", "rows.jsonl"]
    assert hits_of_words(index, "zebra") == []


def test_words_are_scored_by_the_share_of_the_query_that_a_passage_has(index, folder):
    follow(index, folder)
    with index.snapshot() as passages:
        for query, low, high in (("flour", 0.9, 1.5), ("flour zebra", 0.3, 0.7), ("zebra", 0, 0), ("", 0, 0)):
            _, words = passages.scores(query, np.zeros(64, np.float32))
            assert low <= words.max() <= high, query


def test_a_query_may_be_a_document(index, folder):
    follow(index, folder)
    query = " ".join(f"word{number}" for number in range(5_000)) + " flour"
    assert len(hits(index, f"flour {query}")) == 3


def test_a_row_of_a_table_has_its_line(index, folder):
    (folder / "rows.jsonl").write_text('{"text": "a slow bear"}\n{"text": "the quick fox"}\n')
    follow(index, folder)
    with index.snapshot() as passages:
        (hit,) = passages.search("fox", np.zeros(64, np.float32), 1)
    assert (hit.path, hit.line, hit.text) == ("rows.jsonl", 2, "the quick fox")
    assert hit.cosine == 0  # a query without a vector is near nothing


@pytest.mark.parametrize(
    ("text", "query", "other"),
    [
        ("灯塔看守人点亮了灯,在风暴来临之前爬下港口。", "港口", "风口"),
        ("ผู้ดูแลประภาคารจุดตะเกียงก่อนพายุจะมา", "พายุ", "ปลา"),
        ("प्रकाशस्तंभ के रक्षक ने दीपक जलाया", "दीपक", "दाल"),
        ("Im Hafen läuft das Schiff ein.", "häfen", "berg"),
        ("The keepers were lighting the lamps.", "lamp", "boat"),
        ("เขาอยู่ที่นี่", "ที่นี่", "น้ำ"),
        ("မြန်မာစာ", "မြန်မာ", "မိုး"),
        ("ខ្ញុំទៅផ្សារ", "ផ្សារ", "ផែ"),
        ("བོད་སྐད་", "སྐད", "སི"),
        ("قَرَأَ الوَلَدُ كِتَابًا", "كِتَابًا", "كَتَبَ"),
        ("שָׁלוֹם עוֹלָם", "שָׁלוֹם", "שֶׁמֶשׁ"),
        ("the names in snake case", "snake_case", "camel_caps"),
    ],
    ids=[
        "Chinese",
        "Thai",
        "Hindi",
        "German",
        "English",
        "marks of Thai",
        "Myanmar",
        "Khmer",
        "Tibetan",
        "Arabic with vowels",
        "Hebrew with points",
        "underscores",
    ],
)
def test_words_are_found_in_scripts_with_and_without_blanks(index, tmp_path, text, query, other):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text(text, encoding="utf-8")
    (folder / "b.txt").write_text("something quite different", encoding="utf-8")
    follow(index, folder)
    assert hits_of_words(index, query) == ["a.txt"]
    assert hits_of_words(index, other) == []


@pytest.mark.parametrize("query", ['"', "a AND", "NEAR(", "text:", "* ^ -", "x' OR 1", "\0", "()", "🙂"])
def test_no_query_is_taken_for_a_language_of_its_own(index, folder, query):
    follow(index, folder)
    hits_of_words(index, query)


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_found(index, folder):
    follow(index, folder)
    (folder / "3.txt").write_bytes(b"flour \xff\xfe water")
    (folder / "rows.jsonl").write_text('{"text": "a row"}\n{"text": ')
    assert follow(index, folder) == (["3.txt", "rows.jsonl"], [])
    assert [problem.split(":")[0] for problem in index.problems()] == [
        f"{folder}/3.txt, line 1",
        f"{folder}/rows.jsonl, line 2",
    ]
    assert hits_of_words(index, "flour") == []
    assert hits(index, "lamp")[0] in ("0.txt", "deep/page.md")
    (folder / "3.txt").write_text("flour and water")
    follow(index, folder)
    assert hits_of_words(index, "flour") == ["3.txt"]
    assert len(index.problems()) == 1
    (folder / "rows.jsonl").unlink()
    assert follow(index, folder) == ([], ["rows.jsonl"])
    assert index.problems() == []


def test_half_a_character_in_a_table_is_named_and_the_other_files_are_found(index, folder):
    (folder / "rows.jsonl").write_text('{"text": "a whole row"}\n{"text": "bad \\ud83d half"}\n')
    follow(index, folder)
    assert index.problems() == [f"{folder}/rows.jsonl, line 2: an unpaired surrogate; fix or remove it"]
    assert hits(index, "lamp")[0] in ("0.txt", "deep/page.md")


def test_a_file_that_could_not_be_read_is_tried_again_and_written_once_it_can_be(index, folder, monkeypatch):
    """Also one whose size and time are as they were, such as after a change of its permissions."""
    path = folder / "3.txt"
    path.write_bytes(b"flour \xff water")
    time = path.stat().st_mtime_ns
    follow(index, folder)
    monkeypatch.setattr(index, "write", lambda *_: pytest.fail("written again"))
    assert follow(index, folder) == (["3.txt"], [])
    monkeypatch.undo()
    path.write_bytes(b"flour - water")
    os.utime(path, ns=(time, time))
    assert follow(index, folder) == (["3.txt"], [])
    assert hits_of_words(index, "flour") == ["3.txt"]
    assert index.problems() == follow(index, folder)[0] == []


def test_what_is_interrupted_keeps_whole_files_and_goes_on(index, folder, monkeypatch):
    monkeypatch.setattr("text_jepa.search.folder._GROUP", 2)
    calls = []

    def interrupted(texts):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(texts)

    with pytest.raises(KeyboardInterrupt):
        follow(index, folder, interrupted)
    kept = set(index.files())
    assert len(kept) == 4
    assert hits(index, "beans")  # what is there is searched
    read, _ = follow(index, folder)
    assert not kept & set(read)
    assert len(index.files()) == 8


def test_a_write_that_fails_leaves_what_was_there(index, folder, monkeypatch):
    follow(index, folder)
    before = content(index)
    (folder / "0.txt").write_text("Something else is said here.")
    monkeypatch.setattr(index_module, "_spaced", lambda text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        follow(index, folder)
    assert content(index) == before


def test_two_searches_at_once_leave_one_index(index, folder):
    errors = []

    def run():
        other = Index(index.path)
        try:
            follow(other, folder)
        except Exception as error:
            errors.append(error)
        finally:
            other.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows, vectors, words = content(index)
    assert len(vectors) == 8
    assert len(rows) == len(words) == len(set(rows))


def test_vectors_of_another_encoder_do_not_get_into_an_index(index, folder):
    other = Index(index.path)
    other.start({"encoder": "another"}, None)
    other.close()
    with pytest.raises(UsageError, match="another search is rebuilding it"):
        follow(index, folder)
    assert index.files() == {}


def test_an_index_that_another_search_writes_is_waited_for_and_then_named(index, folder, monkeypatch):
    monkeypatch.setattr(index_module, "_PATIENCE", 0.01)
    other = sqlite3.connect(index.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    mine = Index(index.path)
    with pytest.raises(UsageError, match="another search is writing it"):
        follow(mine, folder)
    mine.close()
    other.close()


def test_a_damaged_index_is_one_line_and_a_new_one_takes_its_place(index, folder):
    follow(index, folder)
    index.close()
    with index.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 30_000)
    damaged = Index(index.path)
    with pytest.raises(UsageError, match=r"damaged .*--rebuild"):
        hits(damaged, "beans")
    damaged.close()
    remove_index(index.path)
    again = Index(index.path)
    again.start(SETTINGS, None)
    assert len(follow(again, folder)[0]) == 8
    again.close()


@pytest.mark.parametrize("kind", ["text", "database"])
def test_files_of_others_are_never_touched(tmp_path, kind):
    path = tmp_path / "mine.db"
    if kind == "text":
        path.write_text("my notes")
    else:
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE files (mine)")
        database.close()
    before = path.read_bytes()
    for touch in (Index, remove_index):
        with pytest.raises(UsageError, match="not the index of a search"):
            touch(path)
    assert path.read_bytes() == before


def test_an_index_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    index = Index(tmp_path / "file" / "index.sqlite")
    with pytest.raises(UsageError, match=r"cannot be written .*--index"):
        index.start(SETTINGS, None)


def test_vectors_of_a_long_table_are_kept_in_parts(index, folder, tmp_path, monkeypatch):
    """SQLite takes no value above a gigabyte."""
    follow(index, folder)
    monkeypatch.setattr(index_module, "_LARGEST_PART", 100)
    other = Index(tmp_path / "other.sqlite")
    other.start(SETTINGS, None)
    follow(other, folder)
    assert max(len(vectors) for *_, vectors in content(other)[1]) == 100
    with index.snapshot() as whole, other.snapshot() as in_parts:
        np.testing.assert_array_equal(in_parts.mean, whole.mean)
        for query in ("beans in autumn", "the second row"):
            assert in_parts.search(query, embed([query])[0], 3) == whole.search(query, embed([query])[0], 3)
    (folder / "rows.jsonl").unlink()
    follow(other, folder)
    assert {path for path, *_ in content(other)[1]} == set(other.files())
    assert hits(other, "beans")
    other.close()


def test_token_vectors_are_those_of_the_table(index):
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    settings = index.start(SETTINGS, TokenTable(vectors, "{}", ("query: ", "")))
    assert (settings["tokenizer"], settings["query_prompt"], settings["prompt"]) == ("{}", "query: ", "")
    assert np.array_equal(index.token_vectors([3, 0, 3]), vectors[[3, 0, 3]])
