"""The configuration read again under a running daemon, on request and on SIGHUP."""

from __future__ import annotations

import json
import os
import signal

import pytest

from ottod.errors import ConfigError, OttoError
from ottod.protocol.requests import ReloadDaemon
from ottod.protocol.results import ReloadResult
from tests.daemon.harness import SMALL, RealDaemon, wait_for


def configure(daemon: RealDaemon, **sections: object) -> None:
    (daemon.base / "otto.yml").write_text(json.dumps({**SMALL, **sections}))


def test_a_new_limit_holds_for_the_next_session(daemon: RealDaemon) -> None:
    """sessions.max_live changes without a restart and disturbs no session that runs; the ring's size must wait."""
    stream = daemon.script("s", {"stream": {"events": 100_000, "rate_hz": 5, "text_bytes": 10}})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(stream), task="go", cwd=daemon.workdir)
        configure(daemon, sessions={"max_live": 1}, ring={"size_bytes": 8 * 1024 * 1024, "segment_bytes": 128 * 1024})
        result = otto.connection.call(ReloadDaemon())
        assert isinstance(result, ReloadResult)
        assert "sessions.max_live" in result.changed and result.needs_restart == ("ring.size_bytes",)
        with pytest.raises(OttoError) as refused:
            otto.start(spec=daemon.agent(stream), task="go", cwd=daemon.workdir)
        assert refused.value.code == "too_many_sessions"
        assert session.info().state in ("running", "starting")
        session.kill()


def test_a_bad_file_changes_nothing(daemon: RealDaemon) -> None:
    """The mistake is named with its place, and what held so far still does."""
    with daemon.client() as otto:
        (daemon.base / "otto.yml").write_text("sessions:\n  max_live: none\n")
        with pytest.raises((ConfigError, OttoError), match=r"otto.yml:2"):
            otto.connection.call(ReloadDaemon())
        brief = daemon.script("brief", {"text": "fine"})
        assert otto.run(spec=daemon.agent(brief), task="go", cwd=daemon.workdir).ok


def test_sighup_reloads(daemon: RealDaemon) -> None:
    """As for other daemons; the log says what has changed, and a mistake ends nothing."""
    configure(daemon, logging={"level": "debug"})
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for("it says so", lambda: "read again: logging.level" in daemon.log)
    (daemon.base / "otto.yml").write_text("nonsense: true\n")
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for("it says what is wrong", lambda: "nonsense" in daemon.log)
    with daemon.client() as otto:
        assert otto.status().version


def test_a_file_that_never_opens_does_not_keep_a_daemon(daemon: RealDaemon) -> None:
    """A thread that waits for a file, as on a file server that is gone, is left behind at the end."""
    config = daemon.base / "otto.yml"
    config.unlink()
    os.mkfifo(config)
    with daemon.client() as otto, pytest.raises(OttoError):
        otto.connection.call(ReloadDaemon(), timeout_s=2.0)
    assert daemon.stop() == 0
