"""Reads columns of text from files of all kinds, and reports errors with file and line."""

import codecs
import contextlib
import csv
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import pyarrow
from pyarrow import parquet

from text_jepa.data.columns import Sources, has_column, missing_column, pick, root_of, wrong_column
from text_jepa.data.compressed import (
    COMPRESSED,
    FileError,
    NoSuchColumn,
    NotFetched,
    name_wrong_byte,
    open_binary,
    open_text,
    suffix_of,
)
from text_jepa.data.prose import (
    BEGINNING,
    HTML,
    MARKUP,
    PLAIN,
    Layout,
    Paragraph,
    html_paragraphs,
    join_paragraphs,
    layout_of,
    markup_paragraphs,
    plain_paragraphs,
)
from text_jepa.data.rows import Quoting, Rows, csv_rows, delimiter_of, json_rows


# File suffix -> builder of the datasets library and its options.
PROSE = (*PLAIN, *MARKUP)
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


# Number of characters that are read at once, and number of rows in a table of the result.
_CHUNK = 10 << 20
_ROWS = 1_000

# Declaration of the character set, near the beginning of a page.
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_CHARSET_WITHIN = 2_048
# Character sets that the HTML standard reads as others, mostly as larger ones.
_READ_AS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "big5": "big5hkscs",
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}

_NUMBER = re.compile(r"[+-]?\d+")
# A blank line may contain spaces.
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


SampleBy = Literal["auto", "line", "paragraph", "document"]


class Form(NamedTuple):
    """How files are read.

    Args:
        sources: The columns to read.
        sample_by: What a document is in a file without columns.
        quoting: How quotes in csv and tsv files are read.
        longest: Longest document in characters that `"auto"` reads from a file without columns.
        is_many: Whether there are many text files. A short one is then a single document.
        is_mixed: Whether files with and without columns are read together. The columns are then those of the former.
        with_file: Whether to add a column `file` with the file that a document is a part of.
    """

    sources: Sources
    sample_by: SampleBy = "auto"
    quoting: Quoting = "checked"
    longest: int = 2_048
    is_many: bool = False
    is_mixed: bool = False
    with_file: bool = False

    @property
    def is_text_only(self) -> bool:
        """Whether no column besides `text` is read."""
        return list(self.sources) == ["text"]


# ---- kinds of files -------------------------------------------------------------------------------------------------


def read_tables(path: str, form: Form) -> Iterator[pyarrow.Table]:
    """Reads the documents of a file; only the requested columns are read.

    Args:
        path: A file of a known kind, compressed or not.
        form: How the file is read.

    Yields:
        Tables with one column of strings for each source, and optionally `file`.

    Raises:
        FileError: The file is damaged, or a column is missing or does not contain text.
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
    """Reads the paragraphs of a file, or the texts of a table, with their line numbers.

    Args:
        path: A file of a known kind, compressed or not.
        form: How the file is read; only the first source is read.

    Raises:
        FileError: See `read_tables`.
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
    """Converts errors while a file is read to errors that name the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise FileError(name_wrong_byte(path, error.reason)) from error
    except csv.Error as error:
        raise FileError(f"{path}: cannot be read: {error}") from error
    except RecursionError as error:
        raise FileError(f"{path}: cannot be read: a value is nested too deeply; remove it") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        raise FileError(f"{path}: cannot be read: {error}; it may be incomplete") from error


def check_table(path: str, quoting: Quoting) -> str:
    """Checks a whole csv or tsv file, including its quotes.

    Args:
        path: The file, compressed or not.
        quoting: How quotes are read.

    Returns:
        The delimiter of cells.

    Raises:
        FileError: The file is damaged, or its quotes are not delimiters of cells.
    """
    _, options = BUILDERS[suffix_of(Path(path))]
    with _naming(path):
        delimiter = options.get("sep") or delimiter_of(path)
        for _ in csv_rows(path, delimiter, quoting):
            pass
    return delimiter


def _rows(path: str, form: Form) -> Rows:
    """Reads the rows of a json, csv or tsv file."""
    builder, options = BUILDERS[suffix_of(Path(path))]
    if builder == "json":
        return json_rows(path, form.sources)
    columns = {column for columns in form.sources.values() for column in columns}
    return csv_rows(path, options.get("sep"), form.quoting, columns)


# ---- rows -----------------------------------------------------------------------------------------------------------


def _tables(path: str, rows: Rows, sources: Sources, is_text: bool = False) -> Iterator[pyarrow.Table]:
    """Collects rows in tables.

    Args:
        path: The file, for error messages.
        rows: Rows of the file.
        sources: The columns to read.
        is_text: Whether all values are strings, which may stand for numbers, as in a csv file.
    """
    picked = {name: [] for name in sources}
    count = 0
    columns = _SeenColumns(path, sources)
    size = 0
    for number, row in rows:
        columns.see(row)
        for name, text in pick(row, sources, f"{path}, line {number}").items():
            picked[name].append(text)
            size += len(text or "")
        count += 1
        if count == _ROWS or size >= _CHUNK:
            columns.check(picked, is_text)
            yield _make_table(picked)
            picked = {name: [] for name in sources}
            count = 0
            size = 0
    if count:
        columns.check(picked, is_text)
        yield _make_table(picked)


class _SeenColumns:
    """Checks that the requested columns are among those of the first rows of a file."""

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
            is_csv = BUILDERS[suffix_of(Path(self.path))][0] == "csv"
            question = "; is its first line a header?" if is_csv else ""
            raise NoSuchColumn(f"{self.path}: {missing_column(column, list(self.names), name, question)}")
        for name, values in picked.items():
            kind = _kind_of_numbers(values) if is_text and len(self.sources[name]) == 1 else None
            if kind is not None and not (name == "label" and kind == "int64"):
                raise FileError(f"{self.path}: {wrong_column(self.sources[name][0], kind, name)}")
        self.is_checked = True


def _kind_of_numbers(values: Sequence[str | None]) -> str | None:
    """The kind of number that all of these texts stand for; `None` if any of them is not a number."""
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


def _make_table(picked: Mapping[str, list]) -> pyarrow.Table:
    return pyarrow.table({name: pyarrow.array(texts, pyarrow.string()) for name, texts in picked.items()})


# ---- text -----------------------------------------------------------------------------------------------------------


def _read_text(path: str, form: Form) -> Iterator[pyarrow.Table]:
    if not form.is_mixed:
        for name, columns in form.sources.items():
            for column in columns:
                if column != "text":
                    raise FileError(f"{path}: {missing_column(column, ['text'], name)}")
    parts_of = None
    if form.sample_by != "auto" and suffix_of(Path(path)) in HTML:
        batches = iter([_sample_page(path, form.sample_by)])
    elif form.sample_by == "document":
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


def find_problem(path: str, form: Form, to_its_end: bool = True) -> FileError | None:
    """Finds the reason why a file cannot be read; `None` if it can be read, or if it is a git-lfs pointer.

    Args:
        path: A file of a known kind, compressed or not.
        form: How the file is read.
        to_its_end: Whether to read the whole file. Otherwise only the beginning of a table is read.
    """
    try:
        if suffix_of(Path(path)) not in PROSE:
            for _ in itertools.islice(read_tables(path, form), None if to_its_end else 1):
                pass
        elif to_its_end:
            with _naming(path):
                _read_whole(path)
    except NotFetched:
        return None
    except FileError as error:
        return error
    return None


def look_at_layout(path: str, form: Form) -> Layout:
    """Recognizes the layout of a plain text file by its beginning.

    Raises:
        FileError: See `read_tables`.
    """
    with _naming(path), open_text(path) as file:
        return layout_of(file.read(BEGINNING), form.is_many)


def _is_lines(path: str, form: Form) -> bool:
    return suffix_of(Path(path)) in PLAIN and look_at_layout(path, form).kind == "lines"


def _read_whole(path: str) -> str:
    if suffix_of(Path(path)) in HTML:
        return _read_page(path)
    with open_text(path) as file:
        return _without_marks(file.read())


def _read_page(path: str) -> str:
    """Reads a page in the character set that it declares."""
    with open_binary(path) as file:
        content = file.read()
    named = _CHARSET.search(content, 0, _CHARSET_WITHIN)
    charset = named[1].decode() if named and not content.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        codec = codecs.lookup(charset).name
        codec = _READ_AS.get(codec, codec)
        page = content.decode("utf-8-sig" if codec == "utf-8" else codec)
        if "\0" in page:
            line = page.count("\n", 0, page.index("\0")) + 1
            raise FileError(f"{path}, line {line}: a null character, as in binary files; remove it, or leave it out")
    except LookupError as error:
        raise FileError(f"{path}: unknown character set '{charset}'; convert the file, e.g. with iconv") from error
    except UnicodeDecodeError as error:
        if codec == "utf-8":
            raise
        raise FileError(
            f"{path}: not encoded as {charset}, which it declares ({error.reason}); convert it, e.g. with iconv"
        ) from error
    return page.replace("\r\n", "\n")


def _sample_page(path: str, sample_by: SampleBy) -> list[str]:
    """The visible text of a page as documents: the whole text, its paragraphs or its lines."""
    paragraphs = [paragraph.text for paragraph in html_paragraphs(_read_page(path))]
    if sample_by == "paragraph":
        return paragraphs
    if sample_by == "document":
        return ["\n\n".join(paragraphs)]
    lines = [line for text in paragraphs for line in text.split("\n")]
    return [line for line in lines if line and not line.isspace()]


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
    """Reads lines with text, many at a time."""
    with open_text(path) as file:
        while chunk := file.read(_CHUNK):
            chunk += file.readline()  # to the end of the line
            yield [line for line in _without_marks(chunk).split("\n") if line and not line.isspace()]


def _parts(path: str) -> Iterator[str]:
    """Reads a file in parts that end at a blank line, or at any line if the next blank line is far away."""
    with open_text(path) as file:
        while chunk := file.read(_CHUNK):
            lines = [chunk]
            size = 0
            while size < _CHUNK and (line := file.readline()):
                lines.append(line)
                size += len(line)
                if line.isspace() and len(lines) > 2:  # the first one is the end of a line
                    break
            yield _without_marks("".join(lines))


def _blocks(path: str) -> Iterator[list[str]]:
    rest = ""
    with open_text(path) as file:
        while chunk := file.read(_CHUNK):
            *blocks, rest = _BLANK_LINES.split(rest + _without_marks(chunk + file.readline()))
            yield [block for block in blocks if block and not block.isspace()]
    if rest and not rest.isspace():
        yield [rest]


def _without_marks(text: str) -> str:
    """Removes the byte order marks at the beginnings of lines, which files have that were joined on Windows."""
    return text.removeprefix("\ufeff").replace("\n\ufeff", "\n")


# ---- arrow and parquet ----------------------------------------------------------------------------------------------


def _read_arrow(path: str, builder: str, sources: Sources) -> Iterator[pyarrow.Table]:
    start = 1
    with open_binary(path) as file:
        if path.lower().endswith(COMPRESSED):
            raise FileError(f"{path}: a compressed {builder} file is not read; unpack it")
        read = _read_parquet if builder == "parquet" else _read_ipc
        for batch in read(path, file, sources):
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
    """Checks that a table has the requested columns with text, and returns the top-level columns to read."""
    roots = {}
    for name, columns in sources.items():
        for column in columns:
            root = root_of(column, schema.names)
            if root not in schema.names or (root != column and not _has_field(schema.field(root).type, column)):
                raise NoSuchColumn(f"{path}: {missing_column(column, schema.names, name)}")
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
    batch = _with_strings(path, batch, sources)
    kinds = {column: batch.schema.field(column).type for column in batch.schema.names}
    is_plain = all(
        name != "label" and len(columns) == 1 and _is_string(kinds.get(columns[0]))
        for name, columns in sources.items()
    )
    if is_plain:
        texts = {name: batch.column(column).cast(pyarrow.string()) for name, (column,) in sources.items()}
        for column in texts.values():
            column.validate(full=True)  # a file may not be UTF-8
        yield pyarrow.table(texts)
    else:
        picked = {name: [] for name in sources}
        numbers = range(start, start + batch.num_rows)
        for number, row in zip(numbers, batch.to_pylist(), strict=True):
            for name, text in pick(row, sources, f"{path}, row {number}").items():
                picked[name].append(text)
        yield _make_table(picked)


def _with_strings(path: str, batch: pyarrow.RecordBatch, sources: Sources) -> pyarrow.RecordBatch:
    """Converts columns of bytes to strings, because Hive and Impala write texts without saying that they are.

    Raises:
        FileError: Bytes are not UTF-8.
    """
    for name, columns in sources.items():
        for column in columns:
            root = root_of(column, batch.schema.names)
            place = batch.schema.get_field_index(root)
            values = batch.column(place)
            if not pyarrow.types.is_binary(values.type) and not pyarrow.types.is_large_binary(values.type):
                continue
            try:
                texts = values.cast(pyarrow.string())
            except pyarrow.ArrowInvalid as error:
                raise FileError(f"{path}: {wrong_column(root, 'bytes that are not UTF-8', name)}") from error
            batch = batch.set_column(place, root, texts)
    return batch


def _is_string(kind: pyarrow.DataType | None) -> bool:
    if kind is None:
        return False
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
