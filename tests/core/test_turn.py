"""The turn machine: always a valid conversation, whatever the model and the tools do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ottod.core.resume import restore
from ottod.core.turn import (
    BudgetReached,
    CallModel,
    CancelModel,
    CancelRequested,
    CancelTool,
    EndTurn,
    InputReceived,
    ModelFailed,
    ModelResponded,
    NoteSteers,
    OutOfTurn,
    PauseRequested,
    RunTool,
    Steer,
    SteerReceived,
    ToolResolved,
    TurnAction,
    TurnEvent,
    TurnMachine,
    TurnMark,
    TurnResumed,
    TurnsForgotten,
    UnpauseRequested,
    is_valid_conversation,
)
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.model import (
    Block,
    ModelResponse,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage


def said(*blocks: Block, stop: StopReason = "end") -> ModelResponded:
    return ModelResponded(response=ModelResponse(blocks=blocks, stop=stop, usage=Usage()))


def call(name: str) -> ToolCall:
    return ToolCall(call=name, tool="t")


def resolved(name: str) -> ToolResolved:
    return ToolResolved(result=ToolResult(call=name, tool="t", text=name))


def machine(max_steps: int = 10, max_parallel: int = 8) -> TurnMachine:
    return TurnMachine(max_steps=max_steps, max_parallel=max_parallel)


def test_a_plain_answer_ends_the_turn() -> None:
    """Input, one model call, text: completed, with the text."""
    m = machine()
    (action,) = m.step(InputReceived(text="hi"))
    assert isinstance(action, CallModel) and action.turn == action.step == 1
    (ended,) = m.step(said(Text(text="hello")))
    assert isinstance(ended, EndTurn) and (ended.outcome, ended.text, ended.steps) == ("completed", "hello", 1)


BUDGET = Failure(code="budget", message="used")


def test_at_a_budget_the_model_hands_back_what_it_has() -> None:
    """The call that does not fit is made as the last one: its text is the turn's, its tool calls are none."""
    m = machine()
    m.step(InputReceived(text="go"))
    m.step(said(Text(text="looking"), call("a"), stop="tool_calls"))
    m.step(resolved("a"))
    (last,) = m.step(BudgetReached(failure=BUDGET))
    assert isinstance(last, CallModel) and last.is_last and last.step == 2
    (ended,) = m.step(said(Text(text="half"), call("b"), stop="tool_calls"))
    assert isinstance(ended, EndTurn) and (ended.outcome, ended.text, ended.failure) == ("failed", "half", BUDGET)
    assert is_valid_conversation(m.messages)
    (plain,) = m.step(InputReceived(text="again"))
    assert isinstance(plain, CallModel) and not plain.is_last


@pytest.mark.parametrize(
    "event",
    [
        BudgetReached(failure=BUDGET),
        ModelFailed(failure=Failure(code="overloaded", message="busy")),
        said(),
    ],
)
def test_a_last_call_that_comes_to_nothing_leaves_what_was_said(event: TurnEvent) -> None:
    """The turn ends for its budget all the same, with the model's last word before."""
    m = machine()
    m.step(InputReceived(text="go"))
    m.step(said(Text(text="looking"), call("a"), stop="tool_calls"))
    m.step(resolved("a"))
    m.step(BudgetReached(failure=BUDGET))
    (ended,) = m.step(event)
    assert isinstance(ended, EndTurn) and (ended.text, ended.failure) == ("looking", BUDGET)
    assert is_valid_conversation(m.messages)


def test_an_answer_that_a_budget_cut_short_is_followed_by_the_last_call() -> None:
    """It is part of the conversation; one that the agent's own limit cut fails as ever."""
    m = machine()
    m.step(InputReceived(text="go"))
    response = ModelResponse(blocks=(Text(text="once upon"),), stop="max_tokens", usage=Usage())
    (last,) = m.step(ModelResponded(response=response, shortened=BUDGET))
    assert isinstance(last, CallModel) and last.is_last and last.step == 2
    assert len(last.messages) == 2


def test_a_turn_resumes_at_its_last_call() -> None:
    """With its answer it ends at once; without, the call is made again."""
    answer = ModelResponse(blocks=(Text(text="half"),), stop="end", usage=Usage())
    (ended,) = machine().step(TurnResumed(turn=3, step=2, response=answer, budget=BUDGET))
    assert isinstance(ended, EndTurn) and (ended.text, ended.failure) == ("half", BUDGET)
    (again,) = machine(max_steps=2).step(TurnResumed(turn=3, step=2, budget=BUDGET))
    assert isinstance(again, CallModel) and again.is_last


def test_results_go_back_in_call_order() -> None:
    """Calls finish in any order; the model gets their results in the order it made the calls."""
    m = machine()
    m.step(InputReceived(text="go"))
    actions = m.step(said(call("a"), call("b"), call("c"), stop="tool_calls"))
    assert [a.call.call for a in actions if isinstance(a, RunTool)] == ["a", "b", "c"]
    assert m.step(resolved("c")) == []
    assert m.step(resolved("a")) == []
    (again,) = m.step(resolved("b"))
    assert isinstance(again, CallModel) and again.step == 2
    last = again.messages[-1]
    assert isinstance(last, ToolResults) and [r.call for r in last.results] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "stop", "is_cut"),
    [
        ("{}", "max_tokens", True),
        (" ", "max_tokens", True),
        ('{"path": "a', "max_tokens", True),
        ('{"path": "a"}', "max_tokens", False),
        ("{}", "tool_calls", False),
        ('{"path": "a', "tool_calls", False),
    ],
)
def test_a_call_that_was_cut_is_not_started(arguments: str, stop: StopReason, is_cut: bool) -> None:
    """Empty arguments may be the beginning of others: the model is told to make the call again. Others are whole."""
    m = machine()
    m.step(InputReceived(text="go"))
    last = ToolCall(call="b", tool="t", arguments=arguments)
    first, second = m.step(said(call("a"), last, stop=stop))
    assert isinstance(first, RunTool) and first.failure is None, "what came before it came whole"
    assert isinstance(second, RunTool) and (second.failure is not None) == is_cut
    assert second.failure is None or (second.failure.code == "cut" and "again" in second.failure.mend)
    m.step(resolved("a"))
    (again,) = m.step(resolved("b"))
    assert isinstance(again, CallModel) and is_valid_conversation(again.messages)


def test_what_was_said_behind_a_call_says_that_it_is_whole() -> None:
    m = machine()
    m.step(InputReceived(text="go"))
    (run,) = m.step(said(call("a"), Text(text="and th"), stop="max_tokens"))
    assert isinstance(run, RunTool) and run.failure is None


@pytest.mark.parametrize("begun", [False, True])
def test_a_call_that_was_cut_is_not_started_by_the_next_process_either(begun: bool) -> None:
    """Unless an earlier one has begun it: then what became of it has to be found out."""
    event = said(call("a"), stop="max_tokens")
    names = frozenset({"a"} if begun else ())
    (run,) = machine().step(TurnResumed(turn=1, step=1, response=event.response, begun=names))
    assert isinstance(run, RunTool) and run.is_repeat == begun and (run.failure is None) == begun


def test_parallelism_is_bounded() -> None:
    """No more than `max_parallel` calls run at once; the next starts when one ends."""
    m = machine(max_parallel=2)
    m.step(InputReceived(text="go"))
    first = m.step(said(*(call(str(i)) for i in range(4)), stop="tool_calls"))
    assert len(first) == 2
    (third,) = m.step(resolved("1"))
    assert isinstance(third, RunTool) and third.call.call == "2"


def test_cancel_during_tools_waits_for_each_result() -> None:
    """Running tools are cancelled, waiting ones are answered without a start, and the conversation stays valid."""
    m = machine(max_parallel=1)
    m.step(InputReceived(text="go"))
    m.step(said(call("a"), call("b"), stop="tool_calls"))
    assert m.step(CancelRequested(reason="stop")) == [CancelTool(call="a")]
    assert m.step(CancelRequested(reason="again")) == []
    (ended,) = m.step(resolved("a"))
    assert isinstance(ended, EndTurn) and (ended.outcome, ended.reason) == ("cancelled", "stop")
    assert is_valid_conversation(m.messages)


def test_cancel_during_a_model_call_abandons_it() -> None:
    """The call that is out is cancelled and the turn ends at once."""
    m = machine()
    m.step(InputReceived(text="go"))
    actions = m.step(CancelRequested(reason="stop"))
    assert isinstance(actions[0], CancelModel) and isinstance(actions[1], EndTurn)
    assert m.phase == "idle"


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize(
    "blocks",
    [(), (Text(text="said"),), (Text(text="look"), call("a"), call("b")), (call("a"), call("a"))],
    ids=["nothing", "text", "calls", "wrong"],
)
def test_a_paid_answer_that_a_cancellation_overtook(blocks: tuple[Block, ...], is_last: bool) -> None:
    """It was in the journal and not heard of yet: the conversation is then what the journal says that it is."""
    failure = Failure(code="budget", message="spent")
    m = machine()
    m.step(InputReceived(text="go"))
    if is_last:
        m.step(BudgetReached(failure=failure))
    response = said(*blocks).response
    cancel, ended = m.step(CancelRequested(is_interrupt=True, response=response))
    assert isinstance(cancel, CancelModel) and isinstance(ended, EndTurn) and ended.is_interrupt
    entries: list[j.JournalEntry] = [
        j.SessionOpened(session="s-1", incarnation=1, agent="a", model="m", cwd="/", task="go"),
        j.UserSaid(text="go", turn=1),
        *([j.BudgetReached(turn=1, step=1, failure=failure)] if is_last else []),
        j.ModelCalled(turn=1, step=1, model="m"),
        j.ModelResponded(turn=1, step=1, response=response),
        j.TurnEnded(turn=1, outcome="cancelled", interrupted=True),
    ]
    restored = restore(entries)
    assert m.messages == restored.messages and is_valid_conversation(m.messages)
    assert restored.ended is not None and ended.text == restored.ended.text


def test_a_call_that_had_begun_is_not_said_to_be_unstarted() -> None:
    """An earlier incarnation began it, and the turn is cancelled before it could begin again: nobody knows."""
    m = machine()
    m.step(PauseRequested())
    response = said(call("a"), call("b")).response
    assert m.step(TurnResumed(turn=1, step=1, response=response, begun=frozenset({"a"}))) == []
    m.step(CancelRequested(is_interrupt=True))
    (results,) = (message for message in m.messages if isinstance(message, ToolResults))
    assert [result.text.partition(":")[0] for result in results.results] == ["unknown", "not started"]


def test_the_step_limit_ends_the_turn() -> None:
    """A model that calls tools for ever is stopped after `max_steps` calls, by name."""
    m = machine(max_steps=3)
    m.step(InputReceived(text="go"))
    for step in range(3):
        m.step(said(call(f"c{step}"), stop="tool_calls"))
        (action,) = m.step(resolved(f"c{step}"))
    assert isinstance(action, EndTurn) and action.failure is not None
    assert (action.outcome, action.failure.code, action.steps) == ("failed", "max_steps", 3)


@pytest.mark.parametrize(("stop", "code"), [("refusal", "refused"), ("max_tokens", "max_tokens")])
def test_a_cut_or_refused_answer_is_not_a_completed_turn(stop: StopReason, code: str) -> None:
    """Neither a refusal nor a cut answer counts as done."""
    m = machine()
    m.step(InputReceived(text="go"))
    (ended,) = m.step(said(Text(text="…"), stop=stop))
    assert isinstance(ended, EndTurn) and ended.failure is not None and ended.failure.code == code


def test_events_out_of_turn_raise_and_change_nothing() -> None:
    """A result nobody asked for is a defect of the caller."""
    m = machine()
    for event in (said(Text(text="x")), resolved("a"), ModelFailed(failure=Failure(code="x", message="x"))):
        with pytest.raises(OutOfTurn):
            m.step(event)
    assert (m.phase, m.messages, m.turn) == ("idle", (), 0)


def test_a_resumed_turn_goes_on_where_it_was() -> None:
    """A machine that is put into the middle of a turn does what the one that was there would have done."""
    first = machine()
    first.step(InputReceived(text="go"))
    before = first.messages
    first.step(said(call("a"), call("b"), stop="tool_calls"))
    first.step(resolved("b"))
    (wanted,) = first.step(resolved("a"))
    second = TurnMachine(max_steps=10, max_parallel=8, messages=before)
    response = said(call("a"), call("b"), stop="tool_calls").response
    results = (resolved("b").result, resolved("a").result)
    assert second.step(TurnResumed(turn=1, step=1, response=response, results=results)) == [wanted]
    assert second.messages == first.messages
    with pytest.raises(OutOfTurn):
        second.step(TurnResumed(turn=1))


def test_a_resumed_turn_keeps_its_limits() -> None:
    """What began again counts as a repetition, parallelism stays bounded, and a cancellation finds every call."""
    m = machine(max_parallel=1)
    response = said(call("a"), call("b"), call("c"), stop="tool_calls").response
    event = TurnResumed(
        turn=3, step=2, response=response, results=(resolved("a").result,), begun=frozenset({"b"}), text="x"
    )
    assert m.step(event) == [RunTool(turn=3, step=2, call=call("b"), is_repeat=True)]
    assert m.step(CancelRequested()) == [CancelTool(call="b")]
    (ended,) = m.step(resolved("b"))
    assert isinstance(ended, EndTurn) and ended.outcome == "cancelled" and is_valid_conversation(m.messages)
    limited = machine(max_steps=2)
    (over,) = limited.step(TurnResumed(turn=1, step=2, text="so far"))
    assert isinstance(over, EndTurn) and over.failure is not None
    assert (over.failure.code, over.text) == ("max_steps", "so far")


def steer(number: int) -> SteerReceived:
    return SteerReceived(steer=Steer(number=number, text=f"s{number}"))


def test_a_steer_joins_behind_the_results() -> None:
    """What is said while tools run is heard before the next model call, in the order in which it was said."""
    m = machine()
    m.step(InputReceived(text="go"))
    m.step(said(call("a"), call("b"), stop="tool_calls"))
    assert m.step(steer(1)) == [] and m.step(resolved("a")) == [] and m.step(steer(2)) == []
    note, again = m.step(resolved("b"))
    assert isinstance(note, NoteSteers) and [s.number for s in note.steers] == [1, 2] and note.step == 2
    assert isinstance(again, CallModel) and again.messages[-2:] == (UserMessage(text="s1"), UserMessage(text="s2"))
    assert isinstance(again.messages[-3], ToolResults) and is_valid_conversation(again.messages)
    (ended,) = m.step(said(Text(text="done")))
    assert isinstance(ended, EndTurn)


def test_a_steer_keeps_the_turn_from_ending() -> None:
    """Said while the model gives its last word, it is answered in the same turn."""
    m = machine()
    m.step(InputReceived(text="go"))
    m.step(steer(1))
    note, again = m.step(said(Text(text="done")))
    assert isinstance(note, NoteSteers) and isinstance(again, CallModel) and again.step == 2


@pytest.mark.parametrize("stop", ["refusal", "max_tokens"])
def test_a_steer_waits_when_the_turn_cannot_go_on(stop: StopReason) -> None:
    """A turn that fails, or has no step left, does not hear it, and nothing says that it did."""
    m = machine()
    m.step(InputReceived(text="go"))
    m.step(steer(1))
    (ended,) = m.step(said(Text(text="x"), stop=stop))
    assert isinstance(ended, EndTurn) and ended.outcome == "failed"
    m = machine(max_steps=1)
    m.step(InputReceived(text="go"))
    m.step(steer(1))
    (ended,) = m.step(said(Text(text="done")))
    assert isinstance(ended, EndTurn) and ended.outcome == "completed"
    (again,) = m.step(InputReceived(text="s1"))
    assert isinstance(again, CallModel)


def test_a_steer_without_a_turn_changes_nothing() -> None:
    """The message waits where it is kept, and the next turn begins with it."""
    m = machine()
    assert m.step(steer(1)) == [] and m.messages == ()
    (first,) = m.step(InputReceived(text="s1"))
    assert isinstance(first, CallModel) and first.messages == (UserMessage(text="s1"),)


def test_an_interrupt_keeps_finished_results() -> None:
    """The turn ends as cancelled, with what the tools had given, and says that the session is to stay."""
    m = machine()
    m.step(InputReceived(text="go"))
    m.step(said(call("a"), call("b"), stop="tool_calls"))
    m.step(resolved("a"))
    assert m.step(CancelRequested(reason="no", is_interrupt=True)) == [CancelTool(call="b")]
    (ended,) = m.step(ToolResolved(result=ToolResult(call="b", tool="t", text="cancelled", is_error=True)))
    assert isinstance(ended, EndTurn) and ended.outcome == "cancelled" and ended.is_interrupt
    last = m.messages[-1]
    assert isinstance(last, ToolResults) and [r.text for r in last.results] == ["a", "cancelled"]
    (again,) = m.step(InputReceived(text="other"))
    assert isinstance(again, CallModel) and is_valid_conversation(again.messages)


def test_a_paused_turn_begins_nothing_and_finishes_what_runs() -> None:
    """Waiting calls wait, the model is not called, and all of it happens once the pause is over."""
    m = machine(max_parallel=1)
    m.step(InputReceived(text="go"))
    m.step(said(call("a"), call("b"), stop="tool_calls"))
    assert m.step(PauseRequested()) == m.step(PauseRequested()) == []
    assert m.step(resolved("a")) == [] and m.phase == "tools"
    (run,) = m.step(UnpauseRequested())
    assert isinstance(run, RunTool) and run.call.call == "b"
    m.step(PauseRequested())
    assert m.step(resolved("b")) == [] and m.phase == "held"
    assert m.step(steer(1)) == []
    _, again = m.step(UnpauseRequested())
    assert isinstance(again, CallModel) and m.step(UnpauseRequested()) == []
    m.step(PauseRequested())
    (ended,) = m.step(said(Text(text="done")))
    assert isinstance(ended, EndTurn), "what needs no call is not held back"


@pytest.mark.parametrize("phase", ["tools", "held"])
def test_a_paused_turn_can_be_cancelled(phase: str) -> None:
    """Held calls get their results, and the turn ends, still paused."""
    m = machine(max_parallel=1)
    m.step(InputReceived(text="go"))
    m.step(said(call("a"), *([call("b")] if phase == "tools" else []), stop="tool_calls"))
    m.step(PauseRequested())
    m.step(resolved("a"))
    assert m.phase == phase
    (ended,) = m.step(CancelRequested(is_interrupt=True))
    assert isinstance(ended, EndTurn) and m.is_paused and is_valid_conversation(m.messages)


def test_a_turn_is_resumed_paused() -> None:
    """A machine that is paused when it takes a turn up begins nothing of it, also not what had begun before."""
    m = machine()
    m.step(PauseRequested())
    response = said(call("a"), stop="tool_calls").response
    assert m.step(TurnResumed(turn=1, step=1, response=response, begun=frozenset({"a"}))) == []
    assert m.step(UnpauseRequested()) == [RunTool(turn=1, step=1, call=call("a"), is_repeat=True)]


def test_turns_are_forgotten_from_the_end() -> None:
    """The conversation is what it was before them; the next turn counts on."""
    m = machine()
    for text in ("one", "two", "three"):
        m.step(InputReceived(text=text))
        m.step(said(Text(text=text)))
    assert [mark.turn for mark in m.marks] == [1, 2, 3]
    for turns in (0, 4):
        with pytest.raises(OutOfTurn):
            m.step(TurnsForgotten(turns=turns))
    assert m.step(TurnsForgotten(turns=2)) == []
    assert len(m.messages) == 2 and m.marks == (TurnMark(turn=1, at=0),)
    (again,) = m.step(InputReceived(text="four"))
    assert isinstance(again, CallModel) and again.turn == 4 and len(again.messages) == 3
    with pytest.raises(OutOfTurn):
        m.step(TurnsForgotten(turns=1))


class TurnsUnderFire(RuleBasedStateMachine):
    """Random models, tools, users and cancellations against the machine's promises."""

    def __init__(self) -> None:
        super().__init__()
        self.m = TurnMachine(max_steps=5, max_parallel=2)
        self.model_out = False
        self.is_paused = False
        self.steers: list[int] = []
        """Said to this turn and not heard yet."""
        self.steered = 0
        self.began: list[int] = []
        self.running: list[str] = []
        self.started: list[str] = []
        self.count = 0
        self.ends = 0
        self.turns = 0

    def obey(self, actions: list[TurnAction]) -> None:
        for action in actions:
            match action:
                case NoteSteers():
                    assert [s.number for s in action.steers] == self.steers and self.steers
                    self.steers = []
                case CallModel():
                    assert not self.model_out and not self.running and not self.is_paused
                    assert not self.steers, "whoever spoke was not heard at the first chance"
                    assert is_valid_conversation(action.messages)
                    self.model_out = True
                case RunTool():
                    assert not self.is_paused
                    assert action.call.call not in self.started
                    self.started.append(action.call.call)
                    self.running.append(action.call.call)
                    assert len(self.running) <= 2
                case CancelModel():
                    assert self.model_out
                    self.model_out = False
                case CancelTool():
                    assert action.call in self.running
                case EndTurn():
                    self.model_out = False
                    self.ends += 1
                    self.steers = []
                    assert not self.running

    @precondition(lambda self: self.m.phase == "idle")
    @rule()
    def begin(self) -> None:
        self.turns += 1
        self.began.append(len(self.m.messages))
        self.obey(self.m.step(InputReceived(text="go")))

    @precondition(lambda self: self.model_out)
    @rule(calls=st.integers(0, 4), text=st.booleans(), stop=st.sampled_from(["end", "max_tokens", "refusal"]))
    def respond(self, calls: int, text: bool, stop: StopReason) -> None:
        names = [f"c{self.count + i}" for i in range(calls)]
        self.count += calls
        blocks: list[Block] = [Text(text="x")] if text else []
        self.model_out = False
        self.obey(self.m.step(said(*blocks, *(call(n) for n in names), stop="tool_calls" if calls else stop)))

    @precondition(lambda self: self.model_out)
    @rule()
    def fail(self) -> None:
        self.model_out = False
        self.obey(self.m.step(ModelFailed(failure=Failure(code="x", message="x"))))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def resolve(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.running))
        self.running.remove(name)
        self.obey(self.m.step(resolved(name)))

    @rule(is_interrupt=st.booleans())
    def cancel(self, is_interrupt: bool) -> None:
        self.obey(self.m.step(CancelRequested(reason="stop", is_interrupt=is_interrupt)))

    @precondition(lambda self: self.model_out)
    @rule(calls=st.integers(0, 2))
    def cancel_unheard(self, calls: int) -> None:
        names = [f"c{self.count + i}" for i in range(calls)]
        self.count += calls
        response = said(Text(text="x"), *(call(n) for n in names)).response
        known = len(self.m.messages)
        self.obey(self.m.step(CancelRequested(is_interrupt=True, response=response)))
        assert len(self.m.messages) == known + (2 if calls else 1)

    @rule()
    def speak(self) -> None:
        self.steered += 1
        if self.m.phase != "idle":
            self.steers.append(self.steered)
        self.obey(self.m.step(steer(self.steered)))

    @rule()
    def pause(self) -> None:
        self.is_paused = True
        self.obey(self.m.step(PauseRequested()))

    @rule()
    def unpause(self) -> None:
        self.is_paused = False
        self.obey(self.m.step(UnpauseRequested()))

    @precondition(lambda self: self.m.phase == "idle" and self.began)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        turns = data.draw(st.integers(1, len(self.began)))
        at = self.began[-turns]
        del self.began[-turns:]
        self.obey(self.m.step(TurnsForgotten(turns=turns)))
        assert len(self.m.messages) == at

    @invariant()
    def idle_means_valid_and_ended(self) -> None:
        if self.m.phase == "idle":
            assert is_valid_conversation(self.m.messages)
            assert self.ends == self.turns
        else:
            assert self.ends == self.turns - 1
            assert self.model_out or self.running or self.is_paused
        assert [mark.at for mark in self.m.marks] == self.began


TestTurnsUnderFire = TurnsUnderFire.TestCase


@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3))
def test_validity_oracle_rejects_what_is_wrong(names: list[str]) -> None:
    """The oracle itself can say no: a result too few, or one too many, is not a valid conversation."""
    m = machine()
    m.step(InputReceived(text="go"))
    m.step(said(*(call(f"{n}{i}") for i, n in enumerate(names)), stop="tool_calls"))
    assert not is_valid_conversation(m.messages)
    stray = ToolResults(results=(ToolResult(call="zz", tool="t", text=""),))
    assert not is_valid_conversation((*m.messages, stray))


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([call("a"), call("a")], "same id"),
        ([call("x" * 300)], "characters"),
        ([call(str(i)) for i in range(200)], "200 tool calls"),
    ],
)
def test_calls_that_cannot_be_run_fail_the_turn(calls: list[ToolCall], why: str) -> None:
    """A model's output is a stranger's input: it ends the turn by name, and the conversation stays valid."""
    m = machine()
    m.step(InputReceived(text="go"))
    (ended,) = m.step(said(*calls, stop="tool_calls"))
    assert isinstance(ended, EndTurn) and ended.failure is not None
    assert ended.failure.code == "malformed" and why in ended.failure.message
    assert is_valid_conversation(m.messages)
    (again,) = m.step(InputReceived(text="again"))
    assert isinstance(again, CallModel)
