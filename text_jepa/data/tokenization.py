"""Trains tokenizers, tokenizes documents, and analyses the tokens of a vocabulary."""

import itertools
import json
import logging
import multiprocessing
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.fingerprint import Hasher
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from text_jepa.cli import UsageError
from text_jepa.data.reading import Source, read_rows
from text_jepa.data.scripts import (
    belongs_to_the_one_before,
    first_character,
    is_unspaced,
    last_character,
    may_be_inside_word,
    sentence_ends,
)
from text_jepa.data.strategies import DATA_VIEWS, View
from text_jepa.data.windows import SHORTEST_WINDOW, count_windows


logger = logging.getLogger(__name__)

# Enough text for a stable vocabulary of about ten thousand tokens; more text only takes more time.
_TOKENIZER_TRAINING_CHARACTERS = 40_000_000

# Number of characters in the alphabet of a trained tokenizer, as for BERT, unless the share of all other characters in
# the texts is larger than `_RARE_CHARACTERS`: English uses fewer than 1,000 characters, Chinese several thousand.
_ALPHABET_SIZE = 1_000
_RARE_CHARACTERS = 0.0005

# WordPiece does not tokenize longer words. Longer runs, such as DNA or a clause without spaces, are split beforehand.
_LONGEST_WORD = 120
_WORD_PARTS = Regex(r".{1,100}\p{M}{0,20}")

# Runs that are separate words: emoji, kana, and scripts without spaces, among others.
_RUNS = Regex(
    r"\p{So}[\p{So}\x{1F3FB}-\x{1F3FF}\x{200D}\x{FE0F}\x{20E3}]*"
    r"|[\p{Katakana}ー]+|\p{Hiragana}+|\p{Thai}+|\p{Lao}+|\p{Khmer}+|\p{Myanmar}+|\p{Tibetan}+"
)

# Characters that separate words: vertical tab, form feed, the separators of ASCII and next line; and the space without
# width in scripts that write no other.
_BREAKS = Regex(r"[\x0B\x0C\x1C-\x1F\x{85}]|(?<=[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])\x{200B}")

# Control and format characters, except for the two joiners, which distinguish words in Persian and Hindi.
_MEANINGLESS = Regex(r"[\p{Cc}\p{Cf}\x{FFFD}&&[^\t\n\r\x{200C}\x{200D}]]")

# The word pattern of GPT-2, extended by the marks that belong to letters, such as vowels in Hindi and Thai. Long runs
# are divided, because training on a single word of a million letters would take days.
_BPE_WORDS = Regex(
    r"'(?:s|t|re|ve|m|ll|d)| ?[\p{L}\p{M}\x{200C}\x{200D}]{1,100}\p{M}{0,20}| ?\p{N}{1,100}"
    r"| ?[^\s\p{L}\p{M}\p{N}\x{200C}\x{200D}]{1,100}|\s{1,100}(?!\S)|\s{1,100}"
)

# Hook, horn and dot below, which European languages do not use. Where they are frequent, as in Vietnamese and Yoruba,
# the marks on Latin letters are tones and distinguish words.
_TONE_MARKS = frozenset("\u0309\u031b\u0323")
_FREQUENT_TONES = 0.01

# A letter of Linear A, which nobody can read, so that texts and vocabularies have none.
UNKNOWN_LETTER = "\U00010600"

# Largest number of characters and of documents that are tokenized at once: a token takes a hundred bytes meanwhile.
_CHARACTERS_AT_ONCE = 4_000_000
_DOCUMENTS_AT_ONCE = 1_000

# Part of the cache's fingerprint: increase it whenever the same settings give other examples.
_TOKENIZATION_VERSION = 3

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
    """Trains a tokenizer with BERT's special tokens; the same texts give the same tokenizer.

    Args:
        texts: Documents. Only the first 40 million characters are read.
        vocab_size: Number of tokens, including special tokens. It is increased if the alphabet needs more.
        lowercase: Whether to fold case. WordPiece also removes accents of Latin, Greek and Cyrillic letters, unless
            they are tones.
        max_length: `model_max_length` of the tokenizer.
        kind: `"wordpiece"` (as in BERT, without the rarest characters) or `"bpe"` (byte-level, as in GPT-2, with all
            characters).

    Raises:
        UsageError: There is no text, or `vocab_size` is too small.
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
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))
    trained.normalizer = _wordpiece_normalizer(texts, lowercase)
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Split(_RUNS, "isolated"),
            pre_tokenizers.Split(_WORD_PARTS, "isolated"),
        ]
    )
    alphabet = _alphabet_of(trained.normalizer.normalize_str(text) for text in texts)
    # The trainer numbers the inner characters in the order of a hash table and breaks ties by number. Listing them
    # beforehand, and including all or none of equally frequent characters, makes the vocabulary deterministic.
    inner = [f"##{character}" for character in alphabet if not _is_ideograph(character)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(special) + len(alphabet) + len(inner)),
        special_tokens=special + alphabet + inner,
        limit_alphabet=len(alphabet),
        show_progress=False,
        min_frequency=2,
    )
    trained.train_from_iterator(texts, trainer)
    # The characters were special tokens; in a new tokenizer with the same vocabulary they are ordinary tokens.
    vocab = trained.get_vocab()
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))
    tokenizer.normalizer = trained.normalizer
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _wordpiece_normalizer(texts: list[str], lowercase: bool) -> normalizers.Normalizer:
    """BERT's normalizer, except that only accents of Latin, Greek and Cyrillic letters are removed."""
    steps = [normalizers.Replace(_BREAKS, " "), normalizers.Replace(_MEANINGLESS, ""), normalizers.NFC()]
    if lowercase:
        steps += _accent_steps(texts)
    bert = normalizers.BertNormalizer(
        clean_text=False,
        handle_chinese_chars=True,
        strip_accents=False,
        lowercase=lowercase,
    )
    return normalizers.Sequence([*steps, bert])


def _accent_steps(texts: list[str]) -> list[normalizers.Normalizer]:
    """Steps that remove accents from composed text."""
    # Cyrillic letters stay composed, because й is a letter; the remaining marks are marks of stress.
    stress = normalizers.Replace(Regex(r"(?<=\p{Cyrillic})\p{Mn}+"), "")
    scripts = r"\p{Greek}" if _has_tones(texts) else r"[\p{Latin}\p{Greek}]"
    accents = normalizers.Replace(Regex(rf"(?<={scripts})\p{{Mn}}+"), "")
    return [
        normalizers.Replace("ё", "е"),
        normalizers.Replace("Ё", "Е"),
        stress,
        normalizers.NFD(),
        accents,
        normalizers.NFC(),
    ]


def _has_tones(texts: list[str]) -> bool:
    """Whether the marks on Latin letters are tones, see `_TONE_MARKS`."""
    characters = Counter(itertools.chain.from_iterable(texts))
    letters = 0
    tones = 0
    for character, count in characters.items():
        parts = unicodedata.normalize("NFD", character)
        if parts[0].isalpha() and parts[0].isascii():
            letters += count
        if _TONE_MARKS.intersection(parts):
            tones += count
    return tones > _FREQUENT_TONES * letters


def _is_ideograph(character: str) -> bool:
    """Whether BERT's normalizer puts spaces around the character."""
    normalizer = normalizers.BertNormalizer(False, True, False, False)
    return normalizer.normalize_str(character) != character


def _alphabet_of(texts: Iterable[str]) -> list[str]:
    """The most frequent characters, sorted; equally frequent characters are all included or all excluded."""
    counted = Counter(itertools.chain.from_iterable(texts))
    characters = {character: count for character, count in counted.items() if not character.isspace()}
    num_with_count = Counter(characters.values())
    most_excluded = _RARE_CHARACTERS * sum(characters.values())
    excluded = 0
    included = len(characters)
    highest_excluded = 0
    for count, number in sorted(num_with_count.items()):
        excluded += count * number
        included -= number
        if excluded > most_excluded or included < _ALPHABET_SIZE:
            break
        highest_excluded = count
    return sorted(character for character, count in characters.items() if count > highest_excluded)


def _train_bpe(texts: list[str], vocab_size: int, special: list[str], lowercase: bool) -> Tokenizer:
    # A word at the beginning of a text is the same token as after a space.
    steps = [normalizers.NFC(), normalizers.Prepend(" ")]
    if lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_BPE_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
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
    """Returns the text of a document, "" for `None`; any other value, which a stream may contain, is an error."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UsageError(
            f"the corpus holds {type(text).__name__} {str(text)[:40]!r} where a text is expected; remove it"
        )
    return text


# ---- documents to examples ------------------------------------------------------------------------------------------


class DocumentCount:
    """Counts the documents of a stream that were read and those that were left out, including worker processes.

    A stream is read ahead of training, and again in each epoch: a document that is read twice counts twice.
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
    sources: Mapping[str, Source] | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Tokenizes documents and divides them into texts: examples with `input_ids` and `length`.

    Documents with fewer than two tokens are left out, as are those shorter than `min_length` and those without a view.
    The result is cached by corpus, tokenizer and settings.

    Args:
        splits: Splits with a column `text`, and `view` for the view `"column"`.
        tokenizer: Any tokenizer with a padding token.
        max_length: Longest example in tokens, including special tokens. Longer documents are divided, see
            `cut_points`.
        view: `"column"`: every text of a document has the whole column as its `view_input_ids`, truncated to
            `max_length`. `"next_sentence"`: the view of a text is the next text of its document; the last text has no
            view and is left out. Other views are made by the collator.
        min_length: Smallest number of tokens of a document.
        num_proc: Number of processes. With one process, the tokenizers library already uses all cores.
        overwrite_cache: Whether to ignore the cache.
        count: Counts the training documents of a stream while it is read; those of other corpora are logged at once.
        sources: Where each split is read from, for error messages of a stream that cannot be read.

    Raises:
        UsageError: The tokenizer has no padding token, `max_length` is too small, no document is left, or a stream
            with `sources` cannot be read.
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

    # "sentence" keeps existing caches valid: documents could once be divided in another way, too.
    settings = [max_length, "sentence"]
    if view in DATA_VIEWS:
        settings.append(view)
    if min_length > 2:
        settings.append(min_length)
    columns = ["text"]
    wanted = _wanted_length(min_length)
    if view == "next_sentence":
        wanted = f"of more than one text of {max_length} tokens; lower --max_length"
    elif view == "column":
        columns.append("view")
        wanted += " with a view"
    plan = _Plan(
        tokenize=tokenize,
        tokenizer=tokenizer,
        settings=settings,
        columns=columns,
        wanted=wanted,
        min_length=min_length,
        view=view,
        num_proc=num_proc,
        overwrite_cache=overwrite_cache,
        sources=sources or {},
    )
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
    sources: Mapping[str, Source] | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Tokenizes whole documents: examples with `input_ids` and `length`, without special tokens.

    [`DocumentWindows`] and the collator divide them into windows. A stream has no length; it has one example for each
    window instead: the document and the index of the `window`.

    Args:
        splits: Splits with a column `text`.
        tokenizer: Any tokenizer with a padding token.
        window_length: Longest window in tokens, including special tokens.
        max_document_length: Longest document in tokens. Longer documents are divided at the ends of sentences.
        min_length, num_proc, overwrite_cache, count, sources: See `tokenize_texts`.

    Raises:
        UsageError: The tokenizer has no padding token, `window_length` is too small, no document is left, or a stream
            with `sources` cannot be read.
    """
    _check_padding_token(tokenizer)
    before, after = special_tokens_around(tokenizer)
    window_room = window_length - len(before) - len(after)
    if window_room < SHORTEST_WINDOW:
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

    settings = [window_length, "sentence"]
    if min_length > 2:
        settings.append(min_length)
    settings += ["documents", max_document_length]
    plan = _Plan(
        tokenize=tokenize,
        tokenizer=tokenizer,
        settings=settings,
        columns=["text"],
        wanted=_wanted_length(min_length),
        min_length=min_length,
        view=None,
        num_proc=num_proc,
        overwrite_cache=overwrite_cache,
        sources=sources or {},
    )
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
    """Computes the borders of the pieces of a document: [0, …, length].

    No piece is longer than `room`, and none is a single token. A piece ends after the last sentence that fits, or at
    full length if it would otherwise be less than half full.

    Args:
        length: Number of tokens of the document, at least 2.
        room: Longest piece in tokens, at least 3.
        sentence_ends: Sorted positions after which a sentence ends; empty to divide at full length only.
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
    """Tokenizes documents and divides them into pieces of limited length.

    Args:
        tokenizer: Any tokenizer.
        room: Longest piece in tokens, without special tokens.
        before: Special tokens before each piece.
        after: Special tokens after each piece.
        min_length: Smallest number of tokens of a document; shorter documents have no pieces.
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
        self.bytes_of_token = token_bytes(tokenizer)
        self.whole_tokens = _WholeTokens(tokenizer)

    def cut(self, texts: Sequence[str | None]) -> list[list[list[int]]]:
        """The pieces of each document."""
        return [self._cut_document(ids) for ids in self._tokenize(texts)]

    def cut_ends(self, texts: Sequence[str | None]) -> list[list[int] | None]:
        """Each text as one piece, truncated at the end; `None` for an empty text."""
        pieces = []
        for ids in self._tokenize(texts):
            pieces.append(self._add_special_tokens(ids[: self.room]) if ids else None)
        return pieces

    def _tokenize(self, texts: Sequence[str | None]) -> Iterator[list[int]]:
        for group in groups_of_texts(map(_check_text, texts)):
            yield from self.whole_tokens.tokenize(group)

    def _cut_document(self, ids: list[int]) -> list[list[int]]:
        if len(ids) < self.min_length:
            return []
        cuts = [0, len(ids)]
        if len(ids) > self.room:
            cuts = cut_points(len(ids), self.room, find_sentence_ends(ids, self.bytes_of_token))
        return [self._add_special_tokens(ids[start:end]) for start, end in itertools.pairwise(cuts)]

    def _add_special_tokens(self, ids: list[int]) -> list[int]:
        return self.before + ids + self.after


def groups_of_texts(texts: Iterable[str], characters: int = _CHARACTERS_AT_ONCE) -> Iterator[list[str]]:
    """Groups adjacent texts: at most 1,000, with at most this many characters in a group of more than one text."""
    group = []
    size = 0
    for text in texts:
        is_full = len(group) == _DOCUMENTS_AT_ONCE or size + len(text) > characters
        if group and is_full:
            yield group
            group = []
            size = 0
        group.append(text)
        size += len(text)
    if group:
        yield group


class _WholeTokens:
    """Tokenizes texts so that special tokens added by the user are single tokens.

    The tokenizer's own special tokens, such as a literal "[MASK]" in a text, are tokenized as text.

    Args:
        tokenizer: Any tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        own = {token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
        self.tokenizer = tokenizer
        self.added = {}
        for index, token in tokenizer.added_tokens_decoder.items():
            if token.special and token.content not in own:
                self.added[token.content] = index
        self.pattern = None
        if not self.added:
            return
        if tokenizer.is_fast:
            self.tokenizer = _with_ordinary_tokens(tokenizer, self.added)
        else:
            longest_first = sorted(self.added, key=len, reverse=True)
            alternatives = "|".join(re.escape(token) for token in longest_first)
            self.pattern = re.compile(f"({alternatives})")

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens around it."""
        if self.pattern is None:
            return self._tokenize(texts)
        return [self._tokenize_between(text) for text in texts]

    def _tokenize_between(self, text: str) -> list[int]:
        ids = []
        for part in self.pattern.split(text):
            if part in self.added:
                ids.append(self.added[part])
            elif part:
                ids += self._tokenize([part])[0]
        return ids

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]


def _with_ordinary_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> PreTrainedTokenizerBase:
    """A copy of a fast tokenizer in which some special tokens are ordinary added tokens, which are never split."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in tokens
    twin = deepcopy(tokenizer)
    twin._tokenizer = Tokenizer.from_str(json.dumps(content))
    return twin


def _to_columns(documents: list[list[list[int]]], views: list[list[list[int]]] | None = None) -> dict[str, list]:
    """Converts pieces of documents, and optionally their views, to columns of examples.

    The column `begins` marks the first example of each document, so that documents left out can be counted.
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


def _wanted_length(min_length: int) -> str:
    return f"of at least {max(min_length, 2)} tokens"


@dataclass(frozen=True)
class _Plan:
    """How the documents of all splits are converted to examples.

    Args:
        tokenize: Converts columns of documents to columns of examples, see `_to_columns`.
        tokenizer: See `tokenize_texts`.
        settings: Settings that determine the examples beside corpus and tokenizer, for the cache.
        columns: Columns of the documents, which are removed.
        wanted: Description of the documents that are kept, for an error message.
        min_length, view, num_proc, overwrite_cache, sources: See `tokenize_texts`.
    """

    tokenize: Callable[[dict[str, list]], dict[str, list]]
    tokenizer: PreTrainedTokenizerBase
    settings: list[int | str]
    columns: list[str]
    wanted: str
    min_length: int
    view: View | None
    num_proc: int | None
    overwrite_cache: bool
    sources: Mapping[str, Source]

    def fingerprint(self, documents: Dataset) -> str:
        # The fingerprint of the library pickles the tokenizer, whose state changes with use.
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
        batch_size=_rows_at_once(documents),
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


def _rows_at_once(documents: Dataset) -> int:
    """Number of documents whose tokens are in memory together, fewer if they are long."""
    mean_size = documents.data.nbytes / max(len(documents.data), 1)
    fitting = int(_CHARACTERS_AT_ONCE / max(mean_size, 1))
    return min(max(fitting, 1), _DOCUMENTS_AT_ONCE)


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
    if count is not None:  # only now, because the check reads documents, too
        examples = documents.map(tokenize_and_count, batched=True, remove_columns=plan.columns)
    return examples.remove_columns("begins")


def _check_examples(split: str, examples: Dataset | IterableDataset, plan: _Plan) -> None:
    rows = iter(examples)
    if split in plan.sources:
        rows = read_rows(examples, plan.sources[split])
    if next(rows, None) is None:
        raise UsageError(f"the {split} part of the corpus holds no document {plan.wanted}")


def _check_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None:
        raise UsageError("the tokenizer has no padding token; add one, or train a tokenizer on the corpus")


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The state of a tokenizer that determines the token ids of a text."""
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, str(tokenizer.init_kwargs), sorted(tokenizer.get_vocab().items())]
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("padding", "truncation")}


# ---- tokens of a vocabulary -----------------------------------------------------------------------------------------


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Finds the ids that the tokenizer adds before and after a single text.

    Raises:
        UsageError: The tokenizer recognizes none of its own tokens in a text.
    """
    # Not every vocabulary has the letter "a": the tokens of the vocabulary are tried next.
    own = (tokenizer.convert_tokens_to_string([token]) for token in vocabulary(tokenizer) if token)
    for text in itertools.chain(["a"], own):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not bare or bare[0] in tokenizer.all_special_ids:
            continue
        full = tokenizer(text)["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            end = start + len(bare)
            if full[start:end] == bare:
                return full[:start], full[end:]
    raise UsageError("the tokenizer finds none of its tokens in a text; name another with --tokenizer_name")


def vocabulary(tokenizer: Any) -> list[str]:
    """All tokens by id, with an empty string where a vocabulary has a gap."""
    ids = tokenizer.get_vocab()
    tokens = [""] * (max(ids.values()) + 1)
    for token, index in ids.items():
        tokens[index] = token
    return tokens


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The UTF-8 bytes that each token of the vocabulary stands for, which may be a part of a character."""
    mark = _word_mark(tokenizer)
    return [_bytes_of_token(token, mark) for token in vocabulary(tokenizer)]


def find_sentence_ends(ids: Sequence[int], bytes_of_token: Sequence[bytes]) -> np.ndarray:
    """Finds the positions (sorted, in tokens) after which a sentence may end; its mark may be several tokens."""
    parts = [bytes_of_token[index] for index in ids]
    borders = np.cumsum([len(part) for part in parts])
    ends = sentence_ends(b"".join(parts))
    return np.flatnonzero(np.isin(borders, ends)) + 1


class WordTable(NamedTuple):
    """Whether each token of a vocabulary continues a word: boolean arrays (V,).

    Args:
        joins: The token continues the word of the previous token, if that can be continued.
        is_joined: The token can be continued.
        clings: The token always continues the word: it is a mark, or the rest of a character.
        unspaced: The token begins with a letter of a script without spaces.
        is_blank: The token is nothing but the mark of a space.
    """

    joins: np.ndarray
    is_joined: np.ndarray
    clings: np.ndarray
    unspaced: np.ndarray
    is_blank: np.ndarray

    def continues(self, before: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Whether tokens `ids` belong to the same word as the tokens `before` them; all arrays have the same shape."""
        joined = self.joins[ids] & self.is_joined[before]
        behind_blank = self.unspaced[ids] & self.is_blank[before]
        return self.clings[ids] | joined | behind_blank


def word_start_table(tokenizer: PreTrainedTokenizerBase) -> WordTable:
    """Finds the tokens of a vocabulary that continue a word.

    WordPiece marks a continuation by `##`. Byte-level BPE (`Ġ`) and SentencePiece (`▁`) mark the beginning of a word
    after a space instead; a token without the mark continues a word where letters or digits meet. Other tokenizers
    mark tokens that are continued (`@@`, PhoBERT) or are not (`</w>`, CLIP). Every token is a word in a vocabulary
    without marks, and in scripts without spaces, where otherwise a clause would be one word.
    """
    tokens = vocabulary(tokenizer)
    mark = _word_mark(tokenizer)
    none = np.zeros(len(tokens), bool)
    if mark is None:
        return WordTable(none, none, none, none, none)
    texts = [_bytes_of_token(token, mark) for token in tokens]
    first = [first_character(text) for text in texts]
    last = [last_character(text) for text in texts]
    starts_unspaced = np.array([_is_unspaced(character) for character in first])
    ends_unspaced = np.array([_is_unspaced(character) for character in last])
    has_text = np.array([bool(text) for text in texts])
    clings = has_text & np.array([character is None or belongs_to_the_one_before(character) for character in first])
    if mark == "##":
        is_marked = np.array([token.startswith(mark) for token in tokens])
        return WordTable(
            joins=is_marked & ~starts_unspaced,
            is_joined=~ends_unspaced,
            clings=clings & is_marked,
            unspaced=none,
            is_blank=none,
        )
    if mark in ("@@", "</w>"):
        is_marked = np.array([token.endswith(mark) for token in tokens])
        is_continued = is_marked if mark == "@@" else ~is_marked
        return WordTable(
            joins=~starts_unspaced,
            is_joined=is_continued & ~ends_unspaced,
            clings=none,
            unspaced=none,
            is_blank=none,
        )
    is_blank = np.array(tokens) == mark
    starts_inside = np.array([character is not None and may_be_inside_word(character) for character in first])
    ends_inside = np.array([character is None or may_be_inside_word(character) for character in last])
    return WordTable(
        joins=starts_inside,
        is_joined=is_blank | ends_inside,
        clings=clings,
        unspaced=starts_unspaced,
        is_blank=is_blank,
    )


def _is_unspaced(character: str | None) -> bool:
    return character is not None and is_unspaced(character)


# Bytes that byte-level BPE writes unchanged; it writes the others as the characters after Latin-1.
_PRINTABLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE_BYTES}
for _number, _byte in enumerate(sorted(set(range(0x100)) - set(_PRINTABLE_BYTES))):
    _BYTE_OF_CHARACTER[chr(0x100 + _number)] = _byte

# A byte for which SentencePiece has no character.
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _bytes_of_token(token: str, mark: str | None) -> bytes:
    if mark == "Ġ" and all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    if mark == "▁":
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte:
            return bytes.fromhex(byte[1])
        token = token.replace("▁", " ")
    elif mark == "##" and token != "##":
        token = token.removeprefix("##")
    elif mark in ("@@", "</w>"):
        token = token.removesuffix(mark)
    return token.encode(errors="replace")


def _word_mark(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The mark of words in a vocabulary, see `word_start_table`; `None` if it has no mark."""
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        steps = json.dumps([content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")])
        if '"ByteLevel"' in steps:
            return "Ġ"
        if content["model"].get("type") == "WordPiece":
            return "##"
    tokens = vocabulary(tokenizer)
    uses = {mark: sum(token.startswith(mark) for token in tokens) for mark in ("##", "Ġ", "▁")}
    uses |= {mark: sum(token.endswith(mark) for token in tokens) for mark in ("@@", "</w>")}
    mark = max(uses, key=uses.get)
    return mark if uses[mark] else None
