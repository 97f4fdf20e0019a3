"""Specs that were made in Python, as data that can be checked as a file's is."""

from __future__ import annotations

from typing import Any

import msgspec

from ottod.errors import ConfigError
from ottod.settings.yaml_source import MAX_DEPTH, MAX_NODES, Source


def spec_source(spec: msgspec.Struct) -> Source:
    """The spec's own data, without lines. It may be anything: structs do not check their fields when they are made.

    Raises: ConfigError for what is not data, or deeper or larger than a file may be.
    """
    try:
        data = msgspec.to_builtins(spec, str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the spec holds something that is not data: {error}"
        raise ConfigError(message, mend="use strings and numbers") from error
    return Source("", _as_lists(data), None)


def _as_lists(data: Any) -> Any:
    """Plain data with lists for tuples, as YAML gives it."""
    left = MAX_NODES

    def convert(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            raise ConfigError(
                f"the spec is nested more than {MAX_DEPTH} deep or has more than {MAX_NODES} values",
                mend="make it flatter or shorter",
            )
        if isinstance(value, dict):
            return {key: convert(inner, depth + 1) for key, inner in value.items()}
        return [convert(inner, depth + 1) for inner in value] if isinstance(value, list | tuple) else value

    return convert(data, 0)
