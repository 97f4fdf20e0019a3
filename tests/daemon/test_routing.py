"""A start that names nobody: the daemon's router chooses, says why, and refuses with who comes nearest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ottod.errors import OttoError
from ottod.protocol.events import SessionCreated
from tests.daemon.harness import RealDaemon
from tests.daemon.workshop import agent


def ottoctl(daemon: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ottoctl", *arguments]
    return subprocess.run(argv, env=daemon.env, cwd=daemon.workdir, capture_output=True, timeout=60, text=True)


def test_a_task_goes_to_whom_it_fits(daemon: RealDaemon) -> None:
    """From the library, and from the command line; who is named gets it, whatever fits better."""
    agent(daemon, "potter", {"text": "a vase"}, description="Throws pottery on a wheel: vases, bowls")
    agent(daemon, "weaver", {"text": "a rug"}, description="Weaves rugs on a loom")
    with daemon.client() as otto:
        made = otto.run(task="make me two vases on the wheel", cwd=daemon.workdir)
        assert made.ok and made.agent == "potter" and made.result == "a vase"
        assert made.info.routed.startswith("it fits the words best (") and "wheel" in made.info.routed
        (created,) = [
            e.event for e in otto.session(made.session).events(follow=False) if isinstance(e.event, SessionCreated)
        ]
        assert created.routed == made.info.routed
        named = otto.run(task="vases as @weaver would make them", cwd=daemon.workdir)
        assert named.agent == "weaver" and named.info.routed == "the task names it"
        assert otto.run("weaver", "vases on the wheel", cwd=daemon.workdir).info.routed == ""

        with pytest.raises(OttoError) as failure:
            otto.start(task="weavee zzzz", cwd=daemon.workdir)
        assert failure.value.code == "no_route" and "weaver" in failure.value.mend
    ran = ottoctl(daemon, "run", "--route", "weavee", "zzzz")
    assert ran.returncode == 2 and "no word of the task fits any agent" in ran.stderr, ran.stderr
    ran = ottoctl(daemon, "run", "weave a rug on the loom")
    assert ran.returncode == 0 and ran.stdout == "a rug\n", (ran.stdout, ran.stderr)
    assert "weaver gets it: it fits the words best" in ran.stderr


def test_an_agent_need_not_name_its_helper(daemon: RealDaemon) -> None:
    """It is told who came; it is never itself; and a rule about whom it may start meets a choice left open."""
    agent(daemon, "weaver", {"text": "a rug"}, description="Weaves rugs on a loom")
    task = {"name": "spawn_agent", "arguments": {"task": "weave a rug on the loom"}}
    talk = {"name": "spawn_agent", "arguments": {"task": "weave a rug on the loom", "mode": "conversation"}}
    lead = {"description": "Weaves a rug on the loom as the lead", "tools": ["spawn_agent"]}
    agent(daemon, "head", {"tools": [task]}, {"tools": [talk]}, {"text": "done"}, **lead)
    deny = {"preset": "autonomous", "rules": [{"effect": "deny", "tool": "spawn_agent", "target": "weaver"}]}
    agent(daemon, "bound", {"tools": [task]}, {"text": "done"}, permissions=deny, **lead)
    with daemon.client() as otto:
        done = otto.run("head", "go", cwd=daemon.workdir)
        assert done.ok
        below = [i for i in otto.list(all=True, tree=done.session) if i.session != done.session]
        assert [i.agent for i in below] == ["weaver", "weaver"] and all(i.routed for i in below)
        assert {i.name for i in below} == {"weaver", "weaver#2"}
        bound = otto.run("bound", "go", cwd=daemon.workdir)
        assert len(otto.list(all=True, tree=bound.session)) == 1
