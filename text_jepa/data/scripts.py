"""What characters mean to a word or a sentence in the scripts of the world: pure functions of text and bytes."""

import bisect
import re
import unicodedata


# Behind these a sentence may end; a comma of any script is none of them.
SENTENCE_MARKS = ".!?…。！？｡．؟۔।॥։።፧၊။។៕།༎᠃᱿꓿꘎‼⁇⁈⁉؞܀܁܂߹"

# What may close a quotation or a bracket behind the end of a sentence.
_CLOSERS = "\"')]}»”’›」』）】》〉"

# First and last code point of scripts and blocks that are written without blanks between words.
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

# Letters that belong to the one before: long vowels of kana, and Thai vowels and signs written behind a consonant.
_NEVER_FIRST = frozenset("ーｰะาำๅๆ\u200c\u200d")

# Completes the bytes of a character that a token has only the beginning of, to one that stands for all of them.
_REMAINING_BYTES = b"\xa4\x84\x84"

_SENTENCE_END = re.compile(
    b"(?:%s)(?:%s)*"
    % (
        b"|".join(re.escape(mark.encode()) for mark in SENTENCE_MARKS),
        b"|".join(re.escape(mark.encode()) for mark in _CLOSERS),
    )
)


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script without blanks between words."""
    code = ord(character)
    number = bisect.bisect_right(_UNSPACED_STARTS, code) - 1
    return number >= 0 and code <= _UNSPACED[number][1]


def belongs_to_the_one_before(character: str) -> bool:
    """Whether a character is a mark or a sign that no word begins with."""
    return character in _NEVER_FIRST or unicodedata.category(character).startswith("M")


def may_be_inside_word(character: str) -> bool:
    """Whether words of a script with blanks hold the character."""
    if is_unspaced(character):
        return False
    return character.isalnum() or belongs_to_the_one_before(character)


def first_character(token: bytes) -> str | None:
    """The character that the bytes of a token begin with; `None` if they begin inside of one, or are none.

    A token with only the first bytes of a character gives one of the characters that begin so.
    """
    if not token or token[0] & 0xC0 == 0x80:
        return None
    length = _length_of_character(token[0])
    character = token[:length]
    character += _REMAINING_BYTES[len(character) - 1 : length - 1]
    return character.decode(errors="replace")[0]


def last_character(token: bytes) -> str | None:
    """The character that the bytes of a token end with; `None` if they hold only a part of it."""
    text = token[-4:].decode(errors="replace")
    if not text or text[-1] == "\ufffd":
        return None
    return text[-1]


def _length_of_character(first_byte: int) -> int:
    """Bytes of a character in UTF-8."""
    if first_byte >= 0xF0:
        return 4
    if first_byte >= 0xE0:
        return 3
    return 2 if first_byte >= 0xC0 else 1


def sentence_ends(text: bytes) -> list[int]:
    """Numbers of bytes behind which a sentence may end: behind its mark, and behind what closes a quotation."""
    ends = []
    for match in _SENTENCE_END.finditer(text):
        mark = len(match[0].decode()[0].encode())
        ends.append(match.start() + mark)
        if match.end() > ends[-1]:
            ends.append(match.end())
    return ends
