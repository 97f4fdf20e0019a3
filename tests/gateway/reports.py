"""A report of metrics as root gives it: every metric of the table, made by the code that root uses."""

from __future__ import annotations

from ottod.protocol.events import UsageUpdated
from ottod.protocol.results import MetricsReport, SessionInfo
from ottod.protocol.usage import Usage
from ottod.telemetry.catalogue import METRICS, Report
from ottod.telemetry.instruments import Instruments
from ottod.telemetry.model_instruments import ModelInstruments


def full_report(*, running: int = 3, zygote: bool = True) -> MetricsReport:
    """Every metric of the table, with every value that its labels may have."""
    report = Report()
    instruments = Instruments()
    for seconds in (0.002, 0.004, 20.0):
        instruments.spawn_seconds(seconds)
    instruments.session_exited("memory")
    instruments.model_called("p:m", Usage(input_tokens=7))
    instruments.read(report)
    _models().read(report)
    special = {"otto_zygote_up": float(zygote)}
    for metric in METRICS:
        if metric.kind == "histogram" or metric.name in COUNTED:
            continue
        if metric.kind == "info":
            report.put(metric.name, 1, **{label.name: "1.2.3" for label in metric.labels})
        elif not metric.labels:
            report.put(metric.name, special.get(metric.name, 7.0))
        else:
            (label,) = metric.labels
            for value in label.values or ("files",):
                report.put(metric.name, running if value == "running" else 0, **{label.name: value})
    return report.finish()


def _models() -> ModelInstruments:
    """One model call, so that its metrics are there."""
    models = ModelInstruments()
    info = SessionInfo(session="s-0123456789", agent="a", model="m", state="running")
    used = UsageUpdated(provider="p", model="m", usage=Usage(calls=1), total=Usage(), first_token_ms=300)
    models.observe(info, used, 0)
    return models


def _counted() -> frozenset[str]:
    report = Report()
    instruments = Instruments()
    instruments.model_called("p:m", Usage())
    instruments.read(report)
    _models().read(report)
    return frozenset(family.name for family in report.finish().families)


COUNTED = _counted()
"""Metrics that the instruments give by themselves."""
