"""Tests files without columns: layouts, sections, and the visible text of pages.

Run: python -m pytest -q tests/data/test_prose.py
"""

import random
import textwrap

import pytest

from text_jepa.data.prose import (
    Layout,
    Paragraph,
    html_paragraphs,
    join_paragraphs,
    layout_of,
    markup_paragraphs,
    plain_paragraphs,
)


WORDS = ["the", "river", "carried", "a", "little", "boat", "past", "mill", "where", "nobody", "had", "been", "before"]


def sentences(count, seed=0, least=4, most=25):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(least, most))).capitalize() + "." for _ in range(count)]


def prose(count, seed=0):
    """Paragraphs of a few sentences."""
    found = sentences(6 * count, seed)
    return [" ".join(found[6 * i : 6 * i + 6]) for i in range(count)]


# ---- plain text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", ["", "  "], ids=["blank lines", "indents"])
@pytest.mark.parametrize("width", [50, 72, 80, 100])
def test_hard_wrapped_paragraphs_are_found_and_joined(width, indent):
    # No last line of these paragraphs is full, which would look as if the paragraph continued.
    paragraphs = [indent + text for text in prose(12, seed=2)]
    wrapped = [textwrap.fill(text, width) for text in paragraphs]
    text = ("\n" if indent else "\n\n").join(wrapped)
    layout = layout_of(text)
    assert layout.kind == "wrapped"
    joined = [paragraph.text for paragraph in plain_paragraphs(text, layout)]
    # Without blank lines, indented paragraphs stay one, in which each begins a line.
    expected = ["\n".join(paragraphs)] if indent else paragraphs
    assert joined == expected


@pytest.mark.parametrize("width", [60, 80])
def test_uncased_prose_is_wrapped_too(width):
    # Devanagari has no capital letters; its sentences end with a danda.
    text = "\n\n".join(prose(10)).translate({ord("a") + i: 0x915 + i for i in range(26)})
    text = text.lower().replace(".", "।")
    wrapped = "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))
    assert layout_of(wrapped).kind == "wrapped"


@pytest.mark.parametrize(
    "letters", ["天地玄黄宇宙洪荒，", "いろはにほへと、", "กขคงจฉชซ"], ids=["Chinese", "Japanese", "Thai"]
)
def test_wrapped_lines_of_scripts_without_spaces_are_joined_without_one(letters):
    draw = random.Random(0)
    paragraphs = ["".join(draw.choices(letters, k=130)) + "。" for _ in range(10)]
    text = "\n\n".join(textwrap.fill(paragraph, 40) for paragraph in paragraphs)
    layout = layout_of(text)
    assert layout.kind == "wrapped"
    assert [paragraph.text for paragraph in plain_paragraphs(text, layout)] == paragraphs


def test_other_words_keep_their_space_in_scripts_without_spaces_and_short_lines_their_break():
    full = "字" * 40
    text = f"{full}\nword {full[5:]}\n{full[:20]}。\n“{full[1:]}\n{full}"
    (found,) = plain_paragraphs(text, Layout("wrapped", 40))
    assert found.text == f"{full} word {full[5:]}{full[:20]}。\n“{full[1:]}{full}"


LISTS = {
    "sentences": sentences(200),
    "lower case without marks": [text.lower().rstrip(".") for text in sentences(200)],
    "long lines": prose(100),
    "words": WORDS * 20,
    "verses": [" ".join(text.split()[:6]) for text in sentences(200, least=6)],
    "sequences": ["".join(random.Random(i).choices("ACGT", k=100)) for i in range(100)],
    "no blanks": ["字" * random.Random(i).randint(5, 60) + "。" for i in range(100)],
    "titles without blanks": ["字" * random.Random(i).randint(20, 44) for i in range(100)],
    "a few": sentences(3),
}


@pytest.mark.parametrize("lines", LISTS.values(), ids=LISTS)
def test_a_text_in_each_line_stays_one(lines):
    text = "\n".join([*lines[:2], "", *lines[2:]]) if len(lines) > 50 else "\n".join(lines)
    layout = layout_of(text)
    assert layout.kind == "lines"
    found = [paragraph.text for paragraph in plain_paragraphs(text, layout)]
    assert found == lines


def test_blank_lines_separate_paragraphs_that_are_not_wrapped():
    paragraphs = prose(5)
    text = "\n\n".join(paragraphs)
    layout = layout_of(text)
    assert layout.kind == "blocks"
    assert [paragraph.text for paragraph in plain_paragraphs(text, layout)] == paragraphs


def test_a_short_file_is_a_document_if_there_are_many():
    text = "\n".join(sentences(5))
    assert layout_of(text).kind == "lines"
    assert layout_of(text, is_one_of_many=True).kind == "blocks"
    assert layout_of("\n".join(sentences(500)), is_one_of_many=True).kind == "lines"


@pytest.mark.parametrize("text", ["", "\n", "\n \n\t\n", "one"])
def test_next_to_nothing_is_a_list_of_lines(text):
    layout = layout_of(text)
    assert layout.kind == "lines"
    assert [paragraph.text for paragraph in plain_paragraphs(text, layout)] == text.split()


@pytest.mark.parametrize(
    ("beginning", "end", "elsewhere", "joined"),
    [
        ("administra", "tion,", "The Administration slept.", "administration,"),
        ("administra", "tion,", "", "administra-tion,"),
        ("well", "known.", "It was well-known, not wellknown.", "well-known."),
        ("re", "elected;", "He was re-elected.", "re-elected;"),
        ("1990", "1995", "", "1990-1995"),
        ("cross-coun", "try", "A cross-country race.", "cross-country"),
    ],
)
def test_a_hyphen_at_the_end_of_a_line_goes_if_the_document_has_the_word_without_it(beginning, end, elsewhere, joined):
    line = "the river carried a little boat past the mill and".ljust(60 - len(beginning), "x")
    text = f"{line} {beginning}-\n{end} the boat came home.\n\n{elsewhere}"
    first = next(plain_paragraphs(text, Layout("wrapped", 60))).text
    assert first == f"{line} {joined} the boat came home."


def test_items_and_short_lines_of_wrapped_text_keep_their_breaks():
    text = "\n\n".join(textwrap.fill(paragraph, 60) for paragraph in prose(10))
    layout = layout_of(f"{text}\n")
    item = "- " + "word " * 10 + "to the end"
    found = plain_paragraphs(f"{item}\n{item}\n\nDear reader,\nyours,\nthe author", layout)
    assert [paragraph.text for paragraph in found] == [f"{item}\n{item}", "Dear reader,\nyours,\nthe author"]


# ---- Markdown and reStructuredText ----------------------------------------------------------------------------------


MARKDOWN = {
    "a heading begins its paragraph": ("# A\n\none\ntwo\n", [(1, "# A\none two", True)]),
    "headings in a row": ("# A\n\n## B\n\none", [(1, "# A\n## B\none", True)]),
    "a heading ends a paragraph": ("one\n# A\ntwo", [(1, "one", False), (2, "# A\ntwo", True)]),
    "an underlined heading": ("A\n===\n\none\n\nB\n---\ntwo", [(1, "A\n===\none", True), (6, "B\n---\ntwo", True)]),
    "a rule is no heading": ("one\n\n---\n\ntwo", [(1, "one", False), (3, "---", False), (5, "two", False)]),
    "code in one piece": (
        "one\n\n```py\na = 1\n\n# no heading\nb\n```\n\ntwo",
        [(1, "one", False), (3, "```py\na = 1\n\n# no heading\nb\n```", False), (10, "two", False)],
    ),
    "a fence within a fence": (
        "````\n```\n\n```\n````\n\none",
        [(1, "````\n```\n\n```\n````", False), (7, "one", False)],
    ),
    "lines of a fence within a fence": (
        "````\n```\na\nb\n```\nc\nd\n````\none\ntwo",
        [(1, "````\n```\na\nb\n```\nc\nd\n````\none two", False)],
    ),
    "an open fence": ("```\na\n\nb", [(1, "```\na\n\nb", False)]),
    "a list": ("- one\n  more\n- two\n1. three", [(1, "- one   more\n- two\n1. three", False)]),
    "a table": ("| a | b |\n|---|---|\n| 1 | 2 |", [(1, "| a | b |\n|---|---|\n| 1 | 2 |", False)]),
    "a heading alone": ("one\n\n# A\n", [(1, "one", False), (3, "# A", True)]),
    "lines without spaces": ("字\n字，\n字 a\nb", [(1, "字字，字 a b", False)]),
}


@pytest.mark.parametrize(("text", "expected"), MARKDOWN.values(), ids=MARKDOWN)
def test_markdown_is_divided_into_sections_and_paragraphs(text, expected):
    assert list(markup_paragraphs(text, ".md")) == [Paragraph(*paragraph) for paragraph in expected]


RESTRUCTURED = {
    "a heading": ("A title\n=======\n\none\ntwo", [(1, "A title\n=======\none two", True)]),
    "a line above too": ("===\nA\n===\n\none", [(1, "===\nA\n===\none", True)]),
    "an underline that looks like a fence": ("A title\n~~~~~~~\n\none\ntwo", [(1, "A title\n~~~~~~~\none two", True)]),
    "two levels": ("A\n===\n\nB\n---\none", [(1, "A\n===\nB\n---\none", True)]),
    "fields": (":a: 1\n:b: 2", [(1, ":a: 1\n:b: 2", False)]),
    "a table": ("=== ===\na   b\n1   2\n=== ===", [(1, "=== ===\na   b\n1   2\n=== ===", False)]),
    "code": ("one::\n\n    a = 1\n    b = 2", [(1, "one::", False), (3, "    a = 1\n    b = 2", False)]),
}


@pytest.mark.parametrize(("text", "expected"), RESTRUCTURED.values(), ids=RESTRUCTURED)
def test_restructured_text_is_divided_into_sections_and_paragraphs(text, expected):
    assert list(markup_paragraphs(text, ".rst")) == [Paragraph(*paragraph) for paragraph in expected]


# ---- HTML -----------------------------------------------------------------------------------------------------------


PAGES = {
    "paragraphs": ("<p>one\n  two</p>\n<p>three &amp; four", [(1, "one two", False), (3, "three & four", False)]),
    "a heading": ("<h1>A<a>¶</a></h1>\n<p>one</p>", [(1, "A\none", True)]),
    "what is not shown": (
        "<head><title>T</title></head><script>x</script><style>y</style><nav>z</nav><p hidden>h</p><p>one</p>",
        [(1, "one", False)],
    ),
    "roles": ('<div role="navigation"><div>a</div>b</div><p>one</p>', [(1, "one", False)]),
    "a head without an end": ("<head><title>T</title><style>x</style><body><p>one</p>", [(1, "one", False)]),
    "a head that a text ends": ("<head><meta name=a><title>T</title>one", [(1, "one", False)]),
    "no head": ("<!DOCTYPE html><title>T</title><p>one</p>", [(1, "one", False)]),
    "a template in a head": ("<head><template><p>x</p></template></head><p>one</p>", [(1, "one", False)]),
    "a page in a form": (
        "<form>zero<p>one</p><select><option>x</select><textarea>y</textarea><button>z</button></form>two",
        [(1, "zero", False), (1, "one", False), (1, "two", False)],
    ),
    "the main part": ("<div>menu</div><main><p>one</p></main><div>footer</div>", [(1, "one", False)]),
    "code": ("<pre>a = 1\n\n  b = 2</pre>", [(1, "a = 1\n\n  b = 2", False)]),
    "a list": ("<ul><li>one<li>two</ul>", [(1, "one", False), (1, "two", False)]),
    "inline": ("<p>o<b>n</b>e <i>two</i><br>three</p>", [(1, "one two three", False)]),
    "an open nav": ("<div><nav>menu</div><p>one</p>", [(1, "one", False)]),
    "an open nav before the main part": ("<nav><ul><li>menu<main><p>one</p></main>", [(1, "one", False)]),
    "ends of nothing": ("</div></p><p>one</span></p>", [(1, "one", False)]),
    "a heading alone": ("<p>one</p><h2>A</h2>", [(1, "one", False), (1, "A", True)]),
    "hidden items without an end": (
        "<ul><li hidden>x<li>one<ul><li hidden>y<li>two</ul><li>three</ul>",
        [(1, "one", False), (1, "two", False), (1, "three", False)],
    ),
    "hidden cells and rows without an end": (
        "<table><thead hidden><tr><th>x<tbody><tr hidden><td>y<tr><td>one<td hidden>z<td>two</table>",
        [(1, "one", False), (1, "two", False)],
    ),
    "hidden terms without an end": (
        "<dl><dt hidden>x<dd>one<dd hidden>y<dt>two</dl>",
        [(1, "one", False), (1, "two", False)],
    ),
    "hidden paragraphs without an end": (
        "<p hidden>x<p>one<p hidden>y<ul><li>two</ul><p hidden>z<h2>A</h2>three",
        [(1, "one", False), (1, "two", False), (1, "A\nthree", True)],
    ),
    "a picture in a paragraph": (
        "<p>one<svg><foreignObject><div>x</div></foreignObject></svg><p>two</p>",
        [(1, "one", False), (1, "two", False)],
    ),
    "an end of a paragraph that has ended": (
        "<p>one<div>two</div>three</p>four",
        [(1, "one", False), (1, "two", False), (1, "three", False), (1, "four", False)],
    ),
    "ends of what is not open": (
        "<p>one</div> two</h2> three<p>four",
        [(1, "one two three", False), (1, "four", False)],
    ),
    "marked sections": (
        "<p>one</p><![FOR]><p>two<![ns::x]> three<![if !IE]> four<![endif]--></p><p>five]></p>",
        [(1, "one", False), (1, "two three four", False), (1, "five]>", False)],
    ),
    "a character of many digits": ("<p>one &#" + "9" * 5_000 + "; &#65;", [(1, "one \ufffd A", False)]),
    "no markup": ("one", [(1, "one", False)]),
    "nothing": ("<html></html>", []),
}


@pytest.mark.parametrize(("page", "expected"), PAGES.values(), ids=PAGES)
def test_the_text_of_a_page_is_what_it_shows(page, expected):
    assert html_paragraphs(page) == [Paragraph(*paragraph) for paragraph in expected]


# ---- documents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [50, 200, 1_000])
def test_documents_lose_nothing_and_are_no_longer_than_asked_for(longest):
    paragraphs = [Paragraph(1, text) for text in sentences(30, most=8)]
    documents = list(join_paragraphs(paragraphs, longest))
    assert "\n\n".join(documents) == "\n\n".join(paragraph.text for paragraph in paragraphs)
    assert all(len(document) <= longest or "\n\n" not in document for document in documents)


def test_a_document_ends_before_a_section_when_it_is_half_full():
    paragraphs = [Paragraph(1, "a" * 60), Paragraph(2, "# b", True), Paragraph(3, "c" * 20), Paragraph(4, "# d", True)]
    assert list(join_paragraphs(paragraphs, 100)) == ["a" * 60, f"# b\n\n{'c' * 20}\n\n# d"]
