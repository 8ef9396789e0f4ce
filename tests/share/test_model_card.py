"""The model card: complete, true to the run's files, understood by the Hub, and its snippets run.

Run: python -m pytest -q tests/share/test_model_card.py
"""

import importlib.metadata
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import problems_of_metadata
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.dataclasses import strict
from huggingface_hub.repocard import metadata_load
from transformers import AutoModel

import run_pretraining
import text_jepa
from configuration_text_jepa import LOSS_TERMS, OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaForPreTrainingOutput
from text_jepa.probe.bootstrap import Score
from text_jepa.probe.report import update_card
from text_jepa.share import model_card
from text_jepa.share.export import export_encoder
from text_jepa.share.model_card import describe_idea, describe_objective, renamed_card, write_model_card
from text_jepa.train.run_log import read_metrics


TEMPLATE = Path(model_card.__file__).with_name("model_card_template.md").read_text()
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)*(?:e[-+]?\d+)?")
CARD_INFO = {
    "data": "notes.txt",
    "start": "random weights",
    "command": None,
    "license": "unknown",
    "max_length": 32,
    "sizes": "57 training texts, 3 held out",
    "masks": "1 per text.",
    "steps": "3",
    "exported_step": 3,
    "batch_size": 4,
    "hardware": "2 CPU cores",
    "versions": "Python 3",
    "settings": {"seed": "0"},
}


# Of each line of `jepa` one text, of each of the default objective as many windows.
LINES, WINDOWS_OF_A_LINE = {"jepa": 60, "documents": 80}, 15


@pytest.fixture(scope="module", params=LINES)
def run(request, tmp_path_factory):
    """What a run of three steps has left, with two evaluations; of hidden tokens, and of the default objective."""
    folder = tmp_path_factory.mktemp("cards")
    if request.param == "jepa":
        lines = [f"The keeper of lighthouse number {i} climbed down to the harbour.\n" for i in range(60)]
        options = ["--objective", "jepa", "--preset", "tiny", "--text_config"]
        options += ['{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}']
    else:
        # Equally long, and long enough for a verdict.
        words = [f"lamp{i % 35}" for i in range(140)]
        lines = [f"{' '.join(np.random.default_rng(i).permutation(words))}\n" for i in range(80)]
        options = ["--validation_split_percentage", "50", "--max_document_length", "999", "--text_config"]
        options += ['{"hidden_size": 16, "num_attention_heads": 2}']
    assert len(lines) == LINES[request.param]
    (folder / "train.txt").write_text("".join(lines))
    usual = "--vocab_size 200 --max_length 16 --max_steps 3 --logging_steps 1 --save_steps 2 --use_cpu"
    usual += " --eval_strategy steps --eval_steps 2 --learning_rate 3e-3 --predictor_learning_rate 7e-3 --seed 5"
    usual += f" --per_device_train_batch_size 4 --train_file {folder}/train.txt --output_dir {folder}/run"
    return run_pretraining.main([*options, *usual.split()])


def predicts_documents(run):
    return json.loads((run / "pretraining" / "config.json").read_text())["document_loss_weight"] > 0


def card_of(folder):
    return (folder / "README.md").read_text()


def body_of(folder):
    """The text without metadata and code."""
    return re.sub(r"```.*?```", "", ModelCard(card_of(folder)).text, flags=re.DOTALL)


def blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


# ---- true and complete ----------------------------------------------------------------------------------------------


def known_numbers(run):
    """How every number of the run's files may stand in a text: its log, arguments, configuration and environment."""
    values = [value for record in read_metrics(run) for value in record.values()]
    values += [record["train_seconds"] / 60 for record in read_metrics(run) if "train_seconds" in record]
    arguments = yaml.safe_load((run / "arguments.yaml").read_text())
    values += list(arguments.values())
    config = json.loads((run / "pretraining" / "config.json").read_text())
    values += list(config.values()) + list(config["text_config"].values())
    values += [sum(p.numel() for p in AutoModel.from_pretrained(run).parameters())]
    verdict = json.loads((run / "verdict.json").read_text())
    values += [verdict["verdict"], *verdict["mean_reciprocal_rank_by_share"].items()]
    values += list(verdict["mean_reciprocal_rank_by_share"].values())
    # Texts that train, and held out.
    if predicts_documents(run):
        half = LINES["documents"] * 50 // 100
        values += [half, half * WINDOWS_OF_A_LINE]
    else:
        values += [LINES["jepa"] * 95 // 100, LINES["jepa"] * 5 // 100]
    values += [os.cpu_count(), platform.python_version(), text_jepa.__version__]
    values += [importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")]
    forms = set()
    for value in values:
        if isinstance(value, (int, float)):
            value = abs(value)  # the sign is not a part of what is found
            forms |= {f"{value:.4g}", f"{value:g}", f"{value:.1f}", f"{value:,}", f"{100 * value:g}"}
        else:
            forms |= set(NUMBER.findall(str(value)))
    return forms | set(NUMBER.findall(TEMPLATE))


def test_every_number_of_the_card_is_in_a_file_of_the_run(run):
    found, known = NUMBER.findall(body_of(run)), known_numbers(run)
    assert len(found) > 30
    # What is left belongs to the words: x86_64, smooth_l1, the default decay, and what names a figure.
    words = {"1", "10", "100", "1,024"}
    assert [number for number in found if number.rstrip(",") not in known | words] == []


def test_the_last_figures_stand_in_the_card(run):
    last = {name: value for record in read_metrics(run) for name, value in record.items()}
    titles = {"eval_loss": "held-out loss", "spread": "spread of tok"}
    if predicts_documents(run):
        titles["eval_document_loss"] = "document loss"
    else:
        titles["relative_loss"] = "relative loss"
    for name, title in titles.items():
        assert re.search(rf"^\| {title}.* \| {re.escape(f'{last[name]:.4g}')} \|$", card_of(run), re.MULTILINE)
    assert f"{last['tokens_seen']:,} tokens in {last['train_seconds'] / 60:.1f} minutes" in card_of(run)


def test_the_card_is_complete_without_editing(run):
    card = card_of(run)
    for part in ("How to use it", "Training", "What this run measured", "Limits", "Licence and citation"):
        assert f"\n## {part}\n" in card
    expected = ["train.txt", "random weights", "| learning rate | 0.003, cosine", "0.007"]
    if predicts_documents(run):
        found = json.loads((run / "verdict.json").read_text())
        best = max(found["mean_reciprocal_rank_by_share"].values())
        expected += ["nothing hidden. The view of a text is the rest of its document", "0 layers × 16"]
        expected += ["vectors of 384 features of the rest of its document", "Exported: the context encoder"]
        expected += ["## Is it better on these texts?", "On 20 passages of 20 documents", found["verdict"]]
        expected += [f"The exported weights are {found['share']:g} of the way", f"| {found['share']:g} | {best:.1f} |"]
        expected += ["accelerate launch run_pretraining.py --validation_split_percentage"]
        expected += ["40 training documents in 600 windows, 40 held out in 600 windows."]
    else:
        expected += ["spans of geometric length", "Exported: the target encoder", "57 training texts, 3 held out."]
        expected += ["accelerate launch run_pretraining.py --objective jepa --preset tiny"]
    for said in expected:
        assert said in card
    assert "![curves of the run](curves.png)" in card
    assert (run / "curves.png").stat().st_size > 10_000
    for unfinished in ("{{", "}}", "{%", "None", "More information needed", "TODO", "Model ID", "\n\n\n"):
        assert unfinished not in card
    assert "knows no language but theirs" in card


def test_figures_of_a_kept_step_are_those_of_that_step(make_model, tmp_path):
    model, records = make_model(), [{"step": 1, "eval_loss": 0.5, "tokens_seen": 9}, {"step": 3, "eval_loss": 0.25}]
    write_model_card(tmp_path, model, records, {**CARD_INFO, "exported_step": 1}, "target")
    assert "| held-out loss | 0.5 |" in card_of(tmp_path)
    assert "0.25" not in card_of(tmp_path)


def test_figures_of_the_online_probe_are_shown(make_model, tmp_path):
    write_model_card(
        tmp_path,
        make_model(),
        [{"step": 1, "eval_probe_target_linear": 71.5}],
        CARD_INFO,
        "target",
    )
    assert "| online probe: target linear | 71.5 |" in card_of(tmp_path)


def test_only_what_predicts_representations_is_called_a_jepa(make_model, tmp_path):
    for objective, fields in OBJECTIVES.items():
        config = TextJepaConfig(**{**fields, "mask_token_id": 4})
        words = describe_objective(config)
        assert ("JEPA" in describe_idea(config)) == (objective in ("documents", "jepa", "data2vec"))
        assert ("of hidden text" in describe_idea(config)) == ("predictor and the mean" in words)
        assert ("window of a document" in describe_idea(config)) == ("of the rest of its document" in words)
    write_model_card(
        tmp_path, make_model(latent_loss_weight=0.0), [{"step": 1, "eval_loss": 2.0}], CARD_INFO, "context"
    )
    assert "by predicting hidden words" in card_of(tmp_path)
    assert "A relative loss of 1" not in card_of(tmp_path)
    assert "the context encoder" in card_of(tmp_path)


# ---- a loss of one's own --------------------------------------------------------------------------------------------


@strict
class OwnConfig(TextJepaConfig):
    loss_terms = (*LOSS_TERMS, "symmetry")
    symmetry_loss_weight: float = 0.5


@dataclass
class OwnOutput(TextJepaForPreTrainingOutput):
    symmetry_loss: torch.FloatTensor | None = None


class OwnModel(TextJepaForPreTraining):
    config_class = OwnConfig
    output_class = OwnOutput

    def compute_losses(self, context, tokens, *args):
        losses = super().compute_losses(context, tokens, *args)
        return losses | {"symmetry": tokens.features.mean().square()}


def test_a_term_that_a_subclass_adds_is_in_card_and_curves(make_model, make_batch, tmp_path, drawn):
    """The model's outputs, the card and the curves know it by its name in `loss_terms` alone."""
    shape = make_model().config.text_config.to_dict()
    model = OwnModel(OwnConfig(text_config=shape, sentence_loss_weight=0.0)).eval()
    outputs = model(**make_batch())
    losses = {name: value.item() for name, value in outputs.items() if name.endswith("_loss")}
    assert "symmetry_loss" in losses
    held_out = {f"eval_{name}": value for name, value in losses.items()}
    write_model_card(
        tmp_path,
        model,
        [{"step": 3, **losses, **held_out}],
        CARD_INFO,
        "target",
    )
    assert "plus 0.5 times the symmetry loss." in card_of(tmp_path)
    assert f"| symmetry loss | {losses['symmetry_loss']:.4g} |" in card_of(tmp_path)
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    curve, circle = panels["symmetry loss"].lines
    assert list(curve.get_ydata()) == list(circle.get_ydata()) == [losses["symmetry_loss"]]


def test_every_term_of_the_loss_is_in_card_and_curves(make_model, tmp_path, drawn):
    held_out = {f"eval_{term}_loss": number / 8 for number, term in enumerate(LOSS_TERMS, 1)}
    write_model_card(
        tmp_path,
        make_model(),
        [{"step": 3, **held_out}],
        CARD_INFO,
        "target",
    )
    card = card_of(tmp_path)
    for value in held_out.values():
        assert f" | {value:.4g} |" in card
    circles = [line for axes in drawn[0].axes for line in axes.lines if line.get_marker() == "o"]
    shown = {value for line in circles for value in line.get_ydata()}
    assert set(held_out.values()) <= shown
    weights = {f"{term}_loss_weight": 1.0 for term in LOSS_TERMS}
    objective = describe_objective(TextJepaConfig(mask_token_id=4, **weights))
    assert objective.count("1 times the ") == len(LOSS_TERMS)


# ---- snippets -------------------------------------------------------------------------------------------------------


def test_the_snippets_of_an_encoder_with_weights_of_words_agree(make_model, tokenizer, tmp_path):
    pytest.importorskip("sentence_transformers")
    model = make_model(sentence_loss_weight=1.0, pooling="idf")
    model.set_word_weights(torch.rand(len(model.word_weights)))
    export_encoder(model, tokenizer, tmp_path, 32)
    write_model_card(
        tmp_path,
        model,
        [{"step": 3, "eval_loss": 0.5}],
        CARD_INFO,
        "target",
    )
    by_library, by_hand, by_pipeline = {}, {}, {}
    for block, names in zip(blocks(card_of(tmp_path)), (by_library, by_hand, by_pipeline), strict=True):
        exec(block, names)
    np.testing.assert_allclose(by_hand["vectors"], by_library["vectors"], atol=1e-5)
    plain = torch.stack([states[0].mean(0) for states in by_pipeline["states"]])
    assert (plain - by_hand["vectors"]).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_three_snippets_run_and_agree(make_model, tokenizer, tmp_path, pooling):
    pytest.importorskip("sentence_transformers")
    model = make_model(sentence_loss_weight=1.0, pooling=pooling)
    export_encoder(model, tokenizer, tmp_path, 32)
    write_model_card(
        tmp_path,
        model,
        [{"step": 3, "eval_loss": 0.5}],
        CARD_INFO,
        "target",
    )
    found = []
    for block in blocks(card_of(tmp_path)):
        names = {}
        exec(block, names)
        found.append(np.stack([torch.as_tensor(vector).numpy() for vector in names["vectors"]]))
    assert len(found) == 3
    for vectors in found[1:]:
        np.testing.assert_allclose(vectors, found[0], atol=1e-5)
    batch = tokenizer(["a text", "another text"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.encoder_of_targets(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    expected = (
        states[:, 0]
        if pooling == "cls"
        else torch.stack([s[m > 0].mean(0) for s, m in zip(states, batch["attention_mask"], strict=True)])
    )
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


def test_the_snippets_of_the_complete_model_run(run):
    first, second = blocks(card_of(run / "pretraining"))
    names = {}
    exec(first, names)
    assert names["states"].shape[-1] == 16
    exec(second, names)
    assert isinstance(names["model"], TextJepaForPreTraining)


def test_under_another_name_only_title_metadata_and_snippets_differ(run):
    card, renamed = card_of(run), renamed_card(card_of(run), "you/harbour")
    assert renamed.count('model_id = "you/harbour"') == 3
    assert ModelCard(renamed).data.model_name == "harbour"
    old, new = card.splitlines(), renamed.splitlines()
    changed = [b for a, b in zip(old, new, strict=True) if a != b]
    assert changed == ["- name: harbour", "# harbour", *['model_id = "you/harbour"'] * 3]


# ---- metadata -------------------------------------------------------------------------------------------------------


def test_the_metadata_passes_the_hubs_rules_and_comes_back_as_it_was(run):
    for folder in (run, run / "pretraining"):
        assert problems_of_metadata(card_of(folder)) == []
        data = ModelCard(card_of(folder)).data
        assert metadata_load(folder / "README.md") == data.to_dict()
        again = ModelCardData(**{**data.to_dict(), "model_name": data.model_name, "eval_results": data.eval_results})
        assert again.to_yaml() == data.to_yaml()
        assert data.library_name == "transformers"
        assert data.license == "unknown"
    assert "No licence was stated" in card_of(run)


def test_the_model_index_holds_the_figures_of_the_table(run):
    table = dict(re.findall(r"^\| (.+) \| ([-\d.e]+) \|$", card_of(run).split("## What this run")[1], re.MULTILINE))
    results = ModelCard(card_of(run)).data.eval_results
    assert all(isinstance(result, EvalResult) for result in results)
    assert {result.metric_name: result.metric_value for result in results} == {k: float(v) for k, v in table.items()}
    assert {result.dataset_name for result in results} == {"held-out texts of train.txt"}


def test_a_figure_that_is_not_finite_is_shown_and_not_indexed(make_model, tmp_path):
    records = [{"step": 1, "eval_loss": float("nan"), "spread": 0.5}]
    write_model_card(tmp_path, make_model(), records, CARD_INFO, "target")
    assert "| held-out loss | nan |" in card_of(tmp_path)
    assert [r.metric_type for r in ModelCard(card_of(tmp_path)).data.eval_results] == ["spread"]


def test_start_and_data_of_the_hub_are_metadata(make_model, tmp_path):
    card_info = {**CARD_INFO, "base_model": "org/bert", "datasets": ["org/news"], "license": "mit"}
    write_model_card(
        tmp_path,
        make_model(),
        [{"step": 1, "eval_loss": 1.0}],
        card_info,
        "target",
    )
    data = metadata_load(tmp_path / "README.md")
    assert (data["base_model"], data["datasets"], data["license"]) == ("org/bert", ["org/news"], "mit")
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "org/news"
    assert "The weights: mit." in card_of(tmp_path)


def test_a_later_probe_joins_the_figures_of_the_run(make_model, tmp_path):
    write_model_card(
        tmp_path,
        make_model(),
        [{"step": 1, "eval_loss": 1.0}],
        CARD_INFO,
        "target",
    )
    score = Score(
        "rte",
        "linear",
        "accuracy",
        "here",
        55.0,
        50.0,
        60.0,
        100,
        1,
        None,
        None,
        None,
        None,
    )
    update_card(tmp_path, [score], "here", {"rte": "validation"}, "python run_probe.py")
    card = card_of(tmp_path)
    assert card.index("## What this run measured") < card.index("## What a probe measured") < card.index("## Limits")
    assert [r.metric_type for r in ModelCard(card).data.eval_results] == ["eval_loss", "accuracy"]
    assert problems_of_metadata(card) == []
