"""What a workflow would do, and the most that it can consume. Pure; nothing is started and nothing is reserved.

Theory of operation. An attempt of a step can consume what its agent's budget and the step's both allow: sessions that
it starts draw from the same. A step is attempted as often as its `retry` says, the last time by the fallback agent if
there is one, and begins once for each iteration of each loop around it. What undoes a step is attempted as often as
it says, once for each time that the step completed. A summary is written at most once for each input of each attempt.

All of these together are the bound, unless the workflow's own budget is less. What undoes steps does not draw from
that, but from as much again. What is within a block is bound by the block's budget as well, once for each time that
the block begins; a loop begins once for all its iterations. Where something has no limit only the budgets around it
bound it.

Money is bounded by an agent's budget in dollars, or by its tokens at the dearest price that is configured for its
models, if it starts no other agents; scripts cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from ottod.protocol.specs import AgentSpec, Budgets, ModelTarget, PermissionRule
from ottod.protocol.workflows import MAX_ITERATIONS, Compensation, ResolvedWorkflow, Step
from ottod.settings.narrowing import least, narrower
from ottod.settings.routing import Routing
from ottod.settings.workflow_tree import Node, befores, graph_needs, is_block

N = TypeVar("N", int, float)
SPAWN_TOOL = "spawn_agent"
"""Whoever has it can start sessions of other agents."""

ModelsOf = Callable[[AgentSpec, str], tuple[ModelTarget, ...]]
"""The models of an agent, the first one replaced by one that a step names. Raises ConfigError."""


class Most(msgspec.Struct, frozen=True, kw_only=True):
    """The most that something can consume. None: nothing bounds it."""

    tokens: int | None = None
    usd: float | None = None

    def plus(self, other: Most) -> Most:
        return Most(tokens=_sum(self.tokens, other.tokens), usd=_sum(self.usd, other.usd))

    def within(self, limit: Most | Budgets) -> Most:
        return Most(tokens=least(self.tokens, limit.tokens), usd=least(self.usd, limit.usd))

    def times(self, count: int) -> Most:
        tokens = None if self.tokens is None else self.tokens * count
        return Most(tokens=tokens, usd=None if self.usd is None else round(self.usd * count, 6))


NOTHING = Most(tokens=0, usd=0.0)


class PlannedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A step or a block, in the order in which they can begin. `depth` counts the blocks around it.

    `runs` is how often it begins at most, `budgets` what one attempt may consume, `most` all of it together; of a
    block, all that counts for its budget. `asks` is what somebody may be asked for while it runs, besides the rules
    of the user and of the presets.
    """

    node: Step
    depth: int
    runs: int
    agent: str = ""
    routing: Routing | None = None
    model: str = ""
    budgets: Budgets = Budgets()
    work: Most = NOTHING
    undoing: Most = NOTHING
    """What undoes it counts neither for a block around it nor for the workflow."""
    preset: str = ""
    asks: tuple[str, ...] = ()
    may_ask_for_budget: bool = False

    @property
    def most(self) -> Most:
        """All of it together."""
        return self.work.plus(self.undoing)


class WorkflowPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole. `most` holds for all of it, its own budget and summaries included."""

    workflow: ResolvedWorkflow
    nodes: tuple[PlannedNode, ...]
    summaries: int
    """How many inputs may have to be summarized."""
    most: Most

    @property
    def approvals(self) -> tuple[Step, ...]:
        """The nodes that begin only with somebody's permission."""
        return tuple(each.node for each in self.nodes if each.node.approval is not None)


def plan_of(workflow: ResolvedWorkflow, routings: Mapping[str, Routing], models_of: ModelsOf) -> WorkflowPlan:
    """The plan of a workflow that was found to be right. Raises ConfigError for a model that nobody knows."""
    agents = {agent.name: agent for agent in workflow.agents}
    planner = _Planner(workflow, agents, routings, models_of)
    nodes, whole = planner.nodes(workflow.spec, 0, _iterations(workflow.spec))
    spec = workflow.spec
    reads = sum(each.runs * each.node.retry.attempts * len(each.node.inputs) for each in nodes)
    summaries = reads if spec.summarizer else 0
    undoing = NOTHING
    for each in nodes:
        undoing = undoing.plus(each.undoing)
    if summaries:
        whole = whole.plus(planner.attempt(agents[spec.summarizer]).times(summaries))
    most = whole.within(spec.budgets).plus(undoing.within(spec.budgets))
    return WorkflowPlan(workflow=workflow, nodes=nodes, summaries=summaries, most=most)


def in_order(node: Node) -> list[Step]:
    """A block's nodes in the order in which they can begin."""
    if node.mode != "graph":
        return list(node.steps)
    before = befores(graph_needs(node.steps))
    return sorted(node.steps, key=lambda step: len(before[step.id]))


class _Planner:
    """Of one workflow."""

    def __init__(
        self,
        workflow: ResolvedWorkflow,
        agents: Mapping[str, AgentSpec],
        routings: Mapping[str, Routing],
        models_of: ModelsOf,
    ) -> None:
        self._workflow = workflow
        self._agents = agents
        self._routings = routings
        self._models_of = models_of

    def nodes(self, block: Node, depth: int, runs: int) -> tuple[tuple[PlannedNode, ...], Most]:
        """What is within a block that lets its nodes begin `runs` times, and the most of it, but for what undoes it.

        A block has its budget once for each time that it begins.
        """
        found: list[PlannedNode] = []
        whole = NOTHING
        for step in in_order(block):
            if is_block(step):
                inner, most = self.nodes(step, depth + 1, runs * _iterations(step))
                work = most.within(Most(tokens=step.budgets.tokens, usd=step.budgets.usd).times(runs))
                found += (PlannedNode(node=step, depth=depth, runs=runs, budgets=step.budgets, work=work), *inner)
            else:
                found.append(self._step(step, depth, runs))
                work = found[-1].work
            whole = whole.plus(work)
        return tuple(found), whole

    def _step(self, step: Step, depth: int, runs: int) -> PlannedNode:
        agent = self._agents[step.agent or self._workflow.routed[step.id]]
        targets = self._models_of(agent, step.model)
        return PlannedNode(
            node=step,
            depth=depth,
            runs=runs,
            agent=agent.name,
            routing=self._routings.get(step.id),
            model=f"{targets[0].provider}:{targets[0].model}",
            budgets=narrower(agent.budgets, step.budgets),
            work=self._of_step(step, agent).times(runs),
            undoing=self._undone(step.compensate).times(runs),
            preset=agent.permissions.preset,
            asks=tuple(_words(rule) for rule in agent.permissions.rules if rule.effect == "ask"),
            may_ask_for_budget=agent.on_budget == "ask",
        )

    def _of_step(self, step: Step, agent: AgentSpec) -> Most:
        own, fallback = step.retry.attempts, step.retry.fallback_agent
        whole = NOTHING
        if fallback:
            own -= 1
            whole = self.attempt(self._agents[fallback], step)
        return whole.plus(self.attempt(agent, step).times(own))

    def _undone(self, compensation: Compensation | None) -> Most:
        if compensation is None:
            return NOTHING
        return self.attempt(self._agents[compensation.agent]).times(compensation.attempts)

    def attempt(self, agent: AgentSpec, step: Step | None = None) -> Most:
        """The most of one session of an agent, for a step, to undo one, or to write a summary."""
        budgets = narrower(agent.budgets, step.budgets) if step is not None else agent.budgets
        usd = budgets.usd
        price = self._price(agent, step.model if step is not None else "")
        if price == 0.0:
            usd = 0.0
        elif price is not None and budgets.tokens is not None:
            usd = least(usd, budgets.tokens * price)
        return Most(tokens=budgets.tokens, usd=usd)

    def _price(self, agent: AgentSpec, model: str) -> float | None:
        """The dearest that a token of it can cost, in dollars; None if nobody knows."""
        if SPAWN_TOOL in agent.tools:
            return None  # Whom it starts has models of its own.
        prices: list[float] = []
        for target in self._models_of(agent, model):
            known = [
                target.price_input_usd,
                target.price_output_usd,
                target.price_cache_read_usd,
                target.price_cache_write_usd,
            ]
            if target.adapter == "scripted" and all(price is None for price in known):
                prices.append(0.0)
            elif known[0] is None or known[1] is None:
                return None
            else:
                prices.append(max(price for price in known if price is not None) / 1e6)
        return max(prices)


def _iterations(node: Node) -> int:
    return (node.max_iterations or MAX_ITERATIONS) if node.mode == "loop" else 1


def _words(rule: PermissionRule) -> str:
    """`fs_* OTTO.md: what it says binds later runs`."""
    what = (rule.tool, rule.permission, rule.path, rule.command, rule.host, rule.target)
    words = " ".join(word for word in what if word and word != "*") or "everything"
    return f"{words}: {rule.reason}" if rule.reason else words


def _sum(one: N | None, other: N | None) -> N | None:
    return None if one is None or other is None else one + other
