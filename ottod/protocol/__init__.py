"""Everything that crosses a process boundary: structs, codecs and the record format, and nothing else.

Wire structs are frozen and keyword-only, one tagged union per direction, and ignore fields they do not know, so
that neighbouring versions can talk. `PROTOCOL_VERSION` changes when that no longer holds; it is negotiated in the
hello and has nothing to do with the package's version.
"""

from __future__ import annotations

PROTOCOL_VERSION = 1
