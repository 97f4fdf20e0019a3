"""The command line as users and scripts meet it: exit statuses, streams, formats, Ctrl-C, closed pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ottoctl.application import COMMANDS, build_app
from ottoctl.commands.lineage import _tell_new
from ottoctl.console import Console
from ottoctl.sync import SyncSession
from ottod.errors import Failure
from ottod.protocol.cause import Cause
from ottod.protocol.events import ContentDelta, SessionStateChanged, ToolCompleted, ToolStarted, TurnStarted
from ottod.protocol.requests import GetSession, GetStatus, RemoveSession, SendInput, StartSession, StopSession
from ottod.protocol.results import StopResult
from ottod.settings.names import BUILTIN_TOOL_NAMES
from tests.fakes.fake_daemon import NO_ANSWER, FakeDaemon

DEADLINE_S = 60.0
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


def environment(tmp_path: Path, **extra: str) -> dict[str, str]:
    """An environment in which no daemon of the machine's user can be met."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path),
        "OTTO_RUNTIME_DIR": str(tmp_path / "run"),
        "OTTO_STATE_DIR": str(tmp_path / "state"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONWARNINGS": "error",
        **extra,
    }


def ottoctl(tmp_path: Path, *arguments: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        env=environment(tmp_path, **extra),
        cwd=tmp_path,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command; the test ends it."""
    return subprocess.Popen(
        [sys.executable, "-m", "ottoctl", *arguments],
        env=environment(tmp_path),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], object]) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


# ------------------------------------------------------------ exit statuses


def test_no_daemon_is_3_with_the_mend(tmp_path: Path) -> None:
    """Every command that needs a daemon says so in two lines and exits with 3."""
    for arguments in (["ps"], ["logs", "7f"], ["events"], ["stop", "7f"], ["daemon", "status"], ["attach", "7f"]):
        done = ottoctl(tmp_path, *arguments)
        assert done.returncode == 3, arguments
        assert done.stdout == ""
        first, second = done.stderr.splitlines()
        assert first.startswith("ottoctl: error: no daemon is running")
        assert second.strip() == "mend: start one: `ottoctl daemon start`"


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["ps", "--nosuch"], ["ps", "-o", "xml"], ["inspect"], ["ps", "--state", "asleep"], ["run", "coder"]],
)
def test_wrong_usage_is_2(tmp_path: Path, arguments: list[str]) -> None:
    """A wrong command line is 2, whatever else is wrong, and never a traceback."""
    done = ottoctl(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stderr


@pytest.mark.parametrize(("command", "mend"), [("stop", "ps -a"), ("run", "agent list"), ("approve", "approvals")])
def test_a_missing_argument_has_its_mend(tmp_path: Path, command: str, mend: str) -> None:
    """What lists the values that could stand there."""
    done = ottoctl(tmp_path, command)
    assert done.returncode == 2 and done.stderr.endswith(f"\n  mend: see `ottoctl {mend}`\n")


class Terminal(Console):
    """As if stdout were one."""

    @property
    def is_tty(self) -> bool:
        return True


def test_whoever_reads_is_told_how_to_watch(capsys: pytest.CaptureFixture[str]) -> None:
    """At a terminal; a script gets the id, and what it got before."""
    session = SyncSession.__new__(SyncSession)
    session.id = "s-1"
    _tell_new(Terminal(), session, "s-1 goes on")
    told = capsys.readouterr()
    assert told.out == "s-1\n" and "`ottoctl attach s-1`, or `ottoctl logs -f s-1`" in told.err
    _tell_new(Console(), session, "s-1 goes on")
    assert capsys.readouterr() == ("s-1\n", "s-1 goes on\n")


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (Failure(code="no_such_session", message="no session s-7f"), 4),
        (Failure(code="ambiguous_session", message="2 sessions"), 2),
        (Failure(code="session_ended", message="it has ended"), 5),
        (Failure(code="storage", message="disk full", mend="free some space"), 1),
    ],
)
def test_a_failure_of_the_daemon_has_its_status(
    fake: FakeDaemon, tmp_path: Path, failure: Failure, status: int
) -> None:
    """The failure's code decides the status; message and mend are printed, one line each."""
    fake.answers[GetSession] = lambda body: failure
    done = ottoctl(tmp_path, "inspect", "7f", "--endpoint", fake.endpoint)
    assert done.returncode == status
    lines = [f"ottoctl: error: {failure.message}"] + ([f"  mend: {failure.mend}"] if failure.mend else [])
    assert done.stderr.splitlines() == lines


CAUSES = [
    (Cause(kind="completed"), 0),
    (Cause(kind="failed", message="gave up"), 1),
    (Cause(kind="auth"), 1),
    (Cause(kind="bad_spec"), 2),
    (Cause(kind="cancelled"), 6),
    (Cause(kind="daemon_stop"), 6),
    (Cause(kind="budget"), 7),
    (Cause(kind="crashed", signal="SIGKILL"), 8),
    (Cause(kind="memory"), 8),
]


@pytest.mark.parametrize(("cause", "status"), CAUSES, ids=[c.kind for c, _ in CAUSES])
def test_run_and_wait_exit_with_the_outcome(fake: FakeDaemon, tmp_path: Path, cause: Cause, status: int) -> None:
    """The cause decides, for `run`, `wait` and `attach` alike."""

    def started(body: StartSession) -> object:
        result = fake._default(body)
        fake.append(result.session, [ContentDelta(stream="text", text="the answer")], lane=1)
        fake.end_session(result.session, cause)
        return result

    fake.answers[StartSession] = started
    done = ottoctl(tmp_path, "run", "coder", "task", "--endpoint", fake.endpoint)
    assert (done.returncode, done.stdout) == (status, "the answer\n")
    assert str(cause) in done.stderr
    sid = next(iter(fake.sessions))
    assert ottoctl(tmp_path, "wait", sid[2:], "--endpoint", fake.endpoint).returncode == status
    assert ottoctl(tmp_path, "attach", sid, "--endpoint", fake.endpoint).returncode == status


@pytest.mark.parametrize("gone", ["evicted", "passed"])
def test_attach_knows_the_outcome_without_the_event_of_the_end(fake: FakeDaemon, tmp_path: Path, gone: str) -> None:
    """The end has left the ring, or `--from` lies behind it: how the session ended counts all the same."""
    sid = fake.add_session(5)
    fake.end_session(sid, Cause(kind="failed"))
    last = fake.head - 1
    if gone == "evicted":
        fake.evict(sid, last=last)
    begin = ["--from", str(last + 1)] if gone == "passed" else []
    assert ottoctl(tmp_path, "attach", sid, *begin, "--endpoint", fake.endpoint).returncode == 1


def test_a_parked_session_is_8(fake: FakeDaemon, tmp_path: Path) -> None:
    """A session that its supervisor gave up on ends the watching, not the session."""

    def started(body: StartSession) -> object:
        result = fake._default(body)
        fake.append(
            result.session, [SessionStateChanged(state="parked", previous="restarting", reason="3 restarts in 60 s")]
        )
        return result

    fake.answers[StartSession] = started
    done = ottoctl(tmp_path, "run", "coder", "task", "--endpoint", fake.endpoint)
    assert done.returncode == 8
    assert "parked: 3 restarts in 60 s" in done.stderr


def test_leftover_processes_are_told(fake: FakeDaemon, tmp_path: Path) -> None:
    """A stop that could not prove the end does not look like one that did."""
    sid = fake.add_session(5)
    fake.answers[StopSession] = lambda body: StopResult(
        session=sid, cause=Cause(kind="cancelled"), remaining_pids=(41, 42)
    )
    done = ottoctl(tmp_path, "stop", sid, "--endpoint", fake.endpoint)
    assert done.returncode == 1
    assert "41, 42" in done.stderr


def test_several_ids_one_wrong(fake: FakeDaemon, tmp_path: Path) -> None:
    """The others are stopped all the same; the status is that of the wrong one."""
    one, two = fake.add_session(5), fake.add_session(6)
    done = ottoctl(tmp_path, "stop", one, "zzz", two, "--grace", "3", "--endpoint", fake.endpoint)
    assert done.returncode == 4
    assert done.stdout.split() == [one, two]
    assert [body.grace_s for body in fake.bodies(StopSession)] == [3.0, 3.0]


# ------------------------------------------------------------ options and formats


def test_global_options_before_and_after_the_command(fake: FakeDaemon, tmp_path: Path) -> None:
    """`-o` and friends may stand on both sides; the later one wins."""
    fake.add_session(5)
    before = ottoctl(tmp_path, "--endpoint", fake.endpoint, "-o", "json", "ps")
    after = ottoctl(tmp_path, "ps", "--endpoint", fake.endpoint, "-o", "json")
    both = ottoctl(tmp_path, "-o", "text", "--endpoint", "/nowhere", "ps", "-o", "json", "--endpoint", fake.endpoint)
    assert before.stdout == after.stdout == both.stdout
    assert json.loads(after.stdout)[0]["session"] == "s-0000000005"


def test_every_format_is_valid(fake: FakeDaemon, tmp_path: Path) -> None:
    """json is one document, jsonl one document a line, for every read."""
    sid = fake.add_session(5, title="a\nb\x1b[31m")
    fake.append(sid, [TurnStarted(turn=1, input="hi"), ContentDelta(stream="text", text="é\n")])
    for arguments in (["ps", "-a"], ["inspect", sid], ["daemon", "status"], ["version"], ["logs", sid], ["events"]):
        as_json = ottoctl(tmp_path, *arguments, "-o", "json", "--endpoint", fake.endpoint)
        assert as_json.returncode == 0, as_json.stderr
        json.loads(as_json.stdout)
        lines = ottoctl(tmp_path, *arguments, "-o", "jsonl", "--endpoint", fake.endpoint).stdout.splitlines()
        assert lines and all(isinstance(json.loads(line), dict) for line in lines)


def test_events_are_json_lines_in_a_pipe(fake: FakeDaemon, tmp_path: Path) -> None:
    """Raw events have their place and their type; a gap is one of them."""
    sid = fake.add_session(5)
    fake.append(sid, [TurnStarted(turn=1)])
    fake.append(sid, [ContentDelta(stream="text", text="a")] * 2, lane=1)
    fake.evict(sid, last=1)
    done = ottoctl(tmp_path, "events", "--session", sid[2:8], "--endpoint", fake.endpoint)
    gap, first, second = map(json.loads, done.stdout.splitlines())
    assert gap["event"] == {"type": "gap", "first": 1, "last": 1, "reason": "evicted", "session": sid, "next_seq": 2}
    assert (first["offset"], first["seq"], first["lane"]) == (2, 2, "delta")
    assert second["event"] == {"type": "content.delta", "stream": "text", "text": "a"}


@pytest.mark.parametrize(
    ("color", "extra", "colored"),
    [
        ("auto", {}, False),
        ("always", {}, True),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {}, False),
    ],
)
def test_colour_in_a_pipe(fake: FakeDaemon, tmp_path: Path, color: str, extra: dict[str, str], colored: bool) -> None:
    """A pipe gets colour only if it is asked for outright."""
    fake.add_session(5)
    done = ottoctl(tmp_path, "ps", "--color", color, "--endpoint", fake.endpoint, **extra)
    assert ("\x1b[" in done.stdout) is colored


@pytest.mark.parametrize(("extra", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_on_a_terminal(fake: FakeDaemon, tmp_path: Path, extra: dict[str, str], colored: bool) -> None:
    """A terminal gets colour unless NO_COLOR or a dumb terminal says otherwise."""
    fake.add_session(5)
    status, shown = on_terminal(tmp_path, ["ps", "--endpoint", fake.endpoint], variables=extra)
    assert status == 0 and "s-00000" in shown
    assert ("\x1b[" in shown) is colored


def on_terminal(
    tmp_path: Path,
    arguments: list[str],
    *,
    typed: bytes = b"",
    when: Callable[[str], bool] | None = None,
    variables: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Runs a command on a terminal of its own; types `typed` once `when` holds. The status and all that was shown."""
    pid, fd = pty.fork()
    if pid == 0:
        env = environment(tmp_path, **({"TERM": "xterm"} | (variables or {})))
        os.execve(sys.executable, [sys.executable, "-m", "ottoctl", *arguments], env)
    shown = b""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline:
            if typed and (when is None or when(shown.decode("utf-8", "replace"))):
                os.write(fd, typed)
                typed = b""
            if not select.select([fd], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(fd, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(fd)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode("utf-8", "replace")


# ------------------------------------------------------------ pipes and Ctrl-C


def test_a_reader_that_leaves_ends_the_command_quietly(fake: FakeDaemon, tmp_path: Path) -> None:
    """`ottoctl events | head -1` prints no error and no traceback."""
    sid = fake.add_session(5)
    for _ in range(300):
        fake.append(sid, [ContentDelta(stream="text", text="x" * 200)] * 10, lane=1)
    process = start(tmp_path, "events", "--endpoint", fake.endpoint)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("{")
    process.stdout.close()
    assert process.wait(DEADLINE_S) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_ctrl_c_in_run_stops_the_session(fake: FakeDaemon, tmp_path: Path) -> None:
    """The first Ctrl-C asks the daemon, waits for the proof and exits with 130."""
    process = start(tmp_path, "run", "coder", "task", "--endpoint", fake.endpoint)
    until(lambda: fake.subscriptions)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    (sid,) = fake.sessions
    assert f"stopping {sid}" in err and "nothing of it is left" in err and "cancelled" in err
    assert [body.reason for body in fake.bodies(StopSession)] == ["Ctrl-C"]
    assert "Traceback" not in err and out == ""


def test_a_second_ctrl_c_leaves_at_once(fake: FakeDaemon, tmp_path: Path) -> None:
    """A stop that takes too long can be left; the user is told that the session may go on."""
    fake.answers[StopSession] = lambda body: NO_ANSWER
    process = start(tmp_path, "run", "coder", "task", "--endpoint", fake.endpoint)
    until(lambda: fake.subscriptions)
    process.send_signal(signal.SIGINT)
    until(lambda: fake.bodies(StopSession))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "may still be running" in err and "Traceback" not in err


def test_ctrl_c_in_a_plain_command_is_130(fake: FakeDaemon, tmp_path: Path) -> None:
    """Waiting can be interrupted; nothing is stopped by that."""
    sid = fake.add_session(5)
    process = start(tmp_path, "wait", sid, "--endpoint", fake.endpoint)
    until(lambda: fake._waiters)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Traceback" not in err and not fake.bodies(StopSession)


@pytest.mark.parametrize(
    ("typed", "sent"),
    [(b"\x03", []), (b"and the tests\n\x04", ["and the tests"])],
    ids=["ctrl-c", "ctrl-d"],
)
def test_attach_detaches_and_leaves_the_session_running(
    fake: FakeDaemon, tmp_path: Path, typed: bytes, sent: list[str]
) -> None:
    """Ctrl-C and Ctrl-D leave; what was typed before has been delivered."""
    sid = fake.add_session(5)
    fake.append(sid, [TurnStarted(turn=1, input="hello there")])
    status, shown = on_terminal(
        tmp_path,
        ["attach", sid, "--endpoint", fake.endpoint],
        typed=typed,
        when=lambda text: "hello there" in text,
    )
    assert status == 0
    assert f"detached; {sid} goes on" in ANSI.sub("", shown)
    assert not fake.bodies(StopSession)
    assert [body.text for body in fake.bodies(SendInput)] == sent


@pytest.mark.parametrize(("said", "sent"), [("", []), ("one\n\ntwo", ["one", "two"])], ids=["nothing", "lines"])
def test_attach_reads_a_file_to_its_end(fake: FakeDaemon, tmp_path: Path, said: str, sent: list[str]) -> None:
    """What cannot be polled, a file or /dev/null, is read like a pipe: lines are sent, the end detaches."""
    sid = fake.add_session(5)
    (tmp_path / "said").write_text(said)
    with open(tmp_path / "said" if said else os.devnull, "rb") as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "ottoctl", "attach", sid, "--endpoint", fake.endpoint],
            env=environment(tmp_path),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 0 and f"detached; {sid} goes on" in done.stderr
    assert [body.text for body in fake.bodies(SendInput)] == sent


def test_a_live_stream_on_a_terminal(fake: FakeDaemon, tmp_path: Path) -> None:
    """A terminal sees the tool at work, then its result, then the words and the summary."""

    def started(body: StartSession) -> object:
        result = fake._default(body)
        fake.append(
            result.session,
            [TurnStarted(turn=1), ToolStarted(call="c", tool="test_runner", arguments='{"command": "pytest -q"}')],
        )
        return result

    fake.answers[StartSession] = started

    def finish(text: str) -> bool:
        if "⠋" in text or "test_runner pytest -q …" in ANSI.sub("", text):
            (sid,) = fake.sessions
            fake.append(sid, [ToolCompleted(call="c", tool="test_runner", output="3 passed in 1s", duration_ms=1400)])
            fake.append(sid, [ContentDelta(stream="text", text="All green.")], lane=1)
            fake.end_session(sid, Cause(kind="completed"))
            return True
        return False

    status, shown = on_terminal(
        tmp_path, ["run", "coder", "task", "--endpoint", fake.endpoint], typed=b"\n", when=finish
    )
    plain = ANSI.sub("", shown)
    assert status == 0
    assert "✓ test_runner pytest -q · 3 passed 1.4s" in plain
    assert "All green." in plain and "✓ completed" in plain


# ------------------------------------------------------------ the commands


def test_run_detached_prints_the_id(fake: FakeDaemon, tmp_path: Path) -> None:
    """`--detach` prints nothing but the id; the request carries directory, model and mode, and no secret."""
    (tmp_path / "sub").mkdir()
    options = ["--detach", "--cwd", "sub/..", "--model", "m", "--mode", "conversation", "--headless", "--input", "-"]
    done = ottoctl(
        tmp_path,
        *["run", "coder", "fix it", *options, "--endpoint", fake.endpoint],
        stdin="from stdin",
        MY_API_KEY="secret",
    )
    assert (done.returncode, done.stdout) == (0, "s-0000000001\n"), done.stderr
    (body,) = fake.bodies(StartSession)
    assert body.task == "fix it\n\nfrom stdin"
    assert (body.cwd, body.model, body.mode, body.run_mode) == (str(tmp_path), "m", "conversation", "headless")
    assert body.env["HOME"] == str(tmp_path) and "MY_API_KEY" not in body.env


def test_a_missing_directory_is_told_before_anything_starts(tmp_path: Path) -> None:
    """No daemon is started for a command that cannot work."""
    done = ottoctl(tmp_path, "run", "coder", "task", "--cwd", "nowhere")
    assert done.returncode == 2
    assert "no such directory: nowhere" in done.stderr
    assert not (tmp_path / "run").exists()


def test_send_rm_and_ps(fake: FakeDaemon, tmp_path: Path) -> None:
    """A message from stdin, a removal, and a table with short ids."""
    sid = fake.add_session(5, title="fix the tests", agent="coder")
    end = ["--endpoint", fake.endpoint]
    assert ottoctl(tmp_path, "send", "000", "-", *end, stdin="hello\n").returncode == 0
    assert [body.text for body in fake.bodies(SendInput)] == ["hello\n"]
    assert ottoctl(tmp_path, "send", "000", " ", *end).returncode == 2
    table = ottoctl(tmp_path, "ps", *end).stdout.splitlines()
    assert table[0].split() == ["ID", "STATE", "AGENT", "AGE", "TURNS", "TOKENS", "COST", "TITLE"]
    assert table[1].split()[:3] == ["s-00000", "running", "coder"]
    assert ottoctl(tmp_path, "ps", "-q", *end).stdout == f"{sid}\n"
    assert ottoctl(tmp_path, "rm", sid, *end).stdout == f"{sid}\n"
    assert len(fake.bodies(RemoveSession)) == 1


def test_a_follower_says_that_the_daemon_has_gone_and_that_it_is_back(fake: FakeDaemon, tmp_path: Path) -> None:
    """On stderr, a line each, at once; stdout has the events and nothing else."""
    sid = fake.add_session(1)
    fake.append(sid, [TurnStarted(turn=1, input="hello")])
    follower = start(tmp_path, "events", "--session", sid, "-f", "--from", "0", "--endpoint", fake.endpoint)
    assert follower.stdout is not None and follower.stderr is not None
    assert json.loads(follower.stdout.readline())["event"]["type"] == "turn.started"
    fake.vanish()
    assert follower.stderr.readline() == "the daemon has gone; waiting up to 30 s for it\n"
    fake.come_back("i-2")
    assert re.fullmatch(r"the daemon is back after \d+\.\d s\n", follower.stderr.readline())
    fake.end_session(sid, Cause(kind="completed"))
    out, err = follower.communicate(timeout=DEADLINE_S)
    assert err == "" and json.loads(out)["event"]["type"] == "session.exited"
    assert follower.returncode == 0


def test_logs_are_cut_to_their_last_lines_and_to_a_time(fake: FakeDaemon, tmp_path: Path) -> None:
    """Lines in text, events as JSON; with -f what comes later follows on them, from the middle of a line too."""
    sid = fake.add_session(1)
    said = [ContentDelta(stream="text", text=f"line {n}\n", item="i") for n in range(5)]
    fake.append(sid, [TurnStarted(turn=1, input="hello"), *said, ContentDelta(stream="text", text="half", item="i")])
    end = ("--endpoint", fake.endpoint)
    shown = ottoctl(tmp_path, "logs", sid, "--tail", "3", "--since", "2023-11-10", *end).stdout
    assert shown == "line 3\nline 4\nhalf\n"
    as_jsonl = ottoctl(tmp_path, "logs", sid, "-n", "2", "-o", "jsonl", *end).stdout.splitlines()
    as_json = json.loads(ottoctl(tmp_path, "logs", sid, "-n", "2", "-o", "json", *end).stdout)
    assert [json.loads(line) for line in as_jsonl] == as_json and len(as_json) == 2
    assert as_json[1]["event"]["text"] == "half"
    assert ottoctl(tmp_path, "logs", sid, "--since", "1d", *end).stdout == ""
    follower = start(tmp_path, "logs", sid, "-f", "--tail", "2", *end)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "line 4\n"
    until(lambda: len(fake.subscriptions) == 1)
    fake.append(sid, [ContentDelta(stream="text", text=" and half\n", item="i")])
    fake.end_session(sid, Cause(kind="completed"))
    out = follower.stdout.read()
    assert follower.communicate(timeout=DEADLINE_S)[1] == ""
    assert out.startswith("half and half\n✓ completed") and follower.returncode == 0


def test_a_slow_daemon_is_3_after_the_timeout(fake: FakeDaemon, tmp_path: Path) -> None:
    """--timeout bounds the wait for an answer."""
    fake.answers[GetStatus] = lambda body: NO_ANSWER
    done = ottoctl(tmp_path, "daemon", "status", "--timeout", "0.3", "--endpoint", fake.endpoint)
    assert done.returncode == 3
    assert "within 0.3 s" in done.stderr


def test_no_heavy_import(tmp_path: Path, fake: FakeDaemon) -> None:
    """`ps` loads no SDK, no asyncio, no pydantic: what it takes to start is its own."""
    fake.add_session(5)
    code = (
        "import sys\nfrom ottoctl.main import main\n"
        f"sys.argv = ['ottoctl', 'ps', '--endpoint', {fake.endpoint!r}]\n"
        "try:\n    main()\nfinally:\n    print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    loaded = set(re.findall(r"'(\w+)'", done.stderr))
    assert "s-00000" in done.stdout and "zmq" in loaded
    assert not loaded & {"anthropic", "openai", "httpx", "httpx2", "asyncio", "uvloop", "pydantic", "rich", "yaml"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(fake: FakeDaemon, tmp_path: Path, shell: str) -> None:
    """Each shell gets its script; the script's question is answered with live sessions."""
    script = ottoctl(tmp_path, "completion", shell)
    assert script.returncode == 0 and "_OTTOCTL_COMPLETE" in script.stdout
    sid = fake.add_session(5)
    asked = ottoctl(
        tmp_path,
        OTTO_ENDPOINT=fake.endpoint,
        _OTTOCTL_COMPLETE=f"complete_{shell}",
        COMP_WORDS="ottoctl stop s-0",
        COMP_CWORD="2",
        _TYPER_COMPLETE_ARGS="ottoctl stop s-0",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_WORD_TO_COMPLETE="s-0",
    )
    assert sid in asked.stdout


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has a help with an example and the global options; a group has its commands."""
    groups = set()
    for name, _ in COMMANDS:
        assert build_app(name)(args=[name, "--help"], prog_name="ottoctl", standalone_mode=False) in (0, None), name
        said = capsys.readouterr().out
        if "COMMAND [ARGS]" in said:
            groups.add(name)
        else:
            assert f"Example: `ottoctl {name}" in said and "--endpoint" in said, name
    assert groups == {
        "agent",
        "artifact",
        "config",
        "daemon",
        "decisions",
        "notes",
        "policy",
        "research",
        "service",
        "session",
        "workflow",
    }


def test_agents(tmp_path: Path) -> None:
    """A new agent is valid; a wrong one names file, line and column, and exits with 2."""
    made = ottoctl(tmp_path, "agent", "new", "release-notes")
    assert made.returncode == 0
    file = tmp_path / ".otto/agents/release-notes.yml"
    assert made.stdout.strip().endswith(".otto/agents/release-notes.yml") and file.is_file()
    assert ottoctl(tmp_path, "agent", "validate", str(file)).returncode == 0
    said = file.read_text().partition("Built in are:\n")[2].partition("\n# Besides")[0]
    assert tuple(said.replace("#", "").replace(",", "").split()) == BUILTIN_TOOL_NAMES
    assert ottoctl(tmp_path, "agent", "new", "release-notes").returncode == 5
    assert ottoctl(tmp_path, "agent", "new", "Bad Name").returncode == 2
    assert "coder" in ottoctl(tmp_path, "agent", "list").stdout
    assert json.loads(ottoctl(tmp_path, "agent", "show", "coder", "-o", "json").stdout)["name"] == "coder"
    file.write_text("name: release-notes\nmodle: default\n")
    wrong = ottoctl(tmp_path, "agent", "validate", str(file))
    assert wrong.returncode == 2
    assert f"{file}:2:1: " in wrong.stderr and "model" in wrong.stderr
    unknown = ottoctl(tmp_path, "agent", "show", "codr")
    assert unknown.returncode == 2 and "coder" in unknown.stderr


def test_an_agent_that_gets_less_than_its_file_says(tmp_path: Path) -> None:
    """By name and by file: every part with its line and a mend, and the exit status stays 0."""
    file = tmp_path / "p/.otto/agents/helper.yml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "handoffs: [codr]\npermissions:\n  preset: autonomous\n  rules:\n    - {effect: allow, tool: shell}\n"
    )
    for name in ("helper", "p/.otto/agents/helper.yml"):
        done = ottoctl(tmp_path, "agent", "validate", name, "--cwd", "p")
        assert done.returncode == 0 and done.stdout == f"{name}: ok\n"
        said = [line for line in done.stderr.splitlines() if "warning:" in line]
        assert [line.split("helper.yml:")[1].split(" ")[0] for line in said] == ["1:12:", "3:3:", "5:7:"]
        assert done.stderr.count("mend: ") == 3 and "did you mean 'coder'?" in said[0]
    (found,) = json.loads(ottoctl(tmp_path, "agent", "validate", "helper", "--cwd", "p", "-o", "json").stdout)
    assert found["ok"] and [warning["line"] for warning in found["warnings"]] == [1, 3, 5]


def test_config_show(tmp_path: Path) -> None:
    """What holds and where it comes from, without a daemon; a key that there is not, and a file that is wrong."""
    file = tmp_path / "otto.yml"
    file.write_text("ring: {sync: none}\n")
    done = ottoctl(tmp_path, "config", "show", "--changed", OTTO_CONFIG=str(file))
    assert done.stdout.splitlines()[1].split() == ["ring.sync", f"{file}:1", "none"] and done.returncode == 0
    (sync,) = json.loads(ottoctl(tmp_path, "config", "show", "ring.sync", "--json", OTTO_CONFIG=str(file)).stdout)
    assert sync["value"] == "none" and sync["line"] == 1
    unknown = ottoctl(tmp_path, "config", "show", "rng", OTTO_CONFIG=str(file))
    assert unknown.returncode == 2 and "did you mean 'ring'?" in unknown.stderr
    file.write_text("rng: 1\n")
    wrong = ottoctl(tmp_path, "config", "show", OTTO_CONFIG=str(file))
    assert wrong.returncode == 2 and f"{file}:1:1" in wrong.stderr and wrong.stdout == ""


def test_config_show_keeps_what_urls_carry(tmp_path: Path) -> None:
    """In every form, and says so."""
    file = tmp_path / "otto.yml"
    file.write_text("providers:\n  mine: {adapter: openai, base_url: 'https://me:hunter[2@host.example/v1'}\n")
    for form in ([], ["-o", "jsonl"]):
        done = ottoctl(tmp_path, "config", "show", "providers.mine", *form, OTTO_CONFIG=str(file))
        assert done.returncode == 0 and "https://[redacted:userinfo]@host.example/v1" in done.stdout
        assert "hunter" not in done.stdout + done.stderr and "is not shown" in done.stderr


def test_doctor(fake: FakeDaemon, tmp_path: Path) -> None:
    """All is well in a fresh place, no key is shown; an open runtime directory is a failure with a mend."""
    done = ottoctl(tmp_path, "doctor", "-o", "json", "--endpoint", fake.endpoint, ANTHROPIC_API_KEY="sk-very-secret")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, findings
    assert findings["provider anthropic"]["detail"] == "key in this environment (a running daemon has its own)"
    assert "very-secret" not in done.stdout + done.stderr
    assert findings["daemon"]["level"] == "warn" and "9.9.9" in findings["daemon"]["detail"]
    assert "put aside" not in findings
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "state").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "state" / "otto.db.broken-1").write_text("garbage")
    done = ottoctl(tmp_path, "doctor")
    assert re.search("! put aside .*otto.db was damaged", done.stdout), done.stdout
    assert done.returncode == 1
    assert "✗ runtime directory" in done.stdout and f"chmod 700 {tmp_path / 'run'}" in done.stdout


def test_doctor_tells_a_mistake_once(tmp_path: Path) -> None:
    """A wrong configuration keeps several checks from being made: one line says why, and of which."""
    (tmp_path / "otto.yml").write_text("rng: 1\n")
    done = ottoctl(tmp_path, "doctor", "-o", "json", OTTO_CONFIG=str(tmp_path / "otto.yml"))
    (found,) = (f for f in json.loads(done.stdout) if "unknown key" in f["detail"])
    assert done.returncode == 1 and (found["check"], found["level"]) == ("configuration", "fail")
    assert found["detail"].endswith("(so agents, keys and isolation cannot be checked)")
    assert done.stdout.count(found["mend"]) == 1
