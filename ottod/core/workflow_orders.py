"""What a workflow's machine wants done."""

from __future__ import annotations

from typing import Literal

import msgspec

from ottod.errors import Failure
from ottod.protocol.workflows import Compensation, Step


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The form that all orders share."""


class StartStep(Order, frozen=True, kw_only=True, tag=True):
    """Let `agent` make an attempt of a step. `iteration` is the count of the loop around it, 0 outside of loops."""

    path: str
    attempt: int
    agent: str
    step: Step
    iteration: int = 0


class StopStep(Order, frozen=True, kw_only=True, tag=True):
    """Stop the session of a running attempt, or, with `undo`, of a running compensation."""

    path: str
    attempt: int
    reason: str
    undo: bool = False


class AskLeave(Order, frozen=True, kw_only=True, tag=True):
    """Ask somebody whether a step or a block may begin."""

    path: str
    reason: str = ""
    expires_s: float | None = None


class WithdrawLeave(Order, frozen=True, kw_only=True, tag=True):
    """Nobody need answer any more."""

    path: str
    reason: str


class Compensate(Order, frozen=True, kw_only=True, tag=True):
    """Let an agent undo a completed step. `iteration` is the count of the loop around it, 0 outside of loops."""

    path: str
    attempt: int
    compensation: Compensation
    iteration: int = 0


class TellSkipped(Order, frozen=True, kw_only=True, tag=True):
    """Say that a step or block does not have its turn."""

    path: str
    reason: str


class TellIteration(Order, frozen=True, kw_only=True, tag=True):
    """Say that a loop begins an iteration."""

    path: str
    iteration: int
    of: int


class TellBlock(Order, frozen=True, kw_only=True, tag=True):
    """Say that a block has begun, or how it has ended."""

    path: str
    state: Literal["running", "completed", "failed", "cancelled"]
    failure: Failure | None = None


class EndWorkflow(Order, frozen=True, kw_only=True, tag=True):
    """The workflow is over, and nothing of it runs. `undone` are completed steps that somebody may want undone."""

    outcome: Literal["completed", "failed", "cancelled"]
    failure: Failure | None = None
    reason: str = ""
    undone: tuple[str, ...] = ()


WorkflowOrder = (
    StartStep
    | StopStep
    | AskLeave
    | WithdrawLeave
    | Compensate
    | TellSkipped
    | TellIteration
    | TellBlock
    | EndWorkflow
)
