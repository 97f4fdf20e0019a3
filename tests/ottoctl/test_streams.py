"""Standard streams that are full, closed or in a poor encoding, and Ctrl-C before there is a command to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ottod
from ottod.protocol.cause import Cause
from ottod.protocol.events import ContentDelta
from ottod.protocol.requests import StartSession, StopSession
from tests.fakes.fake_daemon import FakeDaemon
from tests.ottoctl.test_cli import DEADLINE_S, environment, ottoctl, start, until


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


def in_shell(tmp_path: Path, line: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with redirections; `$@` is the command."""
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", "ottoctl", *arguments],
        env=environment(tmp_path, **extra),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def answering(fake: FakeDaemon) -> None:
    def started(body: StartSession) -> object:
        result = fake._default(body)
        fake.append(result.session, [ContentDelta(stream="text", text="the answer")], lane=1)
        fake.end_session(result.session, Cause(kind="completed"))
        return result

    fake.answers[StartSession] = started


@pytest.mark.parametrize("line", ['"$@" > /dev/full', '"$@" >&-'])
@pytest.mark.parametrize("command", [["ps", "-a"], ["ps", "-a", "-o", "json"], ["run", "coder", "task"]])
def test_output_that_cannot_be_written(fake: FakeDaemon, tmp_path: Path, command: list[str], line: str) -> None:
    """A full disk and a closed descriptor are errors of one line, as any other."""
    fake.add_session(5)
    answering(fake)
    done = in_shell(tmp_path, line, *command, "--endpoint", fake.endpoint)
    assert done.returncode == 1, done.stderr
    assert "ottoctl: error: cannot write to standard output: " in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if command[0] == "run":
        assert "goes on unseen" in done.stderr


@pytest.mark.parametrize("line", ['"$@" 2> /dev/full', '"$@" 2>&-', '"$@" <&-'])
def test_nobody_to_tell(fake: FakeDaemon, tmp_path: Path, line: str) -> None:
    """Data comes even so."""
    sid = fake.add_session(5)
    done = in_shell(tmp_path, line, "ps", "-q", "--endpoint", fake.endpoint)
    assert (done.returncode, done.stdout.split()) == (0, [sid])


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict"])
def test_an_encoding_that_lacks_letters(fake: FakeDaemon, tmp_path: Path, encoding: str) -> None:
    """What it lacks is escaped, and JSON stays JSON."""
    title = "naïve → 🙂"
    fake.add_session(5, title=title)
    table = ottoctl(tmp_path, "ps", "-a", "--endpoint", fake.endpoint, PYTHONIOENCODING=encoding)
    assert table.returncode == 0 and "\\u2192 \\ud83d\\ude42" in table.stdout, table.stderr
    done = ottoctl(tmp_path, "ps", "-a", "-o", "json", "--endpoint", fake.endpoint, PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)[0]["title"] == title


def test_the_version_and_wrong_usage(tmp_path: Path) -> None:
    """A line each, and no word of a library's."""
    assert ottoctl(tmp_path, "--version").stdout == f"ottoctl {ottod.__version__}\n"
    assert in_shell(tmp_path, '"$@" > /dev/full', "--version").stderr.startswith("ottoctl: error: cannot write")
    wrong = ottoctl(tmp_path, "cost", "--by", "tree")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1] == (
        "ottoctl: error: Invalid value for '--by': 'tree' is not one of 'agent', 'model', 'session', 'day'"
    )
    assert ottoctl(tmp_path, "run", "coder", "--input", "/nonexistent").stderr.startswith(
        "ottoctl: error: cannot read /nonexistent: no such file or directory\n"
    )


def test_ctrl_c_while_modules_are_imported(tmp_path: Path) -> None:
    """It ends the process, without a word."""
    (tmp_path / "typer.py").write_text(
        "import os, sys, time\nos.write(1, b'importing')\nos.close(1)\ntime.sleep(60)\n", encoding="utf-8"
    )
    env = environment(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "ottoctl", "ps"],
        env={**env, "PYTHONPATH": os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read() == b"importing"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, said) == (-signal.SIGINT, b"")


def test_sigterm_stops_the_session_too(fake: FakeDaemon, tmp_path: Path) -> None:
    """What a CI system cancels does not run on unseen."""
    process = start(tmp_path, "run", "coder", "task", "--endpoint", fake.endpoint)
    until(lambda: fake.bodies(StartSession))
    sid = next(iter(fake.sessions))
    until(lambda: fake.subscriptions)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 143, said
    assert f"stopping {sid}" in said
    assert [(body.session, body.reason) for body in fake.bodies(StopSession)] == [(sid, "SIGTERM")]
