"""One streamed HTTP response: opened through an SDK, read here.

The SDKs build requests, authenticate and pool connections. Reading is ours, because it must be bounded in time
(every wait has a deadline, whatever the server sends) and in size, because pings and comments count as life, and
because an event is decoded once, into a struct.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol, TypeVar

import httpx2

from ottod.errors import ProviderError
from ottod.providers.failures import Peer, cut, malformed, no_connection, not_a_stream, root_cause, too_slow
from ottod.providers.sse import EventTooLargeError, ServerSentEvent, SseDecoder

DRAIN_S = 0.1
"""How long the end of the body may take after the response is complete; a drained connection can be used again."""

EVENT_STREAM = "text/event-stream"

CONNECT_TIMEOUT = httpx2.Timeout(None, connect=15.0)
"""The SDK's own time-outs: only for connecting, all other waits are ours."""

SENT = (httpx2.ReadError, httpx2.WriteError, httpx2.ReadTimeout, httpx2.RemoteProtocolError)
"""What happens to a connection that was there: the request may have arrived."""

T = TypeVar("T")


def lost_connection(peer: Peer, error: BaseException) -> ProviderError:
    """An SDK's connection error: the provider could not be reached, or it broke off before it said anything.

    In the second case it may have had the request, and nobody can say what it made of it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SENT):
            return cut(peer, root_cause(error))
        cause = cause.__cause__ or cause.__context__
    return no_connection(peer, root_cause(error))


class StreamedResponse(Protocol):
    """What both SDKs give for a response whose body has not been read."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The response's headers; names in any case."""
        ...

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The decoded body as it comes."""
        ...


class HttpStream:
    """The events of one response, within deadlines. Times are seconds, `loop.time()` decides.

    `translate` is given every exception of the class `sdk_error` and says what it means.
    """

    def __init__(
        self,
        opening: AbstractAsyncContextManager[StreamedResponse],
        *,
        peer: Peer,
        timeout_s: float,
        idle_timeout_s: float,
        sdk_error: type[Exception],
        translate: Callable[[Any], ProviderError],
    ) -> None:
        self._opening = opening
        self._peer = peer
        self._timeout_s = timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._sdk_error = sdk_error
        self._translate = translate
        self._deadline_s = 0.0
        self._complete = False

    def complete(self, drain_s: float) -> None:
        """The response is whole: what follows is read for that long at most, and may fail."""
        self._complete = True
        self._deadline_s = min(self._deadline_s, asyncio.get_running_loop().time() + drain_s)

    async def events(self) -> AsyncGenerator[ServerSentEvent, None]:
        """Opens, reads to the end of the body, and closes, also when it is cancelled. Raises ProviderError."""
        self._deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with AsyncExitStack() as stack:
                response = await self._within_deadlines(stack.enter_async_context(self._opening))
                kind = response.headers.get("content-type", EVENT_STREAM)
                if not kind.lower().startswith(EVENT_STREAM):
                    raise not_a_stream(self._peer, kind)
                decoder = SseDecoder()
                chunks = response.iter_bytes()
                while (chunk := await self._within_deadlines(anext(chunks, None))) is not None:
                    for event in decoder.feed(chunk):
                        yield event
                for event in decoder.finish():
                    yield event
        except self._sdk_error as error:
            if not self._complete:
                raise self._translate(error) from error
        except (httpx2.TransportError, httpx2.StreamError) as error:
            if not self._complete:
                raise cut(self._peer, str(error) or type(error).__name__) from error
        except (httpx2.DecodingError, EventTooLargeError) as error:
            if not self._complete:
                raise malformed(self._peer, str(error)) from error

    async def _within_deadlines(self, awaitable: Awaitable[T]) -> T:
        idle_at_s = asyncio.get_running_loop().time() + self._idle_timeout_s
        try:
            async with asyncio.timeout_at(min(self._deadline_s, idle_at_s)):
                return await awaitable
        except TimeoutError as error:
            if self._complete:
                raise httpx2.ReadTimeout("the body did not end") from error
            idle = idle_at_s <= self._deadline_s
            limit_s = self._idle_timeout_s if idle else self._timeout_s
            raise too_slow(self._peer, timeout_s=limit_s, idle=idle) from error
