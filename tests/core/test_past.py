"""A past can be written down as one entry and taken up from there, and another session can begin with it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.core.past import Past
from ottod.core.resume import heir, restore, successor
from ottod.core.turn import Steer, TurnMark, is_valid_conversation
from ottod.errors import Failure, RefusedError
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.model import ModelResponse, Text, ToolCall, ToolResult, ToolResults, UserMessage
from ottod.protocol.usage import Usage

OPENED = j.SessionOpened(session="s-1", incarnation=1, agent="a", model="m", cwd="/", task="the task")
CALLS = ("a", "b")


def responded(turn: int, step: int, *calls: str, text: str = "said") -> j.ModelResponded:
    blocks = (Text(text=text), *(ToolCall(call=c, tool="t") for c in calls))
    response = ModelResponse(
        blocks=blocks, stop="tool_calls" if calls else "end", usage=Usage(input_tokens=step, calls=1)
    )
    return j.ModelResponded(turn=turn, step=step, response=response)


def intended(call: str, *, idempotent: bool = False) -> j.ToolIntended:
    return j.ToolIntended(
        turn=1, step=1, call=call, tool="t", arguments="{}", idempotent=idempotent, idempotency_key="k"
    )


def resolved(call: str) -> j.ToolResolved:
    return j.ToolResolved(turn=1, step=1, call=call, result=ToolResult(call=call, tool="t", text=f"{call} done"))


def turn(number: int, text: str = "hi") -> list[j.JournalEntry]:
    """A whole turn."""
    return [
        j.UserSaid(text=text, turn=number, number=number - 1),
        j.ModelCalled(turn=number, step=1, model="m"),
        responded(number, 1, text=f"answer {number}"),
        j.TurnEnded(turn=number, outcome="completed"),
    ]


small = st.integers(0, 3)
texts = st.sampled_from(["x", "y"])
calls = st.sampled_from(CALLS)
entry = st.one_of(
    st.just(OPENED),
    st.builds(j.NotesRead, path=texts, text=texts),
    st.builds(j.InputAccepted, number=small, text=texts, steer=st.booleans()),
    st.builds(j.InputAccepted, number=small, text=texts, key=st.sampled_from(["s-1/a", "s-2/b"]), asks=st.booleans()),
    st.builds(j.InputWithdrawn, number=small),
    st.builds(j.UserSaid, text=texts, turn=small, number=small),
    st.builds(j.UserSteered, turn=small, step=small, number=small, text=texts),
    st.builds(j.ModelCalled, turn=small, step=small, model=texts),
    st.builds(lambda n, cs: responded(1, n, *cs), small, st.lists(calls, max_size=2)),
    st.builds(lambda c, i: intended(c, idempotent=i), calls, st.booleans()),
    st.builds(resolved, calls),
    st.builds(j.ApprovalAsked, approval=texts, turn=small, step=small, call=calls, tool=texts),
    st.builds(
        j.ApprovalResolved,
        approval=texts,
        tool=texts,
        decision=st.sampled_from(["approved", "denied", "expired", "withdrawn"]),
        scope=st.sampled_from(["once", "session"]),
    ),
    st.builds(
        j.TurnEnded,
        turn=small,
        outcome=st.sampled_from(["completed", "failed", "cancelled"]),
        failure=st.sampled_from([None, Failure(code="x", message="m")]),
        interrupted=st.booleans(),
    ),
    st.builds(j.SessionPaused, reason=texts),
    st.just(j.SessionUnpaused()),
    st.builds(j.TurnsRolledBack, turns=small, turn=small),
    st.builds(j.SliceEnded, turn=small, step=small, messages=st.just((UserMessage(text="so far"),))),
    st.builds(j.ChildStarted, child=texts, agent=texts),
    st.builds(j.ChildEnded, child=texts, cause=st.just(Cause(kind="completed")), number=small),
    st.builds(j.Checkpoint, name=texts, turn=small, last_seq=small),
    st.builds(j.SessionClosed, cause=st.just(Cause(kind="cancelled"))),
)
"""Of these any row leaves a valid conversation; of the others only those that a session writes."""
any_entry = st.one_of(
    entry,
    st.builds(j.ModelCalled, turn=small, step=small, model=texts, permit=texts, target=small),
    st.builds(j.SummaryCalled, turn=small, step=small, model=texts, permit=texts),
    st.builds(j.BudgetReached, turn=small, step=small, failure=st.just(Failure(code="budget", message="m"))),
    st.builds(j.ConversationShortened, turn=small, step=small, at=small, summary=texts, tokens_after=small),
    st.builds(j.TurnBegunAnew, turn=small, step=small, text=texts),
    st.builds(j.ProcessStarted, process=texts, command=texts),
    st.builds(j.ProcessEnded, process=texts),
    st.builds(j.StepSkipped, path=texts, at_ns=small),
    st.builds(j.Delivered, sink=texts, parcel=texts, at_ns=small),
    st.builds(
        j.DeliveryFailed,
        sink=texts,
        parcel=texts,
        attempt=small,
        at_ns=small,
        failure=st.just(Failure(code="x", message="m")),
        is_final=st.booleans(),
    ),
)
decoder = msgspec.msgpack.Decoder(j.JournalEntry)


def test_a_snapshot_forgets_nothing_that_it_holds() -> None:
    """Each of its fields is taken up again: a journal's next file, and whoever goes on with a session, begins so."""
    failed = j.DeliveryFailed(sink="s", parcel="p", attempt=1, at_ns=1, failure=Failure(code="x", message="m"))
    past = Past()
    for each in (OPENED, j.StepSkipped(path="a", at_ns=1), failed, j.Delivered(sink="s", parcel="p", at_ns=2)):
        past.take(each)
    snapshot = past.snapshot()
    assert len(snapshot.deliveries) == 2 and restore([snapshot]).deliveries == snapshot.deliveries
    again = Past()
    again.take(snapshot)
    assert again.snapshot() == snapshot


@settings(max_examples=400, deadline=None)
@given(before=st.lists(any_entry, max_size=25), after=st.lists(any_entry, max_size=10))
def test_a_snapshot_stands_for_all_before_it(before: list[j.JournalEntry], after: list[j.JournalEntry]) -> None:
    """Whatever came before, in whatever order: going on from its snapshot, on disk and back, is going on from it."""
    past = Past()
    for each in before:
        past.take(each)
    snapshot = decoder.decode(msgspec.msgpack.encode(past.snapshot()))
    assert restore([snapshot, *after]) == restore([*before, *after])
    assert restore([OPENED, *before, snapshot, *after]) == restore([snapshot, *after])


@settings(max_examples=300, deadline=None)
@given(entries=st.lists(entry, max_size=30))
def test_an_heir_has_a_valid_conversation_and_no_debts(entries: list[j.JournalEntry]) -> None:
    """Nothing of the old session's cost, children or approvals, and no call without its result."""
    restored = restore([heir(entries, origin="s-1")])
    assert restored.open is None and is_valid_conversation(restored.messages)
    assert not (restored.has_begun or restored.inbox or restored.usages or restored.children or restored.questions)
    assert restored.closed is None and not restored.is_paused and restored.resolutions == ()


def test_an_heir_goes_on_with_the_open_turn() -> None:
    """What was open is open, with its responses and results, and what waited still waits."""
    entries = [
        OPENED,
        *turn(1),
        j.UserSaid(text="more", turn=2),
        j.ModelCalled(turn=2, step=1, model="m"),
        responded(2, 1, "a", "b"),
        intended("a"),
        resolved("a"),
        intended("b"),
        j.InputAccepted(number=1, text="and this"),
    ]
    assert restore([heir(entries, origin="s-1", goes_on=True)]).open == restore(entries).open
    assert [m.text for m in restore([heir(entries, origin="s-1", goes_on=True)]).inbox] == ["and this"]


def test_an_heir_begins_where_it_is_told() -> None:
    """At a turn's end, at a checkpoint, or with nothing; turns count on from there."""
    entries = [
        OPENED,
        *turn(1),
        j.Checkpoint(name="here", turn=1, last_seq=9),
        *turn(2),
        j.TurnsRolledBack(turns=1, turn=1),
        *turn(3),
    ]

    assert len(said(heir(entries, origin="s-1"))) == 2
    assert [heir(entries, origin="s-1", turn=n).turn for n in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert [len(said(heir(entries, origin="s-1", turn=n))) for n in (0, 1, 2, 3)] == [0, 1, 2, 2]
    assert heir(entries, origin="s-1", checkpoint="here").turn == 1
    with pytest.raises(RefusedError, match="turn 4") as caught:
        heir(entries, origin="s-1", turn=4)
    assert caught.value.code == "no_such_turn" and "3" in caught.value.mend
    with pytest.raises(RefusedError, match="'there'") as caught:
        heir(entries, origin="s-1", checkpoint="there")
    assert "here" in caught.value.mend


def test_steers_join_where_they_were_heard() -> None:
    """Behind the results of the step, and no longer among what waits; those not heard yet wait for the open turn."""
    entries = [
        OPENED,
        j.UserSaid(text="the task", turn=1),
        j.ModelCalled(turn=1, step=1, model="m"),
        responded(1, 1, "a"),
        j.InputAccepted(number=1, text="s1", steer=True),
        j.InputAccepted(number=2, text="later"),
        intended("a"),
        resolved("a"),
        j.UserSteered(turn=1, step=2, number=1, text="s1"),
        j.InputAccepted(number=3, text="s3", steer=True),
    ]
    restored = restore(entries)
    assert restored.messages[-1] == UserMessage(text="s1") and is_valid_conversation(restored.messages)
    assert [m.number for m in restored.inbox] == [2, 3]
    assert restored.open is not None and restored.open.event.steers == (Steer(number=3, text="s3"),)
    assert restored.open.event.response is None and restored.open.event.step == 1


def test_turns_are_rolled_back_and_numbers_are_not() -> None:
    """What was forgotten is no part of the conversation, and no number is used again."""
    restored = restore([OPENED, *turn(1), *turn(2), *turn(3), j.TurnsRolledBack(turns=2, turn=1)])
    assert len(restored.messages) == 2 and restored.marks == (TurnMark(turn=1, at=0),)
    assert restored.turn == 3 and restored.ended is None and restored.text == "answer 1"
    assert len(restored.usages) == 3, "what was paid for stays paid for"
    again = restore([OPENED, *turn(1), *turn(2), j.TurnsRolledBack(turns=1, turn=1), *turn(3)])
    assert [m.turn for m in again.marks] == [1, 3] and len(again.messages) == 4


def test_a_pause_is_remembered() -> None:
    """Until it is taken back, whoever comes in between."""
    paused = [OPENED, j.SessionPaused(reason="lunch")]
    assert restore(paused).is_paused and restore([*paused, OPENED]).pause_reason == "lunch"
    assert not restore([*paused, j.SessionUnpaused()]).is_paused


def test_a_slice_replaces_the_conversation_and_keeps_the_turn() -> None:
    """The turn goes on behind its step, with the new conversation; it cannot be gone back beyond."""
    entries = [
        OPENED,
        *turn(1),
        j.UserSaid(text="more", turn=2),
        j.ModelCalled(turn=2, step=1, model="m"),
        responded(2, 1, "a"),
        intended("a"),
        resolved("a"),
        j.SliceEnded(turn=2, step=1, messages=(UserMessage(text="so far"),)),
    ]
    restored = restore(entries)
    assert restored.messages == (UserMessage(text="so far"),) and restored.marks == (TurnMark(turn=2, at=0),)
    assert restored.open is not None and (restored.open.event.turn, restored.open.event.step) == (2, 1)
    assert restored.open.event.response is None and not restored.open.is_model_call_open


def said(snapshot: j.Snapshot) -> list[str]:
    assert is_valid_conversation(snapshot.messages)
    return [m.text for m in snapshot.messages if isinstance(m, UserMessage)]


def test_an_heir_of_an_heir_has_the_whole_conversation() -> None:
    """Also if it has ended no turn of its own; and it begins at turns that it took over."""
    first = [OPENED, *turn(1, "one"), *turn(2, "two")]
    heritage = heir(first, origin="s-1")
    second: list[j.JournalEntry] = [heritage, OPENED]
    assert said(heir(second, origin="s-2", at_rest=True)) == ["one", "two"]
    assert said(heir([*second, *turn(3, "three")], origin="s-2", at_rest=True)) == ["one", "two", "three"]
    for number, expected in ((0, []), (1, ["one"]), (2, ["one", "two"])):
        found = heir(second, origin="s-2", turn=number)
        assert said(found) == expected and found.turn == number
    with pytest.raises(RefusedError):
        heir(second, origin="s-2", turn=3)


def test_an_heir_begins_before_the_turn_that_is_open() -> None:
    """At rest: neither what is not over yet nor what was rolled back is part of it."""
    open_turn = [j.UserSaid(text="open", turn=3), j.ModelCalled(turn=3, step=1, model="m"), responded(3, 1, "a")]
    rolled = [OPENED, *turn(1, "one"), *turn(2, "two"), j.TurnsRolledBack(turns=1, turn=1)]
    assert said(heir(rolled, origin="s-1", at_rest=True)) == ["one"]
    assert said(heir([*rolled, *open_turn], origin="s-1", at_rest=True)) == ["one"]
    assert said(heir([OPENED, *open_turn], origin="s-1", at_rest=True)) == []
    resumed = heir([OPENED, *turn(1, "one"), *open_turn], origin="s-1", goes_on=True)
    found = heir([resumed, OPENED], origin="s-2", at_rest=True)
    assert said(found) == ["one"] and not found.is_open


@settings(max_examples=300, deadline=None)
@given(entries=st.lists(entry, max_size=30), number=st.integers(0, 3))
def test_an_heir_at_rest_is_whole(entries: list[j.JournalEntry], number: int) -> None:
    """Whatever came before: no turn is open in it, and its conversation is valid; so too at the end of any turn."""
    for place in ({"at_rest": True}, {"turn": number}, {"checkpoint": "x"}):
        try:
            found = heir([Past().snapshot(), *entries], origin="s-1", **place)  # type: ignore[arg-type]
        except RefusedError:
            continue
        assert not found.is_open and is_valid_conversation(found.messages)


def test_calls_that_ran_at_a_checkpoint_keep_their_results() -> None:
    """What they did is done; a call that began later has not begun there."""
    entries = [
        OPENED,
        j.UserSaid(text="go", turn=1),
        j.ModelCalled(turn=1, step=1, model="m"),
        responded(1, 1, "a", "b", "c"),
        intended("a"),
        intended("b"),
        j.Checkpoint(name="here", turn=1, last_seq=1),
        resolved("a"),
        intended("c"),
        resolved("c"),
        resolved("b"),
        j.ModelCalled(turn=1, step=2, model="m"),
        responded(1, 2),
        j.TurnEnded(turn=1, outcome="completed"),
    ]
    results = heir(entries, origin="s-1", checkpoint="here").messages[-1]
    assert isinstance(results, ToolResults)
    assert [r.text for r in results.results][:2] == ["a done", "b done"]
    assert results.results[2].text.startswith("not started")


def test_notes_are_read_once_and_stay() -> None:
    """What the first turn was told every later one is, in this session and in those that go on from it; a successor
    is another agent, and reads for itself."""
    read = j.NotesRead(path="/p/OTTO.md", digest="d", size_bytes=1, text="x")
    assert restore([OPENED]).notes is None
    assert restore([OPENED, read, *turn(1)]).notes == read
    assert restore([OPENED, *turn(1)]).notes == j.NotesRead(), "there were none, and that is remembered"
    assert heir([OPENED, read, *turn(1)], origin="s-1").notes == read
    assert heir([OPENED, read, *turn(1)], origin="s-1", turn=0).notes is None
    calling = [j.UserSaid(text="hi", turn=1), j.ModelCalled(turn=1, step=1, model="m"), responded(1, 1, "a")]
    assert successor([OPENED, read, *calling], origin="s-1", call="a", told="gone").notes is None
