"""The record format: any bytes give a record or an error, and one flipped bit is noticed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import RemoteProtocolError
from ottod.protocol.events import ContentDelta, LogWarning, Unknown
from ottod.protocol.records import (
    HEADER_BYTES,
    build_record,
    check_sealed,
    decode_payload,
    encode_entry,
    join_entries,
    parse_unsealed,
    seal_record,
    split_run,
)


def record(count: int = 3, *, first_seq: int = 1, text: str = "hi") -> bytes:
    payload = join_entries([encode_entry(5, ContentDelta(stream="text", text=text)) for _ in range(count)])
    return build_record(payload, session_key=9, first_seq=first_seq, count=count, lane=1, incarnation=2)


@pytest.mark.parametrize("count", [1, 15, 16, 300])
def test_round_trip(count: int) -> None:
    """What is built, sealed and split is what was said."""
    sealed = seal_record(record(count), 1000)
    ((header, payload),) = list(split_run(sealed))
    assert (header.session_key, header.first_offset, header.last_offset) == (9, 1000, 999 + count)
    assert (header.first_seq, header.last_seq, header.incarnation) == (1, count, 2)
    assert decode_payload(payload) == [(5, ContentDelta(stream="text", text="hi"))] * count


def test_every_flipped_bit_is_noticed() -> None:
    """No single flipped bit of a sealed record leaves a valid one."""
    sealed = bytearray(seal_record(record(), 1000))
    for bit in range(len(sealed) * 8):
        sealed[bit // 8] ^= 1 << bit % 8
        assert check_sealed(bytes(sealed), 0, len(sealed)) is None
        sealed[bit // 8] ^= 1 << bit % 8


def test_every_truncation_is_noticed() -> None:
    """A record that is cut anywhere is no record."""
    sealed = seal_record(record(), 1000)
    for size in range(len(sealed)):
        assert check_sealed(sealed, 0, size) is None


@given(st.binary(max_size=300))
def test_any_bytes_give_a_record_or_an_error(data: bytes) -> None:
    """Random bytes never raise anything but RemoteProtocolError."""
    for parse in (parse_unsealed, lambda d: list(split_run(d)), decode_payload):
        try:
            parse(data)
        except RemoteProtocolError:
            pass


@given(st.data())
def test_a_mutated_record_never_escapes(data: st.DataObject) -> None:
    """A worker's record with some bytes changed is refused, or is still well-formed."""
    raw = bytearray(record())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse_unsealed(bytes(raw))
        decode_payload(bytes(raw[HEADER_BYTES:]))
    except RemoteProtocolError:
        return
    assert header.length == len(raw) - HEADER_BYTES


def test_unknown_events_are_values() -> None:
    """A kind from a later version is kept as it came, between ones that are known."""
    later = msgspec.msgpack.encode((7, {"type": "session.teleported", "to": "mars"}))
    payload = join_entries(
        [encode_entry(1, LogWarning(message="a")), later, encode_entry(2, LogWarning(message="b"))]
    )
    assert decode_payload(payload) == [
        (1, LogWarning(message="a")),
        (7, Unknown(type="session.teleported", fields={"to": "mars"})),
        (2, LogWarning(message="b")),
    ]


def test_unknown_fields_are_ignored() -> None:
    """A later version may add fields to an event."""
    entry = msgspec.msgpack.encode((1, {"type": "log.warning", "message": "a", "colour": "red"}))
    assert decode_payload(join_entries([entry])) == [(1, LogWarning(message="a"))]


def test_a_header_that_lies_about_the_count_is_refused() -> None:
    """Offsets follow the count, so it must be the payload's own."""
    payload = join_entries([encode_entry(1, LogWarning(message="a"))])
    for count in (0, 2, 17):
        with pytest.raises(RemoteProtocolError):
            parse_unsealed(build_record(payload, session_key=9, first_seq=1, count=count, lane=0, incarnation=1))
