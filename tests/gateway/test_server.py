"""A real gateway process: what it listens on, when it goes, and who serves after it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ottod.gateway.app import FRESH_S
from ottod.gateway.server import MAX_CONNECTIONS
from ottod.protocol.requests import GetMetrics, Ping
from tests.daemon.harness import wait_for
from tests.fakes.fake_daemon import NO_ANSWER, FakeDaemon
from tests.gateway.reports import full_report
from tests.gateway.rig import GatewayProcess, fetch, reserved_port, status_of

ME = os.getpid()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon with metrics, in a runtime directory of its own. Its pid is that of the test."""
    runtime_dir = tmp_path / "run"
    runtime_dir.mkdir(mode=0o700)
    (runtime_dir / "control.token").write_text("token")
    with FakeDaemon(runtime_dir) as fake:
        fake.answers[GetMetrics] = lambda _body: full_report()
        yield fake


def test_it_serves_and_leaves_nothing(root: FakeDaemon) -> None:
    """Metrics over TCP and over a private unix socket; SIGTERM ends it in order, and the socket is gone."""
    with reserved_port() as port, GatewayProcess(root.path.parent, port=port) as gateway:
        gateway.wait_status("/readyz", 200)
        assert stat.S_IMODE(gateway.path.stat().st_mode) == 0o600
        for where in (gateway.path, port):
            answer = fetch(where, "/metrics")
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert 'otto_sessions{state="running"} 3.0\n' in answer.text
            answer = fetch(where, "/metrics", {"Accept": "application/openmetrics-text"})
            assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            assert answer.text.endswith("# EOF\n")
            assert fetch(where, "/metrics", {"Host": "evil.example"}).status == 421
            assert "server" not in answer.headers
        assert gateway.stop() == 0, gateway.log
        assert not gateway.path.exists()
        assert status_of(port, "/metrics") == 0


def test_root_goes_and_comes_back(root: FakeDaemon) -> None:
    """Without root there is 503, with its successor there are metrics again; the gateway is the same all the time."""
    with GatewayProcess(root.path.parent) as gateway:
        gateway.wait_status("/metrics", 200)
        root.vanish()
        gateway.wait_status("/metrics", 503)
        gateway.wait_status("/healthz", 503)
        root.restart("i-2")
        gateway.wait_status("/metrics", 200)
        gateway.wait_status("/healthz", 200)
        assert gateway.stop() == 0, gateway.log


def test_a_root_that_hangs_makes_503(root: FakeDaemon) -> None:
    """A root that takes questions and answers none cannot make a scraper wait."""
    with GatewayProcess(root.path.parent) as gateway:
        gateway.wait_status("/metrics", 200)
        root.answers[GetMetrics] = root.answers[Ping] = lambda _body: NO_ANSWER
        gateway.wait_status("/metrics", 503)
        gateway.wait_status("/healthz", 503)


def test_scrapes_do_not_load_root(root: FakeDaemon) -> None:
    """However many scrape, root is asked once a second."""
    with GatewayProcess(root.path.parent) as gateway:
        gateway.wait_status("/metrics", 200)
        asked, started_s = len(root.bodies(GetMetrics)), time.monotonic()
        for _ in range(200):
            assert gateway.get("/metrics").status == 200
        took_s = time.monotonic() - started_s
        assert len(root.bodies(GetMetrics)) - asked <= took_s / FRESH_S + 1


def test_it_makes_way_for_the_next_roots_gateway(root: FakeDaemon) -> None:
    """A gateway that root started goes when another root answers; the one that waits for its place takes over."""
    with GatewayProcess(root.path.parent, root_pid=ME) as first:
        first.wait_status("/metrics", 200)
        with GatewayProcess(root.path.parent, root_pid=ME) as second:
            root.restart("i-2")
            assert first.process.wait(60) == 0, first.log
            assert "another root has taken over" in first.log
            second.wait_status("/metrics", 200)
            assert second.stop() == 0, second.log


def test_it_goes_when_its_root_does_not_come_back(root: FakeDaemon) -> None:
    """Root is dead and nobody follows: the gateway does not stay behind."""
    with GatewayProcess(root.path.parent, "--orphan-s=2", root_pid=ME) as gateway:
        gateway.wait_status("/metrics", 200)
        root.vanish()
        assert gateway.process.wait(60) == 0, gateway.log
        assert not gateway.path.exists()


def test_it_does_not_serve_for_a_root_that_is_not_its_parent(root: FakeDaemon) -> None:
    """Its root died before it had begun: it goes without a word."""
    with GatewayProcess(root.path.parent, root_pid=1) as gateway:
        assert gateway.process.wait(60) == 0, gateway.log


def test_a_killed_gateway_leaves_no_obstacle(root: FakeDaemon) -> None:
    """After SIGKILL its socket is still there; the next gateway replaces it."""
    with GatewayProcess(root.path.parent) as first:
        first.wait_status("/metrics", 200)
        first.stop(signal.SIGKILL)
        assert first.path.exists()
    with GatewayProcess(root.path.parent) as second:
        second.wait_status("/metrics", 200)


def test_a_taken_port_is_an_error_that_says_what_to_do(root: FakeDaemon) -> None:
    """Somebody else's port: exit status 1, the address and the key to change."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with GatewayProcess(root.path.parent, port=port) as gateway:
            assert gateway.process.wait(60) == 1
            assert f"cannot listen on 127.0.0.1:{port}" in gateway.log
            assert "gateway.port" in gateway.log


def test_more_connections_than_the_bound_are_refused_and_forgotten(root: FakeDaemon) -> None:
    """A crowd of silent connections is answered with 503 instead of memory; when it leaves, all is well again."""
    with GatewayProcess(root.path.parent) as gateway:
        gateway.wait_status("/metrics", 200)
        crowd = []
        for _ in range(MAX_CONNECTIONS + 5):
            silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            silent.connect(str(gateway.path))
            crowd.append(silent)
        gateway.wait_status("/metrics", 503)
        for silent in crowd:
            silent.close()
        gateway.wait_status("/metrics", 200)


def test_a_stop_is_heard_while_it_waits_for_its_place(root: FakeDaemon) -> None:
    """SIGTERM ends a gateway that does not serve yet."""
    with GatewayProcess(root.path.parent) as first:
        first.wait_status("/metrics", 200)
        with GatewayProcess(root.path.parent) as second:
            # Its signal handler is in place once it has the lock's file open.
            lock = str(root.path.parent / "gateway.lock")
            pid = second.process.pid
            wait_for("the wait", lambda: any(f.path == lock for f in psutil.Process(pid).open_files()))
            assert second.stop() == 0, second.log
        assert status_of(first.path, "/metrics") == 200
