"""The web as a session may see it: only hosts that its agent names, and only at addresses that everybody may reach.

What is judged is what is used. The host of each request, redirects included, is judged by name, resolved once, each
of its addresses judged, and one of these very addresses connected to: nobody resolves the name a second time. TLS
still asks for the name, and checks the certificate against it. Each request has a connection of its own, so that no
other request's judgement counts for it.

One HTTP/1.1 connection at a time is all that is used of the HTTP library. It knows no cookies, no credentials, no
proxies and no environment. Bodies are decoded here, because a body of some kilobytes can stand for one of gigabytes:
no more is unpacked than is kept.

Source: ADR 0017.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ottod.core.web_address import (
    MAX_REDIRECTS,
    Refusal,
    Target,
    parse_url,
    redirected,
    refused_addresses,
    refused_host,
)
from ottod.errors import ToolError
from ottod.protocol.specs import HttpAccess
from ottod.protocol.toolio import WebRequest, WebResponse

if TYPE_CHECKING:
    import httpcore2

CONNECT_S = 10.0
"""For one address; the next one is tried after it."""
MAX_ADDRESSES = 16
RESOLVER_THREADS = 4
BURST_REQUESTS = 10
"""That may be made at once, whatever the rate is."""
USER_AGENT = "otto-agent"
SHOWN_HEADERS = ("content-type", "content-length", "last-modified", "etag", "location", "retry-after", "link")
MAX_HEADER_CHARS = 500
OURS = frozenset(
    {
        *("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "te", "trailer"),
        *("upgrade", "keep-alive", "expect", "cookie", "range"),
    }
)
"""Headers that decide where a request goes, where it ends, and what it may bring along."""
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}\Z")
_HEADER_VALUE = re.compile(r"[!-~]?(?:[ \t!-~]{0,4000}[!-~])?\Z")
SAFE_ABROAD = frozenset({"accept", "accept-language", "user-agent"})
"""Headers that follow a redirect to another origin: others may hold what is meant for the first alone."""

Resolve = Callable[[str, int], Awaitable[list[str]]]


class PinnedWeb:
    """`Web` of one session. `resolve` gives the addresses of a host, `tls` says which certificates are believed.

    `objection` says why the call under way may not go to a host; empty if it may. It is asked for each request.
    """

    def __init__(
        self,
        http: HttpAccess,
        *,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        now_s: Callable[[], float] = time.monotonic,
        objection: Callable[[str], str] = lambda host: "",
    ) -> None:
        self._http = http
        self._objection = objection
        self._resolve = resolve or SystemResolver().resolve
        self._tls = tls
        self._rate = Rate(http.requests_per_minute, now_s=now_s)

    async def fetch(self, request: WebRequest, *, timeout_s: float) -> WebResponse:
        """See `Web.fetch`."""
        http = self._http
        limit_s = min(timeout_s, http.timeout_s)
        target = _accepted(parse_url(request.url))
        try:
            async with asyncio.timeout(limit_s):
                return await self._follow(target, request)
        except TimeoutError as error:
            raise ToolError(
                f"{target.url[:200]} did not answer whole within {limit_s:g} s", code="timeout"
            ) from error

    async def _follow(self, target: Target, request: WebRequest) -> WebResponse:
        for redirects in range(MAX_REDIRECTS + 1):
            self._check_host(target)
            await self._rate.admit()
            response, location = await self._exchange(target, request)
            if not location or not request.follows:
                return _with_redirects(response, redirects)
            following = _accepted(redirected(target, location))
            request = _redirected_request(request, response.status, is_abroad=not following.has_origin_of(target))
            target = following
        raise ToolError(f"more than {MAX_REDIRECTS} redirects", code="bad_response")

    def _check_host(self, target: Target) -> None:
        refusal = refused_host(target, self._http)
        if refusal is not None:
            raise ToolError(refusal.message, code=refusal.code)
        if reason := self._objection(target.host):
            raise ToolError(reason, code="denied")

    async def _addresses(self, target: Target) -> list[str]:
        """The host's addresses, all of which have been judged. Raises ToolError."""
        try:
            found = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError) as error:
            raise ToolError(f"{target.host} cannot be resolved: {error}", code="unreachable") from error
        refusal = refused_addresses(target, found, self._http)
        if refusal is not None:
            raise ToolError(refusal.message, code=refusal.code)
        return list(dict.fromkeys(found))[:MAX_ADDRESSES]

    async def _exchange(self, target: Target, request: WebRequest) -> tuple[WebResponse, str]:
        """One request and its answer, and where it redirects to."""
        # Not at the top: sessions that fetch nothing need not load it.
        import httpcore2

        addresses = await self._addresses(target)
        tls = None
        if target.scheme == "https":
            if self._tls is None:
                self._tls = await asyncio.to_thread(ssl.create_default_context)
            tls = self._tls
        connection = httpcore2.AsyncHTTPConnection(
            origin=httpcore2.Origin(target.scheme.encode(), target.host.encode(), target.port),
            ssl_context=tls,
            network_backend=_backend(target, addresses),
        )
        try:
            return await self._speak(connection, target, request)
        except (httpcore2.NetworkError, httpcore2.TimeoutException, OSError) as error:
            raise ToolError(f"{target.authority}: {_reason(error)}", code="unreachable") from error
        except (httpcore2.ProtocolError, zlib.error) as error:
            raise ToolError(f"{target.authority} answered with what is no HTTP", code="bad_response") from error
        finally:
            await connection.aclose()

    async def _speak(
        self, connection: httpcore2.AsyncHTTPConnection, target: Target, request: WebRequest
    ) -> tuple[WebResponse, str]:
        import httpcore2

        raw = httpcore2.Request(
            request.method.encode("ascii"),
            httpcore2.URL(
                scheme=target.scheme.encode(),
                host=target.host.encode(),
                port=target.port,
                target=target.path.encode(),
            ),
            headers=_headers(target, request),
            content=request.body or None,
        )
        answer = await connection.handle_async_request(raw)
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
            location = headers.get("location", "") if 300 <= answer.status < 400 and answer.status != 304 else ""
            body, is_cut = b"", False
            if not location and request.method != "HEAD":
                body, is_cut = await self._body(answer.aiter_stream(), headers.get("content-encoding", ""))
        finally:
            await answer.aclose()
        response = WebResponse(
            url=target.url,
            status=answer.status,
            headers={name: headers[name][:MAX_HEADER_CHARS] for name in SHOWN_HEADERS if name in headers},
            body=body,
            is_cut=is_cut,
        )
        return response, location

    async def _body(self, stream: Any, encoding: str) -> tuple[bytes, bool]:
        """The body as far as it may go, unpacked, and whether there was more. Raises ToolError, zlib.error."""
        http = self._http
        most = http.max_bytes
        unpack = _unpacker(encoding)
        body = bytearray()
        async for chunk in stream:
            body += unpack(chunk, most + 1 - len(body))
            if len(body) > most:
                return bytes(body[:most]), True
        return bytes(body), False


class Rate:
    """Admits requests at a steady rate, a few of them at once; the others wait for their time."""

    def __init__(self, per_minute: int, *, now_s: Callable[[], float]) -> None:
        self._period_s = 60.0 / per_minute
        self._ahead_s = self._period_s * (min(BURST_REQUESTS, per_minute) - 1)
        self._now_s = now_s
        self._due_s = now_s()

    async def admit(self) -> None:
        """Returns when the next request may be made."""
        now_s = self._now_s()
        self._due_s = max(self._due_s, now_s - self._ahead_s)
        wait_s, self._due_s = self._due_s - now_s, self._due_s + self._period_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)


def _backend(target: Target, addresses: list[str]) -> httpcore2.AsyncNetworkBackend:
    """Connects to the judged addresses of one host and port, and refuses anything else."""
    import httpcore2

    class Pinned(httpcore2.AnyIOBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
            local_address: str | None = None,
            socket_options: Iterable[Any] | None = None,
        ) -> httpcore2.AsyncNetworkStream:
            if (host, port) != (target.host, target.port):
                raise ToolError("the HTTP library asks for another host than was judged", code="host_denied")
            failure: Exception | None = None
            for address in addresses:
                try:
                    return await super().connect_tcp(address, port, timeout=CONNECT_S)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout, OSError) as error:
                    failure = error
            assert failure is not None, "a host without addresses was refused before"
            raise failure

        async def connect_unix_socket(self, *arguments: Any, **named: Any) -> httpcore2.AsyncNetworkStream:
            raise ToolError("there are no unix sockets here", code="host_denied")

    return Pinned()


class SystemResolver:
    """Resolves as the system does, on threads of its own: a name that nobody answers for holds one for long."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host. Raises OSError."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")
        loop = asyncio.get_running_loop()
        ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        found = await loop.run_in_executor(self._threads, ask)
        return [str(address[0]).partition("%")[0] for *_, address in found]


def _headers(target: Target, request: WebRequest) -> list[tuple[bytes, bytes]]:
    """Raises ToolError for a header that is not the request's to set."""
    given = {name.lower(): value for name, value in request.headers}
    for name, value in given.items():
        if not _HEADER_NAME.match(name) or not _HEADER_VALUE.match(value):
            raise ToolError(
                f"the header {name[:40]!r} cannot be sent: its name or value is none", code="bad_arguments"
            )
        if name in OURS or name.startswith(("proxy-", "sec-")):
            raise ToolError(f"the header {name!r} cannot be set", code="bad_arguments")
    usual = {"user-agent": USER_AGENT, "accept": "*/*"}
    headers = {
        "host": target.authority,
        **usual,
        **given,
        "accept-encoding": "gzip, deflate",
        "connection": "close",
    }
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        headers["content-length"] = str(len(request.body))
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


def _redirected_request(request: WebRequest, status: int, *, is_abroad: bool) -> WebRequest:
    """The request that follows a redirect: as browsers do, a POST becomes a GET unless the status says otherwise."""
    method, body, headers = request.method, request.body, request.headers
    if status == 303 or (status in (301, 302) and method == "POST"):
        method, body = ("HEAD" if method == "HEAD" else "GET"), b""
        headers = tuple((name, value) for name, value in headers if not name.lower().startswith("content-"))
    if is_abroad:
        headers = tuple((name, value) for name, value in headers if name.lower() in SAFE_ABROAD)
        if body:
            raise ToolError(
                "the server redirects to another host, and the body is not for that one", code="host_denied"
            )
    return WebRequest(method=method, url="", headers=headers, body=body)


def _with_redirects(response: WebResponse, redirects: int) -> WebResponse:
    return WebResponse(
        url=response.url,
        status=response.status,
        headers=response.headers,
        body=response.body,
        is_cut=response.is_cut,
        redirects=redirects,
    )


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """Unpacks pieces of a body, each time no more than is asked for. Raises ToolError for what is not known."""
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        return lambda data, most: data[:most]
    if kind not in ("gzip", "x-gzip", "deflate"):
        raise ToolError(f"the body is packed by {kind[:40]!r}, which was not asked for", code="bad_response")
    # 32 + 15: gzip or zlib, whichever the data says.
    inflate = zlib.decompressobj(47)
    return lambda data, most: inflate.decompress(data, most)


def _accepted(target: Target | Refusal) -> Target:
    if isinstance(target, Refusal):
        raise ToolError(target.message, code=target.code)
    return target


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
