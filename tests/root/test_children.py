"""Who may have a child more: what bounds the tree below each session above it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import RefusedError
from ottod.ids import session_id
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import AgentSpec, Limits
from ottod.protocol.worker_requests import FindChild
from ottod.root.children import Children
from ottod.root.plan import SessionPlan
from ottod.root.session_table import Session, SessionTable


def chain(depths: list[int]) -> tuple[Children, Session]:
    """Sessions one below the other with these `limits.max_depth`; and the lowest of them."""
    table, above = SessionTable(lambda info: None), ""
    for number, depth in enumerate(depths):
        info = SessionInfo(
            session=session_id(number), agent=f"a{number}", name=f"a{number}", model="", state="running", parent=above
        )
        spec = AgentSpec(name=f"a{number}", limits=Limits(max_depth=depth))
        table.add(session := Session(info, SessionPlan(spec=spec, models=(), cwd="/")))
        session.is_top = not above
        above = session.id
    context: Any = SimpleNamespace(table=table)
    births: Any = SimpleNamespace()
    groups: Any = SimpleNamespace()
    return Children(context, births, groups), session


def may_start(depths: list[int]) -> bool:
    children, lowest = chain(depths)
    try:
        children.check_parent(lowest)
    except RefusedError as error:
        assert error.code == "too_deep"
        return False
    return True


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_the_tree_below_each_session_is_as_deep_as_that_one_allows(depths: list[int]) -> None:
    """Wherever in its own tree it stands, and whatever those below it allow."""
    assert may_start(depths) == all(len(depths) - place <= depth for place, depth in enumerate(depths))


@pytest.mark.parametrize(
    ("depths", "is_allowed"),
    [([1], True), ([1, 4], False), ([4, 4, 2], True), ([4, 4, 0], False), ([4, 4, 4, 4], True), ([4] * 5, False)],
)
def test_a_leads_helpers_start_nobody_if_it_allows_one_level(depths: list[int], is_allowed: bool) -> None:
    """And one that stands deep may start somebody if it allows that."""
    assert may_start(depths) is is_allowed


def test_who_is_refused_is_told_whose_limit_it_is() -> None:
    """With what would mend it."""
    children, lowest = chain([4, 1, 4])
    with pytest.raises(RefusedError, match=r"a1 allows 1 level of sessions below it.*a2 is 1 below") as refused:
        children.check_parent(lowest)
    assert refused.value.mend == "raise limits.max_depth of a1"


def test_who_only_wants_what_was_started_starts_nobody() -> None:
    """A worker asks so for a child that an earlier process may have asked for."""
    children, lowest = chain([4, 4])
    above = children._c.table.get(lowest.info.parent)
    assert above is not None
    told: list[object] = []
    keys = {f"{above.id}/a#1": lowest.id}

    async def session_by_key(key: str) -> str:
        return keys.get(key, "")

    children._c.database = SimpleNamespace(session_by_key=session_by_key)  # type: ignore[assignment]
    children._notify = lambda parent, child: told.append(child)  # type: ignore[method-assign, assignment]

    def ask(key: str) -> Session:
        return asyncio.run(children.find(above, FindChild(key=key)))

    assert ask("a#1") is lowest and told == [lowest]
    with pytest.raises(RefusedError) as refused:
        ask("a#2")
    assert refused.value.code == "not_started"
