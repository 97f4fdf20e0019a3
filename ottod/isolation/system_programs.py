"""Programs of the system that processes of Otto start themselves, with nothing to confine them.

They are not looked for by the PATH of whoever started the daemon: in a shell where a project's environment is active
that begins with a directory of the project, and agents write there.
"""

from __future__ import annotations

import os
import shutil

SYSTEM_PATH = os.pathsep.join(
    (
        "/usr/local/bin",
        "/usr/bin",
        "/bin",
        "/usr/sbin",
        "/sbin",
        # NixOS, Guix, and a Nix that all users share.
        "/run/current-system/sw/bin",
        "/run/current-system/profile/bin",
        "/nix/var/nix/profiles/default/bin",
    )
)
"""Where only the machine's administrator puts programs."""


def system_program(name: str) -> str:
    """The absolute path of a program; empty if the system has none of that name."""
    return shutil.which(name, path=SYSTEM_PATH) or ""
