"""Paragraphs and documents of files without columns: plain text, Markdown, reStructuredText and HTML.

A hard-wrapped line goes on in the next one, a heading belongs to what follows it, and code between fences is one
piece. Markup stays as it stands, except that of HTML.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from typing import Literal, NamedTuple


MARKDOWN = (".md", ".markdown")
RESTRUCTURED = (".rst",)
HTML = (".html", ".htm")
MARKUP = (*MARKDOWN, *RESTRUCTURED, *HTML)
PLAIN = (".txt", ".text")

# A text file is known by its first characters.
BEGINNING = 1 << 18

# Lines are hard-wrapped at widths between these, and a word is at most so long.
_WIDTHS = range(40, 141)
_LONGEST_WORD = 20
# A file is hard-wrapped if so many of its lines go on in the next one; a few may do so by chance.
_WRAPPED_SHARE = 0.25
_BY_CHANCE = 2
# Blank lines separate paragraphs if there are so many to a line of text.
_BLANK_SHARE = 0.05
# Of many files, one with fewer lines is one document.
_FEW_LINES = 100

_SENTENCE_MARKS = (".", "!", "?", ":", ";", "。", "！", "？", "：", "；", "।", "؟", "۔")
_ITEM = re.compile(r"\s*(?:[-*+•>|#]|\(?\d{1,3}[.)]|\[\d+\]|:[^:]+:)(?:\s|$)|\s*\||\s{4,}|\t")
_BORDER = re.compile(r"\s*[-=+|:]{2}[-=+|: ]{3,}")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_MARKDOWN_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")


class Paragraph(NamedTuple):
    """A paragraph of a file.

    Args:
        line: The number of its first line in the file, from 1.
        text: Its text; hard-wrapped lines are joined.
        opens: Whether a section begins here.
    """

    line: int
    text: str
    opens: bool = False


class Layout(NamedTuple):
    """How the lines of a text file belong together.

    Args:
        kind: Each line is a text of its own (`"lines"`), goes on in the next one (`"wrapped"`), or is a paragraph or a
            line of one, between blank lines (`"blocks"`).
        width: The width at which lines are wrapped, in characters.
    """

    kind: Literal["lines", "wrapped", "blocks"]
    width: int = 0


# ---- plain text -----------------------------------------------------------------------------------------------------


def layout_of(beginning: str, is_one_of_many: bool = False) -> Layout:
    """How the lines of a text file belong together, by the lengths of its lines, their beginnings and their ends.

    Args:
        beginning: The first characters of the file.
        is_one_of_many: Whether the file is one of many, of which a short one is a document rather than a few.
    """
    lines = [line.rstrip() for line in beginning.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    lengths = sorted(len(line) for line in lines if line)
    if not lengths:
        return Layout("lines")
    width = lengths[int(0.95 * (len(lengths) - 1))]
    pairs = [(line, following) for line, following in pairwise(lines) if line and following]
    if width in _WIDTHS:
        wrapped = sum(_fills(line, following, width) and _goes_on(line, following) for line, following in pairs)
        if wrapped > _BY_CHANCE + _WRAPPED_SHARE * len(pairs):
            return Layout("wrapped", width)
    borders = sum(bool(line) and not following for line, following in pairwise(lines))
    if borders > _BLANK_SHARE * len(lengths) or (is_one_of_many and len(lengths) < _FEW_LINES):
        return Layout("blocks")
    return Layout("lines")


def _fills(line: str, following: str, width: int) -> bool:
    """Whether the first word of the next line has no room in a line."""
    word = following.split(maxsplit=1)[0]
    return len(line) + 1 + min(len(word), _LONGEST_WORD) > width


def _goes_on(line: str, following: str) -> bool:
    """Whether a sentence seems to go on in the next line."""
    first = following.lstrip()[0]
    return first.isalpha() and not first.isupper() and not line.endswith(_SENTENCE_MARKS)


def plain_paragraphs(text: str, layout: Layout, line: int = 1) -> Iterator[Paragraph]:
    """The paragraphs of a text file, which blank lines separate; those of `"lines"` are its lines.

    Args:
        text: The file, or a part of it.
        layout: How its lines belong together.
        line: The number of its first line.
    """
    block = []
    start = line
    for number, content in enumerate(text.split("\n"), line):
        content = content.rstrip()
        if content and layout.kind != "lines":
            start = start if block else number
            block.append(content)
            continue
        if block:
            yield Paragraph(start, join_lines(block, layout.width))
            block = []
        if content:
            yield Paragraph(number, content)
    if block:
        yield Paragraph(start, join_lines(block, layout.width))


def join_lines(lines: Sequence[str], width: int) -> str:
    """The lines of a paragraph, of which those that fill the width go on in the next one.

    Args:
        lines: Lines without blank ones.
        width: The width at which they are wrapped, in characters; 0 joins none.
    """
    if not width:
        return "\n".join(lines)
    parts = [lines[0]]
    for line, following in pairwise(lines):
        if not _fills(line, following, width) or _ITEM.match(following):
            parts += ["\n", following]
        elif line.endswith("-"):
            parts.append(following.lstrip())
        else:
            parts += [" ", following.lstrip()]
    return "".join(parts)


# ---- Markdown and reStructuredText ----------------------------------------------------------------------------------


def markup_paragraphs(text: str, suffix: str) -> Iterator[Paragraph]:
    """The paragraphs of Markdown or reStructuredText; a heading is the beginning of the first one below it.

    Args:
        text: The file.
        suffix: `".md"` or `".rst"`.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    if suffix in MARKDOWN:
        fenced = _fenced_lines(lines)
        headings = _headings_of_markdown(lines, fenced)
    else:
        fenced = set()  # the same marks underline a title of reStructuredText
        headings = _headings_of_rst(lines)
    block = {}
    has_text = False
    for number, line in enumerate(lines, 1):
        is_border = not line and number not in fenced and has_text
        if block and (is_border or (number in headings and has_text)):
            yield _make_paragraph(block, headings, fenced)
            block = {}
            has_text = False
        if line or number in fenced:
            block[number] = line
            has_text = has_text or number not in headings
    if block:
        yield _make_paragraph(block, headings, fenced)


def _fenced_lines(lines: Sequence[str]) -> set[int]:
    """The numbers of lines of code between fences, and of the fences themselves."""
    fenced = set()
    fence = None
    for number, line in enumerate(lines, 1):
        mark = _FENCE.match(line)
        if mark or fence is not None:
            fenced.add(number)
        if mark:
            fence = _next_fence(fence, mark)
    return fenced


def _next_fence(fence: str | None, mark: re.Match) -> str | None:
    """The fence that is open behind a line with one."""
    if fence is None:
        return mark[1]
    closes = mark[1].startswith(fence) and not mark[2].strip()
    return None if closes else fence


def _headings_of_markdown(lines: Sequence[str], fenced: set[int]) -> set[int]:
    """The numbers of lines that are headings, or underline one."""
    headings = set()
    for number, line in enumerate(lines, 1):
        if number in fenced:
            continue
        if _HEADING.match(line):
            headings.add(number)
        elif _MARKDOWN_UNDERLINE.fullmatch(line) and number > 1:
            above = lines[number - 2]
            starts = number == 2 or not lines[number - 3]
            if above and starts and not _ITEM.match(above):
                headings |= {number - 1, number}
    return headings


def _headings_of_rst(lines: Sequence[str]) -> set[int]:
    headings = set()
    for number, line in enumerate(lines, 1):
        if not _UNDERLINE.fullmatch(line) or number == 1:
            continue
        above = lines[number - 2]
        if not above or above[0].isspace() or _UNDERLINE.fullmatch(above) or len(line) < len(above) - 2:
            continue
        headings |= {number - 1, number}
        if number > 2 and lines[number - 3] == line:
            headings.add(number - 2)
    return headings


def _make_paragraph(block: dict[int, str], headings: set[int], fenced: set[int]) -> Paragraph:
    """A paragraph in which lines that go on in the next one are joined; code and tables stay as they are."""
    is_table = any(_BORDER.fullmatch(line) for number, line in block.items() if number not in headings)
    parts = []
    is_soft = False
    for number, line in block.items():
        is_own = number in fenced or number in headings or is_table or bool(_ITEM.match(line))
        if parts:
            parts.append("\n" if is_own or not is_soft else " ")
        parts.append(line)
        is_soft = bool(line) and number not in fenced and number not in headings
    start = next(iter(block))
    return Paragraph(start, "".join(parts).rstrip(), start in headings)


# ---- HTML -----------------------------------------------------------------------------------------------------------

# Elements whose text is no text of the page; those between which a paragraph ends; those that have no end.
_HIDDEN = re.compile(
    "script|style|template|noscript|svg|math|head|title|nav|footer|aside|button|select|textarea|datalist|iframe|object"
)
_HIDDEN_ROLES = ("navigation", "banner", "contentinfo", "search", "menu", "toolbar")
# Elements of a head, which any other one ends; and those that never hold the main part of a page.
_OF_HEAD = re.compile("base|link|meta|noscript|script|style|template|title")
_BESIDE_MAIN = ("nav", "aside", "footer")
_HEADINGS = re.compile("h[1-6]")
_BLOCKS = re.compile(
    "address|article|blockquote|body|caption|center|dd|details|div|dl|dt|fieldset|figcaption|figure|form|h[1-6]|"
    "header|hr|html|li|main|ol|p|pre|section|summary|table|tbody|td|tfoot|th|thead|tr|ul"
)
_VOID = re.compile("area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr")
_SPACES = re.compile(r"[ \t\r\n\f]+")


class _Element(NamedTuple):
    tag: str
    is_hidden: bool
    is_main: bool


class _Blocks(HTMLParser):
    """Gathers the visible text of a page: paragraphs, and whether each is in the main part of it."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[Paragraph] = []
        self.in_main: list[bool] = []
        self.open: list[_Element] = []
        self.parts: list[str] = []
        self.line = 1
        self.heading: Paragraph | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        role = values.get("role")
        is_main = tag == "main" or role == "main"
        # Pages may leave out the end of the head, and some forget that of the navigation.
        if not _OF_HEAD.fullmatch(tag):
            self._end_head()
        if is_main:
            for outer in _BESIDE_MAIN:
                self.handle_endtag(outer)
        if _BLOCKS.fullmatch(tag):
            self.end_paragraph()
        if tag == "br":
            self.handle_data("\n" if self._is_in("pre") else " ")
        if _VOID.fullmatch(tag):
            return
        above = self.open[-1] if self.open else _Element("", False, False)
        is_hidden = above.is_hidden or bool(_HIDDEN.fullmatch(tag)) or role in _HIDDEN_ROLES or "hidden" in values
        self.open.append(_Element(tag, is_hidden, above.is_main or is_main))

    def handle_endtag(self, tag: str) -> None:
        if not self._is_in(tag):
            return
        if _BLOCKS.fullmatch(tag):
            self.end_paragraph(is_heading=bool(_HEADINGS.fullmatch(tag)))
        while self.open.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not data.isspace():
            self._end_head()
        if self.open and self.open[-1].is_hidden:
            return
        if not self.parts:
            if data.isspace():
                return
            self.line = self.getpos()[0]
        self.parts.append(data if self._is_in("pre") else _SPACES.sub(" ", data))

    def _end_head(self) -> None:
        if self.open and self.open[-1].tag == "head":
            self.open.pop()

    def _is_in(self, tag: str) -> bool:
        return any(element.tag == tag for element in self.open)

    def end_paragraph(self, is_heading: bool = False) -> None:
        text = "".join(self.parts).strip().removesuffix("¶").rstrip()
        self.parts = []
        if not text:
            return
        if is_heading:
            above = f"{self.heading.text}\n" if self.heading else ""
            line = self.heading.line if self.heading else self.line
            self.heading = Paragraph(line, above + text, True)
            return
        self.add(Paragraph(self.line, text))

    def add(self, paragraph: Paragraph) -> None:
        if self.heading:
            paragraph = Paragraph(self.heading.line, f"{self.heading.text}\n{paragraph.text}", True)
            self.heading = None
        self.paragraphs.append(paragraph)
        self.in_main.append(bool(self.open) and self.open[-1].is_main)


def html_paragraphs(text: str) -> list[Paragraph]:
    """The paragraphs that a page shows, without controls and navigation; those of its main part if it has one.

    Args:
        text: The file.
    """
    parser = _Blocks()
    parser.feed(text)
    parser.close()
    parser.end_paragraph()
    if parser.heading:
        heading, parser.heading = parser.heading, None
        parser.add(heading)
    if not any(parser.in_main):
        return parser.paragraphs
    return [paragraph for paragraph, is_main in zip(parser.paragraphs, parser.in_main, strict=True) if is_main]


# ---- documents ------------------------------------------------------------------------------------------------------


def join_paragraphs(paragraphs: Iterable[Paragraph], longest: int) -> Iterator[str]:
    """The documents of a file: it is one, unless it is longer, and then is divided at sections and paragraphs.

    Args:
        paragraphs: Its paragraphs.
        longest: Longest document in characters; a longer paragraph is one.
    """
    parts = []
    size = 0
    for paragraph in paragraphs:
        is_full = size + len(paragraph.text) > longest
        is_section = paragraph.opens and size > longest // 2
        if parts and (is_full or is_section):
            yield "\n\n".join(parts)
            parts = []
            size = 0
        parts.append(paragraph.text)
        size += len(paragraph.text) + 2
    if parts:
        yield "\n\n".join(parts)
