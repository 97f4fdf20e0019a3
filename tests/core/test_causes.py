"""Which causes of an end a supervisor answers: the table of what counts as a crash, for all there are."""

from __future__ import annotations

from typing import get_args

import pytest

from ottod.core.supervision import ChildExited, ChildSpec, StartChild, SupervisorNode
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.specs import Backoff, Group
from ottod.root.groups import exit_reason

COMES_BACK = {
    "completed": True,
    "failed": True,
    "crashed": True,
    "memory": True,
    "hung": True,
    "start_failed": True,
    "cancelled": False,
    "budget": False,
    "auth": False,
    "bad_spec": False,
    "workdir_gone": False,
    "daemon_stop": False,
    "time_slice": False,
}
"""Of a permanent child. What is not its own failure is not mended by another start."""


def test_the_table_has_every_cause() -> None:
    """A new cause must say what it means."""
    assert set(COMES_BACK) == set(get_args(CauseKind))


@pytest.mark.parametrize(("kind", "comes_back"), COMES_BACK.items())
def test_what_a_permanent_child_comes_back_from(kind: CauseKind, comes_back: bool) -> None:
    """From what it did itself; everything else ends it for good, whatever its policy says."""
    at_once = Backoff(base_s=0, jitter=0)
    child = ChildSpec(id="a", restart="permanent", significant=False, backoff=at_once)
    node = SupervisorNode(group=Group(), children=(child,))
    orders = node.step(ChildExited(child="a", reason=exit_reason(Cause(kind=kind))), now_ns=0)
    assert any(isinstance(order, StartChild) for order in orders) is comes_back
