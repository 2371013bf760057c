"""Storage for other nodes: their records and their watches, bounded by address and by key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from kademlia.storage import IStorage

from meshnode.base.address import Addr
from meshnode.base.limits import (
    DHT_MAX_STORED_PER_ADDRESS,
    DHT_MAX_WATCHES,
    DHT_MAX_WATCHES_PER_KEY,
    DHT_MAX_WATCHES_PER_SENDER,
    DHT_UPDATES_PER_KEY,
    DHT_UPDATES_PER_KEY_PER_S,
)
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, newer


class Put(Enum):
    """Outcome of ``RecordStore.put``."""

    NEW = "new"
    NEWER = "newer"
    SAME = "same"
    OLD = "old"
    FULL = "full"
    QUOTA = "quota"


@dataclass(slots=True)
class _Item:
    record: EndpointRecord
    stored: float
    source: str
    updates: TokenBucket


class RecordStore(IStorage):  # type: ignore[misc]  # kademlia is untyped
    """Newest verified record by key. When full, the expired go first, then the farthest from this node."""

    def __init__(self, own_key: bytes, limit: int) -> None:
        self._own = int.from_bytes(own_key, "big")
        self._limit = limit
        self._items: dict[bytes, _Item] = {}
        self._per_source: dict[str, int] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, record: EndpointRecord, source: str, now: float, wall: float) -> Put:
        """Offer a verified record; ``source`` is the host that handed it in and pays with its quota."""
        self._now = max(now, self._now)
        key = record.id.dht_key
        item = self._items.get(key)
        if item is not None:
            if item.record.encoded == record.encoded:
                return Put.SAME
            if not newer(record, item.record):
                return Put.OLD
            if not item.updates.take(1, now):
                return Put.QUOTA
            item.record, item.stored = record, now
            return Put.NEWER
        if self._per_source.get(source, 0) >= DHT_MAX_STORED_PER_ADDRESS:
            self.cull(wall)
            if self._per_source.get(source, 0) >= DHT_MAX_STORED_PER_ADDRESS:
                return Put.QUOTA
        if len(self._items) >= self._limit and not self._make_room(key, wall):
            return Put.FULL
        updates = TokenBucket(DHT_UPDATES_PER_KEY_PER_S, DHT_UPDATES_PER_KEY, now)
        self._items[key] = _Item(record, now, source, updates)
        self._per_source[source] = self._per_source.get(source, 0) + 1
        return Put.NEW

    def fresh(self, key: bytes, wall: float) -> EndpointRecord | None:
        """Return the record of ``key``; None when there is none or it has expired."""
        item = self._items.get(key)
        if item is None:
            return None
        if item.record.expires_ms < wall * 1000:
            self._drop(key)
            return None
        return item.record

    def cull(self, wall: float) -> None:
        """Drop what has expired."""
        for key in [k for k, item in self._items.items() if item.record.expires_ms < wall * 1000]:
            self._drop(key)

    def _make_room(self, key: bytes, wall: float) -> bool:
        self.cull(wall)
        if len(self._items) < self._limit:
            return True
        farthest = max(self._items, key=lambda k: int.from_bytes(k, "big") ^ self._own)
        if int.from_bytes(farthest, "big") ^ self._own <= int.from_bytes(key, "big") ^ self._own:
            return False
        self._drop(farthest)
        return True

    def _drop(self, key: bytes) -> None:
        item = self._items.pop(key)
        left = self._per_source[item.source] - 1
        if left:
            self._per_source[item.source] = left
        else:
            del self._per_source[item.source]

    # ---- the library's storage interface, on encoded records

    def __setitem__(self, key: bytes, value: EndpointRecord) -> None:
        if value.id.dht_key != key or self.put(value, "", self._now, value.issued / 1000) not in (Put.NEW, Put.NEWER):
            raise ValueError("not a newer record of that key")

    def __getitem__(self, key: bytes) -> bytes:
        return self._items[key].record.encoded

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        """Return the encoded record, expired or not."""
        return self[key] if key in self._items else default

    def iter_older_than(self, seconds_old: float) -> list[tuple[bytes, bytes]]:
        """Records stored longer ago than that. (Only owners republish; this serves the interface.)"""
        return [(k, i.record.encoded) for k, i in self._items.items() if self._now - i.stored >= seconds_old]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, item.record.encoded) for key, item in self._items.items()])


@dataclass(slots=True)
class Watcher:
    """A node that wants newer records of a key, and its address. ``credit`` bounds what an unproven address is sent."""

    id: NodeId
    addr: Addr
    until: float
    seq: int
    proven: bool
    credit: int

    def spend(self, size: int) -> bool:
        """Return True when a body of ``size`` bytes may be sent there, and charge it.

        A proven address has no limit; another one has as many bytes as its request had.
        """
        if self.proven:
            return True
        if self.credit < size:
            return False
        self.credit -= size
        return True


class Watchers:
    """All watches that this node holds for others."""

    def __init__(self, per_key: int = DHT_MAX_WATCHES_PER_KEY) -> None:
        self._by_key: dict[bytes, dict[NodeId, Watcher]] = {}
        self._per_sender: dict[NodeId, int] = {}
        self._per_key = per_key
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def add(self, key: bytes, watcher: Watcher, now: float) -> bool:
        """Register or renew a watch; return False when a bound is reached: of its sender, of the key, of all.

        A renewal always succeeds. From the same address it keeps the proof of the address, and the larger credit.
        """
        watchers = self._by_key.get(key)
        old = None if watchers is None else watchers.get(watcher.id)
        if old is not None and watchers is not None:
            if old.addr == watcher.addr:
                watcher.proven = watcher.proven or old.proven
                watcher.credit = watcher.credit if watcher.proven else max(watcher.credit, old.credit)
            watchers[watcher.id] = watcher
            return True
        if self._is_full(key, watcher.id):
            self.cull(now)
            if self._is_full(key, watcher.id):
                return False
        self._by_key.setdefault(key, {})[watcher.id] = watcher
        self._per_sender[watcher.id] = self._per_sender.get(watcher.id, 0) + 1
        self._total += 1
        return True

    def _is_full(self, key: bytes, sender: NodeId) -> bool:
        return (
            self._total >= DHT_MAX_WATCHES
            or self._per_sender.get(sender, 0) >= DHT_MAX_WATCHES_PER_SENDER
            or len(self._by_key.get(key, ())) >= self._per_key
        )

    def get(self, key: bytes, watcher: NodeId) -> Watcher | None:
        """Return the watch of that peer on that key."""
        return self._by_key.get(key, {}).get(watcher)

    def remove(self, key: bytes, watcher: NodeId) -> None:
        """Forget a watch, if there."""
        watchers = self._by_key.get(key)
        if watchers is None or watchers.pop(watcher, None) is None:
            return
        if not watchers:
            del self._by_key[key]
        self._total -= 1
        left = self._per_sender[watcher] - 1
        if left:
            self._per_sender[watcher] = left
        else:
            del self._per_sender[watcher]

    def waiting(self, key: bytes, seq: int, now: float) -> list[Watcher]:
        """Return the watchers that a record with ``seq`` is news to.

        Watches that have run out, and watchers that acknowledged this seq or a newer one, are left out.
        """
        return [w for w in self._by_key.get(key, {}).values() if w.seq < seq and w.until > now]

    def cull(self, now: float) -> None:
        """Drop what has run out by ``now``."""
        gone = [(k, w.id) for k, watchers in self._by_key.items() for w in watchers.values() if w.until <= now]
        for key, watcher in gone:
            self.remove(key, watcher)
