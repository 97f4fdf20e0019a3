"""Raw events, one line each, for a terminal; programs read JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from ottoctl.feed import SessionEvent
from ottoctl.rendering.ansi import clip, one_line, paint
from ottod.protocol.events import Unknown, tag_of

VALUE_WIDTH = 60


def event_line(event: SessionEvent, *, color: bool, width: int) -> str:
    """`offset  session/seq  time  kind  fields`, without a line feed."""
    inner = event.event
    fields = inner.fields if isinstance(inner, Unknown) else msgspec.to_builtins(inner)
    told = " ".join(f"{name}={_value(value)}" for name, value in fields.items() if name != "type")
    when = ""
    if event.at_ns:
        moment = datetime.fromtimestamp(event.at_ns / 1e9, tz=UTC).astimezone()
        when = f"{moment:%H:%M:%S}.{event.at_ns // 1_000_000 % 1000:03d}"
    place = f"{event.offset:>8}  {event.session or '-'}/{event.seq}  {when:<12}  "
    kind = tag_of(inner)
    if width:
        told = clip(told, max(8, width - len(place) - len(kind) - 1))
    return f"{paint(place, 'dim', color=color)}{paint(kind, 'cyan', color=color)} {told}".rstrip()


def _value(value: Any) -> str:
    if isinstance(value, str):
        return msgspec.json.encode(clip(one_line(value), VALUE_WIDTH)).decode()
    return clip(one_line(msgspec.json.encode(value).decode()), VALUE_WIDTH)
