"""`ottoctl route`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import complete_agents
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import OK

if TYPE_CHECKING:
    from ottod.protocol.specs import AgentSpec
    from ottod.settings.routing import Routing


@command
def route(
    console: Console,
    task: Annotated[str, typer.Argument(metavar="TASK", help="What is to be done")],
    tag: Annotated[list[str] | None, typer.Option("--tag", help="It must have this tag (can be repeated)")] = None,
    tool: Annotated[list[str] | None, typer.Option("--tool", help="It must have this tool (can be repeated)")] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", help="Take this one, if it is there", autocompletion=complete_agents),
    ] = None,
    cwd: Annotated[
        Path | None, typer.Option("--cwd", metavar="DIR", help="As seen from this directory (here)")
    ] = None,
) -> int | None:
    """Say which agent a task would go to, and why

    Example: `ottoctl route "make the failing test pass" --tool fs_edit`
    """
    from ottoctl.rendering.routing import routing_text
    from ottod.settings.routing_words import unrouted

    found = routing(task, cwd=cwd, tags=tag or (), tools=tool or (), names=agent or ())
    if console.output == "text":
        console.write(routing_text(found, width=console.width, color=console.color))
    else:
        console.record(found)
    if not found.agent:
        raise unrouted(found, task, visible_specs(cwd))
    return OK


def routing(
    task: str,
    *,
    cwd: Path | None = None,
    tags: list[str] | tuple[str, ...] = (),
    tools: list[str] | tuple[str, ...] = (),
    names: list[str] | tuple[str, ...] = (),
) -> Routing:
    """Who would get a task, of the agents that can be seen from `cwd`."""
    from ottod.protocol.workflows import Route
    from ottod.settings.routing import route as choose

    return choose(task, visible_specs(cwd), want=Route(tags=tuple(tags), tools=tuple(tools)), names=names)


def visible_specs(cwd: Path | None = None) -> list[AgentSpec]:
    """The agents that can be seen from `cwd` and whose files are right."""
    from ottoctl.agents import visible_agents

    return [entry.spec for entry in visible_agents(cwd) if entry.spec is not None]
