"""The outside subscriber: a process of its own that reads every event as a client does, and keeps its times.

    python -m benchmarks.subscriber ENDPOINT SESSIONS FROM_OFFSET

It prints `ready` once it is subscribed, reads until that many sessions have exited, then takes one line `START END`
(monotonic nanoseconds: the window in which all sessions were streaming) from its input and prints the measurement as
JSON. Latency is counted to the moment at which the event is decoded and in the consumer's hands, once from its
scheduled emission and once from its actual one.
"""

from __future__ import annotations

import json
import sys
import time
from array import array

from ottoctl import SyncOtto
from ottod.protocol.events import ContentDelta, Gap, SessionExited


def percentile(ordered: list[int], share: float) -> float:
    """In milliseconds, of nanoseconds."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6 if ordered else 0.0


def summary(latencies_ns: list[int]) -> dict[str, float]:
    """p50, p99 and maximum in milliseconds."""
    ordered = sorted(latencies_ns)
    return {
        "p50_ms": round(percentile(ordered, 0.50), 3),
        "p99_ms": round(percentile(ordered, 0.99), 3),
        "p999_ms": round(percentile(ordered, 0.999), 3),
        "max_ms": round(ordered[-1] / 1e6, 3) if ordered else 0.0,
    }


def main() -> None:
    """Reads, then reports."""
    endpoint, sessions, offset = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    scheduled, actual, received = array("q"), array("q"), array("q")
    next_index: dict[str, int] = {}
    exited = gaps = disorder = events = 0
    first_ns = last_ns = 0
    cpu = time.process_time
    with SyncOtto.connect(endpoint, timeout_s=60) as otto:
        stream = otto.events(from_offset=offset, credit_bytes=4 * 1024 * 1024)
        print("ready", flush=True)
        cpu_before = cpu()
        for item in stream:
            now_ns = time.monotonic_ns()
            event = item.event
            events += 1
            if type(event) is ContentDelta:
                a, b, i = event.text.split(" ", 3)[:3]
                scheduled.append(int(a))
                actual.append(int(b))
                received.append(now_ns)
                index = int(i)
                if next_index.get(item.session, index) != index:
                    disorder += 1
                next_index[item.session] = index + 1
                first_ns = first_ns or now_ns
                last_ns = now_ns
            elif type(event) is SessionExited:
                exited += 1
                if exited == sessions:
                    break
            elif type(event) is Gap:
                gaps += 1
        cpu_s = cpu() - cpu_before
    print("done", flush=True)
    start_ns, end_ns = (int(part) for part in sys.stdin.readline().split())
    inside = [k for k in range(len(scheduled)) if start_ns <= scheduled[k] < end_ns]
    span_s = (last_ns - first_ns) / 1e9 if last_ns > first_ns else 0.0
    report = {
        "deltas": len(scheduled),
        "measured": len(inside),
        "sessions_seen": len(next_index),
        "events": events,
        "gaps": gaps,
        "out_of_order": disorder,
        "events_per_s": round(len(scheduled) / span_s) if span_s else 0,
        "subscriber_cpu_us_per_event": round(cpu_s * 1e6 / max(1, events), 2),
        "from_scheduled": summary([received[k] - scheduled[k] for k in inside]),
        "from_actual": summary([received[k] - actual[k] for k in inside]),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
