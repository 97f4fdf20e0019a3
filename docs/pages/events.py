"""The event catalogue."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import msgspec

from ottod.protocol import events
from pages.common import NOTICE, cell, field_docs


def events_page() -> str:
    """Every event kind with its fields."""
    docs = field_docs(events)
    parts = []
    for kind in get_args(events.Event):
        fields = msgspec.structs.fields(kind)
        rows = "".join(
            f"| `{f.name}` | {_annotation(f.type)} | {_event_default(f)} "
            f"| {cell(docs.get((kind.__name__, f.name), ''))} |\n"
            for f in fields
        )
        table = f"\n| field | type | default | |\n|---|---|---|---|\n{rows}" if rows else ""
        parts.append(f"## `{kind.__struct_config__.tag}`\n\n{inspect.getdoc(kind)}\n{table}")
    body = "\n".join(parts)
    states = ", ".join(f"`{state}`" for state in get_args(events.SessionState))
    return f"""{NOTICE}
# Events

{inspect.getdoc(events)}

On the wire each is a msgpack map whose `type` is the heading here; fields that have their default are left out.
Texts above {events.MAX_EVENT_TEXT_BYTES // 1024} KiB are cut and marked `truncated`. Session states: {states}.

{body}"""


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return f"`{annotation.__name__}`"
    text = str(annotation).replace("typing.", "").replace("ottod.errors.", "").replace("NoneType", "None")
    if text.startswith("Literal["):
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    return f"`{cell(text)}`"


def _event_default(field: Any) -> str:
    if field.required:
        return "always there"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "" if value in ("", None, (), {}, []) or isinstance(value, msgspec.Struct) else f"`{value}`"
