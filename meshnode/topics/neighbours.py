"""Links of one topic: which members this node exchanges its messages with. Sans I/O.

A link is asked for with Greet by the end that chose the other (overlay.py), is kept while either end repeats that, and
ends with Part, or with the connection.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.fair_table import FairTable
from meshnode.base.limits import TOPIC_MAX_LINKS
from meshnode.identity.node_id import NodeId
from meshnode.topics.context import TopicContext
from meshnode.topics.effects import FULL, Dial
from meshnode.topics.messages import Greet, Part
from meshnode.topics.overlay import Overlay

CHOOSE_S = 0.1  # changes of the membership within this are one
RENEW_S = 20.0  # a wanted link is greeted again
UNWANTED_S = 60.0  # and is over when neither end has wanted it for this long


class Neighbours:
    """Neighbours of this node in one topic. ``on_up`` and ``on_down`` are told which came and which went."""

    def __init__(
        self,
        context: TopicContext,
        scope: bytes,
        on_up: Callable[[NodeId, float], None],
        on_down: Callable[[NodeId], None],
    ) -> None:
        self.wanted: dict[NodeId, None] = {}
        self.greeted: dict[NodeId, float] = {}  # neighbours, and when they last said that they want the link
        self._context = context
        self._scope = scope
        self._on_up = on_up
        self._on_down = on_down
        self._overlay = Overlay(context.identity.id, scope)
        self._choosing = context.timers.timer(self.choose)
        self._returning = context.timers.timer(self.choose_soon)  # of those that are passed over
        self._renewing = context.timers.timer(self._renew)
        self._left = False

    def start(self, now: float) -> None:
        """Choose neighbours now, and look after them from now on."""
        self.choose(now)
        self._renewing.set(now + RENEW_S)

    def leave(self) -> None:
        """Part from all neighbours; nothing is chosen afterwards."""
        self._left = True
        self._choosing.cancel()
        self._returning.cancel()
        self._renewing.cancel()
        for peer in self.greeted:
            self._context.send(peer, Part(self._scope))

    # ---- what members say

    def on_greet(self, peer: NodeId, message: Greet, now: float) -> None:
        """Take up a link, or renew it.

        A member that this node wants too is greeted in turn. When there are ``TOPIC_MAX_LINKS`` others, a Part goes to
        the newest of the network and host with most of those that are not wanted, which may be ``peer``.
        """
        if peer in self.greeted:
            self.greeted[peer] = now
        elif peer in self.wanted:
            self._context.send(peer, Greet(self._scope))
            self._take_up(peer, now)
        elif len(self.greeted) < TOPIC_MAX_LINKS or self._makes_room(peer):
            self._take_up(peer, now)

    def _makes_room(self, peer: NodeId) -> bool:
        """Part from the link that gives way to ``peer``, or from ``peer`` itself: then False."""
        unwanted = [known for known in self.greeted if known not in self.wanted]
        shares: FairTable[NodeId] = FairTable(max(1, len(unwanted)), newest_goes=True)
        for known in unwanted:
            shares.add(known, *self._context.groups_of(known))
        gone = shares.add(peer, *self._context.groups_of(peer)) or peer
        self._context.metrics.count(FULL)
        self._context.send(gone, Part(self._scope))
        if gone == peer:
            return False
        self._give_up(gone)
        return True

    def part(self, peer: NodeId) -> None:
        """Tell a peer that it is no neighbour here."""
        self._context.send(peer, Part(self._scope))
        self._give_up(peer)

    def on_part(self, peer: NodeId, message: Part, now: float) -> None:
        """Give up a link that its other end does not want, and avoid that member for a while."""
        self._give_up(peer)
        self._context.links.avoid(peer, now)
        self.choose_soon(now)

    # ---- what happens to members

    def on_link(self, peer: NodeId, up: bool, now: float) -> None:
        """Note that a connection came or went: greet a wanted member over it, or replace a neighbour without one."""
        if up:
            if peer in self.wanted:
                self._greet(peer, now)
            return
        was_neighbour = peer in self.greeted
        self._give_up(peer)
        if was_neighbour or peer in self.wanted:
            self.choose_soon(now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """Choose again when a wanted member, which is avoided now, could not be connected."""
        if peer in self.wanted:
            self.choose_soon(now)

    def on_unsubscribed(self, peer: NodeId, now: float) -> None:
        """Choose again: a member left the topic."""
        self._overlay.forget(peer)
        self.choose_soon(now)

    # ---- choosing

    def choose_soon(self, now: float) -> None:
        """Choose neighbours again within ``CHOOSE_S``: the members are others than before."""
        if not self._left and not self._choosing.live:
            self._choosing.set(now + CHOOSE_S)

    def choose(self, now: float) -> None:
        """Choose the wanted neighbours; dial them, or greet them where there is a connection.

        Neighbours that are no longer wanted stay until ``_renew`` finds that their end does not want the link either.
        """
        links = self._context.links
        members = [peer for peer in self._context.members(self._scope) if not links.is_avoided(peer, now)]
        self.wanted = dict.fromkeys(self._overlay.choose(self._context.carriers(members)))
        for peer in self.wanted:
            if peer not in links.up:
                self._context.effects.append(Dial(peer))
            elif peer not in self.greeted:
                self._greet(peer, now)
        again = links.avoided_until(now)
        self._returning.set(again + CHOOSE_S if again is not None else None)

    def _renew(self, now: float) -> None:
        """Greet wanted neighbours again; part from those that neither end wants any longer."""
        self._renewing.set(now + RENEW_S * self._context.rng.uniform(0.8, 1.2))
        for peer, heard in list(self.greeted.items()):
            if peer in self.wanted:
                self._context.send(peer, Greet(self._scope))
            elif now - heard > UNWANTED_S:
                self._give_up(peer)
                self._context.send(peer, Part(self._scope))
        self.choose_soon(now)

    def _greet(self, peer: NodeId, now: float) -> None:
        self._context.send(peer, Greet(self._scope))
        if peer not in self.greeted:
            self._take_up(peer, now)

    def _take_up(self, peer: NodeId, now: float) -> None:
        self.greeted[peer] = now
        self._on_up(peer, now)

    def _give_up(self, peer: NodeId) -> None:
        self.greeted.pop(peer, None)
        self._on_down(peer)
