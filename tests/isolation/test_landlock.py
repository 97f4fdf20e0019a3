from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ottod.isolation import confined_exec, landlock, program_paths


@pytest.mark.parametrize("version", range(1, 8))
def test_every_abi_gets_only_what_it_knows(version: int) -> None:
    """Rights, scopes and the structure's size grow with the ABI, and each version's ruleset is accepted."""
    rights = landlock.handled_rights(version)
    assert bool(rights & landlock.REFER) == (version >= 2)
    assert bool(rights & landlock.TRUNCATE) == (version >= 3)
    assert bool(rights & landlock.IOCTL_DEV) == (version >= 5)
    assert bool(landlock.scopes(version)) == (version >= 6)
    assert landlock.ruleset_size_bytes(version) == (8 if version < 4 else 16 if version < 6 else 24)
    assert bool(landlock.weaknesses(version)) == (version < 6)
    if landlock.abi() >= version:
        ruleset = landlock.Ruleset(version)
        assert ruleset.allow("/usr", landlock.READ) and ruleset.allow("/dev/null", landlock.WRITE)
        assert not ruleset.allow("/no/such/path", landlock.READ)
        ruleset.close()


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
@pytest.mark.parametrize("version", range(1, 8))
def test_a_ruleset_confines_under_every_abi(version: int, tmp_path: Path) -> None:
    """Reading stays within what is allowed, writing within what is writable, under the rights of each ABI."""
    for name in ("readable", "writable", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    script = (
        "import sys; sys.path.append(sys.argv[1]); import landlock, os\n"
        "ruleset = landlock.Ruleset(int(sys.argv[2]))\n"
        "ruleset.allow_reading([sys.argv[3] + '/readable']); ruleset.allow_writing([sys.argv[3] + '/writable'])\n"
        "ruleset.restrict_self(); ruleset.close()\n"
        "for name in ('readable', 'writable', 'closed'):\n"
        "    for flags in (os.O_RDONLY, os.O_WRONLY):\n"
        "        try: os.close(os.open(f'{sys.argv[3]}/{name}/file', flags)); print(1, end='')\n"
        "        except PermissionError: print(0, end='')\n"
    )
    directory = os.path.dirname(landlock.__file__)
    argv = [sys.executable, "-I", "-S", "-c", script, directory, str(version), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, timeout=30, check=False, text=True)
    assert done.stdout == "101100", done.stderr


@pytest.mark.parametrize("name", ["launcher.py", "confined_exec.py"])
def test_the_launcher_imports_nothing_of_the_package(tmp_path: Path, name: str) -> None:
    """It and the sandbox's first process run without site-packages, from any directory, with few modules."""
    script = (
        "import runpy, sys; sys.argv = ['x']\n"
        "try: runpy.run_path(sys.orig_argv[-1], run_name='launcher')\n"
        "finally: print(sorted(each for each in sys.modules if each.split('.')[0] in "
        "('ottod', 'msgspec', 'json', 'typing', 'subprocess', 'asyncio')))"
    )
    # runpy itself imports a few modules, so only the package and what is slow are looked for.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(Path(confined_exec.__file__).with_name(name))],
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=False,
        text=True,
    )
    assert "ottod" not in done.stdout and "msgspec" not in done.stdout and "asyncio" not in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_splitting_a_directory_leaves_out_the_denied(tmp_path: Path) -> None:
    """A directory that contains a denied place becomes its other children, however deep the place is."""
    for name in ("a/x", "a/secret/y", "b"):
        (tmp_path / name).mkdir(parents=True)
    assert program_paths.without(str(tmp_path), []) == [str(tmp_path)]
    assert program_paths.without(str(tmp_path), [str(tmp_path / "a/secret")]) == [
        str(tmp_path / "a/x"),
        str(tmp_path / "b"),
    ]
    assert program_paths.without(str(tmp_path / "a/secret/y"), [str(tmp_path / "a/secret")]) == []
    assert program_paths.without(str(tmp_path / "missing"), []) == []


def test_home_and_its_parents_are_no_toolchain(tmp_path: Path) -> None:
    """A PATH that names HOME, a parent of it, `/`, or nothing at all opens none of them."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    found = program_paths.program_paths(
        root=str(tmp_path / "project"),
        tmp_dir=str(tmp_path / "tmp"),
        env={"HOME": str(home), "PATH": f"::.:bin:/:{tmp_path}:{home}:{home}/:{home}/../home:{home}/bin"},
    )
    within = [path for path in found.read if path.startswith(str(tmp_path))]
    assert within == [f"{home}/bin", f"{home}/lib"]
    assert "/" not in found.read


def test_a_venv_that_claims_any_home_is_not_believed(tmp_path: Path) -> None:
    """A project's pyvenv.cfg opens a Python installation, and nothing that is none."""
    project, private = tmp_path / "project", tmp_path / "private"
    (project / ".venv").mkdir(parents=True)
    (private / "bin").mkdir(parents=True)
    (project / ".venv/pyvenv.cfg").write_text(f"home = {private}/bin\n")

    def readable() -> list[str]:
        env = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin"}
        found = program_paths.program_paths(root=str(project), tmp_dir=str(tmp_path / "tmp"), env=env)
        return [path for path in found.read if path.startswith(str(private))]

    assert readable() == []
    (private / "lib/python3.12").mkdir(parents=True)
    (private / "lib/python3.12/os.py").touch()
    (private / "bin/python3").touch()
    assert readable() == [f"{private}/bin", f"{private}/lib"]


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_what_has_no_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_name_that_is_none(path: Path) -> None:
    path.write_bytes(b"home = /usr\0/bin\n")


def a_name_that_is_too_long(path: Path) -> None:
    path.write_text(f"home = /{'a' * 5000}/bin\n")


@pytest.mark.parametrize("make", [a_fifo, a_link_to_what_has_no_end, a_name_that_is_none, a_name_that_is_too_long])
def test_a_venv_that_is_none_keeps_no_session_from_starting(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """An earlier session can leave any file there, and each later one looks at it before it is confined."""
    (tmp_path / ".venv").mkdir()
    make(tmp_path / ".venv/pyvenv.cfg")
    env = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin"}
    found = program_paths.program_paths(root=str(tmp_path), tmp_dir=str(tmp_path / "tmp"), env=env)
    assert str(tmp_path) in found.write


def test_starting_is_cheap() -> None:
    """The launcher is ready to start a program within the time a person would not notice."""
    load = "import runpy, sys; runpy.run_path(sys.argv[1])"
    used_s = []
    for _ in range(5):
        pid = os.posix_spawn(
            sys.executable, [sys.executable, "-I", "-S", "-c", load, confined_exec.__file__], dict(os.environ)
        )
        _, status, used = os.wait4(pid, 0)
        assert status == 0
        used_s.append(used.ru_utime + used.ru_stime)
    # Of the processor, which a busy machine does not lengthen: this catches an import that got in.
    assert min(used_s) < 0.2
