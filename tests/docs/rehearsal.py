"""Runs the marked blocks of a page, in order, in one shell beside a private daemon, and compares what is printed."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from ottoctl.private import PrivateDaemon
from ottod.errors import UnreachableError
from tests.docs.markdown import ROOT, Block, blocks, commands

TIMEOUT_S = 150
"""For a whole page; the machine may be busy with other tests."""
MARK = "\x1e"

HOUSE_SCRIPT = "loop: true\nturns:\n  - text: All done.\n"
"""What the model `default` says to pages that count on one, since there is no key."""

_CHANGING = (
    (re.compile(r"\bs-[0-9a-z]{5,10}\b"), "s-ID"),
    (re.compile(r"\bpid \d+"), "pid N"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s)\b"), "TIME"),
    (re.compile(r"\b\d{16,}\b"), "NS"),
    (re.compile(r"\s+"), " "),
)


class Step(NamedTuple):
    """A piece of the shell script, and what it should print (None: anything)."""

    place: str
    script: str
    expected: list[str] | None


class Rehearsal:
    """One page's. README is played in the clone, other pages in an empty project below an empty home.

    All of it lies in the private daemon's directory, whose path is short enough for sockets.
    """

    def __init__(self, page: Path) -> None:
        self._steps = steps(page)
        # The daemon is only a place until the page starts one there.
        settings: dict[str, object] = {
            "ring": {"size_bytes": 4 * 1024 * 1024, "segment_bytes": 128 * 1024},
            # Other tests keep all cores busy: workers that have what nobody else wants would fall behind the page.
            "sessions": {"worker_priority": "normal"},
        }
        if not is_keyless(page):
            settings["models"] = {"default": "scripted:~/house.yml"}
        self.daemon = PrivateDaemon(settings)
        home, programs = self.daemon.base / "home", self.daemon.base / "bin"
        self._place = ROOT if page == ROOT / "README.md" else home / "project"
        (home / "project").mkdir(parents=True)
        (home / "house.yml").write_text(HOUSE_SCRIPT)
        programs.mkdir()
        for name, call in (("ottoctl", "-m ottoctl "), ("ottod", "-m ottod "), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call}"$@"\n')
            program.chmod(0o755)
        self.daemon.env |= {
            "HOME": str(home),
            "PATH": f"{programs}:{self.daemon.env['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

    def run(self) -> list[str]:
        """Plays the page and gives what differs from it, a text each. The daemon runs only if the page starts it."""
        script = "".join(f"{step.script}\n__s=$?\nprintf '\\n{MARK}%d\\n' $__s\n" for step in self._steps)
        try:
            done = subprocess.run(
                ["bash", "-c", f"__s=0\nexec 2>&1\n{script}"],
                cwd=self._place,
                env=self.daemon.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        finally:
            self._end_daemon()
        outputs = re.split(rf"\n{MARK}(\d+)\n", done.stdout)
        if len(outputs) != 2 * len(self._steps) + 1:
            return [f"the shell ended early:\n{done.stdout}"]
        differences = []
        for step, output, status in zip(self._steps, outputs[::2], outputs[1::2], strict=False):
            if int(status):
                differences.append(f"{step.place}: status {status}:\n{output}")
            elif step.expected is not None and not matches(step.expected, output.splitlines()):
                wanted = "\n".join(step.expected)
                differences.append(f"{step.place}: the page says\n{wanted}\n--- and it prints\n{output}")
        return differences

    def _end_daemon(self) -> None:
        """A daemon that the page started is in the background, and must not outlive it."""
        try:
            with self.daemon.client() as otto:
                pidfd = os.pidfd_open(otto.daemon.pid)
        except UnreachableError:
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            assert ended.poll(TIMEOUT_S * 1000), "the daemon that the page started does not end"
        finally:
            os.close(pidfd)


def is_keyless(page: Path) -> bool:
    """Whether a page says that it can be followed without a key: then no model is there but its own scripts."""
    return "without a key" in " ".join(page.read_text().split())


def steps(page: Path) -> list[Step]:
    """The page's marked blocks as steps."""
    found: list[Step] = []
    for block in blocks(page):
        match block.mark, block.language:
            case "file", _:
                path = shlex.quote(block.argument)
                found.append(Step(block.place, f"cat > {path} <<'__end__'\n{block.text}__end__", None))
            case "run", "console":
                found += _console(block)
            case "run", "python":
                found.append(Step(block.place, f"python - <<'__end__'\n{block.text}__end__", None))
            case "run", _:
                raise AssertionError(f"{block.place}: only console and python blocks can be run")
            case "output", _:
                found[-1] = found[-1]._replace(expected=block.text.splitlines())
    return found


def _console(block: Block) -> list[Step]:
    found = []
    for command in commands(block):
        place = f"{block.page.relative_to(ROOT)}:{command.line}"
        found.append(Step(place, f"(exit $__s); {command.text}", command.expected or None))
    return found


def matches(expected: list[str], actual: list[str]) -> bool:
    """Whether the lines are the expected ones, but for what changes from run to run and for what `…` stands for."""
    pattern = ""
    for line in filter(str.strip, expected):
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(_steady(part)) for part in line.split("…")) + r"\n"
    text = "".join(f"{_steady(line)}\n" for line in actual if line.strip())
    return re.fullmatch(pattern.replace(r"\ ", " "), text) is not None


def _steady(line: str) -> str:
    for changing, name in _CHANGING:
        line = changing.sub(name, line)
    return line.strip()
