from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.errors import RefusedError, ToolError
from ottod.isolation import openat
from ottod.isolation.beneath import TEMPORARY_PREFIX, BeneathFiles
from ottod.isolation.openat import RootDirectory

SECRET = b"the secret\n"


class Tree:
    """A project, and beside it what must stay out of reach."""

    def __init__(self, base: Path, *, use_openat2: bool) -> None:
        self.base = base
        self.root = base / "project"
        self.outside = base / "outside"
        self.root.mkdir()
        self.outside.mkdir()
        (self.outside / "secret.txt").write_bytes(SECRET)
        (self.root / "inner").mkdir()
        (self.root / "inner" / "a.txt").write_bytes(b"a\n")
        self.files = BeneathFiles(str(self.root))
        self.files._root = RootDirectory(str(self.root), use_openat2=use_openat2)

    def read(self, path: str) -> bytes:
        return self.files.read(path, max_bytes=1 << 20)


@pytest.fixture(params=["openat2", "walk"])
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tree]:
    """The same tree with either way to resolve paths: both pass every test here."""
    made = Tree(tmp_path, use_openat2=request.param == "openat2")
    yield made
    made.files.close()


ESCAPES: dict[str, Callable[[Tree], str]] = {
    "dotdot": lambda tree: "../outside/secret.txt",
    "dotdot in the middle": lambda tree: "inner/../../outside/secret.txt",
    "absolute": lambda tree: str(tree.outside / "secret.txt"),
    "absolute through the root": lambda tree: f"{tree.root}/../outside/secret.txt",
    "double slash": lambda tree: f"//{tree.outside}/secret.txt",
    "prefix of the root": lambda tree: f"{tree.root}-other/secret.txt",
    "proc root": lambda tree: f"/proc/self/root{tree.outside}/secret.txt",
    "proc cwd": lambda tree: "/proc/self/cwd/secret.txt",
    "proc fd": lambda tree: f"/proc/self/fd/{os.open(tree.outside, os.O_PATH)}/secret.txt",
    "link to file": lambda tree: link(tree, tree.outside / "secret.txt"),
    "relative link": lambda tree: link(tree, Path("../outside/secret.txt")),
    "link to directory": lambda tree: link(tree, tree.outside) + "/secret.txt",
    "link to the parent": lambda tree: link(tree, Path("..")) + "/outside/secret.txt",
    "link to proc": lambda tree: link(tree, Path("/proc/self/root")) + f"{tree.outside}/secret.txt",
    "chain of links": lambda tree: chain(tree),
    "nul byte": lambda tree: "inner/a.txt\0/../../outside/secret.txt",
    "empty": lambda tree: "",
    "lone surrogate": lambda tree: "\ud800",
}


def link(tree: Tree, target: Path) -> str:
    (tree.root / "link").symlink_to(target)
    return "link"


def chain(tree: Tree) -> str:
    (tree.root / "one").symlink_to("inner/two")
    (tree.root / "inner" / "two").symlink_to("../three")
    (tree.root / "three").symlink_to(tree.outside / "secret.txt")
    return "one"


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_path_leads_out(tree: Tree, escape: str) -> None:
    """Reading, writing and listing refuse every known way out, and the file outside stays as it was."""
    path = ESCAPES[escape](tree)
    with pytest.raises(ToolError):
        tree.read(path)
    with pytest.raises(ToolError):
        tree.files.write(path, b"changed")
    with pytest.raises(ToolError):
        tree.files.list(path)
    assert (tree.outside / "secret.txt").read_bytes() == SECRET
    assert sorted(each.name for each in tree.outside.iterdir()) == ["secret.txt"]


def test_a_root_of_slash_does_not_follow_magic_links() -> None:
    """Where every path is inside, /proc's magic links are still not followed."""
    files = BeneathFiles("/")
    try:
        with pytest.raises(ToolError):
            files.read(f"/proc/{os.getpid()}/root/etc/hostname", max_bytes=1000)
    finally:
        files.close()


def test_links_inside_are_followed(tree: Tree) -> None:
    """Relative and absolute links to places inside work for reading, and are written through."""
    (tree.root / "relative").symlink_to("inner/a.txt")
    (tree.root / "absolute").symlink_to(tree.root / "inner" / "a.txt")
    (tree.root / "directory").symlink_to(tree.root / "inner")
    assert tree.read("relative") == tree.read("absolute") == tree.read("directory/a.txt") == b"a\n"
    assert tree.files.write("relative", b"b\n") is False
    assert tree.files.write("absolute", b"c\n") is False
    assert tree.files.write("directory/new.txt", b"d\n") is True
    assert (tree.root / "relative").is_symlink() and (tree.root / "absolute").is_symlink()
    assert (tree.root / "inner" / "a.txt").read_bytes() == b"c\n"
    assert (tree.root / "inner" / "new.txt").read_bytes() == b"d\n"


def test_a_dangling_link_inside_is_written_through_and_one_outside_is_not(tree: Tree) -> None:
    """A writer creates what a link inside points to, and nothing where it points outside."""
    (tree.root / "inside").symlink_to("inner/made.txt")
    (tree.root / "outside").symlink_to(tree.outside / "made.txt")
    assert tree.files.write("inside", b"x") is True
    with pytest.raises(ToolError, match="outside the working directory"):
        tree.files.write("outside", b"x")
    assert (tree.root / "inner" / "made.txt").read_bytes() == b"x"
    assert not (tree.outside / "made.txt").exists()


def test_absolute_paths_inside_are_accepted(tree: Tree, tmp_path: Path) -> None:
    """A path may be absolute, through the root as it is or as it was given."""
    assert tree.read(f"{tree.root}/inner/a.txt") == b"a\n"
    assert tree.files.relative(f"{tree.root}/inner/../inner/a.txt") == "inner/a.txt"
    assert tree.files.relative(str(tree.root)) == "."
    (tmp_path / "alias").symlink_to(tree.root)
    alias = BeneathFiles(str(tmp_path / "alias"))
    assert alias.read(f"{tmp_path}/alias/inner/a.txt", max_bytes=10) == b"a\n"
    alias.close()


def test_fifos_devices_and_sockets_are_refused_at_once(tree: Tree) -> None:
    """What could block or act when opened is refused without a wait, for reading and for writing."""
    os.mkfifo(tree.root / "fifo")
    (tree.root / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree.root / "s"))
        started_at = time.monotonic()
        for path in ("fifo", "device", "s"):
            with pytest.raises(ToolError):
                tree.read(path)
            with pytest.raises(ToolError):
                tree.files.write(path, b"x")
        assert time.monotonic() - started_at < 10.0
    assert stat.S_ISFIFO((tree.root / "fifo").stat().st_mode)


def test_device_nodes_inside_are_refused(tree: Tree) -> None:
    """A device node in the working directory is not opened."""
    try:
        os.mknod(tree.root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make device nodes")
    with pytest.raises(ToolError, match="not a regular file"):
        tree.read("null")


def test_who_may_not_read_a_file_cannot_read_its_next_content_either(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes the place of a file is closed when it is made, and has that file's mode before its first byte."""
    seen: list[tuple[int, int]] = []
    change_mode = os.fchmod

    def observed(fd: int, mode: int) -> None:
        found = os.fstat(fd)
        seen.append((stat.S_IMODE(found.st_mode), found.st_size))
        change_mode(fd, mode)

    secret = tree.root / "secret"
    secret.write_text("old")
    secret.chmod(0o640)
    monkeypatch.setattr(os, "fchmod", observed)
    tree.files.write("secret", b"new")
    assert seen == [(0o600, 0)]
    assert secret.read_text() == "new" and stat.S_IMODE(secret.stat().st_mode) == 0o640


def test_a_write_keeps_the_mode_and_leaves_no_temporary_file(tree: Tree) -> None:
    """The mode of a replaced file stays; a new one gets what the umask leaves; nothing else appears."""
    script = tree.root / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o750)
    tree.files.write("run.sh", b"#!/bin/sh\nexit 1\n")
    assert stat.S_IMODE(script.stat().st_mode) == 0o750
    tree.files.write("deep/er/new.txt", b"x")
    plain = tree.root / "plain"
    plain.touch()
    assert (tree.root / "deep/er/new.txt").stat().st_mode == plain.stat().st_mode
    assert not list(tree.root.rglob(f"{TEMPORARY_PREFIX}*"))


def test_a_failed_write_changes_nothing(tree: Tree) -> None:
    """A directory in the way, a read-only file or missing parents: an error, the old content, no leftovers."""
    readonly = tree.root / "readonly"
    readonly.write_text("old")
    readonly.chmod(0o444)
    for path in ("inner", "readonly", "inner/a.txt/below"):
        with pytest.raises(ToolError):
            tree.files.write(path, b"new")
    with pytest.raises(ToolError, match="no such file"):
        tree.files.write("missing/file", b"new", make_parents=False)
    assert readonly.read_text() == "old"
    assert not (tree.root / "missing").exists()
    assert not list(tree.root.rglob(f"{TEMPORARY_PREFIX}*"))


def test_size_bounds_are_kept(tree: Tree) -> None:
    """A file of exactly the bound is read, one byte more is refused, also when its size is not told."""
    (tree.root / "big").write_bytes(b"x" * 1000)
    assert len(tree.files.read("big", max_bytes=1000)) == 1000
    with pytest.raises(ToolError, match="too large"):
        tree.files.read("big", max_bytes=999)
    files = BeneathFiles("/proc/self")
    with pytest.raises(ToolError, match="too large"):
        files.read("status", max_bytes=10)
    files.close()


def test_a_path_of_hundreds_of_directories_is_made(tree: Tree) -> None:
    """Depth is bounded by the system, not by recursion here."""
    deep = "/".join(["d"] * 600)
    assert tree.files.write(f"{deep}/file", b"x") is True
    assert tree.read(f"{deep}/file") == b"x"
    with pytest.raises(ToolError, match="too long"):
        tree.files.write("/".join(["d"] * 5000), b"x")
    # shutil.rmtree, which cleans up after tests, recurses.
    subprocess.run(["rm", "-rf", str(tree.root / "d")], check=True)


def test_hidden_directories_do_not_exist(tmp_path: Path) -> None:
    """Otto's own directories inside the working directory are out of reach, by links too."""
    root = tmp_path / "home"
    (root / "state").mkdir(parents=True)
    (root / "state" / "journal").write_text("private")
    (root / "link").symlink_to("state")
    files = BeneathFiles(str(root), hidden=[str(root / "state")])
    for path in ("state/journal", "link/journal", "state/../state/journal"):
        with pytest.raises(ToolError):
            files.read(path, max_bytes=100)
        with pytest.raises(ToolError):
            files.write(path, b"x")
    with pytest.raises(ToolError):
        files.list("state")
    assert files.write("file", b"x") is True
    files.close()
    with pytest.raises(RefusedError):
        BeneathFiles(str(root / "state"), hidden=[str(root / "state")])


def test_changes_of_one_file_from_many_threads_are_all_there(tree: Tree) -> None:
    """`change` is one step: of parallel edits none is lost."""
    tree.files.write("log", b"")

    def append(number: int) -> None:
        for step in range(20):
            line = f"{number}.{step}\n".encode()
            tree.files.change("log", lambda data, line=line: data + line, max_bytes=1 << 20)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sorted(f"{number}.{step}" for number in range(4) for step in range(20))
    assert sorted(tree.read("log").decode().split()) == expected


def test_change_sees_what_others_write_meanwhile(tree: Tree) -> None:
    """A write from outside between read and replace is not overwritten: the change starts again from it."""
    tree.files.write("file", b"one")
    seen: list[bytes] = []

    def transform(data: bytes) -> bytes:
        if not seen:
            (tree.root / "file").write_bytes(b"two, longer")
        seen.append(data)
        return data + b"!"

    tree.files.change("file", transform, max_bytes=100)
    assert seen == [b"one", b"two, longer"]
    assert tree.read("file") == b"two, longer!"


def test_listing_names_kinds_in_order(tree: Tree) -> None:
    """Entries come sorted, with their kind, links as links."""
    (tree.root / "link").symlink_to("inner")
    os.mkfifo(tree.root / "fifo")
    found = [(entry.name, entry.kind) for entry in tree.files.list(".")]
    assert found == [("fifo", "other"), ("inner", "dir"), ("link", "symlink")]
    assert tree.files.stat("link").kind == "symlink"
    assert tree.files.stat("inner").size_bytes == 0


def test_a_swapped_directory_never_leads_out(tree: Tree) -> None:
    """While a directory is exchanged for a link to the outside all the time, no read ever shows the secret."""
    inner, away = tree.root / "race", tree.root / "away"
    inner.mkdir()
    (inner / "secret.txt").write_bytes(b"harmless")
    (tree.root / "bait").symlink_to(tree.outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(inner, away)
            os.rename(tree.root / "bait", inner)
            os.rename(inner, tree.root / "bait")
            os.rename(away, inner)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        outcomes: set[bytes] = set()
        tries = 0
        give_up_at = time.monotonic() + 20
        # Long enough to meet both states, and the moments between them.
        while (tries < 1500 or len(outcomes) < 2) and time.monotonic() < give_up_at:
            tries += 1
            try:
                outcomes.add(tree.read("race/secret.txt"))
            except ToolError:
                outcomes.add(b"refused")
            try:
                tree.files.write("race/new.txt", b"x", make_parents=False)
            except ToolError:
                pass
    finally:
        stop.set()
        thread.join()
    assert outcomes == {b"harmless", b"refused"}
    assert sorted(each.name for each in tree.outside.iterdir()) == ["secret.txt"]


def test_a_closed_root_refuses_everything(tree: Tree) -> None:
    """After `close` no descriptor that reuses the number is ever mistaken for the root."""
    tree.files.close()
    stolen = os.open(tree.outside, os.O_PATH)
    try:
        with pytest.raises(ToolError, match="closed"):
            tree.read("secret.txt")
    finally:
        os.close(stolen)


def test_a_missing_openat2_falls_back(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel that answers ENOSYS the same paths work and the same escapes fail."""
    monkeypatch.setattr(openat, "SYS_OPENAT2", 999_999)
    assert tree.read("inner/a.txt") == b"a\n"
    with pytest.raises(ToolError, match="outside"):
        tree.read(link(tree, tree.outside / "secret.txt"))


NAMES = st.sampled_from(["a", "b", "c", "..", ".", ""])
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
TARGETS = st.one_of(PATHS, PATHS.map(lambda path: "{root}/" + path), PATHS.map(lambda path: "{base}/outside/" + path))


@settings(max_examples=300, deadline=None)
@given(links=st.lists(st.tuples(PATHS, TARGETS), max_size=5), path=PATHS, use_openat2=st.booleans())
def test_reads_agree_with_realpath(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[str, str]], path: str, use_openat2: bool
) -> None:
    """For any links, what is read is what realpath names, and only if that lies inside."""
    base = tmp_path_factory.mktemp("oracle")
    tree = Tree(base, use_openat2=use_openat2)
    (base / "outside" / "a").write_bytes(SECRET)
    for name in ("a", "b"):
        (tree.root / name).mkdir()
        (tree.root / name / "c").write_bytes(f"{name}/c".encode())
    for name, target in links:
        place = Path(os.path.normpath(tree.root / name))
        if place.is_relative_to(tree.root) and place.parent.is_dir() and not os.path.lexists(place):
            os.symlink(target.format(root=tree.root, base=base) or ".", place)
    real = Path(os.path.realpath(os.path.normpath(tree.root / path)))
    expected: bytes | None = None
    if real.is_relative_to(tree.root) and real.is_file():
        expected = real.read_bytes()
    try:
        found: bytes | None = tree.read(path)
    except ToolError:
        found = None
    tree.files.close()
    if found is not None:
        assert found == expected
    elif expected is not None:
        # A path may leave and come back through links; refusing that is allowed, showing more is not.
        assert links
