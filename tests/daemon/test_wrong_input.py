"""Wrong input through the real `ottoctl`: a line that says what is wrong, one that says what to do, the right status.

And nothing is lost: after each mistake the daemon runs the next session.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ottod.protocol.events import SessionExited, tag_of
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.fakes.wire_server import WireServer

TIMEOUT_S = 60.0
KEY = "sk-otto-test-0123456789abcdef"
AGENT = "name: {name}\nmodel: {model}\ndescription: d\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    """A daemon whose `gone` provider listens nowhere and whose `wire` provider refuses the key."""
    script = tmp_path_factory.mktemp("wire") / "hello.yml"
    script.write_text("turns:\n  - text: hello\n")
    with WireServer(script, key="sk-another-0123456789abcdef") as server:
        providers = {
            "gone": {
                "adapter": "openai",
                "base_url": "http://127.0.0.1:1/v1",
                "api_key_env": "GONE_KEY",
                "max_retries": 1,
            },
            "wire": {"adapter": "openai", "base_url": f"{server.url}/v1", "api_key_env": "WIRE_KEY"},
            "keyless": {"adapter": "openai", "base_url": f"{server.url}/v1", "api_key_env": "NO_SUCH_KEY"},
        }
        with running_daemon({"providers": providers}, {"GONE_KEY": KEY, "WIRE_KEY": KEY}) as started:
            yield started


@pytest.fixture(autouse=True)
def nothing_lost(daemon: RealDaemon) -> Iterator[None]:
    """After each test the daemon runs a session as if nothing had happened, and knows of no defect."""
    said = len(daemon.log)
    yield
    model = daemon.script("fine", {"text": "fine"})
    with daemon.client() as otto:
        assert otto.run(spec=daemon.agent(model), task="x", cwd=daemon.workdir).result == "fine"
        assert otto.list() == ()
    log = daemon.log[said:]
    assert "Traceback" not in log and "internal error" not in log, log[-4000:]
    assert KEY not in daemon.log


def ottoctl(
    daemon: RealDaemon, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        env={**daemon.env, "PYTHONPATH": os.getcwd(), **(env or {})},
        cwd=cwd or daemon.workdir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def check_error(done: subprocess.CompletedProcess[str], status: int, *words: str, mend: bool = True) -> None:
    """The status, one error line with all the words, one mend line, no traceback, no key, nothing else to read."""
    said = f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == status, said
    assert "Traceback" not in done.stderr and KEY not in done.stderr + done.stdout, said
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("ottoctl: error: ")]
    assert len(errors) == 1 and all(word in done.stderr for word in words), said
    mends = [line for line in lines if line.startswith("  mend: ")]
    assert len(mends) == (1 if mend else 0), said
    assert errors + mends == lines, said


def write_agent(daemon: RealDaemon, name: str, text: str) -> Path:
    path = daemon.workdir / ".otto" / "agents" / f"{name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---------------------------------------------------------------- what is asked for


def test_unknown_agent(daemon: RealDaemon) -> None:
    """The name is wrong: 2, and the nearest one is suggested."""
    path = write_agent(daemon, "helper", AGENT.format(name="helper", model="fast"))
    try:
        check_error(ottoctl(daemon, "run", "helpr", "x"), 2, "helpr", "helper")
    finally:
        path.unlink()


def test_a_workflow_is_no_agent(daemon: RealDaemon) -> None:
    """Its name where an agent's belongs: the command that takes it is told."""
    check_error(ottoctl(daemon, "run", "bug-fix-loop", "x"), 2, "ottoctl workflow run bug-fix-loop")


WRONG_YAML = {
    "unknown key": ("name: a\nmodel: fast\ntoolz: [shell]\n", ":3:1:", "toolz", "tools"),
    "nested unknown key": ("name: a\nmodel: fast\nlimits:\n  max_stepz: 3\n", ":4:3:", "max_stepz", "max_steps"),
    "duplicate key": ("name: a\nmodel: fast\nmodel: strong\n", ":3:1:", "model", ""),
    "wrong type": ("name: a\nmodel: fast\nlimits:\n  max_steps: many\n", ":4:14:", "max_steps", ""),
    "not YAML": ("name: a\nmodel: [fast\n", ":", "a.yml", ""),
    "unknown tool": ("name: a\nmodel: fast\ntools: [shel]\n", ":3:9:", "shel", "shell"),
}


@pytest.mark.parametrize("what", WRONG_YAML)
def test_wrong_agent_file(daemon: RealDaemon, what: str) -> None:
    """Line and column, the word that is wrong, and the one that was probably meant: 2."""
    text, *words = WRONG_YAML[what]
    path = write_agent(daemon, "a", text)
    try:
        check_error(ottoctl(daemon, "run", "a", "x"), 2, str(path), *words)
    finally:
        path.unlink()


def test_unknown_model(daemon: RealDaemon) -> None:
    """A model, a provider or a script that does not exist is a configuration error: 2."""
    path = write_agent(daemon, "a", AGENT.format(name="a", model="fast"))
    try:
        for model, word in (("fst", "fast"), ("opnai:gpt-9", "openai"), ("scripted:absent.yml", "absent.yml")):
            check_error(ottoctl(daemon, "run", "a", "x", "--model", model), 2, model.partition(":")[2], word)
    finally:
        path.unlink()


def test_wrong_script(daemon: RealDaemon) -> None:
    """A script with an error: the session ends as `bad_spec`, 2, and the file and line are named."""
    path = daemon.workdir / "wrong.yml"
    path.write_text("turns:\n  - text: hi\n    tolls: []\n")
    agent = write_agent(daemon, "a", AGENT.format(name="a", model=f"scripted:{path}"))
    try:
        done = ottoctl(daemon, "run", "a", "x")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"{path}:3:5" in done.stderr and "tools" in done.stderr
    finally:
        agent.unlink()


def test_missing_working_directory(daemon: RealDaemon) -> None:
    """Named on the command line it is found by the client, which says so: 2."""
    check_error(ottoctl(daemon, "run", "a", "x", "--cwd", "/nonexistent/otto"), 2, "/nonexistent/otto")


def test_current_directory_that_is_gone(daemon: RealDaemon) -> None:
    """A shell whose directory was removed under its feet: the same error, not a traceback: 2."""
    gone = daemon.workdir / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f'rmdir "{gone}"; exec "$0" -m ottoctl run a x', sys.executable],
        env={**daemon.env, "PYTHONPATH": os.getcwd()},
        cwd=gone,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    check_error(done, 2)


def test_working_directory_that_holds_the_daemons_files(daemon: RealDaemon) -> None:
    """An agent may not work where it could reach the daemon's own files: 5."""
    check_error(ottoctl(daemon, "run", "a", "x", "--cwd", str(daemon.base)), 5, str(daemon.base))


def test_no_task(daemon: RealDaemon) -> None:
    """Nothing to do is wrong usage: 2."""
    check_error(ottoctl(daemon, "run", "a"), 2, "no task")
    check_error(ottoctl(daemon, "run", "a", "--input", "/nonexistent/task"), 2, "/nonexistent/task")


# ---------------------------------------------------------------- providers


def run_to_failure(daemon: RealDaemon, model: str, *words: str, status: int = 1) -> None:
    """Runs an agent whose model cannot answer: the outcome is shown, with a mend, and the key is not."""
    path = write_agent(daemon, "a", AGENT.format(name="a", model=model))
    try:
        done = ottoctl(daemon, "run", "a", "x")
    finally:
        path.unlink()
    said = done.stderr + done.stdout
    assert done.returncode == status and "Traceback" not in said, said
    assert all(word in said for word in words) and KEY not in said, said
    with daemon.client() as otto:
        info = otto.list(all=True, limit=1)[0]
        events = list(otto.session(info.session).events(0))
    assert isinstance(events[-1].event, SessionExited) and info.cause is not None
    assert "turn.failed" in [tag_of(e.event) for e in events]
    assert KEY not in repr(events) and KEY not in Path(info.journal).read_bytes().decode("latin-1")


def test_unreachable_provider(daemon: RealDaemon) -> None:
    """Nobody listens at the provider's address: retried, then failed with the address: 1."""
    run_to_failure(daemon, "gone:m-1", "127.0.0.1:1")


def test_bad_key(daemon: RealDaemon) -> None:
    """The provider refuses the key: cause auth, 1, and the key appears nowhere, though the server quotes it."""
    run_to_failure(daemon, "wire:m-1", "key")
    with daemon.client() as otto:
        cause = otto.list(all=True, limit=1)[0].cause
        assert cause is not None and cause.kind == "auth"


def test_no_key(daemon: RealDaemon) -> None:
    """Without a key no session is made: the variable that lacks is named."""
    path = write_agent(daemon, "a", AGENT.format(name="a", model="keyless:m-1"))
    try:
        check_error(ottoctl(daemon, "run", "a", "x"), 1, "keyless", "NO_SUCH_KEY")
    finally:
        path.unlink()


# ---------------------------------------------------------------- sessions


def test_unknown_session(daemon: RealDaemon) -> None:
    """No session has that id: 4, whatever is wanted of it."""
    for command in (["inspect"], ["logs"], ["stop"], ["kill"], ["wait"], ["rm"], ["attach"], ["events", "--session"]):
        check_error(ottoctl(daemon, *command, "s-zzzzzzzzzz"), 4, "s-zzzzzzzzzz")
    check_error(ottoctl(daemon, "send", "zzzzzzzzzz", "hello"), 4)
    check_error(ottoctl(daemon, "inspect", "not/an!id"), 4, "not/an!id")


def test_ambiguous_prefix(daemon: RealDaemon) -> None:
    """Several sessions fit: 2, and some of them are named."""
    model = daemon.script("quick", {"text": "x"})
    with daemon.client() as otto:
        seen: dict[str, str] = {}
        for _ in range(40):
            session = otto.run(spec=daemon.agent(model), task="x", cwd=daemon.workdir).session
            if session[2] in seen:
                break
            seen[session[2]] = session
        else:
            raise AssertionError("40 ids with 32 possible beginnings, all different")
    check_error(ottoctl(daemon, "inspect", session[2]), 2, session, seen[session[2]])


def test_refused(daemon: RealDaemon) -> None:
    """What is understood and not possible now: 5."""
    slow = daemon.script("slow", {"stream": {"events": 100_000, "rate_hz": 20}})
    with daemon.client() as otto:
        live = otto.start(spec=daemon.agent(slow), task="x", cwd=daemon.workdir)
        wait_for("it runs", lambda: live.info().state == "running")
        check_error(ottoctl(daemon, "rm", live.id), 5, live.id)
        check_error(ottoctl(daemon, "events", "--from", "999999999999"), 5, "999999999999")
        assert ottoctl(daemon, "stop", live.id, "--grace", "5").returncode == 0
        check_error(ottoctl(daemon, "send", live.id, "hello"), 5, live.id)


def test_outcomes_of_others_making(daemon: RealDaemon) -> None:
    """`run` and `wait` exit with what became of the session: cancelled 6, crashed 8."""
    slow = daemon.script("slow", {"stream": {"events": 100_000, "rate_hz": 20}})
    with daemon.client() as otto:
        for end, status, cause in (("stop", 6, "cancelled"), ("kill -9", 8, "crashed(SIGKILL)")):
            session = otto.start(spec=daemon.agent(slow), task="x", cwd=daemon.workdir)
            wait_for("it runs", lambda session=session: session.info().state == "running")
            if end == "stop":
                session.stop(grace_s=5)
            else:
                os.kill(session.info().pid, 9)
            done = ottoctl(daemon, "wait", session.id)
            assert done.returncode == status and cause in done.stdout, done


def test_outcomes_through_run(daemon: RealDaemon) -> None:
    """The same of a session that `run` itself watches."""
    crash = daemon.script("crash", {"text": "half of this", "crash": "SIGSEGV", "after_chunks": 1})
    write_agent(daemon, "a", AGENT.format(name="a", model=crash))
    done = ottoctl(daemon, "run", "a", "x")
    assert done.returncode == 8 and "SIGSEGV" in done.stderr and "Traceback" not in done.stderr, done.stderr


# ---------------------------------------------------------------- the daemon


def test_no_daemon(daemon: RealDaemon, tmp_path: Path) -> None:
    """Nobody listens: 3, and the command that starts one. A socket that somebody left behind is no daemon either."""
    runtime = {"OTTO_RUNTIME_DIR": str(tmp_path / "r")}
    check_error(ottoctl(daemon, "ps", env=runtime), 3, "no daemon", "daemon start")
    check_error(ottoctl(daemon, "ps", "--endpoint", f"ipc://{tmp_path}/x.sock"), 3, "no daemon")
    check_error(ottoctl(daemon, "ps", "--endpoint", "tcp://nowhere"), 2, "tcp://nowhere")
    check_error(ottoctl(daemon, "run", "a", "x", "--endpoint", f"ipc://{tmp_path}/x.sock"), 3, "no daemon")


def test_wrong_daemon_configuration(daemon: RealDaemon, tmp_path: Path) -> None:
    """A daemon that cannot be configured does not start, and its reason reaches whoever asked for it."""
    config = tmp_path / "otto.yml"
    config.write_text("ring:\n  size_bites: 5\n")
    env = {
        "OTTO_RUNTIME_DIR": str(tmp_path / "r"),
        "OTTO_STATE_DIR": str(tmp_path / "s"),
        "OTTO_CONFIG": str(config),
    }
    for arguments in (("daemon", "start"), ("run", "a", "x")):
        done = ottoctl(daemon, *arguments, env=env)
        check_error(done, 3, f"{config}:2:3", "size_bites", "size_bytes")
    env["OTTO_CONFIG"] = str(tmp_path / "absent.yml")
    check_error(ottoctl(daemon, "daemon", "start", env=env), 3, "absent.yml")
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").glob("*.sock"))


def test_unwritable_state_directory(daemon: RealDaemon, tmp_path: Path) -> None:
    """The state or runtime directory cannot be made, belongs to all, or is a file."""
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    good = {"OTTO_RUNTIME_DIR": str(tmp_path / "r"), "OTTO_STATE_DIR": str(tmp_path / "s")}
    for variable in good:
        for wrong in (tmp_path / "file" / "below", tmp_path / "file", tmp_path / "open"):
            done = ottoctl(daemon, "daemon", "start", env={**good, variable: str(wrong)})
            check_error(done, 3, str(tmp_path))
