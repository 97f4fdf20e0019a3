"""Worker ↔ root: who speaks, what root orders, what it acknowledges.

Each message is one frame: a byte of kind, `M` and a message behind it, or `B` and one unsealed record (see
`records`).
"""

from __future__ import annotations

from typing import Literal

from ottod.errors import Failure
from ottod.protocol.birth import ChildNotice
from ottod.protocol.cause import Cause
from ottod.protocol.codec import Codec
from ottod.protocol.policy import StandingGrant
from ottod.protocol.wire import Wire
from ottod.protocol.worker_requests import RequestReply, WorkerRequest

KIND_MESSAGE = b"M"
KIND_BATCH = b"B"

# ---------------------------------------------------------------- worker → root


class WorkerHello(Wire, frozen=True, kw_only=True, tag="hello"):
    """The first message of an incarnation. `unacked_seq` is the first seq that it would replay.

    `knows_undo`: it knows what `may_undo` of an order to stop means. Workers of older versions do not.
    """

    protocol: int
    session: str
    incarnation: int
    secret: bytes
    pid: int
    unacked_seq: int = 0
    knows_undo: bool = False


class Heartbeat(Wire, frozen=True, kw_only=True, tag="heartbeat"):
    """Sent from the worker's real loop. Sizes in bytes."""

    lag_ms: float = 0.0
    unacked_bytes: int = 0
    fsync_count: int = 0
    """Times that the journal was forced to disk since the heartbeat before; `fsync_ns` is how long that took."""
    fsync_ns: int = 0


class CommandReply(Wire, frozen=True, kw_only=True, tag="reply"):
    """The answer to a command."""

    id: int
    failure: Failure | None = None


class Exiting(Wire, frozen=True, kw_only=True, tag="exiting"):
    """The incarnation's last word: why, with what result, and the last seq it used. It exits once acknowledged.

    `continues`: only its time slice is over; the next incarnation is to go on at once.
    `is_json`: the result is the JSON that the agent's `output_schema` asks for.
    """

    cause: Cause
    last_seq: int
    result: str = ""
    truncated: bool = False
    continues: bool = False
    is_json: bool = False
    whole: str = ""
    """The artifact that has the whole result of a workflow's step, if that was too long."""


WorkerMessage = WorkerHello | Heartbeat | CommandReply | Exiting | WorkerRequest


# ---------------------------------------------------------------- root → worker


class WorkerWelcome(Wire, frozen=True, kw_only=True, tag="welcome"):
    """`acked_seq`: everything up to it is in the ring."""

    protocol: int
    acked_seq: int
    root_pid: int = 0
    root_start_ticks: int = 0
    """Who root is: its death is what the worker watches for."""


class WorkerRejected(Wire, frozen=True, kw_only=True, tag="rejected"):
    """The worker is not wanted; it must exit."""

    failure: Failure
    protocol: int = 0


class Ack(Wire, frozen=True, kw_only=True, tag="ack"):
    """Everything up to `seq` is in the ring. `window_us`: how long batches should grow before they leave."""

    seq: int
    window_us: int = 0


class DeliverInput(Wire, frozen=True, kw_only=True, tag="deliver_input"):
    """A user's or another session's message. `steer`: it may join the turn that runs."""

    text: str
    sender: str = "user"
    steer: bool = False
    name: str = ""
    """The sender's in their tree, if it is another session."""
    key: str = ""
    """Heard once, however often it is delivered."""
    asks: bool = False
    """It begins a turn of its own, whose end is told to root as the answer to `key`."""


class StopTurn(Wire, frozen=True, kw_only=True, tag="stop"):
    """End the session: cancel the turn, wait for the children, leave no process, say `exiting`.

    With `for_restart` only the incarnation ends: it checkpoints, waits for nobody, and the next one goes on. With
    `may_undo`, which workflows are told, it is to fail as if a step had: it stops its steps itself, undoes what is to
    be undone, and ends then. Done means that this is in the journal.
    """

    reason: str = ""
    cause: Literal["cancelled", "daemon_stop", "budget"] = "cancelled"
    for_restart: bool = False
    may_undo: bool = False


class ResolveApproval(Wire, frozen=True, kw_only=True, tag="resolve_approval"):
    """Somebody's answer to an approval that the session has asked for. Done means that it is in the journal.

    `answered_at_ns`: when root took it, by the wall clock; 0: now.
    """

    approval: str
    decision: Literal["approved", "denied"]
    scope: Literal["once", "session", "agent"] = "once"
    by: str = ""
    reason: str = ""
    answered_at_ns: int = 0


class InterruptTurn(Wire, frozen=True, kw_only=True, tag="interrupt"):
    """Cancel the turn that runs, and stay. Done means that the turn is over."""

    reason: str = ""


class SetPause(Wire, frozen=True, kw_only=True, tag="set_pause"):
    """Begin no model call and no tool call from now on, or begin them again. Done means that it is in the journal."""

    paused: bool
    reason: str = ""


class NoteCheckpoint(Wire, frozen=True, kw_only=True, tag="note_checkpoint"):
    """Note a point to fork at. Without a name it is called after the turn."""

    name: str = ""


class ForgetTurns(Wire, frozen=True, kw_only=True, tag="forget_turns"):
    """The last turns are no part of the conversation any more. Refused while a turn is open."""

    turns: int


class WithdrawInput(Wire, frozen=True, kw_only=True, tag="withdraw_input"):
    """A message that waits for its turn is not to have one. One that has begun goes on."""

    key: str


class SetGrants(Wire, frozen=True, kw_only=True, tag="set_grants"):
    """All permission that stands for the session's agent now; what waits for it goes on."""

    grants: tuple[StandingGrant, ...] = ()


CommandBody = (
    DeliverInput
    | StopTurn
    | ChildNotice
    | ResolveApproval
    | SetGrants
    | InterruptTurn
    | SetPause
    | NoteCheckpoint
    | ForgetTurns
    | WithdrawInput
)


class Command(Wire, frozen=True, kw_only=True, tag="command"):
    """An order with an id; the worker answers with `CommandReply`."""

    id: int
    body: CommandBody


class ExitAck(Wire, frozen=True, kw_only=True, tag="exit_ack"):
    """`exiting` was heard and every event is in the ring: the worker may go."""


RootToWorker = WorkerWelcome | WorkerRejected | Ack | Command | ExitAck | RequestReply

worker_messages: Codec[WorkerMessage] = Codec(WorkerMessage, name="worker message")
root_to_worker: Codec[RootToWorker] = Codec(RootToWorker, name="root message")
