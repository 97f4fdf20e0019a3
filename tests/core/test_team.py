"""Names in a tree: unique while held, never numbered twice; and an address means one member, or is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ottod.core.heard import MAX_OF_SENDER, MAX_SENDERS, Heard
from ottod.core.team import MAX_ENDED, Member, Team, role_of
from ottod.errors import RefusedError
from ottod.protocol.cause import Cause

DONE = Cause(kind="completed")


def join(team: Team, session: str, role: str, *, wanted: str = "", parent: str = "") -> str:
    name = team.name_for(role, wanted)
    team.join(Member(session=session, name=name, role=role, parent=parent))
    return name


def test_the_first_has_the_agents_name_the_next_ones_numbers() -> None:
    """Numbers are never used again, also when everybody has ended."""
    team = Team()
    assert [join(team, f"s-{n}", "coder") for n in range(3)] == ["coder", "coder#2", "coder#3"]
    for n in range(3):
        team.ended(f"s-{n}", DONE)
    assert join(team, "s-9", "coder") == "coder#4"
    assert role_of("coder#4") == "coder"


def test_a_given_name_means_its_newest_holder() -> None:
    """It can be given again once its holder has ended; the old one is still known by its id."""
    team = Team()
    join(team, "s-top", "lead")
    join(team, "s-1", "coder", wanted="scout", parent="s-top")
    with pytest.raises(RefusedError) as taken:
        join(team, "s-2", "coder", wanted="scout")
    assert taken.value.code == "name_taken"
    team.ended("s-1", DONE)
    assert team.find("scout", asker="s-top").cause == DONE
    join(team, "s-2", "coder", wanted="scout", parent="s-top")
    assert team.find("scout", asker="s-top").session == "s-2"
    assert team.find("s-1", asker="s-top").cause == DONE
    assert team.find("parent", asker="s-2").session == "s-top"


@pytest.mark.parametrize("name", ["parent", "user", "all", "s-0123456789", "Bob", "a b", "x#0", "", "#2"])
def test_what_cannot_be_a_name(name: str) -> None:
    """Words that mean something else, ids, and what nobody could type; no name at all is the agent's."""
    team = Team()
    if not name:
        assert team.name_for("coder", name) == "coder"
        return
    with pytest.raises(RefusedError) as refused:
        team.name_for("coder", name)
    assert refused.value.code == "bad_name"


def test_agents_with_reserved_names_are_numbered_at_once() -> None:
    """`parent` means the parent, whatever an agent is called."""
    assert Team().name_for("parent") == "parent#2"


def test_who_is_not_there_is_refused_with_who_is() -> None:
    """Unknown names, oneself, a parent that there is none of, a role that nobody has."""
    team = Team()
    join(team, "s-top", "lead")
    join(team, "s-1", "coder", parent="s-top")
    for to, asker in (("nobody", "s-1"), ("coder", "s-1"), ("parent", "s-top")):
        with pytest.raises(RefusedError) as refused:
            team.find(to, asker=asker)
        assert refused.value.code == "no_such_agent"
    with pytest.raises(RefusedError):
        team.others("coder", than="s-1")
    assert [m.name for m in team.others("*", than="s-1")] == ["lead"]


def test_members_of_a_role_are_counted_below() -> None:
    """At any depth, those that live, and not beside or above."""
    team = Team()
    for session, role, parent in (
        ("s-top", "lead", ""),
        ("s-1", "coder", "s-top"),
        ("s-2", "coder", "s-1"),
        ("s-3", "coder", "s-top"),
    ):
        join(team, session, role, parent=parent)
    assert team.count_below("s-top", "coder") == 3
    assert team.count_below("s-1", "coder") == 1
    team.ended("s-2", DONE)
    assert team.count_below("s-top", "coder") == 2


def test_a_long_lived_tree_remembers_so_many_ends_and_no_more() -> None:
    """The oldest are forgotten, with their names; numbers go on."""
    team = Team()
    for n in range(MAX_ENDED + 50):
        join(team, f"s-{n}", "coder")
        team.ended(f"s-{n}", DONE)
    assert len(team) == MAX_ENDED
    with pytest.raises(RefusedError):
        team.find("coder", asker="s-x")
    assert team.name_for("coder") == f"coder#{MAX_ENDED + 51}"


class Naming(RuleBasedStateMachine):
    """A team against a list of all that ever happened."""

    def __init__(self) -> None:
        super().__init__()
        self.team = Team()
        self.history: list[tuple[str, str, bool]] = []
        """Session, name, whether it lives."""

    @rule(role=st.sampled_from(["a", "b"]), wanted=st.sampled_from(["", "", "a", "b", "c", "a#3"]))
    def come(self, role: str, wanted: str) -> None:
        session = f"s-{len(self.history)}"
        held = {name for _, name, lives in self.history if lives}
        try:
            name = join(self.team, session, role, wanted=wanted)
        except RefusedError:
            assert wanted in held
            return
        assert name not in held
        if not wanted:
            assert name not in {name for _, name, _ in self.history}, "a name that was not given is new"
            assert role_of(name) == role
        self.history.append((session, name, True))

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.history) - 1))
        session, name, _ = self.history[place]
        self.team.ended(session, DONE)
        self.history[place] = session, name, False

    @invariant()
    def names_mean_their_newest_holders(self) -> None:
        newest = {name: (session, lives) for session, name, lives in self.history}
        for name, (session, lives) in newest.items():
            found = self.team.find(name, asker="s-x")
            assert (found.session, found.cause is None) == (session, lives)
        assert {m.session for m in self.team.live} == {s for s, _, lives in self.history if lives}


TestNaming = Naming.TestCase


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=300))
def test_what_was_heard_lately_is_known(said: list[tuple[int, int]]) -> None:
    """Of each sender the newest keys, against a list; and the whole of it survives being written down."""
    heard = Heard()
    for sender, number in said:
        heard.add(f"s-{sender}/{number}")
    for sender in range(6):
        own = list(dict.fromkeys(number for each, number in reversed(said) if each == sender))
        for number in own[:MAX_OF_SENDER]:
            assert f"s-{sender}/{number}" in heard or len(own) > MAX_OF_SENDER
    again = Heard(heard.keys)
    assert again.keys == heard.keys


def test_what_is_remembered_of_messages_has_a_bound() -> None:
    """Per sender, and of senders."""
    heard = Heard()
    for sender in range(MAX_SENDERS + 10):
        for number in range(MAX_OF_SENDER + 10):
            heard.add(f"s-{sender}/{number}")
    assert len(heard.keys) == MAX_SENDERS * MAX_OF_SENDER
    assert f"s-0/{MAX_OF_SENDER}" not in heard and f"s-20/{MAX_OF_SENDER}" in heard
