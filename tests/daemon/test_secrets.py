"""Secrets: in no environment that can be read, and in nothing that is kept or shown."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ottod.isolation.processes import descendants
from ottod.protocol.events import ContentDelta, ItemCompleted, ToolCompleted, ToolFailed, TurnFailed
from tests.daemon.harness import RealDaemon, content, files_below, running_daemon, wait_for
from tests.fakes.wire_server import WireServer
from tests.gateway.rig import fetch, status_of

KEY = "wire/key+Zx9-4711-correct-horse"
PLANTED = "plnt-8Vq2Lw0Rk7Tn5Yb3Hd1"
VARIABLE = "PLANTED_SECRET"
SECRETS = {"planted": {"env": VARIABLE}}


def environs(daemon: RealDaemon) -> dict[int, bytes]:
    """What `/proc` shows of the environments of root and of everything below it."""
    found = {}
    for pid in (daemon.pid, *(process.pid for process in descendants(daemon.pid))):
        try:
            found[pid] = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
    return found


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[tuple[RealDaemon, WireServer]]:
    """A daemon whose provider's key is in its environment, and a server that takes no other."""
    script = tmp_path / "script.yml"
    script.write_text(json.dumps({"turns": [{"text": "yes"}]}))
    with WireServer(script, key=KEY) as server:
        provider = {"adapter": "openai", "api": "chat", "base_url": server.url + "/v1", "api_key_env": "TEST_KEY"}
        settings = {"providers": {"local": provider}, "secrets": SECRETS, "gateway": {"enabled": True, "port": 0}}
        settings["gateway"]["socket"] = True  # type: ignore[index]
        with running_daemon(settings, env={"TEST_KEY": KEY, VARIABLE: PLANTED, "KEPT": "as it is"}) as daemon:
            yield daemon, server


def test_no_process_shows_a_key(keyed: tuple[RealDaemon, WireServer]) -> None:
    """Neither root nor anything below it: not at first, not after an upgrade, and the key serves all the same."""
    daemon, _server = keyed
    slow = daemon.script("slow", {"stream": {"events": 100_000, "rate_hz": 20}})

    def check() -> None:
        with daemon.client() as otto:
            assert otto.run(spec=daemon.agent("local:m"), task="x", cwd=daemon.workdir).ok
            running = otto.start(spec=daemon.agent(slow), task="x", cwd=daemon.workdir)
            wait_for("it runs", lambda: running.info().state == "running")
            seen = environs(daemon)
            assert len(seen) >= 4 and daemon.pid in seen
            for environ in seen.values():
                assert KEY.encode() not in environ and PLANTED.encode() not in environ
            assert b"KEPT=as it is" in seen[daemon.pid]
            running.kill()

    check()
    with daemon.client() as otto:
        otto.upgrade_daemon()
    check()


def scan(daemon: RealDaemon) -> dict[str, bytes]:
    """Every byte that the daemon keeps, by file."""
    files = [path for top in ("state", "run") for path in files_below(daemon.base / top)]
    return {str(path.relative_to(daemon.base)): data for path in [*files, daemon.log_path] if (data := content(path))}


def test_a_planted_secret_is_nowhere(keyed: tuple[RealDaemon, WireServer]) -> None:
    """Printed by a tool in pieces, said by the model and by the user, in an error: not in a byte of what is kept."""
    daemon, _server = keyed
    encoded = base64.b64encode(b"--" + PLANTED.encode()).decode()
    half = len(PLANTED) // 2
    (daemon.workdir / "secret.txt").write_text(f"it is {PLANTED} and {encoded}\n")
    pieces = f"printf %s {PLANTED[:half]}; sleep 0.3; printf '%s\\n' {PLANTED[half:]}; cat secret.txt; exit 3"
    tools = [
        {"name": "shell", "arguments": {"command": pieces}},
        {"name": "fs_read", "arguments": {"path": "secret.txt"}},
        {"name": "fs_read", "arguments": {"path": f"no-{PLANTED}"}},
        {"name": "fs_write", "arguments": {"path": "copy.txt", "content": PLANTED}},
        {"name": "shell", "arguments": {"command": "echo ghp_$(printf 'a1B2%.0s' 1 2 3 4 5 6 7 8 9)"}},
    ]
    model = daemon.script(
        "leaky",
        {"reasoning": f"The secret {PLANTED} is known.", "text": f"I say {PLANTED} aloud.", "tools": tools},
        {"error": {"status": 400, "message": f"your key {PLANTED} is bad"}},
        chunk=3,
    )
    with daemon.client() as otto:
        spec = daemon.agent(model, "shell", "fs_read", "fs_write")
        # Under another name, and asked for by the agent: it is still a secret of the daemon's.
        spec = msgspec.structs.replace(spec, env=("INNOCENT",))
        env = {"PATH": daemon.env["PATH"], "INNOCENT": PLANTED}
        session = otto.start(spec=spec, task=f"use {PLANTED}", title=PLANTED, cwd=daemon.workdir, env=env)
        result = session.wait()
        # Whoever goes on with it may say it again.
        for other in (session.resume(f"and use {PLANTED}"), session.fork(turn=0, task=f"{PLANTED}!", title=PLANTED)):
            assert other.wait().cause is not None
        events = [e.event for e in session.events(0)]
        gateway = daemon.base / "run" / "gateway.sock"
        wait_for("the gateway serves", lambda: status_of(gateway, "/metrics") == 200)
        metrics = wait_for("metrics", lambda: fetch(gateway, "/metrics").text)
        listed = msgspec.json.encode(otto.list(all=True)).decode()
        exported = msgspec.json.encode(session.info()).decode()
    said = "".join(e.text for e in events if isinstance(e, ContentDelta) and e.stream == "text")
    thought = "".join(e.text for e in events if isinstance(e, ContentDelta) and e.stream == "reasoning")
    shown = "".join(e.text for e in events if isinstance(e, ContentDelta) and e.stream == "tool_output")
    assert said == "I say [redacted:planted] aloud." and thought == "The secret [redacted:planted] is known."
    assert "[redacted:planted]" in shown and "[redacted:github-token]" in shown
    (item,) = [e for e in events if isinstance(e, ItemCompleted) and e.kind == "assistant_message"]
    assert item.text == said
    outputs = [e.output for e in events if isinstance(e, ToolCompleted | ToolFailed)]
    assert sum("[redacted:planted]" in output for output in outputs) >= 2
    codes = {e.failure.code for e in events if isinstance(e, ToolFailed)}
    assert "redacted" in codes and not (daemon.workdir / "copy.txt").exists()
    (failed,) = [e for e in events if isinstance(e, TurnFailed)]
    assert "[redacted:planted]" in failed.failure.message
    assert not result.ok and "[redacted:planted]" in result.cause.message
    texts = {"events": msgspec.json.encode(events), "metrics": metrics.encode(), "list": listed.encode()}
    texts |= {"info": exported.encode(), **scan(daemon)}
    assert daemon.stop() == 0
    texts |= {f"{name} (stopped)": data for name, data in scan(daemon).items()}
    assert any(name.endswith("journal") for name in texts) and any("ring.wal" in name for name in texts)
    forms = [PLANTED.encode(), encoded.encode(), base64.b64encode(PLANTED.encode())[:-4], KEY.encode()]
    for name, data in texts.items():
        for form in forms:
            assert form not in data, f"{form!r} in {name}"
    assert any(b"[redacted:planted]" in data for name, data in texts.items() if "otto.db" in name)


def test_a_resumed_session_has_the_same_conversation(tmp_path: Path) -> None:
    """What the model was given before the loss and after it is the same, byte for byte, and has no secret in it."""
    script = tmp_path / "script.yml"
    first = {"text": "looking", "tools": [{"name": "fs_read", "arguments": {"path": "secret.txt"}}]}
    script.write_text(json.dumps({"turns": [first, {"text": "wait", "stall": 30, "marker": "m"}, {"text": "done"}]}))
    with WireServer(script, key=KEY) as server:
        provider = {"adapter": "openai", "api": "chat", "base_url": server.url + "/v1", "api_key_env": "TEST_KEY"}
        settings = {"providers": {"local": provider}, "secrets": SECRETS}
        with running_daemon(settings, env={"TEST_KEY": KEY, VARIABLE: PLANTED}) as daemon, daemon.client() as otto:
            (daemon.workdir / "secret.txt").write_text(f"the secret is {PLANTED}\npassword=hunter22x\n")
            spec = daemon.agent("local:m", "fs_read")
            spec = msgspec.structs.replace(spec, restart=msgspec.structs.replace(spec.restart, policy="transient"))
            session = otto.start(spec=spec, task="x", cwd=daemon.workdir)
            wait_for("the second call", lambda: len(server.requests) >= 2)
            os.kill(session.info().pid, signal.SIGKILL)
            wait_for("the call again", lambda: len(server.requests) >= 3)
            again = server.requests
            assert again[1].body["messages"] == again[2].body["messages"]
            given = json.dumps(again[2].body)
            assert "[redacted:planted]" in given and "[redacted:password]" in given
            assert PLANTED not in given and "hunter22x" not in given
            session.kill()
