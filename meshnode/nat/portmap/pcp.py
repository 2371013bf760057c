"""The Port Control Protocol's messages (RFC 6887): MAP requests, and the replies to MAP and ANNOUNCE. A codec only."""

from __future__ import annotations

import ipaddress
import struct

from meshnode.base.address import Addr, canonical_host
from meshnode.base.limits import MAX_PCP
from meshnode.base.value import value

VERSION = 2
PORT = 5351  # the router's
ANNOUNCE_PORT = 5350  # of the client, for what the router sends to all hosts of a link (section 14.1)
ANNOUNCE, MAP = 0, 1
RESPONSE = 0x80
UDP = 17
NONCE_LENGTH = 12
SUCCESS = 0
UNSUPPORTED_VERSION = 1
RESULTS = (  # section 7.4
    "SUCCESS",
    "UNSUPP_VERSION",
    "NOT_AUTHORIZED",
    "MALFORMED_REQUEST",
    "UNSUPP_OPCODE",
    "UNSUPP_OPTION",
    "MALFORMED_OPTION",
    "NETWORK_FAILURE",
    "NO_RESOURCES",
    "UNSUPP_PROTOCOL",
    "USER_EX_QUOTA",
    "CANNOT_PROVIDE_EXTERNAL",
    "ADDRESS_MISMATCH",
    "EXCESSIVE_REMOTE_PEERS",
)
_REQUEST = struct.Struct("!BBHI16s")
_RESPONSE = struct.Struct("!BBBBII12x")
_MAP = struct.Struct("!12sB3xHH16s")


@value
class MapReply:
    """A response to MAP. ``lifetime`` in seconds: of the mapping, or of the error when ``result`` is not 0."""

    result: int
    lifetime: int
    epoch: int
    nonce: bytes
    protocol: int
    internal_port: int
    external: Addr


@value
class Announcement:
    """The server's clock alone: a response to ANNOUNCE, asked for or not."""

    result: int
    epoch: int


@value
class Unversed:
    """The server speaks another version; with 0 it speaks NAT-PMP (appendix A)."""

    version: int


def result_name(code: int) -> str:
    """Return the RFC's name of a result code."""
    return RESULTS[code] if code < len(RESULTS) else f"result {code}"


def _pack(host: str) -> bytes:
    """Return 16 bytes; IPv4 as an IPv4-mapped address (section 5)."""
    packed = ipaddress.ip_address(host).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def map_request(nonce: bytes, internal: Addr, suggested: Addr | None, lifetime: int) -> bytes:
    """Return a MAP request for UDP (sections 7.1 and 11.1): 60 bytes. ``lifetime`` 0 deletes the mapping.

    ``internal.host`` must be the address that the request is sent from, or the server answers ADDRESS_MISMATCH.
    """
    if suggested is None:  # the all-zeros address of the family: "any" (section 11.1)
        suggested = Addr("::" if ":" in internal.host else "0.0.0.0", 0)
    header = _REQUEST.pack(VERSION, MAP, 0, lifetime, _pack(internal.host))
    return header + _MAP.pack(nonce, UDP, internal.port, suggested.port, _pack(suggested.host))


def parse(data: bytes) -> MapReply | Announcement | Unversed:
    """Parse a response to MAP or ANNOUNCE (sections 7.2 and 8.3).

    Options behind it are ignored. A response in another version is ``Unversed``. Raises ValueError for a length that is
    not 24 to 1,100 bytes or no multiple of 4, for requests and for other opcodes.
    """
    if len(data) < 4 or not data[1] & RESPONSE:
        raise ValueError("no response")
    if data[0] != VERSION:
        return _other_version(data)
    if not _RESPONSE.size <= len(data) <= MAX_PCP or len(data) % 4:
        raise ValueError("a response has 24 to 1,100 bytes, in fours")
    version, opcode, _, result, lifetime, epoch = _RESPONSE.unpack_from(data)
    if result == UNSUPPORTED_VERSION:
        return Unversed(version)
    if opcode == RESPONSE | ANNOUNCE:
        return Announcement(result, epoch)
    if opcode != RESPONSE | MAP or len(data) < _RESPONSE.size + _MAP.size:
        raise ValueError("neither MAP nor ANNOUNCE")
    nonce, protocol, internal_port, port, host = _MAP.unpack_from(data, _RESPONSE.size)
    external = Addr(canonical_host(str(ipaddress.IPv6Address(host))), port)
    return MapReply(result, lifetime, epoch, nonce, protocol, internal_port, external)


def _other_version(data: bytes) -> Unversed:
    if data[3] != UNSUPPORTED_VERSION:
        raise ValueError("another version without saying so")
    return Unversed(data[0])
