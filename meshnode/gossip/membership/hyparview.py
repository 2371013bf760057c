"""Partial views: a handful of links, and a few dozen others known in case one breaks. Sans I/O.

HyParView (Leitao, Pereira, Rodrigues, DSN 2007). The active view is symmetric: its members are linked, each is in the
other's. The passive view is a sample of the rest that shuffles keep fresh. Different from the paper: we look for more
neighbours below 6 and take up to 8; a shuffle's answer goes back the way that it came, for a QUIC connection for one
message would cost more than the walk; whoever has fewer than 3 neighbours asks with high priority, so that enough
others watch it (detector.py); gone members are tried again, so that the halves of a partition find each other; and
neighbours change slowly by further walks, for those who joined together would keep to themselves for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    GOSSIP_MAX_ACTIVE,
    GOSSIP_MAX_CONTACTS,
    GOSSIP_MAX_LOST,
    GOSSIP_MAX_PASSIVE,
    GOSSIP_MAX_PENDING,
    GOSSIP_MAX_WALKS,
    GOSSIP_WALK_BURST,
    GOSSIP_WALK_RATE,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.token_bucket import TokenBucket
from meshnode.gossip.effects import Connect, NeedContacts, NeighbourDown, NeighbourUp, Probe, Release, Send
from meshnode.gossip.messages import (
    MAX_TX,
    Contact,
    Disconnect,
    ForwardJoin,
    Join,
    Neighbour,
    NeighbourReply,
    Shuffle,
    ShuffleReply,
)
from meshnode.identity.node_id import NodeId

ACTIVE = 6
FEW = 3
JOIN_WALK, PASSIVE_WALK, SHUFFLE_WALK = 6, 3, 4  # ARWL, PRWL of the paper
SHUFFLE_S = 10.0
ROTATE_S, MAX_ROTATE_S = 10.0, 600.0  # between walks for another neighbour: half as long as we have been here
PASS_ON, DIAL = 1.0, 8.0  # what a walk costs whoever passed it to us
FILL_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # between attempts to find a neighbour while they fail
LATER_S = 0.5  # who has just joined learns what there is from its contact, not from everybody at once
ANSWER_S = 5.0  # for a Neighbour to be answered, the dial included
LOST_S, MAX_LOST_S = 2.0, 60.0  # between attempts to reach a gone member; grows with the time that it is gone

REFUSED = describe("gossip_refused", "times that a node had no room for us as its neighbour")
WALKS = describe("gossip_drop_walks", "random walks dropped: too many from one neighbour")
UNASKED = describe("gossip_drop_unasked", "membership messages dropped: from no neighbour, or not asked for")
REJOINED = describe("gossip_rejoined", "gone members that answered again")


@dataclass(slots=True)
class _Pending:
    contact: Contact
    join: bool
    high: bool
    newcomer: bool
    timer: Timer | None = None


ViewEffect = Send | Connect | Release | Probe | NeedContacts | NeighbourUp | NeighbourDown


class HyParView:
    """The active and the passive view of one node.

    ``record`` returns our own encoded record, ``spare`` the neighbours that may go without harm.
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
    ) -> None:
        self.active: dict[NodeId, Contact] = {}
        self.passive: dict[NodeId, Contact] = {}
        self.lost: BoundedDict[NodeId, tuple[Contact, float]] = BoundedDict(GOSSIP_MAX_LOST)
        self._own = own
        self._rng = rng
        self._timers = timers
        self._metrics = metrics
        self._record = record
        self._spare = spare
        self._links: dict[NodeId, None] = {}
        self._pending: dict[NodeId, _Pending] = {}
        self._walks: BoundedDict[int, NodeId] = BoundedDict(GOSSIP_MAX_WALKS)
        self._offered: dict[int, tuple[Contact, ...]] = {}
        self._walked: dict[NodeId, TokenBucket] = {}
        self._effects: list[ViewEffect] = []
        self._fill: Timer | None = None
        self._failures = 0
        self._left = False
        self._since = now
        timers.at(now + rng.uniform(0.2, 1.0) * SHUFFLE_S, self._shuffle)
        timers.at(now + rng.uniform(0.5, 1.0) * ROTATE_S, self._rotate)
        timers.at(now + rng.uniform(0.5, 1.0) * LOST_S, self._try_lost)

    def take_effects(self) -> list[ViewEffect]:
        """Everything to do since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # ---- verbs

    def join(self, contact: Contact, now: float) -> None:
        """Enter the mesh through this node."""
        if contact.id not in self.active:
            self._want(contact, now, join=True, high=True)

    def add_contact(self, contact: Contact, now: float) -> None:
        """Somebody knows of a node: it may become a neighbour when we need one."""
        if contact.id == self._own or self._left:
            return
        known = self.active.get(contact.id)
        if known is not None:
            if contact.record:
                self.active[contact.id] = contact
            return
        if contact.id in self.lost:
            return  # it is tried on its own timer, and answers or does not
        self._remember(contact, ())
        if len(self.active) < ACTIVE:
            self._fill_soon(now, 0.0)

    def note_record(self, contact: Contact) -> None:
        """A newer record of a node: kept when it is in a view."""
        if contact.id in self.active:
            self.active[contact.id] = contact
        elif contact.id in self.passive:
            self.passive[contact.id] = contact
        elif contact.id in self.lost:
            self.lost[contact.id] = contact, self.lost[contact.id][1]

    def leave(self, now: float) -> None:
        """Tell the neighbours that we go; nothing is asked of anybody afterwards."""
        self._left = True
        for peer in list(self.active):
            self._effects.append(Send(peer, Disconnect(True)))
            self._part(peer)
        self._pending.clear()

    def forget(self, peer: NodeId, now: float) -> None:
        """``peer`` has left, or is banned: it is in no view, and is not tried again."""
        self.passive.pop(peer, None)
        self.lost.pop(peer, None)
        self._pending.pop(peer, None)
        self.drop(peer, now)

    def lose(self, peer: NodeId, now: float) -> None:
        """``peer`` is gone: replaced, and tried again now and then."""
        contact = self.active.get(peer) or self.passive.pop(peer, None)
        if contact is not None:
            self.lost[peer] = contact, now
        self._pending.pop(peer, None)
        self.drop(peer, now)

    def drop(self, peer: NodeId, now: float) -> None:
        """``peer`` is no neighbour any more, and told so; another takes its place."""
        if peer in self.active:
            self._effects.append(Send(peer, Disconnect(False)))
            self._part(peer)
            self._fill_soon(now, 0.0)

    def on_alive(self, peer: NodeId, now: float) -> None:
        """``peer`` has answered a probe, or shown otherwise that it lives."""
        found = self.lost.pop(peer, None)
        if found is not None and not self._left:
            self._metrics.count(REJOINED)
            self._want(found[0], now, high=True)  # the first link over what was a gap must not be refused

    def wants(self, peer: NodeId) -> bool:
        """True while a link to ``peer`` is of use."""
        return peer in self.active or peer in self._pending

    # ---- links

    def on_link(self, peer: NodeId, now: float) -> None:
        """There is a connection to ``peer``, whoever wanted it."""
        if peer in self._links:
            return  # told twice: by the connection, and by the answer to ``Connect``
        self._links[peer] = None
        pending = self._pending.get(peer)
        if pending is not None:
            self._ask(pending)
        elif peer in self.lost:
            self.on_alive(peer, now)
        elif len(self.active) < ACTIVE and not self._left:
            self._remember(Contact(peer), ())
            self._fill_soon(now, 0.0)

    def on_unlink(self, peer: NodeId, now: float) -> None:
        """The connection to ``peer`` is over."""
        self._links.pop(peer, None)
        self._walked.pop(peer, None)
        contact = self.active.get(peer)
        if contact is not None:
            self._part(peer)
            self._remember(contact, ())
            self._fill_soon(now, 0.0)
        if peer in self._pending:
            self.on_connect_failed(peer, now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """No link could be opened, or the peer did not answer on it."""
        pending = self._pending.pop(peer, None)
        if pending is None:
            return
        if pending.timer is not None:
            pending.timer.cancel()
        contact = self.passive.pop(peer, None)
        if contact is not None and contact.record:
            self.lost[peer] = contact, now
        self._failed(now)

    # ---- what neighbours say

    def on_join(self, peer: NodeId, message: Join, now: float) -> None:
        """A new node: our neighbour, and by random walks some others' too."""
        if not self._may_walk(peer, now):
            return
        known = peer in self.active
        self._accept(Contact(peer, message.record), self._when_asked(peer), crowd=True)
        self._effects.append(Send(peer, NeighbourReply(True)))
        if not known:
            forward = ForwardJoin(self.active[peer], JOIN_WALK)
            for other in self.active:
                if other != peer:
                    self._effects.append(Send(other, forward))

    def on_forward_join(self, peer: NodeId, message: ForwardJoin, now: float) -> None:
        """A random walk for a new node: it ends here, or goes on."""
        contact = message.contact
        if peer not in self.active or contact.id == self._own or not self._may_walk(peer, now):
            return
        onward = [other for other in self.active if other not in (peer, contact.id)]
        if message.ttl == 0 or not onward:
            if contact.id not in self.active and self._has_room() and self._may_walk(peer, now, DIAL):
                self._want(contact, now, high=True, newcomer=True)
            return
        if message.ttl == PASSIVE_WALK:
            self._remember(contact, ())
        self._effects.append(Send(self._rng.choice(onward), ForwardJoin(contact, message.ttl - 1)))

    def on_neighbour(self, peer: NodeId, message: Neighbour, now: float) -> None:
        """``peer`` asks to be our neighbour."""
        accepted = not self._left and (message.high or peer in self.active or len(self.active) < GOSSIP_MAX_ACTIVE)
        if accepted:
            self._accept(Contact(peer, message.record), self._when_asked(peer))
        self._effects.append(Send(peer, NeighbourReply(accepted)))

    def on_neighbour_reply(self, peer: NodeId, message: NeighbourReply, now: float) -> None:
        """``peer`` takes us, or has no room."""
        pending = self._pending.pop(peer, None)
        if pending is None:
            if message.accepted and peer not in self.active:
                self._effects.append(Send(peer, Disconnect(False)))  # too late: we have given it up
            return
        if pending.timer is not None:
            pending.timer.cancel()
        if message.accepted:
            self._failures = 0
            self._accept(pending.contact, LATER_S if pending.newcomer else 0.0)
            self._fill_soon(now, 0.05)
        else:
            self._metrics.count(REFUSED)
            self._effects.append(Release(peer))
            self._failed(now)

    def on_disconnect(self, peer: NodeId, message: Disconnect, now: float) -> None:
        """``peer`` has dropped us."""
        contact = self.active.get(peer)
        if contact is None:
            return
        self._part(peer)
        if not message.leaving:
            self._remember(contact, ())
        self._fill_soon(now, self._rng.uniform(0.0, 0.2))

    def on_shuffle(self, peer: NodeId, message: Shuffle, now: float) -> None:
        """Others' contacts on a random walk: pass them on, or keep some and give as many back."""
        if peer not in self.active or not self._may_walk(peer, now):
            return
        onward = [other for other in self.active if other != peer]
        if message.ttl > 0 and onward and message.tx not in self._walks:
            self._walks[message.tx] = peer
            self._effects.append(Send(self._rng.choice(onward), Shuffle(message.tx, message.ttl - 1, message.contacts)))
            return
        mine = self._sample(self.passive, len(message.contacts))
        self._effects.append(Send(peer, ShuffleReply(message.tx, mine)))
        for contact in message.contacts:
            self._remember(contact, mine)

    def on_shuffle_reply(self, peer: NodeId, message: ShuffleReply, now: float) -> None:
        """The answer to a shuffle of ours, or of somebody before us on its way."""
        offered = self._offered.pop(message.tx, None)
        if offered is not None:
            for contact in message.contacts:
                self._remember(contact, offered)
            return
        back = self._walks.pop(message.tx, None)
        if back is None:
            self._metrics.count(UNASKED)
        elif back in self.active:
            self._effects.append(Send(back, message))

    def on_stranger(self, peer: NodeId) -> None:
        """``peer`` takes us for its neighbour, and is none of ours: it had better know."""
        if peer not in self._pending:
            self._effects.append(Send(peer, Disconnect(False)))

    # ---- inside

    def _want(
        self, contact: Contact, now: float, *, join: bool = False, high: bool = False, newcomer: bool = False
    ) -> None:
        peer = contact.id
        if peer == self._own or peer in self.active or self._left:
            return
        if peer in self._pending or len(self._pending) >= GOSSIP_MAX_PENDING:
            return
        pending = self._pending[peer] = _Pending(contact, join, high, newcomer)
        pending.timer = self._timers.at(now + ANSWER_S, lambda now: self.on_connect_failed(peer, now))
        if peer in self._links:
            self._ask(pending)
        else:
            self._effects.append(Connect(contact))

    def _ask(self, pending: _Pending) -> None:
        record = self._record()
        message = Join(record) if pending.join else Neighbour(pending.high, record)
        self._effects.append(Send(pending.contact.id, message))

    def _when_asked(self, peer: NodeId) -> float:
        """Who asked reconciles at once, the other later; of two who asked each other, the smaller id is first."""
        return 0.0 if peer in self._pending and self._own < peer else LATER_S

    def _accept(self, contact: Contact, reconcile_in: float, *, crowd: bool = False) -> None:
        peer = contact.id
        self.passive.pop(peer, None)
        self.lost.pop(peer, None)
        if peer in self.active:
            if contact.record:
                self.active[peer] = contact
            return
        if len(self.active) >= GOSSIP_MAX_ACTIVE:
            # a crowd that joins through us replaces one another: who knew the mesh before sends their walks all over it
            spare = [known for known in self._spare() if known in self.active] or list(self.active)
            victim = next(reversed(self.active)) if crowd else self._rng.choice(spare)
            evicted = self.active[victim]
            self._effects.append(Send(victim, Disconnect(False)))
            self._part(victim)
            self._remember(evicted, ())
        self.active[peer] = contact
        self._effects.append(NeighbourUp(peer, reconcile_in))

    def _has_room(self) -> bool:
        return len(self.active) < GOSSIP_MAX_ACTIVE or bool(self._spare())

    def _part(self, peer: NodeId) -> None:
        del self.active[peer]
        self._walked.pop(peer, None)
        self._effects.append(NeighbourDown(peer))
        self._effects.append(Release(peer))

    def _remember(self, contact: Contact, sent: tuple[Contact, ...]) -> None:
        """Into the passive view; when it is full, somebody whom the other side has now goes, or anybody."""
        peer = contact.id
        if peer == self._own or peer in self.active or peer in self.lost:
            return
        if peer in self.passive:
            if contact.record:
                self.passive[peer] = contact
            return
        if len(self.passive) >= GOSSIP_MAX_PASSIVE:
            spare = [c.id for c in sent if c.id in self.passive] or list(self.passive)
            del self.passive[self._rng.choice(spare)]
        self.passive[peer] = contact

    def _fill_soon(self, now: float, wait: float) -> None:
        if self._left or len(self.active) >= ACTIVE:
            return
        if self._fill is not None and self._fill.live:
            if self._fill.when <= now + wait:
                return
            self._fill.cancel()
        self._fill = self._timers.at(now + wait, self._fill_up)

    def _fill_up(self, now: float) -> None:
        """Ask as many passive members as there are neighbours missing."""
        if self._left:
            return
        missing = ACTIVE - len(self.active) - len(self._pending)
        candidates = [c for c in self.passive.values() if c.id not in self._pending]
        self._rng.shuffle(candidates)
        for contact in candidates[: max(0, missing)]:
            self._want(contact, now, high=len(self.active) < FEW)
        if missing > 0 and not candidates and not self._pending and len(self.active) < FEW:
            self._effects.append(NeedContacts())
            self._failed(now)

    def _failed(self, now: float) -> None:
        wait = FILL_S[min(self._failures, len(FILL_S) - 1)]
        self._failures += 1
        self._fill_soon(now, wait * self._rng.uniform(0.7, 1.3))

    def _may_walk(self, peer: NodeId, now: float, cost: float = PASS_ON) -> bool:
        """A walk costs us a message or a dial: one neighbour may cause so many."""
        bucket = self._walked.get(peer) or TokenBucket(GOSSIP_WALK_RATE, GOSSIP_WALK_BURST, now)
        if peer in self._links:
            self._walked[peer] = bucket
        if bucket.take(cost, now):
            return True
        self._metrics.count(WALKS)
        return False

    def _sample(self, view: dict[NodeId, Contact], count: int) -> tuple[Contact, ...]:
        found = list(view.values())
        return tuple(self._rng.sample(found, min(count, len(found))))

    def _shuffle(self, now: float) -> None:
        if self._left:
            return
        self._timers.at(now + SHUFFLE_S * self._rng.uniform(0.8, 1.2), self._shuffle)
        if len(self.active) < ACTIVE:
            self._fill_soon(now, 0.0)
        if not self.active:
            return
        contacts = (
            Contact(self._own, self._record()),
            *self._sample(self.active, 3),
            *self._sample(self.passive, GOSSIP_MAX_CONTACTS - 4),
        )
        tx = self._rng.randrange(MAX_TX)
        self._offered = {tx: contacts}
        self._effects.append(Send(self._rng.choice(list(self.active)), Shuffle(tx, SHUFFLE_WALK, contacts)))

    def _rotate(self, now: float) -> None:
        """Another neighbour, from all over the mesh: those we met when it formed need not be the best to have."""
        if self._left:
            return
        wait = min(MAX_ROTATE_S, max(ROTATE_S, (now - self._since) / 2))
        self._timers.at(now + wait * self._rng.uniform(0.75, 1.25), self._rotate)
        # who still knows few is in a mesh of two dozen, where everybody is near
        wanted = now - self._since < 1.5 * ROTATE_S or len(self.passive) >= GOSSIP_MAX_PASSIVE // 2
        if wanted and len(self.active) >= ACTIVE and self._has_room():
            forward = ForwardJoin(Contact(self._own, self._record()), JOIN_WALK)
            self._effects.append(Send(self._rng.choice(list(self.active)), forward))

    def _try_lost(self, now: float) -> None:
        """Probe one gone member: the longer they are gone, the more rarely."""
        if self._left:
            return
        wait = LOST_S
        if self.lost:
            peer = self._rng.choice(list(self.lost))
            contact, since = self.lost[peer]
            self._effects.append(Probe(contact))
            wait = min(MAX_LOST_S, max(LOST_S, (now - since) / 30))
        self._timers.at(now + wait * self._rng.uniform(0.75, 1.25), self._try_lost)
