"""What clients say is freed of secrets on its way in, whichever request it comes with."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from ottod.core.redaction import Redactor
from ottod.protocol.requests import ForkSession, RequestBody, ResumeSession, RevokeGrant, StartSession, WorkflowStart
from ottod.root.entrance import redacted_request, size_of

SECRET = "correct-horse-battery-staple"
REDACTOR = Redactor({"DEPLOY": SECRET})
SAID = ("task", "title", "text", "reason")
"""What people write in a request, and what is kept of it."""


def filled(kind: type[Any]) -> Any:
    """A request with a secret in everything that somebody says."""
    given = {name: f"use {SECRET} for it" for name in SAID if name in kind.__struct_fields__}
    needed = {field.name: "x" for field in msgspec.structs.fields(kind) if field.required and field.type is str}
    return msgspec.convert({**needed, "decision": "denied", "event_credit": 1, **given}, kind, strict=False)


KINDS = [kind for kind in get_args(RequestBody) if set(SAID) & set(kind.__struct_fields__)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_request_brings_a_secret_in(kind: type[Any]) -> None:
    """Nor is any of it looked at on root's loop without being counted."""
    request = filled(kind)
    passed = redacted_request(request, REDACTOR)
    assert SECRET not in repr(passed) and "[redacted:DEPLOY]" in repr(passed)
    said = [name for name in SAID if name in kind.__struct_fields__]
    assert size_of(request) == sum(len(getattr(request, name)) for name in said)
    assert redacted_request(passed, REDACTOR) == passed


def test_who_goes_on_with_a_session_is_among_them() -> None:
    assert {ResumeSession, ForkSession, RevokeGrant} <= set(KINDS)


def test_what_a_workflow_begins_with_is_kept_without_secrets() -> None:
    """It lies in the session's directory before a worker has taken it."""
    inputs = {"ticket": f"the key is {SECRET}".encode(), "logo": b"\xff\x00"}
    request = StartSession(cwd="/", workflow=WorkflowStart(name="w", inputs=inputs))
    passed = redacted_request(request, REDACTOR)
    assert isinstance(passed, StartSession) and passed.workflow is not None
    assert passed.workflow.inputs == {"ticket": b"the key is [redacted:DEPLOY]", "logo": b"\xff\x00"}
    assert size_of(request) == sum(map(len, inputs.values()))
