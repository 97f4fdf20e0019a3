"""Files that never answer: the session that waits for them ends its incarnation instead of waiting for ever."""

from __future__ import annotations

from pathlib import Path

from ottod.isolation.processes import identify, is_alive
from ottod.protocol.events import IncarnationExited, ToolFailed
from ottod.protocol.specs import Backoff, Limits, Restart
from ottod.worker.tool_threads import MAX_STUCK
from tests.daemon.harness import running_daemon, wait_for

HANGS = """
import sys, threading
if "ottod.zygote" in sys.orig_argv:
    from ottod.isolation.beneath import BeneathFiles
    from ottod.worker.tool_call import ToolRunner
    from ottod.worker.tool_threads import ToolThreads
    BeneathFiles.read = lambda self, path, *, max_bytes: threading.Event().wait()
    ToolRunner.__init__.__kwdefaults__["kill_margin_s"] = 0
    ToolThreads.__init__.__kwdefaults__["abandon_s"] = 0.05
"""
"""What a file system does that hangs, with less patience for it."""


def test_a_session_whose_files_do_not_answer_crashes_visibly(tmp_path: Path) -> None:
    """Each call is timed out; when too many of their threads are out the worker crashes, with a code of its own, and
    goes although they never come back. The next incarnation goes on in the middle of the turn."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    with running_daemon(env={"PYTHONPATH": str(tmp_path)}) as daemon:
        read = {"name": "fs_read", "arguments": {"path": "hangs"}}
        model = daemon.script(
            "reader",
            {"tools": [read] * (MAX_STUCK + 1)},
            {"text": "gave it up", "stall": 60, "marker": "stalled"},
        )
        with daemon.client() as otto:
            spec = daemon.agent(
                model,
                "fs_read",
                limits=Limits(tool_timeout_s=0.05),
                restart=Restart(policy="transient", backoff=Backoff(base_s=0)),
            )
            session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
            pid = wait_for("its worker", lambda: session.info().pid)
            worker = identify(pid)
            result = session.wait()
            events = [e.event for e in session.events(follow=False)]
        assert result.ok and result.result == "gave it up"
        (lost,) = [e for e in events if isinstance(e, IncarnationExited)]
        assert (lost.cause.kind, lost.cause.code) == ("crashed", "tool_stuck")
        failures = [e.failure.code for e in events if isinstance(e, ToolFailed) and e.tool == "fs_read"]
        assert failures == ["timeout"] * (MAX_STUCK + 1)
        assert worker is None or not is_alive(worker)
