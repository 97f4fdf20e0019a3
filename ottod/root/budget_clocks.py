"""The clocks of budgets of seconds: looked at while any runs, told of when little is left, acted on at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ottod.core.budget_clock import NS, UNCOUNTED, BudgetClock
from ottod.root.block_budgets import budgets_of, owner_of
from ottod.root.budget_refusals import over, scope_of, shown
from ottod.root.context import RootContext
from ottod.root.session_table import Session

TICK_S = 0.25
"""Between two looks at the clocks."""
NOTE_EVERY = 20
"""Looks between two notes of them in the sessions' rows."""


class BudgetClocks:
    """By account: a session's, or a block's. `path` gives the accounts that a session's work counts in, `note` has a
    session's row show its clocks; `on_time_up` stops a session that has no second left, `tell_time_up` tells a
    workflow to end, and says whether it has heard."""

    def __init__(
        self, context: RootContext, *, path: Callable[[str], list[str]], note: Callable[[Session], None]
    ) -> None:
        self._c = context
        self._path = path
        self._note = note
        self._clocks: dict[str, BudgetClock] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks = 0
        self.on_time_up: Callable[[Session, str], None] = lambda session, why: None
        self.tell_time_up: Callable[[Session, str], Awaitable[bool]] = _unheard

    def open(self, key: str) -> None:
        """An account exists: it has a clock if its budget has seconds, which goes on where its row says."""
        budgets, owner = budgets_of(self._c.table, key), self._c.table.get(owner_of(key))
        if budgets is None or budgets.seconds is None or owner is None or owner.has_ended:
            return
        known = next((b for b in owner.info.budgets if b.budget == "seconds" and b.session == key), None)
        limit_ns = max(int(budgets.seconds * NS), known.limit * NS if known is not None else 0)
        used_ns = known.spent * NS if known is not None else 0
        self._clocks[key] = BudgetClock(limit_ns=limit_ns, now_ns=self._monotonic_ns(), used_ns=used_ns)
        if self._ticker is None:
            self._ticker = self._c.loop.call_later(TICK_S, self._tick)

    def drop(self, key: str) -> None:
        """An account is closed."""
        self._clocks.pop(key, None)

    def get(self, key: str) -> BudgetClock | None:
        return self._clocks.get(key)

    def above(self, session: Session) -> list[tuple[str, BudgetClock]]:
        """Those that a session's time counts in, each with its account."""
        if not self._clocks:
            return []
        return [(key, self._clocks[key]) for key in self._path(session.id) if key in self._clocks]

    def check(self, session: Session, *, is_last: bool) -> None:
        """Raises OverBudget where too little time is left for a call."""
        for key, clock in self.above(session):
            if clock.is_used or (clock.is_for_last and not is_last):
                scope = scope_of(session.id, key)
                raise over(key, scope, "seconds", spent=clock.used_ns // NS, limit=clock.limit_ns // NS)

    def extend(self, key: str, first_s: float, limit_s: int) -> Session | None:
        """Lets a clock that was at `limit_s` go `first_s` longer, once. Gives whose it is; None if there is none."""
        clock, owner = self._clocks.get(key), self._c.table.get(owner_of(key))
        if clock is None or owner is None or not first_s:
            return None
        if clock.limit_ns // NS == limit_s:
            clock.extend(int(first_s * NS))
        return owner

    def close(self) -> None:
        """Root goes."""
        if self._ticker is not None:
            self._ticker.cancel()

    def _monotonic_ns(self) -> int:
        return int(self._c.loop.time() * NS)

    def _tick(self) -> None:
        self._ticker = None
        self._ticks += 1
        for key, clock in list(self._clocks.items()):
            session = self._c.table.get(owner_of(key))
            if session is None or session.has_ended:
                del self._clocks[key]
                continue
            timed = self._timed(key, session)
            is_counting = any(each.info.state not in UNCOUNTED for each in timed)
            clock.look(now_ns=self._monotonic_ns(), is_counting=is_counting)
            if clock.is_used:
                limit = shown("seconds", clock.limit_ns // NS)
                whose = "the session's budget" if key == session.id else f"the budget of {key}"
                for each in timed:
                    self._time_up(each, clock, f"{whose} of {limit} is used up")
            if self._ticks % NOTE_EVERY == 0:
                self._note(session)
        if self._clocks:
            self._ticker = self._c.loop.call_later(TICK_S, self._tick)

    def _time_up(self, session: Session, clock: BudgetClock, why: str) -> None:
        if session.is_stopping or clock.is_told:
            return
        if session.is_workflow:
            clock.is_told = True
            self._c.spawn(self._tell_time_up(session, clock, why))
        else:
            self.on_time_up(session, why)

    async def _tell_time_up(self, session: Session, clock: BudgetClock, why: str) -> None:
        """A workflow ends by itself, so that it can undo what it did. Unless it has heard, it is told again."""
        clock.is_told = await self.tell_time_up(session, why)

    def _timed(self, key: str, owner: Session) -> list[Session]:
        """Whose time counts: the session's own, or, of a block, that of the steps that run within it."""
        if key == owner.id:
            return [owner]
        return [each for each in owner.children.values() if not each.has_ended and key in self._path(each.id)]


async def _unheard(session: Session, why: str) -> bool:
    return False
