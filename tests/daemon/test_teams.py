"""Teams: names, messages that arrive once, and what is said of those that cannot."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import yaml

from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import identify, send_signal
from ottod.protocol import journal as j
from ottod.protocol.events import MessageReceived, MessageSent, ToolCompleted, ToolFailed, TurnCompleted
from ottod.protocol.requests import ListSessions
from ottod.protocol.results import SessionInfo
from ottod.storage.journal_history import read_history
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

TEAM_TOOLS = ["spawn_agent", "send_message", "broadcast", "list_agents"]


def call(tool: str, **arguments: object) -> dict[str, object]:
    return {"name": tool, "arguments": arguments}


def spawn(agent: str, task: str = "go", **arguments: object) -> dict[str, object]:
    return call("spawn_agent", agent=agent, task=task, **arguments)


def shell(command: str) -> dict[str, object]:
    return call("shell", command=command)


def until_file(name: str) -> dict[str, object]:
    return shell(f"while [ ! -e {name} ]; do sleep 0.05; done; echo {name}")


class Place:
    """A daemon whose working directory has agents of its own."""

    def __init__(self, daemon: RealDaemon) -> None:
        self.daemon = daemon
        self.agents = daemon.workdir / ".otto" / "agents"
        self.agents.mkdir(parents=True)

    def agent(
        self, name: str, *turns: Mapping[str, object], tools: list[str] | None = None, **fields: object
    ) -> None:
        """An agent that plays a script of its own."""
        model = self.daemon.script(name, *turns)
        spec = {"name": name, "model": model, "tools": [*TEAM_TOOLS, "shell", *(tools or [])], **fields}
        (self.agents / f"{name}.yml").write_text(yaml.safe_dump(spec))

    def start(self, otto: SyncOtto, agent: str, task: str = "go", **fields: object) -> SyncSession:
        return otto.start(agent, task, cwd=self.daemon.workdir, **fields)  # type: ignore[arg-type]

    def named(self, otto: SyncOtto, top: SyncSession, name: str) -> SyncSession:
        """The session of the tree that has this name, once it is there."""

        def find() -> SyncSession | None:
            for info in members(otto, top):
                if info.name == name:
                    return otto.session(info.session)
            return None

        return wait_for(name, find)

    def touch(self, name: str) -> None:
        (self.daemon.workdir / name).touch()


def members(otto: SyncOtto, top: SyncSession) -> list[SessionInfo]:
    return list(otto.list_with(ListSessions(tree=top.id, all=True)).sessions)


def kill(session: SyncSession) -> None:
    worker = identify(session.info().pid)
    assert worker is not None and send_signal(worker, signal.SIGKILL)


def events(otto: SyncOtto, session: str, kind: type) -> list[object]:
    return [e.event for e in otto.session(session).events(follow=False) if isinstance(e.event, kind)]


def hears(session: SyncSession, text: str) -> None:
    """Returns when the session has in its journal what somebody said to it."""

    def is_heard() -> bool:
        said = [entry.text for entry in session.journal() if isinstance(entry, j.InputAccepted)]
        return any(each.splitlines()[-1] == text for each in said)

    wait_for(f"it hears {text}", is_heard)


def entries(session: SyncSession, kind: type) -> list[object]:
    return [e for e in read_history(Path(session.info().journal).parent).entries if isinstance(e, kind)]


@pytest.fixture
def place() -> Iterator[Place]:
    with running_daemon() as daemon:
        yield Place(daemon)


def test_names_count_on_and_messages_reach_them(place: Place) -> None:
    """Two of a kind are told apart by number; each hears what is said to it, marked as another agent's word."""
    place.agent("helper", {"tools": [until_file("on")]}, {"text": "heard: ${input}"})
    place.agent(
        "lead",
        {
            "tools": [
                spawn("helper", wait=False),
                spawn("helper", wait=False),
                spawn("helper", name="scout", wait=False),
            ]
        },
        {
            "tools": [
                call("list_agents"),
                call("send_message", to="helper#2", text="for the second"),
                call("send_message", to="scout", text="for scout"),
                call("send_message", to="nobody", text="lost"),
            ]
        },
        {"text": "${last_tool_result}"},
        *[{"text": "noted: ${input}"}] * 3,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        second, scout = place.named(otto, lead, "helper#2"), place.named(otto, lead, "scout")
        wait_for("it is told", lambda: events(otto, second.id, MessageReceived))
        # One that hears after its answer has another turn.
        wait_for("so is the other", lambda: events(otto, scout.id, MessageReceived))
        wait_for("the lead has said all", lambda: len(events(otto, lead.id, MessageSent)) == 2)
        wait_for("and knows what became of it", lambda: events(otto, lead.id, TurnCompleted))
        failed = events(otto, lead.id, ToolFailed)[0]
        assert isinstance(failed, ToolFailed) and failed.failure.code == "no_such_agent"
        there_are = failed.failure.mend.removeprefix("there are: ").split(", ")
        assert there_are[0] == "lead" and set(there_are[1:]) == {"helper", "helper#2", "scout"}
        listed = next(e for e in events(otto, lead.id, ToolCompleted) if e.tool == "list_agents")  # type: ignore[attr-defined]
        assert f"lead ({lead.id}): runs lead, running, this session" in listed.output  # type: ignore[attr-defined]
        assert "scout (" in listed.output and "below lead" in listed.output  # type: ignore[attr-defined]
        place.touch("on")
        assert lead.wait().ok
        infos = {i.name: i for i in members(otto, lead)}
        assert set(infos) == {"lead", "helper", "helper#2", "scout"}
        head = f"[message from lead ({lead.id}), another agent; not from the user]"
        assert infos["helper#2"].result == f"heard: {head}\n\nfor the second"
        assert infos["scout"].result == f"heard: {head}\n\nfor scout"
        assert infos["helper"].result == "heard: go"
        (received,) = events(otto, infos["scout"].session, MessageReceived)
        assert (received.sender, received.name) == (lead.id, "lead")  # type: ignore[attr-defined]
        sent = events(otto, lead.id, MessageSent)
        assert {m.name for m in sent} == {"scout", "helper#2"}  # type: ignore[attr-defined]


def test_a_message_to_an_ended_session_says_how_that_ended(place: Place) -> None:
    """By name or id; and one that nobody can speak to is refused with those that there are."""
    place.agent("dies", {"crash": "SIGKILL"})
    place.agent(
        "lead",
        {"tools": [spawn("dies")]},
        {"tools": [call("send_message", to="dies", text="are you there?")]},
        {"text": "${last_tool_result}"},
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        result = lead.wait()
        dead = next(i for i in members(otto, lead) if i.name == "dies")
        assert f"dies ({dead.session}) has ended: crashed(SIGKILL)" in result.result
        (failed,) = [e for e in events(otto, lead.id, ToolFailed) if e.tool == "send_message"]  # type: ignore[attr-defined]
        assert failed.failure.code == "session_ended"  # type: ignore[attr-defined]


def test_a_broadcast_reaches_those_of_a_role_or_all(place: Place) -> None:
    """Not the sender; the child answers its parent."""
    place.agent(
        "a",
        {"tools": [until_file("on")]},
        {"tools": [call("send_message", to="parent", text="done")]},
        {"text": "${input}"},
    )
    place.agent("b", {"tools": [until_file("on")]}, {"text": "${input}"})
    place.agent(
        "lead",
        {"tools": [spawn("a", wait=False), spawn("b", wait=False), spawn("b", wait=False)]},
        {
            "tools": [
                call("broadcast", to="b", text="for bs"),
                call("broadcast", to="all", text="for all"),
                shell("touch on"),
            ]
        },
        {"tools": [until_file("never")]},
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        wait_for("all ended", lambda: sum(i.state == "ended" for i in members(otto, lead)) == 3)
        told = [e.output for e in events(otto, lead.id, ToolCompleted) if e.tool == "broadcast"]  # type: ignore[attr-defined]
        assert sorted(told) == ["2 of 2 have the message", "3 of 3 have the message"]
        infos = {i.name: i for i in members(otto, lead)}
        for name, texts in (("a", {"for all"}), ("b", {"for bs", "for all"}), ("b#2", {"for bs", "for all"})):
            heard = [e.text for e in events(otto, infos[name].session, MessageReceived)]  # type: ignore[attr-defined]
            assert set(heard) == texts and len(heard) == len(texts)
        assert "done" in [e.text for e in events(otto, lead.id, MessageReceived)]  # type: ignore[attr-defined]
        lead.stop(grace_s=2)


def test_a_rule_about_an_agent_holds_whatever_it_is_called(place: Place) -> None:
    """`target` denies starting and speaking to an agent; a name that was given does not get around it."""
    rules = [
        {"effect": "deny", "tool": "send_message", "target": "secret"},
        {"effect": "deny", "tool": "spawn_agent", "target": "other"},
    ]
    place.agent("secret", {"tools": [until_file("on")]}, {"text": "${input}"})
    place.agent("other", {"text": "never"})
    place.agent(
        "lead",
        {"tools": [spawn("secret", name="scout", wait=False), spawn("secret", wait=False), spawn("other")]},
        {
            "tools": [
                call("send_message", to="scout", text="1"),
                call("send_message", to="secret", text="2"),
                call("send_message", to="parent", text="3"),
            ]
        },
        {"tools": [shell("touch on"), until_file("never")]},
        permissions={"preset": "autonomous", "rules": rules},
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        wait_for("all ended", lambda: sum(i.state == "ended" for i in members(otto, lead)) == 2)
        failed = events(otto, lead.id, ToolFailed)
        told = sorted((e.tool, e.failure.code) for e in failed)  # type: ignore[attr-defined]
        assert told == [*[("send_message", "denied")] * 3, ("spawn_agent", "denied")]
        assert {i.result for i in members(otto, lead) if i.agent == "secret"} == {"go"}
        lead.stop(grace_s=2)


@pytest.mark.parametrize("victim", ["sender", "receiver", "root"])
def test_a_message_arrives_once_whoever_is_killed(place: Place, victim: str) -> None:
    """The receiver is frozen, so that the message is on its way when somebody dies; afterwards it is there once."""
    transient = {"restart": {"policy": "transient", "backoff": {"base_s": 0.05}}}
    # Killed within its first step it goes on with the second, and still is at it when the message is sent again.
    busy = {"tools": [until_file("on")]}
    place.agent("helper", busy, busy, *[{"text": "heard: ${input}"}] * 2, **transient)
    place.agent(
        "lead",
        {"tools": [spawn("helper", wait=False)]},
        {"tools": [until_file("send")]},
        {"tools": [call("send_message", to="helper", text="once")]},
        {"text": "${last_tool_result}"},
        {"text": "noted: ${input}"},
        **transient,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        helper = place.named(otto, lead, "helper")
        wait_for("it works", lambda: helper.info().current_tool == "shell")
        worker = identify(helper.info().pid)
        assert worker is not None and send_signal(worker, signal.SIGSTOP)
        place.touch("send")
        wait_for("it is on its way", lambda: lead.info().current_tool == "send_message")
        if victim == "sender":
            kill(lead)
            wait_for("it asks again", lambda: lead.info().incarnation == 2 and lead.info().current_tool)
        elif victim == "receiver":
            kill(helper)
    if victim == "root":
        place.daemon.kill()
        place.daemon.start()
    if victim != "receiver":
        assert send_signal(worker, signal.SIGCONT)
    with place.daemon.client() as otto:
        lead, helper = otto.session(lead.id), otto.session(helper.id)
        wait_for("it is sent", lambda: events(otto, lead.id, MessageSent))
        place.touch("on")
        assert lead.wait().ok
        texts = [e.text for e in entries(helper, j.InputAccepted)]  # type: ignore[attr-defined]
        assert len(texts) == 1 and texts[0].endswith("\n\nonce")
        assert helper.info().result.endswith("once")
        assert {i.name for i in members(otto, lead)} == {"lead", "helper"}, "names outlive root"


TEAM = ["ask_agent", "await_agents", "stop_agent"]


def result_of(otto: SyncOtto, session: SyncSession, tool: str) -> list[str]:
    """What calls of a tool gave, failures included."""
    found = []
    for event in [e.event for e in session.events(follow=False)]:
        if isinstance(event, ToolCompleted) and event.tool == tool:
            found.append(event.output)
        elif isinstance(event, ToolFailed) and event.tool == tool:
            found.append(event.output or f"{event.failure.code}: {event.failure.message}")
    return found


def test_a_conversation_is_asked_again_and_ends_with_its_parents_work(place: Place) -> None:
    """Its task is its first question; each answer is the end of the turn that the question began."""
    place.agent("expert", *[{"text": "${step}: ${input}"}] * 5)
    place.agent(
        "lead",
        {"tools": [spawn("expert", "one", mode="conversation")]},
        {"tools": [call("ask_agent", to="expert", question="two")]},
        {"tools": [call("ask_agent", to="expert", question="three")]},
        {"text": "${last_tool_result}"},
        tools=TEAM,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        assert lead.wait().ok
        assert lead.info().result.endswith("three") and "3: [question from lead" in lead.info().result
        expert = next(i for i in members(otto, lead) if i.name == "expert")
        assert expert.cause is not None and expert.cause.kind == "cancelled" and expert.turn == 3
        assert len(events(otto, lead.id, MessageReceived)) == 0, "an end that was wanted is no news"


def test_an_answer_does_not_take_the_place_of_a_result(place: Place) -> None:
    """A one-shot child that is asked while it works answers after its task, and its result is that of its task."""
    place.agent("worker", {"tools": [until_file("on")]}, {"text": "my result"}, {"text": "my answer"})
    place.agent(
        "lead",
        {"tools": [spawn("worker", wait=False)]},
        {"tools": [call("ask_agent", to="worker", question="how far?")]},
        {"tools": [call("await_agents", agents=["worker"])]},
        {"text": "${last_tool_result}"},
        tools=TEAM,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        hears(place.named(otto, lead, "worker"), "how far?")
        place.touch("on")
        assert lead.wait().ok
        (asked,) = result_of(otto, lead, "ask_agent")
        assert asked.endswith("answers:\n\nmy answer")
        assert lead.info().result.endswith("completed\n\nmy result")
        assert lead.info().turn == 1, "what a call was told comes as no message"


def test_a_lead_replaces_one_that_crashed(place: Place) -> None:
    """await_agents tells of each with its cause; a replacement has the name of the one that is gone."""
    place.agent("good", {"text": "fine"})
    place.agent("bad", {"crash": "SIGKILL", "marker": "crashed-once"}, {"text": "better now"})
    place.agent(
        "lead",
        {"tools": [spawn("good", wait=False), spawn("bad", wait=False), spawn("good", wait=False)]},
        {"tools": [call("await_agents", agents=["good", "good#2", "bad"])]},
        {"tools": [spawn("good", name="bad")]},
        {"text": "${last_tool_result}"},
        tools=TEAM,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        assert lead.wait().ok
        (ends,) = result_of(otto, lead, "await_agents")
        assert ends.count("completed\n\nfine") == 2 and "runs bad): crashed(SIGKILL)" in ends
        named = [i for i in members(otto, lead) if i.name == "bad"]
        assert {i.agent for i in named} == {"good", "bad"} and "(bad) of agent good: completed" in lead.info().result
        assert lead.info().turn == 1


def test_agents_that_wait_for_each_other_are_refused(place: Place) -> None:
    """A child that asks the parent which waits for its end; and a longer circle, named."""
    place.agent(
        "child",
        {"tools": [call("ask_agent", to="parent", question="well?")]},
        {"text": "${last_tool_result}"},
        tools=TEAM,
    )
    place.agent(
        "first",
        {"tools": [call("ask_agent", to="second", question="?")]},
        {"text": "${last_tool_result}"},
        tools=TEAM,
    )
    place.agent(
        "second",
        {"tools": [until_file("on")]},
        {"tools": [call("ask_agent", to="first", question="?")]},
        *[{"text": "${last_tool_result}"}] * 2,
        tools=TEAM,
    )
    place.agent("lead", {"tools": [spawn("child")]}, {"text": "${last_tool_result}"})
    place.agent(
        "other", {"tools": [spawn("second", wait=False), spawn("first", wait=False)]}, *[{"text": "${input}"}] * 3
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        assert lead.wait().ok
        text = "child would wait for lead, which waits for child, and nobody would ever go on"
        assert text in lead.info().result
        other = place.start(otto, "other")
        first = place.named(otto, other, "first")
        wait_for("it asks", lambda: first.info().state == "waiting_children")
        place.touch("on")
        assert other.wait().ok
        infos = {i.name: i for i in members(otto, other)}
        assert "second would wait for first, which waits for second" in infos["second"].result
        assert "answers" in infos["first"].result


@pytest.mark.parametrize("victim", ["asker", "asked", "root"])
def test_a_question_has_one_turn_and_an_answer_whoever_is_killed(place: Place, victim: str) -> None:
    """kill -9 in the middle of an ask: it is heard once, and who asked gets the answer."""
    transient = {"restart": {"policy": "transient", "backoff": {"base_s": 0.05}}}
    place.agent(
        "expert",
        {"tools": [until_file("begun"), until_file("on")]},
        {"text": "42"},
        *[{"text": "again"}] * 3,
        **transient,
    )
    place.agent(
        "lead",
        {"tools": [spawn("expert", "the question", mode="conversation")]},
        {"text": "${last_tool_result}"},
        tools=TEAM,
        **transient,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        expert = place.named(otto, lead, "expert")
        wait_for("it thinks", lambda: expert.info().current_tool == "shell")
        if victim == "asker":
            kill(lead)
            wait_for("it is back", lambda: lead.info().incarnation == 2 and lead.info().state == "waiting_children")
        elif victim == "asked":
            kill(expert)
    if victim == "root":
        place.daemon.kill()
        place.touch("begun")
        place.touch("on")
        place.daemon.start()
    place.touch("begun")
    place.touch("on")
    with place.daemon.client() as otto:
        lead, expert = otto.session(lead.id), otto.session(expert.id)
        assert lead.wait().ok
        assert lead.info().result.endswith("answers:\n\n42")
        assert len(entries(expert, j.InputAccepted)) == 1 and len(entries(expert, j.UserSaid)) == 1


def test_who_dies_with_a_question_leaves_its_cause(place: Place) -> None:
    """A child that never returns: the call fails with how it ended; a time-out is a result of its own."""
    place.agent("dies", {"tools": [until_file("on")]}, {"text": "x"}, {"crash": "SIGKILL"})
    place.agent(
        "lead",
        {"tools": [spawn("dies", wait=False)]},
        {"tools": [call("ask_agent", to="dies", question="?", timeout_s=1)]},
        {"tools": [call("ask_agent", to="dies", question="??")]},
        *[{"text": "${input}"}] * 2,
        tools=TEAM,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        hears(place.named(otto, lead, "dies"), "??")
        place.touch("on")
        assert lead.wait().ok
        timed_out, died = result_of(otto, lead, "ask_agent")
        assert timed_out.startswith("timeout: dies did not answer within 1 s")
        assert died.startswith("session_ended: dies (") and "has ended without an answer: crashed(SIGKILL)" in died
        dies = next(i for i in members(otto, lead) if i.name == "dies")
        said = entries(otto.session(dies.session), j.UserSaid)
        assert [e.text.splitlines()[-1] for e in said] == ["go", "??"], "the withdrawn one had no turn"  # type: ignore[attr-defined]


def test_a_role_has_its_own_limit(place: Place) -> None:
    """limits.max_per_role counts what lives at any depth below, and refuses what is beyond."""
    place.agent("helper", {"tools": [until_file("on")]}, {"text": "done"})
    place.agent("middle", {"tools": [spawn("helper")]}, {"text": "${last_tool_result}"})
    place.agent(
        "lead",
        {"tools": [spawn("helper", wait=False)]},
        {"tools": [spawn("middle")]},
        {"tools": [shell("touch on")]},
        *[{"text": "ready"}] * 2,
        limits={"max_per_role": {"helper": 1}},
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        assert lead.wait().ok
        middle = next(i for i in members(otto, lead) if i.name == "middle")
        assert middle.result.startswith("1 session below lead runs helper already")
        (failed,) = events(otto, middle.session, ToolFailed)
        assert failed.failure.code == "too_many_of_role"  # type: ignore[attr-defined]
        assert sum(i.agent == "helper" for i in members(otto, lead)) == 1


def test_one_that_floods_waits_by_itself(place: Place) -> None:
    """Its messages stop at the bound of one sender; a sibling's arrive meanwhile, and all of them in the end."""
    flood = [call("send_message", to="parent", text=f"noise {n}") for n in range(25)]
    place.agent("noisy", {"tools": flood}, {"text": "said"}, limits={"max_parallel_tools": 25})
    calm = [call("send_message", to="parent", text=f"calm {n}") for n in range(3)]
    place.agent("calm", {"tools": [until_file("full")]}, {"tools": calm}, {"text": "said"})
    place.agent(
        "lead",
        {"tools": [spawn("noisy", wait=False), spawn("calm", wait=False), until_file("on")]},
        *[{"text": "heard"}] * 40,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        noisy, quiet = place.named(otto, lead, "noisy"), place.named(otto, lead, "calm")

        def heard(of: SyncSession) -> int:
            return sum(e.sender == of.id for e in events(otto, lead.id, MessageReceived))  # type: ignore[attr-defined]

        wait_for("the flood stops", lambda: heard(noisy) == 20)
        wait_for("it waits", lambda: metric(otto, "otto_messages_waiting") > 0)
        place.touch("full")
        assert quiet.wait().ok, "it is not held up"
        wait_for("three messages, and its end", lambda: heard(quiet) == 4)
        assert heard(noisy) == 20 and noisy.info().state != "ended"
        place.touch("on")
        assert lead.wait().ok and noisy.info().cause is not None
        sent = [e.name for e in events(otto, noisy.id, MessageSent)]  # type: ignore[attr-defined]
        assert heard(noisy) == 26 and sent == ["lead"] * 25
        assert metric(otto, "otto_messages_waiting") == 0


def metric(otto: SyncOtto, name: str) -> float:
    (family,) = [f for f in otto.metrics() if f.name == name]
    return sum(sample.value for sample in family.samples)


def test_a_hundred_children_ten_at_a_time(place: Place) -> None:
    """Never more than the cap live, all of them are done, and root is as it was before."""
    place.agent("small", {"text": "done"})
    limits = {"max_parallel_tools": 10, "max_children": 10, "max_per_role": {"small": 10}}
    place.agent("lead", {"tools": [spawn("small")] * 100}, {"text": "${last_tool_result}"}, limits=limits)
    with place.daemon.client(timeout_s=300) as otto:
        root = psutil.Process(place.daemon.pid)
        warm = place.start(otto, "lead")
        assert warm.wait().ok
        before = root.num_fds(), root.num_threads(), root.memory_info().rss
        lead = place.start(otto, "lead")
        most = 0

        def is_over() -> bool:
            nonlocal most
            infos = otto.list_with(ListSessions(tree=lead.id)).sessions
            most = max(most, sum(i.agent == "small" for i in infos))
            return lead.info().state == "ended"

        wait_for("all are done", is_over, deadline_s=300)
        assert lead.info().result.count("completed\n\ndone") == 100
        assert 1 < most <= 10
        wait_for("root has let go", lambda: root.num_fds() <= before[0] + 2)
        assert root.num_threads() < before[1] + 20, "its pool of threads has a bound, whatever lives"
        assert root.memory_info().rss < before[2] + 24 * 1024 * 1024
        names = {i.name for i in members(otto, lead)}
        assert len(names) == 101 and "small#100" in names
