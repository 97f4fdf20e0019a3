"""A stateful test: any sequence of appends, reads, crashes, power failures and reopenings against the naive model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ottod.storage.ring import Ring
from ottod.storage.ring_format import MAX_LOST_INTERVALS
from tests.storage.ring_model import (
    BOOT,
    SEGMENT_BYTES,
    SIZE_BYTES,
    Model,
    Written,
    append,
    judge,
    open_ring,
    read_all,
)

PAGE_BYTES = 512
keys = st.integers(1, 12)


class RingMachine(RuleBasedStateMachine):
    """`written` is every event that was ever given an offset, `durable` those that a sync vouched for."""

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ring-machine-"))
        self.path = self.directory / "ring.wal"
        self.boots = 0
        self.written: list[Written] = []
        self.next_seq: dict[int, int] = {}
        self.model: Model | None = Model(SIZE_BYTES // SEGMENT_BYTES, SEGMENT_BYTES)
        self.ring: Ring = open_ring(self.path, boot_id=self.boot_id)
        self.ring.sync()
        self.synced_bytes = self.path.read_bytes()
        self.synced_events: list[Written] = []

    @property
    def boot_id(self) -> str:
        return f"{BOOT[:-4]}{self.boots:04}"

    @rule(key=keys, count=st.integers(1, 6), payload_bytes=st.integers(10, 500), times=st.integers(1, 12))
    def append(self, key: int, count: int, payload_bytes: int, times: int) -> None:
        for _ in range(times):
            seq = self.next_seq.get(key, 1)
            events = append(self.ring, key, count=count, payload_bytes=payload_bytes, first_seq=seq)
            assert not self.written or events[0].offset > self.written[-1].offset, "an offset is never given twice"
            self.next_seq[key] = seq + count
            self.written += events
            if self.model is not None:
                self.model.append(events, payload_bytes)

    @rule(data=st.data(), max_bytes=st.sampled_from((1, 120, 600, 3000, 1 << 20)), one=st.none() | keys)
    def read(self, data: st.DataObject, max_bytes: int, one: int | None) -> None:
        cursor = data.draw(st.integers(0, self.ring.head_offset))
        told = read_all(self.ring, cursor, key=one, max_bytes=max_bytes)
        judge(self.ring, self.written, told, cursor=cursor, key=one)

    @rule()
    def sync(self) -> None:
        self.ring.sync()
        self.synced_bytes = self.path.read_bytes()
        self.synced_events = read_all(self.ring).events

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        before = read_all(self.ring)
        head = self.ring.head_offset
        self.ring.close(clean=clean)
        self.boots += clean
        self.ring = open_ring(self.path, boot_id=self.boot_id)
        assert self.ring.recovery.is_intact, self.ring.recovery.describe()
        assert self.ring.head_offset == head
        assert read_all(self.ring) == before
        self.sync()

    @rule(cut=st.integers(0, 400))
    def die_while_appending(self, cut: int) -> None:
        """A crash in the middle of an append: the event was never seen, its offset may be given again."""
        before = read_all(self.ring)
        head = self.ring.head_offset
        key = 1
        append(self.ring, key, count=3, payload_bytes=400, first_seq=self.next_seq.get(key, 1))
        self.model = None
        segment = self.ring._tracks[key].segments[-1]
        position, stop = segment.positions[-1], segment.end
        self.ring._map[position + cut : stop] = bytes(stop - position - cut)
        self.ring._map[1024:1048] = b"".join(v.to_bytes(8, "little") for v in (head, head ^ (2**64 - 1), position))
        departed = {e.key for e in before.events} - {s.session_key for s in self.ring.sessions()}
        self.ring.close(clean=False)
        self.ring = open_ring(self.path, boot_id=self.boot_id)
        recovery = self.ring.recovery
        assert recovery.is_intact and recovery.unfinished_append == (cut > 0), recovery
        assert self.ring.head_offset == head
        assert not departed or self.written
        self.sync()

    @rule(data=st.data())
    def lose_power(self, data: st.DataObject) -> None:
        """Of what was written since the last sync, any sectors may have reached the disk."""
        self.ring.close(clean=False)
        now, old = self.path.read_bytes(), self.synced_bytes
        pages = [
            at for at in range(0, len(now), PAGE_BYTES) if now[at : at + PAGE_BYTES] != old[at : at + PAGE_BYTES]
        ]
        kept = data.draw(st.sets(st.sampled_from(pages))) if pages else set()
        mixed = bytearray(old)
        for at in kept:
            mixed[at : at + PAGE_BYTES] = now[at : at + PAGE_BYTES]
        self.path.write_bytes(mixed)
        self.boots += 1
        limit = self.written[-1].offset + 1 if self.written else 1
        self.ring = open_ring(self.path, boot_id=self.boot_id)
        self.model = None
        assert self.ring.head_offset >= limit, "an offset that was given is never given again"
        told = read_all(self.ring)
        judge(self.ring, self.written, told)
        if not kept and self.boots < MAX_LOST_INTERVALS:
            assert told.events == self.synced_events
        self.sync()

    @invariant()
    @precondition(lambda self: hasattr(self, "ring"))
    def nothing_is_missing_in_silence(self) -> None:
        told = read_all(self.ring)
        judge(self.ring, self.written, told)
        if self.model is not None:
            assert told.events == self.model.events()

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            self.ring.close(clean=False)
            shutil.rmtree(self.directory)


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
