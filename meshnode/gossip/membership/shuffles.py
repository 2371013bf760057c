"""Shuffles: neighbours exchange samples of their views, which keeps the passive views fresh. Sans I/O.

HyParView (Leitao, Pereira, Rodrigues, DSN 2007, section 4.4). Different from the paper: the answer goes back the way
of the walk, for a QUIC connection for one message would cost more than the walk; contacts are ids, whose records
are looked up when one is wanted: in the member entries that gossip stores, else in the DHT; and where nodes know few
others besides their neighbours, those are told too, and what passes by is taken: else two nodes that lack each other,
in a mesh where all others have all others as neighbours, never hear of one another.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_MAX_CONTACTS, GOSSIP_MAX_WALKS
from meshnode.base.metrics import Metrics, describe
from meshnode.gossip.effects import Send
from meshnode.gossip.membership.views import Views
from meshnode.gossip.messages import MAX_TX, Contact, Shuffle, ShuffleReply
from meshnode.identity.node_id import NodeId

SHUFFLE_WALK = 4  # steps
FROM_ACTIVE = 3  # contacts of the active view in a shuffle; the rest is of the passive one

UNASKED = describe("gossip_drop_unasked", "membership messages dropped: from no neighbour, or not asked for")


class Shuffles:
    """Starts, passes on and answers shuffles. ``may_walk`` charges a walk to the neighbour that passed it."""

    def __init__(
        self, views: Views, rng: random.Random, metrics: Metrics, may_walk: Callable[[NodeId, float], bool]
    ) -> None:
        self._views = views
        self._rng = rng
        self._metrics = metrics
        self._may_walk = may_walk
        self._walks: BoundedDict[int, NodeId] = BoundedDict(GOSSIP_MAX_WALKS)  # from where each came
        self._offered: dict[int, tuple[Contact, ...]] = {}
        self._effects: list[Send] = []

    def take_effects(self) -> list[Send]:
        """Return everything to send since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def start(self) -> None:
        """Send this node's id and those of a sample of the views on a random walk."""
        views = self._views
        if not views.active:
            return
        contacts = (
            Contact(views.own),
            *_ids(views.sample(views.active, FROM_ACTIVE)),
            *_ids(views.sample(views.passive, GOSSIP_MAX_CONTACTS - 1 - FROM_ACTIVE)),
        )
        tx = self._rng.randrange(MAX_TX)
        self._offered = {tx: contacts}
        self._effects.append(Send(self._rng.choice(list(views.active)), Shuffle(tx, SHUFFLE_WALK, contacts)))

    def on_shuffle(self, peer: NodeId, message: Shuffle, now: float) -> None:
        """Pass a shuffle on; where it ends, keep some of its contacts and send as many back."""
        views = self._views
        if peer not in views.active or not self._may_walk(peer, now):
            return
        onward = [other for other in views.active if other != peer]
        if message.ttl > 0 and onward and message.tx not in self._walks:
            self._walks[message.tx] = peer
            if not views.passive:
                self._remember(message.contacts)
            self._effects.append(Send(self._rng.choice(onward), Shuffle(message.tx, message.ttl - 1, message.contacts)))
            return
        mine = views.sample(views.passive, len(message.contacts))
        # in a small mesh all that a node knows may be its neighbours, and one with few learns of no other else
        near = views.sample(views.active, len(message.contacts) - len(mine))
        self._effects.append(Send(peer, ShuffleReply(message.tx, _ids((*mine, *near)))))
        self._remember(message.contacts, mine)

    def on_shuffle_reply(self, peer: NodeId, message: ShuffleReply, now: float) -> None:
        """Take the answer to a shuffle of this node, or pass it back on its way."""
        offered = self._offered.pop(message.tx, None)
        if offered is not None:
            self._remember(message.contacts, offered)
            return
        back = self._walks.pop(message.tx, None)
        if back is None:
            self._metrics.count(UNASKED)
        elif back in self._views.active:
            self._effects.append(Send(back, message))

    def _remember(self, contacts: tuple[Contact, ...], sent: tuple[Contact, ...] = ()) -> None:
        for contact in contacts:
            self._views.remember(contact, sent)


def _ids(contacts: tuple[Contact, ...]) -> tuple[Contact, ...]:
    """Return the contacts without their records, which are six times as long."""
    return tuple(Contact(contact.id) for contact in contacts)
