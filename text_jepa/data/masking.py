"""What is hidden of a text, what its second view is, and where a document is cut into windows: pure functions.

Everything random is a pure function of (seed, epoch, text): draws come from a counter-based hash instead of a running
generator, so that neither workers, ranks, batch-mates nor a resume can change a mask. Everything works on whole arrays
of shape (R, S) with R = texts × masks; there is no loop over tokens or rows.

All kinds of masks are spans laid on the usable tokens of a row: all but special tokens and padding. Words are hidden
whole unless a strategy works on tokens.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np


SpanLengthDistribution = Literal["fixed", "uniform", "geometric", "poisson"]
MaskKind = Literal["spans", "suffix", "keep_block", "blocks"]
View = Literal["rest", "neighbour", "same", "crop", "crop_both", "deletion", "column", "next_sentence"]

# Views for which an example is a window of a whole document.
DOCUMENT_VIEWS = ("rest", "neighbour")

# Views for which every example brings a second text.
DATA_VIEWS = ("column", "next_sentence")

# A share of a text: a number, an interval to draw from, or the schedule {"start": …, "end": …, "steps": …}.
Share = float | Sequence[float] | Mapping[str, float]

_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
_PURPOSE = np.uint64(0x0D6E8FEB86659FD9)
_MASK_NUMBER = np.uint64(0xD1342543DE82EF95)

# Added to a key by exclusive or, these make draws for one purpose independent of those for another.
FOR_STRATEGY = np.uint64(1) * _PURPOSE
FOR_CONTEXT = np.uint64(2) * _PURPOSE
FOR_CUT = np.uint64(3) * _PURPOSE
FOR_TEXT = np.uint64(4) * _PURPOSE
FOR_VIEW = np.uint64(5) * _PURPOSE
FOR_WINDOW = np.uint64(6) * _PURPOSE


# ---- strategies -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MaskStrategy:
    """One way to hide a part of a text.

    `kind` is one of:

    - `"spans"`: spans whose lengths follow a distribution hide a share of the text, all positions equally often
      (random tokens are spans of the fixed length 1 without whole words). With `num_spans`: that number of spans of
      `min_span_length` to `max_span_length` tokens, shortened where they would hide more than `ratio` together.
    - `"suffix"`: the last share (UL2's S-denoiser, arXiv 2205.05131).
    - `"keep_block"`: all but one block (the inverse block masks of data2vec 2.0, arXiv 2212.07525).
    - `"blocks"`: `num_spans` disjoint blocks of the share `ratio` each (I-JEPA's targets, arXiv 2301.08243).

    Args:
        kind: See above.
        ratio: Share of the usable tokens to hide, at least 0 and below 1: a number; an interval `(low, high)`, drawn
            from for every mask (`"blocks"`: for every block); or `{"start": a, "end": b, "steps": n}`, which moves
            from a to b in n optimizer steps and stays there.
        span_length_distribution, mean_span_length, max_span_length: See `span_lengths`.
        min_span_length: With `num_spans`: shortest span in tokens; lengths are uniform up to `max_span_length`.
        num_spans: Number of spans or blocks.
        context_ratio: Share of the text, above 0, of the block in which the visible tokens lie: a number or an
            interval (I-JEPA's context). Default: all that is not hidden is visible.
        whole_words: Hide whole words; otherwise single tokens count as words.
        weight: How often the strategy is drawn, relative to the weights of the others.
        name: For logs and errors. Default: the kind.

    Raises:
        ValueError: A field is out of range, or not used by this kind.
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
            self._check_types()
            self._check_ranges()
            self._check_unused_fields()
        except ValueError as error:
            message = f"mask strategy '{self.name}': {error}" if self.name else str(error)
            raise ValueError(message) from error

    def _check_types(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"kind '{self.kind}' is none of {', '.join(get_args(MaskKind))}")
        for name in ("weight", "mean_span_length"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for name in ("min_span_length", "max_span_length", "num_spans"):
            value = getattr(self, name)
            is_unset = name == "num_spans" and value is None
            if not is_unset and not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        known = get_args(SpanLengthDistribution)
        if self.span_length_distribution not in known:
            raise ValueError(
                f"span_length_distribution '{self.span_length_distribution}' is none of {', '.join(known)}"
            )

    def _check_ranges(self) -> None:
        check_share("ratio", self.ratio)
        if self.context_ratio is not None:
            check_visible_share("context_ratio", self.context_ratio)
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if self.num_spans is not None and self.num_spans < 1:
            raise ValueError(f"num_spans must be at least 1, got {self.num_spans}")
        if self.kind == "blocks" and self.num_spans is None:
            raise ValueError("kind 'blocks' needs num_spans, the number of blocks")
        name = "mean_span_length" if self.num_spans is None else "min_span_length"
        value = getattr(self, name)
        if not 1 <= value <= self.max_span_length:
            raise ValueError(f"{name} must lie between 1 and max_span_length ({self.max_span_length}), got {value}")

    def _check_unused_fields(self) -> None:
        used = self._used_span_fields()
        for field in dataclasses.fields(self):
            is_unused = "span" in field.name and field.name not in used
            if is_unused and getattr(self, field.name) != field.default:
                way = ""
                if self.kind == "spans":
                    way = " without num_spans" if self.num_spans is None else " with num_spans"
                raise ValueError(f"{field.name} is not used by kind '{self.kind}'{way}")

    def _used_span_fields(self) -> set[str]:
        if self.kind == "blocks":
            return {"num_spans"}
        if self.kind != "spans":
            return set()
        if self.num_spans is None:
            return {"span_length_distribution", "mean_span_length", "max_span_length"}
        return {"num_spans", "min_span_length", "max_span_length"}

    def describe(self) -> str:
        """What is hidden, as a part of a sentence."""
        hidden = self._describe_hidden()
        if self.context_ratio is None:
            return hidden
        return f"{hidden}, the rest visible in a block of {describe_share(self.context_ratio)} of the text"

    def _describe_hidden(self) -> str:
        share = describe_share(self.ratio)
        unit = "words" if self.whole_words else "tokens"
        if self.ratio == 0:
            return "nothing hidden"
        if self.kind == "suffix":
            return f"the last {share} of the {unit} hidden"
        if self.kind == "keep_block":
            return f"{share} of the {unit} hidden, all around a block that stays"
        if self.kind == "blocks":
            return f"{self.num_spans} blocks of {share} of the {unit} each hidden"
        if self.num_spans is not None:
            lengths = f"{self.min_span_length} to {self.max_span_length} tokens"
            return f"{self.num_spans} spans of {lengths} hidden, {share} of the {unit} at most"
        if self.span_length_distribution == "fixed":
            length = round(self.mean_span_length)
            tokens = "tokens" if length > 1 else "token"
            return f"{share} of the {unit} hidden in spans of {length} {tokens}"
        return (
            f"{share} of the {unit} hidden in spans of {self.span_length_distribution} length, "
            f"{self.mean_span_length:g} tokens on average"
        )


@dataclasses.dataclass(frozen=True)
class ViewStrategy:
    """How an example gets its second text, the view.

    `kind` is one of:

    - `"rest"`: all of the document that lies outside of the window, see `cut_windows`.
    - `"neighbour"`: the window that follows in the document; for the last one the window before it.
    - `"same"`: the text itself.
    - `"crop"`: a run of its words. `"crop_both"`: two runs, of which one becomes the text itself.
    - `"deletion"`: the text without some of its words (TSDAE, arXiv 2104.06979).
    - `"column"`, `"next_sentence"`: what the example brings as `view_input_ids`.

    Args:
        kind: See above.
        ratio: Share of the words that a crop or a deletion keeps: a number or an interval to draw from.
        window_length: Longest window of a document in tokens, special tokens included, for `"rest"` and
            `"neighbour"`.

    Raises:
        ValueError: The kind is unknown, or the ratio out of range.
    """

    kind: View
    ratio: float | Sequence[float] = (0.5, 0.9)
    window_length: int = 128

    def __post_init__(self):
        known = get_args(View)
        if self.kind not in known:
            raise ValueError(f"view '{self.kind}' is none of {', '.join(known)}")
        check_visible_share("view_ratio", self.ratio)

    @property
    def is_of_document(self) -> bool:
        """Whether examples are windows of whole documents."""
        return self.kind in DOCUMENT_VIEWS

    def describe(self) -> str:
        """What the view is, as a part of a sentence."""
        share = describe_share(self.ratio)
        descriptions = {
            "rest": "the rest of its document",
            "neighbour": "the neighbouring window of its document",
            "same": "the same text",
            "crop": f"a run of {share} of its words",
            "crop_both": f"a run of {share} of its words, as the text itself is another one",
            "deletion": f"the text with {share} of its words, drawn at random",
            "column": "the second column of the dataset",
            "next_sentence": "the part of the document that follows",
        }
        return descriptions[self.kind]


# ---- shares ---------------------------------------------------------------------------------------------------------


def check_share(name: str, share: Share) -> None:
    """Raises ValueError, which names the argument, unless a share of this size may be hidden: 0 ≤ share < 1."""
    if isinstance(share, Mapping):
        if set(share) != {"start", "end", "steps"}:
            raise ValueError(f"{name}: a schedule has start, end and steps, got {', '.join(map(str, share))}")
        steps = share["steps"]
        if not isinstance(steps, (int, float)) or not steps >= 1:
            raise ValueError(f"{name}: steps of the schedule must be at least 1, got {steps}")
        bounds = [share["start"], share["end"]]
    else:
        bounds = _bounds(name, share)
    for bound in bounds:
        if not isinstance(bound, (int, float)) or not 0 <= bound < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {bound}")


def check_visible_share(name: str, share: float | Sequence[float]) -> None:
    """Raises ValueError, which names the argument, unless a share of this size may be left visible: 0 < share ≤ 1."""
    for bound in _bounds(name, share):
        if not isinstance(bound, (int, float)) or not 0 < bound <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {bound}")


def _bounds(name: str, share: float | Sequence[float]) -> list[float]:
    """The number, or the two ends of the interval."""
    if isinstance(share, str) or not isinstance(share, Sequence):
        return [share]
    bounds = list(share)
    if len(bounds) != 2:
        raise ValueError(f"{name}: an interval has two ends, got {len(bounds)}")
    are_numbers = all(isinstance(bound, (int, float)) for bound in bounds)
    if are_numbers and bounds[0] > bounds[1]:
        raise ValueError(f"{name}: the interval ends ({bounds[1]}) before it begins ({bounds[0]})")
    return bounds


def draw_share(
    share: Share,
    uniforms: np.ndarray,
    steps: np.ndarray,
) -> np.ndarray:
    """The share of each row: the number itself, a draw from the interval, or the schedule's value at the step.

    Args:
        share: See `MaskStrategy.ratio`.
        uniforms: (R, N) draws in [0, 1).
        steps: (R, 1) optimizer steps done.

    Returns:
        (R, N), or (R, 1) from a schedule.
    """
    if isinstance(share, Mapping):
        progress = np.minimum(steps / share["steps"], 1.0)
        return share["start"] + (share["end"] - share["start"]) * progress
    low, high = share if isinstance(share, Sequence) else (share, share)
    return low + (high - low) * uniforms


def describe_share(share: Share) -> str:
    """A share in percent."""
    if isinstance(share, Mapping):
        start = describe_share(share["start"])
        end = describe_share(share["end"])
        return f"{start} (at first) to {end} (from step {share['steps']:,} on)"
    bounds = share if isinstance(share, Sequence) else [share]
    return " to ".join(f"{100 * bound:.3g}%" for bound in bounds)


# ---- random draws ---------------------------------------------------------------------------------------------------


def counter_uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """Uniform draws in [0, 1) that depend on nothing but the key and the column.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014) on key + column · golden ratio.

    Args:
        keys: (R,) uint64.
        count: Number of draws per key.

    Returns:
        (R, count) float64.
    """
    columns = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = keys[:, None] + columns * _GOLDEN_RATIO
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    mantissa = x >> np.uint64(11)
    return mantissa.astype(np.float64) * 2.0**-53


def mask_keys(
    texts: Sequence[np.ndarray],
    num_masks: int,
    seed: int,
    epochs: int | Sequence[int],
) -> np.ndarray:
    """One key per (text, mask), from the token ids themselves and the epoch that each text belongs to.

    Args:
        texts: B texts, each an array of token ids.
        num_masks: M.
        seed: Any integer.
        epochs: An integer, or B of them.

    Returns:
        (B · M,) uint64, texts outermost.
    """
    return keys_of_checksums(text_checksums(texts), num_masks, seed, epochs)


def text_checksums(texts: Sequence[np.ndarray]) -> np.ndarray:
    """Checksums of the token ids of texts, which tell them apart: (B,) uint64."""
    checksums = [zlib.crc32(ids.tobytes()) for ids in texts]
    return np.array(checksums, dtype=np.uint64)


def keys_of_checksums(
    checksums: np.ndarray,
    num_masks: int,
    seed: int,
    epochs: int | Sequence[int],
) -> np.ndarray:
    """`mask_keys` of texts whose `text_checksums` (B,) are known."""
    seed_bits = _spread_bits(np.array([seed]), column=0)
    epoch_bits = _spread_bits(np.atleast_1d(epochs), column=1)
    text_bits = checksums << np.uint64(20)
    text_keys = text_bits ^ seed_bits ^ (epoch_bits << np.uint64(11))
    numbers = np.arange(num_masks, dtype=np.uint64)
    with np.errstate(over="ignore"):
        keys = text_keys[:, None] * _GOLDEN_RATIO + numbers * _MASK_NUMBER
    return keys.reshape(-1)


def _spread_bits(integers: np.ndarray, column: int) -> np.ndarray:
    """Small integers spread over 53 bits, in another way for each column: (N,) -> (N,) uint64."""
    keys = integers.astype(np.int64).astype(np.uint64)
    draws = counter_uniforms(keys, column + 1)[:, column]
    return (draws * 2.0**53).astype(np.uint64)


# ---- masks ----------------------------------------------------------------------------------------------------------


class _Words(NamedTuple):
    """The usable tokens of rows, and the words that they form.

    Args:
        usable: (R, S) boolean, False for special tokens and padding.
        rank: (R, S) number of each usable token along its row, from 0.
        first: (R, S) rank of the first token of its word.
        counts: (R,) usable tokens.
    """

    usable: np.ndarray
    rank: np.ndarray
    first: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, usable: np.ndarray, word_starts: np.ndarray) -> "_Words":
        rank = np.cumsum(usable, axis=1) - 1
        begins = usable & (word_starts | (rank == 0))
        rank_of_start = np.where(begins, rank, 0)
        first = np.maximum.accumulate(rank_of_start, axis=1)
        return cls(usable, rank, first, usable.sum(axis=1))

    def sizes(self) -> np.ndarray:
        """(R, S) tokens of the word that each usable token belongs to."""
        rows, width = self.first.shape
        offset = np.arange(rows) * width
        word = self.first + offset[:, None]
        sizes = np.bincount(word[self.usable], minlength=rows * width)
        return sizes[word]

    def drawn_place(self, uniforms: np.ndarray) -> np.ndarray:
        """(R, S) rank of a token of each token's word, drawn by its place in the word with uniforms (R, 1)."""
        return self.first + _draw_index(uniforms, self.sizes())


class _Spans(NamedTuple):
    """Disjoint spans in order on the usable tokens of rows; a length may be 0.

    Args:
        starts: (R, K) rank of the first token.
        lengths: (R, K) tokens.
    """

    starts: np.ndarray
    lengths: np.ndarray


def span_lengths(
    uniforms: np.ndarray,
    distribution: SpanLengthDistribution,
    mean_length: float,
    max_length: int,
) -> np.ndarray:
    """Lengths of spans in tokens, by inverting the distribution: draws in [0, 1) -> integers of the same shape.

    Args:
        uniforms: Draws, any shape.
        distribution: `"fixed"` (the mean, rounded), `"uniform"` on 1 … 2 · mean - 1, `"geometric"` with success
            probability 1 / mean (SpanBERT, arXiv 1907.10529), `"poisson"` with the mean, zero raised to one (BART).
        mean_length: Mean before `max_length` cuts, at least 1.
        max_length: Longest span.
    """
    if distribution == "fixed":
        lengths = np.full(uniforms.shape, round(mean_length))
    elif distribution == "uniform":
        longest = round(2 * mean_length) - 1
        lengths = 1 + np.floor(uniforms * longest)
    elif distribution == "geometric":
        lengths = _geometric_lengths(uniforms, mean_length)
    else:
        lengths = _poisson_lengths(uniforms, mean_length, max_length)
    return np.clip(lengths, 1, max_length).astype(np.int64)


def _geometric_lengths(uniforms: np.ndarray, mean_length: float) -> np.ndarray:
    survival = 1 - 1 / mean_length
    if survival == 0:
        return np.ones(uniforms.shape)
    trials = np.log1p(-uniforms) / np.log(survival)
    return 1 + np.floor(trials)


def _poisson_lengths(
    uniforms: np.ndarray,
    mean_length: float,
    max_length: int,
) -> np.ndarray:
    support = np.arange(1, max_length + 1)
    log_ratios = np.log(mean_length / support)
    probabilities = np.exp(np.cumsum(log_ratios) - mean_length)
    cumulative = np.exp(-mean_length) + np.cumsum(probabilities)
    return 1 + np.searchsorted(cumulative, uniforms, side="right")


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

    The usable tokens of a row form a circle on which hidden spans and visible gaps alternate. Lengths of spans follow
    the distribution, the visible rest is dealt to the gaps at random, and the circle is turned by a random angle: so
    each token is hidden with the same probability, spans never overlap, and no place near the ends is special. A word
    is hidden if its first token falls into a span, which keeps that probability for every word.

    A row never loses its last visible word: with fewer than two usable tokens nothing is hidden, and if all words
    were hit, one of them stays. Nor does it go without a target: if spans hit no word, one is hidden.

    Args:
        usable: (R, S) boolean, False for special tokens and padding.
        word_starts: (R, S) boolean, True where a token begins a word.
        keys: (R,) uint64 from `mask_keys`.
        ratio: Share of the usable tokens to hide, at least 0 and below 1; a number, or (R,) of them.
        distribution, mean_length, max_length: See `span_lengths`.

    Returns:
        (R, S) integers: the span of each hidden token, counted from 0 along the row, -1 where visible.
    """
    words = _Words.of(usable, word_starts)
    counts = words.counts
    most = _most_hidden(counts, ratio)
    if most == 0:
        return np.full(usable.shape, -1)
    draws = counter_uniforms(keys, 3 + 2 * most)
    # Lengths and gaps take turns, so that a draw's column does not depend on the longest text of the batch.
    length_draws = draws[:, 3::2]
    gap_draws = draws[:, 4::2]
    hidden = _tokens_to_hide(counts, ratio, draws[:, 0])

    # Spans in drawing order until they hold that many tokens; the last one is cut.
    lengths = span_lengths(length_draws, distribution, mean_length, max_length)
    ends = np.minimum(np.cumsum(lengths, axis=1), hidden[:, None])
    lengths = np.diff(ends, axis=1, prepend=0)
    gaps = _gaps_up_to(lengths, gap_draws, counts - hidden)
    starts = ends - lengths
    starts[:, 1:] += gaps[:, :-1]

    turn = _draw_index(draws[:, 1], counts)
    circumference = np.maximum(counts, 1)
    places = (words.first - turn[:, None]) % circumference[:, None]
    kept = _draw_index(draws[:, 2], counts)
    return _hide_words(words, places, _Spans(starts, lengths), kept, taken=kept)


def _gaps_up_to(
    lengths: np.ndarray,
    uniforms: np.ndarray,
    visible: np.ndarray,
) -> np.ndarray:
    """(R, K) visible tokens before the gap behind each span ends, of `visible` (R,) dealt to the gaps at random."""
    exponentials = np.where(lengths > 0, -np.log1p(-uniforms), 0.0)
    shares = np.cumsum(exponentials, axis=1)
    smallest = np.finfo(np.float64).tiny
    total = np.maximum(shares[:, -1:], smallest)
    gaps = shares / total * visible[:, None]
    return np.floor(gaps).astype(np.int64)


def sample_blocks(
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    ratio: np.ndarray,
    strategy: MaskStrategy,
) -> np.ndarray:
    """Hides by every kind of strategy but spans of a ratio: few spans that begin and end within the text.

    Tokens near the ends of a text are hidden less often than those in the middle. A word is hidden if a token of it,
    drawn once for all words of the row by its place in the word, falls into a span: shares are right in expectation.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        ratio: (R, N) shares; N is `num_spans` for `"blocks"`, else 1.
        strategy: Its kind and numbers; `ratio` and `whole_words` are taken from the other arguments.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    words = _Words.of(usable, word_starts)
    counts = words.counts
    if _most_hidden(counts, ratio) == 0:
        return np.full(usable.shape, -1)
    number = strategy.num_spans or 1
    draws = counter_uniforms(keys, 3 + 2 * number)
    hidden = _tokens_to_hide(counts, ratio[:, 0], draws[:, 0])
    kept = _draw_index(draws[:, 2], counts)
    taken = kept
    length_draws = draws[:, 3 : 3 + number]
    place_draws = draws[:, 3 + number :]
    if strategy.kind == "suffix":
        start = counts - hidden
        spans = _Spans(start[:, None], hidden[:, None])
        kept = np.zeros_like(kept)
        taken = counts - 1
    elif strategy.kind == "keep_block":
        spans = _spans_around_block(counts, hidden, draws[:, 3])
    elif strategy.kind == "blocks":
        wanted = np.floor(ratio * counts[:, None] + length_draws)
        spans = _scatter_spans(counts, wanted, np.maximum(counts - 1, 0), place_draws)
    else:
        sizes = strategy.max_span_length - strategy.min_span_length + 1
        wanted = strategy.min_span_length + np.floor(length_draws * sizes)
        spans = _scatter_spans(counts, wanted, hidden, place_draws)
    places = words.drawn_place(draws[:, 1:2])
    return _hide_words(words, places, spans, kept, taken)


def _spans_around_block(
    counts: np.ndarray,
    hidden: np.ndarray,
    uniforms: np.ndarray,
) -> _Spans:
    """The spans before and behind a visible block, which begins anywhere: (R,) -> (R, 2)."""
    front = _draw_index(uniforms, hidden + 1)
    back = hidden - front
    starts = np.stack([np.zeros_like(front), counts - back], axis=1)
    return _Spans(starts, lengths=np.stack([front, back], axis=1))


def _scatter_spans(
    counts: np.ndarray,
    wanted: np.ndarray,
    most: np.ndarray,
    uniforms: np.ndarray,
) -> _Spans:
    """Spans of the wanted lengths (R, K) at random places, shortened alike where they exceed `most` (R,) together."""
    ends = np.cumsum(wanted, axis=1)
    total = np.maximum(ends[:, -1], 1)
    scale = np.minimum(most, total) / total
    ends = np.floor(ends * scale[:, None] + 1e-9).astype(np.int64)
    lengths = np.diff(ends, axis=1, prepend=0)
    visible = counts - ends[:, -1]
    in_order = np.sort(uniforms, axis=1)
    visible_before = _draw_index(in_order, visible[:, None] + 1)
    starts = ends - lengths + visible_before
    return _Spans(starts, lengths)


def context_block(
    usable: np.ndarray,
    word_starts: np.ndarray,
    hidden: np.ndarray,
    keys: np.ndarray,
    share: np.ndarray,
) -> np.ndarray:
    """The usable tokens that are visible in a block of the text: whole words, at least one.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        hidden: (R, S) boolean, the targets; a row has a visible word beside them.
        share: (R,) length of the block as a share of the usable tokens.

    Returns:
        (R, S) boolean.
    """
    words = _Words.of(usable, word_starts)
    counts = words.counts
    draws = counter_uniforms(keys, 4)
    length = np.floor(share * counts + draws[:, 0])
    length = np.clip(length, 1, np.maximum(counts, 1))
    start = np.floor(draws[:, 1] * (counts - length + 1))
    place = words.drawn_place(draws[:, 2:3])
    free = usable & ~hidden
    visible = free & _lies_in(place, start, length)

    # In a block of targets only, a visible word of the text stays instead.
    emptied = ~visible.any(axis=1)
    number = np.cumsum(free, axis=1) - 1
    chosen = np.floor(draws[:, 3] * free.sum(axis=1))
    is_chosen = free & (number == chosen[:, None])
    kept_word = np.where(is_chosen, words.first, -1).max(axis=1)
    kept = free & (words.first == kept_word[:, None])
    return visible | (emptied[:, None] & kept)


def _most_hidden(counts: np.ndarray, ratio: float | np.ndarray) -> int:
    """Bound of the number of tokens that any row hides; 0 if none hides any."""
    longest = int(counts.max(initial=0))
    if longest < 2 or not np.any(ratio):
        return 0
    return longest - 1


def _tokens_to_hide(
    counts: np.ndarray,
    ratio: float | np.ndarray,
    uniforms: np.ndarray,
) -> np.ndarray:
    # Rounding at random keeps the ratio exact in expectation.
    hidden = np.floor(ratio * counts + uniforms).astype(np.int64)
    hidden = np.clip(hidden, 0, counts - 1)
    return np.where(counts < 2, 0, hidden)


def _draw_index(uniforms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Integers below `counts`, all equally likely, from draws in [0, 1): of the shape of both."""
    return np.floor(uniforms * counts).astype(np.int64)


def _lies_in(place: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(R, S) boolean: whether a place (R, S) lies in the run of its row, given by start (R,) and length (R,)."""
    end = start + length
    return (place >= start[:, None]) & (place < end[:, None])


def _hide_words(
    words: _Words,
    places: np.ndarray,
    spans: _Spans,
    kept: np.ndarray,
    taken: np.ndarray,
) -> np.ndarray:
    """Hides each word whose place lies in a span, and numbers the spans that remain along the row.

    Args:
        words: The usable tokens.
        places: (R, S) rank that decides about each token, the same for all tokens of a word.
        spans: What to hide.
        kept: (R,) rank of a token whose word stays where all words are hit.
        taken: (R,) rank of a token whose word is hidden where there are spans, but no word is hit.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    found = np.take_along_axis(_span_at_rank(words.counts, spans), places, axis=1)
    span = np.where(words.usable, found, -1)

    # Before the last word is kept, for in a text of one word nothing is hidden.
    has_spans = spans.lengths.sum(axis=1) > 0
    missed = has_spans & (span < 0).all(axis=1)
    if missed.any():
        span = np.where(missed[:, None] & _word_of(words, taken), 0, span)
    emptied = (span >= 0).sum(axis=1) == words.counts
    if emptied.any():
        span = np.where(emptied[:, None] & _word_of(words, kept), -1, span)
    # Turning a circle may have split a span at the ends, and rounding to words have removed one.
    return number_spans(span)


def _word_of(words: _Words, rank: np.ndarray) -> np.ndarray:
    """(R, S) boolean: the tokens of the word to which the token of a rank (R,) belongs."""
    is_there = words.usable & (words.rank == rank[:, None])
    first = np.where(is_there, words.first, -1).max(axis=1)
    return words.usable & (words.first == first[:, None])


def _span_at_rank(counts: np.ndarray, spans: _Spans) -> np.ndarray:
    """(R, max(counts) + 1) the span that covers each rank, -1 where none does."""
    # An even mark at each start, the odd one that follows behind each end: the last mark before a rank decides.
    rows = len(spans.lengths)
    width = int(counts.max()) + 1
    marks = np.zeros((rows, width), np.int64)
    row, number = np.nonzero(spans.lengths)
    begin = spans.starts[row, number]
    end = begin + spans.lengths[row, number]
    marks[row, end] = 2 * number + 3
    marks[row, begin] = 2 * number + 2  # in the place of an end, where spans touch
    marks = np.maximum.accumulate(marks, axis=1)
    is_inside = (marks > 0) & (marks % 2 == 0)
    return np.where(is_inside, marks, -1)


def number_spans(span: np.ndarray) -> np.ndarray:
    """Numbers runs of equal spans from left to right; -1 stays: (R, S) -> (R, S)."""
    before = np.full_like(span, -1)
    before[:, 1:] = span[:, :-1]
    is_hidden = span >= 0
    begins = is_hidden & (span != before)
    numbers = np.cumsum(begins, axis=1) - 1
    return np.where(is_hidden, numbers, -1)


def split_words(
    usable: np.ndarray,
    word_starts: np.ndarray,
    may_start: np.ndarray,
    longest: int,
) -> np.ndarray:
    """Splits words of more than `longest` tokens, and the only word of a text, of which nothing could be hidden.

    Such words are none: DNA, base64, clauses of a script without blanks.

    Args:
        usable, word_starts: See `sample_spans`.
        may_start: (R, S) boolean, False for tokens that never begin a word, such as the rest of a character.
        longest: Most tokens of a word.

    Returns:
        (R, S) boolean, where a token begins a word.
    """
    words = _Words.of(usable, word_starts)
    sizes = words.sizes()
    splits = (sizes > longest) | (sizes == words.counts[:, None])
    return word_starts | (usable & may_start & splits)


# ---- views of a text ------------------------------------------------------------------------------------------------


def crop_words(
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    share: Share,
) -> np.ndarray:
    """Keeps a run of whole words, at least one, that begins anywhere, and all that is not usable.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        share: Share of the words to keep; a number or an interval.

    Returns:
        (R, S) boolean.
    """
    word, words = _number_words(usable, word_starts)
    draws = counter_uniforms(keys, 3)
    kept = _words_to_keep(words, share, draws)
    start = np.floor(draws[:, 2] * (words - kept + 1))
    return ~usable | _lies_in(word, start, kept)


def delete_words(
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    share: Share,
) -> np.ndarray:
    """Keeps words at random, at least one, in their order (TSDAE, arXiv 2104.06979); arguments as of `crop_words`."""
    word, words = _number_words(usable, word_starts)
    starts_of_row = (usable & word_starts).sum(axis=1)
    most = int(starts_of_row.max(initial=0)) + 1  # the first usable token begins a word too
    draws = counter_uniforms(keys, 2 + most)
    kept = _words_to_keep(words, share, draws)
    is_word = np.arange(most) < words[:, None]
    order = np.where(is_word, draws[:, 2:], 2.0)
    ranked = order.argsort(axis=1, kind="stable")
    place_of_word = ranked.argsort(axis=1, kind="stable")
    place_of_token = np.take_along_axis(place_of_word, np.maximum(word, 0), axis=1)
    return ~usable | (place_of_token < kept[:, None])


def _number_words(usable: np.ndarray, word_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, S) number of each usable token's word, from 0, and (R,) words of each row."""
    words = _Words.of(usable, word_starts)
    begins = usable & (words.rank == words.first)
    number = np.cumsum(begins, axis=1) - 1
    return number, number[:, -1] + 1


def _words_to_keep(
    words: np.ndarray,
    share: Share,
    draws: np.ndarray,
) -> np.ndarray:
    """(R,) words that stay, at least one, by the first two draws."""
    shares = draw_share(share, draws[:, 0], np.zeros(1))
    kept = np.floor(shares * words + draws[:, 1])
    return np.clip(kept, 1, np.maximum(words, 1))


# ---- windows of a document ------------------------------------------------------------------------------------------


def count_windows(lengths: np.ndarray, room: int) -> np.ndarray:
    """Windows of documents, of at most two thirds of the room on average; at least two, so that each has a rest.

    Args:
        lengths: (N,) tokens of each document, at least 2.
        room: Longest window in tokens.

    Returns:
        (N,) integers, at least 2.
    """
    thirds = 3 * np.asarray(lengths)
    counts = -(-thirds // (2 * room))  # rounded up
    return np.maximum(2, counts)


def cut_windows(
    lengths: np.ndarray,
    counts: np.ndarray,
    keys: np.ndarray,
) -> np.ndarray:
    """Cuts each document into its windows; every token is in exactly one.

    The windows are equally long but for their borders, each of which is moved at random by up to a quarter of a
    window in either direction: so a window has half to one and a half times the mean length, and another epoch, with
    another key, has other windows.

    Args:
        lengths: (N,) tokens of each document, at least 2.
        counts: (N,) windows of each, from `count_windows`.
        keys: (N,) uint64, one for each document and epoch.

    Returns:
        (N, max(counts) + 1) borders, strictly increasing from 0 to the length, which is repeated behind the last one.
    """
    lengths = np.asarray(lengths)[:, None]
    counts = np.asarray(counts)[:, None]
    number = np.arange(counts.max() + 1)
    shift = (counter_uniforms(keys, len(number)) - 0.5) / 2
    borders = lengths * (number + shift) / counts
    borders = np.floor(borders).astype(np.int64)
    # In a document of few tokens borders may fall together, or on an end.
    last_place = lengths - counts + number
    borders = np.clip(borders, number, last_place)
    borders[:, 0] = 0
    return np.where(number < counts, borders, lengths)
