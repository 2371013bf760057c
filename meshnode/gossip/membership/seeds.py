"""Configured nodes to join through, until and whenever they are not known as members. Sans I/O.

A configured node that is no member is in a mesh that does not know this one: joining through it unites the two.
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
        timers.at(now + LOOK_S * rng.uniform(0.5, 1.5), self._look)

    def add(self, contact: Contact) -> bool:
        """Remember a configured node, or its newer contact; returns True when it was not known.

        With ``GOSSIP_MAX_SEEDS`` others it is not kept, but True is returned: the caller joins through it once.
        """
        known = contact.id in self._contacts
        if known or len(self._contacts) < GOSSIP_MAX_SEEDS:
            self._contacts[contact.id] = contact
        return not known

    def _look(self, now: float) -> None:
        self._timers.at(now + LOOK_S * self._rng.uniform(0.8, 1.2), self._look)
        for peer, contact in self._contacts.items():
            if self._status(peer) in (Status.UNKNOWN, Status.GONE):
                self._join(contact, now)
