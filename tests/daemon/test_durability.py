"""`ring.sync: always`: nothing is delivered or acknowledged before it is on disk, and nothing is lost by that."""

from __future__ import annotations

from ottod.protocol.events import SessionExited
from tests.daemon.harness import SMALL, running_daemon, wait_for

STREAM = {"stream": {"events": 3000, "rate_hz": 3000, "text_bytes": 60}}


def test_a_session_runs_to_its_end_with_every_event_synced_first() -> None:
    """Live and late readers get everything, in order and once, and a stop and a shutdown still work."""
    ring = {**SMALL["ring"], "sync": "always"}
    with running_daemon({"ring": ring}) as daemon, daemon.client() as otto:
        model = daemon.script("stream", STREAM)
        session = otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir)
        live = list(session.events())
        assert [e.seq for e in live] == list(range(1, len(live) + 1)) and len(live) > 3000
        assert isinstance(live[-1].event, SessionExited) and live[-1].event.cause.kind == "completed"
        assert list(session.events(follow=False)) == live
        assert list(otto.events(0, follow=False)) == live
        long = daemon.script("long", {"stream": {"events": 100_000, "rate_hz": 100, "text_bytes": 40}})
        running = otto.start(spec=daemon.agent(long), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: running.info().state == "running")
        assert running.stop(grace_s=5).remaining_pids == ()
