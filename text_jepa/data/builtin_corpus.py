"""A corpus of English prose that every installation already has: the documentation inside Python packages.

The docstrings of the standard library and of the packages that Text-JEPA brings with it, together with the help
texts of ``pydoc_data.topics``, are harvested by parsing source files. Nothing is imported or executed. What is no
prose (code, doctests, tables, formulas, markup, boilerplate) is taken out, and what remains is cached.

Two machines get the same corpus when they have the same Python version and the same versions of the harvested
distributions; another version of any of them gives another corpus, in another cache folder.
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
HARVESTER_VERSION = 1  # part of the cache's fingerprint: raise it whenever the harvest gives other documents

# Distribution -> package folder: direct dependencies and what each of those brings with it.
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

# Tests, vendored copies, generated tables, and what some distributors leave out of the standard library.
SKIPPED_FOLDERS = re.compile(
    r"tests?|testing|_?vendor|vendored|externs?|externals|third_party|site-packages|dist-packages|lib-dynload|"
    r"idlelib|lib2to3|distutils|ensurepip|tkinter|turtledemo|encodings|__pycache__"
)

# transformers generates its modeling files from the modular ones.
SKIPPED_PREFIXES = ("test_", "modular_")
STANDALONE_WORDS = 50  # a shorter docstring joins that of the scope around it
MINIMUM_WORDS = 20
HELD_OUT_PER_MILLE = 50


class Root(NamedTuple):
    """A folder to harvest: the `package` label of its documents, and what sources are named relative to."""

    package: str
    folder: Path
    base: Path


class Harvest(NamedTuple):
    """The documents found (dicts of `text`, `package`, `source`) and how many files were read or could not be."""

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
    """Index of the first line from `start` on that is neither blank nor deeper than `indent`."""
    while start < len(lines) and (not lines[start].strip() or _indent(lines[start]) > indent):
        start += 1
    return start


def _after_text(lines: list[str], start: int) -> int:
    """Index of the first blank line from `start` on."""
    while start < len(lines) and lines[start].strip():
        start += 1
    return start


def _strip_blocks(lines: list[str]) -> list[str]:
    """Take out code, doctests, directives that are not prose, tables and headings, whole lines at a time."""
    kept: list[str] = []
    i = 0
    while i < len(lines):
        line, text = lines[i], lines[i].strip()
        indent = _indent(line)
        following = lines[i + 1].strip() if i + 1 < len(lines) else ""
        i += 1
        if not text:
            kept.append(line)
        elif text.startswith("```"):
            while i < len(lines) and not lines[i].strip().startswith("```"):
                i += 1
            i += 1
        elif text.startswith((">>>", "In [", "$ ", "@")) and not _FIELD.match(text):
            i = _after_text(lines, i)
        elif match := _DIRECTIVE.match(text):
            name, argument = match.groups()
            end = _after_body(lines, i, indent)
            if name and _PROSE_DIRECTIVE.fullmatch(name):
                argument = re.sub(r"^v?\d[\w.]*:?\s*", "", argument) if name != "admonition" else ""
                body = _dedent(lines[i:end], indent)
                kept += ["", *_strip_blocks([" " * indent + argument, *body]), ""]
            i = end
        elif text.endswith("::"):
            kept += [line.rstrip()[:-1], ""] if text != "::" else [""]
            i = _after_body(lines, i, indent)
        elif _UNDERLINE.match(following) and len(following) >= min(len(text), 4):
            kept.append("")
            i += 1
            if text.lower().rstrip(":") in _DROPPED_SECTIONS:
                while i < len(lines) and not (_UNDERLINE.match(lines[i].strip()) and lines[i - 1].strip()):
                    i += 1
                i = i - 1 if i < len(lines) else i
        elif _BORDER.match(text):
            i = _after_text(lines, i)
            kept.append("")
        else:
            kept.append(line)
    return kept


def _dedent(lines: list[str], indent: int) -> list[str]:
    """Move a directive's body to the indentation of the directive."""
    depth = min((_indent(line) for line in lines if line.strip()), default=indent) - indent
    return [line[depth:] for line in lines]


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Rejoin hard-wrapped lines; a list item or a parameter with its description is a paragraph of its own."""
    current: list[str] = []
    depth = 0
    for i, line in enumerate(lines):
        text, indent = line.strip(), _indent(line)
        following = lines[i + 1] if i + 1 < len(lines) else ""
        opens = bool(following.strip()) and _indent(following) > indent
        if not text or _SECTION.match(text):
            yield " ".join(current)
            current = []
            continue
        bullet = _BULLET.match(text)
        entry = _ENTRY.match(text) if not bullet or text[0] == "*" else None
        field = _FIELD.match(text)
        if bullet or entry or field or indent < depth:
            yield " ".join(current)
            current = []
        if field:
            kind, name, rest = field.groups()
            if kind in ("type", "rtype"):
                text = ""
            elif name:
                text = f"{name.split()[-1]}: {rest}"
            else:
                text = rest
        elif entry:
            name, _, gap, rest = entry.groups()
            is_type = gap and opens  # numpydoc: "name : type", the description below
            text = f"{name}: {'' if is_type else rest}".strip()
        elif bullet:
            text = text[bullet.end() :]
            entry = _ENTRY.match(text)
            text = f"{entry[1]}: {entry[4]}" if entry else text
        elif opens and not current and len(text.split()) <= 4 and text[-1] not in ".,:;":
            text += ":"
        current.append(text)
        depth = indent
    yield " ".join(current)


_MARKUP = [  # (what a text must hold for the pattern to be worth trying, pattern, replacement)
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
    """Unwrap inline reST and markdown, then drop the sentences that hold an address, a formula or a placeholder."""
    for trigger, pattern, replacement in _MARKUP:
        if trigger in text:
            text = pattern.sub(replacement, text)
    text = text.strip()
    if _NO_PROSE.search(text):
        text = " ".join(sentence for sentence in _SENTENCE_END.split(text) if not _NO_PROSE.search(sentence))
    return text


_WORD = re.compile(r"[(\"'\[]*[A-Za-z][a-z]*(?:['’/-][A-Za-z]+)*[)\"'\]]*[.,:;!?]*[)\"']?$")
_FUNCTION_WORD = re.compile(
    r"(?:an?|the|of|to|in|on|for|with|by|from|at|as|is|are|be|was|been|its?|this|that|these|those|and|or|not|if|when|"
    r"which|will|can|may|must|should|has|have|do|does|you|we|no|any|all|each|than|then|into|only|used?)$",
    re.IGNORECASE,
)


def _reads_as_prose(paragraph: str) -> bool:
    """Whether most tokens are plain words, some of them the function words that English cannot do without."""
    tokens = paragraph.split()
    if (
        len(tokens) < 4
        or (len(tokens) < 8 and paragraph[-1] not in ".!?)")
        or (paragraph[-1] == ":" and len(tokens) < 12)
    ):
        return False
    words = sum(1 for token in tokens if _WORD.match(token))
    grammar = sum(1 for token in tokens if _FUNCTION_WORD.match(token))
    return words >= 0.75 * len(tokens) and grammar >= 0.12 * len(tokens)


def clean(docstring: str) -> list[str]:
    """The prose of a docstring, in whatever markup it is written.

    Args:
        docstring: raw text in reST, numpydoc, Google style or markdown, indentation included.

    Returns:
        Its paragraphs, each one line without markup; empty when nothing in it is English prose.
    """
    lines = _strip_blocks(_QUOTE.sub(r"\1", inspect.cleandoc(docstring)).splitlines())
    return [text for text in map(_strip_markup, _paragraphs(lines)) if _reads_as_prose(text)]


def _words(paragraphs: Iterable[str]) -> int:
    return sum(len(paragraph.split()) for paragraph in paragraphs)


def _long_strings(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and len(child.value) > 200:
            yield child.value


def _label(statement: ast.Expr | ast.Assign) -> str:
    """A name for documentation that a statement attaches: ``add_docstr(torch.abs, "...")`` or ``NAME = "..."``."""
    if isinstance(statement, ast.Assign):
        return ast.unparse(statement.targets[0])
    names = [node for node in statement.value.args if not any(_long_strings(node))]
    return ".".join(str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node) for node in names)


def _scope_documents(node: ast.AST, name: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What a module, class or function documents.

    Returns:
        The paragraphs of the scope itself, those of its members that are too short to stand alone behind them; and
        the (qualified name, paragraphs) of the members that do stand alone, in the order of the source.
    """
    introductions = [text for decorator in getattr(node, "decorator_list", ()) for text in _long_strings(decorator)]
    own = [
        paragraph for text in (*introductions, ast.get_docstring(node, clean=False) or "") for paragraph in clean(text)
    ]
    members = []
    statements = [] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else list(node.body)
    while statements:
        statement = statements.pop(0)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            member = f"{name}.{statement.name}".lstrip(".")
            paragraphs, nested = _scope_documents(statement, member)
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            statements[:0] = [*statement.body, *getattr(statement, "orelse", ())]
            continue
        elif isinstance(statement, ast.Assign) or (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        ):
            paragraphs = [paragraph for text in _long_strings(statement) for paragraph in clean(text)]
            if not paragraphs:
                continue
            member, nested = f"{name}.{_label(statement)}".lstrip("."), []
        else:
            continue
        if _words(paragraphs) < STANDALONE_WORDS:
            own += paragraphs
        else:
            members.append((member, paragraphs))
        members += nested
    return own, members


def _topic_documents(tree: ast.Module) -> list[tuple[str, list[str]]]:
    """The help texts of ``pydoc_data.topics``: a module that is one assignment of a dict of strings."""
    topics = next(statement.value for statement in tree.body if isinstance(statement, ast.Assign))
    return [(topic, clean(text)) for topic, text in ast.literal_eval(topics).items()]


def _file_documents(path: Path, source: str) -> list[tuple[str, list[str]]]:
    with tokenize.open(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a source's invalid escapes are not our user's business
        tree = ast.parse(stream.read())
    if source == "pydoc_data/topics.py":
        return _topic_documents(tree)
    own, members = _scope_documents(tree, "")
    return [("", own), *members]


def _source_files(root: Root) -> list[Path]:
    """All Python sources below a root, in an order that does not depend on the file system."""
    found = []
    for folder, folders, files in os.walk(root.folder):
        folders[:] = [name for name in folders if not SKIPPED_FOLDERS.fullmatch(name)]
        found += [
            Path(folder, name) for name in files if name.endswith(".py") and not name.startswith(SKIPPED_PREFIXES)
        ]
    return sorted(found, key=lambda path: path.relative_to(root.base).as_posix())


_LICENCE = re.compile(
    r"licensed under the|permission is hereby granted|all rights reserved|without warrant", re.IGNORECASE
)
_PLAIN = re.compile(r"\b[a-z]+\b")


def _key(paragraph: str) -> str:
    """What copies of a paragraph share: names and numbers differ between them, lower-case words do not."""
    words = [word for word in paragraph.split() if _PLAIN.match(word) and "_" not in word]
    return " ".join(words) if len(words) >= 5 else paragraph


def _without_repeats(documents: Iterable[tuple[dict[str, str], list[str]]]) -> Iterator[dict[str, str]]:
    """Keep the first copy of every paragraph in file order, then the documents of which enough is left.

    Boilerplate and copied documents go this way, and no paragraph of the held-out part is one of the training part.
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
    """Syntax trees are many objects without cycles: looking for some would nearly double the time of the harvest."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_garbage_collection()
def harvest(roots: Iterable[Root]) -> Harvest:
    """Read the documentation in the Python sources below some folders, without importing or executing any.

    Args:
        roots: the folders, in the order in which the first copies of a repeated paragraph are kept.

    Returns:
        The documents in order of root and path, and the numbers of files read and of files that do not parse.
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
    """The roots to harvest on this machine, and the versions that decide what is in them."""
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
        source: the path of its file relative to its root, with or without ``:name``.
    """
    digest = blake2b(source.partition(":")[0].encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 1000 < HELD_OUT_PER_MILLE


def _write(folder: Path, documents: list[dict[str, str]]) -> None:
    """Write both splits beside `folder` and rename: other processes see all of the corpus or none of it."""
    from datasets import Dataset

    partial = folder.with_name(f"{folder.name}.{uuid4().hex}")
    partial.mkdir(parents=True)
    for split, held_out in (("train", False), ("validation", True)):
        rows = [document for document in documents if is_held_out(document["source"]) == held_out]
        Dataset.from_list(rows).to_parquet(partial / f"{split}.parquet")
    try:
        partial.rename(folder)
    except OSError:  # another process was faster; what it wrote is the same
        shutil.rmtree(partial)


def load_builtin_corpus(cache_dir: str | os.PathLike | None = None) -> "datasets.DatasetDict":  # noqa: F821
    """The documentation of this Python and of the packages that Text-JEPA brings with it, as English prose.

    The first call harvests it (under a minute) and caches it; later calls read the cache. Equal versions of Python
    and of the harvested distributions give an equal corpus.

    Args:
        cache_dir: where to keep the corpus, by default ``$HF_HOME/text_jepa``.

    Returns:
        Splits ``train`` and ``validation`` (about 5 % of the source files, none of which is in ``train``) with the
        columns ``text`` (a document: paragraphs separated by newlines), ``package`` (the distribution documented,
        or "stdlib") and ``source`` ("torch/nn/modules/linear.py:Linear").
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
