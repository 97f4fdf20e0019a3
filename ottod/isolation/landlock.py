"""Landlock: a process gives up, for itself and all it starts, every file that a rule does not allow.

    ABI   kernel   adds
    1     5.13     files
    2     5.19     REFER (rename and link between directories)
    3     6.2      TRUNCATE
    4     6.7      TCP bind and connect (not used here)
    5     6.10     IOCTL_DEV
    6     6.12     scopes: abstract unix sockets, signals
    7     6.15     audit flags (not used here)
    8     7.0      all threads of a process at once

Rights that the kernel does not know are left out of the ruleset: what it cannot check it does not forbid either.
`weaknesses` names what that leaves open. This module imports the standard library only: the launcher of confined
programs loads it by path, without the rest of the package.

Source: landlock(7), linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

TYPE_CHECKING = False  # As in `typing`, which would triple the launcher's start-up time.
if TYPE_CHECKING:
    from collections.abc import Iterable

SYS_CREATE_RULESET = 444
SYS_ADD_RULE = 445
SYS_RESTRICT_SELF = 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
PR_SET_NO_NEW_PRIVS = 38

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

ALL_OF_ABI_1 = (1 << 13) - 1
READ = EXECUTE | READ_FILE | READ_DIR
MAKE_DEVICES = MAKE_CHAR | MAKE_BLOCK
WRITE = (ALL_OF_ABI_1 | REFER | TRUNCATE) & ~MAKE_DEVICES
DEVICE = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Rights that make sense for something that is not a directory; the kernel refuses the others there."""

SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
SCOPE_SIGNAL = 1 << 1
RESTRICT_ALL_THREADS = 1 << 3


class _RulesetAttr(ctypes.Structure):
    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def forbid_new_privileges() -> None:
    """No program started from here gains privileges by setuid or file capabilities. Irrevocable. Raises OSError."""
    if _libc.prctl(ctypes.c_int(PR_SET_NO_NEW_PRIVS), *(ctypes.c_ulong(each) for each in (1, 0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def abi() -> int:
    """The kernel's Landlock ABI; 0 if it has none, or has it switched off."""
    try:
        return _syscall(SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(CREATE_RULESET_VERSION))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def handled_rights(version: int) -> int:
    """The file rights that a kernel of this ABI can check."""
    rights = ALL_OF_ABI_1
    if version >= 2:
        rights |= REFER
    if version >= 3:
        rights |= TRUNCATE
    if version >= 5:
        rights |= IOCTL_DEV
    return rights


def scopes(version: int) -> int:
    """The scopes that a kernel of this ABI can close."""
    return SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if version >= 6 else 0


def ruleset_size_bytes(version: int) -> int:
    """How much of the attribute structure this ABI knows: older kernels refuse the rest."""
    return 8 if version < 4 else 16 if version < 6 else 24


def weaknesses(version: int) -> list[str]:
    """What this ABI leaves open, one phrase each."""
    open_ends = []
    if version < 3:
        open_ends.append("files elsewhere can be truncated (Linux 6.2 closes this)")
    if version < 5:
        open_ends.append("devices can be controlled by ioctl (Linux 6.10)")
    if version < 6:
        open_ends.append("processes and abstract sockets outside can be reached (Linux 6.12)")
    return open_ends


def trial() -> str:
    """Tries Landlock in a child: empty if a forbidden directory is really closed, else why not and the mend."""
    import subprocess
    import sys

    version = abi()
    if version == 0:
        return "the kernel has none, or it is switched off; add landlock to the boot parameter lsm= (Linux 5.13)"
    argv = [sys.executable, "-I", "-S", "-c", _TRIAL, os.path.dirname(os.path.abspath(__file__))]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=10, check=False, text=True, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the trial did not run: {error}"
    lines = done.stderr.strip().splitlines()
    why = lines[-1] if lines else f"the trial ended with status {done.returncode}"
    is_closed = done.returncode == 0 and done.stdout.strip() == "closed"
    return "" if is_closed else f"ABI {version} is there and does not work: {why}"


_TRIAL = """
import os, sys
sys.path.append(sys.argv[1])
import landlock
ruleset = landlock.Ruleset()
ruleset.allow_reading([sys.argv[1]])
ruleset.restrict_self()
os.listdir(sys.argv[1])
try:
    os.listdir("/")
except PermissionError:
    print("closed")
    sys.exit(0)
sys.exit("a forbidden directory could be read")
"""


class Ruleset:
    """What will be allowed; `restrict_self` makes it so. `version` defaults to the kernel's ABI.

    Raises: OSError if the kernel has no Landlock.
    """

    def __init__(self, version: int | None = None) -> None:
        kernel = abi()
        if kernel == 0:
            raise OSError(errno.EOPNOTSUPP, "the kernel has no Landlock")
        self.version = kernel if version is None else min(version, kernel)
        self._rights = handled_rights(self.version)
        attributes = _RulesetAttr(self._rights, 0, scopes(self.version))
        size_bytes = ruleset_size_bytes(self.version)
        self._fd = _syscall(
            SYS_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size_bytes), ctypes.c_uint32(0)
        )

    def allow(self, path: str | int, rights: int) -> bool:
        """Allows `rights` on a path (or an open descriptor) and beneath it. False if it does not exist."""
        try:
            fd = path if isinstance(path, int) else os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= OF_A_FILE
            rights &= self._rights
            if rights:
                rule = _PathBeneathAttr(rights, fd)
                _syscall(
                    SYS_ADD_RULE,
                    ctypes.c_int(self._fd),
                    ctypes.c_int(RULE_PATH_BENEATH),
                    ctypes.byref(rule),
                    ctypes.c_uint32(0),
                )
        finally:
            if not isinstance(path, int):
                os.close(fd)
        return True

    def allow_reading(self, paths: Iterable[str]) -> None:
        """Reading and executing, for each path that exists."""
        for path in paths:
            self.allow(path, READ)

    def allow_writing(self, paths: Iterable[str]) -> None:
        """Everything but device nodes, for each path that exists."""
        for path in paths:
            self.allow(path, WRITE)

    def allow_devices(self, paths: Iterable[str]) -> None:
        """Reading, writing and ioctl, for each device that exists."""
        for path in paths:
            self.allow(path, DEVICE)

    def restrict_self(self, *, all_threads: bool = False) -> None:
        """Confines the calling thread and all it starts, for ever. Sets no_new_privs. Raises OSError.

        `all_threads` takes the other threads of the process along where the kernel can do that (ABI 8).
        """
        forbid_new_privileges()
        if all_threads and self.version >= 8:
            try:
                _syscall(SYS_RESTRICT_SELF, ctypes.c_int(self._fd), ctypes.c_uint32(RESTRICT_ALL_THREADS))
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        _syscall(SYS_RESTRICT_SELF, ctypes.c_int(self._fd), ctypes.c_uint32(0))

    def close(self) -> None:
        """Frees the descriptor; the restriction stays."""
        os.close(self._fd)
