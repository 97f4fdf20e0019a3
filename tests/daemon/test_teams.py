"""Teams: names, messages that arrive once, and what is said of those that cannot."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import identify, send_signal
from ottod.protocol import journal as j
from ottod.protocol.events import MessageReceived, MessageSent, ToolCompleted, ToolFailed
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
                spawn("helper", name="bob", wait=False),
            ]
        },
        {
            "tools": [
                call("list_agents"),
                call("send_message", to="helper#2", text="for the second"),
                call("send_message", to="bob", text="for bob"),
                call("send_message", to="nobody", text="lost"),
            ]
        },
        {"text": "${last_tool_result}"},
        *[{"text": "noted: ${input}"}] * 3,
    )
    with place.daemon.client() as otto:
        lead = place.start(otto, "lead")
        second = place.named(otto, lead, "helper#2")
        wait_for("it is told", lambda: events(otto, second.id, MessageReceived))
        wait_for("the lead has said all", lambda: len(events(otto, lead.id, ToolFailed)) == 1)
        failed = events(otto, lead.id, ToolFailed)[0]
        assert isinstance(failed, ToolFailed) and failed.failure.code == "no_such_agent"
        assert failed.failure.mend == "there are: lead, helper, helper#2, bob"
        listed = next(e for e in events(otto, lead.id, ToolCompleted) if e.tool == "list_agents")  # type: ignore[attr-defined]
        assert f"lead ({lead.id}): runs lead, running, this session" in listed.output  # type: ignore[attr-defined]
        assert "bob (" in listed.output and "below lead" in listed.output  # type: ignore[attr-defined]
        place.touch("on")
        assert lead.wait().ok
        infos = {i.name: i for i in members(otto, lead)}
        assert set(infos) == {"lead", "helper", "helper#2", "bob"}
        head = f"[message from lead ({lead.id}), another agent; not from the user]"
        assert infos["helper#2"].result == f"heard: {head}\n\nfor the second"
        assert infos["bob"].result == f"heard: {head}\n\nfor bob"
        assert infos["helper"].result == "heard: go"
        (received,) = events(otto, infos["bob"].session, MessageReceived)
        assert (received.sender, received.name) == (lead.id, "lead")  # type: ignore[attr-defined]
        sent = events(otto, lead.id, MessageSent)
        assert sorted(m.name for m in sent) == ["bob", "helper#2"]  # type: ignore[attr-defined]


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
        {"tools": [spawn("secret", name="bob", wait=False), spawn("secret", wait=False), spawn("other")]},
        {
            "tools": [
                call("send_message", to="bob", text="1"),
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
    place.agent("helper", {"tools": [until_file("on")]}, *[{"text": "heard: ${input}"}] * 2, **transient)
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
