"""Typed msgpack codecs: any bytes give a message or a `RemoteProtocolError`, never another exception."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from ottod.errors import UNDECODABLE, RemoteProtocolError

T = TypeVar("T")

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""A control or worker message larger than this is refused before it is decoded."""


class Codec(Generic[T]):
    """Encodes and decodes one union. The decoder is built once and reused."""

    def __init__(self, union: object, *, name: str) -> None:
        self._name = name
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)

    def encode(self, message: T) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes | memoryview) -> T:
        """Raises RemoteProtocolError for anything that is not exactly one valid message."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise RemoteProtocolError(f"{self._name}: message of {len(data)} bytes exceeds {MAX_MESSAGE_BYTES}")
        try:
            return self._decoder.decode(data)
        except UNDECODABLE as error:
            raise RemoteProtocolError(f"{self._name}: {error}") from error
