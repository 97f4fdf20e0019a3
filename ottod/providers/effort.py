"""A thinking budget in tokens as the effort level that current APIs take instead."""

from __future__ import annotations

from typing import Literal

Effort = Literal["low", "medium", "high"]


def effort(thinking_tokens: int) -> Effort:
    """Up to 2,048 tokens are low effort, up to 8,192 medium, more is high."""
    if thinking_tokens <= 2048:
        return "low"
    return "medium" if thinking_tokens <= 8192 else "high"
