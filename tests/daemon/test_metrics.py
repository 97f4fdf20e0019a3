"""Metrics of a real daemon through its real gateway, and a real Prometheus that scrapes them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ottod.isolation.processes import identify, is_alive
from ottod.protocol.specs import AgentSpec
from ottod.telemetry.catalogue import LIVE_STATES, MAX_SERIES, METRICS
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.raw import raw_client
from tests.gateway.rig import fetch, reserved_port, status_of

PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
ON: dict[str, dict[str, object]] = {"gateway": {"enabled": True, "port": 0, "socket": True}}
DEADLINE_S = 90.0

Series = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """A daemon with a gateway on its unix socket."""
    with running_daemon(ON) as started:
        wait_for("the gateway serves", lambda: status_of(socket_of(started), "/metrics") == 200)
        yield started


def socket_of(daemon: RealDaemon) -> Path:
    return daemon.base / "run" / "gateway.sock"


def scraped_text(daemon: RealDaemon) -> str:
    """One scrape. On a busy machine a root that is late is 503 for a moment."""

    def read() -> str:
        answer = fetch(socket_of(daemon), "/metrics")
        return answer.text if answer.status == 200 else ""

    return wait_for("a scrape", read)


def scrape(daemon: RealDaemon) -> dict[Series, float]:
    """Every series of one scrape with its value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(scraped_text(daemon))
        for sample in family.samples
    }


def value(daemon: RealDaemon, name: str, **labels: str) -> float:
    return scrape(daemon)[name, tuple(sorted(labels.items()))]


def wait_value(daemon: RealDaemon, least: float, name: str, **labels: str) -> None:
    """Polls until a metric is at least so much; scrapes are up to a second old."""
    wait_for(f"{name}{labels} >= {least}", lambda: value(daemon, name, **labels) >= least)


def gateway_of(daemon: RealDaemon) -> psutil.Process | None:
    """The gateway that this root started, if it runs."""
    for child in psutil.Process(daemon.pid).children():
        try:
            if "ottod: gateway" in " ".join(child.cmdline()) or "ottod.gateway" in child.cmdline():
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def test_sessions_move_the_metrics(daemon: RealDaemon) -> None:
    """A completed, a crashed and a running session; what they cost in events, syncs and births is there too."""
    (daemon.workdir / "a.txt").write_text("x")
    model = daemon.script("read", {"tools": [{"name": "fs_read", "arguments": {"path": "a.txt"}}]}, {"text": "done"})
    endless = daemon.script("endless", {"stream": {"events": 1_000_000, "rate_hz": 20, "text_bytes": 40}})
    with daemon.client() as otto:
        assert otto.run(spec=daemon.agent(model, "fs_read"), task="go", cwd=daemon.workdir).ok
        victim = otto.start(spec=daemon.agent(endless), task="go", cwd=daemon.workdir)
        pid = wait_for("its worker", lambda: victim.info().pid if victim.info().state == "running" else 0)
        os.kill(pid, signal.SIGKILL)
        assert not victim.wait().ok
        running = otto.start(spec=daemon.agent(endless), task="go", cwd=daemon.workdir)
        wait_value(daemon, 1, "otto_sessions", state="running")
        wait_value(daemon, 1, "otto_sessions_ended_total", cause="completed")
        wait_value(daemon, 1, "otto_sessions_ended_total", cause="crashed")
        wait_value(daemon, 1, "otto_incarnations_exited_total", cause="crashed")
        wait_value(daemon, 3, "otto_sessions_started_total")
        wait_value(daemon, 3, "otto_spawn_seconds_count")
        wait_value(daemon, 1, "otto_journal_fsyncs_total")
        wait_value(daemon, 1, "otto_tool_calls_total", tool="fs_read", outcome="completed")
        wait_value(daemon, 2, "otto_model_call_seconds_count", model="scripted:script")
        wait_value(daemon, 1, "otto_turn_seconds_count", outcome="completed")
        wait_value(daemon, 1, "otto_ring_fsync_seconds_count")
        wait_value(daemon, 10, "otto_events_appended_total")
        found = scrape(daemon)
        running.kill()
    for state in LIVE_STATES:
        assert ("otto_sessions", (("state", state),)) in found
    single = {name: v for (name, labels), v in found.items() if not labels}
    assert single["otto_journal_fsync_seconds_total"] > 0
    assert single["otto_ring_head_offset"] > single["otto_ring_tail_offset"] >= 1
    assert 0 < single["otto_ring_used_bytes"] <= single["otto_ring_size_bytes"]
    assert single["otto_process_resident_memory_bytes"] > 1e6
    assert single["otto_process_open_fds"] < single["otto_process_max_fds"]
    assert single["otto_clients"] >= 1
    assert single["otto_zygote_up"] == single["otto_gateway_up"] == 1
    assert single["otto_zygote_generation"] >= 1
    assert any(name == "otto_build_info" for name, _ in found)
    assert any(name == "otto_isolation_layer" for name, _ in found)


def test_nothing_that_users_name_becomes_a_label(daemon: RealDaemon) -> None:
    """Odd agents, titles, tasks, models and directories: the series after them are those before them."""
    wait_for("the isolation layers", lambda: any(name == "otto_isolation_layer" for name, _ in scrape(daemon)))
    with daemon.client() as otto:
        # Scripts are one model, whatever their files are called.
        spec = AgentSpec(name="a", model=daemon.script("m", {"text": "done"}))
        assert otto.run(spec=spec, task="t", cwd=daemon.workdir).ok
    for name in ("otto_model_calls_total", "otto_model_call_seconds_sum"):
        wait_for(name, lambda name=name: any(found == name for found, _ in scrape(daemon)))  # type: ignore[misc]
    before = set(scrape(daemon))
    odd = daemon.workdir / 'a"b\\c{d="e"}\nf'
    odd.mkdir()
    with daemon.client() as otto:
        for i in range(8):
            model = daemon.script(f"model-{i}", {"text": "done"})
            spec = AgentSpec(name=f"agent-{i}", model=model, description=f"the {i}th", tags=(f"tag-{i}",))
            title = f'session "{i}"\n# HELP otto_forged x\notto_forged 1'
            otto.start(spec=spec, task=title, title=title, cwd=odd).wait()
    wait_value(daemon, 9, "otto_sessions_started_total")
    assert set(scrape(daemon)) == before
    assert len(before) <= MAX_SERIES
    assert {name.removesuffix("_total") for name, _ in before} >= {m.name for m in METRICS if m.kind == "counter"}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_what_a_daemon_says(daemon: RealDaemon) -> None:
    """`promtool check metrics` on a real scrape has nothing to say."""
    assert PROMTOOL is not None
    text = scraped_text(daemon).encode()
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b""), done


def test_a_reader_that_is_behind_shows(daemon: RealDaemon) -> None:
    """A subscription without credit is starved, and its distance is seen in events and bytes."""
    model = daemon.script("stream", {"stream": {"events": 2000, "rate_hz": 0, "text_bytes": 100}})
    with raw_client(daemon.endpoint) as client, daemon.client() as otto:
        client.subscribe(None, credit_bytes=1)
        otto.run(spec=daemon.agent(model), task="go", cwd=daemon.workdir)
        wait_value(daemon, 1, "otto_subscriptions_starved")
        wait_value(daemon, 1000, "otto_subscriber_lag_events_max")
        wait_value(daemon, 1000, "otto_subscriber_lag_bytes_max")


def test_a_killed_gateway_comes_back_and_root_does_not_notice(daemon: RealDaemon) -> None:
    """SIGKILL of the gateway: another one serves, the death is counted, and a session runs through it all."""
    model = daemon.script("endless", {"stream": {"events": 1_000_000, "rate_hz": 50, "text_bytes": 40}})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir)
        wait_for("it runs", lambda: session.info().state == "running")
        first = wait_for("a gateway", lambda: gateway_of(daemon))
        first.kill()
        wait_for("it is gone", lambda: not first.is_running())
        wait_for("another serves", lambda: status_of(socket_of(daemon), "/metrics") == 200)
        wait_value(daemon, 1, "otto_gateway_deaths_total")
        second = gateway_of(daemon)
        assert second is not None
        assert second.pid != first.pid
        assert session.info().state == "running"
        session.kill()


def test_root_dies_and_the_metrics_say_so(daemon: RealDaemon) -> None:
    """kill -9 of root: 503 from the gateway that outlives it; the next root's gateway takes its place."""
    old = wait_for("a gateway", lambda: gateway_of(daemon))
    old_id = identify(old.pid)
    assert old_id is not None
    daemon.kill()
    wait_for("503", lambda: status_of(socket_of(daemon), "/metrics") == 503)
    assert status_of(socket_of(daemon), "/healthz") == 503
    daemon.start()
    wait_for("the old gateway goes", lambda: not is_alive(old_id))
    wait_for("the new one serves", lambda: status_of(socket_of(daemon), "/metrics") == 200)
    new = gateway_of(daemon)
    assert new is not None
    wait_for("ready", lambda: status_of(socket_of(daemon), "/readyz") == 200)
    assert daemon.stop() == 0
    assert not new.is_running()
    assert not socket_of(daemon).exists()


def test_without_being_asked_there_is_no_gateway() -> None:
    """The default: no process, no socket, no port."""
    with running_daemon() as daemon:
        with daemon.client() as otto:
            otto.status()
        assert gateway_of(daemon) is None
        assert not socket_of(daemon).exists()
        ports = [c for c in psutil.Process(daemon.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert not ports


# ---------------------------------------------------------------- a real Prometheus


@contextmanager
def prometheus(base: Path, target: int, own: int) -> Iterator[None]:
    """A Prometheus that scrapes the port `target` every second and listens on `own`; gone afterwards."""
    assert PROMETHEUS is not None
    config = base / "prometheus.yml"
    job = {"job_name": "otto", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    times = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    config.write_text(json.dumps({"global": times, "scrape_configs": [job]}))
    arguments = ["--config.file", str(config), "--storage.tsdb.path", str(base / "tsdb")]
    arguments += [f"--web.listen-address=127.0.0.1:{own}", "--log.level=warn"]
    with (base / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([PROMETHEUS, *arguments], stdout=log, stderr=log, cwd=base)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print((base / "prometheus.log").read_text())


def ask(port: int, query: str) -> dict[str, float]:
    """What Prometheus answers now: `state` label (or nothing) → value."""
    try:
        answer = fetch(port, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    except OSError:
        return {}
    if answer.status != 200:
        return {}
    return {r["metric"].get("state", ""): float(r["value"][1]) for r in json.loads(answer.text)["data"]["result"]}


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_a_real_prometheus_scrapes_it(tmp_path: Path) -> None:
    """`up` is 1 and sessions are seen by state; with root dead `up` is 0; with the next root it is 1 again."""
    with reserved_port() as port, reserved_port() as own:
        settings = {"gateway": {"enabled": True, "port": port}}
        with running_daemon(settings) as daemon, prometheus(tmp_path, port, own):
            wait_for("up == 1", lambda: ask(own, "up") == {"": 1.0}, DEADLINE_S)
            model = daemon.script("endless", {"stream": {"events": 1_000_000, "rate_hz": 20, "text_bytes": 40}})
            with daemon.client() as otto:
                otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir)
                wait_for("a running session", lambda: ask(own, "otto_sessions").get("running") == 1.0, DEADLINE_S)
            # A scrape that a busy machine was late with makes all that was known stale until the next one.
            wait_for("every state", lambda: set(ask(own, "otto_sessions")) == set(LIVE_STATES), DEADLINE_S)
            quantile = "histogram_quantile(0.5, rate(otto_ring_fsync_seconds_bucket[1m]))"
            wait_for("a quantile", lambda: ask(own, quantile), DEADLINE_S)
            daemon.kill()
            wait_for("up == 0", lambda: ask(own, "up") == {"": 0.0}, DEADLINE_S)
            daemon.start()
            wait_for("up == 1 again", lambda: ask(own, "up") == {"": 1.0}, DEADLINE_S)
