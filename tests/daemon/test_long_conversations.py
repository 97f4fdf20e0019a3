"""Conversations that grow too long and agents that get nowhere, with a real daemon: what its clients see."""

from __future__ import annotations

from typing import Any

import pytest

from ottod.protocol.events import ArtifactWritten, IncarnationExited, ItemCompleted, LogWarning, UsageUpdated
from ottod.protocol.specs import Backoff, Health, LoopRule, Restart
from tests.daemon.harness import RealDaemon, running_daemon

pytestmark = pytest.mark.real

STEPS = 6
READ: dict[str, Any] = {"tools": [{"name": "fs_read", "arguments": {"path": "f"}}]}
SETTINGS = {"providers": {"scripted": {"context_tokens": 2000}}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def long_script(daemon: RealDaemon, name: str, **summary: object) -> str:
    """Reads more than a context of 2000 tokens holds, and says how many steps that took."""
    (daemon.workdir / "f").write_text("0123456789" * 120)
    turns = [{"text": f"step {n}", **READ} for n in range(1, STEPS + 1)]
    return daemon.script(name, *turns, {"text": "the end, at step ${step}"}, summary={"text": "So far.", **summary})


def test_a_conversation_longer_than_its_context() -> None:
    """It goes on from its summary, also when its process is killed while the summary is written; a client sees both,
    and what was paid for."""
    with running_daemon(SETTINGS) as daemon, daemon.client() as otto:
        model = long_script(daemon, "long", crash="SIGKILL", marker="killed-once")
        restart = Restart(policy="transient", backoff=Backoff(base_s=0.01, max_s=0.1))
        session = otto.start(spec=daemon.agent(model, "fs_read", restart=restart), task="read", cwd=daemon.workdir)
        events = [item.event for item in session.events()]
        result = session.wait()
        assert result.ok and result.result == f"the end, at step {STEPS + 1}", result.cause
        assert len([e for e in events if isinstance(e, IncarnationExited)]) == 1
        shortened = [e for e in events if isinstance(e, ItemCompleted) and e.kind == "compaction"]
        assert shortened and all(e.text == "So far." for e in shortened)
        assert shortened[0].data["tokens_after"] < shortened[0].data["tokens_before"]
        kept = [e for e in events if isinstance(e, ArtifactWritten) and e.kind == "summary"]
        assert {e.name for e in kept} == {f"summary-{session.id}.md"}
        total = [e for e in events if isinstance(e, UsageUpdated)][-1].total
        assert total.calls == STEPS + 1 + len(shortened)


def test_an_agent_that_gets_nowhere() -> None:
    """Warned, begun anew or stopped, as its rules say; the daemon counts what was seen."""
    with running_daemon() as daemon, daemon.client() as otto:
        (daemon.workdir / "f").write_text("the same\n")
        model = daemon.script(
            "loop",
            {"alternatives": [{"when": {"user_matches": "same result|broken off"}, "text": "enough"}, READ]},
            loop=True,
        )
        seen = {}
        for do in ("warn", "restart", "stop"):
            spec = daemon.agent(model, "fs_read", health=Health(loop=LoopRule(after=3, do=do)))
            session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
            codes = [item.event.code for item in session.events() if isinstance(item.event, LogWarning)]
            result = session.wait()
            assert result.cause is not None
            seen[do] = (result.result, result.cause.kind, result.cause.code, [c for c in codes if "u" in c])
        assert seen["warn"] == ("enough", "completed", "", ["unhealthy_loop"])
        assert seen["restart"] == ("enough", "completed", "", ["unhealthy_loop", "begun_anew"])
        assert seen["stop"][1:] == ("failed", "unhealthy", ["unhealthy_loop"])
        families = {family.name: family for family in otto.metrics()}
        samples = families["otto_unhealthy_findings"].samples
        assert {s.labels["kind"]: s.value for s in samples}["loop"] == 3


def test_an_answer_that_is_data() -> None:
    """The library gives it as data; one that never fits fails with its own code."""
    with running_daemon() as daemon, daemon.client() as otto:
        model = daemon.script("data", {"text": "three"}, {"text": 'Sorry:\n{"n": 3}'})
        spec = daemon.agent(model, output_schema=SCHEMA)
        result = otto.start(spec=spec, task="count", cwd=daemon.workdir).wait()
        assert result.ok and result.data == {"n": 3} and result.result == '{"n":3}'
        spec = daemon.agent(daemon.script("words", {"text": "three"}, loop=True), output_schema=SCHEMA)
        result = otto.start(spec=spec, task="count", cwd=daemon.workdir).wait()
        assert result.cause is not None and (result.cause.kind, result.cause.code) == ("failed", "bad_output")
        assert result.data is None
