"""Makes views, the second text of an example: the rest or another window of its document, or some of its words.

Shapes: B texts or documents, S tokens of a padded text, R rows.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from text_jepa.data.draws import (
    FOR_TEXT,
    FOR_VIEW,
    FOR_WINDOW,
    counter_uniforms,
    keys_of_checksums,
)
from text_jepa.data.masking import Words, lies_in
from text_jepa.data.strategies import Share, ViewStrategy, draw_share
from text_jepa.data.tokenization import special_tokens_around
from text_jepa.data.windows import SHORTEST_WINDOW, count_windows, cut_windows


class DocumentCutter:
    """Extracts windows and their views from documents. A view is the rest of the document or a neighbouring window.

    Args:
        tokenizer: Tokenizer, for the special tokens around a text.
        view: A view of documents.
        seed: Seed of the borders of windows.

    Raises:
        ValueError: The windows of the view leave no room for text beside the special tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        view: ViewStrategy,
        seed: int,
    ) -> None:
        before, after = special_tokens_around(tokenizer)
        self.kind = view.kind
        self.seed = seed
        self._before = np.array(before, dtype=np.int64)
        self._after = np.array(after, dtype=np.int64)
        self._room = view.window_length - len(before) - len(after)
        if self._room < SHORTEST_WINDOW:
            raise ValueError(
                f"window_length {view.window_length} leaves {max(self._room, 0)} tokens for text beside the special "
                f"tokens; it takes at least {SHORTEST_WINDOW}"
            )

    def cut(
        self,
        documents: Sequence[np.ndarray],
        numbers: Sequence[int],
        checksums: np.ndarray,
        epochs: Sequence[int],
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Extracts one window from each document.

        Args:
            documents: Token ids of B documents, without special tokens.
            numbers: Index of the window of each document.
            checksums: (B,), see `text_checksums`.
            epochs: Epoch of each document.

        Returns:
            Token ids of the B windows and of their views, with special tokens.

        Raises:
            ValueError: A document has no window of this index.
        """
        lengths = np.array([len(ids) for ids in documents])
        counts = count_windows(lengths, self._room)
        if (np.asarray(numbers) >= counts).any():
            raise ValueError(
                "an example names a window that its document does not have: DocumentWindows and ViewStrategy need the "
                "same window_length"
            )
        keys = keys_of_checksums(checksums, 1, self.seed, epochs) ^ FOR_WINDOW
        borders = cut_windows(lengths, counts, keys)
        texts = []
        views = []
        for row, (document, number) in enumerate(zip(documents, numbers, strict=True)):
            before, window, after = _split_at(document, borders[row], number)
            texts.append(self._add_special_tokens(window))
            if self.kind == "rest":
                views.append(self._add_special_tokens(before, after))
            else:
                is_last = number + 1 == counts[row]
                neighbour = number - 1 if is_last else number + 1
                _, window, _ = _split_at(document, borders[row], neighbour)
                views.append(self._add_special_tokens(window))
        return texts, views

    def _add_special_tokens(self, *parts: np.ndarray) -> np.ndarray:
        return np.concatenate([self._before, *parts, self._after])


def choose_words(
    view: ViewStrategy,
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Chooses the words of padded texts that are kept in a view.

    Args:
        view: `deletion`, `crop` or `crop_both`.
        usable: (B, S) boolean, tokens of words; all other tokens are kept.
        word_starts: (B, S) boolean, tokens that begin a word.
        keys: (B,) uint64.

    Returns:
        (B, S) boolean, tokens kept in the text, or `None` for all; and (B, S) boolean, tokens kept in the view.
    """
    choose = delete_words if view.kind == "deletion" else crop_words
    of_view = choose(usable, word_starts, keys ^ FOR_VIEW, view.ratio)
    if view.kind != "crop_both":
        return None, of_view
    return crop_words(usable, word_starts, keys ^ FOR_TEXT, view.ratio), of_view


def crop_words(
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    share: Share,
) -> np.ndarray:
    """Keeps a run of whole words at a random place, at least one, and all tokens that are not usable.

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
    return ~usable | lies_in(word, start, kept)


def delete_words(
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    share: Share,
) -> np.ndarray:
    """Keeps random words in their order, at least one (TSDAE, arXiv 2104.06979); arguments as for `crop_words`."""
    word, words = _number_words(usable, word_starts)
    starts_of_row = (usable & word_starts).sum(axis=1)
    most = int(starts_of_row.max(initial=0)) + 1  # the first usable token always begins a word
    draws = counter_uniforms(keys, 2 + most)
    kept = _words_to_keep(words, share, draws)
    is_word = np.arange(most) < words[:, None]
    order = np.where(is_word, draws[:, 2:], 2.0)
    ranked = order.argsort(axis=1, kind="stable")
    place_of_word = ranked.argsort(axis=1, kind="stable")
    place_of_token = np.take_along_axis(place_of_word, np.maximum(word, 0), axis=1)
    return ~usable | (place_of_token < kept[:, None])


def _number_words(usable: np.ndarray, word_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, S) index of the word of each usable token, and (R,) number of words in each row."""
    words = Words.of(usable, word_starts)
    begins = usable & (words.rank == words.first)
    number = np.cumsum(begins, axis=1) - 1
    return number, number[:, -1] + 1


def _words_to_keep(
    words: np.ndarray,
    share: Share,
    draws: np.ndarray,
) -> np.ndarray:
    """(R,) number of words to keep, at least one, by the first two columns of the draws."""
    shares = draw_share(share, draws[:, 0], np.zeros(1))
    kept = np.floor(shares * words + draws[:, 1])
    return np.clip(kept, 1, np.maximum(words, 1))


def split_rows(input_ids: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
    """The kept token ids of each row."""
    ends = np.cumsum(kept.sum(axis=1))
    return np.split(input_ids[kept], ends[:-1])


def _split_at(
    document: np.ndarray,
    borders: np.ndarray,
    number: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens before a window of a document, in the window, and after it."""
    start = borders[number]
    end = borders[number + 1]
    return document[:start], document[start:end], document[end:]
