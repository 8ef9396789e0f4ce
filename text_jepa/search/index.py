"""The index of a folder: passages, their vectors and their words in one SQLite file, updated file by file.

A search adds two scores of each passage: the cosine of its vector with that of the query, and BM25 of their words,
which SQLite's FTS5 counts. No model runs here, so that a search that finds its index complete starts at once.

Shapes: N passages, D features.
"""

import contextlib
import math
import sqlite3
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from text_jepa.data.scripts import is_unspaced, terms_of
from text_jepa.errors import UsageError
from text_jepa.search.passages import Passage
from text_jepa.search.static import TokenTable
from text_jepa.search.vectors import unit_rows


# What tells our files from others' ("TxtJ"), and the form of the tables.
APPLICATION_ID = 0x5478744A
VERSION = 4

# Settings that a user chose, which outlive the form of the tables.
_CHOSEN = ("encoder", "text_column")

# Share of the vectors in a score; the rest is that of the words. Chosen on development questions: docs/search.md.
VECTOR_SHARE = 0.5

# Passages whose words are scored; more of them only share a frequent word with the query.
_SCORED_BY_WORDS = 1_000

# Words of a query that are looked up.
_LONGEST_QUERY = 200

# Bytes of vectors in a row: SQLite takes no value above a gigabyte, and a table may be long.
_LARGEST_PART = 2**26

# Seconds that a process waits while another one writes.
_PATIENCE = 60

# Where SQLite writes the application's number, and how its files begin.
_MAGIC = b"SQLite format 3\0"
_PLACE_OF_ID = 68

# Marks (M) are parts of words, without which words of the scripts of India fall apart.
_TABLES = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE tokens (number INTEGER PRIMARY KEY, vector BLOB NOT NULL)",
    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, problem TEXT)",
    "CREATE TABLE vectors (path TEXT, part INTEGER, content BLOB NOT NULL, PRIMARY KEY (path, part))",
    "CREATE TABLE passages (number INTEGER PRIMARY KEY, path TEXT NOT NULL, line INTEGER, text TEXT NOT NULL)",
    "CREATE INDEX passages_by_path ON passages (path)",
    "CREATE VIRTUAL TABLE words USING fts5 "
    "(text, tokenize = \"porter unicode61 remove_diacritics 2 categories 'L* N* Co M*'\")",
)


class FileState(NamedTuple):
    """What tells whether a file has changed: its size in bytes, and when it was written, in nanoseconds."""

    size: int
    changed: int


class Hit(NamedTuple):
    """A passage that a search found.

    Args:
        path: Its file, relative to the folder.
        line: The line that it begins in.
        text: The passage, with its line breaks.
        score: Of vectors and words together.
        cosine: Of its vector and that of the query, both minus the mean of all passages.
        words: BM25, about 1 if it has each word of the query, 0 if it has none.
    """

    path: str
    line: int
    text: str
    score: float
    cosine: float
    words: float


class IndexedFile(NamedTuple):
    """What is written of a file.

    Args:
        path: Its path, relative to the folder.
        state: Its state when it was read.
        passages: N passages.
        vectors: (N, D) of any length and precision; they are kept as float16 of length 1.
        problem: Why it cannot be read, if so; it has no passages then.
    """

    path: str
    state: FileState
    passages: Sequence[Passage]
    vectors: np.ndarray
    problem: str | None = None


class Index:
    """An index on disk. Where there is none, `start` makes it.

    Everything that belongs to a file is written at once or not at all, and processes wait for each other.

    Args:
        path: The SQLite file.

    Raises:
        UsageError: The file is damaged or none of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = None
        self._tokens: dict[int, np.ndarray] = {}
        self.is_current = False
        self.is_older = False
        with self._readable():
            if check_ownership(path):
                self._connect()
                (version,) = self._database.execute("PRAGMA user_version").fetchone()
                self.is_current = version == VERSION
                self.is_older = 0 < version < VERSION

    def close(self) -> None:
        """Closes the file."""
        if self._database is not None:
            self._database.close()

    # ---- what is in it ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, str]:
        """What was written down with `start`: of an older version encoder and columns, nothing of a newer one."""
        if not self.is_current and not self.is_older:
            return {}
        with self._readable(), as_written():
            settings = dict(self._database.execute("SELECT name, value FROM settings"))
            if not all(isinstance(value, str) for value in settings.values()):
                raise ValueError("settings that are not text")
            if self.is_older:
                return {name: settings[name] for name in _CHOSEN}
            return settings

    def files(self) -> dict[str, FileState | None]:
        """The files in the index by path, relative to the folder; without a state those that cannot be read."""
        with self._readable():
            rows = self._database.execute("SELECT path, size, changed, problem FROM files").fetchall()
            if not all(isinstance(path, str) for path, _, _, _ in rows):
                raise sqlite3.DatabaseError("names of files that are not text")
        states = {}
        for path, size, changed, problem in rows:
            states[path] = FileState(size, changed) if problem is None else None
        return states

    def problems(self) -> list[str]:
        """Why files cannot be read, a line for each of them."""
        with self._readable():
            rows = self._database.execute("SELECT problem FROM files WHERE problem IS NOT NULL ORDER BY path")
            return [problem for (problem,) in rows]

    def count_passages(self) -> int:
        """Number of passages."""
        with self._readable():
            (count,) = self._database.execute("SELECT count(*) FROM passages").fetchone()
        return count

    # ---- writing ----------------------------------------------------------------------------------------------------

    def start(self, settings: Mapping[str, str], table: TokenTable | None) -> dict[str, str]:
        """Empties the index, and writes down what its vectors will be made by.

        Args:
            settings: The encoder by name, what tells whether it has changed, and how texts are read.
            table: Its tokens, if it has no layers.

        Returns:
            All settings.
        """
        settings = dict(settings)
        with self._readable():
            if self._database is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connect()
        self._tokens = {}
        with self._readable(), self._transaction():
            self._make_tables()
            if table is not None:
                query_prompt, prompt = table.prompts
                settings |= {"tokenizer": table.tokenizer, "query_prompt": query_prompt, "prompt": prompt}
                rows = [(number, vector.tobytes()) for number, vector in enumerate(table.vectors)]
                self._database.executemany("INSERT INTO tokens VALUES (?, ?)", rows)
            self._database.executemany("INSERT INTO settings VALUES (?, ?)", settings.items())
        self.is_current = True
        self.is_older = False
        return settings

    def write(self, files: Sequence["IndexedFile"], settings: Mapping[str, str]) -> None:
        """Writes files in place of what was there of them.

        Args:
            files: What was read and computed.
            settings: Those that `start` wrote.

        Raises:
            UsageError: Another process is rebuilding the index for another encoder, or the index cannot be written.
        """
        with self._readable(), self._transaction():
            self._check_settings(settings)
            for file in files:
                self._forget(file.path)
                row = (file.path, *file.state, file.problem)
                self._database.execute("INSERT INTO files VALUES (?, ?, ?, ?)", row)
                vectors = unit_rows(file.vectors).astype(np.float16).tobytes()
                for part, start in enumerate(range(0, len(vectors), _LARGEST_PART)):
                    row = (file.path, part, vectors[start : start + _LARGEST_PART])
                    self._database.execute("INSERT INTO vectors VALUES (?, ?, ?)", row)
                for passage in file.passages:
                    row = (file.path, passage.line, passage.text)
                    cursor = self._database.execute("INSERT INTO passages (path, line, text) VALUES (?, ?, ?)", row)
                    words = (cursor.lastrowid, _spaced(passage.text))
                    self._database.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", words)

    def remove(self, paths: Sequence[str]) -> None:
        """Removes files."""
        if not paths:
            return
        with self._readable(), self._transaction():
            for path in paths:
                self._forget(path)

    def _check_settings(self, settings: Mapping[str, str]) -> None:
        if self.settings() != dict(settings):
            raise UsageError(
                f"{self.path}: another search is rebuilding it for another encoder; wait until it has finished"
            )

    def _forget(self, path: str) -> None:
        numbers = self._database.execute("SELECT number FROM passages WHERE path = ?", (path,)).fetchall()
        self._database.executemany("DELETE FROM words WHERE rowid = ?", numbers)
        self._database.execute("DELETE FROM passages WHERE path = ?", (path,))
        self._database.execute("DELETE FROM vectors WHERE path = ?", (path,))
        self._database.execute("DELETE FROM files WHERE path = ?", (path,))

    # ---- reading ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """The passages as they are now. Until the block ends, other processes may read, and wait to write."""
        with self._readable(), self._transaction("DEFERRED"):
            yield Snapshot(self._database)

    def token_vectors(self, numbers: Sequence[int]) -> np.ndarray:
        """Vectors (T, D) of tokens by their numbers, see `TokenTable`."""
        with self._readable(), as_written():
            for number in {*numbers} - self._tokens.keys():
                (vector,) = self._database.execute("SELECT vector FROM tokens WHERE number = ?", (number,)).fetchone()
                self._tokens[number] = np.frombuffer(vector, np.float32)
            return np.stack([self._tokens[number] for number in numbers])

    # ---- SQLite -----------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._database = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)

    def _make_tables(self) -> None:
        for name in ("settings", "tokens", "files", "vectors", "passages", "words"):
            self._database.execute(f"DROP TABLE IF EXISTS {name}")
        for statement in _TABLES:
            self._database.execute(statement)
        self._database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._database.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All of the block or nothing of it."""
        self._database.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turns what SQLite and the system raise into one line."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UsageError(f"{self.path}: {_reason_and_remedy(error)}") from error


class Snapshot:
    """The passages of an index at one moment, for any number of queries.

    Args:
        database: The database, within a transaction.

    Attributes:
        mean: Mean (D,) of the vectors.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        with as_written():
            rows = database.execute("SELECT number FROM passages ORDER BY path, number").fetchall()
            self._numbers = np.array(rows, np.int64).reshape(-1)
            parts = database.execute("SELECT content FROM vectors ORDER BY path, part").fetchall()
            content = np.frombuffer(b"".join(part for (part,) in parts), np.float16)
        if len(rows) == 0 or content.size == 0 or content.size % len(rows):
            raise sqlite3.DatabaseError(f"{len(rows)} passages and {content.size} features")
        if not np.isfinite(content).all():
            raise sqlite3.DatabaseError("vectors that are not finite")
        vectors = content.reshape(len(rows), -1).astype(np.float32)
        self.mean = vectors.mean(axis=0)
        self._vectors = unit_rows(vectors - self.mean)

    def search(self, query: str, vector: np.ndarray, limit: int) -> list[Hit]:
        """The passages that fit a query best, the best first.

        Args:
            query: Any text.
            vector: Its vector (D,).
            limit: Number of passages.
        """
        cosines, words = self.scores(query, vector)
        scores = combine(cosines, words)
        hits = []
        for row in np.argsort(-scores, kind="stable")[:limit]:
            found = self._database.execute(
                "SELECT path, line, text FROM passages WHERE number = ?", (int(self._numbers[row]),)
            )
            if scores[row] <= 0:
                break
            path, line, text = found.fetchone()
            if not isinstance(path, str) or not isinstance(line, int) or not isinstance(text, str):
                raise sqlite3.DatabaseError(f"passage {self._numbers[row]} is none")
            hits.append(Hit(path, line, text, float(scores[row]), float(cosines[row]), float(words[row])))
        return hits

    def scores(self, query: str, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (N,) and BM25 (N,) of all passages, in the order of their files' names."""
        with as_written():
            return self._vectors @ self.centred(vector), self._scores_of_words(query)

    def centred(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (…, D) of length 1, minus the mean of the passages, of length 1 again; rows of zeros stay."""
        has_words = vectors.any(axis=-1, keepdims=True)
        return has_words * unit_rows(unit_rows(vectors) - self.mean)

    def _scores_of_words(self, query: str) -> np.ndarray:
        """BM25 (N,) of each passage, divided by what a passage would get that has each word of the query once."""
        scores = np.zeros(len(self._numbers), np.float32)
        terms = _terms(query)
        if not terms:
            return scores
        rows = self._database.execute(
            "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?",
            (" OR ".join(terms), _SCORED_BY_WORDS),
        ).fetchall()
        order = np.argsort(self._numbers)
        found = np.array([number for number, _ in rows], np.int64)
        places = order[np.searchsorted(self._numbers, found, sorter=order)]
        scores[places] = [score for _, score in rows]
        return scores / sum(self._rarity(term) for term in terms)

    def shares_of_words(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """What part (T,) of the words of a query each of T texts has, rare words counting more."""
        rarities = {term: self._rarity(term) for term in _terms(query)}
        shares = [sum(rarities.get(term, 0) for term in _terms(text)) for text in texts]
        return np.array(shares, np.float32) / max(sum(rarities.values()), 1e-6)

    def _rarity(self, term: str) -> float:
        """The inverse document frequency of a term, as SQLite's BM25 has it: what one occurrence counts."""
        (count,) = self._database.execute("SELECT count(*) FROM words WHERE words MATCH ?", (term,)).fetchone()
        without = len(self._numbers) - count
        with as_written():
            return max(math.log((without + 0.5) / (count + 0.5)), 1e-6)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Values that nobody wrote there break what is computed of them in many ways; all of them are damage."""
    try:
        yield
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise sqlite3.DatabaseError(f"values that do not fit together: {error}") from error


def is_damaged(path: Path) -> bool:
    """Whether there is an index that cannot be read, so that only a new file can take its place.

    Raises:
        UsageError: The file is none of ours, or another process writes it.
    """
    try:
        if not check_ownership(path):
            return False
        with contextlib.closing(sqlite3.connect(path, timeout=_PATIENCE)) as database:
            database.execute("SELECT count(*) FROM words").fetchone()
            return database.execute("PRAGMA quick_check").fetchone() != ("ok",)
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, OSError) or "locked" in str(error):
            raise UsageError(f"{path}: {_reason_and_remedy(error)}") from error
        return True


def remove_index(path: Path) -> None:
    """Deletes an index, if there is one, with what SQLite keeps beside it.

    Raises:
        UsageError: The file is none of ours, or cannot be deleted.
    """
    try:
        if not check_ownership(path):
            return
        for name in (path.name, f"{path.name}-journal"):
            path.with_name(name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: {_reason_and_remedy(error)}") from error


def check_ownership(path: Path) -> bool:
    """Whether there is an index.

    Raises:
        UsageError: There is a file that is none of ours.
    """
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        start = file.read(_PLACE_OF_ID + 4)
    number = int.from_bytes(start[_PLACE_OF_ID:], "big")
    if not start.startswith(_MAGIC) or number != APPLICATION_ID:
        raise UsageError(f"{path}: not the index of a search; delete it, or name another file with --index")
    return True


def _reason_and_remedy(error: Exception) -> str:
    """What happened to an index, and what to do."""
    if isinstance(error, OSError):
        return f"cannot be written ({error.strerror}); keep the index elsewhere with --index FILE"
    reason = str(error)
    if "fts5" in reason:
        return f"Python's SQLite cannot count words ({reason}); use a Python whose SQLite has FTS5"
    if "locked" in reason:
        return "another search is writing it; try again when that one is done"
    if "readonly" in reason or "unable to open" in reason or "full" in reason:
        return f"cannot be written ({reason}); keep the index elsewhere with --index FILE"
    return describe_damage(reason)


def describe_damage(reason: str) -> str:
    """What is wrong with an index, and what to do."""
    return f"the index is damaged ({reason}); rebuild it with --rebuild; your texts are not changed"


# ---- words ----------------------------------------------------------------------------------------------------------


def _spaced(text: str) -> str:
    """A text in which each character of a script without blanks stands alone, as a word of the index."""
    text = unicodedata.normalize("NFKC", text)
    if text.isascii():
        return text
    return "".join(f" {character} " if is_unspaced(character) else character for character in text)


def _terms(query: str) -> list[str]:
    """The words of a query in the language of FTS5, to which an underscore is a blank, see `terms_of`."""
    query = unicodedata.normalize("NFKC", query).replace("_", " ")
    terms = [" ".join(_spaced(term).split()) for term in terms_of(query)]
    distinct = dict.fromkeys(terms)
    return [f'"{term}"' for term in distinct][:_LONGEST_QUERY]


# ---- scores ---------------------------------------------------------------------------------------------------------


def combine(cosines: np.ndarray, words: np.ndarray, vector_share: float = VECTOR_SHARE) -> np.ndarray:
    """One score (N,) of two, neither of which is stretched: words decide where vectors know nothing, and vice versa.

    Args:
        cosines: (N,) of vectors.
        words: (N,) BM25, about 1 for a passage that has each word of the query.
        vector_share: What the cosines count, from 0 to 1.
    """
    return vector_share * cosines + (1 - vector_share) * words
