"""Broadcast over the neighbours: a tree that grows out of who was first, and announcements that mend it. Sans I/O.

Plumtree (Leitao, Pereira, Rodrigues, SRDS 2007). A payload goes at once over eager links, its id a moment later over
lazy ones. Who gets a payload twice makes the later link lazy (PRUNE); who hears an id and not the payload asks for it,
and makes that link eager (GRAFT). What a payload is, and whether it counts, is not known here.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    GOSSIP_FRAME,
    GOSSIP_MAX_ANNOUNCERS,
    GOSSIP_MAX_EARLY,
    GOSSIP_MAX_HOPS,
    GOSSIP_MAX_IDS,
    GOSSIP_MAX_MISSING,
    GOSSIP_MAX_RECENT,
    GOSSIP_MAX_SEEN,
    GOSSIP_SEEN_S,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.gossip.effects import Send
from meshnode.gossip.messages import Eager, Graft, IHave, Prune
from meshnode.identity.node_id import NodeId

ANNOUNCE_S = 0.01  # ids wait so long for others, to share a frame
ANNOUNCE_AGAIN_S = 0.1  # since the last ids were sent: a busy mesh sends ten frames of them a second on a link
GRAFT_S = 0.3  # an announced payload is asked for after so long: one loss (0.2 s) and a hop more are no reason
PRUNE_AGAIN_S = 0.5  # a neighbour that pushes although it was told not to is told again
AGAIN_S = 0.3  # and of the next announcer after so much more
RECENT_S = 30.0  # whoever missed an announced payload asks within two seconds
CLOSER = 1  # an announcement that is so many hops nearer than the payload was swaps the links

PAYLOADS = describe("gossip_payloads", "payloads received over links")
TWICE = describe("gossip_payloads_twice", "payloads received that we had")
GRAFTS = describe("gossip_grafts", "payloads asked for: announced and not received")
MISSED = describe("gossip_missed", "payloads that no announcer had any more")
MISSING_FULL = describe("gossip_missing_full", "announcements dropped: too many payloads are awaited")


class Plumtree:
    """One tree. Ids are 8 bytes; whoever calls has verified what it hands in."""

    announce_s, announce_again_s, graft_s, again_s = ANNOUNCE_S, ANNOUNCE_AGAIN_S, GRAFT_S, AGAIN_S

    def __init__(self, rng: random.Random, timers: Timers, metrics: Metrics, now: float, scope: bytes = b"") -> None:
        self.eager: dict[NodeId, None] = {}
        self.lazy: dict[NodeId, float] = {}  # and when we told it so
        self._rng = rng
        self._timers = timers
        self._metrics = metrics
        self._scope = scope
        self._seen: dict[bytes, None] = {}
        self._seen_before: dict[bytes, None] = {}
        self._seen_since = now
        self._recent: OrderedDict[bytes, tuple[bytes, int, float]] = OrderedDict()
        self._recent_size = 0
        self._early: BoundedDict[bytes, None] = BoundedDict(GOSSIP_MAX_EARLY)
        self._missing: dict[bytes, list[tuple[NodeId, int]]] = {}
        self._due: OrderedDict[bytes, float] = OrderedDict()
        self._grafting: Timer | None = None
        self._announcing: Timer | None = None
        self._announced = float("-inf")
        self._pushes: dict[NodeId, list[tuple[int, bytes]]] = {}
        self._announcements: dict[NodeId, list[tuple[int, bytes]]] = {}
        self._effects: list[Send] = []

    def take_effects(self) -> list[Send]:
        """Everything to send since the last call; payloads for one neighbour share messages."""
        if self._pushes:
            pushes, self._pushes = self._pushes, {}
            for peer, items in pushes.items():
                self._effects += [Send(peer, Eager(self._scope, part)) for part in frames(items)]
        effects, self._effects = self._effects, []
        return effects

    # ---- verbs

    def add(self, peer: NodeId) -> None:
        """A new neighbour: eager, until it proves to be superfluous."""
        self.lazy.pop(peer, None)
        self.eager[peer] = None

    def link(self, peer: NodeId) -> None:
        """A new neighbour: where a tree has grown it is held in reserve; a newcomer gets into the tree at once."""
        if self.eager and self.lazy:
            self.lazy[peer] = -math.inf
            return
        if not self.eager:
            self._effects.append(Send(peer, Graft(self._scope, ())))
        self.add(peer)

    def unlink(self, peer: NodeId) -> None:
        """A neighbour no more; if we lived by it, another takes its place."""
        self.remove(peer)
        if self.lazy and not self.eager:
            other = self._rng.choice(list(self.lazy))
            self.add(other)
            self._effects.append(Send(other, Graft(self._scope, ())))

    def spare(self) -> list[NodeId]:
        """Neighbours that may go without harm: lazy ones; anybody as long as there is no tree."""
        return list(self.lazy) if self._seen or self._seen_before else list(self.eager)

    def remove(self, peer: NodeId) -> None:
        """A neighbour no more."""
        self.eager.pop(peer, None)
        self.lazy.pop(peer, None)
        self._pushes.pop(peer, None)
        self._announcements.pop(peer, None)

    def knows(self, item: bytes) -> bool:
        """True when a payload of this id was here lately."""
        return item in self._seen or item in self._seen_before

    def publish(self, item: bytes, payload: bytes, now: float, *, wide: bool = False) -> None:
        """Spread a payload of our own; ``wide``: at once to all neighbours, for there will be no later."""
        self._spread(item, payload, 0, None, now, wide)

    def announce(self, item: bytes, payload: bytes, source: NodeId, now: float) -> None:
        """Offer a payload that came by reconciliation: most neighbours have it, so they hear its id only."""
        self._note(item, payload, GOSSIP_MAX_HOPS, now)
        self._early[item] = None
        for peer in (*self.eager, *self.lazy):
            if peer != source:
                self._announcements.setdefault(peer, []).append((GOSSIP_MAX_HOPS, item))
        self._announce_soon(now)

    # ---- what neighbours say

    def on_payload(
        self, peer: NodeId, item: bytes, payload: bytes, hops: int, now: float, *, wide: bool = False
    ) -> None:
        """A payload that we had not, and that counts: pass it on; ``wide``: to all: the tree is broken."""
        self._metrics.count(PAYLOADS)
        hops = min(hops + 1, GOSSIP_MAX_HOPS)
        announced = self._missing.pop(item, None)
        self._due.pop(item, None)
        if peer in self.lazy:
            self.add(peer)
        self._spread(item, payload, hops, peer, now, wide)
        if announced:
            best, least = min(announced, key=lambda pair: pair[1])
            if least + CLOSER <= hops and best in self.lazy and peer in self.eager:
                self.add(best)
                self._effects.append(Send(best, Graft(self._scope, ())))
                self._prune(peer, now)

    def on_overtaken(self, peer: NodeId, item: bytes, hops: int, now: float) -> bool:
        """A payload that reconciliation brought before the tree: its way goes on from here all the same. Or False."""
        if item not in self._early or item not in self._recent:
            return False
        del self._early[item]
        self.on_payload(peer, item, self._recent[item][0], hops, now)
        return True

    def on_duplicate(self, peer: NodeId, item: bytes, now: float) -> None:
        """A payload that we had: the link is superfluous."""
        self._metrics.count(PAYLOADS)
        self._metrics.count(TWICE)
        if peer in self.eager or now - self.lazy.get(peer, now) > PRUNE_AGAIN_S:
            self._prune(peer, now)

    def on_rejected(self, item: bytes, now: float) -> None:
        """A payload that does not count: it is not asked for again."""
        self._missing.pop(item, None)
        self._due.pop(item, None)
        self._remember(item, now)

    def on_ihave(self, peer: NodeId, message: IHave, now: float) -> None:
        """Ids that a neighbour has."""
        if peer not in self.eager and peer not in self.lazy:
            return
        for hops, item in message.items:
            if item in self._seen or item in self._seen_before:
                continue
            announcers = self._missing.get(item)
            if announcers is None:
                if len(self._missing) >= GOSSIP_MAX_MISSING:
                    self._metrics.count(MISSING_FULL)
                    continue
                self._missing[item] = [(peer, hops)]
                self._due[item] = now + self.graft_s
            elif len(announcers) < GOSSIP_MAX_ANNOUNCERS and all(known != peer for known, _ in announcers):
                announcers.append((peer, hops))
        self._graft_soon()

    def on_graft(self, peer: NodeId, message: Graft, find: dict[bytes, bytes], now: float) -> None:
        """A neighbour wants payloads, and to be eager; ``find`` holds those that the store still has."""
        if peer not in self.eager and peer not in self.lazy:
            return
        self.add(peer)
        for item in message.ids:
            payload, hops, _ = self._recent.get(item) or (find.get(item), 0, 0.0)
            if payload is not None:
                self._push(peer, hops, payload)

    def on_prune(self, peer: NodeId, now: float) -> None:
        """A neighbour gets payloads from others."""
        if peer in self.eager:
            del self.eager[peer]
            self.lazy[peer] = now

    # ---- inside

    def _spread(
        self, item: bytes, payload: bytes, hops: int, source: NodeId | None, now: float, wide: bool = False
    ) -> None:
        self._note(item, payload, hops, now)
        if wide:  # a payload may only go over links that both ends take for eager: who gets it twice prunes
            for peer in list(self.lazy):
                self.add(peer)
        for peer in self.eager:
            if peer != source:
                self._push(peer, hops, payload)
        for peer in self.lazy:
            if peer != source:
                self._announcements.setdefault(peer, []).append((min(hops + 1, GOSSIP_MAX_HOPS), item))
        if self.lazy:
            self._announce_soon(now)

    def _push(self, peer: NodeId, hops: int, payload: bytes) -> None:
        self._pushes.setdefault(peer, []).append((hops, payload))

    def _prune(self, peer: NodeId, now: float) -> None:
        self.eager.pop(peer, None)
        self.lazy[peer] = now
        self._effects.append(Send(peer, Prune(self._scope)))

    def _note(self, item: bytes, payload: bytes, hops: int, now: float) -> None:
        self._remember(item, now)
        self._missing.pop(item, None)
        self._due.pop(item, None)
        if item in self._recent:
            return
        self._recent[item] = payload, hops, now
        self._recent_size += len(payload)
        while self._recent_size > GOSSIP_MAX_RECENT or now - next(iter(self._recent.values()))[2] > RECENT_S:
            self._recent_size -= len(self._recent.popitem(last=False)[1][0])

    def _remember(self, item: bytes, now: float) -> None:
        if len(self._seen) >= GOSSIP_MAX_SEEN or now - self._seen_since > GOSSIP_SEEN_S:
            self._seen_before, self._seen, self._seen_since = self._seen, {}, now
        self._seen[item] = None

    def _announce_soon(self, now: float) -> None:
        if self._announcing is None:
            at = max(now + self.announce_s, self._announced + self.announce_again_s)
            self._announcing = self._timers.at(at, self._announce)

    def _announce(self, now: float) -> None:
        self._announcing, self._announced = None, now
        announcements, self._announcements = self._announcements, {}
        for peer, items in announcements.items():
            for i in range(0, len(items), GOSSIP_MAX_IDS):
                self._effects.append(Send(peer, IHave(self._scope, tuple(items[i : i + GOSSIP_MAX_IDS]))))

    def _graft_soon(self) -> None:
        if self._due and (self._grafting is None or not self._grafting.live):
            at = next(iter(self._due.values()))
            self._grafting = self._timers.at(at, self._graft)

    def _graft(self, now: float) -> None:
        """Ask for what is due: each id of its next announcer."""
        wanted: dict[NodeId, list[bytes]] = {}
        while self._due:
            item, at = next(iter(self._due.items()))
            if at > now:
                break
            del self._due[item]
            announcers = self._missing[item]
            peer = next((p for p, _ in announcers if p in self.eager or p in self.lazy), None)
            if peer is None:
                del self._missing[item]
                self._metrics.count(MISSED)
                continue
            self._missing[item] = [pair for pair in announcers if pair[0] != peer]
            wanted.setdefault(peer, []).append(item)
            self._due[item] = now + self.again_s
        for peer, items in wanted.items():
            self._metrics.count(GRAFTS, len(items))
            self.add(peer)
            for i in range(0, len(items), GOSSIP_MAX_IDS):
                self._effects.append(Send(peer, Graft(self._scope, tuple(items[i : i + GOSSIP_MAX_IDS]))))
        self._grafting = None
        self._graft_soon()


def frames(items: list[tuple[int, bytes]]) -> list[tuple[tuple[int, bytes], ...]]:
    """Cut a list of payloads into messages that fit a frame."""
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
