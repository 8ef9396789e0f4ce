"""Batches for pretraining: masks, views of a text and windows of a document, as padded tensors.

Shapes: B texts, S tokens, M masks, C context positions, T target positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch

from text_jepa.data.masking import (
    DOCUMENT_VIEWS,
    FOR_CONTEXT,
    FOR_CUT,
    FOR_STRATEGY,
    FOR_TEXT,
    FOR_VIEW,
    FOR_WINDOW,
    MaskStrategy,
    Share,
    SpanLengthDistribution,
    View,
    _checksums,
    _keys_of,
    check_share,
    context_block,
    count_windows,
    counter_uniforms,
    crop_words,
    cut_windows,
    delete_words,
    draw_share,
    mask_keys,
    number_spans,
    sample_blocks,
    sample_spans,
    share_in_words,
)
from text_jepa.data.tokenization import special_tokens_around, word_start_table


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


def pack_positions(chosen: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Positions (or values) of the True entries, moved to the left: (R, S) -> (R, K), -1 where unused, K the most."""
    row, column = np.nonzero(chosen)
    counts = chosen.sum(axis=1)
    packed = np.full((len(chosen), max(int(counts.max(initial=0)), 1)), -1, np.int64)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    packed[row, slot] = column if values is None else values[row, column]
    return packed


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
            texts = cut(crop_words, FOR_TEXT)
        return texts, cut(delete_words if self.view == "deletion" else crop_words, FOR_VIEW)

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
        keys = _keys_of(checksums, 1, self.seed, epochs) ^ FOR_WINDOW
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
        draws = counter_uniforms(keys ^ FOR_STRATEGY, 2 + blocks)
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
                visible[rows] = context_block(*places, spans[rows] >= 0, keys[rows] ^ FOR_CONTEXT, share)
        if self.complement_masks:
            first, second = spans[0::2], spans[1::2]
            swapped = np.where(usable[0::2] & (first < 0), 0, -1)
            second[:] = number_spans(np.where((first >= 0).any(axis=1, keepdims=True), swapped, -1))
            chosen[1::2] = chosen[0::2]
        hidden = spans >= 0
        context = present & ~hidden & (visible | ~usable)
        if self.equal_counts and hidden.any():
            targeted = hidden.any(axis=1)
            cut = keys ^ FOR_CUT
            context = cut_to_least(context, cut, targeted, keep=~usable)
            spans = number_spans(np.where(cut_to_least(hidden, cut, targeted, keep=~usable), spans, -1))
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
