"""Hello and Welcome: how the dialler proves its key, and how the listener answers.

TLS 1.3 has already proven the listener's key to the dialler when the first Hello byte is sent. The
Hello proves the dialler's: an Ed25519 signature over both ids, the original destination connection id
(which TLS authenticates as a transport parameter, RFC 9000 section 7.3) and the key of the listener's
certificate, so a Hello that was made for one listener or one connection is worthless on any other.

Frames on the control stream: 2-byte big-endian length, then a canonical CBOR array ``[kind, ...]``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from meshnode.base.limits import MAX_CONTROL_FRAME, MAX_GRANTS
from meshnode.base.wire import WireError, decode, encode
from meshnode.identity.keys import Identity, verify
from meshnode.identity.node_id import NodeId

DOMAIN = b"meshnode hello v1\x00"
BOOT_LENGTH = 8
HEADER = struct.Struct("!H")


class Frame(IntEnum):
    """Kinds of control-stream frames; unknown kinds are ignored, so that later versions can add some."""

    HELLO = 1
    WELCOME = 2
    RECORD = 3
    RELAY_ASK = 4
    RELAY_GRANT = 5
    RELAY_REFUSE = 6
    INTRODUCE = 7
    INTRODUCED = 8
    SEARCH = 9
    GOSSIP = 16
    GOSSIP_IDLE = 17


# kind -> its fields behind the kind, in order; what each is: docs/reference/wire-format.md
FIELDS: dict[Frame, tuple[str, ...]] = {
    Frame.HELLO: ("id", "body", "signature"),
    Frame.WELCOME: ("boot", "record"),
    Frame.RECORD: ("record",),
    Frame.RELAY_ASK: (),
    Frame.RELAY_GRANT: ("reservation", "key"),
    Frame.RELAY_REFUSE: ("reason",),
    Frame.INTRODUCE: ("id",),
    Frame.INTRODUCED: ("id", "address", "delay"),
    Frame.SEARCH: (),
    Frame.GOSSIP: ("message",),
    Frame.GOSSIP_IDLE: ("idle",),
}


class CloseCode(IntEnum):
    """Application close codes, seen only by a peer that has proven its key or knocked validly."""

    NORMAL = 0
    DUPLICATE = 1
    POLICY_DENIED = 2
    BAD_HELLO = 3
    SHUTDOWN = 4
    PROTOCOL = 5


@dataclass(frozen=True, slots=True)
class Hello:
    """What the dialler says first: its process's boot id (8 bytes), its record (or nothing), its grants."""

    boot: bytes
    record: bytes
    grants: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Welcome:
    """The listener's answer: its process's boot id and its record (or nothing)."""

    boot: bytes
    record: bytes


@dataclass(frozen=True, slots=True)
class LocalEnd:
    """What this node shows of itself in a Hello or Welcome: identity, boot id (8 bytes), record (or nothing)."""

    identity: Identity
    boot: bytes
    record: bytes


def _signed(dialler: NodeId, listener: NodeId, odcid: bytes, certificate_key: bytes, rest: bytes) -> bytes:
    return DOMAIN + bytes(dialler) + bytes(listener) + bytes([len(odcid)]) + odcid + certificate_key + rest


def make_hello(
    me: Identity,
    listener: NodeId,
    odcid: bytes,
    certificate_key: bytes,
    *,
    boot: bytes,
    record: bytes,
    grants: tuple[bytes, ...] = (),
) -> bytes:
    """Return the framed Hello, signed for this listener on this connection.

    Args:
        me: The dialler.
        listener: The node that was dialled.
        odcid: The original destination connection id, which TLS authenticates (RFC 9000 section 7.3).
        certificate_key: The raw key (32 bytes) seen in the listener's certificate.
        boot: The 8 bytes that tell this process from an earlier one of the same node.
        record: The dialler's signed record, b"" while it has none.
        grants: At most ``MAX_GRANTS``; empty today.
    """
    body = encode([boot, record, list(grants)])
    signature = me.sign(_signed(me.id, listener, odcid, certificate_key, body))
    return frame(Frame.HELLO, bytes(me.id), body, signature)


def open_hello(fields: list[object], me: NodeId, dialler: NodeId, odcid: bytes) -> Hello:
    """Verify a Hello that arrived on the connection whose knock named ``dialler``.

    ``fields`` are those of the frame, its kind first. The record inside is not opened here. Raises WireError when the
    Hello is malformed, names another node, or its signature does not hold.
    """
    if len(fields) != 4:
        raise WireError("hello: wrong number of fields")
    _, sender, body, signature = fields
    if not isinstance(sender, bytes) or not isinstance(body, bytes) or not isinstance(signature, bytes):
        raise WireError("hello: wrong types")
    if sender != bytes(dialler):
        raise WireError("hello: another id than the knock's")
    if not verify(dialler, _signed(dialler, me, odcid, bytes(me), body), signature):
        raise WireError("hello: signature does not hold")
    return _open_body(body)


def _open_body(body: bytes) -> Hello:
    inner = decode(body, MAX_CONTROL_FRAME)
    if not isinstance(inner, list) or len(inner) != 3:
        raise WireError("hello: wrong body")
    boot, record, grants = inner
    if not isinstance(boot, bytes) or len(boot) != BOOT_LENGTH or not isinstance(record, bytes):
        raise WireError("hello: wrong body types")
    if not isinstance(grants, list) or len(grants) > MAX_GRANTS or not all(isinstance(g, bytes) for g in grants):
        raise WireError("hello: wrong grants")
    return Hello(boot, record, tuple(grants))


def make_welcome(boot: bytes, record: bytes) -> bytes:
    """Return the framed Welcome."""
    return frame(Frame.WELCOME, boot, record)


def open_welcome(fields: list[object]) -> Welcome:
    """Parse the fields of a Welcome, its kind first.

    It carries no signature: it comes inside TLS, which has proven the listener's key. Raises WireError.
    """
    if len(fields) != 3 or not isinstance(fields[1], bytes) or not isinstance(fields[2], bytes):
        raise WireError("welcome: wrong fields")
    if len(fields[1]) != BOOT_LENGTH:
        raise WireError("welcome: wrong boot id")
    return Welcome(fields[1], fields[2])


def frame(kind: Frame, *fields: object) -> bytes:
    """Return one control frame with its length before it; ``fields`` are those that ``FIELDS`` names for ``kind``."""
    assert len(fields) == len(FIELDS[kind])
    body = encode([int(kind), *fields])
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into control frames; holds at most one frame (``MAX_CONTROL_FRAME`` bytes)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[object]]:
        """Return the frames that ``data`` completes, each as its fields with the kind first.

        Kinds are not checked, only that each frame is a canonical CBOR array that begins with an integer. Raises
        WireError for anything else, and as soon as a length above ``MAX_CONTROL_FRAME`` is read.
        """
        self._buffer += data
        frames: list[list[object]] = []
        while len(self._buffer) >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer)
            if size > MAX_CONTROL_FRAME:
                raise WireError("control frame too long")
            if len(self._buffer) < HEADER.size + size:
                break
            body = bytes(self._buffer[HEADER.size : HEADER.size + size])
            del self._buffer[: HEADER.size + size]
            fields = decode(body, MAX_CONTROL_FRAME)
            if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
                raise WireError("control frame: not an array with a kind")
            frames.append(fields)
        return frames
