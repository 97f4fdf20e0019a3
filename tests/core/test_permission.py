"""Whether a call may begin: which rule speaks, what a restriction meets, what leave needs; against a naive model."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.claims import Claim, claims_of, with_real_paths
from ottod.core.permission import (
    STRENGTH,
    Call,
    Verdict,
    covering_grant,
    decide,
    grant_keys,
    hard_denies,
    is_more_specific,
    notes_guard,
)
from ottod.core.presets import preset_rules
from ottod.protocol.policy import Authority, StandingGrant
from ottod.protocol.specs import PermissionRule
from ottod.protocol.toolio import Facts

Rule = PermissionRule
ROOT = "/srv/project"
OWN = "/srv/state"
PERMISSIONS = {"shell": {"exec"}, "fs_read": {"read"}, "fs_write": {"write"}, "grep": {"read"}, "http": {"net"}}


def verdict(tool: str, facts: Facts | None, *rules: PermissionRule, **options: Any) -> Verdict:
    """The decision about a call of the agent `coder`, Otto's own rules included."""
    preset = options.pop("preset", "balanced")
    permissions = options.pop("permissions", PERMISSIONS.get(tool, set()))
    more = options.pop("more", ())
    claims = claims_of(permissions, facts, root=ROOT)
    own = Authority(name="rules", agent="coder", preset=preset, rules=rules)
    return decide(Call(tool=tool, claims=claims, **options), (*hard_denies((OWN,)), own, *more))


def effect(tool: str, facts: Facts | None, *rules: PermissionRule, **options: Any) -> str:
    return verdict(tool, facts, *rules, **options).effect


def shell(line: str, *rules: PermissionRule, **options: Any) -> str:
    return effect("shell", Facts(commands=(line,)), *rules, **options)


def read(path: str, *rules: PermissionRule) -> str:
    return effect("fs_read", Facts(reads=(path,)), *rules)


def write(path: str, *rules: PermissionRule, **options: Any) -> str:
    return effect("fs_write", Facts(writes=(path,)), *rules, **options)


# ------------------------------------------------------------------ which rule speaks


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "allow"),
        ([Rule(effect="deny", tool="git")], "allow"),
        ([Rule(effect="ask")], "ask"),
        ([Rule(effect="deny"), Rule(effect="allow", tool="shell")], "allow"),
        ([Rule(effect="deny", tool="sh*"), Rule(effect="ask", tool="she*")], "ask"),
        ([Rule(effect="deny", tool="she??*"), Rule(effect="allow", tool="shell")], "allow"),
        ([Rule(effect="ask", tool="shell"), Rule(effect="deny", tool="shell")], "deny"),
        ([Rule(effect="allow", tool="shell"), Rule(effect="ask", tool="shell")], "ask"),
        ([Rule(effect="ask", tool="shell"), Rule(effect="allow", tool="shell", agent="coder")], "allow"),
        ([Rule(effect="deny", tool="shell", agent="other")], "allow"),
        ([Rule(effect="deny"), Rule(effect="allow", run_mode="interactive")], "allow"),
        ([Rule(effect="deny", run_mode="headless")], "allow"),
        ([Rule(effect="deny", permission="net")], "allow"),
        ([Rule(effect="deny", permission="exec")], "deny"),
        ([Rule(effect="ask"), Rule(effect="allow", permission="exec")], "allow"),
        ([Rule(effect="ask", tool="shell"), Rule(effect="allow", tool="shell", command="git *")], "allow"),
        ([Rule(effect="allow", tool="shell"), Rule(effect="deny", tool="shell", command="git push*")], "allow"),
        ([Rule(effect="allow", tool="shell"), Rule(effect="deny", tool="shell", command="git st*")], "deny"),
        ([Rule(effect="deny", command="git *"), Rule(effect="allow", command="git status")], "allow"),
        # Not comparable: neither says more than the other, so the stricter one counts.
        ([Rule(effect="deny", command="git *"), Rule(effect="allow", tool="shell")], "deny"),
        ([Rule(effect="ask", tool="s*"), Rule(effect="allow", tool="*l")], "ask"),
    ],
)
def test_the_most_specific_rule_speaks_and_the_strictest_of_equals(
    rules: list[PermissionRule], expected: str
) -> None:
    """Whatever the order of the rules."""
    for order in permutations(rules):
        assert shell("git status", *order) == expected


def test_a_verdict_says_why_and_why_not() -> None:
    """The rule, where it stands, its reason, and what each other rule that fits lost to."""
    deny = Rule(effect="deny", tool="shell", command="git push*", reason="not from here", source="otto.yml:7")
    rules = (Rule(effect="allow", tool="shell"), Rule(effect="ask", tool="sh*", command="*-f"), deny)
    found = verdict("shell", Facts(commands=("ls; git push -f",)), *rules)
    assert (found.effect, found.rule, found.source, found.reason) == ("deny", deny, "otto.yml:7", "not from here")
    assert str(found.decisive.claim) == "exec git push -f"
    assert {str(each.rule): each.why for each in found.why_not} == {
        "allow tool: shell": "the deciding rule is more specific",
        "ask tool: sh*, command: *-f": "deny beats ask",
    }


def test_a_deny_that_meets_one_of_many_is_a_deny() -> None:
    """One path, one program, one host among others is enough; leave is needed for each."""
    deny = Rule(effect="deny", path="secrets/**")
    assert effect("fs_read", Facts(reads=("a", "b", "secrets/x", "c")), deny) == "deny"
    assert shell("ls; ls | tee secrets/x", deny) == "deny"
    only = (Rule(effect="ask", tool="shell"), Rule(effect="allow", tool="shell", command="git *"))
    assert shell("git status && git log", *only) == "allow"
    assert shell("git status && make", *only) == "ask"
    assert shell("git status $(make)", *only) == "ask"
    assert shell("git status > out", *only) == "ask", "the redirection is a claim of its own"
    paths = Rule(effect="allow", tool="shell", path="out")
    assert shell("git status > out", *only, paths) == "allow"


def test_every_authority_must_allow() -> None:
    """A project's rules, and those from above, restrict; what they allow lifts nothing."""
    project = Authority(name="project", agent="coder", rules=(Rule(effect="ask", tool="shell"),))
    wide = Authority(name="project", agent="coder", rules=(Rule(effect="allow", tool="shell", command="rm *"),))
    parent = Authority(name="rules of s-1", agent="lead", preset="strict")
    assert shell("ls", more=(project,)) == "ask"
    assert shell("rm x", Rule(effect="deny", command="rm *"), more=(wide,)) == "deny"
    assert shell("ls", Rule(effect="allow"), more=(parent,)) == "ask"
    assert effect("fs_read", Facts(reads=("a",)), more=(parent,)) == "allow"
    about_lead = Authority(name="rules of s-1", agent="lead", rules=(Rule(effect="deny", agent="lead"),))
    assert shell("ls", more=(about_lead,)) == "deny", "what a parent may not do its child may not"


# ------------------------------------------------------------------ commands


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf x", "/bin/rm x", "ls; rm x", "r\\\nm x", "'rm' x", "env rm x", "env -i /bin/rm x", "nohup rm x",
        "sudo rm x", "xargs rm", "find . -exec rm {} +", "sh -c 'rm x'", "bash -lc \"rm x\"", "nice -n 19 rm x",
        "timeout 1 rm x", "busybox rm x", "$(rm x)", "`rm x`", "(rm x)", "cat <(rm x)", "A=1 rm x", "rm $X", "rm *",
        "command rm x", "exec rm x", "eval rm x", "eval $X", "$X", "r?", "python -c 'x'", "echo x | sh", "rm\0",
        "f(){ rm x; }; f", "case a in a) rm x;; esac", "time rm x", "! rm x", "if rm x; then :; fi", "rm\tx",
        "ls &&rm x", "ls;rm x", "ls\nrm x", "perl -e 'unlink'", "../../../bin/rm x", "/proc/self/root/bin/rm x",
    ],
)  # fmt: skip
def test_a_denied_program_is_met_however_it_is_called(line: str) -> None:
    """By the rule for its name and by the one for its words; unclear lines are met as well."""
    assert shell(line, Rule(effect="deny", command="rm")) == "deny"
    assert shell(line, Rule(effect="deny", command="rm*"), preset="autonomous") == "deny"


@pytest.mark.parametrize(
    "line", ["echo $HOME", "git rm x", "rmdir x", "echo rm x", "ls > out", "grep rm *.py", "armor x"]
)
def test_a_denied_program_is_not_seen_where_it_is_not(line: str) -> None:
    """Other programs, and its name as an argument, are none of the rule's business."""
    assert shell(line, Rule(effect="deny", command="rm")) == "allow"
    assert shell(line, Rule(effect="deny", command="rm *")) == "allow"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("git status", "allow"), ("git log --oneline", "allow"), ("timeout 9 git status", "allow"),
        ("nice git status | git log", "allow"), ("git log $X", "allow"), ("cd x; git status", "ask"),
        ("./git status", "ask"), ("/tmp/git status", "ask"), ("PATH=. git status", "ask"), ("$X status", "ask"),
        ("export PATH=.; git status", "ask"), ("alias git=rm; git x", "ask"), ("sudo git status", "ask"),
        ("git status; rm x", "ask"), ("git status $(rm x)", "ask"), ("sh -c 'git status'", "allow"),
        ("sh -c 'git status; rm x'", "ask"), ("git -c a=b log", "ask"), ("git status\0", "ask"), ("gitx", "ask"),
        ("env git status", "allow"), ("env A=b git status", "ask"), ("echo x | git apply", "ask"), ("git", "ask"),
        ("cat <<E\nE", "ask"), ("git status & git log &", "allow"), ("(git status)", "allow"),
        ("git s{a,b}", "allow"),
    ],
)  # fmt: skip
def test_leave_for_a_program_needs_certainty(line: str, expected: str) -> None:
    """`git *` allows git and nothing else: no other program, no other git, nothing that is not understood."""
    rules = (Rule(effect="ask", tool="shell"), Rule(effect="allow", tool="shell", command="git *"))
    assert shell(line, *rules) == expected


def test_everything_is_wide_enough_for_what_is_unclear() -> None:
    """An allow rule without a command, or with `*`, speaks of opaque lines too."""
    for rule in (Rule(effect="allow", tool="shell"), Rule(effect="allow", tool="shell", command="*")):
        assert shell("eval $X", Rule(effect="ask"), rule) == "allow"
    assert shell("eval $X", Rule(effect="ask"), Rule(effect="allow", tool="shell", command="?*")) == "ask"


# ------------------------------------------------------------------ paths and hosts


@pytest.mark.parametrize(
    "path",
    [
        "secrets", "secrets/", "secrets/key", "./secrets/key", "a/../secrets/key", "secrets//key", "secrets/./key",
        f"{ROOT}/secrets/key", f"{ROOT}/../project/secrets/key", "../project/secrets", "/proc/self/cwd/secrets/key",
        f"/proc/self/root{ROOT}/secrets/key", f"//proc//self/root/{ROOT}/secrets", "secrets/a/b/c", "secrets\0",
    ],
)  # fmt: skip
def test_a_denied_path_is_met_however_it_is_written(path: str) -> None:
    """Trailing slashes, dots, detours, absolute paths and /proc make no difference."""
    rule = Rule(effect="deny", path="secrets/")
    assert read(path, rule, Rule(effect="allow", tool="fs_read")) == "deny"
    assert write(path, rule) == "deny"
    assert effect("grep", Facts(trees=(path,)), rule) == "deny"


@pytest.mark.parametrize("path", ["secret", "secretsx", "a/secrets2", "public", "..", "/etc/passwd"])
def test_other_paths_are_not(path: str) -> None:
    """What merely begins alike is another path."""
    assert read(path, Rule(effect="deny", path="secrets")) == "allow"


def test_a_tree_is_met_by_what_may_lie_below() -> None:
    """A search over a directory that may hold a denied path is denied; beside it it is not."""
    rule = Rule(effect="deny", path="src/secrets/**")
    assert [effect("grep", Facts(trees=(tree,)), rule) for tree in (".", "src", "src/secrets/a", "docs")] == [
        "deny", "deny", "deny", "allow",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["cat secrets/key", "cat ./secrets/../secrets/key", "cp a secrets", "cat sec*", "cat secrets/$X", "tee secrets/x",
     "cat < secrets/key", "echo > secrets/x", "f=secrets; cat $f/key", "tar cf - secrets", "dd if=secrets/key",
     "cat /proc/self/cwd/secrets/key", "git --work-tree=secrets add ."],
)  # fmt: skip
def test_words_of_a_command_line_may_be_paths(line: str) -> None:
    """A restriction by path meets them; they need no leave of their own."""
    assert shell(line, Rule(effect="deny", path="secrets/**")) == "deny"
    assert shell(line, preset="balanced") == "allow"


def test_real_paths_are_claims_of_their_own() -> None:
    """A symlink is judged by its name and by where it leads."""
    claims = with_real_paths(
        claims_of({"read"}, Facts(reads=("public/key",)), root=ROOT), {"public/key": "secrets/key"}
    )
    assert [str(claim) for claim in claims] == ["read public/key", "read secrets/key"]
    rules = Authority(name="rules", agent="coder", preset="balanced", rules=(Rule(effect="deny", path="secrets"),))
    assert decide(Call(tool="fs_read", claims=claims), (rules,)).effect == "deny"


def test_leave_for_a_path_stays_inside_unless_it_is_absolute() -> None:
    """A relative pattern allows nothing outside of the working directory; a restriction reaches there."""
    rules = (Rule(effect="ask", permission="write"), Rule(effect="allow", permission="write", path="*.txt"))
    assert write("a/b.txt", *rules) == "allow"
    assert write("/tmp/b.txt", *rules) == write("../b.txt", *rules) == "ask"
    assert write("/tmp/b.txt", *rules, Rule(effect="allow", permission="write", path="/tmp/**")) == "allow"
    assert read("/etc/x.pem", Rule(effect="deny", path="*.pem")) == "deny"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("docs.example", "allow"), ("DOCS.example.", "allow"), ("docs.example.evil.test", "ask"), ("example", "ask"),
        ("evil\0.example", "ask"), ("evil.test#.example", "ask"), ("a b.example", "ask"), ("", "ask"),
    ],
)  # fmt: skip
def test_hosts(host: str, expected: str) -> None:
    """Whatever the case and a final dot; a name that is none is never allowed by a pattern."""
    rule = Rule(effect="allow", tool="http", host="*.example")
    assert effect("http", Facts(hosts=(host,)), Rule(effect="ask", tool="http"), rule) == expected
    assert effect("http", Facts(hosts=(host,)), Rule(effect="deny", host="*"), rule) == (
        "allow" if expected == "allow" else "deny"
    )


def test_addresses_in_command_lines_are_met() -> None:
    """By rules that restrict, also behind a user name, a port or bash's own network device."""
    rule = Rule(effect="deny", host="*.test")
    for line in ("curl https://a.evil.test/x", "curl HTTP://u:p@a.evil.test:80", "echo > /dev/tcp/a.evil.test/80"):
        assert shell(line, rule) == "deny"
    assert shell("curl https://a.good.example", rule) == "allow"


# ------------------------------------------------------------------ what is not declared, what is never allowed


def test_a_tool_that_says_nothing_is_judged_by_its_name() -> None:
    """And met by every restriction by path, command or host; leave by those is not for it."""
    unknown: dict[str, Any] = {"permissions": {"exec"}}
    assert effect("m__x", None, **unknown) == "allow"
    assert effect("m__x", None, permissions=()) == "ask", "of a tool that declares nothing anything is expected"
    for rule in (Rule(effect="deny", path="a"), Rule(effect="deny", command="a"), Rule(effect="deny", host="a")):
        assert effect("m__x", None, rule, **unknown) == "deny"
        assert effect("m__x", None, Rule(effect="ask"), Rule(effect="allow", path="a"), **unknown) == "ask"
    assert effect("m__x", None, Rule(effect="ask"), Rule(effect="allow", tool="m__*"), **unknown) == "allow"
    assert effect("m__x", None, Rule(effect="deny", tool="other", path="a"), **unknown) == "allow"


@pytest.mark.parametrize(
    "path",
    [
        ".git/hooks/pre-commit", ".git/hooks", ".git/hooks/", ".git/config", ".otto/agents/x.yml", ".otto",
        "a/b/.git/config", "a/.otto/x", ".GIT/Hooks/x", ".git/modules/lib/hooks/x", ".git/modules/a/b/config",
        ".git/worktrees/x/gitdir",
        "x/../.git/config", f"{ROOT}/.git/hooks/x", f"{OWN}/control.token", "/proc/self/cwd/.git/config",
    ],
)  # fmt: skip
def test_hard_denies_are_lifted_by_nobody(path: str) -> None:
    """Not by the widest rule of the user's, nor by the widest preset; redirections of programs are met as well."""
    allow = Rule(effect="allow", tool="*", path="**")
    assert write(path, Rule(effect="allow"), allow, preset="autonomous") == "deny"
    assert shell(f"echo x > '{path}'", Rule(effect="allow"), allow, preset="autonomous") == "deny"


def test_hard_denies_are_no_wider_than_they_say() -> None:
    """Reading what is protected, the rest of a repository, and granted paths are left to other layers."""
    assert read(".git/config") == "allow" and shell("git config -l -f .git/config") == "allow"
    assert write(".git/COMMIT_EDITMSG") == "allow" and write("a.git/config") == "allow"
    assert shell("echo x > $X") == "allow"
    granted = hard_denies((OWN,), granted=(".git",))
    claims = claims_of({"write"}, Facts(writes=(".git/hooks/x",)), root=ROOT)
    own = Authority(name="rules", agent="coder", preset="balanced")
    assert decide(Call(tool="fs_write", claims=claims), (*granted, own)).effect == "allow"


def test_the_projects_notes_are_written_with_leave_only() -> None:
    """Whatever rules and preset allow, at any depth; reading them, and what may not be them, is left alone."""
    own = Authority(name="rules", agent="coder", preset="autonomous", rules=(Rule(effect="allow", path="**"),))

    def effect(facts: Facts, granted: tuple[str, ...] = ()) -> str:
        claims = claims_of({"write"}, facts, root=ROOT)
        return decide(Call(tool="fs_write", claims=claims), (own, notes_guard(granted=granted))).effect

    for path in ("OTTO.md", "a/../otto.MD", "a/b/OTTO.md", f"{ROOT}/OTTO.md"):
        assert effect(Facts(writes=(path,))) == "ask", path
        assert effect(Facts(commands=(f"echo x >> {path}",))) == "ask", path
    for free in ("OTTO.md.bak", "docs/otto", "OTTO/x"):
        assert effect(Facts(writes=(free,))) == "allow", free
    assert effect(Facts(reads=("OTTO.md",))) == "allow" and effect(Facts(commands=("cat OTTO.md > $X",))) == "allow"
    assert effect(Facts(writes=("OTTO.md",)), granted=("OTTO.md",)) == "allow"
    assert effect(Facts(writes=("a/OTTO.md",)), granted=("OTTO.md",)) == "ask"


# ------------------------------------------------------------------ presets

PRESET_TABLE = {
    # what: strict, balanced, balanced without confinement, autonomous
    "read": ("allow", "allow", "allow", "allow"),
    "write": ("ask", "allow", "allow", "allow"),
    "exec": ("ask", "allow", "ask", "allow"),
    "net": ("ask", "ask", "ask", "allow"),
    "none": ("allow", "allow", "allow", "allow"),
}


@pytest.mark.parametrize("kind", PRESET_TABLE)
def test_presets(kind: str) -> None:
    """What each says where no rule does. Any rule of the user's comes before."""
    facts = Facts()
    needed: set[str] = set() if kind == "none" else {kind}
    found = (
        effect("x", facts, permissions=needed, preset="strict"),
        effect("x", facts, permissions=needed, preset="balanced"),
        effect("x", facts, permissions=needed, preset="balanced", is_confined=False),
        effect("x", facts, permissions=needed, preset="autonomous"),
    )
    assert found == PRESET_TABLE[kind]
    assert effect("x", facts, Rule(effect="allow", tool="x"), permissions=needed, preset="strict") == "allow"
    assert effect("x", facts, Rule(effect="deny"), permissions=needed, preset="autonomous") == "deny"


def test_a_wider_preset_never_forbids_more() -> None:
    """From strict to autonomous each is as wide as the one before, for every claim."""
    for kind in PRESET_TABLE:
        for tool in ("x", "spawn_agent"):
            strengths = [
                STRENGTH[effect(tool, Facts(), permissions=set() if kind == "none" else {kind}, preset=preset)]  # type: ignore[index]
                for preset in ("strict", "balanced", "autonomous")
            ]
            assert strengths == sorted(strengths, reverse=True)
    assert preset_rules("autonomous", is_confined=False) == preset_rules("autonomous", is_confined=True)


# ------------------------------------------------------------------ leave that stands


def test_leave_that_stands_is_for_exactly_what_was_asked() -> None:
    """The same tool and the same claims; another word, another path, another argument asks again."""
    ask = Rule(effect="ask")
    first = verdict("shell", Facts(commands=("git push origin",)), ask)
    keys, is_exact = grant_keys(first, arguments="{}")
    assert (keys, is_exact) == (("exec git push origin",), True)
    grant = StandingGrant(grant="g-1", agent="coder", tool="shell", claims=keys, expires_at_ns=100)

    def is_covered(line: str, tool: str = "shell", now_ns: int = 0, cwd: str = ".") -> bool:
        found = verdict(tool, Facts(commands=(line,), cwd=cwd), ask)
        wanted, is_exact = grant_keys(found, arguments="{}")
        return covering_grant((grant,), tool=tool, keys=wanted, is_exact=is_exact, now_ns=now_ns) is not None

    assert is_covered("git push origin") and is_covered("git 'push'  origin")
    assert not is_covered("git push origin -f") and not is_covered("git push origin; rm x")
    assert not is_covered("git push origin > x") and not is_covered("git push $X")
    assert not is_covered("git push origin", tool="other") and not is_covered("git push origin", now_ns=100)
    assert not is_covered("PATH=. git push origin") and not is_covered("git 'push origin'")
    assert not is_covered("git push origin", cwd="other")


def test_leave_that_stands_is_for_a_place() -> None:
    """The same words in another directory, by the call's own or by a `cd` that needs no leave, ask again."""
    rules = (Rule(effect="allow"), Rule(effect="ask", command="rm*"))

    def keys(line: str, cwd: str = ".") -> tuple[tuple[str, ...], bool]:
        return grant_keys(verdict("shell", Facts(commands=(line,), cwd=cwd), *rules), arguments="{}")

    assert keys("rm -r build") == (("exec rm -r build",), True)
    assert keys("rm -r build", cwd="src/") == (("exec rm -r build (in src)",), True)
    assert keys("rm -r build '(in' 'src)'")[0] == ("exec rm -r build '(in' 'src)'",)
    assert keys("rm 'a b'")[0] != keys("rm a b")[0]
    assert not keys("cd src && rm -r build")[1]


def test_leave_that_stands_is_for_what_is_done_at_a_host() -> None:
    """Leave to read a page is no leave to send something there."""
    ask = Rule(effect="ask")
    look, _ = grant_keys(verdict("http", Facts(hosts=("a.example",)), ask), arguments="{}")
    send, _ = grant_keys(verdict("http", Facts(hosts=("a.example",), deed="POST"), ask), arguments="{}")
    assert (look, send) == (("net a.example",), ("net POST a.example",))


@pytest.mark.parametrize("line", ["git push $X", "eval $X", "PATH=. git push", "ls *"])
def test_leave_for_what_is_not_known_exactly_cannot_stand(line: str) -> None:
    """It could be anything the next time."""
    assert not grant_keys(verdict("shell", Facts(commands=(line,)), Rule(effect="ask")), arguments="{}")[1]


def test_leave_for_a_tool_without_facts_is_for_its_arguments() -> None:
    """The same arguments are covered, others are not."""
    found = verdict("m__x", None, Rule(effect="ask"), permissions={"exec"})
    (one,), is_exact = grant_keys(found, arguments='{"a": 1}')
    (other,), _ = grant_keys(found, arguments='{"a": 2}')
    assert is_exact and one != other


# ------------------------------------------------------------------ against a naive model

TOOLS = ("a", "ab", "b")
PATTERNS = ("*", "a", "ab", "b", "a*", "*b")
PATHS = ("x", "x/y", "z")
PATH_PATTERNS = ("", "x", "x/y", "z", "x/*", "./z")
RULES = st.builds(
    Rule,
    effect=st.sampled_from(["allow", "ask", "deny"]),
    tool=st.sampled_from(PATTERNS),
    path=st.sampled_from(PATH_PATTERNS),
    run_mode=st.sampled_from(["", "interactive", "headless"]),
    permission=st.sampled_from(["", "read", "write"]),
)
PLACES = [(t, p, k, m) for t in TOOLS for p in PATHS for k in ("read", "write") for m in ("interactive", "headless")]


def naive_match(pattern: str, tool: str) -> bool:
    if pattern.startswith("*") or pattern.endswith("*"):
        text = pattern.strip("*")
        return tool.endswith(text) if pattern.startswith("*") and pattern != "*" else tool.startswith(text)
    return pattern == tool


def naive_fits(rule: PermissionRule, place: tuple[str, str, str, str]) -> bool:
    tool, path, kind, mode = place
    named = rule.path.removeprefix("./")
    is_path = not named or path == named or path.startswith(named + "/")
    if named == "x/*":
        is_path = path.startswith("x/")
    return naive_match(rule.tool, tool) and is_path and rule.run_mode in ("", mode) and rule.permission in ("", kind)


def naive_effect(rules: list[PermissionRule], place: tuple[str, str, str, str]) -> str:
    """The strictest of the rules that fit and are not beaten by one that says more."""
    fitting = [rule for rule in rules if naive_fits(rule, place)]
    top = [rule for rule in fitting if not any(is_more_specific(other, rule) for other in fitting)]
    return max((rule.effect for rule in top), key=lambda e: STRENGTH[e], default="allow")


@given(rules=st.lists(RULES, max_size=5), place=st.sampled_from(PLACES))
def test_decisions_agree_with_the_naive_model(rules: list[PermissionRule], place: tuple[str, str, str, str]) -> None:
    """Matching by plain string tests; and adding a deny never widens."""
    tool, path, kind, mode = place
    claim = Claim(kind=kind, subject="path", object=path)  # type: ignore[arg-type]
    call = Call(tool=tool, run_mode=mode, claims=(claim,))

    def found(*given: PermissionRule) -> str:
        return decide(call, (Authority(name="rules", agent="c", preset="autonomous", rules=given),)).effect

    assert found(*rules) == naive_effect(rules, place)
    assert found(*rules, Rule(effect="deny", tool=tool, path=f"./{path}", run_mode=mode, permission=kind)) == "deny"  # type: ignore[arg-type]


@given(rule=RULES, other=RULES)
def test_more_specific_means_fewer_places(rule: PermissionRule, other: PermissionRule) -> None:
    """Of a pair at most one is, and then it fits nowhere that the other does not."""
    if is_more_specific(rule, other):
        assert not is_more_specific(other, rule)
        assert all(naive_fits(other, place) for place in PLACES if naive_fits(rule, place))


@given(
    lines=st.lists(st.sampled_from(["git status", "rm x", "$X", "ls", "make"]), min_size=1, max_size=4),
    rules=st.lists(st.builds(Rule, effect=st.sampled_from(["allow", "ask", "deny"]),
                             command=st.sampled_from(["", "git *", "rm *", "ls", "*"])), max_size=4),
)  # fmt: skip
def test_a_line_is_no_freer_than_its_parts(lines: list[str], rules: list[PermissionRule]) -> None:
    """The strictest of what each command alone would get."""
    alone = max((shell(line, *rules) for line in lines), key=lambda e: STRENGTH[e])  # type: ignore[index]
    assert shell("; ".join(lines), *rules) == alone
