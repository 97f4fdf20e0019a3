"""Tool arguments on their way back to a provider.

A conversation holds arguments as the model wrote them, and models sometimes write JSON that does not parse. APIs
and the templates of local servers want an object, so such text is sent wrapped: the model sees what it wrote.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ottod.errors import UNDECODABLE

WRAPPER = "INVALID_JSON"


def arguments_object(text: str) -> dict[str, Any]:
    """The arguments as an object, always."""
    if not text.strip():
        return {}
    try:
        parsed = msgspec.json.decode(text)
    except UNDECODABLE:
        return {WRAPPER: text}
    return parsed if isinstance(parsed, dict) else {WRAPPER: text}


def arguments_text(text: str) -> str:
    """The arguments as JSON text of an object; valid text is passed on unchanged."""
    parsed = arguments_object(text)
    if text.strip() and WRAPPER not in parsed:
        return text
    return msgspec.json.encode(parsed).decode()
