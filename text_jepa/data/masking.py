"""Samples the spans that masks hide from a text.

*Usable* tokens are all tokens except special tokens and padding. All functions work on arrays of shape (R, S) with
R = texts × masks, without loops over tokens or rows. The *rank* of a token is its index among the usable tokens of its
row. Draws are pure functions of keys, see `text_jepa.data.draws`.
"""

from typing import NamedTuple

import numpy as np

from text_jepa.data.draws import counter_uniforms
from text_jepa.data.strategies import MaskStrategy, SpanLengthDistribution


class Words(NamedTuple):
    """The usable tokens of each row, grouped into words.

    Args:
        usable: (R, S) boolean, False for special tokens and padding.
        rank: (R, S) index of each usable token among those of its row.
        first: (R, S) rank of the first token of the word that a token belongs to.
        counts: (R,) number of usable tokens.
    """

    usable: np.ndarray
    rank: np.ndarray
    first: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, usable: np.ndarray, word_starts: np.ndarray) -> "Words":
        """Groups usable tokens (R, S) into words, by the tokens (R, S) that begin one."""
        rank = np.cumsum(usable, axis=1) - 1
        begins = usable & (word_starts | (rank == 0))
        rank_of_start = np.where(begins, rank, 0)
        first = np.maximum.accumulate(rank_of_start, axis=1)
        counts = usable.sum(axis=1)
        return cls(usable, rank, first, counts)

    def sizes(self) -> np.ndarray:
        """(R, S) length in tokens of the word that each usable token belongs to."""
        rows, width = self.first.shape
        # Words are numbered across all rows, so that one call counts the tokens of all of them.
        offset = np.arange(rows) * width
        word = self.first + offset[:, None]
        sizes = np.bincount(word[self.usable], minlength=rows * width)
        return sizes[word]

    def drawn_place(self, uniforms: np.ndarray) -> np.ndarray:
        """(R, S) rank of a token drawn from the word of each token, by one uniform (R, 1) for all words of a row."""
        return self.first + _draw_index(uniforms, self.sizes())


class _Spans(NamedTuple):
    """Disjoint spans of the usable tokens of rows, from left to right.

    Args:
        starts: (R, K) rank of the first token.
        lengths: (R, K) number of tokens, 0 where unused.
    """

    starts: np.ndarray
    lengths: np.ndarray


def span_lengths(
    uniforms: np.ndarray,
    distribution: SpanLengthDistribution,
    mean_length: float,
    max_length: int,
) -> np.ndarray:
    """Samples lengths of spans in tokens by inverting the cumulative distribution.

    Args:
        uniforms: Draws in [0, 1), any shape.
        distribution: `"fixed"` (the mean, rounded), `"uniform"` on 1 … 2 · mean - 1, `"geometric"` with success
            probability 1 / mean (SpanBERT, arXiv 1907.10529), `"poisson"` with the mean, zero raised to one (BART).
        mean_length: Mean length before lengths are limited to `max_length`, at least 1.
        max_length: Longest span.

    Returns:
        Integers in the shape of `uniforms`.
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
    """Samples spans of whole words so that every token is hidden with the same probability, the `ratio`.

    The usable tokens of a row form a circle on which hidden spans and visible gaps alternate. The lengths of the spans
    follow the distribution, the visible tokens are distributed over the gaps at random, and the circle is rotated by a
    random angle. So spans never overlap, and tokens near the ends of a text are hidden as often as all others. A word
    is hidden if its first token lies in a span, so every word is hidden with the same probability, too.

    At least one word stays visible: nothing is hidden in a row with fewer than two usable tokens, and if the spans
    cover all words, one of them stays visible. If there are spans but they cover no word, one word is hidden. A short
    row may have no span at all: the number of its hidden tokens is rounded at random, so that the ratio is exact on
    average.

    Args:
        usable: (R, S) boolean, False for special tokens and padding.
        word_starts: (R, S) boolean, True where a token begins a word.
        keys: (R,) uint64 from `mask_keys`.
        ratio: Share of the usable tokens to hide, at least 0 and below 1: one number, or (R,).
        distribution, mean_length, max_length: See `span_lengths`.

    Returns:
        (R, S) integers: the index of the span of each hidden token in its row, -1 for visible tokens.
    """
    words = Words.of(usable, word_starts)
    counts = words.counts
    most = _most_hidden(counts, ratio)
    if most == 0:
        return np.full(usable.shape, -1)
    draws = counter_uniforms(keys, 3 + 2 * most)
    rounding_draws = draws[:, 0]
    turn_draws = draws[:, 1]
    kept_draws = draws[:, 2]
    # Lengths and gaps alternate, so that the column of a draw does not depend on the longest text of the batch.
    length_draws = draws[:, 3::2]
    gap_draws = draws[:, 4::2]

    # Spans are added in the order of their draws until all tokens to hide are in one; the last span is shortened.
    hidden = _tokens_to_hide(counts, ratio, rounding_draws)
    lengths = span_lengths(length_draws, distribution, mean_length, max_length)
    ends = np.cumsum(lengths, axis=1)
    ends = np.minimum(ends, hidden[:, None])
    lengths = np.diff(ends, axis=1, prepend=0)
    starts = ends - lengths
    gaps = _gaps_up_to(lengths, gap_draws, counts - hidden)
    starts[:, 1:] += gaps[:, :-1]
    spans = _Spans(starts, lengths)

    turn = _draw_index(turn_draws, counts)
    circumference = np.maximum(counts, 1)
    places = (words.first - turn[:, None]) % circumference[:, None]
    kept = _draw_index(kept_draws, counts)
    return _hide_words(words, places, spans, kept, taken=kept)


def _gaps_up_to(
    lengths: np.ndarray,
    uniforms: np.ndarray,
    visible: np.ndarray,
) -> np.ndarray:
    """Distributes the visible tokens (R,) over the gaps after the spans at random.

    Returns:
        (R, K) number of visible tokens up to the end of each gap.
    """
    # Exponential draws divided by their sum are uniformly distributed shares of a whole.
    exponentials = -np.log1p(-uniforms)
    exponentials = np.where(lengths > 0, exponentials, 0.0)
    sums = np.cumsum(exponentials, axis=1)
    smallest = np.finfo(np.float64).tiny
    total = np.maximum(sums[:, -1:], smallest)
    gaps = sums / total * visible[:, None]
    return np.floor(gaps).astype(np.int64)


def sample_blocks(
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    ratio: np.ndarray,
    strategy: MaskStrategy,
) -> np.ndarray:
    """Samples masks for every other strategy: a few spans inside the text.

    Tokens near the ends of a text are hidden less often than those in the middle. A word is hidden if a token drawn
    from it lies in a span, see `Words.drawn_place`, so that the expected share of hidden tokens is correct.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        ratio: (R, N) shares; N is `num_spans` for `"blocks"`, else 1.
        strategy: The strategy. Its `ratio` and `whole_words` are replaced by the arguments above.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    words = Words.of(usable, word_starts)
    counts = words.counts
    if _most_hidden(counts, ratio) == 0:
        return np.full(usable.shape, -1)
    number = strategy.num_spans or 1
    draws = counter_uniforms(keys, 3 + 2 * number)
    rounding_draws = draws[:, 0]
    word_draws = draws[:, 1:2]
    kept_draws = draws[:, 2]
    length_draws = draws[:, 3 : 3 + number]
    place_draws = draws[:, 3 + number :]

    hidden = _tokens_to_hide(counts, ratio[:, 0], rounding_draws)
    kept = _draw_index(kept_draws, counts)
    taken = kept
    if strategy.kind == "suffix":
        start = counts - hidden
        spans = _Spans(start[:, None], hidden[:, None])
        kept = np.zeros_like(kept)
        taken = counts - 1
    elif strategy.kind == "keep_block":
        spans = _spans_around_block(counts, hidden, length_draws[:, 0])
        # If the spans cover no word, a word at one end is hidden, so that the visible words still form a block.
        takes_first = kept_draws < 0.5
        taken = np.where(takes_first, 0, counts - 1)
    elif strategy.kind == "blocks":
        # Random rounding makes the lengths exact in expectation.
        lengths = np.floor(ratio * counts[:, None] + length_draws)
        most = np.maximum(counts - 1, 0)
        spans = _scatter_spans(counts, lengths, most, place_draws)
    else:
        num_lengths = strategy.max_span_length - strategy.min_span_length + 1
        lengths = strategy.min_span_length + np.floor(length_draws * num_lengths)
        spans = _scatter_spans(counts, lengths, hidden, place_draws)
    places = words.drawn_place(word_draws)
    return _hide_words(words, places, spans, kept, taken)


def _spans_around_block(
    counts: np.ndarray,
    hidden: np.ndarray,
    uniforms: np.ndarray,
) -> _Spans:
    """The two spans (R, 2) before and after a visible block at a random place."""
    front = _draw_index(uniforms, hidden + 1)
    back = hidden - front
    start_of_front = np.zeros_like(front)
    start_of_back = counts - back
    starts = np.stack([start_of_front, start_of_back], axis=1)
    lengths = np.stack([front, back], axis=1)
    return _Spans(starts, lengths)


def _scatter_spans(
    counts: np.ndarray,
    wanted: np.ndarray,
    most: np.ndarray,
    uniforms: np.ndarray,
) -> _Spans:
    """Spans of the wanted lengths (R, K) at random places, all shortened alike if they exceed `most` (R,) in sum."""
    wanted_ends = np.cumsum(wanted, axis=1)
    total = np.maximum(wanted_ends[:, -1], 1)
    scale = np.minimum(most, total) / total
    scaled_ends = wanted_ends * scale[:, None]
    ends = np.floor(scaled_ends + 1e-9).astype(np.int64)  # a whole number may be off by a rounding error
    lengths = np.diff(ends, axis=1, prepend=0)
    visible = counts - ends[:, -1]
    sorted_uniforms = np.sort(uniforms, axis=1)
    visible_before = _draw_index(sorted_uniforms, visible[:, None] + 1)
    starts = ends - lengths + visible_before
    return _Spans(starts, lengths)


def context_block(
    usable: np.ndarray,
    word_starts: np.ndarray,
    hidden: np.ndarray,
    keys: np.ndarray,
    share: np.ndarray,
) -> np.ndarray:
    """Restricts the context to a random block of the text: whole words, at least one.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        hidden: (R, S) boolean, the targets; at least one word of a row is not hidden.
        share: (R,) length of the block as a share of the usable tokens.

    Returns:
        (R, S) boolean, the usable tokens that are visible.
    """
    words = Words.of(usable, word_starts)
    counts = words.counts
    draws = counter_uniforms(keys, 4)
    rounding_draws = draws[:, 0]
    start_draws = draws[:, 1]
    word_draws = draws[:, 2:3]
    kept_draws = draws[:, 3]

    length = np.floor(share * counts + rounding_draws)
    length = np.clip(length, 1, np.maximum(counts, 1))
    start = np.floor(start_draws * (counts - length + 1))
    place = words.drawn_place(word_draws)
    free = usable & ~hidden
    visible = free & lies_in(place, start, length)

    # A block in which all tokens are hidden is replaced by one visible word from anywhere in the text.
    is_empty = ~visible.any(axis=1)
    number = np.cumsum(free, axis=1) - 1
    drawn_number = np.floor(kept_draws * free.sum(axis=1))
    is_drawn = free & (number == drawn_number[:, None])
    kept = free & _word_around(words, is_drawn)
    return visible | (is_empty[:, None] & kept)


def _most_hidden(counts: np.ndarray, ratio: float | np.ndarray) -> int:
    """Upper bound of the number of hidden tokens in a row; 0 if nothing is hidden in any row."""
    longest = int(counts.max(initial=0))
    if longest < 2 or not np.any(ratio):
        return 0
    return longest - 1


def _tokens_to_hide(
    counts: np.ndarray,
    ratio: float | np.ndarray,
    uniforms: np.ndarray,
) -> np.ndarray:
    """(R,) number of tokens to hide in each row; random rounding makes the ratio exact in expectation."""
    hidden = np.floor(ratio * counts + uniforms).astype(np.int64)
    hidden = np.clip(hidden, 0, counts - 1)
    return np.where(counts < 2, 0, hidden)


def _draw_index(uniforms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Uniform integers below `counts`, from uniforms in [0, 1); the two shapes are broadcast."""
    return np.floor(uniforms * counts).astype(np.int64)


def lies_in(place: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(R, S) boolean, whether each place (R, S) lies in the run of its row, given by start and length (R,)."""
    end = start + length
    return (place >= start[:, None]) & (place < end[:, None])


def _hide_words(
    words: Words,
    places: np.ndarray,
    spans: _Spans,
    kept: np.ndarray,
    taken: np.ndarray,
) -> np.ndarray:
    """Hides each word whose place lies in a span, and numbers the hidden spans of each row.

    Args:
        words: The usable tokens.
        places: (R, S) rank that decides whether a token is hidden, the same for all tokens of a word.
        spans: The spans.
        kept: (R,) rank of a token whose word stays visible if the spans cover all words.
        taken: (R,) rank of a token whose word is hidden if there are spans, but they cover no word.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    span_at_rank = _span_at_rank(words.counts, spans)
    span_of_token = np.take_along_axis(span_at_rank, places, axis=1)
    span = np.where(words.usable, span_of_token, -1)

    # Applied before `kept`, which takes precedence: nothing is hidden in a text of a single word.
    has_spans = spans.lengths.sum(axis=1) > 0
    hides_nothing = has_spans & (span < 0).all(axis=1)
    if hides_nothing.any():
        taken_word = hides_nothing[:, None] & _word_at(words, taken)
        span = np.where(taken_word, 0, span)
    num_hidden = (span >= 0).sum(axis=1)
    hides_all = num_hidden == words.counts
    if hides_all.any():
        kept_word = hides_all[:, None] & _word_at(words, kept)
        span = np.where(kept_word, -1, span)
    # Rotating the circle may have split a span at the ends of the row, and a span that covers no word is gone.
    return number_spans(span)


def _word_at(words: Words, rank: np.ndarray) -> np.ndarray:
    """(R, S) boolean, the tokens of the word that holds the token of the given rank (R,)."""
    has_rank = words.usable & (words.rank == rank[:, None])
    return _word_around(words, has_rank)


def _word_around(words: Words, is_chosen: np.ndarray) -> np.ndarray:
    """(R, S) boolean, the tokens of the word that holds the chosen token (R, S), at most one in a row."""
    first = np.where(is_chosen, words.first, -1).max(axis=1)
    return words.usable & (words.first == first[:, None])


def _span_at_rank(counts: np.ndarray, spans: _Spans) -> np.ndarray:
    """(R, max(counts) + 1) even number that identifies the span at each rank, -1 outside of spans."""
    # Each start is marked by an even number, each end by an odd one: a rank is in a span if the last mark is even.
    rows = len(spans.lengths)
    width = int(counts.max()) + 1
    marks = np.zeros((rows, width), np.int64)
    row, number = np.nonzero(spans.lengths)
    begin = spans.starts[row, number]
    end = begin + spans.lengths[row, number]
    marks[row, end] = 2 * number + 3
    marks[row, begin] = 2 * number + 2  # replaces the end of an adjacent span
    marks = np.maximum.accumulate(marks, axis=1)
    is_inside = (marks > 0) & (marks % 2 == 0)
    return np.where(is_inside, marks, -1)


def number_spans(span: np.ndarray) -> np.ndarray:
    """Numbers runs of the same span (R, S) from left to right; -1 stays -1."""
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
    """Splits words of more than `longest` tokens, and a word that is the whole text, which could not be hidden.

    Examples are DNA, base64, and clauses in a script without spaces.

    Args:
        usable, word_starts: See `sample_spans`.
        may_start: (R, S) boolean, False for tokens that never begin a word, such as later bytes of a character.
        longest: Largest number of tokens in a word.

    Returns:
        (R, S) boolean, True where a token begins a word.
    """
    words = Words.of(usable, word_starts)
    sizes = words.sizes()
    splits = (sizes > longest) | (sizes == words.counts[:, None])
    return word_starts | (usable & may_start & splits)
