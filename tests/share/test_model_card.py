"""Tests that the model card is complete, agrees with the files of the run, is valid for the Hub, and has working code.

Run: python -m pytest -q tests/share/test_model_card.py
"""

import getpass
import importlib.metadata
import json
import os
import platform
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hub_server import problems_of_metadata
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.dataclasses import strict
from huggingface_hub.repocard import metadata_load
from transformers import AutoModel

import run_pretraining
import text_jepa
from configuration_text_jepa import LOSS_TERMS, OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaForPreTrainingOutput
from text_jepa.encoders.sentence_head import SentenceHead
from text_jepa.probe.bootstrap import Score
from text_jepa.probe.report import update_card
from text_jepa.share import model_card
from text_jepa.share.export import export_encoder
from text_jepa.share.hub import _read_card, files_to_publish
from text_jepa.share.model_card import (
    _held_out_batches,
    _titles_of,
    describe_collapse_of_run,
    describe_idea,
    describe_objective,
    describe_sizes,
    note_change,
    public_command,
    public_name,
    read_card_info,
    renamed_card,
    without_places,
    write_model_card,
)
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).parents[2]
TEMPLATE = Path(model_card.__file__).with_name("model_card_template.md").read_text()
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)*(?:e[-+]?\d+)?")
# Numbers in words: x86_64, smooth_l1, the default decay, and names of measures.
WORDS = {"1", "10", "100", "1,024"}
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


# Number of lines of each objective: one text per line for `jepa`, this many windows per line by default.
LINES, WINDOWS_OF_A_LINE = {"jepa": 60, "documents": 80}, 15


def train(folder, objective, steps, *options):
    """Trains an encoder of width 16 with an evaluation in the middle of the run, and returns the folder."""
    if objective == "jepa":
        lines = [f"The keeper of lighthouse number {i} climbed down to the harbour.\n" for i in range(60)]
        own = ["--objective", "jepa", "--preset", "tiny", "--text_config"]
        own += ['{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}']
    else:
        # Documents of equal length, long enough for a comparison.
        words = [f"lamp{i % 35}" for i in range(140)]
        lines = [f"{' '.join(np.random.default_rng(i).permutation(words))}\n" for i in range(80)]
        own = ["--validation_split_percentage", "50", "--max_document_length", "999", "--text_config"]
        own += ['{"hidden_size": 16, "num_attention_heads": 2}']
    assert len(lines) == LINES[objective]
    (folder / "train.txt").write_text("".join(lines))
    usual = f"--vocab_size 200 --max_length 16 --max_steps {steps} --save_steps {steps} --use_cpu"
    usual += f" --eval_strategy steps --eval_steps {max(2, steps // 2)} --learning_rate 3e-3 --seed 5"
    usual += " --predictor_learning_rate 7e-3 --per_device_train_batch_size 4"
    usual += f" --train_file {folder}/train.txt --output_dir {folder}/run"
    return run_pretraining.main([*own, *usual.split(), *options])


@pytest.fixture(scope="module", params=LINES)
def run(request, tmp_path_factory):
    """Folder of a run of seven steps, not a round number, with hidden tokens or the default objective."""
    return train(tmp_path_factory.mktemp("cards"), request.param, 7, "--logging_steps", "100")


def predicts_documents(run):
    return json.loads((run / "pretraining" / "config.json").read_text())["document_loss_weight"] > 0


def card_of(folder):
    return (folder / "README.md").read_text()


def body_of(folder):
    """The text of a card without metadata and code."""
    return re.sub(r"```.*?```", "", ModelCard(card_of(folder)).text, flags=re.DOTALL)


def blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


# ---- true and complete ----------------------------------------------------------------------------------------------


def known_numbers(run):
    """All formats of the numbers in the files of a run: log, arguments, configuration and environment."""
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
    # Numbers of training and held-out texts.
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
            value = abs(value)  # numbers are found without their sign
            forms |= {f"{value:.4g}", f"{value:g}", f"{value:.1f}", f"{value:,}", f"{100 * value:g}"}
        else:
            forms |= set(NUMBER.findall(str(value)))
    return forms | set(NUMBER.findall(TEMPLATE))


def unknown_numbers(run):
    """The numbers of a card that are in no file of the run."""
    found = NUMBER.findall(body_of(run))
    known = known_numbers(run) | WORDS
    assert len(found) > 30
    return [number for number in found if number.rstrip(",") not in known]


def test_every_number_of_the_card_is_in_a_file_of_the_run(run):
    assert unknown_numbers(run) == []


def test_the_last_figures_stand_in_the_card(run):
    last = {name: value for record in read_metrics(run) for name, value in record.items()}
    titles = {"eval_loss": "held-out loss", "spread": "spread of tok"}
    if predicts_documents(run):
        titles["eval_document_loss"] = "document loss"
    else:
        titles["relative_loss"] = "relative loss"
    for name, title in titles.items():
        row = rf"^\| {title}.* \| {re.escape(f'{last[name]:.4g}')} \| 7 \|$"
        assert re.search(row, card_of(run), re.MULTILINE)
    assert f"{last['tokens_seen']:,} tokens in {last['train_seconds']:.1f} seconds on" in card_of(run)


def test_warm_up_is_a_number_of_steps_or_a_share_of_them(run):
    arguments = yaml.safe_load((run / "arguments.yaml").read_text())
    assert 0 < arguments["warmup_steps"] < 1
    assert f", warm-up {100 * arguments['warmup_steps']:g} % of the steps |" in card_of(run)


def check_statements(run, steps):
    """Checks that every figure of a card is in the log at the given step, which is the last one."""
    records = read_metrics(run)
    card = card_of(run)
    rows = re.findall(r"^\| (.+) \| (\S+) \| (\d+) \|$", card, re.MULTILINE)
    names = {title: name for name, title in _titles_of({name for record in records for name in record}).items()}
    assert {title for title, _, _ in rows} == set(names)
    for title, value, step in rows:
        logged = [record[names[title]] for record in records if record["step"] == int(step) and names[title] in record]
        assert [f"{figure:.4g}" for figure in logged] == [value]
        assert int(step) == steps
    (said,) = re.findall(r"^- ([\d,]+) steps of 4 texts, ([\d,]+) tokens in ([\d,.]+) (\w+) on", card, re.MULTILINE)
    last = [record for record in records if "tokens_seen" in record][-1]
    assert (last["step"], said[0]) == (steps, f"{steps:,}")
    assert said[1] == f"{last['tokens_seen']:,}"
    scale = {"seconds": 1, "minutes": 60}[said[3]]
    assert said[2] == f"{last['train_seconds'] / scale:,.1f}"
    assert last["tokens_seen"] > 20 * steps
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["verdict"] in card
    for tried, value in verdict["mean_reciprocal_rank_by_share"].items():
        assert f"| {tried} | {value:.1f} |" in card


@pytest.mark.parametrize("run", ["documents"], indirect=True)
def test_every_statement_of_the_card_of_a_short_run_is_in_its_files(run):
    check_statements(run, 7)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [60, 1200])
def test_every_statement_of_the_card_of_a_longer_run_is_in_its_files(tmp_path, steps):
    run = train(tmp_path, "documents", steps)
    check_statements(run, steps)
    assert unknown_numbers(run) == []


def test_what_was_counted_until_an_earlier_step_says_so(make_model, tmp_path):
    records = [{"step": 1, "tokens_seen": 1018, "train_seconds": 0.25}, {"step": 60, "eval_loss": 0.5}]
    write_model_card(tmp_path, make_model(), records, {**CARD_INFO, "steps": "60", "exported_step": 60}, "target")
    assert "60 steps of 4 texts, 1,018 tokens in 0.2 seconds until step 1 on" in card_of(tmp_path)
    assert "| held-out loss | 0.5 | 60 |" in card_of(tmp_path)


def test_a_collapse_stands_on_top_of_the_card_and_in_its_tags(make_model, tmp_path):
    collapse = {"step": 3, "signs": ["tokens use 2.1 of 32 dimensions"], "lasts": True}
    records = [{"step": 3, "eval_loss": 0.5}]
    write_model_card(tmp_path, make_model(), records, {**CARD_INFO, "collapse": collapse}, "target")
    lines = [line for line in ModelCard(card_of(tmp_path)).text.splitlines() if line]
    assert lines[0].startswith("# ")
    assert lines[1].startswith("> **Collapsed.** The representations collapsed at step 3 of this run: tokens use 2.1")
    assert "collapsed" in ModelCard(card_of(tmp_path)).data.tags
    early = {**CARD_INFO, "collapse": collapse, "exported_step": 1}
    assert "from step 1, before the collapse" in describe_collapse_of_run(early)
    healed = {**CARD_INFO, "collapse": {**collapse, "lasts": False}}
    assert "no longer showed signs of collapse" in describe_collapse_of_run(healed)
    assert describe_collapse_of_run(CARD_INFO) is None


@pytest.mark.parametrize(
    ("fields", "differs"),
    [
        ({"token_loss_candidates": 100}, True),
        ({"token_loss_candidates": 1024}, False),
        ({"token_loss_weight": 0}, False),
    ],
)
def test_a_held_out_loss_that_is_not_to_be_compared_says_why(make_model, tmp_path, fields, differs):
    model = make_model(**{"token_loss_weight": 0.1, **fields})
    write_model_card(tmp_path, model, [{"step": 3, "eval_loss": 0.5}], CARD_INFO, "target")
    said = "over all 200 tokens of the vocabulary; in training it is computed over 100 candidates"
    assert (said in " ".join(card_of(tmp_path).split())) == differs


@pytest.mark.parametrize(
    ("fields", "texts", "said"),
    [
        ({"sentence_loss_weight": 1.0}, 8, "see 8 texts here and 32 in training, so neither these terms"),
        (
            {"sentence_loss_weight": 1.0},
            50,
            "see 32 of them, as in training, except for the last 18 of 50 held-out texts",
        ),
        ({"sentence_loss_weight": 1.0}, 64, None),
        ({"sentence_loss_weight": 1.0, "sentence_loss_type": "cosine"}, 8, None),
        ({"latent_loss_weight": 1.0, "loss_type": "infonce"}, 8, "so neither these terms"),
        ({"variance_loss_weight": 1.0}, 8, "so neither these terms"),
        ({}, 8, None),
    ],
)
def test_held_out_batches_of_another_size_than_in_training_are_told(make_model, tmp_path, fields, texts, said):
    info = {**CARD_INFO, "held_out_batches": {"size": 32, "texts": texts}}
    model = make_model(**fields)
    write_model_card(tmp_path, model, [{"step": 3, "eval_loss": 0.5}], info, "target")
    assert ("compare the texts of a batch" in card_of(tmp_path)) == (said is not None)
    if said:
        assert said in card_of(tmp_path)


def test_a_loss_of_ones_own_may_compare_texts(make_model, tmp_path):
    model = make_model()
    model.__class__ = OwnModel
    info = {**CARD_INFO, "held_out_batches": {"size": 32, "texts": 8}}
    write_model_card(tmp_path, model, [{"step": 3, "eval_loss": 0.5}], info, "target")
    assert "compare the texts of a batch see 8 texts here" in card_of(tmp_path)


def test_several_held_out_datasets_are_not_taken_for_texts():
    held_out = {"near": range(1200), "far": range(9)}
    args = SimpleNamespace(train_batch_size=8, world_size=2)
    assert _held_out_batches(SimpleNamespace(args=args, eval_dataset=held_out)) is None
    assert _held_out_batches(SimpleNamespace(args=args, eval_dataset=range(9))) == {"size": 16, "texts": 9}
    assert describe_sizes(range(50), held_out) == "50 texts to train on, 1,200 and 9 for held-out losses"


def test_held_out_texts_without_a_number_are_called_texts():
    assert describe_sizes(range(50), None) == "50 texts to train on, no texts for held-out losses"
    assert describe_sizes(iter([]), iter([])) == (
        "a stream of texts to train on, a stream of texts for held-out losses"
    )


def test_the_card_knows_how_held_out_texts_are_cut_into_batches(run):
    info = read_card_info(run / "pretraining")
    held_out = LINES["documents"] // 2 * WINDOWS_OF_A_LINE if predicts_documents(run) else LINES["jepa"] // 20
    assert info["held_out_batches"] == {"size": 4, "texts": held_out}


def test_a_path_below_the_working_directory_stands_unless_it_names_a_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    user = Path.home().name
    for folder in ("runs/notes", "home/someone/notes", f"data/{user}/notes"):
        Path(folder).mkdir(parents=True)
    assert public_command(["--output_dir", "runs/notes", "--data=./runs/notes"]) == (
        "--output_dir runs/notes --data=./runs/notes"
    )
    for name in (f"{tmp_path}/runs/notes", "../notes", "runs/../../notes", "home/someone/notes", f"data/{user}/notes"):
        assert public_name(name) == "notes"
    assert public_name("org/bert") == "org/bert"


def test_a_command_names_no_place_on_this_machine(tmp_path):
    words = ["run.py", "--train_file", str(tmp_path / "texts.txt"), f"--output_dir={tmp_path}/run", "--seed", "5"]
    words += ["--model_name_or_path", "org/bert", "--text_config", '{"a": 1}', "~/notes", "../sibling"]
    words += ["configs/tiny_cpu.yaml"]
    shown = public_command(words)
    assert str(tmp_path) not in shown
    assert shown == (
        "run.py --train_file texts.txt --output_dir=run --seed 5 --model_name_or_path org/bert "
        """--text_config '{"a": 1}' notes sibling configs/tiny_cpu.yaml"""
    )


# Files of a run that are not published: they contain local paths, so that it can be repeated and resumed.
LOCAL = ("arguments.yaml", "changed.yaml", "trainer_state.json", "card.json", "checkpoint-*", "README.md")


def places():
    """Local paths and the name of the user, as they would occur in a file."""
    user = getpass.getuser()
    found = {str(Path.home()), tempfile.gettempdir(), str(ROOT), f"/{user}/"}
    return [place.encode() for place in found if place != "/"]


def test_no_published_file_names_a_place_on_this_machine(run):
    for folder in (run, run / "pretraining"):
        published = {name: (folder / name).read_bytes() for name in files_to_publish(folder)}
        published["README.md"] = _read_card(folder / "README.md", "you/harbour")
        others = [path for path in folder.iterdir() if path.is_file() and not any(map(path.match, LOCAL))]
        published |= {path.name: path.read_bytes() for path in others}
        assert {"README.md", "metrics.jsonl", "config.json", "tokenizer_config.json"} <= set(published)
        assert ("verdict.json" in published) == (folder == run)
        found = [(name, place) for name, content in published.items() for place in places() if place in content]
        assert found == []


def test_a_changed_card_and_a_kept_head_name_no_place(make_model, tmp_path):
    head = {"kept": None, "sentence": f"This run pools by mean, so the head of {tmp_path}/minilm is not kept (a/b)."}
    write_model_card(tmp_path, make_model(), [{"step": 3, "eval_loss": 0.5}], {**CARD_INFO, "head": head}, "target")
    assert "so the head of minilm is not kept (a/b)" in card_of(tmp_path)
    note_change(tmp_path, f"The weights are 0.5 of the way from {tmp_path}/start to runs/end")
    assert "> The weights are 0.5 of the way from start to runs/end." in card_of(tmp_path)
    assert without_places("see https://huggingface.co/a/b, and/or c/d") == "see https://huggingface.co/a/b, and/or c/d"


def test_the_changed_arguments_are_those_of_the_command_line(run):
    """A recipe would change more arguments, but the runs of this file have none."""
    changed = yaml.safe_load((run / "changed.yaml").read_text())
    expected = {"max_steps", "save_steps", "logging_steps", "use_cpu", "eval_strategy", "eval_steps", "seed"}
    expected |= {"learning_rate", "predictor_learning_rate", "per_device_train_batch_size", "output_dir"}
    expected |= {"objective", "preset", "text_config", "vocab_size", "max_length", "train_file"}
    if predicts_documents(run):
        expected |= {"validation_split_percentage", "max_document_length", "weight_decay"}
    assert set(changed) == expected
    everything = yaml.safe_load((run / "arguments.yaml").read_text())
    assert changed.items() <= everything.items()


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
        place = "the last ones" if found["share"] == 1 else f"{found['share']:g} of the"
        expected += [f"The exported weights are {place}", f"| {found['share']:g} | {best:.1f} |"]
        expected += ["of the last weights of the run, not of the exported ones"] if found["share"] < 1 else []
        expected += ["\npython run_pretraining.py --validation_split_percentage"]
        expected += ["train.txt, 40 documents to train on, 40 held out; "]
        expected += ["40 parts of documents in 600 windows to train on, 40 parts in 600 windows for held-out losses."]
    else:
        expected += ["spans of geometric length", "Exported: the target encoder"]
        expected += ["train.txt, 57 documents to train on, 3 held out; 57 texts to train on, 3 for held-out losses."]
        expected += ["\npython run_pretraining.py --objective jepa --preset tiny"]
    for said in expected:
        assert said in card
    assert "![curves of the run](curves.png)" in card
    assert (run / "curves.png").is_file()
    for unfinished in ("{{", "}}", "{%", "None", "More information needed", "TODO", "Model ID", "\n\n\n"):
        assert unfinished not in card
    assert "knows no language but theirs" in card


def test_figures_of_a_kept_step_are_those_of_that_step(make_model, tmp_path):
    model, records = make_model(), [{"step": 1, "eval_loss": 0.5}, {"step": 3, "eval_loss": 0.25}]
    write_model_card(tmp_path, model, records, {**CARD_INFO, "exported_step": 1}, "target")
    assert "| held-out loss | 0.5 | 1 |" in card_of(tmp_path)
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
    """Its name in `loss_terms` is sufficient for the outputs of the model, the card and the curves."""
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


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ({}, "# the mean of the tokens, without padding"),
        ({"pooling": "cls"}, "# the first token"),
        ({"pooling": "max"}, "# SentenceTransformer pools them, as above."),
        ({"more": [("1_WordWeights", "WordWeights")]}, "# rare words count more"),
        ({"more": [("3_Dense", "Dense")]}, "# SentenceTransformer pools them, as above."),
        ({"more": [("3_Normalize", "Normalize")]}, "# the mean of the tokens, without padding"),
        ({"prompt": "query: "}, "# SentenceTransformer pools them, as above."),
        ({"prompts": {"truncate_dim": 8}}, "# SentenceTransformer pools them, as above."),
        ({"prompts": {"truncate_dim": None}}, "# the mean of the tokens, without padding"),
    ],
)
def test_the_snippets_pool_as_a_kept_head_does(make_model, tmp_path, head, code):
    """Or leave it to sentence-transformers."""
    fields = dict(head)
    modules = sorted([("2_Pooling", "Pooling"), *fields.pop("more", [])])
    kept = asdict(SentenceHead("start", modules=modules, **fields))
    info = {**CARD_INFO, "head": {"kept": kept, "sentence": "The export keeps the head of start."}}
    write_model_card(tmp_path, make_model(), [{"step": 3, "eval_loss": 0.5}], info, "target")
    assert code in blocks(card_of(tmp_path))[1]


def test_the_snippets_of_the_complete_model_run(run):
    first, second = blocks(card_of(run / "pretraining"))
    names = {}
    exec(first, names)
    assert names["states"].shape[-1] == 16
    exec(second, names)
    assert isinstance(names["model"], TextJepaForPreTraining)


def test_under_another_name_only_title_metadata_and_snippets_differ(run):
    card, renamed = card_of(run), renamed_card(card_of(run), "you/harbour", title="harbour")
    assert renamed.count('model_id = "you/harbour"') == 3
    assert ModelCard(renamed).data.model_name == "harbour"
    old, new = card.splitlines(), renamed.splitlines()
    changed = [b for a, b in zip(old, new, strict=True) if a != b]
    assert changed == ["model_name: harbour", "# harbour", *['model_id = "you/harbour"'] * 3]


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


def test_what_a_run_measures_is_no_result_of_an_evaluation(run):
    """Losses on held-out texts are in the table only, because the Hub would show them as scores."""
    for folder in (run, run / "pretraining"):
        assert "model-index" not in metadata_load(folder / "README.md")


def test_a_figure_that_is_not_finite_is_shown(make_model, tmp_path):
    records = [{"step": 1, "eval_loss": float("nan"), "spread": 0.5}]
    write_model_card(tmp_path, make_model(), records, CARD_INFO, "target")
    assert "| held-out loss | nan | 1 |" in card_of(tmp_path)


def test_start_and_data_of_the_hub_are_metadata(make_model, tmp_path):
    card_info = {**CARD_INFO, "base_model": "org/bert", "datasets": ["org/news"], "license": "mit"}
    card_info["language"] = ["en", "de"]
    write_model_card(
        tmp_path,
        make_model(),
        [{"step": 1, "eval_loss": 1.0}],
        card_info,
        "target",
    )
    data = metadata_load(tmp_path / "README.md")
    assert (data["base_model"], data["datasets"], data["license"]) == ("org/bert", ["org/news"], "mit")
    assert data["language"] == ["en", "de"]
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
    assert [r.metric_type for r in ModelCard(card).data.eval_results] == ["accuracy"]
    assert problems_of_metadata(card) == []
