"""The probe during pretraining: what it measures, that training does not notice, and what it may choose by."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, TrainerState

import run_pretraining
from text_jepa import OnlineProbeCallback, TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.cli import UsageError
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.encoders.embeddings import Encoder, embed_texts
from text_jepa.probe import online, predictors
from text_jepa.probe.tasks import Split, Task
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).parents[2]
SEA, LAND = ["harbour", "storm", "boat", "river"], ["garden", "bread", "beans", "flour"]
NAMES = [f"eval_probe_{which}_{mode}" for which in ("target", "context") for mode in ("linear", "knn")]


def sentences(labels, seed):
    generator = np.random.default_rng(seed)
    return [
        " ".join(
            generator.choice(
                [
                    *(SEA, LAND)[label],
                    "the",
                    "and",
                    "water",
                ],
                5,
            )
        )
        for label in labels
    ]


def classification(seed=0, train=60, test=20):
    labels = {
        "train": np.arange(train) % 2,
        "test": np.arange(test) % 2,
    }
    splits = {
        name: Split(
            sentences(gold, seed + i),
            None,
            gold,
            list(range(len(gold))),
        )
        for i, (name, gold) in enumerate(labels.items())
    }
    return Task(
        "places",
        "classification",
        splits,
        "test",
        ("accuracy",),
        ("sea", "land"),
    )


def similarity():
    left, right = sentences(np.arange(40) % 2, 1), sentences(np.arange(40) // 2 % 2, 2)
    split = Split(
        left,
        right,
        np.linspace(0, 5, 40),
        list(range(40)),
    )
    return Task(
        "pairs",
        "regression",
        {"train": split, "test": split},
        "test",
        ("pearson", "spearmanr"),
    )


def make_trainer(tokenizer, make_model, texts, output_dir, probe=None, **arguments):
    ids = tokenizer(texts * 4)["input_ids"]
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": ids,
            "length": [len(row) for row in ids],
        }
    )
    args = TextJepaTrainingArguments(
        str(output_dir),
        use_cpu=True,
        **{
            "max_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "no",
            **arguments,
        },
    )
    text_config = {**MODERNBERT, "vocab_size": len(tokenizer), "embedding_dropout": 0.1}
    trainer = TextJepaTrainer(
        make_model(text_config), args, DataCollatorForTextJepa(tokenizer), rows, rows, processing_class=tokenizer
    )
    if probe is not None:
        probe.add_to(trainer)
    return trainer


MODERNBERT = {
    "model_type": "modernbert",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "layer_types": ["full_attention"],
    "pad_token_id": 0,
}


@pytest.fixture
def encoder(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False).eval()
    return Encoder("it", model, copy.deepcopy(tokenizer))


@pytest.fixture
def embedded(monkeypatch):
    """The texts of every call that embeds."""
    calls = []

    def recording(encoder, texts):
        calls.append(texts)
        return embed_texts(encoder, texts)

    monkeypatch.setattr(online, "embed_texts", recording)
    return calls


# ---- figures --------------------------------------------------------------------------------------------------------


def test_a_classification_is_scored_on_rows_that_were_not_fitted(encoder, tokenizer):
    probe = OnlineProbeCallback(classification(), tokenizer)
    assert probe.names == NAMES
    assert not set(probe.fitted.keys) & set(probe.held_out.keys)
    x, test_x = (embed_texts(encoder, part.texts) for part in (probe.fitted, probe.held_out))
    expected = [
        100
        * (
            predict(
                x,
                probe.fitted.labels,
                test_x,
            )
            == probe.held_out.labels
        ).mean()
        for predict in (predictors.fit_linear, predictors.knn_predict)
    ]
    assert probe.scores(encoder) == pytest.approx(expected)
    assert expected[0] > 80  # of rows with words of their own


def test_a_similarity_is_scored_by_raw_and_centred_cosines(encoder, tokenizer):
    probe = OnlineProbeCallback(similarity(), tokenizer)
    pairs = probe.held_out
    vectors = (embed_texts(encoder, column) for column in (pairs.texts, pairs.pairs))
    expected = predictors.sts_scores(*vectors, pairs.labels)
    assert probe.scores(encoder) == pytest.approx([expected["raw_spearmanr"], expected["centred_spearmanr"]])
    assert probe.names[:2] == ["eval_probe_target_raw", "eval_probe_target_centred"]


def test_scores_without_pairs_are_regressed_and_ranked(encoder, tokenizer):
    train = classification().train
    real = Split(
        train.texts,
        None,
        train.labels + np.linspace(0, 0.1, len(train)),
        train.ids,
    )
    task = Task(
        "real",
        "regression",
        {"train": real, "test": real},
        "test",
        ("pearson", "spearmanr"),
    )
    linear, _ = OnlineProbeCallback(task, tokenizer).scores(encoder)
    assert 30 < linear <= 100


def test_matthews_is_the_figure_where_it_is_the_tasks_metric(encoder, tokenizer, monkeypatch):
    """A probe that always says the same class has no skill, however common the class is."""
    monkeypatch.setattr(
        predictors,
        "fit_linear",
        lambda x, y, test_x: np.zeros(len(test_x)),
    )
    monkeypatch.setattr(
        predictors,
        "knn_predict",
        lambda x, y, test_x: np.zeros(len(test_x)),
    )
    task = classification()
    constant = OnlineProbeCallback(task, tokenizer).scores(encoder)
    cola = Task(
        task.name,
        task.kind,
        task.splits,
        task.scored,
        ("matthews_correlation",),
    )
    assert constant[0] > 40
    assert OnlineProbeCallback(cola, tokenizer).scores(encoder) == [0, 0]


def test_each_encoder_has_its_own_figures(tokenizer, make_model, texts, tmp_path):
    """With a target encoder that says the same of every text only the context encoder can tell them apart."""
    trainer = make_trainer(tokenizer, make_model, texts, tmp_path)
    OnlineProbeCallback(classification(), tokenizer).add_to(trainer)
    with torch.no_grad():
        for parameter in trainer.model.target_encoder.parameters():
            parameter.zero_()
    found = trainer.evaluate()
    assert found["eval_probe_target_linear"] < 60 < 80 < found["eval_probe_context_linear"]


def test_an_encoder_that_is_not_finite_has_no_score_and_is_never_the_best(tokenizer, make_model, texts, tmp_path):
    probe = OnlineProbeCallback(classification(), tokenizer)
    trainer = make_trainer(tokenizer, make_model, texts, tmp_path, probe, metric_for_best_model="probe_context_linear")
    with torch.no_grad():
        next(trainer.model.model.encoder.parameters()).fill_(math.nan)
    found = trainer.evaluate()
    assert math.isnan(found["eval_probe_context_linear"])
    assert found["eval_probe_target_linear"] > 60
    assert not trainer._determine_best_metric(found, None)


# ---- what it must not see or touch ----------------------------------------------------------------------------------


def test_the_scored_split_of_the_task_is_neither_read_nor_embedded(encoder, tokenizer, embedded):
    task = classification()
    leak = Split(
        ["leak " * 3] * 20,
        None,
        1 - task.test.labels,
        task.test.ids,
    )
    planted = Task(
        task.name,
        task.kind,
        {
            **task.splits,
            "test": leak,
        },
        "test",
        task.metrics,
    )
    scores = [OnlineProbeCallback(one, tokenizer).scores(encoder) for one in (task, planted)]
    assert scores[0] == scores[1]
    assert {text for call in embedded for text in call} <= set(task.train.texts)


def test_a_text_is_never_on_both_sides(tokenizer):
    """Rows that stand in the training split twice, with labels by chance, would be known by heart."""
    texts = sentences(np.arange(30) % 2, 5)
    twice = Split(
        texts * 2,
        None,
        np.random.default_rng(0).integers(2, size=60),
        list(range(60)),
    )
    task = Task(
        "twice",
        "classification",
        {"train": twice, "test": twice},
        "test",
        ("accuracy",),
    )
    probe = OnlineProbeCallback(task, tokenizer)
    assert not set(probe.fitted.texts) & set(probe.held_out.texts)
    assert len(probe.held_out) == 30


def test_rows_are_few_and_each_distinct_text_is_embedded_once(encoder, tokenizer, embedded):
    probe = OnlineProbeCallback(classification(train=200), tokenizer, max_rows=40)
    assert len(probe.fitted) <= len(probe.held_out) == 40
    probe.scores(encoder)
    (call,) = embedded
    assert len(call) == len(set(call)) == len({*probe.fitted.texts, *probe.held_out.texts})


def test_a_split_that_is_too_small_is_refused(tokenizer):
    with pytest.raises(UsageError, match=r"places: too few training rows .* \(2 to fit, 2 to score\)"):
        OnlineProbeCallback(classification(train=4), tokenizer)


def test_training_does_not_notice_the_probe(tokenizer, make_model, texts, tmp_path):
    """With dropout, so that one random number more or a wrong mode would show in every weight."""
    found = {}
    for name, probe in (("without", None), ("with", OnlineProbeCallback(classification(), tokenizer))):
        trainer = make_trainer(tokenizer, make_model, texts, tmp_path / name, probe)
        trainer.train()
        losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        found[name] = losses, trainer.model.state_dict(), torch.get_rng_state()
    assert found["with"][0] == found["without"][0]
    assert all(torch.equal(value, found["without"][1][name]) for name, value in found["with"][1].items())
    assert torch.equal(found["with"][2], found["without"][2])


@pytest.mark.parametrize("training", [True, False])
def test_mode_gradients_and_tokenizer_are_left_alone(encoder, tokenizer, training):
    encoder.model.train(training)
    tokenizer.backend_tokenizer.no_truncation()
    probe = OnlineProbeCallback(classification(), tokenizer, max_length=7)
    probe.scores(
        Encoder(
            "it",
            encoder.model,
            probe.tokenizer,
            probe.max_length,
        )
    )
    assert {module.training for module in encoder.model.modules()} == {training}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in encoder.model.parameters())
    assert tokenizer.backend_tokenizer.truncation is None


# ---- log and choice -------------------------------------------------------------------------------------------------


def test_figures_are_logged_and_stand_among_the_metrics_of_the_evaluation(
    tokenizer, make_model, texts, tmp_path, capsys
):
    trainer = make_trainer(
        tokenizer,
        make_model,
        texts,
        tmp_path,
        OnlineProbeCallback(classification(), tokenizer),
    )
    trainer.train()
    records = [record for record in read_metrics(tmp_path) if "eval_probe_target_knn" in record]
    assert [record["step"] for record in records] == [2, 4]
    assert all(set(NAMES) <= set(record) for record in records)
    assert records[-1] in trainer.state.log_history
    assert set(NAMES) <= set(trainer.evaluate())
    assert "step      2/4  probe places: target_linear " in capsys.readouterr().out


def test_only_the_first_process_computes_and_the_others_get_its_figures(encoder, tokenizer, monkeypatch):
    probe, logged = OnlineProbeCallback(classification(), tokenizer), []
    probe.trainer = SimpleNamespace(log=logged.append)
    monkeypatch.setattr(probe, "scores", lambda encoder: pytest.fail("computed"))
    monkeypatch.setattr(online, "broadcast_object_list", lambda values: [{"eval_probe_target_knn": 7.0}])
    metrics = {"eval_loss": 1.0}
    probe.on_evaluate(
        None,
        TrainerState(is_world_process_zero=False),
        None,
        metrics=metrics,
        model=None,
    )
    assert metrics == {"eval_loss": 1.0, "eval_probe_target_knn": 7.0}
    assert logged == [{"eval_probe_target_knn": 7.0}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A corpus, a labelled file and a tiny encoder."""
    folder = tmp_path_factory.mktemp("probe")
    labels = [i % 2 for i in range(80)]
    rows = [
        {"text": text, "label": label}
        for text, label in zip(
            sentences(labels, 7),
            labels,
            strict=True,
        )
    ]
    for name in ("corpus", "task"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {
            "sentence1": r["text"],
            "sentence2": rows[-i]["text"],
            "label": i / 16,
        }
        for i, r in enumerate(rows)
    ]
    for split in ("train", "validation"):
        path = folder / "glue" / "stsb" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in pairs[:: 1 if split == "train" else 7]))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder


def command(folder, output_dir, *flags):
    return [
        *("--train_file", str(folder / "corpus.jsonl"), "--model_name_or_path", str(folder / "bert"), "--use_cpu"),
        *("--max_steps", "6", "--per_device_train_batch_size", "8", "--eval_strategy", "steps", "--eval_steps", "2"),
        *("--save_steps", "2", "--output_dir", str(output_dir), *flags),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "prefix"),
    [
        ("jepa", "target_encoder."),
        ("documents", "model.encoder."),
    ],
)
def test_the_exported_encoder_is_the_best_one_and_stays_so_when_the_finished_run_is_resumed(
    folder, tmp_path, monkeypatch, objective, prefix
):
    """The middle of three checkpoints is given the best figure."""
    figures = iter([10.0, 10.0, 90.0, 20.0, 50.0, 95.0])
    monkeypatch.setattr(
        OnlineProbeCallback,
        "scores",
        lambda self, encoder: [next(figures), 0.0],
    )
    flags = ["--objective", objective, "--probe_task", str(folder / "task.jsonl"), "--load_best_model_at_end"]
    flags += ["--metric_for_best_model", "probe_target_linear"]
    output_dir = run_pretraining.main(command(folder, tmp_path / "run", *flags))
    best = load_file(output_dir / "checkpoint-4" / "model.safetensors")
    last = load_file(output_dir / "checkpoint-6" / "model.safetensors")

    def exported_is(state):
        exported = load_file(output_dir / "model.safetensors")
        return all(torch.equal(value, state[f"{prefix}{name}"]) for name, value in exported.items())

    assert exported_is(best)
    assert not exported_is(last)
    card = (output_dir / "README.md").read_text()
    assert "step 4, the best by probe_target_linear" in card
    run_pretraining.main(command(folder, output_dir, *flags, "--resume_from_checkpoint", "true"))
    assert exported_is(best)


CHOOSE = ["--load_best_model_at_end"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe_task", "{task}", *CHOOSE], "cannot be selected by their loss"),
        (
            ["--probe_task", "{task}", *CHOOSE, "--metric_for_best_model", "eval_latent_loss"],
            "cannot be selected by their loss",
        ),
        ([*CHOOSE, "--metric_for_best_model", "eval_probe_target_knn"], "name a --probe_task"),
        (["--save_strategy", "best", "--metric_for_best_model", "loss"], "cannot be selected by their loss"),
        (
            ["--probe_task", "{task}", *CHOOSE, "--metric_for_best_model", "eval_probe_teachr_knn"],
            "did you mean 'eval_probe_target_knn'",
        ),
        (
            ["--probe_task", "{task}", *CHOOSE, "--metric_for_best_model", "probe_target_raw"],
            "it has eval_probe_target_linear",
        ),
        (
            [
                "--probe_task",
                "stsb",
                "--probe_data_dir",
                "{glue}",
                *CHOOSE,
                "--metric_for_best_model",
                "probe_target_knn",
            ],
            "it has eval_probe_target_raw",
        ),
        (["--probe_task", "stbs", "--probe_data_dir", "{glue}"], "did you mean 'stsb'"),
        (["--probe_task", "nowhere.jsonl"], "--probe_task nowhere.jsonl: no such file"),
        (["--probe_data_dir", "{glue}"], "--probe_data_dir goes with --probe_task"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_anything_is_written(folder, tmp_path, flags, message):
    places = {"task": folder / "task.jsonl", "glue": folder / "glue"}
    flags = [flag.format(**places) for flag in flags]
    with pytest.raises(UsageError, match=message):
        run_pretraining.main(command(folder, tmp_path / "run", *flags))
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.distributed
def test_two_processes_choose_the_same_checkpoint(folder, tmp_path):
    flags = ["--probe_task", str(folder / "task.jsonl"), *CHOOSE, "--metric_for_best_model", "eval_probe_context_knn"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [
            *launcher,
            str(ROOT / "run_pretraining.py"),
            *command(folder, tmp_path / "run", *flags),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    records = [record for record in read_metrics(tmp_path / "run") if "eval_probe_context_knn" in record]
    assert [record["step"] for record in records] == [2, 4, 6]
    figures = [record["eval_probe_context_knn"] for record in records]
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["best_global_step"] == records[int(np.argmax(figures))]["step"]
