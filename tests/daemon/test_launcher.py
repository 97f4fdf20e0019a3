"""The launcher of a session's programs is killed: no call fails for ever, the next incarnation has another one."""

from __future__ import annotations

import os
import signal

from ottod.isolation.processes import ProcessId, descendants, identify, is_alive, send_signal
from ottod.protocol.events import IncarnationExited, SessionExited
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import RealDaemon, wait_for


def launcher_of(pid: int) -> ProcessId | None:
    """The process below a worker that starts its programs: the only one that it started itself."""
    for process in descendants(pid):
        try:
            with open(f"/proc/{process.pid}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
            with open(f"/proc/{process.pid}/cmdline", "rb") as file:
                if parent == pid and b"launcher.py" in file.read():
                    return process
        except OSError:
            continue
    return None


def test_a_session_without_a_launcher_begins_again(daemon: RealDaemon) -> None:
    """It crashes, with a code of its own, and goes on in the middle of its turn with tools that work."""
    gate = "while [ ! -e on ]; do sleep 0.05; done"
    model = daemon.script(
        "gate",
        {"tools": [{"name": "shell", "arguments": {"command": gate}}]},
        {"tools": [{"name": "shell", "arguments": {"command": "echo it works"}}]},
        {"text": "${last_tool_result}"},
    )
    with daemon.client() as otto:
        spec = daemon.agent(model, "shell", restart=Restart(policy="transient", backoff=Backoff(base_s=0)))
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
        wait_for("the tool runs", lambda: session.info().current_tool == "shell")
        pid = session.info().pid
        launcher = wait_for("its launcher", lambda: launcher_of(pid))
        worker = identify(pid)
        assert worker is not None and send_signal(launcher, signal.SIGKILL)
        (daemon.workdir / "on").touch()
        result = session.wait()
        assert result.ok and "it works" in result.result
        events = [e.event for e in session.events(follow=False)]
        (lost,) = [e for e in events if isinstance(e, IncarnationExited)]
        assert (lost.cause.kind, lost.cause.code) == ("crashed", "launcher_lost")
        assert [e.incarnations for e in events if isinstance(e, SessionExited)] == [2]
    assert not is_alive(worker) and not os.path.exists(f"/proc/{launcher.pid}/cmdline")
