"""Every term, target and objective against a formula written by hand. Predictor and leaks: test_modeling.py."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_modeling import CONTEXTS, MASKS, PREDICTORS, close, gradients, used

from configuration_text_jepa import LOSS_TERMS, OBJECTIVES
from modeling_text_jepa import (
    RunningMoments,
    RunningWhitening,
    average_layers,
    covariance_loss,
    gather_positions,
    infonce_distance,
    latent_distance,
    moments,
    sigreg_loss,
    variance_loss,
    whitening,
)
from text_jepa import TextJepaForPreTraining, TextJepaModel
from text_jepa.share.export import export_encoder
from text_jepa.train.arguments import ModelArguments, ObjectiveArguments
from text_jepa.train.build import _load_model, objective_fields


SENTENCE = {"latent_loss_weight": 0.0, "token_loss_weight": 0.0, "sentence_loss_weight": 1.0}
VICREG = {
    "sentence_loss_type": "mse",
    "target_encoder_type": "online",
    "variance_loss_weight": 1.0,
    "covariance_loss_weight": 0.04,
}
# Whatever the model can be told to learn from, one of each kind.
SETTINGS = {name: fields | {"mask_token_id": 4} for name, fields in OBJECTIVES.items()} | {
    "infonce": {"loss_type": "infonce"},
    "instance": {"target_normalization": "instance"},
    "batch": {"target_normalization": "batch"},
    "running": {"target_normalization": "running"},
    "spans": {"target_input": "spans"},
    "pooled": {"pred_pooled_context": True, "pooling": "attention"},
    "sentence-cosine": {"sentence_loss_weight": 1.0, "sentence_loss_type": "cosine", "pooling": "attention"},
    "sentence-infonce": SENTENCE | {"sentence_loss_type": "infonce", "pooling": "cls", "sentence_hidden_size": 48},
    "default": {"sentence_loss_weight": 0.5},
    "vicreg": SENTENCE | VICREG,
    "lejepa": {"target_encoder_type": "online", "sigreg_loss_weight": 0.05, "token_loss_weight": 0.0},
    "tokens": {"sigreg_loss_weight": 1.0, "regularizer_level": "token"} | VICREG,
}

every_setting = pytest.mark.parametrize("setting", SETTINGS)
settings_and_predictors = pytest.mark.parametrize(
    ("setting", "predictor"),
    [(name, "transformer") for name in SETTINGS] + [("pooled", "conv"), ("jepa", "conv"), ("jepa", "mlp")],
)


@pytest.fixture
def batch(make_batch):
    return make_batch()


def inputs_of(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def all_visible(batch):
    """The same texts with nothing hidden, one mask each."""
    everything = torch.arange(batch["input_ids"].shape[1]).where(batch["attention_mask"] == 1, -1).unsqueeze(1)
    nothing = torch.full((len(everything), 1, 1), -1)
    return batch | {"context_positions": everything, "target_positions": nothing, "target_spans": nothing}


def drift(model):
    """Moves the target encoder away, so that nothing is equal by accident."""
    if model.target_encoder is not None:
        with torch.no_grad():
            for parameter in model.target_encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def after_steps(model, make_batch):
    """Lets running statistics take in three batches."""
    model.train()
    for seed in (7, 8, 9):
        model(**make_batch(seed=seed))
    return model.eval()


# ---- VICReg ---------------------------------------------------------------------------------------------------------


def plain_variance(z):
    return sum(max(0.0, 1 - math.sqrt(np.var(z[:, j], ddof=1) + 1e-4)) for j in range(z.shape[1])) / z.shape[1]


def plain_covariance(z):
    n, d = z.shape
    centred = z - z.mean(axis=0)
    matrix = sum(np.outer(row, row) for row in centred) / (n - 1)
    return sum(matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d


@pytest.mark.parametrize("scale", [0.1, 0.8, 3.0])
def test_variance_and_covariance_are_the_formulas_of_the_paper(scale):
    x = scale * torch.randn(9, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    assert variance_loss(x).item() == pytest.approx(plain_variance(x.numpy()), abs=1e-9)
    assert covariance_loss(x).item() == pytest.approx(plain_covariance(x.numpy()), rel=1e-9)


def test_a_collapse_costs_all_the_variance_and_copied_features_cost_covariance():
    assert variance_loss(torch.ones(8, 4)).item() == pytest.approx(1 - 0.01, abs=1e-6)
    assert variance_loss(2 * torch.randn(500, 4)).item() == 0
    feature = torch.randn(500, 1)
    assert covariance_loss(feature.expand(-1, 4)) > 20 * covariance_loss(torch.randn(500, 4))


def test_vicreg_is_symmetric_over_both_sides_of_the_expander(make_model, make_batch):
    model, batch = make_model(**SETTINGS["vicreg"]), make_batch(lengths=(21, 9, 14, 17, 12), masks=1)
    view = make_batch(lengths=(13, 20, 8, 11, 24), seed=3)
    views = {"view_input_ids": view["input_ids"], "view_attention_mask": view["attention_mask"]}
    output = model(**all_visible(batch), **views)
    sides = []
    for text in (batch, view):
        states, mask = model.model(**inputs_of(text)).last_hidden_state, text["attention_mask"].unsqueeze(-1)
        sides.append(model.sentence_head((states * mask).sum(1) / mask.sum(1)).detach().double().numpy())
    first, second = sides
    assert output.sentence_loss.item() == pytest.approx(((first - second) ** 2).mean(), rel=1e-5)
    # As the authors' code has it: the mean of both hinges, the sum of both covariances.
    variance = (plain_variance(first) + plain_variance(second)) / 2
    covariance = plain_covariance(first) + plain_covariance(second)
    assert output.variance_loss.item() == pytest.approx(variance, rel=1e-4, abs=1e-6)
    assert output.covariance_loss.item() == pytest.approx(covariance, rel=1e-4)
    expected = output.sentence_loss + output.variance_loss + 0.04 * output.covariance_loss
    close(output.loss, expected, 1e-6)


# ---- SIGReg ---------------------------------------------------------------------------------------------------------


def plain_epps_pulley(projected):
    """N ∫ |φ_N(t) - exp(-t²/2)|² exp(-t²/2) dt from -3 to 3, one knot and one sample at a time."""
    knots = np.linspace(-3, 3, 33)
    values = []
    for t in knots:
        empirical = sum(np.exp(1j * t * value) for value in projected) / len(projected)
        values.append(abs(empirical - np.exp(-t * t / 2)) ** 2 * np.exp(-t * t / 2))
    return len(projected) * sum((a + b) / 2 * (knots[1] - knots[0]) for a, b in itertools.pairwise(values))


def test_sigreg_is_the_epps_pulley_statistic_of_each_slice():
    x, directions = 1.5 * torch.randn(7, 4) + 0.3, F.normalize(torch.randn(4, 3), dim=0)
    expected = np.mean([plain_epps_pulley((x @ directions[:, k]).double().numpy()) for k in range(3)])
    assert sigreg_loss(x, directions).item() == pytest.approx(expected, rel=1e-4)


def test_sigreg_of_gaussian_samples_is_its_expectation_whatever_their_number():
    """The variance of an empirical characteristic function is (1 - φ²) / N."""
    t = np.linspace(-3, 3, 33)
    expected = np.trapezoid((1 - np.exp(-t * t)) * np.exp(-t * t / 2), t)
    for count in (20, 200):
        found = torch.stack([sigreg_loss(torch.randn(count, 64), torch.eye(64)) for _ in range(20)]).mean().item()
        assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros, lambda *size: 3.4 * torch.rand(size) - 1.7, lambda *size: torch.randn(size) + 0.5],
    ids=["collapsed", "uniform", "shifted"],
)
def test_sigreg_of_what_is_not_normal_is_larger_and_grows_with_the_number(wrong):
    few, many, normal = wrong(2000, 8), wrong(4000, 8), torch.randn(2000, 8)
    assert sigreg_loss(few, torch.eye(8)) > 1.5 * sigreg_loss(normal, torch.eye(8))
    assert 1.5 < sigreg_loss(many, torch.eye(8)) / sigreg_loss(few, torch.eye(8)) < 2.5


def test_sigreg_in_the_model_looks_along_unit_directions_drawn_anew(make_model, batch):
    model = make_model(**SETTINGS["lejepa"], sigreg_num_slices=5)
    torch.manual_seed(3)
    first = model(**batch).sigreg_loss
    torch.manual_seed(3)
    directions = torch.randn(32, 5)
    directions = directions / directions.square().sum(0).sqrt()
    visible = batch["context_positions"].flatten(0, 1) >= 0
    visible_ids = gather_positions(batch["input_ids"], batch["context_positions"]).flatten(0, 1)
    pooled = model.pool(model(**batch).last_hidden_state, visible, visible_ids).detach()
    expected = np.mean([plain_epps_pulley((pooled @ direction).double().numpy()) for direction in directions.T])
    assert first.item() == pytest.approx(expected, rel=1e-4)
    assert abs(model(**batch).sigreg_loss - first) > 1e-5


def test_regularizers_of_tokens_read_every_visible_state_and_nothing_else(make_model, batch):
    model = make_model(variance_loss_weight=1.0, covariance_loss_weight=1.0, regularizer_level="token")
    output = model(**batch)
    tokens = output.last_hidden_state[batch["context_positions"].flatten(0, 1) >= 0].detach().double().numpy()
    assert len(tokens) == (batch["context_positions"] >= 0).sum()
    assert output.variance_loss.item() == pytest.approx(plain_variance(tokens), rel=1e-4)
    assert output.covariance_loss.item() == pytest.approx(plain_covariance(tokens), rel=1e-4)


def test_one_vector_has_no_distribution(make_model, make_batch):
    model = make_model(variance_loss_weight=1.0, covariance_loss_weight=1.0, sigreg_loss_weight=1.0).train()
    output = model(**make_batch(lengths=(20,), masks=1))
    assert output.variance_loss.item() == output.covariance_loss.item() == output.sigreg_loss.item() == 0
    output.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# ---- InfoNCE --------------------------------------------------------------------------------------------------------


def plain_infonce(predictions, targets, ids, temperature):
    predictions, targets, losses = predictions.detach(), targets.detach(), []
    for i, prediction in enumerate(predictions):
        cosines = [float(prediction @ t / (prediction.norm() * t.norm())) for t in targets]
        negatives = [j for j in range(len(targets)) if ids[j] != ids[i]]
        total = sum(math.exp(cosines[j] / temperature) for j in [i, *negatives])
        losses.append(-math.log(math.exp(cosines[i] / temperature) / total))
    return losses


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 2, 2]], ids=["distinct", "duplicates"])
def test_infonce_is_the_plain_formula_without_duplicates_as_negatives(ids):
    predictions, targets = torch.randn(6, 4), torch.randn(6, 4)
    expected = torch.tensor(plain_infonce(predictions, targets, ids, 0.2))
    close(infonce_distance(predictions, targets, 0.2, target_ids=torch.tensor(ids)), expected)


def test_the_optimum_of_infonce_is_at_aligned_orthogonal_pairs():
    ids, pairs = torch.arange(6), torch.linalg.qr(torch.randn(6, 6))[0]
    best = infonce_distance(pairs, pairs, 0.1, target_ids=ids)
    close(best, torch.full((6,), math.log(1 + 5 * math.exp(-10))), 1e-6)
    assert (infonce_distance(pairs, pairs.roll(1, 0), 0.1, target_ids=ids) > 10).all()
    assert infonce_distance(torch.ones(6, 6), torch.ones(6, 6), 0.1, target_ids=ids)[0].item() == pytest.approx(
        math.log(6)
    )
    # The best of all is a simplex, a little more than orthogonal: there is no way down from it.
    simplex = (pairs - pairs.mean(0)).requires_grad_()
    lowest = infonce_distance(simplex, simplex, 0.1, target_ids=ids)
    close(lowest, torch.full((6,), math.log(1 + 5 * math.exp(-12))), 1e-6)
    (gradient,) = torch.autograd.grad(lowest.sum(), simplex)
    close(gradient, torch.zeros(6, 6), 1e-6)


def test_a_text_is_one_negative_however_many_masks_it_has(make_model, make_batch):
    fields = {"latent_loss_weight": 0, "sentence_loss_weight": 1, "sentence_loss_type": "infonce"}
    model, batch = make_model(**fields), make_batch(masks=1)
    drawn = ("context_positions", "target_positions", "target_spans")
    twice = batch | {name: batch[name].repeat(1, 3, 1) for name in drawn}
    one, three = (model.eval()(**inputs).sentence_loss for inputs in (batch, twice))
    close(three, one)
    assert one.item() > 1e-3


@pytest.mark.parametrize(
    "fields", [{"sentence_loss_type": "infonce"}, {"covariance_loss_weight": 1.0}, {"sigreg_loss_weight": 1.0}]
)
def test_contrast_and_regularizers_are_in_float32_under_autocast(make_model, fields):
    """Logits of cosines over a small temperature, and sums of squares of half precision, are no such."""
    model, own = make_model(sentence_loss_weight=1.0, infonce_temperature=0.05, **fields), torch.arange(16)
    vectors = F.normalize(torch.randn(2, 16, 32), dim=-1)
    values = [
        lambda: model._infonce(*vectors, own).sum(),
        lambda: sum(model._regularizers([vectors[0] * 60]).values(), torch.zeros(())),
    ]
    for value in values:
        torch.manual_seed(1)
        expected = value()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(value(), expected)


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention", "idf"])
def test_pooling_keeps_the_precision_of_the_states_under_autocast(make_model, pooling):
    model = make_model(sentence_loss_weight=1.0, pooling=pooling)
    states, ids, mask = torch.randn(3, 7, 32) + 10, torch.randint(5, 200, (3, 7)), torch.ones(3, 7)
    expected = model.pool(states, mask, ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.pool(states, mask, ids), expected)


def test_latent_infonce_contrasts_with_all_other_hidden_tokens_of_the_batch(make_model, batch):
    output = make_model(loss_type="infonce")(**batch)
    seen = used(batch)
    ids = [(text, int(batch["target_positions"][text, mask, k])) for text, mask, k in seen.nonzero().tolist()]
    assert len(set(ids)) < len(ids)
    expected = plain_infonce(output.predictions[seen], output.targets[seen], ids, 0.2)
    assert output.latent_loss.item() == pytest.approx(np.mean(expected), abs=1e-5)
    close(output.distances[seen], torch.tensor(expected), 1e-4)
    assert (output.distances[~seen] == 0).all()


# ---- targets --------------------------------------------------------------------------------------------------------


def test_moments_survive_an_outlier_dimension():
    values = torch.randn(4, 6, 3, dtype=torch.float64) * torch.tensor([1.0, 0.1, 5.0]) + torch.tensor([0.0, 1e3, -1e4])
    weights = (torch.arange(6) < torch.tensor([6, 2, 4, 3])[:, None]).double().unsqueeze(-1)
    present = values[weights[..., 0] == 1]
    mean, variance = moments(values.float(), weights.float(), (0, 1))
    np.testing.assert_allclose(mean.flatten(), present.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance.flatten(), present.var(0, correction=0), rtol=2e-2)


def test_running_moments_leave_out_what_is_not_finite():
    """It would stay: every later loss would be NaN, long after the step that was skipped."""
    running, weights = RunningMoments(3, 0.9).train(), torch.ones(4, 1)
    values = torch.randn(3, 4, 3)
    for one in values[:2]:
        running(one, weights)
    before = copy.deepcopy(running.state_dict())
    running(values[2].index_fill(0, torch.tensor([1]), math.inf), weights)
    assert all(torch.equal(value, before[name]) for name, value in running.state_dict().items())
    running(values[2], weights)
    assert running.updates == 3
    close(running.mean, values.mean((0, 1)))


def test_running_moments_leave_out_a_batch_of_nothing():
    """Such as one without hidden tokens, where these alone make targets: its mean is not 0."""
    running = RunningMoments(3, 0.9).train()
    running(torch.randn(4, 3) + 5, torch.ones(4, 1))
    before = copy.deepcopy(running.state_dict())
    running(torch.randn(4, 3), torch.zeros(4, 1))
    assert all(torch.equal(value, before[name]) for name, value in running.state_dict().items())


def standardised(values, mean, variance):
    return (values - mean) / np.sqrt(variance + 1e-5)


def test_batch_targets_are_normalised_over_all_tokens_of_the_batch(make_model, batch):
    model = drift(make_model(target_normalization="batch"))
    present = batch["attention_mask"].bool()
    layers = model.target_encoder(**inputs_of(batch), output_hidden_states=True).hidden_states[-2:]
    layers = [layer[present].detach().double().numpy() for layer in layers]
    total = sum(standardised(layer, layer.mean(0), layer.var(0)) for layer in layers) / 2
    expected = standardised(total, total.mean(1, keepdims=True), total.var(1, keepdims=True))
    encoded = model.encode_targets(**inputs_of(batch), output_hidden_states=True)
    targets = model.token_targets(encoded.hidden_states, batch["attention_mask"])
    np.testing.assert_allclose(targets[present].numpy(), expected, atol=2e-5)


def test_running_moments_are_cumulative_and_then_follow_the_momentum():
    running, weights = RunningMoments(3, momentum=0.75), torch.ones(8, 1)
    batches = [torch.randn(8, 3) * (1 + k) + k for k in range(7)]
    mean, variance = np.zeros(3), np.zeros(3)
    for k, values in enumerate(batches):
        step = max(1 / (k + 1), 0.25)
        mean = (1 - step) * mean + step * values.double().numpy().mean(0)
        variance = (1 - step) * variance + step * values.double().numpy().var(0)
        found = running.train()(values, weights)
        np.testing.assert_allclose(found[0], mean, atol=1e-5)
        np.testing.assert_allclose(found[1], variance, rtol=1e-5)
        if k == 2:
            np.testing.assert_allclose(mean, np.mean([b.numpy().mean(0) for b in batches[:3]], axis=0), atol=1e-5)
    before = {name: tensor.clone() for name, tensor in running.state_dict().items()}
    running.eval()(100 * torch.randn(8, 3), weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in running.state_dict().items())


def test_running_targets_use_the_statistics_so_far_and_only_training_updates_them(make_model, make_batch):
    model = drift(make_model(target_normalization="running", target_num_layers=2))
    first, second = make_batch(seed=1), make_batch(seed=2)
    present = second["attention_mask"].bool()
    model.train()(**first)
    after_one = model(**second).targets
    states = {name: tensor.clone() for name, tensor in model.running.state_dict().items()}
    found = []
    for batch in (first, second):
        layers = model.target_encoder(**inputs_of(batch), output_hidden_states=True).hidden_states[-2:]
        found.append([layer[batch["attention_mask"].bool()].detach().double().numpy() for layer in layers])
    total = 0
    for a, b in zip(*found, strict=True):
        total = total + standardised(b, (a.mean(0) + b.mean(0)) / 2, (a.var(0) + b.var(0)) / 2) / 2
    expected = torch.zeros(*present.shape, 32, dtype=torch.float64)
    total = standardised(total, total.mean(1, keepdims=True), total.var(1, keepdims=True))
    expected[present] = torch.from_numpy(total)
    seen = used(second)
    close(after_one[seen].double(), gather_positions(expected, second["target_positions"])[seen], 5e-5)
    close(model.eval()(**second).targets[seen], after_one[seen], 0)
    assert all(torch.equal(tensor, states[name]) for name, tensor in model.running.state_dict().items())


@pytest.mark.parametrize("kind", ["modernbert", "mpnet"])
def test_targets_of_spans_see_the_hidden_tokens_alone_at_their_places(make_model, batch, kind):
    text_config = None
    if kind == "mpnet":  # cannot drop
        text_config = {"model_type": "mpnet", "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2}
        text_config |= {"num_attention_heads": 2, "intermediate_size": 48, "initializer_range": 0.2}
    model = drift(make_model(text_config, target_input="spans"))
    targets, seen = model(**batch).targets, used(batch)
    ids = batch["input_ids"]
    for text, mask in ((0, 0), (1, 1), (2, 0)):
        places = batch["target_positions"][text, mask][seen[text, mask]]
        alone = torch.zeros_like(ids[text]).scatter(0, places, 1).unsqueeze(0)
        states = model.target_encoder(ids[text : text + 1], alone, output_hidden_states=True).hidden_states[-2:]
        expected = average_layers(states, alone, "layer")[0, places]
        close(targets[text, mask][seen[text, mask]], expected)
    visible = torch.zeros(3, 25, dtype=torch.bool).scatter(1, batch["context_positions"][:, 0] + 1, True)[:, 1:]
    others = batch | {"input_ids": torch.where(visible, 5 + (ids + 40) % 195, ids)}
    close(model(**others).targets[:, 0][seen[:, 0]], targets[:, 0][seen[:, 0]])
    whole = make_model(text_config)
    assert (whole(**others).targets - whole(**batch).targets)[:, 0][seen[:, 0]].abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("setting", ["jepa", "sentence-cosine", "sentence-infonce", "running", "spans"])
def test_the_target_encoder_decides_the_loss_and_no_gradient_reaches_it(make_model, batch, setting):
    model = make_model(**SETTINGS[setting])
    output = model(**batch)
    output.loss.backward()
    assert {name.split(".")[0] for name in gradients(model)} & {"target_encoder"} == set()
    before = output.sentence_loss if output.latent_loss is None else output.latent_loss
    output = drift(model)(**batch)
    assert abs((output.sentence_loss if output.latent_loss is None else output.latent_loss) - before) > 1e-4


@pytest.mark.parametrize("setting", ["vicreg", "lejepa", "simcse"])
def test_online_targets_have_no_encoder_of_their_own_and_pass_gradients(make_model, batch, setting):
    model = make_model(**SETTINGS[setting])
    assert not [name for name in model.state_dict() if name.startswith("target_encoder")]
    assert model.encoder_of_targets is model.model.encoder
    states = []
    hook = model.model.encoder.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    output = model(**batch)
    hook.remove()
    loss = output.sentence_loss if output.latent_loss is None else output.latent_loss
    context, target = torch.autograd.grad(loss, states)
    assert context.abs().max() > 1e-6
    assert target.abs().max() > 1e-6


# ---- sentences ------------------------------------------------------------------------------------------------------


def views_of(make_batch):
    view = make_batch(lengths=(13, 20, 8), width=21, seed=3)
    return {"view_input_ids": view["input_ids"], "view_attention_mask": view["attention_mask"]}


def plain_pool(model, states):
    """States (n, D) of the tokens of one text."""
    if model.config.pooling == "cls":
        return states[0]
    if model.config.pooling == "mean":
        return states.mean(0)
    weights = (states @ model.pooler.query / math.sqrt(states.shape[1])).softmax(0)
    return sum(weight * state for weight, state in zip(weights, states, strict=True))


@pytest.mark.parametrize(
    ("loss_type", "pooling", "viewed"),
    [
        ("cosine", "mean", True),
        ("cosine", "attention", False),
        ("mse", "cls", True),
        ("l1", "attention", True),
        ("smooth_l1", "mean", False),
        ("infonce", "mean", True),
        ("infonce", "cls", False),
        ("infonce", "attention", True),
    ],
)
def test_the_pooled_context_predicts_the_pooled_text_or_its_view(make_model, make_batch, pooling, loss_type, viewed):
    model = drift(make_model(**SENTENCE, pooling=pooling, sentence_loss_type=loss_type, sentence_whitening=False))
    if model.pooler is not None:
        torch.nn.init.normal_(model.pooler.query)
    batch, views = make_batch(), views_of(make_batch)
    output = model(**batch, **views if viewed else {})
    target = views if viewed else {f"view_{name}": value for name, value in inputs_of(batch).items()}
    taught = model.target_encoder(target["view_input_ids"], target["view_attention_mask"]).last_hidden_state
    pooled = [
        plain_pool(model, states[mask])
        for states, mask in zip(taught, target["view_attention_mask"] == 1, strict=True)
    ]
    pooled = [F.layer_norm(vector, (32,)) for vector in pooled]
    predictions, targets = [], []
    for text in range(3):
        for mask in range(2):
            visible = batch["context_positions"][text, mask] >= 0
            states = output.last_hidden_state[2 * text + mask][visible]
            predictions.append(model.sentence_head(plain_pool(model, states)))
            targets.append(pooled[text])
    predictions, targets = torch.stack(predictions), torch.stack(targets).detach()
    if loss_type == "infonce":
        # Among the three texts, each of them once.
        of_masks = [plain_infonce(predictions[mask::2], targets[mask::2], [0, 1, 2], 0.2) for mask in range(2)]
        expected = torch.tensor(of_masks).mean()
    else:
        expected = latent_distance(predictions, targets, loss_type, 1.0).mean()
    close(output.sentence_loss, expected)
    if pooling == "attention" and loss_type != "infonce":  # the pooler is of the context's side only
        gradients_of_query = [torch.autograd.grad(loss, model.pooler.query)[0] for loss in (output.loss, expected)]
        close(*gradients_of_query)


def zca(covariance):
    """The inverse square root by eigenvectors, of variances larger by a tenth of their mean."""
    variance, directions = torch.linalg.eigh(covariance.double())
    return (directions / (variance + 0.1 * variance.mean()).sqrt() @ directions.T).float()


@pytest.mark.parametrize("width", [3, 64, 256])
def test_whitening_is_the_inverse_square_root(width):
    """Of variances that fall by the power law of real texts, and of one that there is nothing in."""
    directions = torch.linalg.qr(torch.randn(width, width))[0]
    covariance = directions * torch.arange(1.0, width + 1) ** -1.2 @ directions.T
    covariance *= width / covariance.trace()
    close(whitening(covariance), zca(covariance), 1e-3)
    assert whitening(torch.zeros(width, width)).isfinite().all()


@pytest.mark.parametrize("width", [768, 1536])
def test_whitening_is_exact_where_one_direction_has_nearly_all_of_the_variance(width):
    covariance = torch.eye(width)
    covariance[0, 0] = 1e6
    close(whitening(covariance).diagonal(), zca(covariance).diagonal(), 1e-4)


def test_whitened_vectors_are_hardly_correlated():
    running, vectors = RunningWhitening(3, 0.9).train(), torch.randn(5000, 3)
    mixed = vectors @ torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]]) + 3
    before, after = (torch.corrcoef(x.T)[0, 1] for x in (mixed, running(mixed)))
    assert before > 0.65
    assert after < 0.25
    close(running.eval()(mixed).mean(0), torch.zeros(3))
    before = copy.deepcopy(running.state_dict())
    running.train()(mixed.index_fill(0, torch.tensor([7]), math.nan))
    assert all(torch.equal(value, before[name]) for name, value in running.state_dict().items())


@pytest.mark.parametrize("whitened", [True, False])
def test_pooled_targets_are_centred_by_their_running_mean_and_whitened(make_model, make_batch, whitened):
    fields = {"sentence_loss_type": "mse", "target_momentum": 0.0, "sentence_whitening": whitened}
    model = drift(make_model(**SENTENCE, **fields))
    first, batch = make_batch(seed=1), make_batch(seed=2)

    def pooled(inputs):
        mask = inputs["attention_mask"].unsqueeze(-1)
        return (model.target_encoder(**inputs_of(inputs)).last_hidden_state * mask).sum(1) / mask.sum(1)

    model.train()(**first)
    output = model.eval()(**batch)
    targets = pooled(batch) - pooled(first).mean(0)
    targets = targets @ zca(torch.cov(pooled(first).T, correction=0)) if whitened else targets
    targets = F.layer_norm(targets, (32,)).repeat_interleave(2, dim=0)
    states, visible = output.last_hidden_state, batch["context_positions"].flatten(0, 1) >= 0
    context = torch.stack([rows[mask].mean(0) for rows, mask in zip(states, visible, strict=True)])
    close(output.sentence_loss, F.mse_loss(model.sentence_head(context), targets))


@pytest.mark.parametrize("setting", ["vicreg", "sentence-cosine", "running"])
def test_what_only_training_needs_is_in_checkpoints_and_stays_out_of_encoders(
    make_model, make_batch, tokenizer, tmp_path, setting
):
    model = after_steps(make_model(**SETTINGS[setting]), make_batch)
    extra = {name.split(".")[0] for name in model.state_dict()} - {"model", "target_encoder"}
    assert extra >= {"vicreg": {"sentence_head"}, "running": {"running"}}.get(setting, {"sentence_head", "pooler"})
    model.save_pretrained(tmp_path / "pretraining")
    encoder, report = TextJepaModel.from_pretrained(tmp_path / "pretraining", output_loading_info=True)
    assert not any(report.values())
    export_encoder(model, tokenizer, tmp_path / "export", max_length=64)
    stock, report = type(model.encoder_of_targets).from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(report.values())
    for found, expected in ((encoder.encoder, model.model.encoder), (stock, model.encoder_of_targets)):
        assert found.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())


# ---- objectives -----------------------------------------------------------------------------------------------------


def features_behind_mask_tokens(model, batch):
    """What a perceptron makes of the stock encoder's states at the hidden positions of texts with mask tokens."""
    ids = batch["input_ids"].repeat_interleave(2, dim=0)
    attention_mask = batch["attention_mask"].repeat_interleave(2, dim=0)
    positions = batch["target_positions"].flatten(0, 1)
    rows, slots = (positions >= 0).nonzero(as_tuple=True)
    places = positions[rows, slots]
    ids[rows, places] = 4
    states = model.model.encoder(input_ids=ids, attention_mask=attention_mask).last_hidden_state[rows, places]
    predictor = model.predictor
    queries = predictor.context_projection(states) + predictor.mask_tokens[0] + predictor.position_embeddings(places)
    for activation, linear in predictor.layers:
        queries = linear(activation(queries))
    return predictor.norm(queries), batch["input_ids"].repeat_interleave(2, dim=0)[rows, places]


def test_mlm_is_the_cross_entropy_of_masked_language_models(make_model, batch):
    model = make_model(**SETTINGS["mlm"])
    assert model.target_encoder is model.latent_head is None
    features, labels = features_behind_mask_tokens(model, batch)
    logits = model.token_head(features) @ model.get_input_embeddings().weight.T
    output = model(**batch)
    close(output.loss, F.cross_entropy(logits, labels))
    assert output.predictions is None


@pytest.mark.parametrize("before", ["mlm", "jepa", "vicreg", "similarity"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_goes_on_with_another_objective(before, name, make_model, tmp_path):
    """The encoder is the saved one; a predictor of another size is new, and no term of the old objective is left."""
    settings = SETTINGS | {"similarity": SETTINGS["documents"] | {"similarity_loss_weight": 1.0}}
    saved = drift(make_model(**settings[before]))
    saved.save_pretrained(tmp_path)
    model_args = ModelArguments(model_name_or_path=str(tmp_path), objective=name)
    fields = objective_fields(model_args, ObjectiveArguments(), continues=True)
    model = _load_model(model_args, fields | {"mask_token_id": 4}, continues=True)
    for key, weight in model.model.state_dict().items():
        assert torch.equal(weight, saved.model.state_dict()[key])
    fresh = make_model(**SETTINGS[name], initializer_range=0.2)
    weights = {f"{term}_loss_weight" for term in LOSS_TERMS} - {"sentence_loss_weight"}
    assert {weight: getattr(model.config, weight) for weight in weights} == {
        weight: getattr(fresh.config, weight) for weight in weights
    }
    assert model.predictor is None or all(weight.isfinite().all() for weight in model.predictor.parameters())


def test_data2vec_regresses_the_mean_of_layers_behind_mask_tokens(make_model, batch):
    model = drift(make_model(**SETTINGS["data2vec"]))
    assert model.token_head is None
    features, _ = features_behind_mask_tokens(model, batch)
    layers = model.target_encoder(**inputs_of(batch), output_hidden_states=True).hidden_states[-2:]
    targets = F.layer_norm(sum(F.layer_norm(layer, (32,)) for layer in layers) / 2, (32,))
    targets = gather_positions(targets, batch["target_positions"])[used(batch)]
    close(model(**batch).loss, F.smooth_l1_loss(model.latent_head(features), targets, beta=4.0))


def test_dropped_token_mlm_is_the_jepa_without_its_latent_side(make_model, batch):
    model = make_model(**SETTINGS["drop_mlm"])
    assert model.target_encoder is model.latent_head is None
    assert not any(name.startswith(("target_encoder", "latent_head")) for name in model.state_dict())
    jepa = make_model()
    jepa.load_state_dict(model.state_dict(), strict=False)
    output = model(**batch)
    close(output.loss, jepa(**batch).token_loss, 1e-6)
    assert output.latent_loss is output.targets is None


def test_simcse_is_infonce_of_two_dropout_passes(make_model, make_batch):
    model = make_model(**SETTINGS["simcse"])
    batch = all_visible(make_batch(lengths=(24, 24, 24, 24)))
    assert model.predictor is model.target_encoder is None
    for dropout in (0.0, 0.3):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        torch.manual_seed(1)
        loss = model.train()(**batch).loss
        torch.manual_seed(1)
        sides = [model.sentence_head(model.model(**inputs_of(batch)).last_hidden_state.mean(1)) for _ in range(2)]
        assert torch.equal(*sides) == (dropout == 0)
        expected = plain_infonce(*sides, range(4), 0.05)
        assert loss.item() == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("setting", "predictor", "context"),
    [*itertools.product(["jepa"], PREDICTORS, CONTEXTS)]
    + [(name, *way) for name in SETTINGS for way in (("transformer", "drop"), ("mlp", "mask_token"))],
)
def test_every_trainable_parameter_gets_a_gradient_in_the_first_step(make_model, batch, setting, predictor, context):
    """Otherwise data-parallel training stops with an error."""
    model = make_model(**SETTINGS[setting] | PREDICTORS[predictor] | CONTEXTS[context]).train()
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.dim() < 2 or parameter.grad.abs().max() > 0, name


@every_setting
def test_a_model_of_any_setting_comes_back_as_it_was_saved(make_model, make_batch, setting, tmp_path):
    model = after_steps(drift(make_model(**SETTINGS[setting])), make_batch)
    model.save_pretrained(tmp_path)
    loaded, report = TextJepaForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert [b.item() for name, b in loaded.named_buffers() if "updates" in name] == [3] * len(loaded.running)
    losses = []
    for each in (model, loaded):
        torch.manual_seed(1)
        losses.append(each(**make_batch()).loss)
    close(losses[1], losses[0], 1e-6)


@pytest.mark.parametrize("setting", ["running", "sentence-cosine"])
def test_statistics_and_poolers_that_a_checkpoint_lacks_begin_as_in_a_new_model(make_model, setting):
    fresh = make_model(**SETTINGS[setting])
    torch.use_deterministic_algorithms(True)  # fills memory that nothing initialises with NaN
    try:
        filled = TextJepaForPreTraining.from_pretrained(None, config=fresh.config, state_dict={}).state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    names = [name for name in filled if name.startswith(("running", "pooler"))]
    assert names
    assert all(torch.equal(filled[name], fresh.state_dict()[name]) for name in names)


@pytest.mark.parametrize(
    "setting", ["default", "documents", "running", "sentence-cosine", "vicreg", "lejepa", "simcse"]
)
def test_bfloat16_runs_with_target_side_in_float32(make_model, make_batch, setting, tmp_path):
    model = after_steps(make_model(**SETTINGS[setting]), make_batch)
    model.save_pretrained(tmp_path)
    half = TextJepaForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in half.state_dict().items():
        kept = name.startswith(("target_encoder", "running", "pooler", "lexical_space"))
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name
    losses = []
    for each in (model, half):
        torch.manual_seed(1)
        losses.append(each.train()(**make_batch()).loss)
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
    losses[1].backward()
    assert all(gradient.isfinite().all() for gradient in gradients(half).values())


@pytest.mark.parametrize(
    ("setting", "predictor"),
    [
        ("default", "transformer"),
        ("spans", "transformer"),
        ("tokens", "transformer"),
        ("jepa", "conv"),
        ("jepa", "mlp"),
    ],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_changes_no_gradient(make_model, batch, setting, predictor):
    found = []
    for checkpointing in (False, True):
        model = make_model(**SETTINGS[setting] | PREDICTORS[predictor]).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        model(**batch).loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][name], rtol=1e-4, atol=1e-5)


@settings_and_predictors
def test_padding_changes_no_term(make_model, make_batch, setting, predictor):
    """Longer texts in the batch, or more slots, whatever stands in the padding."""
    batch = make_batch() | views_of(make_batch)
    padded = {}
    for name, value in batch.items():
        padded[name] = F.pad(value, (0, 7), value=-1 if name in MASKS else 0)
    for prefix in ("", "view_"):
        mask = padded[f"{prefix}attention_mask"] == 1
        noise = torch.randint(5, 200, mask.shape)
        padded[f"{prefix}input_ids"] = torch.where(mask, padded[f"{prefix}input_ids"], noise)
    model = after_steps(make_model(**SETTINGS[setting] | PREDICTORS[predictor]), make_batch)
    for training in (False, True):
        model.train(training)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        outputs = []
        for each in (batch, padded):
            model.load_state_dict(state)
            torch.manual_seed(1)
            outputs.append(model(**each))
        for name, value in outputs[0].items():
            if name.endswith("loss"):
                torch.testing.assert_close(outputs[1][name], value, rtol=1e-5, atol=1e-5, msg=name)
        if model.latent_head is not None:
            close(outputs[1].predictions[:, :, :-7][used(batch)], outputs[0].predictions[used(batch)], 2e-5)


@pytest.mark.parametrize("setting", ["default", "documents", "mlm", "spans", "vicreg"])
def test_predictions_and_targets_can_be_had_without_a_loss(make_model, batch, setting):
    model = make_model(**SETTINGS[setting])
    whole, part = model(**batch), model(**batch, return_loss=False)
    assert not [name for name in part if name.endswith("loss")]
    shown = [name for name in whole if not name.endswith("loss")]
    assert list(part) == shown
    torch.testing.assert_close(part.to_tuple(), tuple(whole[name] for name in shown), rtol=0, atol=0)


@every_setting
def test_a_batch_without_targets_breaks_nothing(make_model, batch, setting):
    model = make_model(**SETTINGS[setting]).train()
    output = model(**all_visible(batch))
    for name in ("latent_loss", "token_loss"):
        assert output.get(name, torch.zeros(())).item() == 0
    output.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# ---- predictors -----------------------------------------------------------------------------------------------------


def predictor_inputs(batch):
    context, target, spans = (batch[name].flatten(0, 1) for name in MASKS)
    return torch.randn(*context.shape, 32), context, target, spans


def test_the_pooled_context_of_queries_is_the_mean_of_the_visible_states(make_model, batch):
    model = make_model(pred_pooled_context=True)
    pooled = []

    def keep(module, args, kwargs):
        states, positions, *_ = args
        pooled.append((states, kwargs["pooled"], positions >= 0))

    hook = model.predictor.register_forward_pre_hook(keep, with_kwargs=True)
    model(**batch)
    hook.remove()
    ((states, vectors, visible),) = pooled
    close(vectors, torch.stack([rows[mask].mean(0) for rows, mask in zip(states, visible, strict=True)]), 1e-6)


def test_convolutions_know_places_and_reach_as_far_as_their_kernels(make_model):
    network = make_model(**PREDICTORS["conv"], pred_conv_kernel_size=5, pred_num_hidden_layers=2).predictor
    context = torch.tensor([[*range(10), *range(12, 24)]])
    states, target, spans = torch.randn(1, 22, 32), torch.tensor([[10, 11]]), torch.zeros(1, 2, dtype=torch.long)
    states.requires_grad_()
    features = network(states, context, target, spans, text_length=24)
    (gradient,) = torch.autograd.grad(features[0, 0, 0], states)
    reached = context[0][gradient[0].abs().amax(-1) > 0]
    assert reached.tolist() == [6, 7, 8, 9, 12, 13, 14]  # 4 to either side of 10
    shifted = torch.where(context > 5, context + 1, context)
    moved = network(states, shifted, target + 1, spans, text_length=25)
    close(moved, features, 1e-5)
    moved = network(states, context.roll(1, 1), target, spans, text_length=24)
    assert (moved - features).abs().max() > 1e-2


def test_a_perceptron_takes_each_query_by_itself(make_model, batch):
    network = make_model(**PREDICTORS["mlp"]).predictor
    states, context, target, spans = predictor_inputs(batch)
    pooled = torch.randn(len(states), 32)
    before = network(states, context, target, spans, pooled=pooled)
    others = target.clone()
    others[:, 1:] = (others[:, 1:] + 5).clamp(max=23)
    after = network(torch.randn_like(states), context, others, spans, pooled=pooled)
    assert torch.equal(after[:, 0], before[:, 0])
    assert (after[:, 1:] - before[:, 1:]).abs().max() > 1e-2


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_strategy_of_a_mask_chooses_its_mask_token(make_model, batch, predictor):
    model = make_model(**PREDICTORS[predictor], pred_num_mask_tokens=3)
    strategies = torch.tensor([[0, 2], [1, 0], [2, 2]])
    chosen = model(**batch, mask_strategies=strategies).predictions
    tokens, seen = model.predictor.mask_tokens.detach().clone(), used(batch)
    assert torch.equal(model(**batch).predictions, model(**batch, mask_strategies=0 * strategies).predictions)
    for strategy in range(3):
        model.predictor.mask_tokens.data[0] = tokens[strategy]
        rows = seen & (strategies == strategy).unsqueeze(-1)
        every = model(**batch).predictions
        close(chosen[rows], every[rows], 1e-6)
        apart = seen & (strategies != strategy).unsqueeze(-1)
        assert (chosen[apart] - every[apart]).abs().amax(-1).min() > 1e-3
