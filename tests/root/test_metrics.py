"""Readings of root: how far readers are behind, and what root itself uses."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from ottod.root.hub import RETRY_S, Subscription
from ottod.root.metrics import measure_lag, read_process
from tests.root.test_hub import Rig, in_loop

CLIENT = b"client"


def sub(
    number: int, *, cursor: int = 1, credit: int = 1, live: bool = False, retry_s: float = RETRY_S
) -> Subscription:
    made = Subscription(id=number, client=CLIENT, cursor=cursor, session_key=None, credit=credit, end=None)
    made.is_live, made.retry_s = live, retry_s
    return made


def test_the_slowest_counts() -> None:
    """Of those that are not live the furthest behind; a live one's cursor is old and means nothing."""
    readers = [sub(1, cursor=90), sub(2, cursor=40), sub(3, cursor=1, live=True)]
    assert measure_lag(readers, head=100) == (0, 0, 60)
    assert measure_lag([], head=100) == (0, 0, 0)


def test_those_that_hold_themselves_up_are_told_apart() -> None:
    """Without credit: starved. With a full queue: blocked."""
    readers = [sub(1, credit=0), sub(2, credit=-5), sub(3, retry_s=4 * RETRY_S), sub(4)]
    lag = measure_lag(readers, head=1)
    assert (lag.starved, lag.blocked) == (2, 1)


def test_a_real_reader_without_credit_falls_behind(tmp_path: Path) -> None:
    """The hub's own subscription: live at first, then starved with everything after its last credit before it."""

    async def body(rig: Rig) -> None:
        made = rig.hub.subscribe(CLIENT, from_offset=None, session_key=None, credit=1, follow=True)
        await rig.until(lambda: made.is_live)
        assert measure_lag([made], head=rig.hub.head) == (0, 0, 0)
        for _ in range(5):
            rig.say(7, count=3)
        # The first record takes more credit than there is; the other four wait.
        assert measure_lag([made], head=rig.hub.head) == (1, 0, 12)
        rig.hub.grant(CLIENT, made.id, 1 << 20)
        await rig.until(lambda: made.is_live)
        assert measure_lag([made], head=rig.hub.head) == (0, 0, 0)

    in_loop(tmp_path, body)


def test_a_process_reads_itself() -> None:
    """Memory, time, files and threads of this very process."""
    before = read_process()
    opened = os.open(os.devnull, os.O_RDONLY)
    try:
        after = read_process()
    finally:
        os.close(opened)
    assert after.open_fds == before.open_fds + 1
    assert after.cpu_s >= before.cpu_s > 0
    assert after.resident_bytes > 1_000_000
    assert after.threads >= 1
    assert after.max_fds == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
