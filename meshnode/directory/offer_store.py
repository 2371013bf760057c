"""Offers that a node holds for others in the DHT, bounded in all, by key and by origin. Sans I/O.

Ids are free, and so are names. So each bound is shared by what costs something: half of the places, in all and of each
key, are for origins that paid for their id (``identity/price.py``) or are established here; in each half the source
networks have equal shares, and in those the hosts. A crowd of free ids at one key takes the other half of that key and
nothing of another one. An answer has room for few: which ones is drawn by lot for each, half of it for either half.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import chain

from meshnode.base.fair_table import FairTable, Groups, source_shares
from meshnode.base.limits import DHT_OFFER_BUNDLE, DHT_OFFERS_OF_KEY, DHT_OFFERS_OF_ORIGIN
from meshnode.base.value import state, value
from meshnode.directory.bundle import MOST, OVERHEAD, dht_key_of, make_bundle
from meshnode.gossip.entry import Entry
from meshnode.identity.node_id import NodeId

ITEM = 3  # bytes of the header of one entry in a bundle
CULLED = 2  # expired offers that make room with each new one: more than come, so that they are soon gone

Place = tuple[bytes, NodeId]  # key and origin


class Put(Enum):
    """Outcome of ``OfferStore.put``."""

    TAKEN = "taken"
    OLD = "old"  # a newer one of the same origin is held
    FULL = "full"


@value
class Storer:
    """Where an offer came from: the host of its origin, and whether its id has a price or is established here."""

    host: str
    is_strong: bool


@state
class Held:
    """An offer that is held; it is a withdrawal when ``is_over``."""

    encoded: bytes
    seq: int
    expires: float
    is_over: bool
    is_strong: bool
    groups: Groups


class OfferStore:
    """Newest offer by key and origin, at most ``limit``, of which a half is for strong origins. Takes verified ones."""

    def __init__(self, limit: int, rng: random.Random) -> None:
        self.is_barred: Callable[[NodeId], bool] = lambda origin: False  # keys whose offers are given to none
        self._limit = limit
        self._rng = rng
        self._keys: dict[bytes, dict[NodeId, Held]] = {}  # of each key the oldest first
        self._of_origin: dict[NodeId, int] = {}
        self._strong: FairTable[Place] = FairTable(max(1, limit // 2))
        self._guests: FairTable[Place] = FairTable(limit + 1)  # evicted from by hand, for both count
        self._expiry: list[tuple[float, bytes, NodeId]] = []

    def __len__(self) -> int:
        return len(self._strong) + len(self._guests)

    # ---- what comes

    def put(self, entry: Entry, storer: Storer, wall: float) -> Put:
        """Hold a verified offer or withdrawal, which its own origin has handed in; ``wall`` is Unix seconds.

        What is newer takes the place of what its origin offered before. Anything else may have to make room by the
        rules above, the new one too.
        """
        key, origin = dht_key_of(entry.kind, entry.name), entry.origin
        held = self._keys.get(key, {}).get(origin)
        if held is not None:
            if (entry.seq, entry.encoded) < (held.seq, held.encoded):
                return Put.OLD
            self._remove(key, origin)
        elif self._of_origin.get(origin, 0) >= DHT_OFFERS_OF_ORIGIN:
            return Put.FULL
        self._cull(wall)
        self._add(key, entry, storer)
        named = self._keys[key]
        if len(named) > DHT_OFFERS_OF_KEY:
            self._remove(key, _first_to_go(named))
        while len(self) > self._limit:
            self._remove(*self._guests.first())
        return Put.TAKEN if origin in self._keys.get(key, ()) else Put.FULL

    def _add(self, key: bytes, entry: Entry, storer: Storer) -> None:
        origin, groups = entry.origin, source_shares(storer.host)
        held = Held(entry.encoded, entry.seq, entry.expires, entry.value is None, storer.is_strong, groups)
        self._keys.setdefault(key, {})[origin] = held
        self._of_origin[origin] = self._of_origin.get(origin, 0) + 1
        heapq.heappush(self._expiry, (held.expires, key, origin))
        if not held.is_strong:
            self._guests.add((key, origin), *groups)
        elif (over := self._strong.add((key, origin), *groups)) is not None:  # it takes its chance among the others
            self._guests.add(over, *self._keys[over[0]][over[1]].groups)

    def _remove(self, key: bytes, origin: NodeId) -> None:
        named = self._keys[key]
        del named[origin]
        if not named:
            del self._keys[key]
        self._of_origin[origin] -= 1
        if not self._of_origin[origin]:
            del self._of_origin[origin]
        self._strong.discard((key, origin))
        self._guests.discard((key, origin))

    def _cull(self, wall: float) -> None:
        """Drop some of what has expired; what was renewed is in the heap twice, until the first time is over."""
        for _ in range(CULLED):
            if not self._expiry or self._expiry[0][0] >= wall:
                break
            expires, key, origin = heapq.heappop(self._expiry)
            if self._expiry_of(key, origin) == expires:
                self._remove(key, origin)
        if len(self._expiry) > 64 + 2 * len(self):  # an origin that renews without end has most of it replaced
            self._expiry[:] = [item for item in self._expiry if self._expiry_of(item[1], item[2]) == item[0]]
            heapq.heapify(self._expiry)

    def _expiry_of(self, key: bytes, origin: NodeId) -> float | None:
        held = self._keys.get(key, {}).get(origin)
        return None if held is None else held.expires

    # ---- what is asked for

    def bundle(self, key: bytes, wall: float) -> bytes:
        """Return offers of a key for one answer, others in each; empty when there are none.

        Withdrawals come last. It has ``DHT_OFFER_BUNDLE`` bytes, or one offer that is longer than that.
        """
        named = self._keys.get(key)
        if named is None:
            return b""
        valid = [held for origin, held in named.items() if held.expires >= wall and not self.is_barred(origin)]
        strong = self._drawn([held for held in valid if held.is_strong and not held.is_over])
        weak = self._drawn([held for held in valid if not held.is_strong and not held.is_over])
        over = self._drawn([held for held in valid if held.is_over])
        if self._rng.random() < 0.5:
            strong, weak = weak, strong
        chosen: dict[bytes, None] = {}
        _choose(chosen, strong, DHT_OFFER_BUNDLE // 2)
        _choose(chosen, chain(weak, strong, over), DHT_OFFER_BUNDLE)
        return make_bundle(list(chosen)) if chosen else b""

    def _drawn(self, held: Sequence[Held]) -> list[Held]:
        """Return them all, from one on that is drawn by lot."""
        start = self._rng.randrange(len(held)) if held else 0
        return [*held[start:], *held[:start]]


def _choose(chosen: dict[bytes, None], held: Sequence[Held] | chain[Held], most: int) -> None:
    """Add what fits of ``held`` to a bundle of at most ``most`` bytes; the first one always does."""
    size = OVERHEAD + sum(len(encoded) + ITEM for encoded in chosen)
    for each in held:
        added = len(each.encoded) + ITEM
        if len(chosen) < MOST and each.encoded not in chosen and (not chosen or size + added <= most):
            chosen[each.encoded] = None
            size += added


def _first_to_go(named: dict[NodeId, Held]) -> NodeId:
    """Return the origin that leaves a key which has too many: of the half that has more than its share.

    In it, the oldest of the host with most in the network with most. Where none has more than another, the newest: what
    was there first stays.
    """
    crowd = [item for item in named.items() if not item[1].is_strong]
    if len(crowd) <= DHT_OFFERS_OF_KEY // 2:
        crowd = [item for item in named.items() if item[1].is_strong]
    for level in range(len(crowd[0][1].groups)):
        sizes = Counter(held.groups[level] for _, held in crowd)
        most = max(sizes.values())
        group = next(held.groups[level] for _, held in reversed(crowd) if sizes[held.groups[level]] == most)
        crowd = [item for item in crowd if item[1].groups[level] == group]
    return crowd[0][0]
