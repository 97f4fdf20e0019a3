"""Accounts: what may be spent at every node of the tree of sessions, and what has been.

Theory of operation. Each session has an account below its parent's, the topmost below the day's. Before a call the
most that it can consume is *reserved* at once in the session's account and in every one above it, in tokens and in
money, or in none of them. After the call the reservation is *settled*: what was consumed is spent, the rest is free
again, for this session or for any other below the same accounts. So at every account, at all times::

    spent + reserved ≤ limit

An account without a limit of its own draws on those above it; one with a limit is held to it and to theirs. No share
is set aside for a child: what it does not use was never taken from anybody. A limit of 0 lets no call through, also
none that costs nothing; no limit is `None`.

A tenth of a session's limit is held back for its last call, the one in which it hands back partial work. Nobody else
can have it, not even the sessions below. What makes no calls of its own, a workflow or a block of one, *lends* its
tenth: to the last calls of the sessions that are its steps, one for each turn, and to nobody below those, nor to
whom somebody else has started there. A call that came to nothing is none.

If a call consumes more than was reserved for it, the difference is the account's *overshoot*. It is 0 as long as
reservations are bounds and not estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

Dimension = Literal["tokens", "usd_micros"]
DIMENSIONS: tuple[Dimension, ...] = ("tokens", "usd_micros")
HELD_BACK_PARTS = 10
"""One part in so many of a limit is held back for the last call."""
WARN_PERCENT = 80
NANOS_PER_MICRO = 1000


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that amounts and answers share."""


class Amount(Value, frozen=True, kw_only=True):
    """Something consumed, or to be."""

    tokens: int = 0
    usd_micros: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(tokens=self.tokens + other.tokens, usd_micros=self.usd_micros + other.usd_micros)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(tokens=self.tokens - other.tokens, usd_micros=self.usd_micros - other.usd_micros)

    def beyond(self, other: Amount) -> Amount:
        """By how much this is more than the other, in each dimension by itself."""
        more = self - other
        return Amount(tokens=max(0, more.tokens), usd_micros=max(0, more.usd_micros))


NOTHING = Amount()


class Limits(Value, frozen=True, kw_only=True):
    """None is unlimited, 0 is nothing at all."""

    tokens: int | None = None
    usd_micros: int | None = None

    def of(self, dimension: Dimension) -> int | None:
        limit: int | None = getattr(self, dimension)
        return limit


UNLIMITED = Limits()


class Call(Value, frozen=True, kw_only=True):
    """The most that a call can consume. Without `input_usd_micros` its price is not known."""

    input_tokens: int
    max_output_tokens: int
    min_output_tokens: int = 1
    input_usd_micros: int | None = None
    output_token_usd_nanos: int = 0

    def amount(self, output_tokens: int) -> Amount:
        """With so much output. Fractions of a micro-dollar count as a whole one."""
        output_micros = -(-output_tokens * self.output_token_usd_nanos // NANOS_PER_MICRO)
        return Amount(
            tokens=self.input_tokens + output_tokens, usd_micros=(self.input_usd_micros or 0) + output_micros
        )


class Granted(Value, frozen=True, kw_only=True):
    """The call may be made, with no more output than this. `amount` is reserved for it."""

    output_tokens: int
    amount: Amount


class Refused(Value, frozen=True, kw_only=True):
    """The account that has no room for the call, and in which dimension. Nothing was reserved."""

    account: str
    dimension: Dimension
    why: Literal["used", "price_unknown"] = "used"


class NearlyUsed(Value, frozen=True, kw_only=True):
    """An account has used most of a limit. Given once."""

    account: str
    dimension: Dimension
    spent: int
    limit: int


class Account:
    """One node. `spent` and `reserved` include everything below it."""

    def __init__(self, key: str, above: Account | None, limits: Limits, *, holds_back: bool, lends: bool) -> None:
        self.key = key
        self.above = above
        self.limits = limits
        self.holds_back = holds_back
        self.lends = lends
        self.spent = NOTHING
        self.reserved = NOTHING
        self.overshoot = NOTHING
        """By how much calls consumed more than was reserved for them."""
        self.lowered_by = NOTHING
        """By how much a limit was set below what was spent and reserved then."""
        self.below = 0
        """Accounts directly below it."""
        self.is_closed = False
        self.warned: set[Dimension] = set()

    def path(self) -> Iterator[Account]:
        """This account and all above it."""
        account: Account | None = self
        while account is not None:
            yield account
            account = account.above

    def held_back(self, dimension: Dimension) -> int:
        """What of its limit only last calls can have: its own, or, if it lends, those of its steps."""
        limit = self.limits.of(dimension)
        return limit // HELD_BACK_PARTS if limit and self.holds_back else 0

    def room(self, dimension: Dimension, *, is_last: bool) -> int | None:
        """What can still be reserved; None for any amount. Never below 0."""
        limit = self.limits.of(dimension)
        if limit is None:
            return None
        used: int = getattr(self.spent, dimension) + getattr(self.reserved, dimension)
        return max(0, limit - used - (0 if is_last else self.held_back(dimension)))


class Accounts:
    """All accounts of a root, and what is reserved in them."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._reserved: dict[tuple[str, str], Amount] = {}
        self._borrowing: dict[tuple[str, str], int] = {}
        """The reservations of last calls that may have what is lent, and the turns that they are of."""
        self._borrowed: set[tuple[str, int]] = set()
        """Accounts and turns that have had theirs."""

    def get(self, key: str) -> Account | None:
        return self._accounts.get(key)

    def under(self, key: str) -> list[str]:
        """The keys of an account and of all below it."""
        return [each.key for each in self._accounts.values() if any(above.key == key for above in each.path())]

    def open(
        self,
        key: str,
        *,
        above: str | None,
        limits: Limits = UNLIMITED,
        spent: Amount = NOTHING,
        holds_back: bool = True,
        lends: bool = False,
    ) -> Account:
        """An account below another one. `spent` is what it had used before, and counts above it already."""
        assert key not in self._accounts, f"account {key} is open"
        parent = self._accounts[above] if above is not None else None
        account = self._accounts[key] = Account(key, parent, limits, holds_back=holds_back, lends=lends)
        account.spent = spent
        account.lowered_by = _excess(account)
        account.warned = {dimension for dimension in DIMENSIONS if _is_nearly_used(account, dimension)}
        if parent is not None:
            parent.below += 1
        return account

    def close(self, key: str) -> list[str]:
        """Its session has ended. It goes, and with it every ended one above that has nothing below it any more.

        Gives the keys of those that went. What was spent stays spent above.
        """
        account = self._accounts.get(key)
        if account is None:
            return []
        account.is_closed = True
        gone = []
        while account is not None and account.is_closed and not account.below:
            if any(owner == account.key for owner, _ in self._reserved):
                break
            del self._accounts[account.key]
            self._borrowed = {each for each in self._borrowed if each[0] != account.key}
            gone.append(account.key)
            account = account.above
            if account is not None:
                account.below -= 1
        return gone

    # ------------------------------------------------------------ calls

    def reserve(
        self, key: str, name: str, call: Call, *, is_last: bool = False, step_turn: int | None = None
    ) -> Granted | Refused:
        """Reserves the most that a call can consume, in this account and all above it, or nothing at all.

        If there is room for some of its output only, but for as much as it needs at least, it gets that much.
        `name` is the reservation's, in this account. With `step_turn` the account is a step's, and that is its turn.
        """
        assert (key, name) not in self._reserved, f"{name} is reserved in {key}"
        own = self._accounts[key]
        output_tokens = call.max_output_tokens
        borrows = is_last and step_turn is not None and (key, step_turn) not in self._borrowed
        for account in own.path():
            # Up to the first one that has a last call of its own to make.
            is_last = is_last and (account is own or (borrows and account.lends))
            found = _output_room(account, call, output_tokens, is_last=is_last)
            if isinstance(found, Refused):
                return found
            output_tokens = found
        amount = call.amount(output_tokens)
        self._take(own, name, amount)
        if borrows and step_turn is not None:
            self._borrowing[key, name] = step_turn
            self._borrowed.add((key, step_turn))
        return Granted(output_tokens=output_tokens, amount=amount)

    def restore(self, key: str, name: str, amount: Amount) -> None:
        """A reservation that was made before a restart, whether or not there would be room for it now."""
        own = self._accounts[key]
        self._take(own, name, amount)
        for account in own.path():
            account.lowered_by = _excess(account)

    def _take(self, own: Account, name: str, amount: Amount) -> None:
        self._reserved[own.key, name] = amount
        for account in own.path():
            account.reserved = account.reserved + amount

    def settle(self, key: str, name: str, consumed: Amount) -> list[NearlyUsed]:
        """The call is over and has consumed this much; what else was reserved for it is free again.

        Gives the warnings that are due. A reservation that is not known is none.
        """
        reserved = self._reserved.pop((key, name), None)
        if reserved is None:
            return []
        turn = self._borrowing.pop((key, name), None)
        if turn is not None and consumed == NOTHING:
            self._borrowed.discard((key, turn))
        over = consumed.beyond(reserved)
        for account in self._accounts[key].path():
            account.reserved = account.reserved - reserved
            account.spent = account.spent + consumed
            account.overshoot = account.overshoot + over
        return self._warnings(self._accounts[key])

    def release(self, key: str, name: str) -> None:
        """The call was not made: nothing was consumed."""
        self.settle(key, name, NOTHING)

    def spend(self, key: str, consumed: Amount) -> list[NearlyUsed]:
        """Something was consumed for which nothing is reserved: its reservation was lost. It is all overshoot."""
        for account in self._accounts[key].path():
            account.spent = account.spent + consumed
            account.overshoot = account.overshoot + consumed
        return self._warnings(self._accounts[key])

    def _warnings(self, own: Account) -> list[NearlyUsed]:
        due = []
        for account in own.path():
            for dimension in DIMENSIONS:
                limit = account.limits.of(dimension)
                if limit and dimension not in account.warned and _is_nearly_used(account, dimension):
                    account.warned.add(dimension)
                    spent = getattr(account.spent, dimension)
                    due.append(NearlyUsed(account=account.key, dimension=dimension, spent=spent, limit=limit))
        return due

    # ------------------------------------------------------------ limits

    def set_limits(self, key: str, limits: Limits) -> None:
        """Other limits from now on. What is spent or reserved beyond them stays so, and nothing more is granted."""
        account = self._accounts[key]
        account.limits = limits
        account.lowered_by = _excess(account)
        account.warned = {dimension for dimension in account.warned if _is_nearly_used(account, dimension)}

    def begin_anew(self, key: str, *, spent: Amount = NOTHING) -> None:
        """Another day: nothing has been spent of it yet, or as much as was before. What is reserved will be."""
        account = self._accounts[key]
        account.spent, account.overshoot = spent, NOTHING
        account.lowered_by = _excess(account)
        account.warned = {dimension for dimension in DIMENSIONS if _is_nearly_used(account, dimension)}

    # ------------------------------------------------------------ tests

    def validate(self) -> None:
        """Asserts what must hold at all times."""
        reserved: dict[str, Amount] = {}
        spent_below: dict[str, Amount] = {}
        for (key, _), amount in self._reserved.items():
            for account in self._accounts[key].path():
                reserved[account.key] = reserved.get(account.key, NOTHING) + amount
        for account in self._accounts.values():
            if account.above is not None and account.above.holds_back:
                above = account.above.key
                spent_below[above] = spent_below.get(above, NOTHING) + account.spent
        for key, account in self._accounts.items():
            assert account.reserved == reserved.get(key, NOTHING), f"{key}: reservations do not add up"
            for dimension in DIMENSIONS:
                spent, held, limit = _figures(account, dimension)
                assert spent >= 0 and held >= 0, f"{key}: below nothing"
                assert spent >= getattr(spent_below.get(key, NOTHING), dimension), f"{key}: children spent more"
                allowed = getattr(account.overshoot, dimension) + getattr(account.lowered_by, dimension)
                assert limit is None or spent + held <= limit + allowed, f"{key}: {spent} + {held} > {limit}"


def _figures(account: Account, dimension: Dimension) -> tuple[int, int, int | None]:
    return getattr(account.spent, dimension), getattr(account.reserved, dimension), account.limits.of(dimension)


def _output_room(account: Account, call: Call, output_tokens: int, *, is_last: bool) -> int | Refused:
    """How much of that output there is room for in one account; Refused if it is less than the call needs."""
    tokens = account.room("tokens", is_last=is_last)
    if tokens is not None:
        output_tokens = min(output_tokens, tokens - call.input_tokens)
        if output_tokens < call.min_output_tokens or account.limits.tokens == 0:
            return Refused(account=account.key, dimension="tokens")
    micros = account.room("usd_micros", is_last=is_last)
    if micros is None:
        return output_tokens
    if account.limits.usd_micros == 0:
        return Refused(account=account.key, dimension="usd_micros")
    if call.input_usd_micros is None:
        return Refused(account=account.key, dimension="usd_micros", why="price_unknown")
    left = micros - call.input_usd_micros
    if call.output_token_usd_nanos:
        output_tokens = min(output_tokens, left * NANOS_PER_MICRO // call.output_token_usd_nanos)
    if left < 0 or output_tokens < call.min_output_tokens:
        return Refused(account=account.key, dimension="usd_micros")
    return output_tokens


def _excess(account: Account) -> Amount:
    """By how much it is over its limits now."""
    over: dict[str, int] = {}
    for dimension in DIMENSIONS:
        spent, held, limit = _figures(account, dimension)
        over[dimension] = max(0, spent + held - limit) if limit is not None else 0
    return Amount(**over)


def _is_nearly_used(account: Account, dimension: Dimension) -> bool:
    spent, _, limit = _figures(account, dimension)
    return bool(limit) and spent * 100 >= WARN_PERCENT * (limit or 0)
