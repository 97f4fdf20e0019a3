"""A command line that cannot be obeyed: what is wrong with it, and what to type instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import typer

from ottoctl.console import Console
from ottod.errors import OttoError

UsageError: Any = typer.BadParameter.__mro__[1]
CommandLineError: Any = typer.BadParameter.__mro__[2]
"""typer's own, by their place: typer has them in a private module of its own, or in click."""

MENDS_OF_MISSING = {
    "ID": "see `ottoctl ps -a`",
    "AGENT": "see `ottoctl agent list`",
    "approve": "see `ottoctl approvals`",
    "deny": "see `ottoctl approvals`",
    "revoke": "see `ottoctl policy grants`",
}
"""By the argument that lacks, or by the command whose ids are not sessions': what lists its values."""

MEANT = {
    "status": "daemon status",
    "start": "daemon start",
    "list": "ps",
    "ls": "ps",
    "sessions": "ps",
    "show": "inspect",
    "validate": "agent validate",
    "help": "--help",
}
"""What other programs' users type, and what it is called here."""

EXAMPLE_NUMBER = 2
"""For whoever did not give one; within the bounds of all options."""
MAX_NAMED = 12
"""Commands of a group; those of a larger one stand in its help."""
_UNKNOWN_COMMAND = re.compile(r"No such command '(.*?)'")


def say_misuse(error: Any, typed: Sequence[str]) -> int:
    """How the command is used and what is wrong with what was `typed`, as all errors are told; the exit status."""
    context = getattr(error, "ctx", None)
    if context is None or type(error).show is not UsageError.show:
        error.show()
        return int(error.exit_code)
    console = Console(color=(context.find_root().obj or {}).get("color") or "auto")
    console.message(context.get_usage())
    console.message(f"Try '{context.command_path} {context.help_option_names[0]}' for help.")
    return console.error(_told(error, typed))


def _told(error: Any, typed: Sequence[str]) -> OttoError:
    param, kind = getattr(error, "param", None), type(error).__name__
    # "Value error, " is what the library that checks values puts before what it was told.
    text = error.format_message().replace("Value error, ", "").removesuffix(".")
    mend = ""
    if kind == "BadParameter" and _is_number(param) and (given := _given_to(error)):
        return _wrong_number(param, given, typed)
    if kind == "MissingParameter" and param is not None:
        mend = _mend_of_missing(error, param)
    elif kind == "NoSuchOption" and error.possibilities:
        text, mend = error.message, f"did you mean {' or '.join(sorted(error.possibilities))}?"
    elif unknown := _UNKNOWN_COMMAND.match(text):
        text, mend = unknown[0], _commands_of(error.ctx, unknown[1])
    return OttoError(text, mend=mend, code="usage")


def _is_number(param: Any) -> bool:
    return getattr(getattr(param, "type_descriptor", None), "annotation", None) in (int, float)


def _wrong_number(param: Any, given: str, typed: Sequence[str]) -> OttoError:
    """`--tail: 'abc' is not a whole number`, and the same command line with one that would do."""
    is_whole = param.type_descriptor.annotation is int
    what, convert = ("a whole number", int) if is_whole else ("a number", float)
    name = param.opts[-1]
    least, most = getattr(param, "min", None), getattr(param, "max", None)
    try:
        convert(given)
        text = f"{name}: {given} is not possible"
    except ValueError:
        text = f"{name}: {given!r} is not {what}"
    bounds = " to ".join(f"{bound:g}" for bound in (least, most) if bound is not None)
    within = f" from {bounds}" if " to " in bounds else f" of {bounds} or more" if bounds else ""
    example = str(EXAMPLE_NUMBER if most is None else min(EXAMPLE_NUMBER, most))
    mend = f"write {what}{within}"
    if again := _with_another(typed, param.opts, given, example):
        mend += f", as in `{shlex.join(['ottoctl', *again])}`"
    return OttoError(text, mend=mend, code="usage")


def _with_another(typed: Sequence[str], options: Sequence[str], given: str, wanted: str) -> list[str]:
    """What was typed with the option's value replaced; nothing if it is not found."""
    for at in reversed(range(len(typed))):
        word = typed[at]
        if at and word == given and _takes_next(typed[at - 1], options):
            return [*typed[:at], wanted, *typed[at + 1 :]]
        head = word.removesuffix(given)
        if head != word and _takes_next(head.removesuffix("="), options):
            return [*typed[:at], head + wanted, *typed[at + 1 :]]
    return []


def _takes_next(word: str, options: Sequence[str]) -> bool:
    """Whether a word is one of these options, or ends with a short one, and so what follows is its value."""
    is_cluster = re.fullmatch("-[A-Za-z]+", word) is not None
    return word in options or (is_cluster and f"-{word[-1]}" in options)


def _given_to(error: Any) -> str:
    """What was typed in its place; the library that checks values remembers."""
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    return str(found[0]["input"]) if found else ""


def _mend_of_missing(error: Any, param: Any) -> str:
    """Where to find what is missing."""
    wanted = str(param.metavar or "").removesuffix("...").removesuffix("[@DIGEST]")
    if wanted == "ID":
        # Most ids are sessions'.
        return MENDS_OF_MISSING.get(error.ctx.info_name, MENDS_OF_MISSING[wanted])
    return MENDS_OF_MISSING.get(wanted, "")


def _commands_of(context: Any, typed: str) -> str:
    """The command that was probably meant, or all that there are."""
    from ottod.settings.nearest import nearest

    if context.parent is None and (meant := MEANT.get(typed)):
        return f"did you mean `{context.command_path} {meant}`?"
    names = [name for name, command in context.command.commands.items() if not command.hidden]
    if close := nearest(typed, names):
        return f"did you mean `{context.command_path} {close}`?"
    if len(names) > MAX_NAMED:
        return f"see `{context.command_path} {context.help_option_names[0]}`"
    return f"`{context.command_path}` has: {', '.join(names)}"
