"""Conditions that nobody can mean: with no subject or two, a field that is not there, a value that it cannot have.

Pure. A condition that can never hold ends no loop, and a `when` that can never hold skips its step for ever: both
look like a workflow that works. So what a schema rules out is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ottod.protocol.workflows import Condition, Output, WorkflowInput
from ottod.settings.json_schema import shown, violations
from ottod.settings.nearest import suggestion
from ottod.settings.workflow_finding import Finding
from ottod.settings.workflow_tree import Reach
from ottod.settings.yaml_source import DataPath

SUBJECTS = ("all", "any", "none", "artifact", "step")
TESTS = ("equals", "one_of", "at_least", "at_most", "is_empty")
FREE_KINDS = ("json",)
"""Kinds whose fields may be looked at without a schema."""
MAX_DEPTH = 32


def condition_findings(
    condition: Condition, path: DataPath, reach: Reach, known: Mapping[str, WorkflowInput | Output], whose: str
) -> Iterator[Finding]:
    """What is wrong with a condition itself; those within it are looked at apart."""
    subjects = [name for name in SUBJECTS if getattr(condition, name)]
    if len(subjects) != 1:
        what = "says nothing" if not subjects else f"has {' and '.join(subjects)}"
        yield Finding(path, f"a condition of {whose} {what}", f"give it one of {', '.join(SUBJECTS)}")
        return
    given = [name for name in TESTS if getattr(condition, name) not in (None, ())]
    if subjects[0] == "artifact":
        yield from _artifact(condition, path, reach, known, given)
        return
    if condition.field or given:
        message = f"{'field' if condition.field else given[0]} is said of an artifact, and this condition names none"
        yield Finding(path, message, "add `artifact:`, or remove it")
    if subjects[0] == "step" and condition.step not in reach.nodes:
        mend = suggestion(condition.step, reach.nodes) or "name a step that has run before"
        yield Finding((*path, "step"), f"no step {condition.step!r} has run where this condition is looked at", mend)


def _artifact(
    condition: Condition,
    path: DataPath,
    reach: Reach,
    known: Mapping[str, WorkflowInput | Output],
    given: list[str],
) -> Iterator[Finding]:
    name = condition.artifact
    if name not in reach.artifacts:
        mend = suggestion(name, reach.artifacts) or "name an artifact that is left before"
        what = f"{name!r} is not there" if name in known else f"no artifact is called {name!r}"
        yield Finding((*path, "artifact"), f"{what} where this condition is looked at", mend)
    if given and not condition.field:
        yield Finding((*path, given[0]), f"{given[0]} needs a field of {name!r}", "add `field:`", key=True)
    elif condition.field and not given:
        mend = f"add one of {', '.join(TESTS)}"
        yield Finding((*path, "field"), f"nothing is said of {condition.field!r} of {name!r}", mend)
    elif condition.field and name in known:
        yield from _field(condition, path, known[name], given)


def _field(
    condition: Condition, path: DataPath, artifact: WorkflowInput | Output, given: list[str]
) -> Iterator[Finding]:
    """A field against the schema of the artifact."""
    if not artifact.schema:
        if artifact.kind not in FREE_KINDS:
            message = f"{artifact.name!r} is a {artifact.kind} without a schema: {condition.field!r} may not be there"
            mend = "give it a schema, or a kind that has one (review_report, test_report), or `kind: json`"
            yield Finding((*path, "field"), message, mend)
        return
    here = [Part(artifact.schema, is_certain=True)]
    for name in condition.field.split("."):
        below: list[Part] = []
        names: set[str] = set()
        is_open = False
        for part in here:
            found = _property(part, name, artifact.schema, 0)
            below += found.parts
            names |= found.names
            is_open |= found.is_open
        if not below:
            if not is_open:
                message = f"{artifact.name!r} has no field {condition.field!r}"
                yield Finding((*path, "field"), message, suggestion(name, names) or "it has no fields there")
            return
        here = below
    yield from _values(condition, path, artifact, here, given)


class Part(NamedTuple):
    """A schema that holds of a value; unless it is certain, one of several of which one does."""

    schema: Any
    is_certain: bool


class Property(NamedTuple):
    """What a schema says of a property; the names of all that it knows; whether there may be others."""

    parts: list[Part]
    names: set[str]
    is_open: bool


def _property(part: Part, name: str, root: dict[str, Any], depth: int) -> Property:
    schema = part.schema
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return Property([], set(), schema is not False)
    inner = [Part(each, part.is_certain) for each in schema.get("allOf", ())]
    inner += [Part(each, False) for key in ("anyOf", "oneOf") for each in schema.get(key, ())]
    if "$ref" in schema:
        inner.append(Part(_referred(schema["$ref"], root), part.is_certain))
    properties = schema.get("properties", {})
    if name.isdecimal() and isinstance(schema.get("items"), dict):
        return Property([Part(schema["items"], part.is_certain)], set(), False)
    found = [Part(properties[name], part.is_certain)] if name in properties else []
    names = set(properties)
    extra = schema.get("additionalProperties")
    is_open = isinstance(extra, dict) or extra is True
    if not properties and not inner and extra is None:
        kinds = schema.get("type", "object")
        is_open = "object" in ([kinds] if isinstance(kinds, str) else kinds)
    for each in inner:
        deeper = _property(each, name, root, depth + 1)
        found += deeper.parts
        names |= deeper.names
        # A part that names no properties says nothing of which there are.
        is_open |= deeper.is_open and (bool(deeper.names) or not properties)
    return Property(found, names, is_open)


def _referred(reference: str, root: dict[str, Any]) -> Any:
    name = reference.removeprefix("#/$defs/")
    return root if reference == "#" else root.get("$defs", {}).get(name.replace("~1", "/").replace("~0", "~"), True)


def _values(
    condition: Condition, path: DataPath, artifact: WorkflowInput | Output, parts: list[Part], given: list[str]
) -> Iterator[Finding]:
    """Values that the field can never have, and comparisons that its type does not know."""
    definitions = artifact.schema.get("$defs", {})
    certain = [part.schema for part in parts if part.is_certain]
    schemas = certain or [part.schema for part in parts]

    def fits(value: Any) -> bool:
        whole = {"allOf": schemas} if certain else {"anyOf": schemas}
        return not violations({"$defs": definitions, **whole}, value)

    field = f"{condition.field!r} of {artifact.name!r}"
    wanted: list[tuple[DataPath, Any]] = []
    if "equals" in given:
        wanted.append((("equals",), condition.equals))
    wanted += [(("one_of", i), value) for i, value in enumerate(condition.one_of)]
    for below, value in wanted:
        if not fits(value):
            choices = [choice for schema in schemas if isinstance(schema, dict) for choice in schema.get("enum", ())]
            texts = [choice for choice in choices if isinstance(choice, str)]
            close = suggestion(value, texts) if isinstance(value, str) and texts else ""
            mend = close or "write a value that its schema allows"
            yield Finding((*path, *below), f"{field} is never {shown(value)}", mend)
    kinds = [kind for schema in schemas for kind in _types(schema, artifact.schema)]
    for name, types in (
        ("at_least", ("integer", "number")),
        ("at_most", ("integer", "number")),
        ("is_empty", ("array", "object", "string")),
    ):
        if name in given and kinds and not set(kinds) & set(types):
            message = f"{name} is said of {field}, which is {' or '.join(dict.fromkeys(kinds))}"
            yield Finding((*path, name), message, f"it is for {', '.join(types)}", key=True)


def _types(schema: Any, root: dict[str, Any]) -> list[str]:
    """The types that a schema names; none if it does not say."""
    if not isinstance(schema, dict):
        return []
    if "$ref" in schema and "type" not in schema:
        target = _referred(schema["$ref"], root)
        return _types(target, root) if isinstance(target, dict) and "$ref" not in target else []
    given = schema.get("type", [])
    kinds = [given] if isinstance(given, str) else list(given)
    if not kinds and "enum" in schema:
        kinds = [_json_type(value) for value in schema["enum"]]
    return kinds


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object" if isinstance(value, dict) else "null"
