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
from typing import Literal, get_args

import numpy as np


SpanLengthDistribution = Literal["fixed", "uniform", "geometric", "poisson"]
MaskKind = Literal["spans", "suffix", "keep_block", "blocks"]
View = Literal["rest", "neighbour", "same", "crop", "crop_both", "deletion", "column", "next_sentence"]

# Views for which an example is a window of a whole document.
DOCUMENT_VIEWS = ("rest", "neighbour")

# A share of a text: itself, an interval from which it is drawn, or {"start": …, "end": …, "steps": …}.
Share = float | Sequence[float] | Mapping[str, float]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# Keys of draws that must not repeat those of the spans.
FOR_STRATEGY, FOR_CONTEXT, FOR_CUT, FOR_TEXT, FOR_VIEW, FOR_WINDOW = (
    np.uint64(i) * np.uint64(0x0D6E8FEB86659FD9) for i in range(1, 7)
)


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
    return number_spans(span)


def number_spans(span):
    """Runs of equal spans numbered from left to right; -1 stays."""
    before = np.concatenate([np.full((len(span), 1), -1), span[:, :-1]], axis=1)
    numbers = np.cumsum((span >= 0) & (span != before), axis=1) - 1
    return np.where(span >= 0, numbers, -1)


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
