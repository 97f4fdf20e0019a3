"""What accounts begin with: what definitions allow, and what of that was spent before.

A session that goes on with an ended one begins with that one's books, which stand in its info: a line for each limit
of its own and, of a workflow, for each of its blocks that had an account. Where nothing limited an account nobody
noted what was spent there; it is as much as those right below it had spent, so that the books add up.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, NamedTuple

from msgspec.structs import replace

from ottod.core.budget import HELD_BACK_PARTS, NOTHING, WARN_PERCENT, Amount, Limits
from ottod.core.budget_clock import NS, BudgetClock
from ottod.protocol.results import BudgetLine
from ottod.protocol.specs import Budgets
from ottod.root.block_budgets import SEPARATOR, blocks_in, owner_of
from ottod.root.session_table import Session

MAX_LIMIT = 10**18
"""Of any budget: more than anybody has, and the database's numbers hold it."""


Scope = Literal["session", "tree", "day"]
WHOSE: dict[Scope, str] = {"session": "the session's budget", "tree": "the budget of {}", "day": "the day's budget"}
"""How a refusal begins."""


class Book(NamedTuple):
    """An account as it is opened. `above` is the one above it among those of the same session; empty of the first."""

    key: str
    above: str
    limits: Limits
    spent: Amount


def books_before(session: Session) -> list[Book]:
    """A session's own book, and those of its blocks that it goes on with, each after the one above it."""
    above = {session.id: ""}
    budgets = {session.id: session.plan.spec.budgets if session.plan is not None else Budgets()}
    for key in sorted({line.session for line in session.info.budgets if owner_of(line.session) == session.id}):
        around = session.id
        for block, its in blocks_in(session, f"{key}{SEPARATOR}"):
            above.setdefault(block, around)
            budgets[block] = its
            around = block
    books: dict[str, Book] = {}
    # Each is made after those below it, whose keys are longer.
    for key in sorted(above, key=len, reverse=True):
        below = [book.spent for book in books.values() if book.above == key]
        limits, spent = _noted(session, key, budgets[key], sum(below, start=NOTHING))
        books[key] = Book(key, above[key], limits, spent)
    return sorted(books.values(), key=lambda book: len(book.key))


def _noted(session: Session, key: str, budgets: Budgets, below: Amount) -> tuple[Limits, Amount]:
    limits, spent = limits_from(budgets), below
    for line in session.info.budgets:
        if line.session != key or line.budget == "seconds":
            continue
        limit = limits.of(line.budget)
        if limit is not None:
            # It may have been let grow.
            limits = replace(limits, **{line.budget: max(limit, line.limit)})
            spent = replace(spent, **{line.budget: line.spent})
    return limits, spent


def is_used_up(line: BudgetLine, session: str, why: str) -> bool:
    """Whether a limit leaves nothing but what is kept for last calls, or little, and it is why the session ended."""
    is_own = line.session == session and why.startswith(f"{WHOSE['session']} ")
    if is_own or f"{WHOSE['tree'].format(line.session)} " in why:
        return line.spent * 100 >= WARN_PERCENT * line.limit
    if line.budget == "seconds":
        return BudgetClock(limit_ns=line.limit * NS, now_ns=0, used_ns=line.spent * NS).is_for_last
    return line.spent >= line.limit - line.limit // HELD_BACK_PARTS


def limits_from(budgets: Budgets) -> Limits:
    """What a definition allows, in the accounts' units."""
    return Limits(tokens=tokens(budgets.tokens), usd_micros=micros(budgets.usd))


def micros(usd: float | None) -> int | None:
    """Dollars as whole micro-dollars, rounded down."""
    return None if usd is None else int(Decimal(str(min(usd, MAX_LIMIT / 1_000_000))) * 1_000_000)


def tokens(limit: int | None) -> int | None:
    """A limit as the database can hold it."""
    return None if limit is None else min(limit, MAX_LIMIT)
