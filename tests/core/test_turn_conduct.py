"""What the turn machine does about a model that gets nowhere, about answers that are none, and when shortened."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ottod.core.answer import is_complaint
from ottod.core.conduct import Conduct
from ottod.core.context import cut_at, is_cut_place
from ottod.core.past import Past
from ottod.core.turn import (
    BeginAnew,
    CallModel,
    EndTurn,
    InputReceived,
    ModelResponded,
    NoteSteers,
    RunTool,
    Shortened,
    Steer,
    SteerReceived,
    TellFindings,
    ToolResolved,
    TurnAction,
    TurnMachine,
    TurnResumed,
    is_valid_conversation,
)
from ottod.protocol import journal as j
from ottod.protocol.model import Block, ModelResponse, Text, ToolCall, ToolResult, UserMessage
from ottod.protocol.specs import AgentSpec, Health, LoopRule
from ottod.protocol.usage import Usage

SCHEMA: dict[str, Any] = {"type": "object", "required": ["n"]}
LOOP = {"after": 2}


def machine(max_steps: int = 20, **spec: Any) -> TurnMachine:
    return TurnMachine(max_steps=max_steps, max_parallel=4, conduct=Conduct(AgentSpec(name="a", **spec)))


def said(*blocks: Block) -> ModelResponded:
    return ModelResponded(response=ModelResponse(blocks=blocks, stop="end", usage=Usage(input_tokens=10)))


def use(m: TurnMachine, name: str, text: str = "same", *, is_error: bool = False) -> list[TurnAction]:
    """The model calls a tool and gets that result."""
    (run,) = m.step(said(ToolCall(call=name, tool="shell")))
    assert isinstance(run, RunTool)
    return m.step(ToolResolved(result=ToolResult(call=name, tool="shell", text=text, is_error=is_error)))


def test_a_warning_joins_the_conversation_behind_the_results() -> None:
    """The finding is told, noted as something said to the model, and the model is called; others come after it."""
    m = machine(health=Health(loop=LoopRule(after=2)))
    m.step(InputReceived(text="go"))
    assert len(use(m, "a")) == 1
    (run,) = m.step(said(ToolCall(call="b", tool="shell")))
    assert isinstance(run, RunTool)
    m.step(SteerReceived(steer=Steer(number=3, text="hurry")))
    told, noted, called = m.step(ToolResolved(result=ToolResult(call="b", tool="shell", text="same")))
    assert isinstance(told, TellFindings) and [f.kind for f in told.findings] == ["loop"]
    assert isinstance(noted, NoteSteers) and [s.number for s in noted.steers] == [-1, 3]
    assert isinstance(called, CallModel) and is_valid_conversation(called.messages)
    assert [m.text[:9] for m in called.messages[-2:] if isinstance(m, UserMessage)] == ["[The same", "hurry"]


def test_a_turn_that_is_stopped_fails_as_unhealthy() -> None:
    """The conversation stays valid, and the failure says which rule."""
    m = machine(health=Health(loop=LoopRule(after=2, do="stop")))
    m.step(InputReceived(text="go"))
    use(m, "a")
    told, ended = use(m, "b")
    assert isinstance(told, TellFindings) and isinstance(ended, EndTurn) and ended.failure is not None
    assert (ended.outcome, ended.failure.code) == ("failed", "unhealthy") and is_valid_conversation(m.messages)


def test_work_begun_anew_has_less_room() -> None:
    """What was said is gone but for the input; half of the steps are left, one tool runs at a time, and a second time
    there is no third."""
    m = machine(max_steps=12, health=Health(loop=LoopRule(after=2, do="restart")))
    m.step(InputReceived(text="go"))
    use(m, "a")
    _, anew, called = use(m, "b")
    assert isinstance(anew, BeginAnew) and anew.step == 2 and isinstance(called, CallModel) and called.step == 3
    assert called.messages == (UserMessage(text="go"), UserMessage(text=anew.text)) and "shell {}" in anew.text
    runs = m.step(said(ToolCall(call="c", tool="shell"), ToolCall(call="d", tool="t")))
    assert len(runs) == 1
    m.step(ToolResolved(result=ToolResult(call="c", tool="shell", text="1")))
    m.step(ToolResolved(result=ToolResult(call="d", tool="t", text="2")))
    step, actions = 4, []
    while not isinstance(actions[-1] if actions else None, EndTurn):
        actions = use(m, f"x{step}", f"news {step}")
        step += 1
    (ended,) = actions
    assert isinstance(ended, EndTurn) and ended.failure is not None
    assert (ended.failure.code, ended.steps) == ("max_steps", 7)
    m.step(InputReceived(text="again"))
    for name in "efgh":
        actions = use(m, name)
    assert isinstance(actions[-1], EndTurn) and actions[-1].failure is not None
    assert actions[-1].failure.code == "unhealthy"


def test_an_answer_that_is_none_is_asked_for_again() -> None:
    """Told what is wrong with it; accepted when it fits; failed when it never does."""
    m = machine(output_schema=SCHEMA, output_retries=1)
    m.step(InputReceived(text="go"))
    noted, called = m.step(said(Text(text="{}")))
    assert isinstance(noted, NoteSteers) and isinstance(called, CallModel) and called.step == 2
    assert isinstance(called.messages[-1], UserMessage) and is_complaint(called.messages[-1])
    (ended,) = m.step(said(Text(text='{"n": 1}')))
    assert isinstance(ended, EndTurn) and ended.outcome == "completed"
    m.step(InputReceived(text="go"))
    m.step(said(Text(text="{}")))
    (ended,) = m.step(said(Text(text="{}")))
    assert isinstance(ended, EndTurn) and ended.failure is not None and ended.failure.code == "bad_output"


def test_what_was_said_meanwhile_comes_before_the_check() -> None:
    """An answer that is not the last word is not judged."""
    m = machine(output_schema=SCHEMA)
    m.step(InputReceived(text="go"))
    m.step(SteerReceived(steer=Steer(number=1, text="wait")))
    noted, _ = m.step(said(Text(text="no JSON")))
    assert isinstance(noted, NoteSteers) and [s.text for s in noted.steers] == ["wait"]


def test_a_shortened_conversation_goes_on() -> None:
    """While a model call is out, or between turns; turns that became part of the summary cannot be gone back to."""
    m = machine()
    for text in ("one", "two"):
        m.step(InputReceived(text=text))
        use(m, f"{text}-a", text)
        m.step(said(Text(text=text)))
    m.step(InputReceived(text="three"))
    before = m.messages
    assert [mark.turn for mark in m.marks] == [1, 2, 3] and len(before) == 9
    assert m.step(Shortened(at=5, summary="so far")) == []
    assert m.messages[0] == before[0] and m.messages[2:] == before[5:]
    assert [(mark.turn, mark.at) for mark in m.marks] == [(3, 5)] and m.messages[5] == UserMessage(text="three")
    (ended,) = m.step(said(Text(text="end")))
    assert isinstance(ended, EndTurn) and is_valid_conversation(m.messages)


# ---------------------------------------------------------------- the journal says the same


class Session:
    """A machine and the journal that a worker would keep; and what a later incarnation makes of it."""

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec
        self.entries: list[j.JournalEntry] = []
        self.machine = TurnMachine(max_steps=30, max_parallel=4, conduct=Conduct(spec))
        self.ended: EndTurn | None = None
        self.out: CallModel | None = None
        self.calls: list[RunTool] = []

    def take(self, actions: list[TurnAction]) -> None:
        for action in actions:
            match action:
                case NoteSteers():
                    self.entries += [
                        j.UserSteered(
                            turn=action.turn, step=action.step, number=s.number, text=s.text, sender=s.sender
                        )
                        for s in action.steers
                    ]
                case BeginAnew():
                    self.entries.append(j.TurnBegunAnew(turn=action.turn, step=action.step, text=action.text))
                case CallModel():
                    self.entries.append(j.ModelCalled(turn=action.turn, step=action.step, model="m"))
                    self.out = action
                case RunTool():
                    if not action.is_repeat:
                        self.entries.append(
                            j.ToolIntended(
                                turn=action.turn, step=action.step, call=action.call.call, tool=action.call.tool,
                                arguments="{}", idempotent=True, idempotency_key="k",
                            )
                        )  # fmt: skip
                    self.calls.append(action)
                case EndTurn():
                    self.entries.append(j.TurnEnded(turn=action.turn, outcome=action.outcome, failure=action.failure))
                    self.ended = action
                case _:
                    pass

    def begin(self, text: str) -> None:
        self.ended = None
        self.entries.append(j.UserSaid(text=text, turn=self.machine.turn + 1))
        self.take(self.machine.step(InputReceived(text=text)))

    def respond(self, *blocks: Block) -> None:
        assert self.out is not None
        turn, step, self.out = self.out.turn, self.out.step, None
        event = said(*blocks)
        self.entries.append(j.ModelResponded(turn=turn, step=step, response=event.response))
        self.take(self.machine.step(event))

    def resolve(self, text: str) -> None:
        run = self.calls.pop(0)
        result = ToolResult(call=run.call.call, tool=run.call.tool, text=text)
        self.entries.append(j.ToolResolved(turn=run.turn, step=run.step, call=result.call, result=result))
        self.take(self.machine.step(ToolResolved(result=result)))

    def shorten(self, keep: int, summary: str) -> None:
        messages = self.machine.messages
        at = cut_at(messages, list(range(len(messages) + 1)), keep_tokens=keep)
        if at is None:
            return
        assert is_cut_place(messages, at)
        self.entries.append(j.ConversationShortened(turn=self.machine.turn, step=0, at=at, summary=summary))
        self.machine.step(Shortened(at=at, summary=summary))

    def killed(self, *, lost: int = 0) -> None:
        """The worker is lost, with up to `lost` entries that followed from the newest fact and were not yet noted;
        another incarnation has the journal, as it is or rotated into one entry."""
        follows = (j.UserSteered, j.TurnBegunAnew, j.ModelCalled, j.ToolIntended)
        while lost and isinstance(self.entries[-1], follows):
            self.entries.pop()
            lost -= 1
        past = Past()
        for entry in self.entries:
            past.take(entry)
        rotated = Past()
        rotated.take(past.snapshot())
        restored = past.restored()
        assert rotated.restored() == restored
        conduct = Conduct(self.spec)
        self.machine = TurnMachine(
            max_steps=30, max_parallel=4, messages=restored.messages, turn=restored.turn, marks=restored.marks,
            conduct=conduct,
        )  # fmt: skip
        self.out, self.calls = None, []
        if restored.open is not None:
            assert not restored.open.unknown
            self.take(self.machine.step(restored.open.event))


MOVES = st.lists(
    st.tuples(st.sampled_from(["call", "answer", "steer", "shorten", "elide"]), st.integers(0, 3)), max_size=25
)
SPEC = AgentSpec(
    name="a",
    health=Health(loop=LoopRule(after=2, do="restart")),
    output_schema=SCHEMA,
    output_retries=2,
)


def play(moves: list[tuple[str, int]], *, kills: frozenset[int], spec: AgentSpec) -> Session:
    session = Session(spec)
    session.begin("task")
    for n, (move, x) in enumerate(moves):
        if n in kills:
            session.killed(lost=x)
        if session.ended is not None:
            session.begin(f"input {n}")
        if session.calls:
            session.resolve(f"result {x % 2}")
        elif move == "shorten" and session.out is not None:
            session.shorten(keep=x, summary=f"summary {n}")
        elif move == "elide" and session.out is not None:
            session.shorten(keep=x, summary="")
        elif move == "call":
            session.respond(*(ToolCall(call=f"c{n}-{i}", tool="shell") for i in range(1 + x % 2)))
        else:
            session.respond(Text(text='{"n": 1}' if x % 2 else "no"))
    return session


@given(MOVES, st.frozensets(st.integers(0, 25), max_size=5))
def test_a_lost_incarnation_changes_nothing(moves: list[tuple[str, int]], kills: frozenset[int]) -> None:
    """Warned, begun anew, asked again and shortened, with the process lost anywhere: the same conversation, the same
    ends, and valid at every call."""
    spec = SPEC if len(moves) % 2 else replace(SPEC, health=Health(loop=LoopRule(after=2)))
    undisturbed = play(moves, kills=frozenset(), spec=spec)
    session = play(moves, kills=kills, spec=spec)
    assert session.machine.messages == undisturbed.machine.messages
    assert (session.machine.turn, session.ended) == (undisturbed.machine.turn, undisturbed.ended)
    assert session.machine.marks == undisturbed.machine.marks
    if not session.calls:
        assert is_valid_conversation(session.machine.messages) or session.out is None


def test_a_resumed_turn_knows_that_it_was_begun_anew() -> None:
    """Its second attempt is its last also in another process."""
    session = Session(replace(SPEC, output_schema={}))
    session.begin("task")
    for n in range(4):
        session.killed()
        session.respond(ToolCall(call=f"c{n}", tool="shell"))
        session.killed()
        session.resolve("same")
    assert session.ended is not None and session.ended.failure is not None
    assert session.ended.failure.code == "unhealthy"
    assert sum(isinstance(e, j.TurnBegunAnew) for e in session.entries) == 1


def test_a_resumed_machine_without_conduct_is_as_before() -> None:
    """Nothing is added for those who ask for nothing."""
    m = TurnMachine(max_steps=3, max_parallel=1)
    assert len(m.step(TurnResumed(turn=1))) == 1
