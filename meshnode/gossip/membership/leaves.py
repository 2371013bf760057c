"""Leaves: nodes at the mesh's edge that want to hear and to be reached, and to do nothing for others. Sans I/O.

What a leaf does not do, all of it. In its own gossip: it looks for one neighbour and has two at most, those that it is
configured with if they answer, and takes none that asks; it shuffles, rotates and probes nothing, passes no broadcast
on, and is listed only when it offers something. At its neighbours, which know it by its record, it has a place beside
the active view: it is neither probed nor named to others, no tree relies on it, and no walk or shuffle of it is taken.
In the DHT it asks and publishes, and answers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from meshnode.base.fair_table import FairTable
from meshnode.base.limits import GOSSIP_MAX_LEAVES
from meshnode.gossip.effects import NeighbourDown, NeighbourUp, Release, Send
from meshnode.gossip.messages import Disconnect, NeighbourReply
from meshnode.identity.node_id import NodeId

RECONCILE_S = 0.5  # after which a node that a leaf asked reconciles with it
LINKS = 2  # of a leaf at most
WANTED, URGENT_BELOW = 1, 1  # neighbours below which a leaf looks for one, and with high priority


class Leaves:
    """The leaves that are linked to this node as to a neighbour, at most ``GOSSIP_MAX_LEAVES``.

    ``is_leaf`` tells which nodes are leaves, ``network_of`` the source network of a linked one: where no place is left,
    the newest leaf of the network with most gives way. ``own``: this node is one. It looks for neighbours below
    ``wanted`` of them.
    """

    def __init__(
        self, wanted: int, is_leaf: Callable[[NodeId], bool], network_of: Callable[[NodeId], Hashable], own: bool
    ) -> None:
        self.is_leaf = is_leaf
        self.own = own
        self.wanted = WANTED if own else wanted
        self._network_of = network_of
        self._linked: dict[NodeId, None] = {}
        self._places: FairTable[NodeId] = FairTable(GOSSIP_MAX_LEAVES, newest_goes=True)

    def __contains__(self, peer: object) -> bool:
        return peer in self._linked

    def __len__(self) -> int:
        return len(self._linked)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(list(self._linked))

    def answer(self, peer: NodeId, *, stopped: bool) -> list[Send | NeighbourUp | NeighbourDown | Release]:
        """Answer a leaf that asks for a place, or any node that asks a leaf; return what is to be done.

        Where there is no place for it, or no more, a leaf asks another node.
        """
        if self.own or stopped:
            return [Send(peer, NeighbourReply(False))]
        over = None
        if peer not in self:
            over = self._places.add(peer, self._network_of(peer))
            if over == peer:
                return [Send(peer, NeighbourReply(False))]
            self._linked[peer] = None
        effects: list[Send | NeighbourUp | NeighbourDown | Release] = []
        if over is not None:
            effects += [Send(over, Disconnect(False)), *self.part(over)]
        return [*effects, Send(peer, NeighbourReply(True)), NeighbourUp(peer, RECONCILE_S)]

    def part(self, peer: NodeId) -> list[NeighbourDown | Release]:
        """Take the place of a leaf back, if it has one; return what is to be done."""
        if peer not in self:
            return []
        del self._linked[peer]
        self._places.discard(peer)
        return [NeighbourDown(peer), Release(peer)]
