"""OTTO.md through a whole daemon: it reaches the model, and stays what it was for as long as the session does."""

from __future__ import annotations

import signal
from pathlib import Path

import yaml

from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.events import ProjectNotesRead
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import running_daemon, wait_for
from tests.fakes.wire_server import WireServer

KEY = "sk-test-0123456789abcdef"
TRANSIENT = Restart(policy="transient", backoff=Backoff(base_s=0))
SCRIPT = {
    "turns": [
        {"tools": [{"name": "shell", "arguments": {"command": "while [ ! -e on ]; do sleep 0.05; done"}}]},
        {"text": "done"},
        {"text": "again"},
    ]
}


def test_it_reaches_the_model_and_stays_as_it_was_read(tmp_path: Path) -> None:
    """Over a real SDK: behind the agent's prompt in every request, the same bytes after kill -9 of the worker while
    the file changes, and in a fork; without secrets."""
    script = tmp_path / "script.yml"
    script.write_text(yaml.safe_dump(SCRIPT))
    with WireServer(script, key=KEY) as server:
        provider = {"adapter": "openai", "api": "chat", "base_url": server.url + "/v1", "api_key_env": "TEST_KEY"}
        with (
            running_daemon({"providers": {"wire": provider}}, env={"TEST_KEY": KEY}) as daemon,
            daemon.client() as otto,
        ):
            notes = daemon.workdir / "OTTO.md"
            notes.write_text(f"Run `make test`. The key is {KEY}.\n")
            fields = {"system_prompt": "You are a tester.", "restart": TRANSIENT}
            session = otto.start(
                spec=daemon.agent("wire:some-model", "shell", **fields), task="go", cwd=daemon.workdir
            )
            pid = wait_for("the tool runs", lambda: i.pid if (i := session.info()).current_tool else None)
            worker = identify(pid)
            assert worker is not None and send_signal(worker, signal.SIGKILL)
            notes.write_text("Something else by now.\n")
            wait_for("it is gone", lambda: not is_alive(worker))
            (daemon.workdir / "on").touch()
            assert session.wait(timeout_s=60).ok and session.info().incarnation == 2
            assert session.fork("once more", mode="oneshot").wait(timeout_s=60).ok
            systems = [_system(record.body) for record in server.requests]
            assert len(systems) == 3 and len(set(systems)) == 1
            assert systems[0].startswith("You are a tester.\n\nBetween the two lines with the mark ")
            assert "Run `make test`." in systems[0] and KEY not in systems[0]
            read = [e.event for e in session.events(follow=False) if isinstance(e.event, ProjectNotesRead)]
            assert [(each.path, each.size_bytes) for each in read] == [(str(notes), 54)]
            assert KEY.encode() not in Path(session.info().journal).read_bytes()


def _system(body: dict[str, object]) -> str:
    messages = body["messages"]
    assert isinstance(messages, list)
    return str(next(m["content"] for m in messages if m["role"] in ("system", "developer")))
