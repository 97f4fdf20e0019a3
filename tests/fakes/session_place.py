"""A session's working directory with real files and real confined programs, for tests of tools and isolation."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from ottod.errors import ToolError
from ottod.isolation import bubblewrap, processes
from ottod.isolation.beneath import BeneathFiles
from ottod.isolation.programs import ConfinedPrograms, Confinement
from ottod.protocol.artifacts import ArtifactInfo, name_problem
from ottod.protocol.decisions import DecisionFilter, DecisionNode, NewEdge, NewNode, NodeChange
from ottod.protocol.toolio import Web
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import FoundDecisions, Tool, ToolContext, ToolOutput

T = TypeVar("T")
DEADLINE_S = 60.0


def run(work: Coroutine[Any, Any, T], *, loop: str = "uvloop") -> T:
    """Runs a coroutine to its end, on uvloop as a worker does, or on asyncio's own loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        return runner.run(work)


class FakeArtifacts:
    """A tree's artifacts in memory; they keep what the real ones keep."""

    def __init__(self) -> None:
        self.kept: list[tuple[ArtifactInfo, bytes]] = []
        self._by_key: dict[str, ArtifactInfo] = {}

    async def write(
        self,
        data: bytes,
        *,
        name: str,
        kind: str = "file",
        sources: Sequence[str] = (),
        key: str = "",
        is_output: bool = False,
        producer: str = "",
        step: str = "",
    ) -> ArtifactInfo:
        if problem := name_problem(name, kind):
            raise ToolError(problem, code="bad_arguments")
        if key and key in self._by_key:
            return self._by_key[key]
        info = ArtifactInfo(
            artifact=f"art-{len(self.kept):010}",
            name=name,
            version=1 + sum(known.name == name for known, _ in self.kept),
            kind=kind,
            session=producer,
            agent="tester",
            digest=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            sources=tuple(sources),
        )
        self.kept.append((info, data))
        self._by_key[key or info.artifact] = info
        return info

    async def read(self, artifact: str, *, version: int = 0) -> tuple[ArtifactInfo, bytes]:
        for info, data in reversed(self.kept):
            if artifact in (info.artifact, info.name) and version in (0, info.version):
                return info, data
        raise ToolError(f"there is no artifact {artifact}", code="no_such_artifact")

    async def list(self, *, name: str = "", kind: str = "") -> tuple[ArtifactInfo, ...]:
        known = [i for i, _ in reversed(self.kept) if name in ("", i.name) and kind in ("", i.kind)]
        newest = {i.name: i for i in reversed(known)}
        return tuple(i for i in known if name or newest[i.name] is i)


class FakeDecisions:
    """A project's decision graph that takes every call as it comes, and answers with what `found` says."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[NewNode, ...], tuple[NewEdge, ...], tuple[NodeChange, ...]]] = []
        self.asked: list[DecisionFilter] = []
        self.found = FoundDecisions()
        self._by_key: dict[str, FoundDecisions] = {}

    async def log(
        self, nodes: Sequence[NewNode], edges: Sequence[NewEdge], changes: Sequence[NodeChange], *, key: str
    ) -> FoundDecisions:
        if key not in self._by_key:
            self.calls.append((tuple(nodes), tuple(edges), tuple(changes)))
            new = [DecisionNode(node=f"d-{n:010}", kind=node.kind, title=node.title) for n, node in enumerate(nodes)]
            self._by_key[key] = FoundDecisions(nodes=tuple(new))
        return self._by_key[key]

    async def find(self, wanted: DecisionFilter) -> FoundDecisions:
        self.asked.append(wanted)
        return self.found


class SessionPlace:
    """`project` is the working directory, `outside` a directory beside it that no tool may touch."""

    def __init__(
        self, base: Path, *, env: Mapping[str, str] | None = None, session: str = "", **confinement: Any
    ) -> None:
        self.project = base / "project"
        self.outside = base / "outside"
        self.project.mkdir(exist_ok=True)
        self.outside.mkdir(exist_ok=True)
        (self.outside / "secret.txt").write_text("the secret\n")
        self.session = session or f"s-{os.urandom(5).hex()}"
        self.files = BeneathFiles(str(self.project))
        self.env = {"PATH": os.environ["PATH"], "HOME": str(base / "home")} if env is None else env
        self.programs = ConfinedPrograms(
            session=self.session,
            env=self.env,
            confinement=Confinement(
                root=str(self.project), tmp_dir=str(base / "tmp"), **{"bwrap": bubblewrap.find(), **confinement}
            ),
        )
        self.streamed: list[str] = []
        self.progress: list[str] = []
        self.artifacts = FakeArtifacts()
        self.decisions = FakeDecisions()
        self.web: Web | None = None

    def close(self) -> None:
        """Closes what was opened."""
        self.files.close()
        self.programs.close()

    def leftovers(self) -> list[processes.ProcessId]:
        """What is alive of the session but for its launcher; a keeper on its way out is waited for."""
        give_up_at = time.monotonic() + DEADLINE_S
        while True:
            found = [each for each in processes.survivors(self.session) if each.pid != self.programs.launcher_pid]
            if not found or time.monotonic() > give_up_at:
                return found
            time.sleep(0.01)

    def context(self, *, timeout_s: float = 30.0, max_output_bytes: int = 32 * 1024) -> ToolContext:
        """What a tool gets."""
        return ToolContext(
            files=self.files,
            programs=self.programs,
            call="c-1",
            idempotency_key="k-1",
            timeout_s=timeout_s,
            max_output_bytes=max_output_bytes,
            progress=self.progress.append,
            stream=self.streamed.append,
            artifacts=self.artifacts,
            decisions=self.decisions,
            web=self.web,
            session=self.session,
            agent="tester",
        )

    def call(self, tool: Tool[Any], arguments: str, **limits: Any) -> ToolOutput:
        """One call with arguments as a model writes them."""

        async def work() -> ToolOutput:
            return await tool.run(decode_arguments(tool, arguments), self.context(**limits))

        return run(work())
