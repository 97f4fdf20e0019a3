"""Running sessions keep the definition that they were started with, and what it was is known as long as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from ottoctl.exits import REFUSED
from ottod.errors import OttoError, RefusedError
from ottod.protocol.specs import Budgets
from tests.daemon.harness import RealDaemon
from tests.daemon.workshop import agent, ended, worker


def ottoctl(daemon: RealDaemon, *arguments: str, status: int = 0) -> str:
    argv = [sys.executable, "-m", "ottoctl", *arguments]
    done = subprocess.run(argv, env=daemon.env, cwd=daemon.workdir, capture_output=True, timeout=60, text=True)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout if status == 0 else done.stderr


def records(daemon: RealDaemon, *arguments: str) -> Any:
    return json.loads(ottoctl(daemon, *arguments, "-o", "json"))


def write_workflow(daemon: RealDaemon, name: str, **fields: object) -> None:
    directory = daemon.workdir / ".otto" / "workflows"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.yml").write_text(yaml.safe_dump({"summarizer": "", **fields}))


def test_who_runs_what_and_what_that_was(daemon: RealDaemon) -> None:
    """The session from before an edit runs another definition than the one from after it; either can be seen, and
    begun again, also when the file is gone; the last session that refers to one takes it along."""
    agent(daemon, "helper", {"text": "hello"}, description="one")
    file = daemon.workdir / ".otto" / "agents" / "helper.yml"
    with daemon.client() as otto:
        before = otto.start("helper", "go", cwd=daemon.workdir, mode="conversation")
        (record,) = records(daemon, "agent", "show", "helper", "--running")
        assert record["is_current"] and record["agent_digest"] == before.info().agent_digest
        agent(daemon, "helper", {"text": "hello"}, description="two")
        after = otto.start("helper", "go", cwd=daemon.workdir, mode="conversation")
        found = {r["session"]: r for r in records(daemon, "agent", "show", "helper", "--running")}
        assert {name: r["is_current"] for name, r in found.items()} == {before.id: False, after.id: True}
        text = ottoctl(daemon, "agent", "show", "helper", "--running")
        assert text.count("another") == 1 and text.count(" now ") == 1
        old, new = (s.info().agent_digest for s in (before, after))
        assert old != new
        versions = records(daemon, "agent", "show", "helper", "--versions")
        assert [(v["digest"], v["live"], v["is_current"]) for v in versions] == [(new, 1, True), (old, 1, False)]

        file.unlink()
        assert [r["is_current"] for r in records(daemon, "agent", "show", "helper", "--running")] == [False, False]
        assert records(daemon, "agent", "show", f"helper@{old[:8]}")["description"] == "one"
        assert "description        one" in ottoctl(daemon, "agent", "show", f"helper@{old[:12].upper()}")
        again = otto.run(f"helper@{old[:12]}", "go", cwd=daemon.workdir)
        assert again.ok and again.info.agent_digest == old

        refused = ottoctl(daemon, "run", "helper@00000000", "go", status=REFUSED)
        assert "no agent helper@00000000 is kept" in refused and old[:12] in refused
        assert "is not the beginning of a digest" in ottoctl(daemon, "agent", "show", "helper@x1", status=2)
        with pytest.raises(RefusedError) as failure:
            otto.definition("agent", "nobody", old[:8])
        assert failure.value.code == "no_such_definition"

        for session in (before, after):
            session.stop()
        before.remove()
        assert [v.sessions for v in otto.definitions("agent", "helper")] == [1, 1]
        otto.session(again.session).remove()
        assert [v.digest for v in otto.definitions("agent", "helper")] == [new]


def test_a_version_is_judged_by_what_holds_today() -> None:
    """What a project's agent was allowed when it ran is not what it may have now."""
    lenient = {"isolation": {"network": "preferred"}, "project_may": {"preset": "autonomous"}}
    daemon = RealDaemon(lenient)
    try:
        daemon.start()
        agent(daemon, "helper", {"text": "hello"}, permissions="autonomous")
        with daemon.client() as otto:
            first = otto.run("helper", "go", cwd=daemon.workdir)
            assert first.ok
            digest = first.info.agent_digest
            assert otto.definition("agent", "helper", digest).agent.permissions.preset == "autonomous"  # type: ignore[union-attr]
        daemon.stop()
        config = daemon.base / "otto.yml"
        strict = yaml.safe_load(config.read_text()) | {"project_may": {"preset": "strict"}}
        config.write_text(yaml.safe_dump(strict))
        daemon.start()
        with daemon.client() as otto:
            word = otto.start(f"helper@{digest}", "go", cwd=daemon.workdir, mode="conversation")
            told = otto.explain("", "fs_write", {"path": "x", "content": ""}, session=word.id)
            assert told.effect == "ask", told
            word.stop()
    finally:
        daemon.close()


def test_a_workflow_is_kept_with_its_agents(daemon: RealDaemon) -> None:
    """Its steps run the definitions that it was started with, and so does another run of that version."""
    worker(daemon, "left", "echo one > left")
    write_workflow(daemon, "flow", steps=[{"agent": "left", "task": "one", "budgets": {"tokens": 100000}}])
    with daemon.client() as otto:
        first = otto.run_workflow("flow", "go", cwd=daemon.workdir)
        assert first.ok, first.cause
        (done,) = ended(otto.session(first.session))
        (known,) = otto.definitions("agent", "left")
        # The step's own spec is narrowed by its budget: it still is the agent that it was made from.
        assert otto.session(done.session).info().agent_digest == known.digest and known.sessions == 2
        assert otto.definition("agent", "left", known.digest).agent.budgets == Budgets()  # type: ignore[union-attr]

        # A script is a file of its own, and no part of the definition that names it.
        worker(daemon, "other", "echo two > left")
        script = daemon.workdir / ".otto" / "agents" / "other.script.yaml_"
        said = {"name": "left", "model": f"scripted:{script}", "tools": ["shell"]}
        (daemon.workdir / ".otto" / "agents" / "left.yml").write_text(yaml.safe_dump(said))
        write_workflow(daemon, "flow", steps=[{"agent": "left", "task": "two"}])
        digest = first.info.agent_digest
        shown = records(daemon, "workflow", "show", f"flow@{digest[:10]}")
        assert shown["steps"][0]["task"] == "one" and shown["digest"] == digest
        again = ottoctl(daemon, "workflow", "run", f"flow@{digest[:10]}", "go")
        assert "completed" in again
        assert (daemon.workdir / "left").read_text() == "one\n"
        assert otto.definitions("workflow", "flow")[0].sessions == 2
        (daemon.workdir / ".otto" / "workflows" / "flow.yml").unlink()
        assert "one" in ottoctl(daemon, "workflow", "show", f"flow@{digest}")
        with pytest.raises(OttoError, match="takes no input"):
            otto.run_workflow(f"flow@{digest}", "go", cwd=daemon.workdir, inputs={"x": b""})


def test_who_runs_a_workflow(daemon: RealDaemon) -> None:
    agent(daemon, "waiter", {"text": "never", "stall": 60})
    write_workflow(daemon, "flow", steps=[{"agent": "waiter", "task": "one"}])
    with daemon.client() as otto:
        before = otto.start_workflow("flow", "go", cwd=daemon.workdir)
        write_workflow(daemon, "flow", steps=[{"agent": "waiter", "task": "two"}])
        after = otto.start_workflow("flow", "go", cwd=daemon.workdir)
        found = {r["session"]: r for r in records(daemon, "workflow", "show", "flow", "--running")}
        assert {name: r["is_current"] for name, r in found.items()} == {before.id: False, after.id: True}
        assert found[before.id]["workflow_digest"] == before.info().agent_digest
        assert [v["live"] for v in records(daemon, "workflow", "show", "flow", "--versions")] == [1, 1]
        for session in (before, after):
            session.stop()


def test_an_agent_cannot_mean_a_version(daemon: RealDaemon) -> None:
    """Versions are the user's to name: an agent that starts others gets what its project has now."""
    agent(daemon, "helper", {"text": "hello"})
    with daemon.client() as otto:
        digest = otto.run("helper", "go", cwd=daemon.workdir).info.agent_digest
        call = {"name": "spawn_agent", "arguments": {"agent": f"helper@{digest[:8]}", "task": "go"}}
        agent(daemon, "lead", {"tools": [call]}, {"text": "done"}, tools=["spawn_agent"])
        led = otto.run("lead", "go", cwd=daemon.workdir)
        assert led.ok
        assert not [i for i in otto.list(all=True, tree=led.session) if i.agent == "helper"]
