"""Partial views: a handful of links, and a few dozen other nodes known in case one breaks. Sans I/O.

HyParView (Leitao, Pereira, Rodrigues, DSN 2007). The active view is symmetric: its members are linked, each is in the
other's. The passive view is a sample of the rest that shuffles keep fresh. Different from the paper: a node looks for
neighbours below 6 and takes up to 8; with fewer than 3 it asks with high priority, so that enough others watch it
(swim.py); gone members are tried again, so that the halves of a partition find each other; and neighbours change slowly
by further walks, for nodes that joined together would stay neighbours of each other for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_MAX_ACTIVE, GOSSIP_MAX_PASSIVE, GOSSIP_MAX_PENDING
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import state
from meshnode.gossip.effects import Connect, NeedContacts, NeighbourDown, NeighbourUp, Probe, Release, Send
from meshnode.gossip.membership import leaves
from meshnode.gossip.membership.leaves import Leaves
from meshnode.gossip.membership.neighbours import Neighbours
from meshnode.gossip.membership.shuffles import Shuffles
from meshnode.gossip.membership.upkeep import LOST_S, MAX_LOST_S, ROTATE_S, SHUFFLE_S, Upkeep
from meshnode.gossip.membership.views import Views
from meshnode.gossip.membership.walk_budget import DIAL, WalkBudget
from meshnode.gossip.messages import Contact, Disconnect, ForwardJoin, Join, Neighbour, NeighbourReply
from meshnode.identity.node_id import NodeId

ACTIVE = 6
JOIN_WALK, PASSIVE_WALK = 6, 3  # steps: ARWL, PRWL of the paper
JOIN_WALKS = 3  # for a node that joins: with its contact as many neighbours as it needs to be watched, and one more
FULL_S, FULL_AGAIN_S = 5.0, 0.5  # one that parted, or refused, has no room: others first, and not it again at once
SLOW_S = 0.5  # a dial to a node that a neighbour named is not counted on, and gives way, when it has taken this long
NEVER = float("-inf")
RECONCILE_S = 0.5  # a node that has just joined reconciles with its contact, not with all neighbours at once
ANSWER_S = 5.0  # for a Neighbour to be answered, the dial included

REFUSED = describe("gossip_refused", "times that a node had no room for this one as its neighbour")
REJOINED = describe("gossip_rejoined", "gone members that answered again")


@state
class _Pending:
    contact: Contact
    join: bool
    high: bool
    newcomer: bool
    since: float
    timer: Timer

    def is_slow(self, now: float) -> bool:
        """Return whether it is a node that a neighbour has named, and that may not exist."""
        return self.newcomer and now - self.since >= SLOW_S


ViewEffect = Send | Connect | Release | Probe | NeedContacts | NeighbourUp | NeighbourDown


class HyParView:
    """The active and the passive view of one node.

    ``record`` returns this node's encoded record, ``spare`` the neighbours that may go without harm, ``network_of`` the
    source network of a linked node. ``is_leaf`` tells which nodes are leaves; ``leaf``: this one is.
    """

    def __init__(
        self,
        own: NodeId,
        rng: random.Random,
        timers: Timers,
        metrics: Metrics,
        record: Callable[[], bytes],
        spare: Callable[[], list[NodeId]],
        now: float,
        network_of: Callable[[NodeId], Hashable] = lambda peer: None,
        is_leaf: Callable[[NodeId], bool] = lambda peer: False,
        leaf: bool = False,
    ) -> None:
        self.views = Views(own, rng)
        self.leaves = Leaves(ACTIVE, is_leaf, network_of, leaf)
        if leaf:
            self.views.few_below = leaves.URGENT_BELOW
        self.active, self.passive = self.views.active, self.views.passive
        self._effects: list[ViewEffect] = []
        self._neighbours = Neighbours(self.views, rng, spare, self._effects.append, network_of)
        self.links = WalkBudget(metrics)
        self.shuffles = Shuffles(self.views, rng, metrics, self.links.allows)
        self._rng = rng
        self._metrics = metrics
        self._record = record
        self._pending: dict[NodeId, _Pending] = {}
        self._full: BoundedDict[NodeId, float] = BoundedDict(GOSSIP_MAX_PASSIVE)  # those that had no room, and when
        self._upkeep = Upkeep(
            rng, timers, self._fill, lambda: len(self.active) < self.leaves.wanted, self._try_lost, now
        )
        if leaf:
            return
        self._upkeep.every(rng.uniform(0.2, 1.0) * SHUFFLE_S, self._shuffle, 0.2, now)
        self._upkeep.every(rng.uniform(0.5, 1.0) * ROTATE_S, self._rotate, 0.25, now)

    def take_effects(self) -> list[ViewEffect]:
        """Return everything to do since the last call, in order."""
        effects = [*self._effects, *self.shuffles.take_effects()]
        self._effects.clear()
        return effects

    # ---- verbs

    def join(self, contact: Contact, now: float) -> None:
        """Enter the mesh through a node: a Join asks it to start random walks for this one (section 4.2)."""
        if self.leaves.own and len(self.active) + len(self._pending) >= leaves.LINKS:
            self.views.remember(contact)
        else:
            self._want(contact, now, join=True, high=True)

    def add_contact(self, contact: Contact, now: float) -> None:
        """Add a node that another source knows: it may become a neighbour when one is needed.

        A newer record of a neighbour is taken; a gone node stays gone until it answers. One that is known already is no
        reason to look for neighbours at once: ``NeedContacts`` may be answered with nothing else.
        """
        if contact.id in self.active:
            if contact.record:
                self.active[contact.id] = contact
        elif self._upkeep.stopped or self.leaves.is_leaf(contact.id):
            return
        elif self.views.remember(contact):  # lost nodes are tried on their own timer
            self._upkeep.fill_soon(now, 0.0)

    def leave(self, now: float) -> None:
        """Part from all neighbours; nothing is asked of any node afterwards."""
        self._upkeep.stop()
        for peer in list(self.active):
            self._neighbours.dismiss(peer, leaving=True)
        for peer in self.leaves:
            self._effects.append(Send(peer, Disconnect(True)))
        self._pending.clear()

    def forget(self, peer: NodeId, now: float) -> None:
        """Remove a node that has left, or is banned, from all views; it is not tried again.

        A neighbour is told so with Disconnect, and replaced.
        """
        self.passive.pop(peer, None)
        self.views.lost.pop(peer, None)
        self._pending.pop(peer, None)
        self._effects += self.leaves.part(peer)
        if peer in self.active:
            self._neighbours.dismiss(peer)
            self._upkeep.fill_soon(now, 0.0)

    def lose(self, peer: NodeId, now: float) -> None:
        """Replace a node that is gone, and probe it again now and then, ever more rarely.

        One that was unknown, or has left, is not probed; at most ``GOSSIP_MAX_LOST`` nodes are.
        """
        contact, met = self.active.get(peer) or self.passive.get(peer), peer in self.active
        before = self.views.lost.get(peer)
        self.forget(peer, now)
        if contact is not None:
            self.views.lose(contact, now, met=met)
            self._upkeep.retry_soon(now)
        elif before is not None:
            self.views.lost.put(peer, before)

    def on_alive(self, peer: NodeId, now: float) -> None:
        """Link to a gone node that shows that it lives.

        It is asked with high priority: the first link that unites the halves of a partition must not be refused.
        """
        found = self.views.lost.pop(peer, None)
        if found is not None and not self._upkeep.stopped:
            self._metrics.count(REJOINED)
            self._want(found[0], now, high=True)

    def wants(self, peer: NodeId) -> bool:
        """Return whether a link to ``peer`` is of use: it is a neighbour, or was asked to be one."""
        return peer in self.active or peer in self.leaves or peer in self._pending

    # ---- links

    def on_link(self, peer: NodeId, now: float) -> None:
        """Take up a connection to ``peer``, whichever end or layer opened it.

        A node that was asked to be a neighbour gets the message; a gone one is linked to again; with fewer than
        ``ACTIVE`` neighbours any other is taken into the passive view, and may become one.
        """
        if peer in self.links:
            return  # told twice: by the connection, and by the answer to ``Connect``
        self.links.add(peer, now)
        pending = self._pending.get(peer)
        if pending is not None:
            self._ask(pending)
        elif peer in self.views.lost:
            self.on_alive(peer, now)
        elif len(self.active) < self.leaves.wanted and not self._upkeep.stopped and not self.leaves.is_leaf(peer):
            self.views.remember(Contact(peer))
            self._upkeep.fill_soon(now, 0.0)

    def on_unlink(self, peer: NodeId, now: float) -> None:
        """Replace a neighbour whose connection is over."""
        self.links.remove(peer)
        self._effects += self.leaves.part(peer)
        contact = self.active.get(peer)
        if contact is not None:
            self._neighbours.remove(peer)
            self.views.remember(contact)
            self._upkeep.fill_soon(now, 0.0)
        if peer in self._pending:
            self.on_connect_failed(peer, now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """Give up a peer to which no link could be opened, or that did not answer within ``ANSWER_S``.

        With a record it is probed again now and then, as gone nodes are.
        """
        pending = self._pending.pop(peer, None)
        if pending is None:
            return
        pending.timer.cancel()
        contact = self.passive.pop(peer, None)
        if contact is not None and contact.record:
            self.views.lose(contact, now, met=False)
            self._upkeep.retry_soon(now)
        self._upkeep.failed(now, urgent=self.views.are_few)

    # ---- what neighbours say

    def on_join(self, peer: NodeId, message: Join, now: float) -> None:
        """Take a new node as a neighbour and start random walks that find it others.

        ``JOIN_WALKS`` walks of ``JOIN_WALK`` steps start at other neighbours (paper, section 4.2, algorithm 1: at all).
        """
        if not self.links.allows(peer, now):
            return
        if self.leaves.own or self.leaves.is_leaf(peer):
            self._effects += self.leaves.answer(peer, stopped=self._upkeep.stopped)
            return
        known = peer in self.active
        self._neighbours.add(Contact(peer, message.record), self._sync_when_asked(peer), crowd=True)
        self._effects.append(Send(peer, NeighbourReply(True)))
        if not known:
            forward = ForwardJoin(self.active[peer], JOIN_WALK)
            others = [other for other in self.active if other != peer]
            starts = self._rng.sample(others, min(JOIN_WALKS, len(others)))
            self._effects += [Send(other, forward) for other in starts]

    def on_forward_join(self, peer: NodeId, message: ForwardJoin, now: float) -> None:
        """Pass on a random walk for a node that joins; where it ends, become its neighbour.

        It ends after its steps, or where there is no other neighbour; it is charged to the peer that passed it here.
        """
        contact = message.contact
        if peer not in self.active or contact.id == self.views.own or not self.links.allows(peer, now):
            return
        onward = [other for other in self.active if other not in (peer, contact.id)]
        if message.ttl == 0 or not onward:
            self._end_walk(peer, contact, now)
            return
        if message.ttl == PASSIVE_WALK:
            self.views.remember(contact)
        self._effects.append(Send(self._rng.choice(onward), ForwardJoin(contact, message.ttl - 1)))

    def _end_walk(self, peer: NodeId, contact: Contact, now: float) -> None:
        if contact.id not in self.active and self._neighbours.has_room() and self.links.allows(peer, now, DIAL):
            self._want(contact, now, high=True, newcomer=True)

    def on_neighbour(self, peer: NodeId, message: Neighbour, now: float) -> None:
        """Answer a request to be a neighbour.

        One of high priority, of a node with few neighbours, is granted even when another has to go for it.
        """
        if self.leaves.own or self.leaves.is_leaf(peer):
            self._effects += self.leaves.answer(peer, stopped=self._upkeep.stopped)
            return
        has_place = message.high or peer in self.active or len(self.active) < GOSSIP_MAX_ACTIVE
        accepted = has_place and not self._upkeep.stopped
        if accepted:
            self._neighbours.add(Contact(peer, message.record), self._sync_when_asked(peer))
        self._effects.append(Send(peer, NeighbourReply(accepted)))

    def on_neighbour_reply(self, peer: NodeId, message: NeighbourReply, now: float) -> None:
        """Take ``peer`` as a neighbour if it accepts, else look for another.

        An acceptance after this node gave up is answered with Disconnect, else the peer would have a neighbour that
        does not know it.
        """
        pending = self._pending.pop(peer, None)
        if pending is None:
            if message.accepted and peer not in self.active:
                self._effects.append(Send(peer, Disconnect(False)))  # too late: it was given up
            return
        pending.timer.cancel()
        if message.accepted:
            self._upkeep.succeeded()
            wait = RECONCILE_S if pending.newcomer else 0.0
            self._neighbours.add(pending.contact, wait, chosen=not pending.newcomer)
            self._upkeep.fill_soon(now, 0.05)
        else:
            self._metrics.count(REFUSED)
            self._full.put(peer, now)
            self._effects.append(Release(peer))
            self._upkeep.failed(now, urgent=self.views.are_few)

    def on_disconnect(self, peer: NodeId, message: Disconnect, now: float) -> None:
        """Part from a neighbour that parts from this node.

        It goes to the passive view, unless it leaves the mesh; another is looked for within 0.2 s.
        """
        self._effects += self.leaves.part(peer)
        contact = self.active.get(peer)
        if contact is None:
            return
        self._neighbours.remove(peer)
        self._full.put(peer, now)
        if not message.leaving:
            self.views.remember(contact)
        self._upkeep.fill_soon(now, self._rng.uniform(0.0, 0.2))

    # ---- inside

    def _want(
        self, contact: Contact, now: float, *, join: bool = False, high: bool = False, newcomer: bool = False
    ) -> None:
        peer = contact.id
        if peer == self.views.own or self.wants(peer) or self._upkeep.stopped:
            return
        if len(self._pending) >= GOSSIP_MAX_PENDING and not _drop_slow(self._pending, now):
            return
        timer = self._upkeep.at(now + ANSWER_S, lambda now: self.on_connect_failed(peer, now))
        pending = self._pending[peer] = _Pending(contact, join, high, newcomer, now, timer)
        if peer in self.links:
            self._ask(pending)
        else:
            self._effects.append(Connect(contact))

    def _ask(self, pending: _Pending) -> None:
        record = self._record()
        message = Join(record) if pending.join else Neighbour(pending.high, record)
        self._effects.append(Send(pending.contact.id, message))

    def _sync_when_asked(self, peer: NodeId) -> float:
        """Return the seconds until this node, which was asked, reconciles.

        The asker does at once, and of two that asked each other the one with the smaller id.
        """
        return 0.0 if peer in self._pending and self.views.own < peer else RECONCILE_S

    # ---- upkeep

    def _fill(self, now: float) -> None:
        """Ask as many passive members as there are neighbours missing.

        In a crowd all know the seeds alone. Each request that one may not refuse pushes another node out, which asks in
        turn: so one that has no room is asked after all others, one at a time, and the walks come first.
        """
        if self._upkeep.stopped:
            return
        awaited = sum(not pending.is_slow(now) for pending in self._pending.values())
        missing = self.leaves.wanted - len(self.active) - awaited
        if missing <= 0:
            self._upkeep.fill_soon(now, SLOW_S)  # if that is too few still
            return
        known = [c for c in self.passive.values() if c.id not in self._pending]
        self._rng.shuffle(known)
        high = self.views.are_few
        full = {peer: now - since for peer, since in self._full.items()}
        others = [c for c in known if full.get(c.id, FULL_S) >= FULL_S]
        candidates = others or [c for c in known if full[c.id] >= FULL_AGAIN_S][:1]
        if high and not others and (known or not self._pending):
            self._effects.append(NeedContacts())
        for contact in candidates[:missing]:
            self._want(contact, now, high=high)
        if not candidates and not self._pending:
            self._upkeep.failed(now, urgent=high)

    def _shuffle(self, now: float) -> float:
        if self.views.are_few or not self._upkeep.is_failing:
            self._upkeep.fill_soon(now, 0.0)
        if self._upkeep.shuffle_due(tuple(self.active), now, urgent=self.views.are_few):
            self.shuffles.start()
        return SHUFFLE_S

    def _rotate(self, now: float) -> float:
        """Look for another neighbour all over the mesh: those met when it formed need not be the best to have."""
        # a node that still knows few is in a mesh of two dozen, where all are near
        wanted = self._upkeep.is_young(now) or len(self.passive) >= GOSSIP_MAX_PASSIVE // 2
        if wanted and len(self.active) >= ACTIVE and self._neighbours.has_room():
            forward = ForwardJoin(Contact(self.views.own, self._record()), JOIN_WALK)
            self._effects.append(Send(self._rng.choice(list(self.active)), forward))
        return self._upkeep.rotate_wait(now)

    def _try_lost(self, now: float) -> float | None:
        """Probe one gone node: the longer it is gone, the more rarely."""
        if not self.views.lost:
            return None
        contact, since, _ = self.views.lost[self._rng.choice(list(self.views.lost))]
        self._effects.append(Probe(contact))
        return min(MAX_LOST_S, max(LOST_S, (now - since) / 30))


def _drop_slow(asked: dict[NodeId, _Pending], now: float) -> bool:
    """Wait no longer for a node that a neighbour named and that does not answer; False when there is none."""
    peer = next((peer for peer, pending in asked.items() if pending.is_slow(now)), None)
    if peer is None:
        return False
    asked.pop(peer).timer.cancel()
    return True
