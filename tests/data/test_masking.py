"""Compares the collator with plain loops over every token, and its statistics with binomial errors and scipy.

Run: python -m pytest -q tests/data/test_masking.py
"""

import dataclasses
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from text_jepa.data import draws, masking, strategies
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.draws import counter_uniforms, mask_keys
from text_jepa.data.masking import span_lengths
from text_jepa.data.strategies import MaskStrategy, ViewStrategy, draw_share
from text_jepa.data.tokenization import vocabulary, word_start_table
from text_jepa.data.windows import count_windows


DISTRIBUTIONS = ["fixed", "uniform", "geometric", "poisson"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNK, CLS, SEP = 1, 2, 3
BEGINNINGS = range(5, 45)
CONTINUATIONS = range(45, 85)
NEVER_HIDDEN = {0, CLS, SEP, 4}
FILES = {module.__file__ for module in (draws, masking, strategies)}
STRATEGY_FIELDS = {field.name for field in dataclasses.fields(MaskStrategy)}


def word_piece_tokenizer():
    tokens = SPECIAL + [f"w{i}" for i in BEGINNINGS] + [f"##c{i}" for i in CONTINUATIONS]
    model = models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), mask_token="[MASK]", **names)


TOKENIZER = word_piece_tokenizer()


def collator(**options):
    """Makes a collator with these strategies, or with one strategy whose fields are among the options."""
    fields = {name: options.pop(name) for name in STRATEGY_FIELDS & set(options)}
    options.setdefault("strategies", MaskStrategy(**fields))
    return DataCollatorForTextJepa(TOKENIZER, **options)


def collate(texts, epoch=0, **options):
    collate_texts = collator(**options)
    collate_texts.epoch = epoch
    return collate_texts([{"input_ids": ids} for ids in texts])


def masks_of(batch, row):
    """The masks of one text as plain lists: (context positions, target positions, spans) for each mask."""
    names = ("context_positions", "target_positions", "target_spans")
    return [
        tuple([entry for entry in batch[name][row, mask].tolist() if entry >= 0] for name in names)
        for mask in range(batch["target_positions"].shape[1])
    ]


def words_of(ids, whole_words=True):
    """Finds the positions of each word of a text by a plain loop."""
    words = []
    for position, token in enumerate(ids):
        if token in NEVER_HIDDEN:
            continue
        follows = position > 0 and ids[position - 1] not in NEVER_HIDDEN
        if whole_words and token in CONTINUATIONS and follows:
            words[-1].append(position)
        else:
            words.append([position])
    # Words of more than ten tokens are split, and a word that is the whole text.
    parts = [[word] if len(word) <= 10 and len(words) > 1 else [[position] for position in word] for word in words]
    return [word for group in parts for word in group]


def random_words(generator, tokens):
    """Makes a text of words of 1 to 4 tokens with the given length."""
    sizes = generator.choice([1, 2, 3, 4], p=[0.6, 0.25, 0.1, 0.05], size=tokens)
    begins = np.concatenate([np.arange(size) == 0 for size in [*sizes, 1]])[:tokens]
    return np.where(begins, generator.choice(BEGINNINGS, tokens), generator.choice(CONTINUATIONS, tokens))


def random_text(tokens=200, seed=0):
    return random_words(np.random.default_rng(seed), tokens).tolist()


def hidden_share(collate_texts, texts, usable, **more):
    """Share of hidden tokens among the usable tokens of all texts and masks."""
    batch = collate_texts([{"input_ids": ids, **more} for ids in texts])
    return int((batch["target_positions"] >= 0).sum()) / (usable * collate_texts.num_masks)


token_ids = st.one_of(
    st.sampled_from(BEGINNINGS), st.sampled_from(CONTINUATIONS), st.sampled_from([UNK, CLS, SEP, 0, 4])
)
texts_of_any_kind = st.one_of(
    st.lists(token_ids, max_size=24),
    st.lists(st.sampled_from([CLS, SEP, 0]), max_size=4),
    st.lists(st.sampled_from(CONTINUATIONS), max_size=12),
)
batches = st.lists(texts_of_any_kind, min_size=1, max_size=5)
collator_options = st.fixed_dictionaries(
    {
        "num_masks": st.integers(1, 3),
        "ratio": st.floats(0.02, 0.98),
        "span_length_distribution": st.sampled_from(DISTRIBUTIONS),
        "mean_span_length": st.floats(1, 5),
        "max_span_length": st.integers(5, 12),
        "whole_words": st.booleans(),
        "seed": st.integers(0, 2**31),
        "pad_to_multiple_of": st.sampled_from([None, 8]),
    }
)
epochs = st.integers(0, 1000)
ratios = st.one_of(
    st.floats(0, 0.98),
    st.tuples(st.floats(0, 0.5), st.floats(0.5, 0.98)),
    st.fixed_dictionaries({"start": st.floats(0, 0.98), "end": st.floats(0, 0.98), "steps": st.integers(1, 2_000)}),
)
any_strategy = st.one_of(
    st.fixed_dictionaries(
        {"span_length_distribution": st.sampled_from(DISTRIBUTIONS), "mean_span_length": st.floats(1, 5)}
    ),
    st.fixed_dictionaries({"num_spans": st.integers(1, 4), "min_span_length": st.integers(1, 5)}),
    st.just({"kind": "suffix"}),
    st.just({"kind": "keep_block"}),
    st.fixed_dictionaries({"kind": st.just("blocks"), "num_spans": st.integers(1, 5)}),
).flatmap(
    lambda fields: st.fixed_dictionaries(
        {name: st.just(value) for name, value in fields.items()},
        optional={
            "ratio": ratios,
            "whole_words": st.booleans(),
            "context_ratio": st.one_of(st.floats(0.01, 1), st.just((0.3, 0.9))),
        },
    )
)
mixtures = st.lists(any_strategy, min_size=1, max_size=3).map(
    lambda found: [MaskStrategy(**fields, name=str(i), weight=i + 1) for i, fields in enumerate(found)]
)


# ---- every batch ----------------------------------------------------------------------------------------------------


@settings(max_examples=CASES * 200, deadline=None)
@given(batches, collator_options, epochs)
def test_every_mask_hides_whole_usable_words_in_numbered_spans_and_leaves_one_visible(texts, options, epoch):
    batch = collate(texts, epoch, **options)
    assert [(name, tensor.dtype) for name, tensor in batch.items()] == [
        (name, torch.int64)
        for name in ("input_ids", "attention_mask", "context_positions", "target_positions", "target_spans")
    ]
    for row, ids in enumerate(texts):
        words = words_of(ids, options["whole_words"])
        for context, targets, spans in masks_of(batch, row):
            assert sorted(context + targets) == list(range(len(ids)))
            assert context == sorted(context)
            assert targets == sorted(targets)
            assert not {ids[position] for position in targets} & NEVER_HIDDEN
            for word in words:
                assert len(set(word) & set(targets)) in (0, len(word))
            assert not words or any(word[0] in context for word in words)
            assert sorted(set(spans)) == list(range(len(set(spans))))
            assert spans == sorted(spans)
            for span in set(spans):
                places = [position for position, of in zip(targets, spans, strict=True) if of == span]
                assert places == list(range(places[0], places[-1] + 1))
                assert options["whole_words"] or len(places) <= options["max_span_length"]


@settings(max_examples=CASES * 60, deadline=None)
@given(batches, collator_options)
def test_texts_are_padded_on_the_right_and_unused_entries_are_minus_one_on_the_right(texts, options):
    batch = collate(texts, **options)
    width = batch["input_ids"].shape[1]
    multiple = options["pad_to_multiple_of"] or 1
    longest = max(map(len, texts))
    assert width % multiple == 0
    assert longest <= width < max(longest, 1) + multiple
    for row, ids in enumerate(texts):
        assert batch["input_ids"][row].tolist() == ids + [TOKENIZER.pad_token_id] * (width - len(ids))
        assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (width - len(ids))
    for name in ("context_positions", "target_positions", "target_spans"):
        used = batch[name] >= 0
        assert (batch[name][~used] == -1).all()
        assert not (used[..., 1:] & ~used[..., :-1]).any()
    assert ((batch["target_positions"] >= 0) == (batch["target_spans"] >= 0)).all()


@settings(max_examples=CASES * 100, deadline=None)
@given(batches, texts_of_any_kind, collator_options, epochs, st.randoms(use_true_random=False))
def test_masks_of_a_text_do_not_depend_on_batch_mates_order_or_padding(texts, mate, options, epoch, shuffler):
    batch = collate(texts, epoch, **options)
    together = [*texts, [*mate, *random_text(40)]]
    order = list(range(len(together)))
    shuffler.shuffle(order)
    other = collate([together[i] for i in order], epoch, **options | {"pad_to_multiple_of": 16})
    for row, ids in enumerate(texts):
        assert masks_of(batch, row) == masks_of(other, order.index(row))
        assert masks_of(batch, row) == masks_of(collate([ids], epoch, **options), 0)


@settings(max_examples=CASES * 40, deadline=None)
@given(batches, collator_options, st.integers(0, 2**31))
def test_global_random_state_is_neither_used_nor_moved_and_inputs_stay_as_they_are(texts, options, seed):
    expected = collate(texts, **options)
    examples = [{"input_ids": np.array(ids, dtype=np.int64), "length": len(ids)} for ids in texts]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - it is the global state that must not matter
    torch.manual_seed(seed)
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    batch = collator(**options)(examples)
    after = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    assert before[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert [example["input_ids"].tolist() for example in examples] == texts
    assert all(set(example) == {"input_ids", "length"} for example in examples)


@pytest.mark.parametrize("kind", [list, lambda ids: np.array(ids, dtype=np.int32), torch.tensor, tuple])
def test_masks_do_not_depend_on_what_holds_the_ids(kind):
    ids = random_text(50)
    assert masks_of(collate([kind(ids)]), 0) == masks_of(collate([ids]), 0)


@pytest.mark.parametrize(
    "ids",
    [[], [CLS], [BEGINNINGS[0]], [CLS, SEP], [CLS, BEGINNINGS[0], SEP], [CLS, SEP, SEP, 0]],
    ids=["nothing", "special", "one", "specials", "one between specials", "with padding"],
)
def test_a_text_that_would_lose_everything_passes_unhidden(ids):
    for context, targets, spans in masks_of(collate([ids], num_masks=2, ratio=0.98), 0):
        assert context == list(range(len(ids)))
        assert targets == spans == []


def test_a_batch_without_any_target_still_has_its_shapes():
    batch = collate([[], [CLS, SEP]], num_masks=3)
    assert batch["input_ids"].shape == (2, 2)
    assert batch["target_positions"].tolist() == batch["target_spans"].tolist() == [[[-1]] * 3] * 2
    assert collate([[]])["input_ids"].shape == (1, 1)


def test_two_words_always_keep_one_and_sometimes_lose_the_other():
    texts = [[CLS, a, b, SEP] for a in BEGINNINGS for b in BEGINNINGS]
    batch = collate(texts, ratio=0.5)
    hidden = [masks_of(batch, row)[0][1] for row in range(len(texts))]
    assert {tuple(positions) for positions in hidden} == {(1,), (2,)}


# ---- what a mask depends on -----------------------------------------------------------------------------------------


def test_same_seed_and_epoch_give_the_same_masks_and_everything_else_gives_others():
    ids = random_text()
    changed = [*ids[:-1], BEGINNINGS[0] if ids[-1] != BEGINNINGS[0] else BEGINNINGS[1]]
    reference = masks_of(collate([ids], epoch=3, seed=5, num_masks=2), 0)
    assert masks_of(collate([ids], epoch=3, seed=5, num_masks=2), 0) == reference
    others = [
        masks_of(collate([ids], epoch=3, seed=6, num_masks=2), 0),
        masks_of(collate([ids], epoch=4, seed=5, num_masks=2), 0),
        masks_of(collate([ids], epoch=5, seed=3, num_masks=2), 0),
        masks_of(collate([changed], epoch=3, seed=5, num_masks=2), 0),
    ]
    distinct = {tuple(targets) for masks in [reference, *others] for _, targets, _ in masks}
    assert len(distinct) == 2 * 5


def test_a_mask_keeps_its_number_when_there_are_more():
    ids = random_text()
    assert masks_of(collate([ids], num_masks=4), 0)[:2] == masks_of(collate([ids], num_masks=2), 0)


def test_keys_of_all_texts_masks_epochs_and_seeds_differ():
    texts = [np.array([5, i]) for i in range(200)]
    keys = [mask_keys(texts, 4, seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len(np.unique(np.concatenate(keys))) == 200 * 4 * 25


# ---- strategies -----------------------------------------------------------------------------------------------------


def collate_at(texts, steps, epoch=0, **options):
    collate_texts = collator(**options)
    collate_texts.epoch = epoch
    return collate_texts([{"input_ids": ids, "step": step} for ids, step in zip(texts, steps, strict=True)])


def test_what_a_block_leaves_visible_is_one_also_where_its_spans_hit_no_word():
    ids = [5, 79, 79, 8, 6]
    for epoch in range(600, 700):
        batch = collate_at([ids], [0], epoch, strategies=[MaskStrategy(kind="keep_block")], num_masks=2)
        for context, targets, _ in masks_of(batch, 0):
            assert targets
            visible = "".join(".#"[position in targets] for position in sorted({*context, *targets}))
            assert "#" not in visible.strip("#"), epoch


@settings(max_examples=CASES * 150, deadline=None)
@given(batches, mixtures, st.integers(1, 3), epochs, st.data())
def test_masks_of_every_kind_hide_whole_usable_words_in_numbered_runs_and_leave_one_visible(
    texts, strategies, num_masks, epoch, data
):
    steps = [data.draw(st.integers(0, 3_000)) for _ in texts]
    batch = collate_at(texts, steps, epoch, strategies=strategies, num_masks=num_masks)
    assert ("mask_strategies" in batch) == (len(strategies) > 1)
    for row, ids in enumerate(texts):
        for number, (context, targets, spans) in enumerate(masks_of(batch, row)):
            strategy = strategies[batch["mask_strategies"][row, number] if len(strategies) > 1 else 0]
            words = words_of(ids, strategy.whole_words)
            usable = {position for word in words for position in word}
            assert not set(context) & set(targets)
            assert set(targets) <= usable
            assert set(range(len(ids))) - usable <= set(context)
            assert strategy.context_ratio is not None or len(context) + len(targets) == len(ids)
            hidden = "".join(".#"[position in targets] for position in sorted(usable))
            assert strategy.kind != "suffix" or "#." not in hidden
            assert strategy.kind != "keep_block" or "#" not in hidden.strip("#")
            for word in words:
                assert len(set(word) & set(targets)) in (0, len(word))
                assert len(set(word) & set(context)) in (0, len(word))
            assert not words or set(context) & usable
            assert sorted(set(spans)) == list(range(len(set(spans))))
            assert spans == sorted(spans)
            for span in set(spans):
                places = [position for position, of in zip(targets, spans, strict=True) if of == span]
                assert not [p for p in range(places[0], places[-1] + 1) if p in usable and p not in places]


@settings(max_examples=CASES * 60, deadline=None)
@given(batches, texts_of_any_kind, mixtures, epochs, st.randoms(use_true_random=False))
def test_masks_of_every_kind_do_not_depend_on_batch_mates_order_or_padding(texts, mate, strategies, epoch, shuffler):
    def rows_of(batch):
        kinds = batch.get("mask_strategies", torch.zeros(len(batch["input_ids"]), 2))
        return [(masks_of(batch, row), kinds[row].tolist()) for row in range(len(kinds))]

    options = {"strategies": strategies, "num_masks": 2}
    alone = [rows_of(collate_at([ids], [7], epoch, **options))[0] for ids in texts]
    together = [*texts, [*mate, *random_text(40)]]
    order = list(range(len(together)))
    shuffler.shuffle(order)
    batch = collate_at([together[i] for i in order], [7] * len(order), epoch, pad_to_multiple_of=16, **options)
    assert [rows_of(batch)[order.index(row)] for row in range(len(texts))] == alone


SINGLE_WORDS = np.random.default_rng(6).choice(BEGINNINGS, (1_000, 100)).tolist()  # 100,000 words of one token


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({"kind": "suffix", "ratio": 0.25}, 0.25),
        ({"kind": "suffix", "ratio": 0.25, "whole_words": False}, 0.25),
        ({"kind": "keep_block", "ratio": 0.6}, 0.6),
        ({"kind": "blocks", "ratio": 0.15, "num_spans": 4}, 0.6),
        ({"kind": "blocks", "ratio": [0.1, 0.16], "num_spans": 3}, 0.39),
        ({"ratio": (0.2, 0.6)}, 0.4),
        ({"ratio": 0.4, "context_ratio": (0.3, 0.5)}, 0.4),
        ({"ratio": 0.15, "span_length_distribution": "fixed", "mean_span_length": 1, "whole_words": False}, 0.15),
    ],
)
def test_hidden_share_of_every_kind_is_the_one_asked_for_within_one_percent(corpus, fields, share):
    texts, usable = corpus
    draw = collator(**fields, num_masks=6)
    assert hidden_share(draw, texts, usable) == pytest.approx(share, rel=0.01)


def hidden_of(fields, texts=SINGLE_WORDS, **options):
    """Hidden tokens (boolean) and spans, both (texts · masks, tokens), of texts of one length without padding."""
    batch = collate(texts, **fields, **options)
    spans = np.full((batch["target_positions"].shape[0] * batch["target_positions"].shape[1], len(texts[0])), -1)
    row, column = np.nonzero(batch["target_positions"].flatten(0, 1).numpy() >= 0)
    positions = batch["target_positions"].flatten(0, 1).numpy()[row, column]
    spans[row, positions] = batch["target_spans"].flatten(0, 1).numpy()[row, column]
    return spans >= 0, spans


def runs(hidden):
    """Number of runs of True in each row."""
    return (np.diff(hidden.astype(int), axis=1, prepend=0) == 1).sum(axis=1)


def test_a_suffix_is_the_end_of_the_text_of_the_share_asked_for():
    hidden, _ = hidden_of({"kind": "suffix", "ratio": (0.1, 0.5)})
    shares = hidden.sum(axis=1)
    assert (hidden == (np.arange(100) >= 100 - shares[:, None])).all()
    assert (
        stats.kstest((shares + np.random.default_rng(0).random(1_000) - 0.5) / 100, "uniform", (0.1, 0.4)).pvalue
        > 1e-4
    )


def test_before_a_suffix_that_hits_every_word_the_first_one_stays():
    text = [CLS, 5, 45, 46, 47, 48, 6, SEP]
    masks = masks_of(collate([text], kind="suffix", ratio=0.95, num_masks=60), 0)
    assert {tuple(targets) for _, targets, _ in masks} == {(6,)}


def test_a_kept_block_is_one_run_of_the_share_asked_for_that_begins_anywhere():
    hidden, _ = hidden_of({"kind": "keep_block", "ratio": 0.7})
    assert (runs(~hidden) == 1).all()
    assert ((~hidden).sum(axis=1) == 30).all()
    first = (~hidden).argmax(axis=1)
    assert (first.min(), first.max()) == (0, 70)
    assert stats.kstest((first + np.random.default_rng(0).random(1_000)) / 71, "uniform").pvalue > 1e-4


def test_spans_by_number_are_so_many_disjoint_spans_of_uniform_length():
    hidden, spans = hidden_of({"num_spans": 3, "min_span_length": 4, "max_span_length": 9, "ratio": 0.9})
    assert (spans.max(axis=1) == 2).all()
    lengths = np.stack([(spans == number).sum(axis=1) for number in range(3)])
    counts = np.bincount(lengths.ravel(), minlength=10)
    assert counts[:4].sum() == 0
    assert len(counts) == 10
    assert stats.chisquare(counts[4:]).pvalue > 1e-4
    assert (runs(hidden) <= 3).all()


def test_spans_by_number_shrink_alike_where_they_would_hide_more_than_the_ratio():
    hidden, spans = hidden_of({"num_spans": 2, "min_span_length": 20, "max_span_length": 60, "ratio": 0.3})
    lengths = np.stack([(spans == number).sum(axis=1) for number in range(2)])
    assert (hidden.sum(axis=1) == 30).all()
    assert lengths.min() >= 30 * 20 // 80
    short = [[BEGINNINGS[i], BEGINNINGS[j], BEGINNINGS[0]] for i in range(40) for j in range(40)]
    hidden, _ = hidden_of({"num_spans": 2, "min_span_length": 20, "max_span_length": 60, "ratio": 0.99}, short)
    assert set(hidden.sum(axis=1)) == {2}


def test_blocks_have_each_the_share_asked_for_and_do_not_overlap():
    _, spans = hidden_of({"kind": "blocks", "num_spans": 4, "ratio": (0.15, 0.2)})
    lengths = np.stack([(spans == number).sum(axis=1) for number in range(4)])
    assert (lengths.min(), lengths.max()) == (15, 20)
    assert np.unique(lengths).tolist() == [15, 16, 17, 18, 19, 20]
    assert abs(np.corrcoef(lengths[:2])[0, 1]) < 5 / np.sqrt(1_000)
    _, spans = hidden_of({"kind": "blocks", "num_spans": 4, "ratio": 0.9})  # more than there is
    assert ((spans >= 0).sum(axis=1) == 99).all()
    assert (spans.max(axis=1) == 3).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "keep_block", "ratio": 0.7},
        {"kind": "blocks", "num_spans": 4, "ratio": 0.15},
        {"num_spans": 2, "min_span_length": 5, "max_span_length": 15},
    ],
)
def test_both_ends_of_a_text_are_hidden_equally_often_and_no_place_never_or_always(fields):
    """Within 5 standard deviations of the difference of two binomial shares."""
    hidden, _ = hidden_of(fields, num_masks=4)
    share = hidden.mean(axis=0)
    assert 0.01 < share.min() < share.max() < 0.99
    assert np.abs(share - share[::-1]).max() < 5 * np.sqrt(2 * 0.25 / len(hidden))


def test_an_interval_of_ratios_hides_every_position_equally_often_and_is_drawn_anew_by_every_mask():
    hidden, _ = hidden_of({"ratio": (0.1, 0.7)}, num_masks=4)
    assert np.abs(hidden.mean(axis=0) - 0.4).max() < 5 * np.sqrt(0.24 / len(hidden))
    shares = hidden.mean(axis=1).reshape(1_000, 4)
    assert shares.std() == pytest.approx(0.6 / np.sqrt(12), rel=0.05)
    assert np.abs(np.corrcoef(shares, rowvar=False)[np.triu_indices(4, 1)]).max() < 5 / np.sqrt(1_000)


def test_with_a_context_ratio_what_is_visible_lies_in_a_block_of_that_share():
    batch = collate(SINGLE_WORDS, kind="blocks", num_spans=2, ratio=0.1, context_ratio=0.4)
    ends = []
    for row in range(1_000):
        ((context, targets, _),) = masks_of(batch, row)
        assert context[-1] - context[0] < 40
        inside = set(range(context[0], context[-1] + 1))
        assert inside - set(context) <= set(targets)
        assert len(set(context) | set(targets)) < 65
        ends.append((context[0], context[-1]))
    assert min(ends)[0] == 0
    assert max(last for _, last in ends) == 99
    whole = collate(SINGLE_WORDS, kind="blocks", num_spans=2, ratio=0.1, context_ratio=1.0)
    plain = collate(SINGLE_WORDS, kind="blocks", num_spans=2, ratio=0.1)
    assert torch.equal(whole["context_positions"], plain["context_positions"])
    assert torch.equal(batch["target_positions"], plain["target_positions"])


def test_a_context_block_of_targets_only_is_replaced_by_a_visible_word(corpus):
    texts, _ = corpus
    batch = collate(texts, kind="keep_block", ratio=0.9, context_ratio=0.01)
    for row, ids in enumerate(texts):
        ((context, _, _),) = masks_of(batch, row)
        assert {0, len(ids) - 1} < set(context)


def test_strategies_are_drawn_by_weight_and_each_mask_is_of_its_own():
    mixture = [
        MaskStrategy(ratio=0.15, weight=1, name="R"),
        MaskStrategy(ratio=0.6, weight=1, name="X"),
        MaskStrategy("suffix", 0.25, weight=2, name="S"),
    ]
    draw = collator(strategies=mixture, num_masks=4)
    assert draw.strategy_names == ["R", "X", "S"]
    batch = draw([{"input_ids": ids} for ids in SINGLE_WORDS])
    chosen = batch["mask_strategies"]
    assert chosen.shape == (1_000, 4)
    assert chosen.dtype == torch.int64
    counts = np.bincount(chosen.flatten(), minlength=3)
    assert stats.chisquare(counts, [1_000, 1_000, 2_000]).pvalue > 1e-4
    pairs = np.bincount(chosen[:, 0] * 3 + chosen[:, 1], minlength=9).reshape(3, 3)
    assert stats.chi2_contingency(pairs).pvalue > 1e-4
    hidden = (batch["target_positions"] >= 0).sum(dim=-1)
    for number, share in enumerate([15, 60, 25]):
        assert set(hidden[chosen == number].tolist()) == {share}
    positions = torch.where(batch["target_positions"] < 0, 100, batch["target_positions"]).amin(dim=-1)
    assert set(positions[chosen == 2].tolist()) == {75}


def test_a_mixture_draws_for_its_masks_what_each_strategy_would_draw_alone():
    mixture = [MaskStrategy(ratio=0.2, name="short"), MaskStrategy("blocks", num_spans=1, name="one block")]
    texts = [random_text(60, seed) for seed in range(40)]
    batch = collate(texts, strategies=mixture, num_masks=3)
    alone = [collate(texts, strategies=strategy, num_masks=3) for strategy in mixture]
    for row in range(40):
        for mask, number in enumerate(batch["mask_strategies"][row].tolist()):
            assert masks_of(batch, row)[mask] == masks_of(alone[number], row)[mask]


@pytest.mark.parametrize("fields", [{}, {"kind": "suffix"}, {"kind": "blocks", "num_spans": 2, "ratio": 0.2}])
def test_a_word_is_split_only_by_a_strategy_without_whole_words(fields):
    words = [[0, 1, 2, 3], [4, 5, 6]]
    text = [BEGINNINGS[0], *CONTINUATIONS[:3], BEGINNINGS[1], *CONTINUATIONS[3:5]]
    for whole_words in (True, False):
        masks = masks_of(collate([text], **fields, whole_words=whole_words, num_masks=20), 0)
        assert all(targets in words for _, targets, _ in masks) == whole_words


def test_one_strategy_is_a_list_of_one_and_the_default_is_a_strategy_of_the_defaults():
    examples = [{"input_ids": random_text(60, seed)} for seed in range(5)]
    batches = [
        DataCollatorForTextJepa(TOKENIZER)(examples),
        DataCollatorForTextJepa(TOKENIZER, MaskStrategy())(examples),
        DataCollatorForTextJepa(TOKENIZER, [MaskStrategy()])(examples),
    ]
    for batch in batches[1:]:
        assert all(torch.equal(batch[name], batches[0][name]) for name in batches[0])


@pytest.mark.parametrize("fields", [{}, {"kind": "suffix"}, {"kind": "blocks", "num_spans": 2}, {"num_spans": 2}])
def test_a_ratio_of_zero_hides_nothing(fields):
    for context, targets, _ in masks_of(collate([random_text(50)], **fields, ratio=0), 0):
        assert context == list(range(50))
        assert targets == []


def test_a_schedule_moves_the_ratio_by_the_step_of_each_example_and_then_stays():
    draw = collator(ratio={"start": 0.1, "end": 0.5, "steps": 200})
    assert draw.follows_steps
    assert not collator(ratio=[0.1, 0.5]).follows_steps
    for step, share in ((0, 0.1), (50, 0.2), (100, 0.3), (200, 0.5), (10_000, 0.5)):
        assert hidden_share(draw, SINGLE_WORDS, 100_000, step=step) == pytest.approx(share, abs=1e-9)
    mixed = draw([{"input_ids": ids, "step": 200 * (row % 2)} for row, ids in enumerate(SINGLE_WORDS[:10])])
    assert (mixed["target_positions"] >= 0).sum(dim=-1).flatten().tolist() == [10, 50] * 5


def test_a_schedule_has_reached_its_end_in_evaluation_and_asks_for_steps_in_training():
    draw = collator(ratio={"start": 0.1, "end": 0.5, "steps": 200})
    with pytest.raises(ValueError, match=r"needs examples with a step, see text_jepa\.data\.batching\.TextsWithSteps"):
        hidden_share(draw, SINGLE_WORDS, 100_000)
    draw.epoch = -1
    assert hidden_share(draw, SINGLE_WORDS, 100_000) == pytest.approx(0.5, abs=1e-9)


def test_shares_are_drawn_uniformly_from_intervals():
    uniforms, steps = np.array([[0.0, 0.25, 0.999]]), np.array([[5]])
    np.testing.assert_allclose(draw_share(0.3, uniforms, steps), [[0.3] * 3])
    np.testing.assert_allclose(draw_share([0.2, 0.6], uniforms, steps), [[0.2, 0.3, 0.5996]])
    np.testing.assert_allclose(draw_share({"start": 0.5, "end": 0.1, "steps": 20}, uniforms, steps), [[0.4]])


@settings(max_examples=CASES * 60, deadline=None)
@given(batches, mixtures, st.integers(1, 3))
def test_with_equal_counts_every_mask_with_targets_has_as_many_of_both_and_keeps_a_visible_word(
    texts, strategies, num_masks
):
    options = {"strategies": strategies, "num_masks": num_masks}
    whole = collate_at(texts, [9] * len(texts), **options)
    batch = collate_at(texts, [9] * len(texts), equal_counts=True, **options)
    if (whole["target_positions"] < 0).all():
        assert all(torch.equal(batch[name], whole[name]) for name in whole)
        return
    numbers = {
        name: [
            min(len(mask[place]) for row in range(len(texts)) for mask in masks_of(whole, row) if mask[1])
            for place in (0, 1)
        ]
        for name in ("context_positions", "target_positions")
    }["context_positions"]
    assert [batch[name].shape[2] for name in ("context_positions", "target_positions")] == numbers
    for row, ids in enumerate(texts):
        usable = {position for word in words_of(ids) for position in word}
        for cut, uncut in zip(masks_of(batch, row), masks_of(whole, row), strict=True):
            assert set(cut[0]) <= set(uncut[0])
            assert set(cut[1]) <= set(uncut[1])
            assert not uncut[1] or [len(cut[0]), len(cut[1])] == numbers
            assert not uncut[1] or set(cut[0]) & usable
            assert cut[2] == sorted(cut[2])
            assert sorted(set(cut[2])) == list(range(len(set(cut[2]))))


def test_with_equal_counts_a_word_stays_visible_before_special_tokens_do():
    batch = collate([[5, 6], [CLS, SEP, *random_text(20), SEP]], equal_counts=True, whole_words=False)
    assert batch["context_positions"].shape == batch["target_positions"].shape == (2, 1, 1)
    assert 2 <= batch["context_positions"][1].item() < 22


def test_with_equal_counts_special_tokens_stay_and_others_go_at_random():
    texts = [[CLS, *random_text(50 if seed else 10, seed), SEP] for seed in range(201)]
    batch = collate(texts, equal_counts=True, whole_words=False)
    kept = np.zeros(52)
    for row in range(1, 201):
        ((context, targets, _),) = masks_of(batch, row)
        assert {0, 51} < set(context)
        kept[context] += 1
        kept[targets] += 1
    # 5 + 5 of 50 tokens stay.
    assert np.abs(kept[1:-1] / 200 - 0.2).max() < 5 * np.sqrt(0.16 / 200)


# ---- views ----------------------------------------------------------------------------------------------------------


def views_of(batch):
    """The view of each text as a plain list, without padding."""
    lengths = batch["view_attention_mask"].sum(dim=1).tolist()
    return [ids[:length] for ids, length in zip(batch["view_input_ids"].tolist(), lengths, strict=True)]


def texts_in(batch):
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)]


def split_words(ids):
    """The words of a text as tuples of tokens, without special tokens."""
    return [tuple(ids[position] for position in word) for word in words_of(ids)]


prose = st.lists(token_ids.filter(lambda token: token not in NEVER_HIDDEN), max_size=20).map(lambda t: [CLS, *t, SEP])


@settings(max_examples=CASES * 60, deadline=None)
@given(
    st.lists(prose, min_size=1, max_size=4),
    st.sampled_from(["same", "crop", "crop_both", "deletion"]),
    st.one_of(st.floats(0.05, 1), st.just((0.2, 0.8))),
    epochs,
    st.sampled_from([None, 8]),
)
def test_views_are_padded_on_the_right_keep_special_tokens_and_do_not_depend_on_batch_mates(
    texts, view, share, epoch, multiple
):
    options = {"view": ViewStrategy(view, share), "pad_to_multiple_of": multiple}
    batch = collate(texts, epoch, **options)
    assert list(batch)[-2:] == ["view_input_ids", "view_attention_mask"]
    ids, mask = batch["view_input_ids"], batch["view_attention_mask"]
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape
    assert ids.shape[1] % (multiple or 1) == 0
    assert not (mask[:, 1:] > mask[:, :-1]).any()
    assert (ids[mask == 0] == TOKENIZER.pad_token_id).all()
    for row, text in enumerate(texts):
        found = views_of(batch)[row]
        assert (found[0], found[-1]) == (CLS, SEP)
        assert len(split_words(text)) == 0 or len(split_words(found)) >= 1
        alone = collate([text], epoch, **options)
        assert views_of(alone)[0] == found
        assert texts_in(alone)[0] == texts_in(batch)[row]
        if view != "crop_both":
            assert texts_in(batch)[row] == text
            assert masks_of(batch, row) == masks_of(collate([text], epoch), 0)


LONG_TEXTS = [[CLS, *random_text(60, seed), SEP] for seed in range(300)]


def is_run(part, whole):
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def test_the_same_view_is_the_text():
    batch = collate(LONG_TEXTS, view=ViewStrategy("same"))
    assert torch.equal(batch["view_input_ids"], batch["input_ids"])
    assert torch.equal(batch["view_attention_mask"], batch["attention_mask"])


def test_a_crop_is_a_run_of_whole_words_of_the_share_asked_for():
    batch = collate(LONG_TEXTS, view=ViewStrategy("crop", (0.3, 0.6)))
    shares = []
    for text, view in zip(LONG_TEXTS, views_of(batch), strict=True):
        words, found = split_words(text), split_words(view)
        assert is_run(found, words)
        shares.append(len(found) / len(words))
    assert 0.27 < min(shares) < 0.33
    assert 0.57 < max(shares) < 0.63
    assert np.mean(shares) == pytest.approx(0.45, abs=5 * 0.3 / np.sqrt(12 * 300))
    first = [view[1:3] == text[1:3] for text, view in zip(LONG_TEXTS, views_of(batch), strict=True)]
    last = [view[-3:] == text[-3:] for text, view in zip(LONG_TEXTS, views_of(batch), strict=True)]
    assert 0 < sum(first) < 60
    assert 0 < sum(last) < 60


def test_both_crops_are_runs_that_differ_and_masks_are_drawn_for_what_is_left():
    batch = collate(LONG_TEXTS, view=ViewStrategy("crop_both", 0.5))
    differ = 0
    for row, (text, view) in enumerate(zip(texts_in(batch), views_of(batch), strict=True)):
        words = split_words(LONG_TEXTS[row])
        assert is_run(split_words(text), words)
        assert is_run(split_words(view), words)
        assert len(split_words(text)) in (len(words) // 2, len(words) // 2 + 1)
        differ += text != view
        ((context, targets, _),) = masks_of(batch, row)
        assert sorted(context + targets) == list(range(len(text)))
        assert targets
    assert differ > 260


def test_a_deletion_keeps_whole_words_in_their_order_and_all_words_equally_often():
    split = 0
    for text, view in zip(LONG_TEXTS, views_of(collate(LONG_TEXTS, view=ViewStrategy("deletion", 0.4))), strict=True):
        words, found = split_words(text), split_words(view)
        rest = iter(words)
        assert all(word in rest for word in found)
        assert abs(len(found) - 0.4 * len(words)) < 1
        split += not is_run(found, words)
    assert split > 290
    numbered = [[CLS, *BEGINNINGS, SEP]]
    counts = np.zeros(40)
    draw = collator(view=ViewStrategy("deletion", 0.4))
    for epoch in range(400):
        draw.epoch = epoch
        (view,) = views_of(draw([{"input_ids": ids} for ids in numbered]))
        counts[np.array(view[1:-1]) - BEGINNINGS[0]] += 1
    assert np.abs(counts / 400 - 0.4).max() < 5 * np.sqrt(0.24 / 400)


def test_views_change_with_seed_and_epoch_and_only_with_them():
    options = {"view": ViewStrategy("crop", 0.5)}
    one = views_of(collate(LONG_TEXTS, epoch=2, seed=3, **options))
    assert views_of(collate(LONG_TEXTS, epoch=2, seed=3, num_masks=3, ratio=0.2, **options)) == one
    assert sum(a != b for a, b in zip(one, views_of(collate(LONG_TEXTS, 3, seed=3, **options)), strict=True)) > 260
    assert sum(a != b for a, b in zip(one, views_of(collate(LONG_TEXTS, 2, seed=4, **options)), strict=True)) > 260


@pytest.mark.parametrize("view", ["column", "next_sentence"])
def test_a_view_that_the_examples_bring_is_padded_as_it_is(view):
    pairs = [([CLS, 5, 6, SEP], [CLS, 7, SEP]), ([CLS, 8, SEP], [CLS, 9, 45, 10, SEP])]
    examples = [{"input_ids": np.array(text), "view_input_ids": second} for text, second in pairs]
    batch = collator(view=ViewStrategy(view))(examples)
    assert texts_in(batch) == [text for text, _ in pairs]
    assert views_of(batch) == [second for _, second in pairs]
    assert masks_of(batch, 0) == masks_of(collate([pairs[0][0]]), 0)


def test_masks_and_views_in_words_name_every_strategy_and_number():
    assert collator(num_masks=4).describe_masks() == (
        "4 per text, 50% of the words hidden in spans of geometric length, 3 tokens on average."
    )
    mixture = [
        MaskStrategy(ratio={"start": 0.15, "end": 0.3, "steps": 2_000}, weight=3, name="R"),
        MaskStrategy("suffix", ratio=(0.2, 0.3), whole_words=False, name="S"),
    ]
    assert collator(strategies=mixture, equal_counts=True, view=ViewStrategy("crop")).describe_masks() == (
        "1 per text, each drawn from R (75% of the masks): 15% (at first) to 30% (from step 2,000 on) of the words "
        "hidden in spans of geometric length, 3 tokens on average; S (25% of the masks): the last 20% to 30% of the "
        "tokens hidden. All masks of a batch are cut to the same numbers of visible and of hidden tokens. The view of "
        "a text is a run of 50% to 90% of its words."
    )
    words = {
        "2 spans of 3 to 10 tokens hidden, 50% of the words at most": {"num_spans": 2, "min_span_length": 3},
        "30% of the words hidden, all around a block that stays": {"kind": "keep_block", "ratio": 0.3},
        "4 blocks of 50% of the words each hidden, the rest visible in a block of 85% to 100% of the text": {
            "kind": "blocks",
            "num_spans": 4,
            "context_ratio": (0.85, 1.0),
        },
        "nothing hidden": {"ratio": 0},
        "12.5% of the tokens hidden in spans of 1 token": {
            "ratio": 0.125,
            "span_length_distribution": "fixed",
            "mean_span_length": 1,
            "whole_words": False,
        },
    }
    assert [MaskStrategy(**fields).describe() for fields in words.values()] == list(words)


# ---- loaders --------------------------------------------------------------------------------------------------------


# Kinds of examples of a data loader: masks of texts, or windows of documents.
LOADED = {
    "masks": {},
    "rest": {"view": ViewStrategy("rest", window_length=12), "ratio": 0.0},
    "neighbour": {"view": ViewStrategy("neighbour", window_length=12), "ratio": 0.3},
}
every_kind = pytest.mark.parametrize("kind", LOADED)


@pytest.fixture(scope="module")
def loader_examples():
    """Examples of each kind: texts, or all windows of documents."""
    generator = np.random.default_rng(0)
    texts = [{"input_ids": random_words(generator, length).tolist()} for length in generator.integers(0, 60, 40)]
    windows = []
    for length in generator.integers(2, 50, 12):
        document = random_words(generator, length).tolist()
        count = int(count_windows(np.array([length]), 12)[0])
        windows += [{"input_ids": document, "window": number} for number in range(count)]
    return {"masks": texts, "rest": windows, "neighbour": windows}


def passes_over(loader, epochs):
    """All batches of some epochs, as the trainer reads them."""
    batches = []
    for epoch in epochs:
        loader.collate_fn.epoch = epoch
        batches.append(list(loader))
    return batches


@pytest.mark.parametrize(
    ("kind", "persistent"), [("masks", False), ("masks", True), ("rest", True), ("neighbour", False)]
)
def test_worker_processes_draw_the_masks_of_the_main_process_and_follow_the_epoch(loader_examples, kind, persistent):
    examples, draw = loader_examples[kind], collator(**LOADED[kind])
    expected = passes_over(DataLoader(examples, 4, collate_fn=draw), [0, 1, 7])
    options = {"num_workers": 2, "persistent_workers": persistent, "prefetch_factor": 2}
    workers = DataLoader(examples, 4, collate_fn=collator(**LOADED[kind]), **options)
    for of_epoch, by_workers in zip(expected, passes_over(workers, [0, 1, 7]), strict=True):
        for batch, other in zip(of_epoch, by_workers, strict=True):
            assert all(torch.equal(batch[name], other[name]) for name in batch)
    assert not torch.equal(expected[0][0]["context_positions"], expected[1][0]["context_positions"])
    if kind != "masks":
        assert rows_of(expected[0][0]) != rows_of(expected[1][0])


@every_kind
def test_ranks_and_resumed_passes_see_the_masks_of_the_whole_pass(loader_examples, kind):
    examples, draw = loader_examples[kind], collator(**LOADED[kind])

    def seen(part, batch_size):
        return [row for batch in DataLoader(part, batch_size, collate_fn=draw) for row in rows_of(batch)]

    whole = seen(examples, 4)
    assert seen(examples[1::2], 4) == whole[1::2]
    assert seen(examples[13:], 7) == whole[13:]


@every_kind
def test_what_is_made_of_an_example_depends_on_no_other_one_nor_on_their_order_nor_on_padding(loader_examples, kind):
    examples, draw = loader_examples[kind], collator(**LOADED[kind])
    together = rows_of(draw(examples))
    padded = collator(**LOADED[kind], pad_to_multiple_of=16)
    assert rows_of(padded(examples[::-1]))[::-1] == together
    assert [rows_of(draw([example]))[0] for example in examples] == together


def rows_of(batch):
    """Text, view (if there is one) and masks of each row."""
    texts = texts_in(batch)
    views = views_of(batch) if "view_input_ids" in batch else [None] * len(texts)
    masks = [masks_of(batch, row) for row in range(len(texts))]
    return list(zip(texts, views, masks, strict=True))


# ---- statistics -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    """100,000 usable tokens in texts of 20 to 180 tokens with special tokens around."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 180, 1_000)
    return [[CLS, *random_words(generator, length), SEP] for length in lengths], int(lengths.sum())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.75])
def test_hidden_share_is_the_ratio_within_one_percent(corpus, distribution, ratio):
    texts, usable = corpus
    assert usable >= 95_000
    draw = collator(ratio=ratio, span_length_distribution=distribution, num_masks=6)
    assert hidden_share(draw, texts, usable) == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("length", [3, 6, 7])
def test_hidden_share_of_short_texts_is_not_rounded_to_whole_tokens(length):
    texts = np.random.default_rng(4).choice(BEGINNINGS, (20_000, length)).tolist()
    assert hidden_share(collator(ratio=0.35), texts, 20_000 * length) == pytest.approx(0.35, rel=0.01)


@pytest.mark.parametrize(
    ("distribution", "whole_words"), [*((name, True) for name in DISTRIBUTIONS), ("geometric", False)]
)
def test_every_position_is_hidden_equally_often(distribution, whole_words):
    """Within 5 standard deviations of a binomial share: each text is an independent draw."""
    count, length, ratio = 4_000, 30, 0.4
    generator = np.random.default_rng(1)
    texts = [[CLS, *random_words(generator, length), SEP] for _ in range(count)]
    batch = collate(texts, ratio=ratio, span_length_distribution=distribution, whole_words=whole_words)
    targets = batch["target_positions"]
    hidden = np.bincount(targets[targets >= 0], minlength=length + 2)
    assert hidden[0] == hidden[-1] == 0
    assert np.abs(hidden[1:-1] / count - ratio).max() < 5 * np.sqrt(ratio * (1 - ratio) / count)


def scipy_lengths(distribution, mean, max_length):
    """Length at a quantile of the distribution in scipy, before clipping to 1 … `max_length`."""
    return {
        "fixed": lambda u: np.full(np.shape(u), round(mean)),
        "uniform": stats.randint(1, round(2 * mean)).ppf,
        "geometric": stats.geom(1 / mean).ppf,
        "poisson": stats.poisson(mean).ppf,
    }[distribution]


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # scipy's geom, where the mean is 1
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("mean", "max_length"), [(1, 1), (1, 6), (2.5, 10), (3, 4), (3, 10), (6.5, 40)])
def test_span_lengths_are_the_quantiles_of_the_stated_distribution(distribution, mean, max_length):
    uniforms = np.random.default_rng(2).random(20_000)
    expected = np.clip(scipy_lengths(distribution, mean, max_length)(uniforms), 1, max_length)
    lengths = span_lengths(uniforms, distribution, mean, max_length)
    assert lengths.dtype == np.int64
    np.testing.assert_array_equal(lengths, expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_extreme_draws_give_lengths_in_range(distribution):
    lengths = span_lengths(np.array([0.0, 1 - 2**-53]), distribution, 3.0, 10)
    assert 1 <= lengths[0] <= lengths[1] <= 10


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("mean", [2.0, 4.0])
def test_spans_of_single_token_words_have_the_mean_length_asked_for(distribution, mean):
    """Over 100,000 tokens, in texts so long that the last span, which is shortened, has little effect."""
    generator = np.random.default_rng(3)
    texts = [generator.choice(BEGINNINGS, 2_000) for _ in range(64)]
    batch = collate(
        texts, ratio=0.15, span_length_distribution=distribution, mean_span_length=mean, max_span_length=12
    )
    spans = sum(len(set(spans)) for row in range(64) for _, _, spans in masks_of(batch, row))
    hidden = int((batch["target_positions"] >= 0).sum())
    expected = np.clip(scipy_lengths(distribution, mean, 12)((np.arange(10_000) + 0.5) / 10_000), 1, 12).mean()
    assert hidden / spans == pytest.approx(expected, rel=0.04)


def test_more_python_is_not_executed_for_longer_texts():
    """No loop over tokens: the lines executed for 8 texts are the same for 16 and for 400 tokens each."""

    def lines_executed(tokens):
        examples = [{"input_ids": random_text(tokens, seed)} for seed in range(8)]
        collate_texts, count = collator(num_masks=2), 0

        def trace(frame, event, argument):
            nonlocal count
            count += frame.f_code.co_filename in FILES
            return trace

        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            collate_texts(examples)
        finally:
            sys.settrace(previous)
        return count

    assert lines_executed(400) == lines_executed(16) > 0


# ---- the counter-based draws ----------------------------------------------------------------------------------------


def draws_by_neighbouring(what):
    """Draws (keys, 8) for keys that differ in one argument only."""
    text = np.array([5, 6, 7])
    numbers = range(8_000)
    make_keys = {
        "numbers": lambda: np.arange(8_000, dtype=np.uint64),
        "texts": lambda: mask_keys([np.array([5, i]) for i in numbers], 1, 0, 0),
        "masks": lambda: mask_keys([text], 8_000, 0, 0),
        "epochs": lambda: np.concatenate([mask_keys([text], 1, 0, epoch) for epoch in numbers]),
        "seeds": lambda: np.concatenate([mask_keys([text], 1, seed, 0) for seed in numbers]),
    }
    return counter_uniforms(make_keys[what](), 8)


@pytest.mark.parametrize("what", ["numbers", "texts", "masks", "epochs", "seeds"])
def test_draws_of_neighbouring_keys_are_uniform_and_uncorrelated(what):
    draws = draws_by_neighbouring(what)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Moments within 5 standard deviations, the Kolmogorov-Smirnov distance below its 1 in 10,000 bound.
    assert draws.mean() == pytest.approx(1 / 2, abs=5 / np.sqrt(12 * draws.size))
    assert draws.var() == pytest.approx(1 / 12, abs=5 / np.sqrt(180 * draws.size))
    assert stats.kstest(draws.ravel(), "uniform", method="asymp").statistic < 2.23 / np.sqrt(draws.size)
    bound = 5 / np.sqrt(len(draws) - 1)
    between_columns = np.corrcoef(draws, rowvar=False)[np.triu_indices(draws.shape[1], 1)]
    between_keys = [np.corrcoef(column[:-1], column[1:])[0, 1] for column in draws.T]
    across = [np.corrcoef(draws[:-1, i], draws[1:, i + 1])[0, 1] for i in range(7)]  # a key's column, the next one's
    assert np.abs([*between_columns, *between_keys, *across]).max() < bound


def test_more_columns_do_not_change_the_first_ones():
    keys = np.array([0, 1, 2**63, 2**64 - 1], dtype=np.uint64)
    np.testing.assert_array_equal(counter_uniforms(keys, 50)[:, :7], counter_uniforms(keys, 7))


def test_no_two_texts_of_a_run_share_a_stretch_of_draws():
    draws = counter_uniforms(mask_keys([np.array([5, i]) for i in range(300)], 2, 0, 0), 200)
    assert len(np.unique(draws)) == draws.size


# ---- words and special tokens ---------------------------------------------------------------------------------------

PROSE = [
    "Über Müllers Café spoke naïve señores: it's a ﬁne, un-believable day.",
    "def main():\n    return 3.14159  ## a comment ### another",
    "The lighthouse keeper lit the lamp. 東京 is far away, Ωmega nearer.",
]


def train(model, trainer, pre_tokenizer, decoder, texts=PROSE, **names):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level_bpe(vocab_size=290, **names):
    special = sorted(set(names.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, "##", "###"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train(models.BPE(), trainer, pre_tokenizer, decoders.ByteLevel(), **names)


def metaspace_bpe(vocab_size=75):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<pad>", "<unk>"], show_progress=False)
    model = models.BPE(unk_token="<unk>")
    return train(
        model, trainer, pre_tokenizers.Metaspace(), decoders.Metaspace(), pad_token="<pad>", unk_token="<unk>"
    )


def words_by_table(tokenizer, text):
    """Splits a text at the tokens that begin a word."""
    table = word_start_table(tokenizer)
    words = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if words and table.continues(np.array(words[-1][-1]), np.array(token)):
            words[-1].append(token)
        else:
            words.append([token])
    return [tokenizer.decode(word).strip() for word in words]


@pytest.mark.parametrize("make", [byte_level_bpe, metaspace_bpe])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The lighthouse keeper lit the lamp.", ["The", "lighthouse", "keeper", "lit", "the", "lamp", "."]),
        ("a fine, believable day", ["a", "fine", ",", "believable", "day"]),
        ("Müllers Café naïve señores", ["Müllers", "Café", "naïve", "señores"]),
    ],
)
def test_words_of_bpe_vocabularies_run_from_blank_to_blank_or_punctuation(make, text, words):
    assert words_by_table(make(), text) == words


def test_words_of_byte_level_bpe_end_at_line_breaks_and_keep_the_bytes_of_a_character_together():
    tokenizer = byte_level_bpe()
    assert len(tokenizer.tokenize("東")) > 1
    assert words_by_table(tokenizer, "return\nmain 東 day") == ["return", "", "main", "東", "day"]


def test_a_byte_level_vocabulary_that_holds_hash_signs_is_no_word_piece():
    """GPT-2's vocabulary has the tokens ## and ###, from Markdown."""
    tokenizer = byte_level_bpe()
    assert {"##", "###"} <= set(tokenizer.get_vocab())
    assert not word_start_table(tokenizer).joins[tokenizer.convert_tokens_to_ids("##")]


def test_words_of_word_piece_are_continued_by_hash_signs():
    table = word_start_table(TOKENIZER)
    assert np.flatnonzero(table.joins).tolist() == list(CONTINUATIONS)
    assert table.is_joined[list(BEGINNINGS) + list(CONTINUATIONS)].all()


def test_in_a_vocabulary_without_marks_every_token_is_a_word():
    model = models.WordLevel({"[PAD]": 0, "[UNK]": 1, "house": 2, "keeper": 3}, unk_token="[UNK]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="[PAD]", unk_token="[UNK]")
    tokens = np.arange(len(tokenizer))
    assert not word_start_table(tokenizer).continues(tokens[:, None], tokens).any()


def tokens_ever_hidden(tokenizer, ids):
    collate_text = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.5), num_masks=50)
    targets = collate_text([{"input_ids": ids}])["target_positions"]
    return {ids[position] for position in targets[targets >= 0].tolist()}


def test_words_are_hidden_independently_and_a_special_token_ends_a_word():
    words = [[0], [2], [3, 4], [5]]
    masks = masks_of(collate([[BEGINNINGS[0], SEP, 45, BEGINNINGS[1], 46, BEGINNINGS[2]]], num_masks=200), 0)
    hidden = {tuple(word[0] in targets for word in words) for _, targets, _ in masks}
    assert len(hidden) >= 8
    for one, other in zip(range(3), range(1, 4), strict=True):
        assert {(mask[one], mask[other]) for mask in hidden} >= {(True, False), (False, True)}


def test_an_unknown_word_may_be_hidden():
    assert tokens_ever_hidden(TOKENIZER, [CLS, UNK, 5, 6, 7, SEP]) == {UNK, 5, 6, 7}


def test_an_unknown_token_that_is_also_the_end_of_text_is_never_hidden():
    end = "<|endoftext|>"
    tokenizer = byte_level_bpe(pad_token=end, unk_token=end, eos_token=end, bos_token=end)
    words = tokenizer("The keeper lit a lamp", add_special_tokens=False)["input_ids"]
    ids = [tokenizer.eos_token_id, *words, tokenizer.eos_token_id]
    assert tokens_ever_hidden(tokenizer, ids) == set(words)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sufix", "name": "S"}, "mask strategy 'S': kind 'sufix' is none of spans, suffix"),
        ({"kind": "blocks"}, "kind 'blocks' needs num_spans"),
        ({"kind": "suffix", "max_span_length": 4}, "max_span_length is not used by kind 'suffix'"),
        ({"weight": 0}, "weight must be above 0, got 0"),
        ({"weight": "much"}, "weight must be a number, got 'much'"),
        ({"context_ratio": 1.2}, "context_ratio must be a number above 0 and at most 1, got 1.2"),
        ({"ratio": -0.1}, "ratio must be a number of at least 0 and below 1, got -0.1"),
        ({"ratio": 1.0}, "ratio must be a number of at least 0 and below 1, got 1.0"),
        ({"ratio": float("nan")}, "ratio"),
        ({"ratio": "half"}, "ratio must be a number of at least 0 and below 1, got 'half'"),
        ({"ratio": [0.3]}, "ratio: an interval has two ends, got 1"),
        ({"ratio": [0.3, 0.2]}, r"ratio: the interval ends \(0.2\) before it begins \(0.3\)"),
        ({"ratio": {"start": 0.3, "end": 0.2}}, "ratio: a schedule has start, end and steps, got start, end"),
        ({"ratio": {"start": 0, "end": 1, "steps": 5}}, "ratio must be a number of at least 0 and below 1, got 1"),
        ({"ratio": {"start": 0, "end": 0.5, "steps": 0}}, "ratio: steps of the schedule must be at least 1"),
        ({"num_spans": 0}, "num_spans must be at least 1, got 0"),
        ({"num_spans": 2, "min_span_length": 11}, r"min_span_length must lie between 1 and max_span_length \(10\)"),
        ({"num_spans": 2, "mean_span_length": 4}, "mean_span_length is not used by kind 'spans' with num_spans"),
        ({"num_spans": 2.5}, "num_spans must be a whole number, got 2.5"),
        ({"min_span_length": 2}, "min_span_length is not used by kind 'spans' without num_spans"),
        ({"mean_span_length": 0.5}, r"mean_span_length must lie between 1 and max_span_length \(10\), got 0.5"),
        ({"mean_span_length": 11}, "max_span_length"),
        ({"max_span_length": 0}, "max_span_length"),
        ({"span_length_distribution": "normal"}, "'normal' is none of fixed, uniform, geometric, poisson"),
    ],
)
def test_a_field_of_a_mask_strategy_out_of_range_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskStrategy(**fields)


@pytest.mark.parametrize(
    ("kind", "ratio", "message"),
    [
        ("crop", 0, "view_ratio must be a number above 0 and at most 1, got 0"),
        ("crop", {"start": 0, "end": 1, "steps": 5}, "view_ratio must be a number above 0 and at most 1"),
        (
            "flip",
            0.5,
            "view 'flip' is none of rest, neighbour, same, crop, crop_both, deletion, column, next_sentence",
        ),
    ],
)
def test_a_field_of_a_view_strategy_out_of_range_is_named(kind, ratio, message):
    with pytest.raises(ValueError, match=message):
        ViewStrategy(kind, ratio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": []}, "strategies: at least one is needed"),
        ({"strategies": [MaskStrategy()] * 2}, "mask strategies need different names, got spans, spans"),
        ({"num_masks": 0}, "num_masks must be at least 1, got 0"),
    ],
)
def test_an_argument_of_the_collator_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForTextJepa(TOKENIZER, **options)


def test_a_tokenizer_without_padding_token_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"no padding token; set tokenizer\.pad_token"):
        DataCollatorForTextJepa(SimpleNamespace(pad_token_id=None))


def test_a_vocabulary_with_gaps_is_read_by_id():
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "one": 1, "two": 3, "three": 7}, unk_token="[PAD]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    assert vocabulary(tokenizer) == ["[PAD]", "one", "", "two", "", "", "", "three"]
    batch = DataCollatorForTextJepa(tokenizer)([{"input_ids": [1, 3, 7, 1, 3, 7]}])
    assert (batch["target_positions"] >= 0).sum() == 3


# ---- complements ----------------------------------------------------------------------------------------------------


def test_of_a_pair_of_complements_each_hides_what_the_other_sees(tokenizer, texts):
    collator = DataCollatorForTextJepa(tokenizer, num_masks=4, complement_masks=True)
    batch = collator([{"input_ids": tokenizer(text)["input_ids"]} for text in texts[:8]])
    special = set(tokenizer.all_special_ids)
    for ids, targets, context in zip(
        batch["input_ids"], batch["target_positions"], batch["context_positions"], strict=True
    ):
        words = {i for i, token in enumerate(ids.tolist()) if token not in special}
        hidden = [{p for p in row.tolist() if p >= 0} for row in targets]
        seen = [{p for p in row.tolist() if p >= 0} & words for row in context]
        for first, second in ((0, 1), (2, 3)):
            assert hidden[first]
            assert (hidden[first], seen[first]) == (seen[second], hidden[second])
        assert hidden[0] != hidden[2]


def test_complements_need_pairs(tokenizer):
    with pytest.raises(ValueError, match="even num_masks"):
        DataCollatorForTextJepa(tokenizer, num_masks=3, complement_masks=True)
