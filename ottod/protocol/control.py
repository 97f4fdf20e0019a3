"""Client ↔ root: the public control protocol.

Client → root: one frame, a `ClientMessage`. Root → client: two frames. The first is one byte of kind: `M` and a
`ServerMessage` follows, or `R`, then four bytes of subscription number (big-endian) in the same frame and runs of
records (see `records`) in the next. A connection starts with `Hello`; nothing else is answered before it. What can be
asked is in `requests`, what is answered in `results`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ottod.errors import Failure
from ottod.protocol.codec import Codec
from ottod.protocol.events import Gap
from ottod.protocol.requests import RequestBody, Wire
from ottod.protocol.results import Result

KIND_MESSAGE = b"M"
KIND_RECORDS = b"R"

# ---------------------------------------------------------------- client → root


class Hello(Wire, frozen=True, kw_only=True, tag="hello"):
    """The first message of every connection.

    `token` is what `control.token`, beside the socket, holds: proof that the client can read the runtime directory,
    which a confined tool cannot, although the kernel would let it connect.
    """

    protocol: int
    client: str = ""
    version: str = ""
    pid: int = 0
    token: str = ""


class Request(Wire, frozen=True, kw_only=True, tag="request"):
    """`id` is the client's; the reply carries it."""

    id: int
    body: RequestBody


class Grant(Wire, frozen=True, kw_only=True, tag="grant"):
    """Credit for a subscription: this many more bytes may be sent."""

    subscription: int
    bytes: Annotated[int, Meta(ge=1)]


ClientMessage = Hello | Request | Grant

# ---------------------------------------------------------------- root → client


class Welcome(Wire, frozen=True, kw_only=True, tag="welcome"):
    """The connection is accepted. `instance` changes with every start of root."""

    protocol: int
    version: str
    instance: str
    pid: int


class Rejected(Wire, frozen=True, kw_only=True, tag="rejected"):
    """A message that could not be answered by id: a bad hello, or bytes that are no message."""

    failure: Failure
    protocol: int = 0


class Reply(Wire, frozen=True, kw_only=True, tag="reply"):
    """Exactly one of `result` and `failure` is set."""

    id: int
    result: Result | None = None
    failure: Failure | None = None


class GapNotice(Wire, frozen=True, kw_only=True, tag="subscription.gap"):
    """A gap, in its place in the subscription's stream."""

    subscription: int
    gap: Gap


class SubscriptionEnded(Wire, frozen=True, kw_only=True, tag="subscription.ended"):
    """The subscription will carry nothing more: `caught_up`, `unsubscribed`, `expired` or `daemon_stop`."""

    subscription: int
    reason: str
    next_offset: int


ServerMessage = Welcome | Rejected | Reply | GapNotice | SubscriptionEnded

client_messages: Codec[ClientMessage] = Codec(ClientMessage, name="client message")
server_messages: Codec[ServerMessage] = Codec(ServerMessage, name="server message")


def to_builtins(value: Any) -> Any:
    """A wire struct as plain dicts and lists, for JSON output."""
    return msgspec.to_builtins(value)
