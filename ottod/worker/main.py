"""From fork to exit: waits for the birth, becomes the session, leaves with a last word.

A freshly forked worker is *unborn*: it has its loop, its ZeroMQ context and a connection, and waits on its private
channel. What arrives there makes it one particular session. An unborn worker whose channel closes goes; a session
outlives root: it keeps working, keeps what it says, and waits for the next root to adopt it. If none comes within
the orphan grace, it checkpoints and exits, for a later incarnation to go on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import uvloop
from setproctitle import setproctitle

from ottod.core.redaction import shapes_only
from ottod.ids import session_key
from ottod.isolation.landlock import forbid_new_privileges
from ottod.isolation.processes import ProcessId, become_subreaper, identify
from ottod.protocol.birth import MAX_BIRTH_BYTES, Birth, births
from ottod.protocol.cause import Cause
from ottod.protocol.events import LogWarning
from ottod.protocol.worker import Exiting, WorkerWelcome
from ottod.providers.registry import preload
from ottod.worker.link import Link
from ottod.worker.rehearsal import rehearse
from ottod.worker.session import SessionRunner
from ottod.worker.workflow_session import WorkflowRunner

if TYPE_CHECKING:
    from ottod.telemetry.tracing import SessionTracer

OOM_SCORE = b"500"
"""When the machine runs out of memory a worker goes before root and before the user's own programs."""
TOOL_FILES = 1024
"""The usual soft limit: programs that use select() rely on it, others raise it themselves."""
LAST_WORD_TIMEOUT_S = 30.0
"""For the last word to be heard, or, without a daemon, for the turn to be brought to an end."""


def prepare(adapters: Sequence[str]) -> None:
    """What the zygote does once, before the first fork: everything that is slow to import."""
    preload(("scripted", *adapters))
    shapes_only()


def run(channel_fd: int, endpoint: str) -> None:
    """The entry point that the zygote calls in the fork. Returns when the process should exit."""
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(False)
    os.set_inheritable(channel_fd, False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_live(channel, endpoint))


async def _live(channel: socket.socket, endpoint: str) -> None:
    loop = asyncio.get_running_loop()
    # The context comes before the priority is lowered, so that ZeroMQ's own threads keep theirs.
    link = Link(loop, endpoint)
    rehearse(link)
    birth = await _receive_birth(channel)
    if birth is None:
        link.close()
        return
    _become(birth)
    root = RootWatch(loop, link)
    link.on_root = root.welcomed
    tracer, problem = await _load_tracer(birth)
    link.open(birth, session_key(birth.session))
    sys.stderr = RedactedOutput(sys.stderr, link)
    if tracer is not None:
        link.on_event, link.on_resumed = tracer.observe, tracer.begin_turn
        link.traceparent_of = tracer.traceparent_of
    elif problem:
        link.emit(LogWarning(message=problem, code="no_traces"))
    watcher = loop.create_task(root.watch_channel(channel))
    try:
        await _be_session(birth, link, root, tracer)
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        root.close()
        link.close()


class RedactedOutput(io.TextIOBase):
    """Standard error, which ends up in the daemon's log: what this process and its libraries print in distress."""

    def __init__(self, stream: TextIO, link: Link) -> None:
        self._stream = stream
        self._link = link

    def write(self, text: str) -> int:
        self._stream.write(self._link.redactor.text(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True


async def _receive_birth(channel: socket.socket) -> Birth | None:
    """The birth, or None if root closed the channel without one. The bytes are not kept."""
    loop = asyncio.get_running_loop()
    head = await _receive(loop, channel, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "big")
    if size > MAX_BIRTH_BYTES:
        return None
    data = await _receive(loop, channel, size)
    return births.decode(data) if data is not None else None


async def _receive(loop: asyncio.AbstractEventLoop, channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        try:
            piece = await loop.sock_recv(channel, size - len(data))
        except OSError:
            return None
        if not piece:
            return None
        data += piece
    return bytes(data)


def _become(birth: Birth) -> None:
    """Takes on the session's identity and gives up what it does not need."""
    setproctitle(f"ottod: worker {birth.session} {birth.spec.name}")
    # Files that tools create are the user's; Otto's own are created with explicit modes.
    os.umask(0o022)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(TOOL_FILES, hard) if hard >= 0 else TOOL_FILES, hard))
    become_subreaper()
    forbid_new_privileges()
    for name, value in birth.rlimits:
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, OOM_SCORE)
        os.close(fd)


class RootWatch:
    """Knows whether root lives: by its process once it has said which, by the private channel before.

    `is_present` is set while somebody listens.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link) -> None:
        self._loop = loop
        self._link = link
        self._pidfd: int | None = None
        self._changed = asyncio.Event()
        self.is_present = True

    def welcomed(self, welcome: WorkerWelcome) -> None:
        """A root, perhaps another one than before, has taken this worker on."""
        self.close()
        self._set(present=True)
        if not welcome.root_pid:
            return
        try:
            pidfd = os.pidfd_open(welcome.root_pid)
        except OSError:
            self._gone()  # It died after it spoke.
            return
        if identify(welcome.root_pid) != ProcessId(welcome.root_pid, welcome.root_start_ticks):
            os.close(pidfd)
            self._gone()
            return
        self._pidfd = pidfd
        self._loop.add_reader(pidfd, self._gone)

    async def watch_channel(self, channel: socket.socket) -> None:
        """Nothing is ever sent after the birth; a channel that closes means a root that died or became another."""
        while await _receive(self._loop, channel, 1) is not None:
            pass
        self._link.orphaned()
        if self._pidfd is None:
            # Nobody has said yet who root is: the channel is all there is to know it by.
            self._set(present=False)

    def _gone(self) -> None:
        self.close()
        self._link.orphaned()
        self._set(present=False)

    def _set(self, *, present: bool) -> None:
        self.is_present = present
        self._changed.set()

    async def until_abandoned(self, grace_s: float) -> None:
        """Returns when root has been away for `grace_s` without a successor."""
        while True:
            self._changed.clear()
            if self.is_present:
                await self._changed.wait()
                continue
            try:
                async with asyncio.timeout(grace_s):
                    await self._changed.wait()
            except TimeoutError:
                return

    def close(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


async def _load_tracer(birth: Birth) -> tuple[SessionTracer | None, str]:
    """What makes spans of what the session says, if that is wanted; or why there is none.

    What is needed is imported now, and only now: before root may give orders.
    """
    if birth.tracing is None:
        return None, ""
    from ottod.telemetry.tracing import SessionTracer

    tracer = SessionTracer(birth, birth.tracing)
    problem = await asyncio.to_thread(tracer.load)
    return (None, problem) if problem else (tracer, "")


async def _be_session(birth: Birth, link: Link, root: RootWatch, tracer: SessionTracer | None) -> None:
    loop = asyncio.get_running_loop()
    runner = SessionRunner(birth, link) if birth.workflow is None else WorkflowRunner(birth, link, birth.workflow)
    link.on_command = runner.handle_command
    unwanted = asyncio.Event()

    def told_to_end() -> None:
        # With root, it is root's stop ladder that speaks; without, whoever runs this machine's services.
        runner.stop("SIGTERM", "cancelled" if root.is_present else "daemon_stop")
        if not root.is_present:
            unwanted.set()  # Nobody will come to hear a last word.

    loop.add_signal_handler(signal.SIGTERM, told_to_end)
    link.on_rejected = unwanted.set
    session = loop.create_task(runner.run())
    alone = [loop.create_task(unwanted.wait()), loop.create_task(root.until_abandoned(birth.orphan_grace_s))]
    try:
        await asyncio.wait({session, *alone}, return_when=asyncio.FIRST_COMPLETED)
        if not session.done():
            # Nobody listens any more: end the turn, leave no process and a journal to go on from.
            runner.stop("the daemon is gone", "daemon_stop")
            await asyncio.wait({session}, timeout=LAST_WORD_TIMEOUT_S)
            return
        if tracer is not None:
            tracer.close_soon()
        # While root is away it is the orphan grace that bounds the wait.
        timeout_s = LAST_WORD_TIMEOUT_S + birth.orphan_grace_s
        farewell = loop.create_task(link.say_farewell(_last_word(session, link), timeout_s=timeout_s))
        await asyncio.wait({farewell, *alone}, return_when=asyncio.FIRST_COMPLETED)
        farewell.cancel()
        if tracer is not None:
            await tracer.closed()
    finally:
        for task in alone:
            task.cancel()


def _last_word(session: asyncio.Task[Exiting], link: Link) -> Exiting:
    """The session's own last word, or, after a defect, one that says so."""
    error = session.exception()
    if error is None:
        return session.result()
    import traceback

    traceback.print_exception(error)
    text = f"internal error in the worker: {error!r}"
    return Exiting(cause=Cause(kind="crashed", message=text, status=1), last_seq=link.last_seq)
