"""Entries of this node: numbers and signs them. Sans I/O.

One counter numbers all of them, never below the wall clock's milliseconds, so that a node that lost its state counts on
above what it published before.
"""

from __future__ import annotations

import math

from meshnode.base.limits import GOSSIP_MAX_TTL_S
from meshnode.gossip.dissemination.listing import Listing
from meshnode.gossip.dissemination.telling import Telling
from meshnode.gossip.effects import Publish
from meshnode.gossip.entry import Entry, Kind, latest_ms, sign_entry
from meshnode.gossip.kinds import Member
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId


class OwnEntries:
    """Signs entries; knows this node's record and the wall clock. ``first_seq`` is above every seq used before.

    ``listing`` tells whether the member entry among them is published, ``telling`` which offers are told.
    """

    telling: Telling

    def __init__(self, identity: Identity, offset: float, first_seq: int, listing: Listing) -> None:
        self.listing = listing
        self.id: NodeId = identity.id
        self.record = b""  # the encoded endpoint record, empty before there is one
        self.offset = offset  # seconds from monotonic to Unix time
        self.left = False  # the goodbye was published
        self._identity = identity
        self.seq = first_seq

    def wall(self, now: float) -> float:
        """Return the Unix seconds of a monotonic time."""
        return now + self.offset

    def set_clock(self, now: float, wall: float) -> None:
        """Take the wall clock as it was set: numbers that are ahead of it are left, for others refuse them."""
        self.offset = wall - now
        if self.seq > latest_ms(wall):
            self.seq = int(wall * 1000)

    def rise_above(self, seq: int) -> None:
        """Number the next entry higher than ``seq``."""
        self.seq = max(self.seq, seq)

    def sign(self, wanted: Publish, before: Entry | None, now: float) -> Entry:
        """Return a signed entry; its seq counts once ``rise_above`` is told. Raises ValueError when it is too large.

        It lives at least as long as ``before``, the one that it replaces, which would come back otherwise.
        """
        wall = self.wall(now)
        ttl = wanted.ttl
        if before is not None and wall + ttl < before.expires:
            ttl = min(GOSSIP_MAX_TTL_S, math.ceil(before.expires - wall))
        self.rise_above(wanted.above)
        return sign_entry(
            self._identity,
            kind=wanted.kind,
            name=wanted.name,
            seq=max(self.seq + 1, int(wall * 1000)),
            issued_ms=int(wall * 1000),
            ttl=ttl,
            value=wanted.value,
        )

    def outlive(self, past: Entry, held: Entry | None, now: float) -> Publish | None:
        """Return what to publish in reply to an older entry of this node that other nodes still pass on.

        ``held`` replaced it and has to live as long; a void accusation needs no reply.
        """
        if past.kind == Kind.ACCUSATION or (held is not None and held.expires >= past.expires):
            return None
        value = held.value if held is not None else None
        if past.kind == Kind.MEMBER and value is None:
            value = Member(False, self.record).encoded()
        ttl = min(GOSSIP_MAX_TTL_S, math.ceil(past.expires - self.wall(now)) + 1)
        return Publish(past.kind, past.name, value, ttl)
