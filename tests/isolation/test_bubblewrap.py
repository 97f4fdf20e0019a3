from __future__ import annotations

import os
from pathlib import Path

import pytest

from ottod.isolation import bubblewrap, program_paths
from ottod.isolation.program_paths import ProgramPaths
from ottod.isolation.requirements import missing_layers
from ottod.protocol.specs import Isolation


def words(paths: ProgramPaths, *, home: str = "", has_network: bool = False) -> list[str]:
    return bubblewrap.arguments("bwrap", paths=paths, tmp_dir="/s/tmp", home=home, has_network=has_network)


def known(**trees: tuple[str, ...]) -> ProgramPaths:
    return ProgramPaths(read=(), write=(), devices=(), **trees)  # type: ignore[arg-type]


def test_outer_places_are_mounted_before_what_lies_in_them() -> None:
    """Whatever contains what, nothing is hidden by a mount that comes later."""
    found = words(
        known(
            trees_read=("/usr", "/home/u/p/.venv/lib"),
            trees_write=("/home/u/p", "/tmp/grant"),
            masked=("/usr/share/secret",),
        )
    )

    def position(path: str) -> int:
        return max(index for index, word in enumerate(found) if word == path)

    assert position("/usr") < position("/usr/share/secret")
    assert position("/home/u/p") < position("/home/u/p/.venv/lib")
    assert position("/tmp") < position("/tmp/grant")
    assert found[-2:] == ["--remount-ro", "/"]


def test_namespaces_and_conduct_are_always_there() -> None:
    """Every sandbox has its own namespaces, no capability and dies with its keeper; the network is the one choice."""
    closed, opened = words(known()), words(known(), has_network=True)
    for option in (
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--die-with-parent",
        "--as-pid-1",
        "--cap-drop",
    ):
        assert option in closed and option in opened
    assert "--unshare-net" in closed and "--unshare-net" not in opened
    assert "--share-net" not in opened


def test_symlinks_on_the_way_are_made_again(tmp_path: Path) -> None:
    """A path that runs through symlinks leads to the same place inside, chains and relative ones included."""
    real = tmp_path / "real" / "bin"
    real.mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    found = program_paths.links_on(f"{tmp_path}/two/bin")
    within = [(path, target) for path, target in found if path.startswith(str(tmp_path))]
    assert within == [(f"{tmp_path}/two", f"{tmp_path}/one"), (f"{tmp_path}/one", "real")]
    (tmp_path / "loop").symlink_to("loop")
    assert len(program_paths.links_on(f"{tmp_path}/loop/x")) <= program_paths.MAX_LINKS


def test_links_inside_what_is_mounted_are_left_alone() -> None:
    """A symlink that comes along with its directory is not made a second time."""
    paths = ProgramPaths(
        read=(), write=(), devices=(), trees_read=("/usr",), links=(("/bin", "usr/bin"), ("/usr/lib64", "lib"))
    )
    found = words(paths)
    assert found.count("--symlink") == 1 and found[found.index("--symlink") + 1 :][:2] == ["usr/bin", "/bin"]


def test_a_home_that_is_granted_is_not_emptied(tmp_path: Path) -> None:
    """HOME is an empty directory, unless it lies in something that is mounted anyway."""
    assert "--dir" in words(known(), home="/home/u")
    assert "--dir" not in words(known(trees_write=("/home/u",)), home="/home/u")


def test_the_whole_system_may_be_granted_and_sys_stays_out() -> None:
    """A read path of `/` shows everything but the control groups; what the sandbox brings lies over it."""
    found = words(known(trees_read=("/",)))
    root = next(index for index, word in enumerate(found) if word == "/")
    assert root < found.index("--proc") < len(found) and found[found.index("--tmpfs") + 1] == "/sys"


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
        ("sys/kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        ("sys/user/max_user_namespaces", "0", "max_user_namespaces"),
        ("sys/user/max_user_namespaces", "1000", "container"),
    ],
)
def test_a_failure_names_what_mends_it(tmp_path: Path, setting: str, value: str, advice: str) -> None:
    """What forbids user namespaces is found, Ubuntu's AppArmor restriction among it, and the advice fits."""
    (tmp_path / setting).parent.mkdir(parents=True)
    (tmp_path / setting).write_text(value + "\n")
    assert advice in bubblewrap.namespace_mend(str(tmp_path))


def test_the_trial_fails_in_words(tmp_path: Path) -> None:
    """A missing and a broken program are told apart, in one line with a mend."""
    assert "; install the package bubblewrap" in bubblewrap.trial(program="")
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    text = bubblewrap.trial(program=str(broken))
    assert text.startswith("setting up uid map: Permission denied; ") and "\n" not in text
    assert "No such file" in bubblewrap.trial(program=str(tmp_path / "none"))


GIVEN = {"memory": "yes", "files": "yes: ABI 7", "sandbox": "yes", "network": "yes", "syscalls": "yes"}


@pytest.mark.parametrize("layer", ["memory", "files", "network", "syscalls"])
def test_a_required_layer_that_is_not_given_is_named(layer: str) -> None:
    """What is required and given passes; absent or unknown it is missing, with the report's own reason."""
    required = Isolation(**{layer: "required"})  # type: ignore[arg-type]
    assert missing_layers(required, platform_report=GIVEN) == []
    absent = {**GIVEN, layer: "no: not here; install it", "sandbox": "no: not here; install it"}
    (found,) = missing_layers(required, platform_report=absent)
    assert found.name == layer and "install it" in found.reason
    assert [each.name for each in missing_layers(required, platform_report={})] == [layer]
    for wanted in ("preferred", "off"):
        assert missing_layers(Isolation(**{layer: wanted}), platform_report={}) == []  # type: ignore[arg-type]


def test_half_a_layer_is_enough_for_files_only() -> None:
    """An older Landlock confines files, and so does bubblewrap alone; a watchdog is no cap, no filter no filter."""
    half = dict.fromkeys(GIVEN, "partly: some; more")
    names = ("memory", "files", "network", "syscalls")
    everything = Isolation(**dict.fromkeys(names, "required"))  # type: ignore[arg-type]
    assert [each.name for each in missing_layers(everything, platform_report=half)] == [
        "memory",
        "network",
        "syscalls",
    ]
    only_sandbox = {"files": "no: no Landlock", "sandbox": "yes"}
    assert missing_layers(Isolation(files="required"), platform_report=only_sandbox) == []


def test_the_program_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that a PATH with a project's directory leads to, unless the daemon was told so by its absolute path."""
    monkeypatch.delenv("OTTO_BWRAP", raising=False)
    planted = tmp_path / "bwrap"
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o755)
    before = bubblewrap.find()
    assert before == "" or os.path.isabs(before)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert bubblewrap.find() == before
    advice = f"install the package bubblewrap, or start the daemon with OTTO_BWRAP={planted} if no agent can write it"
    assert bubblewrap.trial(program="") == f"{planted} is not where the system keeps programs; {advice}"
    monkeypatch.setenv("OTTO_BWRAP", "./bwrap")
    assert bubblewrap.find() == before
    monkeypatch.setenv("OTTO_BWRAP", str(planted))
    assert bubblewrap.find() == str(planted)
