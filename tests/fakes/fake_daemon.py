"""A daemon for the client's tests: a real ROUTER on a real socket, the real codecs, and scripted answers.

It runs in a thread of its own. Everything that a test may call from outside takes the lock and wakes the thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import zmq

from ottod.errors import Failure
from ottod.ids import session_id, session_key
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.cause import Cause
from ottod.protocol.control import (
    KIND_MESSAGE,
    KIND_RECORDS,
    GapNotice,
    Grant,
    Hello,
    Rejected,
    Reply,
    Request,
    SubscriptionEnded,
    Welcome,
    client_messages,
    server_messages,
)
from ottod.protocol.events import Event, Gap, SessionExited
from ottod.protocol.records import LANE_STATE, RecordHeader, build_record, check_sealed, encode_entry, join_entries
from ottod.protocol.requests import (
    GetSession,
    GetStatus,
    KillSession,
    ListSessions,
    Ping,
    RemoveSession,
    SendInput,
    StartSession,
    StopDaemon,
    StopSession,
    Subscribe,
    Unsubscribe,
    WaitSession,
)
from ottod.protocol.results import (
    DaemonStatus,
    Done,
    SessionInfo,
    SessionList,
    SessionStartedResult,
    StopResult,
    Subscribed,
)

AT_NS = 1_700_000_000_000_000_000
NO_ANSWER = object()
Answer = Callable[[Any], Any]


class Subscription:
    """One client's cursor and credit."""

    def __init__(self, identity: bytes, number: int, body: Subscribe, head: int) -> None:
        self.identity, self.number, self.body = identity, number, body
        self.cursor = head if body.from_offset is None else body.from_offset
        self.stop_offset = None if body.follow else head
        self.credit_bytes = body.credit_bytes
        self.sent_bytes = 0
        self.granted_bytes = body.credit_bytes
        self.gaps: list[Gap] = []


class FakeDaemon:
    """See the module's docstring. `answers` maps a request type to what answers it: a result, a failure, an
    exception of neither kind is a bug of the test. `NO_ANSWER` leaves the request unanswered."""

    def __init__(self, directory: Path, *, protocol: int = PROTOCOL_VERSION, instance: str = "i-1") -> None:
        self.path = directory / "control.sock"
        self.endpoint = f"ipc://{self.path}"
        self.protocol = protocol
        self.instance = instance
        self.answers: dict[type, Answer] = {}
        self.sessions: dict[str, SessionInfo] = {}
        self.received: list[Any] = []
        self.hellos: list[Hello] = []
        self.subscriptions: dict[int, Subscription] = {}
        self.head = 1
        self.tail = 1
        self.max_run_bytes = 64 * 1024
        self._records: list[tuple[RecordHeader, bytes]] = []
        self._seqs: dict[str, int] = {}
        self._gaps: list[Gap] = []
        self._clients: set[bytes] = set()
        self._waiters: list[tuple[bytes, int, str]] = []
        self._next_subscription = 1
        self._lock = threading.RLock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router: zmq.Socket[bytes] | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="fake-daemon", daemon=True)

    def __enter__(self) -> FakeDaemon:
        self._bind()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._wake()
        self._thread.join(10)
        if self._router is not None:
            self._router.close(0)
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # ------------------------------------------------------------ what tests do

    def add_session(self, key: int = 1, **fields: Any) -> str:
        """A session, running unless the fields say otherwise."""
        values: dict[str, Any] = {"agent": "coder", "model": "scripted", "state": "running", "created_at_ns": AT_NS}
        values |= fields
        with self._lock:
            sid = session_id(key)
            self.sessions[sid] = SessionInfo(session=sid, **values)
            return sid

    def append(self, session: str, events: Iterable[Event], *, lane: int = LANE_STATE, skip_seqs: int = 0) -> int:
        """One record; returns its first offset. `skip_seqs` makes a hole."""
        entries = [encode_entry(AT_NS + i, event) for i, event in enumerate(events)]
        return self.append_entries(session, entries, lane=lane, skip_seqs=skip_seqs)

    def append_entries(self, session: str, entries: list[bytes], *, lane: int = 0, skip_seqs: int = 0) -> int:
        """The same from encoded entries."""
        with self._lock:
            seq = self._seqs.get(session, 1) + skip_seqs
            first = self.head
            record = build_record(
                join_entries(entries),
                session_key=session_key(session),
                first_seq=seq,
                count=len(entries),
                lane=lane,
                incarnation=1,
                first_offset=first,
            )
            header = check_sealed(record, 0, len(record))
            assert header is not None
            self._records.append((header, record))
            self._seqs[session] = seq + len(entries)
            self.head = first + len(entries)
            info = self.sessions.get(session)
            if info is not None:
                self.sessions[session] = msgspec.structs.replace(
                    info, last_offset=self.head - 1, first_offset=info.first_offset or first
                )
        self._wake()
        return first

    def end_session(self, session: str, cause: Cause, *, result: str = "") -> None:
        """`session.exited`, the new state, and an answer to whoever waits."""
        with self._lock:
            # Before the event: whoever has it and asks for the session must find that it has ended.
            self.sessions[session] = msgspec.structs.replace(
                self.sessions[session], state="ended", cause=cause, result=result, ended_at_ns=AT_NS + 10**9
            )
        self.append(session, [SessionExited(cause=cause, result=result)])
        with self._lock:
            for identity, number, waiting in self._waiters:
                if waiting == session:
                    self._send(identity, Reply(id=number, result=self.sessions[session]))
            self._waiters = [w for w in self._waiters if w[2] != session]

    def evict(self, session: str, *, last: int) -> None:
        """Drops a session's records up to offset `last` and owes a gap to those who come too late."""
        with self._lock:
            key = session_key(session)
            gone = [h for h, _ in self._records if h.session_key == key and h.last_offset <= last]
            self._records = [(h, r) for h, r in self._records if not (h.session_key == key and h.last_offset <= last)]
            gap = Gap(
                first=gone[0].first_offset,
                last=gone[-1].last_offset,
                reason="evicted",
                session=session,
                next_seq=gone[-1].last_seq + 1,
            )
            self._gaps = [*self._gaps, gap]

    def forget_clients(self) -> None:
        """As a daemon that has not heard of its clients for too long."""
        with self._lock:
            self._clients.clear()
            self.subscriptions.clear()
            self._waiters.clear()

    def restart(self, instance: str) -> None:
        """Dies and comes back as another instance, with its records."""
        with self._lock:
            assert self._router is not None
            self._router.close(0)
            self.forget_clients()
            self.instance = instance
            self._bind()
        self._wake()

    def vanish(self) -> None:
        """Dies and stays away."""
        with self._lock:
            assert self._router is not None
            self._router.close(0)
            self.forget_clients()
        self._wake()

    def come_back(self, instance: str) -> None:
        """After `vanish`: another instance, with the records of the one before."""
        with self._lock:
            self.instance = instance
            self._bind()
        self._wake()

    def end_subscriptions(self, reason: str) -> None:
        with self._lock:
            for sub in list(self.subscriptions.values()):
                self._send(
                    sub.identity,
                    SubscriptionEnded(subscription=sub.number, reason=reason, next_offset=sub.cursor),
                )
            self.subscriptions.clear()

    def send_frames(self, frames: list[bytes]) -> None:
        """Any frames to every client."""
        with self._lock:
            assert self._router is not None
            for identity in self._clients:
                self._router.send_multipart([identity, *frames])

    def bodies(self, kind: type) -> list[Any]:
        """The requests of this kind that came so far."""
        with self._lock:
            return [m.body for m in self.received if isinstance(m, Request) and isinstance(m.body, kind)]

    # ------------------------------------------------------------ the thread

    def _bind(self) -> None:
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.SNDHWM, 0)
        router.bind(self.endpoint)
        self._router = router

    def _wake(self) -> None:
        os.write(self._wake_write, b"w")

    def _loop(self) -> None:
        while not self._stopping:
            router = self._router
            poller = zmq.Poller()
            poller.register(self._wake_read, zmq.POLLIN)
            if router is not None and not router.closed:
                poller.register(router, zmq.POLLIN)
            try:
                ready = dict(poller.poll(20))
            except zmq.ZMQError:
                continue
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            with self._lock:
                if self._router is router and router is not None and not router.closed:
                    self._drain(router)
                if self._router is not None and not self._router.closed:
                    for sub in list(self.subscriptions.values()):
                        self._pump(sub)

    def _drain(self, router: zmq.Socket[bytes]) -> None:
        while True:
            try:
                identity, *frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = client_messages.decode(frames[0])
            self.received.append(message)
            if isinstance(message, Hello):
                self._hello(identity, message)
            elif identity not in self._clients:
                self._stranger(identity, message)
            elif isinstance(message, Grant):
                sub = self.subscriptions.get(message.subscription)
                if sub is not None:
                    sub.credit_bytes += message.bytes
                    sub.granted_bytes += message.bytes
            else:
                self._request(identity, message)

    def _hello(self, identity: bytes, hello: Hello) -> None:
        self.hellos.append(hello)
        if hello.protocol != self.protocol:
            failure = Failure(code="protocol_mismatch", message="another protocol")
            self._send(identity, Rejected(failure=failure, protocol=self.protocol))
            return
        self._clients.add(identity)
        self._send(
            identity,
            Welcome(protocol=self.protocol, version="9.9.9", instance=self.instance, pid=os.getpid()),
        )

    def _stranger(self, identity: bytes, message: Any) -> None:
        failure = Failure(code="hello_required", message="say hello first")
        if isinstance(message, Request):
            self._send(identity, Reply(id=message.id, failure=failure))
        else:
            self._send(identity, Rejected(failure=failure, protocol=self.protocol))

    def _request(self, identity: bytes, request: Request) -> None:
        body = request.body
        answer = self.answers.get(type(body))
        result: Any
        if answer is not None:
            result = answer(body)
        elif isinstance(body, Subscribe):
            result = self._subscribe(identity, body)
        elif isinstance(body, WaitSession):
            info = self._find(body.session)
            result = info
            if isinstance(info, SessionInfo) and info.state not in ("ended", "parked"):
                self._waiters.append((identity, request.id, info.session))
                result = NO_ANSWER
        else:
            result = self._default(body)
        if result is NO_ANSWER:
            return
        if isinstance(result, Failure):
            self._send(identity, Reply(id=request.id, failure=result))
        else:
            self._send(identity, Reply(id=request.id, result=result))

    def _default(self, body: Any) -> Any:
        match body:
            case Ping() | SendInput() | StopDaemon() | RemoveSession():
                return Done()
            case Unsubscribe():
                self.subscriptions.pop(body.subscription, None)
                return Done()
            case GetStatus():
                return DaemonStatus(
                    version="9.9.9",
                    protocol=self.protocol,
                    pid=os.getpid(),
                    instance=self.instance,
                    started_at_ns=AT_NS,
                    uptime_s=61.0,
                    sessions={"running": len(self.sessions)},
                )
            case ListSessions():
                chosen = [i for i in self.sessions.values() if body.all or i.state != "ended"]
                return SessionList(sessions=tuple(i for i in chosen if not body.states or i.state in body.states))
            case GetSession():
                return self._find(body.session)
            case StartSession():
                sid = self.add_session(len(self.sessions) + 1, agent=body.agent, task=body.task)
                return SessionStartedResult(session=sid, from_offset=self.head)
            case StopSession() | KillSession():
                info = self._find(body.session)
                if isinstance(info, Failure):
                    return info
                already = info.state == "ended"
                if not already:
                    self.end_session(info.session, Cause(kind="cancelled"))
                cause = self.sessions[info.session].cause
                assert cause is not None
                return StopResult(session=info.session, cause=cause, already_ended=already)
        raise AssertionError(f"no answer for {body}")

    def _find(self, prefix: str) -> SessionInfo | Failure:
        wanted = prefix if prefix.startswith("s-") else f"s-{prefix}"
        found = [i for s, i in self.sessions.items() if s.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        code = "ambiguous_session" if found else "no_such_session"
        return Failure(code=code, message=f"{len(found)} sessions are {wanted}", mend="see `ottoctl ps -a`")

    def _subscribe(self, identity: bytes, body: Subscribe) -> Subscribed:
        number, self._next_subscription = self._next_subscription, self._next_subscription + 1
        sub = Subscription(identity, number, body, self.head)
        for gap in self._gaps:
            if gap.last >= sub.cursor and (not body.session or gap.session == body.session):
                sub.gaps.append(msgspec.structs.replace(gap, first=max(gap.first, sub.cursor)))
        self.subscriptions[number] = sub
        return Subscribed(subscription=number, tail=self.tail, head=self.head)

    def _pump(self, sub: Subscription) -> None:
        assert self._router is not None
        key = session_key(sub.body.session) if sub.body.session else None
        for gap in sub.gaps:
            self._send(sub.identity, GapNotice(subscription=sub.number, gap=gap))
        sub.gaps = []
        while sub.credit_bytes > 0:
            parts: list[bytes] = []
            size_bytes = 0
            for header, record in self._records:
                if header.last_offset < sub.cursor or (key is not None and header.session_key != key):
                    continue
                if sub.stop_offset is not None and header.first_offset >= sub.stop_offset:
                    break
                if size_bytes >= min(self.max_run_bytes, sub.credit_bytes):
                    break
                parts.append(record)
                size_bytes += len(record)
                sub.cursor = header.last_offset + 1
            if not parts:
                break
            sub.credit_bytes -= size_bytes
            sub.sent_bytes += size_bytes
            number = sub.number.to_bytes(4, "big")
            self._router.send_multipart([sub.identity, KIND_RECORDS + number, b"".join(parts)])
        if sub.stop_offset is not None and not any(
            h.last_offset >= sub.cursor and h.first_offset < sub.stop_offset and (key is None or h.session_key == key)
            for h, _ in self._records
        ):
            end = SubscriptionEnded(subscription=sub.number, reason="caught_up", next_offset=sub.cursor)
            self._send(sub.identity, end)
            del self.subscriptions[sub.number]

    def _send(self, identity: bytes, message: Any) -> None:
        assert self._router is not None
        self._router.send_multipart([identity, KIND_MESSAGE, server_messages.encode(message)])
