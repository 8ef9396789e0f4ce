"""Which tokens are hidden: the span sampler, and the collator that turns texts into a batch with masks.

Everything random is a pure function of (seed, epoch, text): draws come from a counter-based hash instead of a running
generator, so that neither workers, ranks, batch-mates nor a resume can change a mask. Everything works on whole arrays
of shape (R, S) with R = texts × masks; there is no loop over tokens.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch


SpanLengthDistribution = Literal["fixed", "uniform", "geometric", "poisson"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def counter_uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """Uniform draws in [0, 1) that depend on nothing but the key and the column.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014) on key + column · golden ratio.

    Args:
        keys: (R,) uint64.
        count: Number of draws per key.

    Returns:
        (R, count) float64.
    """
    with np.errstate(over="ignore"):
        x = keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mask_keys(texts: Sequence[np.ndarray], num_masks: int, seed: int, epochs: int | Sequence[int]) -> np.ndarray:
    """One key per (text, mask), from the token ids themselves and the pass that each text belongs to.

    Args:
        texts: B texts, each an array of token ids.
        num_masks: M.
        seed: Any integer.
        epochs: An integer, or B of them.

    Returns:
        (B · M,) uint64, texts outermost.
    """
    content = np.array([zlib.crc32(ids.tobytes()) for ids in texts], dtype=np.uint64)
    # Small integers are spread over 53 bits, each by a column of its own.
    seeds = counter_uniforms(np.array([seed], dtype=np.int64).astype(np.uint64), 1)[:, 0]
    passes = counter_uniforms(np.atleast_1d(epochs).astype(np.int64).astype(np.uint64), 2)[:, 1]
    seeds, passes = ((draws * 2.0**53).astype(np.uint64) for draws in (seeds, passes))
    with np.errstate(over="ignore"):
        base = (content << np.uint64(20)) ^ seeds ^ (passes << np.uint64(11))
        keys = base[:, None] * _GOLDEN + np.arange(num_masks, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    return keys.reshape(-1)


def span_lengths(
    uniforms: np.ndarray, distribution: SpanLengthDistribution, mean_length: float, max_length: int
) -> np.ndarray:
    """Lengths of spans, in tokens, by inverting the distribution: draws in [0, 1) -> integers of the same shape.

    Args:
        uniforms: Draws, any shape.
        distribution: `"fixed"` (the mean, rounded), `"uniform"` on 1 … 2 · mean - 1, `"geometric"` with success
            probability 1 / mean (SpanBERT, arXiv 1907.10529), `"poisson"` with the mean, zero raised to one (BART).
        mean_length: Mean before `max_length` cuts, at least 1.
        max_length: No span is longer.
    """
    if distribution == "fixed":
        lengths = np.full(uniforms.shape, round(mean_length))
    elif distribution == "uniform":
        lengths = 1 + np.floor(uniforms * (round(2 * mean_length) - 1))
    elif distribution == "geometric":
        survival = 1 - 1 / mean_length
        lengths = np.ones(uniforms.shape) if survival == 0 else 1 + np.floor(np.log1p(-uniforms) / np.log(survival))
    else:
        support = np.arange(1, max_length + 1)
        probabilities = np.exp(np.cumsum(np.log(mean_length / support)) - mean_length)
        lengths = 1 + np.searchsorted(np.exp(-mean_length) + np.cumsum(probabilities), uniforms, side="right")
    return np.clip(lengths, 1, max_length).astype(np.int64)


def sample_spans(
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    ratio: float,
    distribution: SpanLengthDistribution,
    mean_length: float,
    max_length: int,
) -> np.ndarray:
    """Hides spans of whole words, `ratio` of the usable tokens in expectation, every position equally often.

    The usable tokens of a row form a circle on which hidden spans and visible gaps alternate; lengths of spans follow
    the distribution, the visible rest is dealt to the gaps at random, and the circle is turned by a random angle: so
    each token is hidden with the same probability, spans never overlap, and no place near the ends is special. A word
    is hidden if its first token falls into a span, which keeps that probability for every word.

    A row never loses its last visible word: with fewer than two usable tokens nothing is hidden, and if all words
    were hit, one of them stays.

    Args:
        usable: (R, S) boolean, False for special tokens and padding.
        word_starts: (R, S) boolean, True where a token begins a word.
        keys: (R,) uint64 from `mask_keys`.
        ratio: Share of the usable tokens to hide, above 0 and below 1.
        distribution, mean_length, max_length: See `span_lengths`.

    Returns:
        (R, S) integers: the span of each hidden token, counted from 0 along the row, -1 where visible.
    """
    rows, width = usable.shape
    counts = usable.sum(axis=1)
    longest = int(counts.max(initial=0))
    if longest < 2:
        return np.full((rows, width), -1)
    draws = counter_uniforms(keys, 3 + 2 * longest)
    # In turn, so that a draw's column does not depend on the longest text of the batch.
    length_draws, gap_draws = draws[:, 3::2], draws[:, 4::2]
    column = np.arange(longest)

    # How many tokens to hide; rounding at random keeps the ratio exact in expectation.
    hidden = np.floor(ratio * counts + draws[:, 0]).astype(np.int64)
    hidden = np.where(counts < 2, 0, np.clip(hidden, 0, counts - 1))

    # Spans in drawing order until they hold that many tokens, the last one cut; then the gap behind each.
    lengths = span_lengths(length_draws, distribution, mean_length, max_length)
    ends = np.minimum(np.cumsum(lengths, axis=1), hidden[:, None])
    lengths = np.diff(ends, axis=1, prepend=0)
    shares = np.where(lengths > 0, -np.log1p(-gap_draws), 0.0)
    shares = np.cumsum(shares, axis=1)
    total = np.maximum(shares[:, -1:], np.finfo(np.float64).tiny)
    visible_before = np.floor(shares / total * (counts - hidden)[:, None]).astype(np.int64)
    visible_before = np.concatenate([np.zeros((rows, 1), np.int64), visible_before[:, :-1]], axis=1)
    starts = np.concatenate([np.zeros((rows, 1), np.int64), ends[:, :-1]], axis=1) + visible_before

    # On the circle: the span that begins at or before each place, and whether the place is still inside it.
    marks = np.zeros((rows, longest), np.int64)
    row, which = np.nonzero(lengths)
    marks[row, starts[row, which]] = 1
    circle_span = np.cumsum(marks, axis=1) - 1
    inside = circle_span >= 0
    begin = np.take_along_axis(starts, np.maximum(circle_span, 0), axis=1)
    size = np.take_along_axis(lengths, np.maximum(circle_span, 0), axis=1)
    circle_span = np.where(inside & (column - begin < size), circle_span, -1)

    # Turn the circle, and let each word follow its first usable token.
    rank = np.cumsum(usable, axis=1) - 1
    first = np.maximum.accumulate(np.where(usable & (word_starts | (rank == 0)), rank, 0), axis=1)
    turn = np.floor(draws[:, 1] * counts).astype(np.int64)[:, None]
    modulus = np.maximum(counts, 1)[:, None]
    span = np.take_along_axis(circle_span, (first - turn) % modulus, axis=1)
    span = np.where(usable, span, -1)

    emptied = (span >= 0).sum(axis=1) == counts
    if emptied.any():
        kept_rank = np.floor(draws[:, 2] * counts).astype(np.int64)[:, None]
        kept_first = np.where(usable & (rank == kept_rank), first, -1).max(axis=1, keepdims=True)
        span = np.where(emptied[:, None] & (first == kept_first), -1, span)

    # Number the runs from left to right; turning may have split one at the ends, or rounding removed one.
    before = np.concatenate([np.full((rows, 1), -1), span[:, :-1]], axis=1)
    numbers = np.cumsum((span >= 0) & (span != before), axis=1) - 1
    return np.where(span >= 0, numbers, -1)


def pack_positions(chosen: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Positions (or values) of the True entries, moved to the left: (R, S) -> (R, K), -1 where unused, K the most."""
    row, column = np.nonzero(chosen)
    counts = chosen.sum(axis=1)
    packed = np.full((len(chosen), max(int(counts.max(initial=0)), 1)), -1, np.int64)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    packed[row, slot] = column if values is None else values[row, column]
    return packed


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


class DataCollatorForTextJepa:
    """Pads texts and draws M masks for each: the batch that [`TextJepaForPreTraining`] takes.

    Masks are a pure function of (`seed`, `epoch`, token ids of the text, number of the mask). `epoch` is set by the
    trainer before each pass and shared with worker processes; an example of a stream brings its own.

    Texts with fewer than two usable tokens (neither special nor padding) pass through unhidden: they add no target and
    no loss.

    Args:
        tokenizer: With a padding token; tells special tokens and word borders apart.
        num_masks: M, masks drawn per text.
        mask_ratio: Share of the usable tokens hidden by each mask.
        span_length_distribution: `"geometric"`, `"fixed"`, `"uniform"` or `"poisson"`, see `span_lengths`.
        mean_span_length: Mean length of a span in tokens, before words are completed.
        max_span_length: Longest span in tokens, before words are completed.
        whole_words: Hide whole words; otherwise single tokens count as words.
        seed: Seed of the masks.
        pad_to_multiple_of: Pad texts to a multiple of this length, for kernels that like it.

    Raises:
        ValueError: The tokenizer has no padding token, or an argument is out of range.
    """

    def __init__(
        self,
        tokenizer: Any,
        num_masks: int = 1,
        mask_ratio: float = 0.5,
        span_length_distribution: SpanLengthDistribution = "geometric",
        mean_span_length: float = 3.0,
        max_span_length: int = 10,
        whole_words: bool = True,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
    ):
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
        if num_masks < 1:
            raise ValueError(f"num_masks must be at least 1, got {num_masks}")
        if not 1 <= mean_span_length <= max_span_length:
            raise ValueError(
                f"mean_span_length must lie between 1 and max_span_length ({max_span_length}), got {mean_span_length}"
            )
        if span_length_distribution not in get_args(SpanLengthDistribution):
            known = ", ".join(get_args(SpanLengthDistribution))
            raise ValueError(f"span_length_distribution '{span_length_distribution}' is none of {known}")
        self.num_masks = num_masks
        self.mask_ratio = mask_ratio
        self.span_length_distribution = span_length_distribution
        self.mean_span_length = mean_span_length
        self.max_span_length = max_span_length
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        self._pad_token_id = tokenizer.pad_token_id
        # An unknown word is a word of the text, unless the same token also serves as another special one (GPT-2).
        names = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        unknown = names.pop("unk_token", None)
        special = set(tokenizer.all_special_ids)
        if unknown is not None and unknown not in names.values():
            special.discard(tokenizer.unk_token_id)
        self._continues, self._continued = word_start_table(tokenizer)
        self._is_special = np.zeros(len(self._continues), bool)
        self._is_special[sorted(special)] = True
        if not whole_words:
            self._continues = np.zeros_like(self._continues)
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """The pass over the data that masks are drawn for; worker processes see a change at once."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, value: int):
        self._epoch.fill_(int(value))

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Texts, each with `input_ids` and perhaps its `epoch`, to a batch.

        Returns:
            `input_ids` and `attention_mask` (B, S), `context_positions` (B, M, C), `target_positions` and
            `target_spans` (B, M, T); all int64, positions and spans -1 where unused.
        """
        texts = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
        lengths = np.array([len(ids) for ids in texts])
        width = max(int(lengths.max()), 1)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        present = np.arange(width) < lengths[:, None]
        input_ids = np.full(present.shape, self._pad_token_id)
        input_ids[present] = np.concatenate(texts)

        usable = present & ~self._is_special[input_ids]
        joined = self._continues[input_ids[:, 1:]] & self._continued[input_ids[:, :-1]] & usable[:, :-1]
        word_starts = np.concatenate([np.ones((len(texts), 1), bool), ~joined], axis=1)
        spans = sample_spans(
            np.repeat(usable, self.num_masks, axis=0),
            np.repeat(word_starts, self.num_masks, axis=0),
            mask_keys(texts, self.num_masks, self.seed, [example.get("epoch", self.epoch) for example in examples]),
            self.mask_ratio,
            self.span_length_distribution,
            self.mean_span_length,
            self.max_span_length,
        )
        hidden = spans >= 0
        masks = {
            "context_positions": pack_positions(np.repeat(present, self.num_masks, axis=0) & ~hidden),
            "target_positions": pack_positions(hidden),
            "target_spans": pack_positions(hidden, spans),
        }
        batch = {"input_ids": input_ids, "attention_mask": present.astype(np.int64)}
        batch |= {name: value.reshape(len(texts), self.num_masks, -1) for name, value in masks.items()}
        return {name: torch.from_numpy(value) for name, value in batch.items()}
