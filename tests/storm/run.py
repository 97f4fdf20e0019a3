"""One provider storm: sessions over the vendors' own SDKs, against a server that is mostly out of order.

Half of the sessions are a team, children of one session; the others stand alone. Three providers, one for each wire
format, share the server, each with limits of its own. What the server saw is counted there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ottoctl.feed import SessionEvent
from ottoctl.sync import SyncOtto
from ottod.protocol.events import BreakerStateChanged, LogWarning, ModelRetried
from ottod.protocol.results import ProviderLineInfo, SessionInfo
from ottod.protocol.specs import Limits
from tests.daemon.harness import RealDaemon
from tests.fakes.wire_app import APIS, KEY
from tests.fakes.wire_server import WireServer
from tests.fakes.wire_storm import StormApp, storm_app

ADAPTERS: dict[str, tuple[dict[str, str], str, str]] = {
    "messages": ({"adapter": "anthropic"}, "", "/v1/messages"),
    "responses": ({"adapter": "openai", "api": "responses"}, "/v1", "/v1/responses"),
    "chat": ({"adapter": "openai", "api": "chat"}, "/v1", "/v1/chat/completions"),
}
"""Provider → its entry in the settings, what follows on the server's address, and its path there."""
TYPED = {"rate_limited", "overloaded", "timeout", "connection", "cut", "malformed", "breaker_open"}
"""What a session may say that it ended of."""
TURNS: list[dict[str, Any]] = [
    {"text": "Let me look.", "tools": [{"name": "fs_list", "arguments": {}}]},
    {"text": "And once more.", "tools": [{"name": "fs_list", "arguments": {}}]},
    {"text": "This is a calm sea, told in as many pieces as it takes to be cut off in the middle of one of them."},
]
DEADLINE_S = 300.0
DELIVERY_S = 5.0
"""How much longer one request may be under way than another, on a busy machine, between its permit and the server."""


class ProviderTally(msgspec.Struct, frozen=True, kw_only=True):
    """What the server saw of one provider's requests, and what the gate says of the waits for it."""

    provider: str
    per_minute: int
    requests: int
    busiest_second: int
    above_limit: float
    """By how many requests any stretch of time had more than the limit allows for it; 0 or less means none had."""
    longest_wait_ms: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A whole storm."""

    seed: int
    sessions: int
    took_s: float
    ends: dict[str, int]
    """By cause, and by code where the cause has one."""
    untyped: tuple[str, ...]
    weather: dict[str, int]
    tallies: tuple[ProviderTally, ...]
    moves: tuple[str, ...]
    retries: int
    told_waits: int
    team_longest_s: float
    alone_longest_s: float


def run_storm(directory: Path, *, sessions: int, seed: int, per_minute: int = 120) -> Outcome:
    """Runs one, to the end of all its sessions."""
    script = directory / "storm.yml"
    script.write_text(yaml.safe_dump({"turns": TURNS, "chunk": 20}))
    with WireServer(script, key=KEY, make_app=storm_app(seed)) as server:
        daemon = RealDaemon(_settings(server, per_minute), env={"STORM_KEY": KEY})
        began_s = time.monotonic()
        try:
            daemon.start()
            with daemon.client(timeout_s=DEADLINE_S) as otto:
                infos = _sail(daemon, otto, sessions)
                took_s = time.monotonic() - began_s
                lines = otto.providers()
                events = list(otto.events(0, follow=False))
        finally:
            daemon.close()
    app = server.app
    assert isinstance(app, StormApp)
    return _judge(app, infos, lines, events, seed=seed, took_s=took_s)


def _settings(server: WireServer, per_minute: int) -> dict[str, object]:
    shared = {
        "api_key_env": "STORM_KEY",
        "timeout_s": 20,
        "idle_timeout_s": 3,
        "max_retries": 8,
        "max_concurrent": 8,
        "requests_per_minute": per_minute,
        "breaker": {"window_s": 10, "min_calls": 8, "open_s": 0.5, "max_open_s": 4, "probes": 2},
    }
    entries = {
        name: {**entry, **shared, "base_url": server.url + suffix} for name, (entry, suffix, _) in ADAPTERS.items()
    }
    return {
        "providers": entries,
        # Idle workers get nothing on a machine that is busy with other things, and would take that for a stall.
        "sessions": {"worker_priority": "normal", "orphan_grace_s": 15},
        "ring": {"size_bytes": 64 * 1024 * 1024, "segment_bytes": 128 * 1024},
    }


def _sail(daemon: RealDaemon, otto: SyncOtto, sessions: int) -> list[SessionInfo]:
    """Starts all, the team first, and waits for all."""
    names = list(ADAPTERS)
    captain = otto.start(
        spec=daemon.agent(daemon.script("captain", {"text": "Go."}), limits=Limits(max_children=sessions)),
        task="lead",
        mode="conversation",
        cwd=daemon.workdir,
    )
    crew = []
    for number in range(sessions):
        spec = daemon.agent(f"{names[number % len(names)]}:storm-1", "fs_list")
        parent = captain.id if number < sessions // 2 else ""
        title = "team" if parent else "alone"
        crew.append(otto.start(spec=spec, task="sail", title=title, parent=parent, cwd=daemon.workdir))
    for session in crew:
        session.wait()
    infos = [session.info() for session in crew]
    captain.stop()
    return infos


def _judge(
    app: StormApp,
    infos: list[SessionInfo],
    lines: Iterable[ProviderLineInfo],
    events: list[SessionEvent],
    *,
    seed: int,
    took_s: float,
) -> Outcome:
    ends: Counter[str] = Counter()
    untyped = []
    for info in infos:
        assert info.cause is not None
        ends[f"{info.cause.kind} {info.cause.code}".strip()] += 1
        if info.cause.kind != "completed" and not (info.cause.kind == "failed" and info.cause.code in TYPED):
            untyped.append(f"{info.session}: {info.cause}")
    moves = [e.event for e in events if isinstance(e.event, BreakerStateChanged)]
    waits = {line.provider: max((m.longest_wait_ms for m in line.models), default=0) for line in lines}
    limits = {line.provider: line.requests_per_minute or 0 for line in lines}
    return Outcome(
        seed=seed,
        sessions=len(infos),
        took_s=round(took_s, 1),
        ends=dict(ends),
        untyped=tuple(untyped),
        weather=dict(app.drawn),
        tallies=tuple(
            tally(name, [r.at_s for r in app.requests if r.path == path], limits[name], waits[name])
            for name, (_, _, path) in ADAPTERS.items()
            if name in limits
        ),
        moves=tuple(f"{m.provider}: {m.previous} → {m.state} ({m.reason})" for m in moves),
        retries=sum(isinstance(e.event, ModelRetried) for e in events),
        told_waits=sum(isinstance(e.event, LogWarning) and e.event.code == "gate_wait" for e in events),
        team_longest_s=_longest_s(infos, "team"),
        alone_longest_s=_longest_s(infos, "alone"),
    )


def tally(name: str, at_s: list[float], per_minute: int, wait_ms: int) -> ProviderTally:
    """Requests that are under way for different times arrive closer together than they were let through, by
    `DELIVERY_S` at most: so the bound on any stretch of time is that of a stretch so much longer."""
    burst, rate = 1 + per_minute // 60, per_minute / 60
    at_s = sorted(at_s)
    above = [
        count - (burst + rate * (until - since + DELIVERY_S))
        for first, since in enumerate(at_s)
        for count, until in enumerate(at_s[first:], 1)
    ]
    return ProviderTally(
        provider=name,
        per_minute=per_minute,
        requests=len(at_s),
        busiest_second=max((sum(t <= other < t + 1 for other in at_s) for t in at_s), default=0),
        above_limit=round(max(above, default=0.0), 2),
        longest_wait_ms=wait_ms,
    )


def _longest_s(infos: list[SessionInfo], title: str) -> float:
    """How long the slowest session of this kind took."""
    took_ns = [info.ended_at_ns - info.created_at_ns for info in infos if info.title == title]
    return round(max(took_ns, default=0) / 1e9, 1)


def broken_sequences(moves: Iterable[str]) -> list[str]:
    """Moves of one breaker that do not follow on one another."""
    by_provider: dict[str, list[tuple[str, str]]] = {}
    for told in moves:
        provider, _, rest = told.partition(": ")
        previous, state = rest.split(" (")[0].split(" → ")
        by_provider.setdefault(provider, []).append((previous, state))
    return [
        f"{provider}: {one} then {other}"
        for provider, found in by_provider.items()
        for one, other in pairwise([("", "closed"), *found])
        if one[1] != other[0]
    ]


def report(outcome: Outcome) -> str:
    """The storm in Markdown."""
    ends = ", ".join(f"{count} {how}" for how, count in sorted(outcome.ends.items()))
    weather = ", ".join(f"{count} {what}" for what, count in sorted(outcome.weather.items()))
    rows = "".join(
        f"| {t.provider} | {t.per_minute} | {t.requests} | {t.busiest_second} | {t.above_limit:g} | "
        f"{t.longest_wait_ms / 1000:.1f} |\n"
        for t in outcome.tallies
    )
    return f"""# A storm of {outcome.sessions} sessions, seed {outcome.seed}

Took {outcome.took_s} s. Ends: {ends}. {outcome.retries} calls were made again, {outcome.told_waits} long waits told.
The slowest session of the team took {outcome.team_longest_s} s, the slowest alone {outcome.alone_longest_s} s.
The server's weather: {weather}.

| provider | limit a minute | requests | in the busiest second | most above the limit | longest wait (s) |
|---|---|---|---|---|---|
{rows}
Breakers ({len(outcome.moves)} moves):

""" + "".join(f"- {move}\n" for move in outcome.moves)


assert all(path in APIS for _, _, path in ADAPTERS.values())
