"""A seccomp filter for tool processes: system calls that no build, test or script needs, and that attacks begin with.

Everything is allowed but what the tables name, and what they name fails with an error that programs know how to take
(EPERM, or ENOSYS where a program then tries the older call), so that they degrade and do not die. Refused are: mounts
and new namespaces, keyrings, BPF, performance events, userfaultfd, io_uring, modules and kexec, file handles, other
processes' memory and descriptors, sockets other than unix, IP and routing netlink, typing into a terminal (TIOCSTI),
and personalities. Debuggers work where a pid namespace keeps them among their own.

The filter is a classic BPF program that looks at a `seccomp_data`:

    offset  0  nr (u32)    4  arch (u32)    8  instruction pointer (u64)    16 + 8·i  argument i (u64)

It is assembled here, for x86_64 and aarch64, which spares a library that not every host has. Calls of another ABI
(i386, arm, x32) have other numbers, so the table means nothing for them: the process is killed, x32 refused.

    load arch;  ≠ native → kill          load nr;  x86_64: nr ≥ 0x40000000 → EPERM
    for each refused call:               nr = N → its errno
    for each call with a condition:      nr ≠ N → next;  load an argument's low half;  compare → errno or allow
    allow

Only the low half of an argument is compared where the kernel itself looks at no more (a flag in the upper half would
otherwise hide the rest). This module imports the standard library only: the launcher of confined programs loads it
by path, without the rest of the package.

Source: seccomp(2), linux/filter.h, asm/unistd_64.h, asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

TYPE_CHECKING = False  # As in `typing`, which would triple the launcher's start-up time.
if TYPE_CHECKING:
    from collections.abc import Iterator

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""`uname -m` → AUDIT_ARCH_*."""
X32_BIT = 0x40000000

LOAD_WORD = 0x20
JUMP_EQUAL = 0x15
JUMP_AT_LEAST = 0x35
JUMP_ANY_BIT = 0x45
RETURN = 0x06

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
REFUSE = 0x00050000
OFFSET_NR, OFFSET_ARCH, OFFSET_ARGUMENTS = 0, 4, 16

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2

CALLS: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); -1 where the architecture has no such call.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "uselib": (134, -1),
    "lookup_dcookie": (212, 18),
}
"""Refused with EPERM, whatever their arguments."""
ABSENT_CALLS: dict[str, tuple[int, int]] = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),
}
"""Refused with ENOSYS: programs then use epoll, and clone(2), whose flags a filter can see."""
DEBUG_CALLS: dict[str, tuple[int, int]] = {"ptrace": (101, 117)}
CONDITIONAL_CALLS: dict[str, tuple[int, int]] = {
    "clone": (56, 220),
    "unshare": (272, 97),
    "socket": (41, 198),
    "ioctl": (16, 29),
    "personality": (135, 92),
}

NEW_NAMESPACES = 0x7E020000 | 0x00000080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, and NEWTIME."""
NEW_NAMESPACES_OF_CLONE = 0x7E020000
"""clone(2) has the exit signal where NEWTIME would be."""
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
PERSONALITY_QUERY = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]


def architecture() -> str:
    """`uname -m`, if a filter can be made for it; empty otherwise."""
    machine = os.uname().machine
    return machine if machine in ARCHITECTURES and sys.maxsize > 2**32 else ""


def assemble(machine: str, *, allow_debugging: bool) -> bytes:
    """The filter as the bytes of its instructions (struct sock_filter[]). `machine` is a key of ARCHITECTURES."""
    column = list(ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (LOAD_WORD, 0, 0, OFFSET_ARCH),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD_WORD, 0, 0, OFFSET_NR),
    ]
    if machine == "x86_64":
        code += [(JUMP_AT_LEAST, 0, 1, X32_BIT), _refuse(errno.EPERM)]
    refused = CALLS if allow_debugging else {**CALLS, **DEBUG_CALLS}
    for table, code_of_error in ((refused, errno.EPERM), (ABSENT_CALLS, errno.ENOSYS)):
        for numbers in table.values():
            if numbers[column] >= 0:
                code += [(JUMP_EQUAL, 0, 1, numbers[column]), _refuse(code_of_error)]
    for name, numbers in CONDITIONAL_CALLS.items():
        block = list(_condition(name))
        # The block ends in a return on every path, so that the number need not be loaded again.
        code += [(JUMP_EQUAL, 0, len(block), numbers[column]), *block]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _condition(name: str) -> Iterator[Instruction]:
    """What decides on one call, by its arguments."""
    allow, refuse = (RETURN, 0, 0, ALLOW), _refuse(errno.EPERM)
    match name:
        case "clone":
            yield from (_load(0), (JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES_OF_CLONE), refuse, allow)
        case "unshare":
            yield from (_load(0), (JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES), refuse, allow)
        case "ioctl":
            yield from (_load(1), (JUMP_EQUAL, 1, 0, TIOCSTI), (JUMP_EQUAL, 0, 1, TIOCLINUX), refuse, allow)
        case "personality":
            yield from (_load(0), (JUMP_EQUAL, 2, 0, 0), (JUMP_EQUAL, 1, 0, PERSONALITY_QUERY), refuse, allow)
        case "socket":
            yield _load(0)
            yield (JUMP_EQUAL, 6, 0, AF_UNIX)
            yield (JUMP_EQUAL, 5, 0, AF_INET)
            yield (JUMP_EQUAL, 4, 0, AF_INET6)
            yield (JUMP_EQUAL, 0, 2, AF_NETLINK)
            yield _load(2)
            # Name resolution lists the interfaces through routing netlink.
            yield (JUMP_EQUAL, 1, 0, NETLINK_ROUTE)
            yield _refuse(errno.EAFNOSUPPORT)
            yield allow


def _load(argument: int) -> Instruction:
    """Both architectures are little-endian: the low half comes first."""
    return (LOAD_WORD, 0, 0, OFFSET_ARGUMENTS + 8 * argument)


def _refuse(code: int) -> Instruction:
    return (RETURN, 0, 0, REFUSE | code)


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


_libc = ctypes.CDLL(None, use_errno=True)


def install(code: bytes) -> None:
    """Puts the calling thread and all it starts behind a filter, for ever. Needs no_new_privs. Raises OSError."""
    program = _SockFprog(len(code) // 8, code)
    arguments = (ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0))
    if _libc.prctl(ctypes.c_int(PR_SET_SECCOMP), *arguments) != 0:
        code_of_error = ctypes.get_errno()
        raise OSError(code_of_error, os.strerror(code_of_error))


def trial() -> str:
    """Tries the filter on a child of its own: empty if it refuses what it must, else why not, in a few words.

    Blocks for some milliseconds. Call it in a process without other threads, or through `layers`' own child.
    """
    import subprocess

    if not architecture():
        return f"there is no filter for {os.uname().machine}"
    argv = [sys.executable, "-I", "-S", "-c", _TRIAL, os.path.dirname(os.path.abspath(__file__))]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=10, check=False, text=True, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the trial did not run: {error}"
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0 and done.stdout.strip() == "refused":
        return ""
    return lines[-1] if lines else f"the trial ended with status {done.returncode}"


_TRIAL = """
import sys
sys.path.append(sys.argv[1])
import landlock, seccomp, socket
landlock.forbid_new_privileges()
try:
    seccomp.install(seccomp.assemble(seccomp.architecture(), allow_debugging=False))
except OSError as error:
    sys.exit(f"the kernel takes no filter: {error.strerror}")
socket.socket(socket.AF_UNIX).close()
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
except OSError as error:
    print("refused")
    sys.exit(0 if error.errno == 97 else f"a packet socket is not refused: {error}")
sys.exit("a packet socket could be opened")
"""
