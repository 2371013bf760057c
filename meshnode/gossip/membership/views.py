"""The partial views of HyParView: neighbours, a sample of other nodes, and nodes that are gone. Sans I/O."""

from __future__ import annotations

import random

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_MAX_LOST, GOSSIP_MAX_PASSIVE
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId

HIGH_PRIORITY_BELOW = 3  # neighbours


class Views:
    """Each node is in one view at most.

    ``lost`` has the monotonic time since which a node is gone, and whether it was a neighbour.
    """

    def __init__(self, own: NodeId, rng: random.Random) -> None:
        self.own = own
        self.active: dict[NodeId, Contact] = {}
        self.passive: dict[NodeId, Contact] = {}
        self.lost: BoundedDict[NodeId, tuple[Contact, float, bool]] = BoundedDict(GOSSIP_MAX_LOST)
        self._rng = rng
        self.few_below = HIGH_PRIORITY_BELOW

    @property
    def are_few(self) -> bool:
        """Whether so few neighbours watch this node that it asks for more with high priority."""
        return len(self.active) < self.few_below

    def tries(self, peer: NodeId) -> bool:
        """Return whether a node is gone and probed now and then."""
        return peer in self.lost

    def remember(self, contact: Contact, sent: tuple[Contact, ...] = ()) -> bool:
        """Put a node into the passive view; returns False when it is in a view already, or this node itself.

        Where that is full one of ``sent``, which a peer has now, or any goes.
        """
        peer = contact.id
        if peer == self.own or peer in self.active or peer in self.lost:
            return False
        if peer in self.passive:
            if contact.record:
                self.passive[peer] = contact
            return False
        if len(self.passive) >= GOSSIP_MAX_PASSIVE:
            spare = [c.id for c in sent if c.id in self.passive] or list(self.passive)
            del self.passive[self._rng.choice(spare)]
        self.passive[peer] = contact
        return True

    def note_record(self, contact: Contact) -> None:
        """Take a newer record of a node that is in a view."""
        if contact.id in self.active:
            self.active[contact.id] = contact
        elif contact.id in self.passive:
            self.passive[contact.id] = contact
        elif contact.id in self.lost:
            self.lost[contact.id] = contact, *self.lost[contact.id][1:]

    def lose(self, contact: Contact, since: float, *, met: bool) -> None:
        """Remember a gone node, to try it again.

        Where there are too many, the oldest goes of those that were never ``met`` as neighbours: any may be named.
        """
        if len(self.lost) >= GOSSIP_MAX_LOST and contact.id not in self.lost:
            hearsay = next((peer for peer, (*_, was_met) in self.lost.items() if not was_met), None)
            if hearsay is not None:
                del self.lost[hearsay]
            elif not met:
                return
        self.lost.put(contact.id, (contact, since, met))

    def sample(self, view: dict[NodeId, Contact], count: int) -> tuple[Contact, ...]:
        """Draw up to ``count`` contacts of a view."""
        found = list(view.values())
        return tuple(self._rng.sample(found, min(count, len(found))))
