"""Classifies characters of all scripts: the boundaries of words and sentences, as pure functions of text and bytes."""

import bisect
import re
import unicodedata


# Marks after which a sentence may end.
SENTENCE_MARKS = ".!?…。！？｡．؟۔।॥։።፧၊။។៕།༎᠃᱿꓿꘎‼⁇⁈⁉؞܀܁܂߹"

# Marks that may close a quotation or a bracket after the end of a sentence.
_CLOSERS = "\"')]}»”’›」』）】》〉"

# First and last code point of scripts and blocks that are written without spaces between words.
_UNSPACED = (
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
_UNSPACED_STARTS = [start for start, _ in _UNSPACED]

# Letters that belong to the previous one: long vowels of kana, and Thai vowels and signs written after a consonant.
_NEVER_FIRST = frozenset("ーｰะาำๅๆ\u200c\u200d")

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
    return number >= 0 and code <= _UNSPACED[number][1]


def belongs_to_the_one_before(character: str) -> bool:
    """Whether a character is a mark or a sign that never begins a word."""
    return character in _NEVER_FIRST or unicodedata.category(character).startswith("M")


def may_be_inside_word(character: str) -> bool:
    """Whether words of a script with spaces may contain the character."""
    if is_unspaced(character):
        return False
    return character.isalnum() or belongs_to_the_one_before(character)


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
