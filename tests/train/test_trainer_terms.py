"""What the trainer does with loss terms, mask strategies, schedules and masks in turn, and what it logs of them."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from test_trainer import examples, make_model, parameters_of  # noqa: F401
from transformers import TrainerCallback

from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaTrainer, TextJepaTrainingArguments, metrics
from text_jepa.data.collator import DataCollatorForTextJepa, split_masks
from text_jepa.data.strategies import MaskStrategy, ViewStrategy
from text_jepa.train.callbacks import ema_decay
from text_jepa.train.collapse import measure_representations
from text_jepa.train.run_log import read_metrics


STRATEGIES = [
    MaskStrategy(name="short", ratio=0.3, whole_words=False),
    MaskStrategy(name="end", kind="suffix", ratio=0.4, whole_words=False, weight=2.0),
]
EVERY_TERM = {
    "token_loss_candidates": 10_000,
    "sentence_loss_weight": 0.5,
    "variance_loss_weight": 0.2,
    "covariance_loss_weight": 0.1,
}


@pytest.fixture
def make_trainer(tokenizer, examples, tmp_path):  # noqa: F811
    """Builds a trainer of 4 steps of 8 texts whose every step is logged, in a folder of its name."""

    def build(name="run", fields=None, masks=None, **arguments):
        arguments = {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            **arguments,
        }
        masks = {
            "num_masks": 2,
            "strategies": MaskStrategy(whole_words=False),
            **(masks or {}),
        }
        if (fields or {}).get("document_loss_weight"):
            masks.setdefault("view", ViewStrategy("crop"))
        return TextJepaTrainer(
            make_model(tokenizer, **(fields or {})),
            TextJepaTrainingArguments(str(tmp_path / name), use_cpu=True, **arguments),
            DataCollatorForTextJepa(tokenizer, **masks),
            examples.select(range(80)),
            examples.select(range(80, 96)),
            processing_class=tokenizer,
        )

    return build


def train(trainer, checkpoint=None):
    """Trains; the records of the log of training."""
    trainer.train(resume_from_checkpoint=checkpoint)
    return [record for record in read_metrics(trainer.args.output_dir) if "loss" in record]


def test_held_out_datasets_may_have_names(make_trainer, examples):  # noqa: F811
    trainer = make_trainer(eval_strategy="epoch")
    named = {"first": examples.select(range(80, 88)), "second": examples.select(range(88, 96))}
    model = trainer.model
    trainer = TextJepaTrainer(model, trainer.args, trainer.data_collator, trainer.train_dataset, named)
    assert trainer.monitor.batch["input_ids"].shape[0] == 8
    assert {"eval_first_loss", "eval_second_loss"} <= set(trainer.evaluate())


def test_a_document_loss_without_views_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"the collator makes none: give it view=ViewStrategy\('rest'\)"):
        make_trainer(fields=OBJECTIVES["documents"], masks={"view": None})


class Recorder(TrainerCallback):
    """Keeps what a function makes of model and optimizer at each optimizer step."""

    def __init__(self, look):
        self.look = look
        self.seen = {}

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.seen[state.global_step] = self.look(model, optimizer)


def test_what_processes_exchange_lies_on_their_device(make_trainer, monkeypatch):
    """NCCL gathers nothing that lies elsewhere: the first log of a run on several GPUs would be its end."""
    trainer = make_trainer(fields={"latent_loss_weight": 0.0, "token_loss_weight": 1.0})
    seen = []

    def gather(value, parallel_mode):
        seen.append(value.device)
        return torch.zeros(value.shape)

    monkeypatch.setattr("text_jepa.train.run_log.nested_gather", gather)
    monkeypatch.setattr(TextJepaTrainingArguments, "device", torch.device("meta"))
    trainer.training_totals.take_record(step=1, history=[])
    output = SimpleNamespace(metrics={}, num_samples=1)
    monkeypatch.setattr("transformers.Trainer.evaluation_loop", lambda *args, **kwargs: output)
    trainer.evaluation_loop(None)
    # Of training the strategies and the tokens, of the evaluation the spans.
    assert len(seen) == 3
    assert set(seen) == {torch.device("meta")}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sentence_loss_weight": 1.0},
        {"latent_loss_weight": 0.0, "document_loss_weight": 1.0},
        {"sigreg_loss_weight": 0.1, "covariance_loss_weight": 0.1},
    ],
    ids=["tokens", "contrast", "documents", "statistics"],
)
def test_held_out_losses_do_not_depend_on_the_batch_of_the_evaluation(make_trainer, fields):
    """Of 16 texts: batches of 3 leave one of a single text. A contrast takes the batches of training."""
    found = []
    for size in (3, 8, 32):
        trainer = make_trainer(fields=fields, per_device_eval_batch_size=size)
        figures = trainer.evaluate()
        found.append({name: value for name, value in figures.items() if name.endswith("_loss")})
    assert len(found[0]) > 1
    for figures in found[1:]:
        assert figures == pytest.approx(found[0], rel=1e-6)
    weights = trainer._loss_weights()
    terms = sum(weights[name.removeprefix("eval_")] * found[0][name] for name in found[0] if name != "eval_loss")
    assert found[0]["eval_loss"] == pytest.approx(terms, rel=1e-6)


def test_vectors_and_mask_tokens_do_not_decay(make_trainer):
    trainer = make_trainer()
    decaying = trainer.get_decay_parameter_names(trainer.model)
    assert "predictor.mask_tokens" in dict(trainer.model.named_parameters())
    assert "predictor.mask_tokens" not in decaying
    assert "latent_head.weight" in decaying


def batches_of(trainer):
    """The dictionary into which the batches of each optimizer step will go."""
    steps = {}
    step = trainer.training_step

    def recording(model, inputs, num_items_in_batch=None):
        steps.setdefault(trainer.state.global_step, []).append(inputs)
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = recording
    return steps


def assert_same_weights(first, second):
    found = second.model.state_dict()
    for name, expected in first.model.state_dict().items():
        assert torch.equal(expected, found[name]), name


# ---- schedules ------------------------------------------------------------------------------------------------------


def test_a_frozen_target_encoder_stays_bit_exact_and_then_moves(make_trainer):
    trainer = make_trainer(ema_frozen_steps=2, ema_schedule="constant", ema_decay_start=0.5)
    start = parameters_of(trainer.model.target_encoder)
    moved = {}

    class AfterStep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            now = parameters_of(model.target_encoder)
            moved[state.global_step] = any(not torch.equal(start[name], now[name]) for name in start)

    trainer.add_callback(AfterStep())
    records = train(trainer)
    assert moved == {1: False, 2: False, 3: True, 4: True}
    assert [record["ema_decay"] for record in records] == [1.0, 1.0, 0.5, 0.5]


def test_weight_decay_follows_its_cosine_also_after_a_resume(make_trainer):
    def decays(trainer):
        recorder = Recorder(lambda model, optimizer: {group["weight_decay"] for group in optimizer.param_groups})
        trainer.add_callback(recorder)
        return recorder.seen

    options = {
        "weight_decay": 0.1,
        "weight_decay_end": 0.4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = make_trainer("whole", **options)
    resumed = make_trainer("resumed", **options)
    seen = decays(whole)
    rest = decays(resumed)
    train(whole)
    train(resumed, f"{whole.args.output_dir}/checkpoint-2")
    for step in range(4):
        assert seen[step] == {0.0, ema_decay(step, 4, "cosine", 0.1, 0.4)}
    assert rest == {step: seen[step] for step in (2, 3)}
    assert_same_weights(whole, resumed)


def learning_rates(trainer):
    """The learning rate of each step of a run."""
    recorder = Recorder(lambda model, optimizer: optimizer.param_groups[0]["lr"])
    trainer.add_callback(recorder)
    train(trainer)
    return [recorder.seen[step] for step in sorted(recorder.seen)]


WARMUP_FROM = {
    "lr_scheduler_type": "cosine_warmup_with_min_lr",
    "max_steps": 10,
    "learning_rate": 1e-3,
}


def test_a_warm_up_rises_from_its_start_to_the_peak_and_a_cosine_falls_to_its_end(make_trainer):
    """A share of the run each, as on the command line: 0.2 of the peak, three of ten steps up, 0.01 of the peak."""
    trainer = make_trainer(
        lr_scheduler_kwargs='{"warmup_lr_rate": 0.2, "min_lr_rate": 0.01}',
        warmup_steps=0.3,
        **WARMUP_FROM,
    )
    rates = learning_rates(trainer)
    assert rates[:3] == pytest.approx([2e-4, 6e-4, 1e-3])
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * step / 7)) / 2 for step in range(1, 8)]
    assert rates[3:] == pytest.approx([1e-3 * factor for factor in cosine])
    assert rates[-1] == pytest.approx(1e-5)


def test_the_same_schedule_falls_as_one_cycle_does_and_peaks_and_ends_where_it_does(make_trainer):
    """With its defaults; only the rise is straight, not a cosine."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=10)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 10:
            cycle.step()
    shares = f'{{"warmup_lr_rate": {1 / 25}, "min_lr_rate": {1 / 25 / 1e4}}}'
    trainer = make_trainer(lr_scheduler_kwargs=shares, warmup_steps=0.3, **WARMUP_FROM)
    rates = learning_rates(trainer)
    assert max(rates) == rates[2] == pytest.approx(max(expected))
    assert rates[0] == pytest.approx(expected[0])
    assert rates[2:] == pytest.approx(expected[2:])


def test_weight_decay_is_constant_unless_asked(make_trainer):
    trainer = make_trainer(weight_decay=0.1, max_steps=2)
    recorder = Recorder(lambda model, optimizer: {group["weight_decay"] for group in optimizer.param_groups})
    trainer.add_callback(recorder)
    train(trainer)
    assert recorder.seen == {0: {0.0, 0.1}, 1: {0.0, 0.1}}


def test_a_schedule_of_the_mask_ratio_follows_the_optimizer_step_over_passes(make_trainer):
    """Of accumulated batches too; a pass has 5 steps."""
    masks = {"strategies": MaskStrategy(ratio={"start": 0.1, "end": 0.7, "steps": 4}, whole_words=False)}
    trainer = make_trainer(masks=masks, max_steps=7, gradient_accumulation_steps=2)
    steps = batches_of(trainer)
    train(trainer)
    for step, batches in steps.items():
        assert len(batches) == 2
        for batch in batches:
            # Each text has two masks and two special tokens.
            words = 2 * (batch["attention_mask"].sum() - 2 * len(batch["input_ids"]))
            share = (batch["target_positions"] >= 0).sum() / words
            expected = 0.1 + 0.6 * min(step / 4, 1)
            assert share == pytest.approx(expected, abs=0.06), step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay_end": 0.4, "weight_decay": 0.0}, "weight_decay"),
        ({"ema_frozen_steps": -1}, "ema_frozen_steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TextJepaTrainingArguments(str(tmp_path), **arguments)


def test_more_mask_strategies_than_mask_tokens_are_refused_before_training(make_trainer):
    with pytest.raises(ValueError, match=r"2 mask strategies, the model 1 mask tokens; set pred_num_mask_tokens=2"):
        make_trainer(masks={"strategies": STRATEGIES})


# ---- log ------------------------------------------------------------------------------------------------------------


def test_losses_of_strategies_are_logged_and_their_mean_over_tokens_is_the_latent_loss(make_trainer):
    trainer = make_trainer(
        fields={"pred_num_mask_tokens": 2},
        masks={"strategies": STRATEGIES},
        gradient_accumulation_steps=2,
    )
    steps = batches_of(trainer)
    for number, record in enumerate(train(trainer)):
        counts = {"short": 0, "end": 0}
        for batch in steps[number]:
            tokens = (batch["target_positions"] >= 0).sum(dim=-1)
            for strategy, name in enumerate(counts):
                is_drawn = batch["mask_strategies"] == strategy
                counts[name] += int(tokens[is_drawn].sum())
        total = sum(counts[name] * record[f"latent_loss_{name}"] for name in counts)
        assert total / sum(counts.values()) == pytest.approx(record["latent_loss"], rel=1e-5)
        assert record["latent_loss_short"] != record["latent_loss_end"]


OTHERS = {name: fields for name, fields in OBJECTIVES.items() if name != "jepa"} | {
    "online": {
        "latent_loss_weight": 0.0,
        "token_loss_weight": 0.0,
        "target_encoder_type": "online",
        "sentence_loss_weight": 0.95,
        "sentence_loss_type": "mse",
        "sigreg_loss_weight": 0.05,
    }
}


@pytest.mark.parametrize("objective", OTHERS)
def test_every_objective_is_watched_and_logs_no_decay_of_an_encoder_that_is_not_there(
    make_trainer, tokenizer, objective
):
    masks = {"strategies": MaskStrategy(ratio=0.0), "view": ViewStrategy("same")} if objective == "simcse" else None
    fields = OTHERS[objective] | {"mask_token_id": tokenizer.mask_token_id}
    trainer = make_trainer(fields=fields, masks=masks, max_steps=2)
    has_target_encoder = objective == "data2vec"
    for record in train(trainer):
        assert ("ema_decay" in record) == has_target_encoder
        assert ("relative_loss" in record) == has_target_encoder
        assert {"token_rank", "pooled_rank", "cosine_other_text", "spread"} <= record.keys()
        for term in ("latent", "token", "sentence", "sigreg"):
            weight = getattr(trainer.model.config, f"{term}_loss_weight")
            assert (f"{term}_loss" in record) == (weight > 0), term
    assert metrics.collapse_signs(trainer.monitor.values, 32) == []
    with torch.no_grad():
        for parameter in trainer.model.encoder_of_targets.parameters():
            parameter.zero_()
    collapsed = measure_representations(trainer.model, trainer.monitor.batch)
    assert metrics.collapse_signs(collapsed, 32) != []


def test_the_evaluation_tells_short_spans_from_long_ones(make_trainer):
    trainer = make_trainer(masks={"strategies": MaskStrategy(mean_span_length=4.0, whole_words=False)})
    found = trainer.evaluate()
    trainer.model.eval()
    sums = dict.fromkeys((1, 2, 4, 8), 0.0)
    counts = dict.fromkeys((1, 2, 4, 8), 0)
    for batch in trainer.get_eval_dataloader():
        with torch.no_grad():
            distances = trainer.model(**batch).distances
        rows = zip(
            batch["target_spans"].flatten(0, 1),
            distances.flatten(0, 1),
            strict=True,
        )
        for spans, losses in rows:
            for span in spans[spans >= 0].unique():
                is_span = spans == span
                length = int(is_span.sum())
                shortest = max(bound for bound in sums if bound <= length)
                sums[shortest] += float(losses[is_span].sum())
                counts[shortest] += length
    for shortest, total in sums.items():
        name = f"eval_latent_loss_of_spans_from_{shortest}"
        assert (name in found) == (counts[shortest] > 0)
        if counts[shortest]:
            assert found[name] == pytest.approx(total / counts[shortest], rel=1e-5)
    assert counts[1]
    assert counts[4]


# ---- masks in one pass or one after the other -----------------------------------------------------------------------


PER_TOKEN = {
    "hybrid": {"token_loss_candidates": 10_000},
    "running": {"token_loss_candidates": 10_000, "target_normalization": "running"},
    "data2vec": OBJECTIVES["data2vec"],
    "spans": {"token_loss_candidates": 10_000, "target_input": "spans"},
    "online": {"token_loss_candidates": 10_000, "target_encoder_type": "online", "sigreg_loss_weight": 1e-9},
}


def passes_of(trainer):
    """The list into which the passes of the target encoder in each training step will go."""
    steps = []
    passes = []
    step = trainer.training_step
    trainer.model.encoder_of_targets.register_forward_hook(lambda *_: passes.append(1))

    def counting(*args):
        passes.clear()
        loss = step(*args)
        steps.append(len(passes))
        return loss

    trainer.training_step = counting
    return steps


@pytest.mark.parametrize(
    ("objective", "accumulation"),
    [("hybrid", 1), *((objective, 2) for objective in PER_TOKEN)],
)
def test_masks_one_after_the_other_learn_and_log_what_all_in_one_pass_do(
    make_trainer, tokenizer, objective, accumulation
):
    """Terms that are sums over target tokens: losses, norms, counts, and the gradients of the first step."""
    masks = {"num_masks": 4, "strategies": STRATEGIES}
    fields = {
        "pred_num_mask_tokens": 2,
        "mask_token_id": tokenizer.mask_token_id,
        **PER_TOKEN[objective],
    }
    runs = []
    gradients = []
    for how in ("joint", "sequential"):
        trainer = make_trainer(
            how,
            fields,
            masks,
            max_steps=2,
            mask_batching=how,
            gradient_accumulation_steps=accumulation,
            ema_decay_start=0.9,
        )
        recorder = Recorder(gradients_of)
        trainer.add_callback(recorder)
        passes = passes_of(trainer)
        runs.append(train(trainer))
        gradients.append(recorder.seen[0])
        if how == "joint" or objective not in ("spans", "online"):
            assert passes == [1 + (objective == "online")] * 2 * accumulation
    for joint, sequential in zip(*runs, strict=True):
        assert sequential.keys() == joint.keys()
        assert sequential["tokens_seen"] == joint["tokens_seen"]
        losses = [name for name in joint if "_loss" in name and "sigreg" not in name]
        for name in ("loss", "grad_norm", *losses):
            assert sequential[name] == pytest.approx(joint[name], rel=1e-5, abs=1e-5), name
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5)
    assert max(value.abs().max() for value in gradients[0]) > 1e-2


def gradients_of(model, optimizer):
    """Copies of the gradients of a model."""
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def test_terms_on_whole_batches_look_at_one_mask_at_a_time(make_trainer):
    fields = EVERY_TERM | {"loss_type": "infonce"}
    trainer = make_trainer(fields=fields, max_steps=1, mask_batching="sequential")
    model = copy.deepcopy(trainer.model).train()
    batches = batches_of(trainer)
    (record,) = train(trainer)
    (batch,) = batches[0]
    count = (batch["target_positions"] >= 0).sum()
    parts = [model(**part, num_items_in_batch=count) for part in split_masks(batch)]
    joint = model(**batch)
    for name in ("latent_loss", "variance_loss", "covariance_loss"):
        total = sum(part[name].item() for part in parts)
        assert record[name] == pytest.approx(total, rel=1e-5)
        assert record[name] != pytest.approx(joint[name].item(), rel=1e-4)


def test_a_loss_without_target_tokens_does_not_grow_with_the_passes(make_trainer):
    fields = {
        "latent_loss_weight": 0.0,
        "token_loss_weight": 0.0,
        "sentence_loss_weight": 1.0,
        # In InfoNCE the targets of the other masks are further negatives.
        "sentence_loss_type": "cosine",
    }
    masks = {
        "num_masks": 3,
        "strategies": MaskStrategy(ratio=0.0),
        "view": ViewStrategy("same"),
    }
    losses = {}
    for how in ("joint", "sequential"):
        trainer = make_trainer(how, fields, masks, mask_batching=how, max_steps=1)
        (record,) = train(trainer)
        losses[how] = record["sentence_loss"]
    assert losses["sequential"] == pytest.approx(losses["joint"], rel=1e-5)


class LiveBytes(torch.autograd.graph.saved_tensors_hooks):
    """The most bytes that graphs have held at a time."""

    def __init__(self):
        self.now = self.most = 0
        super().__init__(lambda tensor: _Held(self, tensor), lambda held: held.tensor)


class _Held:
    def __init__(self, live, tensor):
        self.live = live
        self.tensor = tensor
        self.size = tensor.numel() * tensor.element_size()
        live.now += self.size
        live.most = max(live.most, live.now)

    def __del__(self):
        self.live.now -= self.size


def test_memory_of_activations_does_not_grow_with_the_masks_where_they_go_one_after_the_other(make_trainer):
    most = {}
    for how in ("joint", "sequential"):
        trainer = make_trainer(how, masks={"num_masks": 4}, mask_batching=how)
        batch = next(iter(trainer.get_train_dataloader()))
        for count, inputs in ((1, split_masks(batch)[0]), (4, batch)):
            live = LiveBytes()
            with live:
                trainer.training_step(trainer.model, inputs, torch.tensor(100))
            assert live.now == 0
            most[how, count] = live.most
    assert most["joint", 4] > 2 * most["joint", 1]
    assert most["sequential", 4] == most["sequential", 1] == most["joint", 1]


def test_only_the_last_pass_of_a_step_sends_gradients(make_trainer, monkeypatch):
    trainer = make_trainer(masks={"num_masks": 4}, mask_batching="sequential", max_steps=2)
    held_back = []
    no_sync = trainer.accelerator.no_sync

    def counting(model):
        held_back.append(1)
        return no_sync(model)

    monkeypatch.setattr(trainer.accelerator, "no_sync", counting)
    train(trainer)
    assert len(held_back) == 2 * 3


def test_a_run_with_masks_one_after_the_other_resumes_bit_exactly_and_not_as_the_other_kind(make_trainer):
    options = {
        "mask_batching": "sequential",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = make_trainer("whole", **options)
    resumed = make_trainer("resumed", **options)
    train(whole)
    train(resumed, f"{whole.args.output_dir}/checkpoint-2")
    assert_same_weights(whole, resumed)
    assert whole.fingerprint != make_trainer("joint").fingerprint


# ---- the host and the device ----------------------------------------------------------------------------------------


def test_host_looks_at_losses_and_norms_once_a_step(make_trainer, monkeypatch):
    """Where nothing is logged."""
    trainer = make_trainer(logging_first_step=False, logging_steps=100)
    looks = []
    inside = []

    def watching(name):
        method = getattr(trainer, name)

        def watched(*args, **kwargs):
            inside.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                inside.pop()

        monkeypatch.setattr(trainer, name, watched)

    for name in ("_get_grad_norm", "_clip_grad_norm", "compute_loss"):
        watching(name)
    for name in ("tolist", "item", "__float__", "__bool__"):
        method = getattr(torch.Tensor, name)

        def looking(tensor, *args, method=method, name=name):
            if inside and tensor.dim() < 2 and tensor.dtype.is_floating_point:
                looks.append((inside[-1], name))
            return method(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, looking)
    trainer.train()
    assert looks == [("_get_grad_norm", "tolist")] * 4
