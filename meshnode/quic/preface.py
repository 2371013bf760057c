"""What comes first on a stream: the opener's header, the acceptor's status byte, and the error that a status means.

The opener sends 2 bytes of length and CBOR ``[service]``; the acceptor answers with one byte before its first
application byte. Both are told apart from application data by ``Stream``, which knows what it still awaits.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from functools import lru_cache

from meshnode.base.limits import MAX_RULE_NAME, MAX_SERVICE_NAME
from meshnode.base.wire import WireError, decode, encode
from meshnode.errors import MeshError, PolicyDenied, ServiceNotFound, ServiceUnavailable

MAX_NAMES = 256  # services whose headers are kept, each way: at most 200 kB


class StreamStatus(IntEnum):
    """First byte of the acceptor."""

    ACCEPTED = 0
    NO_SUCH_SERVICE = 1
    DENIED = 2
    UNAVAILABLE = 3


ASK = "\0has/"  # before a service's name: only ask whether it is there; no service begins with a zero
FLOW = "\0flow/"  # before a service's name: a flow of datagrams, which the stream opens and ends


class Purpose(Enum):
    """What a stream is for, by the prefix of the service's name in its header."""

    USE = ""
    ASK = ASK
    FLOW = FLOW


def purpose_of(named: str) -> tuple[Purpose, str]:
    """Return what a stream is for and the service's name, as its header names both."""
    if not named.startswith("\0"):
        return Purpose.USE, named  # nearly all, and this is asked several times a stream
    for purpose in (Purpose.ASK, Purpose.FLOW):
        if named.startswith(purpose.value):
            return purpose, named[len(purpose.value) :]
    return Purpose.USE, named


class Preface(Enum):
    """What an opener, or an acceptor that has the header, still awaits of its peer before application data."""

    STATUS = auto()
    NOTHING = auto()


class HeaderReader:
    """The header of a stream, as it comes to the acceptor."""

    def __init__(self) -> None:
        self._head = b""

    def feed(self, data: bytes) -> tuple[str, int, bytes] | None:
        """Return service, size of the header and what follows it; None while it is incomplete.

        Raises WireError.
        """
        head = self._head = self._head + data
        size = int.from_bytes(head[:2], "big")
        if len(head) >= 2 and size > MAX_SERVICE_NAME + 8:
            raise WireError("stream header too long")
        if len(head) < 2 + size:
            return None
        return _named_in(head[2 : 2 + size]), 2 + size, head[2 + size :]


@lru_cache(MAX_NAMES)
def _named_in(body: bytes) -> str:
    """Return the service that a header's CBOR names. Raises WireError."""
    fields = decode(body, MAX_SERVICE_NAME + 8)
    if not isinstance(fields, list) or len(fields) != 1 or not isinstance(fields[0], str) or not fields[0]:
        raise WireError("stream header malformed")
    return fields[0]


@lru_cache(MAX_NAMES)
def encode_header(service: str) -> bytes:
    """Return the opener's header for ``service``: 2 bytes of length, then CBOR ``[service]``.

    Raises ValueError for a name that is empty or longer than ``MAX_SERVICE_NAME`` bytes of UTF-8.
    """
    if not service or len(service.encode()) > MAX_SERVICE_NAME:
        raise ValueError(f"a service name has 1 to {MAX_SERVICE_NAME} bytes")
    body = encode([service])
    return len(body).to_bytes(2, "big") + body


def rule_in(told: bytes) -> str:
    """Return the name of the rule that stands behind a refusal; "" when there is none, or no text."""
    try:
        return told[: 4 * MAX_RULE_NAME].decode()[:MAX_RULE_NAME]
    except UnicodeDecodeError:
        return ""


def refusal_error(status: StreamStatus, service: str, told: bytes = b"") -> MeshError | None:
    """Return the opener's error for the acceptor's answer, None when it has accepted.

    ``told`` is what came behind the status: the name of the rule, where the acceptor's policy tells it.
    """
    if status is StreamStatus.NO_SUCH_SERVICE:
        return ServiceNotFound(f"the peer has no service {service!r}", hint="`meshnode status` there lists what it has")
    if status is StreamStatus.DENIED:
        rule = rule_in(told)
        return PolicyDenied(
            f"the peer does not allow us to use this service{f' (rule {rule})' if rule else ''}",
            hint="ask its owner for `--allow` with your id",
            rule=rule,
        )
    if status is StreamStatus.UNAVAILABLE:
        return ServiceUnavailable(
            f"the service {service!r} is there, but its target does not answer",
            hint="does the program that it exposes run there? Its node's log names the target",
        )
    return None
