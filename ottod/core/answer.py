"""A final answer that must be data: what the model is told of it, and whether what it says is that.

The answer is the JSON that a text ends with: the whole of it, its last fenced block, or what follows from the first
line that begins with a bracket. Anything before it is the model's own business.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ottod.errors import UNDECODABLE
from ottod.protocol.model import UserMessage
from ottod.settings.json_schema import Schema, violations

_FENCE = "```"
_BRACKETED = re.compile(r"^[ \t]*(?=[\[{])", re.MULTILINE)
COMPLAINT_HEAD = "[Your answer cannot be accepted"
MAX_BEGINNINGS = 50
"""Lines that begin with a bracket, tried as the beginning of the answer."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a text amounts to: `json`, the value's canonical text, or `complaint`, why it is not an answer."""

    json: str = ""
    complaint: str = ""


def instruction(schema: Schema) -> str:
    """What the system prompt says of the answer. The same for the same schema, byte by byte."""
    text = msgspec.json.encode(schema, order="deterministic").decode()
    return (
        "Your final answer, the one without tool calls, must end with one JSON value that satisfies this JSON "
        f"Schema, and nothing after it:\n{text}"
    )


def read_answer(text: str, schema: Schema) -> Answer:
    """The value that a text ends with, if there is one and it satisfies the schema."""
    found, value = _value(text)
    if not found:
        return Answer(complaint="it does not end with a JSON value")
    wrong = violations(schema, value)
    if wrong:
        return Answer(complaint="; ".join(wrong))
    return Answer(json=msgspec.json.encode(value).decode())


def is_complaint(message: UserMessage) -> bool:
    """Whether a message tells the model that its answer was none."""
    return message.text.startswith(COMPLAINT_HEAD)


def complaint_note(complaint: str) -> str:
    """What the model is told of an answer that is none."""
    return (
        f"{COMPLAINT_HEAD}: {complaint}. Give the whole answer again, ending with one JSON value that "
        "satisfies the schema.]"
    )


def _value(text: str) -> tuple[bool, Any]:
    candidates = [text]
    if text.rstrip().endswith(_FENCE):
        text = text.rstrip().removesuffix(_FENCE)
        candidates.append(text.rpartition(_FENCE)[2].partition("\n")[2])
    starts = [match.end() for match in _BRACKETED.finditer(text)]
    candidates += [text[start:] for start in starts[:MAX_BEGINNINGS]]
    for candidate in candidates:
        try:
            return True, msgspec.json.decode(candidate.strip().encode("utf-8", "replace"))
        except UNDECODABLE:
            continue
    return False, None
