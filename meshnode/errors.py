"""All errors that a caller can meet. Each is a ``MeshError`` and of one of Python's families (in brackets).

MeshError
  ConfigError          a setting or an argument is wrong [ValueError]
  KeyFileError         a key file cannot be used [OSError]
  InvalidId            text that is no node id [ValueError]
  RecordError          an endpoint record was rejected; ``reason`` says why [ValueError]
    RecordExpired      it was valid once
  NotFound             no node or service of that id or name is known [LookupError]
  NameChanged          a node's name that was used here is another node's now [LookupError]
  NoPathError          a record is known, but no address in it answers; ``attempts`` [ConnectionError]
  PeerIdentityError    another key than the peer's answered [ConnectionError]
  HandshakeTimeout     the peer stopped answering during the handshake; ``attempts`` [TimeoutError]
  PolicyDenied         the peer refuses this node [PermissionError]
  ServiceNotFound      the peer has no such service [ConnectionError]
  ServiceUnavailable   the peer's service does not work now [ConnectionError]
  StreamLimitError     the peer granted no more streams in time [ConnectionError]
  ConnectionLost       the connection or the stream is over [ConnectionError]
    PeerRestarted      because the peer's process has restarted
  TopicClosed          the topic was left [ConnectionError]
  NodeClosed           this node was closed [ConnectionError]
  RateLimited          more gossip entries than other nodes would pass on [BlockingIOError]
  AlreadyRunning       another process runs this home [OSError]
  NotRunning           no process runs this home, or this node was not started [ConnectionError]
  AddressInUse         the listen address is taken [OSError]

ConnectionError, PermissionError, TimeoutError and BlockingIOError are OSErrors; ``errno`` and ``strerror`` are None.
"""

from __future__ import annotations

from enum import Enum


class MeshError(Exception):
    """Root of all errors of this package.

    Attributes:
        code: A stable word for programs, as ``not_found``; the same in ``--json`` output.
        message: What happened, for people.
        hint: What to do next; empty when there is nothing to say.
    """

    code = "mesh_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return ``{"error": {"code", "message", "hint"}}``, as the command line prints it with ``--json``.

        ``code`` is stable, the texts are for people and may change; other attributes of an error are not in it.
        """
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


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


class NotFound(MeshError, LookupError):
    """No source knows a record of that id, or no node a service or node of that name."""

    code = "not_found"


class NameChanged(MeshError, LookupError):
    """A name that was used here is claimed by another node now; it keeps its meaning until a person agrees."""

    code = "name_changed"


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
    """The peer does not admit this node, or does not let it use the service."""

    code = "policy_denied"


class ServiceNotFound(MeshError, ConnectionError):
    """The peer has no such service."""

    code = "service_not_found"


class ServiceUnavailable(MeshError, ConnectionError):
    """The peer has the service, but what is behind it does not answer."""

    code = "service_unavailable"


class StreamLimitError(MeshError, ConnectionError):
    """The peer granted no more streams in time; close some, or try later."""

    code = "stream_limit"


class ConnectionLost(MeshError, ConnectionError):
    """The connection or the stream is over, other than by a clean end."""

    code = "connection_lost"


class PeerRestarted(ConnectionLost):
    """The peer's process has restarted; its old connections are gone."""

    code = "peer_restarted"


class TopicClosed(MeshError, ConnectionError):
    """The topic was left, or its node was closed."""

    code = "topic_closed"


class NodeClosed(MeshError, ConnectionError):
    """This node was closed."""

    code = "node_closed"


class RateLimited(MeshError, BlockingIOError):
    """More than other nodes take of one origin; nothing was sent."""

    code = "rate_limited"


class AlreadyRunning(MeshError, OSError):
    """Another process runs this home."""

    code = "already_running"


class NotRunning(MeshError, ConnectionError):
    """No process runs this home, or this node was not started yet."""

    code = "not_running"


class AddressInUse(MeshError, OSError):
    """The listen address is taken."""

    code = "address_in_use"
