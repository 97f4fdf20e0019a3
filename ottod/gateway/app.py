"""The endpoints: `/metrics`, `/healthz`, `/readyz`. All of them read, none of them acts.

However many scrape, root is asked at most once in `FRESH_S`: requests that come together share one question, and
its answer is kept for that long. When root is away the answer is 503 at once, so that Prometheus books `up` = 0
instead of a gap or old numbers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ottod.errors import OttoError
from ottod.gateway.exposition import CONTENT_TYPES, choose_format, render
from ottod.protocol.results import MetricsReport

FRESH_S = 1.0
"""How old the numbers of a scrape may be."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
SERVED = ("localhost",)


class Root(Protocol):
    """What the endpoints need of root."""

    @property
    def is_present(self) -> bool:
        """False once it is known that nobody answers."""

    async def metrics(self) -> MetricsReport:
        """Raises OttoError when there are none."""

    async def ping(self) -> None:
        """Raises OttoError when root does not answer."""


class Readings:
    """The last report, and the question for the next one."""

    def __init__(self, root: Root, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._report: MetricsReport | None = None
        self._read_s = 0.0
        self._asking: asyncio.Task[MetricsReport] | None = None

    async def report(self) -> MetricsReport:
        """A report no older than FRESH_S. Raises OttoError when root has none to give."""
        if self._report is not None and self._root.is_present and self._clock() - self._read_s < FRESH_S:
            return self._report
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add_done_callback(self._answered)
        # One scraper that hangs up must not take the answer from the others.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> MetricsReport:
        asked_s = self._clock()
        self._report = None
        self._report, self._read_s = await self._root.metrics(), asked_s
        return self._report

    def _answered(self, task: asyncio.Task[MetricsReport]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()


class HostGuard:
    """Refuses requests for hosts that this machine is not called: the mark of DNS rebinding.

    Only a name can be made to mean another machine, so addresses pass.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_served(Headers(scope=scope).getlist("host")):
            await self._app(scope, receive, send)
            return
        text = "this host is not served here; gateway.allowed_hosts in otto.yml lists the names that are\n"
        await PlainTextResponse(text, status_code=421, headers=HEADERS)(scope, receive, send)

    def _is_served(self, hosts: list[str]) -> bool:
        if len(hosts) != 1:
            return False
        name = host_name(hosts[0])
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def host_name(host: str) -> str:
    """The name or address in a Host header, without port and brackets. Empty for one that is malformed."""
    host = host.strip().lower()
    if host.startswith("["):
        address, bracket, port = host[1:].partition("]")
        return address if bracket and (not port or _is_port(port)) else ""
    name, colon, port = host.partition(":")
    return name if not colon or _is_port(":" + port) else ""


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and (text[1:].isdigit() or text == ":")


def build_app(root: Root, *, allowed_hosts: tuple[str, ...] = ()) -> Starlette:
    """The application over a root."""
    readings = Readings(root)

    async def metrics(request: Request) -> Response:
        form = choose_format(request.headers.get("accept", ""))
        body = render(await readings.report(), form)
        return Response(body, headers={**HEADERS, "Content-Type": CONTENT_TYPES[form], "Vary": "Accept"})

    async def healthz(_request: Request) -> Response:
        await root.ping()
        return PlainTextResponse("ok\n", headers=HEADERS)

    async def readyz(_request: Request) -> Response:
        if not has_zygote(await readings.report()):
            return _unavailable("root answers; its zygote, from which sessions are forked, is not up")
        return PlainTextResponse("ready\n", headers=HEADERS)

    routes = [Route(path, _or_unavailable(f), methods=["GET"]) for path, f in
              (("/metrics", metrics), ("/healthz", healthz), ("/readyz", readyz))]  # fmt: skip
    app = Starlette(routes=routes, middleware=[Middleware(HostGuard, hosts=(*SERVED, *allowed_hosts))])
    app.router.redirect_slashes = False
    return app


def has_zygote(report: MetricsReport) -> bool:
    """Whether new sessions can be forked."""
    found = [family.samples for family in report.families if family.name == "otto_zygote_up"]
    return bool(found) and any(sample.value > 0 for sample in found[0])


def _or_unavailable(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except OttoError as error:
            return _unavailable(error.message)

    return guarded


def _unavailable(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=503, headers={**HEADERS, "Retry-After": "1"})
