"""A session that outlives its time slice goes on in another process, with a fresh context, and that is no crash."""

from __future__ import annotations

from ottod.core.resume import restore
from ottod.core.turn import is_valid_conversation
from ottod.protocol import journal as j
from ottod.protocol.events import IncarnationExited, SessionExited, TurnStarted
from ottod.protocol.model import UserMessage
from tests.daemon.harness import RealDaemon


def test_a_slice_ends_between_two_model_calls(daemon: RealDaemon) -> None:
    """Of a session that is never restarted after a crash: one turn, two incarnations, no restart counted."""
    model = daemon.script(
        "sliced",
        {
            "alternatives": [
                {"when": {"user_contains": "earlier context"}, "text": "from ${input}"},
                {
                    "text": "hm",
                    "tools": [{"name": "shell", "arguments": {"command": "sleep 0.5; echo slept"}}],
                },
            ]
        },
        summary={"text": "so far so good", "usage": {"input_tokens": 5, "output_tokens": 7}},
    )
    with daemon.client() as otto:
        spec = daemon.agent(model, "shell", time_slice_s=0.2)
        session = otto.start(spec=spec, task="the task", cwd=daemon.workdir)
        result, info, entries = session.wait(), session.info(), session.journal()
        events = [e.event for e in session.events(0)]
    assert result.ok, (result.cause, result.result, events)
    assert info.incarnation == 2 and info.restarts == 0
    for part in ("the task", "so far so good", "slept"):
        assert part in result.result, part
    (exited,) = [e for e in events if isinstance(e, IncarnationExited)]
    assert exited.cause.kind == "time_slice" and sum(isinstance(e, SessionExited) for e in events) == 1
    assert [e.turn for e in events if isinstance(e, TurnStarted)] == [1]
    (ended,) = [e for e in entries if isinstance(e, j.SliceEnded)]
    assert (ended.turn, ended.step) == (1, 1)
    (summary,) = [e for e in entries if isinstance(e, j.ConversationShortened)]
    assert summary.summary == "so far so good" and info.usage.calls == 3
    assert [e.step for e in entries if isinstance(e, j.ModelCalled)] == [1, 2]
    messages = restore(entries).messages
    assert is_valid_conversation(messages) and sum(isinstance(m, UserMessage) for m in messages) == 1
