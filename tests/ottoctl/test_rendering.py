"""The pure renderers, against golden text. A live region is judged by replaying it on a small screen."""

from __future__ import annotations

import re

import pytest

from ottoctl.feed import SessionEvent
from ottoctl.rendering.amounts import age, cost, cost_of_all, duration, size, tokens, usd
from ottoctl.rendering.ansi import clip, paint, printable, width_of
from ottoctl.rendering.approvals import approvals_table
from ottoctl.rendering.cost import cost_table
from ottoctl.rendering.diffs import diff_text
from ottoctl.rendering.events import event_line
from ottoctl.rendering.sessions import sessions_table, short_ids
from ottoctl.rendering.stream import Chunk, StreamRenderer
from ottoctl.rendering.table import Cell, render_table
from ottoctl.rendering.tools import argument_summary, result_summary
from ottod.errors import Failure
from ottod.protocol.cause import Cause
from ottod.protocol.events import (
    ApprovalRequested,
    ApprovalResolved,
    ChildExited,
    ContentDelta,
    Event,
    Gap,
    ItemCompleted,
    LogWarning,
    ModelRetried,
    SessionExited,
    SessionStarted,
    SessionStateChanged,
    StepEnded,
    ToolCompleted,
    ToolFailed,
    ToolProgress,
    ToolStarted,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    Unknown,
    UsageUpdated,
)
from ottod.protocol.results import CostRow, PendingApproval, SessionInfo, WaitingApproval
from ottod.protocol.usage import Usage

SID = "s-7f3k2m9qxa"
SECOND_NS = 1_000_000_000


class Screen:
    """A terminal of unlimited width: text, line feeds, `erase line` and `cursor up`, nothing else."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = 0

    def feed(self, text: str) -> None:
        for part in re.split(r"(\r|\n|\x1b\[2K|\x1b\[1A|\x1b\[[0-9;]*m)", text):
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
                assert self.lines[self.row] == "", "a line feed went into a line that was not erased"
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            elif part == "\x1b[1A":
                self.row -= 1
            elif part and part != "\r" and not part.startswith("\x1b["):
                assert "\x1b" not in part
                self.lines[self.row] += part

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def at(event: Event | Unknown, seconds: float = 0.0, lane: str = "state") -> SessionEvent:
    return SessionEvent(1, 1, SID, round(seconds * SECOND_NS), lane, event)


def text(words: str, item: str = "i1") -> ContentDelta:
    return ContentDelta(stream="text", text=words, item=item)


USAGE = Usage(input_tokens=12_300, output_tokens=1_250, cache_read_tokens=8_000, usd_micros=12_345, calls=3)

STORY: list[Event | Unknown] = [
    SessionStarted(pid=1, incarnation=1),
    TurnStarted(turn=1, input="make the tests pass"),
    ContentDelta(stream="reasoning", text="Let me look\nat it.", item="r1"),
    text("I will run "),
    text("the tests."),
    ItemCompleted(item="i1", kind="assistant_message", text="I will run the tests."),
    ToolStarted(call="a", tool="test_runner", arguments='{"command": "pytest -q"}'),
    ToolStarted(call="b", tool="fs_read", arguments='{"path": "src/calc.py"}'),
    ToolProgress(call="a", message="2 of 3"),
    ToolCompleted(call="b", tool="fs_read", output="a\nb\nc\n", duration_ms=12),
    ToolCompleted(
        call="a", tool="test_runner", output="..F\n1 failed, 2 passed in 1.2s\n", duration_ms=1400, exit_status=1
    ),
    ModelRetried(model="m", attempt=1, delay_ms=1500, failure=Failure(code="rate_limited", message="slow down")),
    ToolFailed(
        call="c", tool="shell", failure=Failure(code="timeout", message="timed out after 2 s"), duration_ms=2000
    ),
    UsageUpdated(model="m", provider="p", usage=USAGE, total=USAGE),
    text("Done.\n", "i2"),
    ItemCompleted(item="i2", kind="assistant_message", text="Done.\n"),
    TurnCompleted(turn=1, steps=3, usage=USAGE, duration_ms=4200),
    SessionExited(cause=Cause(kind="completed"), result="Done.", usage=USAGE, duration_ms=14_200),
]

GOLDEN = """\
› make the tests pass
Let me look
at it.
I will run the tests.
✓ fs_read src/calc.py · 3 lines 12ms
✗ test_runner pytest -q · 1 failed, 2 passed 1.4s
↻ m: rate_limited; attempt 2 in 1.5s
✗ shell · timed out after 2 s 2.0s
Done.
· turn 1: 12.3k in / 1,250 out / 8,000 cached · $0.0123 so far · 4.2s
✓ completed · 1 turn · 12.3k in / 1,250 out / 8,000 cached · $0.0123 · 14.2s · s-7f3k2m9qxa
"""


def play(renderer: StreamRenderer, events: list[Event | Unknown]) -> list[Chunk]:
    chunks: list[Chunk] = []
    for i, event in enumerate(events):
        chunks += renderer.event(at(event, i), now_ns=i * SECOND_NS)
    return chunks + renderer.finish()


def test_a_session_as_plain_lines() -> None:
    """The golden story, without colour, without a terminal."""
    chunks = play(StreamRenderer(show_turns=True), STORY)
    assert "".join(c.text for c in chunks) == GOLDEN


def test_a_session_on_a_terminal_ends_up_the_same() -> None:
    """Spinners and colours leave no trace: the screen at the end reads as the plain lines do."""
    screen = Screen()
    renderer = StreamRenderer(color=True, live=True, width=100, show_turns=True)
    for i, event in enumerate(STORY):
        for chunk in renderer.event(at(event, i), now_ns=i * SECOND_NS):
            screen.feed(chunk.text)
        for tick in range(3):
            for chunk in renderer.tick(now_ns=i * SECOND_NS + tick * 100_000_000):
                screen.feed(chunk.text)
    for chunk in renderer.finish():
        screen.feed(chunk.text)
    assert screen.text == GOLDEN


def test_running_tools_spin_with_their_time() -> None:
    """Each running tool has a line: frame, arguments, progress, elapsed time."""
    screen = Screen()
    renderer = StreamRenderer(live=True, width=60)
    for i, event in enumerate(STORY[6:9]):
        for chunk in renderer.event(at(event, 10 + i), now_ns=(10 + i) * SECOND_NS):
            screen.feed(chunk.text)
    for chunk in renderer.tick(now_ns=12_300_000_000):
        screen.feed(chunk.text)
    assert screen.lines == ["⠸ test_runner pytest -q · 2 of 3 … 2.3s", "⠸ fs_read src/calc.py … 1.3s"]
    assert renderer.has_live_region


def test_waiting_for_the_model_shows() -> None:
    """Between a turn's start and the first word there is a sign of life, and none after the turn."""
    renderer = StreamRenderer(live=True)
    chunks = renderer.event(at(TurnStarted(turn=1), 5), now_ns=7 * SECOND_NS)
    assert chunks == [Chunk("view", "⠋ thinking 2.0s")]
    renderer.event(at(TurnCompleted(turn=1), 8), now_ns=8 * SECOND_NS)
    assert not renderer.has_live_region


def test_waiting_for_an_approval_shows() -> None:
    """It is somebody's answer that is waited for, not the model, also when another call ends meanwhile."""
    renderer = StreamRenderer(live=True)
    renderer.event(at(TurnStarted(turn=1), 1), now_ns=1 * SECOND_NS)
    renderer.event(at(ToolStarted(call="b", tool="grep"), 2), now_ns=2 * SECOND_NS)
    asked = ApprovalRequested(approval="a-7f", call="a", tool="shell")
    (*_, both) = renderer.event(at(asked, 3), now_ns=4 * SECOND_NS)
    assert both.text.split("\n") == ["⠋ grep … 2.0s", "⠋ waits for approval a-7f (1.0s)"]
    (*_, asking) = renderer.event(at(ToolCompleted(call="b", tool="grep"), 5), now_ns=6 * SECOND_NS)
    assert asking.text == "⠋ waits for approval a-7f (3.0s)"
    (*_, thinking) = renderer.event(at(ApprovalResolved(approval="a-7f", decision="denied"), 7), now_ns=7 * SECOND_NS)
    assert thinking.text == "⠋ thinking 2.0s"


def test_a_live_line_never_wraps() -> None:
    """A line that wraps could not be erased."""
    renderer = StreamRenderer(live=True, width=40)
    arguments = '{"command": "' + "long " * 40 + '"}'
    (chunk,) = renderer.event(at(ToolStarted(call="a", tool="shell", arguments=arguments)), now_ns=1500 * SECOND_NS)
    assert width_of(chunk.text) < 40


def test_many_tools_show_few_lines() -> None:
    """The region is bounded."""
    renderer = StreamRenderer(live=True)
    for i in range(20):
        chunks = renderer.event(at(ToolStarted(call=str(i), tool="grep")), now_ns=0)
    assert chunks[-1].text.split("\n")[-1] == "  … and 14 more"


def test_piped_answer_is_the_answer_alone() -> None:
    """With the text channel piped away, it carries the agent's words and whole lines, nothing else."""
    chunks = play(StreamRenderer(split=True), STORY)
    assert "".join(c.text for c in chunks if c.to == "text") == "I will run the tests.\nDone.\n"
    view = "".join(c.text for c in chunks if c.to == "view")
    assert "I will" not in view and view.count("\n\n") == 0


def test_text_that_was_not_streamed_is_shown_once() -> None:
    """Without deltas the whole message shows; with them it does not come again."""
    silent = play(StreamRenderer(), [ItemCompleted(item="x", kind="assistant_message", text="whole")])
    assert "".join(c.text for c in silent) == "whole\n"
    both = play(StreamRenderer(), [text("who", "x"), ItemCompleted(item="x", kind="assistant_message", text="who")])
    assert "".join(c.text for c in both) == "who\n"


def test_the_result_shows_if_nothing_was_said() -> None:
    """A session whose words were missed still shows its result."""
    chunks = play(StreamRenderer(), [SessionExited(cause=Cause(kind="completed"), result="42")])
    assert "".join(c.text for c in chunks) == f"42\n✓ completed · {SID}\n"


def test_a_bad_end_says_why() -> None:
    """The cause's message and what remains are told."""
    cause = Cause(kind="crashed", signal="SIGKILL", message="killed from outside")
    chunks = play(StreamRenderer(), [SessionExited(cause=cause, duration_ms=90_000, remaining_pids=(7, 8))])
    assert "".join(c.text for c in chunks) == (
        f"✗ crashed(SIGKILL) · 1m30s · {SID}\n  killed from outside\n  these processes remain: 7, 8\n"
    )


def test_the_end_of_a_turn_is_not_told_twice() -> None:
    """What ended the session with its only turn stands in one line; another reason is told as well."""
    failure = Failure(code="budget", message="no room for another call", mend="raise budgets.tokens")
    failed = TurnFailed(turn=1, failure=failure)
    for message, told in (("no room for another call (raise budgets.tokens)", 1), ("the disk is full", 2)):
        chunks = play(StreamRenderer(), [failed, SessionExited(cause=Cause(kind="budget", message=message))])
        text = "".join(c.text for c in chunks)
        assert text.count("no room for another call (raise budgets.tokens)") == 1
        assert text.startswith("✗ turn 1 failed: ") and f"\n✗ budget · {SID}\n" in text.replace(" · 1 turn", "")
        assert len(text.splitlines()) == told + 1
    steps: list[Event | Unknown] = [
        ChildExited(child="s-c", cause=Cause(kind="budget", message="no room")),
        StepEnded(
            path="build", attempt=1, outcome="failed", failure=Failure(code="x", message="build: budget: no room")
        ),
        SessionExited(cause=Cause(kind="budget", message="build: budget: no room")),
    ]
    text = "".join(c.text for c in play(StreamRenderer(), steps))
    assert (
        text.count("no room") == 1 and "✗ build · build: budget · " in text and text.endswith("\n  build: budget\n")
    )
    later = [failed, TurnStarted(turn=2, input="go on"), SessionExited(cause=Cause(kind="failed", message="raised"))]
    assert "\n  raised\n" in "".join(c.text for c in play(StreamRenderer(), later))


NOTICES: list[tuple[Event | Unknown, str]] = [
    (Gap(first=5, last=9, reason="evicted", session=SID), f"… up to 5 events of {SID} are missing (evicted)"),
    (Gap(first=9, last=9, reason="evicted"), "… up to 1 event is missing (evicted)"),
    (LogWarning(message="low\ndisk"), "! low disk"),
    (SessionStarted(pid=1, incarnation=2), "↻ restarted, incarnation 2"),
    (
        SessionStateChanged(state="parked", previous="running", reason="flapping"),
        f"■ parked: flapping; `ottoctl session unpark {SID}` gives it another try",
    ),
    (
        ApprovalRequested(approval="ap1", call="c", tool="shell", arguments='{"command":"rm x"}'),
        "? shell rm x needs approval ap1: `ottoctl approve ap1` or `ottoctl deny ap1`",
    ),
    (Unknown(type="future.event", fields={"a": 1}), ""),
    (SessionStateChanged(state="running", previous="idle"), ""),
]


@pytest.mark.parametrize(("event", "line"), NOTICES, ids=[str(i) for i in range(len(NOTICES))])
def test_notices(event: Event | Unknown, line: str) -> None:
    """What deserves a line gets one; the rest is silent."""
    chunks = play(StreamRenderer(), [event])
    assert "".join(c.text for c in chunks) == (line + "\n" if line else "")


HOSTILE = [
    "\x1b]0;owned\x07text",
    "\x1b[2J\x1b[Htext",
    "\x1b]52;c;Zm9v\x1b\\text",
    "te\x08\x07xt"[:2] + "xt",
    "\x9b31mtext",
    "\u202etext\u202c",
    "\x1bPq\x1b\\text",
    "text\x1b",
    "text\x1b]8;;http://x",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_nobody_drives_the_readers_terminal(hostile: str) -> None:
    """Escape sequences and control characters in what models and tools say are removed."""
    assert re.fullmatch(r"(31m)?text", printable(hostile))
    cause = Cause(kind="failed", message=hostile)
    events: list[Event | Unknown] = [
        text(hostile),
        ToolStarted(call="a", tool=hostile, arguments=f'{{"command": {hostile!r}}}'),
        ToolCompleted(call="a", tool=hostile, output=hostile),
        LogWarning(message=hostile),
        SessionExited(cause=cause),
    ]
    shown = "".join(c.text for c in play(StreamRenderer(), events))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)


@pytest.mark.parametrize(
    ("arguments", "summary"),
    [
        ('{"path": "a.py", "content": "x"}', "a.py"),
        ('{"pattern": "foo", "path": "src"}', "foo src"),
        ('{"paths": ["a", "b"]}', "a b"),
        ('{"n": 3}', "3"),
        ("{}", ""),
        ('{"content": 1, "command": "echo ' + "x" * 99, "echo " + "x" * 54 + "…"),
        ('{"paths": ["a", "b', '{"paths": ["a", "b'),
        ("[1]", "[1]"),
        ("nonsense", "nonsense"),
        (
            '{"nodes": [{"title": "Go on", "kind": "goal", "confidence": 80}, {"kind": "option", "title": "Stop"}]}',
            "goal Go on, option Stop",
        ),
        ('{"edges": [{"source": "a", "kind": "leads_to", "target": "d-7f3k2"}]}', "a leads_to d-7f3k2"),
        ('{"changes": [{"node": "d-7f3k2", "status": "abandoned", "x": {"y": 1}}]}', "d-7f3k2 abandoned"),
        ('{"nodes": [{"kind": "goal", "title": "Cut in the mid', "Cut in the mid"),
        ('{"all": true, "none": null}', "true"),
        ('{"filter": {"status": "active", "weak": false}}', "active false"),
        ('{"deep": [[1], {"a": [2]}]}', "…"),
    ],
)
def test_argument_summaries(arguments: str, summary: str) -> None:
    """The argument that says most, also from JSON that was cut or never was any."""
    assert argument_summary(arguments) == summary


@pytest.mark.parametrize(
    ("output", "status", "summary"),
    [
        ("", None, ""),
        ("", 2, "exit 2"),
        ("one\n", 0, "one"),
        ("a\nb\n", 1, "exit 1, 2 lines"),
        ("== 3 passed, 1 skipped in 0.1s ==", 0, "3 passed, 1 skipped"),
        ("FAILED x\n1 failed, 2 passed in 1s\nbye\n", 1, "1 failed, 2 passed"),
    ],
)
def test_result_summaries(output: str, status: int | None, summary: str) -> None:
    """Test counts if there are any, else the line, else how many."""
    assert result_summary(output, status) == summary


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0ms"),
        (0, "0ms"),
        (0.012, "12ms"),
        (0.9996, "1.0s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (125, "2m05s"),
        (3600, "1h00m"),
        (90_000, "1d01h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    """Short and never `60.0s`."""
    assert duration(seconds) == shown


def test_amounts() -> None:
    """Unknown is not free; units switch where they should."""
    assert [usd(m) for m in (None, 0, 50, 12_345, 1_500_000)] == ["-", "$0.00", "<$0.0001", "$0.0123", "$1.50"]


UNPRICED, PRICED, FREE = Usage(calls=1), Usage(calls=1, usd_micros=1_500_000), Usage(calls=1, usd_micros=0)


def test_unknown_is_not_free_in_any_table() -> None:
    """Nothing spent is $0.00, a price that nobody knows is `-`, and a sum with such a part is a least."""
    assert [cost(usage) for usage in (Usage(), FREE, PRICED, UNPRICED)] == ["$0.00", "$0.00", "$1.50", "-"]
    sums = [(), (Usage(), FREE), (UNPRICED,), (UNPRICED, PRICED), (UNPRICED, FREE)]
    assert [cost_of_all(usages) for usages in sums] == ["$0.00", "$0.00", "-", "≥ $1.50", "≥ $0.00"]
    rows = [
        CostRow(key="mixed", usage=UNPRICED + PRICED, unpriced_calls=1),
        CostRow(key="known", usage=PRICED),
        CostRow(key="free", usage=FREE),
        CostRow(key="unknown", usage=UNPRICED, unpriced_calls=1),
    ]
    table = cost_table(rows, by="agent", width=0, color=False)
    assert [re.search(r"(≥ )?(\$[\d.]+|-)(?= +-$)", line)[0] for line in table.splitlines()[1:]] == [  # type: ignore[index]
        "≥ $1.50",
        "$1.50",
        "$0.00",
        "-",
        "≥ $3.00",
    ]
    assert [tokens(n) for n in (0, 999, 4012, 9999, 10_000, 999_949, 999_950)] == [
        "0",
        "999",
        "4,012",
        "9,999",
        "10.0k",
        "999.9k",
        "1.0M",
    ]
    assert [size(n) for n in (5, 1024, 1_048_524, 1_048_576)] == ["5 B", "1.0 KiB", "1023.9 KiB", "1.0 MiB"]
    assert [age(s) for s in (-5, 0.5, 59, 61, 7200, 200_000)] == ["now", "now", "59s", "1m", "2h", "2d"]


def test_the_table_of_sessions() -> None:
    """The golden table: short ids, cause instead of `ended`, title cut to the width."""
    infos = [
        SessionInfo(
            session=f"s-7f3k2m9qx{c}",
            agent="coder",
            model="m",
            state="ended" if c == "b" else "running",
            cause=Cause(kind="crashed", signal="SIGKILL") if c == "b" else None,
            created_at_ns=SECOND_NS,
            turn=2,
            usage=USAGE,
            title="fix\nthe flaky test in the calculator",
        )
        for c in "ab"
    ]
    shown = sessions_table(infos, now_ns=301 * SECOND_NS, width=96, color=False)
    assert max(width_of(line) for line in shown.splitlines()) == 96
    assert shown == (
        "ID            STATE             AGENT  AGE  TURNS  TOKENS     COST  TITLE\n"
        "s-7f3k2m9qxa  running           coder   5m      2   21.6k  $0.0123  fix the flaky test in the c…\n"
        "s-7f3k2m9qxb  crashed(SIGKILL)  coder   5m      2   21.6k  $0.0123  fix the flaky test in the c…\n"
    )


def test_short_ids_tell_sessions_apart() -> None:
    """As short as five digits, as long as needed."""
    assert short_ids(["s-7f3k2m9qxa"]) == {"s-7f3k2m9qxa": "s-7f3k2"}
    assert set(short_ids(["s-7f3k2m9qxa", "s-7f3k2m0000"]).values()) == {"s-7f3k2m9", "s-7f3k2m0"}
    assert short_ids([]) == {}


def test_wide_characters_are_counted() -> None:
    """Columns are what a terminal shows, not characters."""
    assert (width_of("日本"), width_of("e\u0301"), width_of(paint("x", "bold red", color=True))) == (4, 1, 1)
    assert clip("日本語", 5) == "日本…"
    table = render_table(("A", "B"), [[Cell("日", "red"), "x"], ["ab", "y"]], width=0, color=False)
    assert table == "A   B\n日  x\nab  y\n"


def test_an_event_line() -> None:
    """Raw events for a terminal: place, kind, fields; cut to the width."""
    line = event_line(at(ToolStarted(call="c1", tool="grep", arguments='{"a":1}')), color=False, width=0)
    assert re.fullmatch(rf' +1  {SID}/1 .*  tool\.started call="c1" tool="grep" arguments="\{{\\"a\\":1\}}"', line), (
        line
    )
    assert width_of(event_line(at(text("x" * 500)), color=False, width=80)) <= 80


def test_what_a_call_would_change_stands_below_the_table() -> None:
    """Each with its id; lines in the colours that diffs have, and nothing that could drive a terminal."""
    diff = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-one\n+two\x1b[2J\n"
    plain = PendingApproval(approval="a-1111111111", call="c", tool="shell", asked_at_ns=0)
    changing = PendingApproval(approval="a-2222222222", call="c", tool="fs_edit", asked_at_ns=0, diff=diff)
    waiting = [WaitingApproval(session="s-1", agent="x", title="", approval=each) for each in (plain, changing)]
    shown = approvals_table(waiting, now_ns=0, width=100, color=False, full_ids=True)
    assert shown.endswith("\n\na-2222222222 would change\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-one\n+two\n")
    assert shown.count("would change") == 1
    assert diff_text("-a\n+b\n c\n", color=True) == "\x1b[31m-a\x1b[0m\n\x1b[32m+b\x1b[0m\n c\n"
