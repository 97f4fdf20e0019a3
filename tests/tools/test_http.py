"""The http tool against a real server on loopback, which it reaches only because the agent's file says so."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottod.errors import ToolError
from ottod.isolation.web import PinnedWeb, Rate
from ottod.protocol.specs import HttpAccess
from ottod.protocol.toolio import WebRequest, WebResponse
from ottod.tools.base import ToolOutput
from ottod.tools.html_text import html_to_text
from ottod.tools.http import HTTP, MAX_HTML_CHARS
from tests.fakes.odd_server import OddServer
from tests.fakes.session_place import SessionPlace, run


@pytest.fixture
def server() -> Iterator[OddServer]:
    with OddServer() as found:
        yield found


class Names:
    """A resolver whose answers a test gives; it counts who was asked for."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): addresses for name, addresses in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        known = self.answers[host]
        return known.pop(0) if len(known) > 1 else known[0]


def access(server: OddServer, *names: str, **fields: Any) -> HttpAccess:
    """Access to the server under these names, and under its address."""
    places = tuple(f"{name}:{server.port}" for name in ("127.0.0.1", *names))
    return HttpAccess(local=places, **fields)


def call(place: SessionPlace, server: OddServer, path: str, web: PinnedWeb | None = None, **more: Any) -> ToolOutput:
    place.web = web or PinnedWeb(access(server))
    limits = {key: more.pop(key) for key in ("max_output_bytes", "timeout_s") if key in more}
    url = path if path.startswith("http") else f"http://127.0.0.1:{server.port}{path}"
    return place.call(HTTP, json.dumps({"url": url, **more}), **limits)


def fetch(web: PinnedWeb, url: str, *, timeout_s: float = 20.0, **fields: Any) -> WebResponse:
    return run(web.fetch(WebRequest(**{"method": "GET", "url": url, **fields}), timeout_s=timeout_s))


def refused(web: PinnedWeb, url: str, **fields: Any) -> str:
    """The code of the refusal."""
    with pytest.raises(ToolError) as caught:
        fetch(web, url, **fields)
    return caught.value.code


def test_a_page_comes_as_text(place: SessionPlace, server: OddServer) -> None:
    """HTML is text for the model: headings, links and lists stay, scripts do not; with raw it is as it was."""
    output = call(place, server, "/html")
    assert output.text == f"status 200, {output.data['bytes']} bytes, text/html"
    assert output.untrusted.startswith("# Plan") and f"(http://127.0.0.1:{server.port}/it)" in output.untrusted
    assert "evil" not in output.untrusted and "* one" in output.untrusted
    assert "<script>" in call(place, server, "/html", raw=True).untrusted


def test_what_comes_from_outside_stays_apart(place: SessionPlace, server: OddServer) -> None:
    """The body is never in the tool's own words, whatever it says; nor is a server's nonsense in an error."""
    output = call(place, server, "/injection")
    assert "Ignore" not in output.text and "Ignore" in output.untrusted
    assert output.untrusted_source == f"http://127.0.0.1:{server.port}"
    with pytest.raises(ToolError) as caught:
        call(place, server, "/garbage")
    assert caught.value.code == "bad_response" and "ignore" not in str(caught.value)


class Body(bytes):
    """One that keeps which thread turned it into text."""

    def decode(self, *arguments: Any, **more: Any) -> str:
        self.decoded_in = threading.get_ident()
        return super().decode(*arguments, **more)


class OneAnswer:
    """The web, in which each page is the same."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self._response = WebResponse(
            url="http://a.example/", status=200, headers={"content-type": content_type}, body=body
        )

    async def fetch(self, request: WebRequest, *, timeout_s: float) -> WebResponse:
        return self._response


@pytest.mark.parametrize(
    ("charset", "body", "expected"),
    [
        ("", "grün".encode(), "grün"),
        ("; charset=iso-8859-1", "grün".encode("latin-1"), "grün"),
        ('; charset="Windows-1251"', "да".encode("cp1251"), "да"),
        ("; charset=shift_jis", "日本".encode("shift_jis"), "日本"),
        ("; charset=utf-16", "日本".encode("utf-16"), "日本"),
        ("; charset=no-such-thing", "grün".encode(), "grün"),
        # What takes ever longer for each byte, obeys what it reads or is no character set at all.
        ("; charset=punycode", b"bcher-kva", "bcher-kva"),
        ("; charset=utf-7", b"+AGE-", "+AGE-"),
        ("; charset=unicode_escape", b"\\x41", "\\x41"),
        ("; charset=idna", b"xn--bcher-kva", "xn--bcher-kva"),
        ("; charset=hex", b"41", "41"),
    ],
)
def test_a_server_chooses_among_character_sets(place: SessionPlace, charset: str, body: bytes, expected: str) -> None:
    """Among those that pages are written in; and the loop goes on while its choice is carried out."""
    answer = Body(body)
    place.web = OneAnswer(answer, f"text/plain{charset}")
    assert place.call(HTTP, '{"url": "http://a.example/"}').untrusted == expected
    assert answer.decoded_in != threading.get_ident()


def test_methods_headers_and_bodies(place: SessionPlace, server: OddServer) -> None:
    """A request is what the model said, and the call's own key: no cookie that was set before, no proxy, no login."""
    call(place, server, "/echo")
    output = call(
        place, server, "/echo", method="POST", body='{"a": 1}', headers={"Content-Type": "application/json"}
    )
    assert output.untrusted == '{"a": 1}'
    method, path, headers, body = server.seen[-1]
    assert (method, path, body) == ("POST", "/echo", b'{"a": 1}')
    assert headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": "otto-agent",
        "accept": "*/*",
        "content-type": "application/json",
        "idempotency-key": "k-1",
        "accept-encoding": "gzip, deflate",
        "connection": "close",
        "content-length": "8",
    }
    assert call(place, server, "/echo", method="HEAD").untrusted == ""


def test_the_environment_has_no_say(place: SessionPlace, server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies and logins of the environment are not used."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://user:password@127.0.0.1:9")
    (place.project / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(place.project / ".netrc"))
    assert call(place, server, "/echo").untrusted == "nothing"
    assert "authorization" not in {name.lower() for name in server.seen[-1][2]}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"hOsT": "evil.example"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "0"},
        {"Connection": "upgrade"},
        {"Cookie": "a=b"},
        {"Proxy-Authorization": "x"},
        {"X": "a\r\nHost: evil.example"},
        {"X": "a\0b"},
        {"X": "ü"},
        {"X Y": "z"},
        {"": "z"},
        {":path": "/x"},
    ],
)
def test_headers_that_change_where_a_request_goes(place: SessionPlace, server: OddServer, headers: object) -> None:
    """Nothing is sent for a request whose headers could lead it elsewhere, or hold a second request."""
    with pytest.raises(ToolError) as caught:
        call(place, server, "/echo", headers=headers)
    assert caught.value.code == "bad_arguments" and server.seen == []


def test_what_is_no_text_is_not_shown(place: SessionPlace, server: OddServer) -> None:
    """Bytes are refused with their number; text in an old encoding is read; a missing page is an error."""
    with pytest.raises(ToolError, match="256 bytes that is no text, but application/octet-stream"):
        call(place, server, "/binary")
    assert call(place, server, "/latin").untrusted == "größer"
    missing = call(place, server, "/none")
    assert missing.is_error and missing.text.startswith("status 404")


def test_sizes_are_bounded(place: SessionPlace, server: OddServer) -> None:
    """A body is cut at its bound, also a packed one that is thousands of times as large as it looks."""
    small = PinnedWeb(access(server, max_bytes=10_000))
    big = call(place, server, "/big/1000000", small)
    assert big.data["bytes"] == 10_000 and big.truncated and "cut there, it is longer" in big.text
    started = time.process_time()
    bomb = fetch(PinnedWeb(access(server, max_bytes=10_000)), f"http://127.0.0.1:{server.port}/bomb")
    assert len(bomb.body) == 10_000 and bomb.is_cut
    assert time.process_time() - started < 20, "it was unpacked whole"
    assert call(place, server, "/zipped").untrusted == "unpacked"
    with pytest.raises(ToolError, match="packed by 'br'"):
        call(place, server, "/packed")
    with pytest.raises(ToolError) as caught:
        call(place, server, "/headers")
    assert caught.value.code == "bad_response"


def test_a_long_answer_is_kept_whole(place: SessionPlace, server: OddServer) -> None:
    """What the model is not shown is an artifact, and the result names it."""
    output = call(place, server, "/big/100000", max_output_bytes=4096)
    assert output.truncated and len(output.untrusted) < 4096 and "the whole is the artifact art-0" in output.text
    assert len(place.artifacts.kept[0][1]) == 100_000


def test_a_slow_body_does_not_move_the_end(server: OddServer) -> None:
    """Bytes that keep coming do not extend the time."""
    web = PinnedWeb(access(server, timeout_s=0.5))
    assert refused(web, f"http://127.0.0.1:{server.port}/drip") == "timeout"
    web = PinnedWeb(access(server))
    assert refused(web, f"http://127.0.0.1:{server.port}/drip", timeout_s=0.5) == "timeout"


# ---------------------------------------------------------------- where it may go


def test_an_agent_that_names_no_host_reaches_none(server: OddServer) -> None:
    """An empty list allows nothing."""
    assert refused(PinnedWeb(HttpAccess()), f"http://127.0.0.1:{server.port}/echo") == "host_denied"
    assert server.seen == []


PRIVATE = {
    "loopback": "127.0.0.1",
    "loopback in IPv6": "::1",
    "loopback, mapped": "::ffff:127.0.0.1",
    "this host": "0.0.0.0",
    "private": "10.0.0.1",
    "metadata": "169.254.169.254",
    "metadata, mapped": "::ffff:169.254.169.254",
    "metadata behind a translator": "64:ff9b::a9fe:a9fe",
    "metadata in IPv6": "fd00:ec2::254",
    "carrier": "100.100.100.200",
    "multicast": "224.0.0.1",
    "link-local": "fe80::1",
}


@pytest.mark.parametrize("address", PRIVATE.values(), ids=PRIVATE.keys())
def test_a_public_name_with_a_private_address(server: OddServer, address: str) -> None:
    """A host that the agent may reach by name is not reached at an address that is not public."""
    web = PinnedWeb(HttpAccess(hosts=(f"*:{server.port}",)), resolve=Names(public_example=[[address]]))
    assert refused(web, f"http://public.example:{server.port}/echo") == "address_denied"
    mixed = PinnedWeb(HttpAccess(hosts=("*",)), resolve=Names(public_example=[["8.8.8.8", address]]))
    assert refused(mixed, "http://public.example/echo") == "address_denied"
    assert server.seen == []


def test_the_address_that_was_judged_is_the_one_connected_to(server: OddServer) -> None:
    """The name is resolved once for a request; a second answer, which could be another, is never asked for."""
    names = Names(pinned_example=[["127.0.0.1"], ["169.254.169.254"]])
    web = PinnedWeb(access(server, "pinned.example"), resolve=names)
    assert fetch(web, f"http://pinned.example:{server.port}/echo").body == b"nothing"
    assert names.asked == ["pinned.example"]
    assert server.seen[0][2]["host"] == f"pinned.example:{server.port}"
    # The next request asks again, and hears the other answer.
    assert refused(web, f"http://pinned.example:{server.port}/echo") == "address_denied"


def test_the_next_address_is_tried(server: OddServer) -> None:
    """An address where nobody listens is no failure while there is another."""
    names = Names(pinned_example=[["::1", "127.0.0.1"]])
    web = PinnedWeb(access(server, "pinned.example"), resolve=names)
    assert fetch(web, f"http://pinned.example:{server.port}/echo").status == 200


def test_redirects_are_judged_again(server: OddServer) -> None:
    """Each hop is judged by name and by address; the server is not asked where it may not be."""
    names = Names(pinned_example=[["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"]], inner_example=[["127.0.0.1"]])
    http = access(server, "pinned.example", hosts=(f"inner.example:{server.port}",))
    web = PinnedWeb(http, resolve=names)
    start = f"http://pinned.example:{server.port}/to/302/"
    found = fetch(web, f"{start}/echo")
    assert (found.status, found.redirects, found.url) == (200, 1, f"http://pinned.example:{server.port}/echo")
    assert refused(web, f"{start}/echo") == "address_denied", "the same name, with another address by then"
    names.answers["pinned.example"] = [["127.0.0.1"]]
    assert refused(web, f"{start}http://inner.example:{server.port}/echo") == "address_denied"
    assert refused(web, f"{start}http://localhost:{server.port}/echo") == "host_denied"
    assert refused(web, f"{start}http://169.254.169.254/latest/meta-data/") == "host_denied"
    assert refused(web, f"{start}http://2130706433:{server.port}/echo") == "bad_url"
    assert refused(web, f"{start}file:///etc/passwd") == "bad_url"
    assert refused(web, f"http://pinned.example:{server.port}/loop") == "bad_response"
    assert server.paths.count("/echo") == 1


def test_what_a_redirect_may_take_along(server: OddServer) -> None:
    """A POST becomes a GET as browsers do it; a body and a login are not for another origin."""
    web = PinnedWeb(
        access(server, "b.example"), resolve=Names(**{"127_0_0_1": [["127.0.0.1"]], "b_example": [["127.0.0.1"]]})
    )
    login = (("authorization", "secret"), ("accept", "text/plain"))
    base = f"http://127.0.0.1:{server.port}/to"
    fetch(web, f"{base}/303//echo", method="POST", body=b"x", headers=login)
    assert server.seen[-1][0] == "GET" and server.seen[-1][2]["authorization"] == "secret"
    fetch(web, f"{base}/307//echo", method="POST", body=b"x", headers=login)
    assert (server.seen[-1][0], server.seen[-1][3]) == ("POST", b"x")
    fetch(web, f"{base}/302/http://b.example:{server.port}/echo", headers=login)
    assert "authorization" not in server.seen[-1][2] and server.seen[-1][2]["accept"] == "text/plain"
    there = f"{base}/307/http://b.example:{server.port}/echo"
    assert refused(web, there, method="POST", body=b"x") == "host_denied"


def test_requests_come_at_their_rate() -> None:
    """A few at once, then no more than the rate, however many ask."""

    async def work() -> list[float]:
        rate = Rate(6000, now_s=asyncio.get_running_loop().time)
        started, ends = asyncio.get_running_loop().time(), []

        async def one() -> None:
            await rate.admit()
            ends.append(asyncio.get_running_loop().time() - started)

        await asyncio.gather(*(one() for _ in range(30)))
        return sorted(ends)

    ends = run(work(), loop="asyncio")
    assert ends[-1] >= 0.01 * 20 - 0.005, "thirty requests, ten of them at once, the others 10 ms apart"


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate for secure.example, made by the openssl program."""
    base = tmp_path_factory.mktemp("tls")
    key, cert = base / "key.pem", base / "cert.pem"
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=secure.example",
            ),
            *("-addext", "subjectAltName=DNS:secure.example", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return key, cert


def test_the_certificate_is_the_host_s(certificate: tuple[Path, Path]) -> None:
    """TLS asks for the name although an address is connected to; a certificate of another name is refused."""
    key, cert = certificate
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(cert, key)
    asked: list[object] = []
    served.sni_callback = lambda _socket, name, _context: asked.append(name)
    with OddServer(tls=served) as server:
        names = Names(secure_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
        http = access(server, "secure.example", "other.example")
        believed = ssl.create_default_context(cafile=str(cert))
        web = PinnedWeb(http, resolve=names, tls=believed)
        assert fetch(web, f"https://secure.example:{server.port}/echo").body == b"nothing"
        assert asked == ["secure.example"]
        assert refused(web, f"https://other.example:{server.port}/echo") == "unreachable"
        assert refused(PinnedWeb(http, resolve=names), f"https://secure.example:{server.port}/echo") == "unreachable"
        assert refused(web, f"https://secure.example:{server.port}/to/302/http://a.example/") == "host_denied"
        assert server.paths == ["/echo", "/to/302/http://a.example/"]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a<!-- secret -->b", "ab"),
        ("a<!-- never closed <p>b", "a"),
        ("<!DOCTYPE html><?xml x?>a", "a"),
        ("1 < 2 && 3 > 2 &amp; &lt;", "1 < 2 && 3 > 2 & <"),
        ("a<p unfinished", "a"),
        ("<!--" * 3, ""),
    ],
)
def test_what_a_parser_stumbles_over_is_taken_out(html: str, text: str) -> None:
    """Comments and declarations are gone, also unfinished ones, which would take ages; loose signs are themselves."""
    assert html_to_text(html) == text


def test_a_page_reads_as_markdown() -> None:
    """Headings, emphasis, lists in each other, quotations, code, tables, links; what a browser hides is not there."""
    html = """<html><head><title>no</title><script>a < b; "</p>"</script></head><body><h1>Plan <em>b</em></h1>
    <p>Build <a href='/it'>it</a>, <b>bold</b> and <code>x = 1</code>.<br>next <a href="javascript:x()">js</a>
    <a href="a.html" title="x > y">q</a></p><ul><li>one</li><li></li><li><p>two</p><p>more</p><ul><li>deep</ul></ul>
    <blockquote><p>said</p><p>twice</p></blockquote>after<ol start=3><li>a</li><li><p>b</p></li></ol>
    <pre>def f():\n    return 1\n\nx</pre>
    <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><hr>
    1 < 2 &lt;x&gt; &#65;</body></html>"""
    text = html_to_text(html, url="http://a.example/d/")
    assert text == (
        "# Plan _b_\n\nBuild [it](http://a.example/it), **bold** and `x = 1`.\nnext js [q](http://a.example/d/a.html)\n\n"
        "  * one\n  * two\n  more\n    * deep\n\n> said\n>\n> twice\n\nafter\n\n  3. a\n  4. b\n\n"
        "    def f():\n        return 1\n\n    x\n\na | b\n1 | 2\n\n* * *\n\n1 < 2 <x> A"
    )


@pytest.mark.parametrize(
    "piece",
    ["<ul><li>", "<b><a href='", "<a 'b=\"", "<!-", "<?", "&#9", "<table><td>", "<blockquote>", "<p \"", "<script>",
     "</script", "<a href=x>", "<pre>\n", "<", "href=", "<h1>&"],
)  # fmt: skip
def test_a_page_costs_what_its_length_costs(piece: str) -> None:
    """Whatever a page opens and never closes, half a megabyte of it is read, and not looked through for ever."""
    html = piece * (MAX_HTML_CHARS // len(piece))
    assert len(html_to_text(html, url="http://a.example/" + "d" * 900)) <= 8 * MAX_HTML_CHARS


@pytest.mark.parametrize(
    "html",
    [
        "",
        "<",
        "<p",
        "<!DOCTYPE",
        "<![CDATA[x",
        "<table><tr><td>",
        "&#xFFFFFFFF;",
        "<a href='[x](y)'>z",
        "<ul>" * 2000,
        "\0",
    ],
)
def test_any_html_gives_some_text(html: str) -> None:
    """No page breaks the reader."""
    assert isinstance(html_to_text(html, url="http://a.example/"), str)
