"""JSON Schema, as much of it as describes an answer: draft 2020-12 without what needs another document.

A schema is checked when an agent is loaded, so that a keyword which has no effect is an error there and not a check
that silently never happens. What is understood:

    any value    type, enum, const, anyOf, oneOf, allOf, not, $ref (to #/$defs/…)
    object       properties, required, additionalProperties, minProperties, maxProperties
    array        items, minItems, maxItems, uniqueItems
    string       minLength, maxLength, pattern
    number       minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf
    for people   $schema, $id, $comment, $defs, title, description, default, examples, format, deprecated

`format` tells the model what is meant and is not verified, as the standard has it by default. `pattern` is found
anywhere in the text, and written as RE2 has it: a schema may be a stranger's.
Source: the vocabularies "core", "applicator" and "validation" of JSON Schema 2020-12.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Hashable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from ottod.settings.expressions import expression

Schema = dict[str, Any]
Path = tuple[str | int, ...]

MAX_DEPTH = 32
"""Of a schema, and of the part of a value that is checked: a schema may refer to itself."""
MAX_CHECKS = 200_000
"""Of a value or a part of it against a schema or a part of it: alternatives of alternatives can be very many."""
CHEAP_CHECKS = 4
"""Comparisons with a choice, or looks for a name, that count as one check."""
MAX_VIOLATIONS = 10
"""More are not told at once: the first ones say what is wrong."""
SHOWN_CHARS = 80
"""Of a value, in a complaint about it."""

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples", "format", "deprecated"}
    | {"readOnly", "writeOnly"}
)


KEYWORDS = (
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "$ref"),
    *("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    *("items", "minItems", "maxItems", "uniqueItems"),
    *("minLength", "maxLength", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
"""Those that have an effect."""


class Mistake(NamedTuple):
    """What is wrong with a schema, and where in it."""

    path: Path
    message: str


def mistakes(schema: Any) -> list[Mistake]:
    """Everything that makes a schema unusable here; empty if it can be used."""
    return list(_mistakes(schema, (), schema if isinstance(schema, dict) else {}))


def violations(schema: Schema, value: Any) -> list[str]:
    """What keeps a value from satisfying a schema that has no mistakes, one sentence each; empty if it does."""
    found: list[str] = []
    for violation in _Check(schema).value(schema, value, "", 0):
        found.append(violation)
        if len(found) == MAX_VIOLATIONS:
            break
    return found


# ------------------------------------------------------------------ the schema itself


def _mistakes(schema: Any, path: Path, root: Schema) -> Iterator[Mistake]:
    if len(path) > MAX_DEPTH:
        yield Mistake(path, f"nested more than {MAX_DEPTH} deep")
        return
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield Mistake(path, f"a schema must be a mapping, got {shown(schema)}")
        return
    for key, argument in schema.items():
        here = (*path, key)
        check = _ARGUMENTS.get(key)
        if check is not None:
            if message := check(argument):
                yield Mistake(here, f"{key} {message}, got {shown(argument)}")
        elif key in ("properties", "$defs"):
            if not isinstance(argument, dict):
                yield Mistake(here, f"{key} must be a mapping of schemas")
                continue
            for name, inner in argument.items():
                yield from _mistakes(inner, (*here, name), root)
        elif key in ("items", "additionalProperties", "not"):
            yield from _mistakes(argument, here, root)
        elif key in ("anyOf", "oneOf", "allOf"):
            if not isinstance(argument, list) or not argument:
                yield Mistake(here, f"{key} must be a list of schemas")
                continue
            for i, inner in enumerate(argument):
                yield from _mistakes(inner, (*here, i), root)
        elif key == "$ref":
            if _referred(argument, root) is None:
                yield Mistake(here, f"$ref must name a schema below #/$defs/, got {shown(argument)}")
        elif key not in ANNOTATIONS and key not in ("enum", "const"):
            yield Mistake(here, f"the keyword {key!r} is not supported")
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        yield Mistake((*path, "enum"), "enum must be a list of values")


def _referred(reference: Any, root: Schema) -> Any:
    """The schema that a `$ref` names, or None."""
    match = re.fullmatch(r"#(?:/\$defs/([^/]+))?", reference) if isinstance(reference, str) else None
    if match is None:
        return None
    definitions = root.get("$defs")
    if match[1] is None:
        return root
    name = match[1].replace("~1", "/").replace("~0", "~")
    return definitions.get(name) if isinstance(definitions, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _type_argument(value: Any) -> str:
    names = value if isinstance(value, list) else [value]
    return "" if names and all(n in TYPES for n in names) else f"must be one of {', '.join(TYPES)}, or a list of them"


def _count_argument(value: Any) -> str:
    return "" if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "must be a whole number"


def _number_argument(value: Any) -> str:
    return "" if _is_number(value) else "must be a number"


def _factor_argument(value: Any) -> str:
    return "" if _is_number(value) and value > 0 else "must be a number above 0"


def _flag_argument(value: Any) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _names_argument(value: Any) -> str:
    return "" if isinstance(value, list) and all(isinstance(n, str) for n in value) else "must be a list of names"


def _pattern_argument(value: Any) -> str:
    if not isinstance(value, str):
        return "must be a regular expression"
    try:
        expression(value)
    except ValueError as error:
        return f"must be a regular expression as RE2 has them, without look-around and \\1 ({error})"
    return ""


_ARGUMENTS: dict[str, Callable[[Any], str]] = {
    "type": _type_argument,
    "required": _names_argument,
    "uniqueItems": _flag_argument,
    "pattern": _pattern_argument,
    "multipleOf": _factor_argument,
    **dict.fromkeys(
        ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"), _count_argument
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number_argument),
}


# ------------------------------------------------------------------ a value against it


class _Check:
    """One value against one schema. `root` is where references begin."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._left = MAX_CHECKS

    def value(self, schema: Any, value: Any, at: str, depth: int) -> Iterator[str]:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            why = "too much to check" if self._left < 0 else f"nested more than {MAX_DEPTH} deep"
            yield f"{_place(at)} is {why}"
            return
        if isinstance(schema, bool):
            if not schema:
                yield f"{_place(at)} is not allowed"
            return
        self._left -= (len(schema.get("enum", ())) + len(schema.get("required", ()))) // CHEAP_CHECKS
        if "$ref" in schema:
            yield from self.value(_referred(schema["$ref"], self._root), value, at, depth + 1)
        if "type" in schema and (wrong := _wrong_type(schema["type"], value)):
            # What further keywords would say of a value of another kind helps nobody.
            yield f"{_place(at)} must be {wrong}, not {shown(value)}"
            return
        if "const" in schema and not is_same(value, schema["const"]):
            yield f"{_place(at)} must be {shown(schema['const'])}, not {shown(value)}"
        if "enum" in schema and not any(is_same(value, choice) for choice in schema["enum"]):
            choices = ", ".join(shown(choice) for choice in schema["enum"][:20])
            yield f"{_place(at)} must be one of {choices}, not {shown(value)}"
        yield from self._alternatives(schema, value, at, depth)
        if isinstance(value, dict):
            yield from self._object(schema, value, at, depth)
        elif isinstance(value, list):
            yield from self._array(schema, value, at, depth)
        elif isinstance(value, str):
            yield from _string(schema, value, at)
        elif _is_number(value):
            yield from _number(schema, value, at)

    def _fits(self, schema: Any, value: Any, depth: int) -> bool:
        return next(self.value(schema, value, "", depth + 1), None) is None

    def _alternatives(self, schema: Schema, value: Any, at: str, depth: int) -> Iterator[str]:
        for inner in schema.get("allOf", ()):
            yield from self.value(inner, value, at, depth + 1)
        choices = schema.get("anyOf", ())
        if choices and not any(self._fits(inner, value, depth) for inner in choices):
            yield f"{_place(at)} fits none of the alternatives: {self._nearest(choices, value, at, depth)}"
        choices = schema.get("oneOf", ())
        fitting = sum(self._fits(inner, value, depth) for inner in choices)
        if choices and not fitting:
            yield f"{_place(at)} fits none of the alternatives: {self._nearest(choices, value, at, depth)}"
        elif fitting > 1:
            yield f"{_place(at)} fits {fitting} alternatives where it may fit one only"
        if "not" in schema and self._fits(schema["not"], value, depth):
            yield f"{_place(at)} is what it must not be"

    def _nearest(self, choices: list[Any], value: Any, at: str, depth: int) -> str:
        """Why it does not fit the alternative that complains deepest inside: most likely the one that was meant."""
        complaints = [next(self.value(inner, value, at, depth + 1), "") for inner in choices]
        return max(complaints, key=lambda text: text.partition(" ")[0].count(".") + text.count("["))

    def _object(self, schema: Schema, value: dict[str, Any], at: str, depth: int) -> Iterator[str]:
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{_place(at)} lacks {shown(name)}"
        for name, item in value.items():
            there = f"{at}.{name}" if at else str(name)
            if name in properties:
                yield from self.value(properties[name], item, there, depth + 1)
            elif others is False:
                known = ", ".join(map(shown, properties)) or "nothing"
                yield f"{_place(at)} has {shown(name)}, which is not allowed there (allowed: {known})"
            else:
                yield from self.value(others, item, there, depth + 1)
        yield from _counted(schema, len(value), at, "Properties", "properties")

    def _array(self, schema: Schema, value: list[Any], at: str, depth: int) -> Iterator[str]:
        items = schema.get("items", True)
        if items is not True:
            for i, item in enumerate(value):
                yield from self.value(items, item, f"{at}[{i}]", depth + 1)
        yield from _counted(schema, len(value), at, "Items", "items")
        if schema.get("uniqueItems"):
            seen: set[Hashable] = set()
            for item in value:
                if (known := _comparable(item)) in seen:
                    yield f"{_place(at)} has {shown(item)} more than once"
                    break
                seen.add(known)


def _string(schema: Schema, value: str, at: str) -> Iterator[str]:
    yield from _counted(schema, len(value), at, "Length", "characters")
    if "pattern" in schema and not expression(schema["pattern"]).is_found(value):
        yield f"{_place(at)} must match {schema['pattern']!r}, which {shown(value)} does not"


def _number(schema: Schema, value: float, at: str) -> Iterator[str]:
    for key, word, holds in (
        ("minimum", "at least", operator.ge),
        ("maximum", "at most", operator.le),
        ("exclusiveMinimum", "above", operator.gt),
        ("exclusiveMaximum", "below", operator.lt),
    ):
        if key in schema and not holds(value, schema[key]):
            yield f"{_place(at)} must be {word} {schema[key]}, not {shown(value)}"
    factor = schema.get("multipleOf")
    if factor is not None and _exact(value) % _exact(factor):
        yield f"{_place(at)} must be a multiple of {factor}, not {shown(value)}"


def _exact(number: float) -> Fraction:
    """The number that was written: 0.3 is three tenths, whatever it is in binary."""
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


def _counted(schema: Schema, count: int, at: str, suffix: str, what: str) -> Iterator[str]:
    least, most = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if least is not None and count < least:
        yield f"{_place(at)} must have at least {least} {what}, not {count}"
    if most is not None and count > most:
        yield f"{_place(at)} must have at most {most} {what}, not {count}"


def _wrong_type(wanted: str | list[str], value: Any) -> str:
    """The kind that was wanted, if the value is of another one. 1.0 is an integer, true is not a number."""
    names = wanted if isinstance(wanted, list) else [wanted]
    is_whole = _is_number(value) and (isinstance(value, int) or value.is_integer())
    kinds = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "number": _is_number(value),
        "integer": is_whole,
        "boolean": isinstance(value, bool),
        "null": value is None,
    }
    return "" if any(kinds[name] for name in names) else " or ".join(names)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON: 1 is 1.0, and is not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    return (type(one) is type(other) and one == other) or (_is_number(one) and _is_number(other) and one == other)


def _comparable(value: Any) -> Hashable:
    """The same for values that are the same as JSON, and for no others."""
    if isinstance(value, list):
        return "list", *map(_comparable, value)
    if isinstance(value, dict):
        return "dict", frozenset((key, _comparable(item)) for key, item in value.items())
    return type(value) if isinstance(value, bool) or value is None else "", value


def shown(value: Any) -> str:
    """A value in a sentence, as JSON would write it, cut."""
    if isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, dict):
        text = "an object" if value else "{}"
    elif isinstance(value, list):
        text = f"a list of {len(value)}" if value else "[]"
    else:
        text = str(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def _place(at: str) -> str:
    return at or "the answer"
