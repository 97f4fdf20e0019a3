"""The bytes of `ring.wal`. All integers are little-endian; what is not named is zero.

The file is a superblock of 4096 bytes and N segments of equal size::

    0            4096
    +------------+-----------+-----------+-- - - --+-----------+
    | superblock | segment 0 | segment 1 |         | seg. N-1  |
    +------------+-----------+-----------+-- - - --+-----------+

The superblock holds two copies of the same fields, each within one 512-byte sector. They are written alternately;
the valid one with the higher counter counts, so that a torn copy costs nothing::

    0          8      12      16        24           32        36      40             48               56
    +----------+------+-------+---------+------------+---------+-------+--------------+----------------+
    | OTTORING | crc  |version| counter | size bytes | segment | flags | offset limit | synced offset  |
    |   8 B    | u32  |  u32  |   u64   |    u64     | bytes   |  u32  |     u64      |      u64       |
    +----------+------+-------+---------+------------+---------+-------+--------------+----------------+
    56                 64               72        112     116     120
    +------------------+----------------+---------+-------+-------+-------------------------------+
    | forgotten offset | missing events | boot id | lost  |   0   | lost intervals: 16 of (first  |  … to byte 376
    |       u64        |      u64       |  40 B   | count |  u32  | offset u64, last offset u64)  |
    +------------------+----------------+---------+-------+-------+-------------------------------+

Copy 0 is at byte 0, copy 1 at byte 512. `crc` covers everything after itself; its place and the magic's are the same
in every version. Flag bit 0: closed cleanly; bit 1: the file was cut short, and recovery has not dealt with it yet.
`offset limit`: no offset at or above it was ever handed out. `synced offset`: everything up to it had reached the
disk, except for `missing events`, which were no longer in the ring. `forgotten offset`: the newest event of any
session that has wholly left the ring.

At byte 1024 is the *head note*, rewritten at each append and never synced by itself: it outlives the process but
not the machine::

    1024          1032           1040
    +-------------+--------------+-----------------+
    | next offset | ~next offset | append position |   position: 0, or where an append was going on
    |     u64     |     u64      |       u64       |
    +-------------+--------------+-----------------+

At byte 2048 are the newest *departures*: 64 slots, used in turn, each a session that has wholly left the ring.
They outlive the process but not the machine. `number` counts departures; `reach` is the offset of the session's last
event::

    0      4        8             16         24      32
    +------+--------+-------------+----------+-------+
    | crc  | number | session key | last seq | reach |
    | u32  |  u32   |     u64     |   u64    |  u64  |
    +------+--------+-------------+----------+-------+

A segment begins with 256 bytes of header: the same fields twice, at 0 and 64, a seal at 128, then zeros; from 256 on
sealed records back to back (see `ottod.protocol.records`), then zeros to the end::

    0      4      8         16            24             32             40          48            56        64
    +------+------+---------+-------------+--------------+--------------+-----------+-------------+---------+
    | OSEG | crc  | version | session key |  generation  | first offset | first seq | prev last   | 0       |
    | 4 B  | u32  |   u64   |     u64     |     u64      |     u64      |    u64    | offset u64  |         |
    +------+------+---------+-------------+--------------+--------------+-----------+-------------+---------+

    128    132     136          144       152
    +------+-------+------------+---------+
    | crc  | OSEA  | generation | lost to |    the seal: the events of the session in (last record, lost to]
    | u32  | 4 B   |    u64     |   u64   |    were damaged; nothing follows in this segment
    +------+-------+------------+---------+

`prev last offset` is the offset of the session's last event before this segment, 0 if there was none.
"""

from __future__ import annotations

import struct
import zlib
from mmap import mmap
from typing import NamedTuple

import msgspec

from ottod.ids import KEY_MAX

Buffer = bytes | bytearray | memoryview | mmap

VERSION = 1
SUPERBLOCK_BYTES = 4096
SEGMENT_HEADER_BYTES = 256
MAX_LOST_INTERVALS = 16

_MAGIC = b"OTTORING"
_COPY_AT = (0, 512)
_COPY = struct.Struct("<8sIIQQIIQQQQ40sII")
_INTERVAL = struct.Struct("<QQ")
_COPY_BYTES = _COPY.size + MAX_LOST_INTERVALS * _INTERVAL.size
_CRC_FROM = 12
_FLAG_CLEAN = 1
_FLAG_DAMAGED = 2
assert _COPY_BYTES <= 512

HEAD_NOTE_AT = 1024
HEAD_NOTE = struct.Struct("<QQQ")
DEPARTURES_AT = 2048
DEPARTURE_SLOTS = 64
_DEPARTURE = struct.Struct("<IIQQQ")
assert DEPARTURES_AT + DEPARTURE_SLOTS * _DEPARTURE.size <= SUPERBLOCK_BYTES
APPEND_POSITION_AT = HEAD_NOTE_AT + 16
APPEND_POSITION = struct.Struct("<Q")
U64 = (1 << 64) - 1

_SEGMENT_MAGIC = b"OSEG"
_SEGMENT = struct.Struct("<4sIQQQQQQQ")
_SEGMENT_COPIES_AT = (0, 64)
assert _SEGMENT.size == 64
_SEAL_AT = 128
_SEAL = struct.Struct("<I4sQQ")
_SEAL_MAGIC = b"OSEA"


class Superblock(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of the superblock. `lost` are (first, last) offsets that a power failure took, oldest first."""

    counter: int = 0
    size_bytes: int
    segment_bytes: int
    clean: bool = False
    damaged: bool = False
    offset_limit: int = 1
    synced_offset: int = 0
    forgotten_offset: int = 0
    missing_events: int = 0
    boot_id: str = ""
    lost: tuple[tuple[int, int], ...] = ()

    @property
    def segment_count(self) -> int:
        return self.size_bytes // self.segment_bytes

    @property
    def file_bytes(self) -> int:
        return file_bytes(self.size_bytes, self.segment_bytes)


class HeadNote(NamedTuple):
    """The head note, if it is whole. `append_position` is 0 unless an append was interrupted."""

    next_offset: int
    append_position: int


class SegmentHeader(NamedTuple):
    """The fields of a segment's header."""

    session_key: int
    generation: int
    first_offset: int
    first_seq: int
    prev_last_offset: int


class Departure(NamedTuple):
    """A session that has wholly left the ring."""

    number: int
    session_key: int
    last_seq: int
    reach: int


class UnknownVersion(Exception):
    """A valid superblock of another version of the format."""


def file_bytes(size_bytes: int, segment_bytes: int) -> int:
    """The length of the file that holds a ring of `size_bytes`."""
    return SUPERBLOCK_BYTES + size_bytes // segment_bytes * segment_bytes


def write_superblock(buffer: mmap, fields: Superblock) -> None:
    """Writes the copy whose turn it is; the other one stays valid whatever happens meanwhile."""
    at, body = pack_superblock(fields)
    buffer[at : at + len(body)] = body


def pack_superblock(fields: Superblock) -> tuple[int, bytes]:
    """The copy whose turn it is: its position in the file, and its bytes."""
    flags = (_FLAG_CLEAN if fields.clean else 0) | (_FLAG_DAMAGED if fields.damaged else 0)
    body = _COPY.pack(
        _MAGIC,
        0,
        VERSION,
        fields.counter,
        fields.size_bytes,
        fields.segment_bytes,
        flags,
        fields.offset_limit,
        fields.synced_offset,
        fields.forgotten_offset,
        fields.missing_events,
        fields.boot_id.encode()[:40],
        len(fields.lost),
        0,
    )
    body = (body + b"".join(_INTERVAL.pack(*interval) for interval in fields.lost)).ljust(_COPY_BYTES, b"\0")
    crc = zlib.crc32(body[_CRC_FROM:]).to_bytes(4, "little")
    return _COPY_AT[fields.counter % 2], body[:8] + crc + body[_CRC_FROM:]


def read_superblock(buffer: Buffer) -> Superblock | None:
    """The newest valid copy, or None. Raises UnknownVersion if what is valid is of another version."""
    copies: list[Superblock] = []
    foreign = False
    for at in _COPY_AT:
        body = bytes(buffer[at : at + _COPY_BYTES])
        if len(body) < _COPY_BYTES or body[:8] != _MAGIC:
            continue
        if zlib.crc32(body[_CRC_FROM:]).to_bytes(4, "little") != body[8:_CRC_FROM]:
            continue
        if body[12:16] != VERSION.to_bytes(4, "little"):
            foreign = True
            continue
        copies.append(_parse_superblock(body))
    if foreign and not copies:
        raise UnknownVersion
    return max(copies, key=lambda copy: copy.counter, default=None)


def _parse_superblock(body: bytes) -> Superblock:
    _, _, _, counter, size, segment, flags, limit, synced, forgotten, missing, boot, lost_count, _ = (
        _COPY.unpack_from(body)
    )
    intervals = [_INTERVAL.unpack_from(body, _COPY.size + i * _INTERVAL.size) for i in range(lost_count)]
    return Superblock(
        counter=counter,
        size_bytes=size,
        segment_bytes=segment,
        clean=bool(flags & _FLAG_CLEAN),
        damaged=bool(flags & _FLAG_DAMAGED),
        offset_limit=limit,
        synced_offset=synced,
        forgotten_offset=forgotten,
        missing_events=missing,
        boot_id=boot.rstrip(b"\0").decode(),
        lost=tuple((first, last) for first, last in intervals),
    )


def read_head_note(buffer: Buffer) -> HeadNote | None:
    """The head note, or None if it is damaged or was cut by a crash."""
    if len(buffer) < HEAD_NOTE_AT + HEAD_NOTE.size:
        return None
    next_offset, complement, position = HEAD_NOTE.unpack_from(buffer, HEAD_NOTE_AT)
    return HeadNote(next_offset, position) if next_offset ^ U64 == complement else None


def write_departure(buffer: mmap, departure: Departure) -> None:
    """Writes the slot whose turn it is."""
    body = _DEPARTURE.pack(0, *departure)
    body = zlib.crc32(body[4:]).to_bytes(4, "little") + body[4:]
    at = DEPARTURES_AT + departure.number % DEPARTURE_SLOTS * _DEPARTURE.size
    buffer[at : at + len(body)] = body


def read_departures(buffer: Buffer) -> list[Departure]:
    """Those whose slots are whole, the newest last."""
    found = []
    for slot in range(DEPARTURE_SLOTS):
        at = DEPARTURES_AT + slot * _DEPARTURE.size
        body = bytes(buffer[at : at + _DEPARTURE.size])
        crc, *fields = _DEPARTURE.unpack(body)
        if any(fields) and crc == zlib.crc32(body[4:]):
            found.append(Departure._make(fields))
    return sorted(found)


def write_segment_header(buffer: mmap, base: int, header: SegmentHeader) -> None:
    """Writes both copies. The segment's bytes must be zero before."""
    body = _SEGMENT.pack(_SEGMENT_MAGIC, 0, VERSION, *header, 0)
    body = body[:4] + zlib.crc32(body[8:]).to_bytes(4, "little") + body[8:]
    for at in _SEGMENT_COPIES_AT:
        buffer[base + at : base + at + _SEGMENT.size] = body


def clear_segment(buffer: mmap, base: int, end: int) -> None:
    """Zeroes a segment up to `end`. The first copy of its header goes first: from then on the segment is free."""
    for start, stop in ((base, base + _SEGMENT.size), (base + _SEGMENT.size, end)):
        buffer[start:stop] = bytes(stop - start)


def is_cleared(buffer: Buffer, base: int) -> bool:
    """The first copy of the segment's header is zero: it is free, or was being cleared."""
    return bytes(buffer[base : base + _SEGMENT.size]) == bytes(_SEGMENT.size)


def read_segment_header(buffer: Buffer, base: int) -> SegmentHeader | None:
    """The header of the segment at `base`, or None if neither copy is valid."""
    for at in _SEGMENT_COPIES_AT:
        body = bytes(buffer[base + at : base + at + _SEGMENT.size])
        magic, crc, version, *fields, _ = _SEGMENT.unpack(body)
        if magic == _SEGMENT_MAGIC and crc == zlib.crc32(body[8:]) and version == VERSION:
            header = SegmentHeader._make(fields)
            return header if header.session_key <= KEY_MAX else None
    return None


def write_seal(buffer: mmap, base: int, *, generation: int, lost_to: int) -> None:
    """Ends a damaged segment."""
    body = _SEAL.pack(0, _SEAL_MAGIC, generation, lost_to)
    buffer[base + _SEAL_AT : base + _SEAL_AT + _SEAL.size] = zlib.crc32(body[4:]).to_bytes(4, "little") + body[4:]


def read_seal(buffer: Buffer, base: int, *, generation: int) -> int:
    """`lost to` of the segment's seal, 0 if it has none or one of an earlier life of the segment."""
    body = bytes(buffer[base + _SEAL_AT : base + _SEAL_AT + _SEAL.size])
    crc, magic, of_generation, lost_to = _SEAL.unpack(body)
    if magic != _SEAL_MAGIC or crc != zlib.crc32(body[4:]) or of_generation != generation:
        return 0
    return int(lost_to)
