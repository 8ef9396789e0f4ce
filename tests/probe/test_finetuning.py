"""Fine-tuning: it learns, from the training split alone, the same for the same seed, and refuses what it cannot do.

Run: python -m pytest -q tests/probe/test_finetuning.py
"""

import dataclasses
import json
import logging
import tempfile

import numpy as np
import pytest
import torch
from conftest import MODERNBERT
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaModel,
    Trainer,
)

from text_jepa.cli import UsageError
from text_jepa.probe import finetuning
from text_jepa.probe.finetuning import finetune, split_rows
from text_jepa.probe.glue import GLUE
from text_jepa.probe.tasks import Split, Task
from text_jepa.share.export import export_encoder, save_for_continuing


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
WORDS = ["bridge", "bread"]
FILLER = ["time", "summer", "beans"]
QUICK = {"learning_rate": "5e-3", "per_device_train_batch_size": "8", "num_train_epochs": "3"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer, make_model):
    """A BERT, a RoBERTa, and one of our encoders in both of its forms, all tiny."""
    root = tmp_path_factory.mktemp("encoders")
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPE, **vocabulary)).save_pretrained(root / "bert")
    roberta = RobertaConfig(**SHAPE, **vocabulary, type_vocab_size=1, max_position_embeddings=80)
    RobertaModel(roberta).save_pretrained(root / "roberta")
    ours = make_model({**MODERNBERT, **vocabulary})
    export_encoder(ours, tokenizer, root / "plain", 64)
    save_for_continuing(ours, tokenizer, root / "pretraining")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    for name in ("bert", "roberta"):
        AutoTokenizer.from_pretrained(root / "plain", model_input_names=names).save_pretrained(root / name)
    return {path.name: str(path) for path in root.iterdir()}


def make_split(rows, seed, kind="classification", pairs=False, hidden=False):
    """Three words among filler: all of one class, or a score of 50 and 10 for each of the second class."""
    generator = np.random.default_rng(seed)
    if kind == "regression":
        counts = np.arange(rows) % 4
        labels = 50.0 + 10 * counts
    else:
        labels = np.arange(rows) % 2
        counts = 3 * labels
    words = []
    for count in counts:
        filler = generator.choice(FILLER, 3)
        words.append([WORDS[1]] * count + [WORDS[0]] * (3 - count) + [*filler])
    texts = [" ".join(generator.permutation(row)) for row in words]
    first = [" ".join(generator.choice(FILLER, 40)) for _ in texts]
    return Split(
        first if pairs else texts,
        texts if pairs else None,
        None if hidden else labels,
        list(range(rows)),
    )


def make_task(kind="classification", pairs=False, rows=80, metrics=("accuracy",)):
    splits = {
        "train": make_split(rows, 0, kind, pairs),
        "validation": make_split(24, 1, kind, pairs),
        "test": make_split(12, 2, kind, pairs, hidden=True),
    }
    if kind == "regression":
        return Task("own", kind, splits, "validation", ("pearson", "spearmanr"))
    return Task("own", kind, splits, "validation", metrics, ("sea", "land"))


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that `finetune` makes, with what they were given."""
    made = []

    class RecordingTrainer(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(finetuning, "Trainer", RecordingTrainer)
    return made


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["bert", "pretraining"])
def test_every_kind_of_folder_learns_and_predicts_all_other_splits(folders, encoder):
    """Our encoder in its plain form has scores to learn, below."""
    task = make_task()
    tuned = finetune(folders[encoder], task, overrides=QUICK)
    assert {name: len(values) for name, values in tuned.predictions.items()} == {"validation": 24, "test": 12}
    assert all(values.dtype == np.int64 for values in tuned.predictions.values())
    assert np.mean(tuned.predictions["validation"] == task.test.labels) > 0.8
    assert np.mean(tuned.predictions["test"] == make_split(12, 2).labels) > 0.8


@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_of_a_pair_the_second_text_is_read_however_long_the_first(folders, encoder):
    task = make_task(pairs=True)
    tuned = finetune(folders[encoder], task, max_length=24, overrides=QUICK)
    assert np.mean(tuned.predictions["validation"] == task.test.labels) > 0.8


def test_a_pair_is_one_sequence_whose_second_text_is_marked_if_the_encoder_can_tell(folders, trainers):
    for encoder in ("bert", "roberta"):
        finetune(
            folders[encoder],
            make_task(pairs=True, rows=20),
            max_length=24,
            overrides={"max_steps": "1"},
        )
    bert, roberta = (trainer.train_dataset for trainer in trainers)
    assert {len(ids) for ids in bert["input_ids"]} == {24}
    assert all(sorted(set(types)) == [0, 1] for types in bert["token_type_ids"])
    assert "token_type_ids" not in roberta.column_names


def test_scores_come_out_on_their_own_scale(folders):
    task = make_task("regression")
    tuned = finetune(
        folders["plain"],
        task,
        overrides=QUICK | {"num_train_epochs": "6"},
    )
    found, gold = tuned.predictions["validation"], task.test.labels
    assert found.dtype == np.float64
    assert np.corrcoef(found, gold)[0, 1] > 0.7
    assert found.mean() == pytest.approx(gold.mean(), abs=8)
    assert tuned.settings["metric"] == "spearmanr"


# ---- choices --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_predictions_bit_by_bit(folders):
    task, overrides = make_task("regression", rows=20), {"max_steps": "1", "learning_rate": "5e-3"}
    first, again, other = (
        finetune(
            folders["bert"],
            task,
            seed,
            overrides=overrides,
        )
        for seed in (1, 1, 2)
    )
    for split in ("validation", "test"):
        np.testing.assert_array_equal(first.predictions[split], again.predictions[split])
        assert not np.allclose(first.predictions[split], other.predictions[split])
    assert first[1:] == again[1:]


def test_labels_of_other_splits_change_nothing(folders):
    """A planted leak: whatever looked at them, to choose or to scale, would choose or scale differently."""
    task = make_task("regression", rows=40)
    planted = {
        "validation": dataclasses.replace(task.test, labels=-3 * task.test.labels),
        "test": make_split(12, 2, "regression"),
    }
    overrides = QUICK | {"learning_rate": "1e-3"}
    first = finetune(folders["bert"], task, overrides=overrides)
    other = finetune(
        folders["bert"],
        dataclasses.replace(task, splits=task.splits | planted),
        overrides=overrides,
    )
    for split in ("validation", "test"):
        np.testing.assert_array_equal(first.predictions[split], other.predictions[split])
    assert first[1:] == other[1:]


def test_the_best_epoch_of_the_held_out_rows_is_kept_and_saved(folders, trainers, tmp_path, monkeypatch):
    """Scores without meaning: the score of the held-out rows goes up and down, and training stops early."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    task = make_task("regression", rows=50)
    labels = np.random.default_rng(0).normal(
        50,
        10,
        len(task.train),
    )
    task.splits["train"] = dataclasses.replace(task.train, labels=labels)
    overrides = QUICK | {"num_train_epochs": "30", "per_device_train_batch_size": "16"}
    tuned = finetune(
        folders["bert"],
        task,
        overrides=overrides,
        output_dir=tmp_path / "kept",
    )
    scores = {r["epoch"]: r["eval_spearmanr"] for r in trainers[0].state.log_history if "eval_spearmanr" in r}
    assert trainers[0].evaluate()["eval_spearmanr"] == tuned.dev_score > scores[max(scores)]
    assert tuned.dev_score == scores[tuned.epoch] == max(scores.values())
    assert len(scores) == tuned.epoch + finetuning.PATIENCE < 30
    assert not list((tmp_path / "temporary").iterdir())

    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept").eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "kept")(
        task.test.texts,
        padding=True,
        return_tensors="pt",
    )
    standardised = saved(**batch).logits[:, 0].detach().numpy()
    found = standardised * tuned.settings["score_deviation"] + tuned.settings["score_mean"]
    np.testing.assert_allclose(found, tuned.predictions["validation"], rtol=1e-5)


def test_held_out_rows_are_not_trained_on(folders, trainers):
    tuned = finetune(
        folders["bert"],
        make_task(rows=40),
        overrides={"max_steps": "1"},
    )
    trainer = trainers[0]
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (36, 4)
    assert (tuned.settings["rows"], tuned.settings["held_out_rows"]) == (36, 4)
    trained = {tuple(ids) for ids in trainer.train_dataset["input_ids"]}
    held_out = {tuple(ids) for ids in trainer.eval_dataset["input_ids"]}
    assert not trained & held_out


def test_a_tenth_is_held_out_with_equal_shares_of_the_classes():
    labels = np.random.default_rng(0).permutation([0] * 700 + [1] * 200 + [2] * 100)
    rows, held_out = split_rows(labels, 0, "own")
    assert sorted([*rows, *held_out]) == list(range(1000))
    np.testing.assert_array_equal(
        np.bincount(labels[held_out]),
        [70, 20, 10],
    )
    assert set(split_rows(labels, 1, "own")[1]) != set(held_out)
    scores = np.arange(1000.0)
    assert np.diff(np.sort(scores[split_rows(scores, 0, "own")[1]])).max() == 10


def test_the_choosing_metric_is_that_of_glue(folders, trainers):
    choosing = {name: task.metrics[-1] for name, task in GLUE.items()}
    assert {name for name, metric in choosing.items() if metric == "f1"} == {"mrpc", "qqp"}
    assert choosing["stsb"] == "spearmanr"
    for name in ("mrpc", "cola"):
        task = dataclasses.replace(
            make_task(rows=20, metrics=GLUE[name].metrics),
            name=name,
        )
        tuned = finetune(folders["bert"], task, overrides={"max_steps": "1"})
        assert tuned.settings["metric"] == GLUE[name].metrics[-1]
        logged = trainers[-1].state.log_history[-2]
        assert {f"eval_{metric}" for metric in GLUE[name].metrics} <= logged.keys()


# ---- settings -------------------------------------------------------------------------------------------------------


def test_the_recipe_knows_the_tasks_that_roberta_was_tuned_on(folders):
    with_2e5 = {name for name, task in GLUE.items() if task.learning_rate == "2e-5"}
    with_16_rows = {name for name, task in GLUE.items() if task.batch_size == "16"}
    assert with_2e5 == {"rte", "stsb", "wnli"}  # of wnli nothing is published
    assert with_16_rows == {"cola", "mrpc", "rte", "stsb", "wnli"}
    task = dataclasses.replace(make_task(rows=20), name="qqp_mini")
    settings = finetune(
        folders["bert"],
        task,
        overrides={"max_steps": "1"},
    ).settings
    assert (settings["learning_rate"], settings["per_device_train_batch_size"]) == (1e-5, 32)
    assert (settings["warmup_steps"], settings["weight_decay"], settings["adam_beta2"]) == (0.06, 0.1, 0.98)
    json.dumps(settings)


def test_overrides_win_over_the_recipe(folders, trainers):
    overrides = {"max_steps": "2", "warmup_steps": "1", "lr_scheduler_type": "constant", "max_grad_norm": "1.0"}
    settings = finetune(
        folders["bert"],
        make_task(rows=20),
        overrides=overrides,
    ).settings
    assert {name: settings[name] for name in overrides} == {
        "max_steps": 2,
        "warmup_steps": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
    }
    assert trainers[0].state.global_step == 2


def test_accumulated_batches_weigh_as_one(folders):
    """Plain gradient descent, in which a loss that is too large by a factor would show."""
    task, common = (
        make_task("regression", rows=18),
        {
            "optim": "sgd",
            "learning_rate": "0.1",
            "num_train_epochs": "1",
        },
    )
    one, two = (
        finetune(
            folders["plain"],
            task,
            overrides={**common, "per_device_train_batch_size": size, "gradient_accumulation_steps": steps},
        ).predictions["validation"]
        for size, steps in (("8", "1"), ("4", "2"))
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learnin_rate": "1"}, "no setting 'learnin_rate'; did you mean 'learning_rate'"),
        ({"seed": "1"}, "no setting 'seed'"),
        ({"save_steps": "5"}, "no setting 'save_steps'"),
        ({"learning_rate": "high"}, "learning.rate: invalid float value: 'high'"),
        ({"lr_scheduler_type": "straight"}, "lr_scheduler_type"),
        ({"learning_rate": "1e30", "warmup_steps": "0"}, "own: fine-tuning of .* diverged; lower learning_rate"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(folders, overrides, message):
    with pytest.raises(UsageError, match=message):
        finetune(
            folders["bert"],
            make_task(rows=20),
            overrides={"num_train_epochs": "2", **overrides},
        )


def test_too_few_rows_are_refused(folders):
    with pytest.raises(UsageError, match=r"own: 9 training rows are too few .* give at least 10"):
        finetune(folders["bert"], make_task(rows=9))


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no encoder to fine-tune there"):
        finetune(str(tmp_path), make_task())


def test_an_encoder_whose_weights_are_missing_is_not_quietly_drawn_anew(folders, tmp_path):
    encoder = BertModel.from_pretrained(folders["bert"])
    encoder.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["bert"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    without = {f"lost.{key}" if "query" in key else key: value for key, value in weights.items()}
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"2 weights of the encoder are missing, such as bert.encoder.layer.0"):
        finetune(str(tmp_path), make_task())


def test_new_heads_are_no_news_and_heads_of_other_tasks_are_replaced(folders, tmp_path):
    """Half precision, three classes: the checkpoint of another task as it may come from the Hub."""
    other = AutoModelForSequenceClassification.from_pretrained(
        folders["bert"],
        num_labels=3,
        dtype=torch.bfloat16,
    )
    other.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["bert"]).save_pretrained(tmp_path)
    messages, logger = [], logging.getLogger("transformers.modeling_utils")
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        tuned = finetune(
            str(tmp_path),
            make_task(),
            overrides=QUICK,
            output_dir=tmp_path / "kept",
        )
        assert messages == []
        logger.warning("LOAD REPORT of someone else")
        assert messages == ["LOAD REPORT of someone else"]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert tuned.dev_score > 0.8
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept")
    assert kept.dtype == torch.float32
    assert kept.config.id2label == {0: "sea", 1: "land"}


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_head_of_another_task_of_the_same_size_is_drawn_anew_by_the_seed(folders, tmp_path, kind):
    """It would be loaded like the encoder, and has learned the answers of its own task."""
    outputs = {"classification": 2, "regression": 1}[kind]
    other = AutoModelForSequenceClassification.from_pretrained(folders["bert"], num_labels=outputs)
    torch.nn.init.constant_(other.classifier.weight, 9.0)
    other.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["bert"]).save_pretrained(tmp_path)
    tuned = []
    for seed in (1, 2):
        finetune(
            str(tmp_path),
            make_task(kind, rows=20),
            seed,
            overrides={"max_steps": "1", "learning_rate": "0"},
            output_dir=tmp_path / f"kept {seed}",
        )
        tuned.append(AutoModelForSequenceClassification.from_pretrained(tmp_path / f"kept {seed}"))
    first, second = tuned
    assert first.classifier.weight.abs().max() < 9
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    for key, value in other.bert.state_dict().items():
        assert torch.equal(value, first.bert.state_dict()[key])


def test_weights_of_language_modelling_that_a_head_shares_are_kept(folders, tmp_path):
    """The dense layer of ModernBERT's head is that of its masked language model, as in transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folders["bert"])
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        cls_token_id=None,
        sep_token_id=None,
    )
    before = ModernBertForMaskedLM(config)
    before.save_pretrained(tmp_path / "mlm")
    tokenizer.save_pretrained(tmp_path / "mlm")
    overrides = {"max_steps": "1", "learning_rate": "0"}
    finetune(str(tmp_path / "mlm"), make_task(rows=20), 1, overrides=overrides, output_dir=tmp_path / "kept")
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept")
    assert torch.equal(after.head.dense.weight, before.head.dense.weight)


def test_a_decoder_whose_configuration_names_no_padding_token_is_fine_tuned(folders, tmp_path):
    """As GPT-2 is after its tokenizer was given one, and Qwen3-Embedding as it comes."""
    tokenizer = AutoTokenizer.from_pretrained(folders["plain"])
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=80,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    tuned = finetune(
        str(tmp_path / "gpt2"),
        make_task(rows=20),
        overrides={"max_steps": "1"},
        output_dir=tmp_path / "kept",
    )
    assert len(tuned.predictions["validation"]) == 24
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept")
    assert kept.config.pad_token_id == tokenizer.pad_token_id


def test_what_an_architecture_raises_in_training_is_one_line(folders, monkeypatch):
    def fail(trainer):
        raise ValueError("odd\nand more")

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(UsageError, match=r"^own: fine-tuning of .*bert failed; .* finetune out of --mode \(odd\)$"):
        finetune(folders["bert"], make_task(rows=20))
