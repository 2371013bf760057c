"""Rotation of a mesh's secret: the authority's word on the next key, and from when to when both hold.

An envelope of ``DOMAIN`` around ``[version, authority, serial, key 32, begins ms, ends ms]``. Until ``begins`` nodes
seal with the old key and open what is sealed with either; then they seal with the new one; from ``ends`` on the old
one opens nothing. It holds a secret, so it goes only to members whose grants hold, inside of their connections.
"""

from __future__ import annotations

from meshnode.base.limits import MAX_ROTATION
from meshnode.base.value import value
from meshnode.base.wire import as_bytes, as_list, as_number
from meshnode.identity.envelope import EnvelopeError, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

DOMAIN = b"meshnode mesh key v1\x00"
VERSION = 1
LAST_MS = 2**53


@value
class Rotation:
    """The next secret of a mesh.

    Attributes:
        serial: Of two rotations the one with the higher number counts; Unix milliseconds serve.
        key: The next mesh key.
        begins: Unix milliseconds, from when on nodes seal with it.
        ends: Unix milliseconds, from when on the one before opens nothing.
        encoded: The signed bytes.
    """

    serial: int
    key: bytes
    begins: int
    ends: int
    encoded: bytes

    def has_begun(self, wall: float) -> bool:
        """Return whether nodes seal with the new key at ``wall``, in Unix seconds."""
        return wall * 1000 >= self.begins

    def is_over(self, wall: float) -> bool:
        """Return whether the old key is of no use any more."""
        return wall * 1000 >= self.ends


def sign_rotation(authority: Identity, *, serial: int, key: bytes, begins: int, ends: int) -> Rotation:
    """Return a signed rotation."""
    item = [VERSION, bytes(authority.id), serial, key, begins, ends]
    return Rotation(serial, key, begins, ends, sign_envelope(authority, DOMAIN, item, MAX_ROTATION))


def open_rotation(encoded: bytes, authority: NodeId) -> Rotation | None:
    """Verify a rotation; None when it is malformed, or not of this authority."""
    try:
        fields = as_list(open_envelope(encoded, MAX_ROTATION), 6)
        version, signer, serial, key, begins, ends = fields
        as_number(version, VERSION, VERSION)
        found = Rotation(
            as_number(serial, 0, LAST_MS),
            as_bytes(key, 32, 32),
            as_number(begins, 0, LAST_MS),
            as_number(ends, 0, LAST_MS),
            encoded,
        )
    except (EnvelopeError, ValueError):
        return None
    right = signer == bytes(authority) and found.begins <= found.ends
    return found if right and verify_envelope(authority, DOMAIN, encoded) else None
