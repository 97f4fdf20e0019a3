"""The measurement of faults measures: it sees what is lost, late, doubled or disturbed; its faults are bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace

from benchmarks.disturbance import deeds, ending
from benchmarks.faults import CATALOGUE, MAX_LEAK_BYTES, SETTINGS, Fault, FaultError
from benchmarks.recovery import out_of_order
from benchmarks.report import CELLS
from benchmarks.sibling_reader import Arrivals
from benchmarks.siblings import SILENCE_S, Siblings, calm
from benchmarks.upheavals import UPHEAVALS
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.cause import CauseKind
from ottod.protocol.results import SessionInfo
from ottod.settings.script import load_script
from tests.daemon.harness import RealDaemon, running_daemon

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    """One that gives up on the silent as quickly as the benchmark's."""
    with running_daemon(SETTINGS) as started:
        yield started


def named(fault: Fault) -> str:
    return fault.name


def test_names_are_unique() -> None:
    """A row of the report is known by the name of its fault."""
    names = [name for name, _, _ in deeds()]
    assert len(set(names)) == len(names) == len(CATALOGUE) + len(UPHEAVALS)


@pytest.mark.parametrize("fault", CATALOGUE, ids=named)
def test_a_fault_is_bounded_and_can_be_told(fault: Fault, tmp_path: Path) -> None:
    """Every script is a valid one, every cause exists, every fault has caps, and no leak can fill the machine."""
    agent = fault.agent(tmp_path)
    script = load_script(agent.model.removeprefix("scripted:"))
    kinds = {end.partition("(")[0] for end in fault.ends}
    assert kinds and kinds <= set(get_args(CauseKind))
    assert agent.limits.memory_bytes and agent.limits.pids and agent.limits.file_bytes
    leaks = [turn.leak_bytes for turn in script.turns if turn.leak_bytes]
    # One that no machine can grant allocates nothing.
    assert all(leak > 1 << 60 or leak * agent.limits.max_steps <= MAX_LEAK_BYTES for leak in leaks)
    assert not script.loop or agent.limits.max_steps < 100


def test_arrivals_tell_lost_from_doubled() -> None:
    """A hole counts what is missing in it; what comes again counts once each time and moves nothing."""
    arrivals = Arrivals(first_seq=1)
    for seq in (1, 2, 5, 4, 5, 6, 10):
        arrivals.count(seq)
    assert (arrivals.lost, arrivals.doubled, arrivals.next_seq) == (2 + 3, 2, 11)


def test_siblings_that_are_well_are_called_so(daemon: RealDaemon) -> None:
    """All events of the window are counted, none is missing, and latencies are times that can be."""
    with daemon.client(timeout_s=60) as otto, Siblings(daemon, otto, count=3, rate_hz=50) as siblings:
        start_ns, end_ns = calm(1)
        found = siblings.window(start_ns, end_ns)
        assert found.is_whole and siblings.disturbed() == []
        expected = 3 * 50 * (end_ns - start_ns) / 1e9
        assert abs(found.measured - expected) <= 3
        assert 0 < found.p50_ms <= found.p99_ms <= found.max_ms
        assert start_ns <= found.first_of_last_ns <= time.monotonic_ns()
        ids = [session.id for session in siblings.sessions]
    with daemon.client() as otto:
        assert not set(ids) & {info.session for info in otto.list()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_siblings_that_are_hurt_are_noticed(daemon: RealDaemon, number: signal.Signals) -> None:
    """One is killed: it is disturbed, and silent. One is frozen for a second: its events are that late."""
    # Of one that is dead this is how long it is waited for; one that lives has time, however busy the machine is.
    silence_s = 5.0 if number == signal.SIGKILL else SILENCE_S
    with (
        daemon.client(timeout_s=60) as otto,
        Siblings(daemon, otto, count=2, rate_hz=50, silence_s=silence_s) as siblings,
    ):
        hurt = siblings.sessions[0]
        worker = identify(hurt.info().pid)
        start_ns = time.monotonic_ns()
        assert worker is not None and send_signal(worker, number)
        time.sleep(1)
        end_ns = time.monotonic_ns()
        if number == signal.SIGKILL:
            assert siblings.window(start_ns, end_ns).silent == (hurt.id,)
            (wrong,) = siblings.disturbed()
            assert hurt.id in wrong and "SIGKILL" in wrong
        else:
            send_signal(worker, signal.SIGCONT)
            found = siblings.window(start_ns, end_ns)
            assert found.is_whole and found.max_ms > 900 and siblings.disturbed() == []


def test_an_unexpected_end_is_told(daemon: RealDaemon) -> None:
    """A fault that does not end as it should says what was expected."""
    fault = next(fault for fault in CATALOGUE if fault.name == "provider-refuses")
    with daemon.client(timeout_s=60) as otto:
        assert ending(fault, daemon, otto) == "failed"
        with pytest.raises(FaultError, match="ended as failed, expected memory"):
            ending(replace(fault, ends=frozenset({"memory"})), daemon, otto)


def info(session: str, parent: str, age: int) -> SessionInfo:
    return SessionInfo(session=session, agent="a", model="m", state="ended", parent=parent, created_at_ns=age)


def test_order_of_a_stop_is_judged() -> None:
    """Right: children before parents, the newest first. Wrong: anything else, and whoever was not stopped at all."""
    infos = [info("top", "", 1), info("a", "top", 2), info("b", "top", 3), info("aa", "a", 4)]
    assert out_of_order(infos, ["b", "aa", "a", "top"]) == 0
    assert out_of_order(infos, ["aa", "a", "b", "top"]) == 1
    assert out_of_order(infos, ["b", "a", "aa", "top"]) == 1
    assert out_of_order(infos, ["b", "a", "top"]) == 1


@pytest.mark.long
def test_every_row_can_be_said() -> None:
    """The command runs the small cases, writes their rows, and says each in its table."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "recovery", "--quick", "--json", "/dev/stdout"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    ) as command:
        said, _ = command.communicate(timeout=250)
    assert command.returncode == 0, said
    found, end = json.JSONDecoder().raw_decode(said)
    assert [row["benchmark"] for row in found["rows"]] == ["resume", "rebirth", "tree"]
    assert all(row["load"] >= 0 for row in found["rows"])
    _, rebirth, tree = found["rows"]
    assert (rebirth["lost"], rebirth["doubled"], rebirth["gaps"], rebirth["silent"]) == (0, 0, 0, 0)
    assert rebirth["disturbed"] == []
    assert (tree["sessions"], tree["stopped"], tree["out_of_order"], tree["left"]) == (13, 13, 0, 0)
    assert len(said[end:].strip().splitlines()) == 2 + len(found["rows"])


def test_every_case_has_its_words() -> None:
    """Each kind of row has a line in the table."""
    assert set(CELLS) >= {"fault", "resume", "rebirth", "crowd", "tree"}
