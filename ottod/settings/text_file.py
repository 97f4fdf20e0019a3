"""Small UTF-8 files that people write, read within bounds."""

from __future__ import annotations

import re
from pathlib import Path

from ottod.errors import ConfigError
from ottod.settings.regular_file import open_regular

MAX_FILE_BYTES = 1024 * 1024

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_bytes(file: Path | str) -> bytes:
    """The bytes of a regular file of at most MAX_FILE_BYTES. Raises: ConfigError."""
    try:
        with open_regular(file, follows_links=True) as stream:
            data = stream.read(MAX_FILE_BYTES + 1) or b""
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot read: {reason.lower()}", file=str(file), mend="check path and mode") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"larger than {MAX_FILE_BYTES} bytes", file=str(file), mend="split it or make it shorter")
    return data


def decode_text(data: bytes, *, file: str, first_line: int = 1) -> str:
    """The text of UTF-8 bytes, a byte order mark removed. Raises: ConfigError at the first wrong byte."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + first_line
        column = len(before) - (before.rfind(b"\n") + 1) + 1
        message = f"not UTF-8: byte 0x{data[error.start]:02x}"
        raise ConfigError(message, file=file, line=line, column=column, mend="save the file as UTF-8") from error
    odd = _UNPRINTABLE.search(text)
    if odd:
        before_text = text[: odd.start()]
        line = before_text.count("\n") + first_line
        column = len(before_text) - (before_text.rfind("\n") + 1) + 1
        message = f"control character U+{ord(odd.group()):04X}"
        raise ConfigError(message, file=file, line=line, column=column, mend="remove it, or write it as an escape")
    return text
