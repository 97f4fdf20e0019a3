"""Definitions that sessions were started with: what is kept of a plan, and what `NAME@DIGEST` means.

Only clients can mean a version. An agent that starts others names them, and gets what its project has now.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ottod.errors import UNDECODABLE, OttoError, RefusedError
from ottod.protocol.definitions import SHOWN_DIGEST_CHARS, DefinitionKind, KeptDefinition, name_and_digest
from ottod.protocol.requests import GetDefinition, ListDefinitions, StartSession
from ottod.protocol.results import DefinitionFound, DefinitionList
from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import ResolvedWorkflow, WorkflowSpec
from ottod.root.context import RootContext
from ottod.root.plan import SessionPlan, plan_decoder
from ottod.storage.definitions import (
    DefinitionRow,
    select_body,
    select_definitions,
    select_newest_user,
)

MAX_NAMED = 4
"""Versions that an error names."""

_pack = msgspec.msgpack.Encoder().encode
_agents: msgspec.msgpack.Decoder[AgentSpec] = msgspec.msgpack.Decoder(AgentSpec)
_workflows: msgspec.msgpack.Decoder[WorkflowSpec] = msgspec.msgpack.Decoder(WorkflowSpec)


class Kept(NamedTuple):
    """What a start by `NAME@DIGEST` means: an agent, or a workflow with the agents of its newest run."""

    agent: AgentSpec | None = None
    workflow: ResolvedWorkflow | None = None


NOTHING_KEPT = Kept()
"""The definition is the one that is found now."""


def definitions_of(plan: SessionPlan) -> list[DefinitionRow]:
    """What a session is made from, to be kept: its agent; or its workflow, and the agents that it may start."""
    if plan.is_step:
        # A step's own spec is narrowed for it. What it was made from is kept with its workflow.
        return [_row("agent", plan.spec)._replace(body=b"")]
    if plan.workflow is None:
        return [_row("agent", plan.spec)]
    return [_row("workflow", plan.workflow.spec), *(_row("agent", agent) for agent in plan.workflow.agents)]


def _row(kind: DefinitionKind, spec: AgentSpec | WorkflowSpec) -> DefinitionRow:
    return DefinitionRow(kind=kind, name=spec.name, digest=spec.digest, source=spec.source, body=_pack(spec))


class Definitions:
    """Of this daemon, whichever root runs it."""

    def __init__(self, context: RootContext) -> None:
        self._c = context

    async def list(self, body: ListDefinitions) -> DefinitionList:
        """The versions of a name, newest first. Raises StorageError."""
        found = await self._c.database.read(lambda c: select_definitions(c, body.kind, body.name, "", body.limit))
        return DefinitionList(definitions=tuple(found))

    async def get(self, body: GetDefinition) -> DefinitionFound:
        """One version. Raises RefusedError: `no_such_definition`, `ambiguous_definition`; StorageError."""
        kept = await self._find(body.kind, body.name, body.digest)
        packed = await self._c.database.read(lambda c: select_body(c, body.kind, kept.digest))
        try:
            if body.kind == "agent":
                return DefinitionFound(definition=kept, agent=_agents.decode(packed))
            return DefinitionFound(definition=kept, workflow=_workflows.decode(packed))
        except UNDECODABLE as error:
            raise _unreadable(kept) from error

    async def meant(self, request: StartSession) -> Kept:
        """What a start means that names a version; nothing for any other. Raises OttoError."""
        name = request.workflow.name if request.workflow is not None else request.agent
        if "@" not in name:
            return NOTHING_KEPT
        name, digest = name_and_digest(name)
        if request.workflow is None:
            return Kept(agent=(await self.get(GetDefinition(kind="agent", name=name, digest=digest))).agent)
        kept = await self._find("workflow", name, digest)
        session = await self._c.database.read(lambda c: select_newest_user(c, "workflow", name, kept.digest))
        try:
            plan = plan_decoder.decode(await self._c.database.plan(session))
        except UNDECODABLE as error:
            raise _unreadable(kept) from error
        return Kept(workflow=plan.workflow)

    async def _find(self, kind: DefinitionKind, name: str, digest: str) -> KeptDefinition:
        found = await self._c.database.read(
            lambda c: select_definitions(c, kind, name, digest.lower(), MAX_NAMED + 1) if name else []
        )
        whole = [kept for kept in found if kept.digest == digest.lower()]
        if len(found) > 1 and not whole:
            known = ", ".join(kept.digest[:SHOWN_DIGEST_CHARS] for kept in found[:MAX_NAMED])
            raise RefusedError(
                f"{len(found)} versions of {name} begin with {digest}: {known}",
                code="ambiguous_definition",
                mend="type more of the digest",
            )
        if not found:
            others = await self._c.database.read(lambda c: select_definitions(c, kind, name, "", MAX_NAMED))
            known = ", ".join(kept.digest[:SHOWN_DIGEST_CHARS] for kept in others)
            mend = f"kept are: {known}" if known else f"no session on record was started with {name[:64]}"
            raise RefusedError(f"no {kind} {name}@{digest} is kept", code="no_such_definition", mend=mend)
        return (whole or found)[0]


def _unreadable(kept: KeptDefinition) -> OttoError:
    return RefusedError(
        f"{kept.name}@{kept.digest[:SHOWN_DIGEST_CHARS]} was kept by another version of Otto and cannot be read",
        code="no_such_definition",
    )
