"""What it costs when processes die: a worker, root, or a hundred sessions at once on request; and what a crowd costs.

Everything is measured from outside, through the public client and /proc. Times are in milliseconds where the name
says so, in seconds otherwise.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.faults import SETTINGS
from benchmarks.measured import MeasuredDaemon
from benchmarks.siblings import Siblings, calm
from benchmarks.spawn import memory_of, silent_agent
from benchmarks.subscriber import summary
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import ProcessId, identify, is_alive
from ottod.protocol.events import SessionExited, SessionStarted
from ottod.protocol.requests import ListSessions
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import AgentSpec, Backoff, Group, Limits, Restart

START_S = 300.0
POLL_S = 0.002
LAG_WINDOW_S = 61.0
"""Root's loop lag is that of the last minute: after so long it holds nothing of how the sessions were started."""


class RecoveryError(Exception):
    """Something did not come back, or did not go; the message says what."""


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def conversations(otto: SyncOtto, agent: AgentSpec, daemon: PrivateDaemon, count: int) -> list[SyncSession]:
    """Sessions that wait for a word."""
    started = [otto.start(spec=agent, cwd=daemon.workdir, mode="conversation") for _ in range(count)]
    for session in started:
        session.wait(idle=True, timeout_s=START_S)
    return started


# ---------------------------------------------------------------- a worker


def measure_resume(runs: int = 50) -> dict[str, Any]:
    """kill -9 of a worker until its next incarnation is ready, without backoff, one session after the other."""
    times_ns: list[int] = []
    with MeasuredDaemon() as daemon, daemon.client(timeout_s=60) as otto:
        silent = silent_agent(daemon.workdir)
        restart = Restart(policy="permanent", backoff=Backoff(base_s=0, jitter=0))
        spec = AgentSpec(name=silent.name, model=silent.model, restart=restart)
        # A session of its own each time: what is measured is one restart, not the allowance of restarts.
        for session in conversations(otto, spec, daemon, runs):
            times_ns.append(_killed_until_ready(otto, session))
    figures = summary(times_ns)
    return {"benchmark": "resume", "runs": runs, **figures, "load": _load()}


def _killed_until_ready(otto: SyncOtto, session: SyncSession) -> int:
    pid = session.info().pid
    stream = session.events(otto.status().ring_head)
    begun_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    try:
        for item in stream:
            if isinstance(item.event, SessionStarted) and item.event.pid != pid:
                return time.monotonic_ns() - begun_ns
            if isinstance(item.event, SessionExited):
                break
    finally:
        stream.close()
    raise RecoveryError(f"{session.id} was not restarted")


# ---------------------------------------------------------------- root


def measure_rebirth(sessions: int = 50, *, rate_hz: float = 100.0, roots: int = 5) -> dict[str, Any]:
    """kill -9 of root under streaming sessions; the next root is started as soon as the death is known.

    Times count from the death: until a client has an answer, until every session has been heard by the new root,
    and until the outside subscriber has an event of every session that was emitted after the death.
    """
    answers, adoptions, deliveries = [], [], []
    with (
        MeasuredDaemon(SETTINGS) as daemon,
        daemon.client(timeout_s=60) as otto,
        Siblings(daemon, otto, count=sessions, rate_hz=rate_hz) as siblings,
    ):
        undisturbed = siblings.window(*calm(2))
        for _ in range(roots):
            died_ns = _kill_root(daemon)
            daemon.start()
            with daemon.client(timeout_s=60) as again:
                infos = _ours(again, siblings)
                answers.append(time.monotonic_ns() - died_ns)
                adoptions.append(_all_heard(again, siblings, infos, died_ns) - died_ns)
            found = siblings.window(died_ns, calm(2)[1])
            deliveries.append(found.first_of_last_ns - died_ns)
        disturbed = siblings.disturbed()
        load = _load()
    return {
        "benchmark": "rebirth",
        "sessions": sessions,
        "rate_hz": rate_hz,
        "roots": roots,
        "answer": summary(answers),
        "adopted": summary(adoptions),
        "delivered": summary(deliveries),
        "undisturbed_p99_ms": undisturbed.p99_ms,
        "lost": found.lost,
        "doubled": found.doubled,
        "gaps": found.gaps,
        "silent": len(found.silent),
        "disturbed": disturbed,
        "load": load,
    }


def _kill_root(daemon: PrivateDaemon) -> int:
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    return time.monotonic_ns()


def _ours(otto: SyncOtto, siblings: Siblings) -> dict[str, SessionInfo]:
    ids = {session.id for session in siblings.sessions}
    return {info.session: info for info in otto.list(limit=10_000) if info.session in ids}


def _all_heard(otto: SyncOtto, siblings: Siblings, first: dict[str, SessionInfo], died_ns: int) -> int:
    """When every session had said something to the new root; monotonic ns."""
    if len(first) != siblings.count:
        raise RecoveryError(f"the new root knows {len(first)} of {siblings.count} sessions")
    while True:
        now = _ours(otto, siblings)
        heard = [s for s in first if s in now and now[s].last_seq > first[s].last_seq]
        if len(heard) == siblings.count:
            return time.monotonic_ns()
        if time.monotonic_ns() - died_ns > START_S * 1e9:
            raise RecoveryError(f"only {len(heard)} of {siblings.count} sessions were adopted")
        time.sleep(POLL_S)


# ---------------------------------------------------------------- many


def measure_crowd(sessions: int, *, settle_s: float = LAG_WINDOW_S) -> dict[str, Any]:
    """Idle sessions: the time to start them, their memory, root's loop lag, and whether a request is still quick."""
    with MeasuredDaemon({"sessions": {"max_live": sessions + 10}}) as daemon, daemon.client(timeout_s=300) as otto:
        agent = silent_agent(daemon.workdir)
        begun_s = time.monotonic()
        started = conversations(otto, agent, daemon, sessions)
        start_s = time.monotonic() - begun_s
        time.sleep(settle_s)
        status = otto.status()
        pids = [info.pid for info in otto.list(limit=sessions + 10)]
        workers = [memory_of(pid) for pid in pids]
        root, zygote = memory_of(daemon.pid), memory_of(status.zygote_pid)
        asked = [_asked(session) for session in started[:100]]
        load = _load()
        begun_s = time.monotonic()
        otto.stop_daemon()
        assert daemon.process is not None
        daemon.process.wait(START_S)
        stop_s = time.monotonic() - begun_s
    return {
        "benchmark": "crowd",
        "sessions": sessions,
        "start_all_s": round(start_s, 2),
        "private_mib_per_session": round(sum(w["private"] for w in workers) / len(workers), 2),
        "pss_mib_per_session": round(sum(w["pss"] for w in workers) / len(workers), 2),
        "root_private_mib": round(root["private"], 1),
        "zygote_private_mib": round(zygote["private"], 1),
        "loop_lag_p99_ms": round(status.loop_lag_p99_ms, 2),
        "request": summary(asked),
        "stop_all_s": round(stop_s, 2),
        "load": load,
    }


def _asked(session: SyncSession) -> int:
    begun_ns = time.monotonic_ns()
    session.info()
    return time.monotonic_ns() - begun_ns


def measure_tree_stop(width: int = 9, branches: int = 10) -> dict[str, Any]:
    """The stop of a tree of 1 + width · (1 + branches) sessions: how long, in which order, and what is left."""
    with MeasuredDaemon() as daemon, daemon.client(timeout_s=120) as otto:
        silent = silent_agent(daemon.workdir)
        most = max(width, branches)
        spec = AgentSpec(
            name=silent.name, model=silent.model, limits=Limits(max_children=most), group=Group(max_restarts=0)
        )
        top = otto.start(spec=spec, cwd=daemon.workdir, mode="conversation")
        begun_s = time.monotonic()
        for _ in range(width):
            child = otto.start(spec=spec, cwd=daemon.workdir, mode="conversation", parent=top.id)
            for _ in range(branches):
                otto.start(spec=spec, cwd=daemon.workdir, mode="conversation", parent=child.id)
        infos = _settled(otto, top.id)
        start_s = time.monotonic() - begun_s
        processes = [identify(info.pid) for info in infos]
        begun_s = time.monotonic()
        stopped = top.stop(grace_s=60)
        took_s = time.monotonic() - begun_s
        left = [p for p in processes if isinstance(p, ProcessId) and is_alive(p)]
    return {
        "benchmark": "tree",
        "sessions": len(infos),
        "start_s": round(start_s, 2),
        "stop_s": round(took_s, 3),
        "stopped": len(stopped.stopped),
        "out_of_order": out_of_order(infos, stopped.stopped),
        "left": len(left) + len(stopped.remaining_pids),
        "load": _load(),
    }


def _settled(otto: SyncOtto, top: str) -> tuple[SessionInfo, ...]:
    """All sessions of the tree, once each waits for a word."""
    deadline_s = time.monotonic() + START_S
    while True:
        infos = otto.list_with(ListSessions(tree=top, limit=10_000)).sessions
        if all(info.state == "idle" for info in infos):
            return infos
        if time.monotonic() > deadline_s:
            raise RecoveryError("the tree did not come to rest")
        time.sleep(0.02)


def out_of_order(infos: Sequence[SessionInfo], stopped: Sequence[str]) -> int:
    """Sessions that ended after their parent, or before a sibling that was started later; those not stopped too."""
    place = {session: i for i, session in enumerate(stopped)}
    wrong = sum(info.session not in place for info in infos)
    by_age = sorted((i for i in infos if i.session in place), key=lambda i: i.created_at_ns)
    wrong += sum(place[i.session] > place[i.parent] for i in by_age if i.parent in place)
    last: dict[str, str] = {}
    for info in by_age:
        older = last.get(info.parent)
        if older is not None and place[older] < place[info.session]:
            wrong += 1
        last[info.parent] = info.session
    return wrong
