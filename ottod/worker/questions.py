"""Questions that other sessions ask this one: the end of the turn that one begins is told to root as its answer.

The journal says which questions are open and how the newest ones were answered. So a question that is asked again,
because whoever asked or root was lost, is answered again, by the same words.
"""

from __future__ import annotations

import asyncio

from ottod.core.past import MAX_ANSWERS
from ottod.core.resume import Restored, Waiting
from ottod.core.turn import EndTurn
from ottod.errors import OttoError
from ottod.protocol.worker_requests import AnswerQuestion
from ottod.worker.link import Link
from ottod.worker.text import cut

SETTLE_S = 2.0
"""How long the end of a session waits for root to hear its last answers. Afterwards root reads its journal."""


class Questions:
    """One session's."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open = ""
        """The question that the present turn answers."""
        self._answers: dict[str, AnswerQuestion] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def restore(self, restored: Restored) -> None:
        """Takes over what earlier incarnations were asked."""
        for asked in restored.asked:
            if asked.outcome:
                answer = AnswerQuestion(
                    key=asked.key, outcome=asked.outcome, text=cut(asked.text)[0], failure=asked.failure
                )
                self._answers[asked.key] = answer
            elif restored.open is not None and asked.turn == restored.turn:
                self._open = asked.key

    def begun(self, message: Waiting) -> None:
        """A turn begins with this message."""
        self._open = message.key if message.asks else ""

    @property
    def is_answering(self) -> bool:
        """Whether the present turn was begun by a question."""
        return bool(self._open)

    def turn_ended(self, ended: EndTurn) -> None:
        """Tells the answer, if the turn is one; it is in the journal."""
        key, self._open = self._open, ""
        if not key:
            return
        self._answers[key] = AnswerQuestion(
            key=key, outcome=ended.outcome, text=cut(ended.text)[0], failure=ended.failure, turn=ended.turn
        )
        while len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._tell(self._answers[key])

    def asked_again(self, key: str) -> None:
        """The same question once more: whoever waits has not heard the answer, if there is one."""
        answer = self._answers.get(key)
        if answer is not None:
            self._tell(answer)

    def _tell(self, answer: AnswerQuestion) -> None:
        task = asyncio.get_running_loop().create_task(self._say(answer))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _say(self, answer: AnswerQuestion) -> None:
        try:
            await self._link.hear(answer)
        except OttoError:
            pass  # It is in the journal; whoever still wants it asks again.

    async def aclose(self) -> None:
        """Waits a little for answers that are on their way."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=SETTLE_S)
        for task in self._telling:
            task.cancel()
