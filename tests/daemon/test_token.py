"""Who may speak to the daemon: whoever can read the runtime directory, and no tool."""

from __future__ import annotations

import stat

import pytest

from ottod.isolation import landlock
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import Hello, Rejected, Reply, Request
from ottod.protocol.events import ToolCompleted, ToolFailed
from ottod.protocol.requests import GetStatus
from tests.daemon.harness import RealDaemon
from tests.daemon.raw import RawClient


@pytest.mark.parametrize("token", ["", "guess", "0" * 64, "\u00e9"])
def test_a_client_without_the_token_is_refused(daemon: RealDaemon, token: str) -> None:
    """The hello is answered with a refusal and a mend, and nothing after it is served."""
    raw = RawClient(daemon.endpoint, hello=False)
    try:
        raw.send(Hello(protocol=PROTOCOL_VERSION, client="tool", version="0", token=token))
        refused = raw.message()
        assert isinstance(refused, Rejected) and refused.failure.code == "bad_token" and refused.failure.mend
        raw.send(Request(id=1, body=GetStatus()))
        answer = raw.message()
        assert isinstance(answer, Reply) and answer.failure is not None and answer.failure.code == "hello_required"
    finally:
        raw.close()


def test_the_token_is_private_and_new_with_every_start(daemon: RealDaemon) -> None:
    """Mode 0600, another one after a restart, and gone when the daemon has ended."""
    path = daemon.base / "run" / "control.token"
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(first) == 64
    daemon.stop()
    assert not path.exists()
    daemon.start()
    assert path.read_text() != first
    with daemon.client() as otto:
        assert otto.status().pid == daemon.pid


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock, so a tool can read what its user can")
def test_a_tool_cannot_have_the_token(daemon: RealDaemon) -> None:
    """A shell command may connect to the socket's path, and still cannot prove that it may speak."""
    path = daemon.base / "run" / "control.token"
    model = daemon.script(
        "thief",
        {"tools": [{"name": "shell", "arguments": {"command": f"cat {path}; ls {path.parent}"}}]},
        {"text": "x"},
    )
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "shell"), task="go", cwd=daemon.workdir)
        events = [e.event for e in session.events()]
    (tool,) = [e for e in events if isinstance(e, ToolCompleted | ToolFailed)]
    assert path.read_text() not in tool.output
    assert "ermission denied" in tool.output or "o such file" in tool.output
