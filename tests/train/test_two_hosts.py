"""Two hosts on this machine: network namespaces with a cable between them, which is cut in the middle of a run.

Run: python -m pytest -q -m distributed tests/train/test_two_hosts.py   (as root, on Linux)
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT = 15
WORDS = ["boat", "river", "stone", "bread", "night", "green", "seven", "window", "paper", "salt"]


class Hosts:
    """Two network namespaces; each sees a folder of its own, or both the same, in one and the same place."""

    def __init__(self, folder):
        self.folder = folder
        self.place = folder / "host"
        self.place.mkdir()
        self.names = [f"tj{os.getpid()}{letter}" for letter in "ab"]
        self.ends = [f"tj{os.getpid() % 100000}{letter}" for letter in "ab"]

    def start(self):
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names
        ip("link", "add", self.ends[0], "netns", first, "type", "veth", "peer", "name", self.ends[1], "netns", second)
        for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")

    def remove(self):
        for number, name in enumerate(self.names):
            self.kill(number)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def plug(self, state):
        """Plugs the cable in, `"up"`, or out, `"down"`."""
        ip("-n", self.names[0], "link", "set", self.ends[0], state)

    def kill(self, number):
        """Kills all processes of a host."""
        found = subprocess.run(["ip", "netns", "pids", self.names[number]], capture_output=True, text=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def launch(self, number, disk, *flags):
        """Starts a host's part of a run, whose files are those of a folder that stands for its disk."""
        # What `ip netns exec` mounts is seen by its own processes alone.
        script = f'mount --bind {disk} {self.place} && exec "$@"'
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(number)]
        torchrun += ["--master_addr", ADDRESSES[0], "--master_port", "29511", "--nproc_per_node", "1"]
        command = ["ip", "netns", "exec", self.names[number], "sh", "-c", script, "sh", sys.executable, *torchrun]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.ends[number],
            "HF_HOME": str(self.place / "cache"),
        }
        with (disk / f"log{number}.txt").open("w") as log:
            return subprocess.Popen([*command, *flags], env=environment, stdout=log, stderr=log, cwd=ROOT)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    found = Hosts(folder)
    try:
        found.start()
    except (OSError, subprocess.CalledProcessError) as error:
        found.remove()
        pytest.skip(f"network namespaces are not allowed here: {error}")
    yield found
    found.remove()


def make_disk(hosts, name):
    """A disk with a copy of the corpus."""
    disk = hosts.folder / name
    disk.mkdir()
    generator = random.Random(0)
    with (disk / "texts.jsonl").open("w") as file:
        for number in range(60):
            words = generator.choices(WORDS, k=8)
            text = " ".join(generator.choices(words, k=20 + number % 40))
            file.write(json.dumps({"text": text}) + "\n")
    return disk


def run_on(hosts, disks):
    """Starts a run on both hosts."""
    flags = [
        *(str(ROOT / "run_pretraining.py"), str(ROOT / "configs" / "default.yaml")),
        *("--train_file", str(hosts.place / "texts.jsonl")),
        *("--text_config", json.dumps({"hidden_size": 32, "num_attention_heads": 2})),
        *("--vocab_size", "300", "--per_device_train_batch_size", "8", "--max_steps", "60", "--save_steps", "10"),
        *("--logging_steps", "10", "--ddp_timeout", str(TIMEOUT), "--use_cpu"),
        *("--resume_from_checkpoint", "auto", "--output_dir", str(hosts.place / "run")),
    ]
    return [hosts.launch(number, disk, *flags) for number, disk in enumerate(disks)]


def end_of(process):
    return process.wait(timeout=240)


def log_of(disk, number):
    return (disk / f"log{number}.txt").read_text()


@pytest.fixture(scope="module")
def undisturbed(hosts):
    """The weights of a run that nothing happens to, on hosts that share a folder."""
    disk = make_disk(hosts, "undisturbed")
    processes = run_on(hosts, [disk, disk])
    assert [end_of(process) for process in processes] == [0, 0], log_of(disk, 0)
    return load_file(disk / "run" / "pretraining" / "model.safetensors")


def lose(hosts, disks, loss, checkpoints):
    """Starts a run and loses a host of it after a checkpoint; looks at how the other one ends."""
    processes = run_on(hosts, disks)
    deadline = time.monotonic() + 240
    while not list((disks[0] / "run").glob(checkpoints)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if loss == "cable":
        hosts.plug("down")
    else:
        hosts.kill(1)
    try:
        # torchrun's own, whose process ended with 2.
        assert end_of(processes[0]) == 1
        end_of(processes[1])
    finally:
        hosts.plug("up")
    log = log_of(disks[0], 0)
    ours = log.split("torch/distributed/elastic")[0]
    assert f"another process ended or did not respond within {TIMEOUT} s (--ddp_timeout)" in ours
    assert "--resume_from_checkpoint auto" in ours
    assert "Traceback" not in ours
    assert "(exitcode: 2)" in log
    assert not (disks[0] / "run" / "pretraining").exists()


def test_a_host_that_is_lost_ends_the_other_in_one_line_and_the_restart_goes_on_exactly(hosts, undisturbed):
    """Within the timeout: its cable is cut, then all its processes are killed. Each has a folder of its own."""
    disks = [make_disk(hosts, "first"), make_disk(hosts, "second")]
    lose(hosts, disks, "cable", "checkpoint-[12]0")
    lose(hosts, disks, "host", "checkpoint-[34]0")
    again = run_on(hosts, disks)
    assert [end_of(process) for process in again] == [0, 0], log_of(disks[0], 0) + log_of(disks[1], 1)
    found = load_file(disks[0] / "run" / "pretraining" / "model.safetensors")
    assert found.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        assert torch.equal(found[name], value), name
    assert not list((disks[1] / "run").glob("*"))
