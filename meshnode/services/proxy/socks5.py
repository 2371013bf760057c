"""SOCKS5 (RFC 1928) as a proxy speaks it, without I/O: bytes in, a request and bytes out.

One method is offered, no authentication: what reaches the listener may use it. What is no SOCKS5 is answered where
the protocol has an answer, and is over then. Nothing beyond the request is looked at: it is the client's first data.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum

from meshnode.base.value import frozen

VERSION, VERSION_4 = 5, 4
NO_AUTHENTICATION, NO_METHOD = 0, 0xFF
REFUSED_4 = bytes([0, 91, 0, 0, 0, 0, 0, 0])  # of SOCKS4, to its clients
IPV4, NAME, IPV6 = 1, 3, 4
NOWHERE = bytes([IPV4, 0, 0, 0, 0, 0, 0])  # BND.ADDR and BND.PORT of a stream: it has no address


class Command(IntEnum):
    """What a client asks for."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class Reply(IntEnum):
    """What a client is answered (RFC 1928, section 6)."""

    SUCCEEDED = 0
    FAILED = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


@frozen
class Request:
    """A client's request: a command, and the host (a name, or an address as text) and port that it is about."""

    command: int
    host: str
    port: int


def reply(code: Reply, bound: bytes = NOWHERE) -> bytes:
    """Return an answer to a request; ``bound`` is an address type, an address and a port, encoded."""
    return bytes([VERSION, code, 0]) + bound


class Handshake:
    """A client's greeting and request.

    Attributes:
        output: Bytes that are to be sent; the reader takes them out.
        request: The request, once it is complete.
        rest: What came behind the request.
        error: Why there will be no request; "" until then.
    """

    __slots__ = ("_buffer", "_greeted", "error", "output", "request", "rest")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._greeted = False
        self.output = bytearray()
        self.request: Request | None = None
        self.rest = b""
        self.error = ""

    @property
    def is_over(self) -> bool:
        """True once there is a request, or will be none."""
        return self.request is not None or bool(self.error)

    def receive(self, data: bytes) -> None:
        """Take what the client has sent. At most 515 bytes are held, and what ``data`` has beyond the request."""
        self._buffer += data
        if not self.is_over and not self._greeted:
            self._greet()
        if not self.is_over and self._greeted:
            self._take_request()

    def _greet(self) -> None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            if buffer[0] == VERSION_4:
                self.output += REFUSED_4
            self.error = f"version {buffer[0]} of SOCKS is not spoken here, only 5"
            return
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return
        methods = bytes(buffer[2 : 2 + buffer[1]])
        del buffer[: 2 + len(methods)]
        self._greeted = NO_AUTHENTICATION in methods
        self.output += bytes([VERSION, NO_AUTHENTICATION if self._greeted else NO_METHOD])
        if not self._greeted:
            self.error = "the client insists on authentication, which this proxy does not have"

    def _take_request(self) -> None:
        buffer = self._buffer
        if len(buffer) < 5:  # as far as the first byte of the address
            return
        version, command, reserved, kind, first = buffer[:5]
        if version != VERSION or reserved:
            self._refuse(Reply.FAILED, "a request is malformed")
            return
        begin, length = (5, first) if kind == NAME else (4, {IPV4: 4, IPV6: 16}.get(kind, 0))
        if not length:
            self._refuse(Reply.ADDRESS_NOT_SUPPORTED, f"an address of type {kind} and no length")
            return
        end = begin + length
        if len(buffer) < end + 2:
            return
        host = host_of(kind, bytes(buffer[begin:end]))
        if host is None:
            self._refuse(Reply.ADDRESS_NOT_SUPPORTED, "a host's name has characters that none has")
            return
        self.request = Request(command, host, int.from_bytes(buffer[end : end + 2], "big"))
        self.rest = bytes(buffer[end + 2 :])
        self._buffer = bytearray()

    def _refuse(self, code: Reply, why: str) -> None:
        self.output += reply(code)
        self.error = why


def host_of(kind: int, raw: bytes) -> str | None:
    """Return a host as text; None for a name with other bytes than visible ASCII: NUL ends names elsewhere."""
    if kind != NAME:
        return str(ipaddress.ip_address(raw))
    return raw.decode() if all(0x21 <= byte < 0x7F for byte in raw) else None
