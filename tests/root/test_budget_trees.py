"""Root's real permits over a real database: a hundred random trees that spend, die and come back, never over."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from ottod.core.budget import NOTHING
from ottod.errors import OttoError
from ottod.ids import session_id
from ottod.protocol.journal import Snapshot
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import AgentSpec, Budgets, ModelTarget
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import AskPermit, BudgetRefusal, Permit, Quote, SettlePermit
from ottod.protocol.workflows import ResolvedWorkflow, Step, WorkflowSpec
from ottod.root.heritage import Heritage
from ottod.root.permits import Permits
from ottod.root.plan import SessionPlan
from ottod.root.session_table import Incarnation, Session, SessionTable
from ottod.settings.daemon import DaemonSettings
from ottod.settings.sections import BudgetSettings, DayBudget
from ottod.storage.database import Database
from ottod.telemetry.instruments import Instruments

NANOS = 3_000
"""Of a dollar, for a token of output; one of input costs a third."""
MODELS = tuple(ModelTarget(provider="p", adapter="openai", model=f"m{n}") for n in range(2))


PARTS = {
    "loop[1]/both/step": ("loop", "loop[1]/both"),
    "loop[2]/both/step": ("loop", "loop[2]/both"),
    "beside/step": ("beside",),
    "undo:beside/step": (),
}
"""Places of steps, and the blocks around each."""
PLACES = tuple(PARTS)
NOON_NS = int(datetime(2026, 1, 15, 12).timestamp()) * 10**9
"""Of a day that no test is long enough to see the end of."""


class Context:
    """What permits use of root's instruments."""

    def __init__(self, database: Database, settings: DaemonSettings) -> None:
        self.loop = asyncio.get_running_loop()
        self.database = database
        self.settings = settings
        self.table = SessionTable(lambda info: None)
        self.instruments = Instruments()
        self.logged: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def log(self, message: str, **ids: object) -> None:
        self.logged.append(message)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Call(msgspec.Struct, kw_only=True):
    """A call that was permitted. `used` is what it consumed, once that is in the journal."""

    session: str
    permit: Permit
    bound: int
    used: Usage | None = None
    is_told: bool = False
    is_begun: bool = False


class Tree:
    """One tree, its workers and its roots, one after another."""

    def __init__(self, database: Database, random: Random) -> None:
        self.database, self.random = database, random
        day = DayBudget(tokens=random.choice([None, 150_000]), usd=random.choice([None, 0.5]))
        self.settings = DaemonSettings(budgets=BudgetSettings(day=day))
        self.sessions: dict[str, Session] = {}
        self.ended: set[str] = set()
        self.origins: dict[str, str] = {}
        """Workflows that go on with ended ones."""
        self.outlived: set[str] = set()
        """Sessions that ended before all below them had: what those spent then is in no book that goes on."""
        self.calls: list[Call] = []
        self.refusals: list[tuple[str, BudgetRefusal]] = []
        """Whose call did not fit, and into what. What somebody says about it may come late, or twice."""
        self.grown: dict[tuple[str, str], int] = {}
        """By account and unit: how much there is beyond what the definition allows."""
        self.numbers = itertools.count(1)
        self.clock = itertools.count(NOON_NS)
        self.checks = self.granted = self.refused = self.crashes = self.resumed = self.extended = 0
        self.context: Context
        self.permits: Permits

    async def boot(self) -> None:
        """A root. What the one before had on its mind is gone."""
        self.context = Context(self.database, self.settings)
        for key, session in self.sessions.items():
            if key not in self.ended:
                self.context.table.add(session)
        self.permits = Permits(self.context, now_ns=self.clock.__next__)  # type: ignore[arg-type]
        self.permits.admission = Checked(self)
        await self.permits.restore()
        self.check()

    def check(self) -> None:
        self.checks += 1
        self.permits.budgets.validate()
        accounts = self.permits.budgets.accounts
        blocks = {account for key in self.sessions for account, _ in self.blocks(key)}
        for key in ("day", *self.sessions, *blocks):
            if (account := accounts.get(key)) is not None:
                assert account.overshoot == NOTHING and account.lowered_by == NOTHING
                if key != "day":
                    assert account.limits.tokens == self.limit(key, "tokens"), key
                    assert account.limits.usd_micros == self.limit(key, "usd_micros"), key

    def defined(self, account: str, unit: str) -> int | None:
        """What the definition of a session or a block allows."""
        owner, _, place = account.partition("/")
        if place and place != "undo:":
            steps = [key for key in self.sessions if self.sessions[key].info.parent == owner]
            blocks = dict(block for key in steps for block in self.blocks(key))
            return blocks[account] if unit == "tokens" else None
        budgets = self.plan(owner).spec.budgets
        if unit == "tokens":
            return budgets.tokens
        return None if budgets.usd is None else round(budgets.usd * 1e6)

    def limit(self, account: str, unit: str) -> int | None:
        """What an account may spend by now."""
        limit = self.defined(account, unit)
        return None if limit is None else limit + self.grown.get((account, unit), 0)

    def most(self, account: str, unit: str) -> int | None:
        """What all sessions that carry it out may spend there, one after the other."""
        limit, first = self.defined(account, unit), self.first_account(account)
        grown = [more for (key, its), more in self.grown.items() if its == unit and self.first_account(key) == first]
        return None if limit is None else limit + max(grown, default=0)

    # ------------------------------------------------------------ what happens

    def start(self, parent: str = "", *, is_flow: bool | None = None) -> str:
        live = [key for key in self.sessions if key not in self.ended]
        parent = parent or (self.random.choice(live) if live else "")
        budgets = Budgets(
            tokens=self.random.choice([None, None, None, 0, *(self.random.randrange(1, 90_000) for _ in range(4))]),
            usd=self.random.choice([None, None, self.random.randrange(1, 250) / 1000]),
        )
        plan = SessionPlan(spec=AgentSpec(name="a", budgets=budgets), models=MODELS, cwd="/")
        if is_flow is not None:
            plan = replace(plan, spec=AgentSpec(name="a", budgets=Budgets(tokens=self.random.choice([None, 90_000]))))
        if is_flow or (is_flow is None and self.random.random() < 0.4):
            plan = replace(plan, workflow=ResolvedWorkflow(spec=self.flow()))
        if parent and self.plan(parent).workflow is not None:
            place = self.random.choice(PLACES)
            plan = replace(plan, is_step=True, spawn_key=f"{place}#{next(self.numbers)}")
        key = session_id(self.random.getrandbits(50))
        session = Session(SessionInfo(session=key, agent="a", model="p:m0", state="running", parent=parent), plan)
        self.add(session)
        return key

    def go_on(self) -> str:
        """An ended workflow with nothing left below it goes on as another session, with its books."""
        gone_on = set(self.origins.values())
        old = sorted(key for key in self.ended - self.outlived - gone_on if self.sessions[key].is_workflow)
        if not old or len(self.sessions) > 16:
            return ""
        origin = self.random.choice(old)
        plan, key = self.plan(origin), session_id(self.random.getrandbits(50))
        lines = self.sessions[origin].info.budgets
        books = Heritage(origin=origin, plan=plan, snapshot=Snapshot(), budgets=lines).books(key)
        info = SessionInfo(session=key, agent="a", model="p:m0", state="running", budgets=books)
        self.add(Session(info, replace(plan, is_step=False, spawn_key="")))
        self.origins[key] = origin
        for (account, unit), more in list(self.grown.items()):
            owner, _, place = account.partition("/")
            if owner == origin and place != "undo:":
                self.grown[key + account.removeprefix(origin), unit] = more
        self.resumed += 1
        return key

    def add(self, session: Session) -> None:
        session.incarnation = Incarnation(number=1, secret=b"", generation=0)
        self.sessions[session.id] = session
        self.context.table.add(session)
        self.permits.budgets.opened(session)

    def first(self, key: str) -> str:
        """The session that one goes on with, or the one before that, and so on."""
        while key in self.origins:
            key = self.origins[key]
        return key

    def first_account(self, account: str) -> str:
        """The account whose books one goes on with. What undoes begins anew: whoever undid does not go on."""
        owner, _, place = account.partition("/")
        return account if place == "undo:" else "/".join(filter(None, (self.first(owner), place)))

    def plan(self, key: str) -> SessionPlan:
        plan = self.sessions[key].plan
        assert plan is not None
        return plan

    def flow(self) -> WorkflowSpec:
        """A loop with a block in it, each with a budget or none; and a block beside them."""

        def budgets() -> Budgets:
            return Budgets(tokens=self.random.choice([None, 0, self.random.randrange(1, 60_000)]))

        step = Step(id="step", agent="a")
        both = Step(id="both", mode="parallel", steps=(step,), budgets=budgets())
        loop = Step(id="loop", mode="loop", steps=(both,), budgets=budgets())
        beside = Step(id="beside", mode="sequential", steps=(step,), budgets=budgets())
        return WorkflowSpec(name="flow", steps=(loop, beside))

    def blocks(self, key: str) -> list[tuple[str, int | None]]:
        """The accounts of blocks that a session's calls count in, each with its limit."""
        parent, place = self.sessions[key].info.parent, self.plan(key).step
        if undoing := self.undoing(key):
            limit = self.plan(parent).spec.budgets.tokens
            return [(undoing, limit)] if limit is not None else []
        if not place or place.startswith("undo:"):
            return []
        workflow = self.plan(parent).workflow
        assert workflow is not None
        loop, beside = workflow.spec.steps
        named = {"loop": loop, "both": loop.steps[0], "beside": beside}
        found = []
        for part in PARTS[place]:
            limit = named[part.rpartition("/")[2]].budgets.tokens
            found.append((f"{parent}/{part}", limit))
        return [(account, limit) for account, limit in found if limit is not None]

    async def call(self, key: str) -> None:
        """Asks for a permit, and makes the call if there is one."""
        session = self.sessions[key]
        worker = session.incarnation
        assert worker is not None
        bound = self.random.randrange(10, 5000)
        ask = AskPermit(
            permit=f"{worker.number}-{next(self.numbers)}",
            turn=1,
            step=1,
            target=self.random.randrange(2),
            input_bound_tokens=bound,
            max_output_tokens=self.random.randrange(1, 8000),
            min_output_tokens=self.random.choice([1, 200]),
            quotes=(Quote(input_usd_micros=bound, output_token_usd_nanos=NANOS),) * 2,
            is_last=self.random.random() < 0.2,
        )
        try:
            reply = await self.permits.ask(session, worker, ask)
        except OttoError:
            self.refused += 1
            return
        if reply.refusal is not None and reply.refusal.scope != "day" and reply.refusal.limit:
            self.refusals.append((key, reply.refusal))
        if reply.permit is None or worker.is_over or self.permits.open_names(key).count(ask.permit) == 0:
            self.refused += 1
            return
        self.granted += 1
        self.calls.append(Call(session=key, permit=reply.permit, bound=bound, is_begun=self.random.random() < 0.9))

    async def answer(self, call: Call) -> None:
        """The provider answers: at most what was allowed. The worker notes it, and usually lives to tell."""
        output = self.random.randrange(call.permit.max_output_tokens + 1)
        read = self.random.randrange(call.bound + 1)
        call.used = Usage(
            input_tokens=read, output_tokens=output, usd_micros=-(-(read * 1000 + output * NANOS) // 1000), calls=1
        )
        if self.random.random() < 0.8:
            await self.tell(call)

    async def tell(self, call: Call) -> None:
        told = SettlePermit(
            permit=call.permit.permit, outcome="completed", target=call.permit.target, usage=call.used
        )
        if call.used is None:
            told = replace(told, outcome=self.random.choice(["refused", "unknown"]))
            if not call.is_begun:
                told = replace(told, outcome="unused")
        call.is_told = True
        for _ in range(self.random.choice([1, 1, 2])):
            await self.permits.settle(self.sessions[call.session], told)

    async def extend(self) -> None:
        """Some say that a budget may grow, several of them at once; perhaps it has grown since it was refused."""
        asking = [(key, refused) for key, refused in self.refusals[-20:] if key not in self.ended]
        if not asking:
            return
        key, refused = self.random.choice(asking)
        account, unit = refused.session, refused.budget
        is_due = refused.limit == self.limit(account, unit)
        people = [
            self.permits.budgets.extend(self.sessions[key], refused) for _ in range(self.random.randrange(1, 4))
        ]
        said = await asyncio.gather(*people)
        assert len(set(said)) == 1 and (said[0] or account.partition("/")[0] in self.ended)
        if said[0] and is_due:
            more = self.defined(account, unit)
            assert more is not None
            self.grown[account, unit] = self.grown.get((account, unit), 0) + more
            self.extended += 1

    async def kill_worker(self, key: str) -> None:
        """kill -9; the next incarnation tells from the journal what the dead one had left open."""
        self.crashes += 1
        session = self.sessions[key]
        assert session.incarnation is not None
        session.incarnation.is_over = True
        self.permits.worker_gone(session)
        self.check()
        session.incarnation = Incarnation(number=session.incarnation.number + 1, secret=b"", generation=0)
        if self.random.random() < 0.7:
            left = self.permits.open_names(key)
            known = {call.permit.permit: call for call in self.calls if call.session == key}
            for name in left:
                if name in known:
                    await self.tell(known[name])
                else:
                    await self.permits.settle(session, SettlePermit(permit=name, outcome="unused"))

    def end(self, key: str) -> None:
        """The session's end. Parents end before or after their children."""
        session = self.sessions[key]
        assert session.incarnation is not None
        session.incarnation.is_over = True
        self.permits.worker_gone(session)
        self.ended.add(key)
        if any(key in self.path(other) for other in self.sessions if other not in self.ended):
            self.outlived.add(key)
        self.context.table.update(session, replace(session.info, state="ended"))
        self.permits.ended(session)

    async def step(self) -> None:
        live = [key for key in self.sessions if key not in self.ended]
        open_calls = [c for c in self.calls if not c.is_told and c.session not in self.ended]
        chance = self.random.random()
        if not live or (chance < 0.15 and len(self.sessions) < 12):
            self.start()
        elif chance < 0.55:
            # Side by side: each sees what the others have reserved.
            await asyncio.gather(*(self.call(key) for key in self.random.choices(live, k=3)))
        elif chance < 0.60:
            await self.extend()
        elif chance < 0.80 and open_calls:
            some = self.random.sample(open_calls, min(2, len(open_calls)))
            await asyncio.gather(*(self.answer(c) if c.used is None else self.tell(c) for c in some))
        elif chance < 0.88:
            dying = asyncio.gather(*(self.call(key) for key in live[:2]), self.kill_worker(self.random.choice(live)))
            await dying
        elif chance < 0.94:
            self.crashes += 1
            await self.drain()
            await self.boot()
        elif len(live) > 1:
            self.end(self.random.choice(live))
            self.go_on()
        self.check()

    async def drain(self) -> None:
        while self.context.tasks:
            await asyncio.wait(self.context.tasks)

    async def finish(self) -> None:
        """Everything ends; what the books say is what was consumed, and nowhere more than was allowed."""
        for key in list(self.sessions):
            if key not in self.ended:
                self.end(key)
                self.check()
        await self.drain()
        spent: dict[str, list[int]] = {}
        for key in self.sessions:
            entries = await self.permits.ledger.entries(key)
            assert len({entry.permit for entry in entries}) == len(entries)
            truth = {c.permit.permit: c.used for c in self.calls if c.session == key and c.used is not None}
            for entry in entries:
                used = truth.pop(entry.permit, None)
                assert used is None or entry.is_presumed or entry.usage == used
                assert used is None or entry.usage.total_tokens >= used.total_tokens
                for each in (*self.path(key), *(account for k in self.path(key) for account, _ in self.blocks(k))):
                    sums = spent.setdefault(self.first_account(each), [0, 0])
                    sums[0] += entry.usage.total_tokens
                    sums[1] += entry.usage.usd_micros or 0
            assert not truth, "what was consumed is not in the books"
        for account in {account for key in self.sessions for account, _ in self.blocks(key)}:
            most = self.most(account, "tokens")
            assert most is None or spent.get(self.first_account(account), (0, 0))[0] <= most
        for key in self.sessions:
            for figure, unit in zip(spent.get(key, (0, 0)), ("tokens", "usd_micros"), strict=True):
                most = self.most(key, unit)
                assert most is None or figure <= most
        assert self.permits.open_count == self.permits.waiting_count == 0
        assert await self.permits.ledger.accounts() == {} and await self.permits.ledger.open_permits() == []

    def undoing(self, key: str) -> str:
        """The account beside a workflow's that a session counts in which undoes a step of it; else empty."""
        parent = self.sessions[key].info.parent
        has_own = bool(parent) and self.plan(parent).spec.budgets != Budgets()
        return f"{parent}/undo:" if has_own and self.plan(key).step.startswith("undo:") else ""

    def path(self, key: str) -> list[str]:
        """The sessions in whose accounts one counts. What undoes does not count in its workflow's."""
        found = []
        while key:
            found.append(key)
            key = self.sessions[self.sessions[key].info.parent if self.undoing(key) else key].info.parent
        return found


class Checked:
    """An admission that lets the loop turn, and looks at the accounts whenever it is asked or told."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.admitted: set[tuple[str, str]] = set()

    async def admit(self, session: Session, ask: AskPermit) -> Permit:
        for _ in range(self.tree.random.randrange(3)):
            await asyncio.sleep(0)
        self.tree.check()
        self.admitted.add((session.id, ask.permit))
        return Permit(permit=ask.permit, target=ask.target, max_output_tokens=ask.max_output_tokens)

    def found(self, session: Session, permit: Permit) -> None:
        self.admitted.add((session.id, permit.permit))

    def settled(self, session: Session, permit: Permit, settlement: SettlePermit) -> None:
        self.admitted.remove((session.id, permit.permit))
        self.tree.check()


async def grow(tree: Tree, steps: int) -> None:
    await tree.boot()
    for _ in range(steps):
        await tree.step()
    await tree.finish()


@pytest.mark.parametrize("batch", range(10))
def test_a_hundred_random_trees_are_never_over(batch: int, tmp_path: Path) -> None:
    """At no node, at no moment; with the overshoot exactly 0, and the books complete. Ten trees a batch."""
    granted = refused = crashes = checks = resumed = extended = 0
    for number in range(10):
        database = Database.open(tmp_path / f"{number}.db")
        tree = Tree(database, Random(f"{batch}/{number}"))
        try:
            asyncio.run(grow(tree, 60))
        except BaseException:
            print(f"seed {batch}/{number}")
            raise
        finally:
            database.close()
        granted, refused = granted + tree.granted, refused + tree.refused
        crashes, checks = crashes + tree.crashes, checks + tree.checks
        resumed, extended = resumed + tree.resumed, extended + tree.extended
    print(f"{granted} calls granted, {refused} refused, {crashes} crashes, {resumed} resumed, {extended} extended")
    assert granted > 50 and refused > 50 and crashes > 20 and resumed and extended and checks


async def go_on_again_and_again(tree: Tree) -> None:
    """A workflow whose steps spend all that they can get, and that goes on with what its blocks have left."""
    await tree.boot()
    flow = tree.start(is_flow=True)
    for _ in range(3):
        steps = [tree.start(flow, is_flow=False) for _ in range(4)]
        for _ in range(12):
            await asyncio.gather(*(tree.call(step) for step in steps))
            for call in [each for each in tree.calls if each.used is None and each.session not in tree.ended]:
                await tree.answer(call)
            tree.check()
        if tree.random.random() < 0.5:
            await tree.drain()
            await tree.boot()
        for step in (*steps, flow):
            tree.end(step)
            tree.check()
        flow = tree.go_on()
    await tree.finish()


def test_a_workflow_that_goes_on_is_never_over_either(tmp_path: Path) -> None:
    """What its blocks may spend, all sessions that carry it out spend together, whatever root dies in between."""
    refused = 0
    for number in range(6):
        database = Database.open(tmp_path / f"{number}.db")
        tree = Tree(database, Random(number))
        try:
            asyncio.run(go_on_again_and_again(tree))
        except BaseException:
            print(f"seed {number}")
            raise
        finally:
            database.close()
        assert tree.resumed == 3
        refused += tree.refused
    assert refused > 50
