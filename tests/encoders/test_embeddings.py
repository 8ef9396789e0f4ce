"""Vectors of texts: whatever stands beside a text in its batch, it is what the model says of the text alone.

Run: python -m pytest -q tests/encoders/test_embeddings.py
"""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import save_file
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from text_jepa.cli import UsageError
from text_jepa.data.word_weights import count_words, save_word_weights, word_weights
from text_jepa.encoders import embeddings, sentence_head
from text_jepa.encoders.embeddings import Encoder, encoder_inside, open_encoder
from text_jepa.encoders.sentence_head import check_code_of_modules
from text_jepa.probe import controls
from text_jepa.share.export import export_encoder


WIDTH = 16


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        vocab_size=len(tokenizer),
        initializer_range=0.3,
        hidden_dropout_prob=0.3,
        **shape,
    )
    return BertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def encoder(model, tokenizer):
    return Encoder("it", model, tokenizer)


@pytest.fixture(scope="module")
def weights(tokenizer, texts):
    """Inverse document frequencies of the texts: special tokens and punctuation count nothing."""
    return word_weights(count_words(texts, tokenizer), tokenizer)


def states_of(model, tokenizer, *text, **options):
    """(L + 1, S, D) of a single text or pair, straight from the model."""
    with torch.no_grad():
        batch = tokenizer(*text, truncation=True, return_tensors="pt", **options)
        return torch.stack(model.eval()(**batch, output_hidden_states=True).hidden_states)[:, 0].numpy()


# ---- vectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(
    ("pooling", "layers", "expected"),
    [
        ("mean", 1, lambda states: states[-1].mean(0)),
        ("cls", 1, lambda states: states[-1][0]),
        ("mean", 2, lambda states: states[-2:].mean((0, 1))),
        ("cls", 3, lambda states: states[-3:, 0].mean(0)),
    ],
)
def test_vectors_equal_those_of_each_text_alone(encoder, texts, pooling, layers, expected, batch_size):
    """The model is in training mode, whose dropout must not be felt; the texts are of many lengths, unsorted."""
    texts = [
        *texts,
        "",
        "river",
        " ".join(texts[:2]),
    ]
    encoder.model.train()
    pooled = dataclasses.replace(encoder, pooling=pooling)
    found = embeddings.embed_texts(pooled, texts, batch_size=batch_size, layers=layers)
    alone = [
        expected(
            states_of(
                encoder.model,
                encoder.tokenizer,
                text,
                max_length=128,
            )
        )
        for text in texts
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_single_text_has_one_vector_and_no_text_has_none(encoder, texts):
    vectors = embeddings.embed_texts(encoder, texts[:1])
    np.testing.assert_array_equal(embeddings.embed_texts(encoder, texts[0]), vectors[0])
    layers = embeddings.embed_layers(encoder, texts[:1])
    np.testing.assert_array_equal(embeddings.embed_layers(encoder, texts[0]), layers[:, 0])
    nothing = embeddings.embed_texts(encoder, [])
    assert (nothing.shape, nothing.dtype) == ((0, vectors.shape[1]), np.float32)
    assert embeddings.embed_layers(encoder, []).shape == (layers.shape[0], 0, layers.shape[2])


def windows_of(tokenizer, text, length):
    """Ids of a text by windows of at most so many tokens, with special tokens around each."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = [
        ids[start : start + length - 2]
        for start in range(
            0,
            len(ids),
            length - 2,
        )
    ]
    return [[tokenizer.cls_token_id, *part, tokenizer.sep_token_id] for part in parts]


@pytest.mark.parametrize("kind", ["mean", "cls", "weighted"])
def test_a_long_text_is_read_whole_in_windows(encoder, texts, weights, kind):
    long, length = " ".join(texts), 10
    of_tokens, weights_of_tokens, firsts = [], [], []
    for ids in windows_of(encoder.tokenizer, long, length):
        with torch.no_grad():
            states = encoder.model.eval()(torch.tensor([ids])).last_hidden_state[0].numpy()
        of_tokens.append(states)
        firsts.append(states[0])
        weights_of_tokens.append(weights[ids] if kind == "weighted" else np.ones(len(ids)))
    assert len(firsts) > 5
    expected = np.average(
        np.concatenate(of_tokens),
        axis=0,
        weights=np.concatenate(weights_of_tokens),
    )
    if kind == "cls":
        expected = np.mean(firsts, axis=0)
    reading = dataclasses.replace(
        encoder,
        max_length=length,
        pooling="cls" if kind == "cls" else "mean",
        word_weights=weights if kind == "weighted" else None,
    )
    found = embeddings.embed_texts(reading, ["river", long, ""], batch_size=3)
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    shorter = embeddings.embed_texts(reading, ["river", texts[0]])
    np.testing.assert_allclose(found[0], shorter[0], atol=1e-6)


def test_the_last_word_of_a_long_text_counts(encoder, texts):
    long = " ".join(texts * 3)
    found = embeddings.embed_texts(dataclasses.replace(encoder, max_length=16), [f"{long} river", f"{long} bread"])
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_a_text_without_a_weighted_token_has_a_vector_of_zeros(encoder, weights):
    found = embeddings.embed_texts(
        dataclasses.replace(encoder, word_weights=weights),
        ["", " . ,", "river"],
    )
    assert not found[:2].any()
    assert found[2].any()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_all_layers_of_one_pass_average_to_the_features_of_the_last_ones(encoder, texts, pooling):
    encoder = dataclasses.replace(encoder, pooling=pooling)
    layers = embeddings.embed_layers(encoder, texts)
    assert layers.shape == (4, len(texts), WIDTH)
    for count in (1, 2, 4):
        averaged = embeddings.embed_texts(encoder, texts, layers=count)
        np.testing.assert_allclose(
            layers[-count:].mean(0),
            averaged,
            atol=1e-6,
        )
    assert np.abs(layers[0] - layers[-1]).max() > 0.1


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_an_encoder_without_layers_has_the_features_of_its_embeddings(tokenizer, texts, kind):
    if kind == "bert":
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            num_hidden_layers=0,
            num_attention_heads=2,
        )
        model = BertModel(config, add_pooling_layer=False)
    else:
        model = DistilBertModel(
            DistilBertConfig(
                vocab_size=len(tokenizer),
                dim=WIDTH,
                n_layers=0,
                n_heads=2,
            )
        )
    encoder = Encoder("bag", model, tokenizer)
    vectors = embeddings.embed_texts(encoder, texts)
    np.testing.assert_allclose(
        embeddings.embed_layers(encoder, texts),
        vectors[None],
        atol=1e-6,
    )
    assert embeddings.token_states(encoder, texts)[0].shape[::2] == (len(texts), WIDTH)


def test_the_model_reads_each_text_once_in_batches_of_equal_length(encoder, texts, monkeypatch):
    texts = [text[: 18 * (row % 5 + 1)] for row, text in enumerate(4 * texts)]
    batches, forward = [], encoder.model.forward

    def counting(input_ids, attention_mask, **options):
        batches.append(attention_mask)
        return forward(input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(encoder.model, "forward", counting)
    embeddings.embed_layers(encoder, texts, batch_size=4)
    assert sum(map(len, batches)) == len(texts)
    padding = sum(int((mask == 0).sum()) for mask in batches)
    assert padding < 0.2 * sum(mask.numel() for mask in batches)


def test_token_states_of_a_pair_are_those_of_both_texts_read_together(encoder, texts):
    pairs = texts[::-1]
    cut = dataclasses.replace(encoder, max_length=24)
    states, mask = embeddings.token_states(
        cut,
        texts,
        pairs,
        batch_size=4,
        layers=2,
    )
    assert states.dtype == np.float16
    for row, pair in enumerate(zip(texts, pairs, strict=True)):
        alone = states_of(
            encoder.model,
            encoder.tokenizer,
            *pair,
            max_length=24,
        )[-2:].mean(0)
        length = mask[row].sum()
        np.testing.assert_array_equal(
            mask[row],
            np.arange(states.shape[1]) < length,
        )
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
    (told, _), (untold, _) = (embeddings.token_states(Encoder("it", model, t), *pair) for t in (segmenting, tokenizer))
    expected = states_of(model, segmenting, "river", "river")[-1]
    np.testing.assert_allclose(told[0], expected, atol=5e-3)
    assert np.abs(told - untold).max() > 0.1


def test_a_model_without_segments_reads_pairs(segmenting, texts):
    config = DistilBertConfig(
        vocab_size=len(segmenting),
        dim=WIDTH,
        n_layers=1,
        n_heads=2,
        hidden_dim=32,
    )
    states, _ = embeddings.token_states(
        Encoder("it", DistilBertModel(config), segmenting),
        texts,
        texts,
    )
    assert states.shape[::2] == (len(texts), WIDTH)


def test_bag_of_embeddings_knows_words_but_not_their_order(encoder):
    bag = controls.bag_of_embeddings(encoder, ["the river boat", "boat river the", "the river", ""])
    np.testing.assert_allclose(bag[0], bag[1], atol=1e-6)
    assert np.abs(bag[0] - bag[2]).max() > 1e-3
    assert not bag[3].any()
    ids = encoder.tokenizer("the river", add_special_tokens=False)["input_ids"]
    table = encoder.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(
        bag[2],
        table[ids].mean(0),
        atol=1e-6,
    )


def test_bag_of_embeddings_weighs_words_as_its_encoder_does(encoder, weights):
    ids = encoder.tokenizer("the river", add_special_tokens=False)["input_ids"]
    table = encoder.model.get_input_embeddings().weight.detach().numpy()
    (bag,) = controls.bag_of_embeddings(dataclasses.replace(encoder, word_weights=weights), ["the river"])
    np.testing.assert_allclose(
        bag,
        np.average(
            table[ids],
            axis=0,
            weights=weights[ids],
        ),
        atol=1e-6,
    )


# ---- opening an encoder ---------------------------------------------------------------------------------------------

OLD_CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
OLD_MAX = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    """A plain encoder, to which a test adds files of sentence-transformers."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def add_modules(folder, pooling, *kinds):
    """modules.json as sentence-transformers writes it, and the configuration of its pooling."""
    kinds = ["Transformer", *kinds, "Pooling"]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling_folder = folder / modules[-1]["path"]
    pooling_folder.mkdir()
    (pooling_folder / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **pooling}))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (OLD_CLS, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({}, "mean"),
        (None, "mean"),
    ],
)
def test_pooling_is_what_the_folder_says(folder, pooling, expected):
    if pooling is not None:
        add_modules(folder, pooling)
    encoder = open_encoder(str(folder))
    assert encoder.pooling == expected
    assert encoder.word_weights is None
    assert encoder.max_length == encoder.tokenizer.model_max_length == 64


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode": "median"}, "median"),
        (OLD_MAX | OLD_CLS, "cls+max"),
    ],
)
def test_another_pooling_is_refused_by_name_unless_one_is_named(folder, pooling, kind):
    add_modules(folder, pooling)
    with pytest.raises(UsageError) as refusal:
        open_encoder(str(folder))
    assert f"'{kind}'" in str(refusal.value)
    assert "--pooling mean" in str(refusal.value)
    assert open_encoder(str(folder), pooling="mean").pooling == "mean"


def test_an_encoder_whose_tokenizer_cannot_pad_is_refused(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"has no padding token; set tokenizer\.pad_token .*save_pretrained"):
        open_encoder(str(folder))


def test_the_length_of_a_window_is_what_the_folder_says_or_the_user(folder):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    assert open_encoder(str(folder)).max_length == 20
    (folder / "sentence_bert_config.json").rename(folder / "card.json")
    assert open_encoder(str(folder)).max_length == 64
    (folder / "card.json").write_text(json.dumps({"max_length": 24}))
    assert open_encoder(str(folder)).max_length == 24
    assert open_encoder(str(folder), max_length=30).max_length == 30


def test_the_whole_length_is_what_the_folder_says_and_the_encoder_has_positions_for(folder, model, tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.model_max_length = int(1e30)
    model = copy.deepcopy(model)
    model.config.max_position_embeddings = 2000
    assert embeddings.whole_length(str(folder), model, endless) == 2000
    for stated, length in ((1500, 1500), (4000, 2000)):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": stated}))
        assert embeddings.whole_length(str(folder), model, endless) == length


@pytest.mark.parametrize("length", [-5, 0, 1, 2, 1000])
def test_a_window_that_no_text_or_no_encoder_has_is_refused(folder, length):
    with pytest.raises(UsageError, match=rf"of {length} tokens leaves no room|--max_length {length}: .* 512 tokens"):
        open_encoder(str(folder), max_length=length)
    assert open_encoder(str(folder), max_length=3).max_length == 3


@pytest.mark.parametrize("shape", [{"hidden_size": 16}, {"hidden_size": 6}])
def test_a_window_has_at_most_the_positions_of_the_encoder(tmp_path, tokenizer, texts, shape):
    """RoBERTa's begin behind its padding; a width of three to a head is none that a predictor would take."""
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        **shape,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    endless = copy.deepcopy(tokenizer)
    endless.model_max_length = int(1e30)
    endless.save_pretrained(tmp_path)
    encoder = open_encoder(str(tmp_path))
    assert encoder.max_length == 12 - tokenizer.pad_token_id - 1
    assert encoder.model.config._attn_implementation == "sdpa"  # as it was opened
    assert np.isfinite(embeddings.embed_texts(encoder, [" ".join(texts)])).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_an_encoder_that_scores_pairs_is_no_plain_mean(folder, fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UsageError, match=r"a CrossEncoder .*, which scores pairs of texts .*; pass --pooling mean"):
        open_encoder(str(folder))
    assert open_encoder(str(folder), pooling="cls").pooling == "cls"


COMMIT = "1" * 40


@pytest.fixture
def cached(folder, tmp_path_factory, monkeypatch):
    """The cache of `me/encoder`, in which is what `AutoModel` and `AutoTokenizer` have read."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--me--encoder"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return repository


def test_an_encoder_that_is_cached_in_part_is_no_plain_mean(cached):
    assert open_encoder("me/encoder", pooling="mean").pooling == "mean"
    for name in ("modules.json", "config_sentence_transformers.json"):
        message = rf"me/encoder: only a part of it is cached, without {name}, .* with `hf download me/encoder`"
        with pytest.raises(UsageError, match=message):
            open_encoder("me/encoder")
        absent = cached / ".no_exist" / COMMIT / name  # what the client notes where the Hub says that there is none
        absent.parent.mkdir(parents=True, exist_ok=True)
        absent.touch()
    assert open_encoder("me/encoder").pooling == "mean"


def test_an_encoder_that_was_downloaded_as_a_whole_needs_no_hub(cached):
    with pytest.raises(UsageError, match=r"without modules.json"):
        check_code_of_modules("me/encoder")
    (cached / "snapshots" / COMMIT / ".gitattributes").touch()
    check_code_of_modules("me/encoder")
    assert open_encoder("me/encoder").pooling == "mean"


def test_a_hub_that_can_be_asked_knows_what_is_not_cached(cached, monkeypatch):
    """Also where the client could not note it, as in a cache that is not writable."""
    monkeypatch.setattr(sentence_head.HfApi, "file_exists", lambda *_, **__: False)
    assert open_encoder("me/encoder").pooling == "mean"


def drop(path):
    path.unlink()


def drop_folder(path):
    shutil.rmtree(path.parent)


def shorten(path):
    save_file({"emb_layer.weight": np.ones((7, 1), np.float32)}, path)


def rename(path):
    save_file({"weights": np.ones((7, 1), np.float32)}, path)


def flatten(path):
    save_file({"emb_layer.weight": np.ones(7, np.float32)}, path)


def point(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 90868376\n")


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (drop, "is missing or of another tokenizer; copy it again"),
        (drop_folder, "is missing or of another tokenizer; copy it again"),
        (shorten, "is missing or of another tokenizer; copy it again"),
        (rename, r"cannot be read, copy it again \(KeyError"),
        (flatten, r"cannot be read, copy it again \(IndexError"),
        (point, r"is a pointer of git-lfs, .* run `git lfs pull` in .*1_WordWeights"),
    ],
)
def test_weights_of_words_that_are_not_whole_are_no_plain_mean(folder, weights, tokenizer, damage, fragment):
    save_word_weights(folder, weights, tokenizer)
    add_modules(folder, {"pooling_mode": "mean"}, "WordWeights")
    damage(folder / "1_WordWeights" / "model.safetensors")
    with pytest.raises(UsageError, match=rf"1_WordWeights/model\.safetensors {fragment}"):
        open_encoder(str(folder))
    assert open_encoder(str(folder), pooling="mean").word_weights is None


def test_weights_of_words_come_with_the_folder_and_a_named_pooling_is_plain(folder, weights, tokenizer):
    save_word_weights(folder, weights, tokenizer)
    add_modules(folder, {"pooling_mode": "mean"}, "WordWeights")
    np.testing.assert_array_equal(open_encoder(str(folder)).word_weights, weights)
    assert open_encoder(str(folder), pooling="mean").word_weights is None


@pytest.mark.parametrize("with_weights", [False, True])
def test_vectors_are_those_of_sentence_transformers_where_texts_fit(folder, weights, tokenizer, texts, with_weights):
    st = pytest.importorskip("sentence_transformers")
    if with_weights:
        save_word_weights(folder, weights, tokenizer)
    add_modules(folder, {"pooling_mode_mean_tokens": True}, *["WordWeights"] * with_weights)
    texts = [*texts, "", "river"]
    expected = st.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(
        embeddings.embed_texts(open_encoder(str(folder)), texts),
        expected,
        atol=1e-5,
    )


def test_of_a_pretraining_model_it_is_the_encoder_that_would_be_exported(tmp_path, make_model, tokenizer, texts):
    model = make_model(
        {
            **make_model().config.text_config.to_dict(),
            "vocab_size": len(tokenizer),
        }
    )
    for parameter in model.target_encoder.parameters():
        parameter.data.mul_(1.5)
    model.save_pretrained(tmp_path / "pretraining")
    tokenizer.save_pretrained(tmp_path / "pretraining")
    export_encoder(model, tokenizer, tmp_path / "exported", max_length=64)
    vectors = [
        embeddings.embed_texts(open_encoder(str(tmp_path / name)), texts) for name in ("pretraining", "exported")
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    context = embeddings.embed_texts(encoder_inside(model, tokenizer, 64, "context"), texts)
    assert np.abs(context - vectors[0]).max() > 0.1


def test_the_tokenizer_of_a_run_is_left_alone(make_model, tokenizer, texts):
    """What it cuts at is part of its files, which the run has yet to save."""
    model = make_model(
        {
            **make_model().config.text_config.to_dict(),
            "vocab_size": len(tokenizer),
        }
    )
    tokenizer.backend_tokenizer.no_truncation()
    embeddings.embed_texts(encoder_inside(model, tokenizer, 16), texts)
    assert tokenizer.backend_tokenizer.truncation is None


# ---- neighbours and words -------------------------------------------------------------------------------------------


def test_the_nearest_text_is_another_one_by_centred_cosine():
    vectors = np.array(
        [
            [10.0, 1, 0],
            [10, 0.9, 0.1],
            [10, -1, 0],
            [10, -1, 0.2],
        ]
    )
    rows, cosines = embeddings.nearest_texts(vectors, [0, 3])
    assert rows.tolist() == [1, 2]
    centred = vectors - vectors.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(
        cosines,
        [unit[0] @ unit[1], unit[3] @ unit[2]],
    )


def test_tfidf_is_fitted_on_the_first_texts_alone(texts):
    unknown = "zebra zebra zebra"
    vectors = controls.tfidf_vectors(texts, [*texts, unknown, ""])
    assert not vectors[-2:].any()
    np.testing.assert_allclose(controls.tfidf_vectors(texts, texts), vectors[:-2])
    assert controls.tfidf_vectors(texts, texts, components=3).shape == (len(texts), 3)


def test_tfidf_cosines(texts):
    cosines = controls.tfidf_cosines(
        texts,
        [texts[0], texts[0], ""],
        [texts[0], "zebra", texts[0]],
    )
    np.testing.assert_allclose(cosines, [1, 0, 0], atol=1e-12)
    common, rare = controls.tfidf_cosines(
        ["the boat", "the mill", "the sea"], ["the boat"] * 2, ["the mill", "a boat"]
    )
    assert common < rare
    repeated = [["the the boat"], ["the the mill"]]
    assert controls.tfidf_cosines(texts, *repeated) > controls.tfidf_cosines(texts, *repeated, sublinear=True)
