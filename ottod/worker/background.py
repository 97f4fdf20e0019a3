"""The session's background processes: who runs, what they say, what became of those of earlier incarnations.

A process is noted in the journal before it starts and when it has ended. It dies with this incarnation, whatever ends
that: its keeper sees the worker go. So what a new incarnation finds noted as running is lost, and it says so.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Iterable
from typing import Literal

from ottod.core.log_ring import LogRing
from ottod.core.redaction import Redactor, shapes_only
from ottod.errors import StorageError, ToolError
from ottod.protocol import journal as j
from ottod.protocol.toolio import LiveProgram, Programs
from ottod.tools.base import ProcessLog, ProcessView
from ottod.tools.shell import QUIET
from ottod.worker.journal_writer import JournalWriter

MAX_RUNNING = 8
MAX_REMEMBERED = 32
"""Processes that are listed, ended ones included."""
MAX_LOG_BYTES = 256 * 1024
"""Of one process's output; the newest."""
REST_S = 0.02
BURST_BYTES = 1024 * 1024
SHELLS = (("bash", "--noprofile", "--norc", "-c"), ("/bin/sh", "-c"))


class Process:
    """One of them."""

    def __init__(self, name: str, command: str, *, redactor: Redactor, is_lost: bool = False) -> None:
        self.name = name
        self.command = command
        self.log = LogRing(MAX_LOG_BYTES)
        """Without secrets: it is read in pieces, and of half a secret nobody would know that it is one."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._said = redactor.stream()
        self.program: LiveProgram | None = None
        self.is_lost = is_lost
        self.is_stopped = False
        self.has_ended = is_lost
        self.exit_status: int | None = None
        self.news = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None

    def feed(self, data: bytes, *, is_last: bool = False) -> None:
        """Takes the next piece of its output."""
        text = self._said.feed(self._decoder.decode(data, is_last))
        self.log.feed((text + self._said.rest() if is_last else text).encode())

    def view(self) -> ProcessView:
        state: Literal["running", "exited", "stopped", "lost"] = "exited" if self.has_ended else "running"
        if self.is_lost or self.is_stopped:
            state = "lost" if self.is_lost else "stopped"
        return ProcessView(
            name=self.name,
            command=self.command,
            state=state,
            exit_status=self.exit_status,
            output_bytes=self.log.end,
        )


class Background:
    """See `tools.base.Processes`."""

    def __init__(
        self,
        programs: Programs,
        journal: JournalWriter,
        lost: Iterable[j.ProcessStarted] = (),
        *,
        redactor: Redactor | None = None,
    ) -> None:
        self._redactor = redactor or shapes_only()
        self._programs = programs
        self._journal = journal
        self._processes = {
            each.process: Process(each.process, each.command, redactor=self._redactor, is_lost=True) for each in lost
        }

    def list(self) -> tuple[ProcessView, ...]:
        return tuple(process.view() for process in self._processes.values())

    async def start(self, *, name: str, command: str, cwd: str) -> ProcessView:
        self._check_room(name)
        process = self._processes[name] = Process(name, command, redactor=self._redactor)
        try:
            await self._journal.put([j.ProcessStarted(process=name, command=command, cwd=cwd)])
            process.program = await self._start(command, cwd)
        except BaseException:
            del self._processes[name]
            self._journal.note(j.ProcessEnded(process=name))
            raise
        process.task = asyncio.get_running_loop().create_task(self._follow(process, process.program))
        return process.view()

    def _check_room(self, name: str) -> None:
        known = self._processes.get(name)
        if known is not None and not known.has_ended:
            raise ToolError(f"{name} is running already; stop it, or choose another name", code="name_taken")
        if sum(not process.has_ended for process in self._processes.values()) >= MAX_RUNNING:
            raise ToolError(f"{MAX_RUNNING} background processes are running; stop one of them", code="too_many")
        self._processes.pop(name, None)
        ended = [process.name for process in self._processes.values() if process.has_ended]
        for oldest in ended[: max(0, len(self._processes) + 1 - MAX_REMEMBERED)]:
            del self._processes[oldest]

    async def _start(self, command: str, cwd: str) -> LiveProgram:
        for shell in SHELLS:
            try:
                # One pipe for both streams keeps their order; the shell joins them.
                return await self._programs.start((*shell, f"exec 2>&1\n{command}"), cwd=cwd, env=QUIET)
            except ToolError as error:
                if error.code != "no_program":
                    raise
        raise ToolError("neither bash nor sh can be started here", code="no_program")

    async def _follow(self, process: Process, program: LiveProgram) -> None:
        """Keeps its newest output until it ends, then says how."""
        burst = 0
        while data := await program.read():
            process.feed(data)
            await self._tell(process)
            burst += len(data)
            if burst >= BURST_BYTES:
                # A flood can use up neither the loop nor the machine.
                burst = 0
                await asyncio.sleep(REST_S)
        process.feed(b"", is_last=True)
        await program.wait_ended()
        process.exit_status = program.exit_status
        await self._ended(process, program)

    async def _ended(self, process: Process, program: LiveProgram) -> None:
        await program.aclose()
        process.has_ended = True
        try:
            self._journal.note(j.ProcessEnded(process=process.name, exit_status=process.exit_status))
        except StorageError:
            pass  # Whoever writes next says so.
        await self._tell(process)

    async def _tell(self, process: Process) -> None:
        async with process.news:
            process.news.notify_all()

    async def stop(self, name: str) -> ProcessView:
        process = self._find(name)
        if process.has_ended or process.program is None:
            return process.view()
        process.is_stopped = True
        if not await process.program.aclose():
            raise ToolError(f"{name} could not be ended within its time; parts of it may still run", code="not_ended")
        if process.task is not None:
            await asyncio.wait({process.task})
        return process.view()

    def logs(self, name: str, *, cursor: int | None, max_bytes: int) -> ProcessLog:
        log = self._find(name).log
        data, behind, missed = log.read(max(0, log.end - max_bytes) if cursor is None else cursor, max_bytes)
        return ProcessLog(text=data.decode("utf-8", "replace"), cursor=behind, missed_bytes=missed)

    async def wait_news(self, name: str, *, cursor: int | None, timeout_s: float) -> None:
        process = self._find(name)
        try:
            async with asyncio.timeout(timeout_s), process.news:
                await process.news.wait_for(
                    lambda: process.has_ended or (cursor is not None and process.log.end > cursor)
                )
        except TimeoutError:
            pass

    def _find(self, name: str) -> Process:
        process = self._processes.get(name)
        if process is None:
            names = ", ".join(self._processes) or "none"
            raise ToolError(f"there is no background process {name!r}; there are: {names}", code="no_process")
        return process

    async def aclose(self) -> None:
        """Ends all of them. They are not noted as ended: whoever goes on from the journal has lost them."""
        programs = [process.program for process in self._processes.values() if process.program is not None]
        tasks = [process.task for process in self._processes.values() if process.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.gather(*(program.aclose() for program in programs))
