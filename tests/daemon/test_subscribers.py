"""What subscribers are promised: everything once and in order, or a gap that is exactly right; and nobody waits."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from ottoctl.feed import Batch, SessionEvent
from ottoctl.sync import SyncOtto, SyncSession
from ottod.ids import session_id
from ottod.protocol.control import Request
from ottod.protocol.events import Gap, SessionExited
from ottod.protocol.requests import Ping, Unsubscribe
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.raw import Item, raw_client

TINY_RING = {"ring": {"size_bytes": 1024 * 1024, "segment_bytes": 128 * 1024}}
ROOMY_RING = {"ring": {"size_bytes": 32 * 1024 * 1024, "segment_bytes": 128 * 1024}}
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def tiny() -> Iterator[RealDaemon]:
    """A daemon whose ring is soon overrun."""
    with running_daemon(TINY_RING) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def roomy() -> Iterator[RealDaemon]:
    """A daemon whose ring holds all that these tests say."""
    with running_daemon(ROOMY_RING) as daemon:
        yield daemon


def streaming(daemon: RealDaemon, otto: SyncOtto, events: int, rate_hz: float, text_bytes: int = 40) -> SyncSession:
    """A session that says `events` deltas at that rate (0: as fast as it goes) and completes."""
    stream = {"events": events, "rate_hz": rate_hz, "text_bytes": text_bytes}
    model = daemon.script(f"stream-{events}-{rate_hz:g}-{text_bytes}", {"stream": stream})
    return otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir)


class Witness:
    """Follows all sessions from the head on, on a thread and a connection of its own, and keeps count."""

    def __init__(self, endpoint: str) -> None:
        self.events: dict[int, tuple[str, int]] = {}
        """Offset → (session, seq)."""
        self.gaps: list[Gap] = []
        self.repeated = 0
        self.first = 0
        self._endpoint = endpoint
        self._until: int | None = None
        self._failure: BaseException | None = None
        self._subscribed = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Witness:
        self._thread.start()
        assert self._subscribed.wait(30), "the witness could not subscribe"
        return self

    def __exit__(self, *_: object) -> None:
        self._until = 0
        self._thread.join(60)

    def finish(self, head: int) -> None:
        """Returns once everything below `head`, the next offset to be given, has been read."""
        self._until = head
        self._thread.join(60)
        assert not self._thread.is_alive(), f"the witness got to {self.first + len(self.events)}, not to {head}"
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with raw_client(self._endpoint) as raw:
                subscribed = raw.subscribe(None, credit_bytes=8 << 20)
                self.first = at = subscribed.head
                self._subscribed.set()
                while self._until is None or at < self._until:
                    if raw.socket.poll(20):
                        for item in raw.items(subscribed.subscription) or ():
                            at = self._note(item)
        except BaseException as error:  # noqa: BLE001 - raised where the witness is asked
            self._failure = error

    def _note(self, item: Item) -> int:
        if isinstance(item, Gap):
            self.gaps.append(item)
            return item.last + 1
        for offset, key_seq in unfold(item):
            self.repeated += offset in self.events
            self.events[offset] = key_seq
        return item.last_offset + 1


def unfold(item: Item) -> Iterator[tuple[int, tuple[str, int]]]:
    """(offset, (session, seq)) of each event of a record."""
    assert not isinstance(item, Gap)
    session = session_id(item.session_key)
    for i in range(item.event_count):
        yield item.first_offset + i, (session, item.first_seq + i)


class Account:
    """What one reader was given: its events, each once and in order, and what its gaps declare missing."""

    def __init__(self, items: Iterable[Item], cursor: int) -> None:
        self.events: dict[int, tuple[str, int]] = {}
        self.gaps: list[Gap] = []
        newest = 0
        for item in items:
            if isinstance(item, Gap):
                self.gaps.append(item)
                continue
            assert item.first_offset > newest, "a record out of order, or twice"
            newest = item.last_offset
            # A record that the cursor points into is delivered whole.
            self.events.update((offset, what) for offset, what in unfold(item) if offset >= cursor)

    def declared_missing(self, truth: dict[int, tuple[str, int]]) -> set[int]:
        """The offsets that the gaps declare missing, by what was really said. Declaring one twice is wrong."""
        missing: list[int] = []
        for gap in self.gaps:
            assert gap.reason == "evicted" and gap.first <= gap.last, gap
            hit = [o for o, (s, _) in truth.items() if gap.first <= o <= gap.last and gap.session in ("", s)]
            if not gap.session:
                # Without a session a gap speaks of those that have wholly left the ring, and of no other.
                hit = [o for o in hit if truth[o][0] not in {s for s, _ in self.events.values()}]
            missing += hit
        assert len(missing) == len(set(missing)), "the same event was declared missing twice"
        return set(missing)

    def check(self, truth: dict[int, tuple[str, int]], cursor: int) -> None:
        """Gaps and events together are exactly what was said from the cursor on; nothing is in both."""
        expected = {offset for offset in truth if offset >= cursor}
        missing = {offset for offset in self.declared_missing(truth) if offset >= cursor}
        assert missing.isdisjoint(self.events), "an event was delivered and declared missing"
        assert missing | set(self.events) == expected
        assert all(truth[offset] == what for offset, what in self.events.items())
        for gap in self.gaps:
            if gap.next_seq:
                following = [q for o, (s, q) in self.events.items() if s == gap.session and o > gap.last]
                assert min(following) == gap.next_seq, gap


# ---------------------------------------------------------------- coming back


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scope", ["one session", "all sessions"])
def test_coming_back_misses_nothing_and_repeats_nothing(roomy: RealDaemon, scope: str, seed: int) -> None:
    """A subscriber that leaves at random points, in the middle of batches too, and returns with its last offset."""
    chance = random.Random(seed)
    with roomy.client() as otto:
        watched = streaming(roomy, otto, 6000, 8000)
        other = streaming(roomy, otto, 3000, 4000)
        seen: list[SessionEvent] = []
        cursor, visits = watched.from_offset, 0
        ends = {watched.id} if scope == "one session" else {watched.id, other.id}
        while not _is_over(seen, ends):
            visits += 1
            with roomy.client() as fresh:
                source = fresh.session(watched.id) if scope == "one session" else fresh
                events = source.events(cursor)
                for _ in range(chance.choice((1, 2, 7, 40, 400, 1500))):
                    seen.append(next(events))
                    cursor = seen[-1].offset + 1
                    if isinstance(seen[-1].event, SessionExited) and _is_over(seen, ends):
                        break
                events.close()
        for session in (watched, other):
            session.wait()
        mine = [e for e in seen if scope == "all sessions" or e.session == watched.id]
        assert visits > 5
        assert not [e for e in seen if isinstance(e.event, Gap)]
        for session in (watched,) if scope == "one session" else (watched, other):
            told = [e for e in mine if e.session == session.id]
            assert told == list(session.events(0))
            assert [e.seq for e in told] == list(range(1, len(told) + 1))
        starts = {b.header.first_offset for b in watched.batches(0, follow=False) if isinstance(b, Batch)}
        assert any(e.session == watched.id and e.offset not in starts for e in seen)


def _is_over(seen: list[SessionEvent], sessions: set[str]) -> bool:
    return sessions <= {e.session for e in seen if isinstance(e.event, SessionExited)}


def test_a_cursor_in_the_middle_of_a_batch(roomy: RealDaemon) -> None:
    """Every offset of a batch is a cursor: what follows begins exactly there, over the wire and in the library."""
    with roomy.client() as otto:
        session = streaming(roomy, otto, 8000, 0)
        session.wait()
        whole = list(session.events(0))
        batches = [b.header for b in session.batches(0, follow=False) if isinstance(b, Batch)]
        batch = max(batches, key=lambda header: header.event_count)
        first, last = batch.first_offset, batch.last_offset
        assert last > first, "8,000 events as fast as they go, and no two of them in one batch"
        for offset in sorted({first, first + 1, (first + last) // 2, last, last + 1}):
            assert list(session.events(offset)) == [e for e in whole if e.offset >= offset]


def test_a_new_daemon_goes_on_where_the_old_one_was_killed() -> None:
    """A reader that outlives root's kill -9 misses nothing, repeats nothing, and reads on from the next root."""
    with running_daemon(ROOMY_RING) as daemon, daemon.client() as reader:
        with daemon.client() as otto:
            first = streaming(daemon, otto, 100_000, 2000)
            events = reader.events(0)
            seen = [next(events) for _ in range(500)]
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            second = streaming(daemon, otto, 50, 0)
            second.wait()
            # The first one outlived its root, and goes on until it is stopped.
            otto.session(first.id).kill()
            ended = set[str]()
            for event in events:
                seen.append(event)
                if isinstance(event.event, SessionExited):
                    ended.add(event.session)
                if ended == {first.id, second.id}:
                    break
            assert [e.offset for e in seen] == sorted({e.offset for e in seen})
            for session in (first, second):
                told = [e for e in seen if e.session == session.id]
                assert [e.seq for e in told] == list(range(1, len(told) + 1))
                assert told == list(otto.session(session.id).events(0)) and isinstance(told[-1].event, SessionExited)
        events.close()


# ---------------------------------------------------------------- behind the tail


def test_gaps_are_exactly_right(tiny: RealDaemon) -> None:
    """From any cursor: the gap and what is delivered are together exactly what was said, by offset and by seq."""
    with tiny.client() as otto, Witness(tiny.endpoint) as witness:
        quiet = [streaming(tiny, otto, 5, 0) for _ in range(2)]
        for session in quiet:
            session.wait()
        chatty = streaming(tiny, otto, 12_000, 6000, 160)
        late = streaming(tiny, otto, 30, 20)
        chatty.wait()
        late.wait()
        head = otto.status().ring_head
        witness.finish(head)
        truth = witness.events
        assert witness.gaps == [] and witness.repeated == 0 and set(truth) == set(range(witness.first, head))
        chance = random.Random(3)
        cursors = [witness.first, head - 1, *(chance.randrange(witness.first, head) for _ in range(12))]
        gaps = 0
        for cursor in cursors:
            account = _read(tiny, cursor)
            account.check(truth, cursor)
            gaps += len(account.gaps)
            for session in (chatty, late, *quiet):
                own = {o: what for o, what in truth.items() if what[0] == session.id}
                account = _read(tiny, cursor, session.id)
                account.check(own, cursor)
                assert all(gap.session == session.id for gap in account.gaps)
                assert session is chatty or not account.gaps
        assert gaps > 0


def test_sessions_that_left_the_ring_are_gaps_too(tiny: RealDaemon) -> None:
    """With more sessions than segments some are wholly gone: readers of all and of one are told exactly that."""
    with tiny.client() as otto, Witness(tiny.endpoint) as witness:
        sessions = [streaming(tiny, otto, 20, 0) for _ in range(12)]
        for session in sessions:
            session.wait()
        head = otto.status().ring_head
        witness.finish(head)
        truth = witness.events
        assert set(truth) == set(range(witness.first, head))
        account = _read(tiny, witness.first)
        account.check(truth, witness.first)
        assert any(not gap.session for gap in account.gaps)
        gone = 0
        for session in sessions:
            own = {o: what for o, what in truth.items() if what[0] == session.id}
            account = _read(tiny, witness.first, session.id)
            account.check(own, witness.first)
            gone += not account.events
        assert gone >= 4


def test_a_follower_that_fell_behind_is_told_what_it_missed(tiny: RealDaemon) -> None:
    """One that followed, used up its credit, and comes to after the ring was overrun: its gap stands in its place."""
    with tiny.client() as otto, Witness(tiny.endpoint) as witness, raw_client(tiny.endpoint) as slow:
        everything = slow.subscribe(None, credit_bytes=64 * 1024)
        chatty = streaming(tiny, otto, 12_000, 6000, 160)
        chatty.wait()
        head = otto.status().ring_head
        witness.finish(head)
        slow.grant(everything.subscription, 1 << 20)
        account = Account(slow.read_until(everything.subscription, head), everything.head)
        account.check({o: w for o, w in witness.events.items() if o >= everything.head}, everything.head)
        assert account.gaps and min(account.events) < account.gaps[0].first < max(account.events)


def test_a_chatty_session_does_not_evict_a_quiet_one(tiny: RealDaemon) -> None:
    """After ten times the ring of chatter a quiet session's whole history is still there."""
    with tiny.client() as otto:
        quiet = streaming(tiny, otto, 40, 0)
        quiet.wait()
        told = list(quiet.events(0))
        chatty = streaming(tiny, otto, 60_000, 0, 160)
        chatty.wait()
        assert otto.status().ring_tail <= told[0].offset
        assert list(quiet.events(0)) == told
        assert [e.seq for e in told] == list(range(1, len(told) + 1))
        assert isinstance(told[-1].event, SessionExited)
        rest = list(chatty.events(0))
        assert isinstance(rest[0].event, Gap) and rest[1].seq == rest[0].event.next_seq > 1


def _read(daemon: RealDaemon, cursor: int, session: str = "") -> Account:
    with raw_client(daemon.endpoint) as raw:
        subscribed = raw.subscribe(cursor, session=session, follow=False)
        return Account(raw.read_to_end(subscribed.subscription), cursor)


# ---------------------------------------------------------------- slow and dead ones


def _anonymous_bytes(pid: int) -> int:
    """Memory of its own that a process has in use; the ring's mapped pages are not in it."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["RssAnon"].split()[0]) * 1024


def test_those_who_do_not_read_slow_nobody_and_cost_no_memory(roomy: RealDaemon) -> None:
    """Twenty subscribers stop reading, ten of them frozen whole, while 120,000 events pass to one that reads."""
    credit_bytes = 256 * 1024
    with ExitStack() as stack, roomy.client() as otto:
        before = otto.status().subscriptions
        for _ in range(10):
            stalled = stack.enter_context(raw_client(roomy.endpoint, queue_messages=10))
            stalled.subscribe(None, credit_bytes=credit_bytes)
        frozen = [stack.enter_context(_follower(roomy, credit_bytes)) for _ in range(10)]
        wait_for("all follow", lambda: otto.status().subscriptions >= before + 20)
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        # What the first events cost every process once is not a leak.
        streaming(roomy, otto, 2000, 0).wait()
        resting_bytes = _anonymous_bytes(roomy.pid)
        with Witness(roomy.endpoint) as witness:
            chatty = streaming(roomy, otto, 120_000, 40_000)
            assert chatty.wait().ok
            head = otto.status().ring_head
            witness.finish(head)
        grown_bytes = _anonymous_bytes(roomy.pid) - resting_bytes
        assert witness.gaps == [] and witness.repeated == 0
        assert set(witness.events) == set(range(witness.first, head)) and len(witness.events) > 120_000
        # What may be on its way is bounded by credit; what is said is more than the bound by far.
        assert grown_bytes < 20 * credit_bytes + 4 * 1024 * 1024, f"root grew by {grown_bytes} bytes"


FOLLOW = """
import sys

from ottoctl.sync import SyncOtto
with SyncOtto.connect(sys.argv[1]) as otto:
    for event in otto.events(None, credit_bytes=int(sys.argv[2])):
        print(event.offset, flush=True)
"""


@contextmanager
def _follower(daemon: RealDaemon, credit_bytes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that follows everything and prints offsets; killed at the end."""
    argv = [sys.executable, "-c", FOLLOW, daemon.endpoint, str(credit_bytes)]
    process = subprocess.Popen(argv, env=daemon.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_dead_client_is_forgotten(roomy: RealDaemon) -> None:
    """A follower is killed in the middle of the stream: its subscription goes, the session and others go on."""
    with roomy.client() as otto, Witness(roomy.endpoint) as witness:
        before = otto.status()
        session = streaming(roomy, otto, 100_000, 1000)
        with _follower(roomy, 1 << 20) as process:
            assert process.stdout is not None
            for _ in range(50):
                assert process.stdout.readline().strip().isdigit()
        wait_for("it is forgotten", lambda: otto.status().subscriptions <= before.subscriptions)
        wait_for("its client too", lambda: otto.status().clients <= before.clients)
        assert session.stop(grace_s=5).remaining_pids == ()
        head = otto.status().ring_head
        witness.finish(head)
        assert set(witness.events) == set(range(witness.first, head)) and not witness.gaps


def test_frozen_subscribers_leave_root_idle(roomy: RealDaemon) -> None:
    """Subscribers with credit whose queues are full are looked at ever more rarely, not in a busy loop."""
    with ExitStack() as stack, roomy.client() as otto:
        for _ in range(20):
            stalled = stack.enter_context(raw_client(roomy.endpoint, queue_messages=10))
            stalled.subscribe(None, credit_bytes=8 << 20)
        streaming(roomy, otto, 3000, 2000).wait()
        used_s = _cpu_s(roomy.pid)
        assert otto.status().subscriptions >= 20
        # Nothing is said for a second: a loop that turns all the time would use all of it.
        threading.Event().wait(1.0)
        assert _cpu_s(roomy.pid) - used_s < 0.5


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def test_who_did_not_read_takes_up_again_where_it_stopped(roomy: RealDaemon) -> None:
    """A client whose queue was full, and who may be forgotten for it, says hello again and misses nothing."""
    with roomy.client() as otto, raw_client(roomy.endpoint, queue_messages=10) as raw:
        subscribed = raw.subscribe(None, credit_bytes=8 << 20)
        begin = subscribed.head
        streaming(roomy, otto, 3000, 3000).wait()
        head = otto.status().ring_head
        # There is no room for the answer to this.
        raw.send(Request(id=99, body=Ping()))
        items: list[Item] = []
        at = begin
        while at < head:
            try:
                items += raw.items(subscribed.subscription, deadline_s=2) or ()
                at = _end_of(items[-1]) if items else begin
            except AssertionError:
                # It was forgotten; or the machine is busy, and what was on its way comes again from `at` on.
                raw.say_hello_again()
                raw.ask(Unsubscribe(subscription=subscribed.subscription))
                raw.drain()
                subscribed = raw.subscribe(at, credit_bytes=8 << 20)
        first = min(offset for offset, _ in unfold(items[0]))
        account = Account(items, first)
        assert first == begin
        assert sorted(o for o in account.events if o < head) == list(range(first, head)) and not account.gaps


def _end_of(item: Item) -> int:
    return (item.last if isinstance(item, Gap) else item.last_offset) + 1
