"""One confined program that runs across tool calls: an MCP server, a development server, a watcher.

It is held like any other program of the session, by a keeper that ends its whole family, and dies with the worker.
What it prints is read only when somebody asks for more, so that a flood fills a pipe and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from ottod.errors import ToolError
from ottod.isolation.running import READ_BYTES, Ending, KeptProgram, finished

Refusal = Callable[[BaseException], ToolError]
Sweep = Callable[[], Awaitable[Ending]]


class LivePipes:
    """Our ends of its standard streams. `stdin` is -1 for a program that is told nothing."""

    def __init__(self, *, stdin: int, output: int, errors: int) -> None:
        self._fds = {"stdin": stdin, "output": output, "errors": errors}
        self._waits: dict[str, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        for fd in self._fds.values():
            if fd >= 0:
                os.set_blocking(fd, False)

    async def read(self, name: str) -> bytes:
        """The next piece; empty at the end, and once it is closed. One reader at a time."""
        while (fd := self._fds[name]) >= 0:
            try:
                return os.read(fd, READ_BYTES)
            except (BlockingIOError, InterruptedError):
                await self._until_ready(name, self._loop.add_reader, self._loop.remove_reader)
        return b""

    async def write(self, data: bytes) -> None:
        """Everything, as fast as it is taken. Raises OSError when nobody takes it any more."""
        view = memoryview(data)
        while view:
            fd = self._fds["stdin"]
            if fd < 0:
                raise BrokenPipeError("the program's standard input is closed")
            try:
                view = view[os.write(fd, view) :]
            except (BlockingIOError, InterruptedError):
                await self._until_ready("stdin", self._loop.add_writer, self._loop.remove_writer)

    async def _until_ready(self, name: str, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        fd, ready = self._fds[name], self._loop.create_future()
        self._waits[name] = ready
        add(fd, _settle, ready)
        try:
            await ready
        finally:
            if self._fds[name] == fd:
                remove(fd)
            self._waits.pop(name, None)

    def close(self, name: str) -> None:
        """Closes one of them, and ends who waits for it. Twice is harmless."""
        fd, self._fds[name] = self._fds[name], -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)
        if name in self._waits:
            _settle(self._waits[name])

    def close_all(self) -> None:
        """Closes all of them."""
        for name in self._fds:
            self.close(name)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class LiveProgram(KeptProgram):
    """See `protocol.toolio.LiveProgram`. `refusal` puts a failed start into words, `sweep` proves its end."""

    def __init__(self, control: socket.socket, pipes: LivePipes, *, refusal: Refusal, sweep: Sweep) -> None:
        super().__init__(control)
        self._pipes = pipes
        self._refusal = refusal
        self._sweep = sweep
        self._closing: asyncio.Task[bool] | None = None

    @property
    def exit_status(self) -> int | None:
        """How it ended; None while it runs, and if it never did."""
        is_known = self.exited.done() and not self.exited.cancelled() and self.exited.exception() is None
        return self.exited.result() if is_known else None

    async def wait_started(self) -> None:
        """Returns once it runs. Raises ToolError if it could not be started."""
        either: set[asyncio.Future[Any]] = {self.started, self.exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        failure = self.exited.exception() if self.exited.done() else None
        if failure is not None and not self.is_started:
            raise self._refusal(failure)

    async def wait_ended(self) -> None:
        """Returns when it has ended, and what it started with it."""
        await asyncio.wait({self.ended})

    async def read(self) -> bytes:
        return await self._pipes.read("output")

    async def read_errors(self) -> bytes:
        return await self._pipes.read("errors")

    async def write(self, data: bytes) -> None:
        await self._pipes.write(data)

    def close_input(self) -> None:
        self._pipes.close("stdin")

    async def aclose(self) -> bool:
        """Ends it and all it started, and closes everything. True if nothing of it is left.

        A cancellation takes effect afterwards: whoever closes what this belongs to must find it gone.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        return await finished(self._closing)

    async def _close(self) -> bool:
        try:
            if not self.ended.done():
                self.order_end()
            return (await self._sweep()).is_proved
        finally:
            self._pipes.close_all()
            self.release()
