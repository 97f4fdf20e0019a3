"""A session and those below it: waited for, told of, stopped, and never started twice."""

from __future__ import annotations

import pytest

from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.birth import ChildNotice
from ottod.protocol.cause import Cause
from ottod.protocol.events import (
    ChildExited,
    ChildStarted,
    LogWarning,
    MessageReceived,
    SessionStateChanged,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    TurnCancelled,
    TurnCompleted,
)
from ottod.protocol.worker import StopTurn
from ottod.protocol.worker_requests import SpawnChild, StopChild
from tests.fakes.fake_root import FakeRoot

DONE = Cause(kind="completed")
WORK = {"name": "shell", "arguments": {"command": "while [ ! -e on ]; do sleep 0.05; done"}}


def spawn(agent: str = "helper", **arguments: object) -> dict[str, object]:
    return {"name": "spawn_agent", "arguments": {"agent": agent, "task": f"do {agent}", **arguments}}


def spawned(root: FakeRoot, count: int = 1) -> None:
    root.until("the children", lambda: sum(isinstance(r, SpawnChild) for r in root.requests) == count)
    root.until("their events", lambda: len(root.of(ChildStarted)) == count)


def test_a_call_waits_for_its_child(root_with_children: FakeRoot) -> None:
    """The child's last answer is the call's result; meanwhile the session says that it waits."""
    root = root_with_children
    root.script({"tools": [spawn(title="help", model="fast")]}, {"text": "I heard: ${last_tool_result}"})
    root.bear("spawn_agent")
    spawned(root)
    (asked,) = root.requests
    assert isinstance(asked, SpawnChild) and asked.key == f"{root.session}/1/1/call_1_1"
    assert (asked.agent, asked.task, asked.title, asked.model) == ("helper", "do helper", "help", "fast")
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    assert root.command(ChildNotice(child="s-child1", agent="helper")) is None
    assert root.command(ChildNotice(child="s-child1", agent="helper", cause=DONE, result="42")) is None
    word = root.finish()
    assert word.cause.kind == "completed"
    assert word.result == "I heard: session s-child1 of agent helper: completed\n\n42"
    assert [(e.child, e.agent) for e in root.of(ChildStarted)] == [("s-child1", "helper")]
    (exited,) = root.of(ChildExited)
    assert exited.result == "42" and exited.cause == DONE
    assert not root.of(MessageReceived), "a result that a call waited for is told once"
    states = [e.state for e in root.of(SessionStateChanged)]
    assert states[states.index("waiting_children") + 1] == "running"


def test_children_of_one_answer_run_side_by_side(root_with_children: FakeRoot) -> None:
    """One that takes long, or waits for somebody's leave, holds up none of its siblings."""
    root = root_with_children
    root.script({"tools": [spawn("slow"), spawn("quick"), spawn("failing")]}, {"text": "${last_tool_result}"})
    root.bear("spawn_agent")
    spawned(root, 3)
    root.command(ChildNotice(child="s-child2", agent="quick", cause=DONE, result="quick result"))
    root.until("the quick one is back", lambda: [e.call for e in root.of(ToolCompleted)] == ["call_1_2"])
    root.command(ChildNotice(child="s-child3", agent="failing", cause=Cause(kind="failed", message="no luck")))
    root.until("the failure", lambda: root.of(ToolFailed))
    root.command(ChildNotice(child="s-child1", agent="slow", cause=DONE, result="slow result"))
    word = root.finish()
    assert word.result.index("slow result") < word.result.index("quick result") < word.result.index("failed")


def test_a_child_that_cannot_be_started_is_a_failed_call(root: FakeRoot) -> None:
    """Root's refusal goes to the model, with its mend."""
    root._answer = lambda body: Failure(code="unknown_agent", message="no agent 'helper'", mend="ottoctl agent list")
    root.script({"tools": [spawn()]}, {"text": "${last_tool_result}"})
    root.bear("spawn_agent")
    assert root.finish().result == "no agent 'helper'\nottoctl agent list"
    (failed,) = root.of(ToolFailed)
    assert failed.failure.code == "unknown_agent"


def test_a_resumed_call_gets_the_same_child(root_with_children: FakeRoot) -> None:
    """Killed while it waits: the next incarnation asks with the same key, and waits for the same child."""
    root = root_with_children
    root.script({"tools": [spawn()]}, {"text": "I heard: ${last_tool_result}"})
    root.bear("spawn_agent")
    spawned(root)
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    root.kill()
    root.bear("spawn_agent", children=(ChildNotice(child="s-child1", agent="helper"),))
    root.until("it asks again", lambda: len(root.requests) == 2)
    assert root.requests[0] == root.requests[1]
    root.command(ChildNotice(child="s-child1", agent="helper", cause=DONE, result="42"))
    assert "42" in root.finish().result
    assert len(root.of(ChildStarted)) == 1 and len(root.of(ToolStarted)) == 2
    assert sum(isinstance(e, j.ChildStarted) for e in root.journal()) == 1


def test_a_child_that_ended_while_nobody_listened_is_heard_of(root_with_children: FakeRoot) -> None:
    """Its end comes with the birth of the next incarnation, and the repeated call has its result."""
    root = root_with_children
    root.script({"tools": [spawn()]}, {"text": "${last_tool_result}"})
    root.bear("spawn_agent")
    spawned(root)
    root.until("it is noted", lambda: any(isinstance(e, j.ChildStarted) for e in root.journal()))
    root.kill()
    root.bear("spawn_agent", children=(ChildNotice(child="s-child1", agent="helper", cause=DONE, result="42"),))
    assert "42" in root.finish().result
    assert len(root.of(ChildExited)) == 1


def test_an_end_that_nobody_waits_for_is_a_message(root_with_children: FakeRoot) -> None:
    """Work done, the session waits for its children before it ends; the result begins another turn."""
    root = root_with_children
    root.script({"tools": [spawn(wait=False)]}, {"text": "later"}, {"text": "now: ${input}"})
    root.bear("spawn_agent")
    root.until_event(TurnCompleted)
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    root.command(ChildNotice(child="s-child1", agent="helper", cause=DONE, result="42"))
    word = root.finish()
    assert word.cause.kind == "completed"
    assert word.result == "now: [session s-child1 of agent helper has ended: completed]\n\n42"
    (message,) = root.of(MessageReceived)
    assert message.sender == "s-child1"


def test_such_a_message_outlives_the_process(root_with_children: FakeRoot) -> None:
    """Told during a turn, killed before its own turn began: it is neither lost nor told twice."""
    root = root_with_children
    sleep = {"name": "shell", "arguments": {"command": "sleep 300"}}
    root.script({"tools": [spawn(wait=False)]}, {"tools": [sleep]}, {"text": "later"}, {"text": "now: ${input}"})
    root.bear("spawn_agent", "shell")
    root.until("it sleeps", lambda: len(root.of(ToolStarted)) == 2)
    notice = ChildNotice(child="s-child1", agent="helper", cause=DONE, result="42")
    assert root.command(notice) is None
    root.kill()
    root.bear("spawn_agent", "shell", children=(notice,))
    word = root.finish()
    assert word.result.startswith("now: ") and "42" in word.result
    assert len(root.of(MessageReceived)) == 1 and len(root.of(ChildExited)) == 1


def test_a_child_that_somebody_else_put_there_is_only_waited_for(root: FakeRoot) -> None:
    """Its result is its own: no message, no turn, but the parent does not end before it."""
    root.script({"tools": [WORK]}, {"text": "mine"})
    root.bear("shell")
    root.until_event(ToolStarted)
    root.command(ChildNotice(child="s-guest", agent="guest"))
    (root.workdir / "on").touch()
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    assert root.last_word is None
    root.command(ChildNotice(child="s-guest", agent="guest", cause=DONE, result="its own"))
    assert root.finish().result == "mine"
    assert len(root.of(TurnCompleted)) == 1 and not root.of(MessageReceived)


def test_a_resumed_parent_waits_again(root: FakeRoot) -> None:
    """Its own work was over; the incarnation that follows waits for what lives, and does nothing else."""
    root.script({"tools": [WORK]}, {"text": "mine"})
    root.bear("shell")
    root.until_event(ToolStarted)
    root.command(ChildNotice(child="s-guest", agent="guest"))
    (root.workdir / "on").touch()
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    root.kill()
    root.bear("shell", children=(ChildNotice(child="s-guest", agent="guest"),))
    root.until_event(SessionStateChanged, state="waiting_children")
    root.command(ChildNotice(child="s-guest", agent="guest", cause=DONE))
    assert root.finish().result == "mine"


@pytest.mark.parametrize("wait", [True, False])
def test_a_stop_ends_the_turn_and_lets_the_children_go_first(root_with_children: FakeRoot, wait: bool) -> None:
    """Root stops the children itself; the parent cancels what it does, orders nothing, and leaves behind the last."""
    root = root_with_children
    root.script({"tools": [spawn(wait=wait)]}, {"text": "done"})
    root.bear("spawn_agent")
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    assert root.command(StopTurn(reason="enough")) is None
    root.until("the turn is over", lambda: root.of(TurnCancelled, TurnCompleted))
    assert root.last_word is None
    root.command(ChildNotice(child="s-child1", agent="helper", cause=Cause(kind="cancelled")))
    assert root.finish().cause == Cause(kind="cancelled", message="enough")
    assert not [r for r in root.requests if isinstance(r, StopChild)]
    assert root.of(ChildExited) and not root.of(MessageReceived)[1:]


@pytest.mark.parametrize(
    "orders",
    [(StopTurn(), StopTurn()), (StopTurn(for_restart=True),), (StopTurn(cause="daemon_stop"), StopTurn())],
)
def test_a_parent_that_is_hurried_waits_for_no_child(
    root_with_children: FakeRoot, orders: tuple[StopTurn, ...]
) -> None:
    """A second order, or the restart of its group: it leaves at once, with the cause of the first."""
    root = root_with_children
    root.script({"tools": [spawn()]}, {"text": "done"})
    root.bear("spawn_agent")
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    for order in orders:
        assert root.command(order) is None
    assert root.finish().cause.kind == orders[0].cause


def test_a_parent_that_failed_waits_for_nobody(root_with_children: FakeRoot) -> None:
    """Failures go up at once; root stops what is below."""
    root = root_with_children
    root.script({"tools": [spawn(wait=False)]}, {"error": {"status": 400}})
    root.bear("spawn_agent")
    assert root.finish().cause.kind == "failed"


def test_an_end_that_was_missed_is_asked_for(root_with_children: FakeRoot) -> None:
    """A child that nobody waited for ended while the parent had no process: the next incarnation asks after it."""
    root = root_with_children
    root.script({"tools": [spawn(wait=False)]}, {"text": "later"}, {"text": "now: ${input}"})
    root.bear("spawn_agent")
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    root.kill()
    root.bear("spawn_agent")
    root.until("it asks", lambda: len(root.requests) == 2)
    assert root.requests[0] == root.requests[1] and root.last_word is None
    root.command(ChildNotice(child="s-child1", agent="helper", cause=DONE, result="42"))
    word = root.finish()
    assert word.result.startswith("now: ") and word.result.endswith("42")


def test_a_child_that_nobody_knows_any_more_holds_nobody_up(root_with_children: FakeRoot) -> None:
    """Root has forgotten it: that is said, and the parent ends."""
    root = root_with_children
    root.script({"tools": [spawn(wait=False)]}, {"text": "later"})
    root.bear("spawn_agent")
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    root.kill()
    root._answer = lambda body: Failure(code="no_such_session", message="removed")
    root.bear("spawn_agent")
    assert root.finish().result == "later"
    assert [e.code for e in root.of(LogWarning)] == ["child_unknown"]


def test_an_end_that_was_missed_is_told_to_the_call_that_asks_again(root_with_children: FakeRoot) -> None:
    """The child ended while the parent had no process; root says so when the repeated call asks for it."""
    root = root_with_children
    root.script({"tools": [spawn()]}, {"text": "${last_tool_result}"})
    root.bear("spawn_agent")
    root.until("it waits", lambda: [e.state for e in root.of(SessionStateChanged)][-1:] == ["waiting_children"])
    root.kill()
    root.bear("spawn_agent")
    root.until("it asks", lambda: len(root.requests) == 2)
    root.command(ChildNotice(child="s-child1", agent="helper", cause=DONE, result="42"))
    assert "42" in root.finish().result
    assert len(root.of(ChildStarted)) == 1 and len(root.of(ChildExited)) == 1


def test_a_successor_that_could_not_be_noted_is_not_another_child(root_with_children: FakeRoot) -> None:
    """Root had started it, and the worker died before it was told: the repeated call gets it, and is not refused."""
    root = root_with_children
    handoff = {"name": "handoff", "arguments": {"agent": "expert", "reason": "it knows"}}
    root.script({"tools": [handoff]}, {"text": "never said"})
    answer, root._answer = root._answer, None
    root.bear("handoff", handoffs=("expert",))
    root.until("it asks", lambda: len(root.requests) == 1)
    root.kill()
    assert not any(isinstance(e, j.ChildStarted) for e in root.journal())
    root._answer = answer
    root.bear("handoff", handoffs=("expert",), children=(ChildNotice(child="s-child1", agent="expert"),))
    root.until("it asks again", lambda: len(root.requests) == 2)
    assert root.requests[0] == root.requests[1]
    root.command(ChildNotice(child="s-child1", agent="expert", cause=DONE, result="done by the expert"))
    assert root.finish().result == "done by the expert"
