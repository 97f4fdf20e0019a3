"""What is said to a turn's model about how it goes on: the answer that is asked for, and the ways of getting nowhere.

The turn machine asks after each step and after each answer. A *verdict* has notes that go to the model before its
next call, a failure that ends the turn, or the order to begin the turn's work anew; mostly it has nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ottod.core.answer import complaint_note, instruction, is_complaint, read_answer
from ottod.core.health import Finding, HealthWatch, deeds, worst_of
from ottod.errors import Failure
from ottod.protocol.model import Message, ToolCall, ToolResult, UserMessage
from ottod.protocol.specs import AgentSpec

SENDER = "otto"
"""Whose messages a turn's notes are."""
MAX_DEEDS = 30
"""Calls of the first attempt that the second one is told of."""


def system_prompt(spec: AgentSpec) -> str:
    """What the model is told before anything else: the agent's prompt, and what its answer must be."""
    if not spec.output_schema:
        return spec.system_prompt
    return f"{spec.system_prompt.rstrip()}\n\n{instruction(spec.output_schema)}".lstrip()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What follows for the turn: notes, or a failure, or `anew`: what the model is told as it begins anew."""

    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    failure: Failure | None = None
    anew: str = ""


NOTHING = Verdict()


class Conduct:
    """The rules of one agent, applied to one turn at a time."""

    def __init__(
        self,
        spec: AgentSpec,
        *,
        is_malformed: Callable[[ToolCall], bool] = lambda call: False,
        harmless: frozenset[str] = frozenset(),
    ) -> None:
        self._schema = spec.output_schema
        self._retries = spec.output_retries
        self._watch = HealthWatch(spec.health, is_malformed=is_malformed)
        self._harmless = harmless
        self._refused = 0
        self._is_anew = False

    def begin_turn(self, messages: Sequence[Message] = (), *, is_anew: bool = False) -> None:
        """A turn begins, or goes on with these messages behind it. `is_anew`: this is its second attempt."""
        self._watch.replay(messages)
        self._refused = sum(isinstance(m, UserMessage) and is_complaint(m) for m in messages)
        self._is_anew = is_anew

    def stepped(self, calls: Sequence[ToolCall], results: Sequence[ToolResult], turn: Sequence[Message]) -> Verdict:
        """The calls of a step have their results, and are the newest of the turn's messages."""
        return self._verdict(self._watch.step(calls, results), turn)

    def answered(self, text: str, turn: Sequence[Message]) -> Verdict:
        """The model has given what it takes for its last word."""
        return self._judged(text, turn, ())

    def handed_back(
        self, text: str, calls: Sequence[ToolCall], results: Sequence[ToolResult], turn: Sequence[Message]
    ) -> Verdict:
        """A call's result is to be the turn's last word: that of whom the conversation was handed over to."""
        return self._judged(text, turn, self._watch.step(calls, results))

    def _judged(self, text: str, turn: Sequence[Message], before: Sequence[Finding]) -> Verdict:
        """A last word, behind what was found in the step before it. One that is accepted ends the turn."""
        if not self._schema:
            return NOTHING
        complaint = read_answer(text, self._schema).complaint
        findings = [*before, *self._watch.answered(is_accepted=not complaint)]
        if not complaint:
            return NOTHING
        if self._refused >= self._retries:
            times = f"{self._refused + 1} times" if self._refused else "once"
            return Verdict(
                findings=tuple(findings),
                failure=Failure(
                    code="bad_output",
                    message=f"the answer is not what output_schema asks for ({times}): {complaint}",
                    mend="say in the prompt what is wanted, loosen the schema, or raise output_retries",
                ),
            )
        self._refused += 1
        verdict = self._verdict(findings, turn)
        return msgspec.structs.replace(verdict, notes=(complaint_note(complaint), *verdict.notes))

    def _verdict(self, findings: Sequence[Finding], turn: Sequence[Message]) -> Verdict:
        worst = worst_of(findings)
        if worst is None:
            return NOTHING
        found = tuple(findings)
        if worst.do == "stop" or (worst.do == "restart" and self._is_anew):
            again = ", again after the turn had begun anew" if worst.do == "restart" else ""
            failure = Failure(
                code="unhealthy",
                message=f"{worst.message}{again}",
                mend=f"look at what it did with `ottoctl logs`; health.{worst.kind} of the agent says what is done",
            )
            return Verdict(findings=found, failure=failure)
        if worst.do == "restart":
            return Verdict(findings=found, anew=self._anew_note(worst, turn))
        return Verdict(findings=found, notes=tuple(finding.note for finding in findings))

    def _anew_note(self, finding: Finding, turn: Sequence[Message]) -> str:
        done = "\n".join(f"- {line}" for line in deeds(turn, harmless=self._harmless, limit=MAX_DEEDS))
        told = f"What it did stays done:\n{done}\n" if done else "It changed nothing.\n"
        return (
            f"[An earlier attempt at this was broken off: {finding.message}. {told}Begin anew, and otherwise: first "
            "find out how things stand, then take one small step at a time. You have fewer steps than before; if you "
            "cannot get further, say plainly what is missing and end.]"
        )
