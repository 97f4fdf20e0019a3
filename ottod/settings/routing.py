"""Which agent a task goes to. Pure and deterministic: the same task and agents give the same answer, and its reasons.

Theory of operation. Whoever is named gets it: by the caller, or in the task as `@name`, if they have the tags and
tools that are wanted. Else those are left out who lack one of these, and the rest are ranked by how well their name,
tags, hints and description fit the words of the task (BM25, each field with a weight). Equal scores go by name. If no
word fits and nothing was wanted, nobody is chosen: a guess would look like an answer.

Words are runs of letters and digits, in lower case, without words that say nothing (`the`, `please`). They are
compared by stems: an ending of plural or of verb is cut off, then a doubled last letter and a last `e`, so that
`tests`, `testing` and `tester` meet, and so do `writing` and `writes`. That is crude, and knows English only.

Source: S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec

from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import Route

FIELD_WEIGHTS: tuple[tuple[str, float], ...] = (("name", 2.0), ("tags", 2.0), ("hints", 1.0), ("description", 1.0))
SATURATION = 1.2
"""BM25's k1: how soon a word that comes again counts no more."""
LENGTH_SHARE = 0.5
"""BM25's b: how much a long text is held against an agent."""
MAX_WORDS = 2000
"""Of a task; what follows is not looked at."""

_WORD = re.compile(r"[^\W_]+")
_MENTION = re.compile(r"(?<![\w@.])@([a-z][a-z0-9_-]{0,62})")
_ENDINGS = ("ing", "ers", "ors", "er", "or", "ed", "es", "s")
EMPTY_WORDS = frozenset(
    _WORD.findall(
        """
        a an and any are as at be been but by can could do does for from had has have how i if in into is it its let
        me my need no not of on or our out please so some than that the their them then there these they this those
        to up us was we were what when where which who why will with would you your
        """
    )
)
ANYBODY = Route()


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """A word of the task that an agent's definition has: where, and what it adds to the score."""

    word: str
    fields: tuple[str, ...]
    score: float


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that could do it, and why; `terms` by what they add."""

    agent: str
    score: float
    terms: tuple[Term, ...] = ()


class Filtered(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was left out."""

    agent: str
    reason: str


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """The agent that was chosen, or an empty string; in one sentence why; and the field, the best first."""

    agent: str
    reason: str
    ranked: tuple[Ranked, ...] = ()
    filtered: tuple[Filtered, ...] = ()


def route(task: str, agents: Sequence[AgentSpec], *, want: Route = ANYBODY, names: Sequence[str] = ()) -> Routing:
    """The agent for a task. `names` are those that the caller would take, the first there is first."""
    by_name = {agent.name: agent for agent in sorted(agents, key=lambda a: a.name)}
    for name in (*names, *_MENTION.findall(task)):
        # The caller has decided; somebody whom a text mentions must have what is wanted like anybody else.
        if name in by_name and (name in names or not lacks(by_name[name], want)):
            how = "the caller names it" if name in names else "the task names it"
            return Routing(agent=name, reason=how, filtered=_others(by_name, name))
    if names:
        return Routing(agent="", reason=f"there is no {' or '.join(names)}", filtered=())
    filtered = [Filtered(agent=name, reason=why) for name, a in by_name.items() if (why := lacks(a, want))]
    out = {item.agent for item in filtered}
    left = [agent for name, agent in by_name.items() if name not in out]
    ranked = rank(want.hint or task, left)
    agent, reason = _choice(ranked, filtered, want)
    return Routing(agent=agent, reason=reason, ranked=tuple(ranked), filtered=tuple(filtered))


def without_mentions(text: str) -> str:
    """The text with names in it that choose nobody."""
    return _MENTION.sub(r"\1", text)


def lacks(agent: AgentSpec, want: Route) -> str:
    """What an agent does not have of what is wanted; an empty string if it has all."""
    tags = {tag.casefold() for tag in agent.tags}
    missing = [f"the tag {tag!r}" for tag in want.tags if tag.casefold() not in tags]
    missing += [f"the tool {tool!r}" for tool in want.tools if not any(fnmatchcase(tool, own) for own in agent.tools)]
    if agent.kind != "agent":
        missing.append(f"an agent's work: it is a {agent.kind}")
    return f"lacks {', '.join(missing)}" if missing else ""


def rank(text: str, agents: Sequence[AgentSpec]) -> list[Ranked]:
    """The agents by how well they fit a text, the best first, equal ones by name."""
    fields = {agent.name: {name: stems(part) for name, part in _texts(agent)} for agent in agents}
    weights = dict(FIELD_WEIGHTS)
    weighted = {
        agent: _sum(
            {word: weights[field] * n for word, n in Counter(words).items()} for field, words in parts.items()
        )
        for agent, parts in fields.items()
    }
    lengths = {agent: sum(words.values()) for agent, words in weighted.items()}
    mean = sum(lengths.values()) / len(lengths) if lengths else 0.0
    ranked = []
    wanted = list(dict.fromkeys(stems(text)[:MAX_WORDS]))
    for agent, words in weighted.items():
        terms = []
        for word in wanted:
            if word not in words:
                continue
            having = sum(word in other for other in weighted.values())
            rarity = math.log(1 + (len(weighted) - having + 0.5) / (having + 0.5))
            length = 1 - LENGTH_SHARE + LENGTH_SHARE * lengths[agent] / mean
            score = rarity * words[word] * (SATURATION + 1) / (words[word] + SATURATION * length)
            where = tuple(name for name, _ in FIELD_WEIGHTS if word in fields[agent][name])
            terms.append(Term(word=word, fields=where, score=round(score, 4)))
        terms.sort(key=lambda term: (-term.score, term.word))
        ranked.append(Ranked(agent=agent, score=round(math.fsum(t.score for t in terms), 4), terms=tuple(terms)))
    return sorted(ranked, key=lambda item: (-item.score, item.agent))


def stems(text: str) -> list[str]:
    """The words of a text that say something, in order, by their stems."""
    return [stem(word) for word in _WORD.findall(text.casefold()) if word not in EMPTY_WORDS]


def stem(word: str) -> str:
    """A word without its ending."""
    if not word.isascii() or len(word) <= 3:
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    for ending in _ENDINGS:
        root = word.removesuffix(ending)
        # What is left must be a word with a vowel: `string` has no ending, `class` no plural.
        if root != word and len(root) >= 3 and re.search("[aeiouy]", root) and not word.endswith(("ss", "us", "is")):
            word = root
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def _texts(agent: AgentSpec) -> Iterator[tuple[str, str]]:
    yield "name", agent.name
    yield "tags", " ".join(agent.tags)
    yield "hints", " ".join(agent.hints)
    yield "description", agent.description


def _sum(parts: Iterator[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for word, weight in part.items():
            total[word] = total.get(word, 0.0) + weight
    return total


def _others(agents: dict[str, AgentSpec], chosen: str) -> tuple[Filtered, ...]:
    return tuple(Filtered(agent=name, reason=f"{chosen} is named") for name in agents if name != chosen)


def _choice(ranked: Sequence[Ranked], filtered: Sequence[Filtered], want: Route) -> tuple[str, str]:
    is_filter = bool(want.tags or want.tools)
    if not ranked:
        return "", "nobody has all that is wanted" if filtered else "there are no agents"
    best = ranked[0]
    if is_filter and len(ranked) == 1:
        return best.agent, "nobody else has all that is wanted"
    if best.score > 0:
        equal = [item.agent for item in ranked[1:] if item.score == best.score]
        tie = f", as well as {', '.join(equal)}, and is first by name" if equal else ""
        return best.agent, f"it fits the words best{tie}"
    if is_filter:
        return best.agent, "it has all that is wanted, no word fits, and it is first by name"
    return "", "no word of the task fits any agent"
