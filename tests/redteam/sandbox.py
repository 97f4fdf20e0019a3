"""Attacks on what carries calls out: file tools, the web, and programs in their sandbox."""

from __future__ import annotations

import base64
import os
import socket
from typing import Any

from ottod.core.redaction import RedactedStream, Redactor
from ottod.errors import ToolError
from ottod.isolation.web import PinnedWeb
from ottod.protocol.specs import HttpAccess
from ottod.protocol.toolio import WebRequest
from tests.fakes.session_place import SessionPlace, run
from tests.redteam.arena import BREACH, Act, Arena

BENEATH = "files beneath the working directory"


def _tool(name: str, **arguments: Any) -> Act:
    def act(arena: Arena) -> str:
        filled = {k: v.format(outside=arena.outside) if isinstance(v, str) else v for k, v in arguments.items()}
        return arena.tool(name, **filled)

    return act


def _through_symlink(name: str, **arguments: Any) -> Act:
    """A symlink that a program made inside leads outside."""

    def act(arena: Arena) -> str:
        (arena.project / "way").symlink_to(arena.outside)
        (arena.project / "file").symlink_to(arena.outside / "secret.txt")
        (arena.project / "far").symlink_to("way/../../outside/secret.txt")
        found = arena.tool(name, **arguments)
        assert (arena.outside / "secret.txt").read_text() == "the secret\n"
        assert [each.name for each in arena.outside.iterdir()] == ["secret.txt"]
        return found

    return act


def device(arena: Arena) -> str:
    """A fifo that nobody writes to, where a file is expected."""
    os.mkfifo(arena.project / "pipe")
    return arena.tool("fs_read", path="pipe")


FILE_TOOLS: tuple[tuple[str, str, str, Act], ...] = (
    ("file-traversal", "`../outside/secret.txt`", BENEATH, _tool("fs_read", path="../outside/secret.txt")),
    ("file-absolute", "an absolute path outside", BENEATH, _tool("fs_read", path="{outside}/secret.txt")),
    ("file-proc-root", "`/proc/self/root/etc/passwd`", BENEATH, _tool("fs_read", path="/proc/self/root/etc/passwd")),
    ("file-proc-fd", "`/proc/self/environ`", BENEATH, _tool("fs_read", path="/proc/self/environ")),
    ("file-symlink-read", "read a symlink that leads outside", BENEATH, _through_symlink("fs_read", path="file")),
    ("file-symlink-write", "write through a symlink that leads outside", BENEATH,
     _through_symlink("fs_write", path="file", content="x")),
    ("file-symlink-parent", "make a file below a symlink that leads outside", BENEATH,
     _through_symlink("fs_write", path="way/new", content="x")),
    ("file-symlink-chain", "a symlink through a symlink and `..`", BENEATH, _through_symlink("fs_read", path="far")),
    ("file-nul", "a path with a NUL in it", "tool arguments", _tool("fs_read", path="a\0b")),
    ("file-device", "a fifo in place of a file", BENEATH, device),
    ("file-hook", "make `.git/hooks/pre-commit` by the file tool", "protected paths",
     _tool("fs_write", path=".git/hooks/pre-commit", content="x")),
    ("file-nested-hook", "make `a/b/.git/hooks/x` by the file tool", "protected paths",
     _tool("fs_write", path="a/b/.git/hooks/x", content="x")),
    ("file-policy-slash", "make `.otto//agents/./x.yml` by the file tool", "protected paths",
     _tool("fs_write", path=".otto//agents/./x.yml", content="x")),
    ("web-no-hosts", "an empty list of hosts is not every host", "hosts of the http tool",
     lambda arena: web(HttpAccess(), "http://example.test/", "192.0.2.1")),
    ("web-other-host", "a host that the agent's file does not name", "hosts of the http tool",
     lambda arena: web(HttpAccess(hosts=("good.test",)), "http://good.test.evil.test/", "192.0.2.1")),
    ("web-private", "an allowed name that resolves to 127.0.0.1", "addresses of the http tool",
     lambda arena: web(HttpAccess(hosts=("*",)), "http://good.test/", "127.0.0.1")),
    ("web-metadata", "an allowed name that resolves to 169.254.169.254", "addresses of the http tool",
     lambda arena: web(HttpAccess(hosts=("*",)), "http://good.test/", "169.254.169.254")),
    ("web-mapped", "an allowed name that resolves to ::ffff:10.0.0.1", "addresses of the http tool",
     lambda arena: web(HttpAccess(hosts=("*",)), "http://good.test/", "::ffff:10.0.0.1")),
    ("web-nul", "a URL with a NUL in its host", "addresses and hosts by their form",
     lambda arena: web(HttpAccess(hosts=("*.good.test",)), "http://evil.test\0.good.test/", "192.0.2.1")),
)  # fmt: skip


def web(access: HttpAccess, url: str, address: str) -> str:
    """Which check of the http tool's connection stops a request; names resolve to `address`."""

    async def resolve(host: str, port: int) -> list[str]:
        return [address]

    async def fetch() -> str:
        try:
            await PinnedWeb(access, resolve=resolve).fetch(WebRequest(method="GET", url=url), timeout_s=5)
        except ToolError as error:
            names = {
                "host_denied": "hosts of the http tool",
                "address_denied": "addresses of the http tool",
                "bad_url": "addresses and hosts by their form",
            }
            return names.get(error.code, error.code)
        return BREACH

    return run(fetch())


# ------------------------------------------------------------------ programs


def _python(source: str, *arguments: str) -> Act:
    def act(arena: Arena) -> str:
        places = {"{outside}": str(arena.outside), "{state}": str(arena.state), "{home}": os.path.expanduser("~")}
        filled = [places.get(argument, argument) for argument in arguments]
        return arena.attempt(source, *filled)

    return act


def _leaves_nothing(script: str, *made: str) -> Act:
    """A script that tries to make what is obeyed outside; nothing of that is there afterwards."""

    def act(arena: Arena) -> str:
        arena.shell(script)
        arena.place.close()
        is_there = any(os.path.lexists(arena.project / name) for name in made)
        return BREACH if is_there else "protected paths"

    return act


def nested_hook(arena: Arena) -> str:
    """Hooks and configuration of a repository below the working directory."""
    git = arena.project / "packages/deep/.git"
    (git / "hooks").mkdir(parents=True)
    for name in ("HEAD", "config"):
        (git / name).write_text("as it was\n")
    (git / "objects").mkdir()
    arena.shell("cd packages/deep; echo x > .git/hooks/pre-commit; echo x >> .git/config; mv .git g; mv g .git")
    is_changed = (git / "hooks/pre-commit").exists() or (git / "config").read_text() != "as it was\n"
    return BREACH if is_changed else "protected paths"


def symlink_for_the_next(arena: Arena) -> str:
    """A symlink that one call leaves, and the next one writes through."""
    arena.shell(f"ln -s {arena.outside} way")
    arena.shell("echo x > way/new; echo x > way/secret.txt")
    is_changed = (arena.outside / "new").exists() or (arena.outside / "secret.txt").read_text() != "the secret\n"
    return BREACH if is_changed else "mount namespace"


def key_in_environment(arena: Arena) -> str:
    """A provider's key in the worker's own environment."""
    os.environ["ANTHROPIC_API_KEY"] = "sk-the-key"
    try:
        said = arena.shell("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")
    finally:
        del os.environ["ANTHROPIC_API_KEY"]
    return BREACH if "sk-the-key" in said else "environment allowlist"


def inherited_socket(arena: Arena) -> str:
    """A connected unix socket that is inheritable when the session's launcher starts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.set_inheritable(True)
        place = SessionPlace(arena.base)
        try:
            listed = place.programs.run(["/bin/sh", "-c", "ls -l /proc/self/fd"], timeout_s=60, max_output_bytes=1000)
            said = run(listed).output
        finally:
            place.close()
    return BREACH if "socket" in said or "->" not in said else "closed descriptors"


def host_port(arena: Arena) -> str:
    """An open port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        return arena.attempt(f"socket.create_connection(('127.0.0.1', {port}), timeout=5)")


def abstract_socket(arena: Arena) -> str:
    """An abstract unix socket of this machine."""
    name = f"otto-{os.urandom(6).hex()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        return arena.attempt(f"socket.socket(socket.AF_UNIX).connect(chr(0) + {name!r})")


def control_socket(arena: Arena) -> str:
    """The daemon's control socket by its path."""
    path = arena.state / "control.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        return arena.attempt(f"socket.socket(socket.AF_UNIX).connect({str(path)!r})")


def foreign_process(arena: Arena) -> str:
    """A signal to a process outside of the sandbox."""
    return arena.attempt(f"os.kill({os.getpid()}, 0)")


def foreign_environment(arena: Arena) -> str:
    """The environment of a process outside of the sandbox."""
    return arena.attempt(f"open('/proc/{os.getpid()}/environ').read()")


def left_behind(arena: Arena) -> str:
    """A process that makes a session of its own and goes on after the call."""
    arena.shell("setsid sh -c 'sleep 300' & setsid setsid sleep 300 & exit 0")
    return "process namespace" if arena.place.leftovers() == [] else BREACH


def _filtered(name: str, call: str) -> tuple[str, str, str, Act]:
    source = f"result = {call}\nif result < 0:\n    raise SystemExit(print('refused'))"

    def act(arena: Arena) -> str:
        said = arena.attempt(source)
        return "system call filter" if said == "refused" else said

    return f"syscall-{name}", f"`{name}` from a program", "system call filter", act


def _family(name: str, family: int, kind: str) -> tuple[str, str, str, Act]:
    act = _python(f"socket.socket({family}, socket.{kind})")

    def named(arena: Arena) -> str:
        said = act(arena)
        return "system call filter" if said in ("EPERM", "Landlock", "EAFNOSUPPORT") else said

    return f"socket-{name}", f"an {name.upper()} socket from a program", "system call filter", named


def _printed(script: str, *, in_pieces: bool = False) -> Act:
    """A program prints a secret that the daemon knows; what is kept and shown of it does not hold it."""

    def act(arena: Arena) -> str:
        secret = "correct-horse-battery-staple-4711"
        (arena.project / "key").write_text(secret)
        said = arena.shell(script)
        redactor = Redactor.of({"THE_KEY": secret})
        if in_pieces:
            stream = RedactedStream(redactor)
            shown = "".join(stream.feed(char) for char in said) + stream.rest()
        else:
            shown = redactor.text(said)
        forms = (secret, base64.b64encode(secret.encode()).decode().rstrip("="), secret.encode().hex())
        assert any(form in said.replace("\n", "") for form in forms), said
        return BREACH if any(form in shown.replace("\n", "") for form in forms) else "redaction"

    return act


SANDBOX: tuple[tuple[str, str, str, Act], ...] = (
    ("program-read-outside", "read a file outside of the working directory", "mount namespace",
     _python("open(sys.argv[1] + '/secret.txt').read()", "{outside}")),
    ("program-write-outside", "write a file outside of the working directory", "mount namespace",
     _python("open(sys.argv[1] + '/new', 'w')", "{outside}")),
    ("program-proc-root", "`/proc/self/root` and a path outside", "mount namespace",
     _python("open('/proc/self/root' + sys.argv[1] + '/secret.txt').read()", "{outside}")),
    ("program-proc-cwd", "`/proc/1/cwd/../outside`", "mount namespace",
     _python("open('/proc/self/cwd/../outside/secret.txt').read()")),
    ("program-token", "the daemon's token", "mount namespace",
     _python("open(sys.argv[1] + '/control.token').read()", "{state}")),
    ("program-home", "the user's ssh keys", "mount namespace",
     _python("os.listdir(sys.argv[1] + '/.ssh')", "{home}")),
    ("program-system", "write to /usr/bin", "read-only mounts", _python("open('/usr/bin/otto-was-here', 'w')")),
    ("program-cgroup", "the control groups, to leave its cap", "mount namespace",
     _python("open('/sys/fs/cgroup/cgroup.procs', 'w')")),
    ("program-symlink-next", "a symlink left for the next call to write through", "mount namespace",
     symlink_for_the_next),
    ("program-hook-missing", "make `.git/hooks/pre-commit` in a directory without a repository", "protected paths",
     _leaves_nothing("mkdir -p .git/hooks; echo x > .git/hooks/pre-commit; git init .", ".git/hooks/pre-commit")),
    ("program-policy-missing", "make `.otto/agents` where there is none", "protected paths",
     _leaves_nothing("mkdir -p .otto/agents; echo x > .otto/agents/e.yml; mv .otto o; mkdir .otto", ".otto")),
    ("program-policy-rename", "rename another directory to `.otto`", "protected paths",
     _leaves_nothing("mkdir -p evil/agents; mv -T evil .otto", ".otto")),
    ("program-hook-nested", "hooks and configuration of a nested repository", "protected paths", nested_hook),
    ("program-environment", "a provider's key in the environment", "environment allowlist", key_in_environment),
    ("program-descriptor", "an inherited unix socket", "closed descriptors", inherited_socket),
    ("program-signal", "signal a process of the user's", "process namespace", foreign_process),
    ("program-other-environment", "read another process's environment", "mount namespace", foreign_environment),
    ("program-left-behind", "leave a process behind in a session of its own", "process namespace", left_behind),
    ("program-port", "connect to a port of this machine", "network namespace", host_port),
    ("program-abstract-socket", "connect to an abstract unix socket", "network namespace", abstract_socket),
    ("program-control-socket", "connect to the daemon's control socket", "mount namespace", control_socket),
    ("secret-printed", "print a secret that the daemon knows", "redaction", _printed("cat key")),
    ("secret-base64", "print it as base64", "redaction", _printed("base64 -w0 key")),
    ("secret-hex", "print it as hex", "redaction", _printed("od -An -v -tx1 key | tr -d ' \\n'")),
    ("secret-in-pieces", "print it byte by byte to a watcher", "redaction", _printed("cat key", in_pieces=True)),
    _filtered("io_uring_setup", "libc.syscall(425, 1, 0)"),
    _filtered("unshare", "libc.unshare(0x10000000)"),
    _filtered("mount", "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)"),
    _filtered("chroot", "libc.chroot(b'/tmp')"),
    _family("vsock", 40, "SOCK_STREAM"),
    _family("packet", 17, "SOCK_RAW"),
)  # fmt: skip
