"""Every error that Otto expects.

The tree:

    OttoError                      something a user or a peer can mend; carries a stable code
    ├── ConfigError                a file or option is wrong; names file, line, column and the mend
    ├── ProtocolError
    │   ├── LocalProtocolError     we were about to break the protocol: our bug
    │   └── RemoteProtocolError    the peer broke it: drop the message, never the process
    ├── StorageError               ring, journal or database cannot be read or written
    ├── ProviderError              a model provider refused, failed or vanished
    ├── ToolError                  a tool could not do what the model asked
    ├── RefusedError               valid, understood, and not allowed or not possible now
    └── UnreachableError           no daemon answers at the endpoint

Anything else that is raised is a defect: the process that meets it crashes, and its supervisor acts.
On the wire a failure is a value (`Failure`), never an exception.
"""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was asked for, for text in them that is none, and for depth."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A failure as a value. `code` is stable and meant for programs, `message` is free text for people.

    `mend` says what would help, `retry_after_s` (seconds) when the peer said so.
    """

    code: str
    message: str
    retryable: bool = False
    mend: str = ""
    retry_after_s: float | None = None


class OttoError(Exception):
    """The base of every expected error. `code` is stable, `mend` tells the reader what to do."""

    code = "error"

    def __init__(self, message: str, *, mend: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        if code:
            self.code = code

    def failure(self) -> Failure:
        """The same thing, ready for the wire."""
        return Failure(code=self.code, message=self.message, mend=self.mend)


class ConfigError(OttoError):
    """A configuration file is wrong. `line` and `column` count from 1; 0 means unknown."""

    code = "bad_config"

    def __init__(self, message: str, *, file: str = "", line: int = 0, column: int = 0, mend: str = "") -> None:
        self.file, self.line, self.column = file, line, column
        where = f"{file}:{line}:{column}: " if file and line else f"{file}: " if file else ""
        super().__init__(where + message, mend=mend)


class ProtocolError(OttoError):
    """Bytes or messages that do not follow the protocol."""

    code = "protocol_error"


class LocalProtocolError(ProtocolError):
    """This process was about to send something invalid."""

    code = "local_protocol_error"


class RemoteProtocolError(ProtocolError):
    """The peer sent something invalid."""

    code = "bad_message"


class StorageError(OttoError):
    """A store on disk cannot be used."""

    code = "storage"


class ProviderError(OttoError):
    """A model call failed. The code says how:

    `rate_limited, overloaded, auth, bad_request, context_too_long, timeout, connection, cut, malformed, refused`.
    `has_begun`: the provider had taken the request, and may have worked on it: it is not free.
    """

    code = "provider"

    def __init__(
        self,
        message: str,
        *,
        code: str = "provider",
        retryable: bool = False,
        retry_after_s: float | None = None,
        mend: str = "",
        has_begun: bool = False,
    ) -> None:
        super().__init__(message, mend=mend, code=code)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.has_begun = has_begun

    def failure(self) -> Failure:
        return Failure(
            code=self.code,
            message=self.message,
            retryable=self.retryable,
            mend=self.mend,
            retry_after_s=self.retry_after_s,
        )


class ToolError(OttoError):
    """A tool refuses or fails; the text goes to the model as the call's result."""

    code = "tool"


class RefusedError(OttoError):
    """The request is understood and will not be carried out."""

    code = "refused"


class UnreachableError(OttoError):
    """No daemon answers."""

    code = "unreachable"
