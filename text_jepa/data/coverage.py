"""Measures how well a tokenizer covers the texts of a run, and whether masks hide anything in them."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from text_jepa.cli import UsageError
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.tokenization import UNKNOWN_LETTER


# Number of texts that are measured.
SAMPLE_SIZE = 1_000

# Bounds above which a warning is logged.
_MANY_UNKNOWN = 0.01
_LONG_WORDS = 4.0
_MANY_WITHOUT_TARGET = 0.05

# A tokenizer with a larger share of unknown tokens is refused.
_UNKNOWN_TEXT = 0.5

_BATCH_SIZE = 100

# Number of first characters of a text in which dropped ones are counted.
_CHARACTERS = 2_000


@dataclass
class Coverage:
    """Counts of tokens, words and targets in a sample of texts.

    Args:
        tokens: Number of tokens of the texts, without special tokens.
        unknown: Number of unknown tokens.
        words: Number of words; in scripts without spaces, every token is a word.
        masks: Number of masks.
        without_target: Number of masks that hide nothing.
        hidden: Number of hidden tokens.
        spans: Number of hidden spans.
        characters: Number of characters of texts whose dropped characters were counted, without spaces.
        dropped: Number of those that are a part of no token.
    """

    tokens: int = 0
    unknown: int = 0
    words: int = 0
    masks: int = 0
    without_target: int = 0
    hidden: int = 0
    spans: int = 0
    characters: int = 0
    dropped: int = 0

    @property
    def unknown_share(self) -> float:
        """The share of unknown tokens, or of the characters that a tokenizer without an unknown token drops."""
        return max(self.unknown / max(self.tokens, 1), self.dropped / max(self.characters, 1))

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / max(self.words, 1)

    @property
    def share_without_target(self) -> float:
        return self.without_target / max(self.masks, 1)

    @property
    def mean_span_length(self) -> float:
        return self.hidden / max(self.spans, 1)

    def describe(self, hides: bool) -> str:
        """Describes the texts in one line; `hides` is whether masks are supposed to hide anything."""
        line = f"{self.unknown_share:.2%} unknown tokens, {self.tokens_per_word:.1f} tokens per word"
        if hides:
            line += f", {self.share_without_target:.1%} of the masks without a target"
        return line

    def warnings(self, hides: bool) -> list[str]:
        """A warning with its remedy for each measure above its bound."""
        found = []
        if self.unknown_share > _MANY_UNKNOWN:
            found.append(
                f"{self.unknown_share:.1%} of the tokens are unknown to the tokenizer, so the model cannot learn "
                "anything about them; use --tokenizer_type bpe, or a --tokenizer_name for the script of the texts"
            )
        if self.tokens_per_word > _LONG_WORDS:
            found.append(
                f"the tokenizer splits a word into {self.tokens_per_word:.1f} tokens on average; use one for the "
                "language of the texts, or a larger --vocab_size"
            )
        if hides and self.share_without_target > _MANY_WITHOUT_TARGET:
            found.append(
                f"{self.share_without_target:.1%} of the masks hide nothing; raise --mask_ratio or --min_length"
            )
        return found

    def check(self, hides: bool) -> None:
        """Raises UsageError if most tokens are unknown, or if no mask hides anything."""
        if self.unknown_share > _UNKNOWN_TEXT:
            raise UsageError(
                f"the tokenizer does not know {self.unknown_share:.0%} of the tokens of the texts; name one for their "
                "script with --tokenizer_name, or use --tokenizer_type bpe"
            )
        if hides and self.without_target == self.masks:
            raise UsageError(
                f"none of the {self.masks:,} masks hides anything; raise --mask_ratio, or leave short texts out with "
                "--min_length"
            )


def drops_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has no token for characters that it does not know, like a BPE without an unknown token."""
    return tokenizer.is_fast and not tokenizer(UNKNOWN_LETTER, add_special_tokens=False)["input_ids"]


def measure_coverage(
    examples: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    collator: DataCollatorForTextJepa,
    texts: Iterable[str] = (),
) -> Coverage:
    """Counts tokens, words and targets of examples.

    Args:
        examples: Examples for the collator.
        tokenizer: Tokenizer of the examples.
        collator: Collator of the run, which draws the masks.
        texts: Texts in which dropped characters are counted, see `drops_characters`.
    """
    coverage = Coverage()
    for text in texts:
        _count_dropped(coverage, text[:_CHARACTERS], tokenizer)
    for start in range(0, len(examples), _BATCH_SIZE):
        # At the end of a schedule, because it may begin with nothing hidden.
        chosen = [{"epoch": 0, **example, "step": math.inf} for example in examples[start : start + _BATCH_SIZE]]
        batch = {name: tensor.numpy() for name, tensor in collator(chosen).items()}
        _count(coverage, batch, tokenizer, collator)
    return coverage


def _count_dropped(coverage: Coverage, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    # The token of a letter that a tokenizer composes covers only the first part of the letter.
    text = unicodedata.normalize("NFC", text)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    gaps = []
    end = 0
    for start, stop in spans:
        gaps.append(text[end:start])
        end = max(end, stop)
    gaps.append(text[end:])
    coverage.characters += _count_characters(text)
    coverage.dropped += _count_characters("".join(gaps))


def _count_characters(text: str) -> int:
    return sum(map(len, text.split()))


def _count(
    coverage: Coverage,
    batch: dict[str, np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    collator: DataCollatorForTextJepa,
) -> None:
    present = batch["attention_mask"].astype(bool)
    usable, word_starts = collator.find_words(batch["input_ids"], present)
    coverage.tokens += int(usable.sum())
    coverage.words += int((usable & word_starts).sum())
    if tokenizer.unk_token_id is not None:
        coverage.unknown += int((usable & (batch["input_ids"] == tokenizer.unk_token_id)).sum())
    spans = batch["target_spans"]
    coverage.masks += spans.shape[0] * spans.shape[1]
    coverage.without_target += int((spans < 0).all(axis=2).sum())
    coverage.hidden += int((spans >= 0).sum())
    coverage.spans += int((spans.max(axis=2) + 1).sum())
