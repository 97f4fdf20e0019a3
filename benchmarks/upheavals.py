"""What goes wrong around sessions instead of in one: clients that vanish, sessions that come and go, flapping trees.

Each is a generator over a running daemon: what it does before its one `yield` is preparation, which nobody measures;
what it does after it is the upheaval. It raises FaultError when its own part did not end as it must. The siblings
(see `siblings`) are who must not notice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.faults import CATALOGUE, LIMITS, FaultError, wait_until
from benchmarks.spawn import silent_agent
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.events import Gap
from ottod.protocol.specs import AgentSpec, Backoff, Group, Permissions, Restart

CLIENTS = 6
FIRST_EVENTS, COME_BACK_EVENTS = 20, 100
CHURNED = 40
CHILDREN = 4
CRASHES = 3
PATIENCE_S = 90.0


class Upheaval(msgspec.Struct, frozen=True, kw_only=True):
    """A named one."""

    name: str
    what: str
    acts: Callable[[PrivateDaemon, SyncOtto], Generator[None, None, None]]


def lose_clients(daemon: PrivateDaemon, otto: SyncOtto) -> Generator[None, None, None]:
    """Subscribers are killed in the middle of the stream, others are frozen and then killed.

    One that was killed comes back with its cursor: it must find what it missed, and only that.
    """
    clients = [_subscriber(daemon) for _ in range(CLIENTS)]
    try:
        seen = [[_first(client) for _ in range(FIRST_EVENTS)] for client in clients]
        yield
        for i, client in enumerate(clients):
            client.send_signal(signal.SIGSTOP if i % 2 else signal.SIGKILL)
        _come_back(daemon, clients[0], seen[0])
    finally:
        for client in clients:
            client.kill()
            client.wait()
            if client.stdout is not None:
                client.stdout.close()


def _subscriber(daemon: PrivateDaemon) -> subprocess.Popen[str]:
    """A client that follows all events and prints their offsets; nobody reads them, so in the end it stalls."""
    program = (
        "import sys\nfrom ottoctl import SyncOtto\n"
        "with SyncOtto.connect(sys.argv[1], timeout_s=60) as otto:\n"
        "  for item in otto.events(): print(item.offset, flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, daemon.endpoint],
        env={**os.environ, **daemon.env},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _first(client: subprocess.Popen[str]) -> int:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise FaultError("a subscriber did not come up")
    return int(line)


def _come_back(daemon: PrivateDaemon, killed: subprocess.Popen[str], seen: list[int]) -> None:
    """What the killed one had printed, and what its successor gets from there on, are all offsets without a hole."""
    assert killed.stdout is not None
    # The last line may be torn.
    seen = seen + [int(line) for line in killed.stdout.read().split("\n")[:-1]]
    end = seen[-1] + COME_BACK_EVENTS
    with daemon.client(timeout_s=60) as otto:
        for item in otto.events(from_offset=seen[-1] + 1):
            if isinstance(item.event, Gap):
                raise FaultError(f"a gap after coming back: {item.event}")
            seen.append(item.offset)
            if item.offset >= end:
                break
    if any(b != a + 1 for a, b in pairwise(seen)):
        raise FaultError("a reader that came back with its cursor missed events, or saw some twice")


def churn(daemon: PrivateDaemon, otto: SyncOtto) -> Generator[None, None, None]:
    """Sessions are started and killed as fast as one client can; each ends with proof."""
    agent = silent_agent(daemon.workdir)
    yield
    for _ in range(CHURNED):
        stopped = otto.start(spec=agent, task="go", cwd=daemon.workdir, mode="conversation").kill()
        if stopped.remaining_pids or stopped.cause.kind != "cancelled":
            raise FaultError(f"a session of the churn ended as {stopped.cause}, left {stopped.remaining_pids}")


def flapping_child(daemon: PrivateDaemon, otto: SyncOtto) -> Generator[None, None, None]:
    """A tree in which one child crashes again and again and comes back each time, and another has a leaking tool."""
    spec = _streamer(daemon.workdir)
    top = otto.start(spec=spec, task="go", cwd=daemon.workdir)
    children = [otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=top.id) for _ in range(CHILDREN)]
    leak = next(fault for fault in CATALOGUE if fault.name == "tool-leaks")
    flapping, others = children[0], children[1:]
    yield
    leaking = otto.start(spec=leak.agent(daemon.workdir), task="go", cwd=daemon.workdir, parent=top.id)
    for crash in range(CRASHES):
        wait_until("the child runs", lambda n=crash: _runs(flapping.info(), incarnation=n + 1))  # type: ignore[misc]
        worker = identify(flapping.info().pid)
        if worker is not None:
            send_signal(worker, signal.SIGKILL)
    wait_until("the child is back", lambda: _runs(flapping.info(), incarnation=CRASHES + 1))
    cause = leaking.wait(timeout_s=PATIENCE_S).cause
    if cause.kind != "memory":
        raise FaultError(f"the leaking child ended as {cause}")
    touched = [i for s in (top, *others) if not _runs(i := s.info(), incarnation=1)]
    if touched:
        raise FaultError(f"a crash reached others of its tree: {touched[0].state}, {touched[0].cause}")
    stopped = top.stop(grace_s=5)
    if stopped.remaining_pids or set(stopped.stopped) != {top.id, *(c.id for c in children)}:
        raise FaultError(f"the tree was not stopped whole: {stopped}")


def crash_of_a_spawned_agent(daemon: PrivateDaemon, otto: SyncOtto) -> Generator[None, None, None]:
    """An agent starts three others by its own tool: one segfaults, one fails, one works; it hears of all three."""
    team = daemon.workdir / "team"
    agents = team / ".otto" / "agents"
    agents.mkdir(parents=True, exist_ok=True)
    turns: dict[str, dict[str, Any]] = {
        "steady": {"text": "all is well"},
        "crashing": {"text": "never said to its end, by far", "crash": "SIGSEGV", "after_chunks": 1},
        "failing": {"error": {"status": 400}},
    }
    for name, turn in turns.items():
        script = team / f"{name}.yml"
        script.write_text(json.dumps({"turns": [turn]}))
        (agents / f"{name}.yml").write_text(json.dumps({"name": name, "model": f"scripted:{script}"}))
    calls = [{"name": "spawn_agent", "arguments": {"agent": name, "task": "go"}} for name in turns]
    script = team / "lead.yml"
    script.write_text(json.dumps({"turns": [{"tools": calls}, {"text": "I heard: ${last_tool_result}"}]}))
    permissions = Permissions(preset="autonomous")
    lead = AgentSpec(name="lead", model=f"scripted:{script}", tools=("spawn_agent",), permissions=permissions)
    yield
    result = otto.start(spec=lead, task="go", cwd=team).wait(timeout_s=PATIENCE_S)
    missing = [
        word for word in ("all is well", "crashed(SIGSEGV)", "agent failing: failed") if word not in result.result
    ]
    if missing or not result.ok:
        raise FaultError(f"the lead ended as {result.cause} and did not hear {missing}: {result.result!r}")


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
    Upheaval(name="clients-vanish", what=f"{CLIENTS} subscribers are killed or frozen", acts=lose_clients),
    Upheaval(name="sessions-churn", what=f"{CHURNED} sessions are started and killed", acts=churn),
    Upheaval(name="child-flaps", what="one child of a tree crashes, another leaks", acts=flapping_child),
    Upheaval(name="spawned-crash", what="agents started by an agent crash and fail", acts=crash_of_a_spawned_agent),
)
