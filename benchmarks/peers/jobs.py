"""The jobs, as every peer does them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from benchmarks.peers.rig import PeerError, PeerHub, PeerReader
from benchmarks.peers.roster import Peer
from benchmarks.peers.row import LEAK_BYTES, SPIN_MS, Row, load, saturation_row, sibling_rows, stream_row, times_row

LEAD_S = 0.5
"""Between the order to emit and the first scheduled event: the order has to reach all sessions."""

WARM_S = 0.5
"""Not measured at the beginning of an emission."""

SIBLINGS_S = 8.25
"""How long the siblings emit; the windows below are seconds since their first event."""

CALM, SPIN, LEAK, DIE = (0.5, 2.0), (2.25, 4.5), (4.75, 6.25), (6.5, 8.0)


def stream(peer: Peer, *, counts: list[int], rate_hz: int, seconds: float) -> list[Row]:
    """N sessions × R events/s for every N, in one hub that grows."""
    rows: list[Row] = []
    events = int((WARM_S * 2 + seconds) * rate_hz)
    with PeerHub(peer) as hub:
        live = 0
        for count in (n for n in sorted(counts) if n <= peer.max_sessions):
            hub.spawn(live, count - live)
            live = count
            with PeerReader(hub.socket_path) as reader:
                start_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
                hub.order(f"emit 0 {count} {start_ns} {rate_hz} {events}")
                window = start_ns + int(WARM_S * 1e9)
                # The subscriber takes silence for the end, so it is told of it when the end is near.
                _sleep_until(start_ns + int(events / rate_hz * 1e9))
                report = reader.report(count * events, [(window, window + int(seconds * 1e9))])
            rows.append(
                stream_row(peer.name, sessions=count, rate_hz=rate_hz, expected=count * events, report=report)
            )
    return rows


def _sleep_until(at_ns: int) -> None:
    time.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9))


def saturation(peer: Peer, *, counts: list[int], events: int) -> list[Row]:
    """`events` in all, as fast as the sessions can; few enough that no ring has to forget one."""
    rows: list[Row] = []
    for count in counts:
        with PeerHub(peer) as hub:
            hub.spawn(0, count)
            with PeerReader(hub.socket_path) as reader:
                hub.order(f"emit 0 {count} 0 0 {events // count}")
                expected = events // count * count
                report = reader.report(expected, [])
        rows.append(saturation_row(peer.name, sessions=count, expected=expected, report=report))
    return rows


def siblings(peer: Peer, *, sessions: int, rate_hz: int) -> list[Row]:
    """N sessions emit while three others, one after the other, spin, leak and die."""
    events = int(SIBLINGS_S * rate_hz)
    with PeerHub(peer) as hub:
        pids = hub.spawn(0, sessions + 3)
        with PeerReader(hub.socket_path) as reader:
            start_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
            hub.order(f"emit 0 {sessions} {start_ns} {rate_hz} {events}")
            for number, (begin_s, _) in enumerate((SPIN, LEAK, DIE), sessions):
                _sleep_until(start_ns + int(begin_s * 1e9))
                if begin_s == DIE[0]:
                    _kill(hub, number, pids[number])
                else:
                    hub.order(
                        f"fault {number} " + (f"spin {SPIN_MS}" if begin_s == SPIN[0] else f"leak {LEAK_BYTES}")
                    )
            _sleep_until(start_ns + int(SIBLINGS_S * 1e9))
            report = reader.report(
                sessions * events,
                [(start_ns + int(a * 1e9), start_ns + int(b * 1e9)) for a, b in (CALM, SPIN, LEAK, DIE)],
            )
    return sibling_rows(peer.name, sessions=sessions, rate_hz=rate_hz, expected=sessions * events, report=report)


def _kill(hub: PeerHub, number: int, pid: int) -> None:
    """A session's process is killed; where it has none, the session fails as its runtime lets it fail."""
    if hub.peer.is_one_process:
        hub.order(f"fault {number} die 0")
    else:
        os.kill(pid, signal.SIGKILL)


def life(peer: Peer, *, sessions: int, kills: int) -> list[Row]:
    """Spawn, idle memory, and what a kill costs."""
    spawns_ms: list[float] = []
    pids: dict[int, int] = {}
    with PeerHub(peer, sdk=True) as hub:
        # The first one pays for what all the others share: a fork server's imports, compiled code.
        pids |= hub.spawn(0, 1)
        before = memory_mib(hub.pid)
        for number in range(1, sessions + 1):
            begun_s = time.perf_counter()
            pids |= hub.spawn(number, 1)
            spawns_ms.append((time.perf_counter() - begun_s) * 1000)
        rows = [times_row("spawn: request → session ready", peer.name, spawns_ms), _memory_row(hub, pids, before)]
        replaced_ms = [_replace_ms(hub, number, pids) for number in range(1, kills + 1)]
        if not peer.is_one_process:
            return [*rows, times_row("kill -9 of a session's process → ready again", peer.name, replaced_ms)]
    return [
        *rows,
        times_row("an error ends a session → ready again", peer.name, replaced_ms),
        times_row("kill -9 of a session's process → ready again", peer.name, *_all_die(peer, sessions)),
    ]


def _replace_ms(hub: PeerHub, number: int, pids: dict[int, int]) -> float:
    begun_s = time.perf_counter()
    _kill(hub, number, pids[number])
    replaced, pid = hub.report("replaced")
    if replaced != number:
        raise PeerError(f"{hub.peer.name}: replaced session {replaced}, not {number}")
    pids[number] = pid
    return (time.perf_counter() - begun_s) * 1000


def _all_die(peer: Peer, sessions: int) -> tuple[list[float], str]:
    """The process of a session is everybody's: the time until a new hub has started all of them again."""
    with PeerHub(peer) as hub:
        pids = hub.spawn(0, sessions)
        begun_s = time.perf_counter()
        os.kill(pids[0], signal.SIGKILL)
        with PeerHub(peer) as again:
            again.spawn(0, sessions)
            took_ms = (time.perf_counter() - begun_s) * 1000
    return [took_ms], f"; **all {sessions} sessions died**, and the ring"


def _memory_row(hub: PeerHub, pids: dict[int, int], before: tuple[float, float]) -> Row:
    if hub.peer.is_one_process:
        # Its sessions have no memory of their own; this is by how much the process grew.
        private, share = (now - then for now, then in zip(memory_mib(hub.pid), before, strict=True))
        private, share = private / (len(pids) - 1), share / (len(pids) - 1)
    else:
        every = [memory_mib(pid) for pid in pids.values()]
        private, share = (sum(kind) / len(every) for kind in zip(*every, strict=True))
    return Row(
        measure="private memory of an idle session",
        system=hub.peer.name,
        value=round(private, 3),
        unit="MiB",
        detail=f"proportional share {share:.2f} MiB; {len(pids)} sessions",
        load=load(),
    )


def memory_mib(pid: int) -> tuple[float, float]:
    """(private, proportional share) of one process."""
    private = share = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.startswith("Private_"):
            private += int(rest.split()[0])
        elif name == "Pss":
            share += int(rest.split()[0])
    return private / 1024, share / 1024
