"""The active view as it changes: neighbours come, are evicted, and go. Sans I/O."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable

from meshnode.base.limits import GOSSIP_KEPT_CHOSEN, GOSSIP_MAX_ACTIVE
from meshnode.gossip.effects import NeighbourDown, NeighbourUp, Release, Send
from meshnode.gossip.membership.views import Views
from meshnode.gossip.messages import Contact, Disconnect
from meshnode.identity.node_id import NodeId


class Neighbours:
    """Adds and removes neighbours, at most ``GOSSIP_MAX_ACTIVE``.

    ``spare`` returns the neighbours that may go without harm, ``network_of`` the source network of one, None when it is
    not known; ``emit`` takes the effects.
    """

    def __init__(
        self,
        views: Views,
        rng: random.Random,
        spare: Callable[[], list[NodeId]],
        emit: Callable[[Send | NeighbourUp | NeighbourDown | Release], None],
        network_of: Callable[[NodeId], Hashable],
    ) -> None:
        self._views = views
        self._chosen: dict[NodeId, None] = {}  # neighbours that this node chose and asked
        self._network_of = network_of
        self._rng = rng
        self._spare = spare
        self._emit = emit

    def has_room(self) -> bool:
        """Return whether a node can be added without harm: there is a free place, or a neighbour that may go."""
        return len(self._views.active) < GOSSIP_MAX_ACTIVE or bool(self._spare())

    def add(self, contact: Contact, reconcile_in: float, *, crowd: bool = False, chosen: bool = False) -> None:
        """Add a neighbour, or take the newer record of one; where the view is full another goes to the passive view.

        That one is drawn from those that may go (``_may_go``). In a ``crowd``, many nodes that join here at once, it is
        the newest: they replace one another, for older neighbours send their walks all over the mesh. ``chosen`` says
        that this node asked it, of its own accord. ``reconcile_in`` is in seconds.
        """
        views, peer = self._views, contact.id
        views.passive.pop(peer, None)
        views.lost.pop(peer, None)
        if peer in views.active:
            if contact.record:
                views.active[peer] = contact
            return
        if len(views.active) >= GOSSIP_MAX_ACTIVE:
            may_go = self._may_go()
            victim = may_go[-1] if crowd else self._rng.choice(self._spare_of(may_go))
            evicted = views.active[victim]
            self.dismiss(victim)
            views.remember(evicted)
        views.active[peer] = contact
        if chosen:
            self._chosen[peer] = None
        self._emit(NeighbourUp(peer, reconcile_in))

    def _may_go(self) -> list[NodeId]:
        """Return the neighbours of which one may give way, the newest last: those of the network with most.

        Any node may ask for a place, and ids are free: of those that this node has chosen itself a few stay, whatever
        asks, so that no crowd has all places.
        """
        may_go = list(self._views.active)
        if len(self._chosen) <= GOSSIP_KEPT_CHOSEN:
            may_go = [peer for peer in may_go if peer not in self._chosen] or may_go
        networks = {peer: self._network_of(peer) for peer in may_go}
        sizes = Counter(network for network in networks.values() if network is not None)
        most = max(sizes.values(), default=0)
        return [peer for peer in may_go if sizes[networks[peer]] == most] if most > 1 else may_go

    def _spare_of(self, may_go: list[NodeId]) -> list[NodeId]:
        return [peer for peer in self._spare() if peer in may_go] or may_go

    def dismiss(self, peer: NodeId, *, leaving: bool = False) -> None:
        """Tell a neighbour that it is none any more, and remove it.

        ``leaving`` says that this node leaves the mesh.
        """
        self._emit(Send(peer, Disconnect(leaving)))
        self.remove(peer)

    def remove(self, peer: NodeId) -> None:
        """Remove a neighbour, which knows it or cannot be told; it is in no view afterwards."""
        del self._views.active[peer]
        self._chosen.pop(peer, None)
        self._emit(NeighbourDown(peer))
        self._emit(Release(peer))
