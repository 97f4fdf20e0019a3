"""From a journal to the session that it was: the conversation, the turn that is open, what waits, what was spent.

Theory of operation. The entries are read once, in order (`past`). What is open when they end is resolved by three
rules. A model call with a response, and a tool call with a result, are never made again. A model call without one is
made again. A tool call with an intent and no result begins again if its tool said that this is harmless, and is
otherwise *unknown*: the model hears that it may or may not have had its effect. A call without an intent has not
begun, and begins; one that waited for leave is of that kind, and finds its question, or the answer to it, where it
was.

The incarnations of a session append to the same journal, so what is restored includes what was restored before. A
session can also be begun from another one's past, as it is or as it was at some turn: the `heir` has its
conversation, and none of its children, its cost or its approvals.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from ottod.core.past import UNKNOWN, Attempt, OpenTurn, Past, Restored, Waiting, child_report, unknown_result
from ottod.core.turn import calls_of
from ottod.errors import Failure, RefusedError
from ottod.protocol import journal as j
from ottod.protocol.model import AssistantMessage, Message, Text, ToolCall, ToolResult, ToolResults, UserMessage
from ottod.settings.units import plural

__all__ = [
    "UNKNOWN",
    "Attempt",
    "OpenTurn",
    "Past",
    "Restored",
    "Waiting",
    "child_report",
    "heir",
    "in_words",
    "restore",
    "successor",
    "too_few_turns",
    "unknown_result",
    "workflow_heir",
]


def restore(entries: Iterable[j.JournalEntry]) -> Restored:
    """What the entries amount to. Any beginning of a journal will do; nothing in one raises."""
    past = Past()
    for entry in entries:
        past.take(entry)
    return past.restored()


def heir(
    entries: Iterable[j.JournalEntry],
    *,
    origin: str,
    turn: int | None = None,
    checkpoint: str = "",
    at_rest: bool = False,
    goes_on: bool = False,
) -> j.Snapshot:
    """What a new session begins with that takes over from `origin`: all of it, or what it was at a turn's end, at a
    checkpoint, or, `at_rest`, before the turn that is open.

    A turn that is open there is closed, unless it `goes_on`; then what waited for a turn is taken over as well.
    Raises: RefusedError if there is no such turn or checkpoint.
    """
    past = _past_at(list(entries), origin, turn, checkpoint, at_rest=at_rest)
    if past.is_open and not goes_on:
        past.take(j.TurnEnded(turn=past.turn, outcome="cancelled"))
    return _of_an_heir(past, origin, inbox=past.snapshot().inbox if goes_on else ())


def _of_an_heir(past: Past, origin: str, *, inbox: tuple[j.InputAccepted, ...]) -> j.Snapshot:
    """The conversation and the turn, and nothing that was the session's own."""
    return replace(
        past.snapshot(),
        origin=origin,
        has_begun=False,
        inbox=inbox,
        newest_number=past.newest_number,
        usages=(),
        children=(),
        ended_children=(),
        processes=(),
        closed=None,
        ended=None,
        budget=None,
        attempts=(),
        questions=(),
        resolutions=(),
        is_paused=False,
        pause_reason="",
        heard=(),
        asked=(),
    )


def successor(entries: Iterable[j.JournalEntry], *, origin: str, call: str, told: str) -> j.Snapshot:
    """What a session begins with that `origin` hands its conversation over to, by a call of its open turn.

    It has the conversation up to and with that call, whose result is `told`.
    Raises: RefusedError if the call is not the only one of the open turn's last answer.
    """
    past = _fold(entries)
    calls = calls_of(past.response) if past.is_open and past.response is not None else ()
    if [each.call for each in calls] != [call]:
        raise RefusedError(
            "a conversation is handed over by a call that stands alone", code="bad_arguments", mend="call it alone"
        )
    result = ToolResult(call=call, tool=calls[0].tool, text=told)
    past.take(j.ToolResolved(turn=past.turn, step=past.responded_step, call=call, result=result))
    past.take(j.TurnEnded(turn=past.turn, outcome="completed"))
    # Another agent begins: it is told what there is to know of the project as it is now, or not at all.
    return replace(_of_an_heir(past, origin, inbox=()), text="", notes=None)


def in_words(snapshot: j.Snapshot) -> j.Snapshot:
    """The same conversation with calls and results put into words, for whoever has no tools: models may refuse to
    read of calls where there is none to make."""
    return replace(snapshot, messages=tuple(map(_in_words, snapshot.messages)), measures=())


def _in_words(message: Message) -> Message:
    match message:
        case AssistantMessage():
            said = [b.text for b in message.blocks if isinstance(b, Text)]
            said += [f"[called {b.tool}: {b.arguments}]" for b in message.blocks if isinstance(b, ToolCall)]
            return AssistantMessage(blocks=(Text(text="\n".join(said)),))
        case ToolResults():
            return UserMessage(text="\n".join(f"[result of {r.tool}]\n{r.text}" for r in message.results))
        case _:
            return message


def workflow_heir(entries: Iterable[j.JournalEntry], *, origin: str, at_ns: int) -> j.Snapshot:
    """What a new session begins with that goes on with a workflow which has ended.

    Raises: RefusedError if it never began, or if what it had done was undone.
    """
    snapshot = heir(entries, origin=origin)
    if not any(isinstance(entry, j.WorkflowBegun) for entry in snapshot.workflow):
        raise RefusedError(f"{origin} had not begun", code="nothing_to_resume")
    if any(isinstance(entry, j.CompensationBegun) for entry in snapshot.workflow):
        raise RefusedError(f"steps of {origin} were undone when it failed", code="nothing_to_resume")
    # What failed is mended by now, or whoever resumes wants to see: it is tried as if it were new.
    arrived = tuple(entry for entry in snapshot.deliveries if isinstance(entry, j.Delivered))
    resumed = j.WorkflowResumed(at_ns=at_ns, origin=origin)
    return replace(snapshot, workflow=(*snapshot.workflow, resumed), deliveries=arrived)


def too_few_turns(session: str, wanted: int, known: int) -> Failure:
    """Why so many turns of a session cannot be forgotten, and how many can."""
    has = f"{session} has {plural(known, 'turn') if known else 'no turn'}"
    mend = f"ottoctl rollback {session} --turns {known}" + (" forgets all of them" if known > 1 else " forgets it")
    return Failure(
        code="no_such_turn",
        message=f"{has}: {wanted} cannot be forgotten" if known else f"{has} that could be forgotten",
        mend=mend if known else "",
    )


def _past_at(entries: list[j.JournalEntry], origin: str, turn: int | None, checkpoint: str, *, at_rest: bool) -> Past:
    if checkpoint:
        return _at_checkpoint(entries, origin, checkpoint)
    if turn is not None:
        return _at_end_of(entries, origin, turn)
    return _at_rest(entries) if at_rest else _fold(entries)


def _fold(entries: Iterable[j.JournalEntry]) -> Past:
    past = Past()
    for entry in entries:
        past.take(entry)
    return past


def _at_rest(entries: list[j.JournalEntry]) -> Past:
    """As it was when no turn was open the last time, which may be now."""
    past, end = Past(), 0
    for number, entry in enumerate(entries, start=1):
        past.take(entry)
        end = number if not past.is_open else end
    inherited = next((e for e in entries if isinstance(e, j.Snapshot)), None)
    if end == 0 and inherited is not None:
        return _before_newer(_fold([inherited]), inherited.turn - 1)
    return _fold(entries[:end])


def _at_end_of(entries: list[j.JournalEntry], origin: str, turn: int) -> Past:
    if turn == 0:
        return Past()
    ends = [n for n, e in enumerate(entries) if isinstance(e, j.TurnEnded) and e.turn == turn]
    if ends:
        return _fold(entries[: ends[-1] + 1])
    # A session that goes on from another one, or whose oldest files are gone, knows turns whose end it has not noted.
    for number, entry in enumerate(entries):
        if isinstance(entry, j.Snapshot) and _holds_end(entry, turn):
            return _before_newer(_fold(entries[: number + 1]), turn)
    newest = max((e.turn for e in entries if isinstance(e, j.TurnEnded)), default=0)
    mend = f"its newest turn that is over is {newest}: ottoctl fork {origin} --at {newest}"
    mend = mend if newest else "none of its turns is over"
    raise RefusedError(f"turn {turn} of {origin} has no end", code="no_such_turn", mend=mend)


def _holds_end(snapshot: j.Snapshot, turn: int) -> bool:
    if snapshot.turn == turn:
        return not snapshot.is_open
    return any(known == turn for known, _ in snapshot.marks)


def _before_newer(past: Past, turn: int) -> Past:
    """The same past without the turns behind this one, as far as they can be told apart."""
    if past.is_open:
        past.take(j.TurnEnded(turn=past.turn, outcome="cancelled"))
    newer = sum(mark.turn > turn for mark in past.marks)
    if newer:
        past.take(j.TurnsRolledBack(turns=newer, turn=turn))
        past.turn = turn
    return past


def _at_checkpoint(entries: list[j.JournalEntry], origin: str, checkpoint: str) -> Past:
    """As it was at the newest checkpoint of that name. Calls that ran there keep the results that they came to have:
    what they did is done in every future."""
    named = [n for n, e in enumerate(entries) if isinstance(e, j.Checkpoint) and e.name == checkpoint]
    if not named:
        known = dict.fromkeys(e.name for e in entries if isinstance(e, j.Checkpoint))
        mend = f"there are: {', '.join(known)}" if known else f"name a turn instead: ottoctl fork {origin} --at 1"
        raise RefusedError(f"{origin} has no checkpoint {checkpoint!r}", code="no_such_checkpoint", mend=mend)
    end = named[-1] + 1
    past = _fold(entries[:end])
    for entry in entries[end:]:
        if isinstance(entry, j.ModelCalled | j.ModelResponded | j.TurnEnded | j.UserSaid | j.SliceEnded | j.Snapshot):
            break
        if isinstance(entry, j.ToolResolved) and entry.call in past.intents:
            past.take(entry)
    return past
