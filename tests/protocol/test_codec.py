"""Codecs: any bytes give a message or a RemoteProtocolError."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import RemoteProtocolError
from ottod.protocol.birth import births
from ottod.protocol.codec import MAX_MESSAGE_BYTES, Codec
from ottod.protocol.control import Hello, Request, client_messages, server_messages
from ottod.protocol.requests import StopSession
from ottod.protocol.worker import root_to_worker, worker_messages
from ottod.protocol.zygote import zygote_replies, zygote_requests

CODECS: list[Codec[Any]] = [
    client_messages, server_messages, worker_messages, root_to_worker, births, zygote_replies, zygote_requests
]  # fmt: skip


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    """Random bytes never raise anything else."""
    for codec in CODECS:
        try:
            codec.decode(data)
        except RemoteProtocolError:
            pass


@given(st.data())
def test_mutated_bytes(data: st.DataObject) -> None:
    """A valid message with bytes changed, cut or added decodes or is refused."""
    good = bytearray(client_messages.encode(Request(id=4, body=StopSession(session="s-1", grace_s=2.0))))
    for _ in range(data.draw(st.integers(1, 5))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    for candidate in (bytes(good), bytes(good[:cut]), bytes(good) + b"\x00"):
        try:
            client_messages.decode(candidate)
        except RemoteProtocolError:
            pass


def test_deep_nesting_is_refused() -> None:
    """A message that nests without end does not exhaust the stack."""
    with pytest.raises(RemoteProtocolError):
        client_messages.decode(b"\x91" * 200_000)


def test_too_large_is_refused_before_it_is_decoded() -> None:
    """The bound counts, not the content."""
    with pytest.raises(RemoteProtocolError, match="exceeds"):
        client_messages.decode(b"\x00" * (MAX_MESSAGE_BYTES + 1))


def test_constraints_hold_on_the_wire() -> None:
    """A value outside its declared range is the sender's fault."""
    bad = msgspec.msgpack.encode({"type": "grant", "subscription": 1, "bytes": 0})
    with pytest.raises(RemoteProtocolError):
        client_messages.decode(bad)


def test_unknown_fields_are_ignored() -> None:
    """A newer client may say more than this version understands."""
    newer = msgspec.msgpack.encode({"type": "hello", "protocol": 1, "mood": "good"})
    assert client_messages.decode(newer) == Hello(protocol=1)
