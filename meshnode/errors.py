"""All errors that a caller can meet.

MeshError
  ConfigError          a setting is wrong
  KeyFileError         a key file cannot be read, or is not private
  InvalidId            text that is no node id (also a ValueError)
  RecordError          an endpoint record was rejected; ``reason`` says why
    RecordExpired      it was valid once
  NotFound             no source knows a record of that id
  NoPathError          a record is known, but no address in it answers; ``attempts``
  PeerIdentityError    somebody else's key answered
  NameChanged          a node's name that was used here is another node's now
  PolicyDenied         the peer refuses us
  ServiceNotFound      the peer has no such service
  ServiceUnavailable   the peer's service does not work now
  ConnectionLost       the connection is over
    PeerRestarted      because the peer's process began anew
  HandshakeTimeout     the peer stopped answering during the handshake; ``attempts``
  StreamLimitError     the peer grants no more streams now
  TopicClosed          the topic was left
  RateLimited          more gossip entries than other nodes would pass on
  NodeClosed           this node was closed
  AlreadyRunning       another process runs this home
  NotRunning           no process runs this home
  AddressInUse         the listen address is taken
"""

from __future__ import annotations

from enum import Enum


class MeshError(Exception):
    """Root of the tree: a stable ``code``, a message for people, and a hint what to do next."""

    code = "mesh_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return ``{"error": {"code", "message", "hint"}}``."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class ConfigError(MeshError):
    """A setting is wrong."""

    code = "config_error"


class KeyFileError(MeshError):
    """A key file cannot be used."""

    code = "key_file_error"


class InvalidId(MeshError, ValueError):
    """Text or bytes that are no node id."""

    code = "invalid_id"


class RecordReject(Enum):
    """Why a record was not accepted."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    NOT_CANONICAL = "not_canonical"
    FORGED = "forged"
    EXPIRED = "expired"
    FUTURE = "future"
    WRONG_ID = "wrong_id"


class RecordError(MeshError):
    """An endpoint record was rejected."""

    code = "record_error"

    def __init__(self, reason: RecordReject, message: str = "") -> None:
        super().__init__(message or f"endpoint record rejected: {reason.value}")
        self.reason = reason


class RecordExpired(RecordError):
    """The record was valid once."""

    code = "record_expired"


class NotFound(MeshError):
    """No source knows a record of that id."""

    code = "not_found"


class NoPathError(MeshError):
    """No address of the peer answers."""

    code = "no_path"

    def __init__(self, message: str, *, hint: str = "", attempts: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts: list[tuple[str, str]] = attempts or []


class PeerIdentityError(MeshError):
    """Somebody else's key answered at the dialled address."""

    code = "peer_identity"


class PolicyDenied(MeshError):
    """The peer refuses us."""

    code = "policy_denied"


class ServiceNotFound(MeshError):
    """The peer has no such service."""

    code = "service_not_found"


class ServiceUnavailable(MeshError):
    """The peer has the service, but what is behind it does not answer."""

    code = "service_unavailable"


class ConnectionLost(MeshError, ConnectionError):
    """The connection or the stream is over."""

    code = "connection_lost"


class PeerRestarted(ConnectionLost):
    """The peer's process began anew; its old connections are gone."""

    code = "peer_restarted"


class HandshakeTimeout(MeshError):
    """The peer stopped answering during the handshake."""

    code = "handshake_timeout"

    def __init__(self, message: str, *, hint: str = "", attempts: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts: list[tuple[str, str]] = attempts or []


class StreamLimitError(MeshError):
    """The peer grants no more streams now."""

    code = "stream_limit"


class NameChanged(MeshError):
    """A name that was used here is claimed by another node now; it keeps its meaning until a person agrees."""

    code = "name_changed"


class TopicClosed(MeshError):
    """The topic was left, or its node was closed."""

    code = "topic_closed"


class RateLimited(MeshError):
    """More than other nodes take of one origin; nothing was sent."""

    code = "rate_limited"


class NodeClosed(MeshError):
    """This node was closed."""

    code = "node_closed"


class AlreadyRunning(MeshError):
    """Another process runs this home."""

    code = "already_running"


class NotRunning(MeshError):
    """No process runs this home."""

    code = "not_running"


class AddressInUse(MeshError):
    """The listen address is taken."""

    code = "address_in_use"
