"""The command line reference."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, get_args

from pages.common import NOTICE, cell


def cli_page() -> str:
    """Every command of ottoctl, and the exit statuses."""
    import typer

    main = importlib.import_module("ottoctl.application")
    exits = importlib.import_module("ottoctl.exits")
    top: Any = typer.main.get_command(main.build_app())
    shared = {parameter.opts[0] for parameter in top.params}
    commands = "\n".join(_command(command, f"ottoctl {name}", shared) for name, command in top.commands.items())
    statuses = "\n".join(f"| {status} | {meaning} |" for status, meaning in exits.MEANINGS.items())
    return f"""{NOTICE}
# ottoctl

{inspect.cleandoc(top.help)}

## Options of every command

{_options(top.params)}
## Exit statuses

| status | meaning |
|---|---|
{statuses}

{commands}"""


def _command(command: Any, name: str, shared: set[str]) -> str:
    inner = getattr(command, "commands", None)
    if inner is not None:
        below = "\n".join(_command(c, f"{name} {n}", shared) for n, c in inner.items())
        return f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n\n{below}".replace("\n\n\n", "\n\n")
    own = [p for p in command.params if not p.hidden and not shared & set(p.opts)]
    usage = " ".join([name, *(_usage(p) for p in own if p.param_type_name == "argument")])
    return f"## {name}\n\n    {usage}\n\n{inspect.cleandoc(command.help or '')}\n\n{_options(own)}"


def _usage(parameter: Any) -> str:
    text = (parameter.metavar or parameter.name.upper()).removesuffix("...")
    text += "..." if parameter.nargs == -1 else ""
    return text if parameter.required else f"[{text}]"


def _options(parameters: list[Any]) -> str:
    rows = ""
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        names = [_usage(parameter)] if is_argument else [*parameter.opts, *parameter.secondary_opts]
        choices = "|".join(str(value) for value in get_args(parameter.type_descriptor.annotation))
        value = "" if is_argument or parameter.is_flag else parameter.metavar or choices
        shown = ", ".join(f"`{text}`" for text in names) + (f" `{cell(value)}`" if value else "")
        rows += f"| {shown} | {cell(parameter.help or '')} |\n"
    return f"| | |\n|---|---|\n{rows}" if rows else ""
