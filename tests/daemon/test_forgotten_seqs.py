"""A session that the ring has wholly forgotten goes on with its next seq, under the next root too."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from ottoctl.sync import SyncSession
from ottod.ids import session_key
from ottod.isolation.processes import ProcessId, identify, is_alive, send_signal
from ottod.protocol.records import RecordHeader
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.raw import RawClient, raw_client

SEGMENTS = 8
STREAM = {"stream": {"events": 100_000, "rate_hz": 100, "text_bytes": 40}}


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """With a ring that is too small for a dozen sessions: the quiet ones leave it."""
    ring = {"size_bytes": SEGMENTS * 128 * 1024, "segment_bytes": 128 * 1024}
    with running_daemon({"ring": ring, "sessions": {"orphan_grace_s": 120, "hung_after_s": 300}}) as started:
        yield started


def crowd_out(daemon: RealDaemon, session: SyncSession) -> None:
    """Others fill the ring until it has forgotten the session, and the database knows how far that had got."""
    with daemon.client() as otto:
        model = daemon.script("brief", {"text": "done"})
        for _ in range(2 * SEGMENTS):
            assert otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir).wait().ok
        head = otto.status().ring_head

    def is_noted() -> bool:
        with closing(sqlite3.connect(f"file:{daemon.base}/state/otto.db?mode=ro", uri=True)) as database:
            found = database.execute("SELECT value FROM meta WHERE key = 'noted_offset'").fetchone()
        return found is not None and int(found[0]) >= head - 1

    # A note goes with the next row that is written.
    with daemon.client() as otto:
        model = daemon.script("drip", {"stream": {"events": 100_000, "rate_hz": 5, "text_bytes": 20}})
        drip = otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir)
        wait_for("it is noted", is_noted)
        drip.kill()
    with raw_client(daemon.endpoint) as client:
        seqs = [h.first_seq for h in records(client, session.id, 0)]
    assert not seqs, "the ring still has the session: this test shows nothing"


def records(client: RawClient, session: str, from_offset: int) -> list[RecordHeader]:
    """What the ring has of a session from an offset on."""
    found = client.subscribe(from_offset, session=session, follow=False)
    headers = (h for h in client.read_to_end(found.subscription) if isinstance(h, RecordHeader))
    return [h for h in headers if h.session_key == session_key(session)]


def test_a_new_incarnation_goes_on_with_the_next_seq(daemon: RealDaemon) -> None:
    """Root and the worker are killed, and the ring knows nothing: the seq has no hole all the same."""
    with daemon.client() as otto:
        spec = daemon.agent(
            daemon.script("talk", {"text": "yes"}), restart=Restart(policy="permanent", backoff=Backoff(base_s=0))
        )
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir, mode="conversation")
        session.wait(idle=True)
        crowd_out(daemon, session)
        before, head = session.info(), otto.status().ring_head
        worker = identify(before.pid)
    assert worker is not None
    daemon.kill()
    end(worker)
    daemon.start()
    with daemon.client() as otto, raw_client(daemon.endpoint) as client:
        again = otto.session(session.id)
        wait_for("it is back", lambda: again.info().incarnation == 2 and again.info().state == "idle")
        assert records(client, session.id, head)[0].first_seq == before.last_seq + 1
        again.kill()


def test_a_frozen_worker_does_not_say_again_what_was_heard(daemon: RealDaemon) -> None:
    """Root appended what it could not acknowledge any more: under the next root these seqs are not used again."""
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(daemon.script("s", STREAM)), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 50)
        worker = identify(session.info().pid)
        assert worker is not None and send_signal(worker, signal.SIGSTOP)
        crowd_out(daemon, session)
        # What it had sent before it froze may still be on its way into the ring.
        while (before := session.info()).last_seq != (time.sleep(0.5), session.info())[1].last_seq:
            pass
        head = otto.status().ring_head
    daemon.kill()
    daemon.start()
    with daemon.client() as otto, raw_client(daemon.endpoint) as client:
        send_signal(worker, signal.SIGCONT)
        again = otto.session(session.id)
        wait_for("it goes on", lambda: len(records(client, session.id, head)) > 3)
        first = records(client, session.id, head)[0]
        assert first.first_seq == before.last_seq + 1
        again.kill()


def end(worker: ProcessId) -> None:
    """Kills it and waits until it is gone."""
    send_signal(worker, signal.SIGKILL)
    wait_for("it is gone", lambda: not is_alive(worker))
