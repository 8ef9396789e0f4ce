"""Commands whose output nobody reads any more, is closed, is full, or cannot encode what is printed.

Run: python -m pytest -q tests/train/test_output_streams.py
"""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from text_jepa.errors import outliving_readers


ROOT = Path(__file__).parents[2]

PRINTS = "[print('x' * 100) for _ in range(100_000)]"


def start(body, shell, tmp_path, **environment):
    """Runs a command whose `main` has this body, in a shell line that names it `$command`.

    It imports `errors.py` without the package, which takes seconds.
    """
    script = f"""
    import os, sys
    from pathlib import Path
    sys.path.append({str(ROOT / "text_jepa")!r})
    from errors import UsageError, outliving_readers, run_command
    def main():
        {body}
    run_command(main)
    """
    file = tmp_path / "command.py"
    file.write_text(textwrap.dedent(script))
    line = shell.replace("$command", f"{sys.executable} {file}")
    return subprocess.run(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}} > code"],
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_moment_without_room_silences_no_run(monkeypatch, stream):
    """A pipe that does not block is full, until somebody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(writer, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, stream, pipe)
        with outliving_readers():
            for _ in range(2_000):
                print("x" * 100, file=getattr(sys, stream))
            os.read(reader, 1 << 20)
            print("the end", file=getattr(sys, stream))
        assert b"the end" in os.read(reader, 1 << 20)
    os.close(reader)


def code(tmp_path):
    return int((tmp_path / "code").read_text())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_only_prints_ends_quietly_when_nobody_reads(tmp_path, unbuffered, stream):
    body = PRINTS if stream == "stdout" else PRINTS.replace("100)", "100, file=sys.stderr)")
    shell = "$command | head -1" if stream == "stdout" else "$command 2>&1 >/dev/null | head -1"
    result = start(body, shell, tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert code(tmp_path) == 141
    assert result.stdout == b"x" * 100 + b"\n"
    assert result.stderr == b""


@pytest.mark.parametrize("body", ["print('x')", "print('x'); sys.exit(0)"])
def test_little_output_that_nobody_reads_is_no_failure(tmp_path, body):
    """It is still held back when the command ends."""
    result = start(f"import time; time.sleep(1); {body}", "$command | true", tmp_path)
    assert (code(tmp_path) in (0, 141), result.stderr) == (True, b"")


def test_a_broken_pipe_of_another_kind_is_a_bug_and_shown(tmp_path):
    result = start("raise BrokenPipeError(32, 'of a worker')", "$command", tmp_path)
    assert code(tmp_path) == 1
    assert b"of a worker" in result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_has_more_to_do_than_to_print_goes_on(tmp_path, unbuffered):
    body = f"with outliving_readers(): {PRINTS}; print('y', flush=True); Path('done').touch()"
    result = start(body, "$command | head -1", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert (code(tmp_path), result.stderr) == (0, b"")
    assert (tmp_path / "done").is_file()


def test_little_output_of_what_goes_on_is_no_failure_either(tmp_path):
    """It is still held back when the block ends."""
    body = "with outliving_readers(): import time; time.sleep(1); print('x')"
    result = start(body, "$command | true", tmp_path)
    assert (code(tmp_path), result.stderr) == (0, b"")


def test_streams_are_those_of_before_when_the_block_is_left():
    before = sys.stdout, sys.stderr
    with outliving_readers():
        assert sys.stdout is not before[0]
        assert sys.stdout.encoding == before[0].encoding
        sys.stdout.write("written")
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_open_to_what_prints(tmp_path, closed):
    body = "sys.stdout.isatty(); sys.stderr.isatty(); print('x'); print('y', file=sys.stderr); Path('done').touch()"
    start(body, f"$command {closed}", tmp_path)
    assert code(tmp_path) == 0
    assert (tmp_path / "done").is_file()


def test_a_full_disk_behind_the_output_is_one_line(tmp_path):
    result = start("print('x')", "$command > /dev/full", tmp_path)
    assert code(tmp_path) == 2
    assert result.stderr.startswith(b"error: No space left on device")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_what_the_output_cannot_encode_is_escaped(tmp_path, environment):
    result = start("print('\u6865'); raise UsageError('\u6881')", "$command", tmp_path, **environment)
    assert code(tmp_path) == 2
    assert result.stdout == b"\\u6865\n"
    assert result.stderr == b"error: \\u6881\n"


def test_a_stream_that_fails_once_is_not_written_to_again():
    reader, writer = os.pipe()
    os.close(reader)
    stream = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    before = sys.stdout
    sys.stdout = stream
    try:
        with outliving_readers():
            sys.stdout.write("lost")
            sys.stdout.write("lost as well")
        stream.write("to nowhere")
        stream.flush()
    finally:
        sys.stdout = before
        stream.close()
