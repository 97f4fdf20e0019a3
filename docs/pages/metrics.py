"""The metrics reference: the table that root fills."""

from __future__ import annotations

from ottod.settings.sections import GatewaySettings
from ottod.telemetry.catalogue import MAX_SERIES, METRICS, Label, Metric
from pages.common import NOTICE, cell


def metrics_page() -> str:
    """Every metric with its kind, its labels and what it says."""
    rows = "\n".join(_row(metric) for metric in METRICS)
    port = GatewaySettings().port
    return f"""{NOTICE}
# Metrics

The gateway, a process of its own beside root, serves them over HTTP:

| path | answer |
|---|---|
| `/metrics` | the metrics, as OpenMetrics if asked for, else as Prometheus text; 503 when root does not answer |
| `/healthz` | 200 if the gateway lives and root answers, else 503 |
| `/readyz` | 200 if new sessions can be started too, else 503 |

It is off until you say otherwise in `~/.config/otto/otto.yml`:

<!-- check: settings -->
```yaml
gateway:
  enabled: true
```

Then Prometheus finds the metrics at `http://127.0.0.1:{port}/metrics`; [the configuration](configuration.md#gateway)
has the other keys. A scrape config and alert rules are in
[packaging/prometheus](../../packaging/prometheus/README.md).

Why it is off: a port on localhost can be reached by every user and every program of the machine, and there is no
login. What they could read are numbers: no session, agent, path or text is among them, and no request changes
anything. A web page that makes its own name mean this machine (DNS rebinding) is refused by its Host header. With
`socket: true` and `port: 0` there is no port at all: `curl --unix-socket` reads the metrics from `gateway.sock` in
the runtime directory, which only you can enter.

The numbers are at most a second old, however many scrape. While root is away `/metrics` says so at once with 503, and
Prometheus' own `up` is 0; a gateway whose root does not return goes after a while, and `up` stays 0. Counters start
anew with each root.

## All metrics

Labels have closed sets of values; what users can make more of (sessions, agents, models) is never a label. One daemon
makes at most {MAX_SERIES} series.

| name | kind | labels | meaning |
|---|---|---|---|
{rows}
"""


def _row(metric: Metric) -> str:
    labels = "; ".join(_label(label) for label in metric.labels)
    return f"| `{metric.exposed_name}` | {metric.kind} | {labels} | {cell(metric.help)} |"


def _label(label: Label) -> str:
    if label.values:
        return f"`{label.name}`: {', '.join(label.values)}"
    return f"`{label.name}`" if label.at_most == 1 else f"`{label.name}`: at most {label.at_most}"
