from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.tools.json_references import MAX_SCHEMA_BYTES, OPEN_OBJECT, without_references

POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$ref", "$defs", "properties", "items", "anyOf", "enum", "type", "a", "b"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def test_a_reference_is_replaced_by_what_it_names() -> None:
    """References anywhere, also by way of others and with words beside them, are gone; what they named is there."""
    schema = {
        "$schema": "x",
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/P", "description": "where"}, "all": {"items": {"$ref": "#/$defs/Q"}}},
        "$defs": {"P": POINT, "Q": {"$ref": "#/$defs/P"}},
    }
    assert without_references(schema) == {
        "type": "object",
        "properties": {"at": {**POINT, "description": "where"}, "all": {"items": POINT}},
    }


def test_data_and_names_are_not_references() -> None:
    """`$ref` in an enum is data, and a property may bear the name of a keyword."""
    schema = {
        "type": "object",
        "properties": {"definitions": {"enum": [{"$ref": "#/x"}]}, "$ref": {"type": "string"}},
    }
    assert without_references(schema) == schema


@pytest.mark.parametrize(
    "node",
    [{"$ref": "#"}, {"$ref": "#/$defs/loop"}, {"$ref": "other.json#/x"}, {"$ref": "#/nowhere"}, {"$ref": "#/type/x"}],
)
def test_what_leads_nowhere_allows_anything(node: dict[str, Any]) -> None:
    """A reference into itself, into another document or to nothing does not hang and does not stay."""
    loop = {"type": "array", "items": {"$ref": "#/$defs/loop"}}
    plain = without_references({"type": "object", "properties": {"a": node}, "$defs": {"loop": loop}})
    assert "$ref" not in json.dumps(plain)


@pytest.mark.parametrize("schema", [None, [], "x", {"type": "string"}, True])
def test_anything_but_an_object_is_any_object(schema: Any) -> None:
    """A tool takes an object, whatever its server says."""
    assert without_references(schema) == OPEN_OBJECT


def test_a_schema_that_explodes_is_bounded() -> None:
    """Twenty levels that each name the next one twice would be a million nodes."""
    defs = {f"l{i}": {"properties": {k: {"$ref": f"#/$defs/l{i + 1}"} for k in "ab"}} for i in range(20)}
    plain = without_references({"type": "object", "properties": {"a": {"$ref": "#/$defs/l0"}}, "$defs": defs})
    assert len(json.dumps(plain)) <= 2 * MAX_SCHEMA_BYTES


@given(JSON)
def test_any_json_gives_an_object_schema(value: Any) -> None:
    """Nothing that JSON can say raises or keeps a reference outside of data."""
    plain = without_references(value)
    assert plain["type"] == "object" and isinstance(plain["properties"], dict)
