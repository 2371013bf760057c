"""Anti-entropy: two neighbours find in one round trip which entries either lacks, and send them. Sans I/O.

In the spirit of scuttlebutt (van Renesse, Dumitriu, Gough, Thomas, LADIS 2008), but by fingerprints of ranges of ids
instead of one number an origin: an origin's entries may come in any order, and an idle mesh sends 8 bytes. SyncRequest
carries the fingerprints of 1 to 256 buckets, SyncResponse the ids in those that differ: now the requester knows both
sides. It sends what the other lacks, at most 48 kB, and asks for what it lacks itself, at most as much at once. Two
nodes of which one has given up entries, since a kind is full there, stay different: so nothing is sent to a neighbour
unasked a second time, and an exchange that moved nothing is followed by none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container
from typing import Protocol

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    GOSSIP_FRAME,
    GOSSIP_MAX_GIVEN,
    GOSSIP_MAX_SYNC,
    GOSSIP_MAX_TELL_IDS,
    GOSSIP_SYNC_BURST,
    GOSSIP_SYNC_RATE,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.base.token_bucket import TokenBucket
from meshnode.gossip.effects import Reconciled, Send
from meshnode.gossip.messages import BUCKETS, Entries, SyncRequest, SyncResponse, Want
from meshnode.identity.node_id import NodeId

EVERY_S, MAX_EVERY_S = 10.0, 80.0  # between rounds: twice as long each time that the items here are the same
RARELY_S = 240.0  # the longest wait of a leaf
SOON_S = 0.25  # until the next exchange with a neighbour whose entries wait here to be taken
AGAIN_S = 1.0  # until the next exchange when there was more than fitted into one
EXCHANGE_S = 5.0  # an exchange without a message for this long is over
COMING_S = 1.0  # entries that an exchange asked for are not asked of others for this long after its last message
MAX_COMING_S = 10.0  # and for this long at most: a neighbour that goes on answering need not send any of them
WANT_IDS = 192
PER_BUCKET = 8

ROUNDS = describe("gossip_sync_rounds", "reconciliations begun")
DIFFERENT = describe("gossip_sync_different", "reconciliations that found a difference")
UNASKED = describe("gossip_sync_unasked", "reconciliation messages dropped: not asked for")
TOO_OFTEN = describe("gossip_sync_too_often", "reconciliations not answered: that neighbour begins too many")


class Items(Protocol):
    """What is reconciled: entries, with their ids in buckets (buckets.py)."""

    def __len__(self) -> int: ...
    def payload(self, item: bytes) -> bytes | None: ...
    def bucket(self, index: int, count: int) -> list[bytes]: ...
    def folded(self, count: int) -> tuple[int, ...]: ...


class _Exchange:
    __slots__ = ("again", "began", "heard", "missing")

    def __init__(self, now: float) -> None:
        self.began = self.heard = now
        self.missing: list[bytes] = []
        self.again = False


class AntiEntropy:
    """Exchanges with neighbours: one at a time with each."""

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        metrics: Metrics,
        items: Items,
        lacks: Callable[[bytes], bool],
        now: float,
        *,
        rare: bool = False,
    ) -> None:
        self._longest = RARELY_S if rare else MAX_EVERY_S
        self._rng = rng
        self._timers = timers
        self._metrics = metrics
        self._items = items
        self._lacks = lacks
        self._neighbours: dict[NodeId, BoundedDict[bytes, None]] = {}  # and the ids of what each was sent unasked
        self._allowed: dict[NodeId, TokenBucket] = {}  # requests that each may still make
        self._exchanges: dict[NodeId, _Exchange] = {}
        self._effects: list[Send | Reconciled] = []
        self._calm: tuple[tuple[int, ...], float] = ((), EVERY_S)  # fingerprints at the last round, the wait after it
        timers.at(now + EVERY_S * rng.uniform(0.5, 1.5), self._round)

    def take_effects(self) -> list[Send | Reconciled]:
        """Return everything to do since the last call."""
        effects, self._effects = self._effects, []
        return effects

    # ---- verbs

    def add(self, peer: NodeId, at: float) -> None:
        """Add a neighbour; the first exchange with it begins at ``at``, in monotonic seconds."""
        self._neighbours[peer] = BoundedDict(GOSSIP_MAX_GIVEN)
        self._allowed[peer] = TokenBucket(GOSSIP_SYNC_RATE, GOSSIP_SYNC_BURST, at)
        self._timers.at(at, lambda now: self.ask(peer, now))

    def remove(self, peer: NodeId) -> None:
        """Remove a neighbour."""
        self._neighbours.pop(peer, None)
        self._allowed.pop(peer, None)
        self._exchanges.pop(peer, None)

    def ask_again(self, peer: NodeId, now: float) -> None:
        """Begin an exchange with a neighbour that did not get all that it was sent."""
        if peer in self._neighbours:
            self._neighbours[peer].clear()
            self.ask(peer, now)

    def expects(self, peer: NodeId) -> bool:
        """Return whether entries were asked of a neighbour that have not all come."""
        exchange = self._exchanges.get(peer)
        return exchange is not None and bool(exchange.missing)

    def postpone(self, peer: NodeId, now: float) -> None:
        """Ask a neighbour for no more for a while: what it sent already waits to be taken."""
        if self._exchanges.pop(peer, None) is not None:
            self._timers.at(now + SOON_S, lambda now: self.ask(peer, now))

    def ask(self, peer: NodeId, now: float) -> None:
        """Begin an exchange with a neighbour, unless one runs that had a message within ``EXCHANGE_S``.

        The request has one fingerprint for each bucket of ids; there are as many buckets, a power of two, as put about
        ``PER_BUCKET`` entries into each.
        """
        running = self._exchanges.get(peer)
        if peer not in self._neighbours or (running is not None and now - running.heard < EXCHANGE_S):
            return
        self._exchanges[peer] = _Exchange(now)
        self._metrics.count(ROUNDS)
        count = 1
        while count < BUCKETS and count * PER_BUCKET < len(self._items):
            count *= 2
        self._effects.append(Send(peer, SyncRequest(self._items.folded(count))))

    # ---- what neighbours say

    def on_request(self, peer: NodeId, message: SyncRequest, now: float) -> None:
        """Answer with the ids in the buckets that differ, at most ``GOSSIP_MAX_TELL_IDS``.

        A bucket that does not fit is left out, and the answer says so.
        """
        allowed = self._allowed.get(peer)
        if allowed is None or not allowed.take(1.0, now):
            self._metrics.count(TOO_OFTEN)
            return
        count, room, full = len(message.prints), GOSSIP_MAX_TELL_IDS, False
        found: list[tuple[int, tuple[bytes, ...]]] = []
        mine = self._items.folded(count)
        # begin at another bucket each time: if one is too full to tell, the others still get their turn
        first = self._rng.randrange(count)
        for index in (*range(first, count), *range(first)):
            if mine[index] == message.prints[index]:
                continue
            ids = self._items.bucket(index, count)
            if len(ids) > room:
                full = True
                continue
            room -= len(ids)
            found.append((index, tuple(ids)))
        self._effects.append(Send(peer, SyncResponse(count, full, tuple(sorted(found)))))

    def on_response(self, peer: NodeId, message: SyncResponse, now: float) -> None:
        """Send what the neighbour lacks, and ask for what this node lacks.

        What another exchange has asked for is left to it, and looked after in a further exchange.
        """
        exchange = self._exchanges.get(peer)
        if exchange is None or exchange.missing:
            self._metrics.count(UNASKED)
            return
        exchange.heard = now
        lacking = self._compare(exchange, message, self._coming(now))
        given = self._neighbours[peer]
        lacking = [item for item in lacking if item not in given]
        if lacking or exchange.missing:
            self._metrics.count(DIFFERENT)
            exchange.again |= message.full
        exchange.again |= self._give(peer, lacking)
        self._go_on(peer, exchange, now)

    def on_want(self, peer: NodeId, message: Want, now: float) -> None:
        """Send entries that a neighbour asks for, in its order: at most ``GOSSIP_MAX_SYNC`` bytes of them.

        The last message is marked, and sent also when none of the entries is here any more.
        """
        if peer in self._neighbours:
            self._give(peer, list(message.ids), answer=True)

    def on_entries(self, peer: NodeId, message: Entries, ids: list[bytes], now: float) -> None:
        """Note entries that came, and after the last message of an answer ask for the next ones.

        ``ids`` are those of the message's payloads.
        """
        exchange = self._exchanges.get(peer)
        if exchange is None:
            return
        exchange.heard = now
        got = dict.fromkeys(ids)
        if exchange.missing and message.last:
            before = len(exchange.missing)
            exchange.missing = [item for item in exchange.missing if item not in got]
            if len(exchange.missing) == before:  # none of what it offered is there any more
                del exchange.missing[:WANT_IDS]
            self._go_on(peer, exchange, now)
        elif exchange.missing:
            exchange.missing = [item for item in exchange.missing if item not in got]

    # ---- inside

    def _coming(self, now: float) -> set[bytes]:
        """Return the ids that exchanges of ``MAX_COMING_S`` at most have asked for within ``COMING_S``."""
        running = [each for each in self._exchanges.values() if now - each.heard < COMING_S]
        return {item for each in running if now - each.began < MAX_COMING_S for item in each.missing}

    def _compare(self, exchange: _Exchange, message: SyncResponse, coming: Container[bytes]) -> list[bytes]:
        """Note in the exchange what this node lacks; returns the ids that the neighbour lacks."""
        lacking: list[bytes] = []
        for index, ids in message.ids:
            told = dict.fromkeys(ids)
            held = dict.fromkeys(self._items.bucket(index, message.buckets))
            exchange.missing += [item for item in told if item not in held and item not in coming and self._lacks(item)]
            exchange.again |= any(item in coming for item in told)
            lacking += [item for item in held if item not in told]
        return lacking

    def _go_on(self, peer: NodeId, exchange: _Exchange, now: float) -> None:
        if exchange.missing:
            self._effects.append(Send(peer, Want(tuple(exchange.missing[:WANT_IDS]))))
            return
        del self._exchanges[peer]
        if exchange.again:
            self._timers.at(now + AGAIN_S, lambda now: self.ask(peer, now))
        else:
            self._effects.append(Reconciled(peer))

    def _give(self, peer: NodeId, ids: list[bytes], *, answer: bool = False) -> bool:
        """Send payloads in frames; returns whether there is more than may be sent at once."""
        frames: list[list[bytes]] = [[]]
        size = total = 0
        more = False
        for item in ids:
            payload = self._items.payload(item)
            if payload is None:
                continue
            if total + len(payload) > GOSSIP_MAX_SYNC:
                more = True
                break
            if size + len(payload) > GOSSIP_FRAME:
                frames.append([])
                size = 0
            frames[-1].append(payload)
            if not answer:
                self._neighbours[peer][item] = None
            size += len(payload) + 8
            total += len(payload)
        if frames[-1] or answer:
            for i, frame in enumerate(frames, 1):
                self._effects.append(Send(peer, Entries(answer and i == len(frames), tuple(frame))))
        return more

    def _round(self, now: float) -> None:
        prints, (before, wait) = self._items.folded(1), self._calm
        wait = min(self._longest, 2 * wait) if prints == before else EVERY_S
        self._calm = prints, wait
        self._timers.at(now + wait * self._rng.uniform(0.8, 1.2), self._round)
        if self._neighbours:
            self.ask(self._rng.choice(list(self._neighbours)), now)
