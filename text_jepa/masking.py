"""What a window sees and what is hidden: the samplers, and the collator that makes batches with masks and views.

Everything random is a pure function of (seed, epoch, text): draws come from a counter-based hash instead of a running
generator, so that neither workers, ranks, batch-mates nor a resume can change a mask. Everything works on whole arrays
of shape (R, S) with R = texts × masks; there is no loop over tokens or rows.

All kinds of masks are spans laid on the usable tokens of a row, that is all but special tokens and padding; words,
not tokens, are hidden unless a strategy says otherwise.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch


SpanLengthDistribution = Literal["fixed", "uniform", "geometric", "poisson"]
MaskKind = Literal["spans", "suffix", "keep_block", "blocks"]
View = Literal["rest", "neighbour", "same", "crop", "crop_both", "deletion", "column", "next_sentence"]

# Views for which an example is a window of a whole document.
DOCUMENT_VIEWS = ("rest", "neighbour")

# A share of a text: itself, an interval from which it is drawn, or {"start": …, "end": …, "steps": …}.
Share = float | Sequence[float] | Mapping[str, float]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# Keys of draws that must not repeat those of the spans.
_FOR_STRATEGY, _FOR_CONTEXT, _FOR_CUT, _FOR_TEXT, _FOR_VIEW, _FOR_WINDOW = (
    np.uint64(i) * np.uint64(0x0D6E8FEB86659FD9) for i in range(1, 7)
)


# ---- strategies -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MaskStrategy:
    """One way to hide a part of a text.

    `kind` is one of:

    - `"spans"`: spans whose lengths follow a distribution hide a share of the text, all positions equally often
      (random tokens are spans of the fixed length 1 without whole words); or, with `num_spans`, so many spans of
      `min_span_length` to `max_span_length` tokens, which together hide `ratio` at most and shrink where they would
      hide more.
    - `"suffix"`: the last share (UL2's S-denoiser, arXiv 2205.05131).
    - `"keep_block"`: all but one block (the inverse block masks of data2vec 2.0, arXiv 2212.07525).
    - `"blocks"`: `num_spans` blocks of the share `ratio` each, disjoint (I-JEPA's targets, arXiv 2301.08243).

    Args:
        kind: See above.
        ratio: Share of the usable tokens to hide, at least 0 and below 1: a number; an interval `(low, high)`, drawn
            from for every mask (`"blocks"`: for every block); or `{"start": a, "end": b, "steps": n}`, which moves
            from a to b in n steps of the optimizer and stays there.
        span_length_distribution, mean_span_length, max_span_length: See `span_lengths`.
        num_spans: Number of spans or blocks.
        min_span_length: With `num_spans`: shortest span in tokens; lengths are uniform up to `max_span_length`.
        context_ratio: What is visible lies in a block of this share of the text, above 0: a number or an interval
            (I-JEPA's context). Without it the context is all that is not hidden.
        whole_words: Hide whole words; otherwise single tokens count as words.
        weight: How often the strategy is drawn, beside the weights of the others.
        name: For logs and errors. Default: the kind.

    Raises:
        ValueError: A field is out of range, or not one of this kind.
    """

    kind: MaskKind = "spans"
    ratio: Share = 0.5
    span_length_distribution: SpanLengthDistribution = "geometric"
    mean_span_length: float = 3.0
    min_span_length: int = 1
    max_span_length: int = 10
    num_spans: int | None = None
    context_ratio: float | Sequence[float] | None = None
    whole_words: bool = True
    weight: float = 1.0
    name: str = ""

    def __post_init__(self):
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"mask strategy '{self.name}': {error}" if self.name else str(error)) from error

    def _check(self):
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"kind '{self.kind}' is none of {', '.join(get_args(MaskKind))}")
        by_number = self.num_spans is not None
        for name in ("weight", "mean_span_length"):
            if not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("min_span_length", "max_span_length", "num_spans")[: 3 if by_number else 2]:
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        check_share("ratio", self.ratio)
        if self.context_ratio is not None:
            check_share("context_ratio", self.context_ratio, visible=True)
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if by_number and not self.num_spans >= 1:
            raise ValueError(f"num_spans must be at least 1, got {self.num_spans}")
        if self.kind == "blocks" and not by_number:
            raise ValueError("kind 'blocks' needs num_spans, the number of blocks")
        if self.span_length_distribution not in get_args(SpanLengthDistribution):
            known = ", ".join(get_args(SpanLengthDistribution))
            raise ValueError(f"span_length_distribution '{self.span_length_distribution}' is none of {known}")
        name = "min_span_length" if by_number else "mean_span_length"
        if not 1 <= getattr(self, name) <= self.max_span_length:
            bounds = f"between 1 and max_span_length ({self.max_span_length})"
            raise ValueError(f"{name} must lie {bounds}, got {getattr(self, name)}")
        used = {
            ("spans", False): {"span_length_distribution", "mean_span_length", "max_span_length"},
            ("spans", True): {"num_spans", "min_span_length", "max_span_length"},
            ("blocks", True): {"num_spans"},
        }.get((self.kind, by_number), set())
        for field in dataclasses.fields(self):
            is_idle = "span" in field.name and field.name not in used
            if is_idle and getattr(self, field.name) != field.default:
                way = "" if self.kind != "spans" else f" with{'' if by_number else 'out'} num_spans"
                raise ValueError(f"{field.name} is not used by kind '{self.kind}'{way}")

    def in_words(self) -> str:
        """What is hidden, as a part of a sentence."""
        share, unit = share_in_words(self.ratio), "words" if self.whole_words else "tokens"
        if self.ratio == 0:
            hidden = "nothing hidden"
        elif self.kind == "suffix":
            hidden = f"the last {share} of the {unit} hidden"
        elif self.kind == "keep_block":
            hidden = f"{share} of the {unit} hidden, all around a block that stays"
        elif self.kind == "blocks":
            hidden = f"{self.num_spans} blocks of {share} of the {unit} each hidden"
        elif self.num_spans is not None:
            lengths = f"{self.min_span_length} to {self.max_span_length} tokens"
            hidden = f"{self.num_spans} spans of {lengths} hidden, {share} of the {unit} at most"
        elif self.span_length_distribution == "fixed":
            length = round(self.mean_span_length)
            hidden = f"{share} of the {unit} hidden in spans of {length} token{'s' * (length > 1)}"
        else:
            hidden = (
                f"{share} of the {unit} hidden in spans of {self.span_length_distribution} length, "
                f"{self.mean_span_length:g} tokens on average"
            )
        if self.context_ratio is None:
            return hidden
        return f"{hidden}, the rest visible in a block of {share_in_words(self.context_ratio)} of the text"


def check_share(name: str, share: Share, visible: bool = False):
    """Raises ValueError, by this name, unless it is a share that may be hidden, or one that may be left visible."""
    if isinstance(share, Mapping) and not visible:
        if set(share) != {"start", "end", "steps"}:
            raise ValueError(f"{name}: a schedule has start, end and steps, got {', '.join(map(str, share))}")
        if not isinstance(share["steps"], (int, float)) or not share["steps"] >= 1:
            raise ValueError(f"{name}: steps of the schedule must be at least 1, got {share['steps']}")
        bounds = [share["start"], share["end"]]
    elif isinstance(share, Sequence) and not isinstance(share, str):
        bounds = list(share)
        if len(bounds) != 2:
            raise ValueError(f"{name}: an interval has two ends, got {len(bounds)}")
    else:
        bounds = [share]
    for bound in bounds:
        known = isinstance(bound, (int, float))
        if not known or not (0 < bound <= 1 if visible else 0 <= bound < 1):
            raise ValueError(f"{name} must lie between 0 and 1, got {bound}")
    if not isinstance(share, Mapping) and bounds[0] > bounds[-1]:
        raise ValueError(f"{name}: the interval ends ({bounds[1]}) before it begins ({bounds[0]})")


def draw_share(share: Share, uniforms: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The share of each row: itself, uniform on its interval, or where its schedule stands.

    Args:
        share: See `MaskStrategy.ratio`.
        uniforms: (R, N) draws in [0, 1).
        steps: (R, 1) optimizer steps done.

    Returns:
        (R, N), or (R, 1) from a schedule.
    """
    if isinstance(share, Mapping):
        return share["start"] + (share["end"] - share["start"]) * np.minimum(steps / share["steps"], 1.0)
    low, high = share if isinstance(share, Sequence) else (share, share)
    return low + (high - low) * uniforms


def share_in_words(share: Share) -> str:
    """A share in percent."""
    if isinstance(share, Mapping):
        start, end = (share_in_words(share[name]) for name in ("start", "end"))
        return f"{start} (at first) to {end} (from step {share['steps']:,} on)"
    return " to ".join(f"{100 * bound:.3g}%" for bound in (share if isinstance(share, Sequence) else [share]))


# ---- draws ----------------------------------------------------------------------------------------------------------


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
    return _keys_of(_checksums(texts), num_masks, seed, epochs)


def _checksums(texts):
    """What tells texts apart, by their token ids: (B,) uint64."""
    return np.array([zlib.crc32(ids.tobytes()) for ids in texts], dtype=np.uint64)


def _keys_of(content, num_masks, seed, epochs):
    """`mask_keys` of texts whose `_checksums` are known."""
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
    ratio: float | np.ndarray,
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
        ratio: Share of the usable tokens to hide, at least 0 and below 1; a number, or (R,) of them.
        distribution, mean_length, max_length: See `span_lengths`.

    Returns:
        (R, S) integers: the span of each hidden token, counted from 0 along the row, -1 where visible.
    """
    counts = usable.sum(axis=1)
    most = _most_hidden(counts, ratio)
    if not most:
        return np.full(usable.shape, -1)
    draws = counter_uniforms(keys, 3 + 2 * most)
    # In turn, so that a draw's column does not depend on the longest text of the batch.
    length_draws, gap_draws = draws[:, 3::2], draws[:, 4::2]
    hidden = _tokens_to_hide(counts, ratio, draws[:, 0])

    # Spans in drawing order until they hold that many tokens, the last one cut; then the gap behind each.
    lengths = span_lengths(length_draws, distribution, mean_length, max_length)
    ends = np.minimum(np.cumsum(lengths, axis=1), hidden[:, None])
    lengths = np.diff(ends, axis=1, prepend=0)
    shares = np.where(lengths > 0, -np.log1p(-gap_draws), 0.0)
    shares = np.cumsum(shares, axis=1)
    total = np.maximum(shares[:, -1:], np.finfo(np.float64).tiny)
    gaps = np.floor(shares / total * (counts - hidden)[:, None]).astype(np.int64)
    starts = ends - lengths
    starts[:, 1:] += gaps[:, :-1]

    rank, first = _ranks(usable, word_starts)
    turn = np.floor(draws[:, 1] * counts).astype(np.int64)[:, None]
    places = (first - turn) % np.maximum(counts, 1)[:, None]
    kept = np.floor(draws[:, 2] * counts).astype(np.int64)
    return _hide_words(usable, rank, first, places, lengths, starts, kept)


def sample_blocks(
    usable: np.ndarray, word_starts: np.ndarray, keys: np.ndarray, ratio: np.ndarray, strategy: MaskStrategy
) -> np.ndarray:
    """Hides by every kind of strategy but spans of a ratio: few spans that begin and end within the text.

    Near the ends of a text fewer of them reach, so that coverage is not uniform. A word is hidden if a token of it,
    drawn once for all words of the row by its place in the word, falls into a span: shares are right in expectation.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        ratio: (R, N) shares; N is `num_spans` for `"blocks"`, else 1.
        strategy: Its kind and numbers; `ratio` and `whole_words` are taken from the other arguments.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    counts = usable.sum(axis=1)
    if not _most_hidden(counts, ratio):
        return np.full(usable.shape, -1)
    number = strategy.num_spans or 1
    draws = counter_uniforms(keys, 3 + 2 * number)
    kept = np.floor(draws[:, 2] * counts).astype(np.int64)
    hidden = _tokens_to_hide(counts, ratio[:, 0], draws[:, 0])
    if strategy.kind == "suffix":
        lengths, starts, kept = hidden[:, None], (counts - hidden)[:, None], np.zeros_like(kept)
    elif strategy.kind == "keep_block":
        front = np.floor(draws[:, 3] * (hidden + 1)).astype(np.int64)
        lengths = np.stack([front, hidden - front], axis=1)
        starts = np.stack([np.zeros_like(front), front + counts - hidden], axis=1)
    else:
        length_draws, place_draws = draws[:, 3 : 3 + number], draws[:, 3 + number :]
        if strategy.kind == "blocks":
            lengths, most = np.floor(ratio * counts[:, None] + length_draws), np.maximum(counts - 1, 0)
        else:
            sizes = strategy.max_span_length - strategy.min_span_length + 1
            lengths, most = strategy.min_span_length + np.floor(length_draws * sizes), hidden
        ends = np.cumsum(lengths, axis=1)
        total = np.maximum(ends[:, -1], 1)
        ends = np.floor(ends * (np.minimum(most, total) / total)[:, None] + 1e-9).astype(np.int64)
        lengths = np.diff(ends, axis=1, prepend=0)
        visible = (counts - ends[:, -1])[:, None]
        starts = ends - lengths + np.floor(np.sort(place_draws, axis=1) * (visible + 1)).astype(np.int64)

    rank, first = _ranks(usable, word_starts)
    places = first + np.floor(draws[:, 1:2] * _word_sizes(usable, first)).astype(np.int64)
    return _hide_words(usable, rank, first, places, lengths, starts, kept)


def context_block(
    usable: np.ndarray, word_starts: np.ndarray, hidden: np.ndarray, keys: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """What of the usable tokens is visible in a block of the text: whole words, at least one.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        hidden: (R, S) boolean, the targets; a row has a visible word beside them.
        share: (R,) length of the block as a share of the usable tokens.

    Returns:
        (R, S) boolean.
    """
    counts, draws = usable.sum(axis=1), counter_uniforms(keys, 4)
    _, first = _ranks(usable, word_starts)
    length = np.clip(np.floor(share * counts + draws[:, 0]), 1, np.maximum(counts, 1))
    start = np.floor(draws[:, 1] * (counts - length + 1))[:, None]
    place = first + np.floor(draws[:, 2:3] * _word_sizes(usable, first))
    free = usable & ~hidden
    visible = free & (place >= start) & (place < start + length[:, None])

    # A block of targets only: some visible word of the text instead.
    emptied = ~visible.any(axis=1)
    chosen = np.floor(draws[:, 3] * free.sum(axis=1))[:, None]
    kept = np.where(free & (np.cumsum(free, axis=1) - 1 == chosen), first, -1).max(axis=1, keepdims=True)
    return visible | (emptied[:, None] & free & (first == kept))


def _most_hidden(counts, ratio):
    """Bound of the number of tokens that any row hides, 0 if none hides any."""
    longest = int(counts.max(initial=0))
    return longest - 1 if longest > 1 and np.any(ratio) else 0


def _tokens_to_hide(counts, ratio, uniforms):
    # Rounding at random keeps the ratio exact in expectation.
    hidden = np.floor(ratio * counts + uniforms).astype(np.int64)
    return np.where(counts < 2, 0, np.clip(hidden, 0, counts - 1))


def _ranks(usable, word_starts):
    """Number of each usable token along its row, and that of the first token of its word."""
    rank = np.cumsum(usable, axis=1) - 1
    first = np.maximum.accumulate(np.where(usable & (word_starts | (rank == 0)), rank, 0), axis=1)
    return rank, first


def _word_sizes(usable, first):
    """Tokens of the word that each usable token belongs to."""
    rows, width = first.shape
    word = first + np.arange(rows)[:, None] * width
    return np.bincount(word[usable], minlength=rows * width)[word]


def _hide_words(usable, rank, first, places, lengths, starts, kept):
    """Hides each word whose place lies in a span, and numbers the spans that remain along the row.

    Args:
        usable, rank, first: (R, S), see `_ranks`.
        places: (R, S) where on the row of usable tokens each token looks, the same for all tokens of a word.
        lengths, starts: (R, K) of the spans on that row, in order and disjoint; a length may be 0.
        kept: (R,) usable token whose word stays where all are hit.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    counts = rank[:, -1] + 1
    # At a start an even number, behind an end the odd one that follows: the last of them tells what a place lies in.
    marks = np.zeros((len(lengths), int(counts.max()) + 1), np.int64)
    row, which = np.nonzero(lengths)
    begin = starts[row, which]
    marks[row, begin + lengths[row, which]] = 2 * which + 3
    marks[row, begin] = 2 * which + 2
    marks = np.maximum.accumulate(marks, axis=1)
    found = np.take_along_axis(marks, places, axis=1)
    span = np.where(usable & (found > 0) & (found % 2 == 0), found, -1)

    emptied = (span >= 0).sum(axis=1) == counts
    if emptied.any():
        kept_first = np.where(usable & (rank == kept[:, None]), first, -1).max(axis=1, keepdims=True)
        span = np.where(emptied[:, None] & (first == kept_first), -1, span)
    # Turning a circle may have split a span at the ends, and rounding to words have removed one.
    return _number_spans(span)


def _number_spans(span):
    """Runs of equal spans numbered from left to right; -1 stays."""
    before = np.concatenate([np.full((len(span), 1), -1), span[:, :-1]], axis=1)
    numbers = np.cumsum((span >= 0) & (span != before), axis=1) - 1
    return np.where(span >= 0, numbers, -1)


def cut_to_least(chosen: np.ndarray, keys: np.ndarray, counted: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Leaves every row as many tokens as the row with the fewest, the others drawn away at random.

    Args:
        chosen: (R, S) boolean.
        keys: (R,) uint64.
        counted: (R,) boolean, rows whose number counts; the others are cut to it but may have less.
        keep: (R, S) boolean, tokens that go last; before them all a row keeps one of the others.

    Returns:
        (R, S) boolean.
    """
    least = int(chosen.sum(axis=1)[counted].min())
    order = np.where(keep, -1.0, counter_uniforms(keys, chosen.shape[1]))
    lowest = np.where(chosen & ~keep, order, 2.0)
    np.put_along_axis(order, lowest.argmin(axis=1)[:, None], -2.0, axis=1)
    order = np.where(chosen, order, 2.0).argsort(axis=1, kind="stable")[:, :least]
    left = np.zeros_like(chosen)
    np.put_along_axis(left, order, True, axis=1)
    return left & chosen


# ---- views ----------------------------------------------------------------------------------------------------------


def crop_words(usable: np.ndarray, word_starts: np.ndarray, keys: np.ndarray, share: Share) -> np.ndarray:
    """Keeps a run of whole words, at least one, that begins anywhere, and all that is not usable.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        share: Of the words, to keep; a number or an interval.

    Returns:
        (R, S) boolean.
    """
    word, kept, draws = _words_to_keep(usable, word_starts, keys, share, 3)
    start = np.floor(draws[:, 2] * (word[:, -1] + 2 - kept))[:, None]
    return ~usable | ((word >= start) & (word < start + kept[:, None]))


def delete_words(usable: np.ndarray, word_starts: np.ndarray, keys: np.ndarray, share: Share) -> np.ndarray:
    """Keeps words at random, at least one, in their order (TSDAE, arXiv 2104.06979); arguments as of `crop_words`."""
    words = int((usable & word_starts).sum(axis=1).max(initial=0)) + 1
    word, kept, draws = _words_to_keep(usable, word_starts, keys, share, 2 + words)
    order = np.where(np.arange(words) <= word[:, -1:], draws[:, 2:], 2.0)
    place = order.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return ~usable | (np.take_along_axis(place, np.maximum(word, 0), axis=1) < kept[:, None])


def _words_to_keep(usable, word_starts, keys, share, count):
    """Number of each usable token's word, how many words of a row stay, and `count` draws of which two are used."""
    rank, first = _ranks(usable, word_starts)
    word = np.cumsum(usable & (rank == first), axis=1) - 1
    draws = counter_uniforms(keys, count)
    words = word[:, -1] + 1
    kept = np.floor(draw_share(share, draws[:, 0], np.zeros(1)) * words + draws[:, 1])
    return word, np.clip(kept, 1, np.maximum(words, 1)), draws


# ---- windows --------------------------------------------------------------------------------------------------------


def count_windows(lengths: np.ndarray, room: int) -> np.ndarray:
    """Windows of documents: two or more, so that each has a rest to predict, of at most two thirds of the room.

    Args:
        lengths: (N,) tokens of each document, at least 2.
        room: Longest window in tokens.

    Returns:
        (N,) integers, at least 2.
    """
    return np.maximum(2, -(-3 * np.asarray(lengths) // (2 * room)))


def cut_windows(lengths: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Cuts each document into its windows, of which every token is in exactly one.

    The windows are equally long but for their borders, each of which is moved at random by up to a quarter of a
    window in either direction: so a window has half to one and a half times the mean length, and another pass of
    another key sees other windows.

    Args:
        lengths: (N,) tokens of each document, at least 2.
        counts: (N,) windows of each, from `count_windows`.
        keys: (N,) uint64, one for each document and pass.

    Returns:
        (N, max(counts) + 1) borders, strictly increasing from 0 to the length, which is repeated behind the last one.
    """
    lengths, counts = np.asarray(lengths)[:, None], np.asarray(counts)[:, None]
    number = np.arange(counts.max() + 1)
    shift = (counter_uniforms(keys, len(number)) - 0.5) / 2
    borders = np.floor(lengths * (number + shift) / counts).astype(np.int64)
    # In a document of few tokens borders may fall together, or on an end.
    borders = np.clip(borders, number, lengths - counts + number)
    borders[:, 0] = 0
    return np.where(number < counts, borders, lengths)


# ---- words ----------------------------------------------------------------------------------------------------------


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a single text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    before = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:before], full[before + len(bare) :]


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


# ---- collator -------------------------------------------------------------------------------------------------------


class DataCollatorForTextJepa:
    """Pads texts and draws M masks for each, and a view if asked: the batch that [`TextJepaForPreTraining`] takes.

    Masks are a pure function of (`seed`, `epoch`, token ids of the text, number of the mask), and of the example's
    `step` where a strategy has a schedule; views of (`seed`, `epoch`, token ids). `epoch` is set by the trainer before
    each pass and shared with worker processes; an example of a stream brings its own.

    Texts with fewer than two usable tokens (neither special nor padding) pass through unhidden: they add no target and
    no loss.

    Args:
        tokenizer: With a padding token; tells special tokens and word borders apart.
        num_masks: M, masks drawn per text.
        mask_ratio, span_length_distribution, mean_span_length, max_span_length, whole_words: Of the single strategy,
            see [`MaskStrategy`].
        seed: Seed of masks and views.
        pad_to_multiple_of: Pad texts to a multiple of this length, for kernels that like it.
        num_spans, min_span_length: Of the single strategy, likewise.
        strategies: Instead of the single one: several, from which each mask draws its own by weight; each a
            [`MaskStrategy`] or its fields.
        equal_counts: Every mask of a batch gets as many context tokens as the one with the fewest, and likewise
            targets: the others lose single tokens at random, special tokens last, so that a span may have holes.
            Removes the padding of positions, as I-JEPA does; a mask then depends on its batch. Texts without targets
            may have less context.
        complement_masks: Masks come in pairs, of which one hides what the other sees: context and targets swapped.
        view: A second text for each. Of a window of a document, see `cut_windows`: `"rest"`, all of its document that
            lies outside of it, or `"neighbour"`, the window that follows (before the last one: that precedes). Of a
            text: `"same"`; `"crop"`, a run of words; `"crop_both"`, two runs,
            of which one becomes the text itself; `"deletion"`, without some words; `"column"` and `"next_sentence"`,
            what the examples bring as `view_input_ids`.
        view_ratio: Share of the words that a crop or a deletion keeps: a number or an interval.
        window_length: Longest window of a document in tokens, special tokens included; for a view of documents, whose
            examples are `input_ids` of a whole document without special tokens and the number of a `window`.

    Attributes:
        strategies: Tuple of [`MaskStrategy`].
        strategy_names: Their names, in the order of `mask_strategies`.
        follows_steps: Whether masks depend on the step: examples then carry `step`, see [`LengthGroupedSampler`].

    Raises:
        ValueError: The tokenizer has no padding token, or an argument is out of range.
    """

    def __init__(
        self,
        tokenizer: Any,
        num_masks: int = 1,
        mask_ratio: Share = 0.5,
        span_length_distribution: SpanLengthDistribution = "geometric",
        mean_span_length: float = 3.0,
        max_span_length: int = 10,
        whole_words: bool = True,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
        num_spans: int | None = None,
        min_span_length: int = 1,
        strategies: Sequence[MaskStrategy | Mapping[str, Any]] | None = None,
        equal_counts: bool = False,
        complement_masks: bool = False,
        view: View | None = None,
        view_ratio: float | Sequence[float] = (0.5, 0.9),
        window_length: int = 128,
    ):
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
        if num_masks < 1:
            raise ValueError(f"num_masks must be at least 1, got {num_masks}")
        if view not in (None, *get_args(View)):
            raise ValueError(f"view '{view}' is none of {', '.join(get_args(View))}")
        check_share("view_ratio", view_ratio, visible=True)
        if strategies is None:
            check_share("mask_ratio", mask_ratio)
            single = {
                "ratio": mask_ratio,
                "span_length_distribution": span_length_distribution,
                "mean_span_length": mean_span_length,
                "min_span_length": min_span_length,
                "max_span_length": max_span_length,
                "num_spans": num_spans,
                "whole_words": whole_words,
            }
            strategies = [MaskStrategy(**single)]
        elif not strategies:
            raise ValueError("strategies: at least one is needed")
        self.strategies = tuple(s if isinstance(s, MaskStrategy) else MaskStrategy(**s) for s in strategies)
        self.strategy_names = [strategy.name or strategy.kind for strategy in self.strategies]
        if len(set(self.strategy_names)) < len(self.strategy_names):
            raise ValueError(f"mask strategies need different names, got {', '.join(self.strategy_names)}")
        if complement_masks and (num_masks % 2 or any(s.context_ratio is not None for s in self.strategies)):
            raise ValueError("complement_masks needs an even num_masks, and strategies without context_ratio")
        self.follows_steps = any(isinstance(strategy.ratio, Mapping) for strategy in self.strategies)
        self.num_masks = num_masks
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        self.equal_counts = equal_counts
        self.complement_masks = complement_masks
        self.view = view
        self.view_ratio = view_ratio
        self._pad_token_id = tokenizer.pad_token_id
        around = special_tokens_around(tokenizer) if view in DOCUMENT_VIEWS else ([], [])
        self._before, self._after = (np.array(ids, dtype=np.int64) for ids in around)
        self.window_room = window_length - len(self._before) - len(self._after)
        # An unknown word is a word of the text, unless the same token also serves as another special one (GPT-2).
        names = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        unknown = names.pop("unk_token", None)
        special = set(tokenizer.all_special_ids)
        if unknown is not None and unknown not in names.values():
            special.discard(tokenizer.unk_token_id)
        self._continues, self._continued = word_start_table(tokenizer)
        self._is_special = np.zeros(len(self._continues), bool)
        self._is_special[sorted(special)] = True
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """The pass over the data that masks are drawn for; worker processes see a change at once.

        -1 stands for evaluation, which has masks of its own, of schedules those of the end.
        """
        return int(self._epoch)

    @epoch.setter
    def epoch(self, value: int):
        self._epoch.fill_(int(value))

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Texts, each with `input_ids` and perhaps its `epoch`, `step`, `view_input_ids` or `window`, to a batch.

        Returns:
            `input_ids` and `attention_mask` (B, S), `context_positions` (B, M, C), `target_positions` and
            `target_spans` (B, M, T); with several strategies `mask_strategies` (B, M), the number of each mask's; with
            a view `view_input_ids` and `view_attention_mask` (B, S'), of documents also `document_ids` (B,). All
            int64, positions and spans -1 where unused.
        """
        texts = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
        epochs = [example.get("epoch", self.epoch) for example in examples]
        views = {}
        if self.view in DOCUMENT_VIEWS:
            checksums = _checksums(texts)
            views["document_ids"] = checksums.astype(np.int64)
            texts, view_texts = self._windows(examples, texts, checksums, epochs)
        elif self.view is not None:
            texts, view_texts = self._views(examples, texts, epochs)
        if self.view is not None:
            views["view_input_ids"], present = self._pad(view_texts)
            views["view_attention_mask"] = present.astype(np.int64)
        input_ids, present = self._pad(texts)
        batch = {"input_ids": input_ids, "attention_mask": present.astype(np.int64)}
        batch |= self._masks(texts, epochs, self._steps(examples), input_ids, present) | views
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def masks_in_words(self) -> str:
        """What is hidden from the context encoder, and what the view is, in sentences for people."""
        if len(self.strategies) == 1:
            words = self.strategies[0].in_words()
        else:
            total = sum(strategy.weight for strategy in self.strategies)
            words = "each drawn from " + "; ".join(
                f"{name} ({strategy.weight / total:.0%} of the masks): {strategy.in_words()}"
                for name, strategy in zip(self.strategy_names, self.strategies, strict=True)
            )
        words = f"{self.num_masks} per text, {words}."
        if self.equal_counts:
            words += " All masks of a batch are cut to the same numbers of visible and of hidden tokens."
        if self.complement_masks:
            words += " Every other mask hides what the one before sees."
        share = share_in_words(self.view_ratio)
        view = {
            "rest": "the rest of its document",
            "neighbour": "the neighbouring window of its document",
            "same": "the same text",
            "crop": f"a run of {share} of its words",
            "crop_both": f"a run of {share} of its words, as the text itself is another one",
            "deletion": f"the text with {share} of its words, drawn at random",
            "column": "the second column of the dataset",
            "next_sentence": "the part of the document that follows",
        }
        return f"{words} The view of a text is {view[self.view]}." if self.view is not None else words

    def _pad(self, texts):
        """Token ids (B, S), and where there are some."""
        lengths = np.array([len(ids) for ids in texts])
        width = max(int(lengths.max()), 1)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        present = np.arange(width) < lengths[:, None]
        input_ids = np.full(present.shape, self._pad_token_id)
        input_ids[present] = np.concatenate(texts)
        return input_ids, present

    def _words(self, input_ids, present):
        """Which tokens may be hidden, and which begin a word."""
        usable = present & ~self._is_special[input_ids]
        joined = self._continues[input_ids[:, 1:]] & self._continued[input_ids[:, :-1]] & usable[:, :-1]
        return usable, np.concatenate([np.ones((len(input_ids), 1), bool), ~joined], axis=1)

    def _steps(self, examples):
        if not self.follows_steps:
            return np.zeros(len(examples))
        if self.epoch < 0:
            return np.full(len(examples), np.inf)
        if any("step" not in example for example in examples):
            raise ValueError(
                "a schedule of the mask ratio needs examples with a step, see text_jepa.data.TextsWithSteps"
            )
        return np.array([example["step"] for example in examples])

    def _views(self, examples, texts, epochs):
        """The texts themselves, and their views."""
        if self.view == "same":
            return texts, texts
        if self.view in ("column", "next_sentence"):
            return texts, [np.asarray(example["view_input_ids"], dtype=np.int64) for example in examples]
        input_ids, present = self._pad(texts)
        usable, word_starts = self._words(input_ids, present)
        keys = mask_keys(texts, 1, self.seed, epochs)

        def cut(choose, purpose):
            kept = present & choose(usable, word_starts, keys ^ purpose, self.view_ratio)
            return np.split(input_ids[kept], np.cumsum(kept.sum(axis=1))[:-1])

        if self.view == "crop_both":
            texts = cut(crop_words, _FOR_TEXT)
        return texts, cut(delete_words if self.view == "deletion" else crop_words, _FOR_VIEW)

    def _windows(
        self,
        examples: Sequence[Mapping[str, Any]],
        documents: list[np.ndarray],
        checksums: np.ndarray,
        epochs: list[int],
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The windows of documents that the examples name, and what each has to predict, with special tokens."""
        lengths = np.array([len(ids) for ids in documents])
        counts = count_windows(lengths, self.window_room)
        keys = _keys_of(checksums, 1, self.seed, epochs) ^ _FOR_WINDOW
        borders = cut_windows(lengths, counts, keys)
        row = np.arange(len(documents))
        number = np.array([example["window"] for example in examples])
        starts, ends = borders[row, number].tolist(), borders[row, number + 1].tolist()
        windows = [ids[start:end] for ids, start, end in zip(documents, starts, ends, strict=True)]
        if self.view == "rest":
            before = [ids[:start] for ids, start in zip(documents, starts, strict=True)]
            after = [ids[end:] for ids, end in zip(documents, ends, strict=True)]
            views = [[*parts] for parts in zip(before, after, strict=True)]
        else:
            other = np.where(number + 1 < counts, number + 1, number - 1)
            starts, ends = borders[row, other].tolist(), borders[row, other + 1].tolist()
            views = [[ids[start:end]] for ids, start, end in zip(documents, starts, ends, strict=True)]
        texts = [self._with_special_tokens(window) for window in windows]
        return texts, [self._with_special_tokens(*view) for view in views]

    def _with_special_tokens(self, *ids: np.ndarray) -> np.ndarray:
        return np.concatenate([self._before, *ids, self._after])

    def _masks(self, texts, epochs, steps, input_ids, present):
        """Positions and spans of M masks for each text."""
        masks = self.num_masks
        usable, word_starts = self._words(input_ids, present)
        present, usable, word_starts = (np.repeat(array, masks, axis=0) for array in (present, usable, word_starts))
        keys = mask_keys(texts, masks, self.seed, epochs)
        steps = np.repeat(steps, masks)[:, None]
        blocks = max(s.num_spans if s.kind == "blocks" else 1 for s in self.strategies)
        draws = counter_uniforms(keys ^ _FOR_STRATEGY, 2 + blocks)
        weights = np.cumsum([strategy.weight for strategy in self.strategies])
        chosen = np.searchsorted(weights / weights[-1], draws[:, 0], side="right")

        spans, visible = np.full(usable.shape, -1), usable
        for number, strategy in enumerate(self.strategies):
            rows = slice(None) if len(self.strategies) == 1 else np.flatnonzero(chosen == number)
            places = usable[rows], word_starts[rows] if strategy.whole_words else usable[rows]
            ratio = draw_share(strategy.ratio, draws[rows, 2:], steps[rows])
            if strategy.kind == "spans" and strategy.num_spans is None:
                lengths = (strategy.span_length_distribution, strategy.mean_span_length, strategy.max_span_length)
                spans[rows] = sample_spans(*places, keys[rows], ratio[:, 0], *lengths)
            else:
                count = strategy.num_spans if strategy.kind == "blocks" else 1
                spans[rows] = sample_blocks(*places, keys[rows], ratio[:, :count], strategy)
            if strategy.context_ratio is not None:
                visible = visible.copy()
                share = draw_share(strategy.context_ratio, draws[rows, 1], steps[rows])
                visible[rows] = context_block(*places, spans[rows] >= 0, keys[rows] ^ _FOR_CONTEXT, share)
        if self.complement_masks:
            first, second = spans[0::2], spans[1::2]
            swapped = np.where(usable[0::2] & (first < 0), 0, -1)
            second[:] = _number_spans(np.where((first >= 0).any(axis=1, keepdims=True), swapped, -1))
            chosen[1::2] = chosen[0::2]
        hidden = spans >= 0
        context = present & ~hidden & (visible | ~usable)
        if self.equal_counts and hidden.any():
            targeted = hidden.any(axis=1)
            cut = keys ^ _FOR_CUT
            context = cut_to_least(context, cut, targeted, keep=~usable)
            spans = _number_spans(np.where(cut_to_least(hidden, cut, targeted, keep=~usable), spans, -1))
            hidden = spans >= 0

        batch = {
            "context_positions": pack_positions(context),
            "target_positions": pack_positions(hidden),
            "target_spans": pack_positions(hidden, spans),
        }
        batch = {name: value.reshape(len(texts), masks, -1) for name, value in batch.items()}
        if len(self.strategies) > 1:
            batch["mask_strategies"] = chosen.reshape(len(texts), masks)
        return batch
