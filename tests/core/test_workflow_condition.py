"""Conditions: what they ask for, what is noted of a document, and whether they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.workflow_condition import MAX_FIELD_CHARS, asked_fields, holds, read_fields
from ottod.protocol.journal import ArtifactFacts
from ottod.protocol.workflows import Condition, Step, WorkflowSpec

REVIEW = {"verdict": "APPROVED", "blockers": [], "high": ["a", "b"], "score": 7, "ok": True, "by": {"name": "x"}}


def is_true(condition: Condition, document: Any = REVIEW, ends: dict[str, str] | None = None) -> bool:
    spec = WorkflowSpec(name="w", steps=(Step(id="a", when=condition),))
    fields = read_fields(document, asked_fields(spec).get("review", ()))
    facts = {"review": ArtifactFacts(name="review", version=1, fields=fields)}
    return holds(condition, facts=facts, ends=ends or {})


def on(field: str = "", **tests: Any) -> Condition:
    return Condition(artifact="review", field=field, **tests)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (on(), True),
        (Condition(artifact="other"), False),
        (on("verdict", equals="APPROVED"), True),
        (on("verdict", equals="approved"), False),
        (on("verdict", one_of=("APPROVED", "FINE")), True),
        (on("verdict"), True),
        (on("nothing"), False),
        (on("nothing", is_empty=True), False),
        (on("nothing", is_empty=False), False),
        (on("blockers", is_empty=True), True),
        (on("high", is_empty=True), False),
        (on("high", is_empty=False), True),
        (on("high.1", equals="b"), True),
        (on("high.7"), False),
        (on("by.name", equals="x"), True),
        (on("by", is_empty=False), True),
        (on("score", at_least=7), True),
        (on("score", at_least=8), False),
        (on("score", at_least=1, at_most=7), True),
        (on("verdict", at_least=0), False),
        (on("ok", equals=True), True),
        (on("ok", equals=1), False),
        (on("ok", at_least=0), False),
        (on("score", equals=7.0), True),
        (Condition(), True),
        (Condition(all=(on(), on("ok", equals=True))), True),
        (Condition(any=(on("nothing"), on("ok"))), True),
        (Condition(any=(on("nothing"),)), False),
        (Condition(none=(on("nothing"), Condition(artifact="other"))), True),
        (Condition(none=(on(),)), False),
        (Condition(step="s"), True),
        (Condition(step="s", status="failed"), False),
        (Condition(step="unknown", status="skipped"), False),
    ],
)
def test_conditions(condition: Condition, expected: bool) -> None:
    assert is_true(condition, ends={"s": "completed"}) is expected


def test_what_is_no_json_has_no_fields() -> None:
    assert is_true(on(), "just text") and not is_true(on("verdict"), "just text")
    assert is_true(on(equals="just text"), "just text")


def test_only_what_is_asked_for_is_noted_and_never_much() -> None:
    spec = WorkflowSpec(name="w", until=Condition(any=(on("high"), on("verdict"))), steps=(Step(id="a", when=on()),))
    assert asked_fields(spec) == {"review": ("verdict", "high")}
    assert read_fields(REVIEW, ("high", "verdict", "none")) == {"high": {"size": 2}, "verdict": "APPROVED"}
    assert len(read_fields({"a": "x" * 10_000}, ("a",))["a"]) == MAX_FIELD_CHARS + 1


PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
DOCUMENTS = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(DOCUMENTS, st.text(alphabet="ab.01", max_size=8))
def test_any_document_can_be_asked_for_anything(document: Any, field: str) -> None:
    """What is noted can be written down, and is the same when it is read again."""
    noted = read_fields(document, (field,))
    assert json.loads(json.dumps(noted)) == noted
    assert is_true(on(field, equals="x"), document) in (True, False)
