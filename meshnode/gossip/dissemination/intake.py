"""Entries that neighbours hand over and that wait for their turn: the work that links may cause is bounded. Sans I/O.

An entry that was never seen costs a signature to verify, a place and its passing on, and ids are free: a neighbour can
make as many as its link carries. So all entries share a budget. While it lasts, each is taken as it comes, unless very
many come at once. Otherwise the source networks take turns, in each its links, and of each link what ranks first goes
first; a link that is far ahead of its turns loses what comes, and reconciliation brings it later. What several links
bring waits on each, for whichever has its turn first: what it is behind on one holds it up on no other. Origins with
standing have a budget apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import IntEnum
from typing import NamedTuple

from meshnode.base.limits import (
    GOSSIP_INTAKE_BURST,
    GOSSIP_INTAKE_PACE,
    GOSSIP_INTAKE_RATE,
    GOSSIP_INTAKE_STEP,
    GOSSIP_MAX_WAITING,
    GOSSIP_STANDING_BURST,
    GOSSIP_STANDING_RATE,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId

DRAIN_S = 0.02

BUSY = describe("gossip_drop_busy", "entries not taken: their link brings more than its share of the work")
WAITED = describe("gossip_waited", "entries that waited for their turn")


class Rank(IntEnum):
    """What an entry's origin is to this node, by which entries of one link go first."""

    STANDING = 0  # connected, a seed, or it has answered
    KNOWN = 1  # an entry of it has a settled place
    NEW = 2


class Arrival(NamedTuple):
    """A payload as it came: its id, its bytes, and the links that it came over; None by reconciliation."""

    item: bytes
    payload: bytes
    hops: int | None


Queue = OrderedDict[bytes, Arrival]  # the oldest first
Queues = tuple[Queue, Queue]  # of origins that are known or have standing, and of new ones


class Intake:
    """``take`` takes an arrival; ``rank`` looks at a payload without verifying it; ``network_of`` asks for a link's."""

    def __init__(
        self,
        timers: Timers,
        metrics: Metrics,
        now: float,
        take: Callable[[NodeId, Arrival, float], None],
        rank: Callable[[bytes], Rank],
        network_of: Callable[[NodeId], Hashable],
    ) -> None:
        self._timers = timers
        self._metrics = metrics
        self._take = take
        self._rank = rank
        self._network_of = network_of
        self._budget = TokenBucket(GOSSIP_INTAKE_RATE, GOSSIP_INTAKE_BURST, now)
        self._pace = TokenBucket(GOSSIP_INTAKE_PACE, GOSSIP_INTAKE_STEP, now)
        self._of_standing = TokenBucket(GOSSIP_STANDING_RATE, GOSSIP_STANDING_BURST, now)
        self._queues: dict[NodeId, Queues] = {}
        self._turns: dict[Hashable, dict[NodeId, None]] = {}  # networks, and in each its links, the next ones first
        self._waiting: dict[bytes, dict[NodeId, None]] = {}  # and the links on which each does

    def waiting(self, peer: NodeId) -> int:
        """Return how many entries of a link wait."""
        return sum(map(len, self._queues.get(peer, ())))

    def offer(self, peer: NodeId, arrival: Arrival, now: float) -> None:
        """Take an entry now, or when it is its turn.

        One that waits already on other links waits on this one too, and is taken once.
        """
        if peer in self._waiting.get(arrival.item, ()):
            return
        if not self._waiting and self._may_take(now):
            self._take(peer, arrival, now)
            return
        rank = self._rank(arrival.payload)
        if rank is Rank.STANDING and self._of_standing.take(1, now):
            self._withdraw(arrival.item)
            self._take(peer, arrival, now)
            return
        queues = self._queues.get(peer)
        if queues is None:
            queues = self._queues[peer] = OrderedDict(), OrderedDict()
            self._turns.setdefault(self._network_of(peer), {})[peer] = None
        queue = queues[rank is Rank.NEW]
        if len(queue) >= GOSSIP_MAX_WAITING:
            self._metrics.count(BUSY)
            return
        if not self._waiting:
            self._timers.at(now + DRAIN_S, self._drain)
        self._metrics.count(WAITED)
        self._waiting.setdefault(arrival.item, {})[peer] = None
        queue[arrival.item] = arrival

    def remove(self, peer: NodeId) -> None:
        """Forget what waits of a link that is over."""
        for queue in self._queues.pop(peer, ()):
            for item in queue:
                links = self._waiting[item]
                del links[peer]
                if not links:
                    del self._waiting[item]

    def _withdraw(self, item: bytes) -> None:
        """Have an entry wait no longer, on any link."""
        for peer in self._waiting.pop(item, ()):
            for queue in self._queues[peer]:
                queue.pop(item, None)

    def _may_take(self, now: float) -> bool:
        return self._pace.take(1, now) and self._budget.take(1, now)

    def _drain(self, now: float) -> None:
        while self._waiting and self._may_take(now):
            found = self._next()
            if found is not None:
                self._take(*found, now)
        if self._waiting:
            self._timers.at(now + DRAIN_S, self._drain)

    def _next(self) -> tuple[NodeId, Arrival] | None:
        """Return the arrival whose turn it is, and its link; None when that link is over, or nothing waits on it."""
        network = next(iter(self._turns))
        links = self._turns.pop(network)
        peer = next(iter(links))
        del links[peer]
        queues = self._queues.get(peer)
        found = None
        if queues is not None:
            waiting = queues[0] or queues[1]
            if waiting:
                found = peer, next(iter(waiting.values()))
                self._withdraw(found[1].item)
            if queues[0] or queues[1]:
                links[peer] = None
            else:
                del self._queues[peer]
        if links:
            self._turns[network] = links
        return found
