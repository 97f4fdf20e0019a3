"""`make vm-test`: lets the Debian package prove itself on a throwaway machine with a real systemd and cgroup v2.

    VM_RUN    a program `VM_RUN [--timeout S] [--copy HOSTPATH:GUESTPATH]... SCRIPT` that runs SCRIPT as root on such
              a machine, Debian 12 with bubblewrap and without a network, and ends with the script's status
    DEB       the package; by default the one in dist/ that `make deb` built of this version

Two machines, one after the other: tests/vm/cgroups.py tries the control groups by themselves, tests/vm/service.sh the
package and a service's life. The exit status is 0 if every claim of both held, 2 if it could not begin.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "vm"
GUEST_PACKAGE = "/opt/otto-daemon.deb"
GUEST_PYTHON = "python3.11"
"""Of Debian 12: a package built with another minor version could not be installed there."""
TIMEOUT_S = 3600


def main() -> int:
    """Checks what is needed, and runs the machine."""
    os.chdir(ROOT)
    vm_run = shutil.which(os.environ.get("VM_RUN", ""))
    if vm_run is None:
        return refuse("VM_RUN names no program that runs a script on a virtual machine", "set VM_RUN")
    package = Path(os.environ.get("DEB") or newest_package())
    if not package.is_file():
        return refuse(f"there is no package {package}", "`make deb`")
    depends = subprocess.run(
        ["dpkg-deb", "--field", str(package), "Depends"], capture_output=True, text=True, check=False
    ).stdout
    if not re.search(rf"\b{re.escape(GUEST_PYTHON)}\b", depends):
        return refuse(
            f"{package} is not for {GUEST_PYTHON}, which Debian 12 has",
            f"build it with that version: `make clean deb PYTHON={GUEST_PYTHON}`",
        )
    status = 0
    for script, copies in (("cgroups.py", libraries()), ("service.sh", {package.resolve(): GUEST_PACKAGE})):
        argv = [vm_run, "--timeout", str(TIMEOUT_S)]
        for source, place in copies.items():
            argv += ["--copy", f"{source}:{place}"]
        print(f"\n#### {script}", flush=True)
        status = subprocess.run([*argv, str(SCRIPTS / script)], check=False).returncode or status
    return status


def libraries() -> dict[Path, str]:
    """What cgroups.py imports, and where it looks for it."""
    msgspec = importlib.util.find_spec("msgspec")
    assert msgspec is not None and msgspec.origin is not None, "ottod depends on it"
    return {ROOT / "ottod": "/opt/otto/ottod", Path(msgspec.origin).parent: "/opt/otto/msgspec"}


def newest_package() -> Path:
    """The package of the version that the changelog is about."""
    entry = re.match(r"(\S+) \(([^)]+)\)", (ROOT / "packaging" / "deb" / "changelog").read_text())
    assert entry is not None, "packaging/deb/changelog begins with an entry"
    found = sorted((ROOT / "dist").glob(f"{entry[1]}_{entry[2]}_*.deb"))
    return found[-1] if found else ROOT / "dist" / f"{entry[1]}_{entry[2]}_amd64.deb"


def refuse(reason: str, mend: str) -> int:
    print(f"vm-test: {reason}\n  mend: {mend}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
