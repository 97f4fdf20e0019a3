"""The crash-point sweep: one life of a session for each place at which its worker can be killed.

Every session plays the same script: six model calls, fourteen tool calls, some side by side, some of tools that may
be repeated and some of tools that may not. What the latter do is seen from outside: each appends a line to a file
that nothing in Otto reads. The worker kills itself at one place (`ottod.worker.failpoints`), the session goes on in
another incarnation, and both its books and its effects are compared with those of a session that was not disturbed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ottoctl.sync import SyncOtto, SyncSession
from ottod.core.resume import UNKNOWN, restore
from ottod.core.turn import is_valid_conversation
from ottod.protocol import journal as j
from ottod.protocol.events import ToolStarted
from ottod.protocol.specs import AgentSpec, Backoff, Restart
from ottod.worker.failpoints import VARIABLE
from tests.daemon.harness import RealDaemon

POINTS = ("before", "torn", "written", "synced")
"""Of each record; see `ottod.worker.failpoints`."""
TOOLS = ("shell", "fs_read", "fs_write", "fs_edit", "fs_list", "grep")
IDEMPOTENT = {"fs_read", "fs_write", "fs_list", "grep"}
EFFECTS = "effects"
"""Where the commands leave their lines, in the session's directory."""
RESULT = "all of it is done"
LASTING = Restart(policy="transient", backoff=Backoff(base_s=0.0, max_s=0.0, jitter=0.0))


class Place(msgspec.Struct, frozen=True):
    """Where the first incarnation dies. Without a point it does not."""

    point: str = ""
    record: int = 0

    def __str__(self) -> str:
        return f"{self.point} {self.record}" if self.point else "undisturbed"


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What one session cost and did."""

    place: Place
    result: str
    incarnations: int
    kinds: tuple[str, ...]
    """Of the journal's records."""
    model_calls: int
    responses: int
    effects: dict[str, int]
    """Lines that were left, by command and idempotency key."""
    unknown: int
    """Calls of which the model heard that nobody knows."""
    repeats: int
    """Beginnings of calls beyond the first."""
    repeated_wrongly: int
    """Of tools that may not be repeated."""
    edited: str
    is_valid: bool

    @property
    def extra_effects(self) -> int:
        return sum(count - 1 for count in self.effects.values())


def _effect(name: str) -> dict[str, object]:
    return {"name": "shell", "arguments": {"command": f'echo "{name} $$OTTO_IDEMPOTENCY_KEY" >> {EFFECTS}'}}


def _call(tool: str, **arguments: object) -> dict[str, object]:
    return {"name": tool, "arguments": arguments}


TURNS: tuple[dict[str, object], ...] = (
    {"text": "first", "tools": [_effect("a"), _call("fs_read", path="notes")]},
    {"tools": [_effect("b"), _effect("c"), _call("grep", pattern="x"), _call("fs_list")]},
    {"text": "then", "tools": [_call("fs_write", path="new", content="x"), _effect("d")]},
    {"tools": [_call("fs_edit", path="notes", old="one", new="two")]},
    {
        "tools": [
            _call("fs_read", path="new"),
            _effect("e"),
            _call("fs_read", path="notes"),
            _effect("f"),
            _effect("g"),
        ]
    },
    {"text": RESULT},
)


class Sweep:
    """Sessions of one daemon, some at a time."""

    def __init__(self, daemon: RealDaemon, otto: SyncOtto, *, at_once: int = 8) -> None:
        self._daemon = daemon
        self._otto = otto
        self._at_once = at_once
        self._model = daemon.script("sweep", *TURNS)
        self._count = 0

    def live(self, places: Iterable[Place]) -> Iterator[Life]:
        """Runs one session for each place to its end, in this order."""
        waiting = list(places)
        while waiting:
            batch, waiting = waiting[: self._at_once], waiting[self._at_once :]
            started = [(place, *self._start(place)) for place in batch]
            for place, session, directory in started:
                session.wait(timeout_s=300.0)
                yield _life(place, session, directory)

    def _start(self, place: Place) -> tuple[SyncSession, Path]:
        self._count += 1
        directory = self._daemon.workdir / f"life-{self._count}"
        directory.mkdir()
        (directory / "notes").write_text("one\n")
        env = {"PATH": os.environ["PATH"]}
        if place.point:
            env[VARIABLE] = f"1:{place.point}:{place.record}"
        spec = AgentSpec(name="swept", model=self._model, tools=TOOLS, env=(VARIABLE,), restart=LASTING)
        return self._otto.start(spec=spec, task="go", cwd=directory, env=env), directory


def _life(place: Place, session: SyncSession, directory: Path) -> Life:
    info, entries = session.info(), session.journal()
    starts = Counter(
        (e.event.tool, e.event.step, e.event.call) for e in session.events(0) if isinstance(e.event, ToolStarted)
    )
    again = {call: count - 1 for call, count in starts.items() if count > 1}
    lines = (directory / EFFECTS).read_text().splitlines() if (directory / EFFECTS).exists() else []
    return Life(
        place=place,
        result=info.result,
        incarnations=info.incarnation,
        kinds=tuple(str(entry.__struct_config__.tag) for entry in entries),
        model_calls=sum(isinstance(e, j.ModelCalled) for e in entries),
        responses=sum(isinstance(e, j.ModelResponded) for e in entries),
        effects=dict(Counter(lines)),
        unknown=sum(isinstance(e, j.ToolResolved) and e.result.text == UNKNOWN for e in entries),
        repeats=sum(again.values()),
        repeated_wrongly=sum(count for (tool, _, _), count in again.items() if tool not in IDEMPOTENT),
        edited=(directory / "notes").read_text(),
        is_valid=is_valid_conversation(restore(entries).messages),
    )


def what_is_wrong(life: Life, undisturbed: Life) -> list[str]:
    """How a session that was killed once differs from the other in what must be the same."""
    wrong = []
    if life.result != undisturbed.result:
        wrong.append(f"its result is {life.result!r}")
    if life.responses != undisturbed.responses:
        wrong.append(f"{life.responses} responses, not {undisturbed.responses}")
    if life.model_calls > undisturbed.model_calls + 1:
        wrong.append(f"{life.model_calls} model calls, {undisturbed.model_calls} would have done")
    if life.extra_effects:
        wrong.append(f"effects were repeated: {life.effects}")
    if life.repeated_wrongly:
        wrong.append("a call that may not be repeated was")
    names = {line.split()[0] for line in life.effects}
    missing = {line.split()[0] for line in undisturbed.effects} - names
    missing_edit = life.edited != undisturbed.edited
    if len(missing) + missing_edit > life.unknown:
        wrong.append(f"effects are missing and nobody was told: {sorted(missing)}")
    if not life.is_valid:
        wrong.append("its conversation is not valid")
    if life.incarnations > 2:
        wrong.append(f"{life.incarnations} incarnations")
    return wrong


def table(lives: list[Life], undisturbed: Life) -> str:
    """The sweep as Markdown: a row for each record, a column for each place at it."""
    cells = {(life.place.record, life.place.point): life for life in lives}
    effects = sum(undisturbed.effects.values())
    head = (
        f"Undisturbed: {undisturbed.model_calls} model calls, {effects} effects of commands, "
        f"{len(undisturbed.kinds)} records. A cell: model calls beyond that, repeated effects, calls that became "
        "`unknown`, harmless calls begun again; `–` where the session was not killed."
    )
    rows = [
        head,
        "",
        "| record | kind | " + " | ".join(POINTS) + " |",
        "|---|---|" + "---|" * len(POINTS),
    ]
    for number, kind in enumerate(undisturbed.kinds):
        found = [_cell(cells.get((number, point)), undisturbed) for point in POINTS]
        rows.append(f"| {number} | {kind} | " + " | ".join(found) + " |")
    killed = [life for life in lives if life.incarnations > 1]
    most = max((life.model_calls - undisturbed.model_calls for life in lives), default=0)
    foot = (
        f"{len(lives)} sessions, {len(killed)} of them killed. Model calls beyond the undisturbed run: {most} at "
        f"most. Repeated effects: {sum(life.extra_effects for life in lives)}. Different results: "
        f"{sum(life.result != undisturbed.result for life in lives)}."
    )
    rows += ["", foot]
    return "\n".join(rows)


def _cell(life: Life | None, undisturbed: Life) -> str:
    if life is None:
        return ""
    if life.incarnations == 1:
        return "–"
    counts = (
        life.model_calls - undisturbed.model_calls,
        life.extra_effects,
        life.unknown,
        life.repeats,
    )
    return "+{} / {} / {} / {}".format(*counts)
