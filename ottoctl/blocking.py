"""The blocking connection: the same dialogue over the same link, driven by whoever waits.

There is no thread and no event loop: bytes move only inside a call. A reader that is away for longer than the
daemon keeps silent subscriptions finds its feed resumed where it stopped. Not thread-safe: one connection per
thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial

import zmq

import ottod
from ottoctl.calls import Call
from ottoctl.dialogue import Dialogue
from ottoctl.endpoint import check_listening, is_held, read_token
from ottoctl.feed import Batch, Feed
from ottoctl.link import Link
from ottoctl.outage import OnOutage, Outage, unheard
from ottoctl.policy import (
    DEFAULT_RECONNECT_S,
    DEFAULT_TIMEOUT_S,
    PING_INTERVAL_S,
    RESEND_S,
    RETRY_FIRST_S,
    RETRY_MAX_S,
    no_answer,
)
from ottod.errors import OttoError, RemoteProtocolError, UnreachableError
from ottod.protocol.control import Welcome
from ottod.protocol.events import Gap
from ottod.protocol.requests import Ping, RequestBody
from ottod.protocol.results import Result


class BlockingConnection:
    """Made by `open`."""

    def __init__(
        self, endpoint: str, *, timeout_s: float, reconnect_s: float, ping_interval_s: float, client: str
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._ping_interval_s = ping_interval_s
        self._dialogue = Dialogue(
            client=client, version=ottod.__version__, pid=os.getpid(), token=partial(read_token, endpoint)
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link: Link | None = None
        self._ping: Call | None = None
        self._ping_due_s = 0.0
        self._listened_s = 0.0
        self._is_closed = False
        self.on_outage: OnOutage = unheard

    @classmethod
    def open(
        cls,
        endpoint: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        ping_interval_s: float = PING_INTERVAL_S,
        client: str = "ottoctl",
    ) -> BlockingConnection:
        """Connects and says hello. Raises UnreachableError, or what the daemon has against this client."""
        connection = cls(
            endpoint,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            ping_interval_s=ping_interval_s,
            client=client,
        )
        try:
            connection._attempt_first(timeout_s)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def welcome(self) -> Welcome | None:
        """What the daemon last said of itself."""
        return self._dialogue.welcome

    # ------------------------------------------------------------ requests

    def call(self, body: RequestBody, *, timeout_s: float | None = None, forever: bool = False) -> Result:
        """Asks and waits for the answer: `timeout_s`, else the connection's time-out, or `forever`.

        Raises: UnreachableError without an answer; the daemon's refusal as an OttoError with its code.
        """
        self._ensure_open()
        call = self._dialogue.ask(body)
        limit_s = None if forever else self.timeout_s if timeout_s is None else timeout_s
        try:
            if not self._pump(lambda: call.is_done, limit_s):
                assert limit_s is not None
                raise no_answer(self.endpoint, limit_s)
        finally:
            if not call.is_done:
                self._dialogue.abandon(call)
        if call.error is not None:
            raise call.error
        assert call.result is not None
        return call.result

    def call_each(self, bodies: Sequence[RequestBody], *, timeout_s: float | None = None) -> list[Result | OttoError]:
        """Asks several things at once, as many as the daemon has room for, and waits for all answers.

        What is left is given up when none has come for `timeout_s` (None: however long it takes). An answer that is a
        failure, or that did not come, is an error in its place.
        """
        self._ensure_open()
        calls = [self._dialogue.ask(body) for body in bodies]
        try:
            while self._hear_one(calls, timeout_s):
                pass
        finally:
            self._dialogue.abandon(*calls)
        return [call.error or call.result or no_answer(self.endpoint, timeout_s or 0.0) for call in calls]

    def _hear_one(self, calls: Sequence[Call], timeout_s: float | None) -> bool:
        """Waits for one more answer. False when there was none, or all are there."""
        left = sum(not call.is_done for call in calls)
        return left > 0 and self._pump(lambda: sum(not call.is_done for call in calls) < left, timeout_s)

    def open_feed(self, feed: Feed) -> None:
        """Subscribes. Raises what the daemon has against it."""
        self._ensure_open()
        self._dialogue.add_feed(feed)
        if not self._pump(lambda: feed.is_open or feed.is_over, self.timeout_s):
            self._dialogue.remove_feed(feed)
            raise no_answer(self.endpoint, self.timeout_s)
        if not feed.is_open and feed.error is not None:
            raise feed.error

    def next(self, feed: Feed) -> Batch | Gap | None:
        """The feed's next item; None when it is over."""
        # The backlog first, and no system call for it: this is the fast path of a long read.
        item = feed.take()
        while item is None:
            self._grant(feed)
            if feed.is_over:
                return None
            self._pump(lambda: feed.is_readable, None)
            item = feed.take()
        self._grant(feed)
        return item

    def close_feed(self, feed: Feed) -> None:
        """Unsubscribes, without waiting."""
        self._dialogue.remove_feed(feed)
        self._flush()

    def close(self) -> None:
        """Idempotent."""
        self._is_closed = True
        self._drop_link()
        self._dialogue.fail(OttoError("the connection was closed", code="closed"))
        self._context.term()

    # ------------------------------------------------------------ the pump

    def _pump(self, is_done: Callable[[], bool], timeout_s: float | None) -> bool:
        """Moves bytes until `is_done`; False when the time is up."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not is_done():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            if self._link is None:
                self._reconnect()
                continue
            self._keep_alive(now)
            if not self._has_link:
                continue
            self._flush()
            limit_s = self._ping_due_s - now if deadline is None else min(deadline, self._ping_due_s) - now
            if self._dialogue.outbox:
                limit_s = min(limit_s, RESEND_S)
            self._link.wait_input(max(0.0, limit_s))
            self._receive()
            self._listened_s = time.monotonic()
        return True

    @property
    def _has_link(self) -> bool:
        return self._link is not None

    def _receive(self) -> None:
        link = self._link
        if link is None:
            return
        is_broken = link.is_broken
        try:
            more = True
            while more:
                messages, more = link.drain()
                for frames in messages:
                    self._dialogue.receive(frames)
                more = more and is_broken
        except RemoteProtocolError as error:
            self._dialogue.refuse(error)
            is_broken = True
        if is_broken:
            self._drop_link()
        else:
            self._flush()

    def _flush(self) -> None:
        outbox = self._dialogue.outbox
        while self._link is not None and outbox and self._link.send(outbox[0]):
            outbox.popleft()

    def _grant(self, feed: Feed) -> None:
        self._dialogue.grant(feed)
        if self._dialogue.outbox:
            self._flush()

    def _keep_alive(self, now: float) -> None:
        if now < self._ping_due_s:
            return
        was_away = now - self._listened_s > self._ping_interval_s / 2
        if self._is_ping_open:
            # The answer may have come while nobody was reading: that is no silence.
            self._receive()
        if not self._has_link:
            self._ping = None
        elif self._is_ping_open:
            # Whoever was away himself, suspended perhaps with the whole machine, gives the daemon another interval.
            if not was_away:
                self._drop_link()
                self._ping = None
                self._reconnect()
        elif self._dialogue.state == "open" and self._ping_due_s:
            self._ping = self._dialogue.ask(Ping())
        self._ping_due_s = now + self._ping_interval_s

    @property
    def _is_ping_open(self) -> bool:
        return self._ping is not None and not self._ping.is_done

    # ------------------------------------------------------------ the link

    def _ensure_open(self) -> None:
        if self._is_closed:
            raise OttoError("the connection is closed", code="closed")
        if self._dialogue.greeting_error is not None:
            raise self._dialogue.greeting_error
        if self._link is None:
            self._attempt_first(self.timeout_s)

    def _attempt_first(self, timeout_s: float) -> None:
        """One attempt; where a daemon is just coming or going, as many as that takes."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._attempt(timeout_s)
            except UnreachableError:
                if time.monotonic() >= deadline or not is_held(self.endpoint):
                    raise
            time.sleep(RETRY_FIRST_S)

    def _attempt(self, timeout_s: float) -> None:
        check_listening(self.endpoint)
        try:
            self._greet(timeout_s)
        except BaseException:
            self._drop_link()
            raise

    def _greet(self, timeout_s: float) -> None:
        self._link = Link(self._context, self.endpoint)
        self._dialogue.link_up()
        deadline = time.monotonic() + timeout_s
        while self._link is not None and self._dialogue.state == "greeting":
            self._flush()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise no_answer(self.endpoint, timeout_s)
            self._link.wait_input(min(left_s, RETRY_MAX_S))
            self._receive()
        if self._dialogue.greeting_error is not None:
            raise self._dialogue.greeting_error
        if self._dialogue.state != "open":
            raise UnreachableError(f"the daemon at {self.endpoint} closed the connection")
        self._listened_s = time.monotonic()
        self._ping_due_s = self._listened_s + self._ping_interval_s
        self._ping = None

    def _reconnect(self) -> None:
        """Opens the next link, or fails everything that is pending."""
        began_s = time.monotonic()
        deadline, delay_s, is_away = began_s + self._reconnect_s, RETRY_FIRST_S, False
        while True:
            try:
                self._attempt(min(self.timeout_s, max(0.1, deadline - time.monotonic())))
                break
            except UnreachableError as error:
                if time.monotonic() + delay_s >= deadline:
                    self._dialogue.fail(error)
                    return
            except OttoError as error:
                self._dialogue.fail(error)
                return
            if not is_away:
                is_away = True
                self.on_outage(Outage(is_over=False, seconds=self._reconnect_s))
            time.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)
        if is_away:
            self.on_outage(Outage(is_over=True, seconds=time.monotonic() - began_s))

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        self._dialogue.link_down()
        if link is not None:
            link.close()
