"""How a measurement is said in one line: what was measured, what came out, and what it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Cells = tuple[str, str, str]

STREAM_TARGETS = {200: "p99 ≤ 10 ms, no loss", 500: "p99 ≤ 100 ms"}


def stream(row: Row) -> Cells:
    """Events on time."""
    p = row["from_scheduled"]
    value = (
        f"p50 {p['p50_ms']:.2f}, p99 {p['p99_ms']:.2f}, max {p['max_ms']:.1f} ms; "
        f"lost {row['lost']}, out of order {row['out_of_order']}, gaps {row['gaps']}"
    )
    what = f"event latency, {row['sessions']} × {row['rate_hz']:g}/s"
    return what, value, STREAM_TARGETS.get(row["sessions"], "")


def saturation(row: Row) -> Cells:
    """As many as go."""
    what = f"saturated throughput, {row['sessions']} session(s)"
    return what, f"{row['events_per_s']:,} events/s; lost {row['lost']}", "≥ 500,000/s"


def spawn(row: Row) -> Cells:
    """A new session."""
    what = f"request → ready, {'warm pool' if row['pool'] else 'cold'}"
    return what, f"p50 {row['p50_ms']}, p90 {row['p90_ms']} ms", "p50 ≤ 3 ms" if row["pool"] else "p50 ≤ 10 ms"


def memory(row: Row) -> Cells:
    """A session that waits."""
    what = f"private memory of an idle session ({row['sessions']} of them)"
    return what, f"{row['private_mib_per_session']} MiB", "≤ 3.5 MiB"


def replay(row: Row) -> Cells:
    """What the ring holds, read late."""
    what = f"replay, {row['events'] // max(1, row['records'])} events a record"
    value = f"{row['raw_events_per_s']:,}/s raw, {row['decoded_events_per_s']:,}/s decoded"
    return what, value, "≥ 1,000,000 events/s"


def fault(row: Row) -> Cells:
    """What the siblings of a fault felt."""
    what = f"{row['what']}, beside {row['sessions']} × {row['rate_hz']:g}/s"
    target = "≤ 8 ms, ≤ 1.2 × undisturbed; 0 lost"
    if "during" not in row:
        return what, row["ended"], target
    before, during = row["before"], row["during"]
    wrong = [f"{name} {row[name]}" for name in ("lost", "doubled", "gaps", "silent") if row[name]]
    wrong += [f"{len(row['disturbed'])} siblings disturbed"] if row["disturbed"] else []
    value = (
        f"siblings' p99 {during['p99_ms']:.1f} ms, before it {before['p99_ms']:.1f} ms (× {row['ratio']}), "
        f"max {during['max_ms']:.1f} ms; {row['ended']} in {row['took_s']:.1f} s; "
        f"{', '.join(wrong) or 'none lost'}"
    )
    return what, value, target


def resume(row: Row) -> Cells:
    """A killed worker."""
    value = f"p50 {row['p50_ms']:.1f}, p99 {row['p99_ms']:.1f}, max {row['max_ms']:.1f} ms"
    return f"kill -9 of a worker → resumed incarnation ready ({row['runs']} times)", value, "p50 ≤ 15 ms"


def rebirth(row: Row) -> Cells:
    """A killed root."""
    wrong = row["lost"] + row["gaps"] + row["silent"]
    value = (
        f"answers after {row['answer']['max_ms']:.0f} ms, all adopted after {row['adopted']['max_ms']:.0f} ms, all "
        f"heard by the subscriber after {row['delivered']['max_ms']:.0f} ms; lost {wrong}, doubled {row['doubled']}, "
        f"{len(row['disturbed'])} sessions disturbed"
    )
    what = f"kill -9 of root under {row['sessions']} × {row['rate_hz']:g}/s (the worst of {row['roots']})"
    return what, value, "≤ 1 s, 0 lost, 0 doubled"


def crowd(row: Row) -> Cells:
    """Many sessions that wait."""
    value = (
        f"{row['private_mib_per_session']} MiB private each, root {row['root_private_mib']} MiB; "
        f"loop lag p99 {row['loop_lag_p99_ms']:.1f} ms; "
        f"started in {row['start_all_s']:.1f} s, stopped in {row['stop_all_s']:.1f} s"
    )
    return f"{row['sessions']} idle sessions", value, "≤ 3.5 MiB; lag p99 ≤ 50 ms"


def tree(row: Row) -> Cells:
    """A tree that is stopped."""
    wrong = f"{row['out_of_order']} out of order, {row['left']} processes left"
    value = f"{row['stop_s']:.2f} s; {row['stopped']} stopped, {wrong}"
    return f"stop of a tree of {row['sessions']}", value, "in order, nothing left"


def fan_out(row: Row) -> Cells:
    """A block of steps, again and again."""
    grown = (
        f"root grew by {row['root_grew_mib']} MiB, {row['root_grew_fds']} files, {row['root_grew_threads']} threads"
    )
    value = (
        f"p50 {row['p50_ms'] / 1e3:.1f} s, {row['steps_per_s']:g} steps/s; {row['most_waiting']} waited; "
        f"{grown} in {row['rounds'] - 1} further rounds; loop lag p99 {row['loop_lag_p99_ms']:.1f} ms"
    )
    return f"a workflow of {row['steps']} steps, {row['at_once']} at a time", value, "no growth; lag p99 ≤ 50 ms"


def flood(row: Row) -> Cells:
    """One child that floods."""
    before, during = row["before"], row["during"]
    wrong = [f"{name} {row[name]}" for name in ("lost", "gaps", "silent") if row[name]]
    wrong += [f"{len(row['disturbed'])} siblings disturbed"] if row["disturbed"] else []
    value = (
        f"siblings' p99 {during['p99_ms']:.1f} ms, before it {before['p99_ms']:.1f} ms (× {row['ratio']}); "
        f"a sibling's message {row['word_during_ms']} ms at most, before it {row['word_before_ms']} ms; "
        f"root grew by {row['root_grew_mib']} MiB; {', '.join(wrong) or 'none lost'}"
    )
    what = f"one child floods its tree with {row['kind']}, beside {row['sessions']} × {row['rate_hz']:g}/s"
    return what, value, "≤ 1.2 × undisturbed; 0 lost"


CELLS: dict[str, Callable[[Row], Cells]] = {
    each.__name__: each
    for each in (stream, saturation, spawn, memory, replay, fault, resume, rebirth, crowd, tree, fan_out, flood)
}
"""By the name of the benchmark."""
