"""The target encoder's updates, the collapse monitor and the trainer: what happens at which step, and the log."""

import json
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from configuration_text_jepa import OBJECTIVES
from text_jepa import (
    TextJepaConfig,
    TextJepaForPreTraining,
    TextJepaForSequenceClassification,
    TextJepaTrainer,
    TextJepaTrainingArguments,
    metrics,
)
from text_jepa.data.batching import lengths_of
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.strategies import MaskStrategy
from text_jepa.share.model_card import describe_run
from text_jepa.train import collapse, run_log
from text_jepa.train import trainer as trainer_module
from text_jepa.train.callbacks import (
    EmaTargetEncoderCallback,
    PreemptionCallback,
    ProgressLineCallback,
    SpikeCallback,
    WeightDecayCallback,
    ema_decay,
    health_line,
)
from text_jepa.train.collapse import CollapseMonitorCallback, describe_remedies, measure_representations
from text_jepa.train.pretraining import load_finished
from text_jepa.train.run_log import MetricsFileCallback, read_metrics


def make_model(tokenizer, text_config=None, **fields):
    torch.manual_seed(0)
    text_config = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **(text_config or {}),
    }
    # The sentence loss contrasts the texts of a batch, so it depends on how batches are cut.
    fields = {"sentence_loss_weight": 0.0, **fields}
    return TextJepaForPreTraining(TextJepaConfig.preset("tiny", text_config, **fields))


@pytest.fixture(scope="module")
def examples(tokenizer):
    """96 texts of 6 to 30 tokens in which each word announces the next, so that there is something to learn."""
    generator = np.random.default_rng(0)
    low = len(tokenizer) // 2
    high = len(tokenizer) - 1
    rows = []
    for length in generator.integers(4, 28, 96):
        start = generator.integers(low, high)
        step = generator.integers(1, 4)
        words = low + (start + step * np.arange(length)) % (high - low)
        rows.append([tokenizer.cls_token_id, *words.tolist(), tokenizer.sep_token_id])
    lengths = [len(row) for row in rows]
    return datasets.Dataset.from_dict({"input_ids": rows, "length": lengths})


def make_trainer(tokenizer, examples, output_dir, model=None, callbacks=None, **arguments):
    arguments = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 2,
        "save_strategy": "no",
        **arguments,
    }
    args = TextJepaTrainingArguments(str(output_dir), use_cpu=True, **arguments)
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False), num_masks=2)
    return TextJepaTrainer(
        model or make_model(tokenizer),
        args,
        collator,
        examples.select(range(80)),
        examples.select(range(80, 96)),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def training_records(output_dir):
    """The records of training in the log of a run."""
    return [record for record in read_metrics(output_dir) if "loss" in record]


def parameters_of(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same_weights(first, second):
    """Whether the tensors of the first of two dictionaries are those of the second, bit by bit."""
    return all(torch.equal(value, second[name]) for name, value in first.items())


# ---- decay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 700, 0.9),
        ("linear", 0, 0.9),
        ("linear", 500, 0.95),
        ("linear", 1000, 1.0),
        ("cosine", 0, 0.9),
        ("cosine", 500, 0.95),
        ("cosine", 1000, 1.0),
        ("cosine", 250, 1.0 - 0.1 * (1 + math.cos(math.pi / 4)) / 2),
    ],
)
def test_decay_follows_its_schedule(schedule, step, expected):
    assert ema_decay(step, 1000, schedule, 0.9, 1.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("total", "start", "end"),
    [
        (1_000_000, 0.9999, 0.99999),
        (3_000, 1 - 1 / 30, 1 - 1 / 300),
    ],
)
def test_default_decays_average_over_one_and_ten_percent_of_the_run(total, start, end):
    assert ema_decay(0, total) == pytest.approx(start)
    assert ema_decay(total, total) == pytest.approx(end)


def test_decay_never_falls_and_stays_a_decay_in_runs_of_any_length():
    for total in (1, 7, 50, 99, 100, 101, 1000):
        decays = [ema_decay(step, total) for step in range(total + 1)]
        assert decays == sorted(decays)
        assert 0 <= decays[0] <= decays[-1] < 1


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="sideways"):
        ema_decay(0, 10, "sideways")


@pytest.mark.parametrize("name", ["ema_decay_start", "ema_decay_end"])
def test_decay_outside_zero_and_one_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=name):
        TextJepaTrainingArguments(str(tmp_path), **{name: 1.5})


# ---- when the target encoder moves ----------------------------------------------------------------------------------


def test_target_encoder_moves_once_per_optimizer_step_to_the_average_after_the_step(tokenizer, examples, tmp_path):
    """With accumulation: t ← d·t + (1 - d)·s with s after the step, and nothing on micro-steps."""
    trainer = make_trainer(
        tokenizer, examples, tmp_path, gradient_accumulation_steps=3, ema_decay_start=0.7, ema_schedule="constant"
    )
    model = trainer.model
    update = model.update_target_encoder
    seen = []

    def recording(decay):
        before = parameters_of(model.target_encoder)
        source = parameters_of(model.model.encoder)
        update(decay)
        seen.append((trainer.state.global_step, decay))
        for name, value in model.target_encoder.named_parameters():
            average = decay * before[name] + (1 - decay) * source[name]
            torch.testing.assert_close(value, average)

    model.update_target_encoder = recording
    start = parameters_of(model.model.encoder)
    trainer.train()
    assert seen == [(step, 0.7) for step in range(4)]
    assert not same_weights(start, parameters_of(model.target_encoder))


def test_a_callback_that_is_given_takes_the_place_of_the_trainers_own(tokenizer, examples, tmp_path):
    """With a second one, the target encoder would move twice in a step, and each record be written twice."""
    ema = EmaTargetEncoderCallback("constant", 0.5)
    given = [ema, WeightDecayCallback(0.1, 0.01), SpikeCallback(), PreemptionCallback()]
    given += [ProgressLineCallback(), MetricsFileCallback(), CollapseMonitorCallback()]
    trainer = make_trainer(tokenizer, examples, tmp_path, callbacks=given, weight_decay_end=0.01, logging_steps=1)
    for callback in given:
        found = [other for other in trainer.callback_handler.callbacks if isinstance(other, type(callback))]
        assert found == [callback]
    decays = []
    trainer.model.update_target_encoder = decays.append
    trainer.train()
    assert decays == [0.5] * 4
    assert [(record["step"], record["ema_decay"]) for record in training_records(tmp_path)] == [
        (step, 0.5) for step in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(("skipped", "updates"), [(True, 0), (False, 1)])
def test_a_skipped_optimizer_step_moves_nothing(skipped, updates):
    calls = []
    callback = EmaTargetEncoderCallback("constant", 0.5)
    callback.on_optimizer_step(
        None,
        TrainerState(global_step=3, max_steps=10),
        TrainerControl(),
        model=SimpleNamespace(config=SimpleNamespace(has_moving_average=True), update_target_encoder=calls.append),
        optimizer=SimpleNamespace(step_was_skipped=skipped),
    )
    assert calls == [0.5] * updates


def settings_by_parameter(optimizer, name):
    """A setting of the parameter groups of an optimizer, by the identity of the parameter."""
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = group[name]
    return found


def test_optimizer_holds_what_trains_and_spares_vectors_from_decay(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path)
    trainer.create_optimizer()
    decays = settings_by_parameter(trainer.optimizer, "weight_decay")
    for name, parameter in trainer.model.named_parameters():
        is_trained = not name.startswith("target_encoder.")
        assert (id(parameter) in decays) == is_trained
        if is_trained and parameter.dim() < 2:
            assert decays[id(parameter)] == 0, name
    matrix = trainer.model.predictor.context_projection.weight
    assert decays[id(matrix)] == trainer.args.weight_decay


def test_predictor_may_learn_at_a_rate_of_its_own(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path, learning_rate=1e-5, predictor_learning_rate=1e-3)
    trainer.create_optimizer()
    rates = settings_by_parameter(trainer.optimizer, "lr")
    for name, parameter in trainer.model.named_parameters():
        if not name.startswith("target_encoder."):
            expected = 1e-5 if name.startswith("model.") else 1e-3
            assert rates[id(parameter)] == expected, name
    trainer.train()
    assert len(trainer.lr_scheduler.get_last_lr()) == 4


# ---- loss and log ---------------------------------------------------------------------------------------------------


def test_accumulated_small_batches_equal_one_large_batch(tokenizer, examples, tmp_path):
    """Terms are normalised by the target tokens of the whole accumulated batch, not by means of means."""
    records = []
    # The same texts per step for both.
    order = np.random.default_rng(1).permutation(80).tolist()
    for name, size, accumulation in (("whole", 16, 1), ("parts", 4, 4)):
        trainer = make_trainer(
            tokenizer,
            examples.select(range(96)),
            tmp_path / name,
            model=make_model(tokenizer, token_loss_candidates=10_000),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            max_steps=2,
        )
        trainer._get_train_sampler = lambda dataset=None: order
        trainer.train()
        records.append(training_records(tmp_path / name))
    for whole, parts in zip(*records, strict=True):
        for key in ("loss", "latent_loss", "token_loss", "relative_loss", "ema_decay"):
            assert parts[key] == pytest.approx(whole[key], rel=1e-4), key


def test_log_names_every_term_and_measure(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path, eval_strategy="steps", eval_steps=4)
    trainer.train()
    records = read_metrics(tmp_path)
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == [1, 2, 4]
    names = {
        "relative_loss",
        "copy_relative_loss",
        "retrieval_margin",
        "retrieval_accuracy",
        "spread",
        "target_spread",
        "token_rank",
        "pooled_rank",
        "cosine_same_text",
        "cosine_other_text",
        "latent_loss",
        "token_loss",
        "ema_decay",
        "tokens_per_second",
        "grad_norm",
    }
    weight = trainer.model.config.token_loss_weight
    for record in training:
        assert names <= record.keys()
        total = record["latent_loss"] + weight * record["token_loss"]
        assert record["loss"] == pytest.approx(total, rel=1e-5)
        assert record["ema_decay"] == pytest.approx(ema_decay(record["step"] - 1, 4))
    evaluation = next(record for record in records if "eval_loss" in record)
    assert evaluation["eval_loss"] == pytest.approx(
        evaluation["eval_latent_loss"] + weight * evaluation["eval_token_loss"], rel=1e-5
    )
    lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
    first = training[0]
    last = training[-1]
    assert 0 < first["tokens_seen"] < last["tokens_seen"] <= 4 * 8 * max(lengths)
    assert 0 < first["train_seconds"] < last["train_seconds"]


def test_records_that_count_input_tokens_are_not_taken_for_the_summary_of_a_process(tokenizer, examples, tmp_path):
    """The Trainer adds the running time to each of them."""
    make_trainer(
        tokenizer, examples, tmp_path, include_num_input_tokens_seen="all", logging_steps=1, max_steps=2
    ).train()
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["num_input_tokens_seen"] > 0 for record in records)


def test_nan_is_not_hidden_in_the_log(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path, logging_steps=1, max_steps=2)
    with torch.no_grad():
        trainer.model.latent_head.bias.fill_(math.nan)
    trainer.train()
    first = training_records(tmp_path)[0]
    assert math.isnan(first["loss"])


def poison(trainer, steps):
    """Makes the loss of these steps NaN."""
    loss = trainer.compute_loss

    def poisoned(model, inputs, return_outputs=False, num_items_in_batch=None):
        value, outputs = loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training and trainer.state.global_step in steps:
            value = value * math.nan
        return (value, outputs) if return_outputs else value

    trainer.compute_loss = poisoned


def test_a_step_that_is_not_finite_changes_nothing_and_keeps_its_batch(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path, gradient_accumulation_steps=2, logging_steps=1)
    poison(trainer, {2})
    states = {}

    class Recorder(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            weights = model.state_dict()
            states[state.global_step] = {name: value.clone() for name, value in weights.items()}

    trainer.add_callback(Recorder())
    trainer.train()
    assert same_weights(states[2], states[3])
    assert not same_weights(states[3], states[4])
    assert all(value.isfinite().all() for value in states[4].values())
    kept = sorted((tmp_path / "nonfinite").iterdir())
    assert [path.name for path in kept] == ["step2-rank0-0.safetensors", "step2-rank0-1.safetensors"]
    assert load_file(kept[0])["input_ids"].shape[0] == 8
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert same_weights(saved, states[2])
    is_nan = [math.isnan(record["loss"]) for record in training_records(tmp_path)]
    assert is_nan == [False, False, True, False]


def test_run_stops_after_three_steps_in_a_row_that_are_not_finite(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path, max_steps=10)
    poison(trainer, {1, 3, 4, 5})
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.nonfinite_steps == 3


def test_a_trainer_that_trains_again_stops_again(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path, max_steps=10)
    poison(trainer, range(10))
    for _ in range(2):
        trainer.train()
        assert trainer.state.global_step == trainer.nonfinite_steps == 3


def test_an_exception_in_the_forward_pass_ends_the_run(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path)
    trainer.model.predictor.forward = None
    with pytest.raises(TypeError):
        trainer.train()


def test_no_checkpoint_is_chosen_by_its_loss(tmp_path):
    assert not TextJepaTrainingArguments(str(tmp_path)).load_best_model_at_end


def test_held_out_texts_are_not_dropped_with_the_last_batch_of_training(tokenizer, examples, tmp_path):
    """Of 16 texts, batches of 10 leave six, and batches of 32 all."""
    found = []
    for size, drops in ((10, False), (10, True), (32, True)):
        sizes = {"per_device_eval_batch_size": size, "dataloader_drop_last": drops}
        trainer = make_trainer(tokenizer, examples, tmp_path, **sizes)
        found.append(trainer.evaluate()["eval_loss"])
        assert trainer.args.dataloader_drop_last == drops
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-6)


def test_evaluation_uses_the_same_masks_whatever_the_pass(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path)
    first = trainer.evaluate()
    trainer.data_collator.epoch = 5
    second = trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    assert first["eval_latent_loss"] == second["eval_latent_loss"]


def test_evaluation_leaves_the_random_states_of_other_devices_alone(tokenizer, examples, tmp_path, monkeypatch):
    forked = []
    fork_rng = torch.random.fork_rng

    def spy(devices=None, **options):
        forked.append(devices)
        return fork_rng(devices, **options)

    monkeypatch.setattr(torch.random, "fork_rng", spy)
    make_trainer(tokenizer, examples, tmp_path).evaluate()
    assert forked == [[]]


def test_each_pass_has_its_own_order_and_masks(tokenizer, examples, tmp_path):
    sizes = {"per_device_train_batch_size": 40, "num_train_epochs": 3}
    trainer = make_trainer(tokenizer, examples, tmp_path, max_steps=-1, **sizes)
    seen = []
    step = trainer.training_step

    def recording(model, inputs, *args, **kwargs):
        seen.append((trainer.data_collator.epoch, trainer.train_sampler.epoch))
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = recording
    trainer.train()
    assert seen == [(epoch, epoch) for epoch in range(3) for _ in range(2)]


def test_masks_of_a_stream_belong_to_the_pass_that_each_example_names(tokenizer, examples):
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False))
    row = examples[0]
    rows = [{**row, "epoch": 0}, {**row, "epoch": 1}]
    mixed = collator(rows)["target_positions"]
    for epoch in (0, 1):
        collator.epoch = epoch
        found = collator([row, row])["target_positions"]
        assert torch.equal(found[epoch], mixed[epoch])
    assert not torch.equal(*mixed)


def test_accumulation_does_not_change_the_loss_of_the_classifier(tokenizer, examples, tmp_path):
    """The stock Trainer multiplies the loss of a model that seems to count items and does not."""
    config = make_model(tokenizer, classifier_dropout=0.0).config
    rows = []
    for number, row in enumerate(examples.select(range(16))):
        rows.append({"input_ids": row["input_ids"][:6], "labels": number % 2})
    losses = []
    for size, accumulation in ((16, 1), (4, 4)):
        torch.manual_seed(0)
        args = TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            save_strategy="no",
            logging_steps=1,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer = Trainer(TextJepaForSequenceClassification(config), args, train_dataset=rows)
        trainer.train()
        record = trainer.state.log_history[0]
        losses.append((record["loss"], record["grad_norm"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_terms_of_the_evaluation_add_up_with_a_short_last_batch(tokenizer, examples, tmp_path):
    trainer = make_trainer(tokenizer, examples, tmp_path, per_device_eval_batch_size=6)  # 16 texts: 6, 6 and 4
    found = trainer.evaluate()
    weight = trainer.model.config.token_loss_weight
    total = found["eval_latent_loss"] + weight * found["eval_token_loss"]
    assert found["eval_loss"] == pytest.approx(total, rel=1e-5)


# ---- collapse -------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(tokenizer, examples):
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False), num_masks=2)
    return collator([examples[i] for i in range(32)])


def test_measures_leave_the_model_as_it_was(tokenizer, batch):
    model = make_model(tokenizer).train()
    before = parameters_of(model)
    measure_representations(model, batch)
    assert model.training
    assert not model.target_encoder.training
    assert same_weights(before, parameters_of(model))


@pytest.mark.parametrize("target_input", ["text", "spans"])
def test_copying_is_measured_where_visible_tokens_have_targets(tokenizer, batch, target_input):
    model = make_model(tokenizer, target_input=target_input)
    measures = measure_representations(model, batch)
    assert ("copy_relative_loss" in measures) == (target_input == "text")
    assert {"relative_loss", "target_spread"} <= measures.keys()


def test_an_encoder_that_says_the_same_of_everything_shows_it(tokenizer, batch):
    model = make_model(tokenizer)
    healthy = measure_representations(model, batch)
    assert metrics.collapse_signs(healthy, 32) == []
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.mul_(1e-4)
    signs = metrics.collapse_signs(measure_representations(model, batch), 32)
    assert any("dimensions" in sign or "hardly differ" in sign or "same way" in sign for sign in signs)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"token_rank": 1.2}, "1.2 of 32 dimensions"),
        ({"cosine_other_text": 0.999}, "same way"),
        ({"spread": 1e-5}, "hardly differ"),
        ({"relative_loss": math.nan}, "not finite"),
        ({"pooled_rank": 4.9}, "4.9 dimensions, 10.0 at first"),
    ],
)
def test_signs_of_collapse_are_told_in_plain_words(changed, words):
    healthy = {
        "token_rank": 20.0,
        "pooled_rank": 5.1,
        "cosine_other_text": 0.3,
        "spread": 0.8,
        "relative_loss": 0.7,
    }
    first = {**healthy, "pooled_rank": 10.0}
    assert metrics.collapse_signs(healthy, 32, first) == []
    (sign,) = metrics.collapse_signs({**healthy, **changed}, 32, first)
    assert words in sign


@pytest.mark.parametrize(
    ("name", "found", "kept", "lost"),
    [
        ("token_rank", 2.0, 1.5, 0.9),
        ("cosine_other_text", 0.99, 0.994, 0.996),
        ("spread", 9e-4, 5e-4, 4e-4),
        ("pooled_rank", 1.2, 0.7, 0.5),
    ],
    ids=["low rank", "narrow cone", "small states", "few texts"],
)
def test_what_a_run_found_at_its_first_step_is_no_collapse_unless_half_of_it_is_lost(name, found, kept, lost):
    healthy = {"token_rank": 20.0, "pooled_rank": 5.1, "cosine_other_text": 0.3, "spread": 0.8}
    first = {**healthy, name: found}
    assert metrics.collapse_signs(first, 32, first) == []
    assert metrics.collapse_signs({**first, name: kept}, 32, first) == []
    assert len(metrics.collapse_signs({**first, name: lost}, 32, first)) == 1


def test_a_tiny_held_out_part_raises_no_alarm(tokenizer, examples, tmp_path):
    """One, two and three texts."""
    trainer = make_trainer(tokenizer, examples, tmp_path, max_steps=12, logging_steps=1)
    monitors = []
    for texts in (1, 2, 3):
        monitors.append(CollapseMonitorCallback(trainer.eval_collator(list(examples.take(texts)))))
        trainer.add_callback(monitors[-1])
    trainer.train()
    for monitor in monitors:
        assert monitor.values
        assert not monitor.collapsed


def test_an_encoder_that_starts_in_a_narrow_cone_raises_no_alarm(tokenizer, batch):
    """As many trained encoders do, such as GPT-like and T5 ones."""
    model = make_model(tokenizer)
    with torch.no_grad():
        model.target_encoder.final_norm.weight.mul_(0.01)
        model.target_encoder.final_norm.bias = torch.nn.Parameter(torch.ones(32))
    monitor = CollapseMonitorCallback(batch)
    for step in range(4):
        monitor.on_step_end(None, TrainerState(global_step=step), TrainerControl(should_log=True), model=model)
    assert monitor.values["cosine_other_text"] > metrics.COLLAPSED_COSINE
    assert not monitor.collapsed


@pytest.mark.parametrize("stop", [False, True])
def test_monitor_warns_once_after_patience_with_the_remedy(tokenizer, batch, capsys, stop):
    model = make_model(tokenizer)
    monitor = CollapseMonitorCallback(batch, stop_on_collapse=stop, patience=2)
    state = TrainerState(is_world_process_zero=True)
    # The first step is measured also where it is not logged.
    monitor.on_step_end(None, state, TrainerControl(should_log=False), model=model)
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.zero_()
    control = TrainerControl(should_log=True)
    warned = []
    for _ in range(4):
        monitor.on_step_end(None, state, control, model=model)
        warned.append(monitor.collapsed)
    assert warned == [False, True, True, True]
    error = capsys.readouterr().err
    assert error.count("WARNING: collapse") == 1
    assert ("--ema_decay_start" in error) == (not stop)
    assert control.should_training_stop == control.should_save == stop


def test_few_tokens_are_no_sign_of_collapse(tokenizer, examples):
    """The rank of 5 tokens cannot exceed 4, whatever the width."""
    example = {"input_ids": examples[0]["input_ids"][:5]}
    batch = DataCollatorForTextJepa(tokenizer)([example])
    monitor = CollapseMonitorCallback(batch, patience=1)
    wide = make_model(tokenizer, text_config={"hidden_size": 256, "num_attention_heads": 4})
    monitor.on_step_end(None, TrainerState(), TrainerControl(should_log=True), model=wide)
    assert monitor.values["token_rank"] < 0.1 * 256
    assert not monitor.collapsed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "fields", "collapses"),
    [
        ({"learning_rate": 1e-3}, {}, False),
        ({"learning_rate": 4e-2, "ema_schedule": "constant", "ema_decay_start": 0}, {"token_loss_weight": 0.0}, True),
    ],
    ids=["healthy", "collapsing"],
)
def test_a_collapsing_run_is_told_from_a_healthy_one(tokenizer, examples, tmp_path, arguments, fields, collapses):
    """Without moving average and grounding and with a high learning rate, against the defaults."""
    model = make_model(tokenizer, text_config={"hidden_size": 64}, **fields)
    arguments = {"max_steps": 300, "logging_steps": 20, "stop_on_collapse": True, **arguments}
    trainer = make_trainer(tokenizer, examples, tmp_path, model=model, **arguments)
    trainer.train()
    assert trainer.monitor.collapsed == collapses
    assert (trainer.state.global_step < 300) == collapses


def test_pooled_texts_are_held_against_the_first_log_also_after_a_resume(tokenizer, batch):
    model = make_model(tokenizer)
    state = TrainerState()
    control = TrainerControl(should_log=True)
    monitor = CollapseMonitorCallback(batch)
    monitor.on_step_end(None, state, control, model=model)
    first = monitor.values
    saved = TrainerState(global_step=1, stateful_callbacks={"CollapseMonitorCallback": monitor.state()})
    resumed = CollapseMonitorCallback(batch)
    resumed.on_train_begin(None, saved, control)
    with torch.no_grad():
        words = model.target_encoder.get_input_embeddings().weight
        words.copy_(words[torch.arange(len(words)) % 8])  # eight words are left
    for _ in range(2):
        resumed.on_step_end(None, saved, control, model=model)
    assert resumed.first == first
    assert resumed.collapsed
    anew = CollapseMonitorCallback(batch)
    for _ in range(2):
        anew.on_step_end(None, state, control, model=model)
    assert not anew.collapsed


def test_a_record_of_a_pass_has_the_measures_of_its_own_step(tokenizer, examples, tmp_path):
    every_step = make_trainer(tokenizer, examples, tmp_path / "steps", max_steps=20, logging_steps=10)
    every_step.train()
    every_pass = make_trainer(tokenizer, examples, tmp_path / "passes", max_steps=20, logging_strategy="epoch")
    every_pass.train()
    found = {record["step"]: record["token_rank"] for record in training_records(tmp_path / "passes")}
    expected = {record["step"]: record["token_rank"] for record in training_records(tmp_path / "steps")}
    assert found == expected
    assert len(set(found.values())) == len(found) == 3


def test_time_of_the_monitor_is_not_time_of_training(tokenizer, examples, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    for module in (collapse, run_log, trainer_module):
        monkeypatch.setattr(module, "time", clock)
    trainer = make_trainer(tokenizer, examples, tmp_path, max_steps=4, logging_steps=2)
    measure = collapse.measure_representations
    train = trainer.training_step

    def measure_for_ten_seconds(*args):
        clock.now += 10
        return measure(*args)

    def train_for_a_second(*args, **kwargs):
        clock.now += 1
        return train(*args, **kwargs)

    monkeypatch.setattr(collapse, "measure_representations", measure_for_ten_seconds)
    trainer.training_step = train_for_a_second
    trainer.train()
    seconds = [record["train_seconds"] for record in trainer.state.log_history if "train_seconds" in record]
    assert seconds == [1, 2, 4]
    assert clock.now == 4 + 3 * 10


def test_monitor_measures_the_first_step_and_then_only_when_something_is_logged(tokenizer, batch):
    monitor = CollapseMonitorCallback(batch)
    model = make_model(tokenizer)
    for _ in range(2):
        monitor.on_step_end(None, TrainerState(), TrainerControl(should_log=False), model=model)
        measured, monitor.values = monitor.values, {}
    assert monitor.first
    assert measured == {}


def test_only_what_a_run_does_not_have_is_advised_against_a_collapse():
    advice = {name: describe_remedies(TextJepaConfig(mask_token_id=4, **OBJECTIVES[name])) for name in OBJECTIVES}
    for sentence in advice.values():
        assert "lower --learning_rate" in sentence
    # The default has fixed targets; jepa has words and a contrast already, data2vec neither.
    assert "ema" not in advice["documents"]
    assert "--sentence_loss" not in advice["jepa"] + advice["simcse"]
    assert "--token_loss_weight" not in advice["jepa"]
    assert "--token_loss_weight 0.1" in advice["data2vec"]
    assert "--sentence_loss_weight 0.5" in advice["data2vec"]


def test_a_collapse_stays_in_log_and_checkpoint(tokenizer, examples, tmp_path):
    """A monitor that is given is the one that watches, with a batch of the evaluation set."""
    monitor = CollapseMonitorCallback(patience=1)
    trainer = make_trainer(tokenizer, examples, tmp_path, max_steps=3, logging_steps=2, callbacks=[monitor])
    assert trainer.monitor is monitor
    assert len(monitor.batch["input_ids"]) == 16
    measure = monitor._measure

    def collapse_at_two(model):
        measure(model)
        monitor.signs = ["tokens hardly differ"] if trainer.state.global_step == 2 else []

    monitor._measure = collapse_at_two
    trainer.train()
    # The last step is logged though 3 is no multiple of 2.
    assert [(r["step"], r.get("collapsed_at")) for r in training_records(tmp_path)] == [(1, None), (2, 2), (3, 2)]
    assert monitor.state()["attributes"]["warning"] == {"step": 2, "signs": ["tokens hardly differ"]}
    trainer._save_checkpoint(trainer.model, None)
    assert describe_run(trainer)["collapse"] == {"step": 2, "signs": ["tokens hardly differ"], "lasts": False}
    # A run that was killed after its last checkpoint is finished without training.
    resumed = make_trainer(tokenizer, examples, tmp_path, max_steps=3)
    assert load_finished(resumed, str(tmp_path / "checkpoint-3"))
    assert resumed.monitor.warning == monitor.warning


def test_texts_are_held_out_in_batches_of_training_if_a_loss_of_ones_own_may_compare_them(
    tokenizer, examples, tmp_path
):
    class WithOwnLoss(TextJepaForPreTraining):
        def compute_losses(self, context, *inputs):
            return super().compute_losses(context, *inputs) | {"own": context.pooled.std()}

    sizes = {}
    for model_class in (TextJepaForPreTraining, WithOwnLoss):
        model = make_model(tokenizer)
        model.__class__ = model_class
        arguments = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8}
        trainer = make_trainer(tokenizer, examples, tmp_path, model=model, **arguments)
        first = next(iter(trainer.get_eval_dataloader()))
        sizes[model_class] = len(first["input_ids"])
    assert sizes == {TextJepaForPreTraining: 8, WithOwnLoss: 4}


def test_a_monitor_without_texts_to_watch_is_refused(tokenizer, examples, tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, eval_strategy="no", report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="set eval_strategy, or give it a batch"):
        CollapseMonitorCallback().on_train_begin(args, TrainerState(), TrainerControl())


def test_a_run_without_log_entries_says_that_collapse_is_not_watched(tokenizer, examples, tmp_path, caplog):
    make_trainer(tokenizer, examples, tmp_path / "logs")
    assert "collapse" not in caplog.text
    make_trainer(tokenizer, examples, tmp_path / "none", logging_strategy="no")
    assert caplog.text.count("--logging_strategy no: collapse is not watched") == 1
    with pytest.raises(ValueError, match="--stop_on_collapse has no effect with --logging_strategy no"):
        make_trainer(tokenizer, examples, tmp_path / "stop", logging_strategy="no", stop_on_collapse=True)


# ---- what it takes --------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """Texts as rows of an array, which has no columns."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return {"input_ids": self.ids[row]}


def test_texts_may_be_rows_of_an_array(tokenizer, tmp_path):
    rows = Rows(np.random.default_rng(0).integers(5, len(tokenizer), (24, 9)))
    assert lengths_of(rows) == [9] * 24
    args = TextJepaTrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=8)
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False))
    TextJepaTrainer(make_model(tokenizer), args, collator, rows, rows, processing_class=tokenizer).train()
    assert (tmp_path / "checkpoint-1").is_dir()


def test_arguments_of_the_stock_trainer_and_metrics_that_nothing_calls_are_refused(tokenizer, examples, tmp_path):
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False))
    stock = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match="expected TextJepaTrainingArguments, got TrainingArguments"):
        TextJepaTrainer(make_model(tokenizer), stock, collator, examples)
    own = TextJepaTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"compute_metrics would never be called.*on_evaluate of a callback"):
        TextJepaTrainer(make_model(tokenizer), own, collator, examples, compute_metrics=dict)


def test_a_process_uses_one_of_several_gpus_and_says_so(tokenizer, examples, tmp_path, caplog):
    args = TextJepaTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    args._n_gpu = 2
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False))
    trainer = TextJepaTrainer(make_model(tokenizer), args, collator, examples)
    assert "one of 2 GPUs is used; to use all, start one process for each with accelerate launch" in caplog.text
    assert (args.n_gpu, args.train_batch_size) == (1, 8)
    assert not isinstance(trainer._wrap_model(trainer.model), torch.nn.DataParallel)


def test_lengths_are_counted_and_a_forward_of_any_form_keeps_held_out_losses(tokenizer, examples, tmp_path):
    class AnyForm(TextJepaForPreTraining):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = AnyForm(make_model(tokenizer).config)
    without = examples.remove_columns("length")
    trainer = make_trainer(tokenizer, without, tmp_path, model=model, max_steps=1)
    assert list(lengths_of(without)) == examples["length"][:]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


# ---- what a person sees ---------------------------------------------------------------------------------------------


def test_line_of_health_has_loss_relative_loss_rank_decay_and_speed():
    logs = {"loss": 0.41, "relative_loss": 0.553, "copy_relative_loss": 1.2, "token_rank": 37.2}
    line = health_line({**logs, "ema_decay": 0.95, "tokens_per_second": 5300.0}, 150, 600, 128)
    for part in (
        "150/600",
        "loss 0.41",
        "relative 0.553 (copying 1.200)",
        "rank 37/128",
        "decay 0.95",
        "5,300 tokens/s",
    ):
        assert part in line
    without = health_line({"loss": 0.41, "relative_loss": 0.553, "tokens_per_second": 5300.0}, 150, 600, 128)
    assert "relative 0.553" in without
    assert "copying" not in without
    assert "held-out loss 0.5" in health_line({"eval_loss": 0.5}, 1, 2, 128)
    assert health_line({"train_runtime": 3.0}, 1, 2, 128) == ""


def test_metrics_file_starts_anew_with_a_new_run(tokenizer, examples, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 99, "loss": 1.0}) + "\n")
    make_trainer(tokenizer, examples, tmp_path, max_steps=1).train()
    assert {record["step"] for record in read_metrics(tmp_path)} == {1}
