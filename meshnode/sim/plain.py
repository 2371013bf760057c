"""A Sealer of the same sizes, checks and drop names whose cryptography is left out: for simulations of thousands.

    0x01 | nonce 8, zeros 16 | receiver 16 | sender id 32 | time 8 | tag 16 | body     (a knock: without 0x01, body)

The sender that these bytes name is believed. X25519 for every pair of a thousand nodes would cost a minute by itself.
"""

from __future__ import annotations

import struct

from meshnode.base.clock import Clock, Entropy
from meshnode.base.limits import SEAL_WINDOW_S
from meshnode.base.path import Path
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId, known_id
from meshnode.identity.sealing import KNOCK_LENGTH, MeshKey, Sealer

FRAME = struct.Struct("!8s16x16s32sQ16s")
SEAL_TAG = b"seal".ljust(16, b"\0")
assert FRAME.size == KNOCK_LENGTH


class PlainSealer(Sealer):
    """A ``Sealer`` without cryptography; freshness, replays and the rate of new senders are checked as there."""

    def __init__(self, identity: Identity, mesh: MeshKey, clock: Clock, entropy: Entropy, *, born: float) -> None:
        super().__init__(identity, mesh, clock, entropy, born=born)
        self._address = identity.id.raw[:16]
        self._met: dict[bytes, None] = {}
        self._young: dict[bytes, None] = {}
        self._old: dict[bytes, None] = {}
        self._turned = born

    def keep_key(self, peer: NodeId) -> None:
        """Nothing to keep: there are no keys here."""

    def _close(self, peer: NodeId, context: bytes, body: bytes) -> bytes:
        stamp = int(self._clock.wall() * 1e6)
        tag = SEAL_TAG if context == b"seal" else context[-16:]
        return FRAME.pack(self._entropy(8), peer.raw[:16], self._identity.id.raw, stamp, tag) + body

    def _open(self, data: bytes, context: bytes, name: str, source: Path | None) -> tuple[NodeId, bytes] | None:
        nonce, receiver, raw, stamp, tag = FRAME.unpack_from(data)
        if receiver != self._address:
            return self._drop(f"{name}_box")
        wall = self._clock.wall()
        if abs(wall - stamp / 1e6) > SEAL_WINDOW_S or stamp / 1e6 < self._born:
            return self._drop(f"{name}_stale")
        if raw not in self._met:
            if not self._take(source, False):
                return self._drop(f"{name}_rate")
            self._met[raw] = None
        if tag != (SEAL_TAG if context == b"seal" else context[-16:].ljust(16, b"\0")):
            return self._drop(f"{name}_mac")
        if not self._is_new(nonce, wall):
            return self._drop(f"{name}_replay")
        return known_id(raw), data[KNOCK_LENGTH:]

    def _is_new(self, nonce: bytes, wall: float) -> bool:
        if nonce in self._young or nonce in self._old:
            return False
        if wall - self._turned > 2 * SEAL_WINDOW_S:
            self._old, self._young, self._turned = self._young, {}, wall
        self._young[nonce] = None
        return True
