"""The active view as it changes: neighbours come, are evicted, and go. Sans I/O."""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.limits import GOSSIP_MAX_ACTIVE
from meshnode.gossip.effects import NeighbourDown, NeighbourUp, Release, Send
from meshnode.gossip.membership.views import Views
from meshnode.gossip.messages import Contact, Disconnect
from meshnode.identity.node_id import NodeId


class Neighbours:
    """Adds and removes neighbours, at most ``GOSSIP_MAX_ACTIVE``.

    ``spare`` returns the neighbours that may go without harm; ``emit`` takes the effects.
    """

    def __init__(
        self,
        views: Views,
        rng: random.Random,
        spare: Callable[[], list[NodeId]],
        emit: Callable[[Send | NeighbourUp | NeighbourDown | Release], None],
    ) -> None:
        self._views = views
        self._rng = rng
        self._spare = spare
        self._emit = emit

    def has_room(self) -> bool:
        """Return whether a node can be added without harm: there is a free place, or a neighbour that may go."""
        return len(self._views.active) < GOSSIP_MAX_ACTIVE or bool(self._spare())

    def add(self, contact: Contact, reconcile_in: float, *, crowd: bool = False) -> None:
        """Add a neighbour, or take the newer record of one; where the view is full another goes to the passive view.

        That one is drawn from those that may go. In a ``crowd``, many nodes that join here at once, it is the newest:
        they replace one another, for older neighbours send their walks all over the mesh. ``reconcile_in`` is in
        seconds.
        """
        views, peer = self._views, contact.id
        views.passive.pop(peer, None)
        views.lost.pop(peer, None)
        if peer in views.active:
            if contact.record:
                views.active[peer] = contact
            return
        if len(views.active) >= GOSSIP_MAX_ACTIVE:
            spare = [known for known in self._spare() if known in views.active] or list(views.active)
            victim = next(reversed(views.active)) if crowd else self._rng.choice(spare)
            evicted = views.active[victim]
            self.dismiss(victim)
            views.remember(evicted)
        views.active[peer] = contact
        self._emit(NeighbourUp(peer, reconcile_in))

    def dismiss(self, peer: NodeId, *, leaving: bool = False) -> None:
        """Tell a neighbour that it is none any more, and remove it. ``leaving`` says that this node leaves the mesh."""
        self._emit(Send(peer, Disconnect(leaving)))
        self.remove(peer)

    def remove(self, peer: NodeId) -> None:
        """Remove a neighbour, which knows it or cannot be told; it is in no view afterwards."""
        del self._views.active[peer]
        self._emit(NeighbourDown(peer))
        self._emit(Release(peer))
