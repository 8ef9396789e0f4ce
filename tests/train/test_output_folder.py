"""A run keeps others out of its output folder, from before its first file to after its last one.

Run: python -m pytest -q tests/train/test_output_folder.py
"""

import errno
import fcntl
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import run_pretraining
from text_jepa.cli import UsageError
from text_jepa.train import checks, command
from text_jepa.train.checks import LOCK, check_output_dir, holding_folder, make_folders
from text_jepa.train.command import choose_output_dir, own_output_dir, parse_run


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "_SECONDS_TO_DIE", 0.5)
    return tmp_path


@contextmanager
def another_process(do):
    """A process that does something, and then waits until it is killed; gives its number once it has done it."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        do()
        os.write(writer, b"done")
        time.sleep(600)
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 4) == b"done"
    os.close(reader)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def hold():
    """Holds the folder `run` until the process ends; the block is never left."""
    holder = holding_folder("run", [])
    holder.__enter__()
    Path("run", "metrics.jsonl").write_text("mine")
    held.append(holder)


# A generator that is deleted would leave its block.
held = []


def test_a_second_run_in_a_folder_is_one_line_that_names_it():
    with another_process(hold) as process:
        said = rf"^--output_dir run: another run .*\(process {process} on .*; wait until it ends"
        with pytest.raises(UsageError, match=said), holding_folder("run", []):
            raise AssertionError
        assert Path("run", "metrics.jsonl").read_text() == "mine"
        assert Path("run", LOCK).is_file()


def test_a_run_waits_for_one_that_is_refused_and_removes_its_folder():
    """The first of two runs that begin together has a mistake in its flags."""

    def hold_and_let_go():
        os.write(writer, b"made")
        time.sleep(0.2)

    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with holding_folder("new/run", []):
            hold_and_let_go()
        os._exit(0)
    assert os.read(reader, 4) == b"made"
    with holding_folder("new/run", []):
        os.waitpid(process, 0)
        assert Path("new", "run", LOCK).is_file()


def test_a_run_that_was_killed_holds_nothing():
    with another_process(hold):
        pass
    assert Path("run", LOCK).is_file()
    with holding_folder("run", []):
        assert str(os.getpid()) in Path("run", LOCK).read_text()
    assert [path.name for path in Path("run").iterdir()] == ["metrics.jsonl"]


def test_workers_that_outlive_a_killed_run_hold_nothing():
    """Forked processes share the open files of their parent."""
    numbers = []

    def hold_and_fork():
        hold()
        worker = os.fork()
        if worker == 0:
            time.sleep(600)
        Path("worker").write_text(str(worker))

    with another_process(hold_and_fork):
        numbers.append(int(Path("worker").read_text()))
    try:
        with holding_folder("run", []):
            assert os.path.exists(f"/proc/{numbers[0]}")
    finally:
        os.kill(numbers[0], signal.SIGKILL)


def test_a_run_that_is_just_being_killed_is_waited_for(monkeypatch):
    monkeypatch.setattr(checks, "_SECONDS_TO_DIE", 60)

    def hold_a_second():
        hold()
        signal.setitimer(signal.ITIMER_REAL, 1)

    with another_process(hold_a_second), holding_folder("run", []):
        assert str(os.getpid()) in Path("run", LOCK).read_text()


def test_the_lock_of_a_run_that_ends_meanwhile_is_taken_anew(monkeypatch):
    """Whoever opened the file before it was removed has locked nothing that others see."""
    lock = checks._try_to_lock
    removed = []

    def lock_a_removed_one(file):
        if not removed:
            removed.append(file.name)
            os.unlink(file.name)
        return lock(file)

    monkeypatch.setattr(checks, "_try_to_lock", lock_a_removed_one)
    with holding_folder("run", []):
        assert removed
        assert Path("run", LOCK).read_text()


def test_where_the_file_system_knows_no_locks_a_run_says_so_and_goes_on(monkeypatch, caplog):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with holding_folder("run", []):
        assert "run/_lock: cannot be locked (No locks available)" in caplog.text
    assert not Path("run").exists()


def test_what_a_run_did_not_make_it_does_not_remove():
    Path("there").mkdir()
    with holding_folder("there", []):
        pass
    with holding_folder("new/run", []):
        Path("new", "other").mkdir()
    assert sorted(path.as_posix() for path in Path().rglob("*")) == ["new", "new/other", "there"]


def test_only_the_first_process_holds_the_folder():
    """Other machines may share it."""
    with another_process(hold):
        args = SimpleNamespace(leaves_folder_open=False, output_dir="run", process_index=1)
        with own_output_dir(None, [], args):
            pass


def test_of_runs_that_begin_at_the_same_time_each_has_a_folder_of_its_own(workspace):
    """Each finds all names free, and then is slow."""
    (workspace / "go").touch()
    processes = []
    for _ in range(6):
        process = os.fork()
        if process == 0:
            while (workspace / "go").exists():
                pass
            _, data_args, _, args = parse_run(["notes", "--use_cpu"], "text-jepa pretrain")
            choose_output_dir(data_args, ["notes"], args)
            (workspace / f"{os.getpid()}").write_text(args.output_dir)
            os._exit(0)
        processes.append(process)
    (workspace / "go").unlink()
    for process in processes:
        os.waitpid(process, 0)
    found = {(workspace / f"{process}").read_text() for process in processes}
    assert found == {"runs/notes", *(f"runs/notes-{number}" for number in range(2, 7))}


def test_a_folder_that_another_run_makes_meanwhile_is_not_taken(monkeypatch):
    is_dir = Path.is_dir

    def is_slow(path):
        if path.name != "notes" or is_dir(path):
            return is_dir(path)
        path.mkdir(parents=True)
        return False

    monkeypatch.setattr(Path, "is_dir", is_slow)
    _, data_args, _, args = parse_run(["notes", "--use_cpu"], "text-jepa pretrain")
    choose_output_dir(data_args, ["notes"], args)
    assert args.output_dir == "runs/notes-2"


def test_folders_are_removed_if_one_below_them_cannot_be_made():
    with pytest.raises(OSError), holding_folder(f"new/{'n' * 300}", []):  # noqa: PT011
        raise AssertionError
    assert list(Path().iterdir()) == []


def test_auto_takes_no_folder_that_has_nothing_but_a_lock():
    for name in ("notes", "notes-2"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, LOCK).touch()
    Path("runs", "notes", "arguments.yaml").touch()
    folder, made = command._claim_folder("notes", resumes=True)
    assert (folder, made) == (Path("runs", "notes"), [])


def test_folders_that_were_made_are_told_from_those_that_were_there():
    assert list(make_folders(Path("a/b"))) == [Path("a"), Path("a/b")]
    assert list(make_folders(Path("a/b/c"))) == [Path("a/b/c")]
    assert list(make_folders(Path("a/b/c"))) == []


@pytest.mark.parametrize("place", [[], ["--output_dir", "some/run"]])
def test_a_run_that_is_refused_leaves_no_folder(place):
    Path("notes.txt").write_text("One text.")
    with pytest.raises(UsageError, match="--text_column"):
        run_pretraining.main(["notes.txt", "--use_cpu", "--text_column", "none", "--cache_dir", "cache", *place])
    assert sorted(path.name for path in Path().iterdir() if path.name != "cache") == ["notes.txt"]


@pytest.mark.parametrize("place", ["s3://bucket/run", "hf://me/run", "file:///tmp/run"])
def test_a_place_that_is_no_local_folder_is_refused(place):
    with pytest.raises(UsageError, match=f"^--output_dir {place}: the output must be a local folder"):
        run_pretraining.main(["notes.txt", "--use_cpu", "--output_dir", place])
    assert list(Path().iterdir()) == []


def test_a_link_to_nothing_is_refused():
    Path("run").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"^--output_dir run: is a broken link"), holding_folder("run", []):
        raise AssertionError


def test_a_lock_that_a_killed_run_has_left_is_nothing_to_resume_or_to_keep():
    Path("run").mkdir()
    Path("run", LOCK).touch()
    args = SimpleNamespace(output_dir="run", process_index=0, world_size=1, resume_from_checkpoint=None)
    assert check_output_dir(args) is None
    args.resume_from_checkpoint = "auto"
    assert check_output_dir(args) is None
