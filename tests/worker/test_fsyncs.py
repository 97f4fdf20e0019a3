"""How often and how long a worker forced its journal to disk, and that root hears of each time exactly once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import zmq

from ottod.ids import session_id, session_key
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.birth import Birth
from ottod.protocol.cause import Cause
from ottod.protocol.journal import UserSaid
from ottod.protocol.specs import AgentSpec, ModelTarget
from ottod.protocol.worker import (
    KIND_MESSAGE,
    ExitAck,
    Exiting,
    Heartbeat,
    RootToWorker,
    WorkerHello,
    WorkerMessage,
    WorkerWelcome,
    root_to_worker,
    worker_messages,
)
from ottod.transport.socket import Socket, bind_router
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link

DEADLINE_S = 60.0
SESSION = session_id(7)


def birth(directory: Path, *, journal_sync: str = "always", heartbeat_s: float = 0.02) -> Birth:
    return Birth(
        session=SESSION,
        incarnation=1,
        secret=b"secret",
        next_seq=1,
        endpoint=f"ipc://{directory}/worker.sock",
        spec=AgentSpec(name="tester"),
        models=(ModelTarget(provider="scripted", adapter="scripted", model="m"),),
        cwd=str(directory),
        session_dir=str(directory),
        heartbeat_s=heartbeat_s,
        journal_sync=journal_sync,  # type: ignore[arg-type]
    )


def test_each_sync_is_counted_and_timed(tmp_path: Path) -> None:
    """Every time that the journal is forced to disk counts; entries that wait together share one time."""

    async def main() -> None:
        writer = JournalWriter.open(birth(tmp_path))
        assert writer.read_fsyncs() == (0, 0)
        await writer.put([UserSaid(text="one", turn=1)])
        count, took_ns = writer.read_fsyncs()
        assert count == 1
        assert took_ns > 0
        await writer.put([UserSaid(text=str(i), turn=i) for i in range(5)])
        assert writer.read_fsyncs()[0] == 2
        assert writer.read_fsyncs()[1] > took_ns
        await writer.close()

    asyncio.run(main())


def test_no_thread_that_hangs_holds_up_the_journal(tmp_path: Path) -> None:
    """It has a thread of its own: an entry becomes durable while every other thread of the loop is taken."""

    async def main() -> None:
        release = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        stuck = loop.run_in_executor(None, release.wait)
        writer = JournalWriter.open(birth(tmp_path))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await writer.put([UserSaid(text="one", turn=1)])
        finally:
            release.set()
            await stuck
            await writer.close()
        assert writer.read_fsyncs()[0] == 1

    asyncio.run(main())


def test_what_is_not_forced_is_not_counted(tmp_path: Path) -> None:
    """With `journal.sync: none` nothing is."""

    async def main() -> None:
        writer = JournalWriter.open(birth(tmp_path, journal_sync="none"))
        await writer.put([UserSaid(text="one", turn=1)])
        assert writer.read_fsyncs() == (0, 0)
        await writer.close()

    asyncio.run(main())


class Root:
    """A root that welcomes one worker and adds up what its heartbeats say."""

    def __init__(self, endpoint: str, loop: asyncio.AbstractEventLoop) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        raw = bind_router(self._context, endpoint, max_message_bytes=1 << 20, queue_messages=64)
        self._socket = Socket(raw, loop=loop, on_message=self._handle)
        self.beats = 0
        self.count = 0
        self.took_ns = 0
        self.order: list[str] = []

    def _handle(self, frames: list[bytes]) -> None:
        message: WorkerMessage = worker_messages.decode(frames[1][1:])
        match message:
            case WorkerHello():
                self._answer(frames[0], WorkerWelcome(protocol=PROTOCOL_VERSION, acked_seq=0))
            case Heartbeat():
                self.beats += 1
                self.count += message.fsync_count
                self.took_ns += message.fsync_ns
                self.order.append("beat")
            case Exiting():
                self.order.append("exiting")
                self._answer(frames[0], ExitAck())

    def _answer(self, identity: bytes, message: RootToWorker) -> None:
        assert self._socket.send([identity, KIND_MESSAGE + root_to_worker.encode(message)])

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@contextmanager
def connected(directory: Path, loop: asyncio.AbstractEventLoop, heartbeat_s: float) -> Iterator[tuple[Root, Link]]:
    order = birth(directory, heartbeat_s=heartbeat_s)
    root, link = Root(order.endpoint, loop), Link(loop, order.endpoint)
    try:
        link.open(order, session_key(SESSION))
        yield root, link
    finally:
        link.close()
        root.close()


async def until_beats(root: Root, beats: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while root.beats < beats:
            await asyncio.sleep(0.001)


def test_heartbeats_say_each_sync_once(tmp_path: Path) -> None:
    """Whatever the rhythm of syncs and beats, root's sum is the worker's total: nothing twice, nothing left out."""

    async def main() -> None:
        with connected(tmp_path, asyncio.get_running_loop(), 0.01) as (root, link):
            total = [0, 0]
            link.read_fsyncs = lambda: (total[0], total[1])
            await link.welcomed()
            for step in range(1, 8):
                total[0] += step
                total[1] += step * 1000
                await until_beats(root, root.beats + step % 3)
            await until_beats(root, root.beats + 2)
            assert (root.count, root.took_ns) == (28, 28_000)

    asyncio.run(main())


def test_a_session_shorter_than_a_heartbeat_says_it_too(tmp_path: Path) -> None:
    """The last word comes behind a heartbeat with what there was."""

    async def main() -> None:
        with connected(tmp_path, asyncio.get_running_loop(), 3600.0) as (root, link):
            link.read_fsyncs = lambda: (3, 3000)
            exiting = Exiting(cause=Cause(kind="completed"), last_seq=0)
            await link.say_farewell(exiting, timeout_s=DEADLINE_S)
            assert root.order == ["beat", "exiting"]
            assert (root.count, root.took_ns) == (3, 3000)

    asyncio.run(main())
