from __future__ import annotations

import subprocess
import sys

import pytest

from ottod.isolation.caps import Caps, IsolationError
from ottod.isolation.rlimits import DATA_SLACK_BYTES, limits_for, set_own_limits

MIB = 1 << 20


def test_memory_is_limited_per_process_only_where_nobody_holds_the_cap() -> None:
    """The watchdog's sessions get the cap and the slack as RLIMIT_DATA; a cgroup's leave that to the kernel."""
    caps = Caps(memory_bytes=256 * MIB, pids=10)
    assert limits_for(caps) == [("CORE", 0), ("DATA", 256 * MIB + DATA_SLACK_BYTES)]
    assert limits_for(caps, kind="cgroup") == [("CORE", 0)]
    assert limits_for(Caps()) == [("CORE", 0)]


def test_the_limit_holds_in_a_process_and_in_what_it_starts() -> None:
    """A child of a process with 64 MiB beyond the slack gets no more memory than that, and lives on without it."""
    script = (
        "import subprocess, sys\n"
        "from ottod.isolation.caps import Caps\n"
        "from ottod.isolation.rlimits import limits_for, set_own_limits\n"
        "set_own_limits(limits_for(Caps(memory_bytes=64 << 20)))\n"
        "grab = 'try: bytearray(1 << 30)\\nexcept MemoryError: print(1)\\nbytearray(32 << 20); print(2)'\n"
        "subprocess.run([sys.executable, '-I', '-S', '-c', grab], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False, text=True)
    assert done.stdout == "1\n2\n", done.stderr


def test_limits_are_never_raised() -> None:
    """What is above the hard limit becomes the hard limit; root's processes are held to it as well."""
    script = (
        "import resource\n"
        "from ottod.isolation.rlimits import set_own_limits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "set_own_limits([('NOFILE', 4096), ('CORE', 0)])\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False, text=True)
    assert done.stdout == "(64, 64) (0, 0)\n", done.stderr


@pytest.mark.parametrize("name", ["", "data", "NO_SUCH"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    """A limit that does not exist is named, not skipped."""
    with pytest.raises(IsolationError, match="no resource limit"):
        set_own_limits([(name, 1)])
