"""Restoring a session from its journal: nothing that is known is asked again, and the conversation stays valid."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ottod.core.resume import UNKNOWN, Restored, child_report, restore, unknown_result
from ottod.core.turn import (
    CallModel,
    CancelRequested,
    EndTurn,
    InputReceived,
    ModelFailed,
    ModelResponded,
    RunTool,
    ToolResolved,
    TurnAction,
    TurnEvent,
    TurnMachine,
    is_valid_conversation,
)
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.model import (
    AssistantMessage,
    Block,
    Message,
    ModelResponse,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage

OPENED = j.SessionOpened(session="s-0000000000", incarnation=1, agent="a", model="m", cwd="/", task="the task")
SAID = j.UserSaid(text="the task", turn=1)
CALLED = j.ModelCalled(turn=1, step=1, model="m")
A, B = ToolCall(call="a", tool="t"), ToolCall(call="b", tool="t")
CALLS = j.ModelResponded(
    turn=1, step=1, response=ModelResponse(blocks=(Text(text="look"), A, B), stop="tool_calls", usage=Usage(calls=1))
)
ANSWER = j.ModelResponded(
    turn=1, step=1, response=ModelResponse(blocks=(Text(text="done"),), stop="end", usage=Usage(calls=1))
)
ENDED = j.TurnEnded(turn=1, outcome="completed")


def intent(call: ToolCall, *, idempotent: bool) -> j.ToolIntended:
    return j.ToolIntended(
        turn=1, step=1, call=call.call, tool="t", arguments="{}", idempotent=idempotent, idempotency_key="k"
    )


def result(call: ToolCall) -> j.ToolResolved:
    return j.ToolResolved(
        turn=1, step=1, call=call.call, result=ToolResult(call=call.call, tool="t", text=f"{call.call} done")
    )


def resumed(entries: list[j.JournalEntry]) -> tuple[Restored, list[TurnAction]]:
    """What a journal amounts to, and the first orders of a machine that goes on from it."""
    restored = restore(entries)
    assert restored.open is not None
    machine = TurnMachine(max_steps=100, max_parallel=8, messages=restored.messages, turn=restored.turn)
    event = restored.open.event
    results = (*event.results, *(unknown_result(call) for call in restored.open.unknown))
    return restored, machine.step(replace(event, results=results))


def test_nothing_is_a_session_that_has_not_begun() -> None:
    """An empty journal gives an empty past."""
    assert restore([]) == Restored()


def test_a_task_waits_until_its_turn_begins() -> None:
    """The task is in the inbox from the opening until a turn takes it out."""
    assert [(m.number, m.text) for m in restore([OPENED]).inbox] == [(0, "the task")]
    assert restore([OPENED, SAID]).inbox == ()


def test_accepted_messages_wait_in_their_order() -> None:
    """Messages outlive their process, and the turn that begins with one takes out that one and no other."""
    accepted = [j.InputAccepted(number=n, text=f"m{n}", sender="x") for n in (1, 2, 3)]
    restored = restore([OPENED, SAID, *accepted, ENDED, j.UserSaid(text="m1", turn=2, number=1, sender="x")])
    assert [m.text for m in restored.inbox] == ["m2", "m3"]
    assert restored.newest_number == 3 and restored.turn == 2


def test_an_input_that_no_call_followed_is_announced_again() -> None:
    """Whether anybody heard of the turn is certain only once a model call of it was noted."""
    before, (first,) = resumed([OPENED, SAID])
    assert before.open is not None and not before.open.is_known and not before.open.is_model_call_open
    assert isinstance(first, CallModel) and first.step == 1 and first.messages == (UserMessage(text="the task"),)
    after, (again,) = resumed([OPENED, SAID, CALLED])
    assert after.open is not None and after.open.is_known and after.open.is_model_call_open
    assert again == first


def test_a_response_is_used_and_its_calls_begin() -> None:
    """Calls without an intent have not begun; they begin normally."""
    restored, actions = resumed([OPENED, SAID, CALLED, CALLS])
    assert actions == [RunTool(turn=1, step=1, call=A), RunTool(turn=1, step=1, call=B)]
    assert restored.usages == (Usage(calls=1),)


def test_intents_without_result_are_resolved_by_rule() -> None:
    """A harmless call begins again, another one is unknown, and neither has its intent noted twice."""
    entries = [OPENED, SAID, CALLED, CALLS, intent(A, idempotent=True), intent(B, idempotent=False)]
    restored, actions = resumed(entries)
    assert actions == [RunTool(turn=1, step=1, call=A, is_repeat=True)]
    assert restored.open is not None and restored.open.unknown == (B,)


def test_results_are_used() -> None:
    """With every result known the next model call follows at once, with all of them."""
    entries = [OPENED, SAID, CALLED, CALLS, intent(A, idempotent=False), intent(B, idempotent=False)]
    _, (action,) = resumed([*entries, result(B), result(A)])
    assert isinstance(action, CallModel) and action.step == 2
    last = action.messages[-1]
    assert isinstance(last, ToolResults) and [r.text for r in last.results] == ["a done", "b done"]


def test_an_answer_without_its_end_ends_the_turn() -> None:
    """The response was paid for; only the note that the turn is over is missing."""
    _, (action,) = resumed([OPENED, SAID, CALLED, ANSWER])
    assert isinstance(action, EndTurn) and (action.outcome, action.text) == ("completed", "done")


def test_a_turn_that_was_over_stays_over() -> None:
    """The end is restored with its text, and nothing is open."""
    restored = restore([OPENED, SAID, CALLED, ANSWER, ENDED])
    assert restored.open is None and restored.ended is not None and restored.text == "done"
    assert (restored.ended.outcome, restored.ended.steps) == ("completed", 1)
    assert restored.messages[-1] == AssistantMessage(blocks=(Text(text="done"),))


def test_a_cancelled_turn_leaves_a_valid_conversation() -> None:
    """Calls that waited when the turn was cancelled have a result, as the machine gave them one."""
    machine = TurnMachine(max_steps=9, max_parallel=1)
    entries = [OPENED, SAID, CALLED, CALLS, intent(A, idempotent=False), result(A)]
    ended = j.TurnEnded(turn=1, outcome="cancelled")
    for event in (
        InputReceived(text="the task"),
        ModelResponded(response=CALLS.response),
        CancelRequested(reason="x"),
        ToolResolved(result=result(A).result),
    ):
        machine.step(event)
    restored = restore([*entries, ended])
    assert restored.messages == machine.messages and is_valid_conversation(restored.messages)


def test_the_last_word_is_remembered() -> None:
    """A closed session is closed, until a later incarnation opens it again with its task."""
    closed = j.SessionClosed(cause=Cause(kind="completed"))
    entries = [OPENED, SAID, CALLED, ANSWER, ENDED, closed]
    assert restore(entries).closed == Cause(kind="completed")
    again = restore([*entries, replace(OPENED, incarnation=2)])
    assert again.closed is None and [m.text for m in again.inbox] == ["the task"] and len(again.messages) == 2


def test_a_session_that_closed_in_its_turn_has_no_open_turn() -> None:
    """Whoever begins it anew begins with a valid conversation."""
    closed = j.SessionClosed(cause=Cause(kind="cancelled"))
    restored = restore([OPENED, SAID, CALLED, CALLS, intent(A, idempotent=False), closed])
    assert restored.open is None and is_valid_conversation(restored.messages)
    assert restored.ended is not None and restored.ended.outcome == "cancelled"


def test_a_checkpoint_leaves_the_turn_open() -> None:
    """A suspended session goes on where it was."""
    checkpoint = j.Checkpoint(name="suspended", turn=1, last_seq=9)
    opened = replace(OPENED, incarnation=2, task="")
    assert resumed([OPENED, SAID, CALLED, checkpoint, opened])[1] == resumed([OPENED, SAID, CALLED])[1]


BUDGET = Failure(code="budget", message="used")


def test_a_session_at_its_last_call_comes_back_to_it() -> None:
    """Whatever of it was noted: the call is made, or its answer is the end."""
    reached = j.BudgetReached(turn=1, step=2, failure=BUDGET)
    before = [OPENED, SAID, CALLED, CALLS, intent(A, idempotent=False), intent(B, idempotent=False)]
    before += [result(B), result(A)]
    again = j.ModelCalled(turn=1, step=2, model="m", permit="1-2")
    for entries in ([*before, reached], [*before, reached, again]):
        _, (action,) = resumed(entries)
        assert isinstance(action, CallModel) and action.is_last and action.step == 2
        assert isinstance(action.messages[-1], ToolResults)
    answer = ModelResponse(blocks=(Text(text="half"), A), stop="end", usage=Usage(calls=1))
    entries = [*before, reached, again, j.ModelResponded(turn=1, step=2, response=answer, permit="1-2")]
    _, (ended,) = resumed(entries)
    assert isinstance(ended, EndTurn) and (ended.text, ended.failure) == ("half", BUDGET)
    over = restore([*entries, j.TurnEnded(turn=1, outcome="failed", failure=BUDGET)])
    assert over.ended is not None and over.ended.text == "half" and is_valid_conversation(over.messages)
    assert over.messages[-1] == AssistantMessage(blocks=(Text(text="half"),))


def test_attempts_are_known_by_their_permits() -> None:
    """With what they consumed, if they were answered; those of a version without permits are not there."""
    called = [j.ModelCalled(turn=1, step=1, model="m", permit=f"1-{n}", target=n) for n in (1, 2)]
    answer = ModelResponse(blocks=(), stop="end", usage=Usage(input_tokens=7, calls=1))
    attempts = restore(
        [OPENED, SAID, CALLED, *called, j.ModelResponded(turn=1, step=1, response=answer, permit="1-2")]
    ).attempts
    assert [(a.permit, a.target, a.usage) for a in attempts] == [
        ("1-1", 1, None),
        ("1-2", 2, Usage(input_tokens=7, calls=1)),
    ]


def test_children_and_their_reports() -> None:
    """A child without an end is live; a reported end waits for a turn like any message."""
    started = j.ChildStarted(child="s-1", agent="helper", key="k", is_reported=True)
    assert restore([OPENED, started]).children == (started,)
    ended = j.ChildEnded(child="s-1", agent="helper", cause=Cause(kind="completed"), result="42", number=1)
    restored = restore([OPENED, SAID, started, ended])
    assert restored.children == () and restored.ended_children == (ended,)
    assert restored.inbox == (child_report(ended),)
    assert "s-1 of agent helper has ended: completed" in restored.inbox[0].text and "42" in restored.inbox[0].text
    assert restore([OPENED, SAID, started, replace(ended, number=0)]).inbox == ()


def test_a_journal_of_the_first_version_is_understood() -> None:
    """Before messages had numbers, a turn's input was noted only when it began: the first took the task."""
    old = [OPENED, SAID, CALLED, ANSWER, ENDED, j.UserSaid(text="more", turn=2)]
    restored = restore(old)
    assert restored.inbox == () and restored.open is not None and restored.open.said == "more"


def test_the_bytes_of_the_first_version_are_read() -> None:
    """Entries as they were written before there were numbers, children and checkpoints of suspension."""
    old = [
        {
            "type": "session.opened",
            "session": "s",
            "incarnation": 1,
            "agent": "a",
            "model": "m",
            "cwd": "/",
            "task": "t",
        },
        {"type": "user.said", "text": "t", "turn": 1},
        {"type": "model.called", "turn": 1, "step": 1, "model": "m"},
    ]
    decoder = msgspec.msgpack.Decoder(j.JournalEntry)
    entries = [decoder.decode(msgspec.msgpack.encode(entry)) for entry in old]
    restored = restore(entries)
    assert restored.inbox == () and restored.open is not None and restored.open.is_model_call_open


# ---------------------------------------------------------------- any session, cut anywhere


class World:
    """A model, tools and users that always do the same in the same place."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.inputs = [f"input {n}" for n in range(Random(f"{seed} inputs").randint(0, 3))]
        self.max_parallel = Random(f"{seed} parallel").randint(1, 3)

    def response(self, turn: int, step: int) -> ModelResponse | Failure:
        rng = Random(f"{self.seed} {turn} {step}")
        if rng.random() < 0.1:
            return Failure(code="overloaded", message="no")
        calls = [ToolCall(call=f"c{turn}.{step}.{n}", tool="t") for n in range(rng.randint(0, 3) if step < 4 else 0)]
        if len(calls) > 1 and rng.random() < 0.1:
            calls[1] = calls[0]  # A malformed answer.
        blocks: list[Block] = [Thinking(text="hm")] if rng.random() < 0.3 else []
        blocks += [Text(text=f"said {turn}.{step}")] if rng.random() < 0.7 else []
        stop = "tool_calls" if calls else rng.choice(["end", "end", "max_tokens", "refusal"])
        return ModelResponse(blocks=(*blocks, *calls), stop=stop, usage=Usage(input_tokens=step, calls=1))  # type: ignore[arg-type]

    def is_idempotent(self, call: str) -> bool:
        return Random(f"{self.seed} {call}").random() < 0.5


class Life:
    """One incarnation, driven to the end of everything: what `ottod.worker` does, without the doing."""

    def __init__(self, world: World, journal: list[j.JournalEntry], rng: Random) -> None:
        self.world, self.journal, self.rng = world, journal, rng
        self.model_calls: list[tuple[int, int]] = []
        self.tool_runs: list[str] = []
        restored = restore(journal)
        task = "" if restored.has_begun else "the task"
        journal.append(replace(OPENED, task=task))
        self.inbox = [(m.number, m.text) for m in restored.inbox] + ([(0, task)] if task else [])
        self.newest = restored.newest_number
        self.machine = TurnMachine(
            max_steps=6, max_parallel=world.max_parallel, messages=restored.messages, turn=restored.turn
        )
        if restored.open is not None:
            event = restored.open.event
            for call in restored.open.unknown:
                found = unknown_result(call)
                journal.append(j.ToolResolved(turn=event.turn, step=event.step, call=call.call, result=found))
            results = (*event.results, *(unknown_result(call) for call in restored.open.unknown))
            self.turn(replace(event, results=results))
        while True:
            self.hear()
            if not self.inbox:
                if self.newest == len(world.inputs):
                    return
                continue
            number, text = self.inbox.pop(0)
            journal.append(j.UserSaid(text=text, turn=self.machine.turn + 1, number=number))
            self.turn(InputReceived(text=text))

    def hear(self) -> None:
        """Somebody may say something, at any moment."""
        if self.newest < len(self.world.inputs) and self.rng.random() < 0.5:
            self.newest += 1
            text = self.world.inputs[self.newest - 1]
            self.journal.append(j.InputAccepted(number=self.newest, text=text))
            self.inbox.append((self.newest, text))

    def turn(self, event: TurnEvent) -> None:
        running: list[ToolCall] = []
        pending = [event]
        while True:
            for action in self.machine.step(pending.pop()):
                match action:
                    case CallModel():
                        pending.append(self.call_model(action))
                    case RunTool():
                        self.begin_tool(action)
                        running.append(action.call)
                    case EndTurn():
                        ended = j.TurnEnded(turn=action.turn, outcome=action.outcome, failure=action.failure)
                        self.journal.append(ended)
                        return
            self.hear()
            if not pending:
                call = running.pop(self.rng.randrange(len(running)))
                found = ToolResult(call=call.call, tool="t", text=f"{call.call} done")
                entry = j.ToolResolved(
                    turn=self.machine.turn, step=self.machine.step_number, call=call.call, result=found
                )
                self.journal.append(entry)
                pending.append(ToolResolved(result=found))

    def call_model(self, action: CallModel) -> TurnEvent:
        assert is_valid_conversation(action.messages)
        self.model_calls.append((action.turn, action.step))
        self.journal.append(j.ModelCalled(turn=action.turn, step=action.step, model="m"))
        response = self.world.response(action.turn, action.step)
        if isinstance(response, Failure):
            return ModelFailed(failure=response)
        self.journal.append(j.ModelResponded(turn=action.turn, step=action.step, response=response))
        return ModelResponded(response=response)

    def begin_tool(self, action: RunTool) -> None:
        call = action.call.call
        self.tool_runs.append(call)
        if not action.is_repeat:
            idempotent = self.world.is_idempotent(call)
            entry = j.ToolIntended(
                turn=action.turn,
                step=action.step,
                call=call,
                tool="t",
                arguments="{}",
                idempotent=idempotent,
                idempotency_key=call,
            )
            self.journal.append(entry)


def without_results(messages: tuple[Message, ...], unknown: set[str]) -> list[Message]:
    """The conversation with the results of these calls left out of account."""
    return [
        ToolResults(results=tuple(replace(r, text="", is_error=False) if r.call in unknown else r for r in m.results))
        if isinstance(m, ToolResults)
        else m
        for m in messages
    ]


def go_on(world: World, known: list[j.JournalEntry], seed: str, oracle: tuple[Message, ...]) -> list[j.JournalEntry]:
    """Goes on from a cut journal to the end, and compares with the life that was never cut."""
    journal = list(known)
    life = Life(world, journal, Random(seed))
    responded = {(e.turn, e.step) for e in known if isinstance(e, j.ModelResponded)}
    assert not responded & set(life.model_calls), "a response that was paid for was asked for again"
    resolved = {e.call for e in known if isinstance(e, j.ToolResolved)}
    assert not resolved & set(life.tool_runs), "a call with a result was made again"
    intended = {e.call: e.idempotent for e in known if isinstance(e, j.ToolIntended)}
    lost = {call for call, idempotent in intended.items() if not idempotent and call not in resolved}
    assert not lost & set(life.tool_runs), "an effect of which nobody knows was repeated"
    unknown = {e.call for e in journal if isinstance(e, j.ToolResolved) and e.result.text == UNKNOWN}
    assert lost <= unknown
    assert all(not world.is_idempotent(call) for call in unknown)
    assert is_valid_conversation(life.machine.messages)
    assert without_results(life.machine.messages, unknown) == without_results(oracle, unknown)
    assert restore(journal).messages == life.machine.messages
    assert sum(isinstance(e, j.UserSaid) for e in journal) == len(world.inputs) + 1
    responses = [e.response.usage for e in journal if isinstance(e, j.ModelResponded)]
    assert list(restore(journal).usages) == responses
    return journal


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_a_session_cut_anywhere_becomes_the_session_that_was_not_cut(seed: int) -> None:
    """Whatever happened, and wherever it stopped, twice: nothing known is repeated, nothing said is lost."""
    world = World(seed)
    whole: list[j.JournalEntry] = []
    oracle = Life(world, whole, Random(seed)).machine.messages
    rng = Random(seed)
    for cut in range(len(whole) + 1):
        journal = go_on(world, whole[:cut], f"{seed} {cut}", oracle)
        again = rng.randint(cut, len(journal))
        go_on(world, journal[:again], f"{seed} {cut} {again}", oracle)


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_sees_sessions_worth_the_name(seed: int) -> None:
    """The random sessions have calls, messages and more than one turn, or the test above would show nothing."""
    kinds: set[type] = set()
    for n in range(20):
        journal: list[j.JournalEntry] = []
        Life(World(seed * 20 + n), journal, Random(n))
        kinds |= {type(entry) for entry in journal}
    assert kinds >= {j.InputAccepted, j.UserSaid, j.ModelResponded, j.ToolIntended, j.ToolResolved, j.TurnEnded}
