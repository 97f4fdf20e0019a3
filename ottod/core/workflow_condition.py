"""Conditions of workflows: what they ask of artifacts, what an artifact answers, and whether they hold.

A condition can ask about a field of a JSON artifact. Which fields are asked for is known before anything runs, so of
each artifact only those are ever looked at and noted: as they are if they are plain values, by their size if they are
lists or mappings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ottod.protocol.journal import ArtifactFacts
from ottod.protocol.workflows import Condition, WorkflowSpec

MAX_FIELD_CHARS = 2000
"""Of a text in a field; beyond it the text is cut, and equals nothing."""
SIZE = "size"
"""The key under which the size of a list or mapping is noted in its stead."""


def conditions_of(spec: WorkflowSpec) -> list[Condition]:
    """Every condition in the workflow, those within others included."""
    found = [spec.until] if spec.until is not None else []
    steps = list(spec.steps)
    while steps:
        step = steps.pop()
        steps += step.steps
        found += [c for c in (step.when, step.until) if c is not None]
    out = []
    while found:
        condition = found.pop()
        found += (*condition.all, *condition.any, *condition.none)
        out.append(condition)
    return out


def asked_fields(spec: WorkflowSpec) -> dict[str, tuple[str, ...]]:
    """Artifact → the fields of it that some condition reads; none if only its existence matters."""
    asked: dict[str, dict[str, None]] = {}
    for condition in conditions_of(spec):
        if condition.artifact:
            fields = asked.setdefault(condition.artifact, {})
            if condition.field or _has_test(condition):
                fields[condition.field] = None
    return {name: tuple(fields) for name, fields in asked.items()}


def read_fields(document: Any, fields: Iterable[str]) -> dict[str, Any]:
    """What a JSON document has at these dotted paths, as it is noted. What is not there is left out."""
    found: dict[str, Any] = {}
    for field in fields:
        is_there, value = _at(document, field)
        if not is_there:
            continue
        if isinstance(value, dict | list):
            value = {SIZE: len(value)}
        elif isinstance(value, str) and len(value) > MAX_FIELD_CHARS:
            value = value[:MAX_FIELD_CHARS] + "…"
        found[field] = value
    return found


def _at(document: Any, field: str) -> tuple[bool, Any]:
    for part in field.split(".") if field else ():
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return False, None
    return True, document


def holds(condition: Condition, *, facts: Mapping[str, ArtifactFacts], ends: Mapping[str, str]) -> bool:
    """Whether it is true. `ends` says how each step and block, by its id, has last ended."""
    return (
        all(holds(each, facts=facts, ends=ends) for each in condition.all)
        and (not condition.any or any(holds(each, facts=facts, ends=ends) for each in condition.any))
        and not any(holds(each, facts=facts, ends=ends) for each in condition.none)
        and (not condition.artifact or _artifact_is(condition, facts.get(condition.artifact)))
        and (not condition.step or ends.get(condition.step) == condition.status)
    )


def _artifact_is(condition: Condition, facts: ArtifactFacts | None) -> bool:
    if facts is None:
        return False
    if not condition.field and not _has_test(condition):
        return True
    if condition.field not in facts.fields:
        return False
    value = facts.fields[condition.field]
    return (
        (condition.equals is None or _is_same(value, condition.equals))
        and (not condition.one_of or any(_is_same(value, wanted) for wanted in condition.one_of))
        and _is_within(value, condition)
        and (condition.is_empty is None or _is_empty(value) == condition.is_empty)
    )


def _has_test(condition: Condition) -> bool:
    bounds = (condition.equals, condition.at_least, condition.at_most, condition.is_empty)
    return bool(condition.one_of) or any(bound is not None for bound in bounds)


def _is_same(value: Any, wanted: bool | int | float | str) -> bool:
    # To Python True is 1; to whoever writes a condition it is not.
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _is_within(value: Any, condition: Condition) -> bool:
    if condition.at_least is None and condition.at_most is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    is_large = condition.at_least is None or value >= condition.at_least
    return is_large and bool(condition.at_most is None or value <= condition.at_most)


def _is_empty(value: Any) -> bool:
    return bool(value == "" or value == {SIZE: 0})
