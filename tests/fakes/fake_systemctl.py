"""A `systemctl` for tests: a program on a PATH of its own that notes what it was asked and answers from files.

calls           one line for each call, without the options that all calls share
UNIT.show       the properties of a unit, `Name=value` lines; without it the unit is not loaded
fails           a pattern of the shell: a call that it matches fails
list            what list-units and list-unit-files print
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SYSTEMCTL = """\
#!/bin/sh
cd {state} || exit 9
while :; do
    case "$1" in --user | --no-pager | --no-ask-password) shift ;; *) break ;; esac
done
echo "$*" >>calls
if [ -e fails ]; then
    pattern=$(cat fails)
    case "$*" in $pattern) echo "{words}" >&2; exit 1 ;; esac
fi
case "$1 $2" in
    "show --property=Version") echo 252 ;;
    "show "*) if [ -e "$2.show" ]; then cat "$2.show"; else echo LoadState=not-found; fi ;;
    "list-units "* | "list-unit-files "*) [ ! -e list ] || cat list ;;
esac
exit 0
"""


class FakeSystemctl:
    """The program, its state, and an environment in which it is the only systemctl."""

    def __init__(self, base: Path, *, words: str = "Job failed.") -> None:
        self.programs, self.state, self.home = base / "bin", base / "systemctl", base / "home"
        for directory in (self.programs, self.state, self.home):
            directory.mkdir()
        program = self.programs / "systemctl"
        program.write_text(SYSTEMCTL.format(state=self.state, words=words))
        program.chmod(0o755)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        path = os.pathsep.join([str(self.programs), "/usr/bin", "/bin"])
        return {"PATH": path, "HOME": str(self.home), **(extra or {})}

    @property
    def calls(self) -> list[str]:
        """What it was asked, in order."""
        log = self.state / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def fail(self, pattern: str) -> None:
        """Makes calls fail that match a pattern of the shell."""
        (self.state / "fails").write_text(pattern)

    def unit(self, name: str, **properties: object) -> None:
        """Loads a unit."""
        lines = [f"{key}={value}\n" for key, value in {"LoadState": "loaded", **properties}.items()]
        (self.state / f"{name}.show").write_text("".join(lines))

    def listed(self, text: str) -> None:
        """What the lists of units print."""
        (self.state / "list").write_text(text)
