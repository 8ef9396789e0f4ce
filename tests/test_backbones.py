"""What must hold around every stock encoder: the invariants of transformers' common model tests, and the method's."""

import copy
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

import modeling_text_jepa
from configuration_text_jepa import _POSITIONS_AFTER_PADDING, _POSITIONS_FROM_ZERO
from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaForSequenceClassification, TextJepaModel


SHAPE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODERNBERT = SHAPE | {
    "model_type": "modernbert",
    "cls_token_id": None,
    "sep_token_id": None,
    "initializer_cutoff_factor": 2.0,
    "layer_types": ["full_attention"] * 2,
    "attention_dropout": 0.1,
    "mlp_dropout": 0.1,
}
BACKBONES = {
    "bert": SHAPE | {"model_type": "bert"},
    "roberta": SHAPE | {"model_type": "roberta", "pad_token_id": 1},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 200,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": 66,
        "initializer_range": 0.2,
    },
    "electra": SHAPE | {"model_type": "electra", "embedding_size": 16},
    "mpnet": SHAPE | {"model_type": "mpnet", "pad_token_id": 1},
    "modernbert": MODERNBERT,
    "modernbert-windows": MODERNBERT | {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8},
    "deberta-v2": SHAPE
    | {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
}
DROPPING = ["bert", "roberta", "distilbert", "electra", "modernbert", "modernbert-windows"]
# Architectures that share their code with one of those above: only the equality of the context modes is tested.
RELATIVES = {name: SHAPE | {"model_type": name, "pad_token_id": 1} for name in ("camembert", "data2vec-text", "ernie")}
RELATIVES |= {name: RELATIVES["camembert"] | {"model_type": name} for name in ("roberta-prelayernorm", "xlm-roberta")}
RELATIVES["albert"] = SHAPE | {"model_type": "albert", "embedding_size": 16}
MODES = [(name, "drop") for name in DROPPING]
MODES += [(name, mode) for mode in ("attention_mask", "mask_token") for name in BACKBONES]

every_backbone = pytest.mark.parametrize("name", BACKBONES)
# One of each that differs in the names of its fields, its pooler, its positions or its windows, for what holds of our
# classes and not of a stock encoder.
every_kind = pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert-windows", "deberta-v2"])
every_mode = pytest.mark.parametrize(("name", "mode"), MODES)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def same_weights(first, second, tolerance=0):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        close(tensor, second[name], tolerance)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def inputs_of(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def assert_ready(model):
    """Nothing on meta, nothing random left over, and a target encoder that only the moving average moves."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.device.type == "cpu", name
        assert not tensor.is_floating_point() or tensor.isfinite().all(), name
    target = getattr(model, "target_encoder", None)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith("target_encoder."), name
    if target is not None:
        mode = model.training
        model.train()
        assert not any(module.training for module in target.modules())
        assert model.model.encoder.training
        model.train(mode)


@pytest.fixture(scope="session")
def folders(make_model, make_batch, tmp_path_factory):
    """Per backbone, once: a pretraining model whose encoders differ, and its folders of every kind."""
    made = {}

    def get(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            model = make_model(BACKBONES[name])
            with torch.no_grad():
                for parameter in model.target_encoder.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(root / "pretraining")
            model.model.save_pretrained(root / "encoder")
            plain = AutoModel.from_config(copy.deepcopy(model.config.text_config)).eval()  # with pooler, if any
            plain.save_pretrained(root / "plain")
            made[name] = model, plain, root
        return made[name]

    return get


def load(cls, folder, **kwargs):
    model, report = cls.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert not report["error_msgs"]
    assert not model.training
    assert_ready(model)
    return model, report["missing_keys"]


# construction, saving and loading


@every_backbone
def test_a_new_model_is_initialised_and_its_target_encoder_a_frozen_copy(name, make_model):
    model = make_model(BACKBONES[name])
    assert_ready(model)
    same_weights(model.target_encoder, model.model.encoder)
    shared = {p.data_ptr() for p in model.model.encoder.parameters()}
    assert not shared & {p.data_ptr() for p in model.target_encoder.parameters()}
    assert not [key for key in model.state_dict() if "pooler" in key]
    assert not [key for key, p in model.predictor.named_parameters() if p.dim() > 1 and p.std() < 0.1]
    same_weights(make_model(BACKBONES[name]), model)


@every_backbone
def test_weights_that_a_checkpoint_lacks_are_drawn_as_in_a_new_model(name, make_model):
    fresh = make_model(BACKBONES[name])
    filled = TextJepaForPreTraining.from_pretrained(None, config=fresh.config, state_dict={})
    assert_ready(filled)
    same_weights(filled.target_encoder, filled.model.encoder)
    for key, tensor in fresh.state_dict().items():
        drawn, spread = filled.state_dict()[key], tensor.std(unbiased=False).item()
        tolerance = 0.4 if tensor.numel() > 100 else 1.0  # a constant must be constant in either case
        assert drawn.std(unbiased=False).item() == pytest.approx(spread, rel=tolerance), key
        assert drawn.mean().item() == pytest.approx(tensor.mean().item(), abs=0.2), key
    for key, buffer in fresh.named_buffers():
        close(filled.get_buffer(key), buffer, 0)


@every_backbone
def test_a_pretraining_model_comes_back_as_it_was_saved(name, folders, make_batch):
    model, _, root = folders(name)
    loaded, missing = load(TextJepaForPreTraining, root / "pretraining")
    assert not missing
    same_weights(loaded, model)
    with pytest.raises(AssertionError):
        same_weights(loaded.target_encoder, loaded.model.encoder)
    batch = make_batch()
    before, after = model(**batch), loaded(**batch)
    close(after.last_hidden_state, before.last_hidden_state, 1e-6)
    close(after.predictions, before.predictions, 1e-6)
    close(after.targets, before.targets, 1e-6)


@every_kind
@pytest.mark.parametrize("folder", ["pretraining", "encoder"])
def test_the_encoder_opens_from_either_folder(name, folder, folders, make_batch):
    model, _, root = folders(name)
    encoder, missing = load(TextJepaModel, root / folder)
    assert not missing
    same_weights(encoder.encoder, model.model.encoder)
    inputs = inputs_of(make_batch())
    close(encoder(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state, 1e-6)


@every_kind
def test_a_classifier_opens_from_a_pretraining_folder_with_only_its_head_new(name, folders):
    model, _, root = folders(name)
    classifier, missing = load(TextJepaForSequenceClassification, root / "pretraining", num_labels=3)
    assert missing == {"classifier.weight", "classifier.bias"}
    assert classifier.classifier.weight.std() > 0.05
    same_weights(classifier.model, model.model)


@every_kind
def test_pretraining_from_an_encoder_folder_starts_the_target_encoder_as_a_copy(name, folders):
    model, _, root = folders(name)
    loaded, missing = load(TextJepaForPreTraining, root / "encoder")
    assert {key.split(".")[0] for key in missing} == {"predictor", "latent_head", "token_head"}
    same_weights(loaded.model, model.model)
    same_weights(loaded.target_encoder, model.model.encoder)


@every_kind
def test_a_target_tensor_that_a_checkpoint_lacks_is_a_copy_and_the_others_are_kept(name, folders, tmp_path):
    model, _, root = folders(name)
    shutil.copytree(root / "pretraining", tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    gone = next(key for key in reversed(tensors) if key.startswith("target_encoder.") and tensors[key].dim() > 1)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    loaded, missing = load(TextJepaForPreTraining, tmp_path / "checkpoint")
    assert not missing
    weights, expected = loaded.state_dict(), dict(model.state_dict())
    expected[gone] = expected[gone.replace("target_encoder.", "model.encoder.")]
    assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())


@every_backbone
def test_a_plain_checkpoint_is_wrapped_without_pooler(name, folders, make_batch):
    _, plain, root = folders(name)
    weights = {key: tensor for key, tensor in plain.state_dict().items() if not key.startswith("pooler.")}
    encoder = TextJepaModel.from_pretrained(root / "plain")
    model = TextJepaForPreTraining.from_encoder(root / "plain", target_num_layers=1)
    assert_ready(encoder)
    assert_ready(model)
    assert model.config.target_num_layers == 1
    assert not model.training
    inputs = inputs_of(make_batch())
    expected = plain(**inputs).last_hidden_state
    for stock in (encoder.encoder, model.model.encoder, model.target_encoder):
        assert type(stock) is type(plain)
        assert stock.state_dict().keys() == weights.keys()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in stock.state_dict().items())
        close(stock(**inputs).last_hidden_state, expected, 1e-6)


def test_wrapping_a_plain_checkpoint_can_report_what_it_loaded(folders):
    _, missing = load(TextJepaModel, folders("modernbert")[2] / "plain")
    assert not missing


@pytest.mark.parametrize("opened", [TextJepaModel.from_pretrained, TextJepaForPreTraining.from_encoder])
@pytest.mark.parametrize("folder", ["plain", "pretraining"])
def test_an_attention_implementation_reaches_every_encoder(opened, folder, folders):
    model = opened(folders("modernbert")[2] / folder, attn_implementation="eager")
    encoders = [model.encoder] if isinstance(model, TextJepaModel) else [model.model.encoder, model.target_encoder]
    assert {part.config._attn_implementation for part in (model, *encoders)} == {"eager"}


@every_kind
def test_from_encoder_takes_the_context_encoder_of_a_text_jepa(name, folders):
    model, _, root = folders(name)
    loaded = TextJepaForPreTraining.from_encoder(root / "pretraining", loss_type="l1")
    assert_ready(loaded)
    assert loaded.config.loss_type == "l1"
    same_weights(loaded.model, model.model)
    same_weights(loaded.target_encoder, model.model.encoder)


@every_backbone
def test_both_encoders_are_stock_and_save_as_plain_checkpoints(name, folders, tmp_path, make_batch):
    model, _, _ = folders(name)
    inputs = inputs_of(make_batch())
    for number, encoder in enumerate((model.model.encoder, model.target_encoder)):
        encoder.save_pretrained(tmp_path / str(number))
        assert not AutoConfig.from_pretrained(tmp_path / str(number)).to_dict().get("auto_map")
        stock = AutoModel.from_pretrained(tmp_path / str(number))
        assert type(stock) is type(encoder)
        close(stock(**inputs).last_hidden_state, encoder(**inputs).last_hidden_state, 1e-6)


def test_from_encoder_refuses_what_transformers_does_not_know(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "word2vec"}')
    with pytest.raises(ValueError, match="'word2vec' is not an architecture of transformers"):
        TextJepaForPreTraining.from_encoder(tmp_path)


@every_kind
def test_a_deep_copy_stands_on_its_own(name, folders, make_batch):
    model, _, _ = folders(name)
    twin = copy.deepcopy(model)
    assert_ready(twin)
    same_weights(twin, model)
    batch = make_batch()
    close(twin(**batch).loss, model(**batch).loss, 0)
    twin.update_target_encoder(0.0)
    with pytest.raises(AssertionError):
        same_weights(twin.target_encoder, model.target_encoder)


# half precision


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_runs_with_a_float32_target_encoder(name, dtype, folders, make_batch):
    model, _, root = folders(name)
    half, missing = load(TextJepaForPreTraining, root / "pretraining", dtype=dtype)
    assert not missing
    assert {p.dtype for p in half.target_encoder.parameters()} == {torch.float32}
    assert {p.dtype for part in (half.model, half.predictor, half.latent_head) for p in part.parameters()} == {dtype}
    same_weights(half.target_encoder, model.target_encoder)
    batch = make_batch()
    output = half.train()(**batch)
    assert output.predictions.dtype == dtype
    assert output.targets.dtype == output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(half).values())
    close(half.eval()(**batch).latent_loss, model(**batch).latent_loss, 0.05)


# outputs


@every_backbone
def test_hidden_states_and_attentions_are_the_encoders(name, folders, make_batch):
    root, batch = folders(name)[2], make_batch()
    model = TextJepaForPreTraining.from_pretrained(root / "pretraining", attn_implementation="eager")
    inputs = inputs_of(batch)
    asked = {"output_hidden_states": True, "output_attentions": True}
    texts, length = inputs["input_ids"].shape
    for output in (model.model(**inputs, **asked), model(**inputs, **asked)):
        assert [tuple(states.shape) for states in output.hidden_states] == [(texts, length, 32)] * 3
        assert [tuple(weights.shape) for weights in output.attentions] == [(texts, 2, length, length)] * 2
        present = inputs["attention_mask"].bool()
        sums = output.attentions[0].sum(-1).transpose(1, 2)[present]
        close(sums, torch.ones_like(sums))
    rows = texts * batch["context_positions"].shape[1]
    visible = batch["context_positions"].shape[2]
    width = visible if model.config.context_mode == "drop" else length
    output = model(**batch, **asked)
    assert [tuple(states.shape) for states in output.hidden_states] == [(rows, visible, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(rows, 2, width, width)] * 2
    assert model(**batch).hidden_states is None


@every_kind
def test_return_dict_false_gives_the_same_as_a_tuple(name, folders, make_batch):
    model, _, _ = folders(name)
    batch = make_batch()
    inputs = inputs_of(batch)
    classifier = TextJepaForSequenceClassification(model.config).eval()
    for callee, arguments in ((model, batch), (model, inputs), (model.model, inputs), (classifier, inputs)):
        named, plain = callee(**arguments), callee(**arguments, return_dict=False)
        assert isinstance(plain, tuple)
        assert len(plain) == len(named.to_tuple())
        torch.testing.assert_close(plain, named.to_tuple(), rtol=0, atol=0)


@every_kind
def test_the_forward_is_deterministic(name, folders, make_batch):
    model = copy.deepcopy(folders(name)[0])
    batch = make_batch()
    assert torch.equal(model(**batch).loss, model(**batch).loss)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.train()(**batch).loss)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("mpnet", "deberta-v2")])
def test_sdpa_equals_eager(name, folders, make_batch):
    root, batch = folders(name)[2] / "pretraining", make_batch()
    models = {
        kind: TextJepaForPreTraining.from_pretrained(root, attn_implementation=kind) for kind in ("sdpa", "eager")
    }
    for kind, model in models.items():
        for part in (model, model.model.encoder, model.target_encoder):
            assert part.config._attn_implementation == kind
    first, second = models["sdpa"](**batch), models["eager"](**batch)
    seen = batch["target_positions"] >= 0
    close(first.loss, second.loss)
    close(first.predictions[seen], second.predictions[seen])
    close(first.targets[seen], second.targets[seen])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "training"), [("bert", False), ("modernbert-windows", True)])
def test_torch_compile_takes_the_model_as_one_graph_and_changes_nothing(name, training, make_model, make_batch):
    undisturbed = {"attention_dropout": 0.0, "mlp_dropout": 0.0} if training else {}
    model = make_model(BACKBONES[name] | undisturbed, token_loss_candidates=10_000).train(training)
    batch = make_batch()
    expected = model(**batch)  # transformers installs its hooks in the first call, under a lock
    expected.loss.backward()
    before = gradients(model)
    model.zero_grad()
    torch.compiler.reset()
    actual = torch.compile(model, backend="aot_eager", fullgraph=True)(**batch)
    actual.loss.backward()
    close(actual.loss, expected.loss)
    close(actual.predictions, expected.predictions)
    for key, gradient in gradients(model).items():
        close(gradient, before[key])


# training


@every_backbone
@pytest.mark.parametrize("token_loss_weight", [0.0, 0.1])
def test_every_trainable_parameter_gets_a_gradient_in_the_first_step(name, token_loss_weight, make_model, make_batch):
    model = make_model(BACKBONES[name], token_loss_weight=token_loss_weight).train()
    model(**make_batch()).loss.backward()
    for key, parameter in model.named_parameters():
        if key.startswith("target_encoder."):
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # A bias added to all keys cancels in the softmax: its gradient is zero but for rounding.
        if not re.search(r"\.(key|k|k_lin|key_proj|pos_key_proj)\.bias$", key):
            assert parameter.grad.abs().max() > 1e-8, key


def step_with_calls(model, batch):
    """One step's loss and gradients, and how often a layer norm of each part ran."""
    calls, hooks = {}, []
    for part in ("model", "predictor", "target_encoder"):
        calls[part] = []
        for module in getattr(model, part).modules():
            if isinstance(module, torch.nn.LayerNorm):
                hooks.append(module.register_forward_hook(lambda *_, seen=calls[part]: seen.append(1)))
    model.zero_grad()
    torch.manual_seed(5)
    output = model(**batch)
    output.loss.backward()
    for hook in hooks:
        hook.remove()
    return output.loss, gradients(model), {part: len(seen) for part, seen in calls.items()}


@every_backbone
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_recomputes_layers_and_changes_no_gradient(name, make_model, make_batch):
    model, batch = make_model(BACKBONES[name]).train(), make_batch()
    loss, expected, calls = step_with_calls(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed_loss, actual, more_calls = step_with_calls(model, batch)
    recomputed = {part for part in calls if more_calls[part] > calls[part]}
    # MPNet of transformers knows no checkpointing.
    assert recomputed == ({"predictor"} if name == "mpnet" else {"model", "predictor"})
    close(checkpointed_loss, loss, 1e-6)
    assert actual.keys() == expected.keys()
    for key, gradient in actual.items():
        close(gradient, expected[key])


@every_backbone
def test_resizing_reaches_both_encoders(name, make_model, make_batch, tmp_path):
    model = make_model(BACKBONES[name])
    before = copy.deepcopy(model.state_dict())
    model.resize_token_embeddings(230)
    assert_ready(model)
    assert model.config.text_config.vocab_size == 230
    for encoder in (model.model.encoder, model.target_encoder):
        assert encoder.get_input_embeddings().weight.shape[0] == encoder.config.vocab_size == 230
    for key, tensor in model.state_dict().items():
        close(tensor[: len(before[key])], before[key], 0)
    batch = make_batch()
    batch["input_ids"][:, 3] = 229
    model.train()(**batch).loss.backward()
    assert_ready(model)
    model.update_target_encoder(0.5)
    model.save_pretrained(tmp_path)
    loaded, missing = load(TextJepaForPreTraining, tmp_path)
    assert not missing
    same_weights(loaded, model)


# the method


@every_mode
def test_padding_changes_nothing(name, mode, make_model, make_batch):
    model, batch = make_model(BACKBONES[name], context_mode=mode, mask_token_id=4), make_batch()
    more = torch.zeros(len(batch["input_ids"]), 8, dtype=torch.long)
    ids, mask = (torch.cat([batch[key], more], dim=1) for key in ("input_ids", "attention_mask"))
    noise = torch.randint(5, 200, ids.shape)
    padded = batch | {"input_ids": torch.where(mask == 1, ids, noise), "attention_mask": mask}
    before, after = model(**batch), model(**padded)
    seen = batch["target_positions"] >= 0
    visible = batch["context_positions"].flatten(0, 1) >= 0
    for term in ("loss", "latent_loss", "token_loss"):
        close(after[term], before[term])
    close(after.predictions[seen], before.predictions[seen])
    close(after.targets[seen], before.targets[seen])
    close(after.last_hidden_state[visible], before.last_hidden_state[visible])
    encoded = model(**inputs_of(padded)).last_hidden_state[:, :-8]
    present = batch["attention_mask"] == 1
    close(encoded[present], model(**inputs_of(batch)).last_hidden_state[present])


@every_mode
def test_no_prediction_knows_the_tokens_at_hidden_positions(name, mode, make_model, make_batch):
    model, batch = make_model(BACKBONES[name], context_mode=mode, mask_token_id=4), make_batch(masks=1)
    hidden = torch.zeros(3, 25, dtype=torch.bool).scatter(1, batch["target_positions"][:, 0] + 1, True)[:, 1:]
    visible = ~hidden & (batch["attention_mask"] == 1)
    others = 5 + (batch["input_ids"] + 40) % 195
    seen = batch["target_positions"] >= 0
    before = model(**batch)
    after = model(**batch | {"input_ids": torch.where(hidden, others, batch["input_ids"])})
    close(after.predictions[seen], before.predictions[seen], 1e-6)
    assert (after.targets - before.targets)[seen].abs().max() > 0.1
    # The same change where it can be seen: the comparison is able to fail.
    after = model(**batch | {"input_ids": torch.where(visible, others, batch["input_ids"])})
    assert (after.predictions - before.predictions)[seen].abs().amax(-1).min() > 1e-2


def difference_of_modes(name, make_model, batch):
    """Largest difference of visible states and of predictions between the two context modes, weights being equal."""
    text_config = (BACKBONES | RELATIVES)[name]
    dropped = make_model(text_config, context_mode="drop")(**batch)
    masked = make_model(text_config, context_mode="attention_mask")(**batch)
    visible = batch["context_positions"].flatten(0, 1) >= 0
    seen = batch["target_positions"] >= 0
    states = (dropped.last_hidden_state - masked.last_hidden_state)[visible]
    predictions = (dropped.predictions - masked.predictions)[seen]
    return max(states.abs().max().item(), predictions.abs().max().item())


@pytest.mark.parametrize("name", [*DROPPING, *RELATIVES])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_dropping_equals_masking(name, implementation, make_model, make_batch):
    def build(*args, **fields):
        model = make_model(*args, **fields)
        model.set_attn_implementation(implementation)
        return model

    assert difference_of_modes(name, build, make_batch(lengths=(40, 23, 1, 31), masks=3, width=44)) < 1e-5


def test_the_backbones_that_drop_are_those_whose_configuration_says_so():
    exact = [name for name, fields in BACKBONES.items() if TextJepaConfig(text_config=dict(fields)).drop_is_exact]
    assert exact == DROPPING
    tested = {fields["model_type"] for fields in RELATIVES.values()} | {
        BACKBONES[name]["model_type"] for name in exact
    }
    assert tested == _POSITIONS_FROM_ZERO | _POSITIONS_AFTER_PADDING


@pytest.mark.parametrize("name", ["roberta", "modernbert-windows", "mpnet", "deberta-v2"])
def test_the_comparison_of_modes_sees_what_goes_wrong(name, make_model, make_batch, monkeypatch):
    """Positions without RoBERTa's offset, windows by index, relative positions by index: each is far off."""
    if name == "roberta":
        monkeypatch.setattr(TextJepaConfig, "position_offset", property(lambda config: 0))
    elif name == "modernbert-windows":
        monkeypatch.setattr(modeling_text_jepa, "_visible_mask", lambda encoder, positions: (positions >= 0).long())
    else:
        monkeypatch.setattr(TextJepaConfig, "drop_is_exact", property(lambda config: True))
    assert difference_of_modes(name, make_model, make_batch(lengths=(40, 23, 31), width=44)) > 1e-2


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_from_encoder_keeps_a_dtype_asked_for_but_not_in_the_target_encoder(argument, folders):
    model = TextJepaForPreTraining.from_encoder(folders("bert")[2] / "plain", **{argument: torch.bfloat16})
    assert {p.dtype for p in model.model.parameters()} == {p.dtype for p in model.predictor.parameters()}
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.target_encoder.parameters()} == {torch.float32}


def test_fields_of_the_configuration_reach_a_wrapped_encoder(folders):
    model = TextJepaModel.from_pretrained(folders("bert")[2] / "plain", classifier_pooling="cls")
    assert model.config.classifier_pooling == "cls"


def test_resizing_a_wrapped_encoder_changes_its_own_configuration(folders, tmp_path):
    model = TextJepaModel.from_pretrained(folders("bert")[2] / "plain")
    model.resize_token_embeddings(230)
    model.encoder.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).get_input_embeddings().num_embeddings == 230


def test_a_plain_encoder_is_refused_where_it_would_lack_parts(folders):
    with pytest.raises(ValueError, match="from_encoder"):
        TextJepaForPreTraining.from_pretrained(folders("bert")[2] / "plain")
