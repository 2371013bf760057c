"""What a client is answered for each error: in SOCKS5, in HTTP, and in ``Proxy-Status`` (RFC 9209). No I/O."""

from __future__ import annotations

from meshnode.base.value import frozen
from meshnode.errors import (
    ConfigError,
    HandshakeTimeout,
    InvalidId,
    MeshError,
    NameChanged,
    NameDisputed,
    NoPathError,
    NotFound,
    PeerIdentityError,
    PolicyDenied,
    ServiceNotFound,
    ServiceUnavailable,
    StreamLimitError,
)
from meshnode.services.proxy.socks5 import Reply


@frozen
class Answer:
    """An error in the words of each protocol."""

    socks: Reply
    status: int
    proxy_status: str


OTHER = Answer(Reply.FAILED, 502, "proxy_internal_error")
ANSWERS: tuple[tuple[type[MeshError], Answer], ...] = (
    (NotFound, Answer(Reply.HOST_UNREACHABLE, 502, "dns_error")),
    (NameDisputed, Answer(Reply.HOST_UNREACHABLE, 502, "dns_error")),
    (NameChanged, Answer(Reply.HOST_UNREACHABLE, 502, "dns_error")),
    (InvalidId, Answer(Reply.NOT_ALLOWED, 403, "http_request_denied")),
    (ConfigError, Answer(Reply.NOT_ALLOWED, 403, "http_request_denied")),
    (PolicyDenied, Answer(Reply.NOT_ALLOWED, 403, "http_request_denied")),
    (PeerIdentityError, Answer(Reply.HOST_UNREACHABLE, 502, "tls_certificate_error")),
    (NoPathError, Answer(Reply.HOST_UNREACHABLE, 504, "destination_ip_unroutable")),
    (HandshakeTimeout, Answer(Reply.TIMED_OUT, 504, "connection_timeout")),
    (ServiceNotFound, Answer(Reply.REFUSED, 502, "connection_refused")),
    (ServiceUnavailable, Answer(Reply.REFUSED, 503, "destination_unavailable")),
    (StreamLimitError, Answer(Reply.FAILED, 503, "connection_limit_reached")),
)  # the first row whose class it is counts


def answer_to(error: MeshError) -> Answer:
    """Return the row of an error."""
    return next((answer for kind, answer in ANSWERS if isinstance(error, kind)), OTHER)
