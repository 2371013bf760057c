"""PING and PONG: the sealed path probes, byte for byte (docs/reference/wire-format.md)."""

from __future__ import annotations

import hashlib

from meshnode.base.address import Addr, pack_addr, unpack_addr
from meshnode.base.path import Path
from meshnode.base.value import value
from meshnode.paths.effects import EXPAND, MOVED, SEEKING
from meshnode.quic.connection import Connection

PING = 0x01
PONG = 0x02
TX_LENGTH = 8
HANDLE_LENGTH = 8
MIN_PING = 32  # so that a PONG with an IPv6 address (28 bytes) is never longer than what it answers
NO_HANDLE = bytes(HANDLE_LENGTH)

ECHO = 4
NO_CONN, EXPANDED = 1, 2
PING_FLAGS = {MOVED: "moved", SEEKING: "seeking", ECHO: "echo", EXPAND: "expand"}
PONG_FLAGS = {NO_CONN: "no such connection", EXPANDED: "expanded"}


@value
class Ping:
    """A probe. ``handle`` names the sender's connection to the receiver, zeros when there is none."""

    flags: int
    tx: bytes
    handle: bytes


@value
class Pong:
    """The answer. ``observed`` is the address that the probe was seen to come from; None for a detour."""

    flags: int
    tx: bytes
    observed: Addr | None


def encode_ping(ping: Ping, size: int = MIN_PING) -> bytes:
    """Return a PING body, padded with zeros to ``size`` bytes (at least ``MIN_PING``)."""
    body = bytes([PING, ping.flags]) + ping.tx + ping.handle
    return body.ljust(max(size, MIN_PING), b"\0")


def decode_ping(body: bytes) -> Ping | None:
    """Parse a PING body; None when it is malformed."""
    if len(body) < MIN_PING or any(body[18:MIN_PING]):
        return None
    return Ping(body[1], body[2:10], body[10:18])


def encode_pong(pong: Pong, size: int = 0) -> bytes:
    """Return a PONG body, for a PING with ``EXPAND`` padded with zeros to ``size`` bytes (at least ``MIN_PING``)."""
    observed = pack_addr(pong.observed) if pong.observed is not None else b""
    if not size:
        return bytes([PONG, pong.flags]) + pong.tx + observed
    body = bytes([PONG, pong.flags | EXPANDED]) + pong.tx + bytes([len(observed)]) + observed
    return body.ljust(max(size, MIN_PING), b"\0")


def decode_pong(body: bytes) -> Pong | None:
    """Parse a PONG body; None when it is malformed."""
    if len(body) < 10:
        return None
    observed = body[10:]
    if body[1] & EXPANDED:
        if len(body) < MIN_PING:
            return None
        observed = body[11 : 11 + body[10]]
    try:
        addr = unpack_addr(observed) if observed else None
    except ValueError:
        return None
    return Pong(body[1], body[2:10], addr)


@value
class Pinged:
    """The outcome of one echo.

    Attributes:
        rtt: The round trip in seconds; None when the echo was lost.
        path: The kind of path that it took: ``direct``, ``lan`` or ``relay``.
        endpoint: The address that it was sent to, or the detour; ``str()`` shows it.
    """

    rtt: float | None
    path: str
    endpoint: Path | None = None


def connection_tag(connection: Connection | None) -> bytes:
    """Return the 8 bytes by which both ends name one connection in probes."""
    if connection is None:
        return NO_HANDLE
    return hashlib.blake2b(connection.engine.odcid, digest_size=HANDLE_LENGTH, person=b"mesh-handle").digest()
