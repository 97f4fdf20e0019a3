"""Delivers what the steps of a workflow have left, to each of its sinks, beside everything else.

What is due follows from the journal: each step that completed is an entry, each artifact that arrived is another one,
and so is each attempt that failed. So an incarnation that is given the same journal goes on with what is missing, and
a parcel that was on its way when its process died is sent again with the same key.

A sink takes its parcels one after the other, in the order in which steps ended; sinks do not wait for each other, nor
steps for them. Only the workflow's end waits, as long as the sink's `patience_s`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from ottod.core.backoff import delay_s
from ottod.errors import Failure, OttoError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.artifacts import ArtifactInfo, SinkDelivery
from ottod.protocol.events import ArtifactDelivered, ArtifactUndelivered, LogWarning
from ottod.protocol.sinks import Sink
from ottod.sinks.base import Destination, Parcel, Receipt, Undelivered
from ottod.worker.artifacts import Artifacts
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.text import cut

MAX_FAILURE_BYTES = 2000
GIVEN_UP = Failure(code="gave_up", message="the workflow's end waited for it long enough")
STOPPED = Failure(code="cancelled", message="the workflow was stopped before it was delivered")
LATE = Failure(code="budget", message="the workflow's seconds were used up before it was delivered")


class Due:
    """A parcel that a sink has not got yet. `at_ns` is later than of any step that ended before; `attempts` is how
    often it was tried."""

    def __init__(
        self, name: str, ended: j.StepEnded, sources: tuple[str, ...], *, at_ns: int, attempts: int = 0
    ) -> None:
        self.name = name
        self.ended = ended
        self.at_ns = at_ns
        self.sources = sources
        self.attempts = attempts
        self.infos: tuple[ArtifactInfo, ...] = ()
        self.has_arrived = False


class Line:
    """What one sink is to have, in order. `failed` are names of what it will never have."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.due: deque[Due] = deque()
        self.failed: list[str] = []
        self.newest: dict[str, int] = {}
        """Of each artifact, the newest version that has arrived."""
        self.wake = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def takes_steps(self) -> bool:
        return self.sink.to == "git_branch"

    def wants(self, source: str, kinds: Mapping[str, str]) -> bool:
        """Whether an artifact, by `NAME@VERSION`, is for this sink. `kinds` by name."""
        name, sink = source.rpartition("@")[0], self.sink
        if sink.artifacts and name not in sink.artifacts:
            return False
        if sink.kinds and kinds.get(name, "") not in sink.kinds:
            return False
        return sink.to != "filesystem" or bool(sink.path) or name in sink.files

    def has(self, source: str) -> None:
        """An artifact, by `NAME@VERSION`, has arrived."""
        name, _, version = source.rpartition("@")
        if version.isdecimal():
            self.newest[name] = max(self.newest.get(name, 0), int(version))

    def is_outdated(self, due: Due) -> bool:
        """Whether it would take the place of a newer version."""
        name, _, version = due.name.rpartition("@")
        return self.sink.to == "filesystem" and self.newest.get(name, 0) > int(version)

    def add(self, due: Due) -> None:
        self.due.append(due)
        self.idle.clear()
        self.wake.set()

    def done(self) -> None:
        """The first one is no longer due."""
        self.due.popleft()
        if not self.due:
            self.idle.set()


class Deliveries:
    """Of one incarnation. `destinations` are by the sinks' names, `kinds` those of artifacts, by name."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        workflow: str,
        session: str,
        kinds: Mapping[str, str],
        destinations: Mapping[str, Destination],
        artifacts: Artifacts,
        link: Link,
        journal: JournalWriter,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._workflow = workflow
        self._session = session
        self._kinds = kinds
        self._destinations = destinations
        self._artifacts = artifacts
        self._link = link
        self._journal = journal
        self._on_broken = on_broken
        self._lines = [Line(sink) for sink in sinks]
        self._before = ""
        """git's name for the working directory as it was when the workflow began."""
        self._origins: tuple[str, ...] = ()
        self._newest_ns = 0
        """When the newest step ended, by a clock that nobody sets back."""
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ what is due

    def restore(self, past: Iterable[j.WorkflowEntry], deliveries: Iterable[j.DeliveryEntry]) -> None:
        """Takes up what earlier incarnations have not delivered, and begins with it."""
        settled: set[tuple[str, str]] = set()
        lost: set[tuple[str, str]] = set()
        attempts: dict[tuple[str, str], int] = {}
        for entry in deliveries:
            key = entry.sink, entry.parcel
            if isinstance(entry, j.Delivered) or entry.is_final:
                settled.add(key)
            if isinstance(entry, j.DeliveryFailed):
                attempts[key] = entry.attempt
                lost |= {key} if entry.is_final else set()
        for line in self._lines:
            line.failed = [name for sink, name in sorted(lost) if sink == line.sink.label]
            for sink, name in settled - lost:
                if sink == line.sink.label:
                    line.has(name)
        for step in past:
            self._hear(step, settled, attempts)
        self._tasks = [asyncio.ensure_future(self._watched(line)) for line in self._lines]

    def heard(self, entry: j.WorkflowEntry) -> None:
        """Something has happened to the workflow."""
        self._hear(entry, set(), {})

    def _hear(
        self, entry: j.WorkflowEntry, settled: set[tuple[str, str]], attempts: Mapping[tuple[str, str], int]
    ) -> None:
        match entry:
            case j.WorkflowBegun():
                self._before = entry.tree
            case j.WorkflowResumed():
                self._origins = (entry.origin, *self._origins)
            case j.StepEnded():
                self._ended(entry, settled, attempts)
            case _:
                pass

    def _ended(
        self, ended: j.StepEnded, settled: set[tuple[str, str]], attempts: Mapping[tuple[str, str], int]
    ) -> None:
        if ended.outcome != "completed":
            return
        self._newest_ns = max(self._newest_ns + 1, ended.at_ns)
        for line in self._lines:
            wanted = [source for source in ended.artifacts if line.wants(source, self._kinds)]
            names: dict[str, tuple[str, ...]] = {source: (source,) for source in wanted}
            if line.takes_steps:
                names = {f"{ended.path}#{ended.attempt}": ended.artifacts}
            for name, sources in names.items():
                key = line.sink.label, name
                if key not in settled:
                    line.add(Due(name, ended, sources, at_ns=self._newest_ns, attempts=attempts.get(key, 0)))

    # ------------------------------------------------------------ one sink

    async def _watched(self, line: Line) -> None:
        try:
            while True:
                line.wake.clear()
                while line.due:
                    if not line.is_outdated(line.due[0]):
                        await self._deliver(line, line.due[0])
                    line.done()
                await line.wake.wait()
        except Exception as error:  # noqa: BLE001 - whoever serves the workflow raises it
            line.idle.set()
            self._on_broken(error)

    async def _deliver(self, line: Line, due: Due) -> None:
        """Tries until it has arrived or is not worth trying again. Raises StorageError if the journal fails."""
        # A step is over once its end is durable: until then it may yet be found to have ended in another way.
        await self._journal.put(())
        while True:
            due.attempts += 1
            try:
                receipt = await self._attempt(line.sink, due)
            except StorageError:
                raise
            except OttoError as error:
                if await self._failed(line, due, error):
                    return
            else:
                await self._arrived(line, due, receipt)
                return

    async def _attempt(self, sink: Sink, due: Due) -> Receipt:
        """Raises OttoError."""
        if not due.infos:
            due.infos = tuple([await self._info(source) for source in due.sources])
        data = b""
        if sink.to != "git_branch":
            _, data = await self._artifacts.read(due.infos[0].artifact)
        key = due.name if sink.to == "git_branch" else f"{due.infos[0].artifact}@{due.infos[0].version}"
        parcel = Parcel(
            key=f"{sink.label}/{key}",
            workflow=self._workflow,
            session=self._session,
            path=due.ended.path,
            attempt=due.ended.attempt,
            at_ns=due.at_ns,
            artifacts=due.infos,
            data=data,
            tree=due.ended.tree,
            before=self._before,
            origins=self._origins,
        )
        return await self._destinations[sink.label].deliver(parcel)

    async def _info(self, source: str) -> ArtifactInfo:
        name, _, version = source.rpartition("@")
        for info in await self._artifacts.list(name=name):
            if info.version == int(version):
                return info
        return (await self._artifacts.read(name, version=int(version)))[0]

    async def _arrived(self, line: Line, due: Due, receipt: Receipt) -> None:
        sink, place = line.sink, receipt.place
        await self._note(due, SinkDelivery(sink=sink.label, place=place, reason=receipt.note, attempts=due.attempts))
        entry = j.Delivered(
            sink=sink.label, parcel=due.name, at_ns=time.time_ns(), place=place, attempts=due.attempts
        )
        due.has_arrived = True
        line.has(due.name)
        await self._journal.put([entry])
        for info in due.infos:
            told = ArtifactDelivered(
                artifact=info.artifact,
                name=info.name,
                version=info.version,
                sink=sink.label,
                place=place,
                note=receipt.note,
            )
            self._link.emit(told)
        if receipt.note and not due.infos:
            self._link.emit(LogWarning(message=f"{due.name} at {place}: {receipt.note}", code="incomplete"))

    async def _failed(self, line: Line, due: Due, error: OttoError) -> bool:
        """Notes and tells it; True if that was the last attempt, else after the delay before the next."""
        sink = line.sink
        is_final = (isinstance(error, Undelivered) and error.is_final) or due.attempts >= sink.attempts
        wait_s = 0.0
        if not is_final:
            asked_s = error.retry_after_s if isinstance(error, Undelivered) else None
            # Whoever asks for longer than any delay of the sink's gets the longest of them.
            at_least_s = min(asked_s or 0.0, sink.backoff.max_s)
            wait_s = delay_s(sink.backoff, due.attempts, random=random.random(), at_least_s=at_least_s)
        await self._note_failure(line, due, _failure(error), is_final=is_final, wait_s=wait_s)
        if not is_final:
            await asyncio.sleep(wait_s)
        return is_final

    async def _note_failure(self, line: Line, due: Due, failure: Failure, *, is_final: bool, wait_s: float) -> None:
        sink = line.sink
        if is_final:
            line.failed.append(due.name)
            said = SinkDelivery(sink=sink.label, state="failed", reason=failure.message, attempts=due.attempts)
            await self._note(due, said)
        entry = j.DeliveryFailed(
            sink=sink.label,
            parcel=due.name,
            attempt=due.attempts,
            at_ns=time.time_ns(),
            failure=failure,
            is_final=is_final,
        )
        await self._journal.put([entry])
        for info in due.infos:
            self._link.emit(
                ArtifactUndelivered(
                    artifact=info.artifact,
                    name=info.name,
                    version=info.version,
                    sink=sink.label,
                    attempt=due.attempts,
                    failure=failure,
                    retry_ms=0 if is_final else max(1, round(wait_s * 1000)),
                )
            )
        if not due.infos:
            text = f"{due.name} was not delivered to {sink.label}: {failure.message}"
            self._link.emit(LogWarning(message=text, code=failure.code))

    async def _note(self, due: Due, delivery: SinkDelivery) -> None:
        """For whoever lists artifacts. The journal is what counts: if root does not take it, nothing is hindered."""
        if not due.infos:
            return
        try:
            await self._artifacts.note_delivery([info.artifact for info in due.infos], delivery)
        except OttoError as error:
            self._link.emit(LogWarning(message=f"a delivery cannot be listed: {error.message}", code=error.code))

    # ------------------------------------------------------------ the end

    async def settle(self) -> None:
        """Returns when nothing is due any more, each sink's patience at the latest. Raises StorageError."""
        await asyncio.gather(*(self._settle_line(line) for line in self._lines))

    async def _settle_line(self, line: Line) -> None:
        try:
            async with asyncio.timeout(line.sink.patience_s):
                await line.idle.wait()
        except TimeoutError:
            await self._give_up(line, GIVEN_UP)

    async def abandon(self, why: Failure) -> None:
        """The workflow is stopped, or has no time left: what is due will not be delivered. Raises StorageError."""
        for line in self._lines:
            await self._give_up(line, why)

    async def _give_up(self, line: Line, failure: Failure) -> None:
        task = self._tasks[self._lines.index(line)]
        task.cancel()
        await asyncio.wait([task])
        while line.due:
            if not line.due[0].has_arrived and not line.is_outdated(line.due[0]):
                await self._note_failure(line, line.due[0], failure, is_final=True, wait_s=0)
            line.done()

    def shortfall(self) -> Failure | None:
        """What a sink that is required will never have."""
        for line in self._lines:
            if line.sink.required and line.failed:
                some = ", ".join(line.failed[:5]) + ("…" if len(line.failed) > 5 else "")
                return Failure(code="undelivered", message=f"{line.sink.label} is required, and has not got {some}")
        return None

    async def aclose(self) -> None:
        """Ends what is under way; another incarnation, if there is one, goes on with it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _failure(error: OttoError) -> Failure:
    return Failure(code=error.code, message=cut(error.message, MAX_FAILURE_BYTES)[0], mend=error.mend)
