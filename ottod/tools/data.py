"""data: questions to and changes of JSON and YAML files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.data_path import format_path, get, parse_path, put
from ottod.tools.documents import Format, dump, format_of, indent_of, load, replace_scalar
from ottod.tools.text import decode_text

MAX_FILE_BYTES: dict[Format, int] = {"json": 8 * 1024 * 1024, "yaml": 512 * 1024}
"""Reading YAML takes seconds for each megabyte."""


class DataArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do with which file."""

    action: Annotated[
        Literal["get", "validate", "convert", "set"],
        Meta(description="get a part, validate the file, convert it to the other format, or set a value in it."),
    ]
    file: Annotated[str, Meta(description="The JSON or YAML file, relative to the working directory.")]
    path: Annotated[str, Meta(description='Where in the document, such as `a.b[0]` or `a["x.y"]`; empty: all.')] = ""
    value: Annotated[Any, Meta(description="For set: the new value, as JSON.")] = msgspec.UNSET
    to: Annotated[str, Meta(description="For convert: the file to write; empty: only show the result.")] = ""
    format: Annotated[Format | None, Meta(description="The file's format, if its name does not tell.")] = None


async def run(arguments: DataArguments, context: ToolContext) -> ToolOutput:
    """The part asked for, the verdict, or what was changed."""
    return await context.in_thread(_run, arguments, context)


def _run(arguments: DataArguments, context: ToolContext) -> ToolOutput:
    kind = arguments.format or format_of(arguments.file)
    if arguments.action == "set":
        return _set(arguments, context, kind)
    data = context.files.read(arguments.file, max_bytes=MAX_FILE_BYTES[kind])
    value = load(decode_text(data, path=arguments.file).text, kind)
    match arguments.action:
        case "get":
            return _bounded(dump(get(value, parse_path(arguments.path)), kind), context)
        case "validate":
            return ToolOutput(text=f"{arguments.file} is valid {kind.upper()}: {_describe(value)}")
        case "convert":
            return _convert(arguments, context, kind, value)


def _convert(arguments: DataArguments, context: ToolContext, kind: Format, value: Any) -> ToolOutput:
    other: Format = "yaml" if kind == "json" else "json"
    text = dump(value, other)
    if not arguments.to:
        return _bounded(text, context)
    is_new = context.files.write(arguments.to, text.encode())
    return ToolOutput(text=f"{'created' if is_new else 'replaced'} {arguments.to} from {arguments.file}")


def _set(arguments: DataArguments, context: ToolContext, kind: Format) -> ToolOutput:
    if arguments.value is msgspec.UNSET:
        raise ToolError("set needs a value", code="bad_arguments")
    steps = parse_path(arguments.path)

    def transform(data: bytes) -> bytes:
        file = decode_text(data, path=arguments.file)
        wanted = put(load(file.text, kind), steps, arguments.value)
        if kind == "json":
            text = dump(wanted, kind, indent=indent_of(file.text))
        else:
            text = _yaml_text(file.text, steps, arguments.value, wanted)
        return file.encode(text if file.newline == "\n" else _with_crlf(text), path=arguments.file)

    context.files.change(arguments.file, transform, max_bytes=MAX_FILE_BYTES[kind])
    return ToolOutput(text=f"set {format_path(steps)} in {arguments.file}")


def _yaml_text(text: str, steps: tuple[str | int, ...], new: Any, wanted: Any) -> str:
    """Only the value is replaced where that gives what is wanted; else the whole is written anew."""
    spliced = replace_scalar(text, steps, new)
    if spliced is not None:
        try:
            if load(spliced, "yaml") == wanted:
                return spliced
        except ToolError:
            pass  # It does not fit there on one line; the whole is written anew.
    if "#" in text:
        raise ToolError(
            "this change would rewrite the file and lose its comments; use fs_edit for it", code="would_lose_comments"
        )
    return dump(wanted, "yaml")


def _with_crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def _bounded(text: str, context: ToolContext) -> ToolOutput:
    data = context.redactor.text(text).encode("utf-8", "replace")
    if len(data) <= context.max_output_bytes:
        return ToolOutput(text=text.rstrip("\n"))
    shown = data[: max(0, context.max_output_bytes - 200)].decode("utf-8", "ignore")
    return ToolOutput(
        text=f"{shown}\n[cut; the whole is {len(data)} bytes, get a part of it by path]", truncated=True
    )


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        keys = ", ".join(str(key) for key in list(value)[:20])
        return f"a mapping of {plural(len(value), 'key')}: {keys}{', …' if len(value) > 20 else ''}"
    if isinstance(value, list):
        return f"a list of {plural(len(value), 'element')}"
    return "null" if value is None else f"a {type(value).__name__}"


def touches(arguments: DataArguments) -> Facts:
    """The file, and what is written: the file itself, or what it is converted to."""
    writes = (arguments.file,) if arguments.action == "set" else ()
    if arguments.action == "convert" and arguments.to:
        writes = (arguments.to,)
    return Facts(reads=(arguments.file,), writes=writes)


DATA = Tool(
    name="data",
    description=(
        "Query and change JSON and YAML files: get a part by path, validate, convert between the two, or set a "
        "value. YAML comments are kept."
    ),
    arguments=DataArguments,
    permissions=frozenset({"read", "write"}),
    idempotent=True,
    run=run,
    touches=touches,
    timeout_s=30.0,
)
