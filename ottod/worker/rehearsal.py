"""Goes once through what a birth will do, while nobody waits for it.

After a fork every page that is written to for the first time is copied, and in CPython running a function writes to
it. A worker that has rehearsed its first moments has paid for that before a client waits for them.
"""

from __future__ import annotations

from setproctitle import setproctitle

from ottod.core.outbox import Outbox
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.birth import Birth, births
from ottod.protocol.events import SessionStarted, SessionStateChanged
from ottod.protocol.specs import AgentSpec, ModelTarget
from ottod.protocol.worker import WorkerHello, WorkerWelcome, root_to_worker, worker_messages
from ottod.worker.link import Link
from ottod.worker.session import SessionRunner

_SESSION = "s-0000000000"


def rehearse(link: Link) -> None:
    """Decodes a birth, makes a session of it, encodes its first events, and forgets them all."""
    birth = births.decode(
        births.encode(
            Birth(
                session=_SESSION,
                incarnation=1,
                secret=bytes(32),
                next_seq=2,
                endpoint="",
                spec=AgentSpec(name="rehearsal"),
                models=(ModelTarget(provider="none", adapter="scripted", model="none"),),
                cwd="/",
                session_dir="/",
            )
        )
    )
    SessionRunner(birth, link)
    outbox = Outbox(session_key=0, incarnation=1, next_seq=2, max_unacked_bytes=1)
    outbox.emit_alone(SessionStarted(pid=1, incarnation=1), 0)
    outbox.emit(SessionStateChanged(state="idle", previous="starting"), 0)
    outbox.take()
    outbox.ack(3)
    hello = WorkerHello(
        protocol=PROTOCOL_VERSION, session=_SESSION, incarnation=1, secret=bytes(32), pid=1, unacked_seq=2
    )
    worker_messages.encode(hello)
    root_to_worker.decode(root_to_worker.encode(WorkerWelcome(protocol=PROTOCOL_VERSION, acked_seq=1)))
    setproctitle("ottod: worker (unborn)")
