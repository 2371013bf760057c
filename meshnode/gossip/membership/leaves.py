"""Leaves: nodes at the mesh's edge that want to hear and to be reached, and to do nothing for others. Sans I/O.

What a leaf does not do, all of it. In its own gossip: it looks for one neighbour and has two at most, those that it is
configured with if they answer, and takes none that asks; it shuffles, rotates and probes nothing, passes no broadcast
on, and is listed only when it offers something. At its neighbours, which know it by its record, it has a place beside
the active view: it is neither probed nor named to others, no tree relies on it, and no walk or shuffle of it is taken.
In the DHT it asks and publishes, and answers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from meshnode.base.limits import GOSSIP_MAX_LEAVES
from meshnode.gossip.effects import NeighbourDown, NeighbourUp, Release, Send
from meshnode.gossip.messages import Contact, NeighbourReply
from meshnode.identity.node_id import NodeId

RECONCILE_S = 0.5  # after which a node that a leaf asked reconciles with it
LINKS = 2  # of a leaf at most
WANTED, URGENT_BELOW = 1, 1  # neighbours below which a leaf looks for one, and with high priority


class Leaves:
    """The leaves that are linked to this node as to a neighbour, at most ``GOSSIP_MAX_LEAVES``.

    ``is_leaf`` tells which nodes are leaves; ``own``: this one is. It looks for neighbours below ``wanted`` of them.
    """

    def __init__(self, wanted: int, is_leaf: Callable[[NodeId], bool], own: bool) -> None:
        self.is_leaf = is_leaf
        self.own = own
        self.wanted = WANTED if own else wanted
        self._contacts: dict[NodeId, Contact] = {}

    def __contains__(self, peer: object) -> bool:
        return peer in self._contacts

    def __len__(self) -> int:
        return len(self._contacts)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(list(self._contacts))

    def answer(self, contact: Contact, *, stopped: bool) -> list[Send | NeighbourUp]:
        """Answer a leaf that asks for a place, or any node that asks a leaf; return what is to be done.

        Where no place is left the leaf asks another node.
        """
        peer = contact.id
        has_place = peer in self or len(self) < GOSSIP_MAX_LEAVES
        accepted = has_place and not self.own and not stopped
        effects: list[Send | NeighbourUp] = [Send(peer, NeighbourReply(accepted))]
        if accepted:
            self._contacts[peer] = contact
            effects.append(NeighbourUp(peer, RECONCILE_S))
        return effects

    def part(self, peer: NodeId) -> list[NeighbourDown | Release]:
        """Take the place of a leaf back, if it has one; return what is to be done."""
        return [] if self._contacts.pop(peer, None) is None else [NeighbourDown(peer), Release(peer)]
