"""Colours as text, and the text of others made safe to show."""

from __future__ import annotations

import re
import unicodedata

CODES = {
    "bold": "1",
    "dim": "2",
    "italic": "3",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "grey": "90",
}
RESET = "\x1b[0m"
ERASE_LINE = "\r\x1b[2K"
CURSOR_UP = "\x1b[1A"

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|\Z)"  # OSC and other strings: titles, clipboard, links
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def paint(text: str, style: str, *, color: bool) -> str:
    """The text in a style such as `red` or `bold green`; unchanged without colour."""
    if not color or not text or not style:
        return text
    return f"\x1b[{';'.join(CODES[name] for name in style.split())}m{text}{RESET}"


def printable(text: str) -> str:
    """Without escape sequences, control characters and bidirectional tricks: a model or a tool must not be able
    to drive the reader's terminal. Line feeds and tabs stay; CR LF becomes LF."""
    if text.isascii() and text.isprintable():
        return text
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """Printable, and on one line."""
    return " ".join(printable(text).split())


def char_width(char: str) -> int:
    """The columns that a character takes: 0, 1 or 2."""
    if unicodedata.combining(char) or char in "\u200b\u200c\u200d\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def width_of(text: str) -> int:
    """The columns that a text takes, escape sequences not counted."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    return sum(char_width(char) for char in _ESCAPES.sub("", text))


def clip(text: str, width: int) -> str:
    """At most `width` columns of an unstyled text, the cut marked with `…`."""
    if width_of(text) <= width:
        return text
    kept, used = [], 0
    for char in text:
        used += char_width(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept) + "…" if width > 0 else ""
