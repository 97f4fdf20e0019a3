"""Time slices: after a while a session goes on in another process, with a fresh context instead of the old one.

The slice ends where a model call would be next and every tool call has its result. What the next incarnation begins
with is made of what the turn was to do, of a summary, and of the newest results, which no model has seen yet.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from ottod.protocol.model import AssistantMessage, Message, Text, ToolResults, UserMessage
from ottod.worker.text import cut

MAX_RESULT_BYTES = 8 * 1024
"""Of each of the newest results, in the fresh context."""
MAX_SUMMARY_BYTES = 32 * 1024

Summarise = Callable[[tuple[Message, ...]], Awaitable[str]]
"""What a conversation came to, in the words that the next context begins with."""


async def last_words(messages: tuple[Message, ...]) -> str:
    """The poorest summary there is: what the model said last."""
    said = (text for message in reversed(messages) if (text := _text_of(message)))
    return next(said, "")


class TimeSlice:
    """That of one incarnation. Without `seconds` it never ends."""

    def __init__(self, seconds: float | None, *, summarise: Summarise = last_words) -> None:
        self._ends_s = None if seconds is None else time.monotonic() + seconds
        self._summarise = summarise

    @property
    def is_over(self) -> bool:
        return self._ends_s is not None and time.monotonic() >= self._ends_s

    async def fresh_context(self, messages: tuple[Message, ...], *, task: str) -> tuple[Message, ...]:
        """What the next incarnation goes on with, instead of `messages`."""
        parts = [task, "[You have been working on this for a while; your earlier context is not here any more.]"]
        if summary := cut(await self._summarise(messages), MAX_SUMMARY_BYTES)[0]:
            parts.append(f"[What you had come to:]\n{summary}")
        results = next((m.results for m in reversed(messages) if isinstance(m, ToolResults)), ())
        for result in results:
            how = "failed" if result.is_error else "gave"
            parts.append(f"[Your newest call of {result.tool} {how}:]\n{cut(result.text, MAX_RESULT_BYTES)[0]}")
        newest = []
        for message in reversed(messages):
            if not isinstance(message, UserMessage):
                break
            newest.append(message)
        return (UserMessage(text="\n\n".join(parts)), *(reversed(newest) if len(newest) < len(messages) else ()))


def _text_of(message: Message) -> str:
    if not isinstance(message, AssistantMessage):
        return ""
    return "".join(block.text for block in message.blocks if isinstance(block, Text))
