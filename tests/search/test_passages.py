"""Passages and sentences: nothing is lost, nothing is too long, and each knows its line."""

from itertools import pairwise

import pytest

from text_jepa.data.prose import Paragraph, markup_paragraphs
from text_jepa.search.passages import JOINED_WORDS, LONGEST_WORDS, count_words, passages_of, sentences_of


SENTENCE = "The river carried the little boat past the mill and out towards the open sea."
CHINESE = "灯塔看守人点亮了灯,在风暴来临之前爬下港口。小船顺着河流漂过磨坊。" * 20


def text_of(paragraphs):
    return "".join("".join(paragraph.text.split()) for paragraph in paragraphs)


@pytest.mark.parametrize(
    "paragraphs",
    [
        [Paragraph(1, SENTENCE)],
        [Paragraph(number, f"{SENTENCE} {number}") for number in range(1, 60)],
        [Paragraph(1, " ".join([SENTENCE] * 50)), Paragraph(3, SENTENCE)],
        [Paragraph(1, "word " * 1_000)],
        [Paragraph(1, "x" * 100_000)],
        [Paragraph(1, CHINESE * 3)],
        [Paragraph(1, "- an item of a list\n" * 200)],
    ],
    ids=["short", "many", "long", "no marks", "one word", "no blanks", "list"],
)
def test_passages_are_all_of_the_text_in_pieces_of_bounded_length(paragraphs):
    passages = list(passages_of(paragraphs))
    assert text_of(passages) == text_of(paragraphs)
    assert all(0 < count_words(passage.text) <= LONGEST_WORDS for passage in passages)
    assert all(first.line <= second.line for first, second in pairwise(passages))


def test_short_paragraphs_are_joined_until_there_are_enough_words():
    passages = list(passages_of([Paragraph(number, SENTENCE) for number in range(1, 30)]))
    assert all(JOINED_WORDS <= count_words(passage.text) < JOINED_WORDS + 20 for passage in passages[:-1])
    assert [passage.line for passage in passages] == [1, 7, 13, 19, 25]


def test_a_long_paragraph_leaves_no_scrap():
    passages = list(passages_of([Paragraph(1, " ".join([SENTENCE] * 22))]))  # 330 words
    assert [count_words(passage.text) for passage in passages] == [105, 120, 105]


def test_a_section_begins_a_passage():
    text = "# One\n\nA few words.\n\n## Two\n\nOther words.\n\nMore of them.\n"
    passages = passages_of(markup_paragraphs(text, ".md"))
    assert [(passage.line, passage.text.split("\n")[0]) for passage in passages] == [(1, "# One"), (5, "## Two")]


def test_a_part_of_a_long_list_knows_its_line():
    items = "\n".join(f"- {SENTENCE}" for _ in range(40))
    for passage in passages_of([Paragraph(11, items)]):
        assert (passage.line - 11) * len(f"- {SENTENCE}\n") == items.index(passage.text, (passage.line - 11) * 80)


def test_sentences_end_behind_their_marks_and_at_items_of_lists():
    text = "## A heading. Of two?\nOne is here. Is two? “Three!” he said.\n- four\n- five 5.5 and e.g.\n\nsix"
    found = [text[span.start : span.end] for span in sentences_of(text)]
    assert found == [
        "## A heading. Of two?",
        "One is here.",
        "Is two?",
        "“Three!”",
        "he said.",
        "- four",
        "- five 5.5 and e.g.",
        "six",
    ]


def test_sentences_need_no_blanks():
    text = "灯塔看守人点亮了灯。小船顺着河流漂过磨坊!你好"
    assert [text[span.start : span.end] for span in sentences_of(text)] == [
        "灯塔看守人点亮了灯。",
        "小船顺着河流漂过磨坊!你好",
    ]
