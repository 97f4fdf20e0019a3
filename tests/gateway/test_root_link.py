"""The gateway's connection to root, against a daemon of the test's own on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ottod.errors import Failure, RefusedError, UnreachableError
from ottod.gateway.root_link import MAX_PENDING, RootLink
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import Welcome
from ottod.protocol.requests import GetMetrics, Ping
from ottod.protocol.results import Done
from tests.fakes.fake_daemon import NO_ANSWER, FakeDaemon
from tests.gateway.reports import full_report

DEADLINE_S = 60.0


async def until(what: str, probe: Callable[[], bool]) -> None:
    """Polls until it is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not probe():
            await asyncio.sleep(0.005)
    assert probe(), what


def linked(
    directory: Path,
    body: Callable[[FakeDaemon, RootLink], Coroutine[object, object, None]],
    *,
    protocol: int = PROTOCOL_VERSION,
    **link_options: Any,
) -> None:
    """Runs `body` with a daemon and a link to it, which is closed afterwards."""

    async def main() -> None:
        with FakeDaemon(directory, protocol=protocol) as fake:
            fake.answers[GetMetrics] = lambda _body: full_report()
            link = RootLink(
                asyncio.get_running_loop(),
                endpoint=fake.endpoint,
                token_file=directory / "control.token",
                **link_options,
            )
            try:
                await body(fake, link)
            finally:
                await link.close()

    (directory / "control.token").write_text("first token\n")
    asyncio.run(main())


def test_questions_get_answers(tmp_path: Path) -> None:
    """After a hello with the token root's metrics come through whole, and pings return."""

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        assert await link.metrics() == full_report()
        await link.ping()
        assert (fake.hellos[0].token, fake.hellos[0].client) == ("first token", "gateway")

    linked(tmp_path, body)


def test_it_asks_for_metrics_and_pings_and_nothing_else(tmp_path: Path) -> None:
    """Whatever goes wrong in the gateway, what it says to root changes nothing there."""

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        await link.metrics()
        await until("a ping of its own", lambda: bool(fake.bodies(Ping)))
        assert {type(body) for body in fake.bodies(object)} == {GetMetrics, Ping}

    linked(tmp_path, body)


def test_a_root_that_is_gone_is_known_at_once_and_found_again(tmp_path: Path) -> None:
    """Questions fail without a wait while root is away; its successor is greeted with its own token."""
    welcomes: list[Welcome] = []

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        fake.vanish()
        await until("root is missed", lambda: not link.is_present)
        with pytest.raises(UnreachableError):
            await link.metrics()
        with pytest.raises(UnreachableError):
            await link.ping()
        (tmp_path / "control.token").write_text("second token")
        fake.restart("i-2")
        await until("welcome again", lambda: link.is_present)
        assert await link.metrics() == full_report()
        assert fake.hellos[-1].token == "second token"
        assert welcomes[-1].instance == "i-2"

    linked(tmp_path, body, on_welcome=welcomes.append)


def test_a_root_that_forgot_the_gateway_is_greeted_again(tmp_path: Path) -> None:
    """`hello_required` is answered by a hello, not by silence."""

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        greeted = len(fake.hellos)
        fake.forget_clients()
        await until("another hello", lambda: len(fake.hellos) > greeted and link.is_present)
        await link.metrics()

    linked(tmp_path, body)


def test_a_root_that_hangs_is_given_up(tmp_path: Path) -> None:
    """A question without an answer fails after the bound, and the next one fails at once."""

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        fake.answers[GetMetrics] = fake.answers[Ping] = lambda _body: NO_ANSWER
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(UnreachableError):
                await link.metrics()
        # The first step of the question already fails: there is nothing to wait for.
        with pytest.raises(UnreachableError):
            link.metrics().send(None)

    linked(tmp_path, body, answer_s=0.2)


def test_roots_refusal_is_told(tmp_path: Path) -> None:
    """A failure and a wrong answer are errors with root's own words, and root counts as present."""

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        fake.answers[GetMetrics] = lambda _body: Failure(code="internal", message="a defect")
        with pytest.raises(RefusedError, match="a defect"):
            await link.metrics()
        fake.answers[GetMetrics] = lambda _body: Done()
        with pytest.raises(RefusedError, match="Done"):
            await link.metrics()
        assert link.is_present

    linked(tmp_path, body)


def test_questions_are_bounded(tmp_path: Path) -> None:
    """More than the bound at once are refused, not queued."""

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        fake.answers[GetMetrics] = lambda _body: NO_ANSWER
        waiting = [asyncio.create_task(link.metrics()) for _ in range(MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match=str(MAX_PENDING)):
            await link.metrics()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    linked(tmp_path, body)


def test_another_protocol_is_reported(tmp_path: Path) -> None:
    """A root of another version is not present, and whoever owns the link hears why."""
    heard: list[str] = []

    async def body(_fake: FakeDaemon, link: RootLink) -> None:
        await until("the mismatch", lambda: bool(heard))
        assert not link.is_present

    linked(tmp_path, body, protocol=999, on_mismatch=heard.append)


def test_noise_is_ignored(tmp_path: Path) -> None:
    """Frames that are no messages, and answers to no question, harm nothing."""

    async def body(fake: FakeDaemon, link: RootLink) -> None:
        await until("welcome", lambda: link.is_present)
        for frames in ([b""], [b"M", b"\xff\xff"], [b"R\0\0\0\1", b"x"], [b"M", b"", b""], [b"?", b"?"]):
            fake.send_frames(frames)
        assert await link.metrics() == full_report()

    linked(tmp_path, body)
