"""What a workflow can consume at most: against a run of the real machine that fails as often as it may."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.budget import Accounts, Call, Limits
from ottod.core.workflow import WorkflowMachine
from ottod.core.workflow_orders import Compensate, StartStep
from ottod.protocol import journal as j
from ottod.protocol.specs import AgentSpec, Backoff, Budgets, ModelTarget
from ottod.protocol.workflows import Compensation, Condition, ResolvedWorkflow, Retry, Step, WorkflowSpec
from ottod.settings.narrowing import least
from ottod.settings.workflow_plan import Most, WorkflowPlan, plan_of

FREE = ModelTarget(provider="scripted", adapter="scripted", model="/s.yml")
NO_DELAY = Backoff(base_s=0, jitter=0)


def agent(name: str, tokens: int | None = 100, **fields: Any) -> AgentSpec:
    return AgentSpec(name=name, budgets=Budgets(tokens=tokens, usd=fields.pop("usd", None)), **fields)


def plan(spec: WorkflowSpec, *agents: AgentSpec, targets: dict[str, ModelTarget] | None = None) -> WorkflowPlan:
    known = targets or {}
    return plan_of(
        ResolvedWorkflow(spec=spec, agents=agents), {}, lambda a, model: (known.get(model or a.model, FREE),)
    )


def flow(*steps: Step, **fields: Any) -> WorkflowSpec:
    return WorkflowSpec(name="w", steps=steps, **{"summarizer": "", **fields})


def priced(dollars: float) -> ModelTarget:
    return ModelTarget(
        provider="p", adapter="openai", model="m", price_input_usd=dollars / 2, price_output_usd=dollars
    )


@pytest.mark.parametrize(
    ("step", "most"),
    [
        ({}, Most(tokens=100, usd=1e-4)),
        ({"budgets": Budgets(tokens=40)}, Most(tokens=40, usd=4e-5)),
        ({"budgets": Budgets(usd=0.0)}, Most(tokens=100, usd=0.0)),
        ({"retry": Retry(attempts=3)}, Most(tokens=300, usd=3e-4)),
        ({"retry": Retry(attempts=3, fallback_agent="other")}, Most(tokens=207, usd=None)),
        ({"compensate": Compensation(agent="other", task="undo", attempts=2)}, Most(tokens=114, usd=None)),
        ({"model": "free"}, Most(tokens=100, usd=0.0)),
        ({"agent": "lead"}, Most(tokens=100, usd=None)),
        ({"agent": "boundless"}, Most(tokens=None, usd=0.5)),
    ],
)
def test_the_bound_of_a_step(step: dict[str, Any], most: Most) -> None:
    """Attempts, the fallback's last one, what undoes it; money by prices where nobody else is started."""
    agents = (
        agent("a", model="known"),
        agent("other", 7, model="unknown"),
        agent("lead", model="known", tools=("spawn_agent",)),
        agent("boundless", None, model="unknown", usd=0.5),
    )
    targets = {"known": priced(1.0), "unknown": ModelTarget(provider="p", adapter="openai", model="x")}
    found = plan(flow(Step(**{"id": "s", "agent": "a", **step})), *agents, targets=targets)
    assert found.most == most


def test_loops_multiply_summaries_count_and_the_whole_bounds() -> None:
    loop = Step(
        id="loop",
        mode="loop",
        max_iterations=3,
        until=Condition(artifact="x"),
        steps=(Step(id="s", agent="a", inputs=("x", "y"), retry=Retry(attempts=2)),),
    )
    found = plan(flow(loop, summarizer="sum"), agent("a"), agent("sum", 10))
    assert found.summaries == 12 and found.most == Most(tokens=3 * 2 * 100 + 12 * 10, usd=0.0)
    assert [(node.depth, node.runs) for node in found.nodes] == [(0, 1), (1, 3)]
    assert plan(flow(loop, budgets=Budgets(tokens=50)), agent("a")).most.tokens == 50


def test_a_block_bounds_what_is_within_it_each_time_it_runs() -> None:
    """But not what undoes its steps, which counts for the workflow only."""
    undo = Compensation(agent="a", task="undo", attempts=1)
    both = Step(
        id="both",
        mode="parallel",
        steps=(Step(id="x", agent="a", compensate=undo), Step(id="y", agent="boundless")),
        budgets=Budgets(tokens=70),
    )
    agents = agent("a"), agent("boundless", None)
    assert plan(flow(both), *agents).most.tokens == 70 + 100
    loop = Step(id="loop", mode="loop", max_iterations=3, until=Condition(artifact="x"), steps=(both,))
    assert plan(flow(loop), *agents).most.tokens == 3 * (70 + 100)
    capped = Step(id="cap", mode="sequential", steps=(loop, Step(id="z", agent="a")), budgets=Budgets(tokens=90))
    assert plan(flow(capped), *agents).most.tokens == 90 + 300


def test_of_each_block_it_is_said_what_it_can_consume() -> None:
    inner = Step(id="inner", mode="parallel", steps=(Step(id="x", agent="a"),), budgets=Budgets(tokens=30))
    loop = Step(id="loop", mode="loop", max_iterations=2, until=Condition(artifact="x"), steps=(inner,))
    top = Step(id="top", mode="sequential", steps=(loop, Step(id="y", agent="boundless")), budgets=Budgets(tokens=90))
    nodes = plan(flow(top), agent("a"), agent("boundless", None)).nodes
    assert [(node.node.id, node.depth, node.most.tokens) for node in nodes] == [
        ("top", 0, 90), ("loop", 1, 60), ("inner", 2, 60), ("x", 3, 200), ("y", 1, None)
    ]  # fmt: skip


NO_LIMITS: st.SearchStrategy[int | None] = st.none()
LIMITS = st.none() | st.integers(0, 40)
HUGE = 10**9
"""What somebody spends whom nothing holds."""


@st.composite
def trees(draw: st.DrawFn, depth: int = 2, limits: st.SearchStrategy[int | None] = NO_LIMITS) -> Step:
    name = "n" + str(draw(st.integers(0, 10**9)))
    budgets = Budgets(tokens=draw(limits))
    if depth and draw(st.booleans()):
        inner = draw(
            st.lists(trees(depth=depth - 1, limits=limits), min_size=1, max_size=3, unique_by=lambda s: s.id)
        )
        mode = draw(st.sampled_from(["sequential", "parallel", "loop", "graph"]))
        extra = (
            {"max_iterations": draw(st.integers(1, 3)), "until": Condition(artifact="x")} if mode == "loop" else {}
        )
        policies = {"on_failure": "wait_all", "on_exhausted": "continue", **extra}
        return Step(id=name, mode=mode, steps=tuple(inner), budgets=budgets, **policies)  # type: ignore[arg-type]
    retry = Retry(attempts=draw(st.integers(1, 3)), backoff=NO_DELAY)
    undo = Compensation(agent="a", task="undo", attempts=2) if draw(st.booleans()) else None
    return Step(id=name, agent="a", retry=retry, compensate=undo, budgets=budgets)


@given(st.lists(trees(), min_size=1, max_size=3, unique_by=lambda s: s.id), st.randoms(use_true_random=False))
def test_no_run_begins_more_than_the_bound(steps: list[Step], random: Any) -> None:
    """Whatever fails and completes: sessions begun times the budget of each stay within it."""
    spec = flow(*steps)
    most = plan(spec, agent("a", 1)).most.tokens
    machine = WorkflowMachine(ResolvedWorkflow(spec=spec, agents=(agent("a", 1),)))
    orders, begun, now_ns = machine.step(j.WorkflowBegun(at_ns=1)), 0, 1
    while machine.end is None:
        waiting = [order for order in orders if isinstance(order, StartStep | Compensate)]
        orders = [order for order in orders if order not in waiting]
        assert waiting or orders
        for order in waiting:
            now_ns, begun = now_ns + 1, begun + 1
            kind = j.StepEnded if isinstance(order, StartStep) else j.CompensationEnded
            outcome = random.choice(["completed", "failed"])
            orders += machine.step(kind(path=order.path, attempt=order.attempt, outcome=outcome, at_ns=now_ns))
        if (
            machine.end is None
            and machine.due_ns is not None
            and not [o for o in orders if isinstance(o, StartStep | Compensate)]
        ):
            now_ns = max(now_ns, machine.due_ns)
            orders += machine.step(j.WorkflowAwoke(at_ns=now_ns))
    assert most is not None and begun <= most


def spend(accounts: Accounts, above: str, limit: int | None) -> None:
    """A session that consumes all that it can get."""
    key = str(len(accounts.under("day")))
    accounts.open(key, above=above, limits=Limits(tokens=limit))
    if limit != 0:
        accounts.reserve(key, "1", Call(input_tokens=0, max_output_tokens=HUGE), is_last=True, step_turn=1)


def spend_within(accounts: Accounts, block: Step | WorkflowSpec, path: str, agent_limit: int | None) -> None:
    """Every session that can ever begin in a block, one by one, each below the accounts that the daemon gives it."""
    for count in range((block.max_iterations or 1) if block.mode == "loop" else 1):
        for step in block.steps:
            own = f"{path}/{count}/{step.id}"
            if step.mode is not None:
                accounts.open(own, above=path, limits=Limits(tokens=step.budgets.tokens), holds_back=False)
                spend_within(accounts, step, own, agent_limit)
                continue
            limit = least(agent_limit, step.budgets.tokens)
            for _ in range(step.retry.attempts):
                spend(accounts, path, limit)
            for _ in range(step.compensate.attempts if step.compensate is not None else 0):
                spend(accounts, "undoing", agent_limit)


@given(
    st.lists(trees(limits=LIMITS), min_size=1, max_size=3, unique_by=lambda s: s.id),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 200),
)
def test_the_bound_is_what_accounts_let_through(
    steps: list[Step], agent_limit: int | None, limit: int | None
) -> None:
    """No less, and, where something bounds it, no more: against every session, spending all that it can get."""
    spec = flow(*steps, budgets=Budgets(tokens=limit))
    accounts = Accounts()
    accounts.open("day", above=None)
    for name in ("workflow", "undoing"):
        accounts.open(name, above="day", limits=Limits(tokens=limit), holds_back=False)
    spend_within(accounts, spec, "workflow", agent_limit)
    day = accounts.get("day")
    assert day is not None
    most = plan(spec, agent("a", agent_limit)).most.tokens
    assert most == day.reserved.tokens if most is not None else day.reserved.tokens >= HUGE
