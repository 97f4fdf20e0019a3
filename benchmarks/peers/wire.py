"""What all peers have in common: one event, one stream, one control conversation.

A peer's hub listens on one unix socket. The first line of a connection says what it is.

`subscribe FROM`: the hub answers with one hello record, then with every event from that offset on (-1: new ones).
An event is one record of 144 bytes, little-endian, and nothing else is on the line:

    0        4     8                  16              24                       144
    +--------+-----+------------------+---------------+------------------------+
    | session| seq | scheduled ns     | emitted ns    | payload, 120 bytes     |
    +--------+-----+------------------+---------------+------------------------+

Both times are CLOCK_MONOTONIC, which every runtime can read and which is the same in all processes. Two values of
`session` mean something else: HELLO carries in `scheduled` the offset at which the stream begins; GAP says that the
ring no longer has `emitted` events from offset `scheduled` on.

`control`: the driver then writes orders, one a line; the hub answers with reports, one a line:

    spawn FIRST COUNT                         ready ID PID, once for each session
    emit FIRST COUNT START_NS RATE EVENTS     the sessions emit on a schedule, or with RATE 0 as fast as they can
    fault ID spin MS | leak BYTES | die 0     the session does so; die is an error that nothing in the session handles
    quit                                      the hub ends, with all of its sessions
                                              replaced ID PID, when a session that had died is ready again
"""

from __future__ import annotations

import struct

RECORD = struct.Struct("<IIQQ120s")
TIMES = struct.Struct("<IIQQ120x")
"""The same record without its payload."""

RECORD_BYTES = RECORD.size
HELLO = 0xFFFFFFFE
GAP = 0xFFFFFFFF
PAYLOAD = b"x" * 120

RING_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024
"""At most this much is taken from the ring for a subscriber at once."""

EMIT_BATCH = 64
"""A session that emits without pause hands over this many events at once."""


def pack(session: int, seq: int, scheduled_ns: int, emitted_ns: int) -> bytes:
    """One event's record."""
    return RECORD.pack(session, seq, scheduled_ns, emitted_ns, PAYLOAD)


def phase_ns(session: int, interval_ns: float) -> int:
    """Where in the interval a session's schedule begins: spread evenly, in no order, the same for every peer."""
    return int((session * 0.6180339887498949) % 1.0 * interval_ns)
