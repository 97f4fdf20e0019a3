"""Answers that may stand in for a model's, for all sessions of one agent: kept by root, which alone knows whose.

What a worker calls identical is its own word, so it is heard only among sessions of the very same agent: the digest
of the agent is part of the key.
"""

from __future__ import annotations

import hashlib

from ottod.errors import RefusedError, StorageError
from ottod.protocol.worker_requests import MAX_ANSWER_BYTES
from ottod.root.context import RootContext
from ottod.root.session_table import Session
from ottod.storage.answer_cache import AnswerCache

DIRECTORY = "answers"


class Answers:
    """All answers of this root."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._cache = AnswerCache(context.sessions_dir.parent / DIRECTORY)

    async def recall(self, session: Session, digest: str) -> bytes:
        """An answer that was kept; empty if there is none, or the agent wants none. Raises StorageError."""
        if not _wants(session):
            return b""
        try:
            return await self._c.in_thread(self._cache.get, _key(session, digest))
        except OSError as error:
            raise StorageError(f"earlier answers cannot be read: {error.strerror}") from error

    async def keep(self, session: Session, digest: str, answer: bytes) -> None:
        """Keeps an answer, if the agent asked for that. Raises StorageError, RefusedError."""
        if not _wants(session) or not answer:
            return
        if len(answer) > MAX_ANSWER_BYTES:
            raise RefusedError(f"an answer of {len(answer)} bytes; {MAX_ANSWER_BYTES} are kept", code="too_large")
        try:
            await self._c.in_thread(self._cache.put, _key(session, digest), answer)
        except OSError as error:
            raise StorageError(f"an answer cannot be kept: {error.strerror}") from error


def _wants(session: Session) -> bool:
    return session.plan is not None and "cache" in session.plan.spec.fallback


def _key(session: Session, digest: str) -> str:
    assert session.plan is not None
    return hashlib.sha256(f"{session.plan.spec.digest}/{digest}".encode()).hexdigest()
