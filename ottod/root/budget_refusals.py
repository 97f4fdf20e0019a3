"""Why a budget leaves no room for a call, in words and as what the worker is told. Pure."""

from __future__ import annotations

from typing import Literal

from ottod.core.budget import Account, Refused
from ottod.errors import RefusedError
from ottod.protocol.worker_requests import BudgetRefusal, Permit
from ottod.root.block_budgets import is_block, owner_of, undo_account
from ottod.root.books import WHOSE, Scope
from ottod.root.session_table import Session

DAY = "day"
"""The account above all others."""

Unit = Literal["seconds", "tokens", "usd_micros"]


class OverBudget(RefusedError):
    """A call that does not fit into a budget."""

    code = "budget"

    def __init__(self, message: str, refusal: BudgetRefusal, *, mend: str) -> None:
        super().__init__(message, mend=mend)
        self.refusal = refusal


def scope_of(session: str, account: str) -> Scope:
    """Whose account it is, as that session sees it."""
    return "day" if account == DAY else "session" if owner_of(account) == session else "tree"


def shown(unit: Unit, value: int) -> str:
    """`$0.0254`, `1,200 tokens`."""
    if unit == "usd_micros":
        return f"${value / 1_000_000:,.4f}"
    return f"{value:,} {unit}"


def refusal(session: Session, permit: Permit, refused: Refused, account: Account) -> RefusedError:
    """Of a reservation that `account` has no room for, or that nobody can put a price to."""
    scope = scope_of(session.id, refused.account)
    if refused.why == "price_unknown":
        target = session.plan.models[permit.target] if session.plan is not None else None
        name = f"{target.provider}:{target.model}" if target is not None else "the model"
        provider = target.provider if target is not None else "X"
        return RefusedError(
            f"no price is known for {name}, and {WHOSE[scope].format(refused.account)} is in dollars",
            code="price_unknown",
            mend=f"set providers.{provider}.prices in otto.yml, or leave usd out of the budget",
        )
    dimension = refused.dimension
    return over(
        refused.account,
        scope,
        dimension,
        spent=getattr(account.spent, dimension),
        reserved=getattr(account.reserved, dimension),
        limit=account.limits.of(dimension) or 0,
        held_back=account.held_back(dimension),
    )


def over(
    account: str, scope: Scope, unit: Unit, *, spent: int, limit: int, reserved: int = 0, held_back: int = 0
) -> OverBudget:
    """Of an account of which so much is left that no other call fits. Amounts are in `unit`."""
    named = "usd" if unit == "usd_micros" else unit
    said = [f"{shown(unit, spent)} of {shown(unit, limit)} spent"]
    said += [f"{shown(unit, reserved)} reserved"] if reserved else []
    said += [f"{shown(unit, held_back)} kept for the last call"] if held_back else []
    mend = f"raise budgets.{named} of its agent"
    if is_block(account):
        whose = "the workflow" if account == undo_account(owner_of(account)) else "that block"
        mend = f"raise budgets.{named} of {whose}"
    if scope == "day":
        mend = f"raise budgets.day.{named} in otto.yml, or wait for tomorrow"
    told = BudgetRefusal(
        budget=unit,
        scope=scope,
        session="" if scope == "day" else account,
        spent=spent,
        reserved=reserved,
        limit=limit,
    )
    message = f"{WHOSE[scope].format(account)} has no room for another call: {', '.join(said)}"
    return OverBudget(message, told, mend=mend)
