"""Budgets of a workflow's blocks: held whoever spends and whoever dies; what one branch leaves the others have."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable

import pytest

from ottoctl.sync import SyncOtto
from ottod.errors import OttoError
from ottod.isolation.processes import identify, send_signal
from ottod.protocol import journal as j
from ottod.protocol.specs import Budgets
from ottod.protocol.workflows import Compensation, Retry, WorkflowSpec
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.workshop import agent, block, ended, ottoctl, paths, shell, start, step, worker, workflow

LIMIT = 24_000
TURN = 601
"""What a spender consumes in each."""


def spender(daemon: RealDaemon, name: str, turns: int, *, first: str = "") -> None:
    """An agent that consumes a little in each of some turns: less than any call is let through with."""
    look: dict[str, object] = {"name": "fs_list", "arguments": {}}
    begin: dict[str, object] = {"name": "shell", "arguments": {"command": first}}
    usage = {"input_tokens": 1, "output_tokens": TURN - 1}
    calls = [begin if first and not n else look for n in range(turns)]
    last = {"text": "done", "usage": usage}
    said = [{"tools": [call], "usage": usage} for call in calls]
    limits = {"max_steps": 1000}
    restart = {"backoff": {"base_s": 0}}
    health = {rule: {"do": "off"} for rule in ("loop", "no_progress")}
    tools = ["fs_list", "shell"]
    agent(daemon, name, *said, last, tools=tools, restart=restart, limits=limits, health=health)


def spent(otto: SyncOtto, sessions: Iterable[str]) -> int:
    rows = {row.key: row.usage.total_tokens for row in otto.cost("session")}
    return sum(rows.get(session, 0) for session in sessions)


def test_branches_draw_on_one_budget_and_no_further(daemon: RealDaemon) -> None:
    """The greedy one has what the modest one left, and ends at the block's limit; the step outside has its own."""
    spender(daemon, "modest", 3)
    # It has begun when the modest one spends; which of them the machine runs sooner does not decide who has enough.
    spender(daemon, "greedy", 60, first="touch begun; while [ ! -e go ]; do sleep 0.05; done")
    spender(daemon, "after", 7)
    both = block(
        "both",
        "parallel",
        step("modest"),
        step("greedy"),
        on_failure="wait_all",
        optional=True,
        budgets=Budgets(tokens=LIMIT),
    )
    begun = daemon.workdir / "begun"
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, workflow("sequential", both, step("after"), budgets=Budgets(tokens=100_000)))
        wait_for("the greedy one runs, the modest one has spent", lambda: begun.exists() and paths(session))
        (daemon.workdir / "go").touch()
        result = session.wait(timeout_s=90)
        assert result.ok, (result.cause, result.result)
        assert set(paths(session)) == {"both/modest", "after"}
        (failed,) = [entry for entry in ended(session) if entry.outcome == "failed"]
        assert failed.path == "both/greedy" and failed.failure is not None and failed.failure.code == "budget"
        assert f"the budget of {session.id}/both" in failed.failure.message, failed.failure
        within = [entry.session for entry in ended(session) if entry.path.startswith("both/")]
        used = spent(otto, within)
        assert LIMIT // 2 < used <= LIMIT
        lines = {(line.session, line.budget): line for line in session.info().budgets}
        line = lines[f"{session.id}/both", "tokens"]
        assert (line.spent, line.reserved, line.limit) == (used, 0, LIMIT)
        assert lines[session.id, "tokens"].spent == used + spent(otto, [ended(session)[-1].session])


def test_whose_budget_is_used_up_hands_back_what_it_has(daemon: RealDaemon) -> None:
    """A step has a last call of a block's budget and of the workflow's as of its own; who tries next is told."""
    usage = {"input_tokens": 1, "output_tokens": 3400}
    begin = {"text": "I begin.", "tools": [{"name": "fs_list", "arguments": {}}], "usage": usage}
    agent(daemon, "greedy", begin, {"text": "half of it is done"}, tools=["fs_list"])
    agent(daemon, "other", {"text": "the rest"})
    limit = Budgets(tokens=4000)
    again = step("greedy", budgets=limit, retry=Retry(attempts=2, fallback_agent="other"))
    flows = {
        "part": workflow("sequential", block("part", "sequential", step("greedy"), budgets=limit)),
        "": workflow("sequential", step("greedy"), budgets=limit),
        "again": workflow("sequential", again),
    }
    with daemon.client(timeout_s=120) as otto:
        sessions = {place: start(daemon, otto, spec) for place, spec in flows.items()}
        for place, session in sessions.items():
            result = session.wait(timeout_s=90)
            first = ended(session)[0]
            info = otto.session(first.session).info()
            assert info.cause is not None and (info.cause.kind, info.result) == ("budget", "half of it is done"), info
            assert first.summary == "half of it is done" and spent(otto, [first.session]) <= 4000
            if place == "again":
                assert result.ok and "half of it is done" in otto.session(ended(session)[1].session).info().task
                continue
            assert result.cause is not None and result.cause.kind == "budget", result
            whose = f"{session.id}/{place}".rstrip("/")
            assert first.failure is not None and f"the budget of {whose} " in first.failure.message, first.failure
            (line,) = [line for line in session.info().budgets if line.session == whose]
            assert (line.spent, line.reserved) == (spent(otto, [first.session]), 0) and line.spent > 3401
            with pytest.raises(OttoError, match=f"{whose} has used up its budget of tokens"):
                session.resume()


def test_a_block_goes_on_with_what_it_has_left(daemon: RealDaemon) -> None:
    """A workflow that is resumed knows what its blocks had spent, and what the steps before it have cost."""
    usage = {"input_tokens": 1, "output_tokens": 3400}
    agent(daemon, "dear", {"text": "done", "usage": usage})
    agent(daemon, "breaks", {"error": {"status": 400, "message": "no"}})
    part = block("part", "sequential", step("dear"), step("breaks"), budgets=Budgets(tokens=50_000))
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, workflow("sequential", part))
        assert session.wait(timeout_s=60).cause.kind == "failed"  # type: ignore[union-attr]
        agent(daemon, "breaks", {"text": "mended", "usage": usage})
        again = session.resume()
        assert again.wait(timeout_s=60).ok
        (line,) = again.info().budgets
        assert (line.session, line.spent, line.limit) == (f"{again.id}/part", 2 * 3401, 50_000)
        rows = json.loads(ottoctl(daemon, "workflow", "status", again.id, "-o", "json").stdout)["steps"]
        assert [(row["path"], row["tokens"]) for row in rows if row["state"] == "completed"] == [
            ("part/dear", 3401), ("part/breaks", 3401)
        ]  # fmt: skip
        fresh = session.resume(fresh_budget=True)
        assert fresh.wait(timeout_s=60).ok and fresh.info().budgets[0].spent == 3401


def test_a_blocks_budget_outlives_root_and_the_workflows_process() -> None:
    """A loop's iterations share it; what was spent before the kill counts after it."""
    with running_daemon() as daemon:
        spender(daemon, "saver", 13)
        wait = "touch begun; while [ ! -e go ]; do sleep 0.05; done"
        spender(daemon, "greedy", 60, first=wait)
        limited = block("part", "sequential", step("saver"), step("greedy"), budgets=Budgets(tokens=LIMIT))
        with daemon.client(timeout_s=120) as otto:
            session = start(daemon, otto, workflow("sequential", limited))
            wait_for("the second runs", lambda: (daemon.workdir / "begun").exists())
            victim = identify(session.info().pid)
            daemon.kill()
            assert victim is not None and send_signal(victim, signal.SIGKILL)
        daemon.start()
        with daemon.client(timeout_s=120) as otto:
            again = otto.session(session.id)
            wait_for("it is back", lambda: again.info().incarnation == 2)
            (line,) = [line for line in again.info().budgets if line.session == f"{session.id}/part"]
            assert line.spent >= 14 * TURN
            (daemon.workdir / "go").touch()
            result = again.wait(timeout_s=90)
            assert result.cause is not None and result.cause.kind == "budget", result
            assert "part" in result.cause.message
            sessions = [entry.session for entry in ended(again)]
            assert len(sessions) == 2 and LIMIT // 2 < spent(otto, sessions) <= LIMIT


def test_a_blocks_seconds_are_those_of_its_steps(daemon: RealDaemon) -> None:
    """When they are used up what runs within is stopped, and nothing else."""
    worker(daemon, "slow", "sleep 300")
    worker(daemon, "quick", "true")
    part = block("part", "parallel", step("a", "slow"), step("b", "slow"), optional=True, budgets=Budgets(seconds=1))
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, workflow("sequential", part, step("quick")))
        result = session.wait(timeout_s=90)
        assert result.ok, (result.cause, result.result)
        outcomes = {entry.path: entry for entry in ended(session)}
        assert outcomes["quick"].outcome == "completed"
        failures = [entry.failure for path, entry in outcomes.items() if path != "quick"]
        assert any(f is not None and f.code == "budget" and "part" in f.message for f in failures), outcomes
        assert not otto.list()


def test_whose_budget_is_used_up_is_undone(daemon: RealDaemon) -> None:
    """By the clock in the middle of a tool call, or by tokens: it has failed, and undoing has a budget of its own."""
    usage = {"input_tokens": 1, "output_tokens": 900}
    agent(daemon, "deploy", {"text": "deployed", "usage": usage})
    worker(daemon, "slow", "sleep 60")
    spender(daemon, "greedy", 60)
    for name in ("by-time", "by-tokens"):
        again = {**shell(f"echo {name} >> undone"), "usage": usage}
        agent(daemon, f"undo-{name}", again, {"text": "undone", "usage": usage}, tools=["shell"])

    def flow(name: str, then: str, budgets: Budgets) -> WorkflowSpec:
        undo = Compensation(agent=f"undo-{name}", task="undo it", attempts=1)
        return workflow("sequential", step("deploy", compensate=undo), step(then), budgets=budgets)

    with daemon.client(timeout_s=120) as otto:
        flows = {
            "by-time": flow("by-time", "slow", Budgets(seconds=8)),
            "by-tokens": flow("by-tokens", "greedy", Budgets(tokens=LIMIT)),
        }
        sessions = {name: start(daemon, otto, spec) for name, spec in flows.items()}
        for name, session in sessions.items():
            result = session.wait(timeout_s=90)
            assert result.cause is not None and result.cause.kind == "budget", (name, result)
            undone = [entry for entry in session.journal() if isinstance(entry, j.CompensationEnded)]
            assert [(e.path, e.outcome) for e in undone] == [("deploy", "completed")], (name, result.result)
        assert sorted((daemon.workdir / "undone").read_text().split()) == sorted(sessions)
        whose = sessions["by-tokens"].id
        lines = {line.session: line for line in sessions["by-tokens"].info().budgets}
        assert lines[whose].spent <= LIMIT
        assert (lines[f"{whose}/undo:"].spent, lines[f"{whose}/undo:"].limit) == (2 * 901, LIMIT)
