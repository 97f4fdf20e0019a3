"""What root counts, and the table that says what may be counted."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.protocol.cause import CauseKind
from ottod.protocol.events import SessionState
from ottod.protocol.results import MetricFamily, Sample
from ottod.protocol.usage import Usage
from ottod.telemetry.catalogue import BY_NAME, CAUSES, LIVE_STATES, MAX_MODELS, MAX_SERIES, METRICS, Metric, Report
from ottod.telemetry.instruments import Histogram, Instruments

UNBOUNDED = {"session", "session_id", "pid", "path", "agent", "client", "title", "task"}
MAX_SANE_SERIES = 1500


def read(instruments: Instruments) -> dict[str, MetricFamily]:
    report = Report()
    instruments.read(report)
    return {family.name: family for family in report.finish().families}


def sample(instruments: Instruments, name: str, **labels: str) -> Sample:
    (found,) = [s for s in read(instruments)[name].samples if s.labels == labels]
    return found


def test_every_event_is_counted_where_it_belongs() -> None:
    """Each method moves its own metric by what happened, and no other."""
    instruments = Instruments()
    before = {name: family.samples for name, family in read(instruments).items()}
    instruments.session_started()
    instruments.session_started()
    instruments.session_exited("memory")
    instruments.incarnation_exited("hung")
    instruments.restarted("crashed")
    instruments.memory_killed()
    instruments.parked()
    instruments.warned("unhealthy_loop")
    instruments.warned("unhealthy_whatever")
    instruments.warned("loop")
    instruments.adopted(7)
    instruments.journal_fsyncs(3, 1_500_000_000)
    assert sample(instruments, "otto_sessions_started").value == 2
    assert sample(instruments, "otto_sessions_ended", cause="memory").value == 1
    assert sample(instruments, "otto_incarnations_exited", cause="hung").value == 1
    assert sample(instruments, "otto_restarts", cause="crashed").value == 1
    assert sample(instruments, "otto_memory_kills").value == 1
    assert sample(instruments, "otto_sessions_parked").value == 1
    assert sample(instruments, "otto_unhealthy_findings", kind="loop").value == 1
    assert sample(instruments, "otto_sessions_adopted").value == 7
    instruments.permit_granted()
    instruments.permit_refused()
    instruments.message("inbox_full")
    instruments.model_called("p:m", Usage(input_tokens=3, output_tokens=4, usd_micros=1_500_000, calls=1))
    instruments.budget_overshot(9, 2_000_000)
    assert sample(instruments, "otto_permits", outcome="granted").value == 1
    assert sample(instruments, "otto_messages", outcome="inbox_full").value == 1
    assert sample(instruments, "otto_model_calls", model="p:m").value == 1
    assert sample(instruments, "otto_model_tokens", model="p:m", kind="output").value == 4
    assert sample(instruments, "otto_model_usd", model="p:m").value == 1.5
    assert sample(instruments, "otto_budget_overshoot_tokens").value == 9
    assert sample(instruments, "otto_budget_overshoot_usd").value == 2
    assert sample(instruments, "otto_journal_fsyncs").value == 3
    assert sample(instruments, "otto_journal_fsync_seconds").value == 1.5
    changed = {name for name, family in read(instruments).items() if family.samples != before.get(name)}
    by_model = {"otto_model_calls", "otto_model_tokens", "otto_model_usd"}
    assert changed == (set(before) | by_model) - {"otto_spawn_seconds", "otto_ring_fsync_seconds"}


def test_only_so_many_models_are_told_apart() -> None:
    """The others are counted together, however many there are."""
    instruments = Instruments()
    for number in range(3 * MAX_MODELS):
        instruments.model_called(f"p:{number}", Usage(output_tokens=1, calls=1))
    samples = read(instruments)["otto_model_calls"].samples
    assert len(samples) == MAX_MODELS
    assert sum(s.value for s in samples) == 3 * MAX_MODELS
    assert sample(instruments, "otto_model_calls", model="other").value == 2 * MAX_MODELS + 1


def test_causes_are_all_there_from_the_beginning() -> None:
    """A cause that has not happened is 0, not absent: a rate needs a first value."""
    families = read(Instruments())
    for name in ("otto_sessions_ended", "otto_incarnations_exited", "otto_restarts"):
        assert [(s.labels["cause"], s.value) for s in families[name].samples] == [(c, 0.0) for c in CAUSES]


@pytest.mark.parametrize(("count", "took_ns"), [(-1, 5), (0, 5), (2, -5)])
def test_a_lying_worker_cannot_turn_a_counter_back(count: int, took_ns: int) -> None:
    """Numbers from a worker that would make a counter go down are ignored."""
    instruments = Instruments()
    instruments.journal_fsyncs(4, 40)
    instruments.journal_fsyncs(count, took_ns)
    assert sample(instruments, "otto_journal_fsyncs").value == 4
    assert sample(instruments, "otto_journal_fsync_seconds").value == 40 / 1e9


def test_a_failed_sync_is_timed_too() -> None:
    """What the sync gives or raises passes through, and both are observed."""
    instruments = Instruments()

    def fails() -> int:
        raise OSError(5, "Input/output error")

    assert instruments.time_ring_sync(lambda: 42) == 42
    with pytest.raises(OSError, match="Input/output"):
        instruments.time_ring_sync(fails)
    assert sample(instruments, "otto_ring_fsync_seconds").count == 2


@given(st.lists(st.one_of(st.floats(0, 20), st.sampled_from(BY_NAME["otto_spawn_seconds"].buckets))))
def test_histograms_agree_with_a_naive_count(values: list[float]) -> None:
    """A cumulative bucket holds exactly the values up to its bound; the last one holds all."""
    instruments = Instruments()
    for value in values:
        instruments.spawn_seconds(value)
    found = sample(instruments, "otto_spawn_seconds")
    for bound, count in found.buckets:
        assert count == sum(value <= bound for value in values), bound
    assert found.buckets[-1] == (float("inf"), len(values))
    assert found.count == len(values)
    assert found.value == pytest.approx(sum(values))


def test_a_bound_belongs_to_its_bucket() -> None:
    """`le` means less or equal."""
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.counts == [1, 1, 1]


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_the_table_follows_the_rules_of_names(metric: Metric) -> None:
    """Prefix, unit last, no ending that the kind adds; a help sentence; buckets in order, for histograms only."""
    assert re.fullmatch(r"otto_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert not metric.name.endswith(("_total", "_info", "_count", "_sum", "_bucket", "_ms", "_ns"))
    assert metric.help.endswith(".")
    assert "\n" not in metric.help
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_no_label_is_open() -> None:
    """Nothing that users make more of is a label; the whole is bounded, and small."""
    labels = [label for metric in METRICS for label in metric.labels]
    assert not {label.name for label in labels} & UNBOUNDED
    assert all(label.values or label.at_most <= 32 for label in labels)
    assert len(BY_NAME) == len(METRICS)
    assert sum(metric.max_series for metric in METRICS) == MAX_SERIES <= MAX_SANE_SERIES


def test_states_and_causes_are_those_of_the_protocol() -> None:
    """A state or cause that the protocol gains is counted without anybody thinking of it."""
    assert set(LIVE_STATES) == set(get_args(SessionState)) - {"ended"}
    assert get_args(CauseKind) == CAUSES


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("otto_sessions", {"state": "s-0123456789"}),
        ("otto_sessions", {"state": "running", "session": "s-0123456789"}),
        ("otto_sessions", {}),
        ("otto_clients", {"client": "ottoctl"}),
        ("otto_nothing", {}),
    ],
)
def test_a_report_refuses_what_is_not_in_the_table(name: str, labels: dict[str, str]) -> None:
    """An unknown metric, an unknown label, a missing one and a value outside the set are errors."""
    with pytest.raises(ValueError, match="otto_"):
        Report().put(name, 1, **labels)


def test_a_report_refuses_more_names_than_the_bound() -> None:
    """A label whose values are names from the code cannot grow beyond its bound either."""
    report = Report()
    bound = BY_NAME["otto_isolation_layer"].max_series
    for i in range(bound):
        report.put("otto_isolation_layer", 1, layer=f"layer-{i}")
    with pytest.raises(ValueError, match=f"more than {bound} series"):
        report.put("otto_isolation_layer", 1, layer="one too many")
