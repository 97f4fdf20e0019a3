"""Handoffs: another agent works on with the conversation, once, and what it comes to is what the first comes to."""

from __future__ import annotations

import json
import signal

import pytest
from msgspec.structs import replace

from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import identify, send_signal
from ottod.protocol import journal as j
from ottod.protocol.events import ConversationHandedOver, ToolFailed
from ottod.protocol.model import AssistantMessage, ToolResults, UserMessage
from ottod.protocol.requests import ListSessions
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import Backoff, Restart
from ottod.protocol.workflows import Output
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.workshop import agent, ended, ottoctl, start, step, workflow

TRANSIENT = {"restart": {"policy": "transient", "backoff": {"base_s": 0.05}}}
ALREADY_SAID = {"text": "this is what the first one said, in its place"}
"""A script counts the answers of the conversation, and its agent takes over behind the first one's."""


def handoff(to: str, note: str = "", **more: object) -> dict[str, object]:
    """A turn that hands over."""
    arguments = {"agent": to, "reason": "it knows", "note": note, **more}
    return {"text": "let me see", "tools": [{"name": "handoff", "arguments": arguments}]}


def shell(command: str) -> dict[str, object]:
    return {"tools": [{"name": "shell", "arguments": {"command": command}}]}


def triage(
    daemon: RealDaemon, *turns: dict[str, object], handoffs: tuple[str, ...] = ("expert",), **more: object
) -> None:
    agent(daemon, "triage", *turns, tools=["handoff", "spawn_agent"], handoffs=list(handoffs), **more)


def tree(otto: SyncOtto, top: SyncSession) -> dict[str, SessionInfo]:
    """All sessions of a tree, by name."""
    return {i.name: i for i in otto.list_with(ListSessions(tree=top.id, all=True)).sessions}


def test_the_successor_has_the_conversation_and_its_result_is_the_firsts(daemon: RealDaemon) -> None:
    """It reads what was said, has its own tools, works below the first, and nobody asks the first one again."""
    triage(daemon, handoff("expert", "be brief"), {"text": "never said"})
    agent(
        daemon,
        "expert",
        ALREADY_SAID,
        shell("echo found > found; cat found"),
        {"text": "it is ${last_tool_result}"},
        tools=["shell"],
    )
    with daemon.client() as otto:
        first = otto.start("triage", "why does it fail?", cwd=daemon.workdir)
        result = first.wait(timeout_s=60)
        assert result.ok and "found" in result.result, (result.cause, result.result)
        infos = tree(otto, first)
        expert = infos["expert"]
        assert expert.parent == first.id == expert.resumed_from and expert.result == result.result
        assert first.info().handed_to == expert.session and first.info().turn == 1
        (event,) = [e.event for e in first.events(follow=False) if isinstance(e.event, ConversationHandedOver)]
        assert (event.child, event.agent, event.reason) == (expert.session, "expert", "it knows")
        past = next(e for e in otto.session(expert.session).journal() if isinstance(e, j.Snapshot))
        asked, said, results = past.messages
        assert isinstance(asked, UserMessage) and asked.text == "why does it fail?"
        assert isinstance(said, AssistantMessage) and isinstance(results, ToolResults)
        assert "handed over to expert" in results.results[0].text
        told = next(e for e in otto.session(expert.session).journal() if isinstance(e, j.UserSaid))
        assert "handed over by triage" in told.text and told.text.endswith("be brief")
        calls = [e for e in first.journal() if isinstance(e, j.ModelCalled)]
        assert len(calls) == 1, "the first one is not asked again"
        assert expert.session in ottoctl(daemon, "inspect", first.id).stdout
        # A successor without tools reads the same in words.
        agent(daemon, "expert", ALREADY_SAID, {"text": "in words"})
        plain = otto.start("triage", "and this?", cwd=daemon.workdir)
        assert plain.wait(timeout_s=60).result == "in words"
        past = next(
            e for e in otto.session(tree(otto, plain)["expert"].session).journal() if isinstance(e, j.Snapshot)
        )
        assert isinstance(past.messages[-1], UserMessage) and "[result of handoff]" in past.messages[-1].text


def test_what_is_asked_of_the_firsts_answer_is_asked_of_the_successors(daemon: RealDaemon) -> None:
    """Also in a chain; whoever has a form of its own keeps it, and then the first one's model says it in its own."""
    schema = {"type": "object", "required": ["lines"]}
    lines = list(range(20_000))
    triage(daemon, handoff("expert"), {"text": "never said"}, output_schema=schema)
    agent(daemon, "expert", ALREADY_SAID, handoff("elder"), tools=["handoff"], handoffs=["elder"])
    elder = ALREADY_SAID, ALREADY_SAID, {"text": "in my own words"}, {"text": json.dumps({"lines": lines})}
    agent(daemon, "elder", *elder)
    with daemon.client() as otto:
        first = otto.start("triage", "go", cwd=daemon.workdir)
        result = first.wait(timeout_s=60)
        assert result.ok and result.result.startswith('{"lines":[0,1,'), (result.cause, result.result)
        sessions = first.info(), tree(otto, first)["elder"]
        calls = [[e for e in otto.session(i.session).journal() if isinstance(e, j.ModelCalled)] for i in sessions]
        assert [len(each) for each in calls] == [1, 2], "who says it is told how, and nobody else is asked again"
        triage(daemon, handoff("elder"), {"text": '{"lines": []}'}, handoffs=("elder",), output_schema=schema)
        own = {"type": "object", "required": ["own"]}
        agent(daemon, "elder", ALREADY_SAID, {"text": '{"own": 1}'}, output_schema=own)
        first = otto.start("triage", "go", cwd=daemon.workdir)
        result = first.wait(timeout_s=60)
        assert result.ok and (result.result, first.info().is_json) == ('{"lines":[]}', True)
        assert tree(otto, first)["elder"].result == '{"own":1}'


def test_a_handoff_needs_leave_and_stands_alone(daemon: RealDaemon) -> None:
    """To whom is not named, beside other calls, or to nobody: the first one is told, and goes on."""
    both = {"tools": [*handoff("expert")["tools"], *handoff("expert")["tools"]]}  # type: ignore[misc]
    triage(
        daemon,
        handoff("stranger"),
        both,
        handoff("nobody"),
        {"text": "I do it myself"},
        handoffs=("expert", "nobody"),
    )
    agent(daemon, "stranger", {"text": "x"})
    agent(daemon, "expert", {"text": "x"})
    with daemon.client() as otto:
        first = otto.start("triage", "go", cwd=daemon.workdir)
        result = first.wait(timeout_s=60)
        assert result.ok and result.result == "I do it myself"
        failures = [e.event.failure for e in first.events(follow=False) if isinstance(e.event, ToolFailed)]
        failed = [failure.code for failure in failures]
        assert failed[:3] == ["no_handoff", "bad_arguments", "bad_arguments"] and len(failed) == 4, failed
        assert "triage may not hand over to stranger; it may to expert, nobody" in failures[0].message
        assert set(tree(otto, first)) == {"triage"}, "nobody was started"


def test_a_successor_that_fails_is_the_firsts_failure(daemon: RealDaemon) -> None:
    triage(daemon, handoff("expert"), {"text": "never said"})
    agent(daemon, "expert", ALREADY_SAID, {"error": {"status": 400, "message": "no"}})
    with daemon.client() as otto:
        result = otto.start("triage", "go", cwd=daemon.workdir).wait(timeout_s=60)
        assert result.cause.kind == "failed" and result.cause.code == "successor_failed"
        assert "expert (s-" in result.cause.message


def test_budgets_go_on_and_rules_are_not_widened(daemon: RealDaemon) -> None:
    """What the first has spent counts for its successor, who is bound by the first one's rules besides its own."""
    usage = {"input_tokens": 500, "output_tokens": 100}
    rules = {"preset": "autonomous", "rules": [{"effect": "deny", "tool": "shell", "command": "touch *"}]}
    triage(daemon, handoff("expert") | {"usage": usage}, permissions=rules, budgets={"tokens": 12_000})
    agent(
        daemon,
        "expert",
        ALREADY_SAID,
        shell("touch forbidden") | {"usage": usage},
        {"text": "done", "usage": usage},
        tools=["shell"],
    )
    with daemon.client() as otto:
        first = otto.start("triage", "go", cwd=daemon.workdir)
        assert first.wait(timeout_s=60).ok
        assert not (daemon.workdir / "forbidden").exists()
        expert = otto.session(tree(otto, first)["expert"].session)
        (failed,) = [e.event for e in expert.events(follow=False) if isinstance(e.event, ToolFailed)]
        assert failed.failure.code == "denied"
        (line,) = [b for b in first.info().budgets if b.budget == "tokens"]
        assert line.spent == 3 * 600, "both are paid from one budget"
        # Of an empty one nothing is left for it.
        triage(
            daemon,
            handoff("expert") | {"usage": {"input_tokens": 8000, "output_tokens": 2000}},
            budgets={"tokens": 12_000},
        )
        second = otto.start("triage", "go", cwd=daemon.workdir)
        assert second.wait(timeout_s=60).cause.kind in ("failed", "budget")
        assert tree(otto, second)["expert"].cause.kind == "budget"  # type: ignore[union-attr]


def test_who_waits_for_the_first_gets_the_successors_result(daemon: RealDaemon) -> None:
    """A parent's call, a workflow's step, and the next message of a conversation, which is the first one's again."""
    triage(daemon, handoff("expert"), {"text": "and I am back: ${input}"})
    agent(daemon, "expert", ALREADY_SAID, {"text": "42"})
    agent(
        daemon,
        "lead",
        {"tools": [{"name": "spawn_agent", "arguments": {"agent": "triage", "task": "ask"}}]},
        {"text": "${last_tool_result}"},
        tools=["spawn_agent"],
    )
    with daemon.client() as otto:
        lead = otto.start("lead", "go", cwd=daemon.workdir)
        assert lead.wait(timeout_s=60).result.endswith("completed\n\n42")
        session = start(daemon, otto, workflow("sequential", step("a", "triage")))
        assert session.wait(timeout_s=60).ok
        assert otto.session(ended(session)[0].session).info().result == "42"
        talk = otto.start("triage", "first", cwd=daemon.workdir, mode="conversation")
        talk.wait(idle=True, timeout_s=60)
        talk.send("second")
        wait_for("it answers", lambda: talk.info().turn == 2 and talk.info().state == "idle")
        assert talk.info().handed_to == ""
        talk.stop(grace_s=10)
        assert talk.info().result.endswith("second")


def test_a_long_answer_of_a_steps_successor_is_kept_whole(daemon: RealDaemon) -> None:
    """Also that of a successor's successor, with or without a schema, and however long the step's own would be."""
    long = "".join(f"line {n}: ünd mehr\n" for n in range(4000))
    data = json.dumps({"lines": list(range(20_000))})
    triage(daemon, handoff("expert"), {"text": "never said"})
    agent(daemon, "expert", ALREADY_SAID, handoff("elder"), tools=["handoff"], handoffs=["elder"])
    agent(daemon, "elder", ALREADY_SAID, ALREADY_SAID, {"text": long})
    agent(daemon, "desk", handoff("teller"), {"text": "never said"}, tools=["handoff"], handoffs=["teller"])
    agent(daemon, "teller", ALREADY_SAID, {"text": data})
    plain = Output(name="report", capture="answer")
    schema = {"type": "object", "required": ["lines"]}
    checked = Output(name="data", capture="answer", schema=schema)
    with daemon.client() as otto:
        steps = step("a", "triage", outputs=(plain,)), step("b", "desk", outputs=(checked,))
        session = start(daemon, otto, workflow("parallel", *steps))
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        kept = {info.name: info for info in otto.artifacts(session=session.id)}
        assert otto.read_artifact(kept["report"]).decode() == long
        assert json.loads(otto.read_artifact(kept["data"])) == json.loads(data)
        alone = otto.start("triage", "go", cwd=daemon.workdir)
        assert alone.wait(timeout_s=60).ok and not otto.artifacts(session=alone.id), "nobody wants all of it"


@pytest.mark.parametrize("victim", ["first", "successor", "root"])
def test_a_conversation_is_handed_over_once_whoever_is_killed(daemon: RealDaemon, victim: str) -> None:
    """kill -9 while the successor works: there is one successor, it works on, and its result arrives."""
    triage(daemon, handoff("expert"), {"text": "never said"}, **TRANSIENT)
    wait = "touch begun; while [ ! -e on ]; do sleep 0.05; done"
    listed = {"tools": [{"name": "fs_list", "arguments": {}}]}
    agent(
        daemon,
        "expert",
        ALREADY_SAID,
        listed,
        shell(wait),
        {"text": "done by the expert"},
        tools=["shell", "fs_list"],
        **TRANSIENT,
    )
    with daemon.client() as otto:
        first = otto.start("triage", "go", cwd=daemon.workdir)
        wait_for("the successor works", lambda: (daemon.workdir / "begun").exists())
        if victim != "root":
            expert = tree(otto, first)["expert"]
            struck = first.info() if victim == "first" else expert
            worker = identify(struck.pid)
            assert worker is not None and send_signal(worker, signal.SIGKILL)
            wait_for("it is back", lambda: otto.session(struck.session).info().incarnation == 2)
    if victim == "root":
        daemon.kill()
        daemon.start()
    (daemon.workdir / "on").touch()
    with daemon.client() as otto:
        first = otto.session(first.id)
        result = first.wait(timeout_s=60)
        assert result.ok and result.result == "done by the expert", (result.cause, result.result)
        assert set(tree(otto, first)) == {"triage", "expert"}
        assert len([e for e in first.journal() if isinstance(e, j.ModelCalled)]) == 1


def sweep(points: tuple[str, ...]) -> None:
    """The first one's worker is killed at a record of its journal, for each record; all at once on one daemon."""
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client(timeout_s=120) as otto:
        model = daemon.script("triage", handoff("expert"), {"text": "never said"})
        transient = Restart(policy="transient", backoff=Backoff(base_s=0.05))
        spec = replace(
            daemon.agent(model, "handoff", restart=transient, env=("FAILPOINT",)), handoffs=("expert",), name="triage"
        )
        agent(daemon, "expert", ALREADY_SAID, {"text": "done by the expert"})
        started = {
            (point, n): otto.start(spec=spec, task="go", cwd=daemon.workdir, env={"FAILPOINT": f"1:{point}:{n}"})
            for point in points
            for n in range(1, RECORDS + 1)
        }
        died = 0
        for place, first in started.items():
            result = first.wait(timeout_s=100)
            assert result.ok and result.result == "done by the expert", (place, result.cause, result.result)
            infos = tree(otto, first)
            assert set(infos) == {"triage", "expert"}, (place, "handed over twice")
            died += infos["triage"].incarnation - 1
        assert died >= len(started) - len(points), "it died in each of them, but for its last record"


RECORDS = 10
"""Of the first one's journal, to its end."""


def test_killed_at_every_record_it_is_handed_over_once() -> None:
    sweep(("written",))


@pytest.mark.long
@pytest.mark.timeout(400)
def test_killed_before_in_and_behind_every_record_it_is_handed_over_once() -> None:
    for point in ("before", "torn", "synced"):
        sweep((point,))


@pytest.mark.long
def test_a_long_answer_is_whole_whoever_is_killed() -> None:
    """The first one and its successor are both killed, at each record of their journals."""
    long = "".join(f"line {n}\n" for n in range(6000))
    report = Output(name="report", capture="answer")
    flow = workflow("sequential", step("a", "triage", outputs=(report,)))
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client(timeout_s=120) as otto:
        triage(daemon, handoff("expert"), {"text": "never said"}, env=["FAILPOINT"], **TRANSIENT)
        agent(daemon, "expert", ALREADY_SAID, {"text": long}, env=["FAILPOINT"], **TRANSIENT)
        # The user's: a project's may not name variables.
        users = daemon.base / "config" / "agents"
        users.mkdir(parents=True, exist_ok=True)
        for file in (daemon.workdir / ".otto" / "agents").glob("*.yml"):
            file.rename(users / file.name)
        died = 0
        for n in range(1, RECORDS + 1):
            session = start(daemon, otto, flow, env={"FAILPOINT": f"1:written:{n}"})
            result = session.wait(timeout_s=100)
            assert result.ok, (n, result.cause, result.result)
            kept = {info.name: info for info in otto.artifacts(session=session.id)}
            assert otto.read_artifact(kept["report"]).decode() == long, n
            infos = otto.list_with(ListSessions(tree=session.id, all=True)).sessions
            assert len(infos) == 3, "handed over once"
            died += sum(info.incarnation - 1 for info in infos)
        assert died >= RECORDS, died


def test_a_stop_reaches_the_successor(daemon: RealDaemon) -> None:
    triage(daemon, handoff("expert"))
    agent(daemon, "expert", ALREADY_SAID, shell("sleep 300"), tools=["shell"])
    with daemon.client() as otto:
        first = otto.start("triage", "go", cwd=daemon.workdir)
        wait_for("it works", lambda: any(i.current_tool == "shell" for i in otto.list()))
        stopped = first.stop(grace_s=20)
        assert not stopped.remaining_pids and len(stopped.stopped) == 2 and not otto.list()
