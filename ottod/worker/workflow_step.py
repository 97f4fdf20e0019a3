"""One attempt of a step, or of a compensation: a child session from its brief to what it left."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal, Protocol, TypeVar

from ottod.core.step_brief import answer_schema, brief, undo_brief
from ottod.core.workflow_orders import Compensate, StartStep
from ottod.errors import Failure, OttoError, ToolError
from ottod.protocol import journal as j
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.cause import Cause
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker_requests import SpawnChild
from ottod.protocol.workflows import Output, Step
from ottod.worker.children import Children
from ottod.worker.text import cut
from ottod.worker.workflow_artifacts import StepArtifacts

FINAL = frozenset({"auth", "bad_spec", "workdir_gone", "cancelled", "budget"})
"""Causes that another attempt of the same agent does not change."""
FINAL_CODES = frozenset({"refused", "too_deep", "bad_config", "isolation_unavailable"})
MAX_FAILURE_BYTES = 2000
SUMMARY_BYTES = 300
"""Of an agent's answer, in the journal's line about its step."""
HANDED_BACK_BYTES = 4000
"""Of what one handed back whose budget was used up, for whoever tries next."""

T = TypeVar("T")
Outcome = Literal["completed", "failed", "cancelled"]


class Tree(Protocol):
    """The state of the working directory, for what a step changes in it."""

    async def state(self) -> str: ...

    async def has(self, state: str) -> bool: ...

    async def diff(self, before: str, after: str) -> str: ...


class Workshop:
    """What all attempts of one workflow share."""

    def __init__(
        self,
        *,
        task: str,
        session: str,
        agents: Mapping[str, AgentSpec],
        children: Children,
        artifacts: StepArtifacts,
        tree: Tree | None,
        has_branch: bool = False,
    ) -> None:
        self.task = task
        self.session = session
        self.agents = agents
        self.children = children
        self.artifacts = artifacts
        self.tree = tree
        self.has_branch = has_branch
        """Whether what each step changes is to be committed."""
        self.looking = asyncio.Lock()
        """Held by who takes the state of the working directory for a commit."""
        self.sessions: set[str] = set()
        """Of all steps so far."""


class Attempt:
    """One. `run` gives how it ended; it raises nothing but StorageError, cancellation and defects."""

    def __init__(self, shop: Workshop, order: StartStep | Compensate) -> None:
        self._shop = shop
        self._order = order
        self.begun: j.StepBegun | None = None
        """The journal's word that it has begun, once there is one."""
        self.was_begun = False
        """An earlier process has noted so: it may have asked for the session."""
        self.tree_before = ""
        """The working directory as the first attempt found it, if there was one before."""
        self.tree_of_loop = ""
        """As the step found it in its first round of the loop around it, if there was one before."""
        self.last_failure = ""
        """Of the attempt before, for this one to know."""
        self.undoing: j.CompensationEnded | None = None
        """Of a compensation, the attempt before."""
        self.child = ""
        self._stop_reason: str | None = None
        self._is_stopped = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        """The child's, and through it this attempt's, whoever makes it."""
        kind = "undo:" if isinstance(self._order, Compensate) else ""
        return f"{kind}{self._order.path}#{self._order.attempt}"

    def stop(self, reason: str) -> None:
        """The session is to be stopped. If it has not started yet it never does, and nothing is prepared for it."""
        self._stop_reason = reason
        self._is_stopped.set()
        if self.child and self._stopping is None:
            self._stopping = asyncio.ensure_future(self._shop.children.stop(self.child, reason))

    # ------------------------------------------------------------ a step

    async def prepare(self, order: StartStep) -> j.StepBegun:
        """What is to be noted before anything of it happens. Raises ToolError."""
        return j.StepBegun(
            path=order.path,
            attempt=order.attempt,
            agent=order.agent,
            at_ns=time.time_ns(),
            sources=await self._shop.artifacts.sources(order.step),
            tree=await self._tree_before(order.step),
        )

    async def _tree_before(self, step: Step) -> str:
        """What a diff begins from, if the step is to leave one: what attempts before have changed is a part of it."""
        tree = self._shop.tree
        if tree is None or not any(output.capture == "diff" for output in step.outputs):
            return ""
        if self.tree_before and await tree.has(self.tree_before):
            return self.tree_before
        return await tree.state()

    async def make(self, order: StartStep, begin: Callable[[j.StepBegun], Awaitable[None]]) -> j.StepEnded:
        """The attempt of a step, from its brief to its outputs. `begin` notes that it begins, unless it has begun."""
        outcome: Outcome = "failed"
        failure: Failure | None = None
        summary, is_final, is_stopped = "", False, False
        artifacts: list[str] = []
        facts: tuple[j.ArtifactFacts, ...] = ()
        try:
            if self.begun is None:
                self.begun = await self._unless_stopped(self.prepare(order))
                await begin(self.begun)
            ended = await self._step_session(order)
            outcome, failure = _outcome(order.path, ended.cause)
            is_final = ended.cause.kind in FINAL
            is_stopped = ended.cause.kind == "cancelled" and self._stop_reason is None
            if outcome == "completed":
                summary = cut(" ".join(ended.result.split()), SUMMARY_BYTES)[0]
                answer = await self._shop.artifacts.whole(ended.whole) if ended.whole else ended.result
                left = await self._left(order, answer)
                # What cannot be looked at must not pass for something that a condition does not hold of.
                facts = await self._shop.artifacts.facts(left)
                artifacts = left
            elif ended.cause.kind == "budget":
                summary = cut(ended.result, HANDED_BACK_BYTES)[0]
        except OttoError as error:
            # Only what this attempt needs went wrong: what it is worth is for the machine to say.
            outcome, failure = "failed", _failure(order.path, error)
            is_final = error.code in FINAL_CODES
        tree, at_ns = await self._tree_after(outcome)
        return j.StepEnded(
            path=order.path,
            attempt=order.attempt,
            outcome=outcome,
            at_ns=at_ns,
            session=self.child,
            failure=failure,
            is_final=is_final,
            summary=summary,
            artifacts=tuple(artifacts),
            facts=facts,
            jitter=random.random(),
            tree=tree,
            is_stopped=is_stopped,
        )

    async def _tree_after(self, outcome: Outcome) -> tuple[str, int]:
        """The working directory as the step has left it, if a branch is to have it, and when that was; without a
        branch, or without git, only when. Of two steps, the one that is noted later has the newer state."""
        if outcome != "completed" or self._shop.tree is None or not self._shop.has_branch:
            return "", time.time_ns()
        async with self._shop.looking:
            try:
                return await self._shop.tree.state(), time.time_ns()
            except ToolError:
                return "", time.time_ns()

    async def _step_session(self, order: StartStep) -> j.ChildEnded:
        step, agent = order.step, self._shop.agents[order.agent]
        body = SpawnChild(agent=agent.name, task="", key=self.key, step=order.path)
        if self.was_begun:
            await self._shop.children.find(body)
        if not self._shop.children.started_as(self.key):
            assert self.begun is not None
            # Somebody may have to write a summary first.
            handed = await self._unless_stopped(self._shop.artifacts.handed(self.begun.sources))
            text = brief(
                step,
                task=self._shop.task,
                iteration=order.iteration,
                handed=handed,
                tools=agent.tools,
                last_failure=self.last_failure,
            )
            body = SpawnChild(
                agent=agent.name,
                task=text,
                title=step.title or order.path,
                model=step.model,
                key=self.key,
                step=order.path,
                budgets=step.budgets,
                output_schema=answer_schema(step, agent.tools),
            )
        return await self._end_of(await self._start(body))

    async def _left(self, order: StartStep, answer: str) -> list[str]:
        begun = self.begun
        others = self._shop.sessions - {self.child}

        def is_own(info: ArtifactInfo) -> bool:
            if info.session == self.child:
                return True
            # What a session below the step's left is the step's; what another step's left meanwhile is not.
            is_new = begun is None or info.at_ns >= begun.at_ns
            is_of_it = is_new and info.step in ("", order.path)
            return is_of_it and info.session not in others and info.session != self._shop.session

        async def diff(output: Output) -> str:
            tree = self._shop.tree
            if tree is None or begun is None or not begun.tree:
                raise ToolError("the working directory is no git repository", code="no_repository")
            before = begun.tree
            if output.since == "loop" and self.tree_of_loop and await tree.has(self.tree_of_loop):
                before = self.tree_of_loop
            return await tree.diff(before, await tree.state())

        sources = list(begun.sources) if begun is not None else []
        return await self._shop.artifacts.collect(
            order.step,
            answer=answer,
            diff=diff,
            is_own=is_own,
            key=self.key,
            sources=sources,
            producer=self.child,
            path=order.path,
        )

    # ------------------------------------------------------------ a compensation

    async def undo(self, order: Compensate) -> j.CompensationEnded:
        """The attempt to undo a step."""
        outcome: Outcome = "failed"
        failure: Failure | None = None
        try:
            before = self.undoing
            body = SpawnChild(
                agent=order.compensation.agent,
                task=undo_brief(
                    order.compensation.task,
                    path=order.path,
                    task=self._shop.task,
                    iteration=order.iteration,
                    last_failure=before.failure.message if before is not None and before.failure is not None else "",
                ),
                title=f"undo {order.path}",
                key=self.key,
                step=order.path,
                # It knows what that one did, so that nothing is done twice.
                handoff=before.session if before is not None else "",
            )
            if self.was_begun:
                await self._shop.children.find(body)
            ended = await self._end_of(await self._start(body))
            outcome, failure = _outcome(order.path, ended.cause)
        except OttoError as error:
            failure = _failure(order.path, error)
        return j.CompensationEnded(
            path=order.path,
            attempt=order.attempt,
            outcome=outcome,
            at_ns=time.time_ns(),
            session=self.child,
            failure=failure,
            jitter=random.random(),
        )

    # ------------------------------------------------------------ its session

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of it, unless the attempt is stopped before; then it is cancelled. Raises ToolError."""
        task, told = asyncio.ensure_future(work), asyncio.ensure_future(self._is_stopped.wait())
        try:
            await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            told.cancel()
            task.cancel()
            await asyncio.wait({task})
        raise ToolError(self._stop_reason or "it was stopped", code="cancelled")

    async def _start(self, body: SpawnChild) -> str:
        """The child's id. Of one that an earlier incarnation asked for, root tells again how it ended."""
        if self._stop_reason is not None and not self._shop.children.started_as(self.key):
            raise ToolError(self._stop_reason, code="cancelled")
        return (await self._shop.children.start(body))[0]

    async def _end_of(self, child: str) -> j.ChildEnded:
        self.child = child
        self._shop.sessions.add(child)
        if self._stop_reason is not None:
            self.stop(self._stop_reason)
        return await self._shop.children.end_of(child)


def _outcome(path: str, cause: Cause) -> tuple[Outcome, Failure | None]:
    if cause.kind == "completed":
        return "completed", None
    text = f"{path}: {cause}" + (f": {cause.message}" if cause.message else "")
    failure = Failure(code=cause.code or cause.kind, message=cut(text, MAX_FAILURE_BYTES)[0])
    return ("cancelled" if cause.kind == "cancelled" else "failed"), failure


def _failure(path: str, error: OttoError) -> Failure:
    return Failure(code=error.code, message=cut(f"{path}: {error.message}", MAX_FAILURE_BYTES)[0], mend=error.mend)
