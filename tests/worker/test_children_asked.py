"""What a session asks root about its children: as long as root does not hear it, and not too much at once."""

from __future__ import annotations

import asyncio

import pytest

from ottod.protocol.worker_requests import SpawnChild
from ottod.worker import children
from ottod.worker.link import MAX_REQUESTS
from tests.fakes.nursery import Nursery

DEADLINE_S = 10.0


def test_a_stop_that_root_did_not_hear_in_time_is_heard_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits so long for the answer, but the child does not go on for good."""
    monkeypatch.setattr(children, "STOP_REQUEST_S", 0.01)

    async def main() -> None:
        nursery = Nursery()
        child, _ = await nursery.children.start(SpawnChild(agent="a", task="go", key="x#1"))
        nursery.is_here.clear()
        await asyncio.wait_for(nursery.children.stop(child, "it took too long"), DEADLINE_S)
        assert not nursery.stopped
        nursery.is_here.set()
        ended = await asyncio.wait_for(nursery.children.end_of(child), DEADLINE_S)
        assert ended.cause.kind == "cancelled" and nursery.stopped == [child]
        await nursery.children.aclose()

    asyncio.run(main())


def test_a_child_that_ended_unstopped_is_not_asked_about_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor when the session ends."""
    monkeypatch.setattr(children, "STOP_REQUEST_S", 0.01)

    async def main() -> None:
        nursery = Nursery()
        child, _ = await nursery.children.start(SpawnChild(agent="a", task="go", key="x#1"))
        nursery.is_here.clear()
        await asyncio.wait_for(nursery.children.stop(child, "it took too long"), DEADLINE_S)
        await asyncio.wait_for(nursery.children.aclose(), DEADLINE_S)
        assert not nursery.open_requests

    asyncio.run(main())


def test_any_number_of_children_is_started_and_stopped_at_once() -> None:
    """As a wide block does with its steps: their requests wait for room, and leave some for others."""

    async def main() -> None:
        nursery = Nursery()
        nursery.is_here.clear()
        starts = [
            asyncio.ensure_future(nursery.children.start(SpawnChild(agent="a", task="go", key=f"x{n}#1")))
            for n in range(2 * MAX_REQUESTS)
        ]
        for _ in range(5):
            await asyncio.sleep(0)
        assert nursery.open_requests < MAX_REQUESTS
        nursery.is_here.set()
        await asyncio.wait_for(asyncio.gather(*starts), DEADLINE_S)
        assert nursery.most_requests < MAX_REQUESTS and len(nursery.bodies) == len(starts)
        nursery.is_here.clear()
        stops = [asyncio.ensure_future(nursery.children.stop(f"x{n}#1", "enough")) for n in range(len(starts))]
        for _ in range(5):
            await asyncio.sleep(0)
        assert nursery.open_requests < MAX_REQUESTS
        nursery.is_here.set()
        await asyncio.wait_for(asyncio.gather(*stops), DEADLINE_S)
        assert nursery.most_requests < MAX_REQUESTS and len(nursery.stopped) == len(starts)
        await nursery.children.aclose()

    asyncio.run(main())
