"""Metrics as Prometheus reads them."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ottod.gateway.exposition import choose_format, render
from ottod.protocol.results import MetricFamily, MetricsReport, Sample
from ottod.telemetry.catalogue import MAX_SERIES, METRICS
from tests.gateway.reports import full_report

PROMTOOL = shutil.which("promtool")
PROMETHEUS_ASKS = (
    "application/openmetrics-text; version=1.0.0,application/openmetrics-text; version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


def test_what_goes_in_comes_out() -> None:
    """Read back, every sample of the report is there with its labels and value, in both formats, and nothing else."""
    report = full_report()
    expected = samples_of(report)
    assert len(expected) <= MAX_SERIES
    for parse, form in ((parse_text, "text"), (parse_openmetrics, "openmetrics")):
        text = render(report, form).decode()  # type: ignore[arg-type]
        found = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in parse(text) for s in family.samples}
        assert found == expected, form


def samples_of(report: MetricsReport) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper must see, written down without the library."""
    found = {}
    ending = {"counter": "_total", "gauge": "", "info": "_info"}
    for family in report.families:
        for s in family.samples:
            labels = tuple(sorted(s.labels.items()))
            if family.kind != "histogram":
                found[family.name + ending[family.kind], labels] = s.value
                continue
            for bound, count in s.buckets:
                shown = "+Inf" if bound == float("inf") else str(bound)
                found[family.name + "_bucket", tuple(sorted((*labels, ("le", shown))))] = count
            found[family.name + "_sum", labels] = s.value
            found[family.name + "_count", labels] = s.count
    return found


def test_every_metric_of_the_table_is_exposed() -> None:
    """The report for tests is complete, so that the checks on it are checks on the table."""
    assert {family.name for family in full_report().families} == {metric.name for metric in METRICS}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_wrong() -> None:
    """`promtool check metrics` accepts names, kinds and help without a word."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=render(full_report(), "text"), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_would_find_something_wrong() -> None:
    """The check can fail: a counter without help is reported."""
    assert PROMTOOL is not None
    family = MetricFamily(name="Bad_milliseconds", kind="gauge", help="", samples=(Sample(value=1),))
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=render(MetricsReport(families=(family,)), "text"),
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "text"),
        ("*/*", "text"),
        ("text/plain;version=0.0.4", "text"),
        (PROMETHEUS_ASKS, "openmetrics"),
        ("application/openmetrics-text", "openmetrics"),
        ("APPLICATION/OpenMetrics-Text ; version=1.0.0", "openmetrics"),
        ("application/openmetrics-text; q=0, text/plain", "text"),
        ("application/openmetrics-text;q=0.0", "text"),
        ("application/openmetrics-text; version=neither", "openmetrics"),
        (";;,=;q=;application/openmetrics-text", "text"),
    ],
)
def test_the_format_is_the_scrapers_choice(accept: str, form: str) -> None:
    """OpenMetrics for those who name it, the plain format for all others."""
    assert choose_format(accept) == form


@given(st.text())
def test_no_accept_header_is_too_odd(accept: str) -> None:
    """Whatever it says, there is an answer."""
    assert choose_format(accept) in ("text", "openmetrics")
