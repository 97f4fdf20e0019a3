"""Whether an agent gets anywhere: a watch over the calls of one turn.

Theory of operation. The watch is told of each step's calls with their results, and of each answer that had to be
refused. It knows four ways of getting nowhere:

    loop               the same tool, arguments and result for the nth time, among the newest 4 n calls
    no_progress        n steps in a row without news; a step has news if one of its calls succeeded with a
                       combination of tool, arguments and result that this turn has not had before
    tool_errors        n calls in a row failed
    schema_violations  n times in a row, arguments that the tool does not take or an answer that the schema refuses

Arguments are compared as JSON, results as text in which durations and times of day count as equal: a test run that
fails again is the same, also if it took longer. After a finding its kind begins to count anew.

The watch is a function of what it was told, so a later incarnation that tells it the same conversation finds it
where it was.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Literal, assert_never

import msgspec

from ottod.core.answer import is_complaint
from ottod.protocol.model import AssistantMessage, Message, ToolCall, ToolResult, ToolResults, UserMessage
from ottod.protocol.specs import Health, HealthAction
from ottod.settings.units import plural

Kind = Literal["loop", "no_progress", "tool_errors", "schema_violations"]

WARNING_CODE = "unhealthy_"
"""What the codes of warnings of findings begin with; the kind follows."""
WINDOW_FACTOR = 4
"""A repetition counts while it is among the newest `after` times this many calls."""
MAX_SEEN = 10_000
"""Combinations that are remembered as no news; the oldest are forgotten first."""
SEVERITY: dict[HealthAction, int] = {"off": 0, "warn": 1, "restart": 2, "stop": 3}

_PASSING = re.compile(
    r"\d+(?:\.\d+)?\s?(?:ns|µs|us|ms|s|sec|secs|seconds?|min|minutes?)\b|\b\d{1,2}:\d{2}(?::\d{2})?\b"
)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A way of getting nowhere that was seen, how often, and what the agent's rules say is to be done."""

    kind: Kind
    do: HealthAction
    count: int
    tool: str = ""

    @property
    def message(self) -> str:
        """One line for people."""
        match self.kind:
            case "loop":
                return f"the same call of {self.tool} gave the same result {self.count} times"
            case "no_progress":
                return f"{plural(self.count, 'step')} in a row brought nothing new"
            case "tool_errors":
                return f"{plural(self.count, 'tool call')} in a row failed"
            case "schema_violations":
                return f"{plural(self.count, 'time')} in a row, arguments or an answer did not fit their schema"
            case _:
                assert_never(self.kind)

    @property
    def note(self) -> str:
        """What the model is told."""
        return f"[{self.message[0].upper()}{self.message[1:]}. {_ADVICE[self.kind]}]"


_ADVICE: dict[Kind, str] = {
    "loop": "Doing it again will not change that. Think about what you expected and why it did not happen, then do "
    "something else; if nothing else is possible, say so and end.",
    "no_progress": "Say to yourself what you know, what is missing, and which single step would bring it. If there "
    "is none, give your answer with what there is.",
    "tool_errors": "Read the messages: do the tools, the paths and the arguments exist as you believe? Make sure of "
    "that first, or do without.",
    "schema_violations": "Read the schema again, and write exactly the fields that it names.",
}


class HealthWatch:
    """The watch over one turn at a time. `is_malformed`: no such tool, or not the arguments that it takes."""

    def __init__(self, rules: Health, *, is_malformed: Callable[[ToolCall], bool] = lambda call: False) -> None:
        self._rules = rules
        self._is_malformed = is_malformed
        self.begin_turn()

    def begin_turn(self) -> None:
        """Forgets everything."""
        self._recent: deque[bytes] = deque(maxlen=WINDOW_FACTOR * self._rules.loop.after)
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._stale_steps = 0
        self._errors = 0
        self._violations = 0

    def replay(self, messages: Iterable[Message]) -> None:
        """Takes in the conversation of a turn so far; what was found in it has been dealt with."""
        self.begin_turn()
        answer: AssistantMessage | None = None
        for message in messages:
            if isinstance(message, ToolResults) and answer is not None:
                self.step(tuple(b for b in answer.blocks if isinstance(b, ToolCall)), message.results)
            elif isinstance(message, UserMessage) and answer is not None and is_complaint(message):
                self.answered(is_accepted=False)
            answer = message if isinstance(message, AssistantMessage) else None

    def step(self, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> list[Finding]:
        """Takes in the calls of one step with their results and says what that shows, once of each kind."""
        findings: list[Finding] = []
        has_news = False
        for call, result in zip(calls, results, strict=True):
            print_ = fingerprint(call, result)
            findings += self._count_loop(print_, call.tool)
            findings += self._count_errors(result.is_error)
            findings += self._count_violations(self._is_malformed(call))
            has_news = self._is_news(print_, result) or has_news
        if results:
            findings += self._count_stale(has_news)
        first: dict[Kind, Finding] = {}
        for finding in findings:
            first.setdefault(finding.kind, finding)
        return list(first.values())

    def answered(self, *, is_accepted: bool) -> list[Finding]:
        """An answer was given and accepted, or refused for what its schema says."""
        return self._count_violations(not is_accepted)

    def _count_loop(self, print_: bytes, tool: str) -> list[Finding]:
        rules = self._rules
        self._recent.append(print_)
        count = self._recent.count(print_)
        if rules.loop.do == "off" or count < rules.loop.after:
            return []
        others = [known for known in self._recent if known != print_]
        self._recent.clear()
        self._recent.extend(others)
        return [Finding(kind="loop", do=rules.loop.do, count=count, tool=tool)]

    def _is_news(self, print_: bytes, result: ToolResult) -> bool:
        is_known = print_ in self._seen
        self._seen[print_] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return not (is_known or result.is_error)

    def _count_stale(self, has_news: bool) -> list[Finding]:
        rules = self._rules
        self._stale_steps = 0 if has_news else self._stale_steps + 1
        if rules.no_progress.do == "off" or self._stale_steps < rules.no_progress.after:
            return []
        count, self._stale_steps = self._stale_steps, 0
        return [Finding(kind="no_progress", do=rules.no_progress.do, count=count)]

    def _count_errors(self, is_error: bool) -> list[Finding]:
        rules = self._rules
        self._errors = self._errors + 1 if is_error else 0
        if rules.tool_errors.do == "off" or self._errors < rules.tool_errors.after:
            return []
        count, self._errors = self._errors, 0
        return [Finding(kind="tool_errors", do=rules.tool_errors.do, count=count)]

    def _count_violations(self, is_wrong: bool) -> list[Finding]:
        rules = self._rules
        self._violations = self._violations + 1 if is_wrong else 0
        if rules.schema_violations.do == "off" or self._violations < rules.schema_violations.after:
            return []
        count, self._violations = self._violations, 0
        return [Finding(kind="schema_violations", do=rules.schema_violations.do, count=count)]


def worst_of(findings: Sequence[Finding]) -> Finding | None:
    """The one whose response is the most drastic; the first of equals."""
    return max(findings, key=lambda finding: SEVERITY[finding.do], default=None)


def fingerprint(call: ToolCall, result: ToolResult) -> bytes:
    """What makes a call the same as an earlier one: tool, arguments, result, and whether it failed."""
    digest = blake2b(digest_size=16)
    for part in (call.tool, _canonical(call.arguments), _PASSING.sub("…", result.text), str(result.is_error)):
        data = part.encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def _canonical(arguments: str) -> str:
    """The arguments without what does not matter in JSON."""
    try:
        value = msgspec.json.decode(arguments.encode("utf-8", "replace"))
        return msgspec.json.encode(value, order="deterministic").decode()
    except (msgspec.DecodeError, RecursionError, ValueError):
        return arguments


def deeds(messages: Iterable[Message], *, harmless: frozenset[str], limit: int) -> list[str]:
    """The newest calls that may have changed something, one line each: what a model that begins anew must know."""
    counted: Counter[str] = Counter()
    for message in messages:
        if isinstance(message, AssistantMessage):
            for block in message.blocks:
                if isinstance(block, ToolCall) and block.tool not in harmless:
                    counted[f"{block.tool} {block.arguments[:200]}"] += 1
        elif isinstance(message, UserMessage) and message.stands_for:
            counted["(what the summary tells)"] += 1
    lines = [line if count == 1 else f"{line} ({count} times)" for line, count in counted.items()]
    return lines[-limit:]
