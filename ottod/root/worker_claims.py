"""What root believes of what workers say: a worker runs a model's work, and may be wrong or worse."""

from __future__ import annotations

from collections.abc import Sequence

from ottod.errors import RemoteProtocolError
from ottod.protocol.cause import Cause
from ottod.protocol.events import (
    MAX_EVENT_TEXT_BYTES,
    ConversationHandedOver,
    Event,
    Gap,
    IncarnationExited,
    SessionCreated,
    SessionExited,
    SessionStarted,
    SessionStateChanged,
    Unknown,
    tag_of,
)
from ottod.protocol.worker import Exiting
from ottod.root.session_table import Incarnation, Session, SessionTable

MAX_CAUSE_CHARS = 2000
"""Of a worker's own explanation of its end; `session.exited` must fit a record whatever it says."""


def check_entries(
    entries: Sequence[tuple[int, Event | Unknown]],
    event_count: int,
    incarnation: Incarnation,
    *,
    session: Session,
    table: SessionTable,
) -> None:
    """Raises RemoteProtocolError for a batch that miscounts, or says what only root may say or knows better."""
    if len(entries) != event_count:
        raise RemoteProtocolError(f"a batch of {len(entries)} events that says {event_count}")
    for _, event in entries:
        match event:
            case (
                SessionExited()
                | SessionCreated()
                | IncarnationExited()
                | Gap()
                | SessionStateChanged(state="ended" | "restarting" | "parked")
            ):
                raise RemoteProtocolError(f"a worker may not say {tag_of(event)}")
            case SessionStarted():
                pid = incarnation.lease.pid if incarnation.lease is not None else 0
                if (event.pid, event.incarnation) != (pid, incarnation.number):
                    raise RemoteProtocolError(
                        f"says that it is incarnation {event.incarnation} in process {event.pid}, "
                        f"and is {incarnation.number} in {pid}"
                    )
            case ConversationHandedOver():
                # One that is no longer known may well have been its child: it had this to say since.
                successor = table.get(event.child)
                if successor is not None and successor.info.parent != session.id:
                    raise RemoteProtocolError(f"hands over to {successor.id}, which is no child of its own")


def bounded(exiting: Exiting) -> Exiting:
    """The last word, no longer than its event can be."""
    cause, result = exiting.cause, exiting.result.encode("utf-8", "replace")
    return Exiting(
        cause=Cause(
            kind=cause.kind,
            message=cause.message[:MAX_CAUSE_CHARS],
            signal=cause.signal[:MAX_CAUSE_CHARS],
            status=cause.status,
            code=cause.code[:MAX_CAUSE_CHARS],
        ),
        last_seq=exiting.last_seq,
        result=result[:MAX_EVENT_TEXT_BYTES].decode("utf-8", "ignore"),
        truncated=exiting.truncated or len(result) > MAX_EVENT_TEXT_BYTES,
        continues=exiting.continues,
        is_json=exiting.is_json,
        whole=exiting.whole[:MAX_CAUSE_CHARS],
    )
