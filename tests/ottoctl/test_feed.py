"""A feed hands out everything once and in order, or says what is missing."""

from __future__ import annotations

import pytest

from ottoctl.feed import DEFAULT_CREDIT_BYTES, MIN_CREDIT_BYTES, Batch, Feed, SessionEvent
from ottod.errors import OttoError, RemoteProtocolError
from ottod.ids import session_id
from ottod.protocol.cause import Cause
from ottod.protocol.events import ContentDelta, Gap, SessionExited, TurnStarted, Unknown
from ottod.protocol.records import LANE_DELTA, LANE_STATE, build_record, encode_entry, join_entries
from ottod.protocol.results import Subscribed

KEY = 7
SID = session_id(KEY)


def record(first_offset: int, first_seq: int, count: int = 1, *, key: int = KEY, size: int = 1) -> bytes:
    """A sealed record whose events say their seq."""
    entries = [
        encode_entry(1000 + i, ContentDelta(stream="text", text=f"{first_seq + i}".ljust(size, ".")))
        for i in range(count)
    ]
    return build_record(
        join_entries(entries),
        session_key=key,
        first_seq=first_seq,
        count=count,
        lane=1,
        incarnation=1,
        first_offset=first_offset,
    )


def opened(*, session: str = SID, from_offset: int | None = 0, follow: bool = True, head: int = 1000) -> Feed:
    """A feed with a subscription."""
    feed = Feed(session=session, from_offset=from_offset, follow=follow)
    feed.opened(Subscribed(subscription=1, tail=1, head=head))
    return feed


def taken(feed: Feed) -> list[SessionEvent | Gap]:
    """Everything that can be read now."""
    out: list[SessionEvent | Gap] = []
    while (item := feed.take()) is not None:
        out += item.events() if isinstance(item, Batch) else [item]
    return out


def offsets(feed: Feed) -> list[int]:
    return [e.offset for e in taken(feed) if isinstance(e, SessionEvent)]


def test_events_have_their_place() -> None:
    """Offset, seq, session, time and lane of each event come from the record."""
    feed = opened()
    feed.put_run(record(10, 5, 3))
    first, _, third = taken(feed)
    assert isinstance(first, SessionEvent) and isinstance(third, SessionEvent)
    assert first == SessionEvent(10, 5, SID, 1000, "delta", ContentDelta(stream="text", text="5"))
    assert (third.offset, third.seq, third.at_ns) == (12, 7, 1002)


def test_a_record_that_starts_before_the_cursor_is_cut() -> None:
    """The cursor may stand in the middle of a record: what comes before it is dropped."""
    feed = opened(from_offset=12)
    feed.put_run(record(10, 5, 4))
    events = taken(feed)
    assert [(e.offset, e.seq) for e in events if isinstance(e, SessionEvent)] == [(12, 7), (13, 8)]


def test_nothing_comes_twice_after_a_resume() -> None:
    """Records that arrive again, wholly or in part, are dropped without a complaint about their seq."""
    feed = opened()
    feed.put_run(record(1, 1, 10))
    feed.detached()
    assert feed.request().from_offset == 11
    feed.opened(Subscribed(subscription=2, tail=1, head=20))
    feed.put_run(record(1, 1, 10) + record(6, 6, 8))
    assert offsets(feed) == list(range(1, 14))
    assert feed.resumed_count == 1


def test_a_hole_without_a_gap_is_an_error() -> None:
    """What came before the hole can still be read; then the reader meets the error, every time."""
    feed = opened()
    feed.put_run(record(1, 1, 2) + record(9, 5, 1))
    batch = feed.take()
    assert isinstance(batch, Batch) and len(batch.events()) == 2
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="seq 5 came where 3 was due"):
            feed.take()


def test_a_seq_that_comes_again_under_a_new_offset_is_an_error() -> None:
    """A reused seq is as wrong as a missing one."""
    feed = opened()
    feed.put_run(record(1, 1, 3) + record(4, 3, 1))
    feed.take()
    with pytest.raises(RemoteProtocolError, match="seq 3 came where 4"):
        feed.take()


def test_sessions_are_counted_apart() -> None:
    """In a feed of all sessions each has its own seq."""
    feed = opened(session="")
    feed.put_run(record(1, 1, 2) + record(3, 8, 2, key=9) + record(5, 3, 1) + record(6, 10, 1, key=9))
    assert offsets(feed) == [1, 2, 3, 4, 5, 6]


def test_a_foreign_record_is_an_error() -> None:
    """A feed of one session does not accept another's events."""
    feed = opened()
    feed.put_run(record(1, 1, 1, key=9))
    with pytest.raises(RemoteProtocolError, match="in the feed of"):
        feed.take()


def test_a_gap_stands_in_its_place_and_explains_the_hole() -> None:
    """After a gap the session goes on at its next_seq; a resume asks behind it."""
    feed = opened()
    feed.put_run(record(1, 1, 2))
    gap = Gap(first=3, last=8, reason="evicted", session=SID, next_seq=9)
    feed.put_gap(gap)
    feed.put_run(record(9, 9, 1))
    items = taken(feed)
    assert [i if isinstance(i, Gap) else i.offset for i in items] == [1, 2, gap, 9]


def test_a_gap_that_promises_another_seq_is_an_error() -> None:
    """The gap says exactly what is missing: what follows must fit."""
    feed = opened()
    feed.put_gap(Gap(first=1, last=8, reason="evicted", session=SID, next_seq=9))
    feed.put_run(record(9, 10, 1))
    assert isinstance(feed.take(), Gap)
    with pytest.raises(RemoteProtocolError, match="seq 10 came where 9"):
        feed.take()


def test_the_same_gap_is_told_once() -> None:
    """A daemon tells of a hole again when a reader resumes inside it: the known part is cut off."""
    feed = opened(session="")
    feed.put_gap(Gap(first=1, last=8, reason="evicted", session=SID, next_seq=9))
    feed.put_gap(Gap(first=5, last=8, reason="evicted", session=SID, next_seq=9))
    feed.put_gap(Gap(first=5, last=12, reason="evicted", session=SID, next_seq=13))
    assert [(g.first, g.last) for g in taken(feed) if isinstance(g, Gap)] == [(1, 8), (9, 12)]


def test_what_was_lost_in_a_power_failure_resets_all_expectations() -> None:
    """After a `lost` gap no session's next seq is known."""
    feed = opened(session="")
    feed.put_run(record(1, 1, 1) + record(2, 1, 1, key=9))
    feed.put_gap(Gap(first=3, last=20, reason="lost"))
    feed.put_run(record(21, 40, 1) + record(22, 17, 1, key=9))
    assert len(taken(feed)) == 5
    assert feed.request().from_offset == 23


def test_without_follow_nothing_beyond_the_first_head_is_given() -> None:
    """A resume moves the daemon's head; the reader asked for what there was when it began."""
    feed = opened(follow=False, head=4)
    feed.put_run(record(1, 1, 3))
    feed.detached()
    feed.opened(Subscribed(subscription=2, tail=1, head=50))
    feed.put_run(record(4, 4, 5))
    assert offsets(feed) == [1, 2, 3]
    assert feed.end_reason == "caught_up"


def test_new_events_only_begins_at_the_head() -> None:
    """from_offset None means the head of the moment; that is also where a resume begins."""
    feed = opened(from_offset=None, head=30)
    assert feed.request().from_offset == 30


def test_damage_is_an_error_behind_what_was_whole() -> None:
    """A flipped bit anywhere in a record never becomes an event."""
    good, bad = record(1, 1, 2), bytearray(record(3, 3, 2))
    for at in range(len(bad)):
        flipped = bytearray(bad)
        flipped[at] ^= 1
        feed = opened()
        feed.put_run(good + bytes(flipped))
        batch = feed.take()
        assert isinstance(batch, Batch) and [e.seq for e in batch.events()] == [1, 2]
        with pytest.raises(RemoteProtocolError):
            feed.take()


def test_a_lying_count_is_an_error() -> None:
    """A record that passes its checksum and holds another number of events than it says is refused."""
    payload = join_entries([encode_entry(1, TurnStarted(turn=1))])
    lying = build_record(
        payload, session_key=KEY, first_seq=1, count=2, lane=LANE_STATE, incarnation=1, first_offset=1
    )
    feed = opened()
    feed.put_run(lying)
    batch = feed.take()
    assert isinstance(batch, Batch)
    with pytest.raises(RemoteProtocolError, match="says 2 events and carries 1"):
        batch.events()


@pytest.mark.parametrize(
    "payload", [b"\x91\xc1", join_entries([encode_entry(1, ContentDelta(stream="text", text="a"))])]
)
def test_the_lane_that_root_does_not_read_ends_no_reader(payload: bytes) -> None:
    """A worker's garbage among deltas, or a wrong count, costs its own events and nobody's line."""
    lying = build_record(
        payload, session_key=KEY, first_seq=1, count=2, lane=LANE_DELTA, incarnation=1, first_offset=1
    )
    feed = opened()
    feed.put_run(lying)
    batch = feed.take()
    assert isinstance(batch, Batch)
    assert [(e.seq, e.event) for e in batch.events()] == [(n, Unknown(type="undecodable")) for n in (1, 2)]


def test_an_end_among_deltas_is_not_believed() -> None:
    """Only root says that a session has ended, and root does not look into that lane."""
    payload = join_entries([encode_entry(1, SessionExited(cause=Cause(kind="completed")))])
    lying = build_record(
        payload, session_key=KEY, first_seq=1, count=1, lane=LANE_DELTA, incarnation=1, first_offset=1
    )
    feed = opened()
    feed.put_run(lying)
    batch = feed.take()
    assert isinstance(batch, Batch)
    (event,) = batch.events()
    assert event.event == Unknown(type="misplaced session.exited")


def test_credit_is_owed_for_what_was_taken_and_no_more() -> None:
    """Nothing is granted for bytes that wait; all of it, in few grants, for bytes that were taken."""
    feed = opened()
    run = b"".join(record(1 + i, 1 + i, size=20_000) for i in range(40))
    feed.put_run(run)
    assert feed.backlog_bytes == len(run)
    assert feed.owed_bytes() == 0
    granted, grants = 0, 0
    while feed.take() is not None:
        owed = feed.owed_bytes()
        granted, grants = granted + owed, grants + (owed > 0)
    assert feed.backlog_bytes == 0
    assert len(run) - DEFAULT_CREDIT_BYTES // 4 < granted <= len(run)
    assert grants <= 4


def test_a_resume_asks_only_for_the_credit_that_is_left() -> None:
    """Backlog and new credit together never exceed the feed's credit."""
    feed = Feed(session=SID, from_offset=0, credit_bytes=MIN_CREDIT_BYTES)
    feed.opened(Subscribed(subscription=1, tail=1, head=9))
    feed.put_run(record(1, 1, size=20_000))
    assert feed.request().credit_bytes + feed.backlog_bytes == MIN_CREDIT_BYTES


def test_a_daemon_that_ignores_credit_is_cut_off() -> None:
    """The backlog is bounded whatever the daemon does."""
    feed = Feed(session=SID, from_offset=0, credit_bytes=MIN_CREDIT_BYTES)
    feed.opened(Subscribed(subscription=1, tail=1, head=9))
    for i in range(200):
        feed.put_run(record(1 + i, 1 + i, size=20_000))
    assert isinstance(feed.error, RemoteProtocolError)
    assert feed.backlog_bytes <= 2 * MIN_CREDIT_BYTES + 200_000


def test_an_event_of_the_future_is_kept_as_it_came() -> None:
    """A kind that this version does not know is an Unknown, with its fields."""
    import msgspec

    entry = msgspec.msgpack.encode([1, {"type": "future.kind", "x": 1}])
    feed = opened()
    feed.put_run(
        build_record(
            join_entries([entry]), session_key=KEY, first_seq=1, count=1, lane=0, incarnation=1, first_offset=1
        )
    )
    (event,) = taken(feed)
    assert isinstance(event, SessionEvent)
    assert event.event == Unknown(type="future.kind", fields={"x": 1})


def test_an_error_waits_behind_the_backlog() -> None:
    """A connection that fails does not take away what has arrived."""
    feed = opened()
    feed.put_run(record(1, 1))
    feed.fail(OttoError("gone"))
    assert isinstance(feed.take(), Batch)
    with pytest.raises(OttoError, match="gone"):
        feed.take()


def test_the_end_of_a_session_is_recognised() -> None:
    """Only session.exited on the state lane ends a session."""
    from ottoctl.feed import ends_session
    from ottod.protocol.cause import Cause

    payload = join_entries([encode_entry(1, SessionExited(cause=Cause(kind="completed")))])
    feed = opened()
    feed.put_run(build_record(payload, session_key=KEY, first_seq=1, count=1, lane=0, incarnation=1, first_offset=1))
    feed.put_run(record(2, 2))
    last, other = feed.take(), feed.take()
    assert isinstance(last, Batch) and isinstance(other, Batch)
    assert ends_session(last, last.events())
    assert not ends_session(other, other.events())
