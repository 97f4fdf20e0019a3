"""The last call of a used budget: the newest part of the conversation, as any provider takes it."""

from __future__ import annotations

import pytest

from ottod.protocol.model import AssistantMessage, Message, Text, ToolCall, ToolResult, ToolResults, UserMessage
from ottod.providers.anthropic_request import messages_request
from ottod.worker.last_call import MAX_MESSAGES, ORDER, SIZES_BYTES, last_messages
from tests.fakes.wire_rig import request


def conversation(steps: int) -> tuple[Message, ...]:
    messages: list[Message] = [UserMessage(text="the task")]
    for step in range(steps):
        call = ToolCall(call=f"c{step}", tool="shell")
        messages.append(AssistantMessage(blocks=(Text(text=f"step {step}"), call)))
        messages.append(ToolResults(results=(ToolResult(call=call.call, tool="shell", text=f"result {step}"),)))
    return tuple(messages)


@pytest.mark.parametrize("steps", [0, 1, MAX_MESSAGES // 2, MAX_MESSAGES])
@pytest.mark.parametrize("max_bytes", SIZES_BYTES)
def test_a_user_speaks_first_and_last(steps: int, max_bytes: int) -> None:
    """However long the conversation was, and wherever it had to be cut."""
    told = last_messages(conversation(steps), max_bytes=max_bytes)
    assert isinstance(told[0], UserMessage) and told[-1] == UserMessage(text=ORDER)
    assert len(told) <= MAX_MESSAGES + 2
    roles = [m["role"] for m in messages_request(request(*told), provider="anthropic")["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
