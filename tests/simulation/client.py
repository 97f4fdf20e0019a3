"""A client: speaks the public protocol over the fake bus, remembers what it was told, and checks what it is sent.

It holds one line, says hello to every root it finds, goes on with its subscriptions from where it was, and asks
again what a root that died did not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ottod.errors import Failure
from ottod.ids import session_key
from ottod.protocol import PROTOCOL_VERSION, requests, results
from ottod.protocol import control as c
from ottod.protocol.events import Gap
from ottod.protocol.records import split_run
from tests.simulation.bus import Frames, Line

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

RETRY_S = 0.05
PING_S = 5.0

OnReply = Callable[[results.Result | None, Failure | None], None]


class View:
    """One subscription over all its lives. `cursor` is the next offset that is wanted."""

    def __init__(self, session: str, cursor: int, *, credit: int) -> None:
        self.session = session
        self.key = session_key(session) if session else None
        self.cursor = cursor
        self.credit = credit
        self.number: int | None = None
        self.gaps: list[Gap] = []
        self.seen = 0
        self.is_first = True
        self.is_paused = False
        self.unread = 0


class Client:
    """One connection's owner."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.world = machine.world
        self.name = name
        self.views: list[View] = []
        self.pending: dict[int, tuple[requests.RequestBody, OnReply]] = {}
        self._sent_to: dict[int, object] = {}
        self._next = 1
        self._is_welcome = False
        self._root: object = None
        self._retired: set[int] = set()
        """Subscriptions that are over on either side; some of their records may come yet."""
        self._given_up: set[int] = set()
        """Requests that were asked again under another number."""
        self._line = Line(machine.control_endpoint, name, self._hear, limit=machine.control_endpoint.limit)
        self._watch()
        self._ping()

    # ------------------------------------------------------------ connection

    def _watch(self) -> None:
        """Says hello to whoever listens now, once; again when nothing came of it."""
        router = self._line.router
        if router is not self._root:
            self._is_welcome, self._root = False, router
            self._retired.clear()
            for view in self.views:
                view.number = None
        if router is not None and not self._is_welcome and not self._line.is_frozen:
            hello = c.Hello(protocol=PROTOCOL_VERSION, client=self.name, token=self.machine.token)
            self._line.send([c.client_messages.encode(hello)])
        self.world.after(0.2, self._watch)

    def set_frozen(self, *, frozen: bool) -> None:
        """A client that does not run reads nothing and says nothing."""
        self._line.is_frozen = frozen
        if not frozen:
            self._line.thaw()

    def _forgotten(self) -> None:
        """Root has forgotten this client while it did not read: what was open is asked for again."""
        self.world.count("clients forgotten")
        self._is_welcome = False
        for view in self.views:
            if view.number is not None:
                self._retired.add(view.number)
                view.number = None
        for number in list(self.pending):
            self._given_up.add(number)
            body, on_reply = self.pending.pop(number)
            if not isinstance(body, requests.Subscribe):
                self.ask(body, on_reply)

    def _ping(self) -> None:
        if self._is_welcome and not self._line.is_frozen:
            self.ask(requests.Ping(), lambda result, failure: None)
        self.world.after(PING_S, self._ping)

    def ask(self, body: requests.RequestBody, on_reply: OnReply) -> None:
        """Sends a request, now or when there is a root again; `on_reply` is called once."""
        number, self._next = self._next, self._next + 1
        self.pending[number] = body, on_reply
        self._send(number)

    def _send(self, number: int) -> None:
        if number not in self.pending or not self._is_welcome or self._sent_to.get(number) is self._root:
            return
        if self._line.is_frozen:
            self.world.after(RETRY_S * 10, self._send, number)
            return
        body, _ = self.pending[number]
        if self._line.send([c.client_messages.encode(c.Request(id=number, body=body))]):
            self._sent_to[number] = self._root
        else:
            self.world.after(RETRY_S, self._send, number)

    def subscribe(self, session: str, cursor: int) -> None:
        """Everything from `cursor` on, over all roots to come."""
        view = View(session, cursor, credit=self.world.random.choice((2_000, 20_000, 1_000_000)))
        self.views.append(view)
        if self._is_welcome:
            self._begin(view)

    def _begin(self, view: View) -> None:
        root = self._root
        view.is_first, view.unread = True, 0
        body = requests.Subscribe(from_offset=view.cursor, session=view.session, credit_bytes=view.credit)

        def replied(result: results.Result | None, failure: Failure | None) -> None:
            if root is not self._root or not self._is_welcome:
                return
            if failure is not None:
                self.machine.oracle.fail(f"{self.name}: subscribe from {view.cursor}: {failure.message}")
            assert isinstance(result, results.Subscribed)
            view.number = result.subscription

        self.ask(body, replied)

    # ------------------------------------------------------------ what root says

    def _hear(self, frames: Frames) -> None:
        if frames[0][:1] == c.KIND_RECORDS:
            self._records(int.from_bytes(frames[0][1:5], "big"), frames[1])
            return
        match c.server_messages.decode(frames[1]):
            case c.Welcome():
                if not self._is_welcome:
                    self._is_welcome = True
                    for number in list(self.pending):
                        if isinstance(self.pending[number][0], requests.Subscribe):
                            del self.pending[number]  # Asked again below, from where the view is now.
                        else:
                            self._send(number)
                    for view in self.views:
                        self._begin(view)
            case c.Rejected() as rejected:
                if rejected.failure.code == "hello_required":
                    return  # A grant for what is gone; the next request says the same of itself.
                self.machine.oracle.fail(f"{self.name} was rejected: {rejected.failure.message}")
            case c.Reply() as reply:
                if reply.failure is not None and reply.failure.code == "hello_required":
                    if reply.id in self.pending:
                        self._forgotten()
                    return
                if reply.id in self._given_up:
                    return
                _, on_reply = self.pending.pop(reply.id, (None, None))
                if on_reply is None:
                    self.machine.oracle.fail(f"{self.name}: a second answer to request {reply.id}: {reply}")
                else:
                    on_reply(reply.result, reply.failure)
            case c.GapNotice() as notice:
                told = self._view(notice.subscription)
                if told is not None:
                    self.world.count("gaps told")
                    told.gaps.append(notice.gap)
            case c.SubscriptionEnded() as ended:
                if self._view(ended.subscription) is not None and ended.reason != "daemon_stop":
                    self.machine.oracle.fail(f"{self.name}: a subscription was ended: {ended.reason}")

    def _view(self, number: int) -> View | None:
        return next((view for view in self.views if view.number == number), None)

    def _records(self, number: int, run: bytes) -> None:
        view = self._view(number)
        if view is None and number in self._retired:
            return
        if view is None:
            self.machine.oracle.fail(f"{self.name}: records of subscription {number}, which it does not have")
            return
        for header, payload in split_run(run):
            self._record(view, header.first_offset, header.event_count, bytes(payload))
        view.unread += len(run)
        if not view.is_paused:
            self.grant(view)

    def grant(self, view: View) -> None:
        if view.number is not None and view.unread and not self._line.is_frozen:
            grant = c.Grant(subscription=view.number, bytes=view.unread)
            if self._line.send([c.client_messages.encode(grant)]):
                view.unread = 0

    def _record(self, view: View, first: int, count: int, payload: bytes) -> None:
        oracle, where = self.machine.oracle, f"{self.name} from {view.cursor}"
        known = oracle.log.get(first)
        if known is None or known[1:] != (count, payload):
            oracle.fail(f"{where}: offset {first} holds something that is not in the ring")
            return
        if view.key is not None and known[0] != view.key:
            oracle.fail(f"{where}: offset {first} is another session's")
        if first < view.cursor and not (view.is_first and view.cursor < first + count):
            oracle.fail(f"{where}: offset {first} came again")
        view.is_first = False
        self._explain(view, view.cursor, first)
        for offset in range(first, first + count):
            # A gap of evicted sessions speaks only of those that are wholly gone, which this one is not.
            if any(_covers(gap, offset, known[0]) and (gap.session or gap.reason == "lost") for gap in view.gaps):
                oracle.fail(f"{where}: offset {offset} came although a gap said that it is missing")
        view.seen += count
        view.cursor = first + count

    def _explain(self, view: View, start: int, stop: int) -> None:
        """Every offset that was passed over is another session's, or a gap says that it is missing."""
        oracle = self.machine.oracle
        for offset in range(start, stop):
            key = oracle.key_at.get(offset)
            if key is None or (view.key is not None and key != view.key):
                continue
            if not any(_covers(gap, offset, key) for gap in view.gaps):
                oracle.fail(f"{self.name} was sent {stop} when {offset} was due, and no gap says so")

    def check_caught_up(self) -> None:
        """At rest: every view has reached the head, or passed only what is not its own."""
        for view in self.views:
            if view.number is None:
                self.machine.oracle.fail(f"{self.name}: a subscription never came back")
            self._explain(view, view.cursor, self.machine.oracle.head)


def _covers(gap: Gap, offset: int, key: int) -> bool:
    return gap.first <= offset <= gap.last and (not gap.session or session_key(gap.session) == key)
