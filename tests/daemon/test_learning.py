"""After a run: what it has taught comes to OTTO.md by a diff that somebody has agreed to, and in no other way."""

from __future__ import annotations

import json
from typing import Any

from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import RefusedError
from ottod.protocol.events import LogWarning, ToolFailed
from ottod.protocol.requests import ListSessions
from ottod.protocol.results import SessionInfo
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.workshop import agent, keep, ottoctl, start, step, workflow

LESSON = "Test parts together."


def maintainer(daemon: RealDaemon) -> None:
    """The project's own, played by a script: it reads, adds a line, and says what came of it."""
    edit = {"path": "OTTO.md", "old": "# Notes\n", "new": f"# Notes\n\n{LESSON}\n"}
    agent(
        daemon,
        "doc-maintainer",
        {"tools": [{"name": "artifact_list", "arguments": {}}]},
        {"tools": [{"name": "fs_edit", "arguments": edit}]},
        {"text": "${last_tool_result}"},
        tools=["fs_read", "fs_edit", "artifact_list", "artifact_read"],
        permissions="autonomous",
    )
    (daemon.workdir / "OTTO.md").write_text("# Notes\n")


def learning(otto: SyncOtto, run: SyncSession) -> SessionInfo:
    """The session that learns from a run, once it is there."""

    def find() -> SessionInfo | None:
        found = otto.list_with(ListSessions(all=True)).sessions
        return next((i for i in found if i.title == f"what {run.id} has taught"), None)

    return wait_for("somebody learns from it", find)


def approvals(daemon: RealDaemon, session: str) -> list[dict[str, Any]]:
    done = ottoctl(daemon, "approvals", "--wait", "--session", session, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_run_is_learned_from_with_leave(daemon: RealDaemon) -> None:
    """By itself where the workflow says so, when the run is over; the change is shown as a diff; what is approved is
    made, what is denied is not, and of a run without the key nobody learns unless told to."""
    maintainer(daemon)
    notes = daemon.workdir / "OTTO.md"
    report = json.dumps({"status": "red", "passed": 1, "failed": 1})
    agent(daemon, "tester", keep("test_report", report, "test_report"), {"text": "tested"}, tools=["artifact_write"])
    with daemon.client() as otto:
        spec = workflow("sequential", step("tester", task="{{task}}"), learn=True)
        run = start(daemon, otto, spec, task="test it all")
        assert run.wait(timeout_s=60).ok
        found = learning(otto, run)
        assert not found.parent and found.tree == run.id
        (asked,) = approvals(daemon, found.session)
        assert asked["approval"]["diff"] == f"--- a/OTTO.md\n+++ b/OTTO.md\n@@ -1 +1,3 @@\n # Notes\n+\n+{LESSON}\n"
        assert f"+{LESSON}" in ottoctl(daemon, "approvals").stdout.splitlines()
        task = otto.session(found.session).info().task
        assert "test it all" in task and "completed  tester" in task and report in task
        otto.deny(asked["approval"]["approval"], reason="says nothing")
        result = otto.session(found.session).wait(timeout_s=60)
        assert result.ok and "says nothing" in result.result and notes.read_text() == "# Notes\n"

        done = ottoctl(daemon, "notes", "update", run.id)
        assert done.returncode == 0 and "approvals --wait" in done.stderr, done.stderr
        again = otto.session(done.stdout.strip())
        (asked,) = approvals(daemon, again.id)
        assert f"+{LESSON}" in ottoctl(daemon, "logs", again.id).stdout.splitlines()
        assert ottoctl(daemon, "approve", asked["approval"]["approval"]).returncode == 0
        assert again.wait(timeout_s=60).ok and notes.read_text() == f"# Notes\n\n{LESSON}\n"
        # Of learning nobody learns, and of no run that does not say so.
        assert {i.title for i in otto.list_with(ListSessions(all=True)).sessions if not i.parent} == {
            "test it all", f"what {run.id} has taught"
        }  # fmt: skip


def test_where_nobody_can_agree_nothing_changes(daemon: RealDaemon) -> None:
    """A headless run says so and starts nobody; one that goes on cannot be learned from yet."""
    maintainer(daemon)
    agent(daemon, "worker", {"text": "done"}, learn=True)
    with daemon.client() as otto:
        run = otto.start("worker", "go", cwd=daemon.workdir, headless=True)
        assert run.wait(timeout_s=60).ok
        warned = [e.event for e in run.events(follow=False) if isinstance(e.event, LogWarning)]
        assert [w.code for w in warned] == ["not_learned"]
        headless = otto.start("doc-maintainer", "go", cwd=daemon.workdir, headless=True)
        assert headless.wait(timeout_s=60).ok
        failed = [e.event for e in headless.events(follow=False) if isinstance(e.event, ToolFailed)]
        assert [f.failure.code for f in failed] == ["approval_unavailable"]
        assert (daemon.workdir / "OTTO.md").read_text() == "# Notes\n"
        assert len(otto.list_with(ListSessions(all=True)).sessions) == 2
        live = otto.start("worker", "", cwd=daemon.workdir, mode="conversation")
        try:
            live.update_notes()
        except RefusedError as error:
            assert error.code == "session_live"
        else:
            raise AssertionError("a live session was learned from")
        live.kill()
