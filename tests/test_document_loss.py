"""The document loss: what its targets are, that they cannot collapse, and what learns from it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from configuration_text_jepa import OBJECTIVES, TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, sees_words_alone, weighted_mean_pool
from text_jepa.encoders.embeddings import trained_encoder


VOCABULARY = 60
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 40}
STATIC = {"num_hidden_layers": 0, **SHAPE}
LAYERED = {"num_hidden_layers": 2, "intermediate_size": 24, **SHAPE}


def build(text_config=STATIC, seed=0, **fields):
    torch.manual_seed(seed)
    fields = OBJECTIVES["documents"] | {"document_target_size": 24} | fields
    model = TextJepaForPreTraining(TextJepaConfig(text_config=dict(text_config), **fields))
    if model.word_weights is not None:
        model.set_word_weights(torch.arange(VOCABULARY) / 10)
    return model


def batch(texts=5, length=9, rest=21, seed=0, masks=1):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCABULARY, (texts, length), generator=generator)
    view_ids = torch.randint(3, VOCABULARY, (texts, rest), generator=generator)
    view_mask = (torch.arange(rest) < torch.arange(rest, rest - texts, -1)[:, None]).long()
    nothing = torch.full((texts, masks, 1), -1)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "context_positions": torch.arange(length).expand(texts, masks, length),
        "target_positions": nothing,
        "target_spans": nothing,
        "view_input_ids": view_ids,
        "view_attention_mask": view_mask,
    }


def test_lexical_targets_are_the_weighted_mean_of_fixed_vectors_less_their_mean():
    model, inputs = build().train(), batch()
    outputs = model(**inputs)
    vectors = model.lexical_space.vectors
    expected = []
    for ids, mask in zip(inputs["view_input_ids"], inputs["view_attention_mask"], strict=True):
        words = ids[mask.bool()]
        weights = model.word_weights[words]
        expected.append((vectors[words] * weights[:, None]).sum(0) / weights.sum())
    expected = torch.stack(expected)
    targets = outputs.text_targets.documents
    torch.testing.assert_close(targets, expected - expected.mean(0), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_cosine_distance_of_prediction_and_target():
    model, inputs = build().train(), batch()
    outputs = model(**inputs)
    states = model.model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    pooled = weighted_mean_pool(states, model.token_weights(inputs["input_ids"], inputs["attention_mask"]))
    cosine = F.cosine_similarity(model.document_predictor(pooled), outputs.text_targets.documents, dim=-1)
    torch.testing.assert_close(outputs.document_loss, 1 - cosine.mean())
    torch.testing.assert_close(outputs.loss, outputs.document_loss)


def test_padding_and_weightless_words_of_the_rest_change_nothing():
    model, inputs = build().eval(), batch()
    model.set_word_weights(torch.cat([torch.zeros(3), torch.rand(VOCABULARY - 3) + 0.1]))
    expected = model(**inputs).text_targets.documents
    padding = torch.full((5, 4), 7)
    weightless = torch.full((5, 2), 2)
    inputs["view_input_ids"] = torch.cat([inputs["view_input_ids"], padding, weightless], dim=1)
    more = torch.cat([torch.zeros_like(padding), torch.ones_like(weightless)], dim=1)
    inputs["view_attention_mask"] = torch.cat([inputs["view_attention_mask"], more], dim=1)
    torch.testing.assert_close(model(**inputs).text_targets.documents, expected)


def test_a_rest_without_a_word_that_counts_teaches_nothing_and_is_not_in_the_mean():
    model, inputs = build().train(), batch()
    inputs["view_input_ids"][0] = 0  # the weight of a word is a tenth of its number
    outputs = model(**inputs)
    assert (outputs.text_targets.documents[0] == 0).all()
    others = {name: value[1:] for name, value in inputs.items()}
    twin = build().train()
    expected = twin(**others).text_targets.documents
    torch.testing.assert_close(outputs.text_targets.documents[1:], expected)
    torch.testing.assert_close(model.running["documents"].mean, twin.running["documents"].mean)
    twin_outputs = twin(**others)
    torch.testing.assert_close(outputs.loss, twin_outputs.loss)
    outputs.loss.backward()
    twin_outputs.loss.backward()
    torch.testing.assert_close(model.document_predictor.output.bias.grad, twin.document_predictor.output.bias.grad)


@pytest.mark.parametrize("text_config", [STATIC, LAYERED], ids=["static", "layers"])
def test_encoder_and_predictor_learn_and_the_target_space_does_not(text_config):
    model = build(text_config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**batch()).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "model.encoder.embeddings.word_embeddings.weight" in moved or any(
        "tok_embeddings" in name for name in moved
    )
    assert {"document_predictor.hidden.weight", "document_predictor.output.weight"} <= moved
    assert not {name for name in moved if name.startswith(("lexical_space", "pooler"))}
    assert model.target_encoder is None
    assert model.predictor is None


def test_every_trainable_parameter_has_a_gradient():
    model = build().train()
    model(**batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_hidden_states_of_an_encoder_without_layers_are_its_embeddings():
    model, input_ids = build().eval(), batch()["input_ids"]
    for encoded in (model, model.model):
        output = encoded(input_ids, output_hidden_states=True)
        assert len(output.hidden_states) == 1
        assert torch.equal(output.hidden_states[0], output.last_hidden_state)
        assert encoded(input_ids).hidden_states is None


def test_a_constant_encoder_is_no_solution():
    model, inputs = build().train(), batch(texts=64)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(0.5)
    assert model(**inputs).loss > 0.95


def test_training_finds_the_document_of_a_window():
    # Twenty "subjects" of two words each: windows and rests of one subject share no word.
    torch.manual_seed(0)
    model = build(seed=1, document_target_size=32).train()
    model.set_word_weights(torch.ones(VOCABULARY))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    subjects = torch.arange(20)
    inputs = batch(texts=20, length=4, rest=6)
    inputs["input_ids"] = (3 + subjects)[:, None].expand(20, 4)
    inputs["view_input_ids"] = (30 + subjects)[:, None].expand(20, 6)
    inputs["view_attention_mask"] = torch.ones(20, 6, dtype=torch.long)
    losses = []
    for _ in range(150):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8
    assert losses[-1] < 0.1


def test_targets_of_an_encoder_are_pooled_views_of_the_target_encoder():
    model = build(LAYERED, document_target="encoder", target_encoder_type="frozen").train()
    inputs = batch()
    outputs = model(**inputs)
    ids, mask = inputs["view_input_ids"], inputs["view_attention_mask"]
    with torch.no_grad():
        states = model.target_encoder(ids, mask).last_hidden_state
    pooled = weighted_mean_pool(states, model.token_weights(ids, mask))
    torch.testing.assert_close(outputs.text_targets.documents, pooled - pooled.mean(0), rtol=1e-4, atol=1e-5)
    assert not outputs.text_targets.documents.requires_grad
    assert model.lexical_space is None


def test_an_online_target_is_refused_unless_something_keeps_it_from_collapsing():
    with pytest.raises(Exception, match="online targets collapse"):
        build(LAYERED, document_target="encoder", target_encoder_type="online")


def test_masks_of_a_text_share_its_document():
    model = build().eval()
    one, two = model(**batch()), model(**batch(masks=2))
    torch.testing.assert_close(one.document_loss, two.document_loss)


def test_a_checkpoint_keeps_weights_of_words_and_target_space(tmp_path):
    model, inputs = build().train(), batch()
    model(**inputs)
    model.eval().save_pretrained(tmp_path)
    loaded = TextJepaForPreTraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).loss, model(**inputs).loss)
    torch.testing.assert_close(loaded.word_weights, model.word_weights)


def test_a_checkpoint_in_half_precision_keeps_them_whole(tmp_path):
    build().save_pretrained(tmp_path)
    loaded = TextJepaForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.word_weights.dtype == loaded.lexical_space.vectors.dtype == torch.float32
    assert loaded.model.encoder.get_input_embeddings().weight.dtype == torch.bfloat16


def test_an_encoder_without_layers_is_a_stock_checkpoint_of_words_alone(tmp_path):
    model = build().eval()
    model.model.encoder.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.tensor([[5, 9, 5, 30]])
    states = loaded(ids).last_hidden_state
    torch.testing.assert_close(states[0, 0], states[0, 2])  # wherever a word stands, it has the same state
    torch.testing.assert_close(states, model.model(ids).last_hidden_state)


def test_positions_of_an_encoder_without_layers_stay_zero():
    model = build().train()
    model(**batch()).loss.backward()
    positions = model.model.encoder.embeddings.position_embeddings.weight
    assert positions.grad is None
    assert (positions == 0).all()


def test_weights_of_words_fit_the_vocabulary_and_the_pooling():
    with pytest.raises(ValueError, match="weights for 60 words"):
        build().set_word_weights(torch.ones(7))
    with pytest.raises(ValueError, match="pooling='idf'"):
        build(pooling="mean").set_word_weights(torch.ones(VOCABULARY))


def test_new_words_are_as_rare_as_the_rarest_and_old_ones_keep_their_place():
    model = build()
    weights, vectors = model.word_weights.clone(), model.lexical_space.vectors.clone()
    model.resize_token_embeddings(VOCABULARY + 3)
    torch.testing.assert_close(model.word_weights[:VOCABULARY], weights)
    assert (model.word_weights[VOCABULARY:] == weights.max()).all()
    torch.testing.assert_close(model.lexical_space.vectors[:VOCABULARY], vectors)
    inputs = batch()
    inputs["input_ids"][0, 0] = VOCABULARY + 2
    assert model(**inputs).loss.isfinite()


def test_windows_of_one_document_are_no_negatives_of_each_other():
    """Neighbouring windows each have the other as their target: a window must not have to be unlike itself."""
    contrast = {"document_loss_weight": 0.0, "sentence_loss_weight": 1.0, "sentence_loss_type": "infonce"}
    contrast |= {"sentence_hidden_size": 0, "target_encoder_type": "online"}
    model = build(LAYERED, **contrast).eval()
    inputs = batch(texts=8, rest=9)
    inputs["view_attention_mask"] = torch.ones_like(inputs["view_input_ids"])
    # The second half are the neighbours of the first, and the other way round.
    inputs["input_ids"][4:] = inputs["view_input_ids"][:4]
    inputs["view_input_ids"][4:] = inputs["input_ids"][:4]
    documents = torch.arange(8) % 4
    told, untold = model(**inputs, document_ids=documents).loss, model(**inputs).loss
    alone = {name: value[:4] for name, value in inputs.items()}
    assert told < untold
    torch.testing.assert_close(model(**alone, document_ids=documents[:4]).loss, model(**alone).loss)


def test_a_frozen_target_encoder_is_never_what_is_exported():
    model = build(LAYERED, document_target="encoder", target_encoder_type="frozen")
    assert trained_encoder(model, "target") is model.model.encoder


# ---- distinct words -------------------------------------------------------------------------------------------------


def outputs_and_gradients(model, inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return outputs, gradients


CONTRAST = {"document_loss_weight": 0, "sentence_loss_weight": 1, "sentence_loss_type": "infonce"}
ONLINE = {"target_encoder_type": "online"}
ENCODED = {"document_target": "encoder"}


@pytest.mark.parametrize(
    ("fields", "times_encoded"),
    [
        ({}, 1),
        ({"pooling": "mean"}, 1),
        ({"context_mode": "attention_mask"}, 1),
        ({"context_mode": "mask_token", "mask_token_id": 4}, 1),
        (CONTRAST | ONLINE, 2),
        (CONTRAST | ONLINE | {"pooling": "mean"}, 2),
        (CONTRAST | {"document_loss_weight": 1} | ONLINE, 2),
        (ENCODED | {"target_encoder_type": "ema"}, 2),
        (ENCODED | {"target_encoder_type": "frozen", "pooling": "mean"}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("masks", [1, 3])
def test_each_distinct_word_is_encoded_once_and_nothing_else_changes(fields, times_encoded, masks, monkeypatch):
    model = build(**fields).eval()
    inputs = batch(texts=40, masks=masks)
    positions = inputs["context_positions"].clone()
    positions[::2, :, 5:] = -1
    inputs["context_positions"] = positions
    words_read = []
    for encoder in {model.model.encoder, model.encoder_of_targets}:
        encoder.register_forward_pre_hook(lambda module, args, kwargs: words_read.append(args), with_kwargs=True)
    once, gradients = outputs_and_gradients(model, inputs)
    assert [ids.shape for (ids,) in words_read] == [(VOCABULARY - 3, 1)] * times_encoded
    monkeypatch.setattr(model, "_encodes_distinct_words", lambda encoder, input_ids: False)
    each, expected = outputs_and_gradients(model, inputs)
    assert once.last_hidden_state is None
    assert each.last_hidden_state.shape == (40 * masks, 9, 16)
    torch.testing.assert_close(once.loss, each.loss)
    torch.testing.assert_close(once.text_targets, each.text_targets)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


class NormLoss(TextJepaForPreTraining):
    def compute_losses(self, context, *inputs):
        norms = context.output.last_hidden_state.norm(dim=-1)
        return super().compute_losses(context, *inputs) | {"norm": norms.mean()}


class OwnPooling(TextJepaForPreTraining):
    def pool(self, states, mask, input_ids):
        return states[:, 0]


class OwnTargets(TextJepaForPreTraining):
    def encode_targets(self, *inputs):
        encoded = super().encode_targets(*inputs)
        encoded.last_hidden_state = torch.zeros_like(encoded.last_hidden_state)
        return encoded


def test_targets_of_a_subclass_are_asked_for():
    fields = OBJECTIVES["documents"] | ENCODED | {"target_encoder_type": "frozen"}
    model = OwnTargets(TextJepaConfig(text_config=dict(STATIC), **fields)).eval()
    assert (model(**batch()).text_targets.documents == 0).all()


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (TextJepaForPreTraining, {"token_loss_weight": 0.1}),
        (TextJepaForPreTraining, {"variance_loss_weight": 0.1, "regularizer_level": "token"}),
        (NormLoss, {}),
        (OwnPooling, {}),
    ],
    ids=["token", "regularizer", "own loss", "own pooling"],
)
def test_terms_that_read_tokens_get_the_state_of_each(model_class, fields):
    fields = OBJECTIVES["documents"] | {"document_target_size": 24} | fields
    model = model_class(TextJepaConfig(text_config=dict(STATIC), **fields)).eval()
    inputs = batch()
    inputs["target_positions"] = inputs["context_positions"][..., :2]
    inputs["target_spans"] = torch.zeros_like(inputs["target_positions"])
    outputs = model(**inputs)
    states = model.model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    torch.testing.assert_close(outputs.last_hidden_state, states)
    assert outputs.loss.isfinite()


def with_positions(model):
    torch.nn.init.normal_(model.model.encoder.embeddings.position_embeddings.weight)


def with_dropout(model):
    model.model.encoder.embeddings.dropout.p = 0.1


def with_noise(model):
    model.model.encoder.get_input_embeddings().neftune_noise_alpha = 5.0  # as transformers' `activate_neftune` does


@pytest.mark.parametrize("change", [with_positions, with_dropout, with_noise])
def test_words_in_places_or_under_dropout_are_encoded_each(change):
    model = build()
    assert sees_words_alone(model.model.encoder)
    assert not sees_words_alone(build(LAYERED).model.encoder)
    change(model)
    assert not sees_words_alone(model.model.encoder)
    assert build().eval()(**batch()).last_hidden_state is None
    inputs = batch()
    states = model.eval().model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    torch.testing.assert_close(model(**inputs).last_hidden_state, states)
