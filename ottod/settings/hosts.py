"""Patterns for hosts on the web, as agent files and the daemon's file write them.

    example.org          that host, at the usual port of http or https
    *.example.org        every host below it, itself not included
    example.org:8443     that host at that port, and at no other
    *                    every public host

An address is written as it is, an IPv6 address in brackets. Names in other scripts are written in their ASCII form
(`xn--…`). A *local* place is always HOST:PORT, without a wildcard.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PATTERN = re.compile(r"(\*|(?:\*\.)?[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z")
_LABELS = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\Z")
MAX_HOST_CHARS = 253
DEFAULT_PORTS = {"http": 80, "https": 443}


class HostPattern(NamedTuple):
    """`host` is a name, `*.name` or `*`; `port` None is the usual port of the scheme."""

    host: str
    port: int | None

    def matches(self, scheme: str, host: str, port: int) -> bool:
        """Whether a URL with these parts is meant. The host is in lower case, an IPv6 address without brackets."""
        if port != (self.port if self.port is not None else DEFAULT_PORTS[scheme]):
            return False
        return _is_below(host, self.host)

    def covers(self, other: HostPattern) -> bool:
        """Whether everything that the other one means is meant by this one."""
        if self.port != other.port:
            return False
        if other.host.startswith("*."):
            # The hosts below another's, of which its own are some.
            below = other.host[2:]
            return self.host in ("*", other.host) or (self.host.startswith("*.") and _is_below(below, self.host))
        return self.host == other.host or _is_below(other.host, self.host)


def parse_pattern(text: str) -> HostPattern:
    """A pattern. Raises ValueError with what is wrong."""
    found = _PATTERN.match(text.lower())
    if found is None:
        raise ValueError(f"{text[:100]!r} is no host: write example.org, *.example.org or example.org:8443")
    host, port = found[1].strip("[]"), int(found[2]) if found[2] else None
    name = host.removeprefix("*.")
    is_name = host == "*" or ":" in host or (len(name) <= MAX_HOST_CHARS and _LABELS.match(name))
    if not is_name or port == 0 or (port or 0) > 65535:
        raise ValueError(f"{text[:100]!r} is no host: its name or its port is not possible")
    return HostPattern(host, port)


def parse_local(text: str) -> HostPattern:
    """A local place, HOST:PORT. Raises ValueError with what is wrong."""
    pattern = parse_pattern(text)
    if pattern.port is None or "*" in pattern.host:
        raise ValueError(f"{text[:100]!r} is no local place: write the host and the port, such as 127.0.0.1:8080")
    return pattern


def _is_below(host: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern
