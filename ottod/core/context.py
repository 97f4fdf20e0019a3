"""How much of a model's context a conversation takes, and how it is made smaller without becoming another one.

Theory of operation. Only the provider can count tokens, so a *meter* learns from what each call reports. Two calls of
one conversation differ by the messages between them: the difference of their input tokens is what these weigh
together, and each of them has its share by its size in bytes. What no call has reported yet is taken to weigh what
the conversation has weighed per byte so far. No table of tokens is needed, and none could be right for every model.

A conversation that passes its threshold is cut in three: its first message, which is the task, and the newest ones
stay as they are; what lies between becomes a summary. The cut never comes between calls and their results, so that
what is left is valid. Where no summary can be had, the older tool results lose their text instead. Both are pure
functions of the conversation and of two numbers, so that a journal can note them and another incarnation do them
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import assert_never

import msgspec

from ottod.core.turn_events import TurnMark
from ottod.protocol.model import (
    AssistantMessage,
    Block,
    Message,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage

BYTES_PER_TOKEN = 4
"""Until a call has reported something."""
FRAME_BYTES = 16
"""What a message, a call or a result costs beside its texts: roles, ids, brackets."""
KEPT_RESULT_BYTES = 400
"""A tool result no longer than this keeps its text: a note in its place would save nothing."""
MIN_REPLACED = 2
"""Fewer messages than this are not worth a summary."""
GROWTH_SHARE = 0.1
"""Of the usable tokens: by so much a conversation grows before its next compaction, however large it is."""

SUMMARY_HEAD = "[What was said up to here, in summary. The messages themselves are gone.]"
SUMMARY_ORDER = (
    "This conversation is about to become too long. Everything up to here will be replaced by the summary that you "
    "write now; only the task itself stays. Write it for yourself, who must go on from it and from nothing else: "
    "what was asked, the newest request word by word; what was decided, and why; what has been done, with the names "
    "of files, functions and commands; what was found out, exact values and error messages included; what was tried "
    "and did not work; what is still to be done, and what comes next. Call no tools. Answer with the summary alone."
)


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider counted: the fixed part of the request and its first `count` messages, in tokens."""

    count: int
    tokens: int


class ContextMeter:
    """What the messages of one conversation weigh. `fixed_bytes`: the system prompt and the tools' schemas."""

    def __init__(self, *, fixed_bytes: int, measures: Iterable[Measure] = ()) -> None:
        self.fixed_bytes = fixed_bytes
        self.measures: list[Measure] = []
        """By count, and by tokens: both only grow."""
        for measure in measures:
            self.learn(measure)

    def learn(self, measure: Measure) -> None:
        """Takes in what a call reported; one that reports nothing teaches nothing."""
        if measure.tokens <= 0:
            return
        self.measures = [m for m in self.measures if m.count < measure.count]
        if self.measures and self.measures[-1].tokens > measure.tokens:
            # The provider counts less than before: it has left something out, and where is not known.
            self.measures.clear()
        self.measures.append(measure)

    def cut_back(self, count: int) -> None:
        """Only the messages before the newest of `count` are still those that were counted."""
        self.measures = [measure for measure in self.measures if measure.count < count]

    def begin_at(self, measure: Measure) -> None:
        """The conversation has become another one, of which this much is known."""
        self.measures.clear()
        self.learn(measure)

    def prefixes(self, messages: tuple[Message, ...]) -> list[int]:
        """What the first 0, 1, … messages weigh together with the fixed part, in tokens."""
        ends = list(accumulate(map(size_bytes, messages), initial=self.fixed_bytes))
        points = [(0, 0), *((ends[m.count], m.tokens) for m in self.measures if m.count < len(ends))]
        last_bytes, last_tokens = points[-1]
        if not last_tokens:
            last_bytes, last_tokens = BYTES_PER_TOKEN, 1
        weights: list[int] = []
        at = 0
        for end in ends:
            while at < len(points) - 1 and points[at + 1][0] < end:
                at += 1
            below = points[at]
            above = points[at + 1] if at < len(points) - 1 else None
            if above is None:
                # Not measured yet: the ratio of all that was.
                weights.append(below[1] + -(-(end - below[0]) * last_tokens // max(1, last_bytes)))
            else:
                span = max(1, above[0] - below[0])
                weights.append(below[1] + (above[1] - below[1]) * (end - below[0]) // span)
        return weights

    def tokens(self, messages: tuple[Message, ...]) -> int:
        """What a request with this conversation weighs."""
        return self.prefixes(messages)[-1]

    def tokens_of_shorter(self, messages: tuple[Message, ...], shorter: tuple[Message, ...]) -> int:
        """What is left of a conversation weighs: what stayed as it was, and what is new by the ratio of the whole."""
        prefixes = self.prefixes(messages)
        whole_bytes = self.fixed_bytes + sum(map(size_bytes, messages))
        known = {id(message): prefixes[i + 1] - prefixes[i] for i, message in enumerate(messages)}
        return prefixes[0] + sum(
            known[id(m)] if id(m) in known else -(-size_bytes(m) * prefixes[-1] // whole_bytes) for m in shorter
        )


def size_bytes(message: Message) -> int:
    """A message's size: its texts in UTF-8, and a little for each frame."""
    match message:
        case UserMessage():
            return FRAME_BYTES + _length(message.text)
        case AssistantMessage():
            return FRAME_BYTES + sum(map(_block_bytes, message.blocks))
        case ToolResults():
            return sum(FRAME_BYTES + _length(r.text) for r in message.results)
        case _:
            assert_never(message)


def _block_bytes(block: Block) -> int:
    match block:
        case Text():
            return _length(block.text)
        case Thinking():
            return _length(block.text) + len(block.opaque)
        case ToolCall():
            return FRAME_BYTES + _length(block.tool) + _length(block.arguments)
        case _:
            assert_never(block)


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def input_tokens(usage: Usage) -> int:
    """All input of a call, cached or not."""
    return usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens


def measure(messages: Sequence[Message], usage: Usage) -> Measure:
    """What a call with these messages has counted."""
    return Measure(count=len(messages), tokens=input_tokens(usage))


def usable_tokens(window_tokens: int, max_output_tokens: int) -> int:
    """What a conversation may weigh in a window that also has to hold the answer; at least half of the window."""
    return max(window_tokens - max_output_tokens, window_tokens // 2)


# ------------------------------------------------------------------ where to cut


def is_cut_place(messages: tuple[Message, ...], at: int) -> bool:
    """Whether a conversation may be cut before message `at`: no call is parted from its results."""
    return 0 < at <= len(messages) and not (at < len(messages) and isinstance(messages[at], ToolResults))


def first_replaced(messages: tuple[Message, ...]) -> int:
    """Where the part that may be replaced begins: behind the task, which is the first message."""
    is_task = bool(messages) and isinstance(messages[0], UserMessage) and not messages[0].stands_for
    return 1 if is_task else 0


def cut_at(messages: tuple[Message, ...], prefixes: list[int], *, keep_tokens: int) -> int | None:
    """The message with which the part that stays begins; None if there is nothing to gain.

    As much stays as `keep_tokens` allow, and never less than the newest exchange.
    """
    least = first_replaced(messages) + MIN_REPLACED
    places = [at for at in range(least, len(messages)) if is_cut_place(messages, at)]
    if not places:
        return None
    return next((at for at in places if prefixes[-1] - prefixes[at] <= keep_tokens), places[-1])


# ------------------------------------------------------------------ what becomes of it


def summarised(messages: tuple[Message, ...], at: int, summary: str) -> tuple[Message, ...]:
    """The conversation with everything between the task and message `at` replaced by a summary."""
    first = first_replaced(messages)
    answers = sum(_answers(message) for message in messages[first:at])
    said = UserMessage(text=f"{SUMMARY_HEAD}\n\n{summary}", stands_for=max(1, answers))
    return (*messages[:first], said, *messages[at:])


def shortened(
    messages: tuple[Message, ...], marks: tuple[TurnMark, ...], at: int, summary: str
) -> tuple[tuple[Message, ...], tuple[TurnMark, ...]]:
    """The conversation with a summary up to message `at`, or, without one, with old output removed; and where the
    turns that are still whole in it begin."""
    if not summary:
        return elided(messages, at), marks
    short = summarised(messages, at, summary)
    moved = len(messages) - len(short)
    return short, tuple(TurnMark(turn=mark.turn, at=mark.at - moved) for mark in marks if mark.at >= at)


def turn_begins_at(messages: tuple[Message, ...], marks: tuple[TurnMark, ...], turn: int) -> int:
    """The message with which a turn begins; if it has become part of a summary, all that there is belongs to it."""
    return next((mark.at for mark in reversed(marks) if mark.turn == turn), 0)


def begun_anew(
    messages: tuple[Message, ...], marks: tuple[TurnMark, ...], turn: int, note: str
) -> tuple[Message, ...]:
    """The conversation up to the input of a turn, or the summary that tells it, and a note on what became of it."""
    begins_at = next((mark.at for mark in reversed(marks) if mark.turn == turn), first_replaced(messages))
    return (*messages[: begins_at + 1], UserMessage(text=note))


def _answers(message: Message) -> int:
    if isinstance(message, UserMessage):
        return message.stands_for
    return int(isinstance(message, AssistantMessage))


def elided(messages: tuple[Message, ...], at: int) -> tuple[Message, ...]:
    """The conversation with the tool results before message `at` cut down to a note of how long they were."""
    return tuple(_elided(message) if i < at else message for i, message in enumerate(messages))


def _elided(message: Message) -> Message:
    if not isinstance(message, ToolResults):
        return message
    results = tuple(map(_elided_result, message.results))
    return message if results == message.results else ToolResults(results=results)


def _elided_result(result: ToolResult) -> ToolResult:
    length = _length(result.text)
    if length <= KEPT_RESULT_BYTES:
        return result
    note = f"[{length} bytes of output, removed to make room]"
    return ToolResult(call=result.call, tool=result.tool, text=note, is_error=result.is_error)
