"""Programs that start other programs: which of a command's words are a command in turn.

Only options that are known are skipped; an unknown one makes what follows opaque, because it may take a word or not.

Source: the manual pages of GNU coreutils, findutils, util-linux, sudo, busybox and bash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class Word(NamedTuple):
    """A word of a command line. `is_open`: what follows `text` is not known. `plain`: characters before any quote."""

    text: str
    is_open: bool = False
    plain: int = 0


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    """What a command starts: `commands` by words, `lines` through a shell, or something that cannot be told.

    `is_transparent`: it does nothing of its own. `is_altering`: what it starts has another environment or root.
    """

    commands: tuple[tuple[Word, ...], ...] = ()
    lines: tuple[str, ...] = ()
    writes: tuple[Word, ...] = ()
    is_opaque: bool = False
    is_transparent: bool = False
    is_altering: bool = False


class Wrapper(NamedTuple):
    """Options without and with a value, short ones as letters; words before the command; what it changes."""

    flags: str = ""
    valued: str = ""
    long_flags: tuple[str, ...] = ()
    long_valued: tuple[str, ...] = ()
    positional: int = 0
    is_transparent: bool = True
    is_altering: bool = False


WRAPPERS: dict[str, Wrapper] = {
    "nohup": Wrapper(),
    "setsid": Wrapper("cfw", long_flags=("ctty", "fork", "wait")),
    "nice": Wrapper("0123456789", "n", long_valued=("adjustment",)),
    "ionice": Wrapper("t", "cnpPu", long_valued=("class", "classdata")),
    "timeout": Wrapper("v", "ks", ("foreground", "preserve-status", "verbose"), ("kill-after", "signal"), 1),
    "time": Wrapper("pvqa", "fo", ("portability", "verbose", "quiet", "append"), ("format",)),
    "stdbuf": Wrapper("", "ioe", (), ("input", "output", "error")),
    "chronic": Wrapper("ve"),
    "command": Wrapper("p"),
    "builtin": Wrapper(),
    "exec": Wrapper("cl", "a"),
    "taskset": Wrapper("ac", positional=1),
    "chrt": Wrapper("abdfior", "TPD", positional=1),
    "flock": Wrapper("enosux", "Ew", ("exclusive", "nonblock", "shared"), ("wait", "timeout"), 1, False),
    "sudo": Wrapper("AbEHnPSikKls", "CDghpRrTtUu", ("preserve-env", "non-interactive"), ("user",), 0, False, True),
    "doas": Wrapper("nLs", "Cu", positional=0, is_transparent=False, is_altering=True),
    "chroot": Wrapper("", "", ("skip-chdir",), ("userspec", "groups"), 1, False, True),
    "busybox": Wrapper(is_transparent=True),
    "toybox": Wrapper(is_transparent=True),
}
_WATCH = Wrapper(
    "bcdegptwrC",
    "nq",
    ("beep", "color", "no-color", "errexit", "chgexit", "precise", "no-title", "no-wrap", "no-rerun", "differences"),
    ("interval", "equexit"),
)
SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "rbash", "fish"})
OPAQUE_WRAPPERS = frozenset(
    {
        "parallel", "unshare", "nsenter", "systemd-run", "dbus-run-session", "ssh-agent", "strace", "ltrace", "gdb",
        "valgrind", "rlwrap", "expect", "entr", "at", "batch", "crontab", "screen", "tmux", "runuser", "proot",
        "bwrap", "firejail", "setpriv", "capsh", "perf", "linux32", "linux64", "setarch", "pkexec", "socat", "nc",
        "ncat", "m4", "ed", "ex", "vi", "vim", "nvim", "view", "emacs", "awk", "gawk", "mawk", "nawk", "sqlite3",
        "i386", "x86_64", "prlimit", "choom", "uclampset", "numactl", "cgexec", "fakeroot", "xvfb-run", "unbuffer",
        "start-stop-daemon", "run-parts", "runcon", "sg", "newgrp", "dbus-launch", "chpst", "complete", "bind",
    }
)  # fmt: skip
"""They start what they are told in ways that are not followed here."""
INTERPRETERS = ("python", "perl", "ruby", "node", "php", "lua", "tclsh", "deno", "bun", "Rscript", "osascript")
INLINE_OPTIONS = ("-c", "-e", "-E", "-r", "-p", "-n", "--eval", "--print", "eval", "-")
RUNNING_OPTIONS: dict[str, tuple[str, ...]] = {
    "git": ("-c", "--exec-path", "--config-env", "--upload-pack", "--receive-pack", "-x", "--exec"),
    "tar": ("--checkpoint-action", "--to-command", "-I", "--use-compress-program", "--rsh-command", "-F"),
    "rsync": ("-e", "--rsh", "--rsync-path"),
    "ssh": ("-o", "-F"),
    "make": ("--eval", "-f", "-C"),
    "sed": ("-f", "-s", "--expression", "-e"),
    "man": ("-P", "-H"),
}
"""Options by which ordinary programs start others."""
ATTACHED_OPTIONS: dict[str, tuple[str, ...]] = {"tar": ("I", "F"), "rsync": ("e",), "ssh": ("o", "F")}
"""Those of them whose value may follow at once, or which may stand in a cluster with others: `-cIzstd`."""
MIN_ABBREVIATION_CHARS = 4
"""Long options may be cut short, down to `--to` for `--to-command`."""
GIT_RUNS = frozenset({"bisect", "filter-branch", "difftool", "mergetool", "foreach", "send-email", "shell"})
"""Commands of git that run what they are told."""
GIT_PAGERS = ("-O", "--open-files-in-pager", "--ext-diff", "--textconv")
CODE_SOURCES = ("/dev/", "/proc/")
"""Where what is read as commands comes from somewhere else than from a file."""
FIND_ACTIONS = ("-exec", "-execdir", "-ok", "-okdir")
FIND_WRITES = ("-fprint", "-fprint0", "-fprintf", "-fls")
_XARGS = Wrapper(
    "0rtxpo", "aEdILnPs", ("null", "no-run-if-empty", "verbose"), ("arg-file", "max-args", "max-procs"), 0, False
)
_OPAQUE = Inner(is_opaque=True)


def inner_commands(words: Sequence[Word]) -> Inner:
    """What a command starts besides itself. The first word is known."""
    name = words[0].text.rsplit("/", 1)[-1]
    rest = list(words[1:])
    if name in WRAPPERS:
        return _wrapped(rest, WRAPPERS[name])
    if name == "env":
        return _env(rest)
    if name == "xargs":
        inner = _wrapped(rest, _XARGS)
        # Its arguments come from its input.
        commands = tuple((*command, Word("", is_open=True)) for command in inner.commands)
        return msgspec.structs.replace(inner, commands=commands)
    if name == "find":
        return _find(rest)
    if name in SHELLS:
        return _shell(rest)
    if name == "eval":
        return Inner(lines=(" ".join(w.text for w in rest),)) if _are_known(rest) and rest else _opaque_if(rest)
    if name == "watch":
        behind = _skip_options(rest, _WATCH)
        known = behind is not None and _are_known(behind)
        return Inner(lines=(" ".join(w.text for w in behind),)) if behind and known else _opaque_if(rest)
    if name in ("source", "."):
        is_file = bool(rest) and not rest[0].is_open and not rest[0].text.startswith(CODE_SOURCES)
        return Inner() if is_file else _opaque_if(rest)
    if name == "alias":
        # Some shells run the value wherever the name comes up.
        values = tuple(w.text.partition("=")[2] for w in rest if "=" in w.text)
        return Inner(lines=values, is_opaque=not _are_known(rest))
    if name in ("hash", "enable", "mapfile", "readarray"):
        return _opaque_if([w for w in rest if w.is_open or w.text.startswith(("-p", "-f", "-C"))])
    if name == "trap":
        return Inner(lines=(rest[0].text,)) if rest and _are_known(rest[:1]) else _opaque_if(rest)
    if name in ("su", "script"):
        return _line_behind(rest, "-c")
    if name.startswith(("ld-linux", "ld-musl", "ld.so")):
        return Inner(commands=(tuple(rest),), is_altering=True) if rest else Inner()
    return Inner(is_opaque=_runs_anything(name, rest))


def _opaque_if(rest: Sequence[Word]) -> Inner:
    return _OPAQUE if rest else Inner()


def _are_known(words: Sequence[Word]) -> bool:
    return not any(word.is_open for word in words)


def _runs_anything(name: str, rest: Sequence[Word]) -> bool:
    """Whether it runs what it is given as text, or reads it from its input."""
    if name in OPAQUE_WRAPPERS:
        return True
    options = RUNNING_OPTIONS.get(name)
    if options is not None and name != "make":
        return any(_is_running(name, w.text, options) for w in rest) or (name == "git" and _git_runs(rest))
    if name.startswith(INTERPRETERS):
        return not rest or any(w.text.startswith(INLINE_OPTIONS) for w in rest[:1]) or rest[0].is_open
    return False


def _is_running(name: str, word: str, options: Sequence[str]) -> bool:
    """Whether a word is one of these options, with its value or without, or cut short."""
    option = word.split("=", 1)[0]
    if option.startswith("--"):
        return any(known.startswith(option) for known in options) and len(option) >= MIN_ABBREVIATION_CHARS
    letters = ATTACHED_OPTIONS.get(name, ())
    return option in options or (word[:1] == "-" and any(letter in word for letter in letters))


def _git_runs(rest: Sequence[Word]) -> bool:
    return any(w.text in GIT_RUNS or w.text.startswith(GIT_PAGERS) for w in rest)


def _skip_options(rest: list[Word], wrapper: Wrapper) -> list[Word] | None:
    """The words behind the options; None if one of them is not known."""
    at = 0
    while at < len(rest):
        word = rest[at]
        if word.is_open:
            return None
        if not word.text.startswith("-") or word.text == "-":
            break
        at += 1
        if word.text == "--":
            break
        if word.text.startswith("--"):
            name, is_given, _ = word.text[2:].partition("=")
            if name in wrapper.long_valued:
                at += not is_given
            elif name not in wrapper.long_flags:
                return None
            continue
        for place, letter in enumerate(word.text[1:], 2):
            if letter in wrapper.valued:
                at += place == len(word.text)
                break
            if letter not in wrapper.flags:
                return None
    return rest[at:]


def _wrapped(rest: list[Word], wrapper: Wrapper) -> Inner:
    behind = _skip_options(rest, wrapper)
    if behind is None or not _are_known(behind[: wrapper.positional]):
        return _OPAQUE
    command = tuple(behind[wrapper.positional :])
    return Inner(
        commands=(command,) if command else (),
        is_transparent=wrapper.is_transparent and bool(command),
        is_altering=wrapper.is_altering,
    )


def _env(rest: list[Word]) -> Inner:
    behind = _skip_options(rest, Wrapper("iv0", "uC", ("ignore-environment",), ("unset", "chdir")))
    if behind is None:
        return _OPAQUE
    at = 0
    while at < len(behind) and "=" in behind[at].text:
        at += 1
    is_altering = at > 0 or len(behind) < len(rest)
    command = tuple(behind[at:])
    return Inner(
        commands=(command,) if command else (),
        is_transparent=bool(command) and not is_altering,
        is_altering=is_altering,
    )


def _find(rest: list[Word]) -> Inner:
    """Its actions. `{}` in them stands for a path that is not known."""
    commands: list[tuple[Word, ...]] = []
    writes: list[Word] = []
    at = 0
    while at < len(rest):
        word = rest[at].text
        at += 1
        if word in FIND_WRITES and at < len(rest):
            writes.append(rest[at])
        if word not in FIND_ACTIONS:
            continue
        command: list[Word] = []
        while at < len(rest) and rest[at].text not in (";", "+"):
            text, has_path, _ = rest[at].text.partition("{}")
            command.append(Word(text, is_open=rest[at].is_open or bool(has_path)))
            at += 1
        if not command:
            return _OPAQUE
        commands.append(tuple(command))
    is_known = _are_known(rest) or not any(w.is_open and w.text.startswith("-") for w in rest)
    return Inner(commands=tuple(commands), writes=tuple(writes), is_opaque=not is_known)


def _shell(rest: list[Word]) -> Inner:
    """`-c LINE`, in whatever cluster; a script is the shell's own argument; without either it reads its input."""
    at = 0
    wants_line = False
    while at < len(rest) and rest[at].text[:1] in ("-", "+") and len(rest[at].text) > 1:
        word = rest[at]
        at += 1
        if word.is_open:
            return _OPAQUE
        if word.text.startswith("--"):
            if word.text in ("--rcfile", "--init-file"):
                return _OPAQUE
            continue
        if word.text.endswith(("o", "O")):
            at += 1
        if word.text[0] == "-" and "s" in word.text:
            return _OPAQUE
        wants_line |= word.text[0] == "-" and "c" in word.text
    if at >= len(rest):
        return _OPAQUE
    if not wants_line:
        is_file = not rest[at].is_open and rest[at].text != "-" and not rest[at].text.startswith(CODE_SOURCES)
        return Inner() if is_file else _OPAQUE
    if rest[at].is_open:
        return _OPAQUE
    return Inner(lines=(rest[at].text,), is_transparent=True)


def _line_behind(rest: list[Word], option: str) -> Inner:
    for at, word in enumerate(rest):
        if word.text == option and at + 1 < len(rest) and not rest[at + 1].is_open:
            return Inner(lines=(rest[at + 1].text,))
    return _OPAQUE
