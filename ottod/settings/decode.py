"""Plain data checked against a msgspec struct, every mistake found and placed.

The walk goes down the struct's annotations beside the data. It refuses unknown keys with the nearest valid one,
reads sizes (`512 MiB`) where a field's name ends in `_bytes` and durations (`5m`) where it ends in `_s` or is
`seconds`, and converts leaf by leaf so that one mistake does not hide the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from ottod.errors import ConfigError
from ottod.settings.foreign import VALUES, elsewhere, own_key, own_word, written
from ottod.settings.nearest import nearest, suggestion
from ottod.settings.rules import Contradiction
from ottod.settings.scalars import describe_value
from ottod.settings.units import format_duration, format_size, parse_duration, parse_size
from ottod.settings.yaml_source import DataPath, Source

T = TypeVar("T", bound=msgspec.Struct)
_INDEX = re.compile(r"\[\d+\]")


def decode(struct: type[T], source: Source, *, hidden: Iterable[str] = ()) -> T:
    """The struct that a source describes. `hidden` are fields that a file must not set, as in `rules[].source`.

    Raises: ConfigError, the first in the file when there are several.
    """
    value, errors = decode_all(struct, source, hidden=hidden)
    if value is None:
        raise errors[0]
    return value


def check(struct: type[msgspec.Struct], source: Source, *, hidden: Iterable[str] = ()) -> list[ConfigError]:
    """Every mistake in a source, in file order; empty when it is right."""
    return decode_all(struct, source, hidden=hidden)[1]


def decode_all(struct: type[T], source: Source, *, hidden: Iterable[str] = ()) -> tuple[T | None, list[ConfigError]]:
    """The struct and no errors, or None and all errors in file order."""
    walk = _Walk(source, frozenset(hidden))
    data = walk.struct(source.data, struct, ())
    if walk.errors:
        return None, sorted(walk.errors, key=lambda e: (e.line, e.column))
    return msgspec.convert(data, struct), []


@lru_cache(maxsize=256)
def fields_of(struct: type[msgspec.Struct]) -> tuple[FieldInfo, ...]:
    """A struct's fields; msgspec evaluates the annotations anew at each call."""
    return msgspec.structs.fields(struct)


class _Walk:
    """One pass over a source; collects errors."""

    def __init__(self, source: Source, hidden: frozenset[str]) -> None:
        self.source = source
        self.hidden = hidden
        self.errors: list[ConfigError] = []

    def wrong(self, message: str, path: DataPath, *, key: bool = False, mend: str = "") -> None:
        self.errors.append(self.source.error(message, path, key=key, mend=mend))

    def struct(self, data: dict[str, Any], struct: type[msgspec.Struct], path: DataPath) -> dict[str, Any]:
        """The data with its leaves read; errors are collected."""
        prefix = f"{_INDEX.sub('[]', dotted(path))}." if path else ""
        hidden = {name.removeprefix(prefix) for name in self.hidden if name.startswith(prefix)}
        fields = {f.encode_name: f for f in fields_of(struct) if f.name not in hidden}
        found_before = len(self.errors)
        done: dict[str, Any] = {}
        for key, value in data.items():
            here = (*path, key)
            if key in hidden:
                self.wrong(f"key {key!r} is filled in by Otto", here, key=True, mend="remove it")
                continue
            if key not in fields:
                self.unknown(key, struct, fields, path)
                continue
            done[key] = self.value(value, fields[key].type, here, name=key)
        for field in fields.values():
            if field.required and field.encode_name not in data:
                where = f" in {dotted(path)!r}" if path else ""
                self.wrong(
                    f"missing key {field.encode_name!r}{where}",
                    path,
                    mend=f"add `{field.encode_name}:` with {describe(field.type, name=field.encode_name)}",
                )
        if len(self.errors) == found_before:
            self.rules(done, struct, path)
        return done

    def unknown(self, key: str, struct: type[msgspec.Struct], fields: Collection[str], path: DataPath) -> None:
        """A key that is none of a mapping's: what it is called here, or what was probably meant."""
        close = own_key(key, struct, fields)
        if not close and not elsewhere(key):
            close = nearest(key, fields)
        hint = f" — did you mean {close!r}?" if close else ""
        where = f" in {dotted(path)!r}" if path else ""
        if "." in close:
            mend = f"write `{written(close)}`"
        elif close:
            mend = f"write {close!r}"
        else:
            mend = elsewhere(key) or f"valid keys: {', '.join(fields)}"
        self.wrong(f"unknown key {key!r}{where}{hint}", (*path, key), key=True, mend=mend)

    def rules(self, data: dict[str, Any], struct: type[msgspec.Struct], path: DataPath) -> None:
        """What the struct itself says of its fields together (`__post_init__`)."""
        try:
            msgspec.convert(data, struct)
        except msgspec.ValidationError as error:
            cause = error.__cause__
            if isinstance(cause, Contradiction):
                self.wrong(str(cause), (*path, cause.field), mend=cause.mend)
            else:
                self.wrong(str(cause or error), path)

    def value(self, value: Any, annotation: Any, path: DataPath, *, name: str) -> Any:
        """One value, read by its annotation."""
        members = _members(annotation)
        for member in members:
            origin, arguments = get_origin(member), get_args(member)
            if isinstance(value, dict):
                if isinstance(member, type) and issubclass(member, msgspec.Struct):
                    return self.struct(value, member, path)
                if origin is dict:
                    return {
                        self.leaf(k, arguments[0], (*path, k), name=f"the name of {k!r}", key=True): self.value(
                            v, arguments[1], (*path, k), name=k
                        )
                        for k, v in value.items()
                    }
            elif isinstance(value, list) and origin in (tuple, list):
                return [self.value(v, arguments[0], (*path, i), name=name) for i, v in enumerate(value)]
        return self.leaf(value, annotation, path, name=name)

    def leaf(self, value: Any, annotation: Any, path: DataPath, *, name: str, key: bool = False) -> Any:
        """A scalar, or a value of the wrong shape."""
        if isinstance(value, str) and not _is_text(value):
            self.wrong(f"{dotted(path)} holds a NUL or half a character", path, key=key, mend="remove it")
            return value
        try:
            if isinstance(value, str):
                value = _with_unit(value, annotation, name)
            return msgspec.convert(value, annotation)
        except (msgspec.ValidationError, ValueError):
            wanted = describe(annotation, name=name)
            what = name if key else dotted(path)
            mend = _mend(value, annotation, wanted)
            self.wrong(f"{what} must be {wanted}, got {describe_value(value)}", path, key=key, mend=mend)
            return value


def _is_text(value: str) -> bool:
    """Whether a string can be encoded and be a path. YAML sees to that itself; specs from clients do not."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _mend(value: Any, annotation: Any, wanted: str) -> str:
    """What to write in place of a value of the wrong kind."""
    literals = _literals(annotation)
    if value is None:
        return "give it a value or delete the line"
    if literals and isinstance(value, str):
        meant = own_word(value, literals, VALUES)
        return f"did you mean {meant!r}?" if meant else suggestion(value, literals)
    for member in _members(annotation):
        if get_origin(member) in (tuple, list):
            if isinstance(value, dict):
                return "write a list: what is below it, each behind a `-` and without the name above it"
            return "write `[one, another]`, or a line `- one` for each"
        if isinstance(member, type) and issubclass(member, msgspec.Struct):
            names = ", ".join(field.encode_name for field in fields_of(member))
            return f"write keys below it: {names}"
    return f"write {wanted}"


def dotted(path: DataPath) -> str:
    """A path as people write it: `budgets.usd`, `rules[0].effect`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def describe(annotation: Any, *, name: str = "") -> str:
    """What an annotation accepts, for people."""
    members = [m for m in _members(annotation) if m is not NoneType]
    parts = list(dict.fromkeys(_describe_one(member, name) for member in members))
    return " or ".join(parts) or "nothing"


def is_size(name: str) -> bool:
    """Whether a field of this name holds bytes and so takes `512 MiB`."""
    return name == "bytes" or name.endswith("_bytes")


def is_duration(name: str) -> bool:
    """Whether a field of this name holds seconds and so takes `5m`."""
    return name == "seconds" or name.endswith("_s")


def _describe_one(annotation: Any, name: str) -> str:
    bare, meta = _bare(annotation)
    origin = get_origin(bare)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(bare) if a != "")
    if origin in (tuple, list):
        item = _describe_one(get_args(bare)[0], "")
        return "a list of " + {"a string": "strings", "a mapping": "mappings"}.get(item, f"items, each {item}")
    if origin is dict or (isinstance(bare, type) and issubclass(bare, msgspec.Struct)):
        return "a mapping"
    if bare is bool:
        return "true or false"
    if bare is str:
        extra = [m.description for m in meta if m.description]
        return f"a string ({extra[0]})" if extra else "a string"
    if bare in (int, float):
        if is_size(name):
            return "a size such as 512 MiB" + _bounds(meta, format_size)
        if is_duration(name):
            return "a duration such as 30s or 5m" + _bounds(meta, format_duration)
        return ("an integer" if bare is int else "a number") + _bounds(meta)
    return "a value" if bare is Any else str(bare)


def _bounds(meta: list[msgspec.Meta], form: Callable[[float], str] = "{:g}".format) -> str:
    texts = []
    for m in meta:
        for sign, bound in ((">", m.gt), ("≥", m.ge), ("<", m.lt), ("≤", m.le)):
            if bound is not None:
                texts.append(f"{sign} {form(bound)}")
    return f" ({' and '.join(texts)})" if texts else ""


def _with_unit(text: str, annotation: Any, name: str) -> Any:
    kinds = {_bare(member)[0] for member in _members(annotation)}
    if int in kinds and str not in kinds and is_size(name):
        return parse_size(text)
    if float in kinds and str not in kinds and is_duration(name):
        return parse_duration(text)
    return text


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation; itself, when it is not a union."""
    bare, _ = _bare(annotation)
    if get_origin(bare) in (Union, UnionType):
        return [m for a in get_args(bare) for m in _members(a)]
    return [annotation]


def _bare(annotation: Any) -> tuple[Any, list[msgspec.Meta]]:
    """An annotation without `Annotated`, and what that said."""
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        return inner, [e for e in extra if isinstance(e, msgspec.Meta)]
    return annotation, []


def _literals(annotation: Any) -> list[str]:
    return [
        str(value)
        for member in _members(annotation)
        if get_origin(_bare(member)[0]) is Literal
        for value in get_args(_bare(member)[0])
        if value != ""
    ]
