"""The fresh context of the next time slice: what was asked, what it came to, what has not been seen yet."""

from __future__ import annotations

import asyncio

from ottod.core.turn import is_valid_conversation
from ottod.protocol.model import AssistantMessage, Message, Text, ToolCall, ToolResult, ToolResults, UserMessage
from ottod.worker.slices import TimeSlice

CALL = ToolCall(call="c", tool="shell")
BEFORE: tuple[Message, ...] = (
    UserMessage(text="older"),
    AssistantMessage(blocks=(Text(text="half way"),)),
    UserMessage(text="the task"),
    AssistantMessage(blocks=(CALL,)),
    ToolResults(results=(ToolResult(call="c", tool="shell", text="new result", is_error=True),)),
)


def fresh(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    found = asyncio.run(TimeSlice(0.0).fresh_context(messages, task="the task"))
    assert is_valid_conversation(found)
    return found


def test_the_task_the_last_words_and_the_newest_results() -> None:
    """One message, which says all three."""
    (message,) = fresh(BEFORE)
    assert isinstance(message, UserMessage)
    at = [message.text.index(part) for part in ("the task", "half way", "shell failed", "new result")]
    assert at == sorted(at) and "older" not in message.text


def test_what_was_steered_comes_along() -> None:
    """A message that has just joined has been seen by no model."""
    found = fresh((*BEFORE, UserMessage(text="turn left")))
    assert found[1:] == (UserMessage(text="turn left"),)


def test_a_slice_without_a_limit_never_ends() -> None:
    """Nor does one that has time left."""
    assert not TimeSlice(None).is_over and not TimeSlice(1000.0).is_over and TimeSlice(0.0).is_over
