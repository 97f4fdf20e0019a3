"""The daemon's settings as text: what holds, and who said so. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from ottoctl.rendering.ansi import one_line
from ottoctl.rendering.table import Cell, render_table
from ottod.settings.decode import is_duration, is_size
from ottod.settings.origins import Setting
from ottod.settings.units import format_duration, format_size

HEADER = ("KEY", "FROM", "VALUE")
_USERINFO = re.compile(r"(?<=://)[^/\s]{1,2048}@")
MARK = "[redacted:userinfo]"
"""Instead of what stands before the host in a URL: a password, or a token in the place of a name."""


def settings_table(settings: Sequence[Setting], *, width: int, color: bool) -> str:
    """A line for each, as it could be written in the file."""
    rows = [
        [
            Cell(one_line(setting.key), "" if setting.is_default else "bold"),
            Cell(setting.origin, "dim" if setting.is_default else "green"),
            one_line(value_text(setting.key, setting.value)),
        ]
        for setting in settings
    ]
    return render_table(HEADER, rows, width=width, color=color)


def without_userinfo(settings: Sequence[Setting]) -> tuple[list[Setting], bool]:
    """The settings as they may be shown, and whether something was taken out of them."""
    shown = [msgspec.structs.replace(setting, value=_without_userinfo(setting.value)) for setting in settings]
    return shown, shown != list(settings)


def _without_userinfo(value: Any) -> Any:
    if isinstance(value, str):
        return _USERINFO.sub(f"{MARK}@", value)
    if isinstance(value, list | tuple):
        return type(value)(map(_without_userinfo, value))
    if isinstance(value, dict):
        return {key: _without_userinfo(inner) for key, inner in value.items()}
    return value


def value_text(key: str, value: Any) -> str:
    """A value with its unit; `-` when nothing is set."""
    name = key.rpartition(".")[2]
    if value is None or value == "":
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            format_size(value) if is_size(name) else format_duration(value) if is_duration(name) else f"{value:.10g}"
        )
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return f"[{', '.join(value)}]"
    return msgspec.json.encode(value).decode()
