"""Where attacks are tried: a real working directory with real tools, a real sandbox and the real decision."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ottod.core.permission import hard_denies
from ottod.errors import ToolError
from ottod.isolation.beneath import BeneathFiles
from ottod.protocol.model import ToolCall
from ottod.protocol.policy import Authority
from ottod.protocol.specs import PermissionRule, Preset
from ottod.tools.registry import BUILTIN_TOOLS
from ottod.worker.judge import Judge
from tests.fakes.session_place import SessionPlace, run

TOOLS = {tool.name: tool for tool in BUILTIN_TOOLS}
BREACH = "nothing"
"""The layer that blocked an attack that succeeded."""
LAYER_OF_ERROR = {
    "ENOENT": "mount namespace",
    "EROFS": "read-only mounts",
    "ENOTDIR": "mount namespace",
    "ESRCH": "process namespace",
    "ECONNREFUSED": "network namespace",
    "ENETUNREACH": "network namespace",
    "EACCES": "Landlock",
}
"""What a program in the sandbox is told, and which layer says so."""


class Arena:
    """`project` is the working directory, `outside` one beside it, `state` stands for Otto's own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.project, self.outside, self.state = base / "project", base / "outside", base / "state"
        for directory in (self.project, self.outside, self.state):
            directory.mkdir(exist_ok=True)
        (self.outside / "secret.txt").write_text("the secret\n")
        (self.state / "control.token").write_text("the token\n")
        self._place: SessionPlace | None = None

    @property
    def place(self) -> SessionPlace:
        """Tools and a sandbox, as a session has them."""
        if self._place is None:
            self._place = SessionPlace(self.base, denied_paths=(str(self.state),))
        return self._place

    def close(self) -> None:
        if self._place is not None:
            self._place.close()
            assert self._place.leftovers() == []

    # ------------------------------------------------------------ decisions

    def judge(self, *rules: PermissionRule, preset: Preset = "autonomous", **more: Any) -> Judge:
        """The real decision over the real tools; without rules of the user's everything is allowed."""
        own = Authority(name="rules", agent="coder", preset=preset, rules=rules)
        authorities = (*hard_denies((str(self.state),)), own, *more.pop("others", ()))
        options = {"run_mode": "interactive", "is_confined": True, **more}
        return Judge(authorities=authorities, tools=TOOLS, cwd=str(self.project), **options)

    def decided(self, judge: Judge, tool: str, **arguments: Any) -> str:
        """Who stops a call: an authority that denies or asks, or nothing."""
        call = ToolCall(call="c-1", tool=tool, arguments=json.dumps(arguments))
        verdict = judge.verdict(call)
        return BREACH if verdict.effect == "allow" else f"decision: {verdict.decisive.authority}"

    def guarded_files(self, judge: Judge) -> BeneathFiles:
        """File access as a worker has it, which asks the judge again at the moment of use."""
        return BeneathFiles(str(self.project), hidden=(str(self.state),), objection=judge.objection)

    # ------------------------------------------------------------ tools and programs

    def tool(self, name: str, **arguments: Any) -> str:
        """Which layer refuses a file tool's call; nothing if it ran."""
        try:
            output = self.place.call(TOOLS[name], json.dumps(arguments))
        except ToolError as error:
            if error.code == "protected":
                return "protected paths"
            return "files beneath the working directory" if error.code != "bad_path" else "tool arguments"
        return "tool arguments" if output.is_error else BREACH

    def shell(self, script: str) -> str:
        """What a script in the sandbox prints."""
        program = self.place.programs.run(["/bin/sh", "-c", script], timeout_s=60, max_output_bytes=20_000)
        return run(program).output

    def attempt(self, python: str, *arguments: str) -> str:
        """Which layer stops some lines of Python in the sandbox: by the error that they get."""
        body = "".join(f"    {line}\n" for line in python.strip().splitlines())
        source = (
            "import ctypes, errno, os, signal, socket, sys\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"try:\n{body}    print('nothing')\n"
            "except OSError as error:\n    print(errno.errorcode.get(error.errno or 0, repr(error)))\n"
        )
        argv = [os.path.realpath(sys.executable), "-I", "-S", "-c", source, *arguments]
        result = run(self.place.programs.run(argv, timeout_s=60, max_output_bytes=20_000))
        said = result.output.strip().splitlines()[-1] if result.output.strip() else f"ended {result.exit_status}"
        return BREACH if said == "nothing" else LAYER_OF_ERROR.get(said, said)


Act = Callable[[Arena], str]
"""Tries an attack and gives the layer that blocked it."""
