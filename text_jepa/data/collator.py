"""Makes batches for pretraining: texts, views and masks as padded tensors.

Shapes: B texts, S tokens, M masks, C context positions, T target positions; R = B · M rows, one for each mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from text_jepa.data.draws import FOR_CONTEXT, FOR_CUT, FOR_STRATEGY, counter_uniforms, mask_keys, text_checksums
from text_jepa.data.masking import context_block, number_spans, sample_blocks, sample_spans, split_words
from text_jepa.data.strategies import DATA_VIEWS, MaskStrategy, ViewStrategy, draw_share
from text_jepa.data.tokenization import word_start_table
from text_jepa.data.views import DocumentCutter, choose_words, split_rows


# Longer words are split. Equal to the default length of the longest span.
_LONGEST_WORD = 10

# Tensors of a batch with a dimension for masks, (B, M, …).
_MASK_TENSORS = ("context_positions", "target_positions", "target_spans", "mask_strategies")


class DataCollatorForTextJepa:
    """Data collator for [`TextJepaForPreTraining`]: pads texts, samples M masks for each and optionally makes a view.

    Masks are a pure function of (`seed`, `epoch`, token ids of the text, index of the mask), and of the example's
    `step` if a strategy has a schedule; views are a pure function of (`seed`, `epoch`, token ids). The trainer sets
    `epoch` before each epoch, also for worker processes; examples of a stream have their own.

    Nothing is hidden in a text with fewer than two usable tokens (neither special nor padding): it has no targets and
    does not contribute to token-level losses.

    Args:
        tokenizer: Any tokenizer with a padding token. It provides special tokens and word boundaries.
        strategies: One mask strategy, or several with different names, of which one is drawn by weight for each mask.
            Default: `MaskStrategy()`.
        num_masks: M, number of masks per text.
        view: How the view of a text is made. Default: no view. For a view of documents, an example consists of the
            `input_ids` of a whole document without special tokens, and the index of a `window`.
        seed: Seed of masks and views.
        equal_counts: Whether to cut all masks of a batch to the same number of context tokens, the smallest, and to
            the same number of targets, as in I-JEPA, which avoids padding. Tokens are dropped at random, special
            tokens last, so spans may have gaps, and a mask depends on its batch. Texts without targets may have less
            context.
        complement_masks: Whether to draw masks in pairs with context and targets swapped.
        pad_to_multiple_of: Pad texts to a multiple of this length, which is faster with some kernels.

    Attributes:
        strategies: Tuple of [`MaskStrategy`].
        strategy_names: Names of the strategies; `mask_strategies` of a batch has their indices.
        follows_steps: Whether masks depend on the step. Examples then need a `step`, see [`LengthGroupedSampler`].

    Raises:
        ValueError: The tokenizer has no padding token, or arguments are out of range or cannot be combined.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        strategies: MaskStrategy | Sequence[MaskStrategy] | None = None,
        num_masks: int = 1,
        view: ViewStrategy | None = None,
        seed: int = 0,
        equal_counts: bool = False,
        complement_masks: bool = False,
        pad_to_multiple_of: int | None = None,
    ):
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
        if num_masks < 1:
            raise ValueError(f"num_masks must be at least 1, got {num_masks}")
        if strategies is None:
            strategies = MaskStrategy()
        if isinstance(strategies, MaskStrategy):
            strategies = [strategies]
        self.strategies = tuple(strategies)
        ratios = [strategy.ratio for strategy in self.strategies]
        self.strategy_names = [strategy.name or strategy.kind for strategy in self.strategies]
        self.follows_steps = any(isinstance(ratio, Mapping) for ratio in ratios)
        self.num_masks = num_masks
        self.view = view
        self.seed = seed
        self.equal_counts = equal_counts
        self.complement_masks = complement_masks
        self.pad_to_multiple_of = pad_to_multiple_of
        self._check_strategies()
        self._read_tokenizer(tokenizer)
        self._cutter = None
        if view is not None and view.is_of_document:
            self._cutter = DocumentCutter(tokenizer, view, seed)
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def _check_strategies(self) -> None:
        names = self.strategy_names
        if not names:
            raise ValueError("strategies: at least one is needed")
        if len(set(names)) < len(names):
            raise ValueError(f"mask strategies need different names, got {', '.join(names)}")
        has_context_block = any(strategy.context_ratio is not None for strategy in self.strategies)
        if self.complement_masks and (self.num_masks % 2 or has_context_block):
            raise ValueError("complement_masks needs an even num_masks, and strategies without context_ratio")

    def _read_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Stores the required properties of the tokenizer as arrays, which are sent to worker processes faster."""
        self._pad_token_id = tokenizer.pad_token_id
        self._words = word_start_table(tokenizer)
        self._is_special = np.zeros(len(self._words.joins), bool)
        self._is_special[sorted(_special_ids(tokenizer))] = True

    @property
    def epoch(self) -> int:
        """Epoch for which masks are drawn, in shared memory, so that worker processes see a change at once.

        -1 is for evaluation, with fixed masks and with schedules at their end.
        """
        return int(self._epoch)

    @epoch.setter
    def epoch(self, value: int):
        self._epoch.fill_(int(value))

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch from examples with `input_ids` and optionally `epoch`, `step`, `view_input_ids` and `window`.

        Returns:
            int64 tensors, in which unused positions and spans are -1:

            - `input_ids` and `attention_mask` (B, S),
            - `context_positions` (B, M, C), `target_positions` and `target_spans` (B, M, T),
            - with several strategies, `mask_strategies` (B, M), the index of the strategy of each mask,
            - with a view, `view_input_ids` and `view_attention_mask` (B, S'),
            - with a view of documents, `document_ids` (B,), equal for windows of the same document.
        """
        texts = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
        epochs = [example.get("epoch", self.epoch) for example in examples]
        steps = self._steps(examples)
        view_fields = {}
        if self.view is not None:
            if self._cutter is not None:
                numbers = [example["window"] for example in examples]
                checksums = text_checksums(texts)
                view_fields["document_ids"] = checksums.astype(np.int64)
                texts, views = self._cutter.cut(texts, numbers, checksums, epochs)
            else:
                texts, views = self._make_views(examples, texts, epochs)
            view_ids, present = self._pad(views)
            view_fields["view_input_ids"] = view_ids
            view_fields["view_attention_mask"] = present.astype(np.int64)
        input_ids, present = self._pad(texts)
        batch = {"input_ids": input_ids, "attention_mask": present.astype(np.int64)}
        batch |= self._draw_masks(texts, epochs, steps, input_ids, present)
        batch |= view_fields
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def describe_masks(self) -> str:
        """Describes the masks and the view in sentences."""
        if len(self.strategies) == 1:
            hidden = self.strategies[0].describe()
        else:
            hidden = f"each drawn from {self._describe_mixture()}"
        sentences = [f"{self.num_masks} per text, {hidden}."]
        if self.equal_counts:
            sentences.append("All masks of a batch are cut to the same numbers of visible and of hidden tokens.")
        if self.complement_masks:
            sentences.append("Every other mask hides what the one before sees.")
        if self.view is not None:
            sentences.append(f"The view of a text is {self.view.describe()}.")
        return " ".join(sentences)

    def _describe_mixture(self) -> str:
        total = sum(strategy.weight for strategy in self.strategies)
        parts = []
        for name, strategy in zip(self.strategy_names, self.strategies, strict=True):
            parts.append(f"{name} ({strategy.weight / total:.0%} of the masks): {strategy.describe()}")
        return "; ".join(parts)

    # ---- texts ----

    def _pad(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Pads token ids on the right: token ids (B, S), and (B, S) boolean, False for padding."""
        lengths = np.array([len(ids) for ids in texts])
        width = max(1, int(lengths.max()))
        if self.pad_to_multiple_of:
            multiples = -(-width // self.pad_to_multiple_of)  # rounded up
            width = multiples * self.pad_to_multiple_of
        present = np.arange(width) < lengths[:, None]
        input_ids = np.full(present.shape, self._pad_token_id)
        input_ids[present] = np.concatenate(texts)
        return input_ids, present

    def find_words(self, input_ids: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the tokens that may be hidden and the tokens that begin a word: two boolean arrays (B, S)."""
        usable = present & ~self._is_special[input_ids]
        left = input_ids[:, :-1]
        right = input_ids[:, 1:]
        word_starts = np.ones_like(usable)
        word_starts[:, 1:] = ~(usable[:, :-1] & self._words.continues(left, right))
        may_start = ~self._words.clings[input_ids]
        return usable, split_words(usable, word_starts, may_start, _LONGEST_WORD)

    def _steps(self, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(B,) number of completed optimizer steps; 0 if masks do not depend on it."""
        if not self.follows_steps:
            return np.zeros(len(examples))
        if self.epoch < 0:
            return np.full(len(examples), np.inf)
        if any("step" not in example for example in examples):
            raise ValueError(
                "a schedule of the mask ratio needs examples with a step, see text_jepa.data.batching.TextsWithSteps"
            )
        return np.array([example["step"] for example in examples])

    # ---- views ----

    def _make_views(
        self,
        examples: Sequence[Mapping[str, Any]],
        texts: list[np.ndarray],
        epochs: list[int],
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The texts, which some views shorten, and their views."""
        kind = self.view.kind
        if kind == "same":
            return texts, texts
        if kind in DATA_VIEWS:
            return texts, [np.asarray(example["view_input_ids"], dtype=np.int64) for example in examples]
        input_ids, present = self._pad(texts)
        usable, word_starts = self.find_words(input_ids, present)
        keys = mask_keys(texts, 1, self.seed, epochs)
        kept_in_text, kept_in_view = choose_words(self.view, usable, word_starts, keys)
        views = split_rows(input_ids, present & kept_in_view)
        if kept_in_text is not None:
            texts = split_rows(input_ids, present & kept_in_text)
        return texts, views

    # ---- masks ----

    def _draw_masks(
        self,
        texts: list[np.ndarray],
        epochs: list[int],
        steps: np.ndarray,
        input_ids: np.ndarray,
        present: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Draws M masks for each text: positions, spans and, with several strategies, the strategy of each mask."""
        usable, word_starts = self.find_words(input_ids, present)
        rows = _Rows(
            present=np.repeat(present, self.num_masks, axis=0),
            usable=np.repeat(usable, self.num_masks, axis=0),
            word_starts=np.repeat(word_starts, self.num_masks, axis=0),
            keys=mask_keys(texts, self.num_masks, self.seed, epochs),
            steps=np.repeat(steps, self.num_masks)[:, None],
        )
        chosen, share_draws = self._draw_strategies(rows.keys)
        spans, visible = self._hide(rows, chosen, share_draws)
        if self.complement_masks:
            spans = _complement(rows.usable, spans)
            chosen[1::2] = chosen[0::2]
        hidden = spans >= 0
        context = rows.present & ~hidden & (visible | ~rows.usable)
        if self.equal_counts and hidden.any():
            context, spans = _equalize(rows, context, spans)
            hidden = spans >= 0

        shape = (len(texts), self.num_masks, -1)
        batch = {
            "context_positions": pack_positions(context).reshape(shape),
            "target_positions": pack_positions(hidden).reshape(shape),
            "target_spans": pack_positions(hidden, spans).reshape(shape),
        }
        if len(self.strategies) > 1:
            batch["mask_strategies"] = chosen.reshape(len(texts), self.num_masks)
        return batch

    def _draw_strategies(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R,) index of each mask's strategy, and (R, 1 + N) draws for the shares of the context and of N blocks."""
        blocks = [strategy.num_spans for strategy in self.strategies if strategy.kind == "blocks"]
        draws = counter_uniforms(keys ^ FOR_STRATEGY, 2 + max(blocks, default=1))
        cumulative = np.cumsum([strategy.weight for strategy in self.strategies])
        borders = cumulative / cumulative[-1]
        chosen = np.searchsorted(borders, draws[:, 0], side="right")
        return chosen, draws[:, 1:]

    def _hide(
        self,
        rows: "_Rows",
        chosen: np.ndarray,
        share_draws: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(R, S) span of each token, -1 if it is not hidden, and (R, S) boolean, usable tokens that may be visible."""
        spans = np.full(rows.usable.shape, -1)
        visible = rows.usable.copy()
        for number, strategy in enumerate(self.strategies):
            own_rows = np.flatnonzero(chosen == number)
            usable = rows.usable[own_rows]
            # Without whole words, every token is treated as a word.
            word_starts = rows.word_starts[own_rows] if strategy.whole_words else usable
            keys = rows.keys[own_rows]
            steps = rows.steps[own_rows]
            context_draws = share_draws[own_rows, 0]
            ratio_draws = share_draws[own_rows, 1:]
            ratio = draw_share(strategy.ratio, ratio_draws, steps)
            own_spans = _sample(strategy, usable, word_starts, keys, ratio)
            spans[own_rows] = own_spans
            if strategy.context_ratio is not None:
                share = draw_share(strategy.context_ratio, context_draws, steps)
                is_hidden = own_spans >= 0
                context_keys = keys ^ FOR_CONTEXT
                visible[own_rows] = context_block(usable, word_starts, is_hidden, context_keys, share)
        return spans, visible


class _Rows(NamedTuple):
    """Texts repeated for each of their masks: R = B · M rows, in which the masks of a text are adjacent.

    Args:
        present: (R, S) boolean, False for padding.
        usable: (R, S) boolean, False for special tokens and padding.
        word_starts: (R, S) boolean, True where a token begins a word.
        keys: (R,) uint64.
        steps: (R, 1) number of completed optimizer steps.
    """

    present: np.ndarray
    usable: np.ndarray
    word_starts: np.ndarray
    keys: np.ndarray
    steps: np.ndarray


def split_masks(batch: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Splits a batch with M masks per text (B, M, …) into M batches of the same texts with one mask each (B, 1, …)."""
    names = [name for name in _MASK_TENSORS if name in batch]
    num_masks = batch[names[0]].shape[1]
    parts = []
    for mask in range(num_masks):
        part = dict(batch)
        for name in names:
            part[name] = batch[name][:, mask : mask + 1]
        parts.append(part)
    return parts


def _sample(
    strategy: MaskStrategy,
    usable: np.ndarray,
    word_starts: np.ndarray,
    keys: np.ndarray,
    ratio: np.ndarray,
) -> np.ndarray:
    """Samples the spans (R, S) of a strategy, see `sample_spans`; `ratio` is (R, N), N at least its `num_spans`."""
    if strategy.kind == "spans" and strategy.num_spans is None:
        return sample_spans(
            usable,
            word_starts,
            keys,
            ratio[:, 0],
            strategy.span_length_distribution,
            strategy.mean_span_length,
            strategy.max_span_length,
        )
    count = strategy.num_spans if strategy.kind == "blocks" else 1
    return sample_blocks(usable, word_starts, keys, ratio[:, :count], strategy)


def _complement(usable: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Replaces every second row of spans (R, S): it hides the usable tokens that are visible in the row before."""
    first = spans[0::2]
    is_hidden = first >= 0
    is_visible = usable[0::2] & ~is_hidden
    hides_some = is_hidden.any(axis=1, keepdims=True)
    second = np.where(is_visible & hides_some, 0, -1)
    paired = spans.copy()
    paired[1::2] = number_spans(second)
    return paired


def _equalize(
    rows: _Rows,
    context: np.ndarray,
    spans: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts context (R, S) and spans (R, S) to the same number of tokens in all rows, see `equal_counts`."""
    keys = rows.keys ^ FOR_CUT
    hidden = spans >= 0
    has_targets = hidden.any(axis=1)
    context = cut_to_least(context, keys, has_targets, keep=~rows.usable)
    hidden = cut_to_least(hidden, keys, has_targets, keep=~rows.usable)
    return context, number_spans(np.where(hidden, spans, -1))


def cut_to_least(
    chosen: np.ndarray,
    keys: np.ndarray,
    counted: np.ndarray,
    keep: np.ndarray,
) -> np.ndarray:
    """Drops tokens at random until no row has more than the row with the fewest.

    Args:
        chosen: (R, S) boolean, tokens to choose from.
        keys: (R,) uint64.
        counted: (R,) boolean, rows among which the fewest tokens are searched; other rows may have even fewer.
        keep: (R, S) boolean, tokens that are dropped last; but one of the other tokens always stays.

    Returns:
        (R, S) boolean.
    """
    counts = chosen.sum(axis=1)
    least = int(counts[counted].min())
    # Tokens with the smallest numbers stay: one of the other tokens, those to keep, then the others at random.
    order = np.where(keep, -1.0, counter_uniforms(keys, chosen.shape[1]))
    order_of_others = np.where(chosen & ~keep, order, 2.0)
    first_other = order_of_others.argmin(axis=1)[:, None]
    np.put_along_axis(order, first_other, -2.0, axis=1)
    order = np.where(chosen, order, 2.0)
    in_order = order.argsort(axis=1, kind="stable")
    stays = in_order[:, :least]
    kept = np.zeros_like(chosen)
    np.put_along_axis(kept, stays, True, axis=1)
    return kept & chosen


def pack_positions(chosen: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Packs the column indices (or values) of the True entries of each row to the left.

    Returns:
        (R, K) integers, with K the largest number of entries in a row and -1 where unused.
    """
    row, column = np.nonzero(chosen)
    counts = chosen.sum(axis=1)
    first = np.cumsum(counts) - counts
    slot = np.arange(len(row)) - first[row]
    width = max(1, int(counts.max(initial=0)))
    packed = np.full((len(chosen), width), -1, np.int64)
    packed[row, slot] = column if values is None else values[row, column]
    return packed


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of tokens that are never hidden: special tokens except the unknown token, which stands for a word.

    An unknown token that is another special token as well (GPT-2) is never hidden, either.
    """
    named = tokenizer.special_tokens_map.items()
    names = {name: token for name, token in named if isinstance(token, str)}
    unknown = names.pop("unk_token", None)
    special = set(tokenizer.all_special_ids)
    if unknown is not None and unknown not in names.values():
        special.discard(tokenizer.unk_token_id)
    return special
