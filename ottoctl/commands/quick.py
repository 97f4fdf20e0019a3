"""Commands that start quickly: values that need no conversion are not converted.

typer builds a pydantic adapter for every option, given or not, and importing pydantic alone takes a third of the time
that `ottoctl ps` may take. An absent value and a plain text are what they are already. Everything else, and every
parameter that does not look as expected, goes typer's way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand, TyperGroup


class QuickCommand(TyperCommand):
    """A command whose plain parameters skip the conversion."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, `--help` included."""
        return [quicken(parameter) for parameter in super().get_params(ctx)]


class QuickGroup(TyperGroup):
    """The same for a group's own options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, `--help` included."""
        return [quicken(parameter) for parameter in super().get_params(ctx)]


def quicken(parameter: Any) -> Any:
    """The parameter, with the shortcut before its own `process_value`. Idempotent."""
    if "process_value" in vars(parameter):
        return parameter
    convert: Callable[[Any, Any], Any] = parameter.process_value
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)

    def process_value(ctx: Any, value: Any) -> Any:
        if parameter.required and not value:
            return convert(ctx, value)
        if value is None:
            plain: Any = () if parameter.multiple or parameter.nargs == -1 else None
        elif annotation is str and isinstance(value, str):
            plain = value
        elif annotation == list[str] and all(isinstance(item, str) for item in value):
            plain = list(value)
        else:
            return convert(ctx, value)
        return plain if parameter.callback is None else parameter.callback(ctx, parameter, plain)

    parameter.process_value = process_value
    return parameter
