"""Where a session may go, judged without a network: every trick is refused, and every plain URL survives."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.web_address import (
    Refusal,
    Target,
    is_local_address,
    is_public,
    parse_url,
    redirected,
    refused_addresses,
    refused_host,
)
from ottod.protocol.specs import HttpAccess
from ottod.settings.hosts import HostPattern, parse_local, parse_pattern


def target(url: str) -> Target:
    found = parse_url(url)
    assert isinstance(found, Target), found
    return found


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org", "https://example.org/"),
        ("HTTP://Example.ORG:80/a?b=c#d", "http://example.org/a?b=c"),
        ("https://example.org.:8443?q", "https://example.org:8443/?q"),
        ("http://93.184.216.34/", "http://93.184.216.34/"),
        ("http://[2606:2800:220:1::1]:8080/x", "http://[2606:2800:220:1::1]:8080/x"),
        ("http://xn--bcher-kva.example/", "http://xn--bcher-kva.example/"),
    ],
)
def test_plain_urls_are_read(url: str, expected: str) -> None:
    """A URL is put together anew: lower-case host, usual port left out, no fragment."""
    assert target(url).url == expected
    assert target(expected) == target(url)


TRICKS = {
    "user": "http://allowed.example@evil.example/",
    "user and password": "http://a:b@allowed.example/",
    "empty user": "http://@evil.example/",
    "backslash": "http://evil.example\\@allowed.example/",
    "backslashes for slashes": "http:\\\\evil.example/",
    "NUL in the host": "http://allowed.example\0.evil.example/",
    "NUL in percent signs": "http://allowed.example%00.evil.example/",
    "host in percent signs": "http://%31%32%37.0.0.1/",
    "tab in the host": "http://127.0.0\t.1/",
    "newline, a header smuggled in": "http://allowed.example/ HTTP/1.1\r\nHost: evil.example",
    "space": "http://allowed.example /",
    "full-width digits": "http://①②⑦.⓪.⓪.①/",
    "full-width dots": "http://127。0。0。1/",
    "other letters": "http://exаmple.org/",
    "decimal address": "http://2130706433/",
    "hexadecimal address": "http://0x7f000001/",
    "octal address": "http://0177.0.0.1/",
    "short address": "http://127.1/",
    "hexadecimal part": "http://0x7f.0.0.1/",
    "leading zeros": "http://127.000.000.001/",
    "five parts": "http://127.0.0.1.1/",
    "too large a part": "http://256.0.0.1/",
    "zone of an IPv6 address": "http://[fe80::1%25eth0]/",
    "broken IPv6": "http://[::ffff:127.0.0.1/",
    "IPv6 with a name": "http://[localhost]/",
    "no host": "http:///etc/passwd",
    "port alone": "http://:80/",
    "empty port": "http://allowed.example:/",
    "port 0": "http://allowed.example:0/",
    "port too large": "http://allowed.example:65536/",
    "two ports": "http://allowed.example:80:90/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://allowed.example/_x",
    "no scheme": "allowed.example/",
    "scheme-relative": "//allowed.example/",
    "empty label": "http://allowed..example/",
    "label that begins with a dash": "http://-allowed.example/",
    "long label": f"http://{'a' * 64}.example/",
    "long": f"http://allowed.example/{'a' * 9000}",
    "semicolon": "http://allowed.example;evil.example/",
}


@pytest.mark.parametrize("url", TRICKS.values(), ids=TRICKS.keys())
def test_what_can_be_read_in_two_ways_is_refused(url: str) -> None:
    """No spelling of a host that another reader could take for a different one gets through."""
    found = parse_url(url)
    assert isinstance(found, Refusal) and found.code == "bad_url"


@given(text=st.text() | st.from_regex(r"https?://[!-~]{0,60}", fullmatch=True))
def test_any_text_is_judged(text: str) -> None:
    """Whatever passes is put together to something that is read in the same way, and holds nothing but its parts."""
    found = parse_url(text)
    if isinstance(found, Target):
        assert parse_url(found.url) == found
        assert set(found.host) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_:") and found.path.startswith("/")


ADDRESSES = {
    "127.0.0.1": "local", "127.8.8.8": "local", "10.1.2.3": "local", "172.31.0.1": "local", "192.168.1.1": "local",
    "0.0.0.0": "no", "169.254.169.254": "no", "100.64.0.1": "no", "100.100.100.200": "no", "224.0.0.1": "no",
    "255.255.255.255": "no", "240.0.0.1": "no", "198.18.0.1": "no", "192.0.0.192": "no", "192.0.2.1": "no",
    "168.63.129.16": "no", "8.8.8.8": "yes", "172.32.0.1": "yes", "100.128.0.1": "yes", "1.1.1.1": "yes",
    "::1": "local", "fc00::1": "local", "fd12::1": "local", "fd00:ec2::254": "no", "::": "no", "fe80::1": "no",
    "fec0::1": "no", "ff02::1": "no", "::ffff:127.0.0.1": "local", "::ffff:169.254.169.254": "no",
    "::ffff:8.8.8.8": "yes", "::127.0.0.1": "no", "64:ff9b::7f00:1": "local", "64:ff9b::a9fe:a9fe": "no",
    "64:ff9b::808:808": "yes", "64:ff9b:1::1": "no", "2002:7f00:1::": "no", "2001::1": "no", "2001:db8::1": "no",
    "2606:4700::1111": "yes", "100::1": "no",
}  # fmt: skip


@pytest.mark.parametrize(("text", "verdict"), ADDRESSES.items())
def test_addresses(text: str, verdict: str) -> None:
    """Public, local, or neither, whatever they are wrapped in."""
    address = ipaddress.ip_address(text)
    assert is_public(address) == (verdict == "yes")
    assert is_local_address(address) == (verdict == "local")


@given(address=st.ip_addresses())
def test_no_address_that_the_registries_call_special_is_public(address: ipaddress.IPv4Address) -> None:
    """Whatever the standard library knows to be special is not public here."""
    special = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    if special or address.is_reserved or address.is_unspecified:
        assert not is_public(address) or getattr(address, "ipv4_mapped", None) or address in _TRANSLATED


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
AGENT = HttpAccess(hosts=("example.org", "*.example.net", "odd.example:8443"), local=("localhost:3000", "[::1]:3000"))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.org/", True),
        ("http://example.org/", True),
        ("http://example.org:8080/", False),
        ("https://www.example.org/", False),
        ("https://example.org.evil.example/", False),
        ("https://evilexample.org/", False),
        ("https://a.b.example.net/", True),
        ("https://example.net/", False),
        ("https://evilexample.net/", False),
        ("https://odd.example:8443/", True),
        ("https://odd.example/", False),
        ("http://localhost:3000/", True),
        ("http://localhost:3001/", False),
        ("http://[::1]:3000/", True),
        ("http://127.0.0.1:3000/", False),
        ("http://169.254.169.254/", False),
    ],
)
def test_hosts_are_those_that_the_agent_names(url: str, allowed: bool) -> None:
    """A host passes by its whole name and port, and not by what it begins or ends with."""
    refusal = refused_host(target(url), AGENT)
    assert (refusal is None) == allowed
    assert refused_host(target(url), HttpAccess()) is not None, "an empty list must not mean all"


@pytest.mark.parametrize(
    ("url", "addresses", "allowed"),
    [
        ("http://example.org/", ["8.8.8.8"], True),
        ("http://example.org/", [], False),
        ("http://example.org/", ["10.0.0.1"], False),
        ("http://example.org/", ["8.8.8.8", "10.0.0.1"], False),
        ("http://example.org/", ["8.8.8.8", "::ffff:169.254.169.254"], False),
        ("http://example.org/", ["127.0.0.1"], False),
        ("http://example.org/", ["no address"], False),
        ("http://localhost:3000/", ["127.0.0.1", "::1"], True),
        ("http://localhost:3000/", ["169.254.169.254"], False),
        ("http://localhost:3001/", ["127.0.0.1"], False),
    ],
)
def test_one_bad_address_is_enough(url: str, addresses: list[str], allowed: bool) -> None:
    """A name with any address that may not be reached is not reached at all; local ones only where granted."""
    assert (refused_addresses(target(url), addresses, AGENT) is None) == allowed


def test_an_open_list_still_means_public_hosts() -> None:
    """`*` allows every host by name, and no private address with it."""
    open_access = HttpAccess(hosts=("*",))
    assert refused_host(target("http://internal/"), open_access) is None
    assert refused_addresses(target("http://internal/"), ["10.0.0.1"], open_access) is not None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b?c", "https://example.org/b?c"),
        ("b", "https://example.org/a/b"),
        ("//evil.example/x", "https://evil.example/x"),
        ("https://other.example/", "https://other.example/"),
        ("http://example.org/", None),
        ("//evil.example\\@example.org/", None),
        ("javascript:alert(1)", None),
        ("file:///etc/passwd", None),
        ("https://a@b/", None),
        ("/a b", None),
        ("//[::1", None),
    ],
)
def test_redirects_are_read_as_urls(location: str, expected: str | None) -> None:
    """A redirect is judged as a URL of its own, and never leads from https to http."""
    found = redirected(target("https://example.org/a/x"), location)
    assert (found.url if isinstance(found, Target) else None) == expected


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    "text",
    ["", "http://a", "a/b", "*.*", "a.*", "**", "*a.b", "a:0", "a:99999", "a b", "a\0", "-a", "a..b", "ünï", "a:b"],
)
def test_what_is_no_pattern(text: str) -> None:
    """A mistake in the list is an error, and never a pattern that means more, or nothing."""
    with pytest.raises(ValueError, match="is no host"):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["localhost", "*.a:80", "*:80", "127.0.0.1"])
def test_local_places_are_host_and_port(text: str) -> None:
    """Nobody opens a whole machine by leaving something out."""
    with pytest.raises(ValueError, match="local place"):
        parse_local(text)


hosts = st.lists(st.sampled_from(["a", "b", "org"]), min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    HostPattern, host=st.one_of(hosts, hosts.map("*.{}".format), st.just("*")), port=st.sampled_from([None, 81])
)


@given(wide=patterns, narrow=patterns, host=hosts, port=st.sampled_from([80, 81]))
def test_what_is_covered_is_matched(wide: HostPattern, narrow: HostPattern, host: str, port: int) -> None:
    """A pattern that covers another matches everything that the other one does."""
    if wide.covers(narrow) and narrow.matches("http", host, port):
        assert wide.matches("http", host, port)
    assert wide.covers(wide)
