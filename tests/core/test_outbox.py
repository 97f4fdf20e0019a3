"""The outbox: no hole in seq, bounded, and everything unacknowledged can be sent again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.outbox import BATCH_BYTES, Outbox
from ottod.errors import LocalProtocolError
from ottod.protocol.events import ContentDelta, LogWarning
from ottod.protocol.records import LANE_DELTA, LANE_STATE, MAX_PAYLOAD_BYTES, decode_payload, parse_unsealed


def outbox(max_unacked_bytes: int = 1 << 20, next_seq: int = 2) -> Outbox:
    return Outbox(session_key=7, incarnation=1, next_seq=next_seq, max_unacked_bytes=max_unacked_bytes)


def delta(text: str = "x") -> ContentDelta:
    return ContentDelta(stream="text", text=text)


def test_neighbours_of_one_lane_share_a_batch() -> None:
    """Events emitted together leave together; a change of lane starts another batch."""
    box = outbox()
    for event in (delta(), delta(), LogWarning(message="w"), delta()):
        box.emit(event, 1)
    headers = [parse_unsealed(r) for r in box.take()]
    assert [(h.first_seq, h.event_count, h.lane) for h in headers] == [
        (2, 2, LANE_DELTA),
        (4, 1, LANE_STATE),
        (5, 1, LANE_DELTA),
    ]


def test_a_batch_is_closed_when_it_is_large() -> None:
    """No batch grows far beyond BATCH_BYTES, and nothing is lost between them."""
    box = outbox()
    for _ in range(200):
        box.emit(delta("y" * 1000), 1)
    records = box.take()
    assert len(records) > 5 and all(len(r) < BATCH_BYTES + 2000 for r in records)
    assert sum(parse_unsealed(r).event_count for r in records) == 200


def test_an_event_larger_than_a_record_is_our_bug() -> None:
    """The bound is checked where the event is made, and the seq is not used up."""
    box = outbox()
    with pytest.raises(LocalProtocolError):
        box.emit(LogWarning(message="z" * MAX_PAYLOAD_BYTES), 1)
    assert box.emit(delta(), 1) == 2


def test_an_impossible_acknowledgement_is_refused() -> None:
    """Root cannot have what was never emitted."""
    box = outbox()
    box.emit(delta(), 1)
    with pytest.raises(LocalProtocolError):
        box.ack(3)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.integers(0, 3000)),
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("untake"), st.integers(0, 3)),
        st.tuples(st.just("ack"), st.integers(0, 100)),
        st.tuples(st.just("rewind"), st.just(0)),
    ),
    max_size=60,
)


@given(actions)
def test_against_a_naive_model(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, root can rebuild the exact sequence, and the byte count returns to zero."""
    box = outbox()
    received: dict[int, str] = {}
    expected: dict[int, str] = {}
    wire: list[bytes] = []

    def deliver(records: list[bytes]) -> None:
        for record in records:
            header = parse_unsealed(record)
            for i, (_, event) in enumerate(decode_payload(record[40:])):
                assert isinstance(event, ContentDelta)
                seq = header.first_seq + i
                assert received.setdefault(seq, event.text) == event.text
                assert seq == 2 or seq - 1 in received

    for what, n in steps:
        if what == "emit":
            text = f"{len(expected)}:" + "x" * n
            expected[box.emit(delta(text), 1)] = text
        elif what == "take":
            wire = box.take()
            deliver(wire)
        elif what == "untake" and wire:
            count = min(n, len(wire))
            box.untake(count)
            wire = wire[: len(wire) - count]
        elif what == "ack" and received:
            newest = max(received)
            box.ack(min(newest, box.acked_seq + n))
            wire = []
        elif what == "rewind":
            box.rewind()
            wire = []
    deliver(box.take())
    assert received == expected
    if expected:
        box.ack(max(expected))
    assert (box.held_bytes, box.has_unsent, box.is_settled) == (0, False, True)
