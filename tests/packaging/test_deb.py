"""What the Debian package is built from; the package itself proves itself in `make vm-test`."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import ottod

ROOT = Path(__file__).parents[2]
DEB = ROOT / "packaging" / "deb"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The build script as a module."""
    spec = importlib.util.spec_from_file_location("otto_deb_build", DEB / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_changelog_is_about_this_version(build: ModuleType) -> None:
    """The newest entry has the package's version, and a date that gives all files their time."""
    version, epoch = build.newest_entry((DEB / "changelog").read_text())
    assert version.partition("-")[0] == ottod.__version__ and epoch > 1_700_000_000
    build.check_version(version)
    with pytest.raises(SystemExit, match="add an entry"):
        build.check_version("99.0")


def test_a_changelog_without_an_entry_is_refused(build: ModuleType) -> None:
    """The build ends with the file's name, before anything is made."""
    with pytest.raises(SystemExit, match=r"changelog: no entry"):
        build.newest_entry("nothing\n")


def test_every_library_is_pinned() -> None:
    """All that pyproject.toml asks for has one version in constraints.txt."""
    pinned = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)$", (DEB / "constraints.txt").read_text(), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^  "([A-Za-z0-9-]+)>=', project.split("[project.optional-dependencies]")[0], re.MULTILINE)
    assert len(wanted) >= 10 and {name.lower() for name in wanted} <= pinned.keys()


def test_control_is_complete(build: ModuleType, tmp_path: Path) -> None:
    """Every field is filled in, files have checksums, and scripts can be run."""
    build.put(tmp_path / "usr/bin/ottod", build.LAUNCHER.format(prefix=build.PREFIX, module="ottod.__main__"))
    build.put(tmp_path / "usr/share/doc/x", "text")
    build.add_control(tmp_path, "1.2")
    build.settle(tmp_path, 1_700_000_000)
    control = (tmp_path / "DEBIAN/control").read_text()
    assert "{" not in control and "\nVersion: 1.2\n" in control and f"Depends: {build.PYTHON}," in control
    sums = (tmp_path / "DEBIAN/md5sums").read_text().splitlines()
    assert [line.split("  ")[1] for line in sums] == ["usr/bin/ottod", "usr/share/doc/x"]
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert modes["ottod"] == modes["postinst"] == modes["prerm"] == 0o755 and modes["x"] == modes["control"] == 0o644
    assert {int(p.stat().st_mtime) for p in tmp_path.rglob("*")} == {1_700_000_000}


def test_the_same_tree_is_the_same_package(build: ModuleType, tmp_path: Path) -> None:
    """Whatever the times and modes were, dpkg-deb makes the same bytes."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("there is no dpkg-deb")
    packages = []
    for name, mode in (("a", 0o600), ("b", 0o666)):
        stage = tmp_path / name
        build.put(stage / "usr/share/x", "text")
        (stage / "usr/share/x").chmod(mode)
        build.put_compressed(stage / "usr/share/x.gz", b"text")
        build.add_control(stage, "1.2")
        build.settle(stage, 1_700_000_000)
        package = tmp_path / f"{name}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "--build", str(stage), str(package)],
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        packages.append(package.read_bytes())
    assert packages[0] == packages[1]


@pytest.mark.parametrize("script", sorted((DEB / "scripts").iterdir()), ids=lambda p: p.name)
def test_scripts_start_nothing(script: Path) -> None:
    """Maintainer scripts are sound shell, stop at an error, and neither enable nor start a unit."""
    subprocess.run(["sh", "-n", str(script)], check=True)
    text = script.read_text()
    assert "\nset -e\n" in text
    assert not re.search(r"systemctl .*\b(enable|preset|start|restart)\b", text.replace("try-restart", ""))
