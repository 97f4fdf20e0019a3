"""What somebody typed means one session: the one with that name, before any whose id happens to begin so."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from ottod.protocol.results import SessionInfo
from ottod.root.lookup import Lookup
from ottod.root.session_table import AmbiguousPrefix, NoSuchSession, Session, SessionTable


class Records:
    """What is on record: ended sessions, oldest first."""

    def __init__(self) -> None:
        self.infos: list[SessionInfo] = []

    async def once_named(self, name: str) -> SessionInfo | None:
        return next((i for i in reversed(self.infos) if i.is_named and i.name == name), None)

    async def session_by_prefix(self, prefix: str, *, limit: int = 2) -> list[SessionInfo]:
        return [info for info in self.infos if info.session.startswith(prefix)][:limit]


class Place:
    """A table, what is on record, and the lookup."""

    def __init__(self) -> None:
        self.records = Records()
        self.table = SessionTable(lambda info: None)
        self.lookup = Lookup(self.table, self.records)

    def live(self, session: str, name: str = "") -> Session:
        made = Session(info(session, name, "running"), None)
        self.table.add(made)
        return made

    def ended(self, session: str, name: str = "") -> None:
        """One that memory still has."""
        made = self.live(session, name)
        self.table.update(made, replace(made.info, state="ended"))

    def on_record(self, session: str, name: str = "") -> None:
        self.records.infos.append(info(session, name, "ended"))

    def find(self, text: str) -> str:
        return asyncio.run(self.lookup.find(text)).id


def info(session: str, name: str, state: str) -> SessionInfo:
    fields = {"session": session, "agent": "a", "model": "m", "state": state, "name": name or "a"}
    return SessionInfo(**fields, is_named=bool(name))  # type: ignore[arg-type]


@pytest.fixture
def place() -> Place:
    return Place()


DB = "s-000000000a"
LIVING_STRANGER, ENDED_STRANGER, RECORDED_STRANGER = "s-db0000000a", "s-db0000000b", "s-db0000000c"


@pytest.mark.parametrize("where", ["live", "ended", "on_record"])
@pytest.mark.parametrize("strangers", [1, 3])
def test_a_name_is_never_the_beginning_of_a_strangers_id(place: Place, where: str, strangers: int) -> None:
    """Wherever the session is that had it, and however many ids begin with its letters."""
    getattr(place, where)(DB, "db")
    place.live(LIVING_STRANGER)
    if strangers > 1:
        place.ended(ENDED_STRANGER)
        place.on_record(RECORDED_STRANGER)
    assert place.find("db") == DB and place.find(" db ") == DB
    # Whoever means the id can say so.
    assert place.find("s-db0000000a") == LIVING_STRANGER
    if strangers > 1:
        with pytest.raises(AmbiguousPrefix):
            place.find("s-db")
    else:
        assert place.find("s-db") == LIVING_STRANGER


def test_the_one_that_lives_comes_first_then_the_newest(place: Place) -> None:
    """A name that was given again means the last one that got it."""
    place.on_record("s-0000000001", "db")
    assert place.find("db") == "s-0000000001"
    place.on_record("s-0000000002", "db")
    assert place.find("db") == "s-0000000002"
    place.ended("s-0000000003", "db")
    place.ended("s-0000000004", "db")
    assert place.find("db") == "s-0000000004"
    place.live("s-0000000000", "db")
    assert place.find("db") == "s-0000000000"


def test_what_is_no_name_is_the_beginning_of_an_id(place: Place) -> None:
    """The one id that begins so, in memory or on record; a name that an agent has is none."""
    place.live(LIVING_STRANGER)
    place.on_record("s-ef0000000a")
    assert (place.find("db"), place.find("EF")) == (LIVING_STRANGER, "s-ef0000000a")
    for unknown, message in (("0", "no session s-0"), ("a", "no session s-a"), ("weekly", "nor the name of a")):
        with pytest.raises(NoSuchSession, match=message):
            place.find(unknown)
