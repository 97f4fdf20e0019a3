"""The outside subscriber of every peer: a process of its own that decodes each event and keeps its times.

    python -m benchmarks.peers.reader SOCKET FROM

It prints `ready` once it is subscribed. A line `expect N` on its input lets it read until N events have arrived (or
are declared lost), the hub has gone, or nothing has come for SILENCE_S; then it prints `done`, takes one line of
windows (`START END START END …`, monotonic nanoseconds) and prints its report as JSON.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time

from benchmarks.peers.arrivals import Arrivals
from benchmarks.peers.wire import GAP, HELLO, RECORD_BYTES, TIMES

SILENCE_S = 2.0
BUFFER_BYTES = RECORD_BYTES * 4096


class Reader:
    """One subscription."""

    def __init__(self, path: str, from_offset: int) -> None:
        self.arrivals = Arrivals()
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(path)
        self._line.sendall(f"subscribe {from_offset}\n".encode())
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._expected: int | None = None
        self.cpu_s = 0.0

    def run(self) -> None:
        """Reads until there is no more to wait for."""
        waiting = selectors.DefaultSelector()
        waiting.register(self._line, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while self._expected is None or len(self.arrivals) + self.arrivals.lost < self._expected:
            ready = waiting.select(SILENCE_S)
            if not ready and self._expected is not None:
                break
            for key, _ in ready:
                if key.fileobj is sys.stdin:
                    self._expected = int(os.read(0, 64).split()[1])
                    waiting.unregister(sys.stdin)
                elif not self._take():
                    waiting.unregister(self._line)
                    if self._expected is not None:
                        return
        waiting.close()

    def _take(self) -> bool:
        """Reads what is there; False when the hub has gone."""
        count = self._line.recv_into(self._view[self._filled :])
        if not count:
            return False
        self._filled += count
        whole = self._filled - self._filled % RECORD_BYTES
        add = self.arrivals.add
        for session, seq, scheduled_ns, emitted_ns in TIMES.iter_unpack(self._view[:whole]):
            if session < HELLO:
                add(session, seq, scheduled_ns, emitted_ns, time.monotonic_ns())
            elif session == GAP:
                self.arrivals.lost += emitted_ns
            else:
                print("ready", flush=True)
        # The cut record at the end is the beginning of the next read.
        self._buffer[: self._filled - whole] = self._buffer[whole : self._filled]
        self._filled -= whole
        return True


def main() -> None:
    """Reads, then reports."""
    reader = Reader(sys.argv[1], int(sys.argv[2]))
    reader.run()
    events = max(1, len(reader.arrivals))
    cpu_us = time.process_time() * 1e6 / events
    print("done", flush=True)
    bounds = [int(part) for part in sys.stdin.readline().split()]
    report = reader.arrivals.report(list(zip(bounds[::2], bounds[1::2], strict=True)))
    print(json.dumps({**report, "subscriber_cpu_us_per_event": round(cpu_us, 2)}), flush=True)


if __name__ == "__main__":
    main()
