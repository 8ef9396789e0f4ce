"""Classifies characters of all scripts: the boundaries of words and sentences, as pure functions of text and bytes."""

import bisect
import functools
import itertools
import re
import unicodedata


# Marks after which a sentence may end.
SENTENCE_MARKS = ".!?…。！？｡．؟۔।॥։።፧၊။។៕།༎᠃᱿꓿꘎‼⁇⁈⁉؞܀܁܂߹"

# Marks that may close a quotation or a bracket after the end of a sentence.
_CLOSERS = "\"')]}»”’›」』）】》〉"

# First and last code point of scripts and blocks that are written without spaces between words.
_UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),  # iteration marks of Han
    (0x3040, 0x312F),  # kana, Bopomofo
    (0x31A0, 0x31FF),  # Bopomofo and kana, extended
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAA7F),  # Myanmar
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # kana of half width
    (0x1B000, 0x1B16F),  # kana
    (0x20000, 0x3FFFF),  # Han
)
_UNSPACED_STARTS = [start for start, _ in _UNSPACED_RANGES]

# The same for sets of regular expressions.
_UNSPACED = "".join(f"{chr(start)}-{chr(end)}" for start, end in _UNSPACED_RANGES)
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
# Parts of a word that are all of scripts without spaces, or all of scripts with spaces.
_PARTS = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")

_ASCII_WORD = re.compile(r"\w+")

# Letters that belong to the previous one: long vowels of kana, and Thai vowels and signs written after a consonant.
_NEVER_FIRST = frozenset("ーｰะาำๅๆ\u200c\u200d")

# Code points among which marks are: a search must not wait for a look at all of them.
_BLOCKS_WITH_MARKS = (range(0x20000), range(0xE0100, 0xE01F0))

# Completes the first bytes of a character to one of the characters that begin with them.
_REMAINING_BYTES = b"\xa4\x84\x84"

_SENTENCE_END = re.compile(
    b"(?:%s)(?:%s)*"
    % (
        b"|".join(re.escape(mark.encode()) for mark in SENTENCE_MARKS),
        b"|".join(re.escape(mark.encode()) for mark in _CLOSERS),
    )
)


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script without spaces between words."""
    code = ord(character)
    number = bisect.bisect_right(_UNSPACED_STARTS, code) - 1
    return number >= 0 and code <= _UNSPACED_RANGES[number][1]


def belongs_to_the_one_before(character: str) -> bool:
    """Whether a character is a mark or a sign that never begins a word."""
    return character in _NEVER_FIRST or unicodedata.category(character).startswith("M")


def may_be_inside_word(character: str) -> bool:
    """Whether words of a script with spaces may contain the character."""
    if is_unspaced(character):
        return False
    return character.isalnum() or belongs_to_the_one_before(character)


# ---- words ----------------------------------------------------------------------------------------------------------


def terms_of(text: str) -> list[str]:
    """The terms of a text that word counting counts, in lower case.

    A term is a word: a run of letters, digits and underscores, with their marks. In scripts without spaces between
    words, each two neighbouring characters of a run are a term.
    """
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    words = _marked_word().findall(text)
    if not _UNSPACED_RUN.search(text):
        return words
    return [term for word in words for term in _terms_of_word(word)]


def _terms_of_word(word: str) -> list[str]:
    """Parts of scripts with spaces as they are, and of scripts without as pairs of neighbouring characters."""
    terms = []
    for part in _PARTS.findall(word):
        if is_unspaced(part[0]) and len(part) > 1:
            terms += [part[place : place + 2] for place in range(len(part) - 1)]
        else:
            terms.append(part)
    return terms


def words_with_spaces(text: str) -> list[str]:
    """The words of a text, each with a space behind it: joined, they are the text with single spaces, and a last one.

    Words stand between spaces. If a text has more than two characters of scripts without spaces for each of these,
    two characters of such a script are a word, with the marks and the punctuation behind them.
    """
    words = text.split()
    unspaced = 0 if text.isascii() else sum(map(len, _UNSPACED_RUN.findall(text)))
    if unspaced <= 2 * len(words):
        return [f"{word} " for word in words]
    return _unspaced_word().findall(" ".join(words))


@functools.cache
def _marked_word() -> re.Pattern:
    """Matches a word with its marks; a mark without a letter is none."""
    return re.compile(rf"\w[\w{_marks()}]*")


@functools.cache
def _unspaced_word() -> re.Pattern:
    """Matches a word of `words_with_spaces` in a text that is mainly of scripts without spaces."""
    marks_and_punctuation = rf"[{_marks()}]*[^{_UNSPACED}\w]*"
    spaced_word = f"[^{_UNSPACED} ]+ ?"
    return re.compile(f"(?:[{_UNSPACED}]{marks_and_punctuation}){{1,2}}|{spaced_word}")


@functools.cache
def _marks() -> str:
    """All characters that belong to the one before, as ranges for a set of a regular expression."""
    codes = itertools.chain(*_BLOCKS_WITH_MARKS)
    marks = {code for code in codes if belongs_to_the_one_before(chr(code))}
    starts = sorted(code for code in marks if code - 1 not in marks)
    ends = sorted(code for code in marks if code + 1 not in marks)
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


# ---- bytes of tokens ------------------------------------------------------------------------------------------------


def first_character(token: bytes) -> str | None:
    """The first character in the bytes of a token; `None` if they begin inside of a character, or are empty.

    A token with only the first bytes of a character gives one of the characters that begin with these bytes.
    """
    if not token or token[0] & 0xC0 == 0x80:
        return None
    length = _length_of_character(token[0])
    character = token[:length]
    character += _REMAINING_BYTES[len(character) - 1 : length - 1]
    return character.decode(errors="replace")[0]


def last_character(token: bytes) -> str | None:
    """The last character in the bytes of a token; `None` if it is incomplete."""
    text = token[-4:].decode(errors="replace")
    if not text or text[-1] == "\ufffd":
        return None
    return text[-1]


def _length_of_character(first_byte: int) -> int:
    """Number of bytes of a character in UTF-8."""
    if first_byte >= 0xF0:
        return 4
    if first_byte >= 0xE0:
        return 3
    return 2 if first_byte >= 0xC0 else 1


def sentence_ends(text: bytes) -> list[int]:
    """Numbers of bytes after which a sentence may end: after its mark, and after the marks that close a quotation."""
    ends = []
    for match in _SENTENCE_END.finditer(text):
        mark = len(match[0].decode()[0].encode())
        ends.append(match.start() + mark)
        if match.end() > ends[-1]:
            ends.append(match.end())
    return ends
