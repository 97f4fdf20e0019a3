"""One tool call as the turn sees it: whatever happens, it ends, in a result, with nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from ottod.core.redaction import MARK, RedactedStream
from ottod.errors import Failure, ToolError
from ottod.isolation.beneath import BeneathFiles
from ottod.isolation.standing import Account, Standing
from ottod.protocol.events import ContentDelta, ToolCompleted, ToolFailed, ToolProgress, ToolStarted
from ottod.protocol.model import ToolCall, ToolResult
from ottod.protocol.specs import AgentSpec
from ottod.protocol.toolio import Programs, Web
from ottod.settings.names import FILE_TOOLS
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import Artifacts, Decisions, Processes, Sessions, Team, Tool, ToolContext, ToolOutput
from ottod.tools.untrusted import MARK_BYTES, marked
from ottod.worker.link import Link
from ottod.worker.text import MAX_ARGUMENTS_BYTES, cut, encodable, pieces
from ottod.worker.tool_threads import ABANDON_S, ToolThreads

KILL_MARGIN_S = 15.0
"""What a tool gets beyond its own timeout to bring its processes down before its task is cancelled."""
MAX_FAILURE_BYTES = 4 * 1024
"""Of a failure's text; a model can be quoted in it, at any length."""
FILE_ACCOUNTS: dict[Account, str] = {
    "nothing": "; it has changed no file, and will change none",
    "done": "; the file that it was to change has been changed",
    "unknown": "; whether the file that it was to change has been changed, or will be, is not known",
}

NO_CAP = contextlib.nullcontext()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A call's result, and the event that tells of it once the result is in the journal."""

    result: ToolResult
    event: ToolCompleted | ToolFailed


class ShownOutput:
    """A call's output as watchers see it while it comes: without secrets, and bounded after they were taken out."""

    def __init__(self, stream: RedactedStream, *, show: Callable[[str], None], max_bytes: int) -> None:
        self._stream = stream
        self._show = show
        self._left_bytes = max_bytes

    def feed(self, text: str) -> None:
        """The next piece."""
        if self._left_bytes > 0:
            self._say(self._stream.feed(text))

    def end(self) -> None:
        """There is no more."""
        if self._left_bytes > 0:
            self._say(self._stream.rest())

    def _say(self, text: str) -> None:
        size_bytes = len(text.encode("utf-8", "replace"))
        if size_bytes <= self._left_bytes:
            self._show(text)
        else:
            self._show(cut(text, self._left_bytes)[0] + "\n[… more output, not shown …]\n")
        self._left_bytes -= size_bytes


class ToolRunner:
    """Runs the calls of one session. `tools` are those that the agent may use; there are no others.

    `on_begin` is called in the task of a call before its tool is run.
    """

    def __init__(
        self,
        *,
        spec: AgentSpec,
        tools: dict[str, Tool[Any]],
        files: BeneathFiles,
        programs: Programs,
        sessions: Sessions,
        team: Team,
        artifacts: Artifacts,
        decisions: Decisions | None = None,
        web: Web,
        session: str,
        processes: Processes | None = None,
        checkpoint: Callable[[str], Awaitable[int]] | None = None,
        link: Link,
        on_begin: Callable[[ToolCall], None] = lambda call: None,
        threads: ToolThreads | None = None,
        kill_margin_s: float = KILL_MARGIN_S,
        abandon_s: float = ABANDON_S,
    ) -> None:
        self._spec = spec
        self._tools = tools
        self._files = files
        self._programs = programs
        self._sessions = sessions
        self._team = team
        self._artifacts = artifacts
        self._decisions = decisions
        self._web = web
        self._session = session
        self._processes = processes
        self._checkpoint = checkpoint
        self._link = link
        caps = {name: tool.max_concurrent for name, tool in tools.items()} | dict(spec.limits.max_concurrent)
        self._turns = {name: asyncio.Semaphore(cap) for name, cap in caps.items() if cap is not None}
        """Of the tools that have a cap of their own: who has a turn may run."""
        self._on_begin = on_begin
        self._threads = threads or ToolThreads()
        self._kill_margin_s = kill_margin_s
        self._abandon_s = abandon_s
        """How long a cancelled tool may take to finish before it is left behind."""

    def is_idempotent(self, call: ToolCall) -> bool:
        """Whether the call may simply be made again when nobody knows what became of it."""
        tool = self._tools.get(call.tool)
        if tool is None or tool.idempotent or tool.repeats is None:
            return tool is not None and tool.idempotent
        try:
            return tool.repeats(decode_arguments(tool, call.arguments))
        except ToolError:
            return False

    def is_runnable(self, call: ToolCall) -> bool:
        """Whether there is such a tool, and the arguments are such as it takes."""
        tool = self._tools.get(call.tool)
        try:
            return tool is not None and decode_arguments(tool, call.arguments) is not None
        except ToolError:
            return False

    async def run(self, call: ToolCall, *, turn: int, step: int, key: str) -> Outcome:
        """The call's outcome; a cancellation ends in one that says so."""
        started_ns = time.monotonic_ns()
        arguments, _ = cut(call.arguments, MAX_ARGUMENTS_BYTES)
        self._link.emit(ToolStarted(call=call.call, tool=call.tool, arguments=arguments, turn=turn, step=step))
        said = ShownOutput(
            self._link.redactor.stream(),
            show=lambda text: self._show(call.call, text),
            max_bytes=self._spec.limits.max_tool_output_bytes,
        )
        standing = Standing()
        task = asyncio.get_running_loop().create_task(self._attempt(call, key, said, standing))
        # Before anything is cut from it, noted or given to the model.
        outcome = self._link.redacted(await self._outcome(task, call, standing))
        said.end()
        duration_ms = (time.monotonic_ns() - started_ns) // 1_000_000
        if isinstance(outcome, Failure):
            return failed(call, outcome, duration_ms)
        return _finished(call, outcome, duration_ms)

    async def _attempt(self, call: ToolCall, key: str, said: ShownOutput, standing: Standing) -> ToolOutput:
        tool = self._tools.get(call.tool)
        if tool is None:
            names = ", ".join(sorted(self._tools)) or "none"
            raise ToolError(f"there is no tool {call.tool!r}; you may use: {names}", code="unknown_tool")
        arguments = decode_arguments(tool, call.arguments)
        _check_marks(tool, call)
        self._on_begin(call)
        timeout_s = self._timeout_s(tool)
        context = ToolContext(
            files=self._files.under(standing),
            programs=self._programs,
            in_thread=self._threads.run,
            call=call.call,
            idempotency_key=key,
            timeout_s=timeout_s,
            max_output_bytes=self._spec.limits.max_tool_output_bytes,
            progress=lambda message: self._progress(call.call, message),
            stream=said.feed,
            sessions=self._sessions,
            team=self._team,
            artifacts=self._artifacts,
            decisions=self._decisions,
            web=self._web,
            session=self._session,
            agent=self._spec.name,
            git_author=self._spec.git.author,
            redactor=self._link.redactor,
            processes=self._processes,
            checkpoint=self._checkpoint,
        )
        async with self._turns.get(call.tool, NO_CAP), asyncio.timeout(timeout_s + self._kill_margin_s):
            return await tool.run(arguments, context)

    def _timeout_s(self, tool: Tool[Any]) -> float:
        return tool.timeout_s if tool.waits else min(tool.timeout_s, self._spec.limits.tool_timeout_s)

    def _progress(self, call: str, message: str) -> None:
        self._link.emit(ToolProgress(call=call, message=cut(encodable(message), 500)[0]))

    def _show(self, call: str, text: str) -> None:
        # A flood of output must not fill the outbox: the result is what counts, this is for watchers.
        if not self._link.outbox.is_full:
            for piece in pieces(encodable(text)):
                self._link.emit(ContentDelta(stream="tool_output", text=piece, item=call))

    async def _outcome(
        self, task: asyncio.Task[ToolOutput], call: ToolCall, standing: Standing
    ) -> ToolOutput | Failure:
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            standing.abandon()
            task.cancel()
            await asyncio.wait({task}, timeout=self._abandon_s)
            return await self._given_up(call, standing, "cancelled", "cancelled before it finished")
        # Whatever has ended it: a thread that is still out does nothing more.
        standing.abandon()
        if task.cancelled():
            return await self._given_up(call, standing, "cancelled", "cancelled before it finished")
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, ToolError):
            return error.failure()
        if isinstance(error, TimeoutError):
            return await self._given_up(call, standing, "timeout", f"{call.tool} did not end within its time")
        return Failure(code="tool_crashed", message=f"{call.tool} crashed: {type(error).__name__}: {error}")

    async def _given_up(self, call: ToolCall, standing: Standing, code: str, message: str) -> Failure:
        """The failure of a call that may have a thread out, with what has become of the file that it was writing."""
        loop = asyncio.get_running_loop()
        settled = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody wants to know any more.
                loop.call_soon_threadsafe(settled.set)

        standing.on_settled(tell)
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(self._abandon_s):
                await settled.wait()
        account = standing.account()
        if account != "nothing" or call.tool in FILE_TOOLS:
            message += FILE_ACCOUNTS[account]
        return Failure(code=code, message=message)


def _check_marks(tool: Tool[Any], call: ToolCall) -> None:
    """Raises ToolError for a call that would put a mark where a secret was, in a file perhaps."""
    acts = tool.permissions & {"write", "exec"} and not tool.waits
    if acts and (mark := MARK.search(call.arguments)) is not None:
        raise ToolError(
            f"not run: the arguments hold {mark[0]}, which stands for a secret that was taken out",
            code="redacted",
            mend="leave that part of the file as it is, or name the file or variable that holds the secret",
        )


def failed(call: ToolCall, failure: Failure, duration_ms: int = 0) -> Outcome:
    """The outcome of a call that gave no output."""
    failure = replace(
        failure, message=cut(encodable(failure.message), MAX_FAILURE_BYTES)[0], mend=encodable(failure.mend)
    )
    text = failure.message + (f"\n{failure.mend}" if failure.mend else "")
    return Outcome(
        result=ToolResult(call=call.call, tool=call.tool, text=text, is_error=True),
        event=ToolFailed(call=call.call, tool=call.tool, failure=failure, duration_ms=duration_ms),
    )


def _text(output: ToolOutput) -> str:
    """What the model is told: the tool's own words, then, between marks, what came from outside."""
    if not output.untrusted:
        return output.text
    mark = secrets.token_hex(MARK_BYTES)
    below = marked(output.untrusted, source=output.untrusted_source, mark=mark)
    return f"{output.text}\n{below}" if output.text else below


def _finished(call: ToolCall, output: ToolOutput, duration_ms: int) -> Outcome:
    text = encodable(_text(output))
    shown, was_cut = cut(text)
    event: ToolCompleted | ToolFailed
    if output.is_error:
        failure = Failure(code="tool", message=(shown.splitlines() or ["failed"])[0][:300])
        event = ToolFailed(call=call.call, tool=call.tool, failure=failure, output=shown, duration_ms=duration_ms)
    else:
        event = ToolCompleted(
            call=call.call,
            tool=call.tool,
            output=shown,
            truncated=was_cut or output.truncated,
            duration_ms=duration_ms,
            exit_status=output.exit_status,
        )
    result = ToolResult(
        call=call.call, tool=call.tool, text=text, is_error=output.is_error, ends_turn=output.ends_turn
    )
    return Outcome(result=result, event=event)
