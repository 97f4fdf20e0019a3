"""The client's half of the control protocol, without any I/O: messages in, messages out.

    down ──link_up──> greeting ──Welcome──> open
     ^                   │  ^                 │ Rejected(hello_required): the daemon does not know us (any more)
     └────link_down──────┴──┴─────────────────┘

A connection (see `connection` and `blocking`) moves the bytes, measures time and decides when to give up. Whenever
the state becomes `open`, what was asked before and not answered is asked again, provided asking twice does no harm;
feeds are resumed from their cursors. What cannot be repeated fails, and says that its outcome is unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from ottoctl.calls import Call, Calls
from ottoctl.exits import REFUSED_CODES
from ottoctl.feed import Feed
from ottod.errors import Failure, OttoError, RefusedError, RemoteProtocolError, UnreachableError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import (
    KIND_MESSAGE,
    KIND_RECORDS,
    ClientMessage,
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
from ottod.protocol.requests import (
    MAX_ENV_BYTES,
    MAX_TASK_BYTES,
    ExplainPolicy,
    RequestBody,
    StartSession,
    Unsubscribe,
)
from ottod.protocol.results import Subscribed

HELLO_REQUIRED = "hello_required"
MAX_PENDING_CALLS = 10_000
MAX_REQUEST_BYTES = MAX_TASK_BYTES + MAX_ENV_BYTES + 512 * 1024
"""What the daemon reads of one message. It hangs up on a longer one without a word, so it is refused here."""


class OutcomeUnknownError(UnreachableError):
    """The daemon vanished between a request that must not be made twice and its answer."""


class Dialogue:
    """See the module's docstring. `outbox` holds the frames that want to be sent."""

    def __init__(self, *, client: str, version: str, pid: int, token: Callable[[], str] = str) -> None:
        self.state: Literal["down", "greeting", "open"] = "down"
        self.welcome: Welcome | None = None
        self.greeting_error: OttoError | None = None
        """Why the daemon will not talk to this client: final."""
        self.outbox: deque[bytes] = deque()
        self.instance_changes = 0
        self._hello = Hello(protocol=PROTOCOL_VERSION, client=client, version=version, pid=pid)
        self._token = token
        self._next_id = 1
        self._calls = Calls()
        self._openings: dict[int, Feed] = {}
        self._feeds: list[Feed] = []
        self._by_subscription: dict[int, Feed] = {}

    # ------------------------------------------------------------ the link

    def link_up(self) -> None:
        """A fresh connection: greet."""
        self.outbox.clear()
        self._greet()

    def link_down(self) -> None:
        """The connection is gone, and with it every subscription."""
        self.state = "down"
        self.outbox.clear()
        self._by_subscription.clear()
        self._openings.clear()
        for feed in self._feeds:
            feed.detached()

    @property
    def is_busy(self) -> bool:
        """Somebody waits for something: the connection must be kept alive."""
        return bool(self._calls or self._feeds)

    def fail(self, error: OttoError) -> None:
        """Give up: everything pending fails with `error`."""
        calls = self._calls.clear()
        feeds, self._feeds = self._feeds, []
        self.link_down()
        for call in calls:
            call.finish(error=error)
        for feed in feeds:
            feed.fail(error)

    # ------------------------------------------------------------ what the owner asks

    def ask(self, body: RequestBody, on_done: Callable[[], None] | None = None) -> Call:
        """Sends a request now, or as soon as the dialogue is open and the daemon has room for it."""
        if len(self._calls) >= MAX_PENDING_CALLS:
            raise RefusedError(f"{MAX_PENDING_CALLS} requests are already waiting", mend="wait for some answers")
        call = Call(body, on_done)
        self._calls.wait(call)
        self._send_calls()
        return call

    def abandon(self, *calls: Call) -> None:
        """Nobody waits for these any more; late answers are ignored."""
        self._calls.drop(set(calls))
        self._send_calls()

    def add_feed(self, feed: Feed) -> None:
        """Subscribes now, or as soon as the dialogue is open; `feed.on_change` tells of everything."""
        self._feeds.append(feed)
        if self.state == "open":
            self._send_subscribe(feed)

    def remove_feed(self, feed: Feed) -> None:
        """The reader is gone: what still arrives for it is ignored."""
        if feed not in self._feeds:
            return
        self._feeds.remove(feed)
        self._openings = {number: f for number, f in self._openings.items() if f is not feed}
        if feed.subscription >= 0:
            self._by_subscription.pop(feed.subscription, None)
            if self.state == "open":
                self._send(Request(id=self._take_id(), body=Unsubscribe(subscription=feed.subscription)))
            feed.detached()

    def grant(self, feed: Feed) -> None:
        """Gives back the credit of what the feed's reader has taken, if it is worth a message."""
        owed = feed.owed_bytes()
        if owed and self.state == "open":
            self._send(Grant(subscription=feed.subscription, bytes=owed))

    # ------------------------------------------------------------ what arrives

    def receive(self, frames: list[bytes]) -> None:
        """One message of the daemon. Raises RemoteProtocolError for bytes that are none."""
        if len(frames) == 2 and frames[0] == KIND_MESSAGE:
            self._heard(server_messages.decode(frames[1]))
        elif len(frames) == 2 and len(frames[0]) == 5 and frames[0][:1] == KIND_RECORDS:
            feed = self._by_subscription.get(int.from_bytes(frames[0][1:], "big"))
            if feed is not None:
                feed.put_run(frames[1])
                if feed.is_over:
                    self.remove_feed(feed)
        else:
            raise RemoteProtocolError(f"a message of {len(frames)} frames is not the control protocol")

    def _heard(self, message: Welcome | Rejected | Reply | GapNotice | SubscriptionEnded) -> None:
        match message:
            case Welcome():
                self._welcomed(message)
            case Rejected():
                self._rejected(message)
            case Reply():
                self._replied(message)
            case GapNotice():
                feed = self._by_subscription.get(message.subscription)
                if feed is not None:
                    feed.put_gap(message.gap)
            case SubscriptionEnded():
                self._subscription_ended(message)

    def _greet(self) -> None:
        self.state = "greeting"
        self._by_subscription.clear()
        self._openings.clear()
        for feed in self._feeds:
            feed.detached()
        # Every daemon has a token of its own, so it is read again for every hello.
        self._send(msgspec.structs.replace(self._hello, token=self._token()))

    def _welcomed(self, message: Welcome) -> None:
        if message.protocol != PROTOCOL_VERSION:
            self.refuse(mismatch(message.protocol, message.version))
            return
        if self.state != "greeting":
            return
        if self.welcome is not None and self.welcome.instance != message.instance:
            self.instance_changes += 1
        self.welcome = message
        self.state = "open"
        for call in self._calls.lost():
            if call.is_repeatable:
                self._send_call(call)
            else:
                call.finish(error=outcome_unknown(call.body))
        self._send_calls()
        for feed in self._feeds:
            self._send_subscribe(feed)

    def _rejected(self, message: Rejected) -> None:
        if message.failure.code == HELLO_REQUIRED:
            # Every message that was on its way gets one of these; the first is enough.
            if self.state == "open":
                self._greet()
            return
        if message.protocol and message.protocol != PROTOCOL_VERSION:
            self.refuse(mismatch(message.protocol, ""))
        elif self.state == "greeting":
            self.refuse(error_of(message.failure))
        else:
            self.fail(error_of(message.failure))

    def refuse(self, error: OttoError) -> None:
        """The daemon talks nonsense, or refuses to talk: everything fails, and a greeting is not repeated."""
        if self.state == "greeting":
            self.greeting_error = error
        self.fail(error)

    def _replied(self, message: Reply) -> None:
        failure = message.failure
        if failure is not None and failure.code == HELLO_REQUIRED:
            self._unknown_here(message.id)
            return
        feed = self._openings.pop(message.id, None)
        if feed is not None:
            self._subscribed(feed, message)
            return
        call = self._calls.answered(message.id)
        if call is None:
            return
        self._send_calls()
        if failure is not None:
            call.finish(error=error_of(failure))
        elif message.result is not None:
            call.finish(result=message.result)
        else:
            raise RemoteProtocolError("a reply with neither a result nor a failure")

    def _unknown_here(self, number: int) -> None:
        """The daemon did not carry this request out, because it does not know us: ask again after the greeting."""
        call = self._calls.answered(number)
        if call is not None:
            self._calls.wait(call)
        if self.state == "open" and (call is not None or number in self._openings):
            self._greet()

    def _subscribed(self, feed: Feed, message: Reply) -> None:
        if message.failure is not None:
            self._feeds.remove(feed)
            feed.fail(error_of(message.failure))
        elif isinstance(message.result, Subscribed):
            self._by_subscription[message.result.subscription] = feed
            feed.opened(message.result)
        else:
            raise RemoteProtocolError("a subscription was answered with something else")

    def _subscription_ended(self, message: SubscriptionEnded) -> None:
        feed = self._by_subscription.pop(message.subscription, None)
        if feed is None:
            return
        feed.detached()
        if message.reason == "expired":
            # The reader was silent for too long, which is its right: it goes on where it stopped.
            self._send_subscribe(feed)
            return
        self._feeds.remove(feed)
        feed.put_end(message.reason)

    # ------------------------------------------------------------ sending

    def _send(self, message: ClientMessage) -> None:
        self.outbox.append(client_messages.encode(message))

    def _take_id(self) -> int:
        number, self._next_id = self._next_id, self._next_id + 1
        return number

    def _send_calls(self) -> None:
        if self.state == "open":
            for call in self._calls.ready():
                self._send_call(call)

    def _send_call(self, call: Call) -> None:
        number = self._take_id()
        try:
            message = client_messages.encode(Request(id=number, body=call.body))
            if holds_spec(call.body):
                client_messages.decode(message)
        except (RemoteProtocolError, TypeError, ValueError) as error:
            call.finish(error=not_data(error))
            return
        if len(message) > MAX_REQUEST_BYTES:
            call.finish(error=too_large(call.body, len(message)))
            return
        self._calls.sent(number, call)
        self.outbox.append(message)

    def _send_subscribe(self, feed: Feed) -> None:
        number = self._take_id()
        self._openings[number] = feed
        self._send(Request(id=number, body=feed.request()))


def error_of(failure: Failure) -> OttoError:
    """A failure from the wire as an exception; its code stays what it was."""
    kind = RefusedError if failure.code in REFUSED_CODES else OttoError
    return kind(failure.message, mend=failure.mend, code=failure.code)


def mismatch(protocol: int, version: str) -> OttoError:
    """Daemon and client do not speak the same protocol."""
    daemon = f"ottod {version}".strip()
    return OttoError(
        f"{daemon} speaks protocol {protocol}, this ottoctl speaks protocol {PROTOCOL_VERSION}",
        mend="upgrade the older one; after an upgrade: `ottoctl daemon stop`, then `ottoctl daemon start`",
        code="protocol_mismatch",
    )


def too_large(body: RequestBody, size_bytes: int) -> OttoError:
    """The daemon would not read it."""
    what = str(body.__struct_config__.tag)
    return OttoError(
        f"the request {what} has {size_bytes} bytes; the daemon takes {MAX_REQUEST_BYTES}",
        mend="put long texts into files and name the files",
        code="too_large",
    )


def holds_spec(body: RequestBody) -> bool:
    """Whether it carries something that was made in Python, whose fields nobody has checked."""
    if isinstance(body, StartSession):
        return body.spec is not None or (body.workflow is not None and body.workflow.spec is not None)
    return isinstance(body, ExplainPolicy) and body.spec is not None


def not_data(error: Exception) -> OttoError:
    """A field is of a type that it cannot be of. The daemon would take it for a broken client, and say no more."""
    text = (
        str(error).removeprefix("client message: ").replace("$.body.workflow.spec.", "").replace("$.body.spec.", "")
    )
    return OttoError(f"the spec is wrong: {text}", mend="give the field a value of that type", code="bad_config")


def outcome_unknown(body: RequestBody) -> OutcomeUnknownError:
    """What such a request fails with."""
    what = str(body.__struct_config__.tag)
    return OutcomeUnknownError(
        f"the daemon went away before it answered {what}; whether it was carried out is unknown",
        mend="look with `ottoctl ps -a`, then repeat the command if needed",
    )
