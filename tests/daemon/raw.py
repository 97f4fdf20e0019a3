"""The control and worker protocols spoken by hand: a DEALER that sends what it is told, right or wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from ottoctl.endpoint import read_token
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import (
    KIND_RECORDS,
    ClientMessage,
    GapNotice,
    Grant,
    Hello,
    Reply,
    Request,
    ServerMessage,
    SubscriptionEnded,
    Welcome,
    client_messages,
    server_messages,
)
from ottod.protocol.events import Gap
from ottod.protocol.records import RecordHeader, split_run
from ottod.protocol.requests import RequestBody, Subscribe
from ottod.protocol.results import Subscribed

DEADLINE_S = 30.0

Item = RecordHeader | Gap


class RawClient:
    """One DEALER socket on the control endpoint. Not thread-safe; nothing is sent unless the test says so."""

    def __init__(self, endpoint: str, *, hello: bool = True, queue_messages: int = 0) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, queue_messages)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.connect(endpoint)
        self._endpoint = endpoint
        self._next_id = 1
        self._early: list[list[bytes]] = []
        if hello:
            self.say_hello()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def send(self, message: ClientMessage) -> None:
        self.socket.send(client_messages.encode(message))

    def frames(self, deadline_s: float = DEADLINE_S) -> list[bytes]:
        """The next message's frames; fails when none comes in time."""
        if self._early:
            return self._early.pop(0)
        return self._receive(deadline_s)

    def _receive(self, deadline_s: float) -> list[bytes]:
        if not self.socket.poll(int(deadline_s * 1000)):
            raise AssertionError(f"the daemon said nothing within {deadline_s} s")
        return self.socket.recv_multipart()

    def message(self, deadline_s: float = DEADLINE_S) -> ServerMessage:
        """The next message, which must not be records."""
        frames = self.frames(deadline_s)
        assert len(frames) == 2 and frames[0] == b"M", frames
        return server_messages.decode(frames[1])

    def say_hello(self, protocol: int = PROTOCOL_VERSION) -> Welcome:
        self.send(Hello(protocol=protocol, client="raw", version="0", token=read_token(self._endpoint)))
        welcome = self.message()
        assert isinstance(welcome, Welcome), welcome
        return welcome

    def say_hello_again(self) -> None:
        """Says hello, and keeps what comes before the welcome for `frames`."""
        self.send(Hello(protocol=PROTOCOL_VERSION, client="raw", version="0", token=read_token(self._endpoint)))
        while True:
            frames = self._receive(DEADLINE_S)
            self._early.append(frames)
            if frames[0] == b"M" and isinstance(server_messages.decode(frames[1]), Welcome):
                return

    def ask(self, body: RequestBody) -> Reply:
        """Sends a request and waits for its reply; what comes before it is kept for `frames`."""
        number, self._next_id = self._next_id, self._next_id + 1
        self.send(Request(id=number, body=body))
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            frames = self._receive(deadline_s - time.monotonic())
            if frames[0] == b"M":
                message = server_messages.decode(frames[1])
                if isinstance(message, Reply) and message.id == number:
                    return message
            self._early.append(frames)

    def subscribe(
        self, from_offset: int | None, *, session: str = "", credit_bytes: int = 1 << 20, follow: bool = True
    ) -> Subscribed:
        body = Subscribe(from_offset=from_offset, session=session, credit_bytes=credit_bytes, follow=follow)
        reply = self.ask(body)
        assert isinstance(reply.result, Subscribed), reply
        return reply.result

    def grant(self, subscription: int, size_bytes: int) -> None:
        self.send(Grant(subscription=subscription, bytes=size_bytes))

    def items(self, subscription: int, *, grant: bool = True, deadline_s: float = DEADLINE_S) -> list[Item] | None:
        """The records and gaps of the next message, or None when it says that the subscription has ended."""
        frames = self.frames(deadline_s)
        if frames[0][:1] == KIND_RECORDS:
            assert int.from_bytes(frames[0][1:], "big") == subscription
            if grant:
                self.grant(subscription, len(frames[1]))
            return [header for header, _ in split_run(frames[1])]
        message = server_messages.decode(frames[1])
        if isinstance(message, GapNotice) and message.subscription == subscription:
            return [message.gap]
        if isinstance(message, SubscriptionEnded) and message.subscription == subscription:
            return None
        return []

    def read_to_end(self, subscription: int, *, grant: bool = True) -> Iterator[Item]:
        """Records and gaps of a subscription in order, until it ends; credit goes back as it is used."""
        while (items := self.items(subscription, grant=grant)) is not None:
            yield from items

    def read_until(self, subscription: int, head: int) -> Iterator[Item]:
        """Records and gaps of a subscription to all sessions, until nothing below offset `head` is missing."""
        at = 0
        while at < head:
            items = self.items(subscription)
            assert items is not None, "the subscription ended"
            for item in items:
                at = max(at, (item.last if isinstance(item, Gap) else item.last_offset) + 1)
                yield item

    def drain(self, seen: Callable[[list[bytes]], None] | None = None) -> int:
        """Takes what has arrived, without waiting; gives how many messages that was."""
        count = len(self._early)
        for frames in self._early:
            if seen is not None:
                seen(frames)
        self._early.clear()
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return count
            count += 1
            if seen is not None:
                seen(frames)


@contextmanager
def raw_client(endpoint: str, *, hello: bool = True, queue_messages: int = 0) -> Iterator[RawClient]:
    """A raw client that is closed afterwards."""
    client = RawClient(endpoint, hello=hello, queue_messages=queue_messages)
    try:
        yield client
    finally:
        client.close()
