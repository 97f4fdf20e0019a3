"""What clients say, on its way in: secrets are taken out before it is kept, shown, or given to a model."""

from __future__ import annotations

from msgspec.structs import replace

from ottod.core.redaction import Redactor
from ottod.protocol.requests import RequestBody, StartSession

INLINE_CHARS = 64 * 1024
"""Looking at more than this takes a thread: at some 10 ns a character, root's loop has better to do."""
SAID = ("task", "title", "text", "reason")
"""The fields of requests, by whichever name there is one, that hold what people write."""


def size_of(body: RequestBody) -> int:
    """How many characters of a request are looked at."""
    size = sum(len(text) for text in _said(body).values())
    if isinstance(body, StartSession) and body.workflow is not None:
        size += sum(map(len, body.workflow.inputs.values()))
    return size


def redacted_request(body: RequestBody, redactor: Redactor) -> RequestBody:
    """The request without secrets in what people write. What configures a session stays as it is."""
    if said := _said(body):
        body = replace(body, **{name: redactor.text(text) for name, text in said.items()})
    if isinstance(body, StartSession) and body.workflow is not None:
        inputs = {name: redactor.data(data) for name, data in body.workflow.inputs.items()}
        body = replace(body, workflow=replace(body.workflow, inputs=inputs))
    return body


def _said(body: RequestBody) -> dict[str, str]:
    return {name: getattr(body, name) for name in SAID if name in body.__struct_fields__}
