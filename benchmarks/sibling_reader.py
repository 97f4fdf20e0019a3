"""The outside subscriber of the siblings: a process of its own that can be asked about any stretch of time at once.

    python -m benchmarks.sibling_reader ENDPOINT FROM_OFFSET SILENCE_S

It prints `ready` once it is connected and reads everything from that offset on, on a thread. Each line
`START END SESSION…` on its input (monotonic nanoseconds) asks for the events of these sessions that were *scheduled*
in that window. It waits until it has an event of each that was scheduled later, so that a late event is measured and
not missed, and answers with one line of JSON; a session from which none came within SILENCE_S is `silent`. It ends
with its input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from array import array
from typing import Any

from benchmarks.subscriber import summary
from ottoctl import SyncOtto
from ottod.protocol.events import ContentDelta, Gap

CREDIT_BYTES = 4 * 1024 * 1024
RECONNECT_S = 60.0
STAMPS = 3
"""A measured delta begins with so many numbers: scheduled, emitted, and which one it is."""


class Arrivals:
    """What came of one session. Times in monotonic nanoseconds."""

    def __init__(self, first_seq: int) -> None:
        self.scheduled, self.received = array("q"), array("q")
        self.next_seq = first_seq
        self.lost = 0
        self.doubled = 0
        self.gaps = 0

    def count(self, seq: int) -> None:
        """Holds the seq against the one that is due."""
        if seq < self.next_seq:
            self.doubled += 1
            return
        self.lost += seq - self.next_seq
        self.next_seq = seq + 1


class SiblingReader:
    """All events of all sessions, as a client sees them."""

    def __init__(self, endpoint: str, *, from_offset: int, silence_s: float) -> None:
        self._endpoint = endpoint
        self._from_offset = from_offset
        self._silence_s = silence_s
        self._arrivals: dict[str, Arrivals] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)

    def start(self) -> None:
        """Returns when it is connected. Raises RuntimeError if the daemon does not let it."""
        self._thread.start()
        while not self._ready.wait(0.05):
            if not self._thread.is_alive():
                raise RuntimeError("the reader could not connect")

    def _read(self) -> None:
        with SyncOtto.connect(self._endpoint, timeout_s=60, reconnect_s=RECONNECT_S) as otto:
            # Where it reads from is settled, so nothing is missed however late the subscription itself is made.
            self._ready.set()
            for item in otto.events(from_offset=self._from_offset, credit_bytes=CREDIT_BYTES):
                now_ns = time.monotonic_ns()
                event, session = item.event, item.session
                found = self._arrivals.get(session)
                if type(event) is Gap:
                    for each in self._arrivals.values() if not session else (found,) if found else ():
                        each.gaps += 1
                    continue
                if found is None:
                    found = self._arrivals[session] = Arrivals(first_seq=1)
                found.count(item.seq)
                if type(event) is ContentDelta:
                    stamps = event.text.split(" ", STAMPS)[:STAMPS]
                    if len(stamps) == STAMPS and stamps[0].isdigit():
                        # The received time is last: who looks for as many as there are of those finds all three.
                        found.scheduled.append(int(stamps[0]))
                        found.received.append(now_ns)

    def window(self, start_ns: int, end_ns: int, sessions: list[str]) -> dict[str, Any]:
        """The measurement of one stretch."""
        silent = self._wait_past(end_ns, sessions)
        latencies: list[int] = []
        resumed_ns: list[int] = []
        totals = {"lost": 0, "doubled": 0, "gaps": 0}
        for session in sessions:
            found = self._arrivals.get(session)
            if found is None:
                continue
            inside = [k for k in range(len(found.received)) if start_ns <= found.scheduled[k] < end_ns]
            latencies += [found.received[k] - found.scheduled[k] for k in inside]
            if inside:
                resumed_ns.append(found.received[inside[0]])
            totals["lost"] += found.lost
            totals["doubled"] += found.doubled
            totals["gaps"] += found.gaps
        return {
            "measured": len(latencies),
            **summary(latencies),
            **totals,
            "silent": silent,
            "first_of_last_ns": max(resumed_ns, default=0),
        }

    def _wait_past(self, end_ns: int, sessions: list[str]) -> list[str]:
        """Those of the sessions that have not come past the window's end in time."""
        waiting, deadline_s = set(sessions), time.monotonic() + self._silence_s
        # A reader that has died, as the client library does when it finds a hole, hears of nobody any more.
        while waiting and self._thread.is_alive() and time.monotonic() < deadline_s:
            waiting = {s for s in waiting if (found := self._arrivals.get(s)) is None or _last(found) < end_ns}
            if waiting:
                time.sleep(0.02)
        return sorted(waiting)


def _last(found: Arrivals) -> int:
    return found.scheduled[len(found.received) - 1] if found.received else 0


def main() -> None:
    """Reads, and answers."""
    reader = SiblingReader(sys.argv[1], from_offset=int(sys.argv[2]), silence_s=float(sys.argv[3]))
    reader.start()
    print("ready", flush=True)
    for line in sys.stdin:
        start_ns, end_ns, *sessions = line.split()
        print(json.dumps(reader.window(int(start_ns), int(end_ns), sessions)), flush=True)


if __name__ == "__main__":
    main()
