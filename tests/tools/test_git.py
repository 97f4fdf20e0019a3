"""The git tool against real git under the real sandbox."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ottod.errors import ToolError
from ottod.isolation import bubblewrap
from ottod.tools.base import ToolOutput
from ottod.tools.git import GIT
from tests.fakes.session_place import SessionPlace, run

PLAIN = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "User",
    "GIT_AUTHOR_EMAIL": "user@example.org",
    "GIT_COMMITTER_NAME": "User",
    "GIT_COMMITTER_EMAIL": "user@example.org",
}


def user(directory: Path, *words: str) -> str:
    """What the user's own git says."""
    env = {"PATH": os.environ["PATH"], "HOME": str(directory), **PLAIN}
    done = subprocess.run(["git", "-C", str(directory), *words], env=env, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repository(place: SessionPlace) -> SessionPlace:
    """A place whose project is a repository with one commit on `main`."""
    user(place.project, "init", "--quiet", "--initial-branch=main")
    (place.project / "a.txt").write_text("one\n")
    (place.project / "b.txt").write_text("two\n")
    user(place.project, "add", ".")
    user(place.project, "commit", "--quiet", "-m", "first")
    return place


def call(place: SessionPlace, action: str, **more: Any) -> ToolOutput:
    return place.call(GIT, json.dumps({"action": action, **more}))


def test_changes_are_seen_and_committed_on_a_branch_of_the_session(repository: SessionPlace) -> None:
    """Status, diff, a commit of some paths only; the user's branch is as it was, and the author is the agent."""
    place = repository
    (place.project / "a.txt").write_text("one\nmore\n")
    (place.project / "new.txt").write_text("new\n")
    assert call(place, "status").text.splitlines() == ["## main", " M a.txt", "?? new.txt"]
    assert "+more" in call(place, "diff").text and call(place, "diff", staged=True).text == "nothing differs"
    done = call(place, "commit", message="Add more\n\nBecause.", paths=["a.txt"])
    branch = f"otto/{place.session}"
    assert re.match(rf"began branch {branch} from main; committed \w+ Add more \(1 file changed, 1 insert", done.text)
    assert call(place, "status").text.splitlines() == [f"## {branch}", "?? new.txt"]
    again = call(place, "commit", message="Add a file")
    assert again.text.startswith(f"on branch {branch}; committed")
    assert user(place.project, "log", "--format=%an <%ae> %s", "main..HEAD").splitlines() == [
        "Otto (tester) <tester@otto.invalid> Add a file",
        "Otto (tester) <tester@otto.invalid> Add more",
    ]
    body = user(place.project, "log", "-1", "--format=%B", "HEAD~1")
    assert body.strip() == f"Add more\n\nBecause.\n\nOtto-Session: {place.session}"
    assert user(place.project, "rev-parse", "main") == user(place.project, "rev-parse", "HEAD~2")
    log = call(place, "log", limit=2).text.splitlines()
    assert len(log) == 2 and log[0].endswith("Otto (tester): Add a file")
    assert "+new" in call(place, "show").text and "first" in call(place, "show", revision="main").text
    with pytest.raises(ToolError, match="nothing to commit"):
        call(place, "commit", message="again")


def test_the_author_is_who_the_agent_s_file_says(repository: SessionPlace) -> None:
    """Author and committer."""
    place = repository
    (place.project / "a.txt").write_text("x\n")
    from msgspec.structs import replace

    from ottod.tools.arguments import decode_arguments

    context = replace(place.context(), git_author="Ada Lovelace <ada@example.org>")
    arguments = decode_arguments(GIT, '{"action": "commit", "message": "m"}')
    run(GIT.run(arguments, context))
    assert user(place.project, "log", "-1", "--format=%an <%ae> %cn <%ce>").strip() == (
        "Ada Lovelace <ada@example.org> Ada Lovelace <ada@example.org>"
    )


def test_a_change_is_taken_back(repository: SessionPlace) -> None:
    """Restore brings files back, from the last commit or another, and never without saying which."""
    place = repository
    (place.project / "a.txt").write_text("spoiled\n")
    (place.project / "b.txt").unlink()
    assert call(place, "restore", paths=["a.txt", "b.txt"]).text == "restored a.txt, b.txt as in HEAD"
    assert (place.project / "a.txt").read_text() == "one\n" and (place.project / "b.txt").exists()
    with pytest.raises(ToolError, match="which paths"):
        call(place, "restore")


def test_a_diff_is_kept_as_an_artifact(repository: SessionPlace) -> None:
    """On demand, and by itself when it is too long to be shown."""
    place = repository
    (place.project / "a.txt").write_text("changed\n")
    kept = call(place, "diff", artifact="change.diff")
    assert kept.text == "kept change.diff, version 1, 7 lines, as art-0000000000"
    info, data = place.artifacts.kept[0]
    assert info.kind == "code_diff" and b"+changed" in data
    place.artifacts._by_key.clear()
    (place.project / "a.txt").write_text("".join(f"line {n}\n" for n in range(20_000)))
    long = call(place, "diff")
    assert long.truncated and len(long.text) < 33_000 and "the whole is the artifact art-0000000001" in long.text
    assert place.artifacts.kept[1][1].count(b"\n") > 20_000


def test_a_repository_without_a_commit(place: SessionPlace) -> None:
    """The first commit is the session's, on its own branch."""
    user(place.project, "init", "--quiet", "--initial-branch=main")
    (place.project / "a.txt").write_text("one\n")
    assert "began branch" in call(place, "commit", message="first").text
    assert user(place.project, "log", "--format=%s").strip() == "first"


def test_where_there_is_no_repository(place: SessionPlace) -> None:
    """The model is told, in words that it can act upon."""
    with pytest.raises(ToolError, match="no git repository of its own"):
        call(place, "status")


# ---------------------------------------------------------------- nothing runs that the tool did not mean to run


def marker(place: SessionPlace) -> tuple[Path, str]:
    """A file that a program would leave, and the program."""
    return place.project / "ran", "touch ran; true"


def test_hooks_and_programs_of_the_repository_do_not_run(repository: SessionPlace) -> None:
    """No hook, monitor, external diff, text conversion, signer, editor or pager runs, whatever the settings say."""
    place = repository
    ran, program = marker(place)
    hooks = place.project / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        "pre-commit",
        "commit-msg",
        "prepare-commit-msg",
        "post-commit",
        "post-checkout",
        "reference-transaction",
    ):
        (hooks / name).write_text(f"#!/bin/sh\n{program}\n")
        (hooks / name).chmod(0o755)
    for key in (
        *("core.fsmonitor", "core.editor", "core.pager", "core.sshCommand", "diff.external", "gpg.program"),
        *(
            "diff.evil.command",
            "diff.evil.textconv",
            "interactive.diffFilter",
            "sequence.editor",
            "credential.helper",
        ),
    ):
        user(place.project, "config", key, program)
    for key in ("commit.gpgSign", "tag.gpgSign", "log.showSignature"):
        user(place.project, "config", key, "true")
    user(place.project, "config", "core.hooksPath", ".git/hooks")
    (place.project / ".gitattributes").write_text("*.txt diff=evil\n")
    (place.project / "a.txt").write_text("changed\n")
    for action in ("status", "diff", "log", "show", "branch"):
        call(place, action)
    call(place, "commit", message="m")
    (place.project / "a.txt").write_text("again\n")
    call(place, "diff", revision="main")
    call(place, "restore", paths=["a.txt"])
    assert not ran.exists()


def test_a_repository_made_of_plain_files_is_not_obeyed(place: SessionPlace) -> None:
    """Files that look like a bare repository, which a file tool can write, are none."""
    ran, program = marker(place)
    user(place.project, "init", "--quiet", "--bare", ".")
    user(place.project, "config", "core.fsmonitor", program)
    user(place.project, "config", "core.bare", "false")
    user(place.project, "config", "core.worktree", str(place.project))
    with pytest.raises(ToolError, match="no git repository"):
        call(place, "status")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("action", "more"),
    [
        ("show", {"revision": "--output=stolen"}),
        ("log", {"revision": "--output=stolen"}),
        ("diff", {"revision": "--output=stolen"}),
        ("diff", {"revision": "--no-index"}),
        ("restore", {"paths": ["a.txt"], "revision": "--help"}),
        ("show", {"revision": "HEAD\n--output=stolen"}),
        ("diff", {"paths": ["../outside/secret.txt"]}),
        ("commit", {"message": "m", "paths": ["/etc/passwd"]}),
        ("commit", {"message": "m", "paths": [".git/config"]}),
        ("restore", {"paths": [".otto/agents/coder.yml"]}),
        ("restore", {"paths": ["sub/.GIT/hooks/x"]}),
        ("commit", {"message": " "}),
    ],
)
def test_arguments_are_not_options(repository: SessionPlace, action: str, more: dict[str, object]) -> None:
    """No revision is an option, no path leads out, and what nobody may change is not changed."""
    (repository.project / "a.txt").write_text("changed\n")
    with pytest.raises(ToolError):
        call(repository, action, **more)
    assert not (repository.project / "stolen").exists()


def test_paths_are_names_and_not_patterns(repository: SessionPlace) -> None:
    """A path means the file of that name, whatever git could read into it."""
    place = repository
    for name in ("--all", ":(top)a", "*.txt"):
        (place.project / name).write_text("x\n")
        assert "1 file changed" in call(place, "commit", message="m", paths=[name]).text
    assert "a.txt" not in user(place.project, "diff", "--name-only", "main", "HEAD")


@pytest.mark.skipif(not bubblewrap.find(), reason="needs bubblewrap")
def test_settings_and_hooks_stay_read_only_while_commits_work(repository: SessionPlace) -> None:
    """What a commit needs is writable for git in the sandbox; hooks and settings are not, for any program."""
    place = repository
    (place.project / "a.txt").write_text("changed\n")
    call(place, "commit", message="m")

    async def work() -> str:
        command = "echo x > .git/hooks/pre-commit; echo x >> .git/config; mv .git away; git config a.b c"
        result = await place.programs.run(["sh", "-c", command], timeout_s=20, max_output_bytes=4096)
        return result.output

    output = run(work())
    assert output.count("Read-only") + output.count("busy") + output.count("could not") >= 3, output
    assert (
        "a.b" not in user(place.project, "config", "--list")
        and not (place.project / ".git/hooks/pre-commit").exists()
    )


def test_it_waits_for_the_index(repository: SessionPlace) -> None:
    """While another holds the index a commit waits; when that never ends, it says so."""
    place = repository
    (place.project / "a.txt").write_text("changed\n")
    lock = place.project / ".git" / "index.lock"
    lock.write_text("")
    with pytest.raises(ToolError, match=r"index\.lock"):
        call(place, "commit", message="m")
    lock.unlink()
    assert "committed" in call(place, "commit", message="m").text
