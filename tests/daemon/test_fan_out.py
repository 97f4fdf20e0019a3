"""Many at once: what waits for room is seen to wait, nothing grows in root, and who floods slows nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psutil
import pytest

from ottoctl.sync import SyncOtto, SyncSession
from ottod.protocol import journal as j
from ottod.protocol.events import BacklogChanged, ContentDelta, MessageReceived, ToolFailed
from ottod.protocol.requests import ListSessions
from ottod.protocol.results import Backlog, SessionInfo
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.workshop import agent, block, ottoctl, paths, start, step, workflow

GROWTH_BYTES = 24 * 1024 * 1024
"""Far less than what a hundred sessions would leave if anything of them stayed."""
GROWTH_FDS = 2
MAX_THREADS = 20
"""Root's pool of threads has a bound, whatever lives."""


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """One whose ring has room for the first events of a hundred sessions, and for the newest."""
    with running_daemon({"ring": {"size_bytes": 64 * 1024 * 1024}}) as started:
        yield started


class Footprint(NamedTuple):
    """What root holds. Pages of mapped files, of the ring above all, are the kernel's: they are not counted."""

    fds: int
    threads: int
    own_bytes: int


def footprint(daemon: RealDaemon) -> Footprint:
    root = psutil.Process(daemon.pid)
    memory = root.memory_info()
    return Footprint(root.num_fds(), root.num_threads(), memory.rss - memory.shared)


def check_growth(daemon: RealDaemon, before: Footprint) -> None:
    """Root has let go of everything that it held for sessions."""
    wait_for("root has let go", lambda: footprint(daemon).fds <= before.fds + GROWTH_FDS)
    now = footprint(daemon)
    assert now.threads < before.threads + MAX_THREADS
    assert now.own_bytes < before.own_bytes + GROWTH_BYTES


def until_file(name: str) -> dict[str, object]:
    """A call that waits for a file of the working directory."""
    return call("shell", command=f"while [ ! -e {name} ]; do sleep 0.05; done")


def call(tool: str, **arguments: object) -> dict[str, object]:
    return {"name": tool, "arguments": arguments}


def live(otto: SyncOtto, top: SyncSession) -> list[SessionInfo]:
    return list(otto.list_with(ListSessions(tree=top.id)).sessions)


def backlogs(session: SyncSession) -> list[BacklogChanged]:
    """What was told of what waits, in order."""
    return [e.event for e in session.events(follow=False) if isinstance(e.event, BacklogChanged)]


def waiting(otto: SyncOtto, kind: str) -> float:
    """As the metrics have it."""
    (family,) = [f for f in otto.metrics() if f.name == "otto_backlog"]
    return next(s.value for s in family.samples if s.labels["kind"] == kind)


def busiest(session: SyncSession) -> tuple[int, int]:
    """How many steps a workflow began, and how many ran at once at most, as its journal says."""
    running = most = begun = 0
    for entry in session.journal():
        running += isinstance(entry, j.StepBegun) - isinstance(entry, j.StepEnded)
        begun += isinstance(entry, j.StepBegun)
        most = max(most, running)
    return begun, most


def test_of_a_hundred_steps_ten_run_and_ninety_are_seen_to_wait(daemon: RealDaemon) -> None:
    """The cap holds at every moment, each step is done once, all who ask are told what waits, and root lets go."""
    agent(daemon, "holds", {"tools": [until_file("go")]}, {"text": "done"}, tools=["shell"])
    agent(daemon, "one", {"text": "done"})
    steps = [step(f"s{n}", "holds" if n < 10 else "one") for n in range(100)]
    spec = workflow("sequential", block("many", "parallel", *steps, concurrency=10), concurrency=10)
    with daemon.client(timeout_s=120) as otto:
        assert start(daemon, otto, workflow("parallel", *[step(f"w{n}", "one") for n in range(10)])).wait().ok
        before = footprint(daemon)
        session = start(daemon, otto, spec)
        wait_for("ten run", lambda: sum(i.current_tool == "shell" for i in live(otto, session)) == 10)
        assert session.info().backlog == Backlog(running=10, waiting=90, limit=10)
        assert len(live(otto, session)) == 11 and waiting(otto, "steps") == 90
        status = ottoctl(daemon, "workflow", "status", session.id)
        assert "10 run, 90 wait for room" in status.stdout.splitlines()[0]
        assert "10 run, 90 wait for room" in ottoctl(daemon, "tree", session.id).stdout
        (daemon.workdir / "go").touch()
        result = session.wait(timeout_s=300)
        assert result.ok, (result.cause, result.result)
        assert busiest(session) == (100, 10)
        assert len(paths(session)) == len(set(paths(session))) == 100
        told = backlogs(session)
        assert told[0].waiting == 90 and told[-1].waiting == 0 and all(t.running <= 10 for t in told)
        left = [t.waiting for t in told]
        assert left == sorted(left, reverse=True), "who waits only becomes fewer"
        assert session.info().backlog is None and waiting(otto, "steps") == 0
        assert not otto.list()
        check_growth(daemon, before)


def test_calls_that_wait_for_room_are_seen_too(daemon: RealDaemon) -> None:
    """An agent's own cap on calls at once; and what waited is forgotten when its process is lost."""
    calls = [until_file("go") for _ in range(5)]
    limits = {"max_parallel_tools": 2}
    agent(daemon, "busy", {"tools": calls}, {"text": "done"}, tools=["shell"], limits=limits)
    with daemon.client() as otto:
        session = otto.start("busy", "go", cwd=daemon.workdir)
        wait_for("two run", lambda: session.info().backlog)
        assert session.info().backlog == Backlog(running=2, waiting=3, limit=2) and waiting(otto, "calls") == 3
        (daemon.workdir / "go").touch()
        assert session.wait(timeout_s=60).ok
        assert [t.waiting for t in backlogs(session)] == [3, 2, 1, 0]
        assert session.info().backlog is None


def test_one_child_that_floods_slows_nobody(daemon: RealDaemon) -> None:
    """It says a hundred things at once and prints without pause; its siblings' events and messages are all there.

    What is beyond the rate of one sender is refused, not kept; what waits for the receiver has a bound; and the
    siblings are done while it still floods.
    """
    flood = [call("send_message", to="parent", text=f"noise {n} " + "x" * 1000) for n in range(100)]
    agent(
        daemon,
        "noisy",
        {"text": "noise" * 20_000, "chunk": 5, "tools": flood},
        {"text": "said"},
        tools=["send_message"],
        limits={"max_parallel_tools": 100},
    )
    agent(
        daemon,
        "calm",
        {"text": "calm!" * 100, "chunk": 5, "delay_ms": 5, "tools": [call("send_message", to="parent", text="calm")]},
        {"text": "said"},
        tools=["send_message"],
    )
    begun = [call("spawn_agent", agent=name, task="go", wait=False) for name in ("noisy", *["calm"] * 4)]
    agent(
        daemon,
        "lead",
        {"tools": begun},
        {"tools": [until_file("on")]},
        *[{"text": "heard"}] * 60,
        tools=["spawn_agent", "shell"],
    )
    with daemon.client(timeout_s=120) as otto:
        lead = otto.start("lead", "go", cwd=daemon.workdir)
        wait_for("all are there", lambda: len(live(otto, lead)) == 6)
        team = {i.name: otto.session(i.session) for i in live(otto, lead)}
        calm = [session for name, session in team.items() if name.startswith("calm")]
        ends = [session.wait(timeout_s=60) for session in calm]
        assert all(end.ok for end in ends), [(end.cause, end.result) for end in ends]
        noisy = team["noisy"]
        assert noisy.info().cause is None, "it still waits for room"
        for session in calm:
            stream = [e.event for e in session.events(follow=False)]
            assert sum(isinstance(e, ContentDelta) and e.text == "calm!" for e in stream) == 100

        def heard(of: SyncSession) -> int:
            received = [e.event for e in lead.events(follow=False) if isinstance(e.event, MessageReceived)]
            return sum(e.sender == of.id and "has ended" not in e.text for e in received)

        assert all(heard(session) >= 1 for session in calm)
        refused = wait_for(
            "what is too much is refused",
            lambda: [e.event for e in noisy.events(follow=False) if isinstance(e.event, ToolFailed)],
        )
        # What would have to wait for longer than half a minute at two a second.
        assert {e.failure.code for e in refused} == {"rate_limited"} and len(refused) <= 40
        assert noisy.info().cause is None and lead.info().incarnation == 1
        stopped = lead.stop(grace_s=30)
        assert not stopped.remaining_pids
        assert heard(noisy) <= 20, "no more than one sender's share waits"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_grows_in_root_over_many_fan_outs(daemon: RealDaemon) -> None:
    """Five hundred steps after the first hundred: as many files, threads and, about, as much memory as before."""
    agent(daemon, "one", {"text": "done"})
    spec = workflow("parallel", *[step(f"s{n}", "one") for n in range(100)], concurrency=10)
    with daemon.client(timeout_s=300) as otto:
        assert start(daemon, otto, spec).wait(timeout_s=300).ok
        before = footprint(daemon)
        for _ in range(5):
            session = start(daemon, otto, spec)
            assert session.wait(timeout_s=300).ok and busiest(session) == (100, 10)
            check_growth(daemon, before)
