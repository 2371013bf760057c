"""NAT-PMP's messages (RFC 6886): the outside address and UDP mappings. A codec only."""

from __future__ import annotations

import ipaddress
import struct

from meshnode.base.value import value

VERSION = 0
ADDRESS, MAP_UDP = 0, 1
RESPONSE = 0x80
SUCCESS = 0
RESULTS = (  # section 3.5
    "SUCCESS",
    "UNSUPPORTED_VERSION",
    "NOT_AUTHORIZED",
    "NETWORK_FAILURE",
    "OUT_OF_RESOURCES",
    "UNSUPPORTED_OPCODE",
)
_HEADER = struct.Struct("!BBHI")
_MAP_REQUEST = struct.Struct("!BBHHHI")
_MAP_REPLY = struct.Struct("!HHI")


@value
class AddressReply:
    """The router's outside address; also what it announces to all hosts of a link (section 3.2.1)."""

    result: int
    epoch: int
    host: str | None


@value
class MapReply:
    """A response to a UDP mapping request; ``lifetime`` in seconds."""

    result: int
    epoch: int
    internal_port: int
    external_port: int
    lifetime: int


def result_name(code: int) -> str:
    """Return the RFC's name of a result code."""
    return RESULTS[code] if code < len(RESULTS) else f"result {code}"


def address_request() -> bytes:
    """Return a request for the outside address (section 3.2)."""
    return bytes([VERSION, ADDRESS])


def map_request(internal_port: int, suggested_port: int, lifetime: int) -> bytes:
    """Return a UDP mapping request (section 3.3).

    To delete one, ``suggested_port`` and ``lifetime`` are 0 (3.4).
    """
    return _MAP_REQUEST.pack(VERSION, MAP_UDP, 0, internal_port, suggested_port, lifetime)


def parse(data: bytes) -> AddressReply | MapReply:
    """Parse a response to a request for the address or for a UDP mapping.

    An error may come without the rest of its message (section 3.5): ``host`` is None then, and ports and lifetime are
    0. Raises ValueError for anything else.
    """
    if len(data) < _HEADER.size:
        raise ValueError("a response has at least 8 bytes")
    version, opcode, result, epoch = _HEADER.unpack_from(data)
    if version != VERSION or not opcode & RESPONSE:
        raise ValueError("no response")
    rest = data[_HEADER.size :]
    if opcode == RESPONSE | ADDRESS:
        if result != SUCCESS:
            return AddressReply(result, epoch, None)
        if len(rest) != 4:
            raise ValueError("an address has 4 bytes")
        return AddressReply(result, epoch, str(ipaddress.IPv4Address(rest)))
    if opcode == RESPONSE | MAP_UDP:
        if len(rest) == _MAP_REPLY.size:
            return MapReply(result, epoch, *_MAP_REPLY.unpack(rest))
        if result != SUCCESS:
            return MapReply(result, epoch, 0, 0, 0)
        raise ValueError("a mapping has 8 bytes")
    raise ValueError("neither an address nor a UDP mapping")
