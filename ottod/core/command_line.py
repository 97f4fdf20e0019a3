"""A shell's command line, taken apart for permission rules: which programs it starts, which files it redirects to.

Theory of operation. This is no shell. It follows a line as far as it is sure of its meaning: quotes, escapes and line
continuations, lists (`;` `&` `&&` `||` `|` and newlines), subshells and groups, `$(…)`, backticks and process
substitutions, redirections, assignments before a command, the simple keywords, and programs that start others
(`wrappers`). Where it is not sure it says so: a word whose rest is not known is *open* (`rm $X`), a program that
cannot be named is opaque, and so is a line that it cannot follow, with what was found until there. A rule that allows
needs to be sure, a rule that restricts meets whatever might be meant (`permission`).

The same line may mean more to the shell than is found here only if a program that was found does it: an interpreter,
a build, a hook. Rules about commands are for agents that mean well; the sandbox is for the others.

Source: POSIX.1-2024, Shell Command Language; bash(1).
"""

from __future__ import annotations

import re
import shlex

import msgspec

from ottod.core.wrappers import Word, inner_commands

MAX_LINE_CHARS = 64 * 1024
MAX_DEPTH = 12
"""Of substitutions and wrappers in each other."""
MAX_PROGRAMS = 500

_BLANKS = " \t"
_ENDS_WORD = frozenset(" \t\n;&|<>()")
_REDIRECTION = re.compile(r"(?:\d*|\{\w+\})(<<<|<<-|<<|<>|<&|>>|>\||>&|<|>)|(&>>|&>)", re.ASCII)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(?:\[[^\]]*\])?\+?=", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*|\d|[@*#?$!-]", re.ASCII)
_DESCRIPTOR = re.compile(r"\d+-?|-", re.ASCII)
_EXPANSION = re.compile(
    r"\{(?:#?\w+|[@*#?$!-])(?:(?::?[-=+?]|##?|%%?|//?|\^\^?|,,?)[\w ./:,=+%^#*?~!-]*)?\}", re.ASCII
)
"""`${…}` whose end nobody reads differently: without quotes, escapes, substitutions and arithmetic in it."""
_OWN_VARIABLE = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
"""What a loop may be counted by: no variable of a shell's own, or of a program's, is called so."""
_NETWORK = re.compile(r"/dev/(?:tcp|udp)/([^/]+)/")
_HARMLESS = re.compile(r"/dev/(?:null|zero|full|tty|stdin|stdout|stderr|fd/\d+)\Z")
_PREFIXES = frozenset({"if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"})
_SUFFIXES = frozenset({"fi", "done", "}"})
_UNREADABLE = frozenset({"case", "esac", "function", "select", "coproc"})
_ALTERING = frozenset(
    {
        *("export", "declare", "typeset", "readonly", "local", "alias", "enable", "hash", "shopt", "set", "unset"),
        *("read", "mapfile", "readarray", "getopts", "source", "."),
    }
)
_EVALUATING = frozenset(
    {
        *("printf", "test", "[", "read", "unset", "let", "declare", "typeset", "local", "export", "readonly"),
        *("mapfile", "readarray", "getopts", "wait"),
    }
)
"""Builtins that take names of variables, and evaluate what stands between their brackets: `a[$(…)]` runs it."""
_MOVING = frozenset({"cd", "pushd", "popd", "chroot"})


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """One program that a line starts: its words, joined by spaces. Empty and open: it cannot be named.

    `is_open`: only the beginning of the text is known. `is_altered`: its environment or the shell's was changed on
    the line, so that its name may mean another program. `is_transparent`: it only starts another one, which is listed
    as well. `exact` has the words in quotes where they need some, so that it cannot be read as others; `is_moved`: it
    runs in another directory than the line.
    """

    text: str = ""
    exact: str = ""
    is_moved: bool = False
    is_open: bool = False
    is_altered: bool = False
    is_transparent: bool = False


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A path, or the beginning of one."""

    text: str = ""
    is_open: bool = False


class CommandLine(msgspec.Struct, frozen=True, kw_only=True):
    """What a line does, as far as it can be told. `mentions` are its other words: they may be paths or addresses.

    `opaque` says why it could not be followed to its end; empty if it could.
    """

    programs: tuple[Program, ...] = ()
    reads: tuple[Target, ...] = ()
    writes: tuple[Target, ...] = ()
    hosts: tuple[str, ...] = ()
    mentions: tuple[Target, ...] = ()
    opaque: str = ""


class Opaque(Exception):
    """The line cannot be followed any further."""


def analyse(text: str) -> CommandLine:
    """Takes a command line apart. Never fails."""
    found = _Findings()
    try:
        if len(text) > MAX_LINE_CHARS:
            raise Opaque("it is too long")
        _Reader(text, found, depth=0).read()
    except Opaque as reason:
        found.opaque = str(reason)
        found.programs.append(Program(is_open=True))
    return found.result()


def analyse_words(words: tuple[str, ...]) -> CommandLine:
    """The same for a program that is started without a shell. An empty first word: it cannot be named."""
    found = _Findings()
    try:
        _Reader("", found, depth=0).emit([Word(word) for word in words], is_altered=False)
    except Opaque as reason:
        found.opaque = str(reason)
        found.programs.append(Program(is_open=True))
    return found.result()


class _Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self.reads: list[Target] = []
        self.writes: list[Target] = []
        self.hosts: list[str] = []
        self.mentions: list[Target] = []
        self.opaque = ""
        self.is_altered = False
        """From here on names may mean other programs."""
        self.is_moved = False
        """From here on relative paths begin elsewhere."""

    def result(self) -> CommandLine:
        return CommandLine(
            programs=tuple(self.programs),
            reads=tuple(self.reads),
            writes=tuple(self.writes),
            hosts=tuple(self.hosts),
            mentions=tuple(self.mentions),
            opaque=self.opaque,
        )


class _Reader:
    """Reads one text from its beginning; substitutions in place, lines inside words by readers of their own."""

    def __init__(self, text: str, found: _Findings, *, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Opaque("it is nested too deep")
        if "\0" in text:
            raise Opaque("it holds a NUL")
        self._text = text
        self._at = 0
        self._found = found
        self._depth = depth

    def read(self) -> None:
        """The whole text. Raises Opaque."""
        self._list("")

    # ------------------------------------------------------------ lists and commands

    def _peek(self, count: int = 1) -> str:
        return self._text[self._at : self._at + count]

    def _skip_blanks(self) -> None:
        while True:
            if self._peek() and self._peek() in _BLANKS:
                self._at += 1
            elif self._peek(2) == "\\\n":
                self._at += 2
            else:
                return

    def _list(self, closer: str) -> None:
        """Commands up to the closing parenthesis, or to the end."""
        words: list[Word] = []
        while True:
            self._skip_blanks()
            char = self._peek()
            if not char or char == closer:
                if closer and not char:
                    raise Opaque("a parenthesis is not closed")
                self._command(words)
                self._at += len(closer)
                return
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = end if end >= 0 else len(self._text)
            elif self._peek(2) in ("<(", ">("):
                words.append(self._word())
            elif redirection := _REDIRECTION.match(self._text, self._at):
                self._at = redirection.end()
                self._redirect(redirection.group(1) or redirection.group(2))
            elif char in "\n;&|":
                if self._peek(2) in (";;", ";&"):
                    raise Opaque("it has a case statement")
                self._at += 2 if self._peek(2) in ("&&", "||", "|&") else 1
                self._command(words)
                words = []
            elif char == "(":
                self._group(words)
            elif char == ")":
                raise Opaque("a parenthesis is not opened")
            else:
                words.append(self._word())

    def _group(self, words: list[Word]) -> None:
        """A subshell; after a word it would be a function or an array, and two would be arithmetic."""
        if any(word.text not in _PREFIXES or word.is_open for word in words) or self._peek(2) == "((":
            raise Opaque("it has a function, an array or arithmetic")
        self._at += 1
        self._nest()

    def _nest(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Opaque("it is nested too deep")
        self._list(")")
        self._depth -= 1

    def _command(self, words: list[Word]) -> None:
        """One simple command, its keywords and assignments taken away."""
        at = 0
        while at < len(words) and _is_keyword(words[at], _PREFIXES):
            is_timed = words[at].text == "time"
            at += 1
            while is_timed and at < len(words) and words[at].text in ("-p", "--") and not words[at].is_open:
                at += 1
        if at < len(words) and _is_keyword(words[at], _UNREADABLE):
            raise Opaque(f"it has `{words[at].text}`")
        if at < len(words) and _is_keyword(words[at], frozenset({"for"})):
            self._loop(words[at + 1 :])
            return
        while at < len(words) and _is_keyword(words[at], _SUFFIXES):
            at += 1
        is_altered = False
        while at < len(words) and (match := _ASSIGNMENT.match(words[at].text[: words[at].plain])):
            value = words[at]
            self._mention([Word(value.text[match.end() :], is_open=value.is_open)])
            is_altered = True
            at += 1
        if at == len(words):
            self._found.is_altered |= is_altered
            return
        self.emit(words[at:], is_altered=is_altered)

    def _loop(self, words: list[Word]) -> None:
        """What stands behind `for`: a variable and its values, or at once what is done with each argument."""
        variable = words[0] if words else Word("")
        self._found.is_altered |= variable.is_open or not _OWN_VARIABLE.fullmatch(variable.text)
        if len(words) > 1 and _is_keyword(words[1], frozenset({"do"})):
            self._command(words[1:])
        else:
            self._mention(words[1:])

    def emit(self, words: list[Word], *, is_altered: bool) -> None:
        """Notes a program, and what it starts in turn. Raises Opaque."""
        if len(self._found.programs) >= MAX_PROGRAMS or self._depth > MAX_DEPTH:
            raise Opaque("it starts too many programs")
        is_altered = is_altered or self._found.is_altered
        name = words[0]
        # No program is called like an option: whatever comes before it was not understood.
        if name.is_open or not name.text or name.text.startswith("-"):
            self._found.programs.append(Program(is_open=True))
            self._mention(words)
            return
        inner = inner_commands(words)
        text, is_open = _joined(words)
        self._found.programs.append(
            Program(
                text=text,
                exact="" if is_open else shlex.join(word.text for word in words),
                is_open=is_open,
                is_altered=is_altered,
                is_transparent=inner.is_transparent,
                is_moved=self._found.is_moved,
            )
        )
        self._mention(words[1:])
        for path in inner.writes:
            self._target(path, self._found.writes)
        self._depth += 1
        for command in inner.commands:
            self.emit(list(command), is_altered=is_altered or inner.is_altering)
        if inner.lines:
            self._found.is_altered |= is_altered or inner.is_altering
        for line in inner.lines:
            _Reader(line, self._found, depth=self._depth).read()
        self._depth -= 1
        if inner.is_opaque:
            self._found.programs.append(Program(is_open=True))
        base = name.text.rsplit("/", 1)[-1]
        if base in _EVALUATING and any("[" in w.text and ("$" in w.text or "`" in w.text) for w in words[1:]):
            self._found.programs.append(Program(is_open=True))
        self._found.is_altered |= base in _ALTERING
        self._found.is_moved |= base in _MOVING

    def _mention(self, words: list[Word]) -> None:
        for word in words:
            if not word.text:
                continue
            # What is written behind an option's `=` may be a path too.
            values = [word.text]
            if "=" in word.text:
                values.append(word.text.split("=", 1)[1])
            for value in values:
                if value:
                    self._found.mentions.append(Target(text=value, is_open=word.is_open))

    # ------------------------------------------------------------ redirections

    def _redirect(self, operator: str) -> None:
        if operator in ("<<", "<<-"):
            raise Opaque("it has a here-document")
        self._skip_blanks()
        target = self._word()
        if operator == "<<<" or (operator in (">&", "<&") and _DESCRIPTOR.fullmatch(target.text)):
            return
        if not target.text and not target.is_open:
            raise Opaque("a redirection has no target")
        if operator in (">&", "<&") and ("$" in target.text or "`" in target.text):
            # bash takes such a word's quotes away and expands it a second time.
            raise Opaque("a redirection expands what was quoted")
        if operator in ("<", "<>", "<&"):
            self._target(target, self._found.reads)
        if operator not in ("<", "<&"):
            self._target(target, self._found.writes)

    def _target(self, word: Word, targets: list[Target]) -> None:
        if network := _NETWORK.match(word.text):
            self._found.hosts.append(network.group(1))
        elif word.is_open or not _HARMLESS.match(word.text):
            is_elsewhere = self._found.is_moved and not word.text.startswith("/")
            text = "" if is_elsewhere else word.text
            targets.append(Target(text=text, is_open=word.is_open or is_elsewhere))

    # ------------------------------------------------------------ words

    def _word(self) -> Word:
        """One word, its quotes removed. Its text ends where its meaning is not known any more."""
        known: list[str] = []
        is_open = False
        plain = -1
        start = self._at
        while (char := self._peek()) and (char not in _ENDS_WORD or self._peek(2) in ("<(", ">(")):
            if char in "'\"\\" and plain < 0 and self._peek(2) != "\\\n":
                plain = len("".join(known))
            piece, opens = self._piece(char, is_first=self._at == start)
            if not is_open:
                known.append(piece)
            is_open = is_open or opens
        text = "".join(known)
        return Word(text, is_open=is_open, plain=len(text) if plain < 0 else plain)

    def _piece(self, char: str, *, is_first: bool) -> tuple[str, bool]:
        """The next piece of a word, and whether the word is open from here on."""
        if char == "\\":
            self._at += 2
            escaped = self._text[self._at - 1 : self._at]
            return ("" if escaped == "\n" else escaped or "\\"), False
        if char == "'":
            end = self._text.find("'", self._at + 1)
            if end < 0:
                raise Opaque("a quote is not closed")
            piece, self._at = self._text[self._at + 1 : end], end + 1
            return piece, False
        if char == '"':
            return self._double_quoted()
        if char == "$":
            return self._dollar(is_quoted=False)
        if char == "`":
            self._backticks()
            return "", True
        if char in "<>":
            self._at += 2
            self._nest()
            return "", True
        self._at += 1
        following = self._peek()
        if char in "*?" or (char == "~" and is_first):
            return "", True
        if char in "[{" and following and following not in _ENDS_WORD and following != "}":
            return "", True
        return char, False

    def _double_quoted(self) -> tuple[str, bool]:
        self._at += 1
        known: list[str] = []
        is_open = False
        while (char := self._peek()) != '"':
            opens = False
            if not char:
                raise Opaque("a quote is not closed")
            if char == "\\" and self._peek(2)[1:] in ("$", "`", '"', "\\", "\n"):
                piece = "" if self._peek(2) == "\\\n" else self._peek(2)[1]
                self._at += 2
            elif char == "$":
                piece, opens = self._dollar(is_quoted=True)
            elif char == "`":
                self._backticks(is_quoted=True)
                piece, opens = "", True
            else:
                piece = char
                self._at += 1
            if not is_open:
                known.append(piece)
            is_open = is_open or opens
        self._at += 1
        return "".join(known), is_open

    def _dollar(self, *, is_quoted: bool) -> tuple[str, bool]:
        """An expansion; its value is never known."""
        self._at += 1
        # A shell takes line continuations away before it looks at what follows.
        while self._peek(2) == "\\\n":
            self._at += 2
        if self._peek(2) == "((":
            raise Opaque("it has arithmetic")
        following = self._peek()
        if following == "(":
            self._at += 1
            self._nest()
            return "", True
        if following == "{":
            expansion = _EXPANSION.match(self._text, self._at)
            if expansion is None:
                raise Opaque("it has an expansion that is more than a name and a plain value")
            self._at = expansion.end()
            return "", True
        if following in "'\"" and following and not is_quoted:
            if following == "'":
                raise Opaque("it has a $'…' string")
            return self._double_quoted()[0], True
        if following == "[":
            raise Opaque("it has arithmetic")
        if match := _NAME.match(self._text, self._at):
            self._at = match.end()
            return "", True
        return "$", False

    def _backticks(self, *, is_quoted: bool = False) -> None:
        at = self._at + 1
        inside: list[str] = []
        while at < len(self._text) and self._text[at] != "`":
            if is_quoted and self._text[at] in '"\\':
                raise Opaque("it has backticks inside of quotes, with quotes or escapes in them")
            if self._text[at] == "\\" and self._text[at + 1 : at + 2] in ("`", "\\", "$"):
                at += 1
            inside.append(self._text[at])
            at += 1
        if at >= len(self._text):
            raise Opaque("a backtick is not closed")
        self._at = at + 1
        _Reader("".join(inside), self._found, depth=self._depth + 1).read()


def _is_keyword(word: Word, keywords: frozenset[str]) -> bool:
    return not word.is_open and word.plain == len(word.text) and word.text in keywords


def _joined(words: list[Word]) -> tuple[str, bool]:
    """The words with spaces between them, up to the first open one."""
    texts: list[str] = []
    for word in words:
        texts.append(word.text)
        if word.is_open:
            return " ".join(texts), True
    return " ".join(texts), False
