"""Root's metrics in the two formats that Prometheus reads.

Source: the Prometheus text exposition format 0.0.4, and OpenMetrics 1.0.0, as `prometheus_client` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isinf
from typing import Literal

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from ottod.protocol.results import MetricFamily, MetricsReport

Format = Literal["text", "openmetrics"]

OPENMETRICS = "application/openmetrics-text"
CONTENT_TYPES: dict[Format, str] = {
    "text": CONTENT_TYPE_PLAIN_0_0_4,
    "openmetrics": f"{OPENMETRICS}; version=1.0.0; charset=utf-8",
}


class ReportCollector(Collector):
    """One report, as the library's writers want it."""

    def __init__(self, report: MetricsReport) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        """The report's metrics in their order."""
        return [_family(family) for family in self._report.families]


def render(report: MetricsReport, form: Format) -> bytes:
    """The report as text."""
    collector = ReportCollector(report)
    # The library has types, and these two functions have none.
    write: Callable[[Collector], bytes] = generate_openmetrics if form == "openmetrics" else generate_latest
    return write(collector)


def choose_format(accept: str) -> Format:
    """What an Accept header asks for: OpenMetrics where it is named and not refused, else the plain text format.

    The library's own choice fails on a version that is no number.
    """
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        if kind == OPENMETRICS:
            weights = [word.removeprefix("q=") for word in parameters if word.startswith("q=")]
            if not weights or weights[0].strip("0."):
                return "openmetrics"
    return "text"


def _family(family: MetricFamily) -> Metric:
    labels = list(family.samples[0].labels) if family.samples else []
    match family.kind:
        case "info":
            info = InfoMetricFamily(family.name, family.help)
            for sample in family.samples:
                info.add_metric([], sample.labels)
            return info
        case "histogram":
            histogram = HistogramMetricFamily(family.name, family.help, labels=labels)
            for sample in family.samples:
                buckets = [("+Inf" if isinf(bound) else repr(bound), float(count)) for bound, count in sample.buckets]
                histogram.add_metric([sample.labels[name] for name in labels], buckets, sample.value)
            return histogram
        case "counter":
            plain: CounterMetricFamily | GaugeMetricFamily = CounterMetricFamily(
                family.name, family.help, labels=labels
            )
        case "gauge":
            plain = GaugeMetricFamily(family.name, family.help, labels=labels)
    for sample in family.samples:
        plain.add_metric([sample.labels[name] for name in labels], sample.value)
    return plain
