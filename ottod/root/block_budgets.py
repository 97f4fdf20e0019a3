"""The accounts of a workflow's blocks: between the workflow's own and those of the steps within.

A block that has a budget is an account called `SESSION/PATH`, after the workflow's session and the block's place.
It is opened with the first step within it and closed with the workflow, since a step may yet begin there. Within a
loop a block has a place, and so an account, for each iteration; a loop itself has one for all of them together.

What undoes a step must be done also where a budget is used up. It counts in an account of its own, `SESSION/undo:`,
which lies beside the workflow's and has as much as that had at first; without a budget of its own, a workflow's
account is the one that it counts in.

A workflow that goes on from another one's past goes on with the books of that one's blocks (`books`): they are opened
with its own account.
"""

from __future__ import annotations

from collections.abc import Sequence

from ottod.core.workflow_tree import blocks_around
from ottod.protocol.specs import Budgets
from ottod.root.session_table import Session, SessionTable

SEPARATOR = "/"
UNDO = "undo:"
"""How the places of sessions begin that undo steps. No block is called so."""


def is_block(key: str) -> bool:
    """Whether an account is a block's."""
    return SEPARATOR in key


def is_undo(session: Session) -> bool:
    """Whether a workflow has started it to undo a step."""
    return session.plan is not None and session.plan.step.startswith(UNDO)


def undo_account(workflow: str) -> str:
    """What undoes a workflow's steps counts in it."""
    return f"{workflow}{SEPARATOR}{UNDO}"


def owner_of(key: str) -> str:
    """The session that an account belongs to: of a block's, the workflow's."""
    return key.partition(SEPARATOR)[0]


def blocks_above(table: SessionTable, session: Session) -> Sequence[tuple[str, Budgets]]:
    """The accounts between a step's session and its workflow's, the outermost first."""
    step = session.plan.step if session.plan is not None else ""
    workflow = table.get(session.info.parent) if step else None
    if workflow is None:
        return ()
    return blocks_in(workflow, f"{workflow.id}{SEPARATOR}{step}")


def blocks_in(workflow: Session, key: str) -> Sequence[tuple[str, Budgets]]:
    """The accounts of blocks that lead to a place within a workflow, known by `SESSION/PATH`, the outermost first."""
    if workflow.plan is None or workflow.plan.workflow is None:
        return ()
    _, _, place = key.partition(SEPARATOR)
    around = blocks_around(workflow.plan.workflow.spec, place)
    limited = [(path, block.budgets) for path, block in around if block.budgets != Budgets()]
    return [(f"{workflow.id}{SEPARATOR}{path}", budgets) for path, budgets in limited]


def budgets_of(table: SessionTable, key: str) -> Budgets | None:
    """What an account's session or block may spend by its definition; None if nobody knows any more."""
    owner = table.get(owner_of(key))
    if owner is None or owner.plan is None:
        return None
    own = owner.plan.spec.budgets
    if key == undo_account(owner.id):
        return own if own != Budgets() else None
    if not is_block(key):
        return own
    if owner.plan.workflow is None:
        return None
    _, _, path = key.partition(SEPARATOR)
    # A path that ends within a block has it as the last around it.
    around = blocks_around(owner.plan.workflow.spec, f"{path}{SEPARATOR}")
    return around[-1][1].budgets if around and around[-1][0] == path else None
