"""Root begins among groups that it knows nothing of: it ends what nobody can miss, and gives the others time.

Of those that it knows, it knows what was counted before.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Container, Coroutine, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from ottod.ids import session_id
from ottod.isolation.caps import Caps, Reading
from ottod.isolation.processes import ProcessId, identify
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import AgentSpec
from ottod.root.adoption import SPARED_S, Adoption
from ottod.root.burials import Burials
from ottod.root.plan import SessionPlan
from ottod.root.reaper import Exit
from ottod.root.session_table import Session
from ottod.storage.database_rows import Incarnation as IncarnationRow
from ottod.storage.schema import DatabaseRecovery


class Leaves:
    """Control groups of four sessions."""

    def __init__(self) -> None:
        self.names = ["s-live", "s-damaged", "s-lost", "s-left"]
        self.swept: list[str] = []

    def strangers(self, known: Container[str]) -> list[str]:
        return [name for name in self.names if name not in known]

    def sweep(self, sessions: Iterable[str]) -> list[str]:
        ended = list(sessions)
        self.swept += ended
        return ended


class Loop:
    """What is due later."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.due.append((delay_s, call))


class Books:
    """A database that has one row which cannot be read."""

    def __init__(self, recovery: DatabaseRecovery) -> None:
        self.recovery = recovery

    async def unreadable_sessions(self) -> list[str]:
        return ["s-damaged"]


@pytest.mark.parametrize(
    ("recovery", "age_s", "spared"),
    [
        (DatabaseRecovery(), None, ["s-damaged"]),
        (DatabaseRecovery(moved_aside="otto.db.broken-1", damage="x"), None, ["s-damaged", "s-lost", "s-left"]),
        (DatabaseRecovery(), 30, ["s-damaged", "s-lost", "s-left"]),
        (DatabaseRecovery(), 91, ["s-damaged"]),
    ],
    ids=["a damaged row", "a damaged database", "a root later in that time", "a root after that time"],
)
def test_whose_record_is_damaged_is_not_swept_at_once(
    recovery: DatabaseRecovery, age_s: int | None, spared: list[str]
) -> None:
    """No answer is not "no sessions". What has not gone by itself when its time is over is ended all the same."""
    if age_s is not None:
        recovery = replace(recovery, begun_anew_at_ns=time.time_ns() - age_s * 10**9)
    leaves, loop, said = Leaves(), Loop(), list[str]()
    tasks: list[Coroutine[Any, Any, None]] = []

    async def in_thread(function: Callable[..., object], *arguments: object) -> object:
        return function(*arguments)

    context: Any = SimpleNamespace(
        loop=loop,
        table=SimpleNamespace(live=[SimpleNamespace(id="s-live")]),
        database=Books(recovery),
        enclosures=leaves,
        in_thread=in_thread,
        spawn=tasks.append,
        log=lambda message, **ids: said.append(f"{ids.get('session', '')} {message}"),
    )
    nobody: Any = None
    adoption = Adoption(context, births=nobody, burials=nobody, groups=nobody, stops=nobody, reaper=nobody)
    asyncio.run(adoption._sweep())
    assert leaves.swept == [name for name in leaves.names[1:] if name not in spared]
    assert any(", ".join(spared) in line for line in said)
    assert any(line.startswith("s-damaged what is on record") for line in said)
    ((delay_s, call),) = loop.due
    assert delay_s == SPARED_S and SPARED_S > 30
    call()
    (task,) = tasks
    asyncio.run(task)
    assert sorted(leaves.swept) == sorted(leaves.names[1:])


@pytest.mark.parametrize(
    ("is_alive", "later_kills", "kind"),
    [(True, 0, "crashed"), (True, 1, "memory"), (False, 0, "memory")],
    ids=["killed by somebody", "killed for memory again", "killed for memory before root looked"],
)
def test_a_kill_for_memory_under_an_earlier_root_is_not_the_adopted_workers(
    is_alive: bool, later_kills: int, kind: str
) -> None:
    """Its group counts all since it was made, and who is killed for memory takes the whole group along."""
    own = identify(os.getpid())
    assert own is not None
    worker = own if is_alive else ProcessId(own.pid, own.start_ticks + 1)
    kills = 1

    async def in_thread(function: Callable[..., object], *arguments: object) -> object:
        return function(*arguments)

    async def main() -> str:
        nonlocal kills
        leaf = SimpleNamespace(kind="cgroup", read=lambda: Reading(memory_kills=kills, cap_bytes=1 << 20))
        context: Any = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            in_thread=in_thread,
            enclosures=SimpleNamespace(reopen=lambda session, caps: leaf),
        )
        births: Any = SimpleNamespace(caps=lambda plan: Caps())
        reaper: Any = SimpleNamespace(adopt=lambda process, on_exit: None)
        nobody: Any = None
        adoption = Adoption(context, births=births, burials=nobody, groups=nobody, stops=nobody, reaper=reaper)
        info = SessionInfo(session=session_id(1), agent="a", model="", state="running", incarnation=2)
        session = Session(info, SessionPlan(spec=AgentSpec(name="a"), models=(), cwd="/"))
        row = IncarnationRow(
            session=session.id,
            incarnation=2,
            pid=worker.pid,
            start_time_ticks=worker.start_ticks,
            started_at_ns=1,
        )
        assert await adoption._adopt(session, row)
        assert session.enclosure is leaf and session.incarnation is not None  # type: ignore[comparison-overlap]
        kills += later_kills
        session.reading = leaf.read()
        exit_ = Exit(None)
        exit_.signal = "SIGKILL"
        return Burials(context, nobody, nobody)._cause(session, session.incarnation, exit_).kind

    assert asyncio.run(main()) == kind
