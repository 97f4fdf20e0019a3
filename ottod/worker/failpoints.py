"""Named points at which a worker dies on purpose, for tests. Outside of them none is ever set.

The daemon's own environment must say `OTTO_FAILPOINTS=1`. Then a session's variable `FAILPOINT` may name places,
`INCARNATION:POINT:NUMBER` with commas between them: the incarnation kills itself with SIGKILL where that comes true
of the journal's record NUMBER, or of its rotation NUMBER.

    before    the record has not been written
    torn      half of it is in the file
    written   it is in the file, and nothing else has followed from it
    synced    it is on disk, and nothing that waits for that has happened
    held      it is not killed: the record is not on disk before there is a file `go` in the session's directory

and `rotation-made`, `-written`, `-linked`, `-renamed`, `-durable` and `-compressed` (`ottod.storage.journal`).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ottod.protocol.birth import Birth

SWITCH = "OTTO_FAILPOINTS"
VARIABLE = "FAILPOINT"
WORKFLOW_VARIABLE = "WORKFLOW_FAILPOINT"
"""A workflow heeds this one instead; the sessions of its steps inherit both."""
LOOK_S = 0.01


class Failpoints:
    """Those of one incarnation."""

    def __init__(self, places: frozenset[tuple[str, int]] = frozenset(), directory: str = "") -> None:
        self._places = places
        self._go = Path(directory) / "go"

    @classmethod
    def of(cls, birth: Birth) -> Failpoints:
        """What the session's environment asks for, if the daemon's allows it."""
        if os.environ.get(SWITCH) != "1":
            return cls()
        variable = VARIABLE if birth.workflow is None else WORKFLOW_VARIABLE
        places = (place.split(":") for place in birth.env.get(variable, "").split(",") if place)
        mine = frozenset((point, int(n)) for number, point, n in places if int(number) == birth.incarnation)
        return cls(mine, birth.session_dir)

    def is_set(self, point: str, number: int) -> bool:
        return (point, number) in self._places

    def hold(self, numbers: range) -> None:
        """On a thread: blocks while one of these records is to be held."""
        while any(("held", number) in self._places for number in numbers) and not self._go.exists():
            time.sleep(LOOK_S)

    def reached(self, point: str, number: int) -> None:
        """Dies here, if that is wanted."""
        if (point, number) in self._places:
            os.kill(os.getpid(), signal.SIGKILL)
