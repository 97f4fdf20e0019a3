"""Trees, the table of `top`, stops and restarts as text: pure renderers."""

from __future__ import annotations

import json

import msgspec
import pytest

from ottoctl.feed import SessionEvent
from ottoctl.rates import Rate
from ottoctl.rendering.ansi import width_of
from ottoctl.rendering.daemon import status_page
from ottoctl.rendering.notices import notice_of
from ottoctl.rendering.sessions import inspect_page, sessions_table
from ottoctl.rendering.stops import named, stop_line
from ottoctl.rendering.stream import StreamRenderer
from ottoctl.rendering.top import LETTERS, SORT_KEYS, top_page, top_rows
from ottoctl.rendering.tree import tree_records, tree_table
from ottod.protocol.cause import Cause
from ottod.protocol.events import (
    ChildExited,
    ContentDelta,
    Event,
    IncarnationExited,
    ItemCompleted,
    SessionStarted,
    SessionStateChanged,
)
from ottod.protocol.results import DaemonStatus, SessionInfo, StopResult
from ottod.protocol.usage import Usage

SECOND_NS = 1_000_000_000
NOW_NS = 1000 * SECOND_NS
MIB = 1 << 20


def session(name: str, parent: str = "", *, created_s: int = 900, **fields: object) -> SessionInfo:
    values: dict[str, object] = {"agent": "coder", "model": "m", "state": "running", "pid": 7, **fields}
    return SessionInfo(session=f"s-{name}", parent=parent, created_at_ns=created_s * SECOND_NS, **values)  # type: ignore[arg-type]


FAMILY = [
    session("aaaaa00000", title="lead", created_s=880),
    session("bbbbb00000", "s-aaaaa00000", created_s=890, state="waiting_children"),
    session("ccccc00000", "s-bbbbb00000", created_s=895, state="waiting_approval", current_tool="shell"),
    session("ddddd00000", "s-aaaaa00000", created_s=892, state="parked", reason="3 restarts in 60 s", title="docs"),
    session("eeeee00000", created_s=940, title="alone"),
]


def test_a_tree_is_drawn() -> None:
    """Branches, the oldest child first, the newest tree first; who waits for somebody is told below."""
    assert tree_table(FAMILY[::-1], now_ns=NOW_NS, width=0, color=False) == (
        "SESSION        AGENT  STATE             AGE  TOKENS   COST  TITLE\n"
        "s-eeeee        coder  running            1m       0  $0.00  alone\n"
        "s-aaaaa        coder  running            2m       0  $0.00  lead\n"
        "├─ s-bbbbb     coder  waiting_children   1m       0  $0.00\n"
        "│  └─ s-ccccc  coder  waiting_approval   1m       0  $0.00  shell\n"
        "└─ s-ddddd     coder  parked             1m       0  $0.00  3 restarts in 60 s · docs\n"
        "? s-ccccc00000 waits for approval (`ottoctl approvals`)\n"
        "? s-ddddd00000 is parked (`ottoctl session unpark s-ddddd00000`)\n"
    )


def test_a_session_that_waits_for_its_provider_says_so() -> None:
    """In `ps`, in `top` and on its page: it runs, and does nothing."""
    why = "its model call has waited for its turn at p for 12 s"
    waiting = session("aaaaa00000", title="lead", reason=why)
    assert f"{why} · lead" in sessions_table([waiting], now_ns=NOW_NS, width=0, color=False)
    assert f"running: {why}" in inspect_page(waiting, now_ns=NOW_NS, color=False)
    rows = top_rows([waiting], {}, sort="cpu")
    assert why in top_page(STATUS, rows, now_ns=NOW_NS, width=0, height=0, color=False, sort="cpu")


def test_states_have_colours() -> None:
    """A child that waits for approval stands out from one that runs."""
    shown = tree_table(FAMILY, now_ns=NOW_NS, width=0, color=True)
    assert "\x1b[33mwaiting_approval\x1b[0m" in shown and "\x1b[32mrunning\x1b[0m" in shown


def test_a_child_without_its_parent_is_a_top() -> None:
    """A parent that is not in the list hides nobody; a session that names itself does not either."""
    orphans = [session("bbbbb00000", "s-gone000000"), session("ccccc00000", "s-ccccc00000")]
    shown = tree_table(orphans, now_ns=NOW_NS, width=0, color=False)
    assert shown.count("s-bbbbb") == shown.count("s-ccccc") == 1 and "─" not in shown


def test_a_deep_tree_is_no_recursion() -> None:
    """A thousand levels are drawn and nested."""
    chain = [session(f"{i:010}", f"s-{i - 1:010}" if i else "", created_s=i) for i in range(1000)]
    assert tree_table(chain, now_ns=NOW_NS, width=0, color=False).count("└─ ") == 999
    (record,) = tree_records(chain)
    depth = 1
    while record["children"]:
        (record,) = record["children"]
        depth += 1
    assert depth == 1000


def test_a_tree_for_programs() -> None:
    """Each session carries its children; the whole is JSON."""
    alone, lead = json.loads(msgspec.json.encode(tree_records(FAMILY)))
    assert alone["children"] == []
    assert [child["session"] for child in lead["children"]] == ["s-bbbbb00000", "s-ddddd00000"]
    assert lead["children"][0]["children"][0]["state"] == "waiting_approval"


STATUS = DaemonStatus(
    version="1.2.3",
    protocol=1,
    pid=4,
    instance="i",
    started_at_ns=0,
    uptime_s=3700.0,
    sessions={"running": 2, "parked": 0},
    loop_lag_p99_ms=1.5,
    isolation={"memory": "partly: a watchdog", "files": "yes: Landlock", "network": "no: bwrap", "process": "yes"},
    counters={"gaps_sent": 3},
    ring_bytes=4 * MIB,
)

BUSY = [
    session("aaaaa00000", memory_bytes=950 * MIB, memory_cap_bytes=1024 * MIB, current_tool="test_runner", title="t"),
    session("bbbbb00000", memory_bytes=30 * MIB, restarts=2, usage=Usage(input_tokens=1500, usd_micros=20_000)),
    session("ccccc00000", state="parked", pid=0, memory_bytes=99 * MIB, reason="flapping"),
]
RATES = {"s-aaaaa00000": Rate(1.5, 12.0), "s-bbbbb00000": Rate()}


def test_top_is_a_table() -> None:
    """Sums above, one line each, the busiest first; a session without a process uses nothing."""
    rows = top_rows(BUSY, RATES, sort="cpu")
    assert top_page(STATUS, rows, now_ns=NOW_NS, width=0, height=0, color=False, sort="cpu") == (
        "ottod 1.2.3, up 1h01m, lag 1.5 ms · 3 sessions: 1 parked, 2 running\n"
        "memory 980.0 MiB · CPU 150 % · 12 events/s · 1,500 tokens · $0.0200 · by cpu\n"
        "\n"
        "ID       STATE    AGENT     MEMORY      CAP    CPU  EVENTS/S  TOKENS     COST  RESTARTS  DOING\n"
        "s-aaaaa  running  coder  950.0 MiB  1.0 GiB  150 %        12       0    $0.00         0  test_runner\n"
        "s-bbbbb  running  coder   30.0 MiB        -      -         -   1,500  $0.0200         2  (1m)\n"
        "s-ccccc  parked   coder          -        -    0 %         0       0    $0.00         0  flapping\n"
    )


@pytest.mark.parametrize(
    ("sort", "first"), [("memory", "a"), ("tokens", "b"), ("cost", "b"), ("restarts", "b"), ("events", "a")]
)
def test_top_sorts(sort: str, first: str) -> None:
    """By any column, the greatest first."""
    assert top_rows(BUSY, RATES, sort=sort)[0].info.session.startswith(f"s-{first}")
    assert sorted(LETTERS.values()) == sorted(SORT_KEYS)


def test_top_fits_the_screen() -> None:
    """Never more lines or columns than there are, and what is left out is counted."""
    many = [session(f"{i:010}", title="long " * 50) for i in range(50)]
    rows = top_rows(many, {}, sort="age")
    page = top_page(STATUS, rows, now_ns=NOW_NS, width=100, height=20, color=True, sort="age")
    lines = page.splitlines()
    assert len(lines) <= 20 and max(width_of(line) for line in lines) <= 100
    assert lines[-1] == "… and 35 more"


def test_a_stop_gives_its_proof() -> None:
    """What was ended, and how it is known; what remains is never dressed up."""
    cause = Cause(kind="cancelled")
    stopped = tuple(f"s-{i}" for i in range(19))
    proved = StopResult(session="s-x", cause=cause, proof="its cgroup is empty", stopped=(*stopped, "s-x"))
    assert stop_line(proved) == "stopped s-x and 19 below it; its cgroup is empty"
    assert stop_line(StopResult(session="s-x", cause=cause)) == "stopped s-x; nothing of it is left"
    left = stop_line(StopResult(session="s-x", cause=cause, remaining_pids=(7, 8), proof="a lie"))
    assert "remain: 7, 8" in left and "lie" not in left
    assert "already" in stop_line(StopResult(session="s-x", cause=cause, already_ended=True))
    assert named([session(f"{i:010}") for i in range(25)]).endswith(" and 5 more")


def test_restarting_and_parked_in_a_list() -> None:
    """The time to the next try; the reason, before the title."""
    infos = [
        session(
            "aaaaa00000", state="restarting", restart_due_ns=NOW_NS + 12 * SECOND_NS, reason="crashed", title="t"
        ),
        session("bbbbb00000", state="restarting", restart_due_ns=NOW_NS - 1, title="t"),
        session("ccccc00000", state="parked", reason="3 restarts\nin 60 s", title="t"),
    ]
    first, second, third = sessions_table(infos, now_ns=NOW_NS, width=0, color=False).splitlines()[1:]
    assert "restarting in 12 s" in first and first.endswith("crashed · t")
    assert "restarting  " in second
    assert third.endswith("3 restarts in 60 s · t")
    assert "session unpark s-ccccc00000" in inspect_page(infos[2], now_ns=NOW_NS, color=False)


CRASH = Cause(kind="crashed", signal="SIGKILL")
LINES: list[tuple[Event, str]] = [
    (IncarnationExited(incarnation=1, cause=CRASH, delay_ms=1200), "✗ crashed (SIGKILL): incarnation 2 in 1.2 s"),
    (IncarnationExited(incarnation=3, cause=CRASH), "✗ crashed (SIGKILL): incarnation 4 at once"),
    (
        IncarnationExited(incarnation=1, cause=Cause(kind="crashed", status=3), restart="group"),
        "✗ crashed (status 3): incarnation 2 with its group",
    ),
    (
        IncarnationExited(
            incarnation=1,
            cause=Cause(kind="memory", cap_bytes=1024 * MIB, peak_bytes=1100 * MIB, last_tool="shell"),
            restart="parked",
            remaining_pids=(5,),
        ),
        "✗ memory (peak 1.1 GiB, cap 1.0 GiB, shell): no further try; these processes remain: 5",
    ),
    (ChildExited(child="s-c", cause=Cause(kind="completed")), "↳ s-c has ended: completed"),
    (
        ChildExited(child="s-c", cause=Cause(kind="failed", message="gave\nup")),
        "↳ s-c has ended: failed: gave up",
    ),
]


@pytest.mark.parametrize(("event", "line"), LINES, ids=range(len(LINES)))
def test_supervision_in_words(event: Event, line: str) -> None:
    """Lost processes and ended children are told in one line each."""
    notice = notice_of(event)
    assert notice is not None and notice.text == line


def test_an_answer_that_begins_again_is_not_doubled() -> None:
    """What was cut is declared void before it comes again; an answer that was whole is not."""
    events: list[Event] = [
        ContentDelta(stream="text", text="First.", item="1.1"),
        ItemCompleted(item="1.1", kind="assistant_message", text="First."),
        ContentDelta(stream="text", text="The answ", item="1.2"),
        IncarnationExited(incarnation=1, cause=CRASH),
        SessionStateChanged(state="restarting", previous="running", reason="crashed"),
        SessionStarted(pid=2, incarnation=2),
        ContentDelta(stream="text", text="The answer", item="1.2"),
        ContentDelta(stream="text", text=" is 42.", item="1.2"),
        ItemCompleted(item="1.2", kind="assistant_message", text="The answer is 42."),
    ]
    renderer = StreamRenderer()
    chunks = [c for e in events for c in renderer.event(SessionEvent(1, 1, "s-x", 0, "state", e), now_ns=0)]
    assert "".join(c.text for c in [*chunks, *renderer.finish()]) == (
        "First.\n"
        "The answ\n"
        "✗ crashed (SIGKILL): incarnation 2 at once\n"
        "↻ restarted, incarnation 2\n"
        "↻ this answer begins again; the part above counts no more\n"
        "The answer is 42.\n"
    )


def test_the_daemons_page_begins_with_what_a_user_wants() -> None:
    """Sessions and isolation first; the inner counters only when asked for; overload is news by itself."""
    page = status_page(STATUS, color=False)
    assert page.splitlines()[:3] == [
        "daemon     ottod 1.2.3, pid 4, up 1h01m",
        "sessions   2 running",
        "isolation  files, process; memory partly; network missing",
    ]
    assert "gaps" not in page and "lag" not in page
    assert "gaps sent" in status_page(STATUS, verbose=True, color=False)
    assert "overloaded" in status_page(msgspec.structs.replace(STATUS, loop_lag_p99_ms=80.0), color=False)
