"""Whatever goes wrong in one session, the others do not notice: every scenario of the catalogue under a real daemon.

Each test commits a real fault beside sessions that stream, and asserts its cause, that it ended alone, and that
nothing of it is left. How late the siblings' events came meanwhile is reported (`record_property`, and a printed line
with -s) and never judged: a test's machine is busy with other tests. `python -m benchmarks faults` measures it.

    scenario                      here
    1  a provider hangs           provider-hangs; over the wire: the server falls silent
    2  a provider crashes         provider-cuts, -stammers, -refuses; over the wire: the server goes away
    3  a leak in one session      tool-leaks, worker-leaks
    4  an unhandled exception     tool-raises, provider-raises, and every crash of a process
    5  50 sessions and more       test_fifty_sessions_live_through_faults
    6  churn                      sessions-churn
    7  trees of subagents         child-flaps, spawned-crash
    8  a client is lost           clients-vanish

The ninth and tenth compare how two runtimes are developed and shipped; there is nothing to fail in them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml

from benchmarks.faults import CATALOGUE, FILE_BYTES, SETTINGS, Fault, commit
from benchmarks.siblings import Siblings, calm
from benchmarks.upheavals import UPHEAVALS, Upheaval
from ottoctl.sync import SyncOtto
from ottod.isolation import protected
from ottod.isolation.processes import survivors
from ottod.protocol.events import SessionExited
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import AgentSpec
from tests.daemon.harness import RealDaemon, files_below, running_daemon, wait_for
from tests.fakes.wire_server import WireServer

# A deaf or spinning process takes its time even on an idle machine, and this one may be busy.
pytestmark = pytest.mark.timeout(400)

SIBLINGS, RATE_HZ = 4, 20.0
CROWD, CROWD_RATE_HZ = 55, 4.0
CROWD_SETTINGS = {**SETTINGS, "ring": {"size_bytes": 16 * 1024 * 1024}}
"""A ring with more segments than sessions: with fewer, the oldest session's events leave it, its exit among them."""
LAST_EVENTS = 200
KEY = "sk-test-0123456789abcdef"

Report = Callable[[str, object], None]


class Stage(NamedTuple):
    """A daemon, a client of it, and the siblings that stream in it."""

    daemon: RealDaemon
    otto: SyncOtto
    siblings: Siblings
    calm_p99_ms: float


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One for all faults of the module: what one of them breaks, the next one finds broken."""
    with (
        running_daemon(SETTINGS) as daemon,
        daemon.client(timeout_s=120) as otto,
        Siblings(daemon, otto, count=SIBLINGS, rate_hz=RATE_HZ) as siblings,
    ):
        yield Stage(daemon, otto, siblings, siblings.window(*calm(1)).p99_ms)


def assert_unnoticed(stage: Stage, name: str, begun_ns: int, report: Report) -> None:
    """The siblings run on as they were, the subscriber has all of their events, root answers and starts others."""
    found = stage.siblings.window(begun_ns, time.monotonic_ns())
    print(f"\n{name}: siblings {found}; calm p99 {stage.calm_p99_ms:.1f} ms")
    report("siblings_p50_ms", found.p50_ms)
    report("siblings_p99_ms", found.p99_ms)
    report("siblings_max_ms", found.max_ms)
    report("siblings_calm_p99_ms", stage.calm_p99_ms)
    assert found.is_whole, found
    assert stage.siblings.disturbed() == []
    quick = stage.daemon.agent(stage.daemon.script("quick", {"text": "hello"}))
    assert stage.otto.run(spec=quick, task="go", cwd=stage.daemon.workdir).ok
    assert "Traceback" not in stage.daemon.log, stage.daemon.log[-4000:]
    status = stage.otto.status()
    assert status.counters["zygote_deaths"] == 0 and status.pid == stage.daemon.pid


def assert_nothing_left(daemon: RealDaemon, info: SessionInfo) -> None:
    """No process by marker or parent, no zombie, no temporary file, no core; and exactly one exit, the last event."""
    assert info.remaining_pids == () and survivors(info.session) == []
    wait_for("no zombie", lambda: not zombies(daemon.pid))
    tmp = Path(info.journal).parent / "tmp"
    wait_for("no temporary file", lambda: not tmp.exists())
    assert not [p for p in files_below(daemon.base) if p.name.startswith("core")]
    with daemon.client() as otto:
        start = max(info.first_offset, info.last_offset - LAST_EVENTS)
        tail = list(otto.session(info.session).events(from_offset=start, follow=False))
    exits = [item.event for item in tail if isinstance(item.event, SessionExited)]
    assert len(exits) == 1 and exits[0] is tail[-1].event
    assert exits[0].cause == info.cause and exits[0].remaining_pids == ()


def left_in_workdir(daemon: RealDaemon, before: set[str]) -> list[str]:
    """What is new in the working directory, besides scripts.

    A launcher that was killed leaves its placeholders: empty, marked, and removed by the next one (`protected`).
    """
    new = {daemon.workdir / name for name in set(os.listdir(daemon.workdir)) - before}
    return sorted(p.name for p in new if p.suffix != ".yml" and not is_placeholder(p))


def is_placeholder(path: Path) -> bool:
    """Whether it is an empty directory that Otto has marked as its own."""
    return path.is_dir() and not any(path.iterdir()) and protected.MARK in os.listxattr(path)


def zombies(root_pid: int) -> list[psutil.Process]:
    """Root's children that it has not reaped."""
    found = []
    for child in psutil.Process(root_pid).children():
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)
def test_a_fault_stays_where_it_happened(stage: Stage, fault: Fault, record_property: Report) -> None:
    """Its session ends alone, with the cause that it deserves, and leaves nothing."""
    before = set(os.listdir(stage.daemon.workdir))
    begun_ns = time.monotonic_ns()
    info = commit(fault, stage.daemon, stage.otto)
    assert info.cause is not None and str(info.cause) in fault.ends, info
    assert fault.says in info.result + info.cause.message, info
    assert_unnoticed(stage, fault.name, begun_ns, record_property)
    assert_nothing_left(stage.daemon, info)
    assert left_in_workdir(stage.daemon, before) == []


def test_a_memory_fault_names_cap_peak_and_tool(stage: Stage, record_property: Report) -> None:
    """The cause says what was allowed, what was used, and which tool call it was."""
    fault = next(fault for fault in CATALOGUE if fault.name == "tool-leaks")
    begun_ns = time.monotonic_ns()
    cause = commit(fault, stage.daemon, stage.otto).cause
    assert cause is not None
    assert cause.cap_bytes == fault.limits.memory_bytes
    assert 0.9 * cause.cap_bytes < cause.peak_bytes < 4 * cause.cap_bytes
    assert cause.last_tool == "shell"
    assert_unnoticed(stage, "tool-leaks, again", begun_ns, record_property)


def test_a_full_file_is_as_large_as_it_may_be(stage: Stage) -> None:
    """The write beyond `limits.file_bytes` fails; what was written until then stays, to the byte."""
    fault = next(fault for fault in CATALOGUE if fault.name == "tool-fills-disk")
    assert f"{FILE_BYTES} bytes" in commit(fault, stage.daemon, stage.otto).result


@pytest.mark.parametrize("upheaval", UPHEAVALS, ids=lambda upheaval: upheaval.name)
def test_an_upheaval_is_not_noticed(stage: Stage, upheaval: Upheaval, record_property: Report) -> None:
    """Clients that vanish, sessions that come and go, a tree with a child that flaps: each asserts its own end."""
    acts = upheaval.acts(stage.daemon, stage.otto)
    next(acts)
    begun_ns = time.monotonic_ns()
    assert next(acts, "over") == "over"
    assert_unnoticed(stage, upheaval.name, begun_ns, record_property)
    wait_for("only the siblings are left", lambda: len(stage.otto.list()) == SIBLINGS)


def test_fifty_sessions_live_through_faults(record_property: Report) -> None:
    """More than fifty sessions stream while one segfaults, one leaks and one freezes: all of them are whole."""
    faults = [f for f in CATALOGUE if f.name in ("worker-segfaults", "tool-leaks", "worker-freezes")]
    with (
        running_daemon(CROWD_SETTINGS) as daemon,
        daemon.client(timeout_s=120) as otto,
        Siblings(daemon, otto, count=CROWD, rate_hz=CROWD_RATE_HZ) as siblings,
    ):
        stage = Stage(daemon, otto, siblings, siblings.window(*calm(1)).p99_ms)
        begun_ns = time.monotonic_ns()
        for fault in faults:
            info = commit(fault, daemon, otto)
            assert info.cause is not None and str(info.cause) in fault.ends, info
            assert_nothing_left(daemon, info)
        assert_unnoticed(stage, f"{CROWD} sessions", begun_ns, record_property)


@pytest.mark.parametrize("way", ["falls silent", "goes away"])
def test_a_provider_fails_over_the_wire(way: str, tmp_path: Path, record_property: Report) -> None:
    """A real SDK's stream stops in the middle of an answer, or its server dies: a typed failure, and only there."""
    script = tmp_path / "script.yml"
    turn: dict[str, object] = {"text": "an answer in many pieces " * 40, "delay_ms": 50}
    if way == "falls silent":
        turn |= {"stall": 600, "after_chunks": 3}
    script.write_text(yaml.safe_dump({"turns": [turn]}))
    with ExitStack() as serving:
        server = serving.enter_context(WireServer(script, key=KEY))
        real = {"adapter": "anthropic", "base_url": server.url, "api_key_env": "TEST_PROVIDER_KEY"}
        patience = {"idle_timeout_s": 1, "max_retries": 1}
        settings = SETTINGS | {"providers": SETTINGS["providers"] | {"real": real | patience}}
        with (
            running_daemon(settings, env={"TEST_PROVIDER_KEY": KEY}) as daemon,
            daemon.client(timeout_s=120) as otto,
            Siblings(daemon, otto, count=SIBLINGS, rate_hz=RATE_HZ) as siblings,
        ):
            stage = Stage(daemon, otto, siblings, siblings.window(*calm(1)).p99_ms)
            begun_ns = time.monotonic_ns()
            session = otto.start(spec=AgentSpec(name="wired", model="real:m-1"), task="go", cwd=daemon.workdir)
            wait_for("its answer streams", lambda: session.info().last_seq > 5)
            if way == "goes away":
                serving.close()
            info = session.wait(timeout_s=120).info
            assert info.cause is not None and info.cause.kind == "failed", info
            assert info.cause.code in (("timeout",) if way == "falls silent" else ("connection", "cut")), info.cause
            assert_unnoticed(stage, f"a provider {way}", begun_ns, record_property)
            assert_nothing_left(daemon, info)
