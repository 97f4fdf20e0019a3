"""A stranger's JSON schema, made fit for a model's tool list: an object on top, no references, bounded.

Vendors take schemas without `$ref` at least everywhere else than in `$defs`, and some not even there. A reference is
replaced by what it names; one that leads back into itself, out of the document or too deep becomes a schema that
allows anything, since the server checks the arguments itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_DEPTH = 24
MAX_NODES = 5000
MAX_SCHEMA_BYTES = 64 * 1024
DROPPED = frozenset({"$schema", "$id", "$anchor", "$comment", "$defs", "definitions"})
ANYTHING: dict[str, Any] = {}
OPEN_OBJECT: dict[str, Any] = {"type": "object", "properties": {}}


def without_references(schema: Any) -> dict[str, Any]:
    """The schema without references. One that is no object's, or too large, becomes that of any object."""
    if not isinstance(schema, dict):
        return OPEN_OBJECT
    plain = _Inliner(schema).node(schema, (), 0)
    if not isinstance(plain, dict) or plain.get("type", "object") != "object":
        return OPEN_OBJECT
    plain = {**plain, "type": "object"}
    if not isinstance(plain.get("properties"), dict):
        plain["properties"] = {}
    try:
        return plain if len(msgspec.json.encode(plain)) <= MAX_SCHEMA_BYTES else OPEN_OBJECT
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return OPEN_OBJECT


class _Inliner:
    """One pass over one document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._nodes = 0

    def node(self, node: Any, open_references: tuple[str, ...], depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            return ANYTHING
        if isinstance(node, list):
            return [self.node(each, open_references, depth + 1) for each in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            if reference in open_references:
                return ANYTHING
            named = self.node(self._find(reference), (*open_references, reference), depth + 1)
            beside = {key: value for key, value in node.items() if key != "$ref"}
            rest = self.node(beside, open_references, depth + 1)
            return {**named, **rest} if isinstance(named, dict) else rest
        return {
            key: self._keyword(key, value, open_references, depth)
            for key, value in node.items()
            if isinstance(key, str) and key not in DROPPED
        }

    def _keyword(self, key: str, value: Any, open_references: tuple[str, ...], depth: int) -> Any:
        if key in ("enum", "const", "default", "examples"):
            return value  # Data, in which `$ref` is a word like any other.
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            # Names, which may be those of keywords.
            return {name: self.node(each, open_references, depth + 1) for name, each in value.items()}
        return self.node(value, open_references, depth + 1)

    def _find(self, reference: str) -> Any:
        if not reference.startswith("#"):
            return ANYTHING
        found: Any = self._document
        for part in reference.removeprefix("#").removeprefix("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if not part and found is self._document:
                continue
            found = found.get(key) if isinstance(found, dict) else None
            if found is None:
                return ANYTHING
        return found
