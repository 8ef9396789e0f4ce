"""Selects texts from the columns of a row, and describes errors in columns."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from text_jepa.data.compressed import FileError
from text_jepa.errors import nearest


Sources = Mapping[str, tuple[str, ...]]
"""New name (`text`, `view`, `title` or `label`) -> the columns that it is made of."""

# Largest number of columns listed in an error message.
_MOST_LISTED = 10
# Longest name of a column, in characters, that is shown in full, and a name without quotes.
_LONGEST_NAME = 40
_WORD = re.compile(rf"[\w.-]{{1,{_LONGEST_NAME}}}")


def column_names(column: str | Sequence[str]) -> tuple[str, ...]:
    """The names of one or several columns."""
    return (column,) if isinstance(column, str) else tuple(column)


def pick(row: Mapping[str, Any], sources: Sources, where: str) -> dict[str, str | None]:
    """Selects the texts of a row under new names.

    A source is a column, or a field within columns (`a.b`). Several sources, and the strings of a list, are joined by
    blank lines. Labels are converted to JSON, so that 1 and "1" are different classes.

    Args:
        row: A row with any columns.
        sources: The columns to select.
        where: File and line, for error messages.

    Raises:
        FileError: A column does not contain text, or a text has half a character.
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
            _check_characters(picked[name], where)
    return picked


def _check_characters(text: str | None, where: str) -> None:
    """Raises FileError for half a character, which JSON can escape and UTF-8 cannot encode."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise FileError(f"{where}: an unpaired surrogate; fix or remove it") from error


def wrong_column(column: str, kind: str, name: str) -> str:
    """Error message for a column without text, with the flag that names another column."""
    wanted = "classes" if name == "label" else "text"
    return f"column '{column}' holds {kind}, not {wanted}; name another with --{name}_column"


def missing_column(column: str, names: Sequence[str], name: str, question: str = "") -> str:
    """Error message for a missing column, with the existing columns and the flag that names another column.

    Args:
        column: The missing column.
        names: The existing columns.
        name: Its new name, see `Sources`.
        question: What may be wrong besides, to ask after the columns.
    """
    listed = [_shown(existing) for existing in names[:_MOST_LISTED]]
    if len(names) > _MOST_LISTED:
        listed.append(f"and {len(names) - _MOST_LISTED} more")
    listed = ", ".join(listed)
    return (
        f"no column '{column}'{nearest(column, names)} (its columns are {listed}{question}); name one with "
        f"--{name}_column"
    )


def _shown(name: str) -> str:
    """The name of a column in a message: quoted unless it is a word, and shortened."""
    if _WORD.fullmatch(name):
        return name
    words = " ".join(name.split())
    if len(words) > _LONGEST_NAME:
        words = f"{words[:_LONGEST_NAME]}…"
    return f"'{words}'"


def root_of(column: str, names: Sequence[str]) -> str:
    """The column of a table that contains `column`: itself, or the column that it is a field of."""
    return column if column in names else column.split(".")[0]


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Whether a row has this column, or this field within a column."""
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
    """The field of an object, or of each object in a list."""
    if isinstance(value, Mapping):
        return value.get(field)
    if isinstance(value, list):
        return [_field_of(item, field) for item in value]
    return None


def _wrong_kind(value: Any, name: str) -> str | None:
    """The kind of a value that is not text (or not a class); `None` if it is valid."""
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
    """Joins the texts of a list by blank lines, a single text unchanged; `None` if there is no text."""
    if not isinstance(value, list):
        return value
    if len(value) == 1:
        return _join(value[0])
    parts = [_join(item) for item in value]
    parts = [part for part in parts if part]
    return "\n\n".join(parts) if parts else None
