"""Root ↔ zygote, over a SEQPACKET socket pair."""

from __future__ import annotations

from ottod.protocol.codec import Codec
from ottod.protocol.wire import Wire


class Fork(Wire, frozen=True, kw_only=True, tag="fork"):
    """Fork one worker; its private channel comes along as a file descriptor."""

    ticket: int


class Forked(Wire, frozen=True, kw_only=True, tag="forked"):
    """The worker's pid; it is root's child by now."""

    ticket: int
    pid: int


class ForkFailed(Wire, frozen=True, kw_only=True, tag="fork_failed"):
    """The fork was refused by the system."""

    ticket: int
    message: str


class ZygoteReady(Wire, frozen=True, kw_only=True, tag="ready"):
    """Everything is imported. `import_ms` is how long it took."""

    pid: int
    generation: int
    import_ms: float


zygote_requests: Codec[Fork] = Codec(Fork, name="zygote request")
zygote_replies: Codec[Forked | ForkFailed | ZygoteReady] = Codec(
    Forked | ForkFailed | ZygoteReady, name="zygote reply"
)
