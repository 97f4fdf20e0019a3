"""The isolation layers behind one small interface: what each is called, whether this host gives it, and the proof.

`probe` looks and tries what is cheap: it runs at every start of the daemon. `prove` really breaks the rule that the
layer is there to hold, in processes of its own (allocates past a cap, forks past a limit, writes outside, opens a
socket), and reports `given` only if the breach failed, the culprit alone suffered, and nothing was left behind.

Both block, `probe` up to some hundred milliseconds, `prove` some seconds, and are meant for a thread.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

TRIAL_TIMEOUT_S = 20.0
"""The longest that one trial may take: generous, for a machine that is busy with the sessions."""
REASON_CHARS = 300

Status = Literal["given", "partly", "missing"]
_WORDS: dict[Status, str] = {"given": "yes", "partly": "partly", "missing": "no"}


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one layer. `detail` says what holds or what is missing, `mend` what would help."""

    name: str
    status: Status
    detail: str = ""
    mend: str = ""

    def __str__(self) -> str:
        """One line that begins with yes, partly or no; the mend comes after the last semicolon."""
        text = _WORDS[self.status] + (f": {self.detail}" if self.detail else "")
        return " ".join(f"{text}; {self.mend}".split()) if self.mend and self.status != "given" else text


class Layer(Protocol):
    """One layer of isolation."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    def probe(self) -> LayerReport:
        """Whether the host gives it, as far as looking tells."""

    def prove(self) -> LayerReport:
        """Whether it holds, by trying to break it."""


def run_trial(argv: Sequence[str], *, timeout_s: float = TRIAL_TIMEOUT_S) -> str:
    """Runs a trial program; empty if it succeeded, else why not, in a few words."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:.0f} s"
    except OSError as error:
        return str(error.strerror)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1][:REASON_CHARS] if lines else f"exit status {done.returncode}"


def read_setting(path: str) -> str | None:
    """A one-line file of the kernel; None if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
