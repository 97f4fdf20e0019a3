"""Where on the web a session may go: URLs, hosts and addresses, judged without looking at the world.

A URL is taken apart by one strict grammar, and whatever could be read in two ways is refused: user names,
backslashes, control characters, hosts in percent signs, numbers that some systems take for addresses. What passed is
put together anew, so that nobody behind reads it differently.

A host is judged by name (the agent must have named it) and, after it was resolved, by every address that it has: only
addresses that the whole Internet may reach pass. An agent's `local` places are the exception, for their very host and
port, and even there nothing that is link-local: that is where clouds keep their credentials.

Source: RFC 3986, RFC 6890 and the IANA registries of special-purpose addresses; ADR 0017.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urljoin

import msgspec

from ottod.protocol.specs import HttpAccess
from ottod.settings.hosts import DEFAULT_PORTS, MAX_HOST_CHARS, parse_local, parse_pattern

MAX_URL_CHARS = 8192
MAX_REDIRECTS = 5

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?\Z", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?\Z")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
            *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # A cloud's own services, under an address that looks public.
        ),
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    map(
        IPv6Network,
        (
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
            "2620:4f:8000::/48",
        ),
    )
)
_TRANSLATED = IPv6Network("64:ff9b::/96")
"""IPv4 addresses behind a translator: judged as what they stand for."""
_LOCAL = tuple(
    map(
        IPv4Network,
        ("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    )
)
_LOCAL_6 = (IPv6Network("::1/128"), IPv6Network("fc00::/7"))
_METADATA = frozenset({ip_address("fd00:ec2::254"), ip_address("fd20:ce::254")})
"""Clouds' credentials under addresses that are otherwise private."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A URL in parts. `host` is in lower case, an IPv6 address without brackets; `path` holds the query as well."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The host, with the port if it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    def has_origin_of(self, other: Target) -> bool:
        """Whether scheme, host and port are the same."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why somebody may not go there. Codes: `bad_url`, `host_denied`, `address_denied`."""

    code: str
    message: str


def parse_url(text: str) -> Target | Refusal:
    """The parts of a URL, or what is wrong with it."""
    if len(text) > MAX_URL_CHARS:
        return _bad(f"the URL has more than {MAX_URL_CHARS} characters")
    if any(not "!" <= c <= "~" for c in text):
        return _bad("the URL has characters that a URL cannot have: percent-encode them, and write hosts in ASCII")
    if "\\" in text:
        return _bad("the URL has a backslash")
    found = _URL.match(text)
    if found is None:
        return _bad("the URL must begin with http:// or https://")
    scheme, authority, path = found[1].lower(), found[2], found[3]
    if "@" in authority:
        return _bad("the URL names a user; there are no credentials here")
    parts = _AUTHORITY.match(authority)
    if parts is None:
        return _bad(f"{authority[:100]!r} is no host")
    port = int(parts[2]) if parts[2] else DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        return _bad(f"{port} is no port")
    host = _host(parts[1].lower())
    if isinstance(host, Refusal):
        return host
    return Target(scheme=scheme, host=host, port=port, path=path if path.startswith("/") else f"/{path}")


def _host(text: str) -> str | Refusal:
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except ValueError:
            return _bad(f"{text[:100]!r} is no IPv6 address")
    host = text.removesuffix(".")
    labels = host.split(".")
    if len(host) > MAX_HOST_CHARS or not all(_LABEL.match(label) for label in labels):
        return _bad(f"{text[:100]!r} is no host")
    if _NUMBER.match(labels[-1]):
        # Systems read `127.1`, `0177.0.0.1` and `2130706433` as addresses, and not all as the same.
        try:
            return str(IPv4Address(host))
        except ValueError:
            return _bad(f"{text[:100]!r} is a number, and no address in the usual form")
    return host


def redirected(target: Target, location: str) -> Target | Refusal:
    """Where a redirect leads. Never from https to http."""
    if any(not "!" <= c <= "~" for c in location) or len(location) > MAX_URL_CHARS:
        return _bad("the server redirects to what is no URL")
    try:
        joined = urljoin(target.url, location)
    except ValueError:
        return _bad("the server redirects to what is no URL")
    next_target = parse_url(joined)
    if isinstance(next_target, Target) and target.scheme == "https" and next_target.scheme == "http":
        return Refusal(code="host_denied", message="the server redirects from https to http")
    return next_target


def refused_host(target: Target, http: HttpAccess) -> Refusal | None:
    """Why a session with this access may not go to that host and port; None if it may."""
    if is_local(target, http):
        return None
    if any(parse_pattern(text).matches(target.scheme, target.host, target.port) for text in http.hosts):
        return None
    if not http.hosts:
        return Refusal(code="host_denied", message="this agent may reach no host: its `http.hosts` names none")
    return Refusal(
        code="host_denied",
        message=f"{target.authority} is not among the hosts of this agent: {', '.join(http.hosts)[:500]}",
    )


def is_local(target: Target, http: HttpAccess) -> bool:
    """Whether the agent was granted this very host and port, although it may not be public."""
    places = map(parse_local, http.local)
    return any((target.host, target.port) == (place.host, place.port) for place in places)


def refused_addresses(target: Target, addresses: Sequence[str], http: HttpAccess) -> Refusal | None:
    """Why none of a host's addresses may be connected to; None if all may.

    One address that may not be is enough: a name that means both is a trick, or a mistake that is not ours to mend.
    """
    for text in addresses:
        try:
            address = ip_address(text)
        except ValueError:
            return Refusal(code="address_denied", message=f"{target.host} resolves to {text[:100]!r}, no address")
        if not (is_public(address) or (is_local(target, http) and is_local_address(address))):
            return Refusal(
                code="address_denied",
                message=f"{target.host} has the address {address}, which is not public",
            )
    if not addresses:
        return Refusal(code="address_denied", message=f"{target.host} has no address")
    return None


def is_public(address: Address) -> bool:
    """Whether the whole Internet may reach an address. What wraps another address is judged as that."""
    plain = unwrapped(address)
    if isinstance(plain, IPv4Address):
        return not any(plain in network for network in _NOT_PUBLIC_4)
    return plain in _PUBLIC_6 and not any(plain in network for network in _NOT_PUBLIC_6)


def is_local_address(address: Address) -> bool:
    """This machine, or a private network; nothing link-local, and no cloud's metadata."""
    plain = unwrapped(address)
    if isinstance(plain, IPv4Address):
        return any(plain in network for network in _LOCAL)
    return plain not in _METADATA and any(plain in network for network in _LOCAL_6)


def unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _TRANSLATED:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _bad(message: str) -> Refusal:
    return Refusal(code="bad_url", message=message)
