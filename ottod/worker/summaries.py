"""What stands for artifacts that are too long to be handed on whole: written once for each, by an agent, and kept.

Several steps may want the same one at the same time. Its session is stopped when none of them wants it any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from ottod.core.step_brief import READ_TOOL, Stand
from ottod.errors import OttoError
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.events import LogWarning
from ottod.protocol.journal import ChildEnded
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker_requests import SpawnChild
from ottod.worker.artifacts import Artifacts
from ottod.worker.children import Children
from ottod.worker.link import Link

KIND = "summary"
MAX_NAME_CHARS = 100
MAX_SUMMARIZED_CHARS = 400_000
"""Of an artifact, in the task of who summarizes it."""


class Summaries:
    """Of one workflow, by `agent`; without one there are none."""

    def __init__(self, agent: AgentSpec | None, *, children: Children, artifacts: Artifacts, link: Link) -> None:
        self._agent = agent
        self._children = children
        self._artifacts = artifacts
        self._link = link
        self._writing: dict[str, asyncio.Task[Stand | None]] = {}
        self._wanted: Counter[str] = Counter()
        """How many wait for each artifact's."""
        self._given_up: Counter[str] = Counter()
        """How often nobody wanted one any more before it was there, in this process."""

    async def of(self, info: ArtifactInfo, text: str) -> Stand | None:
        """What the agent makes of a long artifact; None if there is no agent, or it fails."""
        if self._agent is None:
            return None
        key = info.artifact
        if (task := self._writing.get(key)) is None:
            task = self._writing[key] = asyncio.ensure_future(self._written(self._agent, info, text))
        self._wanted[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._wanted[key] -= 1
            if not self._wanted[key] and not task.done():
                # Whoever wants it later has another session for it.
                self._given_up[key] += 1
                del self._writing[key]
                task.cancel()

    async def _written(self, agent: AgentSpec, info: ArtifactInfo, text: str) -> Stand | None:
        try:
            child, ended = await self._asked(agent, info, text)
        except OttoError as error:
            self._warn(info, error)
            return None
        if ended.cause.kind != "completed" or not ended.result.strip():
            return None
        await self._keep(info, ended.result, child)
        return Stand(text=ended.result, is_partial=len(text) > MAX_SUMMARIZED_CHARS and READ_TOOL not in agent.tools)

    async def _asked(self, agent: AgentSpec, info: ArtifactInfo, text: str) -> tuple[str, ChildEnded]:
        """Who wrote it and how that ended. Raises ToolError."""
        number = self._given_up[info.artifact]
        while True:
            key = f"summary:{info.artifact}" + (f"#{number}" if number else "")
            was_begun = bool(self._children.started_as(key))
            body = SpawnChild(
                agent=agent.name,
                task=_task(agent, info, text),
                title=f"summary of {info.name}@{info.version}",
                key=key,
                step=f"summary:{info.name}",
            )
            child = (await self._children.start(body))[0]
            ended = await self._until_ended(child)
            # What was begun before and stopped was given up, perhaps by an earlier process, and says nothing.
            if not (was_begun and ended.cause.kind == "cancelled"):
                return child, ended
            number += 1

    async def _until_ended(self, child: str) -> ChildEnded:
        try:
            return await self._children.end_of(child)
        except asyncio.CancelledError:
            if not self._children.is_closing:
                self._children.later(self._children.stop(child, "nobody waits for its summary any more"))
            raise

    async def _keep(self, info: ArtifactInfo, text: str, child: str) -> None:
        try:
            await self._artifacts.write(
                text.encode(),
                name=f"summary-{info.name}"[:MAX_NAME_CHARS],
                kind=KIND,
                sources=(info.artifact,),
                key=f"summary:{info.artifact}",
                producer=child,
                step=f"summary:{info.name}",
            )
        except OttoError as error:
            self._warn(info, error)

    def _warn(self, info: ArtifactInfo, error: OttoError) -> None:
        text = f"{info.name} has no summary: {error.message}"
        self._link.emit(LogWarning(message=text, code="no_summary"))


def _task(agent: AgentSpec, info: ArtifactInfo, text: str) -> str:
    parts = [f'Write the hand-off of the artifact "{info.name}" ({info.kind}) for whoever works on.']
    if len(text) > MAX_SUMMARIZED_CHARS:
        rest = f"Below are only the first {MAX_SUMMARIZED_CHARS} of its {len(text)} characters"
        if READ_TOOL in agent.tools:
            rest += f'; {READ_TOOL} with artifact "{info.artifact}" gives you the rest'
        parts.append(f"{rest}. Say of what you have not read that it is missing.")
    parts.append(f'<artifact name="{info.name}">\n{text[:MAX_SUMMARIZED_CHARS]}\n</artifact>')
    return "\n\n".join(parts)
