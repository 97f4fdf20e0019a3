"""Root's permits against workers, providers and clocks that say what cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ottod.core.budget import NOTHING
from ottod.errors import OttoError
from ottod.ids import session_id
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import AgentSpec, Budgets, ModelTarget
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import AskPermit, Permit, Quote, SettlePermit
from ottod.root.permits import Permits
from ottod.root.plan import SessionPlan
from ottod.root.session_table import Incarnation, Session
from ottod.settings.daemon import DaemonSettings
from ottod.settings.sections import BudgetSettings, DayBudget
from ottod.storage.database import Database
from tests.root.test_budget_trees import Context

MODELS = (ModelTarget(provider="p", adapter="openai", model="m"),)
NS = 1_000_000_000
NO_BUDGETS, NO_DAY = Budgets(), DayBudget()


class Desk:
    """One session, and root after root over the same database. `day` is what the configuration allows."""

    def __init__(self, database: Database, budgets: Budgets = NO_BUDGETS, day: DayBudget = NO_DAY) -> None:
        self.database = database
        self.settings = DaemonSettings(budgets=BudgetSettings(day=day))
        plan = SessionPlan(spec=AgentSpec(name="a", budgets=budgets), models=MODELS, cwd="/")
        self.session = Session(SessionInfo(session=session_id(7), agent="a", model="p:m", state="running"), plan)
        self.session.incarnation = Incarnation(number=1, secret=b"", generation=0)
        self.now_ns = 0
        self.asked = 0
        self.set_clock("2026-03-10T12:00")

    def set_clock(self, moment: str) -> None:
        self.now_ns = int(datetime.fromisoformat(moment).timestamp()) * NS

    async def boot(self) -> Permits:
        context: Any = Context(self.database, self.settings)
        context.table.add(self.session)
        self.permits = Permits(context, now_ns=lambda: self.now_ns)
        await self.permits.restore()
        return self.permits

    async def ask(self, *, bound: int = 10, output: int = 90, permit: str = "") -> Permit | None:
        """A permit, or None if a budget has no room."""
        self.asked += 1
        worker = self.session.incarnation
        assert worker is not None
        ask = AskPermit(
            permit=permit or f"1-{self.asked}",
            turn=1,
            step=1,
            input_bound_tokens=bound,
            max_output_tokens=output,
            min_output_tokens=output,
            quotes=(Quote(input_usd_micros=bound, output_token_usd_nanos=1000),),
        )
        return (await self.permits.ask(self.session, worker, ask)).permit

    async def tell(self, permit: Permit, usage: Usage) -> None:
        told = SettlePermit(permit=permit.permit, outcome="completed", usage=usage)
        await self.permits.settle(self.session, told)

    async def spend(self, tokens: int) -> bool:
        """One call that consumes exactly that; False if it may not be made."""
        permit = await self.ask(bound=0, output=tokens)
        if permit is not None:
            await self.tell(permit, Usage(output_tokens=tokens, usd_micros=tokens))
        return permit is not None

    @property
    def spent(self) -> int:
        account = self.permits.budgets.accounts.get(self.session.id)
        return account.spent.tokens if account is not None else 0


def sit(tmp_path: Path, work: Callable[[Desk], Awaitable[None]], **fields: Any) -> None:
    """Runs the work at a desk whose first root is up."""

    async def main() -> None:
        desk = Desk(database, **fields)
        await desk.boot()
        await work(desk)
        desk.permits.budgets.validate()
        desk.permits.close()

    database = Database.open(tmp_path / "otto.db")
    try:
        asyncio.run(main())
    finally:
        database.close()


def test_a_count_below_nothing_gives_nothing_back(tmp_path: Path) -> None:
    """A provider, or a worker, that counts less than nothing cannot make room for others."""

    async def work(desk: Desk) -> None:
        for _ in range(3):
            permit = await desk.ask()
            assert permit is not None
            await desk.tell(permit, Usage(input_tokens=-5000, output_tokens=40, usd_micros=-(10**9)))
        assert desk.spent == 120
        assert desk.permits.ledger is not None
        rows = await desk.permits.ledger.cost("session")
        assert [(r.usage.total_tokens, r.usage.usd_micros) for r in rows] == [(120, 0)]
        assert await desk.ask(bound=0, output=9_000) is None

    sit(tmp_path, work, budgets=Budgets(tokens=10_000))


def test_a_session_that_never_was_leaves_nothing_in_the_books(tmp_path: Path) -> None:
    """Refused when its rows could not be written: its account goes, and holds nobody above it back."""

    async def work(desk: Desk) -> None:
        budgets, plan = desk.permits.budgets, desk.session.plan
        info = SessionInfo(session=session_id(8), parent=desk.session.id, agent="a", model="p:m", state="starting")
        child = Session(info, plan)
        budgets.opened(child)
        assert budgets.path(child.id) == [child.id, desk.session.id]
        budgets.left(child)
        assert budgets.path(child.id) == []
        budgets.ended(desk.session)
        assert budgets.accounts.get(desk.session.id) is None, "nothing is below it, so it goes too"

    sit(tmp_path, work, budgets=Budgets(tokens=10_000, seconds=60))


def test_absurd_counts_do_not_keep_the_next_root_from_its_start(tmp_path: Path) -> None:
    """Sums that no database can hold would: the books refuse them at the entrance."""

    async def work(desk: Desk) -> None:
        for _ in range(3):
            permit = await desk.ask()
            assert permit is not None
            await desk.tell(permit, Usage(input_tokens=2**62, output_tokens=2**62, usd_micros=2**62))
        second = await desk.boot()
        assert len(await second.ledger.cost("day")) == 1
        assert msgspec.msgpack.encode(second.budgets.lines(desk.session))

    sit(tmp_path, work, budgets=Budgets(tokens=10**17, usd=1e11))


def test_a_reservation_is_never_negative(tmp_path: Path) -> None:
    """Whatever a worker asks for, nobody else has more room than before."""

    async def work(desk: Desk) -> None:
        assert await desk.ask(bound=-10_000, output=-10_000) is not None
        account = desk.permits.budgets.accounts.get("day")
        assert account is not None and account.reserved.tokens == 1
        assert await desk.ask(bound=2**63, output=2**63) is None
        assert (account.reserved.tokens, desk.permits.open_count) == (1, 1)

    sit(tmp_path, work, day=DayBudget(tokens=1000))


@pytest.mark.parametrize("budgets", [Budgets(tokens=2**64 - 1, usd=inf), Budgets(tokens=2**80, usd=1e300)])
def test_a_limit_beyond_all_measure_is_a_limit(budgets: Budgets, tmp_path: Path) -> None:
    """It can be written down, told, and spent from."""

    async def work(desk: Desk) -> None:
        assert await desk.spend(100)
        assert msgspec.msgpack.encode(desk.permits.budgets.lines(desk.session))
        await desk.boot()
        assert await desk.spend(100) and desk.spent == 200

    sit(tmp_path, work, budgets=budgets, day=DayBudget(usd=budgets.usd, tokens=budgets.tokens))


class Slow:
    """An admission that lets nobody in before it is told to, and counts the places that are held."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.held = 0

    async def admit(self, session: Session, ask: AskPermit) -> Permit:
        await self.gate.wait()
        self.held += 1
        return Permit(permit=ask.permit, target=ask.target, max_output_tokens=ask.max_output_tokens)

    def found(self, session: Session, permit: Permit) -> None:
        self.held += 1

    def settled(self, session: Session, permit: Permit, settlement: SettlePermit) -> None:
        self.held -= 1


def test_a_permit_that_is_asked_for_twice_at_once_holds_one_place(tmp_path: Path) -> None:
    """The second question is refused, and its place would have been nobody's to give back."""

    async def work(desk: Desk) -> None:
        desk.permits.admission = slow = Slow()
        first = asyncio.ensure_future(desk.ask(permit="1-1"))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(desk.ask(permit="1-1"))
        await asyncio.sleep(0)
        slow.gate.set()
        with pytest.raises(OttoError) as caught:
            await second
        assert caught.value.code == "too_many_requests"
        permit = await first
        assert permit is not None and slow.held == 1
        await desk.tell(permit, Usage(output_tokens=1))
        assert slow.held == desk.permits.open_count == 0

    sit(tmp_path, work)


def test_the_calls_of_an_adopted_worker_are_found_and_end(tmp_path: Path) -> None:
    """The next root's admission hears of them, and of their ends; of a dead worker's it does not."""

    async def work(desk: Desk) -> None:
        told, died = await desk.ask(), await desk.ask()
        assert told is not None and died is not None
        for is_adopted in (False, True):
            worker = desk.session.incarnation
            desk.session.incarnation = worker if is_adopted else None
            context: Any = Context(desk.database, desk.settings)
            context.table.add(desk.session)
            desk.permits = Permits(context)
            desk.permits.admission = slow = Slow()
            await desk.permits.restore()
            assert slow.held == (2 if is_adopted else 0)
            desk.session.incarnation = worker
        await desk.tell(told, Usage(output_tokens=1))
        assert slow.held == 1
        desk.permits.worker_gone(desk.session)
        desk.permits.worker_gone(desk.session)
        assert slow.held == 0
        await desk.tell(died, Usage(output_tokens=1))
        assert (slow.held, desk.permits.open_count, desk.spent) == (0, 0, 2)

    sit(tmp_path, work, budgets=Budgets(tokens=1000))


def test_a_clock_that_is_set_back_brings_no_second_budget(tmp_path: Path) -> None:
    """A day's budget is spent once, however often the clock comes to that day."""

    async def work(desk: Desk) -> None:
        assert await desk.spend(1000) and not await desk.spend(1)
        for moment in ("2026-03-09T23:59", "2026-03-10T00:01", "2026-03-09T12:00", "2026-03-10T12:00"):
            desk.set_clock(moment)
            assert not await desk.spend(1), moment
        desk.set_clock("2026-03-11T00:00")
        assert await desk.spend(600) and not await desk.spend(600)
        desk.set_clock("2026-03-10T23:59")
        assert not await desk.spend(1)
        desk.set_clock("2026-03-11T00:01")
        assert await desk.spend(400) and not await desk.spend(1)

    sit(tmp_path, work, day=DayBudget(tokens=1000))


def test_a_daemon_that_started_with_a_wrong_clock_knows_what_was_paid_for(tmp_path: Path) -> None:
    """A machine whose clock is set after its start comes back to a day that is in the books."""

    async def work(desk: Desk) -> None:
        assert await desk.spend(1000)
        desk.set_clock("2026-01-01T00:00")
        await desk.boot()
        assert not await desk.spend(1), "the books have a day to come"
        desk.set_clock("2026-03-10T13:00")
        assert not await desk.spend(1)
        desk.set_clock("2026-03-11T13:00")
        (line,) = desk.permits.budgets.lines(desk.session)
        assert (line.scope, line.spent, line.limit) == ("day", 0, 1000)
        assert await desk.spend(1000)

    sit(tmp_path, work, day=DayBudget(tokens=1000))


def test_a_call_over_midnight_counts_for_the_day_it_ends_on(tmp_path: Path) -> None:
    """What is reserved stays so, and neither day is over."""

    async def work(desk: Desk) -> None:
        permit = await desk.ask(bound=0, output=900)
        assert permit is not None
        desk.set_clock("2026-03-11T00:00")
        assert not await desk.spend(200)
        await desk.tell(permit, Usage(output_tokens=900))
        assert await desk.spend(100) and not await desk.spend(1)
        account = desk.permits.budgets.accounts.get("day")
        assert account is not None and account.overshoot == NOTHING

    sit(tmp_path, work, day=DayBudget(tokens=1000))
