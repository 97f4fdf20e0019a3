"""What a tool file imports: `from ottod.tools.sdk import tool`.

    @tool(permissions=["read"], idempotent=True)
    def count_words(path: str, ignore_case: bool = False) -> int:
        \"\"\"Count the different words of a file.\"\"\"

The docstring is what the model reads. Arguments need type hints; `Annotated[str, "which file"]` describes one. What
the function returns becomes text, or JSON if it is none; an exception becomes the failure that the model is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

Function = TypeVar("Function", bound=Callable[..., Any])

PERMISSIONS = ("read", "write", "exec", "net")
ATTRIBUTE = "__otto_tool__"
DEFAULT_TIMEOUT_S = 60.0


@overload
def tool(function: Function, /) -> Function: ...


@overload
def tool(
    *,
    permissions: Iterable[str] = ...,
    idempotent: bool = ...,
    timeout_s: float = ...,
    memory_bytes: int | None = ...,
) -> Callable[[Function], Function]: ...


def tool(
    function: Function | None = None,
    /,
    *,
    permissions: Iterable[str] = ("exec",),
    idempotent: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    memory_bytes: int | None = None,
) -> Function | Callable[[Function], Function]:
    """Makes a function a tool. It stands at the beginning of a line, above a function at the left margin.

    `permissions`: what it does, of `read write exec net`; rules speak about it. `idempotent`: once more changes
    nothing, so that a lost call may be repeated. `timeout_s` and `memory_bytes` bound one call.
    """
    named = tuple([permissions] if isinstance(permissions, str) else permissions)
    unknown = [name for name in named if name not in PERMISSIONS]
    if unknown:
        raise ValueError(f"unknown permission {unknown[0]!r}; there are: {', '.join(PERMISSIONS)}")
    if not timeout_s > 0:
        raise ValueError("timeout_s must be above 0")
    facts = {
        "permissions": named,
        "idempotent": bool(idempotent),
        "timeout_s": float(timeout_s),
        "memory_bytes": memory_bytes,
    }

    def mark(marked: Function) -> Function:
        setattr(marked, ATTRIBUTE, facts)
        return marked

    return mark if function is None else mark(function)
