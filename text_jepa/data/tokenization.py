"""Tokenizers trained on a corpus, documents turned into token ids, and what the tokens of a tokenizer are."""

import itertools
import json
import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from text_jepa.cli import UsageError
from text_jepa.data.masking import DATA_VIEWS, View, count_windows


logger = logging.getLogger(__name__)

# Enough text for a stable vocabulary of some ten thousand pieces; more only costs time.
_TOKENIZER_TRAINING_CHARACTERS = 40_000_000

# Characters that a trained tokenizer knows, as in BERT's.
_ALPHABET_SIZE = 1_000

# Part of the cache's fingerprint: raise it whenever the same settings give other examples.
_TOKENIZATION_VERSION = 2

_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


# ---- tokenizer training ---------------------------------------------------------------------------------------------


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool = True,
    max_length: int = 512,
    kind: Literal["wordpiece", "bpe"] = "wordpiece",
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer with BERT's special tokens on texts; the same texts give the same tokenizer.

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
    texts = list(_limit_characters(texts, _TOKENIZER_TRAINING_CHARACTERS))
    if not any(text.strip() for text in texts):
        raise UsageError("the corpus holds no text to train a tokenizer on")
    train = {"wordpiece": _train_wordpiece, "bpe": _train_bpe}[kind]
    tokenizer = train(texts, vocab_size, special, lowercase)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **_SPECIAL_TOKENS)


def _train_wordpiece(texts: list[str], vocab_size: int, special: list[str], lowercase: bool) -> Tokenizer:
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet_of(trained.normalizer.normalize_str(text) for text in texts)
    # The trainer numbers the inner characters in the order of a hash table, and breaks ties by number: naming them
    # beforehand, and never cutting the alphabet between equals, makes the vocabulary the same in every run.
    inner = [f"##{character}" for character in alphabet]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(special) + 2 * len(alphabet)),
        special_tokens=special + alphabet + inner,
        limit_alphabet=len(alphabet),
        show_progress=False,
        min_frequency=2,
    )
    trained.train_from_iterator(texts, trainer)
    # In a second tokenizer with the same vocabulary, the characters are ordinary tokens again.
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = trained.normalizer
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _alphabet_of(texts: Iterable[str]) -> list[str]:
    """The most frequent characters, sorted; those as rare as the first one beyond the limit are left out."""
    characters = Counter(itertools.chain.from_iterable(texts))
    ranked = [(character, count) for character, count in characters.most_common() if not character.isspace()]
    rarest = 0
    if len(ranked) > _ALPHABET_SIZE:
        rarest = ranked[_ALPHABET_SIZE][1]
    return sorted(character for character, count in ranked if count > rarest)


def _train_bpe(texts: list[str], vocab_size: int, special: list[str], lowercase: bool) -> Tokenizer:
    steps = [normalizers.NFC()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(steps)
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


def _limit_characters(texts: Iterable[str | None], characters: int) -> Iterator[str]:
    for text in texts:
        if not _check_text(text):
            continue
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _check_text(text: Any) -> str:
    """The text of a document, "" for `None`; a stream may hold anything else in its place, which is an error."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UsageError(
            f"the corpus holds {type(text).__name__} {str(text)[:40]!r} where a text is expected; remove it"
        )
    return text


# ---- documents to examples ------------------------------------------------------------------------------------------


class DocumentCount:
    """Documents that a stream has read, and those that were left out, in this process and its workers together.

    A stream is read ahead of training, and again in each epoch: a document that comes twice counts twice.
    """

    def __init__(self):
        self._shared = multiprocessing.Array("q", 2)

    def add(self, read: int, left_out: int) -> None:
        with self._shared:
            self._shared[0] += read
            self._shared[1] += left_out

    @property
    def read(self) -> int:
        return self._shared[0]

    @property
    def left_out(self) -> int:
        return self._shared[1]


def tokenize_texts(
    splits: DatasetDict | IterableDatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    view: View | None = None,
    min_length: int = 2,
    num_proc: int | None = None,
    overwrite_cache: bool = False,
    count: DocumentCount | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Cuts documents into texts: examples with `input_ids` and `length`, special tokens included.

    Documents of fewer than two tokens hold nothing to learn and are left out, as are those shorter than `min_length`
    and those without a view. The result is cached by corpus, tokenizer and settings.

    Args:
        splits: Splits with a column `text`, and `view` for the view `"column"`.
        tokenizer: Any tokenizer with a padding token.
        max_length: Longest example in tokens, special tokens included; longer documents are cut, see `cut_points`.
        view: `"column"`: every text of a document has the whole column as its `view_input_ids`, cut at `max_length`.
            `"next_sentence"`: the view of a text is the text that follows in its document; the last text has none and
            is left out. Other views are made by the collator.
        min_length: Least number of tokens of a document.
        num_proc: Processes; the tokenizers library uses all cores with one.
        overwrite_cache: Tokenize again.
        count: Counts the training documents of a stream while it is read; those of other corpora are logged at once.

    Raises:
        UsageError: The tokenizer has no padding token, `max_length` has no room, or no document is left.
    """
    _check_padding_token(tokenizer)
    before, after = special_tokens_around(tokenizer)
    room = max_length - len(before) - len(after)
    if room < 3:
        raise UsageError(f"--max_length {max_length}: leaves no room for text beside the special tokens; raise it")
    cutter = _Cutter(tokenizer, room, before, after, min_length)

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        documents = cutter.cut(batch["text"])
        if view == "next_sentence":
            texts = [pieces[:-1] for pieces in documents]
            following = [pieces[1:] for pieces in documents]
            return _to_columns(texts, following)
        if view == "column":
            views = cutter.cut_ends(batch["view"])
            texts = [pieces if own else [] for pieces, own in zip(documents, views, strict=True)]
            repeated = [[own] * len(pieces) for pieces, own in zip(texts, views, strict=True)]
            return _to_columns(texts, repeated)
        return _to_columns(documents)

    plan = _Plan(tokenize, tokenizer, min_length, view, num_proc, overwrite_cache)
    # "sentence" is in the names of existing caches, from when documents could be cut in another way too.
    plan.settings = [max_length, "sentence"]
    if view in DATA_VIEWS:
        plan.settings.append(view)
    if min_length > 2:
        plan.settings.append(min_length)
    if view == "next_sentence":
        plan.wanted = f"of more than one text of {max_length} tokens; lower --max_length"
    elif view == "column":
        plan.wanted += " with a view"
        plan.columns.append("view")
    return _tokenize_splits(splits, plan, count)


def tokenize_documents(
    splits: DatasetDict | IterableDatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    window_length: int,
    max_document_length: int = 512,
    min_length: int = 2,
    num_proc: int | None = None,
    overwrite_cache: bool = False,
    count: DocumentCount | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Tokenizes whole documents: examples with `input_ids` and `length`, without special tokens.

    [`DocumentWindows`] and the collator make windows of them. A stream, which has no length, has one example for each
    window: the document and the number of the `window`.

    Args:
        splits: Splits with a column `text`.
        tokenizer: Any tokenizer with a padding token.
        window_length: Longest window in tokens, special tokens included.
        max_document_length: Longest document in tokens; longer ones are cut at the ends of sentences.
        min_length, num_proc, overwrite_cache, count: See `tokenize_texts`.

    Raises:
        UsageError: The tokenizer has no padding token, `window_length` has no room, or no document is left.
    """
    _check_padding_token(tokenizer)
    before, after = special_tokens_around(tokenizer)
    window_room = window_length - len(before) - len(after)
    if window_room < 4:
        raise UsageError(
            f"--max_length {window_length}: leaves no room for windows of a document beside the special tokens; "
            "raise it"
        )
    cutter = _Cutter(tokenizer, max_document_length, [], [], min_length)

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        return _to_columns(cutter.cut(batch["text"]))

    def repeat_for_windows(batch: dict[str, list]) -> dict[str, list]:
        counts = count_windows(batch["length"], window_room)
        rows = np.repeat(np.arange(len(counts)), counts)
        columns = {name: [values[row] for row in rows] for name, values in batch.items()}
        columns["window"] = [number for windows in counts for number in range(windows)]
        return columns

    plan = _Plan(tokenize, tokenizer, min_length, None, num_proc, overwrite_cache)
    plan.settings = [window_length, "sentence"]
    if min_length > 2:
        plan.settings.append(min_length)
    plan.settings += ["documents", max_document_length]
    examples = _tokenize_splits(splits, plan, count)
    if isinstance(examples, IterableDatasetDict):
        return examples.map(repeat_for_windows, batched=True)
    return examples


def log_skipped_documents(split: str, skipped: int, documents: int, min_length: int, view: View | None) -> None:
    """Logs how many documents of a split were left out, if any, and why; see `tokenize_texts`."""
    if not skipped:
        return
    why = f"of fewer than {max(min_length, 2)} tokens"
    if view == "column":
        why += " or no view"
    elif view == "next_sentence":
        why += ", or of a single text"
    logger.info(f"{split}: {skipped:,} of {documents:,} documents are left out: {why}")


def cut_points(length: int, room: int, sentence_ends: np.ndarray) -> list[int]:
    """Where to cut a document: [0, …, length], no piece longer than `room`, none of a single token.

    A piece ends behind the last sentence that fits, or at full length if that would leave it less than half full.

    Args:
        length: Tokens of the document, at least 2.
        room: Longest piece, at least 3.
        sentence_ends: Sorted positions behind which a sentence ends; empty to cut at full length only.
    """
    cuts = [0]
    while length - cuts[-1] > room:
        start = cuts[-1]
        cut = start + room
        last = np.searchsorted(sentence_ends, cut, side="right") - 1
        if last >= 0 and sentence_ends[last] - start > room // 2:
            cut = int(sentence_ends[last])
        if length - cut == 1:
            cut -= 1
        cuts.append(cut)
    return [*cuts, length]


class _Cutter:
    """Tokenizes documents and cuts them into pieces of limited length.

    Args:
        tokenizer: Any tokenizer.
        room: Longest piece in tokens, without special tokens.
        before: Special tokens before each piece.
        after: Special tokens behind each piece.
        min_length: Documents of fewer tokens have no piece.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        room: int,
        before: list[int],
        after: list[int],
        min_length: int,
    ):
        self.tokenizer = tokenizer
        self.room = room
        self.before = before
        self.after = after
        self.min_length = max(min_length, 2)
        self.ends_sentence = sentence_end_table(tokenizer)

    def cut(self, texts: Sequence[str | None]) -> list[list[list[int]]]:
        """The pieces of each document."""
        return [self._cut_document(ids) for ids in self._tokenize(texts)]

    def cut_ends(self, texts: Sequence[str | None]) -> list[list[int] | None]:
        """Each text with its end cut off, if it is too long for one piece; `None` for an empty one."""
        pieces = []
        for ids in self._tokenize(texts):
            pieces.append(self._add_special_tokens(ids[: self.room]) if ids else None)
        return pieces

    def _tokenize(self, texts: Sequence[str | None]) -> list[list[int]]:
        return self.tokenizer(
            [_check_text(text) for text in texts],
            add_special_tokens=False,
            split_special_tokens=True,  # a literal "[MASK]" is text
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def _cut_document(self, ids: list[int]) -> list[list[int]]:
        if len(ids) < self.min_length:
            return []
        cuts = [0, len(ids)]
        if len(ids) > self.room:
            sentence_ends = np.flatnonzero(self.ends_sentence[ids]) + 1
            cuts = cut_points(len(ids), self.room, sentence_ends)
        return [self._add_special_tokens(ids[start:end]) for start, end in itertools.pairwise(cuts)]

    def _add_special_tokens(self, ids: list[int]) -> list[int]:
        return self.before + ids + self.after


def _to_columns(documents: list[list[list[int]]], views: list[list[list[int]]] | None = None) -> dict[str, list]:
    """Pieces of documents, and perhaps the view of each, as columns of examples.

    The column `begins` marks the first example of each document, so that those left out can be counted.
    """
    texts = list(itertools.chain.from_iterable(documents))
    columns = {
        "input_ids": texts,
        "length": [len(text) for text in texts],
        "begins": [number == 0 for pieces in documents for number in range(len(pieces))],
    }
    if views is not None:
        columns["view_input_ids"] = list(itertools.chain.from_iterable(views))
    return columns


@dataclass
class _Plan:
    """How the documents of all splits become examples.

    Args:
        tokenize: Columns of documents -> columns of examples, see `_to_columns`.
        tokenizer, min_length, view, num_proc, overwrite_cache: See `tokenize_texts`.
        settings: What tells the examples from others of the same corpus and tokenizer, for the cache.
        columns: Columns of the documents, which examples do not keep.
        wanted: What a document has to be, for an error.
    """

    tokenize: Callable[[dict[str, list]], dict[str, list]]
    tokenizer: PreTrainedTokenizerBase
    min_length: int
    view: View | None
    num_proc: int | None
    overwrite_cache: bool

    def __post_init__(self):
        self.settings = []
        self.columns = ["text"]
        self.wanted = f"of at least {max(self.min_length, 2)} tokens"

    def fingerprint(self, documents: Dataset) -> str:
        # The library's own fingerprint pickles the tokenizer, whose state changes with use.
        identity = _tokenizer_identity(self.tokenizer)
        return Hasher.hash([documents._fingerprint, _TOKENIZATION_VERSION, identity, *self.settings])


def _tokenize_splits(
    splits: DatasetDict | IterableDatasetDict, plan: _Plan, count: DocumentCount | None
) -> DatasetDict | IterableDatasetDict:
    if isinstance(splits, IterableDatasetDict):
        streams = {}
        for split, documents in splits.items():
            streams[split] = _tokenize_stream(split, documents, plan, count if split == "train" else None)
        return IterableDatasetDict(streams)
    datasets = {split: _tokenize_dataset(split, documents, plan) for split, documents in splits.items()}
    return DatasetDict(datasets).with_format("numpy")


def _tokenize_dataset(split: str, documents: Dataset, plan: _Plan) -> Dataset:
    examples = documents.map(
        plan.tokenize,
        batched=True,
        remove_columns=plan.columns,
        num_proc=plan.num_proc,
        load_from_cache_file=not plan.overwrite_cache,
        new_fingerprint=plan.fingerprint(documents),
        desc=f"Tokenizing {split}",
    )
    _check_examples(split, examples, plan)
    begins = examples.with_format("numpy")["begins"][:]
    skipped = len(documents) - int(np.sum(begins))
    log_skipped_documents(split, skipped, len(documents), plan.min_length, plan.view)
    return examples.remove_columns("begins")


def _tokenize_stream(
    split: str, documents: IterableDataset, plan: _Plan, count: DocumentCount | None
) -> IterableDataset:
    def tokenize_and_count(batch: dict[str, list]) -> dict[str, list]:
        examples = plan.tokenize(batch)
        read = len(batch["text"])
        count.add(read, read - sum(examples["begins"]))
        return examples

    examples = documents.map(plan.tokenize, batched=True, remove_columns=plan.columns)
    _check_examples(split, examples, plan)
    if count is not None:  # not before, for the check reads documents too
        examples = documents.map(tokenize_and_count, batched=True, remove_columns=plan.columns)
    return examples.remove_columns("begins")


def _check_examples(split: str, examples: Dataset | IterableDataset, plan: _Plan) -> None:
    if next(iter(examples), None) is None:
        raise UsageError(f"the {split} part of the corpus holds no document {plan.wanted}")


def _check_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None:
        raise UsageError("the tokenizer has no padding token; add one, or train a tokenizer on the corpus")


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> Any:
    """What decides on the token ids of a text."""
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, str(tokenizer.init_kwargs), sorted(tokenizer.get_vocab().items())]
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("padding", "truncation")}


# ---- what the tokens of a tokenizer are -----------------------------------------------------------------------------


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a single text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    before = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:before], full[before + len(bare) :]


def vocabulary(tokenizer: Any) -> list[str]:
    """All tokens by id, with an empty string where a vocabulary has a gap."""
    ids = tokenizer.get_vocab()
    tokens = [""] * (max(ids.values()) + 1)
    for token, index in ids.items():
        tokens[index] = token
    return tokens


def sentence_end_table(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(V,) boolean: tokens behind which a sentence may end, by their last character."""
    marks = tuple(".!?。！？")
    return np.array([token[-1:] in marks for token in vocabulary(tokenizer)])


def word_start_table(tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """For each token of the vocabulary: may it continue a word, and may a word be continued behind it?

    WordPiece marks a continuation by `##`. Byte-level BPE (`Ġ`) and SentencePiece (`▁`) mark the beginning after a
    blank instead; there a token without the mark continues a word where letters or digits meet. The mark that most
    tokens carry decides; in a vocabulary with none of them every token is a word.

    Returns:
        Two boolean arrays (V,).
    """
    tokens = vocabulary(tokenizer)
    uses = {mark: sum(token.startswith(mark) for token in tokens) for mark in ("##", "Ġ", "▁")}
    mark = max(uses, key=uses.get)
    if not uses[mark]:
        return np.zeros(len(tokens), bool), np.zeros(len(tokens), bool)
    is_marked = np.array([token.startswith(mark) for token in tokens])
    if mark == "##":
        return is_marked, np.ones(len(tokens), bool)
    # As text, for byte-level BPE writes blanks, line breaks and the bytes of other scripts as letters of its own.
    texts = [tokenizer.convert_tokens_to_string([token]) for token in tokens]
    continues = np.array([_is_inside_word(text[:1]) for text in texts])
    is_continued = np.array([_is_inside_word(text[-1:]) for text in texts])
    is_mark_alone = np.array(tokens) == mark
    return continues & ~is_marked, is_continued | is_mark_alone


def _is_inside_word(character: str) -> bool:
    # A part of a character becomes the replacement character and stays with its other parts.
    return character.isalnum() or character == "\ufffd"
