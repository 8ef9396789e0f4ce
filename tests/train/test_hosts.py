"""What processes on several machines must have in common, and what is said of the loss of one, or of too few."""

import contextlib
import socket
from types import SimpleNamespace

import pytest
import torch

from text_jepa.cli import UsageError
from text_jepa.train import checks, hosts


TWO = SimpleNamespace(world_size=2, process_index=0, ddp_timeout=7, load_best_model_at_end=False)
ONE = SimpleNamespace(world_size=1)


@pytest.fixture
def second(monkeypatch):
    """Sets what the second process says when the first one has said something."""

    def answer(fingerprint):
        said = []
        monkeypatch.setattr(hosts, "gather_object", lambda own: said.append(own) or own)
        hosts.check_same(fingerprint, TWO)
        monkeypatch.setattr(hosts, "gather_object", lambda own: own + said[0])

    return answer


def test_processes_with_the_same_settings_texts_and_tokenizer_agree(second):
    second({"seed": 1, "data": "5 texts", "tokenizer": "2 tokens"})
    hosts.check_same({"tokenizer": "2 tokens", "data": "5 texts", "seed": 1}, TWO)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2}, "seed is 2 in process 0 "),
        ({"data": "6 texts"}, "data is '6 texts' in process 0 "),
        ({"tokenizer": "3 tokens"}, "tokenizer is '3 tokens' in process 0 "),
    ],
)
def test_processes_that_differ_are_named(second, change, said):
    same = {"seed": 1, "data": "5 texts", "tokenizer": "2 tokens"}
    second(same)
    with pytest.raises(UsageError, match=said) as error:
        hosts.check_same({**same, **change}, TWO)
    assert f"in process 1 ({socket.gethostname()})" in str(error.value)
    assert "same files on all machines" in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
        RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:1"),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 7000ms for recv operation"),
    ],
)
def test_the_loss_of_a_process_is_one_line_with_the_remedy(monkeypatch, error):
    timeouts = []
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_set_pg_timeout", timeouts.append)
    args = SimpleNamespace(**vars(TWO), ddp_timeout_delta="7 s")
    with (
        pytest.raises(UsageError, match=r"within 7 s \(--ddp_timeout\).*--resume_from_checkpoint auto"),
        hosts.naming_lost_processes(args),
    ):
        raise error
    assert timeouts == ["7 s"]


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_set_pg_timeout", lambda timeout: None)
    args = SimpleNamespace(**vars(TWO), ddp_timeout_delta="7 s")
    for args_of_run, error in (
        (args, RuntimeError("shapes differ")),
        (ONE, RuntimeError("Connection closed by peer")),
    ):
        with pytest.raises(RuntimeError) as raised, hosts.naming_lost_processes(args_of_run):
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    ("words", "is_refused"),
    [
        (["python", "/env/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "run.py"], True),
        (["python", "/env/bin/accelerate", "launch", "--cpu", "--num_processes=2", "run.py"], True),
        (["python", "/env/bin/accelerate-launch", "--cpu", "-n", "2", "run.py"], True),
        (["python", "-m", "accelerate.commands.launch", "--cpu", "--num-processes", "2", "run.py"], True),
        (["python", "/env/bin/accelerate", "launch", "--num_processes", "1", "run.py"], False),
        (["python", "/env/bin/accelerate", "launch", "--num_processes=1", "run.py"], False),
        (["python", "/home/me/accelerate-tests/sweep.py", "-n", "2"], False),
        (["python", "sweep.py", "--with", "accelerate", "-n", "2"], False),
    ],
)
def test_processes_that_accelerate_was_asked_for_are_told_from_other_numbers(monkeypatch, words, is_refused):
    parent = SimpleNamespace(cmdline=lambda: words)
    monkeypatch.setattr(checks.psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    refused = pytest.raises(UsageError, match="--num_processes 2: accelerate started one process")
    with refused if is_refused else contextlib.nullcontext():
        checks.check_processes(ONE)


def test_a_process_that_may_not_be_looked_at_is_no_launcher(monkeypatch):
    def refuse():
        raise checks.psutil.AccessDenied

    monkeypatch.setattr(checks.psutil, "Process", lambda: SimpleNamespace(parent=refuse))
    checks.check_processes(ONE)
