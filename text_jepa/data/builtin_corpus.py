"""Builds a corpus of English prose that every installation already has: the documentation of Python packages.

The docstrings of the standard library and of the packages that Text-JEPA depends on, together with the help texts of
`pydoc_data.topics`, are extracted by parsing source files. Nothing is imported or executed. Everything that is not
prose (code, doctests, tables, formulas, markup, boilerplate) is removed, and the rest is cached.

Two machines build the same corpus if they have the same versions of Python and of the harvested distributions. Another
version of any of them gives another corpus, in another cache folder.
"""

import ast
import gc
import inspect
import json
import logging
import os
import platform
import re
import shutil
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from huggingface_hub.constants import HF_HOME
from tqdm import tqdm


logger = logging.getLogger(__name__)
HARVESTER_VERSION = 1  # part of the cache's fingerprint: increase it whenever the harvest gives other documents

# Distribution -> package folder: direct dependencies and their dependencies.
DISTRIBUTIONS = {
    "torch": "torch",
    "transformers": "transformers",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "evaluate": "evaluate",
    "huggingface-hub": "huggingface_hub",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "sympy": "sympy",
    "mpmath": "mpmath",
    "networkx": "networkx",
    "narwhals": "narwhals",
    "joblib": "joblib",
    "jinja2": "jinja2",
    "fonttools": "fontTools",
    "pillow": "PIL",
    "pyparsing": "pyparsing",
    "python-dateutil": "dateutil",
    "fsspec": "fsspec",
    "filelock": "filelock",
    "packaging": "packaging",
    "requests": "requests",
    "urllib3": "urllib3",
    "aiohttp": "aiohttp",
    "httpx": "httpx",
    "httpx2": "httpx2",
    "click": "click",
    "typer": "typer",
    "rich": "rich",
    "pygments": "pygments",
    "tqdm": "tqdm",
    "pyyaml": "yaml",
    "psutil": "psutil",
    "dill": "dill",
}

# Tests, vendored copies, generated tables, and parts of the standard library that some distributors leave out.
SKIPPED_FOLDERS = re.compile(
    r"tests?|testing|_?vendor|vendored|externs?|externals|third_party|site-packages|dist-packages|lib-dynload|"
    r"idlelib|lib2to3|distutils|ensurepip|tkinter|turtledemo|encodings|__pycache__"
)

# transformers generates its modeling files from the modular ones.
SKIPPED_PREFIXES = ("test_", "modular_")
STANDALONE_WORDS = 50  # a shorter docstring is appended to that of its scope
MINIMUM_WORDS = 20
HELD_OUT_PER_MILLE = 50


class Root(NamedTuple):
    """A folder to harvest: the `package` label of its documents, and the folder that paths are relative to."""

    package: str
    folder: Path
    base: Path


class Harvest(NamedTuple):
    """The documents (dicts of `text`, `package`, `source`), and the number of files read and of unparsable files."""

    documents: list[dict[str, str]]
    files: int
    unparsable: int


_PROSE_DIRECTIVE = re.compile(
    r"note|warning|tip|important|attention|caution|danger|hint|admonition|topic|"
    r"versionadded|versionchanged|deprecated|deprecated-removed"
)
_DROPPED_SECTIONS = frozenset({"references", "see also", "bibliography", "citation", "citations", "methods"})
_SECTION = re.compile(
    r"(?:(?:keyword |optional |other |positional )?(?:args|arguments|parameters?|params|inputs?|outputs?|returns?|"
    r"yields?|raises|attributes|examples?|notes?|shape|usage|warnings?|warns|see also|references|properties|methods|"
    r"tips?|kwargs|side effects|default|tests|description|summary|authors?|todo|\w+ guidelines))\s*:{0,2}$",
    re.IGNORECASE,
)
_DIRECTIVE = re.compile(r"\.\. ?(?:([\w:+-]+) ?:: ?(.*)|.*)$")
_UNDERLINE = re.compile(r"([-=~^*#+\"'.])\1{2,}$")
_BORDER = re.compile(r"(?:\+[-=+]+\+|\|.*\||[=-]{2,}(?:\s+[=-]{2,})+|[-:| ]*-\|-[-:| ]*|[^\w\s]{4,})$")
_BULLET = re.compile(r"(?:[-*+•o]|#\.|\(?(?:\d{1,2}|[a-zA-Z]|[ivx]+)[.)]|\[\d+\])\s+(?=\S)")
_NAME = r"[`*'\"]*[\w.\[\]]+[`*'\"]*"
_ENTRY = re.compile(rf"(\*{{0,2}}{_NAME}(?:\s*[,/]\s*{_NAME})*)(\s*\(.*?\)+)?(\s*)(?::(?=\s|$)| -- )\s*(.*)$")
_FIELD = re.compile(
    r"[:@](param(?:eter)?|arg(?:ument)?|key(?:word)?|kwarg|raises?|except(?:ion)?|[ci]?var|returns?|r?type|yields?|throws)"
    r"(?:\s+([^:]*?))?\s*:\s*(.*)$"
)
_QUOTE = re.compile(r"^([ \t]*)> (?:\[!\w+\])?", re.MULTILINE)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _after_body(lines: list[str], start: int, indent: int) -> int:
    """Index of the first line from `start` on that is neither blank nor indented more than `indent`."""
    while start < len(lines) and (not lines[start].strip() or _indent(lines[start]) > indent):
        start += 1
    return start


def _after_text(lines: list[str], start: int) -> int:
    """Index of the first blank line from `start` on."""
    while start < len(lines) and lines[start].strip():
        start += 1
    return start


def _after_fence(lines: list[str], start: int) -> int:
    """Index of the line after the fence that ends a code block, from `start` on."""
    while start < len(lines) and not lines[start].strip().startswith("```"):
        start += 1
    return start + 1


def _after_section(lines: list[str], start: int) -> int:
    """Index of the next underlined heading from `start` on."""
    for index in range(start, len(lines)):
        is_underline = bool(_UNDERLINE.match(lines[index].strip()))
        if is_underline and lines[index - 1].strip():
            return index - 1
    return len(lines)


def _strip_blocks(lines: list[str]) -> list[str]:
    """Removes whole lines of code, doctests, directives that are not prose, tables and headings."""
    kept: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        text = line.strip()
        indent = _indent(line)
        i += 1
        following = lines[i].strip() if i < len(lines) else ""
        is_prompt = text.startswith((">>>", "In [", "$ ", "@"))
        is_underlined = bool(_UNDERLINE.match(following)) and len(following) >= min(len(text), 4)
        if not text:
            kept.append(line)
        elif text.startswith("```"):
            i = _after_fence(lines, i)
        elif is_prompt and not _FIELD.match(text):
            i = _after_text(lines, i)
        elif match := _DIRECTIVE.match(text):
            end = _after_body(lines, i, indent)
            kept += _strip_directive(*match.groups(), lines[i:end], indent)
            i = end
        elif text == "::":
            kept.append("")
            i = _after_body(lines, i, indent)
        elif text.endswith("::"):
            kept += [line.rstrip()[:-1], ""]
            i = _after_body(lines, i, indent)
        elif is_underlined:
            kept.append("")
            i += 1
            if text.lower().rstrip(":") in _DROPPED_SECTIONS:
                i = _after_section(lines, i)
        elif _BORDER.match(text):
            i = _after_text(lines, i)
            kept.append("")
        else:
            kept.append(line)
    return kept


def _strip_directive(name: str | None, argument: str | None, body: list[str], indent: int) -> list[str]:
    """The prose of a directive; none if it is not a directive for prose."""
    if not name or not _PROSE_DIRECTIVE.fullmatch(name):
        return []
    if name == "admonition":
        argument = ""
    argument = re.sub(r"^v?\d[\w.]*:?\s*", "", argument)
    first = " " * indent + argument
    return ["", *_strip_blocks([first, *_dedent(body, indent)]), ""]


def _dedent(lines: list[str], indent: int) -> list[str]:
    """Moves the body of a directive to the indentation of the directive."""
    depth = min((_indent(line) for line in lines if line.strip()), default=indent) - indent
    return [line[depth:] for line in lines]


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Joins hard-wrapped lines; a list item or a parameter with its description is a paragraph of its own."""
    current: list[str] = []
    depth = 0
    for i, line in enumerate(lines):
        text = line.strip()
        indent = _indent(line)
        following = lines[i + 1] if i + 1 < len(lines) else ""
        opens = bool(following.strip()) and _indent(following) > indent
        if not text or _SECTION.match(text):
            yield " ".join(current)
            current = []
            continue
        bullet = _BULLET.match(text)
        may_be_entry = not bullet or text[0] == "*"
        entry = _ENTRY.match(text) if may_be_entry else None
        field = _FIELD.match(text)
        if bullet or entry or field or indent < depth:
            yield " ".join(current)
            current = []
        if field:
            text = _text_of_field(field)
        elif entry:
            text = _text_of_entry(entry, opens)
        elif bullet:
            text = _text_of_item(text[bullet.end() :])
        elif opens and not current and _is_short_label(text):
            text += ":"
        current.append(text)
        depth = indent
    yield " ".join(current)


def _text_of_field(field: re.Match) -> str:
    """The text of a reST field, such as `:param name: description`."""
    kind, name, description = field.groups()
    if kind in ("type", "rtype"):
        return ""
    if name:
        return f"{name.split()[-1]}: {description}"
    return description


def _text_of_entry(entry: re.Match, opens: bool) -> str:
    """The text of a parameter, such as `name: description`; in numpydoc, `name : type` opens a description."""
    name, _, gap, description = entry.groups()
    is_type = gap and opens
    return f"{name}: {'' if is_type else description}".strip()


def _text_of_item(text: str) -> str:
    """The text of a list item, which may be a parameter."""
    entry = _ENTRY.match(text)
    if entry is None:
        return text
    name, _, _, description = entry.groups()
    return f"{name}: {description}"


def _is_short_label(text: str) -> bool:
    return len(text.split()) <= 4 and text[-1] not in ".,:;"


_MARKUP = [  # (string that a text must contain for the pattern to match, pattern, replacement)
    (trigger, re.compile(pattern), replacement)
    for trigger, pattern, replacement in (
        (":`", r":(?:issue|gh|pr|doi|arxiv|user|cite(?::\w+)?|footcite\w*):`[^`]*`", ""),
        ("]_", r"\s?\[(?:#?\d*|[A-Z][\w+]*\d{2,4}\w?)\]_", ""),
        ("](", r"!?\[([^\[\]]+)\]\([^()\s]+\)", r"\1"),
        (" <", r"`([^`<>]+?)\s*<[^`<>]+>`_{0,2}", r"`\1`"),
        ("`~", r"`~\.?(?:\w+\.)*(\w+)(?:\(\))?`", r"`\1`"),
        ("`", r"(?::[a-z]+)?(?::[a-zA-Z]+:)?\[?``?[!.]?([^`]*?)``?\]?_{0,2}(?!\w)", r"\1"),
        ("<", r"</?[a-zA-Z][^<>]*>", ""),
        ("&", r"&\w+;", ""),
        ("*", r"(?<![\w*])\*{1,3}([^\s*](?:[^*]*[^\s*])?)\*{1,3}(?![\w*])", r"\1"),
        ("_", r"(?<!\w)_([^\s_][^_]*[^\s_])_(?!\w)", r"\1"),
        ("|", r"(?<!\w)\|([^\s|]+)\|(?!\w)", r"\1"),
        ("\\", r"\\([*_`|<>\[\]()])", r"\1"),
        ("#", r"#+ ", ""),
        ("(", r"\(\s*\)", ""),
        ("  ", r"\s+", " "),
        (" ", r" (?=[.,;:](?:\s|$))", ""),
    )
]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_NO_PROSE = re.compile(r"://|www\.|[\\$`{}]|>>>|%\(\w|@@")


def _strip_markup(text: str) -> str:
    """Removes inline reST and Markdown, and sentences that contain an address, a formula or a placeholder."""
    for trigger, pattern, replacement in _MARKUP:
        if trigger in text:
            text = pattern.sub(replacement, text)
    text = text.strip()
    if not _NO_PROSE.search(text):
        return text
    sentences = _SENTENCE_END.split(text)
    return " ".join(sentence for sentence in sentences if not _NO_PROSE.search(sentence))


_WORD = re.compile(r"[(\"'\[]*[A-Za-z][a-z]*(?:['’/-][A-Za-z]+)*[)\"'\]]*[.,:;!?]*[)\"']?$")
_FUNCTION_WORD = re.compile(
    r"(?:an?|the|of|to|in|on|for|with|by|from|at|as|is|are|be|was|been|its?|this|that|these|those|and|or|not|if|when|"
    r"which|will|can|may|must|should|has|have|do|does|you|we|no|any|all|each|than|then|into|only|used?)$",
    re.IGNORECASE,
)


def _reads_as_prose(paragraph: str) -> bool:
    """Whether most tokens are plain words, and some of these are English function words."""
    tokens = paragraph.split()
    if len(tokens) < 4:
        return False
    if len(tokens) < 8 and paragraph[-1] not in ".!?)":
        return False
    if len(tokens) < 12 and paragraph[-1] == ":":
        return False
    words = sum(1 for token in tokens if _WORD.match(token))
    function_words = sum(1 for token in tokens if _FUNCTION_WORD.match(token))
    return words >= 0.75 * len(tokens) and function_words >= 0.12 * len(tokens)


def clean(docstring: str) -> list[str]:
    """Extracts the prose of a docstring in any of the common markup languages.

    Args:
        docstring: Raw text in reST, numpydoc, Google style or Markdown, including indentation.

    Returns:
        The paragraphs, each on one line and without markup; empty if there is no English prose.
    """
    dedented = inspect.cleandoc(docstring)
    unquoted = _QUOTE.sub(r"\1", dedented)
    lines = _strip_blocks(unquoted.splitlines())
    paragraphs = [_strip_markup(paragraph) for paragraph in _paragraphs(lines)]
    return [paragraph for paragraph in paragraphs if _reads_as_prose(paragraph)]


def _words(paragraphs: Iterable[str]) -> int:
    return sum(len(paragraph.split()) for paragraph in paragraphs)


def _long_strings(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and len(child.value) > 200:
            yield child.value


def _clean_long_strings(node: ast.AST) -> list[str]:
    paragraphs = []
    for text in _long_strings(node):
        paragraphs += clean(text)
    return paragraphs


def _label(statement: ast.Expr | ast.Assign) -> str:
    """Name of the object that a statement documents: `add_docstr(torch.abs, "...")` or `NAME = "..."`."""
    if isinstance(statement, ast.Assign):
        return ast.unparse(statement.targets[0])
    names = [node for node in statement.value.args if not any(_long_strings(node))]
    return ".".join(str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node) for node in names)


def _scope_documents(node: ast.AST, name: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Extracts the documentation of a module, class or function.

    Returns:
        The paragraphs of the scope itself, followed by those of members that are too short for a document; and the
        (qualified name, paragraphs) of all other members, in the order of the source.
    """
    own = []
    for decorator in getattr(node, "decorator_list", ()):
        own += _clean_long_strings(decorator)
    own += clean(ast.get_docstring(node, clean=False) or "")
    members = []
    statements = [] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else list(node.body)
    while statements:
        statement = statements.pop(0)
        is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            member = f"{name}.{statement.name}".lstrip(".")
            paragraphs, nested = _scope_documents(statement, member)
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            statements[:0] = [*statement.body, *getattr(statement, "orelse", ())]
            continue
        elif isinstance(statement, ast.Assign) or is_call:
            paragraphs = _clean_long_strings(statement)
            nested = []
            if not paragraphs:
                continue
            member = f"{name}.{_label(statement)}".lstrip(".")
        else:
            continue
        if _words(paragraphs) < STANDALONE_WORDS:
            own += paragraphs
        else:
            members.append((member, paragraphs))
        members += nested
    return own, members


def _topic_documents(tree: ast.Module) -> list[tuple[str, list[str]]]:
    """The help texts of `pydoc_data.topics`, a module that assigns a dict of strings."""
    topics = next(statement.value for statement in tree.body if isinstance(statement, ast.Assign))
    return [(topic, clean(text)) for topic, text in ast.literal_eval(topics).items()]


def _file_documents(path: Path, source: str) -> list[tuple[str, list[str]]]:
    with tokenize.open(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in the source
        tree = ast.parse(stream.read())
    if source == "pydoc_data/topics.py":
        return _topic_documents(tree)
    own, members = _scope_documents(tree, "")
    return [("", own), *members]


def _source_files(root: Root) -> list[Path]:
    """All Python source files of a root, in an order that does not depend on the file system."""
    found = []
    for folder, folders, files in os.walk(root.folder):
        folders[:] = [name for name in folders if not SKIPPED_FOLDERS.fullmatch(name)]
        for name in files:
            if name.endswith(".py") and not name.startswith(SKIPPED_PREFIXES):
                found.append(Path(folder, name))
    return sorted(found, key=lambda path: path.relative_to(root.base).as_posix())


_LICENCE = re.compile(
    r"licensed under the|permission is hereby granted|all rights reserved|without warrant", re.IGNORECASE
)
_PLAIN = re.compile(r"\b[a-z]+\b")


def _key(paragraph: str) -> str:
    """Key of a paragraph and its copies, which share their lower-case words but not their names and numbers."""
    words = [word for word in paragraph.split() if _PLAIN.match(word) and "_" not in word]
    return " ".join(words) if len(words) >= 5 else paragraph


def _without_repeats(documents: Iterable[tuple[dict[str, str], list[str]]]) -> Iterator[dict[str, str]]:
    """Keeps the first copy of every paragraph in file order, and the documents that are then long enough.

    This removes boilerplate and copied documents, and no paragraph is in both the training and the held-out part.
    """
    seen = set()
    for labels, paragraphs in documents:
        kept = []
        for paragraph in paragraphs:
            key = _key(paragraph)
            if key not in seen and not _LICENCE.search(paragraph):
                kept.append(paragraph)
            seen.add(key)
        if _words(kept) >= MINIMUM_WORDS:
            yield {"text": "\n".join(kept), **labels}


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disables the search for reference cycles, which syntax trees lack: it would nearly double the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_garbage_collection()
def harvest(roots: Iterable[Root]) -> Harvest:
    """Extracts the documentation of the Python source files in some folders, without importing or executing any.

    Args:
        roots: The folders. The first copy of a repeated paragraph is kept.

    Returns:
        The documents in order of root and path, and the numbers of files read and of unparsable files.
    """
    found = []
    unparsable = 0
    files = [(root, path) for root in roots for path in _source_files(root)]
    for root, path in tqdm(files, desc="Harvesting documentation", unit="file", disable=None):
        source = path.relative_to(root.base).as_posix()
        try:
            documents = _file_documents(path, source)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            unparsable += 1
            continue
        for name, paragraphs in documents:
            found.append(({"package": root.package, "source": f"{source}:{name}".rstrip(":")}, paragraphs))
    return Harvest(list(_without_repeats(found)), len(files), unparsable)


def _installed() -> tuple[list[Root], dict[str, str]]:
    """The roots to harvest on this machine, and the versions that determine their content."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    roots = [Root("stdlib", stdlib, stdlib)]
    versions = {"python": platform.python_version()}
    for name, package in DISTRIBUTIONS.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        folder = Path(found.locate_file(package))
        roots.append(Root(name, folder, folder.parent))
        versions[name] = found.version
    return roots, versions


def is_held_out(source: str) -> bool:
    """Whether a document belongs to the held-out part: about 5 % of the files, each with all of its documents.

    Args:
        source: Path of the file relative to its root, with or without `:name`.
    """
    file, _, _ = source.partition(":")
    digest = blake2b(file.encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return number % 1000 < HELD_OUT_PER_MILLE


def _write(folder: Path, documents: list[dict[str, str]]) -> None:
    """Writes both splits to a temporary folder and renames it, so that other processes see all files or none."""
    from datasets import Dataset

    partial = folder.with_name(f"{folder.name}.{uuid4().hex}")
    partial.mkdir(parents=True)
    for split, held_out in (("train", False), ("validation", True)):
        rows = [document for document in documents if is_held_out(document["source"]) == held_out]
        Dataset.from_list(rows).to_parquet(partial / f"{split}.parquet")
    try:
        partial.rename(folder)
    except OSError:  # another process was faster and wrote the same files
        shutil.rmtree(partial)


def load_builtin_corpus(cache_dir: str | os.PathLike | None = None) -> "datasets.DatasetDict":  # noqa: F821
    """Loads the documentation of this Python and of the packages that Text-JEPA depends on, as English prose.

    The first call harvests the corpus (under a minute) and caches it; later calls read the cache. Equal versions of
    Python and of the harvested distributions give an equal corpus.

    Args:
        cache_dir: Folder for the corpus. Default: `$HF_HOME/text_jepa`.

    Returns:
        Splits `train` and `validation` (about 5 % of the source files, none of which is in `train`) with the columns
        `text` (a document: paragraphs separated by newlines), `package` (the documented distribution, or "stdlib")
        and `source` ("torch/nn/modules/linear.py:Linear").
    """
    from datasets import load_dataset

    roots, versions = _installed()
    fingerprint = blake2b(json.dumps([HARVESTER_VERSION, versions]).encode(), digest_size=8).hexdigest()
    folder = Path(cache_dir or Path(HF_HOME, "text_jepa")) / f"builtin_corpus-{fingerprint}"
    if not folder.is_dir():
        found = harvest(roots)
        logger.info("%d documents in %d files, %d do not parse", len(found.documents), found.files, found.unparsable)
        _write(folder, found.documents)
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}
    return load_dataset("parquet", data_files=files, cache_dir=str(folder / "arrow"))
