"""From fork to exit: waits for the birth, becomes the session, leaves with a last word.

A freshly forked worker is *unborn*: it has its loop, its ZeroMQ context and a connection, and waits on its private
channel. What arrives there makes it one particular session. The channel stays open for life; when root's end
closes, root is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket

import uvloop
from setproctitle import setproctitle

from ottod.ids import session_key
from ottod.isolation.landlock import forbid_new_privileges
from ottod.isolation.processes import become_subreaper
from ottod.protocol.cause import Cause
from ottod.protocol.worker import MAX_BIRTH_BYTES, Birth, Exiting, births
from ottod.providers.registry import preload
from ottod.worker.link import Link
from ottod.worker.rehearsal import rehearse
from ottod.worker.session import SessionRunner

OOM_SCORE = b"500"
"""When the machine runs out of memory a worker goes before root and before the user's own programs."""
TOOL_FILES = 1024
"""The usual soft limit: programs that use select() rely on it, others raise it themselves."""
LAST_WORD_TIMEOUT_S = 30.0


def prepare() -> None:
    """What the zygote does once, before the first fork: everything that is slow to import."""
    preload()


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
    link.open(birth, session_key(birth.session))
    watcher = loop.create_task(_root_is_gone(channel))
    try:
        await _be_session(birth, link, watcher)
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        link.close()


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
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, OOM_SCORE)
        os.close(fd)


async def _root_is_gone(channel: socket.socket) -> None:
    """Returns when root has closed its end: nothing else is ever sent after the birth."""
    loop = asyncio.get_running_loop()
    while await _receive(loop, channel, 1) is not None:
        pass


async def _be_session(birth: Birth, link: Link, root_gone: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()
    runner = SessionRunner(birth, link)
    link.on_command = runner.handle_command
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, runner.stop, "SIGTERM", "cancelled")
    link.on_rejected = stop.set
    session = loop.create_task(runner.run())
    stopped = loop.create_task(stop.wait())
    await asyncio.wait({session, root_gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if root_gone.done() or stopped.done():
        # Nobody listens any more: end the turn, leave no process, and go.
        runner.stop("the daemon is gone", "daemon_stop")
        await asyncio.wait({session}, timeout=birth.orphan_grace_s)
        stopped.cancel()
        return
    stopped.cancel()
    exiting = _last_word(session, link)
    await link.say_farewell(exiting, timeout_s=LAST_WORD_TIMEOUT_S)


def _last_word(session: asyncio.Task[Exiting], link: Link) -> Exiting:
    """The session's own last word, or, after a defect, one that says so."""
    error = session.exception()
    if error is None:
        return session.result()
    import traceback

    traceback.print_exception(error)
    text = f"internal error in the worker: {error!r}"
    return Exiting(cause=Cause(kind="crashed", message=text, status=1), last_seq=link.last_seq)
