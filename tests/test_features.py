"""Vectors of texts: whatever stands beside a text in its batch, it is what the model says of the text alone.

Run: python -m pytest -q tests/test_features.py
"""

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from text_jepa import features


WIDTH = 16


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, hidden_dropout_prob=0.3, **shape)
    return BertModel(config, add_pooling_layer=False)


def states_of(model, tokenizer, *text, **options):
    """(L + 1, S, D) of a single text or pair, straight from the model."""
    with torch.no_grad():
        batch = tokenizer(*text, truncation=True, return_tensors="pt", **options)
        return torch.stack(model.eval()(**batch, output_hidden_states=True).hidden_states)[:, 0].numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda states: states[-1].mean(0)),
        ({"pooling": "cls"}, lambda states: states[-1][0]),
        ({"layers": 2}, lambda states: states[-2:].mean((0, 1))),
        ({"layers": 3, "pooling": "cls"}, lambda states: states[-3:, 0].mean(0)),
        ({"max_length": 7}, None),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_vectors_equal_those_of_each_text_alone(model, tokenizer, texts, options, expected, batch_size):
    """The model is in training mode, whose dropout must not be felt; the texts are of many lengths, unsorted."""
    texts = [*texts, "", "river", " ".join(texts)]
    model.train()
    found = features.embed_texts(model, tokenizer, texts, batch_size=batch_size, **options)
    expected = expected or (lambda states: states[-1].mean(0))
    limit = {"max_length": options.get("max_length", 128)}
    alone = [expected(states_of(model, tokenizer, text, **limit)) for text in texts]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_all_layers_of_one_pass_average_to_the_features_of_the_last_ones(model, tokenizer, texts, pooling):
    layers = features.embed_layers(model, tokenizer, texts, pooling=pooling)
    assert layers.shape == (4, len(texts), WIDTH)
    for count in (1, 2, 4):
        averaged = features.embed_texts(model, tokenizer, texts, layers=count, pooling=pooling)
        np.testing.assert_allclose(layers[-count:].mean(0), averaged, atol=1e-6)
    assert np.abs(layers[0] - layers[-1]).max() > 0.1


def test_the_model_reads_each_text_once_in_batches_of_equal_length(model, tokenizer, texts, monkeypatch):
    texts = [text[: 18 * (row % 5 + 1)] for row, text in enumerate(4 * texts)]
    batches, forward = [], model.forward

    def counting(input_ids, attention_mask, **options):
        batches.append(attention_mask)
        return forward(input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(model, "forward", counting)
    features.embed_layers(model, tokenizer, texts, batch_size=4)
    assert sum(map(len, batches)) == len(texts)
    padding = sum(int((mask == 0).sum()) for mask in batches)
    assert padding < 0.2 * sum(mask.numel() for mask in batches)


def test_token_states_of_a_pair_are_those_of_both_texts_read_together(model, tokenizer, texts):
    pairs = texts[::-1]
    states, mask = features.token_states(model, tokenizer, texts, pairs, max_length=24, batch_size=4, layers=2)
    assert states.dtype == np.float16
    for row, pair in enumerate(zip(texts, pairs, strict=True)):
        alone = states_of(model, tokenizer, *pair, max_length=24)[-2:].mean(0)
        length = mask[row].sum()
        np.testing.assert_array_equal(mask[row], np.arange(states.shape[1]) < length)
        np.testing.assert_allclose(states[row, :length], alone, atol=5e-3)
        assert not states[row, length:].any()


@pytest.fixture
def segmenting(tokenizer):
    """A tokenizer that numbers the two texts of a pair."""
    segmenting = copy.deepcopy(tokenizer)
    segmenting.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert set(segmenting("river", "river")["token_type_ids"]) == {0, 1}
    return segmenting


def test_segments_of_a_pair_are_told_apart_where_the_model_knows_them(model, segmenting, tokenizer):
    pair = (["river"], ["river"])
    (told, _), (untold, _) = (features.token_states(model, t, *pair) for t in (segmenting, tokenizer))
    expected = states_of(model, segmenting, "river", "river")[-1]
    np.testing.assert_allclose(told[0], expected, atol=5e-3)
    assert np.abs(told - untold).max() > 0.1


def test_a_model_without_segments_reads_pairs(segmenting, texts):
    config = DistilBertConfig(vocab_size=len(segmenting), dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=32)
    states, _ = features.token_states(DistilBertModel(config), segmenting, texts, texts)
    assert states.shape[::2] == (len(texts), WIDTH)


def test_bag_of_embeddings_knows_words_but_not_their_order(model, tokenizer):
    bag = features.bag_of_embeddings(model, tokenizer, ["the river boat", "boat river the", "the river", ""])
    np.testing.assert_allclose(bag[0], bag[1], atol=1e-6)
    assert np.abs(bag[0] - bag[2]).max() > 1e-3
    assert not bag[3].any()
    ids = tokenizer("the river", add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(bag[2], model.get_input_embeddings().weight.detach().numpy()[ids].mean(0), atol=1e-6)


def test_the_nearest_text_is_another_one_by_centred_cosine():
    vectors = np.array([[10.0, 1, 0], [10, 0.9, 0.1], [10, -1, 0], [10, -1, 0.2]])
    rows, cosines = features.nearest_texts(vectors, [0, 3])
    assert rows.tolist() == [1, 2]
    centred = vectors - vectors.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, [unit[0] @ unit[1], unit[3] @ unit[2]])


def test_tfidf_is_fitted_on_the_first_texts_alone(texts):
    unknown = "zebra zebra zebra"
    vectors = features.tfidf_vectors(texts, [*texts, unknown, ""])
    assert not vectors[-2:].any()
    np.testing.assert_allclose(features.tfidf_vectors(texts, texts), vectors[:-2])
    assert features.tfidf_vectors(texts, texts, components=3).shape == (len(texts), 3)


def test_tfidf_cosines(texts):
    cosines = features.tfidf_cosines(texts, [texts[0], texts[0], ""], [texts[0], "zebra", texts[0]])
    np.testing.assert_allclose(cosines, [1, 0, 0], atol=1e-12)
    common, rare = features.tfidf_cosines(
        ["the boat", "the mill", "the sea"], ["the boat"] * 2, ["the mill", "a boat"]
    )
    assert common < rare
    repeated = [["the the boat"], ["the the mill"]]
    assert features.tfidf_cosines(texts, *repeated) > features.tfidf_cosines(texts, *repeated, sublinear=True)
