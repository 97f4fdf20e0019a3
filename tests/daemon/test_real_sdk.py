"""A whole session over the vendors' own SDKs, in a forked worker, against a server that speaks their wire format."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ottod.protocol.events import ContentDelta, ToolCompleted, UsageUpdated
from tests.daemon.harness import running_daemon
from tests.fakes.wire_server import WireServer

KEY = "sk-test-0123456789abcdef"
SCRIPT = {
    "turns": [
        {
            "text": "Let me look.",
            "tools": [
                {"name": "fs_read", "arguments": {"path": "notes.txt"}},
                {"name": "shell", "arguments": {"command": "env; cat /proc/$PPID/environ 2>&1 | tr '\\0' '\\n'"}},
            ],
            "usage": {"input_tokens": 100, "output_tokens": 20},
        },
        {"error": {"status": 529}, "times": 1},
        {"text": "It says: ${last_tool_result}", "usage": {"input_tokens": 200, "output_tokens": 30}},
    ]
}


@pytest.mark.parametrize(
    ("name", "entry", "suffix"),
    [
        ("anthropic", {"adapter": "anthropic"}, ""),
        ("openai", {"adapter": "openai", "api": "responses"}, "/v1"),
        ("local", {"adapter": "openai", "api": "chat"}, "/v1"),
    ],
)
def test_a_session_over_the_real_sdk(name: str, entry: dict[str, str], suffix: str, tmp_path: Path) -> None:
    """Streaming, two tools at once, a retried overload, usage; and the key is nowhere but in the request."""
    script = tmp_path / "script.yml"
    script.write_text(yaml.safe_dump(SCRIPT))
    with WireServer(script, key=KEY) as server:
        provider = {**entry, "base_url": server.url + suffix, "api_key_env": "TEST_PROVIDER_KEY"}
        settings = {"providers": {name: provider}}
        with running_daemon(settings, env={"TEST_PROVIDER_KEY": KEY}) as daemon, daemon.client() as otto:
            (daemon.workdir / "notes.txt").write_text("the number is 42\n")
            spec = daemon.agent(f"{name}:some-model", "fs_read", "shell")
            session = otto.start(spec=spec, task="What number?", cwd=daemon.workdir, env={"TEST_PROVIDER_KEY": KEY})
            events = [e.event for e in session.events()]
            result = session.wait()
            journal = Path(session.info().journal).read_bytes()
            ring = (daemon.base / "state" / "ring.wal").read_bytes()
            log = daemon.log
    assert result.ok and "42" in result.result, result
    assert len([e for e in events if isinstance(e, ToolCompleted)]) == 2
    said = "".join(e.text for e in events if isinstance(e, ContentDelta) and e.stream == "text")
    assert said.startswith("Let me look.") and "the number is 42" in said
    usage = [e for e in events if isinstance(e, UsageUpdated)]
    assert [u.usage.output_tokens for u in usage] == [20, 30] and usage[-1].total.calls == 2
    for place in (journal, ring, log.encode(), repr(events).encode()):
        assert KEY.encode() not in place
