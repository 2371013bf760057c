"""Entries that count: the newest of each (origin, kind, name), as a set that any two nodes can merge. Sans I/O.

While no kind is full the set is a deterministic function of the entries that came, in whatever order: the newest of
each key; of one origin and kind the 64 newest; of the accusations of one node those of 3 origins chosen by hash, for
more say nothing more. So neighbours that exchange what they lack end with the same set. Of a kind that is full, each
node keeps what it saw first and a changing sample of the rest (places.py), and asks for nothing that it has given up.
An entry that has expired leaves its seq behind, so that no older one comes back to life.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Hashable, Iterator
from functools import partial

from meshnode.base.limits import (
    GOSSIP_MAX_ACCUSATIONS,
    GOSSIP_MAX_ACCUSERS,
    GOSSIP_MAX_PER_ORIGIN,
    GOSSIP_MAX_STORED,
    GOSSIP_PLACES_OF_STANDING,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.gossip.dissemination.buckets import Buckets
from meshnode.gossip.dissemination.gone import Gone
from meshnode.gossip.dissemination.places import Places
from meshnode.gossip.effects import Expired
from meshnode.gossip.entry import Entry, Key, Kind, Put
from meshnode.gossip.kinds import parse_accusation
from meshnode.identity.node_id import NodeId

EVICTED = describe("gossip_evicted", "stored entries that gave way to others: the kind or the origin is full")


def _keeps(own: NodeId | None, is_kept: Callable[[NodeId], bool], origin: NodeId, held: int) -> bool:
    """Return whether one more entry of an origin that has ``held`` already keeps its place whatever comes."""
    return origin == own or (held < GOSSIP_PLACES_OF_STANDING and is_kept(origin))


_NOTHING: dict[NodeId, Entry] = {}


def _rank(entry: Entry) -> bytes:
    """Return the order in which accusations of a node count: random, but the same everywhere. Age would give no order,
    for an origin that accuses again replaces its former accusation."""
    return hashlib.blake2b(bytes(entry.origin) + entry.name.encode(), digest_size=8, person=b"mesh-accuser").digest()


class EntryStore:
    """Bounded by kind and by origin; ``buckets`` has the same entries by id.

    ``own`` is this node, whose entries are always kept; ``is_kept`` tells of the few origins of which the first entries
    of a kind are, ``has_standing`` of those that this node knows by more than hearsay; ``network_of`` tells the source
    network of a neighbour.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        limit: int = GOSSIP_MAX_STORED,
        own: NodeId | None = None,
        has_standing: Callable[[NodeId], bool] = lambda origin: False,
        is_kept: Callable[[NodeId], bool] = lambda origin: False,
        network_of: Callable[[NodeId], Hashable] = lambda link: None,
    ) -> None:
        self.buckets = Buckets()
        self.gone = Gone()
        self._metrics = metrics
        self._limit = limit
        self._has_standing = has_standing
        self._keeps = partial(_keeps, own, is_kept)
        self._network_of = network_of
        self._named: dict[tuple[int, str], dict[NodeId, Entry]] = {}
        self._places: dict[int, Places] = {}
        self._of_origin: dict[NodeId, list[Entry]] = {}
        self._expiry: list[tuple[float, bytes]] = []
        self._effects: list[Expired] = []

    def __len__(self) -> int:
        return len(self.buckets)

    def get(self, key: Key) -> Entry | None:
        """Return the newest entry of a key, a tombstone included; None when there is none."""
        return self._named.get(key[1:], _NOTHING).get(key[0])

    def by_id(self, item: bytes) -> Entry | None:
        """Return the stored entry of this id."""
        return self.buckets.get(item)

    def incarnation(self, peer: NodeId) -> int | None:
        """Return the seq of the newest member entry of ``peer``; None when there is none."""
        entry = self.get((peer, Kind.MEMBER, ""))
        return entry.seq if entry is not None else None

    def entries(self, kind: int) -> Iterator[Entry]:
        """Iterate over the stored entries of a kind, tombstones (value None) included.

        The store may change meanwhile: the entries are those of the time of the call.
        """
        return iter([entry for key, named in self._named.items() if key[0] == kind for entry in named.values()])

    def named(self, kind: int, name: str) -> Iterator[Entry]:
        """Iterate over the stored entries of a kind and a name, of all origins."""
        return iter(list(self._named.get((kind, name), _NOTHING).values()))

    def lacks(self, item: bytes) -> bool:
        """Return whether an entry of this id is to be asked for: it is not here, and was not given up for others."""
        kind = self.gone.given_up.get(item)
        return self.by_id(item) is None and (kind is None or self.places(kind).has_room)

    def judge(self, entry: Entry) -> Put:
        """Return what ``put`` would, as far as the key tells: NEW, KNOWN, STALE, or FULL for one that was given up.

        An expired or evicted entry of the same key still counts by its seq.
        """
        known = self.get(entry.key)
        if known is not None:
            if known.id == entry.id:
                return Put.KNOWN
            if (known.seq, known.encoded) > (entry.seq, entry.encoded):
                return Put.STALE
            return Put.NEW if self.by_id(entry.id) is None else Put.FULL  # ids of eight bytes can be made alike
        if self.gone.is_stale(entry):
            return Put.STALE
        return Put.NEW if self.lacks(entry.id) else Put.FULL

    def put(self, entry: Entry, link: NodeId | None = None) -> Put:
        """Store a verified entry that ``link`` brought, unless it is not new or has no place (``judge``).

        Returns NEW when it counts; else KNOWN, STALE or FULL, and nothing has changed.
        """
        judged = self.judge(entry)
        if judged is not Put.NEW:
            return judged
        known, places = self.get(entry.key), self.places(entry.kind)
        keep = False
        if known is not None:
            keep = places.is_settled(known.id)
            self._remove(known)
        elif not self._make_room(entry, places):
            return Put.FULL
        held = self._held(entry)
        keep |= self._keeps(entry.origin, held)
        self._named.setdefault((entry.kind, entry.name), {})[entry.origin] = entry
        self.buckets.add(entry)
        places.add(entry.id, link, held, keep=keep, standing=self._has_standing(entry.origin))
        self._of_origin.setdefault(entry.origin, []).append(entry)
        heapq.heappush(self._expiry, (entry.expires, entry.id))
        self._tidy()
        return Put.NEW

    def is_known(self, origin: NodeId) -> bool:
        """Return whether an entry of this origin has a place that nothing takes from it."""
        return any(self.places(entry.kind).is_settled(entry.id) for entry in self._of_origin.get(origin, ()))

    def take_effects(self) -> list[Expired]:
        """Return the entries that gave way to others since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def of_origin(self, origin: NodeId) -> list[Entry]:
        """Return the stored entries of an origin."""
        return list(self._of_origin.get(origin, ()))

    def drop_ahead(self, latest: float) -> list[Entry]:
        """Remove and return what is dated or numbered after a time in Unix milliseconds, and remember none of it."""
        gone = [e for entries in self._of_origin.values() for e in entries if max(e.seq, e.issued) > latest]
        for entry in gone:
            self._remove(entry)
        self.gone.forget_ahead(latest)
        return gone

    def drop(self, entry: Entry) -> None:
        """Remove an entry that another one has made void.

        Its seq stays, so that no older one comes back.
        """
        if self.by_id(entry.id) is entry:
            self._remove(entry)
            self.gone.on_over(entry)

    def is_void(self, entry: Entry) -> bool:
        """Return whether an entry is an accusation that a stored member entry refutes."""
        accusation = parse_accusation(entry)
        return accusation is not None and accusation.incarnation < (self.incarnation(accusation.accused) or 0)

    def void_accusations(self, accused: NodeId, seq: int) -> None:
        """Drop the accusations that a member entry of this seq refutes."""
        for entry in self.named(Kind.ACCUSATION, str(accused)):
            accusation = parse_accusation(entry)
            if accusation is None or accusation.incarnation < seq:
                self.drop(entry)

    def expire(self, wall: float) -> list[Entry]:
        """Remove and return the entries that expired before ``wall``, in Unix seconds, earliest first.

        Their seqs stay, up to ``GOSSIP_MAX_FLOORS``, so that no older entry comes back.
        """
        gone = []
        while self._expiry and self._expiry[0][0] < wall:
            entry = self.by_id(heapq.heappop(self._expiry)[1])
            if entry is not None:
                self._remove(entry)
                self.gone.on_over(entry)
                gone.append(entry)
        return gone

    def next_expiry(self) -> float | None:
        """Return the Unix seconds at which the next entry expires; None when the store is empty."""
        while self._expiry and self.by_id(self._expiry[0][1]) is None:
            heapq.heappop(self._expiry)
        return self._expiry[0][0] if self._expiry else None

    # ---- inside

    def places(self, kind: int) -> Places:
        places = self._places.get(kind)
        if places is None:
            limit = GOSSIP_MAX_ACCUSATIONS if kind == Kind.ACCUSATION else self._limit
            places = self._places[kind] = Places(limit, self._network_of)
        return places

    def _held(self, entry: Entry) -> int:
        """Return how many entries of this kind its origin has here."""
        return sum(other.kind == entry.kind for other in self._of_origin.get(entry.origin, ()))

    def _make_room(self, entry: Entry, places: Places) -> bool:
        """Evict what has to go; False when its origin's share, or the accusers of a node, leave it no place."""
        if entry.kind == Kind.ACCUSATION:
            others = self._named.get((entry.kind, entry.name), _NOTHING)
            if len(others) >= GOSSIP_MAX_ACCUSERS:
                last = max(others.values(), key=_rank)
                if _rank(entry) > _rank(last):
                    return False
                self._evict(last)
        if self._held(entry) >= GOSSIP_MAX_PER_ORIGIN:
            own = [e for e in self._of_origin[entry.origin] if e.kind == entry.kind]
            oldest = min(own, key=lambda e: (e.seq, e.id))
            if (entry.seq, entry.id) < (oldest.seq, oldest.id):
                return False
            self._evict(oldest)
        while places.is_full:
            item = places.victim(lambda item: (it := self.by_id(item)) is None or not self._keeps(it.origin, 0))
            victim = self.by_id(item) if item is not None else None
            if item is None or victim is None:
                return False
            held = self._held(victim) - 1
            kept = self._keeps(victim.origin, held)
            if not (kept or (self._has_standing(victim.origin) and places.may_stay(held))) or not places.settle(item):
                self._evict(victim)
        return True

    def _evict(self, victim: Entry) -> None:
        self._metrics.count(EVICTED)
        self._remove(victim)
        self.gone.on_evicted(victim)
        self._effects.append(Expired(victim))

    def _remove(self, entry: Entry) -> None:
        self.buckets.remove(entry)
        self.places(entry.kind).discard(entry.id)
        name = entry.kind, entry.name
        del self._named[name][entry.origin]
        if not self._named[name]:
            del self._named[name]
        rest = [other for other in self._of_origin.pop(entry.origin) if other is not entry]
        if rest:
            self._of_origin[entry.origin] = rest

    def _tidy(self) -> None:
        """Rebuild the heap before most of it are replaced entries, which stay until they surface."""
        if len(self._expiry) > 64 + 2 * len(self.buckets):
            self._expiry[:] = [item for item in self._expiry if self.by_id(item[1]) is not None]
            heapq.heapify(self._expiry)
