from __future__ import annotations

import errno
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.isolation import seccomp

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
NAMES = {**seccomp.CALLS, **seccomp.ABSENT_CALLS, **seccomp.DEBUG_CALLS, **seccomp.CONDITIONAL_CALLS}
Call = tuple[int, int, tuple[int, ...]]

needs_filter = pytest.mark.skipif(bool(seccomp.trial()), reason=f"no seccomp filter here: {seccomp.trial()}")


def interpret(code: bytes, nr: int, arch: int, arguments: tuple[int, ...]) -> int:
    """What a filter returns, by running its instructions as the kernel does."""
    data = struct.pack("=IIQ6Q", nr, arch, 0, *arguments)
    program = list(struct.iter_unpack("=HBBI", code))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, operand = program[at]
        at += 1
        match operation:
            case seccomp.LOAD_WORD:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case seccomp.JUMP_EQUAL:
                at += if_true if accumulator == operand else if_false
            case seccomp.JUMP_AT_LEAST:
                at += if_true if accumulator >= operand else if_false
            case seccomp.JUMP_ANY_BIT:
                at += if_true if accumulator & operand else if_false
            case seccomp.RETURN:
                return int(operand)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


def policy(machine: str, nr: int, arch: int, arguments: tuple[int, ...], *, allow_debugging: bool) -> int:
    """The same decision, written down as naively as possible."""
    column = list(seccomp.ARCHITECTURES).index(machine)
    low = [argument & 0xFFFFFFFF for argument in arguments]
    name = {numbers[column]: name for name, numbers in NAMES.items() if numbers[column] >= 0}.get(nr, "")
    refused = {
        "clone": low[0] & 0x7E020000 != 0,
        "unshare": low[0] & 0x7E020080 != 0,
        "ioctl": low[1] in (0x5412, 0x541C),
        "personality": low[0] not in (0, 0xFFFFFFFF),
        "ptrace": not allow_debugging,
    }
    if arch != seccomp.ARCHITECTURES[machine]:
        return seccomp.KILL_PROCESS
    if machine == "x86_64" and nr >= 0x40000000:
        return seccomp.REFUSE | errno.EPERM
    if name in seccomp.ABSENT_CALLS:
        return seccomp.REFUSE | errno.ENOSYS
    if name == "socket" and not (low[0] in (1, 2, 10) or (low[0] == 16 and low[2] == 0)):
        return seccomp.REFUSE | errno.EAFNOSUPPORT
    if name in seccomp.CALLS or refused.get(name, False):
        return seccomp.REFUSE | errno.EPERM
    return seccomp.ALLOW


interesting = st.sampled_from(
    [0, 1, 2, 8, 10, 16, 17, 40, 0x5412, 0x541C, 0x80, 0x20000, 0x10000000, 2**32, 2**64 - 1]
)
arguments = st.tuples(*[st.one_of(interesting, st.integers(0, 2**64 - 1)) for _ in range(6)])


@given(
    machine=st.sampled_from(sorted(seccomp.ARCHITECTURES)),
    nr=st.one_of(
        st.sampled_from([n for numbers in NAMES.values() for n in numbers if n >= 0]), st.integers(0, 2**32 - 1)
    ),
    arch=st.sampled_from([*seccomp.ARCHITECTURES.values(), 0x40000003]),
    values=arguments,
    allow_debugging=st.booleans(),
)
def test_the_filter_decides_as_the_policy_says(
    machine: str, nr: int, arch: int, values: tuple[int, ...], allow_debugging: bool
) -> None:
    """For any call of any ABI the assembled program and the policy in words agree."""
    code = seccomp.assemble(machine, allow_debugging=allow_debugging)
    expected = policy(machine, nr, arch, values, allow_debugging=allow_debugging)
    assert interpret(code, nr, arch, values) == expected


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_the_program_is_one_that_the_kernel_takes(machine: str) -> None:
    """Every jump stays inside, the last instruction returns, and the length is far below the kernel's 4096."""
    program = list(struct.iter_unpack("=HBBI", seccomp.assemble(machine, allow_debugging=False)))
    assert len(program) < 512 and program[-1][0] == seccomp.RETURN
    for index, (operation, if_true, if_false, _) in enumerate(program):
        if operation not in (seccomp.LOAD_WORD, seccomp.RETURN):
            assert index + 1 + max(if_true, if_false) < len(program)


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_headers(machine: str) -> None:
    """Each number of the table is the one that the system's own headers give, where they know the call."""
    header = next((path for path in map(Path, HEADERS[machine]) if path.is_file()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    known = dict(re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    column = list(seccomp.ARCHITECTURES).index(machine)
    checked = {name: numbers[column] for name, numbers in NAMES.items() if name in known and numbers[column] >= 0}
    assert len(checked) > 30
    assert checked == {name: int(known[name]) for name in checked}


_TRY = r"""
import ctypes, errno, fcntl, json, os, pty, socket, sys, termios
sys.path.append(sys.argv[1])
import landlock, seccomp
landlock.forbid_new_privileges()
seccomp.install(seccomp.assemble(seccomp.architecture(), allow_debugging=sys.argv[2] == "debug"))
column = list(seccomp.ARCHITECTURES).index(seccomp.architecture())
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def call(name, number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    found[name] = 0 if result >= 0 else ctypes.get_errno()
for table in (seccomp.CALLS, seccomp.ABSENT_CALLS):
    for name, numbers in table.items():
        if numbers[column] >= 0:
            call(name, numbers[column], -1, -1, -1, -1, -1)
call("unshare user", seccomp.CONDITIONAL_CALLS["unshare"][column], 0x10000000)
call("unshare files", seccomp.CONDITIONAL_CALLS["unshare"][column], 0x400)
call("personality", seccomp.CONDITIONAL_CALLS["personality"][column], 0x40000)
call("personality query", seccomp.CONDITIONAL_CALLS["personality"][column], 0xFFFFFFFF)
call("clone user", seccomp.CONDITIONAL_CALLS["clone"][column], 0x10000000 | 17, 0, 0, 0, 0)
if column == 0:
    call("x32 getpid", 0x40000000 + 39)
for name, family, kind, protocol in (
    ("unix", 1, 1, 0), ("inet", 2, 1, 0), ("inet6", 10, 2, 0), ("route", 16, 3, 0), ("audit", 16, 3, 9),
    ("packet", 17, 2, 0), ("alg", 38, 5, 0), ("vsock", 40, 1, 0), ("bluetooth", 31, 3, 0), ("xdp", 44, 3, 0),
):
    try:
        socket.socket(family, kind, protocol).close()
        found[name] = 0
    except OSError as error:
        found[name] = error.errno
ours, theirs = pty.openpty()
try:
    fcntl.ioctl(theirs, termios.TIOCSTI, b"x")
    found["tiocsti"] = 0
except OSError as error:
    found["tiocsti"] = error.errno
found["window size"] = len(fcntl.ioctl(theirs, termios.TIOCGWINSZ, bytes(8)))
child = os.fork()
if child == 0:
    call("traceme", seccomp.DEBUG_CALLS["ptrace"][column], 0)
    os._exit(found["traceme"])
found["traceme"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
import threading
thread = threading.Thread(target=lambda: found.update(thread=1))
thread.start(); thread.join()
print(json.dumps(found))
"""


@needs_filter
@pytest.mark.parametrize("mode", ["debug", "plain"])
def test_the_kernel_refuses_what_the_table_names(mode: str) -> None:
    """With the filter on, each named call fails as said, and what programs need goes on working."""
    directory = str(Path(seccomp.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _TRY, directory, mode], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in seccomp.CALLS:
        assert found.get(name, errno.EPERM) == errno.EPERM, name
    for name in seccomp.ABSENT_CALLS:
        assert found[name] == errno.ENOSYS, name
    assert [found[name] for name in ("unshare user", "clone user", "personality", "tiocsti")] == [errno.EPERM] * 4
    assert [found[name] for name in ("unshare files", "personality query")] == [0, 0]
    assert [found[name] for name in ("unix", "inet", "inet6", "route")] == [0, 0, 0, 0]
    refused = ("audit", "packet", "alg", "vsock", "bluetooth", "xdp")
    assert [found[name] for name in refused] == [errno.EAFNOSUPPORT] * len(refused)
    assert found.get("x32 getpid", errno.EPERM) == errno.EPERM
    assert found["window size"] == 8 and found["thread"] == 1
    assert found["traceme"] == (0 if mode == "debug" else errno.EPERM)


_I386_GETPID = """
import ctypes, mmap, sys
sys.path.append(sys.argv[1])
import landlock, seccomp
landlock.forbid_new_privileges()
seccomp.install(seccomp.assemble("x86_64", allow_debugging=False))
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: getpid of the 32-bit ABI
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
ctypes.CFUNCTYPE(ctypes.c_int)(address)()
print("survived")
"""


@needs_filter
@pytest.mark.skipif(seccomp.architecture() != "x86_64", reason="int 0x80 is of x86")
def test_the_32_bit_abi_is_no_way_around() -> None:
    """A 32-bit system call, whose number means something else, ends the process."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _I386_GETPID, str(Path(seccomp.__file__).parent)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode < 0 and b"survived" not in done.stdout


def test_the_trial_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a table there is no filter, and the trial names the machine."""
    monkeypatch.setattr(seccomp, "ARCHITECTURES", {"pdp11": 1})
    assert seccomp.architecture() == ""
    assert seccomp.trial().startswith("there is no filter for ")
