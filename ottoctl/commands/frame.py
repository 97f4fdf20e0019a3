"""What all commands share: the global options, also after the command's name, and one way to end."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_args

import typer

from ottoctl.console import ColorChoice, Console, Format
from ottoctl.exits import INTERRUPTED, OK
from ottoctl.streams import OutputError
from ottod.errors import OttoError

DEFAULT_TIMEOUT_S = 10.0

Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="ENDPOINT", help="The daemon's socket (or OTTO_ENDPOINT)"),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0.01, metavar="SECONDS", help="How long to wait for an answer (10)"),
]


def one_of(choices: tuple[str, ...]) -> Callable[[str | None], str | None]:
    """Checks a choice. Not typer's own, which costs a tenth of a second: these options are in every script."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return check


def completed(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


FORMATS: tuple[str, ...] = get_args(Format)
COLOR_CHOICES: tuple[str, ...] = get_args(ColorChoice)

Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="|".join(FORMATS),
        help="How to print data",
        callback=one_of(FORMATS),
        autocompletion=completed(FORMATS),
    ),
]
Color = Annotated[
    str | None,
    typer.Option(
        "--color",
        metavar="|".join(COLOR_CHOICES),
        help="When to use colour (auto; see NO_COLOR)",
        callback=one_of(COLOR_CHOICES),
        autocompletion=completed(COLOR_CHOICES),
    ),
]

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("endpoint", Endpoint),
    ("timeout", Timeout),
    ("output", Output),
    ("color", Color),
)


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Turns `function(console, …) -> status` into a typer command.

    The command takes the global options as its own, which win over those before its name. An OttoError becomes a
    line on stderr and a status; Ctrl-C becomes 130; a reader that went away (`| head`) ends the command quietly.
    """
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    # A command that prints in formats of its own has its own option for that.
    options = [(name, annotation) for name, annotation in OPTIONS if name not in signature.parameters]
    extra = [
        inspect.Parameter(f"global_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options
    ]

    @wraps(function)
    def framed(ctx: typer.Context, **given: Any) -> None:
        chosen = dict(ctx.obj or {})
        chosen.update(
            {name: given.pop(f"global_{name}") for name, _ in options if given[f"global_{name}"] is not None}
        )
        for name, _ in options:
            given.pop(f"global_{name}", None)
        raise typer.Exit(execute(function, console_of(chosen), given))

    parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *extra]
    # typer reads the signature, and evaluates annotations that are text; these are evaluated already.
    vars(framed)["__signature__"] = signature.replace(parameters=parameters, return_annotation=None)
    del vars(framed)["__wrapped__"]
    framed.__annotations__ = {}
    return framed


def console_of(chosen: dict[str, Any]) -> Console:
    """The console that these global options ask for."""
    return Console(
        endpoint=chosen.get("endpoint"),
        timeout_s=chosen.get("timeout") or DEFAULT_TIMEOUT_S,
        output=chosen.get("output"),
        color=chosen.get("color") or "auto",
    )


def execute(function: Callable[..., int | None], console: Console, given: dict[str, Any]) -> int:
    """Runs a command's body to its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = function(console, **given) or OK
        console.flush()
        return status
    except OttoError as error:
        _flush_data(console)
        return console.error(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return OK


def _flush_data(console: Console) -> None:
    """What was already printed comes before the error."""
    try:
        console.flush()
    except (BrokenPipeError, OutputError):
        _silence_stdout()


def _silence_stdout() -> None:
    """The interpreter flushes stdout once more when it exits: into nothing, then."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass
