"""Who is a member and who is not, as entries say it: where ``members`` and ``detector`` meet ``store`` and ``views``.

A part of ``Gossip`` with no timers of its own but two: when we look for ourselves after a lone accusation, and when we
refute what is said of us.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshnode.base.limits import GOSSIP_MAX_ACCUSERS, GOSSIP_MAX_TTL_S
from meshnode.base.metrics import describe
from meshnode.base.timers import Timer
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind
from meshnode.gossip.kinds import Accusation, Member, parse_accusation, parse_member
from meshnode.gossip.membership.members import NEEDED
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId

if TYPE_CHECKING:
    from meshnode.gossip.router import Gossip

ACCUSATION_TTL_S = 7200  # as long as what it is about: a partition of two hours still heals by refutation
REFUTE_EVERY_S = 0.5
SECOND_OPINION_S = 0.4

REFUTATIONS = describe("gossip_refutations", "times that we were accused and refuted it")


class Accusations:
    """Acts on MEMBER and ACCUSATION entries of others, and makes our own accusations and refutations."""

    def __init__(self, gossip: Gossip) -> None:
        self._gossip = gossip
        self._refuted_at = float("-inf")
        self._refuting: Timer | None = None

    def member(self, peer: NodeId) -> Entry | None:
        """The newest member entry of ``peer``."""
        return self._gossip.store.get((peer, Kind.MEMBER, ""))

    def incarnation(self, peer: NodeId) -> int:
        """Its seq, 0 when there is none."""
        entry = self.member(peer)
        return entry.seq if entry is not None else 0

    def on_member(self, entry: Entry, before: Entry | None, now: float) -> None:
        """A member lives, has moved, refutes, or leaves."""
        gossip, peer, member = self._gossip, entry.origin, parse_member(entry)
        if peer == gossip.id or member is None:
            return
        gossip.members.on_member(peer, entry.seq, member.left, now, news=before is None)
        self.void_accusations(peer, entry.seq)
        if member.left:
            gossip.views.forget(peer, now)
        else:
            gossip.views.note_record(Contact(peer, member.record))

    def void_accusations(self, peer: NodeId, seq: int) -> None:
        """A newer member entry refutes all that was said of older ones, everywhere alike."""
        store = self._gossip.store
        for entry in list(store.named(Kind.ACCUSATION, str(peer))):
            accusation = parse_accusation(entry)
            if accusation is None or accusation.incarnation < seq:
                store.drop(entry)

    def is_void(self, entry: Entry) -> bool:
        """True for an accusation that was refuted before it came."""
        accusation = parse_accusation(entry)
        return accusation is not None and accusation.incarnation < self.incarnation(accusation.accused)

    def on_accusation(self, entry: Entry, now: float) -> None:
        """Somebody does not hear somebody: perhaps us, perhaps one whom we can look after."""
        gossip, accusation = self._gossip, parse_accusation(entry)
        if accusation is None:
            return
        accused = accusation.accused
        if accused == gossip.id:
            gossip.rise_above(accusation.incarnation)
            gossip.detector.blame_ourselves()
            self.refute_soon(now)
            return
        gossip.members.on_accused(accused, entry.origin, accusation.incarnation, now)
        gossip.detector.suspect(accused, now)
        contact = gossip.views.passive.get(accused)
        if contact is not None and gossip.members.accusers(accused) < NEEDED:
            gossip.later(SECOND_OPINION_S, lambda now: self._second_opinion(contact, now), now)

    def breaks_the_tree(self, entry: Entry) -> bool:
        """The first accusation of a neighbour that is silent to us too: the tree led through it."""
        accusation = parse_accusation(entry) if entry.kind == Kind.ACCUSATION else None
        if accusation is None or accusation.accused not in self._gossip.views.active:
            return False
        accused, gossip = accusation.accused, self._gossip
        return gossip.members.accusers(accused) == 0 and not gossip.detector.hears(accused)

    def _second_opinion(self, contact: Contact, now: float) -> None:
        """A lone accuser may lie, or be cut off itself: whoever knows the accused, and is not its neighbour, looks."""
        members = self._gossip.members
        if members.accusers(contact.id) != 1:
            return

        def answered(alive: bool, now: float) -> None:
            if not alive and 0 < members.accusers(contact.id) < NEEDED:
                self.accuse(contact.id, now)

        self._gossip.detector.probe(contact, now, answered)

    def look_after(self, contact: Contact, now: float) -> None:
        """Somebody whom we do not watch may be dead: accuse it when it does not answer a probe."""
        gossip = self._gossip

        def answered(alive: bool, now: float) -> None:
            if not alive and contact.id not in gossip.views.active and gossip.status(contact.id) is Status.ALIVE:
                gossip.views.passive.pop(contact.id, None)
                self.accuse(contact.id, now)

        if gossip.probeable(contact) and gossip.members.status(contact.id) is Status.ALIVE:
            gossip.detector.probe(contact, now, answered)

    def accuse(self, peer: NodeId, now: float) -> None:
        """Tell all that ``peer`` does not answer, unless enough have."""
        gossip, incarnation = self._gossip, self.incarnation(peer)
        if gossip.members.accusers(peer) >= GOSSIP_MAX_ACCUSERS:
            return
        gossip.rise_above(incarnation)
        value = Accusation(peer, incarnation).encoded()
        gossip.put_out(Kind.ACCUSATION, str(peer), value, ACCUSATION_TTL_S, now, wide=True)
        gossip.members.on_accused(peer, gossip.id, incarnation, now)

    def on_own_past(self, entry: Entry, now: float) -> None:
        """An entry of ours that we do not remember (our state was lost, or somebody has our key): stay above it."""
        self._gossip.rise_above(entry.seq)
        if entry.kind == Kind.MEMBER:  # also when we count higher already: it is what others take for our newest word
            self.refute_soon(now)

    def outlive(self, past: Entry, now: float) -> None:
        """What replaced an entry of ours has to live as long as it: else the old one rises again where it still is."""
        gossip, held = self._gossip, self._gossip.get(past.key)
        if past.kind == Kind.ACCUSATION or (held is not None and held.expires >= past.expires):
            return  # a void accusation rises nowhere
        value = held.value if held is not None else None
        if past.kind == Kind.MEMBER and value is None:
            value = Member(False, gossip.record).encoded()
        ttl = min(GOSSIP_MAX_TTL_S, math.ceil(past.expires - gossip.wall(now)) + 1)
        gossip.put_out(past.kind, past.name, value, ttl, now)

    def refute_soon(self, now: float) -> None:
        """Say that we live, at once, or when half a second has passed since we said so last."""
        if self._refuting is None or not self._refuting.live:
            wait = max(0.0, self._refuted_at + REFUTE_EVERY_S - now)
            self._refuting = self._gossip.at(now + wait, self._refute)
            if not wait:
                self._refuting.fire(now)

    def _refute(self, now: float) -> None:
        self._refuted_at = now
        self._gossip.metrics.count(REFUTATIONS)
        self._gossip.announce(self._gossip.record, now)
