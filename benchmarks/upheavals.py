"""What goes wrong around sessions instead of in one: clients that vanish, sessions that come and go, flapping trees.

Each is a function of a running daemon that returns when the upheaval is over and raises UpheavalError when its own
part of it did not end as it must. The siblings (see `siblings`) are who must not notice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.faults import CATALOGUE, LIMITS
from benchmarks.spawn import silent_agent
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.events import Gap
from ottod.protocol.specs import AgentSpec, Backoff, Group, Restart

CLIENTS = 6
CHURNED = 20
CHILDREN = 4
CRASHES = 3
PATIENCE_S = 90.0


class UpheavalError(Exception):
    """An upheaval did not end as it must; the message says what was seen."""


class Upheaval(msgspec.Struct, frozen=True, kw_only=True):
    """A named one."""

    name: str
    what: str
    happen: Callable[[PrivateDaemon, SyncOtto], None]


def wait_until(what: str, probe: Callable[[], bool]) -> None:
    """Polls. Raises UpheavalError."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not probe():
        if time.monotonic() > deadline_s:
            raise UpheavalError(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(0.01)


def lose_clients(daemon: PrivateDaemon, otto: SyncOtto) -> None:
    """Subscribers are killed in the middle of the stream, and others are frozen and then killed.

    Another reader breaks off as well, and comes back with its cursor: it must find what it missed, and only that.
    """
    clients = [_subscriber(daemon) for _ in range(CLIENTS)]
    try:
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        for i, client in enumerate(clients):
            client.send_signal(signal.SIGKILL if i % 2 else signal.SIGSTOP)
        _break_off_and_come_back(daemon, otto)
    finally:
        for client in clients:
            client.kill()
            client.wait()
            if client.stdout is not None:
                client.stdout.close()


def _subscriber(daemon: PrivateDaemon) -> subprocess.Popen[bytes]:
    """A client that follows all events and prints them, as `ottoctl logs` does."""
    program = (
        "import sys\nfrom ottoctl import SyncOtto\n"
        "with SyncOtto.connect(sys.argv[1], timeout_s=60) as otto:\n"
        "  for event in otto.events(): print(event.offset, file=sys.stdout if event.seq % 500 == 0 else sys.stderr)\n"
    )
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.stdout.write('up\\n'); sys.stdout.flush()\n" + program,
            daemon.endpoint,
        ],
        env={**os.environ, **daemon.env},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _break_off_and_come_back(daemon: PrivateDaemon, otto: SyncOtto) -> None:
    head = otto.status().ring_head
    offsets: list[int] = []
    for _ in range(3):
        # A connection that is dropped without a word, in the middle of a stream, three times.
        with daemon.client(timeout_s=60) as reader:
            for item in reader.events(from_offset=offsets[-1] + 1 if offsets else head):
                if isinstance(item.event, Gap):
                    raise UpheavalError(f"a gap after coming back: {item.event}")
                offsets.append(item.offset)
                if len(offsets) % 50 == 0:
                    break
    if any(b != a + 1 for a, b in pairwise(offsets)):
        raise UpheavalError("a reader that came back with its cursor missed events, or saw some twice")


def churn(daemon: PrivateDaemon, otto: SyncOtto) -> None:
    """Sessions are started and killed as fast as one client can; each ends with proof."""
    agent = silent_agent(daemon.workdir)
    for _ in range(CHURNED):
        stopped = otto.start(spec=agent, task="go", cwd=daemon.workdir, mode="conversation").kill()
        if stopped.remaining_pids or stopped.cause.kind != "cancelled":
            raise UpheavalError(f"a session of the churn ended as {stopped.cause}, left {stopped.remaining_pids}")


def flapping_child(daemon: PrivateDaemon, otto: SyncOtto) -> None:
    """A tree in which one child crashes again and again and comes back each time, and another has a leaking tool."""
    spec = _streamer(daemon.workdir)
    top = otto.start(spec=spec, task="go", cwd=daemon.workdir)
    children = [otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=top.id) for _ in range(CHILDREN)]
    leak = next(fault for fault in CATALOGUE if fault.name == "tool-leaks")
    leaking = otto.start(spec=leak.agent(daemon.workdir), task="go", cwd=daemon.workdir, parent=top.id)
    flapping, others = children[0], children[1:]
    for crash in range(CRASHES):
        wait_until("the child runs", lambda n=crash: _runs(flapping.info(), incarnation=n + 1))  # type: ignore[misc]
        worker = identify(flapping.info().pid)
        if worker is not None:
            send_signal(worker, signal.SIGKILL)
    wait_until("the child is back", lambda: _runs(flapping.info(), incarnation=CRASHES + 1))
    cause = leaking.wait(timeout_s=PATIENCE_S).cause
    if cause.kind != "memory":
        raise UpheavalError(f"the leaking child ended as {cause}")
    touched = [i for s in (top, *others) if not _runs(i := s.info(), incarnation=1)]
    if touched:
        raise UpheavalError(f"a crash reached others of its tree: {touched[0].state}, {touched[0].cause}")
    stopped = top.stop(grace_s=5)
    if stopped.remaining_pids or set(stopped.stopped) != {top.id, *(c.id for c in children)}:
        raise UpheavalError(f"the tree was not stopped whole: {stopped}")


def _runs(info: Any, *, incarnation: int) -> bool:
    return bool(info.state == "running" and info.incarnation == incarnation and info.pid)


def _streamer(workdir: Path) -> AgentSpec:
    script = workdir / "member.yml"
    script.write_text(json.dumps({"turns": [{"stream": {"events": 100_000, "rate_hz": 20}}]}))
    return AgentSpec(
        name="member",
        model=f"scripted:{script}",
        limits=LIMITS,
        restart=Restart(policy="transient", backoff=Backoff(base_s=0)),
        group=Group(max_restarts=CRASHES + 1),
    )


UPHEAVALS = (
    Upheaval(name="clients-vanish", what=f"{CLIENTS} subscribers are killed or frozen", happen=lose_clients),
    Upheaval(name="sessions-churn", what=f"{CHURNED} sessions are started and killed", happen=churn),
    Upheaval(name="child-flaps", what="one child of a tree crashes, another leaks", happen=flapping_child),
)
