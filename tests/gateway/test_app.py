"""The endpoints, over a root of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from ottod.errors import RefusedError, UnreachableError
from ottod.gateway.app import FRESH_S, Readings, build_app, has_zygote, host_name
from ottod.protocol.results import MetricsReport
from tests.gateway.reports import full_report


class FakeRoot:
    """Answers, or does not. `asked` counts the questions for metrics."""

    def __init__(self) -> None:
        self.is_present = True
        self.failure: Exception | None = None
        self.zygote = True
        self.asked = 0
        self.gate: asyncio.Event | None = None

    async def metrics(self) -> MetricsReport:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return full_report(zygote=self.zygote)

    async def ping(self) -> None:
        if self.failure is not None:
            raise self.failure


async def call(
    root: FakeRoot,
    path: str,
    *,
    method: str = "GET",
    hosts: tuple[str, ...] = ("localhost",),
    allowed: tuple[str, ...] = (),
) -> tuple[int, bytes]:
    """One request to a fresh application: status and body."""
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "headers": [(b"host", host.encode("latin-1")) for host in hosts],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await build_app(root, allowed_hosts=allowed)(scope, receive, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def test_the_endpoints_answer() -> None:
    """Metrics, health and readiness when all is well."""
    root = FakeRoot()
    status, body = asyncio.run(call(root, "/metrics"))
    assert status == 200
    assert b'otto_sessions{state="running"} 3.0\n' in body
    assert asyncio.run(call(root, "/healthz")) == (200, b"ok\n")
    assert asyncio.run(call(root, "/readyz")) == (200, b"ready\n")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
@pytest.mark.parametrize("failure", [UnreachableError("root is gone"), RefusedError("no metrics")])
def test_without_root_there_is_503(path: str, failure: Exception) -> None:
    """A root that is away, or that refuses, is 503 with the reason; never an empty success."""
    root = FakeRoot()
    root.failure = failure
    assert asyncio.run(call(root, path)) == (503, f"{failure}\n".encode())


def test_a_root_without_zygote_is_healthy_and_not_ready() -> None:
    """It answers, and cannot start sessions."""
    root = FakeRoot()
    root.zygote = False
    assert asyncio.run(call(root, "/healthz"))[0] == 200
    assert asyncio.run(call(root, "/readyz"))[0] == 503
    assert not has_zygote(MetricsReport(families=()))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_nothing_acts(path: str, method: str) -> None:
    """Only reading is allowed."""
    assert asyncio.run(call(FakeRoot(), path, method=method))[0] == 405


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/session", "/../metrics"])
def test_there_is_nothing_else(path: str) -> None:
    """No other path is served."""
    assert asyncio.run(call(FakeRoot(), path))[0] == 404


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("hosts", "served"),
    [
        (("localhost",), True),
        (("LOCALHOST:9686",), True),
        (("127.0.0.1:9686",), True),
        (("[::1]:9686",), True),
        (("192.168.1.7:1",), True),
        (("box.example:9686",), True),
        (("evil.example",), False),
        (("localhost.evil.example",), False),
        (("127.0.0.1.evil.example:9686",), False),
        (("evil.example#localhost",), False),
        (("localhost:9686@evil.example",), False),
        (("[::1",), False),
        (("[::1]evil",), False),
        (("localhost:port",), False),
        (("localhost\u00b9",), False),
        (("",), False),
        ((), False),
        (("localhost", "evil.example"), False),
    ],
)
def test_names_that_are_not_ours_are_refused(hosts: tuple[str, ...], served: bool) -> None:
    """DNS rebinding shows in the Host header: a name that this machine is not called by gets nothing."""
    root = FakeRoot()
    status, body = asyncio.run(call(root, "/metrics", hosts=hosts, allowed=("Box.example",)))
    assert (status == 200) is served
    if not served:
        assert status == 421
        assert b"otto_sessions" not in body
        assert root.asked == 0


def test_host_names_are_read_to_the_end() -> None:
    """What follows the port, or is not one, makes the whole invalid."""
    assert host_name("[fe80::1]") == "fe80::1"
    assert host_name("box:") == "box"
    assert host_name("box:٣") == ""


# ---------------------------------------------------------------- the cache


def test_a_crowd_costs_one_question() -> None:
    """Requests that come together share one question; so do those that come soon after."""

    async def main() -> None:
        root, now = FakeRoot(), [100.0]
        readings = Readings(root, clock=lambda: now[0])
        root.gate = asyncio.Event()
        crowd = [asyncio.create_task(readings.report()) for _ in range(50)]
        await asyncio.sleep(0)
        crowd[0].cancel()
        root.gate.set()
        assert len({id(report) for report in await asyncio.gather(*crowd[1:])}) == 1
        now[0] += FRESH_S * 0.9
        await readings.report()
        assert root.asked == 1
        now[0] += FRESH_S * 0.2
        await readings.report()
        assert root.asked == 2

    asyncio.run(main())


def test_old_numbers_do_not_outlive_root() -> None:
    """Numbers that are still fresh are not given once root is known to be away, nor after a failure."""

    async def main() -> None:
        root = FakeRoot()
        readings = Readings(root, clock=lambda: 1.0)
        await readings.report()
        root.is_present, root.failure = False, UnreachableError("root is gone")
        await refused(readings.report())
        root.is_present = True
        await refused(readings.report())
        root.failure = None
        await readings.report()
        assert root.asked == 4

    asyncio.run(main())


async def refused(question: Awaitable[object]) -> None:
    with pytest.raises(UnreachableError):
        await question
