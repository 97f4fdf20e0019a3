"""The example configuration for Prometheus speaks of what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ottod.settings.sections import GatewaySettings
from ottod.telemetry.catalogue import METRICS

PACKAGING = Path(__file__).parents[2] / "packaging" / "prometheus"
PROMTOOL = shutil.which("promtool")
RULES = [
    rule for group in yaml.safe_load((PACKAGING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rules_use_metrics_and_labels_that_exist(rule: dict[str, str]) -> None:
    """Every metric of an expression is in the table, and so is every value that a label is compared with."""
    known = {metric.exposed_name for metric in METRICS}
    known |= {m.name + ending for m in METRICS if m.kind == "histogram" for ending in ("_bucket", "_sum", "_count")}
    used = set(re.findall(r"\botto_\w+", rule["expr"]))
    assert used or "up{" in rule["expr"]
    assert used <= known
    values = {value for metric in METRICS for label in metric.labels for value in label.values} | {"otto"}
    assert set(re.findall(r'="(\w+)"', rule["expr"])) <= values


def test_the_scrape_config_has_the_default_port() -> None:
    """Who copies it needs to change nothing."""
    (job,) = yaml.safe_load((PACKAGING / "scrape.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{GatewaySettings().host}:{GatewaySettings().port}"]}]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(("what", "name"), [("rules", "alerts.yml"), ("config", "scrape.yml")])
def test_promtool_accepts_them(what: str, name: str) -> None:
    """Prometheus would load both files."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", what, PACKAGING / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
