"""Trackers get every figure and no secret; progress bars show speed and time left on a terminal, nothing elsewhere.

Trackio and wandb are stand-ins here that keep what transformers' integrations send them.

Run: python -m pytest -q tests/train/test_trackers.py
"""

import importlib.machinery
import io
import re
import sys
from contextlib import redirect_stderr
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from test_trainer import examples  # noqa: F401
from test_trainer_terms import make_trainer  # noqa: F401
from transformers import BertConfig, BertModel, TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

from text_jepa import TextJepaTrainingArguments
from text_jepa.cli import UsageError
from text_jepa.encoders.embeddings import Encoder, embed_texts
from text_jepa.train.checks import check_trackers
from text_jepa.train.pretraining import train
from text_jepa.train.run_log import read_metrics


SECRET = "hf_canaryOfTheTrackersThatNoFileMayHold"


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)


def figures_of(output_dir):
    """(name as transformers gives it to trackers, step) -> the number in metrics.jsonl."""
    figures = {}
    for record in read_metrics(output_dir):
        step = record.pop("step")
        for name, value in rewrite_logs(record).items():
            figures[name, step] = value
    return figures


def stand_in(monkeypatch, name, **attributes):
    """Installs a module of that name for the time of a test."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def trackio(monkeypatch):
    """A stand-in for trackio: run -> the figures it got, `None` for a run without a name."""
    runs = {}
    current = []

    def init(project, name, **options):
        current[:] = [name]
        runs.setdefault(name, [])

    class Config(dict):
        def update(self, values, **options):
            super().update(values)

    nowhere = SimpleNamespace(get=lambda: None)
    stand_in(
        monkeypatch,
        "trackio",
        init=init,
        log=lambda figures: runs[current[0]].append(figures),
        finish=current.clear,
        config=Config(),
        context_vars=SimpleNamespace(current_space_id=nowhere, current_project=nowhere),
        __version__="1.0",
    )
    return runs


# ---- trackers -------------------------------------------------------------------------------------------------------


def test_no_tracker_is_the_default(tmp_path):
    args = TextJepaTrainingArguments(str(tmp_path / "run"), use_cpu=True)
    assert args.report_to == []
    assert args.run_name is None


def test_tensorboard_gets_every_figure_of_a_run_that_was_resumed_and_no_secret(make_trainer, monkeypatch):  # noqa: F811
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("HF_TOKEN", SECRET)
    arguments = {"report_to": ["tensorboard"], "save_strategy": "steps", "save_steps": 2}
    make_trainer(**arguments, max_steps=4).train()
    trainer = make_trainer(**arguments, max_steps=4)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    trainer.evaluate()
    runs = Path(trainer.args.output_dir, "runs")
    files = [path for path in runs.rglob("*") if path.is_file()]
    found = {}
    for folder in sorted({path.parent for path in files}):
        events = EventAccumulator(str(folder)).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found[name, event.step] = event.value
    expected = figures_of(trainer.args.output_dir)
    names = {name for name, _ in expected}
    assert {"train/latent_loss", "train/relative_loss", "train/token_rank", "eval/loss"} <= names
    assert expected.keys() <= found.keys()
    for (name, step), value in expected.items():
        if not re.search("second|runtime", name):
            assert found[name, step] == pytest.approx(value, rel=1e-6), name
    assert all(SECRET.encode() not in path.read_bytes() for path in files)


def test_trackio_gets_every_figure_in_one_run_though_it_was_resumed_and_evaluated_at_the_end(make_trainer, trackio):  # noqa: F811
    arguments = {"report_to": ["trackio"], "save_strategy": "steps", "save_steps": 2}
    make_trainer(**arguments).train()
    trainer = make_trainer(**arguments)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    trainer.evaluate()
    assert list(trackio) == ["run"]
    found = {}
    for figures in trackio["run"]:
        for name, value in figures.items():
            found[name, figures["train/global_step"]] = value
    expected = figures_of(trainer.args.output_dir)
    assert ("eval/loss", 4) in expected
    assert {key: found.get(key) for key in expected} == expected


def test_a_name_that_was_given_is_the_name_of_the_run(make_trainer, trackio):  # noqa: F811
    make_trainer(report_to=["trackio"], run_name="mine", max_steps=1).train()
    assert list(trackio) == ["mine"]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"--report_to: .*pip install {name}"):
        check_trackers(SimpleNamespace(report_to=[name], process_index=0))


def test_wandb_without_a_login_is_said_before_anything_is_prepared(monkeypatch):
    def login():
        raise LookupError("No API key configured.")

    stand_in(monkeypatch, "wandb", run=None, login=login)
    with pytest.raises(UsageError, match="--report_to: No API key configured"):
        check_trackers(SimpleNamespace(report_to=["wandb"], process_index=0))
    check_trackers(SimpleNamespace(report_to=["wandb"], process_index=1))  # the first process asks for all


@pytest.mark.parametrize(
    ("name", "remedy"), [("wandb", "set WANDB_MODE=offline, or leave it out"), ("mlflow", "leave it out")]
)
def test_a_tracker_that_cannot_begin_is_one_line_with_its_remedy(make_trainer, name, remedy):  # noqa: F811
    class CommError(Exception):
        pass

    class Tracker(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            raise CommError("the server does not answer\nTraceback …")

    trainer = make_trainer()
    trainer.callback_handler.callbacks.insert(0, Tracker())
    trainer.args.report_to = [name]
    with pytest.raises(UsageError, match=f"^--report_to: the server does not answer; {remedy}$"):
        train(trainer, None)


def test_another_error_before_training_is_not_that_of_a_tracker(make_trainer):  # noqa: F811
    def fail():
        raise LookupError("a bug")

    trainer = make_trainer()
    trainer.args.report_to = ["wandb"]
    trainer.get_train_dataloader = fail
    with pytest.raises(LookupError, match="a bug"):
        train(trainer, None)


# ---- progress -------------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """What goes to stderr, which is a terminal or not."""

    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


TERMINAL_OR_FILE = pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "file"])


@TERMINAL_OR_FILE
def test_bar_of_training_tells_tokens_per_second_and_time_left_on_a_terminal_alone(make_trainer, is_terminal):  # noqa: F811
    with redirect_stderr(Screen(is_terminal)) as screen:
        make_trainer(max_steps=4, disable_tqdm=False).train()
    shown = screen.getvalue()
    if is_terminal:
        assert re.search(r"Training: 100%.* 4/4 \[\d\d:\d\d<\d\d:\d\d,.*[\d,]+ tokens/s\]", shown)
    else:
        assert shown == ""


def test_bar_of_a_resumed_run_begins_where_it_was(make_trainer):  # noqa: F811
    make_trainer(save_strategy="steps", save_steps=3).train()
    trainer = make_trainer(save_strategy="steps", save_steps=3, disable_tqdm=False)
    with redirect_stderr(Screen(True)) as screen:
        trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-3")
    assert "| 3/4 [" in screen.getvalue()
    assert "| 0/4 [" not in screen.getvalue()


@TERMINAL_OR_FILE
def test_bar_of_embedding_tells_texts_and_tokens_per_second_on_a_terminal_alone(tokenizer, texts, is_terminal):
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = BertModel(config, add_pooling_layer=False)
    with redirect_stderr(Screen(is_terminal)) as screen:
        embed_texts(Encoder("it", model, tokenizer), texts, batch_size=2)
    if is_terminal:
        assert re.search(rf"Embedding {len(texts)} texts: .* tokens/s\]", screen.getvalue())
    else:
        assert screen.getvalue() == ""
