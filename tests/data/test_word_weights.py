"""Tests the weights of words, and that sentence-transformers reads them correctly."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from text_jepa.data.tokenization import train_tokenizer, vocabulary
from text_jepa.data.word_weights import (
    WORD_WEIGHTS_FOLDER,
    DocumentFrequency,
    count_words,
    is_weightless,
    load_word_weights,
    save_word_weights,
    word_weights,
)


TEXTS = ["the cat, the dog!", "the bird sings.", "a cat sleeps; the end", "¿the señor? 名。"]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXTS * 5, 300, kind=request.param)


def test_a_token_counts_once_per_document():
    frequency = DocumentFrequency(5)
    frequency.add([[1, 1, 2], [1, 3], []])
    assert frequency.documents == 3
    assert frequency.counts.tolist() == [0, 2, 1, 1, 0]
    assert frequency.inverse()[1] == pytest.approx(np.log(4 / 3) + 1)


def test_idf_is_that_of_scikit_learn(tokenizer):
    from sklearn.feature_extraction.text import TfidfVectorizer

    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    reference = TfidfVectorizer(analyzer=lambda row: row).fit(ids)
    weights = count_words(TEXTS, tokenizer).inverse()
    for token, column in reference.vocabulary_.items():
        assert weights[token] == pytest.approx(reference.idf_[column])


def test_special_tokens_and_punctuation_weigh_nothing_and_words_do(tokenizer):
    weights = word_weights(count_words(TEXTS, tokenizer), tokenizer)
    zero = is_weightless(tokenizer)
    assert (weights[zero] == 0).all()
    assert (weights[~zero] >= 1).all()
    assert zero[tokenizer.all_special_ids].all()
    for mark in (",", "!", ";"):
        assert zero[tokenizer(mark, add_special_tokens=False)["input_ids"][-1]]
    assert not zero[tokenizer("cat", add_special_tokens=False)["input_ids"]].any()


def test_bytes_of_letters_have_weight_and_blanks_have_none():
    tokenizer = ByT5Tokenizer()
    zero = is_weightless(tokenizer)
    assert not zero[tokenizer("Люблю Ригу, №1", add_special_tokens=False)["input_ids"][:10]].any()
    assert zero[tokenizer(" ,\n.", add_special_tokens=False)["input_ids"]].all()
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁a", -2.0)], unk_id=0))
    backend.decoder = decoders.Metaspace()
    unigrams = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert is_weightless(unigrams).tolist() == [True, True, False]


def test_weights_survive_a_round_trip(tokenizer, tmp_path):
    weights = word_weights(count_words(TEXTS, tokenizer), tokenizer)
    assert load_word_weights(tmp_path) is None
    save_word_weights(tmp_path, weights, tokenizer)
    np.testing.assert_array_equal(load_word_weights(tmp_path), weights)


def test_sentence_transformers_reads_the_same_weights(tokenizer, tmp_path):
    modules = pytest.importorskip("sentence_transformers.models")
    weights = word_weights(count_words(TEXTS, tokenizer), tokenizer)
    save_word_weights(tmp_path, weights, tokenizer)
    module = modules.WordWeights.load(str(tmp_path / WORD_WEIGHTS_FOLDER))
    assert module.vocab == vocabulary(tokenizer)
    torch.testing.assert_close(module.emb_layer.weight.detach()[:, 0], torch.from_numpy(weights))
