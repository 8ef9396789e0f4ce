"""Tokenizers trained on a corpus, what a tokenizer's tokens are, and texts turned into token ids."""

import itertools
import json
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from datasets import DatasetDict, IterableDatasetDict
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from text_jepa.cli import UsageError
from text_jepa.data.masking import DOCUMENT_VIEWS, View, count_windows


logger = logging.getLogger(__name__)

# Enough text for a stable vocabulary of some ten thousand pieces; more only costs time.
_TOKENIZER_TRAINING_CHARACTERS = 40_000_000

# Characters that a trained tokenizer knows, as in BERT's.
_ALPHABET = 1_000

# Part of the cache's fingerprint: raise it whenever the same settings give other examples.
_TOKENIZATION_VERSION = 2

# Views that the examples bring; the others are made from the text.
_VIEWS_OF_DATA = ("column", "next_sentence")
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


def word_start_table(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
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
    marked = np.array([token.startswith(mark) for token in tokens])
    if mark == "##":
        return marked, np.ones(len(tokens), bool)
    # As text, for byte-level BPE writes blanks, line breaks and the bytes of other scripts as letters of its own; a
    # part of a character becomes the replacement character and stays with its other parts.
    texts = [tokenizer.convert_tokens_to_string([token]) for token in tokens]
    continues = np.array([text[:1].isalnum() or text[:1] == "\ufffd" for text in texts])
    continued = np.array([text[-1:].isalnum() or text[-1:] == "\ufffd" for text in texts])
    return continues & ~marked, continued | (np.array(tokens) == mark)
