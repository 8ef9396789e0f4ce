"""From raw text to examples: load, train a tokenizer, tokenize, split long documents, batch by length.

An example is one text of one document: its token ids with the special tokens, at most `max_length` long. Documents are
never joined, and no token of a document is lost. An example may bring a second text, its view.
"""

import contextlib
import glob
import gzip
import itertools
import json
import logging
import multiprocessing
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from pyarrow import ArrowException
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from text_jepa.arguments import UsageError, nearest
from text_jepa.builtin_corpus import load_builtin_corpus
from text_jepa.masking import DOCUMENT_VIEWS, View, count_windows, special_tokens_around, vocabulary


logger = logging.getLogger(__name__)

# The datasets library would tell a server of each folder and file that it opens.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

# File suffix -> builder of the datasets library and its options.
BUILDERS = {
    ".txt": ("text", {}),
    ".text": ("text", {}),
    ".md": ("text", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}

# What the datasets library and its readers raise for data that are not what they seem.
_UNREADABLE = (DatasetGenerationError, ArrowException, ValueError, OSError, EOFError, RuntimeError, StopIteration)
_UNREADABLE += (zlib.error,)

# Enough text for a stable vocabulary of some ten thousand pieces; more only costs time.
_TOKENIZER_TRAINING_CHARACTERS = 40_000_000

# Characters that a trained tokenizer knows, as in BERT's.
_ALPHABET = 1_000

# Part of the cache's fingerprint: raise it whenever the same settings give other examples.
_TOKENIZATION_VERSION = 2

# Views that the examples bring; the others are made from the text.
_VIEWS_OF_DATA = ("column", "next_sentence")

# Texts that a stream sets aside for evaluation when it has no held-out split of its own.
_STREAM_HELD_OUT = 200


# ---- loading --------------------------------------------------------------------------------------------------------


def find_files(patterns: Sequence[str], flag: str) -> list[str]:
    """Files named by paths, folders and globs, each sorted; a folder stands for all files of a known kind in it.

    Raises:
        UsageError: Nothing is there, or the kinds of files are mixed or unknown.
    """
    found = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(str(p) for p in path.rglob("*") if suffix_of(p) in BUILDERS)
            if not matches:
                raise UsageError(f"--{flag} {pattern}: no {', '.join(BUILDERS)} file in this folder")
        else:
            matches = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
            matches = [match for match in matches if Path(match).is_file()]
            if not matches:
                raise UsageError(f"--{flag} {pattern}: no such file")
        found += matches
    unknown = [path for path in found if suffix_of(Path(path)) not in BUILDERS]
    if unknown:
        raise UsageError(f"--{flag} {unknown[0]}: files of this kind are not read; use one of {', '.join(BUILDERS)}")
    suffixes = sorted({suffix_of(Path(path)) for path in found})
    if any(BUILDERS[suffix] != BUILDERS[suffixes[0]] for suffix in suffixes):
        raise UsageError(f"--{flag}: files of different kinds ({', '.join(suffixes)}); name one kind, e.g. '*.jsonl'")
    return found


def suffix_of(path: Path) -> str:
    """The suffix that tells the kind of a file, without `.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix


def load_corpus(
    train_file: Sequence[str] | None = None,
    validation_file: Sequence[str] | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    text_column: str = "text",
    view_column: str | None = None,
    sample_by: str = "line",
    streaming: bool = False,
    validation_split_percentage: float = 5,
    seed: int = 0,
    cache_dir: str | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Loads a corpus as splits `train` and `validation` with one column, `text`: one document per row.

    Local files, a dataset of the Hub (or a folder of one), or the built-in corpus where nothing is named. The held-out
    part is `validation_file`, the dataset's own `validation` (or `test`) split, or a share of the documents chosen by
    `seed`; for a stream without any, its first documents. With `view_column` there is a second column, `view`.

    Raises:
        UsageError: A file, split or column is missing, a file cannot be read, or there is no text.
    """
    if train_file and dataset_name:
        raise UsageError("--train_file and --dataset_name exclude each other")
    if validation_file and not train_file:
        raise UsageError("--validation_file goes with --train_file; other corpora bring their own held-out part")
    if view_column == text_column:
        raise UsageError(f"--view_column {view_column}: is the text itself; use --view same")
    columns = {"text_column": text_column} | ({"view_column": view_column} if view_column else {})
    if not train_file and not dataset_name:
        if view_column:
            raise UsageError(f"--view_column {view_column}: the built-in corpus has no second column")
        corpus = load_builtin_corpus(cache_dir).select_columns(["text"])
        return _as_streams(corpus) if streaming else corpus
    if train_file:
        corpus = _load_files(train_file, validation_file, columns, sample_by, streaming, cache_dir)
        what = f"--train_file {train_file[0]}"
    else:
        corpus = _load_hub(dataset_name, dataset_config_name, dataset_split, columns, streaming, cache_dir)
        what = f"--dataset_name {dataset_name}"
    if "validation" not in corpus:
        corpus = _hold_out(corpus["train"], streaming, validation_split_percentage, seed, what)
    return (IterableDatasetDict if streaming else DatasetDict)(corpus)


def _as_streams(corpus):
    return IterableDatasetDict({split: part.to_iterable_dataset() for split, part in corpus.items()})


@contextlib.contextmanager
def reading(what: str, paths: Sequence[str] = ()) -> Iterator[None]:
    """Says what could not be read when the datasets library fails in its own words, of which it logs some before.

    Args:
        what: The flag and its value.
        paths: Files, in which the culprit is looked for.

    Raises:
        UsageError: The body could not read something.
    """
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except UsageError:
        raise
    except _UNREADABLE as error:
        culprit = _culprit(paths)
        message = f"{what.split()[0]} {culprit}" if culprit else f"{what}: cannot be read: {error.__cause__ or error}"
        raise UsageError(message) from error
    except TypeError as error:  # datasets 5.0 of a line of JSON that is no object; else a bug of ours
        if culprit := _culprit(paths):
            raise UsageError(f"{what.split()[0]} {culprit}") from error
        raise
    finally:
        datasets.logging.set_verbosity(verbosity)


def legible(rows: Iterable[dict], what: str, paths: Sequence[str] = ()) -> Iterator[dict]:
    """The rows of a stream, which may turn out to be damaged far behind its beginning; see `reading`."""
    with reading(what, paths):
        yield from rows


def _culprit(paths):
    """File and line, counted from 1, that is no text or no JSON, and what to do; `None` if there is none."""
    for path in paths:
        kind, number = suffix_of(Path(path)), 0
        if kind == ".parquet":
            continue
        try:
            with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    text = line.decode("utf-8")
                    if kind == ".jsonl" and text.strip() and not isinstance(json.loads(text), dict):
                        return f"{path}, line {number}: no object, '{{...}}'; mend or remove it"
        except UnicodeDecodeError as error:
            byte = f"byte {error.object[error.start]:#x} in column {error.start + 1}"
            return f"{path}, line {number}: not UTF-8 ({byte}); convert the file, e.g. by iconv"
        except json.JSONDecodeError as error:
            return f"{path}, line {number}: not JSON ({error.msg} in column {error.colno}); mend or remove it"
        except (OSError, EOFError, zlib.error) as error:
            return f"{path}: {error}; it may be incomplete"
    return None


def _load_files(train_file, validation_file, columns, sample_by, streaming, cache_dir):
    files = {"train": find_files(train_file, "train_file")}
    if validation_file:
        files["validation"] = find_files(validation_file, "validation_file")
    options = {"sample_by": sample_by, "streaming": streaming, "cache_dir": cache_dir}
    return {split: _read_files(paths, f"{split}_file", columns, **options) for split, paths in files.items()}


def load_texts(files: Sequence[str], flag: str, text_column: str = "text", cache_dir: str | None = None) -> Dataset:
    """Loads local files as `load_corpus` does, with none held out: one column, `text`, one document per row.

    Args:
        files: Paths, folders and globs, see `find_files`.
        flag: The flag that names them, for messages.
        text_column: The column that holds the text.
        cache_dir: Cache of the datasets library.

    Raises:
        UsageError: A file or the column is missing, a file cannot be read, or there is no text.
    """
    paths = find_files(files, flag)
    columns = {"text_column": text_column}
    return _read_files(paths, flag, columns, sample_by="line", streaming=False, cache_dir=cache_dir)


def _read_files(paths, flag, columns, sample_by, streaming, cache_dir):
    what = f"--{flag} {', '.join(paths[:3])}"
    if not any(Path(path).stat().st_size for path in paths):
        raise UsageError(f"{what}: empty")
    builder, options = BUILDERS[suffix_of(Path(paths[0]))]
    if builder == "text":
        options = {"sample_by": sample_by}
    options = options | {"streaming": streaming, "cache_dir": cache_dir}
    with reading(what, paths):
        part = load_dataset(builder, data_files=[glob.escape(path) for path in paths], split="train", **options)
        return _text_only(part, columns, what)


def _load_hub(name, config_name, split, columns, streaming, cache_dir):
    what = f"--dataset_name {name}"
    with reading(what):
        splits = datasets.get_dataset_split_names(name, config_name)
        if split not in splits:
            raise UsageError(f"--dataset_split {split}: {name} has the splits {', '.join(splits)}")
        wanted = {"train": split}
        held_out = next((s for s in ("validation", "test") if s in splits and s != split), None)
        wanted |= {"validation": held_out} if held_out else {}
        options = {"streaming": streaming, "cache_dir": cache_dir}
        return {
            part: _text_only(load_dataset(name, config_name, split=found, **options), columns, what)
            for part, found in wanted.items()
        }


def _text_only(dataset, columns, what):
    """The columns named by these flags, as `text` and perhaps `view`."""
    # A stream knows its columns only when something of it has been read.
    known = Dataset.from_list(list(dataset.take(100))) if isinstance(dataset, IterableDataset) else dataset
    if not len(known):
        raise UsageError(f"{what}: holds no document")
    for flag, column in columns.items():
        if column not in known.column_names:
            raise UsageError(
                f"{what}: no column '{column}'{nearest(column, known.column_names)} "
                f"(its columns are {', '.join(known.column_names)}); name one with --{flag}"
            )
        feature = known.features[column]
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        if kind not in ("string", "large_string"):
            raise UsageError(f"{what}: column '{column}' holds {kind}, not text; name another with --{flag}")
        known.data.column(column).validate(full=True)  # json and parquet files may hold what is not UTF-8
    dataset = dataset.select_columns(list(columns.values()))
    # The view first, for its column may be called text.
    for flag, column in reversed(columns.items()):
        name = flag.removesuffix("_column")
        dataset = dataset if column == name else dataset.rename_column(column, name)
    return dataset


def _hold_out(train, streaming, percentage, seed, what):
    if streaming:
        rest = train.skip(_STREAM_HELD_OUT)
        if next(iter(rest), None) is None:
            raise UsageError(
                f"{what}: the first {_STREAM_HELD_OUT} documents of a stream are held out, and there are no more; "
                "name a --validation_file, or read without --streaming"
            )
        return {"train": rest, "validation": train.take(_STREAM_HELD_OUT)}
    if not 0 < percentage < 100:
        raise UsageError(f"--validation_split_percentage {percentage:g}: must be above 0 and below 100")
    if len(train) < 2:
        raise UsageError(f"{what}: a single document; at least 2 are needed, one of them held out")
    held_out = min(max(1, round(len(train) * percentage / 100)), len(train) - 1)
    split = train.train_test_split(test_size=held_out, seed=seed)
    return {"train": split["train"], "validation": split["test"]}


# ---- tokenizer ------------------------------------------------------------------------------------------------------


_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool = True,
    max_length: int = 512,
    kind: Literal["wordpiece", "bpe"] = "wordpiece",
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer with BERT's special tokens on the texts; the same texts give the same tokenizer.

    Args:
        texts: Documents; reading stops after 40 million characters.
        vocab_size: Number of tokens, special ones included; more if the alphabet needs them.
        lowercase: Fold case; for WordPiece accents too.
        max_length: `model_max_length` of the tokenizer.
        kind: `"wordpiece"` (BERT's, up to 1,000 characters) or `"bpe"` (byte-level, GPT-2's: no unknown characters).

    Raises:
        UsageError: There is no text, or `vocab_size` leaves no room for it.
    """
    special = list(_SPECIAL_TOKENS.values())
    if vocab_size <= len(special):
        raise UsageError(f"--vocab_size {vocab_size}: must be above {len(special)}, the number of special tokens")
    texts = list(_limited(texts, _TOKENIZER_TRAINING_CHARACTERS))
    if not any(text.strip() for text in texts):
        raise UsageError("the corpus holds no text to train a tokenizer on")
    tokenizer = {"wordpiece": _train_wordpiece, "bpe": _train_bpe}[kind](texts, vocab_size, special, lowercase)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **_SPECIAL_TOKENS)


def _train_wordpiece(texts, vocab_size, special, lowercase):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = Counter(itertools.chain.from_iterable(map(tokenizer.normalizer.normalize_str, texts)))
    ranked = [(c, count) for c, count in characters.most_common() if not c.isspace()]
    rarest = ranked[_ALPHABET][1] if len(ranked) > _ALPHABET else 0
    alphabet = sorted(c for c, count in ranked if count > rarest)
    # The trainer numbers the inner characters in the order of a hash table, and breaks ties by number: naming them
    # beforehand, and never cutting the alphabet between equals, makes the vocabulary the same in every run.
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(special) + 2 * len(alphabet)),
        special_tokens=[*special, *alphabet, *(f"##{c}" for c in alphabet)],
        limit_alphabet=len(alphabet),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A tokenizer of its own, in which the characters are ordinary tokens again.
    trained, tokenizer = tokenizer, Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _train_bpe(texts, vocab_size, special, lowercase):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *[normalizers.Lowercase()] * lowercase])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _limited(texts, characters):
    for text in filter(None, map(_checked, texts)):
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _checked(text):
    """A document, in whose place a stream may have anything."""
    if text is not None and not isinstance(text, str):
        raise UsageError(
            f"the corpus holds {type(text).__name__} {str(text)[:40]!r} where a text is expected; remove it"
        )
    return text


# ---- tokenization ---------------------------------------------------------------------------------------------------


class DocumentCount:
    """Documents that a stream has read, and those that it left out, in this process and its workers together.

    A stream is read ahead of training, and again in each pass: of a document that comes twice both are counted.
    """

    def __init__(self):
        self._shared = multiprocessing.Array("q", 2)

    def add(self, read: int, left_out: int):
        with self._shared:
            self._shared[0] += read
            self._shared[1] += left_out

    @property
    def read(self) -> int:
        return self._shared[0]

    @property
    def left_out(self) -> int:
        return self._shared[1]


def tell_left_out(split: str, left_out: int, documents: int, min_length: int, view: View | None):
    """Logs how many documents were left out, if any, and why; see `tokenize_corpus`."""
    if left_out:
        why = {"column": " or no view", "next_sentence": ", or of a single text"}.get(view, "")
        logger.info(
            f"{split}: {left_out:,} of {documents:,} documents are left out: of fewer than {max(min_length, 2)} "
            f"tokens{why}"
        )


def sentence_end_table(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(V,) boolean: tokens behind which a sentence may end, by their last character."""
    return np.array([token[-1:] in tuple(".!?。！？") for token in vocabulary(tokenizer)])


def cut_points(length: int, room: int, sentence_ends: np.ndarray) -> list[int]:
    """Where to cut a document: [0, …, length], no piece longer than `room`, none of a single token.

    A piece ends behind the last sentence that fits, or where the window is full if that would leave it less than half
    full.

    Args:
        length: Tokens of the document, at least 2.
        room: Longest piece, at least 3.
        sentence_ends: Sorted positions behind which a sentence ends; empty to cut at full windows only.
    """
    cuts = [0]
    while length - cuts[-1] > room:
        start = cuts[-1]
        last = np.searchsorted(sentence_ends, start + room, side="right") - 1
        cut = int(sentence_ends[last]) if last >= 0 and sentence_ends[last] - start > room // 2 else start + room
        cuts.append(cut if length - cut > 1 else cut - 1)
    return [*cuts, length]


def tokenize_corpus(
    corpus: DatasetDict | IterableDatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
    overwrite_cache: bool = False,
    view: View | None = None,
    min_length: int = 2,
    count: DocumentCount | None = None,
    max_document_length: int = 512,
) -> DatasetDict | IterableDatasetDict:
    """Documents to examples with `input_ids` and `length`, special tokens included, and perhaps `view_input_ids`.

    For views of documents an example is a whole document without special tokens, or one of the parts of at most
    `max_document_length` tokens into which a longer one is cut at the ends of sentences: [`DocumentWindows`] and the
    collator make windows of it.

    Documents of fewer than two tokens can teach nothing and are left out, as are shorter ones than `min_length` and
    those without a view. The result is cached by corpus, tokenizer and settings.

    Args:
        corpus: Splits with a column `text`, and `view` where that is the view.
        tokenizer: Any tokenizer with a padding token.
        max_length: Longest example in tokens, special tokens included; longer documents are cut, see `cut_points`.
        num_proc: Processes; the tokenizers library uses all cores with one.
        overwrite_cache: Tokenize again.
        view: `"column"`: every part of a document has the whole column as its view, cut at `max_length`.
            `"next_sentence"`: the view of a part is the part that follows; the last one has none and is left out.
            `"rest"` and `"neighbour"`: see above. Other views are the collator's.
        min_length: Documents of fewer tokens are left out.
        count: To which a stream adds the documents of `train` when it is read; of another corpus it is told at once.
        max_document_length: For views of documents: the longest part of a document, in tokens.

    Raises:
        UsageError: The tokenizer has no padding token, `max_length` has no room, or no document is left.
    """
    if tokenizer.pad_token_id is None:
        raise UsageError("the tokenizer has no padding token; add one, or train a tokenizer on the corpus")
    before, after = special_tokens_around(tokenizer)
    special_tokens = len(before) + len(after)
    room = max_length - special_tokens
    if room < 3:
        raise UsageError(f"--max_length {max_length}: leaves no room for text beside the special tokens")
    if view in DOCUMENT_VIEWS and room < 4:
        raise UsageError(
            f"--max_length {max_length}: leaves no room for windows of a document beside the special tokens"
        )
    by_document = view in DOCUMENT_VIEWS
    if by_document:
        before, after, room = [], [], max_document_length
    ends_sentence = sentence_end_table(tokenizer)

    def ids_of(texts):
        return tokenizer(
            [_checked(text) or "" for text in texts],
            add_special_tokens=False,
            split_special_tokens=True,  # a literal "[MASK]" is text
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def pieces_of(ids):
        cuts = [0, len(ids)]
        if len(ids) > room:
            cuts = cut_points(len(ids), room, np.flatnonzero(ends_sentence[ids]) + 1)
        return [before + ids[i:j] + after for i, j in itertools.pairwise(cuts)]

    def tokenize(batch):
        documents = [pieces_of(ids) if len(ids) >= max(min_length, 2) else [] for ids in ids_of(batch["text"])]
        if view == "column":
            seconds = [before + ids[:room] + after if ids else None for ids in ids_of(batch["view"])]
            found = [
                [(piece, second) for piece in pieces if second is not None]
                for pieces, second in zip(documents, seconds, strict=True)
            ]
        elif view == "next_sentence":
            found = [list(itertools.pairwise(pieces)) for pieces in documents]
        else:
            found = [[(piece, None) for piece in pieces] for pieces in documents]
        pairs = list(itertools.chain.from_iterable(found))
        columns = {"input_ids": [text for text, _ in pairs], "length": [len(text) for text, _ in pairs]}
        columns["begins"] = [number == 0 for texts in found for number in range(len(texts))]
        return columns | ({"view_input_ids": [second for _, second in pairs]} if view in _VIEWS_OF_DATA else {})

    def tokenize_and_count(batch):
        examples = tokenize(batch)
        count.add(len(batch["text"]), len(batch["text"]) - sum(examples["begins"]))
        return examples

    def windows_of(batch):
        """One row for each window, for a stream has no length that a data set of windows could be made of."""
        counts = count_windows(batch["length"], max_length - special_tokens)
        rows = np.repeat(np.arange(len(counts)), counts)
        columns = {name: [values[row] for row in rows] for name, values in batch.items()}
        return columns | {"window": [number for count in counts for number in range(count)]}

    streaming = isinstance(corpus, IterableDatasetDict)
    # The last one is in the names of caches that are there, from when documents could be cut otherwise.
    settings = [_TOKENIZATION_VERSION, _tokenizer_identity(tokenizer), max_length, "sentence"]
    settings += [view] if view in _VIEWS_OF_DATA else []
    settings += [min_length] if min_length > 2 else []
    settings += ["documents", max_document_length] if by_document else []
    examples = {}
    for split, part in corpus.items():
        options = (
            {}
            if streaming
            else {
                "num_proc": num_proc,
                "load_from_cache_file": not overwrite_cache,
                # The library's own fingerprint pickles the tokenizer, whose state changes with use.
                "new_fingerprint": Hasher.hash([part._fingerprint, *settings]),
                "desc": f"Tokenizing {split}",
            }
        )
        columns = ["text", "view"] if view == "column" else ["text"]
        options |= {"batched": True, "remove_columns": columns}
        examples[split] = part.map(tokenize, **options)
        if next(iter(examples[split]), None) is None:
            wanted = {
                "column": f"of at least {max(min_length, 2)} tokens with a view",
                "next_sentence": f"of more than one text of {max_length} tokens; lower --max_length",
            }.get(view, f"of at least {max(min_length, 2)} tokens")
            raise UsageError(f"the {split} part of the corpus holds no document {wanted}")
        if not streaming:
            kept = int(np.sum(examples[split].with_format("numpy")["begins"][:]))
            tell_left_out(split, len(part) - kept, len(part), min_length, view)
        elif split == "train" and count is not None:  # not before, for the look above reads as well
            examples[split] = part.map(tokenize_and_count, **options)
        examples[split] = examples[split].remove_columns("begins")
        if streaming and by_document:
            examples[split] = examples[split].map(windows_of, batched=True)
    return IterableDatasetDict(examples) if streaming else DatasetDict(examples).with_format("numpy")


def _tokenizer_identity(tokenizer):
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, str(tokenizer.init_kwargs), sorted(tokenizer.get_vocab().items())]
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("padding", "truncation")}


# ---- batches --------------------------------------------------------------------------------------------------------


class EndlessStream(torch.utils.data.IterableDataset):
    """A stream that begins again when it ends, in batches of texts of similar length that come at random.

    Texts are drawn into pools of `pool_batches` batches, sorted by length within each pool, cut into batches, and the
    batches shuffled. What is left of a pass, less than a batch, waits for the first pool of the next one, so that all
    batches stay whole. The order is a pure function of seed, pass, worker and what the stream gives.

    The Trainer does not know where a pass over a stream ends: here each example carries the number of its pass, its
    `epoch`, so that masks change from pass to pass, and a resumed run that skips what it has seen arrives at the same
    place. It carries its `step` too, which is exact with workers, whose batches take turns, as long as all of them
    have a share of the files.

    Args:
        stream: Examples; its `set_epoch` chooses the order of a pass.
        batch_size: Texts of a batch of all processes together, of which each then has its part of similar length.
        batches_per_step: Such batches of one optimizer step, that is gradient accumulation.
        source: What is read, and its files, for `legible`.
        seed: Seed of the order of the batches.
        pool_batches: Batches that are sorted together.
    """

    def __init__(
        self,
        stream: IterableDataset,
        batch_size: int,
        batches_per_step: int = 1,
        source: tuple[str, Sequence[str]] = ("the stream", ()),
        seed: int = 0,
        pool_batches: int = 50,
    ):
        self.stream = stream
        self.batch_size = batch_size
        self.batches_per_step = batches_per_step
        self.source = source
        self.seed = seed
        self.pool_batches = pool_batches

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        # Workers beyond the number of files have nothing to read and drop out.
        place, workers = (worker.id, min(worker.num_workers, self.stream.num_shards)) if worker else (0, 1)
        batches, rest = itertools.count(place, workers), []
        # All workers share the number of the pass of a stream, and are not in the same one: each makes its own.
        stream = self.stream.with_format(None)
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            texts = ({**example, "epoch": epoch} for example in legible(stream, *self.source))
            first = next(texts, None)
            if first is None:  # a worker without a share of the files would search for ever
                return
            generator = np.random.default_rng([self.seed, epoch, place])
            texts = itertools.chain(rest, [first], texts)
            while pool := list(itertools.islice(texts, self.batch_size * self.pool_batches)):
                whole = len(pool) // self.batch_size * self.batch_size
                pool, rest = pool[:whole], pool[whole:]
                order = np.argsort([len(text["input_ids"]) for text in pool], kind="stable")
                for batch in generator.permutation(order.reshape(-1, self.batch_size)):
                    step = next(batches) // self.batches_per_step
                    for row in batch:
                        yield {**pool[row], "step": step}


class DocumentWindows(torch.utils.data.Dataset):
    """The windows of tokenized documents: for each an example with the whole document and the number of the window.

    The tokens of a document lie where the data set has them in memory or on the disk; they are not copied for each of
    its windows.

    Args:
        documents: Examples of whole documents with `input_ids` and `length`, see `tokenize_corpus`.
        window_length: Longest window in tokens, special tokens included.
        special_tokens: How many of them there are around a text.
        max_windows: Keep so many; all by default.
    """

    def __init__(self, documents: Dataset, window_length: int, special_tokens: int, max_windows: int | None = None):
        self.documents = documents
        lengths = np.asarray(documents["length"][:])
        counts = count_windows(lengths, window_length - special_tokens)
        ends = counts.cumsum()
        self._document = np.repeat(np.arange(len(counts)), counts)[:max_windows]
        self._window = (np.arange(ends[-1]) - np.repeat(ends - counts, counts))[:max_windows]
        self._length = lengths[self._document]
        self._tokens = _TokenLists(documents)

    def __len__(self) -> int:
        return len(self._document)

    @property
    def num_documents(self) -> int:
        """Of how many documents there are windows."""
        return int(self._document[-1]) + 1 if len(self) else 0

    def __iter__(self) -> Iterator[dict]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: int | str):
        """An example by its number; `"length"` gives the tokens of the document of each, (N,)."""
        if key == "length":
            return self._length
        return {"input_ids": self._tokens[self._document[key]], "window": int(self._window[key])}


class _TokenLists:
    """The column `input_ids` of a data set as arrays, without the cost of a whole example for each."""

    def __init__(self, dataset: Dataset):
        column = dataset.with_format("arrow")["input_ids"][:]
        chunks = column.chunks if hasattr(column, "chunks") else [column]
        self._values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        place = row - (self._ends[chunk - 1] if chunk else 0)
        start, end = self._offsets[chunk][place : place + 2]
        return self._values[chunk][start:end]


class TextsWithSteps(torch.utils.data.Dataset):
    """A dataset with keys (step, row) beside its own: the example of such a key carries its `step`.

    Args:
        dataset: Map-style.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.dataset)

    def __getitem__(self, key):
        if not isinstance(key, tuple):
            return self.dataset[key]
        step, row = key
        return {**self.dataset[row], "step": step}


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Order of one pass in which the texts of a batch are about equally long and batches come at random.

    Texts are shuffled, cut into pools of `pool_batches` batches, sorted by length within each pool, cut into batches,
    and the batches shuffled. The order is a pure function of (seed, epoch): unlike the sampler of transformers of the
    same name it draws from no running generator, so that a resumed run sees the same order.

    Args:
        lengths: Tokens of each text.
        batch_size: Texts of a batch of one process.
        seed: Seed of the order.
        pool_batches: Batches that are sorted together: more pad less and are less random.
        texts_per_step: If given, the sampler yields (step, row) for [`TextsWithSteps`] instead of rows: texts of one
            optimizer step of all processes and accumulated batches together. The step follows from epoch and place, so
            that workers, ranks and a resume see the same. Of the texts that accelerate repeats to fill the last
            batches of several ranks it is that of their first appearance; `dataloader_drop_last` may drop a step of a
            pass that is counted here.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        pool_batches: int = 50,
        texts_per_step: int | None = None,
    ):
        self.lengths = np.asarray(lengths[:])  # a column of the datasets library would be asked row by row
        self.batch_size = batch_size
        self.seed = seed
        self.pool_batches = pool_batches
        self.texts_per_step = texts_per_step
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Chooses the pass; called by the data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int] | Iterator[tuple[int, int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        pool = np.arange(len(order)) // (self.batch_size * self.pool_batches)
        order = order[np.lexsort((self.lengths[order], pool))]
        whole = len(order) // self.batch_size
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)
        rows = [*batches[generator.permutation(whole)].flatten().tolist(), *order[whole * self.batch_size :].tolist()]
        if self.texts_per_step is None:
            return iter(rows)
        first = self.epoch * -(-len(rows) // self.texts_per_step)
        return ((first + place // self.texts_per_step, row) for place, row in enumerate(rows))
