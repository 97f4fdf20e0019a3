"""JSON and YAML documents: strict, safe and bounded reading, and writing that keeps what it can.

YAML is read by the safe loader, without duplicate keys, which it would accept in silence. Aliases may repeat a
value; what they expand to is bounded, since a few lines can stand for billions of elements.
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, Literal

import yaml

from ottod.errors import ToolError

Format = Literal["json", "yaml"]
MAX_ELEMENTS = 200_000
"""Elements of a document with all aliases expanded."""
MAX_DEPTH = 100


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, without duplicate keys."""


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
            continue
        if (key_node.tag, key_node.value) in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key_node.value!r}", key_node.start_mark
            )
        seen.add((key_node.tag, key_node.value))
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _strict_mapping)


def format_of(path: str) -> Format:
    """By the file's name. Raises ToolError."""
    if path.endswith((".json", ".jsonc", ".ipynb")):
        return "json"
    if path.endswith((".yaml", ".yml")):
        return "yaml"
    raise ToolError(f"{path} ends in neither .json nor .yaml; set format", code="bad_format")


def load(text: str, kind: Format) -> Any:
    """The value of one document. Raises ToolError with line and column."""
    try:
        value = _load_json(text) if kind == "json" else _load_yaml(text)
    except RecursionError as error:
        raise ToolError("the document is nested too deeply", code="bad_document") from error
    _check_bounds(value)
    return value


def dump(value: Any, kind: Format, *, indent: int | str = 2) -> str:
    """The value as a document that ends in a newline."""
    if kind == "json":
        return json.dumps(_jsonable(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    text: str = yaml.dump(
        value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100
    )
    return text.removesuffix("...\n")


def indent_of(text: str) -> int | str:
    """How a JSON text is indented; 2 if it is not."""
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return 2 if not found else found[1] if "\t" in found[1] else len(found[1])


def replace_scalar(text: str, steps: tuple[str | int, ...], new: Any) -> str | None:
    """A YAML text with one existing scalar replaced and all else untouched; None if that is not possible."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for step in steps:
        if (
            isinstance(node, yaml.SequenceNode)
            and isinstance(step, int)
            and -len(node.value) <= step < len(node.value)
        ):
            node = node.value[step]
        elif isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == str(step)), None)
        else:
            return None
    is_block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    if not isinstance(node, yaml.ScalarNode) or is_block or isinstance(new, dict | list):
        return None
    # Flow style on one line is valid wherever a scalar stood.
    written = yaml.dump([new], Dumper=_PlainDumper, default_flow_style=True, allow_unicode=True, width=1 << 30)
    return text[: node.start_mark.index] + written.strip()[1:-1] + text[node.end_mark.index :]


class _PlainDumper(yaml.SafeDumper):
    """Without anchors: a reader of the file would not expect what it did not write."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quote_breaks(dumper: _PlainDumper, text: str) -> yaml.ScalarNode:
    """Unicode's own line breaks survive only between double quotes; the dumper would write them plain."""
    style = '"' if any(each in text for each in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_PlainDumper.add_representer(str, _quote_breaks)


def _load_json(text: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise ToolError(f"duplicate key {name!r}", code="bad_document")
                seen.add(name)
        return found

    def no_constant(name: str) -> Any:
        raise ToolError(f"{name} is not JSON", code="bad_document")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise ToolError(
            f"not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}", code="bad_document"
        ) from error
    except ValueError as error:
        raise ToolError(f"not valid JSON: {error}", code="bad_document") from error


def _load_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ToolError(f"not valid YAML: {where}{error.problem or error.context}", code="bad_document") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ToolError(f"not valid YAML: {error}", code="bad_document") from error


def _check_bounds(value: Any) -> None:
    """Counts with aliases expanded, as everything that is done with the value would."""
    left = MAX_ELEMENTS
    pending = [(value, 0)]
    while pending:
        each, depth = pending.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ToolError(
                f"the document has more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels", code="too_large"
            )
        if isinstance(each, dict):
            pending.extend((child, depth + 1) for child in each.values())
        elif isinstance(each, list | set | tuple):
            pending.extend((child, depth + 1) for child in each)


def _jsonable(value: Any) -> Any:
    """YAML knows more types than JSON: dates become ISO text, keys become text. Raises ToolError for the rest."""
    match value:
        case dict():
            return {_json_key(key): _jsonable(child) for key, child in value.items()}
        case list() | tuple():
            return [_jsonable(child) for child in value]
        case datetime.date() | datetime.time():
            return value.isoformat()
        case float() if value != value or value in (float("inf"), float("-inf")):
            raise ToolError(f"{value} cannot be written as JSON", code="bad_document")
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise ToolError(f"a {type(value).__name__} cannot be written as JSON", code="bad_document")


def _json_key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(_jsonable(key))
