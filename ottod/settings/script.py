"""A script: what a scripted model says, turn by turn.

Which turn is played is a function of the request, so that a resumed session goes on where it was: a *step* is a
model response, and the step of a request is the number of assistant messages it holds, those counted for which a
summary stands. A turn with `times` is not a step of its own; it stands before the step that follows it and is played
for that many attempts first. A request for a summary is no step: it plays `summary`.

    turns: [A, B(times: 2), C, D]      step 0: A     step 1: B, B, then C     step 2: D

A script has turns, or `cases`, each with turns of its own for another kind of task.

The format is documented in docs/reference/scripted-provider.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ottod.protocol.model import ModelRequest, StopReason, ToolResults, UserMessage
from ottod.settings.decode import decode
from ottod.settings.yaml_source import DataPath, read

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Milliseconds = Annotated[float, Meta(ge=0, le=86_400_000)]
Count = Annotated[int, Meta(ge=0)]
PositiveCount = Annotated[int, Meta(ge=1)]

MAX_STREAM_EVENTS = 100_000_000
SIGNALS = ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTERM")
PLACEHOLDERS = ("task", "input", "last_tool_result", "step")
GROUPS = tuple(f"match.{number}" for number in range(1, 10))
"""What the parentheses of a reply's regular expression have found."""
FAULTS = ("error", "stall", "cut", "crash", "malformed", "spin", "leak_bytes")

_PLACEHOLDER = re.compile(r"\$(\$|\{[^{}]*\})")
_CRASH = re.compile(rf"({'|'.join(SIGNALS)})\Z|exit (\d{{1,3}})\Z")


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form that all parts of a script share."""


class ScriptedCall(Part, frozen=True, kw_only=True):
    """A tool call. `arguments` is a mapping, or the very text that the model writes."""

    name: Annotated[str, Meta(min_length=1)]
    arguments: dict[str, Any] | str = {}
    call: str = ""


class ScriptedUsage(Part, frozen=True, kw_only=True):
    """What the call reports. Absent as a whole, usage is estimated from the texts."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cache_read_tokens: Count = 0
    cache_write_tokens: Count = 0
    reasoning_tokens: Count = 0


class ScriptedError(Part, frozen=True, kw_only=True):
    """A refusal by HTTP status, or status 0 for a connection that fails."""

    status: Annotated[int, Meta(ge=0, le=599)] = 500
    message: str = ""
    retry_after_s: Seconds | None = None


class Measured(Part, frozen=True, kw_only=True):
    """Measured emission: `events` deltas of `text_bytes` at `rate_hz` (0: as fast as it goes)."""

    events: Annotated[int, Meta(ge=1, le=MAX_STREAM_EVENTS)]
    rate_hz: Annotated[float, Meta(ge=0, le=1_000_000)] = 100.0
    text_bytes: Annotated[int, Meta(ge=1, le=1024 * 1024)] = 64


class When(Part, frozen=True, kw_only=True):
    """Conditions on the conversation; all that are given must hold."""

    tool_result_contains: str = ""
    tool_result_matches: str = ""
    tool_is_error: bool | None = None
    user_contains: str = ""
    user_matches: str = ""

    def __post_init__(self) -> None:
        for pattern in (self.tool_result_matches, self.user_matches):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {pattern!r}: {error}") from error


class Reply(Part, frozen=True, kw_only=True):
    """One thing the model may do: reasoning, then text, then tool calls, and perhaps a fault on the way."""

    when: When | None = None
    reasoning: str = ""
    text: str = ""
    tools: tuple[ScriptedCall, ...] = ()
    usage: ScriptedUsage | None = None
    stop: StopReason | None = None
    chunk: PositiveCount | None = None
    delay_ms: Milliseconds | None = None
    stream: Measured | None = None
    error: ScriptedError | None = None
    stall: Seconds | None = None
    cut: Count | None = None
    crash: str = ""
    malformed: bool = False
    spin: Seconds | None = None
    leak_bytes: PositiveCount | None = None
    after_chunks: Count = 0
    marker: str = ""

    def __post_init__(self) -> None:
        if self.crash and not _CRASH.match(self.crash):
            raise ValueError(f"crash must be one of {', '.join(SIGNALS)} or `exit STATUS`, got {self.crash!r}")
        faults = self.faults()
        if len(faults) > 1:
            raise ValueError(f"{' and '.join(faults)} exclude each other: give each a turn of its own")
        if not faults and (self.after_chunks or self.marker):
            raise ValueError("after_chunks and marker belong to a fault: " + ", ".join(FAULTS))
        if self.stream is not None and (self.text or self.tools or self.reasoning or faults):
            raise ValueError("stream stands alone: no text, reasoning, tools or fault beside it")

    def faults(self) -> list[str]:
        """The names of the faults given."""
        given = {name: getattr(self, name) for name in FAULTS}
        # Compared by identity where 0 is a value of its own: `cut: 0` is a fault.
        return [name for name, value in given.items() if not (value is None or value is False or value == "")]

    def is_empty(self) -> bool:
        """Whether it does nothing at all."""
        return not (self.text or self.reasoning or self.tools or self.stream or self.stop or self.faults())


class Turn(Reply, frozen=True, kw_only=True):
    """An entry of the script. With `times` it is played for that many attempts before the next entry."""

    times: PositiveCount | None = None
    alternatives: tuple[Reply, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alternatives and not (self.is_empty() and self.when is None):
            raise ValueError("a turn with alternatives has nothing else but times")
        if not self.alternatives and self.is_empty():
            raise ValueError("an empty turn: give it text, reasoning, tools, stream, stop, alternatives or a fault")


class Case(Part, frozen=True, kw_only=True):
    """Turns for tasks of one kind: those of which `when` holds."""

    when: When
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if self.when.tool_result_contains or self.when.tool_result_matches or self.when.tool_is_error is not None:
            raise ValueError("a case is chosen by the task: user_contains, user_matches")
        _check_turns(self.turns)


class Script(Part, frozen=True, kw_only=True):
    """A whole script. `chunk` (characters per delta) and `delay_ms` (between deltas) hold for all turns."""

    turns: tuple[Turn, ...] = ()
    cases: tuple[Case, ...] = ()
    summary: Turn | None = None
    description: str = ""
    loop: bool = False
    chunk: PositiveCount = 24
    delay_ms: Milliseconds = 0.0

    def __post_init__(self) -> None:
        if self.turns and self.cases:
            raise ValueError("turns and cases exclude each other: make the turns a last case, with `when: {}`")
        if not self.cases:
            _check_turns(self.turns)
        if self.summary is not None and (self.summary.times is not None or self.summary.tools):
            raise ValueError("summary has neither `times` nor tools: it is played for every summary")


def _check_turns(turns: tuple[Turn, ...]) -> None:
    if not turns:
        raise ValueError("turns is empty: a script has at least one turn")
    if turns[-1].times is not None:
        raise ValueError("the last turn has `times`, so nothing follows when they are used up")


def steps(turns: tuple[Turn, ...]) -> list[tuple[Turn, ...]]:
    """The entries by step: those with `times` first, the one without last."""
    found: list[tuple[Turn, ...]] = []
    waiting: list[Turn] = []
    for turn in turns:
        waiting.append(turn)
        if turn.times is None:
            found.append(tuple(waiting))
            waiting = []
    return found


class NoAlternativeError(Exception):
    """The script has turns for this step, or cases, and none of them fits the conversation."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says to a script. Texts are empty when there is none. `is_summary`: it is a summary of the
    conversation that is asked for, and the order to write it is no part of that."""

    step: int
    task: str = ""
    input: str = ""
    last_tool_result: str = ""
    tool_is_error: bool = False
    is_summary: bool = False

    def values(self) -> dict[str, str]:
        """The placeholders' values."""
        return {
            "task": self.task,
            "input": self.input,
            "last_tool_result": self.last_tool_result,
            "step": str(self.step if self.is_summary else self.step + 1),
        }


def scene(request: ModelRequest) -> Scene:
    """The scene of a request: the results of the newest tool calls count as one text, joined by newlines."""
    is_summary = request.purpose == "summary"
    messages = request.messages[:-1] if is_summary else request.messages
    users = [m.text for m in messages if isinstance(m, UserMessage) and not m.stands_for]
    results = next((m.results for m in reversed(messages) if isinstance(m, ToolResults)), ())
    return Scene(
        step=sum(m.stands_for if isinstance(m, UserMessage) else not isinstance(m, ToolResults) for m in messages),
        task=users[0] if users else "",
        input=users[-1] if users else "",
        last_tool_result="\n".join(result.text for result in results),
        tool_is_error=any(result.is_error for result in results),
        is_summary=is_summary,
    )


def choose(script: Script, scene: Scene, attempt: int) -> Reply | None:
    """What to play at this attempt (from 0) of the scene's step; None when the script is over.

    Raises: NoAlternativeError.
    """
    if scene.is_summary:
        return _fitting(script.summary or Turn(text="${step} answers were given so far."), scene)
    by_step = steps(_turns(script, scene))
    step = scene.step % len(by_step) if script.loop else scene.step
    if step >= len(by_step):
        return None
    for turn in by_step[step]:
        if turn.times is not None and attempt >= turn.times:
            attempt -= turn.times
            continue
        return _fitting(turn, scene)
    raise AssertionError("a step ends with a turn that has no `times`")


def _turns(script: Script, scene: Scene) -> tuple[Turn, ...]:
    """Those for the scene's task."""
    if not script.cases:
        return script.turns
    told = msgspec.structs.replace(scene, input=scene.task)
    for case in script.cases:
        if fits(case.when, told):
            return case.turns
    raise NoAlternativeError(f"no case fits the task {scene.task.strip()[:80]!r}")


def _fitting(turn: Turn, scene: Scene) -> Reply:
    for reply in turn.alternatives or (turn,):
        if reply.when is None or fits(reply.when, scene):
            return reply
    seen = scene.last_tool_result.strip()[-80:]
    raise NoAlternativeError(f"step {scene.step + 1} has no alternative that fits (last tool result: …{seen!r})")


def fits(when: When, scene: Scene) -> bool:
    """Whether all conditions hold."""
    return (
        when.tool_result_contains in scene.last_tool_result
        and re.search(when.tool_result_matches, scene.last_tool_result, re.MULTILINE) is not None
        and (when.tool_is_error is None or when.tool_is_error == scene.tool_is_error)
        and when.user_contains in scene.input
        and re.search(when.user_matches, scene.input, re.MULTILINE) is not None
    )


def values_for(reply: Reply, scene: Scene) -> dict[str, str]:
    """The placeholders' values in a reply that fits; a group that found nothing is empty."""
    values = {**dict.fromkeys(GROUPS, ""), **scene.values()}
    when = reply.when or When()
    pattern, text = when.tool_result_matches, scene.last_tool_result
    if not pattern:
        pattern, text = when.user_matches, scene.input
    if match := re.search(pattern, text, re.MULTILINE):
        values |= {name: group or "" for name, group in zip(GROUPS, match.groups(), strict=False)}
    return values


def fill(value: Any, values: dict[str, str]) -> Any:
    """Text, or the texts in a structure, with `${name}` replaced and `$$` made `$`. Values are not filled again."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda m: "$" if m[1] == "$" else values[m[1][1:-1]], value)
    if isinstance(value, dict):
        return {key: fill(item, values) for key, item in value.items()}
    return [fill(item, values) for item in value] if isinstance(value, list) else value


def load_script(path: str | Path) -> Script:
    """Reads and checks a script. Raises: ConfigError with line and column."""
    source = read(path)
    script = decode(Script, source)
    for where, text in _texts(source.data, ()):
        for match in _PLACEHOLDER.finditer(text):
            if match[1] != "$" and match[1][1:-1] not in (*PLACEHOLDERS, *GROUPS):
                known = ", ".join(f"${{{name}}}" for name in (*PLACEHOLDERS, GROUPS[0]))
                mend = f"use one of {known}, or $$ for a dollar sign"
                raise source.error(f"unknown placeholder {match[0]}", where, mend=mend)
    return script


def _texts(value: Any, path: DataPath) -> Iterator[tuple[DataPath, str]]:
    """The texts that are filled, each with its place."""
    if isinstance(value, str) and any(key in path for key in ("text", "reasoning", "arguments")):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))


def crash_order(crash: str) -> tuple[str, int]:
    """A crash as (signal name, 0) or ("", exit status)."""
    match = _CRASH.match(crash)
    assert match is not None
    return (match[1], 0) if match[1] else ("", int(match[2]) & 0xFF)
