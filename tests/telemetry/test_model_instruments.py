"""What agents take, as root counts it: each event once, by bounded names, whatever a worker claims."""

from __future__ import annotations

import pytest

from ottod.errors import Failure
from ottod.protocol import events as ev
from ottod.protocol.results import MetricFamily, PendingApproval, Sample, SessionInfo
from ottod.protocol.usage import Usage
from ottod.telemetry.catalogue import MAX_MODELS, OTHER, Report
from ottod.telemetry.model_instruments import OUTCOME_OF_CODE, ModelInstruments

INFO = SessionInfo(session="s-0123456789", agent="a", model="m", state="running")


def read(instruments: ModelInstruments) -> dict[str, MetricFamily]:
    report = Report()
    instruments.read(report)
    return {family.name: family for family in report.finish().families}


def sample(instruments: ModelInstruments, name: str, **labels: str) -> Sample:
    (found,) = [s for s in read(instruments)[name].samples if s.labels == labels]
    return found


def used(model: str, *, duration_ms: int = 1500, first_token_ms: int | None = 300, calls: int = 1) -> ev.UsageUpdated:
    return ev.UsageUpdated(
        provider="p",
        model=model,
        usage=Usage(calls=calls),
        total=Usage(),
        duration_ms=duration_ms,
        first_token_ms=first_token_ms,
    )


def test_model_calls_are_timed_by_model() -> None:
    """Seconds of the whole and of the first piece; a resumed session's summary is no call; a script has no path."""
    instruments = ModelInstruments()
    for event in (used("m"), used("m", first_token_ms=None), used("/home/u/x.yml"), used("n", calls=0)):
        instruments.observe(INFO, event, 0)
    whole = sample(instruments, "otto_model_call_seconds", model="p:m")
    assert (whole.count, whole.value) == (2, 3.0)
    assert sample(instruments, "otto_model_first_token_seconds", model="p:m").count == 1
    assert {s.labels["model"] for s in read(instruments)["otto_model_call_seconds"].samples} == {"p:m", "p:script"}


def test_models_are_bounded() -> None:
    """However many names a worker makes up, there are MAX_MODELS series, and nothing is lost."""
    instruments = ModelInstruments()
    for i in range(10 * MAX_MODELS):
        instruments.observe(INFO, used(f"model-{i}"), 0)
    samples = read(instruments)["otto_model_call_seconds"].samples
    assert len(samples) == MAX_MODELS
    assert sum(s.count for s in samples) == 10 * MAX_MODELS
    assert sample(instruments, "otto_model_call_seconds", model=OTHER).count == 9 * MAX_MODELS + 1


@pytest.mark.parametrize(("code", "outcome"), [*OUTCOME_OF_CODE.items(), ("tool", "failed"), ("new", "failed")])
def test_tool_calls_by_what_became_of_them(code: str, outcome: str) -> None:
    """By tool and outcome; foreign tools share a name."""
    instruments = ModelInstruments()
    failure = Failure(code=code, message="m")
    instruments.observe(INFO, ev.ToolFailed(call="c", tool="shell", failure=failure, duration_ms=20), 0)
    instruments.observe(INFO, ev.ToolCompleted(call="c", tool="mcp__x__y", duration_ms=-5), 0)
    assert sample(instruments, "otto_tool_calls", tool="shell", outcome=outcome).value == 1
    assert sample(instruments, "otto_tool_calls", tool=OTHER, outcome="completed").value == 1
    assert sample(instruments, "otto_tool_calls", tool="grep", outcome="completed").value == 0
    assert sample(instruments, "otto_tool_call_seconds").value == 0.02


def test_turns_and_waits() -> None:
    """Turns by their end; a wait from the question to the answer, once the question is known."""
    instruments = ModelInstruments()
    instruments.observe(INFO, ev.TurnCompleted(turn=1, duration_ms=2000), 0)
    instruments.observe(INFO, ev.TurnFailed(turn=1, failure=Failure(code="x", message=""), duration_ms=10), 0)
    instruments.observe(INFO, ev.TurnCancelled(turn=1), 0)
    for outcome, seconds in (("completed", 2.0), ("failed", 0.01), ("cancelled", 0.0)):
        found = sample(instruments, "otto_turn_seconds", outcome=outcome)
        assert (found.count, found.value) == (1, seconds)
    asked = PendingApproval(approval="a-1", call="c", tool="shell", asked_at_ns=1_000_000_000)
    waiting = SessionInfo(session="s-0123456789", agent="a", model="m", state="running", approvals=(asked,))
    for approval in ("a-1", "a-2"):
        event = ev.ApprovalResolved(approval=approval, decision="approved")
        instruments.observe(waiting, event, 31_000_000_000)
    found = sample(instruments, "otto_approval_wait_seconds")
    assert (found.count, found.value) == (1, 30.0)


def test_a_worker_cannot_turn_a_counter_back() -> None:
    """Negative and absurd numbers are bounded."""
    instruments = ModelInstruments()
    instruments.observe(INFO, used("m", duration_ms=-5, first_token_ms=-5), 0)
    instruments.observe(INFO, used("m", duration_ms=2**200, first_token_ms=2**200), 0)
    assert 0 <= sample(instruments, "otto_model_call_seconds", model="p:m").value < 1e15
