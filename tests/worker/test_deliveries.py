"""What a sink is given, and what it is spared, when a workflow goes on: a past, and a destination that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.sinks import Sink
from ottod.sinks.base import Parcel, Receipt
from ottod.worker.deliveries import Deliveries
from tests.sinks.parcels import parcel

DEADLINE_S = 10.0
FILES = Sink(to="filesystem", path="docs", required=True)
HOOK = Sink(to="webhook", url="https://tracker.example.org/hook")
BRANCH = Sink(to="git_branch")
STALE = Failure(code="conflict", message="it holds what Otto did not write there")


class Shelf:
    """`Artifacts` that has every version of every name."""

    async def list(self, *, name: str) -> list[ArtifactInfo]:
        return [parcel(name=name, version=version).artifact for version in range(1, 11)]

    async def read(self, artifact: str) -> tuple[None, bytes]:
        return None, artifact.encode()

    async def note_delivery(self, artifacts: object, delivery: object) -> None:
        pass


class Ears:
    """`Link` and `JournalWriter`."""

    def emit(self, event: object) -> None:
        pass

    async def put(self, entries: Iterable[object]) -> None:
        pass


class Taker:
    """`Destination` that remembers."""

    def __init__(self) -> None:
        self.got: list[Parcel] = []

    async def deliver(self, parcel: Parcel) -> Receipt:
        self.got.append(parcel)
        return Receipt(place="there")

    @property
    def sources(self) -> list[str]:
        return [f"{info.name}@{info.version}" for each in self.got for info in each.artifacts]


def ended(path: str, *artifacts: str, at_ns: int = 1) -> j.StepEnded:
    return j.StepEnded(
        path=path, attempt=1, outcome="completed", at_ns=at_ns, artifacts=artifacts, tree=f"tree-{path}"
    )


def lines(sink: Sink, taker: Taker) -> Deliveries:
    def broken(error: BaseException) -> None:
        raise error

    ears: Any = Ears()
    shelf: Any = Shelf()
    return Deliveries(
        [sink],
        workflow="fix",
        session="s-7777777777",
        kinds={},
        destinations={sink.label: taker},
        artifacts=shelf,
        link=ears,
        journal=ears,
        on_broken=broken,
    )


def given(sink: Sink, past: list[j.WorkflowEntry], deliveries: list[j.DeliveryEntry]) -> tuple[list[str], bool]:
    """What the sink is given of a past, and whether it has all that it must have."""

    async def main() -> tuple[list[str], bool]:
        taker = Taker()
        made = lines(sink, taker)
        made.restore(past, deliveries)
        await made.settle()
        await made.aclose()
        return taker.sources, made.shortfall() is None

    return asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def delivered(sink: Sink, name: str) -> j.Delivered:
    return j.Delivered(sink=sink.label, parcel=name, at_ns=1)


PAST: list[j.WorkflowEntry] = [
    ended("draw[1]", "design@1", "ticket@1"),
    ended("draw[2]", "design@2"),
    ended("draw[3]", "design@10"),
]


def test_a_file_gets_no_older_version_than_it_has() -> None:
    """What was given up on when a newer one arrived is not made up for; of what has no newer one, it is."""
    assert given(FILES, PAST, []) == (["design@1", "ticket@1", "design@2", "design@10"], True)
    assert given(FILES, PAST, [delivered(FILES, "design@2")]) == (["ticket@1", "design@10"], True)
    assert given(FILES, PAST, [delivered(FILES, "design@10")]) == (["ticket@1"], True)
    assert given(FILES, PAST, [delivered(HOOK, "design@2")])[0][0] == "design@1", "another sink has it"


def test_who_keeps_each_version_is_sent_each() -> None:
    assert given(HOOK, PAST, [delivered(HOOK, "design@10")]) == (["design@1", "ticket@1", "design@2"], True)


def test_steps_side_by_side_that_end_in_another_order() -> None:
    """The older version is spared as well, and is not missing when the end comes."""
    past: list[j.WorkflowEntry] = [ended("a", "design@2"), ended("b", "design@1")]
    assert given(FILES, past, []) == (["design@2"], True)
    failed = j.DeliveryFailed(sink=FILES.label, parcel="design@1", attempt=1, at_ns=1, failure=STALE, is_final=True)
    assert given(FILES, past, [failed]) == (["design@2"], False), "what failed in this session is said"


def test_a_clock_that_is_set_back_makes_no_step_late() -> None:
    """The moments that a branch is told of go up with the order in which steps ended, in every incarnation."""

    async def main() -> None:
        past: list[j.WorkflowEntry] = [ended(path, at_ns=at_ns) for path, at_ns in (("a", 50), ("b", 10), ("c", 20))]
        for known in ([], [delivered(BRANCH, "a#1")]):
            taker = Taker()
            made = lines(BRANCH, taker)
            made.restore(past, known)
            made.heard(ended("d", at_ns=70))
            await made.settle()
            await made.aclose()
            assert [(each.path, each.at_ns) for each in taker.got][-3:] == [("b", 51), ("c", 52), ("d", 70)]

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))
