"""Supervision from the client's side, on a real daemon: trees, stops with proof, parking, upgrades, what is shown."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import OttoError, RefusedError
from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.specs import AgentSpec, Backoff, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

STREAM = {"stream": {"events": 100_000, "rate_hz": 20, "text_bytes": 40}}
COMMAND_S = 120.0


def ottoctl(daemon: RealDaemon, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs a command beside the daemon, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        env=environment(daemon, **extra),
        cwd=daemon.workdir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def environment(daemon: RealDaemon, **extra: str) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**daemon.env, "PYTHONPATH": root, "PYTHONWARNINGS": "error", "TERM": "xterm", **extra}


def streamer(daemon: RealDaemon, **restart: object) -> AgentSpec:
    spec = Restart(**{"backoff": Backoff(base_s=0), **restart})  # type: ignore[arg-type]
    return daemon.agent(daemon.script("stream", STREAM), restart=spec)


def start(daemon: RealDaemon, otto: SyncOtto, parent: str = "", **restart: object) -> SyncSession:
    return otto.start(spec=streamer(daemon, **restart), task="go", cwd=daemon.workdir, parent=parent)


def write_agent(daemon: RealDaemon, name: str, model: str) -> None:
    agents = daemon.workdir / ".otto/agents"
    agents.mkdir(parents=True, exist_ok=True)
    (agents / f"{name}.yml").write_text(f"description: For a test.\nmodel: {model}\n")


def kill_worker(session: SyncSession) -> None:
    pid = wait_for("it runs", lambda: i.pid if (i := session.info()).state == "running" else None)
    worker = identify(pid)
    assert worker is not None and send_signal(worker, signal.SIGKILL)
    wait_for("the worker is gone", lambda: not is_alive(worker))


# ------------------------------------------------------------ trees and stops


def test_a_tree_is_started_shown_and_stopped(daemon: RealDaemon) -> None:
    """`run --parent` starts below; `tree` draws and nests it; `stop` ends all of it and says how that is known."""
    model = daemon.script("stream", STREAM)
    write_agent(daemon, "streamer", model)
    with daemon.client() as otto:
        top = start(daemon, otto)
        child = ottoctl(daemon, "run", "--detach", "--parent", top.id[2:9], "streamer", "below")
        assert child.returncode == 0, child.stderr
        below = child.stdout.strip()
        grandchild = ottoctl(daemon, "run", "--detach", "--parent", below, "streamer", "lowest").stdout.strip()
        assert {i.session: i.parent for i in otto.list(tree=top.id)} == {
            top.id: "",
            below: top.id,
            grandchild: below,
        }
        drawn = ottoctl(daemon, "tree", top.id, "--full").stdout.splitlines()
        assert [line.split("s-")[0] for line in drawn[1:4]] == ["", "└─ ", "   └─ "]
        (nested,) = json.loads(ottoctl(daemon, "tree", "-o", "json").stdout)
        assert nested["children"][0]["children"][0]["session"] == grandchild
        stopped = ottoctl(daemon, "stop", top.id, "--grace", "20")
        assert stopped.returncode == 0 and stopped.stdout.split() == [top.id]
        assert re.search(rf"stopped {top.id} and 2 below it; .*(empty|left)", stopped.stderr)
        assert "no live sessions" in ottoctl(daemon, "tree").stderr
        assert "└─ " in ottoctl(daemon, "tree", "--all").stdout
        refused = ottoctl(daemon, "run", "-d", "--parent", top.id, "streamer", "too late")
        assert refused.returncode == 5 and top.id in refused.stderr


def test_several_sessions_are_stopped_at_once(daemon: RealDaemon) -> None:
    """Every id has its own answer; one that does not exist, and one that is named twice, disturb nothing."""
    with daemon.client() as otto:
        ids = [start(daemon, otto).id for _ in range(4)]
        done = ottoctl(daemon, "stop", ids[0], ids[1], "s-0000000000", ids[2], ids[0], ids[3], "--grace", "20")
        assert done.returncode == 4
        assert done.stdout.split() == ids
        assert not otto.list()


# ------------------------------------------------------------ restarts and parking


def test_parked_sessions_are_seen_and_unparked() -> None:
    """`ps` names the reason, `session unpark` gives another try, and refuses what is not parked."""
    with running_daemon({"supervision": {"max_restarts": 0, "period_s": 600}}) as daemon, daemon.client() as otto:
        session = start(daemon, otto, policy="permanent")
        kill_worker(session)
        parked = wait_for("it is parked", lambda: i if (i := session.info()).state == "parked" else None)
        shown = ottoctl(daemon, "ps").stdout
        assert "parked" in shown and parked.reason.split(":")[0] in shown
        assert f"? {session.id} is parked" in ottoctl(daemon, "tree").stdout
        watched = ottoctl(daemon, "attach", "--no-input", session.id)
        assert watched.returncode == 8 and "session unpark" in watched.stderr
        assert "✗ crashed (SIGKILL): no further try" in ottoctl(daemon, "logs", session.id).stdout
        again = ottoctl(daemon, "session", "unpark", session.id, "s-0000000000")
        assert again.returncode == 4 and again.stdout.split() == [session.id]
        wait_for("it runs again", lambda: session.info().state == "running")
        with pytest.raises(RefusedError) as refused:
            session.unpark()
        assert refused.value.code == "not_parked"
        assert ottoctl(daemon, "session", "unpark", session.id).returncode == 5
        # The parking is history now: who attaches sees the session go on.
        assert "↻ restarted, incarnation 2" in ottoctl(daemon, "logs", session.id).stdout
        session.stop(grace_s=5)


def test_the_time_to_the_next_try_is_shown(daemon: RealDaemon) -> None:
    """A session that waits for its restart says when that is; its cut answer is declared void when it comes again."""
    with daemon.client() as otto:
        session = start(daemon, otto, policy="transient", backoff=Backoff(base_s=3600, max_s=3600, jitter=0))
        wait_for("it talks", lambda: session.info().last_seq > 12)
        kill_worker(session)
        wait_for("it waits", lambda: session.info().state == "restarting")
        assert re.search(r"restarting in \d+ (min|h)", ottoctl(daemon, "ps").stdout)
        assert "✗ crashed (SIGKILL): incarnation 2 in 60 min" in ottoctl(daemon, "logs", session.id).stdout
        session.stop(grace_s=5)
        quick = start(daemon, otto, policy="transient")
        wait_for("it talks", lambda: quick.info().last_seq > 12)
        kill_worker(quick)
        # What its end and its next start say, and some words.
        enough = quick.info().last_seq + 30
        wait_for("it talks again", lambda: (i := quick.info()).incarnation == 2 and i.last_seq > enough)
        said = ottoctl(daemon, "logs", quick.id).stdout
        assert said.count("this answer begins again") == 1
        quick.stop(grace_s=5)


# ------------------------------------------------------------ the daemon


def test_an_upgrade_keeps_process_and_sessions(daemon: RealDaemon) -> None:
    """`daemon upgrade` and both libraries return when the same pid answers as another instance; sessions go on."""
    with daemon.client() as otto:
        session = start(daemon, otto)
        worker = wait_for("it runs", lambda: i.pid if (i := session.info()).state == "running" else None)
        before = otto.daemon
        after = otto.upgrade_daemon()
        assert after.pid == before.pid and after.instance != before.instance
        done = ottoctl(daemon, "daemon", "upgrade")
        assert done.returncode == 0 and f"upgraded ottod (pid {before.pid})" in done.stderr
        assert "1 session adopted" in done.stderr

        async def again() -> str:
            async with daemon.async_client() as client:
                return (await client.upgrade_daemon()).instance

        third = asyncio.run(again())
        assert otto.status().instance == third
        wait_for("it goes on", lambda: session.info().state == "running")
        assert session.info().pid == worker
        session.stop(grace_s=5)


def test_a_reload_says_what_changes(daemon: RealDaemon) -> None:
    """`daemon reload` names what holds now and what waits; a wrong file is 2, with its line, and changes nothing."""
    config = Path(daemon.env["OTTO_CONFIG"])
    settings = json.loads(config.read_text())
    settings["sessions"]["stop_grace_s"] = 7
    settings["clients"] = {"max_clients": 99}
    config.write_text(json.dumps(settings))
    done = ottoctl(daemon, "daemon", "reload")
    assert done.stdout.splitlines() == ["changed  sessions.stop_grace_s", "waits    clients.max_clients"]
    config.write_text("sessions:\n  stop_grase_s: 7\n")
    wrong = ottoctl(daemon, "daemon", "reload")
    assert wrong.returncode == 2 and ":2:3:" in wrong.stderr
    config.write_text(json.dumps(settings))
    with daemon.client() as otto:
        assert otto.reload_daemon().changed == ()
        names = {family.name for family in otto.metrics()}
        assert any(name.startswith("otto_sessions") for name in names), names


def test_stopping_the_daemon_says_what_ended() -> None:
    """`daemon stop` names the sessions; with --keep-sessions they live, and the next daemon has them."""
    with running_daemon() as daemon:
        with daemon.client() as otto:
            session = start(daemon, otto)
            pid = wait_for("it runs", lambda: i.pid if (i := session.info()).state == "running" else None)
            daemon.processes()
        kept = ottoctl(daemon, "daemon", "stop", "--keep-sessions")
        assert kept.returncode == 0 and f"left to the next daemon: {session.id} (tester)" in kept.stderr
        assert daemon.process is not None
        daemon.process.wait(30)
        daemon.start()
        with daemon.client() as otto:
            wait_for("it is adopted", lambda: otto.session(session.id).info().state == "running")
            assert otto.session(session.id).info().pid == pid
        ended = ottoctl(daemon, "daemon", "stop", "--grace", "5")
        assert f"with it ended: {session.id} (tester)" in ended.stderr
        daemon.process.wait(30)


def test_a_refused_first_run_leaves_no_daemon(tmp_path: Path) -> None:
    """A typo as the first command ends with its error, and with no daemon that nobody asked for."""
    daemon = RealDaemon()
    try:
        done = ottoctl(daemon, "run", "codre", "do something")
        assert done.returncode == 2 and "codre" in done.stderr and "started ottod" not in done.stderr
        assert ottoctl(daemon, "ps").returncode == 3
    finally:
        daemon.close()


def test_what_is_too_large_is_refused_by_the_client(daemon: RealDaemon) -> None:
    """Bytes count, not characters: nothing is sent that the daemon would hang up on, and the connection lives on."""
    with daemon.client() as otto:
        spec = streamer(daemon)
        for wrong in (
            {"task": "é" * 600_000},
            {"task": "go", "env": {"BIG": "x" * 300_000}},
            {"task": "go", "spec": AgentSpec(name="tester", model=spec.model, system_prompt="é" * 1_000_000)},
        ):
            with pytest.raises(OttoError, match="bytes"):
                otto.start(**{"spec": spec, "cwd": daemon.workdir, **wrong})  # type: ignore[arg-type]
        assert not otto.list()


# ------------------------------------------------------------ top and doctor


def test_top_has_every_figure(daemon: RealDaemon) -> None:
    """One look as JSON: memory, processor time and events per second of a session that streams 20 events a second."""
    with daemon.client() as otto:
        session = start(daemon, otto)
        wait_for("it was looked at", lambda: session.info().memory_bytes)
        (row,) = json.loads(ottoctl(daemon, "top", "--once", "--interval", "1", "-o", "json").stdout)
        assert row["session"] == session.id and row["memory_bytes"] > 0
        assert row["events_per_s"] > 0 and row["cpu_percent"] is not None
        plain = ottoctl(daemon, "top", "-n", "2", "-i", "0.2", "--sort", "memory").stdout
        assert plain.count("EVENTS/S") == 2 and "\x1b" not in plain
        session.stop(grace_s=5)


@pytest.mark.parametrize("ending", ["q", "ctrl-c", "sigterm"])
@pytest.mark.parametrize("command", [("top", "-i", "0.2"), ("tree", "--watch", "--interval", "0.2")])
def test_the_terminal_is_given_back(daemon: RealDaemon, command: tuple[str, ...], ending: str) -> None:
    """However a live picture ends, the cursor is shown and the shell's own screen is back, and the keys are too."""
    import termios

    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    process = subprocess.Popen(
        [sys.executable, "-m", "ottoctl", *command],
        env=environment(daemon),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    shown = b""
    try:
        deadline = time.monotonic() + COMMAND_S
        while b"no live sessions" not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([leader], [], [], 0.1)[0]:
                shown += os.read(leader, 65536)
        if ending == "q":
            os.write(leader, b"q")
        else:
            process.send_signal(signal.SIGINT if ending == "ctrl-c" else signal.SIGTERM)
        while process.poll() is None:
            assert time.monotonic() < deadline, shown
            if select.select([leader], [], [], 0.1)[0]:
                shown += os.read(leader, 65536)
        while select.select([leader], [], [], 0)[0]:
            shown += os.read(leader, 65536)
        assert process.returncode == (143 if ending == "sigterm" else 0)
        assert shown.count(b"\x1b[?1049h") == 1 and shown.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(follower) == before
        assert b"Traceback" not in shown
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)


def test_doctor_proves_the_layers(daemon: RealDaemon) -> None:
    """Every layer is tried; a required one that is absent is a failure with its mend."""
    done = ottoctl(daemon, "doctor", "-o", "json")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert {"isolation process", "isolation memory", "isolation files", "isolation network"} <= set(findings)
    assert findings["isolation process"]["detail"].startswith("proved: ")
    assert done.returncode == (1 if any(f["level"] == "fail" for f in findings.values()) else 0)
    absent = [
        name for name in ("memory", "files", "network", "syscalls") if findings[f"isolation {name}"]["level"] != "ok"
    ]
    if not absent:
        pytest.skip("this machine gives every layer")
    config = Path(daemon.env["OTTO_CONFIG"])
    config.write_text(json.dumps({"isolation": {absent[0]: "required"}}))
    strict = ottoctl(daemon, "doctor", "-o", "json")
    found = {finding["check"]: finding for finding in json.loads(strict.stdout)}[f"isolation {absent[0]}"]
    assert strict.returncode == 1 and found["level"] == "fail" and found["mend"] and "(required)" in found["detail"]
