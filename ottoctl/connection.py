"""The asynchronous connection: a dialogue over a link, on asyncio or uvloop.

The link's file descriptors are edge-triggered, so every wake-up drains until there is nothing left, and every send
looks whether it swallowed a wake-up. A task keeps the connection alive: it pings while somebody waits, notices a
broken link at once, and opens the next one for as long as `reconnect_s` allows.
"""

from __future__ import annotations

import asyncio
import os
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


class Connection:
    """Made by `open`; belongs to one event loop."""

    def __init__(
        self, endpoint: str, *, timeout_s: float, reconnect_s: float, ping_interval_s: float, client: str
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._ping_interval_s = ping_interval_s
        self._loop = asyncio.get_running_loop()
        self._dialogue = Dialogue(
            client=client, version=ottod.__version__, pid=os.getpid(), token=partial(read_token, endpoint)
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link: Link | None = None
        self._progress = asyncio.Event()
        self._broken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False
        self.on_outage: OnOutage = unheard

    @classmethod
    async def open(
        cls,
        endpoint: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        ping_interval_s: float = PING_INTERVAL_S,
        client: str = "ottoctl",
    ) -> Connection:
        """Connects and says hello. Raises UnreachableError, or what the daemon has against this client."""
        connection = cls(
            endpoint,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            ping_interval_s=ping_interval_s,
            client=client,
        )
        try:
            await connection._attempt_first(timeout_s)
        except BaseException:
            await connection.close()
            raise
        connection._keeper = asyncio.create_task(connection._keep(), name="otto-connection")
        return connection

    @property
    def welcome(self) -> Welcome | None:
        """What the daemon last said of itself."""
        return self._dialogue.welcome

    @property
    def instance_changes(self) -> int:
        """How often the daemon was found to be another one than before."""
        return self._dialogue.instance_changes

    # ------------------------------------------------------------ requests

    async def call(self, body: RequestBody, *, timeout_s: float | None = None, forever: bool = False) -> Result:
        """Asks and waits for the answer: `timeout_s`, else the connection's time-out, or `forever`.

        Raises: UnreachableError without an answer; the daemon's refusal as an OttoError with its code.
        """
        await self._ensure_open()
        done = self._loop.create_future()
        call = self._dialogue.ask(body, lambda: None if done.done() else done.set_result(None))
        self._flush()
        limit_s = None if forever else self.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await done
        except TimeoutError as error:
            assert limit_s is not None
            raise no_answer(self.endpoint, limit_s) from error
        finally:
            if not call.is_done:
                self._dialogue.abandon(call)
                # It may have made room for another one.
                self._flush()
        return _outcome(call)

    # ------------------------------------------------------------ feeds

    async def open_feed(self, feed: Feed) -> None:
        """Subscribes. Raises what the daemon has against it."""
        await self._ensure_open()
        wake = asyncio.Event()
        feed.on_change = wake.set
        self._dialogue.add_feed(feed)
        self._flush()
        try:
            async with asyncio.timeout(self.timeout_s):
                while not feed.is_open and not feed.is_over:
                    wake.clear()
                    await wake.wait()
        except TimeoutError as error:
            raise no_answer(self.endpoint, self.timeout_s) from error
        finally:
            if not feed.is_open:
                self.close_feed(feed)
        if not feed.is_open and feed.error is not None:
            raise feed.error

    async def next(self, feed: Feed) -> Batch | Gap | None:
        """The feed's next item; None when it is over. What was taken before counts as consumed."""
        item = feed.take()
        while item is None:
            self.grant(feed)
            if feed.is_over:
                return None
            wake = self._loop.create_future()
            feed.on_change = lambda wake=wake: None if wake.done() else wake.set_result(None)
            await wake
            item = feed.take()
        self.grant(feed)
        return item

    def grant(self, feed: Feed) -> None:
        """Gives credit back for what has been taken."""
        self._dialogue.grant(feed)
        if self._dialogue.outbox:
            self._flush()

    def close_feed(self, feed: Feed) -> None:
        """Unsubscribes, without waiting."""
        feed.on_change = None
        self._dialogue.remove_feed(feed)
        self._flush()

    # ------------------------------------------------------------ life

    async def close(self) -> None:
        """Idempotent. What is still pending fails."""
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        self._drop_link()
        self._dialogue.fail(OttoError("the connection was closed", code="closed"))
        self._context.term()

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._ping_interval_s):
                    await self._broken.wait()
            except TimeoutError:
                await self._ping()
                continue
            self._drop_link()
            if not self._dialogue.is_busy:
                # Nobody waits: the next request will look whether there is a daemon again.
                continue
            try:
                async with self._opening:
                    await self._establish(self._reconnect_s)
            except OttoError as error:
                self._dialogue.fail(error)

    async def _ping(self) -> None:
        if self._link is None or not self._dialogue.is_busy:
            return
        try:
            await self.call(Ping())
        except OttoError:
            self._broken.set()

    async def _ensure_open(self) -> None:
        if self._is_closed:
            raise OttoError("the connection is closed", code="closed")
        if self._dialogue.greeting_error is not None:
            raise self._dialogue.greeting_error
        if self._link is None and not self._dialogue.is_busy:
            async with self._opening:
                if self._link is None:
                    await self._attempt_first(self.timeout_s)

    async def _establish(self, window_s: float) -> None:
        began_s = self._loop.time()
        deadline, delay_s, is_away = began_s + window_s, RETRY_FIRST_S, False
        while True:
            try:
                await self._attempt(min(self.timeout_s, max(0.1, deadline - self._loop.time())))
                break
            except UnreachableError:
                if self._loop.time() + delay_s >= deadline:
                    raise
            if not is_away:
                is_away = True
                self._tell(Outage(is_over=False, seconds=window_s))
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)
        if is_away:
            self._tell(Outage(is_over=True, seconds=self._loop.time() - began_s))

    def _tell(self, outage: Outage) -> None:
        # On its own turn of the loop: whatever the listener does wrong must not end the keeper.
        self._loop.call_soon(self.on_outage, outage)

    async def _attempt_first(self, timeout_s: float) -> None:
        """One attempt; where a daemon is just coming or going, as many as that takes."""
        deadline = self._loop.time() + timeout_s
        while True:
            try:
                return await self._attempt(timeout_s)
            except UnreachableError:
                if self._loop.time() >= deadline or not is_held(self.endpoint):
                    raise
            await asyncio.sleep(RETRY_FIRST_S)

    async def _attempt(self, timeout_s: float) -> None:
        check_listening(self.endpoint)
        self._broken.clear()
        try:
            await self._greet(timeout_s)
        except BaseException:
            self._drop_link()
            raise

    async def _greet(self, timeout_s: float) -> None:
        link = self._link = Link(self._context, self.endpoint)
        self._loop.add_reader(link.fd, self._on_readable)
        self._loop.add_reader(link.monitor_fd, self._on_monitor)
        self._dialogue.link_up()
        self._flush()
        # An edge may have come before the readers were there.
        self._on_monitor()
        try:
            async with asyncio.timeout(timeout_s):
                while self._dialogue.state == "greeting" and not self._broken.is_set():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError as error:
            raise no_answer(self.endpoint, timeout_s) from error
        if self._dialogue.greeting_error is not None:
            raise self._dialogue.greeting_error
        if self._dialogue.state != "open":
            raise UnreachableError(f"the daemon at {self.endpoint} closed the connection")

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        self._broken.clear()
        self._dialogue.link_down()
        if link is not None:
            self._loop.remove_reader(link.fd)
            self._loop.remove_reader(link.monitor_fd)
            link.close()

    # ------------------------------------------------------------ bytes

    def _on_monitor(self) -> None:
        if self._link is not None and self._link.is_broken:
            # What arrived before the end is still worth reading.
            self._on_readable()
            self._broken.set()
            self._progress.set()

    def _on_readable(self) -> None:
        link = self._link
        if link is None:
            return
        messages, more = link.drain()
        try:
            for frames in messages:
                self._dialogue.receive(frames)
        except RemoteProtocolError as error:
            # A daemon that talks nonsense is no daemon to go on with; the requests must not hang.
            self._dialogue.refuse(error)
            self._broken.set()
        if more:
            self._loop.call_soon(self._on_readable)
        if self._dialogue.outbox:
            self._flush()
        self._progress.set()

    def _flush(self) -> None:
        link, outbox = self._link, self._dialogue.outbox
        if link is None or not outbox:
            return
        while outbox:
            if not link.send(outbox[0]):
                self._loop.call_later(RESEND_S, self._flush)
                break
            outbox.popleft()
        if link.has_input:
            self._loop.call_soon(self._on_readable)


def _outcome(call: Call) -> Result:
    if call.error is not None:
        # One error may end many calls: each of their callers' lines would be added to those of all before.
        raise call.error.with_traceback(None)
    assert call.result is not None
    return call.result
