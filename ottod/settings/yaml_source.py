"""YAML text turned into plain data that still knows where every value stood.

The text is read as a stream of parser events, never recursively, so that hostile files cost bounded time and
memory: a file has at most MAX_FILE_BYTES, is at most MAX_DEPTH deep, and has at most MAX_NODES values after its
aliases are expanded. What an unquoted scalar means is in `scalars`. Duplicate keys are errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ottod.errors import ConfigError
from ottod.settings.scalars import describe_value, plain_scalar
from ottod.settings.text_file import MAX_FILE_BYTES, decode_text, read_bytes

MAX_DEPTH = 48
MAX_NODES = 50_000

PathKey = str | int
DataPath = tuple[PathKey, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Mark(NamedTuple):
    """A position in a file, counted from 1."""

    line: int
    column: int


class Scalar(NamedTuple):
    """A leaf: the value it stands for."""

    value: str | int | float | bool | None
    mark: Mark


class Items(NamedTuple):
    """A sequence."""

    nodes: list[Node]
    mark: Mark


class Entries(NamedTuple):
    """A mapping; `key_marks` says where each key stands."""

    nodes: dict[str, Node]
    key_marks: dict[str, Mark]
    mark: Mark


Node = Scalar | Items | Entries


class Source(NamedTuple):
    """A file's data and, through `locate`, the position of every part of it."""

    file: str
    data: dict[str, Any]
    root: Entries | None

    def locate(self, path: DataPath, *, key: bool = False) -> Mark:
        """Where the value at `path` stands, or with `key` its key; the nearest known ancestor otherwise."""
        node: Node | None = self.root
        mark = self.root.mark if self.root else Mark(0, 0)
        for depth, part in enumerate(path):
            if isinstance(node, Entries) and part in node.nodes:
                if key and depth == len(path) - 1:
                    return node.key_marks[str(part)]
                node = node.nodes[str(part)]
            elif isinstance(node, Items) and isinstance(part, int) and part < len(node.nodes):
                node = node.nodes[part]
            else:
                break
            mark = node.mark
        return mark

    def error(
        self, message: str, path: DataPath = (), *, key: bool = False, mend: str = "", code: str = ""
    ) -> ConfigError:
        """A ConfigError at that place. Returned, not raised."""
        mark = self.locate(path, key=key)
        error = ConfigError(message, file=self.file, line=mark.line, column=mark.column, mend=mend)
        if code:
            error.code = code
        return error


def read(file: Path | str) -> Source:
    """Reads and parses one YAML file. Raises: ConfigError, also for a file that cannot be read."""
    return parse(read_bytes(file), file=str(file))


def parse(data: bytes, *, file: str, first_line: int = 1) -> Source:
    """Parses the bytes of one YAML document whose top is a mapping.

    `first_line` is the number of the text's first line in the file (front matter starts further down).
    Raises: ConfigError.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"larger than {MAX_FILE_BYTES} bytes", file=file, mend="split it or make it shorter")
    reader = _Reader(file, decode_text(data, file=file, first_line=first_line), first_line - 1)
    root = reader.document()
    return Source(file, reader.to_data(root), root)


class _Open:
    """A collection whose end has not been met. `key` is the mapping key that waits for its value."""

    __slots__ = ("anchor", "key", "key_mark", "node")

    def __init__(self, node: Items | Entries, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: str | None = None
        self.key_mark = node.mark


class _Reader:
    """Builds the node tree of one document from parser events."""

    def __init__(self, file: str, text: str, line_offset: int) -> None:
        self._file = file
        self._text = text
        self._line_offset = line_offset
        self._anchors: dict[str, Node] = {}
        self._stack: list[_Open] = []
        self._root: Node | None = None

    def document(self) -> Entries:
        """The document's mapping. Raises: ConfigError."""
        documents = 0
        for event in self._events():
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error("a second document starts here", event, mend="keep one document per file")
            elif isinstance(event, yaml.AliasEvent):
                self._place(self._alias(event), event)
            elif isinstance(event, yaml.ScalarEvent):
                node = self._scalar(event)
                self._remember(event.anchor, node)
                self._place(node, event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                done = self._stack.pop()
                self._remember(done.anchor, done.node)
                self._place(done.node, event)
        root = self._root
        if root is None or (isinstance(root, Scalar) and root.value is None):
            raise ConfigError("the file is empty", file=self._file, mend="write a mapping of keys to values")
        if not isinstance(root, Entries):
            raise ConfigError(
                f"the file must be a mapping of keys to values, got {describe_value(_plain(root))}",
                file=self._file,
                line=root.mark.line,
                column=root.mark.column,
                mend="write `key: value` lines",
            )
        return root

    def _events(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self._text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"not YAML: {error}".splitlines()[0], file=self._file) from error

    def _open(self, event: Any) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep", event, mend="make it flatter")
        self._refuse_tag(event)
        if self._wants_key():
            raise self._error("a key must be a plain string", event, mend="write `key: value`")
        mark = self._mark(event)
        node: Items | Entries
        node = Entries({}, {}, mark) if isinstance(event, yaml.MappingStartEvent) else Items([], mark)
        self._stack.append(_Open(node, event.anchor))

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].node, Entries) and self._stack[-1].key is None

    def _place(self, node: Node, event: Any) -> None:
        """Puts a finished node where it belongs."""
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        if isinstance(top.node, Items):
            top.node.nodes.append(node)
        elif top.key is None:
            self._begin_entry(top, top.node, node, event)
        else:
            top.node.nodes[top.key] = node
            top.node.key_marks[top.key] = top.key_mark
            top.key = None

    def _begin_entry(self, top: _Open, entries: Entries, node: Node, event: Any) -> None:
        if not isinstance(node, Scalar) or isinstance(event, yaml.AliasEvent) or not event.value:
            raise self._error("a key must be a plain string", event, mend="write `key: value`")
        key: str = event.value
        if key == "<<" and event.implicit[0]:
            raise self._error("merge keys (<<) are not supported", event, mend="repeat the keys")
        if key in entries.nodes:
            first = entries.key_marks[key].line
            raise self._error(f"duplicate key {key!r}, first on line {first}", event, mend="remove one of the two")
        top.key, top.key_mark = key, self._mark(event)

    def _alias(self, event: Any) -> Node:
        node = self._anchors.get(event.anchor)
        if node is not None:
            return node
        if any(waiting.anchor == event.anchor for waiting in self._stack):
            raise self._error(f"alias *{event.anchor} contains itself", event, mend="write the value out")
        raise self._error(f"alias *{event.anchor} has no anchor", event, mend=f"define &{event.anchor} above it")

    def _remember(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _scalar(self, event: Any) -> Scalar:
        self._refuse_tag(event)
        text: str = event.value
        mark = self._mark(event)
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise self._error("a string holds a NUL or half a character", event, mend="remove the escape")
        if event.tag is not None or not event.implicit[0]:
            return Scalar(text, mark)
        try:
            return Scalar(plain_scalar(text), mark)
        except OverflowError:
            raise self._error(f"number out of range: {text[:40]}", event, mend="use a smaller number") from None

    def _refuse_tag(self, event: Any) -> None:
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise self._error(f"tag {event.tag!r} is not supported", event, mend="remove the tag")

    def _mark(self, event: Any) -> Mark:
        return Mark(event.start_mark.line + 1 + self._line_offset, event.start_mark.column + 1)

    def _error(self, message: str, event: Any, *, mend: str) -> ConfigError:
        mark = self._mark(event)
        return ConfigError(message, file=self._file, line=mark.line, column=mark.column, mend=mend)

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> ConfigError:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        column = mark.column if mark else 0
        lines = self._text.split("\n")
        current = lines[line] if line < len(lines) else ""
        message = f"not YAML: {error.problem or error.context or 'syntax error'}"
        mend = "check indentation, colons and quotes here and on the line above"
        if current[column : column + 1] == "\t" or current[: len(current) - len(current.lstrip())].count("\t"):
            message, mend = "a tab where YAML wants spaces", "indent with spaces"
        elif "mapping values are not allowed" in message:
            message, mend = "not YAML: a colon where no key can stand", "quote the value, or fix the indentation"
        return ConfigError(message, file=self._file, line=line + 1 + self._line_offset, column=column + 1, mend=mend)

    def to_data(self, root: Entries) -> dict[str, Any]:
        """Plain dicts and lists, aliases expanded. Raises: ConfigError above MAX_NODES."""
        left = MAX_NODES

        def convert(node: Node) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConfigError(
                    f"more than {MAX_NODES} values (aliases expanded)", file=self._file, mend="make it shorter"
                )
            if isinstance(node, Scalar):
                return node.value
            if isinstance(node, Items):
                return [convert(item) for item in node.nodes]
            return {key: convert(value) for key, value in node.nodes.items()}

        return {key: convert(value) for key, value in root.nodes.items()}


def _plain(node: Node) -> object:
    return node.value if isinstance(node, Scalar) else [] if isinstance(node, Items) else {}
