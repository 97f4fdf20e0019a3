"""JSON Schema, the part that Otto knows: what it accepts, what it refuses, and what it says about both."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.settings.json_schema import KEYWORDS, MAX_VIOLATIONS, is_same, mistakes, violations

REVIEW: dict[str, Any] = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["approve", "reject"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 10},
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"file": {"type": "string", "minLength": 1}, "line": {"type": ["integer", "null"]}},
                "required": ["file"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["verdict"],
}

CASES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({}, [None, 1, "x", [], {}], []),
    ({"type": "string"}, ["", "x"], [1, None, True, [], {}]),
    ({"type": "number"}, [1, 1.5, -0.0], ["1", True, None]),
    ({"type": "integer"}, [1, 1.0, -3], [1.5, True, "1"]),
    ({"type": "boolean"}, [True, False], [0, 1, "true"]),
    ({"type": "null"}, [None], [0, "", False]),
    ({"type": ["string", "null"]}, ["x", None], [1, []]),
    ({"const": 1}, [1, 1.0], [True, "1", 2]),
    ({"const": {"a": [1]}}, [{"a": [1.0]}], [{"a": [True]}, {"a": []}, {}]),
    ({"enum": ["a", 1, None]}, ["a", 1, None], ["b", True, 0]),
    ({"minLength": 2, "maxLength": 3}, ["ab", "€€€", 5], ["a", "abcd"]),
    ({"pattern": "^[a-z]+$"}, ["abc", 1], ["", "A"]),
    ({"pattern": "b"}, ["abc", "\ud800b"], ["ac", "\ud800"]),
    ({"pattern": "^b$"}, ["b"], ["b\n"]),
    ({"minimum": 1, "exclusiveMaximum": 2}, [1, 1.9, "x"], [0.9, 2]),
    ({"exclusiveMinimum": 1, "maximum": 2}, [1.1, 2], [1, 2.1]),
    ({"multipleOf": 0.1}, [0.3, 1, 0, -0.7], [0.35]),
    ({"multipleOf": 3}, [9, 0], [10]),
    ({"minItems": 1, "maxItems": 2}, [[1], [1, 2], "xyz"], [[], [1, 2, 3]]),
    ({"uniqueItems": True}, [[1, 2], [1, True], []], [[1, 1.0], [None, None], [{"a": 1}, {"a": 1}]]),
    ({"items": {"type": "string"}}, [["a"], [], {}], [["a", 1]]),
    ({"items": False}, [[]], [[1]]),
    ({"required": ["a"]}, [{"a": None}, []], [{}, {"b": 1}]),
    ({"properties": {"a": {"type": "integer"}}}, [{}, {"a": 1}, {"b": "x"}], [{"a": "x"}]),
    ({"properties": {"a": True}, "additionalProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
    ({"additionalProperties": {"type": "integer"}}, [{"x": 1}], [{"x": "1"}]),
    ({"minProperties": 1, "maxProperties": 1}, [{"a": 1}], [{}, {"a": 1, "b": 2}]),
    ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["x", 5], [4]),
    ({"oneOf": [{"type": "integer"}, {"minimum": 5}]}, [1, 5.5], [6, 4.5]),
    ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, [2], [0, 4]),
    ({"not": {"type": "null"}}, [1, ""], [None]),
    (
        {"$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}, "required": ["v"]}},
         "$ref": "#/$defs/tree"},
        [{"v": 1}, {"v": 1, "left": {"v": 2, "left": {"v": 3}}}],
        [{}, {"v": 1, "left": {"v": 2, "left": {}}}, 3],
    ),
    ({"type": "object", "properties": {"next": {"$ref": "#"}}}, [{}, {"next": {"next": {}}}], [{"next": 1}]),
    (REVIEW, [{"verdict": "approve", "findings": [{"file": "a", "line": None}]}],
     [{}, {"verdict": "no"}, {"verdict": "reject", "findings": [{"line": 1}]}, {"verdict": "reject", "score": 11}]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES)
def test_the_table(schema: dict[str, Any], right: list[Any], wrong: list[Any]) -> None:
    """Each keyword accepts what it should and refuses what it should, and is itself accepted."""
    assert mistakes(schema) == []
    for value in right:
        assert violations(schema, value) == [], value
    for value in wrong:
        assert violations(schema, value), value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({}, 'the answer lacks "verdict"'),
        ([], "the answer must be object, not []"),
        ({"verdict": "maybe"}, 'verdict must be one of "approve", "reject", not "maybe"'),
        ({"verdict": "approve", "findings": [{"file": "a"}, {"file": ""}]}, "findings[1].file must have at least 1"),
        ({"verdict": "approve", "findings": [{"file": "a", "x": 1}]}, 'findings[0] has "x", which is not allowed'),
        ({"verdict": "approve", "score": 0}, "score must be at least 1, not 0"),
    ],
)
def test_a_violation_says_where_and_what(value: Any, told: str) -> None:
    """The model has only the sentence to go by."""
    assert violations(REVIEW, value)[0].startswith(told)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ([], ()),
        ({"typ": "string"}, ("typ",)),
        ({"type": "text"}, ("type",)),
        ({"type": []}, ("type",)),
        ({"properties": {"a": {"minimum": "1"}}}, ("properties", "a", "minimum")),
        ({"properties": []}, ("properties",)),
        ({"items": {"pattern": "("}}, ("items", "pattern")),
        ({"pattern": "(?=a)b"}, ("pattern",)),
        ({"pattern": r"(a)\1"}, ("pattern",)),
        ({"pattern": "a" * 5000}, ("pattern",)),
        ({"pattern": "\ud800"}, ("pattern",)),
        ({"required": "a"}, ("required",)),
        ({"anyOf": []}, ("anyOf",)),
        ({"oneOf": [{}, 1]}, ("oneOf", 1)),
        ({"enum": []}, ("enum",)),
        ({"minLength": -1}, ("minLength",)),
        ({"maxItems": True}, ("maxItems",)),
        ({"multipleOf": 0}, ("multipleOf",)),
        ({"$ref": "other.json"}, ("$ref",)),
        ({"$ref": "#/$defs/gone"}, ("$ref",)),
        ({"$defs": {"a": {"if": {}}}}, ("$defs", "a", "if")),
        ({"patternProperties": {}}, ("patternProperties",)),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: Any, path: tuple[str | int, ...]) -> None:
    """A keyword without effect would be a check that silently never happens."""
    assert [mistake.path for mistake in mistakes(schema)] == [path]


def test_the_keywords_that_are_named_are_those_that_are_checked() -> None:
    """Each is in the table above, so none of them is a promise only."""
    used = {key for schema, _, _ in CASES for key in schema} - {"$defs"}
    assert used == set(KEYWORDS)


def test_nothing_runs_away() -> None:
    """A schema that refers to nothing but itself, or that doubles at each level, comes to an end."""
    assert violations({"$ref": "#"}, 1)
    assert violations({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, 1)
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"items": deep}
    assert mistakes(deep)
    assert len(violations({"items": {"type": "null"}}, list(range(100)))) == MAX_VIOLATIONS
    assert violations({"pattern": "^(a+)+$"}, "a" * 100_000 + "!")
    assert violations({"uniqueItems": True}, [[i] for i in range(100_000)] + [[1]])
    assert "too much" in violations({"items": {"enum": list(range(10_000))}}, [9_999] * 100)[0]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=5))
def test_items_are_unique_if_no_two_are_the_same(items: list[Any]) -> None:
    """Against the comparison of each with each."""
    twice = any(is_same(one, other) for i, one in enumerate(items) for other in items[:i])
    assert bool(violations({"uniqueItems": True}, items)) == twice


def schema_of(value: Any) -> dict[str, Any]:
    """The narrowest schema that describes a value by its shape."""
    if isinstance(value, dict):
        return {
            "type": "object",
            "properties": {name: schema_of(item) for name, item in value.items()},
            "required": list(value),
            "additionalProperties": False,
        }
    if isinstance(value, list):
        choices = {"anyOf": [schema_of(item) for item in value]} if value else False
        return {"type": "array", "items": choices, "minItems": len(value), "maxItems": len(value)}
    return {"const": value}


@given(JSON, JSON)
def test_a_value_fits_its_own_schema_and_no_other(one: Any, other: Any) -> None:
    """The schema made from a value accepts it; one that accepts another value was made from one of the same shape."""
    schema = schema_of(one)
    assert mistakes(schema) == []
    assert violations(schema, one) == []
    if violations(schema, other) == []:
        assert type(one) is type(other) or is_same(one, other)
    else:
        assert not is_same(one, other)


@given(JSON)
def test_any_data_is_a_schema_or_is_told_why_not(schema: Any) -> None:
    """Checking a schema never raises, and one without mistakes can be used."""
    if not mistakes(schema) and isinstance(schema, dict):
        violations(schema, {"a": [1, "x", None]})
