"""Cuts paragraphs into passages that a search finds, and passages into sentences that it marks."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from text_jepa.data.prose import Paragraph
from text_jepa.data.scripts import is_unspaced, sentence_ends


# Words of a passage: paragraphs of a section are joined up to the first number, and longer ones cut at the second.
JOINED_WORDS = 80
LONGEST_WORDS = 160

# A sentence begins behind a blank line and a heading, and with an item of a list and a row of a table.
_LINE_BREAK = re.compile(r"\n(?=\s*(?:[-*+•]|\d+[.)])\s)|\n(?=\s*\|)|\n\s*\n")
_HEADING = re.compile(r"^#{1,6} .*$|^([=~^*+-])\1{2,}$", re.MULTILINE)
# Above this code point, a mark ends a sentence without a blank behind it, as 。 does.
_WIDE_MARKS = 0x2FFF


class Passage(NamedTuple):
    """A piece of a file.

    Args:
        line: The number of the line that it begins in, from 1.
        text: Its text, paragraphs with blank lines between them.
    """

    line: int
    text: str


class Span(NamedTuple):
    """Where a piece of a text begins and ends, in characters."""

    start: int
    end: int


def passages_of(paragraphs: Iterable[Paragraph]) -> Iterator[Passage]:
    """The passages of a file: whole paragraphs of one section where they are short, parts of those that are long.

    Args:
        paragraphs: The paragraphs of the file.
    """
    parts: list[str] = []
    line = 0
    words = 0
    for paragraph in paragraphs:
        for piece in _pieces(paragraph):
            size = count_words(piece.text)
            is_full = words >= JOINED_WORDS or words + size > LONGEST_WORDS
            begins = paragraph.opens and piece.line == paragraph.line
            if parts and (is_full or begins):
                yield Passage(line, "\n\n".join(parts))
                parts = []
                words = 0
            line = line if parts else piece.line
            parts.append(piece.text)
            words += size
    if parts:
        yield Passage(line, "\n\n".join(parts))


def _pieces(paragraph: Paragraph) -> Iterator[Passage]:
    """A paragraph, or if it is longer than a passage, its sentences in groups of about the same length."""
    line, text, _ = paragraph
    total = count_words(text)
    if total <= LONGEST_WORDS:
        yield Passage(line, text)
        return
    pieces = math.ceil(total / LONGEST_WORDS)
    borders = [number * total / pieces for number in range(1, pieces)]
    start = 0
    end = 0
    words = 0
    before = 0
    for sentence in sentences_of(text):
        size = count_words(text[sentence.start : sentence.end])
        is_behind = bool(borders) and before + size / 2 > borders[0]
        if words and (is_behind or words + size > LONGEST_WORDS):
            yield Passage(line + text.count("\n", 0, start), text[start:end])
            borders = [border for border in borders if border > before + size / 2]
            words = 0
        start = start if words else sentence.start
        end = sentence.end
        words += size
        before += size
    yield Passage(line + text.count("\n", 0, start), text[start:end])


def sentences_of(text: str) -> Iterator[Span]:
    """Sentences, headings, items of lists and rows of tables, without the blanks around them.

    What has no marks of sentences is cut between its words.
    """
    breaks = set(_sentence_breaks(text))
    breaks.update(match.start() for match in _LINE_BREAK.finditer(text))
    for heading in _HEADING.finditer(text):
        breaks -= set(range(*heading.span()))
        breaks |= {heading.start(), heading.end()}
    start = 0
    for end in sorted({*breaks, len(text)}):
        content = text[start:end]
        left = len(content) - len(content.lstrip())
        if content.strip():
            yield from _cut(text, Span(start + left, start + len(content.rstrip())))
        start = end


def _sentence_breaks(text: str) -> Iterator[int]:
    """Places behind the ends of sentences, in characters."""
    encoded = text.encode("utf-8", "replace")
    place = 0
    before = 0
    for end in sentence_ends(encoded):
        place += len(encoded[before:end].decode("utf-8", "replace"))
        before = end
        is_wide = ord(text[place - 1]) > _WIDE_MARKS
        if place < len(text) and (is_wide or text[place].isspace()):
            yield place


def _cut(text: str, span: Span) -> Iterator[Span]:
    """A span, in parts of at most `LONGEST_WORDS` words."""
    if count_words(text[span.start : span.end]) <= LONGEST_WORDS:
        yield span
        return
    start = span.start
    end = span.start
    words = 0
    for match in re.finditer(r"\S{1,200}", text[span.start : span.end]):
        size = count_words(match.group())
        if words and words + size > LONGEST_WORDS:
            yield Span(start, end)
            words = 0
        start = start if words else span.start + match.start()
        end = span.start + match.end()
        words += size
    yield Span(start, end)


def count_words(text: str) -> int:
    """Number of words; in scripts without blanks, two characters count as one."""
    unspaced = 0 if text.isascii() else sum(map(is_unspaced, text))
    return len(text.split()) + unspaced // 2
