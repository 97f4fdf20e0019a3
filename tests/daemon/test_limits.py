"""What a machine's limits do to root."""

from __future__ import annotations

import resource
import socket

import pytest

from tests.daemon.harness import RealDaemon

LOW = 256


def test_a_low_soft_limit_of_open_files_does_not_kill_root() -> None:
    """Started with `ulimit -n 256`, as a login shell may have it, root survives 400 open connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1000:
        pytest.skip("this process may not open enough files itself")
    daemon = RealDaemon()
    connections = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LOW, hard))
        try:
            daemon.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(400):
            bare = socket.socket(socket.AF_UNIX)
            connections.append(bare)
            # Blocks while the backlog is full, and is refused as soon as nobody listens any more.
            bare.connect(daemon.endpoint.removeprefix("ipc://"))
        model = daemon.script("fine", {"text": "fine"})
        with daemon.client(timeout_s=60) as otto:
            assert otto.run(spec=daemon.agent(model), task="x", cwd=daemon.workdir).ok
    finally:
        for bare in connections:
            bare.close()
        daemon.close()
