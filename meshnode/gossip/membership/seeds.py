"""Configured nodes to join through, until and whenever they are not known as members. Sans I/O.

A configured node that is no member is in a mesh that does not know this one: joining through it unites the two. One
that is a member and not listed cannot be told from it: after it has been a neighbour it is tried ever more rarely.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.limits import GOSSIP_MAX_SEEDS
from meshnode.base.timers import Timers
from meshnode.gossip.effects import Status
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId

LOOK_S = 20.0
MAX_WAIT_S = 3600.0  # between attempts with one that was a neighbour: 10,000 members dial it 3 times a second


class Seeds:
    """At most ``GOSSIP_MAX_SEEDS``. ``status`` asks the membership, ``join`` enters the mesh through a node."""

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        status: Callable[[NodeId], Status],
        join: Callable[[Contact, float], None],
        now: float,
    ) -> None:
        self._rng = rng
        self._timers = timers
        self._status = status
        self._join = join
        self._contacts: dict[NodeId, Contact] = {}
        self._waits: dict[NodeId, tuple[float, float]] = {}  # until when, and how long, one that was met is left alone
        timers.at(now + LOOK_S * rng.uniform(0.5, 1.5), self._look)

    def __contains__(self, peer: object) -> bool:
        return peer in self._contacts

    def add(self, contact: Contact) -> bool:
        """Remember a configured node, or its newer contact; returns True when it was not known.

        With ``GOSSIP_MAX_SEEDS`` others it is not kept, but True is returned: the caller joins through it once.
        """
        known = contact.id in self._contacts
        if known or len(self._contacts) < GOSSIP_MAX_SEEDS:
            self._contacts[contact.id] = contact
        return not known

    def on_neighbour(self, peer: NodeId, now: float) -> None:
        """Note that a configured node, as any other may be, has become a neighbour: it is in this mesh."""
        if peer in self._contacts:
            wait = min(MAX_WAIT_S, 2 * self._waits.get(peer, (now, LOOK_S))[1])
            self._waits[peer] = now + wait * self._rng.uniform(0.8, 1.2), wait

    def _look(self, now: float) -> None:
        self._timers.at(now + LOOK_S * self._rng.uniform(0.8, 1.2), self._look)
        for peer, contact in self._contacts.items():
            status = self._status(peer)
            if status is Status.GONE:
                self._waits.pop(peer, None)
            if status is Status.GONE or (status is Status.UNKNOWN and self._waits.get(peer, (now, 0.0))[0] <= now):
                self._join(contact, now)
