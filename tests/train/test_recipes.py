"""Every recipe of `configs/` as a user starts it, three steps long: it trains, and what it leaves opens."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoModel, BertConfig, BertModel

import run_pretraining
from configuration_text_jepa import LOSS_TERMS, OBJECTIVES
from text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError, parse_arguments
from text_jepa.data.word_weights import load_word_weights
from text_jepa.train import arguments
from text_jepa.train.arguments import TextJepaTrainingArguments
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}
QUICK = ["--max_length", "32", "--max_steps", "3", "--warmup_steps", "1", "--logging_steps", "1"]
QUICK += ["--per_device_train_batch_size", "4", "--max_eval_samples", "8", "--eval_strategy", "no"]
QUICK += ["--save_strategy", "no", "--use_cpu"]


def narrow(name):
    """Flags that make the encoder of a recipe narrow: its layers and all else are those of the recipe."""
    values = yaml.safe_load(RECIPES[name].read_text())
    shape = {"hidden_size": 32, "num_attention_heads": 2}
    if not is_static(name):
        shape["intermediate_size"] = 64
    return ["--text_config", json.dumps({**values.get("text_config", {}), **shape})]


def is_static(name):
    """Whether the encoder of a recipe has no layers."""
    return yaml.safe_load(RECIPES[name].read_text()).get("preset") == "static"


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


# The others train among the slow tests.
AT_ONCE = ("hybrid", "continue-from-encoder", "tiny_cpu")

AROUND_AN_ENCODER = ("continue-from-encoder", "continue-masked-lm")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in AT_ONCE else pytest.mark.slow) for n in RECIPES])
def test_recipe_trains_and_its_encoder_opens(name, corpus, encoder, tmp_path):
    quick = [*QUICK, *corpus, "--output_dir", str(tmp_path / "run")]
    if name in AROUND_AN_ENCODER:
        quick += ["--model_name_or_path", str(encoder), "--ema_frozen_steps", "1"]
    else:
        quick += narrow(name)
    output = run_pretraining.main([str(RECIPES[name]), *quick])

    records = read_metrics(output)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    assert all(math.isfinite(value) for record in records for value in record.values())
    terms = {f"{term}_loss" for term in LOSS_TERMS}
    config = TextJepaForPreTraining.from_pretrained(output / "pretraining").config
    assert terms & records[0].keys() == {term for term in terms if getattr(config, f"{term}_weight") > 0}
    exported = AutoModel.from_pretrained(output).config
    if name in AROUND_AN_ENCODER:
        assert exported.model_type == "bert"
    else:
        assert exported.model_type == ("distilbert" if is_static(name) else "modernbert")
    assert exported.hidden_size == 32
    assert (exported.num_hidden_layers == 0) == is_static(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlm", "simcse"])
def test_a_baseline_takes_the_pooling_of_the_default(name, corpus, tmp_path):
    """As the arms `mlm_idf` and `simcse_idf` of configs/compare/documents.yaml do."""
    quick = [*QUICK, *corpus, *narrow(name), "--pooling", "idf", "--merge", "false"]
    output = run_pretraining.main([str(RECIPES[name]), *quick, "--output_dir", str(tmp_path / "run")])
    weights = load_word_weights(output)
    assert weights.min() == 0
    assert weights.max() > 1


@pytest.mark.parametrize("name", ["sentence-vicreg", "simcse"])
def test_recipe_of_a_new_encoder_also_goes_around_a_trained_one(name, corpus, encoder, tmp_path):
    """Also where it changes the shape of a new one."""
    quick = [*QUICK, *corpus, "--model_name_or_path", str(encoder)]
    output = run_pretraining.main([str(RECIPES[name]), *quick, "--output_dir", str(tmp_path / "run")])
    assert AutoModel.from_pretrained(output).config.model_type == "bert"


def test_every_objective_and_every_recipe_of_the_plan_is_there():
    used = {yaml.safe_load(path.read_text())["objective"] for path in RECIPES.values()}
    assert used == set(OBJECTIVES)
    planned = (
        "token-jepa text-jepa-seed t-jepa-ul2 sentence-vicreg data2vec2-text ijepa-text lejepa-text boot-bert hybrid"
    )
    assert {*planned.split(), *AROUND_AN_ENCODER} <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_where_it_comes_from_and_what_it_was_run_on(name):
    lines = RECIPES[name].read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"run_pretraining.py configs/{name}.yaml" in header
    assert "docs/experiments.md" in header
    assert max(map(len, lines)) <= 119


def test_each_mask_strategy_gets_a_mask_token_of_its_own(corpus, tmp_path, capsys):
    """Also where no recipe says how many; fewer are refused before anything trains."""
    strategies = ["--objective", "jepa", "--mask_strategies"]
    strategies += ["{short: {ratio: 0.2}, long: {ratio: 0.5}, end: {kind: suffix, ratio: 0.3}}"]
    tiny = ["--preset", "tiny", *QUICK, *corpus, *strategies]
    output = run_pretraining.main([*tiny, "--output_dir", str(tmp_path / "run")])
    model = TextJepaForPreTraining.from_pretrained(output / "pretraining")
    assert model.predictor.mask_tokens.shape[0] == model.config.pred_num_mask_tokens == 3
    with pytest.raises(UsageError, match="pred_num_mask_tokens 2"):
        run_pretraining.main([*tiny, "--pred_num_mask_tokens", "2", "--output_dir", str(tmp_path / "other")])


# ---- corpora --------------------------------------------------------------------------------------------------------

CORPORA = {path.stem: path for path in sorted((ROOT / "configs" / "corpora").glob("*.yaml"))}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_a_file_of_its_own_that_goes_over_a_recipe(name):
    """With the command that its header gives; it says where the texts are and nothing of the method."""
    content = CORPORA[name].read_text()
    command = re.search(r"run_pretraining\.py (configs/\S+\.yaml) (configs/corpora/\S+\.yaml)$", content, re.M)
    recipe, corpus = (ROOT / path for path in command.groups())
    assert corpus == CORPORA[name]
    assert "not fetched here" in content
    assert max(map(len, content.splitlines())) <= 119
    values = yaml.safe_load(content)
    assert values.keys() <= {"dataset_name", "dataset_config_name", "text_column", "view_column", "streaming"}
    classes = (
        arguments.ModelArguments,
        arguments.DataArguments,
        arguments.ObjectiveArguments,
    )
    output = ["--output_dir", "anywhere", "--use_cpu"]
    groups = parse_arguments((*classes, TextJepaTrainingArguments), [str(recipe), str(corpus), *output], "")
    assert {key: getattr(groups[1], key) for key in values} == values
    assert groups[3].max_steps > 0  # which a stream needs


def test_the_corpora_of_the_plan_are_there():
    assert {"wiki1m_for_simcse", "askubuntu", "wikipedia", "fineweb_edu", "tinystories"} <= CORPORA.keys()


# ---- health ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_run(texts, tokenizer, tmp_path_factory):
    """Flags for 500 steps on orders of the sentences that the tests share."""
    folder = tmp_path_factory.mktemp("health")
    rows = [{"text": " ".join(three)} for three in itertools.permutations(texts, 3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer.save_pretrained(folder / "tokenizer")
    flags = ["--train_file", str(folder / "train.jsonl"), "--tokenizer_name", str(folder / "tokenizer"), "--use_cpu"]
    flags += ["--validation_split_percentage", "20", *QUICK[:2]]
    flags += ["--max_steps", "500", "--warmup_steps", "40", "--per_device_train_batch_size", "8"]
    return [*flags, "--logging_steps", "50", "--eval_strategy", "no", "--save_strategy", "no"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "token-jepa", "ijepa-text"])
def test_five_hundred_steps_of_a_recipe_are_healthy(name, long_run, tmp_path, capsys):
    """The default, the one before with three terms, and one that is latent alone: no collapse, no spike."""
    output = run_pretraining.main(
        [str(RECIPES[name]), *narrow(name), *long_run, "--output_dir", str(tmp_path / "run")]
    )
    assert read_metrics(output)[-1]["step"] == 500
    warnings = capsys.readouterr().err
    assert "WARNING: collapse" not in warnings
    assert "a spike" not in warnings


@pytest.mark.slow
def test_a_recipe_made_to_collapse_is_warned_of(long_run, tmp_path, capsys):
    """Latent alone, at a high rate, towards targets that follow at once."""
    degenerate = ["--ema_decay_start", "0", "--ema_decay_end", "0", "--learning_rate", "0.02"]
    flags = ["--preset", "tiny", *narrow("ijepa-text"), *long_run, *degenerate]
    run_pretraining.main([str(RECIPES["ijepa-text"]), *flags, "--output_dir", str(tmp_path / "run")])
    assert "WARNING: collapse at step" in capsys.readouterr().err
