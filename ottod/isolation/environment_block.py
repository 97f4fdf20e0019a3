"""Takes values out of this process's environment block, which whoever runs as the same user can read.

A program's environment is handed to it by the kernel in one block of memory, and `/proc/<pid>/environ` shows that
block for as long as the process lives. Forgetting a variable (`unsetenv`, `del os.environ[…]`) drops the pointer to
it; the text stays where it was. So it is written over where it lies, through `/proc/self/mem`, which a process may
always do to itself.

    /proc/self/stat   field 50: where the block begins, 51: where it ends
    the block         NAME=value NUL NAME=value NUL …

Source: proc_pid_stat(5), proc_pid_environ(5), ADR 0021.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

STAT = Path("/proc/self/stat")
MEMORY = Path("/proc/self/mem")
ENV_START = 49
"""The index of field 50, when the first field is 0."""


def blot_out(names: Iterable[str]) -> None:
    """Writes zeros over the values of these variables in the block; `os.environ` is not touched.

    Raises: OSError if the block cannot be written to.
    """
    start, end = _block()
    with MEMORY.open("r+b", buffering=0) as memory:
        memory.seek(start)
        block = memory.read(end - start)
        wanted = {os.fsencode(name) for name in names}
        position = 0
        for entry in block.split(b"\0"):
            name, equals, value = entry.partition(b"=")
            if equals and value and name in wanted:
                memory.seek(start + position + len(name) + 1)
                memory.write(b"\0" * len(value))
            position += len(entry) + 1


def _block() -> tuple[int, int]:
    """Where the environment block begins and ends."""
    # The program's name is in brackets and may hold anything, brackets and blanks too.
    fields = STAT.read_text(errors="replace").rpartition(")")[2].split()
    start, end = int(fields[ENV_START - 2]), int(fields[ENV_START - 1])
    if not 0 < start <= end:
        raise OSError(0, "the kernel does not say where the environment lies")
    return start, end
