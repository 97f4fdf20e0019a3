"""The decision graph through a whole daemon: shared by a project, over sessions and time, and kept once."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from ottoctl.sync import SyncOtto
from ottod.errors import RefusedError
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.decisions import DecisionFilter
from ottod.protocol.events import DecisionLogged
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

TOOLS = ("decision_log", "decision_query", "spawn_agent", "shell")
TRANSIENT = Restart(policy="transient", backoff=Backoff(base_s=0))


def log(**arguments: object) -> dict[str, object]:
    """A step of a script that logs."""
    return {"tools": [{"name": "decision_log", "arguments": arguments}]}


def goal(title: str, **more: object) -> dict[str, object]:
    return {"kind": "goal", "title": title, **more}


QUERY = {"tools": [{"name": "decision_query", "arguments": {}}]}


def told(otto: SyncOtto, session: str) -> list[DecisionLogged]:
    events = [e.event for e in otto.session(session).events(follow=False)]
    return [e for e in events if isinstance(e, DecisionLogged)]


@pytest.mark.real
def test_a_project_shares_what_its_agents_logged() -> None:
    """A child sees what its parent logged, a later session of a subdirectory too; another project sees nothing."""
    with running_daemon() as daemon, daemon.client() as otto:
        (daemon.workdir / ".git").mkdir()
        child = daemon.script("child", QUERY, {"text": "saw: ${last_tool_result}"})
        agents = daemon.workdir / ".otto" / "agents"
        agents.mkdir(parents=True)
        (agents / "helper.yml").write_text(json.dumps({"model": child, "tools": list(TOOLS)}))
        parent = daemon.script(
            "parent",
            log(
                nodes=[
                    goal("log in", ref="g"),
                    {"kind": "decision", "title": "tokens", "ref": "d", "confidence": 40},
                ],
                edges=[{"source": "g", "kind": "leads_to", "target": "d"}],
            ),
            {"tools": [{"name": "spawn_agent", "arguments": {"agent": "helper", "task": "look"}}]},
            {"text": "${last_tool_result}"},
        )
        top = otto.run(spec=daemon.agent(parent, *TOOLS), task="go", cwd=daemon.workdir)
        assert top.ok and "decision, 40 %, by tester in" in top.result and "leads_to" in top.result
        assert "[untrusted content, mark " in top.result

        below = daemon.workdir / "src"
        below.mkdir()
        later = otto.run(spec=daemon.agent(child, *TOOLS), task="go", cwd=below)
        assert later.result.startswith("saw: 2 nodes") and ": tokens" in later.result
        elsewhere = daemon.base / "elsewhere"
        elsewhere.mkdir()
        other = otto.run(spec=daemon.agent(child, *TOOLS), task="go", cwd=elsewhere)
        assert other.result == "saw: there are no such nodes"

        otto.session(top.session).remove()
        listed = ctl(daemon, "list", "--project", str(below), "-o", "json")
        assert [node["title"] for node in json.loads(listed)] == ["tokens", "log in"]
        assert [node["title"] for node in json.loads(ctl(daemon, "list", "--tree", top.session, "-o", "json"))] == [
            "tokens",
            "log in",
        ]
        drawn = ctl(daemon, "graph", "--project", str(below), "-o", "json")
        assert len(json.loads(drawn)["edges"]) == 1
        (decision, _) = json.loads(listed)
        assert "leads_to" in ctl(daemon, "show", decision["node"][:9])
        found = otto.decisions(DecisionFilter(project=str(below)))
        assert [(node.title, node.tree) for node in found.nodes] == [("tokens", top.session), ("log in", top.session)]
        assert found.project == str(daemon.workdir.resolve()) and len(found.edges) == 1
        assert otto.decisions(DecisionFilter(session=top.session)).nodes == found.nodes
        assert otto.decisions(DecisionFilter(node=found.nodes[0].node[:8], depth=0)).nodes == found.nodes[:1]
        with pytest.raises(RefusedError, match="no node"):
            otto.decisions(DecisionFilter(node="d-0000000000"))
        assert asyncio.run(ask(daemon, below)) == found.nodes
        assert otto.forget_decisions(below) == 2
        assert otto.decisions(DecisionFilter(project=str(below))).nodes == ()


def ctl(daemon: RealDaemon, *arguments: str) -> str:
    """What `ottoctl decisions …` prints."""
    argv = [sys.executable, "-m", "ottoctl", "decisions", *arguments]
    return subprocess.run(argv, env=daemon.env, capture_output=True, timeout=60, check=True, text=True).stdout


async def ask(daemon: RealDaemon, project: object) -> object:
    async with daemon.async_client() as otto:
        return (await otto.decisions(DecisionFilter(project=str(project)))).nodes


@pytest.mark.real
def test_a_refused_call_tells_the_model_why() -> None:
    """And leaves nothing behind, nor can a model mistake the refusal for success."""
    with running_daemon() as daemon, daemon.client() as otto:
        model = daemon.script(
            "wrong",
            log(nodes=[goal("x", ref="x")], edges=[{"source": "x", "kind": "chosen", "target": "x"}]),
            {"text": "${last_tool_result}"},
        )
        result = otto.run(spec=daemon.agent(model, *TOOLS), task="go", cwd=daemon.workdir)
        assert "cannot be joined to itself" in result.result
        assert otto.decisions(DecisionFilter(project=str(daemon.workdir))).nodes == ()


@pytest.mark.real
def test_secrets_do_not_get_into_the_graph() -> None:
    """What looks like a key is taken out before anything is kept."""
    secret = "sk-ant-api03-" + "Zq9" * 30
    with running_daemon() as daemon, daemon.client() as otto:
        model = daemon.script("leaky", log(nodes=[goal("x", text=f"the key is {secret}")]), {"text": "ok"})
        otto.run(spec=daemon.agent(model, *TOOLS), task="go", cwd=daemon.workdir)
        found = otto.decisions(DecisionFilter(project=str(daemon.workdir), has_text=True))
        assert secret not in repr(found)
        assert secret.encode() not in (daemon.base / "state" / "otto.db").read_bytes()


@pytest.mark.real
def test_a_killed_worker_and_a_killed_root_log_once() -> None:
    """The worker is killed when root has logged and the worker has not noted it, then root is: one node each."""
    with running_daemon() as daemon:
        steps = [log(nodes=[goal(f"goal {n}")]) for n in range(6)]
        pause = {"tools": [{"name": "shell", "arguments": {"command": "touch reached; sleep 1"}}]}
        model = daemon.script("many", *steps[:2], pause, *steps[2:], {"text": "done"})
        wanted = DecisionFilter(project=str(daemon.workdir))
        with daemon.client() as otto:
            session = otto.start(spec=daemon.agent(model, *TOOLS, restart=TRANSIENT), task="go", cwd=daemon.workdir)
            wait_for("the shell's call", lambda: (daemon.workdir / "reached").exists())
            worker = identify(session.info().pid)
            assert worker is not None and send_signal(worker, signal.SIGKILL)
            wait_for("some more", lambda: len(otto.decisions(wanted).nodes) >= 3)
            daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            assert otto.session(session.id).wait().ok
            found = otto.decisions(wanted).nodes
            assert sorted(node.title for node in found) == [f"goal {n}" for n in range(6)]
            assert {n for event in told(otto, session.id) for n in event.nodes} == {node.node for node in found}


@pytest.mark.real
def test_between_the_effect_and_its_note() -> None:
    """Killed before each record of its journal, also that between the effect and its result: one node, and its id
    is what the model hears."""
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client() as otto:
        model = daemon.script("one", log(nodes=[goal("only once")]), {"text": "${last_tool_result}"})
        spec = daemon.agent(model, *TOOLS, restart=TRANSIENT, env=("FAILPOINT",))
        sessions = [
            otto.start(spec=spec, task="go", cwd=daemon.workdir, env={"FAILPOINT": f"1:before:{number}"})
            for number in range(2, 10)
        ]
        died = 0
        for session in sessions:
            result = session.wait()
            (node,) = otto.decisions(DecisionFilter(session=session.id)).nodes
            assert result.ok and node.node in result.result
            died += result.info.incarnation - 1
        assert died >= 5


@pytest.mark.real
def test_many_at_once() -> None:
    """Agents that log at the same time lose nothing, and none sees half of another's call."""
    with running_daemon() as daemon, daemon.client() as otto:
        pairs = [
            log(
                nodes=[goal(f"goal {n}", ref="g"), {"kind": "action", "title": f"act {n}", "ref": "a"}],
                edges=[{"source": "g", "kind": "leads_to", "target": "a"}],
            )
            for n in range(5)
        ]
        model = daemon.script("pair", *pairs, {"text": "ok"})
        spec = daemon.agent(model, *TOOLS)
        sessions = [otto.start(spec=spec, task="go", cwd=daemon.workdir) for _ in range(6)]
        assert all(session.wait().ok for session in sessions)
        found = otto.decisions(DecisionFilter(project=str(daemon.workdir)))
        assert len(found.nodes) == 60 and len(found.edges) == 30
        assert {node.session for node in found.nodes} == {session.id for session in sessions}
