"""Our supervisor node decides as OTP's supervisor does: every recorded sequence, every decision."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.core.otp.replay import replay
from tests.core.otp.sequences import AUTO_SHUTDOWNS, REASONS, RESTARTS, STRATEGIES, sequence

RECORDED = Path(__file__).parent / "recorded.jsonl"
MIN_SEQUENCES = 500
Run = dict[str, Any]


@pytest.fixture(scope="module")
def record() -> tuple[dict[str, Any], list[Run]]:
    header, *runs = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    return header, runs


def test_every_decision_is_otps(record: tuple[dict[str, Any], list[Run]]) -> None:
    """Starts and stops in order, failed starts, who gave up, who ended, and the state of the tree after each step."""
    header, runs = record
    disagreements = []
    decisions = 0
    for run in runs:
        ours = replay(run["tree"], run["steps"])
        decisions += sum(len(did) + len(gave_up) + len(ended) for _, did, gave_up, ended, _ in run["seen"])
        if ours != run["seen"]:
            at = next(i for i, (mine, otps) in enumerate(zip(ours, run["seen"], strict=True)) if mine != otps)
            step = run["steps"][at - 1] if at else "start"
            disagreements.append(f"{run['n']}: {step}\n  OTP  {run['seen'][at]}\n  Otto {ours[at]}\n  {run['tree']}")
    agreements = len(runs) - len(disagreements)
    print(
        f"OTP {header['otp']}: {len(runs)} sequences, {decisions} decisions, "
        f"{agreements} agreements, {len(disagreements)} disagreements"
    )
    assert not disagreements, "\n".join(disagreements[:5])
    assert len(runs) >= MIN_SEQUENCES


def test_the_record_covers_the_ground(record: tuple[dict[str, Any], list[Run]]) -> None:
    """Strategies × restart types × ways to end, with a decision of each kind that the strategy can lead to."""
    _, runs = record
    met: Counter[tuple[Any, ...]] = Counter()
    for run in runs:
        plans = _plans(run["tree"])
        for step, (result, did, gave_up, ended, _) in zip(run["steps"], run["seen"][1:], strict=True):
            if step[0] == "add":
                plans[step[1]] = (plans[""][0] if "." not in step[1] else "", step[2][1])
            if step[0] == "exit" and result == "ok" and step[1] in plans:
                strategy, restart = plans[step[1]]
                met[strategy, restart, step[2]] += 1
                met[strategy, "failed start" if any(act[0] == "!" for act in did) else "start"] += 1
                above = step[1].rpartition(".")[0]
                met[strategy, "gave up" if above in gave_up else "went on"] += 1
                met[strategy, "auto-shutdown"] += f"{above}=shutdown" in ended and above not in gave_up
            met[step[0], result] += 1
    wanted: list[tuple[Any, ...]] = [(s, r, x) for s in STRATEGIES for r in RESTARTS for x in REASONS]
    wanted += [
        (s, what) for s in STRATEGIES for what in ("start", "failed start", "gave up", "went on", "auto-shutdown")
    ]
    wanted += [
        ("remove", "ok"),
        ("delete", "ok"),
        ("delete", "running"),
        ("restart", "ok"),
        ("add", "ok"),
        ("wait", ""),
    ]
    assert {key: met[key] for key in wanted if met[key] < 5} == {}
    assert {run["tree"][3] for run in runs} == set(AUTO_SHUTDOWNS)
    assert {0, 1, 2, 3} <= {run["tree"][1] for run in runs}


def test_the_record_is_of_these_sequences(record: tuple[dict[str, Any], list[Run]]) -> None:
    """What was recorded is what `sequences.py` draws from the header's seed: a change there asks for a new record."""
    header, runs = record
    assert [run["n"] for run in runs] == list(range(1, header["sequences"] + 1))
    for run in runs:
        tree, steps = sequence(Random(f"{header['seed']}-{run['n']}"), run["n"])
        assert (run["tree"], run["steps"]) == (tree, steps[: len(run["steps"])])


def _plans(tree: list[Any], above: str = "") -> dict[str, tuple[str, str]]:
    """By path: the strategy of the child's supervisor and the child's restart type; "" has the tree's strategy."""
    plans: dict[str, tuple[str, str]] = {} if above else {"": (tree[0], "")}
    for child in tree[4]:
        path = f"{above}.{child[0]}".lstrip(".")
        plans[path] = (tree[0], child[1])
        if len(child) > 3:
            plans |= _plans(child[3], path)
    return plans
