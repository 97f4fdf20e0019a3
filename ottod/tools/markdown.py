"""markdown: a Markdown file by its sections."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.markdown_sections import find_section, front_matter_end, sections
from ottod.tools.text import TextFile, decode_text

MAX_FILE_BYTES = 2 * 1024 * 1024


class MarkdownArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do with which file."""

    action: Annotated[
        Literal["outline", "section", "replace", "front_matter", "html"],
        Meta(
            description="The headings, one section, a new body for a section, the front matter, or the file as HTML."
        ),
    ]
    file: Annotated[str, Meta(min_length=1, description="The Markdown file, relative to the working directory.")]
    heading: Annotated[
        str, Meta(max_length=1000, description="For section and replace: its heading, or a path: `Guide > Install`.")
    ] = ""
    content: Annotated[
        str | None, Meta(description="For replace: everything below the heading, subsections included.")
    ] = None


async def run(arguments: MarkdownArguments, context: ToolContext) -> ToolOutput:
    """What was asked for."""
    return await context.in_thread(_run, arguments, context)


def _run(arguments: MarkdownArguments, context: ToolContext) -> ToolOutput:
    if arguments.action == "replace":
        return _replace(arguments, context)
    data = context.files.read(arguments.file, max_bytes=MAX_FILE_BYTES)
    text = _text(decode_text(data, path=arguments.file))
    match arguments.action:
        case "outline":
            return _bounded(_outline(text), context)
        case "section":
            found = find_section(sections(text), _heading(arguments))
            return _bounded("\n".join(text.split("\n")[found.start : found.end]).rstrip("\n"), context)
        case "front_matter":
            lines = text.split("\n")
            end = front_matter_end(lines)
            return _bounded("\n".join(lines[1 : end - 1]) if end else "(there is no front matter)", context)
        case "html":
            return _bounded(_html(text), context)
    raise AssertionError(arguments.action)


def _outline(text: str) -> str:
    known = sections(text)
    lines = [f"{'  ' * (s.level - 1)}{'#' * s.level} {s.title} [{plural(s.end - s.start, 'line')}]" for s in known]
    return "\n".join(lines) or "(there are no headings)"


def _html(text: str) -> str:
    from markdown_it import MarkdownIt

    # HTML in the text is shown, and not obeyed.
    lines = text.split("\n")
    return str(MarkdownIt("commonmark", {"html": False}).render("\n".join(lines[front_matter_end(lines) :])))


def _replace(arguments: MarkdownArguments, context: ToolContext) -> ToolOutput:
    content = arguments.content
    if content is None:
        raise ToolError("replace needs content", code="bad_arguments")
    heading = _heading(arguments)
    replaced: list[str] = []

    def transform(data: bytes) -> bytes:
        file = decode_text(data, path=arguments.file)
        text = _text(file)
        found = find_section(sections(text), heading)
        lines = text.split("\n")
        body = content.replace("\r\n", "\n").strip("\n").split("\n") if content.strip() else []
        rest = lines[found.end :]
        middle = ["", *body, ""] if body else [""]
        if not any(rest):
            middle.pop()
            rest = [""]
        changed = "\n".join([*lines[: found.body], *middle, *rest])
        if not _is_same_but_for(text, changed, found.path):
            raise ToolError(
                "the content would open something that swallows what follows, such as a code block that it does not"
                " close, or change the sections outside of this one",
                code="bad_arguments",
            )
        replaced[:] = [f"{plural(found.end - found.body, 'line')} by {plural(len(body), 'line')}"]
        return file.encode(changed if file.newline == "\n" else changed.replace("\n", "\r\n"), path=arguments.file)

    context.files.change(arguments.file, transform, max_bytes=MAX_FILE_BYTES)
    return ToolOutput(text=f"replaced {replaced[0]} below {heading} in {arguments.file}")


def _is_same_but_for(before: str, after: str, path: tuple[str, ...]) -> bool:
    """Whether the sections outside of the one that was replaced are the same as before."""

    def outside(text: str) -> list[tuple[str, ...]]:
        return [s.path for s in sections(text) if s.path[: len(path)] != path]

    return outside(before) == outside(after)


def _heading(arguments: MarkdownArguments) -> str:
    if not arguments.heading.strip():
        raise ToolError(f"{arguments.action} needs a heading", code="bad_arguments")
    return arguments.heading


def _text(file: TextFile) -> str:
    return file.text.replace("\r\n", "\n")


def _bounded(text: str, context: ToolContext) -> ToolOutput:
    data = context.redactor.text(text).encode("utf-8", "replace")
    if len(data) <= context.max_output_bytes:
        return ToolOutput(text=text)
    shown = data[: max(0, context.max_output_bytes - 200)].decode("utf-8", "ignore")
    return ToolOutput(
        text=f"{shown}\n[cut; the whole is {len(data)} bytes, ask for a smaller section]", truncated=True
    )


def touches(arguments: MarkdownArguments) -> Facts:
    """The file, and whether it is written."""
    return Facts(reads=(arguments.file,), writes=(arguments.file,) if arguments.action == "replace" else ())


MARKDOWN = Tool(
    name="markdown",
    description=(
        "Read and change a Markdown file by its headings: outline, one section, a new body for a section, front "
        "matter, HTML. Headings in code blocks do not count."
    ),
    arguments=MarkdownArguments,
    permissions=frozenset({"read", "write"}),
    idempotent=True,
    run=run,
    touches=touches,
    timeout_s=30.0,
)
