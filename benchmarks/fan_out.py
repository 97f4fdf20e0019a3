"""Many children of one parent: what one of them that floods costs the others, and what a fan-out leaves in root.

The children whose events are measured, the one that floods and the one that sends a word now and then are siblings,
below one session. Latency is that of `siblings`, from the moment at which an event was due; that of a message is the
time of the call that sends it, which returns when the message is in the receiver's journal.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults import SETTINGS, FaultError, wait_until
from benchmarks.measured import MeasuredDaemon
from benchmarks.siblings import Siblings, calm
from benchmarks.subscriber import summary
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto, SyncSession
from ottod.protocol.events import ToolCompleted, ToolStarted
from ottod.protocol.specs import AgentSpec, Limits, Permissions
from ottod.protocol.workflows import Step, WorkflowSpec

BURST = 100
"""Messages in one answer of the one that floods; all are on their way at once, or wait for their turn."""
FLOOD_HZ, FLOOD_EVENTS = 20_000, 100_000_000
"""Pieces of output a second, two hundred times what a model says. The reader follows all sessions, and keeps up."""
WORD_EVERY_S = 0.6
"""A child may say two words a second."""
MIB = 1 << 20


def _agent(workdir: Path, name: str, turns: Sequence[object], *tools: str, parallel: int = 8) -> AgentSpec:
    script = workdir / f"{name}.yml"
    script.write_text(json.dumps({"turns": turns, "loop": True}))
    return AgentSpec(
        name=name,
        model=f"scripted:{script}",
        tools=tools,
        limits=Limits(max_parallel_tools=parallel, max_children=1000, max_steps=100_000),
        permissions=Permissions(preset="autonomous"),
    )


def _say(text: str) -> dict[str, object]:
    return {"name": "send_message", "arguments": {"to": "parent", "text": text}}


def measure_flood(sessions: int = 20, *, rate_hz: float = 100.0, seconds: float = 4.0) -> list[dict[str, Any]]:
    """One row for each kind of flood, beside the same siblings in the same run."""
    rows: list[dict[str, Any]] = []
    with MeasuredDaemon(SETTINGS) as daemon, daemon.client(timeout_s=120) as otto:
        workdir = daemon.workdir
        lead = otto.start(
            spec=_agent(workdir, "lead", [{"text": "heard"}]), cwd=workdir, mode="conversation", title="lead"
        )
        pause = {"name": "shell", "arguments": {"command": f"sleep {WORD_EVERY_S}; : ${{step}}"}}
        speaker = _agent(
            workdir, "speaker", [{"tools": [_say("word ${step}")]}, {"tools": [pause]}], "send_message", "shell"
        )
        floods = {
            "messages": _agent(
                workdir,
                "messages",
                [{"tools": [_say(f"noise {n} of ${{step}} " + "x" * 4096) for n in range(BURST)]}],
                "send_message",
                parallel=BURST,
            ),
            "output": _agent(
                workdir, "output", [{"stream": {"events": FLOOD_EVENTS, "rate_hz": FLOOD_HZ, "text_bytes": 200}}]
            ),
        }
        with Siblings(daemon, otto, count=sessions, rate_hz=rate_hz, parent=lead.id) as siblings:
            spoken = otto.start(spec=speaker, task="speak", cwd=workdir, parent=lead.id)
            wait_until("a word is said", lambda: bool(_words(spoken)))
            for kind, spec in floods.items():
                rows.append(_flooded(daemon, otto, siblings, spoken, kind, spec, lead, seconds))
        lead.kill()
    return rows


def _flooded(
    daemon: PrivateDaemon,
    otto: SyncOtto,
    siblings: Siblings,
    spoken: SyncSession,
    kind: str,
    spec: AgentSpec,
    lead: SyncSession,
    seconds: float,
) -> dict[str, Any]:
    calm_ns = calm(seconds)
    said_calmly = len(_words(spoken))
    held_before = _held_bytes(daemon)
    flood = otto.start(spec=spec, task="flood", cwd=daemon.workdir, parent=lead.id)
    wait_until("it floods", lambda: flood.info().last_seq > 50)
    load = round(os.getloadavg()[0], 2)
    flood_ns = calm(seconds)
    held = _held_bytes(daemon)
    before, during = siblings.window(*calm_ns), siblings.window(*flood_ns)
    info = flood.info()
    if info.state == "ended":
        raise FaultError(f"the flood ended as {info.cause}")
    words = _words(spoken)
    flood.kill()
    after = siblings.window(*calm(1))
    return {
        "benchmark": "flood",
        "kind": kind,
        "sessions": siblings.count,
        "rate_hz": siblings.rate_hz,
        "before": {"p50_ms": before.p50_ms, "p99_ms": before.p99_ms, "max_ms": before.max_ms},
        "during": {"p50_ms": during.p50_ms, "p99_ms": during.p99_ms, "max_ms": during.max_ms},
        "ratio": round(during.p99_ms / before.p99_ms, 2) if before.p99_ms else None,
        "word_before_ms": _worst(words[:said_calmly]),
        "word_during_ms": _worst(words[said_calmly:]),
        "flooded_events": info.last_seq,
        "root_grew_mib": round((held - held_before) / MIB, 1),
        "lost": after.lost,
        "gaps": after.gaps,
        "silent": len(after.silent),
        "disturbed": siblings.disturbed(),
        "loop_lag_p99_ms": otto.status().loop_lag_p99_ms,
        "load": load,
    }


def _words(session: SyncSession) -> list[float]:
    """How long each message of a session took, in ms, by the times of its events."""
    begun: dict[str, int] = {}
    took: list[float] = []
    for item in session.events(follow=False):
        match item.event:
            case ToolStarted(tool="send_message"):
                begun[item.event.call] = item.at_ns
            case ToolCompleted(tool="send_message"):
                took.append((item.at_ns - begun.get(item.event.call, item.at_ns)) / 1e6)
            case _:
                pass
    return took


def _worst(words: Sequence[float]) -> float:
    return round(max(words, default=0.0), 1)


def _held_bytes(daemon: PrivateDaemon) -> int:
    """Root's own memory. The ring's pages, which are the file's, come and go with the file."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


# ---------------------------------------------------------------- fan-out


def measure_fan_out(steps: int = 100, *, at_once: int = 10, rounds: int = 6) -> dict[str, Any]:
    """A workflow with one parallel block, again and again: how long it takes, and what root holds afterwards.

    Growth counts from the end of the first round, which warms everything up.
    """
    with MeasuredDaemon() as daemon, daemon.client(timeout_s=300) as otto:
        workdir = daemon.workdir
        agents = workdir / ".otto" / "agents"
        agents.mkdir(parents=True)
        script = workdir / "one.yml"
        script.write_text(json.dumps({"turns": [{"text": "done"}]}))
        (agents / "one.yml").write_text(json.dumps({"name": "one", "model": f"scripted:{script}"}))
        block = tuple(Step(id=f"s{n}", agent="one") for n in range(steps))
        spec = WorkflowSpec(name="fan-out", mode="parallel", steps=block, concurrency=at_once, summarizer="")
        times_ns: list[int] = []
        most_waiting = 0
        root = psutil.Process(daemon.pid)
        fds = threads = held = 0
        for n in range(rounds):
            begun_ns = time.monotonic_ns()
            session = otto.start_workflow(spec=spec, task="go", cwd=workdir)
            while (info := session.info()).state != "ended":
                most_waiting = max(most_waiting, info.backlog.waiting if info.backlog is not None else 0)
                time.sleep(0.02)
            times_ns.append(time.monotonic_ns() - begun_ns)
            if str(info.cause) != "completed":
                raise FaultError(f"a fan-out ended as {info.cause}")
            if n == 0:
                fds, threads, held = root.num_fds(), root.num_threads(), _held_bytes(daemon)
        time.sleep(0.5)
        grown = _held_bytes(daemon) - held
        grown_fds, grown_threads = root.num_fds() - fds, root.num_threads() - threads
        lag_ms = otto.status().loop_lag_p99_ms
    figures = summary(times_ns)
    return {
        "benchmark": "fan_out",
        "steps": steps,
        "at_once": at_once,
        "rounds": rounds,
        "p50_ms": figures["p50_ms"],
        "steps_per_s": round(steps / (figures["p50_ms"] / 1e3), 1),
        "most_waiting": most_waiting,
        "root_grew_mib": round(grown / MIB, 1),
        "root_grew_fds": grown_fds,
        "root_grew_threads": grown_threads,
        "loop_lag_p99_ms": round(lag_ms, 2),
        "load": round(os.getloadavg()[0], 2),
    }
