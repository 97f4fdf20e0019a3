"""What root meant by stopping a worker outlives root: its session goes on, or is condemned, as it was decided."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing

import msgspec

from ottoctl.sync import SyncSession
from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.events import IncarnationExited
from ottod.protocol.results import Halt, SessionInfo
from ottod.protocol.specs import Group
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.test_restarts import events_of, in_state, kill_worker, start


def on_record(daemon: RealDaemon, session: SyncSession) -> Halt | None:
    """What another root would find."""
    with closing(sqlite3.connect(f"file:{daemon.base}/state/otto.db?mode=ro", uri=True)) as database:
        (packed,) = database.execute("SELECT info FROM sessions WHERE session = ?", (session.id,)).fetchone()
    return msgspec.msgpack.decode(packed, type=SessionInfo).halt


def signal_worker(session: SyncSession, number: signal.Signals) -> None:
    worker = identify(session.info().pid)
    assert worker is not None and send_signal(worker, number)
    if number == signal.SIGKILL:
        wait_for("it is gone", lambda: not is_alive(worker))


def test_a_stop_is_meant_as_it_was_when_root_dies(daemon: RealDaemon) -> None:
    """Two workers are being stopped when root dies. One belongs to a group that restarts, and comes back; the other's
    own group has given up, and it fails with that, though it returns after every crash."""
    with daemon.client() as otto:
        parent = start(daemon, otto, group=Group(strategy="one_for_all"))
        sibling, crashed = [start(daemon, otto, parent=parent.id, policy="transient") for _ in range(2)]
        condemned = start(daemon, otto, policy="transient", group=Group(max_restarts=0))
        in_state(condemned, "running")
        flapping = start(daemon, otto, parent=condemned.id, policy="permanent")
        for each in (sibling, condemned):
            in_state(each, "running")
            signal_worker(each, signal.SIGSTOP)  # It cannot obey before root is dead.
        kill_worker(crashed)
        kill_worker(flapping)
        wait_for("why is on record", lambda: on_record(daemon, sibling) and on_record(daemon, condemned))
        assert on_record(daemon, sibling) == Halt()
        pids = [each.info().pid for each in (sibling, condemned)]
    daemon.kill()
    for pid, number in zip(pids, (signal.SIGCONT, signal.SIGKILL), strict=True):
        worker = identify(pid)
        assert worker is not None and send_signal(worker, number)
    daemon.start()
    with daemon.client() as otto:
        for each in (sibling, crashed):
            again = otto.session(each.id)
            wait_for("it is back", lambda s=again: s.info().incarnation == 2 and s.info().halt is None)  # type: ignore[misc]
            in_state(again, "running")
        ways = [e.restart for e in events_of(otto, otto.session(sibling.id)) if isinstance(e, IncarnationExited)]
        assert ways == ["group"]
        cause = otto.session(condemned.id).wait().cause
        assert cause is not None and (cause.kind, cause.code) == ("failed", "restart_intensity")
        otto.session(parent.id).stop(grace_s=5)
