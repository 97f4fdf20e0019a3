"""OTTO.md in a real worker: in the journal before the first turn, and never looked for again."""

from __future__ import annotations

from ottod.core.project_notes import section
from ottod.protocol import journal as j
from ottod.protocol.events import LogWarning, ProjectNotesRead, ToolStarted
from tests.fakes.fake_root import FakeRoot

WAIT = {"tools": [{"name": "shell", "arguments": {"command": "while [ ! -e on ]; do sleep 0.05; done"}}]}


def noted(root: FakeRoot) -> list[j.NotesRead]:
    return [entry for entry in root.journal() if isinstance(entry, j.NotesRead)]


def test_it_is_noted_once_for_all_incarnations(root: FakeRoot) -> None:
    notes = root.workdir / "OTTO.md"
    notes.write_text("Run `make test`.\n")
    root.script(WAIT, {"text": "end"})
    root.bear("shell", project_notes=True)
    root.until_event(ToolStarted)
    root.kill()
    notes.write_text("Something else.\n")
    root.bear("shell", project_notes=True)
    (root.workdir / "on").touch()
    assert root.finish().cause.kind == "completed"
    (entry,) = noted(root)
    assert (entry.path, entry.size_bytes) == (str(notes), 17)
    assert entry.text == section("Run `make test`.\n", name="OTTO.md")
    kinds = [type(e) for e in root.journal()]
    assert kinds.index(j.SessionOpened) < kinds.index(j.NotesRead) < kinds.index(j.UserSaid)
    (event,) = root.of(ProjectNotesRead)
    assert (event.digest, event.size_bytes, event.given_bytes) == (entry.digest, 17, 17)


def test_one_that_comes_later_is_none_of_this_session(root: FakeRoot) -> None:
    """What there was at the beginning holds: a resumed turn is the turn that was begun."""
    root.script(WAIT, {"text": "end"})
    root.bear("shell", project_notes=True)
    root.until_event(ToolStarted)
    root.kill()
    (root.workdir / "OTTO.md").write_text("new\n")
    root.bear("shell", project_notes=True)
    (root.workdir / "on").touch()
    assert root.finish().cause.kind == "completed" and not noted(root) and not root.of(ProjectNotesRead)


def test_a_link_out_of_the_project_is_refused_with_a_word(root: FakeRoot) -> None:
    (root.workdir.parent / "secret").write_text("x\n")
    (root.workdir / "OTTO.md").symlink_to("../secret")
    root.script({"text": "end"})
    root.bear(project_notes=True)
    assert root.finish().cause.kind == "completed" and not noted(root)
    assert [w.code for w in root.of(LogWarning)] == ["notes_refused"]
