"""One session as it goes, for people: text as it comes, tool calls with spinner and duration, one-line notices.

The renderer is pure: events and the wall clock in, chunks of text out. Two channels: `text` is what the agent says,
`view` is everything about it. On one terminal they share the lines (`split` is False); when the answer is piped
away, only the view knows a cursor.

A session whose process died makes the model call that was cut again, so an item that was half told comes once more
from its beginning. What a terminal or a pipe has shown cannot be taken back: the view says that the part above counts
no more.

With `live`, the view ends in a region that is redrawn: one line for each running tool, and one for the approval or
else for the model that is waited for. Every chunk that follows first erases it.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from msgspec.structs import replace

from ottoctl.feed import SessionEvent
from ottoctl.rendering.amounts import duration, usage_line, usd
from ottoctl.rendering.ansi import CURSOR_UP, ERASE_LINE, clip, one_line, paint, printable
from ottoctl.rendering.diffs import diff_text
from ottoctl.rendering.notices import failure_words, notice_of
from ottoctl.rendering.sessions import cause_style
from ottoctl.rendering.tools import argument_summary, result_summary
from ottod.protocol.cause import Cause
from ottod.protocol.events import (
    ApprovalRequested,
    ApprovalResolved,
    ChildExited,
    ContentDelta,
    Event,
    IncarnationExited,
    ItemCompleted,
    SessionExited,
    SessionStarted,
    StepEnded,
    ToolCompleted,
    ToolFailed,
    ToolProgress,
    ToolStarted,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    Unknown,
    UsageUpdated,
)
from ottod.protocol.usage import Usage
from ottod.settings.units import plural

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PROMPT = "\u203a"
FRAME_NS = 100_000_000
MAX_LIVE_LINES = 6
MAX_RUNNING_TOOLS = 1000
"""Calls whose end never came (a gap) are forgotten beyond this."""

MAX_REASONS = 32
"""Of failures, that are remembered as having been told."""

Channel = Literal["text", "view"]


class Chunk(NamedTuple):
    """Text for one channel."""

    to: Channel
    text: str


class RunningTool(NamedTuple):
    """A call that has begun: for its line in the live region."""

    tool: str
    arguments: str
    since_ns: int
    progress: str = ""


class StreamRenderer:
    """See the module's docstring. `width` 0 means that nothing is cut."""

    def __init__(
        self,
        *,
        color: bool = False,
        live: bool = False,
        width: int = 0,
        split: bool = False,
        show_input: bool = True,
        show_turns: bool = False,
    ) -> None:
        self.width = width
        self._color = color
        self.live = live
        self._split = split
        self._show_input = show_input
        self._show_turns = show_turns
        self._chunks: list[Chunk] = []
        self._at_start: dict[Channel, bool] = {"text": True, "view": True}
        self._drawn_lines = 0
        self._open: Literal["", "text", "reasoning"] = ""
        self._tools: dict[str, RunningTool] = {}
        self._streamed_items: set[str] = set()
        self._cut_items: set[str] = set()
        self._said_text = False
        self._waiting_since_ns: int | None = None
        self._asked_since_ns: dict[str, int] = {}
        """Approvals that wait for an answer, the oldest first."""
        self._turns = 0
        self._session = ""
        self._reasons: deque[str] = deque(maxlen=MAX_REASONS)
        """Why turns and children have failed, as it was shown: whoever fails by it need not say it again."""
        self._total = Usage()

    # ------------------------------------------------------------ in

    def event(self, event: SessionEvent, *, now_ns: int) -> list[Chunk]:
        """What one more event shows. `now_ns` is the wall clock, as the events' times are."""
        self._erase()
        self._session = event.session or self._session
        self._show(event.event, event)
        self._draw(now_ns)
        return self._taken()

    def tick(self, *, now_ns: int) -> list[Chunk]:
        """The live region as it looks now."""
        if not self.live or not self._drawn_lines:
            return []
        self._erase()
        self._draw(now_ns)
        return self._taken()

    def aside(self) -> list[Chunk]:
        """Makes room for a line of somebody else's; what runs is shown again with the next event."""
        self._erase()
        self._close_block()
        return self._taken()

    def finish(self) -> list[Chunk]:
        """Leaves both channels at the beginning of a line, without a live region."""
        self._erase()
        self._close_block()
        self._tools.clear()
        self._asked_since_ns.clear()
        self._waiting_since_ns = None
        return self._taken()

    # ------------------------------------------------------------ events

    def _show(self, event: Event | Unknown, place: SessionEvent) -> None:
        match event:
            case ContentDelta():
                self._delta(event)
            case ToolStarted():
                self._waiting_since_ns = None
                if len(self._tools) < MAX_RUNNING_TOOLS:
                    arguments = argument_summary(event.arguments)
                    self._tools[event.call] = RunningTool(one_line(event.tool), arguments, place.at_ns)
            case ToolProgress():
                tool = self._tools.get(event.call)
                if tool is not None:
                    self._tools[event.call] = tool._replace(progress=one_line(event.message))
            case ToolCompleted() | ToolFailed():
                self._tool_ended(event, place)
            case ItemCompleted():
                self._item(event)
            case TurnStarted():
                self._reasons.clear()
                self._turns = max(self._turns, event.turn)
                self._waiting_since_ns = place.at_ns
                if event.input and (self._show_input or event.turn > 1):
                    self._line(f"{PROMPT} {printable(event.input).rstrip()}", "bold")
            case UsageUpdated():
                self._total = event.total
            case TurnCompleted() if self._show_turns:
                self._turn_ended()
                took = duration(event.duration_ms / 1000)
                self._line(f"· turn {event.turn}: {self._bill(event.usage)} so far · {took}", "dim")
            case SessionExited():
                self._exited(event, place)
            case ApprovalRequested():
                # It is not the model that is waited for.
                self._waiting_since_ns = None
                if len(self._asked_since_ns) < MAX_RUNNING_TOOLS:
                    self._asked_since_ns.setdefault(event.approval, place.at_ns)
                self._notice(event)
                self._put("view", diff_text(event.diff, color=self._color))
            case ApprovalResolved():
                self._asked_since_ns.pop(event.approval, None)
                self._notice(event)
            case IncarnationExited() | SessionStarted():
                self._process_changed()
                self._notice(event)
            case _:
                if isinstance(event, TurnCompleted | TurnFailed | TurnCancelled):
                    self._turn_ended()
                self._notice(event)
                if isinstance(event, TurnFailed):
                    self._reasons.append(failure_words(event.failure))
                elif isinstance(event, ChildExited) and event.cause.message:
                    self._reasons.append(one_line(event.cause.message))

    def _notice(self, event: Event | Unknown) -> None:
        if isinstance(event, StepEnded) and event.failure is not None:
            event = replace(event, failure=replace(event.failure, message=self._news(event.failure.message)))
        notice = notice_of(event, session=self._session)
        if notice is not None:
            self._line(notice.text, notice.style)

    def _news(self, reason: str) -> str:
        """A reason without what has been said: `build: budget` where `build: budget: no room` follows `no room`."""
        whole = one_line(reason)
        for said in self._reasons:
            if whole == said or whole.endswith(f": {said}"):
                return whole.removesuffix(said).removesuffix(": ")
        return whole

    def _process_changed(self) -> None:
        """The process is gone, or there is a new one: what it was doing has no end, and will be begun anew."""
        self._cut_items |= self._streamed_items
        self._turn_ended()

    def _delta(self, event: ContentDelta) -> None:
        text = printable(event.text)
        if not text or event.stream == "tool_output":
            return
        self._waiting_since_ns = None
        if event.stream == "text":
            if event.item in self._cut_items:
                self._cut_items.clear()
                self._line("↻ this answer begins again; the part above counts no more", "yellow")
            self._open_block("text")
            self._streamed_items.add(event.item)
            self._said_text = True
            self._put("text", text)
        else:
            self._open_block("reasoning")
            self._put("view", "\n".join(paint(part, "dim", color=self._color) for part in text.split("\n")))

    def _item(self, event: ItemCompleted) -> None:
        if event.kind == "compaction":
            self._notice(event)
        if event.kind != "assistant_message":
            return
        was_streamed = event.item in self._streamed_items or "" in self._streamed_items
        self._streamed_items.clear()
        self._cut_items.clear()
        if event.text and not was_streamed:
            self._open_block("text")
            self._said_text = True
            self._put("text", printable(event.text))
        self._close_block()

    def _tool_ended(self, event: ToolCompleted | ToolFailed, place: SessionEvent) -> None:
        begun = self._tools.pop(event.call, None)
        if isinstance(event, ToolFailed):
            mark, style = "✗", "red"
            summary = one_line(event.failure.message) or event.failure.code
        else:
            mark, style = ("✗", "yellow") if event.exit_status else ("✓", "green")
            summary = result_summary(printable(event.output), event.exit_status, truncated=event.truncated)
        took = duration(event.duration_ms / 1000)
        words = [one_line(event.tool), begun.arguments if begun else ""]
        head = " ".join(word for word in words if word)
        if summary:
            head = f"{head} · {summary}"
        if self.width:
            head = clip(head, max(10, self.width - len(took) - 4))
        self._close_block()
        shown = f"{paint(mark, style, color=self._color)} {head} {paint(took, 'dim', color=self._color)}"
        self._put("view", shown + "\n")
        if not self._tools:
            self._waiting_since_ns = place.at_ns

    def _turn_ended(self) -> None:
        self._waiting_since_ns = None
        self._tools.clear()
        self._asked_since_ns.clear()
        self._streamed_items.clear()
        self._close_block()

    def _exited(self, event: SessionExited, place: SessionEvent) -> None:
        self._turn_ended()
        if event.result and not self._said_text:
            self._put("text", printable(event.result).rstrip() + "\n")
        usage = event.usage if event.usage != Usage() else self._total
        for line in summary_lines(
            replace(event.cause, message=self._news(event.cause.message)),
            turns=self._turns,
            usage=usage,
            duration_ms=event.duration_ms,
            session=place.session,
            remaining_pids=event.remaining_pids,
            color=self._color,
        ):
            self._put("view", line + "\n")

    def _bill(self, usage: Usage) -> str:
        return usage_line(usage) + (f" · {usd(usage.usd_micros)}" if usage.usd_micros else "")

    # ------------------------------------------------------------ lines and blocks

    def _open_block(self, kind: Literal["text", "reasoning"]) -> None:
        if self._open not in ("", kind):
            self._close_block()
        self._open = kind

    def _close_block(self) -> None:
        self._open = ""
        for channel in ("text", "view"):
            if not self._at_start[channel]:
                self._put(channel, "\n")

    def _line(self, text: str, style: str) -> None:
        self._close_block()
        self._put("view", paint(text, style, color=self._color) + "\n")

    def _put(self, to: Channel, text: str) -> None:
        if not text:
            return
        self._chunks.append(Chunk(to, text))
        at_start = text.endswith("\n")
        if self._split:
            self._at_start[to] = at_start
        else:
            self._at_start = {"text": at_start, "view": at_start}

    def _taken(self) -> list[Chunk]:
        chunks, self._chunks = self._chunks, []
        return chunks

    # ------------------------------------------------------------ the live region

    @property
    def has_live_region(self) -> bool:
        """Whether `tick` has something to move."""
        return self._drawn_lines > 0

    def _erase(self) -> None:
        if self._drawn_lines:
            self._chunks.append(Chunk("view", ERASE_LINE + (CURSOR_UP + ERASE_LINE) * (self._drawn_lines - 1)))
            self._drawn_lines = 0

    def _draw(self, now_ns: int) -> None:
        if not self.live or not self._at_start["view"]:
            return
        lines = self._live_lines(now_ns)
        if lines:
            self._chunks.append(Chunk("view", "\n".join(lines)))
            self._drawn_lines = len(lines)

    def _live_lines(self, now_ns: int) -> list[str]:
        frame = paint(SPINNER[now_ns // FRAME_NS % len(SPINNER)], "cyan", color=self._color)
        running = list(self._tools.values())
        lines = [f"{frame} {self._tool_line(tool, now_ns)}" for tool in running[:MAX_LIVE_LINES]]
        if len(running) > MAX_LIVE_LINES:
            lines.append(f"  … and {len(running) - MAX_LIVE_LINES} more")
        waits = self._wait_text(now_ns, is_alone=not running)
        if waits:
            lines.append(f"{frame} {paint(waits, 'dim', color=self._color)}")
        return lines

    def _wait_text(self, now_ns: int, *, is_alone: bool) -> str:
        """What is waited for: somebody's answer, or, where nothing else goes on, the model."""
        if self._asked_since_ns:
            approval, since_ns = next(iter(self._asked_since_ns.items()))
            more = f" and {len(self._asked_since_ns) - 1} more" if len(self._asked_since_ns) > 1 else ""
            waited = duration(max(0, now_ns - since_ns) / 1e9)
            text = f"waits for approval {one_line(approval)}{more} ({waited})"
            return clip(text, max(4, self.width - 3)) if self.width else text
        if self._waiting_since_ns is None or not is_alone:
            return ""
        return f"thinking {duration(max(0, now_ns - self._waiting_since_ns) / 1e9)}"

    def _tool_line(self, tool: RunningTool, now_ns: int) -> str:
        took = duration(max(0, now_ns - tool.since_ns) / 1e9)
        head = f"{tool.tool} {tool.arguments}".rstrip() + (f" · {tool.progress}" if tool.progress else "") + " …"
        if self.width:
            # One column stays free: a full line would wrap, and the region could not be erased.
            head = clip(head, max(4, self.width - len(took) - 4))
        return f"{head} {paint(took, 'dim', color=self._color)}"


def summary_lines(
    cause: Cause,
    *,
    turns: int,
    usage: Usage,
    duration_ms: int,
    session: str,
    remaining_pids: tuple[int, ...] = (),
    color: bool,
) -> list[str]:
    """The end in a line or three: cause, turns, tokens, cost, duration, id; then what needs saying."""
    mark = "✓" if cause.kind == "completed" else "■" if cause.kind in ("cancelled", "daemon_stop") else "✗"
    facts = [
        plural(turns, "turn") if turns else "",
        usage_line(usage) if usage.total_tokens else "",
        usd(usage.usd_micros) if usage.usd_micros else "",
        duration(duration_ms / 1000) if duration_ms else "",
        session,
    ]
    tail = paint(" · ".join(["", *(fact for fact in facts if fact)]), "dim", color=color)
    lines = [paint(f"{mark} {cause}", cause_style(cause), color=color) + tail]
    if cause.message and cause.kind != "completed":
        lines.append(f"  {one_line(cause.message)}")
    if remaining_pids:
        pids = ", ".join(map(str, remaining_pids))
        lines.append(paint(f"  these processes remain: {pids}", "red", color=color))
    return lines
