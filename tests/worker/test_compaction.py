"""A conversation that outgrows its model's context goes on from a summary, which is paid for once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ottod.core.context import SUMMARY_HEAD
from ottod.core.resume import restore
from ottod.core.turn import is_valid_conversation
from ottod.ids import session_key
from ottod.protocol import journal as j
from ottod.protocol.events import ContentDelta, ItemCompleted, ItemStarted, LogWarning, UsageUpdated
from ottod.protocol.model import UserMessage
from ottod.protocol.specs import ContextRules
from ottod.protocol.worker import Exiting
from ottod.storage.journal import Journal
from tests.fakes.fake_root import FakeRoot

STEPS = 6
BIG = "0123456789" * 120
"""Read by each step: 300 tokens, where a token is four characters."""
WINDOW_TOKENS = 2000
"""Half of it is left for the conversation; 700 tokens are the threshold."""
KEPT = {"tools": [{"name": "fs_read", "arguments": {"path": "f"}}]}
TURNS = [*({"text": f"step {n}", **KEPT} for n in range(1, STEPS + 1)), {"text": "the end, after ${step} steps"}]
SUMMARY = {"text": "I have read f ${step} times.", "usage": {"input_tokens": 50, "output_tokens": 7}}


@contextmanager
def rooted(base: Path) -> Iterator[FakeRoot]:
    base.mkdir()
    root = FakeRoot(base)
    try:
        root.context_tokens = WINDOW_TOKENS
        (root.workdir / "f").write_text(BIG)
        root.script(*TURNS, summary=SUMMARY)
        yield root
    finally:
        root.close()


@pytest.fixture
def long_root(tmp_path: Path) -> Iterator[FakeRoot]:
    with rooted(tmp_path / "root") as root:
        yield root


def of_kind(root: FakeRoot, kind: type) -> list[j.JournalEntry]:
    return [entry for entry in root.journal() if isinstance(entry, kind)]


def check_end(root: FakeRoot, word: Exiting) -> None:
    """The session came to its end with every step made once, and its journal says a valid conversation."""
    assert (word.cause.kind, word.result) == ("completed", f"the end, after {STEPS + 1} steps"), word
    responded = [e.step for e in root.journal() if isinstance(e, j.ModelResponded)]
    assert responded == list(range(1, STEPS + 2))
    restored = restore(root.journal())
    assert is_valid_conversation(restored.messages) and restored.messages[0] == UserMessage(text="the task")


def test_a_long_conversation_goes_on_from_its_summary(long_root: FakeRoot) -> None:
    """Past its threshold the older part becomes a summary; the script is where it was; the watchers hear of it."""
    root = long_root
    root.bear("fs_read")
    check_end(root, root.finish())
    shortened = [e for e in root.journal() if isinstance(e, j.ConversationShortened)]
    assert shortened and len(of_kind(root, j.SummaryCalled)) == len(shortened)
    first = shortened[0]
    assert first.summary == f"I have read f {first.step - 2} times." and first.tokens_after < first.tokens_before
    items = [e for e in root.of(ItemCompleted) if e.kind == "compaction"]
    assert [e.text for e in items] == [e.summary for e in shortened]
    assert items[0].item == f"1.{first.step}c" and items[0].data["tokens_after"] == first.tokens_after
    assert [e.item for e in root.of(ItemStarted) if e.kind == "compaction"] == [e.item for e in items]
    assert not [e for e in root.of(ContentDelta) if e.item.endswith("c")]
    messages = restore(root.journal()).messages
    assert isinstance(messages[1], UserMessage) and messages[1].text.startswith(SUMMARY_HEAD)
    assert root.of(UsageUpdated)[-1].total.calls == STEPS + 1 + len(shortened)


def test_no_threshold_no_summary(long_root: FakeRoot) -> None:
    """A model of which nobody knows what its context holds is not interfered with."""
    long_root.context_tokens = None
    long_root.bear("fs_read")
    check_end(long_root, long_root.finish())
    assert not of_kind(long_root, j.SummaryCalled)


def test_killed_at_each_record_around_a_summary(long_root: FakeRoot, tmp_path: Path) -> None:
    """Whatever of it is in the journal, the next incarnation comes to the same end; a summary that is noted is not
    paid for again, and one that was begun is asked for once more."""
    root = long_root
    root.bear("fs_read")
    check_end(root, root.finish())
    entries = root.journal()
    at = next(n for n, entry in enumerate(entries) if isinstance(entry, j.SummaryCalled))
    undisturbed = sum(isinstance(entry, j.SummaryCalled) for entry in entries)
    for end in range(at - 1, at + 5):
        with rooted(tmp_path / f"cut{end}") as again:
            journal = Journal.open(again.session_dir / "journal", session_key=session_key(again.session), create=True)
            for entry in entries[:end]:
                journal.append(entry)
            journal.close()
            again.incarnation = 1
            again.bear("fs_read")
            check_end(again, again.finish())
            noted = [e.step for e in again.journal() if isinstance(e, j.ConversationShortened)]
            assert len(noted) == len(set(noted))
            called = len(of_kind(again, j.SummaryCalled))
            assert called == undisturbed + (end == at + 1), (end, at)


def test_killed_while_the_summary_is_written(long_root: FakeRoot) -> None:
    """SIGKILL in the middle of the call: it is made once more, and nothing else is."""
    root = long_root
    root.script(*TURNS, summary={**SUMMARY, "crash": "SIGKILL", "marker": "crashed-once"})
    root.bear("fs_read")
    root.until("the worker's end", lambda: root.process is not None and root.process.poll() is not None)
    root.kill()
    assert len(of_kind(root, j.SummaryCalled)) == 1 and not of_kind(root, j.ConversationShortened)
    root.bear("fs_read")
    check_end(root, root.finish())
    assert len(of_kind(root, j.SummaryCalled)) == len(of_kind(root, j.ConversationShortened)) + 1


def test_without_a_summary_old_output_goes(long_root: FakeRoot) -> None:
    """A model that gives no summary does not end the session: old results lose their texts, and a warning says so."""
    root = long_root
    root.script(*TURNS, summary={"error": {"status": 400, "message": "no"}})
    root.bear("fs_read")
    check_end(root, root.finish())
    shortened = [e for e in root.journal() if isinstance(e, j.ConversationShortened)]
    assert shortened and not any(e.summary for e in shortened)
    assert {e.code for e in root.of(LogWarning)} == {"no_summary"}
    assert root.of(UsageUpdated)[-1].total.calls == STEPS + 1


def test_a_model_that_finds_it_too_long_is_asked_again(long_root: FakeRoot) -> None:
    """Nobody knew the limit: the refusal shortens the conversation, and the call is made once more."""
    root = long_root
    root.context_tokens = None
    refusal = {"error": {"status": 413, "message": "prompt is too long"}, "times": 1}
    root.script(*TURNS[:3], refusal, *TURNS[3:], summary=SUMMARY)
    root.bear("fs_read", context=ContextRules(keep_recent=0.1))
    check_end(root, root.finish())
    (shortened,) = [e for e in root.journal() if isinstance(e, j.ConversationShortened)]
    assert shortened.step == 4 and shortened.summary
    assert [e.step for e in root.journal() if isinstance(e, j.ModelCalled)] == [1, 2, 3, 4, 4, 5, 6, 7]


def test_what_cannot_be_shortened_fails_as_before(long_root: FakeRoot) -> None:
    """A task that is too long by itself is nothing that a summary would mend; neither is a refusal that stays."""
    root = long_root
    root.script({"error": {"status": 413, "message": "prompt is too long"}})
    root.bear("fs_read")
    word = root.finish()
    assert (word.cause.kind, word.cause.code) == ("failed", "context_too_long")
    assert not of_kind(root, j.SummaryCalled)
