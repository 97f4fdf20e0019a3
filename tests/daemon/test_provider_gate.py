"""The gate before the providers in a real daemon: what one session finds out, all others heed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest

from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.events import ApprovalRequested, BreakerStateChanged, ModelRerouted, UsageUpdated
from ottod.protocol.results import ModelLine
from ottod.protocol.specs import AgentSpec, Backoff, Restart
from tests.daemon.harness import SMALL, RealDaemon, running_daemon, wait_for

BREAKER = {"min_calls": 2, "open_s": 600, "max_open_s": 600}
BROKEN = {"error": {"status": 500}}
SLOW = {"stream": {"events": 100_000, "rate_hz": 20, "text_bytes": 10}}
E = TypeVar("E")

pytestmark = pytest.mark.timeout(300)


def scripted(**fields: object) -> dict[str, object]:
    """The settings of the daemon: scripts fail at once, and two failures open a breaker for good."""
    return {"scripted": {"max_retries": 0, "breaker": BREAKER, **fields}}


def told(session: SyncSession, kind: type[E]) -> list[E]:
    return [e.event for e in session.events(follow=False) if isinstance(e.event, kind)]


def end(otto: SyncOtto, daemon: RealDaemon, spec: AgentSpec, **fields: bool) -> tuple[SyncSession, str]:
    """Runs a session; gives it, and `completed` or the code of what it failed of."""
    session = otto.start(spec=spec, task="go", cwd=daemon.workdir, **fields)
    cause = session.wait().cause
    assert cause is not None
    return session, cause.code or cause.kind


def line(otto: SyncOtto, model: str) -> ModelLine:
    """How it stands with the model that plays a script; nothing is known before it is asked for."""
    name = model.partition(":")[2]
    found = [m for p in otto.providers() if p.provider == "scripted" for m in p.models if m.model == name]
    return found[0] if found else ModelLine(model=name)


def test_what_two_sessions_found_out_spares_the_third_the_call() -> None:
    """The breaker opens for all, its move is told in the session that saw it, and a later daemon still knows."""
    with running_daemon({"providers": scripted()}) as daemon:
        broken, fine = daemon.script("broken", BROKEN), daemon.script("fine", {"text": "the backup says hello"})
        with daemon.client() as otto:
            (first, one), (second, other) = (end(otto, daemon, daemon.agent(broken)) for _ in range(2))
            assert (one, other) == ("overloaded", "overloaded")
            assert told(first, BreakerStateChanged) == []
            (move,) = told(second, BreakerStateChanged)
            assert (move.provider, move.model) == ("scripted", broken.partition(":")[2])
            assert (move.previous, move.state, move.reason) == ("closed", "open", "100% of 2 calls failed")
            third, code = end(otto, daemon, daemon.agent(broken))
            assert code == "breaker_open", third.info()
            assert (line(otto, broken).breaker, line(otto, broken).calls) == ("open", 0)
            spared, code = end(otto, daemon, daemon.agent(broken, fallback_models=(fine,)))
            assert (code, spared.info().result) == ("completed", "the backup says hello")
            (rerouted,) = told(spared, ModelRerouted)
            assert (rerouted.from_model, rerouted.to_model) == (broken, fine) and "breaker" in rerouted.reason
            samples = {f.name: f.samples for f in otto.metrics()}
            assert samples["otto_breakers_opened"][0].value == 1
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            found = line(otto, broken)
            assert (found.breaker, found.reason) == ("open", "100% of 2 calls failed")
            assert end(otto, daemon, daemon.agent(broken))[1] == "breaker_open"


def test_a_reload_turns_breakers_off_and_lets_more_in() -> None:
    """New limits hold at once, for calls that wait as well."""
    with running_daemon({"providers": scripted(max_concurrent=1)}) as daemon, daemon.client() as otto:
        broken, slow = daemon.script("broken", BROKEN), daemon.script("slow", SLOW)
        for _ in range(2):
            end(otto, daemon, daemon.agent(broken))
        assert end(otto, daemon, daemon.agent(broken))[1] == "breaker_open"
        sessions = [otto.start(spec=daemon.agent(slow), task="go", cwd=daemon.workdir) for _ in range(2)]
        wait_for("one runs and one waits", lambda: (line(otto, slow).running, line(otto, slow).waiting) == (1, 1))
        settings = scripted(max_concurrent=2, breaker={"enabled": False})
        (daemon.base / "otto.yml").write_text(json.dumps({**SMALL, "providers": settings}))
        assert "providers.scripted.max_concurrent" in otto.reload_daemon().changed
        wait_for("both run", lambda: line(otto, slow).running == 2)
        assert line(otto, broken).breaker == "closed"
        for session in sessions:
            session.kill()
        wait_for("both are gone", lambda: line(otto, slow).running == 0)
        assert end(otto, daemon, daemon.agent(broken))[1] == "overloaded", "it is asked again"


def test_a_parent_that_waits_for_its_child_holds_no_place() -> None:
    """With one call at a time, a session and the child that it waits for both finish."""
    with running_daemon({"providers": scripted(max_concurrent=1)}) as daemon, daemon.client() as otto:
        agents = daemon.workdir / ".otto" / "agents"
        agents.mkdir(parents=True)
        daemon.script("child", {"text": "from below"})
        (agents / "child.yml").write_text("model: scripted:../../child.script.yml\n")
        spawn = {"name": "spawn_agent", "arguments": {"agent": "child", "task": "go"}}
        parent = daemon.script("parent", {"tools": [spawn]}, {"text": "heard: ${last_tool_result}"})
        session, code = end(otto, daemon, daemon.agent(parent, "spawn_agent"))
        assert code == "completed" and "from below" in session.info().result


def test_a_worker_that_is_killed_gives_its_place_back() -> None:
    """The next in line begins, though nobody has told what became of the call."""
    with running_daemon({"providers": scripted(max_concurrent=1)}) as daemon, daemon.client() as otto:
        slow, fine = daemon.script("slow", SLOW), daemon.script("fine", {"text": "ok"})
        restart = Restart(policy="transient", backoff=Backoff(base_s=600, max_s=600))
        first = otto.start(spec=daemon.agent(slow, restart=restart), task="go", cwd=daemon.workdir)
        wait_for("it calls", lambda: line(otto, slow).running)
        second = otto.start(spec=daemon.agent(fine), task="go", cwd=daemon.workdir)
        wait_for("the other waits", lambda: line(otto, fine).waiting)
        worker = identify(first.info().pid)
        assert worker is not None
        send_signal(worker, 9)
        assert second.wait().ok
        first.kill()


def test_calls_of_adopted_workers_hold_their_places() -> None:
    """A new root lets nobody in beside a call that it has not let begin; the wait is told, and ends with the call."""
    with running_daemon({"providers": scripted(max_concurrent=1)}) as daemon:
        slow, fine = daemon.script("slow", SLOW), daemon.script("fine", {"text": "ok"})
        with daemon.client() as otto:
            first = otto.start(spec=daemon.agent(slow), task="go", cwd=daemon.workdir).id
            wait_for("it calls", lambda: line(otto, slow).running)
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            second = otto.start(spec=daemon.agent(fine), task="go", cwd=daemon.workdir)
            wait_for("it waits", lambda: line(otto, fine).waiting)
            assert (line(otto, slow).running, line(otto, fine).running) == (1, 0)
            why = wait_for("it says so", lambda: second.info().reason)
            assert "waited for its turn at scripted" in why and why[:40] in _ottoctl(daemon, "ps").stdout
            otto.session(first).kill()
            assert second.wait().ok and second.info().reason == ""


def test_a_stopped_session_leaves_the_line() -> None:
    """What waits in a session that is stopped waits no more, and the session is not kept from its end."""
    with running_daemon({"providers": scripted(max_concurrent=1)}) as daemon, daemon.client() as otto:
        slow = daemon.script("slow", SLOW)
        sessions = [otto.start(spec=daemon.agent(slow), task="go", cwd=daemon.workdir) for _ in range(2)]
        wait_for("one waits", lambda: line(otto, slow).waiting)
        for session in reversed(sessions):
            assert session.stop().cause.kind == "cancelled"
        wait_for("nobody is left", lambda: (line(otto, slow).running, line(otto, slow).waiting) == (0, 0))


# ---------------------------------------------------------------- what stands in


def test_a_rule_answers_when_no_model_does() -> None:
    """The agent's own text, for nothing, and it is told that it was the rule."""
    with running_daemon({"providers": scripted()}) as daemon, daemon.client() as otto:
        broken = daemon.script("broken", BROKEN)
        spec = daemon.agent(broken, fallback=("model", "rule"), fallback_answer="Ask me tomorrow.")
        for why in ("answer", "breaker", "breaker"):
            session, code = end(otto, daemon, spec)
            assert (code, session.info().result) == ("completed", "Ask me tomorrow.")
            assert session.info().usage.calls == 0
            assert told(session, UsageUpdated) == []
            (rerouted,) = told(session, ModelRerouted)
            assert (rerouted.from_model, rerouted.to_model) == (broken, "rule")
            assert why != "breaker" or line(otto, broken).breaker in ("open", "closed")


def test_an_earlier_answer_to_the_same_request_stands_in() -> None:
    """For agents that ask for it, and for the very same request only; the answer outlives the daemon."""
    with running_daemon({"providers": scripted()}) as daemon:
        model = daemon.script("model", {"text": "forty-two"})
        spec = daemon.agent(model, fallback=("cache",))
        with daemon.client() as otto:
            assert otto.run(spec=spec, task="what?", cwd=daemon.workdir).result == "forty-two"
            assert otto.run(spec=daemon.agent(model), task="else?", cwd=daemon.workdir).ok
        daemon.script("model", BROKEN)
        daemon.stop()
        daemon.start()
        with daemon.client() as otto:
            again = otto.start(spec=spec, task="what?", cwd=daemon.workdir)
            assert again.wait().result == "forty-two"
            assert [e.to_model for e in told(again, ModelRerouted)] == ["cache"]
            assert again.info().usage.calls == 0
            for other, task in ((spec, "else?"), (daemon.agent(model), "what?")):
                cause = otto.run(spec=other, task=task, cwd=daemon.workdir).cause
                assert cause is not None and cause.kind == "failed"
        assert all(path.stat().st_mode & 0o077 == 0 for path in (daemon.base / "state" / "answers").iterdir())


def test_a_human_says_whether_to_try_again() -> None:
    """Approved, the model is asked again, and it may fail again; denied, the turn fails with what was wrong."""
    with running_daemon({"providers": scripted(breaker={"enabled": False})}) as daemon, daemon.client() as otto:
        model = daemon.script("model", {**BROKEN, "times": 2}, {"text": "back again"})
        session = otto.start(spec=daemon.agent(model, fallback=("human",)), task="go", cwd=daemon.workdir)
        for _ in range(2):
            (waiting,) = wait_for("it asks", otto.approvals)
            assert waiting.approval.tool == "model" and "500" in waiting.approval.reason
            wait_for("it says so", lambda: session.info().state == "waiting_approval")
            otto.approve(waiting.approval.approval)
        assert session.wait().result == "back again"
        denied = otto.start(
            spec=daemon.agent(daemon.script("broken", BROKEN), fallback=("human",)), task="go", cwd=daemon.workdir
        )
        (waiting,) = wait_for("it asks", otto.approvals)
        otto.deny(waiting.approval.approval)
        cause = denied.wait().cause
        assert cause is not None and (cause.kind, cause.code) == ("failed", "overloaded")


def test_nobody_is_asked_in_a_headless_session() -> None:
    """It fails at once with what was wrong."""
    with running_daemon({"providers": scripted()}) as daemon, daemon.client() as otto:
        spec = daemon.agent(daemon.script("broken", BROKEN), fallback=("human",))
        session, code = end(otto, daemon, spec, headless=True)
        assert code == "overloaded"
        assert told(session, ApprovalRequested) == []


def test_a_model_that_fails_is_followed_by_the_next_and_asked_again_later() -> None:
    """Two failing models, a third that answers; and the first one again as soon as it is up."""
    with running_daemon({"providers": scripted(breaker={"enabled": False})}) as daemon, daemon.client() as otto:
        first = daemon.script(
            "first", {**BROKEN, "times": 1}, {"tools": [{"name": "fs_list", "arguments": {}}]}, {"text": "first"}
        )
        broken, last = (
            daemon.script("broken", BROKEN),
            daemon.script("last", {"tools": [{"name": "fs_list", "arguments": {}}]}, {"text": "last"}),
        )
        session, code = end(otto, daemon, daemon.agent(first, "fs_list", fallback_models=(broken, last)))
        assert (code, session.info().result) == ("completed", "first")
        routes = [(e.from_model, e.to_model) for e in told(session, ModelRerouted)]
        assert routes == [(first, broken), (broken, last), (last, first)]
        assert [u.model for u in told(session, UsageUpdated)] == [last.partition(":")[2], first.partition(":")[2]]


@pytest.mark.parametrize("code", [401, 400])
def test_what_is_wrong_with_the_request_is_no_reason_to_ask_another(code: int) -> None:
    """A key that is not accepted and a bad request end as they did."""
    with running_daemon({"providers": scripted()}) as daemon, daemon.client() as otto:
        wrong, fine = daemon.script("wrong", {"error": {"status": code}}), daemon.script("fine", {"text": "ok"})
        _, said = end(otto, daemon, daemon.agent(wrong, fallback_models=(fine,)))
        assert said == {401: "auth", 400: "bad_request"}[code]


# ---------------------------------------------------------------- the command


def test_the_command_shows_who_waits_and_why() -> None:
    """As a table, as JSON, and only one provider; before any call there is nothing to show."""
    with running_daemon({"providers": scripted(max_concurrent=1, requests_per_minute=5000)}) as daemon:
        slow = daemon.script("slow", SLOW)
        assert _ottoctl(daemon, "providers").stderr == "no model has been asked for yet\n"
        with daemon.client() as otto:
            sessions = [otto.start(spec=daemon.agent(slow), task="go", cwd=daemon.workdir) for _ in range(2)]
            wait_for("one waits", lambda: line(otto, slow).waiting)
            head, row = _ottoctl(daemon, "providers").stdout.splitlines()
            assert head.split() == [
                "PROVIDER", "MODEL", "BREAKER", "RUNNING", "WAITING", "OLDEST", "LONGEST", "LIMITS", "STATE",
            ]  # fmt: skip
            assert row.split()[:5] == ["scripted", slow.partition(":")[2], "closed", "1/1", "1"]
            assert "1 at once, 5000/min" in row
            (found,) = json.loads(_ottoctl(daemon, "-o", "json", "providers", "scripted").stdout)
            assert (found["provider"], found["running"], found["waiting"]) == ("scripted", 1, 1)
            assert json.loads(_ottoctl(daemon, "-o", "json", "providers", "nobody").stdout) == []
            for session in sessions:
                session.kill()


def _ottoctl(daemon: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        env={**daemon.env, "PYTHONPATH": root, "PYTHONWARNINGS": "error", "COLUMNS": "400"},
        cwd=daemon.workdir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
