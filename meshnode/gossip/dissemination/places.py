"""Places in a kind of stored entries: which entry has to go when there are more than fit. Sans I/O.

Ids are free and an origin writes its seqs itself, so neither the newest entries nor a share for each origin is any
defence. What counts is what this node saw: what was here first, and over which link the rest came. Entries that come
while there is room are *settled*: nothing that comes later takes their place. What comes when three quarters are
settled (half of it for all links but small ones) is a *newcomer*: newcomers share what is left, and when that is full
the network with most of them loses the oldest of its link with most. Origins with *standing* (this node is connected to
them, they are its seeds, or they have answered it) settle for a little longer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from meshnode.base.fair_table import FairTable
from meshnode.base.limits import GOSSIP_PLACES_OF_STANDING
from meshnode.identity.node_id import NodeId

HALF, OF_A_LINK, MOST, WITH_STANDING = 1 / 2, 1 / 8, 3 / 4, 7 / 8  # shares of a kind that may be settled


class Places:
    """At most ``limit`` entries of one kind, by their ids. ``network_of`` tells a link's source network."""

    def __init__(self, limit: int, network_of: Callable[[NodeId], Hashable]) -> None:
        self._limit = limit
        self._network_of = network_of
        self._settled: dict[bytes, NodeId | None] = {}  # and the link that brought each
        self._settled_of: dict[NodeId | None, int] = {}
        self._newcomers: dict[Hashable, FairTable[bytes]] = {}  # by network; the groups in each are its links
        self._came: dict[bytes, tuple[Hashable, NodeId | None]] = {}  # network and link of each newcomer

    def __len__(self) -> int:
        return len(self._settled) + len(self._came)

    @property
    def is_full(self) -> bool:
        """True when an entry that comes now takes the place of another one."""
        return len(self) >= self._limit

    @property
    def has_room(self) -> bool:
        """True when there is room for what has been given up: a little more than for one entry."""
        return len(self) < self._limit * WITH_STANDING

    def is_settled(self, item: bytes) -> bool:
        """Return whether an entry keeps its place whatever comes."""
        return item in self._settled

    def add(self, item: bytes, link: NodeId | None, held: int, *, keep: bool = False, standing: bool = False) -> None:
        """Give an entry a place; the caller has made room for it (``victim``).

        Args:
            item: Its id.
            link: The neighbour that brought it; None for an entry of this node.
            held: How many entries of this kind its origin has here already.
            keep: It replaces one that was settled, or is this node's own.
            standing: Its origin has standing.
        """
        if keep or self._may_settle(link, held, standing):
            self._settled[item] = link
            self._settled_of[link] = self._settled_of.get(link, 0) + 1
            return
        network = self._network_of(link) if link is not None else None
        self._came[item] = network, link
        self._newcomers.setdefault(network, FairTable(self._limit)).add(item, link)

    def may_stay(self, held: int) -> bool:
        """Return whether there is a place for one more entry of an origin with standing that has ``held`` already."""
        return self._may_settle(None, held, True)

    def settle(self, item: bytes) -> bool:
        """Settle a newcomer whose origin has got standing since it came; False when it is none."""
        if item not in self._came:
            return False
        link = self._came[item][1]
        self.discard(item)
        self.add(item, link, 0, keep=True)
        return True

    def _may_settle(self, link: NodeId | None, held: int, standing: bool) -> bool:
        settled, limit = len(self._settled), self._limit
        if standing and held < GOSSIP_PLACES_OF_STANDING:
            return settled < int(limit * WITH_STANDING)
        if settled >= int(limit * MOST):
            return False
        return settled < int(limit * HALF) or self._settled_of.get(link, 0) < int(limit * OF_A_LINK)

    def victim(self, may_go: Callable[[bytes], bool] = lambda item: True) -> bytes | None:
        """Return the entry that has to go when one more comes: of the newcomers, or the last that settled if none is.

        None when no entry ``may_go``; that is asked about settled ones only.
        """
        most = max(self._newcomers.values(), key=len, default=None)
        return most.first() if most is not None else next(filter(may_go, reversed(self._settled)), None)

    def discard(self, item: bytes) -> None:
        """Give up the place of an entry; nothing happens when it has none."""
        if item in self._settled:
            link = self._settled.pop(item)
            self._settled_of[link] -= 1
            if not self._settled_of[link]:
                del self._settled_of[link]
        elif item in self._came:
            network, _ = self._came.pop(item)
            table = self._newcomers[network]
            table.discard(item)
            if not len(table):
                del self._newcomers[network]
