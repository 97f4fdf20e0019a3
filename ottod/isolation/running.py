"""One confined program while it runs: its keeper, its output, and its end.

The keeper (see `keeper`) is the launcher's child, not ours, and asyncio's child watchers, which differ between loops
and lose exit statuses to whoever else waits for children, have no part in it: the loop only watches two descriptors,
the control socket and the output pipe. The program's status comes as a message.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from ottod.core.redaction import Redactor
from ottod.isolation.capture import BoundedOutput

READ_BYTES = 64 * 1024
BURST_BYTES = 1024 * 1024
"""Output read without a pause; then reading rests, so that a flood can use up neither the loop nor the machine."""
REST_S = 0.02
DRAIN_BYTES = 4 * 1024 * 1024
"""The most that is read after the program has ended: more than any pipe holds."""
MAX_PACKET_BYTES = 64 * 1024

T = TypeVar("T")


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """The keeper's account of the end. `is_proved` False: it could not say, or could not end everything."""

    killed: int = 0
    remaining_pids: tuple[int, ...] = ()
    is_proved: bool = False


def parse_ending(word: str, rest: list[str]) -> Ending:
    """`gone COUNT` or `left COUNT PID…`; anything else proves nothing."""
    if word not in ("gone", "left") or not rest:
        return Ending()
    pids = tuple(int(pid) for pid in rest[1:])
    return Ending(killed=int(rest[0]), remaining_pids=pids, is_proved=word == "gone")


class StartFailure(Exception):
    """The program was not started.

    `stage`: session, limits, landlock, privileges, seccomp, exec; sandbox, fork, network, syscalls; or launcher.
    """

    def __init__(self, stage: str, code: int) -> None:
        super().__init__(f"{stage}: {os.strerror(code)}")
        self.stage = stage
        self.errno = code


class KeptProgram:
    """A program as its keeper tells of it. Owns the control socket, on which the keeper lives; `release` closes it.

    `started` is done once the program runs, `exited` has its status or a StartFailure, `ended` the proof.
    """

    def __init__(self, control: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._control = control
        self.started: asyncio.Future[None] = self._loop.create_future()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self.ended: asyncio.Future[Ending] = self._loop.create_future()
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._on_control)

    @property
    def is_started(self) -> bool:
        """Whether the program has run at all."""
        return self.started.done()

    def order_end(self) -> None:
        """Tells the keeper to end everything now."""
        try:
            self._control.send(b"kill")
        except OSError:
            pass  # The keeper is gone; `ended` says so.

    def release(self) -> None:
        """Closes the control socket, which also ends a keeper that is still there."""
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for future in (self.started, self.exited, self.ended):
            if future.done() and not future.cancelled():
                future.exception()  # Nobody may be left to look at it.
            future.cancel()

    def _tell(self, line: bytes) -> None:
        """Something about the program that belongs to its output."""

    def _on_control(self) -> None:
        """Takes all that has been said: after an error the loop may never call again."""
        while not self.ended.done():
            try:
                packet = self._control.recv(MAX_PACKET_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                # The keeper left without reading an order to end. The system says so once, ahead of what the keeper
                # has still said, and then gives us that.
                continue
            except OSError:
                packet = b""
            self._hear(packet)

    def _hear(self, packet: bytes) -> None:
        word, *rest = packet.decode().split() or [""]
        match word:
            case "started":
                _settle(self.started, None)
            case "failed":
                _fail(self.exited, StartFailure(rest[0], int(rest[1])))
            case "exited":
                _settle(self.exited, int(rest[0]))
            case "mended":
                path = packet.removeprefix(b"mended ").decode("utf-8", "replace")
                self._tell(f"\n[{path} was made or changed, which programs may not; it was undone]\n".encode())
            case "gone" | "left":
                _settle(self.ended, parse_ending(word, rest))
            case _:
                self._loop.remove_reader(self._control.fileno())
                _fail(self.exited, StartFailure("launcher", 0))
                _settle(self.ended, Ending())


class RunningProgram(KeptProgram):
    """One that runs to its end within a call, with its output. `finish` must be called, once."""

    def __init__(
        self,
        control: socket.socket,
        output_fd: int,
        *,
        max_output_bytes: int,
        on_output: Callable[[str], None] | None,
        redactor: Redactor | None = None,
    ) -> None:
        super().__init__(control)
        self._output_fd = output_fd
        self._on_output = on_output
        self._shown_left = max_output_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._burst_bytes = 0
        self._is_reading = False
        self._rest: asyncio.TimerHandle | None = None
        self._is_eof = False
        self.output = BoundedOutput(max_output_bytes, redactor=redactor)
        os.set_blocking(output_fd, False)
        self._resume_reading()

    def finish(self) -> None:
        """Reads what is left in the pipe and closes everything, which also ends a keeper that is still there."""
        self._stop_reading()
        for _ in range(DRAIN_BYTES // READ_BYTES):
            if self._is_eof or not self._read_once():
                break
        self._show("", final=True)
        os.close(self._output_fd)
        self.release()

    def _tell(self, line: bytes) -> None:
        self.output.feed(line)

    def _resume_reading(self) -> None:
        self._rest = None
        self._burst_bytes = 0
        self._is_reading = True
        self._loop.add_reader(self._output_fd, self._on_readable)

    def _stop_reading(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._is_reading:
            self._loop.remove_reader(self._output_fd)
            self._is_reading = False

    def _on_readable(self) -> None:
        self._read_once()
        if self._is_eof:
            self._stop_reading()
        elif self._burst_bytes >= BURST_BYTES:
            self._stop_reading()
            self._rest = self._loop.call_later(REST_S, self._resume_reading)

    def _read_once(self) -> bool:
        """True if there was something."""
        try:
            data = os.read(self._output_fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        self._is_eof = not data
        self._burst_bytes += len(data)
        self.output.feed(data)
        if self._shown_left > 0 and self._on_output is not None:
            self._show(self._decoder.decode(data[: self._shown_left]))
            self._shown_left -= len(data)
            if self._shown_left <= 0:
                self._show("\n[… more output, not shown …]\n")
        return bool(data)

    def _show(self, text: str, *, final: bool = False) -> None:
        if self._on_output is None:
            return
        if final and self._shown_left > 0:
            text += self._decoder.decode(b"", final=True)
        if text:
            self._on_output(text)


def _settle(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[int], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def finished(work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
    """Awaits to the end, then lets a cancellation that came meanwhile take effect."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
