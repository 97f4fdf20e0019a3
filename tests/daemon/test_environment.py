"""Whose environment a session sees, and how a daemon comes to be when nobody started one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ottod.protocol.events import ToolCompleted
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

SECRET = "daemon-secret-0123456789"
SHOW = "pwd; echo PATH=$PATH; env; tr '\\0' '\\n' < /proc/self/environ"


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    """A daemon with an environment of its own, a PATH and secrets among it."""
    own = {
        "PATH": f"/opt/daemon/bin:{os.environ['PATH']}",
        "DAEMON_SECRET": SECRET,
        "OPENAI_API_KEY": SECRET,
        "LANG": "C",
        "EDITOR": "daemons-editor",
    }
    with running_daemon(env=own) as started:
        yield started


def shell_output(daemon: RealDaemon, env: dict[str, str], cwd: Path, *allowed: str) -> str:
    """What a session's shell shows of its world."""
    model = daemon.script("show", {"tools": [{"name": "shell", "arguments": {"command": SHOW}}]}, {"text": "x"})
    with daemon.client() as otto:
        spec = daemon.agent(model, "shell", env=allowed)
        session = otto.start(spec=spec, task="x", cwd=cwd, env=env)
        assert session.wait().ok
        (tool,) = [e.event for e in session.events(0) if isinstance(e.event, ToolCompleted)]
    return tool.output


def test_a_session_sees_its_clients_environment(daemon: RealDaemon) -> None:
    """PATH, directory and allowed variables are the dispatching client's; nothing of the daemon's own is there."""
    cwd = daemon.workdir / "clients"
    cwd.mkdir()
    path = f"/opt/client/bin:{os.environ['PATH']}"
    env = {"PATH": path, "LANG": "C.UTF-8", "EDITOR": "vi", "MY_SETTING": "7", "NOT_LISTED": "8"}
    seen = shell_output(daemon, env, cwd, "EDITOR", "MY_SETTING").splitlines()
    assert seen[0] == str(cwd)
    assert f"PATH={path}" in seen and "LANG=C.UTF-8" in seen and "EDITOR=vi" in seen and "MY_SETTING=7" in seen
    whole = "\n".join(seen)
    for foreign in (SECRET, "/opt/daemon/bin", "NOT_LISTED", "daemons-editor", "OTTO_RUNTIME_DIR", "OTTO_STATE_DIR"):
        assert foreign not in whole, foreign


def test_what_the_client_lacks_is_not_made_up_from_the_daemon(daemon: RealDaemon) -> None:
    """A client without the variable gives none, though the daemon has one and the agent asks for it."""
    env = {"PATH": os.environ["PATH"]}
    seen = shell_output(daemon, env, daemon.workdir, "EDITOR", "DAEMON_SECRET", "OPENAI_API_KEY")
    assert "EDITOR" not in seen and SECRET not in seen


def test_keys_are_in_no_process_below_root(daemon: RealDaemon) -> None:
    """Zygote and workers were started without them: there is nothing to read in /proc."""
    model = daemon.script("slow", {"stream": {"events": 100_000, "rate_hz": 20}})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model), task="x", cwd=daemon.workdir)
        wait_for("it runs", lambda: session.info().state == "running")
        processes = daemon.processes()
        assert len(processes) >= 2
        for process in processes:
            try:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue
            assert SECRET.encode() not in environ
        assert session.stop(grace_s=5).remaining_pids == ()


def test_the_command_line_sends_no_secret(daemon: RealDaemon) -> None:
    """Through `ottoctl run` the session gets the caller's PATH and directory, and none of what looks like a key.

    Nor does a project's `.env` give it, the client or the daemon anything.
    """
    model = daemon.script("show", {"tools": [{"name": "shell", "arguments": {"command": SHOW}}]}, {"text": "x"})
    agents = daemon.workdir / ".otto" / "agents"
    agents.mkdir(parents=True)
    agent = f"name: shower\nmodel: {model}\ntools: [shell]\nenv: [EDITOR, DEBUG]\n"
    (agents / "shower.yml").write_text(agent)
    # A project's own, which is a stranger's, and which nobody reads.
    dot_env = "OTTO_CONFIG=/dot-env/otto.yml\nANTHROPIC_API_KEY=dot-env-key\nDEBUG=dot-env\nEDITOR=dot-env\n"
    (daemon.workdir / ".env").write_text(dot_env)
    path = f"/opt/caller/bin:{os.environ['PATH']}"
    env = {**daemon.env, "PYTHONPATH": os.getcwd(), "PATH": path, "EDITOR": "ed", "GITHUB_TOKEN": "ghp_" + "x" * 30}
    done = subprocess.run(
        [sys.executable, "-m", "ottoctl", "run", "shower", "x", "-o", "jsonl"],
        env=env,
        cwd=daemon.workdir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    (tool,) = [e for e in events if e["type"] == "tool.completed"]
    assert f"PATH={path}" in tool["output"] and "EDITOR=ed" in tool["output"]
    assert "ghp_" not in done.stdout and SECRET not in done.stdout
    assert "dot-env" not in done.stdout + done.stderr


# ---------------------------------------------------------------- the first command


def test_run_starts_a_daemon_by_itself() -> None:
    """With none running, `ottoctl run` starts one, says so, and the next command finds it; it stops when told."""
    place = RealDaemon()
    pid = 0
    try:
        model = place.script("hi", {"text": "hi there"})
        agents = place.workdir / ".otto" / "agents"
        agents.mkdir(parents=True)
        (agents / "hi.yml").write_text(f"name: hi\nmodel: {model}\n")
        first = _ottoctl(place, "run", "hi", "x")
        assert first.returncode == 0 and "hi there" in first.stdout, first.stderr
        assert "started ottod (pid " in first.stderr
        with place.client() as otto:
            pid = otto.status().pid
        assert f"pid {pid}" in first.stderr
        second = _ottoctl(place, "run", "hi", "x")
        assert second.returncode == 0 and "started ottod" not in second.stderr
        assert "already running" in _ottoctl(place, "daemon", "start").stderr
        # It belongs to nobody's terminal and stands in nobody's way.
        assert os.getsid(pid) != os.getsid(0) and os.readlink(f"/proc/{pid}/cwd") == "/"
        below = [child.pid for child in psutil.Process(pid).children(recursive=True)]
        assert _ottoctl(place, "daemon", "stop").returncode == 0
        wait_for("all is gone", lambda: not [p for p in (pid, *below) if psutil.pid_exists(p)])
        assert not list((place.base / "run").glob("*.sock"))
        log = (place.base / "state" / "ottod.log").read_text()
        assert "Traceback" not in log and "internal error" not in log
    finally:
        # Whatever failed above: a daemon that was started is told to go, and is gone before its directory is.
        _ottoctl(place, "daemon", "stop")
        if pid and psutil.pid_exists(pid):
            psutil.Process(pid).kill()
        place.close()


def test_first_commands_at_once_share_one_daemon() -> None:
    """With none running, four `ottoctl run` at the same time all get their answer, from the one that came first."""
    place = RealDaemon()
    try:
        model = place.script("hi", {"text": "hi there"})
        agents = place.workdir / ".otto" / "agents"
        agents.mkdir(parents=True)
        (agents / "hi.yml").write_text(f"name: hi\nmodel: {model}\n")
        with ThreadPoolExecutor(4) as pool:
            runs = list(pool.map(lambda task: _ottoctl(place, "run", "hi", task), "abcd"))
        assert [run.returncode for run in runs] == [0] * 4, [run.stderr for run in runs]
        assert [run.stdout.strip() for run in runs] == ["hi there"] * 4
        assert sum("started ottod" in run.stderr for run in runs) == 1
    finally:
        _ottoctl(place, "daemon", "stop")
        place.close()


def _ottoctl(place: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        env={**place.env, "PYTHONPATH": os.getcwd()},
        cwd=place.workdir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ps_imports_no_sdk(daemon: RealDaemon) -> None:
    """What `ottoctl ps` loads: no model SDK, no web framework, no tool, nothing of the daemon but its vocabulary."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write('\\n'.join(sys.modules)))\n"
        "sys.argv[0] = 'ottoctl'\n"
        "from ottoctl.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ps"],
        env={**daemon.env, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stderr.split())
    assert "ottoctl.commands.ps" in modules
    foreign = {"anthropic", "openai", "httpx2", "asyncio", "uvloop", "prometheus_client", "starlette", "sqlite3"}
    assert not modules & foreign
    assert not [m for m in modules if m.startswith(("ottod.root", "ottod.tools", "ottod.providers", "ottod.storage"))]
