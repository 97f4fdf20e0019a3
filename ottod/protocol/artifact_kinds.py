"""Kinds of artifacts that agents of different makers agree on, and what their content is.

A kind is a word; any other may be used as well. Those listed here have a form, and two of them a schema: conditions
of workflows read their fields. A step's output of such a kind has that schema unless the workflow gives its own.
"""

from __future__ import annotations

from typing import Any, Literal

from ottod.protocol.specs import Spec


class ArtifactForm(Spec, frozen=True, kw_only=True):
    """What an artifact of a kind holds. A `schema` (JSON Schema) is there for what is `json`."""

    kind: str
    form: Literal["markdown", "diff", "json"]
    about: str
    schema: dict[str, Any] = {}


_FINDINGS: dict[str, Any] = {
    "type": "array",
    "items": {
        "anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "properties": {
                    "problem": {"type": "string", "description": "what happens, on which input, and why"},
                    "where": {"type": "string", "description": "path:line"},
                    "change": {"type": "string", "description": "what would mend it"},
                },
                "required": ["problem"],
            },
        ]
    },
}

REVIEW_REPORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["approved", "needs_revision"]},
        "summary": {"type": "string"},
        "blockers": {**_FINDINGS, "description": "what must be mended before this may be merged"},
        "high": {**_FINDINGS, "description": "what should be mended now"},
        "medium": {**_FINDINGS, "description": "what may be mended later"},
    },
    "required": ["verdict", "blockers", "high", "medium"],
    "anyOf": [
        {"properties": {"verdict": {"const": "needs_revision"}}},
        {"properties": {"blockers": {"maxItems": 0}}},
    ],
}
"""A review that approves has no blockers."""

TEST_REPORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "status": {"enum": ["green", "red"]},
        "summary": {"type": "string"},
        "command": {"type": "string", "description": "what was run"},
        "passed": {"type": "integer", "minimum": 0},
        "failed": {"type": "integer", "minimum": 0},
        "failures": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {
                            "test": {"type": "string"},
                            "message": {"type": "string"},
                            "where": {"type": "string", "description": "path:line"},
                        },
                        "required": ["test"],
                    },
                ]
            },
        },
    },
    "required": ["status", "passed", "failed", "failures"],
    "anyOf": [
        {"properties": {"status": {"const": "red"}}},
        {"properties": {"failed": {"maximum": 0}, "failures": {"maxItems": 0}}},
    ],
}
"""A run that is green has no failures."""

ARTIFACT_KINDS: tuple[ArtifactForm, ...] = (
    ArtifactForm(
        kind="ticket", form="markdown", about="One piece of work: the problem, what is wanted, when it is done."
    ),
    ArtifactForm(
        kind="prd", form="markdown", about="What a product or feature is for, for whom, and how success shows."
    ),
    ArtifactForm(
        kind="design", form="markdown", about="How something will be built or will behave, and what was rejected."
    ),
    ArtifactForm(kind="code_diff", form="diff", about="A change to source code, as a unified diff."),
    ArtifactForm(
        kind="review_report", form="json", about="A reviewer's verdict and what it rests on.", schema=REVIEW_REPORT
    ),
    ArtifactForm(kind="test_report", form="json", about="How a run of tests ended.", schema=TEST_REPORT),
)


def form_of(kind: str) -> ArtifactForm | None:
    """The form of a kind that is agreed on, or None."""
    return next((form for form in ARTIFACT_KINDS if form.kind == kind), None)


def standard_schema(kind: str) -> dict[str, Any]:
    """The schema that goes with a kind; empty if there is none."""
    form = form_of(kind)
    return form.schema if form is not None else {}


def usual_kind(name: str) -> str:
    """The kind of an artifact of which only the name is known: the agreed kind of that name, or `file`."""
    word = name.replace("-", "_").lower()
    return word if form_of(word) is not None else "file"
