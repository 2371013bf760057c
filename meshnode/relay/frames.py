"""The relay frame: one datagram for a peer, on its way through a relay.

    0x02 | reservation (8) | MAC (8) | peer (8) | inner datagram

``reservation`` names the client's leg; ``peer`` is the first 8 bytes of the id of the receiver (towards the relay) or
of the sender (from it). The MAC proves the leg, in its direction, with the key that the relay granted over the
client's QUIC connection; what is inside is encrypted end to end and opaque. A frame is 25 bytes longer than its
inner datagram: a QUIC packet of 1,200 bytes makes 1,225, which fits IPv6's 1,280 with its headers (1,232).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from meshnode.base.metrics import describe
from meshnode.identity.node_id import NodeId

NO_RELAY = describe("relay_unreachable", "datagrams dropped: no path to the relay, or from it to the receiver")
BAD_CONTROL = describe("drop_relay_control", "relay control frames dropped: malformed or not asked for")

RELAYED = 0x02
RESERVATION_LENGTH = 8
MAC_LENGTH = 8
PEER_LENGTH = 8
KEY_LENGTH = 32
FRAME_OVERHEAD = 1 + RESERVATION_LENGTH + MAC_LENGTH + PEER_LENGTH
UP, DOWN = b"mesh-relay-up", b"mesh-relay-down"
KIND = bytes([RELAYED])


class Frame(NamedTuple):
    """A parsed frame; nothing in it is proven yet."""

    reservation: bytes
    mac: bytes
    peer: bytes
    inner: bytes


def label(peer: NodeId) -> bytes:
    """Return the 8 bytes that stand for a peer in frames: the beginning of its id.

    Two ids may share them: a relay gives the second client no reservation.
    """
    return peer.raw[:PEER_LENGTH]


def make_frame(key: bytes, direction: bytes, reservation: bytes, peer: bytes, inner: bytes) -> bytes:
    """Return the frame that carries ``inner``, ``FRAME_OVERHEAD`` (25) bytes longer than it.

    Args:
        key: The leg's key, as the relay granted it.
        direction: ``UP`` from a client to the relay, ``DOWN`` from the relay to a client.
        reservation: The leg's id of 8 bytes: the sender's when going up, the receiver's when going down.
        peer: The label of the receiver when going up, of the sender when going down.
        inner: The datagram, encrypted end to end.
    """
    return b"".join((KIND, reservation, _mac(key, direction, peer, inner), peer, inner))


def parse_frame(data: bytes) -> Frame | None:
    """Cut a frame into its parts, of which nothing is proven yet.

    None for another kind of datagram, and for a frame without anything inside.
    """
    if len(data) <= FRAME_OVERHEAD or data[0] != RELAYED:
        return None
    return Frame(data[1:9], data[9:17], data[17:25], data[25:])


def proven(frame: Frame, key: bytes, direction: bytes) -> bool:
    """Return True when the frame was made with the leg's key."""
    return hmac.compare_digest(frame.mac, _mac(key, direction, frame.peer, frame.inner))


def _mac(key: bytes, direction: bytes, peer: bytes, inner: bytes) -> bytes:
    return hashlib.blake2b(peer + inner, key=key, digest_size=MAC_LENGTH, person=direction).digest()
