"""Budgets: the accounts of all sessions and of the day, and their rows.

The accounts are in memory, where a reservation is one step of root's loop. Whatever is granted is in the database
before anybody hears of it, and whatever is spent is in the ledger, so the next root begins with the same accounts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from ottod.core.budget import (
    NOTHING,
    Account,
    Accounts,
    Amount,
    Call,
    Limits,
    NearlyUsed,
    Refused,
)
from ottod.core.budget_clock import NS
from ottod.errors import OttoError
from ottod.protocol.events import BudgetWarning
from ottod.protocol.results import BudgetLine
from ottod.protocol.usage import MAX_CALL_TOKENS, MAX_CALL_USD_MICROS, Usage
from ottod.protocol.worker_requests import AskPermit, BudgetRefusal, Permit
from ottod.root.block_budgets import blocks_above, budgets_of, is_block, is_undo, owner_of, undo_account
from ottod.root.books import Book, books_before, limits_from, micros, tokens
from ottod.root.budget_clocks import BudgetClocks
from ottod.root.budget_refusals import DAY, refusal, scope_of
from ottod.root.context import RootContext
from ottod.root.session_table import Session
from ottod.storage.ledger import AccountRow, Ledger, PermitRow

MAX_TOKEN_USD_NANOS = 1_000_000_000
"""No token costs more than a dollar."""
KEPT_DAYS = 32


class Budgets:
    """Of all sessions of this root. `clocks` are of those whose budgets have seconds."""

    def __init__(self, context: RootContext, ledger: Ledger, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._c = context
        self._ledger = ledger
        self._now_ns = now_ns
        self._accounts = Accounts()
        self._accounts.open(DAY, above=None, limits=self._day_limits(), holds_back=False)
        self._day = self._today()
        self._spent_on: dict[str, Amount] = {}
        """By day, as far as this root knows it: the clock may come to a day again."""
        self._stored: set[str] = set()
        """Sessions whose accounts are in the database."""
        self._blocks: dict[str, list[str]] = {}
        """The accounts of blocks, by their workflows' sessions."""
        self.clocks = BudgetClocks(context, path=self.path, note=self._note_lines)

    # ------------------------------------------------------------ sessions

    def opened(self, session: Session) -> None:
        """A session exists: it has an account below its parent's."""
        if self._accounts.get(session.id) is None:
            self._open_all(session, self._open_above(session, {}), {})

    def _open_all(self, session: Session, above: str, rows: Mapping[str, AccountRow]) -> None:
        """Its account, and those of its blocks whose books it goes on with."""
        for book in books_before(session):
            if is_block(book.key) and session.has_ended:
                continue
            self._open(book._replace(above=book.above or above), rows, lends=session.is_workflow)

    def _open_above(self, session: Session, rows: Mapping[str, AccountRow]) -> str:
        """The account right above a session's: its parent's, or that of the innermost block that a step is in."""
        above = session.info.parent
        if (account := self._accounts.get(above)) is None:
            return DAY
        if is_undo(session):
            return self._open_beside(account, rows)
        for key, budgets in blocks_above(self._c.table, session):
            self._open(Book(key, above, limits_from(budgets), NOTHING), rows, lends=True)
            above = key
        return above

    def _open_beside(self, workflow: Account, rows: Mapping[str, AccountRow]) -> str:
        """The account of what undoes a workflow's steps: its own may be used up."""
        key = undo_account(workflow.key)
        budgets = budgets_of(self._c.table, key)
        if budgets is None or workflow.above is None:
            return workflow.key
        self._open(Book(key, workflow.above.key, limits_from(budgets), NOTHING), rows, lends=True)
        return key

    def _open(self, book: Book, rows: Mapping[str, AccountRow], *, lends: bool) -> None:
        """An account as the book says, or, if that was written later, as its row does."""
        key, limits, spent = book.key, book.limits, book.spent
        if self._accounts.get(key) is not None:
            return
        if (row := rows.get(key)) is not None:
            limits, spent = _limits_in(row), _spent_in(row)
            self._stored.add(key)
        self._accounts.open(key, above=book.above, limits=limits, spent=spent, lends=lends)
        if is_block(key):
            self._blocks.setdefault(owner_of(key), []).append(key)
        self.clocks.open(key)

    def ended(self, session: Session) -> None:
        """It has ended: its account is closed, and its row shows what it came to."""
        self._note_lines(session)
        self.left(session)

    def left(self, session: Session) -> None:
        """It is no more, or was refused in the end and never was: nothing counts in its account from now on."""
        gone = []
        for key in (*self._blocks.pop(session.id, ()), session.id):
            self.clocks.drop(key)
            gone += self._accounts.close(key)
        if (rows := self._stored.intersection(gone)) or self._under(session.id):
            self._c.spawn(self._tidy(session.id, rows))

    def _under(self, session_id: str) -> list[str]:
        """The accounts of a session and of all below it, and of what undoes a workflow's steps."""
        tops = session_id, undo_account(session_id)
        return [key for top in tops if self._accounts.get(top) is not None for key in self._accounts.under(top)]

    async def forget(self, session_id: str) -> None:
        """It had ended before this root began, and nothing is reserved for it any more. Raises StorageError."""
        gone = self._accounts.close(session_id)
        self._stored.difference_update(gone)
        await self._ledger.drop_accounts(gone)

    async def _tidy(self, session_id: str, gone: set[str]) -> None:
        """Forgets rows that nothing counts in any more. The account of one that has sessions below it is kept."""
        self._stored -= gone
        try:
            if gone:
                await self._ledger.drop_accounts(gone)
            if below := self._under(session_id):
                # Those below it too: after this nobody could say which of its blocks they are in.
                rows = list({row.session: row for key in below for row in self._unstored(key)}.values())
                await self._ledger.put_accounts(rows)
                await self._note_stored(rows)
        except OttoError as error:
            self._c.log(f"accounts: {error}", session=session_id)

    async def extend(self, session: Session, refused: BudgetRefusal) -> bool:
        """Lets a budget on the session's path grow by as much again as it was at first. False if there is none.

        Each limit grows once, however many were refused at it and whoever says so, however often. Returns when the
        new one is in the database.
        """
        account = self._accounts.get(session.id)
        path = {each.key: each for each in account.path()} if account is not None else {}
        owner = refused.session
        budgets = budgets_of(self._c.table, owner)
        if owner not in path or owner == DAY or budgets is None:
            return False
        if refused.budget == "seconds":
            return await self._extend_clock(owner, budgets.seconds or 0, refused.limit)
        first, limits = limits_from(budgets).of(refused.budget), path[owner].limits
        limit = limits.of(refused.budget)
        if limit is None or not first:
            return False
        if limit == refused.limit:
            self._accounts.set_limits(owner, replace(limits, **{refused.budget: limit + first}))
        # Also where it has grown before: whoever let it grow may still be writing.
        await self._put_limits(path[owner])
        return True

    async def _extend_clock(self, key: str, first_s: float, limit_s: int) -> bool:
        owner = self.clocks.extend(key, first_s, limit_s)
        if owner is None:
            return False
        self._note_lines(owner)
        try:
            await self._c.database.put_session(owner.info)
        except OttoError as error:
            self._c.log(f"budgets: {error}", session=owner.id)
        return True

    def _note_lines(self, session: Session) -> None:
        """The session's row shows what it and its blocks may spend, and have spent."""
        own = tuple(line for line in self.lines(session) if line.scope == "session")
        if own != session.info.budgets:
            self._c.table.update(session, replace(session.info, budgets=own))

    async def _put_limits(self, account: Account) -> None:
        try:
            rows = [_account_row(account)]
            await self._ledger.put_accounts(rows)
            await self._note_stored(rows)
        except OttoError as error:
            self._c.log(f"accounts: {error}", session=account.key)

    # ------------------------------------------------------------ calls

    def reserve(self, session: Session, ask: AskPermit, permit: Permit) -> tuple[Permit, PermitRow]:
        """Reserves the most that an attempt can consume; its output may have been lowered to what there is room for.

        Raises: OverBudget; RefusedError if a budget is in dollars and the model's price is not known.
        """
        self._roll()
        self.opened(session)
        self.clocks.check(session, is_last=ask.is_last)
        quote = ask.quotes[permit.target] if 0 <= permit.target < len(ask.quotes) else None
        max_output_tokens = _within(permit.max_output_tokens, MAX_CALL_TOKENS, least=1)
        call = Call(
            input_tokens=_within(ask.input_bound_tokens, MAX_CALL_TOKENS),
            max_output_tokens=max_output_tokens,
            min_output_tokens=_within(ask.min_output_tokens, max_output_tokens, least=1),
            input_usd_micros=_within(quote.input_usd_micros, MAX_CALL_USD_MICROS) if quote is not None else None,
            output_token_usd_nanos=_within(quote.output_token_usd_nanos, MAX_TOKEN_USD_NANOS) if quote else 0,
        )
        step_turn = ask.turn if session.plan is not None and session.plan.step else None
        found = self._accounts.reserve(session.id, ask.permit, call, is_last=ask.is_last, step_turn=step_turn)
        if isinstance(found, Refused):
            full = self._accounts.get(found.account)
            assert full is not None
            raise refusal(session, permit, found, full)
        target = session.plan.models[permit.target] if session.plan is not None else None
        row = PermitRow(
            session=session.id,
            permit=ask.permit,
            at_ns=self._now_ns(),
            agent=session.info.agent,
            provider=target.provider if target is not None else "",
            model=target.model if target is not None else "",
            target=permit.target,
            input_tokens=call.input_tokens,
            max_output_tokens=found.output_tokens,
            usd_micros=found.amount.usd_micros if quote is not None else None,
            is_last=ask.is_last,
        )
        return replace(permit, max_output_tokens=found.output_tokens, is_last=ask.is_last), row

    async def store(self, row: PermitRow) -> None:
        """Writes what was reserved, and the accounts that it counts in. Raises StorageError."""
        accounts = self._unstored(row.session)
        await self._ledger.put_permit(row, accounts)
        await self._note_stored(accounts)

    async def _note_stored(self, rows: list[AccountRow]) -> None:
        """These rows are in the database; those whose accounts were closed meanwhile go again."""
        written = {row.session for row in rows}
        gone = {key for key in written if self._accounts.get(key) is None}
        self._stored |= written - gone
        if gone:
            await self._ledger.drop_accounts(gone)

    def settle(self, session_id: str, permit: str, consumed: Amount, *, is_reserved: bool) -> list[NearlyUsed]:
        """What an attempt consumed in truth takes the place of what was reserved for it."""
        self._roll()
        if self._accounts.get(session_id) is None:
            return []
        if is_reserved:
            return self._accounts.settle(session_id, permit, consumed)
        return self._accounts.spend(session_id, consumed)

    def warnings(self, session: Session, due: Iterable[NearlyUsed]) -> tuple[BudgetWarning, ...]:
        """As the session tells them, with those of the clocks above it."""
        told = [
            BudgetWarning(
                budget=each.dimension, spent=each.spent, limit=each.limit, scope=scope_of(session.id, each.account)
            )
            for each in due
        ]
        for key, clock in self.clocks.above(session):
            if clock.take_warning():
                spent, limit = clock.used_ns // NS, clock.limit_ns // NS
                told.append(
                    BudgetWarning(budget="seconds", spent=spent, limit=limit, scope=scope_of(session.id, key))
                )
        return tuple(told)

    def path(self, session_id: str) -> list[str]:
        """The sessions that what this one spends counts in."""
        account = self._accounts.get(session_id)
        return [each.key for each in account.path() if each.key != DAY] if account is not None else []

    def lines(self, session: Session) -> tuple[BudgetLine, ...]:
        """Every limit that the session is held to, its own first, and those of a workflow's blocks after that."""
        account = self._accounts.get(session.id)
        if account is None:
            return session.info.budgets
        self._roll()
        lines = []
        own, *above = account.path()
        blocks = [block for key in self._blocks.get(session.id, ()) if (block := self._accounts.get(key)) is not None]
        for each in (own, *blocks, *above):
            owner, scope = "" if each.key == DAY else each.key, scope_of(session.id, each.key)
            if (clock := self.clocks.get(each.key)) is not None:
                spent, limit = clock.used_ns // NS, clock.limit_ns // NS
                lines.append(BudgetLine(budget="seconds", scope=scope, session=owner, spent=spent, limit=limit))
            for dimension, amount in (("tokens", each.limits.tokens), ("usd_micros", each.limits.usd_micros)):
                if amount is not None:
                    lines.append(
                        BudgetLine(
                            budget="tokens" if dimension == "tokens" else "usd_micros",
                            scope=scope,
                            session=owner,
                            spent=getattr(each.spent, dimension),
                            reserved=getattr(each.reserved, dimension),
                            limit=amount,
                        )
                    )
        return tuple(lines)

    def close(self) -> None:
        """Root goes."""
        self.clocks.close()

    def validate(self) -> None:
        """Asserts what must hold at all times; for tests."""
        self._accounts.validate()

    @property
    def accounts(self) -> Accounts:
        return self._accounts

    # ------------------------------------------------------------ days

    def _today(self) -> str:
        return time.strftime("%Y-%m-%d", time.localtime(self._now_ns() // NS))

    def _day_limits(self) -> Limits:
        settings = self._c.settings
        return Limits(tokens=tokens(settings.budgets.day.tokens), usd_micros=micros(settings.budgets.day.usd))

    def _roll(self) -> None:
        """The day's account is of today, and has the limits that the configuration says now."""
        today, account = self._today(), self._accounts.get(DAY)
        assert account is not None
        if today != self._day:
            self._spent_on[self._day] = account.spent
            # A clock that is set back to a day that this root has not seen brings no new budget with it.
            unseen = NOTHING if today > self._day else account.spent
            self._day = today
            self._accounts.begin_anew(DAY, spent=self._spent_on.get(today, unseen))
            for day in sorted(self._spent_on)[:-KEPT_DAYS]:
                del self._spent_on[day]
        if account.limits != (limits := self._day_limits()):
            self._accounts.set_limits(DAY, limits)

    def _midnight_ns(self) -> int:
        day = time.localtime(self._now_ns() // NS)
        return int(time.mktime((day.tm_year, day.tm_mon, day.tm_mday, 0, 0, 0, 0, 0, -1))) * NS

    # ------------------------------------------------------------ the past

    async def restore(self) -> list[PermitRow]:
        """The accounts as an earlier root had them; gives the permits that are open. Raises StorageError.

        The sessions that live are in the table by now.
        """
        # With a clock that was set back there are days to come that have been paid for; for today they count too.
        days = await self._ledger.cost("day", since_ns=self._midnight_ns())
        self._spent_on = {row.key: _consumed(row.usage) for row in days}
        day = self._accounts.get(DAY)
        assert day is not None
        day.spent = sum(self._spent_on.values(), start=NOTHING)
        self._accounts.set_limits(DAY, day.limits)
        rows = await self._ledger.accounts()
        live = {session.id for session in self._c.table.live}
        for key in (*live, *(key for key in rows if is_block(key) and owner_of(key) in live)):
            self._reopen(key, rows)
        permits = await self._ledger.open_permits()
        for row in permits:
            self._reopen(row.session, rows)
            amount = Amount(tokens=row.input_tokens + row.max_output_tokens, usd_micros=row.usd_micros or 0)
            self._accounts.restore(row.session, row.permit, amount)
        gone = rows.keys() - {key for key in rows if self._accounts.get(key) is not None}
        for key in [key for key in rows if owner_of(key) not in live]:
            gone.update(self._accounts.close(key))
        self._stored -= gone
        if gone:
            await self._ledger.drop_accounts(gone)
        return permits

    def _reopen(self, key: str, rows: dict[str, AccountRow]) -> None:
        """A session's account and those above it, as they were written, or as the session is made."""
        if self._accounts.get(key) is not None:
            return
        row, session = rows.get(key), self._c.table.get(key)
        above = row.above if row is not None else session.info.parent if session is not None else ""
        if above and (above in rows or self._c.table.get(above) is not None):
            self._reopen(above, rows)
        parent = above if self._accounts.get(above) is not None else DAY
        if session is None:
            self._open(Book(key, parent, Limits(), NOTHING), rows, lends=is_block(key))
        else:
            self._open_all(session, parent if row is not None else self._open_above(session, rows), rows)

    def _unstored(self, session_id: str) -> list[AccountRow]:
        account = self._accounts.get(session_id)
        assert account is not None
        return [_account_row(each) for each in account.path() if each.key != DAY and each.key not in self._stored]


def _within(value: int, most: int, *, least: int = 0) -> int:
    """What a worker says, within what can be."""
    return min(max(least, value), most)


def _limits_in(row: AccountRow) -> Limits:
    return Limits(tokens=row.tokens, usd_micros=row.usd_micros)


def _spent_in(row: AccountRow) -> Amount:
    return Amount(tokens=row.spent_tokens, usd_micros=row.spent_usd_micros)


def _consumed(usage: Usage) -> Amount:
    return Amount(tokens=usage.total_tokens, usd_micros=usage.usd_micros or 0)


def _account_row(account: Account) -> AccountRow:
    above = account.above.key if account.above is not None and account.above.key != DAY else ""
    return AccountRow(
        session=account.key,
        above=above,
        tokens=account.limits.tokens,
        usd_micros=account.limits.usd_micros,
        spent_tokens=account.spent.tokens,
        spent_usd_micros=account.spent.usd_micros,
    )
