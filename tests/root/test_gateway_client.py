"""Root's side of the gateway: real processes, supervised on a real loop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from ottod.isolation.processes import identify, is_alive
from ottod.protocol.requests import GetMetrics
from ottod.protocol.specs import Backoff
from ottod.root import gateway_client
from ottod.root.gateway_client import GatewayClient
from ottod.root.reaper import Reaper
from ottod.settings.daemon import DaemonSettings
from ottod.settings.paths import Paths
from ottod.settings.sections import GatewaySettings
from tests.fakes.fake_daemon import FakeDaemon
from tests.gateway.reports import full_report
from tests.gateway.rig import status_of

DEADLINE_S = 60.0
QUICK = Backoff(base_s=0.01, max_s=0.02)
ON = GatewaySettings(enabled=True, port=0, socket=True)

Body = Callable[[GatewayClient, list[str]], Coroutine[object, object, None]]


def supervised(runtime_dir: Path, body: Body, settings: GatewaySettings = ON) -> None:
    """Runs `body` with a client, and proves afterwards that its process is gone."""
    base = runtime_dir
    paths = Paths(runtime_dir=base, state_dir=base, config_home=base, config_file=base / "otto.yml", uid=os.getuid())
    log: list[str] = []

    async def main() -> None:
        reaper = Reaper(asyncio.get_running_loop())
        # The test's process may have children of others; only the gateway's end is the reaper's business.
        reaper.expect(1)
        client = GatewayClient(
            asyncio.get_running_loop(),
            reaper,
            settings=DaemonSettings(gateway=settings),
            paths=paths,
            log=log.append,
            backoff=QUICK,
        )
        try:
            client.start()
            await body(client, log)
        finally:
            last = identify(client.pid) if client.pid else None
            client.close()
            await reaper.all_gone(timeout_s=20.0)
        assert client.pid == 0
        assert last is None or not is_alive(last)

    asyncio.run(main())


async def until(what: str, probe: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not probe():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(what) from None


async def until_served(runtime_dir: Path) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await asyncio.to_thread(status_of, runtime_dir / "gateway.sock", "/metrics") != 200:
            await asyncio.sleep(0.01)


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    """The default starts nothing: no process, no socket."""

    async def body(client: GatewayClient, log: list[str]) -> None:
        assert (client.pid, client.deaths, log) == (0, 0, [])

    supervised(tmp_path, body, GatewaySettings())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_gateway_is_replaced(tmp_path: Path) -> None:
    """It serves; killed, it is counted and another serves."""

    async def body(client: GatewayClient, log: list[str]) -> None:
        await until_served(tmp_path)
        first = client.pid
        os.kill(first, signal.SIGKILL)
        await until("its death is noticed", lambda: client.deaths == 1)
        await until("there is another", lambda: client.pid not in (0, first))
        await until_served(tmp_path)
        assert len(log) == 1
        assert "SIGKILL" in log[0]

    with FakeDaemon(tmp_path) as root:
        root.answers[GetMetrics] = lambda _body: full_report()
        supervised(tmp_path, body)
    assert not (tmp_path / "gateway.sock").exists()


def test_one_that_never_lives_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures in a row are bounded; the last line says so, and nothing is started after it."""
    monkeypatch.setattr(gateway_client, "MAX_FAILURES", 3)

    async def body(client: GatewayClient, log: list[str]) -> None:
        await until("root gives up", lambda: client.has_given_up)
        assert client.deaths == 3 == len(log)
        assert "given up" in log[-1]
        client.start()
        assert client.pid == 0

    supervised(tmp_path / "missing", body)


async def until_executed(place: Path) -> bytes:
    """The program's environment and command line, once it has both."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        environ, line = (place / "environ").read_bytes(), (place / "cmdline").read_bytes()
        if environ and line:
            return environ + line
        await asyncio.sleep(0)
    raise AssertionError("it was not executed")


def test_it_gets_little_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group of its own; no key in its environment or on its command line; no file of root's but stderr."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret")
    monkeypatch.setenv("OTTO_ANYTHING", "x")
    opened = os.open(tmp_path / "root.file", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    async def body(client: GatewayClient, _log: list[str]) -> None:
        place = Path(f"/proc/{client.pid}")
        # At once, and stopped where it is: it gives itself a title soon, which takes the place of both.
        os.kill(client.pid, signal.SIGSTOP)
        given = await until_executed(place)
        os.kill(client.pid, signal.SIGCONT)
        assert b"PATH=" in given
        assert b"ottod.gateway" in given
        assert b"secret" not in given
        assert b"OTTO" not in given
        assert os.getpgid(client.pid) == client.pid
        await until_served(tmp_path)
        assert os.readlink(place / "fd" / "0") == os.devnull
        names = [os.readlink(fd) for fd in (place / "fd").iterdir()]
        assert not any(name.endswith("root.file") for name in names)

    try:
        with FakeDaemon(tmp_path) as root:
            root.answers[GetMetrics] = lambda _body: full_report()
            supervised(tmp_path, body)
    finally:
        os.close(opened)
