"""The outside subscriber of Otto: the client library, read as any client does, with the times that `reader` keeps.

    python -m benchmarks.peers.otto_reader ENDPOINT FROM SESSIONS EVENTS

It costs more for each event than `reader` does: it checks every record, finds every event's session and number, and
decodes a typed object. It prints `ready`, reads until the last of EVENTS measured events of all SESSIONS has arrived,
prints `done`, and then reports as `reader` does.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.peers.arrivals import Arrivals
from ottoctl import SyncOtto
from ottod.protocol.events import ContentDelta, Gap

CREDIT_BYTES = 4 * 1024 * 1024
STAMPS = 3
"""A measured delta begins with so many numbers."""


def main() -> None:
    """Reads, then reports."""
    endpoint, offset, sessions, events = sys.argv[1], *(int(number) for number in sys.argv[2:5])
    arrivals, finished = Arrivals(), 0
    with SyncOtto.connect(endpoint, timeout_s=60) as otto:
        stream = otto.events(from_offset=offset, credit_bytes=CREDIT_BYTES)
        print("ready", flush=True)
        for item in stream:
            now_ns = time.monotonic_ns()
            event = item.event
            if type(event) is ContentDelta:
                stamps = event.text.split(" ", STAMPS)[:STAMPS]
                if len(stamps) == STAMPS:
                    index = int(stamps[2])
                    arrivals.add(item.session, index, int(stamps[0]), int(stamps[1]), now_ns)
                    if index == events - 1:
                        finished += 1
                        if finished == sessions:
                            break
            elif type(event) is Gap:
                # At most so many; what is really missing shows in the numbers of what comes.
                arrivals.lost += event.last - event.first + 1
    cpu_us = time.process_time() * 1e6 / max(1, len(arrivals))
    print("done", flush=True)
    bounds = [int(part) for part in sys.stdin.readline().split()]
    report = arrivals.report(list(zip(bounds[::2], bounds[1::2], strict=True)))
    print(json.dumps({**report, "subscriber_cpu_us_per_event": round(cpu_us, 2)}), flush=True)


if __name__ == "__main__":
    main()
