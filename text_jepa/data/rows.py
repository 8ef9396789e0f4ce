"""Reads the rows of files of objects (json) and of tables of text (csv, tsv), each mistake with its line."""

import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from text_jepa.data.columns import Sources
from text_jepa.data.compressed import FileError, open_binary, open_text, suffix_of


_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_CELL = 2**31 - 1
_SPACES = re.compile(r"\s*")

Rows = Iterator[tuple[int, dict[str, Any]]]
"""Number of a line and the row that ends there."""

Quoting = Literal["checked", "standard", "none"]


# ---- json -----------------------------------------------------------------------------------------------------------


def json_rows(path: str, sources: Sources) -> Rows:
    """The rows of a file of objects: one per line, a list of them, or some over several lines each.

    Args:
        path: The file, compressed or not.
        sources: The columns asked for, of which none may occur twice in an object.

    Raises:
        FileError: A line is no JSON or no object, or has a field twice.
    """
    fields = set()
    for columns in sources.values():
        for column in columns:
            fields |= {column, *column.split(".")}

    def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twins = [name for name in row if name in fields and names.count(name) > 1]
            if twins:
                raise _TwinFields(twins[0])
        return row

    decoder = json.JSONDecoder(object_pairs_hook=refuse_twins)
    with open_binary(path) as file:
        is_first = True
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            if is_first and _is_part(text, path, decoder):
                yield from _json_values(path, number, text + "\n" + file.read().decode("utf-8"), decoder)
                return
            is_first = False
            yield number, _parse(path, number, text, decoder)


class _TwinFields(ValueError):
    """An object has a field twice, of the name that is the message."""


# What the decoder raises for a text that is not JSON, has a field twice or a number of too many digits, or is nested
# too deeply.
_UNDECODABLE = (ValueError, RecursionError)


def _file_error(path: str, line: int | None, error: Exception) -> FileError:
    """What the decoder raised, with the file; `line` is `None` if a value extends over several lines."""
    place = f"{path}: cannot be read" if line is None else f"{path}, line {line}"
    if isinstance(error, _TwinFields):
        return FileError(f"{place}: an object has the field '{error}' twice; remove one")
    if isinstance(error, RecursionError):
        return FileError(f"{place}: nested too deeply; remove it")
    if not isinstance(error, json.JSONDecodeError):
        return FileError(f"{place}: a number of more than {sys.get_int_max_str_digits():,} digits; shorten it")
    if line is None:
        reason = f"not JSON ({error.msg} in line {error.lineno}, column {error.colno}); it may be incomplete"
    else:
        reason = f"not JSON ({error.msg} in column {error.colno}); mend or remove it"
    return FileError(f"{place}: {reason}")


def _is_part(text: str, path: str, decoder: json.JSONDecoder) -> bool:
    """Whether the first line of a file is only the beginning of a value."""
    if text.startswith("["):
        return True
    if suffix_of(Path(path)) != ".json":
        return False
    try:
        decoder.decode(text)
    except json.JSONDecodeError:
        return True
    except _UNDECODABLE:
        return False
    return False


def _parse(path: str, number: int, text: str, decoder: json.JSONDecoder) -> dict[str, Any]:
    try:
        row = decoder.decode(text)
    except _UNDECODABLE as error:
        raise _file_error(path, number, error) from error
    if not isinstance(row, dict):
        raise FileError(f"{path}, line {number}: no object, '{{...}}'; mend or remove it")
    return row


def _json_values(path: str, number: int, text: str, decoder: json.JSONDecoder) -> Rows:
    """The objects in values, one after the other, that extend over several lines; `number` is their first line."""
    place = 0
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except _UNDECODABLE as error:
            raise _file_error(path, None, error) from error
        items = value if isinstance(value, list) else [value]
        for item in items:
            row = {"text": item} if isinstance(item, str) else item
            if not isinstance(row, dict):
                raise FileError(f"{path}, line {number}: no objects, '{{...}}'; mend or remove it")
            yield number, row
        following = _SPACES.match(text, end).end()
        number += text.count("\n", place, following)
        place = following


# ---- tables of text -------------------------------------------------------------------------------------------------


def csv_rows(path: str, delimiter: str | None, quoting: Quoting) -> Rows:
    """The rows of a table of text, by the names in its first row.

    Args:
        path: The file, compressed or not.
        delimiter: What is between the cells. Default: what its header looks like.
        quoting: What a quote is.

    Raises:
        FileError: A row has too many cells, a name occurs twice, or quotes are not what they are taken for.
    """
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = delimiter or delimiter_of(path)
    with open_text(path, newline="") as file:
        lines = _LinesOfRow(file)
        mode = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
        reader = csv.reader(lines, delimiter=delimiter, quoting=mode, strict=True)
        quotes = _Quotes(path, delimiter)
        header = None
        row = 0
        while True:
            lines.clear()
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                line = reader.line_num - len(lines.lines) + 1
                raise FileError(
                    f"{path}: cannot be read: row {row + 1} (line {line}): {error}; mend its quotes, or read quotes "
                    "as characters of the texts with --quoting none"
                ) from error
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            row += 1
            if quoting == "checked":
                quotes.check(lines.lines, cells, len(header), reader.line_num)
            yield reader.line_num, _named_cells(path, reader.line_num, header, cells)
        if quoting == "checked":
            quotes.check_all()


def delimiter_of(path: str) -> str:
    """What is between the names of the columns: a comma, unless another delimiter is more frequent there."""
    with open_text(path, newline="") as file:
        header = file.readline()
    return max(_DELIMITERS, key=header.count)


class _LinesOfRow:
    """The lines of a file, of which those of the row at hand are kept."""

    def __init__(self, file: IO[str]):
        self.file = file
        self.lines = []

    def clear(self) -> None:
        self.lines = []

    def __iter__(self) -> "_LinesOfRow":
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.lines.append(line)
        return line


class _Quotes:
    """Finds quotes that are characters of the texts and swallow the lines up to the next one.

    What a quote spans are such lines if each of them looks like a row, or if the table has quotes that stand for
    themselves elsewhere: what quotes its cells would have doubled them. Prose may have the commas of a row by chance,
    so in a table with commas most of the spans have to look like rows.
    """

    def __init__(self, path: str, delimiter: str):
        self.path = path
        self.delimiter = delimiter
        self.first_span = None
        self.first_rows = None
        self.has_bare_quotes = False
        self.spans = 0
        self.spans_of_rows = 0

    def check(self, lines: Sequence[str], cells: Sequence[str], num_columns: int, end: int) -> None:
        """Looks at one row.

        Raises:
            FileError: A quote in it is a character of the text.
        """
        if len(lines) == 1:
            if not self.has_bare_quotes and '"' in lines[0] and '""' not in lines[0]:
                self.has_bare_quotes = any('"' in cell for cell in cells)
        else:
            start = end - len(lines) + 1
            self.spans += 1
            self.first_span = self.first_span or start
            if num_columns > 1 and all(line.count(self.delimiter) == num_columns - 1 for line in lines):
                self.spans_of_rows += 1
                self.first_rows = self.first_rows or start
        if self.has_bare_quotes and self.first_span:
            self._refuse(self.first_span)
        if self.delimiter == "\t" and self.first_rows:
            self._refuse(self.first_rows)

    def check_all(self) -> None:
        """Looks at all rows together.

        Raises:
            FileError: A quote is a character of the text.
        """
        if self.spans_of_rows > self.spans / 2:
            self._refuse(self.first_rows)

    def _refuse(self, line: int) -> None:
        raise FileError(
            f"{self.path}, line {line}: a quote that spans several lines, and quotes look like characters of the "
            "texts; read them as such with --quoting none, or as quotes with --quoting standard"
        )


def _named_cells(path: str, line: int, header: Sequence[str], cells: Sequence[str]) -> dict[str, str | None]:
    while len(cells) > len(header) and not cells[-1]:
        cells = cells[:-1]
    if len(cells) > len(header):
        raise FileError(
            f"{path}: cannot be read: line {line} has {len(cells)} cells and the header {len(header)}; quote cells "
            "with delimiters"
        )
    row = dict.fromkeys(header)
    for name, cell in zip(header, cells, strict=False):
        row[name] = cell
    if len(row) < len(header):
        twins = [name for name in row if header.count(name) > 1]
        raise FileError(f"{path}: cannot be read: line 1 has the column '{twins[0]}' twice; rename one")
    return row
