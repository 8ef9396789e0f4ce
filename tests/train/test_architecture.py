"""Which architectures can be trained: hidden tokens stay hidden, later ones are seen; all others are one line."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

import run_pretraining
from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.cli import UsageError
from text_jepa.train import architecture
from text_jepa.train.architecture import check_architecture


SHAPE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
AFTER_PADDING = SHAPE | {"pad_token_id": 1}
SEQ2SEQ = {
    "vocab_size": 200,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
T5 = {"vocab_size": 200, "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64, "d_kv": 16}
XLM = {"vocab_size": 200, "emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 66, "pad_index": 0}
MODERNBERT = SHAPE | {"cls_token_id": None, "sep_token_id": None}

DROP = "exact by drop"
MASK = "exact by mask"
SEES_HIDDEN = "depend on hidden ones"
CAUSAL = "no state depends on a later token"
DECODER = "an encoder-decoder model"
RAISES = "not an encoder that can be trained here"

# Configuration and outcome by architecture; the table of docs/from-an-existing-encoder.md.
ARCHITECTURES = {
    "bert": (SHAPE, DROP),
    "roberta": (AFTER_PADDING, DROP),
    "xlm-roberta": (AFTER_PADDING, DROP),
    "camembert": (AFTER_PADDING, DROP),
    "data2vec-text": (AFTER_PADDING, DROP),
    "roberta-prelayernorm": (AFTER_PADDING, DROP),
    "distilbert": (
        {"vocab_size": 200, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 66},
        DROP,
    ),
    "electra": (SHAPE, DROP),
    "albert": (SHAPE, DROP),
    "ernie": (SHAPE, DROP),
    "modernbert": (MODERNBERT, DROP),
    "mpnet": (AFTER_PADDING, MASK),
    "deberta": (SHAPE, MASK),
    "deberta-v2": (SHAPE, MASK),
    "eurobert": (SHAPE, MASK),
    "nomic_bert": (SHAPE, MASK),
    "megatron-bert": (SHAPE, MASK),
    "rembert": (SHAPE, MASK),
    "roformer": (SHAPE, MASK),
    "esm": (SHAPE, MASK),
    "splinter": (SHAPE, MASK),
    "luke": (SHAPE | {"entity_vocab_size": 10, "entity_emb_size": 8}, MASK),
    "big_bird": (SHAPE, MASK),
    "longformer": (AFTER_PADDING | {"attention_window": 4}, MASK),
    "xlnet": ({"vocab_size": 200, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}, MASK),
    "xlm": (XLM, MASK),
    "flaubert": (XLM, MASK),
    "fnet": (SHAPE, SEES_HIDDEN),
    "mobilebert": (
        SHAPE | {"embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 1},
        SEES_HIDDEN,
    ),
    "convbert": (SHAPE, SEES_HIDDEN),
    "nystromformer": (SHAPE, SEES_HIDDEN),
    "yoso": (SHAPE, SEES_HIDDEN),
    "rwkv": (SHAPE, SEES_HIDDEN),
    "gpt2": ({"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 66}, CAUSAL),
    "llama": (SHAPE, CAUSAL),
    "qwen3": (SHAPE | {"head_dim": 16, "num_key_value_heads": 2}, CAUSAL),
    "opt": (SHAPE, CAUSAL),
    "bloom": ({"vocab_size": 200, "hidden_size": 32, "n_layer": 2, "n_head": 2}, CAUSAL),
    "modernbert-decoder": ({**SHAPE, "bos_token_id": 1, "eos_token_id": 2}, CAUSAL),
    "mamba": (SHAPE, CAUSAL),
    "t5": (T5, DECODER),
    "mt5": (T5, DECODER),
    "bart": (SEQ2SEQ, DECODER),
    "pegasus": (SEQ2SEQ, DECODER),
    "canine": (SHAPE, RAISES),
    "ibert": (AFTER_PADDING, RAISES),
    "perceiver": (
        SHAPE | {"d_latents": 32, "num_latents": 4, "num_self_attends_per_block": 1, "num_self_attention_heads": 2},
        RAISES,
    ),
    "funnel": (
        {"vocab_size": 200, "block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
        RAISES,
    ),
    "xmod": (AFTER_PADDING, RAISES),
    "reformer": (  # which raises in training alone
        SHAPE
        | {"attn_layers": ["local"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "is_decoder": False},
        RAISES,
    ),
    "lxmert": (SHAPE, RAISES),
}
FAST = ("bert", "modernbert", "deberta-v2", "fnet", "mobilebert", "gpt2", "llama", "t5", "ibert", "funnel")


def build(name):
    fields, _ = ARCHITECTURES[name]
    config = AutoConfig.for_model(name, **fields)
    return TextJepaForPreTraining(TextJepaConfig(text_config=config.to_dict()))


def outcome_of(name):
    """What is said of an architecture: how it is exact, or the line that refuses it."""
    try:
        with architecture.refused(name):
            model = build(name)
            check_architecture(model)
    except UsageError as error:
        return str(error)
    return DROP if model.config.context_mode == "drop" else MASK


@pytest.mark.parametrize("name", FAST)
def test_architecture_is_exact_or_refused_in_one_line(name):
    line = outcome_of(name)
    assert ARCHITECTURES[name][1] in line
    if ARCHITECTURES[name][1] not in (DROP, MASK):
        assert line.startswith(f"{name}: ")
        assert "docs/from-an-existing-encoder.md" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in FAST])
def test_every_architecture_of_the_table_is_exact_or_refused(name):
    assert ARCHITECTURES[name][1] in outcome_of(name)


def test_documentation_has_the_table():
    page = (Path(__file__).parents[2] / "docs/from-an-existing-encoder.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.+?) \| (`.+`) \|$", page, re.MULTILINE))
    documented = {title: set(re.findall(r"`([^`]+)`", names)) for title, names in rows.items()}
    for outcome in (DROP, MASK, SEES_HIDDEN, CAUSAL, DECODER, RAISES):
        names = {name for name, (_, found) in ARCHITECTURES.items() if found == outcome}
        titles = [title for title, listed in documented.items() if listed == names]
        assert titles, outcome


def test_check_changes_neither_weights_nor_mode_nor_random_state(make_model):
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_architecture(model)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert not model.target_encoder.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_encoder_without_layers_and_one_with_tiny_weights_are_no_decoders(make_model):
    bert = SHAPE | {"model_type": "bert"}
    check_architecture(make_model(bert | {"initializer_range": 1e-4}))
    check_architecture(TextJepaForPreTraining(TextJepaConfig.preset("static", {"vocab_size": 200})))


@pytest.mark.parametrize("mode", ["attention_mask", "mask_token"])
def test_every_mode_of_an_encoder_passes(make_model, mode):
    check_architecture(make_model(context_mode=mode, mask_token_id=4))


def test_weights_that_are_not_finite_are_named(make_model):
    model = make_model()
    with torch.no_grad():
        next(model.model.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(UsageError, match="weights are corrupted"):
        check_architecture(model)


@pytest.mark.parametrize(
    ("name", "init"),
    [("gpt2", "pretrained"), ("fnet", "from_config"), ("t5", "pretrained"), ("ibert", "pretrained")],
)
def test_run_around_an_architecture_that_does_not_fit_leaves_nothing(tokenizer, tmp_path, name, init):
    folder = tmp_path / "encoder"
    fields, _ = ARCHITECTURES[name]
    AutoModel.from_config(AutoConfig.for_model(name, **(fields | {"vocab_size": 400}))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "texts.txt").write_text("".join(f"The keeper of light {i} climbed down.\n" for i in range(60)))
    argv = f"--model_name_or_path {folder} --init {init} --train_file {tmp_path}/texts.txt --max_length 16"
    argv += f" --max_steps 1 --use_cpu --cache_dir {tmp_path}/cache --output_dir {tmp_path}/run"
    with pytest.raises(UsageError, match=name) as refused:
        run_pretraining.main(argv.split())
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
