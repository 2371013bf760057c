"""Broadcast over the neighbours: a tree that grows out of the fastest links, and announcements that mend it. Sans I/O.

Plumtree (Leitao, Pereira, Rodrigues, SRDS 2007). A payload goes at once over eager links, its id a moment later over
lazy ones. A payload that comes a second time makes its link lazy (PRUNE); an id that comes without its payload makes
the link eager that the payload is then asked of (GRAFT). What a payload is, and whether it counts, is not known here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_FRAME, GOSSIP_MAX_EARLY, GOSSIP_MAX_HOPS, GOSSIP_MAX_IDS
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import value
from meshnode.gossip.dissemination.awaited import Awaited, Wanted
from meshnode.gossip.dissemination.payloads import Payload, RecentPayloads, Seen
from meshnode.gossip.effects import Send
from meshnode.gossip.messages import Eager, Graft, IHave, Prune
from meshnode.identity.node_id import NodeId

PRUNE_AGAIN_S = 0.5  # a neighbour that still pushes this long after a PRUNE is sent another
EAGER_LINKS = 2  # of a node at first: with more, most payloads come several times until the links are pruned
SWAP_HOPS = 1  # an announcement that is this many hops nearer than the payload was swaps the links (section 3.8)

PAYLOADS = describe("gossip_payloads", "payloads received over links")
TWICE = describe("gossip_payloads_twice", "payloads received a second time")
GRAFTS = describe("gossip_grafts", "payloads asked for: announced and not received")


@value
class Settings:
    """Waits in seconds, and which optional part of the paper is used."""

    announce_s: float = 0.01  # ids wait for others, to share a frame
    announce_again_s: float = 0.3  # since the last ids: a busy mesh sends three frames of them a second on a link
    graft_s: float = 0.3  # until an announced payload is asked for: one loss (0.2 s) and a hop more are no reason
    graft_again_s: float = 0.3  # until it is asked of the next announcer
    swaps: bool = True  # optimize the tree for hops (section 3.8)


def _finds_nothing(item: bytes) -> bytes | None:
    return None


class Plumtree:
    """One tree. Ids are 8 bytes; payloads that are handed in have been verified.

    ``forwards``: what comes from a neighbour goes on to others.
    ``find`` returns older payloads for neighbours that ask; ``ask`` replaces ``graft`` as what is done about awaited
    payloads; ``slack`` postpones that.
    """

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        metrics: Metrics,
        now: float,
        *,
        scope: bytes = b"",
        settings: Settings | None = None,
        find: Callable[[bytes], bytes | None] = _finds_nothing,
        ask: Callable[[Wanted, float], None] | None = None,
        slack: Callable[[float], float] | None = None,
        forwards: bool = True,
    ) -> None:
        self.settings = settings or Settings()
        self.eager: dict[NodeId, None] = {}
        self.lazy: dict[NodeId, float] = {}  # and when it was pruned
        self.recent = RecentPayloads()
        self.seen = Seen(now)
        waits = self.settings.graft_s, self.settings.graft_again_s
        self.awaited = Awaited(timers, metrics, waits, ask or self.graft, self.is_linked, slack)
        self._rng = rng
        self._metrics = metrics
        self.edge = Edge(forwards)
        self._find = find
        self._early: BoundedDict[bytes, None] = BoundedDict(GOSSIP_MAX_EARLY)
        self._pushes: dict[NodeId, list[tuple[int, bytes]]] = {}
        self.effects: list[Send] = []
        self.announcements = Announcements(timers, self.settings, scope, self.effects)

    def take_effects(self) -> list[Send]:
        """Return everything to send since the last call.

        Payloads for one neighbour share messages.
        """
        if self._pushes:
            for peer, items in self.take_pushes().items():
                self.effects += [Send(peer, Eager(self.announcements.scope, part)) for part in frames(items)]
        effects = self.effects.copy()
        self.effects.clear()
        return effects

    def take_pushes(self) -> dict[NodeId, list[tuple[int, bytes]]]:
        """Take the payloads out of what is to be sent: a list for each neighbour, each with its hops."""
        pushes, self._pushes = self._pushes, {}
        return pushes

    # ---- links

    def add(self, peer: NodeId) -> None:
        """Add a neighbour, or make one eager: so are all links until they prove superfluous."""
        self.lazy.pop(peer, None)
        self.eager[peer] = None

    def link(self, peer: NodeId) -> None:
        """Add a neighbour: lazy where a tree has grown, or ``EAGER_LINKS`` are eager, else eager.

        A node without eager neighbours takes the link at both ends, so it gets into the tree at once.
        """
        eager = self.edge.inner(self.eager)
        if eager and (self.edge.inner(self.lazy) or len(eager) >= EAGER_LINKS):
            self.lazy[peer] = -math.inf
            return
        if not eager:
            self.effects.append(Send(peer, Graft(self.announcements.scope, ())))
        self.add(peer)

    def unlink(self, peer: NodeId) -> None:
        """Remove a neighbour.

        When it was the last eager one, a lazy one drawn at random becomes eager.
        """
        self.remove(peer)
        lazy = self.edge.inner(self.lazy)
        if lazy and not self.edge.inner(self.eager):
            self.take_link(self._rng.choice(lazy))

    def remove(self, peer: NodeId) -> None:
        """Remove a neighbour and what waits for it."""
        self.eager.pop(peer, None)
        self.lazy.pop(peer, None)
        self.edge.leaves.pop(peer, None)
        self._pushes.pop(peer, None)
        self.announcements.remove(peer)

    def is_linked(self, peer: NodeId) -> bool:
        """Return whether ``peer`` is a neighbour."""
        return peer in self.eager or peer in self.lazy

    def spare(self) -> list[NodeId]:
        """Return neighbours that may go without harm: lazy ones, or any before there is a tree."""
        return list(self.lazy) if self.seen else list(self.eager)

    def take_link(self, peer: NodeId) -> None:
        """Make a link eager at both ends."""
        self.add(peer)
        self.effects.append(Send(peer, Graft(self.announcements.scope, ())))

    def graft(self, wanted: Wanted, now: float) -> None:
        """Ask for awaited payloads and make those links eager."""
        for peer, items in wanted.items():
            self._metrics.count(GRAFTS, len(items))
            self.add(peer)
            for i in range(0, len(items), GOSSIP_MAX_IDS):
                self.effects.append(Send(peer, Graft(self.announcements.scope, tuple(items[i : i + GOSSIP_MAX_IDS]))))

    # ---- payloads

    def publish(self, item: bytes, payload: bytes, now: float, *, wide: bool = False) -> None:
        """Spread a payload of this node: over eager links, and as an announcement over lazy ones.

        ``wide`` sends it over all links at once, for when a repair of the tree would come too late.
        """
        self._spread(item, Payload(payload, 0), None, now, wide)

    def announce(self, item: bytes, payload: bytes, source: NodeId, now: float) -> None:
        """Offer a payload that came by anti-entropy: most neighbours have it, so only its id is sent."""
        self._note(item, Payload(payload, GOSSIP_MAX_HOPS), now)
        self._early[item] = None
        for peer in (*self.eager, *self.lazy):
            if peer != source and self.edge.forwards:
                self.announcements.add(peer, [(GOSSIP_MAX_HOPS, item)], now)

    def serve(self, peer: NodeId, items: tuple[bytes, ...]) -> None:
        """Send payloads that a neighbour asks for, as far as they are still here."""
        for item in items:
            found = self.recent.get(item)
            if found is not None:
                self._push(peer, found)
            elif (data := self._find(item)) is not None:
                self._push(peer, Payload(data, 0))

    # ---- what neighbours say

    def on_payload(
        self,
        peer: NodeId,
        item: bytes,
        payload: bytes,
        hops: int,
        now: float,
        *,
        wide: bool = False,
        takes_link: bool = True,
    ) -> None:
        """Pass on a payload that is new and counts.

        ``wide``: over all links, for the tree is broken; ``takes_link``: a lazy link that brings it becomes eager.
        """
        self._metrics.count(PAYLOADS)
        hops = min(hops + 1, GOSSIP_MAX_HOPS)
        announced = self.awaited.received(item)
        if takes_link and peer in self.lazy:
            self.add(peer)
        self._spread(item, Payload(payload, hops), peer, now, wide)
        if announced and self.settings.swaps:
            nearest, least = min(announced, key=lambda pair: pair[1])
            if least + SWAP_HOPS <= hops and nearest in self.lazy and peer in self.eager:
                self.take_link(nearest)
                self._prune(peer, now)

    def on_overtaken(self, peer: NodeId, item: bytes, hops: int, now: float) -> bool:
        """Pass on a payload that anti-entropy brought before the tree did.

        Returns False when it is none of these, but a duplicate.
        """
        found = self.recent.get(item)
        if item not in self._early or found is None:
            return False
        del self._early[item]
        self.on_payload(peer, item, found.data, hops, now)
        return True

    def on_duplicate(self, peer: NodeId, item: bytes, now: float) -> bool:
        """Prune the link that brings a payload a second time.

        Returns False when that was done within ``PRUNE_AGAIN_S``: what comes meanwhile was under way.
        """
        self._metrics.count(PAYLOADS)
        self._metrics.count(TWICE)
        pruned = peer in self.eager or now - self.lazy.get(peer, now) > PRUNE_AGAIN_S
        if pruned:
            self._prune(peer, now)
        return pruned

    def on_rejected(self, item: bytes, now: float) -> None:
        """Remember a payload that does not count: it is not asked for again."""
        self.awaited.received(item)
        self.seen.add(item, now)

    def on_ihave(self, peer: NodeId, message: IHave, now: float) -> None:
        """Await the announced payloads that have not come (paper, section 3.5)."""
        if not self.is_linked(peer):
            return
        for hops, item in message.items:
            if item not in self.seen:
                self.awaited.announced(peer, item, hops, now)
        self.awaited.arm()

    def on_graft(self, peer: NodeId, message: Graft, now: float) -> None:
        """Make the link eager and send what is asked for."""
        if self.is_linked(peer):
            self.add(peer)
            self.serve(peer, message.ids)

    def on_prune(self, peer: NodeId, message: Prune, now: float) -> None:
        """Make the link lazy: the neighbour gets its payloads over others."""
        if peer in self.eager:
            del self.eager[peer]
            self.lazy[peer] = now

    # ---- inside

    def _spread(self, item: bytes, payload: Payload, source: NodeId | None, now: float, wide: bool) -> None:
        self._note(item, payload, now)
        if source is not None and not self.edge.forwards:
            return
        if wide:  # payloads go only over links that both ends take for eager: a second copy prunes its link
            for peer in list(self.lazy):
                self.add(peer)
        for peer in self.eager:
            if peer != source:
                self._push(peer, payload)
        for peer in self.lazy:
            if peer != source:
                self.announcements.add(peer, [(min(payload.hops + 1, GOSSIP_MAX_HOPS), item)], now)

    def _push(self, peer: NodeId, payload: Payload) -> None:
        self._pushes.setdefault(peer, []).append((payload.hops, payload.data))

    def _prune(self, peer: NodeId, now: float) -> None:
        self.eager.pop(peer, None)
        self.lazy[peer] = now
        self.effects.append(Send(peer, Prune(self.announcements.scope)))

    def _note(self, item: bytes, payload: Payload, now: float) -> None:
        self.seen.add(item, now)
        self.awaited.received(item)
        self.recent.add(item, payload, now)


class Edge:
    """The edge of a tree: ``leaves`` are neighbours that pass nothing on, nor does a node that ``forwards`` nothing."""

    def __init__(self, forwards: bool) -> None:
        self.forwards = forwards
        self.leaves: dict[NodeId, None] = {}

    def inner(self, peers: Iterable[NodeId]) -> list[NodeId]:
        """Return the neighbours of a list that pass payloads on."""
        return [peer for peer in peers if peer not in self.leaves]


class Announcements:
    """Ids for lazy links, which wait for each other to share messages (section 3.4)."""

    def __init__(self, timers: Timers, settings: Settings, scope: bytes, effects: list[Send]) -> None:
        self._timers = timers
        self._settings = settings
        self.scope = scope
        self._effects = effects
        self._waiting: dict[NodeId, list[tuple[int, bytes]]] = {}
        self._timer: Timer | None = None
        self._sent = -math.inf

    def add(self, peer: NodeId, items: list[tuple[int, bytes]], now: float) -> None:
        """Queue ids, each with its hops, for a neighbour."""
        self._waiting.setdefault(peer, []).extend(items)
        if self._timer is None:
            at = max(now + self._settings.announce_s, self._sent + self._settings.announce_again_s)
            self._timer = self._timers.at(at, self._flush)

    def remove(self, peer: NodeId) -> None:
        """Forget what waits for a neighbour."""
        self._waiting.pop(peer, None)

    def _flush(self, now: float) -> None:
        self._timer, self._sent = None, now
        waiting, self._waiting = self._waiting, {}
        for peer, items in waiting.items():
            for i in range(0, len(items), GOSSIP_MAX_IDS):
                self._effects.append(Send(peer, IHave(self.scope, tuple(items[i : i + GOSSIP_MAX_IDS]))))


def frames(items: list[tuple[int, bytes]]) -> list[tuple[tuple[int, bytes], ...]]:
    """Cut a list of payloads into messages of at most ``GOSSIP_FRAME`` bytes; the order stays.

    A payload above that size gets a message of its own; an empty list gives one empty message.
    """
    if len(items) == 1:
        return [tuple(items)]
    frames: list[tuple[tuple[int, bytes], ...]] = []
    begin = size = 0
    for i, (_, payload) in enumerate(items):
        if size + len(payload) > GOSSIP_FRAME and i > begin:
            frames.append(tuple(items[begin:i]))
            begin, size = i, 0
        size += len(payload) + 8
    frames.append(tuple(items[begin:]))
    return frames
