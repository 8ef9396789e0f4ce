"""Reads columns of text out of files of every kind: only those asked for, and each mistake with its file and line."""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import pyarrow
from pyarrow import parquet

from text_jepa.data.prose import (
    BEGINNING,
    HTML,
    MARKDOWN,
    PLAIN,
    RESTRUCTURED,
    Layout,
    Paragraph,
    html_paragraphs,
    join_paragraphs,
    layout_of,
    markup_paragraphs,
    plain_paragraphs,
)
from text_jepa.errors import nearest


# File suffix -> builder of the datasets library and its options.
PROSE = (*PLAIN, *MARKDOWN, *RESTRUCTURED, *HTML)
BUILDERS = {
    **dict.fromkeys(PROSE, ("text", {})),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

# How compressed files begin, whatever their name.
_GZIP = b"\x1f\x8b"
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_XZ = b"\xfd7zXZ\x00"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_LFS_POINTER = b"version https://git-lfs"

# Characters that are read at once, and rows of a table of the result.
_CHUNK = 10 << 20
_ROWS = 1_000

# What a page says of its characters, near its beginning.
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_CHARSET_WITHIN = 2_048

_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_CELL = 2**31 - 1
_NUMBER = re.compile(r"[+-]?\d+")

Sources = Mapping[str, tuple[str, ...]]
"""New name (`text`, `view`, `title` or `label`) -> the columns that it is made of."""

Rows = Iterator[tuple[int, dict[str, Any]]]
"""Number of a line and the row that ends there."""

Quoting = Literal["checked", "standard", "none"]

SampleBy = Literal["auto", "line", "paragraph", "document"]


class FileError(ValueError):
    """What is wrong in a file, and the remedy; the message begins with the path."""


class Form(NamedTuple):
    """How files are read.

    Args:
        sources: The columns asked for.
        sample_by: What a document is in a file without columns.
        quoting: What a quote is in a table of text.
        longest: Longest document that `"auto"` makes of a file without columns, in characters.
        is_many: Whether there are many text files, of which a short one is a document rather than a few.
        is_mixed: Whether the columns are those of other files; those without columns give their text.
        with_file: Whether a column `file` tells which documents are parts of one file.
    """

    sources: Sources
    sample_by: SampleBy = "auto"
    quoting: Quoting = "checked"
    longest: int = 2_048
    is_many: bool = False
    is_mixed: bool = False
    with_file: bool = False


# ---- kinds of files -------------------------------------------------------------------------------------------------


def suffix_of(path: Path) -> str:
    """The suffix that tells the kind of a file, in lower case and without `.gz` and the like."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def read_tables(path: str, form: Form) -> Iterator[pyarrow.Table]:
    """The documents of a file, of which only the columns asked for are read.

    Args:
        path: A file of a known kind, compressed or not.
        form: How it is read.

    Yields:
        Tables with one column of strings for each source, and perhaps `file`.

    Raises:
        FileError: The file is damaged, or a column is missing or holds something else than text.
    """
    builder, _ = BUILDERS[suffix_of(Path(path))]
    with _naming(path):
        if builder == "text":
            tables = _read_text(path, form)
        elif builder in ("json", "csv"):
            tables = _tables(path, _rows(path, form), form.sources, is_text=builder == "csv")
        else:
            tables = _read_arrow(path, builder, form.sources)
        for table in tables:
            if form.with_file and "file" not in table.column_names:
                table = table.append_column("file", pyarrow.nulls(len(table), pyarrow.string()))
            yield table


def read_paragraphs(path: str, form: Form) -> Iterator[Paragraph]:
    """The paragraphs of a file, or the texts of a table, each with the number of its line.

    Args:
        path: A file of a known kind, compressed or not.
        form: How it is read; of its sources, the first one.

    Raises:
        FileError: As `read_tables`.
    """
    builder, _ = BUILDERS[suffix_of(Path(path))]
    name = next(iter(form.sources))
    with _naming(path):
        if builder == "text":
            yield from _paragraphs_of_file(path, form)
        elif builder in ("json", "csv"):
            columns = _SeenColumns(path, form.sources)
            for line, row in _rows(path, form):
                columns.see(row)
                text = pick(row, form.sources, f"{path}, line {line}")[name]
                if text and not text.isspace():
                    yield Paragraph(line, text)
            columns.check({}, False)
        else:
            line = 0
            for table in _read_arrow(path, builder, form.sources):
                for text in table.column(name).to_pylist():
                    line += 1
                    if text and not text.isspace():
                        yield Paragraph(line, text)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Names the file in what is raised while it is read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise FileError(_name_wrong_byte(path, error)) from error
    except csv.Error as error:
        raise FileError(f"{path}: cannot be read: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        raise FileError(f"{path}: cannot be read: {error}; it may be incomplete") from error


def check_table(path: str, quoting: Quoting) -> str:
    """Reads a csv or tsv file from its beginning to its end, to see that its quotes are what they are taken for.

    Args:
        path: The file, compressed or not.
        quoting: What a quote is.

    Returns:
        What is between its cells.

    Raises:
        FileError: It is damaged, or its quotes are something else.
    """
    _, options = BUILDERS[suffix_of(Path(path))]
    with _naming(path):
        delimiter = options.get("sep") or _delimiter_of(path)
        for _ in _csv_rows(path, delimiter, quoting):
            pass
    return delimiter


def _rows(path: str, form: Form) -> Rows:
    """The rows of a file of objects or a table of text."""
    builder, options = BUILDERS[suffix_of(Path(path))]
    if builder == "json":
        return _json_rows(path, form.sources)
    return _csv_rows(path, options.get("sep"), form.quoting)


def _open_binary(path: str) -> IO[bytes]:
    with open(path, "rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise FileError(f"{path}: a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`")
    if start.startswith(_GZIP):
        return gzip.open(path)
    if _BZIP2.match(start):
        return bz2.open(path)
    if start.startswith(_XZ):
        return lzma.open(path)
    if start.startswith(_ZSTANDARD):
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return open(path, "rb")


def _open_text(path: str, newline: str | None = None) -> IO[str]:
    return io.TextIOWrapper(_open_binary(path), encoding="utf-8-sig", newline=newline)


def _name_wrong_byte(path: str, error: UnicodeDecodeError) -> str:
    number = 0
    try:
        with _open_binary(path) as file:
            for line in file:
                number += 1
                line.decode("utf-8")
    except UnicodeDecodeError as found:
        byte = f"byte {found.object[found.start]:#x} in column {found.start + 1}"
        return f"{path}, line {number}: not UTF-8 ({byte}); convert the file, e.g. with iconv"
    return f"{path}: not UTF-8 ({error.reason}); convert the file, e.g. with iconv"


# ---- columns --------------------------------------------------------------------------------------------------------


def pick(row: Mapping[str, Any], sources: Sources, where: str) -> dict[str, str | None]:
    """The texts of a row under their new names.

    A source is a column, or a field within columns (`a.b`). Several sources, and the strings of a list, are joined by
    blank lines. Labels are JSON, so that 1 and "1" stay two classes.

    Args:
        row: A row with any columns.
        sources: The columns asked for.
        where: File and line, for error messages.

    Raises:
        FileError: A column holds something else than text.
    """
    picked = {}
    for name, columns in sources.items():
        values = [_look_up(row, column) for column in columns]
        for column, value in zip(columns, values, strict=True):
            kind = _wrong_kind(value, name)
            if kind is not None:
                raise FileError(f"{where}: {wrong_column(column, kind, name)}")
        if name == "label":
            picked[name] = None if values[0] is None else json.dumps(values[0])
        else:
            picked[name] = _join(values)
    return picked


def wrong_column(column: str, kind: str, name: str) -> str:
    """Says that a column holds another kind of values than text, and the flag to name another with."""
    wanted = "classes" if name == "label" else "text"
    return f"column '{column}' holds {kind}, not {wanted}; name another with --{name}_column"


def missing_column(column: str, names: Sequence[str], name: str) -> str:
    """Says that there is no such column, which ones there are, and the flag to name another with."""
    listed = ", ".join(names)
    return f"no column '{column}'{nearest(column, names)} (its columns are {listed}); name one with --{name}_column"


def root_of(column: str, names: Sequence[str]) -> str:
    """The column of a table that holds `column`: itself, or the one that it is a field of."""
    return column if column in names else column.split(".")[0]


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Whether a row has this column, or this field within its columns."""
    if column in row:
        return True
    value = row
    for field in column.split("."):
        while isinstance(value, list) and value:
            value = value[0]
        if not isinstance(value, Mapping) or field not in value:
            return False
        value = value[field]
    return True


def _look_up(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value = row
    for field in column.split("."):
        value = _field_of(value, field)
    return value


def _field_of(value: Any, field: str) -> Any:
    """The field of an object, or of each object of a list."""
    if isinstance(value, Mapping):
        return value.get(field)
    if isinstance(value, list):
        return [_field_of(item, field) for item in value]
    return None


def _wrong_kind(value: Any, name: str) -> str | None:
    """The kind of a value that is no text (or no class); `None` if it is one."""
    if value is None or isinstance(value, str):
        return None
    if name == "label":
        return None if isinstance(value, int) else _kind_of(value)
    if isinstance(value, list) and all(_wrong_kind(item, name) is None for item in value):
        return None
    return _kind_of(value)


def _kind_of(value: Any) -> str:
    kinds = {bool: "bool", int: "int64", float: "float64", dict: "struct", list: "List"}
    return kinds.get(type(value), type(value).__name__)


def _join(value: Any) -> str | None:
    """A text, or the texts of a list, joined by blank lines; `None` if there is none."""
    if not isinstance(value, list):
        return value
    if len(value) == 1:
        return _join(value[0])
    parts = [_join(item) for item in value]
    parts = [part for part in parts if part]
    return "\n\n".join(parts) if parts else None


# ---- rows -----------------------------------------------------------------------------------------------------------


def _tables(path: str, rows: Rows, sources: Sources, is_text: bool = False) -> Iterator[pyarrow.Table]:
    """Gathers rows into tables.

    Args:
        path: The file, for error messages.
        rows: Its rows.
        sources: The columns asked for.
        is_text: Whether its values are text that may stand for numbers, as in a csv file.
    """
    picked = {name: [] for name in sources}
    numbers = []
    columns = _SeenColumns(path, sources)
    size = 0
    for number, row in rows:
        columns.see(row)
        for name, text in pick(row, sources, f"{path}, line {number}").items():
            picked[name].append(text)
            size += len(text or "")
        numbers.append(number)
        if len(numbers) == _ROWS or size >= _CHUNK:
            columns.check(picked, is_text)
            yield _make_table(path, picked, numbers)
            picked = {name: [] for name in sources}
            numbers = []
            size = 0
    if numbers:
        columns.check(picked, is_text)
        yield _make_table(path, picked, numbers)


class _SeenColumns:
    """The columns of the first rows of a file: those asked for have to be among them."""

    def __init__(self, path: str, sources: Sources):
        self.path = path
        self.sources = sources
        self.names = {}
        self.missing = {(name, column) for name, columns in sources.items() for column in columns}
        self.is_checked = False

    def see(self, row: Mapping[str, Any]) -> None:
        if self.missing and not self.is_checked:
            self.names |= dict.fromkeys(row)
            self.missing = {(name, column) for name, column in self.missing if not has_column(row, column)}

    def check(self, picked: Mapping[str, list], is_text: bool) -> None:
        if self.is_checked:
            return
        for name, column in sorted(self.missing):
            raise FileError(f"{self.path}: {missing_column(column, list(self.names), name)}")
        for name, values in picked.items():
            kind = _kind_of_numbers(values) if is_text and len(self.sources[name]) == 1 else None
            if kind is not None and not (name == "label" and kind == "int64"):
                raise FileError(f"{self.path}: {wrong_column(self.sources[name][0], kind, name)}")
        self.is_checked = True


def _kind_of_numbers(values: Sequence[str | None]) -> str | None:
    """The kind of numbers that all of these texts stand for; `None` if one of them does not."""
    values = [value.strip('" ') for value in values if value]
    if not values:
        return None
    if all(_NUMBER.fullmatch(value) for value in values):
        return "int64"
    try:
        for value in values:
            float(value)
    except ValueError:
        return None
    return "float64" if any(value[-1].isdigit() for value in values) else None  # "nan" is a word too


def _make_table(path: str, picked: Mapping[str, list], numbers: Sequence[int]) -> pyarrow.Table:
    try:
        return pyarrow.table({name: pyarrow.array(texts, pyarrow.string()) for name, texts in picked.items()})
    except UnicodeEncodeError as error:
        for texts in picked.values():
            for number, text in zip(numbers, texts, strict=True):
                if text is not None and text.encode("utf-8", "replace") != text.encode("utf-8", "surrogatepass"):
                    raise FileError(f"{path}, line {number}: half a surrogate pair; mend or remove it") from error
        raise


# ---- text -----------------------------------------------------------------------------------------------------------


def _read_text(path: str, form: Form) -> Iterator[pyarrow.Table]:
    if not form.is_mixed:
        for name, columns in form.sources.items():
            for column in columns:
                if column != "text":
                    raise FileError(f"{path}: {missing_column(column, ['text'], name)}")
    parts_of = None
    if form.sample_by == "document":
        batches = iter([[_read_whole(path)]])
    elif form.sample_by == "paragraph":
        batches = _blocks(path)
    elif form.sample_by == "line" or _is_lines(path, form):
        batches = _lines(path)
    else:
        documents = join_paragraphs(_paragraphs_of_file(path, form), form.longest)
        batches = iter(lambda: list(itertools.islice(documents, _ROWS)), [])
        parts_of = path
    for texts in batches:
        columns = {name: pyarrow.array(texts, pyarrow.string()) for name in form.sources}
        if form.with_file and parts_of:
            columns["file"] = pyarrow.array([parts_of] * len(texts), pyarrow.string())
        yield pyarrow.table(columns)


def look_at_layout(path: str, form: Form) -> Layout:
    """How the lines of a file of plain text belong together, by its first ones.

    Raises:
        FileError: As `read_tables`.
    """
    with _naming(path), _open_text(path) as file:
        return layout_of(file.read(BEGINNING), form.is_many)


def _is_lines(path: str, form: Form) -> bool:
    return suffix_of(Path(path)) in PLAIN and look_at_layout(path, form).kind == "lines"


def _read_whole(path: str) -> str:
    if suffix_of(Path(path)) in HTML:
        return _read_page(path)
    with _open_text(path) as file:
        return file.read()


def _read_page(path: str) -> str:
    """A page in the character set that it names."""
    with _open_binary(path) as file:
        content = file.read()
    named = _CHARSET.search(content, 0, _CHARSET_WITHIN)
    charset = named[1].decode() if named and not content.startswith(codecs.BOM_UTF8) else "utf-8-sig"
    try:
        page = content.decode("utf-8-sig" if charset.lower() == "utf-8" else charset)
    except LookupError as error:
        raise FileError(f"{path}: unknown character set '{charset}'; convert the file, e.g. with iconv") from error
    except UnicodeDecodeError as error:
        if charset.lower() in ("utf-8", "utf-8-sig"):
            raise
        raise FileError(f"{path}: not {charset}, as it says ({error.reason}); convert it, e.g. with iconv") from error
    return page.replace("\r\n", "\n")


def _paragraphs_of_file(path: str, form: Form) -> Iterator[Paragraph]:
    suffix = suffix_of(Path(path))
    if suffix in HTML:
        yield from html_paragraphs(_read_page(path))
    elif suffix not in PLAIN:
        yield from markup_paragraphs(_read_whole(path), suffix)
    else:
        layout = look_at_layout(path, form)
        line = 1
        for part in _parts(path):
            yield from plain_paragraphs(part, layout, line)
            line += part.count("\n")


def _lines(path: str) -> Iterator[list[str]]:
    """Lines with text, many at a time."""
    with _open_text(path) as file:
        while chunk := file.read(_CHUNK):
            chunk += file.readline()  # to the end of the line
            yield [line for line in chunk.split("\n") if line and not line.isspace()]


def _parts(path: str) -> Iterator[str]:
    """A file in parts that end at blank lines, or at any line if blank ones are far."""
    with _open_text(path) as file:
        while chunk := file.read(_CHUNK):
            lines = [chunk]
            size = 0
            while (line := file.readline()) and size < _CHUNK:
                lines.append(line)
                size += len(line)
                if line.isspace() and len(lines) > 2:  # the first of them is the end of a line
                    break
            yield "".join(lines)


def _blocks(path: str) -> Iterator[list[str]]:
    rest = ""
    with _open_text(path) as file:
        while chunk := file.read(_CHUNK):
            *blocks, rest = (rest + chunk + file.readline()).split("\n\n")
            yield [block for block in blocks if block and not block.isspace()]
    if rest and not rest.isspace():
        yield [rest]


# ---- json -----------------------------------------------------------------------------------------------------------


def _json_rows(path: str, sources: Sources) -> Rows:
    """One object per line; or a list of objects, or objects over several lines."""
    fields = {field for columns in sources.values() for column in columns for field in (column, *column.split("."))}

    def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twins = [name for name in row if name in fields and names.count(name) > 1]
            if twins:
                raise _TwinFields(twins[0])
        return row

    decoder = json.JSONDecoder(object_pairs_hook=refuse_twins)
    with _open_binary(path) as file:
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
    """An object has a field twice."""


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
    except _TwinFields:
        return False
    return False


def _parse(path: str, number: int, text: str, decoder: json.JSONDecoder) -> dict[str, Any]:
    try:
        row = decoder.decode(text)
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} in column {error.colno})"
        raise FileError(f"{path}, line {number}: {reason}; mend or remove it") from error
    except _TwinFields as error:
        raise FileError(f"{path}: cannot be read: line {number} has the field '{error}' twice; remove one") from error
    except RecursionError as error:
        raise FileError(f"{path}, line {number}: nested too deeply; remove it") from error
    if not isinstance(row, dict):
        raise FileError(f"{path}, line {number}: no object, '{{...}}'; mend or remove it")
    return row


def _json_values(path: str, number: int, text: str, decoder: json.JSONDecoder) -> Rows:
    place = 0
    try:
        while place < len(text):
            value, end = decoder.raw_decode(text, place)
            items = value if isinstance(value, list) else [value]
            for item in items:
                row = {"text": item} if isinstance(item, str) else item
                if not isinstance(row, dict):
                    raise FileError(f"{path}, line {number}: no objects, '{{...}}'; mend or remove it")
                yield number, row
            rest = text[end:]
            skipped = len(rest) - len(rest.lstrip())
            number += text.count("\n", place, end + skipped)
            place = end + skipped
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} in line {error.lineno}, column {error.colno})"
        raise FileError(f"{path}: cannot be read: {reason}; it may be incomplete") from error
    except _TwinFields as error:
        raise FileError(f"{path}: cannot be read: an object has the field '{error}' twice; remove one") from error
    except RecursionError as error:
        raise FileError(f"{path}: nested too deeply") from error


# ---- tables of text -------------------------------------------------------------------------------------------------


def _csv_rows(path: str, delimiter: str | None, quoting: Quoting) -> Rows:
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = delimiter or _delimiter_of(path)
    with _open_text(path, newline="") as file:
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


def _delimiter_of(path: str) -> str:
    """What is between the names of the columns: a comma, unless another delimiter is more frequent there."""
    with _open_text(path, newline="") as file:
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


# ---- arrow and parquet ----------------------------------------------------------------------------------------------


def _read_arrow(path: str, builder: str, sources: Sources) -> Iterator[pyarrow.Table]:
    start = 1
    with open(path, "rb") as file:
        for batch in _read_parquet(path, file, sources) if builder == "parquet" else _read_ipc(path, file, sources):
            yield from _texts_of(path, batch, sources, start)
            start += batch.num_rows


def _read_parquet(path: str, file: IO[bytes], sources: Sources) -> Iterator[pyarrow.RecordBatch]:
    table = parquet.ParquetFile(file)
    roots = _check_schema(path, table.schema_arrow, sources)
    yield from table.iter_batches(batch_size=_ROWS, columns=roots)


def _read_ipc(path: str, file: IO[bytes], sources: Sources) -> Iterator[pyarrow.RecordBatch]:
    try:
        reader = pyarrow.ipc.open_stream(file)
        batches = iter(reader)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        reader = pyarrow.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    roots = _check_schema(path, reader.schema, sources)
    for batch in batches:
        yield batch.select(roots)


def _check_schema(path: str, schema: pyarrow.Schema, sources: Sources) -> list[str]:
    """The columns of a table to read."""
    roots = {}
    for name, columns in sources.items():
        for column in columns:
            root = root_of(column, schema.names)
            if root not in schema.names or (root != column and not _has_field(schema.field(root).type, column)):
                raise FileError(f"{path}: {missing_column(column, schema.names, name)}")
            kind = schema.field(root).type
            if pyarrow.types.is_primitive(kind) and not (name == "label" and _is_class(kind)):
                raise FileError(f"{path}: {wrong_column(column, _name_of_type(kind), name)}")
            roots[root] = True
    return list(roots)


def _has_field(kind: pyarrow.DataType, column: str) -> bool:
    for field in column.split(".")[1:]:
        while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
            kind = kind.value_type
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(field) < 0:
            return False
        kind = kind.field(field).type
    return True


def _is_class(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)


def _name_of_type(kind: pyarrow.DataType) -> str:
    names = {"double": "float64", "float": "float32"}
    return names.get(str(kind), str(kind))


def _texts_of(path: str, batch: pyarrow.RecordBatch, sources: Sources, start: int) -> Iterator[pyarrow.Table]:
    kinds = {column: batch.schema.field(column).type for column in batch.schema.names}
    is_plain = all(
        name != "label" and len(columns) == 1 and _is_string(kinds.get(columns[0]))
        for name, columns in sources.items()
    )
    if is_plain:
        texts = {name: batch.column(column).cast(pyarrow.string()) for name, (column,) in sources.items()}
        for column in texts.values():
            column.validate(full=True)  # a file may hold what is not UTF-8
        yield pyarrow.table(texts)
    else:
        picked = {name: [] for name in sources}
        numbers = range(start, start + batch.num_rows)
        for number, row in zip(numbers, batch.to_pylist(), strict=True):
            for name, text in pick(row, sources, f"{path}, row {number}").items():
                picked[name].append(text)
        yield _make_table(path, picked, numbers)


def _is_string(kind: pyarrow.DataType | None) -> bool:
    if kind is None:
        return False
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    )
