"""What a ring says of itself and hands to readers."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ottod.protocol.events import Gap


class Chunk(NamedTuple):
    """What one read gives.

    `items` are runs (bytes: sealed records back to back, in order of offset) and gaps, each in its place.
    """

    items: tuple[bytes | Gap, ...]
    next_cursor: int
    caught_up: bool


class SessionSpan(msgspec.Struct, frozen=True, kw_only=True):
    """What the ring has of one session: first and last offset and seq, and how many segments it holds."""

    session_key: int
    first_offset: int
    last_offset: int
    first_seq: int
    last_seq: int
    segments: int


class RingStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since opening, and a reading of the present."""

    size_bytes: int
    used_bytes: int
    segments: int
    free_segments: int
    sessions: int
    head_offset: int
    tail_offset: int
    synced_offset: int
    appended_records: int
    appended_bytes: int
    evicted_segments: int
    syncs: int
