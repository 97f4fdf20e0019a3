"""Leave for tool calls in a real worker: asked once for each call, whatever becomes of the process that asks."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from ottod.core.approval import approval_id
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.events import (
    ApprovalRequested,
    ApprovalResolved,
    SessionStateChanged,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from ottod.protocol.specs import Limits, PermissionRule, Permissions
from ottod.protocol.worker import ResolveApproval, StopTurn
from tests.fakes.fake_root import FakeRoot

ECHO = {"name": "shell", "arguments": {"command": "echo done >> effects; echo said"}}
LIST = {"name": "fs_list", "arguments": {}}


def rules(*given: PermissionRule) -> Permissions:
    return Permissions(rules=given)


ASK = rules(PermissionRule(effect="ask", tool="shell", reason="it can do anything"))


def effects(root: FakeRoot) -> int:
    """How often the guarded command ran."""
    file = root.workdir / "effects"
    return file.read_text().count("done") if file.exists() else 0


def asked(root: FakeRoot, count: int = 1) -> ApprovalRequested:
    """The newest question, once there are so many and the session says that it waits."""
    root.until("the question", lambda: len(root.of(ApprovalRequested)) == count)
    root.until("it waits", lambda: root.of(SessionStateChanged)[-1].state == "waiting_approval")
    return root.of(ApprovalRequested)[-1]


def resolve(root: FakeRoot, approval: str, **answer: Any) -> str:
    """Answers, and gives the code of the failure, if that is one."""
    failure = root.command(ResolveApproval(approval=approval, **{"decision": "approved", "by": "me", **answer}))
    return failure.code if failure is not None else ""


def test_a_call_begins_when_it_has_leave(root: FakeRoot) -> None:
    """Nothing of it happens before; the answer is in the journal before the intent; the state says what goes on."""
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=ASK)
    question = asked(root)
    assert question.approval == approval_id(root.session, turn=1, step=1, call=question.call)
    assert (question.tool, question.reason, question.turn) == ("shell", "it can do anything", 1)
    assert "echo done" in question.arguments and question.expires_at_ns is None
    assert not root.of(ToolStarted) and effects(root) == 0
    assert not any(isinstance(e, j.ToolIntended) for e in root.journal())
    assert resolve(root, question.approval) == ""
    assert "said" in root.finish().result and effects(root) == 1
    (resolved,) = root.of(ApprovalResolved)
    assert (resolved.decision, resolved.by, resolved.scope) == ("approved", "me", "once")
    kinds = [type(e) for e in root.journal()]
    assert kinds.index(j.ApprovalAsked) < kinds.index(j.ApprovalResolved) < kinds.index(j.ToolIntended)
    states = [e.state for e in root.of(SessionStateChanged)]
    assert states[states.index("waiting_approval") + 1] == "running"


def test_a_denied_call_fails_and_the_turn_goes_on(root: FakeRoot) -> None:
    """The model hears who said no, and why; a second answer hears that there was a first."""
    root.script({"tools": [ECHO]}, {"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=ASK)
    first = asked(root)
    assert resolve(root, first.approval, decision="denied", reason="not today") == ""
    second = asked(root, 2)
    assert second.approval != first.approval
    assert resolve(root, first.approval) == "already_resolved"
    assert resolve(root, "a-0000000000") == "no_such_approval"
    assert resolve(root, second.approval, decision="denied", reason="nor now") == ""
    word = root.finish()
    assert word.cause.kind == "completed" and "denied by me: nor now" in word.result
    assert [e.failure.code for e in root.of(ToolFailed)] == ["denied", "denied"] and effects(root) == 0


def test_other_calls_of_the_same_answer_go_on(root: FakeRoot) -> None:
    """They need no leave and wait for nobody; only when all else is done does the session wait."""
    root.script({"tools": [ECHO, LIST, LIST]}, {"text": "${last_tool_result}"})
    root.bear("shell", "fs_list", permissions=ASK)
    question = asked(root)
    assert len(root.of(ToolCompleted)) == 2
    resolve(root, question.approval)
    assert root.finish().cause.kind == "completed" and effects(root) == 1


def test_an_answer_for_the_session_is_asked_for_once(root: FakeRoot) -> None:
    """It lets the other waiting call go too, and every later one, also in the next incarnation."""
    wait = {"name": "shell", "arguments": {"command": "while [ ! -e on ]; do sleep 0.05; done"}}
    root.script({"tools": [ECHO, ECHO]}, {"tools": [wait]}, {"tools": [ECHO]}, {"text": "end"})
    root.bear("shell", permissions=ASK)
    question = asked(root, 2)
    assert resolve(root, question.approval, scope="session") == ""
    root.until("the third call runs", lambda: len(root.of(ToolStarted)) == 3)
    root.kill()
    root.bear("shell", permissions=ASK)
    (root.workdir / "on").touch()
    assert root.finish().cause.kind == "completed"
    assert len(root.of(ApprovalRequested)) == 2 and effects(root) == 3
    assert {e.scope for e in root.of(ApprovalResolved)} == {"session"}


def test_a_killed_worker_asks_the_same_question_again(root: FakeRoot) -> None:
    """The same id, however often; then the answer counts, and the call has its effect once."""
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=ASK)
    first = asked(root)
    for incarnation in (2, 3):
        root.kill()
        root.bear("shell", permissions=ASK)
        assert asked(root, incarnation) == first
    assert sum(isinstance(e, j.ApprovalAsked) for e in root.journal()) == 1
    assert resolve(root, first.approval) == ""
    assert "said" in root.finish().result and effects(root) == 1


@pytest.mark.parametrize("decision", ["approved", "denied"])
def test_an_answer_outlives_the_process_that_took_it(root: FakeRoot, decision: str) -> None:
    """Killed as soon as the answer was acknowledged: the next incarnation knows it and asks nobody."""
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=ASK)
    question = asked(root)
    # Whether the effect begins before the kill is left open: then the resumed call is told to be unknown.
    assert resolve(root, question.approval, decision=decision) == ""
    root.kill()
    root.bear("shell", permissions=ASK)
    word = root.finish()
    assert len(root.of(ApprovalRequested)) == 1 and len(root.of(ApprovalResolved)) == 1
    assert effects(root) <= 1
    if decision == "denied":
        assert "denied by me" in word.result and effects(root) == 0
    else:
        assert "said" in word.result or "unknown" in word.result


def test_an_answer_may_come_before_the_question_is_asked_again(root: FakeRoot) -> None:
    """Right after the hello of the next incarnation: it is taken, and the call goes on."""
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=ASK)
    question = asked(root)
    root.kill()
    root.bear("shell", permissions=ASK)
    root.until("the hello", lambda: root._identity)
    assert resolve(root, question.approval) == ""
    assert "said" in root.finish().result and effects(root) == 1


def test_nobody_answers_in_time(root: FakeRoot) -> None:
    """The question expires, which is not a denial; a late answer is told so. Death does not extend the time."""
    expiring = rules(PermissionRule(effect="ask", tool="shell", expires_s=2.0))
    root.script({"tools": [ECHO]}, {"tools": [LIST]}, {"text": "${last_tool_result}"})
    root.bear("shell", "fs_list", permissions=expiring, mode="conversation")
    root.until("the question", lambda: root.of(ApprovalRequested))
    question = root.of(ApprovalRequested)[0]
    assert question.expires_at_ns is not None
    root.kill()
    root.bear("shell", "fs_list", permissions=expiring, mode="conversation")
    root.until("it is over", lambda: root.of(ApprovalResolved))
    (resolved,) = root.of(ApprovalResolved)
    assert (resolved.decision, resolved.by) == ("expired", "")
    assert all(e.expires_at_ns == question.expires_at_ns for e in root.of(ApprovalRequested))
    root.until("the failure", lambda: [e.failure.code for e in root.of(ToolFailed)] == ["expired"])
    assert resolve(root, question.approval) == "already_resolved" and effects(root) == 0


def test_in_a_headless_session_nobody_is_asked(root: FakeRoot) -> None:
    """The call fails at once and says why; what a rule allows for headless sessions runs."""
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=ASK, run_mode="headless")
    word = root.finish()
    assert "headless" in word.result and not root.of(ApprovalRequested) and effects(root) == 0
    assert [e.failure.code for e in root.of(ToolFailed)] == ["approval_unavailable"]


def test_headless_rules_may_allow(root: FakeRoot) -> None:
    """A rule for headless sessions is more specific than one for all."""
    allowed = rules(*ASK.rules, PermissionRule(effect="allow", tool="shell", run_mode="headless"))
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=allowed, run_mode="headless")
    assert "said" in root.finish().result and effects(root) == 1


def test_what_is_forbidden_is_not_asked_about(root: FakeRoot) -> None:
    """A deny rule fails the call at once, with its reason."""
    forbidden = rules(PermissionRule(effect="deny", tool="sh*", reason="read only"), PermissionRule(effect="ask"))
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=forbidden)
    assert "a rule forbids shell: read only" in root.finish().result
    assert not root.of(ApprovalRequested) and effects(root) == 0


def test_nobody_is_asked_about_a_call_that_cannot_run(root: FakeRoot) -> None:
    """A tool that does not exist, or arguments that it does not take, fail by themselves."""
    bad = {"name": "shell", "arguments": {"no": 1}}
    root.script({"tools": [bad, {"name": "nothing", "arguments": {}}]}, {"text": "end"})
    root.bear("shell", permissions=rules(PermissionRule(effect="ask")))
    assert root.finish().cause.kind == "completed"
    assert len(root.of(ToolFailed)) == 2 and not root.of(ApprovalRequested)


def test_a_stop_withdraws_the_question(root: FakeRoot) -> None:
    """The call is cancelled, nobody need answer, and nothing of it happens."""
    root.script({"tools": [ECHO, ECHO]}, {"text": "end"})
    root.bear("shell", permissions=ASK)
    question = asked(root, 2)
    root.command(StopTurn(reason="enough"))
    assert root.finish().cause.kind == "cancelled"
    assert {e.decision for e in root.of(ApprovalResolved)} == {"withdrawn"}
    assert len(root.of(ApprovalResolved)) == 2 and effects(root) == 0
    assert question.approval in {e.approval for e in root.journal() if isinstance(e, j.ApprovalResolved)}


def test_a_stop_for_a_restart_does_not(root: FakeRoot) -> None:
    """The incarnation goes, the question stays open, and the next one asks it again."""
    root.script({"tools": [ECHO]}, {"text": "heard: ${last_tool_result}"})
    root.bear("shell", permissions=ASK)
    question = asked(root)
    root.command(StopTurn(reason="its group restarts", for_restart=True))
    root.finish()
    assert not root.of(ApprovalResolved)
    root.bear("shell", permissions=ASK, after="cancelled")
    assert asked(root, 2) == question
    resolve(root, question.approval)
    assert "said" in root.finish().result and effects(root) == 1


def test_a_stop_overrules_one_for_a_restart(root: FakeRoot) -> None:
    """Told so before it is gone, the session ends for good, and its journal says so."""
    root.script({"tools": [ECHO]}, {"text": "end"})
    root.bear("shell", permissions=ASK)
    asked(root)
    assert root.process is not None
    os.kill(root.process.pid, signal.SIGSTOP)  # It finds both orders when it goes on.
    root.order(StopTurn(reason="its group restarts", for_restart=True))
    root.order(StopTurn(reason="enough"))
    os.kill(root.process.pid, signal.SIGCONT)
    assert root.finish().cause == Cause(kind="cancelled", message="enough")
    assert isinstance(root.journal()[-1], j.SessionClosed)


def test_one_call_at_a_time_waits_in_its_place(root: FakeRoot) -> None:
    """With max_parallel_tools 1 a call that waits holds its place: calls of one answer keep their order."""
    root.script({"tools": [ECHO, LIST]}, {"text": "end"})
    root.bear("shell", "fs_list", permissions=ASK, limits=Limits(max_parallel_tools=1))
    question = asked(root)
    assert not root.of(ToolCompleted)
    resolve(root, question.approval)
    assert root.finish().cause.kind == "completed" and len(root.of(ToolCompleted)) == 2


def test_a_change_of_files_is_shown_and_leave_is_for_that_alone(root: FakeRoot) -> None:
    """Of the project's notes everybody is asked. Whoever says yes has seen the diff; if the file is another one by
    then, nothing is written, also if the answer was given to an incarnation that is no more."""
    notes = root.workdir / "OTTO.md"
    notes.write_text("one\n")
    edit = {"tools": [{"name": "fs_edit", "arguments": {"path": "OTTO.md", "old": "one", "new": "two"}}]}
    root.script(edit, edit, edit, {"text": "heard: ${last_tool_result}"})
    root.bear("fs_edit", permissions=Permissions(preset="autonomous"))
    first = asked(root)
    assert first.diff == "--- a/OTTO.md\n+++ b/OTTO.md\n@@ -1 +1 @@\n-one\n+two\n"
    assert "OTTO.md" in first.reason and first.claims == ("read OTTO.md", "write OTTO.md")[1:]
    assert resolve(root, first.approval, decision="denied") == ""
    second = asked(root, 2)
    assert notes.read_text() == "one\n" and second.diff == first.diff
    notes.write_text("and one\n")
    assert resolve(root, second.approval) == ""
    third = asked(root, 3)
    assert [e.failure.code for e in root.of(ToolFailed)] == ["denied", "changed"]
    assert notes.read_text() == "and one\n" and "-and one\n+and two\n" in third.diff
    root.kill()
    root.bear("fs_edit", permissions=Permissions(preset="autonomous"))
    assert asked(root, 4) == third
    assert resolve(root, third.approval) == ""
    assert "replaced 1 occurrence" in root.finish().result and notes.read_text() == "and two\n"


def test_in_a_headless_session_the_notes_stay_as_they_are(root: FakeRoot) -> None:
    (root.workdir / "OTTO.md").write_text("one\n")
    shell = {"name": "shell", "arguments": {"command": "echo two > OTTO.md"}}
    write = {"name": "fs_write", "arguments": {"path": "./sub/../Otto.md", "content": "two"}}
    root.script({"tools": [shell, write]}, {"text": "end"})
    root.bear("shell", "fs_write", run_mode="headless", permissions=Permissions(preset="autonomous"))
    assert root.finish().cause.kind == "completed"
    assert [e.failure.code for e in root.of(ToolFailed)] == ["approval_unavailable"] * 2
    assert [p.name for p in root.workdir.glob("?tto.md")] == [] and (root.workdir / "OTTO.md").read_text() == "one\n"
