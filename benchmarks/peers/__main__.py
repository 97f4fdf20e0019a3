"""`make bench-peers`: the same jobs, done by Otto and by other ways to run many sessions, in one run.

    python -m benchmarks.peers [--quick] [--only stream,saturation,siblings,life] [--peers node,beam,…] [--rounds N]

Rounds are interleaved: every system does a job before any does it again, so that what else happens on the machine
meets all of them. Figures are medians over the rounds; the load stands beside each. The exit status is 1 when a
system that is installed could not do a job.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.peers import jobs, otto
from benchmarks.peers.rig import PeerError
from benchmarks.peers.roster import ALL_JOBS, Peer, missing, roster
from benchmarks.peers.row import OTTO, Row
from benchmarks.peers.table import markdown
from ottod.errors import OttoError


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much of each job is done."""

    counts: list[int]
    rate_hz: int
    seconds: float
    saturation_sessions: list[int]
    saturation_events: int
    siblings: int
    life_sessions: int
    kills: int
    rounds: int


FULL = Size(
    counts=[5, 50, 100, 200],
    rate_hz=100,
    seconds=2.0,
    saturation_sessions=[1, 4],
    saturation_events=300_000,
    siblings=50,
    life_sessions=8,
    kills=4,
    rounds=2,
)
QUICK = Size(
    counts=[50],
    rate_hz=100,
    seconds=1.0,
    saturation_sessions=[4],
    saturation_events=200_000,
    siblings=20,
    life_sessions=3,
    kills=1,
    rounds=1,
)


def job_of_peer(job: str, peer: Peer, size: Size) -> list[Row]:
    """One job, done by a peer."""
    match job:
        case "stream":
            return jobs.stream(peer, counts=size.counts, rate_hz=size.rate_hz, seconds=size.seconds)
        case "saturation":
            return jobs.saturation(peer, counts=size.saturation_sessions, events=size.saturation_events)
        case "siblings":
            return jobs.siblings(peer, sessions=size.siblings, rate_hz=size.rate_hz)
        case _:
            return jobs.life(peer, sessions=size.life_sessions, kills=size.kills)


def job_of_otto(job: str, size: Size) -> list[Row]:
    """The same job, done by Otto."""
    match job:
        case "stream":
            return otto.stream(counts=size.counts, rate_hz=size.rate_hz, seconds=size.seconds)
        case "saturation":
            return otto.saturation(counts=size.saturation_sessions, events=size.saturation_events)
        case "siblings":
            return otto.siblings(sessions=size.siblings, rate_hz=size.rate_hz)
        case _:
            return otto.life(sessions=size.life_sessions, kills=size.kills)


def run(peers: list[Peer], only: list[str], size: Size) -> tuple[list[Row], list[str]]:
    """All rows, and what went wrong."""
    rows: list[Row] = []
    failures: list[str] = []
    for number in range(size.rounds):
        for job in only:
            tasks: list[tuple[str, Callable[[], list[Row]]]] = [(OTTO, partial(job_of_otto, job, size))]
            tasks += [(peer.name, partial(job_of_peer, job, peer, size)) for peer in peers if job in peer.jobs]
            # Every other round goes the other way, so that nobody always comes after the same one.
            for name, task in tasks if number % 2 == 0 else reversed(tasks):
                begun_s = time.monotonic()
                try:
                    found = task()
                except (PeerError, OttoError, OSError, RuntimeError) as error:
                    failures.append(f"{name}, {job}, round {number + 1}: {error}")
                    print(failures[-1], file=sys.stderr, flush=True)
                    continue
                rows += found
                took_s = time.monotonic() - begun_s
                print(f"round {number + 1}: {job}: {name}: {took_s:.1f} s", file=sys.stderr, flush=True)
    return rows, failures


def choose(parser: argparse.ArgumentParser, said: str, known: list[str], what: str) -> list[str]:
    """The names in a comma-separated option."""
    chosen = said.split(",") if said else known
    if unknown := set(chosen) - set(known):
        parser.error(f"unknown {what}: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    return [name for name in known if name in chosen]


def options(everyone: list[str]) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measure Otto beside its peers.")
    parser.add_argument("--quick", action="store_true", help="smaller jobs, one round: less than two minutes")
    parser.add_argument("--only", default="", help="comma-separated jobs: " + ", ".join(ALL_JOBS))
    parser.add_argument("--peers", default="", help="comma-separated: " + ", ".join(everyone))
    parser.add_argument("--sessions", default="", help="session counts of the stream job, as 5,50,100,200")
    parser.add_argument("--rate", type=int, default=0, help="events a second of each session")
    parser.add_argument("--seconds", type=float, default=0, help="measured length of each stream")
    parser.add_argument("--rounds", type=int, default=0, help="how often each system does each job")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has ray and circus")
    parser.add_argument("--json", default="bench-peers.json", help="where the raw figures go")
    return parser


def sized(said: argparse.Namespace) -> Size:
    """The size that was asked for."""
    size = QUICK if said.quick else FULL
    given = {"rate_hz": said.rate, "seconds": said.seconds, "rounds": said.rounds}
    size = msgspec.structs.replace(size, **{name: value for name, value in given.items() if value})
    if said.sessions:
        size = msgspec.structs.replace(size, counts=[int(count) for count in said.sessions.split(",")])
    return size


def main() -> int:
    """The command."""
    parser = options([peer.name for peer in roster()])
    said = parser.parse_args()
    everyone = roster(said.python)
    only = choose(parser, said.only, list(ALL_JOBS), "job")
    chosen = choose(parser, said.peers, [peer.name for peer in everyone], "peer")
    size = sized(said)
    absent = {p.name: why for p in everyone if p.name in chosen and (why := missing(p))}
    peers = [peer for peer in everyone if peer.name in chosen and peer.name not in absent]
    rows, failures = run(peers, only, size)

    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    found = {
        "machine": machine,
        "size": msgspec.to_builtins(size),
        "not_installed": absent,
        "failures": failures,
        "rows": msgspec.to_builtins(rows),
    }
    Path(said.json).write_text(json.dumps(found, indent=2) + "\n")
    titles = {OTTO: "**Otto**", otto.COLD: "Otto, no warm pool"} | {peer.name: peer.title for peer in everyone}
    print(markdown(rows, titles))
    for name, why in absent.items():
        print(f"\nNot installed: {titles[name]} (it needs {why}).")
    for failure in failures:
        print(f"\nFailed: {failure.splitlines()[0]}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
