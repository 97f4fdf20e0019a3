"""`make vm-test` is honest: it fails if a script on a machine failed, and refuses before one is started in vain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "packaging" / "vm" / "run.py"
VM_RUN = """\
#!/bin/sh
echo "$*" >>{log}
for last; do :; done
case $last in *{failing}) exit 7 ;; esac
"""
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An empty package for the guest's Python."""
    return make_package(tmp_path, "python3.11")


def make_package(base: Path, depends: str) -> Path:
    control = base / depends / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: X <x@x.invalid>\nDescription: x\n"
        f"Depends: {depends}, libc6\n"
    )
    target = base / f"{depends}.deb"
    argv = ["dpkg-deb", "--root-owner-group", "--build", str(base / depends), str(target)]
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    return target


def vm_test(tmp_path: Path, package: Path, *, failing: str = "nothing") -> tuple[int, list[str], str]:
    """Its status, the machines that it ran, and what it said on stderr."""
    program, log = tmp_path / "vm-run", tmp_path / "machines"
    program.write_text(VM_RUN.format(log=log, failing=failing))
    program.chmod(0o755)
    env = {**os.environ, "VM_RUN": str(program), "DEB": str(package)}
    done = subprocess.run(
        [sys.executable, str(RUN)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


@needs_dpkg
def test_every_script_runs_with_what_it_needs(tmp_path: Path, package: Path) -> None:
    """Each script has a machine of its own; the service's gets the package."""
    status, machines, said = vm_test(tmp_path, package)
    assert status == 0, said
    assert [line.rpartition("/")[2] for line in machines] == ["cgroups.py", "service.sh"]
    assert f"--copy {package}:/opt/otto-daemon.deb" in machines[1] and "/opt/otto/ottod" in machines[0]
    assert all(Path(line.split()[-1]).is_file() for line in machines)


@needs_dpkg
@pytest.mark.parametrize("failing", ["cgroups.py", "service.sh"])
def test_one_failure_is_a_failure(tmp_path: Path, package: Path, failing: str) -> None:
    """Whichever script fails, the other one still runs, and the status is a failure."""
    status, machines, _ = vm_test(tmp_path, package, failing=failing)
    assert status == 7 and len(machines) == 2


@needs_dpkg
def test_a_package_for_another_python_is_refused(tmp_path: Path) -> None:
    """The guest could not install it: that is said at once, with the mend."""
    status, machines, said = vm_test(tmp_path, make_package(tmp_path, "python3.13"))
    assert status == 2 and machines == [] and "is not for python3.11" in said and "mend:" in said


def test_without_a_package_or_a_machine(tmp_path: Path) -> None:
    """What is missing is named."""
    status, machines, said = vm_test(tmp_path, tmp_path / "absent.deb")
    assert status == 2 and machines == [] and "absent.deb" in said and "make deb" in said
    env = {**os.environ, "VM_RUN": str(tmp_path / "absent")}
    done = subprocess.run(
        [sys.executable, str(RUN)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "VM_RUN" in done.stderr
