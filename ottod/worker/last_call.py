"""The last call of a session whose budget is used up: the conversation in short, and the order to hand back.

It must fit into what was held back, so it is told in plain text, the newest in full and what is older only as far as
there is room. Plain text also because no provider takes tool calls without the tools they are of.
"""

from __future__ import annotations

from typing import assert_never

from ottod.protocol.model import AssistantMessage, Message, Text, ToolCall, ToolResults, UserMessage
from ottod.worker.text import cut

SIZES_BYTES = (24_000, 6_000, 1_500)
"""Of the conversation, tried in this order until one fits."""
MAX_OUTPUT_TOKENS = 1024
MIN_OUTPUT_TOKENS = 32
MAX_MESSAGES = 64
LEFT_OUT = "[…]"
SYSTEM = "You are handing back unfinished work."
ORDER = (
    "The budget of this session is used up. This is your last answer, and there are no tools any more. Hand back "
    "what you have: what was done, what was found out, and what is left to do, so that somebody can go on from here."
)


def last_messages(messages: tuple[Message, ...], *, max_bytes: int) -> tuple[Message, ...]:
    """The conversation in at most about so many bytes, and the order."""
    told: list[Message] = []
    left_bytes = max_bytes
    for message in reversed(messages[-MAX_MESSAGES:]):
        text, _ = cut(_plain(message), max(left_bytes, 0)) if left_bytes > 0 else ("", True)
        left_bytes -= len(text.encode("utf-8", "surrogatepass"))
        text = text or LEFT_OUT
        is_model = isinstance(message, AssistantMessage)
        told.append(AssistantMessage(blocks=(Text(text=text),)) if is_model else UserMessage(text=text))
    if told and isinstance(told[-1], AssistantMessage):
        # What came before it is left out, and there are providers for which only a user can speak first.
        told.append(UserMessage(text=LEFT_OUT))
    return (*reversed(told), UserMessage(text=ORDER))


def _plain(message: Message) -> str:
    match message:
        case UserMessage():
            return message.text
        case AssistantMessage():
            said = [block.text for block in message.blocks if isinstance(block, Text)]
            called = [f"[called {b.tool} {b.arguments}]" for b in message.blocks if isinstance(b, ToolCall)]
            return "\n".join((*said, *called))
        case ToolResults():
            return "\n".join(f"[{result.tool}: {result.text}]" for result in message.results)
        case _:
            assert_never(message)
