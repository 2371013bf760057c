"""Configured nodes to join through, until and whenever they are not known as members. Sans I/O.

A configured node that is no member is in a mesh that does not know this one: joining through it unites the two. One
that is a member and not listed cannot be told from it: after it has been a neighbour it is tried ever more rarely. So
is one that does not answer while this node has neighbours and does not move: each dial looks it up, which is some 70
datagrams.
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
MAX_SILENT_WAIT_S = 80.0  # between attempts with one that does not answer: an uplink that returns tells nothing else


class Seeds:
    """At most ``GOSSIP_MAX_SEEDS``.

    ``status`` asks the membership, ``join`` enters the mesh through a node, ``in_mesh`` tells whether this node has a
    neighbour.
    """

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        status: Callable[[NodeId], Status],
        join: Callable[[Contact, float], None],
        in_mesh: Callable[[], bool],
        now: float,
    ) -> None:
        self._rng = rng
        self._timers = timers
        self._status = status
        self._join = join
        self._in_mesh = in_mesh
        self._contacts: dict[NodeId, Contact] = {}
        self._waits: dict[NodeId, tuple[float, float]] = {}  # until when, and how long, one that was met is left alone
        self._silent: dict[NodeId, tuple[float, float]] = {}  # and one that does not answer
        timers.at(now + LOOK_S * rng.uniform(0.5, 1.5), self._look)

    def __contains__(self, peer: object) -> bool:
        return peer in self._contacts

    def __len__(self) -> int:
        return len(self._contacts)

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
            self._waits[peer] = self._later(self._waits.get(peer, (now, LOOK_S)), MAX_WAIT_S, now)
            self._silent.pop(peer, None)

    def on_moved(self) -> None:
        """Try those that did not answer at the next look: this node may be where they can be reached."""
        self._silent.clear()

    def _later(self, last: tuple[float, float], longest: float, now: float) -> tuple[float, float]:
        wait = min(longest, 2 * last[1])
        return now + wait * self._rng.uniform(0.8, 1.2), wait

    def _look(self, now: float) -> None:
        self._timers.at(now + LOOK_S * self._rng.uniform(0.8, 1.2), self._look)
        in_mesh = self._in_mesh()
        for peer, contact in self._contacts.items():
            status = self._status(peer)
            if status.is_away:  # one that has left comes back perhaps, and knows no node any more
                self._waits.pop(peer, None)
            elif status is not Status.UNKNOWN:
                self._silent.pop(peer, None)
                continue
            if not in_mesh:
                self._silent.pop(peer, None)
            if all(wait.get(peer, (now, 0.0))[0] <= now for wait in (self._waits, self._silent)):
                self._join(contact, now)
                self._silent[peer] = self._later(self._silent.get(peer, (now, LOOK_S / 2)), MAX_SILENT_WAIT_S, now)
