"""The texts of Otto's systemd units: a pure function of a scope and of the command that starts the daemon.

Two units, because sessions must outlive a restart of root (docs/adr/0011). `ottod` runs root and the zygote.
`otto-sessions` is the place where the sessions' processes live: systemd stops it once nothing needs it any more,
which is after `stop`, and not during a restart.

    scope    units                                  instance        slice
    user     ottod.service, otto-sessions.service   -               app-otto.slice, in the user's manager
    system   ottod@.service, otto-sessions@.service the user's uid  otto-UID.slice

The system units are templates like systemd's own `user@UID.service`: sessions work on a person's files, with that
person's configuration, and the control socket is in that person's runtime directory, where `ottoctl` looks for it.

`python -m ottoctl.service_unit packaging/systemd` writes the files that the Debian package installs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import msgspec

Scope = Literal["user", "system"]

MARK = "# Written by `ottoctl service install`; `ottoctl service uninstall` removes it."
"""The first line of a unit that Otto wrote itself: only such files are replaced or removed."""
PACKAGED_COMMAND = ("/usr/bin/ottod",)


class UnitFile(msgspec.Struct, frozen=True, kw_only=True):
    """A unit's file name and content."""

    name: str
    text: str


ROOT_UNIT = """\
# Otto's supervisor and its fork server. The sessions live in {sessions}.

[Unit]
{documentation}Description=Otto, supervisor of AI agents{whose}
Requires={sessions}{runtime}
After={sessions}{runtime}
# A daemon that cannot live is given up, and its sessions are ended, after ten starts in two minutes.
StartLimitIntervalSec=120
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} run
ExecReload=/bin/sh -c 'kill -HUP $$MAINPID'
{account}Environment=OTTO_SESSIONS_UNIT={sessions}
# Keys of model providers can stand here, one NAME=value a line; mode 0600.
EnvironmentFile=-%E/otto/{keys}
WorkingDirectory=/
Slice={slice}

# On `stop` and `restart` root lets go of its sessions and ends; what is left here (fork server, workers without a
# session) is killed.
KillMode=mixed
TimeoutStopSec=60
# The watchdog hears from root's own loop. SIGABRT, so that a loop that hangs says where.
WatchdogSec=20
TimeoutAbortSec=5
# Also after a watchdog or a crash; not after `ottoctl daemon stop`, which ends with 0.
Restart=on-failure
# Root left its sessions, for whatever reason: the next one takes them over, unless systemd itself ended this one.
SuccessExitStatus=75
RestartForceExitStatus=75
RestartSec=100ms

# A session that was killed for its memory is root's business, not the unit's end.
OOMPolicy=continue
{protection}CPUWeight=1000
TasksMax=4096
# Root raises its own soft limit; programs of sessions get the usual 1024.
LimitNOFILE=1024:524288
LimitCORE=0:infinity

# Sessions are forked here and live on elsewhere, so nothing stands here that would give them a mount namespace of
# this unit (PrivateTmp=, ProtectSystem=, …): it would end or change under them. Nothing either that bubblewrap needs
# (user namespaces, /proc, sethostname). Their own confinement is Otto's work.
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
{capabilities}
[Install]
WantedBy={target}
"""

SESSIONS_UNIT = """\
# Where the processes of Otto's sessions live, so that they outlive a restart of {root}.

[Unit]
{documentation}Description=Sessions of Otto{whose}
# A start, a restart that is due and a running daemon are a need; a stopped daemon is none, and ends the sessions.
StopWhenUnneeded=yes
{needs}
[Service]
# The holder keeps the group alive. It sits in a leaf, because a group that hands out controllers has no processes of
# its own. Nothing happens to the sessions if it dies: the unit remains active without it.
Type=oneshot
RemainAfterExit=yes
{account}{delegation}ExecStart=/bin/sh -c 'g=/sys/fs/cgroup$$(sed -n s/^0:://p /proc/self/cgroup); \\
mkdir -p "$$g/holder" && echo $$$$ >"$$g/holder/cgroup.procs"; sleep infinity >/dev/null 2>&1 &'
TimeoutStartSec=30
WorkingDirectory=/
Slice={slice}

# Root makes a group with caps for each session in here.
Delegate=yes
KillMode=control-group
TimeoutStopSec=15
# A session over its cap ends alone.
OOMPolicy=continue
# Every session has a cap of its own.
TasksMax=infinity
"""


def units(scope: Scope, command: tuple[str, ...] = PACKAGED_COMMAND) -> tuple[UnitFile, ...]:
    """The unit files of a scope. `command` is the daemon's program and what comes before the word `run`."""
    instance = "@%i" if scope == "system" else ""
    root, sessions = f"ottod{instance}.service", f"otto-sessions{instance}.service"
    fields = dict.fromkeys(("whose", "runtime", "account", "protection", "capabilities", "delegation", "needs"), "")
    fields |= {"root": root, "sessions": sessions, "command": exec_command(command)}
    # The manual page comes with the package.
    fields["documentation"] = "Documentation=man:ottod(8)\n" if command == PACKAGED_COMMAND else ""
    if scope == "user":
        fields |= {"slice": "app-otto.slice", "target": "default.target", "keys": "environment"}
    else:
        fields |= {
            "slice": "otto-%i.slice",
            "target": "multi-user.target",
            # One user's keys are not for another one's daemon.
            "keys": "%i.environment",
            "whose": " of user %i",
            # The directory of the control socket, whether the user is logged in or not.
            "runtime": " user-runtime-dir@%i.service",
            "needs": "Requires=user-runtime-dir@%i.service\nAfter=user-runtime-dir@%i.service\n",
            "account": "User=%i\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n",
            "protection": "OOMScoreAdjust=-250\n",
            "capabilities": "CapabilityBoundingSet=\n",
            # To move a worker the user must be able to write to what both units have in common.
            "delegation": "ExecStartPre=-+/bin/chown %i /sys/fs/cgroup/otto.slice/otto-%i.slice/cgroup.procs\n",
        }
    name = {"user": ("ottod", "otto-sessions"), "system": ("ottod@", "otto-sessions@")}[scope]
    return (
        UnitFile(name=f"{name[0]}.service", text=ROOT_UNIT.format_map(fields)),
        UnitFile(name=f"{name[1]}.service", text=SESSIONS_UNIT.format_map(fields)),
    )


def installed(unit: UnitFile) -> str:
    """The text of a unit that `ottoctl service install` writes."""
    return f"{MARK}\n{unit.text}"


def exec_command(argv: tuple[str, ...]) -> str:
    """A command line for ExecStart=, with what systemd would expand or split kept as it is.

    Source: systemd.service(5), "Command lines"; systemd.syntax(7).
    """
    return " ".join(_quoted(word) for word in argv)


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    is_plain = bool(escaped) and all(c.isalnum() or c in "/._-+=:@%$," for c in escaped)
    return escaped if is_plain else f'"{escaped}"'


def write_packaged(directory: Path) -> None:
    """Writes the units of both scopes below a directory, as the package installs them."""
    for scope in ("user", "system"):
        (directory / scope).mkdir(parents=True, exist_ok=True)
        for unit in units(scope):
            (directory / scope / unit.name).write_text(unit.text)


if __name__ == "__main__":
    write_packaged(Path(sys.argv[1]))
