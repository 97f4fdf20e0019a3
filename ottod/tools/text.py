"""Text files as bytes and back, without changing what was not meant to be changed."""

from __future__ import annotations

import codecs

import msgspec

from ottod.errors import ToolError

SNIFF_BYTES = 8192
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class TextFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file's text. `mark` is its byte order mark, `newline` the line ending that it uses most."""

    text: str
    encoding: str = "utf-8"
    mark: bytes = b""
    newline: str = "\n"

    def encode(self, text: str, *, path: str) -> bytes:
        """Other text in the same encoding. Raises ToolError if it cannot be written in it."""
        try:
            return self.mark + text.encode(self.encoding)
        except UnicodeEncodeError as error:
            wrong = text[error.start : error.start + 1]
            raise ToolError(
                f"{path} is encoded in {self.encoding}, which has no {wrong!r}", code="bad_encoding"
            ) from error


def decode_text(data: bytes, *, path: str) -> TextFile:
    """UTF-8, UTF-16 with a byte order mark, else Latin-1, which every byte survives. Raises ToolError for binary."""
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    if encoding == "utf-8" and b"\0" in body[:SNIFF_BYTES]:
        raise ToolError(
            f"{path} is a binary file ({len(data)} bytes); look at it with file or xxd in shell", code="binary"
        )
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError:
        mark, encoding, text = b"", "latin-1", data.decode("latin-1")
    crlf = text.count("\r\n")
    return TextFile(
        text=text, encoding=encoding, mark=mark, newline="\r\n" if crlf > text.count("\n") - crlf else "\n"
    )


def lines_of(text: str) -> list[str]:
    """The lines as editors and grep count them: only \\n and \\r\\n end one (str.splitlines knows eight more)."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def printable(text: str) -> str:
    """Text that any encoder accepts: names with bytes that are no UTF-8 are shown with replacement marks."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if not text.isascii() else text
