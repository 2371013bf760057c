"""All errors that a caller can meet. Each is a ``MeshError`` and of one of Python's families (in brackets).

MeshError
  ConfigError          a setting or an argument is wrong [ValueError]
  KeyFileError         a key file cannot be used [OSError]
  InvalidId            text that is no node id [ValueError]
  RecordError          an endpoint record was rejected; ``reason`` says why [ValueError]
    RecordExpired      it was valid once
  GrantError           a grant was rejected; ``reason`` says why [ValueError]
  NotFound             no node or service of that id or name is known [LookupError]
  NameChanged          a name or service that was used here is another node's now [LookupError]
  NameDisputed         several nodes claim a name, or offer a service, that was never used here [LookupError]
  NoPathError          a record is known, but no address in it answers; ``attempts`` [ConnectionError]
  PeerIdentityError    another key than the peer's answered [ConnectionError]
  HandshakeTimeout     the peer stopped answering during the handshake; ``attempts`` [TimeoutError]
  PolicyDenied         the peer refuses this node [PermissionError]
  ServiceNotFound      the peer has no such service [ConnectionError]
  ServiceUnavailable   the peer's service does not work now [ConnectionError]
  DatagramsUnsupported the peer's version has no datagrams [ConnectionError]
  StreamLimitError     the peer granted no more streams in time [ConnectionError]
  ConnectionLost       the connection or the stream is over [ConnectionResetError]
    PeerRestarted      because the peer's process has restarted
    PeerSilent         because nothing was heard of the peer for the idle timeout
  FlowClosed           a flow of datagrams was closed [ConnectionError]
  StreamMisused        two coroutines read at once, or a write comes after write_eof [RuntimeError]
  LibraryMissing       a library that an adapter is for is missing, or of another version [ImportError]
  Unsupported          something of asyncio's that a mesh stream does not have [NotImplementedError]
  TopicClosed          the topic was left [ConnectionError]
  RateLimited          more gossip entries than other nodes would pass on [BlockingIOError]
  AlreadyRunning       another process runs this home [OSError]
  NotRunning           no process runs this home, or this node was not started [ConnectionError]
    NodeClosed         this node was closed
  AddressInUse         the listen address is taken [OSError]

ConnectionError, PermissionError, TimeoutError and BlockingIOError are OSErrors; ``errno`` and ``strerror`` are None.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from meshnode.foreign_text import MAX_VISIBLE, visible


class MeshError(Exception):
    """Root of all errors of this package.

    Attributes:
        code: A stable word for programs, as ``not_found``; the same in ``--json`` output.
        message: What happened, for people; in one line, with control characters of other nodes' texts escaped.
        hint: What to do next, as ``message``; empty when there is nothing to say.
    """

    code = "mesh_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = visible(message, MAX_VISIBLE)
        self.hint = visible(hint, MAX_VISIBLE)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Callable[..., MeshError], tuple[type[MeshError], str], dict[str, object]]:
        return _copy_of, (type(self), self.message), vars(self)  # whatever its class is made of

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return ``{"error": {"code", "message", "hint"}}``, as the command line prints it with ``--json``.

        ``code`` is stable, the texts are for people and may change; other attributes of an error are not in it.
        """
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


def _copy_of(kind: type[MeshError], message: str) -> MeshError:
    """Return an error for ``copy`` and ``pickle``, which give it its attributes."""
    error = kind.__new__(kind)
    error.args = (message,)  # those of an OSError are not __new__'s
    return error


class ConfigError(MeshError, ValueError):
    """A setting or an argument is wrong, or cannot be had on this host."""

    code = "config_error"


class KeyFileError(MeshError, OSError):
    """A key file is unreadable, readable by others, damaged, or needs its passphrase."""

    code = "key_file_error"


class InvalidId(MeshError, ValueError):
    """Text or bytes that are no node id."""

    code = "invalid_id"


class RecordReject(Enum):
    """Why a record was not accepted."""

    OVERSIZED = "oversized"
    """It is longer than 1,000 bytes."""
    MALFORMED = "malformed"
    """It does not have the fields of a record."""
    NOT_CANONICAL = "not_canonical"
    """Its fields are not encoded in the one form that counts."""
    FORGED = "forged"
    """The signature is not that of the node's key."""
    EXPIRED = "expired"
    """Its time is over."""
    FUTURE = "future"
    """It was signed later than now: a clock is wrong."""
    WRONG_ID = "wrong_id"
    """It is another node's than the one that was asked for."""


class RecordError(MeshError, ValueError):
    """An endpoint record was rejected.

    Attributes:
        reason: Why, as a ``RecordReject``.
    """

    code = "record_error"

    def __init__(self, reason: RecordReject, message: str = "") -> None:
        super().__init__(message or f"endpoint record rejected: {reason.value}")
        self.reason = reason


class RecordExpired(RecordError):
    """The record was valid once."""

    code = "record_expired"


class GrantReject(Enum):
    """Why the grants of a node were not accepted."""

    MISSING = "missing"
    """There is none."""
    TOO_LONG = "too_long"
    """More follow each other than a chain may have."""
    OVERSIZED = "oversized"
    """One is longer than 1,024 bytes."""
    MALFORMED = "malformed"
    """One does not have the fields of a grant."""
    NOT_CANONICAL = "not_canonical"
    """One is not encoded in the one form that counts."""
    OTHER_KEY = "other_key"
    """They are for another key than the one that was proven."""
    OTHER_AUTHORITY = "other_authority"
    """They begin at another authority than this mesh's."""
    BROKEN = "broken"
    """One was not made by the key that the one before it is for."""
    NOT_YET = "not_yet"
    """Their time has not begun."""
    EXPIRED = "expired"
    """Their time is over."""
    NO_DELEGATE = "no_delegate"
    """One was made by a key that may give none."""
    WIDER = "wider"
    """One gives a role, a service or a right that its maker may not give."""
    OUTLIVES = "outlives"
    """One begins before, or lasts longer than, the grant of its maker."""
    TOO_LATE = "too_late"
    """One was made when its maker's right to make some was over."""
    TOO_DEEP = "too_deep"
    """One lets more follow than its maker may."""
    INVITATION = "invitation"
    """They are those of an invitation, whose key makes grants and is no node."""
    USED_UP = "used_up"
    """The invitation was used by other nodes too often."""
    REVOKED = "revoked"
    """One, or the key that made it, was revoked."""
    FORGED = "forged"
    """A signature is not that of the key that it names."""


GRANT_TEXTS = {
    GrantReject.MISSING: "it has no grant of this mesh's authority",
    GrantReject.OTHER_KEY: "its grant is for another key",
    GrantReject.OTHER_AUTHORITY: "its grant is of another authority",
    GrantReject.NOT_YET: "its grant is not valid yet",
    GrantReject.EXPIRED: "its grant has expired",
    GrantReject.TOO_LATE: "its invitation had expired when it joined",
    GrantReject.INVITATION: "its key is that of a ticket, not of a node",
    GrantReject.USED_UP: "its invitation was used by other nodes already",
    GrantReject.REVOKED: "its grant was revoked",
}


class GrantError(MeshError, ValueError):
    """The grants of a node were rejected.

    Attributes:
        reason: Why, as a ``GrantReject``.
    """

    code = "grant_error"

    def __init__(self, reason: GrantReject, message: str = "", *, hint: str = "") -> None:
        text = GRANT_TEXTS.get(reason) or f"its grant is not valid: {reason.value.replace('_', ' ')}"
        super().__init__(message or text, hint=hint)
        self.reason = reason


class NotFound(MeshError, LookupError):
    """No source knows a record of that id, or no node a service or node of that name."""

    code = "not_found"


class NameChanged(MeshError, LookupError):
    """A name or a service that was used here is another node's now; it keeps its meaning until a person agrees."""

    code = "name_changed"


class NameDisputed(MeshError, LookupError):
    """Several nodes claim a name, or offer a service, that was never used here: a person has to say which one is meant.

    Attributes:
        claimants: The ids of these nodes as text, sorted.
    """

    code = "name_disputed"

    def __init__(self, message: str, *, claimants: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.claimants = claimants


class NoPathError(MeshError, ConnectionError):
    """No address of the peer answers.

    Attributes:
        attempts: Each address that was tried, with its outcome.
    """

    code = "no_path"

    def __init__(self, message: str, *, hint: str = "", attempts: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts: list[tuple[str, str]] = attempts or []


class PeerIdentityError(MeshError, ConnectionError):
    """Another key than the peer's answered at the dialled address."""

    code = "peer_identity"


class HandshakeTimeout(MeshError, TimeoutError):
    """The peer stopped answering during the handshake.

    Attributes:
        attempts: Each address that was tried, with its outcome.
    """

    code = "handshake_timeout"

    def __init__(self, message: str, *, hint: str = "", attempts: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts: list[tuple[str, str]] = attempts or []


class PolicyDenied(MeshError, PermissionError):
    """The peer does not admit this node, or does not let it use the service.

    Attributes:
        rule: The name of the rule that says so, "" unless the policy there tells it.
    """

    code = "policy_denied"

    def __init__(self, message: str, *, hint: str = "", rule: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rule = visible(rule, MAX_VISIBLE)


class ServiceNotFound(MeshError, ConnectionError):
    """The peer has no such service."""

    code = "service_not_found"


class ServiceUnavailable(MeshError, ConnectionError):
    """The peer has the service, but what is behind it does not answer."""

    code = "service_unavailable"


class StreamLimitError(MeshError, ConnectionError):
    """The peer granted no more streams in time; close some, or try later."""

    code = "stream_limit"


class DatagramsUnsupported(MeshError, ConnectionError):
    """The peer runs a version of meshnode that takes no datagrams; streams to it work."""

    code = "datagrams_unsupported"


class ConnectionLost(MeshError, ConnectionResetError):
    """The connection or the stream is over, other than by a clean end."""

    code = "connection_lost"


class PeerRestarted(ConnectionLost):
    """The peer's process has restarted; its old connections are gone."""

    code = "peer_restarted"


class PeerSilent(ConnectionLost):
    """Nothing was heard of the peer for ``Config.idle_timeout``, or this node slept longer."""

    code = "peer_silent"


class FlowClosed(MeshError, ConnectionError):
    """A flow of datagrams was closed, here or by the peer: its clean end."""

    code = "flow_closed"


class StreamMisused(MeshError, RuntimeError):
    """Two coroutines read one stream at once, or something was written after ``write_eof``."""

    code = "stream_misused"


class Unsupported(MeshError, NotImplementedError):
    """Something of asyncio's that a mesh stream does not have, as ``start_tls``."""

    code = "unsupported"


class LibraryMissing(MeshError, ImportError):
    """The library of an adapter is not installed, or has a version that ``meshnode.ext`` is not made for."""

    code = "library_missing"


class TopicClosed(MeshError, ConnectionError):
    """The topic was left, or its node was closed."""

    code = "topic_closed"


class RateLimited(MeshError, BlockingIOError):
    """More than other nodes take of one origin; nothing was sent."""

    code = "rate_limited"


class AlreadyRunning(MeshError, OSError):
    """Another process runs this home."""

    code = "already_running"


class NotRunning(MeshError, ConnectionError):
    """No process runs this home, or this node was not started yet."""

    code = "not_running"


class NodeClosed(NotRunning):
    """This node was closed."""

    code = "node_closed"


class AddressInUse(MeshError, OSError):
    """The listen address is taken."""

    code = "address_in_use"
