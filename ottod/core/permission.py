"""Whether a tool call may begin: allow, ask or deny, by which rule, and why not by another.

Theory of operation. A call is taken apart into claims (`claims`), rules come in authorities. For each claim each
authority says one thing: of its rules that fit, those than which none is more specific, and of those the strictest;
deny beats ask beats allow. The call gets the strictest of all that was said. So every claim must be allowed, by every
authority, and a deny that meets one of many paths or programs is a deny.

One rule is more specific than another if each of its conditions is met only where the other's is, and one of them
more seldom. Rules that merely overlap are not comparable, and then strictness decides: `deny path: secrets` is not
lifted by `allow tool: fs_write`.

A rule with `path`, `command`, `host` or `target` speaks of claims of that kind. To allow, it has to be certain that
it fits; to ask or deny it is enough that it might. What cannot be understood never satisfies an allow rule that is
narrower than `*`, and meets every rule of its kind that asks or denies.

Source: ADR 0016.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256

import msgspec

from ottod.core import pattern
from ottod.core.claims import Claim
from ottod.core.presets import preset_rules
from ottod.core.project_notes import FILE_NAME
from ottod.protocol.policy import Authority, StandingGrant
from ottod.protocol.specs import Effect, PermissionRule

STRENGTH: dict[Effect, int] = {"allow": 0, "ask": 1, "deny": 2}
EVERYTHING = ("*", "**")
SUBJECTS = ("path", "command", "host", "target")
_SILENCE = PermissionRule(effect="allow", reason="no rule speaks of it")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call as rules see it. `is_confined`: programs that it starts are held to the working directory."""

    tool: str
    run_mode: str = "interactive"
    claims: tuple[Claim, ...]
    is_confined: bool = True


class Loser(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that fits as well, and why another one speaks."""

    rule: PermissionRule
    why: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one authority says of one claim."""

    claim: Claim
    authority: str
    rule: PermissionRule
    others: tuple[Loser, ...] = ()

    @property
    def effect(self) -> Effect:
        return self.rule.effect


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The decision. `decisive` is the finding that made it; `findings` are all, by claim and authority."""

    effect: Effect
    decisive: Finding
    findings: tuple[Finding, ...]

    @property
    def rule(self) -> PermissionRule:
        return self.decisive.rule

    @property
    def source(self) -> str:
        """Where the rule stands: a file and line, or the authority's name."""
        return self.rule.source or self.decisive.authority

    @property
    def reason(self) -> str:
        return self.rule.reason

    @property
    def why_not(self) -> tuple[Loser, ...]:
        """The rules that fit the decisive claim and did not decide."""
        return self.decisive.others

    @property
    def asks(self) -> tuple[Finding, ...]:
        """What needs somebody's leave."""
        return tuple(finding for finding in self.findings if finding.effect == "ask")


def decide(call: Call, authorities: Sequence[Authority]) -> Verdict:
    """The verdict on a call. A call has at least one claim, and there is at least one authority."""
    findings: list[Finding] = []
    for claim in call.claims:
        for authority in authorities:
            found = _find(call, claim, authority)
            if found is not None:
                findings.append(found)
    if not findings:
        findings.append(Finding(claim=call.claims[0], authority="nobody", rule=_SILENCE))
    decisive = max(findings, key=lambda finding: STRENGTH[finding.effect])
    return Verdict(effect=decisive.effect, decisive=decisive, findings=tuple(findings))


def _find(call: Call, claim: Claim, authority: Authority) -> Finding | None:
    """What an authority says of a claim; None of a mention that none of its rules is about."""
    fitting = [rule for rule in authority.rules if fits(rule, call, claim, authority)]
    name = authority.name
    if claim.is_mention:
        fitting = [rule for rule in fitting if _subjects(rule)]
        if not fitting:
            return None
    elif not fitting and authority.preset:
        name = f"preset {authority.preset}"
        rules = preset_rules(authority.preset, is_confined=call.is_confined)
        fitting = [rule for rule in rules if fits(rule, call, claim, authority)]
    if not fitting:
        return None
    topmost = [rule for rule in fitting if not any(is_more_specific(other, rule) for other in fitting)]
    chosen = max(topmost, key=lambda rule: STRENGTH[rule.effect])
    others = tuple(Loser(rule=rule, why=_why_not(rule, chosen, fitting)) for rule in fitting if rule is not chosen)
    return Finding(claim=claim, authority=name, rule=chosen, others=others)


def _why_not(rule: PermissionRule, chosen: PermissionRule, fitting: Iterable[PermissionRule]) -> str:
    if is_more_specific(chosen, rule):
        return "the deciding rule is more specific"
    if any(is_more_specific(other, rule) for other in fitting):
        return "another rule is more specific"
    if STRENGTH[chosen.effect] > STRENGTH[rule.effect]:
        return f"{chosen.effect} beats {rule.effect}"
    return "it says the same, and stands later"


# ------------------------------------------------------------------ which rules fit


def fits(rule: PermissionRule, call: Call, claim: Claim, authority: Authority) -> bool:
    """Whether a rule speaks of a claim."""
    if not (
        pattern.matches(rule.tool, call.tool)
        and pattern.matches(rule.agent, authority.agent)
        and rule.run_mode in ("", call.run_mode)
        and _is_permitted(rule, claim)
    ):
        return False
    subjects = _subjects(rule)
    if not subjects:
        return True
    if authority.is_hard:
        return _is_certain(rule, claim, authority)
    if claim.is_undeclared:
        return rule.effect != "allow" or all(getattr(rule, subject) in EVERYTHING for subject in subjects)
    if claim.subject not in subjects:
        return False
    return all(
        _is_met(rule, subject, claim) if subject == claim.subject else _is_met_elsewhere(rule, subject, call)
        for subject in subjects
    )


def _is_certain(rule: PermissionRule, claim: Claim, authority: Authority) -> bool:
    """Whether a rule of Otto's own holds. What is not certain is left to the sandbox, which knows."""
    if claim.subject != "path" or claim.is_open or claim.is_mention:
        return False
    path = claim.object.casefold()
    return pattern.path_matches(rule.path, path) and not any(
        pattern.path_matches(granted, path) for granted in authority.granted
    )


def _is_permitted(rule: PermissionRule, claim: Claim) -> bool:
    """Whether the rule's `permission` is the claim's; a word of a command line may be read or written."""
    if claim.is_mention and claim.subject == "path":
        return rule.permission in ("", "read", "write", "exec")
    return rule.permission in ("", claim.kind)


@lru_cache(maxsize=1024)
def _subjects(rule: PermissionRule) -> tuple[str, ...]:
    return tuple(subject for subject in SUBJECTS if getattr(rule, subject))


def _is_met_elsewhere(rule: PermissionRule, subject: str, call: Call) -> bool:
    """Whether a condition on another kind of claim holds of the call: of one for a restriction, of all for leave."""
    claims = [claim for claim in call.claims if claim.subject == subject]
    if rule.effect != "allow":
        return any(_is_met(rule, subject, claim) for claim in claims)
    binding = [claim for claim in claims if not claim.is_mention]
    return bool(binding) and all(_is_met(rule, subject, claim) for claim in binding)


def _is_met(rule: PermissionRule, subject: str, claim: Claim) -> bool:
    wanted: str = getattr(rule, subject)
    if wanted in EVERYTHING:
        return True
    restricts = rule.effect != "allow"
    if subject == "path":
        return _path_restricted(wanted, claim) if restricts else _path_allowed(wanted, claim)
    if subject == "host":
        name = wanted.lower()
        return (claim.is_open and restricts) or (not claim.is_open and pattern.matches(name, claim.object))
    if subject == "target":
        known = any(pattern.matches(wanted, text) for text in (claim.object, *claim.forms))
        return restricts if claim.is_open else known
    if restricts:
        return _command_restricted(wanted, claim)
    return not claim.is_altered and (
        pattern.must_match(wanted, claim.object) if claim.is_open else pattern.matches(wanted, claim.object)
    )


def _command_restricted(wanted: str, claim: Claim) -> bool:
    if claim.is_open and not claim.object:
        return True
    if claim.is_open and pattern.may_match(wanted, claim.object):
        return True
    texts = (claim.object, *claim.forms)
    if claim.is_open and any(pattern.may_match(wanted, text) for text in claim.forms[:1] if " " in text):
        return True
    return any(pattern.matches(wanted, text) for text in texts)


def _path_restricted(wanted: str, claim: Claim) -> bool:
    if claim.is_open:
        return not claim.object or pattern.path_may_begin(wanted, claim.object)
    if claim.is_tree:
        return pattern.path_may_match_below(wanted, claim.object)
    return pattern.path_matches(wanted, claim.object)


def _path_allowed(wanted: str, claim: Claim) -> bool:
    is_outside = claim.object.startswith("/")
    if claim.is_open or (is_outside and not wanted.startswith("/")):
        return False
    return pattern.path_matches(wanted, claim.object)


# ------------------------------------------------------------------ which rule says more


@lru_cache(maxsize=4096)
def is_more_specific(rule: PermissionRule, other: PermissionRule) -> bool:
    """Whether the rule fits only where the other does, and more seldom."""
    return _is_within(rule, other) and not _is_within(other, rule)


def _is_within(rule: PermissionRule, other: PermissionRule) -> bool:
    return (
        pattern.covers(other.tool, rule.tool)
        and pattern.covers(other.agent, rule.agent)
        and other.run_mode in ("", rule.run_mode)
        and other.permission in ("", rule.permission)
        and (not other.path or (bool(rule.path) and pattern.path_covers(other.path, rule.path)))
        and (not other.command or (bool(rule.command) and pattern.covers(other.command, rule.command)))
        and (not other.host or (bool(rule.host) and pattern.covers(other.host.lower(), rule.host.lower())))
        and (not other.target or (bool(rule.target) and pattern.covers(other.target, rule.target)))
    )


# ------------------------------------------------------------------ what is never allowed

PROTECTED_PATHS = (
    "**/.otto/**",
    "**/.git/hooks/**",
    "**/.git/config",
    "**/.git/config.worktree",
    "**/.git/commondir",
    "**/.git/worktrees/**",
    "**/.git/modules/**/hooks/**",
    "**/.git/modules/**/config",
)
"""What programs outside run or obey, at any depth (see `ottod.isolation.protected`); whatever the case."""


def hard_denies(own_dirs: Iterable[str], *, granted: Iterable[str] = ()) -> tuple[Authority, ...]:
    """What no rule allows: writing what is obeyed outside of the sandbox, and anything of Otto's own directories.

    `granted` are paths that the agent may write although they are protected, relative to the working directory.
    """
    protected = tuple(
        PermissionRule(
            effect="deny",
            permission="write",
            path=path,
            reason="it is run or obeyed outside of the sandbox",
            source="built in",
        )
        for path in PROTECTED_PATHS
    )
    own = tuple(
        PermissionRule(effect="deny", path=path.casefold(), reason="it is Otto's own", source="built in")
        for path in own_dirs
    )
    return (
        Authority(name="protected paths", rules=protected, is_hard=True, granted=_lifted(granted)),
        Authority(name="Otto's own directories", rules=own, is_hard=True),
    )


def notes_guard(*, granted: Iterable[str] = ()) -> Authority:
    """The project's notes are told to every later session: nobody writes them without leave.

    `granted` as above: who may write them by its own definition is not asked about.
    """
    rule = PermissionRule(
        effect="ask",
        permission="write",
        path=f"**/{FILE_NAME.casefold()}",
        reason=f"what {FILE_NAME} says every later session is told",
        source="built in",
    )
    return Authority(name="project notes", rules=(rule,), is_hard=True, granted=_lifted(granted))


def _lifted(granted: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"./{path.casefold()}" for path in granted if not path.startswith("/"))


# ------------------------------------------------------------------ leave that stands

MAX_KEYS = 20
MAX_KEY_CHARS = 2000


def grant_keys(verdict: Verdict, *, arguments: str) -> tuple[tuple[str, ...], bool]:
    """What a call needs leave for, each as exact text, and whether that says it all, so that leave for it can stand.

    A claim without an object is known by the call's arguments; so is one about another agent, whom leave to tell one
    thing does not cover for the next.
    """
    keys: list[str] = []
    is_exact = True
    for claim in dict.fromkeys(finding.claim for finding in verdict.asks):
        if claim.is_undeclared or claim.subject == "target" or (not claim.object and not claim.is_open):
            digest = sha256(arguments.encode("utf-8", "surrogatepass")).hexdigest()
            keys.append(f"{claim.kind} with arguments {digest[:32]}")
            continue
        is_exact = is_exact and not (claim.is_open or claim.is_altered or claim.is_mention or claim.is_moved)
        keys.append(_key(claim))
    is_exact = is_exact and len(keys) <= MAX_KEYS and all(len(key) <= MAX_KEY_CHARS for key in keys)
    return tuple(keys), is_exact


def _key(claim: Claim) -> str:
    """`exec git push`, `exec make (in src)`, `read below src`. No two claims that can be granted have the same."""
    below = "below " if claim.is_tree else ""
    known = claim.exact or claim.object
    if claim.subject == "path" and known.startswith("below "):
        known = f"./{known}"
    # Within a program's words there are no brackets without quotes.
    place = f" (in {claim.place})" if claim.place else ""
    return f"{claim.kind} {below}{known}{'…' if claim.is_open else ''}{place}"


def covering_grant(
    grants: Iterable[StandingGrant], *, tool: str, keys: Sequence[str], is_exact: bool, now_ns: int
) -> StandingGrant | None:
    """A grant that covers everything that a call needs leave for; None if there is none that still holds.

    `is_exact`: the keys say it all. What they do not say nobody has given leave for.
    """
    for grant in grants if is_exact else ():
        is_valid = grant.expires_at_ns is None or grant.expires_at_ns > now_ns
        if is_valid and grant.tool == tool and keys and set(keys) <= set(grant.claims):
            return grant
    return None
