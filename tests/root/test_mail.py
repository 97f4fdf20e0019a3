"""Messages on their way: those of one sender to one receiver arrive in the order in which they were sent."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.core.team import Member
from ottod.errors import Failure, RefusedError
from ottod.ids import session_id
from ottod.protocol.results import SessionInfo
from ottod.protocol.worker import DeliverInput
from ottod.root import mail
from ottod.root.mail import Mail
from ottod.root.session_table import Session, SessionTable
from ottod.telemetry.instruments import Instruments

FULL = Failure(code="inbox_full", message="its inbox is full")


class Post:
    """Receivers that have no room now and then: `moods` says how often each delivery in turn is refused first."""

    def __init__(self, moods: list[int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.table = SessionTable(lambda info: None)
        self.instruments = Instruments()
        self.gate = self
        self.arrived: list[str] = []
        self._moods = moods
        self._refusals: dict[str, int] = {}
        sessions = [SessionInfo(session=session_id(n), agent="a", model="p:m", state="running") for n in (1, 2)]
        self.sender, self.receiver = (Session(info, None) for info in sessions)
        for session in (self.sender, self.receiver):
            self.table.add(session)
        context: Any = self
        teams: Any = SimpleNamespace()
        self.mail = Mail(context, teams, authorities=lambda session: ())

    async def command(self, session: Session, message: DeliverInput, *, timeout_s: float) -> Failure | None:
        await asyncio.sleep(0)
        if message.text not in self._refusals:
            self._refusals[message.text] = self._moods.pop() if self._moods else 0
        if self._refusals[message.text] > 0:
            self._refusals[message.text] -= 1
            return FULL
        self.arrived.append(message.text)
        return None

    async def put(self, text: str, *, within_s: float = 30.0) -> None:
        member = Member(session=self.receiver.id, name="b", role="b", parent="")
        message = DeliverInput(text=text, sender=self.sender.id, key=f"{self.sender.id}/{text}")
        await self.mail.put(self.sender, member, message, self.loop.time() + within_s)


def test_one_that_comes_while_others_wait_goes_behind_them() -> None:
    """Also if it comes just as the one before them has arrived, when nobody has the lane for a moment."""

    async def run() -> None:
        post = Post([])
        first = asyncio.ensure_future(post.put("1"))
        others = [asyncio.ensure_future(post.put(text)) for text in "234"]
        while not first.done():
            await asyncio.sleep(0)
        late = asyncio.ensure_future(post.put("5"))
        await asyncio.gather(first, *others, late)
        assert post.arrived == list("12345")
        assert post.mail.lanes == post.mail.waiting == 0

    asyncio.run(run())


Moment = tuple[int, bool]


@settings(max_examples=60, deadline=None)
@given(
    moments=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12),
    moods=st.lists(st.integers(0, 2), max_size=12),
)
def test_messages_never_overtake_each_other(moments: list[Moment], moods: list[int]) -> None:
    """Whenever they come, however often there is no room, and whoever of them is withdrawn."""

    async def run() -> None:
        post = Post(list(moods))
        tasks = []
        for number, (turns, is_withdrawn) in enumerate(moments):
            task = asyncio.ensure_future(post.put(f"{number:02}"))
            tasks.append(task)
            for _ in range(turns):
                await asyncio.sleep(0)
            if is_withdrawn:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert post.arrived == sorted(post.arrived)
        kept = {f"{number:02}" for number, (_, is_withdrawn) in enumerate(moments) if not is_withdrawn}
        assert kept <= set(post.arrived)
        assert post.mail.lanes == post.mail.waiting == 0

    first, most = mail.FIRST_AGAIN_S, mail.MAX_AGAIN_S
    mail.FIRST_AGAIN_S, mail.MAX_AGAIN_S = 0.0, 0.0
    try:
        asyncio.run(run())
    finally:
        mail.FIRST_AGAIN_S, mail.MAX_AGAIN_S = first, most


def test_one_that_finds_no_room_in_time_leaves_the_lane_to_the_next() -> None:
    """It fails with the receiver's reason."""

    async def run() -> None:
        post = Post([0, 1000])
        ends = await asyncio.gather(post.put("1", within_s=0), post.put("2"), return_exceptions=True)
        assert isinstance(ends[0], RefusedError) and ends[0].code == "inbox_full"
        assert post.arrived == ["2"] and post.mail.lanes == 0

    asyncio.run(run())
