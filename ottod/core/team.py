"""Who is who in one tree of sessions: names, roles, and whom an address means.

A session's role is the agent that it runs. Its name is that agent's name, `name#2` and so on for the next ones, or
one that it was given; nobody else of its tree has it while it lives. Numbers count on and are never used again; a
name that was given may be given again once its holder has ended, and then means the new one.

Source: ADR 0023.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from ottod.errors import RefusedError
from ottod.ids import PREFIX
from ottod.protocol.cause import Cause

MAX_ENDED = 1000
"""Ended members of a tree that are remembered; the oldest are forgotten first."""
MAX_SHOWN = 20
"""Names in one error."""
PARENT = "parent"
EVERYBODY = "*"
RESERVED = (PARENT, "user", "all")
"""Names that mean something else."""
_GIVEN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}(#[1-9][0-9]{0,5})?")
_NUMBERED = re.compile(r"(.+)#([1-9][0-9]{0,5})")


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A session of a tree. `cause` is how it ended, None while it lives."""

    session: str
    name: str
    role: str
    parent: str = ""
    cause: Cause | None = None


def role_of(name: str) -> str:
    """What a name says of its holder's role, unless it was given: `researcher` of `researcher#2`."""
    return name.partition("#")[0]


class Team:
    """The members of one tree. All methods that refuse raise RefusedError and change nothing."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._holders: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        """Base of names → the highest number that was ever used with it; a name without one counts as 1."""
        self._ended = 0

    def __len__(self) -> int:
        return len(self._members)

    @property
    def live(self) -> list[Member]:
        """Those that have not ended, in the order in which they came."""
        return [member for member in self._members.values() if member.cause is None]

    @property
    def members(self) -> list[Member]:
        """All that are remembered, in the order in which they came."""
        return list(self._members.values())

    def get(self, session: str) -> Member | None:
        return self._members.get(session)

    # ------------------------------------------------------------ coming and going

    def name_for(self, role: str, wanted: str = "") -> str:
        """The name of a session that is about to join: the one that is wanted, if that is free."""
        if wanted:
            self._check_given(wanted)
            return wanted
        number = self._numbers.get(role, 0)
        if number == 0 and role not in RESERVED and role not in self._holders:
            return role
        return f"{role}#{max(number, 1) + 1}"

    def _check_given(self, wanted: str) -> None:
        if not _GIVEN.fullmatch(wanted) or wanted in RESERVED or wanted.startswith(PREFIX):
            raise RefusedError(
                f"{wanted[:100]!r} cannot be a name",
                code="bad_name",
                mend=f"use lower-case letters, digits, - and _; not {', '.join(RESERVED)}, and no session's id",
            )
        holder = self._members.get(self._holders.get(wanted, ""))
        if holder is not None and holder.cause is None:
            raise RefusedError(
                f"{wanted} is {holder.session}, which lives",
                code="name_taken",
                mend="choose another name, or wait for its end",
            )

    def join(self, member: Member) -> None:
        """It belongs to the tree from now on; its name means it."""
        self._members[member.session] = member
        self._holders[member.name] = member.session
        numbered = _NUMBERED.fullmatch(member.name)
        base, number = (numbered[1], int(numbered[2])) if numbered else (member.name, 1)
        self._numbers[base] = max(self._numbers.get(base, 0), number)
        if member.cause is not None:
            self._ended += 1
            self._forget()

    def left(self, session: str) -> None:
        """It never came to be."""
        self._drop(session)

    def ended(self, session: str, cause: Cause) -> None:
        """It has ended, and is remembered for whoever speaks to it."""
        member = self._members.get(session)
        if member is not None and member.cause is None:
            self._members[session] = msgspec.structs.replace(member, cause=cause)
            self._ended += 1
            self._forget()

    def _forget(self) -> None:
        while self._ended > MAX_ENDED:
            oldest = next(member.session for member in self._members.values() if member.cause is not None)
            self._drop(oldest)
            self._ended -= 1

    def _drop(self, session: str) -> None:
        member = self._members.pop(session, None)
        if member is not None and self._holders.get(member.name) == session:
            del self._holders[member.name]

    # ------------------------------------------------------------ whom an address means

    def find(self, to: str, *, asker: str) -> Member:
        """Who is meant by a name, an id, or `parent`; perhaps one that has ended."""
        if to == PARENT:
            return self._parent(asker)
        found = self._members.get(self._holders.get(to, to))
        if found is None:
            names = ", ".join(list(self._holders)[:MAX_SHOWN])
            more = ", …" if len(self._holders) > MAX_SHOWN else ""
            raise RefusedError(
                f"nobody in this tree is called {to[:100]!r}", code="no_such_agent", mend=f"there are: {names}{more}"
            )
        if found.session == asker:
            raise RefusedError(f"{to} is this session itself", code="no_such_agent", mend="see list_agents")
        return found

    def _parent(self, asker: str) -> Member:
        own = self._members.get(asker)
        above = self._members.get(own.parent) if own is not None else None
        if above is None:
            raise RefusedError("this session has no parent", code="no_such_agent", mend="see list_agents")
        return above

    def others(self, role: str, *, than: str) -> list[Member]:
        """All live members but one, or those of a role. There is at least one."""
        found = [m for m in self.live if m.session != than and role in (EVERYBODY, m.role)]
        if not found:
            who = "lives in this tree" if role == EVERYBODY else f"in this tree runs {role[:100]}"
            raise RefusedError(f"nobody else {who}", code="no_such_agent", mend="see list_agents")
        return found

    # ------------------------------------------------------------ how many there are

    def count_below(self, session: str, role: str) -> int:
        """How many live members below a session have this role."""
        return sum(member.role == role and session in self._above(member) for member in self.live)

    def _above(self, member: Member) -> Iterable[str]:
        seen: set[str] = set()
        while member.parent and member.parent not in seen:
            seen.add(member.parent)
            above = self._members.get(member.parent)
            if above is None:
                break
            member = above
        return seen


def handoff_text(*, name: str, session: str, reason: str, note: str) -> str:
    """The message with which a conversation is taken over."""
    head = (
        f"[handed over by {name} ({session}), another agent; not from the user. Everything above was said with that "
        "agent. You have its place now: what you say at the end is the answer to whoever waits for it]"
    )
    return f"{head}\n\nReason: {reason}" + (f"\n\n{note}" if note else "")


def heading(*, name: str, session: str, asks: bool = False) -> str:
    """What stands above a message from another session, so that nobody takes it for the user's."""
    if asks:
        return (
            f"[question from {name} ({session}), another agent; not from the user. What you say at the end of this "
            "turn is the answer that it gets]"
        )
    return f"[message from {name} ({session}), another agent; not from the user]"
