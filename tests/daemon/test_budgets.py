"""Budgets through a whole daemon: kept whatever dies, and at their end what there is is handed back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ottod.errors import OttoError
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.events import BudgetWarning, TurnFailed
from ottod.protocol.results import PendingApproval, SessionInfo
from ottod.protocol.specs import Backoff, Budgets, Group, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

TRANSIENT = Restart(policy="transient", backoff=Backoff(base_s=0))


def at_noon() -> dict[str, str]:
    """The environment of a place where it is about noon: no test's day ends before the test does."""
    return {"TZ": f"NOON{time.gmtime().tm_hour - 12:+d}"}


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    with running_daemon(env=at_noon()) as started:
        yield started


LOOK: dict[str, object] = {"name": "fs_list", "arguments": {}}


def turn(text: str, output: int, **fields: object) -> dict[str, object]:
    """A step that consumes that much output, and looks around."""
    return {"text": text, "tools": [LOOK], "usage": {"input_tokens": 1, "output_tokens": output}, **fields}


def looping(daemon: RealDaemon, *, turns: int = 40, delay_ms: int = 0) -> str:
    """A model that looks around for long; what it consumes is estimated."""
    steps = [{"text": f"step {n} " + "x" * 200, "tools": [LOOK], "delay_ms": delay_ms} for n in range(turns)]
    return daemon.script("looping", *steps, {"text": "done"})


def ctl(daemon: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments], env=daemon.env, capture_output=True, text=True, timeout=60
    )


def test_a_run_that_hits_its_cap_returns_its_partial_work(daemon: RealDaemon) -> None:
    """One warning, one last call without tools, its words as the result, cause `budget`; and the books say so."""
    model = daemon.script("m", turn("I begin.", 3400), {"text": "half of it is done"})
    spec = daemon.agent(model, "fs_list", budgets=Budgets(tokens=4000))
    with daemon.client() as otto:
        done = otto.run(spec=spec, task="all of it", cwd=daemon.workdir)
        assert (done.cause and done.cause.kind, done.result, done.exit_status) == ("budget", "half of it is done", 7)
        events = [e.event for e in otto.session(done.session).events(follow=False)]
        (warning,) = [e for e in events if isinstance(e, BudgetWarning)]
        assert (warning.budget, warning.scope, warning.limit) == ("tokens", "session", 4000)
        (failed,) = [e for e in events if isinstance(e, TurnFailed)]
        assert failed.failure.code == "budget" and "kept for the last call" in failed.failure.message
        (line,) = done.info.budgets
        assert (line.budget, line.spent, line.reserved, line.limit) == ("tokens", line.spent, 0, 4000)
        assert 3401 < line.spent <= 4000
        (row,) = otto.cost("session")
        assert (row.key, row.usage.calls, row.usage.total_tokens) == (done.session, 2, line.spent)
        assert [r.usage for r in otto.cost("agent")] == [r.usage for r in otto.cost("day")] == [row.usage]
        assert otto.cost("model", since_ns=2**62) == ()
    table = ctl(daemon, "cost", "--by", "session", "--since", "1h")
    assert table.returncode == 0 and done.session in table.stdout and "total" in table.stdout
    (said,) = json.loads(ctl(daemon, "cost", "-o", "json").stdout)
    assert said["key"] == "tester"
    assert "of 4,000 tokens" in ctl(daemon, "inspect", done.session).stdout
    assert ctl(daemon, "cost", "--since", "yesterday").returncode == 2


def test_nothing_is_nothing(daemon: RealDaemon) -> None:
    """0 lets no call through, in whatever it is; the session says so at once."""
    model = daemon.script("m", {"text": "I was called"})
    with daemon.client() as otto:
        for budgets in (Budgets(tokens=0), Budgets(usd=0), Budgets(seconds=0)):
            done = otto.run(spec=daemon.agent(model, budgets=budgets), task="go", cwd=daemon.workdir)
            assert done.cause is not None and done.cause.kind == "budget" and done.result == ""
        assert otto.cost() == ()


def test_a_price_that_nobody_knows_is_not_free(daemon_with_server: RealDaemon) -> None:
    """A budget in dollars refuses the call and says what would mend it; nobody was asked."""
    daemon = daemon_with_server
    with daemon.client() as otto:
        spec = daemon.agent("local:m", budgets=Budgets(usd=1))
        done = otto.run(spec=spec, task="go", cwd=daemon.workdir)
        assert done.cause is not None and (done.cause.kind, done.cause.code) == ("failed", "price_unknown")
        assert "providers.local.prices" in done.cause.message


@pytest.fixture
def daemon_with_server():  # type: ignore[no-untyped-def]
    """One that knows a server of its own, which is not there."""
    local = {"adapter": "openai", "api": "chat", "base_url": "http://127.0.0.1:9/v1", "needs_key": False}
    with running_daemon({"providers": {"local": local}}) as started:
        yield started


def test_time_ends_a_session_whatever_it_does(daemon: RealDaemon) -> None:
    """Idle, waiting for its model, or for a child: when its seconds are used it is stopped, with all below it."""
    stalled = daemon.script("stalled", {"text": "slow", "stall": 100})
    quick = daemon.script("quick", {"text": "said early"})
    # For three first turns and a child's start on a busy machine; the test waits until they are used up.
    allowed = Budgets(seconds=10)
    with daemon.client() as otto:
        idle, above = (
            otto.start(spec=daemon.agent(quick, budgets=allowed), task="go", cwd=daemon.workdir, mode="conversation")
            for _ in range(2)
        )
        in_flight = otto.start(spec=daemon.agent(stalled, budgets=allowed), task="go", cwd=daemon.workdir)
        child = otto.start(spec=daemon.agent(stalled), task="x", cwd=daemon.workdir, parent=above.id)
        for session, result in ((idle, "said early"), (in_flight, ""), (above, "said early")):
            done = session.wait()
            assert done.cause is not None and done.cause.kind == "budget"
            assert done.result == result
        assert child.wait().cause is not None


def question(otto, session: str) -> PendingApproval:  # type: ignore[no-untyped-def]
    def asked() -> SessionInfo | None:
        info = otto.session(session).info()
        # The question is told first, and then that nothing else is done.
        return info if info.approvals and info.state == "waiting_approval" else None

    info = wait_for("the question", asked)
    (pending,) = info.approvals
    assert pending.tool == "budget"
    return pending  # type: ignore[no-any-return]


def test_a_budget_may_grow_if_somebody_says_so() -> None:
    """Asked, root killed, answered: the call goes on in the larger budget; no means the last call and the end."""
    with running_daemon() as daemon:
        model = daemon.script("m", turn("I begin.", 3400), turn("on", 3500), {"text": "the end"})
        spec = daemon.agent(model, "fs_list", budgets=Budgets(tokens=4000), on_budget="ask")
        with daemon.client() as otto:
            session = otto.start(spec=spec, task="all of it", cwd=daemon.workdir).id
            first = question(otto, session)
            daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            assert question(otto, session).approval == first.approval
            otto.approve(first.approval)
            second = wait_for(
                "the next question",
                lambda: next(
                    (a for a in otto.session(session).info().approvals if a.approval != first.approval), None
                ),
            )
            assert {line.limit for line in otto.session(session).info().budgets} == {8000}
            otto.deny(second.approval)
            done = otto.session(session).wait()
            assert done.cause is not None and (done.cause.kind, done.result) == ("budget", "the end")
            headless = otto.start(spec=spec, task="all of it", cwd=daemon.workdir, headless=True).wait()
            assert headless.cause is not None and headless.cause.kind == "budget"


def test_a_days_budget_outlives_the_daemon() -> None:
    """It is the sum of the ledger since midnight, whoever asks."""
    with running_daemon({"budgets": {"day": {"tokens": 5000}}}, env=at_noon()) as daemon:
        model = daemon.script("m", {"text": "done", "usage": {"input_tokens": 1, "output_tokens": 4700}})
        with daemon.client() as otto:
            assert otto.run(spec=daemon.agent(model), task="go", cwd=daemon.workdir).ok
        daemon.stop()
        daemon.start()
        with daemon.client() as otto:
            refused = otto.run(spec=daemon.agent(model), task="go " * 200, cwd=daemon.workdir)
            assert refused.cause is not None and refused.cause.kind == "budget"
            assert "the day's budget" in refused.cause.message and "budgets.day.tokens" in refused.cause.message


def test_a_tree_is_never_over_whoever_is_killed() -> None:
    """Workers and root are killed with kill -9 while five children spend from one budget."""
    limit = 60_000
    with running_daemon() as daemon:
        model, quick = looping(daemon, delay_ms=20), daemon.script("quick", {"text": "ready"})
        with daemon.client() as otto:
            top = otto.start(
                spec=daemon.agent(quick, budgets=Budgets(tokens=limit), group=Group(max_restarts=500)),
                task="wait",
                cwd=daemon.workdir,
                mode="conversation",
            )
            wait_for("the parent waits", lambda: top.info().state == "idle")
            spec = daemon.agent(model, "fs_list", restart=TRANSIENT, max_output_tokens=2000)
            children = [otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=top.id).id for _ in range(5)]
        for kill_root in (False, True, False):
            with daemon.client() as otto:
                before = spent(daemon)
                wait_for("more is spent", lambda before=before: spent(daemon) > before + 500)  # type: ignore[misc]
                victims = [i.pid for c in children[:3] if (i := otto.session(c).info()).pid]
            if kill_root:
                daemon.kill()
                daemon.start()
            for pid in victims:
                worker = identify(pid)
                if worker is not None:
                    send_signal(worker, signal.SIGKILL)
        with daemon.client() as otto:
            ends = [otto.session(c).wait() for c in children]
            assert {e.cause.kind for e in ends if e.cause is not None} <= {"budget", "completed"}
            assert any(e.cause is not None and e.cause.kind == "budget" for e in ends)
            (line,) = [b for b in otto.session(top.id).info().budgets if b.session == top.id]
            booked = sum(row.usage.total_tokens for row in otto.cost("session"))
            assert line.spent == booked <= limit and line.reserved == 0
            metrics = {f.name: f for f in otto.metrics()}
            (over,) = metrics["otto_budget_overshoot_tokens"].samples
            assert over.value == 0
            otto.session(top.id).stop()


def spent(daemon: RealDaemon) -> int:
    try:
        with daemon.client() as otto:
            return sum(row.usage.total_tokens for row in otto.cost("session"))
    except OttoError:
        return 0
