"""This node's offers in the DHT: stored there where gossip does not tell them to all, and again before they are lost.

A mesh is *large*, for one kind of offers, while gossip knows more of that kind than ``OFFERS_BY_GOSSIP``; until it
knows half of that again. In any other mesh nothing is published. Holders come and go, so each offer is stored again
every ``REPUBLISH_S``, and soon where too few have taken it. Sans I/O.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.limits import OFFERS_BY_GOSSIP
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import state, value
from meshnode.directory.bundle import KINDS, dht_key_of, fits, make_bundle
from meshnode.gossip.entry import Entry, Kind

REPUBLISH_S = 1_200.0  # a third of the time that an offer of a service lives
SPREAD_S = 60.0  # in which all nodes begin when a mesh has become large, and ...
YOUNG_S, YOUNG_SPREAD_S = 60.0, 2.0  # ... one that has come to a large mesh, and begins alone
PAUSE_S = 30.0  # between two offers of one service: its load may change each second
ENOUGH = 4  # holders; with fewer it is tried again
FIRST_RETRY_S, MAX_RETRY_S = 5.0, 600.0

PUBLISHED = describe("offers_published", "times that an offer or a withdrawal of this node was stored in the DHT")
REFUSED = describe("offers_refused", "holders that did not take an offer of this node: no place, or no answer")
TOO_LONG = describe("offers_too_long", "offers of this node that are too long for the DHT: gossip alone tells them")


@value
class Publish:
    """Store an entry under a key of the DHT, and say how many have taken it (``on_published``)."""

    entry: Entry
    key: bytes
    encoded: bytes


@state
class _Own:
    entry: Entry
    timer: Timer
    at: float = float("-inf")  # when it was published last
    is_out: bool = False  # some holder may have it, or an earlier one of its key
    is_told: bool = False  # the holders were asked to take it, and have answered or will not
    failures: int = 0


class OfferPublisher:
    """Publishes one node's offers. ``count`` returns how many offers of a kind gossip knows."""

    def __init__(self, rng: random.Random, metrics: Metrics, count: Callable[[Kind], int], now: float) -> None:
        self._rng = rng
        self._metrics = metrics
        self._count = count
        self._born = now
        self._own: dict[tuple[int, str], _Own] = {}  # bounded: this node's own are
        self._too_long: dict[tuple[int, str], None] = {}
        self._large = dict.fromkeys(KINDS, False)
        self._timers = Timers()
        self._effects: list[Publish] = []
        self._wall = 0.0

    def take_effects(self) -> list[Publish]:
        """Return everything to do since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """Return when ``tick`` is wanted next."""
        return self._timers.next_deadline()

    def tick(self, now: float, wall: float) -> None:
        """Publish what is due."""
        self._wall = wall
        self._timers.run(now)

    # ---- what happens

    def on_own(self, entry: Entry, now: float) -> None:
        """Take a new offer of this node, or a withdrawal, which gossip has just been given."""
        key = entry.kind, entry.name
        own = self._own.get(key)
        self._too_long.pop(key, None)
        if not fits(entry):
            self._metrics.count(TOO_LONG)
            self._too_long[key] = None
            self._drop(key)
            return
        if own is None:
            own = self._own[key] = _Own(entry, self._timers.timer(lambda t: self._publish(key, t)))
        is_change = (own.entry.value is None) != (entry.value is None)
        own.entry, own.failures, own.is_told = entry, 0, False
        own.timer.set(now if is_change else max(now, own.at + PAUSE_S))

    def on_size(self, now: float) -> None:
        """Look whether gossip tells all still: when it does not, begin, each node after a time of its own."""
        for kind in KINDS:
            count, was_large = self._count(kind), self._large[kind]
            self._large[kind] = count > (OFFERS_BY_GOSSIP // 2 if was_large else OFFERS_BY_GOSSIP)
            if self._large[kind] and not was_large:
                spread = YOUNG_SPREAD_S if now - self._born < YOUNG_S else SPREAD_S
                for own in self._own.values():
                    if own.entry.kind == kind:
                        own.timer.set(now + spread * self._rng.random())

    def on_published(self, entry: Entry, taken: int, asked: int, now: float) -> None:
        """Note how many of those that were asked have taken an entry."""
        self._metrics.count(REFUSED, asked - taken)
        own = self._own.get((entry.kind, entry.name))
        if own is None or own.entry is not entry:
            return
        own.is_told = True
        if taken >= min(ENOUGH, max(1, asked)):
            own.failures = 0
            own.timer.set(now + REPUBLISH_S * self._rng.uniform(0.8, 1.2))
            return
        own.failures += 1
        own.timer.set(now + min(MAX_RETRY_S, FIRST_RETRY_S * 2 ** min(own.failures - 1, 10)))

    def _publish(self, key: tuple[int, str], now: float) -> None:
        own = self._own[key]
        entry = own.entry
        if entry.expires < self._wall or (entry.value is None and not own.is_out):
            self._drop(key)
            return
        if not self._large[Kind(entry.kind)] and not (entry.value is None and own.is_out):
            return  # ``on_size`` begins again
        own.at, own.is_out = now, True
        self._metrics.count(PUBLISHED)
        self._effects.append(Publish(entry, dht_key_of(entry.kind, entry.name), make_bundle([entry.encoded])))

    def _drop(self, key: tuple[int, str]) -> None:
        own = self._own.pop(key, None)
        if own is not None:
            own.timer.cancel()

    # ---- questions

    def asks(self, kind: Kind) -> bool:
        """Return whether the DHT may have what gossip has not told: already below the size at which nodes publish."""
        return self._large[kind] or self._count(kind) > OFFERS_BY_GOSSIP // 2

    def out(self) -> list[tuple[int, str]]:
        """Return kind and name of this node's offers that are in the DHT, as far as it knows."""
        return [key for key, own in self._own.items() if own.is_out and own.entry.value is not None]

    @property
    def is_withdrawing(self) -> bool:
        """True while a withdrawal is on its way to the holders of an offer."""
        return any(own.is_out and own.entry.value is None and not own.is_told for own in self._own.values())

    @property
    def too_long(self) -> list[str]:
        """Return the names of this node's offers that would be in the DHT if they were shorter."""
        return sorted(name for kind, name in self._too_long if self._large[Kind(kind)])

    @property
    def published(self) -> int:
        """Return how many offers of this node are in the DHT, as far as it knows."""
        return len(self.out())
