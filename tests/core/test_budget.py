"""Accounts: nothing is ever spent or reserved beyond a limit, at any node, and nothing is lost or made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ottod.core.budget import NOTHING, Accounts, Amount, Call, Granted, Limits, NearlyUsed, Refused

TOKENS = 1000


def call(input_tokens: int = 100, output: int = 100, *, least: int = 1, **price: int) -> Call:
    return Call(input_tokens=input_tokens, max_output_tokens=output, min_output_tokens=least, **price)


def tree(day: Limits | None = None, **limits: Limits) -> Accounts:
    """A day with accounts below it, each below the one before."""
    accounts = Accounts()
    accounts.open("day", above=None, limits=day or Limits(), holds_back=False)
    above = "day"
    for key, limit in limits.items():
        accounts.open(key, above=above, limits=limit)
        above = key
    return accounts


@pytest.mark.parametrize(
    ("limits", "asked", "output"),
    [
        (Limits(), call(10**9, 10**9), 10**9),
        (Limits(tokens=1000), call(100, 100), 100),
        (Limits(tokens=1000), call(100, 8000), 800),
        (Limits(tokens=1000), call(899, 8000), 1),
        (Limits(tokens=1000), call(900, 8000), None),
        (Limits(tokens=1000), call(800, 8000, least=101), None),
        (Limits(tokens=0), call(0, 1, least=0), None),
        (Limits(usd_micros=0), call(1, 1, input_usd_micros=0), None),
        (Limits(usd_micros=1000), call(5, 50, input_usd_micros=100, output_token_usd_nanos=4_000), 50),
        (Limits(usd_micros=1000), call(5, 5000, input_usd_micros=100, output_token_usd_nanos=4_000), 200),
        (Limits(usd_micros=1000), call(5, 5000, input_usd_micros=900, output_token_usd_nanos=1), None),
        (Limits(usd_micros=1000), call(5, 5000, input_usd_micros=901), None),
        (Limits(usd_micros=1000), call(5, 50), None),
        (Limits(usd_micros=10**9), call(5, 50, input_usd_micros=0), 50),
    ],
)
def test_a_call_gets_what_there_is_room_for(limits: Limits, asked: Call, output: int | None) -> None:
    """A tenth is held back; 0 is nothing; without a price nothing is paid from a budget in dollars."""
    accounts = tree(s=limits)
    found = accounts.reserve("s", "1", asked)
    if output:
        assert isinstance(found, Granted) and found.output_tokens == output
        assert found.amount.tokens == asked.input_tokens + output
    else:
        assert isinstance(found, Refused) and found.account == "s"
        assert (found.why == "price_unknown") == (asked.input_usd_micros is None and limits.tokens is None)
    accounts.validate()


def test_the_whole_path_pays_or_nobody() -> None:
    """The narrowest account decides, and is named; the others have reserved nothing for a call that is refused."""
    accounts = tree(Limits(tokens=5000), top=Limits(tokens=1000), middle=Limits(), leaf=Limits(tokens=3000))
    refused = accounts.reserve("leaf", "1", call(950))
    assert isinstance(refused, Refused) and refused.account == "top"
    for key in ("day", "top", "middle", "leaf"):
        account = accounts.get(key)
        assert account is not None and account.reserved == NOTHING
    assert isinstance(accounts.reserve("leaf", "1", call(500, 100)), Granted)
    for key in ("day", "top", "middle", "leaf"):
        account = accounts.get(key)
        assert account is not None and account.reserved.tokens == 600


def test_what_a_child_leaves_its_sibling_may_have() -> None:
    """Surplus returns when a call is settled, and stays when its child has ended."""
    accounts = tree(top=Limits(tokens=1000))
    for child in ("a", "b"):
        accounts.open(child, above="top")
    assert isinstance(accounts.reserve("a", "1", call(700, 200)), Granted)
    assert isinstance(accounts.reserve("b", "1", call(100)), Refused)
    accounts.settle("a", "1", Amount(tokens=50))
    assert isinstance(accounts.reserve("b", "1", call(700, 100)), Granted)
    assert accounts.close("a") == ["a"]
    accounts.release("b", "1")
    top = accounts.get("top")
    assert top is not None and (top.spent.tokens, top.reserved.tokens) == (50, 0)
    accounts.validate()


def test_the_last_call_is_for_its_own_session() -> None:
    """What is held back is nobody's but the session's, and the children's last calls have to fit in without it."""
    accounts = tree(top=Limits(tokens=1000))
    accounts.open("child", above="top")
    accounts.reserve("child", "1", call(900 - 10, 10))
    for key, name in (("child", "2"), ("top", "3")):
        assert isinstance(accounts.reserve(key, name, call(50, 50)), Refused)
    assert isinstance(accounts.reserve("child", "4", call(50, 50), is_last=True), Refused)
    assert isinstance(accounts.reserve("top", "5", call(50, 50), is_last=True), Granted)
    accounts.validate()


def test_blocks_lend_to_the_last_calls_of_their_steps() -> None:
    """All that are around a step, to the step itself, as far as the tenth goes; not to whom the step has started, nor
    to whom somebody else has started there."""
    accounts = Accounts()
    accounts.open("day", above=None, holds_back=False)
    for key, above, limit in (("flow", "day", 2000), ("flow/a", "flow", 1000), ("flow/a/b", "flow/a", 1000)):
        accounts.open(key, above=above, limits=Limits(tokens=limit), lends=True)
    for step, limit in (("one", None), ("two", 100), ("three", None)):
        accounts.open(step, above="flow/a/b", limits=Limits(tokens=limit))
    accounts.open("below", above="one")
    accounts.open("guest", above="flow/a/b")
    assert isinstance(accounts.reserve("one", "1", call(800, 100)), Granted)
    for step in ("one", "two", "three", "below", "guest"):
        assert isinstance(accounts.reserve(step, "2", call(1, 1)), Refused), "a tenth is kept"
    assert isinstance(accounts.reserve("below", "3", call(1, 1), is_last=True, step_turn=1), Refused)
    assert isinstance(accounts.reserve("guest", "3", call(1, 1), is_last=True), Refused)
    found = accounts.reserve("two", "3", call(40, 8000), is_last=True, step_turn=1)
    assert isinstance(found, Granted), "within its own limit"
    accounts.settle("two", "3", Amount(tokens=30))
    found = accounts.reserve("one", "4", call(40, 8000), is_last=True, step_turn=1)
    assert isinstance(found, Granted) and found.amount.tokens == 70
    assert isinstance(accounts.reserve("three", "5", call(1, 1), is_last=True, step_turn=1), Refused), "it is used up"
    assert isinstance(accounts.reserve("three", "6", call(1, 1)), Refused)
    accounts.validate()


def test_a_step_borrows_once_for_each_turn() -> None:
    """However often it says that a call is its last; one that came to nothing does not count."""
    accounts = Accounts()
    accounts.open("day", above=None, holds_back=False)
    accounts.open("flow", above="day", limits=Limits(tokens=1000), lends=True)
    accounts.open("step", above="flow")
    assert isinstance(accounts.reserve("step", "1", call(890, 10)), Granted)
    for name in ("2", "3"):
        assert isinstance(accounts.reserve("step", name, call(9, 1), is_last=True, step_turn=1), Granted)
        assert isinstance(accounts.reserve("step", f"{name}+", call(9, 1), is_last=True, step_turn=1), Refused)
        accounts.settle("step", name, NOTHING if name == "2" else Amount(tokens=10))
    assert isinstance(accounts.reserve("step", "4", call(9, 1), is_last=True, step_turn=1), Refused)
    assert isinstance(accounts.reserve("step", "5", call(9, 1), is_last=True, step_turn=2), Granted)
    accounts.validate()


def test_a_day_holds_nothing_back() -> None:
    """It has no last call of its own."""
    accounts = tree(Limits(tokens=1000), s=Limits())
    assert isinstance(accounts.reserve("s", "1", call(900, 100, least=100)), Granted)


def test_warnings_come_once_for_each_account_and_dimension() -> None:
    """At four fifths, and again only if the limit was raised and most of that is used too."""
    accounts = tree(Limits(tokens=1000), s=Limits(tokens=500))
    accounts.reserve("s", "1", call(200))
    assert accounts.settle("s", "1", Amount(tokens=399)) == []
    accounts.reserve("s", "2", call(10, 10))
    (due,) = accounts.settle("s", "2", Amount(tokens=1))
    assert due == NearlyUsed(account="s", dimension="tokens", spent=400, limit=500)
    accounts.reserve("s", "3", call(10, 10))
    assert accounts.settle("s", "3", Amount(tokens=1)) == []
    accounts.set_limits("s", Limits(tokens=1000))
    accounts.reserve("s", "4", call(400, 10))
    assert [w.account for w in accounts.settle("s", "4", Amount(tokens=399))] == ["s", "day"]


def test_what_was_counted_beyond_the_reservation_is_known_exactly() -> None:
    """It is spent, it is the overshoot, and nothing more is granted on top of it."""
    accounts = tree(s=Limits(tokens=1000))
    accounts.reserve("s", "1", call(100, 100))
    accounts.settle("s", "1", Amount(tokens=1250))
    account = accounts.get("s")
    assert account is not None and account.overshoot == Amount(tokens=1050)
    assert account.room("tokens", is_last=True) == 0
    accounts.validate()


def test_a_new_day_and_lower_limits() -> None:
    """A day begins with nothing spent, and what is on its way; a limit below what is spent grants nothing more."""
    accounts = tree(Limits(tokens=1000), s=Limits())
    accounts.reserve("s", "1", call(500, 100))
    accounts.settle("s", "1", Amount(tokens=500))
    accounts.reserve("s", "2", call(300, 100))
    accounts.set_limits("day", Limits(tokens=100))
    accounts.validate()
    assert isinstance(accounts.reserve("s", "3", call(1, 1)), Refused)
    accounts.begin_anew("day")
    accounts.validate()
    accounts.settle("s", "2", Amount(tokens=60))
    accounts.validate()
    assert isinstance(accounts.reserve("s", "3", call(1, 39)), Granted)


def test_an_ended_account_stays_while_something_is_below_it() -> None:
    """A session that outlives its parent still pays from its parent's budget."""
    accounts = tree(top=Limits(tokens=1000), child=Limits())
    assert accounts.close("top") == []
    assert isinstance(accounts.reserve("child", "1", call(800, 100)), Granted)
    assert isinstance(accounts.reserve("child", "2", call(1, 100)), Refused)
    assert accounts.close("child") == []
    accounts.settle("child", "1", NOTHING)
    assert accounts.close("child") == ["child", "top"]
    assert accounts.get("day") is not None


@given(
    nanos=st.integers(0, 10**6),
    tokens=st.integers(0, 10**6),
    micros=st.integers(0, 10**6),
    limit=st.integers(1, 10**6),
    least=st.integers(1, 1000),
)
def test_money_is_rounded_against_the_caller(nanos: int, tokens: int, micros: int, limit: int, least: int) -> None:
    """What is granted fits, in exact arithmetic; one more token of output would not, or was not asked for."""
    asked = Call(
        input_tokens=1,
        max_output_tokens=tokens + least,
        min_output_tokens=least,
        input_usd_micros=micros,
        output_token_usd_nanos=nanos,
    )
    room = limit - limit // 10
    found = tree(s=Limits(usd_micros=limit)).reserve("s", "1", asked)
    if isinstance(found, Granted):
        assert micros * 1000 + found.output_tokens * nanos <= room * 1000
        assert found.amount.usd_micros * 1000 >= micros * 1000 + found.output_tokens * nanos
        assert (
            found.output_tokens == tokens + least or micros * 1000 + (found.output_tokens + 1) * nanos > room * 1000
        )
    else:
        assert micros * 1000 + least * nanos > room * 1000


# ------------------------------------------------------------------ against a naive oracle


class Naive:
    """Keeps everything that ever happened, and adds it up from the beginning whenever it is asked."""

    def __init__(self) -> None:
        self.above: dict[str, str] = {}
        self.limit: dict[str, int | None] = {}
        self.lenders: set[str] = set()
        self.steps: set[str] = set()
        self.events: list[tuple[str, str, int, int | None]] = []
        """Account, name, reserved, consumed (None while it is on its way)."""
        self.borrowed: dict[tuple[str, int], list[str]] = {}
        """The names of a step's last calls, by its turns, as far as this root has granted them."""

    def path(self, key: str) -> list[str]:
        found = [key]
        while key in self.above:
            key = self.above[key]
            found.append(key)
        return found

    def used(self, key: str) -> int:
        return sum(
            reserved if consumed is None else consumed
            for owner, _, reserved, consumed in self.events
            if key in self.path(owner)
        )

    def may_borrow(self, key: str, turn: int) -> bool:
        """Whether it is a step, and no last call of that turn is on its way or has consumed anything."""
        made = [consumed for _, name, _, consumed in self.events if name in self.borrowed.get((key, turn), ())]
        return key in self.steps and not any(consumed != 0 for consumed in made)

    def may_have(self, key: str, holder: str, turn: int) -> bool:
        """Whether a last call of one account may have what the other one holds back: all between them lend."""
        path = self.path(key)
        return (key == holder or self.may_borrow(key, turn)) and all(
            each in self.lenders for each in path[1 : path.index(holder) + 1]
        )

    def room(self, key: str, turn: int, *, is_last: bool) -> int | None:
        rooms = []
        for each in self.path(key):
            limit = self.limit[each]
            if limit is not None:
                held_back = 0 if each == "day" or (is_last and self.may_have(key, each, turn)) else limit // 10
                rooms.append(max(0, limit - held_back - self.used(each)))
        return min(rooms, default=None)


class AccountsMachine(RuleBasedStateMachine):
    """Trees that grow, spend, die and come back from what was written of them."""

    sessions = Bundle("sessions")
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.naive = Naive()
        self.naive.limit["day"] = 3000
        self.accounts = Accounts()
        self.accounts.open("day", above=None, limits=Limits(tokens=3000), holds_back=False)
        self.number = 0

    def _next(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    @rule(target=sessions, limit=st.none() | st.integers(0, 1500))
    def start(self, limit: int | None) -> str:
        return self._open("day", limit)

    @rule(target=sessions, parent=sessions, limit=st.none() | st.integers(0, 1500))
    def spawn(self, parent: str, limit: int | None) -> str:
        return self._open(parent, limit)

    @rule(target=sessions, parent=sessions, limit=st.none() | st.integers(0, 1500))
    def begin_step(self, parent: str, limit: int | None) -> str:
        """Of a workflow, where it is one; elsewhere it has nobody who lends."""
        key = self._open(parent, limit)
        self.naive.steps.add(key)
        return key

    @rule(target=sessions, parent=sessions, limit=st.none() | st.integers(0, 1500))
    def begin_block(self, parent: str, limit: int | None) -> str:
        """Within a workflow, or a workflow itself: the oracle does not care which."""
        return self._open(parent, limit, lends=True)

    def _open(self, above: str, limit: int | None, *, lends: bool = False) -> str:
        key = self._next("s")
        self.naive.above[key], self.naive.limit[key] = above, limit
        if lends:
            self.naive.lenders.add(key)
        self.accounts.open(key, above=above, limits=Limits(tokens=limit), lends=lends)
        return key

    @rule(
        target=calls,
        session=sessions,
        size=st.integers(0, 400),
        output=st.integers(1, 400),
        least=st.integers(1, 400),
        is_last=st.booleans(),
        turn=st.integers(1, 2),
    )
    def reserve(self, session: str, size: int, output: int, least: int, is_last: bool, turn: int) -> tuple[str, str]:
        name, least = self._next("c"), min(least, output)
        found = self.accounts.reserve(
            session,
            name,
            call(size, output, least=least),
            is_last=is_last,
            step_turn=turn if session in self.naive.steps else None,
        )
        room = self.naive.room(session, turn, is_last=is_last)
        is_none = any(self.naive.limit[each] == 0 for each in self.naive.path(session))
        if room is not None and (is_none or room < size + least):
            assert isinstance(found, Refused)
        else:
            assert isinstance(found, Granted)
            assert found.output_tokens == (output if room is None else min(output, room - size))
            if is_last and self.naive.may_borrow(session, turn):
                self.naive.borrowed.setdefault((session, turn), []).append(name)
            self.naive.events.append((session, name, size + found.output_tokens, None))
        return session, name

    @rule(made=consumes(calls), share=st.integers(0, 100))
    def settle(self, made: tuple[str, str], share: int) -> None:
        for i, (owner, name, reserved, consumed) in enumerate(self.naive.events):
            if (owner, name) == made and consumed is None:
                used = reserved * share // 100
                self.naive.events[i] = (owner, name, reserved, used)
                self.accounts.settle(owner, name, Amount(tokens=used))
                return
        self.accounts.settle(*made, Amount(tokens=share))  # It was refused: nobody knows it.

    @rule()
    def root_dies(self) -> None:
        """The next root has the accounts, what each has spent, and the open reservations; not what was lent."""
        self.accounts = Accounts()
        self.naive.borrowed.clear()
        for key in ("day", *self.naive.above):
            limits = Limits(tokens=self.naive.limit[key])
            settled = [(o, c) for o, _, _, c in self.naive.events if c is not None and key in self.naive.path(o)]
            self.accounts.open(
                key,
                above=self.naive.above.get(key),
                limits=limits,
                spent=Amount(tokens=sum(consumed for _, consumed in settled)),
                holds_back=key != "day",
                lends=key in self.naive.lenders,
            )
        for owner, name, reserved, consumed in self.naive.events:
            if consumed is None:
                self.accounts.restore(owner, name, Amount(tokens=reserved))

    @invariant()
    def never_over(self) -> None:
        self.accounts.validate()
        for key, limit in self.naive.limit.items():
            account = self.accounts.get(key)
            assert account is not None and account.overshoot == NOTHING
            used = account.spent.tokens + account.reserved.tokens
            assert used == self.naive.used(key)
            assert limit is None or used <= limit


TestAccounts = AccountsMachine.TestCase
TestAccounts.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
