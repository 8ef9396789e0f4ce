"""The method itself: predictor, leaks, losses, target encoder. What depends on the architecture: test_backbones.py."""

import copy
import itertools
from os import listdir

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForPreTraining, BertConfig, BertModel, TrainerControl, TrainerState
from transformers.trainer_pt_utils import nested_detach
from transformers.utils.hub import PushToHubMixin

from configuration_text_jepa import OBJECTIVES
from modeling_text_jepa import (
    TextTargets,
    average_layers,
    encode_visible,
    gather_positions,
    latent_distance,
    mean_pool,
    packed_attention_mask,
    rotary_tables,
    rotate,
    sample_candidates,
)
from text_jepa import (
    EmaTargetEncoderCallback,
    TextJepaConfig,
    TextJepaForPreTraining,
    TextJepaForSequenceClassification,
    TextJepaModel,
)


LOSS_TYPES = ["smooth_l1", "mse", "l1", "cosine"]
POSITION_TYPES = ["rotary", "learned"]
MASKS = ("context_positions", "target_positions", "target_spans")
PREDICTORS = {
    "transformer": {},
    "conv": {"predictor_type": "conv", "pred_conv_groups": 4},
    "mlp": {"predictor_type": "mlp"},
}
CONTEXTS = {
    "drop": {},
    "attention_mask": {"context_mode": "attention_mask"},
    "mask_token": {"context_mode": "mask_token", "mask_token_id": 4},
}

BERT = {
    "model_type": "bert",
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}

every_context = pytest.mark.parametrize("context", CONTEXTS)
every_predictor = pytest.mark.parametrize("predictor", PREDICTORS)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def used(batch):
    return batch["target_positions"] >= 0


def inputs_of(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def batch(make_batch):
    return make_batch()


@pytest.fixture
def model(make_model):
    return make_model()


# arithmetic


def test_mean_pool_is_the_mean_of_the_visible_tokens():
    states, lengths = torch.randn(3, 5, 4), [5, 2, 1]
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    expected = torch.stack([row[:length].mean(0) for row, length in zip(states, lengths, strict=True)])
    close(mean_pool(states, mask), expected, 1e-6)
    close(mean_pool(states), states.mean(1), 1e-6)
    assert torch.equal(mean_pool(states, torch.zeros(3, 5)), torch.zeros(3, 4))


def test_gather_positions_reads_each_text_at_its_own_positions():
    values, positions = torch.randn(2, 4, 3), torch.tensor([[[3, 0], [1, -1]], [[2, 2], [-1, -1]]])
    gathered = gather_positions(values, positions)
    for index in itertools.product(range(2), range(2), range(2)):
        close(gathered[index], values[index[0], max(int(positions[index]), 0)], 0)


@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_latent_distance_is_the_plain_formula(loss_type, beta):
    predictions, targets = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    difference = (predictions - targets).abs()
    norms = predictions.square().sum(-1).sqrt() * targets.square().sum(-1).sqrt()
    expected = {
        "smooth_l1": torch.where(difference < beta, difference**2 / (2 * beta), difference - beta / 2).sum(-1) / 7,
        "mse": (difference**2).sum(-1) / 7,
        "l1": difference.sum(-1) / 7,
        "cosine": 1 - (predictions * targets).sum(-1) / norms,
    }[loss_type]
    close(latent_distance(predictions, targets, loss_type, beta), expected, 1e-6)


def plain_average(layers, lengths, how):
    """One text and one number at a time."""
    rows = []
    for row, length in enumerate(lengths):
        total = 0
        for layer in layers:
            states = layer[row, :length].double()
            if how == "layer":
                states = (states - states.mean(1, keepdim=True)) / (states.var(1, False, keepdim=True) + 1e-5).sqrt()
            if how == "instance":
                states = (states - states.mean(0)) / (states.var(0, False) + 1e-5).sqrt()
            total = total + states / len(layers)
        rows.append((total - total.mean(1, keepdim=True)) / (total.var(1, False, keepdim=True) + 1e-5).sqrt())
    return rows


@pytest.mark.parametrize("how", ["none", "layer", "instance"])
def test_targets_are_the_plain_formula_and_know_nothing_of_padding(how):
    lengths = [6, 3]
    layers = [3 * torch.randn(2, 9, 8) + torch.randn(8) for _ in range(3)]
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    averages = average_layers([layer.to(torch.float64) for layer in layers], mask, how)
    assert averages.dtype == torch.float32
    for average, expected, length in zip(averages, plain_average(layers, lengths, how), lengths, strict=True):
        close(average[:length].double(), expected)
    elsewhere = [layer + 100 * torch.randn_like(layer) * (1 - mask.unsqueeze(-1)) for layer in layers]
    for average, other, length in zip(averages, average_layers(elsewhere, mask, how), lengths, strict=True):
        close(average[:length], other[:length])


def test_targets_come_from_the_last_layers_of_the_target_encoder_on_the_whole_text(make_model, batch):
    model = make_model(target_num_layers=1, target_normalization="instance")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    last = model.target_encoder(**inputs).last_hidden_state
    expected = average_layers([last], batch["attention_mask"], "instance")
    encoded = model.encode_targets(**inputs, output_hidden_states=True)
    close(model.token_targets(encoded.hidden_states, batch["attention_mask"]), expected, 1e-6)
    close(model(**batch).targets, gather_positions(expected, batch["target_positions"]), 1e-6)


@pytest.mark.parametrize("count", [12, 40])
def test_candidates_hold_every_label_once_and_labels_map_back(count):
    labels = torch.randint(0, 40, (3, 4))
    labels[0, :3] = labels[2, 1] = -100
    candidates, new = sample_candidates(labels, 40, count)
    assert candidates.shape == (count,)
    assert len(set(candidates.tolist())) == count
    assert candidates.min() >= 0
    assert candidates.max() < 40
    assert torch.equal(new >= 0, labels >= 0)
    assert torch.equal(candidates[new[new >= 0]], labels[labels >= 0])
    assert set(new[new < 0].tolist()) == {-100}


def test_candidates_beyond_the_labels_are_random():
    labels = torch.tensor([3, 5])
    draws = [frozenset(sample_candidates(labels, 1000, 10)[0].tolist()) for _ in range(5)]
    assert len(set(draws)) == 5
    assert all({3, 5} <= draw for draw in draws)


def test_labels_that_find_no_candidate_are_not_predicted():
    labels = torch.arange(30).repeat(2)
    candidates, new = sample_candidates(labels, 100, 10)
    kept = new >= 0
    assert set(candidates.tolist()) <= set(range(30))
    assert set(labels[kept].tolist()) == set(candidates.tolist())
    assert torch.equal(candidates[new[kept]], labels[kept])


def test_the_most_frequent_tokens_of_a_batch_are_candidates_and_chance_decides_among_equals():
    labels = torch.cat([torch.arange(40, 45).repeat(3), torch.arange(5, 35)])
    draws = [frozenset(sample_candidates(labels, 100, 10)[0].tolist()) for _ in range(5)]
    assert all(draw >= set(range(40, 45)) and draw <= set(range(5, 45)) for draw in draws)
    assert len(set(draws)) == 5


def test_rotary_angles_depend_on_the_distance_only():
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(first, second):
        return (
            rotate(query, *rotary_tables(torch.tensor([[first]]), 8, 100.0))
            * rotate(key, *rotary_tables(torch.tensor([[second]]), 8, 100.0))
        ).sum()

    close(product(3, 7), product(13, 17))
    assert abs(product(3, 7) - product(3, 8)) > 1e-3


def test_packed_mask_shows_the_context_and_the_own_span():
    mask = packed_attention_mask(torch.tensor([[0, 4, -1]]), torch.tensor([[0, 0, 1, -1]]))
    expected = """
        11.|....
        11.|....
        111|....
        ---+----
        11.|11..
        11.|11..
        11.|..1.
        11.|...1
    """
    rows = [line.strip().replace("|", "") for line in expected.strip().splitlines() if "-" not in line]
    assert ["".join(".1"[value] for value in row) for row in mask[0, 0].long()] == rows


# the predictor: queries, spans, masks


@pytest.mark.parametrize(
    ("implementation", "positions", "context"),
    [
        ("sdpa", "rotary", "drop"),
        ("sdpa", "learned", "mask_token"),
        ("eager", "rotary", "attention_mask"),
        ("eager", "learned", "drop"),
    ],
)
def test_a_packed_pass_equals_one_pass_per_span(make_model, batch, context, positions, implementation):
    model = make_model(**CONTEXTS[context], pred_position_embedding_type=positions)
    model.set_attn_implementation(implementation)
    packed = model(**batch).predictions
    spans = batch["target_spans"]
    for span in range(int(spans.max()) + 1):
        only = spans == span
        alone = batch | {
            "target_positions": batch["target_positions"].where(only, -1),
            "target_spans": spans.where(only, -1),
        }
        close(model(**alone).predictions[only], packed[only])


@every_context
def test_moving_the_other_spans_leaves_a_span_alone(make_model, batch, context):
    model = make_model(**CONTEXTS[context])
    first = batch["target_spans"] == 0
    others = used(batch) & ~first
    positions = batch["target_positions"]
    moved = batch | {"target_positions": torch.where(others, (positions + 7) % 24, positions)}
    before, after = model(**batch).predictions, model(**moved).predictions
    close(after[first], before[first])
    assert (after[others] - before[others]).abs().amax(-1).min() > 1e-3


def test_no_gradient_of_a_prediction_reaches_the_queries_of_other_spans(model, batch):
    context, target, spans = (batch[name].flatten(0, 1) for name in MASKS)
    query_states = torch.randn(*target.shape, 32, requires_grad=True)
    features = model.predictor(torch.randn(*context.shape, 32), context, target, spans, query_states=query_states)
    for span in range(int(spans.max()) + 1):
        (gradient,) = torch.autograd.grad(features[spans == span][:, 0].sum(), query_states, retain_graph=True)
        assert (gradient[spans == span].abs().amax(-1) > 0).all()
        assert (gradient[spans != span] == 0).all()


@every_predictor
@every_context
def test_no_prediction_knows_a_hidden_token(make_model, batch, predictor, context):
    """Whatever stands at all the hidden positions of a mask, its predictions stay; the visible tokens decide them."""
    model = make_model(**PREDICTORS[predictor], **CONTEXTS[context])
    batch = batch | {name: batch[name][:, :1] for name in MASKS}
    ids, seen = batch["input_ids"], used(batch)
    before = model(**batch)
    others = 5 + (ids + 40) % 195
    changes = {}
    for name in ("target_positions", "context_positions"):
        chosen = torch.zeros(3, 25, dtype=torch.bool).scatter(1, batch[name][:, 0] + 1, True)[:, 1:]
        after = model(**batch | {"input_ids": torch.where(chosen, others, ids)})
        changes[name] = (after.predictions - before.predictions)[seen].abs().amax(-1)
    assert changes["target_positions"].max() < 1e-6
    assert changes["context_positions"].min() > 1e-3


@every_predictor
@every_context
def test_a_token_neither_visible_nor_asked_for_is_not_seen(make_model, batch, predictor, context):
    """Masks may leave tokens out: the rest around a context block, or what is cut to make all masks equally long."""
    model = make_model(**PREDICTORS[predictor], **CONTEXTS[context])
    positions = batch["context_positions"][:, :1]
    batch = batch | {name: batch[name][:, :1] for name in MASKS}
    left_out = positions[:, :, 3].clone()
    positions[:, :, 3] = -1
    before = model(**batch).predictions
    ids = batch["input_ids"].scatter(1, left_out, 7)
    assert not torch.equal(ids, batch["input_ids"])
    close(model(**batch | {"input_ids": ids}).predictions[used(batch)], before[used(batch)], 1e-6)


def test_queries_of_one_span_see_each_other(model, batch):
    """Otherwise the test above would hold for a predictor that isolates every query."""
    spans = batch["target_spans"]
    mates = ((spans.unsqueeze(-1) == spans.unsqueeze(-2)).sum(-1) > 1) & used(batch)
    apart = batch | {"target_spans": torch.arange(spans.shape[-1]).where(used(batch), -1)}
    difference = (model(**batch).predictions - model(**apart).predictions).abs().amax(-1)
    assert mates.sum() > 10
    assert difference[mates].min() > 1e-3


@every_predictor
@every_context
def test_many_masks_in_one_pass_equal_a_pass_for_each(make_model, make_batch, predictor, context):
    model = make_model(**PREDICTORS[predictor], **CONTEXTS[context])
    batch = make_batch(masks=3)
    together = model(**batch).predictions
    for mask in range(3):
        alone = model(**batch | {name: batch[name][:, mask : mask + 1] for name in MASKS}).predictions
        seen = used(batch)[:, mask]
        close(together[:, mask][seen], alone[:, 0][seen])


@pytest.mark.parametrize(
    "fields", [*PREDICTORS.values(), {"pred_position_embedding_type": "learned"}], ids=[*PREDICTORS, "learned"]
)
@every_context
def test_permuting_target_positions_permutes_predictions(make_model, batch, fields, context):
    model = make_model(**fields, **CONTEXTS[context])
    order = torch.randperm(batch["target_positions"].shape[-1], generator=torch.Generator().manual_seed(3))
    permuted = batch | {name: batch[name][..., order] for name in ("target_positions", "target_spans")}
    before = model(**batch).predictions.masked_fill(~used(batch).unsqueeze(-1), 0)
    after = model(**permuted).predictions.masked_fill(~used(permuted).unsqueeze(-1), 0)
    close(after, before[:, :, order])
    assert (before[:, :, order] - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    "fields", [*PREDICTORS.values(), {"pred_position_embedding_type": "learned"}], ids=[*PREDICTORS, "learned"]
)
def test_two_slots_of_a_span_differ(make_model, batch, fields):
    predictions = make_model(**fields)(**batch).predictions
    spans = batch["target_spans"]
    neighbours = (spans[..., 1:] == spans[..., :-1]) & (spans[..., 1:] >= 0)
    difference = (predictions[:, :, 1:] - predictions[:, :, :-1]).abs().amax(-1)
    assert neighbours.sum() > 5
    assert difference[neighbours].min() > 1e-3


def test_the_rotary_predictor_knows_distances_and_a_learned_one_places(make_model, batch):
    context, target, spans = (batch[name].flatten(0, 1) for name in MASKS)
    states = torch.randn(*context.shape, 32)
    seen = target >= 0

    def shift(positions, by):
        return torch.where(positions >= 0, positions + by, positions)

    changes = {}
    for positions in POSITION_TYPES:
        predictor = make_model(pred_position_embedding_type=positions).predictor
        before = predictor(states, context, target, spans)
        for which, moved in {
            "both": (shift(context, 5), shift(target, 5)),
            "context": (shift(context, 5), target),
        }.items():
            change = (predictor(states, *moved, spans) - before)[seen].abs().amax(-1)
            changes[positions, which] = change.max().item() if which == "both" else change.min().item()
    assert changes.pop(("rotary", "both")) < 1e-5
    assert min(changes.values()) > 1e-3


@every_predictor
@every_context
def test_unused_slots_change_nothing(make_model, batch, predictor, context):
    model = make_model(**PREDICTORS[predictor], **CONTEXTS[context])
    wider = batch | {name: F.pad(batch[name], (0, 3), value=-1) for name in MASKS}
    before, after = model(**batch), model(**wider)
    close(after.loss, before.loss)
    close(after.predictions[:, :, :-3][used(batch)], before.predictions[used(batch)])


def test_the_predictor_is_the_same_in_training_and_evaluation(make_model, batch):
    """Without dropout in the encoder, so is the whole forward but for the candidates."""
    model = make_model(token_loss_candidates=10_000)
    evaluated, trained = model.eval()(**batch), model.train()(**batch)
    assert torch.equal(trained.predictions, evaluated.predictions)
    assert torch.equal(trained.loss, evaluated.loss)


# target encoder and targets


def test_the_target_encoder_decides_the_loss_and_takes_no_gradient(model, batch):
    model.train()
    before = model(**batch)
    assert not before.targets.requires_grad
    before.loss.backward()
    assert not [name for name in gradients(model) if name.startswith("target_encoder")]
    assert [name for name in gradients(model) if name.startswith("model.encoder")]
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = model(**batch)
    assert torch.equal(after.predictions, before.predictions)
    assert abs(after.latent_loss - before.latent_loss) > 1e-3
    assert (after.targets - before.targets)[used(batch)].abs().max() > 1e-1


def test_gradients_are_those_of_constant_targets(model, batch):
    """The targets of a fresh model come from equal weights: even so nothing flows through them."""
    output = model(**batch)
    output.latent_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    targets = output.targets.clone()
    distance = latent_distance(model(**batch).predictions, targets, "smooth_l1", 1.0)[used(batch)].mean()
    distance.backward()
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        close(gradient, expected[name], 1e-6)


def drift(model):
    """Moves the context encoder away, as optimizer steps would."""
    with torch.no_grad():
        for parameter in model.model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("decay", [0.9, 0.0, 1.0])
def test_the_update_is_the_closed_form_after_n_steps(model, decay):
    drift(model)
    start = copy.deepcopy(model.target_encoder.state_dict())
    steps = 3
    for _ in range(steps):
        model.update_target_encoder(decay)
    share = decay**steps
    for name, source in model.model.encoder.state_dict().items():
        target = model.target_encoder.state_dict()[name]
        close(target, share * start[name] + (1 - share) * source, 1e-6 if 0 < decay < 1 else 0)
    assert not any(p.requires_grad or p.grad is not None for p in model.target_encoder.parameters())


def test_the_update_copies_buffers(model):
    for encoder, value in ((model.model.encoder, 7), (model.target_encoder, 0)):
        encoder.register_buffer("statistic", torch.tensor([value]))
    model.update_target_encoder(0.999)
    assert model.target_encoder.statistic.item() == 7


def test_the_update_reads_what_was_put_in_since_the_last_one(model):
    """Layers, parameters and buffers that took the places of others."""
    model.update_target_encoder(0.5)
    encoder = model.model.encoder
    encoder.layers[0].mlp.Wi = copy.deepcopy(encoder.layers[1].mlp.Wi)
    norm = encoder.layers[1].mlp_norm
    norm.weight = torch.nn.Parameter(torch.full_like(norm.weight, 3))
    for each in (encoder, model.target_encoder):
        each.register_buffer("statistic", torch.zeros(1))
    encoder.statistic = torch.ones(1)
    model.update_target_encoder(0.0)
    for name, target in model.target_encoder.state_dict().items():
        close(target, encoder.state_dict()[name], 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_encoder_type": "frozen"},
        {"target_encoder_type": "online", "sigreg_loss_weight": 1.0},
        {"latent_loss_weight": 0.0},
    ],
    ids=["frozen", "online", "none"],
)
def test_what_is_no_moving_average_is_not_moved(make_model, fields):
    model = make_model(**fields)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no moving average to update"):
        model.update_target_encoder(0.5)
    callback = EmaTargetEncoderCallback()
    callback.on_optimizer_step(None, TrainerState(max_steps=10), TrainerControl(), model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_float32_average_of_a_bfloat16_encoder_moves(model):
    model.model.to(torch.bfloat16)
    drift(model)
    before = copy.deepcopy(model.target_encoder.state_dict())
    model.update_target_encoder(0.999)
    for name, source in model.model.encoder.state_dict().items():
        target = model.target_encoder.state_dict()[name]
        assert target.dtype == torch.float32
        close(target, 0.999 * before[name] + 0.001 * source.float(), 1e-6)
        assert not torch.equal(target, before[name])


def test_a_model_that_is_cast_keeps_its_targets_in_float32(make_model, batch):
    model = make_model(target_normalization="running")
    before = copy.deepcopy(model.state_dict())
    model.to(torch.bfloat16)
    for name, tensor in model.state_dict().items():
        is_kept = name.startswith(("target_encoder", "running"))
        assert torch.equal(tensor, before[name] if is_kept else before[name].bfloat16()), name
    assert model.train()(**batch).loss.isfinite()
    model.update_target_encoder(0.999)


def test_an_average_in_half_precision_which_would_not_move_is_refused(model):
    model.target_encoder.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"is in torch.bfloat16, .* call model.target_encoder.float\(\)"):
        model.update_target_encoder(0.999)
    model.target_encoder.float()
    model.update_target_encoder(0.999)


def test_a_model_built_in_bfloat16_has_its_targets_in_float32(make_model, batch):
    """Also after `from_pretrained`, see test_objectives.py."""
    model = AutoModelForPreTraining.from_config(make_model(pooling="idf").config, dtype=torch.bfloat16)
    kept = ("target_encoder", "pooler")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (torch.float32 if name.startswith(kept) else torch.bfloat16), name
    assert model(**batch).loss.isfinite()


def test_the_configuration_of_a_bfloat16_encoder_builds_a_model_of_one_precision(tmp_path, batch):
    BertModel(BertConfig(**BERT)).to(torch.bfloat16).save_pretrained(tmp_path)
    model = TextJepaForPreTraining(TextJepaConfig(text_config=AutoConfig.from_pretrained(tmp_path)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(**batch).loss.isfinite()


def test_targets_of_pooled_texts_keep_no_states_but_the_last(make_model, batch):
    asked = []
    model = make_model(sentence_loss_weight=1.0, latent_loss_weight=0.0)
    hook = model.target_encoder.register_forward_hook(
        lambda module, args, kwargs, output: asked.append(output.hidden_states), with_kwargs=True
    )
    model(**batch)
    hook.remove()
    assert asked == [None]


# loading and saving


def test_new_rows_of_the_embeddings_are_the_same_in_both_encoders(model):
    for resized, mean in ((230, False), (240, True), (220, True)):
        model.resize_token_embeddings(resized, mean_resizing=mean)
        rows = model.target_encoder.get_input_embeddings().weight
        assert torch.equal(rows, model.get_input_embeddings().weight)
        assert not rows.requires_grad


@pytest.mark.parametrize("lost", ["a tensor", "all of it"])
def test_a_target_encoder_that_has_lost_a_tensor_is_noticed(model, tmp_path, lost, recwarn):
    drift(model)
    prefix = "target_encoder." if lost == "all of it" else "target_encoder.layers.0.attn.Wqkv"
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(prefix)}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = TextJepaForPreTraining.from_pretrained(tmp_path)
    warned = [str(warning.message) for warning in recwarn if "target encoder are missing" in str(warning.message)]
    if lost == "all of it":
        assert not warned
    else:
        (message,) = warned
        assert message.startswith("1 weights of the target encoder are missing")
        assert "such as target_encoder.layers.0.attn.Wqkv.weight" in message
    close(loaded.target_encoder.layers[0].attn.Wqkv.weight, model.model.encoder.layers[0].attn.Wqkv.weight, 0)


@pytest.mark.parametrize("model_class", [TextJepaModel, TextJepaForPreTraining, TextJepaForSequenceClassification])
def test_outputs_that_the_configuration_asks_for_are_given(model, batch, tmp_path, model_class):
    model.save_pretrained(tmp_path)
    inputs = batch if model_class is TextJepaForPreTraining else inputs_of(batch)
    asking = model_class.from_pretrained(tmp_path, output_hidden_states=True)
    assert len(asking(**inputs).hidden_states) == 3
    assert asking(**inputs, output_hidden_states=False).hidden_states is None
    assert model_class.from_pretrained(tmp_path)(**inputs).hidden_states is None
    watching = model_class.from_pretrained(tmp_path, attn_implementation="eager", output_attentions=True)
    assert len(watching(**inputs).attentions) == 2


def test_tuples_that_the_configuration_asks_for_are_those_of_the_outputs(make_model, batch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    inputs = inputs_of(batch)
    for model_class in (TextJepaModel, TextJepaForPreTraining, TextJepaForSequenceClassification):
        expected = model_class.from_pretrained(tmp_path).eval()
        found = model_class.from_pretrained(tmp_path, return_dict=False).eval()
        if model_class is TextJepaForSequenceClassification:
            found.load_state_dict(expected.state_dict())
        close(found(**inputs)[0], expected(**inputs)[0], 0)
        assert isinstance(found(**inputs), tuple)


def test_from_encoder_reports_what_it_has_loaded_when_asked(tmp_path):
    BertModel(BertConfig(**BERT), add_pooling_layer=False).save_pretrained(tmp_path)
    model, report = TextJepaForPreTraining.from_encoder(tmp_path, output_loading_info=True)
    assert not any(report.values())
    other = TextJepaForPreTraining.from_encoder(tmp_path)
    close(other.get_input_embeddings().weight, model.get_input_embeddings().weight, 0)


def test_an_encoder_opens_in_the_precision_of_its_files_and_trains_in_float32(tmp_path):
    for kind, config in (("plain", BertConfig(**BERT)), ("ours", TextJepaConfig(text_config=BERT))):
        encoder = BertModel(config) if kind == "plain" else TextJepaModel(config)
        encoder.to(torch.bfloat16).save_pretrained(tmp_path / kind)
        assert TextJepaModel.from_pretrained(tmp_path / kind).dtype == torch.bfloat16
        assert TextJepaForPreTraining.from_encoder(tmp_path / kind).dtype == torch.float32


@pytest.mark.parametrize("folder", ["plain", "ours"])
def test_positions_of_an_encoder_without_layers_do_not_train_wherever_it_is_from(tmp_path, folder):
    model = TextJepaModel(TextJepaConfig.preset("static", {"vocab_size": 200, "hidden_size": 96}))
    saved = model.encoder if folder == "plain" else model
    saved.save_pretrained(tmp_path)
    opened = TextJepaModel.from_pretrained(tmp_path)
    frozen = [name for name, parameter in opened.named_parameters() if not parameter.requires_grad]
    assert frozen == ["encoder.embeddings.position_embeddings.weight"]


def test_only_the_main_process_saves_the_code(model, tmp_path):
    model.save_pretrained(tmp_path / "main", True)
    model.save_pretrained(tmp_path / "other", False)
    assert {"config.json", "modeling_text_jepa.py"} <= {path.name for path in (tmp_path / "main").iterdir()}
    assert not list((tmp_path / "other").glob("*.py"))


def test_what_is_published_while_it_is_saved_has_the_code(model, tmp_path, monkeypatch):
    """Of a class that a script defines, transformers saves none."""
    model.__class__ = type("ModelOfScript", (TextJepaForPreTraining,), {"__module__": "__main__"})
    uploaded = []
    monkeypatch.setattr(
        PushToHubMixin,
        "_upload_modified_files",
        lambda self, folder, *args, **kwargs: uploaded.extend(listdir(folder)),
    )
    model._upload_modified_files(tmp_path, "name", {})
    assert {"configuration_text_jepa.py", "modeling_text_jepa.py"} <= set(uploaded)


# losses


def test_token_loss_in_evaluation_is_the_cross_entropy_over_the_vocabulary(make_model, batch):
    model = make_model(token_loss_candidates=20, token_loss_weight=0.3, latent_loss_weight=2.0)
    output = model(**batch)
    seen = used(batch)
    inputs = (batch["input_ids"], batch["attention_mask"], batch["context_positions"])
    context, _ = encode_visible(model.model.encoder, model.config, "drop", *inputs)
    features = model.predictor(context.last_hidden_state, *(batch[name].flatten(0, 1) for name in MASKS))
    logits = model.token_head(features) @ model.get_input_embeddings().weight.T
    labels = gather_positions(batch["input_ids"], batch["target_positions"])
    close(output.token_loss, F.cross_entropy(logits.view(*seen.shape, -1)[seen], labels[seen]))
    distance = latent_distance(output.predictions, output.targets, "smooth_l1", 1.0)
    close(output.latent_loss, distance[seen].mean())
    close(output.loss, 2.0 * output.latent_loss + 0.3 * output.token_loss, 1e-6)


def test_candidates_serve_training_only_and_lower_the_cross_entropy(make_model, batch):
    model = make_model(token_loss_candidates=120)
    full = model.eval()(**batch).token_loss
    sampled = [model.train()(**batch).token_loss for _ in range(3)]
    assert all(loss < full for loss in sampled)
    assert len({loss.item() for loss in sampled}) == 3


def test_the_token_loss_is_a_mean_over_the_tokens_that_are_candidates(make_model, batch):
    """More distinct tokens are hidden than there are candidates: the others are left out, and are no losses of 0."""
    few, all_words = (make_model(token_loss_candidates=count).train() for count in (4, None))
    torch.manual_seed(1)
    output = few(**batch)
    labels = gather_positions(batch["input_ids"], batch["target_positions"]).masked_fill(~used(batch), -100)
    torch.manual_seed(1)
    candidates, kept = sample_candidates(labels.flatten(0, 1), 200, 4)
    assert 0 < (kept >= 0).sum() < used(batch).sum() / 2
    outputs = []
    all_words.predictor.register_forward_hook(lambda module, inputs, features: outputs.append(features))
    all_words(**batch)
    logits = all_words.token_head(outputs[0]) @ all_words.get_input_embeddings().weight[candidates].T
    close(output.token_loss, F.cross_entropy(logits[kept >= 0], kept[kept >= 0]))


def test_more_candidates_than_words_are_the_whole_vocabulary(make_model, batch):
    model = make_model(token_loss_candidates=10_000)
    close(model.train()(**batch).token_loss, model.eval()(**batch).token_loss, 1e-6)


def test_a_pure_jepa_has_no_token_head(make_model, batch):
    model = make_model(token_loss_weight=0.0)
    output = model(**batch)
    assert model.token_head is None
    assert output.token_loss is None
    assert torch.equal(output.loss, output.latent_loss)


def test_micro_batches_with_the_joint_count_sum_to_the_joint_batch(make_model, make_batch):
    model = make_model(token_loss_candidates=10_000).train()
    batch = make_batch(lengths=(20, 5, 13, 24))
    count = used(batch).sum()
    joint = model(**batch)
    joint.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    losses = 0
    for rows in (slice(0, 1), slice(1, 4)):
        output = model(**{name: value[rows] for name, value in batch.items()}, num_items_in_batch=count)
        output.loss.backward()
        losses = losses + output.loss
    close(losses, joint.loss, 1e-6)
    for name, gradient in gradients(model).items():
        close(gradient, expected[name], 1e-6)


def test_micro_batches_of_texts_without_hidden_tokens_count_by_their_texts(make_model, make_batch):
    """In eval mode, as training moves the running mean with each of them."""
    fields = OBJECTIVES["documents"] | {"document_target_size": 24}
    model, batch = make_model(**fields), make_batch(lengths=(20, 5, 13, 24))
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    count = sum(model.num_items(part["target_positions"]) for part in parts)
    assert count == 4 * 2
    losses = [model(**part, num_items_in_batch=count).loss for part in parts]
    close(sum(losses), model(**batch).loss, 1e-6)
    assert make_model().num_items(batch["target_positions"]) == used(batch).sum()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_without_targets_costs_nothing_and_breaks_nothing(make_model, batch, loss_type):
    everything = torch.arange(24).where(batch["attention_mask"] == 1, -1).unsqueeze(1)
    nothing = torch.full((3, 1, 1), -1)
    model = make_model(loss_type=loss_type).train()
    loss = model(
        **batch | {"context_positions": everything, "target_positions": nothing, "target_spans": nothing}
    ).loss
    assert loss.item() == 0
    loss.backward()
    assert gradients(model)
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_a_text_without_targets_adds_nothing_to_the_others(model, make_batch):
    batch = make_batch(lengths=(20, 1, 13))
    assert not used(batch)[1].any()
    without = {name: value[[0, 2]] for name, value in batch.items()}
    close(model(**batch).loss, model(**without).loss)


def test_an_empty_text_keeps_everything_finite(model, make_batch):
    model.train()
    batch = make_batch(lengths=(20, 0, 13))
    output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("missing", MASKS)
def test_positions_and_spans_belong_together(model, batch, missing):
    with pytest.raises(ValueError, match="context_positions, target_positions and target_spans belong together"):
        model(**batch | {missing: None})


def test_without_positions_the_model_only_encodes(model, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = model(**inputs)
    assert set(output) == {"last_hidden_state"}
    close(output.last_hidden_state, model.model(**inputs).last_hidden_state, 0)


def test_without_an_attention_mask_every_token_counts(model, make_batch):
    batch = make_batch(lengths=(24, 24))
    close(model(**batch | {"attention_mask": None}).loss, model(**batch).loss, 0)


# classification


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_classifier_reads_the_stated_pooling_and_no_padding(make_model, batch, pooling):
    config = TextJepaConfig(text_config=make_model().config.text_config, classifier_pooling=pooling, num_labels=3)
    model = TextJepaForSequenceClassification(config).eval()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    states = model.model(ids, mask).last_hidden_state
    pooled = states[:, 0] if pooling == "cls" else mean_pool(states, mask)
    logits = model(ids, mask).logits
    close(logits, model.classifier(pooled), 1e-6)
    close(model(F.pad(ids, (0, 4), value=9), F.pad(mask, (0, 4))).logits, logits)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem"),
    [
        (3, torch.tensor([0, 2, 1]), "single_label_classification"),
        (1, torch.tensor([0.5, 2.0, 1.0]), "regression"),
        (2, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), "multi_label_classification"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_classifier_loss_follows_the_problem(make_model, batch, num_labels, labels, problem):
    config = TextJepaConfig(text_config=make_model().config.text_config, num_labels=num_labels)
    model = TextJepaForSequenceClassification(config).eval()
    output = model(batch["input_ids"], batch["attention_mask"], labels=labels)
    logits = output.logits
    expected = {
        "single_label_classification": lambda: F.cross_entropy(logits, labels),
        "regression": lambda: F.mse_loss(logits.squeeze(-1), labels),
        "multi_label_classification": lambda: F.binary_cross_entropy_with_logits(logits, labels),
    }[problem]()
    close(output.loss, expected, 1e-6)


# work of a step


STEPS = {
    "modernbert": {},
    "candidates": {"token_loss_candidates": 50},
    "bert": {"text_config": BERT},
    "data2vec": {**CONTEXTS["mask_token"], "predictor_type": "mlp", "token_loss_weight": 0.0},
    "running": {"target_normalization": "running"},
    "sentence": {"sentence_loss_weight": 1.0, "variance_loss_weight": 0.1, "sigreg_loss_weight": 0.1},
}

every_step = pytest.mark.parametrize("step", STEPS)

# Tracing takes seconds, so that what does not exclude each other is traced together.
GRAPHS = {
    "modernbert": {**STEPS["candidates"], **STEPS["running"], **STEPS["sentence"]},
    "bert": STEPS["bert"],
    "data2vec": STEPS["data2vec"],
}


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_loss_is_one_graph(make_model, batch, graph):
    """After a first pass, in which transformers installs hooks."""
    model = make_model(**GRAPHS[graph]).train()
    model(**batch)
    torch.compiler.reset()
    loss = torch.compile(lambda **inputs: model(**inputs).loss, fullgraph=True, backend="eager")(**batch)
    loss.backward()
    assert gradients(model)


class WaitsForTheDevice(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: a number read, or a shape that depends on values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        indices = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        by_mask = any(index is not None and index.dtype is torch.bool for index in indices)
        self.count += by_mask or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        return function(*args, **kwargs or {})


@every_step
def test_host_never_waits_in_a_step_beside_the_encoders_look_at_its_padding(make_model, batch, step):
    """And a loss that compares the hidden tokens alone is seen to wait: the test is not blind."""

    def waits(**fields):
        model = make_model(**fields).train()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        counts = []
        for work in (lambda: model.model(**inputs), lambda: model(**batch).loss.backward()):
            with WaitsForTheDevice() as mode:
                work()
            counts.append(mode.count)
        model.update_target_encoder(0.9)
        return counts

    encoder, step_ = waits(**STEPS[step])
    assert step_ == 2 * encoder
    encoder, step_ = waits(loss_type="infonce")
    assert step_ > 2 * encoder


@pytest.mark.parametrize("view", [False, True])
def test_masks_apart_with_the_targets_of_the_first_equal_all_masks(make_model, make_batch, view):
    """With running statistics too, which take a text in once; and the targets alone decide, not the encoder."""
    fields = {"sentence_loss_weight": 0.5, "target_normalization": "running", "token_loss_candidates": 10_000}
    joint, apart = (make_model(**fields).train() for _ in range(2))
    batch = make_batch(masks=4, ratio=0.4)
    if view:
        batch |= {"view_input_ids": batch["input_ids"][:, :7], "view_attention_mask": batch["attention_mask"][:, :7]}
    expected = joint(**batch)
    expected.loss.backward()
    passes, targets = [], None
    apart.target_encoder.register_forward_hook(lambda *_: passes.append(1))
    parts, count = [], used(batch).sum()
    for mask in range(4):
        part = {name: batch[name][:, mask : mask + 1] for name in MASKS}
        output = apart(**batch | part, text_targets=targets, num_items_in_batch=count)
        output.loss.backward()
        targets = output.text_targets
        parts.append(output)
    assert len(passes) == 1 + view
    for name in ("latent_loss", "token_loss"):
        close(sum(output[name] for output in parts), expected[name], 1e-6)
    for name, value in joint.running.state_dict().items():
        assert torch.equal(apart.running.state_dict()[name], value), name
    close(torch.cat([output.distances for output in parts], dim=1), expected.distances, 1e-5)
    other = apart(**batch, text_targets=TextTargets(tokens=2 * targets.tokens, sentences=-targets.sentences))
    assert (other.latent_loss - expected.latent_loss).abs() > 1e-2
    assert (other.sentence_loss - expected.sentence_loss).abs() > 1e-2


def test_an_evaluation_that_gathers_outputs_takes_those_of_the_model(make_model, batch):
    """The Trainer detaches what `compute_metrics` asks for, by types."""
    output = nested_detach(make_model().eval()(**batch))
    assert output.text_targets.tokens.shape[:2] == batch["input_ids"].shape


# ---- texts of nothing -----------------------------------------------------------------------------------------------


@every_predictor
@pytest.mark.parametrize("context", ["drop", "attention_mask"])
@pytest.mark.parametrize("usable", ["one text has none", "no text has any", "there is no slot"])
def test_a_text_without_a_usable_token_crashes_nothing_and_teaches_nothing(
    make_model, batch, predictor, context, usable
):
    rows = slice(0, 1) if usable == "one text has none" else slice(None)
    for name in MASKS:
        batch[name][rows] = -1
        if usable == "there is no slot":
            batch[name] = batch[name][..., :0]
    model = make_model(**PREDICTORS[predictor], **CONTEXTS[context]).train()
    output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    if usable != "one text has none":
        assert output.loss == 0


# ---- a target encoder that nobody moves -----------------------------------------------------------------------------


def steps(model, batch, count, after=lambda model: None):
    """A plain training loop, such as that of a plain `Trainer`."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), fused=True)
    model.train()
    for _ in range(count):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after(model)


@pytest.mark.parametrize("fields", [{}, {"context_mode": "attention_mask"}, {"token_loss_weight": 0.1}], ids=str)
def test_training_without_updates_of_the_target_encoder_says_so_once(make_model, batch, fields):
    with pytest.warns(UserWarning, match="target encoder has not moved.*EmaTargetEncoderCallback") as warned:
        steps(make_model(**fields), batch, 33)
    assert len(warned) == 1


@pytest.mark.parametrize("kind", ["ema", "a decay of 1", "frozen", "online", "accumulation", "evaluation"])
def test_nobody_is_warned_of_a_target_encoder_that_moves_or_should_not(make_model, batch, recwarn, kind):
    fields = {}
    if kind in ("frozen", "online"):
        fields = {"target_encoder_type": kind, "latent_loss_weight": 0.0}
    model = make_model(**fields)
    if kind == "accumulation":
        model.train()
        for _ in range(17):
            model(**batch).loss.backward()
    elif kind == "evaluation":
        for _ in range(17):
            model.eval()(**batch)
    else:
        decay = {"ema": 0.9, "a decay of 1": 1.0}.get(kind)
        steps(model, batch, 17, lambda model: decay and model.update_target_encoder(decay))
    assert not [str(warning.message) for warning in recwarn if "target encoder" in str(warning.message)]
