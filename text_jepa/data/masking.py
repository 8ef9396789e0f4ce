"""Samples what is hidden of a text: spans of its usable tokens, which are all but special tokens and padding.

Everything works on whole arrays of shape (R, S) with R = texts × masks; there is no loop over tokens or rows. A *rank*
is the place of a token among the usable tokens of its row. Draws are pure functions of keys, see
`text_jepa.data.draws`.
"""

from typing import NamedTuple

import numpy as np

from text_jepa.data.draws import counter_uniforms
from text_jepa.data.strategies import MaskStrategy, SpanLengthDistribution


class Words(NamedTuple):
    """The usable tokens of rows, and the words that they form.

    Args:
        usable: (R, S) boolean, False for special tokens and padding.
        rank: (R, S) number of each usable token along its row, from 0.
        first: (R, S) rank of the first token of the word that a token belongs to.
        counts: (R,) number of usable tokens.
    """

    usable: np.ndarray
    rank: np.ndarray
    first: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, usable: np.ndarray, word_starts: np.ndarray) -> "Words":
        rank = np.cumsum(usable, axis=1) - 1
        begins = usable & (word_starts | (rank == 0))
        rank_of_start = np.where(begins, rank, 0)
        first = np.maximum.accumulate(rank_of_start, axis=1)
        return cls(usable, rank, first, usable.sum(axis=1))

    def sizes(self) -> np.ndarray:
        """(R, S) length in tokens of the word that each usable token belongs to."""
        rows, width = self.first.shape
        offset = np.arange(rows) * width
        word = self.first + offset[:, None]
        sizes = np.bincount(word[self.usable], minlength=rows * width)
        return sizes[word]

    def drawn_place(self, uniforms: np.ndarray) -> np.ndarray:
        """(R, S) rank of a token drawn from the word of each token, with one uniform (R, 1) for all words of a row."""
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
    the distribution, the visible tokens are distributed over the gaps at random, and the circle is turned by a random
    angle: each token is hidden with the same probability, spans never overlap, and places near the ends are not
    special. A word is hidden if its first token falls into a span, which gives every word the same probability too.

    At least one word stays visible: with fewer than two usable tokens nothing is hidden, and if spans hit all words,
    one of them stays. And at least one word is hidden, even if spans hit none.

    Args:
        usable: (R, S) boolean, False for special tokens and padding.
        word_starts: (R, S) boolean, True where a token begins a word.
        keys: (R,) uint64 from `mask_keys`.
        ratio: Share of the usable tokens to hide, at least 0 and below 1; a number, or (R,) of them.
        distribution, mean_length, max_length: See `span_lengths`.

    Returns:
        (R, S) integers: the span of each hidden token, counted from 0 along the row, -1 where visible.
    """
    words = Words.of(usable, word_starts)
    counts = words.counts
    most = _most_hidden(counts, ratio)
    if most == 0:
        return np.full(usable.shape, -1)
    draws = counter_uniforms(keys, 3 + 2 * most)
    # Lengths and gaps alternate, so that the column of a draw does not depend on the longest text of the batch.
    length_draws = draws[:, 3::2]
    gap_draws = draws[:, 4::2]
    hidden = _tokens_to_hide(counts, ratio, draws[:, 0])

    # Spans in the order of their draws until they hold as many tokens as are hidden; the last one is cut.
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
    """Distributes `visible` (R,) tokens over the gaps behind the spans at random: (R, K), summed up to each gap."""
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
    """Hides the spans of all other strategies: a few, which begin and end within the text.

    Tokens near the ends of a text are hidden less often than those in the middle. A word is hidden if a token drawn
    from it falls into a span, see `Words.drawn_place`, so that shares are right in expectation.

    Args:
        usable, word_starts, keys: See `sample_spans`.
        ratio: (R, N) shares; N is `num_spans` for `"blocks"`, else 1.
        strategy: The strategy, except for its `ratio` and `whole_words`, which the arguments above replace.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    words = Words.of(usable, word_starts)
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
        # If the spans hit no word, one at an end is hidden, so that the visible ones are still a block.
        taken = np.where(draws[:, 2] < 0.5, 0, counts - 1)
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
    """The spans before and behind a visible block at a random place: (R,) -> (R, 2)."""
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
    """Spans of the wanted lengths (R, K) at random places, scaled down where they exceed `most` (R,) together."""
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
    words = Words.of(usable, word_starts)
    counts = words.counts
    draws = counter_uniforms(keys, 4)
    length = np.floor(share * counts + draws[:, 0])
    length = np.clip(length, 1, np.maximum(counts, 1))
    start = np.floor(draws[:, 1] * (counts - length + 1))
    place = words.drawn_place(draws[:, 2:3])
    free = usable & ~hidden
    visible = free & lies_in(place, start, length)

    # A block in which all tokens are targets is replaced by one visible word from anywhere in the text.
    emptied = ~visible.any(axis=1)
    number = np.cumsum(free, axis=1) - 1
    chosen = np.floor(draws[:, 3] * free.sum(axis=1))
    is_chosen = free & (number == chosen[:, None])
    kept_word = np.where(is_chosen, words.first, -1).max(axis=1)
    kept = free & (words.first == kept_word[:, None])
    return visible | (emptied[:, None] & kept)


def _most_hidden(counts: np.ndarray, ratio: float | np.ndarray) -> int:
    """An upper bound of the number of tokens that a row hides; 0 if no row hides any."""
    longest = int(counts.max(initial=0))
    if longest < 2 or not np.any(ratio):
        return 0
    return longest - 1


def _tokens_to_hide(
    counts: np.ndarray,
    ratio: float | np.ndarray,
    uniforms: np.ndarray,
) -> np.ndarray:
    # Random rounding makes the ratio exact in expectation.
    hidden = np.floor(ratio * counts + uniforms).astype(np.int64)
    hidden = np.clip(hidden, 0, counts - 1)
    return np.where(counts < 2, 0, hidden)


def _draw_index(uniforms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Uniform integers below `counts`, from uniforms in [0, 1) of a shape that broadcasts with it."""
    return np.floor(uniforms * counts).astype(np.int64)


def lies_in(place: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(R, S) boolean, whether a place (R, S) lies in the run of its row, which has a start and a length (R,)."""
    end = start + length
    return (place >= start[:, None]) & (place < end[:, None])


def _hide_words(
    words: Words,
    places: np.ndarray,
    spans: _Spans,
    kept: np.ndarray,
    taken: np.ndarray,
) -> np.ndarray:
    """Hides each word whose place lies in a span, and numbers the hidden spans along the row.

    Args:
        words: The usable tokens.
        places: (R, S) rank that decides whether a token is hidden, the same for all tokens of a word.
        spans: The spans.
        kept: (R,) rank of a token whose word stays visible if spans hit all words.
        taken: (R,) rank of a token whose word is hidden if there are spans, but they hit no word.

    Returns:
        (R, S) integers: see `sample_spans`.
    """
    found = np.take_along_axis(_span_at_rank(words.counts, spans), places, axis=1)
    span = np.where(words.usable, found, -1)

    # First, so that `kept` has the last word: in a text of one word nothing is hidden.
    has_spans = spans.lengths.sum(axis=1) > 0
    missed = has_spans & (span < 0).all(axis=1)
    if missed.any():
        span = np.where(missed[:, None] & _word_of(words, taken), 0, span)
    emptied = (span >= 0).sum(axis=1) == words.counts
    if emptied.any():
        span = np.where(emptied[:, None] & _word_of(words, kept), -1, span)
    # Turning the circle may have split a span at the ends of the row, and whole words may have removed one.
    return number_spans(span)


def _word_of(words: Words, rank: np.ndarray) -> np.ndarray:
    """(R, S) boolean: the tokens of the word to which the token of a rank (R,) belongs."""
    is_there = words.usable & (words.rank == rank[:, None])
    first = np.where(is_there, words.first, -1).max(axis=1)
    return words.usable & (words.first == first[:, None])


def _span_at_rank(counts: np.ndarray, spans: _Spans) -> np.ndarray:
    """(R, max(counts) + 1) an even number of the span that covers each rank, -1 where none does."""
    # An even mark at each start, an odd one behind each end: a rank is in a span if the last mark before it is even.
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
    """Numbers runs of the same span from left to right, and leaves -1 as it is: (R, S) -> (R, S)."""
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
    """Splits words of more than `longest` tokens, and a word that is a whole text, which could not be hidden.

    These are no words of a language: DNA, base64, clauses in a script without spaces.

    Args:
        usable, word_starts: See `sample_spans`.
        may_start: (R, S) boolean, False for tokens that never begin a word, such as later bytes of a character.
        longest: Largest number of tokens of a word.

    Returns:
        (R, S) boolean, True where a token begins a word.
    """
    words = Words.of(usable, word_starts)
    sizes = words.sizes()
    splits = (sizes > longest) | (sizes == words.counts[:, None])
    return word_starts | (usable & may_start & splits)
