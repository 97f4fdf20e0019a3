"""The record: one batch of one session's events, the same bytes on the wire, in the ring and at the subscriber.

Little-endian, 40 bytes of header, then the payload::

     0        4        8                16               24               32     34  35  36     40
     +--------+--------+----------------+----------------+----------------+------+---+---+------+---------
     | crc32  | length | session key    | first offset   | first seq      | count|lan| 0 |incar.| payload …
     | u32    | u32    | u64            | u64            | u64            | u16  |u8 |u8 | u32  |
     +--------+--------+----------------+----------------+----------------+------+---+---+------+---------

`crc32` covers everything after itself. `length` is the payload's. Event i of the batch has seq `first seq + i`
and offset `first offset + i`. A worker sends records with offset and crc 0; the hub fills both in, without
decoding the payload, when it appends the record to the ring.

The payload is a msgpack array of `count` entries, each `[at_ns, event]`: wall clock nanoseconds, for display
only, and one tagged event. Lane 0 is `state` (root folds it), lane 1 is `delta` (opaque to root).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from ottod.errors import UNDECODABLE, RemoteProtocolError
from ottod.ids import KEY_MAX
from ottod.protocol.events import Event, Unknown

HEADER = struct.Struct("<IIQQQHBBI")
HEADER_BYTES = HEADER.size
assert HEADER_BYTES == 40

LANE_STATE = 0
LANE_DELTA = 1

MAX_PAYLOAD_BYTES = 96 * 1024
"""The largest payload of one record; a single event must fit, batches stay far below."""
MAX_BATCH_EVENTS = 4096

_PATCH_OFFSET = struct.Struct("<Q")


class RecordHeader(NamedTuple):
    """The decoded header; field order is the wire's."""

    crc: int
    length: int
    session_key: int
    first_offset: int
    first_seq: int
    event_count: int
    lane: int
    reserved: int
    incarnation: int

    @property
    def last_offset(self) -> int:
        return self.first_offset + self.event_count - 1

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.event_count - 1

    @property
    def size_bytes(self) -> int:
        """Header and payload together."""
        return HEADER_BYTES + self.length


class Stamped(msgspec.Struct, frozen=True, array_like=True):
    """An event and the wall clock nanoseconds of its emission."""

    at_ns: int
    event: Event


_encoder = msgspec.msgpack.Encoder()
_entries_decoder = msgspec.msgpack.Decoder(list[Stamped])
_loose_decoder = msgspec.msgpack.Decoder(list[tuple[int, dict[str, Any]]])
_stamped_decoder = msgspec.msgpack.Decoder(Stamped)


def encode_entry(at_ns: int, event: Event) -> bytes:
    """One `[at_ns, event]` entry; entries are joined by `join_entries`."""
    return _encoder.encode((at_ns, event))


def array_header(count: int) -> bytes:
    """The msgpack array header for `count` entries."""
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def join_entries(entries: list[bytes]) -> bytes:
    """A payload from encoded entries (1 ≤ len ≤ MAX_BATCH_EVENTS)."""
    return array_header(len(entries)) + b"".join(entries)


def build_record(
    payload: bytes,
    *,
    session_key: int,
    first_seq: int,
    count: int,
    lane: int,
    incarnation: int,
    first_offset: int = 0,
) -> bytes:
    """A whole record; sealed (with crc) if it has an offset."""
    head = HEADER.pack(0, len(payload), session_key, first_offset, first_seq, count, lane, 0, incarnation)
    record = head + payload
    return seal_record(record, first_offset) if first_offset else record


def seal_record(record: bytes, first_offset: int) -> bytes:
    """The same record with its offset and crc filled in."""
    body = record[4:16] + _PATCH_OFFSET.pack(first_offset) + record[24:]
    return zlib.crc32(body).to_bytes(4, "little") + body


def build_single(entry: bytes, *, session_key: int, seq: int, lane: int, incarnation: int) -> bytes:
    """An unsealed record of one encoded entry: what most records are while nobody is in a hurry."""
    return HEADER.pack(0, len(entry) + 1, session_key, 0, seq, 1, lane, 0, incarnation) + b"\x91" + entry


def parse_unsealed(record: bytes | memoryview) -> RecordHeader:
    """Checks a worker's record without decoding its entries. Raises RemoteProtocolError."""
    if len(record) < HEADER_BYTES:
        raise RemoteProtocolError(f"record of {len(record)} bytes is shorter than its header")
    header = RecordHeader._make(HEADER.unpack_from(record))
    if header.length != len(record) - HEADER_BYTES:
        raise RemoteProtocolError(
            f"record says {header.length} payload bytes and carries {len(record) - HEADER_BYTES}"
        )
    if header.length > MAX_PAYLOAD_BYTES:
        raise RemoteProtocolError(f"payload of {header.length} bytes exceeds {MAX_PAYLOAD_BYTES}")
    if not 1 <= header.event_count <= MAX_BATCH_EVENTS or header.lane > 1 or header.session_key > KEY_MAX:
        raise RemoteProtocolError("record header out of range")
    expected = array_header(header.event_count)
    if bytes(record[HEADER_BYTES : HEADER_BYTES + len(expected)]) != expected:
        raise RemoteProtocolError(f"payload does not hold {header.event_count} entries")
    return header


def check_sealed(buffer: bytes | memoryview, at: int, end: int) -> RecordHeader | None:
    """The header of the sealed record at `at`, or None if no whole valid record is there."""
    if end - at < HEADER_BYTES:
        return None
    header = RecordHeader._make(HEADER.unpack_from(buffer, at))
    stop = at + HEADER_BYTES + header.length
    if header.length > MAX_PAYLOAD_BYTES or stop > end or header.event_count == 0 or header.first_offset == 0:
        return None
    if zlib.crc32(buffer[at + 4 : stop]) != header.crc:
        return None
    return header


def split_run(run: bytes | memoryview) -> Iterator[tuple[RecordHeader, memoryview]]:
    """The records of a run (sealed records back to back), each with its payload. Raises RemoteProtocolError."""
    view = memoryview(run)
    at, end = 0, len(view)
    while at < end:
        header = check_sealed(view, at, end)
        if header is None:
            raise RemoteProtocolError(f"no valid record at byte {at} of a run of {end}")
        stop = at + header.size_bytes
        yield header, view[at + HEADER_BYTES : stop]
        at = stop


def decode_payload(payload: bytes | memoryview) -> list[tuple[int, Event | Unknown]]:
    """The entries of a payload as (at_ns, event). Unknown kinds become `Unknown`. Raises RemoteProtocolError."""
    try:
        return [(s.at_ns, s.event) for s in _entries_decoder.decode(payload)]
    except UNDECODABLE:
        return _decode_loosely(payload)


def _decode_loosely(payload: bytes | memoryview) -> list[tuple[int, Event | Unknown]]:
    try:
        entries = _loose_decoder.decode(payload)
    except UNDECODABLE as error:
        raise RemoteProtocolError(f"events: {error}") from error
    out: list[tuple[int, Event | Unknown]] = []
    for at_ns, fields in entries:
        try:
            out.append((at_ns, _stamped_decoder.decode(_encoder.encode((at_ns, fields))).event))
        except UNDECODABLE:
            kind = fields.pop("type", "")
            out.append((at_ns, Unknown(type=str(kind), fields=fields)))
    return out
