"""The peers that Otto is measured against do the job that they are measured with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from benchmarks.peers import jobs, otto
from benchmarks.peers.arrivals import Arrivals
from benchmarks.peers.rig import MARK, PeerHub, PeerReader, marked
from benchmarks.peers.ring import Ring
from benchmarks.peers.roster import Peer, missing, roster
from benchmarks.peers.row import OTTO, Row
from benchmarks.peers.table import markdown
from benchmarks.peers.wire import RECORD_BYTES, RING_BYTES, pack

ROOT = Path(__file__).parents[2]
PEERS = roster()
STREAMING = [peer for peer in PEERS if "stream" in peer.jobs]
LEFT_TIMEOUT_S = 30


def named(peer: Peer) -> str:
    return peer.name


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test of a peer leaves a process of it, under whatever parent."""
    monkeypatch.setenv("OTTO_PEERS_TEST", str(tmp_path))
    yield
    left = marked("OTTO_PEERS_TEST", str(tmp_path))
    assert not psutil.wait_procs(left, timeout=LEFT_TIMEOUT_S)[1]


def available(peer: Peer) -> Peer:
    """The peer, or a skipped test that says what it lacks."""
    if lack := missing(peer):
        pytest.skip(f"{peer.title} is not installed: it needs {lack}")
    return peer


@pytest.mark.long
@pytest.mark.parametrize("peer", STREAMING, ids=named)
def test_streams(peer: Peer) -> None:
    """Three sessions for a second: every event arrives once and in order, with both latencies."""
    (row,) = jobs.stream(available(peer), counts=[3], rate_hz=100, seconds=1)
    assert (row.raw["received"], row.raw["sessions_seen"]) == (3 * 200, 3)
    assert (row.raw["out_of_order"], row.raw["missing_in_order"], row.raw["lost_in_gaps"]) == (0, 0, 0)
    (window,) = row.raw["windows"]
    assert window["measured"] == 3 * 100
    # What is emitted before it is due, or read before it is emitted, was stamped with another clock.
    assert 0 < window["from_actual"]["p50_ms"] <= window["from_scheduled"]["p50_ms"]
    assert row.value == window["from_scheduled"]["p99_ms"]


@pytest.mark.real
def test_otto_does_the_same_job() -> None:
    """Otto's figures come from the same number of events, each once and in order."""
    (row,) = otto.stream(counts=[3], rate_hz=100, seconds=1)
    # How many they are depends on the ramp, which a busy machine makes longer; all sessions have the same number.
    assert row.raw["sessions_seen"] == 3
    assert row.raw["received"] % 3 == 0
    assert row.raw["received"] // 3 >= int((otto.RAMP_S + 1.5) * 100)
    assert "lost" not in row.detail
    assert (row.raw["out_of_order"], row.raw["missing_in_order"], row.raw["lost_in_gaps"]) == (0, 0, 0)
    # On a machine that is busy with other things a session may begin, or end, within the window.
    assert 0 < row.raw["windows"][0]["measured"] < 304
    assert row.value == row.raw["windows"][0]["from_scheduled"]["p99_ms"]


@pytest.mark.long
@pytest.mark.parametrize("peer", STREAMING, ids=named)
def test_replays(peer: Peer) -> None:
    """A subscriber that comes late gets what was emitted before it came, from the offset it names."""
    with PeerHub(available(peer)) as hub:
        hub.spawn(0, 2)
        with PeerReader(hub.socket_path) as live:
            hub.order("emit 0 2 0 0 1000")
            assert live.report(2000, [])["received"] == 2000
        with PeerReader(hub.socket_path, from_offset=0) as late:
            report = late.report(2000, [])
            assert (report["received"], report["sessions_seen"], report["out_of_order"]) == (2000, 2, 0)
        with PeerReader(hub.socket_path, from_offset=1900) as later:
            assert later.report(100, [])["received"] == 100


@pytest.mark.long
@pytest.mark.parametrize("peer", [peer for peer in STREAMING if peer.name != "ray"], ids=named)
def test_ring_is_bounded(peer: Peer) -> None:
    """A ring that has come round has lost the oldest events, and says how many."""
    events = RING_BYTES // RECORD_BYTES + 5000
    with PeerHub(available(peer)) as hub:
        hub.spawn(0, 1)
        with PeerReader(hub.socket_path) as live:
            hub.order(f"emit 0 1 0 0 {events}")
            report = live.report(events, [])
            assert report["received"] + report["lost_in_gaps"] == events
        with PeerReader(hub.socket_path, from_offset=0) as late:
            report = late.report(events, [])
        assert report["received"] + report["lost_in_gaps"] == events
        assert report["lost_in_gaps"] >= 5000
        assert report["out_of_order"] == 0


@pytest.mark.long
@pytest.mark.parametrize("peer", [peer for peer in PEERS if not peer.is_one_process], ids=named)
def test_replaces_a_killed_session(peer: Peer) -> None:
    """kill -9 of one session: the hub reports another process in its place, which does its work."""
    with PeerHub(available(peer)) as hub:
        pids = hub.spawn(0, 2)
        assert len({*pids.values(), hub.pid}) == 3
        os.kill(pids[1], signal.SIGKILL)
        number, pid = hub.report("replaced")
        assert number == 1
        assert pid not in pids.values()
        with PeerReader(hub.socket_path) as reader:
            hub.order("emit 0 2 0 0 100")
            report = reader.report(200, [])
            assert (report["received"], report["sessions_seen"]) == (200, 2)


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.is_one_process], ids=named)
def test_replaces_a_failed_session(peer: Peer) -> None:
    """Without processes, an error ends one session only, and another is in its place."""
    with PeerHub(available(peer)) as hub:
        assert set(hub.spawn(0, 2).values()) == {hub.pid}
        hub.order("fault 1 die 0")
        assert hub.report("replaced") == (1, hub.pid)
        with PeerReader(hub.socket_path) as reader:
            hub.order("emit 0 2 0 0 100")
            assert reader.report(200, [])["sessions_seen"] == 2


@pytest.mark.parametrize("peer", [peer for peer in PEERS if not peer.is_one_process], ids=named)
def test_ends_what_a_killed_hub_leaves(peer: Peer) -> None:
    """A hub that was killed cannot end its sessions; they end all the same, and its directory is gone."""
    with PeerHub(available(peer)) as hub:
        hub.spawn(0, 2)
        place = Path(hub.socket_path).parent
        os.kill(hub.pid, signal.SIGKILL)
    assert not marked(MARK, str(place))
    assert not place.exists()


def test_says_who_is_not_installed() -> None:
    """What a peer lacks is named; it is no failure, and nothing is measured in its place."""
    peer = msgspec.structs.replace(PEERS[0], needs=("no-such-program",))
    assert missing(peer) == "the program no-such-program"
    peer = msgspec.structs.replace(PEERS[0], command=(sys.executable,), needs=("python:no_such_module",))
    assert missing(peer) == "the Python package no_such_module"


@pytest.mark.real
def test_command_reports_who_is_not_installed(tmp_path: Path) -> None:
    """The command measures what is there and says what is not: here, with nothing on its PATH, a Node."""
    found = tmp_path / "found.json"
    words = f"--quick --only stream --sessions 1 --peers node --json {found}".split()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *words],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Not installed: Node, one process (it needs the program node)." in done.stdout
    assert json.loads(found.read_text())["not_installed"] == {"node": "the program node"}


def test_python_ring_is_a_list_that_forgets() -> None:
    """The ring gives back what a list would, as far as it reaches, at every cursor."""
    ring, model = Ring(7 * RECORD_BYTES), bytearray()
    for number, count in enumerate([1, 3, 2, 7, 5, 4]):
        records = b"".join(pack(number, i, 0, 0) for i in range(count))
        ring.append(memoryview(records))
        model += records
        assert (ring.head, ring.tail) == (len(model) // RECORD_BYTES, max(0, len(model) // RECORD_BYTES - 7))
        for cursor in range(ring.tail, ring.head):
            found = bytearray()
            while cursor + len(found) // RECORD_BYTES < ring.head:
                found += ring.read(cursor + len(found) // RECORD_BYTES)
            assert found == model[cursor * RECORD_BYTES :]


def test_arrivals_count_what_is_wrong() -> None:
    """Missing, doubled and overtaken events are told apart."""
    arrivals = Arrivals()
    for seq in (4, 5, 8, 7, 8, 8):
        arrivals.add("s", seq, scheduled_ns=seq, emitted_ns=seq, now_ns=seq + 1_000_000)
    report = arrivals.report([(5, 8)])
    assert (report["missing_in_order"], report["out_of_order"], report["received"]) == (2, 2, 6)
    assert (report["windows"][0]["measured"], report["windows"][0]["from_actual"]["p99_ms"]) == (2, 1.0)


def row(system: str, value: float | None, *, measure: str = "m", more: bool = False) -> Row:
    return Row(measure=measure, system=system, value=value, unit="u", better="more" if more else "less", load=1.0)


def test_table_says_who_is_ahead() -> None:
    """A peer that does better is marked, whichever way better is; figures that are close are even."""
    rows = [
        *(row(OTTO, value) for value in (9.0, 11.0)),
        *(row("fast", value) for value in (4.0, 6.0)),
        *(row("slow", value) for value in (100.0, 300.0)),
        row("same", 10.2),
        row(OTTO, 10.0, measure="t", more=True),
        row("fast", 20.0, measure="t", more=True),
        row(OTTO, None, measure="k"),
        row("fast", 1.0, measure="k"),
        row("fast", 1.0, measure="only peers"),
    ]
    lines = markdown(rows, {OTTO: "Otto", "fast": "Fast", "slow": "Slow", "same": "Same"}).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(c[0], c[1], c[4], c[5]) for c in cells] == [
        ("m", "Otto", "", ""),
        ("m", "Fast", "0.50", "**peer**"),
        ("m", "Slow", "20", "Otto"),
        ("m", "Same", "1.02", "even"),
        ("t", "Otto", "", ""),
        ("t", "Fast", "2.00", "**peer**"),
        ("k", "Otto", "", ""),
        ("k", "Fast", "", "**peer**: Otto could not"),
        ("only peers", "Fast", "", ""),
    ]
    assert cells[0][3] == "9.00 / 11.0"


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_one_process_has_one_fate() -> None:
    """The figure of a system that dies as a whole says so."""
    peer = next(peer for peer in PEERS if peer.name == "node")
    rows = jobs.life(peer, sessions=2, kills=1)
    killed = next(r for r in rows if r.measure.startswith("kill -9"))
    assert "all 2 sessions died" in killed.detail
