"""Restarts as a user meets them: policies, backoff, parking, groups. The rules are tested in tests/core."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from itertools import pairwise

from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.events import IncarnationExited, SessionExited, SessionStateChanged
from ottod.protocol.requests import UnparkSession
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import Backoff, Group, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

STREAM = {"stream": {"events": 100_000, "rate_hz": 20, "text_bytes": 40}}
AT_ONCE = Backoff(base_s=0)


def kill_worker(session: SyncSession) -> SessionInfo:
    """SIGKILL for the present worker; gives what was known before."""
    info = wait_for("it runs", lambda: i if (i := session.info()).state == "running" else None)
    worker = identify(info.pid)
    assert worker is not None and send_signal(worker, signal.SIGKILL)
    wait_for("the worker is gone", lambda: not is_alive(worker))
    return info


def in_state(session: SyncSession, *states: str) -> SessionInfo:
    return wait_for(f"it is {states}", lambda: i if (i := session.info()).state in states else None)


def events_of(otto: SyncOtto, session: SyncSession) -> list[object]:
    found = list(otto.session(session.id).events(follow=False))
    assert [e.seq for e in found] == list(range(1, len(found) + 1))
    return [e.event for e in found]


def is_remembered(daemon: RealDaemon, session: SyncSession) -> bool:
    """Whether another root would find what the session's supervisor knows of its crashes."""
    with closing(sqlite3.connect(f"file:{daemon.base}/state/otto.db?mode=ro", uri=True)) as database:
        nodes = database.execute("SELECT node FROM supervision").fetchall()
    return any(session.id in node for (node,) in nodes)


def state_on_record(daemon: RealDaemon, session: SyncSession) -> str:
    """What another root would find."""
    with closing(sqlite3.connect(f"file:{daemon.base}/state/otto.db?mode=ro", uri=True)) as database:
        return str(database.execute("SELECT state FROM sessions WHERE session = ?", (session.id,)).fetchone()[0])


def start(
    daemon: RealDaemon, otto: SyncOtto, *, parent: str = "", group: Group | None = None, **restart: object
) -> SyncSession:
    """A session that streams for a long time."""
    spec = daemon.agent(
        daemon.script("stream", STREAM),
        restart=Restart(**{"backoff": AT_ONCE, **restart}),  # type: ignore[arg-type]
        group=group or Group(),
    )
    return otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=parent)


def test_a_crashed_session_goes_on_in_another_incarnation(daemon: RealDaemon) -> None:
    """transient: kill -9 costs one incarnation; seq goes on without a hole and the crash is in the stream."""
    with daemon.client() as otto:
        session = start(daemon, otto, policy="transient")
        before = kill_worker(session)
        wait_for("the next one runs", lambda: session.info().incarnation == 2 and session.info().state == "running")
        after = session.info()
        assert after.pid not in (0, before.pid) and after.restarts == 1
        session.stop(grace_s=2)
        events = events_of(otto, session)
    (lost,) = [e for e in events if isinstance(e, IncarnationExited)]
    assert (lost.incarnation, lost.cause.kind, lost.cause.signal, lost.restart) == (
        1,
        "crashed",
        "SIGKILL",
        "scheduled",
    )
    exited = [e for e in events if isinstance(e, SessionExited)]
    assert len(exited) == 1 and exited[0].incarnations == 2 and exited[0].cause.kind == "cancelled"


def test_too_many_crashes_park_a_session_until_it_is_unparked() -> None:
    """Beyond the allowance the session is parked with the reason; a sibling is not touched; unpark helps."""
    with running_daemon({"supervision": {"max_restarts": 2, "period_s": 600}}) as daemon, daemon.client() as otto:
        sibling = start(daemon, otto, policy="transient")
        session = start(daemon, otto, policy="permanent")
        for incarnation in (1, 2, 3):
            wait_for("its turn", lambda n=incarnation: session.info().incarnation == n)  # type: ignore[misc]
            kill_worker(session)
        parked = in_state(session, "parked")
        assert "2 are allowed" in parked.reason and parked.pid == 0
        assert sibling.info().incarnation == 1 and sibling.info().state == "running"
        otto.connection.call(UnparkSession(session=session.id))
        wait_for("another try", lambda: session.info().incarnation == 4 and session.info().state == "running")
        kill_worker(session)
        wait_for("a fresh allowance", lambda: session.info().incarnation == 5 and session.info().state == "running")
        assert session.stop(grace_s=2).cause.kind == "cancelled"


def test_a_parked_session_survives_root_and_can_be_stopped() -> None:
    """Parked is a state of its own: the next root finds it parked, and a stop ends it without any process."""
    with running_daemon({"supervision": {"max_restarts": 0}}) as daemon:
        with daemon.client() as otto:
            session = start(daemon, otto, policy="permanent")
            kill_worker(session)
            in_state(session, "parked")
            wait_for("it is on record", lambda: state_on_record(daemon, session) == "parked")
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            again = otto.session(session.id)
            assert again.info().state == "parked" and "0 are allowed" in again.info().reason
            stopped = again.stop()
            assert stopped.cause.kind == "cancelled" and stopped.stopped == (session.id,)
            events_of(otto, again)


def test_a_stop_wins_over_a_restart_that_is_due(daemon: RealDaemon) -> None:
    """Stopped while it waits for its next incarnation: it ends, and no incarnation comes."""
    with daemon.client() as otto:
        session = start(daemon, otto, policy="permanent", backoff=Backoff(base_s=6, jitter=0))
        kill_worker(session)
        waiting = in_state(session, "restarting")
        assert session.stop().cause.kind == "cancelled"
        assert time.time_ns() < waiting.restart_due_ns, "it was stopped before it was due"
        # Past the moment at which it would have come back.
        wait_for("it would have come", lambda: time.time_ns() > waiting.restart_due_ns + 500_000_000)
        info = session.info()
        assert info.state == "ended" and info.incarnation == 1
        assert len([e for e in events_of(otto, session) if isinstance(e, SessionExited)]) == 1


def test_backoff_is_not_reset_by_a_restart_of_the_daemon() -> None:
    """Root dies while a session waits: the next one waits on, for what was left of the delay."""
    with running_daemon() as daemon:
        with daemon.client() as otto:
            session = start(daemon, otto, policy="permanent", backoff=Backoff(base_s=8, jitter=0))
            kill_worker(session)
            due_ns = in_state(session, "restarting").restart_due_ns
            wait_for("its node's memory is on record", lambda: is_remembered(daemon, session))
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            again = otto.session(session.id)
            if time.time_ns() < due_ns - 1_000_000_000:
                assert again.info().state == "restarting" and again.info().incarnation == 1
            wait_for("it comes", lambda: again.info().state == "running")
            assert time.time_ns() > due_ns - 500_000_000
            assert again.info().incarnation == 2 and again.info().restarts == 1
            kill_worker(again)
            assert in_state(again, "restarting").restart_due_ns - time.time_ns() > 10_000_000_000, "the delay grows"
            again.stop()


def test_one_for_all_restarts_the_whole_group(daemon: RealDaemon) -> None:
    """A child's crash gives its siblings new incarnations too, in the order of their starts; none of them ends."""
    with daemon.client() as otto:
        parent = start(daemon, otto, group=Group(strategy="one_for_all"))
        in_state(parent, "running")
        children = [start(daemon, otto, parent=parent.id, policy="permanent") for _ in range(3)]
        for child in children:
            in_state(child, "running")
        kill_worker(children[1])
        for child in children:
            wait_for(
                "a second incarnation", lambda c=child: c.info().incarnation == 2 and c.info().state == "running"
            )  # type: ignore[misc]
        assert parent.info().incarnation == 1
        ways = []
        for child in children:
            ways += [e.restart for e in events_of(otto, child) if isinstance(e, IncarnationExited)]
        assert ways == ["group", "scheduled", "group"]
        assert parent.stop(grace_s=5).stopped == (*(c.id for c in reversed(children)), parent.id)


def test_a_group_that_gives_up_takes_its_parent_with_it(daemon: RealDaemon) -> None:
    """Too many restarts within a group: all its children end, and its parent fails with the reason."""
    with daemon.client() as otto:
        parent = start(daemon, otto, group=Group(max_restarts=1, period_s=600))
        in_state(parent, "running")
        flapping = start(daemon, otto, parent=parent.id, policy="permanent")
        steady = start(daemon, otto, parent=parent.id, policy="permanent")
        in_state(steady, "running")
        for incarnation in (1, 2):
            wait_for("its turn", lambda n=incarnation: flapping.info().incarnation == n)  # type: ignore[misc]
            kill_worker(flapping)
        result = parent.wait()
        assert result.cause.kind == "failed" and result.cause.code == "restart_intensity"
        assert flapping.info().state == "ended" and steady.info().state == "ended"
        for session in (parent, flapping, steady):
            assert len([e for e in events_of(otto, session) if isinstance(e, SessionExited)]) == 1


def test_the_end_of_a_significant_child_ends_its_group(daemon: RealDaemon) -> None:
    """auto_shutdown: the other children are stopped, and the parent ends."""
    with daemon.client() as otto:
        parent = start(daemon, otto, group=Group(auto_shutdown="any_significant"))
        in_state(parent, "running")
        other = start(daemon, otto, parent=parent.id)
        in_state(other, "running")
        spec = daemon.agent(
            daemon.script("brief", {"text": "done"}), restart=Restart(policy="transient", significant=True)
        )
        otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=parent.id)
        assert parent.wait().cause.code == "auto_shutdown"
        assert other.info().state == "ended"


def test_states_follow_the_table(daemon: RealDaemon) -> None:
    """What a subscriber sees of a crash: running, restarting with the reason, starting, running."""
    with daemon.client() as otto:
        session = start(daemon, otto, policy="transient", backoff=Backoff(base_s=0.3, jitter=0))
        kill_worker(session)
        wait_for("the next one runs", lambda: session.info().incarnation == 2 and session.info().state == "running")
        session.kill()
        changes = [e for e in events_of(otto, session) if isinstance(e, SessionStateChanged)]
    assert all(a.state == b.previous for a, b in pairwise(changes)), changes
    states = [c.state for c in changes]
    at = states.index("restarting")
    assert states[at : at + 2] == ["restarting", "starting"] and "running" in states[at:]
    assert "crashed(SIGKILL)" in changes[at].reason


def test_a_crash_loop_costs_little(daemon: RealDaemon) -> None:
    """Incarnations that die at once are delayed more each time, and never more often than the allowance."""
    with daemon.client() as otto:
        session = start(daemon, otto, policy="permanent", backoff=Backoff(base_s=0.1, factor=3, jitter=0))
        for incarnation in (2, 3, 4):
            kill_worker(session)
            wait_for(
                "it is back",
                lambda n=incarnation: (i := session.info()).incarnation == n and i.state == "running",
            )  # type: ignore[misc]
        delays = [e.delay_ms for e in events_of(otto, session) if isinstance(e, IncarnationExited)]
        assert len(delays) == 3 and 0 < delays[0] <= 100 < delays[1] <= 300 < delays[2] <= 900
        session.kill()


def test_no_zombie_is_left_by_incarnations(daemon: RealDaemon) -> None:
    """Root reaps every worker of a session that restarts."""
    with daemon.client() as otto:
        session = start(daemon, otto, policy="permanent")
        pids = set()
        for _ in range(3):
            pids.add(kill_worker(session).pid)
            wait_for("it is back", lambda: session.info().state == "running" and session.info().pid not in pids)
        wait_for("all are reaped", lambda: not [p for p in pids if os.path.exists(f"/proc/{p}")])
        session.kill()
