"""What a call would do to files, before anybody is asked for leave: the tool itself runs, on files that only it sees.

Only tools that do nothing but read and write files are tried so; of any other call there is no preview.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

from ottod.core.text_diff import unified_diff
from ottod.errors import ToolError
from ottod.protocol.model import ToolCall
from ottod.protocol.toolio import DirEntry, Files, FileStat, Programs
from ottod.settings.names import FILE_TOOLS
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import InThread, Tool, ToolContext

MAX_FILE_BYTES = 8 * 1024 * 1024
"""What file tools work with at most."""
TIMEOUT_S = 30.0


class Preview:
    """Of one session's calls. `files` are the real ones, of which it only reads."""

    def __init__(
        self, tools: Mapping[str, Tool[Any]], files: Files, *, in_thread: InThread = asyncio.to_thread
    ) -> None:
        self._tools = tools
        self._files = files
        self._in_thread = in_thread

    async def diff(self, call: ToolCall) -> str | None:
        """The whole diff of what the call would change now, or a line that says why it would fail; None of a call
        that changes none, or is not known to do nothing else."""
        tool = self._tools.get(call.tool)
        if tool is None or call.tool not in FILE_TOOLS:
            return None
        files = TriedFiles(self._files)
        try:
            await tool.run(decode_arguments(tool, call.arguments), self._context(files, call))
        except ToolError as error:
            return f"… it would fail now: {' '.join(error.message.split())}\n"
        if not files.changes:
            return None
        return "".join(unified_diff(path, before, after) for path, (before, after) in files.changes.items())

    def _context(self, files: TriedFiles, call: ToolCall) -> ToolContext:
        """What a file tool needs. There are no programs: none of these starts one."""
        return ToolContext(
            files=files,
            programs=cast(Programs, None),
            in_thread=self._in_thread,
            call=call.call,
            idempotency_key="",
            timeout_s=TIMEOUT_S,
            max_output_bytes=MAX_FILE_BYTES,
            progress=lambda message: None,
            stream=lambda text: None,
        )


class TriedFiles:
    """`Files` that keeps what is written to it, and writes nothing. `changes`: path → before and after."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.changes: dict[str, tuple[bytes | None, bytes]] = {}

    @property
    def root(self) -> str:
        return self._files.root

    def relative(self, path: str) -> str:
        return self._files.relative(path)

    def stat(self, path: str) -> FileStat:
        return self._files.stat(path)

    def list(self, path: str) -> list[DirEntry]:
        return self._files.list(path)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        known = self.changes.get(self.relative(path))
        return known[1] if known is not None else self._files.read(path, max_bytes=max_bytes)

    def write(self, path: str, data: bytes, *, make_parents: bool = True) -> bool:
        before = self._before(path)
        self.changes[self.relative(path)] = before, data
        return before is None

    def change(self, path: str, transform: Callable[[bytes], bytes], *, max_bytes: int) -> None:
        before = self.read(path, max_bytes=max_bytes)
        self.changes[self.relative(path)] = self._before(path), transform(before)

    def _before(self, path: str) -> bytes | None:
        known = self.changes.get(self.relative(path))
        if known is not None:
            return known[0]
        try:
            return self._files.read(path, max_bytes=MAX_FILE_BYTES)
        except ToolError as error:
            if error.code == "not_found":
                return None
            raise
