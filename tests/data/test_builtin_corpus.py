"""Tests the built-in corpus: what is removed from docstrings, and which documents are held out."""

import textwrap
from pathlib import Path

import pytest

from text_jepa.data import builtin_corpus
from text_jepa.data.builtin_corpus import Root, clean, harvest, is_held_out, load_builtin_corpus


PROSE = (
    "The {0} river leaves the mountains in the north and crosses a wide plain before it reaches the sea, "
    "where the people of {0} have built a harbour that is protected from the {0} wind by a long wall of stone."
)


def write(root: Path, path: str, source: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source)


def harvested(folder: Path) -> builtin_corpus.Harvest:
    return harvest([Root("rivers", folder, folder.parent)])


def unlike(number: int) -> str:
    """Prose whose lower-case words differ for every number below 26 * 26."""
    return PROSE.format(chr(97 + number // 26) + chr(97 + number % 26) + "ford")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "rivers"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "block",
    [
        ">>> river = 1\n>>> print(river)\nthe output of the code is in this line.",
        "```python\nthe = code(of, the, fence)\n```",
        "::\n\n    the code of the example is in this block.\n\n    and in the next one.",
        ".. code-block:: python\n\n    the code is in this block of the text.",
        ".. math::\n    the formula of the text is in this block.",
        ".. [1] The author of the book, and the title of the book.",
        "+-----+-----+\n| the | of  |\n+-----+-----+\n| a word of the table | is here |\n+-----+-----+",
        "==== ====\nthe  of\n==== ====\nthis is a row of the table\n==== ====",
        "| the | table |\n|-----|-------|\n| is a row | of the table |",
        "https://example.org/the/page",
        "Parameters\n----------",
        "References\n----------\nThe author of the book has written it in the year of the flood.",
    ],
)
def test_blocks_are_taken_out(block: str):
    before, after = "The river is wide and calm.", "The harbour is on the sea."
    assert clean(f"{before}\n\n{block}\n\nNotes\n-----\n{after}") == [before, after]


def test_prose_directives_keep_their_body():
    text = ".. note:: The river is wide\n    and it is calm.\n\n    It is deep as well.\n\n.. versionadded:: 1.2\n"
    assert clean(text) == ["The river is wide and it is calm.", "It is deep as well."]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("It is a :class:`~rivers.wide.River` of the north.", "It is a River of the north."),
        ("It is a :py:meth:`River.flow` of the north.", "It is a River.flow of the north."),
        ("It is a ``River`` of *the* **north**.", "It is a River of the north."),
        ("It is [the river](https://example.org) of the north.", "It is the river of the north."),
        ("It is `the river <https://example.org>`_ of the north.", "It is the river of the north."),
        ("It is <b>the river</b> of the north [1]_.", "It is the river of the north."),
        ("It is a river. See https://example.org for it. The sea is near.", "It is a river. The sea is near."),
        (r"It is a river. The depth is :math:`\sum_i d_i` in it. The sea is near.", "It is a river. The sea is near."),
        ("It is a\n    river of the\n    north.", "It is a river of the north."),
    ],
)
def test_inline_markup_is_unwrapped(marked: str, plain: str):
    assert clean(marked) == [plain]


@pytest.mark.parametrize(
    "section",
    [
        "Args:\n    depth (int, *optional*): The depth of the river\n        in metres.\n"
        "    wide (bool): If it is wide.",
        (
            "Args:\n    depth (`int`, *optional*):\n        The depth of the river in metres.\n    wide (`bool`):\n"
            "        If it is wide."
        ),
        (
            "Parameters\n----------\ndepth : int, optional\n    The depth of the river\n    in metres.\nwide : bool\n"
            "    If it is wide."
        ),
        ":param int depth: The depth of the river\n    in metres.\n:type depth: int\n:param wide: If it is wide.",
    ],
)
def test_parameters_keep_their_description(section: str):
    assert clean(section) == ["depth: The depth of the river in metres.", "wide: If it is wide."]


@pytest.mark.parametrize("text", ["x = f(y)[0] + g_1(z) * 2", "alpha beta gamma delta epsilon zeta eta theta", ""])
def test_what_is_no_prose_is_dropped(text: str):
    assert clean(text) == []


def test_sources_are_never_executed(tree: Path, tmp_path: Path):
    trace = tmp_path / "executed"
    write(tree, "__init__.py", f'"""{unlike(0)}"""\nopen({str(trace)!r}, "w").close()\nraise SystemExit\n')
    assert [document["source"] for document in harvested(tree).documents] == ["rivers/__init__.py"]
    assert not trace.exists()


def test_short_docstrings_join_their_scope_and_long_ones_stand_alone(tree: Path):
    long = f"{unlike(1)} {unlike(2)}"
    source = f'''
class River:
    """{unlike(0)}"""

    def flow(self):
        """Let the water of the river flow."""

    def flood(self):
        """{long}"""

attach(flood, """{unlike(3)}

    {unlike(4)}""")
'''
    write(tree, "a.py", source)
    short = "Let the water of the river flow."
    assert harvested(tree).documents == [
        {"text": f"{unlike(0)}\n{short}", "package": "rivers", "source": "rivers/a.py"},
        {"text": long, "package": "rivers", "source": "rivers/a.py:River.flood"},
        {"text": f"{unlike(3)}\n{unlike(4)}", "package": "rivers", "source": "rivers/a.py:flood"},
    ]


def test_a_paragraph_is_kept_once(tree: Path):
    boilerplate = "This river inherits from the Alpha river, see there for all that the rivers have in common."
    write(tree, "a.py", f'"""{unlike(0)}\n\n{boilerplate}"""')
    write(tree, "b.py", f'"""{unlike(1)}\n\n{boilerplate.replace("Alpha", "Beta")}"""')
    write(tree, "c.py", f'"""{unlike(1)}"""')
    texts = {document["source"]: document["text"] for document in harvested(tree).documents}
    assert texts == {"rivers/a.py": f"{unlike(0)}\n{boilerplate}", "rivers/b.py": unlike(1)}


def test_tests_vendored_copies_and_licences_are_skipped(tree: Path):
    for i, folder in enumerate(("tests", "_vendor", "third_party/deep")):
        write(tree, f"{folder}/a.py", f'"""{unlike(i)}"""')
    write(tree, "licence.py", f'"""Licensed under the terms of the river. {unlike(9)}"""')
    assert harvested(tree).documents == []


def test_unparsable_files_are_counted(tree: Path):
    write(tree, "bad.py", f'"""{unlike(0)}"""\ndef (')
    (tree / "latin.py").write_bytes(b'"""\xff"""')
    write(tree, "good.py", f'"""{unlike(1)}"""')
    found = harvested(tree)
    assert (len(found.documents), found.files, found.unparsable) == (1, 3, 2)


def test_topics_are_read_as_a_literal(tmp_path: Path):
    write(tmp_path, "pydoc_data/topics.py", f"topics = {{'assert': {unlike(0)!r}, 'with': {unlike(1)!r}}}")
    documents = harvest([Root("stdlib", tmp_path, tmp_path)]).documents
    assert [document["source"] for document in documents] == [
        "pydoc_data/topics.py:assert",
        "pydoc_data/topics.py:with",
    ]


def test_a_file_is_held_out_as_a_whole():
    files = [f"rivers/{i}.py" for i in range(4000)]
    assert all(is_held_out(file) == is_held_out(f"{file}:River.flow") for file in files)
    assert 0.03 < sum(map(is_held_out, files)) / len(files) < 0.07


def test_load_splits_by_file_and_reads_the_sources_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(100):
        write(tree, f"{i:03}.py", textwrap.dedent(f'"""{unlike(i)}"""'))
    calls = []

    def counting(roots):
        calls.append(roots)
        return harvest(roots)

    monkeypatch.setattr(builtin_corpus, "harvest", counting)
    versions = {"rivers": "1"}
    monkeypatch.setattr(builtin_corpus, "_installed", lambda: ([Root("rivers", tree, tree.parent)], versions))
    cache = tmp_path / "cache"
    first, second = load_builtin_corpus(cache), load_builtin_corpus(cache)
    assert len(calls) == 1
    assert {split: list(rows) for split, rows in first.items()} == {s: list(rows) for s, rows in second.items()}
    assert set(first["train"].column_names) == {"text", "package", "source"}
    train, validation = set(first["train"]["source"]), set(first["validation"]["source"])
    assert len(train | validation) == 100
    assert validation
    assert not train & validation
    assert len(list(cache.iterdir())) == 1

    versions["rivers"] = "2"
    load_builtin_corpus(cache)
    assert len(calls) == 2


def test_the_slower_of_two_writers_keeps_what_is_there(tmp_path: Path):
    documents = [{"text": unlike(i), "package": "rivers", "source": f"{i}.py"} for i in range(100)]
    folder = tmp_path / "corpus"
    builtin_corpus._write(folder, documents)
    before = (folder / "train.parquet").stat().st_mtime_ns
    builtin_corpus._write(folder, documents)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert (folder / "train.parquet").stat().st_mtime_ns == before
