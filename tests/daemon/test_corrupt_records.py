"""A record that is damaged on disk costs what it was about, and nobody else: root comes up over all of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import identify, is_alive
from ottod.protocol import journal as j
from ottod.protocol.events import SessionExited, TurnStarted
from ottod.protocol.specs import Backoff
from ottod.storage.journal import read_journal
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.test_restarts import events_of, in_state, kill_worker, start

NO_CODE = b"\xc1"
"""What no msgpack begins with."""
NO_TEXT = b"\x81\xa4kind\xa3\xff\xff\xff"
"""A map that is whole, with a string in it that is no text."""


def rows(daemon: RealDaemon, question: str, *values: object) -> list[tuple[object, ...]]:
    """What the database holds, or is made to hold while no root has it open."""
    with closing(sqlite3.connect(f"{daemon.base}/state/otto.db")) as database, database:
        return database.execute(question, values).fetchall()


def streaming(daemon: RealDaemon, otto: SyncOtto, **restart: object) -> SyncSession:
    """A session that streams: it has read its script, which the next one's start writes anew."""
    session = start(daemon, otto, **restart)
    wait_for("it streams", lambda: session.info().last_seq > 10)
    return session


def test_a_root_comes_up_over_every_kind_of_damaged_record(daemon: RealDaemon) -> None:
    """Plans, what supervisors remember, causes, whole sessions, pids, a provider's breaker: the sibling goes on."""
    with daemon.client() as otto:
        sibling = streaming(daemon, otto)
        due = [streaming(daemon, otto, policy="transient", backoff=Backoff(base_s=60, jitter=0)) for _ in range(2)]
        for session in due:
            kill_worker(session)
            in_state(session, "restarting")
        planless = [streaming(daemon, otto, policy="transient") for _ in range(2)]
        nameless = [streaming(daemon, otto) for _ in range(2)]
        strange = streaming(daemon, otto)
        pid = sibling.info().pid
        lost = [identify(session.info().pid) for session in nameless]
        written = "SELECT 1 FROM incarnations JOIN supervision ON node = 'above:' || session"
        written += " WHERE session = ? AND cause IS NOT NULL"
        wait_for("their ends are written", lambda: all(rows(daemon, written, session.id) for session in due))
    daemon.kill()
    for n, damage in enumerate((NO_CODE, NO_TEXT)):
        rows(daemon, "UPDATE plans SET plan = ? WHERE session = ?", damage, planless[n].id)
        rows(daemon, "UPDATE sessions SET info = ? WHERE session = ?", damage, nameless[n].id)
        rows(daemon, "UPDATE incarnations SET cause = ? WHERE session = ?", damage, due[n].id)
        rows(daemon, "UPDATE supervision SET snapshot = ? WHERE node = ?", damage, f"above:{due[n].id}")
        rows(daemon, "INSERT INTO provider_lanes VALUES ('scripted', ?, ?)", f"model-{n}", damage)
    rows(daemon, "UPDATE incarnations SET pid = 1 << 40 WHERE session = ?", strange.id)
    daemon.start()
    wait_for("they are sent away", lambda: not any(worker and is_alive(worker) for worker in lost))
    for session in nameless:
        journal = read_journal(daemon.base / "state" / "sessions" / session.id / "journal")
        assert isinstance(journal[-1], j.Checkpoint), "they note where they stand"
    with daemon.client() as otto:
        assert otto.status().pid == daemon.pid
        again = otto.session(sibling.id).info()
        assert (again.pid, again.incarnation, again.state) == (pid, 1, "running")
        wait_for("it goes on", lambda: otto.session(sibling.id).info().last_seq > again.last_seq + 5)
        for session in due:
            assert in_state(otto.session(session.id), "running").incarnation == 2, "what it waited for is forgotten"
        for session in (*planless, strange):
            cause = in_state(otto.session(session.id), "ended").cause
            assert cause is not None and cause.kind == "daemon_stop"
        assert daemon.log.count("what is on record of it cannot be read") == 2
        assert daemon.log.count("its plan cannot be read") == 2
        assert daemon.log.count("its allowance is fresh") == 2
        assert daemon.log.count("it begins closed") == 2


def test_a_session_whose_journal_is_lost_fails_once(daemon: RealDaemon) -> None:
    """However often it would be restarted: another incarnation would find no more. What it did is not done again."""
    with daemon.client() as otto:
        session = streaming(daemon, otto, policy="permanent", backoff=Backoff(base_s=3, jitter=0))
        kill_worker(session)
        in_state(session, "restarting")
        Path(session.info().journal).unlink()
        info = in_state(session, "ended")
        assert info.cause is not None and (info.cause.kind, info.cause.code) == ("failed", "journal_lost")
        assert info.incarnation == 2 and info.restarts == 1
        kinds = [type(event) for event in events_of(otto, session)]
        assert kinds.count(SessionExited) == 1 and kinds.count(TurnStarted) == 1


def test_workers_outlive_the_database_that_knew_them(daemon: RealDaemon) -> None:
    """It is damaged while root is dead: root begins anew beside it, and says so; who worked notes where it stands."""
    with daemon.client() as otto:
        info = streaming(daemon, otto).info()
    worker = identify(info.pid)
    assert worker is not None
    daemon.kill()
    artifact = daemon.base / "state" / "artifacts" / "aa" / ("aa" * 32)
    artifact.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_bytes(b"what a workflow has left")
    (daemon.base / "state" / "otto.db-wal").unlink()  # It has the header as well.
    with (daemon.base / "state" / "otto.db").open("r+b") as file:
        file.write(b"no database at all")
    daemon.start()
    wait_for("its worker is gone", lambda: not is_alive(worker))
    assert isinstance(read_journal(info.journal)[-1], j.Checkpoint)
    assert "the old one was damaged" in daemon.log
    wait_for("artifacts were looked at", lambda: "artifacts: what no row means is kept" in daemon.log)
    with daemon.client() as otto:
        assert otto.status().pid == daemon.pid
    assert artifact.exists()
