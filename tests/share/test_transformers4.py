"""Tests exports in transformers 4.57: fields of both versions, and equal states in a separate environment.

Run: python -m pytest -q tests/share/test_transformers4.py
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer, RobertaTokenizer

from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.share.export import export_encoder, export_sentence_transformer, staged


PACKAGES = ["transformers==4.57.*", "tokenizers>=0.22,<0.23", "huggingface-hub>=0.34,<1.0"]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
STATIC = {"model_type": "distilbert", "dim": 32, "n_layers": 0, "n_heads": 4, "hidden_dim": 48}


def rope(full, sliding, **fields):
    kinds = {"full_attention": full, "sliding_attention": sliding}
    return {kind: {"rope_type": "default", "rope_theta": theta, **fields} for kind, theta in kinds.items()}


def modernbert(layers=None, **fields):
    if layers is not None:
        fields["layer_types"] = [f"{kind}_attention" for kind in layers.split()]
    return {"model_type": "modernbert", "local_attention": 16, **SHAPE, **fields}


# Encoders that 4.57 supports, by architecture and by the field that has another name there.
SAME_STATES = {
    "static": STATIC,
    "distilbert": {**STATIC, "n_layers": 2},
    "modernbert": modernbert(),
    "modernbert of one theta": modernbert(rope_parameters=rope(10_000.0, 10_000.0)),
    "modernbert of full attention": modernbert("full full full full", rope_parameters=rope(10_000.0, 10_000.0)),
    "modernbert of two": modernbert("full sliding full sliding", rope_parameters=rope(5_000.0, 300.0)),
    "gemma": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "num_key_value_heads": 2,
        "sliding_window": 16,
        "use_bidirectional_attention": True,
        "rope_parameters": rope(500.0, 70.0),
        **SHAPE,
    },
    "qwen": {
        "model_type": "qwen3",
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
        **SHAPE,
    },
}
for name in ("bert", "roberta", "xlm-roberta", "electra", "mpnet", "deberta-v2", "albert", "roformer"):
    SAME_STATES[name] = {"model_type": name, "embedding_size": 32, **SHAPE}

# Encoders that 4.57 refuses because it does not support them.
REFUSED = {
    "modernbert in another order": modernbert("sliding sliding full full"),
    "modernbert with scaled positions": modernbert(
        rope_parameters={
            **rope(10_000.0, 10_000.0),
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
        }
    ),
    "nomic": {"model_type": "nomic_bert", **SHAPE},
}


def export(folder, text_config, tokenizer):
    torch.manual_seed(0)
    text_config = {**text_config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = TextJepaForPreTraining(TextJepaConfig(text_config=text_config))
    export_encoder(model.eval(), tokenizer, folder, max_length=200)


def config_of(folder, tokenizer, text_config):
    export(folder, text_config, tokenizer)
    return json.loads((folder / "config.json").read_text())


# ---- names ----------------------------------------------------------------------------------------------------------


def test_the_bases_of_rotary_positions_have_both_names(tokenizer, tmp_path):
    config = config_of(tmp_path / "modernbert", tokenizer, SAME_STATES["modernbert of two"])
    assert config["rope_parameters"] == rope(5_000.0, 300.0)
    assert (config["global_rope_theta"], config["local_rope_theta"]) == (5_000.0, 300.0)
    config = config_of(tmp_path / "gemma", tokenizer, SAME_STATES["gemma"])
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (500.0, 70.0)
    config = config_of(tmp_path / "qwen", tokenizer, SAME_STATES["qwen"])
    assert config["rope_theta"] == 77.0
    assert "rope_scaling" not in config


@pytest.mark.parametrize(
    ("layers", "period"),
    [
        (None, 3),
        ("full full full full", 1),
        ("full sliding full sliding", 2),
        ("full sliding sliding sliding", 4),
        ("sliding sliding full full", None),
        ("sliding full sliding full", None),
    ],
)
def test_layers_of_full_attention_are_every_so_many_or_an_error(tokenizer, tmp_path, layers, period):
    config = config_of(tmp_path, tokenizer, modernbert(layers))
    assert config["global_attn_every_n_layers"] == period
    model = AutoModel.from_pretrained(tmp_path)
    assert model.config.layer_types == config["layer_types"]


def test_scaled_positions_have_both_names(tokenizer, tmp_path):
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}
    config = config_of(tmp_path, tokenizer, {**SAME_STATES["qwen"], "rope_parameters": scaled})
    assert (config["rope_theta"], config["rope_scaling"]) == (50.0, {"rope_type": "linear", "factor": 2.0})
    assert AutoModel.from_pretrained(tmp_path).config.rope_parameters == scaled


def test_the_tokenizer_has_a_class_that_both_know_and_splits_as_before(tokenizer, texts, tmp_path):
    export(tmp_path, STATIC, tokenizer)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == tokenizer.model_input_names
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_added_special_tokens_are_kept_under_the_name_that_both_know(tmp_path):
    own = own_tokenizers()["added"]
    export(tmp_path, STATIC, own)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<user>"]
    assert AutoTokenizer.from_pretrained(tmp_path).extra_special_tokens == ["<user>"]


def test_a_configuration_of_version_4_is_left_alone(tmp_path):
    content = '{"model_type": "modernbert", "global_rope_theta": 5.0}'
    with staged(tmp_path / "out") as folder:
        (folder / "config.json").write_text(content)
    assert (tmp_path / "out" / "config.json").read_text() == content


def test_an_encoder_takes_all_that_the_tokenizer_beside_it_makes(tmp_path):
    """The tokenizer of BERT returns token types, which BERT accepts and DistilBERT does not."""
    own = own_tokenizers()["bert"]
    for name, text_config in {"static": STATIC, "bert": {"model_type": "bert", **SHAPE}}.items():
        export(tmp_path / name, text_config, own)
        batch = AutoTokenizer.from_pretrained(tmp_path / name)(["the lamp"], return_tensors="pt")
        assert ("token_type_ids" in batch) == (name == "bert")
        assert AutoModel.from_pretrained(tmp_path / name)(**batch).last_hidden_state.shape[1] == 4
    assert "token_type_ids" in own.model_input_names


# ---- states ---------------------------------------------------------------------------------------------------------


def own_tokenizers():
    """Tokenizers with their own class, of both versions, and one with an added special token."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "lamp", "##s", "a", "b"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz", "Ġt", "Ġth"]
    bert = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    added = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    added.add_special_tokens({"extra_special_tokens": ["<user>"]})
    merges = [("Ġ", "t"), ("Ġt", "h")]
    roberta = RobertaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges)
    return {"bert": bert, "roberta": roberta, "added": added}


READING = """
import json, sys
import numpy as np, torch, transformers
from pathlib import Path
from transformers import AutoModel, AutoTokenizer
assert transformers.__version__.startswith("4.57"), transformers.__version__
torch.set_num_threads(1)
texts = json.loads(Path("texts.json").read_text())
for folder in sorted(Path("exports").iterdir()):
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        model = AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            states = model(**batch).last_hidden_state * batch["attention_mask"][..., None]
        np.savez(folder / "found.npz", ids=batch["input_ids"].numpy(), states=states.numpy())
    except Exception as error:
        Path(folder, "error.txt").write_text(repr(error))
"""


@pytest.fixture(scope="module")
def transformers4(tmp_path_factory):
    """A folder with transformers 4.57 and its dependencies that are not in this environment."""
    folder = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if result.returncode:
        pytest.skip(f"no package index here: {result.stderr.strip().splitlines()[-1]}")
    return folder


def states_here(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    return batch["input_ids"].numpy(), (states * batch["attention_mask"][..., None]).numpy()


@pytest.mark.slow
def test_an_export_has_the_same_states_in_transformers_4_or_is_an_error_there(
    transformers4, tokenizer, texts, tmp_path
):
    texts = [*texts, " ".join(texts), "lamps [MASK] <user> the lamps"]
    exports = tmp_path / "exports"
    for name, text_config in {**SAME_STATES, **REFUSED}.items():
        export(exports / name, text_config, tokenizer)
    same = list(SAME_STATES)
    for name, own in own_tokenizers().items():
        export(exports / f"tokenizer {name}", STATIC, own)
        same.append(f"tokenizer {name}")
    export_sentence_transformer(exports / "modernbert of two", exports / "sentence-transformers")
    same.append("sentence-transformers")

    (tmp_path / "texts.json").write_text(json.dumps(texts))
    environment = {**os.environ, "PYTHONPATH": str(transformers4), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", READING], cwd=tmp_path, env=environment, check=True, timeout=600)
    wrong = {}
    for name in same:
        ids, states = states_here(exports / name, texts)
        if not (exports / name / "found.npz").is_file():
            wrong[name] = (exports / name / "error.txt").read_text()
            continue
        found = np.load(exports / name / "found.npz")
        if not np.array_equal(found["ids"], ids):
            wrong[name] = "other tokens"
        elif np.abs(found["states"] - states).max() > 1e-5:
            wrong[name] = f"states differ by {np.abs(found['states'] - states).max():.1e}"
    assert wrong == {}
    for name in REFUSED:
        assert (exports / name / "error.txt").is_file(), name
