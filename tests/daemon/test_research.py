"""What was found out is found out once: the same agent, question and files; anything else is asked anew."""

from __future__ import annotations

from ottoctl.sync import SyncOtto, SyncSession
from ottod.protocol.events import ResearchReused, ToolCompleted
from ottod.protocol.requests import ListSessions
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.workshop import agent, ottoctl


def lead(daemon: RealDaemon, name: str, question: str, **more: object) -> None:
    arguments = {"agent": "finder", "task": question, **more}
    call = {"tools": [{"name": "spawn_agent", "arguments": arguments}]}
    agent(daemon, name, call, {"text": "${last_tool_result}"}, tools=["spawn_agent"])


def asked(daemon: RealDaemon, otto: SyncOtto, name: str = "lead") -> tuple[SyncSession, str, int]:
    """A lead's session, its result, and how many sessions it started."""
    session = otto.start(name, "go", cwd=daemon.workdir)
    result = session.wait(timeout_s=60)
    assert result.ok, (result.cause, result.result)
    return session, result.result, len(otto.list_with(ListSessions(tree=session.id, all=True)).sessions) - 1


def kept(otto: SyncOtto, count: int) -> None:
    wait_for(f"{count} are kept", lambda: len(otto.research()) == count)


def test_the_same_is_asked_once_while_no_file_changes(daemon: RealDaemon) -> None:
    lead(daemon, "lead", "where is it?")
    lead(daemon, "other", "and what is it?")
    agent(daemon, "finder", {"text": "found: ${task}"}, cacheable=True)
    with daemon.client() as otto:
        _, first, started = asked(daemon, otto)
        assert started == 1 and "found: where is it?" in first
        kept(otto, 1)
        again, second, started = asked(daemon, otto)
        assert started == 0 and "was asked the same before" in second and "found: where is it?" in second
        (event,) = [e.event for e in again.events(follow=False) if isinstance(e.event, ResearchReused)]
        assert event.agent == "finder" and event.question == "where is it?"
        assert otto.session(event.child).info().agent == "finder" and again.info().usage.calls == 2
        assert asked(daemon, otto, "other")[2] == 1, "another question"
        kept(otto, 2)
        assert "where is it?" in ottoctl(daemon, "research", "list").stdout
    # It outlives the daemon.
    daemon.stop()
    daemon.start()
    with daemon.client() as otto:
        assert asked(daemon, otto)[2] == 0
        (daemon.workdir / "new").touch()
        assert asked(daemon, otto)[2] == 1, "a file is new"
        kept(otto, 3)
        agent(daemon, "finder", {"text": "found better: ${task}"}, cacheable=True)
        assert "found better" in asked(daemon, otto)[1], "another definition, and another file"
        kept(otto, 4)
        assert ottoctl(daemon, "research", "forget", "finder").stderr.strip() == "4 results are forgotten"
        assert asked(daemon, otto)[2] == 1


def test_what_cannot_stand_for_another_is_not_kept(daemon: RealDaemon) -> None:
    """An agent that does not say so, one that failed, and one that changed a file."""
    lead(daemon, "lead", "go")
    shell = {"tools": [{"name": "shell", "arguments": {"command": "echo x >> changed"}}]}
    with daemon.client() as otto:
        for turns, fields in (
            (({"text": "x"},), {}),
            (({"error": {"status": 400}},), {"cacheable": True}),
            ((shell, {"text": "x"}), {"cacheable": True, "tools": ["shell"]}),
        ):
            agent(daemon, "finder", *turns, **fields)  # type: ignore[arg-type]
            assert asked(daemon, otto)[2] == 1
            assert asked(daemon, otto)[2] == 1
        assert otto.research() == ()


def test_what_stood_in_for_a_model_stands_for_nobody_else(daemon: RealDaemon) -> None:
    """A rule's answer is the session's, or its successor's; the next one asks again, and keeps what a model says."""
    lead(daemon, "lead", "go")
    hands = {"tools": [{"name": "handoff", "arguments": {"agent": "expert", "reason": "it knows"}}]}
    out = {"fallback": ["rule"], "fallback_answer": "not now"}
    broken = {"error": {"status": 402}}
    with daemon.client() as otto:
        agent(daemon, "finder", broken, cacheable=True, **out)
        for _ in range(2):
            _, said, started = asked(daemon, otto)
            assert (started, "not now" in said) == (1, True)
        agent(daemon, "expert", {"text": "said"}, broken, **out)
        agent(daemon, "finder", hands, cacheable=True, tools=["handoff"], handoffs=["expert"])
        for _ in range(2):
            _, said, started = asked(daemon, otto)
            assert (started, "not now" in said) == (2, True)
        assert otto.research() == ()


def test_rules_from_above_are_part_of_the_question(daemon: RealDaemon) -> None:
    """What one could read who was bound by less is not told to one who is bound by more."""
    lead(daemon, "lead", "where?")
    agent(daemon, "finder", {"text": "there"}, cacheable=True)
    call = {"tools": [{"name": "spawn_agent", "arguments": {"agent": "finder", "task": "where?"}}]}
    rules = {"preset": "autonomous", "rules": [{"effect": "deny", "tool": "fs_read", "path": "secret/**"}]}
    agent(daemon, "bound", call, {"text": "${last_tool_result}"}, tools=["spawn_agent"], permissions=rules)
    with daemon.client() as otto:
        assert asked(daemon, otto)[2] == 1
        kept(otto, 1)
        assert asked(daemon, otto, "bound")[2] == 1
        kept(otto, 2)
        assert asked(daemon, otto, "bound")[2] == 0 and asked(daemon, otto)[2] == 0


def test_a_session_that_was_asked_the_same_need_not_think_again(daemon: RealDaemon) -> None:
    """Its answer stands as long as it has had no other turn and would find everything as it was; another agent's
    answers, which may follow from anything, do not."""

    def ask(question: str, to: str = "finder") -> dict[str, object]:
        return {"tools": [{"name": "ask_agent", "arguments": {"to": to, "question": question}}]}

    def begin(name: str) -> dict[str, object]:
        arguments = {"agent": name, "task": "where?", "mode": "conversation"}
        return {"tools": [{"name": "spawn_agent", "arguments": arguments}]}

    keep = {"tools": [{"name": "artifact_write", "arguments": {"name": "a", "content": "x"}}]}
    touch = {"tools": [{"name": "shell", "arguments": {"command": "touch new"}}]}
    answers = [{"text": f"answer {n}"} for n in range(1, 8)]
    agent(daemon, "finder", *answers, cacheable=True, tools=["artifact_list"])
    agent(daemon, "talker", *answers)
    asking = [ask("where?"), ask("why?"), ask("where?"), ask("where?"), touch, ask("where?"), ask("where?"), keep]
    asking += [ask("where?"), begin("talker"), ask("where?", "talker"), {"text": "end"}]
    tools = ["spawn_agent", "ask_agent", "shell", "artifact_write"]
    agent(daemon, "lead", begin("finder"), *asking, tools=tools)
    with daemon.client() as otto:
        session = otto.start("lead", "go", cwd=daemon.workdir)
        assert session.wait(timeout_s=60).ok
        said = [e.event for e in session.events(follow=False) if isinstance(e.event, ToolCompleted)]
        heard = [(e.output.split()[-1], "before" in e.output) for e in said if e.tool in ("spawn_agent", "ask_agent")]
        assert heard == [
            ("1", False),
            ("1", True),
            ("2", False),
            ("3", False),
            ("3", True),
            ("4", False),
            ("4", True),
            ("5", False),
            ("1", False),
            ("2", False),
        ]
        reused = [e.event for e in session.events(follow=False) if isinstance(e.event, ResearchReused)]
        assert [(e.agent, e.question) for e in reused] == [("finder", "where?")] * 3
        # What stood in for its model is not what it would say.
        out = {"fallback": ["rule"], "fallback_answer": "not now"}
        agent(daemon, "finder", answers[0], {"error": {"status": 402}}, answers[2], cacheable=True, **out)
        agent(daemon, "lead", begin("finder"), ask("why?"), ask("why?"), ask("why?"), {"text": "end"}, tools=tools)
        session = otto.start("lead", "go", cwd=daemon.workdir)
        assert session.wait(timeout_s=60).ok
        said = [e.event for e in session.events(follow=False) if isinstance(e.event, ToolCompleted)]
        heard = ["not now" in e.output for e in said if e.tool == "ask_agent"]
        assert heard == [True, False, False]
