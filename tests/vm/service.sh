#!/bin/bash
# Otto as a service, on a real systemd with cgroup v2. Runs as root in a throwaway machine without a network, which has
# the package in /opt/otto-daemon.deb; `make vm-test` brings both there (packaging/vm/run.py).
#
# Prints a line for each claim, PASS or FAIL; exits with 1 if one of them failed. Whatever happens asynchronously is
# waited for with a deadline, and the deadlines are generous: an emulated machine is ten times slower, and shares its
# host with others.
set -u
failed=0
passed=0
check() { # check CLAIM COMMAND...: PASS if the command succeeds
    local claim=$1; shift
    if "$@"; then echo "PASS  $claim"; passed=$((passed + 1)); else echo "FAIL  $claim"; failed=$((failed + 1)); fi
}
not() { ! "$@"; }
title() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
within() { # within SECONDS COMMAND...: succeeds as soon as the command does
    local deadline=$((SECONDS + $1)); shift
    until "$@"; do [ $SECONDS -lt $deadline ] || return 1; sleep 0.3; done
}
account=otto
useradd -m $account
uid=$(id -u $account)
home=/home/$account
as() { runuser -u $account -- env -i PATH=/usr/bin:/bin HOME=$home LANG=C.UTF-8 XDG_RUNTIME_DIR=/run/user/$uid "$@"; }
otto() { (cd $home/desk && as ottoctl --timeout 120 "$@"); }
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | head -1; } # a top-level field of -o json
of() { otto inspect "$1" -o json 2>/dev/null | field "$2"; }
seq_of() { of "$1" last_seq; }
is_beyond() { local now; now=$(seq_of "$1"); [ -n "$now" ] && [ "$now" -gt "$2" ]; }
is_state() { [ "$(of "$1" state)" = "$2" ]; }
is_whole() { # every seq from 1 on, once and in order, and no gap
    otto events --session "$1" --from 0 -o jsonl | python3 -c '
import json, sys
seqs = [item["seq"] for item in map(json.loads, sys.stdin)]
print(len(seqs), "events")
sys.exit(seqs != list(range(1, len(seqs) + 1)))'
}
group_of() { cut -d: -f3 "/proc/$1/cgroup"; }
is_alive() { [ -n "$1" ] && [ -d "/proc/$1" ]; }
property() { $manager show "$1" -p "$2" --value; }
main_pid_differs() { local now; now=$(property $root MainPID); [ "$now" != 0 ] && [ "$now" != "$1" ]; }
is_active() { [ "$(property "$1" ActiveState)" = active ]; }
is_inactive() { case $(property "$1" ActiveState) in inactive | failed) ;; *) return 1 ;; esac; }
answers() { otto ps >/dev/null 2>&1; }
has_workers() { otto daemon status -o json 2>/dev/null | grep -q '"warm_workers": [1-9]'; }
# No process of the account, but for the user's own manager.
leftovers() { pgrep -u $account -a | grep -v -e '/systemd --user' -e '(sd-pam)'; }
is_swept() { not leftovers >/dev/null; }
show_log() { journalctl --no-pager -o short-monotonic "$@" | tail -60; }

title "the package"
check "it installs without a network" dpkg -i /opt/otto-daemon.deb
check "it enabled and started nothing" test -z "$(systemctl list-units --all --plain --no-legend 'ottod*' 'otto-sessions*')"
mkdir -p $home/desk $home/.config/otto/agents
chown -R $account: $home
check "ottoctl runs" as ottoctl version
check "the completion for bash is there" grep -q ottoctl /usr/share/bash-completion/completions/ottoctl
check "systemd finds nothing wrong with the units" systemd-analyze verify --man=no /lib/systemd/system/ottod@.service /lib/systemd/system/otto-sessions@.service

# Until a root is up again, sessions wait for as long as ten times the usual grace: the machine is ten times slower.
echo 'sessions: {orphan_grace_s: 5m}' > $home/.config/otto/otto.yml

# Two agents: one streams and streams, the other takes more memory than it may have.
cat > $home/.config/otto/agents/streamer.yml <<YML
description: Streams twenty pieces a second for a long time.
model: scripted:$home/desk/streamer.script.yml
YML
cat > $home/desk/streamer.script.yml <<YML
turns:
  - stream: {events: 200000, rate_hz: 20, text_bytes: 32}
YML
cat > $home/.config/otto/agents/glutton.yml <<YML
description: Its tool takes 400 MiB of the 150 that it may have.
model: scripted:$home/desk/glutton.script.yml
tools: [shell]
permissions: {preset: autonomous}
limits: {memory_bytes: 150 MiB}
YML
cat > $home/desk/glutton.script.yml <<'YML'
turns:
  - text: "Taking it."
    tools: [{name: shell, arguments: {command: "python3 -c 'x = b\"x\" * (400 << 20); import time; time.sleep(60)'"}}]
  - text: "Nobody stopped me."
YML

life() { # life LABEL MANAGER ROOT-UNIT SESSIONS-UNIT: a service's life, from start to stop
    local label=$1 old worker hog before
    manager=$2 root=$3 sessions=$4
    title "$label: start"
    check "the unit starts" $manager start $root
    check "systemd waits until clients can connect" answers
    check "it says how many sessions there are" test -n "$(property $root StatusText)"
    check "it has a watchdog" test "$(property $root WatchdogUSec)" != 0

    title "$label: a session over its memory"
    check "the fork server is ready" within 600 has_workers
    streamer=$(otto run streamer go -d)
    hog=$(otto run glutton go -d)
    echo "sessions: streamer $streamer, glutton $hog"
    within 180 is_beyond "$streamer" 20
    worker=$(of "$streamer" pid)
    old=$(property $root MainPID)
    check "workers are in the sessions' unit, not in root's" grep -q "/$sessions/" "/proc/$worker/cgroup"
    group_of "$worker"
    check "the session over its cap ends" within 240 is_state "$hog" ended
    otto inspect "$hog" -o json | grep -A9 '"cause"'
    check "its cause is memory" grep -q '"kind": "memory"' <(otto inspect "$hog" -o json)
    check "its neighbour lives, in the same process" is_alive "$worker"
    before=$(seq_of "$streamer")
    check "and goes on streaming" within 180 is_beyond "$streamer" "$before"
    check "root is the same process" test "$(property $root MainPID)" = "$old"
    check "the unit is active" is_active $root

    title "$label: restart"
    before=$(seq_of "$streamer")
    check "systemctl restart" $manager restart $root
    check "root is a new process" main_pid_differs "$old"
    check "the session's process is the same" is_alive "$worker"
    check "the new root has adopted it" within 180 is_state "$streamer" running
    check "with the same process" test "$(of "$streamer" pid)" = "$worker"
    check "and it goes on streaming" within 180 is_beyond "$streamer" "$before"

    title "$label: a root that hangs"
    old=$(property $root MainPID)
    before=$(seq_of "$streamer")
    kill -STOP "$old"
    check "the watchdog replaces it" within 300 main_pid_differs "$old"
    check "the new one is ready" within 180 is_active $root
    check "systemd counts the restart" test "$(property $root NRestarts)" -ge 1
    check "the session's process is the same" is_alive "$worker"
    check "it is adopted" within 180 is_state "$streamer" running
    check "and goes on streaming" within 180 is_beyond "$streamer" "$before"

    title "$label: a root that is killed"
    old=$(property $root MainPID)
    before=$(seq_of "$streamer")
    kill -KILL "$old"
    check "systemd starts another" within 180 main_pid_differs "$old"
    check "the session's process is the same" is_alive "$worker"
    check "it is adopted" within 180 is_state "$streamer" running
    check "and goes on streaming" within 180 is_beyond "$streamer" "$before"

    title "$label: a root that is told to go, but not by systemd"
    old=$(property $root MainPID)
    before=$(seq_of "$streamer")
    check "it refuses to stop and keep its sessions" not otto daemon stop --keep-sessions
    check "and is the same process" test "$(property $root MainPID)" = "$old"
    kill -TERM "$old"
    check "systemd starts another after a SIGTERM by hand" within 180 main_pid_differs "$old"
    check "the session's process is the same" is_alive "$worker"
    check "it is adopted" within 180 is_state "$streamer" running
    check "and goes on streaming" within 180 is_beyond "$streamer" "$before"
    check "its history has every event once, through four roots" is_whole "$streamer"

    title "$label: stop"
    group=$(property $sessions ControlGroup)
    check "there are groups of sessions" test -d "/sys/fs/cgroup$group/sessions/$streamer"
    check "systemctl stop" $manager stop $root
    check "systemd takes it for a success" test "$(property $root Result)" = success
    check "the sessions' unit stops because nothing needs it" within 180 is_inactive $sessions
    check "no process is left" within 120 is_swept
    leftovers
    check "no group of a session is left" not test -e "/sys/fs/cgroup$group"
    echo "the sessions' unit ended with result $(property $sessions Result): timeout if one had to be killed"

    title "$label: ottoctl daemon stop"
    check "the unit starts again" $manager start $root
    within 600 has_workers
    again=$(otto run streamer go -d)
    within 180 is_state "$again" running
    check "the session that was stopped with the service has ended" not is_state "$streamer" running
    check "ottoctl daemon stop" otto daemon stop --grace 5
    check "systemd leaves it stopped" not within 5 is_active $root
    check "and takes it for a success" test "$(property $root Result)" = success
    check "no process is left" within 120 is_swept
    leftovers
}

life "the system's service" systemctl ottod@$uid.service otto-sessions@$uid.service
show_log -u ottod@$uid -u otto-sessions@$uid

title "the journal"
check "the unit starts once more" systemctl start ottod@$uid
echo 'clients: {max_client: 3}' > $home/.config/otto/otto.yml
check "systemctl reload" systemctl reload ottod@$uid
told_of_the_mistake() { journalctl --no-pager -u ottod@$uid -p err -o cat | grep "otto.yml:1"; }
check "a configuration that is wrong is an error in the journal, with its priority" within 60 told_of_the_mistake
check "and stops nobody" is_active ottod@$uid
echo 'logging: {format: json}' > $home/.config/otto/otto.yml
systemctl stop ottod@$uid

title "a user's service, its log in JSON"
loginctl enable-linger $account
within 60 test -S /run/user/$uid/systemd/private
user_manager() { as systemctl --user "$@"; }
check "ottoctl service install --now" otto service install --now
check "the package's units are used" not test -e $home/.config/systemd/user/ottod.service
check "ottoctl service status" otto service status
check "it is enabled and active" test "$(otto service status -o json | grep -c -e '"enabled": "enabled"' -e '"active": "active"')" = 2
life "the user's service" user_manager ottod.service otto-sessions.service
records() { journalctl --no-pager -o cat _UID=$uid | grep '^{'; }
check "as JSON a record is one object a line" python3 -c 'import json, sys; assert [json.loads(r)["level"] for r in sys.stdin]' < <(records)
check "ottoctl service uninstall" otto service uninstall
check "it is disabled" not test -e $home/.config/systemd/user/default.target.wants/ottod.service
check "ottoctl service status says so" not otto service status
show_log _UID=$uid

title "removal"
systemctl start ottod@$uid.service
check "the package is removed" dpkg -r otto-daemon
check "with its processes" within 120 is_swept
check "and its files" not test -e /usr/lib/otto

title "$passed passed, $failed failed"
[ $failed = 0 ]
