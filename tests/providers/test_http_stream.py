"""Deadlines and failures of one streamed response, against a body that comes as scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType

import httpx2
import pytest

from ottod.errors import ProviderError
from ottod.providers.failures import Peer
from ottod.providers.http_stream import HttpStream
from tests.fakes import idle_loop

PEER = Peer(name="p", base_url="http://h", key_variable="")
EVENT = b"data: x\n\n"


class SdkError(Exception):
    """What an SDK would raise."""


class Body:
    """A response body: bytes to send, seconds to wait, errors to raise. Knows whether it was closed."""

    def __init__(self, *steps: bytes | float | Exception, content_type: str = "text/event-stream") -> None:
        self._steps = steps
        self.headers = {"content-type": content_type}
        self.closed = False

    async def __aenter__(self) -> Body:
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closed = True

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, bytes):
                yield step
            else:
                await asyncio.sleep(step)


def read(body: Body, *, idle_timeout_s: float = 5, timeout_s: float = 5, complete_after: int = 0) -> int:
    """The number of events. With `complete_after`, the response is whole after that many."""
    stream = HttpStream(
        body,
        peer=PEER,
        timeout_s=timeout_s,
        idle_timeout_s=idle_timeout_s,
        sdk_error=SdkError,
        translate=lambda error: ProviderError(f"translated {error}", code="bad_request"),
    )

    async def main() -> int:
        count = 0
        began_s = asyncio.get_running_loop().time()
        async with aclosing(stream.events()) as events:
            async for _ in events:
                count += 1
                if count == complete_after:
                    stream.complete(0.05)
        if complete_after:
            assert asyncio.get_running_loop().time() - began_s < 0.06, "the tail took more than its time"
        return count

    try:
        return idle_loop.run(main())
    finally:
        assert body.closed


def test_pings_and_comments_are_life() -> None:
    """A model that thinks in silence behind pings is not idle: no gap reaches the limit, the sum exceeds it."""
    pings = [step for _ in range(8) for step in (b": ping\n\n", 0.1)]
    assert read(Body(EVENT, *pings, EVENT), idle_timeout_s=0.4) == 2


def test_pings_do_not_extend_the_total() -> None:
    """A server that only pings is given up at timeout_s."""
    pings = [step for _ in range(100) for step in (b": ping\n\n", 0.05)]
    with pytest.raises(ProviderError, match=r"no complete response after 0\.3 s"):
        read(Body(*pings), timeout_s=0.3)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (httpx2.RemoteProtocolError("peer closed"), "cut", True),
        (httpx2.ReadError(""), "cut", True),
        (httpx2.DecodingError("bad gzip"), "malformed", True),
        (SdkError("x"), "bad_request", False),
    ],
)
def test_failures_of_the_body_are_provider_errors(error: Exception, code: str, retryable: bool) -> None:
    """Whatever the HTTP stack raises in the middle; and the response is closed."""
    with pytest.raises(ProviderError) as caught:
        read(Body(EVENT, error))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert caught.value.message.strip()


@pytest.mark.parametrize("tail", [httpx2.ReadError("reset"), SdkError("late"), 30.0])
def test_after_the_response_is_whole_its_tail_may_fail(tail: Exception | float) -> None:
    """A reset or an endless body after the last event costs neither the response nor more than a moment."""
    assert read(Body(EVENT, EVENT, tail), complete_after=2) == 2


def test_a_tail_of_pings_is_bounded() -> None:
    """The time for the tail is a total, not a silence."""
    pings = [step for _ in range(400) for step in (b": ping\n\n", 0.01)]
    assert read(Body(EVENT, *pings), complete_after=1) == 1


def test_a_defect_of_ours_is_not_hidden() -> None:
    """Only expected errors are translated."""
    with pytest.raises(ZeroDivisionError):
        read(Body(EVENT, ZeroDivisionError()))


def test_a_page_instead_of_a_stream_points_to_the_base_url() -> None:
    """A wrong address often answers 200 with a page; retrying does not help."""
    with pytest.raises(ProviderError, match="expected an event stream, got text/html") as caught:
        read(Body(b"<html>", content_type="text/html"))
    assert not caught.value.retryable
    assert "providers.p.base_url" in caught.value.mend


def test_the_content_type_may_have_parameters_and_any_case() -> None:
    """Servers differ."""
    assert read(Body(EVENT, content_type="Text/Event-Stream; charset=utf-8")) == 1
