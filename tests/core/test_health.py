"""Behavioural health: what counts as getting nowhere, exactly, and that a later incarnation finds the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ottod.core.answer import complaint_note
from ottod.core.health import WINDOW_FACTOR, Finding, HealthWatch, deeds, fingerprint, worst_of
from ottod.protocol.model import AssistantMessage, Message, Text, ToolCall, ToolResult, ToolResults, UserMessage
from ottod.protocol.specs import Health, LoopRule, ProgressRule, ToolErrorRule, ViolationRule

OFF = Health(
    loop=LoopRule(do="off"),
    no_progress=ProgressRule(do="off"),
    tool_errors=ToolErrorRule(do="off"),
    schema_violations=ViolationRule(do="off"),
)
Deed = tuple[str, str, str, bool]


def deed(deed: Deed, name: str = "c") -> tuple[ToolCall, ToolResult]:
    tool, arguments, text, is_error = deed
    return ToolCall(call=name, tool=tool, arguments=arguments), ToolResult(
        call=name, tool=tool, text=text, is_error=is_error
    )


def step(watch: HealthWatch, *deeds: Deed) -> list[str]:
    calls, results = zip(*map(deed, deeds), strict=True)
    return [finding.kind for finding in watch.step(calls, results)]


def test_the_same_call_with_the_same_result() -> None:
    """Four times, alone or with others in between, is a loop; another result or other arguments are not."""
    watch = HealthWatch(Health())
    assert [step(watch, ("t", "{}", "same", False)) for _ in range(4)] == [[], [], [], ["loop"]]
    assert [step(watch, ("t", "{}", "same", False)) for _ in range(4)] == [[], [], [], ["loop"]]
    watch.begin_turn()
    for n in range(8):
        found = step(watch, ("t", "{}", "same", False), ("u", "{}", f"{n} of 8", False))
        assert found == (["loop"] if n % 4 == 3 else [])
    watch.begin_turn()
    assert not any(step(watch, ("t", "{}", f"number {n}", False)) for n in range(20))
    assert not any(step(watch, ("t", f'{{"n": {n}}}', "same", False)) for n in range(11))


def test_a_repetition_is_forgotten_in_time() -> None:
    """A file that is read again now and then in a long turn is no loop."""
    watch = HealthWatch(Health())
    for n in range(100):
        tool = "fs_read" if n % (WINDOW_FACTOR + 2) == 0 else f"t{n}"
        assert step(watch, (tool, "{}", "same", False)) == []


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (("t", '{"a": 1, "b": 2}', "x", False), ("t", '{"b":2,"a":1}', "x", False), True),
        (("t", "{", "x", False), ("t", "{ ", "x", False), False),
        (("t", "{}", "1 failed in 0.12s", False), ("t", "{}", "1 failed in 3.4 s", False), True),
        (("t", "{}", "at 12:03:44: no", False), ("t", "{}", "at 12:04:01: no", False), True),
        (("t", "{}", "took 12ms, 5 left", False), ("t", "{}", "took 90ms, 4 left", False), False),
        (("t", "{}", "x", False), ("t", "{}", "x", True), False),
        (("t", "{}", "x", False), ("u", "{}", "x", False), False),
        (("t", '{"a":1}', "", False), ("t", "{}", '"a":1', False), False),
    ],
)
def test_what_is_the_same(one: Deed, other: Deed, is_same: bool) -> None:
    """Spelling of JSON, durations and times of day do not count; everything else does."""
    assert (fingerprint(*deed(one)) == fingerprint(*deed(other))) == is_same


def test_no_progress_is_no_news() -> None:
    """News is a success with a combination of tool, arguments and result that the turn has not had; a step has news
    if one of its calls has."""
    watch = HealthWatch(replace(OFF, no_progress=ProgressRule(after=3)))
    assert step(watch, ("a", "{}", "x", False)) == []
    assert step(watch, ("b", "{}", "x", False)) == []
    stale = [("a", "{}", "x", False), ("b", "{}", "new", True)]
    assert [step(watch, *stale) for _ in range(2)] == [[], []]
    assert step(watch, stale[0], ("a", "{}", "y", False)) == []
    assert [step(watch, *stale) for _ in range(3)] == [[], [], ["no_progress"]]


def test_a_streak_of_errors_is_of_calls() -> None:
    """Calls of one step count in their order; one success ends the streak."""
    watch = HealthWatch(replace(OFF, tool_errors=ToolErrorRule(after=3)))
    bad, good = ("a", "{}", "no", True), ("a", "{}", "yes", False)
    assert step(watch, bad, bad, good) == [] and step(watch, bad, bad) == []
    assert step(watch, bad) == ["tool_errors"]
    assert step(watch, bad, bad) == [] and step(watch, good) == [] and step(watch, bad, bad) == []


def test_violations_are_of_arguments_and_answers() -> None:
    """A call that its tool does not take and an answer that the schema refuses make one streak."""
    watch = HealthWatch(
        replace(OFF, schema_violations=ViolationRule(after=3)),
        is_malformed=lambda call: call.arguments == "{",
    )
    assert step(watch, ("a", "{", "no", True)) == [] and watch.answered(is_accepted=False) == []
    (finding,) = watch.answered(is_accepted=False)
    assert (finding.kind, finding.count) == ("schema_violations", 3)
    assert watch.answered(is_accepted=False) == [] and step(watch, ("a", "{}", "", False)) == []
    assert watch.answered(is_accepted=False) == [] and watch.answered(is_accepted=False) == []


def test_the_most_drastic_response_counts() -> None:
    """Of several findings the one that stops comes before the one that warns; off is never found."""
    rules = Health(loop=LoopRule(after=2, do="warn"), tool_errors=ToolErrorRule(after=2, do="stop"))
    watch = HealthWatch(rules)
    step(watch, ("a", "{}", "no", True))
    findings = watch.step(*zip(deed(("a", "{}", "no", True)), strict=True))
    assert {f.kind for f in findings} == {"loop", "tool_errors"}
    worst = worst_of(findings)
    assert worst is not None and worst.kind == "tool_errors" and worst_of([]) is None
    watch = HealthWatch(OFF)
    assert not any(step(watch, ("a", "{", "no", True)) for _ in range(50))


@pytest.mark.parametrize("kind", ["loop", "no_progress", "tool_errors", "schema_violations"])
def test_each_finding_can_be_told(kind: str) -> None:
    """One line for people, and what the model is told begins with it."""
    finding = Finding(kind=kind, do="warn", count=5, tool="shell")  # type: ignore[arg-type]
    assert "5" in finding.message and finding.note.lower().startswith(f"[{finding.message.lower()}")


def test_what_may_have_changed_something_is_told() -> None:
    """The newest calls of tools that are not harmless, each once, with how often."""
    calls = [("fs_read", "{}"), ("shell", '{"command":"make"}'), ("shell", '{"command":"make"}'), ("fs_write", "{}")]
    messages = [AssistantMessage(blocks=(ToolCall(call="c", tool=t, arguments=a),)) for t, a in calls]
    told = deeds(messages, harmless=frozenset({"fs_read"}), limit=5)
    assert told == ['shell {"command":"make"} (2 times)', "fs_write {}"]
    assert deeds(messages, harmless=frozenset(), limit=1) == ["fs_write {}"]


# ---------------------------------------------------------------- against a naive watch


DEEDS = st.tuples(st.sampled_from("ab"), st.sampled_from(["{}", "{"]), st.sampled_from(["x", "y"]), st.booleans())
RULES = st.builds(
    Health,
    loop=st.builds(LoopRule, after=st.integers(2, 4), do=st.sampled_from(["warn", "off"])),
    no_progress=st.builds(ProgressRule, after=st.integers(1, 4)),
    tool_errors=st.builds(ToolErrorRule, after=st.integers(1, 4)),
    schema_violations=st.builds(ViolationRule, after=st.integers(1, 4)),
)
Moment = list[Deed] | bool
"""The calls of a step, or whether an answer was accepted."""


class Naive:
    """The same definitions, read off the whole history each time."""

    def __init__(self, rules: Health) -> None:
        self.rules = rules
        self.calls: list[Deed] = []
        self.steps: list[bool] = []
        self.fits: list[bool] = []
        self.errors: list[bool] = []
        self.seen: list[Deed] = []

    def step(self, deeds: list[Deed]) -> set[str]:
        found: set[str] = set()
        has_news = False
        for one in deeds:
            has_news = has_news or (not one[3] and one not in self.seen)
            self.seen.append(one)
            found |= self._loop(one)
            self.errors.append(one[3])
            found |= self._streak("tool_errors", self.errors, self.rules.tool_errors.after)
            found |= self.answer(one[1] != "{")
        self.steps.append(not has_news)
        return found | self._streak("no_progress", self.steps, self.rules.no_progress.after)

    def answer(self, is_accepted: bool) -> set[str]:
        self.fits.append(not is_accepted)
        return self._streak("schema_violations", self.fits, self.rules.schema_violations.after)

    def _loop(self, one: Deed) -> set[str]:
        rule = self.rules.loop
        self.calls = [*self.calls, one][-WINDOW_FACTOR * rule.after :]
        if rule.do == "off" or self.calls.count(one) < rule.after:
            return set()
        self.calls = [known for known in self.calls if known != one]
        return {"loop"}

    @staticmethod
    def _streak(kind: str, history: list[bool], after: int) -> set[str]:
        if history[-after:] != [True] * after:
            return set()
        history.clear()
        return {kind}


@given(RULES, st.lists(st.lists(DEEDS, min_size=1, max_size=4) | st.booleans(), max_size=25))
def test_the_watch_agrees_with_the_naive_one(rules: Health, moments: Sequence[Moment]) -> None:
    """Whatever happens, the same kinds are found at the same moments."""
    watch, naive = HealthWatch(rules, is_malformed=lambda call: call.arguments == "{"), Naive(rules)
    for moment in moments:
        if isinstance(moment, bool):
            assert {f.kind for f in watch.answered(is_accepted=moment)} == naive.answer(moment)
        else:
            calls, results = zip(*map(deed, moment), strict=True)
            assert {f.kind for f in watch.step(calls, results)} == naive.step(moment)


@given(RULES, st.lists(st.lists(DEEDS, min_size=1, max_size=3) | st.just(False), max_size=20), st.integers(0, 20))
def test_an_incarnation_goes_on_where_the_last_one_was(rules: Health, moments: Sequence[Moment], cut: int) -> None:
    """A watch that is told the conversation finds from then on what the one that was there would have found."""

    def malformed(call: ToolCall) -> bool:
        return call.arguments == "{"

    first = HealthWatch(rules, is_malformed=malformed)
    messages: list[Message] = [UserMessage(text="task")]
    found: list[list[Finding]] = []
    for n, moment in enumerate(moments):
        if n == cut:
            second = HealthWatch(rules, is_malformed=malformed)
            second.replay(messages)
            first = second
        if isinstance(moment, bool):
            found.append(first.answered(is_accepted=False))
            messages += [AssistantMessage(blocks=(Text(text="?"),)), UserMessage(text=complaint_note("no"))]
        else:
            calls, results = zip(*(deed(d, f"c{n}-{i}") for i, d in enumerate(moment)), strict=True)
            found.append(first.step(calls, results))
            messages += [AssistantMessage(blocks=calls), ToolResults(results=results)]
    undisturbed = HealthWatch(rules, is_malformed=malformed)
    for n, moment in enumerate(moments):
        if isinstance(moment, bool):
            assert found[n] == undisturbed.answered(is_accepted=False)
        else:
            calls, results = zip(*(deed(d, f"c{n}-{i}") for i, d in enumerate(moment)), strict=True)
            assert found[n] == undisturbed.step(calls, results)
