"""Storage for other nodes' records, bounded by key and shared by source network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

from kademlia.storage import IStorage

from meshnode.base.fair_table import FairTable, Groups, source_shares
from meshnode.base.limits import DHT_UPDATES_PER_KEY, DHT_UPDATES_PER_KEY_PER_S
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import state
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, is_ahead, newer


class Put(Enum):
    """Outcome of ``RecordStore.put``."""

    NEW = "new"
    NEWER = "newer"
    SAME = "same"
    OLD = "old"
    QUOTA = "quota"


@state
class _Item:
    record: EndpointRecord
    stored: float
    groups: Groups  # of the source that handed in the first record of this key
    updates: TokenBucket | None = None  # from the first newer record on


class RecordStore(IStorage):  # type: ignore[misc]  # kademlia is untyped
    """Newest verified record by key, at most ``limit``.

    Half of the places are for established owners: this node, and those that ``is_established`` names. The others are
    shared by the networks and hosts that the records came from; when all are taken, the one with most gives one up. Ids
    are free, and so is an id's distance from this node's: neither is a reason to keep a record.
    """

    def __init__(
        self, own_key: bytes, limit: int, is_established: Callable[[NodeId], bool] = lambda peer: False
    ) -> None:
        self.is_barred: Callable[[NodeId], bool] = lambda owner: False  # keys whose records are given to none
        self._own = own_key
        self._limit = limit
        self._is_established = is_established
        self._items: dict[bytes, _Item] = {}
        self._kept: FairTable[bytes] = FairTable(max(1, limit // 2))
        self._guests: FairTable[bytes] = FairTable(limit + 1)  # evicted from by hand, for both count
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, record: EndpointRecord, source: str, now: float, wall: float) -> Put:
        """Offer a verified record; ``source`` is the host that handed it in, whose share pays for the place.

        A new one is always taken; when the store is full, another one gives way.
        """
        self._now = max(now, self._now)
        key = record.id.dht_key
        item = self._items.get(key)
        if item is not None and is_ahead(item.record, wall):
            self._drop(key)
            item = None
        if item is not None:
            return self._update(item, record, now)
        groups = source_shares(source)
        self._items[key] = _Item(record, now, groups)
        if key == self._own or self._is_established(record.id):
            self._keep(key, groups)
        else:
            self._guests.add(key, *groups)
        while len(self._items) > self._limit:  # no scan: STOREs come as fast as datagrams
            del self._items[self._guests.evict()]
        return Put.NEW

    def _update(self, item: _Item, record: EndpointRecord, now: float) -> Put:
        key = record.id.dht_key
        if key in self._guests:
            if self._is_established(record.id):
                self.keep(record.id)
            else:
                self._guests.touch(key)
        if item.record.encoded == record.encoded:
            return Put.SAME
        if not newer(record, item.record):
            return Put.OLD
        if item.updates is None:
            item.updates = TokenBucket(DHT_UPDATES_PER_KEY_PER_S, DHT_UPDATES_PER_KEY, now)
        if not item.updates.take(1, now):
            return Put.QUOTA
        item.record, item.stored = record, now
        return Put.NEWER

    def keep(self, owner: NodeId) -> None:
        """Give the record of an owner that is established now, if there is one, a place that newcomers cannot take."""
        key = owner.dht_key
        if key in self._guests:
            self._guests.discard(key)
            self._keep(key, self._items[key].groups)

    def _keep(self, key: bytes, groups: Groups) -> None:
        over = self._kept.add(key, *groups)
        if over is not None:  # it takes its chance among the others
            self._guests.add(over, *self._items[over].groups)

    def fresh(self, key: bytes, wall: float) -> EndpointRecord | None:
        """Return the record of ``key``; None when there is none, or it has expired or is ahead of the clock."""
        item = self._items.get(key)
        if item is None:
            return None
        record = item.record
        if record.expires_ms < wall * 1000 or is_ahead(record, wall) or self.is_barred(record.id):
            self._drop(key)
            return None
        return record

    def cull(self, wall: float) -> None:
        """Drop what has expired."""
        for key in [k for k, item in self._items.items() if item.record.expires_ms < wall * 1000]:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        del self._items[key]
        self._kept.discard(key)
        self._guests.discard(key)

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
