"""Every recipe of `configs/` as a user starts it, three steps long: it trains, and what it leaves opens."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoModel, BertConfig, BertModel

import run_pretraining
from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaForPreTraining, pretraining_arguments
from text_jepa.arguments import UsageError
from text_jepa.training import TextJepaTrainingArguments, metrics_of


ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}
QUICK = ["--preset", "tiny", "--max_length", "32", "--max_steps", "3", "--warmup_steps", "1", "--logging_steps", "1"]
QUICK += ["--per_device_train_batch_size", "4", "--max_eval_samples", "8", "--eval_strategy", "no"]
QUICK += ["--save_strategy", "no", "--use_cpu"]


@pytest.fixture(scope="module")
def corpus(texts, tokenizer, tmp_path_factory):
    """Flags for a file of short texts and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    with (folder / "train.jsonl").open("w") as file:
        for number in range(24):
            pair = f"{texts[number % len(texts)]} {texts[number % 5]}"
            file.write(json.dumps({"text": pair}) + "\n")
    tokenizer.save_pretrained(folder / "tokenizer")
    return ["--train_file", str(folder / "train.jsonl"), "--tokenizer_name", str(folder / "tokenizer")]


@pytest.fixture(scope="module")
def encoder(tokenizer, tmp_path_factory):
    """Folder of a BERT to go on from."""
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_and_its_encoder_opens(name, corpus, encoder, tmp_path):
    quick = [*QUICK, *corpus, "--output_dir", str(tmp_path / "run")]
    if name == "continue-from-encoder":
        quick = [*quick[2:], "--model_name_or_path", str(encoder), "--ema_frozen_steps", "1"]
    output = run_pretraining.main([str(RECIPES[name]), *quick])

    records = metrics_of(output)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    assert all(math.isfinite(value) for record in records for value in record.values())
    terms = {f"{term}_loss" for term in ("latent", "token", "sentence", "variance", "covariance", "sigreg")}
    config = TextJepaForPreTraining.from_pretrained(output / "pretraining").config
    assert terms & records[0].keys() == {term for term in terms if getattr(config, f"{term}_weight") > 0}
    assert AutoModel.from_pretrained(output).config.model_type == (
        "bert" if name == "continue-from-encoder" else "modernbert"
    )


@pytest.mark.parametrize("name", ["sentence-vicreg", "simcse"])
def test_recipe_of_a_new_encoder_also_goes_around_a_trained_one(name, corpus, encoder, tmp_path):
    """Also where it changes the shape of a new one, if that is taken back."""
    quick = [*QUICK[2:], *corpus, "--model_name_or_path", str(encoder), "--text_config", "{}"]
    output = run_pretraining.main([str(RECIPES[name]), *quick, "--output_dir", str(tmp_path / "run")])
    assert AutoModel.from_pretrained(output).config.model_type == "bert"


def test_every_objective_and_every_recipe_of_the_plan_is_there():
    used = {yaml.safe_load(path.read_text()).get("objective", "jepa") for path in RECIPES.values()}
    assert used == set(OBJECTIVES)
    planned = "text-jepa-seed t-jepa-ul2 sentence-vicreg data2vec2-text ijepa-text lejepa-text boot-bert hybrid"
    assert {*planned.split(), "continue-from-encoder"} <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_where_it_comes_from_and_what_it_was_run_on(name):
    lines = RECIPES[name].read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"run_pretraining.py configs/{name}.yaml" in header
    assert "docs/experiments.md" in header
    assert max(map(len, lines)) <= 119


def test_each_mask_strategy_gets_a_mask_token_of_its_own(corpus, tmp_path, capsys):
    """Also where no recipe says how many; fewer are refused before anything trains."""
    strategies = ["--mask_strategies", "{short: {ratio: 0.2}, long: {ratio: 0.5}, end: {kind: suffix, ratio: 0.3}}"]
    output = run_pretraining.main([*QUICK, *corpus, *strategies, "--output_dir", str(tmp_path / "run")])
    model = TextJepaForPreTraining.from_pretrained(output / "pretraining")
    assert model.predictor.mask_tokens.shape[0] == model.config.pred_num_mask_tokens == 3
    with pytest.raises(UsageError, match="pred_num_mask_tokens 2"):
        run_pretraining.main(
            [*QUICK, *corpus, *strategies, "--pred_num_mask_tokens", "2", "--output_dir", str(tmp_path / "other")]
        )


# ---- the table of features ------------------------------------------------------------------------------------------

# Rows that five existing systems have: T1-01 to T1-29 and so on.
ROWS = {"T1": 29, "T2": 20, "T3": 12, "T4": 16, "T5": 17}


def test_the_table_of_features_has_every_row_once_and_in_order():
    found = re.findall(r"^\| (T\d-\d\d) \|", (ROOT / "docs" / "features.md").read_text(), re.M)
    assert found == [f"{system}-{number:02}" for system, last in ROWS.items() for number in range(1, last + 1)]


def test_every_test_that_the_table_of_features_names_exists():
    named = set(re.findall(r"(test_\w+\.py)::(\w+)", (ROOT / "docs" / "features.md").read_text()))
    sources = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    assert [f"{file}::{name}" for file, name in sorted(named) if f"\ndef {name}(" not in sources[file]] == []


def test_every_flag_that_the_table_of_features_names_exists():
    """Flags of the probe stand in cells that name it."""
    cells = [line.split("|")[2] for line in (ROOT / "docs" / "features.md").read_text().splitlines() if "|" in line]
    classes = (
        pretraining_arguments.ModelArguments,
        pretraining_arguments.DataArguments,
        pretraining_arguments.ObjectiveArguments,
    )
    known = {field for c in (*classes, TextJepaTrainingArguments) for field in c.__dataclass_fields__}
    flags = {flag for cell in cells if "run_probe.py" not in cell for flag in re.findall(r"--(\w+)", cell)}
    assert flags - known - {"flag"} == set()
