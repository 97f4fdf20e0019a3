"""A sink of the user's own: a Python file with a function `deliver`, run in a process of its own.

The file is `NAME.py` in `sinks/` of the user's configuration, never a project's: the process has the network and the
secrets that the workflow's file names and `sinks.secrets` of otto.yml grants. Otherwise it is confined as every
program of the session is. What it is given stands on its standard input, so that no secret is in an environment.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

from ottod.errors import ToolError
from ottod.protocol.sinks import Sink, SinkFile, SinkGrants
from ottod.protocol.toolio import LiveProgram, Programs
from ottod.sinks.base import Parcel, Receipt, Undelivered, described

PROGRAM = str(Path(__file__).with_name("sink_program.py"))
ARGV = (sys.executable, "-I", "-B", PROGRAM)
MAX_OUTPUT_BYTES = 256 * 1024
MAX_SHOWN_CHARS = 500


def program_name(sink: Sink) -> str:
    """What the session's launcher knows its program by."""
    return f"sink:{sink.program}"


class OwnProgram:
    """`Destination` of one such file."""

    def __init__(self, sink: Sink, file: SinkFile, programs: Programs, grants: SinkGrants) -> None:
        self._sink = sink
        self._file = file
        self._programs = programs
        self._grants = grants

    async def deliver(self, parcel: Parcel) -> Receipt:
        """See `Destination.deliver`."""
        for name in self._sink.secrets:
            if name not in self._grants.secrets:
                why = self._grants.missing.get(name, "it is not there")
                raise Undelivered(f"the secret {name!r}: {why}", code="no_secret", is_final=True)
        # Nobody else knows the mark, so nothing that is printed is taken for an answer.
        mark = f"otto-answer-{secrets.token_hex(8)}"
        order = {
            "mark": mark,
            "path": self._file.path,
            "source": self._file.source,
            "parcel": {
                **described(parcel, content_bytes=self._sink.content_bytes),
                "options": self._sink.options,
                "secrets": {name: self._grants.secrets[name] for name in self._sink.secrets},
            },
        }
        said = await self._run(json.dumps(order).encode())
        _, found, rest = said.rpartition(f"\n{mark} ")
        if not found:
            shown = said[-MAX_SHOWN_CHARS:].strip()
            raise Undelivered(f"{self._file.path} ended without an answer: {shown}", code="sink_crashed")
        answer: dict[str, Any] = json.loads(rest.split("\n", 1)[0])
        if "place" in answer:
            return Receipt(place=str(answer["place"]))
        where = f" ({Path(self._file.path).name}:{answer['line']})" if answer.get("line") else ""
        raise Undelivered(f"{answer['error']}{where}", code="sink_failed", is_final=bool(answer.get("final")))

    async def _run(self, order: bytes) -> str:
        """What it prints. Raises Undelivered."""
        try:
            program = await self._programs.start(named=program_name(self._sink), has_input=True)
        except ToolError as error:
            raise Undelivered(error.message, code=error.code, mend=error.mend) from error
        try:
            async with asyncio.timeout(self._sink.timeout_s):
                _, output, _ = await asyncio.gather(
                    _give(program, order), _all(program.read), _all(program.read_errors)
                )
                return output
        except TimeoutError as error:
            text = f"{self._file.path} did not end within {self._sink.timeout_s:g} s"
            raise Undelivered(text, code="timeout") from error
        finally:
            await program.aclose()


async def _give(program: LiveProgram, order: bytes) -> None:
    try:
        await program.write(order)
    except OSError:
        pass  # It ended before it had read everything; what it said tells why.
    finally:
        program.close_input()


async def _all(read: Any) -> str:
    """Everything to the end; of what is too long the end is kept."""
    kept = bytearray()
    while piece := await read():
        kept += piece
        del kept[:-MAX_OUTPUT_BYTES]
    return kept.decode("utf-8", "replace")
