"""What somebody who is new here tries first: it is refused early, with a mend, and what waits is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import OttoError
from ottod.protocol.workflows import Approval, Output, Step, WorkflowSpec
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.test_policy import ctl


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    with running_daemon() as daemon:
        yield daemon


def agent(daemon: RealDaemon, name: str, model: str = "") -> None:
    file = daemon.workdir / f".otto/agents/{name}.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"model: {model or daemon.script(name, {'text': 'done'})}\n")


def workflow(*steps: Step) -> WorkflowSpec:
    return WorkflowSpec(name="flow", mode="sequential", steps=steps)


def refusal(daemon: RealDaemon, otto: SyncOtto, spec: WorkflowSpec) -> OttoError:
    with pytest.raises(OttoError) as refused:
        otto.start_workflow(spec=spec, task="go", cwd=daemon.workdir)
    assert refused.value.mend and not otto.list(all=True)
    return refused.value


def test_a_workflow_that_cannot_do_its_steps_is_refused(daemon: RealDaemon) -> None:
    """No repository to find changes in, no key, no script: nothing has begun."""
    agent(daemon, "fine")
    agent(daemon, "keyless", "anthropic:claude-x")
    agent(daemon, "scriptless", "scripted:nowhere.yml")
    change = Step(id="fix", agent="fine", outputs=(Output(name="diff", capture="diff"),))
    with daemon.client() as otto:
        error = refusal(daemon, otto, workflow(change))
        assert error.code == "no_repository" and "is no git repository" in error.message and "git init" in error.mend
        first = Step(id="first", agent="fine")
        assert "ANTHROPIC_API_KEY" in str(refusal(daemon, otto, workflow(first, Step(id="b", agent="keyless"))).mend)
        assert refusal(daemon, otto, workflow(first, Step(id="b", agent="scriptless"))).code == "no_script"
        subprocess.run(["git", "init", "-q", str(daemon.workdir)], check=True)
        assert otto.start_workflow(spec=workflow(change), task="go", cwd=daemon.workdir).id


def rows(daemon: RealDaemon, session: SyncSession) -> list[tuple[str, str]]:
    done = ctl(daemon, "workflow", "status", session.id, "-o", "json")
    assert done.returncode == 0, done.stderr
    return [(row["path"], row["state"]) for row in json.loads(done.stdout)["steps"]]


def test_the_status_of_a_workflow_shows_what_waits(daemon: RealDaemon) -> None:
    """A step that asks, with the command that answers; those behind it; and afterwards why it did not begin."""
    agent(daemon, "fine")
    spec = workflow(
        Step(id="deploy", agent="fine", approval=Approval(reason="to production?")),
        Step(id="rest", mode="parallel", steps=(Step(id="tell", agent="fine"), Step(id="log", agent="fine"))),
    )
    with daemon.client() as otto:
        session = otto.start_workflow(spec=spec, task="go", cwd=daemon.workdir)
        (asked,) = wait_for("it asks", lambda: session.info().approvals)
        behind = [("rest/tell", "pending"), ("rest/log", "pending")]
        assert rows(daemon, session) == [("deploy", "asks"), *behind]
        shown = ctl(daemon, "workflow", "status", session.id).stdout
        assert f"ottoctl approve {asked.approval} (to production?)" in shown
        for words in (["interrupt"], ["send", "x"], ["fork"], ["resume", "x"]):
            done = ctl(daemon, words[0], session.id, *words[1:])
            assert done.returncode and session.id in done.stderr.split("mend:")[1], (words, done.stderr)
        otto.deny(asked.approval, reason="not today")
        assert session.wait(timeout_s=60).cause.kind == "failed"  # type: ignore[union-attr]
        found = dict(rows(daemon, session))
        assert found == {"deploy": "refused", "rest": "skipped"}
        assert "not today" in ctl(daemon, "workflow", "status", session.id).stdout


def test_what_is_approved_while_the_workflow_is_paused(daemon: RealDaemon) -> None:
    """It says so, and how it goes on; what is refused meanwhile leaves it paused."""
    agent(daemon, "fine")
    spec = workflow(Step(id="deploy", agent="fine", approval=Approval()), Step(id="tell", agent="fine"))
    with daemon.client() as otto:
        session = otto.start_workflow(spec=spec, task="go", cwd=daemon.workdir)
        (asked,) = wait_for("it asks", lambda: session.info().approvals)
        session.pause()
        otto.approve(asked.approval)
        wait_for("approved", lambda: rows(daemon, session) == [("deploy", "approved"), ("tell", "pending")])
        assert f"goes on with: ottoctl unpause {session.id}" in ctl(daemon, "workflow", "status", session.id).stdout
        refused = ctl(daemon, "resume", session.id, "hurry")
        assert refused.returncode and f"ottoctl resume {session.id}" in refused.stderr
        assert session.info().state == "paused"
        session.unpause()
        assert session.wait(timeout_s=60).ok
        assert rows(daemon, session) == [("deploy", "completed"), ("tell", "completed")]


def test_an_ended_session_names_what_goes_on(daemon: RealDaemon) -> None:
    """Whatever is said to it."""
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(daemon.script("one", {"text": "hi"})), task="go", cwd=daemon.workdir)
        session.wait(timeout_s=60)
    for words in (["send", "more"], ["pause"], ["interrupt"], ["rollback"]):
        done = ctl(daemon, words[0], session.id, *words[1:])
        assert done.returncode == 5, (words, done.stderr)
        assert f"ottoctl resume {session.id}" in done.stderr and f"ottoctl fork {session.id}" in done.stderr, words


def test_the_status_counts_what_earlier_daemons_ran(daemon: RealDaemon) -> None:
    """As `ps -a` lists it."""
    with daemon.client() as otto:
        otto.run(spec=daemon.agent(daemon.script("one", {"text": "hi"})), task="go", cwd=daemon.workdir)
    daemon.stop()
    daemon.start()
    with daemon.client() as otto:
        assert otto.status().sessions["ended"] == len(otto.list(all=True)) == 1


def test_a_running_daemon_keeps_its_configuration(daemon: RealDaemon) -> None:
    """Whoever starts one with another file is told that it is not read."""
    env = {**daemon.env, "OTTO_CONFIG": str(daemon.workdir / "other.yml")}
    argv = [sys.executable, "-m", "ottoctl", "daemon", "start"]
    done = subprocess.run(argv, env=env, cwd=daemon.workdir, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "keeps its configuration" in done.stderr
    assert "other.yml" in done.stderr and "OTTO_RUNTIME_DIR" in done.stderr
    assert "!" not in ctl(daemon, "daemon", "start").stderr


def test_every_mistake_of_an_agent_is_said(daemon: RealDaemon) -> None:
    """A script that is missing or wrong is a mistake of the agent whose model it is; a start says how many more."""
    agent(daemon, "scriptless", "scripted:nowhere.yml")
    (daemon.workdir / "typo.script.yml").write_text("turns:\n  - txet: hello\n")
    agent(daemon, "wrong", "scripted:typo.script.yml")
    agent(daemon, "fine")
    done = ctl(daemon, "agent", "validate", "scriptless", "wrong", "fine", ".otto/agents/wrong.yml")
    assert done.returncode == 2 and done.stdout == "fine: ok\n"
    scriptless = daemon.workdir / ".otto/agents/scriptless.yml"
    assert f"{scriptless}:1:8: model: no script at {scriptless.parent}/nowhere.yml" in done.stderr
    assert f"{scriptless}:1:8: model: no script at" in ctl(daemon, "run", "scriptless", "go").stderr
    assert done.stderr.count("typo.script.yml:2:5: unknown key 'txet'") == 2
    (daemon.workdir / ".otto/agents/twice.yml").write_text("modle: default\ntools: [fs_raed]\n")
    done = ctl(daemon, "run", "twice", "go")
    assert done.returncode == 2 and "1 more mistake: ottoctl agent validate" in done.stderr, done.stderr
