"""What a session is made from: everything that a new incarnation needs, except secrets.

Kept in the database, so that a session can be made again after root's death. Provider keys are never part of it: they
are looked up anew for every incarnation.
"""

from __future__ import annotations

import msgspec

from ottod.protocol.policy import Authority
from ottod.protocol.specs import AgentSpec, ModelTarget, ToolFile
from ottod.protocol.workflows import ResolvedWorkflow


class SessionPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A resolved start request. `spawn_key` is the parent's name for this child, `start_key` the client's."""

    spec: AgentSpec
    models: tuple[ModelTarget, ...]
    env: dict[str, str] = {}
    cwd: str
    server_env: dict[str, str] = {}
    tool_files: tuple[ToolFile, ...] = ()
    spawn_key: str = ""
    start_key: str = ""
    inherited: tuple[Authority, ...] = ()
    """What binds the session from above: its parent's rules, and those that bound its parent."""
    traceparent: str = ""
    workflow: ResolvedWorkflow | None = None
    is_step: bool = False
    """A workflow started it for one of its steps, and answers for it."""
    hands_whole: bool = False
    """It has the conversation of a step, handed over, and its answer is the step's."""
    looks_back_on: str = ""
    """The ended session whose run it is to learn from."""
    routed: str = ""
    """Why its agent was chosen, if nobody named one."""

    @property
    def step(self) -> str:
        """The path of the workflow's step that it is for; empty if it is for none."""
        return self.spawn_key.rpartition("#")[0] if self.is_step else ""

    @property
    def model_name(self) -> str:
        """What it is called in lists; a workflow has none."""
        return f"{self.models[0].provider}:{self.models[0].model}" if self.models else ""


plan_decoder: msgspec.msgpack.Decoder[SessionPlan] = msgspec.msgpack.Decoder(SessionPlan)
