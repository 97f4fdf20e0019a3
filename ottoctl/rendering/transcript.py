"""A session's journal as a Markdown document."""

from __future__ import annotations

import re
import time

import msgspec

from ottod.errors import UNDECODABLE
from ottod.protocol import journal as j
from ottod.protocol.model import AssistantMessage, Block, Message, Text, Thinking, ToolCall, ToolResult, UserMessage
from ottod.protocol.results import SessionInfo
from ottod.settings.units import plural

_TICKS = re.compile(r"`+")


def transcript(info: SessionInfo, entries: list[j.JournalEntry]) -> str:
    """The whole document."""
    parts = [*_head(info)]
    for entry in entries:
        parts += _entry(entry)
    return "\n\n".join(parts) + "\n"


def _head(info: SessionInfo) -> list[str]:
    title = info.title or info.task.partition("\n")[0] or info.session
    usage = info.usage
    facts = [
        ("session", info.session),
        ("agent", info.agent),
        ("model", info.model),
        ("directory", info.cwd),
        ("from", f"{info.resumed_from} at turn {info.resumed_turn}" if info.resumed_from else ""),
        ("begun", _when(info.created_at_ns)),
        ("ended", _when(info.ended_at_ns)),
        ("cause", str(info.cause) if info.cause is not None else ""),
        ("tokens", f"{usage.input_tokens:,} in, {usage.output_tokens:,} out, in {plural(usage.calls, 'call')}"),
    ]
    return [f"# {title}", "\n".join(f"- {name}: {value}" for name, value in facts if value)]


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_ns / 1e9)) if at_ns else ""


def _entry(entry: j.JournalEntry) -> list[str]:
    match entry:
        case j.SessionOpened():
            return [f"*Incarnation {entry.incarnation} begins.*"] if entry.incarnation > 1 else []
        case j.NotesRead():
            read = f"{plural(entry.size_bytes, 'byte')}, SHA-256 {entry.digest}"
            head = f"*{entry.path} was read ({read}); the agent is told:*"
            return [head, _fenced(entry.text)]
        case j.UserSaid():
            return [f"## Turn {entry.turn}", f"**{entry.sender}**", entry.text]
        case j.UserSteered():
            return [f"**{entry.sender}**, during the turn", entry.text]
        case j.ModelResponded():
            return _blocks(entry.response.blocks)
        case j.ConversationShortened(summary=""):
            return [f"*Tool output before message {entry.at} was left out of the conversation from here on.*"]
        case j.ConversationShortened():
            return ["*From here on this summary stands for what was said before:*", entry.summary]
        case j.TurnBegunAnew():
            return ["*The turn's work begins anew:*", entry.text]
        case j.ToolResolved():
            return _result(entry.result)
        case j.ApprovalAsked():
            return [f"*{entry.tool} waits for approval {entry.approval}{_why(entry.reason)}.*"]
        case j.ApprovalResolved():
            by = f" by {entry.by}" if entry.by else ""
            return [f"*Approval {entry.approval}: {entry.decision}{by}{_why(entry.reason)}.*"]
        case j.TurnEnded(outcome="completed"):
            return []
        case j.TurnEnded():
            why = f": {entry.failure.message}" if entry.failure is not None else ""
            return [f"*Turn {entry.turn} was {'interrupted' if entry.interrupted else entry.outcome}{why}.*"]
        case j.TurnsRolledBack():
            what = f"{plural(entry.turns, 'turn')} {'was' if entry.turns == 1 else 'were'} rolled back"
            return [f"*{what}: the conversation goes on behind turn {entry.turn}.*"]
        case j.SessionPaused():
            return [f"*Paused{_why(entry.reason)}.*"]
        case j.SessionUnpaused():
            return ["*Unpaused.*"]
        case j.Checkpoint():
            return [f"*Checkpoint {entry.name}.*"]
        case j.SliceEnded():
            return ["*The time slice ended; the session goes on from here:*", *_conversation(entry.messages)]
        case j.Snapshot():
            origin = f" of {entry.origin}" if entry.origin else ""
            return [f"*The conversation{origin} so far:*", *_conversation(entry.messages)]
        case j.ChildStarted():
            return [f"*Session {entry.child} of agent {entry.agent} was started.*"]
        case j.ChildEnded():
            return [f"*Session {entry.child} ended: {entry.cause}.*"]
        case j.SessionClosed():
            return [f"*The session ended: {entry.cause}.*"]
        case _:
            return []  # Noted for whoever goes on with it; a reader learns nothing from it.


def _conversation(messages: tuple[Message, ...]) -> list[str]:
    parts: list[str] = []
    for message in messages:
        match message:
            case UserMessage():
                parts += ["**user**", message.text]
            case AssistantMessage():
                parts += _blocks(message.blocks)
            case _:
                for result in message.results:
                    parts += _result(result)
    return parts


def _blocks(blocks: tuple[Block, ...]) -> list[str]:
    parts = ["**assistant**"]
    for block in blocks:
        match block:
            case Text():
                parts.append(block.text)
            case Thinking():
                if block.text:
                    parts.append("\n".join(f"> {line}".rstrip() for line in block.text.splitlines()))
            case ToolCall():
                parts += [f"calls **{block.tool}** (`{block.call}`)", _fenced(_pretty(block.arguments), "json")]
    return parts


def _result(result: ToolResult) -> list[str]:
    how = "failed" if result.is_error else "gave"
    return [f"**{result.tool}** (`{result.call}`) {how}", _fenced(result.text)]


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""


def _pretty(arguments: str) -> str:
    try:
        return msgspec.json.format(arguments, indent=2)
    except UNDECODABLE:
        return arguments


def _fenced(text: str, language: str = "") -> str:
    """A block of code whose fence no line of it can close."""
    longest = max((len(run) for run in _TICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
