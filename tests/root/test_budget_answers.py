"""What is said about a budget: the first answer counts, and a yes lets it grow once, whatever becomes of it then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ottod.errors import Failure, OttoError
from ottod.protocol.requests import ResolveApproval
from ottod.protocol.results import PendingApproval
from ottod.protocol.specs import Budgets
from ottod.protocol.worker import ResolveApproval as Order
from ottod.protocol.worker_requests import BudgetRefusal
from ottod.root.approvals import BUDGET_TOOL, Approvals
from ottod.root.session_table import Session
from ottod.storage.database import Database
from tests.root.test_budget_books import Desk

APPROVAL = "a-0123456789"
FROZEN = Failure(code="no_answer", message="the worker did not answer in 10 s")
SETTLED = Failure(code="already_resolved", message="it was settled")
LOST = Failure(code="no_such_approval", message="no such approval")
LIMIT = 1000
YES = ResolveApproval(approval=APPROVAL, decision="approved")
NO = ResolveApproval(approval=APPROVAL, decision="denied")


class Worker:
    """One that hears orders, unless it is frozen; it knows the question, and what it was told first."""

    def __init__(self) -> None:
        self.is_frozen = False
        self.heard: list[Order] = []
        self.limits: list[int | None] = []
        """What it found the limit to be when it heard."""
        self.limit: Callable[[], int | None] = lambda: None
        self.failure: Failure | None = None

    async def command(self, session: Session, order: Order, *, timeout_s: float) -> Failure | None:
        await asyncio.sleep(0)
        if self.is_frozen:
            return FROZEN
        if self.failure is not None or self.heard:
            return self.failure or SETTLED
        self.heard.append(order)
        self.limits.append(self.limit())
        return None


class Hall:
    """A session that waits to hear whether it may have more, and root after root that is asked."""

    def __init__(self, database: Database, unit: str) -> None:
        self.unit = unit
        budgets = {"tokens": Budgets(tokens=LIMIT), "seconds": Budgets(seconds=LIMIT)}[unit]
        self.desk, self.worker = Desk(database, budgets), Worker()
        self.worker.limit = self.limit
        refusal = BudgetRefusal(budget=unit, scope="session", session=self.desk.session.id, limit=LIMIT)  # type: ignore[arg-type]
        arguments = msgspec.json.encode(refusal).decode()
        self.pending = PendingApproval(approval=APPROVAL, call="budget:", tool=BUDGET_TOOL, arguments=arguments)
        self.desk.session.info = msgspec.structs.replace(self.desk.session.info, approvals=(self.pending,))

    async def boot(self) -> Approvals:
        permits = await self.desk.boot()
        context: Any = permits.budgets._c
        context.gate = self.worker
        self.context = context
        self.approvals = Approvals(context, None)  # type: ignore[arg-type]
        self.approvals.on_budget_granted = permits.budgets.extend
        return self.approvals

    def limit(self) -> int | None:
        lines = self.desk.permits.budgets.lines(self.desk.session)
        return next(line.limit for line in lines if line.budget == self.unit)

    async def say(self, request: ResolveApproval) -> str:
        """Somebody's answer; what became of it."""
        try:
            result = await self.approvals.resolve(self.desk.session, request, "somebody")
        except OttoError as error:
            return error.code
        return "kept" if result.is_kept else "taken"

    async def end(self) -> None:
        self.desk.permits.budgets.close()
        for task in list(self.context.tasks):
            task.cancel()
        await asyncio.gather(*self.context.tasks, return_exceptions=True)


def play(path: Path, unit: str, scene: Callable[[Hall], Awaitable[None]]) -> None:
    async def run() -> None:
        hall = Hall(database, unit)
        await hall.boot()
        try:
            await scene(hall)
        finally:
            await hall.end()

    database = Database.open(path / "otto.db")
    try:
        asyncio.run(run())
    finally:
        database.close()


@pytest.mark.parametrize("unit", ["tokens", "seconds"])
def test_a_yes_that_a_frozen_worker_does_not_hear_counts_once(unit: str, tmp_path: Path) -> None:
    """It is kept; who says it again learns that it has been said, and the budget is as if it was said once."""

    async def scene(hall: Hall) -> None:
        hall.worker.is_frozen = True
        assert await hall.say(YES) == "kept"
        assert [await hall.say(each) for each in (YES, NO, YES)] == ["already_resolved"] * 3
        assert hall.limit() == 2 * LIMIT
        hall.worker.is_frozen = False
        await hall.approvals.deliver_kept(hall.desk.session)
        assert [order.decision for order in hall.worker.heard] == ["approved"]
        assert hall.worker.limits == [2 * LIMIT] and hall.limit() == 2 * LIMIT

    play(tmp_path, unit, scene)


@pytest.mark.parametrize("unit", ["tokens", "seconds"])
@pytest.mark.parametrize(("first", "second"), [(YES, YES), (YES, NO), (NO, YES)], ids=["yes yes", "yes no", "no yes"])
def test_of_two_answers_at_once_one_counts(
    unit: str, first: ResolveApproval, second: ResolveApproval, tmp_path: Path
) -> None:
    """The budget grows if that one is yes, before its worker hears it, and whatever the other one was."""

    async def scene(hall: Hall) -> None:
        said = await asyncio.gather(hall.say(first), hall.say(second))
        assert said == ["taken", "already_resolved"]
        assert [order.decision for order in hall.worker.heard] == [first.decision]
        assert hall.limit() == hall.worker.limits[0] == (2 * LIMIT if first is YES else LIMIT)

    play(tmp_path, unit, scene)


def test_a_yes_outlives_the_roots_that_took_it(tmp_path: Path) -> None:
    """The budget that it let grow has grown for the next ones too, and does not grow again."""

    async def scene(hall: Hall) -> None:
        hall.worker.is_frozen = True
        assert await hall.say(YES) == "kept"
        for _ in range(2):
            await hall.end()
            await hall.boot()
        hall.worker.is_frozen = False
        await hall.approvals.deliver_kept(hall.desk.session)
        assert hall.worker.limits == [2 * LIMIT] and hall.limit() == 2 * LIMIT

    play(tmp_path, "tokens", scene)


def test_a_root_that_dies_before_the_budget_has_grown_leaves_that_to_the_next(tmp_path: Path) -> None:
    """That one finds the answer in the row, and the budget has grown before the worker hears it."""

    async def scene(hall: Hall) -> None:
        hall.approvals.on_budget_granted = never
        dying = asyncio.ensure_future(hall.say(YES))
        while hall.desk.session.info.approvals[0].answer is None:
            await asyncio.sleep(0)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        await hall.end()
        await hall.boot()
        assert hall.limit() == LIMIT and not hall.worker.heard
        await hall.approvals.deliver_kept(hall.desk.session)
        assert hall.worker.limits == [2 * LIMIT] and hall.limit() == 2 * LIMIT

    play(tmp_path, "tokens", scene)


async def never(session: Session, refused: BudgetRefusal) -> bool:
    await asyncio.Event().wait()
    return True


def test_a_yes_that_is_delivered_while_it_is_put_on_record_is_no_error(tmp_path: Path) -> None:
    """A worker that says hello in the midst is told what stands in the row, and again by whoever took the answer."""

    async def scene(hall: Hall) -> None:
        saying = asyncio.ensure_future(hall.say(YES))
        while hall.desk.session.info.approvals[0].answer is None:
            await asyncio.sleep(0)
        await hall.approvals.deliver_kept(hall.desk.session)
        assert await saying == "taken" and len(hall.worker.heard) == 1
        assert hall.limit() == 2 * LIMIT and await hall.say(NO) == "already_resolved"

    play(tmp_path, "tokens", scene)


def test_a_yes_to_what_the_worker_has_settled_otherwise_is_refused(tmp_path: Path) -> None:
    """It had waited as long as it could, say: somebody who said yes must not think that this was heard."""

    async def scene(hall: Hall) -> None:
        hall.worker.failure = SETTLED
        assert await hall.say(YES) == "already_resolved" and not hall.desk.session.info.approvals

    play(tmp_path, "tokens", scene)


def test_a_question_that_the_worker_has_lost_waits_for_another_answer(tmp_path: Path) -> None:
    """It is asked again; nothing stands in the row that would be taken for what is said then."""

    async def scene(hall: Hall) -> None:
        hall.worker.failure = LOST
        assert await hall.say(YES) == "no_such_approval"
        assert hall.desk.session.info.approvals[0].answer is None

    play(tmp_path, "tokens", scene)


def test_an_answer_about_a_budget_that_is_gone_is_refused(tmp_path: Path) -> None:
    """And it is not kept."""

    async def scene(hall: Hall) -> None:
        hall.desk.permits.budgets.left(hall.desk.session)
        assert await hall.say(YES) == "refused"
        assert hall.desk.session.info.approvals[0].answer is None and not hall.worker.heard

    play(tmp_path, "tokens", scene)
