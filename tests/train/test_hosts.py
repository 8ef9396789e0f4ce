"""What processes on several machines must have in common, and what is said of the loss of one."""

import socket
from types import SimpleNamespace

import pytest
import torch

from text_jepa.cli import UsageError
from text_jepa.train import hosts


TWO = SimpleNamespace(world_size=2, process_index=0, ddp_timeout=7, load_best_model_at_end=False)
ONE = SimpleNamespace(world_size=1)


class Words:
    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}


@pytest.fixture
def second(monkeypatch):
    """Sets what the second process says when the first one has said something."""

    def answer(fingerprint, tokenizer):
        said = []
        monkeypatch.setattr(hosts, "gather_object", lambda own: said.append(own) or own)
        hosts.check_same(fingerprint, tokenizer, TWO)
        monkeypatch.setattr(hosts, "gather_object", lambda own: own + said[0])

    return answer


def test_processes_with_the_same_settings_texts_and_tokenizer_agree(second):
    second({"seed": 1, "data": "5 texts"}, Words("a", "b"))
    hosts.check_same({"data": "5 texts", "seed": 1}, Words("a", "b"), TWO)


@pytest.mark.parametrize(
    ("fingerprint", "words", "said"),
    [
        ({"seed": 2, "data": "5 texts"}, ("a", "b"), "seed is 2 in process 0 "),
        ({"seed": 1, "data": "6 texts"}, ("a", "b"), "data is '6 texts' in process 0 "),
        ({"seed": 1, "data": "5 texts"}, ("b", "a"), "tokenizer is "),
    ],
)
def test_processes_that_differ_are_named(second, fingerprint, words, said):
    second({"seed": 1, "data": "5 texts"}, Words("a", "b"))
    with pytest.raises(UsageError, match=said) as error:
        hosts.check_same(fingerprint, Words(*words), TWO)
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
