"""Entries that count: the newest of each (origin, kind, name), as a set that any two nodes can merge. Sans I/O.

The set is a deterministic function of the entries that came, in whatever order: the newest of each key; of one
origin and kind the 64 newest; of one kind the 2,048 newest; of the accusations of one node those of 3 origins chosen by
hash, for more say nothing more. So neighbours that exchange what they lack end with the same set, also when there is
more than fits. An entry that has expired leaves its seq behind, so that no older one comes back to life.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    GOSSIP_MAX_ACCUSATIONS,
    GOSSIP_MAX_ACCUSERS,
    GOSSIP_MAX_FLOORS,
    GOSSIP_MAX_PER_ORIGIN,
    GOSSIP_MAX_STORED,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.gossip.entry import Entry, Key, Kind, Put
from meshnode.gossip.kinds import parse_accusation
from meshnode.gossip.messages import BUCKETS
from meshnode.identity.node_id import NodeId

STALE = describe("gossip_stale", "entries not taken: a newer one of the same key is known")
EVICTED = describe("gossip_evicted", "stored entries that gave way to newer ones: the kind or the origin is full")


_NOTHING: dict[NodeId, Entry] = {}


def _rank(entry: Entry) -> bytes:
    """Return the order in which accusations of a node count: random, but the same everywhere. Age would give no order,
    for an origin that accuses again replaces its former accusation."""
    return hashlib.blake2b(bytes(entry.origin) + entry.name.encode(), digest_size=8, person=b"mesh-accuser").digest()


class EntryStore:
    """Bounded by kind and by origin. ``prints`` are the fingerprints of the 256 buckets of ids (XOR)."""

    def __init__(self, metrics: Metrics, *, limit: int = GOSSIP_MAX_STORED) -> None:
        self.prints = [0] * BUCKETS
        self._metrics = metrics
        self._limit = limit
        self._size = 0
        self._named: dict[tuple[int, str], dict[NodeId, Entry]] = {}
        self._buckets: list[dict[bytes, Entry]] = [{} for _ in range(BUCKETS)]
        self._of_kind: dict[int, int] = {}
        self._of_origin: dict[NodeId, list[Entry]] = {}
        self._oldest: dict[int, list[tuple[int, bytes]]] = {}  # of kinds that were full
        self._expiry: list[tuple[float, bytes]] = []
        self._floors: BoundedDict[Key, int] = BoundedDict(GOSSIP_MAX_FLOORS)

    def __len__(self) -> int:
        return self._size

    def get(self, key: Key) -> Entry | None:
        """Return the newest entry of a key, a tombstone included; None when there is none."""
        return self._named.get(key[1:], _NOTHING).get(key[0])

    def by_id(self, item: bytes) -> Entry | None:
        """Return the stored entry of this id."""
        return self._buckets[item[0]].get(item)

    def payload(self, item: bytes) -> bytes | None:
        """Return the bytes of the stored entry of this id."""
        entry = self.by_id(item)
        return entry.encoded if entry is not None else None

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

    def bucket(self, index: int, count: int) -> list[bytes]:
        """Return the ids in one of ``count`` buckets, a power of two up to ``BUCKETS``.

        An id is in the bucket of its leading bits.
        """
        step = BUCKETS // count
        return [item for part in self._buckets[index * step : (index + 1) * step] for item in part]

    def folded(self, count: int) -> tuple[int, ...]:
        """Return the fingerprints of ``count`` buckets, a power of two up to ``BUCKETS``.

        A fingerprint is the XOR of the bucket's ids as big-endian integers, 0 for an empty one.
        """
        if count == BUCKETS:
            return tuple(self.prints)
        step, found = BUCKETS // count, []
        for begin in range(0, BUCKETS, step):
            together = 0
            for part in self.prints[begin : begin + step]:
                together ^= part
            found.append(together)
        return tuple(found)

    def judge(self, entry: Entry) -> Put:
        """Return what ``put`` would, as far as the key tells: NEW, KNOWN or STALE.

        Whether there is room is not looked at. An expired or evicted entry of the same key still counts by its seq.
        """
        known = self.get(entry.key)
        if known is not None:
            if known.id == entry.id:
                return Put.KNOWN
            if (known.seq, known.encoded) > (entry.seq, entry.encoded):
                return Put.STALE
        elif self._floors and entry.seq <= self._floors.get(entry.key, -1):
            return Put.STALE
        return Put.NEW

    def put(self, entry: Entry) -> Put:
        """Store a verified entry, unless a newer one of its key is known or newer ones fill its kind or origin.

        Returns NEW when it counts; else KNOWN, STALE (counted) or FULL, and nothing has changed.
        """
        judged = self.judge(entry)
        if judged is not Put.NEW:
            if judged is Put.STALE:
                self._metrics.count(STALE)
            return judged
        known = self.get(entry.key)
        if known is not None:
            self._remove(known)
        elif not self._make_room(entry):
            return Put.FULL
        kind, index = entry.kind, entry.id[0]
        self._size += 1
        self._named.setdefault((kind, entry.name), {})[entry.origin] = entry
        self._buckets[index][entry.id] = entry
        self.prints[index] ^= int.from_bytes(entry.id, "big")
        self._of_kind[kind] = self._of_kind.get(kind, 0) + 1
        self._of_origin.setdefault(entry.origin, []).append(entry)
        if kind in self._oldest:
            heapq.heappush(self._oldest[kind], (entry.seq, entry.id))
        heapq.heappush(self._expiry, (entry.expires, entry.id))
        self._tidy(kind)
        return Put.NEW

    def drop(self, entry: Entry) -> None:
        """Remove an entry that another one has made void; its seq stays, so that no older one comes back."""
        if self.by_id(entry.id) is entry:
            self._remove(entry)
            self._raise_floor(entry, entry.seq)

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
                self._raise_floor(entry, entry.seq)
                gone.append(entry)
        return gone

    def next_expiry(self) -> float | None:
        """Return the Unix seconds at which the next entry expires; None when the store is empty."""
        while self._expiry and self.by_id(self._expiry[0][1]) is None:
            heapq.heappop(self._expiry)
        return self._expiry[0][0] if self._expiry else None

    # ---- inside

    def _raise_floor(self, entry: Entry, seq: int) -> None:
        self._floors.put(entry.key, max(seq, self._floors.get(entry.key, 0)))

    def _make_room(self, entry: Entry) -> bool:
        """Evict what has to go; False when the entry is older than all that fill its origin's share or its kind."""
        rank = entry.seq, entry.id
        victim: Entry | None = None
        if entry.kind == Kind.ACCUSATION:
            others = self._named.get((entry.kind, entry.name), _NOTHING)
            if len(others) >= GOSSIP_MAX_ACCUSERS:
                victim = max(others.values(), key=_rank)
                if _rank(entry) > _rank(victim):
                    return False
                self._evict(victim)
                return True
        own = [e for e in self._of_origin.get(entry.origin, ()) if e.kind == entry.kind]
        if len(own) >= GOSSIP_MAX_PER_ORIGIN:
            victim = min(own, key=lambda e: (e.seq, e.id))
        elif self._of_kind.get(entry.kind, 0) >= self._limit_of(entry.kind):
            victim = self._oldest_of(entry.kind)
        if victim is None:
            return True
        if rank < (victim.seq, victim.id):
            return False
        self._evict(victim)
        return True

    def _evict(self, victim: Entry) -> None:
        self._metrics.count(EVICTED)
        self._remove(victim)
        self._raise_floor(victim, victim.seq - 1)  # it may come back when there is room, older ones may not

    def _limit_of(self, kind: int) -> int:
        return GOSSIP_MAX_ACCUSATIONS if kind == Kind.ACCUSATION else self._limit

    def _oldest_of(self, kind: int) -> Entry:
        """Return the oldest entry of a kind that is full: most kinds never are, and need no heap."""
        heap = self._oldest.get(kind)
        if heap is None:
            heap = self._oldest[kind] = [(entry.seq, entry.id) for entry in self.entries(kind)]
            heapq.heapify(heap)
        while (found := self.by_id(heap[0][1])) is None:
            heapq.heappop(heap)
        return found

    def _remove(self, entry: Entry) -> None:
        index = entry.id[0]
        self._size -= 1
        del self._buckets[index][entry.id]
        self.prints[index] ^= int.from_bytes(entry.id, "big")
        self._of_kind[entry.kind] -= 1
        name = entry.kind, entry.name
        del self._named[name][entry.origin]
        if not self._named[name]:
            del self._named[name]
        rest = [other for other in self._of_origin.pop(entry.origin) if other is not entry]
        if rest:
            self._of_origin[entry.origin] = rest

    def _tidy(self, kind: int) -> None:
        """Rebuild heaps before most of them are replaced entries, which stay until they surface."""
        heap = self._oldest.get(kind)
        if heap is not None and len(heap) > 64 + 2 * self._of_kind[kind]:
            heap[:] = [item for item in heap if self.by_id(item[1]) is not None]
            heapq.heapify(heap)
        if len(self._expiry) > 64 + 2 * self._size:
            self._expiry[:] = [item for item in self._expiry if self.by_id(item[1]) is not None]
            heapq.heapify(self._expiry)
