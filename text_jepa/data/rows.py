"""Reads the rows of json, csv and tsv files, and reports errors with their line."""

import codecs
import csv
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from text_jepa.data.columns import Sources
from text_jepa.data.compressed import FileError, open_text, open_utf8, suffix_of


_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_CELL = 2**31 - 1
# Spaces between values, and the byte order marks of files that were joined on Windows.
_SPACES = re.compile(r"[\s\ufeff]*")
# A cell of a header in quotes, which may go on in the next line.
_QUOTED_CELL = re.compile(r"(?<![^,;\t|\"])\"[^\"]*\"?")
# First line of a table for Excel, which names the delimiter.
_SEPARATOR = re.compile(r"\"?sep=(.)\"?\s*", re.IGNORECASE)

Rows = Iterator[tuple[int, dict[str, Any]]]
"""Pairs of a line number and the row that ends in that line."""

Quoting = Literal["checked", "standard", "none"]


# ---- json -----------------------------------------------------------------------------------------------------------


def json_rows(path: str, sources: Sources) -> Rows:
    """Reads the rows of a json file: one object per line, a list of objects, or objects that span several lines.

    Args:
        path: The file, compressed or not.
        sources: The columns to read, none of which may occur twice in an object.

    Raises:
        FileError: A line is not JSON or not an object, or has a field twice.
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
    with open_utf8(path) as file:
        is_first = True
        for number, line in enumerate(file, 1):
            text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8").strip()
            if not text:
                continue
            if is_first and _is_part(text, path, decoder):
                rest = file.read().decode("utf-8")
                yield from _json_values(path, number, f"{text}\n{rest}", decoder)
                return
            is_first = False
            yield number, _parse(path, number, text, decoder)


class _TwinFields(ValueError):
    """An object has a field twice; the message is its name."""


# Errors of the decoder: the text is not JSON, has a field twice, has a number with too many digits, or is nested too
# deeply.
_UNDECODABLE = (ValueError, RecursionError)


def _file_error(path: str, line: int | None, error: Exception) -> FileError:
    """Converts an error of the decoder to one that names the file; `line` is `None` for a value of several lines."""
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
        reason = f"not JSON ({error.msg} in column {error.colno}); fix or remove it"
    return FileError(f"{place}: {reason}")


def _is_part(text: str, path: str, decoder: json.JSONDecoder) -> bool:
    """Whether the first line of a file is only a part of a value."""
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
        raise FileError(f"{path}, line {number}: not an object, '{{...}}'; fix or remove it")
    return row


def _json_values(path: str, number: int, text: str, decoder: json.JSONDecoder) -> Rows:
    """Reads the objects of consecutive values that span several lines; `number` is the first line.

    A list of strings is a list of documents only if it is the whole file: one of several is a row of cells.
    """
    place = 0
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except _UNDECODABLE as error:
            raise _file_error(path, None, error) from error
        following = _SPACES.match(text, end).end()
        is_whole_file = place == 0 and following == len(text)
        items = value if isinstance(value, list) else [value]
        for item in items:
            row = {"text": item} if is_whole_file and isinstance(item, str) else item
            if not isinstance(row, dict):
                raise FileError(f"{path}, line {number}: not an object, '{{...}}'; fix or remove it")
            yield number, row
        number += text.count("\n", place, following)
        place = following


# ---- tables of text -------------------------------------------------------------------------------------------------


def csv_rows(path: str, delimiter: str | None, quoting: Quoting, columns: Collection[str] | None = None) -> Rows:
    """Reads the rows of a csv or tsv file, whose first row has the names of the columns.

    A line `sep=;` before it, which names the delimiter for Excel, is skipped.

    Args:
        path: The file, compressed or not.
        delimiter: Delimiter of cells. Default: found in the header.
        quoting: How quotes are read.
        columns: The columns to read, none of which may occur twice. Default: all that have a name.

    Raises:
        FileError: A row has too many cells, such a column occurs twice, or quotes are not delimiters of cells.
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
                first_line = reader.line_num - len(lines.lines) + 1
                raise FileError(
                    f"{path}: cannot be read: row {row + 1} (line {first_line}): {error}; fix its quotes, or read "
                    "quotes as characters of the texts with --quoting none"
                ) from error
            if not cells:
                continue
            if header is None:
                if not _SEPARATOR.fullmatch(lines.lines[0]):
                    header = cells
                    _check_header(path, header, columns)
                continue
            row += 1
            if quoting == "checked":
                quotes.check(lines.lines, cells, len(header), reader.line_num)
            yield reader.line_num, _named_cells(path, reader.line_num, header, cells)
        if quoting == "checked":
            quotes.check_all()


def has_separator_line(path: str) -> bool:
    """Whether a line `sep=;`, which names the delimiter for Excel, is before the header of a csv or tsv file."""
    with open_text(path, newline="") as file:
        return _SEPARATOR.fullmatch(file.readline()) is not None


def delimiter_of(path: str) -> str:
    """The delimiter of cells: as a line `sep=;` says, or a comma, unless another is more frequent in the header.

    Those within a quoted cell of the header are not delimiters.
    """
    with open_text(path, newline="") as file:
        header = file.readline()
    separator = _SEPARATOR.fullmatch(header)
    if separator:
        return separator[1]
    return max(_DELIMITERS, key=_QUOTED_CELL.sub("", header).count)


class _LinesOfRow:
    """Iterates over the lines of a file and keeps those of the current row."""

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
    """Finds quotes that are characters of the texts and are misread as delimiters of a cell of several lines.

    A quoted cell of several lines is such an error if each of its lines looks like a row, or if the table has single
    quotes inside of cells elsewhere, which a writer that quotes cells would have doubled. Prose may look like a row by
    chance if the delimiter is a comma, so most quoted cells must look like rows in that case.
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
        """Checks one row.

        Raises:
            FileError: A quote in the row is a character of the text.
        """
        if len(lines) == 1:
            (line,) = lines
            if not self.has_bare_quotes and '"' in line and '""' not in line:
                self.has_bare_quotes = any('"' in cell for cell in cells)
        else:
            start = end - len(lines) + 1
            self.spans += 1
            self.first_span = self.first_span or start
            num_delimiters = num_columns - 1
            are_rows = num_columns > 1 and all(line.count(self.delimiter) == num_delimiters for line in lines)
            if are_rows:
                self.spans_of_rows += 1
                self.first_rows = self.first_rows or start
        if self.has_bare_quotes and self.first_span:
            self._refuse(self.first_span)
        if self.delimiter == "\t" and self.first_rows:
            self._refuse(self.first_rows)

    def check_all(self) -> None:
        """Checks all rows together, after the last one.

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


def _check_header(path: str, header: Sequence[str], columns: Collection[str] | None) -> None:
    """Raises FileError if a column occurs twice that is to be read, see `csv_rows`."""
    for name in header:
        is_read = name and (columns is None or name in columns)
        if is_read and header.count(name) > 1:
            raise FileError(f"{path}: cannot be read: line 1 has the column '{name}' twice; rename one")


def _named_cells(path: str, line: int, header: Sequence[str], cells: Sequence[str]) -> dict[str, str | None]:
    """Maps names of columns to cells; missing cells are `None`, and surplus empty ones are dropped."""
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
    return row
