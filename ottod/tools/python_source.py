"""Tools that are Python functions in a project's or a user's own files.

Their code never runs in a worker. Describing a file and each call of one of its tools is a program of the session in
a sandbox of its own (`python_program`), bounded in time and memory like any other, with what the agent's programs may
reach and no more. So a tool keeps nothing in memory from call to call.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ottod.errors import ConfigError, ToolError
from ottod.protocol.specs import ToolFile
from ottod.protocol.toolio import ProgramResult, Programs
from ottod.settings.tool_names import qualified
from ottod.tools.base import OpenArguments, Tool, ToolContext, ToolOutput
from ottod.tools.json_references import without_references
from ottod.tools.keep_whole import keep_whole

PROGRAM = str(Path(__file__).with_name("python_program.py"))
DESCRIBE_TIMEOUT_S = 30.0
MAX_DESCRIPTION_BYTES = 1024 * 1024
MAX_DESCRIPTION_CHARS = 4000
MAX_TIMEOUT_S = 3600.0
MAX_ANSWER_BYTES = 256 * 1024
"""Of a tool's result; more of it is cut off in its own process."""
DEFAULT_MEMORY_BYTES = 1024 * 1024 * 1024
ESCAPING = 6
"""How much longer text can be in JSON."""
OVERHEAD_BYTES = 4096


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as its file describes it: a stranger's word, checked when it is decoded."""

    name: str
    description: str
    parameters: dict[str, Any]
    permissions: tuple[Literal["read", "write", "exec", "net"], ...] = ("exec",)
    idempotent: bool = False
    timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    memory_bytes: Annotated[int, Meta(ge=1)] | None = None


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, and at which line of the file."""

    message: str
    line: int = 0
    column: int = 1
    mend: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the program says at its end."""

    tools: tuple[Described, ...] = ()
    text: str = ""
    truncated: bool = False
    error: Complaint | None = None


class PythonSource:
    """The chosen tools of one file."""

    def __init__(self, file: ToolFile, *, programs: Programs) -> None:
        self._file = file
        self._programs = programs

    @property
    def name(self) -> str:
        """`project` or `user`."""
        return self._file.origin

    async def open(self) -> tuple[Tool[Any], ...]:
        """See `ToolSource.open`. A file with a mistake is a ConfigError that names the line."""
        order = {"action": "describe", "tools": self._file.tools}
        result, answer = await self._ask(order, DESCRIBE_TIMEOUT_S, MAX_DESCRIPTION_BYTES)
        path = self._file.path
        if answer is None:
            why = "it does not end" if result.ended == "timeout" else f"Python ended with {result.exit_status}"
            raise ConfigError(
                f"the tools cannot be looked at: {why}; {result.output[-300:].strip()}",
                file=path,
                mend="a tool file only defines functions; see what it does when it is imported",
            )
        if answer.error is not None:
            wrong = answer.error
            raise ConfigError(wrong.message, file=path, line=wrong.line, column=wrong.column, mend=wrong.mend)
        return tuple(self._tool(described) for described in answer.tools)

    async def aclose(self) -> None:
        """Nothing of it runs between calls."""

    def _tool(self, described: Described) -> Tool[OpenArguments]:
        async def run(arguments: OpenArguments, context: ToolContext) -> ToolOutput:
            return await self._call(described, arguments.values, context)

        return Tool(
            name=qualified(self.name, described.name),
            description=described.description[:MAX_DESCRIPTION_CHARS],
            arguments=OpenArguments,
            parameters=without_references(described.parameters),
            permissions=frozenset(described.permissions),
            idempotent=described.idempotent,
            run=run,
            timeout_s=min(described.timeout_s, MAX_TIMEOUT_S),
        )

    async def _call(self, described: Described, values: dict[str, Any], context: ToolContext) -> ToolOutput:
        order = {
            "action": "call",
            "tool": described.name,
            "arguments": values,
            "memory_bytes": described.memory_bytes or DEFAULT_MEMORY_BYTES,
            "max_bytes": MAX_ANSWER_BYTES,
            "key": context.idempotency_key,
        }
        # The answer is the end of the output, of which the later half is kept.
        room = 2 * (ESCAPING * MAX_ANSWER_BYTES + OVERHEAD_BYTES)
        result, answer = await self._ask(order, context.timeout_s, room, context)
        name = qualified(self.name, described.name)
        if result.ended == "timeout":
            raise ToolError(f"{name} ran longer than {context.timeout_s:g} s and was killed", code="timeout")
        if answer is None:
            status = result.exit_status
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise ToolError(f"{name} died with {how}: {result.output[-500:].strip()}", code="tool_crashed")
        if answer.error is not None:
            where = f" ({Path(self._file.path).name}:{answer.error.line})" if answer.error.line else ""
            return ToolOutput(text=f"{name} failed: {answer.error.message}{where}", is_error=True)
        shown = await keep_whole(
            answer.text, context, name=f"{described.name[:40]}-output.txt", room_bytes=context.max_output_bytes
        )
        text = "\n".join([shown.text, *(f"[{note}]" for note in shown.notes)])
        return ToolOutput(text=text or "(no output)", truncated=answer.truncated or shown.is_cut)

    async def _ask(
        self, order: dict[str, Any], timeout_s: float, max_output_bytes: int, context: ToolContext | None = None
    ) -> tuple[ProgramResult, Answer | None]:
        """Runs the program; its answer is None if it gave none that can be read."""
        # Nobody else knows the mark, so nothing that is printed is taken for an answer.
        mark = f"otto-answer-{secrets.token_hex(8)}"
        full = {**order, "path": self._file.path, "source": self._file.source}
        result = await self._programs.run(
            [sys.executable, "-I", "-B", PROGRAM, mark],
            timeout_s=timeout_s,
            max_output_bytes=max_output_bytes,
            stdin=msgspec.json.encode(full),
            on_output=_without(mark, context),
        )
        _, found, rest = result.output.rpartition(f"\n{mark} ")
        if not found:
            return result, None
        try:
            return result, msgspec.json.decode(rest.split("\n", 1)[0], type=Answer)
        except msgspec.MsgspecError:
            return result, None


def _without(mark: str, context: ToolContext | None) -> Any:
    """Shows what a tool prints to watchers, and not the answer."""
    if context is None:
        return None
    is_over = False

    def show(text: str) -> None:
        nonlocal is_over
        if is_over:
            return
        before, found, _ = text.partition(f"\n{mark} ")
        is_over = bool(found)
        if before:
            context.stream(before)

    return show
