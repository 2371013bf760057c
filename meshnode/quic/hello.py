"""Hello and Welcome: how the dialler proves its key, and how the listener answers.

TLS 1.3 has already proven the listener's key to the dialler when the first Hello byte is sent. The
Hello proves the dialler's: an Ed25519 signature over both ids, the original destination connection id
(which TLS authenticates as a transport parameter, RFC 9000 section 7.3), the key of the listener's
certificate and a value of this connection's TLS secret, so a Hello that was made for one listener or one
connection is worthless on any other, also to one that has stolen the listener's key.

Frames on the control stream: 2-byte big-endian length, then a canonical CBOR array ``[kind, ...]``.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from meshnode.base.limits import MAX_CHAIN, MAX_CONTROL_FRAME, MAX_GRANT
from meshnode.base.value import value
from meshnode.base.wire import WireError, as_bytes, as_list, decode, encode
from meshnode.identity.keys import Identity, verify
from meshnode.identity.node_id import NodeId

DOMAIN = b"meshnode hello v2\x00"
BOOT_LENGTH = 8
BINDING_LENGTH = 32
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
    KEY_IN_USE = 10
    GRANTS = 11
    RENEW = 12
    RENEWED = 13
    MESH_KEY = 14
    POLICY_HAVE = 20
    POLICY_ASK = 21
    POLICY_PART = 22
    REVOKED_HAVE = 15
    REVOKED_ASK = 18
    REVOKED = 19
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
    Frame.KEY_IN_USE: (),
    Frame.GRANTS: ("grants",),
    Frame.RENEW: (),
    Frame.RENEWED: ("grants",),
    Frame.MESH_KEY: ("rotation",),
    Frame.POLICY_HAVE: ("version",),
    Frame.POLICY_ASK: ("version", "part"),
    Frame.POLICY_PART: ("version", "part", "parts", "bytes"),
    Frame.REVOKED_HAVE: ("prints",),
    Frame.REVOKED_ASK: ("bucket", "names"),
    Frame.REVOKED: ("bucket", "statements"),
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
    KEY_IN_USE = 6  # another host that uses the dialler's key is connected


RULE = "rule "  # begins the reason of POLICY_DENIED where the policy tells the refused node which rule it was


@value
class Hello:
    """What the dialler says first: its process's boot id (8 bytes), its record (or nothing), its grants."""

    boot: bytes
    record: bytes
    grants: tuple[bytes, ...]


@value
class Welcome:
    """The listener's answer: its process's boot id and its record (or nothing)."""

    boot: bytes
    record: bytes


@value
class LocalEnd:
    """What this node shows of itself: identity, boot id (8 bytes), record (or nothing), the chain of its grants."""

    identity: Identity
    boot: bytes
    record: bytes
    grants: tuple[bytes, ...] = ()


def _signed(
    dialler: NodeId, listener: NodeId, odcid: bytes, certificate_key: bytes, binding: bytes, rest: bytes
) -> bytes:
    if len(binding) != BINDING_LENGTH:
        raise WireError("hello: no value of TLS's secret")
    return b"".join(
        (DOMAIN, bytes(dialler), bytes(listener), bytes([len(odcid)]), odcid, certificate_key, binding, rest)
    )


def make_hello(
    me: Identity,
    listener: NodeId,
    odcid: bytes,
    certificate_key: bytes,
    binding: bytes,
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
        binding: The value of TLS's secret (32 bytes) that ``HandshakeDone`` brought.
        boot: The 8 bytes that tell this process from an earlier one of the same node.
        record: The dialler's signed record, b"" while it has none.
        grants: Its chain of grants, at most ``MAX_CHAIN`` and a succession; empty where it has none.
    """
    body = encode([boot, record, list(grants)])
    signature = me.sign(_signed(me.id, listener, odcid, certificate_key, binding, body))
    return frame(Frame.HELLO, bytes(me.id), body, signature)


def open_hello(fields: list[object], me: NodeId, dialler: NodeId, odcid: bytes, binding: bytes) -> Hello:
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
    if not verify(dialler, _signed(dialler, me, odcid, bytes(me), binding, body), signature):
        raise WireError("hello: signature does not hold")
    return _open_body(body)


def _open_body(body: bytes) -> Hello:
    inner = decode(body, MAX_CONTROL_FRAME)
    if not isinstance(inner, list) or len(inner) != 3:
        raise WireError("hello: wrong body")
    boot, record, grants = inner
    if not isinstance(boot, bytes) or len(boot) != BOOT_LENGTH or not isinstance(record, bytes):
        raise WireError("hello: wrong body types")
    return Hello(boot, record, as_grants(grants))


def as_grants(item: object) -> tuple[bytes, ...]:
    """Return a chain of grants as a peer sent it: its sizes are checked, what is in it is not.

    Raises WireError.
    """
    return tuple(as_bytes(grant, 0, MAX_GRANT) for grant in as_list(item, MAX_CHAIN + 1))


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
    """Return one control frame with its length before it.

    ``fields`` are those that ``FIELDS`` names for ``kind``.
    """
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
