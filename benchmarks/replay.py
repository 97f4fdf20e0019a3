"""Replay: how fast a subscriber that comes late gets what the ring holds."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.measured import MeasuredDaemon
from benchmarks.stream import streaming_agent
from ottoctl.feed import Feed
from ottod.protocol.events import Gap
from ottod.protocol.requests import MAX_CREDIT_BYTES


def measure_replay(*, sessions: int, rate_hz: float, events: int) -> dict[str, Any]:
    """Fills the ring, then reads all of it, once as raw records and once decoded.

    With `rate_hz` 0 the records are large batches; with a real rate most of them hold a single event.
    """
    with MeasuredDaemon() as daemon:
        agent = streaming_agent(daemon.workdir, events=events // sessions, rate_hz=rate_hz, text_bytes=40)
        with daemon.client(timeout_s=120) as otto:
            started = [otto.start(spec=agent, task="fill", cwd=daemon.workdir) for _ in range(sessions)]
            for session in started:
                session.wait()
            raw = _read(otto, decode=False)
            decoded = _read(otto, decode=True)
    return {
        "benchmark": "replay",
        "sessions": sessions,
        "events": decoded["events"],
        "records": raw["records"],
        "bytes": raw["bytes"],
        "raw_events_per_s": raw["events_per_s"],
        "decoded_events_per_s": decoded["events_per_s"],
        "load": round(os.getloadavg()[0], 2),
    }


def _read(otto: Any, *, decode: bool) -> dict[str, int]:
    """Reads everything from offset 0 with the client library's own feed."""
    feed = Feed(from_offset=0, follow=False, credit_bytes=MAX_CREDIT_BYTES)
    events = records = size = 0
    begun = time.perf_counter()
    otto.connection.open_feed(feed)
    try:
        while (item := otto.connection.next(feed)) is not None:
            if isinstance(item, Gap):
                continue
            records += 1
            size += item.header.size_bytes
            events += len(item.events()) if decode else item.header.event_count
    finally:
        otto.connection.close_feed(feed)
    took_s = time.perf_counter() - begun
    return {"events": events, "records": records, "bytes": size, "events_per_s": round(events / took_s)}
