"""TextJepaConfig: every field is checked, derived, saved, and none is dead."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig, DistilBertConfig, ModernBertConfig, PreTrainedConfig

from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaForSequenceClassification
from text_jepa.train.arguments import ModelArguments, ObjectiveArguments
from text_jepa.train.build import config_from, objective_fields


OWN_FIELDS = sorted(set(TextJepaConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__))

BERT = {"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


# defaults and nesting


def test_defaults_are_a_modernbert_with_full_attention_in_every_layer():
    config = TextJepaConfig()
    assert isinstance(config.text_config, ModernBertConfig)
    assert set(config.text_config.layer_types) == {"full_attention"}
    assert (config.text_config.num_hidden_layers, config.hidden_size, config.max_text_length) == (4, 256, 512)


def test_derived_defaults_follow_the_encoder():
    config = TextJepaConfig(text_config=BERT)
    assert (config.pred_hidden_size, config.pred_num_attention_heads, config.target_num_layers) == (16, 2, 3)
    assert config.context_mode == "drop"


@pytest.mark.parametrize(
    ("width", "heads", "expected"), [(312, 12, 168), (48, 24, 48), (768, 12, 384), (384, 12, 192), (32, 2, 16)]
)
def test_the_predictor_has_half_the_width_rounded_up_to_even_heads(width, heads, expected):
    """Those of 312 features and 12 heads are the small BERTs of TinyBERT and rubert-tiny2."""
    shape = BERT | {"hidden_size": width, "num_attention_heads": heads}
    assert TextJepaConfig(text_config=shape).pred_hidden_size == expected


@pytest.mark.parametrize("form", ["dict", "instance", "dict without model_type"])
def test_nested_config_is_taken_in_every_form(form):
    fields = {key: value for key, value in BERT.items() if key != "model_type"}
    text_config = {"dict": BERT, "instance": BertConfig(**fields), "dict without model_type": fields}[form]
    config = TextJepaConfig(text_config=text_config)
    assert config.text_config.model_type == ("modernbert" if form == "dict without model_type" else "bert")
    assert (config.text_config.vocab_size, config.hidden_size) == (50, 32)
    assert config.get_text_config() is config.text_config


def test_a_nested_dict_of_the_caller_is_left_as_it_was():
    before = dict(BERT)
    TextJepaConfig(text_config=BERT)
    assert before == BERT


@pytest.mark.parametrize(
    "config",
    [
        TextJepaConfig(),
        TextJepaConfig(text_config=BERT, loss_type="cosine", token_loss_candidates=10_000, num_labels=3),
        TextJepaConfig.preset("tiny", {"vocab_size": 64}, target_num_layers=1, pred_position_embedding_type="learned"),
        *(TextJepaConfig(**fields, mask_token_id=4) for fields in OBJECTIVES.values()),
    ],
    ids=["default", "bert", "preset", *OBJECTIVES],
)
def test_config_survives_json(config, tmp_path):
    config.save_pretrained(tmp_path)
    for reloaded in (
        TextJepaConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        TextJepaConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
    ):
        assert type(reloaded) is TextJepaConfig
        assert reloaded.to_dict() | {"_name_or_path": ""} == config.to_dict()


def test_fields_given_to_from_pretrained_win_over_the_file(tmp_path):
    TextJepaConfig(text_config=BERT).save_pretrained(tmp_path)
    config = TextJepaConfig.from_pretrained(tmp_path, loss_type="l1", text_config={"hidden_dropout_prob": 0.0})
    assert config.loss_type == "l1"
    assert (config.text_config.hidden_dropout_prob, config.hidden_size) == (0.0, 32)


# presets


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [("tiny", 2, 128), ("mini", 4, 256), ("small", 12, 384), ("base", 12, 768), ("large", 24, 1024)],
)
def test_preset_has_its_documented_size(name, layers, width):
    config = TextJepaConfig.preset(name)
    text_config = config.text_config
    assert (text_config.num_hidden_layers, text_config.hidden_size) == (layers, width)
    assert text_config.hidden_size == 64 * text_config.num_attention_heads
    assert text_config.layer_types == ["full_attention"] * layers
    assert text_config.intermediate_size % 64 == 0
    assert text_config.intermediate_size == pytest.approx(width * 8 / 3, abs=64)
    assert re.search(rf"`{name}` \(?{layers} × {width}", TextJepaConfig.preset.__doc__)


def test_the_static_preset_is_an_encoder_without_layers():
    config = TextJepaConfig.preset("static", {"vocab_size": 77})
    assert isinstance(config.text_config, DistilBertConfig)
    assert (config.text_config.num_hidden_layers, config.hidden_size, config.text_config.vocab_size) == (0, 1536, 77)
    assert "`static` 0 × 1536" in TextJepaConfig.preset.__doc__
    with pytest.raises(ValueError, match="unknown field 'hidden_sise' of text_config; did you mean 'hidden_size'"):
        TextJepaConfig.preset("static", {"hidden_sise": 8})


def test_preset_takes_fields_of_both_configurations():
    config = TextJepaConfig.preset("tiny", {"vocab_size": 77, "num_hidden_layers": 3}, token_loss_weight=0.0)
    assert (config.text_config.vocab_size, config.hidden_size, config.token_loss_weight) == (77, 128, 0.0)
    assert config.text_config.layer_types == ["full_attention"] * 3


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(
        ValueError, match="unknown preset 'huge'; the presets are static, tiny, mini, small, base, large"
    ):
        TextJepaConfig.preset("huge")


# what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pred_hiden_size": 8}, "unknown field 'pred_hiden_size'.*did you mean 'pred_hidden_size'"),
        ({"targt_num_layers": 1}, "did you mean 'target_num_layers'"),
        ({"zzz": 1}, r"unknown field 'zzz' of TextJepaConfig$"),
        ({"text_config": {"model_type": "modernbrt"}}, "unknown model_type 'modernbrt'; did you mean 'modernbert'"),
        ({"pred_num_hidden_layers": 0}, "pred_num_hidden_layers must be at least 1, got 0"),
        ({"pred_hidden_size": 15}, r"pred_hidden_size \(15\) must be a multiple of pred_num_attention_heads \(2\)"),
        ({"pred_hidden_size": 10}, "even width per predictor head"),
        ({"pred_hidden_size": 0}, "pred_hidden_size must be at least 1, got 0"),
        ({"pred_num_attention_heads": 0}, "pred_num_attention_heads must be at least 1, got 0"),
        ({"predictor_type": "conv", "pred_conv_groups": 0}, "pred_conv_groups must be at least 1, got 0"),
        ({"infonce_temperature": float("nan")}, "infonce_temperature must be positive and finite, got nan"),
        ({"token_loss_weight": float("nan")}, "token_loss_weight must be at least 0 and finite, got nan"),
        ({"target_num_layers": 4}, "target_num_layers must be at least 1 and at most 3 for this encoder, got 4"),
        ({"target_num_layers": 0}, "target_num_layers must be at least 1 and at most 3 for this encoder, got 0"),
        (
            {"latent_loss_weight": 0, "token_loss_weight": 0, "sentence_loss_weight": 0, "sigreg_loss_weight": 1},
            "latent_loss_weight, token_loss_weight, document_loss_weight or sentence_loss_weight must be above 0",
        ),
        ({"document_loss_weight": -1}, "document_loss_weight must be at least 0 and finite, got -1"),
        ({"document_target_size": 0}, "document_target_size must be at least 1, got 0"),
        ({"document_hidden_size": 0}, "document_hidden_size must be at least 1, got 0"),
        ({"token_loss_weight": -0.1}, "token_loss_weight must be at least 0 and finite, got -0.1"),
        ({"sigreg_loss_weight": -1}, "sigreg_loss_weight must be at least 0 and finite, got -1"),
        ({"sentence_hidden_size": -1}, "sentence_hidden_size must be at least 0, got -1"),
        ({"matryoshka_sizes": [0]}, "matryoshka_sizes must lie between 1 and"),
        (
            {"matryoshka_sizes": [8], "sentence_hidden_size": 9},
            "set sentence_loss_weight above 0 and sentence_hidden_size to 0",
        ),
        ({"sigreg_num_slices": 0}, "sigreg_num_slices must be at least 1, got 0"),
        ({"infonce_temperature": 0.0}, "infonce_temperature must be positive and finite, got 0.0"),
        ({"target_momentum": 1}, "target_momentum must be at least 0 and below 1, got 1"),
        ({"target_encoder_type": "online"}, "online targets collapse without a regularizer"),
        ({"target_encoder_type": "online", "covariance_loss_weight": 1}, "online targets collapse"),
        (
            {"target_encoder_type": "online", "loss_type": "infonce", "sentence_loss_type": "cosine"},
            "online targets collap",
        ),
        (
            {
                "target_encoder_type": "online",
                "latent_loss_weight": 0,
                "document_loss_weight": 1,
                "document_target": "encoder",
            },
            "online targets collapse",
        ),
        ({"context_mode": "mask_token"}, "needs mask_token_id, the tokenizer's mask token"),
        (
            {"predictor_type": "conv", "pred_conv_groups": 3},
            r"pred_hidden_size \(16\) must be a multiple of pred_conv_groups \(3\)",
        ),
        ({"predictor_type": "conv", "pred_conv_kernel_size": 8}, "pred_conv_kernel_size must be odd, got 8"),
        ({"predictor_type": "mlp", "pred_position_embedding_type": "rotary"}, "an mlp predictor needs"),
        ({"predictor_type": "mlp", "pred_pooled_context": False}, "and pred_pooled_context unless context_mode is"),
        ({"pred_hidden_act": "gleu"}, "unknown pred_hidden_act 'gleu'; did you mean 'gelu'"),
        ({"pred_rope_theta": 0}, "pred_rope_theta must be positive and finite, got 0"),
        ({"pred_layer_norm_eps": -1.0}, "pred_layer_norm_eps must be positive and finite, got -1.0"),
        ({"pred_mlp_ratio": 0}, "pred_mlp_ratio must be positive and finite, got 0"),
        ({"pred_mlp_ratio": 0.01}, "pred_mlp_ratio times pred_hidden_size must be at least 1, got 0.01 times 16"),
        ({"predictor_type": "conv", "pred_conv_kernel_size": -1}, "pred_conv_kernel_size must be at least 1, got -1"),
        ({"latent_loss_weight": float("inf")}, "latent_loss_weight must be at least 0 and finite, got inf"),
        ({"token_loss_candidates": 1}, "token_loss_candidates must be at least 2, got 1"),
        ({"smooth_l1_beta": 0}, "smooth_l1_beta must be positive and finite, got 0"),
        (
            {"text_config": BERT | {"model_type": "mpnet"}, "context_mode": "drop"},
            "'mpnet' encoders; use 'attention_mask'",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_field_is_refused_in_plain_words(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        TextJepaConfig(**{"text_config": BERT, **fields})


@pytest.mark.parametrize(
    ("fields", "message", "remedy"),
    [
        (
            {"target_input": "spans", "target_normalization": "instance"},
            "needs target_input 'text'",
            {"target_input": "text"},
        ),
        (
            {
                "target_encoder_type": "online",
                "latent_loss_weight": 0,
                "sentence_loss_type": "mse",
                "variance_loss_weight": 25,
                "regularizer_level": "token",
            },
            "collapse with a regularizer of tokens: set regularizer_level to 'sentence'",
            {"regularizer_level": "sentence"},
        ),
    ],
    ids=["spans", "online"],
)
def test_an_objective_that_learns_nothing_is_opened_but_not_trained(fields, message, remedy):
    config = TextJepaConfig.from_dict(TextJepaConfig(text_config=BERT, **fields).to_dict())
    with pytest.raises(ValueError, match=message):
        config.check_trainable()
    TextJepaConfig.from_dict(config.to_dict(), **remedy).check_trainable()


@pytest.mark.parametrize(
    "fields",
    [
        {"pred_hidden_size": "16"},
        {"pred_num_hidden_layers": 2.0},
        {"pred_mlp_ratio": "4"},
        {"loss_type": "huber"},
        {"target_normalization": "group"},
        {"predictor_type": "lstm"},
        {"pooling": "max"},
        {"document_target": "words"},
        {"document_loss_type": "infonce"},
        {"target_encoder_type": "none"},
        {"context_mode": "delete"},
        {"pred_position_embedding_type": "sinus"},
        {"classifier_pooling": "max"},
        {"text_config": 3},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_value_of_the_wrong_type_is_refused(fields):
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        TextJepaConfig(**fields)


REMOVED_FIELDS = {
    "pred_context_ratio": (1.0, 0.5),
    "pred_trainable_mask_tokens": (True, False),
    "target_centering": (False, True),
    "token_loss_type": ("cross_entropy", "contrastive"),
}


@pytest.mark.parametrize("name", REMOVED_FIELDS)
def test_a_removed_field_of_an_older_file_is_dropped_at_its_default_and_refused_otherwise(name, tmp_path):
    default, other = REMOVED_FIELDS[name]
    fields = TextJepaConfig(text_config=BERT).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(fields | {name: default}))
    assert TextJepaConfig.from_pretrained(tmp_path).to_diff_dict() == TextJepaConfig(text_config=BERT).to_diff_dict()
    (tmp_path / "config.json").write_text(json.dumps(fields | {name: other}))
    with pytest.raises(ValueError, match=rf"^{name}={other!r}: this option was removed; leave it out and train"):
        TextJepaConfig.from_pretrained(tmp_path)


def test_learned_positions_are_refused_where_the_encoder_has_no_limit():
    text_config = BertConfig(**{key: value for key, value in BERT.items() if key != "model_type"})
    text_config.max_position_embeddings = -1
    with pytest.raises((ValueError, StrictDataclassError), match="need an encoder with max_position_embeddings"):
        TextJepaConfig(text_config=text_config, pred_position_embedding_type="learned")


# what the encoder decides


@pytest.mark.parametrize(
    ("model_type", "mode", "offset"),
    [
        ("bert", "drop", 0),
        ("electra", "drop", 0),
        ("modernbert", "drop", 0),
        ("roberta", "drop", 2),
        ("xlm-roberta", "drop", 2),
        ("mpnet", "attention_mask", 2),
        ("deberta-v2", "attention_mask", 0),
    ],
)
def test_context_mode_and_position_offset_are_those_of_the_architecture(model_type, mode, offset):
    pad = 1 if offset else 0
    config = TextJepaConfig(text_config=BERT | {"model_type": model_type, "pad_token_id": pad})
    assert (config.context_mode, config.position_offset) == (mode, offset)
    assert config.drop_is_exact == (mode == "drop")
    assert config.max_text_length == config.text_config.max_position_embeddings - offset


def test_position_offset_follows_the_padding_token():
    config = TextJepaConfig(text_config=BERT | {"model_type": "roberta", "pad_token_id": 5})
    assert (config.position_offset, config.max_text_length) == (6, 512 - 6)


# no dead field

MASK_TOKENS, CONVOLUTION = {"context_mode": "mask_token", "mask_token_id": 4}, {"predictor_type": "conv"}
SENTENCES, SIGREG = {"sentence_loss_weight": 1.0}, {"sigreg_loss_weight": 1.0}
DOCUMENTS = {"document_loss_weight": 1.0}
# For each field a value that is not the default, and what has to be set for some of them to mean anything.
BASES = {
    "document_hidden_size": DOCUMENTS,
    "document_loss_type": DOCUMENTS,
    "document_target": DOCUMENTS,
    "document_target_size": DOCUMENTS,
    "infonce_temperature": {"loss_type": "infonce"},
    "mask_token_id": MASK_TOKENS,
    "matryoshka_sizes": SENTENCES | {"sentence_hidden_size": 0},
    "pooling": {"pred_pooled_context": True},
    "pred_conv_groups": CONVOLUTION,
    "pred_conv_kernel_size": CONVOLUTION,
    "regularizer_level": SIGREG,
    "sentence_hidden_size": SENTENCES,
    "sentence_loss_type": SENTENCES,
    "sentence_whitening": SENTENCES,
    "sigreg_num_slices": SIGREG,
    # BERT has dropout, without which both encoders would be the same at first.
    "similarity_length": {"similarity_loss_weight": 1.0, "text_config": BERT | {"vocab_size": 200}},
    "target_encoder_type": SIGREG,
    "target_momentum": {"target_normalization": "running"},
}
CHANGES = {
    "classifier_dropout": 0.6,
    "classifier_pooling": "cls",
    "context_mode": "attention_mask",
    "covariance_loss_weight": 1.0,
    "document_hidden_size": 40,
    "document_loss_type": "smooth_l1",
    "document_loss_weight": 1.0,
    "document_target": "encoder",
    "document_target_size": 24,
    "infonce_temperature": 0.5,
    "initializer_range": 0.3,
    "latent_loss_weight": 2.0,
    "loss_type": "mse",
    "mask_token_id": 3,
    "matryoshka_sizes": [8, 16],
    "pooling": "cls",
    "pred_conv_groups": 4,
    "pred_conv_kernel_size": 3,
    "pred_dropout": 0.5,
    "pred_hidden_act": "relu",
    "pred_hidden_size": 24,
    "pred_layer_norm_eps": 1e-2,
    "pred_mlp_ratio": 2.0,
    "pred_num_attention_heads": 4,
    "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 3,
    "pred_pooled_context": True,
    "pred_position_embedding_type": "learned",
    "pred_rope_theta": 100.0,
    "predictor_type": "conv",
    "regularizer_level": "token",
    "sentence_hidden_size": 40,
    "sentence_loss_type": "mse",
    "sentence_loss_weight": 1.0,
    "sentence_whitening": False,
    "sigreg_loss_weight": 1.0,
    "sigreg_num_slices": 8,
    "similarity_length": 4,
    "similarity_loss_weight": 1.0,
    "smooth_l1_beta": 0.1,
    "target_encoder_type": "online",
    "target_input": "spans",
    "target_momentum": 0.2,
    "target_normalization": "none",
    "target_num_layers": 1,
    "text_config": BERT | {"vocab_size": 200},
    "token_loss_candidates": 60,
    "token_loss_weight": 0.5,
    "variance_loss_weight": 1.0,
}


def fingerprint(make_model, batch, fields):
    """Whatever the fields can change: weights, and what the models say in training and evaluation."""
    model = make_model(**fields)
    seen = {f"weight {name}": tensor for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    model.train()(**batch | {"input_ids": batch["input_ids"].flip(1)})  # what running statistics begin with
    output = model(**batch, output_hidden_states=True)
    seen |= {name: value for name, value in output.items() if torch.is_tensor(value)}
    seen["width of hidden states"] = torch.tensor(output.hidden_states[0].shape)
    torch.manual_seed(1)
    classifier = TextJepaForSequenceClassification(model.config)
    for mode in (True, False):
        torch.manual_seed(1)
        seen[f"logits {mode}"] = classifier.train(mode)(batch["input_ids"], batch["attention_mask"]).logits
    return seen


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def before(make_model, make_batch):
    """The fingerprint of a base, made once."""
    made = {}

    def get(base):
        key = json.dumps(base)
        if key not in made:
            made[key] = fingerprint(make_model, make_batch(), base)
        return made[key]

    return get


@pytest.mark.parametrize("base", [{}, CONVOLUTION, SIGREG], ids=["default", "conv", "sigreg"])
def test_the_fingerprint_of_a_configuration_is_reproducible(base, before, make_model, make_batch):
    assert same(before(base), fingerprint(make_model, make_batch(), base))


@pytest.mark.parametrize("name", OWN_FIELDS)
def test_every_field_changes_the_model_or_its_outputs(name, before, make_model, make_batch):
    assert name in CHANGES, f"the new field '{name}' needs an entry in CHANGES, or should not be there"
    base = BASES.get(name, {})
    assert not same(before(base), fingerprint(make_model, make_batch(), base | {name: CHANGES[name]}))


def test_the_table_of_changes_holds_no_field_that_is_gone():
    assert set(BASES) <= set(CHANGES) <= set(OWN_FIELDS)


def test_a_partial_text_config_changes_the_default_encoder():
    """Not the default of ModernBERT, which is 22 layers deep."""
    config = TextJepaConfig(text_config={"vocab_size": 500})
    assert config.text_config.to_dict() == TextJepaConfig.preset("mini", {"vocab_size": 500}).text_config.to_dict()


@pytest.mark.parametrize(("field", "near"), [({"vocabsize": 10}, "vocab_size"), ({"model_type": "bert"}, "")])
def test_a_preset_refuses_fields_that_its_encoder_does_not_have(field, near):
    with pytest.raises(ValueError, match=f"unknown field '{next(iter(field))}' of text_config.*{near}"):
        TextJepaConfig.preset("tiny", field)


# ---- among other tools ----------------------------------------------------------------------------------------------


def saved_with(config, folder, **keys):
    """Saves a configuration and writes keys into its file, as another tool would."""
    config.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | keys))


def test_keys_of_other_tools_in_a_file_survive_a_round_trip(tmp_path, caplog):
    keys = {"peft_type": "LORA", "unsloth_version": "2026.9", "rope_scaling_of_later": {"factor": 2.0}}
    saved_with(TextJepaConfig(), tmp_path / "first", **keys)
    with caplog.at_level("WARNING"):
        opened = TextJepaConfig.from_pretrained(tmp_path / "first")
    opened.save_pretrained(tmp_path / "second")
    again = TextJepaConfig.from_pretrained(tmp_path / "second")
    assert {key: getattr(again, key) for key in keys} == keys
    assert again.to_dict() == opened.to_dict()


def test_an_attribute_that_is_set_survives_a_round_trip_through_the_model(make_model, tmp_path):
    model = make_model()
    model.config.note = "of mine"
    model.save_pretrained(tmp_path)
    reopened = type(model).from_pretrained(tmp_path)
    assert reopened.config.note == "of mine"
    assert AutoConfig.from_pretrained(tmp_path).note == "of mine"


@pytest.mark.parametrize(
    "field",
    [
        {"tie_word_embeddings": False},
        {"task_specific_params": {"a": 1}},
        {"tokenizer_class": "BertTokenizer"},
        {"finetuning_task": "rte"},
        {"sep_token_id": 3},
    ],
    ids=lambda field: next(iter(field)),
)
def test_standard_fields_of_transformers_are_taken_and_kept(field, tmp_path):
    config = TextJepaConfig(**field)
    config.save_pretrained(tmp_path)
    name, value = next(iter(field.items()))
    assert getattr(TextJepaConfig.from_pretrained(tmp_path), name) == value


def test_the_sizes_of_the_encoder_are_read_and_set_through_the_configuration():
    config = TextJepaConfig.preset("tiny", text_config={"vocab_size": 99})
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config, name) == getattr(config.text_config, name)
        setattr(config, name, 7)
        assert getattr(config.text_config, name) == 7
        assert name not in config.to_dict()


def test_a_wrong_keyword_is_still_an_error_beside_a_file(tmp_path):
    saved_with(TextJepaConfig(), tmp_path, of_a_tool=1)
    with pytest.raises(ValueError, match="unknown field 'pooIing' of TextJepaConfig; did you mean 'pooling'"):
        TextJepaConfig(pooIing="mean")


@pytest.mark.parametrize("given", [None, 7])
def test_a_default_of_a_file_follows_the_objective_that_it_is_opened_with(tmp_path, given):
    """And what somebody has chosen stays."""
    TextJepaConfig(text_config=BERT, **OBJECTIVES["jepa"], sentence_hidden_size=given).save_pretrained(tmp_path)
    opened = TextJepaConfig.from_pretrained(tmp_path, **OBJECTIVES["simcse"])
    fresh = TextJepaConfig(text_config=BERT, **OBJECTIVES["simcse"])
    assert opened.sentence_hidden_size == (given or fresh.sentence_hidden_size)
    copied = config_from(str(tmp_path), {}, {}, OBJECTIVES["simcse"], {})
    assert copied.sentence_hidden_size == opened.sentence_hidden_size
    assert TextJepaConfig.from_pretrained(tmp_path).sentence_hidden_size == (given or 0)
    assert TextJepaConfig.from_pretrained(tmp_path, sentence_hidden_size=5).sentence_hidden_size == 5


@pytest.mark.parametrize("before", OBJECTIVES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_that_is_named_replaces_that_of_a_file(before, name, tmp_path):
    """Weights of its losses, predictor and mode, as if the encoder were new."""
    shape = {"text_config": BERT, "mask_token_id": 4}
    TextJepaConfig(**shape, **OBJECTIVES[before]).save_pretrained(tmp_path)
    fields = objective_fields(ModelArguments(objective=name), ObjectiveArguments(), continues=True)
    opened = TextJepaConfig.from_pretrained(tmp_path, **fields)
    fresh = TextJepaConfig(**shape, **OBJECTIVES[name])
    assert {field: getattr(opened, field) for field in OWN_FIELDS if field != "text_config"} == {
        field: getattr(fresh, field) for field in OWN_FIELDS if field != "text_config"
    }


def test_what_was_chosen_in_a_file_stays_beside_fields_that_are_given(tmp_path):
    TextJepaConfig(text_config=BERT, pred_hidden_size=8, target_num_layers=2).save_pretrained(tmp_path)
    opened = TextJepaConfig.from_pretrained(tmp_path, predictor_type="mlp", context_mode="mask_token", mask_token_id=4)
    assert (opened.pred_hidden_size, opened.target_num_layers) == (8, 2)
    assert opened.pred_position_embedding_type == "learned"


@pytest.mark.parametrize(
    ("fields", "compares"),
    [
        ({}, False),
        ({"target_normalization": "batch"}, True),
        ({"target_normalization": "batch", "latent_loss_weight": 0.0}, False),
        ({"loss_type": "infonce"}, True),
        ({"sentence_loss_weight": 1.0}, True),
        ({"sigreg_loss_weight": 1.0}, True),
    ],
)
def test_which_objectives_compare_the_texts_of_a_batch(fields, compares):
    config = TextJepaConfig(text_config=BERT, **{"sentence_loss_weight": 0.0, **fields})
    assert config.compares_texts == compares


def test_a_predictor_that_is_not_built_is_not_checked():
    """A head of the predictor would have an odd number of features."""
    shape = {"vocab_size": 200, "hidden_size": 48}
    TextJepaConfig.preset("static", shape, **OBJECTIVES["documents"], pred_hidden_size=24)
    with pytest.raises((ValueError, StrictDataclassError), match="even width per predictor head"):
        TextJepaConfig.preset("static", shape, **OBJECTIVES["jepa"], pred_hidden_size=24)
    with pytest.raises((ValueError, StrictDataclassError), match="unknown pred_hidden_act 'gleu'"):
        TextJepaConfig.preset("static", shape, **OBJECTIVES["documents"], pred_hidden_act="gleu")


def test_a_field_that_from_pretrained_replaces_is_checked(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="latent_loss_weight must be at least 0 and finite, got -1"):
        TextJepaForPreTraining.from_pretrained(tmp_path, latent_loss_weight=-1.0)
    model = TextJepaForPreTraining.from_pretrained(tmp_path, latent_loss_weight=0.5)
    assert model.config.latent_loss_weight == 0.5
