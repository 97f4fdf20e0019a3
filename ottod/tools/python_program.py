"""Runs in a sandbox, in a process of its own: loads a tool file, describes its tools or calls one of them.

    python -I python_program.py MARK        an order in JSON on standard input

    {"action": "describe", "path", "source", "tools": [NAME…]}
        → {"tools": [{name, description, parameters, permissions, idempotent, timeout_s, memory_bytes}…]}
        → {"error": {"message", "line", "column", "mend"}}
    {"action": "call", "path", "source", "tool", "arguments", "memory_bytes", "max_bytes", "key"}
        → {"text", "truncated"}
        → {"error": {"message", "line"}}

The answer is the last line that begins with MARK; whatever else is printed is for whoever watches. The file comes
with the order, so that the sandbox needs not see it, and its tracebacks show its lines all the same.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import linecache
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

PACKAGE = Path(__file__).resolve().parents[1]
MODULE = "otto_tool_file"


def main() -> None:
    """Reads the order, answers it."""
    mark = sys.argv[1]
    order = json.loads(sys.stdin.buffer.read())
    _find_package()
    try:
        answer = _describe(order) if order["action"] == "describe" else _call(order)
    except BaseException as error:  # noqa: BLE001 - whatever a tool raises, SystemExit included, is its result
        answer = {"error": _explain(error, order["path"])}
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, f"\n{mark} {json.dumps(answer)}\n".encode())
    # Threads that a tool left behind do not keep its call from ending.
    os._exit(0)


def _find_package() -> None:
    """Makes `ottod` importable from where this file lies, whatever else the interpreter can see."""
    if "ottod" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "ottod", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["ottod"] = module
        spec.loader.exec_module(module)


class Mistake(Exception):
    """Something is wrong with the file, at a line of it."""

    def __init__(self, message: str, *, line: int, mend: str) -> None:
        super().__init__(message)
        self.line = line
        self.mend = mend


def _load(path: str, source: str) -> dict[str, Any]:
    """The file's names, once it has run."""
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    spec = importlib.util.spec_from_loader(MODULE, loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[MODULE] = module
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


# ---------------------------------------------------------------- describe


def _describe(order: dict[str, Any]) -> dict[str, Any]:
    names = _load(order["path"], order["source"])
    return {"tools": [_description(name, names.get(name), order["path"]) for name in order["tools"]]}


def _description(name: str, function: Any, path: str) -> dict[str, Any]:
    from ottod.tools.base import inline_schema
    from ottod.tools.sdk import ATTRIBUTE

    facts = getattr(function, ATTRIBUTE, None)
    if facts is None:
        mend = "write @tool, imported from ottod.tools.sdk, right above it"
        raise Mistake(f"{name} is no function marked by @tool", line=_line(function), mend=mend)
    text = inspect.getdoc(function) or ""
    if not text.strip():
        mend = 'write what it does, for the model: """Count the words of a file."""'
        raise Mistake(f"{name} has no docstring", line=_line(function), mend=mend)
    return {
        "name": name,
        "description": text,
        "parameters": inline_schema(arguments_struct(name, function)),
        **facts,
    }


def arguments_struct(name: str, function: Any) -> Any:
    """A struct with the function's parameters for fields. Raises Mistake."""
    import msgspec

    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise Mistake(
            f"{name}: a type hint cannot be understood: {error}", line=_line(function), mend="import what it names"
        ) from error
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise Mistake(
                f"{name}: {parameter} cannot be given by name", line=_line(function), mend="give it a name and a type"
            )
        if parameter.name not in hints:
            mend = f"write `{parameter.name}: str`, or whatever it is"
            raise Mistake(f"{name}: {parameter.name} has no type hint", line=_line(function), mend=mend)
        hint = _with_description(hints[parameter.name])
        if parameter.default is parameter.empty:
            fields.append((parameter.name, hint))
        else:
            fields.append((parameter.name, hint, _default(parameter.default)))
    try:
        struct = msgspec.defstruct(name, fields, kw_only=True, frozen=True, forbid_unknown_fields=True)
        msgspec.json.schema_components((struct,))
    except Exception as error:
        mend = "use str, int, float, bool, list, dict, Literal, dataclasses or None"
        raise Mistake(f"{name}: {error}", line=_line(function), mend=mend) from error
    return struct


def _default(value: Any) -> Any:
    """What a field takes for a default: of a list or a dict a copy, anew for each call."""
    import msgspec

    return msgspec.field(default_factory=value.copy) if isinstance(value, list | dict | set) else value


def _with_description(hint: Any) -> Any:
    """`Annotated[str, "what it is"]` as msgspec says it."""
    import msgspec

    if get_origin(hint) is not Annotated:
        return hint
    inner, *extra = get_args(hint)
    metas = tuple(msgspec.Meta(description=each) if isinstance(each, str) else each for each in extra)
    return Annotated[(inner, *metas)]


def _line(function: Any) -> int:
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    return code.co_firstlineno if code is not None else 0


# ---------------------------------------------------------------- call


def _call(order: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    if order["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (order["memory_bytes"], order["memory_bytes"]))
    os.environ["OTTO_IDEMPOTENCY_KEY"] = order["key"]
    function = _load(order["path"], order["source"])[order["tool"]]
    struct = arguments_struct(order["tool"], function)
    try:
        given = msgspec.convert(order["arguments"], struct, strict=False)
    except msgspec.ValidationError as error:
        return {"error": {"message": f"{error}. Fields: {', '.join(struct.__struct_fields__)}", "line": 0}}
    found = function(**{name: getattr(given, name) for name in struct.__struct_fields__})
    if inspect.isawaitable(found):
        found = asyncio.run(_awaited(found))
    text = found if isinstance(found, str) else "" if found is None else msgspec.json.encode(found).decode()
    data = text.encode("utf-8", "replace")
    return {
        "text": data[: order["max_bytes"]].decode("utf-8", "ignore"),
        "truncated": len(data) > order["max_bytes"],
    }


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _explain(error: BaseException, path: str) -> dict[str, Any]:
    """What happened, and at which line of the file."""
    if isinstance(error, Mistake):
        return {"message": str(error), "line": error.line, "column": 1, "mend": error.mend}
    if isinstance(error, SyntaxError) and error.filename == path:
        return {
            "message": f"not Python: {error.msg}",
            "line": error.lineno or 0,
            "column": error.offset or 1,
            "mend": "mend the syntax there",
        }
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    said = str(error)
    return {
        "message": f"{type(error).__name__}: {said}" if said else type(error).__name__,
        "line": frames[-1].lineno if frames else 0,
        "column": 1,
        "mend": "mend the file there",
    }


if __name__ == "__main__":
    main()
