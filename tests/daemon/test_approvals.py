"""Approvals through a whole daemon: asked once, answered once, and lost by nobody's death."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import OttoError, RefusedError
from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.events import ApprovalRequested, ApprovalResolved, ToolFailed
from ottod.protocol.results import ApprovalResult, PendingApproval, SessionInfo
from ottod.protocol.specs import Backoff, PermissionRule, Permissions, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

ASK = Permissions(rules=(PermissionRule(effect="ask", tool="shell", reason="look at it first"),))
TRANSIENT = Restart(policy="transient", backoff=Backoff(base_s=0))
LATER = Restart(policy="transient", backoff=Backoff(base_s=300, max_s=300, jitter=0))
"""Comes back after the test; what is killed stays without a process."""


def start(daemon: RealDaemon, otto: SyncOtto, *, parent: str = "", **fields: object) -> SyncSession:
    """A session whose only tool call needs leave, and leaves a mark when it runs."""
    headless = bool(fields.pop("headless", False))
    model = daemon.script(
        "guarded",
        {"tools": [{"name": "shell", "arguments": {"command": "echo mark >> marks; echo ran"}}]},
        {"text": "heard: ${last_tool_result}"},
    )
    spec = daemon.agent(model, "shell", **{"permissions": ASK, **fields})
    return otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=parent, headless=headless)


def marks(daemon: RealDaemon) -> int:
    """How often the guarded call ran."""
    file = daemon.workdir / "marks"
    return file.read_text().count("mark") if file.exists() else 0


def pending(session: SyncSession) -> PendingApproval:
    """What the session waits for, once it says that it waits."""
    info = wait_for("it waits", lambda: i if (i := session.info()).state == "waiting_approval" else None)
    (approval,) = info.approvals
    return approval


def kill_worker(info: SessionInfo) -> None:
    worker = identify(info.pid)
    assert worker is not None and send_signal(worker, signal.SIGKILL)
    wait_for("the worker is gone", lambda: not is_alive(worker))


def events_of(daemon: RealDaemon, session: str, *kinds: type) -> list[object]:
    """The session's events of these kinds, and the proof that none is missing or doubled."""
    with daemon.client() as otto:
        found = list(otto.session(session).events(follow=False))
    assert [e.seq for e in found] == list(range(1, len(found) + 1))
    return [e.event for e in found if isinstance(e.event, kinds)]


def refused(act: Callable[[], object]) -> str:
    """The code of the refusal, with its message."""
    with pytest.raises(RefusedError) as caught:
        act()
    return f"{caught.value.code}: {caught.value.message}"


def ctl(daemon: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_one_child_waits_and_its_siblings_finish(daemon: RealDaemon) -> None:
    """A child that waits for leave holds up nobody but its parent, which waits for all of its children."""
    gate = daemon.script(
        "gate",
        {"tools": [{"name": "shell", "arguments": {"command": "while [ ! -e on ]; do sleep 0.05; done"}}]},
        {"text": "mine is done"},
    )
    with daemon.client() as otto:
        top = otto.start(spec=daemon.agent(gate, "shell"), task="go", cwd=daemon.workdir)
        wait_for("it runs", lambda: top.info().current_tool == "shell")
        waiting = start(daemon, otto, parent=top.id)
        siblings = [start(daemon, otto, parent=top.id, permissions=Permissions()) for _ in range(3)]
        approval = pending(waiting)
        elsewhere = start(daemon, otto)
        assert all(s.wait(timeout_s=60).ok for s in siblings) and marks(daemon) == 3
        (daemon.workdir / "on").touch()
        wait_for("the parent waits", lambda: top.info().state == "waiting_children")
        other = pending(elsewhere)
        assert [w.approval.approval for w in otto.approvals()] == [approval.approval, other.approval]
        assert [w.session for w in otto.approvals(session=top.id)] == [waiting.id]
        assert otto.status().sessions["waiting_approval"] == 2
        for nothing in ("", "a-", "a-0000000000"):
            assert refused(lambda n=nothing: otto.approve(n)).startswith("no_such_approval")  # type: ignore[misc]
        assert len(otto.approvals()) == 2
        otto.approve(approval.approval)
        assert "ran" in waiting.wait(timeout_s=60).result and top.wait(timeout_s=60).ok
        elsewhere.kill()
        assert otto.approvals() == () and marks(daemon) == 4


def test_the_command_line_asks_and_answers(daemon: RealDaemon) -> None:
    """Listed with a short id, told in the log with how to answer, answered by that id; the second answer is late."""
    with daemon.client() as otto:
        session = start(daemon, otto)
        approval = pending(session).approval
    table = ctl(daemon, "approvals")
    assert approval[:7] in table.stdout and "echo mark" in table.stdout and "look at it first" in table.stdout
    (listed,) = json.loads(ctl(daemon, "approvals", "-o", "json").stdout)
    assert (listed["session"], listed["approval"]["approval"]) == (session.id, approval)
    assert f"ottoctl approve {approval}" in ctl(daemon, "logs", session.id).stdout
    assert approval in ctl(daemon, "inspect", session.id).stdout
    done = ctl(daemon, "deny", approval[2:8], "--reason", "not on a Friday")
    assert (done.returncode, done.stdout) == (0, f"{approval}\n"), done.stderr
    late = ctl(daemon, "approve", approval[:8])
    assert late.returncode == 5 and "denied by ottoctl" in late.stderr
    assert ctl(daemon, "approve", "a-0000000000").returncode == 5
    assert "nothing waits" in ctl(daemon, "approvals").stderr
    with daemon.client() as otto:
        assert "not on a Friday" in otto.session(session.id).wait(timeout_s=60).result
    (resolved,) = events_of(daemon, session.id, ApprovalResolved)
    assert isinstance(resolved, ApprovalResolved) and resolved.by.startswith("ottoctl (pid ")
    assert "denied by ottoctl" in ctl(daemon, "logs", session.id).stdout and marks(daemon) == 0


def test_below_a_headless_session_nobody_is_asked(daemon: RealDaemon) -> None:
    """Also a child that a client starts there: its call fails at once, with the reason."""
    stream = daemon.script("stream", {"stream": {"events": 100_000, "rate_hz": 5, "text_bytes": 20}})
    with daemon.client() as otto:
        top = otto.start(spec=daemon.agent(stream), task="go", cwd=daemon.workdir, headless=True)
        child = start(daemon, otto, parent=top.id)
        grandchild_of = start(daemon, otto, headless=True)
        for session in (child, grandchild_of):
            assert "headless" in session.wait(timeout_s=60).result
            (failure,) = events_of(daemon, session.id, ToolFailed)
            assert isinstance(failure, ToolFailed) and failure.failure.code == "approval_unavailable"
            assert not events_of(daemon, session.id, ApprovalRequested)
        top.kill()
    assert marks(daemon) == 0


def test_a_killed_worker_asks_again_and_is_answered_once(daemon: RealDaemon) -> None:
    """One approval for the clients, with its age, however many incarnations ask."""
    with daemon.client() as otto:
        session = start(daemon, otto, restart=TRANSIENT)
        first = pending(session)
        kill_worker(session.info())
        wait_for("it is back", lambda: session.info().incarnation == 2)
        wait_for("it asks again", lambda: len(events_of(daemon, session.id, ApprovalRequested)) == 2)
        assert pending(session) == first
        assert len(otto.approvals()) == 1
        otto.approve(first.approval)
        assert "ran" in session.wait(timeout_s=60).result and marks(daemon) == 1
    assert len(events_of(daemon, session.id, ApprovalResolved)) == 1


@pytest.mark.parametrize("root_dies", [False, True])
def test_an_answer_while_there_is_no_worker_is_kept(root_dies: bool) -> None:
    """A parked session has none: an answer is taken, and heard by the next incarnation, also of another root."""
    with running_daemon({"supervision": {"max_restarts": 0}}) as daemon:
        with daemon.client() as otto:
            session = start(daemon, otto, restart=TRANSIENT)
            approval = pending(session).approval
            kill_worker(session.info())
            wait_for("it has no worker", lambda: session.info().state == "parked")
            assert otto.approve(approval).is_kept
            assert refused(lambda: otto.deny(approval)).startswith("already_resolved: ")
            assert otto.approvals() == () and session.info().approvals[0].answer is not None
        if root_dies:
            daemon.kill()
            daemon.start()
        _let_a_kept_answer_be_heard(daemon, session.id)


def _let_a_kept_answer_be_heard(daemon: RealDaemon, session: str) -> None:
    with daemon.client() as otto:
        otto.session(session).unpark()
        assert "ran" in otto.session(session).wait(timeout_s=60).result
    (resolved,) = events_of(daemon, session, ApprovalResolved)
    assert isinstance(resolved, ApprovalResolved)
    assert resolved.decision == "approved" and resolved.by.startswith("python (pid ")
    assert marks(daemon) == 1


def test_the_wait_outlives_root(daemon: RealDaemon) -> None:
    """kill -9 of root: the worker waits on, the next root knows the approval, and the answer gets there."""
    with daemon.client() as otto:
        sessions = [start(daemon, otto) for _ in range(3)]
        approvals = {session.id: pending(session) for session in sessions}
        pids = {session.id: session.info().pid for session in sessions}
    daemon.kill()
    daemon.start()
    with daemon.client() as otto:
        # At once: the workers may not have come back yet.
        assert {w.session: w.approval for w in otto.approvals()} == approvals
        for session in sessions:
            otto.approve(approvals[session.id].approval)
        for session in sessions:
            result = otto.session(session.id).wait(timeout_s=60)
            assert "ran" in result.result and result.info.incarnation == 1
            assert len(events_of(daemon, session.id, ApprovalRequested, ApprovalResolved)) == 2
    assert len(pids) == 3 and marks(daemon) == 3


def test_a_stop_withdraws(daemon: RealDaemon) -> None:
    """The question is over with its session; an answer hears that, and nothing of the call happens."""
    with daemon.client() as otto:
        session = start(daemon, otto)
        approval = pending(session).approval
        assert not session.stop(grace_s=30).remaining_pids
        (resolved,) = events_of(daemon, session.id, ApprovalResolved)
        assert isinstance(resolved, ApprovalResolved) and resolved.decision == "withdrawn"
        assert otto.approvals() == () and session.info().approvals == ()
        assert refused(lambda: otto.approve(approval)).startswith("no_such_approval")
        assert refused(lambda: otto.approve(approval, session=session.id)).startswith("no_such_approval")
        lost = start(daemon, otto, restart=LATER)
        unheard = pending(lost).approval
        kill_worker(lost.info())
        wait_for("it has no worker", lambda: lost.info().state == "restarting")
        otto.approve(unheard)
        assert lost.stop(grace_s=30).cause.kind == "cancelled" and lost.info().approvals == ()
    assert marks(daemon) == 0


def test_two_clients_answer_at_once(daemon: RealDaemon) -> None:
    """One answer counts; the other one is told which, and whose it was."""
    outcomes: list[ApprovalResult | OttoError] = []
    with daemon.client() as otto:
        session = start(daemon, otto)
        approval = pending(session).approval
        together = threading.Barrier(2)

        def answer(decide: Callable[[SyncOtto], ApprovalResult]) -> None:
            with daemon.client() as client:
                together.wait(60)
                try:
                    outcomes.append(decide(client))
                except OttoError as error:
                    outcomes.append(error)

        threads = [
            threading.Thread(target=answer, args=(lambda client: client.approve(approval),)),
            threading.Thread(target=answer, args=(lambda client: client.deny(approval, reason="no"),)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        result = session.wait(timeout_s=60).result
    (taken,) = [o for o in outcomes if isinstance(o, ApprovalResult)]
    (late,) = [o for o in outcomes if isinstance(o, OttoError)]
    assert late.code == "already_resolved" and f"was {taken.decision} by python" in late.message
    (resolved,) = events_of(daemon, session.id, ApprovalResolved)
    assert isinstance(resolved, ApprovalResolved) and resolved.decision == taken.decision
    assert marks(daemon) == (taken.decision == "approved") and ("ran" in result) == (taken.decision == "approved")


def test_the_metrics_tell_what_waits_and_for_how_long(daemon: RealDaemon) -> None:
    """The number of pending approvals, and the age of the oldest; 0 and 0 when nobody waits."""

    def read(otto: SyncOtto) -> tuple[float, float]:
        found = {f.name: f.samples[0].value for f in otto.metrics() if f.samples}
        return found["otto_approvals_pending"], found["otto_approval_oldest_age_seconds"]

    with daemon.client() as otto:
        assert read(otto) == (0, 0)
        sessions = [start(daemon, otto) for _ in range(2)]
        approvals = [pending(session).approval for session in sessions]
        count, age_s = read(otto)
        assert count == 2 and age_s > 0
        wait_for("it grows older", lambda: read(otto)[1] > age_s)
        for approval in approvals:
            otto.approve(approval)
        assert all(session.wait(timeout_s=60).ok for session in sessions)
        assert read(otto) == (0, 0)
