"""What clients say, on its way in: secrets are taken out before it is kept, shown, or given to a model."""

from __future__ import annotations

from msgspec.structs import replace

from ottod.core.redaction import Redactor
from ottod.protocol.requests import (
    KillSession,
    RequestBody,
    ResolveApproval,
    SendInput,
    StartSession,
    StopSession,
)

INLINE_CHARS = 64 * 1024
"""Looking at more than this takes a thread: at some 10 ns a character, root's loop has better to do."""


def size_of(body: RequestBody) -> int:
    """How many characters of a request are looked at."""
    match body:
        case StartSession():
            return len(body.task) + len(body.title)
        case SendInput():
            return len(body.text)
        case StopSession() | KillSession() | ResolveApproval():
            return len(body.reason)
        case _:
            return 0


def redacted_request(body: RequestBody, redactor: Redactor) -> RequestBody:
    """The request without secrets in what people write. What configures a session stays as it is."""
    match body:
        case StartSession():
            return replace(body, task=redactor.text(body.task), title=redactor.text(body.title))
        case SendInput():
            return replace(body, text=redactor.text(body.text))
        case StopSession() | KillSession() | ResolveApproval():
            return replace(body, reason=redactor.text(body.reason))
        case _:
            return body
