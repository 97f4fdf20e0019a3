"""The router's page: how well it does on tasks that were written before it was measured."""

from __future__ import annotations

import inspect

from ottod.settings import routing
from ottod.settings.agent_file import read_agent
from ottod.settings.agents import BUILTIN_DIR
from pages.common import NOTICE, cell
from tests.settings.routing_tasks import ROUTING_TASKS


def routing_page() -> str:
    """Every task, who was expected and who was chosen; the misses first."""
    agents = [read_agent(file) for file in sorted(BUILTIN_DIR.iterdir())]
    results = [(task, expected, routing.route(task, agents)) for task, expected in ROUTING_TASKS]
    misses = [(task, expected, found) for task, expected, found in results if found.agent != expected]
    right = len(results) - len(misses)
    second = sum(expected in [item.agent for item in found.ranked[:2] if item.score] for _, expected, found in misses)
    missed = "".join(
        f"| {cell(task)} | {expected} | {found.agent or 'nobody'} | {_why(found, expected)} |\n"
        for task, expected, found in misses
    )
    rows = "".join(
        f"| {cell(task)} | {expected} | {found.agent or 'nobody'} | {_mark(found.agent == expected)} |\n"
        for task, expected, found in results
    )
    _, _, theory = (inspect.getdoc(routing) or "").partition("\n\n")
    weights = ", ".join(f"{name} {weight:g}" for name, weight in routing.FIELD_WEIGHTS)
    return f"""{NOTICE}
# The router

Which agent gets a task that names none: in `ottoctl route`, in a start that names no agent, and in steps of workflows
with a `route`.

{theory}

Weights of the fields: {weights}.

## How well it does

{right} of {len(results)} tasks go to the shipped agent that they are for ({right / len(results):.0%}). Of the
{len(misses)} others, {second} would have been the second choice. The tasks were written first, then the agents'
descriptions and hints, then this was measured; but by the same hand, so expect less of words that neither knows.
Where it matters, name the agent.

### Misses

| task | for | got | why |
|---|---|---|---|
{missed}
### All tasks

| task | for | got | |
|---|---|---|---|
{rows}"""


def _mark(is_right: bool) -> str:
    return "yes" if is_right else "**no**"


def _why(found: routing.Routing, expected: str) -> str:
    if not found.agent:
        return found.reason
    best = found.ranked[0]
    words = ", ".join(f"`{term.word}`" for term in best.terms)
    own = next(item for item in found.ranked if item.agent == expected)
    return f"{words}: {best.score:.2f} against {own.score:.2f}"
