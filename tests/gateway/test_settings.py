"""The `gateway` section of the daemon's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ottod.errors import ConfigError
from ottod.settings.daemon import load
from ottod.settings.sections import DaemonSettings


def settings(tmp_path: Path, text: str) -> DaemonSettings:
    file = tmp_path / "otto.yml"
    file.write_text(text)
    return load(file)


def test_it_is_off_and_local_by_default() -> None:
    """Nothing listens that nobody asked for, and what is asked for listens on this machine only."""
    gateway = DaemonSettings().gateway
    assert not gateway.enabled
    assert gateway.host == "127.0.0.1"


@pytest.mark.parametrize(
    "text",
    [
        "gateway: {enabled: true}",
        "gateway: {enabled: true, host: '::1', port: 1}",
        "gateway: {enabled: true, host: 0.0.0.0, allowed_hosts: [box.example]}",
        "gateway: {enabled: true, port: 0, socket: true}",
        "gateway: {port: 0}",
    ],
)
def test_good_ones(tmp_path: Path, text: str) -> None:
    """Addresses of both families, a socket instead of a port; port 0 does no harm while the gateway is off."""
    settings(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message", "mend"),
    [
        ("gateway: {host: localhost}", r"1:17: gateway.host must be an IP address, got 'localhost'", "127.0.0.1"),
        ("gateway: {host: '127.0.0.1:80'}", r"1:17: .* IP address", "127.0.0.1"),
        ("gateway: {host: ''}", r"IP address", "127.0.0.1"),
        ("gateway: {enabled: true, port: 0}", r"1:32: gateway.port 0 leaves .* nothing to listen on", "socket"),
        ("gateway: {port: 65536}", r"1:17: gateway.port must be an integer", "65535"),
        ("gateway: {port: -1}", r"gateway.port", "65535"),
        ("gateway: {allowed_hosts: ['*']}", r"1:26: .*'\*' is no host name", "wildcard"),
        ("gateway: {allowed_hosts: ['box:80']}", r"'box:80' is no host name", "without port"),
        ("gateway: {prot: 80}", r"unknown key 'prot'.*did you mean 'port'", "port"),
    ],
)
def test_bad_ones(tmp_path: Path, text: str, message: str, mend: str) -> None:
    """Each mistake is named with its place, and with what to write instead."""
    with pytest.raises(ConfigError, match=message) as caught:
        settings(tmp_path, text)
    assert mend in caught.value.mend
