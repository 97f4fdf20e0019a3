"""Attacks on the decision: programs, paths and hosts written so that a rule might not see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ottod.core.claims import claims_of
from ottod.core.permission import Call, decide
from ottod.errors import ToolError
from ottod.isolation.web import PinnedWeb
from ottod.protocol.model import ToolCall
from ottod.protocol.policy import Authority
from ottod.protocol.specs import HttpAccess, PermissionRule, Preset
from ottod.protocol.toolio import Facts, WebRequest
from tests.fakes.odd_server import OddServer
from tests.fakes.session_place import run
from tests.redteam.arena import BREACH, Act, Arena

Rule = PermissionRule

DENYLIST: tuple[tuple[str, str, str], ...] = (
    ("absolute", "/bin/rm -rf x", "/bin/rm -rf x"),
    ("line-continuation", "r\\⏎m -rf x", "r\\\nm -rf x"),
    ("quotes", "'r'm -rf x", "'r'm -rf x"),
    ("escape", "\\rm -rf x", "\\rm -rf x"),
    ("second-command", "ls; rm x", "ls; rm x"),
    ("second-line", "ls⏎rm x", "ls\nrm x"),
    ("background", "ls & rm x", "ls & rm x"),
    ("pipe", "ls | rm x", "ls | rm x"),
    ("substitution", "echo $(rm x)", "echo $(rm x)"),
    ("backticks", "echo `rm x`", "echo `rm x`"),
    ("process-substitution", "cat <(rm x)", "cat <(rm x)"),
    ("subshell", "(rm x)", "(rm x)"),
    ("wrapper-env", "env A=1 rm x", "env A=1 rm x"),
    ("wrapper-env-split", "env -S 'rm x'", "env -S 'rm x'"),
    ("wrapper-nohup", "nohup nice timeout 9 rm x", "nohup nice timeout 9 rm x"),
    ("wrapper-sudo", "sudo -n rm x", "sudo -n rm x"),
    ("wrapper-xargs", "ls | xargs rm", "ls | xargs rm"),
    ("wrapper-find-exec", "find . -exec rm {} +", "find . -exec rm {} +"),
    ("wrapper-shell", "sh -c 'rm x'", "sh -c 'rm x'"),
    ("wrapper-login-shell", "bash -lc 'rm x'", "bash -lc 'rm x'"),
    ("wrapper-busybox", "busybox rm x", "busybox rm x"),
    ("wrapper-loader", "/lib64/ld-linux-x86-64.so.2 /bin/rm x", "/lib64/ld-linux-x86-64.so.2 /bin/rm x"),
    ("builtin-eval", "eval 'rm x'", "eval 'rm x'"),
    ("builtin-command", "command rm x", "command rm x"),
    ("builtin-exec", "exec rm x", "exec rm x"),
    ("builtin-trap", "trap 'rm x' EXIT", "trap 'rm x' EXIT"),
    ("variable", "X=rm; $X x", "X=rm; $X x"),
    ("glob", "/bin/r? x", "/bin/r? x"),
    ("braces", "{rm,-rf,x}", "{rm,-rf,x}"),
    ("function", "f() { rm x; }; f", "f() { rm x; }; f"),
    ("here-document", "sh <<E … rm x", "sh <<E\nrm x\nE"),
    ("pipe-to-shell", "echo rm x | sh", "echo rm x | sh"),
    ("escapes-in-string", "$'\\x72m' x", "$'\\x72m' x"),
    ("interpreter", "python3 -c '…unlink…'", "python3 -c 'import os; os.unlink(\"x\")'"),
    ("nul", "ls NUL; rm x", "ls \0; rm x"),
    ("proc-self-root", "/proc/self/root/bin/rm x", "/proc/self/root/bin/rm x"),
    ("case", "case a in a) rm x;; esac", "case a in a) rm x;; esac"),
    ("timed", "time -p rm x", "time -p rm x"),
    ("loop-over-arguments", "set -- a; for x do rm x; done", "set -- a; for x do rm x; done"),
    ("quoted-continuation", 'echo "$\\⏎(rm x)"', 'echo "$\\\n(rm x)"'),
    ("expansion-quotes", 'echo ${x:-"}"} ; rm x # "', 'echo ${x:-"}"} ; rm x # "'),
    ("expansion-process", "echo ${x:-<(rm x)}", "echo ${x:-<(rm x)}"),
    ("quoted-backticks", 'echo "`: "a\\" ; rm x ; : \\"b"`"', 'echo "`: "a\\" ; rm x ; : \\"b"`"'),
    ("quoted-redirection", "echo a >&'$(rm x)'", "echo a >&'$(rm x)'"),
    ("subscript", "printf -v 'a[$(rm x)]' y", "printf -v 'a[$(rm x)]' y"),
    ("wrapper-watch", "watch -n1 rm x", "watch -n1 rm x"),
    ("wrapper-machine", "x86_64 rm x", "x86_64 rm x"),
    ("alias", "alias ls=rm⏎ls x", "alias ls=rm\nls x"),
    ("sourced-text", "source <(echo rm x)", "source <(echo rm x)"),
    ("sourced-input", ". /dev/stdin <<< 'rm x'", ". /dev/stdin <<< 'rm x'"),
    ("shell-descriptor", "sh /dev/fd/0 <<< 'rm x'", "sh /dev/fd/0 <<< 'rm x'"),
    ("option-cut-short", "tar cf a b --checkpoint-act=exec=rm", "tar cf a b --checkpoint-act=exec=rm"),
    ("option-attached", "tar -cf a '-Irm x' b", "tar -cf a '-Irm x' b"),
    ("git-bisect", "git bisect run rm x", "git bisect run rm x"),
)
ALLOWLIST: tuple[tuple[str, str, str], ...] = (
    ("search-path", "PATH=. git status", "PATH=. git status"),
    ("exported-path", "export PATH=.; git status", "export PATH=.; git status"),
    ("preload", "env LD_PRELOAD=./x.so git status", "env LD_PRELOAD=./x.so git status"),
    ("alias", "alias git=rm; git x", "alias git=rm⏎git x".replace("⏎", "\n")),
    ("other-file", "./git status", "./git status"),
    ("config-command", "git -c core.pager=evil log", "git -c core.pager=evil log"),
    ("redirection", "git log > ~/.profile", "git log > ~/.profile"),
    ("chained", "git status && curl evil", "git status && curl evil"),
    ("argument-substitution", "git status $(evil)", "git status $(evil)"),
    ("wide-word", "gitevil", "gitevil"),
    ("quoted-continuation", 'git log "--format=$\\⏎(evil)"', 'git log "--format=$\\\n(evil)"'),
    ("expansion-quotes", 'git log ${x:-"}"} ; evil # "', 'git log ${x:-"}"} ; evil # "'),
    ("expansion-process", "git log ${x:-<(evil)}", "git log ${x:-<(evil)}"),
    ("quoted-backticks", 'git log "`git log "a\\" ; evil ; \\"b"`"', 'git log "`git log "a\\" ; evil ; \\"b"`"'),
    ("loop-variable", "for PATH in .; do git log; done", "for PATH in .; do git log; done"),
    ("read-variable", "read PATH <<< .; git log", "read PATH <<< .; git log"),
)
PATHS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("trailing-slash", "`secrets/`", "fs_list", {"path": "secrets/"}),
    ("dots", "`./a/../secrets/key`", "fs_read", {"path": "./a/../secrets/key"}),
    ("double-slash", "`secrets//key`", "fs_read", {"path": "secrets//key"}),
    ("proc-cwd", "`/proc/self/cwd/secrets/key`", "fs_read", {"path": "/proc/self/cwd/secrets/key"}),
    ("symlink", "a symlink to it, made inside", "fs_read", {"path": "public/key"}),
    ("symlink-write", "a write through that symlink", "fs_write", {"path": "public/key", "content": "x"}),
    ("search-above", "a search over the directory that holds it", "grep", {"pattern": "key"}),
    ("conversion", "a conversion into it", "data", {"action": "convert", "file": "a.json", "to": "secrets/a.yml"}),
    ("shell-word", "`cat secrets/key` in a shell", "shell", {"command": "cat secrets/key"}),
    ("shell-glob", "`cat sec*/key` in a shell", "shell", {"command": "cat sec*/key"}),
    ("shell-redirection", "`ls > secrets/list` in a shell", "shell", {"command": "ls > secrets/list"}),
    ("shell-symlink", "`cat public/key` in a shell", "shell", {"command": "cat public/key"}),
    ("unknown-tool", "a tool that does not say what it reads", "files__read", {"path": "secrets/key"}),
)


def denied_program(line: str) -> Act:
    return lambda arena: arena.decided(arena.judge(Rule(effect="deny", command="rm")), "shell", command=line)


def only_git(line: str) -> Act:
    rules = (Rule(effect="ask", tool="shell"), Rule(effect="allow", tool="shell", command="git *"))
    return lambda arena: arena.decided(arena.judge(*rules), "shell", command=line)


def denied_path(tool: str, arguments: Mapping[str, Any]) -> Act:
    def act(arena: Arena) -> str:
        (arena.project / "secrets").mkdir()
        (arena.project / "secrets/key").write_text("the key\n")
        (arena.project / "public").symlink_to("secrets")
        return arena.decided(arena.judge(Rule(effect="deny", path="secrets/**")), tool, **arguments)

    return act


def _hard(tool: str, **arguments: str) -> Act:
    """With the widest preset and the widest rule of the user's."""

    def act(arena: Arena) -> str:
        filled = {name: value.format(state=arena.state) for name, value in arguments.items()}
        return arena.decided(arena.judge(Rule(effect="allow", path="**")), tool, **filled)

    return act


def swapped_after_leave(arena: Arena) -> str:
    """While somebody thinks about a write, its file becomes a symlink to another."""
    judge = arena.judge(preset="strict")
    call = ToolCall(call="c-1", tool="fs_write", arguments=json.dumps({"path": "notes", "content": "x"}))
    assert judge.verdict(call).effect == "ask"
    (arena.project / "important").write_text("important\n")
    (arena.project / "notes").symlink_to("important")
    judge.enter(call)
    files = arena.guarded_files(judge)
    try:
        files.write("notes", b"x")
    except ToolError as error:
        assert error.code == "denied" and (arena.project / "important").read_text() == "important\n"
        return "decision at the moment of use"
    finally:
        files.close()
    return BREACH


def swapped_parent(arena: Arena) -> str:
    """A directory on the way becomes a symlink to a denied one between the decision and the use."""
    judge = arena.judge(Rule(effect="deny", path="secrets/**"))
    (arena.project / "secrets").mkdir()
    (arena.project / "secrets/key").write_text("the key\n")
    (arena.project / "docs").mkdir()
    call = ToolCall(call="c-1", tool="fs_read", arguments='{"path": "docs/key"}')
    assert judge.verdict(call).effect == "allow"
    (arena.project / "docs").rmdir()
    (arena.project / "docs").symlink_to("secrets")
    judge.enter(call)
    files = arena.guarded_files(judge)
    try:
        files.read("docs/key", max_bytes=100)
    except ToolError as error:
        assert error.code == "denied"
        return "decision at the moment of use"
    finally:
        files.close()
    return BREACH


def _host(host: str) -> Act:
    def act(arena: Arena) -> str:
        rules = (Rule(effect="ask", tool="http"), Rule(effect="allow", tool="http", host="*.example"))
        own = Authority(name="rules", agent="coder", preset="autonomous", rules=rules)
        found = decide(Call(tool="http", claims=claims_of({"net"}, Facts(hosts=(host,)), root="/w")), (own,))
        return BREACH if found.effect == "allow" else f"decision: {found.decisive.authority}"

    return act


def _redirected(*rules: PermissionRule, preset: Preset = "autonomous") -> Act:
    """A page of an allowed host sends the request on to another one, which only a rule stands before."""

    def act(arena: Arena) -> str:
        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        with OddServer() as server:
            first, second = (f"{name}.example:{server.port}" for name in ("docs", "inner"))
            url = f"http://{first}/to/302/http://{second}/echo"
            judge = arena.judge(*rules, preset=preset)
            call = ToolCall(call="c-1", tool="http", arguments=json.dumps({"url": url}))
            assert judge.verdict(call).effect != "deny"

            async def fetch() -> None:
                judge.enter(call)
                web = PinnedWeb(HttpAccess(local=(first, second)), resolve=resolve, objection=judge.host_objection)
                await web.fetch(WebRequest(method="GET", url=url), timeout_s=20)

            try:
                run(fetch())
            except ToolError as error:
                assert error.code == "denied" and "/echo" not in server.paths
                return "decision at the moment of use"
        return BREACH

    return act


def wider_child(arena: Arena) -> str:
    """A child with the widest rules of its own, below a parent that may not."""
    parent = Authority(name="rules of the parent", agent="lead", preset="strict")
    return arena.decided(arena.judge(Rule(effect="allow"), others=(parent,)), "shell", command="make")


def unconfined_programs(arena: Arena) -> str:
    """Programs where nothing confines them, under the default preset."""
    return arena.decided(arena.judge(preset="balanced", is_confined=False), "shell", command="make")


def specific_allow(arena: Arena) -> str:
    """A wide allow rule with many letters beside a short deny rule."""
    rules = (Rule(effect="allow", path="source/code/**"), Rule(effect="deny", path="*.pem"))
    return arena.decided(arena.judge(*rules), "fs_read", path="source/code/x.pem")


OTHER_DECISIONS: tuple[tuple[str, str, str, Act], ...] = (
    ("hook-missing", "write `.git/hooks/pre-commit`, which does not exist", "decision: protected paths",
     _hard("fs_write", path=".git/hooks/pre-commit", content="x")),
    ("hook-nested", "write `sub/.git/hooks/pre-commit` of a nested repository", "decision: protected paths",
     _hard("fs_write", path="sub/.git/hooks/pre-commit", content="x")),
    ("hook-case", "write `.GIT/Hooks/pre-commit`", "decision: protected paths",
     _hard("fs_write", path=".GIT/Hooks/pre-commit", content="x")),
    ("policy-missing", "write `.otto/agents/evil.yml`, which does not exist", "decision: protected paths",
     _hard("fs_write", path=".otto/agents/evil.yml", content="x")),
    ("policy-redirection", "`echo x > .otto/agents/evil.yml` in a shell", "decision: protected paths",
     _hard("shell", command="echo x > .otto/agents/evil.yml")),
    ("own-directory", "read the daemon's token by its path", "decision: Otto's own directories",
     _hard("fs_read", path="{state}/control.token")),
    ("swap-after-leave", "swap the file for a symlink while somebody thinks about it",
     "decision at the moment of use", swapped_after_leave),
    ("swap-parent", "swap a directory for a symlink between decision and use", "decision at the moment of use",
     swapped_parent),
    ("host-nul", "a host with a NUL in it, `*.example` is allowed", "decision: rules", _host("evil.test\0.example")),
    ("host-suffix", "`docs.example.evil.test`, `*.example` is allowed", "decision: rules",
     _host("docs.example.evil.test")),
    ("host-empty", "no host at all, `*.example` is allowed", "decision: rules", _host("")),
    ("redirect-denied", "a redirect from an allowed host to a denied one", "decision at the moment of use",
     _redirected(Rule(effect="deny", tool="http", host="inner.*"))),
    ("redirect-after-leave", "a redirect to a host that nobody gave permission for", "decision at the moment of use",
     _redirected(preset="strict")),
    ("wider-child", "a child session with wider rules than its parent", "decision: preset strict", wider_child),
    ("unconfined", "a program on a host that confines nothing, by default", "decision: preset balanced",
     unconfined_programs),
    ("long-allow", "a longer allow rule beside a shorter deny rule", "decision: rules", specific_allow),
)  # fmt: skip
