"""Which requests are the same, and what a session says while it waits for its turn."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from msgspec.structs import replace

from ottod.errors import Failure, ProviderError, RefusedError
from ottod.protocol.events import BreakerStateChanged, Event, LogWarning
from ottod.protocol.model import (
    AssistantMessage,
    Message,
    ModelRequest,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.protocol.worker_requests import AskPermit, Permit, RequestReply, WorkerRequestBody
from ottod.worker.permits import Permits
from ottod.worker.stand_ins import request_digest

ASK = AskPermit(permit="1-1", turn=1, step=1, max_output_tokens=10)


def conversation(call: str, said: str = "ok", signature: str = "s") -> tuple[Message, ...]:
    return (
        UserMessage(text="go"),
        AssistantMessage(
            blocks=(Thinking(text="hm", signature=signature), ToolCall(call=call, tool="grep", arguments="{}"))
        ),
        ToolResults(results=(ToolResult(call=call, tool="grep", text=said),)),
    )


def test_names_and_proofs_that_providers_make_up_do_not_count() -> None:
    """Nor do deadlines; everything that the model reads does."""
    request = ModelRequest(model="m", messages=conversation("call_1"))
    same = [
        ModelRequest(model="m", messages=conversation("toolu_93x", signature="other")),
        replace(request, timeout_s=1.0, idle_timeout_s=2.0),
    ]
    others = [
        replace(request, model="n"),
        replace(request, system="you"),
        replace(request, temperature=0.5),
        replace(request, max_output_tokens=1),
        ModelRequest(model="m", messages=conversation("call_1", said="other")),
        ModelRequest(model="m", messages=conversation("call_1")[:1]),
    ]
    digest = request_digest(request)
    assert {request_digest(r) for r in same} == {digest}
    assert len({digest, *(request_digest(r) for r in others)}) == 1 + len(others)


class SlowLink:
    """A line on which root takes its time: it answers when the test says so."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.answer: asyncio.Future[RequestReply] = asyncio.get_running_loop().create_future()

    async def hear(self, body: WorkerRequestBody) -> RequestReply:
        return await asyncio.shield(self.answer)

    def emit(self, event: Event) -> None:
        self.told.append(event)


def test_a_long_wait_is_told_ever_less_often() -> None:
    """Each time with how long it has been; an answer ends it."""

    async def main() -> None:
        link = SlowLink()
        permits = Permits(cast(Any, link), session="s-1", incarnation=1, tell_wait_s=(0.01, 0.02))
        asking = asyncio.ensure_future(permits.ask(ASK))
        while len(link.told) < 3:
            await asyncio.sleep(0.001)
        link.answer.set_result(RequestReply(id=0, permit=Permit(permit="1-1", max_output_tokens=10)))
        assert (await asking).permit == "1-1"
        assert all(isinstance(e, LogWarning) and e.code == "gate_wait" for e in link.told)

    asyncio.run(main())


@pytest.mark.parametrize(("retryable", "kind"), [(True, ProviderError), (False, RefusedError)])
def test_a_refusal_keeps_what_it_says(retryable: bool, kind: type[ProviderError | RefusedError]) -> None:
    """What may be tried again says when; and breakers' moves that come with an answer are told."""

    async def main() -> None:
        link = SlowLink()
        move = BreakerStateChanged(provider="p", model="m", state="open", previous="closed", reason="why")
        failure = Failure(code="breaker_open", message="open", retryable=retryable, retry_after_s=7.0, mend="wait")
        link.answer.set_result(RequestReply(id=0, failure=failure, moves=(move,)))
        with pytest.raises(kind) as refused:
            await Permits(cast(Any, link), session="s-1", incarnation=1).ask(ASK)
        assert (refused.value.code, refused.value.mend) == ("breaker_open", "wait")
        assert not retryable or refused.value.failure().retry_after_s == 7.0
        assert link.told == [move]

    asyncio.run(main())
