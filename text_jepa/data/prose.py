"""Divides files without columns into paragraphs and documents: plain text, Markdown, reStructuredText and HTML.

Hard-wrapped lines are joined, a heading belongs to the paragraph after it, and fenced code is one paragraph. Markup is
kept, except that of HTML.
"""

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from html.parser import HTMLParser
from itertools import pairwise
from typing import Literal, NamedTuple

from text_jepa.data.scripts import is_unspaced


MARKDOWN = (".md", ".markdown")
RESTRUCTURED = (".rst",)
HTML = (".html", ".htm")
MARKUP = (*MARKDOWN, *RESTRUCTURED, *HTML)
PLAIN = (".txt", ".text")

# Number of characters at the beginning of a text file by which its layout is recognized.
BEGINNING = 1 << 18

# Widths at which lines may be hard-wrapped, in characters.
_WIDTHS = range(40, 141)
# Length to which the first word of the next line is limited.
_LONGEST_WORD = 20
# A file is hard-wrapped if this share of its lines continues in the next line, with a few more for chance.
_WRAPPED_SHARE = 0.25
_BY_CHANCE = 2
# Blank lines separate paragraphs if there are at least this many per line of text.
_BLANK_SHARE = 0.05
# One of many files is a single document if it has fewer lines.
_FEW_LINES = 100

_SENTENCE_MARKS = (".", "!", "?", ":", ";", "。", "！", "？", "：", "；", "।", "؟", "۔")
_ITEM = re.compile(r"\s*(?:[-*+•>|#]|\(?\d{1,3}[.)]|\[\d+\]|:[^:]+:)(?:\s|$)|\s*\||\s{4,}|\t")
_BORDER = re.compile(r"\s*[-=+|:]{2}[-=+|: ]{3,}")
_HYPHENATED = re.compile(r"\w-[ \t\r]*\n")
_WORD = re.compile(r"\w+(?:-\w+)*")
_LONGEST_BEGINNING = 80  # of a divided word, in characters
_LAST_WORD = re.compile(r"\w+(?:-\w+)*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_MARKDOWN_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")


class Paragraph(NamedTuple):
    """A paragraph of a file.

    Args:
        line: Number of the first line in the file, counted from 1.
        text: The text, in which hard-wrapped lines are joined.
        opens: Whether a section begins with this paragraph.
    """

    line: int
    text: str
    opens: bool = False


class Layout(NamedTuple):
    """Layout of a text file.

    Args:
        kind: `"lines"`: one text per line; `"wrapped"`: hard-wrapped paragraphs; `"blocks"`: paragraphs between blank
            lines.
        width: Width at which lines are wrapped, in characters.
    """

    kind: Literal["lines", "wrapped", "blocks"]
    width: int = 0


# ---- plain text -----------------------------------------------------------------------------------------------------


def layout_of(beginning: str, is_one_of_many: bool = False) -> Layout:
    """Recognizes the layout of a text file by the lengths, beginnings and ends of its lines.

    Args:
        beginning: The first characters of the file.
        is_one_of_many: Whether the file is one of many. A short one is then a single document.
    """
    lines = [line.rstrip() for line in beginning.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    lengths = sorted(len(line) for line in lines if line)
    if not lengths:
        return Layout("lines")
    last = len(lengths) - 1
    width = lengths[int(0.95 * last)]
    if width in _WIDTHS and _is_wrapped(lines, width):
        return Layout("wrapped", width)
    num_breaks = sum(bool(line) and not following for line, following in pairwise(lines))
    has_blocks = num_breaks > _BLANK_SHARE * len(lengths)
    is_short = len(lengths) < _FEW_LINES
    if has_blocks or (is_one_of_many and is_short):
        return Layout("blocks")
    return Layout("lines")


def _is_wrapped(lines: Sequence[str], width: int) -> bool:
    """Whether many lines are full at this width and continue in the next line."""
    num_pairs = 0
    num_wrapped = 0
    for line, following in pairwise(lines):
        if line and following:
            num_pairs += 1
            num_wrapped += _fills(line, following, width) and _continues(line, following)
    return num_wrapped > _BY_CHANCE + _WRAPPED_SHARE * num_pairs


def _fills(line: str, following: str, width: int) -> bool:
    """Whether the first word of the next line does not fit into this line.

    A line may end before any character of a script without spaces.
    """
    word = following.split(maxsplit=1)[0][:_LONGEST_WORD]
    num_unbroken = next((place for place, character in enumerate(word) if is_unspaced(character)), len(word))
    needed = 1 + num_unbroken
    return len(line) + needed > width


def _continues(line: str, following: str) -> bool:
    """Whether the sentence at the end of a line seems to continue in the next line."""
    first = following.lstrip()[0]
    return first.isalpha() and not first.isupper() and not line.endswith(_SENTENCE_MARKS)


def plain_paragraphs(text: str, layout: Layout, line: int = 1) -> Iterator[Paragraph]:
    """Divides a text file into paragraphs at blank lines; with the layout `"lines"`, each line is a paragraph.

    Args:
        text: The content of the file, or a part of it.
        layout: The layout of the file.
        line: Number of the first line.
    """
    words = _words_of(text) if layout.width and _HYPHENATED.search(text) else frozenset()
    block = []
    start = line
    for number, content in enumerate(text.split("\n"), line):
        content = content.rstrip()
        if content and layout.kind != "lines":
            start = start if block else number
            block.append(content)
            continue
        if block:
            yield Paragraph(start, join_lines(block, layout.width, words))
            block = []
        if content:
            yield Paragraph(number, content)
    if block:
        yield Paragraph(start, join_lines(block, layout.width, words))


def _words_of(text: str) -> frozenset[str]:
    """The words of a text in lower case, those with hyphens in one piece."""
    return frozenset(match[0] for match in _WORD.finditer(text.lower()))


def join_lines(lines: Sequence[str], width: int, words: Set[str] = frozenset()) -> str:
    """Joins the lines of a paragraph: a line that is as long as the width continues in the next one.

    A hyphen at the end of such a line stays, unless the word occurs among `words` without it, and not with it.

    Args:
        lines: Lines, none of them blank.
        width: Width at which lines are wrapped, in characters; 0 joins no lines.
        words: The words of the text around, in lower case.
    """
    if not width:
        return "\n".join(lines)
    parts = [lines[0]]
    for line, following in pairwise(lines):
        if not _fills(line, following, width) or _ITEM.match(following):
            parts += ["\n", following]
        elif line.endswith("-"):
            if _is_divided(line, following, words):
                parts[-1] = parts[-1].removesuffix("-")
            parts.append(following.lstrip())
        else:
            parts += [_space_between(line, following), following.lstrip()]
    return "".join(parts)


def _space_between(line: str, following: str) -> str:
    """The space that joins two lines; none between words of scripts without spaces."""
    last = next(filter(str.isalnum, reversed(line)), " ")
    first = next(filter(str.isalnum, following), " ")
    return "" if is_unspaced(last) and is_unspaced(first) else " "


def _is_divided(line: str, following: str, words: Set[str]) -> bool:
    """Whether the hyphen at the end of a line divides a word that has none."""
    beginning = _LAST_WORD.search(line[-_LONGEST_BEGINNING:-1])
    end = _WORD.match(following.lstrip())
    if beginning is None or end is None:
        return False
    without = f"{beginning[0]}{end[0]}".lower()
    with_hyphen = f"{beginning[0]}-{end[0]}".lower()
    return without in words and with_hyphen not in words


# ---- Markdown and reStructuredText ----------------------------------------------------------------------------------


def markup_paragraphs(text: str, suffix: str) -> Iterator[Paragraph]:
    """Divides Markdown or reStructuredText into paragraphs; a heading belongs to the paragraph after it.

    Args:
        text: The content of the file.
        suffix: `".md"` or `".rst"`.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    if suffix in MARKDOWN:
        fenced = _fenced_lines(lines)
        headings = _headings_of_markdown(lines, fenced)
    else:
        fenced = set()  # in reStructuredText, the marks of a fence underline titles
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
    """Numbers of the lines of fenced code, including the fences."""
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
    """The fence that is open after a line with a fence."""
    if fence is None:
        return mark[1]
    closes = mark[1].startswith(fence) and not mark[2].strip()
    return None if closes else fence


def _headings_of_markdown(lines: Sequence[str], fenced: set[int]) -> set[int]:
    """Numbers of the lines that are headings or underline one."""
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
    """Numbers of the lines that are headings, underline one or overline one."""
    headings = set()
    for number, line in enumerate(lines, 1):
        if not _UNDERLINE.fullmatch(line) or number == 1:
            continue
        above = lines[number - 2]
        is_title = bool(above) and not above[0].isspace() and not _UNDERLINE.fullmatch(above)
        is_long_enough = len(line) >= len(above) - 2
        if not is_title or not is_long_enough:
            continue
        headings |= {number - 1, number}
        if number > 2 and lines[number - 3] == line:
            headings.add(number - 2)
    return headings


def _make_paragraph(block: dict[int, str], headings: set[int], fenced: set[int]) -> Paragraph:
    """Makes a paragraph in which hard-wrapped lines are joined; code and tables are kept unchanged."""
    is_table = any(_BORDER.fullmatch(line) for number, line in block.items() if number not in headings)
    parts = []
    may_continue = False
    for number, line in block.items():
        is_fixed = number in fenced or number in headings
        starts_line = is_fixed or is_table or bool(_ITEM.match(line))
        if parts:
            parts.append(_space_between(parts[-1], line) if may_continue and not starts_line else "\n")
        parts.append(line)
        may_continue = bool(line) and not is_fixed
    start = next(iter(block))
    text = "".join(parts).rstrip()
    return Paragraph(start, text, opens=start in headings)


# ---- HTML -----------------------------------------------------------------------------------------------------------

# Hidden elements, whose text a page does not show or which are not part of its content.
_HIDDEN = re.compile(
    "script|style|template|noscript|svg|math|head|title|nav|footer|aside|button|select|textarea|datalist|iframe|object"
)
_HIDDEN_ROLES = ("navigation", "banner", "contentinfo", "search", "menu", "toolbar")
# Elements of a head. Any other element ends it.
_OF_HEAD = re.compile("base|link|meta|noscript|script|style|template|title")
# Elements that never contain the main part of a page.
_BESIDE_MAIN = ("nav", "aside", "footer")
_HEADINGS = re.compile("h[1-6]")
# Block elements, which start a paragraph.
_BLOCKS = re.compile(
    "address|article|blockquote|body|caption|center|dd|details|div|dl|dt|fieldset|figcaption|figure|form|h[1-6]|"
    "header|hr|html|li|main|ol|p|pre|section|summary|table|tbody|td|tfoot|th|thead|tr|ul"
)
# Void elements, which have no end tag.
_VOID = re.compile("area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr")
_SPACES = re.compile(r"[ \t\r\n\f]+")
# A number of a character with so many digits that int() may refuse them; no character has such a number.
_ENDLESS_REFERENCE = re.compile(r"&#[0-9]{100,};?")

# Elements whose end tag is optional. A start tag ends the open elements of the first set, except those around a hidden
# element or an element of the second set.
_SECTIONS = ("thead", "tbody", "tfoot")
_ENDED_BY = {
    "li": ({"li"}, {"ul", "ol", "menu"}),
    **dict.fromkeys(("dt", "dd"), ({"dt", "dd"}, {"dl"})),
    **dict.fromkeys(("td", "th"), ({"td", "th"}, {"tr", "table"})),
    "tr": ({"tr"}, {*_SECTIONS, "table"}),
    **dict.fromkeys(_SECTIONS, ({"tr", *_SECTIONS}, {"table"})),
}
_ENDED_BY_OTHER_BLOCKS = ({"p"}, set())


class _Element(NamedTuple):
    tag: str
    is_hidden: bool
    is_main: bool
    is_hidden_by_tag: bool = False


class _Blocks(HTMLParser):
    """Collects the paragraphs that a page shows, and whether each is in the main part of the page."""

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
        # The end tag of the head is optional, and some pages lack that of the navigation.
        if not _OF_HEAD.fullmatch(tag):
            self._end_head()
        if is_main:
            for outer in _BESIDE_MAIN:
                self.handle_endtag(outer)
        if _BLOCKS.fullmatch(tag):
            self.end_paragraph()
            self._add_end_tag(*_ENDED_BY.get(tag, _ENDED_BY_OTHER_BLOCKS))
        if tag == "br":
            self.handle_data("\n" if self._is_in("pre") else " ")
        if _VOID.fullmatch(tag):
            return
        parent = self.open[-1] if self.open else _Element("", False, False)
        is_hidden_by_tag = bool(_HIDDEN.fullmatch(tag))
        hides_content = is_hidden_by_tag or role in _HIDDEN_ROLES or "hidden" in values
        is_hidden = parent.is_hidden or hides_content
        is_in_main = parent.is_main or is_main
        self.open.append(_Element(tag, is_hidden, is_in_main, is_hidden_by_tag))

    def handle_endtag(self, tag: str) -> None:
        is_open = self._is_in(tag)
        # Browsers show an empty paragraph for this one alone if it was not open.
        if tag == "p" or (is_open and _BLOCKS.fullmatch(tag)):
            self.end_paragraph(is_heading=bool(_HEADINGS.fullmatch(tag)))
        if not is_open:
            return
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

    def parse_html_declaration(self, i: int) -> int:
        """Reads `<![word ...>` as a comment, as browsers do. Some versions of Python raise an error instead."""
        if self.rawdata.startswith("<![", i) and not self.rawdata.startswith("<![CDATA[", i):
            return self.parse_bogus_comment(i)
        return super().parse_html_declaration(i)

    def _add_end_tag(self, tags: Set[str], containers: Set[str]) -> None:
        """Closes the open elements with these tags, except those around a container or a hidden element."""
        end = len(self.open)
        for place in range(len(self.open) - 1, -1, -1):
            element = self.open[place]
            if element.tag in containers or element.is_hidden_by_tag:
                break
            if element.tag in tags:
                end = place
        del self.open[end:]

    def _end_head(self) -> None:
        if self.open and self.open[-1].tag == "head":
            self.open.pop()

    def _is_in(self, tag: str) -> bool:
        return any(element.tag == tag for element in self.open)

    def end_paragraph(self, is_heading: bool = False) -> None:
        """Ends the current paragraph; a heading is kept for the next one."""
        text = "".join(self.parts).strip().removesuffix("¶").rstrip()
        self.parts = []
        if not text:
            return
        paragraph = Paragraph(self.line, text)
        if not is_heading:
            self.add(paragraph)
        elif self.heading:
            self.heading = Paragraph(self.heading.line, f"{self.heading.text}\n{text}", True)
        else:
            self.heading = paragraph._replace(opens=True)

    def add(self, paragraph: Paragraph) -> None:
        """Adds a paragraph, with the headings before it."""
        if self.heading:
            paragraph = Paragraph(self.heading.line, f"{self.heading.text}\n{paragraph.text}", True)
            self.heading = None
        self.paragraphs.append(paragraph)
        self.in_main.append(bool(self.open) and self.open[-1].is_main)


def html_paragraphs(text: str) -> list[Paragraph]:
    """Divides a page into the paragraphs that it shows, without controls and navigation.

    Args:
        text: The content of the file. If the page has a main part, only that is read.
    """
    parser = _Blocks()
    parser.feed(_ENDLESS_REFERENCE.sub("\ufffd", text))
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
    """Joins the paragraphs of a file into documents: one, or several if the file is longer than `longest`.

    Args:
        paragraphs: The paragraphs of the file.
        longest: Longest document in characters. A longer paragraph is a document of its own.
    """
    parts = []
    size = 0
    for paragraph in paragraphs:
        is_full = size + len(paragraph.text) > longest
        ends_section = paragraph.opens and size > longest // 2
        if parts and (is_full or ends_section):
            yield "\n\n".join(parts)
            parts = []
            size = 0
        parts.append(paragraph.text)
        size += len(paragraph.text) + 2
    if parts:
        yield "\n\n".join(parts)
