"""The books that a workflow begins with that goes on from another one's past: of its own and of its blocks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ottod.core.budget import NOTHING, Amount, Limits
from ottod.ids import session_id
from ottod.protocol.journal import Snapshot
from ottod.protocol.results import BudgetLine, SessionInfo
from ottod.protocol.specs import AgentSpec, Budgets, ModelTarget
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import AskPermit, Quote, SettlePermit
from ottod.protocol.workflows import ResolvedWorkflow, Step, WorkflowSpec
from ottod.root.books import Book, books_before, is_used_up
from ottod.root.heritage import Heritage
from ottod.root.permits import Permits
from ottod.root.plan import SessionPlan
from ottod.root.session_table import Incarnation, Session
from ottod.settings.daemon import DaemonSettings
from ottod.storage.database import Database
from tests.root.test_budget_trees import Context

OLD, NEW, STEP = session_id(1), session_id(2), session_id(3)
INNER = Step(id="inner", mode="sequential", steps=(Step(id="s", agent="a"),), budgets=Budgets(tokens=500))
MONEY = Step(id="money", mode="parallel", steps=(INNER,), budgets=Budgets(usd=1.0))
LOOP = Step(id="loop", mode="loop", steps=(MONEY,), budgets=Budgets(tokens=1000))
PLAIN = Step(id="plain", mode="sequential", steps=(INNER,))
FLOW = WorkflowSpec(name="flow", steps=(LOOP, PLAIN))


def line(place: str, spent: int, limit: int, budget: Any = "tokens") -> BudgetLine:
    return BudgetLine(budget=budget, scope="session", session=OLD + place, spent=spent, limit=limit)


LINES = (
    line("/loop", 600, 1000),
    line("/loop", 7, 60, "seconds"),
    line("/loop[1]/money", 30, 1_000_000, "usd_micros"),
    line("/loop[1]/money/inner", 350, 500),
    line("/loop[2]/money/inner", 250, 700),
    line("/plain/inner", 40, 500),
)


def plan(budgets: Budgets = Budgets()) -> SessionPlan:  # noqa: B008 - frozen
    models = (ModelTarget(provider="p", adapter="openai", model="m"),)
    workflow = ResolvedWorkflow(spec=FLOW)
    return SessionPlan(spec=AgentSpec(name="flow", budgets=budgets), models=models, cwd="/", workflow=workflow)


def heir(lines: tuple[BudgetLine, ...] = LINES, its: SessionPlan | None = None) -> Session:
    its = its or plan()
    books = Heritage(origin=OLD, plan=its, snapshot=Snapshot(), budgets=lines).books(NEW)
    return Session(SessionInfo(session=NEW, agent="flow", model="", state="running", budgets=books), its)


def test_each_account_has_what_was_spent_and_the_books_add_up() -> None:
    """A limit that was let grow stays so; where none was, it is what those below had spent; iterations are apart."""
    half = Limits(tokens=500)
    assert books_before(heir()) == [
        Book(NEW, "", Limits(), Amount(tokens=640, usd_micros=30)),
        Book(f"{NEW}/loop", NEW, Limits(tokens=1000), Amount(tokens=600, usd_micros=30)),
        Book(f"{NEW}/plain/inner", NEW, half, Amount(tokens=40)),
        Book(f"{NEW}/loop[1]/money", f"{NEW}/loop", Limits(usd_micros=1_000_000), Amount(tokens=350, usd_micros=30)),
        Book(f"{NEW}/loop[2]/money", f"{NEW}/loop", Limits(usd_micros=1_000_000), Amount(tokens=250)),
        Book(f"{NEW}/loop[1]/money/inner", f"{NEW}/loop[1]/money", half, Amount(tokens=350)),
        Book(f"{NEW}/loop[2]/money/inner", f"{NEW}/loop[2]/money", Limits(tokens=700), Amount(tokens=250)),
    ]
    assert books_before(heir(())) == [Book(NEW, "", Limits(), NOTHING)]


@pytest.mark.parametrize(
    ("spent", "limit", "budget", "why", "is_used"),
    [
        (899, 1000, "tokens", "", False),
        (900, 1000, "tokens", "", True),
        (850_000, 1_000_000, "usd_micros", "", False),
        (1_000_000, 1_000_000, "usd_micros", "", True),
        (3539, 3600, "seconds", "", False),
        (3540, 3600, "seconds", "", True),
        (0, 0, "tokens", "", True),
        (850, 1000, "tokens", f"loop: the budget of {OLD}/loop has no room for another call", True),
        (799, 1000, "tokens", f"loop: the budget of {OLD}/loop has no room for another call", False),
        (850, 1000, "tokens", f"loop: the budget of {OLD}/loop[1]/money has no room for another call", False),
        (850, 1000, "tokens", "the session's budget has no room for another call", False),
    ],
)
def test_a_limit_is_used_up_when_its_tenth_is_all_that_is_left(
    spent: int, limit: int, budget: str, why: str, is_used: bool
) -> None:
    """Or when most of it is spent and the session ended of that; not because another one was used up."""
    assert is_used_up(line("/loop", spent, limit, budget), OLD, why) is is_used


def test_a_session_that_ended_at_its_own_budget() -> None:
    """It is no other's, even if much of it is spent."""
    most = line("", 850, 1000)
    assert is_used_up(most, OLD, "the session's budget has no room for another call: …")
    assert not is_used_up(most, OLD, f"the budget of {NEW} has no room for another call: …")
    assert not is_used_up(most, OLD, "the day's budget has no room for another call: …")


def test_an_agents_books_are_its_own() -> None:
    info = SessionInfo(
        session=OLD, agent="a", model="", state="running", budgets=(line("", 5, 80), line("/loop", 1, 2))
    )
    its = SessionPlan(spec=AgentSpec(name="a", budgets=Budgets(tokens=80)), models=(), cwd="/")
    assert books_before(Session(info, its)) == [Book(OLD, "", Limits(tokens=80), Amount(tokens=5))]


def test_a_block_that_had_used_most_of_its_budget_has_the_rest(tmp_path: Path) -> None:
    """Also after root's death, before and after the block has spent anything in the workflow that goes on."""

    async def main() -> None:
        session = heir(its=plan(Budgets(tokens=5000)), lines=(*LINES, line("", 640, 5000)))
        step = Session(
            SessionInfo(session=STEP, agent="a", model="", state="running", parent=NEW),
            SessionPlan(
                spec=AgentSpec(name="a"),
                models=plan().models,
                cwd="/",
                is_step=True,
                spawn_key="loop[2]/money/inner/s#1",
            ),
        )
        step.incarnation = Incarnation(number=1, secret=b"", generation=0)

        async def boot() -> Permits:
            context: Any = Context(database, DaemonSettings())
            for each in (session, step):
                context.table.add(each)
            permits = Permits(context)
            await permits.restore()
            for each in (session, step):
                permits.budgets.opened(each)
            permits.budgets.validate()
            return permits

        async def spend(permits: Permits, name: str, tokens: int, *, is_last: bool = False) -> bool:
            ask = AskPermit(
                permit=name,
                turn=1,
                step=1,
                input_bound_tokens=0,
                max_output_tokens=tokens,
                min_output_tokens=tokens,
                quotes=(Quote(input_usd_micros=0, output_token_usd_nanos=0),),
                is_last=is_last,
            )
            assert step.incarnation is not None
            reply = await permits.ask(step, step.incarnation, ask)
            if reply.permit is None:
                assert reply.refusal is not None
                refused.append(reply.refusal.session)
                return False
            used = Usage(output_tokens=tokens, usd_micros=0)
            await permits.settle(step, SettlePermit(permit=name, outcome="completed", usage=used))
            return True

        def spent(permits: Permits) -> list[int]:
            lines = {each.session: each.spent for each in permits.budgets.lines(session) if each.budget == "tokens"}
            return [lines[NEW], lines[f"{NEW}/loop"], lines[f"{NEW}/loop[1]/money/inner"]]

        first = await boot()
        assert spent(first) == [640, 600, 350]
        second = await boot()
        assert await spend(second, "1", 250) and not await spend(second, "2", 100)
        assert refused == [f"{NEW}/loop"] and spent(second) == [890, 850, 350]
        third = await boot()
        assert spent(third) == [890, 850, 350] and not await spend(third, "3", 100)
        assert await spend(third, "4", 50) and not await spend(third, "5", 1)
        fourth = await boot()
        assert not await spend(fourth, "6", 1), "what is left is for last calls"
        assert await spend(fourth, "7", 100, is_last=True) and not await spend(fourth, "8", 1, is_last=True)
        assert spent(fourth) == [1040, 1000, 350]

    refused: list[str] = []
    database = Database.open(tmp_path / "otto.db")
    try:
        asyncio.run(main())
    finally:
        database.close()


def test_the_tenth_is_lent_to_steps_and_once_for_a_turn(tmp_path: Path) -> None:
    """Not to whom somebody else starts below the workflow, however often a worker calls a call its last."""

    async def main() -> None:
        session = heir((), its=plan(Budgets(tokens=1000)))
        models = plan().models
        step_plan = SessionPlan(spec=AgentSpec(name="a"), models=models, cwd="/", is_step=True, spawn_key="plain/s#1")
        guest_plan = SessionPlan(spec=AgentSpec(name="a"), models=models, cwd="/", spawn_key="k")
        step, guest = (
            Session(SessionInfo(session=key, agent="a", model="", state="running", parent=NEW), its)
            for key, its in ((STEP, step_plan), (session_id(4), guest_plan))
        )
        context: Any = Context(database, DaemonSettings())
        permits = Permits(context)
        for each in (session, step, guest):
            each.incarnation = Incarnation(number=1, secret=b"", generation=0)
            context.table.add(each)
            permits.budgets.opened(each)

        async def ask(of: Session, name: str, tokens: int, *, turn: int = 1, is_last: bool = True) -> bool:
            body = AskPermit(
                permit=name,
                turn=turn,
                step=1,
                input_bound_tokens=0,
                max_output_tokens=tokens,
                min_output_tokens=tokens,
                quotes=(Quote(input_usd_micros=0, output_token_usd_nanos=0),),
                is_last=is_last,
            )
            assert of.incarnation is not None
            return (await permits.ask(of, of.incarnation, body)).permit is not None

        assert await ask(guest, "1", 900, is_last=False)
        assert not await ask(guest, "2", 1)
        assert await ask(step, "3", 10) and not await ask(step, "4", 10)
        used = Usage(output_tokens=5, usd_micros=0)
        await permits.settle(step, SettlePermit(permit="3", outcome="completed", usage=used))
        assert not await ask(step, "5", 10) and await ask(step, "6", 10, turn=2)
        permits.budgets.validate()
        permits.close()

    database = Database.open(tmp_path / "otto.db")
    try:
        asyncio.run(main())
    finally:
        database.close()
